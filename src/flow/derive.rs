//! `derive_force`: the only place that writes blocks.
//!
//! Everything that needs no pause happened before: the plan is complete, its content was checked, what may stay was
//! compared. Here: refuse what finality forbids, pause, look at the head once more, move safe down, write in chunks
//! with every reply checked, read back (P1, P2, P5).

use std::time::Duration;

use tracing::{info, warn};

use crate::decide::reconcile::Plan;
use crate::decide::stall::{Reason, Stall};
use crate::error::{PortError, PortErrorKind, Target};
use crate::flow::pull::Pull;
use crate::flow::quiesce::Quiesced;
use crate::flow::worker::Worker;
use crate::flow::{FlowError, kill_point, unix_now};
use crate::ports::{L2Engine, WriteStopped};
use crate::types::{B256, BatchIndex, Case, JournalEntry, L2Header, L2Number, L2Ref, NewBlock, OpenWrite};

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
        self.pause_for(&plan, pull).await?;
        // The head is read again inside the pause: a block that was being applied when it began may have landed.
        let now = self.ports.l2.snapshot().await?;
        kill_point("write: head read inside the pause");
        if now.head.l2_ref() != pull.head {
            return Err(FlowError::local_changed(format!(
                "the head moved from {} to {}",
                pull.head,
                now.head.l2_ref()
            )));
        }
        if now.safe.is_some_and(|tag| tag.number >= plan.first()) {
            let lower = self.heads.safe().filter(|s| s.number <= plan.skip.number).unwrap_or(plan.skip);
            kill_point("tags: before lowering safe");
            engine.set_tags(Some(lower.hash), None).await?;
            kill_point("tags: safe lowered");
        }
        info!(
            batch = index.get(),
            %case,
            skip = plan.skip.number.get(),
            blocks = plan.blocks.len(),
            dropped_above = plan.drops_above,
            "writing blocks"
        );
        let job = Job { index, hash, case, plan };
        let last = match self.write(engine.as_ref(), &job, pull).await? {
            Ok(last) => last,
            Err(stall) => return Ok(Err(stall)),
        };
        let after = self.ports.l2.snapshot().await?;
        kill_point("write: head read back");
        if after.head.l2_ref() != last.l2_ref() {
            return Err(FlowError::local_changed("the head is not the last block that was written"));
        }
        if after.finalized != now.finalized {
            self.correct_finalized(engine.as_ref(), now.finalized, now.safe).await?;
        }
        Ok(Ok(last))
    }

    /// Whether `number` lies at or below the finalized head, ours or the node's.
    pub(crate) fn finalized_floor(&self, number: L2Number) -> bool {
        let ours = self.heads.finalized().map(|f| f.number);
        let floor = ours.max(self.node_finalized.map(|f| f.number));
        floor.is_some_and(|f| number <= f)
    }

    /// A pause with enough budget for the plan: the pull's open one, or a new one.
    async fn pause_for(&self, plan: &Plan, pull: &mut Pull) -> Result<(), FlowError> {
        let blocks = u32::try_from(plan.blocks.len()).unwrap_or(u32::MAX);
        let need = self.settings.pause_per_block.saturating_mul(blocks);
        if let Some(open) = pull.pause.take() {
            if open.remaining() >= need {
                pull.pause = Some(open);
                return Ok(());
            }
            open.release().await?;
        }
        let budget = self.settings.pause_budget.saturating_add(need);
        pull.pause = Some(self.quiesce.acquire(pull.head.number, budget).await?);
        Ok(())
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
            if pull.pause.as_ref().is_none_or(|p| p.remaining() == Duration::ZERO) {
                let detail = format!("the pause's budget was used up at block {}", parent.number);
                return Ok(Err(Stall::at(index, Reason::PauseBudget, detail)));
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
            };
            self.begin_writes(begun, &blocks, |number| job.old_hash(number)).await?;
            kill_point("write: before a chunk");
            let (headers, stopped) = match engine.write_blocks(&blocks).await {
                Ok(headers) => (headers, None),
                Err(WriteStopped { written, error }) => (written, Some(error)),
            };
            kill_point("write: chunk written");
            self.note_written(job, &headers, pull).await?;
            kill_point("write: chunk in the journal");
            if let Some(error) = stopped {
                return self.write_stopped(engine, index, &job.plan, error).await;
            }
            if let Some(detail) = mismatch(&blocks, &headers, parent.hash) {
                return Err(FlowError::Port(PortError::malformed(Target::Engine, detail)));
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

    /// A refusal is final and told by its reason; anything else may pass.
    async fn write_stopped(
        &self,
        _engine: &dyn L2Engine,
        index: BatchIndex,
        plan: &Plan,
        error: PortError,
    ) -> Result<Result<L2Header, Stall>, FlowError> {
        let PortErrorKind::Refused { .. } = error.kind else { return Err(FlowError::Port(error)) };
        if !plan.replaces.is_empty() && error.detail.contains("discontinuous") {
            let detail = "the execution node cannot write below its head (it ignores parentHash): upgrade it to a \
                          version that can, or reset its chain to the skip number by hand";
            return Ok(Err(Stall::at(index, Reason::ElCannotReorg, format!("{detail}; skip {}", plan.skip))));
        }
        Ok(Err(Stall::at(index, Reason::BlockRefused, error.to_string())))
    }

    /// Some nodes mark every block written by the engine safe and finalized, before anything of it was verified (E12).
    async fn correct_finalized(
        &mut self,
        engine: &dyn L2Engine,
        finalized: Option<crate::types::L2Ref>,
        safe: Option<crate::types::L2Ref>,
    ) -> Result<(), FlowError> {
        warn!("the execution node moved its finalized tag by itself on a write; putting it back");
        self.status.el_marks_finalized = true;
        let Some(finalized) = finalized.or(self.heads.finalized()) else { return Ok(()) };
        let safe = self.heads.safe().or(safe);
        engine.set_tags(safe.map(|s| s.hash), Some(finalized.hash)).await?;
        Ok(())
    }
}

/// What observe mode reports in place of a write.
fn would_have(index: BatchIndex, case: Case, plan: &Plan) -> Stall {
    let reason = if case == Case::SelfHeal { Reason::WouldSelfHeal } else { Reason::WouldFillGap };
    let detail = format!("{} blocks from {} on would have been written", plan.blocks.len(), plan.first());
    Stall::at(index, reason, detail)
}

/// Compares what was sent with the headers that came back. The node makes blocks of nearly anything (protocol.md,
/// section 7), but it must make them of what it was given.
fn mismatch(sent: &[NewBlock], made: &[L2Header], anchor: crate::types::B256) -> Option<String> {
    if sent.len() != made.len() {
        return Some(format!("{} blocks were sent, {} headers came back", sent.len(), made.len()));
    }
    let mut parent = anchor;
    for (block, header) in sent.iter().zip(made) {
        let same = block.number == header.number
            && block.timestamp == header.timestamp
            && block.base_fee == header.base_fee
            && block.gas_limit == header.gas_limit
            && header.parent_hash == parent;
        if !same {
            return Some(format!("block {} came back with other numbers than it was sent with", block.number));
        }
        parent = header.hash;
    }
    None
}
