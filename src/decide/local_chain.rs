//! What of the verified chain does the node still hold, and where do our heads go?
//!
//! A node that was killed comes back with a lower head; another writer may have rewritten blocks that a stored outcome
//! covers. Safe goes down to the highest verified block that the node holds; finalized never moves. If the node has
//! *another* block in place of the finalized one, that is no loss but a divergence, and nothing moves.

use crate::decide::dispatch::is_present;
use crate::decide::heads::Heads;
use crate::types::{BatchRecord, L2Number, L2Ref};

/// Verified blocks that the node lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The first of them.
    pub from: L2Number,
    /// The last of them, as far as they were verified.
    pub to: L2Number,
}

impl Lost {
    /// What a start finds. Outcomes are kept after a loss, so a standing batch above safe shows it. So does a finalized
    /// head above safe, whose batch may be reverted (M3). `tip` is the standing batch with the highest index.
    pub fn stored(heads: &Heads, tip: Option<&BatchRecord>) -> Option<Self> {
        let from = heads.safe().map_or(L2Number::new(0), |s| s.number).plus(1);
        let last = tip.and_then(|tip| tip.last);
        let to = last.into_iter().chain(heads.finalized()).map(|head| head.number).max()?;
        (to >= from).then_some(Self { from, to })
    }

    /// What is still missing if the node's head is `head`; none if all is back.
    #[must_use]
    pub fn still(self, head: L2Number) -> Option<Self> {
        (head < self.to).then_some(self)
    }

    /// What is missing after the node, whose head is `head`, lost blocks up to the old `safe` and safe went down to
    /// `new_safe`. `before` is what was missing already.
    #[must_use]
    pub fn more(before: Option<Self>, safe: L2Number, new_safe: Option<L2Ref>, head: L2Number) -> Self {
        let to = before.map_or(safe, |before| before.to.max(safe));
        Self { from: new_safe.map_or(head, |s| s.number).plus(1), to }
    }
}

/// What the node was found to hold, if it no longer holds our safe block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldFacts {
    /// Our heads so far.
    pub heads: Heads,
    /// The last block of the highest standing batch that the node holds; none if it holds none.
    pub batch_end: Option<L2Ref>,
    /// The node holds our finalized block.
    pub holds_finalized: bool,
    /// The node's head.
    pub head: L2Number,
}

/// What follows for our heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// The heads now: safe on the highest verified block that the node holds.
    Back(Heads),
    /// The node has other blocks at or below the finalized head.
    DivergesBelowFinalized,
}

/// Where our heads go if the node no longer holds our safe block. Safe never goes below a finalized head that the node
/// holds, even if no batch ends on it any more (M3).
pub fn held(facts: &HeldFacts) -> Held {
    let finalized = facts.heads.finalized();
    let floor = finalized.filter(|_| facts.holds_finalized);
    let safe = facts.batch_end.into_iter().chain(floor).max_by_key(|head| head.number);
    let below = finalized.is_some_and(|f| safe.is_none_or(|s| s.number < f.number));
    if below && finalized.is_some_and(|f| is_present(f.number, facts.head)) {
        return Held::DivergesBelowFinalized;
    }
    Held::Back(facts.heads.node_lost(safe))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{B256, Case, L1Number, L1Ref, Outcome};

    fn at(number: u64) -> L2Ref {
        L2Ref { number: number.into(), hash: B256::from_low_u64_be(number) }
    }

    fn heads(safe: Option<u64>, finalized: Option<u64>) -> Heads {
        Heads::stored(safe.map(at), finalized.map(at))
    }

    #[test]
    fn e19_e20_m3_the_new_safe_head_when_the_node_lost_the_old_one() {
        use Held::{Back, DivergesBelowFinalized};
        // heads, end of the highest batch held, is finalized held, head → heads
        let table = [
            ((Some(20), Some(10)), Some(16), true, 18, Back(heads(Some(16), Some(10)))),
            // Down to finalized and no further, even if no batch ends there.
            ((Some(20), Some(10)), Some(8), true, 18, Back(heads(Some(10), Some(10)))),
            ((Some(20), Some(10)), None, true, 18, Back(heads(Some(10), Some(10)))),
            // The node lost the finalized block too: safe goes below finalized, which does not move.
            ((Some(20), Some(10)), Some(8), false, 9, Back(heads(Some(8), Some(10)))),
            ((Some(20), Some(10)), None, false, 3, Back(heads(None, Some(10)))),
            // It has another block there.
            ((Some(20), Some(10)), Some(8), false, 18, DivergesBelowFinalized),
            ((Some(20), Some(10)), None, false, 10, DivergesBelowFinalized),
            ((Some(20), None), Some(8), false, 18, Back(heads(Some(8), None))),
            ((Some(20), None), None, false, 18, Back(heads(None, None))),
        ];
        for ((safe, finalized), batch_end, holds_finalized, head, expected) in table {
            let heads = heads(safe, finalized);
            let facts = HeldFacts { heads, batch_end: batch_end.map(at), holds_finalized, head: head.into() };
            assert_eq!(held(&facts), expected, "{facts:?}");
        }
    }

    #[test]
    fn e19_what_is_missing_is_remembered_until_the_head_is_back() {
        let record = |last: u64| BatchRecord {
            index: 1.into(),
            hash: B256::zero(),
            l1: L1Ref { number: L1Number::new(1), hash: B256::zero() },
            log_index: 0,
            tx_hash: B256::zero(),
            outcome: Outcome::Verified,
            case: Some(Case::Consistent),
            first: None,
            last: Some(at(last)),
            post_state_root: B256::zero(),
            withdrawal_root: B256::zero(),
            total_l1_popped: 0,
            rewritten: 0,
            encoder_drift: false,
            blobs: 0,
        };
        let lost = |from: u64, to: u64| Some(Lost { from: from.into(), to: to.into() });
        assert_eq!(Lost::stored(&heads(Some(20), Some(10)), Some(&record(20))), None);
        assert_eq!(Lost::stored(&heads(Some(16), Some(10)), Some(&record(20))), lost(17, 20));
        assert_eq!(Lost::stored(&heads(Some(8), Some(10)), Some(&record(8))), lost(9, 10));
        assert_eq!(Lost::stored(&heads(None, None), Some(&record(20))), lost(1, 20));
        assert_eq!(Lost::stored(&heads(None, None), None), None);
        let missing = Lost::more(None, 20.into(), Some(at(16)), 18.into());
        assert_eq!(Some(missing), lost(17, 20));
        assert_eq!(Some(Lost::more(Some(missing), 16.into(), None, 5.into())), lost(6, 20));
        assert_eq!((missing.still(19.into()), missing.still(20.into())), (lost(17, 20), None));
    }
}
