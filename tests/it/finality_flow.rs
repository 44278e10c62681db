//! Finality on whole flows over HTTP: which reverts must have been read before a batch is final (M2), what a revert of a
//! finalized batch does (M3), and what is known of reverts after the node lost blocks (M17).

use morph_deriver::decide::stall::Reason;
use morph_deriver::devnet::chain::BatchSpec;
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::devnet::jsonrpc::RpcError;
use morph_deriver::devnet::world::{World, WorldOptions};
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::error::Severity;
use morph_deriver::flow::FinalityMeaning;
use morph_deriver::flow::PollEnd;
use morph_deriver::types::Case;

use crate::support::late_store::LateStore;
use crate::support::rig::{Rig, cases, devnet_ports, reason, settings};

/// `batches` batches of 8 blocks on L1, the local node in step, and nothing final on L1 but what the tests say.
pub async fn network(batches: u64) -> Devnet {
    let world = WorldOptions { finalized_depth: 10_000, ..WorldOptions::default() };
    let devnet = Devnet::start(DevnetOptions { world, ..DevnetOptions::default() }).await.unwrap();
    devnet.with(|w| {
        for _ in 0..batches {
            w.produce(8).unwrap();
        }
        w.sync();
    });
    devnet
}

pub fn commit_block(devnet: &Devnet, nth: usize) -> u64 {
    devnet.with(|w| w.l1.find_tx(w.batches[nth].tx).unwrap().0.header.number)
}

/// L1's finalized block is its newest one from now on, and stays there while L1 grows.
fn finalize_l1(devnet: &Devnet) {
    let head = devnet.with(|w| w.l1.head());
    devnet.l1_knobs(0, |k| k.finalized = Some(head));
}

fn tags(devnet: &Devnet) -> (Option<u64>, Option<u64>) {
    let heads = devnet.heads();
    (heads.safe.map(|s| s.number.get()), heads.finalized.map(|f| f.number.get()))
}

fn no_logs() -> Rule {
    let message = "log store is being rebuilt".to_owned();
    Rule::on("eth_getLogs", Fault::Error(RpcError { code: -32000, message }))
}

fn assert_ordered(devnet: &Devnet) {
    assert!(devnet.moments().iter().all(|m| m.is_ordered()));
}

/// Polls until it no longer says that there is more; asserts after every poll that finalized is at most `most`.
async fn never_above(rig: &mut Rig, most: u64) -> PollEnd {
    for _ in 0..200 {
        let end = rig.poll().await.map(|report| report.end);
        assert!(rig.finalized().is_none_or(|f| f <= most), "finalized {:?}", rig.finalized());
        match end {
            Ok(PollEnd::Behind) => {}
            Ok(end) => return end,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("still behind after 200 polls");
}

/// Batch 3 was verified; then L1 reverts it and makes all of that final before the worker looks again.
async fn reverted_unnoticed(w: &Devnet) {
    w.with(|w| {
        w.mine(5);
        w.revert(3).unwrap();
        w.mine(30);
    });
    finalize_l1(w);
}

#[tokio::test]
async fn m2_a_final_revert_beyond_the_range_that_was_read_holds_its_batch_back() {
    for width in [1, 2, 10] {
        let devnet = network(3).await;
        let mut rig = Rig::on(&devnet).await;
        rig.settle().await;
        assert_eq!(rig.safe(), Some(24));
        reverted_unnoticed(&devnet).await;
        rig.settings.fetch_range = width;
        rig.restart().await;
        assert_eq!(never_above(&mut rig, 16).await, PollEnd::CaughtUp, "width {width}");
        assert_eq!((rig.safe(), rig.finalized()), (Some(16), Some(16)), "width {width}");
        assert_eq!(tags(&devnet), (Some(16), Some(16)));
        assert_ordered(&devnet);
    }
}

#[tokio::test]
async fn m2_nothing_is_final_while_logs_fail_and_headers_work() {
    let devnet = network(3).await;
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    reverted_unnoticed(&devnet).await;
    devnet.fault(Server::L1(0), no_logs());
    for _ in 0..3 {
        assert_eq!(rig.poll().await.unwrap_err().stall().reason(), Reason::L1Unavailable);
        assert!(rig.finalized().is_none_or(|f| f <= 16), "finalized {:?}", rig.finalized());
    }
    devnet.heal(Server::L1(0));
    assert_eq!(never_above(&mut rig, 16).await, PollEnd::CaughtUp);
    assert_eq!((rig.safe(), rig.finalized()), (Some(16), Some(16)));
}

#[tokio::test]
async fn m2_nothing_is_final_over_a_revert_that_was_read_and_could_not_be_stored() {
    let devnet = network(3).await;
    let mut ports = devnet_ports(&devnet).await;
    let store = LateStore::over(ports.progress.clone());
    ports.progress = store.clone();
    let mut settings = settings();
    settings.rollup = devnet.rollup();
    let mut rig = Rig::start(ports, settings).await;
    rig.settle().await;
    reverted_unnoticed(&devnet).await;
    store.refuse_reverts(true);
    for _ in 0..3 {
        assert_eq!(rig.poll().await.unwrap_err().stall().reason(), Reason::StoreUnavailable);
        assert!(rig.finalized().is_none_or(|f| f <= 16), "finalized {:?}", rig.finalized());
    }
    store.refuse_reverts(false);
    assert_eq!(never_above(&mut rig, 16).await, PollEnd::CaughtUp);
    assert_eq!((rig.safe(), rig.finalized()), (Some(16), Some(16)));
}

/// Three batches, the third one final on L1 and finalized here.
async fn finalized() -> (Devnet, Rig) {
    let devnet = network(3).await;
    finalize_l1(&devnet);
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    assert_eq!((rig.safe(), rig.finalized()), (Some(24), Some(24)));
    devnet.with(|w| {
        w.build(8).unwrap();
        w.commit(BatchSpec::default()).unwrap();
        w.mine(1);
        w.sync();
    });
    rig.settle().await;
    assert_eq!((rig.safe(), rig.finalized()), (Some(32), Some(24)));
    (devnet, rig)
}

fn revert(devnet: &Devnet, from: u64) {
    devnet.with(|w| {
        w.revert(from).unwrap();
        w.mine(1);
    });
}

#[tokio::test]
async fn m3_a_revert_of_a_finalized_batch_halts_nothing_and_the_equal_recommit_ends_it() {
    let (devnet, mut rig) = finalized().await;
    revert(&devnet, 2);
    for _ in 0..3 {
        assert_eq!(rig.poll().await.unwrap().end, PollEnd::CaughtUp);
        assert_eq!((rig.safe(), rig.finalized()), (Some(24), Some(24)));
        assert_eq!(tags(&devnet), (Some(24), Some(24)));
        assert!(rig.worker.status().borrow().uncommitted_finalized);
    }
    for _ in 2..=4 {
        devnet.with(|w| {
            w.recommit_state().unwrap();
            w.mine(1);
        });
    }
    let expected = [(2, Case::Consistent), (3, Case::Consistent), (4, Case::Consistent)];
    assert_eq!(cases(&rig.settle().await), expected);
    assert_eq!((rig.safe(), rig.finalized()), (Some(32), Some(24)));
    assert!(!rig.worker.status().borrow().uncommitted_finalized);
    finalize_l1(&devnet);
    rig.settle().await;
    assert_eq!((rig.safe(), rig.finalized()), (Some(32), Some(32)));
    assert!(devnet.written().is_empty());
    assert_ordered(&devnet);
}

#[tokio::test]
async fn m3_other_content_in_place_of_a_finalized_batch_is_a_divergence() {
    let (devnet, mut rig) = finalized().await;
    revert(&devnet, 3);
    devnet.with(|w| {
        w.sequencer.node.truncate(16);
        w.build(8).unwrap();
        w.commit(BatchSpec::default()).unwrap();
        w.mine(1);
    });
    for _ in 0..2 {
        let report = rig.settle_stopped().await;
        assert_eq!(reason(&report), Some(Reason::DivergesBelowFinalized));
        assert_eq!((rig.safe(), rig.finalized()), (Some(24), Some(24)));
    }
    assert_eq!(tags(&devnet), (Some(24), Some(24)));
    assert!(devnet.written().is_empty());
    assert_ordered(&devnet);
}

/// Batches 3 and 4 are committed, reverted, and committed again unchanged. The worker has read the first of the two new
/// commits when the node loses blocks.
#[tokio::test]
async fn m17_two_identical_recommits_and_a_loss_before_the_second_was_read() {
    let devnet = network(4).await;
    let mut rig = Rig::with(&devnet, |s| s.fetch_range = 2).await;
    assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
    assert_eq!(rig.safe(), Some(32));
    // No range holds a commit together with its revert.
    devnet.with(|w| w.mine(5));
    revert(&devnet, 3);
    devnet.with(|w| w.mine(5));
    let again = |w: &mut World| {
        w.recommit_state().unwrap();
        w.mine(1);
    };
    devnet.with(again);
    assert_eq!(cases(&rig.settle().await), [(3, Case::Consistent)]);
    assert_eq!(rig.safe(), Some(24));
    devnet.with(|w| {
        w.mine(5);
        again(w);
        w.node.kill(12);
    });
    rig.poll().await.unwrap();
    devnet.with(|w| w.sync());
    assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
    assert_eq!((rig.safe(), tags(&devnet).0), (Some(32), Some(32)));
    assert!(rig.ports.progress.batch(4.into()).await.unwrap().unwrap().l1.number.get() > commit_block(&devnet, 2));
    assert_ordered(&devnet);
}

/// L1 changes in the middle of a poll, and the new chain reverts the batch that would be final: what is known of reverts
/// up to a block of the old chain vouches for nothing.
#[tokio::test]
async fn m2_b1_reverts_read_on_another_chain_prove_nothing() {
    for nth in 1..=6 {
        let devnet = network(3).await;
        devnet.with(|w| w.mine(6));
        devnet.l1_knobs(0, |k| k.finalized = None);
        let mut rig = Rig::on(&devnet).await;
        rig.settle().await;
        assert_eq!((rig.safe(), rig.finalized().unwrap_or(0)), (Some(24), 0));
        devnet.clear_counts();
        devnet.on_call(Server::L1(0), "eth_getBlockByNumber", nth, |w| {
            w.reorg(5);
            w.revert(3).unwrap();
            w.mine(8);
            w.l1.config.finalized_depth = 0;
        });
        for _ in 0..4 {
            if let Err(error) = rig.poll().await {
                assert!(error.severity() <= Severity::Reset, "call {nth}: {error}");
            }
            assert!(rig.finalized().is_none_or(|f| f <= 16), "call {nth}: finalized {:?}", rig.finalized());
        }
        assert_eq!((rig.safe(), rig.finalized()), (Some(16), Some(16)), "call {nth}");
    }
}

/// After a revert and a loss of blocks L1 commits to other blocks in the place of finalized ones, with another end.
#[tokio::test]
async fn m3_p2_safe_goes_above_finalized_only_over_the_finalized_block() {
    let devnet = network(3).await;
    finalize_l1(&devnet);
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    assert_eq!((rig.safe(), rig.finalized()), (Some(24), Some(24)));
    devnet.with(|w| w.node.kill(12));
    rig.poll().await.unwrap();
    assert!(rig.safe() < Some(24));
    devnet.with(|w| {
        w.revert(3).unwrap();
        w.mine(1);
        w.sequencer.node.truncate(16);
        w.build(9).unwrap();
        w.commit(BatchSpec::default()).unwrap();
        w.mine(1);
        w.sync();
    });
    for _ in 0..4 {
        let told = match rig.poll().await {
            Ok(report) => reason(&report),
            Err(error) => Some(error.stall().reason()),
        };
        assert_eq!(rig.finalized(), Some(24));
        assert!(rig.safe() <= Some(24), "safe {:?} over other blocks than the finalized ones, {told:?}", rig.safe());
    }
    let status = rig.worker.status().borrow().clone();
    assert_eq!(status.stall.map(|stall| stall.reason()), Some(Reason::DivergesBelowFinalized));
}

/// What happens while a finalized batch is reverted on L1 (M3).
#[derive(Clone, Copy, Debug)]
enum Meanwhile {
    Restart,
    NodeLoss,
    ReorgAbove,
    ReorgOfTheRevert,
}

#[tokio::test]
async fn m3_e20_b3_what_happens_while_a_finalized_batch_is_uncommitted_ends_right() {
    for what in [Meanwhile::Restart, Meanwhile::NodeLoss, Meanwhile::ReorgAbove, Meanwhile::ReorgOfTheRevert] {
        let (devnet, mut rig) = finalized().await;
        revert(&devnet, 2);
        rig.settle().await;
        assert!(rig.worker.status().borrow().uncommitted_finalized, "{what:?}");
        match what {
            Meanwhile::Restart => rig.restart().await,
            Meanwhile::NodeLoss => {
                devnet.with(|w| w.node.kill(12));
                rig.poll().await.unwrap();
                assert_eq!(rig.finalized(), Some(24), "{what:?}");
                devnet.with(|w| w.sync());
            }
            Meanwhile::ReorgAbove => {
                devnet.with(|w| w.mine(3));
                rig.settle().await;
                devnet.with(|w| {
                    w.reorg(2);
                    w.mine(4);
                });
            }
            Meanwhile::ReorgOfTheRevert => devnet.with(|w| {
                w.reorg(1);
                w.mine(3);
            }),
        }
        let gone = matches!(what, Meanwhile::ReorgOfTheRevert);
        for _ in 0..3 {
            rig.settle().await;
            assert_eq!(rig.worker.status().borrow().uncommitted_finalized, !gone, "{what:?}");
            let safe = if gone { 32 } else { 24 };
            assert_eq!((rig.safe(), rig.finalized()), (Some(safe), Some(24)), "{what:?}");
            assert_eq!(tags(&devnet), (Some(safe), Some(24)), "{what:?}");
        }
        if !gone {
            for _ in 2..=4 {
                devnet.with(|w| {
                    w.recommit_state().unwrap();
                    w.mine(1);
                });
            }
            assert_eq!(rig.settle().await.end, PollEnd::CaughtUp, "{what:?}");
        }
        finalize_l1(&devnet);
        rig.settle().await;
        assert_eq!((rig.safe(), rig.finalized()), (Some(32), Some(32)), "{what:?}");
        assert_eq!(tags(&devnet), (Some(32), Some(32)), "{what:?}");
        assert!(!rig.worker.status().borrow().uncommitted_finalized, "{what:?}");
        assert!(devnet.written().is_empty(), "{what:?}");
    }
}

/// The proven meaning over HTTP: only what the contract proved at L1's finalized block, across reverts and a restart.
#[tokio::test]
async fn m3_in_the_proven_meaning_only_proved_batches_are_final() {
    let devnet = network(3).await;
    finalize_l1(&devnet);
    let mut rig = Rig::with(&devnet, |s| (s.finality, s.fetch_range) = (FinalityMeaning::Proven, 3)).await;
    rig.settle().await;
    assert_eq!((rig.safe(), rig.finalized()), (Some(24), Some(0)), "no more than the genesis batch is proved");
    devnet.with(|w| {
        w.finalize(2).unwrap();
        w.mine(1);
    });
    rig.settle().await;
    assert_eq!((rig.safe(), rig.finalized()), (Some(24), Some(0)), "the proof is not final on L1");
    finalize_l1(&devnet);
    rig.settle().await;
    assert_eq!(tags(&devnet), (Some(24), Some(16)));
    // A batch that is not proved may be reverted, and is not finalized.
    revert(&devnet, 3);
    rig.settle().await;
    assert!(!rig.worker.status().borrow().uncommitted_finalized);
    assert_eq!(tags(&devnet), (Some(16), Some(16)));
    rig.restart().await;
    devnet.with(|w| {
        w.recommit_state().unwrap();
        w.mine(1);
        w.finalize(3).unwrap();
        w.mine(1);
    });
    assert_eq!(cases(&rig.settle().await), [(3, Case::Consistent)]);
    assert_eq!((rig.safe(), rig.finalized()), (Some(24), Some(16)));
    finalize_l1(&devnet);
    rig.settle().await;
    assert_eq!(tags(&devnet), (Some(24), Some(24)));
    assert!(devnet.written().is_empty());
    assert_ordered(&devnet);
}
