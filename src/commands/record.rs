//! `record`: asks the real endpoints everything that a replay of a range may ask, and writes the answers to a folder.

use std::path::PathBuf;

use anyhow::{Context as _, bail};

use super::{Exit, terminal, wiring};
use crate::adapters::record::{Request, Sources, record};
use crate::config::{Config, ConfigArgs, Need};
use crate::ports::L2Reader;
use crate::types::L1Number;

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
/// Configuration that cannot be used, an endpoint that does not answer, a folder that exists.
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
    if args.out.exists() {
        bail!("{} exists already", args.out.display());
    }
    let identity = config.identity()?;
    let clients = wiring::clients(&config)?;
    let clients = wiring::Clients { engine: None, ..clients };
    wiring::check_identity(&clients, &identity).await?;
    let settings = wiring::settings(&config);
    let sources = Sources {
        l1: clients.l1.clone(),
        blobs: clients.beacon.clone().context("no beacon endpoint is configured")?,
        l2: clients.l2.clone().map(|l2| l2 as std::sync::Arc<dyn L2Reader>),
    };
    let request = Request {
        rollup: identity.rollup,
        identity,
        switch_ms: settings.switch_ms,
        from: L1Number::new(args.from),
        to: L1Number::new(args.to),
        origin: settings.origin,
        fetch_range: settings.fetch_range,
    };
    let progress = terminal::spinner(false);
    let tell = |what: &str, done: u64, total: u64| progress.set_message(format!("{what} {done}/{total}"));
    let fixture = record(&sources, &request, &tell).await?;
    progress.finish_and_clear();
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
    Ok(Exit::Done)
}
