//! Batches are gathered ahead of their turn, and the world changes while four of them are under way: right before any one
//! request the local chain forks, L1 reorganises, or the worker is killed. What was gathered before must not count (P1, P6,
//! P8). The same where L1 is read in ranges of two batches, and the next ranges are read ahead too.

use std::sync::Arc;

use morph_deriver::devnet::faults::Server;
use morph_deriver::devnet::world::{ForkShape, World, WorldOptions};
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::flow::PollEnd;
use morph_deriver::types::{BatchIndex, Case};
use tokio::sync::Notify;

use crate::beside_geth::node_flow::{assert_chain, assert_promises};
use crate::support::rig::{Rig, cases};

/// Batches of eight blocks. The first one's turn starts the gathering of the other five.
const BATCHES: u64 = 6;
/// Between two requests that are tried.
const EVERY: u64 = 5;
/// L1 blocks of a range: all batches in one, or two batches.
const WHOLE: u64 = 500;
const NARROW: u64 = 4;
const ASKED: [Server; 4] = [Server::L1(0), Server::Beacon(0), Server::L2, Server::Engine];

/// What happens in the middle of the poll.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    /// The node's blocks from batch 3 on are others.
    Fork,
    /// The commits from batch 4 on move to other L1 blocks.
    Reorg,
    /// The worker goes away between two instructions and starts again.
    Kill,
}

fn world() -> World {
    let mut world = World::new(&WorldOptions { finalized_depth: 10_000, ..WorldOptions::default() }).unwrap();
    for _ in 0..BATCHES {
        world.produce(8).unwrap();
    }
    world.sync();
    world
}

async fn serve(world: &World) -> Devnet {
    Devnet::serve(world.clone(), DevnetOptions { refuse_unpaused_writes: true, ..DevnetOptions::default() })
        .await
        .unwrap()
}

fn reorganise(w: &mut World) {
    let commit = w.l1.find_tx(w.batches[3].tx).unwrap().0.header.number;
    let depth = w.l1.head() - commit + 1;
    let known = w.batches.clone();
    let dropped = w.reorg(depth);
    w.mine(1);
    w.resubmit(&dropped, &known).unwrap();
    w.mine(depth + 2);
}

/// Requests that an undisturbed worker makes until it has caught up.
async fn requests(world: &World, range: u64) -> u64 {
    let devnet = serve(world).await;
    let mut rig = Rig::with(&devnet, |s| s.fetch_range = range).await;
    let mut verified = Vec::new();
    loop {
        let report = rig.poll().await.unwrap();
        verified.extend(cases(&report));
        if report.end != PollEnd::Behind {
            break;
        }
    }
    assert_eq!(verified, (1..=BATCHES).map(|index| (index, Case::Consistent)).collect::<Vec<_>>());
    ASKED.iter().map(|server| devnet.http_requests(*server)).sum()
}

async fn change_before(change: Change, world: &World, range: u64, nth: u64) {
    let what = format!("{change:?} before request {nth}");
    let devnet = Arc::new(serve(world).await);
    let mut rig = Rig::with(&devnet, |s| s.fetch_range = range).await;
    let killed = Arc::new(Notify::new());
    let (at, dies) = (devnet.clone(), killed.clone());
    devnet.on_request(&ASKED, nth, move || match change {
        // Under a safe tag that stands above it, a fork of the node's own making breaks P2 by itself.
        Change::Fork => at.with(|w| {
            if w.node.safe().is_none_or(|safe| safe.number.get() < 17) {
                w.fork_at(17, ForkShape::ExtraTransaction).unwrap();
            }
        }),
        Change::Reorg => at.with(reorganise),
        Change::Kill => dies.notify_one(),
    });
    let mut verified = Vec::new();
    for _ in 0..40 {
        let before = rig.now;
        let outcome = tokio::select! {
            biased;
            () = killed.notified() => None,
            outcome = rig.poll() => Some(outcome),
        };
        match outcome {
            None => {
                rig.restart().await;
                rig.now = before;
            }
            Some(Ok(report)) => {
                verified.extend(cases(&report));
                if report.end == PollEnd::CaughtUp && rig.safe() == Some(8 * BATCHES) {
                    break;
                }
            }
            Some(Err(_)) => {}
        }
    }
    // A few polls more: what changed after the last verdict is seen at the next look, and read again range by range.
    for _ in 0..12 {
        if let Ok(report) = rig.poll().await {
            verified.extend(cases(&report));
        }
    }
    assert_chain(&devnet, &rig, 8 * BATCHES);
    assert_promises(&devnet);
    if change != Change::Kill {
        let last = verified.iter().rev().find(|(index, _)| *index == BATCHES);
        assert!(last.is_some(), "{what}: {verified:?}");
    }
    for index in 1..=BATCHES {
        let row = rig.ports.progress.batch(BatchIndex::new(index)).await.unwrap();
        let row = row.unwrap_or_else(|| panic!("{what}: batch {index} has no row"));
        let canonical = devnet.with(|w| {
            let batch = w.batches.iter().find(|batch| batch.index == index).unwrap();
            (batch.hash, w.l1.find_tx(batch.tx).unwrap().0.hash)
        });
        assert_eq!((row.hash, row.l1.hash), canonical, "{what}: batch {index}");
    }
}

async fn at_any_request(change: Change, range: u64) {
    let world = world();
    let all = requests(&world, range).await;
    assert!(all > 4 * EVERY, "{all} requests");
    for nth in (0..all).step_by(usize::try_from(EVERY).unwrap()) {
        change_before(change, &world, range, nth).await;
    }
}

#[tokio::test]
async fn e2_p1_a_fork_while_batches_are_gathered_ahead_is_healed_and_nothing_stale_counts() {
    at_any_request(Change::Fork, WHOLE).await;
}

#[tokio::test]
async fn b1_p8_a_reorg_while_batches_are_gathered_ahead_leaves_no_stale_row() {
    at_any_request(Change::Reorg, WHOLE).await;
}

#[tokio::test]
async fn p6_a_kill_while_batches_are_gathered_ahead_leaves_nothing_half_done() {
    at_any_request(Change::Kill, WHOLE).await;
}

#[tokio::test]
async fn e2_p1_a_fork_while_the_next_ranges_are_read_ahead_is_healed_and_nothing_stale_counts() {
    at_any_request(Change::Fork, NARROW).await;
}

#[tokio::test]
async fn b1_p8_a_reorg_while_the_next_ranges_are_read_ahead_leaves_no_stale_row() {
    at_any_request(Change::Reorg, NARROW).await;
}

#[tokio::test]
async fn p6_a_kill_while_the_next_ranges_are_read_ahead_leaves_nothing_half_done() {
    at_any_request(Change::Kill, NARROW).await;
}

/// Without a change, what is gathered of the ranges ahead counts: no commit is asked for twice, and no block.
#[tokio::test]
async fn what_is_gathered_over_the_border_of_a_range_is_asked_for_once() {
    let world = world();
    let devnet = serve(&world).await;
    let mut rig = Rig::with(&devnet, |s| s.fetch_range = NARROW).await;
    while rig.poll().await.unwrap().end == PollEnd::Behind {}
    assert_eq!(rig.safe(), Some(8 * BATCHES));
    let asked = |method: &str| devnet.calls(Server::L1(0), method);
    assert_eq!(asked("eth_getTransactionByBlockHashAndIndex"), BATCHES);
    let raw = devnet.calls(Server::L2, "debug_getBlockRlp");
    assert!((8 * BATCHES..=8 * BATCHES + 2).contains(&raw), "{raw} blocks were read");
}
