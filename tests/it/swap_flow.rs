//! L1 becomes another chain right before any one request of a poll: by one endpoint that reorganises, and by another
//! endpoint on another fork that answers from there on (M4).

use std::sync::Arc;
use std::time::Duration;

use morph_deriver::decide::stall::Reason;
use morph_deriver::devnet::chain::BatchSpec;
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::devnet::jsonrpc::RpcError;
use morph_deriver::devnet::world::{World, WorldOptions};
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::error::Severity;
use morph_deriver::flow::PollEnd;
use morph_deriver::flow::Settings;

use crate::support::rig::{Rig, rig_over_two};

/// What the other fork holds in place of the commit of batch 3.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Other {
    /// The same commit, a block later.
    Moved,
    /// Nothing.
    Dropped,
    /// A commit of other blocks under the same index, in the L1 block of the old commit.
    Replaced,
}

/// How it comes that L1 is another chain.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    /// The one endpoint reorganises.
    Reorg,
    /// The first endpoint fails from now on, the second one is on the other fork.
    Failover,
}

/// In which poll.
#[derive(Clone, Copy, Debug, PartialEq)]
enum In {
    /// The first one: nothing is recorded yet.
    First,
    /// A later one, whose cursor has finished its block.
    AtTheEnd,
    /// A later one, whose cursor is inside the block of batch 3's commit: batch 4 waits for its blocks.
    Inside,
}

const OTHERS: [Other; 3] = [Other::Moved, Other::Dropped, Other::Replaced];

/// Blocks of the reorg window: small, because every header of it is one request before which L1 may change.
const WINDOW: u64 = 12;

/// L1 before the change: two batches far below, batch 3 near the top, for `Inside` batch 4 above it.
fn world(when: In) -> World {
    let mut world = World::new(&WorldOptions { finalized_depth: 10_000, ..WorldOptions::default() }).unwrap();
    world.produce(8).unwrap();
    world.produce(8).unwrap();
    world.mine(20);
    world.produce(8).unwrap();
    world.sync();
    if when == In::Inside {
        world.produce(8).unwrap();
    }
    world.mine(2);
    world
}

fn commit_block(world: &World, nth: usize) -> u64 {
    world.l1.find_tx(world.batches[nth].tx).unwrap().0.header.number
}

/// Everything from the block of batch 3's commit on becomes another chain, two blocks longer than before.
fn become_other(w: &mut World, other: Other) {
    let depth = w.l1.head() - commit_block(w, 2) + 1;
    let known = w.batches.clone();
    let dropped = w.reorg(depth);
    match other {
        Other::Moved => {
            w.mine(1);
            w.resubmit(&dropped, &known).unwrap();
        }
        // What batch 4 consumed is no longer queued.
        Other::Dropped => w.sequencer.node.truncate(24),
        Other::Replaced => {
            w.sequencer.node.truncate(16);
            w.build(7).unwrap();
            w.commit(BatchSpec::default()).unwrap();
        }
    }
    w.mine(depth + 2);
}

struct Case {
    other: Other,
    by: By,
    when: In,
}

/// The worker before the poll in which L1 changes.
async fn before_the_poll(case: &Case, world: &World) -> (Devnet, Rig) {
    let options = DevnetOptions { l1_endpoints: 2, ..DevnetOptions::default() };
    let devnet = Devnet::serve(world.clone(), options).await.unwrap();
    if case.other == Other::Dropped {
        // The contract would show that something is missing: here the logs have to.
        let refused = RpcError { code: -32000, message: "eth_call is switched off".to_owned() };
        devnet.fault(Server::L1(0), Rule::on("eth_call", Fault::Error(refused.clone())));
        devnet.fault(Server::L1(1), Rule::on("eth_call", Fault::Error(refused)));
    }
    let change = |s: &mut Settings| {
        s.reorg_window = WINDOW;
        // Batch 4 is waited for, and not filled in.
        s.observation_window = Duration::from_secs(3600);
    };
    let mut rig = match case.by {
        By::Reorg => Rig::with(&devnet, change).await,
        By::Failover => rig_over_two(&devnet, change).await,
    };
    if case.when != In::First {
        rig.settle().await;
        assert_eq!(rig.safe(), Some(24));
        devnet.with(|w| w.mine(3));
    }
    (devnet, rig)
}

/// Requests that the poll makes of L1 if nothing changes.
async fn requests(case: &Case, world: &World) -> u64 {
    let (devnet, mut rig) = before_the_poll(case, world).await;
    devnet.clear_counts();
    rig.poll().await.unwrap();
    devnet.calls(Server::L1(0), "")
}

/// Right before request `nth` of a poll L1 is another chain. After a few polls everything is on that one.
async fn swap_before(case: &Case, world: &World, nth: u64) {
    let what = format!("{:?} by {:?} before request {nth} of poll {:?}", case.other, case.by, case.when);
    let (devnet, mut rig) = before_the_poll(case, world).await;
    let other = case.other;
    match case.by {
        By::Reorg => devnet.on_call(Server::L1(0), "", nth, move |w| become_other(w, other)),
        By::Failover => {
            let stays = devnet.with(|w| {
                let stays = Arc::new(w.l1.clone());
                become_other(w, other);
                stays
            });
            devnet.l1_knobs(0, |k| k.chain = Some(stays));
            devnet.fault(Server::L1(0), Rule::always(Fault::Status(503, String::new())).after(nth - 1));
        }
    }
    let mut last = None;
    for _ in 0..5 {
        last = match rig.poll().await {
            Ok(report) => Some(report.end),
            Err(error) => {
                assert!(error.severity() <= Severity::Reset, "{what}: {error}");
                None
            }
        };
    }
    let waits = other == Other::Moved && case.when == In::Inside;
    assert!(waits || last == Some(PollEnd::CaughtUp), "{what}: {last:?}");
    let expected = match other {
        Other::Moved => 24,
        Other::Dropped => 16,
        Other::Replaced => 23,
    };
    assert_eq!(rig.safe(), Some(expected), "{what}");
    assert_eq!(devnet.heads().safe.map(|s| s.number.get()), Some(expected), "{what}");
    let row = rig.ports.progress.batch(3.into()).await.unwrap().map(|r| (r.hash, r.l1.hash));
    let canonical = devnet.with(|w| w.batches.get(2).map(|b| (b.hash, w.l1.find_tx(b.tx).unwrap().0.hash)));
    assert_eq!(row, canonical, "{what}: the row lies on the chain that there is");
    if case.when != In::First {
        assert!(rig.worker.status().borrow().reorgs >= 1, "{what}");
    }
    // The next batch continues what is stored.
    devnet.with(|w| {
        w.build(4).unwrap();
        w.commit(BatchSpec::default()).unwrap();
        w.mine(1);
        w.sync();
    });
    assert_eq!(rig.settle().await.end, PollEnd::CaughtUp, "{what}");
    let head = devnet.with(|w| w.sequencer.node.head().number());
    assert_eq!(rig.safe(), Some(head), "{what}");
    assert!(devnet.moments().iter().all(|m| m.is_ordered()), "{what}");
}

async fn swap_before_every_request(by: By, when: In) {
    let world = world(when);
    for other in OTHERS {
        let case = Case { other, by, when };
        let requests = requests(&case, &world).await;
        assert!(requests > 10, "{requests}");
        for nth in 1..=requests {
            swap_before(&case, &world, nth).await;
        }
    }
}

#[tokio::test]
async fn m4_b1_a_reorg_before_any_request_of_the_first_poll() {
    swap_before_every_request(By::Reorg, In::First).await;
}

#[tokio::test]
async fn m4_b1_a_reorg_before_any_request_of_a_later_poll() {
    swap_before_every_request(By::Reorg, In::AtTheEnd).await;
}

#[tokio::test]
async fn m4_b1_a_reorg_before_any_request_of_a_poll_that_begins_inside_a_block() {
    swap_before_every_request(By::Reorg, In::Inside).await;
}

#[tokio::test]
async fn m4_j5_another_fork_answers_from_any_request_of_the_first_poll_on() {
    swap_before_every_request(By::Failover, In::First).await;
}

#[tokio::test]
async fn m4_j5_another_fork_answers_from_any_request_of_a_later_poll_on() {
    swap_before_every_request(By::Failover, In::AtTheEnd).await;
}

#[tokio::test]
async fn m4_j5_another_fork_answers_from_any_request_of_a_poll_that_begins_inside_a_block() {
    swap_before_every_request(By::Failover, In::Inside).await;
}

/// The first endpoint leaves out the newest commit; the one that is asked in its place, in the same poll, is on another
/// fork.
#[tokio::test]
async fn m4_c6_an_endpoint_that_is_asked_about_a_hole_is_on_another_fork() {
    for other in OTHERS {
        let case = Case { other, by: By::Failover, when: In::AtTheEnd };
        let (devnet, mut rig) = before_the_poll(&case, &world(In::AtTheEnd)).await;
        devnet.heal(Server::L1(0));
        devnet.heal(Server::L1(1));
        let hides = devnet.with(|w| {
            let honest = w.clone();
            w.build(8).unwrap();
            w.commit(BatchSpec::default()).unwrap();
            w.mine(1);
            let hides = w.l1.clone();
            *w = honest;
            become_other(w, other);
            hides
        });
        devnet.l1_knobs(0, |k| {
            k.chain = Some(Arc::new(hides));
            k.hidden_commits = [4].into();
        });
        let error = rig.poll().await.unwrap_err();
        assert_eq!((error.severity(), error.stall().reason()), (Severity::Reset, Reason::L1Reorg), "{other:?}");
        assert_eq!(rig.settle().await.end, PollEnd::CaughtUp, "{other:?}");
        let expected = match other {
            Other::Moved => 24,
            Other::Dropped => 16,
            Other::Replaced => 23,
        };
        assert_eq!(rig.safe(), Some(expected), "{other:?}");
        assert_eq!(rig.worker.status().borrow().reorgs, 1, "{other:?}");
    }
}
