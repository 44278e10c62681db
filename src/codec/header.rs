//! The batch header, and how a commit is bound to its event (protocol.md, section 2).
//!
//! The header of a new batch is rebuilt from the commit's calldata, its blobs' versioned hashes and the L1 messages'
//! hashes; its keccak256 must be the event's batch hash. That comparison is made by the caller.

use super::calldata::{CommitCalldata, CommitForm};
use super::payload::encode_context;
use crate::types::{B256, BatchIndex, L2Number, keccak};

/// Bytes of a version 0 header.
pub const LENGTH_V0: usize = 249;
/// Bytes of a version 1 or 2 header: version 0 and the last block's number.
pub const LENGTH_V1: usize = LENGTH_V0 + 8;
/// Of a block context's 60 bytes, those that go into the data hash: all but its count of L1 messages.
const HASHED_CONTEXT_BYTES: usize = 58;

/// The empty blob's versioned hash: the blob field of a version 0 or 1 batch without a blob.
pub const EMPTY_BLOB_HASH: B256 = B256([
    0x01, 0x06, 0x57, 0xf3, 0x75, 0x54, 0xc7, 0x81, 0x40, 0x2a, 0x22, 0x91, 0x7d, 0xee, 0x2f, 0x75, 0xde, 0xf7, 0xab,
    0x96, 0x6d, 0x7b, 0x77, 0x09, 0x05, 0x39, 0x8e, 0xba, 0x3c, 0x44, 0x40, 0x14,
]);

/// Why a header cannot be read or rebuilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// No bytes.
    #[error("the batch header is empty")]
    Empty,
    /// A version that this program does not know.
    #[error("unknown batch version {0}")]
    UnknownVersion(u8),
    /// Another length than the version has.
    #[error("a version {version} header of {actual} bytes")]
    Length {
        /// The header's version.
        version: u8,
        /// Its length.
        actual: usize,
    },
    /// More blobs than a batch of this version has.
    #[error("a version {version} batch with {count} blobs")]
    BlobCount {
        /// The batch's version.
        version: u8,
        /// Blobs of its transaction.
        count: usize,
    },
    /// Another number of L1 message hashes was handed in than the commit consumes.
    #[error("the commit consumes {expected} L1 messages, {actual} are known")]
    MessageCount {
        /// L1 messages that the commit consumes.
        expected: u64,
        /// Hashes handed in.
        actual: usize,
    },
    /// The commit holds neither block contexts nor a last block's number.
    #[error("the commit says of no blocks")]
    NoBlocks,
    /// A number runs past 64 bits.
    #[error("{0} overflows")]
    Overflow(&'static str),
}

/// A batch header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// 0, 1 or 2.
    pub version: u8,
    /// The batch's index: the parent's plus one.
    pub index: BatchIndex,
    /// L1 messages consumed by this batch.
    pub l1_message_popped: u64,
    /// L1 messages consumed up to and with this batch: the queue index of the next one.
    pub total_l1_message_popped: u64,
    /// Binds block numbers and L1 messages.
    pub data_hash: B256,
    /// Binds the blobs; see [`blob_field`].
    pub blob_field: B256,
    /// State root before the batch.
    pub prev_state_root: B256,
    /// State root after the batch.
    pub post_state_root: B256,
    /// Withdrawal root after the batch.
    pub withdrawal_root: B256,
    /// keccak256 of the signature's sequencer sets.
    pub sequencer_sets_hash: B256,
    /// keccak256 of the parent's header.
    pub parent_hash: B256,
    /// The batch's last L2 block; none in version 0.
    pub last_block: Option<L2Number>,
}

impl BatchHeader {
    /// 249 bytes in version 0, 257 in every other.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(LENGTH_V1);
        out.push(self.version);
        out.extend_from_slice(&self.index.get().to_be_bytes());
        out.extend_from_slice(&self.l1_message_popped.to_be_bytes());
        out.extend_from_slice(&self.total_l1_message_popped.to_be_bytes());
        for word in [
            self.data_hash,
            self.blob_field,
            self.prev_state_root,
            self.post_state_root,
            self.withdrawal_root,
            self.sequencer_sets_hash,
            self.parent_hash,
        ] {
            out.extend_from_slice(word.as_bytes());
        }
        if self.version > 0 {
            out.extend_from_slice(&self.last_block.unwrap_or_default().get().to_be_bytes());
        }
        out
    }

    /// A header from exactly its bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let version = *bytes.first().ok_or(HeaderError::Empty)?;
        let expected = match version {
            0 => LENGTH_V0,
            1 | 2 => LENGTH_V1,
            _ => return Err(HeaderError::UnknownVersion(version)),
        };
        let wrong = HeaderError::Length { version, actual: bytes.len() };
        if bytes.len() != expected {
            return Err(wrong);
        }
        Self::fields(bytes).ok_or(wrong)
    }

    fn fields(bytes: &[u8]) -> Option<Self> {
        let (&version, rest) = bytes.split_first()?;
        let (index, rest) = take_u64(rest)?;
        let (l1_message_popped, rest) = take_u64(rest)?;
        let (total_l1_message_popped, rest) = take_u64(rest)?;
        let (data_hash, rest) = take_word(rest)?;
        let (blob_field, rest) = take_word(rest)?;
        let (prev_state_root, rest) = take_word(rest)?;
        let (post_state_root, rest) = take_word(rest)?;
        let (withdrawal_root, rest) = take_word(rest)?;
        let (sequencer_sets_hash, rest) = take_word(rest)?;
        let (parent_hash, rest) = take_word(rest)?;
        let last_block = if version == 0 { None } else { Some(L2Number::new(take_u64(rest)?.0)) };
        Some(Self {
            version,
            index: BatchIndex::new(index),
            l1_message_popped,
            total_l1_message_popped,
            data_hash,
            blob_field,
            prev_state_root,
            post_state_root,
            withdrawal_root,
            sequencer_sets_hash,
            parent_hash,
            last_block,
        })
    }

    /// The batch hash: keccak256 of the encoded header.
    pub fn hash(&self) -> B256 {
        keccak(&self.encode())
    }
}

fn take_u64(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*head), rest))
}

fn take_word(bytes: &[u8]) -> Option<(B256, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<32>()?;
    Some((B256(*head), rest))
}

/// The blob field of a batch whose transaction carries these blobs, in the transaction's order.
///
/// A version 2 batch without a blob gives keccak256 of nothing, which no contract accepts. More than one blob under
/// version 0 or 1 is refused: its header would bind only one of them.
pub fn blob_field(version: u8, versioned_hashes: &[B256]) -> Result<B256, HeaderError> {
    match (version, versioned_hashes) {
        (0 | 1, []) => Ok(EMPTY_BLOB_HASH),
        (0 | 1, [one]) => Ok(*one),
        (0 | 1, many) => Err(HeaderError::BlobCount { version, count: many.len() }),
        (2, hashes) => Ok(keccak(&concat(hashes))),
        _ => Err(HeaderError::UnknownVersion(version)),
    }
}

fn concat(hashes: &[B256]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.0).collect()
}

/// The header of the batch that `commit` commits to.
///
/// `versioned_hashes` are those of the blobs that the batch consists of: the transaction's own, or for a commit
/// without blobs over a stored blob field those of the earlier commit of that index. `l1_message_hashes` are exactly
/// those that the commit consumes, in queue order, from the parent's `total_l1_message_popped` on.
pub fn rebuild(
    commit: &CommitCalldata,
    versioned_hashes: &[B256],
    l1_message_hashes: &[B256],
) -> Result<BatchHeader, HeaderError> {
    rebuild_with_field(commit, blob_field(commit.version, versioned_hashes)?, l1_message_hashes)
}

/// As [`rebuild`], where the blob field itself is known and the blobs are not.
pub fn rebuild_with_field(
    commit: &CommitCalldata,
    blob_field: B256,
    l1_message_hashes: &[B256],
) -> Result<BatchHeader, HeaderError> {
    if commit.version > 2 {
        return Err(HeaderError::UnknownVersion(commit.version));
    }
    let parent = BatchHeader::decode(&commit.parent_header)?;
    let index = parent.index.get().checked_add(1).ok_or(HeaderError::Overflow("the batch index"))?;
    let popped = commit.l1_message_count();
    if u64::try_from(l1_message_hashes.len()) != Ok(popped) {
        return Err(HeaderError::MessageCount { expected: popped, actual: l1_message_hashes.len() });
    }
    let total = parent.total_l1_message_popped.checked_add(popped);
    let last_block = commit.last_block_number().ok_or(HeaderError::NoBlocks)?;
    Ok(BatchHeader {
        version: commit.version,
        index: BatchIndex::new(index),
        l1_message_popped: popped,
        total_l1_message_popped: total.ok_or(HeaderError::Overflow("the total of L1 messages"))?,
        data_hash: data_hash(commit, last_block, l1_message_hashes)?,
        blob_field,
        prev_state_root: commit.prev_state_root,
        post_state_root: commit.post_state_root,
        withdrawal_root: commit.withdrawal_root,
        sequencer_sets_hash: keccak(&commit.sequencer_sets),
        parent_hash: keccak(&commit.parent_header),
        last_block: (commit.version > 0).then_some(last_block),
    })
}

fn data_hash(commit: &CommitCalldata, last_block: L2Number, l1_message_hashes: &[B256]) -> Result<B256, HeaderError> {
    let mut data = match commit.form {
        CommitForm::CommitBatch | CommitForm::CommitState | CommitForm::CommitBatchWithProof => {
            let count = commit.num_l1_messages.ok_or(HeaderError::NoBlocks)?;
            let mut data = last_block.get().to_be_bytes().to_vec();
            data.extend_from_slice(&count.to_be_bytes());
            data
        }
        CommitForm::LegacyContexts | CommitForm::LegacySkipBitmap => commit
            .contexts
            .iter()
            .flatten()
            .flat_map(|context| encode_context(context).into_iter().take(HASHED_CONTEXT_BYTES))
            .collect(),
    };
    data.extend(concat(l1_message_hashes));
    Ok(keccak(&data))
}
