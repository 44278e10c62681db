//! Does L1 still hold this commit?
//!
//! The contract keeps one hash per index, and an endpoint may leave out logs, so neither alone is enough. The question
//! is answered in steps, since each step costs requests: the facts hold what is known, and the answer says what must be
//! asked next (C4, C5, M17, A1).

use crate::types::{B256, L1Number};

/// What is known of a commit. The outer `Option` of the last two says whether it was asked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitFacts {
    /// The commit's batch hash.
    pub hash: B256,
    /// What the contract holds under the index now; none if it did not answer.
    pub now: Option<B256>,
    /// A later commit of the same index is stored as standing: the batch was reverted in between.
    pub stands_later: bool,
    /// The L1 block of the first revert after the commit in the logs.
    pub revert: Option<Option<L1Number>>,
    /// What the contract held at the end of what is confirmed; the inner `None` says that it did not answer.
    pub then: Option<Option<B256>>,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It stands.
    Stands,
    /// It was reverted in this block.
    Reverted(L1Number),
    /// Its revert is not confirmed yet.
    RevertPending,
    /// It was committed again later, and no endpoint has the revert in between.
    LeftOutBeforeNextCommit,
    /// The contract lost it within what is confirmed, and no endpoint has the revert.
    LeftOut,
    /// The logs must be searched for its revert.
    AskForRevert,
    /// The contract must be asked what it held at the end of what is confirmed.
    AskContract,
}

/// Whether the commit stands, or what must be asked to decide.
pub fn standing(facts: &CommitFacts) -> Standing {
    if facts.now == Some(facts.hash) && !facts.stands_later {
        return Standing::Stands;
    }
    match facts.revert {
        None => return Standing::AskForRevert,
        Some(Some(block)) => return Standing::Reverted(block),
        Some(None) => {}
    }
    if facts.stands_later {
        return Standing::LeftOutBeforeNextCommit;
    }
    if facts.now.is_none() {
        return Standing::Stands;
    }
    match facts.then {
        None => Standing::AskContract,
        Some(then) if then.is_some_and(|then| then != facts.hash) => Standing::LeftOut,
        Some(_) => Standing::RevertPending,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c4_c5_m17_every_case_of_a_standing_or_reverted_commit() {
        use Standing::*;
        let (own, other, none) = (B256::repeat_byte(1), B256::repeat_byte(2), B256::zero());
        let at = L1Number::new(9);
        // contract now, stands later, revert, contract then → answer
        let table = [
            (Some(own), false, None, None, Stands),
            // The same hash again later: the revert in between counts (M17).
            (Some(own), true, None, None, AskForRevert),
            (Some(own), true, Some(Some(at)), None, Reverted(at)),
            (Some(own), true, Some(None), None, LeftOutBeforeNextCommit),
            (None, true, Some(None), None, LeftOutBeforeNextCommit),
            // Reverted, or another batch in its place.
            (Some(none), false, None, None, AskForRevert),
            (Some(other), false, None, None, AskForRevert),
            (Some(none), false, Some(Some(at)), None, Reverted(at)),
            (Some(none), false, Some(None), None, AskContract),
            (Some(none), false, Some(None), Some(Some(none)), LeftOut),
            (Some(none), false, Some(None), Some(Some(other)), LeftOut),
            (Some(none), false, Some(None), Some(Some(own)), RevertPending),
            (Some(none), false, Some(None), Some(None), RevertPending),
            // The contract did not answer: the logs alone decide (A8).
            (None, false, None, None, AskForRevert),
            (None, false, Some(Some(at)), None, Reverted(at)),
            (None, false, Some(None), None, Stands),
        ];
        for (now, stands_later, revert, then, expected) in table {
            let facts = CommitFacts { hash: own, now, stands_later, revert, then };
            assert_eq!(standing(&facts), expected, "{facts:?}");
        }
    }
}
