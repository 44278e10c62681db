//! Is what the blob holds a sequence of blocks that the calldata allows?
//!
//! The execution node checks next to nothing of what it is given (protocol.md, section 7). So everything that a block
//! must be is decided here, before the first write: numbers, times, L1 messages, counts (E18, F4, F6, C13).

use crate::types::{BlockContent, L1Message, L2Number, NewBlock};

/// What is wrong with a batch's content. A verdict: the batch itself is poison; reading it did not fail.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentFault {
    /// The bytes are not a payload.
    #[error("payload: {0}")]
    Malformed(String),
    /// There is no block at all.
    #[error("blockContexts: the batch holds no block")]
    Empty,
    /// The first block is not the parent's successor.
    #[error("blockContexts: the first block is {actual}, parent + 1 is {expected}")]
    First {
        /// Parent's last block plus one.
        expected: L2Number,
        /// The content's.
        actual: L2Number,
    },
    /// Two neighbouring blocks do not follow each other.
    #[error("blockContexts: block {actual} stands where {expected} must")]
    NotContiguous {
        /// The number that must come there.
        expected: L2Number,
        /// The content's.
        actual: L2Number,
    },
    /// Calldata's last block cannot end a batch that begins at `first`: it lies below, or too far above.
    #[error("lastBlockNumber: {last} does not end a batch that begins at {first}")]
    Extent {
        /// The batch's first block.
        first: L2Number,
        /// Calldata's last one.
        last: L2Number,
    },
    /// The last block is not calldata's.
    #[error("lastBlockNumber: calldata says {expected}, the content ends on {actual}")]
    Last {
        /// Calldata's.
        expected: L2Number,
        /// The content's.
        actual: L2Number,
    },
    /// Time goes backwards.
    #[error("timestamp: block {number} is at {timestamp}, before its parent's {parent}")]
    Time {
        /// The block.
        number: L2Number,
        /// Its timestamp.
        timestamp: u64,
        /// Its parent's.
        parent: u64,
    },
    /// The blocks' L1 messages are not as many as calldata says.
    #[error("numL1Messages: calldata says {expected}, the blocks hold {actual}")]
    MessageCount {
        /// Calldata's.
        expected: u64,
        /// The sum over the blocks.
        actual: u64,
    },
    /// Bytes follow the last transaction, zeros or others: the sequencer's payload ends with it.
    #[error("payload: {0} bytes follow the last transaction")]
    Trailing(usize),
    /// An L2 transaction in the payload is an L1 message.
    #[error("payload: block {0} carries an L1 message among its L2 transactions")]
    SmuggledMessage(L2Number),
}

/// What calldata and the chain before the batch demand.
#[derive(Clone, Copy, Debug)]
pub struct Demands {
    /// First block: parent's last plus one.
    pub first: L2Number,
    /// Last block.
    pub last: L2Number,
    /// L1 messages in the batch.
    pub messages: u64,
    /// The parent block's timestamp, in seconds.
    pub parent_timestamp: u64,
}

/// The most blocks that a batch can have: the older forms count them in 16 bits, today's batches hold at most 600. A
/// `lastBlockNumber` that claims more is poison and allocates nothing (C5).
const MAX_BLOCKS: u64 = 65_535;

/// How many blocks a batch from `first` to calldata's `last` has.
///
/// # Errors
/// The fault, which is a verdict.
pub fn extent(first: L2Number, last: L2Number) -> Result<u64, ContentFault> {
    if last < first || last.above(first) >= MAX_BLOCKS {
        return Err(ContentFault::Extent { first, last });
    }
    Ok(last.above(first).saturating_add(1))
}

/// Checks `blocks` against `demands`.
///
/// # Errors
/// The first fault.
pub fn check(blocks: &[BlockContent], demands: &Demands) -> Result<(), ContentFault> {
    let Some(head) = blocks.first() else { return Err(ContentFault::Empty) };
    if head.context.number != demands.first {
        return Err(ContentFault::First { expected: demands.first, actual: head.context.number });
    }
    let mut expected = demands.first;
    let mut parent = demands.parent_timestamp;
    let mut messages = 0_u64;
    for block in blocks {
        let context = &block.context;
        if context.number != expected {
            return Err(ContentFault::NotContiguous { expected, actual: context.number });
        }
        if context.timestamp < parent {
            return Err(ContentFault::Time { number: context.number, timestamp: context.timestamp, parent });
        }
        if block.transactions.iter().any(|raw| crate::types::is_l1_message(raw)) {
            return Err(ContentFault::SmuggledMessage(context.number));
        }
        messages = messages.saturating_add(u64::from(context.l1_messages));
        parent = context.timestamp;
        expected = expected.plus(1);
    }
    let actual = expected.minus(1);
    if actual != demands.last {
        return Err(ContentFault::Last { expected: demands.last, actual });
    }
    if messages != demands.messages {
        return Err(ContentFault::MessageCount { expected: demands.messages, actual: messages });
    }
    Ok(())
}

/// Puts the batch's L1 messages back in front of their blocks, in queue order. `messages` are all the messages of the
/// batch; none if their number does not fit the blocks.
pub fn with_messages(blocks: &[BlockContent], messages: &[L1Message]) -> Option<Vec<NewBlock>> {
    let mut queue = messages.iter();
    let mut out = Vec::with_capacity(blocks.len());
    for block in blocks {
        let wanted = usize::from(block.context.l1_messages);
        let mut transactions = Vec::with_capacity(wanted.saturating_add(block.transactions.len()));
        transactions.extend(queue.by_ref().take(wanted).map(|m| m.raw.clone()));
        if transactions.len() != wanted {
            return None;
        }
        transactions.extend(block.transactions.iter().cloned());
        out.push(NewBlock {
            number: block.context.number,
            timestamp: block.context.timestamp,
            base_fee: block.context.base_fee,
            gas_limit: block.context.gas_limit,
            transactions,
            parent_hash: None,
        });
    }
    queue.next().is_none().then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{B256, BlockContext, RawTx, U256};

    fn block(number: u64, timestamp: u64, l1_messages: u16) -> BlockContent {
        let context = BlockContext {
            number: number.into(),
            timestamp,
            base_fee: U256::from(1),
            gas_limit: 30_000_000,
            txs: l1_messages + 1,
            l1_messages,
        };
        BlockContent { context, transactions: vec![RawTx::from_static(b"\xf8tx")] }
    }

    fn demands() -> Demands {
        Demands { first: 10.into(), last: 12.into(), messages: 3, parent_timestamp: 100 }
    }

    fn good() -> Vec<BlockContent> {
        vec![block(10, 100, 2), block(11, 101, 0), block(12, 101, 1)]
    }

    fn message(index: u64) -> L1Message {
        L1Message {
            index: index.into(),
            hash: B256::zero(),
            raw: RawTx::from(vec![0x7e, u8::try_from(index).unwrap()]),
        }
    }

    #[test]
    fn c5_a_batch_ends_at_or_above_its_first_block_and_not_far_above() {
        for (first, last, expected) in
            [(7, 7, Some(1)), (7, 6, None), (7, 7 + 65_534, Some(65_535)), (7, 7 + 65_535, None), (7, u64::MAX, None)]
        {
            assert_eq!(extent(first.into(), last.into()).ok(), expected, "{first} to {last}");
        }
    }

    #[test]
    fn f4_e18_every_fault_is_named() {
        assert_eq!(check(&good(), &demands()), Ok(()));
        type Change = fn(&mut Vec<BlockContent>);
        let cases: [(Change, ContentFault); 8] = [
            (|b| b.clear(), ContentFault::Empty),
            (|b| b[0].context.number = 9.into(), ContentFault::First { expected: 10.into(), actual: 9.into() }),
            (
                |b| b[1].context.number = 12.into(),
                ContentFault::NotContiguous { expected: 11.into(), actual: 12.into() },
            ),
            (|b| b.truncate(2), ContentFault::Last { expected: 12.into(), actual: 11.into() }),
            (|b| b.push(block(13, 102, 0)), ContentFault::Last { expected: 12.into(), actual: 13.into() }),
            (|b| b[0].context.timestamp = 99, ContentFault::Time { number: 10.into(), timestamp: 99, parent: 100 }),
            (|b| b[2].context.l1_messages = 2, ContentFault::MessageCount { expected: 3, actual: 4 }),
            (|b| b[1].transactions.push(RawTx::from_static(b"\x7e")), ContentFault::SmuggledMessage(11.into())),
        ];
        for (change, fault) in cases {
            let mut blocks = good();
            change(&mut blocks);
            assert_eq!(check(&blocks, &demands()), Err(fault));
        }
    }

    #[test]
    fn messages_stand_first_in_queue_order_and_none_is_left() {
        let messages = [message(5), message(6), message(7)];
        let blocks = with_messages(&good(), &messages).unwrap();
        let first_bytes: Vec<Vec<u8>> =
            blocks.iter().map(|b| b.transactions.iter().map(|t| t[t.len() - 1]).collect()).collect();
        assert_eq!(first_bytes, [vec![5, 6, b'x'], vec![b'x'], vec![7, b'x']]);
        assert_eq!(with_messages(&good(), &messages[..2]), None);
        assert_eq!(with_messages(&good()[..2], &messages), None);
    }
}
