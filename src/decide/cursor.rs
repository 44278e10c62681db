//! Where does the next L1 range begin and end, did L1 reorganise, and does L1 still grow?
//!
//! Decided here: the range of one poll, the common ancestor after a reorg, which commits of a range are reverted inside
//! it, and when L1's newest block is too old. The flow reads the headers and logs.

use std::time::Duration;

use crate::types::{BatchIndex, Cursor, L1Event, L1EventKind, L1Header, L1Number, L1Ref, LogPos};

/// The L1 blocks of one poll, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First block.
    pub from: L1Number,
    /// Last block.
    pub to: L1Number,
}

/// The next range after `cursor` (or from `start` if there is none), at most `width` blocks, up to `confirmed`. None if
/// everything confirmed has been read.
///
/// A cursor inside a block begins with that block again: its remaining logs are still to come.
pub fn next_range(cursor: Option<&Cursor>, start: L1Number, confirmed: L1Number, width: u64) -> Option<Range> {
    let from = match cursor {
        None => start,
        Some(Cursor { block, log_index: Some(_) }) => block.number,
        Some(Cursor { block, log_index: None }) => block.number.plus(1),
    };
    if from > confirmed {
        return None;
    }
    Some(Range { from, to: from.plus(width.max(1).saturating_sub(1)).min(confirmed) })
}

/// Walks over a stretch of L1 blocks from one end to the other, in windows that double. The target mostly lies near the
/// end at which the walk begins, and may lie at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    low: L1Number,
    high: L1Number,
    width: u64,
    upwards: bool,
    done: bool,
}

/// Widest window of a walk, in blocks.
const WIDEST_WINDOW: u64 = 100_000;

impl Walk {
    /// Over `low..=high`, the first window `width` blocks wide.
    pub fn new(low: L1Number, high: L1Number, upwards: bool, width: u64) -> Self {
        Self { low, high, width: width.clamp(1, WIDEST_WINDOW), upwards, done: low > high }
    }

    /// The next window; none after the whole stretch.
    pub fn window(&self) -> Option<Range> {
        self.piece(self.width)
    }

    /// The next `width` blocks; none after the whole stretch.
    pub fn piece(&self, width: u64) -> Option<Range> {
        let more = width.max(1).saturating_sub(1);
        match (self.done, self.upwards) {
            (true, _) => None,
            (false, true) => Some(Range { from: self.low, to: self.low.plus(more).min(self.high) }),
            (false, false) => Some(Range { from: self.high.minus(more).max(self.low), to: self.high }),
        }
    }

    /// The last window was searched up to block `reached`, seen from the start of the walk. What is left of it comes
    /// next. After a whole window the next one is twice as wide.
    pub fn advance(&mut self, reached: L1Number) {
        let Some(window) = self.window() else { return };
        self.pass(reached);
        let whole = if self.upwards { reached >= window.to } else { reached <= window.from };
        if whole {
            self.width = self.width.saturating_mul(2).min(WIDEST_WINDOW);
        }
    }

    /// Everything up to block `reached` was searched, seen from the start of the walk.
    pub fn pass(&mut self, reached: L1Number) {
        match self.upwards {
            true if reached >= self.high => self.done = true,
            true => self.low = self.low.max(reached.plus(1)),
            false if reached <= self.low => self.done = true,
            false => self.high = self.high.min(reached.minus(1)),
        }
    }
}

/// Whether `event` is still to be processed.
pub fn is_ahead(cursor: Option<&Cursor>, event: &L1Event) -> bool {
    let Some(cursor) = cursor else { return true };
    if event.block.number != cursor.block.number {
        return event.block.number > cursor.block.number;
    }
    cursor.log_index.is_some_and(|done| event.log_index > done)
}

/// Whether reading on from `cursor`, or from `start` if there is none, comes to the log at `pos`.
pub fn is_unread(cursor: Option<&Cursor>, start: L1Number, pos: LogPos) -> bool {
    match cursor {
        None => pos.block >= start,
        Some(_) => !has_passed(cursor, pos),
    }
}

/// Whether a log at `pos` was processed already.
pub fn has_passed(cursor: Option<&Cursor>, pos: LogPos) -> bool {
    cursor.is_some_and(|c| pos <= c.pos())
}

/// The batch before those that L1 took back last before the log at `pos`; the batch after it comes next again (P3).
/// Used if no batch stands. One call takes back several batches, with a log for each. None if nothing was taken back.
/// `reverts` are ordered.
pub fn taken_back_to(reverts: &[L1Event], pos: LogPos) -> Option<BatchIndex> {
    let before = || reverts.iter().filter(|revert| revert.pos() < pos);
    let call = before().next_back()?.tx_hash;
    let lowest = before().filter(|revert| revert.tx_hash == call).filter_map(|revert| match revert.kind {
        L1EventKind::Revert { index, .. } => Some(index),
        L1EventKind::Commit { .. } | L1EventKind::Finalize { .. } | L1EventKind::Message(_) => None,
    });
    lowest.min().filter(|index| index.get() > 0).map(|index| index.minus(1))
}

/// What the contract's own count shows about logs that an endpoint left out at the end of what is confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hidden {
    /// Nothing is missing.
    Nothing,
    /// The revert that takes down this batch, or a lower one that stands.
    RevertFrom(BatchIndex),
    /// The commit of this batch.
    Commit(BatchIndex),
}

/// Compares the contract's last committed index `there` with `ours`, the highest index that stands here. Left-out logs
/// leave no gap in the indices if they were the last ones (A1).
pub fn hidden(there: BatchIndex, ours: BatchIndex) -> Hidden {
    match there.cmp(&ours) {
        std::cmp::Ordering::Less => Hidden::RevertFrom(there.plus(1)),
        std::cmp::Ordering::Equal => Hidden::Nothing,
        std::cmp::Ordering::Greater => Hidden::Commit(ours.plus(1)),
    }
}

/// Whether the newest L1 block, made at `timestamp`, is older than `max_age` at `now` (both in seconds since the Unix
/// epoch). A `max_age` of zero switches the check off. A block from the future is never stale: the local clock is
/// wrong, not L1.
pub fn is_stale(timestamp: u64, now: u64, max_age: Duration) -> bool {
    !max_age.is_zero() && now.saturating_sub(timestamp) > max_age.as_secs()
}

/// What the recorded L1 blocks and the live headers show together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reorg {
    /// The newest recorded block is still canonical.
    None,
    /// The L1 node has no block at the newest recorded block's height. It lags, which proves nothing.
    Behind,
    /// Everything above this block is gone.
    To(L1Ref),
    /// Nothing in the window is canonical, and no block below it was ever read: start over from the first block.
    ToStart,
    /// The newest recorded block is canonical, but the cursor's own block, further down, is not: the cursor was moved
    /// back to a log that was found on another fork.
    StrayCursor,
    /// The common ancestor lies below the window.
    TooDeep {
        /// How many blocks the window holds.
        window: u64,
    },
}

/// Whether the cursor's block `at` is not canonical. `live` is the header at its height; a missing header proves
/// nothing.
pub fn is_stray(at: &L1Ref, live: Option<&L1Header>) -> bool {
    live.is_some_and(|header| header.l1_ref() != *at)
}

/// Finds the common ancestor. `recorded` is newest first; `live` holds the header at each recorded height, none if the
/// node has none. `start` is the first L1 block ever read.
pub fn find_reorg(recorded: &[L1Ref], live: &[Option<L1Header>], start: L1Number, window: u64) -> Reorg {
    let Some(newest) = recorded.first() else { return Reorg::None };
    let matches = |(at, header): (&L1Ref, &Option<L1Header>)| header.is_some_and(|h| h.hash == at.hash);
    match live.first() {
        None | Some(None) => return Reorg::Behind,
        Some(Some(header)) if header.hash == newest.hash => return Reorg::None,
        Some(Some(_)) => {}
    }
    let floor = newest.number.minus(window);
    match recorded.iter().zip(live).find(|&pair| matches(pair)) {
        Some((ancestor, _)) if ancestor.number >= floor => Reorg::To(*ancestor),
        // The ancestor lies below the window. The blocks in between are not recorded; L1 finality vouches for them.
        Some(_) => Reorg::TooDeep { window },
        // The window reaches down to the first block that was ever read: nothing lies below it.
        None if floor <= start => Reorg::ToStart,
        None => Reorg::TooDeep { window },
    }
}

/// The L1 block in which the commit at place `at` of `events` is reverted later in the same range; none if it is not.
pub fn reverted_later(events: &[L1Event], at: usize, index: BatchIndex) -> Option<L1Number> {
    let is_revert = |event: &&L1Event| matches!(event.kind, L1EventKind::Revert { index: it, .. } if it == index);
    events.iter().skip(at.saturating_add(1)).find(is_revert).map(|event| event.block.number)
}

/// What the index of a commit says about the chain of batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Continuity {
    /// It follows the standing batch before it, or is the first batch ever seen.
    Continues,
    /// Indices are missing, from this one on.
    Gap(BatchIndex),
    /// This index already stands under another commit, without a revert in between.
    Repeated,
}

/// Compares the index of a commit with the highest standing index before it on L1.
pub fn continuity(newest_before: Option<BatchIndex>, index: BatchIndex) -> Continuity {
    match newest_before {
        None => Continuity::Continues,
        Some(newest) if newest.plus(1) == index => Continuity::Continues,
        Some(newest) if newest >= index => Continuity::Repeated,
        Some(newest) => Continuity::Gap(newest.plus(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::B256;

    fn at(number: u64, salt: u8) -> L1Ref {
        L1Ref { number: number.into(), hash: B256::repeat_byte(salt) }
    }

    fn header(number: u64, salt: u8) -> Option<L1Header> {
        Some(L1Header { number: number.into(), hash: B256::repeat_byte(salt), parent_hash: B256::zero(), timestamp: 0 })
    }

    #[test]
    fn a1_p3_the_last_revert_determines_the_next_batch() {
        let revert = |index: u64, block: u64, log_index: u64, call: u8| L1Event {
            block: L1Ref { number: L1Number::new(block), hash: B256::from_low_u64_be(block) },
            tx_hash: B256::repeat_byte(call),
            tx_index: 0,
            log_index,
            kind: L1EventKind::Revert { index: index.into(), hash: B256::zero() },
        };
        // One call takes back 5 and 6, a later one 6 alone, the last one 0.
        let reverts = [revert(5, 10, 0, 1), revert(6, 10, 1, 1), revert(6, 20, 0, 2), revert(0, 30, 0, 3)];
        for (place, expected) in [
            ((9, 9), None),
            ((10, 0), None),
            ((10, 1), Some(4)),
            ((15, 0), Some(4)),
            ((25, 0), Some(5)),
            ((31, 0), None),
        ] {
            let found = taken_back_to(&reverts, LogPos::new(L1Number::new(place.0), place.1));
            assert_eq!(found.map(BatchIndex::get), expected, "{place:?}");
        }
    }

    #[test]
    fn a1_logs_that_are_missing_at_the_end_show_in_the_contracts_count() {
        let hidden = |there: u64, ours: u64| hidden(there.into(), ours.into());
        assert_eq!(hidden(7, 7), Hidden::Nothing);
        assert_eq!(hidden(4, 7), Hidden::RevertFrom(5.into()));
        assert_eq!(hidden(9, 7), Hidden::Commit(8.into()));
        assert_eq!(hidden(0, 0), Hidden::Nothing);
    }

    #[test]
    fn a2_ranges_are_inclusive_and_never_wider_than_asked() {
        let done = |n| Cursor { block: at(n, 1), log_index: None };
        let inside = |n| Cursor { block: at(n, 1), log_index: Some(3) };
        let cases = [
            (None, 10, 1000, 500, Some((10, 509))),
            (Some(done(99)), 10, 1000, 500, Some((100, 599))),
            (Some(inside(99)), 10, 1000, 500, Some((99, 598))),
            (Some(done(999)), 10, 1000, 500, Some((1000, 1000))),
            (Some(done(1000)), 10, 1000, 500, None),
            (None, 10, 9, 500, None),
            (None, 0, 100, 0, Some((0, 0))),
        ];
        for (cursor, start, confirmed, width, expected) in cases {
            let range = next_range(cursor.as_ref(), start.into(), confirmed.into(), width);
            assert_eq!(range.map(|r| (r.from.get(), r.to.get())), expected);
        }
    }

    #[test]
    fn a_walk_covers_every_block_once_from_either_end() {
        let windows = |low: u64, high: u64, upwards, width| {
            let mut walk = Walk::new(low.into(), high.into(), upwards, width);
            let mut windows = Vec::new();
            while let Some(window) = walk.window() {
                windows.push((window.from.get(), window.to.get()));
                walk.advance(if upwards { window.to } else { window.from });
            }
            assert_eq!(walk.window(), None);
            windows
        };
        assert_eq!(windows(10, 30, true, 2), [(10, 11), (12, 15), (16, 23), (24, 30)]);
        assert_eq!(windows(10, 30, false, 2), [(29, 30), (25, 28), (17, 24), (10, 16)]);
        assert_eq!(windows(0, 2, false, 0), [(2, 2), (0, 1)]);
        assert_eq!(windows(0, 0, false, 9), [(0, 0)]);
        assert_eq!(windows(7, 7, true, 9), [(7, 7)]);
        assert_eq!(windows(u64::MAX - 1, u64::MAX, true, 1), [(u64::MAX - 1, u64::MAX - 1), (u64::MAX, u64::MAX)]);
        assert_eq!(windows(8, 7, true, 1), []);
        let wide = windows(0, 1_000_000, true, 500);
        assert!(wide.iter().all(|(from, to)| to - from < WIDEST_WINDOW));
        assert!(wide.windows(2).all(|pair| pair[1].0 == pair[0].1 + 1));
    }

    #[test]
    fn m16_a_search_continues_where_a_window_was_left() {
        for (upwards, far) in [(true, 1_000), (false, 0)] {
            let mut walk = Walk::new(0.into(), 1_000.into(), upwards, 4);
            let mut seen = Vec::new();
            // Never more than three blocks of a window are answered.
            while let Some(window) = walk.window() {
                assert!(window.to.above(window.from) < 4, "a window that was cut short is no reason for a wider one");
                let piece = walk.piece(3).unwrap();
                seen.extend((piece.from.get()..=piece.to.get()).collect::<Vec<_>>());
                walk.advance(if upwards { piece.to } else { piece.from });
            }
            assert_eq!(seen.len(), 1_001, "no block twice");
            assert!(seen.contains(&far));
            // An answer that covers no block moves nothing.
            let mut walk = Walk::new(10.into(), 20.into(), upwards, 4);
            walk.advance(if upwards { 9.into() } else { 21.into() });
            assert_eq!(walk.window(), Walk::new(10.into(), 20.into(), upwards, 4).window());
        }
    }

    #[test]
    fn b4_the_ancestor_is_found_inside_the_window_only() {
        let recorded: Vec<_> = (36..=100).rev().map(|n| at(n, 1)).collect();
        for depth in [1_u64, 10, 64, 65] {
            let live: Vec<_> = recorded
                .iter()
                .map(|r| header(r.number.get(), if r.number.get() > 100 - depth { 2 } else { 1 }))
                .collect();
            let verdict = find_reorg(&recorded, &live, 0.into(), 64);
            if depth <= 64 {
                assert_eq!(verdict, Reorg::To(at(100 - depth, 1)));
            } else {
                assert_eq!(verdict, Reorg::TooDeep { window: 64 });
            }
        }
    }

    #[test]
    fn reorg_edges() {
        assert_eq!(find_reorg(&[], &[], 0.into(), 64), Reorg::None);
        assert_eq!(find_reorg(&[at(9, 1)], &[None], 0.into(), 64), Reorg::Behind);
        assert_eq!(find_reorg(&[at(9, 1)], &[header(9, 1)], 0.into(), 64), Reorg::None);
        assert_eq!(find_reorg(&[at(9, 1)], &[header(9, 2)], 5.into(), 64), Reorg::ToStart);
        // m10: the window reaches down to block 0 and no further.
        for newest in [9, 63, 64] {
            assert_eq!(find_reorg(&[at(newest, 1)], &[header(newest, 2)], 0.into(), 64), Reorg::ToStart);
        }
        assert_eq!(find_reorg(&[at(65, 1)], &[header(65, 2)], 0.into(), 64), Reorg::TooDeep { window: 64 });
        assert_eq!(find_reorg(&[at(90, 1)], &[header(90, 2)], 5.into(), 64), Reorg::TooDeep { window: 64 });
        let sparse = [at(90, 1), at(10, 1)];
        assert_eq!(find_reorg(&sparse, &[header(90, 2), header(10, 1)], 0.into(), 64), Reorg::TooDeep { window: 64 });
    }

    #[test]
    fn m4_a_cursor_is_stray_if_its_height_holds_another_block() {
        assert!(is_stray(&at(9, 1), header(9, 2).as_ref()));
        assert!(!is_stray(&at(9, 1), header(9, 1).as_ref()));
        assert!(!is_stray(&at(9, 1), None));
    }

    #[test]
    fn a5_l1_is_stale_by_its_newest_blocks_age() {
        let ten_minutes = Duration::from_secs(600);
        assert!(!is_stale(1_000, 1_600, ten_minutes));
        assert!(is_stale(1_000, 1_601, ten_minutes));
        assert!(!is_stale(2_000, 1_000, ten_minutes));
        assert!(!is_stale(0, 1_000_000, Duration::ZERO));
    }

    #[test]
    fn a_cursor_has_passed_what_was_dealt_with() {
        let whole = Cursor { block: at(9, 1), log_index: None };
        let inside = Cursor { block: at(9, 1), log_index: Some(3) };
        let cases = [(&whole, 8, 7, true), (&whole, 9, 7, true), (&whole, 10, 0, false), (&inside, 9, 3, true)];
        for (cursor, block, log, passed) in cases {
            assert_eq!(has_passed(Some(cursor), LogPos::new(block.into(), log)), passed);
        }
        assert!(!has_passed(Some(&inside), LogPos::new(9.into(), 4)));
        assert!(!has_passed(None, LogPos::new(0.into(), 0)));
    }

    #[test]
    fn c6_a_gap_is_named_by_its_first_missing_index() {
        assert_eq!(continuity(None, 7.into()), Continuity::Continues);
        assert_eq!(continuity(Some(6.into()), 7.into()), Continuity::Continues);
        assert_eq!(continuity(Some(4.into()), 7.into()), Continuity::Gap(5.into()));
        assert_eq!(continuity(Some(7.into()), 7.into()), Continuity::Repeated);
    }
}
