//! Logs of the Rollup, L1MessageQueue and L2ToL1MessagePasser contracts (protocol.md, sections 1, 5, 7), and the few
//! words that their views take and give.
//!
//! Which contract emitted a log is checked by the caller.

use bytes::Bytes;

use super::transaction::{self, L1MessageFields};
use crate::types::{Address, B256, BatchIndex, L1EventKind, U256};

/// Topic 0 of each event.
pub mod topics {
    use crate::types::B256;

    /// `CommitBatch(uint256 indexed batchIndex, bytes32 indexed batchHash)`.
    pub const COMMIT_BATCH: B256 = B256([
        0x2c, 0x32, 0xd4, 0xae, 0x15, 0x17, 0x44, 0xd0, 0xbf, 0x0b, 0x94, 0x64, 0xa3, 0xe8, 0x97, 0xa1, 0xd1, 0x7e,
        0xd2, 0xf1, 0xaf, 0x71, 0xf7, 0xc9, 0xa7, 0x5f, 0x12, 0xce, 0x0d, 0x28, 0x23, 0x8f,
    ]);
    /// `RevertBatch(uint256 indexed batchIndex, bytes32 indexed batchHash)`.
    pub const REVERT_BATCH: B256 = B256([
        0x00, 0xca, 0xe2, 0x73, 0x90, 0x91, 0xba, 0xdf, 0xd9, 0x1c, 0x37, 0x3f, 0x0a, 0x16, 0xce, 0xde, 0x69, 0x1e,
        0x0c, 0xd2, 0x5b, 0xb8, 0x0c, 0xff, 0x77, 0xdd, 0x5c, 0xae, 0xb4, 0x71, 0x01, 0x46,
    ]);
    /// `FinalizeBatch(uint256 indexed batchIndex, bytes32 indexed batchHash, bytes32 stateRoot, bytes32 withdrawRoot)`.
    pub const FINALIZE_BATCH: B256 = B256([
        0x26, 0xba, 0x82, 0xf9, 0x07, 0x31, 0x7e, 0xed, 0xc9, 0x7d, 0x0c, 0xbe, 0xf2, 0x3d, 0xe7, 0x6a, 0x43, 0xdd,
        0x6e, 0xdb, 0x56, 0x3b, 0xdb, 0x6e, 0x94, 0x07, 0x64, 0x5b, 0x95, 0x0a, 0x7a, 0x2d,
    ]);
    /// `QueueTransaction(address indexed sender, address indexed target, uint256 value, uint64 queueIndex, uint256 gasLimit,
    /// bytes data)`.
    pub const QUEUE_TRANSACTION: B256 = B256([
        0x69, 0xcf, 0xcb, 0x8e, 0x6d, 0x41, 0x92, 0xb8, 0xab, 0xa9, 0x90, 0x22, 0x43, 0x91, 0x25, 0x87, 0xf3, 0x7e,
        0x55, 0x0d, 0x75, 0xc1, 0xfa, 0x80, 0x14, 0x91, 0xfc, 0xe2, 0x67, 0x17, 0xf3, 0x7e,
    ]);
    /// `AppendMessage(uint256 indexed index, bytes32 indexed messageHash, bytes32 indexed rootHash)`.
    pub const APPEND_MESSAGE: B256 = B256([
        0x50, 0x97, 0x58, 0xf5, 0x2f, 0xb5, 0xe0, 0x5d, 0x2e, 0x0d, 0x43, 0x79, 0x02, 0x42, 0x75, 0xcb, 0xab, 0x7c,
        0x27, 0x92, 0x3c, 0x22, 0x77, 0x7f, 0xcd, 0xb7, 0xe1, 0x2a, 0x4d, 0x94, 0x99, 0x63,
    ]);
}

/// Selectors of the views, protocol.md section 1 and 7.
pub mod selectors {
    /// `lastCommittedBatchIndex() → uint256`.
    pub const LAST_COMMITTED_BATCH_INDEX: [u8; 4] = [0x12, 0x1d, 0xcd, 0x50];
    /// `lastFinalizedBatchIndex() → uint256`.
    pub const LAST_FINALIZED_BATCH_INDEX: [u8; 4] = [0x05, 0x9d, 0xef, 0x61];
    /// `committedBatches(uint256) → bytes32`.
    pub const COMMITTED_BATCHES: [u8; 4] = [0x23, 0x62, 0xf0, 0x3e];
    /// `batchBlobVersionedHashes(uint256) → bytes32`.
    pub const BATCH_BLOB_VERSIONED_HASHES: [u8; 4] = [0x2a, 0x21, 0x3b, 0xa1];
    /// `batchDataStore(uint256)` → four words, the third of them the last block's number.
    pub const BATCH_DATA_STORE: [u8; 4] = [0x5e, 0xf7, 0xa9, 0x4a];
    /// `getCrossDomainMessage(uint256) → bytes32`.
    pub const GET_CROSS_DOMAIN_MESSAGE: [u8; 4] = [0xae, 0x45, 0x3c, 0xd5];
    /// `messageRoot() → bytes32`.
    pub const MESSAGE_ROOT: [u8; 4] = [0xd4, 0xb9, 0xf4, 0xfa];
}

/// Why a log or a view's answer is not what its contract writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// Another number of topics than the event has.
    #[error("{event} with {actual} topics")]
    Topics {
        /// The event.
        event: &'static str,
        /// Topics of the log.
        actual: usize,
    },
    /// A field is missing, too wide, or points past the end.
    #[error("{event}: {field} is malformed")]
    Field {
        /// The event or view.
        event: &'static str,
        /// The field.
        field: &'static str,
    },
}

/// What a log of the Rollup or L1MessageQueue contract says; none for an event that the worker does not follow.
pub fn decode_event(topics: &[B256], data: &[u8]) -> Result<Option<L1EventKind>, EventError> {
    let Some(signature) = topics.first() else { return Ok(None) };
    if *signature == topics::COMMIT_BATCH {
        let (index, hash) = batch_topics("CommitBatch", topics)?;
        return Ok(Some(L1EventKind::Commit { index, hash }));
    }
    if *signature == topics::REVERT_BATCH {
        let (index, hash) = batch_topics("RevertBatch", topics)?;
        return Ok(Some(L1EventKind::Revert { index, hash }));
    }
    if *signature == topics::FINALIZE_BATCH {
        let (index, hash) = batch_topics("FinalizeBatch", topics)?;
        word(data, 1).ok_or(EventError::Field { event: "FinalizeBatch", field: "withdrawRoot" })?;
        return Ok(Some(L1EventKind::Finalize { index, hash }));
    }
    if *signature == topics::QUEUE_TRANSACTION {
        let fields = queued_message(topics, data)?;
        return Ok(Some(L1EventKind::Message(transaction::encode_l1_message(&fields))));
    }
    Ok(None)
}

/// The log that `kind` is decoded from: topics and data. Without topics if a message's `raw` is not an L1 message.
pub fn encode_event(kind: &L1EventKind) -> (Vec<B256>, Vec<u8>) {
    match kind {
        L1EventKind::Commit { index, hash } => {
            (vec![topics::COMMIT_BATCH, number_word(index.get()), *hash], Vec::new())
        }
        L1EventKind::Revert { index, hash } => {
            (vec![topics::REVERT_BATCH, number_word(index.get()), *hash], Vec::new())
        }
        // State root and withdrawal root, which nothing reads: they are the commit's.
        L1EventKind::Finalize { index, hash } => {
            (vec![topics::FINALIZE_BATCH, number_word(index.get()), *hash], vec![0; 64])
        }
        L1EventKind::Message(message) => match transaction::decode_l1_message(&message.raw) {
            Ok(fields) => encode_queued(&fields),
            Err(_) => (Vec::new(), Vec::new()),
        },
    }
}

/// The root that an AppendMessage log carries; none for another event.
pub fn decode_appended_root(topics: &[B256]) -> Result<Option<B256>, EventError> {
    match topics {
        [signature, ..] if *signature != topics::APPEND_MESSAGE => Ok(None),
        [] => Ok(None),
        [_, _, _, root] => Ok(Some(*root)),
        _ => Err(EventError::Topics { event: "AppendMessage", actual: topics.len() }),
    }
}

/// A number as topic or argument.
pub fn number_word(number: u64) -> B256 {
    word_of(U256::from(number))
}

/// Calldata of a view without arguments, or with one number.
pub fn encode_view(selector: [u8; 4], argument: Option<u64>) -> Vec<u8> {
    let mut out = selector.to_vec();
    if let Some(argument) = argument {
        out.extend_from_slice(number_word(argument).as_bytes());
    }
    out
}

/// Word number `place` of a view's answer.
pub fn view_word(answer: &[u8], place: usize) -> Result<B256, EventError> {
    word(answer, place).ok_or(EventError::Field { event: "view", field: "word" })
}

/// Word number `place` of a view's answer as a number of at most 64 bits.
pub fn view_number(answer: &[u8], place: usize) -> Result<u64, EventError> {
    narrow(view_word(answer, place)?).ok_or(EventError::Field { event: "view", field: "number" })
}

fn batch_topics(event: &'static str, topics: &[B256]) -> Result<(BatchIndex, B256), EventError> {
    let [_, index, hash] = topics else { return Err(EventError::Topics { event, actual: topics.len() }) };
    let index = narrow(*index).ok_or(EventError::Field { event, field: "batchIndex" })?;
    Ok((BatchIndex::new(index), *hash))
}

/// QueueTransaction's data: value, queueIndex, gasLimit, offset of `data`; there its length and bytes.
fn queued_message(topics: &[B256], data: &[u8]) -> Result<L1MessageFields, EventError> {
    const EVENT: &str = "QueueTransaction";
    let [_, sender, target] = topics else {
        return Err(EventError::Topics { event: EVENT, actual: topics.len() });
    };
    let field = |field| EventError::Field { event: EVENT, field };
    let call = word(data, 3).and_then(|offset| byte_string(data, offset)).ok_or(field("data"))?;
    Ok(L1MessageFields {
        queue_index: word(data, 1).and_then(narrow).ok_or(field("queueIndex"))?,
        gas_limit: word(data, 2).map(number_of).ok_or(field("gasLimit"))?,
        to: address_of(*target).ok_or(field("target"))?,
        value: word(data, 0).map(number_of).ok_or(field("value"))?,
        data: Bytes::copy_from_slice(call),
        sender: address_of(*sender).ok_or(field("sender"))?,
    })
}

fn encode_queued(fields: &L1MessageFields) -> (Vec<B256>, Vec<u8>) {
    let length = u64::try_from(fields.data.len()).unwrap_or(u64::MAX);
    let head = [
        word_of(fields.value),
        number_word(fields.queue_index),
        word_of(fields.gas_limit),
        number_word(0x80),
        number_word(length),
    ];
    let mut data: Vec<u8> = head.iter().flat_map(|word| word.0).collect();
    data.extend_from_slice(&fields.data);
    data.resize(data.len().next_multiple_of(32), 0);
    let topics = vec![topics::QUEUE_TRANSACTION, B256::from(fields.sender), B256::from(fields.to)];
    (topics, data)
}

fn word(data: &[u8], place: usize) -> Option<B256> {
    let start = place.checked_mul(32)?;
    data.get(start..)?.first_chunk::<32>().map(|word| B256(*word))
}

fn number_of(word: B256) -> U256 {
    U256::from_big_endian(word.as_bytes())
}

fn word_of(number: U256) -> B256 {
    let mut word = [0; 32];
    number.to_big_endian(&mut word);
    B256(word)
}

fn narrow(word: B256) -> Option<u64> {
    u64::try_from(number_of(word)).ok()
}

fn address_of(word: B256) -> Option<Address> {
    let (zeros, address) = word.as_bytes().split_first_chunk::<12>()?;
    if *zeros != [0; 12] {
        return None;
    }
    <[u8; 20]>::try_from(address).ok().map(Address::from)
}

/// The length-prefixed byte string at `offset` of `data`.
fn byte_string(data: &[u8], offset: B256) -> Option<&[u8]> {
    let at = data.get(usize::try_from(narrow(offset)?).ok()?..)?;
    let (length, bytes) = at.split_first_chunk::<32>()?;
    bytes.get(..usize::try_from(narrow(B256(*length))?).ok()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::testing;

    #[test]
    fn topics_and_selectors_are_those_of_the_abi_files() {
        use ethers_core::abi::Abi;
        let [rollup, queue, passer]: [Abi; 3] = [
            include_str!("../../contracts/abi/Rollup.json"),
            include_str!("../../contracts/abi/L1MessageQueue.json"),
            include_str!("../../contracts/abi/L2ToL1MessagePasser.json"),
        ]
        .map(|text| serde_json::from_str(text).unwrap());
        for (abi, name, topic) in [
            (&rollup, "CommitBatch", topics::COMMIT_BATCH),
            (&rollup, "RevertBatch", topics::REVERT_BATCH),
            (&rollup, "FinalizeBatch", topics::FINALIZE_BATCH),
            (&queue, "QueueTransaction", topics::QUEUE_TRANSACTION),
            (&passer, "AppendMessage", topics::APPEND_MESSAGE),
        ] {
            assert_eq!(abi.event(name).unwrap().signature(), topic, "{name}");
        }
        for (abi, name, selector) in [
            (&rollup, "lastCommittedBatchIndex", selectors::LAST_COMMITTED_BATCH_INDEX),
            (&rollup, "lastFinalizedBatchIndex", selectors::LAST_FINALIZED_BATCH_INDEX),
            (&rollup, "committedBatches", selectors::COMMITTED_BATCHES),
            (&rollup, "batchBlobVersionedHashes", selectors::BATCH_BLOB_VERSIONED_HASHES),
            (&rollup, "batchDataStore", selectors::BATCH_DATA_STORE),
            (&queue, "getCrossDomainMessage", selectors::GET_CROSS_DOMAIN_MESSAGE),
            (&passer, "messageRoot", selectors::MESSAGE_ROOT),
        ] {
            assert_eq!(abi.function(name).unwrap().short_signature(), selector, "{name}");
        }
    }

    #[test]
    fn malformed_logs_are_errors() {
        let word = B256::repeat_byte(0xff);
        let none = B256::zero();
        let queue = topics::QUEUE_TRANSACTION;
        let field = |event, field| EventError::Field { event, field };
        let offset = |offset: u64| [none.0, none.0, none.0, number_word(offset).0].concat();
        for (topics, data, expected) in [
            (vec![topics::COMMIT_BATCH], vec![], EventError::Topics { event: "CommitBatch", actual: 1 }),
            (
                vec![topics::REVERT_BATCH, none, none, none],
                vec![],
                EventError::Topics { event: "RevertBatch", actual: 4 },
            ),
            (vec![topics::COMMIT_BATCH, word, none], vec![], field("CommitBatch", "batchIndex")),
            (vec![queue, none], vec![], EventError::Topics { event: "QueueTransaction", actual: 2 }),
            (vec![queue, none, none], vec![], field("QueueTransaction", "data")),
            (vec![queue, none, none], [word.0; 5].concat(), field("QueueTransaction", "data")),
            (vec![queue, none, none], offset(128), field("QueueTransaction", "data")),
            (vec![queue, none, none], offset(u64::MAX), field("QueueTransaction", "data")),
            (vec![queue, none, word], offset(0), field("QueueTransaction", "target")),
            (vec![queue, word, none], offset(0), field("QueueTransaction", "sender")),
        ] {
            assert_eq!(decode_event(&topics, &data).unwrap_err(), expected);
        }
        assert_eq!(decode_event(&[], &[]), Ok(None));
        assert_eq!(decode_event(&[word], &[1]), Ok(None));
        assert!(decode_appended_root(&[topics::APPEND_MESSAGE, none]).is_err());
        assert_eq!(decode_appended_root(&[]), Ok(None));
        assert!(view_number(word.as_bytes(), 0).is_err());
        assert!(view_word(word.as_bytes(), 1).is_err());
        assert!(view_word(word.as_bytes(), usize::MAX).is_err());
        assert_eq!(encode_view([1, 2, 3, 4], Some(5)).len(), 36);
    }

    fn log_parts(log: &serde_json::Value) -> (Vec<B256>, Vec<u8>) {
        (log["topics"].as_array().unwrap().iter().map(testing::hash).collect(), testing::bytes(&log["data"]))
    }

    #[test]
    fn recorded_logs_decode_and_encode() {
        let logs = testing::json("recorded/l1/logs.json");
        let blocks = testing::json("recorded/l2/blocks.json");
        let on_l2: Vec<_> =
            blocks.as_array().unwrap().iter().flat_map(|block| block["transactions"].as_array().unwrap()).collect();
        let (mut commits, mut reverts, mut proofs, mut messages) = (0, 0, 0, 0);
        for log in logs.as_array().unwrap() {
            let (topics, data) = log_parts(log);
            let Some(kind) = decode_event(&topics, &data).unwrap() else { continue };
            let (again, bytes) = encode_event(&kind);
            assert_eq!(again, topics);
            // The roots that a proof repeats are not kept.
            assert!(bytes == data || matches!(kind, L1EventKind::Finalize { .. }));
            match kind {
                L1EventKind::Commit { .. } => commits += 1,
                L1EventKind::Revert { .. } => reverts += 1,
                L1EventKind::Finalize { .. } => proofs += 1,
                L1EventKind::Message(message) => {
                    assert_eq!(message.index.get(), messages);
                    let hash = format!("{:?}", message.hash);
                    assert!(on_l2.iter().any(|tx| tx["hash"] == hash.as_str()), "message {messages} on L2");
                    messages += 1;
                }
            }
        }
        assert_eq!((commits, reverts, proofs, messages), (13, 2, 4, 9));
    }

    #[test]
    fn recorded_appended_roots_are_the_message_roots() {
        let logs = testing::json("recorded/l2/append-message-logs.json");
        for log in logs.as_array().unwrap() {
            let (topics, _) = log_parts(log);
            let root = decode_appended_root(&topics).unwrap().unwrap();
            let index = view_number(topics[1].as_bytes(), 0).unwrap();
            assert_eq!(vec![topics::APPEND_MESSAGE, number_word(index), topics[2], root], topics);
        }
    }

    proptest! {
        #[test]
        fn events_round_trip(index: u64, hash: [u8; 32], value: [u64; 4], to: [u8; 20], data in prop::collection::vec(any::<u8>(), 0..100)) {
            let (index, hash) = (BatchIndex::new(index), B256(hash));
            let message = transaction::encode_l1_message(&L1MessageFields {
                queue_index: index.get(),
                gas_limit: U256(value),
                to: Address::from(to),
                value: U256(value),
                data: data.into(),
                sender: Address::from(to),
            });
            let proof = L1EventKind::Finalize { index, hash };
            for kind in [L1EventKind::Commit { index, hash }, L1EventKind::Revert { index, hash }, proof, L1EventKind::Message(message)] {
                let (topics, data) = encode_event(&kind);
                prop_assert_eq!(decode_event(&topics, &data), Ok(Some(kind)));
                if let Some(cut) = data.len().checked_sub(32) {
                    prop_assert!(decode_event(&topics, &data[..cut.min(159)]).is_err());
                }
            }
        }

        #[test]
        fn p7_any_log_is_read_without_a_panic(
            which in 0_usize..5,
            words in prop::collection::vec(any::<[u8; 32]>(), 0..4),
            data in prop::collection::vec(prop_oneof![4 => Just(0_u8), 1 => any::<u8>()], 0..300),
        ) {
            let first = [topics::COMMIT_BATCH, topics::REVERT_BATCH, topics::QUEUE_TRANSACTION, topics::APPEND_MESSAGE, B256::zero()][which];
            let topics: Vec<_> = std::iter::once(first).chain(words.into_iter().map(B256)).collect();
            let _ = (decode_event(&topics, &data), decode_appended_root(&topics));
        }
    }
}
