//! The writer: `derive_force`, the only place that writes blocks. It takes a plan and returns what was written.
//!
//! Everything that needs no pause happened before: the plan is complete, its content was checked, and the blocks that
//! may stay were compared. The steps here: refuse what finality forbids, pause, look at the head once more, move safe
//! down, write in chunks and check every reply, read back (P1, P2, P5).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use crate::decide::one_node::OneNode;
use crate::decide::reconcile::{self, MadeOtherwise, Plan};
use crate::decide::refusal::{self, Refusal, Subject};
use crate::decide::speed::WriteSpeed;
use crate::decide::stall::{Cause, Final, Stall};
use crate::error::{PortError, PortErrorKind, Target};
use crate::flow::intents::{self, Noted};
use crate::flow::ledger::Ledger;
use crate::flow::node::Node;
use crate::flow::one_node::BothSides;
use crate::flow::patience::{Clock, Failure, Patience};
use crate::flow::quiesce::{Quiesce, Quiesced};
use crate::flow::states::KeptStates;
use crate::flow::tags::NodeTags;
use crate::flow::{Decided, FlowError, Ports, Settings, Stop, unix_now};
use crate::ports::{EngineView, L2Engine, L2Reader, Rows, WriteStopped};
use crate::types::{B256, BatchIndex, Case, JournalEntry, L2Header, L2Number, L2Ref, NewBlock, WriteIntent, keccak};

/// The first write that a worker without an engine would have made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingWrite {
    /// The batch.
    pub batch: BatchIndex,
    /// Its case.
    pub case: Case,
    /// The last local block that stays.
    pub skip: L2Ref,
}

/// What to write, and for which batch.
struct Job {
    index: BatchIndex,
    /// The batch under which the writes are noted: usually this one. If an interrupted write had begun to write this
    /// batch again for a later one, that later one.
    noted: Noted,
    /// The plan as it is written. If the state of its own parent is missing, it includes the equal blocks below it.
    plan: Plan,
    /// The first block that differs from L1.
    first: L2Number,
    /// The node's finalized tag before the write.
    finalized: Option<L2Ref>,
}

/// The block on which the next one is built.
#[derive(Clone, Copy)]
struct Below {
    block: L2Ref,
    /// The index of the L1 message that follows it, if known.
    next_l1_index: Option<u64>,
}

impl From<&L2Header> for Below {
    fn from(header: &L2Header) -> Self {
        Self { block: header.l2_ref(), next_l1_index: header.next_l1_index }
    }
}

/// How far a write got.
struct Sent {
    /// The last block that was asked for.
    to: L2Number,
    /// Up to this block, the blocks to be replaced are certain to stand.
    standing: L2Number,
}

impl Job {
    /// Nothing was sent, or all of it was refused.
    fn unsent(&self) -> Sent {
        let standing = self.plan.replaces.last().map_or(self.plan.skip.number, |old| old.number);
        Sent { to: self.plan.skip.number, standing }
    }

    /// The pause has no room for more. `at` is the last block that stands as the plan wants it. The next try continues
    /// from there, and does so at once if this try came further than the block that stays.
    fn out_of_budget(&self, at: L2Ref) -> Failure {
        let progressed = at != self.plan.skip;
        let refusal = (!progressed).then_some((Refusal::Passing, Subject::EveryWrite));
        let stall = Stall::at(self.index, Cause::PauseBudget { at: at.number });
        Failure { answer: Stop::Stands(stall), refusal, progressed }
    }

    fn old_hash(&self, number: L2Number) -> Option<B256> {
        self.plan.replaces.iter().find(|old| old.number == number).map(|old| old.hash)
    }

    /// What a refusal of `block` on `parent` covers. A block below the first difference was on the chain already: then
    /// the plan as a whole waits.
    fn subject(&self, parent: B256, block: &NewBlock) -> Subject {
        if block.number >= self.first {
            return Subject::block(parent, block);
        }
        let own = self.plan.blocks.iter().find(|own| own.number == self.first);
        match (self.plan.again.last(), own) {
            (Some(skip), Some(own)) => Subject::block(skip.hash, own),
            _ => Subject::EveryWrite,
        }
    }
}

/// What the writer is asked to do.
pub(crate) struct Order {
    /// The batch.
    pub(crate) index: BatchIndex,
    /// Its hash.
    pub(crate) hash: B256,
    /// Its case.
    pub(crate) case: Case,
    /// What to write.
    pub(crate) plan: Plan,
}

/// The pause that the batches of one poll share. It belongs to the poll and not to the writer: a poll that is dropped
/// ends it.
#[derive(Default)]
pub(crate) struct SharedPause {
    open: Option<Quiesced>,
    /// The last block that was written inside it.
    written: Option<L2Ref>,
}

impl SharedPause {
    /// Ends it, if it is open.
    ///
    /// # Errors
    /// When the reactors could not be resumed; the resume is tried again in the background.
    pub(crate) async fn release(&mut self) -> Result<(), FlowError> {
        match self.open.take() {
            Some(pause) => Ok(pause.release().await?),
            None => Ok(()),
        }
    }

    /// Whether it holds the reactors paused.
    pub(crate) const fn is_open(&self) -> bool {
        self.open.is_some()
    }

    fn remaining(&self) -> Duration {
        self.open.as_ref().map_or(Duration::ZERO, Quiesced::remaining)
    }

    fn writing(&self, begins: bool) {
        self.open.iter().for_each(|pause| pause.writing(begins));
    }

    fn wrote(&self, head: L2Number) {
        self.open.iter().for_each(|pause| pause.wrote(head));
    }

    fn is_writing(&self) -> bool {
        self.open.as_ref().is_some_and(Quiesced::is_writing)
    }
}

/// What a write may change.
pub(crate) struct Hands<'a> {
    /// Heads, cursor and write intents.
    pub(crate) ledger: &'a mut Ledger,
    /// The node.
    pub(crate) node: &'a mut Node,
    /// The pause that the poll's batches share.
    pub(crate) pause: &'a mut SharedPause,
    /// The poll's time.
    pub(crate) now: Duration,
}

/// Engine, guard and refusals.
pub(crate) struct Writer {
    engine: Option<Arc<dyn L2Engine>>,
    l2: Arc<dyn L2Reader>,
    rows: Arc<dyn Rows>,
    quiesce: Quiesce,
    states: KeptStates,
    /// What the last try to write failed on.
    patience: Patience,
    /// Without an engine: the first write that would have been made.
    pending: Option<PendingWrite>,
    /// Blocks written so far.
    blocks_written: u64,
    pause_budget: Duration,
    speed: WriteSpeed,
    write_chunk: usize,
    poll_interval: Duration,
    /// A pause costs nothing.
    free: bool,
}

impl Writer {
    /// A writer that has tried nothing yet.
    pub(crate) fn new(ports: &Ports, quiesce: Quiesce, settings: &Settings) -> Self {
        Self {
            engine: ports.engine.clone(),
            l2: ports.l2.clone(),
            rows: ports.progress.clone(),
            quiesce,
            states: KeptStates::new(ports.l2.clone(), settings.switch_ms, settings.local_bytes),
            patience: Patience::default(),
            pending: None,
            blocks_written: 0,
            pause_budget: settings.pause_budget,
            speed: WriteSpeed::new(settings.pause_per_block),
            write_chunk: settings.write_chunk.max(1),
            poll_interval: settings.poll_interval,
            free: !ports.reactors.can_resume(),
        }
    }

    /// A poll begins.
    pub(crate) const fn poll_begins(&mut self) {
        self.pending = None;
    }

    /// Without an engine: the first write that would have been made in this poll.
    pub(crate) const fn pending(&self) -> Option<PendingWrite> {
        self.pending
    }

    /// The same write as in an earlier poll would have been made.
    pub(crate) const fn still_pending(&mut self, pending: Option<PendingWrite>) {
        self.pending = pending;
    }

    /// Whether there is an engine to write to.
    pub(crate) const fn can_write(&self) -> bool {
        self.engine.is_some()
    }

    /// Blocks written so far.
    pub(crate) const fn blocks_written(&self) -> u64 {
        self.blocks_written
    }

    /// The node did not answer, and may be gone.
    pub(crate) const fn node_is_away(&mut self) {
        self.patience.node_is_away();
    }

    /// The node answered at `now`.
    pub(crate) fn node_is_there(&mut self, now: Duration) {
        self.patience.node_is_there(now);
    }

    /// At `now` the node was seen to be another one than before.
    pub(crate) fn node_changed(&mut self, now: Duration) {
        self.patience.node_changed(now);
    }

    /// Writes the plan's blocks after its skip number. Gives the header of the last one.
    pub(crate) async fn derive_force(&mut self, order: Order, hands: &mut Hands<'_>) -> Decided<L2Header> {
        let Order { index, hash, case, plan } = order;
        let Some(engine) = self.engine.clone() else {
            self.pending = Some(PendingWrite { batch: index, case, skip: plan.skip });
            return Err(would_have(index, case, &plan).into());
        };
        let engine = engine.as_ref();
        if plan.rewrites() && hands.node.tags.is_final(hands.ledger, plan.first()) {
            return Err(below_finalized(index, &plan).into());
        }
        if let Some(answer) = self.must_wait(engine, &plan, hands.now).await {
            return Err(answer.at(index));
        }
        let (first, tries) = (plan.first(), self.patience.tries(&plan));
        let floor = hands.node.tags.finalized_height(hands.ledger).unwrap_or_default();
        let plan = self.states.on_kept_state(plan, floor).await.map_err(|stop| stop.at(index))?;
        // Blocks that an earlier, interrupted write left below are entered in the journal before anything that stands
        // on them (P6).
        let noted = match intents::written_again(hands.ledger, self.rows.as_ref(), index, hash).await? {
            Some((_, note)) => note.into(),
            None => Noted { batch: index, hash, case },
        };
        let height = hands.node.height();
        intents::close(hands.ledger, self.l2.as_ref(), (noted.batch, noted.hash), first.minus(1), height).await?;
        let job = Job { index, noted, plan, first, finalized: None };
        let outcome = match self.pause_for(engine, &job.plan, hands).await {
            Ok(()) => self.write_inside_the_pause(engine, job, hands).await,
            Err(failure) => Err(failure),
        };
        match outcome {
            Ok(last) => {
                self.patience.succeeded();
                Ok(last)
            }
            Err(failure) => {
                let clock = Clock { now: hands.now, poll_interval: self.poll_interval, free: self.free };
                Err(self.patience.failed(failure, tries, clock).at(index))
            }
        }
    }

    /// The answer for `plan` in place of a try. The node is asked for its version first: an upgrade ends the wait.
    async fn must_wait(&mut self, engine: &dyn L2Engine, plan: &Plan, now: Duration) -> Option<Stop> {
        self.patience.answer(plan, now)?;
        if let Ok(view) = engine.view(plan.skip.number).await {
            self.patience.saw_version(self.version(&view), now);
        }
        self.patience.answer(plan, now)
    }

    /// The node's version: from the engine, else from the reader. morph-reth reports it on its other port only.
    fn version(&self, view: &EngineView) -> Option<B256> {
        view.version.or_else(|| self.l2.client().map(|client| keccak(client.version.as_bytes())))
    }

    async fn write_inside_the_pause(
        &mut self,
        engine: &dyn L2Engine,
        mut job: Job,
        hands: &mut Hands<'_>,
    ) -> Result<L2Header, Failure> {
        let plan = &job.plan;
        // The head is read again inside the pause: a block that was being applied when it began may have landed. The
        // engine's is read beside it: nothing is sent to a node that is not the one that was compared.
        let both = BothSides::read(engine, self.l2.as_ref(), plan.skip.number).await?;
        self.patience.saw_version(self.version(&both.engine), hands.now);
        let now = both.node;
        match both.verdict {
            OneNode::Same => {}
            OneNode::Moving => return Err(FlowError::local_changed("the head moves inside the pause").into()),
            OneNode::Two => return Err(Failure::changed(Stop::Stands(both.stall()))),
        }
        self.check_still_holds(plan, hands.node.head(), now.head).await?;
        if both.engine.at != Some(plan.skip) {
            return Err(no_longer_there(plan.skip).into());
        }
        // Finalized is read again too: another writer may have moved it since the poll began (E14, E23).
        hands.node.tags.saw(&now);
        if plan.rewrites() && hands.node.tags.is_final(hands.ledger, job.first) {
            return Err(Failure::seen_without_a_pause(below_finalized(job.index, plan)));
        }
        if plan.rewrites() && hands.node.tags.is_final(hands.ledger, plan.first()) {
            return Err(FlowError::local_changed("finalized moved over blocks that were to be written again").into());
        }
        hands.node.stands_on(now.head);
        hands.node.tags.lower(hands.ledger, &now, plan.skip).await?;
        info!(
            batch = job.index.get(),
            case = %job.noted.case,
            skip = plan.skip.number.get(),
            blocks = plan.blocks.len(),
            dropped_above = hands.node.height().above(plan.last()),
            "writing blocks"
        );
        job.finalized = NodeTags::finalized_before(hands.ledger, &now);
        let outcome = self.write(engine, &job, hands).await;
        // The node is read after a failure too: blocks may have landed whose answer was lost, and the node may have
        // moved its tags by itself. Blocks that landed without an answer are in the intents, and enter the journal from
        // there.
        let after = self.read_back(hands).await;
        let last = outcome?;
        let after = after?;
        if after != last.l2_ref() {
            return Err(FlowError::local_changed("the head is not the last block that was written").into());
        }
        Ok(last)
    }

    /// Whether the plan still fits a head that moved from `before` to `now`: blocks that landed on top of the replaced
    /// ones only add to what is dropped; after any other change the batch is decided anew (G5).
    async fn check_still_holds(&self, plan: &Plan, before: L2Ref, now: L2Ref) -> Result<(), FlowError> {
        let moved = || FlowError::local_changed(format!("the head moved from {before} to {now}"));
        let tell = reconcile::tells_that_it_holds(plan, before, now).ok_or_else(moved)?;
        for block in tell {
            if self.l2.header(block.number).await?.is_none_or(|h| h.l2_ref() != block) {
                return Err(moved());
            }
        }
        Ok(())
    }

    /// Reads the node after a write: the head is ours as far as it moved, and counts as no growth.
    async fn read_back(&self, hands: &mut Hands<'_>) -> Result<L2Ref, FlowError> {
        let after = match self.l2.snapshot().await {
            Ok(after) => after,
            Err(error) => {
                hands.node.local.wrote_unknown();
                return Err(error.into());
            }
        };
        // A write that was not answered may still land more blocks: they are no growth either.
        match hands.pause.is_writing() {
            true => hands.node.local.wrote_unknown(),
            false => hands.node.local.wrote(after.head.number),
        }
        hands.node.stands_on(after.head);
        hands.pause.wrote(after.head.number);
        hands.node.shows(after);
        hands.node.restore(hands.ledger).await?;
        Ok(hands.node.shown_head())
    }

    /// A pause with enough budget for the plan: the poll's open one, or a new one. If the engine does not answer, or is
    /// another node than the reader, nothing is paused. A failure leads to a wait only if the reactors were asked: they
    /// may be a service that was stopped and started.
    async fn pause_for(&self, engine: &dyn L2Engine, plan: &Plan, hands: &mut Hands<'_>) -> Result<(), Failure> {
        let need = self.speed.pause_for(plan.blocks.len());
        if let Some(open) = hands.pause.open.take() {
            if self.has_room(open.remaining(), plan.blocks.len()) {
                hands.pause.open = Some(open);
                return Ok(());
            }
            open.release().await.map_err(Failure::before_a_pause)?;
        }
        let both = BothSides::read(engine, self.l2.as_ref(), plan.skip.number).await;
        let both = both.map_err(Failure::before_a_pause)?;
        match both.verdict {
            OneNode::Two => return Err(Failure::seen_without_a_pause(both.stall())),
            OneNode::Same if both.engine.at != Some(plan.skip) => {
                return Err(Failure::before_a_pause(no_longer_there(plan.skip)));
            }
            OneNode::Same | OneNode::Moving => {}
        }
        let budget = self.pause_budget.saturating_add(need);
        hands.pause.written = None;
        hands.pause.open = Some(self.quiesce.acquire(hands.node.height(), budget).await?);
        Ok(())
    }

    /// Whether `left` of a pause is enough to write so many blocks, with a margin: an interrupted write may land when
    /// the reactors are back (P5).
    fn has_room(&self, left: Duration, blocks: usize) -> bool {
        room(left, blocks, self.speed.per_block(), self.pause_budget)
    }

    /// Writes the plan's blocks. The notes of blocks that were not sent are taken back: a block that appears at those
    /// heights is not our write, and a tag on it is not the node's own mark (M9). Blocks that left the chain with the
    /// first write stay noted all the same, for the journal (P6).
    async fn write(&mut self, engine: &dyn L2Engine, job: &Job, hands: &mut Hands<'_>) -> Result<L2Header, Failure> {
        let mut sent = job.unsent();
        let outcome = self.write_in_chunks(engine, job, hands, &mut sent).await;
        let unsent = |w: &WriteIntent| w.number > sent.to && w.new_hash.is_none();
        if outcome.is_err() && hands.ledger.intents().iter().any(unsent) {
            hands.ledger.withdraw_writes(sent.to.plus(1), sent.standing).await?;
        }
        outcome
    }

    /// Writes the plan's blocks chunk by chunk, and records in `sent` how far it came.
    ///
    /// A block that rewrites goes alone, and so does the first block on a parent that is not our own write of this
    /// pause. Only the first block of a request carries its parent's hash. The others follow as head + 1, and the node
    /// continues after a refused one. So they may be sent only if nothing but our own block can be the head: after a
    /// refused rewrite, head + 1 would be executed on the forked head.
    async fn write_in_chunks(
        &mut self,
        engine: &dyn L2Engine,
        job: &Job,
        hands: &mut Hands<'_>,
        sent: &mut Sent,
    ) -> Result<L2Header, Failure> {
        let mut below = Below { block: job.plan.skip, next_l1_index: None };
        let mut written: Option<L2Header> = None;
        let mut rest = job.plan.blocks.as_slice();
        while !rest.is_empty() {
            let own = written.is_some() || (!job.plan.rewrites() && hands.pause.written == Some(below.block));
            let take = if own { self.speed.chunk(self.write_chunk).min(rest.len()) } else { 1 };
            let (chunk, after) = rest.split_at(take);
            rest = after;
            if !self.has_room(hands.pause.remaining(), chunk.len()) {
                return Err(job.out_of_budget(below.block));
            }
            let begun = WriteIntent {
                number: L2Number::default(),
                batch: job.noted.batch,
                batch_hash: job.noted.hash,
                case: job.noted.case,
                old_hash: None,
                new_hash: None,
                finalized: job.finalized,
                seen: false,
            };
            // With the first write everything that it replaces leaves the chain. What stood there is noted before that
            // write, and as looked at: a block that appears there before ours is sent does not come from a write of
            // ours (M9).
            let dropped = after.iter().filter(|block| written.is_none() && job.old_hash(block.number).is_some());
            let dropped: Vec<_> = dropped.map(|block| block.number).collect();
            if !dropped.is_empty() {
                let unsent = WriteIntent { seen: true, ..begun };
                intents::begin(hands.ledger, unsent, &dropped, |number| job.old_hash(number)).await?;
            }
            let numbers: Vec<_> = chunk.iter().map(|block| block.number).collect();
            intents::begin(hands.ledger, begun, &numbers, |number| job.old_hash(number)).await?;
            let mut left_over = chunk.to_vec();
            while !left_over.is_empty() {
                let headers = self.send(engine, job, &mut left_over, below, hands, sent).await?;
                left_over.drain(..headers.len().min(left_over.len()));
                written = headers.last().copied();
                below = written.as_ref().map_or(below, Below::from);
            }
        }
        written.ok_or_else(|| FlowError::local_changed("nothing was to be written").into())
    }

    /// Sends the first of `blocks`, which are noted, to be built on `below`, in one request. Gives the headers of the
    /// blocks that were made as given, and no others.
    async fn send(
        &mut self,
        engine: &dyn L2Engine,
        job: &Job,
        blocks: &mut [NewBlock],
        below: Below,
        hands: &mut Hands<'_>,
        sent: &mut Sent,
    ) -> Result<Vec<L2Header>, Failure> {
        // The database and the request before may have taken a while: nothing is sent that could land after the pause
        // (P5).
        let left = hands.pause.remaining();
        if !self.has_room(left, blocks.len()) {
            return Err(job.out_of_budget(below.block));
        }
        if let Some(first) = blocks.first_mut() {
            first.parent_hash = Some(below.block.hash);
        }
        hands.pause.writing(true);
        // From here on the first block may have removed all that is to be replaced.
        *sent = Sent { to: blocks.last().map_or(sent.to, |last| last.number), standing: job.plan.skip.number };
        let asked = Instant::now();
        let (headers, stopped) = match tokio::time::timeout(left, engine.write_blocks(blocks)).await {
            Ok(Ok(headers)) => {
                // One header for each block that went into the request: no block after them was sent.
                let last = headers.len().checked_sub(1).and_then(|at| blocks.get(at));
                sent.to = last.map_or(sent.to, |last| last.number);
                (headers, None)
            }
            Ok(Err(WriteStopped { written, error })) => (written, Some(error)),
            // The node may still be writing; how far it came is read before the next write (G3).
            Err(_) => {
                self.speed.measured(1, asked.elapsed());
                return Err(job.out_of_budget(below.block));
            }
        };
        // After an answer the node is done; after a broken connection it may still be writing.
        let answered = |error: &PortError| matches!(error.kind, PortErrorKind::Refused { .. });
        // A request that was not answered took as long as one block may: the next one is small.
        let made = if stopped.as_ref().is_none_or(answered) { headers.len() } else { 1 };
        self.speed.measured(made, asked.elapsed());
        hands.pause.writing(stopped.as_ref().is_some_and(|error| !answered(error)));
        if headers.len() > blocks.len() || (headers.is_empty() && stopped.is_none()) {
            let detail = format!("{} blocks were sent, {} headers came back", blocks.len(), headers.len());
            return Err(PortError::malformed(Target::Engine, detail).into());
        }
        let other = reconcile::mismatch(blocks, &headers, below.block.hash, below.next_l1_index, &job.plan.again);
        // A block that the reply does not report stays in the notes, and is read from the node.
        let told = other.as_ref().map_or(headers.len(), MadeOtherwise::told);
        self.note_written(job, headers.get(..told).unwrap_or_default(), hands).await?;
        if let Some(other) = other {
            return Err(made_otherwise(job, &other));
        }
        let Some(error) = stopped else { return Ok(headers) };
        let untouched = below.block == job.plan.skip && headers.is_empty();
        if let (PortErrorKind::Refused { code, message }, Some(refused)) = (&error.kind, blocks.get(headers.len()))
            && refusal::judge(*code, message, rewrites(job, refused)).left_nothing()
        {
            if untouched {
                sent.standing = job.unsent().standing;
            }
            hands.ledger.withdraw_writes(refused.number, sent.standing).await?;
        }
        Err(write_stopped(job, blocks, &headers, error, !untouched))
    }

    /// The journal, the guard's height and the poll's head follow every write. The liveness baseline follows when the
    /// head is read back.
    async fn note_written(&mut self, job: &Job, headers: &[L2Header], hands: &mut Hands<'_>) -> Result<(), FlowError> {
        let Some(last) = headers.last() else { return Ok(()) };
        hands.node.stands_on(last.l2_ref());
        hands.pause.written = Some(last.l2_ref());
        hands.pause.wrote(last.number);
        self.blocks_written = self.blocks_written.saturating_add(headers.len() as u64);
        let at = unix_now();
        // An earlier run may have dropped what stood there: its note says so (P6).
        let batch = job.noted.batch;
        let noted = |number: L2Number| hands.ledger.intents().iter().find(|w| w.number == number && w.batch == batch);
        let entries: Vec<_> = headers
            .iter()
            .map(|header| JournalEntry {
                at,
                batch,
                number: header.number,
                old_hash: noted(header.number).map_or_else(|| job.old_hash(header.number), |note| note.old_hash),
                new_hash: header.hash,
                why: job.noted.case.as_str().to_owned(),
            })
            .collect();
        Ok(hands.ledger.journal(&entries).await?)
    }
}

/// Both sides show the head of one node, so the chain changed since the comparison.
fn no_longer_there(skip: L2Ref) -> FlowError {
    FlowError::local_changed(format!("block {skip}, which is to be built on, is no longer there"))
}

/// Whether `block` is the one of its plan that goes below the head.
fn rewrites(job: &Job, block: &NewBlock) -> bool {
    job.plan.rewrites() && block.number == job.plan.first()
}

/// What a write that stopped after `headers` means, and what it says about the next try (E13, E17).
fn write_stopped(job: &Job, blocks: &[NewBlock], headers: &[L2Header], error: PortError, progressed: bool) -> Failure {
    let stopped = |error: PortError| Failure { progressed, ..error.into() };
    let PortErrorKind::Refused { code, message } = &error.kind else { return stopped(error) };
    let parent = headers.last().map(|h| h.hash).or_else(|| blocks.first().and_then(|b| b.parent_hash));
    let (Some(block), Some(parent)) = (blocks.get(headers.len()), parent) else { return stopped(error) };
    let Job { index, plan, .. } = job;
    let subject = job.subject(parent, block);
    let rewrites = rewrites(job, block);
    let stands = |cause, refusal| {
        let answer = Stop::Stands(Stall::at(*index, cause));
        Failure { answer, refusal: Some(refusal), progressed }
    };
    match refusal::judge(*code, message, rewrites) {
        Refusal::Passing | Refusal::NotPaused => {
            Failure { refusal: Some((Refusal::Passing, subject)), ..stopped(error) }
        }
        Refusal::ChainChanged => FlowError::local_changed(error.to_string()).into(),
        Refusal::CannotRewrite => {
            stands(Cause::CannotRewrite { skip: plan.skip }, (Refusal::CannotRewrite, Subject::EveryRewrite))
        }
        Refusal::FinalizedElsewhere => {
            stands(Cause::FinalizedElsewhere(error), (Refusal::FinalizedElsewhere, Subject::EveryWrite))
        }
        Refusal::Permanent => stands(Cause::Refused(error), (Refusal::Permanent, subject)),
    }
}

fn below_finalized(index: BatchIndex, plan: &Plan) -> Stall {
    let first = plan.blocks.get(plan.again.len()).map_or(plan.first(), |block| block.number);
    Stall::at(index, Cause::BelowFinalized(Final::Block(first)))
}

/// Time enough for `blocks` at `per_block`, and a quarter of the `budget` that every pause has beside its blocks.
fn room(left: Duration, blocks: usize, per_block: Duration, budget: Duration) -> bool {
    let need = per_block.saturating_mul(u32::try_from(blocks).unwrap_or(u32::MAX));
    left > need.saturating_add(budget / 4)
}

/// The node made `other` from a block: it would make the same again.
fn made_otherwise(job: &Job, other: &MadeOtherwise<'_>) -> Failure {
    let stall = Stall::at(job.index, Cause::OtherBlockMade { number: other.block.number, what: other.what });
    let refusal = Some((Refusal::Permanent, job.subject(other.parent, other.block)));
    Failure { answer: Stop::Stands(stall), refusal, progressed: false }
}

/// What observe mode reports in place of a write.
fn would_have(index: BatchIndex, case: Case, plan: &Plan) -> Stall {
    let (blocks, first) = (plan.blocks.len() as u64, plan.first());
    Stall::at(index, Cause::WouldWrite { case, blocks, first })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    use async_trait::async_trait;

    use crate::decide::reconcile::Otherwise;
    use crate::flow::testing::{World, cause_of};
    use crate::ports::{EngineView, PortResult};

    /// Blocks `first..=last` as they are recorded, in place of what stands there.
    fn plan(world: &World, first: u64, last: u64) -> Plan {
        let node = world.node.node();
        let block = |number| NewBlock { parent_hash: None, ..world.recorded.at(number).unwrap().as_new_block() };
        let replaces = (first..=last).map_while(|number| node.at(number)).map(|old| old.l2_ref()).collect();
        let blocks = (first..=last).map(block).collect();
        Plan { skip: world.l2(first - 1), blocks, replaces, again: Vec::new() }
    }

    /// Has `plan` written for batch 6 in a poll of its own; `meanwhile` runs after the poll began.
    async fn written(world: &mut World, plan: Plan, meanwhile: impl Fn(&World)) -> (Decided<L2Header>, Writer) {
        let (mut node, mut writer) = (world.poll_begins().await, world.writer());
        meanwhile(world);
        let mut pause = SharedPause::default();
        let now = Duration::from_secs(60);
        let mut hands = Hands { ledger: &mut world.ledger, node: &mut node, pause: &mut pause, now };
        let order = Order { index: 6.into(), hash: B256::repeat_byte(6), case: Case::FillGap, plan };
        let end = writer.derive_force(order, &mut hands).await;
        pause.release().await.unwrap();
        (end, writer)
    }

    #[tokio::test]
    async fn p5_p6_a_gap_is_written_inside_one_pause_and_entered_in_the_journal() {
        let mut world = World::recorded().await;
        world.node.node().truncate(60);
        let plan = plan(&world, 61, 72);
        let (end, writer) = written(&mut world, plan, |_| ()).await;
        assert_eq!(end.unwrap().l2_ref(), world.l2(72));
        assert_eq!(*world.reactors.calls.lock().unwrap(), [("pause", 60), ("resume", 72)]);
        assert_eq!(writer.blocks_written(), 12);
        let journal = world.ports.progress.journal_tail(20).await.unwrap();
        let noted: Vec<_> = journal.iter().rev().map(|entry| (entry.number.get(), entry.new_hash)).collect();
        assert_eq!(noted, (61..=72).map(|number| (number, world.l2(number).hash)).collect::<Vec<_>>());
    }

    /// An engine that takes two blocks in a request, and bends the headers that it gives back.
    struct InPairs {
        inner: Arc<dyn L2Engine>,
        bend: fn(&mut L2Header),
        /// The first block of each request, and the parent that it names.
        requests: Mutex<Vec<(u64, Option<B256>)>>,
    }

    #[async_trait]
    impl L2Engine for InPairs {
        async fn view(&self, number: L2Number) -> PortResult<EngineView> {
            self.inner.view(number).await
        }

        async fn write_blocks(&self, blocks: &[NewBlock]) -> Result<Vec<L2Header>, WriteStopped> {
            self.requests.lock().unwrap().push((blocks[0].number.get(), blocks[0].parent_hash));
            let mut headers = self.inner.write_blocks(&blocks[..blocks.len().min(2)]).await?;
            headers.iter_mut().for_each(self.bend);
            Ok(headers)
        }

        async fn set_tags(&self, safe: Option<B256>, finalized: Option<B256>) -> PortResult<()> {
            self.inner.set_tags(safe, finalized).await
        }
    }

    /// Blocks 61 to 72 are missing, and the engine takes two blocks in a request.
    async fn in_pairs(bend: fn(&mut L2Header)) -> (World, Plan, Arc<InPairs>) {
        let mut world = World::recorded().await;
        world.node.node().truncate(60);
        let inner = world.ports.engine.take().unwrap();
        let engine = Arc::new(InPairs { inner, bend, requests: Mutex::default() });
        world.ports.engine = Some(engine.clone());
        let plan = plan(&world, 61, 72);
        (world, plan, engine)
    }

    #[tokio::test]
    async fn j9_a_chunk_that_does_not_fit_into_one_request_goes_out_in_several_each_pinned() {
        let (mut world, plan, engine) = in_pairs(|_| ()).await;
        let (end, writer) = written(&mut world, plan, |_| ()).await;
        assert_eq!(end.unwrap().l2_ref(), world.l2(72));
        assert_eq!(writer.blocks_written(), 12);
        let requests = [61, 62, 64, 66, 68, 70, 72].map(|first| (first, Some(world.l2(first - 1).hash)));
        assert_eq!(*engine.requests.lock().unwrap(), requests);
        assert_eq!(*world.reactors.calls.lock().unwrap(), [("pause", 60), ("resume", 72)]);
    }

    #[tokio::test]
    async fn e17_m9_a_reply_about_another_block_ends_the_write_before_more_is_sent_and_is_remembered() {
        type Row = (fn(&mut L2Header), Otherwise, u64);
        let table: [Row; 3] = [
            (|h| h.number = if h.number.get() == 65 { 99.into() } else { h.number }, Otherwise::Number, 64),
            (|h| h.parent_hash.0[0] ^= u8::from(h.number.get() == 65), Otherwise::Parent, 64),
            (|h| h.timestamp += u64::from(h.number.get() == 65), Otherwise::Timestamp, 65),
        ];
        for (bend, what, told) in table {
            let (mut world, plan, engine) = in_pairs(bend).await;
            let (end, mut writer) = written(&mut world, plan, |_| ()).await;
            let cause = Some(Cause::OtherBlockMade { number: 65.into(), what });
            assert_eq!(cause_of(end), cause);
            let firsts: Vec<_> = engine.requests.lock().unwrap().iter().map(|(first, _)| *first).collect();
            assert_eq!(firsts, [61, 62, 64], "nothing after the reply that {what:?} differs in");
            // The block that the reply does not report is still noted; the blocks that were not sent are not.
            let journal = world.ports.progress.journal_tail(20).await.unwrap();
            let journalled: Vec<_> = journal.iter().rev().map(|entry| entry.number.get()).collect();
            assert_eq!(journalled, (61..=told).collect::<Vec<_>>());
            let noted: Vec<_> = world.ledger.intents().iter().map(|write| write.number.get()).collect();
            assert_eq!(noted, (61..=65).collect::<Vec<_>>());
            // What stands stays, and the block that was made otherwise is not asked for again.
            world.node.node().truncate(64);
            let plan = self::plan(&world, 65, 72);
            let mut node = world.poll_begins().await;
            let mut pause = SharedPause::default();
            let now = Duration::from_secs(75);
            let mut hands = Hands { ledger: &mut world.ledger, node: &mut node, pause: &mut pause, now };
            let order = Order { index: 6.into(), hash: B256::repeat_byte(6), case: Case::FillGap, plan };
            assert_eq!(cause_of(writer.derive_force(order, &mut hands).await), cause);
            assert_eq!(engine.requests.lock().unwrap().len(), 3);
        }
    }

    #[tokio::test]
    async fn p2_what_is_final_is_not_rewritten_and_nothing_is_paused_for_it() {
        let mut world = World::recorded().await;
        world.node.node().set_block_tags(world.l2(61).hash, world.l2(61).hash).unwrap();
        let plan = plan(&world, 61, 72);
        let (end, _) = written(&mut world, plan, |_| ()).await;
        assert_eq!(cause_of(end), Some(Cause::BelowFinalized(Final::Block(61.into()))));
        assert!(world.reactors.calls.lock().unwrap().is_empty());
        assert!(world.node.node().writes().is_empty());
    }

    #[tokio::test]
    async fn g5_a_plan_on_a_block_that_left_the_chain_is_not_written() {
        let mut world = World::recorded().await;
        world.node.node().truncate(60);
        let plan = plan(&world, 61, 72);
        let (end, writer) = written(&mut world, plan, |world| world.fork_l2(59)).await;
        assert!(matches!(end, Err(Stop::Failed(error)) if matches!(error.stall().cause, Cause::LocalChanged(_))));
        assert!(world.node.node().writes().is_empty());
        assert_eq!(writer.blocks_written(), 0);
    }

    #[tokio::test]
    async fn without_an_engine_the_write_is_reported_and_not_made() {
        let mut world = World::recorded().await;
        world.ports.engine = None;
        world.node.node().truncate(60);
        let plan = plan(&world, 61, 72);
        let (end, writer) = written(&mut world, plan, |_| ()).await;
        let would = Cause::WouldWrite { case: Case::FillGap, blocks: 12, first: 61.into() };
        assert_eq!(cause_of(end), Some(would));
        let skip = world.l2(60);
        assert_eq!(writer.pending(), Some(PendingWrite { batch: 6.into(), case: Case::FillGap, skip }));
        assert!(world.reactors.calls.lock().unwrap().is_empty());
    }

    #[test]
    fn g3_p5_no_chunk_begins_that_the_pause_has_no_room_for() {
        let (per_block, budget) = (Duration::from_millis(50), Duration::from_millis(400));
        let table =
            [(0, 1, false), (150, 1, false), (151, 1, true), (599, 10, false), (600, 10, false), (601, 10, true)];
        for (left, blocks, expected) in table {
            let left = Duration::from_millis(left);
            assert_eq!(room(left, blocks, per_block, budget), expected, "{left:?} for {blocks}");
        }
        // A pause that has just begun has room for all that it was made for.
        assert!(room(budget + per_block * 64, 64, per_block, budget));
    }
}
