//! One batch through the case table.
//!
//! Outline → anchor → first look → (blob → second look → plan → `derive_force`) → roots. What comes out is either a
//! record to be stored with the heads and the cursor, or the reason to stop at this batch.

use tracing::{info, warn};

use crate::codec::batch;
use crate::decide::binding::{self, BoundCommit, queue_range};
use crate::decide::content::{self, ContentFault};
use crate::decide::dispatch::{self, FirstFacts, FirstLook, SecondFacts, SecondLook};
use crate::decide::local_chain::Lost;
use crate::decide::reconcile::{self, Anchor, AnchorFacts, held_bytes};
use crate::decide::stall::{Reason, Stall};
use crate::error::{PortError, Target};
use crate::flow::gather::BatchContext;
use crate::flow::pull::Pull;
use crate::flow::roots::Asked;
use crate::flow::search::Sought;
use crate::flow::worker::Worker;
use crate::flow::{FlowError, Mode};
use crate::types::{
    B256, BatchIndex, BatchRecord, Case, L1Event, L1EventKind, L1Message, L2Header, L2Number, NewBlock, Outcome,
    QueueIndex,
};

/// How one batch ended.
#[derive(Debug)]
pub(crate) enum BatchEnd {
    /// Verified: to be stored.
    Verified(Box<BatchRecord>),
    /// Stop here; the cursor stays before this batch.
    Stands {
        /// Why.
        stall: Stall,
        /// Blocks of the batch, as far as known.
        blocks: u64,
    },
    /// The anchor is wrong: the batch of this commit must be verified first.
    WalkBack(Box<L1Event>),
}

impl BatchEnd {
    fn stands(stall: Stall) -> Self {
        Self::Stands { stall, blocks: 0 }
    }
}

/// What was done and where the batch ends locally.
struct Resolved {
    case: Case,
    last: L2Header,
    rewritten: u64,
    drift: bool,
}

impl Worker {
    /// Judges the batch of `event`, repairs the local chain where the table says so, and verifies the roots.
    pub(crate) async fn judge(
        &mut self,
        event: &L1Event,
        index: BatchIndex,
        hash: B256,
        before: Option<&BatchRecord>,
        pull: &mut Pull,
    ) -> Result<BatchEnd, FlowError> {
        let bound = match self.bound_commit(event, index, hash, before).await? {
            Ok(bound) => bound,
            Err(stall) => return Ok(BatchEnd::stands(stall)),
        };
        if let Some(before) = before
            && let Err(fault) = binding::continues(&bound.outline, before)
        {
            return Ok(BatchEnd::stands(Stall::at(index, Reason::Unbound, fault.to_string())));
        }
        let first = match self.first_block(&bound, before).await? {
            Ok(first) => first,
            Err(stall) => return Ok(BatchEnd::stands(stall)),
        };
        let blocks = match content::extent(first, bound.outline.last) {
            Ok(blocks) => blocks,
            Err(fault) => return Ok(BatchEnd::stands(poison(index, &fault))),
        };
        let anchor = match self.anchor(&bound, before, first, pull).await? {
            Ok(anchor) => anchor,
            Err(end) => return Ok(end),
        };
        let batch = BatchContext { bound: &bound, before, first, blocks, anchor };
        let mut resolved = match self.resolve_case(&batch, pull).await? {
            Ok(resolved) => resolved,
            Err(stall) => return Ok(BatchEnd::Stands { stall, blocks }),
        };
        let l2 = self.ports.l2.clone();
        let asked = Asked::of(&batch, &resolved.last);
        if let Some(stall) = self.roots.check(l2.as_ref(), &asked, self.settings.search_time, self.now).await? {
            return Ok(BatchEnd::Stands { stall, blocks });
        }
        let head = pull.head.number;
        if let Some((case, rewritten)) = self.settle_writes(index, hash, resolved.last.number, head).await? {
            (resolved.case, resolved.rewritten) = (case, rewritten);
        } else if let Some((row, _)) = self.written_again(index, hash).await? {
            let case = row.case.unwrap_or(resolved.case);
            resolved = Resolved { case, rewritten: row.rewritten, drift: row.encoder_drift, ..resolved };
        }
        let header = &bound.outline.header;
        Ok(BatchEnd::Verified(Box::new(BatchRecord {
            index,
            hash,
            l1: event.block,
            log_index: event.log_index,
            tx_hash: event.tx_hash,
            outcome: Outcome::Verified,
            case: Some(resolved.case),
            first: Some(first),
            last: Some(resolved.last.l2_ref()),
            post_state_root: header.post_state_root,
            withdrawal_root: header.withdrawal_root,
            total_l1_popped: header.total_l1_message_popped,
            rewritten: resolved.rewritten,
            encoder_drift: resolved.drift,
        })))
    }

    /// The batch's first block: from the parent header, the batch before, the contract, or the payload.
    async fn first_block(
        &self,
        bound: &BoundCommit,
        before: Option<&BatchRecord>,
    ) -> Result<Result<L2Number, Stall>, FlowError> {
        let outline = &bound.outline;
        if let Some(first) = outline.first {
            return Ok(Ok(first));
        }
        if let Some(last) = before.and_then(|b| b.last) {
            return Ok(Ok(last.number.plus(1)));
        }
        // A version 0 parent has no last block, and nothing is stored of it: the content itself tells.
        match self.gatherer.payload(bound).await? {
            Ok(bytes) => Ok(batch::first_block(&bytes).map_err(|_| poison(outline.index(), &ContentFault::Empty))),
            Err(fault) => Ok(Err(poison(outline.index(), &fault))),
        }
    }

    /// The local block below the batch, if the batch may be judged on it.
    async fn anchor(
        &mut self,
        bound: &BoundCommit,
        before: Option<&BatchRecord>,
        first: L2Number,
        pull: &Pull,
    ) -> Result<Result<L2Header, BatchEnd>, FlowError> {
        let index = bound.outline.index();
        let number = first.minus(1);
        if !dispatch::is_present(number, pull.head.number) {
            // Not even the block below is there. Behind a verified batch that is a chain that changed under way.
            if before.is_some() {
                return Err(FlowError::local_changed(format!("block {number} is gone")));
            }
            let facts = self.first_facts(bound.outline.last, pull, false, None);
            return Ok(Err(match dispatch::first_look(&facts) {
                FirstLook::FetchBlob => self.walk_back(index, number, false).await?,
                FirstLook::Wait | FirstLook::WaitBeforeSwitch | FirstLook::Consistent => BatchEnd::Stands {
                    stall: self.waiting(index, bound.outline.last, pull),
                    blocks: bound.outline.last.above(first).saturating_add(1),
                },
            }));
        }
        let Some(local) = self.ports.l2.header(number).await? else {
            return Err(FlowError::local_changed(format!("block {number} is gone")));
        };
        let facts = AnchorFacts {
            local,
            prev_state_root: bound.outline.header.prev_state_root,
            verified: before.and_then(|b| b.last),
        };
        match reconcile::anchor(&facts) {
            Anchor::Canonical => Ok(Ok(local)),
            Anchor::NotTheVerified { expected } => {
                Err(FlowError::local_changed(format!("block {number} is no longer the verified {expected}")))
            }
            Anchor::StateRoot { expected, actual } if before.is_some() => {
                let detail = format!("prevStateRoot: {expected:?}, the verified parent block has {actual:?}");
                Ok(Err(BatchEnd::stands(Stall::at(index, Reason::StateRoot, detail))))
            }
            Anchor::StateRoot { expected, actual } => {
                warn!(
                    batch = index.get(),
                    ?expected,
                    ?actual,
                    "the local chain differs below this batch; going back one batch"
                );
                Ok(Err(self.walk_back(index, number, true).await?))
            }
        }
    }

    /// The anchor at `number` below batch `index` is wrong and nothing is stored of the batch before: it is looked for
    /// on L1 and verified first; a block that is `present` at most down to the finalized head (E5).
    async fn walk_back(&mut self, index: BatchIndex, number: L2Number, present: bool) -> Result<BatchEnd, FlowError> {
        if present && self.finalized_floor(number) {
            let detail = format!("block {number} lies at or below the finalized head and is not what L1 committed to");
            return Ok(BatchEnd::stands(Stall::at(index, Reason::DivergesBelowFinalized, detail)));
        }
        if index.get() <= 1 {
            let detail = "the local chain differs from L1 at the genesis block";
            return Ok(BatchEnd::stands(Stall::at(index, Reason::DivergesBelowFinalized, detail)));
        }
        match self.standing_commit(index.minus(1)).await? {
            Some(event) => Ok(BatchEnd::WalkBack(Box::new(event))),
            None => {
                let detail = format!("the commit of batch {} was not found on L1", index.minus(1));
                Ok(BatchEnd::stands(Stall::at(index, Reason::Gap, detail)))
            }
        }
    }

    /// The newest commit of `index` that stands on L1, within what is confirmed.
    pub(crate) async fn standing_commit(&mut self, index: BatchIndex) -> Result<Option<L1Event>, FlowError> {
        let confirmed = self.status.l1_confirmed.unwrap_or(self.settings.start);
        let hashes = self.ports.l1.committed_hashes(&[index], None).await?;
        let Some(standing) = hashes.first().copied().filter(|hash| !hash.is_zero()) else { return Ok(None) };
        // Nothing was committed below the batch before it.
        let before = self.ports.progress.batch(index.minus(1)).await?.filter(|b| b.index < index);
        let low = before.map_or(self.settings.origin, |b| b.l1.number);
        let mut nth = 0;
        while let Some(event) = self.nth_log(Sought::Commits, index, (low, confirmed), nth).await? {
            if matches!(event.kind, L1EventKind::Commit { hash, .. } if hash == standing) {
                return Ok(Some(event));
            }
            nth += 1;
        }
        Ok(None)
    }

    fn first_facts(&self, last: L2Number, pull: &Pull, before_switch: bool, same_bytes: Option<bool>) -> FirstFacts {
        FirstFacts { last, head: pull.head.number, verdict: pull.verdict, before_switch, same_bytes }
    }

    fn waiting(&self, index: BatchIndex, last: L2Number, pull: &Pull) -> Stall {
        match self.local.lost() {
            Some(Lost { from, .. }) => Stall::at(
                index,
                Reason::NodeLostBlocks,
                format!(
                    "the node lost its blocks from {from} on; its head is {}, the batch ends on {last}",
                    pull.head.number
                ),
            ),
            None => Stall::at(
                index,
                Reason::WaitingForBlocks,
                format!("the local head is {}, the batch ends on {last}", pull.head.number),
            ),
        }
    }

    /// The case table: looks, and acts where there is something to write.
    async fn resolve_case(
        &mut self,
        batch: &BatchContext<'_>,
        pull: &mut Pull,
    ) -> Result<Result<Resolved, Stall>, FlowError> {
        let (index, last) = (batch.index(), batch.last());
        let before_switch = dispatch::is_before_switch(batch.anchor.timestamp, self.settings.switch_ms);
        let present = dispatch::is_present(last, pull.head.number);
        let mut local = Vec::new();
        if present {
            local = self.gatherer.local_blocks(batch, last, self.settings.local_bytes).await?;
        }
        let whole = local.len() as u64 == batch.blocks;
        let same_bytes = if present && whole && self.settings.mode == Mode::Local {
            Some(self.gatherer.same_bytes(batch, &local).await?)
        } else {
            None
        };
        match dispatch::first_look(&self.first_facts(last, pull, before_switch, same_bytes)) {
            FirstLook::Consistent => {
                let Some(block) = local.last() else { return Err(FlowError::local_changed("no block was read")) };
                return Ok(Ok(Resolved { case: Case::Consistent, last: block.header, rewritten: 0, drift: false }));
            }
            FirstLook::Wait => return Ok(Err(self.waiting(index, last, pull))),
            FirstLook::WaitBeforeSwitch => {
                let detail = "its blocks lie before the single-sequencer switch and are never derived from L1";
                return Ok(Err(Stall::at(index, Reason::BeforeSwitch, detail)));
            }
            FirstLook::FetchBlob => {}
        }
        let expected = match self.expected_blocks(batch).await? {
            Ok(expected) => expected,
            Err(fault) => return Ok(Err(poison(index, &fault))),
        };
        let top = last.min(pull.head.number);
        if !whole && top >= batch.first {
            drop(local);
            local = self
                .gatherer
                .local_blocks(batch, top, expected.iter().map(|b| held_bytes(&b.transactions)).sum())
                .await?;
        }
        let (equal, difference) = reconcile::equal_prefix(batch.anchor.l2_ref(), &expected, &local);
        if difference.is_none() && top >= batch.first && local.last().is_none_or(|b| b.header.number != top) {
            // What is longer than the content cannot equal it.
            return Err(FlowError::local_changed("blocks changed while they were compared"));
        }
        let bytes_differed = same_bytes == Some(false);
        let case = match dispatch::after_rebuild(&SecondFacts { present, difference, bytes_differed, before_switch }) {
            SecondLook::Consistent { drift } => {
                if drift {
                    warn!(batch = index.get(), "same content under other bytes than our encoder's (encoder drift)");
                    self.status.encoder_drift = self.status.encoder_drift.saturating_add(1);
                }
                let Some(block) = local.last() else { return Err(FlowError::local_changed("no block was read")) };
                return Ok(Ok(Resolved { case: Case::Consistent, last: block.header, rewritten: 0, drift }));
            }
            SecondLook::DivergesBeforeSwitch => {
                let at = difference.map(|d| d.to_string()).unwrap_or_default();
                let detail = format!("{at} differs from L1, before the single-sequencer switch: never rewritten");
                return Ok(Err(Stall::at(index, Reason::DivergesBeforeSwitch, detail)));
            }
            SecondLook::SelfHeal => Case::SelfHeal,
            SecondLook::FillGap => Case::FillGap,
        };
        let hash = batch.bound.outline.header.hash();
        let case = self.ledger.case_begun(index, hash).unwrap_or(case);
        if let Some(difference) = difference {
            info!(batch = index.get(), %difference, "the local chain differs from L1");
        }
        let head = pull.head.number;
        let Some(plan) = reconcile::plan(batch.anchor.l2_ref(), expected, &local, equal, head) else {
            return Err(FlowError::local_changed("nothing is left to write"));
        };
        let rewritten = plan.blocks.len() as u64;
        match self.derive_force(index, hash, case, plan, pull).await? {
            Ok(last) => Ok(Ok(Resolved { case, last, rewritten, drift: false })),
            Err(stall) => Ok(Err(stall)),
        }
    }

    /// The batch's blocks as its blob and the queue hold them, checked against calldata.
    async fn expected_blocks(
        &mut self,
        batch: &BatchContext<'_>,
    ) -> Result<Result<Vec<NewBlock>, ContentFault>, FlowError> {
        let outline = &batch.bound.outline;
        let blocks = match self.gatherer.content(batch).await? {
            Ok(blocks) => blocks,
            Err(fault) => return Ok(Err(fault)),
        };
        if let Err(fault) = content::check(&blocks, &batch.demands()) {
            return Ok(Err(fault));
        }
        let messages = self.messages(outline.first_message, outline.messages).await?;
        let hashes_fit = messages.iter().map(|m| m.hash).eq(outline.message_hashes.iter().copied());
        if !hashes_fit {
            return Err(FlowError::l1_changed("the stored L1 messages are not those that the batch is bound to"));
        }
        match content::with_messages(&blocks, &messages) {
            Some(blocks) => Ok(Ok(blocks)),
            None => Ok(Err(ContentFault::MessageCount { expected: outline.messages, actual: messages.len() as u64 })),
        }
    }

    /// Asks for all that rebuilding the commit of `event` takes, whatever the local chain holds and whether or not L1 took
    /// it back since: its calldata, its blobs, its L1 messages. For a recording: over what L1 lacks or the blobs do not say,
    /// every worker stands still alike.
    pub(crate) async fn gather_commit(&mut self, event: &L1Event) -> Result<(), FlowError> {
        let L1EventKind::Commit { index, hash } = event.kind else { return Ok(()) };
        if index.get() == 0 {
            return Ok(());
        }
        self.searches.begin();
        let Ok(bound) = self.bound_commit(event, index, hash, None).await? else { return Ok(()) };
        let _decoded = self.gatherer.payload(&bound).await?;
        self.messages(bound.outline.first_message, bound.outline.messages).await?;
        Ok(())
    }

    /// L1 messages `first..first + count` with their bytes: the stored ones, else looked for further back on L1.
    async fn messages(&mut self, first: QueueIndex, count: u64) -> Result<Vec<L1Message>, FlowError> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let stored = self.ports.progress.messages(first, count).await?;
        if stored.len() as u64 == count {
            return Ok(stored);
        }
        self.scan_back(first, count).await?;
        let stored = self.ports.progress.messages(first, count).await?;
        if stored.len() as u64 == count {
            return Ok(stored);
        }
        let missing = queue_range(first, count).into_iter().find(|i| stored.iter().all(|m| m.index != *i));
        let detail = format!("L1 message {} was not found on L1", missing.unwrap_or(first));
        Err(FlowError::Port(PortError::new(Target::L1, crate::error::PortErrorKind::NotFound, detail)))
    }
}

fn poison(index: BatchIndex, fault: &ContentFault) -> Stall {
    Stall::at(index, Reason::PoisonBatch, fault.to_string())
}
