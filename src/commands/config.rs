//! `config`: the effective configuration, redacted, and whether it can be used.
//!
//! Reading the configuration checks every value and every conflict. Settings that `run` needs and that are missing are
//! listed too; with `--check` they are an error.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::{Exit, wiring};
use crate::config::{Config, ConfigArgs, ConfigError, Shown, ShownValue};
use crate::decide::client::Client;
use crate::ports::L2Reader as _;
use crate::redact::SecretUrl;
use crate::types::Identity;

/// Longest time for one endpoint, retries included.
const PROBE_LIMIT: Duration = Duration::from_secs(30);

/// Arguments of `config`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Fail if a setting that `run` needs is missing, and ask every endpoint whether it answers
    #[arg(long, visible_alias = "check-config")]
    pub check: bool,
}

/// The result of asking one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// The setting that names it.
    pub key: &'static str,
    /// Host and port.
    pub endpoint: String,
    /// What is wrong with it; none if all is well.
    pub problem: Option<String>,
    /// The execution client, as it names itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<Client>,
    /// What is to be known of that client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<&'static str>,
}

impl Probe {
    fn in_words(&self) -> String {
        let ok = || match &self.client {
            Some(client) => format!("ok ({})", client.version),
            None => "ok".to_owned(),
        };
        let mut words = self.problem.clone().unwrap_or_else(ok);
        if let Some(warning) = self.warning {
            let _ = write!(words, "; warning: {warning}");
        }
        words
    }
}

#[derive(Serialize)]
struct Report<'c> {
    settings: &'c [Shown],
    /// Settings that `run` needs and that are missing.
    missing: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    probes: Vec<Probe>,
}

/// Prints the configuration.
///
/// # Errors
///
/// Configuration that cannot be used.
pub async fn execute(args: Args) -> anyhow::Result<Exit> {
    let config = Config::load(&args.config)?;
    let missing = match config.require(&config.run_needs()) {
        Ok(()) => Vec::new(),
        Err(ConfigError::Missing(missing)) => missing,
        Err(other) => return Err(other.into()),
    };
    let probes = if args.check && missing.is_empty() { probe(&config).await } else { Vec::new() };
    if args.json {
        let report = Report { settings: config.shown(), missing: missing.clone(), probes: probes.clone() };
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", render(config.shown()));
        for line in &missing {
            println!("# missing for run: {line}");
        }
        for probe in &probes {
            println!("# {} {}: {}", probe.key, probe.endpoint, probe.in_words());
        }
    }
    if !args.check {
        return Ok(Exit::Done);
    }
    if !missing.is_empty() {
        return Err(ConfigError::Missing(missing).into());
    }
    Ok(if probes.iter().any(|probe| probe.problem.is_some()) { Exit::Failed } else { Exit::Done })
}

/// Asks every configured endpoint for its network, all at the same time. Reactors are not asked: the only question they
/// answer is a pause.
async fn probe(config: &Config) -> Vec<Probe> {
    let Ok(identity) = config.identity() else { return Vec::new() };
    futures::future::join_all(endpoints(config).into_iter().map(|endpoint| probe_one(endpoint, &identity))).await
}

/// A setting, one of its endpoints, and the configuration with that endpoint only.
type Alone = (&'static str, SecretUrl, Config);

fn endpoints(config: &Config) -> Vec<Alone> {
    let mut base = config.clone();
    (base.l1.beacon, base.l1.beacon_archive, base.l2.eth, base.l2.engine) = (Vec::new(), Vec::new(), None, None);
    base.follow.sources = Vec::new();
    let mut all: Vec<Alone> = Vec::new();
    let mut add = |key, url: &SecretUrl, put: &dyn Fn(&mut Config, SecretUrl)| {
        let mut alone = base.clone();
        put(&mut alone, url.clone());
        all.push((key, url.clone(), alone));
    };
    for url in &config.l1.rpc {
        add("l1.rpc", url, &|alone, url| alone.l1.rpc = vec![url]);
    }
    for url in &config.l1.beacon {
        add("l1.beacon", url, &|alone, url| alone.l1.beacon = vec![url]);
    }
    for url in &config.l1.beacon_archive {
        add("l1.beacon_archive", url, &|alone, url| alone.l1.beacon = vec![url]);
    }
    if let Some(url) = &config.l2.eth {
        add("l2.eth", url, &|alone, url| alone.l2.eth = Some(url));
    }
    if let Some(url) = config.l2.engine.as_ref().filter(|_| !config.observe) {
        add("l2.engine", url, &|alone, url| alone.l2.engine = Some(url));
    }
    for url in &config.follow.sources {
        add("follow.source", url, &|alone, url| alone.follow.sources = vec![url]);
    }
    all
}

async fn probe_one((key, url, alone): Alone, identity: &Identity) -> Probe {
    let asked = tokio::time::timeout(PROBE_LIMIT, ask(&alone, identity)).await;
    let (problem, client) = match asked {
        Ok(Ok(client)) => (None, client),
        Ok(Err(error)) => (Some(crate::redact::cut_urls(&format!("{error:#}")).into_owned()), None),
        Err(_) => (Some(format!("no answer within {} s", PROBE_LIMIT.as_secs())), None),
    };
    let warning = client.as_ref().and_then(Client::warning);
    let url = url.expose();
    let (host, port) = (url.host_str().unwrap_or("?"), url.port_or_known_default().unwrap_or_default());
    Probe { key, endpoint: format!("{host}:{port}"), problem, client, warning }
}

/// Asks the one endpoint of `config`: L1 if there is no other. The execution client names itself.
async fn ask(config: &Config, identity: &Identity) -> anyhow::Result<Option<Client>> {
    let clients = wiring::clients(config)?;
    if let Some(source) = clients.sources.first() {
        wiring::check_source(source, identity).await?;
        return Ok(None);
    }
    match (&clients.beacon, &clients.l2, &clients.engine) {
        (Some(beacon), ..) => wiring::check_beacon(beacon, config.l1.beacon_genesis_time).await?,
        (_, Some(l2), _) => {
            wiring::check_l2(l2, identity).await?;
            l2.snapshot().await?;
            return Ok(l2.client());
        }
        (_, _, Some(engine)) => wiring::check_engine(engine, identity).await?,
        (None, None, None) => wiring::check_l1(&clients.l1, identity).await?,
    }
    Ok(None)
}

/// The settings as TOML, each with the layer that it came from. A setting without a value is a comment.
fn render(settings: &[Shown]) -> String {
    let mut sections: BTreeMap<&str, Vec<(&str, &Shown)>> = BTreeMap::new();
    for shown in settings {
        let (section, name) = shown.key.rsplit_once('.').unwrap_or(("", shown.key));
        sections.entry(section).or_default().push((name, shown));
    }
    let mut text = String::new();
    for (section, settings) in sections {
        if !section.is_empty() {
            let _ = writeln!(text, "\n[{section}]");
        }
        for (name, shown) in settings {
            let _ = match &shown.value {
                Some(value) => writeln!(text, "{name} = {} # {}", toml_value(value), shown.source),
                None => writeln!(text, "# {name} is not set"),
            };
        }
    }
    text
}

fn toml_value(value: &ShownValue) -> toml::Value {
    match value {
        ShownValue::Integer(number) => toml::Value::Integer(*number),
        ShownValue::Boolean(switch) => toml::Value::Boolean(*switch),
        ShownValue::Text(text) => toml::Value::String(text.clone()),
        ShownValue::List(items) => toml::Value::Array(items.iter().cloned().map(toml::Value::String).collect()),
    }
}
