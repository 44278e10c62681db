//! Do the logs of an L1 range lie on one chain, and does that chain build on what is recorded?
//!
//! Decided here: which headers are needed, and what they show (B1). Between two requests L1 may reorganise, or another
//! endpoint on another fork may answer. So what was read is accepted only if everything in it fits together *and*
//! builds on the last block that was read before. Without the second check no later poll would notice the change
//! either, since what is recorded would then already lie on the new chain. The flow sends the requests, and reads again
//! if the answer is no.

use std::fmt;

use crate::types::{B256, L1Event, L1Header, L1Number, L1Ref};

/// What was read of a range, and what was known before.
#[derive(Clone, Copy, Debug)]
pub struct RangeFacts<'a> {
    /// First block of the range that was asked for.
    pub from: L1Number,
    /// Recorded blocks that the range must agree with: the parent of its first block, or any of its own.
    pub known: &'a [L1Ref],
    /// The last block of the range that was asked for, as it was read before the logs.
    pub before: L1Ref,
    /// The last block of every piece in which the logs came, as it was shown with them. The last entry says how far the
    /// logs reach.
    pub ends: &'a [L1Ref],
    /// The logs.
    pub events: &'a [L1Event],
    /// Headers that were read after the logs in one exchange, at the [`heights`] that were asked for.
    pub headers: &'a [(L1Number, Option<L1Header>)],
}

/// Why a range that was read is no part of the recorded chain: L1 changed meanwhile, or two forks answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeFault {
    /// A block that must exist is missing.
    Unknown(L1Number),
    /// This block does not build on the one below it.
    Unlinked(L1Number),
    /// At a recorded block's height, or below the range, the chain differs.
    OtherGround {
        /// What is recorded.
        recorded: L1Ref,
        /// What the chain that was read has there.
        actual: B256,
    },
    /// The range's last block changed while the logs were read.
    EndChanged(L1Number),
    /// The logs were read on a chain that does not have this block.
    OtherChain(L1Number),
    /// A log lies in this block, which is not on the chain.
    StrayLog(L1Ref),
}

impl fmt::Display for RangeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(number) => write!(f, "L1 block {number} is unknown"),
            Self::Unlinked(number) => write!(f, "L1 block {number} does not build on the one below it"),
            Self::OtherGround { recorded, actual } => {
                write!(f, "L1 block {recorded} was read before, the chain has {actual:?} in its place")
            }
            Self::EndChanged(number) => write!(f, "L1 block {number} changed while its logs were read"),
            Self::OtherChain(number) => write!(f, "the logs up to L1 block {number} were read on another chain"),
            Self::StrayLog(block) => write!(f, "a log lies in {block}, which is not canonical"),
        }
    }
}

/// The heights whose headers [`check`] needs, ascending, besides those in `window`.
pub fn heights(facts: &RangeFacts<'_>, window: impl IntoIterator<Item = L1Number>) -> Vec<L1Number> {
    let known = facts.known.iter().map(|block| block.number).filter(|number| *number >= facts.from);
    let mut numbers: Vec<_> = facts.ends.iter().map(|end| end.number).collect();
    numbers.extend(facts.events.iter().map(|event| event.block.number));
    numbers.extend([facts.from, facts.before.number]);
    numbers.extend(known);
    numbers.extend(window);
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

/// The chain as far as the logs reach, if everything that was read lies on it and it builds on what is known.
pub fn check(facts: &RangeFacts<'_>) -> Result<Vec<L1Header>, RangeFault> {
    let mut chain: Vec<L1Header> = Vec::with_capacity(facts.headers.len());
    for (number, header) in facts.headers {
        let Some(header) = header.filter(|header| header.number == *number) else {
            return Err(RangeFault::Unknown(*number));
        };
        let follows = chain.last().filter(|below| below.number.plus(1) == header.number);
        if follows.is_some_and(|below| below.hash != header.parent_hash) {
            return Err(RangeFault::Unlinked(header.number));
        }
        chain.push(header);
    }
    let at = |number: L1Number| chain.binary_search_by_key(&number, |h| h.number).ok().and_then(|i| chain.get(i));
    let holds = |block: &L1Ref| at(block.number).is_some_and(|header| header.hash == block.hash);
    for recorded in facts.known {
        let actual = if recorded.number.plus(1) == facts.from {
            at(facts.from).map(|header| header.parent_hash)
        } else {
            at(recorded.number).map(|header| header.hash)
        };
        match actual {
            Some(actual) if actual != recorded.hash => {
                return Err(RangeFault::OtherGround { recorded: *recorded, actual });
            }
            Some(_) => {}
            None => return Err(RangeFault::Unknown(recorded.number)),
        }
    }
    if !holds(&facts.before) {
        return Err(RangeFault::EndChanged(facts.before.number));
    }
    // If a range has no logs, only its ends show on which chain it was read.
    let inside = |number: L1Number| number >= facts.from && number <= facts.before.number;
    let Some(end) = facts.ends.last().filter(|end| inside(end.number) && facts.ends.iter().all(holds)) else {
        return Err(RangeFault::OtherChain(facts.before.number));
    };
    let stray = |event: &&L1Event| event.block.number > end.number || !holds(&event.block);
    if let Some(stray) = facts.events.iter().find(stray) {
        return Err(RangeFault::StrayLog(stray.block));
    }
    chain.retain(|header| header.number <= end.number);
    Ok(chain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::L1EventKind;

    /// Block `number` of fork `salt`: forks differ from block 13 on.
    fn block(number: u64, salt: u8) -> L1Ref {
        let salt = if number < 13 { 0 } else { salt };
        let hash = B256::from_low_u64_be(number * 256 + u64::from(salt));
        L1Ref { number: number.into(), hash }
    }

    fn header(number: u64, salt: u8) -> L1Header {
        let L1Ref { number: at, hash } = block(number, salt);
        let parent_hash = number.checked_sub(1).map(|below| block(below, salt).hash).unwrap_or_default();
        L1Header { number: at, hash, parent_hash, timestamp: 0 }
    }

    fn log(block: L1Ref) -> L1Event {
        let kind = L1EventKind::Commit { index: 1.into(), hash: B256::zero() };
        L1Event { block, log_index: 0, tx_hash: B256::zero(), tx_index: 0, kind }
    }

    /// Blocks 15 to 20 with a log in 17, each part from a fork of its own.
    struct Parts {
        known: Vec<L1Ref>,
        before: u8,
        ends: Vec<L1Ref>,
        log: u8,
        headers: u8,
    }

    /// All of fork 1, on the block below.
    fn honest() -> Parts {
        Parts { known: vec![block(14, 1)], before: 1, ends: vec![block(17, 1), block(20, 1)], log: 1, headers: 1 }
    }

    fn verdict(parts: &Parts, swap: impl Fn(u64, L1Header) -> Option<L1Header>) -> Result<Vec<u64>, RangeFault> {
        let events = [log(block(17, parts.log))];
        let facts = RangeFacts {
            from: 15.into(),
            known: &parts.known,
            before: block(20, parts.before),
            ends: &parts.ends,
            events: &events,
            headers: &[],
        };
        let numbers = heights(&facts, [18.into(), 19.into()]);
        let headers: Vec<_> = numbers.into_iter().map(|n| (n, swap(n.get(), header(n.get(), parts.headers)))).collect();
        let chain = check(&RangeFacts { headers: &headers, ..facts })?;
        Ok(chain.iter().map(|h| h.number.get()).collect())
    }

    fn straight(parts: &Parts) -> Result<Vec<u64>, RangeFault> {
        verdict(parts, |_, header| Some(header))
    }

    #[test]
    fn m4_b1_a_range_is_taken_if_all_of_it_lies_on_one_chain_that_builds_on_what_is_known() {
        let all = Ok(vec![15, 17, 18, 19, 20]);
        assert_eq!(straight(&honest()), all);
        assert_eq!(straight(&Parts { known: vec![], ..honest() }), all, "nothing was read before");
        assert_eq!(straight(&Parts { known: vec![block(15, 1)], ..honest() }), all, "inside the first block");
        let whole = (14..=20).map(|n| block(n, 1)).collect();
        assert_eq!(straight(&Parts { known: whole, ..honest() }), Ok((15..=20).collect()));
    }

    #[test]
    fn m4_b1_every_part_of_another_fork_is_noticed() {
        let ground = |n, salt| RangeFault::OtherGround { recorded: block(n, 2), actual: block(n, salt).hash };
        let table = [
            ("the ground", Parts { known: vec![block(14, 2)], ..honest() }, ground(14, 1)),
            ("the cursor's own block", Parts { known: vec![block(15, 2)], ..honest() }, ground(15, 1)),
            ("a recorded block in it", Parts { known: vec![block(14, 1), block(16, 2)], ..honest() }, ground(16, 1)),
            ("its end", Parts { before: 2, ..honest() }, RangeFault::EndChanged(20.into())),
            (
                "a piece",
                Parts { ends: vec![block(17, 2), block(20, 1)], ..honest() },
                RangeFault::OtherChain(20.into()),
            ),
            ("the last piece", Parts { ends: vec![block(20, 2)], ..honest() }, RangeFault::OtherChain(20.into())),
            ("no piece", Parts { ends: vec![], ..honest() }, RangeFault::OtherChain(20.into())),
            ("a piece beyond", Parts { ends: vec![block(21, 1)], ..honest() }, RangeFault::OtherChain(20.into())),
            ("a piece below", Parts { ends: vec![block(14, 1)], ..honest() }, RangeFault::OtherChain(20.into())),
            (
                "a log beyond the last piece",
                Parts { ends: vec![block(16, 1)], ..honest() },
                RangeFault::StrayLog(block(17, 1)),
            ),
            ("the log", Parts { log: 2, ..honest() }, RangeFault::StrayLog(block(17, 2))),
        ];
        for (what, parts, fault) in table {
            assert_eq!(straight(&parts), Err(fault), "{what}");
        }
        // All of it is from the other fork: only the recorded block below the range shows that.
        let other = Parts { known: vec![block(14, 1)], before: 2, ends: vec![block(20, 2)], log: 2, headers: 2 };
        let fault = RangeFault::OtherGround { recorded: block(14, 1), actual: block(14, 2).hash };
        assert_eq!(straight(&other), Err(fault));
        assert!(straight(&Parts { known: vec![block(12, 1)], ..other }).is_err(), "what cannot be compared is no yes");
    }

    #[test]
    fn m16_a_range_that_was_answered_in_part_is_as_long_as_its_last_piece() {
        let short = |ends| straight(&Parts { ends, ..honest() });
        assert_eq!(short(vec![block(17, 1)]), Ok(vec![15, 17]));
        assert_eq!(short(vec![block(16, 1), block(18, 1)]), Ok(vec![15, 16, 17, 18]));
        let fault = RangeFault::EndChanged(20.into());
        assert_eq!(straight(&Parts { ends: vec![block(17, 1)], before: 2, ..honest() }), Err(fault));
    }

    #[test]
    fn m4_b1_headers_that_change_while_they_are_read_are_noticed() {
        let from = |first: u64| move |n: u64, h: L1Header| Some(if n >= first { header(n, 2) } else { h });
        assert_eq!(verdict(&honest(), from(18)), Err(RangeFault::Unlinked(18.into())));
        assert_eq!(verdict(&honest(), from(17)), Err(RangeFault::EndChanged(20.into())), "16 was not asked for");
        let missing = |n: u64, h: L1Header| (n != 18).then_some(h);
        assert_eq!(verdict(&honest(), missing), Err(RangeFault::Unknown(18.into())));
        let misplaced = |n: u64, h: L1Header| Some(if n == 18 { header(19, 1) } else { h });
        assert_eq!(verdict(&honest(), misplaced), Err(RangeFault::Unknown(18.into())));
    }
}
