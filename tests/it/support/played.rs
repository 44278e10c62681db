//! A recorded L1 that is played back in process, block by block: for questions that are asked thousands of times.
//!
//! The answers are those of a fixture (`adapters::record`), up to an L1 head that the test moves. Views of the
//! contract follow from the logs up to that head.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use morph_deriver::adapters::fixture::{Fixture, Range};
use morph_deriver::adapters::reactors::NoReactors;
use morph_deriver::adapters::record::Sources;
use morph_deriver::adapters::replay::Replay;
use morph_deriver::adapters::store::SqliteStore;
use morph_deriver::commands::record::record;
use morph_deriver::commands::replay::oracle;
use morph_deriver::devnet::embedded::Embedded;
use morph_deriver::devnet::node::Node;
use morph_deriver::error::{PortError, PortErrorKind, Target};
use morph_deriver::flow::{FinalityMeaning, Ports, Settings};
use morph_deriver::ports::{BlobSource, FoundLogs, L1Chain, L2Reader, PortResult, RangeLogs};
use morph_deriver::types::{
    Address, B256, BatchIndex, Identity, L1Event, L1EventKind, L1Header, L1Number, L1Ref, L1Tag, L1Transaction,
    L2Number, QueueIndex, TracedCall,
};

/// The recorded L1, seen up to a head.
pub struct Played {
    fixture: Arc<Fixture>,
    replay: Replay,
    head: AtomicU64,
    finalized: AtomicU64,
}

impl Played {
    /// `fixture`, with nothing but L1 block 0.
    pub fn new(fixture: Arc<Fixture>) -> Arc<Self> {
        let replay = Replay::new(fixture.clone());
        Arc::new(Self { fixture, replay, head: AtomicU64::new(0), finalized: AtomicU64::new(0) })
    }

    /// L1's head is `head` from now on, and `finalized` is final.
    pub fn show(&self, head: u64, finalized: u64) {
        self.head.store(head, Ordering::SeqCst);
        self.finalized.store(finalized, Ordering::SeqCst);
    }

    fn head(&self) -> L1Number {
        L1Number::new(self.head.load(Ordering::SeqCst))
    }

    fn header(&self, number: L1Number) -> Option<L1Header> {
        self.fixture.facts.header(number).filter(|h| h.number <= self.head())
    }

    fn logs(&self, from: L1Number, to: L1Number, wanted: impl Fn(&L1EventKind) -> bool) -> PortResult<RangeLogs> {
        let Some(end) = self.header(to) else {
            return Err(PortError::new(Target::L1, PortErrorKind::NotFound, format!("no L1 block {to} yet")));
        };
        let inside = |e: &&L1Event| e.block.number >= from && e.block.number <= to && wanted(&e.kind);
        let events = self.fixture.facts.events.iter().filter(inside).cloned().collect();
        Ok(RangeLogs { events, ends: vec![end.l1_ref()] })
    }

    /// `committedBatches` after L1 block `at`.
    fn committed(&self, at: L1Number) -> BTreeMap<BatchIndex, B256> {
        let mut standing = BTreeMap::new();
        for event in self.fixture.facts.events.iter().filter(|e| e.block.number <= at) {
            match event.kind {
                L1EventKind::Commit { index, hash } => {
                    standing.insert(index, hash);
                }
                L1EventKind::Revert { index, .. } => {
                    standing.remove(&index);
                }
                L1EventKind::Finalize { .. } | L1EventKind::Message(_) => {}
            }
        }
        standing
    }
}

impl Played {
    /// The logs of `from..=to` that are `wanted`, all in one answer: `reached` is the end at which the search ends.
    fn found(
        &self,
        from: L1Number,
        to: L1Number,
        reached: L1Number,
        wanted: impl Fn(&L1EventKind) -> bool,
    ) -> PortResult<FoundLogs> {
        Ok(FoundLogs { events: self.logs(from, to, wanted)?.events, reached })
    }
}

#[async_trait]
impl L1Chain for Played {
    async fn tagged(&self, tag: L1Tag) -> PortResult<Option<L1Header>> {
        Ok(match tag {
            L1Tag::Latest => self.header(self.head()),
            L1Tag::Safe | L1Tag::Finalized => self.header(self.finalized.load(Ordering::SeqCst).into()),
        })
    }

    async fn headers(&self, numbers: &[L1Number]) -> PortResult<Vec<Option<L1Header>>> {
        Ok(numbers.iter().map(|number| self.header(*number)).collect())
    }

    async fn events(&self, from: L1Number, to: L1Number) -> PortResult<RangeLogs> {
        self.logs(from, to, |_| true)
    }

    async fn settlements(&self, from: L1Number, to: L1Number) -> PortResult<RangeLogs> {
        self.logs(from, to, |kind| matches!(kind, L1EventKind::Revert { .. } | L1EventKind::Finalize { .. }))
    }

    async fn commits_of(&self, index: BatchIndex, from: L1Number, to: L1Number) -> PortResult<FoundLogs> {
        self.found(from, to, from, |kind| matches!(kind, L1EventKind::Commit { index: i, .. } if *i == index))
    }

    async fn reverts_of(&self, index: BatchIndex, from: L1Number, to: L1Number) -> PortResult<FoundLogs> {
        self.found(from, to, to, |kind| matches!(kind, L1EventKind::Revert { index: i, .. } if *i == index))
    }

    async fn queued(&self, from: L1Number, to: L1Number) -> PortResult<FoundLogs> {
        self.found(from, to, from, |kind| matches!(kind, L1EventKind::Message(_)))
    }

    async fn transaction(&self, block: L1Ref, index: u64) -> PortResult<Option<L1Transaction>> {
        self.replay.transaction(block, index).await
    }

    async fn rollup_calls(&self, tx: B256) -> PortResult<Option<Vec<TracedCall>>> {
        self.replay.rollup_calls(tx).await
    }

    async fn committed_hashes(&self, indices: &[BatchIndex], at: Option<L1Number>) -> PortResult<Vec<B256>> {
        let standing = self.committed(at.unwrap_or(self.head()));
        Ok(indices.iter().map(|index| standing.get(index).copied().unwrap_or_default()).collect())
    }

    async fn last_committed_index(&self, at: Option<L1Number>) -> PortResult<BatchIndex> {
        let standing = self.committed(at.unwrap_or(self.head()));
        Ok(standing.last_key_value().map(|(index, _)| *index).unwrap_or_default())
    }

    async fn blob_field(&self, index: BatchIndex) -> PortResult<B256> {
        self.replay.blob_field(index).await
    }

    async fn batch_last_block(&self, index: BatchIndex) -> PortResult<L2Number> {
        self.replay.batch_last_block(index).await
    }

    async fn queue_hashes(&self, indices: &[QueueIndex]) -> PortResult<Vec<B256>> {
        self.replay.queue_hashes(indices).await
    }
}

/// The end of one batch of the recording, and its place on L1.
#[derive(Clone, Copy, Debug)]
struct Stood {
    block: u64,
    last: u64,
}

/// What a worker may show when it has read L1 up to a head. Zero means no batch, or the genesis batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// The end of the last standing batch.
    pub last: u64,
    /// Its finalized head at least: what stands at L1's finalized block and was not reverted above it.
    pub least: u64,
    /// Its finalized head at most: what stands at L1's finalized block. Which of the two a worker finalizes depends on
    /// whether it has read the revert above that block by then; both are right (protocol.md, section 9).
    pub most: u64,
}

/// The rules of finality over the recorded logs, written without a worker: the last verified batch that stands, committed
/// (and proved) at or below L1's finalized block, and never back.
pub struct Model {
    fixture: Arc<Fixture>,
    start: L1Number,
    meaning: FinalityMeaning,
    /// Last L2 block of a batch by its hash, none if the batch is poison.
    ends: BTreeMap<B256, u64>,
    now: Expected,
}

impl Model {
    /// Over `fixture`, whose batches end where `ends` says by their hash; one that is not listed is never verified.
    /// L1 is read from block `start` on.
    pub fn new(fixture: Arc<Fixture>, start: u64, meaning: FinalityMeaning, ends: BTreeMap<B256, u64>) -> Self {
        Self { fixture, start: start.into(), meaning, ends, now: Expected::default() }
    }

    /// L1 was read up to `head`, and `final_to` is final.
    pub fn read(&mut self, head: u64, final_to: u64) -> Expected {
        let (last, least) = self.candidate(head, final_to);
        let (_, most) = self.candidate(final_to.min(head), final_to);
        self.now.last = last;
        self.now.least = self.now.least.max(least);
        self.now.most = self.now.most.max(most).max(least);
        self.now
    }

    /// The ends of the last standing batch and of the last final one, by the logs up to `head`.
    fn candidate(&self, head: u64, final_to: u64) -> (u64, u64) {
        let mut standing: BTreeMap<u64, Stood> = BTreeMap::new();
        let mut proved = None;
        let mut blocked = false;
        let read = |e: &&L1Event| e.block.number >= self.start && e.block.number.get() <= head;
        for event in self.fixture.facts.events.iter().filter(read) {
            let block = event.block.number.get();
            match event.kind {
                L1EventKind::Commit { index, hash } => match self.ends.get(&hash) {
                    // Nothing is verified above a batch that is poison.
                    Some(last) if !blocked => {
                        standing.insert(index.get(), Stood { block, last: *last });
                    }
                    Some(_) => {}
                    None => blocked = true,
                },
                L1EventKind::Revert { index, .. } => {
                    standing.retain(|i, _| *i < index.get());
                    blocked = false;
                }
                L1EventKind::Finalize { index, .. } if block <= final_to => proved = proved.max(Some(index.get())),
                L1EventKind::Finalize { .. } | L1EventKind::Message(_) => {}
            }
        }
        let most = match self.meaning {
            FinalityMeaning::Committed => Some(u64::MAX),
            FinalityMeaning::Proven => proved,
        };
        let is_final =
            |(index, stood): &(&u64, &Stood)| stood.block <= final_to && most.is_some_and(|most| **index <= most);
        let candidate = standing.iter().rev().find(is_final).map_or(0, |(_, stood)| stood.last);
        (standing.last_key_value().map_or(0, |(_, stood)| stood.last), candidate)
    }
}

/// Records L1 blocks `from..=to` of a network that is served over HTTP, its L2 chain included.
pub async fn recorded(
    l1: Arc<dyn L1Chain>,
    blobs: Arc<dyn BlobSource>,
    l2: Arc<dyn L2Reader>,
    rollup: Address,
    to: u64,
) -> Arc<Fixture> {
    let identity =
        Identity { l1_chain_id: 1, l2_chain_id: 2, rollup, queue: Address::zero(), l2_genesis: B256::zero() };
    let range = Range { identity, switch_ms: 0, from: 0.into(), to: to.into(), origin: 0.into(), fetch_range: 500 };
    let recorded = record(Sources { l1, blobs, l2: Some(l2) }, &range, &|_| {}).await;
    let (fixture, stall) = recorded.expect("the network is recorded");
    assert_eq!(stall, None, "to its end");
    Arc::new(fixture)
}

/// Ports over `played`, with a fresh database and a fresh node that holds the whole recorded L2 chain.
pub async fn ports(played: &Arc<Played>) -> Ports {
    let l2 = played.fixture.l2.as_ref().expect("the L2 chain is recorded");
    let oracle = Arc::new(oracle(l2));
    let stored = |n: L2Number| oracle.at(n.get()).expect("a recorded block");
    let mut node = Node::new(2, stored(0.into()).as_ref().clone()).with_oracle(oracle.clone());
    for block in l2.blocks.iter().skip(1) {
        node.import(stored(block.header.number));
    }
    let node = Arc::new(Embedded::new(node));
    Ports {
        l1: played.clone(),
        blobs: Arc::new(played.replay.clone()),
        l2: node.clone(),
        engine: Some(node),
        reactors: Arc::new(NoReactors),
        progress: Arc::new(SqliteStore::in_memory().await.expect("a database in memory")),
    }
}

/// Settings for such a network.
pub fn settings(fixture: &Fixture, base: Settings) -> Settings {
    Settings { rollup: fixture.facts.range.identity.rollup, ..base }
}
