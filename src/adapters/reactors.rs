//! Pausing and resuming the consensus node's reactors: by JSON-RPC, by a command, or not at all.
//!
//! Decided here: how the operator's way of pausing is carried out, and that each attempt ends within its time limit.
//! Not decided here: when to pause, and what a failed pause or resume leads to (`flow/quiesce.rs` undoes the one and
//! repeats the other). Both are taken to be safe to repeat.

use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::rpc::{Call, Pool};
use super::wire::hex_quantity;
use crate::error::{PortError, PortErrorKind, Target};
use crate::ports::{PortResult, Reactors};
use crate::redact::scrub;
use crate::types::{HeightParam, L2Number};

/// How much of a command's output is kept for the error text, in bytes.
const OUTPUT_KEPT: usize = 2048;

/// How long a command's output is waited for after its end (a grandchild may hold the pipe).
const OUTPUT_GRACE: Duration = Duration::from_millis(200);

/// The placeholder of the height in a command's arguments.
const HEIGHT: &str = "{height}";

/// For a node without a consensus node: pausing and resuming succeed and do nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoReactors;

#[async_trait]
impl Reactors for NoReactors {
    async fn pause(&self, _height: L2Number) -> PortResult<()> {
        Ok(())
    }

    async fn resume(&self, _height: L2Number) -> PortResult<()> {
        Ok(())
    }

    fn can_resume(&self) -> bool {
        false
    }
}

/// The method's parameters.
fn params(style: HeightParam, height: L2Number) -> Value {
    match style {
        HeightParam::None => json!([]),
        HeightParam::Number => json!([height.get()]),
        HeightParam::Hex => json!([hex_quantity(height.get())]),
        HeightParam::String => json!([height.get().to_string()]),
    }
}

/// The error texts of a service whose resume fails if nothing is paused.
#[derive(Clone, Debug, Default)]
struct AlreadyResumed(Vec<String>);

impl AlreadyResumed {
    fn is_said_in(&self, text: &str) -> bool {
        let text = text.to_lowercase();
        self.0.iter().any(|words| text.contains(&words.to_lowercase()))
    }
}

/// Pauses by calling methods of a JSON-RPC server. Any result is success; an error is a failure.
#[derive(Clone, Debug)]
pub struct JsonRpcReactors {
    pool: Pool,
    pause: String,
    resume: String,
    height: HeightParam,
    already: AlreadyResumed,
}

impl JsonRpcReactors {
    /// `pause` and `resume` are method names on the first endpoint of `pool` (target [`Target::Reactors`]).
    pub fn new(pool: Pool, pause: impl Into<String>, resume: impl Into<String>, height: HeightParam) -> Self {
        let (pause, resume) = (pause.into(), resume.into());
        Self { pool, pause, resume, height, already: AlreadyResumed::default() }
    }

    /// Takes a resume for done whose JSON-RPC error has one of `words` in its text (in any case of letters).
    #[must_use]
    pub fn already_resumed(self, words: Vec<String>) -> Self {
        Self { already: AlreadyResumed(words), ..self }
    }

    /// Whether `error` is the server's own answer to a resume, and says that nothing was paused. The text before the
    /// method's name is ours, and so is that of a call which was not answered.
    fn says_already_resumed(&self, error: &PortError) -> bool {
        let answered = !error.is_transient() && error.kind != PortErrorKind::Malformed;
        let said = error.detail.split_once(&format!("{}: ", self.resume)).map_or("", |(_, said)| said);
        answered && self.already.is_said_in(said)
    }

    async fn call(&self, method: &str, height: L2Number) -> PortResult<()> {
        let call = Call::new(method.to_owned(), params(self.height, height));
        self.pool.call_on(0, call).await.map(drop)
    }
}

#[async_trait]
impl Reactors for JsonRpcReactors {
    async fn pause(&self, height: L2Number) -> PortResult<()> {
        self.call(&self.pause, height).await
    }

    async fn resume(&self, height: L2Number) -> PortResult<()> {
        match self.call(&self.resume, height).await {
            Err(error) if self.says_already_resumed(&error) => Ok(()),
            outcome => outcome,
        }
    }

    fn lateness(&self) -> Duration {
        self.pool.call_timeout()
    }
}

/// The environment of every command. Not all of ours: it may hold URLs with their keys (P10).
const ENVIRONMENT: [&str; 3] = ["PATH", "HOME", "LANG"];

/// Pauses by running commands, without a shell: `systemctl`, `docker`, `kubectl`.
#[derive(Clone, Debug)]
pub struct CommandReactors {
    pause: Vec<String>,
    resume: Vec<String>,
    limit: Duration,
    pass: Vec<String>,
    already: AlreadyResumed,
}

impl CommandReactors {
    /// Program and arguments of both commands; `{height}` in an argument becomes the decimal height. A command that
    /// runs longer than `limit` is killed. `Malformed` when one is empty.
    pub fn new(pause: Vec<String>, resume: Vec<String>, limit: Duration) -> PortResult<Self> {
        let empty = |argv: &[String]| argv.first().is_none_or(|program| program.is_empty());
        if empty(&pause) || empty(&resume) {
            return Err(PortError::malformed(Target::Reactors, "a pause or resume command is empty"));
        }
        Ok(Self { pause, resume, limit, pass: Vec::new(), already: AlreadyResumed::default() })
    }

    /// Passes on the environment variables `names` besides PATH, HOME and LANG.
    #[must_use]
    pub fn passing(self, names: Vec<String>) -> Self {
        Self { pass: names, ..self }
    }

    /// Takes a resume for done whose command fails with one of `words` in its output (in any case of letters).
    #[must_use]
    pub fn already_resumed(self, words: Vec<String>) -> Self {
        Self { already: AlreadyResumed(words), ..self }
    }

    fn environment(&self) -> impl Iterator<Item = (&str, std::ffi::OsString)> {
        let names = ENVIRONMENT.into_iter().chain(self.pass.iter().map(String::as_str));
        names.filter_map(|name| Some((name, std::env::var_os(name)?)))
    }

    /// Runs a command. `fine` are texts with which it may fail.
    async fn run(&self, what: &str, argv: &[String], height: L2Number, fine: &AlreadyResumed) -> PortResult<()> {
        let height = height.get().to_string();
        let mut words = argv.iter().map(|word| word.replace(HEIGHT, &height));
        let program = words.next().unwrap_or_default();
        let fail = |kind, text: String| PortError::new(Target::Reactors, kind, format!("{what} command: {text}"));
        let mut child = Command::new(&program)
            .args(words)
            .env_clear()
            .envs(self.environment())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| fail(PortErrorKind::Unreachable, format!("cannot be started: {}", error.kind())))?;
        let output = tokio::spawn(keep_start(child.stdout.take()));
        let errors = tokio::spawn(keep_start(child.stderr.take()));
        let status = match tokio::time::timeout(self.limit, child.wait()).await {
            Ok(Ok(status)) => status,
            Ok(Err(error)) => return Err(fail(PortErrorKind::Unreachable, error.kind().to_string())),
            Err(_) => {
                let _ = child.start_kill();
                let _ = tokio::time::timeout(OUTPUT_GRACE, child.wait()).await;
                output.abort();
                errors.abort();
                let text = format!("killed after {} s", self.limit.as_secs_f64());
                return Err(fail(PortErrorKind::Timeout, text));
            }
        };
        let (output, errors) = (collect(output).await, collect(errors).await);
        if status.success() {
            return Ok(());
        }
        let (output, errors) = (String::from_utf8_lossy(&output), String::from_utf8_lossy(&errors));
        if status.code().is_some() && (fine.is_said_in(&errors) || fine.is_said_in(&output)) {
            return Ok(());
        }
        let said = scrub(if errors.is_empty() { &output } else { &errors }, &[]);
        let code = status.code().map_or(-1, i64::from);
        Err(fail(PortErrorKind::Refused { code, message: said.clone() }, format!("{status}: {said}")))
    }
}

#[async_trait]
impl Reactors for CommandReactors {
    async fn pause(&self, height: L2Number) -> PortResult<()> {
        self.run("pause", &self.pause, height, &AlreadyResumed::default()).await
    }

    async fn resume(&self, height: L2Number) -> PortResult<()> {
        self.run("resume", &self.resume, height, &self.already).await
    }

    fn lateness(&self) -> Duration {
        self.limit
    }

    /// None does: a command like `docker stop` fails also when only its connection to the daemon broke.
    fn is_refusal(&self, _error: &PortError) -> bool {
        false
    }
}

/// Reads to the end, so that the command is never blocked by a full pipe, and keeps the start.
async fn keep_start(pipe: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut pipe) = pipe else { return kept };
    let mut chunk = [0; 1024];
    loop {
        match pipe.read(&mut chunk).await {
            Ok(0) | Err(_) => return kept,
            Ok(n) => {
                let room = OUTPUT_KEPT.saturating_sub(kept.len());
                kept.extend_from_slice(chunk.get(..n.min(room)).unwrap_or_default());
            }
        }
    }
}

async fn collect(mut task: tokio::task::JoinHandle<Vec<u8>>) -> Vec<u8> {
    match tokio::time::timeout(OUTPUT_GRACE, &mut task).await {
        Ok(Ok(kept)) => kept,
        Ok(Err(_)) => Vec::new(),
        Err(_) => {
            task.abort();
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::testing::{pool, rpc};

    fn argv(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn command(pause: &[&str], resume: &[&str]) -> CommandReactors {
        CommandReactors::new(argv(pause), argv(resume), Duration::from_millis(500)).unwrap()
    }

    #[tokio::test]
    async fn g1_json_rpc_passes_the_height_as_configured_and_reports_a_failed_resume() {
        let server = rpc(|method, _| match method {
            "stop_reactors" => Ok(Value::Null),
            _ => Err((-32000, "already running")),
        })
        .await;
        let table = [
            (HeightParam::None, json!([])),
            (HeightParam::Number, json!([12])),
            (HeightParam::Hex, json!(["0xc"])),
            (HeightParam::String, json!(["12"])),
        ];
        for (how, expected) in table {
            let pool = pool(Target::Reactors, &[&server.url]);
            let reactors = JsonRpcReactors::new(pool, "stop_reactors", "start_reactors", how);
            reactors.pause(L2Number::new(12)).await.unwrap();
            assert_eq!(server.calls().last().unwrap()["params"], expected);
            let error = reactors.resume(L2Number::new(12)).await.unwrap_err();
            assert!(matches!(error.kind, PortErrorKind::Refused { code: -32000, .. }));
        }
        assert_eq!(server.calls().len(), 8, "nothing is repeated here");
    }

    #[tokio::test]
    async fn g1_a_command_gets_the_height_without_a_shell() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("at-{height}; true");
        command(&["touch", file.to_str().unwrap()], &["true"]).pause(L2Number::new(77)).await.unwrap();
        assert!(folder.path().join("at-77; true").exists());
    }

    #[tokio::test]
    async fn g2_a_failed_command_says_which_one_and_why() {
        let failing = ["sh", "-c", "echo broken at http://host/secret >&2; exit 3"];
        let error = command(&failing, &["true"]).pause(L2Number::new(1)).await.unwrap_err();
        assert!(matches!(error.kind, PortErrorKind::Refused { code: 3, .. }));
        assert!(error.detail.contains("pause command") && error.detail.contains("broken"), "{error}");
        assert!(!error.detail.contains("secret"));
        let error = command(&["true"], &["/no/such/program"]).resume(L2Number::new(1)).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Unreachable);
        assert!(CommandReactors::new(vec![], argv(&["true"]), Duration::from_secs(1)).is_err());
    }

    #[tokio::test]
    async fn g3_a_command_that_hangs_is_killed_at_its_limit() {
        let started = std::time::Instant::now();
        let error = command(&["sleep", "60"], &["true"]).pause(L2Number::new(1)).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Timeout);
        assert!(started.elapsed() < Duration::from_secs(3));
        // A grandchild that keeps the pipe open does not hold us either, nor does a flood of output.
        let reactors = command(&["sh", "-c", "sleep 60 & head -c 3000000 /dev/zero"], &["true"]);
        reactors.pause(L2Number::new(1)).await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[tokio::test]
    async fn m26_p10_a_command_gets_a_clean_environment() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("env");
        let argv = ["sh", "-c", &format!("env > {}", file.display())];
        // Cargo sets this one for every test. None of our own may be in a test's environment.
        let reactors = command(&argv, &argv);
        let names = || {
            let text = std::fs::read_to_string(&file).unwrap();
            text.lines().filter_map(|line| Some(line.split_once('=')?.0.to_owned())).collect::<Vec<_>>()
        };
        let of_the_shell = ["PWD", "SHLVL", "_", "OLDPWD"];
        reactors.pause(L2Number::new(1)).await.unwrap();
        let strange = |name: &String| !ENVIRONMENT.contains(&name.as_str()) && !of_the_shell.contains(&name.as_str());
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some() && names().contains(&"PATH".to_owned()));
        assert_eq!(names().into_iter().filter(strange).collect::<Vec<_>>(), Vec::<String>::new());
        let reactors = reactors.passing(vec!["CARGO_MANIFEST_DIR".to_owned(), "NOT_SET_ANYWHERE".to_owned()]);
        reactors.resume(L2Number::new(1)).await.unwrap();
        assert_eq!(names().into_iter().filter(strange).collect::<Vec<_>>(), ["CARGO_MANIFEST_DIR"]);
    }

    #[tokio::test]
    async fn m28_a_resume_that_found_nothing_paused_counts_as_done_by_its_words() {
        let words = || vec!["Already Running".to_owned()];
        let server = rpc(|_, _| Err((-32000, "reactor: already running"))).await;
        let pool = pool(Target::Reactors, &[&server.url]);
        let plain = JsonRpcReactors::new(pool.clone(), "stop_already running", "start", HeightParam::None);
        assert!(plain.resume(L2Number::new(1)).await.is_err(), "not without being configured");
        let told = plain.already_resumed(words());
        told.resume(L2Number::new(1)).await.unwrap();
        assert!(told.pause(L2Number::new(1)).await.is_err(), "a pause is no resume");
        let named = JsonRpcReactors::new(pool, "stop", "start", HeightParam::None);
        let named = named.already_resumed(vec!["start".to_owned(), "127.0.0.1".to_owned()]);
        assert!(named.resume(L2Number::new(1)).await.is_err(), "our own words are not the server's");

        let says = |text: &str, code: u8| command(&["false"], &["sh", "-c", &format!("{text}; exit {code}")]);
        let (stderr, stdout) = ("echo already running >&2", "echo ALREADY RUNNING");
        for text in [stderr, stdout] {
            assert!(says(text, 1).resume(L2Number::new(1)).await.is_err());
            says(text, 1).already_resumed(words()).resume(L2Number::new(1)).await.unwrap();
        }
        assert!(says("echo broken", 1).already_resumed(words()).resume(L2Number::new(1)).await.is_err());
        let killed = says("echo already running; kill -9 $$", 0).already_resumed(words());
        assert!(killed.resume(L2Number::new(1)).await.is_err(), "it was killed: what it did is not known");
    }

    #[tokio::test]
    async fn m12_only_an_answer_of_the_service_itself_is_a_refusal() {
        let server = rpc(|_, _| Err((-32000, "busy"))).await;
        let reactors = JsonRpcReactors::new(pool(Target::Reactors, &[&server.url]), "p", "r", HeightParam::None);
        let error = reactors.pause(L2Number::new(1)).await.unwrap_err();
        assert!(reactors.is_refusal(&error), "{error}");
        let nowhere =
            JsonRpcReactors::new(pool(Target::Reactors, &["http://127.0.0.1:9"]), "p", "r", HeightParam::None);
        assert!(!nowhere.is_refusal(&nowhere.pause(L2Number::new(1)).await.unwrap_err()));
        // A command fails also when only its connection to the service broke.
        let failing = command(&["false"], &["true"]);
        assert!(!failing.is_refusal(&failing.pause(L2Number::new(1)).await.unwrap_err()));
        assert!(failing.can_resume() && reactors.can_resume() && !NoReactors.can_resume());
    }

    #[tokio::test]
    async fn no_reactors_do_nothing() {
        NoReactors.pause(L2Number::new(1)).await.unwrap();
        NoReactors.resume(L2Number::new(1)).await.unwrap();
    }
}
