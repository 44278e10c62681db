//! Follow mode (scenarios I) over HTTP: a devnet's node and L1, and a source that a test makes say what it likes, or that
//! is a worker which derives.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use morph_deriver::adapters::engine::{EngineClient, JwtSecret};
use morph_deriver::adapters::forkchoice::ForkchoiceClient;
use morph_deriver::adapters::head_source::SourceClient;
use morph_deriver::adapters::rpc::{Check, Pool};
use morph_deriver::adapters::store::SqliteStore;
use morph_deriver::decide::follow::{LOWER_AFTER, REORG_AFTER, SourceNetwork};
use morph_deriver::decide::stall::{Cause, Reason};
use morph_deriver::devnet::chain::BatchSpec;
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::devnet::node::Moment;
use morph_deriver::devnet::world::{ForkShape, World, WorldOptions};
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::error::Target;
use morph_deriver::flow::follow::{FollowStatus, Follower};
use morph_deriver::flow::{FlowError, FollowPorts, FollowSettings, PollEnd, Ports};
use morph_deriver::ports::HeadSource;
use morph_deriver::server::{self, About};
use morph_deriver::types::{Address, B256, Identity};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::inspect::{flags, program};
use crate::support::clients::pool_config;
use crate::support::rig::{Rig, devnet_ports, settings};
use crate::support::server::FakeServer;

const INSTANCE: B256 = B256::repeat_byte(1);

/// Three batches of eight blocks on L1, of which nothing is final; the local node has everything.
async fn network() -> Devnet {
    let world = WorldOptions { finalized_depth: 10_000, ..WorldOptions::default() };
    let devnet = Devnet::start(DevnetOptions { world, ..DevnetOptions::default() }).await.unwrap();
    devnet.with(|w| {
        (0..3).for_each(|_| drop(w.produce(8).unwrap()));
        w.build(4).unwrap();
        w.sync();
    });
    devnet
}

fn options() -> WorldOptions {
    WorldOptions::default()
}

fn l1_json(w: &World, number: u64) -> Value {
    let block = w.l1.block(number).unwrap();
    json!({ "hash": block.hash, "number": number, "parentHash": block.header.parent_hash, "timestamp": block.header.timestamp })
}

/// The sequencer's block `number`, with the L1 block of its batch's commit.
fn l2_json(w: &World, number: u64) -> Value {
    let block = w.sequencer.node.at(number).unwrap();
    let batch = w.batches.iter().find(|batch| (batch.first..=batch.last).contains(&number));
    let origin = batch.map_or(1, |batch| w.l1.find_tx(batch.tx).unwrap().0.header.number);
    let hash = w.l1.block(origin).unwrap().hash;
    json!({
        "hash": block.hash(), "number": number, "parentHash": block.header.parent_hash,
        "timestamp": block.header.timestamp, "l1origin": { "hash": hash, "number": origin }, "sequenceNumber": 0,
    })
}

/// What an honest op-node says whose heads are these.
fn said(devnet: &Devnet, safe: u64, finalized: u64) -> Value {
    devnet.with(|w| {
        let l1 = l1_json(w, w.l1.head());
        let (safe, finalized) = (l2_json(w, safe), l2_json(w, finalized));
        json!({
            "current_l1": l1, "current_l1_finalized": l1, "head_l1": l1, "safe_l1": l1, "finalized_l1": l1,
            "unsafe_l2": safe, "safe_l2": safe, "finalized_l2": finalized,
            "pending_safe_l2": safe, "cross_unsafe_l2": safe, "local_safe_l2": safe,
        })
    })
}

/// A source that a test can make say anything.
struct Source {
    server: FakeServer,
    status: Arc<Mutex<Value>>,
    config: Arc<Mutex<Option<Value>>>,
}

impl Source {
    fn of(devnet: &Devnet) -> Self {
        let status = Arc::new(Mutex::new(Value::Null));
        let genesis = json!({ "l2": { "hash": devnet.l2_genesis(), "number": 0 } });
        let (l1, l2) = (options().l1_chain_id, options().l2_chain_id);
        let config = json!({ "l1_chain_id": l1, "l2_chain_id": l2, "genesis": genesis });
        let config = Arc::new(Mutex::new(Some(config)));
        let (kept, known) = (status.clone(), config.clone());
        let server = FakeServer::json_rpc(move |method, _| match (method, known.lock().unwrap().as_ref()) {
            ("optimism_syncStatus", _) => Ok(kept.lock().unwrap().clone()),
            ("optimism_rollupConfig", Some(config)) => Ok(config.clone()),
            _ => Err((-32_601, "the method does not exist".to_owned())),
        });
        Self { server, status, config }
    }

    fn says(&self, status: Value) {
        *self.status.lock().unwrap() = status;
    }

    fn port(&self) -> Arc<dyn HeadSource> {
        port(&self.server.url)
    }
}

fn port(url: &str) -> Arc<dyn HeadSource> {
    let config = pool_config(Check::None);
    let config = morph_deriver::adapters::rpc::PoolConfig { retry_for: Duration::ZERO, ..config };
    Arc::new(SourceClient::new(Pool::new(Target::Source, &[url.to_owned()], config).unwrap()))
}

fn follow_settings(devnet: &Devnet) -> FollowSettings {
    FollowSettings {
        network: SourceNetwork {
            l1_chain_id: options().l1_chain_id,
            l2_chain_id: options().l2_chain_id,
            l2_genesis: Some(devnet.l2_genesis()),
        },
        instance: INSTANCE,
        poll_interval: Duration::from_millis(20),
        max_age: Duration::ZERO,
        agreement: 1,
        alarm_after: 3,
        sets_head: false,
    }
}

fn follow_ports(ports: &Ports, sources: Vec<Arc<dyn HeadSource>>) -> FollowPorts {
    let Ports { l1, l2, engine, progress, .. } = ports.clone();
    FollowPorts { l1, l2, engine, progress, sources }
}

/// A follower on a devnet, of one source.
struct Follow {
    devnet: Devnet,
    source: Source,
    ports: FollowPorts,
    follower: Follower,
    sets_head: bool,
}

impl Follow {
    async fn on(devnet: Devnet) -> Self {
        let source = Source::of(&devnet);
        let ports = follow_ports(&devnet_ports(&devnet).await, vec![source.port()]);
        let follower = Follower::start(ports.clone(), follow_settings(&devnet)).await.unwrap();
        Self { devnet, source, ports, follower, sets_head: false }
    }

    async fn new() -> Self {
        Self::on(network().await).await
    }

    /// The source has these heads, and is honest.
    fn source_at(&self, safe: u64, finalized: u64) {
        self.source.says(said(&self.devnet, safe, finalized));
    }

    /// The source says it with a change.
    fn source_bent(&self, safe: u64, finalized: u64, bend: impl FnOnce(&mut Value)) {
        let mut status = said(&self.devnet, safe, finalized);
        bend(&mut status);
        self.source.says(status);
    }

    /// Beside a standard node: its head is set by fork choice updates.
    async fn forkchoice() -> Self {
        let mut f = Self::new().await;
        let secret = JwtSecret::new(f.devnet.jwt_secret());
        let engine = EngineClient::new(&f.devnet.engine_url(), secret, pool_config(Check::None)).unwrap();
        f.ports.engine = Some(Arc::new(ForkchoiceClient::new(engine)));
        f.sets_head = true;
        f.restart().await;
        f
    }

    async fn restart(&mut self) {
        let settings = FollowSettings { sets_head: self.sets_head, ..follow_settings(&self.devnet) };
        self.follower = Follower::start(self.ports.clone(), settings).await.unwrap();
    }

    async fn poll(&mut self) -> Result<PollEnd, FlowError> {
        self.follower.poll().await
    }

    /// The reason of the stall on which the next poll ends.
    async fn reason(&mut self) -> Option<Reason> {
        let outcome = self.poll().await;
        let shown = self.follower.status().borrow().stall.clone();
        let ended = match outcome {
            Ok(PollEnd::Stalled(stall)) => Some(stall),
            Ok(_) => None,
            Err(error) => Some(error.stall()),
        };
        assert_eq!(shown, ended, "P9");
        ended.map(|stall| stall.reason())
    }

    fn shown(&self) -> FollowStatus {
        self.follower.status().borrow().follow.clone().unwrap()
    }

    /// Our heads, which the node must show as its tags.
    fn heads(&self) -> (Option<u64>, Option<u64>) {
        let ours = self.follower.heads();
        let (safe, finalized) = (ours.safe(), ours.finalized());
        self.devnet.with(|w| assert_eq!((w.node.safe(), w.node.finalized()), (safe, finalized)));
        (safe.map(|head| head.number.get()), finalized.map(|head| head.number.get()))
    }

    fn dropped(&self) -> BTreeMap<&'static str, u64> {
        self.shown().dropped.into_iter().filter(|(_, count)| *count > 0).collect()
    }
}

/// P2, for everything that a reader of the node could see.
fn assert_ordered(devnet: &Devnet) {
    let disordered: Vec<Moment> = devnet.moments().into_iter().filter(|m| !m.is_ordered()).collect();
    assert!(disordered.is_empty(), "finalized ≤ safe ≤ head is broken: {disordered:?}");
}

#[tokio::test]
async fn i8_source_and_node_agree_and_both_tags_move() {
    let mut f = Follow::new().await;
    f.source_at(8, 0);
    assert_eq!(f.reason().await, None);
    assert_eq!(f.heads(), (Some(8), Some(0)));
    f.source_at(24, 16);
    assert_eq!(f.reason().await, None);
    assert_eq!(f.heads(), (Some(24), Some(16)));
    let shown = f.shown();
    assert_eq!((shown.case, shown.cases["same"], shown.lag), (Some("same"), 2, Some(0)));
    assert_eq!(shown.sources[0].last, Some("taken"));
    let current = f.devnet.with(|w| w.l1.head_block().unwrap().l1_ref());
    assert_eq!(shown.source_current_l1, Some(current));
    // What follows us is told the same, with the origins that L1 confirmed and the local chain's own fields.
    let sync = f.follower.status().borrow().sync;
    assert_eq!(sync.current_l1.map(|header| header.l1_ref()), Some(current));
    f.devnet.with(|w| {
        for (place, number) in [(sync.safe_l2.unwrap(), 24), (sync.finalized_l2.unwrap(), 16)] {
            let block = w.sequencer.node.at(number).unwrap();
            assert_eq!((place.block, place.parent_hash), (block.l2_ref(), block.header.parent_hash));
            assert_eq!(place.timestamp, block.header.timestamp);
            assert_eq!(w.l1.block(place.origin.number.get()).map(|b| b.l1_ref()), Some(place.origin));
        }
        assert_eq!(sync.unsafe_l2.unwrap().block, w.node.head().l2_ref());
    });
    // Nothing is written, and an idle poll sets no tag.
    f.devnet.clear_counts();
    assert_eq!(f.reason().await, None);
    assert!(f.devnet.writes().is_empty() && f.devnet.tag_calls().is_empty());
    assert_ordered(&f.devnet);
}

/// A head survives a restart, and is never below what was finalized before.
#[tokio::test]
async fn i8_p2_heads_are_kept_over_a_restart() {
    let mut f = Follow::new().await;
    f.source_at(24, 16);
    f.poll().await.unwrap();
    f.restart().await;
    assert_eq!(f.heads(), (Some(24), Some(16)));
    f.source_at(24, 8);
    assert_eq!(f.reason().await, None);
    assert_eq!(f.heads(), (Some(24), Some(16)), "finalized never moves back");
    assert_ordered(&f.devnet);
}

#[tokio::test]
async fn i1_one_reply_is_one_snapshot_and_a_mixed_one_moves_nothing() {
    let mut f = Follow::new().await;
    f.source_at(16, 8);
    f.poll().await.unwrap();
    assert_eq!(f.source.server.requests(), 1, "one exchange, and nothing asked a second time");
    // The number of one replica, the hash of another.
    let hash = f.devnet.with(|w| w.sequencer.node.at(16).unwrap().hash());
    f.source_bent(24, 8, |status| status["safe_l2"]["hash"] = json!(hash));
    assert_eq!(f.reason().await, Some(Reason::SourceDiffers));
    f.source_bent(24, 16, |status| status["finalized_l2"]["hash"] = json!(B256::repeat_byte(9)));
    assert_eq!(f.reason().await, Some(Reason::SourceRefused));
    assert_eq!(f.heads(), (Some(16), Some(8)));
    assert_eq!(f.dropped(), [("finalized_off_chain", 1)].into());
    assert_eq!(f.source.server.requests(), 3);
}

#[tokio::test]
async fn i2_a_snapshot_that_contradicts_itself_or_our_finalized_head_is_refused() {
    let mut f = Follow::new().await;
    f.source_at(16, 16);
    f.poll().await.unwrap();
    f.source_at(16, 24);
    assert_eq!(f.reason().await, Some(Reason::SourceRefused));
    f.source_at(8, 8);
    assert_eq!(f.reason().await, Some(Reason::SourceRefused));
    f.source_bent(24, 16, |status| status["finalized_l2"]["hash"] = json!(B256::repeat_byte(9)));
    assert_eq!(f.reason().await, Some(Reason::SourceRefused));
    f.source_bent(24, 16, |status| status["current_l1"]["number"] = json!(1));
    assert_eq!(f.reason().await, Some(Reason::SourceRefused));
    assert_eq!(f.dropped(), [("below_finalized", 1), ("other_finalized", 1), ("out_of_order", 2)].into());
    assert_eq!(f.heads(), (Some(16), Some(16)));
    f.source_at(24, 16);
    assert_eq!(f.reason().await, None);
    assert_eq!(f.heads(), (Some(24), Some(16)));
    assert_ordered(&f.devnet);
}

#[tokio::test]
async fn i3_finalized_never_passes_a_safe_tag_that_the_node_did_not_take() {
    let mut f = Follow::new().await;
    f.source_at(8, 0);
    f.poll().await.unwrap();
    f.source_at(24, 16);
    f.devnet.fault(Server::Engine, Rule::on("engine_setBlockTags", Fault::Drop));
    assert_eq!(f.reason().await, Some(Reason::EngineUnavailable));
    f.devnet.with(|w| {
        let shown = (w.node.safe().unwrap().number.get(), w.node.finalized().unwrap().number.get());
        assert_eq!(shown, (8, 0), "neither of the two");
    });
    f.devnet.heal(Server::Engine);
    assert_eq!(f.reason().await, None);
    assert_eq!(f.heads(), (Some(24), Some(16)));
    assert_ordered(&f.devnet);
}

#[tokio::test]
async fn i4_each_cited_l1_block_must_be_canonical_and_after_some_drops_there_is_an_alarm() {
    let mut f = Follow::new().await;
    f.source_at(8, 0);
    f.poll().await.unwrap();
    let forged = || json!(B256::repeat_byte(9));
    f.source_bent(24, 16, |status| status["current_l1"]["hash"] = forged());
    assert_eq!(f.reason().await, Some(Reason::SourceRefused));
    f.source_bent(24, 16, |status| status["safe_l2"]["l1origin"]["hash"] = forged());
    assert_eq!(f.reason().await, Some(Reason::SourceRefused));
    assert!(!f.shown().alarm);
    f.source_bent(24, 16, |status| status["finalized_l2"]["l1origin"]["hash"] = forged());
    assert_eq!(f.reason().await, Some(Reason::SourceRefused));
    let shown = f.shown();
    assert_eq!((shown.dropped["cited_differs"], shown.without_reply, shown.alarm), (3, 3, true));
    assert_eq!(f.heads(), (Some(8), Some(0)));
    f.source_at(24, 16);
    assert_eq!(f.reason().await, None);
    assert_eq!((f.shown().without_reply, f.shown().alarm), (0, false));
    assert_eq!(f.heads(), (Some(24), Some(16)));
}

#[tokio::test]
async fn i5_while_our_own_l1_cannot_be_asked_nothing_is_taken_over() {
    let mut f = Follow::new().await;
    f.source_at(8, 0);
    f.poll().await.unwrap();
    f.source_at(24, 16);
    f.devnet.fault(Server::L1(0), Rule::always(Fault::Drop));
    assert_eq!(f.reason().await, Some(Reason::L1Unavailable));
    assert_eq!(f.dropped(), [("l1_not_asked", 1)].into());
    assert_eq!(f.heads(), (Some(8), Some(0)));
    f.devnet.heal(Server::L1(0));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(f.reason().await, None);
    assert_eq!(f.heads(), (Some(24), Some(16)));
}

/// Our L1 lags behind the source's: that is no contradiction.
#[tokio::test]
async fn i5_an_l1_block_that_our_l1_does_not_have_yet_is_waited_for() {
    let mut f = Follow::new().await;
    let ahead = f.devnet.with(|w| w.l1.head()) + 1;
    f.source_bent(24, 16, |status| {
        status["current_l1"]["number"] = json!(ahead);
        status["current_l1"]["hash"] = json!(B256::repeat_byte(9));
    });
    let reason = f.reason().await.unwrap();
    assert!(matches!(reason, Reason::L1Behind | Reason::L1Unavailable), "{reason}");
    assert_eq!(f.follower.heads().safe(), None);
}

#[tokio::test]
async fn i6_a_safe_head_above_the_local_head_is_a_target_until_the_node_has_it() {
    let mut f = Follow::new().await;
    f.devnet.with(|w| w.truncate_to(10));
    f.source_at(8, 0);
    assert_eq!(f.reason().await, None);
    f.devnet.clear_counts();
    f.source_at(16, 8);
    for _ in 0..3 {
        assert_eq!(f.reason().await, Some(Reason::WaitingForBlocks));
        let shown = f.shown();
        assert_eq!((shown.case, shown.lag), (Some("ahead"), Some(8)));
        assert_eq!(shown.target.map(|target| target.number.get()), Some(16));
    }
    assert!(f.devnet.tag_calls().is_empty(), "nothing that is missing is tagged");
    assert_eq!(f.heads(), (Some(8), Some(0)));
    // The source goes on, and the node reaches what was waited for first.
    f.source_at(24, 16);
    f.devnet.with(|w| w.sync_to(18));
    assert_eq!(f.reason().await, Some(Reason::WaitingForBlocks));
    assert_eq!(f.heads(), (Some(16), Some(8)));
    assert_eq!(f.shown().target.map(|target| target.number.get()), Some(24));
    f.devnet.with(World::sync);
    assert_eq!(f.reason().await, None);
    assert_eq!((f.heads(), f.shown().target), ((Some(24), Some(16)), None));
    assert!(f.devnet.writes().is_empty());
    assert_ordered(&f.devnet);
}

/// What was waited for is confirmed by L1 once more before it is taken over.
#[tokio::test]
async fn i4_i6_a_target_that_l1_has_left_is_not_taken_over() {
    let mut f = Follow::new().await;
    f.devnet.with(|w| w.truncate_to(10));
    f.source_at(24, 8);
    assert_eq!(f.reason().await, Some(Reason::WaitingForBlocks));
    // L1 reorganises the newest commit away; the source has not noticed more than a higher head.
    f.devnet.with(|w| {
        w.reorg(1);
        w.mine(6);
        w.build(4).unwrap();
        w.sync_to(26);
    });
    f.source_bent(28, 8, |status| {
        // Origin of the last batch that is still there.
        let origin = f.devnet.with(|w| l2_json(w, 16)["l1origin"].clone());
        status["safe_l2"]["l1origin"] = origin;
    });
    assert_eq!(f.reason().await, Some(Reason::WaitingForBlocks));
    assert_eq!(f.follower.heads().safe(), None);
}

#[tokio::test]
async fn i7_a_block_that_the_node_lacks_is_a_target_and_a_failed_query_changes_nothing() {
    let mut f = Follow::new().await;
    f.source_at(8, 0);
    f.poll().await.unwrap();
    f.devnet.clear_counts();
    f.source_at(16, 8);
    f.devnet.with(|w| w.node.moods.holes = [16].into());
    for _ in 0..3 {
        assert_eq!(f.reason().await, Some(Reason::WaitingForBlocks));
        assert_eq!(f.shown().case, Some("not_found"));
    }
    assert!(f.devnet.tag_calls().is_empty(), "no loop of tag errors");
    f.devnet.with(|w| w.node.moods.holes.clear());
    // The snapshot is answered, the block is not.
    let single = Rule::on("eth_getBlockByNumber", Fault::Drop).after(4).times(50);
    f.devnet.fault(Server::L2, single);
    assert_eq!(f.reason().await, Some(Reason::L2Unavailable));
    assert_eq!(f.shown().case, Some("query_failed"));
    assert_eq!(f.shown().target.map(|target| target.number.get()), Some(16), "the target stays");
    f.devnet.heal(Server::L2);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(f.reason().await, None);
    assert_eq!(f.heads(), (Some(16), Some(8)));
    assert_ordered(&f.devnet);
}

#[tokio::test]
async fn i9_a_node_on_another_chain_than_the_source_changes_nothing_and_is_alarmed() {
    let mut f = Follow::new().await;
    f.source_at(8, 8);
    f.poll().await.unwrap();
    f.devnet.with(|w| w.fork_at(14, ForkShape::GasLimit).unwrap());
    f.devnet.clear_counts();
    f.source_at(24, 16);
    for poll in 1..=3 {
        assert_eq!(f.reason().await, Some(Reason::SourceDiffers));
        assert_eq!((f.shown().case, f.shown().alarm), (Some("differs"), poll == 3));
    }
    assert_eq!(f.heads(), (Some(8), Some(8)));
    assert!(f.devnet.tag_calls().is_empty() && f.devnet.writes().is_empty());
    // Its consensus node brings it to the source's chain.
    f.devnet.with(World::sync);
    assert_eq!(f.reason().await, None);
    assert_eq!((f.heads(), f.shown().alarm), ((Some(24), Some(16)), false));
    // A fork below what is final is a halt, and nothing moves either.
    f.devnet.with(|w| w.fork_at(14, ForkShape::GasLimit).unwrap());
    assert_eq!(f.reason().await, Some(Reason::DivergesBelowFinalized));
    assert_eq!(f.follower.heads().finalized().map(|head| head.number.get()), Some(16));
}

/// The node lost its blocks, and came back on another chain, which the source calls safe and final: our finalized head
/// moves neither to that chain nor back.
#[tokio::test]
async fn i9_e20_p2_a_source_on_another_chain_than_our_finalized_head_takes_it_nowhere_after_a_loss() {
    let mut f = Follow::new().await;
    f.source_at(24, 16);
    f.poll().await.unwrap();
    f.devnet.with(|w| w.node.kill(12));
    let _ = f.poll().await;
    f.devnet.with(|w| {
        w.sync();
        w.fork_at(14, ForkShape::GasLimit).unwrap();
    });
    let forked = |number| f.devnet.with(|w| json!(w.node.at(number).unwrap().hash()));
    let (safe, finalized) = (forked(24), forked(20));
    f.source_bent(24, 20, |status| {
        status["safe_l2"]["hash"] = safe;
        status["finalized_l2"]["hash"] = finalized;
    });
    for _ in 0..5 {
        assert_eq!(f.reason().await, Some(Reason::DivergesBelowFinalized));
        assert_eq!(f.follower.heads().finalized().map(|head| head.number.get()), Some(16));
    }
    f.devnet.with(World::sync);
    f.source_at(24, 20);
    assert_eq!(f.reason().await, None);
    assert_eq!(f.heads(), (Some(24), Some(20)));
}

#[tokio::test]
async fn i9_a_safe_head_below_ours_is_followed_down_only_after_some_replies_and_not_below_finalized() {
    let mut f = Follow::new().await;
    f.source_at(24, 8);
    f.poll().await.unwrap();
    for lower in 1..LOWER_AFTER {
        f.source_at(16, 8);
        assert_eq!(f.reason().await, None);
        assert_eq!(f.heads(), (Some(24), Some(8)), "reply {lower}");
    }
    // A replica that lags, and then one that does not: counted from the beginning again.
    f.source_at(24, 8);
    f.poll().await.unwrap();
    f.source_at(16, 8);
    for _ in 0..LOWER_AFTER {
        assert_eq!(f.heads().0, Some(24));
        assert_eq!(f.reason().await, None);
    }
    assert_eq!(f.heads(), (Some(16), Some(8)));
    assert_ordered(&f.devnet);
}

#[tokio::test]
async fn i10_nothing_is_asked_before_the_nodes_first_sync_is_over_and_the_gate_opens_once() {
    let mut f = Follow::new().await;
    f.source_at(16, 8);
    f.devnet.with(|w| w.truncate_to(0));
    for syncing in [false, true] {
        f.devnet.with(|w| w.node.moods.syncing = syncing);
        let end = f.poll().await.unwrap();
        assert!(matches!(end, PollEnd::Stalled(stall) if stall.cause == Cause::FirstSync { syncing }));
        assert!(!f.shown().gate_open);
    }
    f.devnet.with(|w| w.sync_to(10));
    assert_eq!(f.reason().await, Some(Reason::NodeSyncing), "it says so");
    assert_eq!(f.source.server.requests(), 0);
    f.devnet.with(|w| w.node.moods.syncing = false);
    assert_eq!(f.reason().await, Some(Reason::WaitingForBlocks));
    assert!(f.shown().gate_open);
    // A later sync closes nothing.
    f.devnet.with(|w| {
        w.node.moods.syncing = true;
        w.sync();
    });
    assert_eq!(f.reason().await, None);
    assert_eq!(f.heads(), (Some(16), Some(8)));
}

#[tokio::test]
async fn i11_a_source_that_stands_still_is_noticed_by_the_age_of_its_l1_block() {
    let mut f = Follow::new().await;
    // The devnet's L1 lies years back.
    let settings = FollowSettings { max_age: Duration::from_secs(3600), ..follow_settings(&f.devnet) };
    f.follower = Follower::start(f.ports.clone(), settings).await.unwrap();
    f.source_bent(24, 16, |status| status["current_l1"]["timestamp"] = json!(u64::from(u32::MAX)));
    assert_eq!(f.reason().await, Some(Reason::SourceStale));
    assert_eq!((f.dropped(), f.follower.heads().safe()), ([("stale", 1)].into(), None));
}

#[tokio::test]
async fn i12_another_network_this_process_itself_and_a_source_that_does_not_say_are_refused() {
    let mut f = Follow::new().await;
    let honest = f.source.config.lock().unwrap().clone();
    let bend = |key: &str, value: Value| {
        let mut config = honest.clone().unwrap();
        config[key] = value;
        Some(config)
    };
    f.source_at(24, 16);
    let genesis = json!({ "l2": { "hash": B256::zero(), "number": 0 } });
    for config in [bend("l1_chain_id", json!(5)), bend("l2_chain_id", json!(5)), bend("genesis", genesis), None] {
        *f.source.config.lock().unwrap() = config;
        assert_eq!(f.reason().await, Some(Reason::SourceRefused));
    }
    let own = json!({
        "instance": INSTANCE, "l1_chain_id": options().l1_chain_id, "l2_chain_id": options().l2_chain_id,
        "l2_genesis": f.devnet.l2_genesis(),
    });
    f.source_bent(24, 16, |status| status["morph_deriver"] = own.clone());
    assert_eq!(f.reason().await, Some(Reason::SourceRefused));
    assert_eq!(f.dropped(), [("itself", 1), ("other_network", 3), ("unidentified", 1)].into());
    f.source.says(json!("no status"));
    assert_eq!(f.reason().await, Some(Reason::SourceUnavailable));
    assert_eq!(f.follower.heads().safe(), None);
    f.source_bent(24, 16, |status| {
        status["morph_deriver"] = own;
        status["morph_deriver"]["instance"] = json!(B256::repeat_byte(2));
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(f.reason().await, None);
    assert_eq!(f.heads(), (Some(24), Some(16)));
}

/// One that does not answer, lies, or stands still is passed over; a later one is followed.
#[tokio::test]
async fn i4_i12_the_next_source_is_asked_if_one_gives_nothing() {
    let devnet = network().await;
    let [dead, liar, honest] = [Source::of(&devnet), Source::of(&devnet), Source::of(&devnet)];
    dead.server.set_down(true);
    let mut lie = said(&devnet, 24, 24);
    lie["safe_l2"]["l1origin"]["hash"] = json!(B256::repeat_byte(9));
    liar.says(lie);
    honest.says(said(&devnet, 16, 8));
    let sources = [&dead, &liar, &honest].map(Source::port).to_vec();
    let ports = follow_ports(&devnet_ports(&devnet).await, sources);
    let mut follower = Follower::start(ports, follow_settings(&devnet)).await.unwrap();
    assert_eq!(follower.poll().await.unwrap(), PollEnd::CaughtUp);
    assert_eq!(follower.heads().safe().map(|head| head.number.get()), Some(16));
    let last: Vec<_> = follower.status().borrow().follow.clone().unwrap().sources.iter().map(|s| s.last).collect();
    assert_eq!(last, [Some("unavailable"), Some("cited_differs"), Some("taken")]);
    // The first one that is right is enough.
    liar.says(said(&devnet, 24, 8));
    let before = honest.server.requests();
    assert_eq!(follower.poll().await.unwrap(), PollEnd::CaughtUp);
    assert_eq!((follower.heads().safe().map(|head| head.number.get()), honest.server.requests()), (Some(24), before));
}

#[tokio::test]
async fn i12_so_many_sources_must_agree_as_are_asked_for() {
    let devnet = network().await;
    let sources = [Source::of(&devnet), Source::of(&devnet), Source::of(&devnet)];
    let all = |heads: [(u64, u64); 3]| {
        sources.iter().zip(heads).for_each(|(source, (safe, finalized))| source.says(said(&devnet, safe, finalized)));
    };
    let ports = follow_ports(&devnet_ports(&devnet).await, sources.iter().map(Source::port).collect());
    let settings = FollowSettings { agreement: 2, ..follow_settings(&devnet) };
    let mut follower = Follower::start(ports, settings).await.unwrap();
    let heads = |follower: &Follower| {
        (follower.heads().safe().map(|h| h.number.get()), follower.heads().finalized().map(|h| h.number.get()))
    };
    all([(24, 16), (16, 8), (8, 0)]);
    let PollEnd::Stalled(stall) = follower.poll().await.unwrap() else { panic!("no two agree") };
    assert_eq!((stall.reason(), heads(&follower)), (Reason::SourceRefused, (None, None)));
    all([(24, 16), (16, 8), (16, 0)]);
    assert_eq!(follower.poll().await.unwrap(), PollEnd::CaughtUp);
    assert_eq!(heads(&follower), (Some(16), Some(0)), "and finalized is what both have");
    sources[0].server.set_down(true);
    all([(24, 16), (24, 16), (24, 16)]);
    assert_eq!(follower.poll().await.unwrap(), PollEnd::CaughtUp);
    assert_eq!(heads(&follower), (Some(24), Some(16)));
    assert_ordered(&devnet);
}

/// A node that is killed falls back: no tag stays above its head for longer than a poll, and what it lost is taken up
/// again when it has it.
#[tokio::test]
async fn i6_e19_p2_a_node_that_lost_blocks_is_followed_again_when_it_has_them() {
    let mut f = Follow::new().await;
    f.source_at(24, 8);
    f.poll().await.unwrap();
    f.devnet.with(|w| w.node.kill(12));
    assert_eq!(f.reason().await, Some(Reason::WaitingForBlocks));
    assert_eq!(f.heads(), (Some(8), Some(8)));
    f.devnet.with(World::sync);
    assert_eq!(f.reason().await, None);
    assert_eq!(f.heads(), (Some(24), Some(8)));
}

#[tokio::test]
async fn i8_without_an_engine_the_heads_are_only_shown() {
    let mut f = Follow::new().await;
    f.ports.engine = None;
    f.restart().await;
    f.source_at(24, 16);
    assert_eq!(f.reason().await, None);
    assert_eq!(f.follower.heads().safe().map(|head| head.number.get()), Some(24));
    f.devnet.with(|w| assert_eq!((w.node.safe(), w.node.finalized()), (None, None)));
}

fn updates(f: &Follow) -> u64 {
    f.devnet.calls(Server::Engine, "engine_forkchoiceUpdatedV3")
}

#[tokio::test]
async fn i8_a_standard_node_is_labelled_by_fork_choice_updates_and_its_head_stays() {
    let mut f = Follow::forkchoice().await;
    let head = f.devnet.heads().local;
    f.source_at(24, 16);
    assert_eq!(f.reason().await, None);
    assert_eq!((f.heads(), f.devnet.heads().local), ((Some(24), Some(16)), head));
    assert!(f.devnet.tag_calls().is_empty() && updates(&f) == 2, "safe, then finalized");
    assert_eq!(f.reason().await, None);
    assert_eq!(updates(&f), 2, "an idle poll tells the node nothing");
    assert_ordered(&f.devnet);
}

#[tokio::test]
async fn i6_a_standard_node_takes_the_source_s_safe_head_as_its_head() {
    let mut f = Follow::forkchoice().await;
    f.devnet.with(|w| w.truncate_to(10));
    f.source_at(8, 8);
    assert_eq!(f.reason().await, None);
    f.source_at(24, 16);
    assert_eq!(f.poll().await.unwrap(), PollEnd::Behind, "the next poll labels it, at once");
    assert_eq!(f.shown().case, Some("ahead"));
    assert_eq!(f.reason().await, None);
    assert_eq!((f.heads(), f.devnet.heads().local.number.get()), ((Some(24), Some(16)), 24));
    assert_ordered(&f.devnet);
}

/// SYNCING, ACCEPTED: nothing moves, and it is asked again. INVALID speaks against the source.
#[tokio::test]
async fn i3_i6_what_a_standard_node_does_not_take_moves_nothing() {
    for (status, reason) in [
        ("SYNCING", Reason::WaitingForBlocks),
        ("ACCEPTED", Reason::WaitingForBlocks),
        ("INVALID", Reason::SourceRefused),
    ] {
        let mut f = Follow::forkchoice().await;
        f.devnet.with(|w| w.truncate_to(10));
        f.source_at(8, 8);
        assert_eq!(f.reason().await, None);
        f.source_at(24, 16);
        f.devnet.with(|w| w.node.moods.forkchoice_status = Some(status.to_owned()));
        for _ in 0..2 {
            assert_eq!(f.reason().await, Some(reason), "{status}");
            assert_eq!((f.heads(), f.devnet.heads().local.number.get()), ((Some(8), Some(8)), 10), "{status}");
        }
        f.devnet.with(|w| w.node.moods.forkchoice_status = None);
        assert_eq!(f.poll().await.unwrap(), PollEnd::Behind);
        assert_eq!(f.reason().await, None);
        assert_eq!(f.heads(), (Some(24), Some(16)), "{status}");
        assert_ordered(&f.devnet);
    }
    // The tags are not taken: finalized does not move past a safe tag that was refused.
    let mut f = Follow::forkchoice().await;
    f.source_at(8, 0);
    f.poll().await.unwrap();
    f.source_at(24, 16);
    f.devnet.with(|w| w.node.moods.forkchoice_status = Some("SYNCING".to_owned()));
    assert_eq!(f.reason().await, Some(Reason::EngineUnavailable));
    f.devnet.with(|w| {
        assert_eq!((w.node.safe().unwrap().number.get(), w.node.finalized().unwrap().number.get()), (8, 0));
        w.node.moods.forkchoice_status = None;
    });
    assert_eq!(f.reason().await, None);
    assert_eq!(f.heads(), (Some(24), Some(16)));
}

#[tokio::test]
async fn i7_a_standard_node_that_lacks_the_block_keeps_its_head() {
    let mut f = Follow::forkchoice().await;
    f.source_at(8, 0);
    f.poll().await.unwrap();
    let (before, head) = (updates(&f), f.devnet.heads().local);
    f.source_at(16, 8);
    f.devnet.with(|w| w.node.moods.holes = [16].into());
    assert_eq!(f.reason().await, Some(Reason::WaitingForBlocks));
    f.devnet.with(|w| w.node.moods.holes.clear());
    f.devnet.fault(Server::L2, Rule::on("eth_getBlockByNumber", Fault::Drop).after(4).times(50));
    assert_eq!(f.reason().await, Some(Reason::L2Unavailable));
    assert_eq!((updates(&f), f.devnet.heads().local), (before, head));
}

#[tokio::test]
async fn i9_a_standard_node_leaves_its_chain_after_some_replies_and_never_below_finalized() {
    let mut f = Follow::forkchoice().await;
    f.source_at(16, 8);
    f.poll().await.unwrap();
    let forked = |w: &mut World| w.fork_at(12, ForkShape::GasLimit).unwrap();
    f.devnet.with(forked);
    // While the node leaves its chain by itself, its tags lie where they were: not ours to order.
    f.devnet.clear_counts();
    f.source_at(24, 8);
    for _ in 1..REORG_AFTER {
        assert_eq!(f.reason().await, Some(Reason::SourceDiffers));
        assert_eq!(f.heads(), (Some(8), Some(8)), "our safe head left the chain");
    }
    assert_eq!(f.poll().await.unwrap(), PollEnd::Behind);
    assert_eq!(f.reason().await, None);
    assert_eq!((f.heads(), f.devnet.heads().local.number.get()), ((Some(24), Some(8)), 24));
    // Whose finalized head lies below ours cannot vouch that our finalized block stays on the chain.
    f.source_at(24, 16);
    f.poll().await.unwrap();
    assert_ordered(&f.devnet);
    f.devnet.with(|w| w.fork_at(20, ForkShape::GasLimit).unwrap());
    f.devnet.clear_counts();
    f.source_at(24, 8);
    for _ in 0..=REORG_AFTER {
        assert_eq!(f.reason().await, Some(Reason::SourceDiffers));
    }
    assert_eq!(f.heads(), (Some(16), Some(16)));
    assert!(f.devnet.writes().is_empty());
    assert_ordered(&f.devnet);
}

/// A worker that derives, and serves its status.
struct Deriving {
    rig: Rig,
    stop: CancellationToken,
    url: String,
}

impl Deriving {
    /// Without an engine: the tags of the node are the follower's.
    async fn on(devnet: &Devnet, progress: Option<Arc<SqliteStore>>, listener: TcpListener) -> Self {
        let mut settings = settings();
        settings.rollup = devnet.rollup();
        let mut ports = Ports { engine: None, ..devnet_ports(devnet).await };
        if let Some(progress) = progress {
            ports.progress = progress;
        }
        let rig = Rig::start(ports, settings).await;
        let url = format!("http://{}", listener.local_addr().unwrap());
        let identity = Identity {
            l1_chain_id: options().l1_chain_id,
            l2_chain_id: options().l2_chain_id,
            rollup: devnet.rollup(),
            queue: Address::zero(),
            l2_genesis: devnet.l2_genesis(),
        };
        let about = About { identity, instance: B256::repeat_byte(2) };
        let stop = CancellationToken::new();
        tokio::spawn(server::serve(listener, rig.worker.status(), Some(about), stop.clone()));
        Self { rig, stop, url }
    }
}

/// Through an L1 reorg and a restart of the source: the same heads in the end, and never out of order on the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i8_i12_p2_one_worker_follows_another_through_a_reorg_and_a_restart() {
    let world = WorldOptions { finalized_depth: 20, ..WorldOptions::default() };
    let devnet = Devnet::start(DevnetOptions { world, ..DevnetOptions::default() }).await.unwrap();
    devnet.with(|w| {
        (0..3).for_each(|_| drop(w.produce(8).unwrap()));
        w.mine(20);
        (0..2).for_each(|_| drop(w.produce(8).unwrap()));
        w.build(4).unwrap();
        w.sync();
    });
    let store = Arc::new(SqliteStore::in_memory().await.unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut source = Deriving::on(&devnet, Some(store.clone()), listener).await;
    let ports = follow_ports(&devnet_ports(&devnet).await, vec![port(&source.url)]);
    let mut follower = Follower::start(ports, follow_settings(&devnet)).await.unwrap();
    let PollEnd::Stalled(stall) = follower.poll().await.unwrap() else { panic!("the source has no head yet") };
    assert_eq!(stall.reason(), Reason::SourceRefused);

    source.rig.settle().await;
    follower.poll().await.unwrap();
    assert_eq!(follower.heads(), source.rig.worker.heads());
    assert_eq!(source.rig.safe(), Some(40));
    assert!(source.rig.finalized().is_some_and(|finalized| finalized >= 24));

    // An L1 reorg takes the newest batch away, until it is committed again.
    devnet.with(|w| {
        w.reorg(1);
        w.mine(3);
    });
    let PollEnd::Stalled(stall) = follower.poll().await.unwrap() else {
        panic!("the source cites an L1 block that is gone")
    };
    assert_eq!(stall.reason(), Reason::SourceRefused);
    source.rig.settle().await;
    assert_eq!(source.rig.safe(), Some(32));
    for _ in 0..LOWER_AFTER {
        follower.poll().await.unwrap();
    }
    assert_eq!(follower.heads(), source.rig.worker.heads());

    // The source is restarted: it has no answer meanwhile, and then the same heads as before.
    source.stop.cancel();
    drop(source);
    let error = loop {
        match follower.poll().await {
            Err(error) => break error,
            Ok(PollEnd::Stalled(stall)) if stall.reason() == Reason::SourceUnavailable => {
                break FlowError::Stall(stall);
            }
            Ok(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    assert_eq!(error.stall().reason(), Reason::SourceUnavailable);
    assert_eq!(follower.heads().safe().map(|head| head.number.get()), Some(32));
    let listener = TcpListener::bind(address).await.unwrap();
    let mut source = Deriving::on(&devnet, Some(store), listener).await;
    devnet.with(|w| {
        w.commit(BatchSpec { last: Some(40), ..BatchSpec::default() }).unwrap();
        w.mine(1);
    });
    source.rig.settle().await;
    assert_eq!(source.rig.safe(), Some(40));
    // A source that did not answer is left alone for a moment.
    for _ in 0..100 {
        match follower.poll().await {
            Ok(PollEnd::CaughtUp) => break,
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    assert_eq!(follower.heads(), source.rig.worker.heads());
    devnet.with(|w| {
        assert_eq!((w.node.safe(), w.node.finalized()), (follower.heads().safe(), follower.heads().finalized()));
    });
    assert!(devnet.writes().is_empty());
    assert_ordered(&devnet);
}

/// The program: its flags, its database, its status, and an end in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn i13_the_program_follows_or_derives_and_never_both() {
    let devnet = network().await;
    let source = Source::of(&devnet);
    source.says(said(&devnet, 24, 16));
    let follow = format!("--l2.follow.source={}", source.server.url);
    let both = program().args(["config", &follow, "--mode=blob"]).args(flags(&devnet)).output().unwrap();
    assert_eq!(both.status.code(), Some(2), "{}", String::from_utf8_lossy(&both.stderr));
    let recover = program().args(["recover", "--yes", &follow]).args(flags(&devnet)).output().unwrap();
    assert_eq!(recover.status.code(), Some(2), "{}", String::from_utf8_lossy(&recover.stderr));
    let check = program().args(["config", "--check", "--json", &follow]).args(flags(&devnet)).output().unwrap();
    let text = String::from_utf8_lossy(&check.stdout).into_owned();
    assert_eq!(check.status.code(), Some(0), "{text}");
    assert!(text.contains("follow.source"), "{text}");
    *source.config.lock().unwrap() = None;
    let check = program().args(["config", "--check", &follow]).args(flags(&devnet)).output().unwrap();
    assert_eq!(check.status.code(), Some(1));
}
