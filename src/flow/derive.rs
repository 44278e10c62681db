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
use crate::decide::refusal::{self, Refusal};
use crate::decide::stall::{Reason, Stall};
use crate::error::{PortError, PortErrorKind, Target};
use crate::flow::one_node::BothSides;
use crate::flow::pull::Pull;
use crate::flow::quiesce::Quiesced;
use crate::flow::worker::Worker;
use crate::flow::{FlowError, kill_point, unix_now};
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
    hash: B256,
    case: Case,
    plan: Plan,
    /// The node's finalized tag from before.
    finalized: Option<L2Ref>,
}

impl Job {
    fn old_hash(&self, number: L2Number) -> Option<B256> {
        self.plan.replaces.iter().find(|old| old.number == number).map(|old| old.hash)
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
        if !plan.replaces.is_empty() && self.finalized_floor(plan.first()) {
            let detail = format!("block {} differs from L1 and lies at or below the finalized head", plan.first());
            return Ok(Err(Stall::at(index, Reason::DivergesBelowFinalized, detail)));
        }
        if let Some(known) = self.refused.as_ref().filter(|refused| refused.covers(&plan)) {
            match &known.verdict {
                Verdict::ForGood(stall) => return Ok(Err(Stall { batch: Some(index), ..stall.clone() })),
                Verdict::Until { at, error, .. } if self.now < *at => return Err(FlowError::Port(error.clone())),
                Verdict::Until { .. } => {}
            }
        }
        if let Err(stall) = self.pause_for(engine.as_ref(), &plan, pull).await? {
            return Ok(Err(Stall { batch: Some(index), ..stall }));
        }
        // The head is read again inside the pause: a block that was being applied when it began may have landed. The
        // engine's is read beside it: nothing is told to a node that is not the one that was compared.
        let both = BothSides::read(engine.as_ref(), self.ports.l2.as_ref(), plan.skip.number).await?;
        let now = both.node;
        kill_point("write: head read inside the pause");
        match both.verdict {
            OneNode::Same => {}
            OneNode::Moving => return Err(FlowError::local_changed("the head moves inside the pause")),
            OneNode::Two => return Ok(Err(Stall { batch: Some(index), ..both.stall() })),
        }
        self.check_still_holds(&plan, pull.head, now.head.l2_ref()).await?;
        if both.engine.at != Some(plan.skip) {
            return Ok(Err(Stall { batch: Some(index), ..both.stall() }));
        }
        pull.head = now.head.l2_ref();
        if let Some(lower) = heads::lowered_safe(&self.heads, &now, plan.skip) {
            kill_point("tags: before lowering safe");
            self.asserted = None;
            engine.set_tags(Some(lower.hash), None).await?;
            kill_point("tags: safe lowered");
        }
        info!(
            batch = index.get(),
            %case,
            skip = plan.skip.number.get(),
            blocks = plan.blocks.len(),
            dropped_above = pull.head.number.above(plan.last()),
            "writing blocks"
        );
        let finalized = match self.mark {
            Some(mark) => mark.before,
            None => now.finalized.filter(|f| f.number <= plan.skip.number),
        };
        let job = Job { index, hash, case, plan, finalized };
        let outcome = self.write(engine.as_ref(), &job, pull).await;
        // Looked at after a failure too: blocks may have landed whose answer was lost, and the node may have moved its
        // tags by itself. What landed unheard is in the intents, and enters the journal from there.
        let after = self.read_back(pull).await;
        let last = match outcome? {
            Ok(last) => last,
            Err(stall) => return Ok(Err(stall)),
        };
        let after = after?;
        kill_point("write: head read back");
        if after.head.l2_ref() != last.l2_ref() {
            return Err(FlowError::local_changed("the head is not the last block that was written"));
        }
        self.refused = None;
        Ok(Ok(last))
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
        for block in [plan.skip, *first] {
            if self.ports.l2.header(block.number).await?.is_none_or(|h| h.l2_ref() != block) {
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
                self.liveness.own_write_unknown();
                return Err(error.into());
            }
        };
        self.liveness.own_write(after.head.number);
        pull.head = after.head.l2_ref();
        pull.pause.iter().for_each(|p: &Quiesced| p.wrote(after.head.number));
        pull.node = self.unmark(&after).await?;
        Ok(pull.node)
    }

    /// Whether `number` lies at or below the finalized head, ours or the node's.
    pub(crate) fn finalized_floor(&self, number: L2Number) -> bool {
        let ours = self.heads.finalized().map(|f| f.number);
        let floor = ours.max(self.node_finalized.map(|f| f.number));
        floor.is_some_and(|f| number <= f)
    }

    /// A pause with enough budget for the plan: the pull's open one, or a new one. An engine that does not answer, or
    /// that is another node than the reader, is no reason to pause anything.
    async fn pause_for(
        &self,
        engine: &dyn L2Engine,
        plan: &Plan,
        pull: &mut Pull,
    ) -> Result<Result<(), Stall>, FlowError> {
        let blocks = u32::try_from(plan.blocks.len()).unwrap_or(u32::MAX);
        let need = self.settings.pause_per_block.saturating_mul(blocks);
        if let Some(open) = pull.pause.take() {
            if self.has_room(open.remaining(), plan.blocks.len()) {
                pull.pause = Some(open);
                return Ok(Ok(()));
            }
            open.release().await?;
        }
        let both = BothSides::read(engine, self.ports.l2.as_ref(), plan.skip.number).await?;
        if both.verdict == OneNode::Two {
            return Ok(Err(both.stall()));
        }
        let budget = self.settings.pause_budget.saturating_add(need);
        pull.pause = Some(self.quiesce.acquire(pull.head.number, budget).await?);
        Ok(Ok(()))
    }

    /// Whether `left` of a pause is enough to write so many blocks, with a margin: a write that is cut off may land when
    /// the reactors are back (P5).
    fn has_room(&self, left: Duration, blocks: usize) -> bool {
        room(left, blocks, self.settings.pause_per_block, self.settings.pause_budget)
    }

    async fn write(
        &mut self,
        engine: &dyn L2Engine,
        job: &Job,
        pull: &mut Pull,
    ) -> Result<Result<L2Header, Stall>, FlowError> {
        let index = job.index;
        let mut parent = job.plan.skip;
        let mut written = None;
        for chunk in job.plan.blocks.chunks(self.settings.write_chunk.max(1)) {
            let left = pull.pause.as_ref().map_or(Duration::ZERO, Quiesced::remaining);
            if !self.has_room(left, chunk.len()) {
                return Ok(Err(out_of_budget(index, parent)));
            }
            let mut blocks = chunk.to_vec();
            if let Some(first) = blocks.first_mut() {
                first.parent_hash = Some(parent.hash);
            }
            let begun = OpenWrite {
                number: L2Number::default(),
                batch: index,
                batch_hash: job.hash,
                case: job.case,
                old_hash: None,
                new_hash: None,
                finalized: job.finalized,
            };
            self.begin_writes(begun, &blocks, |number| job.old_hash(number)).await?;
            kill_point("write: before a chunk");
            writing(pull, true);
            let (headers, stopped) = match tokio::time::timeout(left, engine.write_blocks(&blocks)).await {
                Ok(Ok(headers)) => (headers, None),
                Ok(Err(WriteStopped { written, error })) => (written, Some(error)),
                // The node may still be at it; how far it came is read before the next write (G3).
                Err(_) => return Ok(Err(out_of_budget(index, parent))),
            };
            // Behind an answer the node is done; behind a connection that broke it may still be at it.
            let answered = |error: &PortError| matches!(error.kind, PortErrorKind::Refused { .. });
            writing(pull, stopped.as_ref().is_some_and(|error| !answered(error)));
            kill_point("write: chunk written");
            self.note_written(job, &headers, pull).await?;
            kill_point("write: chunk in the journal");
            if let Some(error) = stopped {
                if let (PortErrorKind::Refused { .. }, Some(refused)) = (&error.kind, blocks.get(headers.len())) {
                    self.withdraw_writes(refused.number).await?;
                }
                return self.write_stopped(job, &blocks, &headers, error);
            }
            if headers.len() != blocks.len() {
                let detail = format!("{} blocks were sent, {} headers came back", blocks.len(), headers.len());
                return Err(FlowError::Port(PortError::malformed(Target::Engine, detail)));
            }
            if let Some((block, made_on)) = mismatch(&blocks, &headers, parent.hash) {
                let detail = format!("the execution node made another block {} than it was given", block.number);
                let stall = Stall::at(index, Reason::BlockRefused, detail);
                self.refused = Some(Refused::new(Some(made_on), block, Verdict::ForGood(stall.clone())));
                return Ok(Err(stall));
            }
            let Some(last) = headers.last() else { return Err(FlowError::local_changed("nothing was written")) };
            parent = last.l2_ref();
            written = Some(*last);
        }
        match written {
            Some(last) => Ok(Ok(last)),
            None => Err(FlowError::local_changed("nothing was to be written")),
        }
    }

    /// The journal, the guard's height, the liveness baseline and the pull's head follow every write.
    async fn note_written(&mut self, job: &Job, headers: &[L2Header], pull: &mut Pull) -> Result<(), FlowError> {
        let Some(last) = headers.last() else { return Ok(()) };
        pull.head = last.l2_ref();
        self.liveness.own_write(last.number);
        pull.pause.iter().for_each(|p: &Quiesced| p.wrote(last.number));
        self.status.blocks_written = self.status.blocks_written.saturating_add(headers.len() as u64);
        let at = unix_now();
        let entries: Vec<_> = headers
            .iter()
            .map(|header| JournalEntry {
                at,
                batch: job.index,
                number: header.number,
                old_hash: job.old_hash(header.number),
                new_hash: header.hash,
                why: job.case.as_str().to_owned(),
            })
            .collect();
        self.journal_writes(&entries).await
    }

    /// What a write that stopped behind `headers` means. A refusal for good is remembered: the reactors are not paused
    /// for it again (E13, E17).
    fn write_stopped(
        &mut self,
        job: &Job,
        blocks: &[NewBlock],
        headers: &[L2Header],
        error: PortError,
    ) -> Result<Result<L2Header, Stall>, FlowError> {
        let Job { index, plan, .. } = job;
        let PortErrorKind::Refused { code } = error.kind else { return Err(FlowError::Port(error)) };
        let Some(block) = blocks.get(headers.len()) else { return Err(FlowError::Port(error)) };
        let parent = headers.last().map(|h| h.hash).or_else(|| blocks.first().and_then(|b| b.parent_hash));
        let stall = match refusal::judge(code, &error.detail, !plan.replaces.is_empty()) {
            Refusal::Passing => match self.refused_again(parent, block, &error) {
                Some(times) => {
                    let detail = format!("refused {times} times in a row: {error}");
                    Stall::at(*index, Reason::BlockRefused, detail)
                }
                None => return Err(FlowError::Port(error)),
            },
            Refusal::ChainChanged => return Err(FlowError::local_changed(error.to_string())),
            Refusal::CannotRewrite => {
                let detail = "the execution node cannot write below its head (it ignores parentHash): upgrade and \
                              restart it, or cut its chain by hand";
                Stall::at(*index, Reason::ElCannotReorg, format!("{detail} at block {}", plan.skip))
            }
            Refusal::Permanent => Stall::at(*index, Reason::BlockRefused, error.to_string()),
        };
        self.refused = Some(Refused::new(parent, block, Verdict::ForGood(stall.clone())));
        Ok(Err(stall))
    }

    /// Counts a refusal that may pass. The reactors are not paused for the same block again before twice the time, and
    /// after [`PASSING_TRIES`] not at all: gives how many there were then.
    fn refused_again(&mut self, parent: Option<B256>, block: &NewBlock, error: &PortError) -> Option<u32> {
        let mut refused = Refused::new(parent, block, Verdict::Until { at: self.now, times: 1, error: error.clone() });
        let before = self.refused.take().filter(|b| b.parent == refused.parent && b.block == refused.block);
        let Verdict::Until { at, times, .. } = &mut refused.verdict else { return None };
        if let Some(Refused { verdict: Verdict::Until { times: before, .. }, .. }) = before {
            *times = before.saturating_add(1);
        }
        let times = *times;
        if times >= PASSING_TRIES {
            return Some(times);
        }
        let wait = self.settings.poll_interval.saturating_mul(2_u32.saturating_pow(times.saturating_sub(1)));
        *at = self.now.saturating_add(wait);
        self.refused = Some(refused);
        None
    }
}

/// How often a block is tried that the node refuses for a reason that may pass. The waits in between double.
const PASSING_TRIES: u32 = 8;

/// A write that the node refused.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    parent: Option<B256>,
    /// Without its parent's hash, as in a plan.
    block: NewBlock,
    verdict: Verdict,
}

/// What a refusal means for the next try.
#[derive(Clone, Debug)]
enum Verdict {
    /// There is none, before the node was restarted.
    ForGood(Stall),
    /// Not before then, on the poll's clock.
    Until { at: Duration, times: u32, error: PortError },
}

impl Refused {
    fn new(parent: Option<B256>, block: &NewBlock, verdict: Verdict) -> Self {
        Self { parent, block: NewBlock { parent_hash: None, ..block.clone() }, verdict }
    }

    /// Whether `plan` begins with what was refused. A node that cannot rewrite refuses every rewrite alike.
    fn covers(&self, plan: &Plan) -> bool {
        if matches!(&self.verdict, Verdict::ForGood(stall) if stall.reason == Reason::ElCannotReorg) {
            return !plan.replaces.is_empty();
        }
        self.parent == Some(plan.skip.hash) && plan.blocks.first() == Some(&self.block)
    }
}

fn writing(pull: &Pull, begins: bool) {
    pull.pause.iter().for_each(|p: &Quiesced| p.writing(begins));
}

/// Time enough for `blocks` at `per_block`, and a quarter of the `budget` that every pause has beside its blocks.
fn room(left: Duration, blocks: usize, per_block: Duration, budget: Duration) -> bool {
    let need = per_block.saturating_mul(u32::try_from(blocks).unwrap_or(u32::MAX));
    left > need.saturating_add(budget / 4)
}

fn out_of_budget(index: BatchIndex, at: L2Ref) -> Stall {
    let detail = format!("the pause's budget was used up at block {}; the next poll goes on from there", at.number);
    Stall::at(index, Reason::PauseBudget, detail)
}

/// What observe mode reports in place of a write.
fn would_have(index: BatchIndex, case: Case, plan: &Plan) -> Stall {
    let reason = if case == Case::SelfHeal { Reason::WouldSelfHeal } else { Reason::WouldFillGap };
    let detail = format!("{} blocks from {} on would have been written", plan.blocks.len(), plan.first());
    Stall::at(index, reason, detail)
}

/// Compares what was sent with the headers that came back. The node makes blocks of nearly anything (protocol.md,
/// section 7), but it must make them of what it was given. Gives the first block that it did not, and that one's parent.
fn mismatch<'a>(sent: &'a [NewBlock], made: &[L2Header], anchor: B256) -> Option<(&'a NewBlock, B256)> {
    let mut parent = anchor;
    for (block, header) in sent.iter().zip(made) {
        let same = block.number == header.number
            && block.timestamp == header.timestamp
            && block.base_fee == header.base_fee
            && block.gas_limit == header.gas_limit
            && header.parent_hash == parent;
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
