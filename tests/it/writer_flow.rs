//! What the writer may send to the engine, and when (scenarios M1, M7, M13, M14, M15).

use std::sync::Arc;
use std::time::Duration;

use morph_deriver::adapters::engine::{EngineClient, JwtSecret};
use morph_deriver::adapters::reactors::NoReactors;
use morph_deriver::adapters::rpc::Check;
use morph_deriver::commands::wiring;
use morph_deriver::decide::liveness::HeadTrend;
use morph_deriver::decide::stall::{Cause, Reason};
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::devnet::jsonrpc::RpcError;
use morph_deriver::devnet::node::Moment;
use morph_deriver::devnet::world::{ForkShape, World, WorldOptions};
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::error::PortErrorKind;
use morph_deriver::flow::PollEnd;
use morph_deriver::types::{Case, Identity};

use super::CLIENT;
use super::node_flow::{assert_chain, assert_promises, heights, network, stall_of, synced};
use crate::support::clients::pool_config;
use crate::support::rig::{Rig, STEP, cases, devnet_ports, guarded, options, reason, settings, world_options};

/// Five batches on L1, and two nodes with the same chain: the one that is read has head 8, the one that is written has
/// `engine_at`.
async fn two_nodes(engine_at: u64) -> (Devnet, Arc<Devnet>, Rig) {
    let (read, written) = (network(5).await, network(5).await);
    read.with(|w| w.sync_to(8));
    written.with(|w| w.sync_to(engine_at));
    assert_eq!(read.heads().sequencer, written.heads().sequencer, "one chain");
    let mut ports = devnet_ports(&read).await;
    ports.engine = devnet_ports(&written).await.engine;
    let mut settings = settings();
    settings.rollup = read.rollup();
    settings.assume = Some(HeadTrend::Stopped);
    for devnet in [&read, &written] {
        devnet.refuse_unpaused_writes(false);
        devnet.clear_counts();
    }
    (read, Arc::new(written), Rig::start(ports, settings).await)
}

fn assert_untouched(written: &Devnet, head: u64) {
    assert!(written.writes().is_empty(), "{:?}", written.writes());
    let heads: Vec<_> = written.moments().iter().map(|m| m.head.number).collect();
    assert!(heads.is_sorted(), "the second node's head fell: {heads:?}");
    assert_eq!(heights(written).0, head);
}

const NO_STATE: &str = "missing trie node 0x34 (path ) state 0x12 is not available";

#[tokio::test]
async fn m1_e6_e12_e13_nothing_is_appended_to_a_fork_whose_rewrite_was_refused() {
    for marks in [false, true] {
        let devnet = network(2).await;
        devnet.with(|w| {
            w.sync_to(13);
            w.fork_at(12, ForkShape::OtherTransaction).unwrap();
            w.node.moods.refuses_rewrites = true;
            w.node.moods.tags_what_it_writes = marks;
        });
        devnet.clear_counts();
        let mut rig = Rig::on(&devnet).await;
        let report = rig.settle_stopped().await;
        assert_eq!(devnet.written(), [0; 0]);
        assert_eq!(reason(&report), Some(Reason::ElCannotReorg));
        let (head, safe, finalized) = heights(&devnet);
        assert_eq!((head, safe), (13, Some(8)));
        assert!(finalized.is_none_or(|f| f == 0), "the node's finalized tag is on {finalized:?}");
        assert_promises(&devnet);
    }
}

#[tokio::test]
async fn m1_e17_nothing_is_sent_after_a_rewriting_block_before_its_header_came_back() {
    let devnet = network(2).await;
    devnet.with(|w| {
        w.sync_to(13);
        w.fork_at(12, ForkShape::OtherTransaction).unwrap();
        w.node.moods.write_error_at.insert(12, RpcError::server(NO_STATE));
    });
    devnet.clear_counts();
    let mut rig = Rig::with(&devnet, |s| s.assume = Some(HeadTrend::Stopped)).await;
    assert!(rig.poll().await.is_err());
    let numbers: Vec<_> = devnet.writes().iter().map(|w| w.number).collect();
    assert_eq!(numbers, [12], "a refused block and nothing else");
    assert_eq!(heights(&devnet).0, 13);
    assert_eq!(cases(&rig.settle().await), [(2, Case::FillGap)]);
    assert_eq!(devnet.written(), (12..=16).collect::<Vec<_>>());
    assert_chain(&devnet, &rig, 16);
    assert_promises(&devnet);
}

#[tokio::test]
async fn m1_nothing_is_appended_to_a_block_of_another_writer() {
    let devnet = network(2).await;
    devnet.with(|w| w.sync_to(8));
    devnet.clear_counts();
    let mut rig = Rig::with(&devnet, |s| s.assume = Some(HeadTrend::Stopped)).await;
    // What was being applied when the pause began lands last, and our first block is refused.
    devnet.on_call(Server::Engine, "engine_newSafeL2Block", 1, |w| {
        w.grow(1);
        w.fork_at(9, ForkShape::OtherTransaction).unwrap();
        w.node.moods.write_error_at.insert(9, RpcError::server(NO_STATE));
    });
    assert!(rig.poll().await.is_err());
    let numbers: Vec<_> = devnet.writes().iter().map(|w| w.number).collect();
    assert_eq!(numbers, [9], "nothing after it");
    assert_eq!(cases(&rig.settle().await), [(2, Case::FillGap)]);
    assert_chain(&devnet, &rig, 16);
    assert_promises(&devnet);
}

/// A worker whose polls lie exactly one poll interval apart, on a node that lacks batch 2.
pub async fn steady(devnet: &Devnet, reactors: bool) -> Rig {
    let mut ports = devnet_ports(devnet).await;
    if !reactors {
        devnet.refuse_unpaused_writes(false);
        ports.reactors = Arc::new(NoReactors);
    }
    let mut settings = settings();
    settings.rollup = devnet.rollup();
    settings.assume = Some(HeadTrend::Stopped);
    settings.poll_interval = STEP;
    Rig::start(ports, settings).await
}

#[tokio::test]
async fn m13_p4_a_refusal_that_passes_after_forty_minutes_is_noticed() {
    // With reactors, ten minutes after its end at the latest: every try is a pause. Without any, within two polls.
    for reactors in [true, false] {
        let devnet = network(2).await;
        devnet.with(|w| {
            w.sync_to(8);
            w.node.moods.write_error = Some(RpcError::server("no space left on device"));
        });
        let mut rig = steady(&devnet, reactors).await;
        for _ in 0..8 {
            rig.now += Duration::from_secs(600);
            assert!(rig.poll().await.is_err() || stall_of(&rig) == Some(Reason::BlockRefused));
        }
        assert_eq!(stall_of(&rig), Some(Reason::BlockRefused), "an operator must look");
        let pauses = devnet.pauses();
        for _ in 0..3 {
            let _ = rig.poll().await;
        }
        devnet.with(|w| w.node.moods.write_error = None);
        if reactors {
            assert_eq!(devnet.pauses(), pauses, "a pause is not repeated at every poll");
            rig.now += Duration::from_secs(600) - STEP;
            rig.poll().await.unwrap();
        } else {
            for _ in 0..2 {
                let _ = rig.poll().await;
            }
        }
        assert_chain(&devnet, &rig, 16);
        assert_eq!(devnet.pauses(), devnet.resumes());
    }
}

/// A fork in batch 2 under a node that takes head + 1 only, found out.
pub async fn cannot_rewrite() -> (Devnet, Rig) {
    let devnet = synced(2).await;
    devnet.with(|w| {
        w.fork_at(12, ForkShape::OtherTransaction).unwrap();
        w.node.moods.refuses_rewrites = true;
    });
    let mut rig = Rig::on(&devnet).await;
    for _ in 0..3 {
        assert_eq!(reason(&rig.settle().await), Some(Reason::ElCannotReorg));
    }
    assert_eq!(devnet.pauses(), 1);
    devnet.with(|w| w.node.moods.refuses_rewrites = false);
    (devnet, rig)
}

#[tokio::test]
async fn m13_e13_a_node_that_was_upgraded_within_one_poll_is_probed_again() {
    let (devnet, mut rig) = cannot_rewrite().await;
    devnet.with(|w| w.node.moods.client_version = Some("Geth/v2.3.0".to_owned()));
    assert_eq!(cases(&rig.settle().await), [(2, Case::SelfHeal)]);
    assert_chain(&devnet, &rig, 16);
    assert_eq!(devnet.pauses(), 2);
}

#[tokio::test]
async fn m13_e13_a_node_that_changed_without_a_sign_is_probed_again_after_an_hour() {
    let (devnet, mut rig) = cannot_rewrite().await;
    rig.now += Duration::from_secs(3500);
    assert_eq!(reason(&rig.settle().await), Some(Reason::ElCannotReorg));
    assert_eq!(devnet.pauses(), 1);
    rig.now += Duration::from_secs(100);
    assert_eq!(cases(&rig.settle().await), [(2, Case::SelfHeal)]);
    assert_chain(&devnet, &rig, 16);
}

#[tokio::test]
async fn m13_a_foreign_block_in_the_middle_of_a_rewrite_does_not_make_a_node_that_cannot_rewrite() {
    let devnet = synced(2).await;
    let words = "cannot assemble block with discontinuous block number 13, expected number is 14";
    devnet.with(|w| {
        w.fork_at(12, ForkShape::OtherTransaction).unwrap();
        w.node.moods.write_error_at.insert(13, RpcError::server(words));
    });
    let mut rig = Rig::on(&devnet).await;
    assert!(rig.poll().await.is_err());
    assert_eq!(stall_of(&rig), Some(Reason::LocalChainChanged));
    for _ in 0..2 {
        let _ = rig.poll().await;
    }
    rig.settle_stopped().await;
    assert_chain(&devnet, &rig, 16);
    assert_promises(&devnet);
}

/// The polls of twenty in which the reactors were paused.
async fn pauses_of_twenty(devnet: &Devnet, rig: &mut Rig) -> Vec<u64> {
    let mut pauses = Vec::new();
    for poll in 1..=20 {
        let before = devnet.pauses();
        assert!(rig.poll().await.is_err());
        assert_eq!(stall_of(rig), Some(Reason::LocalChainChanged), "poll {poll}");
        if devnet.pauses() > before {
            pauses.push(poll);
        }
    }
    assert_eq!(devnet.pauses(), devnet.resumes());
    pauses
}

#[tokio::test]
async fn m14_a_parent_that_is_gone_at_every_poll_pauses_ever_more_rarely() {
    let devnet = network(2).await;
    devnet.with(|w| {
        w.sync_to(8);
        w.node.moods.write_error = Some(RpcError::server("parent block not found: 0x12"));
    });
    let mut rig = steady(&devnet, true).await;
    assert_eq!(pauses_of_twenty(&devnet, &mut rig).await, [1, 2, 4, 8, 16]);
    devnet.with(|w| w.node.moods.write_error = None);
    for _ in 0..12 {
        let _ = rig.poll().await;
    }
    assert_chain(&devnet, &rig, 16);
    assert_promises(&devnet);
}

#[tokio::test]
async fn m14_a_head_that_is_never_the_written_block_pauses_ever_more_rarely() {
    let devnet = network(2).await;
    devnet.with(|w| {
        w.sync_to(15);
        w.node.moods.loses_what_it_writes = true;
    });
    let mut rig = steady(&devnet, true).await;
    assert_eq!(pauses_of_twenty(&devnet, &mut rig).await, [1, 2, 4, 8, 16]);
    assert_eq!(rig.safe(), Some(8));
}

#[tokio::test]
async fn m14_p4_a_single_change_under_way_costs_one_poll() {
    let devnet = network(2).await;
    devnet.with(|w| {
        w.sync_to(8);
        w.node.moods.write_error_at.insert(9, RpcError::server("parent block not found: 0x12"));
    });
    let mut rig = steady(&devnet, true).await;
    assert!(rig.poll().await.is_err());
    assert_eq!(cases(&rig.poll().await.unwrap()), [(2, Case::FillGap)]);
    assert_chain(&devnet, &rig, 16);
    assert_eq!(devnet.pauses(), 2);
}

#[tokio::test]
async fn m15_e14_a_block_that_was_finalized_between_snapshot_and_pause_is_not_rewritten() {
    for finalized in [12, 15] {
        let devnet = synced(2).await;
        devnet.with(|w| w.fork_at(12, ForkShape::OtherTransaction).unwrap());
        devnet.on_call(Server::Reactors, "pause", 1, move |w| {
            let tag = w.node.at(finalized).unwrap().hash();
            w.node.set_block_tags(tag, tag).unwrap();
        });
        let mut rig = Rig::on(&devnet).await;
        let report = rig.settle().await;
        assert_eq!(reason(&report), Some(Reason::DivergesBelowFinalized), "{finalized}");
        assert!(devnet.writes().is_empty());
        assert_eq!(heights(&devnet), (16, Some(finalized), Some(finalized)), "no tag was moved down");
        for _ in 0..3 {
            assert_eq!(reason(&rig.settle().await), Some(Reason::DivergesBelowFinalized));
        }
        assert_eq!((devnet.pauses(), devnet.resumes()), (1, 1));
    }
}

#[tokio::test]
async fn m15_p2_a_finalized_tag_above_a_fallen_head_forbids_rewriting_and_not_filling() {
    // Rewriting: what is left below the tag is not what L1 committed to.
    let devnet = synced(3).await;
    devnet.with(|w| {
        w.fork_at(12, ForkShape::OtherTransaction).unwrap();
        let tag = w.node.at(20).unwrap().hash();
        w.node.set_block_tags(tag, tag).unwrap();
        w.node.kill(14);
    });
    devnet.clear_counts();
    let mut rig = Rig::on(&devnet).await;
    if CLIENT.is_reth() {
        // It forgets its finalized tag with the blocks: nothing is final, and the fork is healed.
        assert_eq!(heights(&devnet).2, None);
        rig.settle_stopped().await;
        assert_eq!(devnet.written(), (12..=24).collect::<Vec<_>>());
        assert_chain(&devnet, &rig, 24);
    } else {
        assert_eq!(reason(&rig.settle_stopped().await), Some(Reason::DivergesBelowFinalized));
        assert!(devnet.writes().is_empty());
        assert_eq!((devnet.pauses(), heights(&devnet).2), (0, Some(20)));
    }
    // Filling: the lost blocks come back under the tag.
    let devnet = synced(3).await;
    devnet.with(|w| {
        let tag = w.node.at(20).unwrap().hash();
        w.node.set_block_tags(tag, tag).unwrap();
        w.node.kill(14);
    });
    devnet.clear_counts();
    let mut rig = Rig::on(&devnet).await;
    rig.settle_stopped().await;
    assert_eq!(devnet.written(), (15..=24).collect::<Vec<_>>());
    assert_chain(&devnet, &rig, 24);
    let kept = |m: &Moment| m.finalized.is_some_and(|f| f.number.get() >= 20);
    let forgotten = |m: &Moment| CLIENT.is_reth() && m.finalized.is_none();
    assert!(devnet.moments().iter().all(|m| kept(m) || forgotten(m)));
}

#[tokio::test]
async fn m7_e21_an_engine_that_is_another_node_is_named_and_neither_paused_for_nor_written() {
    let (read, written, mut rig) = two_nodes(40).await;
    for _ in 0..6 {
        let report = rig.settle().await;
        assert_untouched(&written, 40);
        assert_eq!(reason(&report), Some(Reason::EngineIsAnotherNode));
    }
    assert_eq!((read.pauses(), read.resumes()), (0, 0));
    let stall = rig.worker.status().borrow().stall.clone().unwrap();
    let Cause::TwoNodes { reader, engine } = stall.cause else { panic!("{stall:?}") };
    assert_eq!([reader, engine], [read.heads().local, written.heads().local]);
    assert_eq!(rig.safe(), Some(8), "existing blocks are verified all the same");
    assert!(written.tag_calls().is_empty(), "{:?}", written.tag_calls());
    // With the right engine it continues.
    rig.ports.engine = devnet_ports(&read).await.engine;
    rig.restart().await;
    let filled: Vec<_> = (2..=5).map(|index| (index, Case::FillGap)).collect();
    assert_eq!(cases(&rig.settle().await), filled);
    assert_chain(&read, &rig, 40);
    assert_promises(&read);
}

#[tokio::test]
async fn m7_an_engine_that_turns_out_to_be_another_node_inside_the_pause_is_sent_nothing() {
    let (read, written, mut rig) = two_nodes(8).await;
    let other = written.clone();
    read.on_call(Server::Reactors, "pause", 1, move |_| other.with(World::sync));
    let report = rig.settle().await;
    assert_eq!(reason(&report), Some(Reason::EngineIsAnotherNode));
    assert_untouched(&written, 40);
    assert_eq!((read.pauses(), read.resumes()), (1, 1));
    for _ in 0..3 {
        assert_eq!(reason(&rig.settle().await), Some(Reason::EngineIsAnotherNode));
    }
    assert_eq!((read.pauses(), read.resumes()), (1, 1), "they are two nodes now for all to see");
    assert!(written.writes().is_empty());
}

#[tokio::test]
async fn m7_an_engine_that_does_not_say_which_node_it_is_is_not_written() {
    let devnet = network(2).await;
    devnet.with(|w| w.sync_to(8));
    let mut rig = Rig::with(&devnet, |s| s.assume = Some(HeadTrend::Stopped)).await;
    let deaf = Fault::Error(RpcError::no_method("eth_getBlockByNumber"));
    devnet.fault(Server::Engine, Rule::on("eth_getBlockByNumber", deaf));
    for _ in 0..3 {
        assert!(rig.poll().await.is_err());
        assert_eq!(stall_of(&rig), Some(Reason::EngineUnavailable));
    }
    assert!(devnet.writes().is_empty());
    assert_eq!(devnet.pauses(), 0);
    devnet.heal(Server::Engine);
    // It was given no tag either: batch 1 waited for that.
    assert_eq!(cases(&rig.settle().await), [(1, Case::Consistent), (2, Case::FillGap)]);
    assert_chain(&devnet, &rig, 16);
}

#[tokio::test]
async fn m7_a11_an_engine_of_another_chain_is_refused_at_start() {
    let devnet = network(1).await;
    let other = WorldOptions { seed: 2, ..world_options(CLIENT) };
    let other = Devnet::start(DevnetOptions { world: other, ..options(CLIENT) }).await.unwrap();
    let client = |devnet: &Devnet| {
        let secret = JwtSecret::new(devnet.jwt_secret());
        EngineClient::new(&devnet.engine_url(), secret, pool_config(Check::None)).unwrap()
    };
    let identity = Identity {
        l1_chain_id: 900,
        l2_chain_id: 53077,
        rollup: devnet.rollup(),
        queue: devnet.queue(),
        l2_genesis: devnet.l2_genesis(),
    };
    wiring::check_engine(&client(&devnet), &identity).await.unwrap();
    let error = wiring::check_engine(&client(&other), &identity).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::WrongNetwork);
    assert!(error.detail.contains("genesis"), "{error}");
    let wrong = Identity { l2_chain_id: 1, ..identity };
    let error = wiring::check_engine(&client(&devnet), &wrong).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::WrongNetwork);
    assert!(error.detail.contains("chain id"), "{error}");
}

#[tokio::test]
async fn recovering_up_to_a_batch_never_writes_the_next_one() {
    let devnet = guarded(CLIENT).await;
    let batches = devnet.with(|w| [w.produce(8).unwrap(), w.produce(8).unwrap()]);
    let mut rig = Rig::with(&devnet, |s| {
        s.to_batch = Some(1.into());
        s.assume = Some(HeadTrend::Stopped);
    })
    .await;
    let report = rig.settle().await;
    assert_eq!((report.end.clone(), cases(&report)), (PollEnd::Reached, vec![(1, Case::FillGap)]));
    // Once more, as a second `recover --to-batch 1` would.
    rig.restart().await;
    let report = rig.settle().await;
    assert_eq!((report.end.clone(), cases(&report)), (PollEnd::Reached, vec![]));
    assert_eq!(devnet.written(), (batches[0].first..=batches[0].last).collect::<Vec<_>>());
}
