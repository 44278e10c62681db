//! `recover`: rebuilds from L1 what a stopped sequencer left missing, with the flow of `run`. The operator, not the observed
//! head, says that the sequencer has stopped.
//!
//! First a look without an engine, up to the first batch that would be written: that verifies everything below it and
//! finds a fork if there is one. Then the plan, the question, the work, the summary. If it is interrupted at any point, it
//! can be repeated: verified batches are stored, and written blocks are found equal.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{Exit, run, terminal, wiring};
use crate::adapters::store::SqliteStore;
use crate::config::{Config, ConfigArgs, ConfigError};
use crate::decide::liveness::HeadTrend;
use crate::decide::recovery::{self, RecoveryExtent, RecoveryFacts};
use crate::decide::stall::{Cause, Reason, Stall};
use crate::flow::PollEnd;
use crate::flow::quiesce::Quiesce;
use crate::flow::worker::{Worker, contained};
use crate::flow::writer::PendingWrite;
use crate::flow::{Ports, Settings};
use crate::ports::Progress as _;
use crate::types::{BatchIndex, L2Number, L2Ref};

/// The command ends after this many passing faults of one kind in a row: an operator is waiting.
const PATIENCE: u32 = 10;
/// Wait between two tries after a passing fault.
const RETRY: Duration = Duration::from_secs(2);
/// Longest wait for the end of a pause that an earlier run left: twice what a default configuration needs.
const LEFT_OVER: Duration = Duration::from_secs(90);
/// Longest wait at the end for a resume that is under way.
const SETTLE: Duration = Duration::from_secs(8);

/// Arguments of `recover`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Show the plan and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Stop after this batch
    #[arg(long, value_name = "INDEX")]
    pub to_batch: Option<u64>,
    /// Print one JSON object at the end
    #[arg(long)]
    pub json: bool,
    /// The configuration
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// What the command is going to do.
#[derive(Clone, Debug, Serialize)]
struct Plan {
    /// The local head.
    local_head: L2Ref,
    /// The last local block that stays.
    keep_to: L2Ref,
    /// The first batch to be written.
    first_batch: BatchIndex,
    /// The last one.
    last_batch: BatchIndex,
    /// The last block of the last batch.
    last_block: L2Number,
    /// Batches to be verified or written.
    batches: u64,
    /// Blocks to be written.
    blocks: u64,
    /// Local blocks that differ from L1 and are replaced.
    replaced: u64,
    /// Local blocks above the last batch that L1 never saw and that are dropped.
    lost: u64,
    /// Where blobs come from: hosts only.
    blobs_from: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Summary {
    plan: Option<Plan>,
    /// `nothing-to-do`, `dry-run`, `recovered`, `interrupted`, `stopped`.
    outcome: &'static str,
    batches: u64,
    rewritten: u64,
    safe: Option<L2Ref>,
    head: Option<L2Ref>,
    reason: Option<String>,
}

/// Recovers.
///
/// # Errors
/// Configuration that cannot be used, parties that cannot be asked.
pub async fn execute(args: Args) -> anyhow::Result<Exit> {
    let config = Config::load(&args.config)?;
    if config.follows() {
        let what = "recover derives from L1, which is off while follow.source is set: leave it out";
        return Err(ConfigError::Conflict(what.to_owned()).into());
    }
    config.require(&config.run_needs())?;
    if config.observe {
        bail!("recover writes blocks and --observe forbids it; use --dry-run to see the plan");
    }
    crate::telemetry::init(&config.log)?;
    let identity = config.identity()?;
    let clients = wiring::clients(&config)?;
    wiring::check_identity(&clients, &identity).await?;
    let store = Arc::new(SqliteStore::open(&config.store).await.context("the database")?);
    store.claim(&identity).await.context("the database")?;
    store.claim_use(false).await.context("the database")?;
    store.claim_start(wiring::settings(&config).start).await.context("the database")?;
    let ports = wiring::ports(&config, &clients, store.clone())?;
    let settings = Settings {
        assume: Some(HeadTrend::Stopped),
        to_batch: args.to_batch.map(BatchIndex::new),
        ..wiring::settings(&config)
    };
    let blobs_from = config.l1.beacon.iter().chain(&config.l1.beacon_archive).map(ToString::to_string).collect();
    let stop = run::stop_on_signal();
    let recovery = Recovery { ports, settings, args: &args, stop };
    let outcome = recovery.run(blobs_from).await;
    store.close().await;
    let (summary, exit) = outcome?;
    print_summary(&summary, args.json)?;
    Ok(exit)
}

struct Recovery<'a> {
    ports: Ports,
    settings: Settings,
    args: &'a Args,
    stop: CancellationToken,
}

/// How a run of polls ended.
enum End {
    /// Everything is verified.
    Done,
    /// A write is needed.
    Pending(PendingWrite),
    /// A stall.
    Stands(Stall),
    /// A signal.
    Interrupted,
}

impl Recovery<'_> {
    async fn run(&self, blobs_from: Vec<String>) -> anyhow::Result<(Summary, Exit)> {
        let looking = Ports { engine: None, ..self.ports.clone() };
        let mut worker = Worker::start(looking, self.settings.clone()).await?;
        let look = terminal::spinner(self.args.json);
        let end = poll(&self.stop, &mut worker, |batch, _| look.set_message(format!("verified batch {batch}"))).await;
        look.finish_and_clear();
        let pending = match end {
            End::Pending(pending) => pending,
            End::Done => return Ok(self.conclude("nothing-to-do", None, (0, 0), &worker, None, Exit::Done).await),
            End::Interrupted => {
                return Ok(self.conclude("interrupted", None, (0, 0), &worker, None, Exit::Failed).await);
            }
            End::Stands(stall) => {
                let exit = Exit::from(stall.reason());
                return Ok(self.conclude("stopped", None, (0, 0), &worker, Some(stall), exit).await);
            }
        };
        let plan = self.plan(&mut worker, pending, blobs_from).await?;
        if !self.args.json {
            show(&plan);
        }
        if self.args.dry_run {
            return Ok(self.conclude("dry-run", Some(plan), (0, 0), &worker, None, Exit::Done).await);
        }
        if !self.args.yes && !ask()? {
            return Ok(self.conclude("declined", Some(plan), (0, 0), &worker, None, Exit::Failed).await);
        }
        let quiesce = worker.quiesce();
        drop(worker);
        self.write(plan, quiesce).await
    }

    /// The second half: the same flow with the engine.
    async fn write(&self, plan: Plan, quiesce: Quiesce) -> anyhow::Result<(Summary, Exit)> {
        let mut worker = Worker::under(quiesce.clone(), self.ports.clone(), self.settings.clone()).await?;
        // Wait for the end of a pause that an earlier run left, so that it does not use up the tries of ours.
        let _ = self.stop.run_until_cancelled(quiesce.idle(LEFT_OVER)).await;
        let bar = terminal::bar(plan.blocks, "blocks", self.args.json);
        let began = Instant::now();
        let (stop, shown) = (self.stop.clone(), bar.clone());
        let work = async move {
            let (mut batches, mut blocks) = (0_u64, 0_u64);
            let progress = |batch, rewritten| {
                batches = batches.saturating_add(1);
                blocks = blocks.saturating_add(rewritten);
                shown.set_position(blocks);
                shown.set_message(format!("batch {batch}"));
            };
            let end = poll(&stop, &mut worker, progress).await;
            (worker, end, batches, blocks)
        };
        let worked = contained(&quiesce, work).await;
        bar.finish_and_clear();
        let (worker, end, batches, blocks) = worked?;
        quiesce.shutdown(SETTLE).await;
        if !self.args.json {
            let seconds = began.elapsed().as_secs_f64().max(0.001);
            println!("{batches} batches verified, {blocks} blocks written, {:.0} blocks/s", blocks as f64 / seconds);
        }
        let done = (batches, blocks);
        Ok(match end {
            End::Done => self.conclude("recovered", Some(plan), done, &worker, None, Exit::Done).await,
            End::Interrupted => self.conclude("interrupted", Some(plan), done, &worker, None, Exit::Failed).await,
            End::Stands(stall) => {
                let exit = Exit::from(stall.reason());
                self.conclude("stopped", Some(plan), done, &worker, Some(stall), exit).await
            }
            End::Pending(pending) => {
                let stall = Stall::at(pending.batch, Cause::NotWritten);
                self.conclude("stopped", Some(plan), done, &worker, Some(stall), Exit::Failed).await
            }
        })
    }

    async fn plan(&self, worker: &mut Worker, pending: PendingWrite, blobs_from: Vec<String>) -> anyhow::Result<Plan> {
        let head = self.ports.l2.snapshot().await?.head;
        let committed = self.ports.l1.last_committed_index(None).await?;
        let last_batch = self.settings.to_batch.map_or(committed, |to| to.min(committed));
        let last_block = worker.last_block_of(last_batch).await?;
        let Some(last_block) = last_block else {
            bail!("batch {last_batch} is not confirmed on L1 yet; name an earlier one with --to-batch");
        };
        let RecoveryExtent { batches, blocks, replaced, lost } = recovery::extent(&RecoveryFacts {
            first_batch: pending.batch,
            last_batch,
            last_block,
            skip: pending.skip.number,
            head: head.number,
        });
        Ok(Plan {
            local_head: head,
            keep_to: pending.skip,
            first_batch: pending.batch,
            last_batch,
            last_block,
            batches,
            blocks,
            replaced,
            lost,
            blobs_from,
        })
    }

    async fn conclude(
        &self,
        outcome: &'static str,
        plan: Option<Plan>,
        (batches, rewritten): (u64, u64),
        worker: &Worker,
        stall: Option<Stall>,
        exit: Exit,
    ) -> (Summary, Exit) {
        let head = self.ports.l2.snapshot().await.ok().map(|s| s.head);
        let reason = stall.map(|s| s.to_string());
        (Summary { plan, outcome, batches, rewritten, safe: worker.heads().safe(), head, reason }, exit)
    }
}

/// Polls until all is verified, a stall lasts, or a write is needed. Calls `progress` for every verified batch.
async fn poll(stop: &CancellationToken, worker: &mut Worker, mut progress: impl FnMut(BatchIndex, u64)) -> End {
    let began = Instant::now();
    let mut faults = 0;
    loop {
        let Some(outcome) = stop.run_until_cancelled(worker.poll(began.elapsed())).await else {
            return End::Interrupted;
        };
        if let Some(pending) = worker.pending_write() {
            return End::Pending(pending);
        }
        let stall = match outcome {
            Ok(report) => {
                let verified = report.batches.iter().filter(|b| b.case != crate::types::Case::Wait);
                verified.for_each(|b| progress(b.index, b.rewritten));
                match report.end {
                    PollEnd::Behind => {
                        faults = 0;
                        continue;
                    }
                    PollEnd::CaughtUp | PollEnd::Reached => return End::Done,
                    PollEnd::Stalled(stall) => stall,
                }
            }
            Err(error) => error.stall(),
        };
        faults += 1;
        if stall.reason().is_halt() || faults >= PATIENCE {
            return End::Stands(stall);
        }
        if stall.reason() != Reason::PauseBudget && stop.run_until_cancelled(tokio::time::sleep(RETRY)).await.is_none()
        {
            return End::Interrupted;
        }
    }
}

fn show(plan: &Plan) {
    println!("last local block      {}", plan.local_head);
    println!("last committed batch  {} (ends on block {})", plan.last_batch, plan.last_block);
    println!("kept up to            {}", plan.keep_to);
    println!("to write              batches {} to {}, {} blocks", plan.first_batch, plan.last_batch, plan.blocks);
    println!("blobs from            {}", plan.blobs_from.join(", "));
    println!("replaced              {} local blocks that differ from L1", plan.replaced);
    println!("lost                  {} local blocks above the last batch, which L1 never saw", plan.lost);
}

fn ask() -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("no terminal to ask on: give --yes, or --dry-run to see the plan only");
    }
    print!("Write these blocks? [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn print_summary(summary: &Summary, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(summary)?);
        return Ok(());
    }
    let head = |head: &Option<L2Ref>| head.map_or_else(|| "none".to_owned(), |h| h.to_string());
    println!("{}: safe {}, local head {}", summary.outcome, head(&summary.safe), head(&summary.head));
    if let Some(reason) = &summary.reason {
        println!("{reason}");
    }
    Ok(())
}
