//! Log set-up: format, filter, de-duplication, and the last guard against credentials in a line.
//!
//! Decided here: when a repeated fault is logged again (P9, J7). An event takes part if it carries a `code` field;
//! its key is (`target` of the event, `code`, `entity` field). The first occurrence logs; after that one line a window,
//! with `repeated=n`; a change of its `state` field or of its level always logs. An event with `recovered = true` closes
//! the open faults of its target and entity (of one code only, if it carries one) and logs once, with `lasted_s=…`. If no
//! fault was open it is dropped, so a recovery can be reported without knowing whether there was a fault. Events without
//! these fields pass untouched. Not decided here: what is logged and at which level.
//!
//! ```text
//! tracing::warn!(code = error.code(), entity = host, "L1 endpoint does not answer: {error}");
//! tracing::info!(entity = host, recovered = true, "L1 endpoint answers again");
//! ```

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::{Context, Filter, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

use crate::config::{LogConfig, LogFormat};
use crate::redact;
/// A repeated fault logs once in this time. At a poll of 15 s an hour's fault makes 1 + 12 lines.
pub const WINDOW: Duration = Duration::from_secs(5 * 60);

/// Most faults remembered at a time. Codes and entities are few; the bound is against a mistake.
const MAX_OPEN: usize = 1_024;

/// Log set-up that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error("log filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// A subscriber is set already.
    #[error("log output is set up already: {0}")]
    Twice(#[from] TryInitError),
}

/// Logs to stderr from now on, for the whole process.
///
/// # Errors
///
/// A filter that does not parse, or a second call.
pub fn init(config: &LogConfig) -> Result<(), TelemetryError> {
    let filter: Targets = config.filter.parse()?;
    let ansi = config.format == LogFormat::Text && std::io::stderr().is_terminal();
    tracing_subscriber::registry().with(layer(config.format, ansi, filter, std::io::stderr)).try_init()?;
    Ok(())
}

/// The layer that [`init`] installs, over any writer.
pub fn layer<S, W>(format: LogFormat, ansi: bool, filter: Targets, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    use tracing_subscriber::filter::FilterExt as _;
    use tracing_subscriber::fmt::layer;
    let lines = tracing_subscriber::fmt::format();
    let filter = filter.and(Deduplicate::new());
    match format {
        LogFormat::Text => layer()
            .with_ansi(ansi)
            .with_writer(writer)
            .event_format(Finish { inner: lines.with_ansi(ansi), json: false })
            .with_filter(filter)
            .boxed(),
        LogFormat::Json => layer()
            .json()
            .with_writer(writer)
            .event_format(Finish { inner: lines.json().flatten_event(true), json: true })
            .with_filter(filter)
            .boxed(),
    }
}

/// What identifies a fault.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FaultKey {
    /// The room that reports it.
    pub target: String,
    /// Its reason code.
    pub code: String,
    /// The endpoint, batch or block concerned; may be empty.
    pub entity: String,
}

/// What to do with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Log it as it is.
    Log,
    /// Log it with the number of occurrences since the last line, itself included.
    Repeated(u64),
    /// Log the end of a fault.
    Recovered {
        /// From the first occurrence on.
        lasted: Duration,
        /// Occurrences in that time.
        occurrences: u64,
    },
    /// Do not log.
    Drop,
}

/// An open fault.
#[derive(Clone, Debug)]
struct Fault {
    first: Duration,
    logged: Duration,
    seen: Duration,
    silent: u64,
    occurrences: u64,
    state: String,
}

/// Which faults are open, and when each was logged. Time is an argument, counted from any fixed moment.
#[derive(Debug, Default)]
pub struct Faults {
    open: HashMap<FaultKey, Fault>,
}

impl Faults {
    /// A fault occurs. `state` is anything whose change is news: its level, a step of its handling.
    pub fn occurs(&mut self, now: Duration, key: FaultKey, state: &str) -> Decision {
        if let Some(fault) = self.open.get_mut(&key) {
            fault.seen = now;
            fault.occurrences = fault.occurrences.saturating_add(1);
            let changed = fault.state != state;
            if !changed && now.saturating_sub(fault.logged) < WINDOW {
                fault.silent = fault.silent.saturating_add(1);
                return Decision::Drop;
            }
            state.clone_into(&mut fault.state);
            fault.logged = now;
            let silent = std::mem::take(&mut fault.silent);
            return if silent == 0 { Decision::Log } else { Decision::Repeated(silent.saturating_add(1)) };
        }
        self.make_room();
        let fault = Fault { first: now, logged: now, seen: now, silent: 0, occurrences: 1, state: state.to_owned() };
        self.open.insert(key, fault);
        Decision::Log
    }

    /// The faults of `target` and `entity` are over; of one `code` only, if it is given.
    pub fn recovers(&mut self, now: Duration, target: &str, code: Option<&str>, entity: &str) -> Decision {
        let mut over: Option<(Duration, u64)> = None;
        self.open.retain(|key, fault| {
            let meant = key.target == target && key.entity == entity && code.is_none_or(|code| key.code == code);
            if meant {
                let (first, occurrences) = over.unwrap_or((fault.first, 0));
                over = Some((first.min(fault.first), occurrences.saturating_add(fault.occurrences)));
            }
            !meant
        });
        match over {
            Some((first, occurrences)) => Decision::Recovered { lasted: now.saturating_sub(first), occurrences },
            None => Decision::Drop,
        }
    }

    /// Keeps the bound by forgetting the fault that was last seen longest ago.
    fn make_room(&mut self) {
        if self.open.len() < MAX_OPEN {
            return;
        }
        let oldest = self.open.iter().min_by_key(|(_, fault)| fault.seen).map(|(key, _)| key.clone());
        if let Some(key) = oldest {
            self.open.remove(&key);
        }
    }
}

/// The fields of an event that de-duplication reads.
#[derive(Default)]
struct FaultFields {
    code: Option<String>,
    entity: String,
    state: String,
    recovered: bool,
}

impl FaultFields {
    fn put(&mut self, name: &str, value: String) {
        match name {
            "code" => self.code = Some(value),
            "entity" => self.entity = value,
            "state" => self.state = value,
            _ => {}
        }
    }
}

impl Visit for FaultFields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if matches!(field.name(), "code" | "entity" | "state") {
            self.put(field.name(), value.to_owned());
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        if field.name() == "recovered" {
            self.recovered = value;
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if matches!(field.name(), "code" | "entity" | "state") {
            self.put(field.name(), format!("{value:?}"));
        }
    }
}

thread_local! {
    /// What the filter decided on the event that this thread is about to format.
    static DECIDED: RefCell<Decision> = const { RefCell::new(Decision::Log) };
}

struct Deduplicate {
    since: Instant,
    faults: Mutex<Faults>,
}

impl Deduplicate {
    fn new() -> Self {
        Self { since: Instant::now(), faults: Mutex::default() }
    }

    fn decide(&self, event: &Event<'_>) -> Decision {
        let metadata = event.metadata();
        // Most events carry none of the fields: nothing is visited, nothing locked.
        if metadata.fields().field("code").is_none() && metadata.fields().field("recovered").is_none() {
            return Decision::Log;
        }
        let mut fields = FaultFields::default();
        event.record(&mut fields);
        let now = self.since.elapsed();
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        if fields.recovered {
            return faults.recovers(now, metadata.target(), fields.code.as_deref(), &fields.entity);
        }
        let Some(code) = fields.code else { return Decision::Log };
        let state = format!("{}{}", level_name(metadata.level()), fields.state);
        faults.occurs(now, FaultKey { target: metadata.target().to_owned(), code, entity: fields.entity }, &state)
    }
}

const fn level_name(level: &Level) -> &'static str {
    match *level {
        Level::ERROR => "error ",
        Level::WARN => "warn ",
        Level::INFO => "info ",
        Level::DEBUG => "debug ",
        Level::TRACE => "trace ",
    }
}

impl<S> Filter<S> for Deduplicate {
    fn enabled(&self, _metadata: &Metadata<'_>, _context: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _context: &Context<'_, S>) -> bool {
        let decision = self.decide(event);
        DECIDED.set(decision);
        decision != Decision::Drop
    }
}

/// Adds the counts of de-duplication to a formatted line, and cuts credentials out of all of it.
struct Finish<F> {
    inner: F,
    json: bool,
}

impl<S, N, F> FormatEvent<S, N> for Finish<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::new();
        self.inner.format_event(context, Writer::new(&mut line), event)?;
        let decided = DECIDED.replace(Decision::Log);
        out.write_str(&redact::cut_urls(&with_counts(&line, decided, self.json)))
    }
}

fn with_counts(line: &str, decided: Decision, json: bool) -> String {
    let fields: Vec<(&str, String)> = match decided {
        Decision::Log | Decision::Drop => Vec::new(),
        Decision::Repeated(n) => vec![("repeated", n.to_string())],
        Decision::Recovered { lasted, occurrences } => {
            vec![("lasted_s", lasted.as_secs().to_string()), ("repeated", occurrences.to_string())]
        }
    };
    if fields.is_empty() {
        return line.to_owned();
    }
    let body = line.trim_end_matches('\n');
    let mut text = String::with_capacity(line.len() + 32);
    if json {
        text.push_str(body.strip_suffix('}').unwrap_or(body));
        for (name, value) in fields {
            let _ = write!(text, ",\"{name}\":{value}");
        }
        text.push_str("}\n");
    } else {
        text.push_str(body);
        for (name, value) in fields {
            let _ = write!(text, " {name}={value}");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn key(code: &str, entity: &str) -> FaultKey {
        FaultKey { target: "flow".into(), code: code.into(), entity: entity.into() }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn j7_a_repeated_fault_logs_first_then_once_a_window_with_its_count() {
        use Decision::{Drop, Log, Repeated};
        let table = [
            (0, "timeout", "a", "warn", Log),
            (15, "timeout", "a", "warn", Drop),
            // Another entity or another code is another fault.
            (15, "timeout", "b", "warn", Log),
            (15, "refused", "a", "warn", Log),
            (299, "timeout", "a", "warn", Drop),
            (300, "timeout", "a", "warn", Repeated(3)),
            (301, "timeout", "a", "warn", Drop),
            // A change is news at once, and so is the change back.
            (302, "timeout", "a", "error", Repeated(2)),
            (303, "timeout", "a", "warn", Log),
            (900, "timeout", "a", "warn", Log),
        ];
        let mut faults = Faults::default();
        for (seconds, code, entity, state, expected) in table {
            let decision = faults.occurs(at(seconds), key(code, entity), state);
            assert_eq!(decision, expected, "{code} of {entity} at {seconds}");
        }
    }

    #[test]
    fn j7_an_hour_of_one_fault_makes_at_most_15_lines() {
        let mut faults = Faults::default();
        let lines =
            (0..=240).filter(|poll| faults.occurs(at(poll * 15), key("timeout", "a"), "warn") != Decision::Drop);
        assert_eq!(lines.count(), 13);
    }

    #[test]
    fn j7_recovery_is_logged_once_with_its_duration() {
        let mut faults = Faults::default();
        assert_eq!(faults.recovers(at(1), "flow", None, "a"), Decision::Drop, "nothing was open");
        faults.occurs(at(10), key("timeout", "a"), "warn");
        faults.occurs(at(20), key("timeout", "a"), "warn");
        faults.occurs(at(30), key("refused", "a"), "warn");
        faults.occurs(at(30), key("timeout", "b"), "warn");
        let over = Decision::Recovered { lasted: at(90), occurrences: 3 };
        assert_eq!(faults.recovers(at(100), "flow", None, "a"), over);
        assert_eq!(faults.recovers(at(101), "flow", None, "a"), Decision::Drop);
        assert_eq!(faults.recovers(at(101), "flow", Some("refused"), "b"), Decision::Drop, "another code");
        let over = Decision::Recovered { lasted: at(71), occurrences: 1 };
        assert_eq!(faults.recovers(at(101), "flow", Some("timeout"), "b"), over);
        assert_eq!(faults.occurs(at(102), key("timeout", "a"), "warn"), Decision::Log, "a new fault logs at once");
    }

    #[test]
    fn p7_open_faults_are_bounded() {
        let mut faults = Faults::default();
        for n in 0..5_000_u64 {
            faults.occurs(at(n), key("timeout", &n.to_string()), "warn");
        }
        assert_eq!(faults.open.len(), MAX_OPEN);
        assert_eq!(faults.occurs(at(5_000), key("timeout", "4999"), "warn"), Decision::Drop, "the newest stay");
    }

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// The lines that `events` logs.
    fn logged(format: LogFormat, filter: &str, events: impl FnOnce()) -> Vec<String> {
        let captured = Captured::default();
        let writer = captured.clone();
        let layer = layer(format, false, filter.parse().unwrap(), move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), events);
        let bytes = captured.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    fn a_fault() {
        let fault = |state: &str| tracing::warn!(code = "timeout", entity = %"node", state, "no answer");
        for _ in 0..5 {
            fault("waiting");
        }
        fault("halted");
        tracing::info!(entity = "node", recovered = true, "answers again");
        tracing::info!(entity = "node", recovered = true, "answers again");
        tracing::info!("unrelated");
        tracing::info!("unrelated");
    }

    #[test]
    fn j7_lines_carry_what_was_left_out() {
        let lines = logged(LogFormat::Text, "info", a_fault);
        assert_eq!(lines.len(), 5, "{lines:#?}");
        assert!(!lines[0].contains("repeated"));
        assert!(lines[1].contains("halted") && lines[1].ends_with(" repeated=5"), "{}", lines[1]);
        assert!(lines[2].ends_with(" lasted_s=0 repeated=6"), "{}", lines[2]);
        let lines = logged(LogFormat::Json, "info", a_fault);
        let parsed: Vec<serde_json::Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(parsed[1]["repeated"], 5);
        assert_eq!(parsed[2]["lasted_s"], 0);
        assert_eq!(parsed[4]["message"], "unrelated");
    }

    #[test]
    fn the_filter_goes_by_target() {
        let events = || {
            tracing::debug!(target: "morph_deriver::flow", "wanted");
            tracing::debug!(target: "hyper", "not wanted");
        };
        assert_eq!(logged(LogFormat::Text, "info,morph_deriver::flow=debug", events).len(), 1);
    }

    /// P10: a canary in every place in which a careless line could carry a credential.
    #[test]
    fn k4_no_credential_reaches_a_line() {
        let url = "https://user:canary@l1.example:8443/v3/canary?key=canary#canary";
        let secret: crate::redact::SecretUrl = url.parse().unwrap();
        for format in [LogFormat::Text, LogFormat::Json] {
            let lines = logged(format, "trace", || {
                tracing::error!(%secret, ?secret, "configured");
                tracing::error!("error sending request for url ({url})");
                tracing::error!(error = url, "as a field: {url:?} and again {url}");
                tracing::error!("Authorization: Bearer canary.canary.canary");
                let error = anyhow::anyhow!("{url}").context("while asking");
                tracing::error!(error = format!("{error:#}"), debug = ?error, "nested");
            });
            let text = lines.join("\n");
            assert!(!text.contains("canary"), "{text}");
            assert!(text.contains("https://l1.example:8443"), "the host stays: {text}");
            if format == LogFormat::Json {
                lines.iter().for_each(|line| drop(serde_json::from_str::<serde_json::Value>(line).unwrap()));
            }
        }
    }
}
