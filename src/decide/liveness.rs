//! Does the L2 head grow, has it stopped, or is neither proved?
//!
//! Decided here: the alive/stopped verdict of one poll. Not decided here: what follows from it (`dispatch`).
//!
//! The difference matters because *stopped* allows the worker to write blocks that a living sequencer would write
//! itself. So *stopped* needs proof, over a minimum of elapsed time and not of polls (a late tick makes two samples
//! seconds apart). A head that went down proves only a restart. Time counts only if the head could have been seen to
//! grow in it: the node answered, and its consensus node was not paused.

use std::time::Duration;

use crate::types::L2Number;

/// What the head's movement says, for one whole poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadTrend {
    /// The head grew since the last sample.
    Alive,
    /// The head stayed the same for at least the observation window.
    Stopped,
    /// Not known; treated like [`HeadTrend::Alive`].
    Unknown(Unknown),
}

/// Why there is no verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// There is nothing to compare with.
    FirstSample,
    /// Flat, but not for long enough.
    FlatFor {
        /// How long it has been flat.
        elapsed: Duration,
    },
    /// The head went down: the node restarted or lost blocks.
    WentDown {
        /// The head before.
        from: L2Number,
        /// The head now.
        to: L2Number,
    },
}

#[derive(Clone, Copy, Debug)]
struct Baseline {
    head: L2Number,
    /// Since when the head has been flat; none if that begins with the next sample.
    flat_since: Option<Duration>,
}

/// The samples seen so far. Held in memory only: a restarted worker has seen nothing.
#[derive(Clone, Debug)]
pub struct Liveness {
    window: Duration,
    baseline: Option<Baseline>,
}

impl Liveness {
    /// Nothing seen yet. `window` is the least time without growth that means *stopped*.
    pub const fn new(window: Duration) -> Self {
        Self { window, baseline: None }
    }

    /// Takes the poll's one sample: head `head` at `now` on a clock that only goes forward.
    pub fn observe(&mut self, head: L2Number, now: Duration) -> HeadTrend {
        let fresh = Baseline { head, flat_since: Some(now) };
        let Some(before) = &mut self.baseline else {
            self.baseline = Some(fresh);
            return HeadTrend::Unknown(Unknown::FirstSample);
        };
        if head > before.head {
            self.baseline = Some(fresh);
            return HeadTrend::Alive;
        }
        if head < before.head {
            let from = before.head;
            self.baseline = Some(fresh);
            return HeadTrend::Unknown(Unknown::WentDown { from, to: head });
        }
        let elapsed = now.saturating_sub(*before.flat_since.get_or_insert(now));
        if elapsed >= self.window { HeadTrend::Stopped } else { HeadTrend::Unknown(Unknown::FlatFor { elapsed }) }
    }

    /// Reports that the worker itself moved the head to `head`. That is neither growth nor a fall: the head's flat time
    /// continues to count.
    pub fn own_write(&mut self, head: L2Number) {
        if let Some(baseline) = &mut self.baseline {
            baseline.head = head;
        }
    }

    /// Reports that the head could not have been seen to grow since the last sample: the node did not answer or was
    /// syncing, or its consensus node was paused. The head's flat time begins anew with the next sample.
    pub fn interrupted(&mut self) {
        if let Some(baseline) = &mut self.baseline {
            baseline.flat_since = None;
        }
    }

    /// Reports that the worker itself paused the consensus node for a while, in a poll whose verdict was `verdict`. A
    /// chain that was proved to have stopped before does not become unknown by that.
    pub fn paused(&mut self, verdict: HeadTrend) {
        match verdict {
            HeadTrend::Stopped => {}
            HeadTrend::Alive | HeadTrend::Unknown(_) => self.interrupted(),
        }
    }

    /// Reports that the worker wrote and does not know how far. The next sample is a first one again, so that the
    /// worker's own blocks are not taken for growth.
    pub fn own_write_unknown(&mut self) {
        self.baseline = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(60);

    fn run(samples: &[(u64, u64)]) -> Vec<HeadTrend> {
        let mut liveness = Liveness::new(WINDOW);
        samples.iter().map(|&(head, at)| liveness.observe(L2Number::new(head), Duration::from_secs(at))).collect()
    }

    #[test]
    fn first_sample_is_never_a_verdict() {
        assert_eq!(run(&[(5, 1000)]), [HeadTrend::Unknown(Unknown::FirstSample)]);
    }

    #[test]
    fn e7_a_head_that_went_down_is_neither_alive_nor_stopped() {
        let verdicts = run(&[(100, 0), (80, 15), (80, 30), (80, 74), (80, 75)]);
        assert_eq!(verdicts[1], HeadTrend::Unknown(Unknown::WentDown { from: 100.into(), to: 80.into() }));
        assert_eq!(verdicts[3], HeadTrend::Unknown(Unknown::FlatFor { elapsed: Duration::from_secs(59) }));
        assert_eq!(verdicts[4], HeadTrend::Stopped);
    }

    #[test]
    fn e8_elapsed_time_counts_and_not_the_number_of_polls() {
        let verdicts = run(&[(7, 0), (7, 1), (7, 2), (7, 3), (7, 59), (7, 60)]);
        assert!(verdicts[1..5].iter().all(|v| matches!(v, HeadTrend::Unknown(Unknown::FlatFor { .. }))));
        assert_eq!(verdicts[5], HeadTrend::Stopped);
    }

    #[test]
    fn growth_is_alive_and_restarts_the_window() {
        let verdicts = run(&[(7, 0), (8, 59), (8, 100), (8, 119)]);
        assert_eq!(verdicts[1], HeadTrend::Alive);
        assert!(matches!(verdicts[2], HeadTrend::Unknown(_)));
        assert_eq!(verdicts[3], HeadTrend::Stopped);
    }

    #[derive(Clone, Copy)]
    enum Step {
        Sample(u64),
        Interrupted,
        Paused,
        Wrote(u64),
    }

    /// A name, the steps with their seconds, and whether the last sample says *stopped*.
    type Case = (&'static str, &'static [(Step, u64)], bool);

    #[test]
    fn m8_only_time_counts_in_which_the_head_could_have_grown_under_our_eyes() {
        use Step::{Interrupted, Paused, Sample, Wrote};
        let table: [Case; 9] = [
            ("flat", &[(Sample(100), 0), (Sample(101), 15), (Sample(101), 75)], true),
            ("not asked", &[(Sample(100), 0), (Sample(101), 15), (Interrupted, 30), (Sample(101), 135)], false),
            (
                "not asked, then a window",
                &[(Sample(101), 15), (Interrupted, 30), (Sample(101), 135), (Sample(101), 194), (Sample(101), 195)],
                true,
            ),
            (
                "not asked at the end",
                &[(Sample(101), 0), (Sample(101), 59), (Interrupted, 60), (Sample(101), 61)],
                false,
            ),
            (
                "not asked after the proof",
                &[(Sample(101), 0), (Sample(101), 60), (Interrupted, 70), (Sample(101), 75)],
                false,
            ),
            (
                "our pause on a living chain",
                &[
                    (Sample(100), 0),
                    (Sample(101), 15),
                    (Wrote(90), 76),
                    (Paused, 76),
                    (Sample(90), 76),
                    (Sample(90), 135),
                ],
                false,
            ),
            (
                "our pause on a chain that was not known",
                &[(Sample(100), 0), (Sample(100), 45), (Wrote(90), 100), (Paused, 100), (Sample(90), 105)],
                false,
            ),
            (
                "our pause on a stopped chain",
                &[(Sample(100), 0), (Sample(100), 60), (Wrote(108), 100), (Paused, 100), (Sample(108), 105)],
                true,
            ),
            ("nothing known yet", &[(Interrupted, 0), (Sample(100), 10), (Sample(100), 70)], true),
        ];
        for (name, steps, stopped) in table {
            let mut liveness = Liveness::new(WINDOW);
            let mut verdict = HeadTrend::Unknown(Unknown::FirstSample);
            for (step, at) in steps {
                match *step {
                    Sample(head) => verdict = liveness.observe(head.into(), Duration::from_secs(*at)),
                    Interrupted => liveness.interrupted(),
                    Paused => liveness.paused(verdict),
                    Wrote(head) => liveness.own_write(head.into()),
                }
            }
            assert_eq!(verdict == HeadTrend::Stopped, stopped, "{name}: {verdict:?}");
        }
    }

    #[test]
    fn m8_growth_and_falls_are_seen_over_an_interruption() {
        for (head, expected) in [
            (101, HeadTrend::Alive),
            (99, HeadTrend::Unknown(Unknown::WentDown { from: 100.into(), to: 99.into() })),
            (100, HeadTrend::Unknown(Unknown::FlatFor { elapsed: Duration::ZERO })),
        ] {
            let mut liveness = Liveness::new(WINDOW);
            liveness.observe(100.into(), Duration::ZERO);
            liveness.interrupted();
            assert_eq!(liveness.observe(head.into(), Duration::from_secs(600)), expected);
        }
    }

    #[test]
    fn g10_a_write_of_unknown_extent_makes_no_verdict() {
        let mut liveness = Liveness::new(WINDOW);
        liveness.observe(100.into(), Duration::ZERO);
        assert_eq!(liveness.observe(100.into(), Duration::from_secs(60)), HeadTrend::Stopped);
        liveness.own_write_unknown();
        assert_eq!(liveness.observe(120.into(), Duration::from_secs(75)), HeadTrend::Unknown(Unknown::FirstSample));
        assert!(matches!(liveness.observe(120.into(), Duration::from_secs(134)), HeadTrend::Unknown(_)));
        assert_eq!(liveness.observe(120.into(), Duration::from_secs(135)), HeadTrend::Stopped);
    }

    #[test]
    fn g10_own_writes_make_no_verdict() {
        for written in [50, 200] {
            let mut liveness = Liveness::new(WINDOW);
            liveness.observe(100.into(), Duration::ZERO);
            assert_eq!(liveness.observe(100.into(), Duration::from_secs(60)), HeadTrend::Stopped);
            liveness.own_write(written.into());
            assert_eq!(liveness.observe(written.into(), Duration::from_secs(75)), HeadTrend::Stopped);
            assert_eq!(liveness.observe(L2Number::new(written + 1), Duration::from_secs(90)), HeadTrend::Alive);
        }
    }
}
