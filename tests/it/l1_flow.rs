//! L1 endpoints that lag, hide, refuse, freeze or hang, on whole flows over HTTP (group A, and C6).

use std::time::{Duration, Instant};

use morph_deriver::decide::stall::{Cause, Gap, Reason};
use morph_deriver::devnet::chain::BatchSpec;
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::devnet::jsonrpc::RpcError;
use morph_deriver::devnet::world::WorldOptions;
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::flow::PollEnd;
use morph_deriver::flow::{Confirmations, Settings};
use morph_deriver::types::Case;
use tokio_util::sync::CancellationToken;

use crate::support::rig::{Rig, cases, reason, rig_over_two};

async fn devnet_of(world: WorldOptions, l1_endpoints: usize, batches: u64) -> Devnet {
    let devnet = Devnet::start(DevnetOptions { world, l1_endpoints, ..DevnetOptions::default() }).await.unwrap();
    devnet.with(|w| {
        for _ in 0..batches {
            w.produce(8).unwrap();
        }
        w.mine(1);
        w.sync();
    });
    devnet
}

async fn devnet(batches: u64) -> Devnet {
    devnet_of(WorldOptions::default(), 1, batches).await
}

const ALL_THREE: [(u64, Case); 3] = [(1, Case::Consistent), (2, Case::Consistent), (3, Case::Consistent)];

#[tokio::test]
async fn a1_a_lagging_backend_never_costs_a_batch() {
    let devnet = devnet_of(WorldOptions::default(), 2, 3).await;
    let commit = devnet.with(|w| w.l1.find_tx(w.batches[1].tx).unwrap().0.header.number);
    // Alone, it lags: what it has not seen is not taken for empty.
    devnet.l1_knobs(0, |k| k.head = Some(commit - 1));
    let mut rig = rig_over_two(&devnet, |_| {}).await;
    rig.settle().await;
    assert_eq!(rig.safe(), Some(8));
    devnet.l1_knobs(0, |k| k.head = None);
    assert_eq!(cases(&rig.settle().await), ALL_THREE[1..]);
    // Its head falls below what was read: the cursor stays, the other endpoint answers.
    devnet.with(|w| {
        w.build(8).unwrap();
        w.commit(BatchSpec::default()).unwrap();
        w.mine(1);
        w.sync();
    });
    let head = devnet.with(|w| w.l1.head());
    devnet.l1_knobs(0, |k| k.head = Some(head - 3));
    for _ in 0..3 {
        rig.poll().await.unwrap();
    }
    devnet.l1_knobs(0, |k| k.head = None);
    rig.settle().await;
    assert_eq!(rig.safe(), Some(32));
}

#[tokio::test]
async fn a1_c6_a_hidden_commit_is_found_at_another_endpoint_at_once() {
    // In the middle, at the end, and in a range that was passed long ago.
    for (hidden, fetch_range) in [(2, 500), (3, 500), (2, 2), (3, 2)] {
        let devnet = devnet_of(WorldOptions::default(), 2, 3).await;
        devnet.with(|w| {
            w.mine(5);
        });
        devnet.l1_knobs(0, |k| k.hidden_commits = [hidden].into());
        let mut rig = rig_over_two(&devnet, |s| s.fetch_range = fetch_range).await;
        let report = rig.settle().await;
        assert_eq!(report.end, PollEnd::CaughtUp, "hidden {hidden}, range {fetch_range}");
        assert_eq!(cases(&report), ALL_THREE, "hidden {hidden}, range {fetch_range}");
        assert_eq!(rig.safe(), Some(24));
    }
}

#[tokio::test]
async fn a1_c6_a_hidden_commit_blocks_by_name_until_the_endpoint_is_honest() {
    for (hidden, fetch_range) in [(2_u64, 500), (3, 500), (2, 2), (3, 2)] {
        let devnet = devnet(3).await;
        devnet.with(|w| {
            w.mine(5);
        });
        devnet.l1_knobs(0, |k| k.hidden_commits = [hidden].into());
        let mut rig = Rig::with(&devnet, |s| s.fetch_range = fetch_range).await;
        for _ in 0..3 {
            let report = rig.settle().await;
            assert_eq!(reason(&report), Some(Reason::Gap), "hidden {hidden}, range {fetch_range}");
            let PollEnd::Stalled(stall) = report.end else { panic!("it does not stall") };
            assert_eq!(stall.batch, Some(hidden.into()));
            assert_eq!(stall.cause, Cause::Gap(Gap::Commit(hidden.into())));
            assert_eq!(rig.safe(), Some((hidden - 1) * 8));
        }
        devnet.l1_knobs(0, |k| k.hidden_commits.clear());
        let report = rig.settle().await;
        assert_eq!(report.end, PollEnd::CaughtUp);
        assert_eq!(rig.safe(), Some(24), "hidden {hidden}, range {fetch_range}");
    }
}

#[tokio::test]
async fn a1_c1_a_hidden_revert_is_found_at_another_endpoint_or_blocks() {
    for (two, recommit, fetch_range) in [
        (true, true, 500),
        (true, false, 500),
        (false, true, 500),
        (false, false, 500),
        (false, true, 2),
        (true, true, 2),
    ] {
        let devnet = devnet_of(WorldOptions { finalized_depth: 500, ..WorldOptions::default() }, 2, 3).await;
        devnet.with(|w| {
            w.revert(3).unwrap();
            w.mine(1);
        });
        let block = devnet.with(|w| w.l1.head());
        devnet.with(|w| {
            w.mine(5);
            if recommit {
                w.recommit_state().unwrap();
                w.mine(1);
            }
        });
        devnet.l1_knobs(0, |k| k.hidden_logs = [(block, 0)].into());
        let change = |s: &mut Settings| s.fetch_range = fetch_range;
        let mut rig = if two { rig_over_two(&devnet, change).await } else { Rig::with(&devnet, change).await };
        let what = format!("two {two}, recommit {recommit}, range {fetch_range}");
        if !two {
            let report = rig.settle().await;
            assert_eq!(reason(&report), Some(Reason::Gap), "{what}");
            devnet.l1_knobs(0, |k| k.hidden_logs.clear());
        }
        assert_eq!(rig.settle().await.end, PollEnd::CaughtUp, "{what}");
        assert_eq!(rig.safe(), Some(if recommit { 24 } else { 16 }), "{what}");
        let row = rig.ports.progress.batch(3.into()).await.unwrap();
        assert_eq!(row.map(|r| r.l1.number.get() > block), recommit.then_some(true), "{what}");
    }
}

/// The endpoint truncates answers about several kinds of logs, and is honest about one batch: it confirms that the
/// log exists, and leaves it out of every range that is read.
#[tokio::test]
async fn a1_p9_a_log_that_is_given_only_if_asked_for_by_index_makes_no_endless_loop() {
    for (two, revert) in [(false, false), (true, false), (false, true), (true, true)] {
        let world = WorldOptions { finalized_depth: 500, ..WorldOptions::default() };
        let devnet = devnet_of(world, 2, 3).await;
        devnet.with(|w| {
            w.mine(5);
            if revert {
                w.revert(3).unwrap();
                w.mine(1);
            }
        });
        let block = devnet.with(|w| w.l1.head());
        devnet.with(|w| {
            w.mine(5);
            if revert {
                w.recommit_state().unwrap();
                w.mine(5);
            }
        });
        devnet.l1_knobs(0, |k| {
            k.hidden_from_ranges_only = true;
            if revert {
                k.hidden_logs = [(block, 0)].into();
            } else {
                k.hidden_commits = [2].into();
            }
        });
        let narrow = |s: &mut Settings| s.fetch_range = 2;
        let mut rig = if two { rig_over_two(&devnet, narrow).await } else { Rig::with(&devnet, narrow).await };
        let what = format!("two {two}, revert {revert}");
        if !two {
            // `settle` gives up where polls follow each other at once for ever.
            for _ in 0..3 {
                assert_eq!(reason(&rig.settle().await), Some(Reason::Gap), "{what}");
            }
            devnet.l1_knobs(0, |k| k.hidden_from_ranges_only = false);
            devnet.l1_knobs(0, |k| {
                k.hidden_logs.clear();
                k.hidden_commits.clear();
            });
        }
        assert_eq!(rig.settle().await.end, PollEnd::CaughtUp, "{what}");
        assert_eq!(rig.safe(), Some(24), "{what}");
    }
}

#[tokio::test]
async fn a2_a_range_cap_costs_no_batch() {
    let devnet = devnet(3).await;
    devnet.with(|w| {
        w.mine(1200);
    });
    devnet.l1_knobs(0, |k| k.range_cap = Some(500));
    // Nothing is final, so that no revert is looked for ahead of the batches.
    devnet.l1_knobs(0, |k| k.finalized = Some(0));
    let mut rig = Rig::on(&devnet).await;
    let report = rig.settle().await;
    assert_eq!(cases(&report), ALL_THREE);
    assert_eq!(report.end, PollEnd::CaughtUp);
    // Four ranges of at most 500 blocks, none of them refused.
    let blocks = devnet.with(|w| w.l1.head()) + 1;
    assert_eq!(devnet.calls(Server::L1(0), "eth_getLogs"), blocks.div_ceil(500));
}

#[tokio::test]
async fn a3_a_quota_in_the_middle_of_a_poll_redoes_no_batch() {
    let devnet = devnet(6).await;
    let mut rig = Rig::on(&devnet).await;
    devnet.fault(Server::L1(0), Rule::on("eth_getTransactionByBlockHashAndIndex", Fault::RateLimited(None)).after(4));
    let error = rig.poll().await.unwrap_err();
    assert_eq!(error.stall().reason(), Reason::L1Unavailable);
    assert_eq!(rig.safe(), Some(32), "four batches are stored");
    devnet.heal(Server::L1(0));
    tokio::time::sleep(Duration::from_millis(250)).await;
    devnet.clear_counts();
    assert_eq!(cases(&rig.settle().await), [(5, Case::Consistent), (6, Case::Consistent)]);
    assert_eq!(devnet.calls(Server::L1(0), "eth_getTransactionByBlockHashAndIndex"), 2);
    devnet.clear_counts();
    rig.poll().await.unwrap();
    assert!(devnet.all_http_requests() <= 20);
}

#[tokio::test]
async fn a4_an_l1_that_never_answers_holds_up_neither_the_poll_nor_the_shutdown() {
    let devnet = devnet(1).await;
    devnet.fault(Server::L1(0), Rule::always(Fault::Hang));
    let mut rig = Rig::on(&devnet).await;
    let began = Instant::now();
    let error = rig.poll().await.unwrap_err();
    assert_eq!(error.stall().reason(), Reason::L1Unavailable);
    // A call has 2 s and is tried again for 1 s.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    let stop = CancellationToken::new();
    let running = tokio::spawn(rig.worker.run(stop.clone()));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let began = Instant::now();
    stop.cancel();
    running.await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

/// The wall clock is far from the devnet's time in one direction or the other; what counts is the difference.
fn aged(seconds: u64) -> WorldOptions {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    WorldOptions { start_time: now - seconds, ..WorldOptions::default() }
}

#[tokio::test]
async fn a5_a_frozen_l1_is_named_in_one_poll_and_what_it_holds_is_still_verified() {
    let devnet = devnet_of(aged(3600), 1, 3).await;
    let mut rig = Rig::with(&devnet, |s| s.l1_max_age = Duration::from_secs(600)).await;
    let report = rig.poll().await.unwrap();
    assert_eq!(cases(&report), ALL_THREE);
    assert_eq!(reason(&report), Some(Reason::L1Stale));
    assert_eq!(rig.worker.status().borrow().stall.as_ref().map(|s| s.reason().code()), Some("l1_stale"));
    // L1 moves again: 300 blocks of 12 s.
    devnet.with(|w| {
        w.mine(290);
    });
    assert_eq!(rig.poll().await.unwrap().end, PollEnd::CaughtUp);
    assert_eq!(rig.worker.status().borrow().stall, None);
}

#[tokio::test]
async fn a5_a_frozen_endpoint_gives_way_to_one_that_moves() {
    let devnet = devnet_of(aged(3600), 2, 1).await;
    let frozen = devnet.with(|w| w.l1.head());
    devnet.l1_knobs(0, |k| k.head = Some(frozen));
    devnet.with(|w| {
        w.mine(290);
        w.build(8).unwrap();
        w.commit(BatchSpec::default()).unwrap();
        w.mine(1);
        w.sync();
    });
    let mut rig = rig_over_two(&devnet, |s| s.l1_max_age = Duration::from_secs(600)).await;
    let report = rig.poll().await.unwrap();
    assert_eq!(report.end, PollEnd::CaughtUp);
    assert_eq!(rig.safe(), Some(16));
}

#[tokio::test]
async fn a5_a_head_that_goes_back_is_named_and_moves_nothing() {
    let devnet = devnet(3).await;
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    let head = devnet.with(|w| w.l1.head());
    devnet.l1_knobs(0, |k| k.head = Some(head - 4));
    let report = rig.poll().await.unwrap();
    assert_eq!(reason(&report), Some(Reason::L1Behind));
    assert_eq!(rig.safe(), Some(24));
    devnet.l1_knobs(0, |k| k.head = None);
    assert_eq!(rig.poll().await.unwrap().end, PollEnd::CaughtUp);
}

#[tokio::test]
async fn a6_e9_nothing_is_asked_of_l1_while_the_node_syncs() {
    let devnet = devnet(3).await;
    devnet.with(|w| w.node.moods.syncing = true);
    let mut rig = Rig::on(&devnet).await;
    for _ in 0..3 {
        let report = rig.poll().await.unwrap();
        assert_eq!(reason(&report), Some(Reason::NodeSyncing));
    }
    assert_eq!(devnet.http_requests(Server::L1(0)), 0);
    assert!(devnet.tag_calls().is_empty());
    devnet.with(|w| w.node.moods.syncing = false);
    assert_eq!(cases(&rig.settle().await), ALL_THREE);
}

#[tokio::test]
async fn a7_finality_resumes_on_the_first_finalized_header_without_old_state() {
    let devnet = devnet_of(WorldOptions { finalized_depth: 100_000, ..WorldOptions::default() }, 1, 3).await;
    devnet.l1_knobs(0, |k| {
        k.no_tags = true;
        k.state_depth = Some(128);
    });
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    for _ in 0..3 {
        devnet.with(|w| {
            w.mine(200);
        });
        assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
    }
    assert_eq!((rig.safe(), rig.finalized()), (Some(24), None));
    let commit = devnet.with(|w| w.l1.find_tx(w.batches[1].tx).unwrap().0.header.number);
    devnet.l1_knobs(0, |k| {
        k.no_tags = false;
        k.finalized = Some(commit);
    });
    rig.poll().await.unwrap();
    assert_eq!(rig.finalized(), Some(16));
    assert_eq!(devnet.heads().finalized.map(|f| f.number.get()), Some(16));
}

#[tokio::test]
async fn a8_without_any_answer_of_the_contract_batches_are_still_verified() {
    let devnet = devnet(3).await;
    devnet.with(|w| {
        w.revert(3).unwrap();
        w.mine(1);
        w.recommit_state().unwrap();
        w.mine(1);
    });
    let refused = RpcError { code: -32000, message: "eth_call is switched off".to_owned() };
    devnet.fault(Server::L1(0), Rule::on("eth_call", Fault::Error(refused.clone())));
    // A range of one block: the revert lies beyond it, and only the logs show it.
    for fetch_range in [1, 500] {
        let mut rig = Rig::with(&devnet, |s| s.fetch_range = fetch_range).await;
        let report = rig.settle().await;
        assert_eq!(report.end, PollEnd::CaughtUp);
        assert_eq!(cases(&report), ALL_THREE);
        assert_eq!(rig.safe(), Some(24));
        assert_eq!(rig.worker.status().borrow().reverted, 1);
    }
    assert!(devnet.calls(Server::L1(0), "eth_call") > 0);
}

#[tokio::test]
async fn a8_without_a_finalized_tag_batches_are_still_verified() {
    let devnet = devnet(3).await;
    devnet.l1_knobs(0, |k| k.no_tags = true);
    let mut rig = Rig::on(&devnet).await;
    assert_eq!(cases(&rig.settle().await), ALL_THREE);
    assert_eq!((rig.safe(), rig.finalized()), (Some(24), None));
}

#[tokio::test]
async fn a9_disordered_doubled_and_removed_logs_have_the_same_outcome() {
    let devnet = devnet(3).await;
    devnet.l1_knobs(0, |k| {
        k.duplicate_logs = true;
        k.reversed_logs = true;
        k.removed_logs = true;
    });
    let mut rig = Rig::on(&devnet).await;
    let report = rig.settle().await;
    assert_eq!((cases(&report), report.end), (ALL_THREE.to_vec(), PollEnd::CaughtUp));
    assert_eq!(rig.safe(), Some(24));
}

#[tokio::test]
async fn a9_b1_logs_of_another_fork_are_not_taken() {
    let devnet = devnet(3).await;
    devnet.l1_knobs(0, |k| k.foreign_log_hashes = true);
    let mut rig = Rig::on(&devnet).await;
    for _ in 0..2 {
        rig.poll().await.unwrap_err();
        assert_eq!(rig.safe(), None);
    }
    devnet.l1_knobs(0, |k| k.foreign_log_hashes = false);
    rig.settle().await;
    assert_eq!(rig.safe(), Some(24));
}

#[tokio::test]
async fn a12_a_hundred_thousand_empty_blocks_wait_for_no_poll_interval() {
    let devnet = devnet(1).await;
    devnet.with(|w| {
        w.mine(100_000);
        w.build(8).unwrap();
        w.commit(BatchSpec::default()).unwrap();
        w.mine(1);
        w.sync();
    });
    // One poll interval would be longer than the whole test may take.
    let rig = Rig::with(&devnet, |s| s.poll_interval = Duration::from_secs(3600)).await;
    let mut status = rig.worker.status();
    let stop = CancellationToken::new();
    let running = tokio::spawn(rig.worker.run(stop.clone()));
    let caught_up = status.wait_for(|s| s.safe.is_some_and(|safe| safe.number.get() == 16));
    tokio::time::timeout(Duration::from_secs(100), caught_up).await.expect("it waited").unwrap();
    stop.cancel();
    running.await.unwrap().unwrap();
    let ranges = 100_000 / 500 + 1;
    // Reverts are read ahead of the batches in pieces that double: 1,000 + 2,000 + … + 64,000 is more than all.
    let ahead = 7;
    assert!(devnet.calls(Server::L1(0), "eth_getLogs") <= ranges + 2 + ahead);
    let headers = devnet.calls(Server::L1(0), "eth_getBlockByNumber");
    assert!(headers <= 10 * ranges + 200, "{headers} headers for {ranges} ranges");
}

#[tokio::test]
async fn confirmations_by_tag_read_no_further_than_the_tag() {
    for (confirmations, expected) in [(Confirmations::Safe, Some(8)), (Confirmations::Depth(2), Some(16))] {
        let devnet = devnet_of(WorldOptions { safe_depth: 4, ..WorldOptions::default() }, 1, 3).await;
        // The commits lie 1, 3 and 5 blocks below the head.
        let mut rig = Rig::with(&devnet, |s| s.confirmations = confirmations).await;
        assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
        assert_eq!(rig.safe(), expected, "{confirmations:?}");
    }
}

/// At most four requests in a poll that finds nothing new, whatever counts as confirmed.
#[tokio::test]
async fn a3_an_idle_poll_costs_four_requests_whatever_counts_as_confirmed() {
    for confirmations in [Confirmations::Depth(0), Confirmations::Safe, Confirmations::Finalized] {
        let devnet = devnet(3).await;
        devnet.with(|w| w.mine(100));
        let mut rig = Rig::with(&devnet, |s| s.confirmations = confirmations).await;
        rig.settle().await;
        rig.settle().await;
        assert_eq!(rig.safe(), Some(24));
        devnet.clear_counts();
        assert_eq!(rig.poll().await.unwrap().end, PollEnd::CaughtUp);
        assert!(devnet.all_http_requests() <= 4, "{confirmations:?}: {} requests", devnet.all_http_requests());
    }
}

/// The same while L2 runs ahead of what L1 holds or has confirmed, as it does on every live network.
#[tokio::test]
async fn a3_an_idle_poll_costs_four_requests_with_safe_below_the_head() {
    for confirmations in [Confirmations::Depth(0), Confirmations::Safe, Confirmations::Finalized] {
        let devnet = devnet(4).await;
        devnet.with(|w| {
            w.mine(4);
            w.build(8).unwrap();
            w.sync();
        });
        let mut rig = Rig::with(&devnet, |s| s.confirmations = confirmations).await;
        // With a face, which shows where the heads stand on L1.
        let face = rig.worker.status();
        rig.settle().await;
        rig.settle().await;
        assert!(rig.safe().is_some_and(|safe| safe > 0), "{confirmations:?}");
        assert!(rig.head().await.get() > rig.safe().unwrap_or(0), "{confirmations:?}");
        devnet.clear_counts();
        assert_eq!(rig.poll().await.unwrap().end, PollEnd::CaughtUp);
        assert!(devnet.all_http_requests() <= 4, "{confirmations:?}: {} requests", devnet.all_http_requests());
        let sync = face.borrow().sync;
        let (Some(current), Some(safe)) = (sync.current_l1, sync.safe_l2) else { panic!("{sync:?}") };
        for block in [current.l1_ref(), safe.origin] {
            assert_eq!(devnet.with(|w| w.l1.block(block.number.get()).map(|b| b.l1_ref())), Some(block));
        }
        assert_eq!(Some(safe.block), rig.worker.heads().safe());
    }
}
