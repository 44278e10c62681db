//! Does L1 confirm a RevertBatch or FinalizeBatch log that is stored?
//!
//! Such logs are read far ahead of the batches, each once and from one endpoint. A false log in a canonical block would
//! count for ever. So if a log would halt the worker, or keep a batch from being verified, L1 is asked for that very
//! log again, and the contract for its state if it can be asked (A7, A8).

use crate::types::{B256, BatchIndex};

/// What L1 says of a stored revert of a batch when it is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevertFacts {
    /// Its logs have it, in the block that is stored.
    pub told: bool,
    /// `committedBatches(index)` right below that block; none if it cannot be asked.
    pub before: Option<B256>,
    /// The same at that block.
    pub after: Option<B256>,
}

/// Whether the revert happened. The contract's state makes up for a missing log, for example if an endpoint rebuilds
/// its logs. A log that is present is enough by itself.
pub fn is_revert(facts: &RevertFacts) -> bool {
    let shown =
        matches!((facts.before, facts.after), (Some(before), Some(after)) if !before.is_zero() && after.is_zero());
    facts.told || shown
}

/// Whether the contract denies a revert that takes down the batch `standing`: it holds that very batch at the end of
/// the revert's block (`at_block`, none if it cannot be asked), and nothing commits to its index `again` in the block.
pub fn denies_revert(standing: B256, at_block: Option<B256>, again: bool) -> bool {
    !again && at_block == Some(standing)
}

/// What L1 says of a stored proof when it is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProofFacts {
    /// Its logs have it, in the block that is stored.
    pub told: bool,
    /// The batch that it is taken to prove.
    pub index: BatchIndex,
    /// `lastFinalizedBatchIndex()` at the block where that batch should be proved; none if the contract's old states
    /// cannot be asked.
    pub proved: Option<BatchIndex>,
    /// The same in its newest state, which is never lower; none if it cannot be asked either.
    pub newest: Option<BatchIndex>,
}

/// What follows for a stored proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// It counts.
    Holds,
    /// The contract denies it, or no source confirms it: it is forgotten.
    Forged,
    /// Its log is missing, and the contract's state at that block is not known. It does not count now, and is asked
    /// about again.
    Unknown,
}

/// Whether the proof counts. A false proof makes blocks final, or turns an ordinary revert into a halt; a forgotten
/// proof is never read again. So the contract's state comes first, and one missing log proves nothing against it.
pub fn proof(facts: &ProofFacts) -> Proof {
    let denies = |proved: BatchIndex| proved < facts.index;
    if facts.proved.is_some_and(denies) || facts.newest.is_some_and(denies) {
        return Proof::Forged;
    }
    match (facts.told, facts.proved, facts.newest) {
        (true, _, _) | (false, Some(_), _) => Proof::Holds,
        (false, None, Some(_)) => Proof::Unknown,
        (false, None, None) => Proof::Forged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a1_c1_a_revert_is_known_by_its_log_or_by_a_batch_that_left_the_contract() {
        let (none, some) = (Some(B256::zero()), Some(B256::repeat_byte(1)));
        let shown = |before, after| is_revert(&RevertFacts { told: false, before, after });
        for (before, after) in [(None, None), (some, None), (None, none), (none, none), (some, some), (none, some)] {
            assert!(!shown(before, after), "{before:?}, {after:?}");
            assert!(is_revert(&RevertFacts { told: true, before, after }));
        }
        assert!(shown(some, none));
    }

    #[test]
    fn a1_p3_the_contract_denies_a_revert_by_holding_the_batch_in_its_very_block() {
        let (own, other) = (B256::repeat_byte(1), B256::repeat_byte(2));
        for at_block in [None, Some(B256::zero()), Some(other)] {
            assert!(!denies_revert(own, at_block, false) && !denies_revert(own, at_block, true), "{at_block:?}");
        }
        assert!(denies_revert(own, Some(own), false));
        assert!(!denies_revert(own, Some(own), true), "taken back and committed again in one block");
    }

    #[test]
    fn m3_a_proof_counts_by_the_contracts_word_and_then_by_its_log() {
        use Proof::*;
        let judged = |told, proved: Option<u64>, newest: Option<u64>| {
            let (proved, newest) = (proved.map(BatchIndex::new), newest.map(BatchIndex::new));
            proof(&ProofFacts { told, index: 5.into(), proved, newest })
        };
        for (told, proved, newest, expected) in [
            (true, None, None, Holds),
            (true, Some(5), None, Holds),
            (true, Some(9), None, Holds),
            (true, None, Some(7), Holds),
            (true, Some(4), None, Forged),
            (true, None, Some(4), Forged),
            // An endpoint that has lost its logs says nothing against the contract.
            (false, Some(5), None, Holds),
            (false, Some(4), None, Forged),
            (false, None, Some(4), Forged),
            (false, None, Some(5), Unknown),
            (false, None, None, Forged),
        ] {
            assert_eq!(judged(told, proved, newest), expected, "{told}, {proved:?}, {newest:?}");
        }
    }
}
