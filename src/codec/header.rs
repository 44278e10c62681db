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

/// As [`rebuild`], from the blob field itself, if the blobs are not known.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::codec::calldata::decode_commit;
    use crate::codec::event::decode_event;
    use crate::codec::testing;
    use crate::types::{BlockContext, L1EventKind, U256};

    #[test]
    fn c11_versions_and_lengths() {
        assert_eq!(BatchHeader::decode(&[]), Err(HeaderError::Empty));
        for (version, length) in [(0, 257), (0, 248), (1, 249), (2, 256), (2, 258)] {
            let mut bytes = vec![0; length];
            bytes[0] = version;
            assert_eq!(BatchHeader::decode(&bytes), Err(HeaderError::Length { version, actual: length }));
        }
        assert_eq!(BatchHeader::decode(&[3; 257]), Err(HeaderError::UnknownVersion(3)));
    }

    #[test]
    fn blob_fields_by_version() {
        let [a, b] = [B256::repeat_byte(1), B256::repeat_byte(2)];
        for version in [0, 1] {
            assert_eq!(blob_field(version, &[]), Ok(EMPTY_BLOB_HASH));
            assert_eq!(blob_field(version, &[a]), Ok(a));
            assert_eq!(blob_field(version, &[a, b]), Err(HeaderError::BlobCount { version, count: 2 }));
        }
        assert_eq!(blob_field(2, &[a]), Ok(keccak(a.as_bytes())));
        assert_eq!(blob_field(2, &[a, b]), Ok(keccak(&[a.0, b.0].concat())));
        assert_ne!(blob_field(2, &[a, b]), blob_field(2, &[b, a]));
        assert_eq!(blob_field(3, &[a]), Err(HeaderError::UnknownVersion(3)));
    }

    fn commit(parent: &BatchHeader, form: CommitForm) -> CommitCalldata {
        let context = |number, l1_messages| BlockContext {
            number: L2Number::new(number),
            timestamp: 1,
            base_fee: U256::one(),
            gas_limit: 2,
            txs: l1_messages,
            l1_messages,
        };
        CommitCalldata {
            form,
            version: 1,
            parent_header: parent.encode(),
            last_block: (!form.is_legacy()).then_some(L2Number::new(11)),
            num_l1_messages: (!form.is_legacy()).then_some(3),
            contexts: form.is_legacy().then(|| vec![context(10, 1), context(11, 2)]),
            prev_state_root: B256::repeat_byte(4),
            post_state_root: B256::repeat_byte(5),
            withdrawal_root: B256::repeat_byte(6),
            sequencer_sets: vec![7],
        }
    }

    fn parent() -> BatchHeader {
        BatchHeader {
            version: 2,
            index: BatchIndex::new(41),
            l1_message_popped: 1,
            total_l1_message_popped: 20,
            data_hash: B256::zero(),
            blob_field: B256::zero(),
            prev_state_root: B256::zero(),
            post_state_root: B256::repeat_byte(4),
            withdrawal_root: B256::zero(),
            sequencer_sets_hash: B256::zero(),
            parent_hash: B256::zero(),
            last_block: Some(L2Number::new(9)),
        }
    }

    #[test]
    fn f8_older_forms_hash_58_bytes_of_each_context() {
        let messages = [B256::repeat_byte(1), B256::repeat_byte(2), B256::repeat_byte(3)];
        for form in [CommitForm::LegacyContexts, CommitForm::LegacySkipBitmap] {
            let commit = commit(&parent(), form);
            let header = rebuild(&commit, &[], &messages).unwrap();
            let mut data = Vec::new();
            for context in commit.contexts.as_ref().unwrap() {
                data.extend_from_slice(&encode_context(context)[..58]);
            }
            data.extend(messages.iter().flat_map(|hash| hash.0));
            assert_eq!(header.data_hash, keccak(&data));
            assert_eq!((header.l1_message_popped, header.total_l1_message_popped), (3, 23));
            assert_eq!((header.last_block, header.blob_field), (Some(L2Number::new(11)), EMPTY_BLOB_HASH));
        }
    }

    #[test]
    fn what_cannot_be_rebuilt_is_an_error() {
        let messages = [B256::zero(); 3];
        let good = commit(&parent(), CommitForm::CommitBatch);
        assert_eq!(rebuild(&good, &[], &messages).unwrap().index, BatchIndex::new(42));
        assert_eq!(rebuild(&good, &[], &messages[..2]), Err(HeaderError::MessageCount { expected: 3, actual: 2 }));
        let last = BatchHeader { index: BatchIndex::new(u64::MAX), ..parent() };
        let full = BatchHeader { total_l1_message_popped: u64::MAX, ..parent() };
        for parent in [last, full] {
            let overflowing = rebuild(&commit(&parent, CommitForm::CommitBatch), &[], &messages);
            assert!(matches!(overflowing, Err(HeaderError::Overflow(_))));
        }
        let newer = CommitCalldata { version: 3, ..good.clone() };
        assert_eq!(rebuild(&newer, &[], &messages), Err(HeaderError::UnknownVersion(3)));
        let orphan = CommitCalldata { parent_header: vec![0; 10], ..good.clone() };
        assert_eq!(rebuild(&orphan, &[], &messages), Err(HeaderError::Length { version: 0, actual: 10 }));
        let empty = CommitCalldata { contexts: Some(vec![]), ..commit(&parent(), CommitForm::LegacyContexts) };
        assert_eq!(rebuild(&empty, &[], &[]), Err(HeaderError::NoBlocks));
    }

    #[test]
    fn recorded_headers_decode_encode_and_hash() {
        let batches = testing::json("recorded/batches.json");
        let mut versions = Vec::new();
        for batch in ["standing", "reverted"].iter().flat_map(|which| batches[which].as_array().unwrap()) {
            let bytes = testing::bytes(&batch["Header"]);
            let header = BatchHeader::decode(&bytes).unwrap();
            assert_eq!(header.encode(), bytes);
            assert_eq!(header.hash(), testing::hash(&batch["Hash"]));
            assert_eq!(header.index.get(), batch["Index"].as_u64().unwrap());
            assert_eq!(header.total_l1_message_popped, batch["PoppedTotal"].as_u64().unwrap());
            versions.push(header.version);
        }
        versions.sort_unstable();
        versions.dedup();
        assert_eq!(versions, [0, 1, 2]);
    }

    /// The call to `rollup` in a `callTracer` answer.
    fn traced_input(call: &Value, rollup: &Value) -> Option<Vec<u8>> {
        if call["to"] == *rollup {
            return Some(testing::bytes(&call["input"]));
        }
        call["calls"].as_array()?.iter().find_map(|call| traced_input(call, rollup))
    }

    #[test]
    fn c2_c7_recorded_commits_are_rebuilt() {
        let batches = testing::json("recorded/batches.json");
        let transactions = testing::json("recorded/l1/transactions.json");
        let traces = testing::json("recorded/l1/call-traces.json");
        let logs = testing::json("recorded/l1/logs.json");
        let messages: Vec<B256> = logs
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|log| {
                let topics: Vec<_> = log["topics"].as_array().unwrap().iter().map(testing::hash).collect();
                match decode_event(&topics, &testing::bytes(&log["data"])).unwrap() {
                    Some(L1EventKind::Message(message)) => Some(message.hash),
                    _ => None,
                }
            })
            .collect();

        let mut rebuilt_by = Vec::new();
        for batch in ["standing", "reverted"].iter().flat_map(|which| batches[which].as_array().unwrap()) {
            if batch["Index"] == 0 {
                continue;
            }
            let hash = batch["Tx"].as_str().unwrap();
            let tx = &transactions[hash];
            let input = match traces.get(hash) {
                Some(trace) => traced_input(trace, &batches["rollup"]).unwrap(),
                None => testing::bytes(&tx["input"]),
            };
            let commit = decode_commit(&input).unwrap();
            // `batches.json` names for commitState the blobs of the earlier commit; a type 3 names its own.
            let blobs: Vec<_> = batch["BlobHashes"].as_array().unwrap().iter().map(testing::hash).collect();
            if let Some(own) = tx["blobVersionedHashes"].as_array().filter(|own| !own.is_empty()) {
                assert_eq!(own.iter().map(testing::hash).collect::<Vec<_>>(), blobs);
            }
            let parent = BatchHeader::decode(&commit.parent_header).unwrap();
            let consumed = messages.iter().skip(usize::try_from(parent.total_l1_message_popped).unwrap());
            let consumed: Vec<_> =
                consumed.take(usize::try_from(commit.l1_message_count()).unwrap()).copied().collect();
            let header = rebuild(&commit, &blobs, &consumed).unwrap();
            assert_eq!(header.encode(), testing::bytes(&batch["Header"]), "batch {}", batch["Index"]);
            let field = rebuild_with_field(&commit, blob_field(commit.version, &blobs).unwrap(), &consumed);
            assert_eq!(field, Ok(header));
            rebuilt_by.push(commit.form);
        }
        assert_eq!(rebuilt_by.len(), 12);
        assert!(rebuilt_by.contains(&CommitForm::CommitState));
        assert!(rebuilt_by.contains(&CommitForm::CommitBatchWithProof));
    }

    proptest! {
        #[test]
        fn headers_round_trip(version in 0_u8..3, numbers: [u64; 4], words: [[u8; 32]; 7]) {
            let header = BatchHeader {
                version,
                index: BatchIndex::new(numbers[0]),
                l1_message_popped: numbers[1],
                total_l1_message_popped: numbers[2],
                data_hash: B256(words[0]),
                blob_field: B256(words[1]),
                prev_state_root: B256(words[2]),
                post_state_root: B256(words[3]),
                withdrawal_root: B256(words[4]),
                sequencer_sets_hash: B256(words[5]),
                parent_hash: B256(words[6]),
                last_block: (version > 0).then_some(L2Number::new(numbers[3])),
            };
            let bytes = header.encode();
            prop_assert_eq!(BatchHeader::decode(&bytes), Ok(header));
            prop_assert!(BatchHeader::decode(&bytes[..bytes.len() - 1]).is_err());
        }

        #[test]
        fn p7_any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..260)) {
            let _ = BatchHeader::decode(&bytes);
        }
    }
}
