//! Does L1 confirm a RevertBatch or FinalizeBatch log that is stored?
//!
//! Such logs are read far ahead of the batches, each from one endpoint and once. A false one in a canonical block would
//! count for ever. So where a log would halt the worker, or keep a batch from being verified, L1 is asked for that very
//! log again, and the contract for its state, where it can be asked (A7, A8).

use crate::types::{B256, BatchIndex};

/// What L1 says of a stored revert of a batch when it is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevertFacts {
    /// Its logs have it, in the block that is stored.
    pub told: bool,
    /// `committedBatches(index)` right below that block; none where it cannot be asked.
    pub before: Option<B256>,
    /// The same at that block.
    pub after: Option<B256>,
}

/// Whether the revert happened. The contract's word makes up for a log that is missing, as where an endpoint rebuilds its
/// logs; a log that is there needs no other word.
pub fn is_revert(facts: &RevertFacts) -> bool {
    let shown =
        matches!((facts.before, facts.after), (Some(before), Some(after)) if !before.is_zero() && after.is_zero());
    facts.told || shown
}

/// What L1 says of a stored proof when it is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProofFacts {
    /// Its logs have it, in the block that is stored.
    pub told: bool,
    /// The batch that it is held to prove.
    pub index: BatchIndex,
    /// `lastFinalizedBatchIndex()` where that batch should be proved; none where it cannot be asked.
    pub proved: Option<BatchIndex>,
}

/// Whether the proof counts. It must be there, and the contract must not deny it: a proof that is false makes blocks
/// final, or an ordinary revert a halt.
pub fn is_proof(facts: &ProofFacts) -> bool {
    facts.told && facts.proved.is_none_or(|proved| proved >= facts.index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a1_c1_a_revert_is_one_by_its_log_or_by_what_the_contract_lost_there() {
        let (none, some) = (Some(B256::zero()), Some(B256::repeat_byte(1)));
        let shown = |before, after| is_revert(&RevertFacts { told: false, before, after });
        for (before, after) in [(None, None), (some, None), (None, none), (none, none), (some, some), (none, some)] {
            assert!(!shown(before, after), "{before:?}, {after:?}");
            assert!(is_revert(&RevertFacts { told: true, before, after }));
        }
        assert!(shown(some, none));
    }

    #[test]
    fn m3_a_proof_is_there_and_not_denied() {
        let proof = |told, proved: Option<u64>| {
            is_proof(&ProofFacts { told, index: 5.into(), proved: proved.map(BatchIndex::new) })
        };
        for (told, proved, counts) in [
            (true, None, true),
            (true, Some(5), true),
            (true, Some(9), true),
            (true, Some(4), false),
            (false, None, false),
            (false, Some(5), false),
            (false, Some(4), false),
        ] {
            assert_eq!(proof(told, proved), counts, "{told}, {proved:?}");
        }
    }
}
