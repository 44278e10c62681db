//! How fast a worker that is behind catches up, as a ratio to the access pattern of the reference node and to the bare
//! time of the same KZG commitments, both measured in the same run.
//!
//! `cargo bench --bench catch_up` prints a table, `-- --json` one object a row. The simulated network runs in a process of
//! its own, so that its memory is not ours and its CPU time can be told apart.
//!
//! - `ratio_to_sequential`: time a batch takes when it is read as the reference node reads it (one block a round trip, one
//!   header per L1 block, the encoder always with the target size, one core), divided by what it takes here.
//! - `ratio_to_kzg`: what a batch takes here, divided by the bare time of its commitments on all cores.

#![allow(missing_docs)]

mod network;
mod ours;
mod reference;

use std::time::{Duration, Instant};

use anyhow::Context as _;
use morph_deriver::codec::blob;
use morph_deriver::types::Blob;
use serde::Serialize;

use network::{Child, Shape};

/// One line of the result.
#[derive(Debug, Serialize)]
struct Row {
    what: &'static str,
    rtt_ms: u64,
    kzg: &'static str,
    blocks: &'static str,
    batches: u64,
    ms_per_batch: f64,
    ratio_to_sequential: f64,
    ratio_to_kzg: f64,
    requests_per_batch: f64,
    requests_per_idle_poll: u64,
    peak_rss_mib: u64,
    /// CPU time that a batch took here and in the network's process, and the bare time of its commitments on one core.
    own_cpu_ms: f64,
    network_cpu_ms: f64,
    kzg_cpu_ms: f64,
}

struct Options {
    json: bool,
    shape: Shape,
    rtts: Vec<u64>,
    /// Which rows are measured.
    kzg: Vec<String>,
    form: Vec<String>,
    /// Longest time for one measurement of the reference's pattern.
    patience: Duration,
    recover: bool,
}

fn options() -> anyhow::Result<Options> {
    let mut options = Options {
        json: false,
        shape: Shape { batches: 200, blocks: 600, noise: 110, l1_blocks: 25 },
        rtts: vec![0, 5, 50],
        kzg: vec!["one-by-one".to_owned(), "aggregated".to_owned()],
        form: vec!["raw".to_owned(), "json".to_owned()],
        patience: Duration::from_secs(20),
        recover: true,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--json" => options.json = true,
            "--batches" => options.shape.batches = value()?.parse()?,
            "--blocks" => options.shape.blocks = value()?.parse()?,
            "--noise" => options.shape.noise = value()?.parse()?,
            "--l1-blocks" => options.shape.l1_blocks = value()?.parse()?,
            "--patience" => options.patience = humantime::parse_duration(&value()?)?,
            "--no-recover" => options.recover = false,
            "--rtt" => options.rtts = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--kzg" => options.kzg = value()?.split(',').map(str::to_owned).collect(),
            "--form" => options.form = value()?.split(',').map(str::to_owned).collect(),
            // What cargo passes to every benchmark.
            "--bench" => {}
            other => anyhow::bail!("unknown argument {other}"),
        }
    }
    Ok(options)
}

fn main() -> anyhow::Result<()> {
    let first = std::env::args().nth(1);
    match first.as_deref() {
        Some(network::SERVE) => network::serve(),
        Some(ours::FIRST) => ours::first_batch(),
        _ => measure(&options()?),
    }
}

fn measure(options: &Options) -> anyhow::Result<()> {
    let mut child = Child::start(&options.shape)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let start_ms = ours::time_to_first_batch(&mut child)?;
    let mut rows = Vec::new();
    for &rtt in &options.rtts {
        child.latency(rtt)?;
        child.raw_blocks(false)?;
        let sequential = runtime.block_on(reference::catch_up(&child.urls, &options.shape, options.patience))?;
        let kzg = bare_commitments(&sequential.blobs, sequential.blobs_per_batch)?;
        for (raw, blocks) in [(true, "raw"), (false, "json")] {
            if !options.form.iter().any(|form| form == blocks) {
                continue;
            }
            child.raw_blocks(raw)?;
            for (beacon_blocks, kzg_way) in [(false, "one-by-one"), (true, "aggregated")] {
                if !options.kzg.iter().any(|kzg| kzg == kzg_way) {
                    continue;
                }
                child.beacon_blocks(beacon_blocks)?;
                child.reset()?;
                let run = runtime.block_on(ours::catch_up(&mut child, &options.shape))?;
                let per_batch = |cpu: Duration| cpu.as_secs_f64() * 1000.0 / run.batches as f64;
                let row = Row {
                    what: "catch-up",
                    rtt_ms: rtt,
                    kzg: kzg_way,
                    blocks,
                    batches: run.batches,
                    ms_per_batch: run.per_batch.as_secs_f64() * 1000.0,
                    ratio_to_sequential: sequential.per_batch.as_secs_f64() / run.per_batch.as_secs_f64(),
                    ratio_to_kzg: run.per_batch.as_secs_f64() / kzg.as_secs_f64(),
                    requests_per_batch: run.requests_per_batch,
                    requests_per_idle_poll: run.requests_per_idle_poll,
                    peak_rss_mib: run.peak_rss_mib,
                    own_cpu_ms: per_batch(run.own_cpu),
                    network_cpu_ms: per_batch(run.network_cpu),
                    kzg_cpu_ms: kzg.as_secs_f64() * 1000.0 * cores() as f64,
                };
                print(options, &row)?;
                rows.push(row);
            }
        }
        if !options.json {
            println!(
                "      sequential {:.1} ms a batch over {} batches, bare commitments {:.1} ms a batch",
                sequential.per_batch.as_secs_f64() * 1000.0,
                sequential.batches,
                kzg.as_secs_f64() * 1000.0
            );
        }
    }
    if options.recover {
        child.latency(5)?;
        child.raw_blocks(true)?;
        child.beacon_blocks(false)?;
        let written = runtime.block_on(ours::recover(&mut child, &options.shape))?;
        if options.json {
            println!("{}", serde_json::to_string(&written)?);
        } else {
            println!(
                "recover at 5 ms: {:.0} blocks/s, one by one {:.0} blocks/s, ratio {:.1}",
                written.blocks_per_second, written.one_by_one, written.ratio
            );
        }
    }
    if options.json {
        println!("{}", serde_json::json!({"what": "start", "ms_to_first_batch": start_ms}));
    } else {
        println!("start to the first verified batch: {start_ms} ms");
    }
    Ok(())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What the commitments of one batch take on all cores, with nothing else.
fn bare_commitments(blobs: &[Blob], per_batch: f64) -> anyhow::Result<Duration> {
    anyhow::ensure!(!blobs.is_empty(), "no blob to commit to");
    blob::warm_up()?;
    let cores = cores();
    let rounds = 60_usize.div_ceil(cores);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for core in 0..cores {
            scope.spawn(move || {
                for round in 0..rounds {
                    let _ = std::hint::black_box(blob::commitment(&blobs[(round * cores + core) % blobs.len()]));
                }
            });
        }
    });
    Ok(begin.elapsed().div_f64((rounds * cores) as f64).mul_f64(per_batch))
}

fn print(options: &Options, row: &Row) -> anyhow::Result<()> {
    if options.json {
        println!("{}", serde_json::to_string(row)?);
        return Ok(());
    }
    println!(
        "rtt {:>2} ms  {:<10}  {:<4}  {:>4} batches  {:>7.2} ms/batch  {:>6.1} x sequential  {:>5.2} x bare KZG  {:>5.1} requests/batch  \
         {} per idle poll  {:>4} MiB  CPU of a batch: {:.1} ms, the network's {:.1} ms, bare KZG {:.1} ms",
        row.rtt_ms,
        row.kzg,
        row.blocks,
        row.batches,
        row.ms_per_batch,
        row.ratio_to_sequential,
        row.ratio_to_kzg,
        row.requests_per_batch,
        row.requests_per_idle_poll,
        row.peak_rss_mib,
        row.own_cpu_ms,
        row.network_cpu_ms,
        row.kzg_cpu_ms
    );
    Ok(())
}
