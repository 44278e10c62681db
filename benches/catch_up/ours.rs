//! The worker itself, over the same network.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use morph_deriver::adapters::beacon::{BeaconClient, BeaconConfig};
use morph_deriver::adapters::engine::{EngineClient, load_jwt_secret};
use morph_deriver::adapters::l1::L1Client;
use morph_deriver::adapters::l2::{L2Client, L2Config};
use morph_deriver::adapters::reactors::NoReactors;
use morph_deriver::adapters::rpc::{Pool, PoolConfig};
use morph_deriver::adapters::store::SqliteStore;
use morph_deriver::decide::liveness::HeadTrend;
use morph_deriver::error::Target;
use morph_deriver::flow::worker::Worker;
use morph_deriver::flow::{Confirmations, PollEnd, Ports, Settings};
use morph_deriver::ports::{L2Engine as _, L2Reader as _};
use morph_deriver::types::{BatchIndex, Case, L2Number, NewBlock};
use serde::Serialize;

use crate::network::{self, Child, Shape, Urls};

/// First argument of the process that measures a start.
pub const FIRST: &str = "--first-batch";

/// What was measured.
pub struct Run {
    pub batches: u64,
    pub per_batch: Duration,
    /// CPU time of this process, and of the network's.
    pub own_cpu: Duration,
    pub network_cpu: Duration,
    pub requests_per_batch: f64,
    pub requests_per_idle_poll: u64,
    pub peak_rss_mib: u64,
}

fn pool(target: Target, url: &str) -> anyhow::Result<Pool> {
    Ok(Pool::new(target, &[url.to_owned()], PoolConfig::default())?)
}

fn engine(urls: &Urls) -> anyhow::Result<EngineClient> {
    Ok(EngineClient::new(&urls.engine, load_jwt_secret(&urls.jwt)?, PoolConfig::default())?)
}

async fn worker(
    urls: &Urls,
    assume: Option<HeadTrend>,
    to: Option<u64>,
) -> anyhow::Result<(Worker, tempfile::TempDir)> {
    let folder = tempfile::tempdir()?;
    let ports = Ports {
        l1: Arc::new(L1Client::new(pool(Target::L1, &urls.l1)?, urls.rollup, urls.queue)),
        blobs: Arc::new(BeaconClient::new(pool(Target::Beacon, &urls.beacon)?, BeaconConfig::default())),
        l2: Arc::new(L2Client::new(pool(Target::L2, &urls.l2)?, L2Config::default())),
        engine: Some(Arc::new(engine(urls)?)),
        reactors: Arc::new(NoReactors),
        progress: Arc::new(SqliteStore::open(&folder.path().join("bench.sqlite")).await?),
    };
    let confirmations = Confirmations::Depth(0);
    let settings = Settings {
        rollup: urls.rollup,
        confirmations,
        assume,
        to_batch: to.map(BatchIndex::new),
        ..Settings::default()
    };
    Ok((Worker::start(ports, settings).await?, folder))
}

/// Verifies every batch.
pub async fn catch_up(child: &mut Child, shape: &Shape) -> anyhow::Result<Run> {
    forget_peak();
    let (mut worker, _folder) = worker(&child.urls, None, None).await?;
    let (own, other) = (network::cpu()?, child.cpu()?);
    let begin = Instant::now();
    let mut batches = 0_u64;
    loop {
        let report = worker.poll(begin.elapsed()).await?;
        anyhow::ensure!(report.batches.iter().all(|b| b.case == Case::Consistent), "a batch is not consistent");
        batches += report.batches.len() as u64;
        match report.end {
            PollEnd::Behind => {}
            PollEnd::CaughtUp => break,
            end => anyhow::bail!("the worker ended on {end:?}"),
        }
    }
    let elapsed = begin.elapsed();
    let (own_cpu, network_cpu) = (network::cpu()?.saturating_sub(own), child.cpu()?.saturating_sub(other));
    anyhow::ensure!(batches == shape.batches, "{batches} of {} batches", shape.batches);
    let requests = child.requests()?;
    worker.poll(begin.elapsed()).await?;
    let idle = child.requests()? - requests;
    Ok(Run {
        batches,
        per_batch: elapsed.div_f64(batches as f64),
        own_cpu,
        network_cpu,
        requests_per_batch: requests as f64 / batches as f64,
        requests_per_idle_poll: idle,
        peak_rss_mib: peak_rss_mib()?,
    })
}

/// The highest resident memory is counted from here on.
fn forget_peak() {
    // Where the kernel does not allow it, the peak counts from the start.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn peak_rss_mib() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM in /proc/self/status")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024)
}

/// Milliseconds from the start of a process to its first verified batch.
pub fn time_to_first_batch(child: &mut Child) -> anyhow::Result<u64> {
    child.latency(0)?;
    child.raw_blocks(true)?;
    child.reset()?;
    let mut command = Command::new(std::env::current_exe()?);
    let begin = Instant::now();
    let output = command.args([FIRST, &serde_json::to_string(&child.urls)?]).stderr(Stdio::inherit()).output()?;
    anyhow::ensure!(output.status.success(), "the process that verifies one batch failed");
    Ok(u64::try_from(begin.elapsed().as_millis())?)
}

/// The whole life of that process.
pub fn first_batch() -> anyhow::Result<()> {
    let urls: Urls = serde_json::from_str(&std::env::args().nth(2).context("no URLs given")?)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut worker, _folder) = worker(&urls, None, Some(1)).await?;
        let report = worker.poll(Duration::ZERO).await?;
        anyhow::ensure!(report.batches.len() == 1, "{:?}", report.end);
        Ok(())
    })
}

/// What writing missing blocks comes to.
#[derive(Debug, Serialize)]
pub struct Written {
    what: &'static str,
    rtt_ms: u64,
    pub blocks_per_second: f64,
    pub one_by_one: f64,
    pub ratio: f64,
}

/// Batches that are written, and blocks of them that are written one by one for comparison.
const RECOVERED: u64 = 20;
const ONE_BY_ONE: u64 = 300;

/// Writes the first batches again into an empty node: one block a call, then as the worker does.
pub async fn recover(child: &mut Child, shape: &Shape) -> anyhow::Result<Written> {
    let to = RECOVERED.min(shape.batches);
    child.reset()?;
    let l2 = L2Client::new(pool(Target::L2, &child.urls.l2)?, L2Config::default());
    let engine = engine(&child.urls)?;
    let count = ONE_BY_ONE.min(to * shape.blocks);
    let blocks = l2.blocks(L2Number::new(1), L2Number::new(count)).await?;
    child.truncate(0)?;
    let begin = Instant::now();
    for block in &blocks {
        let new = NewBlock {
            number: block.header.number,
            timestamp: block.header.timestamp,
            base_fee: block.header.base_fee,
            gas_limit: block.header.gas_limit,
            transactions: block.transactions.clone(),
            parent_hash: Some(block.header.parent_hash),
        };
        engine.write_blocks(&[new]).await?;
    }
    let one_by_one = count as f64 / begin.elapsed().as_secs_f64();
    child.reset()?;
    child.truncate(0)?;
    let (mut worker, _folder) = worker(&child.urls, Some(HeadTrend::Stopped), Some(to)).await?;
    let begin = Instant::now();
    loop {
        match worker.poll(begin.elapsed()).await?.end {
            PollEnd::Behind => {}
            PollEnd::CaughtUp | PollEnd::Reached => break,
            end => anyhow::bail!("the worker ended on {end:?}"),
        }
    }
    let blocks_per_second = (to * shape.blocks) as f64 / begin.elapsed().as_secs_f64();
    child.reset()?;
    Ok(Written { what: "recover", rtt_ms: 5, blocks_per_second, one_by_one, ratio: blocks_per_second / one_by_one })
}
