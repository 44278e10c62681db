//! What is gathered of the next batches while the ones before them are decided.
//!
//! A task per batch: it binds the commit, reads the local blocks, encodes them and compares the versioned hashes. The
//! tasks form a chain: each begins after the one before it knows the end of its batch, and ends without asking anything
//! if that one failed. So a batch that must wait costs no request for those above it. The first batch of a chain is
//! gathered in its turn: a batch that comes alone costs nothing more than it must.
//!
//! Nothing is decided here, and nothing outdated is used. The results are bound to hashes: the commit to its event's
//! hash, the local blocks to the hash of their last one. The batch's turn checks that the node still has that last
//! block, and decides by the case table. After a rewrite or a reorg the block has another hash, and what was gathered
//! fits nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error};

use crate::codec::calldata::CommitCalldata;
use crate::decide::binding::{BlobList, BoundCommit, SecondOpinion, queue_range};
use crate::decide::{content, dispatch};
use crate::flow::commit::{self, Elsewhere};
use crate::flow::gather::{BatchContext, Gatherer};
use crate::flow::{Decided, FlowError, Ports, Settings};
use crate::ports::{L1Chain, L2Reader, MessageRoot, Rows};
use crate::types::{Address, B256, CommitEvent, L1Header, L1Number, L2Header, L2Number, Mode, QueueIndex};

/// Batches whose local blocks are in memory at once, each up to [`BYTES_MAX`] and the piece that goes beyond it: 16 MiB
/// at most, as the reader gives them (P7).
const BLOCKS_AT_ONCE: usize = 3;

/// Local blocks of more bytes are left to the batch's turn: a batch of six full blobs holds some 5 MB.
const BYTES_MAX: usize = 8 << 20;

/// Batches whose blobs are fetched and decoded at once. L1 is bound to what they hold, and a decoded payload is
/// bounded.
const PAYLOADS_AT_ONCE: usize = 2;

/// How long a write waits for the blobs of the batches that may share its pause.
const SETTLE: Duration = Duration::from_secs(5);

/// What a task found out about its batch.
#[derive(Debug)]
pub(crate) struct Gathered {
    /// The commit, bound to its event's hash.
    pub(crate) bound: BoundCommit,
    /// The batch's local blocks, if they are all there and encode to L1's very blobs.
    pub(crate) segment: Option<Segment>,
}

/// Local blocks that follow each other by parent hash and encode to the blobs that L1 committed to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    /// The block below the first one.
    pub(crate) anchor: L2Header,
    /// The last one.
    pub(crate) last: L2Header,
    /// The withdrawal root in the state of the last one, as far as the node can give it; none if it could not be asked.
    pub(crate) withdrawal_root: Option<MessageRoot>,
}

/// What all tasks of a range are given.
#[derive(Clone, Debug, Default)]
pub(crate) struct Given {
    /// The head by which this poll decides.
    pub(crate) height: L2Number,
    /// The range's own L1 messages, which are stored only when the cursor passes them.
    pub(crate) messages: Arc<BTreeMap<QueueIndex, B256>>,
    /// The headers of the range's L1 blocks that hold commits.
    pub(crate) headers: Arc<BTreeMap<L1Number, L1Header>>,
    /// Whether a batch whose blocks are missing is written in this poll: its blobs are fetched ahead then.
    pub(crate) writes: bool,
}

/// A batch that is gathered.
struct Task {
    commit: CommitEvent,
    work: Work,
    /// The first block of the batch after it; taken by that one's task.
    next: Option<oneshot::Receiver<L2Number>>,
}

enum Work {
    UnderWay(AbortOnDropHandle<Option<Gathered>>),
    Done(Option<Box<Gathered>>),
}

impl Task {
    async fn settle(&mut self) {
        if let Work::UnderWay(work) = &mut self.work {
            let gathered = work.await.inspect_err(|ended| {
                if ended.is_panic() {
                    error!(
                        code = "panicked",
                        batch = self.commit.index.get(),
                        "gathering a batch panicked, which is a bug"
                    );
                }
            });
            self.work = Work::Done(gathered.ok().flatten().map(Box::new));
        }
    }

    async fn end(mut self) -> Option<Box<Gathered>> {
        self.settle().await;
        match self.work {
            Work::Done(gathered) => gathered,
            Work::UnderWay(_) => None,
        }
    }
}

/// The tasks under way, by their batches' order on L1.
pub(crate) struct Ahead {
    asks: Arc<Asks>,
    tasks: VecDeque<Task>,
    /// How many may be under way.
    at_once: usize,
}

/// The ports that the tasks ask.
struct Asks {
    l1: Arc<dyn L1Chain>,
    l2: Arc<dyn L2Reader>,
    rows: Arc<dyn Rows>,
    gatherer: Arc<Gatherer>,
    rollup: Address,
    mode: Mode,
    /// How many bytes of local blocks one batch may have.
    bytes: usize,
    reading: Semaphore,
    fetching: Semaphore,
}

impl Ahead {
    /// Nothing under way.
    pub(crate) fn new(ports: &Ports, settings: &Settings, gatherer: Arc<Gatherer>) -> Self {
        let asks = Asks {
            l1: ports.l1.clone(),
            l2: ports.l2.clone(),
            rows: ports.progress.clone(),
            gatherer,
            rollup: settings.rollup,
            mode: settings.mode,
            bytes: settings.local_bytes.min(BYTES_MAX),
            reading: Semaphore::new(BLOCKS_AT_ONCE),
            fetching: Semaphore::new(PAYLOADS_AT_ONCE),
        };
        Self { asks: Arc::new(asks), tasks: VecDeque::new(), at_once: settings.read_ahead }
    }

    /// Ends all tasks and drops what they gathered.
    pub(crate) fn forget(&mut self) {
        self.tasks.clear();
    }

    /// Begins with the `next` commits, in their order, as far as they are not under way. The first of them begins with
    /// block `first`.
    pub(crate) fn top_up(&mut self, next: &[CommitEvent], first: L2Number, given: &Given) {
        let next = next.get(..self.at_once).unwrap_or(next);
        if self.tasks.iter().zip(next).any(|(task, commit)| task.commit != *commit) {
            self.forget();
        }
        // Those of ranges that were read ahead, and are not any more.
        self.tasks.truncate(next.len());
        for commit in next.iter().skip(self.tasks.len()) {
            let first = match self.tasks.back_mut() {
                None => First::Known(first),
                Some(task) => match task.next.take() {
                    Some(told) => First::Told(told),
                    None => return,
                },
            };
            let (tell, next) = oneshot::channel();
            let work = self.asks.clone().gather(*commit, first, given.clone(), tell);
            let work = Work::UnderWay(AbortOnDropHandle::new(tokio::spawn(work)));
            self.tasks.push_back(Task { commit: *commit, work, next: Some(next) });
        }
    }

    /// Waits a short time for the tasks under way: what they fetch now is not fetched inside a pause.
    pub(crate) async fn settle(&mut self) {
        self.settle_within(SETTLE).await;
    }

    async fn settle_within(&mut self, time: Duration) {
        let all = futures::future::join_all(self.tasks.iter_mut().map(|task| task.settle()));
        let _in_vain = tokio::time::timeout(time, all).await;
    }

    /// What was gathered of `commit`, whose turn it is; none if its task failed, and then nothing that stands on it is
    /// kept either. If this one was never gathered, the tasks of later batches continue: a batch at which the flow is
    /// stalled has its turn at every poll, and what comes after it is asked for once.
    pub(crate) async fn take(&mut self, commit: &CommitEvent) -> Option<Box<Gathered>> {
        let task = self.tasks.pop_front_if(|task| task.commit == *commit)?;
        let gathered = task.end().await;
        if gathered.is_none() {
            self.forget();
        }
        gathered
    }
}

/// A batch's first block.
enum First {
    /// The batch below it has its turn.
    Known(L2Number),
    /// The task before it sends the number.
    Told(oneshot::Receiver<L2Number>),
}

impl Asks {
    /// One task. `tell` gets the number after the batch's last block, if the batches after it are worth looking at.
    async fn gather(
        self: Arc<Self>,
        commit: CommitEvent,
        first: First,
        given: Given,
        tell: oneshot::Sender<L2Number>,
    ) -> Option<Gathered> {
        let first = match first {
            First::Known(first) => first,
            First::Told(told) => told.await.ok()?,
        };
        let outcome = self.gather_from(&commit, first, &given, tell).await;
        outcome.inspect_err(|stop| debug!(batch = commit.index.get(), %stop, "not gathered ahead")).ok()
    }

    async fn gather_from(
        &self,
        commit: &CommitEvent,
        first: L2Number,
        given: &Given,
        tell: oneshot::Sender<L2Number>,
    ) -> Decided<Gathered> {
        let mut stored = Stored { rows: self.rows.as_ref(), messages: &given.messages };
        let bound = commit::bind(self.l1.as_ref(), self.rollup, commit, &mut stored).await?;
        let last = bound.outline.last;
        let present = dispatch::is_present(last, given.height);
        if present || given.writes {
            // Fails if no batch comes after this one.
            let _ = tell.send(last.plus(1));
        }
        let segment = match (present, self.mode) {
            (true, Mode::Local) => self.segment(&bound, first, given).await?,
            (false, _) if !given.writes => None,
            (true, Mode::Blob) | (false, _) => {
                let _place = self.fetching.acquire().await;
                // Kept by the gatherer for the batch's turn, which meets the same error if there is one.
                let _payload = self.gatherer.payload(&bound).await;
                None
            }
        };
        Ok(Gathered { bound, segment })
    }

    async fn segment(&self, bound: &BoundCommit, first: L2Number, given: &Given) -> Result<Option<Segment>, FlowError> {
        let last = bound.outline.last;
        let Ok(blocks) = content::extent(first, last) else { return Ok(None) };
        let mut coming = self.gatherer.coming(bound).await;
        let place = self.reading.acquire().await;
        let Some(anchor) = self.l2.header(first.minus(1)).await? else { return Ok(None) };
        let batch = BatchContext { bound, before: None, first, blocks, anchor };
        let local = self.gatherer.local_blocks(&batch, last, self.bytes).await?;
        let Some(header) = local.last().map(|block| block.header).filter(|header| header.number == last) else {
            return Ok(None);
        };
        let Some(blobs) = self.gatherer.rebuilt(&batch, &local).await? else { return Ok(None) };
        // The blocks are no longer needed; only a blob or a few wait to be checked.
        drop(local);
        drop(place);
        let l1 = given.headers.get(&bound.blob_block.number);
        let (equal, root) = futures::join!(
            self.gatherer.are_committed(bound, blobs, l1, &mut coming),
            self.l2.message_root(header.l2_ref())
        );
        let withdrawal_root = root.ok();
        Ok(equal?.then_some(Segment { anchor, last: header, withdrawal_root }))
    }
}

/// What a task can ask without changing anything: what is stored, and what its range holds. A commit that takes more
/// than that is bound in its batch's turn.
struct Stored<'a> {
    rows: &'a dyn Rows,
    messages: &'a BTreeMap<QueueIndex, B256>,
}

#[async_trait]
impl Elsewhere for Stored<'_> {
    async fn message_hashes(&mut self, first: QueueIndex, count: u64) -> Result<Vec<B256>, FlowError> {
        let stored: BTreeMap<_, _> =
            self.rows.messages(first, count).await?.into_iter().map(|message| (message.index, message.hash)).collect();
        let hash = |index: QueueIndex| self.messages.get(&index).or_else(|| stored.get(&index)).copied();
        let found: Option<Vec<_>> = queue_range(first, count).into_iter().map(hash).collect();
        found.ok_or_else(|| FlowError::l1_changed("the batch's L1 messages are not stored yet"))
    }

    async fn earlier_blobs(&mut self, _: &CommitEvent, _: usize) -> Result<Option<Option<BlobList>>, FlowError> {
        Ok(None)
    }

    async fn has_earlier(&mut self, _: &CommitEvent, _: usize) -> Result<bool, FlowError> {
        Ok(false)
    }

    async fn second_opinion(&mut self, _: &CommitEvent, _: &CommitCalldata, _: &[B256]) -> SecondOpinion {
        SecondOpinion::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::flow::testing::World;
    use crate::ports::PortResult;
    use crate::types::{Blob, L1Event, L1Header};

    fn ahead(world: &World) -> Ahead {
        let gatherer = Gatherer::new(world.ports.l1.clone(), world.ports.blobs.clone(), world.ports.l2.clone());
        Ahead::new(&world.ports, &world.settings, Arc::new(gatherer))
    }

    fn commits(world: &World) -> Vec<CommitEvent> {
        (1..=6).map(|index| world.commit(index)).collect()
    }

    async fn given(world: &World) -> Given {
        let messages = world.l1.now().events.iter().cloned().filter_map(L1Event::into_message).collect::<Vec<_>>();
        let messages = messages.into_iter().map(|(_, message)| (message.index, message.hash)).collect();
        Given { height: world.shown().await.head.number, messages: Arc::new(messages), ..Given::default() }
    }

    #[tokio::test]
    async fn every_batch_of_a_range_is_gathered_on_the_end_of_the_one_before() {
        let world = World::recorded().await;
        let (mut ahead, commits, given) = (ahead(&world), commits(&world), given(&world).await);
        let mut below = world.l2(0);
        for (at, commit) in commits.iter().enumerate() {
            ahead.top_up(&commits[at..], below.number.plus(1), &given);
            let gathered = ahead.take(commit).await.unwrap();
            let (segment, end) = (gathered.segment.unwrap(), world.l2(commit.index.get() * 12));
            assert_eq!((segment.anchor.l2_ref(), segment.last.l2_ref()), (below, end));
            let root = gathered.bound.outline.header.withdrawal_root;
            assert_eq!(segment.withdrawal_root, Some(MessageRoot::Root(root)));
            below = end;
        }
        assert!(ahead.tasks.is_empty());
    }

    #[tokio::test]
    async fn blocks_that_are_missing_or_differ_from_l1_give_no_segment() {
        let world = World::recorded().await;
        world.fork_l2(15);
        world.node.node().truncate(34);
        let (mut ahead, commits, given) = (ahead(&world), commits(&world), given(&world).await);
        ahead.top_up(&commits, 1.into(), &given);
        assert!(ahead.take(&commits[0]).await.unwrap().segment.is_some());
        assert!(ahead.take(&commits[1]).await.unwrap().segment.is_none(), "block 15 is another one");
        assert!(ahead.take(&commits[2]).await.unwrap().segment.is_none(), "blocks 35 and 36 are missing");
        assert!(ahead.take(&commits[3]).await.is_none(), "nothing above a missing batch is looked at");
    }

    #[tokio::test]
    async fn a_batch_that_must_wait_costs_no_request_for_those_above_it() {
        let world = World::recorded().await;
        world.node.node().truncate(3);
        let (mut ahead, commits, given) = (ahead(&world), commits(&world), given(&world).await);
        ahead.top_up(&commits, 1.into(), &given);
        assert!(ahead.take(&commits[0]).await.unwrap().segment.is_none());
        ahead.settle().await;
        assert_eq!(world.l1.now().transactions_asked, 1);
    }

    struct Counted(Arc<dyn crate::ports::BlobSource>, AtomicUsize);

    #[async_trait]
    impl crate::ports::BlobSource for Counted {
        async fn blobs(&self, header: &L1Header, versioned_hashes: &[B256]) -> PortResult<Vec<Blob>> {
            self.1.fetch_add(1, Ordering::SeqCst);
            self.0.blobs(header, versioned_hashes).await
        }
    }

    #[tokio::test]
    async fn the_blobs_of_all_batches_that_are_written_are_fetched_before_the_first_write() {
        let mut world = World::recorded().await;
        let blobs = Arc::new(Counted(world.ports.blobs.clone(), AtomicUsize::new(0)));
        world.ports.blobs = blobs.clone();
        world.node.node().truncate(0);
        let (mut ahead, commits) = (ahead(&world), commits(&world));
        let given = Given { writes: true, ..given(&world).await };
        ahead.top_up(&commits, 1.into(), &given);
        assert!(ahead.take(&commits[0]).await.unwrap().segment.is_none());
        ahead.settle().await;
        assert_eq!(blobs.1.load(Ordering::SeqCst), 6);
    }

    struct Hanging;

    #[async_trait]
    impl crate::ports::BlobSource for Hanging {
        async fn blobs(&self, _: &L1Header, _: &[B256]) -> PortResult<Vec<Blob>> {
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn p4_a_write_waits_a_limited_time_for_blobs_that_do_not_come() {
        let mut world = World::recorded().await;
        world.ports.blobs = Arc::new(Hanging);
        world.node.node().truncate(0);
        let (mut ahead, commits) = (ahead(&world), commits(&world));
        let given = Given { writes: true, ..given(&world).await };
        ahead.top_up(&commits, 1.into(), &given);
        let settled = tokio::time::timeout(SETTLE, ahead.settle_within(Duration::from_millis(50))).await;
        assert!(settled.is_ok());
        assert_eq!(ahead.tasks.len(), 6, "what comes later still counts");
    }

    #[tokio::test]
    async fn a_task_whose_range_is_not_read_ahead_any_more_is_dropped_and_the_others_stay() {
        let world = World::recorded().await;
        let (mut ahead, commits, given) = (ahead(&world), commits(&world), given(&world).await);
        ahead.top_up(&commits, 1.into(), &given);
        ahead.top_up(&commits[..3], 1.into(), &given);
        assert_eq!(ahead.tasks.len(), 3);
        for commit in &commits[..3] {
            assert!(ahead.take(commit).await.unwrap().segment.is_some(), "{}", commit.index);
        }
        ahead.top_up(&commits[3..], 37.into(), &given);
        assert!(ahead.take(&commits[3]).await.unwrap().segment.is_some());
    }

    #[tokio::test]
    async fn tasks_of_other_commits_are_dropped_and_no_more_run_than_allowed() {
        let mut world = World::recorded().await;
        world.settings.read_ahead = 4;
        let (mut ahead, commits, given) = (ahead(&world), commits(&world), given(&world).await);
        ahead.top_up(&commits, 1.into(), &given);
        assert_eq!(ahead.tasks.len(), 4);
        ahead.top_up(&commits[2..], 25.into(), &given);
        let first = ahead.tasks.front().unwrap();
        assert_eq!((first.commit, ahead.tasks.len()), (commits[2], 4));
        world.settings.read_ahead = 0;
        let mut none = self::ahead(&world);
        none.top_up(&commits, 1.into(), &given);
        assert!(none.tasks.is_empty());
    }

    #[tokio::test]
    async fn m16_what_comes_after_a_batch_that_stands_is_asked_for_once() {
        let world = World::recorded().await;
        let (mut ahead, commits, given) = (ahead(&world), commits(&world), given(&world).await);
        for _ in 0..3 {
            assert!(ahead.take(&commits[0]).await.is_none(), "it has its turn, and stands");
            ahead.top_up(&commits[1..], 13.into(), &given);
            ahead.settle().await;
        }
        assert_eq!(world.l1.now().transactions_asked, 5);
        assert!(ahead.take(&commits[1]).await.unwrap().segment.is_some());
    }
}
