//! The execution node's moods (scenarios E): forks, wrong roots, losses, refusals, tags, and what a reader of the node
//! can see meanwhile (P2). Every test refuses writes outside a pause (P5).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use morph_deriver::codec::calldata::CommitCalldata;
use morph_deriver::decide::liveness::HeadTrend;
use morph_deriver::decide::stall::{Cause, Reason};
use morph_deriver::devnet::chain::{BatchSpec, BlockPlan};
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::devnet::jsonrpc::RpcError;
use morph_deriver::devnet::node::Moment;
use morph_deriver::devnet::world::{ForkShape, World};
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::flow::FlowError;
use morph_deriver::flow::PollEnd;
use morph_deriver::ports::{L2Reader, MessageRoot, PortResult};
use morph_deriver::types::{B256, BlockContent, Case, L1Number, L2Block, L2Header, L2Number, L2Ref, L2Snapshot, RawTx};

use super::CLIENT;
use crate::support::rig::{Rig, STEP, WINDOW, cases, devnet_ports, options, reason, settings};

/// Blocks in a batch of these tests.
pub const BLOCKS: u64 = 8;

/// A batch whose first block takes an L1 message and whose blocks all hold transactions.
pub fn batch(world: &mut World) {
    world.enqueue(1).unwrap();
    world.mine(1);
    world.build_planned(&BlockPlan { txs: 2, messages: 1, withdrawals: 1, ..BlockPlan::default() }).unwrap();
    for _ in 1..BLOCKS {
        world.build_planned(&BlockPlan { txs: 2, ..BlockPlan::default() }).unwrap();
    }
    world.commit(BatchSpec::default()).unwrap();
    world.mine(1);
}

/// A network with `batches` batches of [`BLOCKS`] blocks that L1 has not finalized; the local node has block 0 only.
pub async fn network(batches: u64) -> Devnet {
    let options = DevnetOptions { refuse_unpaused_writes: true, ..options(CLIENT) };
    let devnet = Devnet::start(options).await.unwrap();
    devnet.with(|w| (0..batches).for_each(|_| batch(w)));
    devnet
}

/// The same with a local node that has everything.
pub async fn synced(batches: u64) -> Devnet {
    let devnet = network(batches).await;
    devnet.with(World::sync);
    devnet
}

/// L1 finalizes all that it holds.
pub fn finalize_l1(devnet: &Devnet) {
    devnet.with(|w| w.mine(20));
}

/// P2 and P5 over everything since the last `clear_counts`.
pub fn assert_promises(devnet: &Devnet) {
    let disordered: Vec<Moment> = devnet.moments().into_iter().filter(|m| !m.is_ordered()).collect();
    assert!(disordered.is_empty(), "finalized ≤ safe ≤ head is broken: {disordered:?}");
    assert!(devnet.unpaused_writes().is_empty(), "written outside a pause: {:?}", devnet.unpaused_writes());
    assert_eq!(devnet.pauses(), devnet.resumes());
    assert!(!devnet.is_paused());
}

/// The local chain is the sequencer's up to `head`, and our safe head and the node's tag are on it.
pub fn assert_chain(devnet: &Devnet, rig: &Rig, head: u64) {
    devnet.with(|w| {
        assert_eq!(w.node.head().number(), head);
        for number in 0..=head {
            assert_eq!(w.node.at(number).map(|b| b.hash()), w.expected(number).map(|b| b.hash), "block {number}");
        }
        assert_eq!(w.node.safe(), rig.worker.heads().safe());
    });
    assert_eq!(rig.safe(), Some(head));
}

pub fn heights(devnet: &Devnet) -> (u64, Option<u64>, Option<u64>) {
    let heads = devnet.heads();
    (heads.local.number.get(), heads.safe.map(|s| s.number.get()), heads.finalized.map(|s| s.number.get()))
}

pub fn stall_of(rig: &Rig) -> Option<Reason> {
    rig.worker.status().borrow().stall.as_ref().map(|s| s.reason())
}

#[tokio::test]
async fn e1_a_wrong_state_root_freezes_safe_for_as_long_as_it_is_there() {
    let devnet = network(2).await;
    devnet.with(|w| {
        w.node.moods.wrong_state_from = Some(12);
        w.execute_to(16).unwrap();
    });
    let mut rig = Rig::on(&devnet).await;
    for poll in 0..8 {
        let report = rig.settle().await;
        assert_eq!(reason(&report), Some(Reason::StateRoot), "poll {poll}");
        assert_eq!(rig.safe(), Some(8));
        // A next batch, right or wrong, does not clear it.
        devnet.with(|w| {
            batch(w);
            w.execute_to(w.sequencer.node.head().number()).unwrap();
        });
    }
    assert_eq!(heights(&devnet).1, Some(8));
    assert!(devnet.writes().is_empty());
    assert_promises(&devnet);
}

#[tokio::test]
async fn e1_a_wrong_withdrawal_root_freezes_safe() {
    let devnet = network(2).await;
    devnet.with(|w| {
        w.node.moods.wrong_withdrawals_from = Some(12);
        w.execute_to(16).unwrap();
    });
    let mut rig = Rig::on(&devnet).await;
    assert_eq!(reason(&rig.settle().await), Some(Reason::WithdrawalRoot));
    assert_eq!(rig.safe(), Some(8));
    assert_eq!(heights(&devnet).1, Some(8));
}

#[tokio::test]
async fn e1_a_root_that_cannot_be_looked_at_is_neither_equal_nor_different() {
    let devnet = network(0).await;
    devnet.with(|w| {
        for _ in 0..BLOCKS {
            w.build_planned(&BlockPlan { txs: 1, ..BlockPlan::default() }).unwrap();
        }
        // L1 names a withdrawal that the local chain never had; neither state nor logs of the node can show it.
        let edit = |c: &mut CommitCalldata| c.withdrawal_root = B256::repeat_byte(7);
        w.commit(BatchSpec { edit_commit: Some(Box::new(edit)), ..BatchSpec::default() }).unwrap();
        for _ in 0..200 {
            w.build_planned(&BlockPlan::empty()).unwrap();
        }
        w.mine(1);
        w.sync();
        w.node.moods.archive = false;
        w.node.restart();
    });
    let mut rig = Rig::on(&devnet).await;
    let report = rig.settle().await;
    assert_eq!(reason(&report), Some(Reason::RootsUnavailable));
    assert!(!Reason::RootsUnavailable.is_halt());
    assert_eq!(rig.safe(), Some(0), "genesis alone");
    devnet.with(|w| w.node.moods.archive = true);
    assert_eq!(reason(&rig.settle().await), Some(Reason::WithdrawalRoot), "once it can look");
    assert_eq!(rig.safe(), Some(0));
}

async fn heals(shape: ForkShape, at: u64) {
    let devnet = synced(3).await;
    devnet.with(|w| w.fork_at(at, shape).unwrap());
    devnet.clear_counts();
    let mut rig = Rig::on(&devnet).await;
    let report = rig.settle_stopped().await;
    let expected = [(1, Case::Consistent), (2, Case::SelfHeal), (3, Case::FillGap)];
    assert_eq!(cases(&report), expected, "{shape:?}");
    assert_eq!(devnet.written(), (at..=24).collect::<Vec<_>>(), "{shape:?}: the differing suffix and nothing else");
    assert_chain(&devnet, &rig, 24);
    assert_promises(&devnet);
}

#[tokio::test]
async fn e2_a_forged_l1_message_under_the_right_index_is_healed() {
    heals(ForkShape::ForgedL1Message, 9).await;
}

#[tokio::test]
async fn e3_e21_every_shape_of_fork_heals_and_only_what_differs_is_written() {
    let shapes = [
        (ForkShape::OtherTransaction, 10),
        (ForkShape::ExtraTransaction, 11),
        (ForkShape::MissingTransaction, 12),
        (ForkShape::Bulky, 13),
        (ForkShape::BaseFee, 14),
        (ForkShape::GasLimit, 15),
        (ForkShape::Timestamp, 16),
        (ForkShape::MissingL1Messages, 9),
    ];
    for (shape, at) in shapes {
        heals(shape, at).await;
    }
}

/// A new database that begins at batch 3, over a fork in batch 1.
async fn started_above_a_fork() -> (Devnet, Rig) {
    let devnet = synced(4).await;
    devnet.with(|w| w.fork_at(4, ForkShape::OtherTransaction).unwrap());
    let commit = devnet.with(|w| w.l1.find_tx(w.batches[2].tx).unwrap().0.header.number);
    devnet.clear_counts();
    let rig = Rig::with(&devnet, |s| s.start = L1Number::new(commit)).await;
    (devnet, rig)
}

#[tokio::test]
async fn e5_a_wrong_anchor_is_walked_back_batch_by_batch_to_the_one_that_matches() {
    let (devnet, mut rig) = started_above_a_fork().await;
    let report = rig.settle_stopped().await;
    let expected = [(1, Case::SelfHeal), (2, Case::FillGap), (3, Case::FillGap), (4, Case::FillGap)];
    assert_eq!(cases(&report), expected);
    assert_eq!(devnet.written(), (4..=32).collect::<Vec<_>>());
    assert_chain(&devnet, &rig, 32);
    assert_promises(&devnet);
}

#[tokio::test]
async fn e5_walking_back_ends_at_finalized() {
    let (devnet, mut rig) = started_above_a_fork().await;
    devnet.with(|w| {
        let tag = w.node.at(10).unwrap().hash();
        w.node.set_block_tags(tag, tag).unwrap();
    });
    devnet.clear_counts();
    let report = rig.settle_stopped().await;
    assert_eq!(reason(&report), Some(Reason::DivergesBelowFinalized));
    assert!(devnet.writes().is_empty() && devnet.tag_calls().is_empty());
    assert_eq!(devnet.pauses(), 0);
}

#[tokio::test]
async fn e6_local_blocks_below_the_head_are_never_skipped_on_trust() {
    // The node has part of batch 2, forked at its second block; the rest is missing and the head does not grow.
    let devnet = network(2).await;
    devnet.with(|w| {
        w.sync_to(13);
        w.fork_at(10, ForkShape::ExtraTransaction).unwrap();
    });
    devnet.clear_counts();
    let mut rig = Rig::on(&devnet).await;
    let report = rig.settle_stopped().await;
    assert_eq!(cases(&report), [(1, Case::Consistent), (2, Case::FillGap)]);
    assert_eq!(devnet.written(), (10..=16).collect::<Vec<_>>());
    assert_chain(&devnet, &rig, 16);
    assert_promises(&devnet);
}

#[tokio::test]
async fn e7_a_head_that_went_down_is_not_a_stopped_chain() {
    let devnet = network(3).await;
    devnet.with(|w| w.sync_to(22));
    let mut rig = Rig::on(&devnet).await;
    for _ in 0..4 {
        assert_eq!(reason(&rig.settle().await), Some(Reason::WaitingForBlocks));
    }
    devnet.with(|w| w.truncate_to(18));
    // The poll that sees the fall, and then a whole window of its own.
    for _ in 0..WINDOW.as_secs() / STEP.as_secs() {
        assert_eq!(reason(&rig.settle().await), Some(Reason::WaitingForBlocks));
        assert_eq!(devnet.pauses(), 0);
    }
    assert_eq!(cases(&rig.settle().await), [(3, Case::FillGap)]);
    assert_eq!(devnet.written(), (19..=24).collect::<Vec<_>>());
    assert_chain(&devnet, &rig, 24);
    assert_promises(&devnet);
}

#[tokio::test]
async fn e8_samples_close_together_prove_nothing() {
    let devnet = network(2).await;
    devnet.with(|w| w.sync_to(8));
    let mut rig = Rig::on(&devnet).await;
    for millis in [0, 30_000, 59_000, 59_500, 59_900] {
        rig.worker.poll(Duration::from_millis(millis)).await.unwrap();
        assert!(devnet.writes().is_empty(), "at {millis} ms");
    }
    let report = rig.worker.poll(WINDOW).await.unwrap();
    assert_eq!(cases(&report), [(2, Case::FillGap)]);
}

#[tokio::test]
async fn e9_a6_nothing_is_read_written_or_tagged_while_the_node_syncs() {
    let devnet = synced(2).await;
    devnet.with(|w| w.node.moods.syncing = true);
    let mut rig = Rig::on(&devnet).await;
    for _ in 0..3 {
        assert_eq!(reason(&rig.settle().await), Some(Reason::NodeSyncing));
    }
    assert_eq!(devnet.http_requests(Server::L1(0)), 0);
    assert_eq!(devnet.http_requests(Server::Engine), 0);
    devnet.with(|w| w.node.moods.syncing = false);
    rig.settle().await;
    assert_eq!(rig.safe(), Some(16));
}

#[tokio::test]
async fn e10_a_node_that_forgot_its_safe_tag_has_it_back_in_one_poll() {
    let devnet = synced(2).await;
    finalize_l1(&devnet);
    devnet.with(|w| {
        batch(w);
        w.sync();
    });
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    assert_eq!(heights(&devnet), (24, Some(24), Some(16)));
    devnet.with(|w| w.node.restart());
    // morph-reth keeps neither tag.
    let kept = (!CLIENT.is_reth()).then_some(16);
    assert_eq!(heights(&devnet), (24, kept, kept));
    // Even while L1 cannot be asked.
    devnet.fault(Server::L1(0), Rule::always(Fault::Status(503, String::new())));
    assert!(rig.poll().await.is_err());
    assert_eq!(heights(&devnet), (24, Some(24), Some(16)));
    assert_promises(&devnet);
}

#[tokio::test]
async fn e11_tags_are_set_one_a_call_and_a_failing_one_breaks_nothing() {
    // Safe and finalized are set in every case; how often safe is set on the way goes by the clock.
    for failing in 0..2 {
        let devnet = synced(2).await;
        finalize_l1(&devnet);
        let mut rig = Rig::on(&devnet).await;
        let fault = Fault::Error(RpcError::server("no"));
        devnet.fault(Server::Engine, Rule::on("engine_setBlockTags", fault).after(failing).times(1));
        let first = rig.poll().await;
        assert!(first.is_err(), "failing call {failing}");
        assert_promises(&devnet);
        rig.settle().await;
        assert_eq!(heights(&devnet), (16, Some(16), Some(16)), "failing call {failing}");
        assert_promises(&devnet);
        let both = |c: &&morph_deriver::devnet::node::TagCall| !c.safe.is_zero() && !c.finalized.is_zero();
        assert_eq!(devnet.tag_calls().iter().find(both), None);
    }
}

#[tokio::test]
async fn e12_a_node_that_marks_what_it_writes_is_found_out_put_right_and_flagged() {
    let devnet = network(3).await;
    devnet.with(|w| {
        w.sync_to(8);
        w.node.moods.tags_what_it_writes = true;
    });
    let mut rig = Rig::on(&devnet).await;
    rig.settle_stopped().await;
    assert!(rig.worker.status().borrow().el_marks_finalized);
    assert_chain(&devnet, &rig, 24);
    assert_eq!(heights(&devnet), (24, Some(24), Some(0)), "L1 has finalized nothing");
    assert_promises(&devnet);
    finalize_l1(&devnet);
    rig.settle().await;
    assert_eq!(heights(&devnet), (24, Some(24), Some(24)));
}

#[tokio::test]
async fn e12_marks_that_a_crash_left_are_put_back_by_the_next_start() {
    let devnet = network(3).await;
    devnet.with(|w| {
        w.sync_to(8);
        w.node.moods.tags_what_it_writes = true;
    });
    let mut rig = Rig::with(&devnet, |s| s.assume = Some(HeadTrend::Stopped)).await;
    // Batch 2 is written, and nothing can be put back after it.
    devnet.on_call(Server::Engine, "engine_newSafeL2Block", 8, |w| {
        w.node.moods.tags_error = Some(RpcError::server("going down"));
    });
    assert!(rig.poll().await.is_err());
    assert_eq!(heights(&devnet), (16, Some(16), Some(16)));
    assert_eq!(rig.safe(), Some(8));
    devnet.with(|w| {
        w.node.moods.tags_error = None;
        w.node.moods.tags_what_it_writes = false;
    });
    rig.restart().await;
    devnet.fault(Server::L1(0), Rule::always(Fault::Status(503, String::new())));
    assert!(rig.poll().await.is_err());
    assert_eq!(heights(&devnet), (16, Some(8), Some(0)));
}

#[tokio::test]
async fn e12_a_mark_is_put_back_to_the_tag_that_another_writer_had_set() {
    let devnet = network(3).await;
    devnet.with(|w| {
        w.sync_to(8);
        let tag = |n| w.node.at(n).unwrap().hash();
        let (safe, finalized) = (tag(8), tag(5));
        w.node.set_block_tags(safe, finalized).unwrap();
        w.node.moods.tags_what_it_writes = true;
    });
    devnet.clear_counts();
    let mut rig = Rig::on(&devnet).await;
    rig.settle_stopped().await;
    assert!(rig.worker.status().borrow().el_marks_finalized);
    assert_chain(&devnet, &rig, 24);
    assert_eq!(heights(&devnet), (24, Some(24), Some(5)));
    assert_promises(&devnet);
}

#[tokio::test]
async fn e12_a_mark_on_a_write_that_nobody_answered_is_put_back() {
    let devnet = network(2).await;
    devnet.with(|w| {
        w.sync_to(8);
        w.node.moods.tags_what_it_writes = true;
    });
    let mut rig = Rig::with(&devnet, |s| s.assume = Some(HeadTrend::Stopped)).await;
    // The first block of a pause goes alone; the answers for the ones after it are lost.
    devnet.fault(Server::Engine, Rule::on("engine_newSafe", Fault::DropAfter).after(1).times(1));
    // The worker goes before it could look: the journal knows nothing of these blocks.
    devnet.on_call(Server::Engine, "engine_newSafeL2Block", 8, |w| {
        w.node.moods.tags_error = Some(RpcError::server("going down"));
    });
    assert!(rig.poll().await.is_err());
    assert_eq!(heights(&devnet), (16, Some(16), Some(16)));
    let journal = rig.ports.progress.journal_tail(20).await.unwrap();
    assert_eq!(journal.iter().map(|entry| entry.number.get()).collect::<Vec<_>>(), [9]);
    devnet.with(|w| w.node.moods.tags_error = None);
    rig.restart().await;
    devnet.fault(Server::L1(0), Rule::always(Fault::Status(503, String::new())));
    assert!(rig.poll().await.is_err());
    assert_eq!(heights(&devnet), (16, Some(8), Some(0)));
}

#[tokio::test]
async fn e12_a_mark_that_cannot_be_put_back_stops_no_reading_and_is_not_forgotten() {
    let devnet = network(2).await;
    devnet.with(|w| {
        w.sync_to(8);
        w.node.moods.tags_what_it_writes = true;
    });
    let mut rig = Rig::with(&devnet, |s| s.assume = Some(HeadTrend::Stopped)).await;
    devnet.on_call(Server::Engine, "engine_newSafeL2Block", 8, |w| {
        w.node.moods.tags_error = Some(RpcError::server("in no mood"));
    });
    for _ in 0..3 {
        let _ = rig.poll().await;
    }
    assert_eq!(rig.safe(), Some(16), "verified from L1 all the same");
    assert_eq!(heights(&devnet), (16, Some(16), Some(16)));
    devnet.with(|w| w.node.moods.tags_error = None);
    rig.poll().await.unwrap();
    assert_eq!(heights(&devnet), (16, Some(16), Some(0)), "L1 has finalized nothing");
}

#[tokio::test]
async fn e12_e20_our_own_finalized_above_a_fallen_head_is_no_mark() {
    let devnet = network(3).await;
    devnet.with(|w| w.sync_to(8));
    let mut rig = Rig::on(&devnet).await;
    rig.settle_stopped().await;
    finalize_l1(&devnet);
    rig.settle().await;
    assert_eq!(heights(&devnet), (24, Some(24), Some(24)));
    assert!(!rig.ports.progress.journal_tail(20).await.unwrap().is_empty());
    devnet.with(|w| w.node.kill(18));
    rig.poll().await.unwrap();
    // morph-reth forgets the tag with the blocks.
    assert_eq!(heights(&devnet), (18, Some(16), (!CLIENT.is_reth()).then_some(24)));
    assert!(!rig.worker.status().borrow().el_marks_finalized);
}

/// A fork in batch 2 under a node that takes head + 1 only.
async fn cannot_rewrite() -> (Devnet, Rig) {
    let devnet = synced(2).await;
    devnet.with(|w| {
        w.fork_at(12, ForkShape::OtherTransaction).unwrap();
        w.node.moods.refuses_rewrites = true;
    });
    devnet.clear_counts();
    let mut rig = Rig::on(&devnet).await;
    for _ in 0..6 {
        assert_eq!(reason(&rig.settle().await), Some(Reason::ElCannotReorg));
        assert_eq!(devnet.pauses(), 1, "probed once");
    }
    assert_eq!(devnet.written(), [0; 0]);
    assert_eq!(heights(&devnet), (16, Some(8), None));
    assert_promises(&devnet);
    (devnet, rig)
}

#[tokio::test]
async fn e13_a_node_that_cannot_rewrite_is_probed_once_and_filled_once_its_chain_is_cut() {
    let (devnet, mut rig) = cannot_rewrite().await;
    let stall = rig.worker.status().borrow().stall.clone().unwrap();
    assert!(matches!(stall.cause, Cause::CannotRewrite { skip } if skip.number.get() == 11), "{stall:?}");
    devnet.with(|w| w.truncate_to(11));
    assert_eq!(cases(&rig.settle_stopped().await), [(2, Case::FillGap)]);
    assert_chain(&devnet, &rig, 16);
    assert_promises(&devnet);
}

#[tokio::test]
async fn e13_an_upgraded_node_is_probed_again() {
    let (devnet, mut rig) = cannot_rewrite().await;
    devnet.fault(Server::L2, Rule::always(Fault::Status(503, String::new())));
    assert!(rig.poll().await.is_err());
    devnet.heal(Server::L2);
    devnet.with(|w| w.node.moods.refuses_rewrites = false);
    assert_eq!(cases(&rig.settle().await), [(2, Case::SelfHeal)]);
    assert_chain(&devnet, &rig, 16);
}

#[tokio::test]
async fn e14_nothing_at_or_below_finalized_is_rewritten() {
    // Finalized by us, then rewritten by another writer.
    let devnet = synced(2).await;
    finalize_l1(&devnet);
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    assert_eq!(rig.finalized(), Some(16));
    devnet.with(|w| w.fork_at(12, ForkShape::OtherTransaction).unwrap());
    devnet.clear_counts();
    assert_eq!(reason(&rig.settle_stopped().await), Some(Reason::DivergesBelowFinalized));
    assert!(devnet.writes().is_empty());
    assert_eq!(devnet.pauses(), 0);

    // Finalized by another writer: the fork lies exactly at the tag.
    let devnet = synced(2).await;
    devnet.with(|w| {
        w.fork_at(12, ForkShape::OtherTransaction).unwrap();
        let tag = w.node.at(12).unwrap().hash();
        w.node.set_block_tags(tag, tag).unwrap();
    });
    devnet.clear_counts();
    let mut rig = Rig::on(&devnet).await;
    assert_eq!(reason(&rig.settle_stopped().await), Some(Reason::DivergesBelowFinalized));
    assert!(devnet.writes().is_empty());
    // One block above it may be rewritten.
    devnet.with(|w| {
        w.sync();
        let tag = w.node.at(11).unwrap().hash();
        w.fork_at(12, ForkShape::OtherTransaction).unwrap();
        w.node.set_block_tags(tag, tag).unwrap();
    });
    devnet.clear_counts();
    assert_eq!(cases(&rig.settle_stopped().await), [(2, Case::SelfHeal)]);
    assert_promises(&devnet);
}

#[tokio::test]
async fn e15_waiting_replays_nothing_and_safe_only_goes_forward() {
    let devnet = network(4).await;
    devnet.with(|w| w.sync_to(20));
    devnet.clear_counts();
    let mut rig = Rig::on(&devnet).await;
    let mut seen = Vec::new();
    for step in 0..6 {
        seen.extend(cases(&rig.settle().await));
        if step == 3 {
            devnet.with(|w| w.grow(12));
        }
    }
    let expected: Vec<_> = (1..=4).map(|index| (index, Case::Consistent)).collect();
    assert_eq!(seen, expected, "every batch once");
    let safes: Vec<_> = devnet.moments().iter().filter_map(|m| m.safe.map(|s| s.number.get())).collect();
    assert!(safes.is_sorted(), "{safes:?}");
    assert_promises(&devnet);
}

#[tokio::test]
async fn e16_a_restart_continues_at_the_stored_cursor() {
    let devnet = network(4).await;
    devnet.with(|w| w.sync_to(20));
    let mut rig = Rig::on(&devnet).await;
    assert_eq!(cases(&rig.settle().await), [(1, Case::Consistent), (2, Case::Consistent)]);
    rig.restart().await;
    assert_eq!(rig.safe(), Some(16));
    devnet.with(World::sync);
    assert_eq!(cases(&rig.settle().await), [(3, Case::Consistent), (4, Case::Consistent)]);
    assert_eq!(heights(&devnet), (32, Some(32), Some(0)));
}

#[tokio::test]
async fn e17_a_permanent_refusal_is_one_call() {
    let devnet = network(2).await;
    devnet.with(|w| {
        w.sync_to(8);
        let words = "could not apply tx 0 [0x12]: nonce too low: address 0x34, tx: 5 state: 6";
        w.node.moods.write_error_at.insert(12, RpcError::server(words));
    });
    let mut rig = Rig::on(&devnet).await;
    let report = rig.settle_stopped().await;
    assert_eq!(reason(&report), Some(Reason::BlockRefused));
    // The node would take the block now: that it is still missing shows that no try was made.
    for _ in 0..4 {
        assert_eq!(reason(&rig.settle().await), Some(Reason::BlockRefused));
    }
    assert_eq!(devnet.written(), [9, 10, 11]);
    assert_eq!(devnet.writes().iter().filter(|w| w.number == 12).count(), 1);
    assert_eq!(devnet.pauses(), 1);
    assert_promises(&devnet);
    // A node that was restarted is asked once more, and blocks that it has are not written again.
    devnet.fault(Server::L2, Rule::always(Fault::Status(503, String::new())));
    assert!(rig.poll().await.is_err());
    devnet.heal(Server::L2);
    assert_eq!(cases(&rig.settle_stopped().await), [(2, Case::FillGap)]);
    assert_eq!(devnet.written(), (9..=16).collect::<Vec<_>>());
    assert_chain(&devnet, &rig, 16);
}

#[tokio::test]
async fn e17_a_passing_failure_is_tried_again_and_an_engine_that_is_down_pauses_nothing() {
    let devnet = network(2).await;
    devnet.with(|w| w.sync_to(8));
    let mut rig = Rig::with(&devnet, |s| s.assume = Some(HeadTrend::Stopped)).await;
    devnet.fault(Server::Engine, Rule::on("eth_chainId", Fault::Status(503, String::new())));
    devnet.fault(Server::Engine, Rule::on("engine_newSafe", Fault::Status(503, String::new())));
    for _ in 0..3 {
        assert!(rig.poll().await.is_err());
        assert_eq!(stall_of(&rig), Some(Reason::EngineUnavailable));
    }
    assert_eq!(devnet.pauses(), 0);
    devnet.heal(Server::Engine);
    devnet.with(|w| w.node.moods.write_error_at.extend([(12, RpcError::server("database is busy"))]));
    assert!(rig.poll().await.is_err());
    assert_eq!(cases(&rig.settle().await), [(2, Case::FillGap)]);
    assert_eq!(devnet.written(), (9..=16).collect::<Vec<_>>());
    assert_chain(&devnet, &rig, 16);
    assert_promises(&devnet);
}

#[tokio::test]
async fn e17_a_node_that_makes_other_blocks_than_it_is_given_is_asked_once() {
    let devnet = network(2).await;
    devnet.with(|w| {
        w.sync_to(8);
        w.node.moods.gas_limit_cap = Some(1_000_000);
    });
    let mut rig = Rig::with(&devnet, |s| s.assume = Some(HeadTrend::Stopped)).await;
    for _ in 0..4 {
        assert_eq!(reason(&rig.poll().await.unwrap()), Some(Reason::BlockRefused));
        assert_eq!(devnet.pauses(), 1);
    }
    assert_eq!(rig.safe(), Some(8));
    assert_promises(&devnet);
}

#[tokio::test]
async fn e17_m13_a_refusal_that_does_not_pass_pauses_ever_more_rarely_and_is_shown() {
    let devnet = network(2).await;
    devnet.with(|w| {
        w.sync_to(8);
        w.node.moods.write_error = Some(RpcError::server("no space left on device"));
    });
    let mut rig = Rig::with(&devnet, |s| {
        s.assume = Some(HeadTrend::Stopped);
        s.poll_interval = STEP;
    })
    .await;
    let mut pauses = Vec::new();
    for poll in 1..=140_u64 {
        let before = devnet.pauses();
        let end = rig.poll().await;
        if devnet.pauses() > before {
            pauses.push(poll);
        } else if pauses.len() < 8 {
            assert!(end.is_err());
            assert_eq!(stall_of(&rig), Some(Reason::EngineUnavailable));
        }
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 104], "at least every ten minutes");
    assert_eq!(stall_of(&rig), Some(Reason::BlockRefused), "an operator must look");
    // A node that was restarted is asked anew.
    devnet.fault(Server::L2, Rule::always(Fault::Status(503, String::new())));
    assert!(rig.poll().await.is_err());
    devnet.heal(Server::L2);
    devnet.with(|w| w.node.moods.write_error = None);
    assert_eq!(cases(&rig.settle().await), [(2, Case::FillGap)]);
    assert_chain(&devnet, &rig, 16);
    assert_promises(&devnet);
}

#[tokio::test]
async fn e17_an_answer_that_was_lost_makes_no_verdict_and_nothing_is_written_twice() {
    let devnet = network(2).await;
    devnet.with(|w| w.sync_to(8));
    let mut rig = Rig::on(&devnet).await;
    // The first block of a pause goes alone; the answers for the ones after it are lost.
    devnet.fault(Server::Engine, Rule::on("engine_newSafe", Fault::DropAfter).after(1).times(1));
    for _ in 0..5 {
        let _ = rig.poll().await;
    }
    assert_eq!(heights(&devnet).0, 16, "written, though the answer was lost");
    let verdict = rig.worker.status().borrow().verdict;
    assert!(!matches!(verdict, Some(HeadTrend::Alive)), "{verdict:?}");
    rig.poll().await.unwrap();
    let verdict = rig.worker.status().borrow().verdict;
    assert!(!matches!(verdict, Some(HeadTrend::Alive)), "{verdict:?}");
    assert_eq!(devnet.written(), (9..=16).collect::<Vec<_>>());
    assert_chain(&devnet, &rig, 16);
    assert_promises(&devnet);
    let journal = rig.ports.progress.journal_tail(20).await.unwrap();
    let mut journal: Vec<_> = journal.iter().map(|entry| (entry.number.get(), entry.new_hash)).collect();
    journal.sort_unstable();
    let stand: Vec<_> = (9..=16).map(|n| (n, devnet.with(|w| w.node.at(n).unwrap().hash()))).collect();
    assert_eq!(journal, stand, "every write is in the journal");
}

type Edit = fn(&mut Vec<BlockContent>);

#[tokio::test]
async fn e18_content_that_the_node_would_take_is_refused_before_the_first_write() {
    let edits: [(&str, Edit); 7] = [
        ("time goes back", |c| c[3].context.timestamp = c[2].context.timestamp - 1),
        ("before its parent", |c| c[0].context.timestamp = 1),
        ("a block left out", |c| c[4].context.number = 14.into()),
        ("another first block", |c| c.iter_mut().for_each(|b| b.context.number = b.context.number.plus(1))),
        ("a message too few", |c| {
            c[0].context.l1_messages -= 1;
            c[0].context.txs -= 1;
        }),
        ("a message too many", |c| {
            c[1].context.l1_messages += 1;
            c[1].context.txs += 1;
        }),
        ("a message among L2 transactions", |c| {
            c[1].transactions.push(RawTx::from_static(b"\x7e\xc0"));
            c[1].context.txs += 1;
        }),
    ];
    for (name, edit) in edits {
        for present in [true, false] {
            let devnet = network(1).await;
            devnet.with(|w| {
                w.enqueue(1).unwrap();
                w.mine(1);
                w.build_planned(&BlockPlan { txs: 2, messages: 1, ..BlockPlan::default() }).unwrap();
                (1..BLOCKS).for_each(|_| w.build(1).unwrap());
                let spec = BatchSpec { edit_contents: Some(Box::new(edit)), ..BatchSpec::default() };
                w.commit(spec).unwrap();
                w.mine(1);
                w.sync_to(if present { 16 } else { 8 });
            });
            let mut rig = Rig::with(&devnet, |s| s.assume = Some(HeadTrend::Stopped)).await;
            assert_eq!(reason(&rig.settle().await), Some(Reason::PoisonBatch), "{name}");
            assert!(devnet.writes().is_empty(), "{name}");
            assert_eq!(devnet.pauses(), 0, "{name}");
            assert_eq!(rig.safe(), Some(8), "{name}");
        }
    }
}

/// Six verified batches, three of them finalized; then the node is killed and its head falls to `height`.
async fn killed(height: u64) -> (Devnet, Rig) {
    let devnet = synced(3).await;
    finalize_l1(&devnet);
    devnet.with(|w| {
        (0..3).for_each(|_| batch(w));
        w.sync();
    });
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    assert_eq!(heights(&devnet), (48, Some(48), Some(24)));
    devnet.with(|w| w.node.kill(height));
    devnet.clear_counts();
    (devnet, rig)
}

#[tokio::test]
async fn e19_blocks_above_a_fallen_head_are_not_there_whatever_the_node_answers() {
    let (devnet, mut rig) = killed(28).await;
    let answers = devnet.with(|w| w.node.at(48).is_some());
    assert_eq!(answers, !CLIENT.is_reth(), "go-ethereum still answers for block 48, morph-reth does not");
    let report = rig.poll().await.unwrap();
    assert_eq!(cases(&report), []);
    assert_eq!(reason(&report), Some(Reason::NodeLostBlocks));
    assert_eq!(rig.safe(), Some(24));
    assert_eq!(rig.finalized(), Some(24));
    let (head, safe, _) = heights(&devnet);
    assert!(safe <= Some(head));
    // The reason stays until they are back, over a restart of ours too.
    for _ in 0..2 {
        assert_eq!(reason(&rig.poll().await.unwrap()), Some(Reason::NodeLostBlocks));
    }
    rig.restart().await;
    assert_eq!(reason(&rig.poll().await.unwrap()), Some(Reason::NodeLostBlocks));
}

#[tokio::test]
async fn e19_a_node_killed_in_the_middle_of_a_poll_is_put_right_by_the_next() {
    for nth in 1..=8 {
        let devnet = synced(4).await;
        devnet.clear_counts();
        devnet.on_call(Server::L2, "eth_", nth, |w| w.node.kill(4));
        let mut rig = Rig::on(&devnet).await;
        let _ = rig.poll().await;
        let _ = rig.poll().await;
        let (head, safe, _) = heights(&devnet);
        assert_eq!(head, 4);
        assert!(safe <= Some(4), "call {nth}: safe is {safe:?} over head 4 a poll later");
        rig.settle_stopped().await;
        assert_chain(&devnet, &rig, 32);
        assert!(devnet.unpaused_writes().is_empty());
    }
}

/// A node that now and then says nothing of a block that it has.
struct Forgetful {
    node: Arc<dyn L2Reader>,
    hides: Mutex<Option<L2Number>>,
}

#[async_trait]
impl L2Reader for Forgetful {
    async fn snapshot(&self) -> PortResult<L2Snapshot> {
        self.node.snapshot().await
    }

    async fn header(&self, number: L2Number) -> PortResult<Option<L2Header>> {
        if *self.hides.lock().unwrap() == Some(number) {
            return Ok(None);
        }
        self.node.header(number).await
    }

    async fn blocks(&self, first: L2Number, last: L2Number) -> PortResult<Vec<L2Block>> {
        self.node.blocks(first, last).await
    }

    async fn message_root(&self, block: L2Ref) -> PortResult<MessageRoot> {
        self.node.message_root(block).await
    }

    async fn last_appended_root(&self, first: L2Number, last: L2Number, tip: L2Ref) -> PortResult<Option<B256>> {
        self.node.last_appended_root(first, last, tip).await
    }
}

#[tokio::test]
async fn e19_a_node_that_says_nothing_of_a_block_below_its_head_has_not_lost_it() {
    let devnet = synced(2).await;
    let mut ports = devnet_ports(&devnet).await;
    let forgetful = Arc::new(Forgetful { node: ports.l2.clone(), hides: Mutex::new(None) });
    ports.l2 = forgetful.clone();
    let mut settings = settings();
    settings.rollup = devnet.rollup();
    let mut rig = Rig::start(ports, settings).await;
    rig.settle().await;
    devnet.with(|w| {
        batch(w);
        w.sync();
    });
    *forgetful.hides.lock().unwrap() = Some(L2Number::new(16));
    let error = rig.poll().await.unwrap_err();
    assert_eq!(error.stall().reason(), Reason::LocalChainChanged);
    assert_eq!((rig.safe(), heights(&devnet).1), (Some(16), Some(16)), "nothing moved");
    *forgetful.hides.lock().unwrap() = None;
    assert_eq!(cases(&rig.settle().await), [(3, Case::Consistent)]);
    assert_chain(&devnet, &rig, 24);
}

#[tokio::test]
async fn e20_three_lost_batches_are_filled_in_again_if_the_head_stays_flat() {
    let (devnet, mut rig) = killed(24).await;
    let report = rig.settle_stopped().await;
    assert_eq!(cases(&report), [(4, Case::FillGap), (5, Case::FillGap), (6, Case::FillGap)]);
    assert_eq!(devnet.written(), (25..=48).collect::<Vec<_>>());
    assert_chain(&devnet, &rig, 48);
    assert_eq!(heights(&devnet), (48, Some(48), Some(24)));
    assert_eq!(rig.worker.status().borrow().stall, None);
    assert_promises(&devnet);
}

#[tokio::test]
async fn e20_three_lost_batches_are_waited_for_if_the_head_grows() {
    let (devnet, mut rig) = killed(26).await;
    let mut seen = Vec::new();
    for _ in 0..6 {
        seen.extend(cases(&rig.settle().await));
        devnet.with(|w| w.grow(4));
    }
    rig.settle().await;
    assert_eq!(seen, [(4, Case::Consistent), (5, Case::Consistent)]);
    assert!(devnet.writes().is_empty());
    assert_eq!(devnet.pauses(), 0);
    assert_chain(&devnet, &rig, 48);
    assert_eq!(heights(&devnet), (48, Some(48), Some(24)));
    assert_promises(&devnet);
}

#[tokio::test]
async fn e20_a_loss_below_finalized_lowers_safe_and_leaves_finalized() {
    for stopped in [true, false] {
        let (devnet, mut rig) = killed(11).await;
        rig.poll().await.unwrap();
        // morph-reth forgets its finalized tag with the blocks that it stood on.
        let kept = (!CLIENT.is_reth()).then_some(24);
        assert_eq!(heights(&devnet), (11, Some(8), kept), "safe is never above the head for longer than a poll");
        assert_eq!((rig.safe(), rig.finalized()), (Some(8), Some(24)));
        if !stopped {
            devnet.with(World::sync);
        }
        rig.settle_stopped().await;
        assert_chain(&devnet, &rig, 48);
        assert_eq!(heights(&devnet), (48, Some(48), Some(24)));
        assert_eq!(rig.worker.heads().finalized(), devnet.heads().finalized);
        let tags: Vec<_> = devnet.moments().iter().map(|m| m.finalized.map(|f| f.number.get())).collect();
        assert!(tags.iter().all(|f| *f == Some(24) || *f == kept), "{tags:?}");
        let is_above = |m: &Moment| m.safe.is_some_and(|safe| safe.number > m.head.number);
        let above: Vec<_> = devnet.moments().into_iter().filter(is_above).collect();
        // clear_counts came right after the kill: only what the worker did is seen here.
        assert!(above.is_empty(), "{above:?}");
    }
}

#[tokio::test]
async fn e20_a_loss_down_to_genesis_leaves_no_tag_of_ours_above_the_head() {
    let devnet = synced(3).await;
    let commit = devnet.with(|w| w.l1.find_tx(w.batches[1].tx).unwrap().0.header.number);
    let mut rig = Rig::with(&devnet, |s| s.start = L1Number::new(commit)).await;
    rig.settle().await;
    assert_eq!(rig.safe(), Some(24));
    devnet.with(|w| {
        let tag = w.node.at(24).unwrap().hash();
        w.node.kill(3);
        // morph-reth does not know the block any more, and has no safe tag.
        assert_eq!(w.node.set_block_tags(tag, B256::zero()).is_err(), CLIENT.is_reth());
    });
    devnet.clear_counts();
    rig.poll().await.unwrap();
    assert_eq!(rig.safe(), None);
    assert_eq!(heights(&devnet), (3, (!CLIENT.is_reth()).then_some(0), None));
    rig.settle_stopped().await;
    assert_chain(&devnet, &rig, 24);
}

#[tokio::test]
async fn e22_a_tag_that_was_never_set_is_no_error() {
    let devnet = synced(1).await;
    assert_eq!(heights(&devnet), (8, None, None));
    let mut rig = Rig::on(&devnet).await;
    let report = rig.poll().await.unwrap();
    assert_eq!(report.end, PollEnd::CaughtUp);
    assert_eq!(heights(&devnet), (8, Some(8), None));
}

#[tokio::test]
async fn e23_safe_is_moved_down_before_a_write_below_it() {
    let devnet = synced(4).await;
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    assert_eq!(heights(&devnet), (32, Some(32), Some(0)));
    // Another writer rewrote verified blocks: the tag is on a block that left the chain, at the head's own height.
    devnet.with(|w| w.fork_at(12, ForkShape::OtherTransaction).unwrap());
    devnet.clear_counts();
    let report = rig.settle_stopped().await;
    assert_eq!(cases(&report), [(2, Case::SelfHeal), (3, Case::FillGap), (4, Case::FillGap)]);
    assert_chain(&devnet, &rig, 32);
    assert_promises(&devnet);
    let heads: Vec<_> = devnet.moments().iter().map(|m| (m.head.number.get(), m.safe.unwrap().number.get())).collect();
    assert_eq!(heads[0], (32, 8), "the first thing that anybody saw was safe going down: {heads:?}");
}

#[tokio::test]
async fn e23_a_tag_that_somebody_moved_up_under_way_is_lowered_before_the_write() {
    let devnet = synced(3).await;
    devnet.with(|w| w.fork_at(12, ForkShape::OtherTransaction).unwrap());
    devnet.clear_counts();
    devnet.on_call(Server::Reactors, "pause", 1, |w| {
        let tag = w.node.head().hash();
        w.node.set_block_tags(tag, B256::zero()).unwrap();
    });
    let mut rig = Rig::on(&devnet).await;
    let report = rig.settle_stopped().await;
    assert_eq!(cases(&report)[..2], [(1, Case::Consistent), (2, Case::SelfHeal)]);
    assert_chain(&devnet, &rig, 24);
    assert_promises(&devnet);
}

#[tokio::test]
async fn e24_a_second_writer_of_tags_is_shown_and_set_right_once_a_poll() {
    let devnet = synced(2).await;
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    assert!(!rig.worker.status().borrow().tags_contended);
    // Moved once between two polls: noticed, and right again.
    let foreign = |w: &mut World| {
        let tag = w.node.at(3).unwrap().hash();
        w.node.set_block_tags(tag, B256::zero()).unwrap();
    };
    devnet.with(foreign);
    rig.poll().await.unwrap();
    assert!(rig.worker.status().borrow().tags_contended);
    assert_eq!(heights(&devnet).1, Some(16));
    rig.poll().await.unwrap();
    assert!(!rig.worker.status().borrow().tags_contended);
    // Moved all the time: one correction a poll and no more.
    (1..200).for_each(|nth| devnet.on_call(Server::L2, "eth_", nth, foreign));
    let before = devnet.calls(Server::Engine, "engine_setBlockTags");
    for poll in 1..=4 {
        rig.poll().await.unwrap();
        assert!(rig.worker.status().borrow().tags_contended);
        assert_eq!(devnet.calls(Server::Engine, "engine_setBlockTags") - before, poll);
    }
    assert_eq!(rig.safe(), Some(16));
}

#[tokio::test]
async fn e24_a_tag_beyond_what_was_verified_is_shown_and_never_adopted() {
    let devnet = network(2).await;
    devnet.with(|w| {
        w.node.moods.wrong_state_from = Some(12);
        w.execute_to(16).unwrap();
    });
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    devnet.with(|w| {
        let tag = w.node.head().hash();
        w.node.set_block_tags(tag, B256::zero()).unwrap();
    });
    rig.poll().await.unwrap();
    assert!(rig.worker.status().borrow().tags_contended);
    assert_eq!((rig.safe(), heights(&devnet).1), (Some(8), Some(8)));
}

#[tokio::test]
async fn e25_observe_mode_says_what_it_would_do_and_touches_nothing() {
    let observe = async |devnet: &Devnet| {
        let mut settings = settings();
        settings.rollup = devnet.rollup();
        let mut ports = devnet_ports(devnet).await;
        ports.engine = None;
        Rig::start(ports, settings).await
    };
    let untouched = |devnet: &Devnet| {
        assert_eq!(devnet.http_requests(Server::Engine), 0);
        assert_eq!(devnet.http_requests(Server::Reactors), 0);
        assert_eq!(heights(devnet).1, None);
    };
    // All is well: heads of our own, no tags.
    let devnet = synced(2).await;
    finalize_l1(&devnet);
    let mut rig = observe(&devnet).await;
    assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
    assert_eq!((rig.safe(), rig.finalized()), (Some(16), Some(16)));
    untouched(&devnet);
    // A fork.
    let devnet = synced(2).await;
    devnet.with(|w| w.fork_at(12, ForkShape::BaseFee).unwrap());
    let mut rig = observe(&devnet).await;
    for _ in 0..3 {
        assert_eq!(reason(&rig.settle().await), Some(Reason::WouldSelfHeal));
    }
    assert!(Reason::WouldSelfHeal.is_divergence());
    assert_eq!(rig.safe(), Some(8));
    untouched(&devnet);
    // A gap.
    let devnet = network(2).await;
    devnet.with(|w| w.sync_to(8));
    let mut rig = observe(&devnet).await;
    assert_eq!(reason(&rig.settle().await), Some(Reason::WaitingForBlocks));
    assert_eq!(reason(&rig.settle_stopped().await), Some(Reason::WouldFillGap));
    untouched(&devnet);
    // A wrong root.
    let devnet = network(2).await;
    devnet.with(|w| {
        w.node.moods.wrong_state_from = Some(12);
        w.execute_to(16).unwrap();
    });
    let mut rig = observe(&devnet).await;
    assert_eq!(reason(&rig.settle().await), Some(Reason::StateRoot));
    assert_eq!(rig.safe(), Some(8));
    untouched(&devnet);
}

#[tokio::test]
async fn reads_that_change_under_way_move_nothing_and_end_in_the_right_chain() {
    // Before any read of blocks, the chain below the batch becomes another one, with a new head.
    for method in ["debug_getBlockRlp", "eth_getBlockByNumber"] {
        for nth in 1..=6 {
            let devnet = synced(3).await;
            devnet.clear_counts();
            devnet.on_call(Server::L2, method, nth, |w| {
                w.build(1).unwrap();
                w.sync();
                w.fork_at(6, ForkShape::OtherTransaction).unwrap();
            });
            let mut rig = Rig::on(&devnet).await;
            let mut failed = 0;
            for _ in 0..12 {
                match rig.poll().await {
                    Ok(_) => {}
                    Err(FlowError::Stall(stall)) => {
                        assert_eq!(stall.reason(), Reason::LocalChainChanged, "{method} {nth}: {stall}");
                        failed += 1;
                    }
                    Err(FlowError::Port(_)) => failed += 1,
                }
            }
            assert!(failed <= 2, "{method} {nth}: failed {failed} polls");
            devnet.with(World::sync);
            rig.settle().await;
            assert_eq!(rig.safe(), Some(24), "{method} {nth}");
            let end = devnet.with(|w| (w.node.safe().map(|s| s.hash), w.expected(24).map(|b| b.hash)));
            assert_eq!(end.0, end.1, "{method} {nth}");
            assert!(devnet.unpaused_writes().is_empty());
            assert_eq!(devnet.pauses(), devnet.resumes());
        }
    }
}
