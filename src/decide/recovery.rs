//! What would `recover` write, replace and lose?
//!
//! Shown before anything is written, so that the operator agrees to numbers.

use crate::types::{BatchIndex, L2Number};

/// What is known after everything that stands was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveryFacts {
    /// The first batch that must be written.
    pub first_batch: BatchIndex,
    /// The last batch that is asked for.
    pub last_batch: BatchIndex,
    /// The last block of that batch.
    pub last_block: L2Number,
    /// The last local block that stays.
    pub skip: L2Number,
    /// The local head.
    pub head: L2Number,
}

/// The counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveryExtent {
    /// Batches to be verified by writing.
    pub batches: u64,
    /// Blocks to be written.
    pub blocks: u64,
    /// Local blocks that differ from L1 and are replaced.
    pub replaced: u64,
    /// Local blocks above the last batch, which L1 never saw. If anything is replaced, the first write drops them.
    pub lost: u64,
}

/// Counts batches and blocks.
pub fn extent(facts: &RecoveryFacts) -> RecoveryExtent {
    RecoveryExtent {
        batches: facts.last_batch.above(facts.first_batch).saturating_add(1),
        blocks: facts.last_block.above(facts.skip),
        replaced: facts.head.min(facts.last_block).above(facts.skip),
        lost: facts.head.above(facts.last_block),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_recovery_writes_replaces_and_loses() {
        // head, skip, last block → blocks, replaced, lost
        let table = [
            // The sequencer stopped: blocks are missing, nothing is replaced.
            ((12, 12, 36), (24, 0, 0)),
            // A fork at 9, shorter than what L1 has.
            ((20, 8, 36), (28, 12, 0)),
            // A fork that is longer than what L1 has.
            ((40, 8, 36), (28, 28, 4)),
            ((36, 8, 36), (28, 28, 0)),
            // The node's head lies below the last block that stays: a contradiction that counts nothing.
            ((5, 8, 36), (28, 0, 0)),
        ];
        for ((head, skip, last_block), expected) in table {
            let facts = RecoveryFacts {
                first_batch: 3.into(),
                last_batch: 6.into(),
                last_block: last_block.into(),
                skip: skip.into(),
                head: head.into(),
            };
            let RecoveryExtent { batches, blocks, replaced, lost } = extent(&facts);
            assert_eq!((batches, (blocks, replaced, lost)), (4, expected), "{facts:?}");
        }
    }
}
