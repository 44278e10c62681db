//! Faults that only a close reading of the flow found: what each of them would have done, and that it does not.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use morph_deriver::decide::liveness::Verdict;
use morph_deriver::decide::stall::Reason;
use morph_deriver::devnet::chain::{BatchSpec, BlockPlan};
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::devnet::jsonrpc::RpcError;
use morph_deriver::devnet::world::ForkShape;
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::flow::PollEnd;
use morph_deriver::flow::worker::{Panicked, contained};
use morph_deriver::ports::{EngineView, L2Engine, PortResult, WriteStopped};
use morph_deriver::types::{B256, Case, L2Header, L2Number, NewBlock};
use tokio_util::sync::CancellationToken;

use crate::support::rig::{Rig, cases, reason};

async fn devnet() -> Devnet {
    Devnet::start(DevnetOptions { refuse_unpaused_writes: true, ..DevnetOptions::default() }).await.unwrap()
}

#[tokio::test]
async fn e1_a_fork_before_the_switch_is_a_divergence_and_never_rewritten() {
    let devnet = devnet().await;
    let batch = devnet.with(|w| {
        w.produce(8).unwrap();
        let batch = w.produce(8).unwrap();
        w.sync();
        w.fork_at(batch.first + 3, ForkShape::ExtraTransaction).unwrap();
        batch
    });
    let mut rig = Rig::with(&devnet, |s| s.switch_ms = u64::MAX).await;
    for _ in 0..3 {
        let report = rig.settle_stopped().await;
        assert_eq!(reason(&report), Some(Reason::DivergesBeforeSwitch));
    }
    assert!(Reason::DivergesBeforeSwitch.is_divergence() && Reason::DivergesBeforeSwitch.is_halt());
    assert_eq!(rig.safe(), Some(batch.first - 1));
    assert!(devnet.writes().is_empty());
    assert_eq!(devnet.pauses(), 0);
    // The node is resynced by hand: it goes on by itself.
    devnet.with(|w| {
        w.truncate_to(batch.first - 1);
        w.sync();
    });
    let report = rig.settle().await;
    assert_eq!(report.end, PollEnd::CaughtUp);
    assert_eq!(cases(&report), [(2, Case::Consistent)]);
}

#[tokio::test]
async fn c10_a_genesis_block_that_is_not_given_is_asked_for_again() {
    let devnet = devnet().await;
    devnet.with(|w| {
        w.produce(8).unwrap();
        w.sync();
    });
    let mut rig = Rig::on(&devnet).await;
    // Head, safe and finalized come first, in the snapshot.
    let missing = Rule::on("eth_getBlockByNumber", Fault::Error(RpcError::server("header not found")));
    devnet.fault(Server::L2, missing.after(3).times(1));
    let error = rig.poll().await.unwrap_err();
    assert_eq!(error.stall().reason, Reason::L2Unavailable, "{error}");
    let report = rig.settle().await;
    assert_eq!(report.end, PollEnd::CaughtUp);
    assert_eq!(cases(&report), [(1, Case::Consistent)]);
}

#[tokio::test]
async fn recovering_up_to_a_batch_never_writes_the_next_one() {
    let devnet = devnet().await;
    let batches = devnet.with(|w| [w.produce(8).unwrap(), w.produce(8).unwrap()]);
    let mut rig = Rig::with(&devnet, |s| {
        s.to_batch = Some(1.into());
        s.assume = Some(Verdict::Stopped);
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

/// An engine with a bug.
struct PanicsOnWrite(Arc<dyn L2Engine>);

#[async_trait]
impl L2Engine for PanicsOnWrite {
    async fn view(&self, number: L2Number) -> PortResult<EngineView> {
        self.0.view(number).await
    }

    async fn write_blocks(&self, _: &[NewBlock]) -> Result<Vec<L2Header>, WriteStopped> {
        panic!("a bug in the middle of a pause")
    }

    async fn set_tags(&self, _: Option<B256>, _: Option<B256>) -> PortResult<()> {
        Ok(())
    }
}

#[tokio::test]
async fn g4_a_panic_of_the_worker_resumes_the_reactors_before_the_program_ends() {
    let devnet = devnet().await;
    devnet.with(|w| w.produce(8)).unwrap();
    let mut rig = Rig::with(&devnet, |s| s.assume = Some(Verdict::Stopped)).await;
    let engine = rig.ports.engine.take().unwrap();
    rig.ports.engine = Some(Arc::new(PanicsOnWrite(engine)));
    rig.restart().await;
    let Rig { worker, ports, .. } = rig;
    devnet.latency(Server::Reactors, Duration::from_millis(200));
    // A runtime that ends with the command, as the program's does: what it still had to do is cut off.
    let program = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let ended = runtime.block_on(async {
            let ended = contained(&worker.quiesce(), worker.run(CancellationToken::new())).await;
            (ended, ports.progress.lease().await.unwrap())
        });
        runtime.shutdown_background();
        ended
    });
    let (ended, lease) = tokio::task::spawn_blocking(|| program.join()).await.unwrap().unwrap();
    assert_eq!(ended.unwrap_err(), Panicked);
    assert_eq!((devnet.pauses(), devnet.resumes()), (1, 1));
    assert!(!devnet.is_paused());
    assert_eq!(lease, None);
}

#[tokio::test]
async fn h5_recorded_l1_blocks_are_bounded_while_nothing_is_finalized() {
    let devnet = devnet().await;
    devnet.with(|w| {
        w.l1.config.finalized_depth = 1_000_000;
        w.produce(4).unwrap();
        w.sync();
    });
    let mut rig = Rig::with(&devnet, |s| s.reorg_window = 5).await;
    for _ in 0..12 {
        devnet.with(|w| w.mine(3));
        assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
        assert_eq!(rig.finalized(), None, "only finality used to prune");
    }
    let recorded = rig.ports.progress.l1_blocks().await.unwrap();
    assert!(recorded.len() <= 11, "{} blocks", recorded.len());
    // A reorg inside the window still heals itself.
    devnet.with(|w| {
        w.reorg(4);
        w.mine(6);
    });
    assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
    assert_eq!(rig.worker.status().borrow().reorgs, 1);
}

#[tokio::test]
async fn f3_local_blocks_are_not_read_further_than_content_can_reach() {
    let devnet = devnet().await;
    let batch = devnet.with(|w| {
        for _ in 0..450 {
            w.build_planned(&BlockPlan::empty()).unwrap();
        }
        let batch = w.commit(BatchSpec::default()).unwrap();
        w.mine(1);
        w.sync();
        w.fork_at(batch.first + 4, ForkShape::Bulky).unwrap();
        batch
    });
    let mut rig = Rig::with(&devnet, |s| s.local_bytes = 1000).await;
    let report = rig.settle().await;
    assert_eq!((report.end.clone(), cases(&report)), (PollEnd::CaughtUp, vec![(1, Case::SelfHeal)]));
    assert_eq!(devnet.written(), (batch.first + 4..=batch.last).collect::<Vec<_>>());
    // A piece before the blob was there, a piece after it, and what the probe asked.
    assert!(devnet.calls(Server::L2, "debug_getBlockRlp") <= 2 * 200 + 2);
}

#[tokio::test]
async fn f3_a_bound_on_reading_decides_nothing_about_equal_blocks() {
    let devnet = devnet().await;
    let batches = devnet.with(|w| {
        let batches = [w.produce(8).unwrap(), w.produce(8).unwrap(), w.produce(8).unwrap()];
        w.sync_to(batches[2].first + 2);
        batches
    });
    let mut rig = Rig::with(&devnet, |s| s.local_bytes = 1000).await;
    let report = rig.settle_stopped().await;
    assert_eq!(cases(&report), [(1, Case::Consistent), (2, Case::Consistent), (3, Case::FillGap)]);
    assert!(report.batches.iter().all(|b| !b.encoder_drift), "bytes that were not compared do not differ");
    assert_eq!(devnet.written(), (batches[2].first + 3..=batches[2].last).collect::<Vec<_>>());
    assert_eq!(rig.safe(), Some(batches[2].last));
}

#[tokio::test]
async fn c2_a_long_search_through_l1_goes_on_where_the_pull_before_it_stopped() {
    let devnet = devnet().await;
    devnet.with(|w| {
        w.l1.config.finalized_depth = 1_000_000;
        for _ in 0..4 {
            w.produce(8).unwrap();
        }
        w.sync();
        w.mine(100);
        w.revert(3).unwrap();
        w.mine(100);
        w.recommit_state().unwrap();
        w.mine(20);
    });
    let mut rig = Rig::with(&devnet, |s| {
        s.fetch_range = 4;
        s.search_time = Duration::ZERO;
    })
    .await;
    let (mut searching, mut verified) = (0, Vec::new());
    for _ in 0..200 {
        devnet.clear_counts();
        let end = match rig.poll().await {
            Ok(report) => {
                verified.extend(cases(&report));
                report.end
            }
            Err(error) => {
                assert_eq!(error.stall().reason, Reason::SearchingL1, "{error}");
                assert_eq!(rig.worker.status().borrow().stall.as_ref().map(|s| s.reason), Some(Reason::SearchingL1));
                searching += 1;
                PollEnd::Behind
            }
        };
        assert!(devnet.calls(Server::L1(0), "eth_getLogs") <= 2, "the range, and one window of a search");
        if end != PollEnd::Behind {
            assert_eq!(end, PollEnd::CaughtUp);
            break;
        }
    }
    // From commit 4 up to its revert in windows of 4, 8, 16, 32, 64 blocks; from the second commit of 3 down to the
    // first one, which has the blobs, in as many and one more.
    assert_eq!(searching, 4 + 5);
    assert_eq!(verified, [1, 2, 3, 3].map(|index| (index, Case::Consistent)));
    assert_eq!(rig.safe(), Some(24));
}
