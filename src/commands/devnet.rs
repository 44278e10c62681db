//! `devnet`: a simulated L1, beacon node and Morph execution node over HTTP on loopback, to try everything
//! without a node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use super::{Exit, run};
use crate::devnet::client::Client;
use crate::devnet::world::WorldOptions;
use crate::devnet::{Devnet, DevnetOptions};
use crate::flow::unix_now;

/// Arguments of `devnet`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder for the engine's secret and a ready configuration (devnet.toml)
    #[arg(long, default_value = "devnet", value_name = "DIR")]
    pub dir: PathBuf,
    /// First of five ports: L1, beacon, L2, engine, reactors; 0 takes free ones
    #[arg(long, default_value_t = 0, value_name = "PORT")]
    pub port: u16,
    /// Real time between two L1 blocks
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration)]
    pub l1_block_time: Duration,
    /// L2 blocks in a batch
    #[arg(long, default_value_t = 12)]
    pub blocks_per_batch: u64,
    /// Batches that are committed before the first answer is served
    #[arg(long, default_value_t = 3)]
    pub batches: u64,
    /// Stop the sequencer after this many batches were committed
    #[arg(long)]
    pub stop_after: Option<u64>,
    /// Do not sync the local node: its head moves only by writes to its engine
    #[arg(long)]
    pub no_sync: bool,
    /// The execution client that the local node imitates: geth, reth (the newest), reth-a, reth-b or reth-c
    #[arg(long, default_value = "geth", value_name = "CLIENT")]
    pub client: Client,
    /// Seed of everything random
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Ports in use, a folder that cannot be written.
pub async fn execute(args: Args) -> anyhow::Result<Exit> {
    std::fs::create_dir_all(&args.dir).with_context(|| format!("create {}", args.dir.display()))?;
    let ports = match args.port {
        0 => [0; 5],
        first => [0_u16, 1, 2, 3, 4].map(|n| first.saturating_add(n)),
    };
    // Simulated time runs ahead of the clock while the first batches are made, so it starts in the past.
    let start_time = unix_now().saturating_sub(3600);
    let world = WorldOptions { seed: args.seed, start_time, client: args.client, ..WorldOptions::default() };
    let options = DevnetOptions { world, ports, secret_dir: Some(args.dir.clone()), ..DevnetOptions::default() };
    let devnet = Devnet::start(options).await?;
    while devnet.with(|w| (w.batches.len() as u64) < args.batches) {
        step(&devnet, &args)?;
    }
    let file = args.dir.join("devnet.toml");
    std::fs::write(&file, configuration(&devnet, &args.dir)).with_context(|| format!("write {}", file.display()))?;
    println!("L1        {}", devnet.l1_url());
    println!("beacon    {}", devnet.beacon_url());
    println!("L2        {}", devnet.l2_url());
    println!("engine    {}", devnet.engine_url());
    println!("reactors  {}", devnet.reactors_url());
    println!();
    println!("morph-deriver run --config {}", file.display());
    let stop = run::stop_on_signal();
    let mut clock = tokio::time::interval(args.l1_block_time.max(Duration::from_millis(1)));
    while stop.run_until_cancelled(clock.tick()).await.is_some() {
        step(&devnet, &args)?;
    }
    Ok(Exit::Done)
}

/// Mines one L1 block, and lets the local node sync.
fn step(devnet: &Devnet, args: &Args) -> anyhow::Result<()> {
    devnet.with(|w| {
        let done = args.stop_after.is_some_and(|n| w.batches.len() as u64 >= n);
        if done {
            w.mine(1);
        } else {
            w.tick(args.blocks_per_batch)?;
        }
        if !args.no_sync {
            w.sync();
        }
        Ok(())
    })
}

/// A configuration for `run` on this devnet.
fn configuration(devnet: &Devnet, dir: &Path) -> String {
    let world = WorldOptions::default();
    format!(
        "# Written by `morph-deriver devnet`.\n\
         poll_interval = \"2s\"\n\
         observation_window = \"20s\"\n\n\
         [l1]\n\
         rpc = [\"{l1}\"]\n\
         beacon = [\"{beacon}\"]\n\
         chain_id = {l1_chain}\n\
         rollup = \"{rollup:?}\"\n\
         queue = \"{queue:?}\"\n\
         start_block = 0\n\
         confirmations = \"0\"\n\
         max_age = \"0s\"\n\n\
         [l2]\n\
         eth = \"{l2}\"\n\
         engine = \"{engine}\"\n\
         jwt_secret = \"{secret}\"\n\
         chain_id = {l2_chain}\n\
         genesis_hash = \"{genesis:?}\"\n\n\
         [reactors]\n\
         kind = \"json-rpc\"\n\
         url = \"{reactors}\"\n\
         pause_method = \"reactors_pause\"\n\
         resume_method = \"reactors_resume\"\n\n\
         [store]\n\
         path = \"{store}\"\n",
        l1 = devnet.l1_url(),
        beacon = devnet.beacon_url(),
        l1_chain = world.l1_chain_id,
        rollup = devnet.rollup(),
        queue = devnet.queue(),
        l2 = devnet.l2_url(),
        engine = devnet.engine_url(),
        secret = devnet.jwt_secret_path().display(),
        l2_chain = world.l2_chain_id,
        genesis = devnet.l2_genesis(),
        reactors = devnet.reactors_url(),
        store = dir.join("devnet.sqlite").display(),
    )
}
