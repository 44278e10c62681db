//! The loop: polls, severities, shutdown, status.
//!
//! Only this file decides what a severity does. `Temporary` backs off, `Reset` reads again after a second at most,
//! `Halt` stops advancing and keeps looking (a revert on L1 un-sticks it, P8). A stall never ends the process.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use crate::decide::catch_up::{CatchUp, PollFacts};
use crate::decide::heads::Heads;
use crate::decide::pace::Pace;
use crate::decide::stall::{Cause, Stall};
use crate::error::Severity;
use crate::flow::poll::Poll;
use crate::flow::quiesce::Quiesce;
use crate::flow::stall_log::{Doing, StallLog};
use crate::flow::writer::PendingWrite;
use crate::flow::{FlowError, PollEnd, PollReport, Ports, Settings, Status};
use crate::ports::L2Reader;
use crate::types::{BatchIndex, Case, Cursor, L1Event, L1Message, L1Ref, L2Number};

/// First wait after a failed poll; doubled up to the poll interval.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// How long shutdown waits for a resume under way: within the 10 s of P4.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(8);

/// A bug: the worker panicked. The reactors that it had paused were resumed, if they answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the worker panicked, which is a bug of this program")]
pub struct Panicked;

/// Runs `work` as a task of its own, so that a panic in it ends the task and not the runtime: dropping the guard only
/// begins the resume of the reactors, and this function waits for it (P5).
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
            error!(code = "worker_panicked", error = %failed, "the worker panicked");
            quiesce.shutdown(SHUTDOWN_PATIENCE).await;
            Err(Panicked)
        }
    }
}

/// The worker: the loop over its polls, and what it reports of them.
pub struct Worker {
    poll: Poll,
    poll_interval: Duration,
    quiesce: Quiesce,
    /// The polls since the cursor last reached a new place.
    pace: Pace,
    catch_up: CatchUp,
    stall_log: StallLog,
    l2: Arc<dyn L2Reader>,
    status: Status,
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
        quiesce.recover_lease().await?;
        Self::under(quiesce, ports, settings).await
    }

    /// A worker under the guard of an earlier one of this process, which has settled what a crash left.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn under(quiesce: Quiesce, ports: Ports, settings: Settings) -> Result<Self, FlowError> {
        let poll = Poll::new(quiesce.clone(), &ports, &settings).await?;
        let (publish, _) = watch::channel(Status::default());
        let mut worker = Self {
            poll,
            poll_interval: settings.poll_interval,
            quiesce,
            pace: Pace::default(),
            catch_up: CatchUp::default(),
            stall_log: StallLog::default(),
            l2: ports.l2,
            status: Status::default(),
            publish,
        };
        worker.publish();
        Ok(worker)
    }

    /// Our heads.
    pub const fn heads(&self) -> Heads {
        self.poll.heads()
    }

    /// The first write that a worker without an engine would have made, if the last poll ended on one.
    pub const fn pending_write(&self) -> Option<PendingWrite> {
        self.poll.pending()
    }

    /// The last L2 block of the batch `index` that stands on L1; none if no confirmed commit of it was found or what
    /// was found does not bind.
    ///
    /// # Errors
    /// When L1 cannot be asked.
    pub async fn last_block_of(&mut self, index: BatchIndex) -> Result<Option<L2Number>, FlowError> {
        self.poll.last_block_of(index).await
    }

    /// Keeps L1 messages that a recording read.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub(crate) async fn keep_messages(&mut self, messages: Vec<(L1Ref, L1Message)>) -> Result<(), FlowError> {
        self.poll.keep_messages(messages).await
    }

    /// Asks for all that rebuilding the commit of `event` takes, for a recording.
    ///
    /// # Errors
    /// When L1 or the beacon node cannot be asked.
    pub(crate) async fn ask_for_all(&mut self, event: &L1Event) -> Result<(), FlowError> {
        match event.as_commit() {
            Some(commit) => self.poll.ask_for_all(&commit).await,
            None => Ok(()),
        }
    }

    /// The status, as it changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.publish.subscribe()
    }

    /// The guard's shared half, for shutdown.
    pub fn quiesce(&self) -> Quiesce {
        self.quiesce.clone()
    }

    fn publish(&mut self) {
        self.poll.show(&mut self.status);
        self.publish.send_replace(self.status.clone());
    }

    /// One poll with its outcome in the status.
    ///
    /// # Errors
    /// When something could not be read or written. What was stored before stays; the next poll continues from there.
    pub async fn poll(&mut self, now: Duration) -> Result<PollReport, FlowError> {
        self.status.polls = self.status.polls.saturating_add(1);
        let before = self.poll.cursor();
        let mut outcome = self.poll.run(now).await;
        if let Ok(report) = &mut outcome {
            self.keep_pace(before.as_ref(), report);
        }
        self.meet_client();
        // A face that shows them, or nobody asks.
        if outcome.is_ok() && self.publish.receiver_count() > 0 {
            self.poll.look_up_places().await;
        }
        self.status.stall = match &outcome {
            Ok(report) => match &report.end {
                PollEnd::Stalled(stall) => Some(stall.clone()),
                PollEnd::Behind | PollEnd::CaughtUp | PollEnd::Reached => None,
            },
            Err(error) => Some(error.stall()),
        };
        self.publish();
        self.show_progress(now, outcome.as_ref().ok());
        outcome
    }

    /// While the worker is behind, the log says once a minute how fast it gets on.
    fn show_progress(&mut self, now: Duration, report: Option<&PollReport>) {
        let verified = || report.iter().flat_map(|report| &report.batches).filter(|batch| batch.case != Case::Wait);
        let said = self.catch_up.polled(&PollFacts {
            now,
            behind: report.is_some_and(|report| report.end == PollEnd::Behind),
            batches: verified().count() as u64,
            blocks: verified().map(|batch| batch.blocks).sum(),
            cursor: self.status.l1_cursor.unwrap_or_default(),
            confirmed: self.status.l1_confirmed.unwrap_or_default(),
        });
        if let Some(progress) = said {
            info!(
                batches = progress.batches,
                blocks_per_second = format!("{:.1}", progress.blocks_per_second),
                seconds_left = progress.left.map(|left| left.as_secs()),
                "catching up"
            );
        }
    }

    /// Logs the execution client when it first answers, and when another one answers in its place.
    fn meet_client(&mut self) {
        let Some(client) = self.l2.client().filter(|client| self.status.execution_client.as_ref() != Some(client))
        else {
            return;
        };
        match client.warning() {
            Some(warning) => warn!(code = "execution_client", version = client.version, "{warning}"),
            None => info!(version = client.version, "execution client"),
        }
        self.status.execution_client = Some(client);
    }

    /// A poll that asks for the next one at once without progress is a stall, and waits like one.
    fn keep_pace(&mut self, before: Option<&Cursor>, report: &mut PollReport) {
        if report.end != PollEnd::Behind {
            self.pace = Pace::default();
        } else if !self.pace.reads_on(before, self.poll.cursor().as_ref()) {
            report.end = PollEnd::Stalled(Stall::new(Cause::NoProgress));
        }
    }

    /// Polls until `stop` is cancelled; then drops the poll under way and waits for reactors being resumed.
    ///
    /// # Errors
    /// None: a failed poll is repeated, whatever its severity.
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
                    backoff = backoff.saturating_mul(2).min(self.poll_interval);
                    wait
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    fn wait_after(&mut self, report: &PollReport) -> Duration {
        match &report.end {
            PollEnd::Behind => {
                self.stall_log.goes_on();
                Duration::ZERO
            }
            PollEnd::CaughtUp | PollEnd::Reached => {
                self.stall_log.goes_on();
                self.poll_interval
            }
            PollEnd::Stalled(stall) => {
                let doing = if stall.reason().is_halt() { Doing::Halted } else { Doing::Waiting };
                self.stall_log.stalled(stall, doing);
                self.poll_interval
            }
        }
    }

    fn wait_after_error(&mut self, error: &FlowError, backoff: Duration) -> Duration {
        let (doing, wait) = match error.severity() {
            Severity::Reset => (Doing::ReadingAgain, backoff.min(FIRST_BACKOFF)),
            Severity::Temporary => (Doing::TryingAgain, backoff.min(self.poll_interval)),
            Severity::Halt => (Doing::Halted, self.poll_interval),
        };
        self.stall_log.stalled(&error.stall(), doing);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::testing::World;

    async fn worker(world: &World) -> Worker {
        Worker::start(world.ports.clone(), world.settings.clone()).await.unwrap()
    }

    #[tokio::test]
    async fn p9_the_status_shows_a_stall_in_its_poll_and_no_longer_than_it_lasts() {
        let world = World::recorded().await;
        world.node.node().moods.syncing = true;
        let mut worker = worker(&world).await;
        let status = worker.status();
        worker.poll(Duration::ZERO).await.unwrap();
        assert_eq!(status.borrow().stall, Some(Stall::new(Cause::NodeSyncing)));
        world.node.node().moods.syncing = false;
        worker.poll(Duration::from_secs(1)).await.unwrap();
        assert_eq!(status.borrow().stall, None);
        assert_eq!((status.borrow().safe, status.borrow().polls), (Some(world.l2(72)), 2));
    }

    #[tokio::test]
    async fn a_severity_says_how_long_the_worker_waits() {
        let world = World::recorded().await;
        let mut worker = worker(&world).await;
        let (long, interval) = (Duration::from_secs(8), world.settings.poll_interval);
        let halt = FlowError::Stall(Stall::new(Cause::ReorgTooDeep { window: 2 }));
        let table =
            [(FlowError::l1_changed(""), FIRST_BACKOFF), (FlowError::local_changed(""), long), (halt, interval)];
        for (error, expected) in table {
            assert_eq!(worker.wait_after_error(&error, long), expected, "{error}");
        }
    }

    #[tokio::test]
    async fn p4_p5_a_panic_ends_its_task_and_a_stop_ends_the_loop() {
        let world = World::recorded().await;
        let worker = worker(&world).await;
        let quiesce = worker.quiesce();
        assert_eq!(contained(&quiesce, async { panic!("a bug") }).await, Err::<(), _>(Panicked));
        let stop = CancellationToken::new();
        stop.cancel();
        let stopped = tokio::time::timeout(Duration::from_secs(5), worker.run(stop)).await;
        assert!(matches!(stopped, Ok(Ok(()))));
    }
}
