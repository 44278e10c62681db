//! Which batches does L1 hold again after a reorg?
//!
//! A reorg drops what was recorded above the common ancestor. Most of it comes back in other blocks. The batch hash
//! binds everything about a batch except its place on L1. So what was verified stays verified at its new place, and
//! safe does not go down for it (B2).

use crate::types::{BatchRecord, L1Event, L1EventKind, L1Message, L1Ref};

/// What the new chain holds again of the dropped blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rebound {
    /// The batches, with their new places.
    pub batches: Vec<BatchRecord>,
    /// The L1 messages up to the last of them.
    pub messages: Vec<(L1Ref, L1Message)>,
    /// The FinalizeBatch logs up to the last of them.
    pub proofs: Vec<L1Event>,
    /// The blocks up to the last of them.
    pub blocks: Vec<L1Ref>,
}

/// The longest run of `dropped`, ascending by index, that the new chain's `events` commit to again. If a range reverts
/// anything, it is read again in order, and nothing is taken over.
///
/// The cursor will be on the last rebound commit. So what was read up to there is kept too: the L1 messages, the
/// proofs, and the `blocks` among which the next reorg finds its ancestor.
pub fn rebound(dropped: &[BatchRecord], events: Vec<L1Event>, blocks: Vec<L1Ref>) -> Rebound {
    if events.iter().any(|e| matches!(e.kind, L1EventKind::Revert { .. })) {
        return Rebound::default();
    }
    let mut batches: Vec<BatchRecord> = Vec::new();
    for old in dropped {
        let same = |commit: &crate::types::CommitEvent| commit.index == old.index && commit.hash == old.hash;
        let Some(commit) = events.iter().filter_map(L1Event::as_commit).find(same) else { break };
        batches.push(BatchRecord {
            l1: commit.block,
            log_index: commit.log_index,
            tx_hash: commit.tx_hash,
            ..old.clone()
        });
    }
    let Some(to) = batches.last().map(|last| last.l1.number) else { return Rebound::default() };
    let blocks = blocks.into_iter().filter(|b| b.number <= to).collect();
    let (mut messages, mut proofs) = (Vec::new(), Vec::new());
    for event in events.into_iter().filter(|e| e.block.number <= to) {
        match event.kind {
            L1EventKind::Message(message) => messages.push((event.block, message)),
            L1EventKind::Finalize { .. } => proofs.push(event),
            L1EventKind::Commit { .. } | L1EventKind::Revert { .. } => {}
        }
    }
    Rebound { batches, messages, proofs, blocks }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{B256, BatchIndex, Case, L1Number, Outcome};

    fn block(number: u64) -> L1Ref {
        L1Ref { number: L1Number::new(number), hash: B256::from_low_u64_be(number) }
    }

    fn record(index: u64, at: u64) -> BatchRecord {
        BatchRecord {
            index: index.into(),
            hash: B256::from_low_u64_be(index),
            l1: block(at),
            log_index: 0,
            tx_hash: B256::zero(),
            outcome: Outcome::Verified,
            case: Some(Case::Consistent),
            first: None,
            last: None,
            post_state_root: B256::zero(),
            withdrawal_root: B256::zero(),
            total_l1_popped: 0,
            rewritten: 3,
            encoder_drift: false,
            blobs: 0,
        }
    }

    fn event(at: u64, kind: L1EventKind) -> L1Event {
        L1Event { block: block(at), tx_hash: B256::repeat_byte(7), tx_index: 1, log_index: 2, kind }
    }

    fn commit(index: u64, hash: u64, at: u64) -> L1Event {
        event(at, L1EventKind::Commit { index: index.into(), hash: B256::from_low_u64_be(hash) })
    }

    #[test]
    fn b2_the_longest_run_of_equal_batches_is_taken_over() {
        let dropped = [record(4, 10), record(5, 11), record(6, 12)];
        let table = [
            (vec![commit(4, 4, 20), commit(5, 5, 21), commit(6, 6, 22)], vec![(4, 20), (5, 21), (6, 22)]),
            (vec![commit(4, 4, 20), commit(5, 5, 21)], vec![(4, 20), (5, 21)]),
            // Another batch in its place, or none: what comes after it is verified again.
            (vec![commit(4, 4, 20), commit(5, 9, 21), commit(6, 6, 22)], vec![(4, 20)]),
            (vec![commit(5, 5, 21), commit(6, 6, 22)], vec![]),
            (vec![], vec![]),
        ];
        for (events, expected) in table {
            let rebound = rebound(&dropped, events.clone(), vec![block(19), block(20), block(21), block(22)]);
            let found: Vec<_> = rebound.batches.iter().map(|b| (b.index.get(), b.l1.number.get())).collect();
            assert_eq!(found, expected, "{events:?}");
            let to = expected.last().map_or(0, |last| last.1);
            assert!(rebound.blocks.iter().all(|b| b.number.get() <= to));
            assert!(rebound.batches.iter().all(|b| b.rewritten == 3 && b.log_index == 2));
        }
    }

    #[test]
    fn m17_b2_no_batch_is_rebound_past_a_revert() {
        let revert = event(21, L1EventKind::Revert { index: BatchIndex::new(5), hash: B256::zero() });
        let events = vec![commit(4, 4, 20), revert];
        assert_eq!(rebound(&[record(4, 10)], events, vec![block(20)]), Rebound::default());
    }

    #[test]
    fn b2_proofs_up_to_the_last_batch_go_with_it() {
        let proof = |at| event(at, L1EventKind::Finalize { index: BatchIndex::new(2), hash: B256::zero() });
        let events = vec![proof(19), commit(4, 4, 20), proof(21)];
        let rebound = rebound(&[record(4, 10)], events, vec![block(19), block(20), block(21)]);
        assert_eq!(rebound.proofs, [proof(19)]);
        assert_eq!(rebound.blocks, [block(19), block(20)]);
    }
}
