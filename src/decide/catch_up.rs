//! How fast does a worker that is behind get on, and how long will it take?
//!
//! Decided here: when that is said, and how it is measured: over the time since it was said last, so that it follows a
//! change. The time left comes from L1: how many blocks are left to read, at the speed at which they were read. How
//! many batches they hold is not known before.

use std::time::Duration;

use crate::types::L1Number;

/// How often it is said.
pub const EVERY: Duration = Duration::from_secs(60);

/// What one poll did.
#[derive(Clone, Copy, Debug)]
pub struct PollFacts {
    /// When it ended, by a clock that only goes forward.
    pub now: Duration,
    /// Whether there is more to read at once.
    pub behind: bool,
    /// Batches verified.
    pub batches: u64,
    /// Their blocks.
    pub blocks: u64,
    /// How far L1 was read.
    pub cursor: L1Number,
    /// How far it can be read.
    pub confirmed: L1Number,
}

/// How a catch-up gets on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// L2 blocks verified a second.
    pub blocks_per_second: f64,
    /// Batches verified since the catch-up began.
    pub batches: u64,
    /// The time that the rest takes at this speed; none if nothing was read.
    pub left: Option<Duration>,
}

/// A catch-up under way.
#[derive(Clone, Copy, Debug, Default)]
pub struct CatchUp {
    since: Option<Since>,
    batches: u64,
}

/// What is measured from.
#[derive(Clone, Copy, Debug)]
struct Since {
    at: Duration,
    cursor: L1Number,
    blocks: u64,
}

impl CatchUp {
    /// Takes a poll. Gives what is to be said now, if anything.
    pub fn polled(&mut self, poll: &PollFacts) -> Option<Progress> {
        if !poll.behind {
            *self = Self::default();
            return None;
        }
        let Some(mut since) = self.since else {
            // What the first poll did was not timed.
            self.batches = poll.batches;
            self.since = Some(Since { at: poll.now, cursor: poll.cursor, blocks: 0 });
            return None;
        };
        self.batches = self.batches.saturating_add(poll.batches);
        since.blocks = since.blocks.saturating_add(poll.blocks);
        let time = poll.now.saturating_sub(since.at);
        if time < EVERY {
            self.since = Some(since);
            return None;
        }
        self.since = Some(Since { at: poll.now, cursor: poll.cursor, blocks: 0 });
        let read = poll.cursor.get().saturating_sub(since.cursor.get());
        let rest = poll.confirmed.get().saturating_sub(poll.cursor.get());
        Some(Progress {
            blocks_per_second: per_second(since.blocks, time),
            batches: self.batches,
            left: time.checked_mul(bounded(rest)).and_then(|all| all.checked_div(bounded(read))),
        })
    }
}

fn per_second(count: u64, time: Duration) -> f64 {
    f64::from(bounded(count)) / time.as_secs_f64()
}

/// No minute sees so many blocks.
fn bounded(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Polls of a worker that reads `l1` L1 blocks, two batches and 1,200 blocks every `seconds`, up to L1 block 10,000.
    fn run(polls: u64, seconds: u64, l1: u64) -> Vec<Progress> {
        let mut catch_up = CatchUp::default();
        let poll = |n: u64| PollFacts {
            now: Duration::from_secs(n * seconds),
            behind: true,
            batches: 2,
            blocks: 1_200,
            cursor: (n * l1).into(),
            confirmed: 10_000.into(),
        };
        (0..polls).filter_map(|n| catch_up.polled(&poll(n))).collect()
    }

    #[test]
    fn the_speed_is_said_once_a_minute_with_the_time_that_the_rest_takes() {
        assert_eq!(run(6, 10, 100), []);
        let said = run(13, 10, 100);
        let left = |seconds| Some(Duration::from_secs(seconds));
        // 600 L1 blocks a minute: of 10,000 there are 9,400 left, then 8,800.
        let expected = [(14, left(940)), (26, left(880))].map(|(batches, left)| Progress {
            blocks_per_second: 120.0,
            batches,
            left,
        });
        assert_eq!(said, expected);
    }

    #[test]
    fn a_poll_that_takes_long_says_it_at_its_end_and_one_that_reads_nothing_gives_no_time() {
        assert_eq!(run(3, 300, 100).len(), 2);
        assert_eq!(run(2, 300, 0).first().map(|said| said.left), Some(None));
        assert_eq!(run(2, 300, 10_000).first().map(|said| said.left), Some(Some(Duration::ZERO)));
    }

    #[test]
    fn a_worker_that_has_caught_up_says_nothing_and_begins_anew() {
        let mut catch_up = CatchUp::default();
        let poll = |now: u64, behind: bool| PollFacts {
            now: Duration::from_secs(now),
            behind,
            batches: 1,
            blocks: 600,
            cursor: now.into(),
            confirmed: 1_000.into(),
        };
        let polls = [(0, true), (59, true), (61, false), (70, true), (129, true), (130, true)];
        let said: Vec<_> = polls.iter().map(|&(now, behind)| catch_up.polled(&poll(now, behind))).collect();
        assert_eq!(said[..5], [None; 5]);
        let expected = Progress { blocks_per_second: 20.0, batches: 3, left: Some(Duration::from_secs(870)) };
        assert_eq!(said[5], Some(expected));
    }
}
