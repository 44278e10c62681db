//! The guard that pauses the consensus node's reactors while blocks are written (P5).
//!
//! Acquiring stores a lease in the database (if the reactors can be resumed), pauses, and gives the guard. A pause ends
//! exactly once, by the first of these: [`Quiesced::release`], which reports a failure; dropping the guard (panic,
//! cancellation, early return); or its deadline, for a flow that hangs elsewhere. Each of them only starts one task.
//! The task resumes, tries again until that works, and then drops the lease; shutdown waits for the task. A call that
//! was given up may still take effect. After an interrupted write the task waits until the head stops moving. After a
//! pause that was not answered it resumes once more. After a resume that was not answered it waits until that can land
//! no more (`decide/aftermath.rs`). Until then the lease stays and no new pause begins.
//!
//! A lease found at start was left by a process that ended inside a pause. Which calls it had under way is not known:
//! [`Quiesce::recover_lease`] assumes that all of them are. Meanwhile verifying continues and writing waits. Without
//! reactors that could be resumed (`--observe`, `reactors.kind = "none"`) such a lease stays stored.
//!
//! Why not resume in `Drop` itself? Resuming is a network call or a process, and a destructor cannot await. Why not in
//! `release` either? A future that is dropped in the middle of a resume could not know whether to resume once more.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::decide::aftermath::{Aftermath, Next};
use crate::error::{PortError, PortErrorKind, Target};
use crate::flow::unix_now;
use crate::ports::{HeadReader, LeaseStore, PortResult, Reactors};
use crate::types::{L2Number, L2Ref, Lease};

/// First wait before a failed resume is tried again; doubled up to [`RESUME_RETRY_CAP`].
const RESUME_RETRY: Duration = Duration::from_millis(500);
/// Longest wait between two tries: repaired reactors are resumed within it.
const RESUME_RETRY_CAP: Duration = Duration::from_secs(15);
/// Longest wait, in times of `head_still`, for a head that keeps moving after an interrupted write, or cannot be read:
/// ten times what a request of 100 blocks takes. If a head moves for longer, it is not a write of ours that moves it,
/// and then the reactors are not paused.
const HEAD_MOVES: u32 = 10;
/// How long the task asks for the head before the last known height is used instead.
const HEAD_DEADLINE: Duration = Duration::from_secs(3);
/// The log code of a start that found a pause which it cannot resume.
const LEFT_OVER: &str = "pause_left_over";
/// How long a start waits for the first resume of a pause that another process left.
const START_PATIENCE: Duration = Duration::from_secs(15);

/// Why no pause was begun.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPause {
    /// The reactors were not asked: an earlier pause is not over yet, or the lease cannot be stored.
    #[error(transparent)]
    NotAsked(PortError),
    /// The reactors were asked and did not confirm that all of them are paused. Those that were are resumed.
    #[error(transparent)]
    Failed(PortError),
}

/// What every guard of a worker shares.
#[derive(Clone)]
pub struct Quiesce {
    shared: Arc<Shared>,
}

struct Shared {
    reactors: Arc<dyn Reactors>,
    leases: Arc<dyn LeaseStore>,
    head: Arc<dyn HeadReader>,
    tasks: TaskTracker,
    stopping: CancellationToken,
    /// [`RESUME_RETRY`], except in tests.
    retry: Duration,
    /// How long the head must not have moved after an interrupted write.
    head_still: Duration,
    /// The origin of the times that [`Aftermath`] is given.
    origin: Instant,
    /// A pause is open, or its resume or the end of its lease is still being tried.
    busy: AtomicBool,
    degraded: AtomicBool,
    /// A pause that another process left is stored, and there are no reactors to resume.
    left_over: AtomicBool,
    pauses: AtomicU64,
}

/// One pause, from its lease to its resume.
struct Pause {
    /// The height to resume from if the node does not answer then.
    height: AtomicU64,
    began: Instant,
    /// None while the reactors are being paused: the reactors' own limit bounds that time, not the budget.
    deadline: OnceLock<Instant>,
    ended: AtomicBool,
    /// The pause was begun, and was not answered.
    pausing: AtomicBool,
    /// A write was begun, and was not answered.
    writing: AtomicBool,
    /// A resume that another process began may still land.
    resuming: AtomicBool,
}

impl Quiesce {
    /// Nothing paused yet. After an interrupted write the reactors are resumed only once the head has not moved for
    /// `head_still`.
    pub fn new(
        reactors: Arc<dyn Reactors>,
        leases: Arc<dyn LeaseStore>,
        head: Arc<dyn HeadReader>,
        head_still: Duration,
    ) -> Self {
        Self::retrying(reactors, leases, head, head_still, RESUME_RETRY)
    }

    fn retrying(
        reactors: Arc<dyn Reactors>,
        leases: Arc<dyn LeaseStore>,
        head: Arc<dyn HeadReader>,
        head_still: Duration,
        retry: Duration,
    ) -> Self {
        let shared = Shared {
            reactors,
            leases,
            head,
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            retry,
            head_still,
            origin: Instant::now(),
            busy: AtomicBool::new(false),
            degraded: AtomicBool::new(false),
            left_over: AtomicBool::new(false),
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

    /// Whether a pause that another process left is stored, and there are no reactors here to resume.
    pub fn has_left_over(&self) -> bool {
        self.shared.left_over.load(Ordering::SeqCst)
    }

    /// Resumes what another process left paused. Must be called before anything else is done. Until that pause is over,
    /// none begins.
    ///
    /// # Errors
    /// When the database cannot be read. A failed resume is tried again in the background.
    pub async fn recover_lease(&self) -> PortResult<()> {
        let Some(lease) = self.shared.leases.lease().await? else { return Ok(()) };
        if !self.shared.reactors.can_resume() {
            self.shared.left_over.store(true, Ordering::SeqCst);
            error!(
                code = LEFT_OVER,
                height = lease.height.get(),
                since = lease.since,
                "an earlier run left the reactors paused and this one has none to resume; the pause stays stored until \
                 a run with [reactors] resumes it, or --reactors.forget-pause drops it"
            );
            return Ok(());
        }
        warn!(
            code = "lease_found",
            height = lease.height.get(),
            "an earlier run left the reactors paused; resuming them first"
        );
        self.shared.busy.store(true, Ordering::SeqCst);
        let first_try = self.shared.end(&Pause::found(lease.height));
        // A failure shows as degraded and is tried again; the start continues.
        if tokio::time::timeout(START_PATIENCE, told(first_try)).await.is_err() {
            warn!(code = "reactors_degraded", "the reactors are not resumed yet; no block is written until they are");
        }
        Ok(())
    }

    /// Waits, at most `patience`, until a pause that is being ended is over.
    pub async fn idle(&self, patience: Duration) {
        let until = Instant::now() + patience;
        while self.shared.busy.load(Ordering::SeqCst) && Instant::now() < until {
            tokio::time::sleep(self.shared.retry).await;
        }
    }

    /// Stores the lease, pauses, and gives the guard. `height` is the local head, read before; `budget` the time that
    /// the pause may last once everything is paused. A half-done pause is undone.
    ///
    /// # Errors
    /// When a pause is still open or being resumed, the lease cannot be stored, or the reactors cannot be paused.
    pub async fn acquire(&self, height: L2Number, budget: Duration) -> Result<Quiesced, NoPause> {
        if self.shared.busy.swap(true, Ordering::SeqCst) {
            let detail = "an earlier pause has not been resumed yet";
            return Err(NoPause::NotAsked(PortError::new(Target::Reactors, PortErrorKind::Unreachable, detail)));
        }
        // From here on a dropped future must undo what it began, so the guard exists before the first await.
        let mut guard = Quiesced { shared: self.shared.clone(), pause: Pause::new(height), watchdog: None };
        if self.shared.reactors.can_resume()
            && let Err(error) = self.shared.leases.set_lease(Some(Lease { height, since: unix_now() })).await
        {
            guard.forget();
            return Err(NoPause::NotAsked(error));
        }
        guard.pause.pausing.store(true, Ordering::SeqCst);
        let paused = self.shared.reactors.pause(height).await;
        let unanswered = paused.as_ref().is_err_and(|error| !self.shared.reactors.is_refusal(error));
        guard.pause.pausing.store(unanswered, Ordering::SeqCst);
        self.shared.pauses.fetch_add(1, Ordering::SeqCst);
        if let Err(error) = paused {
            warn!(code = "pause_failed", %error, "cannot pause the reactors; resuming those that were paused");
            // The undo's own failure is tried again in the background and alarmed there; this error is the first cause.
            let _ = guard.release().await;
            return Err(NoPause::Failed(error));
        }
        guard.watch(budget);
        info!(height = height.get(), "reactors paused");
        Ok(guard)
    }

    /// Waits for resumes under way, at most `patience`. A pause that is left then keeps its lease in the database, and
    /// the next start resumes it.
    pub async fn shutdown(&self, patience: Duration) {
        self.shared.tasks.close();
        self.shared.stopping.cancel();
        if tokio::time::timeout(patience, self.shared.tasks.wait()).await.is_err() {
            error!(
                code = "pause_unsettled",
                "the reactors could not be resumed before shutdown; the lease stays stored and the next start resumes them first"
            );
        }
    }
}

impl Pause {
    fn new(height: L2Number) -> Arc<Self> {
        Self::with(height, false)
    }

    /// A pause of another process: which of its calls are under way is not known.
    fn found(height: L2Number) -> Arc<Self> {
        Self::with(height, true)
    }

    fn with(height: L2Number, under_way: bool) -> Arc<Self> {
        Arc::new(Self {
            height: AtomicU64::new(height.get()),
            began: Instant::now(),
            deadline: OnceLock::new(),
            ended: AtomicBool::new(false),
            pausing: AtomicBool::new(under_way),
            writing: AtomicBool::new(under_way),
            resuming: AtomicBool::new(under_way),
        })
    }
}

type FirstTry = oneshot::Receiver<PortResult<()>>;

/// How the first try to resume ended. A task that the runtime dropped has left its lease in the database.
async fn told(first_try: Option<FirstTry>) -> PortResult<()> {
    let Some(first_try) = first_try else { return Ok(()) };
    let gone = || PortError::new(Target::Reactors, PortErrorKind::Unreachable, "the resume was cut off");
    first_try.await.unwrap_or_else(|_| Err(gone()))
}

impl Shared {
    /// Ends `pause`, unless it was ended before: starts the task that resumes.
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

    /// Resumes until the pause is over, then drops the lease until that works. The order matters: after a crash in
    /// between there is one resume too many, never one too few. There are two loops, because a failing database is no
    /// reason to resume again.
    async fn resume(&self, pause: &Pause, tell: oneshot::Sender<PortResult<()>>) {
        let mut tell = Some(tell);
        if !self.resume_until_over(pause, &mut tell).await {
            warn!(
                code = "pause_unsettled",
                "a call to the reactors may still take effect; the lease stays stored and the next start resumes once more"
            );
            return;
        }
        let mut wait = self.retry;
        while self.reactors.can_resume()
            && let Err(error) = self.leases.set_lease(None).await
        {
            error!(code = "lease_stuck", %error, "cannot delete the lease of a pause that ended; trying until it works");
            first_outcome(&mut tell, Err(error));
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RESUME_RETRY_CAP);
        }
        self.busy.store(false, Ordering::SeqCst);
        first_outcome(&mut tell, Ok(()));
    }

    /// Resumes as often as [`Aftermath`] asks for it. False if the program stops before the pause is over.
    async fn resume_until_over(&self, pause: &Pause, tell: &mut Option<oneshot::Sender<PortResult<()>>>) -> bool {
        let lateness = self.reactors.lateness();
        let mut aftermath = Aftermath::default();
        if !lateness.is_zero() && pause.pausing.load(Ordering::SeqCst) {
            aftermath.pause_unanswered(self.now().saturating_add(lateness));
        }
        if !lateness.is_zero() && pause.resuming.load(Ordering::SeqCst) {
            aftermath.resume_unanswered(self.now().saturating_add(lateness));
        }
        let mut wait = self.retry;
        loop {
            match aftermath.next(self.now()) {
                Next::Over => return true,
                Next::WaitUntil(at) => {
                    first_outcome(tell, Ok(()));
                    info!(
                        seconds = at.saturating_sub(self.now()).as_secs(),
                        "reactors resumed; a call that was not answered may still take effect, which is waited for"
                    );
                    let passed = tokio::time::sleep_until(self.origin + at);
                    if self.stopping.run_until_cancelled(passed).await.is_none() {
                        return false;
                    }
                }
                Next::Resume => match self.resume_once(pause).await {
                    Ok(began) => {
                        aftermath.resumed(began);
                        self.degraded.store(false, Ordering::SeqCst);
                        wait = self.retry;
                    }
                    Err(error) => {
                        if !self.reactors.is_refusal(&error) && !lateness.is_zero() {
                            aftermath.resume_unanswered(self.now().saturating_add(lateness));
                        }
                        self.degraded.store(true, Ordering::SeqCst);
                        error!(code = "reactors_degraded", %error, "cannot resume the reactors; trying until it works");
                        first_outcome(tell, Err(error));
                        tokio::time::sleep(wait).await;
                        wait = (wait * 2).min(RESUME_RETRY_CAP);
                    }
                },
            }
        }
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// Resumes from the head. Gives when the call began.
    async fn resume_once(&self, pause: &Pause) -> PortResult<Duration> {
        let known = L2Number::new(pause.height.load(Ordering::SeqCst));
        let head = match pause.writing.load(Ordering::SeqCst) {
            true => self.stable_head(known).await,
            false => self.head().await,
        };
        pause.writing.store(false, Ordering::SeqCst);
        if head.is_none() {
            warn!(
                code = "head_unknown",
                height = known.get(),
                "cannot read the head; resuming from the last known height"
            );
        }
        let height = head.map_or(known, |head| head.number);
        let began = self.now();
        self.reactors.resume(height).await?;
        let paused_ms = u64::try_from(pause.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        info!(height = height.get(), paused_ms, "reactors resumed");
        Ok(began)
    }

    async fn head(&self) -> Option<L2Ref> {
        tokio::time::timeout(HEAD_DEADLINE, self.head.head()).await.ok()?.ok()
    }

    /// The head after an interrupted write, once it has not moved for `head_still`: a block that lands later would land
    /// while the reactors run. Only time in which it could be read counts: a node that does not answer may still be
    /// writing. None if it was never read.
    async fn stable_head(&self, known: L2Number) -> Option<L2Ref> {
        let began = Instant::now();
        let mut still_since = None;
        let mut seen = None;
        loop {
            let now = self.head().await;
            still_since = match now {
                None => None,
                Some(_) if now == seen => still_since.or_else(|| Some(Instant::now())),
                Some(_) => Some(Instant::now()),
            };
            seen = now.or(seen);
            if still_since.is_some_and(|since| since.elapsed() >= self.head_still) {
                return seen;
            }
            if began.elapsed() >= self.head_still.saturating_mul(HEAD_MOVES) {
                let head = seen.map_or(known, |head| head.number);
                warn!(
                    code = "head_moves",
                    head = head.get(),
                    "the head still moves after an interrupted write; resuming anyway"
                );
                return seen;
            }
            tokio::time::sleep(self.retry.min(self.head_still)).await;
        }
    }
}

fn first_outcome(tell: &mut Option<oneshot::Sender<PortResult<()>>>, outcome: PortResult<()>) {
    if let Some(tell) = tell.take() {
        // Fails if the guard was dropped: then nothing listens.
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
                warn!(code = "pause_budget", "the pause used up its budget; resuming the reactors");
            }
        });
        self.watchdog = Some(watchdog.abort_handle());
    }

    /// Time left of the pause's budget. If none is left, the pause has ended: nothing may be written under it.
    pub fn remaining(&self) -> Duration {
        if self.pause.ended.load(Ordering::SeqCst) {
            return Duration::ZERO;
        }
        self.pause.deadline.get().map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()))
    }

    /// Notes the head after a write: the height to resume from if the node does not answer then.
    pub fn wrote(&self, head: L2Number) {
        self.pause.height.store(head.get(), Ordering::SeqCst);
    }

    /// Notes that a write begins, or that it is over: the node answered. A pause that ends in between waits until the
    /// head stops moving.
    pub fn writing(&self, begins: bool) {
        self.pause.writing.store(begins, Ordering::SeqCst);
    }

    /// Whether a write was begun and not answered: more of it may land.
    pub fn is_writing(&self) -> bool {
        self.pause.writing.load(Ordering::SeqCst)
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
    use crate::types::B256;

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
        /// What the next looks at the head show; none is no answer.
        looks: Mutex<VecDeque<Option<u64>>>,
        /// Pausing fails in this way after it half worked.
        pause_fails: Mutex<Option<PortErrorKind>>,
        /// Pausing never answers.
        pause_hangs: AtomicBool,
        /// How long pausing takes, and how late a pause may land that is no longer waited for, in milliseconds.
        pause_takes: AtomicU64,
        lateness: AtomicU64,
        /// Blocks that still land, one before each read of the head.
        landing: AtomicU64,
        /// Resumes that fail before one works.
        failing_resumes: AtomicU64,
        /// In which way they fail; otherwise they cannot be reached.
        resume_fails: Mutex<Option<PortErrorKind>>,
        /// There is nothing to resume.
        nothing: AtomicBool,
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
        fails(PortErrorKind::Unreachable)
    }

    fn fails(kind: PortErrorKind) -> PortError {
        PortError::new(Target::Reactors, kind, "switched off")
    }

    #[async_trait]
    impl Reactors for Fake {
        async fn pause(&self, height: L2Number) -> PortResult<()> {
            self.note(Event::Pause(height.get()));
            if self.pause_hangs.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_millis(self.pause_takes.load(Ordering::SeqCst))).await;
            held(&self.pause_fails).clone().map_or(Ok(()), |kind| Err(fails(kind)))
        }

        async fn resume(&self, height: L2Number) -> PortResult<()> {
            if self.resume_hangs.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            let left = self.failing_resumes.load(Ordering::SeqCst);
            if left > 0 {
                self.failing_resumes.store(left - 1, Ordering::SeqCst);
                self.note(Event::ResumeFailed);
                return Err(fails(held(&self.resume_fails).clone().unwrap_or(PortErrorKind::Unreachable)));
            }
            self.note(Event::Resume(height.get()));
            Ok(())
        }

        fn lateness(&self) -> Duration {
            Duration::from_millis(self.lateness.load(Ordering::SeqCst))
        }

        fn can_resume(&self) -> bool {
            !self.nothing.load(Ordering::SeqCst)
        }
    }

    #[async_trait]
    impl HeadReader for Fake {
        async fn head(&self) -> PortResult<L2Ref> {
            let look = held(&self.looks).pop_front();
            if look == Some(None) || (look.is_none() && self.blind.load(Ordering::SeqCst)) {
                return Err(PortError::new(Target::L2, PortErrorKind::Unreachable, "blind"));
            }
            let left = self.landing.load(Ordering::SeqCst);
            if left > 0 {
                self.landing.store(left - 1, Ordering::SeqCst);
                self.head.fetch_add(1, Ordering::SeqCst);
            }
            let number = look.flatten().unwrap_or(self.head.load(Ordering::SeqCst)).into();
            Ok(L2Ref { number, hash: B256::zero() })
        }
    }

    #[async_trait]
    impl LeaseStore for Fake {
        async fn lease(&self) -> PortResult<Option<Lease>> {
            Ok(*held(&self.lease))
        }

        async fn set_lease(&self, lease: Option<Lease>) -> PortResult<()> {
            if held(&self.failing_store).pop_front() == Some(true) {
                return Err(PortError::new(Target::Store, PortErrorKind::Storage, "disk full"));
            }
            *held(&self.lease) = lease;
            self.note(lease.map_or(Event::NoLease, |l| Event::Lease(l.height.get())));
            Ok(())
        }
    }

    const BUDGET: Duration = Duration::from_secs(60);
    const PATIENCE: Duration = Duration::from_secs(2);
    /// How long the head must not move, and the wait between two tries.
    const STILL: Duration = Duration::from_millis(20);
    const RETRY: Duration = Duration::from_millis(5);

    fn guard_of(fake: &Arc<Fake>) -> Quiesce {
        Quiesce::retrying(fake.clone(), fake.clone(), fake.clone(), STILL, RETRY)
    }

    /// Waits until `done`. A guard that is broken must fail its test, not hang it.
    async fn until(done: impl Fn() -> bool) {
        let waited = async {
            while !done() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waited).await.expect("waited in vain");
    }

    /// A guard's shared half over fakes whose head stands at 100.
    fn world() -> (Arc<Fake>, Quiesce) {
        let fake = Arc::new(Fake::default());
        fake.head.store(100, Ordering::SeqCst);
        let quiesce = guard_of(&fake);
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
        until(|| fake.head.load(Ordering::SeqCst) == 112).await;
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

        // While they are being resumed: the task that does it continues, and there is no second resume.
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
        first.block_on(until(|| fake.head.load(Ordering::SeqCst) == 112));
        drop(first);
        assert_eq!(fake.resumes(), [0_u64; 0]);
        assert_eq!(fake.lease(), Some(100.into()));
        let next = guard_of(&fake);
        runtime().block_on(async { next.recover_lease().await.unwrap() });
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
        let second = quiesce.acquire(112.into(), BUDGET).await;
        assert!(matches!(second, Err(NoPause::NotAsked(_))), "no new pause before the old one has ended");
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
        *held(&fake.pause_fails) = Some(PortErrorKind::Unreachable);
        assert_eq!(quiesce.acquire(100.into(), BUDGET).await.err(), Some(NoPause::Failed(failure())));
        assert_eq!(fake.events(), [Event::Lease(100), Event::Pause(100), Event::Resume(100), Event::NoLease]);
        *held(&fake.pause_fails) = None;
        paused(&quiesce).await.release().await.unwrap();
    }

    #[tokio::test]
    async fn g3_a_pause_slower_than_its_budget_ends_paused_and_not_resumed_under_way() {
        let (fake, quiesce) = world();
        fake.pause_takes.store(60, Ordering::SeqCst);
        let guard = quiesce.acquire(100.into(), Duration::from_millis(30)).await.unwrap();
        assert!(guard.remaining() > Duration::ZERO);
        assert_eq!(fake.events(), [Event::Lease(100), Event::Pause(100)]);
        until(|| fake.lease().is_none()).await;
        assert_eq!(fake.resumes(), [100]);
        assert_eq!(fake.lease(), None);
        drop(guard);
    }

    #[tokio::test]
    async fn g3_g4_after_a_cancelled_pause_the_reactors_are_resumed_once_more() {
        let (fake, quiesce) = world();
        fake.pause_hangs.store(true, Ordering::SeqCst);
        fake.lateness.store(40, Ordering::SeqCst);
        let acquire = quiesce.acquire(100.into(), BUDGET);
        assert!(tokio::time::timeout(Duration::from_millis(5), acquire).await.is_err());
        until(|| !fake.resumes().is_empty()).await;
        assert!(fake.lease().is_some(), "a crash now must still resume");
        until(|| fake.lease().is_none()).await;
        let expected = [Event::Lease(100), Event::Pause(100), Event::Resume(100), Event::Resume(100), Event::NoLease];
        assert_eq!(fake.events(), expected);
    }

    #[tokio::test]
    async fn g3_g5_after_a_cancelled_write_the_resume_waits_for_the_head() {
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
        until(|| fake.lease().is_none()).await;
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
        quiesce.recover_lease().await.unwrap();
        assert_eq!(fake.events(), [Event::Resume(100), Event::NoLease]);
        quiesce.recover_lease().await.unwrap();
        assert_eq!(fake.resumes(), [100]);

        *held(&fake.lease) = Some(Lease { height: 90.into(), since: 0 });
        fake.blind.store(true, Ordering::SeqCst);
        fake.failing_resumes.store(1, Ordering::SeqCst);
        quiesce.recover_lease().await.unwrap();
        assert!(quiesce.is_degraded(), "starting goes on, alarmed");
        quiesce.shutdown(PATIENCE).await;
        assert_eq!(fake.resumes(), [100, 90]);
        assert_eq!(fake.lease(), None);
    }

    #[tokio::test]
    async fn h2_a_database_that_fails_is_no_reason_to_resume_again_nor_to_pause() {
        let (fake, quiesce) = world();
        held(&fake.failing_store).extend([true]);
        assert!(matches!(quiesce.acquire(100.into(), BUDGET).await, Err(NoPause::NotAsked(_))));
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

    fn left_paused(fake: &Fake) {
        *held(&fake.lease) = Some(Lease { height: 90.into(), since: 0 });
    }

    #[tokio::test]
    async fn m5_a_pause_under_way_when_the_process_ended_is_waited_for_before_the_lease_goes() {
        let (fake, quiesce) = world();
        left_paused(&fake);
        fake.lateness.store(60, Ordering::SeqCst);
        let began = Instant::now();
        quiesce.recover_lease().await.unwrap();
        assert_eq!(fake.events(), [Event::Resume(100)], "the first resume, before the start goes on");
        assert_eq!(fake.lease(), Some(90.into()), "a crash now must still resume");
        assert!(quiesce.acquire(100.into(), BUDGET).await.is_err(), "no pause that a late call would end");
        assert!(!quiesce.is_degraded());
        until(|| fake.lease().is_none()).await;
        assert!(began.elapsed() >= Duration::from_millis(60));
        assert_eq!(fake.events(), [Event::Resume(100), Event::Resume(100), Event::NoLease]);
        paused(&quiesce).await.release().await.unwrap();
    }

    #[tokio::test]
    async fn m5_stopped_before_that_it_keeps_the_lease_for_the_next_start() {
        let (fake, quiesce) = world();
        left_paused(&fake);
        fake.lateness.store(60_000, Ordering::SeqCst);
        quiesce.recover_lease().await.unwrap();
        quiesce.shutdown(PATIENCE).await;
        assert_eq!(fake.events(), [Event::Resume(100)]);
        assert_eq!(fake.lease(), Some(90.into()));
    }

    #[tokio::test]
    async fn m6_a_write_under_way_when_the_process_ended_is_waited_for_before_the_resume() {
        let (fake, quiesce) = world();
        left_paused(&fake);
        fake.landing.store(4, Ordering::SeqCst);
        quiesce.recover_lease().await.unwrap();
        assert_eq!(fake.resumes(), [104], "the head that stands still, not one on the way there");
    }

    #[tokio::test]
    async fn m6_the_head_must_stand_still_for_as_long_as_a_block_may_take_and_not_for_two_looks() {
        let fake = Arc::new(Fake::default());
        fake.head.store(100, Ordering::SeqCst);
        let still = Duration::from_millis(60);
        let quiesce = Quiesce::retrying(fake.clone(), fake.clone(), fake.clone(), still, RETRY);
        left_paused(&fake);
        let late = fake.clone();
        tokio::spawn(async move {
            tokio::time::sleep(still / 2).await;
            late.head.store(101, Ordering::SeqCst);
        });
        quiesce.recover_lease().await.unwrap();
        assert_eq!(fake.resumes(), [101], "many looks in a row had shown 100 before");
    }

    #[tokio::test]
    async fn m6_a_head_that_never_stops_delays_the_resume_only_so_long() {
        let (fake, quiesce) = world();
        left_paused(&fake);
        fake.landing.store(u64::MAX, Ordering::SeqCst);
        quiesce.recover_lease().await.unwrap();
        assert_eq!(fake.resumes().len(), 1);
    }

    #[tokio::test]
    async fn m6_time_in_which_the_head_cannot_be_read_is_not_time_in_which_it_stood_still() {
        const AWAY: [Option<u64>; 10] = [None; 10];
        // The node is away from the start; and it answers, is away for a while, and answers again: what it did
        // meanwhile is not known.
        let table = [
            ([AWAY.as_slice(), &[Some(101), Some(102), Some(103)]].concat(), 103),
            ([[Some(100)].as_slice(), &AWAY, &[Some(100), Some(101)]].concat(), 101),
        ];
        for (looks, landed) in table {
            let (fake, quiesce) = world();
            let guard = paused(&quiesce).await;
            guard.writing(true);
            *held(&fake.looks) = looks.into();
            fake.head.store(landed, Ordering::SeqCst);
            let began = Instant::now();
            guard.release().await.unwrap();
            assert!(began.elapsed() > RETRY * 10 + STILL);
            assert_eq!(fake.resumes(), [landed], "the head at which it stood still under our eyes");
        }
    }

    #[tokio::test]
    async fn m6_g8_a_node_that_answers_no_more_holds_the_resume_no_longer_than_a_moving_head() {
        let (fake, quiesce) = world();
        let guard = paused(&quiesce).await;
        guard.writing(true);
        *held(&fake.looks) = [Some(101), Some(102), Some(103)].into();
        fake.blind.store(true, Ordering::SeqCst);
        let began = Instant::now();
        guard.release().await.unwrap();
        assert!(began.elapsed() >= STILL * HEAD_MOVES);
        assert_eq!(fake.resumes(), [103], "the last head that was seen, not the one from before");
    }

    #[tokio::test]
    async fn m12_a_pause_that_was_not_refused_may_still_happen_and_is_resumed_twice() {
        use PortErrorKind as Kind;
        let answers = [
            (Kind::Unreachable, 2),
            (Kind::Timeout, 2),
            (Kind::Malformed, 2),
            (Kind::Refused { code: 3, message: String::new() }, 1),
            (Kind::Unauthorized, 1),
            (Kind::Unsupported, 1),
            (Kind::RateLimited { retry_after: None }, 1),
        ];
        for (kind, resumes) in answers {
            let (fake, quiesce) = world();
            *held(&fake.pause_fails) = Some(kind.clone());
            fake.lateness.store(40, Ordering::SeqCst);
            assert!(quiesce.acquire(100.into(), BUDGET).await.is_err());
            let began = Instant::now();
            until(|| fake.lease().is_none()).await;
            assert_eq!(fake.resumes().len(), resumes, "{kind:?}");
            assert!(resumes == 1 || began.elapsed() >= Duration::from_millis(35), "{kind:?}");
        }
    }

    #[tokio::test]
    async fn m24_no_pause_begins_while_a_resume_that_was_not_answered_may_land() {
        let (fake, quiesce) = world();
        fake.lateness.store(60, Ordering::SeqCst);
        fake.failing_resumes.store(1, Ordering::SeqCst);
        let guard = paused(&quiesce).await;
        let began = Instant::now();
        assert!(guard.release().await.is_err());
        until(|| !fake.resumes().is_empty()).await;
        until(|| !quiesce.is_degraded()).await;
        assert!(fake.lease().is_some());
        assert!(quiesce.acquire(100.into(), BUDGET).await.is_err(), "the late resume would end this pause");
        until(|| fake.lease().is_none()).await;
        assert!(began.elapsed() >= Duration::from_millis(60));
        assert_eq!(fake.resumes().len(), 1, "the one that was answered is enough");
        paused(&quiesce).await.release().await.unwrap();

        // One that was refused will not land.
        let (fake, quiesce) = world();
        fake.lateness.store(60_000, Ordering::SeqCst);
        fake.failing_resumes.store(1, Ordering::SeqCst);
        *held(&fake.resume_fails) = Some(PortErrorKind::Refused { code: 1, message: String::new() });
        assert!(paused(&quiesce).await.release().await.is_err());
        until(|| fake.lease().is_none()).await;
    }

    #[tokio::test]
    async fn m11_without_reactors_a_stored_pause_stays_and_none_is_stored() {
        let (fake, quiesce) = world();
        fake.nothing.store(true, Ordering::SeqCst);
        left_paused(&fake);
        quiesce.recover_lease().await.unwrap();
        assert!(quiesce.has_left_over() && !quiesce.is_degraded());
        let guard = paused(&quiesce).await;
        wrote(&fake, &guard, 112);
        guard.release().await.unwrap();
        quiesce.shutdown(PATIENCE).await;
        assert_eq!(fake.lease(), Some(90.into()), "neither overwritten nor dropped");
        // A later run with reactors resumes it.
        fake.nothing.store(false, Ordering::SeqCst);
        let next = guard_of(&fake);
        next.recover_lease().await.unwrap();
        assert!(!next.has_left_over());
        assert_eq!(fake.lease(), None);
    }
}
