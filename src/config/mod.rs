//! The effective configuration: which settings exist, where each value came from, and whether they fit together.
//!
//! Decided here: the order of the layers (defaults < network preset < `config.toml` < environment < flags), the strict
//! reading of every value, and which settings conflict. One table, [`SETTINGS`], lists them: flags, environment names and
//! the keys of `config.toml` all come from it, so they cannot drift apart. Not decided here: whether an endpoint answers
//! and belongs to the right network; that is seen at start.
//!
//! URLs hold credentials. They live in [`crate::redact::SecretUrl`], which shows no more than scheme, host and port (P10).

mod error;
mod layers;
mod network;
mod read;
mod settings;
mod values;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use layers::{Raw, Set, Values, env_values, file_values, read_file};
use read::Reader;

pub use error::ConfigError;
pub use layers::ConfigArgs;
pub use network::Network;
pub use settings::{ENV_PREFIX, Kind, MORPH_ENV_PREFIX, SETTINGS, Setting};
pub use values::{
    Config, FollowConfig, FollowEngine, L1Config, L2Config, LogConfig, LogFormat, Need, ReactorControl, ReactorsConfig,
    Shown, ShownValue,
};

impl Config {
    /// The effective configuration of this process.
    ///
    /// # Errors
    ///
    /// As [`Config::from_layers`], and if the file cannot be read.
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

    /// Nothing is derived from L1 while another node is followed: settings of deriving that are not at their defaults
    /// show that something else was meant.
    fn check_follow(&self, values: &Values) -> Result<(), ConfigError> {
        for key in ["mode", "finality", "reactors.kind"] {
            let default = SETTINGS.iter().find(|setting| setting.key == key).and_then(|setting| setting.default);
            let Some(Set { raw: Raw::One(value), source }) = values.get(key) else { continue };
            if Some(value.as_str()) != default {
                return Err(ConfigError::Conflict(format!(
                    "{key} = {value} (from {source}) is about deriving from L1, which is off while follow.source is \
                     set: leave out one of them"
                )));
            }
        }
        let is_ours = |url: &url::Url| {
            let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let port = url.port_or_known_default();
            self.listen.is_some_and(|listen| {
                let ip: Option<std::net::IpAddr> = host.parse().ok();
                let loopback = host == "localhost" || ip.is_some_and(|ip| ip.is_loopback());
                port == Some(listen.port()) && (loopback || ip == Some(listen.ip()))
            })
        };
        match self.follow.sources.iter().find(|source| is_ours(source.expose())) {
            Some(source) => Err(ConfigError::Conflict(format!(
                "follow.source {source} is this program's own server.listen: it would follow itself"
            ))),
            None => Ok(()),
        }
    }

    /// A preset names one network; another chain id under it is a mix-up. So is deriving and following at once (I13).
    fn check_conflicts(&self, values: &Values) -> Result<(), ConfigError> {
        if self.follows() {
            self.check_follow(values)?;
        }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::{CommandFactory as _, FromArgMatches as _, Parser};

    use super::*;
    use crate::types::{Confirmations, FinalityMeaning, L1Number, Mode};

    const SAMPLE: &str = include_str!("../../config.toml");

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
            // Nothing is paused while another node is followed.
            let unused = if kind == "command" {
                ["source", "url", "pause_method", "resume_method"]
            } else {
                ["source", "", "pause_command", "resume_command"]
            };
            let text: String = open
                .lines()
                .filter(|line| !unused.iter().any(|key| !key.is_empty() && line.starts_with(&format!("{key} = "))))
                .map(|line| format!("{line}\n"))
                .collect();
            let config = from_toml(&text).unwrap_or_else(|e| panic!("{kind}: {e}"));
            assert_eq!(config.require(&config.run_needs()), Ok(()));
        }
        let without = |line: &&str| !["url", "pause_", "resume_"].iter().any(|key| line.starts_with(key));
        let text: String = open.lines().filter(without).map(|line| format!("{line}\n")).collect();
        let config = from_toml(&text).unwrap();
        assert!(config.follows() && config.require(&config.run_needs()) == Ok(()));
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
            ("follow.source", "localhost:9545"),
            ("follow.poll_interval", "0s"),
            ("follow.max_age", "-1s"),
            ("follow.timeout", "0s"),
            ("follow.agreement", "0"),
            ("follow.agreement", "17"),
            ("follow.alarm_after", "0"),
            ("follow.engine", "geth"),
            ("follow.import", "true"),
            ("follow.import", "yes"),
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
    fn i13_following_and_deriving_at_once_is_refused() {
        let follow = "--follow.source=http://h:1";
        let config = from_flags(&[follow, "--mode=local", "--observe"]).unwrap();
        assert!(config.follows() && !config.run_needs().contains(&Need::Beacon));
        assert_eq!(from_flags(&["--l2.follow.source=http://h:1"]).unwrap().follow.sources.len(), 1);
        assert!(!from_flags(&["--follow.agreement=2"]).unwrap().follows());
        for (name, engine) in [("morph", FollowEngine::Morph), ("forkchoice", FollowEngine::Forkchoice)] {
            assert_eq!(from_flags(&[&format!("--follow.engine={name}")]).unwrap().follow.engine, engine);
        }
        let conflicts: [&[&str]; 8] = [
            &["--mode=blob"],
            &["--derivation.verify-mode=pathA"],
            &["--finality=proven"],
            &["--reactors.kind=command", "--reactors.pause-command=a", "--reactors.resume-command=b"],
            &["--follow.source=http://127.0.0.1:9545/"],
            &["--follow.source=http://localhost:9545/key"],
            &["--follow.source=http://[::1]:7", "--server.listen=127.0.0.1:7"],
            &["--follow.source=http://10.0.0.5:7", "--server.listen=10.0.0.5:7"],
        ];
        for words in conflicts {
            let words: Vec<&str> = std::iter::once(follow).chain(words.iter().copied()).collect();
            let error = from_flags(&words).expect_err(&words.join(" "));
            assert!(matches!(&error, ConfigError::Conflict(_)), "{words:?}: {error}");
            assert!(!error.to_string().contains("/key"), "{error}");
        }
        let few = from_flags(&[follow, "--follow.agreement=2"]).unwrap_err();
        assert!(matches!(few, ConfigError::Value { key: "follow.agreement", .. }), "{few}");
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
        for setting in SETTINGS.iter().filter(|setting| !["reactors.url", "follow.source"].contains(&setting.key)) {
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
        let config = from_flags(&["--follow.source", url]).unwrap();
        let shown = serde_json::to_string(config.shown()).unwrap();
        assert!(
            shown.contains("https://h.example:8443") && !format!("{shown}{config:?}").contains("canary"),
            "{shown}"
        );
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
