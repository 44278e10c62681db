//! `record`: runs the flow over a range of L1 with the real ports recorded, and writes what they answered to a folder.
//!
//! The flow runs as in `run --observe`, on an empty database in memory, once in each mode and each meaning of finality: in
//! `local` it asks what equal chains need, in `blob` also what repairing others needs. Then it gathers every commit of the
//! range, also those that the flow had no need to read: reverted ones, those after a stall, and without an L2 node all of
//! them. If the flow stalls over the chain itself, a replay stalls at the same place. That is not a failure of the
//! recording.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::{Exit, replay, terminal, wiring};
use crate::adapters::fixture::{Fixture, Range};
use crate::adapters::reactors::NoReactors;
use crate::adapters::record::{Recorder, Sources};
use crate::adapters::store::SqliteStore;
use crate::config::{Config, ConfigArgs, Need};
use crate::decide::liveness::HeadTrend;
use crate::decide::stall::{Cause, Stall};
use crate::error::Target;
use crate::flow::PollEnd;
use crate::flow::worker::Worker;
use crate::flow::{FinalityMeaning, FlowError, Mode, Ports};
use crate::ports::{L1Chain as _, L2Reader};
use crate::types::{L1Event, L1Number, L1Tag};

/// Tries after a failed one. Few, because an operator is waiting.
const PATIENCE: u32 = 3;
/// Wait between two tries.
const RETRY: Duration = Duration::from_secs(1);
/// Most L1 blocks of a range: their headers are all kept, and take up to 160 MB of the 256 MiB that the facts may.
const MAX_L1_BLOCKS: u64 = 500_000;

/// Arguments of `record`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// First L1 block
    #[arg(long, value_name = "L1")]
    pub from: u64,
    /// Last L1 block
    #[arg(long, value_name = "L1")]
    pub to: u64,
    /// Folder to write; must not exist yet
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The configuration
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Records a range.
///
/// # Errors
/// Configuration that cannot be used, an endpoint that does not answer, a folder that exists, a range that holds too much.
pub async fn execute(args: Args) -> anyhow::Result<Exit> {
    let config = Config::load(&args.config)?;
    let mut needs = vec![Need::L1, Need::Beacon];
    if config.l2.eth.is_some() {
        needs.push(Need::L2);
    }
    config.require(&needs)?;
    if args.from > args.to {
        bail!("--from {} lies above --to {}", args.from, args.to);
    }
    if args.to - args.from >= MAX_L1_BLOCKS {
        bail!("--from {} to --to {} are more than {MAX_L1_BLOCKS} L1 blocks; record them in parts", args.from, args.to);
    }
    if args.out.exists() {
        bail!("{} exists already", args.out.display());
    }
    let identity = config.identity()?;
    let clients = wiring::Clients { engine: None, ..wiring::clients(&config)? };
    wiring::check_identity(&clients, &identity).await?;
    let settings = wiring::settings(&config);
    let sources = Sources {
        l1: clients.l1.clone(),
        blobs: clients.beacon.clone().context("no beacon endpoint is configured")?,
        l2: clients.l2.clone().map(|l2| l2 as Arc<dyn L2Reader>),
    };
    let from = L1Number::new(args.from);
    let range = Range {
        identity,
        switch_ms: settings.switch_ms,
        from,
        to: L1Number::new(args.to),
        origin: settings.origin.min(from),
        fetch_range: settings.fetch_range,
    };
    let progress = terminal::spinner(false);
    let recorded = record(sources, &range, &|text| progress.set_message(text)).await;
    progress.finish_and_clear();
    let (fixture, stall) = match recorded {
        Ok(recorded) => recorded,
        Err(FlowError::Port(error)) if error.target == Target::Fixture => return Err(error.into()),
        Err(error) => {
            eprintln!("error: {}", crate::redact::cut_urls(&error.to_string()));
            return Ok(Exit::from(error.stall().reason()));
        }
    };
    fixture.write(&args.out)?;
    let blocks = fixture.l2.as_ref().map_or(0, |l2| l2.blocks.len());
    println!(
        "{}: L1 blocks {} to {}, {} logs, {} blobs, {blocks} L2 blocks",
        args.out.display(),
        args.from,
        args.to,
        fixture.facts.events.len(),
        fixture.blobs.len(),
    );
    if let Some(stall) = stall {
        println!("the flow stalls before the end, and a replay will too: {stall}");
    }
    Ok(Exit::Done)
}

/// Records `range` from `sources`, and calls `progress` with what is being done. Returns the stall too, if the flow stalls
/// before the end.
///
/// # Errors
/// A question that still fails after a few tries; a chain that changed meanwhile; more data than a fixture may hold.
pub async fn record(
    sources: Sources,
    range: &Range,
    progress: &(dyn Fn(String) + Send + Sync),
) -> Result<(Fixture, Option<Stall>), FlowError> {
    let has_l2 = sources.l2.is_some();
    let recording = Recording { recorder: Arc::new(Recorder::new(sources, range.clone())), range, progress };
    if recording.recorder.tagged(L1Tag::Latest).await?.is_none() {
        return Err(FlowError::Stall(Stall::new(Cause::L1HeadBelow(range.to))));
    }
    let mut worker = recording.worker(Mode::Blob, FinalityMeaning::Proven).await?;
    let mut stall = None;
    if has_l2 {
        recording.follow(&mut recording.worker(Mode::Local, FinalityMeaning::Committed).await?).await?;
        stall = recording.follow(&mut worker).await?;
    }
    recording.gather(&mut worker).await?;
    Ok((recording.recorder.fixture()?, stall))
}

struct Recording<'a> {
    recorder: Arc<Recorder>,
    range: &'a Range,
    progress: &'a (dyn Fn(String) + Send + Sync),
}

impl Recording<'_> {
    /// A worker with an empty database. It takes the head as stopped, so that it asks for missing blocks instead of waiting.
    async fn worker(&self, mode: Mode, finality: FinalityMeaning) -> Result<Worker, FlowError> {
        let ports = Ports {
            l1: self.recorder.clone(),
            blobs: self.recorder.clone(),
            l2: self.recorder.clone(),
            engine: None,
            reactors: Arc::new(NoReactors),
            progress: Arc::new(SqliteStore::in_memory().await?),
        };
        Worker::start(ports, replay::settings(self.range, mode, finality, Some(HeadTrend::Stopped))).await
    }

    /// Asks again while a search is under way, and a few times after a failure.
    async fn patiently<T>(&self, mut ask: impl AsyncFnMut() -> Result<T, FlowError>) -> Result<T, FlowError> {
        let mut faults = 0;
        loop {
            let answer = ask().await;
            self.recorder.fault()?;
            match answer {
                // The search continues from where it stopped.
                Err(FlowError::Stall(Stall { cause: Cause::Searching(_), .. })) => {}
                Err(_) if faults < PATIENCE => {
                    faults += 1;
                    tokio::time::sleep(RETRY).await;
                }
                answer => return answer,
            }
        }
    }

    /// Runs the flow to the end of the range. Returns the stall that ended it earlier, if any.
    async fn follow(&self, worker: &mut Worker) -> Result<Option<Stall>, FlowError> {
        let began = Instant::now();
        let mut waited = 0;
        loop {
            let report = self.patiently(async || worker.poll(began.elapsed()).await).await?;
            if let Some(batch) = report.batches.last() {
                (self.progress)(format!("batch {}", batch.index));
            }
            let stall = match report.end {
                PollEnd::CaughtUp | PollEnd::Reached => return Ok(None),
                PollEnd::Behind => {
                    waited = 0;
                    continue;
                }
                PollEnd::Stalled(stall) => stall,
            };
            if stall.reason().is_halt() || stall.reason().is_divergence() || waited >= PATIENCE {
                return Ok(Some(stall));
            }
            waited += 1;
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Asks for the whole range, and for all that rebuilding its commits needs.
    async fn gather(&self, worker: &mut Worker) -> Result<(), FlowError> {
        let events = self.patiently(async || Ok(self.recorder.read_whole_range().await?)).await?;
        let messages: Vec<_> = events.iter().cloned().filter_map(L1Event::into_message).collect();
        worker.keep_messages(messages).await?;
        for event in &events {
            (self.progress)(format!("commits in L1 block {}", event.block.number));
            self.patiently(async || worker.ask_for_all(event).await).await?;
        }
        Ok(())
    }
}
