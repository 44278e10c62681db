//! The world contradicts a repair at *every* request of the poll that makes it: the simulated network becomes another one
//! right before any one of them, L1 by a reorg, a lost commit or a revert, the node by lost blocks, another chain, refusals
//! or a replica that answers in its place. Whatever comes when, every block and every tag that the node ever showed a
//! reader is one of the committed chain, nothing is written outside a pause, every pause ends in a resume, and the end is
//! that of a run that nothing disturbed (P1, P2, P4, P5, B1, E19, M1, M3, M7).
//!
//! As in `contradiction.rs`, a contradiction strikes before those requests that can see it: no other one makes a difference.
//! There the recorded network is contradicted; here L1 can take batches away, and reactors are paused.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use morph_deriver::decide::liveness::HeadTrend;
use morph_deriver::devnet::Devnet;
use morph_deriver::devnet::chain::BatchSpec;
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::devnet::jsonrpc::RpcError;
use morph_deriver::devnet::node::Node;
use morph_deriver::devnet::world::{ForkShape, World, WorldOptions};
use morph_deriver::flow::PollEnd;
use morph_deriver::types::L2Ref;

use super::CLIENT;
use crate::support::rig::{Rig, options, world_options};

/// What is to be repaired in the poll that is contradicted: batch 2, blocks 4 to 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repair {
    /// Block 5 is another one: a rewrite.
    SelfHeal,
    /// Blocks 5 and 6 are missing, and the chain is taken for stopped.
    FillGap,
    /// Nothing: the chain is right and two blocks longer.
    Nothing,
}

/// What contradicts the poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contradiction {
    /// The commit of batch 2 is in another L1 block.
    L1Moves,
    /// It is gone, and comes again when all is well again.
    L1Drops,
    /// Another batch 2, of other blocks, is in its place.
    L1Replaces,
    /// L1 reverts batch 2, and commits it again when all is well again.
    L1Reverts,
    /// L1 reverts it and commits it again at once.
    L1RevertsAndRecommits,
    /// L1 answers 503 for three requests.
    L1Refuses,
    /// The node is killed: its head falls to block 3.
    L2Loses,
    /// The node is on another chain from block 4 on.
    L2Swapped,
    /// The node takes no write for two calls.
    L2RefusesWrites,
    /// The node writes, and the answer is lost.
    L2LosesAnswer,
    /// The node answers 503 for three requests.
    L2Refuses,
    /// Another node, which ends at block 3, answers in place of the reader's.
    L2Replica,
    /// The reactors answer 503 twice.
    ReactorsRefuse,
}

use Contradiction::{
    L1Drops, L1Moves, L1Refuses, L1Replaces, L1Reverts, L1RevertsAndRecommits, L2Loses, L2LosesAnswer, L2Refuses,
    L2RefusesWrites, L2Replica, L2Swapped, ReactorsRefuse,
};

const L1: Server = Server::L1(0);

impl Contradiction {
    /// The requests that can see it.
    fn seen_by(self) -> &'static [Server] {
        match self {
            L1Moves | L1Drops | L1Replaces | L1Reverts | L1RevertsAndRecommits => &[L1, Server::Beacon(0)],
            L1Refuses => &[L1],
            L2Loses | L2Swapped => &[Server::L2, Server::Engine],
            L2RefusesWrites | L2LosesAnswer => &[Server::Engine],
            L2Refuses | L2Replica => &[Server::L2],
            ReactorsRefuse => &[Server::Reactors],
        }
    }

    /// A node that falls or is swapped breaks the order of its heads by itself (P2).
    fn breaks_order(self) -> bool {
        matches!(self, L2Loses | L2Swapped)
    }
}

/// The world before the poll: the worker has verified batch 1, and batch 2 is committed.
fn shape(world: &mut World, repair: Repair) {
    world.produce(3).unwrap();
    world.build(2).unwrap();
    world.mine(1);
    match repair {
        Repair::SelfHeal => {
            world.sync_to(6);
            world.fork_at(5, ForkShape::ExtraTransaction).unwrap();
        }
        Repair::FillGap => world.sync_to(4),
        Repair::Nothing => world.sync(),
    }
}

/// Where every run ends: batch 2's last block.
const LAST: u64 = 6;

/// The sequencer's chain up to there.
fn chain(devnet: &Devnet) -> Vec<L2Ref> {
    devnet.with(|w| (0..=LAST).filter_map(|number| w.expected(number)).collect())
}

/// One run's network.
struct Scene {
    devnet: Devnet,
    what: Option<Contradiction>,
    struck: AtomicBool,
    /// Moments of the node before the strike.
    moments: AtomicUsize,
    replica: Node,
    /// The chain that L1 has committed to before the strike.
    committed: Vec<L2Ref>,
}

impl Scene {
    /// Strikes once.
    fn strike(&self) {
        let Some(what) = self.what.filter(|_| !self.struck.swap(true, Ordering::SeqCst)) else { return };
        self.moments.store(self.devnet.moments().len(), Ordering::SeqCst);
        let error = |text: &str| Fault::Error(RpcError::server(text));
        let busy = || Fault::Status(503, "busy".to_owned());
        match what {
            L1Moves | L1Drops | L1Replaces => self.devnet.with(|w| {
                let known = w.batches.clone();
                let dropped = w.reorg(2);
                if what == L1Moves {
                    w.mine(1);
                    w.resubmit(&dropped, &known).unwrap();
                } else if what == L1Replaces {
                    w.sequencer.node.truncate(3);
                    w.build(3).unwrap();
                    w.commit(BatchSpec::default()).unwrap();
                }
                w.mine(4);
            }),
            L1Reverts | L1RevertsAndRecommits => self.devnet.with(|w| {
                w.revert(2).unwrap();
                w.mine(1);
                if what == L1RevertsAndRecommits {
                    w.recommit_state().unwrap();
                    w.mine(1);
                }
            }),
            L1Refuses => self.devnet.fault(L1, Rule::always(busy()).times(3)),
            L2Loses => self.devnet.with(|w| w.node.kill(3)),
            L2Swapped => self.devnet.with(|w| {
                // On a node that holds no block 4 yet there is nothing to swap.
                if w.node.head().number() >= 4 {
                    w.fork_at(4, ForkShape::Timestamp).unwrap();
                }
            }),
            L2RefusesWrites => {
                let rule = Rule::on("engine_newSafeL2Block", error("no space left on device"));
                self.devnet.fault(Server::Engine, rule.times(2));
            }
            L2LosesAnswer => {
                let rule = Rule::on("engine_newSafeL2Block", Fault::DropAfter);
                self.devnet.fault(Server::Engine, rule.times(1));
            }
            L2Refuses => self.devnet.fault(Server::L2, Rule::always(busy()).times(3)),
            L2Replica => self.devnet.read_from(Some(self.replica.clone())),
            ReactorsRefuse => self.devnet.fault(Server::Reactors, Rule::always(busy()).times(2)),
        }
    }

    /// All faults end: batch 2 is on L1 and becomes final.
    fn settle(&self) {
        for server in [L1, Server::Beacon(0), Server::L2, Server::Engine, Server::Reactors] {
            self.devnet.heal(server);
        }
        self.devnet.read_from(None);
        self.devnet.with(|w| {
            if w.batches.len() == 1 && w.reverted.is_empty() {
                w.commit(BatchSpec { last: Some(LAST), ..BatchSpec::default() }).unwrap();
            } else if w.batches.len() == 1 {
                w.recommit_state().unwrap();
            }
            w.mine(10);
        });
    }

    fn requests(&self, what: Contradiction) -> u64 {
        what.seen_by().iter().map(|server| self.devnet.http_requests(*server)).sum()
    }

    /// What a reader of the node was shown: only blocks of the committed chain, finalized never back, and in order but from
    /// the strike of a node that broke the order by itself to the end of the next poll, the moment `right`.
    fn assert_shown(&self, right: usize, what: &str) {
        let committed: HashSet<_> = self.committed.iter().copied().chain(chain(&self.devnet)).collect();
        let broken = self.moments.load(Ordering::SeqCst)..right;
        let exempt = |at: usize| self.what.is_some_and(Contradiction::breaks_order) && broken.contains(&at);
        let mut finalized = None;
        for (at, moment) in self.devnet.moments().iter().enumerate() {
            assert!(moment.is_ordered() || exempt(at), "{what}: moment {at}, struck from {broken:?}: {moment:?}");
            for tag in [moment.safe, moment.finalized].into_iter().flatten() {
                assert!(committed.contains(&tag), "{what}: moment {at}: {moment:?}");
            }
            let now = moment.finalized.map(|tag| tag.number);
            // morph-reth forgets its finalized tag in a kill.
            let forgotten = now.is_none() && exempt(at) && CLIENT.is_reth();
            assert!(now >= finalized || forgotten, "{what}: finalized moved back to {moment:?}");
            finalized = now.max(finalized);
        }
    }
}

/// One run. Gives how many requests the contradicted poll made that see each of `of`.
async fn run(base: &World, repair: Repair, strike: Option<(Contradiction, u64)>, of: &[Contradiction]) -> Vec<u64> {
    let what = format!("{repair:?}, {strike:?}");
    let devnet = Devnet::serve(base.clone(), options(CLIENT)).await.unwrap();
    let mut rig = Rig::with(&devnet, |settings| settings.assume = Some(HeadTrend::Stopped)).await;
    rig.settle().await;
    assert_eq!(rig.safe(), Some(3), "{what}");
    let replica = devnet.with(|w| w.node.clone());
    devnet.with(|w| shape(w, repair));
    devnet.clear_counts();
    let (struck, moments) = (AtomicBool::new(false), AtomicUsize::new(0));
    let what_strikes = strike.map(|(what, _)| what);
    let committed = chain(&devnet);
    let scene = Arc::new(Scene { devnet, what: what_strikes, struck, moments, replica, committed });
    if let Some((what, nth)) = strike {
        let weak = Arc::downgrade(&scene);
        scene.devnet.on_request(what.seen_by(), nth, move || {
            if let Some(scene) = weak.upgrade() {
                scene.strike();
            }
        });
    }
    let _ = rig.poll().await;
    let requests = of.iter().map(|what| scene.requests(*what)).collect();
    // A poll that took fewer requests than the undisturbed one is struck after its end.
    scene.strike();
    assert_eq!(chain(&scene.devnet) != scene.committed, what_strikes == Some(L1Replaces), "{what}: L1's chain");
    let _ = rig.poll().await;
    let right = scene.devnet.moments().len();
    scene.settle();
    // A resume that was refused is tried again after a while, on the wall clock.
    rig.worker.quiesce().idle(RUN_LIMIT / 4).await;
    let is_right = |rig: &Rig| (rig.safe(), rig.finalized()) == (Some(LAST), Some(LAST)) && !scene.devnet.is_paused();
    for _ in 0..40 {
        let report = rig.poll().await;
        if is_right(&rig) && report.is_ok_and(|report| report.end == PollEnd::CaughtUp) {
            break;
        }
    }
    let stall = rig.worker.status().borrow().stall.clone();
    assert!(is_right(&rig), "{what}: safe {:?}, finalized {:?}, {stall:?}", rig.safe(), rig.finalized());
    let (heads, wanted) = (scene.devnet.heads(), scene.devnet.with(|w| w.expected(LAST)));
    assert_eq!((heads.safe, heads.finalized), (wanted, wanted), "{what}");
    scene.devnet.with(|w| {
        for number in 0..=LAST {
            assert_eq!(w.node.at(number).map(|b| b.l2_ref()), w.expected(number), "{what}: block {number}");
        }
    });
    scene.assert_shown(right, &what);
    assert_eq!(scene.devnet.unpaused_writes(), Vec::<u64>::new(), "{what}: written outside a pause");
    assert!(scene.devnet.resumes() >= scene.devnet.pauses(), "{what}: a pause without a resume");
    if repair == Repair::Nothing && what_strikes != Some(L1Replaces) {
        assert_eq!(scene.devnet.written(), Vec::<u64>::new(), "{what}");
        assert_eq!(heads.local.number.get(), LAST + 2, "{what}: the head fell");
    }
    requests
}

/// Runs at work at the same time: most of a run is waiting.
const AT_ONCE: usize = 8;

/// Longest time for one run: a run that hangs is a failure and no wait.
const RUN_LIMIT: Duration = Duration::from_secs(120);

/// Each of `contradictions` before every request of the poll that sees it.
async fn at_every_request(repair: Repair, contradictions: &[Contradiction]) {
    let mut base = World::new(&WorldOptions { finalized_depth: 4, ..world_options(CLIENT) }).unwrap();
    base.produce(3).unwrap();
    base.sync();
    let base = Arc::new(base);
    let requests = run(&base, repair, None, contradictions).await;
    let cases: Vec<_> = contradictions
        .iter()
        .zip(requests)
        .flat_map(|(what, requests)| {
            assert!(requests > 0, "{repair:?}: nothing sees {what:?}");
            (0..requests).map(|nth| (*what, nth))
        })
        .collect();
    println!("{repair:?}: {} runs", cases.len());
    let one = |case: (Contradiction, u64)| {
        let base = Arc::clone(&base);
        async move {
            let run = tokio::spawn(async move {
                let run = run(&base, repair, Some(case), &[]);
                tokio::time::timeout(RUN_LIMIT, run).await.expect("a run that hangs")
            });
            run.await.err().map(|_| case)
        }
    };
    let ended: Vec<_> = stream::iter(cases).map(one).buffer_unordered(AT_ONCE).collect().await;
    let failed: Vec<_> = ended.into_iter().flatten().collect();
    assert!(failed.is_empty(), "{repair:?}: {failed:?}");
}

const BY_L1: [Contradiction; 6] = [L1Moves, L1Drops, L1Replaces, L1Reverts, L1RevertsAndRecommits, L1Refuses];

const BY_THE_NODE: [Contradiction; 7] =
    [L2Loses, L2Swapped, L2RefusesWrites, L2LosesAnswer, L2Refuses, L2Replica, ReactorsRefuse];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b1_m3_m4_a_self_heal_ends_the_same_whatever_contradicts_l1_and_when() {
    at_every_request(Repair::SelfHeal, &BY_L1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e19_m1_m7_a_self_heal_ends_the_same_whatever_contradicts_the_node_and_when() {
    at_every_request(Repair::SelfHeal, &BY_THE_NODE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b1_m3_m4_a_fill_gap_ends_the_same_whatever_contradicts_l1_and_when() {
    at_every_request(Repair::FillGap, &BY_L1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e19_m1_m7_a_fill_gap_ends_the_same_whatever_contradicts_the_node_and_when() {
    at_every_request(Repair::FillGap, &BY_THE_NODE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m7_a_reader_swapped_for_a_replica_that_lags_at_any_request_has_nothing_written() {
    at_every_request(Repair::Nothing, &[L2Replica, L2Refuses]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b1_m3_m4_a_chain_in_step_follows_l1_whatever_contradicts_it_and_when() {
    at_every_request(Repair::Nothing, &BY_L1).await;
}
