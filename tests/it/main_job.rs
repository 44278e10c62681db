//! The main job on whole flows over HTTP: the case table, the recorded network, a real batch.

use morph_deriver::decide::stall::Reason;
use morph_deriver::devnet::chain::{BatchSpec, BlockPlan, Compression, decode_contents};
use morph_deriver::devnet::world::{ForkShape, World, WorldOptions};
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::flow::PollEnd;
use morph_deriver::types::{Blob, BlockContent, Case};

use crate::support::recorded::RecordedNetwork;
use crate::support::recorded_l2::RecordedL2;
use crate::support::rig::{Rig, STEP, WINDOW, cases, reason};
use crate::support::{bytes, vectors};

async fn devnet() -> Devnet {
    Devnet::start(DevnetOptions { refuse_unpaused_writes: true, ..DevnetOptions::default() }).await.unwrap()
}

/// Polls until the head has been flat for the whole window but one step.
async fn nearly_stopped(rig: &mut Rig) {
    for _ in 0..WINDOW.as_secs() / STEP.as_secs() {
        rig.poll().await.unwrap();
    }
}

#[tokio::test]
async fn a_chain_that_is_what_l1_committed_to_is_consistent_throughout() {
    let devnet = Devnet::start(DevnetOptions::default()).await.unwrap();
    devnet.with(|w| {
        for _ in 0..3 {
            w.produce(8).unwrap();
        }
        w.mine(20);
        w.sync();
    });
    let mut rig = Rig::on(&devnet).await;
    let report = rig.settle().await;
    assert_eq!(report.end, PollEnd::CaughtUp);
    assert_eq!(cases(&report), [(1, Case::Consistent), (2, Case::Consistent), (3, Case::Consistent)]);
    assert_eq!(rig.safe(), Some(24));
    assert_eq!(rig.finalized(), Some(24));
    assert!(devnet.writes().is_empty());
}

#[tokio::test]
async fn recorded_batches_come_out_consistent() {
    let network = RecordedNetwork::start();
    let l2 = RecordedL2::start(126);
    network.set_head(23);
    network.set_finalized(Some(17));
    let mut rig = Rig::recorded(&network, &l2, |_| {}).await;
    let report = rig.settle().await;
    assert_eq!(report.end, PollEnd::CaughtUp);
    assert_eq!(cases(&report), (1..=6).map(|n| (n, Case::Consistent)).collect::<Vec<_>>());
    let hash = |number| network.recording().l2_hash(number);
    assert_eq!(l2.safe(), Some((105, hash(105))));
    assert_eq!(l2.finalized(), Some((23, hash(23))), "batch 3 was committed in block 17");
    network.set_finalized(None);
    rig.poll().await.unwrap();
    assert_eq!(l2.finalized(), Some((105, hash(105))));
    assert!(l2.writes().is_empty());
    assert_eq!(network.beacon.count("blobs/"), 0, "nothing differs, so no blob is asked for");
    assert!(l2.disorder().is_empty(), "{:?}", l2.disorder());
}

#[tokio::test]
async fn recorded_blocks_that_are_missing_are_filled_in() {
    let network = RecordedNetwork::start();
    let recording = network.recording();
    let l2 = RecordedL2::start(59);
    network.set_head(23);
    let mut rig = Rig::recorded(&network, &l2, |_| {}).await;
    let first = rig.settle().await;
    assert_eq!(reason(&first), Some(Reason::WaitingForBlocks), "the first poll knows nothing of the head");
    assert_eq!(cases(&first), (1..=3).map(|n| (n, Case::Consistent)).collect::<Vec<_>>());
    let report = rig.settle_stopped().await;
    assert_eq!(report.end, PollEnd::CaughtUp);
    assert_eq!(cases(&report), (4..=6).map(|n| (n, Case::FillGap)).collect::<Vec<_>>());
    assert_eq!(l2.writes().iter().map(|w| w.number).collect::<Vec<_>>(), (60..=105).collect::<Vec<_>>());
    for number in 60..=105 {
        assert_eq!(l2.raw_at(number), recording.l2_raw_of(number), "transactions of block {number}");
        assert_eq!(l2.hash_at(number), Some(recording.l2_hash(number)), "hash of block {number}");
    }
    assert_eq!(l2.safe(), Some((105, recording.l2_hash(105))));
    assert!(l2.disorder().is_empty(), "{:?}", l2.disorder());
}

/// A real batch: its blobs, and what they hold.
struct Real {
    blobs: Vec<Blob>,
    contents: Vec<BlockContent>,
}

impl Real {
    fn load() -> Self {
        let folder = vectors().join("blobs/batch-54334");
        let blob = |n: u64| {
            let text = std::fs::read_to_string(folder.join(format!("blob-{n}.hex"))).unwrap();
            Blob::new(bytes(text.trim())).unwrap()
        };
        let blobs: Vec<_> = (1..=2).map(blob).collect();
        let contents = decode_contents(&blobs).unwrap();
        assert_eq!(contents.len(), 599);
        Self { blobs, contents }
    }

    fn first(&self) -> u64 {
        self.contents[0].context.number.get()
    }

    fn last(&self) -> u64 {
        self.first() + 598
    }

    /// A devnet whose sequencer's head is below the batch.
    fn world(&self) -> World {
        let options = WorldOptions {
            anchor: Some(self.first() - 1),
            start_time: self.contents[0].context.timestamp - 1,
            ..WorldOptions::default()
        };
        World::new(&options).unwrap()
    }

    /// The batch committed under its real blobs, the local node as `change` leaves it.
    async fn devnet(&self, change: impl FnOnce(&mut World)) -> Devnet {
        let mut world = self.world();
        let batch = world.produce_from(&self.contents, Some(self.blobs.clone())).unwrap();
        assert_eq!((batch.first, batch.last), (self.first(), self.last()));
        world.sync();
        change(&mut world);
        let options = DevnetOptions { refuse_unpaused_writes: true, ..DevnetOptions::default() };
        Devnet::serve(world, options).await.unwrap()
    }
}

/// A worker that begins after the genesis batch: what lies between is not simulated.
async fn rig_at_the_batch(devnet: &Devnet) -> Rig {
    Rig::with(devnet, |s| {
        s.start = 2.into();
        s.write_chunk = 100;
    })
    .await
}

#[tokio::test]
async fn a_real_batch_is_consistent() {
    let real = Real::load();
    let devnet = real.devnet(|_| {}).await;
    let mut rig = rig_at_the_batch(&devnet).await;
    let report = rig.settle().await;
    assert_eq!(report.end, PollEnd::CaughtUp);
    assert_eq!(cases(&report), [(1, Case::Consistent)]);
    assert!(!report.batches[0].encoder_drift);
    assert_eq!(rig.safe(), Some(real.last()));
    assert!(devnet.writes().is_empty());
    assert_eq!(devnet.pauses(), 0);
}

#[tokio::test]
async fn a_real_batch_with_one_transaction_changed_is_healed_from_there_on() {
    let real = Real::load();
    let place = real.contents.iter().skip(250).position(|c| !c.transactions.is_empty()).unwrap() as u64 + 250;
    let changed = real.first() + place;
    let devnet = real.devnet(|w| w.fork_at(changed, ForkShape::OtherTransaction).unwrap()).await;
    let below = devnet.with(|w| w.node.at(changed - 1).unwrap().hash());
    let mut rig = rig_at_the_batch(&devnet).await;
    let report = rig.settle().await;
    assert_eq!(report.end, PollEnd::CaughtUp);
    assert_eq!(cases(&report), [(1, Case::SelfHeal)]);
    assert_eq!(report.batches[0].rewritten, real.last() - changed + 1);
    assert_eq!(devnet.written(), (changed..=real.last()).collect::<Vec<_>>());
    assert_eq!(devnet.writes()[0].parent, Some(below), "the first block is pinned on the last equal one");
    assert_eq!((devnet.pauses(), devnet.resumes()), (1, 1));
    assert!(!devnet.is_paused());
    let heads = devnet.heads();
    assert_eq!(heads.local, heads.sequencer);
    assert_eq!(heads.safe, Some(heads.sequencer));
}

#[tokio::test]
async fn a_real_batch_whose_tail_is_missing_is_filled_in() {
    let real = Real::load();
    let devnet = real.devnet(|w| w.truncate_to(real.last() - 100)).await;
    let mut rig = rig_at_the_batch(&devnet).await;
    let report = rig.settle_stopped().await;
    assert_eq!(report.end, PollEnd::CaughtUp);
    assert_eq!(cases(&report), [(1, Case::FillGap)]);
    assert_eq!(devnet.written(), (real.last() - 99..=real.last()).collect::<Vec<_>>());
    assert_eq!((devnet.pauses(), devnet.resumes()), (1, 1));
    assert_eq!(devnet.heads().safe, devnet.with(|w| w.expected(real.last())));
}

#[tokio::test]
async fn a_real_batch_whose_tail_is_still_coming_is_waited_for() {
    let real = Real::load();
    let devnet = real.devnet(|w| w.truncate_to(real.last() - 100)).await;
    let commit = devnet.with(|w| w.l1.find_tx(w.batches[0].tx).unwrap().0.header.number);
    let mut rig = rig_at_the_batch(&devnet).await;
    for _ in 0..3 * WINDOW.as_secs() / STEP.as_secs() {
        let report = rig.poll().await.unwrap();
        assert_eq!(reason(&report), Some(Reason::WaitingForBlocks));
        assert_eq!(report.batches.iter().map(|b| b.case).collect::<Vec<_>>(), [Case::Wait]);
        devnet.with(|w| w.grow(2));
    }
    let stored = rig.ports.progress.load().await.unwrap();
    assert!(stored.cursor.is_none_or(|c| c.block.number.get() < commit), "{:?}", stored.cursor);
    assert_eq!((stored.safe, stored.tip), (None, None));
    assert!(devnet.writes().is_empty());
    assert!(devnet.tag_calls().is_empty());
    assert_eq!(devnet.pauses(), 0);
}

#[tokio::test]
async fn e1_a_real_batch_under_a_wrong_state_root_is_a_divergence() {
    let real = Real::load();
    let mut world = real.world();
    world.sequencer.append_contents(&real.contents, &[]).unwrap();
    let spec = BatchSpec {
        blobs: Some(real.blobs.clone()),
        edit_commit: Some(Box::new(|c| c.post_state_root.0[7] ^= 1)),
        ..BatchSpec::default()
    };
    world.commit(spec).unwrap();
    world.mine(1);
    world.sync();
    let devnet = Devnet::serve(world, DevnetOptions::default()).await.unwrap();
    let mut rig = rig_at_the_batch(&devnet).await;
    for _ in 0..2 {
        let report = rig.settle_stopped().await;
        assert_eq!(reason(&report), Some(Reason::StateRoot));
        assert!(Reason::StateRoot.is_divergence());
        assert_eq!(cases(&report), []);
    }
    assert_eq!(rig.safe(), None);
    assert!(devnet.tag_calls().is_empty());
    assert!(devnet.writes().is_empty());
}

#[tokio::test]
async fn e6_a_local_fork_below_a_gap_is_not_extended() {
    let devnet = devnet().await;
    let batch = devnet.with(|w| {
        w.produce(8).unwrap();
        let batch = w.produce(20).unwrap();
        w.sync_to(batch.first + 9);
        w.fork_at(batch.first + 4, ForkShape::ExtraTransaction).unwrap();
        batch
    });
    let mut rig = Rig::on(&devnet).await;
    let report = rig.settle_stopped().await;
    assert_eq!(report.end, PollEnd::CaughtUp);
    assert_eq!(cases(&report), [(1, Case::Consistent), (2, Case::FillGap)]);
    assert_eq!(devnet.written(), (batch.first + 4..=batch.last).collect::<Vec<_>>());
    assert_eq!(devnet.heads().local, devnet.heads().sequencer);
    assert_eq!(rig.safe(), Some(batch.last));
}

#[tokio::test]
async fn f7_other_bytes_of_the_same_content_are_consistent_and_counted() {
    let devnet = devnet().await;
    devnet.with(|w| {
        for _ in 0..3 {
            w.enqueue(1).unwrap();
            w.mine(1);
            w.build(8).unwrap();
            // Enough for the levels to differ.
            w.build_planned(&busy()).unwrap();
            w.commit(BatchSpec { compression: Compression::Level(19), ..BatchSpec::default() }).unwrap();
            w.mine(1);
        }
        w.sync();
    });
    let mut rig = Rig::on(&devnet).await;
    let report = rig.settle().await;
    assert_eq!(report.end, PollEnd::CaughtUp);
    assert_eq!(cases(&report), [(1, Case::Consistent), (2, Case::Consistent), (3, Case::Consistent)]);
    assert!(report.batches.iter().all(|b| b.encoder_drift), "{:?}", report.batches);
    assert_eq!(rig.worker.status().borrow().encoder_drift, 3);
    assert_eq!(devnet.pauses(), 0);
    assert!(devnet.writes().is_empty());
    assert_eq!(rig.safe(), devnet.with(|w| w.batches.last().map(|b| b.last)));
}

fn busy() -> BlockPlan {
    BlockPlan { txs: 12, noise: 200, withdrawals: 1, messages: 0 }
}

#[tokio::test]
async fn own_writes_do_not_make_the_next_poll_alive() {
    let devnet = devnet().await;
    devnet.with(|w| {
        w.produce(8).unwrap();
        w.sync();
        w.produce(8).unwrap();
    });
    let mut rig = Rig::on(&devnet).await;
    let report = rig.settle_stopped().await;
    assert_eq!(cases(&report), [(1, Case::Consistent), (2, Case::FillGap)]);
    devnet.with(|w| w.produce(8)).unwrap();
    let next = rig.poll().await.unwrap();
    assert_eq!(cases(&next), [(3, Case::FillGap)], "the head moved by our own hand only");
    assert_eq!(rig.safe(), Some(24));
}

#[tokio::test]
async fn the_first_poll_after_a_start_never_fills() {
    let devnet = devnet().await;
    devnet.with(|w| w.produce(8)).unwrap();
    let mut rig = Rig::on(&devnet).await;
    rig.now = WINDOW * 100;
    nearly_stopped(&mut rig).await;
    rig.restart().await;
    rig.now = WINDOW * 200;
    let report = rig.poll().await.unwrap();
    assert_eq!(reason(&report), Some(Reason::WaitingForBlocks), "the old worker's samples are not the new one's");
    assert!(devnet.writes().is_empty());
    assert_eq!(cases(&rig.settle_stopped().await), [(1, Case::FillGap)]);
}

#[tokio::test]
async fn e7_a_head_that_went_down_never_fills() {
    let devnet = devnet().await;
    let batch = devnet.with(|w| {
        w.produce(8).unwrap();
        let batch = w.produce(16).unwrap();
        w.sync_to(batch.first + 12);
        batch
    });
    let mut rig = Rig::on(&devnet).await;
    nearly_stopped(&mut rig).await;
    for lost in 1..=4 {
        devnet.with(|w| w.node.kill(batch.first + 12 - lost));
        let report = rig.poll().await.unwrap();
        assert_eq!(reason(&report), Some(Reason::WaitingForBlocks), "after {lost} blocks were lost");
    }
    assert!(devnet.writes().is_empty());
    // The window begins anew at the last fall.
    for _ in 0..WINDOW.as_secs() / STEP.as_secs() - 1 {
        rig.poll().await.unwrap();
        assert!(devnet.writes().is_empty());
    }
    assert_eq!(cases(&rig.poll().await.unwrap()), [(2, Case::FillGap)]);
    assert_eq!(devnet.heads().local, devnet.heads().sequencer);
}

#[tokio::test]
async fn a_chain_without_any_withdrawal_is_verified_by_a_pruned_node() {
    let devnet = devnet().await;
    devnet.with(|w| {
        for blocks in [5, 200] {
            for _ in 0..blocks {
                w.build_planned(&BlockPlan::empty()).unwrap();
            }
            w.commit(BatchSpec::default()).unwrap();
            w.mine(1);
        }
        w.sync();
        w.node.moods.archive = false;
        let below = w.node.at(5).unwrap();
        assert!(w.node.message_root(&below).is_err(), "the state is gone");
    });
    let mut rig = Rig::on(&devnet).await;
    let report = rig.settle().await;
    assert_eq!(report.end, PollEnd::CaughtUp);
    assert_eq!(rig.safe(), Some(205));
}

#[tokio::test]
async fn batches_filled_in_by_one_poll_share_one_pause() {
    let devnet = devnet().await;
    devnet.with(|w| (0..4).for_each(|_| drop(w.produce(8).unwrap())));
    let mut rig = Rig::on(&devnet).await;
    let report = rig.settle_stopped().await;
    assert_eq!(cases(&report), (1..=4).map(|n| (n, Case::FillGap)).collect::<Vec<_>>());
    assert_eq!((devnet.pauses(), devnet.resumes()), (1, 1));
    assert!(devnet.unpaused_writes().is_empty());
    assert_eq!(devnet.written(), (1..=32).collect::<Vec<_>>());
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
    // The node is resynced by hand: the worker continues by itself.
    devnet.with(|w| {
        w.truncate_to(batch.first - 1);
        w.sync();
    });
    let report = rig.settle().await;
    assert_eq!(report.end, PollEnd::CaughtUp);
    assert_eq!(cases(&report), [(2, Case::Consistent)]);
}
