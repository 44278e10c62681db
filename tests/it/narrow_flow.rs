//! An L1 provider that serves ten blocks of logs at a time and refuses every thirtieth request for more: a range, a revert
//! far above, an earlier commit and L1 messages far below all come to their end, piece by piece (M16).

use std::time::Duration;

use morph_deriver::decide::stall::Reason;
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::devnet::world::{World, WorldOptions};
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::flow::PollEnd;
use morph_deriver::flow::Settings;

use crate::support::rig::{Rig, reason};

/// Blocks that lie between what is read and what is looked for.
const FAR: u64 = 2_000;
/// Blocks of logs that the provider serves at a time. 500 is halved until it fits: seven.
const CAP: u64 = 10;
const LEARNT: u64 = 7;
/// Every so manieth request for logs is refused.
const LIMIT: u64 = 30;

async fn narrow(fill: impl FnOnce(&mut World)) -> Devnet {
    let world = WorldOptions { finalized_depth: 10_000, ..WorldOptions::default() };
    let devnet = Devnet::start(DevnetOptions { world, ..DevnetOptions::default() }).await.unwrap();
    devnet.with(fill);
    devnet.l1_knobs(0, |k| k.range_cap = Some(CAP));
    devnet.fault(Server::L1(0), Rule::on("eth_getLogs", Fault::RateLimited(None)).every(LIMIT));
    devnet
}

/// What a run of polls came to.
struct Polls {
    end: Option<PollEnd>,
    polls: u64,
    /// Polls that ended because they had searched for long enough.
    searching: u64,
    /// Most HTTP requests to all parties in one poll, the first one left out: it learns the width.
    most: u64,
}

/// Polls until nothing is left to be read. A poll may fail, since the provider refuses.
async fn to_the_end(rig: &mut Rig, devnet: &Devnet) -> Polls {
    let mut seen = Polls { end: None, polls: 0, searching: 0, most: 0 };
    for _ in 0..1_000 {
        let before = devnet.all_http_requests();
        let outcome = rig.poll().await;
        seen.polls += 1;
        if seen.polls > 1 {
            seen.most = seen.most.max(devnet.all_http_requests() - before);
        }
        let status = rig.worker.status();
        let stall = status.borrow().stall.as_ref().map(|s| s.reason());
        match outcome {
            Ok(report) if report.end == PollEnd::Behind => {}
            Ok(report) => {
                seen.end = Some(report.end);
                return seen;
            }
            Err(error) => {
                let found = error.stall().reason();
                assert!(matches!(found, Reason::SearchingL1 | Reason::L1Unavailable), "{error}");
                assert_eq!(stall, Some(found), "the status shows it");
                seen.searching += u64::from(found == Reason::SearchingL1);
            }
        }
    }
    seen
}

fn logs_asked(devnet: &Devnet) -> u64 {
    devnet.calls(Server::L1(0), "eth_getLogs")
}

/// Requests for logs of so many blocks: each piece once, besides refusals and what learning the width costs.
fn enough_for(blocks: u64) -> u64 {
    let pieces = blocks.div_ceil(LEARNT);
    pieces + pieces.div_ceil(LIMIT - 1) * 2 + 60
}

#[tokio::test]
async fn m16_a3_an_ordinary_range_is_read_piece_by_piece() {
    let devnet = narrow(|w| {
        w.produce(8).unwrap();
        w.mine(FAR);
        w.produce(8).unwrap();
        w.sync();
    })
    .await;
    let mut rig = Rig::on(&devnet).await;
    let seen = to_the_end(&mut rig, &devnet).await;
    assert_eq!((seen.end, rig.safe()), (Some(PollEnd::CaughtUp), Some(16)));
    let blocks = devnet.with(|w| w.l1.head());
    assert!(logs_asked(&devnet) <= enough_for(blocks), "{} for {blocks} blocks", logs_asked(&devnet));
    assert!(seen.most <= 20, "{} requests in one poll", seen.most);
}

#[tokio::test]
async fn m16_p9_a_revert_thousands_of_blocks_away_is_found_and_the_tags_do_not_wait() {
    let devnet = narrow(|w| {
        w.produce(8).unwrap();
        w.produce(8).unwrap();
        w.sync();
        w.mine(FAR);
        w.revert(2).unwrap();
        w.mine(3);
    })
    .await;
    // One call a poll.
    let brief = |s: &mut Settings| s.search_time = Duration::ZERO;
    let mut rig = Rig::with(&devnet, brief).await;
    // Batch 2 is looked for from its commit on; until its revert is found nothing is said about it.
    let mut waits = 0;
    while rig.poll().await.is_ok() && waits < 10 {
        waits += 1;
    }
    assert_eq!(rig.safe(), Some(8));
    // Another writer moves the node's tag meanwhile: it is put right by the next poll, found or not.
    let genesis = devnet.l2_genesis();
    devnet.with(|w| w.node.set_block_tags(genesis, genesis).unwrap());
    let _ = rig.poll().await;
    assert_eq!(devnet.heads().safe.map(|s| s.number.get()), Some(8), "tags are set while it searches");
    devnet.clear_counts();
    let seen = to_the_end(&mut rig, &devnet).await;
    assert_eq!((seen.end, rig.safe()), (Some(PollEnd::CaughtUp), Some(8)));
    assert!(seen.searching > 0, "it took more than one poll's time, of {}", seen.polls);
    // Once for the search, once for reading the blocks in between; and each poll that searches reads the range at which it
    // stands once more, as many pieces as it searches.
    assert!(logs_asked(&devnet) <= 3 * enough_for(FAR), "{} requests", logs_asked(&devnet));
    let row = rig.ports.progress.batch(2.into()).await.unwrap();
    assert_eq!(row, None, "it was never looked at");
}

#[tokio::test]
async fn m16_an_earlier_commit_and_messages_far_below_the_start_are_found() {
    let devnet = narrow(|w| {
        w.produce(8).unwrap();
        w.enqueue(2).unwrap();
        w.mine(1);
        w.mine(FAR);
        w.build(8).unwrap();
        w.commit(morph_deriver::devnet::chain::BatchSpec::default()).unwrap();
        w.mine(1);
        w.sync_to(8);
    })
    .await;
    // The database starts below the second commit; what its blocks consume was queued far below.
    let start = devnet.with(|w| w.l1.head() - 3);
    let mut rig = Rig::with(&devnet, |s| {
        s.start = start.into();
        s.search_time = Duration::ZERO;
        s.assume = Some(morph_deriver::decide::liveness::HeadTrend::Stopped);
    })
    .await;
    let seen = to_the_end(&mut rig, &devnet).await;
    assert_eq!((seen.end, rig.safe()), (Some(PollEnd::CaughtUp), Some(16)));
    assert_eq!(devnet.heads().local, devnet.heads().sequencer);
    assert!(seen.searching > 0, "it took more than one poll's time, of {}", seen.polls);
    assert!(logs_asked(&devnet) <= 2 * enough_for(FAR), "{} requests", logs_asked(&devnet));
}

/// One piece a poll, and every second poll fails before it comes to the search: still it ends.
#[tokio::test]
async fn m16_p4_a_search_survives_polls_that_never_came_to_it() {
    let devnet = narrow(|w| {
        w.produce(8).unwrap();
        w.produce(8).unwrap();
        w.sync();
        w.mine(500);
        w.revert(2).unwrap();
        w.mine(3);
    })
    .await;
    let mut rig = Rig::with(&devnet, |s| s.search_time = Duration::ZERO).await;
    let mut searching = 0;
    for _ in 0..200 {
        let report = rig.poll().await;
        if report.as_ref().is_ok_and(|report| report.end == PollEnd::CaughtUp) {
            break;
        }
        let stall = rig.worker.status().borrow().stall.as_ref().map(|stall| stall.reason());
        searching += u64::from(stall == Some(Reason::SearchingL1));
        devnet.fault(Server::L2, Rule::always(Fault::Drop));
        rig.poll().await.unwrap_err();
        devnet.heal(Server::L2);
    }
    assert_eq!(rig.safe(), Some(8));
    assert!((3..60).contains(&searching), "it searched in {searching} polls");
}

/// The window of a search is cut short by a fault of every single request after the first one: still it ends.
#[tokio::test]
async fn m16_p4_a_search_ends_although_every_second_request_is_refused() {
    let devnet = narrow(|w| {
        w.produce(8).unwrap();
        w.produce(8).unwrap();
        w.sync();
        w.mine(200);
        w.revert(2).unwrap();
        w.mine(3);
    })
    .await;
    devnet.heal(Server::L1(0));
    devnet.fault(Server::L1(0), Rule::on("eth_getLogs", Fault::RateLimited(None)).every(2));
    let mut rig = Rig::on(&devnet).await;
    let seen = to_the_end(&mut rig, &devnet).await;
    assert_eq!((seen.end, rig.safe()), (Some(PollEnd::CaughtUp), Some(8)));
    assert_eq!(reason(&rig.poll().await.unwrap()), None);
}
