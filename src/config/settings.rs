//! Which settings exist: one table that gives the flags, the environment names and the keys of `config.toml`.

/// Prefix of our own environment names.
pub const ENV_PREFIX: &str = "MORPH_DERIVER_";

/// Prefix of the Morph node's environment names. They are read if they mean the same.
pub const MORPH_ENV_PREFIX: &str = "MORPH_NODE_";

/// What a setting takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text with a grammar of its own.
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
    /// Morph's environment names without prefix. The first one that is set counts.
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

/// Every setting.
#[rustfmt::skip]
pub const SETTINGS: &[Setting] = &[
    Setting::of("network", Kind::Text, "Network preset with ids, contracts and times: mainnet or hoodi"),
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
    Setting::of("l1.max_age", Kind::Text, "Age at which the newest L1 block counts as stale; 0s turns this off").default("10m"),
    Setting::of("l1.beacon_genesis_time", Kind::Integer, "Beacon genesis time in seconds since 1970, if no beacon endpoint serves it"),
    Setting::of("l1.seconds_per_slot", Kind::Integer, "Slot length in seconds, if no beacon endpoint serves it"),
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
    Setting::of("reactors.timeout", Kind::Text, "Deadline of one pause or resume call, and how long after it an unanswered call may still take effect").default("30s"),
    Setting::of("reactors.head_still", Kind::Text, "How long the head must not move after an interrupted write before the resume").default("6s"),
    Setting::of("reactors.already_resumed", Kind::Texts, "Error texts of a resume that mean that nothing was paused"),
    Setting::of("reactors.pass_env", Kind::Texts, "command: environment variables to pass on besides PATH, HOME and LANG"),
    Setting::of("reactors.pause_budget", Kind::Text, "Longest pause, without the time for each block").default("60s"),
    Setting::of("reactors.pause_budget_per_block", Kind::Text, "Time that each block to be written adds to the longest pause").default("50ms"),

    Setting::of("follow.source", Kind::Urls, "Nodes whose safe and finalized heads are followed, the most trusted first; nothing is derived from L1 then")
        .morph(&["l2.follow.source"], &[]),
    Setting::of("follow.poll_interval", Kind::Text, "Time between two polls of a follow source").default("2s"),
    Setting::of("follow.max_age", Kind::Text, "Age of the L1 block up to which a source has read at which it counts as stale; 0s turns this off").default("30m"),
    Setting::of("follow.timeout", Kind::Text, "Deadline of one call to a follow source").default("5s"),
    Setting::of("follow.agreement", Kind::Integer, "How many sources must show the same safe head").default("1"),
    Setting::of("follow.alarm_after", Kind::Integer, "Polls in a row without anything taken over after which there is an alarm").default("30"),
    Setting::of("follow.engine", Kind::Text, "How the node is told: morph (engine_setBlockTags), or forkchoice (engine_forkchoiceUpdatedV3), which sets the head too").default("morph"),
    Setting::of("follow.import", Kind::Switch, "Import missing blocks from the source; this version cannot").default("false"),

    Setting::of("store.path", Kind::Text, "Database file").default("morph-deriver.sqlite"),
    Setting::of("server.listen", Kind::Text, "Address of status, health and metrics; none: no server").default("127.0.0.1:9545"),
    Setting::of("log.format", Kind::Text, "Log lines: text or json").default("text").morph(&[], &["LOG_FORMAT"]),
    Setting::of("log.filter", Kind::Text, "Log level, or directives such as info,morph_deriver::flow=debug").default("info")
        .morph(&["log.level"], &["LOG_LEVEL"]),
];

/// The line that says that the setting `key` is missing, and how to set it.
pub(super) fn missing_text(key: &str) -> String {
    let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) else { return key.to_owned() };
    format!("{key} (--{}, or {}): {}", setting.flag(), setting.env(), setting.help)
}
