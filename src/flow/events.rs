//! The logs of an L1 range, dealt with in order: messages, reverts, commits.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};

use crate::decide::cursor::{self, Range};
use crate::decide::heads::Move;
use crate::decide::liveness::HeadTrend;
use crate::decide::recheck::{self, Basis, VerdictInputs};
use crate::decide::stall::{Cause, Final, Gap, Reason, Stall};
use crate::decide::standing::{self, CommitFacts, Standing};
use crate::error::{PortError, PortErrorKind, Target};
use crate::flow::batch::{BatchEnd, Batches, Turn, Upcoming};
use crate::flow::continuity::{Before, Continuity, GoneBack, LeftOut};
use crate::flow::l1_ahead::RangesAhead;
use crate::flow::l1_range::{self, Reading};
use crate::flow::l1_search::L1Search;
use crate::flow::l1_view::L1View;
use crate::flow::ledger::Ledger;
use crate::flow::node::Node;
use crate::flow::settlement::{self, Settlements};
use crate::flow::writer::{Hands, PendingWrite, SharedPause, Writer};
use crate::flow::{BatchReport, Decided, FlowError, PollEnd, Ports, Settings, Stop};
use crate::ports::{L1Chain, L2Reader, Rows, Step, Suspect};
use crate::types::{
    B256, BatchIndex, BatchRecord, Case, CommitEvent, Cursor, L1Event, L1EventKind, L1Message, L1Number, L1Ref,
    L2Number, L2Ref, LogPos, Outcome, QueueIndex,
};

/// At most so many further endpoints are asked about a hole in one poll.
const MAX_ASKED_AGAIN: usize = 8;

/// The verdict on the batch at which the flow is stalled.
#[derive(Clone, Debug)]
struct Kept {
    inputs: VerdictInputs,
    /// The end of the batch, if the verdict depends on the local chain.
    end: Option<L2Number>,
    at: Duration,
    stall: Stall,
    pending: Option<PendingWrite>,
}

/// What one poll may change, and what it decides by.
pub(crate) struct Round<'a> {
    /// Heads, cursor and write intents.
    pub(crate) ledger: &'a mut Ledger,
    /// The node.
    pub(crate) node: &'a mut Node,
    /// The pause that the poll's batches share.
    pub(crate) pause: &'a mut SharedPause,
    /// The poll's time.
    pub(crate) now: Duration,
    /// Whether the head grows.
    pub(crate) verdict: HeadTrend,
    /// The batches that were decided.
    pub(crate) reports: Vec<BatchReport>,
    /// L1 blocks of the range that is being dealt with, ascending: those that a step records.
    pub(crate) blocks: Vec<L1Ref>,
}

impl Round<'_> {
    /// What a step that moves the cursor to L1 block `to` records: the blocks in between, so that a reorg finds its
    /// ancestor also while the flow is stalled in the middle of a range (P8).
    fn blocks_up_to(&self, to: L1Ref) -> Vec<L1Ref> {
        let cursor = self.ledger.cursor();
        let above = |number: L1Number| cursor.is_none_or(|c| number > c.block.number);
        let between = self.blocks.iter().filter(|b| b.number < to.number && above(b.number));
        between.copied().chain([to]).collect()
    }
}

/// What the status shows of the logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct EventsShown {
    /// The last verified batch.
    pub(crate) last_batch: Option<BatchIndex>,
    /// Batches verified since the start.
    pub(crate) verified: u64,
    /// RevertBatch logs dealt with.
    pub(crate) reverted: u64,
    /// When the newest batch was committed, in seconds since the Unix epoch.
    pub(crate) last_commit_at: Option<u64>,
}

/// The logs in order.
pub(crate) struct Events {
    l1: Arc<dyn L1Chain>,
    l2: Arc<dyn L2Reader>,
    rows: Arc<dyn Rows>,
    start: L1Number,
    fetch_range: u64,
    reorg_window: u64,
    /// Stop after this batch.
    to_batch: Option<BatchIndex>,
    /// The case table.
    pub(crate) batches: Batches,
    /// L1's history.
    pub(crate) search: L1Search,
    continuity: Continuity,
    /// The ranges after the one that is read.
    ranges: RangesAhead,
    /// Batches that are gathered ahead.
    read_ahead: usize,
    /// The verdict on the batch at which the flow is stalled, while it need not be given again.
    kept: Option<Kept>,
    last_batch: Option<BatchIndex>,
    verified: u64,
    reverted: u64,
    last_commit_at: Option<u64>,
}

impl Events {
    /// Nothing read yet; `last_batch` is the last verified batch of an earlier run.
    pub(crate) fn new(ports: &Ports, writer: Writer, settings: &Settings, last_batch: Option<BatchIndex>) -> Self {
        Self {
            l1: ports.l1.clone(),
            l2: ports.l2.clone(),
            rows: ports.progress.clone(),
            start: settings.start,
            fetch_range: settings.fetch_range,
            reorg_window: settings.reorg_window,
            to_batch: settings.to_batch,
            batches: Batches::new(ports, writer, settings),
            search: L1Search::new(ports, settings),
            continuity: Continuity::new(ports, settings),
            ranges: RangesAhead::new(ports, settings),
            read_ahead: settings.read_ahead,
            kept: None,
            last_batch,
            verified: 0,
            reverted: 0,
            last_commit_at: None,
        }
    }

    /// What the status shows of the logs.
    pub(crate) const fn shown(&self) -> EventsShown {
        let Self { last_batch, verified, reverted, last_commit_at, .. } = *self;
        EventsShown { last_batch, verified, reverted, last_commit_at }
    }

    /// L1 reorganised: what was read or gathered ahead is useless.
    pub(crate) fn chain_changed(&mut self) {
        self.search.forget();
        self.ranges.forget();
        self.batches.chain_changed();
    }

    /// Reads the next range. A hole in it may come from one endpoint alone: the others are asked at once, and only then
    /// does the hole block (A1, C6).
    pub(crate) async fn read_range(
        &mut self,
        view: &L1View,
        settlements: &Settlements,
        round: &mut Round<'_>,
    ) -> Decided<PollEnd> {
        let mut end = self.read_range_once(view, settlements, round).await;
        for _ in 0..MAX_ASKED_AGAIN {
            let Err(Stop::Stands(stall)) = &end else { break };
            let (reason, detail) = (stall.reason(), stall.detail());
            if reason != Reason::Gap || !self.l1.distrust(Suspect::Logs, &detail) {
                break;
            }
            warn!(code = reason.code(), detail, "asking another L1 endpoint");
            self.search.forget();
            self.ranges.forget();
            end = self.read_range_once(view, settlements, round).await;
        }
        if !matches!(end, Ok(PollEnd::Behind)) {
            // What a later poll needs is read then: nobody knows when that is.
            self.ranges.forget();
        }
        let end = end?;
        if end == PollEnd::CaughtUp && view.stale {
            return Err(Cause::L1Stale.into());
        }
        Ok(end)
    }

    async fn read_range_once(
        &mut self,
        view: &L1View,
        settlements: &Settlements,
        round: &mut Round<'_>,
    ) -> Decided<PollEnd> {
        let (start, width) = (self.start, self.fetch_range);
        let Some(range) = cursor::next_range(round.ledger.cursor().as_ref(), start, view.confirmed, width) else {
            return Ok(PollEnd::CaughtUp);
        };
        let known = self.known_blocks(round.ledger, &range).await?;
        let reading = match self.ranges.take(range, &known).await {
            Some(reading) => *reading,
            None => l1_range::read(self.l1.as_ref(), range, &known, self.reorg_window).await?,
        };
        round.blocks.clone_from(&reading.blocks);
        if let Some(end) = self.process(&reading, view, settlements, round).await? {
            return Ok(end);
        }
        if reading.end.number < view.confirmed {
            return Ok(PollEnd::Behind);
        }
        Ok(PollEnd::CaughtUp)
    }

    /// What is recorded of the blocks of `range` and of the one below it: the cursor's own block, and, if the cursor
    /// was sent back, the blocks above it.
    async fn known_blocks(&self, ledger: &Ledger, range: &Range) -> Result<Vec<L1Ref>, FlowError> {
        let mut known = self.rows.l1_blocks().await?;
        known.retain(|block| block.number >= range.from && block.number <= range.to);
        known.extend(ledger.cursor().map(|c| c.block));
        Ok(known)
    }

    /// Deals with the events in order. Gives the poll's end if the poll ends with them.
    async fn process(
        &mut self,
        reading: &Reading,
        view: &L1View,
        settlements: &Settlements,
        round: &mut Round<'_>,
    ) -> Decided<Option<PollEnd>> {
        self.last_commit_at = reading.last_commit_at.or(self.last_commit_at);
        let begun = settlement::place_of(round.ledger.cursor().as_ref());
        settlements.left_out(round.ledger, &reading.events, begun, reading.end.number).await?;
        let hashes = self.standing_hashes(round.ledger, &reading.events).await;
        let mut upcoming = Upcoming::default();
        upcoming.add(contents_of(reading, &hashes, self.to_batch), &reading.headers);
        // A batch at which every poll stalls is no reason to read more each time.
        let may_stall = |event: &L1Event| match event.kind {
            L1EventKind::Commit { .. } | L1EventKind::Revert { .. } => true,
            L1EventKind::Message(_) | L1EventKind::Finalize { .. } => false,
        };
        let mut goes_on =
            !reading.events.iter().any(|e| may_stall(e) && cursor::is_ahead(round.ledger.cursor().as_ref(), e));
        let mut messages: Vec<(L1Ref, L1Message)> = Vec::new();
        let mut proofs: Vec<L1Event> = Vec::new();
        for (at, event) in reading.events.iter().enumerate() {
            if !cursor::is_ahead(round.ledger.cursor().as_ref(), event) {
                continue;
            }
            self.continuity.reads(event.block, event.log_index);
            self.look_further(&mut upcoming, event.pos(), reading, view.confirmed, goes_on);
            match &event.kind {
                L1EventKind::Message(message) => messages.push((event.block, message.clone())),
                L1EventKind::Finalize { .. } => proofs.push(event.clone()),
                L1EventKind::Revert { index, .. } => {
                    let commits =
                        reading.events.iter().filter(|e| e.block == event.block).filter_map(L1Event::as_commit);
                    let again = commits.map(|commit| commit.index).any(|committed| committed == *index);
                    store_messages(round.ledger, &mut messages).await?;
                    store_proofs(round.ledger, &mut proofs).await?;
                    self.on_revert(event, *index, again, settlements, round).await?;
                    round.node.sync_tags(round.ledger).await?;
                    goes_on = true;
                }
                L1EventKind::Commit { .. } => {
                    let Some(commit) = event.as_commit() else { continue };
                    store_messages(round.ledger, &mut messages).await?;
                    store_proofs(round.ledger, &mut proofs).await?;
                    let reverted = match cursor::reverted_later(&reading.events, at, commit.index) {
                        Some(block) => Some(block),
                        None => self.reverted_elsewhere(&commit, &hashes, view, settlements, round).await?,
                    };
                    if let Some(end) = self.on_commit(&commit, reverted, &upcoming, round).await? {
                        return Ok(Some(end));
                    }
                    goes_on = true;
                }
            }
        }
        self.look_further(&mut upcoming, LogPos::end_of(reading.end.number), reading, view.confirmed, goes_on);
        let hidden = self.continuity.hidden_logs(reading.end.number, view, &mut self.search, round.ledger).await;
        if matches!(hidden, Ok(Some(GoneBack)) | Err(Stop::Stands(_))) {
            store_messages(round.ledger, &mut messages).await?;
        }
        if let Some(GoneBack) = hidden? {
            return Ok(Some(PollEnd::Behind));
        }
        let end = Cursor { block: reading.end, log_index: None };
        // Twice the window: after a reorg inside it, the window below the ancestor is still there.
        let l1_floor = Some(reading.end.number.minus(self.reorg_window.saturating_mul(2)));
        let step = Step {
            messages,
            settlements: proofs,
            settled_to: Some(reading.end),
            l1_blocks: reading.blocks.clone(),
            l1_floor,
            cursor: Some(end),
            ..Step::default()
        };
        round.ledger.commit(&step).await?;
        Ok(None)
    }

    /// Adds to `upcoming` the ranges that were read meanwhile, and begins with the next one if few batches come after
    /// `pos` and the flow `goes_on`. Not beside an endpoint that serves narrow ranges: a poll asks it for no more than one
    /// (A3).
    fn look_further(
        &mut self,
        upcoming: &mut Upcoming,
        pos: LogPos,
        reading: &Reading,
        confirmed: L1Number,
        goes_on: bool,
    ) {
        if self.read_ahead == 0 || !reading.whole {
            return;
        }
        let Self { ranges, to_batch, .. } = self;
        for next in ranges.readings().skip(upcoming.ranges().saturating_sub(1)) {
            upcoming.add(contents_of(next, &[], *to_batch), &next.headers);
        }
        let reached = upcoming.last().is_some_and(|last| to_batch.is_some_and(|to| last.index >= to));
        if goes_on && !reached && upcoming.count_after(pos) < self.read_ahead {
            self.ranges.begin(reading.end, confirmed);
        }
    }

    /// `committedBatches` of every index that the range commits to, in one request. A batch whose hash differs from its
    /// event was reverted since, perhaps far above the range. If the contract cannot be asked, the list is empty and
    /// the reverts are looked for in the logs (A8).
    async fn standing_hashes(&self, ledger: &Ledger, events: &[L1Event]) -> Vec<(BatchIndex, B256)> {
        let ahead = events.iter().filter(|e| cursor::is_ahead(ledger.cursor().as_ref(), e));
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
        match self.l1.committed_hashes(&indices, None).await {
            Ok(hashes) => indices.into_iter().zip(hashes).collect(),
            Err(error) => {
                debug!(%error, "the contract cannot be asked which batches stand; looking through the logs");
                Vec::new()
            }
        }
    }

    /// The L1 block in which L1 reverted this commit, further up than the range reaches (C4, C5); none if it stands.
    /// The flow waits for a revert that is not confirmed yet. A batch that was committed again with the same hash looks
    /// as if it stood under this commit too: if the later commit is stored, the revert in between is looked for all the
    /// same.
    async fn reverted_elsewhere(
        &mut self,
        commit: &CommitEvent,
        hashes: &[(BatchIndex, B256)],
        view: &L1View,
        settlements: &Settlements,
        round: &mut Round<'_>,
    ) -> Decided<Option<L1Number>> {
        let (place, CommitEvent { index, hash, .. }) = (commit.pos(), *commit);
        // Reverts that were read ahead of the batches, or before the node lost blocks and the cursor went back, are
        // known by place: a batch that was committed again with the same hash does not stand under this commit (M17).
        let now = hashes.iter().find(|(i, _)| *i == index).map(|(_, h)| *h);
        if let Some(revert) =
            self.known_revert(commit, now.is_none_or(|now| now == hash), settlements, round.ledger).await?
        {
            return Ok(Some(revert));
        }
        let stored = self.rows.batch(index).await?;
        let stands_later = stored.is_some_and(|r| r.pos() > place);
        let mut facts = CommitFacts { hash, now, stands_later, revert: None, then: None };
        let cause = loop {
            match standing::standing(&facts) {
                Standing::Stands => return Ok(None),
                Standing::Reverted(block) => return Ok(Some(block)),
                Standing::AskForRevert => {
                    let found = self.search.revert_after(index, place, view.confirmed).await?;
                    facts.revert = Some(found.map(|revert| revert.block.number));
                }
                Standing::AskContract => {
                    let then = self.l1.committed_hashes(&[index], Some(view.confirmed)).await.ok();
                    facts.then = Some(then.and_then(|hashes| hashes.first().copied()));
                }
                Standing::LeftOutBeforeNextCommit => break Cause::Gap(Gap::RevertBeforeRecommit),
                Standing::LeftOut => break Cause::Gap(Gap::RevertOfGone),
                Standing::RevertPending => break Cause::RevertPending,
            }
        };
        Err(Stall::at(index, cause).into())
    }

    /// The L1 block of the stored revert that takes down `commit`. If the contract holds the batch (`stands`), or could
    /// not be asked, L1 must confirm the revert: a false one would keep the batch from ever being verified.
    async fn known_revert(
        &self,
        commit: &CommitEvent,
        stands: bool,
        settlements: &Settlements,
        ledger: &mut Ledger,
    ) -> Result<Option<L1Number>, FlowError> {
        let Some(revert) = self.rows.revert_after(commit.index, commit.pos()).await? else { return Ok(None) };
        let block = revert.block.number;
        if !stands || settlements.is_confirmed(&revert).await? {
            return Ok(Some(block));
        }
        let (code, batch) = ("unconfirmed_revert", commit.index.get());
        warn!(code, entity = batch, batch, l1_block = %revert.block, "L1 does not confirm a revert that it gave; dropping it");
        settlements.forget_above(ledger, block.minus(1)).await?;
        Ok(None)
    }

    /// A RevertBatch log: batches from its index on no longer stand (C1). Until a batch is proved that is ordinary,
    /// also if it was finalized as committed: its blocks stay finalized, and safe goes down to them and no further
    /// (M3). `again` says that its block commits to the same index too.
    async fn on_revert(
        &mut self,
        event: &L1Event,
        index: BatchIndex,
        again: bool,
        settlements: &Settlements,
        round: &mut Round<'_>,
    ) -> Decided<()> {
        let cursor = Cursor { block: event.block, log_index: Some(event.log_index) };
        let l1_blocks = round.blocks_up_to(event.block);
        let mut step = Step { revert: Some(event.clone()), l1_blocks, cursor: Some(cursor), ..Step::default() };
        if settlements.was_proved(round.ledger, index, event).await? {
            return Err(Stall::at(index, Cause::RevertOfProved).into());
        }
        let stands = self.rows.batch(index).await?;
        if let Some(record) = stands.filter(|r| r.pos() < event.pos()) {
            if settlements.denies_revert(event, &record, again).await? {
                return Err(Stall::at(index, Cause::Gap(Gap::RevertDenied)).into());
            }
            let before = match record.index.get() {
                0 => None,
                _ => self.rows.batch(record.index.minus(1)).await?,
            };
            let heads = round.ledger.heads().rewind_safe(before.and_then(|b| b.last));
            step.revert_from = Some(index);
            step.safe = heads.safe();
            step.clear_safe = heads.safe().is_none();
            if step.clear_safe {
                // A tag that was held back is set first: only a safe tag on our own head is known to be ours.
                round.node.sync_tags(round.ledger).await?;
                round.node.abandon_safe(round.ledger, record.first).await?;
            }
        }
        round.ledger.commit(&step).await?;
        let (batch, l1_block) = (index.get(), event.block.number.get());
        warn!(code = "reverted", entity = batch, batch, l1_block, "L1 reverted a batch");
        self.reverted = self.reverted.saturating_add(1);
        Ok(())
    }

    async fn on_commit(
        &mut self,
        commit: &CommitEvent,
        reverted: Option<L1Number>,
        upcoming: &Upcoming,
        round: &mut Round<'_>,
    ) -> Decided<Option<PollEnd>> {
        let index = commit.index;
        if index.get() == 0 {
            let record = self.genesis_record(commit).await?;
            self.store_batch(record, None, round).await?;
            return Ok(None);
        }
        if reverted.is_some() {
            let record = bare_record(commit, Outcome::Reverted);
            info!(batch = index.get(), "reverted further on; not verified");
            self.store_batch(record, reverted, round).await?;
            return Ok(None);
        }
        let before = match self.continuity.batch_before(commit, &mut self.search, round.ledger).await? {
            Before::Batch(before) => before,
            Before::GoneBack => return Ok(Some(PollEnd::Behind)),
        };
        // Only now: a hole below it may be the last batch that is asked for (P3).
        if self.to_batch.is_some_and(|to| index > to) {
            return Ok(Some(PollEnd::Reached));
        }
        self.kept_verdict(commit, round).await?;
        let (end, blocks) = {
            let Round { ledger, node, pause, now, verdict, .. } = round;
            let hands = Hands { ledger, node, pause, now: *now };
            let mut turn = Turn { hands, search: &mut self.search, verdict: *verdict, blocks: 0, upcoming };
            (self.batches.judge(commit, before.as_deref(), &mut turn).await, turn.blocks)
        };
        match end {
            Ok(BatchEnd::Verified(record)) => {
                let reached = self.to_batch.is_some_and(|to| index >= to);
                self.store_batch(*record, None, round).await?;
                Ok(reached.then_some(PollEnd::Reached))
            }
            Err(Stop::Stands(stall)) => {
                if !stall.reason().is_halt() && stall.reason() != Reason::WouldSelfHeal {
                    let report = BatchReport { index, case: Case::Wait, blocks, rewritten: 0, encoder_drift: false };
                    round.reports.push(report);
                }
                self.keep_verdict(commit, &stall, blocks, round).await?;
                Err(stall.into())
            }
            Err(failed @ Stop::Failed(_)) => Err(failed),
            Ok(BatchEnd::WalkBack(found)) => {
                let log = (found.block, found.log_index);
                let GoneBack = self.continuity.go_back_to(index.minus(1), log, LeftOut::Commit, round.ledger).await?;
                Ok(Some(PollEnd::Behind))
            }
        }
    }

    /// Remembers a verdict that need not be given again at the next poll (C5).
    async fn keep_verdict(
        &mut self,
        commit: &CommitEvent,
        stall: &Stall,
        blocks: u64,
        round: &Round<'_>,
    ) -> Result<(), FlowError> {
        self.kept = None;
        let Some(basis) = recheck::basis(stall.reason()) else { return Ok(()) };
        let safe = round.ledger.heads().safe();
        let end = match (basis, safe) {
            (Basis::L1, _) => None,
            (Basis::LocalChain, Some(safe)) => Some(safe.number.plus(blocks)),
            (Basis::LocalChain, None) => Some(round.node.height()),
        };
        let of = (commit.hash, commit.block, commit.log_index);
        let inputs = VerdictInputs { commit: of, safe, local: self.local_at(end, round.node).await? };
        self.kept =
            Some(Kept { inputs, end, at: round.now, stall: stall.clone(), pending: self.batches.writer.pending() });
        Ok(())
    }

    /// Ends on the kept verdict on this commit, if it still holds.
    async fn kept_verdict(&mut self, commit: &CommitEvent, round: &Round<'_>) -> Decided<()> {
        let Some(kept) = self.kept.take_if(|kept| kept.inputs.are_of(commit)) else { return Ok(()) };
        let local = self.local_at(kept.end, round.node).await?;
        let inputs = VerdictInputs { safe: round.ledger.heads().safe(), local, ..kept.inputs };
        if !recheck::holds(&kept.inputs, &inputs, round.now.saturating_sub(kept.at)) {
            return Ok(());
        }
        let stall = kept.stall.clone();
        self.batches.writer.still_pending(kept.pending);
        self.kept = Some(kept);
        Err(stall.into())
    }

    /// The local block at `end`, or the head if that is lower.
    async fn local_at(&self, end: Option<L2Number>, node: &Node) -> Result<Option<L2Ref>, FlowError> {
        match end {
            None => Ok(None),
            Some(end) if end >= node.height() => Ok(Some(node.head())),
            Some(end) => Ok(self.l2.header(end).await?.map(|h| h.l2_ref())),
        }
    }

    /// Stores a batch's outcome with heads and cursor in one transaction, then sets the node's tags (P6).
    async fn store_batch(
        &mut self,
        record: BatchRecord,
        reverted_by: Option<L1Number>,
        round: &mut Round<'_>,
    ) -> Result<(), FlowError> {
        let cursor = Cursor { block: record.l1, log_index: Some(record.log_index) };
        let mut heads = round.ledger.heads();
        if let (Outcome::Verified | Outcome::Genesis, Some(last)) = (record.outcome, record.last) {
            self.passes_finalized(round.ledger, record.index, last).await?;
            heads = match round.ledger.heads().advance_safe(last) {
                Move::To(heads) => heads,
                Move::Unchanged | Move::Backwards => round.ledger.heads(),
                Move::BelowFinalized | Move::AboveSafe => {
                    let cause = Cause::BelowFinalized(Final::BatchEnd(last));
                    let stall = Stall::at(record.index, cause);
                    return Err(FlowError::Stall(stall));
                }
            };
        }
        let step = Step {
            l1_blocks: round.blocks_up_to(record.l1),
            safe: heads.safe(),
            cursor: Some(cursor),
            batch: Some(record.clone()),
            reverted_by,
            ..Step::default()
        };
        round.ledger.commit(&step).await?;
        if record.outcome == Outcome::Reverted {
            return Ok(());
        }
        self.note_verified(&record, round);
        round.node.tag_verified(round.ledger, record.rewritten > 0).await
    }

    /// If safe moves from below finalized to above it, the finalized block itself must still be on the local chain:
    /// after a revert L1 may have committed to other blocks in its place, with other ends (M3).
    async fn passes_finalized(&self, ledger: &Ledger, index: BatchIndex, last: L2Ref) -> Result<(), FlowError> {
        let Some(finalized) = ledger.heads().finalized().filter(|f| f.number < last.number) else { return Ok(()) };
        if ledger.heads().safe().is_some_and(|safe| safe.number >= finalized.number) {
            return Ok(());
        }
        let Some(there) = self.l2.header(finalized.number).await? else {
            return Err(FlowError::local_changed(format!("block {} is gone", finalized.number)));
        };
        if there.l2_ref() == finalized {
            return Ok(());
        }
        let cause = Cause::BelowFinalized(Final::OtherBlock { there: there.l2_ref(), finalized });
        Err(FlowError::Stall(Stall::at(index, cause)))
    }

    fn note_verified(&mut self, record: &BatchRecord, round: &mut Round<'_>) {
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
        self.verified = self.verified.saturating_add(1);
        self.last_batch = Some(record.index);
        round.reports.push(BatchReport {
            index: record.index,
            case,
            blocks,
            rewritten: record.rewritten,
            encoder_drift: record.encoder_drift,
        });
    }

    /// The genesis import commits to index 0 without a batch: its one block is the chain's first (C10).
    async fn genesis_record(&self, commit: &CommitEvent) -> Result<BatchRecord, FlowError> {
        // A node without the block counts as one that could not be asked: its absence, taken as a fact, would stay
        // stored (P1).
        let missing = || PortError::new(Target::L2, PortErrorKind::NotFound, "the node has no genesis block");
        let header = self.l2.header(0.into()).await?.ok_or_else(missing)?;
        let mut record = bare_record(commit, Outcome::Genesis);
        record.first = Some(0.into());
        record.last = Some(header.l2_ref());
        record.post_state_root = header.state_root;
        Ok(record)
    }
}

/// The commits of a range that are to be verified, as far as that is known, and the hashes of its L1 messages.
fn contents_of(
    reading: &Reading,
    hashes: &[(BatchIndex, B256)],
    to_batch: Option<BatchIndex>,
) -> (Vec<CommitEvent>, Vec<(QueueIndex, B256)>) {
    let events = reading.events.as_slice();
    let commits = events.iter().enumerate().filter_map(|(at, event)| {
        let commit = event.as_commit().filter(|commit| commit.index.get() > 0)?;
        let wanted = to_batch.is_none_or(|to| commit.index <= to);
        let stands = hashes.iter().all(|(index, hash)| *index != commit.index || *hash == commit.hash);
        (wanted && stands && cursor::reverted_later(events, at, commit.index).is_none()).then_some(commit)
    });
    let messages = events.iter().filter_map(|event| match &event.kind {
        L1EventKind::Message(message) => Some((message.index, message.hash)),
        L1EventKind::Commit { .. } | L1EventKind::Revert { .. } | L1EventKind::Finalize { .. } => None,
    });
    (commits.collect(), messages.collect())
}

async fn store_messages(ledger: &mut Ledger, messages: &mut Vec<(L1Ref, L1Message)>) -> Result<(), FlowError> {
    if messages.is_empty() {
        return Ok(());
    }
    let step = Step { messages: std::mem::take(messages), ..Step::default() };
    ledger.commit(&step).await?;
    Ok(())
}

/// FinalizeBatch logs are kept before the cursor passes them.
async fn store_proofs(ledger: &mut Ledger, proofs: &mut Vec<L1Event>) -> Result<(), FlowError> {
    if proofs.is_empty() {
        return Ok(());
    }
    Ok(ledger.commit(&Step { settlements: std::mem::take(proofs), ..Step::default() }).await?)
}

pub(super) fn bare_record(commit: &CommitEvent, outcome: Outcome) -> BatchRecord {
    BatchRecord {
        index: commit.index,
        hash: commit.hash,
        l1: commit.block,
        log_index: commit.log_index,
        tx_hash: commit.tx_hash,
        outcome,
        case: None,
        first: None,
        last: None,
        post_state_root: B256::zero(),
        withdrawal_root: B256::zero(),
        total_l1_popped: 0,
        rewritten: 0,
        encoder_drift: false,
        blobs: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::testing::{World, cause_of};

    /// One range, up to L1 block `confirmed`.
    async fn read(world: &mut World, events: &mut Events, confirmed: u64) -> (PollEnd, Vec<BatchReport>) {
        let (end, reports) = read_at(world, events, confirmed, 60).await;
        (PollEnd::of(end).unwrap(), reports)
    }

    /// The same in a poll at `now`, in seconds.
    async fn read_at(
        world: &mut World,
        events: &mut Events,
        confirmed: u64,
        now: u64,
    ) -> (Decided<PollEnd>, Vec<BatchReport>) {
        let view = L1View { confirmed: confirmed.into(), stale: false, reorged: false };
        let settlements = Settlements::new(world.ports.l1.clone(), world.ports.progress.clone(), 0.into(), 500);
        let (mut node, mut pause) = (world.poll_begins().await, SharedPause::default());
        let mut round = Round {
            ledger: &mut world.ledger,
            node: &mut node,
            pause: &mut pause,
            now: Duration::from_secs(now),
            verdict: HeadTrend::Alive,
            reports: Vec::new(),
            blocks: Vec::new(),
        };
        events.search.begin();
        let end = events.read_range(&view, &settlements, &mut round).await;
        let reports = round.reports;
        // As a poll ends.
        node.sync_tags(&world.ledger).await.unwrap();
        (end, reports)
    }

    async fn recorded() -> (World, Events) {
        let world = World::recorded().await;
        let events = Events::new(&world.ports, world.writer(), &world.settings, None);
        (world, events)
    }

    #[tokio::test]
    async fn p3_every_commit_of_a_range_ends_in_one_stored_outcome() {
        let (mut world, mut events) = recorded().await;
        let (end, reports) = read(&mut world, &mut events, 30).await;
        assert_eq!(end, PollEnd::CaughtUp);
        let cases: Vec<_> = reports.iter().map(|report| (report.index.get(), report.case)).collect();
        assert_eq!(cases, (1..=6).map(|index| (index, Case::Consistent)).collect::<Vec<_>>());
        for index in 0..=6_u64 {
            assert!(world.ports.progress.batch(index.into()).await.unwrap().is_some(), "batch {index}");
        }
        assert_eq!(world.ledger.heads().safe(), Some(world.l2(72)));
        assert_eq!(world.ledger.cursor(), Some(Cursor { block: world.l1.now().at(30), log_index: None }));
        assert_eq!(world.shown().await.safe, Some(world.l2(72)), "the node was told");
    }

    #[tokio::test]
    async fn a_batch_that_is_waited_for_holds_the_cursor_before_it() {
        let (mut world, mut events) = recorded().await;
        world.node.node().truncate(65);
        let (end, reports) = read(&mut world, &mut events, 30).await;
        let PollEnd::Stalled(stall) = end else { panic!("{end:?}") };
        let cause = Cause::BlocksMissing { head: 65.into(), last: 72.into() };
        assert_eq!(stall, Stall::at(6.into(), cause));
        assert_eq!(reports.last().map(|report| (report.index.get(), report.case)), Some((6, Case::Wait)));
        let fifth = world.commit(5);
        assert_eq!(world.ledger.cursor(), Some(Cursor { block: fifth.block, log_index: Some(fifth.log_index) }));
        assert_eq!(world.ledger.heads().safe(), Some(world.l2(60)));
    }

    #[tokio::test]
    async fn c1_a_revert_takes_safe_back_below_its_batch() {
        let (mut world, mut events) = recorded().await;
        assert_eq!(read(&mut world, &mut events, 16).await.0, PollEnd::CaughtUp);
        assert_eq!(world.ledger.heads().safe(), Some(world.l2(72)));
        {
            let (mut l1, hash) = (world.l1.now(), B256::repeat_byte(6));
            l1.log(20, L1EventKind::Revert { index: 6.into(), hash });
            l1.committed.remove(&6.into());
            l1.last_committed = 5.into();
        }
        assert_eq!(read(&mut world, &mut events, 30).await.0, PollEnd::CaughtUp);
        assert_eq!(world.ledger.heads().safe(), Some(world.l2(60)));
        assert_eq!(world.ports.progress.batch(6.into()).await.unwrap(), None);
        assert_eq!((events.shown().verified, events.shown().reverted), (6, 1));
    }

    #[tokio::test]
    async fn c4_a_batch_that_is_reverted_further_on_is_stored_as_such_and_not_verified() {
        let (mut world, mut events) = recorded().await;
        let hash = world.commit(6).hash;
        world.l1.now().log(20, L1EventKind::Revert { index: 6.into(), hash });
        world.l1.now().last_committed = 5.into();
        assert_eq!(read(&mut world, &mut events, 30).await.0, PollEnd::CaughtUp);
        assert_eq!(world.ledger.heads().safe(), Some(world.l2(60)));
        assert_eq!(events.shown().verified, 5);
    }

    #[tokio::test]
    async fn c5_a_verdict_is_kept_until_what_it_follows_from_changes_or_it_is_old() {
        let (mut world, _) = recorded().await;
        world.ports.engine = None;
        world.fork_l2(70);
        let mut events = Events::new(&world.ports, world.writer(), &world.settings, None);
        let would = Some(Cause::WouldWrite { case: Case::SelfHeal, blocks: 3, first: 70.into() });
        assert_eq!(cause_of(read_at(&mut world, &mut events, 30, 60).await.0), would);
        // Without its transaction the batch cannot be judged: it is not judged again.
        let transactions = std::mem::take(&mut world.l1.now().transactions);
        events.batches.writer.poll_begins();
        assert_eq!(cause_of(read_at(&mut world, &mut events, 30, 659).await.0), would);
        assert!(events.batches.writer.pending().is_some(), "the write is still told of");
        let (old, _) = read_at(&mut world, &mut events, 30, 660).await;
        assert!(matches!(old, Err(Stop::Failed(_))), "ten minutes are over");
        world.l1.now().transactions = transactions;
        assert_eq!(cause_of(read_at(&mut world, &mut events, 30, 661).await.0), would);
        // Another writer puts the local chain right.
        world.node.node().truncate(69);
        for number in 70..=76 {
            world.node.node().import(world.recorded.at(number).unwrap());
        }
        assert_eq!(read_at(&mut world, &mut events, 30, 662).await.0.unwrap(), PollEnd::CaughtUp);
        assert_eq!(world.ledger.heads().safe(), Some(world.l2(72)));
    }
}
