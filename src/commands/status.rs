//! `status`: what a running worker says of itself, or the journal of its writes out of the database.
//!
//! Reads only: the worker's status over HTTP, or the database without taking its lock.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, bail};
use comfy_table::Table;
use serde_json::{Value, json};

use super::{Exit, terminal};
use crate::adapters::store::SqliteStore;
use crate::config::{Config, ConfigArgs};
use crate::decide::stall::Reason;
use crate::ports::Rows as _;
use crate::types::JournalEntry;

/// A worker answers from memory.
const DEADLINE: Duration = Duration::from_secs(5);

/// The first second, since the Unix epoch, that no calendar text is written for.
const YEAR_10000: u64 = 253_402_300_800;

/// Longest reply that is read.
const MAX_REPLY: usize = 1 << 20;

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The worker's address, if it is not the configured server.listen
    #[arg(long, value_name = "ADDRESS", conflicts_with = "journal")]
    pub at: Option<SocketAddr>,
    /// Print the journal of writes to the node, newest first, out of the database
    #[arg(long)]
    pub journal: bool,
    /// Journal entries to print
    #[arg(long, value_name = "N", default_value_t = 20, requires = "journal", value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pub limit: u32,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// The configuration
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Prints the status, or the journal. A worker that stalls on a divergence gives exit code 3.
///
/// # Errors
/// A worker that does not answer, a database that cannot be read.
pub async fn execute(args: Args) -> anyhow::Result<Exit> {
    let config = Config::load(&args.config)?;
    if args.journal {
        let store = SqliteStore::open_read_only(&config.store).await?;
        let entries = store.journal_tail(args.limit).await?;
        match args.json {
            true => println!("{}", serde_json::to_string_pretty(&json!({ "journal": entries }))?),
            false => println!("{}", journal_table(&entries)),
        }
        return Ok(Exit::Done);
    }
    let Some(address) = args.at.or(config.listen) else {
        bail!("server.listen is none: say where the worker listens with --at");
    };
    let status = ask(reachable(address)).await.with_context(|| format!("the worker at {address}"))?;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&status)?),
        false => println!("{}", status_table(&status)),
    }
    Ok(exit_of(&status))
}

/// A worker that listens on all addresses is asked on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

async fn ask(address: SocketAddr) -> anyhow::Result<Value> {
    let client = reqwest::Client::builder().no_proxy().timeout(DEADLINE).build()?;
    let mut reply = client.get(format!("http://{address}/status")).send().await.map_err(reqwest::Error::without_url)?;
    if !reply.status().is_success() {
        bail!("answered with HTTP status {}", reply.status().as_u16());
    }
    let mut body = Vec::new();
    while let Some(chunk) = reply.chunk().await.map_err(reqwest::Error::without_url)? {
        if body.len().saturating_add(chunk.len()) > MAX_REPLY {
            bail!("answered with more than {MAX_REPLY} bytes");
        }
        body.extend_from_slice(&chunk);
    }
    let status: Value = serde_json::from_slice(&body).context("did not answer with JSON")?;
    if !status.is_object() {
        bail!("did not answer with a status");
    }
    Ok(status)
}

/// A worker that waits, or that needs an operator, is no failure of this command. Only a divergence has its own exit code.
fn exit_of(status: &Value) -> Exit {
    let code = status.pointer("/stall/reason").and_then(Value::as_str);
    let reason = Reason::ALL.iter().find(|reason| Some(reason.code()) == code);
    match reason.map(|reason| Exit::from(*reason)) {
        Some(Exit::Divergence) => Exit::Divergence,
        Some(Exit::Done | Exit::Failed | Exit::Usage | Exit::Unavailable) | None => Exit::Done,
    }
}

/// Text for a terminal, without control characters.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn in_words(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => shown(text),
        Value::Number(number) => number.to_string(),
        Value::Array(items) => items.iter().map(in_words).collect::<Vec<_>>().join("\n"),
        Value::Object(fields) => match (fields.get("number"), fields.get("hash")) {
            (Some(number), Some(hash)) => format!("{} {}", in_words(number), in_words(hash)),
            _ => fields.iter().map(|(key, value)| format!("{key}: {}", in_words(value))).collect::<Vec<_>>().join("\n"),
        },
    }
}

fn status_table(status: &Value) -> Table {
    let mut table = terminal::table(&["status", ""]);
    for (key, value) in status.as_object().into_iter().flatten() {
        table.add_row([shown(&key.replace('_', " ")), in_words(value)]);
    }
    table
}

fn journal_table(entries: &[JournalEntry]) -> Table {
    let mut table = terminal::table(&["time (UTC)", "batch", "block", "why", "was", "is"]);
    for entry in entries {
        let time = match entry.at {
            0..YEAR_10000 => {
                let at = std::time::UNIX_EPOCH + Duration::from_secs(entry.at);
                humantime::format_rfc3339_seconds(at).to_string()
            }
            beyond => beyond.to_string(),
        };
        let was = entry.old_hash.map_or_else(|| "nothing".to_owned(), |hash| format!("{hash:?}"));
        let (batch, number, is) = (entry.batch.to_string(), entry.number.to_string(), format!("{:?}", entry.new_hash));
        table.add_row([time, batch, number, shown(&entry.why), was, is]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_divergence_is_one() {
        for reason in Reason::ALL {
            let status = json!({ "stall": { "reason": reason.code(), "batch": null, "detail": "" } });
            let expected = if reason.is_divergence() { Exit::Divergence } else { Exit::Done };
            assert_eq!(exit_of(&status), expected, "{reason}");
        }
        assert_eq!(exit_of(&json!({ "stall": null })), Exit::Done);
        assert_eq!(exit_of(&json!({})), Exit::Done);
    }

    #[test]
    fn all_addresses_are_asked_on_loopback() {
        let table = [
            ("0.0.0.0:9", "127.0.0.1:9"),
            ("[::]:9", "[::1]:9"),
            ("10.0.0.1:9", "10.0.0.1:9"),
            ("127.0.0.1:9", "127.0.0.1:9"),
        ];
        for (from, to) in table {
            assert_eq!(reachable(from.parse().unwrap()), to.parse::<SocketAddr>().unwrap());
        }
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let table = status_table(&json!({ "stall": { "detail": "a\u{1b}[2Jb" } })).to_string();
        assert!(!table.contains('\u{1b}') && table.contains("a [2Jb"), "{table}");
    }

    #[test]
    fn a_time_beyond_the_calendar_is_a_number() {
        let entry = JournalEntry {
            at: u64::MAX,
            batch: 1.into(),
            number: 2.into(),
            old_hash: None,
            new_hash: crate::types::B256::zero(),
            why: "self-heal".to_owned(),
        };
        assert!(journal_table(&[entry]).to_string().contains(&u64::MAX.to_string()));
    }
}
