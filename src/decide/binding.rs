//! Is this commit the one that the event speaks of, and does it continue the chain of batches?
//!
//! The new batch's header is rebuilt from calldata, blob hashes and L1 message hashes; its keccak must be the event's
//! indexed batch hash (protocol.md, section 2). That binds all three to what the contract accepted, for any sender and
//! any form of the transaction (C7, C8). Then parent hash, index and `prevStateRoot` must continue the batch before.

use crate::codec::calldata::{CalldataError, CommitCalldata, CommitForm};
use crate::codec::header::{self, BatchHeader};
use crate::types::{B256, BatchIndex, BatchRecord, BlockContext, L1Ref, L2Number, QueueIndex};

/// What a bound commit says. The event's hash vouches for all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// The batch's header.
    pub header: BatchHeader,
    /// The event's hash, equal to the header's.
    pub hash: B256,
    /// First L2 block; none after a version 0 parent if calldata has no block contexts.
    pub first: Option<L2Number>,
    /// Last L2 block.
    pub last: L2Number,
    /// First L1 message that the batch consumes, if it consumes any.
    pub first_message: QueueIndex,
    /// How many L1 messages it consumes.
    pub messages: u64,
    /// Hashes of these messages, in queue order.
    pub message_hashes: Vec<B256>,
    /// Block contexts of the older forms, which are in calldata and not in the payload.
    pub contexts: Option<Vec<BlockContext>>,
    /// Versioned hashes of its blobs, in order. Empty for a batch without a blob.
    pub versioned_hashes: Vec<B256>,
}

impl Outline {
    /// Index in the Rollup contract.
    pub const fn index(&self) -> BatchIndex {
        self.header.index
    }
}

/// What is wrong with a commit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindingFault {
    /// The version is none of 0, 1, 2.
    #[error("batch version {0} is not supported by this program")]
    Version(u8),
    /// The header cannot be rebuilt from calldata at all.
    #[error("header cannot be rebuilt: {0}")]
    Header(String),
    /// The parent header in calldata gives another index.
    #[error("index: the event says {expected}, parentBatchHeader gives {actual}")]
    Index {
        /// The event's.
        expected: BatchIndex,
        /// Calldata's.
        actual: BatchIndex,
    },
    /// The parent header in calldata is not the batch before.
    #[error("parentBatchHeader: hashes to {actual:?}, the batch before is {expected:?}")]
    Parent {
        /// The standing batch before.
        expected: B256,
        /// Calldata's.
        actual: B256,
    },
    /// `prevStateRoot` is not the batch before's `postStateRoot`.
    #[error("prevStateRoot: {actual:?}, the batch before ended on {expected:?}")]
    PrevStateRoot {
        /// The standing batch before.
        expected: B256,
        /// Calldata's.
        actual: B256,
    },
    /// The batch before says that it ends elsewhere.
    #[error("lastBlockNumber of the parent: {actual}, the batch before ended on {expected}")]
    ParentLastBlock {
        /// The standing batch before.
        expected: L2Number,
        /// Calldata's.
        actual: L2Number,
    },
    /// L1 shows more earlier commits than are tried for its blobs. Not a divergence: the right one may be among the
    /// rest.
    #[error(
        "the batch takes the blobs of an earlier commit, which is none of the newest {0}; does an endpoint make up logs?"
    )]
    TooManyCommits(usize),
    /// The rebuilt header is not the committed one.
    #[error("{}: the rebuilt header hashes to {actual:?}, the event says {expected:?}", field.unwrap_or("one of version, lastBlockNumber, numL1Messages, roots, sequencerSets, blob hashes, L1 messages"))]
    Hash {
        /// The event's.
        expected: B256,
        /// The rebuilt one.
        actual: B256,
        /// The field at fault, if a [`SecondOpinion`] can name it.
        field: Option<&'static str>,
    },
}

/// Upper limit for the L1 messages of a batch: more than any batch consumes. A larger claim is refused before any
/// request.
pub const MAX_MESSAGES: u64 = 65_535;

impl BindingFault {
    /// `count` L1 messages are more than [`MAX_MESSAGES`].
    pub fn too_many_messages(count: u64) -> Self {
        Self::Header(format!("numL1Messages: {count} is more than a batch can hold"))
    }
}

/// A commit that was bound to its event.
#[derive(Clone, Debug)]
pub struct BoundCommit {
    /// What it says.
    pub outline: Outline,
    /// The L1 block whose blobs hold the content.
    pub blob_block: L1Ref,
    /// The function that committed it.
    pub form: CommitForm,
}

/// Versioned hashes, and the L1 block that carries their blobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobList {
    /// The hashes, in order.
    pub hashes: Vec<B256>,
    /// The block.
    pub block: L1Ref,
}

/// Whether a commit of this `form` may take the blobs of an earlier commit of its batch; `own` is what its own
/// transaction carries. `commitState` never carries a blob, `commitBatchWithProof` may go without (protocol.md, section
/// 1).
pub fn may_reuse_blobs(form: CommitForm, own: &BlobList) -> bool {
    match form {
        CommitForm::CommitState => true,
        CommitForm::CommitBatchWithProof => own.hashes.is_empty(),
        CommitForm::CommitBatch | CommitForm::LegacyContexts | CommitForm::LegacySkipBitmap => false,
    }
}

/// Why no calldata of a commit's transaction binds to its event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommitFault {
    /// What was found does not give the event's hash.
    Binding(BindingFault),
    /// The transaction calls the contract, but not with a commit.
    Calldata(CalldataError),
    /// The transaction calls another contract, and no commit that fits was found in its trace.
    NotInTrace,
}

impl std::fmt::Display for CommitFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Binding(BindingFault::Version(version)) => {
                write!(f, ": batch version {version} is not supported; upgrade this program")
            }
            Self::Binding(fault) => write!(f, ": {fault}"),
            Self::Calldata(error) => write!(f, ": {error}"),
            Self::NotInTrace => f.write_str(
                " commits through another contract and no commit that fits was found in it; an L1 endpoint that can \
                 trace it (debug_traceTransaction) is needed",
            ),
        }
    }
}

/// The verdict on a commit if no calldata binds. `direct` is the decoding error of the transaction's own input, if the
/// transaction calls the Rollup contract itself; `fault` is the first fault of a candidate that decoded.
pub fn unbound(direct: Option<CalldataError>, fault: Option<BindingFault>) -> CommitFault {
    match (fault, direct) {
        (Some(fault), _) => CommitFault::Binding(fault),
        (None, Some(error)) => CommitFault::Calldata(error),
        (None, None) => CommitFault::NotInTrace,
    }
}

/// The queue indices `first..first + count`.
pub fn queue_range(first: QueueIndex, count: u64) -> Vec<QueueIndex> {
    (0..count).map(|n| first.plus(n)).collect()
}

/// Facts for [`bind`].
#[derive(Clone, Copy, Debug)]
pub struct BindingFacts<'a> {
    /// The event's index.
    pub index: BatchIndex,
    /// The event's hash.
    pub hash: B256,
    /// The calldata that is taken for the event's.
    pub commit: &'a CommitCalldata,
    /// The blobs' versioned hashes: the transaction's, or those of an earlier commit of the index.
    pub versioned_hashes: &'a [B256],
    /// Hashes of the L1 messages that the calldata speaks of, in queue order.
    pub message_hashes: &'a [B256],
}

/// The L1 messages that `commit` consumes: the first one's queue index and how many. The parent header says how many
/// were consumed before.
///
/// # Errors
/// If the parent header in calldata is malformed.
pub fn messages_of(commit: &CommitCalldata) -> Result<(QueueIndex, u64), BindingFault> {
    let parent = parent_of(commit)?;
    let count = match (commit.num_l1_messages, &commit.contexts) {
        (Some(count), _) => u64::from(count),
        (None, Some(contexts)) => contexts.iter().map(|c| u64::from(c.l1_messages)).sum(),
        (None, None) => 0,
    };
    Ok((QueueIndex::new(parent.total_l1_message_popped), count))
}

fn parent_of(commit: &CommitCalldata) -> Result<BatchHeader, BindingFault> {
    BatchHeader::decode(&commit.parent_header).map_err(|e| BindingFault::Header(format!("parentBatchHeader: {e}")))
}

/// Rebuilds the header and compares its hash with the event's.
///
/// # Errors
/// The fault, which is a verdict about the commit: the event's hash and this calldata do not belong together.
pub fn bind(facts: &BindingFacts<'_>) -> Result<Outline, BindingFault> {
    let commit = facts.commit;
    if commit.version > 2 {
        return Err(BindingFault::Version(commit.version));
    }
    let parent = parent_of(commit)?;
    let header = header::rebuild(commit, facts.versioned_hashes, facts.message_hashes)
        .map_err(|e| BindingFault::Header(e.to_string()))?;
    if header.index != facts.index {
        return Err(BindingFault::Index { expected: facts.index, actual: header.index });
    }
    let actual = header.hash();
    if actual != facts.hash {
        return Err(BindingFault::Hash { expected: facts.hash, actual, field: None });
    }
    let contexts = commit.contexts.clone();
    let context_first = contexts.as_ref().and_then(|c| c.first()).map(|c| c.number);
    let context_last = contexts.as_ref().and_then(|c| c.last()).map(|c| c.number);
    let Some(last) = commit.last_block.or(context_last) else {
        return Err(BindingFault::Header("calldata names no last block".to_owned()));
    };
    let first = parent.last_block.map(|n| n.plus(1)).or(context_first);
    Ok(Outline {
        hash: facts.hash,
        first,
        last,
        first_message: QueueIndex::new(parent.total_l1_message_popped),
        messages: header.l1_message_popped,
        message_hashes: facts.message_hashes.to_vec(),
        contexts,
        versioned_hashes: facts.versioned_hashes.to_vec(),
        header,
    })
}

/// Whether a bound commit continues the standing batch before it.
///
/// # Errors
/// The first field that does not continue it.
pub fn continues(outline: &Outline, before: &BatchRecord) -> Result<(), BindingFault> {
    let header = &outline.header;
    if header.parent_hash != before.hash {
        return Err(BindingFault::Parent { expected: before.hash, actual: header.parent_hash });
    }
    if header.prev_state_root != before.post_state_root {
        return Err(BindingFault::PrevStateRoot { expected: before.post_state_root, actual: header.prev_state_root });
    }
    let (Some(before_last), Some(first)) = (before.last, outline.first) else { return Ok(()) };
    let claimed = first.minus(1);
    if claimed != before_last.number {
        return Err(BindingFault::ParentLastBlock { expected: before_last.number, actual: claimed });
    }
    Ok(())
}

/// What else is known of a commit that did not bind, to name the field at fault. A field is none if no source could
/// give it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecondOpinion {
    /// Hash of the batch before: as stored, else `committedBatches(index - 1)`.
    pub parent: Option<B256>,
    /// State root that the stored batch before ended on.
    pub prev_state_root: Option<B256>,
    /// `batchBlobVersionedHashes(index)`, if still kept.
    pub blob_field: Option<B256>,
    /// `batchDataStore(index).blockNumber`, if still kept.
    pub last_block: Option<L2Number>,
    /// `getCrossDomainMessage` of the consumed messages.
    pub message_hashes: Option<Vec<B256>>,
    /// State root of the local block that calldata names as the last.
    pub local_state: Option<B256>,
    /// Withdrawal root at that block.
    pub local_withdrawal: Option<B256>,
}

/// Names the field that makes a rebuilt header differ, if `opinion` can name it; none otherwise.
///
/// What L1 or a verified batch says is compared. The supported versions, and what only the local chain says, are tried:
/// the field is at fault if the header has the event's hash with the other value in its place.
pub fn field_at_fault(facts: &BindingFacts<'_>, opinion: &SecondOpinion) -> Option<&'static str> {
    let commit = facts.commit;
    if opinion.parent.is_some_and(|hash| parent_of(commit).is_ok_and(|parent| parent.hash() != hash)) {
        return Some("parentBatchHeader");
    }
    if opinion.prev_state_root.is_some_and(|root| commit.prev_state_root != root) {
        return Some("prevStateRoot");
    }
    if (0..=2).any(|version| would_bind(facts, |c| c.version = version)) {
        return Some("version");
    }
    if opinion.message_hashes.as_ref().is_some_and(|hashes| hashes != facts.message_hashes) {
        return Some("L1 messages");
    }
    let ours = header::blob_field(commit.version, facts.versioned_hashes).ok();
    if opinion.blob_field.is_some_and(|kept| ours != Some(kept)) {
        return Some("blob hashes");
    }
    if opinion.last_block.is_some_and(|kept| commit.last_block.is_some_and(|n| n != kept)) {
        return Some("lastBlockNumber");
    }
    if opinion.local_state.is_some_and(|root| would_bind(facts, |c| c.post_state_root = root)) {
        return Some("postStateRoot");
    }
    if opinion.local_withdrawal.is_some_and(|root| would_bind(facts, |c| c.withdrawal_root = root)) {
        return Some("withdrawalRoot");
    }
    None
}

/// Whether the commit would give the event's hash with one field changed.
fn would_bind(facts: &BindingFacts<'_>, change: impl FnOnce(&mut CommitCalldata)) -> bool {
    let mut commit = facts.commit.clone();
    change(&mut commit);
    header::rebuild(&commit, facts.versioned_hashes, facts.message_hashes).is_ok_and(|h| h.hash() == facts.hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::calldata::CommitForm;
    use crate::types::keccak;

    fn root(n: u8) -> B256 {
        B256::repeat_byte(n)
    }

    fn parent() -> BatchHeader {
        BatchHeader {
            version: 2,
            index: 6.into(),
            l1_message_popped: 1,
            total_l1_message_popped: 40,
            data_hash: root(1),
            blob_field: root(2),
            prev_state_root: root(3),
            post_state_root: root(4),
            withdrawal_root: root(5),
            sequencer_sets_hash: keccak(b"sets"),
            parent_hash: root(6),
            last_block: Some(99.into()),
        }
    }

    fn commit() -> CommitCalldata {
        CommitCalldata {
            form: CommitForm::CommitBatch,
            version: 2,
            parent_header: parent().encode(),
            last_block: Some(120.into()),
            num_l1_messages: Some(2),
            contexts: None,
            prev_state_root: root(4),
            post_state_root: root(7),
            withdrawal_root: root(8),
            sequencer_sets: b"sets".to_vec(),
        }
    }

    fn blobs() -> [B256; 1] {
        [root(0x11)]
    }

    fn messages() -> [B256; 2] {
        [root(0x21), root(0x22)]
    }

    fn hash() -> B256 {
        header::rebuild(&commit(), &blobs(), &messages()).unwrap().hash()
    }

    fn opinion() -> SecondOpinion {
        SecondOpinion {
            parent: Some(parent().hash()),
            prev_state_root: Some(root(4)),
            blob_field: header::blob_field(2, &blobs()).ok(),
            last_block: Some(120.into()),
            message_hashes: Some(messages().to_vec()),
            local_state: Some(root(7)),
            local_withdrawal: Some(root(8)),
        }
    }

    fn before() -> BatchRecord {
        use crate::types::{Case, L1Ref, L2Ref, Outcome};
        BatchRecord {
            index: 6.into(),
            hash: parent().hash(),
            l1: L1Ref { number: 1.into(), hash: root(9) },
            log_index: 0,
            tx_hash: root(9),
            outcome: Outcome::Verified,
            case: Some(Case::Consistent),
            first: Some(90.into()),
            last: Some(L2Ref { number: 99.into(), hash: root(9) }),
            post_state_root: root(4),
            withdrawal_root: root(5),
            total_l1_popped: 40,
            rewritten: 0,
            encoder_drift: false,
            blobs: 0,
        }
    }

    #[test]
    fn a_commit_binds_to_its_own_hash_and_index_only() {
        let (blobs, messages, commit) = (blobs(), messages(), commit());
        let facts = BindingFacts {
            index: 7.into(),
            hash: hash(),
            commit: &commit,
            versioned_hashes: &blobs,
            message_hashes: &messages,
        };
        let outline = bind(&facts).unwrap();
        assert_eq!((outline.index(), outline.first, outline.last), (7.into(), Some(100.into()), 120.into()));
        assert_eq!((outline.first_message, outline.messages), (40.into(), 2));
        assert!(matches!(bind(&BindingFacts { index: 8.into(), ..facts }), Err(BindingFault::Index { .. })));
        assert!(matches!(bind(&BindingFacts { hash: root(1), ..facts }), Err(BindingFault::Hash { .. })));
        let other = BindingFacts { versioned_hashes: &[root(0x12)], ..facts };
        assert!(matches!(bind(&other), Err(BindingFault::Hash { .. })));
    }

    #[test]
    fn the_batch_before_is_continued_in_all_three_respects() {
        let (blobs, messages, commit) = (blobs(), messages(), commit());
        let (index, hash) = (7.into(), hash());
        let facts = BindingFacts { index, hash, commit: &commit, versioned_hashes: &blobs, message_hashes: &messages };
        let outline = bind(&facts).unwrap();
        assert_eq!(continues(&outline, &before()), Ok(()));
        let mut other = before();
        other.hash = root(1);
        assert!(matches!(continues(&outline, &other), Err(BindingFault::Parent { .. })));
        let mut other = before();
        other.post_state_root = root(1);
        assert!(matches!(continues(&outline, &other), Err(BindingFault::PrevStateRoot { .. })));
        let mut other = before();
        other.last = other.last.map(|l| crate::types::L2Ref { number: 98.into(), ..l });
        assert!(matches!(continues(&outline, &other), Err(BindingFault::ParentLastBlock { .. })));
    }

    #[test]
    fn the_wrong_field_is_named_where_another_source_proves_it() {
        type Tamper = fn(&mut CommitCalldata);
        let table: [(Tamper, Option<&str>); 8] = [
            (|c| c.parent_header[200] ^= 1, Some("parentBatchHeader")),
            (|c| c.prev_state_root = root(0xff), Some("prevStateRoot")),
            (|c| c.version = 1, Some("version")),
            (|c| c.last_block = Some(121.into()), Some("lastBlockNumber")),
            (|c| c.post_state_root = root(0xff), Some("postStateRoot")),
            (|c| c.withdrawal_root = root(0xff), Some("withdrawalRoot")),
            (|c| c.sequencer_sets = b"other".to_vec(), None),
            // Two fields at once, each known to the local chain alone: neither is proved.
            (
                |c| {
                    c.post_state_root = root(0xff);
                    c.withdrawal_root = root(0xff);
                },
                None,
            ),
        ];
        let (blobs, messages) = (blobs(), messages());
        for (at, (tamper, expected)) in table.into_iter().enumerate() {
            let mut commit = commit();
            tamper(&mut commit);
            let facts = BindingFacts {
                index: 7.into(),
                hash: hash(),
                commit: &commit,
                versioned_hashes: &blobs,
                message_hashes: &messages,
            };
            assert_eq!(field_at_fault(&facts, &opinion()), expected, "row {at}");
            assert_eq!(
                field_at_fault(&facts, &SecondOpinion::default()),
                expected.filter(|name| *name == "version"),
                "row {at}: only the hash itself tells"
            );
        }
        let commit = commit();
        let facts = BindingFacts {
            index: 7.into(),
            hash: hash(),
            commit: &commit,
            versioned_hashes: &blobs,
            message_hashes: &messages,
        };
        let swapped = BindingFacts { versioned_hashes: &[root(0x12)], ..facts };
        assert_eq!(field_at_fault(&swapped, &opinion()), Some("blob hashes"));
        let replaced = BindingFacts { message_hashes: &[root(0x22), root(0x21)], ..facts };
        assert_eq!(field_at_fault(&replaced, &opinion()), Some("L1 messages"));
    }
}
