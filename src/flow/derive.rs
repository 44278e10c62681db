//! `derive_force`: the only place that writes blocks.
//!
//! Everything that needs no pause happened before: the plan is complete, its content was checked, what may stay was
//! compared. Here: refuse what finality forbids, pause, look at the head once more, move safe down, write in chunks
//! with every reply checked, read back (P1, P2, P5).

use std::time::Duration;

use tracing::info;

use crate::decide::heads;
use crate::decide::one_node::OneNode;
use crate::decide::reconcile::Plan;
use crate::decide::refusal::{self, Refusal, Subject};
use crate::decide::stall::{Reason, Stall};
use crate::error::{PortError, PortErrorKind, Target};
use crate::flow::one_node::BothSides;
use crate::flow::patience::{Answer, Clock, Failure};
use crate::flow::pull::Pull;
use crate::flow::quiesce::Quiesced;
use crate::flow::worker::Worker;
use crate::flow::{FlowError, unix_now};
use crate::ports::{L2Engine, WriteStopped};
use crate::types::{B256, BatchIndex, Case, JournalEntry, L2Header, L2Number, L2Ref, L2Snapshot, NewBlock, OpenWrite};

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

/// What is written, and for which batch.
struct Job {
    index: BatchIndex,
    /// Under which batch the writes are noted: this one as a rule, a later one where its writing again was cut off.
    noted: Noted,
    /// As it is written: with the equal blocks below it, where the state of its own parent is missing.
    plan: Plan,
    /// What differs from L1 begins here.
    first: L2Number,
    /// The node's finalized tag from before.
    finalized: Option<L2Ref>,
}

/// The batch under which writes are noted and entered in the journal.
#[derive(Clone, Copy, Debug)]
struct Noted {
    batch: BatchIndex,
    hash: B256,
    case: Case,
}

impl From<OpenWrite> for Noted {
    fn from(note: OpenWrite) -> Self {
        Self { batch: note.batch, hash: note.batch_hash, case: note.case }
    }
}

/// How far a writing came.
struct Sent {
    /// The last block that was asked for.
    to: L2Number,
    /// Up to here what is to be replaced stands for certain.
    standing: L2Number,
}

impl Job {
    /// Nothing was sent, or all of it was refused.
    fn unsent(&self) -> Sent {
        let standing = self.plan.replaces.last().map_or(self.plan.skip.number, |old| old.number);
        Sent { to: self.plan.skip.number, standing }
    }

    fn old_hash(&self, number: L2Number) -> Option<B256> {
        self.plan.replaces.iter().find(|old| old.number == number).map(|old| old.hash)
    }

    /// What a refusal of `block` on `parent` speaks of. A block that was there already is no part of what is to be
    /// written: the plan as a whole waits then.
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

impl Worker {
    /// Writes the plan's blocks behind its skip number. Gives the header of the last one.
    pub(crate) async fn derive_force(
        &mut self,
        index: BatchIndex,
        hash: B256,
        case: Case,
        plan: Plan,
        pull: &mut Pull,
    ) -> Result<Result<L2Header, Stall>, FlowError> {
        let Some(engine) = self.ports.engine.clone() else {
            self.pending = Some(PendingWrite { batch: index, case, skip: plan.skip });
            return Ok(Err(would_have(index, case, &plan)));
        };
        let engine = engine.as_ref();
        if plan.rewrites() && self.finalized_floor(plan.first()) {
            return Ok(Err(below_finalized(index, &plan)));
        }
        if let Some(answer) = self.must_wait(engine, &plan).await {
            return told(index, answer);
        }
        let (first, tries) = (plan.first(), self.patience.tries(&plan));
        let plan = match self.on_kept_state(plan).await? {
            Ok(plan) => plan,
            Err(stall) => return Ok(Err(Stall { batch: Some(index), ..stall })),
        };
        // What an earlier, interrupted write left below is entered in the journal before anything that stands on it (P6).
        let noted = match self.written_again(index, hash).await? {
            Some((_, note)) => note.into(),
            None => Noted { batch: index, hash, case },
        };
        self.settle_writes(noted.batch, noted.hash, first.minus(1), pull.head.number).await?;
        let job = Job { index, noted, plan, first, finalized: None };
        let outcome = match self.pause_for(engine, &job.plan, pull).await {
            Ok(()) => self.write_inside_the_pause(engine, job, pull).await,
            Err(failure) => Err(failure),
        };
        match outcome {
            Ok(last) => {
                self.patience.succeeded();
                Ok(Ok(last))
            }
            Err(failure) => {
                let clock = Clock {
                    now: self.now,
                    poll_interval: self.settings.poll_interval,
                    free: !self.ports.reactors.can_resume(),
                };
                told(index, self.patience.failed(failure, tries, clock))
            }
        }
    }

    /// What is answered for `plan` in place of a try. Before it is, the node is asked for its version: an upgrade ends the
    /// wait.
    async fn must_wait(&mut self, engine: &dyn L2Engine, plan: &Plan) -> Option<Answer> {
        self.patience.answer(plan, self.now)?;
        if let Ok(view) = engine.view(plan.skip.number).await {
            self.patience.saw_version(view.version, self.now);
        }
        self.patience.answer(plan, self.now)
    }

    async fn write_inside_the_pause(
        &mut self,
        engine: &dyn L2Engine,
        mut job: Job,
        pull: &mut Pull,
    ) -> Result<L2Header, Failure> {
        let plan = &job.plan;
        // The head is read again inside the pause: a block that was being applied when it began may have landed. The
        // engine's is read beside it: nothing is told to a node that is not the one that was compared.
        let both = BothSides::read(engine, self.ports.l2.as_ref(), plan.skip.number).await?;
        self.patience.saw_version(both.engine.version, self.now);
        let now = both.node;
        match both.verdict {
            OneNode::Same => {}
            OneNode::Moving => return Err(FlowError::local_changed("the head moves inside the pause").into()),
            OneNode::Two => return Err(Failure::changed(Answer::Stands(both.stall()))),
        }
        self.check_still_holds(plan, pull.head, now.head.l2_ref()).await?;
        if both.engine.at != Some(plan.skip) {
            return Err(no_longer_there(plan.skip).into());
        }
        // So is finalized: another writer may have moved it since the poll began (E14, E23).
        self.node_finalized = now.finalized;
        if plan.rewrites() && self.finalized_floor(job.first) {
            return Err(Failure::seen_without_a_pause(below_finalized(job.index, plan)));
        }
        if plan.rewrites() && self.finalized_floor(plan.first()) {
            return Err(FlowError::local_changed("finalized moved over blocks that were to be written again").into());
        }
        pull.head = now.head.l2_ref();
        if let Some(lower) = heads::lowered_safe(&self.ledger.heads(), &now, plan.skip) {
            self.asserted = None;
            engine.set_tags(Some(lower.hash), None).await?;
        }
        info!(
            batch = job.index.get(),
            case = %job.noted.case,
            skip = plan.skip.number.get(),
            blocks = plan.blocks.len(),
            dropped_above = pull.head.number.above(plan.last()),
            "writing blocks"
        );
        job.finalized = self.finalized_before(&now);
        let outcome = self.write(engine, &job, pull).await;
        // Looked at after a failure too: blocks may have landed whose answer was lost, and the node may have moved its
        // tags by itself. What landed unheard is in the intents, and enters the journal from there.
        let after = self.read_back(pull).await;
        let last = outcome?;
        let after = after?;
        if after.head.l2_ref() != last.l2_ref() {
            return Err(FlowError::local_changed("the head is not the last block that was written").into());
        }
        Ok(last)
    }

    /// Whether the plan still fits a head that moved from `before` to `now`: blocks that landed on top of what is
    /// replaced change nothing but what is dropped; anything else is decided anew (G5).
    async fn check_still_holds(&self, plan: &Plan, before: L2Ref, now: L2Ref) -> Result<(), FlowError> {
        if now == before {
            return Ok(());
        }
        let moved = || FlowError::local_changed(format!("the head moved from {before} to {now}"));
        let Some(first) = plan.replaces.first().filter(|first| first.number <= now.number) else {
            return Err(moved());
        };
        for block in [plan.skip, *first].iter().chain(plan.again.last()) {
            if self.ports.l2.header(block.number).await?.is_none_or(|h| h.l2_ref() != *block) {
                return Err(moved());
            }
        }
        Ok(())
    }

    /// Reads the node after a write: the head is ours as far as it moved, and counts as no growth.
    async fn read_back(&mut self, pull: &mut Pull) -> Result<L2Snapshot, FlowError> {
        let after = match self.ports.l2.snapshot().await {
            Ok(after) => after,
            Err(error) => {
                self.local.wrote_unknown();
                return Err(error.into());
            }
        };
        // More may land of a write that was not answered: what it leaves is no growth either.
        match pull.pause.as_ref().is_some_and(Quiesced::is_writing) {
            true => self.local.wrote_unknown(),
            false => self.local.wrote(after.head.number),
        }
        pull.head = after.head.l2_ref();
        pull.pause.iter().for_each(|p: &Quiesced| p.wrote(after.head.number));
        pull.node = self.unmark(&after).await?;
        Ok(pull.node)
    }

    /// Whether `number` lies at or below the finalized head, ours or the node's.
    pub(crate) fn finalized_floor(&self, number: L2Number) -> bool {
        self.finalized_height().is_some_and(|finalized| number <= finalized)
    }

    /// The height of the finalized head, ours or the node's, whichever is higher.
    pub(crate) fn finalized_height(&self) -> Option<L2Number> {
        let ours = self.ledger.heads().finalized().map(|f| f.number);
        ours.max(self.node_finalized.map(|f| f.number))
    }

    /// A pause with enough budget for the plan: the pull's open one, or a new one. An engine that does not answer, or
    /// that is another node than the reader, is no reason to pause anything. Only reactors that were asked make a failure
    /// that is waited for: they may be a service that was stopped and started.
    async fn pause_for(&self, engine: &dyn L2Engine, plan: &Plan, pull: &mut Pull) -> Result<(), Failure> {
        let blocks = u32::try_from(plan.blocks.len()).unwrap_or(u32::MAX);
        let need = self.settings.pause_per_block.saturating_mul(blocks);
        if let Some(open) = pull.pause.take() {
            if self.has_room(open.remaining(), plan.blocks.len()) {
                pull.pause = Some(open);
                return Ok(());
            }
            open.release().await.map_err(Failure::before_a_pause)?;
        }
        let both = BothSides::read(engine, self.ports.l2.as_ref(), plan.skip.number).await;
        let both = both.map_err(Failure::before_a_pause)?;
        match both.verdict {
            OneNode::Two => return Err(Failure::seen_without_a_pause(both.stall())),
            OneNode::Same if both.engine.at != Some(plan.skip) => {
                return Err(Failure::before_a_pause(no_longer_there(plan.skip)));
            }
            OneNode::Same | OneNode::Moving => {}
        }
        let budget = self.settings.pause_budget.saturating_add(need);
        pull.written = None;
        pull.pause = Some(self.quiesce.acquire(pull.head.number, budget).await?);
        Ok(())
    }

    /// Whether `left` of a pause is enough to write so many blocks, with a margin: a write that is cut off may land when
    /// the reactors are back (P5).
    fn has_room(&self, left: Duration, blocks: usize) -> bool {
        room(left, blocks, self.settings.pause_per_block, self.settings.pause_budget)
    }

    /// Writes the plan's blocks. What was noted and then not sent is noted no more: whatever comes to stand at those
    /// heights is not our write, and a tag on it not the node's own mark (M9). What left the chain with the first write
    /// stays noted all the same, for the journal (P6).
    async fn write(&mut self, engine: &dyn L2Engine, job: &Job, pull: &mut Pull) -> Result<L2Header, Failure> {
        let mut sent = job.unsent();
        let outcome = self.write_in_chunks(engine, job, pull, &mut sent).await;
        let unsent = |w: &OpenWrite| w.number > sent.to && w.new_hash.is_none();
        if outcome.is_err() && self.ledger.writes().iter().any(unsent) {
            self.ledger.withdraw_writes(sent.to.plus(1), sent.standing).await?;
        }
        outcome
    }

    /// Writes the plan's blocks in requests of a chunk each, and keeps in `sent` how far it came.
    ///
    /// A block that rewrites goes alone, and so does the first block on a parent that is not our own write of this pause.
    /// Only the first block of a request carries its parent's hash; the others follow as head + 1, and the node goes on
    /// after a refused one. So they may be sent only where nothing but our own block can be the head: behind a refused
    /// rewrite, head + 1 would be executed on the forked head.
    async fn write_in_chunks(
        &mut self,
        engine: &dyn L2Engine,
        job: &Job,
        pull: &mut Pull,
        sent: &mut Sent,
    ) -> Result<L2Header, Failure> {
        let index = job.index;
        let mut parent = job.plan.skip;
        let mut written: Option<L2Header> = None;
        let mut rest = job.plan.blocks.as_slice();
        while !rest.is_empty() {
            let own = written.is_some() || (!job.plan.rewrites() && pull.written == Some(parent));
            let take = if own { self.settings.write_chunk.max(1).min(rest.len()) } else { 1 };
            let (chunk, behind) = rest.split_at(take);
            rest = behind;
            let left = pull.pause.as_ref().map_or(Duration::ZERO, Quiesced::remaining);
            if !self.has_room(left, chunk.len()) {
                return Err(out_of_budget(index, parent, written.is_some()));
            }
            let mut blocks = chunk.to_vec();
            if let Some(first) = blocks.first_mut() {
                first.parent_hash = Some(parent.hash);
            }
            let begun = OpenWrite {
                number: L2Number::default(),
                batch: job.noted.batch,
                batch_hash: job.noted.hash,
                case: job.noted.case,
                old_hash: None,
                new_hash: None,
                finalized: job.finalized,
                seen: false,
            };
            // With the first write everything that it replaces leaves the chain: what stood there is noted before it, as
            // looked at, since nothing that comes to stand there before it is sent is explained by a write of ours (M9).
            let dropped = behind.iter().filter(|block| written.is_none() && job.old_hash(block.number).is_some());
            let dropped: Vec<_> = dropped.map(|block| block.number).collect();
            if !dropped.is_empty() {
                let unsent = OpenWrite { seen: true, ..begun };
                self.begin_writes(unsent, &dropped, |number| job.old_hash(number)).await?;
            }
            let numbers: Vec<_> = blocks.iter().map(|block| block.number).collect();
            self.begin_writes(begun, &numbers, |number| job.old_hash(number)).await?;
            // The database may have taken a while: nothing is sent that could land after the pause (P5).
            let left = pull.pause.as_ref().map_or(Duration::ZERO, Quiesced::remaining);
            if !self.has_room(left, blocks.len()) {
                return Err(out_of_budget(index, parent, written.is_some()));
            }
            writing(pull, true);
            // From here on all that is to be replaced may be gone with the first block.
            *sent = Sent { to: blocks.last().map_or(sent.to, |last| last.number), standing: job.plan.skip.number };
            let (headers, stopped) = match tokio::time::timeout(left, engine.write_blocks(&blocks)).await {
                Ok(Ok(headers)) => (headers, None),
                Ok(Err(WriteStopped { written, error })) => (written, Some(error)),
                // The node may still be at it; how far it came is read before the next write (G3).
                Err(_) => return Err(out_of_budget(index, parent, written.is_some())),
            };
            // Behind an answer the node is done; behind a connection that broke it may still be at it.
            let answered = |error: &PortError| matches!(error.kind, PortErrorKind::Refused { .. });
            writing(pull, stopped.as_ref().is_some_and(|error| !answered(error)));
            self.note_written(job, &headers, pull).await?;
            if let Some(error) = stopped {
                if let (PortErrorKind::Refused { .. }, Some(refused)) = (&error.kind, blocks.get(headers.len())) {
                    if written.is_none() && headers.is_empty() {
                        sent.standing = job.unsent().standing;
                    }
                    self.ledger.withdraw_writes(refused.number, sent.standing).await?;
                }
                let progressed = written.is_some() || !headers.is_empty();
                return Err(write_stopped(job, &blocks, &headers, error, progressed));
            }
            if headers.len() != blocks.len() {
                let detail = format!("{} blocks were sent, {} headers came back", blocks.len(), headers.len());
                return Err(PortError::malformed(Target::Engine, detail).into());
            }
            if let Some((block, made_on)) = mismatch(&blocks, &headers, parent.hash, &job.plan.again) {
                let detail = format!("the execution node made another block {} than it was given", block.number);
                let stall = Stall::at(index, Reason::BlockRefused, detail);
                let refusal = Some((Refusal::Permanent, job.subject(made_on, block)));
                return Err(Failure { answer: Answer::Stands(stall), refusal, progressed: false });
            }
            let Some(last) = headers.last() else { return Err(FlowError::local_changed("nothing was written").into()) };
            parent = last.l2_ref();
            written = Some(*last);
        }
        written.ok_or_else(|| FlowError::local_changed("nothing was to be written").into())
    }

    /// The journal, the guard's height and the pull's head follow every write. The liveness baseline follows when the head
    /// is read back.
    async fn note_written(&mut self, job: &Job, headers: &[L2Header], pull: &mut Pull) -> Result<(), FlowError> {
        let Some(last) = headers.last() else { return Ok(()) };
        pull.head = last.l2_ref();
        pull.written = Some(last.l2_ref());
        pull.pause.iter().for_each(|p: &Quiesced| p.wrote(last.number));
        self.status.blocks_written = self.status.blocks_written.saturating_add(headers.len() as u64);
        let at = unix_now();
        // A run before this one may have dropped what stood there: its note tells (P6).
        let batch = job.noted.batch;
        let noted = |number: L2Number| self.ledger.writes().iter().find(|w| w.number == number && w.batch == batch);
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
        Ok(self.ledger.journal(&entries).await?)
    }
}

/// On one node, whose head both sides show: the chain changed since the comparison.
fn no_longer_there(skip: L2Ref) -> FlowError {
    FlowError::local_changed(format!("block {skip}, which is to be built on, is no longer there"))
}

fn told(index: BatchIndex, answer: Answer) -> Result<Result<L2Header, Stall>, FlowError> {
    match answer {
        Answer::Stands(stall) => Ok(Err(Stall { batch: Some(index), ..stall })),
        Answer::Failed(error) => Err(error),
    }
}

/// What a write that stopped behind `headers` means, and what it says about the next try (E13, E17).
fn write_stopped(job: &Job, blocks: &[NewBlock], headers: &[L2Header], error: PortError, progressed: bool) -> Failure {
    let stopped = |error: PortError| Failure { progressed, ..error.into() };
    let PortErrorKind::Refused { code, message } = &error.kind else { return stopped(error) };
    let parent = headers.last().map(|h| h.hash).or_else(|| blocks.first().and_then(|b| b.parent_hash));
    let (Some(block), Some(parent)) = (blocks.get(headers.len()), parent) else { return stopped(error) };
    let Job { index, plan, .. } = job;
    let subject = job.subject(parent, block);
    let rewrites = plan.rewrites() && block.number == plan.first();
    let stands = |reason, detail, refusal| {
        let answer = Answer::Stands(Stall::at(*index, reason, detail));
        Failure { answer, refusal: Some(refusal), progressed }
    };
    match refusal::judge(*code, message, rewrites) {
        Refusal::Passing | Refusal::NotPaused => {
            Failure { refusal: Some((Refusal::Passing, subject)), ..stopped(error) }
        }
        Refusal::ChainChanged => FlowError::local_changed(error.to_string()).into(),
        Refusal::CannotRewrite => {
            let detail = "the execution node cannot write below its head (it ignores parentHash): upgrade and restart it, \
                          or cut its chain by hand";
            let detail = format!("{detail} at block {}", plan.skip);
            stands(Reason::ElCannotReorg, detail, (Refusal::CannotRewrite, Subject::EveryRewrite))
        }
        Refusal::Permanent => stands(Reason::BlockRefused, error.to_string(), (Refusal::Permanent, subject)),
    }
}

fn below_finalized(index: BatchIndex, plan: &Plan) -> Stall {
    let first = plan.blocks.get(plan.again.len()).map_or(plan.first(), |block| block.number);
    let detail = format!("block {first} differs from L1 and lies at or below the finalized head");
    Stall::at(index, Reason::DivergesBelowFinalized, detail)
}

fn writing(pull: &Pull, begins: bool) {
    pull.pause.iter().for_each(|p: &Quiesced| p.writing(begins));
}

/// Time enough for `blocks` at `per_block`, and a quarter of the `budget` that every pause has beside its blocks.
fn room(left: Duration, blocks: usize, per_block: Duration, budget: Duration) -> bool {
    let need = per_block.saturating_mul(u32::try_from(blocks).unwrap_or(u32::MAX));
    left > need.saturating_add(budget / 4)
}

/// The next try goes on from there, at once if this one `progressed`.
fn out_of_budget(index: BatchIndex, at: L2Ref, progressed: bool) -> Failure {
    let detail = format!("the pause's budget was used up at block {}; the next poll goes on from there", at.number);
    let refusal = (!progressed).then_some((Refusal::Passing, Subject::EveryWrite));
    Failure { answer: Answer::Stands(Stall::at(index, Reason::PauseBudget, detail)), refusal, progressed }
}

/// What observe mode reports in place of a write.
fn would_have(index: BatchIndex, case: Case, plan: &Plan) -> Stall {
    let reason = if case == Case::SelfHeal { Reason::WouldSelfHeal } else { Reason::WouldFillGap };
    let detail = format!("{} blocks from {} on would have been written", plan.blocks.len(), plan.first());
    Stall::at(index, reason, detail)
}

/// Compares what was sent with the headers that came back. The node makes blocks of nearly anything (protocol.md,
/// section 7), but it must make them of what it was given, and an equal block that is written `again` must get the hash
/// that it had. Gives the first block that it did not, and that one's parent.
fn mismatch<'a>(
    sent: &'a [NewBlock],
    made: &[L2Header],
    anchor: B256,
    again: &[L2Ref],
) -> Option<(&'a NewBlock, B256)> {
    let mut parent = anchor;
    for (block, header) in sent.iter().zip(made) {
        let known = again.iter().find(|known| known.number == block.number);
        let same = block.number == header.number
            && block.timestamp == header.timestamp
            && block.base_fee == header.base_fee
            && block.gas_limit == header.gas_limit
            && header.parent_hash == parent
            && known.is_none_or(|known| known.hash == header.hash);
        if !same {
            return Some((block, parent));
        }
        parent = header.hash;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

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
