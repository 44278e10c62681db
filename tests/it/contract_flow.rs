//! What the Rollup contract does, on whole flows over HTTP: reverts, recommits, poison, wrapped commits (group C).

use std::time::Duration;

use morph_deriver::codec::calldata::{CalldataError, CommitForm, encode_commit};
use morph_deriver::decide::binding::{BindingFault, CommitFault};
use morph_deriver::decide::content::ContentFault;
use morph_deriver::decide::stall::{Cause, Reason};
use morph_deriver::devnet::chain::BatchSpec;
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::devnet::jsonrpc::RpcError;
use morph_deriver::devnet::l1::Forward;
use morph_deriver::devnet::world::WorldOptions;
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::flow::{PollEnd, PollReport};
use morph_deriver::types::{B256, Blob, Case, L2Number, Outcome};

use super::CLIENT;
use crate::support::rig::{Rig, cases, guarded, options, reason, world_options};
use crate::support::standing;

/// A devnet whose local node is in step, with batches of 8 blocks, one a L1 block. Nothing on L1 is final.
async fn devnet(batches: u64) -> Devnet {
    let world = WorldOptions { finalized_depth: 1000, ..world_options(CLIENT) };
    let devnet = Devnet::start(DevnetOptions { world, ..options(CLIENT) }).await.unwrap();
    devnet.with(|w| {
        for _ in 0..batches {
            w.produce(8).unwrap();
        }
        w.mine(1);
        w.sync();
    });
    devnet
}

/// Builds 8 blocks, commits them as `spec` says, mines, and brings the local node up.
fn commit(devnet: &Devnet, spec: BatchSpec) {
    devnet.with(|w| {
        w.build(8).unwrap();
        w.commit(spec).unwrap();
        w.mine(1);
        w.sync();
    });
}

fn recommit_state(
    devnet: &Devnet,
    edit: Option<morph_deriver::devnet::chain::Edit<morph_deriver::codec::calldata::CommitCalldata>>,
) {
    devnet.with(|w| {
        let index = w.batches.last().map_or(1, |b| b.index + 1);
        let last = w.reverted.iter().rev().find(|b| b.index == index).map(|b| b.last);
        let form = Some(CommitForm::CommitState);
        w.commit(BatchSpec { last, form, edit_commit: edit, ..BatchSpec::default() }).unwrap();
        w.mine(1);
    });
}

fn revert(devnet: &Devnet, from: u64) {
    devnet.with(|w| {
        w.revert(from).unwrap();
        w.mine(1);
    });
}

/// Everything that a reader of the node saw was in order (P2).
fn assert_ordered(devnet: &Devnet) {
    assert!(devnet.moments().iter().all(|m| m.is_ordered()));
}

fn cause(report: &PollReport) -> &Cause {
    match &report.end {
        PollEnd::Stalled(stall) => &stall.cause,
        other => panic!("it does not stall: {other:?}"),
    }
}

async fn standing_indices(rig: &Rig) -> Vec<(u64, Outcome)> {
    let rows = standing(rig.ports.progress.as_ref()).await;
    rows.iter().map(|r| (r.index.get(), r.outcome)).collect()
}

fn node_safe(devnet: &Devnet) -> Option<u64> {
    devnet.heads().safe.map(|s| s.number.get())
}

#[tokio::test]
async fn c1_a_reverted_batch_takes_safe_back_in_one_poll() {
    let devnet = devnet(3).await;
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    assert_eq!((rig.safe(), node_safe(&devnet)), (Some(24), Some(24)));
    revert(&devnet, 3);
    let report = rig.poll().await.unwrap();
    assert_eq!(report.end, PollEnd::CaughtUp);
    assert_eq!((rig.safe(), node_safe(&devnet)), (Some(16), Some(16)));
    assert_eq!(rig.worker.status().borrow().reverted, 1);
    assert_eq!(standing_indices(&rig).await.last(), Some(&(2, Outcome::Verified)));
    assert!(devnet.written().is_empty(), "nothing is written for a revert");
    assert_ordered(&devnet);
}

#[tokio::test]
async fn c1_the_nodes_tag_goes_back_even_when_the_next_batch_of_the_poll_cannot_be_judged() {
    let devnet = devnet(3).await;
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    revert(&devnet, 3);
    devnet.with(|w| {
        w.sequencer.node.truncate(16);
        w.build(8).unwrap();
        w.commit(BatchSpec::default()).unwrap();
        w.mine(1);
    });
    devnet.beacon_knobs(0, |k| k.pruned_below = Some(u64::MAX));
    assert!(rig.poll().await.is_err());
    assert_eq!((rig.safe(), node_safe(&devnet)), (Some(16), Some(16)));
}

#[tokio::test]
async fn c1_a_revert_of_several_indices_takes_all_of_them() {
    let devnet = devnet(5).await;
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    assert_eq!(rig.safe(), Some(40));
    revert(&devnet, 3);
    rig.poll().await.unwrap();
    assert_eq!((rig.safe(), node_safe(&devnet)), (Some(16), Some(16)));
    assert_eq!(rig.worker.status().borrow().reverted, 3);
    for _ in 0..3 {
        recommit_state(&devnet, None);
    }
    let report = rig.settle().await;
    assert_eq!(cases(&report), [(3, Case::Consistent), (4, Case::Consistent), (5, Case::Consistent)]);
    assert_eq!((rig.safe(), node_safe(&devnet)), (Some(40), Some(40)));
    assert_ordered(&devnet);
}

#[tokio::test]
async fn c1_m3_a_revert_of_a_proved_batch_is_l1s_contradiction_and_moves_nothing() {
    let devnet = devnet(3).await;
    devnet.l1_knobs(0, |k| k.finalized = Some(1000));
    let mut rig = Rig::on(&devnet).await;
    devnet.l1_knobs(0, |k| k.finalized = Some(u64::MAX));
    let head = devnet.with(|w| w.l1.head());
    devnet.l1_knobs(0, |k| k.finalized = Some(head));
    rig.settle().await;
    assert_eq!((rig.safe(), rig.finalized()), (Some(24), Some(24)));
    devnet.with(|w| {
        w.finalize(3).unwrap();
        w.mine(1);
    });
    revert(&devnet, 3);
    for _ in 0..2 {
        let report = rig.poll().await.unwrap();
        assert_eq!(reason(&report), Some(Reason::RevertBelowFinalized));
        assert_eq!((rig.safe(), rig.finalized()), (Some(24), Some(24)));
    }
    let heads = devnet.heads();
    assert_eq!((heads.safe.unwrap().number.get(), heads.finalized.unwrap().number.get()), (24, 24));
}

#[tokio::test]
async fn c1_a_revert_of_a_batch_that_was_never_seen_is_passed() {
    let devnet = devnet(3).await;
    // From the L1 block after batch 2's commit on: neither 1 nor 2 is known.
    let start = devnet.with(|w| w.l1.find_tx(w.batches[1].tx).unwrap().0.header.number + 1);
    let mut rig = Rig::with(&devnet, |s| s.start = start.into()).await;
    rig.settle().await;
    assert_eq!(rig.safe(), Some(24));
    revert(&devnet, 2);
    let report = rig.poll().await.unwrap();
    assert_eq!(report.end, PollEnd::CaughtUp);
    assert_eq!(rig.safe(), None, "no standing batch was verified");
    for _ in 0..2 {
        recommit_state(&devnet, None);
    }
    let report = rig.settle().await;
    assert_eq!(cases(&report), [(2, Case::Consistent), (3, Case::Consistent)]);
    assert_eq!((rig.safe(), node_safe(&devnet)), (Some(24), Some(24)));
}

#[tokio::test]
async fn two_commits_in_one_l1_block_and_a_revert_with_its_recommit_in_one() {
    let devnet = devnet(1).await;
    devnet.with(|w| {
        for _ in 0..2 {
            w.build(8).unwrap();
            w.commit(BatchSpec::default()).unwrap();
        }
        w.mine(1);
        w.sync();
    });
    // One poll each: between the two, the cursor is inside the block.
    let mut rig = Rig::with(&devnet, |s| s.to_batch = Some(2.into())).await;
    assert_eq!(rig.settle().await.end, PollEnd::Reached);
    assert_eq!(rig.safe(), Some(16));
    rig.settings.to_batch = None;
    rig.restart().await;
    assert_eq!(cases(&rig.settle().await), [(3, Case::Consistent)]);
    assert_eq!(rig.safe(), Some(24));
    devnet.with(|w| {
        w.revert(2).unwrap();
        w.recommit_state().unwrap();
        w.recommit_state().unwrap();
        w.mine(1);
    });
    assert_eq!(cases(&rig.settle().await), [(2, Case::Consistent), (3, Case::Consistent)]);
    assert_eq!((rig.safe(), node_safe(&devnet)), (Some(24), Some(24)));
    assert_eq!(rig.worker.status().borrow().reverted, 2);
    assert_ordered(&devnet);
}

/// The issue's own sentence: committed with a wrong root, reverted, recommitted by `commitState` with the right ones.
#[tokio::test]
async fn c2_a_recommit_by_commit_state_with_other_roots_is_verified_under_the_new_ones() {
    for seen_before in [true, false] {
        let devnet = devnet(1).await;
        let wrong = B256::repeat_byte(0x77);
        let edit = Box::new(move |c: &mut morph_deriver::codec::calldata::CommitCalldata| c.post_state_root = wrong);
        commit(&devnet, BatchSpec { edit_commit: Some(edit), ..BatchSpec::default() });
        let mut rig = Rig::on(&devnet).await;
        if seen_before {
            let report = rig.settle().await;
            assert_eq!(reason(&report), Some(Reason::StateRoot));
            assert_eq!((rig.safe(), node_safe(&devnet)), (Some(8), Some(8)));
        }
        revert(&devnet, 2);
        recommit_state(&devnet, None);
        commit(&devnet, BatchSpec::default());
        let report = rig.settle().await;
        assert_eq!(report.end, PollEnd::CaughtUp);
        let expected = [(1, Case::Consistent), (2, Case::Consistent), (3, Case::Consistent)];
        assert_eq!(cases(&report), expected[usize::from(seen_before)..]);
        let row = rig.ports.progress.batch(2.into()).await.unwrap().unwrap();
        let (root, hash) = devnet.with(|w| (w.batches[1].header.post_state_root, w.batches[1].hash));
        assert_eq!((row.post_state_root, row.hash), (root, hash));
        assert_ne!(row.post_state_root, wrong);
        let indices: Vec<u64> = standing_indices(&rig).await.into_iter().map(|(i, _)| i).collect();
        assert_eq!(indices, [0, 1, 2, 3]);
        assert_eq!(rig.safe(), Some(24));
    }
}

#[tokio::test]
async fn c3_a_blobless_proof_commit_takes_the_blobs_of_the_commit_before() {
    let devnet = devnet(2).await;
    revert(&devnet, 2);
    devnet.with(|w| {
        let form = Some(CommitForm::CommitBatchWithProof);
        w.commit(BatchSpec { last: Some(16), form, no_blobs: true, ..BatchSpec::default() }).unwrap();
        w.mine(1);
        // The blobs are needed: the blocks are missing.
        w.truncate_to(8);
    });
    let mut rig = Rig::on(&devnet).await;
    let report = rig.settle_stopped().await;
    assert_eq!(cases(&report), [(1, Case::Consistent), (2, Case::FillGap)]);
    assert_eq!((rig.safe(), rig.head().await.get()), (Some(16), 16));
}

#[tokio::test]
async fn c4_a_history_with_a_reverted_batch_is_passed_whatever_the_width_of_a_range() {
    for fetch_range in [1, 3, 500] {
        let devnet = devnet(1).await;
        let wrong = Box::new(|c: &mut morph_deriver::codec::calldata::CommitCalldata| {
            c.post_state_root = B256::repeat_byte(0x77);
        });
        commit(&devnet, BatchSpec { edit_commit: Some(wrong), ..BatchSpec::default() });
        devnet.with(|w| {
            w.mine(10);
        });
        revert(&devnet, 2);
        devnet.with(|w| {
            w.mine(5);
        });
        recommit_state(&devnet, None);
        let mut rig = Rig::with(&devnet, |s| s.fetch_range = fetch_range).await;
        let report = rig.settle().await;
        assert_eq!(report.end, PollEnd::CaughtUp);
        assert_eq!(cases(&report), [(1, Case::Consistent), (2, Case::Consistent)]);
        assert_eq!(rig.safe(), Some(16));
        assert!(devnet.written().is_empty());
    }
}

/// Batches that no reader can decode, with what the verdict must say.
fn poisons() -> Vec<(&'static str, BatchSpec)> {
    let spec = BatchSpec::default;
    vec![
        (
            "frame",
            BatchSpec { edit_frame: Some(Box::new(|f| f.iter_mut().skip(8).for_each(|b| *b ^= 0x5a))), ..spec() },
        ),
        ("payload", BatchSpec { edit_payload: Some(Box::new(|p| p.truncate(p.len() / 2))), ..spec() }),
        (
            "contiguous",
            BatchSpec { edit_contents: Some(Box::new(|c| c[3].context.number = L2Number::new(7_000))), ..spec() },
        ),
        ("lastBlockNumber", BatchSpec { edit_commit: Some(Box::new(|c| c.last_block = Some(3.into()))), ..spec() }),
        (
            "lastBlockNumber",
            BatchSpec { edit_commit: Some(Box::new(|c| c.last_block = Some(u64::MAX.into()))), ..spec() },
        ),
        ("no blob", BatchSpec { version: Some(1), no_blobs: true, ..spec() }),
        (
            "field element",
            BatchSpec {
                edit_blobs: Some(Box::new(|blobs| {
                    let mut bytes = blobs[0].as_bytes().to_vec();
                    bytes[32] = 1;
                    blobs[0] = Blob::new(bytes).unwrap();
                })),
                ..spec()
            },
        ),
    ]
}

#[tokio::test]
async fn c5_a_poison_batch_halts_and_its_revert_and_recommit_go_on_without_a_restart() {
    for (what, spec) in poisons() {
        let devnet = devnet(1).await;
        commit(&devnet, spec);
        let mut rig = Rig::on(&devnet).await;
        let report = rig.settle().await;
        assert_eq!(reason(&report), Some(Reason::PoisonBatch), "{what}: {:?}", report.end);
        assert_eq!((rig.safe(), node_safe(&devnet)), (Some(8), Some(8)), "{what}");
        // Halted, it looks for the revert and leaves the beacon node alone.
        devnet.clear_counts();
        for _ in 0..5 {
            let again = rig.poll().await.unwrap();
            assert_eq!(again.end, report.end, "{what}");
            devnet.with(|w| {
                w.build(1).unwrap();
                w.sync();
            });
        }
        assert_eq!(devnet.http_requests(Server::Beacon(0)), 0, "{what}");
        assert!(devnet.written().is_empty());
        revert(&devnet, 2);
        devnet.with(|w| {
            w.commit(BatchSpec { last: Some(16), ..BatchSpec::default() }).unwrap();
            w.mine(1);
        });
        let report = rig.settle().await;
        assert_eq!(report.end, PollEnd::CaughtUp, "{what}");
        assert_eq!(cases(&report), [(2, Case::Consistent)], "{what}");
        assert_eq!((rig.safe(), node_safe(&devnet)), (Some(16), Some(16)), "{what}");
    }
}

#[tokio::test]
async fn c5_a_poison_batch_is_looked_at_again_now_and_then() {
    let devnet = devnet(1).await;
    commit(&devnet, poisons().remove(0).1);
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    devnet.clear_counts();
    rig.now += morph_deriver::decide::recheck::KEEP_FOR;
    assert_eq!(reason(&rig.poll().await.unwrap()), Some(Reason::PoisonBatch));
    assert!(devnet.http_requests(Server::Beacon(0)) > 0);
}

#[tokio::test]
async fn c5_a_revert_far_above_the_range_is_noticed_in_one_poll() {
    let devnet = devnet(1).await;
    commit(&devnet, poisons().remove(0).1);
    let mut rig = Rig::with(&devnet, |s| s.fetch_range = 5).await;
    assert_eq!(reason(&rig.settle().await), Some(Reason::PoisonBatch));
    devnet.with(|w| {
        w.mine(100);
    });
    assert_eq!(reason(&rig.poll().await.unwrap()), Some(Reason::PoisonBatch));
    revert(&devnet, 2);
    assert_eq!(rig.poll().await.unwrap().end, PollEnd::Behind, "the reverted batch is passed in one poll");
    devnet.with(|w| {
        w.commit(BatchSpec { last: Some(16), ..BatchSpec::default() }).unwrap();
        w.mine(1);
    });
    assert_eq!(cases(&rig.settle().await), [(2, Case::Consistent)]);
    assert_eq!(rig.safe(), Some(16));
}

#[tokio::test]
async fn c5_a_revert_that_is_not_confirmed_yet_is_waited_for() {
    let devnet = devnet(1).await;
    commit(&devnet, poisons().remove(0).1);
    devnet.with(|w| {
        w.mine(4);
    });
    let mut rig = Rig::with(&devnet, |s| s.confirmations = morph_deriver::flow::Confirmations::Depth(4)).await;
    assert_eq!(reason(&rig.settle().await), Some(Reason::PoisonBatch));
    revert(&devnet, 2);
    assert_eq!(reason(&rig.poll().await.unwrap()), Some(Reason::RevertPending));
    assert_eq!(rig.safe(), Some(8));
    devnet.with(|w| {
        w.mine(4);
    });
    assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
}

#[tokio::test]
async fn observe_mode_does_not_fetch_the_same_divergence_again() {
    use morph_deriver::devnet::world::ForkShape;
    let devnet = devnet(2).await;
    devnet.with(|w| w.fork_at(12, ForkShape::OtherTransaction).unwrap());
    let mut ports = crate::support::rig::devnet_ports(&devnet).await;
    ports.engine = None;
    let mut settings = crate::support::rig::settings();
    settings.rollup = devnet.rollup();
    let mut rig = Rig::start(ports, settings).await;
    let report = rig.settle().await;
    assert_eq!(reason(&report), Some(Reason::WouldSelfHeal));
    let pending = rig.worker.pending_write();
    assert!(pending.is_some());
    devnet.clear_counts();
    for _ in 0..3 {
        assert_eq!(rig.poll().await.unwrap().end, report.end);
        assert_eq!(rig.worker.pending_write(), pending);
    }
    assert_eq!(devnet.http_requests(Server::Beacon(0)), 0);
    // Another writer repairs the local chain: noticed at once.
    devnet.with(|w| w.sync());
    assert_eq!(cases(&rig.settle().await), [(2, Case::Consistent)]);
}

#[tokio::test]
async fn c7_a_commit_through_another_contract_is_verified_or_halts() {
    let devnet = devnet(1).await;
    commit(&devnet, BatchSpec { forward: Some(Forward { outer_input: None }), ..BatchSpec::default() });
    let tx = devnet.with(|w| w.batches[1].tx);
    devnet.l1_knobs(0, |k| k.no_trace = true);
    let mut rig = Rig::on(&devnet).await;
    let report = rig.settle().await;
    assert_eq!(reason(&report), Some(Reason::UnknownCommit));
    let fault = Box::new(CommitFault::NotInTrace);
    assert_eq!(*cause(&report), Cause::Commit { transaction: tx, fault });
    assert_eq!(rig.safe(), Some(8));
    devnet.l1_knobs(0, |k| k.no_trace = false);
    assert_eq!(cases(&rig.settle().await), [(2, Case::Consistent)]);
    assert_eq!(rig.safe(), Some(16));
}

#[tokio::test]
async fn c7_a_contract_that_forwards_its_own_calldata_is_seen_through() {
    let devnet = devnet(1).await;
    devnet.with(|w| {
        w.build(8).unwrap();
        let mut probe = w.clone();
        let calldata = probe.commit(BatchSpec::default()).unwrap().calldata;
        let forward = Forward { outer_input: Some(encode_commit(&calldata)) };
        w.commit(BatchSpec { forward: Some(forward), ..BatchSpec::default() }).unwrap();
        w.mine(1);
        w.sync();
    });
    let mut rig = Rig::on(&devnet).await;
    assert_eq!(cases(&rig.settle().await), [(1, Case::Consistent), (2, Case::Consistent)]);
}

#[tokio::test]
async fn c8_decoy_calldata_is_never_taken_for_the_commit() {
    for trace in [true, false] {
        let devnet = devnet(1).await;
        devnet.with(|w| {
            w.build(8).unwrap();
            let mut probe = w.clone();
            let mut decoy = probe.commit(BatchSpec::default()).unwrap().calldata;
            decoy.post_state_root = B256::repeat_byte(0xdc);
            let forward = Forward { outer_input: Some(encode_commit(&decoy)) };
            w.commit(BatchSpec { forward: Some(forward), ..BatchSpec::default() }).unwrap();
            w.mine(1);
            w.sync();
        });
        devnet.l1_knobs(0, |k| k.no_trace = !trace);
        let mut rig = Rig::on(&devnet).await;
        let report = rig.settle().await;
        if trace {
            assert_eq!(cases(&report), [(1, Case::Consistent), (2, Case::Consistent)]);
            let row = rig.ports.progress.batch(2.into()).await.unwrap().unwrap();
            assert_ne!(row.post_state_root, B256::repeat_byte(0xdc));
        } else {
            assert_eq!(reason(&report), Some(Reason::UnknownCommit));
            assert_eq!(rig.safe(), Some(8));
        }
    }
}

#[tokio::test]
async fn c10_the_genesis_import_has_a_row_of_its_own() {
    let devnet = devnet(1).await;
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    assert_eq!(standing_indices(&rig).await, [(0, Outcome::Genesis), (1, Outcome::Verified)]);
    let row = rig.ports.progress.batch(0.into()).await.unwrap().unwrap();
    assert_eq!(row.last.map(|l| l.hash), Some(devnet.l2_genesis()));
}

#[tokio::test]
async fn c11_an_unknown_version_and_an_unknown_selector_halt_by_name() {
    let devnet = devnet(1).await;
    commit(&devnet, BatchSpec::default());
    let batch = devnet.with(|w| w.batches[1].clone());
    let mut newer = batch.calldata.clone();
    newer.version = 3;
    let selector = [0xde, 0xad, 0xbe, 0xef];
    let unknown = CommitFault::Calldata(CalldataError::UnknownSelector(selector));
    let cases_of: [(Vec<u8>, Reason, CommitFault); 2] = [
        (encode_commit(&newer), Reason::UnsupportedVersion, CommitFault::Binding(BindingFault::Version(3))),
        ([selector.as_slice(), &[0; 64]].concat(), Reason::UnknownCommit, unknown),
    ];
    for (input, expected, fault) in cases_of {
        devnet.l1_knobs(0, |k| {
            k.no_trace = true;
            k.inputs.insert(batch.tx, input);
        });
        let mut rig = Rig::on(&devnet).await;
        let report = rig.settle().await;
        assert_eq!(reason(&report), Some(expected));
        assert_eq!(*cause(&report), Cause::Commit { transaction: batch.tx, fault: Box::new(fault) });
        assert_eq!(rig.safe(), Some(8));
        // An endpoint that lied is found out within a poll of its honesty.
        devnet.l1_knobs(0, |k| k.inputs.clear());
        rig.settle().await;
        assert_eq!(rig.safe(), Some(16));
    }
}

#[tokio::test]
async fn c12_hours_without_a_commit_are_no_fault_and_have_a_gauge() {
    let devnet = devnet(1).await;
    let committed_at = devnet.with(|w| w.l1.find_tx(w.batches[0].tx).unwrap().0.header.timestamp);
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    devnet.with(|w| {
        w.mine(900);
    });
    let report = rig.settle().await;
    assert_eq!(report.end, PollEnd::CaughtUp);
    let status = rig.worker.status().borrow().clone();
    assert_eq!((status.stall, status.last_commit_at), (None, Some(committed_at)));
}

#[tokio::test]
async fn c13_a_commit_state_that_does_not_fit_the_stored_blob_is_refused_by_field() {
    type Edit = fn(&mut morph_deriver::codec::calldata::CommitCalldata);
    type IsFault = fn(&ContentFault) -> bool;
    let last: IsFault = |fault| matches!(fault, ContentFault::Last { .. });
    let count: IsFault = |fault| matches!(fault, ContentFault::MessageCount { .. });
    let edits: [(&str, IsFault, Edit); 3] = [
        ("lastBlockNumber", last, |c| c.last_block = c.last_block.map(|l| l.plus(1))),
        ("lastBlockNumber", last, |c| c.last_block = c.last_block.map(|l| l.minus(1))),
        ("numL1Messages", count, |c| c.num_l1_messages = c.num_l1_messages.map(|n| n - 1)),
    ];
    for (field, is_fault, edit) in edits {
        let devnet = devnet(2).await;
        devnet.with(|w| {
            w.build(2).unwrap();
            w.sync();
        });
        let mut rig = Rig::on(&devnet).await;
        revert(&devnet, 2);
        recommit_state(&devnet, Some(Box::new(edit)));
        let report = rig.settle().await;
        assert_eq!(reason(&report), Some(Reason::PoisonBatch), "{field}");
        assert!(matches!(cause(&report), Cause::Content(fault) if is_fault(fault)), "{field}: {:?}", cause(&report));
        assert_eq!(rig.safe(), Some(8));
        assert!(devnet.written().is_empty());
    }
}

/// The content that L1 reverted is on the local chain; the recommit has another one.
#[tokio::test]
async fn a_recommit_with_other_content_rewrites_the_local_chain() {
    let devnet = devnet(3).await;
    let mut rig = Rig::on(&devnet).await;
    rig.settle().await;
    revert(&devnet, 2);
    devnet.with(|w| {
        w.sequencer.node.truncate(8);
        w.build(10).unwrap();
        w.commit(BatchSpec::default()).unwrap();
        w.mine(1);
    });
    let report = rig.settle().await;
    assert_eq!(cases(&report), [(2, Case::SelfHeal)]);
    assert_eq!((rig.safe(), node_safe(&devnet)), (Some(18), Some(18)));
    assert_eq!(devnet.heads().local, devnet.heads().sequencer);
    assert!(devnet.unpaused_writes().is_empty());
    assert_ordered(&devnet);
}

#[tokio::test]
async fn c10_a_genesis_block_that_is_not_given_is_asked_for_again() {
    let devnet = guarded(CLIENT).await;
    devnet.with(|w| {
        w.produce(8).unwrap();
        w.sync();
    });
    let mut rig = Rig::on(&devnet).await;
    // Head, safe and finalized come first, in the snapshot.
    let missing = Rule::on("eth_getBlockByNumber", Fault::Error(RpcError::server("header not found")));
    devnet.fault(Server::L2, missing.after(3).times(1));
    let error = rig.poll().await.unwrap_err();
    assert_eq!(error.stall().reason(), Reason::L2Unavailable, "{error}");
    let report = rig.settle().await;
    assert_eq!(report.end, PollEnd::CaughtUp);
    assert_eq!(cases(&report), [(1, Case::Consistent)]);
}

#[tokio::test]
async fn c2_a_long_search_through_l1_continues_in_the_next_poll() {
    let devnet = guarded(CLIENT).await;
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
        // Each range in its turn, so that the requests of a poll are its own.
        s.read_ahead = 0;
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
                assert_eq!(error.stall().reason(), Reason::SearchingL1, "{error}");
                assert_eq!(rig.worker.status().borrow().stall.as_ref().map(|s| s.reason()), Some(Reason::SearchingL1));
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
