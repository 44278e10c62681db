//! A block of a simulated chain: what is stored of it, what a writer says of it, and how RPC shows it.
//!
//! Not here: how a block comes about (`node`) and which results were recorded (`oracle`).

use serde_json::{Map, Value, json};

use super::client::Client;
use super::headers::Header;
use super::jsonrpc::{address, hash, quantity};
use super::signing::{self, Place};
use crate::types::{Address, B256, L2Header, L2Ref, NewBlock, RawTx, U256, keccak};

/// L2ToL1MessagePasser (protocol.md, section 7).
pub fn message_passer() -> Address {
    let mut bytes = [0u8; 20];
    bytes[0] = 0x53;
    bytes[19] = 1;
    Address::from(bytes)
}

/// topic 0 of `AppendMessage(uint256 indexed, bytes32 indexed, bytes32 indexed)`.
pub fn append_message_topic() -> B256 {
    keccak(b"AppendMessage(uint256,bytes32,bytes32)")
}

/// The passer's root before the first message: that of an empty 32-level tree, as recorded.
pub fn empty_message_root() -> B256 {
    let bytes =
        const_hex::decode("27ae5ba08d7291c96c8cbddcc148bf48a6d68c7974b94356f53754ef6171d757").unwrap_or_default();
    if bytes.len() == 32 { B256::from_slice(&bytes) } else { B256::zero() }
}

/// One AppendMessage log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Index of the message.
    pub index: u64,
    /// Hash of the message.
    pub message_hash: B256,
    /// The root after it.
    pub root: B256,
    /// Place of its transaction in the block.
    pub tx_index: u64,
    /// Place of the log in the block.
    pub log_index: u64,
}

/// A block that the node has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBlock {
    /// What the worker reads of the header.
    pub header: L2Header,
    /// The whole header; none for a recording that does not have it.
    pub full: Option<Header>,
    /// As the writer gave it; not part of the hash.
    pub batch_hash: B256,
    /// All transactions, L1 messages included.
    pub transactions: Vec<RawTx>,
    /// `messageRoot()` after the block; none if a recording does not say.
    pub withdrawal_root: Option<B256>,
    /// AppendMessage logs.
    pub appended: Vec<Appended>,
    /// AppendMessage logs up to and with this block.
    pub messages_total: u64,
    /// Index of the first L1 message not yet consumed.
    pub next_l1_index: u64,
}

impl StoredBlock {
    /// Height.
    pub const fn number(&self) -> u64 {
        self.header.number.get()
    }

    /// Block hash.
    pub const fn hash(&self) -> B256 {
        self.header.hash
    }

    /// Number and hash.
    pub const fn l2_ref(&self) -> L2Ref {
        self.header.l2_ref()
    }

    /// A genesis block.
    pub fn genesis(timestamp: u64, state_root: B256) -> Self {
        let mut full = Header::empty(0, B256::zero(), timestamp);
        full.state_root = state_root;
        full.base_fee = Some(1_000_000.into());
        Self::anchor(full)
    }

    /// A block without transactions to start a chain from.
    pub fn anchor(full: Header) -> Self {
        Self {
            header: full.to_l2(),
            batch_hash: B256::zero(),
            transactions: Vec::new(),
            withdrawal_root: Some(empty_message_root()),
            appended: Vec::new(),
            messages_total: 0,
            next_l1_index: full.next_l1_index,
            full: Some(full),
        }
    }

    /// The content as `engine_newSafeL2Block` takes it, on top of its own parent.
    pub fn as_new_block(&self) -> NewBlock {
        NewBlock {
            number: self.header.number,
            timestamp: self.header.timestamp,
            base_fee: self.header.base_fee,
            gas_limit: self.header.gas_limit,
            transactions: self.transactions.clone(),
            parent_hash: Some(self.header.parent_hash),
        }
    }

    fn header_json(&self) -> Map<String, Value> {
        match &self.full {
            Some(full) => full.to_json(),
            None => Header { parent_hash: self.header.parent_hash, ..Header::empty(self.number(), B256::zero(), 0) }
                .to_json(),
        }
    }

    /// As `eth_getBlockBy…` shows it.
    pub fn to_json(&self, full_transactions: bool) -> Value {
        let mut map = self.header_json();
        let size = self.full.as_ref().map_or(0, |full| full.block_rlp(&self.transactions).len() as u64);
        map.insert("hash".to_owned(), hash(self.hash()));
        map.insert("size".to_owned(), quantity(size));
        map.insert("totalDifficulty".to_owned(), quantity(0));
        map.insert("nextL1MsgIndex".to_owned(), quantity(self.next_l1_index));
        map.insert("uncles".to_owned(), json!([]));
        let transactions = self.transactions.iter().enumerate().map(|(index, raw)| {
            if full_transactions { signing::to_json(raw, &self.place(index as u64)) } else { hash(keccak(raw)) }
        });
        map.insert("transactions".to_owned(), transactions.collect());
        Value::Object(map)
    }

    pub(super) fn place(&self, index: u64) -> Place {
        Place {
            block_hash: self.hash(),
            number: self.number(),
            timestamp: self.header.timestamp,
            base_fee: self.header.base_fee,
            index,
        }
    }

    /// As `engine_newSafeL2Block` of `client` gives it back.
    pub fn to_engine_json(&self, client: Client) -> Value {
        let mut map = self.header_json();
        if client.is_reth() {
            map.insert("nextL1MsgIndex".to_owned(), quantity(self.next_l1_index));
            return Value::Object(map);
        }
        map.entry("baseFeePerGas".to_owned()).or_insert(Value::Null);
        map.insert("nextL1MsgIndex".to_owned(), quantity(self.next_l1_index));
        map.insert("batchHash".to_owned(), hash(self.batch_hash));
        for key in ["withdrawalsRoot", "blobGasUsed", "excessBlobGas", "parentBeaconBlockRoot", "requestsHash"] {
            map.insert(key.to_owned(), Value::Null);
        }
        map.insert("hash".to_owned(), hash(self.hash()));
        Value::Object(map)
    }

    /// Its AppendMessage logs: the topics, and the log as RPC shows it.
    pub(super) fn logs(&self) -> impl Iterator<Item = ([B256; 4], Value)> {
        self.appended.iter().map(|appended| {
            let mut index = [0u8; 32];
            U256::from(appended.index).to_big_endian(&mut index);
            let topics = [append_message_topic(), B256(index), appended.message_hash, appended.root];
            let tx = self.transactions.get(usize::try_from(appended.tx_index).unwrap_or(usize::MAX));
            let log = json!({
                "address": address(message_passer()),
                "topics": topics.map(hash), "data": "0x",
                "blockNumber": quantity(self.number()), "blockHash": hash(self.hash()),
                "blockTimestamp": quantity(self.header.timestamp),
                "transactionHash": hash(tx.map(|raw| keccak(raw)).unwrap_or_default()),
                "transactionIndex": quantity(appended.tx_index),
                "logIndex": quantity(appended.log_index), "removed": false,
            });
            (topics, log)
        })
    }
}

/// What a writer says of a block.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    /// Height.
    pub number: u64,
    /// Parent built on.
    pub parent: B256,
    /// Time.
    pub timestamp: u64,
    /// Base fee; zero and absent are the same.
    pub base_fee: U256,
    /// Gas limit.
    pub gas_limit: u64,
    /// All transactions.
    pub transactions: &'a [RawTx],
}

impl Content<'_> {
    /// Equal for equal content only.
    pub fn key(&self) -> B256 {
        let mut bytes = Vec::with_capacity(96 + 32 * self.transactions.len());
        bytes.extend_from_slice(self.parent.as_bytes());
        for word in [self.number, self.timestamp, self.gas_limit] {
            bytes.extend_from_slice(&word.to_be_bytes());
        }
        let mut fee = [0u8; 32];
        self.base_fee.to_big_endian(&mut fee);
        bytes.extend_from_slice(&fee);
        for raw in self.transactions {
            bytes.extend_from_slice(keccak(raw).as_bytes());
        }
        keccak(&bytes)
    }
}
