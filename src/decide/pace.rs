//! Does reading on at once still get anywhere?
//!
//! Decided here: when a poll that asks for the next one at once must wait all the same. A poll makes progress if its
//! cursor reaches a place for the first time, reads again what it went back over, or goes back further than before. It
//! makes none if the cursor goes back to a place to which it already went back, or does not move. A few such polls may
//! come from an endpoint that was asked at a bad moment; more of them are a loop that must be seen (P9).

use crate::types::{Cursor, LogPos};

/// Polls without progress before one must wait.
pub const BARREN_MAX: u32 = 3;

/// Where a cursor is; none is before everything.
type Place = Option<LogPos>;

/// The polls since one last waited, or since the cursor last reached a new place.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    top: Place,
    low: Option<Place>,
    barren: u32,
}

impl Pace {
    /// Takes a poll that moved the cursor from `before` to `after` and asks for the next poll at once. Returns whether
    /// the next poll may follow at once.
    pub fn reads_on(&mut self, before: Option<&Cursor>, after: Option<&Cursor>) -> bool {
        let (before, after) = (place(before), place(after));
        if after > self.top {
            *self = Self { top: after, ..Self::default() };
            return true;
        }
        if after > before {
            return true;
        }
        if after < before && self.low.is_none_or(|low| after < low) {
            self.low = Some(after);
            return true;
        }
        self.barren = self.barren.saturating_add(1);
        self.barren <= BARREN_MAX
    }
}

fn place(cursor: Option<&Cursor>) -> Place {
    cursor.map(Cursor::pos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{B256, L1Ref};

    fn at(number: u64) -> Option<Cursor> {
        (number > 0).then(|| Cursor { block: L1Ref { number: number.into(), hash: B256::zero() }, log_index: None })
    }

    /// Every pair is a poll: the cursor before it and after it, zero for none.
    fn run(polls: &[(u64, u64)]) -> Vec<bool> {
        let mut pace = Pace::default();
        polls.iter().map(|&(before, after)| pace.reads_on(at(before).as_ref(), at(after).as_ref())).collect()
    }

    #[test]
    fn p9_polls_that_get_somewhere_never_wait() {
        let catching_up: Vec<_> = (0..100).map(|n| (n, n + 1)).collect();
        let walking_back: Vec<_> = (1..100).rev().map(|n| (n + 1, n)).collect();
        let reading_again: Vec<_> = (1..100).map(|n| (n, n + 1)).collect();
        let all = [catching_up, walking_back, reading_again].concat();
        assert!(run(&all).into_iter().all(|on| on));
    }

    #[test]
    fn p9_polls_that_get_nowhere_wait_after_a_few() {
        let expected = [true, true, true, true, false, false];
        assert_eq!(run(&[(0, 9), (9, 9), (9, 9), (9, 9), (9, 9), (9, 9)]), expected);
        assert_eq!(run(&[(0, 0); 6])[2..], [true, false, false, false]);
        // The cursor moves back and forth between the same two places.
        let cycle = [(50, 10), (10, 50)];
        let polls = [[(0, 50)].as_slice(), &cycle.repeat(6)].concat();
        let waits: Vec<_> = run(&polls).into_iter().enumerate().filter(|(_, on)| !on).map(|(n, _)| n).collect();
        assert_eq!(waits, [9, 11], "only where it goes back");
    }

    #[test]
    fn p9_a_new_block_forgets_what_was_in_vain() {
        let vain = [(9, 9); 3];
        let polls = [[(0, 9)].as_slice(), &vain, &[(9, 10)], &[(10, 10); 4]].concat();
        assert_eq!(run(&polls), [[true; 8].as_slice(), &[false]].concat());
    }
}
