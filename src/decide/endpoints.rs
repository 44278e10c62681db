//! Which of several endpoints is asked, and how long is a faulty one left alone?
//!
//! Decided here: which endpoints may be asked now and in which order, which of them are probed beside, how long a fault
//! sets one aside, and which of several failures is reported. A cool-down serves to choose among several endpoints: if
//! no other one is in good standing, one is asked again much sooner, within one poll interval. Not decided here: how an
//! endpoint is asked, and how often one call is repeated.
//!
//! Times are given as the time since an origin of the caller's choice.

use std::time::Duration;

use crate::error::{PortError, PortErrorKind};

/// The longest that a server's Retry-After is obeyed.
pub const RETRY_AFTER_CAP: Duration = Duration::from_secs(300);

/// How an endpoint has been doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    strikes: u32,
    aside: Option<Aside>,
}

/// An endpoint that is set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Aside {
    /// Until then while another one is in good standing.
    until: Duration,
    /// Until then if there is none; never later than `until`.
    again: Duration,
}

impl Standing {
    /// Whether it answered when it was asked last, or was never asked.
    pub const fn is_good(&self) -> bool {
        self.aside.is_none()
    }

    /// Whether its cool-down still runs at `now`.
    pub fn is_cooling(&self, now: Duration) -> bool {
        self.aside.is_some_and(|aside| aside.until > now)
    }

    /// Time from `now` until it is asked even if no endpoint is in good standing.
    pub fn wait(&self, now: Duration) -> Duration {
        self.aside.map_or(Duration::ZERO, |aside| aside.again.saturating_sub(now))
    }

    /// It did what it was asked. Whether that ends a time aside.
    pub const fn succeeded(&mut self) -> bool {
        let was_aside = self.aside.is_some();
        *self = Self { strikes: 0, aside: None };
        was_aside
    }

    /// A fault at `now`, with the cool-down it earns; none if it is left alone already: calls that were under way
    /// together count as one fault. `jitter` from 1.0 spreads those who ask.
    pub fn faulted(&mut self, rules: &CoolDown, kind: &PortErrorKind, jitter: f64, now: Duration) -> Option<Duration> {
        if self.aside.is_some_and(|aside| aside.again > now) {
            return None;
        }
        let pause = rules.pause(self.strikes, kind, jitter);
        let again = rules.left_alone(pause, kind);
        self.strikes = self.strikes.saturating_add(1);
        self.aside = Some(Aside { until: now.saturating_add(pause), again: now.saturating_add(again) });
        Some(pause)
    }
}

/// How long a fault sets an endpoint aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoolDown {
    /// After the first fault; doubled with every further one. Not less than the time for a connection, so that a dead
    /// endpoint costs less time than it is set aside for.
    pub first: Duration,
    /// At most this long, except what a server asks for by Retry-After.
    pub cap: Duration,
    /// If no endpoint is in good standing, one is asked again this long after its last fault.
    pub ask_again: Duration,
}

impl CoolDown {
    fn pause(&self, strikes: u32, kind: &PortErrorKind, jitter: f64) -> Duration {
        let doubled = self.first.saturating_mul(1_u32.checked_shl(strikes.min(16)).unwrap_or(u32::MAX));
        let plain = doubled.min(self.cap.max(self.first)).mul_f64(jitter);
        match kind {
            PortErrorKind::RateLimited { retry_after: Some(asked) } => plain.max((*asked).min(RETRY_AFTER_CAP)),
            _ => plain,
        }
    }

    /// How long it is left alone if there is no other one to ask. What a server asked for is kept to.
    fn left_alone(&self, pause: Duration, kind: &PortErrorKind) -> Duration {
        match kind {
            PortErrorKind::RateLimited { retry_after: Some(_) } => pause,
            _ => pause.min(self.ask_again),
        }
    }
}

/// Who is asked now. The numbers are places in the list that was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// One after the other, until one answers. Empty while all are left alone.
    pub ask: Vec<usize>,
    /// Beside that, off the data path: a dead endpoint costs no call its connect timeout.
    pub probe: Vec<usize>,
}

/// Those in good standing; if there is none, those whose cool-down has passed; if there is none of these either, those
/// that were left alone for long enough. In the order of preference in which they are given.
pub fn choose(standings: &[Standing], now: Duration) -> Choice {
    let those = |which: &dyn Fn(&Standing) -> bool| -> Vec<usize> {
        standings.iter().enumerate().filter(|(_, standing)| which(standing)).map(|(at, _)| at).collect()
    };
    let good = those(&Standing::is_good);
    let due = those(&|standing| !standing.is_good() && !standing.is_cooling(now));
    match (good.is_empty(), due.is_empty()) {
        (false, _) => Choice { ask: good, probe: due },
        (true, false) => Choice { ask: due, probe: Vec::new() },
        (true, true) => Choice { ask: those(&|standing| standing.wait(now).is_zero()), probe: Vec::new() },
    }
}

/// Time until one of the endpoints is asked, and the last fault to report while all of them are left alone: that of the
/// one that is asked first, but for those of another network. None if there is no endpoint.
pub fn first_wait(
    endpoints: &[(Standing, Option<PortError>)],
    now: Duration,
) -> Option<(Duration, Option<&PortError>)> {
    let mut waits: Vec<_> = endpoints.iter().map(|(standing, last)| (standing.wait(now), last.as_ref())).collect();
    waits.sort_by_key(|(wait, _)| *wait);
    let (wait, first) = *waits.first()?;
    let elsewhere = |error: &PortError| error.kind == PortErrorKind::WrongNetwork;
    let last = waits.iter().find(|(_, last)| !last.is_some_and(elsewhere)).map_or(first, |(_, last)| *last);
    Some((wait, last))
}

/// Which of several failures is reported: one that may pass before one that does not, both before "has no such method",
/// and all before "belongs to another network". Of equal ones the last.
pub fn most_telling(failures: impl IntoIterator<Item = PortError>) -> Option<PortError> {
    failures.into_iter().max_by_key(|error| match error.kind {
        _ if error.is_transient() => 3,
        PortErrorKind::WrongNetwork => 0,
        PortErrorKind::Unsupported => 1,
        _ => 2,
    })
}

/// Whether an answer shows its endpoint unfit: another one is asked instead for a while, if there is one.
pub const fn is_unfit(kind: &PortErrorKind) -> bool {
    matches!(kind, PortErrorKind::Malformed | PortErrorKind::Unauthorized | PortErrorKind::WrongNetwork)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Target;

    const RULES: CoolDown =
        CoolDown { first: Duration::from_secs(5), cap: Duration::from_secs(15), ask_again: Duration::from_secs(5) };

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    const fn limited(secs: u64) -> PortErrorKind {
        PortErrorKind::RateLimited { retry_after: Some(Duration::from_secs(secs)) }
    }

    fn error(kind: PortErrorKind) -> PortError {
        PortError::new(Target::L1, kind, "")
    }

    #[test]
    fn j3_a_cool_down_doubles_is_capped_and_obeys_the_server_within_bounds() {
        let rules = CoolDown { first: secs(1), ..RULES };
        let table = [
            (0, PortErrorKind::Timeout, 1.0, secs(1)),
            (1, PortErrorKind::Timeout, 1.0, secs(2)),
            (3, PortErrorKind::Unreachable, 1.5, secs(12)),
            (4, PortErrorKind::Timeout, 1.0, secs(15)),
            (u32::MAX, PortErrorKind::Timeout, 1.2, secs(18)),
            (0, PortErrorKind::RateLimited { retry_after: None }, 1.0, secs(1)),
            (0, limited(60), 1.0, secs(60)),
            (9, limited(1), 1.0, secs(15)),
            (0, limited(1 << 40), 1.0, RETRY_AFTER_CAP),
        ];
        for (strikes, kind, jitter, expected) in table {
            assert_eq!(rules.pause(strikes, &kind, jitter), expected, "{strikes} {kind:?}");
        }
        let above = CoolDown { first: secs(20), ..RULES };
        assert_eq!(above.pause(3, &PortErrorKind::Timeout, 1.0), secs(20), "the first one is no shorter for the cap");
    }

    #[test]
    fn j1_who_is_asked_and_who_is_probed() {
        let good = Standing::default();
        let aside = |until: u64, again: u64| Standing {
            strikes: 1,
            aside: Some(Aside { until: secs(until), again: secs(again) }),
        };
        type Row = (&'static str, Vec<Standing>, &'static [usize], &'static [usize]);
        let table: [Row; 8] = [
            ("none", vec![], &[], &[]),
            ("in order", vec![good, good], &[0, 1], &[]),
            ("one cools", vec![aside(20, 5), good], &[1], &[]),
            ("its cool-down passed", vec![aside(10, 5), good], &[1], &[0]),
            ("none is good", vec![aside(20, 15), aside(10, 5)], &[1], &[]),
            ("all cool, one was left alone for long enough", vec![aside(20, 15), aside(20, 10)], &[1], &[]),
            ("all are left alone", vec![aside(20, 15), aside(20, 11)], &[], &[]),
            ("all passed", vec![aside(9, 5), aside(8, 5)], &[0, 1], &[]),
        ];
        for (name, standings, ask, probe) in table {
            assert_eq!(choose(&standings, secs(10)), Choice { ask: ask.to_vec(), probe: probe.to_vec() }, "{name}");
        }
    }

    #[test]
    fn j1_faults_of_calls_that_were_under_way_together_count_once() {
        let mut standing = Standing::default();
        assert_eq!(standing.faulted(&RULES, &PortErrorKind::Timeout, 1.0, secs(0)), Some(secs(5)));
        assert_eq!(standing.faulted(&RULES, &PortErrorKind::Timeout, 1.0, secs(4)), None);
        assert!(standing.is_cooling(secs(4)) && !standing.is_cooling(secs(5)));
        assert_eq!(standing.faulted(&RULES, &PortErrorKind::Timeout, 1.0, secs(5)), Some(secs(10)));
        assert!(standing.succeeded() && standing.is_good());
        assert!(!standing.succeeded(), "it was in good standing already");
        assert_eq!(standing.faulted(&RULES, &PortErrorKind::Timeout, 1.0, secs(6)), Some(secs(5)), "counted anew");
    }

    #[test]
    fn m29_the_only_endpoint_is_asked_again_within_a_poll_interval_however_often_it_failed() {
        let mut only = [Standing::default()];
        let mut now = Duration::ZERO;
        for _ in 0..20 {
            assert_eq!(choose(&only, now).ask, [0]);
            only[0].faulted(&RULES, &PortErrorKind::Unreachable, 1.2, now);
            for part in 0..10 {
                assert_eq!(choose(&only, now + RULES.ask_again * part / 10), Choice::default(), "nothing spins");
            }
            now += RULES.ask_again;
        }
        // The pauses between two polls: doubled up to the interval. Whenever the node returns, it is asked in time.
        let interval = secs(15);
        let (mut pause, mut asked) = (secs(1), now);
        for _ in 0..20 {
            if !choose(&only, now).ask.is_empty() {
                assert!(now - asked <= interval, "{:?}", now - asked);
                asked = now;
                only[0].faulted(&RULES, &PortErrorKind::Unreachable, 1.2, now);
            }
            now += pause;
            pause = (pause * 2).min(interval);
        }
        now += secs(600);
        only[0].faulted(&RULES, &limited(60), 1.0, now);
        assert_eq!(choose(&only, now + secs(59)), Choice::default(), "a server's own word is kept to");
        assert_eq!(choose(&only, now + secs(60)).ask, [0]);
    }

    #[test]
    fn m29_a_cool_down_chooses_among_several_and_the_last_one_left_is_asked_sooner() {
        let mut two = [Standing::default(); 2];
        let mut now = Duration::ZERO;
        for _ in 0..5 {
            two[0].faulted(&RULES, &PortErrorKind::Timeout, 1.0, now);
            now += RULES.ask_again;
        }
        two[0].faulted(&RULES, &PortErrorKind::Timeout, 1.0, now);
        now += RULES.ask_again;
        assert_eq!(choose(&two, now), Choice { ask: vec![1], probe: vec![] }, "there is another one: it rests");
        two[1].faulted(&RULES, &PortErrorKind::Timeout, 1.0, now);
        assert_eq!(choose(&two, now).ask, [0], "none is left: the one that rested longest");
        assert!(RULES.ask_again < RULES.cap);
    }

    #[test]
    fn j1_while_all_are_left_alone_the_first_one_to_be_asked_is_reported_but_for_another_networks() {
        let after = |kind: PortErrorKind, at: u64| {
            let mut standing = Standing::default();
            standing.faulted(&RULES, &kind, 1.0, secs(at));
            (standing, Some(error(kind)))
        };
        let reported = |endpoints: &[(Standing, Option<PortError>)]| {
            first_wait(endpoints, secs(4)).map(|(wait, last)| (wait, last.map(|error| error.kind.clone())))
        };
        let (timeout, elsewhere) = (PortErrorKind::Timeout, PortErrorKind::WrongNetwork);
        let both = [after(timeout.clone(), 3), after(PortErrorKind::Unreachable, 2)];
        assert_eq!(reported(&both), Some((secs(3), Some(PortErrorKind::Unreachable))));
        let mixed = [after(timeout.clone(), 3), after(elsewhere.clone(), 2)];
        assert_eq!(reported(&mixed), Some((secs(3), Some(timeout))));
        assert_eq!(reported(&[after(elsewhere.clone(), 2)]), Some((secs(3), Some(elsewhere))));
        assert_eq!(reported(&[(Standing::default(), None)]), Some((Duration::ZERO, None)));
        assert_eq!(reported(&[]), None);
    }

    #[test]
    fn of_several_failures_the_one_that_may_pass_is_reported() {
        let (passes, never) = (error(PortErrorKind::Timeout), error(PortErrorKind::Malformed));
        let (unsupported, elsewhere) = (error(PortErrorKind::Unsupported), error(PortErrorKind::WrongNetwork));
        let all = [passes, never, unsupported, elsewhere];
        for (at, first) in all.iter().enumerate() {
            for second in &all[at..] {
                for pair in [[first, second], [second, first]] {
                    assert_eq!(most_telling(pair.map(Clone::clone)).as_ref(), Some(first));
                }
            }
        }
        assert_eq!(most_telling([]), None);
        let (first, last) =
            (PortError::new(Target::L1, PortErrorKind::Timeout, "first"), error(PortErrorKind::Timeout));
        assert_eq!(most_telling([first, last.clone()]), Some(last), "of equal ones the last");
    }
}
