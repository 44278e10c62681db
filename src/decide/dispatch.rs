//! Consistent, self-heal, fill-gap or wait?
//!
//! The case table, in two looks: the first decides whether the blob must be fetched at all, the second what to do about
//! its content.

use crate::decide::liveness::HeadTrend;
use crate::decide::reconcile::Difference;
use crate::types::L2Number;

/// What is known before any blob is fetched.
#[derive(Clone, Copy, Debug)]
pub struct FirstFacts {
    /// The batch's last block.
    pub last: L2Number,
    /// The node's head, from the poll's one snapshot or the worker's own last write.
    pub head: L2Number,
    /// The poll's verdict.
    pub verdict: HeadTrend,
    /// Whether the batch lies before the single-sequencer switch.
    pub before_switch: bool,
    /// Whether the local blocks give L1's versioned hashes; none if some are missing, or if they were not encoded
    /// because every batch is checked against its fetched blob.
    pub same_bytes: Option<bool>,
}

/// The first look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstLook {
    /// The local blocks are what L1 committed to.
    Consistent,
    /// Only the blob can decide, or only the blob has the blocks.
    FetchBlob,
    /// The blocks are missing; the node is expected to bring them.
    Wait,
    /// The blocks are missing and must never be derived from L1.
    WaitBeforeSwitch,
}

/// Whether a node whose head is `head` has a block at `number`. A node that was killed still answers for blocks above
/// its fallen head (E19), so only the head counts.
pub fn is_present(number: L2Number, head: L2Number) -> bool {
    number <= head
}

/// Whether a batch whose parent block is at `parent_timestamp`, in seconds, lies before the single-sequencer switch at
/// `switch_ms`, in milliseconds. The blocks' own times are known only after the blob was fetched, so the parent's time
/// counts: a batch that begins on or across the switch is taken for one before it, since such blocks must never be
/// derived from L1.
pub const fn is_before_switch(parent_timestamp: u64, switch_ms: u64) -> bool {
    parent_timestamp.saturating_mul(1000) < switch_ms
}

/// Decides what can be decided without the blob.
pub fn first_look(facts: &FirstFacts) -> FirstLook {
    if is_present(facts.last, facts.head) {
        return match facts.same_bytes {
            Some(true) => FirstLook::Consistent,
            Some(false) | None => FirstLook::FetchBlob,
        };
    }
    if facts.before_switch {
        return FirstLook::WaitBeforeSwitch;
    }
    match facts.verdict {
        HeadTrend::Stopped => FirstLook::FetchBlob,
        HeadTrend::Alive | HeadTrend::Unknown(_) => FirstLook::Wait,
    }
}

/// What is known after the blob was decoded and compared block by block.
#[derive(Clone, Copy, Debug)]
pub struct SecondFacts {
    /// Whether the batch's last block is present locally.
    pub present: bool,
    /// The first difference between the content and the local blocks that are there.
    pub difference: Option<Difference>,
    /// Whether the local bytes were found to differ before the blob was fetched.
    pub bytes_differed: bool,
    /// Whether the batch lies before the single-sequencer switch.
    pub before_switch: bool,
}

/// The second look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecondLook {
    /// Same content. With `drift`, the bytes differ from ours: counted, never a divergence.
    Consistent {
        /// Whether the encoder drifted.
        drift: bool,
    },
    /// Local blocks differ and are rewritten.
    SelfHeal,
    /// Local blocks differ, but lie before the switch. Consensus agreed on such blocks, and they are never derived from
    /// L1: a divergence that nothing here may repair.
    DivergesBeforeSwitch,
    /// Local blocks are missing and are written.
    FillGap,
}

/// Decides what to do about the blob's content.
pub fn after_rebuild(facts: &SecondFacts) -> SecondLook {
    match (facts.present, facts.difference) {
        (true, None) => SecondLook::Consistent { drift: facts.bytes_differed },
        (true, Some(_)) if facts.before_switch => SecondLook::DivergesBeforeSwitch,
        (true, Some(_)) => SecondLook::SelfHeal,
        (false, _) => SecondLook::FillGap,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::liveness::Unknown;
    use crate::decide::reconcile::Field;

    const ALIVE: HeadTrend = HeadTrend::Alive;
    const STOPPED: HeadTrend = HeadTrend::Stopped;
    const UNKNOWN: HeadTrend = HeadTrend::Unknown(Unknown::FirstSample);

    #[test]
    fn the_parent_tells_whether_a_batch_lies_before_the_switch() {
        for (parent, switch_ms, expected) in [
            (99, 100_000, true),
            (100, 100_000, false),
            (100, 100_001, true),
            (0, 0, false),
            (u64::MAX, u64::MAX, false),
        ] {
            assert_eq!(is_before_switch(parent, switch_ms), expected, "{parent} s, {switch_ms} ms");
        }
    }

    #[test]
    fn the_whole_case_table_first_look() {
        use FirstLook::{Consistent, FetchBlob, Wait, WaitBeforeSwitch};
        for verdict in [ALIVE, STOPPED, UNKNOWN] {
            for before_switch in [false, true] {
                let facts =
                    |same_bytes| FirstFacts { last: 10.into(), head: 10.into(), verdict, before_switch, same_bytes };
                assert_eq!(first_look(&facts(Some(true))), Consistent);
                assert_eq!(first_look(&facts(Some(false))), FetchBlob);
                assert_eq!(first_look(&facts(None)), FetchBlob);
            }
        }
        let missing = |verdict, before_switch| {
            first_look(&FirstFacts { last: 10.into(), head: 9.into(), verdict, before_switch, same_bytes: None })
        };
        assert_eq!(missing(STOPPED, false), FetchBlob);
        assert_eq!(missing(ALIVE, false), Wait);
        assert_eq!(missing(UNKNOWN, false), Wait);
        for verdict in [ALIVE, STOPPED, UNKNOWN] {
            assert_eq!(missing(verdict, true), WaitBeforeSwitch);
        }
    }

    #[test]
    fn the_whole_case_table_second_look() {
        let difference = Some(Difference { number: 3.into(), field: Field::Timestamp });
        let look = |present, difference, bytes_differed, before_switch| {
            after_rebuild(&SecondFacts { present, difference, bytes_differed, before_switch })
        };
        for before_switch in [false, true] {
            assert_eq!(look(true, None, false, before_switch), SecondLook::Consistent { drift: false });
            assert_eq!(look(true, None, true, before_switch), SecondLook::Consistent { drift: true });
        }
        for bytes_differed in [false, true] {
            assert_eq!(look(true, difference, bytes_differed, false), SecondLook::SelfHeal);
            assert_eq!(look(true, difference, bytes_differed, true), SecondLook::DivergesBeforeSwitch);
        }
        // Missing blocks from before the switch never reach the second look.
        assert_eq!(look(false, None, false, false), SecondLook::FillGap);
        assert_eq!(look(false, difference, false, false), SecondLook::FillGap);
    }
}
