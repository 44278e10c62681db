//! One poll: snapshot, ground, L1 view, logs, batches in order, finality, tags.

use std::time::Duration;

use tracing::{debug, info, warn};

use crate::decide::cursor::{self, Continuity, Range};
use crate::decide::heads::Move;
use crate::decide::liveness::{Unknown, Verdict};
use crate::decide::recheck::{self, Basis, Grounds};
use crate::decide::stall::{Reason, Stall};
use crate::error::{PortError, PortErrorKind, Target};
use crate::flow::batch::BatchEnd;
use crate::flow::derive::PendingWrite;
use crate::flow::l1_range::{self, Reading, cursor_before};
use crate::flow::l1_view::L1View;
use crate::flow::quiesce::Quiesced;
use crate::flow::settlement;
use crate::flow::worker::Worker;
use crate::flow::{BatchReport, FlowError};
use crate::ports::{Step, Suspect};
use crate::types::{
    B256, BatchIndex, BatchRecord, Case, Cursor, L1Event, L1EventKind, L1Message, L1Number, L1Ref, L2Number, L2Ref,
    L2Snapshot, Outcome,
};

/// At most so many further endpoints are asked about a hole in one pull.
const MAX_ASKED_AGAIN: usize = 8;

/// How a pull ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullEnd {
    /// There is more confirmed L1 to read: the next poll starts at once.
    Behind,
    /// Everything confirmed was read.
    CaughtUp,
    /// The last batch that was asked for was reached.
    Reached,
    /// It stands still, for this reason.
    Stalled(Stall),
}

/// The verdict on the batch at which it stands.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    grounds: Grounds,
    /// Where the batch ends, as far as the verdict depends on the local chain.
    end: Option<L2Number>,
    at: Duration,
    stall: Stall,
    pending: Option<PendingWrite>,
}

/// What one pull did.
#[derive(Clone, Debug)]
pub struct PullReport {
    /// The batches that were decided, in order; one that is waited for included.
    pub batches: Vec<BatchReport>,
    /// How it ended.
    pub end: PullEnd,
}

/// What holds for one whole pull, and the pause that its batches share.
pub(crate) struct Pull {
    pub(crate) verdict: Verdict,
    /// The head: the snapshot's, then the worker's own last write.
    pub(crate) head: L2Ref,
    /// The node as it showed itself last.
    pub(crate) node: L2Snapshot,
    pub(crate) pause: Option<Quiesced>,
    /// The last block that was written inside the open pause.
    pub(crate) written: Option<L2Ref>,
    pub(crate) reports: Vec<BatchReport>,
    /// L1 blocks of the range that is being dealt with, ascending: those that a step records.
    pub(crate) blocks: Vec<L1Ref>,
}

impl Pull {
    /// What a step that moves the cursor from `cursor` to L1 block `to` records: the blocks in between, so that a reorg
    /// finds its ancestor also while a pull stands in the middle of a range (P8).
    fn blocks_up_to(&self, cursor: Option<&Cursor>, to: L1Ref) -> Vec<L1Ref> {
        let above = |number: L1Number| cursor.is_none_or(|c| number > c.block.number);
        let between = self.blocks.iter().filter(|b| b.number < to.number && above(b.number));
        between.copied().chain([to]).collect()
    }
}

impl Worker {
    /// One poll. `now` is a clock that only goes forward, used for the liveness verdict and for how long another verdict
    /// is kept.
    ///
    /// # Errors
    /// When something could not be read or written. What was stored before stays; the next pull goes on from there.
    pub async fn pull(&mut self, now: Duration) -> Result<PullReport, FlowError> {
        self.now = now;
        if let Err(error) = self.reload().await {
            self.local.interrupted();
            return Err(error);
        }
        self.searches.begin();
        if self.quiesce.is_degraded() {
            self.local.interrupted();
        }
        let node = match self.ports.l2.snapshot().await {
            Ok(node) => node,
            Err(error) => {
                if error.is_transient() {
                    self.patience.node_is_away();
                }
                self.local.interrupted();
                return Err(error.into());
            }
        };
        self.patience.node_is_there(now);
        self.note_snapshot(&node);
        self.asserted = None;
        self.two_nodes = None;
        if node.syncing {
            self.local.interrupted();
            let stall = Stall::new(Reason::NodeSyncing, "the execution node says that it is syncing");
            return Ok(PullReport { batches: Vec::new(), end: PullEnd::Stalled(stall) });
        }
        let observed = self.local.observe(node.head.number, now);
        if matches!(observed, Verdict::Unknown(Unknown::WentDown { .. })) {
            self.patience.node_changed(now);
        }
        let verdict = self.settings.assume.unwrap_or(observed);
        self.status.verdict = Some(verdict);
        let mut pull = Pull {
            verdict,
            head: node.head.l2_ref(),
            node,
            pause: None,
            written: None,
            reports: Vec::new(),
            blocks: Vec::new(),
        };
        let degraded = self.quiesce.is_degraded();
        let pauses = self.quiesce.pauses();
        let end = self.pull_inner(&mut pull).await;
        if self.quiesce.pauses() != pauses {
            self.local.paused(observed);
        }
        if degraded || end.as_ref().is_err_and(node_is_gone) {
            self.local.interrupted();
        }
        let end = end?;
        // A resume that fails holds up what must be written and nothing else; it is shown where nothing worse is.
        if degraded && matches!(end, PullEnd::CaughtUp | PullEnd::Reached) {
            return Err(FlowError::Stall(Stall::new(Reason::ReactorsDegraded, "the reactors are not resumed yet")));
        }
        Ok(PullReport { batches: pull.reports, end })
    }

    async fn pull_inner(&mut self, pull: &mut Pull) -> Result<PullEnd, FlowError> {
        if let Err(stall) = self.local.check_safe(&mut self.ledger, &pull.node).await? {
            return Ok(PullEnd::Stalled(stall));
        }
        // Tags first: a node that restarted has them right again even while L1 cannot be asked (E10, E20).
        let node = match self.unmark(&pull.node).await {
            Ok(node) => node,
            Err(error) => {
                warn!(%error, "a tag that the execution node moved by itself cannot be put back yet");
                pull.node
            }
        };
        pull.node = self.sync_tags(&node).await?;
        let view = match self.view_l1(&mut pull.node).await? {
            Ok(view) => view,
            Err(stall) => return Ok(PullEnd::Stalled(stall)),
        };
        if view.reorged {
            self.searches.forget();
            // A dropped RevertBatch lets batches stand again; a dropped batch takes the node's tag down at once (B3).
            if let Err(stall) = self.local.check_safe(&mut self.ledger, &pull.node).await? {
                return Ok(PullEnd::Stalled(stall));
            }
            let node = pull.node;
            pull.node = self.sync_tags(&node).await?;
        }
        let read = self.read_range(&view, pull).await;
        // Nothing behind this needs the pause that the batches shared.
        let released = match pull.pause.take() {
            Some(pause) => pause.release().await,
            None => Ok(()),
        };
        // Finality does not wait for a batch that cannot be decided, nor do the tags that were lowered for it.
        let finalized = self.finalize(matches!(read, Ok(PullEnd::Behind))).await;
        let tagged = self.sync_tags(&pull.node).await;
        let end = read?;
        released?;
        finalized?;
        pull.node = tagged?;
        Ok(match (end, self.two_nodes.take()) {
            (PullEnd::CaughtUp | PullEnd::Behind | PullEnd::Reached, Some(stall)) => PullEnd::Stalled(stall),
            (end, _) => end,
        })
    }

    fn note_snapshot(&mut self, node: &L2Snapshot) {
        self.status.l2_head = Some(node.head.l2_ref());
        self.status.node_safe = node.safe;
        self.status.node_finalized = node.finalized;
        self.node_finalized = node.finalized;
        // Moved without us since they were read back. A node that was restarted has its safe tag on finalized: that is
        // nobody's doing.
        let moved = self.confirmed.is_some_and(|c| c.safe() != node.safe && node.safe != node.finalized);
        self.status.tags_contended = moved;
    }

    /// Reads the next range. A hole in it may be one endpoint's alone: the others are asked at once, and only then does it
    /// block (A1, C6).
    async fn read_range(&mut self, view: &L1View, pull: &mut Pull) -> Result<PullEnd, FlowError> {
        let mut end = self.read_range_once(view, pull).await?;
        for _ in 0..MAX_ASKED_AGAIN {
            let PullEnd::Stalled(stall) = &end else { break };
            if stall.reason != Reason::Gap || !self.ports.l1.distrust(Suspect::Logs, &stall.detail) {
                break;
            }
            warn!(code = stall.reason.code(), detail = stall.detail, "asking another L1 endpoint");
            self.searches.forget();
            end = self.read_range_once(view, pull).await?;
        }
        if end == PullEnd::CaughtUp && view.stale {
            let detail = "the newest L1 block is older than it may be; is the L1 node frozen, or this clock wrong?";
            return Ok(PullEnd::Stalled(Stall::new(Reason::L1Stale, detail)));
        }
        Ok(end)
    }

    async fn read_range_once(&mut self, view: &L1View, pull: &mut Pull) -> Result<PullEnd, FlowError> {
        let (start, width) = (self.settings.start, self.settings.fetch_range);
        let Some(range) = cursor::next_range(self.ledger.cursor().as_ref(), start, view.confirmed, width) else {
            return Ok(PullEnd::CaughtUp);
        };
        let known = self.known_blocks(&range).await?;
        let reading = l1_range::read(self.ports.l1.as_ref(), range, &known, self.settings.reorg_window).await?;
        pull.blocks.clone_from(&reading.blocks);
        if let Some(end) = self.process(&reading, view, pull).await? {
            return Ok(end);
        }
        if reading.end.number < view.confirmed {
            return Ok(PullEnd::Behind);
        }
        Ok(PullEnd::CaughtUp)
    }

    /// What is recorded of the blocks of `range` and of the one below it: the cursor's own block, and where the cursor
    /// was sent back the blocks above it.
    async fn known_blocks(&self, range: &Range) -> Result<Vec<L1Ref>, FlowError> {
        let mut known = self.ports.progress.l1_blocks().await?;
        known.retain(|block| block.number >= range.from && block.number <= range.to);
        known.extend(self.ledger.cursor().map(|c| c.block));
        Ok(known)
    }

    /// Deals with the events in order. Gives the end where the pull must stop early.
    async fn process(
        &mut self,
        reading: &Reading,
        view: &L1View,
        pull: &mut Pull,
    ) -> Result<Option<PullEnd>, FlowError> {
        self.status.last_commit_at = reading.last_commit_at.or(self.status.last_commit_at);
        let begun = settlement::place_of(self.ledger.cursor().as_ref());
        if let Some(stall) = self.settlements.left_out(&reading.events, begun, reading.end.number).await? {
            return Ok(Some(PullEnd::Stalled(stall)));
        }
        let standing = self.standing_hashes(&reading.events).await;
        let mut messages: Vec<(L1Ref, L1Message)> = Vec::new();
        let mut proofs: Vec<L1Event> = Vec::new();
        for (at, event) in reading.events.iter().enumerate() {
            if !cursor::is_ahead(self.ledger.cursor().as_ref(), event) {
                continue;
            }
            self.gone_back = self.gone_back.filter(|place| *place != (event.block, event.log_index));
            match &event.kind {
                L1EventKind::Message(message) => messages.push((event.block, message.clone())),
                L1EventKind::Finalize { .. } => proofs.push(event.clone()),
                L1EventKind::Revert { index, .. } => {
                    self.store_messages(&mut messages).await?;
                    self.store_proofs(&mut proofs).await?;
                    if let Some(stall) = self.on_revert(event, *index, pull).await? {
                        return Ok(Some(PullEnd::Stalled(stall)));
                    }
                    let node = pull.node;
                    pull.node = self.sync_tags(&node).await?;
                }
                L1EventKind::Commit { index, hash } => {
                    self.store_messages(&mut messages).await?;
                    self.store_proofs(&mut proofs).await?;
                    let reverted = match cursor::reverted_later(&reading.events, at, *index) {
                        Some(block) => Ok(Some(block)),
                        None => self.reverted_elsewhere(event, *index, *hash, &standing, view).await?,
                    };
                    let reverted = match reverted {
                        Ok(reverted) => reverted,
                        Err(stall) => return Ok(Some(PullEnd::Stalled(stall))),
                    };
                    if let Some(end) = self.on_commit(event, *index, *hash, reverted, pull).await? {
                        return Ok(Some(end));
                    }
                }
            }
        }
        if let Some(end) = self.hidden_logs(reading, view).await? {
            self.store_messages(&mut messages).await?;
            return Ok(Some(end));
        }
        let end = Cursor { block: reading.end, log_index: None };
        // Twice the window: after a reorg inside it, the window below the ancestor is still there.
        let l1_floor = Some(reading.end.number.minus(self.settings.reorg_window.saturating_mul(2)));
        let step = Step {
            messages,
            settlements: proofs,
            settled_to: Some(reading.end),
            l1_blocks: reading.blocks.clone(),
            l1_floor,
            cursor: Some(end),
            ..Step::default()
        };
        self.ledger.commit(&step).await?;
        Ok(None)
    }

    /// `committedBatches` of every index that the range commits to, in one request: what differs from its event was
    /// reverted since, perhaps far above the range. An index that the contract was not heard of is left out: its reverts
    /// are looked for in the logs (A8).
    async fn standing_hashes(&self, events: &[L1Event]) -> Vec<(BatchIndex, B256)> {
        let ahead = events.iter().filter(|e| cursor::is_ahead(self.ledger.cursor().as_ref(), e));
        let mut indices: Vec<_> = ahead
            .filter_map(|e| match e.kind {
                L1EventKind::Commit { index, .. } => Some(index),
                L1EventKind::Revert { .. } | L1EventKind::Finalize { .. } | L1EventKind::Message(_) => None,
            })
            .collect();
        indices.sort_unstable();
        indices.dedup();
        if indices.is_empty() {
            return Vec::new();
        }
        match self.ports.l1.committed_hashes(&indices, None).await {
            Ok(hashes) => indices.into_iter().zip(hashes).collect(),
            Err(error) => {
                debug!(%error, "the contract cannot be asked which batches stand; looking through the logs");
                Vec::new()
            }
        }
    }

    /// The L1 block in which L1 reverted this commit, further up than the range reaches (C4, C5); none where it stands. A
    /// revert that is not confirmed yet is waited for. A batch that was committed again with the same hash looks as if it
    /// stood under this commit too: where the later one is stored, its revert in between is looked for all the same.
    async fn reverted_elsewhere(
        &mut self,
        event: &L1Event,
        index: BatchIndex,
        hash: B256,
        standing: &[(BatchIndex, B256)],
        view: &L1View,
    ) -> Result<Result<Option<L1Number>, Stall>, FlowError> {
        let place = (event.block.number, event.log_index);
        // What was read of reverts ahead of the batches, or before the node lost blocks and the cursor went back, is known
        // by place: a batch that was committed again with the same hash does not stand under this commit (M17).
        let now = standing.iter().find(|(i, _)| *i == index).map(|(_, h)| *h);
        if let Some(revert) = self.known_revert(index, place, now.is_none_or(|now| now == hash)).await? {
            return Ok(Ok(Some(revert)));
        }
        let stored = self.ports.progress.batch(index).await?;
        let stands_later = stored.is_some_and(|r| (r.l1.number, r.log_index) > place);
        if now == Some(hash) && !stands_later {
            return Ok(Ok(None));
        }
        if let Some(revert) = self.revert_after(index, place, view.confirmed).await? {
            return Ok(Ok(Some(revert.block.number)));
        }
        if stands_later {
            let detail = "the batch was committed anew further on, and no L1 endpoint has its revert";
            return Ok(Err(Stall::at(index, Reason::Gap, detail)));
        }
        if now.is_none() {
            return Ok(Ok(None));
        }
        let confirmed = self.ports.l1.committed_hashes(&[index], Some(view.confirmed)).await.ok();
        if confirmed.and_then(|hashes| hashes.first().copied()).is_some_and(|then| then != hash) {
            let detail = "the contract no longer holds this batch, but no log of its revert was given";
            return Ok(Err(Stall::at(index, Reason::Gap, detail)));
        }
        let detail = "L1 no longer holds this batch; its revert is not confirmed yet";
        Ok(Err(Stall::at(index, Reason::RevertPending, detail)))
    }

    /// The L1 block of the stored revert that takes down the commit of `index` at `place`. Where the contract holds the
    /// batch (`stands`), or was not heard, L1 must confirm it: it may be false, and the batch would never be verified.
    async fn known_revert(
        &self,
        index: BatchIndex,
        place: (L1Number, u64),
        stands: bool,
    ) -> Result<Option<L1Number>, FlowError> {
        let Some(revert) = self.ports.progress.revert_after(index, place).await? else { return Ok(None) };
        let block = revert.block.number;
        if !stands || self.settlements.is_confirmed(&revert).await? {
            return Ok(Some(block));
        }
        warn!(batch = index.get(), l1_block = %revert.block, "L1 does not confirm a revert that it gave; it is forgotten");
        self.settlements.forget_above(block.minus(1)).await?;
        Ok(None)
    }

    pub(crate) async fn store_messages(&mut self, messages: &mut Vec<(L1Ref, L1Message)>) -> Result<(), FlowError> {
        if messages.is_empty() {
            return Ok(());
        }
        let step = Step { messages: std::mem::take(messages), ..Step::default() };
        self.ledger.commit(&step).await?;
        Ok(())
    }

    /// FinalizeBatch logs are kept before the cursor passes them.
    async fn store_proofs(&mut self, proofs: &mut Vec<L1Event>) -> Result<(), FlowError> {
        if proofs.is_empty() {
            return Ok(());
        }
        Ok(self.ledger.commit(&Step { settlements: std::mem::take(proofs), ..Step::default() }).await?)
    }

    /// A RevertBatch log: everything from its index on stands no more (C1). Until a batch is proved that is ordinary, also
    /// where it was finalized as committed: its blocks stay finalized, and safe goes down to them and no further (M3).
    async fn on_revert(
        &mut self,
        event: &L1Event,
        index: BatchIndex,
        pull: &mut Pull,
    ) -> Result<Option<Stall>, FlowError> {
        let cursor = Cursor { block: event.block, log_index: Some(event.log_index) };
        let l1_blocks = pull.blocks_up_to(self.ledger.cursor().as_ref(), event.block);
        let mut step = Step { revert: Some(event.clone()), l1_blocks, cursor: Some(cursor), ..Step::default() };
        if self.settlements.was_proved(index, event).await? {
            let detail = "L1 says that the contract reverted a batch that it had proved, which it cannot";
            return Ok(Some(Stall::at(index, Reason::RevertBelowFinalized, detail)));
        }
        let stands = self.ports.progress.batch(index).await?;
        if let Some(record) = stands.filter(|r| (r.l1.number, r.log_index) < (event.block.number, event.log_index)) {
            let before = match record.index.get() {
                0 => None,
                _ => self.ports.progress.batch(record.index.minus(1)).await?,
            };
            let heads = self.ledger.heads().rewind_safe(before.and_then(|b| b.last));
            step.revert_from = Some(index);
            step.safe = heads.safe();
            step.clear_safe = heads.safe().is_none();
            if step.clear_safe {
                pull.node = self.abandon_safe(record.first, &pull.node).await?;
            }
        }
        self.ledger.commit(&step).await?;
        warn!(batch = index.get(), l1_block = event.block.number.get(), reason = "reverted", "L1 reverted a batch");
        self.status.reverted = self.status.reverted.saturating_add(1);
        Ok(None)
    }

    async fn on_commit(
        &mut self,
        event: &L1Event,
        index: BatchIndex,
        hash: B256,
        reverted: Option<L1Number>,
        pull: &mut Pull,
    ) -> Result<Option<PullEnd>, FlowError> {
        if index.get() == 0 {
            let record = self.genesis_record(event, hash).await?;
            self.store_batch(record, None, pull).await?;
            return Ok(None);
        }
        if reverted.is_some() {
            let record = bare_record(event, index, hash, Outcome::Reverted);
            info!(batch = index.get(), "reverted further on; not verified");
            self.store_batch(record, reverted, pull).await?;
            return Ok(None);
        }
        if self.settings.to_batch.is_some_and(|to| index > to) {
            return Ok(Some(PullEnd::Reached));
        }
        let before = match self.batch_before(event, index).await? {
            Ok(before) => before,
            Err(end) => return Ok(Some(end)),
        };
        if let Some(stall) = self.kept_verdict(event, hash, pull).await? {
            return Ok(Some(PullEnd::Stalled(stall)));
        }
        let end = self.judge(event, index, hash, before.as_ref(), pull).await?;
        match end {
            BatchEnd::Verified(record) => {
                let reached = self.settings.to_batch.is_some_and(|to| index >= to);
                self.store_batch(*record, None, pull).await?;
                Ok(reached.then_some(PullEnd::Reached))
            }
            BatchEnd::Stands { stall, blocks } => {
                if !stall.reason.is_halt() && stall.reason != Reason::WouldSelfHeal {
                    let report = BatchReport { index, case: Case::Wait, blocks, rewritten: 0, encoder_drift: false };
                    pull.reports.push(report);
                }
                self.keep_verdict(event, hash, &stall, blocks, pull).await?;
                Ok(Some(PullEnd::Stalled(stall)))
            }
            BatchEnd::WalkBack(found) => self.go_back_to(index.minus(1), &found, "commit").await.map(Some),
        }
    }

    /// Remembers a verdict that needs not be given again at the next poll (C5).
    async fn keep_verdict(
        &mut self,
        event: &L1Event,
        hash: B256,
        stall: &Stall,
        blocks: u64,
        pull: &Pull,
    ) -> Result<(), FlowError> {
        self.kept = None;
        let Some(basis) = recheck::basis(stall.reason) else { return Ok(()) };
        let safe = self.ledger.heads().safe();
        let end = match (basis, safe) {
            (Basis::L1, _) => None,
            (Basis::LocalChain, Some(safe)) => Some(safe.number.plus(blocks)),
            (Basis::LocalChain, None) => Some(pull.head.number),
        };
        let commit = (hash, event.block, event.log_index);
        let grounds = Grounds { commit, safe, local: self.local_at(end, pull).await? };
        self.kept = Some(Kept { grounds, end, at: self.now, stall: stall.clone(), pending: self.pending });
        Ok(())
    }

    /// The kept verdict on this commit, if it still holds.
    async fn kept_verdict(&mut self, event: &L1Event, hash: B256, pull: &Pull) -> Result<Option<Stall>, FlowError> {
        let Some(kept) = self.kept.take_if(|kept| kept.grounds.are_of(event, hash)) else { return Ok(None) };
        let local = self.local_at(kept.end, pull).await?;
        let grounds = Grounds { safe: self.ledger.heads().safe(), local, ..kept.grounds };
        if !recheck::holds(&kept.grounds, &grounds, self.now.saturating_sub(kept.at)) {
            return Ok(None);
        }
        let stall = kept.stall.clone();
        self.pending = kept.pending;
        self.kept = Some(kept);
        Ok(Some(stall))
    }

    /// The local block at `end`, or the head where that is lower.
    async fn local_at(&self, end: Option<L2Number>, pull: &Pull) -> Result<Option<L2Ref>, FlowError> {
        match end {
            None => Ok(None),
            Some(end) if end >= pull.head.number => Ok(Some(pull.head)),
            Some(end) => Ok(self.ports.l2.header(end).await?.map(|h| h.l2_ref())),
        }
    }

    /// The standing batch that `index` must continue (P3). A hole is looked for on L1 once more before it blocks.
    async fn batch_before(
        &mut self,
        event: &L1Event,
        index: BatchIndex,
    ) -> Result<Result<Option<BatchRecord>, PullEnd>, FlowError> {
        let progress = self.ports.progress.clone();
        let position = (event.block.number, event.log_index);
        let precedes = |r: &BatchRecord| (r.l1.number, r.log_index) < position;
        if progress.batch(index).await?.is_some_and(|b| precedes(&b)) {
            return self.missed_revert(index, event.block.number).await.map(Err);
        }
        if let Some(before) = progress.batch(index.minus(1)).await?.filter(|b| precedes(b)) {
            return Ok(Ok(Some(before)));
        }
        let newest = progress.newest_at_or_below(event.block.number).await?;
        // A row of this very log: the batch is verified again after the node lost it, and nothing stands before it.
        let newest = newest.filter(|r| r.index < index || !(r.l1 == event.block && r.log_index >= event.log_index));
        match cursor::continuity(newest.map(|r| r.index), index) {
            Continuity::Continues => Ok(Ok(None)),
            Continuity::Repeated => self.missed_revert(index, event.block.number).await.map(Err),
            Continuity::Gap(missing) => self.refetch(missing).await.map(Err),
        }
    }

    /// Asks once more for the commit of `missing`; goes back to it if L1 has it after all.
    async fn refetch(&mut self, missing: BatchIndex) -> Result<PullEnd, FlowError> {
        let Some(found) = self.standing_commit(missing).await? else {
            let detail = format!("gap({missing}): no L1 endpoint has a commit of batch {missing}");
            return Ok(PullEnd::Stalled(Stall::at(missing, Reason::Gap, detail)));
        };
        self.go_back_to(missing, &found, "commit").await
    }

    /// A standing batch cannot stand any more, and no revert was seen: it is asked for, up to block `until`.
    async fn missed_revert(&mut self, index: BatchIndex, until: L1Number) -> Result<PullEnd, FlowError> {
        let stands = self.ports.progress.batch(index).await?;
        if let Some(record) = stands
            && let Some(found) = self.revert_after(index, (record.l1.number, record.log_index), until).await?
        {
            return self.go_back_to(index, &found, "revert").await;
        }
        let detail = format!("batch {index} was committed anew or is gone, and no L1 endpoint has its revert");
        Ok(PullEnd::Stalled(Stall::at(index, Reason::Gap, detail)))
    }

    /// Makes `found`, a log that was left out when its range was read, the next one. One that still lies ahead was left
    /// out of this very range, which is read again anyway; one to which the cursor went back in vain was left out
    /// again. Both are told as a hole, so that another endpoint is asked.
    async fn go_back_to(&mut self, index: BatchIndex, found: &L1Event, what: &str) -> Result<PullEnd, FlowError> {
        let left_out = || {
            let detail = format!("an L1 endpoint left out the {what} of batch {index}; the range is read again");
            PullEnd::Stalled(Stall::at(index, Reason::Gap, detail))
        };
        if cursor::is_unread(self.ledger.cursor().as_ref(), self.settings.start, found) {
            return Ok(left_out());
        }
        let place = (found.block, found.log_index);
        let in_vain = self.gone_back.replace(place) == Some(place);
        let cursor = cursor_before(self.ports.l1.as_ref(), found.block, found.log_index).await?;
        // What was known of reverts and proofs above it was read from the same endpoint, perhaps.
        let forget_settled_above = Some(found.block.number.minus(1));
        let step = Step { cursor, clear_cursor: cursor.is_none(), forget_settled_above, ..Step::default() };
        self.ledger.commit(&step).await?;
        warn!(batch = index.get(), what, in_vain, "going back to a log that was not read");
        Ok(if in_vain { left_out() } else { PullEnd::Behind })
    }

    /// Compares the highest stored index with the contract's own at the end of what is confirmed: logs that an endpoint
    /// left out leave no hole when they were the last ones (A1). The contract's answer is welcome but not needed (A8).
    async fn hidden_logs(&mut self, reading: &Reading, view: &L1View) -> Result<Option<PullEnd>, FlowError> {
        let end = reading.end.number;
        if end != view.confirmed {
            return Ok(None);
        }
        let Ok(there) = self.ports.l1.last_committed_index(Some(end)).await else { return Ok(None) };
        let Some(ours) = self.ports.progress.newest_at_or_below(end).await?.map(|r| r.index) else { return Ok(None) };
        if there < ours {
            let lowest = there.plus(1);
            let stored = self.ports.progress.batch(lowest).await?.is_some();
            return self.missed_revert(if stored { lowest } else { ours }, end).await.map(Some);
        }
        if there == ours {
            return Ok(None);
        }
        self.refetch(ours.plus(1)).await.map(Some)
    }

    /// Stores a batch's outcome with heads and cursor in one transaction, then tells the node (P6).
    async fn store_batch(
        &mut self,
        record: BatchRecord,
        reverted_by: Option<L1Number>,
        pull: &mut Pull,
    ) -> Result<(), FlowError> {
        let cursor = Cursor { block: record.l1, log_index: Some(record.log_index) };
        let mut heads = self.ledger.heads();
        if let (Outcome::Verified | Outcome::Genesis, Some(last)) = (record.outcome, record.last) {
            self.passes_finalized(record.index, last).await?;
            heads = match self.ledger.heads().advance_safe(last) {
                Move::To(heads) => heads,
                Move::Unchanged | Move::Backwards => self.ledger.heads(),
                Move::BelowFinalized | Move::AboveSafe => {
                    let detail = format!("block {last} contradicts the finalized head");
                    let stall = Stall::at(record.index, Reason::DivergesBelowFinalized, detail);
                    return Err(FlowError::Stall(stall));
                }
            };
        }
        let step = Step {
            l1_blocks: pull.blocks_up_to(self.ledger.cursor().as_ref(), record.l1),
            safe: heads.safe(),
            cursor: Some(cursor),
            batch: Some(record.clone()),
            reverted_by,
            ..Step::default()
        };
        self.ledger.commit(&step).await?;
        if record.outcome == Outcome::Reverted {
            return Ok(());
        }
        self.note_verified(&record, pull);
        pull.node.head = self.head_of(pull);
        let node = pull.node;
        pull.node = self.sync_tags(&node).await?;
        Ok(())
    }

    /// Safe that goes from below finalized to above it must go over the finalized block itself: after a revert L1 may have
    /// committed to other blocks in its place, with other ends (M3).
    async fn passes_finalized(&self, index: BatchIndex, last: L2Ref) -> Result<(), FlowError> {
        let Some(finalized) = self.ledger.heads().finalized().filter(|f| f.number < last.number) else { return Ok(()) };
        if self.ledger.heads().safe().is_some_and(|safe| safe.number >= finalized.number) {
            return Ok(());
        }
        let Some(there) = self.ports.l2.header(finalized.number).await? else {
            return Err(FlowError::local_changed(format!("block {} is gone", finalized.number)));
        };
        if there.l2_ref() == finalized {
            return Ok(());
        }
        let detail = format!("the verified chain has {} in place of the finalized {finalized}", there.l2_ref());
        Err(FlowError::Stall(Stall::at(index, Reason::DivergesBelowFinalized, detail)))
    }

    /// The node's head for the tag plan: after own writes the snapshot's is out of date, its number is not.
    fn head_of(&self, pull: &Pull) -> crate::types::L2Header {
        let mut head = pull.node.head;
        head.number = pull.head.number;
        head.hash = pull.head.hash;
        head
    }

    fn note_verified(&mut self, record: &BatchRecord, pull: &mut Pull) {
        let Some(case) = record.case else { return };
        let (first, last) = (record.first.unwrap_or_default(), record.last.map(|l| l.number).unwrap_or_default());
        let blocks = last.above(first).saturating_add(1);
        info!(
            batch = record.index.get(),
            l1_block = record.l1.number.get(),
            first = first.get(),
            last = last.get(),
            %case,
            rewritten = record.rewritten,
            "batch verified"
        );
        self.status.verified = self.status.verified.saturating_add(1);
        self.status.last_batch = Some(record.index);
        pull.reports.push(BatchReport {
            index: record.index,
            case,
            blocks,
            rewritten: record.rewritten,
            encoder_drift: record.encoder_drift,
        });
    }

    /// The genesis import commits to index 0 without a batch: its one block is the chain's first (C10).
    async fn genesis_record(&self, event: &L1Event, hash: B256) -> Result<BatchRecord, FlowError> {
        // A node without it could not be asked; as a fact, its absence would stay stored (P1).
        let missing = || PortError::new(Target::L2, PortErrorKind::NotFound, "the node has no genesis block");
        let header = self.ports.l2.header(0.into()).await?.ok_or_else(missing)?;
        let mut record = bare_record(event, 0.into(), hash, Outcome::Genesis);
        record.first = Some(0.into());
        record.last = Some(header.l2_ref());
        record.post_state_root = header.state_root;
        Ok(record)
    }
}

/// Whether the L2 node went away under way.
fn node_is_gone(error: &FlowError) -> bool {
    matches!(error, FlowError::Port(error) if error.target == Target::L2 && error.is_transient())
}

fn bare_record(event: &L1Event, index: BatchIndex, hash: B256, outcome: Outcome) -> BatchRecord {
    BatchRecord {
        index,
        hash,
        l1: event.block,
        log_index: event.log_index,
        tx_hash: event.tx_hash,
        outcome,
        case: None,
        first: None,
        last: None,
        post_state_root: B256::zero(),
        withdrawal_root: B256::zero(),
        total_l1_popped: 0,
        rewritten: 0,
        encoder_drift: false,
    }
}
