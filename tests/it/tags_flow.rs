//! What the node shows of itself and what is proved by it: whose mark a tag is, a tag's block on the chain, a head that
//! stands still (scenarios M8, M9, M18).

use std::time::Duration;

use morph_deriver::decide::liveness::HeadTrend;
use morph_deriver::decide::stall::Reason;
use morph_deriver::devnet::Devnet;
use morph_deriver::devnet::chain::{BatchSpec, BlockPlan};
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::devnet::jsonrpc::RpcError;
use morph_deriver::devnet::world::{ForkShape, World};
use morph_deriver::types::{B256, Case};

use super::CLIENT;
use super::node_flow::{assert_chain, assert_promises, batch, finalize_l1, heights, network, synced};
use crate::support::late_store::LateStore;
use crate::support::rig::{Rig, STEP, cases, devnet_ports, reason, settings};

/// A worker that has filled batches 2 and 3 by itself; L1 has finalized nothing.
async fn filled() -> (Devnet, Rig) {
    let devnet = network(3).await;
    devnet.with(|w| w.sync_to(8));
    let mut rig = Rig::on(&devnet).await;
    rig.settle_stopped().await;
    assert_eq!(heights(&devnet), (24, Some(24), None));
    (devnet, rig)
}

/// Somebody else sets safe and finalized to the block at `number`.
fn tag_by_another(devnet: &Devnet, number: u64) {
    devnet.with(|w| {
        let tag = w.node.at(number).unwrap().hash();
        w.node.set_block_tags(tag, tag).unwrap();
    });
    devnet.clear_counts();
}

/// Every reader of the node has seen its finalized tag at `number` since the last `clear_counts`.
fn assert_finalized_stays(devnet: &Devnet, number: u64, what: &str) {
    // morph-reth sets safe before finalized: while the other writer sets both, finalized is not there yet.
    let not_yet = |f: &Option<u64>| f.is_none() && CLIENT.is_reth();
    let seen: Vec<_> =
        devnet.moments().iter().map(|m| m.finalized.map(|f| f.number.get())).skip_while(not_yet).collect();
    assert!(seen.iter().all(|f| *f == Some(number)), "{what}: {seen:?}");
    assert_eq!(heights(devnet).2, Some(number), "{what}");
}

#[tokio::test]
async fn m9_h6_p2_another_writers_finalized_on_blocks_of_ours_survives_a_kill_of_the_node() {
    for restarted in [false, true] {
        for marks in [false, true] {
            let what = format!("restarted: {restarted}, the node marks: {marks}");
            let (devnet, mut rig) = filled().await;
            tag_by_another(&devnet, 24);
            devnet.with(|w| {
                w.node.moods.tags_what_it_writes = marks;
                w.node.kill(18);
            });
            devnet.clear_counts();
            if restarted {
                rig.restart().await;
            }
            rig.poll().await.unwrap();
            if CLIENT.is_reth() {
                // The node itself forgets the tag with the blocks, and the worker puts none in its place.
                assert_eq!(heights(&devnet), (18, Some(16), None), "{what}");
            } else {
                assert_eq!(heights(&devnet), (18, Some(16), Some(24)), "{what}");
                assert_finalized_stays(&devnet, 24, &what);
            }
            assert!(!rig.worker.status().borrow().el_marks_finalized, "{what}");
        }
    }
}

#[tokio::test]
async fn m9_h6_p2_another_writers_finalized_on_blocks_of_ours_survives_a_revert() {
    for restarted in [false, true] {
        let (devnet, mut rig) = filled().await;
        tag_by_another(&devnet, 24);
        devnet.with(|w| {
            w.revert(3).unwrap();
            w.mine(1);
        });
        if restarted {
            rig.restart().await;
        }
        rig.settle().await;
        rig.settle().await;
        assert_finalized_stays(&devnet, 24, "reverted");
        assert_eq!(rig.finalized(), None, "L1 has finalized nothing");
    }
}

/// Another writer moves both tags between our look at the node and our call: the calls follow from the tags at that moment.
#[tokio::test]
async fn m9_e24_p2_tags_that_another_writer_moved_since_the_look_are_not_moved_back() {
    let devnet = synced(2).await;
    devnet.with(|w| {
        w.build(8).unwrap();
        w.grow(8);
    });
    finalize_l1(&devnet);
    devnet.clear_counts();
    devnet.on_call(Server::Engine, "eth_chainId", 1, |w| {
        let tag = w.node.at(24).unwrap().hash();
        w.node.set_block_tags(tag, tag).unwrap();
    });
    let mut rig = Rig::on(&devnet).await;
    for _ in 0..3 {
        rig.poll().await.unwrap();
    }
    assert_eq!((rig.safe(), rig.finalized()), (Some(16), Some(16)));
    assert_finalized_stays(&devnet, 24, "moved by another writer");
    assert_eq!(heights(&devnet), (24, Some(24), Some(24)));
    assert!(rig.worker.status().borrow().held_by_node_finalized);
}

/// A worker that wrote batch 2 and stalls on its state root: the writes are open.
async fn stands_on_a_write(marks: bool) -> (Devnet, Rig) {
    let devnet = network(2).await;
    devnet.with(|w| {
        w.sync_to(8);
        w.node.moods.wrong_state_from = Some(12);
        w.node.moods.tags_what_it_writes = marks;
    });
    let mut rig = Rig::on(&devnet).await;
    assert_eq!(reason(&rig.settle_stopped().await), Some(Reason::StateRoot));
    assert_eq!(heights(&devnet), (16, Some(8), marks.then_some(0)));
    (devnet, rig)
}

#[tokio::test]
async fn m9_e24_another_writers_finalized_on_a_write_that_is_still_open_is_left_alone() {
    for marks in [false, true] {
        for restarted in [false, true] {
            let what = format!("restarted: {restarted}, the node marks: {marks}");
            let (devnet, mut rig) = stands_on_a_write(marks).await;
            tag_by_another(&devnet, 16);
            if restarted {
                rig.restart().await;
            }
            for _ in 0..3 {
                assert!(rig.poll().await.is_ok());
            }
            assert_finalized_stays(&devnet, 16, &what);
        }
    }
}

#[tokio::test]
async fn m9_e12_a_mark_outlives_its_batch_and_the_process_until_it_is_put_back() {
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
    assert_eq!(rig.safe(), Some(16), "verified and stored all the same");
    for _ in 0..2 {
        rig.restart().await;
        let _ = rig.poll().await;
        assert_eq!(heights(&devnet), (16, Some(16), Some(16)), "the mark cannot be put back yet");
    }
    devnet.with(|w| w.node.moods.tags_error = None);
    rig.restart().await;
    rig.poll().await.unwrap();
    assert_eq!(heights(&devnet), (16, Some(16), Some(0)), "L1 has finalized nothing");
    // Put back once: a later move is another writer's.
    tag_by_another(&devnet, 16);
    for _ in 0..2 {
        rig.poll().await.unwrap();
        rig.restart().await;
    }
    assert_finalized_stays(&devnet, 16, "after the mark was put back");
}

#[tokio::test]
async fn m9_e12_a_mark_goes_back_to_what_another_writer_had_finalized_under_way() {
    // The other writer finalizes block 5 between the poll's first look and the write.
    let devnet = network(2).await;
    devnet.with(|w| {
        w.sync_to(8);
        w.node.moods.tags_what_it_writes = true;
    });
    let mut rig = Rig::with(&devnet, |s| s.assume = Some(HeadTrend::Stopped)).await;
    devnet.on_call(Server::Reactors, "pause", 1, |w| {
        let (safe, finalized) = (w.node.at(8).unwrap().hash(), w.node.at(5).unwrap().hash());
        w.node.set_block_tags(safe, finalized).unwrap();
    });
    rig.settle().await;
    rig.settle().await;
    assert_chain(&devnet, &rig, 16);
    assert_eq!(heights(&devnet), (16, Some(16), Some(5)));
    assert!(rig.worker.status().borrow().el_marks_finalized);
    assert_promises(&devnet);
}

/// Whether the node's safe tag is on a block that is not on its chain.
fn is_safe_off_chain(devnet: &Devnet) -> bool {
    devnet.with(|w| {
        let on_chain = |tag: morph_deriver::types::L2Ref| {
            tag.number <= w.node.head().l2_ref().number
                && w.node.at(tag.number.get()).is_some_and(|b| b.hash() == tag.hash)
        };
        w.node.safe().is_some_and(|tag| !on_chain(tag))
    })
}

#[tokio::test]
async fn m18_p2_a_chain_that_is_swapped_after_it_was_read_gets_no_safe_tag() {
    for nth in 1..=2 {
        let devnet = synced(2).await;
        let last = nth * 8;
        devnet.clear_counts();
        devnet.on_call(Server::L2, "eth_call", nth, move |w| w.fork_at(last, ForkShape::OtherTransaction).unwrap());
        // The root is the last that is read of a batch if nothing is gathered ahead.
        let mut rig = Rig::with(&devnet, |s| (s.poll_interval, s.read_ahead) = (STEP, 0)).await;
        let _ = rig.poll().await;
        let orphan = devnet.with(|w| w.expected(last)).unwrap();
        let tagged = devnet.tag_calls().iter().any(|call| call.safe == orphan.hash);
        assert!(!tagged && !is_safe_off_chain(&devnet), "batch {nth}: a safe tag on a block that left the chain");
        assert_ne!(rig.safe(), Some(last), "batch {nth}: our own safe head on it");
        rig.settle_stopped().await;
        assert_chain(&devnet, &rig, 16);
    }
}

#[tokio::test]
async fn m18_p2_a_chain_that_is_swapped_at_any_read_has_no_tag_off_it_after_the_poll() {
    for (server, method) in [(Server::L2, "eth_"), (Server::L2, "eth_call"), (Server::Engine, "engine_setBlockTags")] {
        for nth in 1..=14 {
            let devnet = synced(3).await;
            devnet.clear_counts();
            devnet.on_call(server, method, nth, |w| w.fork_at(7, ForkShape::OtherTransaction).unwrap());
            let mut rig = Rig::on(&devnet).await;
            let _ = rig.poll().await;
            if method != "engine_setBlockTags" {
                // The tag may have been there before the swap: then the next poll takes it down.
                let _ = rig.poll().await;
            }
            assert!(!is_safe_off_chain(&devnet), "{method} {nth}");
            rig.settle_stopped().await;
            rig.settle_stopped().await;
            assert_chain(&devnet, &rig, 24);
            assert!(devnet.unpaused_writes().is_empty());
        }
    }
}

#[tokio::test]
async fn m18_p2_a_chain_that_is_swapped_right_before_its_tag_is_never_tagged() {
    // The engine is looked at before every tag: the genesis block, then both batches at once.
    for last in [8, 16] {
        let devnet = synced(2).await;
        devnet.clear_counts();
        devnet.on_call(Server::Engine, "eth_chainId", 2, move |w| {
            w.fork_at(last, ForkShape::OtherTransaction).unwrap();
        });
        let mut rig = Rig::on(&devnet).await;
        assert!(rig.poll().await.is_err());
        let orphan = devnet.with(|w| w.expected(last)).unwrap();
        assert!(devnet.tag_calls().iter().all(|call| call.safe != orphan.hash), "block {last}");
        rig.settle_stopped().await;
        assert_chain(&devnet, &rig, 16);
    }
}

#[tokio::test]
async fn m18_an_idle_poll_asks_nothing_more() {
    let devnet = synced(2).await;
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    rig.settle().await;
    devnet.clear_counts();
    rig.poll().await.unwrap();
    assert_eq!(devnet.http_requests(Server::Engine), 0);
    assert_eq!(devnet.http_requests(Server::L2), 1, "the snapshot alone");
}

/// Batch 2 is missing; the chain was seen to grow.
async fn seen_alive() -> (Devnet, Rig) {
    let devnet = network(2).await;
    devnet.with(|w| w.sync_to(8));
    let mut rig = Rig::on(&devnet).await;
    rig.poll().await.unwrap();
    devnet.with(|w| w.grow(1));
    rig.poll().await.unwrap();
    assert_eq!(rig.worker.status().borrow().verdict, Some(HeadTrend::Alive));
    (devnet, rig)
}

/// Nothing is filled before we have seen the head flat for a whole window; then it is.
async fn fills_after_a_whole_window(devnet: &Devnet, rig: &mut Rig, what: &str) {
    for poll in 0..4 {
        let report = rig.poll().await.unwrap();
        assert_eq!(reason(&report), Some(Reason::WaitingForBlocks), "{what}: poll {poll}");
        assert!(devnet.writes().is_empty(), "{what}: poll {poll}");
    }
    assert_eq!(cases(&rig.poll().await.unwrap()), [(2, Case::FillGap)], "{what}");
}

#[tokio::test]
async fn m8_e7_time_in_which_the_node_could_not_be_asked_proves_nothing() {
    let (devnet, mut rig) = seen_alive().await;
    devnet.fault(Server::L2, Rule::always(Fault::Status(503, String::new())));
    for _ in 0..8 {
        assert!(rig.poll().await.is_err());
    }
    devnet.heal(Server::L2);
    fills_after_a_whole_window(&devnet, &mut rig, "down").await;
}

#[tokio::test]
async fn m8_e9_time_in_which_the_node_was_syncing_proves_nothing() {
    let (devnet, mut rig) = seen_alive().await;
    devnet.with(|w| w.node.moods.syncing = true);
    for _ in 0..8 {
        assert_eq!(reason(&rig.poll().await.unwrap()), Some(Reason::NodeSyncing));
    }
    devnet.with(|w| w.node.moods.syncing = false);
    fills_after_a_whole_window(&devnet, &mut rig, "syncing").await;
}

#[tokio::test]
async fn m8_g10_time_in_which_we_paused_the_reactors_of_a_living_chain_proves_nothing() {
    // Batch 2 is forked and batch 3 incomplete; the chain is seen to grow before L1 shows anything.
    let devnet = network(3).await;
    devnet.with(|w| {
        w.sync_to(22);
        w.fork_at(12, ForkShape::OtherTransaction).unwrap();
    });
    let mut rig = Rig::on(&devnet).await;
    devnet.fault(Server::L1(0), Rule::always(Fault::Status(503, String::new())));
    assert!(rig.poll().await.is_err());
    devnet.with(|w| w.execute_to(23).unwrap());
    devnet.heal(Server::L1(0));
    let report = rig.poll().await.unwrap();
    assert_eq!(rig.worker.status().borrow().verdict, Some(HeadTrend::Alive));
    assert_eq!(cases(&report).last(), Some(&(2, Case::SelfHeal)));
    devnet.clear_counts();
    // The pause took as long as a whole window, or a service as long to come back.
    rig.now += Duration::from_secs(60);
    for poll in 0..4 {
        let report = rig.poll().await.unwrap();
        assert_eq!(reason(&report), Some(Reason::WaitingForBlocks), "poll {poll}");
        assert!(devnet.writes().is_empty(), "poll {poll}");
    }
    assert_eq!(cases(&rig.poll().await.unwrap()), [(3, Case::FillGap)]);
    assert_chain(&devnet, &rig, 24);
    assert_promises(&devnet);
}

#[tokio::test]
async fn m8_g9_our_own_pause_makes_no_stopped_chain_unknown() {
    let devnet = network(2).await;
    devnet.with(|w| w.sync_to(8));
    let mut rig = Rig::on(&devnet).await;
    assert_eq!(cases(&rig.settle_stopped().await).last(), Some(&(2, Case::FillGap)));
    // The next batch that is missing is filled by the poll that sees it.
    devnet.with(batch);
    assert_eq!(cases(&rig.poll().await.unwrap()), [(3, Case::FillGap)]);
    assert_chain(&devnet, &rig, 24);
    assert_promises(&devnet);
}

#[tokio::test]
async fn m8_g6_time_in_which_the_reactors_could_not_be_resumed_proves_nothing() {
    let devnet = network(2).await;
    devnet.with(|w| w.sync_to(8));
    let mut rig = Rig::on(&devnet).await;
    let fault = Fault::Error(RpcError::server("not now"));
    devnet.fault(Server::Reactors, Rule::on("resume", fault));
    // Stopped, filled, and then only we could have written for a long time.
    for _ in 0..6 {
        let _ = rig.poll().await;
    }
    assert_eq!(rig.safe(), Some(16));
    assert!(rig.worker.quiesce().is_degraded());
    devnet.with(batch);
    let _ = rig.poll().await;
    assert_eq!(rig.safe(), Some(16));
    devnet.heal(Server::Reactors);
    while rig.worker.quiesce().is_degraded() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for poll in 0..4 {
        assert_eq!(reason(&rig.poll().await.unwrap()), Some(Reason::WaitingForBlocks), "poll {poll}");
    }
    assert_eq!(cases(&rig.poll().await.unwrap()), [(3, Case::FillGap)]);
}

#[tokio::test]
async fn g10_m8_if_the_head_cannot_be_read_after_a_write_there_is_no_verdict() {
    let devnet = network(2).await;
    devnet.with(|w| w.sync_to(8));
    let mut rig = Rig::on(&devnet).await;
    for _ in 0..4 {
        rig.poll().await.unwrap();
    }
    // The write happens, its answer is lost, and so is the next look at the head.
    devnet.fault(Server::Engine, Rule::on("engine_newSafe", Fault::DropAfter).times(1));
    let fault = Fault::Error(RpcError::server("overloaded"));
    devnet.fault(Server::L2, Rule::on("eth_syncing", fault).after(3));
    assert!(rig.poll().await.is_err());
    assert!(heights(&devnet).0 > 8, "written, though the answer was lost");
    devnet.heal(Server::L2);
    for _ in 0..2 {
        rig.poll().await.unwrap();
        let verdict = rig.worker.status().borrow().verdict;
        assert!(matches!(verdict, Some(HeadTrend::Unknown(_))), "{verdict:?}");
    }
    rig.settle_stopped().await;
    assert_chain(&devnet, &rig, 16);
}

#[tokio::test]
async fn m9_h6_another_writers_finalized_below_a_rewrite_is_left_alone() {
    // A node that marks, a tag of another writer's on the verified part, a heal above it.
    let devnet = synced(2).await;
    finalize_l1(&devnet);
    devnet.with(|w| {
        batch(w);
        w.enqueue(1).unwrap();
        w.build_planned(&BlockPlan { txs: 1, messages: 1, ..BlockPlan::default() }).unwrap();
        w.commit(BatchSpec::default()).unwrap();
        w.mine(1);
        w.sync();
        w.node.moods.tags_what_it_writes = true;
    });
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    assert_eq!(heights(&devnet), (25, Some(25), Some(16)));
    devnet.with(|w| {
        let tag = w.node.at(18).unwrap().hash();
        w.node.set_block_tags(B256::zero(), tag).unwrap();
        w.fork_at(20, ForkShape::OtherTransaction).unwrap();
    });
    rig.settle_stopped().await;
    rig.settle_stopped().await;
    assert_chain(&devnet, &rig, 25);
    assert_eq!(heights(&devnet), (25, Some(25), Some(18)));
    assert!(devnet.with(|w: &mut World| w.node.finalized() == w.expected(18)));
}

#[tokio::test]
async fn m7_m18_a_node_whose_head_never_stops_is_still_tagged() {
    let devnet = network(2).await;
    devnet.with(|w| {
        w.build(200).unwrap();
        w.sync_to(16);
    });
    // It grows before and after every look at the engine: no two looks show the same head.
    for nth in 1..=60 {
        devnet.on_call(Server::Engine, "web3_clientVersion", nth, |w| w.grow(1));
        devnet.on_call(Server::Engine, "eth_chainId", nth, |w| w.grow(1));
    }
    devnet.clear_counts();
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    assert_eq!(rig.safe(), Some(16));
    let (head, safe, _) = heights(&devnet);
    assert!(head > 20, "it grew under every look: {head}");
    assert_eq!(safe, Some(16));
}

/// A worker whose database begins at batch 3: there is no batch below it, so that a revert of it leaves no safe head.
async fn begun_at_batch_3() -> (Devnet, Rig, std::sync::Arc<LateStore>) {
    let devnet = synced(4).await;
    let commit = devnet.with(|w| w.l1.find_tx(w.batches[2].tx).unwrap().0.header.number);
    let mut ports = devnet_ports(&devnet).await;
    let store = LateStore::over(ports.progress.clone());
    ports.progress = store.clone();
    let mut settings = settings();
    (settings.rollup, settings.start) = (devnet.rollup(), commit.into());
    let mut rig = Rig::start(ports, settings).await;
    rig.settle().await;
    assert_eq!(heights(&devnet), (32, Some(32), None));
    devnet.with(|w| {
        w.revert(3).unwrap();
        w.mine(1);
    });
    devnet.clear_counts();
    (devnet, rig, store)
}

#[tokio::test]
async fn h2_c1_no_tag_follows_from_memory_that_may_not_be_what_is_stored() {
    let (devnet, mut rig, store) = begun_at_batch_3().await;
    store.refuse_reverts(true);
    assert!(rig.poll().await.is_err());
    assert_eq!(heights(&devnet).1, Some(16), "what L1 took away is not safe");
    assert_eq!(devnet.tag_calls().len(), 1, "{:?}", devnet.tag_calls());
    store.refuse_reverts(false);
    rig.settle().await;
    assert_eq!((heights(&devnet).1, rig.safe()), (Some(16), None));
}

/// Another devnet with the same chain, one block lower: its engine is another node.
async fn another_engine(devnet: &Devnet, rig: &mut Rig) -> Devnet {
    let other = network(0).await;
    let head = heights(devnet).0;
    other.with(|w| (0..head / 8).for_each(|_| batch(w)));
    other.with(|w| w.sync_to(head - 1));
    assert_eq!(other.with(|w| w.expected(8)), devnet.with(|w| w.expected(8)), "one chain");
    other.clear_counts();
    rig.ports.engine = devnet_ports(&other).await.engine;
    rig.restart().await;
    other
}

#[tokio::test]
async fn m7_c1_an_engine_that_is_another_node_gets_no_tag_after_a_revert() {
    let (devnet, mut rig, _) = begun_at_batch_3().await;
    let other = another_engine(&devnet, &mut rig).await;
    other.with(|w| {
        let tag = w.node.at(31).unwrap().hash();
        w.node.set_block_tags(tag, B256::zero()).unwrap();
    });
    other.clear_counts();
    let report = rig.poll().await.unwrap();
    assert_eq!(reason(&report), Some(Reason::EngineIsAnotherNode));
    assert_eq!(other.tag_calls(), []);
    assert_eq!(rig.safe(), None, "the revert is stored all the same");
}

#[tokio::test]
async fn m7_m9_on_an_engine_that_is_another_node_no_mark_is_put_back() {
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
    assert_eq!(heights(&devnet).2, Some(16), "a mark that is not put back yet");
    let own = rig.ports.engine.clone();
    let other = another_engine(&devnet, &mut rig).await;
    assert_eq!(reason(&rig.poll().await.unwrap()), Some(Reason::EngineIsAnotherNode));
    assert_eq!(other.tag_calls(), []);
    // The right one, and the mark is put back.
    devnet.with(|w| w.node.moods.tags_error = None);
    rig.ports.engine = own;
    rig.restart().await;
    rig.poll().await.unwrap();
    assert_eq!(heights(&devnet), (16, Some(16), Some(0)));
}
