//! Reads raw values strictly into typed ones.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::error::ConfigError;
use super::layers::{Raw, Set, Values};
use super::settings::{ENV_PREFIX, Kind, MORPH_ENV_PREFIX, SETTINGS, Setting, missing_text};
use super::values::{
    Config, FollowConfig, FollowEngine, L1Config, L2Config, LogConfig, LogFormat, ReactorControl, ReactorsConfig,
    Shown, ShownValue,
};
use crate::redact::SecretUrl;
use crate::types::{Address, B256, Confirmations, HeightParam, L1Number, Mode};

/// Reads typed values out of raw ones.
pub(super) struct Reader<'v> {
    pub(super) values: &'v Values,
}

impl Reader<'_> {
    pub(super) fn config(&self) -> Result<Config, ConfigError> {
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
            follow: self.follow()?,
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

    fn follow(&self) -> Result<FollowConfig, ConfigError> {
        let engine = self.required("follow.engine", |text| match text {
            "morph" => Ok(FollowEngine::Morph),
            "forkchoice" => Ok(FollowEngine::Forkchoice),
            _ => Err("must be morph or forkchoice".to_owned()),
        })?;
        self.required("follow.import", |text| match text {
            "false" => Ok(()),
            "true" => Err("cannot be true in this version: blocks are never imported from a source".to_owned()),
            _ => Err("must be true or false".to_owned()),
        })?;
        let sources = self.urls("follow.source")?;
        let narrow = |number: u64| u32::try_from(number).map_err(|_| "is too large a number".to_owned());
        let agreement = self.required("follow.agreement", |text| within(text, 1, 16).and_then(narrow))?;
        let agreement = usize::try_from(agreement).unwrap_or(usize::MAX);
        if !sources.is_empty() && agreement > sources.len() {
            let reason = format!("is more than there are sources ({})", sources.len());
            return Err(self.wrong("follow.agreement", reason));
        }
        Ok(FollowConfig {
            sources,
            poll_interval: self.duration("follow.poll_interval")?,
            max_age: self.duration_or_zero("follow.max_age")?,
            timeout: self.duration("follow.timeout")?,
            agreement,
            alarm_after: self.required("follow.alarm_after", |text| within(text, 1, 1_000_000).and_then(narrow))?,
            engine,
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
                "" => Err("must not be empty: every error contains the empty text".to_owned()),
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

    pub(super) fn required<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
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
                return Err(self.wrong(key, format!("{url} is listed twice")));
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

/// Refuses texts that are not names of variables, and our own variables: they hold URLs with their keys.
fn passable(name: &str) -> Result<(), String> {
    let is_name = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !is_name(name) {
        return Err("must be names of environment variables".to_owned());
    }
    match name.starts_with(ENV_PREFIX) || name.starts_with(MORPH_ENV_PREFIX) {
        true => Err("this program's own variables are never passed to a command".to_owned()),
        false => Ok(()),
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
    let digits = text.strip_prefix("0x").filter(|digits| digits.len() == N * 2).ok_or_else(wrong)?;
    let mut bytes = [0; N];
    const_hex::decode_to_slice(digits, &mut bytes).map_err(|_| wrong())?;
    if bytes == [0; N] {
        return Err(format!("must not be zero: that is no {what}"));
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
