//! L1 reorgs on whole flows over HTTP (group B): what falls away, what moves, what comes back, and when it halts.

use morph_deriver::codec::transaction::L1MessageFields;
use morph_deriver::decide::stall::Reason;
use morph_deriver::devnet::chain::{BatchSpec, BlockPlan};
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::devnet::jsonrpc::RpcError;
use morph_deriver::devnet::l1::L1Op;
use morph_deriver::devnet::world::{World, WorldOptions};
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::error::Severity;
use morph_deriver::flow::PollEnd;
use morph_deriver::ports::Step;
use morph_deriver::types::{Address, B256, Case, Cursor, L1Ref, U256};

use super::CLIENT;
use crate::support::late_store::LateStore;
use crate::support::rig::{Rig, cases, devnet_ports, options, reason, settings, world_options};

/// Nothing on L1 is final, so that a deep reorg is no contradiction.
async fn empty() -> Devnet {
    let world = WorldOptions { finalized_depth: 10_000, ..world_options(CLIENT) };
    Devnet::start(DevnetOptions { world, ..options(CLIENT) }).await.unwrap()
}

/// Two batches of 8 blocks far below the head, then one whose commit lies `depth` blocks below the top, the top
/// included: a reorg that deep takes it away. The local node is in step.
async fn with_batch_at_depth(depth: u64) -> Devnet {
    let devnet = empty().await;
    devnet.with(|w| {
        w.produce(8).unwrap();
        w.produce(8).unwrap();
        w.mine(80);
        w.produce(8).unwrap();
        if depth > 1 {
            w.mine(depth - 1);
        }
        w.sync();
    });
    devnet
}

/// The newest `depth` L1 blocks are other ones, without any transaction of ours.
fn replace_empty(w: &mut World, depth: u64) {
    w.reorg(depth);
    w.mine(depth + 1);
}

fn node_safe(devnet: &Devnet) -> Option<u64> {
    devnet.heads().safe.map(|s| s.number.get())
}

fn commit_block(devnet: &Devnet, nth: usize) -> u64 {
    devnet.with(|w| w.l1.find_tx(w.batches[nth].tx).unwrap().0.header.number)
}

/// Polls twice; what the second one ended on.
async fn two_polls(rig: &mut Rig) -> PollEnd {
    rig.poll().await.unwrap();
    rig.poll().await.unwrap().end
}

fn assert_ordered(devnet: &Devnet) {
    assert!(devnet.moments().iter().all(|m| m.is_ordered()));
}

#[tokio::test]
async fn b3_b4_a_reorg_that_drops_a_batch_takes_safe_back_in_one_poll() {
    for depth in [1, 10, 64] {
        let devnet = with_batch_at_depth(depth).await;
        let mut rig = Rig::on(&devnet).await;
        rig.settle().await;
        assert_eq!((rig.safe(), node_safe(&devnet)), (Some(24), Some(24)));
        devnet.with(|w| replace_empty(w, depth));
        rig.poll().await.unwrap();
        assert_eq!((rig.safe(), node_safe(&devnet)), (Some(16), Some(16)), "depth {depth}");
        assert_eq!(rig.poll().await.unwrap().end, PollEnd::CaughtUp);
        assert_eq!(rig.worker.status().borrow().reorgs, 1);
        assert!(devnet.written().is_empty());
        // It comes back later.
        devnet.with(|w| {
            w.commit(BatchSpec { last: Some(24), ..BatchSpec::default() }).unwrap();
            w.mine(1);
        });
        assert_eq!(cases(&rig.settle().await), [(3, Case::Consistent)]);
        assert_eq!((rig.safe(), node_safe(&devnet)), (Some(24), Some(24)));
        assert_ordered(&devnet);
    }
}

#[tokio::test]
async fn b4_b5_a_reorg_above_all_batches_changes_nothing() {
    for depth in [1, 10, 64] {
        let devnet = with_batch_at_depth(depth + 1).await;
        let mut rig = Rig::on(&devnet).await;
        rig.settle().await;
        let before = rig.ports.progress.batch(3.into()).await.unwrap();
        devnet.clear_counts();
        devnet.with(|w| replace_empty(w, depth));
        assert_eq!(two_polls(&mut rig).await, PollEnd::CaughtUp, "depth {depth}");
        assert_eq!((rig.safe(), node_safe(&devnet)), (Some(24), Some(24)));
        assert_eq!(rig.ports.progress.batch(3.into()).await.unwrap(), before);
        assert!(devnet.tag_calls().is_empty(), "no tag moves for a reorg without a batch");
        assert_eq!(rig.worker.status().borrow().reorgs, 1);
    }
}

#[tokio::test]
async fn b2_b4_a_batch_that_moves_to_another_l1_block_is_bound_to_it_and_safe_never_dips() {
    for depth in [1, 10, 64] {
        let devnet = with_batch_at_depth(depth).await;
        let mut rig = Rig::on(&devnet).await;
        rig.settle().await;
        let old = commit_block(&devnet, 2);
        devnet.clear_counts();
        devnet.with(|w| {
            let known = w.batches.clone();
            let dropped = w.reorg(depth);
            w.mine(2);
            w.resubmit(&dropped, &known).unwrap();
            w.mine(depth);
        });
        let report = rig.poll().await.unwrap();
        assert_eq!(report.end, PollEnd::CaughtUp, "depth {depth}");
        assert!(report.batches.is_empty(), "what was verified stays verified");
        assert_eq!((rig.safe(), node_safe(&devnet)), (Some(24), Some(24)));
        let row = rig.ports.progress.batch(3.into()).await.unwrap().unwrap();
        assert_eq!(row.l1.number.get(), commit_block(&devnet, 2));
        assert_ne!(row.l1.number.get(), old);
        assert!(devnet.tag_calls().is_empty(), "safe never dips");
        // A second reorg, whose ancestor lies among the blocks below the moved commit.
        devnet.with(|w| {
            let depth = w.l1.head() - (row.l1.number.get() - 1);
            replace_empty(w, depth);
        });
        assert_eq!(two_polls(&mut rig).await, PollEnd::CaughtUp);
        assert_eq!((rig.safe(), node_safe(&devnet)), (Some(16), Some(16)));
        assert_ordered(&devnet);
    }
}

#[tokio::test]
async fn b2_finality_of_a_moved_batch_follows_its_new_l1_block() {
    let devnet = with_batch_at_depth(3).await;
    let old = commit_block(&devnet, 2);
    devnet.l1_knobs(0, |k| k.finalized = Some(old - 10));
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    assert_eq!((rig.safe(), rig.finalized()), (Some(24), Some(16)));
    devnet.with(|w| {
        let known = w.batches.clone();
        let dropped = w.reorg(3);
        w.mine(6);
        w.resubmit(&dropped, &known).unwrap();
        w.mine(4);
    });
    let new = commit_block(&devnet, 2);
    for (finalized_l1, expected) in [(old, 16), (new - 1, 16), (new, 24)] {
        devnet.l1_knobs(0, |k| k.finalized = Some(finalized_l1));
        rig.settle().await;
        assert_eq!((rig.safe(), rig.finalized()), (Some(24), Some(expected)), "L1 finalized {finalized_l1}");
    }
}

#[tokio::test]
async fn b3_b4_a_batch_that_is_replaced_by_another_one_is_verified_anew() {
    for depth in [1, 10, 64] {
        let devnet = with_batch_at_depth(depth).await;
        let mut rig = Rig::on(&devnet).await;
        rig.settle().await;
        devnet.with(|w| {
            w.reorg(depth);
            // The dropped message is queued again, the sequencer's blocks are others.
            w.enqueue(1).unwrap();
            w.mine(1);
            w.sequencer.node.truncate(16);
            w.build(7).unwrap();
            w.commit(BatchSpec::default()).unwrap();
            w.mine(depth + 1);
        });
        let mut seen = cases(&rig.poll().await.unwrap());
        let second = rig.poll().await.unwrap();
        seen.extend(cases(&second));
        assert_eq!(second.end, PollEnd::CaughtUp);
        assert_eq!(seen, [(3, Case::SelfHeal)], "depth {depth}");
        assert_eq!((rig.safe(), node_safe(&devnet)), (Some(23), Some(23)));
        assert_eq!(devnet.heads().local, devnet.heads().sequencer);
        assert_ordered(&devnet);
    }
}

#[tokio::test]
async fn b4_a_reorg_below_the_window_halts_and_moves_nothing() {
    for depth in [65, 75] {
        let devnet = with_batch_at_depth(depth).await;
        let mut rig = Rig::on(&devnet).await;
        rig.settle().await;
        devnet.with(|w| replace_empty(w, depth));
        for _ in 0..2 {
            let report = rig.poll().await.unwrap();
            assert_eq!(reason(&report), Some(Reason::ReorgTooDeep), "depth {depth}");
            assert_eq!((rig.safe(), node_safe(&devnet)), (Some(24), Some(24)));
        }
    }
}

#[tokio::test]
async fn b4_the_window_is_whole_also_after_many_short_polls() {
    let devnet = with_batch_at_depth(1).await;
    let mut rig = Rig::with(&devnet, |s| s.fetch_range = 7).await;
    rig.settle().await;
    for _ in 0..40 {
        devnet.with(|w| {
            w.mine(2);
        });
        rig.settle().await;
    }
    devnet.with(|w| replace_empty(w, 64));
    assert_eq!(two_polls(&mut rig).await, PollEnd::Behind);
    assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
    assert_eq!(rig.safe(), Some(24));
}

#[tokio::test]
async fn b3_a_reorg_that_drops_a_revert_restores_the_batch() {
    let devnet = with_batch_at_depth(5).await;
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    devnet.with(|w| {
        w.revert(3).unwrap();
        w.mine(1);
    });
    rig.settle().await;
    assert_eq!((rig.safe(), node_safe(&devnet)), (Some(16), Some(16)));
    devnet.with(|w| replace_empty(w, 1));
    let report = rig.poll().await.unwrap();
    assert_eq!(report.end, PollEnd::CaughtUp);
    assert_eq!((rig.safe(), node_safe(&devnet)), (Some(24), Some(24)));
    // The next batch continues it.
    devnet.with(|w| {
        w.build(8).unwrap();
        w.commit(BatchSpec::default()).unwrap();
        w.mine(1);
        w.sync();
    });
    assert_eq!(cases(&rig.settle().await), [(4, Case::Consistent)]);
    assert_eq!(rig.safe(), Some(32));
}

#[tokio::test]
async fn b3_a_reorg_that_drops_a_revert_and_a_recommit_with_other_content() {
    let devnet = with_batch_at_depth(5).await;
    devnet.with(|w| {
        w.build(6).unwrap();
        w.sync();
    });
    let original = devnet.with(|w| w.sequencer.node.clone());
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    devnet.with(|w| {
        w.revert(3).unwrap();
        w.mine(1);
        w.sequencer.node.truncate(16);
        w.build(10).unwrap();
        w.commit(BatchSpec::default()).unwrap();
        w.mine(1);
    });
    assert_eq!(cases(&rig.settle().await), [(3, Case::SelfHeal)]);
    assert_eq!(rig.safe(), Some(26));
    // Both go: the first commit of batch 3 counts again, and the local node holds other blocks.
    devnet.with(|w| {
        w.sequencer.node = original.clone();
        replace_empty(w, 2);
    });
    let mut seen = Vec::new();
    for _ in 0..2 {
        seen.extend(cases(&rig.poll().await.unwrap()));
    }
    assert_eq!(seen, [(3, Case::SelfHeal)]);
    assert_eq!((rig.safe(), node_safe(&devnet)), (Some(24), Some(24)));
    assert_eq!(devnet.heads().safe, devnet.with(|w| w.expected(24)));
    assert_ordered(&devnet);
}

/// The very first batch falls away, and no block is left for safe.
#[tokio::test]
async fn b3_the_only_batch_that_was_read_is_dropped() {
    let devnet = with_batch_at_depth(3).await;
    let start = commit_block(&devnet, 2) - 1;
    let mut rig = Rig::with(&devnet, |s| s.start = start.into()).await;
    rig.settle().await;
    assert_eq!(rig.safe(), Some(24));
    devnet.with(|w| replace_empty(w, 3));
    assert_eq!(two_polls(&mut rig).await, PollEnd::CaughtUp);
    assert_eq!((rig.safe(), node_safe(&devnet)), (None, Some(16)), "our tag does not stay on what L1 took away");
    assert!(!rig.worker.status().borrow().tags_contended);
    devnet.with(|w| {
        w.commit(BatchSpec { last: Some(24), ..BatchSpec::default() }).unwrap();
        w.mine(1);
    });
    assert_eq!(cases(&rig.settle().await), [(3, Case::Consistent)]);
    assert_eq!((rig.safe(), node_safe(&devnet)), (Some(24), Some(24)));
}

#[tokio::test]
async fn b1_a_reorg_between_two_calls_of_a_poll_is_never_mixed() {
    // Before the n-th header or log call of the first poll, batch 3 moves two blocks up.
    for (method, nth) in [("eth_getLogs", 1), ("eth_getBlockByNumber", 3), ("eth_getBlockByNumber", 5)] {
        let devnet = with_batch_at_depth(2).await;
        let mut rig = Rig::on(&devnet).await;
        devnet.on_call(Server::L1(0), method, nth, |w| {
            let known = w.batches.clone();
            let dropped = w.reorg(2);
            w.mine(2);
            w.resubmit(&dropped, &known).unwrap();
            w.mine(2);
        });
        for _ in 0..3 {
            if let Err(error) = rig.poll().await {
                assert!(error.severity() <= Severity::Reset, "{method} {nth}: {error}");
            }
        }
        assert_eq!(rig.safe(), Some(24), "{method} {nth}");
        let row = rig.ports.progress.batch(3.into()).await.unwrap().unwrap();
        let hash = devnet.with(|w| w.l1.find_tx(w.batches[2].tx).unwrap().0.hash);
        assert_eq!(row.l1.hash, hash, "{method} {nth}: the row lies on the chain that there is");
    }
}

#[tokio::test]
async fn c1_the_only_batch_that_was_read_is_reverted() {
    let devnet = with_batch_at_depth(3).await;
    let start = commit_block(&devnet, 2) - 1;
    let mut rig = Rig::with(&devnet, |s| s.start = start.into()).await;
    rig.settle().await;
    assert_eq!((rig.safe(), node_safe(&devnet)), (Some(24), Some(24)));
    devnet.with(|w| {
        w.revert(3).unwrap();
        w.mine(1);
    });
    assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
    assert_eq!((rig.safe(), node_safe(&devnet)), (None, Some(16)));
    assert!(!rig.worker.status().borrow().tags_contended);
    assert_ordered(&devnet);
}

/// The revert lay in front of the worker when it read the commit, which was passed over; then L1 drops the revert. The
/// contract cannot be asked.
#[tokio::test]
async fn b3_c4_a_reorg_that_drops_the_revert_of_a_batch_that_was_passed_over() {
    for fetch_range in [3, 500] {
        let devnet = with_batch_at_depth(5).await;
        devnet.with(|w| {
            w.revert(3).unwrap();
            w.mine(1);
        });
        let refused = RpcError { code: -32000, message: "eth_call is switched off".to_owned() };
        devnet.fault(Server::L1(0), Rule::on("eth_call", Fault::Error(refused)));
        let mut rig = Rig::with(&devnet, |s| s.fetch_range = fetch_range).await;
        assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
        assert_eq!(rig.safe(), Some(16));
        devnet.with(|w| replace_empty(w, 1));
        let report = rig.settle().await;
        assert_eq!((report.end.clone(), cases(&report)), (PollEnd::CaughtUp, vec![(3, Case::Consistent)]));
        assert_eq!((rig.safe(), node_safe(&devnet)), (Some(24), Some(24)), "range {fetch_range}");
        // It is reverted again, and nothing of it is left over.
        devnet.with(|w| {
            w.revert(3).unwrap();
            w.mine(1);
        });
        assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
        assert_eq!((rig.safe(), node_safe(&devnet)), (Some(16), Some(16)), "range {fetch_range}");
    }
}

/// Committed, reverted and committed again with the same hash; then the node loses its blocks, and the first commit is
/// read again while the second one is stored.
#[tokio::test]
async fn c2_e20_an_identical_recommit_is_read_again_after_a_loss() {
    for hidden in [false, true] {
        let devnet = with_batch_at_depth(5).await;
        devnet.with(|w| {
            w.revert(3).unwrap();
            w.mine(1);
        });
        let revert = devnet.with(|w| w.l1.head());
        devnet.with(|w| {
            w.mine(5);
            w.recommit_state().unwrap();
            w.mine(1);
        });
        let mut rig = Rig::with(&devnet, |s| s.fetch_range = 2).await;
        assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
        assert_eq!(rig.safe(), Some(24));
        devnet.with(|w| w.node.kill(20));
        if hidden {
            devnet.l1_knobs(0, |k| k.hidden_logs = [(revert, 0)].into());
        }
        rig.poll().await.unwrap();
        devnet.with(|w| w.sync());
        if hidden {
            assert_eq!(reason(&rig.settle().await), Some(Reason::Gap));
            devnet.l1_knobs(0, |k| k.hidden_logs.clear());
        }
        assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
        assert_eq!((rig.safe(), node_safe(&devnet)), (Some(24), Some(24)));
        let row = rig.ports.progress.batch(3.into()).await.unwrap().unwrap();
        assert!(row.l1.number.get() > revert, "the second commit is the one that counts");
    }
}

/// A revert, and then a reorg, whose step is stored although the database said that it timed out.
#[tokio::test]
async fn p6_a_step_that_was_stored_late_is_not_forgotten() {
    let devnet = with_batch_at_depth(5).await;
    let mut ports = devnet_ports(&devnet).await;
    let store = LateStore::over(ports.progress.clone());
    ports.progress = store.clone();
    let mut settings = settings();
    settings.rollup = devnet.rollup();
    let mut rig = Rig::start(ports, settings).await;
    rig.settle().await;
    assert_eq!(rig.safe(), Some(24));
    devnet.with(|w| {
        w.revert(3).unwrap();
        w.mine(1);
    });
    store.late_after(0);
    let error = rig.poll().await.unwrap_err();
    assert_eq!(error.stall().reason(), Reason::StoreUnavailable);
    assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
    assert_eq!((rig.safe(), node_safe(&devnet)), (Some(16), Some(16)));
    // The revert falls away with its block, and batch 3 with it.
    devnet.with(|w| replace_empty(w, 6));
    store.late_after(0);
    rig.poll().await.unwrap_err();
    rig.settle().await;
    assert!(store.was_late());
    let stored = rig.ports.progress.load().await.unwrap();
    assert_eq!((rig.safe(), node_safe(&devnet)), (Some(16), Some(16)));
    assert_eq!(stored.safe.map(|s| s.number.get()), Some(16));
    assert_ordered(&devnet);
}

/// The logs come from a fork on which nothing was committed, the headers before and after from the other one: nothing in
/// the logs themselves shows it.
#[tokio::test]
async fn b1_j5_an_empty_range_of_another_fork_is_not_taken() {
    let devnet = with_batch_at_depth(2).await;
    let refused = RpcError { code: -32000, message: "eth_call is switched off".to_owned() };
    devnet.fault(Server::L1(0), Rule::on("eth_call", Fault::Error(refused)));
    let mut rig = Rig::on(&devnet).await;
    let ours = devnet.with(|w| w.clone());
    // The newest header, the range's end, the end in the exchange of the logs, the finalized tag.
    devnet.on_call(Server::L1(0), "eth_getBlockByNumber", 3, |w| {
        w.reorg(2);
        w.mine(2);
    });
    devnet.on_call(Server::L1(0), "eth_getBlockByNumber", 4, move |w| *w = ours);
    let error = rig.poll().await.unwrap_err();
    assert_eq!((error.severity(), error.stall().reason()), (Severity::Reset, Reason::L1Reorg));
    assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
    assert_eq!(rig.safe(), Some(24));
}

#[tokio::test]
async fn a10_b1_a_commit_that_moves_before_its_transaction_is_read_is_read_again() {
    let devnet = with_batch_at_depth(2).await;
    let mut rig = Rig::on(&devnet).await;
    devnet.on_call(Server::L1(0), "eth_getTransactionByBlockHashAndIndex", 3, |w| {
        let known = w.batches.clone();
        let dropped = w.reorg(2);
        w.mine(2);
        w.resubmit(&dropped, &known).unwrap();
        w.mine(2);
    });
    let error = rig.poll().await.unwrap_err();
    assert_eq!((error.severity(), error.stall().reason()), (Severity::Reset, Reason::L1Reorg));
    assert_eq!(rig.safe(), Some(16));
    assert_eq!(cases(&rig.settle().await), [(3, Case::Consistent)]);
    assert_eq!(rig.safe(), Some(24));
}

#[tokio::test]
async fn b7_a_reorged_deposit_is_rebuilt_with_the_new_message() {
    let devnet = empty().await;
    let enqueue = |w: &mut World, salt: u64| {
        w.l1.submit(L1Op::Enqueue(L1MessageFields {
            queue_index: 1,
            gas_limit: U256::from(100_000),
            to: Address::from_low_u64_be(salt),
            value: U256::from(salt),
            data: vec![1, 2, 3].into(),
            sender: Address::repeat_byte(0x5e),
        }))
        .unwrap();
        w.mine(3);
    };
    devnet.with(|w| {
        w.produce(8).unwrap();
        w.sync();
        enqueue(w, 1);
    });
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    let queued = devnet.with(|w| w.l1.messages().len() as u64 - 1);
    let old = rig.ports.progress.messages(queued.into(), 1).await.unwrap();
    assert_eq!(old.len(), 1);
    devnet.with(|w| {
        w.reorg(3);
        w.mine(1);
        enqueue(w, 2);
        for _ in 0..4 {
            w.build_planned(&BlockPlan { txs: 1, messages: 1, ..BlockPlan::default() }).unwrap();
        }
        w.commit(BatchSpec::default()).unwrap();
        w.mine(1);
    });
    // The blocks are missing: they are rebuilt from L1, with what is in the queue now.
    let report = rig.settle_stopped().await;
    assert_eq!(cases(&report), [(2, Case::FillGap)]);
    assert_eq!(devnet.heads().local, devnet.heads().sequencer);
    let new = rig.ports.progress.messages(queued.into(), 1).await.unwrap();
    assert_ne!(new, old);
    assert_eq!(rig.safe(), Some(12));
}

#[tokio::test]
async fn b8_finality_that_contradicts_itself_moves_nothing_and_is_shown() {
    let devnet = with_batch_at_depth(30).await;
    let commit = commit_block(&devnet, 2);
    devnet.l1_knobs(0, |k| k.finalized = Some(1));
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    assert_eq!((rig.safe(), rig.finalized()), (Some(24), Some(0)));
    // The finalized tag is of a block that is no longer there when the chain is asked for it: idle, a poll reads the
    // newest header, the recorded one, the tag, then the two that decide.
    devnet.l1_knobs(0, |k| k.finalized = Some(commit + 10));
    devnet.on_call(Server::L1(0), "eth_getBlockByNumber", 4, move |w| {
        let depth = w.l1.head() - (commit + 9);
        replace_empty(w, depth);
    });
    rig.poll().await.unwrap();
    assert_eq!(rig.finalized(), Some(0));
    assert!(rig.worker.status().borrow().l1_finality_contradicted);
    // A tag that goes back moves nothing either.
    devnet.l1_knobs(0, |k| k.finalized = Some(commit + 5));
    rig.settle().await;
    assert_eq!(rig.finalized(), Some(24));
    assert!(!rig.worker.status().borrow().l1_finality_contradicted);
    devnet.l1_knobs(0, |k| k.finalized = Some(1));
    rig.settle().await;
    assert_eq!(rig.finalized(), Some(24));
    assert_eq!(devnet.heads().finalized.map(|f| f.number.get()), Some(24));
}

/// A node that lost blocks sends the cursor back; a reorg above it must not bring it forward again.
#[tokio::test]
async fn e20_b3_a_reorg_while_lost_batches_are_read_again_skips_none() {
    let devnet = with_batch_at_depth(20).await;
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    devnet.with(|w| w.node.kill(10));
    // The blocks of batches 2 and 3 are gone; the poll waits at batch 2.
    let report = rig.settle().await;
    assert_eq!(reason(&report), Some(Reason::NodeLostBlocks));
    assert_eq!(rig.safe(), Some(8));
    devnet.with(|w| replace_empty(w, 5));
    rig.poll().await.unwrap();
    assert_eq!(rig.safe(), Some(8));
    devnet.with(|w| w.sync());
    assert_eq!(cases(&rig.settle().await), [(2, Case::Consistent), (3, Case::Consistent)]);
    assert_eq!((rig.safe(), node_safe(&devnet)), (Some(24), Some(24)));
}

/// One range holds every batch, and the poll stalls at the last one, whose blocks the node lacks.
#[tokio::test]
async fn m10_p8_a_shallow_reorg_while_a_poll_stalls_in_the_middle_of_a_range_heals() {
    for (moves, depth) in [(true, 4), (false, 4), (true, 40), (false, 40)] {
        let what = format!("depth {depth}, moves {moves}");
        let devnet = with_batch_at_depth(depth - 3).await;
        devnet.with(|w| {
            w.produce(8).unwrap();
            w.mine(1);
        });
        let mut rig = Rig::on(&devnet).await;
        assert_eq!(reason(&rig.poll().await.unwrap()), Some(Reason::WaitingForBlocks), "{what}");
        assert_eq!(rig.safe(), Some(24), "{what}");
        devnet.with(|w| {
            let known = w.batches.clone();
            let dropped = w.reorg(depth);
            w.mine(1);
            if moves {
                w.resubmit(&dropped, &known).unwrap();
            } else {
                w.sequencer.node.truncate(24);
            }
            w.mine(depth);
        });
        let report = rig.poll().await.unwrap();
        let expected = if moves { (Some(Reason::WaitingForBlocks), Some(24)) } else { (None, Some(16)) };
        assert_eq!((reason(&report), rig.safe()), expected, "{what}");
        assert_eq!(node_safe(&devnet), rig.safe(), "{what}");
        assert_eq!(rig.worker.status().borrow().reorgs, 1, "{what}");
        devnet.with(|w| {
            if !moves {
                w.commit(BatchSpec::default()).unwrap();
                w.mine(1);
            }
            w.sync();
        });
        assert_eq!(rig.settle().await.end, PollEnd::CaughtUp, "{what}");
        let head = devnet.with(|w| w.sequencer.node.head().number());
        assert_eq!((rig.safe(), node_safe(&devnet)), (Some(head), Some(head)), "{what}");
        assert_ordered(&devnet);
    }
}

/// The cursor was sent back to a log that another fork holds, and what is recorded above it lies on the chain that there
/// is: only the cursor's own block shows it.
#[tokio::test]
async fn m4_b3_a_cursor_on_a_block_of_another_fork_goes_back_to_one_that_there_is() {
    for log_index in [None, Some(0)] {
        let devnet = with_batch_at_depth(20).await;
        let mut rig = Rig::on(&devnet).await;
        rig.settle().await;
        for number in [commit_block(&devnet, 2) + 5, commit_block(&devnet, 2), commit_block(&devnet, 1), 0] {
            let block = L1Ref { number: number.into(), hash: B256::repeat_byte(0xbb) };
            let step = Step { cursor: Some(Cursor { block, log_index }), ..Step::default() };
            rig.ports.progress.apply(&step).await.unwrap();
            rig.restart().await;
            assert_eq!(rig.settle().await.end, PollEnd::CaughtUp, "cursor in {number}");
            assert_eq!((rig.safe(), node_safe(&devnet)), (Some(24), Some(24)), "cursor in {number}");
            assert_eq!(rig.worker.status().borrow().reorgs, 0, "nothing that was read is gone");
        }
        assert!(devnet.written().is_empty());
        assert_ordered(&devnet);
    }
}

#[tokio::test]
async fn an_l1_chain_that_is_briefly_shorter_is_no_reorg() {
    let devnet = with_batch_at_depth(3).await;
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    devnet.with(|w| {
        w.reorg(3);
    });
    let report = rig.poll().await.unwrap();
    assert_eq!(reason(&report), Some(Reason::L1Behind));
    assert_eq!(rig.safe(), Some(24));
    devnet.with(|w| {
        w.mine(3);
    });
    assert_eq!(two_polls(&mut rig).await, PollEnd::CaughtUp);
    assert_eq!((rig.safe(), node_safe(&devnet)), (Some(16), Some(16)));
}
