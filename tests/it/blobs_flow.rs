//! Beacon nodes and blobs on whole flows over HTTP: what is missing, what is malformed, what only looks different
//! (scenarios D and F).

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use morph_deriver::adapters::beacon::{BeaconClient, BeaconConfig};
use morph_deriver::adapters::rpc::{Check, Pool};
use morph_deriver::codec::calldata::CommitForm;
use morph_deriver::codec::{blob, payload};
use morph_deriver::decide::content::ContentFault;
use morph_deriver::decide::stall::{Cause, Reason, Stall};
use morph_deriver::devnet::beacon::{BeaconKnobs, Route, Spec};
use morph_deriver::devnet::chain::{BatchSpec, BlockPlan, Compression};
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::devnet::l1::Forward;
use morph_deriver::devnet::world::{ForkShape, World, WorldOptions};
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::error::Target;
use morph_deriver::flow::Mode;
use morph_deriver::flow::{PollEnd, PollReport};
use morph_deriver::ports::BlobSource as _;
use morph_deriver::types::{Blob, BlockContent, BlockContext, Case, L1EventKind, L1Tag, RawTx};

use crate::support::clients::pool_config;
use crate::support::rig::{Rig, cases, devnet_ports, guarded_devnet, reason, settings};
use crate::support::vectors;

/// A devnet on which nothing may be written outside a pause, its L1 as old as a blob that nodes still keep.
async fn devnet_with(beacons: usize, make: impl FnOnce(&mut World)) -> Devnet {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let mut world = World::new(&WorldOptions { start_time: now - 3600, ..WorldOptions::default() }).unwrap();
    make(&mut world);
    let options = DevnetOptions { beacon_endpoints: beacons, refuse_unpaused_writes: true, ..DevnetOptions::default() };
    Devnet::serve(world, options).await.unwrap()
}

async fn devnet(make: impl FnOnce(&mut World)) -> Devnet {
    devnet_with(1, make).await
}

/// A worker that asks all beacon endpoints of the devnet, in order.
async fn rig_over_beacons(devnet: &Devnet, beacons: usize, mode: Mode) -> Rig {
    let urls: Vec<_> = (0..beacons).map(|n| devnet.url(Server::Beacon(n))).collect();
    let pool = Pool::new(Target::Beacon, &urls, pool_config(Check::None)).unwrap();
    let mut settings = settings();
    settings.rollup = devnet.rollup();
    settings.mode = mode;
    let mut ports = devnet_ports(devnet).await;
    ports.blobs = Arc::new(BeaconClient::new(pool, BeaconConfig::default()));
    Rig::start(ports, settings).await
}

/// The reason of one poll's stall, whether returned as a verdict or as an error.
async fn stall_of(rig: &mut Rig) -> Option<Stall> {
    match rig.poll().await {
        Ok(PollReport { end: PollEnd::Stalled(stall), .. }) => Some(stall),
        Ok(_) => None,
        Err(error) => Some(error.stall()),
    }
}

/// Batch 1 of eight blocks; batch 2 of eight more, forked locally at its third block.
fn forked(w: &mut World) {
    w.produce(8).unwrap();
    w.produce(8).unwrap();
    w.sync();
    w.fork_at(11, ForkShape::ExtraTransaction).unwrap();
}

#[tokio::test]
async fn d1_d2_ten_batches_are_checked_past_a_dead_and_a_lying_beacon_node() {
    let devnet = devnet_with(3, |w| {
        for _ in 0..10 {
            w.produce(3).unwrap();
        }
        w.sync();
    })
    .await;
    devnet.fault(Server::Beacon(0), Rule::always(Fault::Drop));
    devnet.beacon_knobs(1, |k| k.wrong_bytes = true);
    let mut rig = rig_over_beacons(&devnet, 3, Mode::Blob).await;
    let report = rig.settle().await;
    assert_eq!(report.end, PollEnd::CaughtUp);
    assert_eq!(cases(&report), (1..=10).map(|n| (n, Case::Consistent)).collect::<Vec<_>>());
    assert!(devnet.calls(Server::Beacon(2), "blobs") >= 10, "each batch against its own blob");
    assert_eq!(rig.safe(), Some(30));
}

#[tokio::test]
async fn d3_a_missed_slot_makes_it_look_at_l1_once_more() {
    let devnet = devnet(forked).await;
    devnet.beacon_knobs(0, |k| k.blobs = Route::Fail(404, "Block not found".into()));
    devnet.beacon_knobs(0, |k| k.sidecars = Route::Fail(404, "Block not found".into()));
    let mut rig = rig_over_beacons(&devnet, 1, Mode::Local).await;
    let stall = stall_of(&mut rig).await.unwrap();
    assert_eq!(stall.reason(), Reason::BlobMissing, "{stall}");
    assert_eq!(rig.safe(), Some(8));
    assert_eq!(devnet.pauses(), 0, "nothing is paused before the blob has arrived");

    // L1 reorganises away batch 2 while its blob is asked for.
    devnet.on_call(Server::Beacon(0), "blobs", 1, |w| {
        let dropped = w.reorg(1);
        drop(dropped);
        w.mine(3);
    });
    let stall = stall_of(&mut rig).await.unwrap();
    assert_eq!(stall.reason(), Reason::L1Reorg, "not the beacon node's fault: {stall}");
    let report = rig.settle().await;
    assert_eq!(report.end, PollEnd::CaughtUp, "batch 2 is gone");
    assert_eq!(rig.safe(), Some(8));
    assert!(devnet.writes().is_empty());
}

#[tokio::test]
async fn d4_pruned_blobs_are_needed_for_repair_only() {
    let make = |w: &mut World| {
        forked(w);
        w.produce(8).unwrap();
    };
    let options = DevnetOptions { beacon_endpoints: 2, refuse_unpaused_writes: true, ..DevnetOptions::default() };
    // As old as blobs that no ordinary node keeps.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let old = WorldOptions { start_time: now - 30 * 86_400, ..WorldOptions::default() };
    let mut world = World::new(&old).unwrap();
    make(&mut world);
    let devnet = Devnet::serve(world, options).await.unwrap();
    devnet.beacon_knobs(0, |k| k.pruned_below = Some(u64::MAX));

    let mut rig = rig_over_beacons(&devnet, 1, Mode::Local).await;
    for _ in 0..2 {
        let stall = stall_of(&mut rig).await.unwrap();
        assert_eq!(stall.reason(), Reason::BlobPruned, "{stall}");
        assert!(stall.detail().contains("archive"), "{stall}");
        assert_eq!(rig.safe(), Some(8), "batch 1 is consistent without its blob");
    }
    assert_eq!(devnet.pauses(), 0);

    let mut with_archive = rig_over_beacons(&devnet, 2, Mode::Local).await;
    let report = with_archive.settle_stopped().await;
    assert_eq!(report.end, PollEnd::CaughtUp);
    assert_eq!(cases(&report), [(1, Case::Consistent), (2, Case::SelfHeal), (3, Case::FillGap)]);
    assert_eq!(devnet.heads().local, devnet.heads().sequencer);
}

#[tokio::test]
async fn d5_a_node_without_all_columns_is_named_in_the_reason() {
    let devnet = devnet(forked).await;
    devnet.beacon_knobs(0, |k| {
        k.blobs = Route::insufficient_columns();
        k.sidecars = Route::insufficient_columns();
    });
    let mut rig = rig_over_beacons(&devnet, 1, Mode::Local).await;
    let stall = stall_of(&mut rig).await.unwrap();
    assert!(stall.detail().contains("supernode"), "{stall}");
    assert_eq!(rig.safe(), Some(8));
    assert_eq!(devnet.pauses(), 0);
}

#[tokio::test]
async fn d6_d7_d9_blobs_in_any_order_and_by_either_way_heal() {
    let ways: [fn(&mut BeaconKnobs); 5] = [
        |k| k.spec = Spec::Millis,
        |k| k.sidecars = Route::gone(),
        |k| k.blobs = Route::Fail(404, "Not found".into()),
        |k| {
            k.reversed = true;
            k.ignores_filters = true;
        },
        |k| {
            k.blobs = Route::Fail(404, "Not found".into());
            k.reversed = true;
        },
    ];
    for (n, way) in ways.into_iter().enumerate() {
        let devnet = devnet(|w| {
            // The slot holds foreign blobs too, before and after ours, and the batch has two.
            w.produce(8).unwrap();
            let noise = morph_deriver::devnet::chain::measure(vec![Blob::new(vec![0; 131_072]).unwrap()]).unwrap();
            w.build_planned(&BlockPlan { txs: 12, noise: 12_000, ..BlockPlan::default() }).unwrap();
            w.l1.submit(morph_deriver::devnet::l1::L1Op::Noise(noise.clone())).unwrap();
            let batch = w.commit(BatchSpec::default()).unwrap();
            assert_eq!(batch.blobs.len(), 2);
            w.l1.submit(morph_deriver::devnet::l1::L1Op::Noise(noise)).unwrap();
            w.mine(1);
            w.sync();
            w.fork_at(9, ForkShape::OtherTransaction).unwrap();
        })
        .await;
        devnet.beacon_knobs(0, way);
        let mut rig = rig_over_beacons(&devnet, 1, Mode::Local).await;
        let report = rig.settle().await;
        assert_eq!(cases(&report), [(1, Case::Consistent), (2, Case::SelfHeal)], "way {n}");
        assert_eq!(devnet.heads().local, devnet.heads().sequencer, "way {n}");
    }
}

#[tokio::test]
async fn commitments_are_offered_by_the_beacon_block_long_after_the_blobs() {
    let devnet = devnet_with(2, |w| {
        w.build_planned(&BlockPlan { txs: 12, noise: 12_000, ..BlockPlan::default() }).unwrap();
        assert_eq!(w.commit(BatchSpec::default()).unwrap().blobs.len(), 2);
        w.mine(1);
    })
    .await;
    let (l1, beacon) = (devnet_ports(&devnet).await.l1, {
        let urls: Vec<_> = (0..2).map(|n| devnet.url(Server::Beacon(n))).collect();
        BeaconClient::new(Pool::new(Target::Beacon, &urls, pool_config(Check::None)).unwrap(), BeaconConfig::default())
    });
    let tip = l1.tagged(L1Tag::Latest).await.unwrap().unwrap();
    let events = l1.events(0.into(), tip.number).await.unwrap().events;
    let commit = events.iter().rfind(|event| matches!(event.kind, L1EventKind::Commit { .. })).unwrap();
    let hashes = l1.transaction(commit.block, commit.tx_index).await.unwrap().unwrap().blob_hashes;
    assert_eq!(hashes.len(), 2);
    let header = l1.headers(&[commit.block.number]).await.unwrap()[0].unwrap();
    let blobs = beacon.blobs(&header, &hashes).await.unwrap();
    let expected: Vec<_> = blobs.iter().map(|blob| blob::commitment(blob).unwrap()).collect();
    assert_eq!(beacon.commitments(&header, &hashes).await.unwrap(), Some(expected.clone()));

    // The blobs are gone, the commitments are not; one node lies or has no block, the other one serves.
    let ways: [fn(&mut BeaconKnobs); 4] = [
        |k| k.pruned_below = Some(u64::MAX),
        |k| k.wrong_commitments = true,
        |k| k.blocks = Route::Empty,
        |k| k.blocks = Route::Fail(404, "Block not found".into()),
    ];
    for (n, way) in ways.into_iter().enumerate() {
        devnet.beacon_knobs(0, |knobs| *knobs = BeaconKnobs::default());
        devnet.beacon_knobs(1, |knobs| *knobs = BeaconKnobs::default());
        devnet.beacon_knobs(0, way);
        assert_eq!(beacon.commitments(&header, &hashes).await.unwrap(), Some(expected.clone()), "way {n}");
        devnet.beacon_knobs(1, way);
        let offered = beacon.commitments(&header, &hashes).await.unwrap();
        assert_eq!(offered.is_some(), n == 0, "way {n}");
    }
}

#[tokio::test]
async fn d8_answers_that_are_no_blobs_are_waited_out() {
    let faults = [
        Fault::Huge(64 << 20),
        Fault::Body("<html>secret of the operator</html>".into()),
        Fault::Body("{\"data\": [\"0x00\", 7, null]}".into()),
        Fault::Status(500, "{}".into()),
        Fault::RateLimited(None),
        Fault::Drop,
    ];
    let devnet = devnet(forked).await;
    let mut rig = rig_over_beacons(&devnet, 1, Mode::Local).await;
    for fault in faults {
        devnet.fault(Server::Beacon(0), Rule::on("blob", fault.clone()));
        let stall = stall_of(&mut rig).await.unwrap();
        assert!(matches!(stall.reason(), Reason::BeaconUnavailable | Reason::BlobMissing), "{fault:?}: {stall}");
        assert!(!stall.reason().is_halt(), "{fault:?}");
        assert!(!stall.detail().contains("secret of the operator"), "{stall}");
        assert_eq!(rig.safe(), Some(8), "{fault:?}");
        devnet.heal(Server::Beacon(0));
        tokio::time::sleep(Duration::from_millis(250)).await; // the endpoint's cool-down is on the real clock
    }
    assert_eq!(devnet.pauses(), 0);
    assert_eq!(cases(&rig.settle().await), [(2, Case::SelfHeal)]);
}

/// A batch that L1 accepted and no honest sequencer makes.
struct Poison {
    what: &'static str,
    /// Whether this is the fault that must be named.
    is: fn(&ContentFault) -> bool,
    spec: fn() -> BatchSpec,
}

fn contents(edit: fn(&mut Vec<BlockContent>)) -> BatchSpec {
    BatchSpec { edit_contents: Some(Box::new(edit)), ..BatchSpec::default() }
}

fn bytes_of(edit: fn(&mut Vec<u8>)) -> BatchSpec {
    BatchSpec { edit_payload: Some(Box::new(edit)), ..BatchSpec::default() }
}

fn frame_of(edit: fn(&mut Vec<u8>)) -> BatchSpec {
    BatchSpec { edit_frame: Some(Box::new(edit)), ..BatchSpec::default() }
}

fn commit_of(edit: fn(&mut morph_deriver::codec::calldata::CommitCalldata)) -> BatchSpec {
    BatchSpec { edit_commit: Some(Box::new(edit)), ..BatchSpec::default() }
}

fn legacy(edit: fn(&mut Vec<BlockContext>)) -> BatchSpec {
    BatchSpec {
        form: Some(CommitForm::LegacyContexts),
        edit_commit: Some(Box::new(move |c| edit(c.contexts.as_mut().unwrap()))),
        ..BatchSpec::default()
    }
}

fn push_transaction(contents: &mut [BlockContent], raw: &'static [u8]) {
    contents[2].transactions.push(RawTx::from_static(raw));
    contents[2].context.txs += 1;
}

/// Batch 1 is good, batch 2 is `poison`; the local node has both, or neither of batch 2 and is stopped. Either way it
/// is refused, safe stays, nothing is written or paused.
async fn refused(poison: &Poison) {
    for synced in [true, false] {
        let what = format!("{} (synced: {synced})", poison.what);
        let devnet = devnet(|w| {
            w.produce(8).unwrap();
            w.enqueue(3).unwrap();
            w.mine(1);
            for messages in [0, 1, 0, 1, 0, 0] {
                w.build_planned(&BlockPlan { txs: 2, noise: 40, withdrawals: 0, messages }).unwrap();
            }
            w.commit((poison.spec)()).unwrap();
            w.mine(1);
            w.sync_to(if synced { 14 } else { 8 });
        })
        .await;
        let mut rig = Rig::on(&devnet).await;
        let report = rig.settle_stopped().await;
        let PollEnd::Stalled(stall) = &report.end else { panic!("{what}: {:?}", report.end) };
        assert_eq!((stall.reason(), stall.batch), (Reason::PoisonBatch, Some(2.into())), "{what}: {stall}");
        assert!(matches!(&stall.cause, Cause::Content(fault) if (poison.is)(fault)), "{what}: {:?}", stall.cause);
        assert_eq!(cases(&report), [(1, Case::Consistent)], "{what}");
        assert_eq!(rig.safe(), Some(8), "{what}");
        assert!(devnet.writes().is_empty(), "{what}");
        assert_eq!(devnet.pauses(), 0, "{what}");
    }
}

async fn all_refused(poisons: &[Poison]) {
    for poison in poisons {
        refused(poison).await;
    }
}

#[tokio::test]
async fn f4_c13_contexts_that_do_not_fit_calldata_are_refused() {
    all_refused(&[
        Poison {
            what: "a number left out",
            is: |f| matches!(f, ContentFault::NotContiguous { expected, actual } if (expected.get(), actual.get()) == (11, 12)),
            spec: || contents(|c| c.iter_mut().skip(2).for_each(|b| b.context.number = b.context.number.plus(1))),
        },
        Poison {
            what: "a number twice",
            is: |f| matches!(f, ContentFault::NotContiguous { expected, actual } if (expected.get(), actual.get()) == (11, 10)),
            spec: || contents(|c| c[2].context.number = 10.into()),
        },
        Poison {
            what: "begins above parent + 1",
            is: |f| matches!(f, ContentFault::First { expected, .. } if expected.get() == 9),
            spec: || contents(|c| c.iter_mut().for_each(|b| b.context.number = b.context.number.plus(1))),
        },
        Poison {
            what: "begins at the parent",
            is: |f| matches!(f, ContentFault::First { expected, .. } if expected.get() == 9),
            spec: || contents(|c| c.iter_mut().for_each(|b| b.context.number = b.context.number.minus(1))),
        },
        Poison { what: "a block short", is: |f| matches!(f, ContentFault::Last { .. } | ContentFault::Extent { .. }), spec: || contents(|c| c.truncate(5)) },
        Poison {
            what: "a block too many",
            is: |f| matches!(f, ContentFault::Last { .. } | ContentFault::Extent { .. }),
            spec: || {
                contents(|c| {
                    let mut more = c[5].clone();
                    more.context.number = more.context.number.plus(1);
                    c.push(more);
                })
            },
        },
        Poison {
            what: "last block claimed one higher",
            is: |f| matches!(f, ContentFault::Last { .. } | ContentFault::Extent { .. }),
            spec: || commit_of(|c| c.last_block = c.last_block.map(|n| n.plus(1))),
        },
        Poison {
            what: "last block claimed one lower",
            is: |f| matches!(f, ContentFault::Last { .. } | ContentFault::Extent { .. }),
            spec: || commit_of(|c| c.last_block = c.last_block.map(|n| n.minus(1))),
        },
        Poison {
            what: "last block below the first",
            is: |f| matches!(f, ContentFault::Last { .. } | ContentFault::Extent { .. }),
            spec: || commit_of(|c| c.last_block = Some(8.into())),
        },
        Poison {
            what: "last block without end",
            is: |f| matches!(f, ContentFault::Last { .. } | ContentFault::Extent { .. }),
            spec: || commit_of(|c| c.last_block = Some(u64::MAX.into())),
        },
    ])
    .await;
}

#[tokio::test]
async fn f4_e18_l1_messages_and_times_that_do_not_add_up_are_refused() {
    all_refused(&[
        Poison {
            what: "more L1 messages in the blocks",
            is: |f| matches!(f, ContentFault::MessageCount { .. }),
            spec: || {
                contents(|c| {
                    c[0].context.l1_messages += 1;
                    c[0].context.txs += 1;
                })
            },
        },
        Poison {
            what: "fewer L1 messages in the blocks",
            is: |f| matches!(f, ContentFault::MessageCount { .. }),
            spec: || {
                contents(|c| {
                    c[1].context.l1_messages -= 1;
                    c[1].context.txs -= 1;
                })
            },
        },
        Poison {
            what: "more L1 messages in calldata",
            is: |f| matches!(f, ContentFault::MessageCount { .. }),
            spec: || commit_of(|c| c.num_l1_messages = c.num_l1_messages.map(|n| n + 1)),
        },
        Poison {
            what: "more L1 messages than transactions",
            is: |f| matches!(f, ContentFault::Malformed(_) | ContentFault::SmuggledMessage(_)),
            spec: || contents(|c| c[0].context.l1_messages = c[0].context.txs + 1),
        },
        Poison {
            what: "an L1 message among the L2 transactions",
            is: |f| matches!(f, ContentFault::Malformed(_) | ContentFault::SmuggledMessage(_)),
            spec: || {
                contents(|c| {
                    // queue index 0, gas 200,000, to, no value, no data, sender
                    let raw = b"\x7e\xf0\x80\x83\x03\x0d\x40\x94aaaaaaaaaaaaaaaaaaaa\x80\x80\x94bbbbbbbbbbbbbbbbbbbb";
                    push_transaction(c, raw);
                })
            },
        },
        Poison {
            what: "time going back",
            is: |f| matches!(f, ContentFault::Time { .. }),
            spec: || contents(|c| c[3].context.timestamp = c[2].context.timestamp - 1),
        },
        Poison {
            what: "time before the parent's",
            is: |f| matches!(f, ContentFault::Time { .. }),
            spec: || contents(|c| c[0].context.timestamp -= 3),
        },
    ])
    .await;
}

#[tokio::test]
async fn f6_f9_payloads_that_are_not_whole_are_refused() {
    all_refused(&[
        Poison {
            what: "a byte behind",
            is: |f| matches!(f, ContentFault::Trailing(_)),
            spec: || bytes_of(|p| p.push(7)),
        },
        Poison {
            what: "zeros behind",
            is: |f| matches!(f, ContentFault::Trailing(_)),
            spec: || bytes_of(|p| p.extend([0; 3])),
        },
        Poison {
            what: "a transaction behind",
            is: |f| matches!(f, ContentFault::Trailing(_)),
            spec: || {
                contents(|c| {
                    let raw = c[4].transactions[0].clone();
                    c[5].transactions.push(raw);
                })
            },
        },
        Poison {
            what: "a byte short",
            is: |f| matches!(f, ContentFault::Malformed(_) | ContentFault::SmuggledMessage(_)),
            spec: || bytes_of(|p| p.truncate(p.len() - 1)),
        },
        Poison {
            what: "an unknown transaction type",
            is: |f| matches!(f, ContentFault::Malformed(_) | ContentFault::SmuggledMessage(_)),
            spec: || contents(|c| push_transaction(c, b"\x05\xc3\x01\x02\x03")),
        },
        Poison {
            what: "a length beyond the end",
            is: |f| matches!(f, ContentFault::Malformed(_) | ContentFault::SmuggledMessage(_)),
            spec: || contents(|c| push_transaction(c, b"\x02\xfb\xff\xff\xff\xff")),
        },
        Poison {
            what: "a length of a length beyond 64 bits",
            is: |f| matches!(f, ContentFault::Malformed(_) | ContentFault::SmuggledMessage(_)),
            spec: || contents(|c| push_transaction(c, b"\x02\xff\xff\xff\xff\xff\xff\xff\xff\xff")),
        },
    ])
    .await;
}

/// Spoils the high byte of field element 4000 of the first blob.
fn high_byte(blobs: &mut [Blob]) {
    let mut bytes = blobs[0].as_bytes().to_vec();
    bytes[4000 * 32] = 1;
    blobs[0] = Blob::new(bytes).unwrap();
}

#[tokio::test]
async fn f1_f3_blobs_and_frames_that_are_none_are_refused() {
    all_refused(&[
        Poison {
            what: "a high byte that is not zero",
            is: |f| matches!(f, ContentFault::Malformed(what) if what.contains("4000")),
            spec: || BatchSpec { edit_blobs: Some(Box::new(|b| high_byte(b))), ..BatchSpec::default() },
        },
        Poison {
            what: "a frame that declares a gigabyte",
            is: |f| matches!(f, ContentFault::Malformed(_) | ContentFault::SmuggledMessage(_)),
            spec: || {
                frame_of(|f| {
                    let size = 1_000_000_000_u32.to_le_bytes();
                    *f = [&[0xa0], size.as_slice(), f.as_slice()].concat();
                })
            },
        },
        Poison {
            what: "noise",
            is: |f| matches!(f, ContentFault::Malformed(_) | ContentFault::SmuggledMessage(_)),
            spec: || frame_of(|f| f.iter_mut().for_each(|b| *b ^= 0x5a)),
        },
        Poison {
            what: "a cut frame",
            is: |f| matches!(f, ContentFault::Malformed(_) | ContentFault::SmuggledMessage(_)),
            spec: || frame_of(|f| f.truncate(f.len() / 2)),
        },
        Poison {
            what: "no blob at all",
            is: |f| matches!(f, ContentFault::Malformed(what) if what.contains("no blob")),
            spec: || BatchSpec { no_blobs: true, ..BatchSpec::default() },
        },
    ])
    .await;
}

#[tokio::test]
async fn f4_f8_older_forms_whose_contexts_do_not_fit_are_refused() {
    all_refused(&[
        Poison {
            what: "a number left out",
            is: |f| matches!(f, ContentFault::NotContiguous { expected, actual } if (expected.get(), actual.get()) == (11, 12)),
            spec: || legacy(|c| c[2].number = 12.into()),
        },
        Poison {
            what: "begins above parent + 1",
            is: |f| matches!(f, ContentFault::First { expected, .. } if expected.get() == 9),
            spec: || legacy(|c| c.iter_mut().for_each(|c| c.number = c.number.plus(1))),
        },
        Poison { what: "a transaction more", is: |f| matches!(f, ContentFault::Malformed(_) | ContentFault::SmuggledMessage(_)), spec: || legacy(|c| c[5].txs += 1) },
        Poison { what: "a transaction less", is: |f| matches!(f, ContentFault::Trailing(_)), spec: || legacy(|c| c[5].txs -= 1) },
        Poison { what: "ends below the first", is: |f| matches!(f, ContentFault::Last { .. } | ContentFault::Extent { .. }), spec: || legacy(|c| c[5].number = 3.into()) },
    ])
    .await;
}

#[tokio::test]
async fn f2_short_calldata_halts_and_through_another_contract_is_traced() {
    let spec = |input: &'static [u8]| BatchSpec { shown_input: Some(input.to_vec()), ..BatchSpec::default() };
    for input in [&b""[..], b"\x01", b"\x01\x02\x03"] {
        let devnet = devnet(|w| {
            w.produce(4).unwrap();
            w.build(4).unwrap();
            w.commit(spec(input)).unwrap();
            w.mine(1);
            w.sync();
        })
        .await;
        let mut rig = Rig::on(&devnet).await;
        let report = rig.settle().await;
        assert_eq!(reason(&report), Some(Reason::UnknownCommit), "{input:?}");
        assert_eq!(rig.safe(), Some(4));
    }
    for outer in [&b""[..], b"\x01\x02\x03"] {
        let devnet = devnet(|w| {
            w.build(4).unwrap();
            let forward = Some(Forward { outer_input: Some(outer.to_vec()) });
            w.commit(BatchSpec { forward, ..BatchSpec::default() }).unwrap();
            w.mine(1);
            w.sync();
        })
        .await;
        let mut rig = Rig::on(&devnet).await;
        assert_eq!(cases(&rig.settle().await), [(1, Case::Consistent)], "{outer:?}");
    }
}

#[tokio::test]
async fn f7_with_a_wrong_encoder_missing_and_forked_batches_are_still_repaired() {
    let devnet = devnet(|w| {
        for _ in 0..3 {
            w.build_planned(&BlockPlan { txs: 12, noise: 200, withdrawals: 1, messages: 0 }).unwrap();
            w.build(5).unwrap();
            w.commit(BatchSpec { compression: Compression::Level(19), ..BatchSpec::default() }).unwrap();
            w.mine(1);
        }
        w.sync_to(14);
        w.fork_at(8, ForkShape::GasLimit).unwrap();
    })
    .await;
    let mut rig = Rig::on(&devnet).await;
    let report = rig.settle_stopped().await;
    assert_eq!(cases(&report), [(1, Case::Consistent), (2, Case::SelfHeal), (3, Case::FillGap)]);
    assert_eq!(report.batches.iter().filter(|b| b.encoder_drift).count(), 1);
    assert_eq!(devnet.heads().local, devnet.heads().sequencer);
}

#[tokio::test]
async fn f8_every_form_and_version_is_verified_healed_and_filled_in() {
    // Old to new, each on the one before: version 0 without and with a skip bitmap, the step to 1, today's.
    let forms = [
        (CommitForm::LegacySkipBitmap, 0),
        (CommitForm::LegacyContexts, 0),
        (CommitForm::LegacyContexts, 1),
        (CommitForm::CommitBatch, 0),
        (CommitForm::CommitBatch, 1),
        (CommitForm::CommitBatchWithProof, 2),
    ];
    type Damage = fn(&mut World);
    let damages: [(Damage, Option<Case>); 3] = [
        (World::sync, Some(Case::Consistent)),
        (|_| {}, Some(Case::FillGap)),
        (
            |w| {
                w.sync();
                w.fork_at(1, ForkShape::ExtraTransaction).unwrap();
            },
            None,
        ),
    ];
    for (damage, expected) in damages {
        let devnet = devnet(|w| {
            for (form, version) in forms {
                w.enqueue(2).unwrap();
                w.mine(1);
                for messages in [1, 0, 1] {
                    w.build_planned(&BlockPlan { txs: 2, noise: 30, withdrawals: 1, messages }).unwrap();
                }
                w.commit(BatchSpec { form: Some(form), version: Some(version), ..BatchSpec::default() }).unwrap();
                w.mine(1);
            }
            damage(w);
        })
        .await;
        let mut rig = Rig::on(&devnet).await;
        let report = rig.settle_stopped().await;
        assert_eq!(report.end, PollEnd::CaughtUp);
        match expected {
            Some(case) => assert_eq!(cases(&report), (1..=6).map(|n| (n, case)).collect::<Vec<_>>()),
            None => assert_eq!(cases(&report)[0], (1, Case::SelfHeal)),
        }
        assert_eq!(rig.safe(), Some(18));
        assert_eq!(devnet.heads().local, devnet.heads().sequencer);
        assert!(devnet.unpaused_writes().is_empty());
    }
}

#[tokio::test]
async fn f10_payloads_that_stock_zstd_encodes_otherwise_need_no_blob() {
    let folder = vectors();
    for name in ["16", "17", "18"] {
        let read = |kind: &str| std::fs::read(folder.join(format!("encoder/{name}.{kind}"))).unwrap();
        let payload = read("payload");
        let count = payload::count_contexts(&payload) as u64;
        let contents = payload::decode(payload.into(), payload::Layout::Contexts(count)).unwrap().blocks;
        let options = WorldOptions {
            anchor: Some(contents[0].context.number.get() - 1),
            start_time: contents[0].context.timestamp,
            ..WorldOptions::default()
        };
        let mut world = World::new(&options).unwrap();
        let batch = world.produce_from(&contents, Some(blob::pack(&read("frame")).unwrap())).unwrap();
        world.sync();
        let devnet = Devnet::serve(world, DevnetOptions::default()).await.unwrap();
        devnet.fault(Server::Beacon(0), Rule::always(Fault::Status(404, String::new())));
        let mut rig = Rig::with(&devnet, |s| s.start = 2.into()).await;
        let report = rig.settle().await;
        assert_eq!(cases(&report), [(1, Case::Consistent)], "{name}");
        assert!(!report.batches[0].encoder_drift, "{name}");
        assert_eq!(rig.safe(), Some(batch.last), "{name}");
        assert_eq!(devnet.http_requests(Server::Beacon(0)), 0, "{name}");
    }
}

#[tokio::test]
async fn e18_a_local_chain_that_equals_a_poison_blob_is_still_poison() {
    for mode in [Mode::Local, Mode::Blob] {
        let devnet = devnet(|w| {
            w.produce(8).unwrap();
            let tip = w.sequencer.node.head().header;
            let block = |n: u64, seconds: u64| BlockContent {
                context: BlockContext {
                    number: tip.number.plus(n),
                    timestamp: tip.timestamp + seconds,
                    base_fee: tip.base_fee,
                    gas_limit: tip.gas_limit,
                    txs: 0,
                    l1_messages: 0,
                },
                transactions: Vec::new(),
            };
            w.produce_from(&[block(1, 2), block(2, 1), block(3, 6)], None).unwrap();
            w.sync();
        })
        .await;
        let mut rig = rig_over_beacons(&devnet, 1, mode).await;
        let report = rig.settle().await;
        let PollEnd::Stalled(stall) = &report.end else { panic!("{mode:?}: {:?}", report.end) };
        assert_eq!((stall.reason(), stall.batch), (Reason::PoisonBatch, Some(2.into())), "{mode:?}: {stall}");
        let Cause::Content(ContentFault::Time { number, .. }) = &stall.cause else { panic!("{mode:?}: {stall:?}") };
        assert_eq!(number.get(), 10, "{mode:?}: {stall}");
        assert_eq!(rig.safe(), Some(8), "{mode:?}");
    }
}

#[tokio::test]
async fn f3_local_blocks_are_not_read_further_than_content_can_reach() {
    let devnet = guarded_devnet().await;
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
async fn f3_the_read_limit_does_not_change_the_verdict_on_equal_blocks() {
    let devnet = guarded_devnet().await;
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
