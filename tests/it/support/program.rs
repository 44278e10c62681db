//! The real binary as a child process, with a configuration for a devnet: what the process tests hold.
//!
//! The devnet runs on the runtime of the fake servers, so tests here are plain threads that wait.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use morph_deriver::adapters::store::SqliteStore;
use morph_deriver::devnet::client::Client;
use morph_deriver::devnet::world::World;
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::ports::{Progress as _, Rows as _, Stored};
use morph_deriver::types::{BatchRecord, JournalEntry};

use super::rig::world_options;
use super::{servers, standing};

/// Longest wait for anything that a program must bring about. The test machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);

/// A devnet over `world`, on the runtime of the fake servers.
pub fn serve(world: World) -> Devnet {
    servers().block_on(Devnet::serve(world, DevnetOptions::default())).unwrap()
}

/// A devnet whose world `f` has prepared.
pub fn devnet(f: impl FnOnce(&mut World)) -> Devnet {
    devnet_beside(Client::Geth, f)
}

/// The same with a `client` as its local node.
pub fn devnet_beside(client: Client, f: impl FnOnce(&mut World)) -> Devnet {
    let mut world = World::new(&world_options(client)).unwrap();
    f(&mut world);
    serve(world)
}

/// Waits until `done`.
///
/// # Panics
/// When it does not come; with what `tell` says.
pub fn wait_until(tell: impl Fn() -> String, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "waited in vain: {}", tell());
        std::thread::sleep(LOOK);
    }
}

/// A folder with a configuration and a database.
pub struct Site {
    folder: tempfile::TempDir,
    settings: toml::Table,
    runs: std::cell::Cell<u32>,
}

impl Site {
    /// A configuration for `devnet`: quick polls, a short observation window, everything on L1 counts at once.
    pub fn new(devnet: &Devnet) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (l1_chain, l2_chain) = devnet.with(|w| (w.l1.config.chain_id, w.sequencer.node.chain_id()));
        let text = format!(
            "poll_interval = \"50ms\"\nobservation_window = \"200ms\"\n\
             [l1]\nrpc = [\"{l1}\"]\nbeacon = [\"{beacon}\"]\nchain_id = {l1_chain}\nrollup = \"{rollup:?}\"\n\
             queue = \"{queue:?}\"\nstart_block = 0\nconfirmations = 0\nmax_age = \"0s\"\n\
             [l2]\neth = \"{l2}\"\nengine = \"{engine}\"\njwt_secret = \"{secret}\"\nchain_id = {l2_chain}\n\
             genesis_hash = \"{genesis:?}\"\n\
             [reactors]\nkind = \"json-rpc\"\nurl = \"{reactors}\"\npause_method = \"reactors_pause\"\n\
             resume_method = \"reactors_resume\"\n\
             [server]\nlisten = \"none\"\n\
             [store]\npath = \"{store}\"\n",
            l1 = devnet.l1_url(),
            beacon = devnet.beacon_url(),
            rollup = devnet.rollup(),
            queue = devnet.queue(),
            l2 = devnet.l2_url(),
            engine = devnet.engine_url(),
            secret = devnet.jwt_secret_path().display(),
            genesis = devnet.l2_genesis(),
            reactors = devnet.reactors_url(),
            store = folder.path().join("store.sqlite").display(),
        );
        Self { folder, settings: text.parse().unwrap(), runs: std::cell::Cell::new(0) }
    }

    /// Sets `key` ("l1.rpc") to a value.
    pub fn set(&mut self, key: &str, value: impl Into<toml::Value>) -> &mut Self {
        let (section, name) = key.split_once('.').map_or((None, key), |(section, name)| (Some(section), name));
        let table = match section {
            None => &mut self.settings,
            Some(section) => self.settings.get_mut(section).unwrap().as_table_mut().unwrap(),
        };
        table.insert(name.to_owned(), value.into());
        self
    }

    /// Takes `key` ("l2.eth") away.
    pub fn unset(&mut self, key: &str) -> &mut Self {
        let (section, name) = key.split_once('.').expect("a key in a section");
        self.settings.get_mut(section).and_then(toml::Value::as_table_mut).expect("the section").remove(name);
        self
    }

    /// Takes `section` away and puts `table` in its place.
    pub fn replace(&mut self, section: &str, table: &str) -> &mut Self {
        let table: toml::Table = table.parse().unwrap();
        self.settings.insert(section.to_owned(), table.into());
        self
    }

    /// The site's folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The database.
    pub fn database(&self) -> PathBuf {
        PathBuf::from(self.settings["store"]["path"].as_str().unwrap())
    }

    fn configuration(&self) -> PathBuf {
        let path = self.folder.path().join("config.toml");
        std::fs::write(&path, self.settings.to_string()).unwrap();
        path
    }

    /// The program with `args` and this site's configuration, not started yet.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = program();
        command.args(args).arg("--config").arg(self.configuration());
        command
    }

    /// Starts `run`.
    pub fn run(&self) -> Program {
        self.start(self.command(&["run"]))
    }

    /// Starts `command` with its output in files.
    pub fn start(&self, mut command: Command) -> Program {
        let n = self.runs.replace(self.runs.get() + 1);
        let out = self.folder.path().join(format!("out-{n}"));
        let log = self.folder.path().join(format!("log-{n}"));
        command.stdin(Stdio::null());
        command.stdout(File::create(&out).unwrap()).stderr(File::create(&log).unwrap());
        Program { child: command.spawn().unwrap(), out, log }
    }

    /// Starts `command` with its log through a pipe, so that it can be written when the program can write no file.
    pub fn start_piped(&self, mut command: Command) -> Program {
        let log = self.folder.path().join("log-piped");
        let mut file = File::create(&log).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut pipe = child.stderr.take().unwrap();
        std::thread::spawn(move || std::io::copy(&mut pipe, &mut file));
        Program { child, out: log.clone(), log }
    }

    fn with_store<T>(&self, f: impl AsyncFnOnce(&SqliteStore) -> T) -> T {
        servers().block_on(async {
            let store = SqliteStore::open_read_only(&self.database()).await.unwrap();
            let got = f(&store).await;
            store.close().await;
            got
        })
    }

    /// What the database holds.
    pub fn stored(&self) -> Stored {
        self.with_store(async |store| store.load().await.unwrap())
    }

    /// The standing batches.
    pub fn batches(&self) -> Vec<BatchRecord> {
        self.with_store(async |store| standing(store).await)
    }

    /// The journal, oldest first.
    pub fn journal(&self) -> Vec<JournalEntry> {
        let mut entries = self.with_store(async |store| store.journal_tail(10_000).await.unwrap());
        entries.reverse();
        entries
    }
}

/// The binary, away from the environment's own settings and the project's sample.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_morph-deriver"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MORPH_") {
            command.env_remove(name);
        }
    }
    command.current_dir(std::env::temp_dir());
    command
}

/// Which signal.
#[derive(Clone, Copy, Debug)]
pub enum Signal {
    Term,
    Interrupt,
    Kill,
}

/// A started program. Dropping it kills it.
pub struct Program {
    child: Child,
    out: PathBuf,
    log: PathBuf,
}

impl Drop for Program {
    fn drop(&mut self) {
        // Ended already in most tests; a failed one must not leave it behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Program {
    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let name = match signal {
            Signal::Term => "-TERM",
            Signal::Interrupt => "-INT",
            Signal::Kill => "-KILL",
        };
        assert!(Command::new("kill").args([name, &self.id().to_string()]).status().unwrap().success());
    }

    /// Standard error so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Standard output so far.
    pub fn out(&self) -> String {
        std::fs::read_to_string(&self.out).unwrap()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end.
    pub fn end(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "does not end:\n{}", self.log());
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until `done`, while the program lives.
    pub fn until(&mut self, mut done: impl FnMut() -> bool) {
        let began = Instant::now();
        while !done() {
            assert!(!self.has_ended(), "ended early:\n{}{}", self.out(), self.log());
            assert!(began.elapsed() < PATIENCE, "waited in vain:\n{}", self.log());
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until its log says `words`.
    pub fn until_log(&mut self, words: &str) {
        let log = self.log.clone();
        self.until(|| std::fs::read_to_string(&log).unwrap().contains(words));
    }

    /// Sends SIGTERM and waits for the end, which must be in good order; gives how long that took.
    pub fn stop(&mut self) -> Duration {
        let began = Instant::now();
        self.signal(Signal::Term);
        let status = self.end();
        assert_eq!(status.code(), Some(0), "{}", self.log());
        began.elapsed()
    }
}
