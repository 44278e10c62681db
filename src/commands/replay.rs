//! `replay`: the flow of `run` on recorded L1 answers, with an embedded L2 node. Made for CI.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::Exit;
use crate::adapters::fixture::{Fixture, L2Facts, Range};
use crate::adapters::reactors::NoReactors;
use crate::adapters::replay::Replay;
use crate::adapters::store::SqliteStore;
use crate::decide::liveness::HeadTrend;
use crate::decide::stall::Stall;
use crate::devnet::embedded::Embedded;
use crate::devnet::node::{Node, SafeL2Data};
use crate::devnet::oracle::Oracle;
use crate::error::Severity;
use crate::flow::PollEnd;
use crate::flow::worker::Worker;
use crate::flow::{BatchReport, Confirmations, FinalityMeaning, Mode, Ports, Settings};
use crate::types::{BatchIndex, Case, L2Block, L2Number, L2Ref, NewBlock};

/// The replayed clock advances by this much between two polls, so that a flat head counts as *stopped* at the second sample.
const STEP: Duration = Duration::from_secs(60);
/// Polls in a row that may end in the same stall before it counts as lasting.
const PATIENCE: u32 = 4;

/// Arguments of `replay`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder that `record` made
    pub fixture: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// How batches are checked: local (rebuild the blobs from local blocks) or blob (decode every blob)
    #[arg(long, default_value = "local", value_parser = parse_mode)]
    pub mode: Mode,
    /// What finalized means: committed (the commit is final on L1) or proven (the proof is)
    #[arg(long, default_value = "committed")]
    pub finality: FinalityMeaning,
    /// Let the embedded L2 node misbehave: missing-tail=BLOCKS, fork-at=BLOCK, stopped, alive (may be repeated)
    #[arg(long = "fault", value_name = "FAULT", value_parser = parse_fault)]
    pub faults: Vec<Fault>,
}

/// A way in which the embedded L2 node misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This many blocks at the end are missing.
    MissingTail(u64),
    /// The chain differs from this block on.
    ForkAt(L2Number),
    /// The head counts as stopped from the first poll on.
    Stopped,
    /// The head counts as growing.
    Alive,
}

fn parse_mode(text: &str) -> Result<Mode, String> {
    match text {
        "local" => Ok(Mode::Local),
        "blob" => Ok(Mode::Blob),
        _ => Err("local or blob".to_owned()),
    }
}

fn parse_fault(text: &str) -> Result<Fault, String> {
    let number = |value: &str| value.parse::<u64>().map_err(|_| format!("{value:?} is not a number"));
    match text.split_once('=') {
        None if text == "stopped" => Ok(Fault::Stopped),
        None if text == "alive" => Ok(Fault::Alive),
        Some(("missing-tail", value)) => number(value).map(Fault::MissingTail),
        Some(("fork-at", value)) => number(value).map(|n| Fault::ForkAt(n.into())),
        _ => Err("missing-tail=BLOCKS, fork-at=BLOCK, stopped or alive".to_owned()),
    }
}

/// How a replay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Ending {
    /// Every batch of the range was verified.
    Verified,
    /// The chain contradicts L1.
    Diverged,
    /// It stalled before the end.
    Incomplete,
}

#[derive(Debug, Serialize)]
struct Report {
    fixture: String,
    batches: Vec<BatchReport>,
    safe: Option<L2Ref>,
    finalized: Option<L2Ref>,
    outcome: Ending,
    reason: Option<String>,
}

/// Replays a fixture.
///
/// # Errors
/// A fixture that cannot be read.
pub async fn execute(args: Args) -> anyhow::Result<Exit> {
    let fixture = Arc::new(Fixture::read(&args.fixture).context("the fixture")?);
    let Some(l2) = &fixture.l2 else {
        bail!("the fixture was recorded without an L2 node: there is nothing to verify");
    };
    let node = Embedded::new(local_node(fixture.facts.range.identity.l2_chain_id, l2, &args.faults)?);
    let replay = Arc::new(Replay::new(fixture.clone()));
    let ports = Ports {
        l1: replay.clone(),
        blobs: replay,
        l2: Arc::new(node.clone()),
        engine: Some(Arc::new(node)),
        reactors: Arc::new(NoReactors),
        progress: Arc::new(SqliteStore::in_memory().await?),
    };
    let settings = settings(&fixture.facts.range, args.mode, args.finality, assumed(&args.faults));
    let worker = Worker::start(ports, settings).await?;
    let name =
        args.fixture.file_name().map_or_else(|| args.fixture.display().to_string(), |n| n.to_string_lossy().into());
    let (report, exit) = drive(worker, name, args.json).await;
    print(&report, args.json)?;
    Ok(exit)
}

/// The flow's settings over a recorded range: the same when it is recorded and when it is replayed, so that the same
/// questions are asked.
pub(super) fn settings(range: &Range, mode: Mode, finality: FinalityMeaning, assume: Option<HeadTrend>) -> Settings {
    Settings {
        mode,
        finality,
        rollup: range.identity.rollup,
        start: range.from,
        origin: range.origin,
        fetch_range: range.fetch_range,
        confirmations: Confirmations::Depth(0),
        switch_ms: range.switch_ms,
        observation_window: STEP,
        assume,
        // What is asked must not depend on how fast the answers come: a recording is made by the same settings.
        read_ahead: 0,
        ..Settings::default()
    }
}

fn assumed(faults: &[Fault]) -> Option<HeadTrend> {
    faults.iter().find_map(|fault| match fault {
        Fault::Stopped => Some(HeadTrend::Stopped),
        Fault::Alive => Some(HeadTrend::Alive),
        Fault::MissingTail(_) | Fault::ForkAt(_) => None,
    })
}

/// The recorded chain with its roots. A root that was last appended below the first recorded block is kept with that block:
/// the flow asks for nothing between them.
pub fn oracle(l2: &L2Facts) -> Oracle {
    let first = l2.blocks.first().map(|block| block.header.number).unwrap_or_default();
    let mut found: Vec<_> = l2.appended_roots.iter().filter_map(|(_, last, root)| Some((*last, (*root)?))).collect();
    found.sort_unstable_by_key(|(last, _)| *last);
    let appended: BTreeMap<_, _> = found.into_iter().map(|(last, root)| (last.max(first), root)).collect();
    let mut oracle = Oracle::new();
    for block in &l2.blocks {
        let number = &block.header.number;
        oracle.insert_light(block, l2.message_roots.get(number).copied(), appended.get(number).copied());
    }
    oracle
}

/// The embedded node with the recorded chain, altered as the faults say. Recorded content gives the recorded results, other
/// content gives made-up ones: nothing is taken on trust.
fn local_node(chain_id: u64, l2: &L2Facts, faults: &[Fault]) -> anyhow::Result<Node> {
    let Some(first) = l2.blocks.first() else { bail!("the fixture holds no L2 block") };
    let oracle = Arc::new(oracle(l2));
    let stored = |block: &L2Block| oracle.at(block.header.number.get()).context("a recorded block");
    let mut node = Node::new(chain_id, stored(first)?.as_ref().clone()).with_oracle(oracle.clone());
    let missing = faults.iter().find_map(|f| if let Fault::MissingTail(n) = f { Some(*n) } else { None });
    let fork = faults.iter().find_map(|f| if let Fault::ForkAt(n) = f { Some(*n) } else { None });
    let keep = l2.blocks.len().saturating_sub(usize::try_from(missing.unwrap_or(0)).unwrap_or(usize::MAX)).max(1);
    for block in l2.blocks.iter().take(keep).skip(1) {
        match fork {
            Some(fork) if block.header.number >= fork => {
                let mut other = new_block(block);
                if block.header.number == fork {
                    other.gas_limit = other.gas_limit.saturating_sub(1);
                }
                let written = node.write_quietly(&SafeL2Data::from(&other));
                written.map_err(|e| anyhow::anyhow!("forking at block {fork}: {}", e.message))?;
            }
            _ => node.import(stored(block)?),
        }
    }
    Ok(node)
}

fn new_block(block: &L2Block) -> NewBlock {
    NewBlock {
        number: block.header.number,
        timestamp: block.header.timestamp,
        base_fee: block.header.base_fee,
        gas_limit: block.header.gas_limit,
        transactions: block.transactions.clone(),
        parent_hash: None,
    }
}

/// Polls until nothing changes any more.
async fn drive(mut worker: Worker, fixture: String, quiet: bool) -> (Report, Exit) {
    let progress = super::terminal::spinner(quiet);
    let mut batches: BTreeMap<BatchIndex, BatchReport> = BTreeMap::new();
    let mut now = Duration::ZERO;
    let mut waited = 0;
    let stall = loop {
        now = now.saturating_add(STEP);
        let outcome = worker.poll(now).await;
        let (end, lasting): (Option<Stall>, bool) = match &outcome {
            Ok(report) => {
                for batch in &report.batches {
                    progress.set_message(format!("batch {} {}", batch.index, batch.case));
                    batches.insert(batch.index, batch.clone());
                }
                match &report.end {
                    PollEnd::Behind => {
                        waited = 0;
                        continue;
                    }
                    PollEnd::CaughtUp | PollEnd::Reached => break None,
                    PollEnd::Stalled(stall) => (Some(stall.clone()), stall.reason().is_halt()),
                }
            }
            Err(error) => (Some(error.stall()), error.severity() == Severity::Halt),
        };
        waited += 1;
        if lasting || waited >= PATIENCE {
            break end;
        }
    };
    progress.finish_and_clear();
    let exit = stall.as_ref().map_or(Exit::Done, |stall| Exit::from(stall.reason()));
    let outcome = match exit {
        Exit::Done => Ending::Verified,
        Exit::Divergence => Ending::Diverged,
        Exit::Failed | Exit::Usage | Exit::Unavailable => Ending::Incomplete,
    };
    let report = Report {
        fixture,
        batches: batches.into_values().collect(),
        safe: worker.heads().safe(),
        finalized: worker.heads().finalized(),
        outcome,
        reason: stall.map(|s| s.to_string()),
    };
    (report, exit)
}

fn print(report: &Report, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
        return Ok(());
    }
    let mut table = super::terminal::table(&["batch", "case", "blocks", "rewritten"]);
    for batch in &report.batches {
        let case = match (batch.case, batch.encoder_drift) {
            (Case::Consistent, true) => "consistent (encoder drift)".to_owned(),
            (case, _) => case.to_string(),
        };
        table.add_row([batch.index.to_string(), case, batch.blocks.to_string(), batch.rewritten.to_string()]);
    }
    println!("{table}");
    let head = |head: &Option<L2Ref>| head.map_or_else(|| "none".to_owned(), |h| h.to_string());
    println!("safe       {}", head(&report.safe));
    println!("finalized  {}", head(&report.finalized));
    let outcome = match report.outcome {
        Ending::Verified => "verified",
        Ending::Diverged => "diverged",
        Ending::Incomplete => "incomplete",
    };
    match &report.reason {
        None => println!("outcome    {outcome}"),
        Some(reason) => println!("outcome    {outcome}: {reason}"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_strictly() {
        assert_eq!(parse_fault("missing-tail=3"), Ok(Fault::MissingTail(3)));
        assert_eq!(parse_fault("fork-at=12"), Ok(Fault::ForkAt(12.into())));
        assert_eq!(parse_fault("stopped"), Ok(Fault::Stopped));
        assert_eq!(parse_fault("alive"), Ok(Fault::Alive));
        for wrong in ["", "missing-tail", "missing-tail=", "missing-tail=x", "fork-at=-1", "stopped=1", "dead"] {
            assert!(parse_fault(wrong).is_err(), "{wrong}");
        }
    }
}
