//! How long a plan that could not be written waits: the one owner of the time between two pauses for the same cause.
//!
//! Every try to write is a pause of the reactors, which may be the stop and start of a service. So the cause of a
//! failed try is remembered here: a refused block, a chain that changed under way, a node that answers reads and no
//! writes. No plan that it covers is tried before its wait is over. [`crate::decide::refusal`] decides how long the
//! wait is. No wait is for ever. A sign that the node changed ends the wait for a refusal at once, but not again and
//! again: otherwise a node that comes and goes would cause a pause at every poll (E13, E17, P4).

use std::time::Duration;

use crate::decide::reconcile::Plan;
use crate::decide::refusal::{self, Refusal, Subject};
use crate::decide::stall::{Cause, Stall};
use crate::error::{PortError, PortErrorKind};
use crate::flow::quiesce::NoPause;
use crate::flow::{FlowError, Stop};
use crate::types::B256;

/// After so many tries in a row a refusal that may pass is shown as one that an operator must look at.
const TRIES_SHOWN: u32 = 8;

/// Why a try to write failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// The answer for the try, and until the next one.
    pub(crate) answer: Stop,
    /// What it says about the next try; none if it says nothing, for example because something was written.
    pub(crate) refusal: Option<(Refusal, Subject)>,
    /// Blocks were written before it and stand: the next try begins further up.
    pub(crate) progressed: bool,
}

impl Failure {
    /// The chain changed under way, or what was read contradicts itself.
    pub(crate) fn changed(answer: Stop) -> Self {
        Self { answer, refusal: Some((Refusal::ChainChanged, Subject::EveryWrite)), progressed: false }
    }

    /// A verdict that is found again without a pause.
    pub(crate) const fn seen_without_a_pause(stall: Stall) -> Self {
        Self { answer: Stop::Stands(stall), refusal: None, progressed: false }
    }

    /// A failure before anything was paused: it costs nothing to try again.
    pub(crate) fn before_a_pause(error: impl Into<FlowError>) -> Self {
        Self { answer: Stop::Failed(error.into()), refusal: None, progressed: false }
    }
}

impl From<NoPause> for Failure {
    fn from(no: NoPause) -> Self {
        match no {
            NoPause::NotAsked(error) => Self::before_a_pause(error),
            NoPause::Failed(error) => {
                let refusal = Some((Refusal::NotPaused, Subject::EveryWrite));
                Self { answer: Stop::Failed(error.into()), refusal, progressed: false }
            }
        }
    }
}

impl From<FlowError> for Failure {
    fn from(error: FlowError) -> Self {
        let refusal = match &error {
            FlowError::Stall(_) => Refusal::ChainChanged,
            FlowError::Port(_) => Refusal::Passing,
        };
        Self { answer: Stop::Failed(error), refusal: Some((refusal, Subject::EveryWrite)), progressed: false }
    }
}

impl From<PortError> for Failure {
    fn from(error: PortError) -> Self {
        FlowError::Port(error).into()
    }
}

/// What the length of a wait depends on, besides the number of tries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// On the poll's clock.
    pub(crate) now: Duration,
    pub(crate) poll_interval: Duration,
    /// A pause costs nothing.
    pub(crate) free: bool,
}

#[derive(Clone, Debug)]
struct Held {
    subject: Subject,
    refusal: Refusal,
    tries: u32,
    /// No try before this time, on the poll's clock.
    until: Duration,
    answer: Stop,
    /// The version of the node that answered.
    version: Option<B256>,
}

/// What the last try to write failed on, until one succeeds.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    held: Option<Held>,
    /// The version of the node that was asked last.
    version: Option<B256>,
    /// The node could not be reached when it was asked last.
    away: bool,
    /// No wait ends early before this time, on the poll's clock.
    early_from: Duration,
}

impl Patience {
    /// The answer for `plan` in place of a try; none if it may be tried now.
    pub(crate) fn answer(&self, plan: &Plan, now: Duration) -> Option<Stop> {
        let held = self.held.as_ref().filter(|held| held.subject.covers(plan) && now < held.until)?;
        Some(held.answer.clone())
    }

    /// Notes the version of the node that is being asked at `now`. A node that was upgraded is asked anew.
    pub(crate) fn saw_version(&mut self, version: Option<B256>, now: Duration) {
        self.version = version;
        let other = |held: &Held| version.is_some() && held.version.is_some() && version != held.version;
        if self.held.as_ref().is_some_and(other) {
            self.node_changed(now);
        }
    }

    /// The node did not answer. That alone means nothing; a node that comes back may have another version.
    pub(crate) const fn node_is_away(&mut self) {
        self.away = true;
    }

    /// The node answered at `now`.
    pub(crate) fn node_is_there(&mut self, now: Duration) {
        if std::mem::take(&mut self.away) {
            self.node_changed(now);
        }
    }

    /// The node was restarted, or may have been: it may now accept what it refused. The wait ends. The next wait ends
    /// early no sooner than [`refusal::ENDED_EARLY_EVERY`] after that. The number of tries still counts.
    pub(crate) fn node_changed(&mut self, now: Duration) {
        let at = now.max(self.early_from);
        if let Some(held) = self.held.as_mut().filter(|held| held.refusal.is_of_the_node() && at < held.until) {
            held.until = at;
            self.early_from = at.saturating_add(refusal::ENDED_EARLY_EVERY);
        }
    }

    /// A plan was written.
    pub(crate) fn succeeded(&mut self) {
        self.held = None;
    }

    /// How often in a row `plan` was tried in vain.
    pub(crate) fn tries(&self, plan: &Plan) -> u32 {
        self.held.as_ref().filter(|held| held.subject.covers(plan)).map_or(0, |held| held.tries)
    }

    /// Remembers that a plan failed again after `tries` earlier tries. Gives the answer for it from now on.
    pub(crate) fn failed(&mut self, failure: Failure, tries: u32, clock: Clock) -> Stop {
        let Failure { answer, refusal, progressed } = failure;
        let Some((refusal, subject)) = refusal else { return answer };
        let tries = if progressed { 1 } else { tries.saturating_add(1) };
        let answer = shown(answer, refusal, tries);
        let until = clock.now.saturating_add(refusal::wait(refusal, tries, clock.poll_interval, clock.free));
        self.held = Some(Held { subject, refusal, tries, until, answer: answer.clone(), version: self.version });
        answer
    }
}

/// A refusal that may pass, and does not, is shown as a refusal. It is tried again all the same.
fn shown(answer: Stop, refusal: Refusal, tries: u32) -> Stop {
    match answer {
        Stop::Failed(FlowError::Port(error))
            if refusal == Refusal::Passing
                && tries >= TRIES_SHOWN
                && matches!(error.kind, PortErrorKind::Refused { .. }) =>
        {
            Stop::Stands(Stall::new(Cause::RefusedAgain { tries, error }))
        }
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::stall::Final;
    use crate::error::Target;
    use crate::types::{L2Ref, NewBlock};

    const POLL: Duration = Duration::from_secs(15);

    fn clock(now: u64) -> Clock {
        Clock { now: Duration::from_secs(now), poll_interval: POLL, free: false }
    }

    fn plan(skip: u64) -> Plan {
        let block = NewBlock {
            number: (skip + 1).into(),
            timestamp: 1,
            base_fee: 7.into(),
            gas_limit: 30,
            transactions: Vec::new(),
            parent_hash: None,
        };
        let skip = L2Ref { number: skip.into(), hash: B256::from_low_u64_be(skip) };
        Plan { skip, blocks: vec![block], replaces: Vec::new(), again: Vec::new() }
    }

    fn refused(plan: &Plan) -> Failure {
        let error =
            PortError::new(Target::Engine, PortErrorKind::Refused { code: -32000, message: "busy".to_owned() }, "busy");
        let subject = Subject::block(plan.skip.hash, &plan.blocks[0]);
        Failure {
            answer: Stop::Failed(FlowError::Port(error)),
            refusal: Some((Refusal::Passing, subject)),
            progressed: false,
        }
    }

    fn changed() -> Failure {
        FlowError::local_changed("moved").into()
    }

    fn fail(patience: &mut Patience, failure: Failure, plan: &Plan, now: u64) -> Stop {
        let tries = patience.tries(plan);
        patience.failed(failure, tries, clock(now))
    }

    fn waits(patience: &Patience, plan: &Plan, now: u64) -> bool {
        patience.answer(plan, Duration::from_secs(now)).is_some()
    }

    #[test]
    fn m13_a_refusal_waits_for_its_block_and_is_forgotten_with_the_node() {
        let (plan, other) = (plan(8), plan(20));
        let mut patience = Patience::default();
        patience.saw_version(Some(B256::repeat_byte(1)), Duration::ZERO);
        fail(&mut patience, refused(&plan), &plan, 0);
        assert!(waits(&patience, &plan, 14) && !waits(&patience, &plan, 15) && !waits(&patience, &other, 0));
        fail(&mut patience, refused(&plan), &plan, 15);
        assert!(waits(&patience, &plan, 44) && !waits(&patience, &plan, 45), "twice the wait");
        patience.saw_version(Some(B256::repeat_byte(1)), Duration::from_secs(16));
        patience.saw_version(None, Duration::from_secs(16));
        assert!(waits(&patience, &plan, 44), "a node that does not tell is no other node");
        patience.saw_version(Some(B256::repeat_byte(2)), Duration::from_secs(16));
        assert!(!waits(&patience, &plan, 44));
        // Counted from the start for a block that is reached for the first time.
        fail(&mut patience, refused(&plan), &plan, 50);
        fail(&mut patience, Failure { progressed: true, ..refused(&other) }, &plan, 65);
        assert!(waits(&patience, &other, 79) && !waits(&patience, &other, 80));
    }

    #[test]
    fn m14_changes_under_way_hold_every_plan_whatever_the_node_shows() {
        let mut patience = Patience::default();
        fail(&mut patience, changed(), &plan(8), 0);
        fail(&mut patience, changed(), &plan(9), 15);
        patience.node_changed(Duration::from_secs(16));
        assert!(waits(&patience, &plan(10), 44) && !waits(&patience, &plan(10), 45));
        // A refusal in between is one more try in vain.
        fail(&mut patience, refused(&plan(9)), &plan(9), 45);
        assert!(waits(&patience, &plan(9), 104) && !waits(&patience, &plan(9), 105));
        patience.succeeded();
        assert!(!waits(&patience, &plan(9), 46));
    }

    #[test]
    fn m13_a_changed_node_ends_a_wait_once_in_a_while_and_forgets_no_try() {
        let plan = plan(8);
        let mut patience = Patience::default();
        let mut tried = Vec::new();
        // It comes and goes at every poll.
        for now in (0..6000).step_by(15) {
            patience.node_is_away();
            patience.node_is_there(Duration::from_secs(now));
            if !waits(&patience, &plan, now) {
                fail(&mut patience, refused(&plan), &plan, now);
                tried.push(now);
            }
        }
        assert_eq!(tried[..6], [0, 15, 30, 90, 210, 450], "the third is ended early, the others are not");
        let ten_minutes = tried.iter().map(|at| tried.iter().filter(|t| (*at..at + 600).contains(*t)).count());
        assert!(ten_minutes.skip(6).all(|tries| tries <= 2), "{tried:?}");
        // An hour's wait: a restart and, a little later, an upgrade.
        let mut patience = Patience::default();
        let lasting = Failure { refusal: Some((Refusal::CannotRewrite, Subject::EveryRewrite)), ..refused(&plan) };
        let rewrite = Plan { replaces: vec![plan.skip], ..plan };
        fail(&mut patience, lasting.clone(), &rewrite, 0);
        patience.node_changed(Duration::from_secs(30));
        assert!(!waits(&patience, &rewrite, 30), "at once");
        fail(&mut patience, lasting, &rewrite, 30);
        patience.node_changed(Duration::from_secs(60));
        patience.node_changed(Duration::from_secs(75));
        assert!(waits(&patience, &rewrite, 629) && !waits(&patience, &rewrite, 630), "not lost, but later");
    }

    #[test]
    fn m13_what_does_not_pass_is_shown_and_still_tried() {
        let plan = plan(8);
        let mut patience = Patience::default();
        let shown: Vec<_> =
            (0..9).map(|n| matches!(fail(&mut patience, refused(&plan), &plan, n * 600), Stop::Stands(_))).collect();
        assert_eq!(shown, [[false; 7].as_slice(), &[true; 2]].concat());
        assert!(!waits(&patience, &plan, 8 * 600 + 600));
        let stall = Stall::new(Cause::BelowFinalized(Final::Verified));
        patience.succeeded();
        fail(&mut patience, Failure::seen_without_a_pause(stall), &plan, 0);
        assert!(!waits(&patience, &plan, 0));
    }
}
