//! Is a pause of the reactors over?
//!
//! Decided here: what a pause still needs after its work is done. Calls may have been given up whose effect is still to
//! come. A pause call that may land late needs a resume that begins after the last moment at which the pause can land.
//! A resume call that may land late would end the next pause early, so the present pause is not over until that resume
//! can no longer land. Not decided here: how late a call may be (`Reactors::lateness`), and how a failed resume is
//! repeated.

use std::time::Duration;

/// What the end of a pause knows. All times are on one clock that only goes forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Aftermath {
    /// The latest time at which an unanswered pause may take effect.
    pause_lands_by: Option<Duration>,
    /// The latest time at which an unanswered resume may take effect.
    resume_lands_by: Option<Duration>,
    /// When the last answered resume began.
    resumed: Option<Duration>,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Resume, now.
    Resume,
    /// Do nothing before this time.
    WaitUntil(Duration),
    /// The pause is over: its lease may be released and another pause may begin.
    Over,
}

impl Aftermath {
    /// Notes that a pause was begun that may take effect as late as `by`.
    pub fn pause_unanswered(&mut self, by: Duration) {
        self.pause_lands_by = self.pause_lands_by.max(Some(by));
    }

    /// Notes that a resume was given up that may take effect as late as `by`.
    pub fn resume_unanswered(&mut self, by: Duration) {
        self.resume_lands_by = self.resume_lands_by.max(Some(by));
    }

    /// Notes that the resume that began at `began` was answered.
    pub fn resumed(&mut self, began: Duration) {
        self.resumed = self.resumed.max(Some(began));
    }

    /// What is to be done at `now`.
    pub fn next(&self, now: Duration) -> Next {
        let Some(resumed) = self.resumed else { return Next::Resume };
        if let Some(by) = self.pause_lands_by.filter(|by| resumed <= *by) {
            return if now > by { Next::Resume } else { Next::WaitUntil(by.saturating_add(TICK)) };
        }
        match self.resume_lands_by {
            Some(by) if now <= by => Next::WaitUntil(by.saturating_add(TICK)),
            _ => Next::Over,
        }
    }
}

/// A call that lands exactly at its last moment has landed one tick later.
const TICK: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn after(seconds: u64) -> Next {
        Next::WaitUntil(at(seconds) + TICK)
    }

    #[test]
    fn g1_g3_m5_m12_m24_what_a_pause_still_needs() {
        let none = Aftermath::default();
        let pause = |by| Aftermath { pause_lands_by: Some(at(by)), ..none };
        let resume = |by, of: Aftermath| Aftermath { resume_lands_by: Some(at(by)), ..of };
        let done = |began, of: Aftermath| Aftermath { resumed: Some(at(began)), ..of };
        let table = [
            // Every pause is resumed; an answered pause needs no more than that.
            (none, 0, Next::Resume),
            (done(1, none), 1, Next::Over),
            // An unanswered pause: resume at once, and again after the last moment at which the pause can land.
            (pause(30), 0, Next::Resume),
            (done(1, pause(30)), 2, after(30)),
            (done(1, pause(30)), 30, after(30)),
            (done(1, pause(30)), 31, Next::Resume),
            (done(30, pause(30)), 31, Next::Resume),
            (done(31, pause(30)), 31, Next::Over),
            // The first resume took so long that it began after that moment.
            (done(40, pause(30)), 41, Next::Over),
            // A resume that was given up must be repeated, and waited out after that.
            (resume(35, none), 5, Next::Resume),
            (done(10, resume(35, none)), 10, after(35)),
            (done(10, resume(35, none)), 36, Next::Over),
            // Both: the second resume first, then the wait.
            (done(10, resume(50, pause(30))), 10, after(30)),
            (done(10, resume(50, pause(30))), 31, Next::Resume),
            (done(31, resume(50, pause(30))), 31, after(50)),
            (done(31, resume(50, pause(30))), 51, Next::Over),
        ];
        for (aftermath, now, expected) in table {
            assert_eq!(aftermath.next(at(now)), expected, "{aftermath:?} at {now}");
        }
    }

    #[test]
    fn m24_only_the_latest_moment_counts() {
        let mut aftermath = Aftermath::default();
        for by in [20, 40, 30] {
            aftermath.resume_unanswered(at(by));
            aftermath.pause_unanswered(at(by / 2));
        }
        aftermath.resumed(at(21));
        aftermath.resumed(at(5));
        assert_eq!(aftermath.next(at(21)), after(40));
    }
}
