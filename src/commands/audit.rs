//! `audit`: verifies a range of batches once, without an engine, and joins the reports of several ranges.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use indicatif::ProgressBar;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{Exit, run, terminal, wiring};
use crate::adapters::store::SqliteStore;
use crate::config::{Config, ConfigArgs};
use crate::decide::audit::{self, AuditEnd, AuditRange, AuditReport, Base, BatchEdge, Verdict};
use crate::flow::audit::{Audit, AuditStep};
use crate::ports::{L1Chain as _, Progress as _};
use crate::types::BatchIndex;

/// Longest report that is read: as many divergences as one may hold take a tenth of it.
const MAX_REPORT: u64 = 32 << 20;

/// Most reports that are joined at a time. The joined report can be joined again.
const MAX_REPORTS: usize = 10_000;

/// Without a terminal the progress is a line of the log this often.
const LINE_EVERY: Duration = Duration::from_secs(60);

/// Arguments of `audit`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The first batch; the one before it is taken on L1's word
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub from_batch: u64,
    /// The last batch; without it, as far as L1 is settled
    #[arg(long, value_name = "M")]
    pub to_batch: Option<u64>,
    /// The audit's own database, from which it goes on after an interruption [default: named after the range, beside
    /// store.path]
    #[arg(long, value_name = "PATH")]
    pub db: Option<PathBuf>,
    /// Join the JSON reports of ranges into one verdict, and ask nobody
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["from_batch", "to_batch", "db"])]
    pub merge: Vec<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// The configuration
    #[command(flatten)]
    pub config: ConfigArgs,
}

impl From<Verdict> for Exit {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Verified => Self::Done,
            Verdict::Diverged => Self::Divergence,
            Verdict::Unavailable => Self::Unavailable,
            Verdict::Failed | Verdict::Interrupted => Self::Failed,
        }
    }
}

/// Audits, or joins reports.
///
/// # Errors
/// Configuration that cannot be used, parties that cannot be asked, a database of another range, reports that cannot be
/// read or do not join.
pub async fn execute(args: Args) -> anyhow::Result<Exit> {
    let (report, end) = match args.merge.is_empty() {
        true => audit_range(&args).await?,
        false => (merge(&args.merge)?, None),
    };
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => print(&report, end.as_ref()),
    }
    Ok(report.verdict.into())
}

async fn audit_range(args: &Args) -> anyhow::Result<(AuditReport, Option<AuditEnd>)> {
    let mut config = Config::load(&args.config)?;
    // No engine and no reactors: nothing can be written, tagged or paused.
    config.observe = true;
    // An audit derives, whatever this configuration's worker does.
    config.follow.sources.clear();
    config.require(&config.run_needs())?;
    let range = AuditRange { from: args.from_batch.into(), to: args.to_batch.map(BatchIndex::new) };
    if let Some(to) = range.to
        && to < range.from
    {
        return Err(crate::config::ConfigError::Conflict("--to-batch lies before --from-batch".to_owned()).into());
    }
    crate::telemetry::init(&config.log)?;
    let stop = run::stop_on_signal();
    let identity = config.identity()?;
    let clients = wiring::clients(&config)?;
    if let Some(checked) = stop.run_until_cancelled(wiring::check_identity(&clients, &identity)).await {
        checked?;
    }
    let path = args.db.clone().unwrap_or_else(|| database_of(&config.store, &range));
    let store = Arc::new(SqliteStore::open(&path).await.context("the audit's database")?);
    store.claim(&identity).await.context("the audit's database")?;
    crate::codec::blob::warm_up()?;
    let ports = wiring::ports(&config, &clients, store.clone())?;
    let mut settings = wiring::settings(&config);
    // With a preset, the history begins where the network does, wherever a worker is configured to start.
    settings.start = config.network.map_or(settings.start, crate::config::Network::first_block);
    let audit = Audit::new(ports, settings, store.clone(), identity, range);
    let committed = match range.to {
        Some(_) => None,
        None => stop.run_until_cancelled(clients.l1.last_committed_index(None)).await.and_then(Result::ok),
    };
    let outcome = watched(&audit, &range, committed, args.json, &stop).await;
    let report = match outcome {
        Ok(end) => audit.report(&end).await.map(|report| (report, Some(end))).map_err(anyhow::Error::from),
        Err(error) => Err(error),
    };
    store.close().await;
    report
}

/// Runs the audit to its end, or to a signal, and shows how far it is.
async fn watched(
    audit: &Audit,
    range: &AuditRange,
    committed: Option<BatchIndex>,
    quiet: bool,
    stop: &CancellationToken,
) -> anyhow::Result<AuditEnd> {
    let reached = audit.reached().await.context("the audit's database")?;
    let mut progress = Progress::new(range, reached, range.to.or(committed), quiet);
    let mut seen = |step: AuditStep| progress.seen(step);
    let ended = stop.run_until_cancelled(audit.run(&mut seen)).await;
    progress.bar.finish_and_clear();
    Ok(ended.unwrap_or(Ok(AuditEnd::Interrupted))?)
}

/// How far it is: a bar on a terminal, else a line of the log a minute.
struct Progress {
    bar: ProgressBar,
    began: Instant,
    told: Instant,
    /// The batch before the first one of this run.
    before: BatchIndex,
    reached: BatchIndex,
    to: Option<BatchIndex>,
    blocks: u64,
    diverged: u64,
}

impl Progress {
    fn new(range: &AuditRange, reached: Option<BatchIndex>, to: Option<BatchIndex>, quiet: bool) -> Self {
        let before = range.from.minus(1);
        let reached = reached.unwrap_or(before);
        let bar = match to {
            Some(to) => terminal::bar(to.above(before), "batches", quiet),
            None => terminal::spinner(quiet),
        };
        bar.set_position(reached.above(before));
        bar.reset_eta();
        let now = Instant::now();
        Self { bar, began: now, told: now, before, reached, to, blocks: 0, diverged: 0 }
    }

    fn seen(&mut self, step: AuditStep) {
        match step {
            AuditStep::Verified(batch, blocks) => {
                self.reached = batch;
                self.blocks = self.blocks.saturating_add(blocks);
            }
            AuditStep::Diverged(batch) => {
                self.reached = batch;
                self.diverged = self.diverged.saturating_add(1);
            }
            AuditStep::Polled => {}
        }
        self.bar.set_position(self.reached.above(self.before));
        let seconds = self.began.elapsed().as_secs_f64().max(0.001);
        let rate = self.blocks as f64 / seconds;
        self.bar.set_message(format!("{rate:.0} blocks/s, {} diverged", self.diverged));
        if self.bar.is_hidden() && self.told.elapsed() >= LINE_EVERY {
            self.told = Instant::now();
            let (batch, to) = (self.reached.get(), self.to.map(BatchIndex::get));
            info!(batch, to, blocks_per_second = rate.round(), diverged = self.diverged, "auditing");
        }
    }
}

/// `morph-deriver.sqlite` becomes `morph-deriver.audit.sqlite`, or `morph-deriver.audit-5-9.sqlite` for a range: audits
/// of several ranges may run side by side.
fn database_of(store: &Path, range: &AuditRange) -> PathBuf {
    let name = match (range.from.get(), range.to) {
        (1, None) => "audit".to_owned(),
        (from, None) => format!("audit-{from}"),
        (from, Some(to)) => format!("audit-{from}-{to}"),
    };
    store.with_extension(match store.extension().and_then(|e| e.to_str()) {
        Some(extension) => format!("{name}.{extension}"),
        None => name,
    })
}

fn read(path: &Path) -> anyhow::Result<AuditReport> {
    let file = std::fs::File::open(path)?;
    let mut bytes = Vec::new();
    file.take(MAX_REPORT.saturating_add(1)).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= MAX_REPORT, "longer than {MAX_REPORT} bytes");
    serde_json::from_slice(&bytes).context("it is damaged, or no report of an audit")
}

fn merge(files: &[PathBuf]) -> anyhow::Result<AuditReport> {
    ensure!(files.len() <= MAX_REPORTS, "more than {MAX_REPORTS} reports: join the joined ones");
    let (mut reports, mut refused) = (Vec::new(), Vec::new());
    for path in files {
        let name = path.display().to_string();
        match read(path) {
            Ok(report) => reports.push((name, report)),
            Err(error) => refused.push(format!("{name}: {error:#}")),
        }
    }
    let joined = audit::merge(reports);
    match joined {
        Ok(report) if refused.is_empty() => Ok(report),
        joined => {
            let others = joined.err().unwrap_or_default();
            refused.extend(others.into_iter().map(|other| format!("{}: {}", other.name, other.why)));
            anyhow::bail!("the reports do not join:\n{}", refused.join("\n"))
        }
    }
}

fn print(report: &AuditReport, end: Option<&AuditEnd>) {
    let mut table = terminal::table(&["audit", ""]);
    let edge = |edge: Option<BatchEdge>| {
        edge.map_or_else(|| "none".to_owned(), |e| format!("batch {} {:?}, block {}", e.batch, e.hash, e.block))
    };
    let base = match report.base {
        Base::Genesis => "the genesis import",
        Base::L1 => "L1's word: the contract's hash, the header with this hash, the local block at its end",
    };
    let counts = &report.counts;
    let rows = [
        ("verdict", report.verdict.as_str().to_owned()),
        ("finished", if report.finished { "yes" } else { "no" }.to_owned()),
        ("settled by", report.settled.clone()),
        ("begins after", edge(report.before)),
        ("on", base.to_owned()),
        ("last judged", edge(report.last)),
        ("verified", format!("{} batches, {} blocks, {} blobs", counts.verified, counts.blocks, counts.blobs)),
        ("consistent", counts.consistent.to_string()),
        ("of these encoder drift", counts.encoder_drift.to_string()),
        ("would-self-heal", counts.would_self_heal.to_string()),
        ("would-fill-gap", counts.would_fill_gap.to_string()),
        ("divergences", report.divergences.len().to_string()),
    ];
    for (key, value) in rows {
        table.add_row([key.to_owned(), value]);
    }
    println!("{table}");
    if !report.divergences.is_empty() {
        let mut table = terminal::table(&["batch", "block", "reason", "detail"]);
        for found in &report.divergences {
            let block = found.block.map_or_else(String::new, |block| block.to_string());
            table.add_row([found.batch.to_string(), block, shown(&found.reason), shown(&found.detail)]);
        }
        println!("{table}");
        println!("Nothing of these batches is verified. The batch after each was judged on L1's word for it.");
    }
    match end {
        Some(AuditEnd::NotCommitted(batch)) => println!("L1 has not settled batch {batch} yet"),
        Some(AuditEnd::Stopped(stall)) => println!("stopped: {}", shown(&stall.to_string())),
        Some(AuditEnd::Interrupted) => println!("interrupted; the same command goes on from here"),
        Some(AuditEnd::Done) | None => {}
    }
}

/// Text for a terminal, without control characters: reports come from other machines.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_has_a_database_of_its_own_beside_the_workers() {
        let range = |from: u64, to: Option<u64>| AuditRange { from: from.into(), to: to.map(Into::into) };
        let table = [
            ("a/b.sqlite", range(1, None), "a/b.audit.sqlite"),
            ("a/b.sqlite", range(5, None), "a/b.audit-5.sqlite"),
            ("a/b.sqlite", range(1, Some(9)), "a/b.audit-1-9.sqlite"),
            ("b", range(5, Some(9)), "b.audit-5-9"),
        ];
        for (store, range, expected) in table {
            assert_eq!(database_of(Path::new(store), &range), Path::new(expected));
        }
    }

    #[test]
    fn a_verdict_has_the_documented_exit_code() {
        let table = [
            (Verdict::Verified, 0),
            (Verdict::Diverged, 3),
            (Verdict::Unavailable, 4),
            (Verdict::Failed, 1),
            (Verdict::Interrupted, 1),
        ];
        for (verdict, code) in table {
            assert_eq!(Exit::from(verdict).code(), code, "{verdict:?}");
        }
    }
}
