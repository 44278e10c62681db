//! The layers of the configuration: flags, environment and file, each as it was written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches};

use super::error::ConfigError;
use super::network::Network;
use super::settings::{ENV_PREFIX, Kind, MORPH_ENV_PREFIX, SETTINGS, Setting};

/// Our environment names that are not settings: the configuration file, and test switches, which release builds lack.
const OTHER_ENV: [&str; 1] = ["CONFIG"];
const TEST_ENV_PREFIX: &str = "TEST_";

/// A configuration file larger than this is not one.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A value as it was written.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Raw {
    One(String),
    Many(Vec<String>),
}

/// A value and the layer that set it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) raw: Raw,
    pub(super) source: String,
}

pub(super) type Values = BTreeMap<&'static str, Set>;

/// Flags of a command that takes configuration: `#[command(flatten)] config: ConfigArgs`. Every setting is a flag.
#[derive(Clone, Default)]
pub struct ConfigArgs {
    pub(super) file: Option<PathBuf>,
    pub(super) values: Values,
}

impl fmt::Debug for ConfigArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigArgs").field("file", &self.file).field("flags", &self.values.keys()).finish()
    }
}

impl clap::FromArgMatches for ConfigArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut args = Self { file: matches.get_one::<PathBuf>("config").cloned(), ..Self::default() };
        for setting in SETTINGS {
            let Some(values) = matches.get_many::<String>(setting.key) else { continue };
            let mut values: Vec<String> = values.cloned().collect();
            let source = format!("--{}", setting.flag());
            let raw = match values.len() {
                1 => Raw::One(values.remove(0)),
                _ => Raw::Many(values),
            };
            args.values.insert(setting.key, Set { raw, source });
        }
        for network in [Network::Mainnet, Network::Hoodi] {
            if matches.get_flag(network.as_str()) {
                let source = format!("--{}", network.as_str());
                args.values.insert("network", Set { raw: Raw::One(network.as_str().to_owned()), source });
            }
        }
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for ConfigArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        let file = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("Configuration file [default: config.toml, if it exists]");
        let mut command = command.next_help_heading("Configuration").arg(file);
        for network in [Network::Mainnet, Network::Hoodi] {
            let others = [Network::Mainnet, Network::Hoodi].into_iter().filter(|&n| n != network).map(Network::as_str);
            let arg = Arg::new(network.as_str())
                .long(network.as_str())
                .action(ArgAction::SetTrue)
                .conflicts_with_all(others.chain(["network"]))
                .help(format!("The same as --network {}", network.as_str()));
            command = command.arg(arg);
        }
        for setting in SETTINGS {
            command = command.arg(setting_arg(setting));
        }
        command
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

fn setting_arg(setting: &'static Setting) -> Arg {
    let help = match setting.default {
        Some(default) => format!("{} [default: {default}]", setting.help),
        None => setting.help.to_owned(),
    };
    let arg = Arg::new(setting.key).long(setting.flag()).visible_aliases(setting.aliases.iter().copied()).help(help);
    match setting.kind {
        Kind::Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL"),
        Kind::Urls => arg.action(ArgAction::Append).value_name("URL"),
        Kind::Url => arg.value_name("URL"),
        Kind::Argv => arg.value_name("ARGV"),
        Kind::Texts => arg.value_name("TEXTS"),
        Kind::Integer => arg.value_name("NUMBER"),
        Kind::Text => arg.value_name("VALUE"),
    }
}

pub(super) fn read_file(path: &Path) -> Result<String, ConfigError> {
    let wrong = |reason: String| ConfigError::File { path: path.display().to_string(), reason };
    let file = std::fs::File::open(path).map_err(|e| wrong(e.to_string()))?;
    let mut text = String::new();
    let read = file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(|e| wrong(e.to_string()))?;
    if u64::try_from(read).unwrap_or(u64::MAX) > MAX_FILE_BYTES {
        return Err(wrong("larger than 1 MiB".to_owned()));
    }
    Ok(text)
}

/// ` (did you mean …?)` with the known name that `written` is closest to, by letters only.
fn hint(written: &str, known: impl Iterator<Item = String>) -> String {
    let letters = |s: &str| s.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase();
    let wanted = letters(written);
    let close = |name: &str| {
        let name = letters(name);
        name == wanted || (wanted.len() > 2 && (name.ends_with(&wanted) || name.starts_with(&wanted)))
    };
    known.into_iter().find(|name| close(name)).map(|name| format!(" (did you mean {name}?)")).unwrap_or_default()
}

/// The values of a `config.toml`.
pub(super) fn file_values(name: &str, text: &str) -> Result<Values, ConfigError> {
    let table: toml::Table = toml::from_str(text).map_err(|e| {
        // The error's own text quotes the line, which may hold a URL.
        let line = e.span().map(|span| text.get(..span.start).unwrap_or(text).lines().count().max(1));
        let at = line.map(|line| format!("line {line}: ")).unwrap_or_default();
        ConfigError::File { path: name.to_owned(), reason: format!("{at}{}", e.message()) }
    })?;
    let mut values = Values::new();
    for (key, value) in table {
        match value {
            toml::Value::Table(section) if !SETTINGS.iter().any(|setting| setting.key == key) => {
                for (inner, value) in section {
                    put_file_value(&mut values, name, &format!("{key}.{inner}"), value)?;
                }
            }
            value => put_file_value(&mut values, name, &key, value)?,
        }
    }
    Ok(values)
}

fn put_file_value(values: &mut Values, file: &str, key: &str, value: toml::Value) -> Result<(), ConfigError> {
    let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) else {
        let known = SETTINGS.iter().map(|setting| setting.key.to_owned());
        let hint = hint(key, known);
        return Err(ConfigError::Unknown { name: key.to_owned(), source_name: file.to_owned(), hint });
    };
    let wrong =
        |reason: &str| ConfigError::Value { key: setting.key, source_name: file.to_owned(), reason: reason.to_owned() };
    let raw = match value {
        toml::Value::String(text) => Raw::One(text),
        toml::Value::Integer(number) => Raw::One(number.to_string()),
        toml::Value::Boolean(switch) => Raw::One(switch.to_string()),
        toml::Value::Array(items) => {
            let texts = items.into_iter().map(|item| match item {
                toml::Value::String(text) => Ok(text),
                _ => Err(wrong("a list must hold strings")),
            });
            Raw::Many(texts.collect::<Result<_, _>>()?)
        }
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => {
            return Err(wrong("must be a string, a number, true or false, or a list of strings"));
        }
    };
    values.insert(setting.key, Set { raw, source: file.to_owned() });
    Ok(())
}

/// The values of the environment; our names win over Morph's. An unknown name of ours is an error. Many of Morph's names do
/// not concern us.
pub(super) fn env_values(env: &BTreeMap<String, String>) -> Result<Values, ConfigError> {
    let mut values = Values::new();
    let mut known = BTreeSet::new();
    for setting in SETTINGS {
        let ours = setting.env();
        let names = setting.morph_env.iter().map(|name| format!("{MORPH_ENV_PREFIX}{name}"));
        let found = std::iter::once(ours.clone()).chain(names).find(|name| env.contains_key(name));
        known.insert(ours);
        let Some(name) = found else { continue };
        let Some(value) = env.get(&name) else { continue };
        values.insert(setting.key, Set { raw: Raw::One(value.clone()), source: name });
    }
    for name in env.keys() {
        let Some(rest) = name.strip_prefix(ENV_PREFIX) else { continue };
        if !known.contains(name) && !OTHER_ENV.contains(&rest) && !is_test_switch(rest) {
            let hint = hint(name, known.iter().cloned());
            let source_name = "the environment".to_owned();
            return Err(ConfigError::Unknown { name: name.clone(), source_name, hint });
        }
    }
    Ok(values)
}

fn is_test_switch(rest: &str) -> bool {
    cfg!(debug_assertions) && rest.starts_with(TEST_ENV_PREFIX)
}
