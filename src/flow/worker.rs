//! The loop: polls, severities, shutdown, status.
//!
//! Decided nowhere else: what a severity does. `Temporary` backs off, `Reset` reads again at once, `Halt` stops
//! advancing and keeps looking (a revert on L1 un-sticks it, P8). A stall never ends the process.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info};

use crate::decide::heads::Heads;
use crate::decide::pace::Pace;
use crate::decide::stall::{Reason, Stall};
use crate::error::Severity;
use crate::flow::derive::PendingWrite;
use crate::flow::gather::Gatherer;
use crate::flow::ledger::Ledger;
use crate::flow::local_chain::LocalChain;
use crate::flow::patience::Patience;
use crate::flow::pull::{Kept, PullEnd, PullReport};
use crate::flow::quiesce::Quiesce;
use crate::flow::roots::Roots;
use crate::flow::search::Searches;
use crate::flow::settlement::Settlements;
use crate::flow::stall_log::{Doing, StallLog};
use crate::flow::{FlowError, Ports, Settings, Status};
use crate::types::{Cursor, L1Ref, L2Ref};

/// First wait after a failed poll; doubled up to the poll interval.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// How long shutdown waits for a resume under way: within the 10 s of P4.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(8);

/// A bug: the worker panicked. What it had paused was resumed, as far as the reactors answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the worker panicked, which is a bug of this program")]
pub struct Panicked;

/// Runs `work` as a task of its own, so that a panic in it ends the task and not the runtime: the guard that goes with
/// it has only begun the resume of the reactors, which is waited for here (P5).
///
/// # Errors
/// When `work` panicked.
pub async fn contained<T: Send + 'static>(
    quiesce: &Quiesce,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, Panicked> {
    match AbortOnDropHandle::new(tokio::spawn(work)).await {
        Ok(outcome) => Ok(outcome),
        Err(failed) => {
            error!(error = %failed, "the worker panicked");
            quiesce.shutdown(SHUTDOWN_PATIENCE).await;
            Err(Panicked)
        }
    }
}

/// The worker: its memory of the chain, and the ports.
pub struct Worker {
    pub(crate) ports: Ports,
    pub(crate) settings: Settings,
    pub(crate) quiesce: Quiesce,
    pub(crate) local: LocalChain,
    pub(crate) ledger: Ledger,
    /// The heads that the node was told in this poll.
    pub(crate) asserted: Option<Heads>,
    /// The node's tags as they were read back last.
    pub(crate) confirmed: Option<Heads>,
    /// What the last try to write failed on.
    pub(crate) patience: Patience,
    /// Seen in this poll when the tags were to be set: the reader and the engine are two nodes.
    pub(crate) two_nodes: Option<Stall>,
    /// The node's own finalized tag. Above a fallen head too: what it stood on may come back, and not another block.
    pub(crate) node_finalized: Option<L2Ref>,
    /// Without an engine: the first write that would have been made.
    pub(crate) pending: Option<PendingWrite>,
    /// The verdict on the batch at which it stands, while it need not be given again.
    pub(crate) kept: Option<Kept>,
    /// What is being looked for on L1.
    pub(crate) searches: Searches,
    pub(crate) roots: Roots,
    pub(crate) gatherer: Gatherer,
    /// What L1 took back or proved, ahead of the batches.
    pub(crate) settlements: Settlements,
    /// The polls that followed each other at once.
    pace: Pace,
    stall_log: StallLog,
    /// The log to which the cursor was sent back, until it is read.
    pub(crate) gone_back: Option<(L1Ref, u64)>,
    /// The poll's time.
    pub(crate) now: Duration,
    pub(crate) status: Status,
    publish: watch::Sender<Status>,
}

impl Worker {
    /// Loads what is stored and resumes what a crash left paused, before anything else.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn start(ports: Ports, settings: Settings) -> Result<Self, FlowError> {
        let quiesce =
            Quiesce::new(ports.reactors.clone(), ports.progress.clone(), ports.l2.clone(), settings.head_still);
        quiesce.settle().await?;
        Self::under(quiesce, ports, settings).await
    }

    /// A worker under the guard of an earlier one of this process, which has settled what a crash left.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn under(quiesce: Quiesce, ports: Ports, settings: Settings) -> Result<Self, FlowError> {
        let (ledger, tip) = Ledger::load(ports.progress.clone()).await?;
        let mut local = LocalChain::new(ports.l1.clone(), ports.l2.clone(), settings.observation_window);
        local.loaded(&ledger, tip.as_ref());
        let (publish, _) = watch::channel(Status::default());
        let settlements = {
            let (l1, progress) = (ports.l1.clone(), ports.progress.clone());
            Settlements::new(l1, progress, settings.start, settings.fetch_range)
        };
        let finality = settings.finality;
        let gatherer = Gatherer::new(ports.l1.clone(), ports.blobs.clone(), ports.l2.clone());
        let mut worker = Self {
            ports,
            settings,
            quiesce,
            local,
            ledger,
            asserted: None,
            confirmed: None,
            patience: Patience::default(),
            two_nodes: None,
            node_finalized: None,
            pending: None,
            kept: None,
            searches: Searches::default(),
            roots: Roots::default(),
            gatherer,
            settlements,
            pace: Pace::default(),
            stall_log: StallLog::default(),
            gone_back: None,
            now: Duration::ZERO,
            status: Status { last_batch: tip.map(|t| t.index), finality, ..Status::default() },
            publish,
        };
        worker.publish();
        Ok(worker)
    }

    /// Our heads.
    pub const fn heads(&self) -> Heads {
        self.ledger.heads()
    }

    /// The first write that a worker without an engine would have made, where the last poll ended on one.
    pub const fn pending_write(&self) -> Option<PendingWrite> {
        self.pending
    }

    /// The status, as it changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.publish.subscribe()
    }

    /// The guard's shared half, for shutdown.
    pub fn quiesce(&self) -> Quiesce {
        self.quiesce.clone()
    }

    /// Takes heads and cursor from the database again where a step failed since.
    pub(crate) async fn reload(&mut self) -> Result<(), FlowError> {
        if let Some(tip) = self.ledger.refresh().await? {
            self.local.loaded(&self.ledger, tip.as_ref());
        }
        Ok(())
    }

    fn publish(&mut self) {
        self.status.safe = self.ledger.heads().safe();
        self.status.finalized = self.ledger.heads().finalized();
        self.status.l1_cursor = self.ledger.cursor().map(|c| c.block.number);
        self.status.reactors_degraded = self.quiesce.is_degraded();
        self.status.pause_left_over = self.quiesce.has_left_over();
        self.status.pauses = self.quiesce.pauses();
        self.publish.send_replace(self.status.clone());
    }

    /// One poll with its outcome in the status.
    ///
    /// # Errors
    /// As [`Worker::pull`].
    pub async fn poll(&mut self, now: Duration) -> Result<PullReport, FlowError> {
        self.status.polls = self.status.polls.saturating_add(1);
        self.pending = None;
        let before = self.ledger.cursor();
        let mut outcome = self.pull(now).await;
        if let Ok(report) = &mut outcome {
            self.keep_pace(before.as_ref(), report);
        }
        self.status.stall = match &outcome {
            Ok(report) => match &report.end {
                PullEnd::Stalled(stall) => Some(stall.clone()),
                PullEnd::Behind | PullEnd::CaughtUp | PullEnd::Reached => None,
            },
            Err(error) => Some(error.stall()),
        };
        self.publish();
        outcome
    }

    /// A pull that wants the next one at once and gets nowhere is a stall, and waits like one.
    fn keep_pace(&mut self, before: Option<&Cursor>, report: &mut PullReport) {
        if report.end != PullEnd::Behind {
            self.pace = Pace::default();
        } else if !self.pace.reads_on(before, self.ledger.cursor().as_ref()) {
            let detail = "reading L1 gets no further; does an endpoint leave out logs?";
            report.end = PullEnd::Stalled(Stall::new(Reason::NoProgress, detail));
        }
    }

    /// Polls until `stop` is cancelled; then lets go of the pull under way and waits for reactors being resumed.
    ///
    /// # Errors
    /// Never for a passing fault; only where going on would be wrong from the start (wrong network).
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), FlowError> {
        let quiesce = self.quiesce();
        let looped = stop.run_until_cancelled(self.poll_for_ever()).await;
        quiesce.shutdown(SHUTDOWN_PATIENCE).await;
        info!("stopped");
        looped.unwrap_or(Ok(()))
    }

    async fn poll_for_ever(&mut self) -> Result<(), FlowError> {
        let began = Instant::now();
        let mut backoff = FIRST_BACKOFF;
        loop {
            let outcome = self.poll(began.elapsed()).await;
            let wait = match &outcome {
                Ok(report) => {
                    backoff = FIRST_BACKOFF;
                    self.wait_after(report)
                }
                Err(error) => {
                    let wait = self.wait_after_error(error, backoff);
                    backoff = backoff.saturating_mul(2).min(self.settings.poll_interval);
                    wait
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    fn wait_after(&mut self, report: &PullReport) -> Duration {
        match &report.end {
            PullEnd::Behind => {
                self.stall_log.goes_on();
                Duration::ZERO
            }
            PullEnd::CaughtUp | PullEnd::Reached => {
                self.stall_log.goes_on();
                self.settings.poll_interval
            }
            PullEnd::Stalled(stall) => {
                let doing = if stall.reason.is_halt() { Doing::Halted } else { Doing::Waiting };
                self.stall_log.stalled(stall, doing);
                self.settings.poll_interval
            }
        }
    }

    fn wait_after_error(&mut self, error: &FlowError, backoff: Duration) -> Duration {
        let (doing, wait) = match error.severity() {
            Severity::Reset => (Doing::ReadingAgain, backoff.min(FIRST_BACKOFF)),
            Severity::Temporary => (Doing::TryingAgain, backoff.min(self.settings.poll_interval)),
            Severity::Halt => (Doing::Halted, self.settings.poll_interval),
        };
        self.stall_log.stalled(&error.stall(), doing);
        wait
    }
}
