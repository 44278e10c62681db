//! Block headers of the simulated chains: their RLP, hash and JSON, as geth and Morph's node show them. Independent of
//! `codec::block`, so that a mistake there does not cancel out here.

use bytes::Bytes;
use ethers_core::utils::rlp::RlpStream;
use serde_json::{Map, Value};

use super::jsonrpc::{big, data, hash, parse_big, parse_data, parse_hash, parse_quantity, quantity};
use crate::types::{B256, L2Header, L2Number, RawTx, U256, keccak};

/// keccak256(rlp([])): no uncles.
const NO_UNCLES: &str = "1dcc4de8dec75d7aab85b567b6ccd41ad312451b948a7413f0a142fd40d49347";
/// The root of an empty trie: no transactions, no receipts.
const EMPTY_ROOT: &str = "56e81f171bcc55a6ff8345e692c0f86e5b48e01b996cadc001622fb5e363b421";

fn constant(text: &str) -> B256 {
    const_hex::decode(text).map(|bytes| B256::from_slice(&bytes)).unwrap_or_default()
}

/// A header with what the simulation varies; miner, difficulty, nonce and uncles are those of an empty proof of work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The parent's hash.
    pub parent_hash: B256,
    /// State root after the block.
    pub state_root: B256,
    /// Root of the transactions.
    pub transactions_root: B256,
    /// Root of the receipts.
    pub receipts_root: B256,
    /// Logs bloom; empty stands for 256 zero bytes.
    pub bloom: Bytes,
    /// Height.
    pub number: u64,
    /// Gas limit.
    pub gas_limit: u64,
    /// Gas used.
    pub gas_used: u64,
    /// Seconds since the Unix epoch.
    pub timestamp: u64,
    /// Extra data.
    pub extra: Bytes,
    /// Mix hash.
    pub mix: B256,
    /// Base fee; none is left out of the hash.
    pub base_fee: Option<U256>,
    /// Morph: index of the first L1 message not yet consumed. Not part of the hash.
    pub next_l1_index: u64,
    /// Morph: as given by the writer of the block. Not part of the hash.
    pub batch_hash: B256,
}

impl Header {
    /// The header of an empty block on `parent_hash`.
    pub fn empty(number: u64, parent_hash: B256, timestamp: u64) -> Self {
        Self {
            parent_hash,
            state_root: B256::zero(),
            transactions_root: constant(EMPTY_ROOT),
            receipts_root: constant(EMPTY_ROOT),
            bloom: Bytes::new(),
            number,
            gas_limit: 30_000_000,
            gas_used: 0,
            timestamp,
            extra: Bytes::new(),
            mix: B256::zero(),
            base_fee: None,
            next_l1_index: 0,
            batch_hash: B256::zero(),
        }
    }

    /// Gives the header simulated roots and gas for these transactions; none leaves the empty roots.
    pub fn seal_transactions(&mut self, hashes: &[B256]) {
        if hashes.is_empty() {
            return;
        }
        let mut all = b"transactions".to_vec();
        hashes.iter().for_each(|hash| all.extend_from_slice(hash.as_bytes()));
        self.transactions_root = keccak(&all);
        self.gas_used = 21_000 * hashes.len() as u64;
        all.extend_from_slice(b"receipts");
        self.receipts_root = keccak(&all);
    }

    /// The real root of these raw transactions, in place of the simulated one: a reader of L2 blocks checks it.
    pub fn seal_l2_transactions(&mut self, raw: &[crate::types::RawTx]) {
        let hashes: Vec<_> = raw.iter().map(|raw| keccak(raw)).collect();
        self.seal_transactions(&hashes);
        self.transactions_root = crate::codec::block::transactions_root(raw);
    }

    fn append(&self, stream: &mut RlpStream, with_morph_fields: bool) {
        let fields = 15 + usize::from(self.base_fee.is_some()) + if with_morph_fields { 2 } else { 0 };
        stream.begin_list(fields).append(&self.parent_hash).append(&constant(NO_UNCLES));
        stream.append(&crate::types::Address::zero());
        stream.append(&self.state_root).append(&self.transactions_root).append(&self.receipts_root);
        stream.append(&self.bloom_bytes()).append(&0u8).append(&self.number).append(&self.gas_limit);
        stream.append(&self.gas_used).append(&self.timestamp).append(&self.extra.to_vec()).append(&self.mix);
        stream.append(&vec![0u8; 8]);
        if with_morph_fields {
            stream.append(&self.next_l1_index).append(&self.batch_hash);
        }
        if let Some(base_fee) = self.base_fee {
            stream.append(&base_fee);
        }
    }

    fn bloom_bytes(&self) -> Vec<u8> {
        if self.bloom.is_empty() { vec![0u8; 256] } else { self.bloom.to_vec() }
    }

    /// keccak256 of the RLP without Morph's two fields.
    pub fn hash(&self) -> B256 {
        let mut stream = RlpStream::new();
        self.append(&mut stream, false);
        keccak(&stream.out())
    }

    /// rlp([header, transactions, uncles]): a legacy transaction as a list, a typed one as a byte string. Morph's two fields
    /// stand in the header, as go-ethereum's `debug_getBlockRlp` gives it.
    pub fn block_rlp(&self, transactions: &[RawTx]) -> Vec<u8> {
        let mut stream = RlpStream::new();
        self.append(&mut stream, true);
        body(&stream.out(), transactions)
    }

    /// The header as morph-reth's `debug_getRawHeader` gives it: rlp([nextL1MsgIndex, header]).
    pub fn nested_header(&self) -> Vec<u8> {
        let mut stream = RlpStream::new_list(2);
        stream.append(&self.next_l1_index);
        self.append(&mut stream, false);
        stream.out().to_vec()
    }

    /// The block as morph-reth's `debug_getRawBlock` gives it, with the nested header.
    pub fn nested_block_rlp(&self, transactions: &[RawTx]) -> Vec<u8> {
        body(&self.nested_header(), transactions)
    }

    /// The header's fields as JSON, without hash and without Morph's.
    pub fn to_json(&self) -> Map<String, Value> {
        let mut map = Map::new();
        let mut set = |key: &str, value: Value| {
            map.insert(key.to_owned(), value);
        };
        set("parentHash", hash(self.parent_hash));
        set("sha3Uncles", hash(constant(NO_UNCLES)));
        set("miner", data(&[0; 20]));
        set("stateRoot", hash(self.state_root));
        set("transactionsRoot", hash(self.transactions_root));
        set("receiptsRoot", hash(self.receipts_root));
        set("logsBloom", data(&self.bloom_bytes()));
        set("difficulty", quantity(0));
        set("number", quantity(self.number));
        set("gasLimit", quantity(self.gas_limit));
        set("gasUsed", quantity(self.gas_used));
        set("timestamp", quantity(self.timestamp));
        set("extraData", data(&self.extra));
        set("mixHash", hash(self.mix));
        set("nonce", data(&[0; 8]));
        if let Some(base_fee) = self.base_fee {
            set("baseFeePerGas", big(base_fee));
        }
        map
    }

    /// Reads a block's header from the JSON of a node; `None` when a field is missing.
    pub fn from_json(block: &Value) -> Option<Self> {
        let bloom = parse_data(&block["logsBloom"])?;
        Some(Self {
            parent_hash: parse_hash(&block["parentHash"])?,
            state_root: parse_hash(&block["stateRoot"])?,
            transactions_root: parse_hash(&block["transactionsRoot"])?,
            receipts_root: parse_hash(&block["receiptsRoot"])?,
            bloom: if bloom.iter().all(|byte| *byte == 0) { Bytes::new() } else { bloom.into() },
            number: parse_quantity(&block["number"])?,
            gas_limit: parse_quantity(&block["gasLimit"])?,
            gas_used: parse_quantity(&block["gasUsed"])?,
            timestamp: parse_quantity(&block["timestamp"])?,
            extra: parse_data(&block["extraData"])?.into(),
            mix: parse_hash(&block["mixHash"])?,
            base_fee: parse_big(&block["baseFeePerGas"]),
            next_l1_index: parse_quantity(&block["nextL1MsgIndex"]).unwrap_or_default(),
            batch_hash: B256::zero(),
        })
    }

    /// What the worker reads of it.
    pub fn to_l2(&self) -> L2Header {
        L2Header {
            number: L2Number::new(self.number),
            hash: self.hash(),
            parent_hash: self.parent_hash,
            state_root: self.state_root,
            timestamp: self.timestamp,
            base_fee: self.base_fee.unwrap_or_default(),
            gas_limit: self.gas_limit,
            transactions_root: self.transactions_root,
            next_l1_index: Some(self.next_l1_index),
        }
    }
}

/// rlp([header, transactions, uncles]).
fn body(header: &[u8], transactions: &[RawTx]) -> Vec<u8> {
    let mut stream = RlpStream::new_list(3);
    stream.append_raw(header, 1);
    stream.begin_list(transactions.len());
    for raw in transactions {
        match raw.first() {
            Some(first) if *first >= 0xc0 => stream.append_raw(raw, 1),
            _ => stream.append(&raw.to_vec()),
        };
    }
    stream.begin_list(0);
    stream.out().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_of_every_recorded_block() {
        let dir = crate::codec::testing::vectors();
        let text = std::fs::read_to_string(dir.join("recorded/l2/blocks.json")).unwrap();
        let blocks: Vec<Value> = serde_json::from_str(&text).unwrap();
        for block in &blocks {
            let header = Header::from_json(block).unwrap();
            assert_eq!(Some(header.hash()), parse_hash(&block["hash"]));
        }
        let genesis = Header::from_json(&blocks[0]).unwrap();
        assert_eq!(Some(genesis.block_rlp(&[]).len() as u64), parse_quantity(&blocks[0]["size"]));
    }
}
