//! The `forkchoice` engine against a real execution client: EthereumJS, from npm, pinned by `package-lock.json`.
//!
//! Not part of `cargo test`, which needs no Node.js. `.ci/run` installs the client into a folder, which `ETHEREUMJS` names,
//! and runs `cargo test --test ethereumjs`; without the client the test fails and says so.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use morph_deriver::adapters::engine::{EngineClient, JwtSecret, load_jwt_secret};
use morph_deriver::adapters::forkchoice::ForkchoiceClient;
use morph_deriver::adapters::l1::L1Client;
use morph_deriver::adapters::l2::{L2Client, L2Config};
use morph_deriver::adapters::rpc::{Pool, PoolConfig};
use morph_deriver::adapters::store::SqliteStore;
use morph_deriver::decide::follow::{REORG_AFTER, Reply, SourceNetwork};
use morph_deriver::decide::stall::Reason;
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::error::Target;
use morph_deriver::flow::follow::Follower;
use morph_deriver::flow::{FollowPorts, FollowSettings, PollEnd};
use morph_deriver::ports::{HeadSource, L2Reader, PortResult};
use morph_deriver::types::{B256, L1Header, L2Number, L2Place, L2Ref, L2Snapshot, SyncStatus};
use serde_json::{Value, json};

const CHAIN_ID: u64 = 1337;

/// The client as a process, on a folder of its own.
struct Client {
    process: Child,
    engine: Pool,
    rpc_url: String,
    engine_url: String,
    folder: tempfile::TempDir,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn pool_config() -> PoolConfig {
    PoolConfig { retry_for: Duration::ZERO, ..PoolConfig::default() }
}

fn secret(path: &Path) -> JwtSecret {
    load_jwt_secret(path).unwrap()
}

impl Client {
    async fn start() -> Self {
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ethereumjs");
        let installed = std::env::var("ETHEREUMJS").expect("ETHEREUMJS names the folder of `npm ci`; see .ci/run");
        let program = Path::new(&installed).join("node_modules/.bin/ethereumjs");
        assert!(program.exists(), "no client in {installed}; see .ci/run");
        let folder = tempfile::tempdir().unwrap();
        let jwt = folder.path().join("jwt");
        std::fs::write(&jwt, format!("0x{}", "11".repeat(32))).unwrap();
        std::fs::set_permissions(&jwt, std::fs::Permissions::from_mode(0o600)).unwrap();
        let [rpc, engine, peers] = [free_port(), free_port(), free_port()];
        let process = Command::new(program)
            .arg(format!("--gethGenesis={}", here.join("genesis.json").display()))
            .arg(format!("--dataDir={}", folder.path().join("data").display()))
            .arg(format!("--jwtSecret={}", jwt.display()))
            .args(["--rpc", &format!("--rpcPort={rpc}"), "--rpcEngine", &format!("--rpcEnginePort={engine}")])
            .args([&format!("--port={peers}"), "--isSingleNode"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the client starts");
        let [rpc_url, engine_url] = [rpc, engine].map(|port| format!("http://localhost:{port}"));
        let urls = [engine_url.clone()];
        let pool = Pool::with_bearer(Target::Engine, &urls, pool_config(), Arc::new(secret(&jwt))).unwrap();
        let client = Self { process, engine: pool, rpc_url, engine_url, folder };
        for _ in 0..600 {
            if client.reader().snapshot().await.is_ok() && client.ask("eth_chainId", json!([])).await.is_ok() {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        panic!("the client does not answer");
    }

    /// A reader without the cool-downs of earlier tries.
    fn reader(&self) -> L2Client {
        let urls = [self.rpc_url.clone()];
        L2Client::new(Pool::new(Target::L2, &urls, pool_config()).unwrap(), L2Config::default())
    }

    async fn ask(&self, method: &'static str, params: Value) -> PortResult<Value> {
        let urls = [self.engine_url.clone()];
        let secret = Arc::new(secret(&self.folder.path().join("jwt")));
        let pool = Pool::with_bearer(Target::Engine, &urls, *self.engine.config(), secret)?;
        pool.call(method, params).await?.tree()
    }

    async fn shown(&self) -> L2Snapshot {
        self.reader().snapshot().await.unwrap()
    }

    /// Head, safe and finalized.
    async fn heights(&self) -> (u64, u64, u64) {
        let shown = self.shown().await;
        let height = |tag: Option<L2Ref>| tag.map_or(0, |block| block.number.get());
        (shown.head.number.get(), height(shown.safe), height(shown.finalized))
    }

    /// A fork choice update, as the test's own: it must be valid.
    async fn update(&self, head: B256, safe: B256, finalized: B256, attributes: Value) -> Value {
        let state = json!({ "headBlockHash": head, "safeBlockHash": safe, "finalizedBlockHash": finalized });
        let told = self.ask("engine_forkchoiceUpdatedV3", json!([state, attributes])).await.unwrap();
        assert_eq!(told["payloadStatus"]["status"], "VALID", "{told}");
        told["payloadId"].clone()
    }

    /// Makes a block on `parent`, which becomes the head, and leaves the new one beside it. `late` tells forks apart.
    async fn build(&self, parent: L2Ref, tag: B256, late: u64) -> L2Ref {
        let number = parent.number.plus(1);
        let attributes = json!({
            "timestamp": format!("{:#x}", 0x691e_6680 + 12 * number.get() + late), "prevRandao": B256::repeat_byte(1),
            "suggestedFeeRecipient": format!("0x{}", "00".repeat(20)), "withdrawals": [],
            "parentBeaconBlockRoot": B256::zero(),
        });
        let id = self.update(parent.hash, tag, tag, attributes).await;
        let payload = self.ask("engine_getPayloadV3", json!([id])).await.unwrap()["executionPayload"].clone();
        let hash: B256 = serde_json::from_value(payload["blockHash"].clone()).unwrap();
        let told = self.ask("engine_newPayloadV3", json!([payload, [], B256::zero()])).await.unwrap();
        assert_eq!(told["status"], "VALID", "{told}");
        L2Ref { number, hash }
    }
}

/// A source that says what the test puts into it.
#[derive(Default)]
struct Said(Mutex<Reply>);

#[async_trait]
impl HeadSource for Said {
    async fn reply(&self) -> PortResult<Reply> {
        Ok(*self.0.lock().unwrap())
    }

    fn name(&self) -> &str {
        "said"
    }
}

struct Follow {
    source: Arc<Said>,
    network: SourceNetwork,
    l1: L1Header,
    follower: Follower,
}

impl Follow {
    async fn on(client: &Client, devnet: &Devnet, genesis: B256) -> Self {
        let l1 = devnet.with(|w| {
            w.mine(5);
            let block = w.l1.head_block().unwrap();
            let (number, hash, header) = (block.header.number, block.hash, &block.header);
            L1Header { number: number.into(), hash, parent_hash: header.parent_hash, timestamp: header.timestamp }
        });
        let network = SourceNetwork { l1_chain_id: 900, l2_chain_id: CHAIN_ID, l2_genesis: Some(genesis) };
        let pool = Pool::new(Target::L1, &[devnet.l1_url()], pool_config()).unwrap();
        let secret = secret(&client.folder.path().join("jwt"));
        let engine = EngineClient::new(&client.engine_url, secret, pool_config()).unwrap();
        let source = Arc::new(Said::default());
        let ports = FollowPorts {
            l1: Arc::new(L1Client::new(pool, devnet.rollup(), devnet.queue())),
            l2: Arc::new(client.reader()),
            engine: Some(Arc::new(ForkchoiceClient::new(engine))),
            progress: Arc::new(SqliteStore::in_memory().await.unwrap()),
            sources: vec![source.clone()],
        };
        let settings = FollowSettings {
            network,
            instance: B256::repeat_byte(1),
            poll_interval: Duration::from_secs(2),
            max_age: Duration::ZERO,
            agreement: 1,
            sets_head: true,
            alarm_after: 100,
        };
        let follower = Follower::start(ports, settings).await.unwrap();
        Self { source, network, l1, follower }
    }

    fn source_at(&self, safe: L2Ref, finalized: L2Ref) {
        let place = |block| {
            let origin = self.l1.l1_ref();
            Some(L2Place { block, parent_hash: B256::zero(), timestamp: 0, origin, sequence: 0 })
        };
        let (safe_l2, finalized_l2) = (place(safe), place(finalized));
        let status = SyncStatus { current_l1: Some(self.l1), safe_l2, finalized_l2, ..SyncStatus::default() };
        *self.source.0.lock().unwrap() = Reply { status, network: Some(self.network), instance: None };
    }

    async fn reason(&mut self) -> Option<Reason> {
        match self.follower.poll().await {
            Ok(PollEnd::Stalled(stall)) => Some(stall.reason()),
            Ok(_) => None,
            Err(error) => Some(error.stall().reason()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i3_i6_i7_i8_i9_the_cases_on_a_real_execution_client() {
    let (client, devnet) = (Client::start().await, Devnet::start(DevnetOptions::default()).await.unwrap());
    let genesis = client.shown().await.head;
    let mut chain = vec![genesis];
    for number in 0..6 {
        chain.push(client.build(chain[number], genesis.hash, 0).await);
    }
    client.update(chain[6].hash, genesis.hash, genesis.hash, Value::Null).await;
    let mut f = Follow::on(&client, &devnet, genesis.hash).await;

    // ③ Only labels.
    f.source_at(chain[4], chain[2]);
    assert_eq!(f.reason().await, None);
    assert_eq!(client.heights().await, (6, 4, 2));

    // ① A block that the client does not know: SYNCING, and nothing moves.
    f.source_at(L2Ref { number: L2Number::new(8), hash: B256::repeat_byte(9) }, chain[2]);
    assert_eq!(f.reason().await, Some(Reason::WaitingForBlocks));
    assert_eq!(client.heights().await, (6, 4, 2));

    // ① A block that it knows: head, safe, finalized.
    chain.push(client.build(chain[6], chain[2].hash, 0).await);
    chain.push(client.build(chain[7], chain[2].hash, 0).await);
    f.source_at(chain[8], chain[4]);
    assert_eq!(f.follower.poll().await.unwrap(), PollEnd::Behind);
    assert_eq!(f.reason().await, None);
    assert_eq!(client.heights().await, (8, 8, 4));

    // ④ Another chain from block 6 on, which the client knows and has left again.
    let mut fork = vec![chain[5]];
    for number in 0..3 {
        fork.push(client.build(fork[number], chain[4].hash, 5).await);
    }
    client.update(chain[8].hash, chain[8].hash, chain[4].hash, Value::Null).await;
    assert_eq!(client.heights().await, (8, 8, 4));
    f.source_at(fork[2], chain[4]);
    for _ in 1..REORG_AFTER {
        assert_eq!(f.reason().await, Some(Reason::SourceDiffers));
        assert_eq!(client.heights().await, (8, 8, 4));
    }
    assert_eq!(f.follower.poll().await.unwrap(), PollEnd::Behind);
    assert_eq!(f.reason().await, None);
    assert_eq!(client.heights().await, (7, 7, 4));
    assert_eq!((client.shown().await.head, f.follower.heads().safe()), (fork[2], Some(fork[2])));

    // Whoever cannot vouch for our finalized block does not move the head.
    f.source_at(chain[8], chain[2]);
    for _ in 0..=REORG_AFTER {
        assert_eq!(f.reason().await, Some(Reason::WaitingForBlocks));
    }
    assert_eq!(client.shown().await.head, fork[2]);

    // ②b The client cannot be asked: nothing is changed.
    let heads = f.follower.heads();
    drop(client);
    assert_eq!(f.reason().await, Some(Reason::L2Unavailable));
    assert_eq!(f.follower.heads(), heads);
}
