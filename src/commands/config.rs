//! `config`: the effective configuration, redacted, and whether it can be used.
//!
//! Reading it is the check of every value and of what conflicts. What `run` would miss is said too, and with `--check`
//! it is an error.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::Exit;
use crate::config::{Config, ConfigArgs, ConfigError, Shown, ShownValue};

/// Arguments of `config`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Fail where `run` would miss something, and ask every endpoint whether it answers
    #[arg(long, visible_alias = "check-config")]
    pub check: bool,
}

/// What became of asking one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// The setting that names it.
    pub key: &'static str,
    /// Host and port.
    pub endpoint: String,
    /// What is wrong with it; none where all is well.
    pub problem: Option<String>,
}

#[derive(Serialize)]
struct Report<'c> {
    settings: &'c [Shown],
    /// What `run` would miss.
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
            println!("# {} {}: {}", probe.key, probe.endpoint, probe.problem.as_deref().unwrap_or("ok"));
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

/// Asks every configured endpoint for its network. The adapters that do it are wired here.
async fn probe(_config: &Config) -> Vec<Probe> {
    Vec::new()
}

/// The settings as TOML, each with the layer that it came from. What nothing sets is a comment.
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
