//! The ground of the owners' tests: the recorded network of `tests/fixtures/devnet-small` behind the ports, without
//! HTTP.
//!
//! Seventy-six L2 blocks, and six batches of twelve: batch `n` ends on block `12 n`. L1 has thirty blocks, and all of
//! them are final. L1 is a fake with public fields, so that a test can bend it; the execution node is the embedded one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::events::bare_record;
use super::ledger::Ledger;
use super::node::Node;
use super::quiesce::Quiesce;
use super::writer::Writer;
use super::{Confirmations, Decided, Ports, Settings, Stop};
use crate::adapters::fixture::Fixture;
use crate::adapters::replay::Replay;
use crate::adapters::store::SqliteStore;
use crate::commands::replay::oracle;
use crate::decide::stall::{Cause, Stall};
use crate::devnet::embedded::Embedded;
use crate::devnet::node::{Node as Execution, SafeL2Data};
use crate::devnet::oracle::Oracle;
use crate::error::{PortError, PortErrorKind, Target};
use crate::ports::{FoundLogs, L1Chain, L2Reader, PortResult, RangeLogs, Reactors, Step};
use crate::types::{
    B256, BatchIndex, BatchRecord, Case, CommitEvent, Cursor, L1Event, L1EventKind, L1Header, L1Number, L1Ref, L1Tag,
    L1Transaction, L2Number, L2Ref, L2Snapshot, Outcome, QueueIndex, TracedCall,
};

/// The verdict that it ended on; none if something else was decided.
pub(super) fn stall_of<T>(decided: Decided<T>) -> Option<Stall> {
    match decided {
        Ok(_) => None,
        Err(Stop::Stands(stall)) => Some(stall),
        Err(Stop::Failed(error)) => panic!("not decided: {error}"),
    }
}

/// The cause of the stall that it ended on; none if something else was decided.
pub(super) fn cause_of<T>(decided: Decided<T>) -> Option<Cause> {
    stall_of(decided).map(|stall| stall.cause)
}

/// An L1 to be bent.
pub(super) struct L1 {
    /// By height.
    pub(super) headers: Vec<L1Header>,
    pub(super) finalized: L1Number,
    pub(super) events: Vec<L1Event>,
    pub(super) transactions: Vec<L1Transaction>,
    pub(super) traces: BTreeMap<B256, Vec<TracedCall>>,
    /// What the contract holds now, and held at every block.
    pub(super) committed: BTreeMap<BatchIndex, B256>,
    pub(super) last_committed: BatchIndex,
    /// What its newest state proves, if it can be asked. Its older states cannot.
    pub(super) last_finalized: Option<BatchIndex>,
    /// Blocks of logs that one answer holds.
    pub(super) reach: u64,
    /// The ranges of logs that were asked for.
    pub(super) asked: Vec<(u64, u64)>,
    /// How many transactions were asked for.
    pub(super) transactions_asked: usize,
}

impl L1 {
    pub(super) fn at(&self, number: u64) -> L1Ref {
        self.headers[usize::try_from(number).unwrap()].l1_ref()
    }

    /// A log in block `number`, after its others.
    pub(super) fn log(&mut self, number: u64, kind: L1EventKind) -> L1Event {
        let block = self.at(number);
        let log_index = self.events.iter().filter(|event| event.block == block).count() as u64;
        let event = L1Event { block, log_index, tx_hash: B256::repeat_byte(0xaa), tx_index: 9, kind };
        let place = self.events.iter().position(|other| other.pos() > event.pos());
        self.events.insert(place.unwrap_or(self.events.len()), event.clone());
        event
    }

    /// Replaces the blocks from `from` on. Their logs move into the new blocks.
    pub(super) fn reorganise(&mut self, from: u64) {
        for header in self.headers.iter_mut().filter(|header| header.number.get() >= from) {
            header.hash.0[0] ^= 0xff;
            header.parent_hash.0[0] ^= if header.number.get() > from { 0xff } else { 0 };
        }
        for event in self.events.iter_mut().filter(|event| event.block.number.get() >= from) {
            event.block.hash.0[0] ^= 0xff;
        }
    }

    fn logs(&mut self, (from, to): (L1Number, L1Number), wanted: impl Fn(&L1EventKind) -> bool) -> Vec<L1Event> {
        self.asked.push((from.get(), to.get()));
        let inside = |event: &&L1Event| (from..=to).contains(&event.block.number) && wanted(&event.kind);
        self.events.iter().filter(inside).cloned().collect()
    }

    fn range(&mut self, from: L1Number, to: L1Number, wanted: impl Fn(&L1EventKind) -> bool) -> RangeLogs {
        let to = to.min(from.plus(self.reach - 1));
        RangeLogs { events: self.logs((from, to), wanted), ends: vec![self.at(to.get())] }
    }

    fn downwards(&mut self, from: L1Number, to: L1Number, wanted: impl Fn(&L1EventKind) -> bool) -> FoundLogs {
        let from = from.max(to.minus(self.reach - 1));
        FoundLogs { events: self.logs((from, to), wanted), reached: from }
    }
}

#[derive(Clone)]
pub(super) struct FakeL1(Arc<Mutex<L1>>);

impl FakeL1 {
    /// Locks it, to read or to bend it.
    pub(super) fn now(&self) -> MutexGuard<'_, L1> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl L1Chain for FakeL1 {
    async fn tagged(&self, tag: L1Tag) -> PortResult<Option<L1Header>> {
        let l1 = self.now();
        Ok(match tag {
            L1Tag::Latest => l1.headers.last().copied(),
            L1Tag::Safe | L1Tag::Finalized => l1.headers.iter().find(|header| header.number == l1.finalized).copied(),
        })
    }

    async fn headers(&self, numbers: &[L1Number]) -> PortResult<Vec<Option<L1Header>>> {
        let l1 = self.now();
        Ok(numbers.iter().map(|number| l1.headers.iter().find(|header| header.number == *number).copied()).collect())
    }

    async fn events(&self, from: L1Number, to: L1Number) -> PortResult<RangeLogs> {
        Ok(self.now().range(from, to, |_| true))
    }

    async fn settlements(&self, from: L1Number, to: L1Number) -> PortResult<RangeLogs> {
        Ok(self.now().range(from, to, |kind| !matches!(kind, L1EventKind::Commit { .. } | L1EventKind::Message(_))))
    }

    async fn commits_of(&self, index: BatchIndex, from: L1Number, to: L1Number) -> PortResult<FoundLogs> {
        Ok(self.now().downwards(from, to, |kind| matches!(kind, L1EventKind::Commit { index: i, .. } if *i == index)))
    }

    async fn reverts_of(&self, index: BatchIndex, from: L1Number, to: L1Number) -> PortResult<FoundLogs> {
        let is_it = |kind: &L1EventKind| matches!(kind, L1EventKind::Revert { index: i, .. } if *i == index);
        let RangeLogs { events, ends } = self.now().range(from, to, is_it);
        Ok(FoundLogs { events, reached: ends[0].number })
    }

    async fn queued(&self, from: L1Number, to: L1Number) -> PortResult<FoundLogs> {
        Ok(self.now().downwards(from, to, |kind| matches!(kind, L1EventKind::Message(_))))
    }

    async fn transaction(&self, block: L1Ref, index: u64) -> PortResult<Option<L1Transaction>> {
        self.now().transactions_asked += 1;
        Ok(self.now().transactions.iter().find(|tx| tx.block == block && tx.index == index).cloned())
    }

    async fn rollup_calls(&self, tx: B256) -> PortResult<Option<Vec<TracedCall>>> {
        Ok(self.now().traces.get(&tx).cloned())
    }

    async fn committed_hashes(&self, indices: &[BatchIndex], _: Option<L1Number>) -> PortResult<Vec<B256>> {
        let l1 = self.now();
        Ok(indices.iter().map(|index| l1.committed.get(index).copied().unwrap_or_default()).collect())
    }

    async fn last_committed_index(&self, _: Option<L1Number>) -> PortResult<BatchIndex> {
        Ok(self.now().last_committed)
    }

    async fn last_finalized_index(&self, at: Option<L1Number>) -> PortResult<BatchIndex> {
        let newest = self.now().last_finalized.filter(|_| at.is_none());
        newest.ok_or_else(|| PortError::new(Target::L1, PortErrorKind::Pruned, "no such state"))
    }

    async fn blob_field(&self, _: BatchIndex) -> PortResult<B256> {
        Ok(B256::zero())
    }

    async fn batch_last_block(&self, _: BatchIndex) -> PortResult<L2Number> {
        Ok(0.into())
    }

    async fn queue_hashes(&self, indices: &[QueueIndex]) -> PortResult<Vec<B256>> {
        let all: Vec<_> = self.now().events.iter().cloned().filter_map(L1Event::into_message).collect();
        let hash = |index: &QueueIndex| all.iter().find(|(_, m)| m.index == *index).map(|(_, m)| m.hash);
        Ok(indices.iter().map(|index| hash(index).unwrap_or_default()).collect())
    }
}

/// Reactors that note each call with the head of the node at that moment.
pub(super) struct Watched {
    node: Embedded,
    pub(super) calls: Mutex<Vec<(&'static str, u64)>>,
}

#[async_trait]
impl Reactors for Watched {
    async fn pause(&self, _: L2Number) -> PortResult<()> {
        self.calls.lock().unwrap().push(("pause", self.node.node().head().number()));
        Ok(())
    }

    async fn resume(&self, _: L2Number) -> PortResult<()> {
        self.calls.lock().unwrap().push(("resume", self.node.node().head().number()));
        Ok(())
    }
}

/// The recorded network, and a database that holds nothing yet.
pub(super) struct World {
    pub(super) l1: FakeL1,
    pub(super) node: Embedded,
    pub(super) reactors: Arc<Watched>,
    pub(super) ports: Ports,
    pub(super) settings: Settings,
    pub(super) ledger: Ledger,
    pub(super) recorded: Arc<Oracle>,
}

impl World {
    pub(super) async fn recorded() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/devnet-small");
        let fixture = Arc::new(Fixture::read(&folder).unwrap());
        let range = fixture.facts.range.clone();
        let recorded = Arc::new(oracle(fixture.l2.as_ref().unwrap()));
        let node = Embedded::new(execution(range.identity.l2_chain_id, &recorded));
        let l1 = FakeL1(Arc::new(Mutex::new(l1(&fixture))));
        let reactors = Arc::new(Watched { node: node.clone(), calls: Mutex::default() });
        let ports = Ports {
            l1: Arc::new(l1.clone()),
            blobs: Arc::new(Replay::new(fixture.clone())),
            l2: Arc::new(node.clone()),
            engine: Some(Arc::new(node.clone())),
            reactors: reactors.clone(),
            progress: Arc::new(SqliteStore::in_memory().await.unwrap()),
        };
        let confirmations = Confirmations::Depth(0);
        let settings = Settings { rollup: range.identity.rollup, confirmations, ..Settings::default() };
        let (ledger, _) = Ledger::load(ports.progress.clone()).await.unwrap();
        Self { l1, node, reactors, ports, settings, ledger, recorded }
    }

    /// The recorded L2 block.
    pub(super) fn l2(&self, number: u64) -> L2Ref {
        self.recorded.at(number).unwrap().l2_ref()
    }

    /// The newest commit of batch `index`.
    pub(super) fn commit(&self, index: u64) -> CommitEvent {
        let l1 = self.l1.now();
        l1.events.iter().rev().filter_map(L1Event::as_commit).find(|commit| commit.index.get() == index).unwrap()
    }

    /// The row of recorded batch `index`, verified.
    pub(super) fn row(&self, index: u64) -> BatchRecord {
        BatchRecord {
            case: Some(Case::Consistent),
            first: Some((12 * index - 11).into()),
            last: Some(self.l2(12 * index)),
            post_state_root: self.recorded.at(12 * index).unwrap().header.state_root,
            ..bare_record(&self.commit(index), Outcome::Verified)
        }
    }

    /// Batches `1..=to` are verified, and the cursor stands on the last one's commit.
    pub(super) async fn verified(&mut self, to: u64) {
        for index in 1..=to {
            let row = self.row(index);
            let cursor = Some(Cursor { block: row.l1, log_index: Some(row.log_index) });
            let (safe, l1_blocks) = (row.last, vec![row.l1]);
            self.store(Step { batch: Some(row), safe, cursor, l1_blocks, ..Step::default() }).await;
        }
    }

    pub(super) async fn store(&mut self, step: Step) {
        self.ledger.commit(&step).await.unwrap();
    }

    /// What the execution node shows.
    pub(super) async fn shown(&self) -> L2Snapshot {
        self.node.snapshot().await.unwrap()
    }

    /// The flow's node, at the beginning of a poll.
    pub(super) async fn poll_begins(&self) -> Node {
        let Ports { l1, l2, engine, .. } = self.ports.clone();
        let mut node = Node::new(l1, l2, engine, self.settings.observation_window);
        node.poll_begins(self.shown().await);
        node
    }

    pub(super) fn writer(&self) -> Writer {
        let Ports { reactors, progress, l2, .. } = self.ports.clone();
        Writer::new(&self.ports, Quiesce::new(reactors, progress, l2, Duration::ZERO), &self.settings)
    }

    /// Replaces the execution node's blocks from `from` on, up to the same height.
    pub(super) fn fork_l2(&self, from: u64) {
        let mut node = self.node.node();
        let head = node.head().number();
        node.truncate(from - 1);
        for number in from..=head {
            let mut block = self.recorded.at(number).unwrap().as_new_block();
            block.gas_limit -= u64::from(number == from);
            block.parent_hash = None;
            node.write_unseen(&SafeL2Data::from(&block)).unwrap();
        }
        node.clear_calls();
    }
}

fn execution(chain_id: u64, recorded: &Arc<Oracle>) -> Execution {
    let block = |number| recorded.at(number).unwrap();
    let mut node = Execution::new(chain_id, block(0).as_ref().clone()).with_oracle(recorded.clone());
    (1..=recorded.last().unwrap()).for_each(|number| node.import(block(number)));
    node
}

fn l1(fixture: &Fixture) -> L1 {
    let facts = fixture.facts.clone();
    let traces = facts.traces.into_iter().filter_map(|(tx, calls)| Some((tx, calls?))).collect();
    let mut headers = facts.headers;
    headers.sort_unstable_by_key(|header| header.number);
    L1 {
        finalized: facts.range.to,
        headers,
        events: facts.events,
        transactions: facts.transactions,
        traces,
        committed: facts.committed.newest,
        last_committed: facts.last_committed.newest.unwrap(),
        last_finalized: None,
        reach: 1_000,
        asked: Vec::new(),
        transactions_asked: 0,
    }
}
