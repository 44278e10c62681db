//! Follow mode: safe and finalized are taken over from another node, no further than L1 confirms them.
//!
//! One poll: the node → the gate (nothing is asked before its first sync is over) → what it lost → its tags → the
//! sources → L1 → the case (`decide/follow.rs`) → our heads, through the ledger as everywhere → tags. Nothing is
//! derived and no block is written. With `sets_head` the node is also told to take the source's safe head as its head
//! (cases ① and ④); the labels follow in the next poll, which finds case ③ and begins at once. What goes wrong is a stall
//! with its reason; it never ends the loop.
//!
//! A safe head that the node does not have yet (cases ① and ②a) is kept as the *target*: no tag is set on it before it
//! is there. The source goes on meanwhile, so a node that is behind reaches the target first, and that moves our heads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use crate::decide::follow::{self, Age, Dropped, Expected, FollowCase, Labels, Local, Snapshot, case, is_lower};
use crate::decide::heads::Heads;
use crate::decide::one_node::OneNode;
use crate::decide::stall::{Cause, Final};
use crate::error::PortError;
use crate::flow::ledger::Ledger;
use crate::flow::node::Node;
use crate::flow::one_node::BothSides;
use crate::flow::places;
use crate::flow::stall_log::{Doing, StallLog};
use crate::flow::{Decided, FlowError, FollowPorts, FollowSettings, PollEnd, Status, unix_now};
use crate::ports::{HeadSource, HeadTold, L1Chain, L2Engine, L2Reader, PortResult, Step};
use crate::types::{L1Ref, L2Header, L2Number, L2Place, L2Ref, L2Snapshot, SyncStatus};

/// Wait before the poll that labels a head that was just set.
const SOON: Duration = Duration::from_millis(50);

/// What the status shows of following.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FollowStatus {
    /// The execution node's first sync is over.
    pub gate_open: bool,
    /// How long the gate was held, or has been held so far, in seconds.
    pub gate_held_seconds: u64,
    /// The sources, each with what became of its last reply: `taken`, the code of a reason, or none before the first.
    pub sources: Vec<SourceStatus>,
    /// The case of the last reply that L1 confirmed.
    pub case: Option<&'static str>,
    /// How often each case was met.
    pub cases: BTreeMap<&'static str, u64>,
    /// How many replies were not taken over, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Polls in a row without a reply that was taken over.
    pub without_reply: u32,
    /// They are so many that someone should look.
    pub alarm: bool,
    /// The source's safe head.
    pub source_safe: Option<L2Ref>,
    /// The source's finalized head.
    pub source_finalized: Option<L2Ref>,
    /// The L1 block up to which the source has read.
    pub source_current_l1: Option<L1Ref>,
    /// The safe head that is waited for, because the node does not have it yet.
    pub target: Option<L2Ref>,
    /// How many blocks our safe head is behind the source's.
    pub lag: Option<u64>,
    /// How long the last round over the sources took, in milliseconds.
    pub latency_ms: Option<u64>,
}

/// One source in the status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SourceStatus {
    /// Host and port.
    pub name: String,
    /// What became of its last reply.
    pub last: Option<&'static str>,
}

/// Why nothing was taken over from one source.
enum NotTaken {
    /// It did not answer, or not with a status.
    Failed(PortError),
    /// Our own L1 did not answer.
    L1(PortError),
    /// Its reply was dropped.
    Dropped(Dropped),
}

impl NotTaken {
    fn code(&self) -> &'static str {
        match self {
            Self::Failed(_) => "unavailable",
            Self::L1(_) => Dropped::L1NotAsked.code(),
            Self::Dropped(dropped) => dropped.code(),
        }
    }

    /// What speaks against a source is told before what speaks against our own L1, and that before silence.
    fn weight(&self) -> u8 {
        match self {
            Self::Dropped(dropped) if !dropped.is_ours() => 2,
            Self::Dropped(_) | Self::L1(_) => 1,
            Self::Failed(_) => 0,
        }
    }

    fn cause(self) -> Cause {
        match self {
            Self::Failed(error) | Self::L1(error) => Cause::Port(error),
            Self::Dropped(dropped) => Cause::SourceDropped(dropped),
        }
    }
}

/// The follower: the loop over its polls, and what it reports of them.
pub struct Follower {
    l1: Arc<dyn L1Chain>,
    l2: Arc<dyn L2Reader>,
    /// The engine that sets the head; none if that is not ours to set.
    engine: Option<Arc<dyn L2Engine>>,
    sources: Vec<Arc<dyn HeadSource>>,
    settings: FollowSettings,
    ledger: Ledger,
    node: Node,
    /// When the gate began to be held.
    began: Instant,
    /// The snapshot whose safe head is waited for.
    target: Option<Snapshot>,
    /// Confirmed replies in a row with a safe head below ours.
    lower: u32,
    /// Confirmed replies in a row that found the node on another chain.
    differs: u32,
    /// Where our heads stand on L1, by the source's word as far as L1 confirmed it.
    places: [Option<L2Place>; 2],
    /// What our heads were last taken from.
    taken: Option<Snapshot>,
    /// The last case that was logged, with the heads that it led to.
    told: Option<(FollowCase, Heads)>,
    shown: FollowStatus,
    head: Option<L2Snapshot>,
    stall_log: StallLog,
    status: Status,
    publish: watch::Sender<Status>,
}

impl Follower {
    /// Loads what is stored.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn start(ports: FollowPorts, settings: FollowSettings) -> Result<Self, FlowError> {
        let (ledger, tip) = Ledger::load(ports.progress.clone()).await?;
        let FollowPorts { l1, l2, engine, progress: _, sources } = ports;
        let mut node = Node::new(l1.clone(), l2.clone(), engine.clone(), Duration::ZERO);
        let engine = engine.filter(|_| settings.sets_head);
        node.local.loaded(&ledger, tip.as_ref());
        let of = |source: &Arc<dyn HeadSource>| SourceStatus { name: source.name().to_owned(), last: None };
        let shown = FollowStatus {
            sources: sources.iter().map(of).collect(),
            cases: FollowCase::ALL.iter().map(|case| (case.as_str(), 0)).collect(),
            dropped: Dropped::CODES.iter().map(|code| (*code, 0)).chain([("unavailable", 0)]).collect(),
            ..FollowStatus::default()
        };
        let (publish, _) = watch::channel(Status::default());
        let mut follower = Self {
            l1,
            l2,
            engine,
            sources,
            settings,
            ledger,
            node,
            began: Instant::now(),
            target: None,
            lower: 0,
            differs: 0,
            places: [None, None],
            taken: None,
            told: None,
            shown,
            head: None,
            stall_log: StallLog::default(),
            status: Status::default(),
            publish,
        };
        follower.publish();
        Ok(follower)
    }

    /// Our heads.
    pub const fn heads(&self) -> Heads {
        self.ledger.heads()
    }

    /// The status, as it changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.publish.subscribe()
    }

    /// Polls until `stop` is cancelled; then drops the poll under way. What a dropped poll leaves half done, the next
    /// start finds in the database.
    pub async fn run(mut self, stop: CancellationToken) {
        stop.run_until_cancelled(self.poll_for_ever()).await;
        info!("stopped");
    }

    async fn poll_for_ever(&mut self) {
        loop {
            match self.poll().await {
                Ok(PollEnd::Stalled(stall)) => {
                    let doing = if stall.reason().is_halt() { Doing::Halted } else { Doing::Waiting };
                    self.stall_log.stalled(&stall, doing);
                }
                Ok(PollEnd::Behind) => {
                    self.stall_log.goes_on();
                    tokio::time::sleep(SOON).await;
                    continue;
                }
                Ok(PollEnd::CaughtUp | PollEnd::Reached) => self.stall_log.goes_on(),
                Err(error) => self.stall_log.stalled(&error.stall(), Doing::TryingAgain),
            }
            tokio::time::sleep(self.settings.poll_interval).await;
        }
    }

    /// One poll with its outcome in the status.
    ///
    /// # Errors
    /// When something could not be read or written. What was stored before stays; the next poll looks again.
    pub async fn poll(&mut self) -> Result<PollEnd, FlowError> {
        self.status.polls = self.status.polls.saturating_add(1);
        let outcome = PollEnd::of(self.in_order().await);
        self.status.stall = match &outcome {
            Ok(PollEnd::Stalled(stall)) => Some(stall.clone()),
            Ok(PollEnd::Behind | PollEnd::CaughtUp | PollEnd::Reached) => None,
            Err(error) => Some(error.stall()),
        };
        self.status.execution_client = self.l2.client();
        self.publish();
        outcome
    }

    async fn in_order(&mut self) -> Decided<PollEnd> {
        if let Some(tip) = self.ledger.refresh().await? {
            self.node.local.loaded(&self.ledger, tip.as_ref());
        }
        let node = self.node.local.look(&self.ledger).await?;
        self.node.poll_begins(node);
        self.head = Some(node);
        self.pass_gate(&node)?;
        self.node.check_safe(&mut self.ledger).await?;
        // A node that restarted has its tags right again also while no source answers.
        self.node.sync_tags(&self.ledger).await?;
        let snapshot = self.ask_sources().await?;
        let end = self.follow(snapshot).await;
        self.node.sync_tags(&self.ledger).await?;
        match self.node.tags.take_two_nodes() {
            Some(stall) => Ok(PollEnd::Stalled(stall)),
            None => end,
        }
    }

    /// Following begins once, after the node's first sync. A later sync is met as case ① or ②a.
    fn pass_gate(&mut self, node: &L2Snapshot) -> Decided<()> {
        if self.shown.gate_open {
            return Ok(());
        }
        self.shown.gate_held_seconds = self.began.elapsed().as_secs();
        if node.syncing || node.head.number.get() == 0 {
            return Err(Cause::FirstSync { syncing: node.syncing }.into());
        }
        self.shown.gate_open = true;
        info!(target: "follow", seconds = self.shown.gate_held_seconds, head = %node.head, "the node's first sync is over");
        Ok(())
    }

    /// The snapshot that the sources show and L1 confirms.
    async fn ask_sources(&mut self) -> Decided<Snapshot> {
        let began = Instant::now();
        let mut answers: Vec<Result<Snapshot, NotTaken>> = Vec::new();
        if self.settings.agreement > 1 {
            answers = join_all(self.sources.iter().map(|source| self.judge(source.as_ref()))).await;
        } else {
            // The next source is asked only if the one before gave nothing that could be taken over.
            for source in &self.sources {
                let answer = self.judge(source.as_ref()).await;
                let taken = answer.is_ok();
                answers.push(answer);
                if taken {
                    break;
                }
            }
        }
        self.shown.latency_ms = u64::try_from(began.elapsed().as_millis()).ok();
        let (mut snapshots, mut worst) = (Vec::new(), None::<NotTaken>);
        for (place, answer) in answers.into_iter().enumerate() {
            let code = match answer {
                Ok(snapshot) => {
                    snapshots.push(snapshot);
                    "taken"
                }
                Err(not_taken) => {
                    let code = not_taken.code();
                    self.count_dropped(code);
                    if worst.as_ref().is_none_or(|worst| worst.weight() < not_taken.weight()) {
                        worst = Some(not_taken);
                    }
                    code
                }
            };
            if let Some(source) = self.shown.sources.get_mut(place) {
                source.last = Some(code);
            }
        }
        match (follow::agreed(&snapshots, self.settings.agreement), worst) {
            (Ok(snapshot), _) => Ok(snapshot),
            (Err(_), Some(worst)) if snapshots.is_empty() => Err(self.nothing_taken(worst.cause())),
            (Err(dropped), _) => {
                self.count_dropped(dropped.code());
                Err(self.nothing_taken(Cause::SourceDropped(dropped)))
            }
        }
    }

    /// What `source` shows, if it fits what we know and L1 confirms it.
    async fn judge(&self, source: &dyn HeadSource) -> Result<Snapshot, NotTaken> {
        let reply = source.reply().await.map_err(NotTaken::Failed)?;
        let FollowSettings { network, instance, .. } = self.settings;
        let expected = Expected { network, instance, finalized: self.ledger.heads().finalized() };
        let snapshot = follow::read(&reply, &expected).map_err(NotTaken::Dropped)?;
        self.confirmed(snapshot).await
    }

    /// `snapshot`, if our own L1 has the blocks that it cites. The block up to which the source has read is given as our
    /// own L1 has it.
    async fn confirmed(&self, snapshot: Snapshot) -> Result<Snapshot, NotTaken> {
        let numbers: Vec<_> = snapshot.cited().iter().map(|(_, block)| block.number).collect();
        let live = self.l1.headers(&numbers).await.map_err(NotTaken::L1)?;
        let age = Age { now: unix_now(), most: self.settings.max_age.as_secs() };
        follow::confirm(&snapshot, &live, age).map_err(NotTaken::Dropped)?;
        Ok(match live.first().copied().flatten() {
            Some(current_l1) => Snapshot { current_l1, ..snapshot },
            None => snapshot,
        })
    }

    fn count_dropped(&mut self, code: &'static str) {
        let count = self.shown.dropped.entry(code).or_default();
        *count = count.saturating_add(1);
    }

    /// Nothing was taken over in this poll, for this reason.
    fn nothing_taken(&mut self, cause: Cause) -> crate::flow::Stop {
        self.shown.without_reply = self.shown.without_reply.saturating_add(1);
        if self.shown.without_reply >= self.settings.alarm_after {
            self.shown.alarm = true;
            let (polls, why) = (self.shown.without_reply, &cause);
            error!(target: "follow", code = "follow_alarm", polls, %why, "nothing was taken over from any source for so many polls");
        }
        cause.into()
    }

    fn reply_was_taken(&mut self) {
        self.shown.without_reply = 0;
        if std::mem::take(&mut self.shown.alarm) {
            info!(target: "follow", code = "follow_alarm", recovered = true, "a source is followed again");
        }
    }

    /// What follows from a confirmed `snapshot`.
    async fn follow(&mut self, snapshot: Snapshot) -> Decided<PollEnd> {
        self.shown.source_safe = Some(snapshot.safe.block);
        self.shown.source_finalized = snapshot.finalized.map(|finalized| finalized.block);
        self.shown.source_current_l1 = Some(snapshot.current_l1.l1_ref());
        let (met, local) = self.case_of(&snapshot).await;
        self.differs = if met == FollowCase::Differs { self.differs.saturating_add(1) } else { 0 };
        let count = self.shown.cases.entry(met.as_str()).or_default();
        *count = count.saturating_add(1);
        self.shown.case = Some(met.as_str());
        let end = match (met, local) {
            (FollowCase::Same, Ok(Some(header))) => self.label(&snapshot, &header).await,
            (FollowCase::Ahead, _) => match self.take_head(&snapshot, None).await? {
                Some(end) => Ok(end),
                None => self.wait_for(snapshot).await,
            },
            (FollowCase::NotFound, _) => self.wait_for(snapshot).await,
            (FollowCase::Differs, Ok(Some(header))) => self.leave_chain(&snapshot, header.l2_ref()).await,
            (_, Err(error)) => Err(error.into()),
            (_, Ok(_)) => Err(FlowError::local_changed("the block at the source's safe head left the chain").into()),
        };
        self.tell(met, &snapshot);
        end
    }

    /// Case ④: the node is on another chain than the source. After some replies it is told to leave it, if its head is
    /// ours to set; the safe tag goes to a block of both chains in the same step.
    async fn leave_chain(&mut self, snapshot: &Snapshot, local: L2Ref) -> Decided<PollEnd> {
        if self.engine.is_some() && self.differs >= follow::REORG_AFTER {
            let both = match snapshot.finalized {
                Some(finalized) => Some(finalized.block),
                None => self.l2.header(0.into()).await?.map(|header| header.l2_ref()),
            };
            if let Some(end) = self.take_head(snapshot, both).await? {
                return Ok(end);
            }
        }
        Err(self.nothing_taken(Cause::SourceDiffers { source: snapshot.safe.block, local }))
    }

    /// Tells the node to take the safe head of `snapshot` as its head, with its safe tag on `safe`. None if its head is
    /// not ours to set, if our finalized block might leave the chain, or if the node did not take it (yet).
    async fn take_head(&mut self, snapshot: &Snapshot, safe: Option<L2Ref>) -> Decided<Option<PollEnd>> {
        let Some(engine) = self.engine.clone() else { return Ok(None) };
        let (ours, to) = (self.ledger.heads(), snapshot.safe.block);
        let finalized_at = match snapshot.finalized.map(|finalized| finalized.block) {
            Some(finalized) if finalized.number <= self.node.height() => {
                Local::of(self.l2.header(finalized.number).await?.map(|header| header.l2_ref()))
            }
            _ => Local::Missing,
        };
        if !follow::keeps_finalized(&ours, snapshot, finalized_at) {
            return Ok(None);
        }
        let both = BothSides::read(engine.as_ref(), self.l2.as_ref(), L2Number::new(0)).await?;
        if both.verdict == OneNode::Two {
            return Err(both.stall().into());
        }
        let before = both.node.head;
        match engine.set_head(to.hash, safe.map(|safe| safe.hash)).await? {
            HeadTold::Syncing => return Ok(None),
            HeadTold::Invalid => {
                let dropped = Dropped::Invalid { number: to.number };
                self.count_dropped(dropped.code());
                return Err(self.nothing_taken(Cause::SourceDropped(dropped)));
            }
            HeadTold::Valid => {}
        }
        let (after, at) = self.l2.snapshot_and(to.number).await?;
        self.head = Some(after);
        // An ancestor of the head is valid too, and changes nothing.
        if after.head.number < to.number || at.map(|header| header.l2_ref()) != Some(to) {
            return Ok(None);
        }
        if let Some(finalized) = ours.finalized()
            && self.l2.header(finalized.number).await?.map(|header| header.l2_ref()) != Some(finalized)
        {
            engine.set_head(before.hash, ours.safe().map(|safe| safe.hash)).await?;
            let dropped = Dropped::OtherFinalized { number: finalized.number };
            self.count_dropped(dropped.code());
            return Err(self.nothing_taken(Cause::SourceDropped(dropped)));
        }
        info!(target: "follow", from = %before, %to, "the node took the source's safe head");
        Ok(Some(PollEnd::Behind))
    }

    /// Our heads move only on a chain that holds our finalized block (P2): after a loss the node may come back on another
    /// one, and nothing else compares them while no safe head is stored.
    async fn holds_finalized(&self, ours: &Heads) -> Decided<()> {
        let Some(finalized) = ours.finalized() else { return Ok(()) };
        match self.l2.header(finalized.number).await?.map(|header| header.l2_ref()) {
            Some(local) if local == finalized => Ok(()),
            Some(_) => Err(Cause::BelowFinalized(Final::Verified).into()),
            None => Err(FlowError::local_changed(format!("block {finalized}, which is final, is missing")).into()),
        }
    }

    /// The case of `snapshot`, and the local block at the height of its safe head.
    async fn case_of(&self, snapshot: &Snapshot) -> (FollowCase, PortResult<Option<L2Header>>) {
        let (safe, head) = (snapshot.safe.block, self.node.height());
        if safe.number > head {
            return (case(safe, head, Local::NotAsked), Ok(None));
        }
        let local = self.l2.header(safe.number).await;
        (case(safe, head, local_of(&local)), local)
    }

    /// Our heads follow `snapshot`, whose safe head the node has: `header`.
    async fn label(&mut self, snapshot: &Snapshot, header: &L2Header) -> Decided<PollEnd> {
        let local = self.finalized_at(snapshot, header).await;
        let ours = self.ledger.heads();
        self.lower = if is_lower(&ours, snapshot) { self.lower.saturating_add(1) } else { 0 };
        let heads = match follow::labels(&ours, snapshot, local_of(&local), self.lower) {
            Labels::Set(heads) => heads,
            Labels::Lower => {
                self.reply_was_taken();
                return Ok(PollEnd::CaughtUp);
            }
            Labels::Dropped(dropped) => {
                self.count_dropped(dropped.code());
                return Err(self.nothing_taken(Cause::SourceDropped(dropped)));
            }
        };
        if heads != ours {
            self.holds_finalized(&ours).await?;
            let step = Step { safe: heads.safe(), finalized: heads.finalized(), ..Step::default() };
            self.ledger.commit(&step).await?;
        }
        self.lower = 0;
        self.reply_was_taken();
        if heads.safe() == Some(snapshot.safe.block) {
            self.places[0] = Some(with_local(snapshot.safe, header));
            self.taken = Some(*snapshot);
        }
        if let (Some(finalized), Ok(Some(header))) = (snapshot.finalized, &local)
            && heads.finalized() == Some(finalized.block)
        {
            self.places[1] = Some(with_local(finalized, header));
        }
        if self.target.is_some_and(|target| target.safe.block.number <= snapshot.safe.block.number) {
            self.target = None;
        }
        // A finalized head that could not be looked at is looked at in the next poll.
        local.map(|_| PollEnd::CaughtUp).map_err(Into::into)
    }

    /// The local block at the height of the source's finalized head, if the node has come so far.
    async fn finalized_at(&self, snapshot: &Snapshot, safe: &L2Header) -> PortResult<Option<L2Header>> {
        match snapshot.finalized.map(|finalized| finalized.block) {
            None => Ok(None),
            Some(finalized) if finalized.number == safe.number => Ok(Some(*safe)),
            Some(finalized) => self.l2.header(finalized.number).await,
        }
    }

    /// The node does not have the safe head of `snapshot`. What was waited for before may be there by now.
    async fn wait_for(&mut self, snapshot: Snapshot) -> Decided<PollEnd> {
        let head = self.node.height();
        if let Some(target) = self.target.filter(|target| target.safe.block.number <= head) {
            self.target = None;
            if let (FollowCase::Same, Ok(Some(header))) = self.case_of(&target).await
                && self.still_stands(target).await
            {
                self.label(&target, &header).await?;
            }
        }
        self.reply_was_taken();
        let waits_for = self.target.get_or_insert(snapshot).safe.block;
        Err(Cause::TargetMissing { head, target: waits_for }.into())
    }

    /// Whether what was confirmed in an earlier poll still fits our finalized head and L1.
    async fn still_stands(&self, target: Snapshot) -> bool {
        let finalized = self.ledger.heads().finalized();
        let fits = finalized.is_none_or(|finalized| target.safe.block.number >= finalized.number);
        fits && self.confirmed(target).await.is_ok()
    }

    /// The case in the log: as information if it or our heads changed.
    fn tell(&mut self, met: FollowCase, snapshot: &Snapshot) {
        let heads = self.ledger.heads();
        let show = |head: Option<L2Ref>| head.map(|head| head.to_string());
        let (safe, finalized) = (show(heads.safe()), show(heads.finalized()));
        let source_finalized = show(snapshot.finalized.map(|finalized| finalized.block));
        let (source_safe, head) = (snapshot.safe.block, self.node.head());
        if self.told.replace((met, heads)) == Some((met, heads)) {
            debug!(target: "follow", case = %met, %head, safe, finalized, %source_safe, source_finalized, "followed");
        } else {
            info!(target: "follow", case = %met, %head, safe, finalized, %source_safe, source_finalized, "followed");
        }
    }

    fn publish(&mut self) {
        let (heads, tags) = (self.ledger.heads(), self.node.tags.facts());
        self.shown.target = self.target.map(|target| target.safe.block);
        let ours = heads.safe().map_or(L2Number::new(0), |safe| safe.number);
        self.shown.lag = self.shown.source_safe.map(|source| source.number.above(ours));
        let status = &mut self.status;
        status.safe = heads.safe();
        status.finalized = heads.finalized();
        status.l2_head = self.head.map(|node| node.head);
        status.node_safe = tags.safe;
        status.node_finalized = tags.finalized;
        status.tags_contended = tags.contended;
        status.safe_beyond_verified = tags.safe_beyond_verified;
        status.held_by_node_finalized = tags.held_by_node_finalized;
        status.sync = sync_status(heads, self.places, self.taken.as_ref(), self.head.as_ref());
        status.follow = Some(self.shown.clone());
        self.publish.send_replace(status.clone());
    }
}

/// What the node said.
fn local_of(answer: &PortResult<Option<L2Header>>) -> Local {
    match answer {
        Ok(header) => Local::of(header.map(|header| header.l2_ref())),
        Err(_) => Local::NotAsked,
    }
}

/// The block of `place` as the local node has it, with the L1 origin that L1 confirmed.
const fn with_local(place: L2Place, header: &L2Header) -> L2Place {
    L2Place { parent_hash: header.parent_hash, timestamp: header.timestamp, ..place }
}

/// Our heads as `optimism_syncStatus` shows them: the source's L1 blocks, as far as our own L1 confirmed them.
fn sync_status(
    heads: Heads,
    [safe, finalized]: [Option<L2Place>; 2],
    taken: Option<&Snapshot>,
    node: Option<&L2Snapshot>,
) -> SyncStatus {
    let current_l1 = taken.map(|taken| taken.current_l1);
    let known = |head: Option<L2Ref>, place: Option<L2Place>| {
        head.map(|block| place.filter(|place| place.block == block).unwrap_or_else(|| places::bare(block)))
    };
    let safe_l2 = known(heads.safe(), safe);
    let head = node.map(|node| places::above(places::of_head(node), safe_l2.as_ref()));
    SyncStatus {
        current_l1,
        // The newest L1 block that is known to be canonical here.
        head_l1: current_l1,
        safe_l1: None,
        finalized_l1: None,
        unsafe_l2: head,
        safe_l2,
        finalized_l2: known(heads.finalized(), finalized),
    }
}
