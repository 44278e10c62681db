//! Roots and the chain of batches through the whole flow: what was written is checked like anything else (P1), and a
//! root that could not be looked at is neither equal nor different (M19).

use std::time::Duration;

use morph_deriver::codec::calldata::CommitCalldata;
use morph_deriver::codec::header::BatchHeader;
use morph_deriver::decide::liveness::HeadTrend;
use morph_deriver::decide::recheck::KEEP_FOR;
use morph_deriver::decide::stall::Reason;
use morph_deriver::devnet::chain::{BatchSpec, BlockPlan};
use morph_deriver::devnet::faults::Server;
use morph_deriver::devnet::world::{ForkShape, World, WorldOptions};
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::types::{B256, Case, L2Number};

use super::CLIENT;
use super::node_flow::{batch, heights, network, synced};
use crate::support::rig::{Rig, cases, options, reason, world_options};

#[tokio::test]
async fn e1_p1_a_wrong_root_of_blocks_that_were_written_moves_no_head() {
    for heal in [true, false] {
        for state in [true, false] {
            let what = format!("heal: {heal}, state root: {state}");
            let devnet = if heal { synced(2).await } else { network(2).await };
            devnet.with(|w| {
                match heal {
                    true => w.fork_at(12, ForkShape::OtherTransaction).unwrap(),
                    false => w.sync_to(8),
                }
                let from =
                    if state { &mut w.node.moods.wrong_state_from } else { &mut w.node.moods.wrong_withdrawals_from };
                *from = Some(12);
            });
            let mut rig = Rig::with(&devnet, |s| s.assume = Some(HeadTrend::Stopped)).await;
            let expected = if state { Reason::StateRoot } else { Reason::WithdrawalRoot };
            for _ in 0..3 {
                assert_eq!(reason(&rig.settle().await), Some(expected), "{what}");
                assert_eq!(rig.safe(), Some(8), "{what}");
                assert_eq!(heights(&devnet).1, Some(8), "{what}");
            }
            assert!(!devnet.written().is_empty(), "{what}");
            let stored = rig.ports.progress.batch(2.into()).await.unwrap();
            assert!(stored.is_none(), "{what}");
        }
    }
}

type Edit = fn(&mut CommitCalldata);

fn with_parent(commit: &mut CommitCalldata, edit: impl FnOnce(&mut BatchHeader)) {
    let mut parent = BatchHeader::decode(&commit.parent_header).unwrap();
    edit(&mut parent);
    commit.parent_header = parent.encode();
}

#[tokio::test]
async fn c11_p1_a_commit_that_does_not_continue_the_batch_before_moves_no_head() {
    let edits: [(&str, Edit); 4] = [
        ("another parent hash", |c| with_parent(c, |p| p.data_hash = B256::repeat_byte(7))),
        ("another parent's parent", |c| with_parent(c, |p| p.parent_hash = B256::repeat_byte(7))),
        ("another previous state root", |c| c.prev_state_root = B256::repeat_byte(7)),
        ("another parent last block", |c| with_parent(c, |p| p.last_block = Some(L2Number::new(7)))),
    ];
    for (what, edit) in edits {
        let devnet = synced(1).await;
        devnet.with(|w| {
            (0..8).for_each(|_| drop(w.build_planned(&BlockPlan { txs: 1, ..BlockPlan::default() }).unwrap()));
            w.commit(BatchSpec { edit_commit: Some(Box::new(edit)), ..BatchSpec::default() }).unwrap();
            w.mine(1);
            w.sync();
        });
        let mut rig = Rig::with(&devnet, |s| s.assume = Some(HeadTrend::Stopped)).await;
        for _ in 0..2 {
            assert_eq!(reason(&rig.settle().await), Some(Reason::Unbound), "{what}");
            assert_eq!((rig.safe(), heights(&devnet).1), (Some(8), Some(8)), "{what}");
        }
        assert!(devnet.writes().is_empty(), "{what}");
    }
}

/// Batch 1 is verified. Batch 2, with a withdrawal, was added between two polls, and the node has pruned its state.
async fn pruned_below_a_verified_batch() -> (Devnet, Rig) {
    let devnet = synced(1).await;
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    assert_eq!(rig.safe(), Some(8));
    devnet.with(|w| {
        batch(w);
        (0..200).for_each(|_| drop(w.build_planned(&BlockPlan::empty()).unwrap()));
        w.sync();
        w.node.moods.archive = false;
        w.node.restart();
    });
    (devnet, rig)
}

#[tokio::test]
async fn m19_e1_logs_give_the_withdrawal_root_of_a_pruned_state() {
    let (_devnet, mut rig) = pruned_below_a_verified_batch().await;
    assert_eq!(cases(&rig.settle().await), [(2, Case::Consistent)]);
    assert_eq!(rig.safe(), Some(16));
}

#[tokio::test]
async fn m19_p1_logs_that_are_pruned_to_nothing_are_no_other_root() {
    let (devnet, mut rig) = pruned_below_a_verified_batch().await;
    devnet.with(|w| w.node.moods.logs_from = 100);
    for _ in 0..2 {
        assert_eq!(reason(&rig.settle().await), Some(Reason::RootsUnavailable));
        assert_eq!((rig.safe(), heights(&devnet).1), (Some(8), Some(8)));
    }
    devnet.with(|w| w.node.moods.logs_from = 0);
    assert_eq!(cases(&rig.settle().await), [(2, Case::Consistent)]);
}

#[tokio::test]
async fn m19_p1_logs_of_a_chain_that_was_swapped_meanwhile_are_no_other_root() {
    for method in ["eth_getLogs", "eth_call"] {
        for nth in 1..=2 {
            let (devnet, mut rig) = pruned_below_a_verified_batch().await;
            // The other chain has no withdrawal in batch 2.
            devnet.on_call(Server::L2, method, nth, |w| {
                w.truncate_to(16);
                w.fork_at(9, ForkShape::MissingTransaction).unwrap();
            });
            for poll in 0..2 {
                let told = match rig.poll().await {
                    Ok(report) => reason(&report),
                    Err(error) => Some(error.stall().reason()),
                };
                let wrong = [Some(Reason::WithdrawalRoot), Some(Reason::StateRoot)];
                assert!(!wrong.contains(&told), "{method} {nth}, poll {poll}: {told:?}");
            }
            devnet.with(|w| {
                w.sync();
                w.node.moods.archive = true;
            });
            rig.settle().await;
            rig.settle().await;
            assert_eq!(rig.safe(), Some(16), "{method} {nth}");
        }
    }
}

#[tokio::test]
async fn m19_p1_a_root_that_logs_contradict_is_looked_at_in_the_state_and_nowhere_else() {
    // L1 speaks of another root than the node's logs: only the state says whose fault it is.
    let devnet = synced(1).await;
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    devnet.with(|w| {
        (0..8).for_each(|_| {
            drop(w.build_planned(&BlockPlan { txs: 1, withdrawals: 1, ..BlockPlan::default() }).unwrap())
        });
        let edit = |c: &mut CommitCalldata| c.withdrawal_root = B256::repeat_byte(7);
        w.commit(BatchSpec { edit_commit: Some(Box::new(edit)), ..BatchSpec::default() }).unwrap();
        (0..200).for_each(|_| drop(w.build_planned(&BlockPlan::empty()).unwrap()));
        w.mine(1);
        w.sync();
        w.node.moods.archive = false;
        w.node.restart();
    });
    assert_eq!(reason(&rig.settle().await), Some(Reason::RootsUnavailable));
    devnet.with(|w| w.node.moods.archive = true);
    assert_eq!(reason(&rig.settle().await), Some(Reason::WithdrawalRoot), "once it can look");
    assert_eq!(rig.safe(), Some(8));
}

#[tokio::test]
async fn m19_p9_the_search_for_the_last_message_has_a_time_and_keeps_what_it_learnt() {
    // The first batch of the database begins far up, and the node no longer has its state.
    let anchor = 1_000_000;
    let world = WorldOptions { anchor: Some(anchor), ..world_options(CLIENT) };
    let devnet = Devnet::start(DevnetOptions { world, ..options(CLIENT) }).await.unwrap();
    let commit = devnet.with(|w| {
        (0..8).for_each(|_| drop(w.build_planned(&BlockPlan { txs: 1, ..BlockPlan::default() }).unwrap()));
        w.commit(BatchSpec::default()).unwrap();
        (0..200).for_each(|_| drop(w.build_planned(&BlockPlan::empty()).unwrap()));
        let at = w.mine(1);
        w.sync();
        w.node.moods.archive = false;
        w.node.restart();
        at
    });
    let mut rig = Rig::with(&devnet, |s| (s.start, s.search_time) = (commit.number, Duration::ZERO)).await;
    let mut polls = 0;
    devnet.clear_counts();
    loop {
        let before = devnet.calls(Server::L2, "eth_getLogs");
        let report = rig.poll().await.unwrap();
        let asked = devnet.calls(Server::L2, "eth_getLogs") - before;
        assert!(asked <= 2, "{asked} requests for logs in one poll");
        polls += 1;
        if cases(&report) == [(1, Case::Consistent)] {
            break;
        }
        assert_eq!(reason(&report), Some(Reason::RootsUnavailable));
        assert!(polls < 100, "the search does not end");
    }
    assert!(polls > 3, "{polls} polls: the windows are small at first");
    assert_eq!(rig.safe(), Some(anchor + 8));
}

#[tokio::test]
async fn m19_a_found_root_is_kept_while_the_batch_waits() {
    // The last message lies below the first batch of the database, which cannot be stored for another reason.
    let devnet = network(3).await;
    let commit = devnet.with(|w: &mut World| {
        (0..300).for_each(|_| drop(w.build_planned(&BlockPlan { txs: 1, ..BlockPlan::default() }).unwrap()));
        w.commit(BatchSpec::default()).unwrap();
        (0..200).for_each(|_| drop(w.build_planned(&BlockPlan::empty()).unwrap()));
        let at = w.mine(1);
        w.sync();
        w.node.moods.archive = false;
        w.node.restart();
        at
    });
    let mut rig = Rig::with(&devnet, |s| s.start = commit.number).await;
    assert_eq!(cases(&rig.settle().await), [(4, Case::Consistent)]);
    assert_eq!(rig.safe(), Some(324));
}

/// A node that leaves out its logs for a while: what a search came to is looked for again, without a restart.
#[tokio::test]
async fn m19_p4_a_search_that_found_nothing_is_made_again() {
    let devnet = network(3).await;
    let commit = devnet.with(|w: &mut World| {
        (0..300).for_each(|_| drop(w.build_planned(&BlockPlan { txs: 1, ..BlockPlan::default() }).unwrap()));
        w.commit(BatchSpec::default()).unwrap();
        (0..200).for_each(|_| drop(w.build_planned(&BlockPlan::empty()).unwrap()));
        let at = w.mine(1);
        w.sync();
        w.node.moods.archive = false;
        w.node.moods.logs_from = 1_000;
        w.node.restart();
        at
    });
    let mut rig = Rig::with(&devnet, |s| s.start = commit.number).await;
    assert_eq!(reason(&rig.settle().await), Some(Reason::RootsUnavailable));
    devnet.with(|w| w.node.moods.logs_from = 0);
    devnet.clear_counts();
    assert_eq!(reason(&rig.settle().await), Some(Reason::RootsUnavailable), "it was looked for just now");
    assert!(devnet.calls(Server::L2, "eth_getLogs") <= 1, "only the batch's own blocks");
    rig.now += KEEP_FOR;
    assert_eq!(cases(&rig.settle().await), [(4, Case::Consistent)]);
    assert_eq!(rig.safe(), Some(324));
}
