//! Must a batch that could not be passed be judged again?
//!
//! Judging a batch costs a fetch from the beacon node, and a poison batch stands for hours. A verdict is kept until one
//! of its inputs changes, and is still judged again from time to time. Reverts are searched for before this question,
//! at every poll (C5).

use std::time::Duration;

use crate::decide::reason::Reason;
use crate::types::{B256, CommitEvent, L1Ref, L2Ref};

/// A kept verdict is judged again after this long. Nothing known changes it; this bounds the effect of what is not
/// known.
pub const KEEP_FOR: Duration = Duration::from_secs(600);

/// What a verdict follows from, besides the batch itself and the verified chain below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// Nothing else: the bytes that L1 is bound to cannot change.
    L1,
    /// The local chain up to the batch's end.
    LocalChain,
}

/// What the verdict `reason` follows from; none if it must be judged at every poll, because a passing fault may be its
/// cause or because judging costs no download.
pub const fn basis(reason: Reason) -> Option<Basis> {
    match reason {
        Reason::PoisonBatch => Some(Basis::L1),
        Reason::WouldSelfHeal | Reason::WouldFillGap | Reason::DivergesBeforeSwitch => Some(Basis::LocalChain),
        _ => None,
    }
}

/// Whether a search that ended `age` ago must be repeated: an endpoint may have left out a log.
pub fn is_due(age: Duration) -> bool {
    age >= KEEP_FOR
}

/// The inputs of a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerdictInputs {
    /// The commit: batch hash, L1 block, log index.
    pub commit: (B256, L1Ref, u64),
    /// The verified head below the batch.
    pub safe: Option<L2Ref>,
    /// The local block at the batch's end, or the head if that is lower; none if it does not matter.
    pub local: Option<L2Ref>,
}

impl VerdictInputs {
    /// Whether they are about `commit`.
    pub fn are_of(&self, commit: &CommitEvent) -> bool {
        self.commit == (commit.hash, commit.block, commit.log_index)
    }
}

/// Whether a verdict given `age` ago on the inputs `then` still holds for the inputs `now`.
pub fn holds(then: &VerdictInputs, now: &VerdictInputs, age: Duration) -> bool {
    then == now && !is_due(age)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs() -> VerdictInputs {
        let l1 = L1Ref { number: 7.into(), hash: B256::repeat_byte(7) };
        let at = |n: u64| L2Ref { number: n.into(), hash: B256::from_low_u64_be(n) };
        VerdictInputs { commit: (B256::repeat_byte(1), l1, 3), safe: Some(at(10)), local: Some(at(20)) }
    }

    #[test]
    fn c5_a_verdict_is_kept_until_something_under_it_changes() {
        let then = inputs();
        assert!(holds(&then, &inputs(), Duration::from_secs(599)));
        assert!(!holds(&then, &inputs(), KEEP_FOR));
        let other = L2Ref { number: 20.into(), hash: B256::repeat_byte(9) };
        let (hash, l1, log) = then.commit;
        let elsewhere = L1Ref { hash: B256::repeat_byte(9), ..l1 };
        for now in [
            VerdictInputs { commit: (B256::repeat_byte(2), l1, log), ..then },
            VerdictInputs { commit: (hash, elsewhere, log), ..then },
            VerdictInputs { commit: (hash, l1, 4), ..then },
            VerdictInputs { safe: None, ..then },
            VerdictInputs { local: Some(other), ..then },
        ] {
            assert!(!holds(&then, &now, Duration::ZERO));
        }
    }

    #[test]
    fn faults_that_may_pass_are_never_kept() {
        for reason in Reason::ALL {
            let may_pass = !reason.is_halt() && !matches!(reason, Reason::WouldSelfHeal | Reason::WouldFillGap);
            assert!(!may_pass || basis(*reason).is_none(), "{reason}");
        }
        assert_eq!(basis(Reason::Unbound), None);
    }
}
