//! Blocks of the L2 node: from the bytes of its debug methods, from its JSON, and back (protocol.md, section 7).
//!
//! A header's hash is always recomputed from its own fields. Whether blocks link to each other is checked by the adapter
//! that read them.

use bytes::Bytes;
use serde_json::{Value, json};

use super::json::{self as hexes, FieldError};
use super::rlp::{self, Item, Items, List, RlpError};
use super::transaction::{self, TransactionError};
use crate::types::{Address, B256, L2Block, L2Header, L2Number, RawTx, U256, keccak};

/// keccak256 of an empty list's RLP: the uncles of every block.
pub const EMPTY_UNCLES_HASH: B256 = B256([
    0x1d, 0xcc, 0x4d, 0xe8, 0xde, 0xc7, 0x5d, 0x7a, 0xab, 0x85, 0xb5, 0x67, 0xb6, 0xcc, 0xd4, 0x1a, 0xd3, 0x12, 0x45,
    0x1b, 0x94, 0x8a, 0x74, 0x13, 0xf0, 0xa1, 0x42, 0xfd, 0x40, 0xd4, 0x93, 0x47,
]);

/// Fields of a header that every fork has, from parentHash to nonce.
const BASE_FIELDS: usize = 15;

/// Why bytes or JSON are not a block that can be worked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// The RLP is malformed.
    #[error("block RLP: {0}")]
    Rlp(#[from] RlpError),
    /// A header with a number of fields that no fork has.
    #[error("a header of {0} fields")]
    HeaderFields(usize),
    /// A JSON field is missing or unreadable.
    #[error("block JSON: {0}")]
    Field(#[from] FieldError),
    /// A header's fields do not give the hash that the node states.
    #[error("block {number}: the header hashes to {actual:?}, the node says {expected:?}")]
    Hash {
        /// The block.
        number: L2Number,
        /// The node's hash.
        expected: B256,
        /// The recomputed one.
        actual: B256,
    },
    /// The transactions are not those that the header commits to.
    #[error("block {number}: its transactions give the root {actual:?}, its header says {expected:?}")]
    TransactionsRoot {
        /// The block.
        number: L2Number,
        /// The header's root.
        expected: B256,
        /// The recomputed one.
        actual: B256,
    },
    /// A transaction cannot be rebuilt, nor was it given.
    #[error("transaction {place}: {source}")]
    Transaction {
        /// Place in the block.
        place: usize,
        /// What is wrong with it.
        source: TransactionError,
    },
}

/// All fields of an L2 header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FullHeader {
    /// The parent's hash.
    pub parent_hash: B256,
    /// keccak256 of the uncles' RLP.
    pub uncles_hash: B256,
    /// Fee recipient.
    pub miner: Address,
    /// State root after the block.
    pub state_root: B256,
    /// Root of the transactions' trie.
    pub transactions_root: B256,
    /// Root of the receipts' trie.
    pub receipts_root: B256,
    /// Bloom filter of the logs.
    pub logs_bloom: [u8; 256],
    /// Difficulty.
    pub difficulty: U256,
    /// Height.
    pub number: u64,
    /// Gas limit.
    pub gas_limit: u64,
    /// Gas used.
    pub gas_used: u64,
    /// Seconds since the Unix epoch.
    pub timestamp: u64,
    /// Free bytes.
    pub extra_data: Bytes,
    /// Mix hash.
    pub mix_hash: B256,
    /// Nonce.
    pub nonce: [u8; 8],
    /// Base fee in wei.
    pub base_fee: Option<U256>,
    /// Shanghai.
    pub withdrawals_root: Option<B256>,
    /// Cancun.
    pub blob_gas_used: Option<u64>,
    /// Cancun.
    pub excess_blob_gas: Option<u64>,
    /// Cancun.
    pub parent_beacon_block_root: Option<B256>,
    /// Prague.
    pub requests_hash: Option<B256>,
    /// Morph: queue index of the next L1 message. Not part of the hash.
    pub next_l1_message_index: Option<u64>,
    /// Morph: the batch that ends here. Not part of the hash.
    pub batch_hash: Option<B256>,
    /// Morph, from its fork Onyx on: the milliseconds of the time. Unless it is zero, the last item of what is hashed.
    pub timestamp_millis: Option<u64>,
}

/// Which bytes a node's debug method gives for a block's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawForm {
    /// `debug_getBlockRlp` of Morph's go-ethereum: `nextL1MsgIndex` and `batchHash` stand inside, before the base fee.
    Flat,
    /// `debug_getRawBlock` of morph-reth: `[nextL1MsgIndex, [the header as Ethereum has it]]`, and from the fork Onyx on
    /// the milliseconds as a third item.
    Nested,
}

impl Default for FullHeader {
    fn default() -> Self {
        Self {
            parent_hash: B256::zero(),
            uncles_hash: EMPTY_UNCLES_HASH,
            miner: Address::zero(),
            state_root: B256::zero(),
            transactions_root: B256::zero(),
            receipts_root: B256::zero(),
            logs_bloom: [0; 256],
            difficulty: U256::zero(),
            number: 0,
            gas_limit: 0,
            gas_used: 0,
            timestamp: 0,
            extra_data: Bytes::new(),
            mix_hash: B256::zero(),
            nonce: [0; 8],
            base_fee: None,
            withdrawals_root: None,
            blob_gas_used: None,
            excess_blob_gas: None,
            parent_beacon_block_root: None,
            requests_hash: None,
            next_l1_message_index: None,
            batch_hash: None,
            timestamp_millis: None,
        }
    }
}

impl FullHeader {
    /// The block hash: keccak256 of the RLP without `nextL1MsgIndex` and `batchHash`. Milliseconds that are not zero
    /// stand at its end.
    pub fn hash(&self) -> B256 {
        let mut list = self.fields(false);
        if let Some(millis) = self.timestamp_millis.filter(|millis| *millis != 0) {
            list.u64(millis);
        }
        keccak(&list.encode())
    }

    /// What the worker needs of it.
    pub fn header(&self) -> L2Header {
        self.hashing_to(self.hash())
    }

    /// [`FullHeader::header`], its hash being known.
    fn hashing_to(&self, hash: B256) -> L2Header {
        L2Header {
            number: L2Number::new(self.number),
            hash,
            parent_hash: self.parent_hash,
            state_root: self.state_root,
            timestamp: self.timestamp,
            base_fee: self.base_fee.unwrap_or_default(),
            gas_limit: self.gas_limit,
            transactions_root: self.transactions_root,
            next_l1_index: self.next_l1_message_index,
        }
    }

    /// The header's RLP in a block, as a node's debug method gives it.
    pub fn rlp(&self, form: RawForm) -> Vec<u8> {
        match form {
            RawForm::Flat => self.fields(true).encode(),
            RawForm::Nested => {
                let mut outer = List::new();
                outer.u64(self.next_l1_message_index.unwrap_or_default()).list(&self.fields(false));
                if let Some(millis) = self.timestamp_millis {
                    outer.u64(millis);
                }
                outer.encode()
            }
        }
    }

    fn fields(&self, with_morph_fields: bool) -> List {
        let mut list = List::new();
        list.bytes(self.parent_hash.as_bytes())
            .bytes(self.uncles_hash.as_bytes())
            .bytes(self.miner.as_bytes())
            .bytes(self.state_root.as_bytes())
            .bytes(self.transactions_root.as_bytes())
            .bytes(self.receipts_root.as_bytes())
            .bytes(&self.logs_bloom)
            .u256(self.difficulty)
            .u64(self.number)
            .u64(self.gas_limit)
            .u64(self.gas_used)
            .u64(self.timestamp)
            .bytes(&self.extra_data)
            .bytes(self.mix_hash.as_bytes())
            .bytes(&self.nonce);
        if with_morph_fields {
            list.u64(self.next_l1_message_index.unwrap_or_default());
            list.bytes(self.batch_hash.unwrap_or_default().as_bytes());
        }
        if let Some(base_fee) = self.base_fee {
            list.u256(base_fee);
        }
        if let Some(root) = self.withdrawals_root {
            list.bytes(root.as_bytes());
        }
        for number in [self.blob_gas_used, self.excess_blob_gas].into_iter().flatten() {
            list.u64(number);
        }
        for hash in [self.parent_beacon_block_root, self.requests_hash].into_iter().flatten() {
            list.bytes(hash.as_bytes());
        }
        list
    }

    /// The header's fields in a node's JSON. The stated hash is not compared.
    pub fn from_json(header: &Value) -> Result<Self, BlockError> {
        use hexes::{address, array, bytes, hash, number, optional, quantity, required};
        Ok(Self {
            parent_hash: required(header, "parentHash", hash)?,
            uncles_hash: required(header, "sha3Uncles", hash)?,
            miner: required(header, "miner", address)?,
            state_root: required(header, "stateRoot", hash)?,
            transactions_root: required(header, "transactionsRoot", hash)?,
            receipts_root: required(header, "receiptsRoot", hash)?,
            logs_bloom: required(header, "logsBloom", array)?,
            difficulty: required(header, "difficulty", quantity)?,
            number: required(header, "number", number)?,
            gas_limit: required(header, "gasLimit", number)?,
            gas_used: required(header, "gasUsed", number)?,
            timestamp: required(header, "timestamp", number)?,
            extra_data: required(header, "extraData", bytes)?.into(),
            mix_hash: required(header, "mixHash", hash)?,
            nonce: required(header, "nonce", array)?,
            base_fee: optional(header, "baseFeePerGas", quantity)?,
            withdrawals_root: optional(header, "withdrawalsRoot", hash)?,
            blob_gas_used: optional(header, "blobGasUsed", number)?,
            excess_blob_gas: optional(header, "excessBlobGas", number)?,
            parent_beacon_block_root: optional(header, "parentBeaconBlockRoot", hash)?,
            requests_hash: optional(header, "requestsHash", hash)?,
            next_l1_message_index: optional(header, "nextL1MsgIndex", number)?,
            batch_hash: optional(header, "batchHash", hash)?,
            timestamp_millis: optional(header, "timestampMillisPart", number)?,
        })
    }

    /// The header as a node's JSON gives it, with its hash; absent fields are left out, and so are size,
    /// transactions and uncles.
    pub fn to_json(&self) -> Value {
        use hexes::{to_hex, to_quantity};
        let mut out = json!({
            "hash": to_hex(self.hash().as_bytes()),
            "parentHash": to_hex(self.parent_hash.as_bytes()),
            "sha3Uncles": to_hex(self.uncles_hash.as_bytes()),
            "miner": to_hex(self.miner.as_bytes()),
            "stateRoot": to_hex(self.state_root.as_bytes()),
            "transactionsRoot": to_hex(self.transactions_root.as_bytes()),
            "receiptsRoot": to_hex(self.receipts_root.as_bytes()),
            "logsBloom": to_hex(&self.logs_bloom),
            "difficulty": to_quantity(self.difficulty),
            "number": to_quantity(self.number),
            "gasLimit": to_quantity(self.gas_limit),
            "gasUsed": to_quantity(self.gas_used),
            "timestamp": to_quantity(self.timestamp),
            "extraData": to_hex(&self.extra_data),
            "mixHash": to_hex(self.mix_hash.as_bytes()),
            "nonce": to_hex(&self.nonce),
        });
        let optional = [
            ("baseFeePerGas", self.base_fee.map(to_quantity)),
            ("withdrawalsRoot", self.withdrawals_root.map(|root| to_hex(root.as_bytes()))),
            ("blobGasUsed", self.blob_gas_used.map(to_quantity)),
            ("excessBlobGas", self.excess_blob_gas.map(to_quantity)),
            ("parentBeaconBlockRoot", self.parent_beacon_block_root.map(|root| to_hex(root.as_bytes()))),
            ("requestsHash", self.requests_hash.map(|hash| to_hex(hash.as_bytes()))),
            ("nextL1MsgIndex", self.next_l1_message_index.map(to_quantity)),
            ("batchHash", self.batch_hash.map(|hash| to_hex(hash.as_bytes()))),
            ("timestampMillisPart", self.timestamp_millis.map(to_quantity)),
        ];
        if let Some(fields) = out.as_object_mut() {
            fields
                .extend(optional.into_iter().filter_map(|(name, text)| Some((name.to_owned(), Value::String(text?)))));
        }
        out
    }

    /// The header in a block's RLP, in either form: two or three items are the nested one.
    pub fn decode_rlp(header: &Item<'_>) -> Result<Self, BlockError> {
        match header.items()?.count() {
            2 | 3 => Self::decode_nested(header),
            17 | 18 | 19 | 22 | 23 => Self::decode_fields(header, true),
            count => Err(BlockError::HeaderFields(count)),
        }
    }

    fn decode_nested(header: &Item<'_>) -> Result<Self, BlockError> {
        let mut outer = header.items()?;
        let next_l1_message_index = outer.need()?.u64()?;
        let inner = outer.need()?;
        let timestamp_millis = outer.next().transpose()?.map(|item| item.u64()).transpose()?;
        outer.end()?;
        match inner.items()?.count() {
            BASE_FIELDS | 16 | 17 | 20 | 21 => {}
            count => return Err(BlockError::HeaderFields(count)),
        }
        let decoded = Self::decode_fields(&inner, false)?;
        Ok(Self { next_l1_message_index: Some(next_l1_message_index), timestamp_millis, ..decoded })
    }

    /// The forks added base fee (16 fields), withdrawals (17), three blob fields at once (20), requests (21); with Morph's
    /// two that is 17, 18, 19, 22, 23.
    fn decode_fields(header: &Item<'_>, morph: bool) -> Result<Self, BlockError> {
        let mut items = header.items()?;
        let mut decoded = Self {
            parent_hash: items.need()?.hash()?,
            uncles_hash: items.need()?.hash()?,
            miner: items.need()?.address()?,
            state_root: items.need()?.hash()?,
            transactions_root: items.need()?.hash()?,
            receipts_root: items.need()?.hash()?,
            logs_bloom: items.need()?.array()?,
            difficulty: items.need()?.u256()?,
            number: items.need()?.u64()?,
            gas_limit: items.need()?.u64()?,
            gas_used: items.need()?.u64()?,
            timestamp: items.need()?.u64()?,
            extra_data: Bytes::copy_from_slice(items.need()?.bytes()?),
            mix_hash: items.need()?.hash()?,
            nonce: items.need()?.array()?,
            ..Self::default()
        };
        if morph {
            decoded.next_l1_message_index = Some(items.need()?.u64()?);
            decoded.batch_hash = Some(items.need()?.hash()?);
        }
        decoded.later_fields(items)?;
        Ok(decoded)
    }

    /// The fields that forks appended, each there only if all before it are.
    fn later_fields(&mut self, mut items: Items<'_>) -> Result<(), RlpError> {
        self.base_fee = items.next().transpose()?.map(|item| item.u256()).transpose()?;
        self.withdrawals_root = items.next().transpose()?.map(|item| item.hash()).transpose()?;
        self.blob_gas_used = items.next().transpose()?.map(|item| item.u64()).transpose()?;
        self.excess_blob_gas = items.next().transpose()?.map(|item| item.u64()).transpose()?;
        self.parent_beacon_block_root = items.next().transpose()?.map(|item| item.hash()).transpose()?;
        self.requests_hash = items.next().transpose()?.map(|item| item.hash()).transpose()?;
        items.end()
    }
}

/// The `transactionsRoot` of these transactions: the root of the trie from RLP-encoded places to raw transactions.
pub fn transactions_root(transactions: &[RawTx]) -> B256 {
    B256(triehash::ordered_trie_root::<keccak_hasher::KeccakHasher, _>(transactions))
}

/// A block whose transactions are those that its header, and so its hash, commits to.
fn bound(header: L2Header, transactions: Vec<RawTx>) -> Result<L2Block, BlockError> {
    let actual = transactions_root(&transactions);
    let expected = header.transactions_root;
    if actual != expected {
        return Err(BlockError::TransactionsRoot { number: header.number, expected, actual });
    }
    Ok(L2Block { header, transactions })
}

/// A block from what `debug_getBlockRlp` or `debug_getRawBlock` gives, with every transaction's exact bytes.
///
/// `rlp([header, transactions, uncles])` with the header in either [`RawForm`], and an empty list of withdrawals if a
/// node appends one. The hash is
/// recomputed, the transactions must be those of the header; the caller holds the hash against a parent link or a
/// known hash.
pub fn decode_rlp(raw: &[u8]) -> Result<L2Block, BlockError> {
    // One copy for all transactions of the block; each is a view of it.
    let shared = Bytes::copy_from_slice(raw);
    let mut parts = rlp::only(&shared)?.items()?;
    let header = FullHeader::decode_rlp(&parts.need()?)?;
    let list = parts.need()?;
    parts.need()?.items()?;
    if let Some(withdrawals) = parts.next() {
        withdrawals?.items()?.end()?;
    }
    parts.end()?;

    let mut transactions = Vec::new();
    for item in list.items()? {
        let item = item?;
        let bytes = if item.list { item.whole } else { item.body };
        transactions.push(shared.slice_ref(bytes));
    }
    bound(header.header(), transactions)
}

/// What [`decode_rlp`] reads a block from: a legacy transaction is a list, a typed one a byte string; no uncles.
pub fn encode_rlp(header: &FullHeader, transactions: &[RawTx], form: RawForm) -> Vec<u8> {
    let mut list = List::new();
    for tx in transactions {
        match transaction::kind(tx) {
            Some(transaction::TxKind::Legacy) => list.raw(tx),
            _ => list.bytes(tx),
        };
    }
    let mut block = List::new();
    block.raw(&header.rlp(form)).list(&list).list(&List::new());
    block.encode()
}

/// A header from a node's JSON; its fields give the stated hash.
///
/// Block 0 alone is taken at its word where the node states the hash `genesis`, which was configured: morph-reth shows it
/// with fields that do not give it (it makes them from its chain file, and the hash is a constant).
pub fn header_from_json(header: &Value, genesis: Option<B256>) -> Result<L2Header, BlockError> {
    let stated = hexes::required(header, "hash", hexes::hash)?;
    if genesis == Some(stated) {
        let known = FullHeader::from_json(header)?.header();
        if known.number.get() == 0 {
            return Ok(L2Header { hash: stated, ..known });
        }
    }
    checked_header(header)
}

/// The header that an engine gives back for a block that it wrote. morph-reth states no hash in it: then it is what the
/// fields give. A hash that is stated is compared.
pub fn written_header_from_json(header: &Value) -> Result<L2Header, BlockError> {
    let stated = hexes::optional(header, "hash", hexes::hash)?;
    checked(&FullHeader::from_json(header)?, stated)
}

fn checked_header(header: &Value) -> Result<L2Header, BlockError> {
    let stated = hexes::required(header, "hash", hexes::hash)?;
    checked(&FullHeader::from_json(header)?, Some(stated))
}

/// The header with the hash that its fields give, which is the stated one.
fn checked(header: &FullHeader, stated: Option<B256>) -> Result<L2Header, BlockError> {
    let actual = header.hash();
    match stated.filter(|stated| *stated != actual) {
        Some(expected) => Err(BlockError::Hash { number: header.number.into(), expected, actual }),
        None => Ok(header.hashing_to(actual)),
    }
}

/// A block from a node's JSON with full transactions.
///
/// Each transaction is rebuilt and hashed; one that cannot be is taken from `raw_of` by its hash, if that gives
/// bytes which hash to it. See [`unknown_transactions`].
pub fn block_from_json(block: &Value, raw_of: impl Fn(&B256) -> Option<RawTx>) -> Result<L2Block, BlockError> {
    let header = checked_header(block)?;
    let mut transactions = Vec::new();
    for (place, tx) in transactions_of(block)?.iter().enumerate() {
        let raw = match transaction::from_json(tx) {
            Ok(raw) => raw,
            Err(source) => given(tx, &raw_of).ok_or(BlockError::Transaction { place, source })?,
        };
        transactions.push(raw);
    }
    bound(header, transactions)
}

fn given(tx: &Value, raw_of: impl Fn(&B256) -> Option<RawTx>) -> Option<RawTx> {
    let hash = hexes::hash(hexes::field(tx, "hash")?)?;
    raw_of(&hash).filter(|raw| keccak(raw) == hash)
}

/// Hashes of the transactions of a node's JSON block that cannot be rebuilt from it: to be asked for with
/// `eth_getRawTransactionByHash`.
pub fn unknown_transactions(block: &Value) -> Vec<B256> {
    transactions_of(block)
        .unwrap_or_default()
        .iter()
        .filter(|tx| transaction::from_json(tx).is_err())
        .filter_map(|tx| hexes::hash(hexes::field(tx, "hash")?))
        .collect()
}

fn transactions_of(block: &Value) -> Result<&[Value], FieldError> {
    let transactions = hexes::field(block, "transactions").ok_or(FieldError::Missing("transactions"))?;
    transactions.as_array().map(Vec::as_slice).ok_or(FieldError::Malformed("transactions"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::testing;

    #[test]
    fn recorded_blocks_are_rebuilt_and_round_trip() {
        let blocks = testing::json("recorded/l2/blocks.json");
        for json in blocks.as_array().unwrap() {
            let header = FullHeader::from_json(json).unwrap();
            assert_eq!(header.hash(), testing::hash(&json["hash"]));
            assert_eq!(header_from_json(json, None).unwrap(), header.header());
            assert_eq!(FullHeader::from_json(&header.to_json()).unwrap(), header);
            for (name, value) in header.to_json().as_object().unwrap() {
                assert_eq!(*value, json[name], "{name}");
            }
            assert_eq!(unknown_transactions(json), []);
            let block = block_from_json(json, |_| None).unwrap();
            for form in [RawForm::Flat, RawForm::Nested] {
                assert_eq!(decode_rlp(&encode_rlp(&header, &block.transactions, form)).unwrap(), block);
            }
            let mut forged = json.clone();
            forged["stateRoot"] = json["parentHash"].clone();
            assert!(matches!(header_from_json(&forged, None), Err(BlockError::Hash { .. })));
            let mut fewer = block.transactions.clone();
            if fewer.pop().is_some() {
                let short = decode_rlp(&encode_rlp(&header, &fewer, RawForm::Flat));
                assert!(matches!(short, Err(BlockError::TransactionsRoot { .. })));
                let mut short = json.clone();
                short["transactions"].as_array_mut().unwrap().pop();
                assert!(matches!(block_from_json(&short, |_| None), Err(BlockError::TransactionsRoot { .. })));
            }
        }
    }

    #[test]
    fn f9_transactions_of_unknown_type_come_from_the_node() {
        let raw = RawTx::from_static(b"\x66 from the future");
        let hash = keccak(&raw);
        let transactions_root = transactions_root(std::slice::from_ref(&raw));
        let mut block =
            FullHeader { base_fee: Some(U256::one()), transactions_root, ..FullHeader::default() }.to_json();
        block["transactions"] = json!([{"hash": hexes::to_hex(hash.as_bytes()), "type": "0x66"}]);
        assert_eq!(unknown_transactions(&block), [hash]);
        assert_eq!(block_from_json(&block, |_| Some(raw.clone())).unwrap().transactions, std::slice::from_ref(&raw));
        for wrong in [None, Some(RawTx::from_static(b"another"))] {
            let error = block_from_json(&block, |_| wrong.clone()).unwrap_err();
            assert_eq!(error, BlockError::Transaction { place: 0, source: TransactionError::UnknownType(0x66) });
        }
        block["transactions"] = json!("none");
        assert_eq!(block_from_json(&block, |_| None), Err(FieldError::Malformed("transactions").into()));
        assert_eq!(unknown_transactions(&json!(null)), []);
    }

    fn fork(later: usize) -> FullHeader {
        let mut header = FullHeader {
            number: 5,
            next_l1_message_index: Some(7),
            transactions_root: transactions_root(&[]),
            ..FullHeader::default()
        };
        header.base_fee = (later > 0).then_some(U256::zero());
        header.withdrawals_root = (later > 1).then_some(B256::repeat_byte(1));
        header.blob_gas_used = (later > 2).then_some(0);
        header.excess_blob_gas = (later > 3).then_some(1);
        header.parent_beacon_block_root = (later > 4).then_some(B256::repeat_byte(2));
        header.requests_hash = (later > 5).then_some(B256::repeat_byte(3));
        header
    }

    #[test]
    fn headers_of_every_fork_are_read() {
        for form in [RawForm::Flat, RawForm::Nested] {
            for (later, known) in [(0, true), (1, true), (2, true), (3, false), (4, false), (5, true), (6, true)] {
                let header = fork(later);
                let decoded = decode_rlp(&encode_rlp(&header, &[], form)).map(|block| block.header);
                assert_eq!(decoded == Ok(header.header()), known, "{later} later fields, {form:?}");
                assert_eq!(FullHeader::from_json(&header.to_json()).unwrap(), header);
            }
        }
    }

    #[test]
    fn l15_milliseconds_of_the_time_are_hashed_unless_they_are_zero() {
        let plain = fork(1);
        let with = |millis| FullHeader { timestamp_millis: millis, ..plain.clone() };
        assert_eq!(with(Some(0)).hash(), plain.hash());
        // By hand: the sixteen fields of the plain header, and 250 behind them in the same list.
        let mut fields = plain.fields(false);
        fields.u64(250);
        let expected = keccak(&fields.encode());
        assert_eq!(with(Some(250)).hash(), expected);
        assert_ne!(expected, plain.hash());
        for millis in [None, Some(0), Some(250), Some(999)] {
            let header = with(millis);
            assert_eq!(decode_rlp(&encode_rlp(&header, &[], RawForm::Nested)).unwrap().header, header.header());
            assert_eq!(header_from_json(&header.to_json(), None).unwrap(), header.header());
        }
        let mut forged = with(Some(250)).to_json();
        forged["timestampMillisPart"] = json!("0xfb");
        assert!(matches!(header_from_json(&forged, None), Err(BlockError::Hash { .. })));
    }

    #[test]
    fn l10_a_header_that_is_neither_form_is_refused() {
        // The sixteen fields alone, without Morph's two: no node gives them.
        let mut flat = List::new();
        flat.raw(&fork(1).fields(false).encode()).list(&List::new()).list(&List::new());
        assert_eq!(decode_rlp(&flat.encode()), Err(BlockError::HeaderFields(16)));
        // Nested ones with too few or too many items, or another kind of item.
        let nested = |parts: &[&[u8]]| {
            let mut header = List::new();
            for part in parts {
                header.raw(part);
            }
            let mut block = List::new();
            block.list(&header).list(&List::new()).list(&List::new());
            decode_rlp(&block.encode())
        };
        let inner = fork(1).fields(false).encode();
        let seven: &[u8] = &[7];
        assert!(nested(&[seven, &inner]).is_ok() && nested(&[seven, &inner, seven]).is_ok());
        assert_eq!(nested(&[seven, &inner, seven, seven]), Err(BlockError::HeaderFields(4)));
        assert_eq!(nested(&[seven, seven]), Err(BlockError::Rlp(RlpError::WrongKind)));
        assert_eq!(nested(&[&inner, &inner]), Err(BlockError::Rlp(RlpError::WrongKind)));
        assert_eq!(nested(&[seven, &fork(4).fields(false).encode()]), Err(BlockError::HeaderFields(19)));
    }

    #[test]
    fn l1_a_written_header_without_its_hash_has_the_one_that_its_fields_give() {
        let header = fork(1);
        let mut answer = header.to_json();
        assert_eq!(written_header_from_json(&answer).unwrap(), header.header());
        answer["hash"] = json!(hexes::to_hex(&[9; 32]));
        assert!(matches!(written_header_from_json(&answer), Err(BlockError::Hash { .. })));
        answer["hash"] = json!("0x12");
        assert_eq!(written_header_from_json(&answer), Err(FieldError::Malformed("hash").into()));
        for absent in [Value::Null, json!(0)] {
            answer["hash"] = absent.clone();
            if absent == json!(0) {
                answer.as_object_mut().unwrap().remove("hash");
            }
            assert_eq!(written_header_from_json(&answer).unwrap(), header.header());
            // What the eth_* side shows must state it.
            assert_eq!(header_from_json(&answer, None), Err(FieldError::Missing("hash").into()));
        }
    }

    #[test]
    fn l2_the_genesis_block_may_have_a_hash_that_is_configured() {
        let zero = FullHeader { number: 0, ..fork(1) };
        let configured = B256::repeat_byte(7);
        let mut shown = zero.to_json();
        shown["hash"] = json!(hexes::to_hex(configured.as_bytes()));
        let taken = header_from_json(&shown, Some(configured)).unwrap();
        assert_eq!(taken, L2Header { hash: configured, ..zero.header() });
        // Not where nothing, or another hash, is configured, and never for another block.
        assert!(header_from_json(&shown, None).is_err());
        assert!(header_from_json(&shown, Some(B256::repeat_byte(8))).is_err());
        shown["number"] = json!("0x1");
        assert!(header_from_json(&shown, Some(configured)).is_err());
        // A node whose fields give the hash is read as any block.
        assert_eq!(header_from_json(&zero.to_json(), Some(zero.hash())).unwrap(), zero.header());
    }

    #[test]
    fn f6_malformed_blocks_are_errors() {
        let header = fork(1);
        let tx = RawTx::from_static(&[2, 0xc0]);
        let root = transactions_root(std::slice::from_ref(&tx));
        let full = FullHeader { transactions_root: root, ..header.clone() };
        let good = encode_rlp(&full, std::slice::from_ref(&tx), RawForm::Flat);
        assert_eq!(decode_rlp(&good).unwrap().transactions, [tx]);
        let trailing = [&good[..], &[0]].concat();
        assert_eq!(decode_rlp(&trailing), Err(BlockError::Rlp(RlpError::Trailing)));
        let block = |parts: &[&[u8]]| {
            let mut list = List::new();
            for part in parts {
                list.raw(part);
            }
            decode_rlp(&list.encode())
        };
        let rlp = header.rlp(RawForm::Flat);
        let error = BlockError::Rlp;
        assert_eq!(block(&[&rlp]).unwrap_err(), error(RlpError::Missing));
        assert_eq!(block(&[&rlp, &[0xc0]]).unwrap_err(), error(RlpError::Missing));
        assert_eq!(block(&[&rlp, &[0x80], &[0xc0]]).unwrap_err(), error(RlpError::WrongKind));
        assert_eq!(block(&[&[0xc1, 0x80], &[0xc0], &[0xc0]]).unwrap_err(), BlockError::HeaderFields(1));
        assert!(block(&[&rlp, &[0xc0], &[0xc0], &[0xc0]]).is_ok());
        assert_eq!(block(&[&rlp, &[0xc0], &[0xc0], &[0xc1, 0x80]]).unwrap_err(), error(RlpError::Trailing));
    }

    proptest! {
        #[test]
        fn p7_cut_and_changed_blocks_never_panic(
            cut: prop::sample::Index,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            form in prop_oneof![Just(RawForm::Flat), Just(RawForm::Nested)],
        ) {
            let mut raw = encode_rlp(&fork(1), &[RawTx::from_static(&[2, 0xc0]), RawTx::from_static(&[0xc2, 1, 2])], form);
            prop_assert!(decode_rlp(&raw[..cut.index(raw.len())]).is_err());
            for (place, byte) in changes {
                let place = place.index(raw.len());
                raw[place] = byte;
            }
            let _ = decode_rlp(&raw);
        }

        #[test]
        fn p7_any_bytes_are_read_without_a_panic(raw in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_rlp(&raw);
        }
    }
}
