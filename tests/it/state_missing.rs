//! A rewrite whose parent's state the execution node no longer has (M30). go-ethereum keeps the newest states in memory
//! and loses them at a restart without archive mode; morph-reth writes every state to disk and prunes only far below, so
//! this is tried beside go-ethereum alone.

use morph_deriver::decide::liveness::HeadTrend;
use morph_deriver::decide::stall::{Cause, Reason, StateMissing};
use morph_deriver::devnet::client::Client;
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::devnet::jsonrpc::RpcError;
use morph_deriver::devnet::world::{ForkShape, WorldOptions};
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::types::Case;

use super::interrupted_flow::{journal, rows};
use super::node_flow::{assert_chain, assert_promises, batch, heights, stall_of};
use super::writer_flow::steady;
use crate::support::rig::{Rig, STEP, cases, options, reason, world_options};

/// Twenty-five batches of eight blocks, nothing final on L1, and a node without archive mode that has all of them and was
/// restarted: it has the states of 0, 73, 74, 199 and 200. Then its chain forks at 150.
async fn forked_after_a_restart() -> Devnet {
    let world = WorldOptions { finalized_depth: 1_000_000, ..world_options(Client::Geth) };
    let options = DevnetOptions { world, refuse_unpaused_writes: true, ..options(Client::Geth) };
    let devnet = Devnet::start(options).await.unwrap();
    devnet.with(|w| {
        (0..25).for_each(|_| batch(w));
        w.sync();
        w.node.moods.archive = false;
        w.node.restart();
        w.fork_at(150, ForkShape::OtherTransaction).unwrap();
    });
    devnet.clear_counts();
    devnet
}

fn marked(devnet: &Devnet, height: u64) {
    devnet.with(|w| {
        let tag = w.node.at(height).unwrap().hash();
        w.node.set_block_tags(tag, tag).unwrap();
    });
    devnet.clear_counts();
}

#[tokio::test]
async fn m30_a_fork_on_a_state_that_is_gone_is_healed_from_the_nearest_older_one_in_one_pause() {
    let devnet = forked_after_a_restart().await;
    marked(&devnet, 60);
    let mut rig = Rig::with(&devnet, |s| s.assume = Some(HeadTrend::Stopped)).await;
    let report = rig.settle().await;
    let healed: Vec<_> = cases(&report).into_iter().filter(|(_, case)| *case != Case::Consistent).collect();
    let filled = (20..=25).map(|index| (index, Case::FillGap));
    assert_eq!(healed, [(19, Case::SelfHeal)].into_iter().chain(filled).collect::<Vec<_>>());
    assert_eq!(devnet.written(), (75..=200).collect::<Vec<_>>(), "from the nearest state on, each block once");
    assert_eq!((devnet.pauses(), devnet.resumes()), (1, 1));
    assert_chain(&devnet, &rig, 200);
    assert_promises(&devnet);
    assert!(devnet.moments().iter().all(|m| m.finalized.is_some_and(|f| f.number.get() == 60)));
    let journal = rig.ports.progress.journal_tail(200).await.unwrap();
    let again: Vec<_> = journal.iter().filter(|e| e.old_hash == Some(e.new_hash)).map(|e| e.number.get()).collect();
    assert_eq!(again, (75..150).rev().collect::<Vec<_>>(), "every write is in the journal");
}

#[tokio::test]
async fn m30_if_no_state_above_finalized_is_left_it_halts_and_looks_again() {
    let devnet = forked_after_a_restart().await;
    marked(&devnet, 75);
    let mut rig = Rig::on(&devnet).await;
    for _ in 0..3 {
        assert_eq!(reason(&rig.settle_stopped().await), Some(Reason::StateMissing));
    }
    let stall = rig.worker.status().borrow().stall.clone().unwrap();
    let Cause::StateMissing(StateMissing::NoneKept { skip, .. }) = stall.cause else { panic!("{stall:?}") };
    assert_eq!(skip.get(), 149);
    assert!(devnet.writes().is_empty());
    assert_eq!(devnet.pauses(), 0);
    devnet.with(|w| w.node.moods.archive = true);
    rig.settle().await;
    assert_eq!(devnet.written(), (150..=200).collect::<Vec<_>>());
    assert_chain(&devnet, &rig, 200);
    assert_promises(&devnet);
}

#[tokio::test]
async fn m30_nothing_before_the_switch_is_written_again() {
    let devnet = forked_after_a_restart().await;
    let switch = devnet.with(|w| w.node.at(100).unwrap().header.timestamp) * 1000;
    let mut rig = Rig::with(&devnet, |s| s.switch_ms = switch).await;
    assert_eq!(reason(&rig.settle_stopped().await), Some(Reason::StateMissing));
    assert!(devnet.writes().is_empty());
    assert_eq!(devnet.pauses(), 0);
}

#[tokio::test]
async fn m30_a_node_that_cannot_be_asked_for_its_states_is_tried_as_it_is() {
    let devnet = forked_after_a_restart().await;
    let deaf = Fault::Error(RpcError::no_method("eth_getBalance"));
    devnet.fault(Server::L2, Rule::on("eth_getBalance", deaf));
    let mut rig = Rig::with(&devnet, |s| s.poll_interval = STEP).await;
    while rig.poll().await.is_ok() {}
    assert_eq!(stall_of(&rig), Some(Reason::EngineUnavailable));
    let numbers: Vec<_> = devnet.writes().iter().map(|w| w.number).collect();
    assert_eq!(numbers, [150]);
    assert_eq!(heights(&devnet).0, 200);
    assert_promises(&devnet);
}

#[tokio::test]
async fn m30_p6_interrupted_in_the_middle_it_is_a_node_that_lost_blocks() {
    for nth in [1, 2, 30, 80, 100] {
        let devnet = forked_after_a_restart().await;
        let mut rig = Rig::on(&devnet).await;
        devnet.fault(Server::Engine, Rule::on("engine_newSafe", Fault::Drop).after(nth).times(1));
        while rig.poll().await.is_ok() {}
        assert!(heights(&devnet).0 < 200 || nth == 1, "{nth}: cut off");
        rig.restart().await;
        rig.settle_stopped().await;
        assert_chain(&devnet, &rig, 200);
        let (_, safe, finalized) = heights(&devnet);
        assert_eq!((safe, finalized), (Some(200), None), "{nth}");
        assert!(devnet.unpaused_writes().is_empty());
        assert_eq!(devnet.pauses(), devnet.resumes());
    }
}

#[tokio::test]
async fn m30_an_equal_block_that_gets_another_hash_stops_it() {
    let devnet = forked_after_a_restart().await;
    devnet.with(|w| w.node.moods.wrong_state_from = Some(75));
    let mut rig = Rig::on(&devnet).await;
    let report = rig.settle().await;
    assert_eq!(reason(&report), Some(Reason::BlockRefused));
    assert_eq!(devnet.written(), [75], "the first one alone, and nothing on top of it");
    assert_eq!((devnet.pauses(), devnet.resumes()), (1, 1));
}

#[tokio::test]
async fn m30_p6_interrupted_in_the_middle_it_ends_in_the_same_rows_and_the_same_journal() {
    let undisturbed = {
        let devnet = forked_after_a_restart().await;
        let mut rig = Rig::on(&devnet).await;
        rig.settle_stopped().await;
        assert_chain(&devnet, &rig, 200);
        (rows(&rig).await, journal(&rig).await)
    };
    assert_eq!(undisturbed.1.len(), 126, "75 to 200");
    let cuts = [(0, Fault::Drop), (0, Fault::DropAfter), (2, Fault::Drop), (2, Fault::DropAfter), (8, Fault::Drop)];
    for (nth, fault) in cuts.into_iter().chain([(25, Fault::Drop), (60, Fault::DropAfter), (80, Fault::Drop)]) {
        let devnet = forked_after_a_restart().await;
        let mut rig = Rig::on(&devnet).await;
        devnet.fault(Server::Engine, Rule::on("engine_newSafe", fault.clone()).after(nth).times(1));
        while rig.poll().await.is_ok() {}
        rig.restart().await;
        rig.settle_stopped().await;
        assert_chain(&devnet, &rig, 200);
        let (rows, journal) = (rows(&rig).await, journal(&rig).await);
        for (got, wanted) in rows.iter().zip(&undisturbed.0) {
            assert_eq!(got, wanted, "{fault:?} after {nth}");
        }
        for (got, wanted) in journal.iter().zip(&undisturbed.1) {
            assert_eq!(got, wanted, "{fault:?} after {nth}");
        }
        assert_eq!((rows.len(), journal.len()), (undisturbed.0.len(), 126), "{fault:?} after {nth}");
        assert!(devnet.unpaused_writes().is_empty());
    }
}

#[tokio::test]
async fn m30_a_node_that_does_not_show_its_states_is_tried_as_it_is() {
    let devnet = forked_after_a_restart().await;
    let deaf = Fault::Error(RpcError::server("in no mood"));
    devnet.fault(Server::L2, Rule::on("eth_getBalance", deaf));
    let mut rig = steady(&devnet, true).await;
    while rig.poll().await.is_ok() {}
    assert_eq!(stall_of(&rig), Some(Reason::EngineUnavailable), "the engine's own words");
    let numbers: Vec<_> = devnet.writes().iter().map(|w| w.number).collect();
    assert_eq!(numbers, [150]);
    // If it cannot be asked for the moment, it is asked again.
    let devnet = forked_after_a_restart().await;
    devnet.fault(Server::L2, Rule::on("eth_getBalance", Fault::Status(503, String::new())));
    let mut rig = steady(&devnet, true).await;
    while rig.poll().await.is_ok() {}
    assert_eq!((stall_of(&rig), devnet.pauses()), (Some(Reason::L2Unavailable), 0));
}
