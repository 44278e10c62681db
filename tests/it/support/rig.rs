//! A whole worker on real HTTP adapters, in front of a devnet or the recorded network: what the flow tests hold.

use std::sync::Arc;
use std::time::Duration;

use morph_deriver::adapters::beacon::{BeaconClient, BeaconConfig};
use morph_deriver::adapters::engine::{EngineClient, JwtSecret};
use morph_deriver::adapters::l1::L1Client;
use morph_deriver::adapters::l2::{L2Client, L2Config};
use morph_deriver::adapters::reactors::{JsonRpcReactors, NoReactors};
use morph_deriver::adapters::rpc::{Check, Pool, PoolConfig};
use morph_deriver::adapters::store::SqliteStore;
use morph_deriver::decide::stall::Reason;
use morph_deriver::devnet::client::Client;
use morph_deriver::devnet::faults::Server;
use morph_deriver::devnet::world::WorldOptions;
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::error::Target;
use morph_deriver::flow::worker::Worker;
use morph_deriver::flow::{Confirmations, FlowError, Ports, Settings};
use morph_deriver::flow::{PollEnd, PollReport};
use morph_deriver::types::{Case, HeightParam, L2Number};

use super::clients::{self, pool_config};
use super::recorded::RecordedNetwork;
use super::recorded_l2::RecordedL2;

/// The liveness window of tests, on the tests' own clock: no test waits for it.
pub const WINDOW: Duration = Duration::from_secs(60);
/// What the tests' clock goes forward between two polls.
pub const STEP: Duration = Duration::from_secs(15);

/// A worker with its ports, and a clock of its own.
pub struct Rig {
    pub ports: Ports,
    pub settings: Settings,
    pub worker: Worker,
    pub now: Duration,
}

/// Settings of tests: everything on L1 counts at once, the whole chain is one range.
pub fn settings() -> Settings {
    Settings {
        confirmations: Confirmations::Depth(0),
        observation_window: WINDOW,
        poll_interval: Duration::from_millis(50),
        head_still: Duration::from_millis(300),
        write_chunk: 10,
        ..Settings::default()
    }
}

/// Ports on `devnet` with a fresh database in memory. Reactors are the devnet's own, paused by JSON-RPC.
pub async fn devnet_ports(devnet: &Devnet) -> Ports {
    let urls = |url: String| [url];
    let l1 = Pool::new(Target::L1, &urls(devnet.l1_url()), pool_config(Check::None)).unwrap();
    let beacon = Pool::new(Target::Beacon, &urls(devnet.beacon_url()), pool_config(Check::None)).unwrap();
    let l2 = Pool::new(Target::L2, &urls(devnet.l2_url()), pool_config(Check::None)).unwrap();
    let reactors = Pool::new(Target::Reactors, &urls(devnet.reactors_url()), pool_config(Check::None)).unwrap();
    let secret = JwtSecret::new(devnet.jwt_secret());
    let engine = EngineClient::new(&devnet.engine_url(), secret, pool_config(Check::None)).unwrap();
    Ports {
        l1: Arc::new(L1Client::new(l1, devnet.rollup(), devnet.queue())),
        blobs: Arc::new(BeaconClient::new(beacon, BeaconConfig::default())),
        l2: Arc::new(L2Client::new(l2, L2Config::default())),
        engine: Some(Arc::new(engine)),
        reactors: Arc::new(JsonRpcReactors::new(reactors, "pause", "resume", HeightParam::Number)),
        progress: Arc::new(SqliteStore::in_memory().await.unwrap()),
    }
}

/// A worker over the devnet's two L1 endpoints, whose cool-downs outlast a test.
pub async fn rig_over_two(devnet: &Devnet, change: impl FnOnce(&mut Settings)) -> Rig {
    let mut ports = devnet_ports(devnet).await;
    let urls = [devnet.url(Server::L1(0)), devnet.url(Server::L1(1))];
    let cool = Duration::from_secs(600);
    let config = PoolConfig { cool_down: cool, cool_down_cap: cool, ..pool_config(Check::None) };
    let pool = Pool::new(Target::L1, &urls, config).unwrap();
    ports.l1 = Arc::new(L1Client::new(pool, devnet.rollup(), devnet.queue()));
    let mut settings = settings();
    settings.rollup = devnet.rollup();
    change(&mut settings);
    Rig::start(ports, settings).await
}

impl Rig {
    /// A worker on `devnet`, with [`settings`].
    pub async fn on(devnet: &Devnet) -> Self {
        Self::with(devnet, |_| {}).await
    }

    /// A worker on `devnet`, with [`settings`] changed by `change`.
    pub async fn with(devnet: &Devnet, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = settings();
        settings.rollup = devnet.rollup();
        change(&mut settings);
        Self::start(devnet_ports(devnet).await, settings).await
    }

    /// A worker on the recorded network and the recorded L2 node. No reactors.
    pub async fn recorded(network: &RecordedNetwork, l2: &RecordedL2, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = settings();
        settings.rollup = clients::address(&network.contracts().0);
        change(&mut settings);
        let ports = Ports {
            l1: Arc::new(clients::l1(network)),
            blobs: Arc::new(clients::beacon(network)),
            l2: Arc::new(clients::l2(l2)),
            engine: Some(Arc::new(clients::engine(l2))),
            reactors: Arc::new(NoReactors),
            progress: Arc::new(SqliteStore::in_memory().await.unwrap()),
        };
        Self::start(ports, settings).await
    }

    /// A worker on `ports`.
    pub async fn start(ports: Ports, settings: Settings) -> Self {
        let worker = Worker::start(ports.clone(), settings.clone()).await.unwrap();
        Self { ports, settings, worker, now: Duration::ZERO }
    }

    /// The same ports and database under a new worker, as after a restart.
    pub async fn restart(&mut self) {
        self.worker = Worker::start(self.ports.clone(), self.settings.clone()).await.unwrap();
        self.now = Duration::ZERO;
    }

    /// One poll, a step later.
    pub async fn poll(&mut self) -> Result<PollReport, FlowError> {
        self.now += STEP;
        self.worker.poll(self.now).await
    }

    /// Polls as long as there is more to read; gives all batches and the last end.
    pub async fn settle(&mut self) -> PollReport {
        let mut batches = Vec::new();
        for _ in 0..200 {
            let report = self.poll().await.expect("a poll failed");
            batches.extend(report.batches);
            if report.end != PollEnd::Behind {
                return PollReport { batches, end: report.end };
            }
        }
        panic!("still behind after 200 polls");
    }

    /// Polls until the head counts as stopped, then settles. Gives all batches of all polls.
    pub async fn settle_stopped(&mut self) -> PollReport {
        let polls = WINDOW.as_secs() / STEP.as_secs() + 1;
        let mut batches = Vec::new();
        for _ in 0..polls {
            batches.extend(self.settle().await.batches);
        }
        let last = self.settle().await;
        batches.extend(last.batches);
        PollReport { batches, end: last.end }
    }

    /// Height of our safe head.
    pub fn safe(&self) -> Option<u64> {
        self.worker.heads().safe().map(|s| s.number.get())
    }

    /// Height of our finalized head.
    pub fn finalized(&self) -> Option<u64> {
        self.worker.heads().finalized().map(|s| s.number.get())
    }

    /// The local head.
    pub async fn head(&self) -> L2Number {
        self.ports.l2.snapshot().await.unwrap().head.number
    }
}

/// Index and case of every batch, waits left out.
pub fn cases(report: &PollReport) -> Vec<(u64, Case)> {
    report.batches.iter().filter(|b| b.case != Case::Wait).map(|b| (b.index.get(), b.case)).collect()
}

/// The reason of a poll's stall.
pub fn reason(report: &PollReport) -> Option<Reason> {
    match &report.end {
        PollEnd::Stalled(stall) => Some(stall.reason()),
        PollEnd::Behind | PollEnd::CaughtUp | PollEnd::Reached => None,
    }
}

/// What a world is made from whose local node is a `client`.
pub fn world_options(client: Client) -> WorldOptions {
    WorldOptions { client, ..WorldOptions::default() }
}

/// How a devnet is started whose local node is a `client`.
pub fn options(client: Client) -> DevnetOptions {
    DevnetOptions { world: world_options(client), ..DevnetOptions::default() }
}

/// An empty devnet whose node refuses every write outside a pause (P5).
pub async fn guarded_devnet() -> Devnet {
    guarded(Client::Geth).await
}

/// The same beside a `client`.
pub async fn guarded(client: Client) -> Devnet {
    Devnet::start(DevnetOptions { refuse_unpaused_writes: true, ..options(client) }).await.unwrap()
}
