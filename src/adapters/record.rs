//! Asks the real ports everything that a replay of a range may ask, and keeps the answers.
//!
//! Decided here: which questions. Nothing is judged: a batch that does not bind is recorded like any other.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::adapters::fixture::{Facts, Fixture, L2Facts};
use crate::codec::calldata::{self, CommitCalldata};
use crate::decide::binding;
use crate::error::{PortError, Target};
use crate::ports::{BlobSource, L1Chain, L2Reader, MessageRoot, PortResult};
use crate::types::{
    Address, B256, BatchIndex, Blob, Identity, L1Event, L1EventKind, L1Header, L1Number, L1Tag, L1Transaction, L2Block,
    L2Number, QueueIndex, TracedCall,
};

/// L2 blocks asked for at once.
const BLOCKS_AT_ONCE: u64 = 200;
/// L2 blocks at most: what a hostile `lastBlockNumber` could otherwise ask for.
const MAX_BLOCKS: u64 = 2_000_000;

/// The ports that are recorded.
#[derive(Clone)]
pub struct Sources {
    /// L1.
    pub l1: Arc<dyn L1Chain>,
    /// Blobs.
    pub blobs: Arc<dyn BlobSource>,
    /// The L2 node, if its blocks are to be recorded.
    pub l2: Option<Arc<dyn L2Reader>>,
}

/// What is recorded.
#[derive(Clone, Debug)]
pub struct Request {
    /// The networks and contracts.
    pub identity: Identity,
    /// The Rollup contract.
    pub rollup: Address,
    /// The single-sequencer switch in milliseconds.
    pub switch_ms: u64,
    /// First L1 block.
    pub from: L1Number,
    /// Last L1 block.
    pub to: L1Number,
    /// Nothing below this L1 block can hold a log.
    pub origin: L1Number,
    /// L1 blocks per request for logs.
    pub fetch_range: u64,
}

/// What is told while recording: what is done, of how much.
pub type Tell<'a> = &'a (dyn Fn(&str, u64, u64) + Send + Sync);

/// One commit with every calldata that may be its own.
struct Commit {
    index: BatchIndex,
    candidates: Vec<CommitCalldata>,
}

struct Recorder<'a> {
    sources: &'a Sources,
    request: &'a Request,
    transactions: Vec<L1Transaction>,
    traces: BTreeMap<B256, Option<Vec<TracedCall>>>,
    blobs: BTreeMap<B256, Blob>,
}

/// Records a range.
///
/// # Errors
/// The first question that a port could not answer.
pub async fn record(sources: &Sources, request: &Request, tell: Tell<'_>) -> PortResult<Fixture> {
    let mut recorder =
        Recorder { sources, request, transactions: Vec::new(), traces: BTreeMap::new(), blobs: BTreeMap::new() };
    recorder.run(tell).await
}

impl Recorder<'_> {
    async fn run(&mut self, tell: Tell<'_>) -> PortResult<Fixture> {
        let (l1, request) = (self.sources.l1.clone(), self.request);
        let mut events = self.events(request.from, request.to, tell).await?;
        let mut indices: Vec<_> = events.iter().filter_map(index_of).collect();
        indices.sort_unstable();
        indices.dedup();
        let earlier_commits = self.earlier_commits(&indices).await?;
        let commits = self.commits(&events, &earlier_commits, tell).await?;
        let needed = needed_messages(&commits);
        let scanned_from = self.scan_back(&mut events, &needed).await?;
        let headers = self.headers(&events, &earlier_commits).await?;
        let asked: Vec<_> = (indices.first().map_or(0, |i| i.get().saturating_sub(1))
            ..=indices.last().map_or(0, |i| i.get().saturating_add(1)))
            .map(BatchIndex::new)
            .collect();
        let hashes = l1.committed_hashes(&asked, None).await?;
        let queue = l1.queue_hashes(&needed).await?;
        let finalized = l1.tagged(L1Tag::Finalized).await?;
        let facts = Facts {
            format: Fixture::format(),
            identity: request.identity.clone(),
            switch_ms: request.switch_ms,
            from: request.from,
            to: request.to,
            scanned_from,
            finalized: self.finalized_within(finalized, &headers),
            headers,
            events,
            earlier_commits,
            transactions: std::mem::take(&mut self.transactions),
            traces: std::mem::take(&mut self.traces),
            committed: asked.into_iter().zip(hashes).collect(),
            last_committed: l1.last_committed_index(Some(request.to)).await.ok(),
            queue_hashes: needed.into_iter().zip(queue).collect(),
        };
        let l2 = match &self.sources.l2 {
            Some(l2) => Some(self.l2(l2.as_ref(), &commits, tell).await?),
            None => None,
        };
        Ok(Fixture { facts, l2, blobs: std::mem::take(&mut self.blobs) })
    }

    /// The finalized header, or the range's last one where that was final already.
    fn finalized_within(&self, finalized: Option<L1Header>, headers: &[L1Header]) -> Option<L1Header> {
        let finalized = finalized?;
        if finalized.number <= self.request.to {
            return (finalized.number >= self.request.from).then_some(finalized);
        }
        headers.iter().find(|h| h.number == self.request.to).copied()
    }

    async fn events(&self, from: L1Number, to: L1Number, tell: Tell<'_>) -> PortResult<Vec<L1Event>> {
        let total = to.above(from).saturating_add(1);
        let mut events = Vec::new();
        let mut next = from;
        while next <= to {
            let end = next.plus(self.request.fetch_range.max(1).saturating_sub(1)).min(to);
            let logs = self.sources.l1.events(next, end).await?;
            let Some(reached) = logs.ends.last().filter(|last| last.number >= next && last.number <= end) else {
                return Err(PortError::malformed(Target::L1, format!("no logs of L1 blocks {next} to {end}")));
            };
            next = reached.number.plus(1);
            events.extend(logs.events);
            tell("L1 blocks", next.above(from), total);
        }
        Ok(events)
    }

    /// Commits of the range's indices below the range: blobs that a blobless commit reuses.
    async fn earlier_commits(&self, indices: &[BatchIndex]) -> PortResult<Vec<L1Event>> {
        let mut found = Vec::new();
        if self.request.from <= self.request.origin {
            return Ok(found);
        }
        for index in indices {
            let below = self.request.from.minus(1);
            found.extend(self.sources.l1.every_commit_of(*index, self.request.origin, below).await?);
        }
        Ok(found)
    }

    /// Transactions, traces and blobs of every commit.
    async fn commits(&mut self, events: &[L1Event], earlier: &[L1Event], tell: Tell<'_>) -> PortResult<Vec<Commit>> {
        let all: Vec<_> = earlier.iter().chain(events).filter(|e| index_of(e).is_some()).collect();
        let total = u64::try_from(all.len()).unwrap_or(u64::MAX);
        let mut commits = Vec::new();
        for (done, event) in (1_u64..).zip(all) {
            let L1EventKind::Commit { index, .. } = event.kind else { continue };
            let Some(transaction) = self.sources.l1.transaction(event.block, event.tx_index).await? else { continue };
            let candidates = self.candidates(&transaction).await?;
            if index.get() > 0 && !transaction.blob_hashes.is_empty() {
                self.fetch_blobs(event.block.number, &transaction.blob_hashes).await?;
            }
            if !self.transactions.contains(&transaction) {
                self.transactions.push(transaction);
            }
            commits.push(Commit { index, candidates });
            tell("batches", done, total);
        }
        Ok(commits)
    }

    async fn candidates(&mut self, transaction: &L1Transaction) -> PortResult<Vec<CommitCalldata>> {
        let direct = transaction.to == Some(self.request.rollup);
        let mut inputs = vec![transaction.input.clone()];
        if !direct || calldata::decode_commit(&transaction.input).is_err() {
            let calls = self.sources.l1.rollup_calls(transaction.hash).await?;
            inputs.extend(calls.iter().flatten().map(|c| c.input.clone()));
            self.traces.insert(transaction.hash, calls);
        }
        Ok(inputs.iter().filter_map(|input| calldata::decode_commit(input).ok()).collect())
    }

    async fn fetch_blobs(&mut self, block: L1Number, hashes: &[B256]) -> PortResult<()> {
        if hashes.iter().all(|h| self.blobs.contains_key(h)) {
            return Ok(());
        }
        let header = self.sources.l1.headers(&[block]).await?.first().copied().flatten();
        let Some(header) = header else { return Ok(()) };
        let blobs = self.sources.blobs.blobs(&header, hashes).await?;
        self.blobs.extend(hashes.iter().copied().zip(blobs));
        Ok(())
    }

    /// Reads logs below the range until every consumed L1 message was seen.
    async fn scan_back(&self, events: &mut Vec<L1Event>, needed: &[QueueIndex]) -> PortResult<L1Number> {
        let mut low = self.request.from;
        let has = |events: &[L1Event], wanted: QueueIndex| {
            events.iter().any(|e| matches!(&e.kind, L1EventKind::Message(m) if m.index == wanted))
        };
        while let Some(first) = needed.first()
            && !has(events, *first)
            && low > self.request.origin
        {
            let to = low.minus(1);
            let from = to.minus(self.request.fetch_range.max(1).saturating_sub(1)).max(self.request.origin);
            let below = self.sources.l1.queued(from, to).await?;
            events.splice(0..0, below.events);
            low = below.reached.max(from).min(to);
        }
        Ok(low)
    }

    /// Headers of the whole range, of its parent, and of every block below it that something lies in.
    async fn headers(&self, events: &[L1Event], earlier: &[L1Event]) -> PortResult<Vec<L1Header>> {
        let (from, to) = (self.request.from.minus(1), self.request.to);
        let mut numbers: Vec<_> = (from.get()..=to.get()).map(L1Number::new).collect();
        numbers.extend(events.iter().chain(earlier).map(|e| e.block.number));
        numbers.sort_unstable();
        numbers.dedup();
        let mut headers = Vec::with_capacity(numbers.len());
        for chunk in numbers.chunks(100) {
            headers.extend(self.sources.l1.headers(chunk).await?.into_iter().flatten());
        }
        Ok(headers)
    }

    /// The L2 chain from the block below the first batch to the last one's end, and four blocks more if there are.
    async fn l2(&self, l2: &dyn L2Reader, commits: &[Commit], tell: Tell<'_>) -> PortResult<L2Facts> {
        let spans: Vec<_> = commits.iter().filter_map(span).collect();
        let head = l2.snapshot().await?.head.number;
        let (Some(first), Some(last)) = (spans.iter().map(|s| s.0).min(), spans.iter().map(|s| s.1).max()) else {
            return Ok(L2Facts::default());
        };
        let (first, last) = (first.minus(1), last.plus(4).min(head).min(first.plus(MAX_BLOCKS)));
        let mut blocks: Vec<L2Block> = Vec::new();
        let mut next = first;
        while next <= last {
            let end = next.plus(BLOCKS_AT_ONCE.saturating_sub(1)).min(last);
            let more = l2.blocks(next, end).await?;
            next = more.last().map_or(end, |block| block.header.number).plus(1);
            blocks.extend(more);
            tell("L2 blocks", next.above(first), last.above(first).saturating_add(1));
        }
        let mut message_roots = BTreeMap::new();
        let ends: Vec<_> = std::iter::once(first).chain(spans.iter().map(|s| s.1)).collect();
        for block in blocks.iter().filter(|b| ends.contains(&b.header.number)) {
            if let MessageRoot::Root(root) = l2.message_root(block.header.l2_ref()).await? {
                message_roots.insert(block.header.number, root);
            }
        }
        Ok(L2Facts { blocks, message_roots })
    }
}

fn index_of(event: &L1Event) -> Option<BatchIndex> {
    match event.kind {
        L1EventKind::Commit { index, .. } => Some(index),
        L1EventKind::Revert { .. } | L1EventKind::Finalize { .. } | L1EventKind::Message(_) => None,
    }
}

/// The batch's first and last L2 block, as calldata says.
fn span(commit: &Commit) -> Option<(L2Number, L2Number)> {
    let calldata = commit.candidates.first()?;
    let contexts = calldata.contexts.as_ref();
    let last = calldata.last_block.or_else(|| contexts?.last().map(|c| c.number))?;
    let parent = crate::codec::header::BatchHeader::decode(&calldata.parent_header).ok()?;
    let first = parent.last_block.map(|n| n.plus(1)).or_else(|| contexts?.first().map(|c| c.number));
    (commit.index.get() > 0).then_some((first.unwrap_or(last), last))
}

fn needed_messages(commits: &[Commit]) -> Vec<QueueIndex> {
    let mut needed = Vec::new();
    for calldata in commits.iter().flat_map(|c| &c.candidates) {
        if let Ok((first, count)) = binding::messages_of(calldata) {
            needed.extend((0..count.min(65_535)).map(|n| first.plus(n)));
        }
    }
    needed.sort_unstable();
    needed.dedup();
    needed
}
