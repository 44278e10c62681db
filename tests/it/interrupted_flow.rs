//! Pauses and writes that were refused or interrupted: how often they are tried again, and what they leave in the journal
//! and in the rows (scenarios M1, M9, M13, M14; promises P4, P5, P6).

use std::time::Duration;

use morph_deriver::decide::stall::Reason;
use morph_deriver::devnet::Devnet;
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::devnet::jsonrpc::RpcError;
use morph_deriver::devnet::world::ForkShape;
use morph_deriver::types::{B256, BatchRecord, Case};

use super::node_flow::{assert_chain, assert_promises, heights, network, stall_of, synced};
use super::writer_flow::{cannot_rewrite, steady};
use crate::support::late_store::LateStore;
use crate::support::rig::{Rig, cases, devnet_ports, reason, settings};
use crate::support::standing;

fn refused() -> Fault {
    Fault::Error(RpcError::server("the reactors are in no mood"))
}

fn down() -> Rule {
    Rule::always(Fault::Status(503, String::new()))
}

/// The polls of `polls` in which the reactors were asked to pause.
async fn tries_of(devnet: &Devnet, rig: &mut Rig, polls: u64) -> Vec<u64> {
    let mut tries = Vec::new();
    for poll in 1..=polls {
        let before = devnet.calls(Server::Reactors, "pause");
        assert!(rig.poll().await.is_err(), "poll {poll}");
        if devnet.calls(Server::Reactors, "pause") > before {
            tries.push(poll);
        }
    }
    tries
}

#[tokio::test]
async fn m14_p5_a_pause_that_is_refused_at_every_poll_is_tried_ever_more_rarely() {
    let devnet = network(2).await;
    devnet.with(|w| w.sync_to(8));
    devnet.fault(Server::Reactors, Rule::on("pause", refused()));
    let mut rig = steady(&devnet, true).await;
    assert_eq!(tries_of(&devnet, &mut rig, 20).await, [1, 2, 4, 8, 16]);
    assert_eq!(stall_of(&rig), Some(Reason::ReactorsDegraded), "and never a block that was refused");
    rig.now += Duration::from_secs(600);
    assert_eq!(tries_of(&devnet, &mut rig, 1).await, [1]);
    rig.now += Duration::from_secs(600);
    assert_eq!(tries_of(&devnet, &mut rig, 1).await, [1]);
    rig.now += Duration::from_secs(600);
    assert_eq!(tries_of(&devnet, &mut rig, 1).await, [1]);
    assert_eq!(stall_of(&rig), Some(Reason::ReactorsDegraded));
    // A node that comes back says nothing of the reactors.
    devnet.fault(Server::L2, down());
    assert!(rig.poll().await.is_err());
    devnet.heal(Server::L2);
    assert_eq!(tries_of(&devnet, &mut rig, 3).await, [0; 0]);
    devnet.heal(Server::Reactors);
    rig.now += Duration::from_secs(600);
    assert_eq!(cases(&rig.poll().await.unwrap()), [(2, Case::FillGap)]);
    assert_chain(&devnet, &rig, 16);
}

#[tokio::test]
async fn m14_p4_what_failed_before_any_pause_is_no_try() {
    // An earlier pause that is not resumed yet.
    let devnet = synced(2).await;
    devnet.with(|w| w.fork_at(10, ForkShape::ExtraTransaction).unwrap());
    devnet.fault(Server::Reactors, Rule::on("resume", refused()));
    let mut rig = steady(&devnet, true).await;
    assert!(rig.poll().await.is_err());
    assert_eq!(rig.safe(), Some(16));
    devnet.with(|w| w.truncate_to(9));
    assert_eq!(tries_of(&devnet, &mut rig, 8).await, [0; 0]);
    devnet.heal(Server::Reactors);
    rig.worker.quiesce().idle(Duration::from_secs(20)).await;
    assert_eq!(cases(&rig.poll().await.unwrap()), [(2, Case::FillGap)], "at once");
    assert_chain(&devnet, &rig, 16);
    // An engine that does not answer.
    let devnet = network(2).await;
    devnet.with(|w| w.sync_to(8));
    let mut rig = steady(&devnet, true).await;
    devnet.fault(Server::Engine, down());
    assert_eq!(tries_of(&devnet, &mut rig, 8).await, [0; 0]);
    devnet.heal(Server::Engine);
    for _ in 0..2 {
        rig.poll().await.unwrap();
    }
    assert_chain(&devnet, &rig, 16);
    assert_promises(&devnet);
}

#[tokio::test]
async fn m13_m14_a_node_that_comes_and_goes_does_not_wipe_the_wait_of_a_refusal() {
    let devnet = network(2).await;
    devnet.with(|w| {
        w.sync_to(8);
        w.node.moods.write_error = Some(RpcError::server("no space left on device"));
    });
    let mut rig = steady(&devnet, true).await;
    let mut pauses = Vec::new();
    for poll in 1..=20 {
        let before = devnet.pauses();
        if poll % 2 == 1 {
            devnet.fault(Server::L2, down());
        }
        assert!(rig.poll().await.is_err(), "poll {poll}");
        devnet.heal(Server::L2);
        if devnet.pauses() > before {
            pauses.push(poll);
        }
    }
    // The fourth is what the node's return ended early, once.
    assert_eq!(pauses, [2, 4, 6, 8, 16]);
    devnet.with(|w| w.node.moods.write_error = None);
    rig.now += Duration::from_secs(600);
    rig.poll().await.unwrap();
    assert_chain(&devnet, &rig, 16);
    assert_promises(&devnet);
}

#[tokio::test]
async fn m13_e13_a_node_that_was_down_is_asked_again_within_two_polls_of_its_return() {
    let (devnet, mut rig) = cannot_rewrite().await;
    devnet.fault(Server::L2, down());
    assert!(rig.poll().await.is_err());
    devnet.heal(Server::L2);
    assert_eq!(cases(&rig.poll().await.unwrap()), [(2, Case::SelfHeal)]);
    assert_chain(&devnet, &rig, 16);
    assert_eq!(devnet.pauses(), 2);
}

/// What the journal holds: batch, height, old and new hash, why; by batch and height.
pub async fn journal(rig: &Rig) -> Vec<(u64, u64, Option<B256>, B256, String)> {
    let entries = rig.ports.progress.journal_tail(1000).await.unwrap().into_iter();
    let mut all: Vec<_> = entries.map(|e| (e.batch.get(), e.number.get(), e.old_hash, e.new_hash, e.why)).collect();
    all.sort();
    all
}

pub async fn rows(rig: &Rig) -> Vec<BatchRecord> {
    standing(rig.ports.progress.as_ref()).await
}

fn hashes(devnet: &Devnet, numbers: std::ops::RangeInclusive<u64>) -> Vec<(u64, B256)> {
    devnet.with(|w| numbers.map(|number| (number, w.node.at(number).unwrap().hash())).collect())
}

const NO_STATE: &str = "missing trie node 0x34 (path ) state 0x12 is not available";

#[tokio::test]
async fn p6_e21_what_an_interrupted_rewrite_dropped_ends_in_the_journal() {
    let refused = Fault::Error(RpcError::server(NO_STATE));
    for restarted in [false, true] {
        for (nth, fault) in [
            (1, refused.clone()),
            (2, refused.clone()),
            (3, refused.clone()),
            (1, Fault::Drop),
            (2, Fault::Drop),
            (1, Fault::DropAfter),
            (2, Fault::DropAfter),
        ] {
            let what = format!("{fault:?} at {nth}, restarted: {restarted}");
            // Batch 2 ends on 16; what is written of it: 12 alone, then 13 to 16 in one request.
            let devnet = synced(2).await;
            devnet.with(|w| w.fork_at(12, ForkShape::OtherTransaction).unwrap());
            let old = hashes(&devnet, 12..=16);
            devnet.fault(Server::Engine, Rule::on("engine_newSafe", fault).after(nth - 1).times(1));
            let mut rig = Rig::on(&devnet).await;
            assert!(rig.poll().await.is_err(), "{what}");
            if restarted {
                rig.restart().await;
            }
            rig.settle_stopped().await;
            assert_chain(&devnet, &rig, 16);
            let new = hashes(&devnet, 12..=16);
            let why = Case::SelfHeal.as_str();
            let wanted: Vec<_> =
                old.iter().zip(&new).map(|(old, new)| (2, old.0, Some(old.1), new.1, why.to_owned())).collect();
            assert_eq!(journal(&rig).await, wanted, "{what}");
            let rows = rows(&rig).await;
            assert_eq!((rows[2].case, rows[2].rewritten), (Some(Case::SelfHeal), 5), "{what}");
        }
    }
}

#[tokio::test]
async fn p6_m1_what_was_not_dropped_is_not_in_the_journal() {
    // Refused, and then put right by another writer.
    let devnet = synced(2).await;
    devnet.with(|w| {
        w.fork_at(12, ForkShape::OtherTransaction).unwrap();
        w.node.moods.write_error_at.insert(12, RpcError::server(NO_STATE));
    });
    let mut rig = Rig::on(&devnet).await;
    assert!(rig.poll().await.is_err());
    devnet.with(morph_deriver::devnet::world::World::sync);
    rig.settle_stopped().await;
    assert_chain(&devnet, &rig, 16);
    assert_eq!(journal(&rig).await, []);
    let rows = rows(&rig).await;
    assert_eq!((rows[2].case, rows[2].rewritten), (Some(Case::Consistent), 0));
}

#[tokio::test]
async fn m13_p4_without_reactors_a_refusal_that_looks_permanent_is_tried_again_within_two_polls() {
    for cannot in [true, false] {
        let devnet = synced(2).await;
        devnet.with(|w| {
            w.fork_at(12, ForkShape::OtherTransaction).unwrap();
            w.node.moods.refuses_rewrites = cannot;
            w.node.moods.write_error = (!cannot).then(|| RpcError::server("invalid transaction 0: too short"));
        });
        let mut rig = steady(&devnet, false).await;
        let expected = if cannot { Reason::ElCannotReorg } else { Reason::BlockRefused };
        for _ in 0..12 {
            assert_eq!(reason(&rig.poll().await.unwrap()), Some(expected));
        }
        devnet.with(|w| {
            w.node.moods.refuses_rewrites = false;
            w.node.moods.write_error = None;
        });
        for _ in 0..2 {
            rig.poll().await.unwrap();
        }
        assert_chain(&devnet, &rig, 16);
    }
}

#[tokio::test]
async fn m8_g3_a_write_that_lands_after_it_was_given_up_is_no_growth() {
    let devnet = network(2).await;
    devnet.with(|w| w.sync_to(8));
    devnet.fault(Server::Engine, Rule::on("engine_newSafe", Fault::Late(Duration::from_millis(900))).times(1));
    let mut rig = Rig::with(&devnet, |s| {
        s.pause_budget = Duration::from_millis(500);
        s.pause_per_block = Duration::ZERO;
        s.head_still = Duration::from_millis(1200);
    })
    .await;
    let mut end = None;
    for _ in 0..8 {
        end = reason(&rig.poll().await.unwrap());
        if end == Some(Reason::PauseBudget) {
            break;
        }
    }
    assert_eq!(end, Some(Reason::PauseBudget));
    rig.worker.quiesce().idle(Duration::from_secs(20)).await;
    assert_eq!(heights(&devnet).0, 9, "it landed before the reactors were resumed");
    let _ = rig.poll().await;
    let verdict = rig.worker.status().borrow().verdict;
    assert_ne!(verdict, Some(morph_deriver::decide::liveness::HeadTrend::Alive));
    assert_promises(&devnet);
}

#[tokio::test]
async fn p5_g3_nothing_is_sent_for_which_the_database_left_no_room() {
    let devnet = network(2).await;
    devnet.with(|w| w.sync_to(8));
    let mut ports = devnet_ports(&devnet).await;
    let store = LateStore::over(ports.progress.clone());
    store.slow_notes(700);
    ports.progress = store.clone();
    let mut settings = settings();
    settings.rollup = devnet.rollup();
    settings.assume = Some(morph_deriver::decide::liveness::HeadTrend::Stopped);
    // Less than a quarter of the budget counts as no room.
    settings.pause_budget = Duration::from_millis(900);
    settings.pause_per_block = Duration::ZERO;
    let mut rig = Rig::start(ports, settings).await;
    assert_eq!(reason(&rig.poll().await.unwrap()), Some(Reason::PauseBudget));
    assert!(devnet.writes().is_empty());
    store.slow_notes(0);
    assert_eq!(cases(&rig.poll().await.unwrap()), [(2, Case::FillGap)]);
    assert_promises(&devnet);
}

#[tokio::test]
async fn m9_h6_a_note_of_a_block_that_was_never_sent_explains_no_tag() {
    let devnet = synced(2).await;
    devnet.with(|w| w.fork_at(12, ForkShape::OtherTransaction).unwrap());
    devnet.fault(Server::Engine, Rule::on("engine_newSafe", Fault::Hang).times(1));
    let mut rig = Rig::on(&devnet).await;
    // Ended while block 12 is under way; blocks 13 to 16 are noted, and were not sent.
    tokio::select! {
        _ = rig.poll() => panic!("the write was answered"),
        () = async { while devnet.calls(Server::Engine, "engine_newSafe") == 0 { tokio::task::yield_now().await; } } => {}
    }
    rig.worker.quiesce().idle(Duration::from_secs(20)).await;
    let noted = rig.ports.progress.load().await.unwrap().intents;
    assert_eq!(noted.iter().map(|w| (w.number.get(), w.seen)).collect::<Vec<_>>()[..2], [(12, false), (13, true)]);
    rig.restart().await;
    // Another writer puts the chain right and finalizes a part of it.
    devnet.with(|w| {
        w.sync();
        let tag = w.node.at(14).unwrap().hash();
        w.node.set_block_tags(tag, tag).unwrap();
    });
    devnet.clear_counts();
    rig.settle_stopped().await;
    assert_eq!(heights(&devnet), (16, Some(16), Some(14)));
    assert!(devnet.moments().iter().all(|m| m.finalized.is_some_and(|f| f.number.get() == 14)));
    assert!(!rig.worker.status().borrow().el_marks_finalized);
}
