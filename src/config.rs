//! The effective configuration: which settings exist, where each value came from, and whether they fit together.
//!
//! Decided here: the order of the layers (defaults < network preset < `config.toml` < environment < flags), the strict
//! reading of every value, and what conflicts. One table, [`SETTINGS`], says what exists: flags, environment names and
//! the keys of `config.toml` all come from it, so they cannot drift apart. Not decided here: whether an endpoint answers
//! and belongs to the right network; that is seen at start.
//!
//! URLs hold credentials. They live in [`SecretUrl`], which shows no more than scheme, host and port (P10).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches};
use serde::Serialize;

use crate::redact::SecretUrl;
use crate::types::{Address, B256, Confirmations, FinalityMeaning, HeightParam, Identity, L1Number, Mode};

/// Prefix of our own environment names.
pub const ENV_PREFIX: &str = "MORPH_DERIVER_";

/// Prefix of the Morph node's environment names, taken where they mean the same.
pub const MORPH_ENV_PREFIX: &str = "MORPH_NODE_";

/// Our environment names that are not settings: the configuration file, and switches of tests (of no release build).
const OTHER_ENV: [&str; 1] = ["CONFIG"];
const TEST_ENV_PREFIX: &str = "TEST_";

/// A configuration file larger than this is not one.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Configuration that cannot be used. Never holds a URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {reason}")]
    File {
        /// Its path.
        path: String,
        /// Why not.
        reason: String,
    },
    /// A key or environment name that means nothing here.
    #[error("unknown setting {name} in {source_name}{hint}")]
    Unknown {
        /// As it was written.
        name: String,
        /// Where it was written.
        source_name: String,
        /// What was probably meant; empty or ` (did you mean …?)`.
        hint: String,
    },
    /// A value that is not what the setting takes.
    #[error("{key} (from {source_name}): {reason}")]
    Value {
        /// The setting.
        key: &'static str,
        /// The layer that set it.
        source_name: String,
        /// What it must be.
        reason: String,
    },
    /// Settings that do not go together.
    #[error("{0}")]
    Conflict(String),
    /// Settings that the command needs and that nothing sets.
    #[error("not configured: {}", .0.join("; "))]
    Missing(Vec<String>),
}

/// A network whose numbers are known (protocol.md, section 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// Morph mainnet on Ethereum.
    Mainnet,
    /// Morph's test network on Hoodi.
    Hoodi,
}

impl Network {
    /// Lower-case name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mainnet => "mainnet",
            Self::Hoodi => "hoodi",
        }
    }

    /// The first L1 block that can hold a commit or an L1 message.
    pub const fn first_block(self) -> L1Number {
        match self {
            Self::Mainnet => L1Number::new(20_996_776),
            Self::Hoodi => L1Number::new(1_182_317),
        }
    }

    /// The settings that this network decides. The start block is the first with L1 messages, which lies at or below
    /// the first with commits.
    const fn preset(self) -> [(&'static str, &'static str); 9] {
        match self {
            Self::Mainnet => [
                ("l1.chain_id", "1"),
                ("l2.chain_id", "2818"),
                ("l1.rollup", "0x759894ced0e6af42c26668076ffa84d02e3cef60"),
                ("l1.queue", "0x3931ade842f5bb8763164bdd81e5361dce6cc1ef"),
                ("l1.start_block", "20996776"),
                ("l2.genesis_hash", "0x649c9b1f9f831771529dbf286a63dd071530d73c8fa410997eebaf449acfa7a9"),
                ("l2.switch_time_ms", "1785218400000"),
                ("l1.beacon_genesis_time", "1606824023"),
                ("l1.seconds_per_slot", "12"),
            ],
            Self::Hoodi => [
                ("l1.chain_id", "560048"),
                ("l2.chain_id", "2910"),
                ("l1.rollup", "0x57e0e6dde89dc52c01fe785774271504b1e04664"),
                ("l1.queue", "0xd7f39d837f4790b215ba67e0ab63665912648dbe"),
                ("l1.start_block", "1182317"),
                ("l2.genesis_hash", "0x2cbcff7ec8d68255cb130d5274217cded0c83c417b9ed5e045e1ffcc3ebfc35c"),
                ("l2.switch_time_ms", "1784613600000"),
                ("l1.beacon_genesis_time", "1742213400"),
                ("l1.seconds_per_slot", "12"),
            ],
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "mainnet" => Ok(Self::Mainnet),
            "hoodi" => Ok(Self::Hoodi),
            other => {
                Err(format!("{other:?} is not a known network: mainnet or hoodi, or leave it out and set the ids"))
            }
        }
    }
}

/// How the consensus node's reactors are paused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReactorControl {
    /// There is no consensus node.
    None,
    /// Two JSON-RPC methods.
    JsonRpc {
        /// Where.
        url: SecretUrl,
        /// Method that pauses.
        pause_method: String,
        /// Method that resumes.
        resume_method: String,
        /// How the height is passed.
        height: HeightParam,
    },
    /// Two programs with arguments; `{height}` in an argument becomes the height. No shell.
    Command {
        /// Program and arguments that pause.
        pause: Vec<String>,
        /// Program and arguments that resume.
        resume: Vec<String>,
    },
}

/// Reactor control and its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReactorsConfig {
    /// How.
    pub control: ReactorControl,
    /// Limit of one call or command; and how long one that was given up may still take effect.
    pub timeout: Duration,
    /// How long the head must not have moved after an interrupted write before the reactors are resumed.
    pub head_still: Duration,
    /// A resume that fails with one of these texts found them running, and counts as done.
    pub already_resumed: Vec<String>,
    /// Environment variables that a command is given besides PATH, HOME and LANG.
    pub pass_env: Vec<String>,
    /// Longest pause, before what the blocks add.
    pub pause_budget: Duration,
    /// What each block to be written adds to the pause.
    pub pause_budget_per_block: Duration,
}

/// L1, its beacon chain and our contracts there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L1Config {
    /// Execution endpoints, in the order of trust.
    pub rpc: Vec<SecretUrl>,
    /// Beacon endpoints.
    pub beacon: Vec<SecretUrl>,
    /// Archives that still have old blobs, asked last.
    pub beacon_archive: Vec<SecretUrl>,
    /// Chain id.
    pub chain_id: Option<u64>,
    /// Rollup contract.
    pub rollup: Option<Address>,
    /// L1MessageQueue contract.
    pub queue: Option<Address>,
    /// First block to read.
    pub start_block: Option<L1Number>,
    /// How far below the head is read.
    pub confirmations: Confirmations,
    /// Blocks in one log query.
    pub fetch_block_range: u64,
    /// Recorded blocks that a reorg may reach back.
    pub reorg_window: u64,
    /// Age at which the newest block counts as stale; zero: never.
    pub max_age: Duration,
    /// Genesis time of the beacon chain in seconds; none: asked of the beacon node.
    pub beacon_genesis_time: Option<u64>,
    /// Slot length; none: asked of the beacon node.
    pub seconds_per_slot: Option<u64>,
    /// Deadline of one execution call.
    pub timeout: Duration,
    /// Deadline of one beacon call.
    pub beacon_timeout: Duration,
}

/// The L2 execution node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L2Config {
    /// `eth_*` endpoint.
    pub eth: Option<SecretUrl>,
    /// Engine endpoint.
    pub engine: Option<SecretUrl>,
    /// File with the engine's secret.
    pub jwt_secret: Option<PathBuf>,
    /// Chain id.
    pub chain_id: Option<u64>,
    /// Hash of block 0.
    pub genesis_hash: Option<B256>,
    /// Blocks before this time (milliseconds since the Unix epoch) are never derived from L1; 0 where nothing sets it.
    pub switch_time_ms: u64,
    /// Deadline of one read.
    pub timeout: Duration,
    /// Deadline of one engine call.
    pub engine_timeout: Duration,
}

/// Log output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Text or JSON.
    pub format: LogFormat,
    /// Directives such as `info,morph_deriver::flow=debug`.
    pub filter: String,
}

/// Shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// One effective value as `config` shows it: already redacted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// Dotted key.
    pub key: &'static str,
    /// Redacted value; none where nothing sets it.
    pub value: Option<ShownValue>,
    /// The layer that set it.
    pub source: String,
}

/// A redacted value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum ShownValue {
    /// A number.
    Integer(i64),
    /// A switch.
    Boolean(bool),
    /// Anything else with one value.
    Text(String),
    /// Several values.
    List(Vec<String>),
}

/// Everything a command can be told, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The preset, if one was named.
    pub network: Option<Network>,
    /// L1.
    pub l1: L1Config,
    /// L2.
    pub l2: L2Config,
    /// How local content is checked.
    pub mode: Mode,
    /// What *finalized* means.
    pub finality: FinalityMeaning,
    /// Only watch: nothing is written, tagged or paused.
    pub observe: bool,
    /// Time between two polls.
    pub poll_interval: Duration,
    /// How long a head must be flat to count as stopped.
    pub observation_window: Duration,
    /// The consensus node's reactors.
    pub reactors: ReactorsConfig,
    /// The database.
    pub store: PathBuf,
    /// Where status and metrics are served; none: nowhere.
    pub listen: Option<SocketAddr>,
    /// Log output.
    pub log: LogConfig,
    shown: Vec<Shown>,
}

/// What a command needs to be configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// L1 execution endpoint, chain id, contracts, start block.
    L1,
    /// At least one beacon endpoint or archive.
    Beacon,
    /// L2 `eth_*` endpoint, chain id and genesis hash.
    L2,
    /// Engine endpoint and JWT secret.
    Engine,
}

/// What a setting takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text of its own grammar.
    Text,
    /// A whole number.
    Integer,
    /// `true` or `false`.
    Switch,
    /// A URL.
    Url,
    /// URLs; in flags and environment separated by commas.
    Urls,
    /// Program and arguments; in flags and environment a JSON array, or words separated by spaces.
    Argv,
    /// Texts; in flags and environment a JSON array, or separated by commas.
    Texts,
}

/// One setting: its key in `config.toml`, from which flag and environment name follow, and its other names.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Dotted key, in snake case.
    pub key: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Value without any configuration.
    pub default: Option<&'static str>,
    /// Other names of the flag, without dashes: Morph's own.
    pub aliases: &'static [&'static str],
    /// Morph's environment names without prefix, the first that is set counts.
    pub morph_env: &'static [&'static str],
    /// One line for people.
    pub help: &'static str,
}

impl Setting {
    /// The flag's name, without dashes.
    pub fn flag(&self) -> String {
        self.key.replace('_', "-")
    }

    /// Our environment name.
    pub fn env(&self) -> String {
        format!("{ENV_PREFIX}{}", self.key.replace('.', "_").to_uppercase())
    }

    const fn of(key: &'static str, kind: Kind, help: &'static str) -> Self {
        Self { key, kind, default: None, aliases: &[], morph_env: &[], help }
    }

    const fn default(self, default: &'static str) -> Self {
        Self { default: Some(default), ..self }
    }

    const fn morph(self, aliases: &'static [&'static str], morph_env: &'static [&'static str]) -> Self {
        Self { aliases, morph_env, ..self }
    }
}

/// Every setting there is.
#[rustfmt::skip]
pub const SETTINGS: &[Setting] = &[
    Setting::of("network", Kind::Text, "Network whose ids, contracts and times are known: mainnet or hoodi"),
    Setting::of("mode", Kind::Text, "How local blocks are checked: local (rebuild the blobs) or blob (fetch them)").default("local")
        .morph(&["derivation.verify-mode"], &["DERIVATION_VERIFY_MODE"]),
    Setting::of("finality", Kind::Text, "What finalized means: committed (the commit is final on L1) or proven (the proof is)").default("committed"),
    Setting::of("observe", Kind::Switch, "Only watch: write nothing, set no tag, pause nothing").default("false"),
    Setting::of("poll_interval", Kind::Text, "Time between two polls").default("15s")
        .morph(&["derivation.pollInterval"], &["DERIVATION_POLL_INTERVAL"]),
    Setting::of("observation_window", Kind::Text, "How long the L2 head must be flat to count as stopped").default("60s"),

    Setting::of("l1.rpc", Kind::Urls, "L1 execution endpoints, the most trusted first").morph(&[], &["L1_ETH_RPC"]),
    Setting::of("l1.beacon", Kind::Urls, "L1 beacon endpoints").morph(&["l1.beaconrpc"], &["L1_ETH_BEACON_RPC"]),
    Setting::of("l1.beacon_archive", Kind::Urls, "Archives of old blobs, asked last"),
    Setting::of("l1.chain_id", Kind::Integer, "L1 chain id").morph(&[], &["L1_CHAIN_ID"]),
    Setting::of("l1.rollup", Kind::Text, "Rollup contract on L1").morph(&["derivation.rollupAddress"], &["ROLLUP_ADDRESS"]),
    Setting::of("l1.queue", Kind::Text, "L1MessageQueue contract on L1")
        .morph(&["sync.depositContractAddr"], &["SYNC_DEPOSIT_CONTRACT_ADDRESS"]),
    Setting::of("l1.start_block", Kind::Integer, "First L1 block to read")
        .morph(&["derivation.startHeight"], &["DERIVATION_START_HEIGHT"]),
    Setting::of("l1.confirmations", Kind::Text, "How far below L1's head to read: a number of blocks, safe, or finalized").default("10")
        .morph(&["derivation.confirmations"], &["DERIVATION_CONFIRMATIONS", "L1_CONFIRMATIONS"]),
    Setting::of("l1.fetch_block_range", Kind::Integer, "L1 blocks in one log query").default("500")
        .morph(&["derivation.fetchBlockRange"], &["DERIVATION_FETCH_BLOCK_RANGE"]),
    Setting::of("l1.reorg_window", Kind::Integer, "L1 blocks that a reorg may reach back").default("64")
        .morph(&["derivation.reorg-check-depth"], &["DERIVATION_REORG_CHECK_DEPTH"]),
    Setting::of("l1.max_age", Kind::Text, "Age of the newest L1 block that counts as stale; 0s: none does").default("10m"),
    Setting::of("l1.beacon_genesis_time", Kind::Integer, "Beacon genesis time in seconds, where the beacon node does not say it"),
    Setting::of("l1.seconds_per_slot", Kind::Integer, "Slot length in seconds, where the beacon node does not say it"),
    Setting::of("l1.timeout", Kind::Text, "Deadline of one L1 call").default("15s"),
    Setting::of("l1.beacon_timeout", Kind::Text, "Deadline of one beacon call").default("60s"),

    Setting::of("l2.eth", Kind::Url, "L2 endpoint with eth_*").morph(&[], &["L2_ETH_RPC"]),
    Setting::of("l2.engine", Kind::Url, "L2 engine endpoint").morph(&[], &["L2_ENGINE_RPC"]),
    Setting::of("l2.jwt_secret", Kind::Text, "File with the engine's secret: 32 bytes in hex, readable by its owner only")
        .morph(&[], &["L2_ENGINE_AUTH"]),
    Setting::of("l2.chain_id", Kind::Integer, "L2 chain id"),
    Setting::of("l2.genesis_hash", Kind::Text, "Hash of L2 block 0"),
    Setting::of("l2.switch_time_ms", Kind::Integer, "L2 blocks before this time (ms since 1970) are never derived from L1"),
    Setting::of("l2.timeout", Kind::Text, "Deadline of one L2 read").default("30s"),
    Setting::of("l2.engine_timeout", Kind::Text, "Deadline of one engine call").default("60s"),

    Setting::of("reactors.kind", Kind::Text, "How the consensus node is paused: none, json-rpc or command").default("none"),
    Setting::of("reactors.url", Kind::Url, "json-rpc: endpoint of the consensus node"),
    Setting::of("reactors.pause_method", Kind::Text, "json-rpc: method that pauses"),
    Setting::of("reactors.resume_method", Kind::Text, "json-rpc: method that resumes"),
    Setting::of("reactors.height", Kind::Text, "json-rpc: how the height is passed: none, number, hex or string").default("number"),
    Setting::of("reactors.pause_command", Kind::Argv, "command: program and arguments that pause; {height} is replaced"),
    Setting::of("reactors.resume_command", Kind::Argv, "command: program and arguments that resume; {height} is replaced"),
    Setting::of("reactors.timeout", Kind::Text, "Limit of one pause or resume, and how long one that was given up may still take effect").default("30s"),
    Setting::of("reactors.head_still", Kind::Text, "How long the head must not have moved after an interrupted write, before the resume").default("6s"),
    Setting::of("reactors.already_resumed", Kind::Texts, "Texts of a failed resume that mean that nothing was paused"),
    Setting::of("reactors.pass_env", Kind::Texts, "command: environment variables to pass on besides PATH, HOME and LANG"),
    Setting::of("reactors.pause_budget", Kind::Text, "Longest pause, before what the blocks add").default("60s"),
    Setting::of("reactors.pause_budget_per_block", Kind::Text, "What each block to be written adds to the pause").default("50ms"),

    Setting::of("store.path", Kind::Text, "Database file").default("morph-deriver.sqlite"),
    Setting::of("server.listen", Kind::Text, "Address of status, health and metrics; none: no server").default("127.0.0.1:9545"),
    Setting::of("log.format", Kind::Text, "Log lines: text or json").default("text").morph(&[], &["LOG_FORMAT"]),
    Setting::of("log.filter", Kind::Text, "Log level, or directives such as info,morph_deriver::flow=debug").default("info")
        .morph(&["log.level"], &["LOG_LEVEL"]),
];

/// A value as it was written.
#[derive(Clone, PartialEq, Eq)]
enum Raw {
    One(String),
    Many(Vec<String>),
}

/// A value and the layer that set it.
#[derive(Clone, PartialEq, Eq)]
struct Set {
    raw: Raw,
    source: String,
}

type Values = BTreeMap<&'static str, Set>;

/// Flags of a command that takes configuration: `#[command(flatten)] config: ConfigArgs`. Every setting is a flag.
#[derive(Clone, Default)]
pub struct ConfigArgs {
    file: Option<PathBuf>,
    values: Values,
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
            .help("Configuration file [default: config.toml, where there is one]");
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

impl Config {
    /// The effective configuration of this process.
    ///
    /// # Errors
    ///
    /// As [`Config::from_layers`], and where the file cannot be read.
    pub fn load(args: &ConfigArgs) -> Result<Self, ConfigError> {
        let mut env = BTreeMap::new();
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.to_str().filter(|n| n.starts_with(ENV_PREFIX) || n.starts_with(MORPH_ENV_PREFIX))
            else {
                continue;
            };
            let Some(value) = value.to_str() else {
                return Err(ConfigError::Conflict(format!("{name} is not UTF-8")));
            };
            env.insert(name.to_owned(), value.to_owned());
        }
        let named = args.file.clone().or_else(|| env.get("MORPH_DERIVER_CONFIG").map(PathBuf::from));
        let text = match &named {
            Some(path) => Some((path.display().to_string(), read_file(path)?)),
            None => {
                let usual = Path::new("config.toml");
                usual.exists().then(|| read_file(usual)).transpose()?.map(|text| ("config.toml".to_owned(), text))
            }
        };
        Self::from_layers(text.as_ref().map(|(name, text)| (name.as_str(), text.as_str())), &env, args)
    }

    /// The configuration from a file (name and text), environment and flags.
    ///
    /// # Errors
    ///
    /// Unknown names, values that do not parse, and settings that conflict.
    pub fn from_layers(
        file: Option<(&str, &str)>,
        env: &BTreeMap<String, String>,
        args: &ConfigArgs,
    ) -> Result<Self, ConfigError> {
        let mut above = Values::new();
        if let Some((name, text)) = file {
            above.extend(file_values(name, text)?);
        }
        above.extend(env_values(env)?);
        above.extend(args.values.clone());

        let mut values = Values::new();
        for setting in SETTINGS {
            if let Some(default) = setting.default {
                values.insert(setting.key, Set { raw: Raw::One(default.to_owned()), source: "default".to_owned() });
            }
        }
        if above.contains_key("network") {
            let network: Network = Reader { values: &above }.required("network", str::parse)?;
            for (key, value) in network.preset() {
                let source = format!("network {}", network.as_str());
                values.insert(key, Set { raw: Raw::One(value.to_owned()), source });
            }
        }
        values.extend(above);
        let config = Reader { values: &values }.config()?;
        config.check_conflicts(&values)?;
        Ok(config)
    }

    /// Every setting with its effective value, redacted, and where it came from.
    pub fn shown(&self) -> &[Shown] {
        &self.shown
    }

    /// Checks that what `needs` names is configured.
    ///
    /// # Errors
    ///
    /// `Missing` with everything that is not, and how to set it.
    pub fn require(&self, needs: &[Need]) -> Result<(), ConfigError> {
        let mut missing = Vec::new();
        for need in needs {
            for (key, there) in self.needed(*need) {
                if !there {
                    missing.push(missing_text(key));
                }
            }
        }
        if missing.is_empty() { Ok(()) } else { Err(ConfigError::Missing(missing)) }
    }

    fn needed(&self, need: Need) -> Vec<(&'static str, bool)> {
        match need {
            Need::L1 => vec![
                ("l1.rpc", !self.l1.rpc.is_empty()),
                ("l1.chain_id", self.l1.chain_id.is_some()),
                ("l1.rollup", self.l1.rollup.is_some()),
                ("l1.queue", self.l1.queue.is_some()),
                ("l1.start_block", self.l1.start_block.is_some()),
            ],
            Need::Beacon => vec![("l1.beacon", !(self.l1.beacon.is_empty() && self.l1.beacon_archive.is_empty()))],
            Need::L2 => vec![
                ("l2.eth", self.l2.eth.is_some()),
                ("l2.chain_id", self.l2.chain_id.is_some()),
                ("l2.genesis_hash", self.l2.genesis_hash.is_some()),
            ],
            Need::Engine => {
                vec![("l2.engine", self.l2.engine.is_some()), ("l2.jwt_secret", self.l2.jwt_secret.is_some())]
            }
        }
    }

    /// What `run` needs with this configuration: no engine where it only watches.
    pub fn run_needs(&self) -> Vec<Need> {
        let mut needs = vec![Need::L1, Need::Beacon, Need::L2];
        if !self.observe {
            needs.push(Need::Engine);
        }
        needs
    }

    /// The networks and contracts that a database is bound to.
    ///
    /// # Errors
    ///
    /// `Missing` where one is not configured.
    pub fn identity(&self) -> Result<Identity, ConfigError> {
        let missing = |key| ConfigError::Missing(vec![missing_text(key)]);
        Ok(Identity {
            l1_chain_id: self.l1.chain_id.ok_or_else(|| missing("l1.chain_id"))?,
            l2_chain_id: self.l2.chain_id.ok_or_else(|| missing("l2.chain_id"))?,
            rollup: self.l1.rollup.ok_or_else(|| missing("l1.rollup"))?,
            queue: self.l1.queue.ok_or_else(|| missing("l1.queue"))?,
            l2_genesis: self.l2.genesis_hash.ok_or_else(|| missing("l2.genesis_hash"))?,
        })
    }

    /// A preset names one network; another chain id under it is a mix-up.
    fn check_conflicts(&self, values: &Values) -> Result<(), ConfigError> {
        let Some(network) = self.network else { return Ok(()) };
        for key in ["l1.chain_id", "l2.chain_id", "l2.genesis_hash"] {
            let preset = network.preset().into_iter().find(|(k, _)| *k == key).map(|(_, value)| value);
            let Some(set) = values.get(key) else { continue };
            let Raw::One(value) = &set.raw else { continue };
            if preset.is_some_and(|preset| !preset.eq_ignore_ascii_case(value.trim())) {
                return Err(ConfigError::Conflict(format!(
                    "{key} = {value} (from {}) is not network {}: leave out one of them",
                    set.source,
                    network.as_str()
                )));
            }
        }
        Ok(())
    }
}

fn missing_text(key: &str) -> String {
    let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) else { return key.to_owned() };
    format!("{key} (--{}, or {}): {}", setting.flag(), setting.env(), setting.help)
}

fn read_file(path: &Path) -> Result<String, ConfigError> {
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
fn file_values(name: &str, text: &str) -> Result<Values, ConfigError> {
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

/// The values of the environment: ours over Morph's. An unknown name of ours is an error; Morph's has many that do not
/// concern us.
fn env_values(env: &BTreeMap<String, String>) -> Result<Values, ConfigError> {
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

/// Refuses what is no name of a variable, and our own: they hold URLs with their keys.
fn passable(name: &str) -> Result<(), String> {
    let is_name = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !is_name(name) {
        return Err("must be names of environment variables".to_owned());
    }
    match name.starts_with(ENV_PREFIX) || name.starts_with(MORPH_ENV_PREFIX) {
        true => Err("a command is given none of this program's own variables".to_owned()),
        false => Ok(()),
    }
}

/// Reads typed values out of raw ones.
struct Reader<'v> {
    values: &'v Values,
}

impl Reader<'_> {
    fn config(&self) -> Result<Config, ConfigError> {
        Ok(Config {
            network: self.optional("network")?,
            l1: self.l1()?,
            l2: self.l2()?,
            mode: self.required("mode", |text| match text {
                "local" | "pathB" => Ok(Mode::Local),
                "blob" | "pathA" => Ok(Mode::Blob),
                _ => Err("must be local or blob".to_owned()),
            })?,
            finality: self.required("finality", str::parse)?,
            observe: self.required("observe", |text| text.parse().map_err(|_| "must be true or false".to_owned()))?,
            poll_interval: self.duration("poll_interval")?,
            observation_window: self.duration("observation_window")?,
            reactors: self.reactors()?,
            store: self.required("store.path", path)?,
            listen: self.required("server.listen", |text| match text {
                "none" => Ok(None),
                _ => text.parse().map(Some).map_err(|_| "must be ADDRESS:PORT or none".to_owned()),
            })?,
            log: LogConfig {
                format: self.required("log.format", |text| match text {
                    "text" | "plain" => Ok(LogFormat::Text),
                    "json" => Ok(LogFormat::Json),
                    _ => Err("must be text or json".to_owned()),
                })?,
                filter: self.required("log.filter", |text| {
                    let directives = text.parse::<tracing_subscriber::filter::Targets>();
                    directives.map(|_| text.to_owned()).map_err(|_| "must be a level or log directives".to_owned())
                })?,
            },
            shown: self.shown()?,
        })
    }

    fn l1(&self) -> Result<L1Config, ConfigError> {
        Ok(L1Config {
            rpc: self.urls("l1.rpc")?,
            beacon: self.urls("l1.beacon")?,
            beacon_archive: self.urls("l1.beacon_archive")?,
            chain_id: self.positive("l1.chain_id")?,
            rollup: self.map("l1.rollup", address)?,
            queue: self.map("l1.queue", address)?,
            start_block: self.map("l1.start_block", integer)?.map(L1Number::new),
            confirmations: self.required("l1.confirmations", |text| match text {
                "safe" => Ok(Confirmations::Safe),
                "finalized" => Ok(Confirmations::Finalized),
                _ => integer(text)
                    .map(Confirmations::Depth)
                    .map_err(|_| "must be a number of blocks, safe, or finalized".to_owned()),
            })?,
            fetch_block_range: self.required("l1.fetch_block_range", |text| within(text, 1, 100_000))?,
            reorg_window: self.required("l1.reorg_window", |text| within(text, 1, 100_000))?,
            max_age: self.duration_or_zero("l1.max_age")?,
            beacon_genesis_time: self.positive("l1.beacon_genesis_time")?,
            seconds_per_slot: self.positive("l1.seconds_per_slot")?,
            timeout: self.duration("l1.timeout")?,
            beacon_timeout: self.duration("l1.beacon_timeout")?,
        })
    }

    fn l2(&self) -> Result<L2Config, ConfigError> {
        Ok(L2Config {
            eth: self.optional("l2.eth")?,
            engine: self.optional("l2.engine")?,
            jwt_secret: self.map("l2.jwt_secret", path)?,
            chain_id: self.positive("l2.chain_id")?,
            genesis_hash: self.map("l2.genesis_hash", hash)?,
            switch_time_ms: self.map("l2.switch_time_ms", integer)?.unwrap_or(0),
            timeout: self.duration("l2.timeout")?,
            engine_timeout: self.duration("l2.engine_timeout")?,
        })
    }

    fn reactors(&self) -> Result<ReactorsConfig, ConfigError> {
        let kind: String = self.required("reactors.kind", |text| match text {
            "none" | "json-rpc" | "command" => Ok(text.to_owned()),
            _ => Err("must be none, json-rpc or command".to_owned()),
        })?;
        let by_kind = [
            ("json-rpc", ["reactors.url", "reactors.pause_method", "reactors.resume_method"].as_slice()),
            ("command", ["reactors.pause_command", "reactors.resume_command"].as_slice()),
        ];
        let keys = by_kind.iter().flat_map(|(of, keys)| keys.iter().map(move |key| (*of, *key)));
        if let Some((of, key)) = keys.clone().find(|(of, key)| kind != *of && self.values.contains_key(key)) {
            return Err(ConfigError::Conflict(format!("{key} is set, but reactors.kind is {kind}, not {of}")));
        }
        let missing: Vec<String> = keys
            .filter(|(of, key)| kind == *of && !self.values.contains_key(key))
            .map(|(_, key)| missing_text(key))
            .collect();
        if !missing.is_empty() {
            return Err(ConfigError::Missing(missing));
        }
        let height = self.required("reactors.height", |text| match text {
            "none" => Ok(HeightParam::None),
            "number" => Ok(HeightParam::Number),
            "hex" => Ok(HeightParam::Hex),
            "string" => Ok(HeightParam::String),
            _ => Err("must be none, number, hex or string".to_owned()),
        })?;
        let control = match kind.as_str() {
            "json-rpc" => ReactorControl::JsonRpc {
                url: self.required("reactors.url", str::parse)?,
                pause_method: self.required("reactors.pause_method", name)?,
                resume_method: self.required("reactors.resume_method", name)?,
                height,
            },
            "command" => ReactorControl::Command {
                pause: self.argv("reactors.pause_command")?,
                resume: self.argv("reactors.resume_command")?,
            },
            _ => ReactorControl::None,
        };
        Ok(ReactorsConfig {
            control,
            timeout: self.duration("reactors.timeout")?,
            head_still: self.duration("reactors.head_still")?,
            already_resumed: self.list("reactors.already_resumed", |text| match text.trim() {
                "" => Err("an empty text is in every error".to_owned()),
                _ => Ok(()),
            })?,
            pass_env: self.list("reactors.pass_env", passable)?,
            pause_budget: self.duration("reactors.pause_budget")?,
            pause_budget_per_block: self.duration("reactors.pause_budget_per_block")?,
        })
    }

    fn wrong(&self, key: &'static str, reason: String) -> ConfigError {
        let source_name = self.values.get(key).map(|set| set.source.clone()).unwrap_or_default();
        ConfigError::Value { key, source_name, reason }
    }

    fn map<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(set) = self.values.get(key) else { return Ok(None) };
        let Raw::One(text) = &set.raw else {
            return Err(self.wrong(key, "takes one value, not several".to_owned()));
        };
        read(text.trim()).map(Some).map_err(|reason| self.wrong(key, reason))
    }

    fn optional<T: FromStr<Err = String>>(&self, key: &'static str) -> Result<Option<T>, ConfigError> {
        self.map(key, str::parse)
    }

    fn required<T>(&self, key: &'static str, read: impl FnOnce(&str) -> Result<T, String>) -> Result<T, ConfigError> {
        self.map(key, read)?.ok_or_else(|| ConfigError::Missing(vec![missing_text(key)]))
    }

    fn positive(&self, key: &'static str) -> Result<Option<u64>, ConfigError> {
        self.map(key, |text| within(text, 1, u64::MAX))
    }

    fn duration(&self, key: &'static str) -> Result<Duration, ConfigError> {
        let duration = self.duration_or_zero(key)?;
        if duration.is_zero() {
            return Err(self.wrong(key, "must be more than 0s".to_owned()));
        }
        Ok(duration)
    }

    fn duration_or_zero(&self, key: &'static str) -> Result<Duration, ConfigError> {
        self.required(key, |text| {
            let duration =
                humantime::parse_duration(text).map_err(|_| "must be a time such as 15s or 2m".to_owned())?;
            if duration > Duration::from_secs(86_400) {
                return Err("must be at most 1day".to_owned());
            }
            Ok(duration)
        })
    }

    fn texts(
        &self,
        key: &'static str,
        split: impl Fn(&str) -> Result<Vec<String>, String>,
    ) -> Result<Vec<String>, ConfigError> {
        match self.values.get(key).map(|set| &set.raw) {
            None => Ok(Vec::new()),
            Some(Raw::Many(texts)) => Ok(texts.clone()),
            Some(Raw::One(text)) => split(text).map_err(|reason| self.wrong(key, reason)),
        }
    }

    fn urls(&self, key: &'static str) -> Result<Vec<SecretUrl>, ConfigError> {
        let by_comma = |text: &str| {
            Ok(text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect())
        };
        let mut urls: Vec<SecretUrl> = Vec::new();
        for text in self.texts(key, by_comma)? {
            let url: SecretUrl = text.trim().parse().map_err(|reason| self.wrong(key, reason))?;
            if urls.contains(&url) {
                return Err(self.wrong(key, format!("{url} stands there twice")));
            }
            urls.push(url);
        }
        Ok(urls)
    }

    fn argv(&self, key: &'static str) -> Result<Vec<String>, ConfigError> {
        let split = |text: &str| {
            if !text.trim_start().starts_with('[') {
                return Ok(text.split_whitespace().map(str::to_owned).collect());
            }
            serde_json::from_str(text).map_err(|_| "must be a JSON array of strings, or words".to_owned())
        };
        let argv = self.texts(key, split)?;
        if argv.first().is_none_or(|program| program.trim().is_empty()) {
            return Err(self.wrong(key, "names no program".to_owned()));
        }
        Ok(argv)
    }

    fn list(&self, key: &'static str, check: impl Fn(&str) -> Result<(), String>) -> Result<Vec<String>, ConfigError> {
        let split = |text: &str| match text.trim_start().starts_with('[') {
            true => serde_json::from_str(text).map_err(|_| "must be a JSON array of strings, or texts".to_owned()),
            false => Ok(text.split(',').map(|part| part.trim().to_owned()).collect()),
        };
        let texts = self.texts(key, split)?;
        texts.iter().try_for_each(|text| check(text)).map_err(|reason| self.wrong(key, reason))?;
        Ok(texts)
    }

    fn shown(&self) -> Result<Vec<Shown>, ConfigError> {
        SETTINGS
            .iter()
            .map(|setting| {
                let set = self.values.get(setting.key);
                let source = set.map_or_else(|| "not set".to_owned(), |set| set.source.clone());
                let value = set.map(|set| self.shown_value(setting, set)).transpose()?;
                Ok(Shown { key: setting.key, value, source })
            })
            .collect()
    }

    fn shown_value(&self, setting: &Setting, set: &Set) -> Result<ShownValue, ConfigError> {
        let text = match &set.raw {
            Raw::One(text) => text.trim().to_owned(),
            Raw::Many(texts) => texts.join(" "),
        };
        Ok(match setting.kind {
            Kind::Urls => ShownValue::List(self.urls(setting.key)?.iter().map(SecretUrl::to_string).collect()),
            Kind::Url => ShownValue::Text(self.required(setting.key, str::parse::<SecretUrl>)?.to_string()),
            // An argument may be a token; the program is enough to recognise the command by.
            Kind::Argv => {
                let argv = self.argv(setting.key)?;
                let program = argv.first().cloned().unwrap_or_default();
                let hidden = argv.len().saturating_sub(1);
                let rest = (hidden > 0).then(|| format!("<{hidden} arguments>"));
                ShownValue::List(std::iter::once(program).chain(rest).collect())
            }
            Kind::Texts => ShownValue::List(self.list(setting.key, |_| Ok(()))?),
            Kind::Integer => text.parse().map_or(ShownValue::Text(text), ShownValue::Integer),
            Kind::Switch => text.parse().map_or(ShownValue::Text(text), ShownValue::Boolean),
            Kind::Text => ShownValue::Text(text),
        })
    }
}

fn integer(text: &str) -> Result<u64, String> {
    // `u64::from_str` takes a leading plus.
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("must be a whole number".to_owned());
    }
    text.parse().map_err(|_| "is too large a number".to_owned())
}

fn within(text: &str, least: u64, most: u64) -> Result<u64, String> {
    let number = integer(text)?;
    if number < least || number > most {
        return Err(match most {
            u64::MAX => format!("must be at least {least}"),
            _ => format!("must be {least} to {most}"),
        });
    }
    Ok(number)
}

fn fixed_hex<const N: usize>(text: &str, what: &str) -> Result<[u8; N], String> {
    let wrong = || format!("must be {what}: 0x and {} hex digits", N * 2);
    let digits = text.strip_prefix("0x").ok_or_else(wrong)?;
    let mut bytes = [0; N];
    hex::decode_to_slice(digits, &mut bytes).map_err(|_| wrong())?;
    if bytes == [0; N] {
        return Err(format!("is zero, which is no {what}"));
    }
    Ok(bytes)
}

fn address(text: &str) -> Result<Address, String> {
    fixed_hex::<20>(text, "address").map(Address::from)
}

fn hash(text: &str) -> Result<B256, String> {
    fixed_hex::<32>(text, "hash").map(B256)
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(PathBuf::from(text)) }
}

fn name(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.to_owned()) }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, FromArgMatches as _, Parser};

    use super::*;

    const SAMPLE: &str = include_str!("../config.toml");

    #[derive(Debug, Parser)]
    struct Only {
        #[command(flatten)]
        config: ConfigArgs,
    }

    fn flags(words: &[&str]) -> ConfigArgs {
        let words = std::iter::once("test").chain(words.iter().copied());
        let matches = Only::command().try_get_matches_from(words).unwrap_or_else(|e| panic!("{e}"));
        Only::from_arg_matches(&matches).unwrap().config
    }

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn from_toml(text: &str) -> Result<Config, ConfigError> {
        Config::from_layers(Some(("config.toml", text)), &BTreeMap::new(), &ConfigArgs::default())
    }

    fn from_env(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::from_layers(None, &env(pairs), &ConfigArgs::default())
    }

    fn from_flags(words: &[&str]) -> Result<Config, ConfigError> {
        Config::from_layers(None, &BTreeMap::new(), &flags(words))
    }

    fn defaults() -> Config {
        from_flags(&[]).unwrap()
    }

    /// Without the notes on where values came from.
    fn bare(config: Config) -> Config {
        Config { shown: Vec::new(), ..config }
    }

    #[test]
    fn the_sample_parses_and_equals_the_defaults() {
        assert_eq!(bare(from_toml(SAMPLE).unwrap()), bare(defaults()));
    }

    /// K8: the sample names every setting, and every example in a comment is a valid one.
    #[test]
    fn k8_the_sample_is_complete_and_its_examples_are_valid() {
        let is_example = |line: &str| {
            line.strip_prefix("# ").and_then(|rest| rest.split_once(" = ")).is_some_and(|(name, _)| {
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            })
        };
        let open: String = SAMPLE
            .lines()
            .map(|line| if is_example(line) { line.trim_start_matches("# ") } else { line })
            .map(|line| format!("{line}\n"))
            .collect();
        let values = file_values("sample", &open).unwrap();
        for setting in SETTINGS {
            let set = values.get(setting.key).unwrap_or_else(|| panic!("{} is not in the sample", setting.key));
            if let (Some(default), Raw::One(text)) = (setting.default, &set.raw) {
                assert_eq!(text, default, "{}", setting.key);
            }
        }
        for kind in ["json-rpc", "command"] {
            let open = open.replace("kind = \"none\"", &format!("kind = \"{kind}\""));
            let unused = if kind == "command" {
                ["url", "pause_method", "resume_method"]
            } else {
                ["", "pause_command", "resume_command"]
            };
            let text: String = open
                .lines()
                .filter(|line| !unused.iter().any(|key| !key.is_empty() && line.starts_with(&format!("{key} = "))))
                .map(|line| format!("{line}\n"))
                .collect();
            let config = from_toml(&text).unwrap_or_else(|e| panic!("{kind}: {e}"));
            assert_eq!(config.require(&config.run_needs()), Ok(()));
        }
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let config = defaults();
        assert_eq!((config.mode, config.finality), (Mode::Local, FinalityMeaning::Committed));
        assert!(!config.observe);
        assert_eq!(config.poll_interval, Duration::from_secs(15));
        assert_eq!(config.l1.confirmations, Confirmations::Depth(10));
        assert_eq!((config.l1.fetch_block_range, config.l1.reorg_window), (500, 64));
        assert_eq!(config.reactors.control, ReactorControl::None);
        assert!(config.listen.unwrap().ip().is_loopback());
        assert!(config.l1.rpc.is_empty() && config.l2.eth.is_none(), "no endpoint is shipped");
    }

    #[test]
    fn presets_are_the_protocols_table() {
        let mainnet = from_flags(&["--mainnet"]).unwrap();
        assert_eq!(mainnet.network, Some(Network::Mainnet));
        assert_eq!(mainnet.identity().unwrap().l2_chain_id, 2818);
        assert_eq!(mainnet.l1.start_block, Some(L1Number::new(20_996_776)));
        assert_eq!((mainnet.l1.beacon_genesis_time, mainnet.l1.seconds_per_slot), (Some(1_606_824_023), Some(12)));
        let hoodi = from_toml("network = 'hoodi'").unwrap();
        assert_eq!(hoodi.identity().unwrap().l1_chain_id, 560_048);
        assert_eq!(hoodi.l2.switch_time_ms, 1_784_613_600_000);
        assert_eq!(hoodi, from_toml("network = \"hoodi\"").unwrap());
    }

    /// The sample states every default, and a file wins over the preset: a default for one of these would undo it.
    #[test]
    fn the_sample_beside_a_preset_changes_nothing() {
        for network in ["--mainnet", "--hoodi"] {
            let with =
                Config::from_layers(Some(("config.toml", SAMPLE)), &BTreeMap::new(), &flags(&[network])).unwrap();
            assert_eq!(bare(with), bare(from_flags(&[network]).unwrap()));
        }
    }

    #[test]
    fn later_layers_win() {
        let file = "network = 'mainnet'\npoll_interval = '1s'\n[l1]\nstart_block = 7\nconfirmations = 1";
        let pairs = env(&[
            ("MORPH_DERIVER_POLL_INTERVAL", "2s"),
            ("MORPH_NODE_DERIVATION_POLL_INTERVAL", "9s"),
            ("MORPH_NODE_DERIVATION_CONFIRMATIONS", "2"),
            ("MORPH_NODE_L1_CONFIRMATIONS", "8"),
            ("MORPH_NODE_HOME", "/does/not/concern/us"),
            ("MORPH_DERIVER_TEST_FAILPOINT", "neither does this"),
        ]);
        let read = |words: &[&str]| Config::from_layers(Some(("f.toml", file)), &pairs, &flags(words)).unwrap();
        let config = read(&[]);
        assert_eq!(config.l1.start_block, Some(L1Number::new(7)), "file over preset");
        assert_eq!(config.poll_interval, Duration::from_secs(2), "ours over Morph's, environment over file");
        assert_eq!(config.l1.confirmations, Confirmations::Depth(2));
        let config = read(&["--derivation.pollInterval", "3s", "--l1.confirmations=finalized"]);
        assert_eq!(config.poll_interval, Duration::from_secs(3));
        assert_eq!(config.l1.confirmations, Confirmations::Finalized);
        assert_eq!(read(&["--finality=proven"]).finality, FinalityMeaning::Proven);
        let source = |key| config.shown().iter().find(|shown| shown.key == key).unwrap().source.clone();
        assert_eq!(source("l1.rollup"), "network mainnet");
        assert_eq!(source("l1.start_block"), "f.toml");
        assert_eq!(source("poll_interval"), "--poll-interval");
        assert_eq!(source("mode"), "default");
        assert_eq!(source("l2.eth"), "not set");
    }

    #[test]
    fn every_setting_can_be_set_in_every_layer_by_every_name() {
        for setting in SETTINGS {
            let value = setting.default.unwrap_or(match setting.kind {
                Kind::Url | Kind::Urls => "http://h:1",
                Kind::Integer => "12",
                Kind::Argv => "program argument",
                Kind::Texts => "one,two",
                Kind::Switch => "true",
                Kind::Text => match setting.key {
                    "network" => "hoodi",
                    "l1.rollup" | "l1.queue" => "0x1111111111111111111111111111111111111111",
                    "l2.genesis_hash" => "0x1111111111111111111111111111111111111111111111111111111111111111",
                    _ => "word",
                },
            });
            let sources = |config: Result<Values, ConfigError>| config.unwrap().remove(setting.key).unwrap().source;
            let file = match setting.key.split_once('.') {
                Some((section, name)) => format!("[{section}]\n{name} = '{value}'"),
                None => format!("{} = '{value}'", setting.key),
            };
            assert_eq!(sources(file_values("f", &file)), "f");
            assert_eq!(sources(env_values(&env(&[(&setting.env(), value)]))), setting.env());
            for name in setting.morph_env {
                let name = format!("{MORPH_ENV_PREFIX}{name}");
                assert_eq!(sources(env_values(&env(&[(&name, value)]))), name);
            }
            for name in setting.aliases.iter().map(|&name| name.to_owned()).chain([setting.flag()]) {
                let args = flags(&[&format!("--{name}={value}")]);
                assert!(args.values.contains_key(setting.key), "--{name}");
            }
        }
    }

    #[test]
    fn morphs_own_flags_are_understood() {
        let config = from_flags(&[
            "--l1.rpc=http://a:1,http://b:2",
            "--l1.rpc=http://c:3",
            "--l1.beaconrpc",
            "http://d:4",
            "--l2.eth=http://e:5",
            "--l2.engine=http://f:6",
            "--l2.jwt-secret=/jwt",
            "--derivation.startHeight=5",
            "--derivation.verify-mode=pathA",
            "--observe",
        ]);
        assert!(matches!(config, Err(ConfigError::Value { key: "l1.rpc", .. })), "a comma among repeated flags");
        let config =
            from_flags(&["--l1.rpc=http://a:1", "--l1.rpc=http://c:3", "--derivation.verify-mode=pathA", "--observe"])
                .unwrap();
        assert_eq!(config.l1.rpc.len(), 2);
        assert_eq!((config.mode, config.observe), (Mode::Blob, true));
        assert_eq!(from_env(&[("MORPH_NODE_L1_ETH_RPC", "http://a:1, http://b:2")]).unwrap().l1.rpc.len(), 2);
    }

    #[test]
    fn k6_bad_values_are_refused_at_start() {
        let zero = "0x0000000000000000000000000000000000000000";
        let table = [
            ("l1.rollup", "junk"),
            ("l1.rollup", zero),
            ("l1.rollup", "0x759894ced0e6af42c26668076ffa84d02e3cef6"),
            ("l1.rollup", "759894ced0e6af42c26668076ffa84d02e3cef60"),
            ("l1.queue", "0x759894ced0e6af42c26668076ffa84d02e3cef6000"),
            ("l2.genesis_hash", "0x00"),
            ("l1.confirmations", "-2"),
            ("l1.confirmations", "-3"),
            ("l1.confirmations", "latest"),
            ("l1.confirmations", ""),
            ("l1.start_block", "0x10"),
            ("l1.start_block", "+5"),
            ("l1.start_block", "1e6"),
            ("l1.start_block", "99999999999999999999"),
            ("l1.chain_id", "0"),
            ("l1.fetch_block_range", "0"),
            ("l1.reorg_window", "0"),
            ("l1.seconds_per_slot", "0"),
            ("poll_interval", "15"),
            ("poll_interval", "0s"),
            ("poll_interval", "-1s"),
            ("poll_interval", "2days"),
            ("mode", "pathC"),
            ("finality", "safe"),
            ("observe", "yes"),
            ("l1.rpc", "localhost:8545"),
            ("l1.rpc", "ftp://h"),
            ("l1.rpc", "http://h,http://h"),
            ("l2.eth", "http://"),
            ("l2.eth", "ws://h"),
            ("l2.jwt_secret", ""),
            ("network", "sepolia"),
            ("reactors.kind", "kill"),
            ("reactors.height", "0"),
            ("reactors.head_still", "0s"),
            ("reactors.already_resumed", "running, "),
            ("reactors.already_resumed", "[1]"),
            ("server.listen", "9545"),
            ("log.format", "xml"),
            ("log.filter", "a=b=c"),
        ];
        for (key, value) in table {
            let setting = SETTINGS.iter().find(|setting| setting.key == key).unwrap();
            let error = from_env(&[(&setting.env(), value)]).expect_err(&format!("{key} = {value:?}"));
            let ConfigError::Value { key: named, source_name, .. } = &error else { panic!("{key}: {error}") };
            assert_eq!((*named, source_name.as_str()), (key, setting.env().as_str()));
        }
        for text in [
            "mode = 1.5",
            "[l1]\nrpc = [1]",
            "observe = { a = 1 }",
            "[l1]\nstart_block = -1",
            "[l1.rpc.deeper]\nx = 1",
            "mode = ['local', 'blob']",
        ] {
            from_toml(text).expect_err(text);
        }
    }

    #[test]
    fn k7_unknown_and_conflicting_settings_are_refused() {
        let unknown = |result: Result<Config, ConfigError>, hint: &str| match result {
            Err(ConfigError::Unknown { hint: given, .. }) => assert!(given.contains(hint), "{given:?}"),
            other => panic!("{other:?}"),
        };
        unknown(from_toml("poll-interval = '1s'"), "poll_interval");
        unknown(from_toml("[l1]\nstartblock = 1"), "l1.start_block");
        unknown(from_toml("[l3]\nrpc = 'http://h'"), "");
        unknown(from_env(&[("MORPH_DERIVER_L1_STARTBLOCK", "1")]), "MORPH_DERIVER_L1_START_BLOCK");
        let conflicts = [
            from_flags(&["--mainnet", "--l2.chain-id=2910"]),
            from_flags(&["--hoodi", "--l1.chain-id=1"]),
            from_flags(&["--reactors.url=http://h"]),
            from_flags(&["--reactors.kind=json-rpc", "--reactors.pause-command=x"]),
        ];
        for result in conflicts {
            assert!(matches!(result, Err(ConfigError::Conflict(_))), "{result:?}");
        }
        let missing = from_flags(&["--reactors.kind=command", "--reactors.pause-command=stop"]);
        assert!(matches!(missing, Err(ConfigError::Missing(_))), "{missing:?}");
        for words in [
            vec!["--mainnet", "--hoodi"],
            vec!["--mainnet", "--network=hoodi"],
            vec!["--l1.rpx=1"],
            vec!["--mode=local", "--mode=blob"],
        ] {
            let all = std::iter::once("test").chain(words.iter().copied());
            assert!(Only::command().try_get_matches_from(all).is_err(), "{words:?}");
        }
    }

    #[test]
    fn what_a_command_misses_is_named_all_at_once() {
        let config = from_flags(&["--mainnet", "--l2.eth=http://h"]).unwrap();
        let Err(ConfigError::Missing(missing)) = config.require(&config.run_needs()) else { panic!() };
        let keys: Vec<&str> = missing.iter().map(|line| line.split(' ').next().unwrap()).collect();
        assert_eq!(keys, ["l1.rpc", "l1.beacon", "l2.engine", "l2.jwt_secret"]);
        let words = ["--mainnet", "--observe", "--l1.rpc=http://h", "--l1.beacon=http://h", "--l2.eth=http://h"];
        let observing = from_flags(&words).unwrap();
        assert_eq!(observing.require(&observing.run_needs()), Ok(()));
    }

    #[test]
    fn m26_p10_none_of_our_own_variables_is_passed_on_to_a_command() {
        let read = |names: &str| {
            let names = format!("--reactors.pass-env={names}");
            let command = ["--reactors.kind=command", "--reactors.pause-command=x", "--reactors.resume-command=y"];
            from_flags(&[&command[..], &[&names]].concat()).map(|config| config.reactors.pass_env)
        };
        assert_eq!(read("DOCKER_HOST, KUBECONFIG").unwrap(), ["DOCKER_HOST", "KUBECONFIG"]);
        assert_eq!(read(r#"["XDG_RUNTIME_DIR"]"#).unwrap(), ["XDG_RUNTIME_DIR"]);
        for bad in ["MORPH_DERIVER_L1_RPC", "MORPH_NODE_L1_ETH_RPC", "A=b", "", "A,,B", "a b"] {
            assert!(matches!(read(bad), Err(ConfigError::Value { .. })), "{bad:?}");
        }
    }

    #[test]
    fn m28_texts_of_a_resume_that_found_nothing_paused() {
        let config = from_toml("[reactors]\nalready_resumed = ['already running', 'is running, too']").unwrap();
        assert_eq!(config.reactors.already_resumed, ["already running", "is running, too"]);
        assert!(defaults().reactors.already_resumed.is_empty());
    }

    #[test]
    fn commands_are_read_without_a_shell() {
        let read = |pause: &str| {
            let pause = format!("--reactors.pause-command={pause}");
            let config = from_flags(&["--reactors.kind=command", &pause, "--reactors.resume-command=start it"])?;
            match config.reactors.control {
                ReactorControl::Command { pause, .. } => Ok(pause),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(read("systemctl stop x").unwrap(), ["systemctl", "stop", "x"]);
        assert_eq!(read(r#"["a b", "$HOME; rm"]"#).unwrap(), ["a b", "$HOME; rm"]);
        for bad in ["", "[]", "[1]", "[\"\"]"] {
            assert!(matches!(read(bad), Err(ConfigError::Value { .. })), "{bad:?}");
        }
    }

    /// P10: a canary in every place of every URL, and in the arguments of a command.
    #[test]
    fn k4_no_url_secret_is_shown() {
        let url = "https://user:canary@h.example:8443/canary?key=canary#canary";
        let argv = "[\"program\", \"--token=canary\"]";
        let mut pairs = vec![("MORPH_DERIVER_REACTORS_KIND".to_owned(), "command".to_owned())];
        for setting in SETTINGS.iter().filter(|setting| setting.key != "reactors.url") {
            match setting.kind {
                Kind::Url | Kind::Urls => pairs.push((setting.env(), url.to_owned())),
                Kind::Argv => pairs.push((setting.env(), argv.to_owned())),
                _ => {}
            }
        }
        let config = Config::from_layers(None, &pairs.into_iter().collect(), &ConfigArgs::default()).unwrap();
        let shown = serde_json::to_string(config.shown()).unwrap();
        assert!(shown.contains("https://h.example:8443") && !shown.contains("canary"), "{shown}");
        let config = Config { reactors: defaults().reactors, ..config };
        assert!(!format!("{config:?}").contains("canary"));
        assert_eq!(config.l1.rpc[0].expose().as_str(), url);
        let args = flags(&["--l1.rpc", url]);
        assert!(!format!("{args:?}").contains("canary"));
        // Errors do not repeat the text either.
        let broken = [
            from_toml("[l1]\nrpc = 'https://canary@h:99999/canary'"),
            from_toml("[l1]\nrpc = 'https://canary@h/canary' canary"),
            from_flags(&["--l2.eth=canary"]),
            from_flags(&["--l1.rpc=https://u:canary@h/canary,https://u:canary@h/canary"]),
        ];
        for error in broken.into_iter().map(Result::unwrap_err) {
            assert!(!format!("{error} {error:?}").contains("canary"), "{error}");
        }
    }

    #[test]
    fn p7_a_file_that_is_no_configuration_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large.toml");
        std::fs::write(&path, "#".repeat(2 << 20)).unwrap();
        assert!(matches!(read_file(&path), Err(ConfigError::File { .. })));
        assert!(matches!(read_file(&folder.path().join("none")), Err(ConfigError::File { .. })));
    }
}
