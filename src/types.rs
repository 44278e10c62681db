//! The values that every room uses: numbers with their hashes, blocks, batches, events, heads.
//!
//! Nothing here does I/O and nothing here decides. Numbers are newtypes so that an L1 height, an L2 height, a batch
//! index and a queue index cannot be mistaken for each other, and a number whose block matters travels with its hash.

use std::fmt;

use serde::{Deserialize, Serialize};

pub use ethers_core::types::{Address, H256 as B256, U256};
pub use ethers_core::utils::keccak256;

/// A transaction in its EIP-2718 binary form; for an L1 message, `0x7e ‖ rlp(…)`.
///
/// Reference counted, so that the transactions of a payload share the payload's one allocation.
pub type RawTx = bytes::Bytes;

/// Serde form of raw bytes: `0x` and hex.
pub mod hex_bytes {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// As `"0x…"`.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(bytes: &bytes::Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("0x{}", const_hex::encode(bytes)))
    }

    /// From `"0x…"`.
    ///
    /// # Errors
    /// Text that is not hex.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bytes::Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        const_hex::decode(text.trim_start_matches("0x")).map(bytes::Bytes::from).map_err(D::Error::custom)
    }
}

/// Serde form of raw bytes by hash: a map of `0x` and hex.
pub mod hex_map {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::B256;

    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    struct Hex(#[serde(with = "super::hex_bytes")] bytes::Bytes);

    /// As `{"0x…": "0x…", …}`.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(map: &BTreeMap<B256, bytes::Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
        map.iter().map(|(hash, bytes)| (hash, Hex(bytes.clone()))).collect::<BTreeMap<_, _>>().serialize(serializer)
    }

    /// From `{"0x…": "0x…", …}`.
    ///
    /// # Errors
    /// Text that is not hex.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<B256, bytes::Bytes>, D::Error> {
        let map = BTreeMap::<B256, Hex>::deserialize(deserializer)?;
        Ok(map.into_iter().map(|(hash, Hex(bytes))| (hash, bytes)).collect())
    }
}

/// Serde form of a list of raw bytes: a list of `0x` and hex.
pub mod hex_list {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    /// As `["0x…", …]`.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(list: &[bytes::Bytes], serializer: S) -> Result<S::Ok, S::Error> {
        list.iter().map(|b| format!("0x{}", const_hex::encode(b))).collect::<Vec<_>>().serialize(serializer)
    }

    /// From `["0x…", …]`.
    ///
    /// # Errors
    /// Text that is not hex.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<bytes::Bytes>, D::Error> {
        let list = Vec::<String>::deserialize(deserializer)?;
        let decode = |text: String| const_hex::decode(text.trim_start_matches("0x")).map(bytes::Bytes::from);
        list.into_iter().map(decode).collect::<Result<_, _>>().map_err(D::Error::custom)
    }
}

/// Keccak-256 of `bytes` as the hash type that the rest of the program uses.
pub fn keccak(bytes: &[u8]) -> B256 {
    B256(keccak256(bytes))
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a plain number.
            pub const fn new(number: u64) -> Self {
                Self(number)
            }

            /// The plain number.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// This number plus `n`, capped at the largest number: heights come from hostile bytes.
            #[must_use]
            pub const fn plus(self, n: u64) -> Self {
                Self(self.0.saturating_add(n))
            }

            /// This number minus `n`, at least zero.
            #[must_use]
            pub const fn minus(self, n: u64) -> Self {
                Self(self.0.saturating_sub(n))
            }

            /// How far `self` lies above `lower`; zero if it does not.
            pub const fn above(self, lower: Self) -> u64 {
                self.0.saturating_sub(lower.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl From<u64> for $name {
            fn from(number: u64) -> Self {
                Self(number)
            }
        }
    };
}

number!(
    /// Height of an L1 block.
    L1Number
);
number!(
    /// Height of an L2 block.
    L2Number
);
number!(
    /// Index of a batch in the Rollup contract.
    BatchIndex
);
number!(
    /// Index of a message in the L1MessageQueue contract.
    QueueIndex
);

/// An L1 block by number and hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct L1Ref {
    /// Height.
    pub number: L1Number,
    /// Block hash.
    pub hash: B256,
}

/// An L2 block by number and hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct L2Ref {
    /// Height.
    pub number: L2Number,
    /// Block hash.
    pub hash: B256,
}

impl fmt::Display for L1Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({:?})", self.number, self.hash)
    }
}

impl fmt::Display for L2Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({:?})", self.number, self.hash)
    }
}

/// What the worker needs of an L1 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct L1Header {
    /// Height.
    pub number: L1Number,
    /// Block hash, as the node reported it.
    pub hash: B256,
    /// The parent's hash.
    pub parent_hash: B256,
    /// Seconds since the Unix epoch; with the beacon genesis time it gives the slot.
    pub timestamp: u64,
}

impl L1Header {
    /// Number and hash.
    pub const fn l1_ref(&self) -> L1Ref {
        L1Ref { number: self.number, hash: self.hash }
    }
}

/// The tags of L1 blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum L1Tag {
    /// The newest block.
    Latest,
    /// The newest justified block.
    Safe,
    /// The newest finalized block.
    Finalized,
}

/// A message of the L1MessageQueue in its binary form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct L1Message {
    /// Place in the queue.
    pub index: QueueIndex,
    /// keccak256 of `raw`: the L2 transaction's hash, and `getCrossDomainMessage(index)`.
    pub hash: B256,
    /// `0x7e ‖ rlp([queueIndex, gasLimit, to, value, data, sender])`.
    #[serde(with = "hex_bytes")]
    pub raw: RawTx,
}

/// A log of the Rollup or L1MessageQueue contract, decoded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct L1Event {
    /// The L1 block that holds the log.
    pub block: L1Ref,
    /// Place of the log in its block.
    pub log_index: u64,
    /// The emitting transaction.
    pub tx_hash: B256,
    /// Place of the transaction in its block.
    pub tx_index: u64,
    /// What it says.
    pub kind: L1EventKind,
}

/// A CommitBatch log, with what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitEvent {
    /// The batch.
    pub index: BatchIndex,
    /// Its hash.
    pub hash: B256,
    /// The L1 block.
    pub block: L1Ref,
    /// The transaction.
    pub tx_hash: B256,
    /// Place of the transaction in the block.
    pub tx_index: u64,
    /// Place of the log in the block.
    pub log_index: u64,
}

/// Where a log lies on L1, in the order of L1's logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPos {
    /// The block's height.
    pub block: L1Number,
    /// The log's place in the block.
    pub log_index: u64,
}

impl LogPos {
    /// The log at `log_index` of `block`.
    pub const fn new(block: L1Number, log_index: u64) -> Self {
        Self { block, log_index }
    }

    /// After every log of `block`.
    pub const fn end_of(block: L1Number) -> Self {
        Self::new(block, u64::MAX)
    }
}

impl CommitEvent {
    /// Its place on L1.
    pub const fn pos(&self) -> LogPos {
        LogPos::new(self.block.number, self.log_index)
    }
}

impl L1Event {
    /// Its place on L1.
    pub const fn pos(&self) -> LogPos {
        LogPos::new(self.block.number, self.log_index)
    }

    /// Its commit; none for another event.
    pub const fn as_commit(&self) -> Option<CommitEvent> {
        let L1EventKind::Commit { index, hash } = self.kind else { return None };
        let Self { block, tx_hash, tx_index, log_index, .. } = *self;
        Some(CommitEvent { index, hash, block, tx_hash, tx_index, log_index })
    }

    /// The L1 message that it enqueued, with its L1 block; none if it is another log.
    pub fn into_message(self) -> Option<(L1Ref, L1Message)> {
        match self.kind {
            L1EventKind::Message(message) => Some((self.block, message)),
            L1EventKind::Commit { .. } | L1EventKind::Revert { .. } | L1EventKind::Finalize { .. } => None,
        }
    }
}

/// The logs that the worker follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum L1EventKind {
    /// `CommitBatch(index, hash)`.
    Commit {
        /// The batch's index.
        index: BatchIndex,
        /// keccak256 of the new batch's header.
        hash: B256,
    },
    /// `RevertBatch(index, hash)`.
    Revert {
        /// The reverted index.
        index: BatchIndex,
        /// The reverted batch's hash.
        hash: B256,
    },
    /// `FinalizeBatch(index, hash, …)`: proved on the contract, so that no revert can take it back.
    Finalize {
        /// The batch's index.
        index: BatchIndex,
        /// Its hash.
        hash: B256,
    },
    /// `QueueTransaction(…)`.
    Message(L1Message),
}

/// What the worker needs of an L1 transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct L1Transaction {
    /// Transaction hash.
    pub hash: B256,
    /// The block that holds it.
    pub block: L1Ref,
    /// Place in that block.
    pub index: u64,
    /// Called address; none for a contract creation.
    pub to: Option<Address>,
    /// Calldata.
    #[serde(with = "hex_bytes")]
    pub input: bytes::Bytes,
    /// Versioned hashes of its blobs, in order; empty for any type but 3.
    pub blob_hashes: Vec<B256>,
}

/// One call inside a traced transaction that was not rolled back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedCall {
    /// Called address.
    pub to: Address,
    /// Calldata.
    #[serde(with = "hex_bytes")]
    pub input: bytes::Bytes,
}

/// Bytes in a blob: 4096 field elements of 32.
pub const BLOB_BYTES: usize = 4096 * 32;

/// An EIP-4844 blob. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Blob(bytes::Bytes);

impl Blob {
    /// A blob from exactly [`BLOB_BYTES`] bytes; `None` for any other length.
    pub fn new(bytes: impl Into<bytes::Bytes>) -> Option<Self> {
        let bytes = bytes.into();
        (bytes.len() == BLOB_BYTES).then_some(Self(bytes))
    }

    /// Its [`BLOB_BYTES`] bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Blob(131072 bytes)")
    }
}

/// The 60 bytes that describe a block inside a batch (protocol.md, section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockContext {
    /// Height.
    pub number: L2Number,
    /// Seconds since the Unix epoch.
    pub timestamp: u64,
    /// Base fee in wei; zero and absent are the same.
    pub base_fee: U256,
    /// Gas limit.
    pub gas_limit: u64,
    /// Transactions, L1 messages included.
    pub txs: u16,
    /// L1 messages among them.
    pub l1_messages: u16,
}

/// A block as a batch describes it: its context and its L2 transactions. L1 messages are not part of a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockContent {
    /// Numbers, times, fees, counts.
    pub context: BlockContext,
    /// The L2 transactions, in order, without L1 messages.
    pub transactions: Vec<RawTx>,
}

/// What the worker needs of an L2 header. The reader recomputed `hash` from the
/// header's own fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct L2Header {
    /// Height.
    pub number: L2Number,
    /// keccak256 of the header's RLP.
    pub hash: B256,
    /// The parent's hash.
    pub parent_hash: B256,
    /// State root after the block.
    pub state_root: B256,
    /// Seconds since the Unix epoch.
    pub timestamp: u64,
    /// Base fee in wei; zero if absent.
    pub base_fee: U256,
    /// Gas limit.
    pub gas_limit: u64,
    /// Root of the transactions; zero in a recording from before this field existed.
    #[serde(default)]
    pub transactions_root: B256,
    /// Queue index of the next L1 message after the block; none if the node does not show it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_l1_index: Option<u64>,
}

impl L2Header {
    /// Number and hash.
    pub const fn l2_ref(&self) -> L2Ref {
        L2Ref { number: self.number, hash: self.hash }
    }
}

/// A block of the local node: header and every transaction's raw bytes in block order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct L2Block {
    /// Its header.
    pub header: L2Header,
    /// All transactions, L1 messages (first byte `0x7e`) included, in block order.
    #[serde(with = "hex_list")]
    pub transactions: Vec<RawTx>,
}

/// First byte of an L1 message's binary form.
pub const L1_MESSAGE_TYPE: u8 = 0x7e;

/// Whether `raw` is an L1 message by its type byte.
pub fn is_l1_message(raw: &[u8]) -> bool {
    raw.first() == Some(&L1_MESSAGE_TYPE)
}

/// One read of the L2 node's heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L2Snapshot {
    /// The newest block.
    pub head: L2Ref,
    /// Hash of its parent.
    pub head_parent: B256,
    /// Its time in seconds since the Unix epoch.
    pub head_time: u64,
    /// The node's `safe` tag; none if never set.
    pub safe: Option<L2Ref>,
    /// The node's `finalized` tag; none if never set.
    pub finalized: Option<L2Ref>,
    /// Whether the node says that it is syncing.
    pub syncing: bool,
}

/// An L2 block with its place on L1, as op-node's `optimism_syncStatus` describes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L2Place {
    /// Number and hash.
    pub block: L2Ref,
    /// The parent's hash.
    pub parent_hash: B256,
    /// Seconds since the Unix epoch.
    pub timestamp: u64,
    /// Its L1 origin. For a `morph-deriver` the L1 block that holds the commit of its batch.
    pub origin: L1Ref,
    /// How many blocks before it have the same origin.
    pub sequence: u64,
}

/// The heads of a node as its `optimism_syncStatus` shows them, all of one moment. What is not known is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncStatus {
    /// The L1 block up to which L1 was read.
    pub current_l1: Option<L1Header>,
    /// The newest L1 block.
    pub head_l1: Option<L1Header>,
    /// L1's safe block.
    pub safe_l1: Option<L1Header>,
    /// L1's finalized block.
    pub finalized_l1: Option<L1Header>,
    /// The L2 head.
    pub unsafe_l2: Option<L2Place>,
    /// The safe head.
    pub safe_l2: Option<L2Place>,
    /// The finalized head.
    pub finalized_l2: Option<L2Place>,
}

/// A block to be written by `engine_newSafeL2Block`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewBlock {
    /// Height.
    pub number: L2Number,
    /// Seconds since the Unix epoch.
    pub timestamp: u64,
    /// Base fee in wei; zero is sent as absent.
    pub base_fee: U256,
    /// Gas limit.
    pub gas_limit: u64,
    /// All transactions, L1 messages first.
    pub transactions: Vec<RawTx>,
    /// Parent to build on. Only the first block of a run carries it; the others follow as head + 1.
    pub parent_hash: Option<B256>,
}

/// What was done about a batch: a row of the case table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Case {
    /// The local blocks are what L1 committed to.
    Consistent,
    /// The local blocks differed and were rewritten.
    SelfHeal,
    /// The local blocks were missing and were written.
    FillGap,
    /// The local blocks are missing, and the worker waits for them.
    Wait,
}

impl Case {
    /// The name that reports and the database use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Consistent => "consistent",
            Self::SelfHeal => "self-heal",
            Self::FillGap => "fill-gap",
            Self::Wait => "wait",
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a CommitBatch log ended. Every such log ends in exactly one of these (P3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything of P1 was checked and holds.
    Verified,
    /// The genesis import, which carries no batch.
    Genesis,
    /// Reverted on L1, before or after it was verified.
    Reverted,
}

impl Outcome {
    /// The name that the database uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Genesis => "genesis",
            Self::Reverted => "reverted",
        }
    }
}

/// The stored row of one CommitBatch log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchRecord {
    /// Index in the Rollup contract.
    pub index: BatchIndex,
    /// The event's batch hash.
    pub hash: B256,
    /// The L1 block of the commit.
    pub l1: L1Ref,
    /// Place of the commit's log in that block.
    pub log_index: u64,
    /// The commit's transaction.
    pub tx_hash: B256,
    /// How it ended.
    pub outcome: Outcome,
    /// What was done about it; none unless verified.
    pub case: Option<Case>,
    /// First L2 block; none if it is not known.
    pub first: Option<L2Number>,
    /// Last L2 block as verified; none for a reverted batch that was never verified.
    pub last: Option<L2Ref>,
    /// State root after the batch.
    pub post_state_root: B256,
    /// Withdrawal root after the batch.
    pub withdrawal_root: B256,
    /// L1 messages consumed up to and including this batch.
    pub total_l1_popped: u64,
    /// Blocks that were written to the node for it.
    pub rewritten: u64,
    /// The blobs' bytes differed, but the content was equal.
    pub encoder_drift: bool,
    /// How many blobs it has; zero if that is not known.
    pub blobs: u64,
}

impl BatchRecord {
    /// The place of its commit on L1.
    pub const fn pos(&self) -> LogPos {
        LogPos::new(self.l1.number, self.log_index)
    }
}

/// How far L1 has been read: up to and including `log_index` of `block`, or the whole of `block`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The L1 block.
    pub block: L1Ref,
    /// The last log that was processed; none if the whole block was.
    pub log_index: Option<u64>,
}

impl Cursor {
    /// The place up to which everything was processed, including the log there.
    pub const fn pos(&self) -> LogPos {
        match self.log_index {
            Some(log_index) => LogPos::new(self.block.number, log_index),
            None => LogPos::end_of(self.block.number),
        }
    }
}

/// Which networks and contracts a database belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// L1 chain id.
    pub l1_chain_id: u64,
    /// L2 chain id.
    pub l2_chain_id: u64,
    /// Rollup contract on L1.
    pub rollup: Address,
    /// L1MessageQueue contract on L1.
    pub queue: Address,
    /// Hash of L2 block 0.
    pub l2_genesis: B256,
}

/// A pause of the reactors that has not ended yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The local head when the reactors were paused.
    pub height: L2Number,
    /// When, in seconds since the Unix epoch.
    pub since: u64,
}

/// A block that is to be written, or was written, for a batch that is not stored yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteIntent {
    /// The block's height.
    pub number: L2Number,
    /// The batch that it is written for.
    pub batch: BatchIndex,
    /// That batch's hash.
    pub batch_hash: B256,
    /// The batch's case when the writing began.
    pub case: Case,
    /// The block at that height before, if any.
    pub old_hash: Option<B256>,
    /// The block that was written, if it is in the journal. None: the write was begun, and may or may not have
    /// happened.
    pub new_hash: Option<B256>,
    /// The node's finalized tag from before the write.
    pub finalized: Option<L2Ref>,
    /// The node was read after the write: the write's effect on its tags is known.
    pub seen: bool,
}

/// A finalized tag that the node itself moved with a write of ours, and that is not restored yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpuriousTag {
    /// Where it moved the tag.
    pub tag: L2Ref,
    /// Where the tag was before, if it was set.
    pub before: Option<L2Ref>,
}

/// One write to the node, for the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct JournalEntry {
    /// Seconds since the Unix epoch.
    pub at: u64,
    /// The batch that it was done for.
    pub batch: BatchIndex,
    /// The block's height.
    pub number: L2Number,
    /// The block at that height before, if any.
    pub old_hash: Option<B256>,
    /// The block at that height now.
    pub new_hash: B256,
    /// Why: `self-heal` or `fill-gap`.
    pub why: String,
}

/// How batches are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Blobs are rebuilt from the local blocks, and fetched only if these differ or are missing.
    Local,
    /// Every batch is checked against its fetched blobs.
    Blob,
}

/// What *finalized* means (protocol.md, section 9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FinalityMeaning {
    /// The commit is final on L1. The batch can still be reverted until it is proved.
    #[default]
    Committed,
    /// The proof is final on L1: no revert can take the batch back.
    Proven,
}

impl std::str::FromStr for FinalityMeaning {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "committed" => Ok(Self::Committed),
            "proven" => Ok(Self::Proven),
            _ => Err("must be committed or proven".to_owned()),
        }
    }
}

/// Which L1 blocks count as settled enough to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirmations {
    /// This many blocks below the newest one.
    Depth(u64),
    /// The L1 node's `safe` tag.
    Safe,
    /// The L1 node's `finalized` tag.
    Finalized,
}

/// How the height is passed to a JSON-RPC method of the reactors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeightParam {
    /// Not at all: `[]`.
    None,
    /// As a JSON number: `[12]`.
    Number,
    /// As a hex quantity: `["0xc"]`.
    Hex,
    /// As a decimal string: `["12"]`.
    String,
}
