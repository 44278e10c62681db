//! The effective configuration, typed: the settings of each part of the program.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::error::ConfigError;
use super::network::Network;
use super::settings::missing_text;
use crate::redact::SecretUrl;
use crate::types::{Address, B256, Confirmations, FinalityMeaning, HeightParam, Identity, L1Number, Mode};

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
    /// Deadline of one call or command, and how long after it an unanswered one may still take effect.
    pub timeout: Duration,
    /// How long the head must not move after an interrupted write before the reactors are resumed.
    pub head_still: Duration,
    /// If a resume fails with one of these texts, the reactors were running already and it counts as done.
    pub already_resumed: Vec<String>,
    /// Environment variables passed to a command besides PATH, HOME and LANG.
    pub pass_env: Vec<String>,
    /// Longest pause, without the time for each block.
    pub pause_budget: Duration,
    /// Time that each block to be written adds to the longest pause.
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
    /// Blocks before this time (milliseconds since the Unix epoch) are never derived from L1; 0 if unset.
    pub switch_time_ms: u64,
    /// Deadline of one read.
    pub timeout: Duration,
    /// Deadline of one engine call.
    pub engine_timeout: Duration,
}

/// Following another node instead of deriving from L1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FollowConfig {
    /// The nodes that are followed, the most trusted first; none: batches are derived from L1.
    pub sources: Vec<SecretUrl>,
    /// Time between two polls.
    pub poll_interval: Duration,
    /// Age of the L1 block up to which a source has read at which it counts as stale; zero: never.
    pub max_age: Duration,
    /// Deadline of one call to a source.
    pub timeout: Duration,
    /// How many sources must show the same safe head.
    pub agreement: usize,
    /// Polls in a row without anything taken over after which there is an alarm.
    pub alarm_after: u32,
    /// How the node is told.
    pub engine: FollowEngine,
}

/// How a follower tells the execution node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FollowEngine {
    /// A Morph node: `engine_setBlockTags`. Its head follows its consensus node.
    Morph,
    /// A standard node: `engine_forkchoiceUpdatedV3`, which sets the head too.
    Forkchoice,
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
    /// Redacted value; none if unset.
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

/// Every setting, read and checked.
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
    /// Following.
    pub follow: FollowConfig,
    /// The database.
    pub store: PathBuf,
    /// Address of status and metrics; none: no server.
    pub listen: Option<SocketAddr>,
    /// Log output.
    pub log: LogConfig,
    pub(super) shown: Vec<Shown>,
}

/// A part of the configuration that a command needs.
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

impl Config {
    /// Every setting with its effective value, redacted, and where it came from.
    pub fn shown(&self) -> &[Shown] {
        &self.shown
    }

    /// Checks that what `needs` names is configured.
    ///
    /// # Errors
    ///
    /// `Missing` with every setting that is unset, and how to set it.
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

    /// Whether another node is followed instead of deriving batches from L1.
    pub fn follows(&self) -> bool {
        !self.follow.sources.is_empty()
    }

    /// What `run` needs with this configuration: no engine if it only watches, no beacon node if it follows.
    pub fn run_needs(&self) -> Vec<Need> {
        let mut needs = vec![Need::L1, Need::Beacon, Need::L2];
        if self.follows() {
            needs.retain(|need| *need != Need::Beacon);
        }
        if !self.observe {
            needs.push(Need::Engine);
        }
        needs
    }

    /// The networks and contracts that a database is bound to.
    ///
    /// # Errors
    ///
    /// `Missing` if one is not configured.
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
}
