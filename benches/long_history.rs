//! Does anything grow with the history? A worker verifies a long one in one run.
//!
//! `cargo bench --bench long_history` verifies 5,000 small batches, `-- --batches 50000` as many as asked for, `-- --json`
//! prints one object. Compared are the first thousand batches and the last: time and CPU time a batch, requests, memory;
//! and the database at the end, which is pruned below finality. Then come what L1 is asked for, by method: for a batch of
//! the history, for a poll that finds one new L1 block, and for a new batch beside that. The simulated network runs in a
//! process of its own; its CPU time is told apart, since what it holds grows by itself.

#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
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
use morph_deriver::devnet::chain::{BatchSpec, BlockPlan};
use morph_deriver::devnet::faults::Server;
use morph_deriver::devnet::world::{World, WorldOptions};
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::error::Target;
use morph_deriver::flow::worker::Worker;
use morph_deriver::flow::{Confirmations, PollEnd, Ports, Settings};
use morph_deriver::types::{Address, Case};
use serde::{Deserialize, Serialize};

/// First argument of the child process.
const SERVE: &str = "--serve-network";
/// Batches that are compared at both ends.
const SAMPLE: u64 = 1_000;
/// L2 blocks of a batch, and L1 blocks from one commit to the next.
const BLOCKS: u64 = 2;
const L1_BLOCKS: u64 = 4;
/// One L1 message for so many batches: the simulated queue is copied for every block.
const MESSAGE_EVERY: u64 = 100;
/// One proof on the contract for so many batches.
const PROOF_EVERY: u64 = 8;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Urls {
    l1: String,
    beacon: String,
    l2: String,
    engine: String,
    jwt: PathBuf,
    rollup: Address,
    queue: Address,
}

/// What the network's process has spent.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Spent {
    requests: u64,
    cpu_ms: u64,
    /// Calls to L1 by method, and HTTP requests that carried them.
    l1: BTreeMap<String, u64>,
}

/// What a worker may ask of L1.
const L1_METHODS: [&str; 6] = [
    "eth_chainId",
    "eth_getBlockByNumber",
    "eth_getLogs",
    "eth_call",
    "eth_getTransactionByBlockHashAndIndex",
    "debug_traceTransaction",
];
/// Polls over which the requests of one are counted.
const POLLS: u64 = 20;

fn world(batches: u64) -> anyhow::Result<World> {
    let mut world = World::new(&WorldOptions::default())?;
    for index in 1..=batches {
        let with_message = index.is_multiple_of(MESSAGE_EVERY);
        if with_message {
            world.enqueue(1)?;
            world.mine(1);
        }
        for at in 0..BLOCKS {
            let messages = usize::from(with_message && at == 0);
            world.build_planned(&BlockPlan { txs: 1, messages, ..BlockPlan::empty() })?;
        }
        world.commit(BatchSpec::default())?;
        world.mine(L1_BLOCKS);
        if index.is_multiple_of(PROOF_EVERY) {
            world.finalize(index)?;
        }
    }
    world.mine(world.l1.config.finalized_depth + 1);
    world.sync();
    Ok(world)
}

fn say(value: &impl Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(value)?)?;
    Ok(out.flush()?)
}

/// The child's whole life: serves, and answers every line with what it spent.
fn serve() -> anyhow::Result<()> {
    let batches = std::env::args().nth(2).context("no number of batches given")?.parse()?;
    let world = world(batches)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let _inside = runtime.enter();
    let devnet = runtime.block_on(Devnet::serve(world, DevnetOptions::default()))?;
    say(&Urls {
        l1: devnet.l1_url(),
        beacon: devnet.beacon_url(),
        l2: devnet.l2_url(),
        engine: devnet.engine_url(),
        jwt: devnet.jwt_secret_path().to_owned(),
        rollup: devnet.rollup(),
        queue: devnet.queue(),
    })?;
    for line in std::io::stdin().lock().lines() {
        match line?.as_str() {
            "mine" => devnet.with(|w| w.mine(1)).number.get(),
            "batch" => {
                let made = devnet.with(|w| {
                    let made = w.build(BLOCKS).and_then(|()| w.commit(BatchSpec::default()));
                    w.mine(1);
                    w.sync();
                    made
                });
                made?.index
            }
            _ => 0,
        };
        let mut l1: BTreeMap<_, _> =
            L1_METHODS.iter().map(|method| ((*method).to_owned(), devnet.calls(Server::L1(0), method))).collect();
        l1.insert("HTTP requests".to_owned(), devnet.http_requests(Server::L1(0)));
        say(&Spent { requests: devnet.all_http_requests(), cpu_ms: cpu_ms()?, l1 })?;
    }
    Ok(())
}

/// CPU time of this process in milliseconds, by the kernel's ticks of 10 ms.
fn cpu_ms() -> anyhow::Result<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("no name in /proc/self/stat")?.1.split_whitespace().collect();
    let field = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).context("/proc/self/stat");
    Ok((field(11)? + field(12)?) * 10)
}

/// A line of `/proc/self/status`, in MiB.
fn memory_mib(name: &str) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
    let kib: f64 = line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse()?;
    Ok((kib / 102.4).round() / 10.0)
}

struct Network {
    process: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    urls: Urls,
}

impl Drop for Network {
    fn drop(&mut self) {
        // It ends with its standard input too.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn read<T: serde::de::DeserializeOwned>(from: &mut impl BufRead) -> anyhow::Result<T> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    serde_json::from_str(&line).with_context(|| format!("the network's process said {line:?}"))
}

impl Network {
    fn start(batches: u64) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([SERVE, &batches.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let stdin = process.stdin.take().context("no stdin")?;
        let mut stdout = BufReader::new(process.stdout.take().context("no stdout")?);
        let urls = read(&mut stdout)?;
        Ok(Self { process, stdin, stdout, urls })
    }

    /// Does what `order` says, and gives what was spent before the next order.
    fn spent(&mut self, order: &str) -> anyhow::Result<Spent> {
        writeln!(self.stdin, "{order}")?;
        self.stdin.flush()?;
        read(&mut self.stdout)
    }
}

/// How far the worker was at one moment, and what that took.
#[derive(Clone, Debug)]
struct Mark {
    batches: u64,
    elapsed: Duration,
    cpu_ms: u64,
    network: Spent,
    memory_mib: f64,
}

/// A batch of one stretch, in the middle.
#[derive(Debug, Serialize)]
struct Each {
    batches: u64,
    ms: f64,
    cpu_ms: f64,
    network_cpu_ms: f64,
    requests: f64,
    memory_mib: f64,
}

impl Each {
    fn between(a: &Mark, b: &Mark) -> Self {
        let batches = b.batches - a.batches;
        let each = |value: f64| (value / batches.max(1) as f64 * 1_000.0).round() / 1_000.0;
        Self {
            batches,
            ms: each((b.elapsed - a.elapsed).as_secs_f64() * 1_000.0),
            cpu_ms: each((b.cpu_ms - a.cpu_ms) as f64),
            network_cpu_ms: each((b.network.cpu_ms - a.network.cpu_ms) as f64),
            requests: each((b.network.requests - a.network.requests) as f64),
            memory_mib: b.memory_mib,
        }
    }
}

#[derive(Debug, Serialize)]
struct Row {
    batches: u64,
    seconds: f64,
    first: Each,
    last: Each,
    last_to_first: f64,
    last_to_first_cpu: f64,
    peak_mib: f64,
    database_kib: u64,
    /// Of it, pages that are free: SQLite uses them again and does not give them back.
    free_kib: u64,
    /// Rows by table.
    rows: BTreeMap<String, i64>,
    safe: Option<u64>,
    finalized: Option<u64>,
    /// Calls to L1 for one batch of the history.
    l1_per_batch: BTreeMap<String, f64>,
    /// For one poll that finds one new L1 block without a batch.
    l1_per_poll: BTreeMap<String, f64>,
    /// For one poll that finds one new L1 block with a batch.
    l1_per_poll_with_batch: BTreeMap<String, f64>,
}

/// Calls for one of `count`.
fn calls_each(before: &Spent, after: &Spent, count: u64) -> BTreeMap<String, f64> {
    let each = |(method, calls): (&String, &u64)| {
        let more = calls - before.l1.get(method).copied().unwrap_or_default();
        (method.clone(), (more as f64 / count.max(1) as f64 * 1_000.0).round() / 1_000.0)
    };
    after.l1.iter().map(each).filter(|(_, each)| *each > 0.0).collect()
}

/// Calls to L1 for one poll after `order`.
async fn live(network: &mut Network, worker: &mut Worker, order: &str) -> anyhow::Result<BTreeMap<String, f64>> {
    let before = network.spent("")?;
    for _ in 0..POLLS {
        network.spent(order)?;
        let report = worker.poll(Duration::from_secs(1_000_000)).await?;
        let new = report.batches.iter().filter(|b| b.case == Case::Consistent).count();
        anyhow::ensure!(new == usize::from(order == "batch"), "{new} batches after {order}");
        anyhow::ensure!(report.end == PollEnd::CaughtUp, "the poll ended on {:?}", report.end);
    }
    Ok(calls_each(&before, &network.spent("")?, POLLS))
}

fn pool(target: Target, url: &str) -> anyhow::Result<Pool> {
    Ok(Pool::new(target, &[url.to_owned()], PoolConfig::default())?)
}

fn ports(urls: &Urls, store: Arc<SqliteStore>) -> anyhow::Result<Ports> {
    let engine = EngineClient::new(&urls.engine, load_jwt_secret(&urls.jwt)?, PoolConfig::default())?;
    Ok(Ports {
        l1: Arc::new(L1Client::new(pool(Target::L1, &urls.l1)?, urls.rollup, urls.queue)),
        blobs: Arc::new(BeaconClient::new(pool(Target::Beacon, &urls.beacon)?, BeaconConfig::default())),
        l2: Arc::new(L2Client::new(pool(Target::L2, &urls.l2)?, L2Config::default())),
        engine: Some(Arc::new(engine)),
        reactors: Arc::new(NoReactors),
        progress: store,
    })
}

/// Bytes of the database and of what lies beside it.
fn size_of(path: &Path) -> u64 {
    let beside = |end: &str| std::fs::metadata(format!("{}{end}", path.display())).map_or(0, |file| file.len());
    ["", "-wal"].into_iter().map(beside).sum()
}

/// Rows by table, and free pages in KiB.
async fn inside(path: &Path) -> anyhow::Result<(BTreeMap<String, i64>, u64)> {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).read_only(true);
    let pool = sqlx::sqlite::SqlitePool::connect_with(options).await?;
    let mut rows = BTreeMap::new();
    let statements = [
        ("batches", "SELECT count(*) FROM batches"),
        ("l1_blocks", "SELECT count(*) FROM l1_blocks"),
        ("l1_messages", "SELECT count(*) FROM l1_messages"),
        ("proofs", "SELECT count(*) FROM proofs"),
        ("reverts", "SELECT count(*) FROM reverts"),
        ("journal", "SELECT count(*) FROM journal"),
    ];
    for (table, statement) in statements {
        rows.insert(table.to_owned(), sqlx::query_scalar(statement).fetch_one(&pool).await?);
    }
    let free: i64 =
        sqlx::query_scalar("SELECT freelist_count * page_size / 1024 FROM pragma_freelist_count, pragma_page_size")
            .fetch_one(&pool)
            .await?;
    pool.close().await;
    Ok((rows, u64::try_from(free)?))
}

async fn verify(network: &mut Network, batches: u64) -> anyhow::Result<Row> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("long.sqlite");
    let store = Arc::new(SqliteStore::open(&path).await?);
    let settings =
        Settings { rollup: network.urls.rollup, confirmations: Confirmations::Depth(0), ..Settings::default() };
    let mut worker = Worker::start(ports(&network.urls, store.clone())?, settings).await?;
    let begin = Instant::now();
    let mut done = 0;
    let mut marks = Vec::new();
    loop {
        marks.push(Mark {
            batches: done,
            elapsed: begin.elapsed(),
            cpu_ms: cpu_ms()?,
            network: network.spent("")?,
            memory_mib: memory_mib("VmRSS")?,
        });
        let report = worker.poll(begin.elapsed()).await?;
        anyhow::ensure!(report.batches.iter().all(|b| b.case == Case::Consistent), "a batch is not consistent");
        done += report.batches.len() as u64;
        match report.end {
            PollEnd::Behind => {}
            PollEnd::CaughtUp => break,
            end => anyhow::bail!("the worker ended on {end:?}"),
        }
    }
    anyhow::ensure!(done == batches, "{done} of {batches} batches");
    let heads = worker.heads();
    let seconds = begin.elapsed().as_secs_f64();
    let peak_mib = memory_mib("VmHWM")?;
    let (begun, ended) = (marks.first().context("no mark")?, network.spent("")?);
    let l1_per_batch = calls_each(&begun.network, &ended, batches);
    let l1_per_poll = live(network, &mut worker, "mine").await?;
    let l1_per_poll_with_batch = live(network, &mut worker, "batch").await?;
    drop(worker);
    store.close().await;
    let database_kib = size_of(&path) / 1024;
    let (rows, free_kib) = inside(&path).await?;
    let at = |wanted: u64| marks.iter().find(|mark| mark.batches >= wanted).context("no mark");
    let end = marks.last().context("no mark")?;
    // The first poll opens connections and looks for the execution client: not counted.
    let begun = marks.iter().find(|mark| mark.batches > 0).context("no batch")?;
    let first = Each::between(begun, at(begun.batches + SAMPLE)?);
    let last = Each::between(at(end.batches.saturating_sub(SAMPLE))?, end);
    Ok(Row {
        batches,
        seconds,
        last_to_first: last.ms / first.ms,
        last_to_first_cpu: last.cpu_ms / first.cpu_ms,
        first,
        last,
        peak_mib,
        database_kib,
        free_kib,
        rows,
        safe: heads.safe().map(|head| head.number.get()),
        finalized: heads.finalized().map(|head| head.number.get()),
        l1_per_batch,
        l1_per_poll,
        l1_per_poll_with_batch,
    })
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|arg| arg == SERVE) {
        return serve();
    }
    let (mut batches, mut json) = (5_000, false);
    let mut rest = args.into_iter().skip(1);
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "--json" => json = true,
            "--batches" => batches = rest.next().context("--batches needs a value")?.parse()?,
            // What cargo passes to every benchmark.
            "--bench" => {}
            other => anyhow::bail!("unknown argument {other}"),
        }
    }
    anyhow::ensure!(batches >= 3 * SAMPLE, "at least {} batches", 3 * SAMPLE);
    let mut network = Network::start(batches)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let row = runtime.block_on(verify(&mut network, batches))?;
    if json {
        println!("{}", serde_json::to_string(&row)?);
        return Ok(());
    }
    println!("{} batches of {BLOCKS} blocks in {:.0} s", row.batches, row.seconds);
    for (name, each) in [("first", &row.first), ("last", &row.last)] {
        println!(
            "{name:<6} {:>5} batches: {:.2} ms each, {:.2} ms of CPU, the network's {:.2} ms, {:.2} requests; {} MiB",
            each.batches, each.ms, each.cpu_ms, each.network_cpu_ms, each.requests, each.memory_mib
        );
    }
    println!("last to first: {:.2} in time, {:.2} in CPU time", row.last_to_first, row.last_to_first_cpu);
    println!("peak {} MiB, database {} KiB, of these {} KiB free", row.peak_mib, row.database_kib, row.free_kib);
    println!("rows: {:?}", row.rows);
    for (what, calls) in [
        ("a batch of the history", &row.l1_per_batch),
        ("a poll with a new L1 block", &row.l1_per_poll),
        ("a poll with a new batch", &row.l1_per_poll_with_batch),
    ] {
        let calls: Vec<_> = calls.iter().map(|(method, each)| format!("{method} {each}")).collect();
        println!("L1 for {what}: {}", calls.join(", "));
    }
    Ok(())
}
