//! The guard that pauses the consensus node's reactors while blocks are written (P5).
//!
//! Acquiring stores a lease in the database, pauses, and gives the guard. A pause ends exactly once, by whatever comes
//! first: [`Quiesced::release`], which reports a failure; dropping the guard (panic, cancellation, early return); or its
//! deadline, for a flow that hangs elsewhere. Each of them only starts the one task that resumes, tries again until that
//! works, and then drops the lease; shutdown waits for the task. What was given up in the middle may still happen: behind
//! a write that was cut off the task waits until the head stands still, and behind a pause that was cut off it resumes
//! once more before the lease goes. A lease found at start means that a crash left the
//! reactors paused: [`Quiesce::settle`] resumes first, before anything else.
//!
//! Why not resume in `Drop` itself: resuming is a network call or a process, and a destructor cannot await. Why not in
//! `release` either: a future that is dropped in the middle of a resume could not tell whether to resume once more.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::error::{PortError, PortErrorKind, Target};
use crate::flow::{kill_point, unix_now};
use crate::ports::{L2Reader, PortResult, Progress, Reactors};
use crate::types::{L2Number, L2Ref, Lease};

/// First wait before a failed resume is tried again; doubled up to [`RESUME_RETRY_CAP`].
const RESUME_RETRY: Duration = Duration::from_millis(500);
/// Longest wait between two tries: an operator who repairs the reactors sees them back within it.
const RESUME_RETRY_CAP: Duration = Duration::from_secs(15);
/// How long a head that moves behind a write that was cut off is waited for.
const HEAD_SETTLES: Duration = Duration::from_secs(5);
/// How long the head is asked for before the last known height is used instead.
const HEAD_DEADLINE: Duration = Duration::from_secs(3);

/// What every guard of a worker shares.
#[derive(Clone)]
pub struct Quiesce {
    shared: Arc<Shared>,
}

struct Shared {
    reactors: Arc<dyn Reactors>,
    progress: Arc<dyn Progress>,
    l2: Arc<dyn L2Reader>,
    tasks: TaskTracker,
    stopping: CancellationToken,
    /// [`RESUME_RETRY`], but in tests.
    retry: Duration,
    /// A pause is open, or its resume or the end of its lease is still being tried.
    busy: AtomicBool,
    degraded: AtomicBool,
    pauses: AtomicU64,
}

/// One pause, from its lease to its resume.
struct Pause {
    /// Where to resume from should the node not answer then.
    height: AtomicU64,
    began: Instant,
    /// None while the reactors are being paused: that time is the reactors' own limit, not the budget's.
    deadline: OnceLock<Instant>,
    ended: AtomicBool,
    /// The pause was begun, and whether it is over nobody can tell.
    pausing: AtomicBool,
    /// The same of a write.
    writing: AtomicBool,
}

impl Quiesce {
    /// Nothing paused yet.
    pub fn new(reactors: Arc<dyn Reactors>, progress: Arc<dyn Progress>, l2: Arc<dyn L2Reader>) -> Self {
        Self::retrying(reactors, progress, l2, RESUME_RETRY)
    }

    fn retrying(
        reactors: Arc<dyn Reactors>,
        progress: Arc<dyn Progress>,
        l2: Arc<dyn L2Reader>,
        retry: Duration,
    ) -> Self {
        let shared = Shared {
            reactors,
            progress,
            l2,
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            retry,
            busy: AtomicBool::new(false),
            degraded: AtomicBool::new(false),
            pauses: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Whether a resume failed and is being tried again.
    pub fn is_degraded(&self) -> bool {
        self.shared.degraded.load(Ordering::SeqCst)
    }

    /// Pauses so far.
    pub fn pauses(&self) -> u64 {
        self.shared.pauses.load(Ordering::SeqCst)
    }

    /// Resumes what a crash left paused. Must be called before anything else is done.
    ///
    /// # Errors
    /// When the database cannot be read. A resume that fails goes on being tried in the background.
    pub async fn settle(&self) -> PortResult<()> {
        let Some(lease) = self.shared.progress.load().await?.lease else { return Ok(()) };
        warn!(height = lease.height.get(), "a crash left the reactors paused; resuming them first");
        self.shared.busy.store(true, Ordering::SeqCst);
        let first_try = self.shared.end(&Pause::new(lease.height));
        // A failure shows as degraded and is tried again; starting goes on.
        let _ = told(first_try).await;
        Ok(())
    }

    /// Stores the lease, pauses, and gives the guard. `height` is the local head, read before; `budget` the time that
    /// the pause may last once everything is paused. A half-done pause is undone.
    ///
    /// # Errors
    /// When a pause is still open or being resumed, the lease cannot be stored, or the reactors cannot be paused.
    pub async fn acquire(&self, height: L2Number, budget: Duration) -> PortResult<Quiesced> {
        if self.shared.busy.swap(true, Ordering::SeqCst) {
            let detail = "an earlier pause has not been resumed yet";
            return Err(PortError::new(Target::Reactors, PortErrorKind::Unreachable, detail));
        }
        // From here on a dropped future must undo what it began, so the guard exists before the first await.
        let mut guard = Quiesced { shared: self.shared.clone(), pause: Pause::new(height), watchdog: None };
        kill_point("lease: before");
        if let Err(error) = self.shared.progress.set_lease(Some(Lease { height, since: unix_now() })).await {
            guard.forget();
            return Err(error);
        }
        kill_point("lease: stored");
        guard.pause.pausing.store(true, Ordering::SeqCst);
        let paused = self.shared.reactors.pause(height).await;
        let cut_off = paused.as_ref().is_err_and(|error| error.kind == PortErrorKind::Timeout);
        guard.pause.pausing.store(cut_off, Ordering::SeqCst);
        kill_point("reactors: paused");
        self.shared.pauses.fetch_add(1, Ordering::SeqCst);
        if let Err(error) = paused {
            warn!(%error, "pausing the reactors failed; undoing what was paused");
            // The undo's own failure is tried again in the background and alarmed there; this error is the first cause.
            let _ = guard.release().await;
            return Err(error);
        }
        guard.watch(budget);
        info!(height = height.get(), "reactors paused");
        Ok(guard)
    }

    /// Waits for resumes under way, at most `patience`. What is left then keeps its lease in the database and is
    /// resumed by the next start.
    pub async fn shutdown(&self, patience: Duration) {
        self.shared.tasks.close();
        self.shared.stopping.cancel();
        if tokio::time::timeout(patience, self.shared.tasks.wait()).await.is_err() {
            error!(
                "the reactors could not be resumed before shutdown; the lease stays stored and the next start resumes them first"
            );
        }
    }
}

impl Pause {
    fn new(height: L2Number) -> Arc<Self> {
        Arc::new(Self {
            height: AtomicU64::new(height.get()),
            began: Instant::now(),
            deadline: OnceLock::new(),
            ended: AtomicBool::new(false),
            pausing: AtomicBool::new(false),
            writing: AtomicBool::new(false),
        })
    }
}

type FirstTry = oneshot::Receiver<PortResult<()>>;

/// What the first try to resume came to. A task that the runtime took away has left its lease in the database.
async fn told(first_try: Option<FirstTry>) -> PortResult<()> {
    let Some(first_try) = first_try else { return Ok(()) };
    let gone = || PortError::new(Target::Reactors, PortErrorKind::Unreachable, "the resume was cut off");
    first_try.await.unwrap_or_else(|_| Err(gone()))
}

impl Shared {
    /// Ends `pause`, if nobody did before: starts the task that resumes.
    fn end(self: &Arc<Self>, pause: &Arc<Pause>) -> Option<FirstTry> {
        if pause.ended.swap(true, Ordering::SeqCst) {
            return None;
        }
        // Outside a runtime nothing can be awaited: the lease in the database makes the next start resume.
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        let (tell, first_try) = oneshot::channel();
        let (shared, pause) = (self.clone(), pause.clone());
        self.tasks.spawn_on(async move { shared.resume(&pause, tell).await }, &runtime);
        Some(first_try)
    }

    /// Resumes until it works, then drops the lease until that works. The order matters: a crash in between resumes
    /// once more, never too few. Two loops, because a database that fails is no reason to resume again.
    async fn resume(&self, pause: &Pause, tell: oneshot::Sender<PortResult<()>>) {
        let mut tell = Some(tell);
        self.resume_until_it_works(pause, &mut tell).await;
        let lateness = self.reactors.lateness();
        if pause.pausing.load(Ordering::SeqCst) && !lateness.is_zero() {
            warn!("a pause that was cut off may still happen; resuming the reactors once more behind it");
            first_outcome(&mut tell, Ok(()));
            if self.stopping.run_until_cancelled(tokio::time::sleep(lateness)).await.is_none() {
                warn!("the lease of a pause that was cut off stays stored: the next start resumes once more");
                return;
            }
            self.resume_until_it_works(pause, &mut tell).await;
        }
        let mut wait = self.retry;
        while let Err(error) = self.progress.set_lease(None).await {
            error!(%error, "the lease of a pause that ended cannot be dropped; trying again until it works");
            first_outcome(&mut tell, Err(error));
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RESUME_RETRY_CAP);
        }
        kill_point("lease: dropped");
        self.busy.store(false, Ordering::SeqCst);
        first_outcome(&mut tell, Ok(()));
    }

    async fn resume_until_it_works(&self, pause: &Pause, tell: &mut Option<oneshot::Sender<PortResult<()>>>) {
        let mut wait = self.retry;
        while let Err(error) = self.resume_once(pause).await {
            self.degraded.store(true, Ordering::SeqCst);
            error!(%error, "resuming the reactors failed; trying again until it works");
            first_outcome(tell, Err(error));
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RESUME_RETRY_CAP);
        }
        self.degraded.store(false, Ordering::SeqCst);
    }

    async fn resume_once(&self, pause: &Pause) -> PortResult<()> {
        let known = L2Number::new(pause.height.load(Ordering::SeqCst));
        let head = match pause.writing.load(Ordering::SeqCst) {
            true => self.settled_head().await,
            false => self.head().await,
        };
        if head.is_none() {
            warn!(height = known.get(), "the head cannot be read; resuming from the last height that is known");
        }
        let height = head.map_or(known, |head| head.number);
        kill_point("reactors: before resume");
        self.reactors.resume(height).await?;
        kill_point("reactors: resumed");
        let paused_ms = u64::try_from(pause.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        info!(height = height.get(), paused_ms, "reactors resumed");
        Ok(())
    }

    async fn head(&self) -> Option<L2Ref> {
        let snapshot = tokio::time::timeout(HEAD_DEADLINE, self.l2.snapshot()).await.ok()?.ok()?;
        Some(snapshot.head.l2_ref())
    }

    /// The head behind a write that was cut off: read until two reads agree, so that nothing lands beside the reactors,
    /// but no longer than [`HEAD_SETTLES`].
    async fn settled_head(&self) -> Option<L2Ref> {
        let began = Instant::now();
        let mut seen = self.head().await?;
        while began.elapsed() < HEAD_SETTLES {
            tokio::time::sleep(self.retry).await;
            let now = self.head().await?;
            if now == seen {
                break;
            }
            seen = now;
        }
        Some(seen)
    }
}

fn first_outcome(tell: &mut Option<oneshot::Sender<PortResult<()>>>, outcome: PortResult<()>) {
    if let Some(tell) = tell.take() {
        // Nobody listens where a guard was dropped.
        let _ = tell.send(outcome);
    }
}

/// The reactors are paused for as long as this lives, but not past its deadline.
#[must_use = "the reactors are resumed as soon as this is dropped"]
pub struct Quiesced {
    shared: Arc<Shared>,
    pause: Arc<Pause>,
    watchdog: Option<AbortHandle>,
}

impl Quiesced {
    /// The budget begins: everything is paused.
    fn watch(&mut self, budget: Duration) {
        let deadline = *self.pause.deadline.get_or_init(|| Instant::now() + budget);
        let (for_task, watched) = (self.shared.clone(), self.pause.clone());
        let watchdog = tokio::spawn(async move {
            tokio::time::sleep_until(deadline).await;
            if for_task.end(&watched).is_some() {
                warn!("the pause's budget is used up; resuming the reactors");
            }
        });
        self.watchdog = Some(watchdog.abort_handle());
    }

    /// Time left of the pause's budget. With none left the pause has ended: nothing may be written under it.
    pub fn remaining(&self) -> Duration {
        if self.pause.ended.load(Ordering::SeqCst) {
            return Duration::ZERO;
        }
        self.pause.deadline.get().map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()))
    }

    /// Notes the head after a write: the height to resume from should the node not answer then.
    pub fn wrote(&self, head: L2Number) {
        self.pause.height.store(head.get(), Ordering::SeqCst);
    }

    /// Notes that a write begins, or that it is over: the node answered. A pause that ends in between waits for the head
    /// to stand still.
    pub fn writing(&self, begins: bool) {
        self.pause.writing.store(begins, Ordering::SeqCst);
    }

    /// Resumes the reactors from the execution node's head.
    ///
    /// # Errors
    /// The first failure. The resume is then tried again in the background until it works, and
    /// [`Quiesce::is_degraded`] says so meanwhile.
    pub async fn release(self) -> PortResult<()> {
        told(self.shared.end(&self.pause)).await
    }

    /// Ends a pause that never began.
    fn forget(self) {
        self.pause.ended.store(true, Ordering::SeqCst);
        self.shared.busy.store(false, Ordering::SeqCst);
    }
}

impl Drop for Quiesced {
    fn drop(&mut self) {
        self.watchdog.iter().for_each(AbortHandle::abort);
        let _ = self.shared.end(&self.pause);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Mutex, MutexGuard};

    use async_trait::async_trait;

    use super::*;
    use crate::ports::{MessageRoot, Step, Stored};
    use crate::types::{
        B256, BatchIndex, BatchRecord, Identity, JournalEntry, L1Message, L1Number, L1Ref, L2Block, L2Header, L2Ref,
        L2Snapshot, OpenWrite, QueueIndex, U256,
    };

    /// What happened, in order, across all the fakes.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Event {
        Lease(u64),
        NoLease,
        Pause(u64),
        Resume(u64),
        ResumeFailed,
    }

    /// Reactors, database and node in one, with switches for their faults.
    #[derive(Default)]
    struct Fake {
        events: Mutex<Vec<Event>>,
        lease: Mutex<Option<Lease>>,
        head: AtomicU64,
        /// The head cannot be read.
        blind: AtomicBool,
        /// Pausing fails after it half worked.
        pause_fails: AtomicBool,
        /// Pausing never answers.
        pause_hangs: AtomicBool,
        /// How long pausing takes, and how late one may come that nobody waits for, in milliseconds.
        pause_takes: AtomicU64,
        lateness: AtomicU64,
        /// Blocks that still land, one before each read of the head.
        landing: AtomicU64,
        /// Resumes that fail before one works.
        failing_resumes: AtomicU64,
        /// Resuming never answers.
        resume_hangs: AtomicBool,
        /// The database's next answers; none left means that it works.
        failing_store: Mutex<VecDeque<bool>>,
    }

    fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
        lock.lock().unwrap()
    }

    impl Fake {
        fn note(&self, event: Event) {
            held(&self.events).push(event);
        }

        fn events(&self) -> Vec<Event> {
            held(&self.events).clone()
        }

        fn resumes(&self) -> Vec<u64> {
            self.events().iter().filter_map(|e| if let Event::Resume(at) = e { Some(*at) } else { None }).collect()
        }

        fn lease(&self) -> Option<L2Number> {
            held(&self.lease).map(|l| l.height)
        }
    }

    fn failure() -> PortError {
        PortError::new(Target::Reactors, PortErrorKind::Unreachable, "switched off")
    }

    #[async_trait]
    impl Reactors for Fake {
        async fn pause(&self, height: L2Number) -> PortResult<()> {
            self.note(Event::Pause(height.get()));
            if self.pause_hangs.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_millis(self.pause_takes.load(Ordering::SeqCst))).await;
            if self.pause_fails.load(Ordering::SeqCst) { Err(failure()) } else { Ok(()) }
        }

        async fn resume(&self, height: L2Number) -> PortResult<()> {
            if self.resume_hangs.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            let left = self.failing_resumes.load(Ordering::SeqCst);
            if left > 0 {
                self.failing_resumes.store(left - 1, Ordering::SeqCst);
                self.note(Event::ResumeFailed);
                return Err(failure());
            }
            self.note(Event::Resume(height.get()));
            Ok(())
        }

        fn lateness(&self) -> Duration {
            Duration::from_millis(self.lateness.load(Ordering::SeqCst))
        }
    }

    #[async_trait]
    impl L2Reader for Fake {
        async fn snapshot(&self) -> PortResult<L2Snapshot> {
            if self.blind.load(Ordering::SeqCst) {
                return Err(PortError::new(Target::L2, PortErrorKind::Unreachable, "blind"));
            }
            let left = self.landing.load(Ordering::SeqCst);
            if left > 0 {
                self.landing.store(left - 1, Ordering::SeqCst);
                self.head.fetch_add(1, Ordering::SeqCst);
            }
            let head = L2Header {
                number: self.head.load(Ordering::SeqCst).into(),
                hash: B256::zero(),
                parent_hash: B256::zero(),
                state_root: B256::zero(),
                timestamp: 0,
                base_fee: U256::zero(),
                gas_limit: 0,
            };
            Ok(L2Snapshot { head, safe: None, finalized: None, syncing: false })
        }

        async fn header(&self, _: L2Number) -> PortResult<Option<L2Header>> {
            unreachable!("not asked by the guard")
        }
        async fn blocks(&self, _: L2Number, _: L2Number) -> PortResult<Vec<L2Block>> {
            unreachable!("not asked by the guard")
        }
        async fn message_root(&self, _: L2Ref) -> PortResult<MessageRoot> {
            unreachable!("not asked by the guard")
        }
        async fn last_appended_root(&self, _: L2Number, _: L2Number) -> PortResult<Option<B256>> {
            unreachable!("not asked by the guard")
        }
    }

    #[async_trait]
    impl Progress for Fake {
        async fn load(&self) -> PortResult<Stored> {
            Ok(Stored { lease: *held(&self.lease), ..Stored::default() })
        }

        async fn set_lease(&self, lease: Option<Lease>) -> PortResult<()> {
            if held(&self.failing_store).pop_front() == Some(true) {
                return Err(PortError::new(Target::Store, PortErrorKind::Storage, "disk full"));
            }
            *held(&self.lease) = lease;
            self.note(lease.map_or(Event::NoLease, |l| Event::Lease(l.height.get())));
            Ok(())
        }

        async fn claim(&self, _: &Identity) -> PortResult<()> {
            unreachable!("not asked by the guard")
        }
        async fn apply(&self, _: &Step) -> PortResult<()> {
            unreachable!("not asked by the guard")
        }
        async fn l1_blocks(&self) -> PortResult<Vec<L1Ref>> {
            unreachable!("not asked by the guard")
        }
        async fn batch(&self, _: BatchIndex) -> PortResult<Option<BatchRecord>> {
            unreachable!("not asked by the guard")
        }
        async fn batches_from(&self, _: BatchIndex, _: u32) -> PortResult<Vec<BatchRecord>> {
            unreachable!("not asked by the guard")
        }
        async fn newest_at_or_below(&self, _: L1Number) -> PortResult<Option<BatchRecord>> {
            unreachable!("not asked by the guard")
        }
        async fn reverted_above(&self, _: L1Number) -> PortResult<Option<BatchRecord>> {
            unreachable!("not asked by the guard")
        }
        async fn messages(&self, _: QueueIndex, _: u64) -> PortResult<Vec<L1Message>> {
            unreachable!("not asked by the guard")
        }
        async fn open_writes(&self, _: &[OpenWrite]) -> PortResult<()> {
            unreachable!("not asked by the guard")
        }
        async fn withdraw_writes(&self, _: L2Number) -> PortResult<()> {
            unreachable!("not asked by the guard")
        }
        async fn journal(&self, _: &[JournalEntry]) -> PortResult<()> {
            unreachable!("not asked by the guard")
        }
        async fn journal_tail(&self, _: u32) -> PortResult<Vec<JournalEntry>> {
            unreachable!("not asked by the guard")
        }
        async fn prune(&self, _: L1Number, _: QueueIndex, _: BatchIndex) -> PortResult<()> {
            unreachable!("not asked by the guard")
        }
    }

    const BUDGET: Duration = Duration::from_secs(60);
    const PATIENCE: Duration = Duration::from_secs(2);

    /// A guard's shared half over fakes whose head stands at 100.
    fn world() -> (Arc<Fake>, Quiesce) {
        let fake = Arc::new(Fake::default());
        fake.head.store(100, Ordering::SeqCst);
        let quiesce = Quiesce::retrying(fake.clone(), fake.clone(), fake.clone(), Duration::from_millis(5));
        (fake, quiesce)
    }

    async fn paused(quiesce: &Quiesce) -> Quiesced {
        quiesce.acquire(100.into(), BUDGET).await.unwrap()
    }

    /// The order of everything: the lease outlives the pause on both sides.
    const ONE_PAUSE: [Event; 4] = [Event::Lease(100), Event::Pause(100), Event::Resume(112), Event::NoLease];

    fn wrote(fake: &Fake, guard: &Quiesced, head: u64) {
        fake.head.store(head, Ordering::SeqCst);
        guard.wrote(head.into());
    }

    #[tokio::test]
    async fn p5_a_pause_ends_in_one_resume_from_the_nodes_head() {
        let (fake, quiesce) = world();
        let guard = paused(&quiesce).await;
        assert_eq!(fake.lease(), Some(100.into()));
        wrote(&fake, &guard, 112);
        guard.release().await.unwrap();
        quiesce.shutdown(PATIENCE).await;
        assert_eq!(fake.events(), ONE_PAUSE);
        assert!(!quiesce.is_degraded());
        assert_eq!(quiesce.pauses(), 1);
    }

    #[tokio::test]
    async fn g8_a_head_that_cannot_be_read_is_replaced_by_the_last_one_written() {
        let (fake, quiesce) = world();
        let guard = paused(&quiesce).await;
        wrote(&fake, &guard, 112);
        fake.blind.store(true, Ordering::SeqCst);
        guard.release().await.unwrap();
        assert_eq!(fake.resumes(), [112]);
    }

    #[tokio::test]
    async fn g4_a_panic_under_the_pause_resumes_once() {
        let (fake, quiesce) = world();
        let (in_task, shared) = (fake.clone(), quiesce.clone());
        let task = tokio::spawn(async move {
            let guard = paused(&shared).await;
            wrote(&in_task, &guard, 112);
            panic!("in the middle of a rewrite");
        });
        assert!(task.await.unwrap_err().is_panic());
        quiesce.shutdown(PATIENCE).await;
        assert_eq!(fake.events(), ONE_PAUSE);
    }

    #[tokio::test]
    async fn g4_a_cancelled_future_resumes_once_wherever_it_was() {
        // Under the pause.
        let (fake, quiesce) = world();
        let (in_task, shared) = (fake.clone(), quiesce.clone());
        let task = tokio::spawn(async move {
            let guard = paused(&shared).await;
            wrote(&in_task, &guard, 112);
            std::future::pending::<()>().await;
        });
        while fake.head.load(Ordering::SeqCst) != 112 {
            tokio::task::yield_now().await;
        }
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        quiesce.shutdown(PATIENCE).await;
        assert_eq!(fake.events(), ONE_PAUSE);

        // While the reactors are being paused.
        let (fake, quiesce) = world();
        fake.pause_hangs.store(true, Ordering::SeqCst);
        let acquire = quiesce.acquire(100.into(), BUDGET);
        assert!(tokio::time::timeout(Duration::from_millis(20), acquire).await.is_err());
        quiesce.shutdown(PATIENCE).await;
        assert_eq!(fake.events(), [Event::Lease(100), Event::Pause(100), Event::Resume(100), Event::NoLease]);

        // While they are being resumed: the task that does it goes on, and nobody resumes a second time.
        let (fake, quiesce) = world();
        let guard = paused(&quiesce).await;
        wrote(&fake, &guard, 112);
        let mut release = Box::pin(guard.release());
        assert!(futures::poll!(&mut release).is_pending());
        drop(release);
        quiesce.shutdown(PATIENCE).await;
        assert_eq!(fake.events(), ONE_PAUSE);
    }

    #[tokio::test]
    async fn g4_an_early_return_resumes_once() {
        let (fake, quiesce) = world();
        {
            let guard = paused(&quiesce).await;
            wrote(&fake, &guard, 112);
        }
        quiesce.shutdown(PATIENCE).await;
        assert_eq!(fake.events(), ONE_PAUSE);
    }

    #[test]
    fn g4_a_runtime_that_is_shut_down_leaves_the_lease_and_the_next_start_resumes_once() {
        let (fake, quiesce) = world();
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let first = runtime();
        let (in_task, shared) = (fake.clone(), quiesce.clone());
        first.spawn(async move {
            let guard = paused(&shared).await;
            wrote(&in_task, &guard, 112);
            std::future::pending::<()>().await;
        });
        first.block_on(async {
            while fake.head.load(Ordering::SeqCst) != 112 {
                tokio::task::yield_now().await;
            }
        });
        drop(first);
        assert_eq!(fake.resumes(), [0_u64; 0]);
        assert_eq!(fake.lease(), Some(100.into()));
        let next = Quiesce::retrying(fake.clone(), fake.clone(), fake.clone(), Duration::from_millis(5));
        runtime().block_on(async { next.settle().await.unwrap() });
        assert_eq!(fake.events(), ONE_PAUSE);
    }

    #[tokio::test]
    async fn g1_a_failed_resume_is_tried_until_it_works_and_shows_meanwhile() {
        let (fake, quiesce) = world();
        let guard = paused(&quiesce).await;
        wrote(&fake, &guard, 112);
        fake.failing_resumes.store(3, Ordering::SeqCst);
        assert_eq!(guard.release().await, Err(failure()));
        assert!(quiesce.is_degraded());
        assert!(fake.lease().is_some(), "a crash now must still resume");
        assert!(quiesce.acquire(112.into(), BUDGET).await.is_err(), "no new pause before the old one has ended");
        quiesce.shutdown(PATIENCE).await;
        assert!(!quiesce.is_degraded());
        let failed = Event::ResumeFailed;
        let expected =
            [Event::Lease(100), Event::Pause(100), failed, failed, failed, Event::Resume(112), Event::NoLease];
        assert_eq!(fake.events(), expected);
    }

    #[tokio::test]
    async fn g2_a_half_done_pause_is_undone() {
        let (fake, quiesce) = world();
        fake.pause_fails.store(true, Ordering::SeqCst);
        assert_eq!(quiesce.acquire(100.into(), BUDGET).await.err(), Some(failure()));
        assert_eq!(fake.events(), [Event::Lease(100), Event::Pause(100), Event::Resume(100), Event::NoLease]);
        fake.pause_fails.store(false, Ordering::SeqCst);
        paused(&quiesce).await.release().await.unwrap();
    }

    #[tokio::test]
    async fn g3_a_pause_slower_than_its_budget_ends_paused_and_not_resumed_under_way() {
        let (fake, quiesce) = world();
        fake.pause_takes.store(60, Ordering::SeqCst);
        let guard = quiesce.acquire(100.into(), Duration::from_millis(30)).await.unwrap();
        assert!(guard.remaining() > Duration::ZERO);
        assert_eq!(fake.events(), [Event::Lease(100), Event::Pause(100)]);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(fake.resumes(), [100]);
        assert_eq!(fake.lease(), None);
        drop(guard);
    }

    #[tokio::test]
    async fn g3_g4_behind_a_pause_that_was_cut_off_the_reactors_are_resumed_once_more() {
        let (fake, quiesce) = world();
        fake.pause_hangs.store(true, Ordering::SeqCst);
        fake.lateness.store(40, Ordering::SeqCst);
        let acquire = quiesce.acquire(100.into(), BUDGET);
        assert!(tokio::time::timeout(Duration::from_millis(5), acquire).await.is_err());
        while fake.resumes().is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(fake.lease().is_some(), "a crash now must still resume");
        while fake.lease().is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let expected = [Event::Lease(100), Event::Pause(100), Event::Resume(100), Event::Resume(100), Event::NoLease];
        assert_eq!(fake.events(), expected);
    }

    #[tokio::test]
    async fn g3_g5_behind_a_write_that_was_cut_off_the_resume_waits_for_the_head() {
        let (fake, quiesce) = world();
        let guard = paused(&quiesce).await;
        guard.writing(true);
        fake.landing.store(3, Ordering::SeqCst);
        guard.release().await.unwrap();
        assert_eq!(fake.resumes(), [103]);

        let guard = paused(&quiesce).await;
        guard.writing(true);
        guard.writing(false);
        fake.landing.store(3, Ordering::SeqCst);
        guard.release().await.unwrap();
        assert_eq!(fake.resumes(), [103, 104], "an answered write is over");
    }

    #[tokio::test]
    async fn g3_a_pause_ends_at_its_deadline_whatever_the_flow_hangs_on() {
        let (fake, quiesce) = world();
        let guard = quiesce.acquire(100.into(), Duration::from_millis(30)).await.unwrap();
        assert!(guard.remaining() > Duration::ZERO);
        wrote(&fake, &guard, 112);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(guard.remaining(), Duration::ZERO);
        assert_eq!(fake.events(), ONE_PAUSE);
        guard.release().await.unwrap();
        quiesce.shutdown(PATIENCE).await;
        assert_eq!(fake.resumes(), [112], "the release behind the deadline does not resume again");
        paused(&quiesce).await.release().await.unwrap();
    }

    #[tokio::test]
    async fn g4_a_lease_found_at_start_is_resumed_before_anything_else() {
        let (fake, quiesce) = world();
        *held(&fake.lease) = Some(Lease { height: 90.into(), since: 0 });
        quiesce.settle().await.unwrap();
        assert_eq!(fake.events(), [Event::Resume(100), Event::NoLease]);
        quiesce.settle().await.unwrap();
        assert_eq!(fake.resumes(), [100]);

        *held(&fake.lease) = Some(Lease { height: 90.into(), since: 0 });
        fake.blind.store(true, Ordering::SeqCst);
        fake.failing_resumes.store(1, Ordering::SeqCst);
        quiesce.settle().await.unwrap();
        assert!(quiesce.is_degraded(), "starting goes on, alarmed");
        quiesce.shutdown(PATIENCE).await;
        assert_eq!(fake.resumes(), [100, 90]);
        assert_eq!(fake.lease(), None);
    }

    #[tokio::test]
    async fn h2_a_database_that_fails_is_no_reason_to_resume_again_nor_to_pause() {
        let (fake, quiesce) = world();
        held(&fake.failing_store).extend([true]);
        assert!(quiesce.acquire(100.into(), BUDGET).await.is_err());
        quiesce.shutdown(PATIENCE).await;
        assert_eq!(fake.events(), [], "no pause without a lease");

        let guard = paused(&quiesce).await;
        wrote(&fake, &guard, 112);
        held(&fake.failing_store).extend([true, true]);
        assert!(guard.release().await.is_err());
        quiesce.shutdown(PATIENCE).await;
        assert_eq!(fake.events(), ONE_PAUSE);
        assert!(!quiesce.is_degraded());
    }

    #[tokio::test]
    async fn g6_shutdown_waits_for_a_hanging_resume_no_longer_than_it_may() {
        let (fake, quiesce) = world();
        let guard = paused(&quiesce).await;
        fake.resume_hangs.store(true, Ordering::SeqCst);
        drop(guard);
        let began = Instant::now();
        quiesce.shutdown(Duration::from_millis(50)).await;
        assert!(began.elapsed() < Duration::from_secs(1));
        assert_eq!(fake.lease(), Some(100.into()), "the next start resumes");
    }
}
