//! How fast does the node write, and how much is sent to it at once?
//!
//! Decided here: what an answered write shows about the next one. A node takes 1 ms for a block or half a second
//! (morph-reth without a flag of its own; protocol.md, section 7), and only its answers show which. So a request holds
//! no more blocks than it answers in good time, and a pause is as long as its blocks take (L14).

use std::time::Duration;

/// A request should be answered within this time: a sixth of the engine's default deadline (60 s), and short enough
/// that little is lost when a pause ends.
const REQUEST: Duration = Duration::from_secs(10);

/// The longest pause that the measured speed may lead to: a consensus node that is paused for longer lags too far. What
/// does not fit is written in the next poll.
const LONGEST: Duration = Duration::from_secs(300);

/// What is known of the node's speed.
#[derive(Clone, Copy, Debug)]
pub struct WriteSpeed {
    /// The configured time for a block: used before anything is measured, and the least afterwards.
    assumed: Duration,
    /// Time for a block as the last writes showed it; zero before the first.
    measured: Duration,
}

impl WriteSpeed {
    /// Nothing measured yet.
    pub const fn new(assumed: Duration) -> Self {
        Self { assumed, measured: Duration::ZERO }
    }

    /// Takes a measurement: `blocks` blocks were answered after `took`. A slower speed counts at once, a faster one by
    /// half: one quick answer says little.
    pub fn measured(&mut self, blocks: usize, took: Duration) {
        let Some(each) = took.checked_div(u32::try_from(blocks).unwrap_or(u32::MAX)) else { return };
        let half_way = self.measured.saturating_add(each).checked_div(2).unwrap_or(each);
        // A request that hung for a whole pause counts as that long and no longer: a longer time would leave no room in
        // any pause.
        self.measured = if each >= self.measured { each.min(LONGEST) } else { half_way };
    }

    /// Time that a block takes.
    pub fn per_block(&self) -> Duration {
        self.assumed.max(self.measured)
    }

    /// How many blocks go into one request, `most` at most and one at least.
    pub fn chunk(&self, most: usize) -> usize {
        let each = self.per_block().as_millis().max(1);
        let fits = REQUEST.as_millis().checked_div(each).unwrap_or(1);
        usize::try_from(fits).unwrap_or(usize::MAX).min(most).max(1)
    }

    /// How much of a pause writing `blocks` blocks takes: as configured, or longer up to a bound if the node is slower.
    pub fn pause_for(&self, blocks: usize) -> Duration {
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        let configured = self.assumed.saturating_mul(blocks);
        self.per_block().saturating_mul(blocks).min(LONGEST).max(configured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn p4_a_request_that_hung_leaves_room_in_the_longest_pause() {
        let mut speed = WriteSpeed::new(ms(50));
        speed.measured(1, LONGEST * 4);
        assert_eq!(speed.per_block(), LONGEST);
        assert!(speed.pause_for(1) >= speed.per_block());
    }

    #[test]
    fn l14_requests_and_pauses_follow_what_was_measured() {
        let mut speed = WriteSpeed::new(ms(50));
        assert_eq!((speed.per_block(), speed.chunk(100), speed.pause_for(600)), (ms(50), 100, ms(30_000)));
        // A slow node: one block alone, then as many as ten seconds hold.
        speed.measured(1, ms(500));
        assert_eq!((speed.per_block(), speed.chunk(100)), (ms(500), 20));
        assert_eq!((speed.pause_for(100), speed.pause_for(6_000)), (ms(50_000), LONGEST));
        // It is faster from now on: the time falls by half of the difference, down to what is configured.
        for expected in [ms(255), ms(132) + Duration::from_micros(500), ms(71) + Duration::from_micros(250)] {
            speed.measured(100, ms(1_000));
            assert_eq!(speed.per_block(), expected);
        }
        speed.measured(100, ms(1_000));
        assert_eq!((speed.per_block(), speed.chunk(100)), (ms(50), 100));
        // Slower again: at once.
        speed.measured(10, ms(9_000));
        assert_eq!((speed.per_block(), speed.chunk(100)), (ms(900), 11));
        speed.measured(1, ms(60_000));
        assert_eq!(speed.chunk(100), 1, "one block at least");
        let before = speed.per_block();
        speed.measured(0, ms(1));
        assert_eq!(speed.per_block(), before, "nothing was written");
        // What is configured is the least, also beyond the bound.
        assert_eq!(WriteSpeed::new(ms(1_000)).pause_for(600), ms(600_000));
        assert_eq!(WriteSpeed::new(Duration::ZERO).chunk(100), 100);
    }
}
