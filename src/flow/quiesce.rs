//! The guard that pauses the consensus node's reactors while blocks are written (P5).
//!
//! Acquiring stores a lease in the database, pauses, and gives the guard. [`Quiesced::release`] resumes and reports
//! the failure. Dropping the guard (panic, cancellation, early return) hands the resume to a task that shutdown waits
//! for. A lease found at start means that a crash left the reactors paused: [`Quiesce::settle`] resumes first, before
//! anything else.
//!
//! Why not resume in `Drop` itself: resuming is a network call or a process, and a destructor cannot await.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::error::{PortError, PortErrorKind, Target};
use crate::flow::{kill_point, unix_now};
use crate::ports::{L2Reader, PortResult, Progress, Reactors};
use crate::types::{L2Number, Lease};

/// First wait before a failed resume is tried again; doubled up to [`RESUME_RETRY_CAP`].
const RESUME_RETRY: Duration = Duration::from_millis(500);
/// Longest wait between two tries: an operator who repairs the reactors sees them back within it.
const RESUME_RETRY_CAP: Duration = Duration::from_secs(15);
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
    /// A pause is open or its resume is still being tried.
    busy: AtomicBool,
    degraded: AtomicBool,
    pauses: AtomicU64,
}

impl Quiesce {
    /// Nothing paused yet.
    pub fn new(reactors: Arc<dyn Reactors>, progress: Arc<dyn Progress>, l2: Arc<dyn L2Reader>) -> Self {
        let shared = Shared {
            reactors,
            progress,
            l2,
            tasks: TaskTracker::new(),
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
        if let Err(error) = self.shared.resume_once(lease.height).await {
            self.shared.keep_resuming(lease.height, &error);
        }
        Ok(())
    }

    /// Stores the lease, pauses, and gives the guard. `height` is the local head, read before; `budget` the time that
    /// the pause may last. A half-done pause is undone.
    ///
    /// # Errors
    /// When a pause is still open or being resumed, the lease cannot be stored, or the reactors cannot be paused.
    pub async fn acquire(&self, height: L2Number, budget: Duration) -> PortResult<Quiesced> {
        if self.shared.busy.swap(true, Ordering::SeqCst) {
            let detail = "an earlier pause has not been resumed yet";
            return Err(PortError::new(Target::Reactors, PortErrorKind::Unreachable, detail));
        }
        // From here on a dropped future must undo what it began, so the guard exists before the first await.
        let guard = Quiesced {
            shared: self.shared.clone(),
            height: AtomicU64::new(height.get()),
            deadline: Instant::now() + budget,
            began: Instant::now(),
            armed: true,
        };
        kill_point("lease: before");
        if let Err(error) = self.shared.progress.set_lease(Some(Lease { height, since: unix_now() })).await {
            guard.disarm();
            self.shared.busy.store(false, Ordering::SeqCst);
            return Err(error);
        }
        kill_point("lease: stored");
        let paused = self.shared.reactors.pause(height).await;
        kill_point("reactors: paused");
        self.shared.pauses.fetch_add(1, Ordering::SeqCst);
        if let Err(error) = paused {
            warn!(%error, "pausing the reactors failed; undoing what was paused");
            // The undo's own failure is retried in the background and alarmed there; this error is the first cause.
            let _ = guard.release().await;
            return Err(error);
        }
        info!(height = height.get(), "reactors paused");
        Ok(guard)
    }

    /// Waits for resumes under way, at most `patience`. What is left then keeps its lease in the database and is
    /// resumed by the next start.
    pub async fn shutdown(&self, patience: Duration) {
        self.shared.tasks.close();
        if tokio::time::timeout(patience, self.shared.tasks.wait()).await.is_err() {
            error!(
                "the reactors could not be resumed before shutdown; the lease stays stored and the next start resumes them first"
            );
        }
    }
}

impl Shared {
    /// One try: resume, then drop the lease. The order matters: a crash in between resumes once more, never too few.
    async fn resume_once(&self, known: L2Number) -> PortResult<()> {
        let height = self.head().await.unwrap_or(known);
        kill_point("reactors: before resume");
        self.reactors.resume(height).await?;
        kill_point("reactors: resumed");
        self.progress.set_lease(None).await?;
        kill_point("lease: dropped");
        self.degraded.store(false, Ordering::SeqCst);
        self.busy.store(false, Ordering::SeqCst);
        info!(height = height.get(), "reactors resumed");
        Ok(())
    }

    async fn head(&self) -> Option<L2Number> {
        let snapshot = tokio::time::timeout(HEAD_DEADLINE, self.l2.snapshot()).await.ok()?.ok()?;
        Some(snapshot.head.number)
    }

    fn keep_resuming(self: &Arc<Self>, height: L2Number, first: &PortError) {
        self.degraded.store(true, Ordering::SeqCst);
        error!(error = %first, "resuming the reactors failed; trying again until it works");
        let shared = self.clone();
        self.tasks.spawn(async move {
            let mut wait = RESUME_RETRY;
            loop {
                tokio::time::sleep(wait).await;
                match shared.resume_once(height).await {
                    Ok(()) => return,
                    Err(error) => warn!(%error, "the reactors are still paused"),
                }
                wait = (wait * 2).min(RESUME_RETRY_CAP);
            }
        });
    }
}

/// The reactors are paused for as long as this lives.
#[must_use = "the reactors are resumed as soon as this is dropped"]
pub struct Quiesced {
    shared: Arc<Shared>,
    height: AtomicU64,
    deadline: Instant,
    began: Instant,
    armed: bool,
}

impl Quiesced {
    /// Time left of the pause's budget.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Notes the head after a write: the height to resume from should the node not answer then.
    pub fn wrote(&self, head: L2Number) {
        self.height.store(head.get(), Ordering::SeqCst);
    }

    /// Resumes the reactors from the execution node's head.
    ///
    /// # Errors
    /// The first failure. The resume is then tried again in the background until it works, and
    /// [`Quiesce::is_degraded`] says so meanwhile.
    pub async fn release(mut self) -> PortResult<()> {
        let height = L2Number::new(self.height.load(Ordering::SeqCst));
        // Still armed while the first try runs: a future dropped here must not lose the resume.
        let outcome = self.shared.resume_once(height).await;
        self.armed = false;
        let paused_for = self.began.elapsed();
        info!(paused_ms = u64::try_from(paused_for.as_millis()).unwrap_or(u64::MAX), "pause ended");
        if let Err(error) = &outcome {
            self.shared.keep_resuming(height, error);
        }
        outcome
    }

    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Quiesced {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let height = L2Number::new(self.height.load(Ordering::SeqCst));
        let shared = self.shared.clone();
        // Outside a runtime nothing can be awaited: the lease in the database makes the next start resume.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let task = async move {
            if let Err(error) = shared.resume_once(height).await {
                shared.keep_resuming(height, &error);
            }
        };
        self.shared.tasks.spawn_on(task, &runtime);
    }
}
