//! One poll: its order, and nothing else.
//!
//! Snapshot → what the node still holds → tags → L1 → logs and batches in order → finality → tags.

use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use crate::decide::finality::Held;
use crate::decide::heads::Heads;
use crate::decide::liveness::{HeadTrend, Unknown};
use crate::decide::stall::{Cause, Stall};
use crate::error::Target;
use crate::flow::events::{Events, Round};
use crate::flow::finalize::Finalizer;
use crate::flow::l1_view::{L1View, L1Watch};
use crate::flow::ledger::Ledger;
use crate::flow::node::Node;
use crate::flow::places::{Places, Seen};
use crate::flow::quiesce::Quiesce;
use crate::flow::settlement::Settlements;
use crate::flow::writer::{PendingWrite, SharedPause, Writer};
use crate::flow::{BatchReport, Decided, FlowError, PollEnd, PollReport, Ports, Settings, Status, Stop};
use crate::ports::Step;
use crate::types::{BatchIndex, CommitEvent, Cursor, FinalityMeaning, L1Message, L1Ref, L2Number, L2Ref};

/// The owners of everything that one poll may change, and the order of the changes.
pub(crate) struct Poll {
    quiesce: Quiesce,
    ledger: Ledger,
    node: Node,
    l1: L1Watch,
    events: Events,
    settlements: Settlements,
    finalizer: Finalizer,
    places: Places,
    /// The operator's verdict in place of the observed one.
    assume: Option<HeadTrend>,
    meaning: FinalityMeaning,
    /// The last poll's verdict.
    verdict: Option<HeadTrend>,
    /// The head at the last poll.
    l2_head: Option<L2Ref>,
    /// When a poll last ended with finality and tags, if all polls since asked for the next one at once.
    settled: Option<Instant>,
    /// How often that is done in a catch-up.
    settle_every: Duration,
}

impl Poll {
    /// Loads what is stored.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub(crate) async fn new(quiesce: Quiesce, ports: &Ports, settings: &Settings) -> Result<Self, FlowError> {
        let (ledger, tip) = Ledger::load(ports.progress.clone()).await?;
        let l1 = ports.l1.clone();
        let mut node = Node::new(l1.clone(), ports.l2.clone(), ports.engine.clone(), settings.observation_window);
        node.local.loaded(&ledger, tip.as_ref());
        let writer = Writer::new(ports, quiesce.clone(), settings);
        Ok(Self {
            quiesce,
            ledger,
            node,
            l1: L1Watch::new(ports, settings),
            events: Events::new(ports, writer, settings, tip.map(|t| t.index)),
            settlements: Settlements::new(l1, ports.progress.clone(), settings.start, settings.fetch_range),
            finalizer: Finalizer::new(ports, settings),
            places: Places::new(ports),
            assume: settings.assume,
            meaning: settings.finality,
            verdict: None,
            l2_head: None,
            settled: None,
            settle_every: settings.settle_every,
        })
    }

    /// Our heads.
    pub(crate) const fn heads(&self) -> Heads {
        self.ledger.heads()
    }

    /// How far L1 was read.
    pub(crate) const fn cursor(&self) -> Option<Cursor> {
        self.ledger.cursor()
    }

    /// The first write that would have been made in the last poll, were there an engine.
    pub(crate) const fn pending(&self) -> Option<PendingWrite> {
        self.events.batches.writer.pending()
    }

    /// One poll. `now` is a clock that only goes forward, used for the liveness verdict, for the waits between two
    /// tries and for how long another verdict is kept.
    ///
    /// # Errors
    /// When something could not be read or written. What was stored before stays; the next poll continues from there.
    pub(crate) async fn run(&mut self, now: Duration) -> Result<PollReport, FlowError> {
        self.events.batches.writer.poll_begins();
        if let Err(error) = self.reload().await {
            self.node.local.interrupted();
            return Err(error);
        }
        self.events.search.begin();
        if self.quiesce.is_degraded() {
            self.node.local.interrupted();
        }
        let node = match self.node.local.look(&self.ledger).await {
            Ok(node) => node,
            Err(error) => {
                if error.is_transient() {
                    self.events.batches.writer.node_is_away();
                }
                self.node.local.interrupted();
                return Err(error.into());
            }
        };
        self.events.batches.writer.node_is_there(now);
        self.node.poll_begins(node);
        self.l2_head = Some(node.head);
        if node.syncing {
            self.node.local.interrupted();
            let stall = Stall::new(Cause::NodeSyncing);
            return Ok(PollReport { batches: Vec::new(), end: PollEnd::Stalled(stall) });
        }
        let observed = self.node.local.observe(node.head.number, now);
        if matches!(observed, HeadTrend::Unknown(Unknown::WentDown { .. })) {
            self.events.batches.writer.node_changed(now);
        }
        let verdict = self.assume.unwrap_or(observed);
        self.verdict = Some(verdict);
        let degraded = self.quiesce.is_degraded();
        let pauses = self.quiesce.pauses();
        let mut batches = Vec::new();
        let end = PollEnd::of(self.in_order(verdict, now, &mut batches).await);
        if self.quiesce.pauses() != pauses {
            self.node.local.paused(observed);
        }
        if degraded || end.as_ref().is_err_and(node_is_gone) {
            self.node.local.interrupted();
        }
        let end = match end {
            Ok(end) => {
                self.node.local.nothing_is_missing();
                end
            }
            Err(error) => {
                PollEnd::Stalled(self.node.local.name_the_missing(error, &self.ledger, node.head.number).await?)
            }
        };
        // A resume that fails holds up writes and nothing else; it is shown if nothing worse is.
        if degraded && matches!(end, PollEnd::CaughtUp | PollEnd::Reached) {
            return Err(FlowError::Stall(Stall::new(Cause::NotResumed)));
        }
        Ok(PollReport { batches, end })
    }

    /// Reads heads and cursor from the database again if a step failed since.
    async fn reload(&mut self) -> Result<(), FlowError> {
        if let Some(tip) = self.ledger.refresh().await? {
            self.node.local.loaded(&self.ledger, tip.as_ref());
        }
        Ok(())
    }

    async fn in_order(
        &mut self,
        verdict: HeadTrend,
        now: Duration,
        batches: &mut Vec<BatchReport>,
    ) -> Decided<PollEnd> {
        let before = self.ledger.heads();
        self.node.check_safe(&mut self.ledger).await?;
        // Tags first: a node that restarted has them right again even while L1 cannot be asked (E10, E20).
        if let Err(error) = self.node.restore(&mut self.ledger).await {
            warn!(code = "own_mark_left", %error, "cannot restore a tag that the execution node moved by itself; will try again");
        }
        if !self.has_settled() || self.ledger.heads() != before {
            self.node.sync_tags(&self.ledger).await?;
        }
        let view = self.l1.look(&mut self.ledger, &mut self.node).await?;
        self.events.search.confirmed_is(view.confirmed);
        if view.reorged {
            self.events.chain_changed();
            // A dropped RevertBatch lets batches stand again; a dropped batch takes the node's tag down at once (B3).
            self.node.check_safe(&mut self.ledger).await?;
            self.node.sync_tags(&self.ledger).await?;
        }
        let mut pause = SharedPause::default();
        // A batch at which the flow is stalled ends nothing early here: the steps after it run all the same.
        let read = PollEnd::of(self.read(&view, &mut pause, verdict, now, batches).await);
        if read.is_ok() {
            self.events.search.poll_went_well();
        }
        // Nothing after this needs the pause that the batches shared.
        let released = pause.release().await;
        // Finality does not wait for a batch that cannot be decided, nor do the tags that were lowered for it.
        let on = matches!(read, Ok(PollEnd::Behind));
        let (mut finalized, mut tagged) = (Ok(()), Ok(()));
        if !on || !self.has_settled() {
            self.settled = on.then(Instant::now);
            finalized = self.finalizer.advance(&mut self.ledger, &mut self.settlements, on).await;
            tagged = self.node.sync_tags(&self.ledger).await;
        }
        let end = read?;
        released?;
        finalized?;
        tagged?;
        Ok(match (end, self.node.tags.take_two_nodes()) {
            (PollEnd::CaughtUp | PollEnd::Behind | PollEnd::Reached, Some(stall)) => PollEnd::Stalled(stall),
            (end, _) => end,
        })
    }

    /// Whether finality and tags were dealt with a moment ago, in a catch-up that has gone on since.
    fn has_settled(&self) -> bool {
        self.settled.is_some_and(|at| at.elapsed() < self.settle_every)
    }

    async fn read(
        &mut self,
        view: &L1View,
        pause: &mut SharedPause,
        verdict: HeadTrend,
        now: Duration,
        batches: &mut Vec<BatchReport>,
    ) -> Decided<PollEnd> {
        let Self { ledger, node, events, settlements, .. } = self;
        let (reports, blocks) = (Vec::new(), Vec::new());
        let mut round = Round { ledger, node, pause, now, verdict, reports, blocks };
        let end = events.read_range(view, settlements, &mut round).await;
        *batches = round.reports;
        end
    }

    /// Puts into `status` what the faces show of it.
    pub(crate) fn show(&self, status: &mut Status) {
        let (heads, tags) = (self.ledger.heads(), self.node.tags.facts());
        let (events, finality) = (self.events.shown(), self.finalizer.shown());
        status.safe = heads.safe();
        status.finalized = heads.finalized();
        status.l1_cursor = self.ledger.cursor().map(|c| c.block.number);
        status.l1_confirmed = self.l1.confirmed();
        status.l1_finalized = finality.l1_finalized.map(|block| block.number);
        status.l2_head = self.l2_head;
        status.node_safe = tags.safe;
        status.node_finalized = tags.finalized;
        status.tags_contended = tags.contended;
        status.safe_beyond_verified = tags.safe_beyond_verified;
        status.held_by_node_finalized = tags.held_by_node_finalized;
        status.el_marks_finalized = tags.marks_by_itself;
        status.last_batch = events.last_batch;
        status.verified = events.verified;
        status.reverted = events.reverted;
        status.last_commit_at = events.last_commit_at;
        status.encoder_drift = self.events.batches.drift();
        status.blocks_written = self.events.batches.writer.blocks_written();
        status.verdict = self.verdict;
        status.reorgs = self.l1.reorgs();
        status.finality = self.meaning;
        status.settled_to = finality.settled_to;
        status.finality_held = finality.held;
        status.l1_finality_contradicted = finality.held == Some(Held::L1Contradicts);
        status.uncommitted_finalized = finality.uncommitted;
        status.reactors_degraded = self.quiesce.is_degraded();
        status.pause_left_over = self.quiesce.has_left_over();
        status.pauses = self.quiesce.pauses();
        status.sync = self.places.show(&Seen {
            heads,
            cursor: self.ledger.cursor().map(|cursor| cursor.block),
            node: self.l2_head.map(|_| *self.node.shown()),
            newest_l1: self.l1.newest(),
            finalized_l1: finality.l1_finalized,
        });
    }

    /// Looks up where our heads stand on L1, for the faces.
    pub(crate) async fn look_up_places(&mut self) {
        let cursor = self.ledger.cursor().map(|cursor| cursor.block);
        self.places.look_up(self.ledger.heads(), cursor).await;
    }

    /// The last L2 block of the batch `index` that stands on L1; none if no confirmed commit of it was found or what
    /// was found does not bind.
    ///
    /// # Errors
    /// When L1 cannot be asked.
    pub(crate) async fn last_block_of(&mut self, index: BatchIndex) -> Result<Option<L2Number>, FlowError> {
        loop {
            self.events.search.begin();
            match self.last_block_on_l1(index).await {
                Err(FlowError::Stall(Stall { cause: Cause::Searching(_), .. })) => {}
                ended => return ended,
            }
        }
    }

    async fn last_block_on_l1(&mut self, index: BatchIndex) -> Result<Option<L2Number>, FlowError> {
        let Events { batches, search, .. } = &mut self.events;
        let Some(commit) = search.standing_commit(index).await? else { return Ok(None) };
        let bound = batches.bind(&commit, None, search, &mut self.ledger).await;
        Ok(Stop::none_if_it_stands(bound)?.map(|bound| bound.outline.last))
    }

    /// Keeps L1 messages that a recording read.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub(crate) async fn keep_messages(&mut self, messages: Vec<(L1Ref, L1Message)>) -> Result<(), FlowError> {
        if messages.is_empty() {
            return Ok(());
        }
        Ok(self.ledger.commit(&Step { messages, ..Step::default() }).await?)
    }

    /// Asks for all that rebuilding `commit` takes, for a recording.
    ///
    /// # Errors
    /// When L1 or the beacon node cannot be asked.
    pub(crate) async fn ask_for_all(&mut self, commit: &CommitEvent) -> Result<(), FlowError> {
        if commit.index.get() == 0 {
            return Ok(());
        }
        let Events { batches, search, .. } = &mut self.events;
        search.begin();
        batches.ask_for_all(commit, search, &mut self.ledger).await
    }
}

/// Whether the L2 node went away under way.
fn node_is_gone(error: &FlowError) -> bool {
    matches!(error, FlowError::Port(error) if error.target == Target::L2 && error.is_transient())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::testing::World;

    async fn poll(world: &World) -> Poll {
        let Ports { reactors, progress, l2, .. } = world.ports.clone();
        let quiesce = Quiesce::new(reactors, progress, l2, Duration::ZERO);
        Poll::new(quiesce, &world.ports, &world.settings).await.unwrap()
    }

    #[tokio::test]
    async fn one_poll_verifies_what_l1_holds_and_then_sets_both_heads() {
        let world = World::recorded().await;
        let mut poll = poll(&world).await;
        let report = poll.run(Duration::ZERO).await.unwrap();
        assert_eq!((report.end, report.batches.len()), (PollEnd::CaughtUp, 6));
        let heads = (poll.heads().safe(), poll.heads().finalized());
        assert_eq!(heads, (Some(world.l2(72)), Some(world.l2(72))));
        let shown = world.shown().await;
        assert_eq!((shown.safe, shown.finalized), heads);
    }

    #[tokio::test]
    async fn in_a_catch_up_finality_and_tags_follow_from_time_to_time_and_at_its_end() {
        let mut world = World::recorded().await;
        world.settings.fetch_range = 2;
        let mut poll = poll(&world).await;
        let mut polls = 0;
        while poll.run(Duration::ZERO).await.unwrap().end == PollEnd::Behind {
            polls += 1;
        }
        assert!(polls > 10, "{polls} polls");
        // Two at the end of the first poll that verified something, two at the end of the last one; more only if all of
        // it took more than a second.
        let calls = world.node.node().tag_calls().len();
        assert!(calls < polls, "{calls} tag calls in {polls} polls");
        let shown = world.shown().await;
        assert_eq!((shown.safe, shown.finalized), (Some(world.l2(72)), Some(world.l2(72))));
    }

    #[tokio::test]
    async fn e20_a_node_that_lost_its_tags_has_them_again_and_finality_goes_on_while_a_batch_is_waited_for() {
        let world = World::recorded().await;
        world.node.node().truncate(70);
        let mut poll = poll(&world).await;
        let report = poll.run(Duration::ZERO).await.unwrap();
        assert!(matches!(report.end, PollEnd::Stalled(Stall { cause: Cause::BlocksMissing { .. }, .. })));
        assert_eq!(poll.heads().finalized(), Some(world.l2(60)));
        world.node.node().set_block_tags(world.l2(12).hash, world.l2(12).hash).unwrap();
        world.l1.now().headers.clear();
        let end = poll.run(Duration::from_secs(1)).await.unwrap().end;
        assert!(matches!(end, PollEnd::Stalled(Stall { cause: Cause::NoL1Block, .. })));
        let shown = world.shown().await;
        assert_eq!((shown.safe, shown.finalized), (Some(world.l2(60)), Some(world.l2(60))));
    }

    #[tokio::test]
    async fn nothing_is_decided_while_the_node_says_that_it_is_syncing() {
        let world = World::recorded().await;
        world.node.node().moods.syncing = true;
        let mut poll = poll(&world).await;
        let end = poll.run(Duration::ZERO).await.unwrap().end;
        assert!(matches!(end, PollEnd::Stalled(Stall { cause: Cause::NodeSyncing, .. })));
        assert!(world.l1.now().asked.is_empty());
    }
}
