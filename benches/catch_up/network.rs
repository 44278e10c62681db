//! The simulated network, in a process of its own: started by the benchmark, steered by lines on its standard input.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use morph_deriver::devnet::beacon::Route;
use morph_deriver::devnet::chain::{BatchSpec, BlockPlan};
use morph_deriver::devnet::faults::Server;
use morph_deriver::devnet::world::{World, WorldOptions};
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::types::Address;
use serde::{Deserialize, Serialize};

/// First argument of the child process.
pub const SERVE: &str = "--serve-network";

/// What the network consists of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Shape {
    pub batches: u64,
    /// L2 blocks of a batch.
    pub blocks: u64,
    /// Random bytes in the one transaction of each block: 110 fill one blob with 600 blocks.
    pub noise: usize,
    /// L1 blocks from one commit to the next.
    pub l1_blocks: u64,
}

/// Where everything is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Urls {
    pub l1: String,
    pub beacon: String,
    pub l2: String,
    pub engine: String,
    pub jwt: std::path::PathBuf,
    pub rollup: Address,
    pub queue: Address,
    pub l1_head: u64,
    /// L1 block of each batch's commit.
    pub commits: Vec<u64>,
}

/// HTTP requests since the last reset, and the process's CPU time since its start.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Facts {
    requests: u64,
    cpu: Duration,
}

fn world(shape: &Shape) -> anyhow::Result<World> {
    let mut world = World::new(&WorldOptions::default())?;
    for _ in 0..shape.batches {
        world.enqueue(1)?;
        world.mine(1);
        for at in 0..shape.blocks {
            let plan = BlockPlan { txs: 1, noise: shape.noise, messages: usize::from(at == 0), ..BlockPlan::empty() };
            world.build_planned(&plan)?;
        }
        world.commit(BatchSpec::default())?;
        world.mine(shape.l1_blocks.max(2) - 1);
    }
    world.mine(world.l1.config.finalized_depth + 1);
    world.sync();
    Ok(world)
}

/// The child's whole life.
pub fn serve() -> anyhow::Result<()> {
    let shape: Shape = serde_json::from_str(&std::env::args().nth(2).context("no shape given")?)?;
    let world = world(&shape)?;
    let commits = world.batches.iter().filter_map(|b| world.l1.find_tx(b.tx)).map(|(b, ..)| b.header.number).collect();
    let (l1_head, tip) = (world.l1.head(), world.sequencer.node.head().number());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let _inside = runtime.enter();
    let devnet = runtime.block_on(Devnet::serve(world, DevnetOptions::default()))?;
    let urls = Urls {
        l1: devnet.l1_url(),
        beacon: devnet.beacon_url(),
        l2: devnet.l2_url(),
        engine: devnet.engine_url(),
        jwt: devnet.jwt_secret_path().to_owned(),
        rollup: devnet.rollup(),
        queue: devnet.queue(),
        l1_head,
        commits,
    };
    say(&urls)?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("latency", ms) => {
                let latency = Duration::from_millis(ms.parse()?);
                for server in [Server::L1(0), Server::Beacon(0), Server::L2, Server::Engine] {
                    devnet.latency(server, latency);
                }
            }
            ("raw-blocks", on) => devnet.with(|w| {
                w.node.moods.debug_closed = on != "true";
                w.node.keep_answers();
            }),
            ("beacon-blocks", on) => {
                let route = if on == "true" { Route::default() } else { Route::Fail(404, "no such route".to_owned()) };
                devnet.beacon_knobs(0, |knobs| knobs.blocks = route);
            }
            ("reset", _) => {
                devnet.with(|w| {
                    w.sync_to(tip);
                    let genesis = w.node.at(0).map(|block| block.hash()).unwrap_or_default();
                    let _ = w.node.set_block_tags(genesis, genesis);
                });
                devnet.clear_counts();
            }
            ("truncate", to) => {
                let to = to.parse()?;
                devnet.with(|w| w.truncate_to(to));
            }
            ("facts", _) => {}
            (other, _) => anyhow::bail!("unknown order {other}"),
        }
        say(&Facts { requests: devnet.all_http_requests(), cpu: cpu()? })?;
    }
    Ok(())
}

fn say(value: &impl Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(value)?)?;
    Ok(out.flush()?)
}

/// CPU time of the process that asks, by the kernel's ticks of 10 ms.
pub fn cpu() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("no name in /proc/self/stat")?.1.split_whitespace().collect();
    let field = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).context("/proc/self/stat");
    Ok(Duration::from_millis((field(11)? + field(12)?) * 10))
}

/// The network's process, from outside.
pub struct Child {
    process: std::process::Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    pub urls: Urls,
}

impl Drop for Child {
    fn drop(&mut self) {
        // It ends with its standard input too.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Child {
    /// Starts it, which takes as long as its blocks take to be made.
    pub fn start(shape: &Shape) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([SERVE, &serde_json::to_string(shape)?]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let stdin = process.stdin.take().context("no stdin")?;
        let mut stdout = BufReader::new(process.stdout.take().context("no stdout")?);
        let urls = read(&mut stdout)?;
        Ok(Self { process, stdin, stdout, urls })
    }

    fn order(&mut self, order: &str) -> anyhow::Result<Facts> {
        writeln!(self.stdin, "{order}")?;
        self.stdin.flush()?;
        read(&mut self.stdout)
    }

    pub fn latency(&mut self, ms: u64) -> anyhow::Result<()> {
        self.order(&format!("latency {ms}")).map(|_| ())
    }

    /// Whether the node serves raw blocks. It renders all of its blocks in that form now, so that serving them is cheap.
    pub fn raw_blocks(&mut self, on: bool) -> anyhow::Result<()> {
        self.order(&format!("raw-blocks {on}")).map(|_| ())
    }

    /// Whether the beacon node serves blocks, which hold the commitments.
    pub fn beacon_blocks(&mut self, on: bool) -> anyhow::Result<()> {
        self.order(&format!("beacon-blocks {on}")).map(|_| ())
    }

    /// The node has every block, its tags stand on the genesis block, nothing was counted.
    pub fn reset(&mut self) -> anyhow::Result<()> {
        self.order("reset").map(|_| ())
    }

    /// The node's chain ends on block `to`.
    pub fn truncate(&mut self, to: u64) -> anyhow::Result<()> {
        self.order(&format!("truncate {to}")).map(|_| ())
    }

    pub fn cpu(&mut self) -> anyhow::Result<Duration> {
        Ok(self.order("facts")?.cpu)
    }

    pub fn requests(&mut self) -> anyhow::Result<u64> {
        Ok(self.order("facts")?.requests)
    }
}

fn read<T: serde::de::DeserializeOwned>(from: &mut impl BufRead) -> anyhow::Result<T> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    serde_json::from_str(&line).with_context(|| format!("the network's process said {line:?}"))
}
