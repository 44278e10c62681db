//! An audit: a range of batches is verified once, by the very flow of a worker that has no engine.
//!
//! A range begins after a batch that it does not verify, taken on L1's word: the contract's hash of it, the header that
//! hashes to it (which names its last block and its state root), and the local block at that height. The first batch of
//! the range must continue that header, and the local block must have the state root that it begins on. A batch that
//! the local chain contradicts is noted, and the audit begins again right after it in the same way. So everything that
//! is wrong is listed, and nothing of such a batch counts as verified.
//!
//! Not decided here: whether a batch is verified (the flow), what a stall means (`decide/audit.rs`).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::codec::calldata;
use crate::codec::header::BatchHeader;
use crate::decide::audit::{
    self, AuditEnd, AuditRange, AuditReport, Base, BatchEdge, Counts, DIVERGENCES_MAX, FORMAT, Next, PATIENCE,
    StallFacts,
};
use crate::decide::dispatch::is_present;
use crate::decide::stall::{Cause, Gap, Reason, Stall};
use crate::error::Severity;
use crate::flow::commit::{self, Contract};
use crate::flow::events::bare_record;
use crate::flow::l1_search::L1Search;
use crate::flow::ledger::Ledger;
use crate::flow::worker::Worker;
use crate::flow::{Decided, FlowError, PollEnd, Ports, Settings, Stop, l1_view};
use crate::ports::{AuditLog, PortResult, Step};
use crate::types::{
    B256, BatchIndex, BatchRecord, Case, CommitEvent, Cursor, Identity, L1Number, L2Number, L2Ref, Outcome, keccak,
};

/// Wait between two tries after a fault that may pass.
const RETRY: Duration = Duration::from_secs(2);

/// The most requests for one search of a commit through the logs of L1 are bounded by L1's length; it is asked for in
/// turns of this many polls' worth before a line says that it goes on.
const SEARCH_TURNS: u32 = 3;

/// What an audit shows of its progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditStep {
    /// This batch of so many blocks was verified.
    Verified(BatchIndex, u64),
    /// The local chain contradicts this batch.
    Diverged(BatchIndex),
    /// A poll ended.
    Polled,
}

/// An audit of a range.
pub struct Audit {
    ports: Ports,
    settings: Settings,
    log: Arc<dyn AuditLog>,
    identity: Identity,
    range: AuditRange,
}

/// How one stretch without a divergence ended.
enum Stretch {
    Ended(AuditEnd),
    Diverged(Stall),
}

impl Audit {
    /// Of `range`. The database of `ports` and `log` must be one. There is no engine, whatever `ports` holds: nothing
    /// is written or tagged.
    pub fn new(
        ports: Ports,
        settings: Settings,
        log: Arc<dyn AuditLog>,
        identity: Identity,
        range: AuditRange,
    ) -> Self {
        let from = range.from.max(BatchIndex::new(1));
        Self {
            ports: Ports { engine: None, ..ports },
            settings: Settings { to_batch: range.to, assume: None, keep_batches: u64::MAX, ..settings },
            log,
            identity,
            range: AuditRange { from, ..range },
        }
    }

    /// The last batch that was judged; none before the first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn reached(&self) -> PortResult<Option<BatchIndex>> {
        let tip = self.ports.progress.load().await?.tip.map(|tip| tip.index);
        Ok(tip.filter(|tip| *tip >= self.range.from))
    }

    /// Audits the range, from where an earlier run stopped. It may be dropped at any point.
    ///
    /// # Errors
    /// When the database fails, or L1 cannot be asked for the batch before the range.
    pub async fn run(&self, seen: &mut (dyn FnMut(AuditStep) + Send)) -> Result<AuditEnd, FlowError> {
        let Self { ports, log, range, .. } = self;
        log.claim_range(range, &audit::settled_by(self.settings.confirmations)).await?;
        let before = range.from.minus(1);
        if before.get() > 0 && ports.progress.load().await?.cursor.is_none() {
            match self.taken_on_l1s_word(before, None).await? {
                Ok(Some(record)) => {
                    info!(batch = before.get(), l1_block = %record.l1, "beginning after this batch, on L1's word");
                    self.begin_after(record).await?;
                }
                Ok(None) => return Ok(AuditEnd::NotCommitted(before)),
                Err(stall) => return Ok(AuditEnd::Stopped(stall)),
            }
        }
        loop {
            let stall = match self.stretch(seen).await? {
                Stretch::Ended(end) => return Ok(end),
                Stretch::Diverged(stall) => stall,
            };
            let stored = ports.progress.load().await?;
            let (tip, cursor) = (stored.tip, stored.cursor);
            let next = tip.as_ref().map(|tip| tip.index.plus(1));
            let Some(batch) = stall.batch.filter(|batch| Some(*batch) == next) else {
                return Ok(AuditEnd::Stopped(stall));
            };
            if log.divergences().await?.len() >= DIVERGENCES_MAX {
                warn!(code = "too_many_divergences", "more divergent batches than are listed; the audit ends here");
                return Ok(AuditEnd::Stopped(stall));
            }
            let below = tip.as_ref().and_then(|tip| tip.last).map(|last| last.number);
            // The commit that was judged lies right after the cursor. Below it there may be one with the same hash that was
            // reverted: going back to that would never end.
            let record = self.taken_on_l1s_word(batch, cursor.as_ref().map(|cursor| cursor.block.number)).await?;
            let after_cursor = |record: &BatchRecord| cursor.as_ref().is_none_or(|cursor| record.pos() > cursor.pos());
            let Some(record) = record.ok().flatten().filter(after_cursor) else {
                return Ok(AuditEnd::Stopped(stall));
            };
            let (code, entity) = (stall.reason().code(), batch.get());
            warn!(code, entity, batch = entity, detail = stall.detail(), "the local chain contradicts this batch");
            log.put_divergence(record.hash, &audit::divergence(batch, &stall, below)).await?;
            self.begin_after(record).await?;
            seen(AuditStep::Diverged(batch));
        }
    }

    /// Makes `record` the batch that the next one must continue.
    async fn begin_after(&self, record: BatchRecord) -> Result<(), FlowError> {
        let (mut ledger, _) = Ledger::load(self.ports.progress.clone()).await?;
        let step = Step {
            l1_blocks: vec![record.l1],
            safe: record.last,
            cursor: Some(Cursor { block: record.l1, log_index: Some(record.log_index) }),
            batch: Some(record),
            ..Step::default()
        };
        Ok(ledger.commit(&step).await?)
    }

    /// Polls a worker until the range ends, or something stands in the way.
    async fn stretch(&self, seen: &mut (dyn FnMut(AuditStep) + Send)) -> Result<Stretch, FlowError> {
        let mut settings = self.settings.clone();
        let before = self.ports.progress.batch(self.range.from.minus(1)).await?;
        if let Some(before) = before.filter(|before| before.index.get() > 0) {
            settings.start = before.l1.number;
        }
        let mut worker = Worker::start(self.ports.clone(), settings).await?;
        let began = Instant::now();
        let (mut faults, mut last, mut waiting) = (0_u32, None, None);
        loop {
            let outcome = worker.poll(began.elapsed()).await;
            seen(AuditStep::Polled);
            let stall = match outcome {
                Ok(report) => {
                    for batch in report.batches.iter().filter(|b| b.case != Case::Wait) {
                        (faults, waiting) = (0, None);
                        seen(AuditStep::Verified(batch.index, batch.blocks));
                    }
                    match report.end {
                        PollEnd::Behind => {
                            (faults, last, waiting) = (0, None, None);
                            continue;
                        }
                        PollEnd::CaughtUp | PollEnd::Reached => return Ok(Stretch::Ended(self.ended().await?)),
                        PollEnd::Stalled(stall) => stall,
                    }
                }
                Err(error) => error.stall(),
            };
            let waits = stall.reason() == Reason::WaitingForBlocks;
            let since = waits.then(|| waiting.unwrap_or_else(Instant::now));
            waiting = since;
            let watched = since.is_some_and(|since| since.elapsed() > self.watch_for());
            let again = last.as_ref() == Some(&stall);
            match audit::after_stall(&StallFacts { stall: &stall, again, faults, watched }) {
                Next::Now => {}
                Next::Later => {
                    faults = faults.saturating_add(1);
                    tokio::time::sleep(self.retry()).await;
                }
                Next::Watch => tokio::time::sleep(self.retry()).await,
                Next::Diverged => return Ok(Stretch::Diverged(stall)),
                Next::Stop => return Ok(Stretch::Ended(AuditEnd::Stopped(stall))),
            }
            last = Some(stall);
        }
    }

    fn retry(&self) -> Duration {
        self.settings.poll_interval.min(RETRY)
    }

    /// Time in which a head that stands still is seen to have stopped.
    fn watch_for(&self) -> Duration {
        self.settings.observation_window.saturating_add(self.retry().saturating_mul(2))
    }

    /// All of L1 was read, or the last batch was reached.
    async fn ended(&self) -> PortResult<AuditEnd> {
        let tip = self.ports.progress.load().await?.tip.map(|tip| tip.index);
        let reached = tip.filter(|tip| *tip >= self.range.from);
        let before = self.range.from.minus(1);
        if reached.is_some() && self.ports.progress.batch(before).await?.is_none() {
            // The history does not begin at its beginning: L1 was not read from there on.
            return Ok(AuditEnd::Stopped(Stall::at(before, Cause::Gap(Gap::Commit(before)))));
        }
        Ok(match (self.range.to, reached) {
            (None, Some(_)) => AuditEnd::Done,
            (Some(to), Some(reached)) if reached >= to => AuditEnd::Done,
            (_, reached) => AuditEnd::NotCommitted(reached.map_or(self.range.from, |reached| reached.plus(1))),
        })
    }

    /// What L1 says of batch `index`, after as many tries as passing faults are worth. None if L1 does not hold it.
    /// `near` is a block from which on, and not far, it was committed.
    ///
    /// # Errors
    /// When L1 or the node cannot be asked.
    async fn taken_on_l1s_word(
        &self,
        index: BatchIndex,
        near: Option<L1Number>,
    ) -> Result<Result<Option<BatchRecord>, Stall>, FlowError> {
        let mut faults = 0_u32;
        loop {
            match self.on_l1s_word(index, near).await {
                Ok(record) => return Ok(Ok(record)),
                Err(Stop::Stands(stall)) => return Ok(Err(stall)),
                Err(Stop::Failed(error)) => {
                    faults = faults.saturating_add(1);
                    if error.severity() == Severity::Halt || faults >= PATIENCE {
                        return Err(error);
                    }
                }
            }
            tokio::time::sleep(self.retry()).await;
        }
    }

    async fn on_l1s_word(&self, index: BatchIndex, near: Option<L1Number>) -> Decided<Option<BatchRecord>> {
        let l1 = self.ports.l1.as_ref();
        let (_, confirmed) = l1_view::newest_blocks(l1, self.settings.confirmations).await?;
        let Some(confirmed) = confirmed else { return Err(Cause::NoSettledL1Block.into()) };
        let Some(hash) = self.standing_hash(index, confirmed).await? else { return Ok(None) };
        let low = near.unwrap_or(self.settings.origin).min(confirmed);
        let commit = self.find_commit((index, hash), (low, confirmed), near.is_some()).await?;
        let Some(commit) = commit else {
            return Err(Stall::at(index, Cause::Gap(Gap::Commit(index))).into());
        };
        let header = self.header_of(&commit, confirmed).await?;
        let (node, local) = self.ports.l2.snapshot_and(header.last).await?;
        let local = local.filter(|_| is_present(header.last, node.head.number)).map(|local| local.l2_ref());
        let Some(local) = local else {
            let cause = Cause::BlocksMissing { head: node.head.number, last: header.last };
            return Err(Stall::at(index, cause).into());
        };
        Ok(Some(header.record(&commit, local)))
    }

    /// `committedBatches(index)` at block `at`; the newest one if no endpoint keeps that state. None if L1 does not
    /// hold the batch.
    async fn standing_hash(&self, index: BatchIndex, at: L1Number) -> Result<Option<B256>, FlowError> {
        let l1 = self.ports.l1.as_ref();
        let hashes = match l1.committed_hashes(&[index], Some(at)).await {
            Err(error) if error.is_transient() => return Err(error.into()),
            Err(_) => l1.committed_hashes(&[index], None).await?,
            Ok(hashes) => hashes,
        };
        Ok(hashes.first().copied().filter(|hash| !hash.is_zero()))
    }

    /// The commit with `hash`: right above `low` if it is `near`, else by the contract's old states, else through the
    /// logs, from the newest ones down.
    async fn find_commit(
        &self,
        batch: (BatchIndex, B256),
        (low, high): (L1Number, L1Number),
        near: bool,
    ) -> Result<Option<CommitEvent>, FlowError> {
        let mut search = L1Search::new(&self.ports, &self.settings);
        search.confirmed_is(high);
        let width = self.settings.fetch_range.max(1).saturating_sub(1);
        let nearby = (low, low.plus(width).min(high));
        if near && let Some(found) = search.commit_within(batch, nearby).await? {
            return Ok(Some(found));
        }
        if let Some(found) = search.commit_by_state(batch, (low, high)).await? {
            return Ok(Some(found));
        }
        let mut turns = 0_u32;
        loop {
            search.begin();
            match search.standing_commit(batch.0).await {
                Err(FlowError::Stall(Stall { cause: cause @ Cause::Searching(_), .. })) => {
                    turns = turns.saturating_add(1);
                    if turns.is_multiple_of(SEARCH_TURNS) {
                        info!(batch = batch.0.get(), "still looking for its commit: {cause}");
                    }
                }
                found => return Ok(found?.filter(|commit| commit.hash == batch.1)),
            }
        }
    }

    /// The header of the batch of `commit`, bound by its hash: from its own calldata, else from that of the batch
    /// above it, which must carry the same header.
    async fn header_of(&self, commit: &CommitEvent, confirmed: L1Number) -> Decided<BoundHeader> {
        let (l1, settings) = (self.ports.l1.as_ref(), &self.settings);
        let mut contract = Contract::new(l1, settings.origin);
        let stands = match commit::bind(l1, settings.rollup, commit, &mut contract).await {
            Ok(bound) => {
                let outline = bound.outline;
                return Ok(BoundHeader { first: outline.first, last: outline.last, header: outline.header });
            }
            Err(Stop::Stands(stall)) => stall,
            Err(failed) => return Err(failed),
        };
        match self.header_above(commit, confirmed).await? {
            Some(header) => Ok(header),
            None => Err(stands.into()),
        }
    }

    async fn header_above(&self, commit: &CommitEvent, confirmed: L1Number) -> Result<Option<BoundHeader>, FlowError> {
        let index = commit.index.plus(1);
        let Some(hash) = self.standing_hash(index, confirmed).await? else { return Ok(None) };
        let range = (commit.block.number, confirmed);
        let Some(above) = self.find_commit((index, hash), range, true).await? else { return Ok(None) };
        let l1 = self.ports.l1.as_ref();
        let transaction = l1.transaction(above.block, above.tx_index).await?.filter(|tx| tx.hash == above.tx_hash);
        let Some(transaction) = transaction else {
            return Err(FlowError::l1_changed(format!("transaction {:?} is no longer in its block", above.tx_hash)));
        };
        let mut inputs = vec![transaction.input];
        inputs.extend(l1.rollup_calls(transaction.hash).await?.into_iter().flatten().map(|call| call.input));
        let fits = |input: bytes::Bytes| {
            let bytes = calldata::decode_commit(&input).ok()?.parent_header;
            let header = BatchHeader::decode(&bytes).ok().filter(|_| keccak(&bytes) == commit.hash)?;
            Some(BoundHeader { first: None, last: header.last_block?, header })
        };
        Ok(inputs.into_iter().find_map(fits))
    }

    /// What the audit found so far; `end` says how it ended.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn report(&self, end: &AuditEnd) -> PortResult<AuditReport> {
        let Self { ports, log, range, settings, identity, .. } = self;
        let edge = |record: BatchRecord| {
            let BatchRecord { index, hash, last, .. } = record;
            last.map(|block| BatchEdge { batch: index, hash, block })
        };
        let before = ports.progress.batch(range.from.minus(1)).await?.and_then(edge);
        let tip = ports.progress.load().await?.tip;
        let last = tip.filter(|tip| tip.index >= range.from).and_then(edge);
        let mut divergences = log.divergences().await?;
        let counts = log.counts(range.from).await?;
        let stopped = match end {
            AuditEnd::Stopped(stall) => Some(audit::stopped(stall)),
            AuditEnd::Done | AuditEnd::NotCommitted(_) | AuditEnd::Interrupted => None,
        };
        if let AuditEnd::Stopped(stall) = end
            && stall.reason().is_divergence()
        {
            let batch = stall.batch.or(last.map(|last| last.batch)).unwrap_or(range.from);
            divergences.push(audit::divergence(batch, stall, last.map(|last| last.block.number)));
        }
        let verdict = audit::verdict(end, !divergences.is_empty());
        let healing = divergences.iter().filter(|d| d.reason == Reason::WouldSelfHeal.code()).count();
        let missing = matches!(end, AuditEnd::Stopped(stall) if stall.reason() == Reason::WouldFillGap);
        Ok(AuditReport {
            format: FORMAT,
            identity: identity.clone(),
            settled: audit::settled_by(settings.confirmations),
            verdict,
            finished: *end == AuditEnd::Done,
            base: if range.from.get() <= 1 { Base::Genesis } else { Base::L1 },
            before,
            last,
            counts: Counts { would_self_heal: healing as u64, would_fill_gap: u64::from(missing), ..counts },
            divergences,
            stopped,
        })
    }
}

/// A header that is bound to its batch's hash, and the blocks that it ends on.
struct BoundHeader {
    header: BatchHeader,
    first: Option<L2Number>,
    last: L2Number,
}

impl BoundHeader {
    /// A row of its batch that nothing was verified of.
    fn record(self, commit: &CommitEvent, local: L2Ref) -> BatchRecord {
        BatchRecord {
            first: self.first,
            last: Some(local),
            post_state_root: self.header.post_state_root,
            withdrawal_root: self.header.withdrawal_root,
            total_l1_popped: self.header.total_l1_message_popped,
            ..bare_record(commit, Outcome::Verified)
        }
    }
}
