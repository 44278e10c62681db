//! The recorded network through the whole flow: every batch bound to L1, none skipped, nothing tampered accepted.

use morph_deriver::codec::calldata::{CommitCalldata, decode_commit, encode_commit};
use morph_deriver::decide::binding::{BindingFault, CommitFault};
use morph_deriver::decide::stall::{Cause, Reason, Stall};
use morph_deriver::flow::Mode;
use morph_deriver::flow::{PollEnd, PollReport};
use morph_deriver::types::{Case, Outcome};
use serde_json::json;

use crate::support::recorded::{L1_END, RecordedNetwork, Recording};
use crate::support::recorded_l2::{Alter, RecordedL2};
use crate::support::rig::{Rig, cases, reason};
use crate::support::{bytes, hex_bytes};

fn consistent(batches: impl IntoIterator<Item = u64>) -> Vec<(u64, Case)> {
    batches.into_iter().map(|n| (n, Case::Consistent)).collect()
}

fn stall(report: &PollReport) -> Stall {
    match &report.end {
        PollEnd::Stalled(stall) => stall.clone(),
        other => panic!("it does not stall: {other:?}"),
    }
}

/// The recorded batches whose standing commit lies at or above L1 block `start`.
fn standing_from(recording: &Recording, start: u64) -> Vec<u64> {
    let commit = |tx: &_| recording.l1_block_of(tx).unwrap();
    recording.standing.iter().filter(|b| b.tx.as_ref().is_some_and(|tx| commit(tx) >= start)).map(|b| b.index).collect()
}

async fn holds_every_batch(rig: &Rig, recording: &Recording, from: u64) {
    for batch in recording.standing.iter().filter(|b| b.index >= from) {
        let row = rig.ports.progress.batch(batch.index.into()).await.unwrap().unwrap();
        assert_eq!(row.hash, batch.hash, "batch {}", batch.index);
        assert_eq!(row.outcome, Outcome::Verified, "batch {}", batch.index);
        assert_eq!(row.first.map(|n| n.get()), Some(batch.first), "batch {}", batch.index);
        let last = row.last.unwrap();
        assert_eq!(
            (last.number.get(), last.hash),
            (batch.last, recording.l2_hash(batch.last)),
            "batch {}",
            batch.index
        );
    }
}

#[tokio::test]
async fn c1_c2_c3_c7_c10_the_whole_network_is_verified() {
    let network = RecordedNetwork::start();
    let recording = network.recording();
    for width in [500, 1, 3] {
        let l2 = RecordedL2::start(126);
        let mut rig = Rig::recorded(&network, &l2, |s| s.fetch_range = width).await;
        let report = rig.settle().await;
        assert_eq!(report.end, PollEnd::CaughtUp, "width {width}");
        assert_eq!(cases(&report), consistent(1..=10), "width {width}");
        holds_every_batch(&rig, &recording, 1).await;
        let genesis = rig.ports.progress.batch(0.into()).await.unwrap().unwrap();
        assert_eq!(genesis.outcome, Outcome::Genesis);
        assert_eq!(l2.safe(), Some((122, recording.l2_hash(122))));
        assert_eq!(l2.finalized(), Some((122, recording.l2_hash(122))));
        assert!(l2.writes().is_empty());
        assert!(l2.disorder().is_empty(), "{:?}", l2.disorder());
    }
}

#[tokio::test]
async fn the_network_is_verified_from_every_l1_block_on() {
    let network = RecordedNetwork::start();
    let recording = network.recording();
    for start in 0..=L1_END {
        let l2 = RecordedL2::start(126);
        let mut rig = Rig::recorded(&network, &l2, |s| s.start = start.into()).await;
        let report = rig.settle().await;
        assert_eq!(report.end, PollEnd::CaughtUp, "from {start}");
        let expected = standing_from(&recording, start);
        assert_eq!(cases(&report), consistent(expected.iter().copied()), "from {start}");
        holds_every_batch(&rig, &recording, expected[0]).await;
        assert_eq!(l2.safe(), Some((122, recording.l2_hash(122))), "from {start}");
        assert!(l2.writes().is_empty(), "from {start}");
    }
}

#[tokio::test]
async fn missing_blocks_are_filled_in_from_a_start_in_the_middle() {
    let network = RecordedNetwork::start();
    let recording = network.recording();
    // The first batch read is 2 (its L1 messages lie below), 5, 7 (after a version 0 header), 10.
    for (start, batch) in [(16, 2), (19, 5), (27, 7), (31, 10)] {
        let first = recording.standing[batch].first;
        let l2 = RecordedL2::start(first - 1);
        let mut rig = Rig::recorded(&network, &l2, |s| {
            s.start = start.into();
            s.fetch_range = 4;
        })
        .await;
        let report = rig.settle_stopped().await;
        assert_eq!(report.end, PollEnd::CaughtUp, "from {start}");
        let expected: Vec<_> = standing_from(&recording, start).into_iter().map(|n| (n, Case::FillGap)).collect();
        assert_eq!(cases(&report), expected, "from {start}");
        for number in first..=122 {
            assert_eq!(l2.hash_at(number), Some(recording.l2_hash(number)), "block {number} from {start}");
        }
        assert_eq!(l2.safe(), Some((122, recording.l2_hash(122))), "from {start}");
    }
}

#[tokio::test]
async fn c1_a_poison_batch_that_is_reverted_and_committed_anew_unblocks_without_a_restart() {
    let network = RecordedNetwork::start();
    let l2 = RecordedL2::start(126);
    network.set_head(23);
    let mut rig = Rig::recorded(&network, &l2, |_| {}).await;
    assert_eq!(cases(&rig.settle().await), consistent(1..=6));
    let mut later = Vec::new();
    for head in 24..=L1_END {
        network.set_head(head);
        let report = rig.settle().await;
        let expected = (24..=25).contains(&head).then_some(Reason::StateRoot);
        assert_eq!(reason(&report), expected, "L1 at {head}");
        if head < 27 {
            assert_eq!(rig.safe(), Some(105), "L1 at {head}");
        }
        later.extend(cases(&report));
    }
    assert_eq!(later, consistent(7..=10));
    assert_eq!(rig.safe(), Some(122));
    assert!(l2.disorder().is_empty(), "{:?}", l2.disorder());
}

#[tokio::test]
async fn c7_without_call_traces_it_halts_at_the_forwarded_commit_and_names_it() {
    let network = RecordedNetwork::start();
    let recording = network.recording();
    network.set_traces(false);
    let l2 = RecordedL2::start(126);
    let mut rig = Rig::recorded(&network, &l2, |_| {}).await;
    let report = rig.settle().await;
    let stall = stall(&report);
    assert_eq!((stall.reason(), stall.batch), (Reason::UnknownCommit, Some(9.into())));
    assert!(stall.reason().is_halt());
    let fault = Box::new(CommitFault::NotInTrace);
    assert_eq!(stall.cause, Cause::Commit { transaction: recording.standing[9].tx.unwrap(), fault });
    assert_eq!(rig.safe(), Some(113));
    network.set_traces(true);
    assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
    assert_eq!(rig.safe(), Some(122));
}

type Tamper = fn(&mut CommitCalldata);

/// One byte changed in every field that the header binds, and the field that must be named; none where nothing but the hash
/// tells.
const TAMPERED: &[(&str, Tamper, Option<&str>)] = &[
    ("version", |c| c.version = 1, Some("version")),
    ("unknown version", |c| c.version = 3, Some("version 3")),
    ("parent version", |c| c.parent_header[0] ^= 1, Some("parentBatchHeader")),
    ("parent index", |c| c.parent_header[8] ^= 1, Some("parentBatchHeader")),
    ("parent popped", |c| c.parent_header[16] ^= 1, Some("parentBatchHeader")),
    ("parent total popped", |c| c.parent_header[24] ^= 1, Some("parentBatchHeader")),
    ("parent total popped, huge", |c| c.parent_header[17] ^= 0x80, Some("parentBatchHeader")),
    ("parent data hash", |c| c.parent_header[30] ^= 1, Some("parentBatchHeader")),
    ("parent blob field", |c| c.parent_header[60] ^= 1, Some("parentBatchHeader")),
    ("parent previous root", |c| c.parent_header[100] ^= 1, Some("parentBatchHeader")),
    ("parent post root", |c| c.parent_header[130] ^= 1, Some("parentBatchHeader")),
    ("parent withdrawal root", |c| c.parent_header[160] ^= 1, Some("parentBatchHeader")),
    ("parent sequencer sets", |c| c.parent_header[190] ^= 1, Some("parentBatchHeader")),
    ("grandparent hash", |c| c.parent_header[220] ^= 1, Some("parentBatchHeader")),
    ("parent last block", |c| c.parent_header[256] ^= 1, Some("parentBatchHeader")),
    ("parent cut", |c| c.parent_header.truncate(256), Some("parentBatchHeader")),
    ("last block", |c| c.last_block = c.last_block.map(|n| n.plus(1)), Some("lastBlockNumber")),
    ("fewer L1 messages", |c| c.num_l1_messages = Some(1), None),
    ("more L1 messages", |c| c.num_l1_messages = Some(3), None),
    ("previous state root", |c| c.prev_state_root.0[31] ^= 1, Some("prevStateRoot")),
    ("post state root", |c| c.post_state_root.0[31] ^= 1, Some("postStateRoot")),
    ("withdrawal root", |c| c.withdrawal_root.0[31] ^= 1, Some("withdrawalRoot")),
    ("sequencer sets", |c| c.sequencer_sets[0] ^= 1, None),
];

/// The field of calldata that the stall names.
fn field_at_fault(stall: &Stall) -> Option<&'static str> {
    let fault = match &stall.cause {
        Cause::Commit { fault, .. } => match fault.as_ref() {
            CommitFault::Binding(fault) => fault,
            other => panic!("{other:?}"),
        },
        Cause::Discontinued(fault) => fault,
        other => panic!("{other:?}"),
    };
    match fault {
        BindingFault::Hash { field, .. } => *field,
        BindingFault::Version(3) => Some("version 3"),
        BindingFault::Header(_) | BindingFault::Index { .. } | BindingFault::Parent { .. } => Some("parentBatchHeader"),
        other => panic!("{other:?}"),
    }
}

/// Batch 2's transaction: two L1 messages, one blob, version 2.
fn transaction_of(recording: &Recording, batch: usize) -> String {
    hex_bytes(recording.standing[batch].tx.unwrap())
}

/// Runs to batch 2 and expects a halt there, safe on batch 1.
async fn refused_at_2(network: &RecordedNetwork, what: &str) -> Stall {
    network.set_head(16);
    let l2 = RecordedL2::start(126);
    let mut rig = Rig::recorded(network, &l2, |_| {}).await;
    let report = rig.settle_stopped().await;
    let stall = stall(&report);
    assert_eq!(cases(&report), consistent([1]), "{what}");
    assert_eq!(stall.batch, Some(2.into()), "{what}: {stall}");
    assert!(stall.reason().is_halt(), "{what}: {stall}");
    assert_eq!(rig.safe(), Some(8), "{what}");
    assert!(l2.writes().is_empty(), "{what}");
    stall
}

#[tokio::test]
async fn a_byte_changed_in_any_field_of_calldata_is_refused() {
    for (what, tamper, named) in TAMPERED {
        let network = RecordedNetwork::start();
        network.edit(|recording| {
            let hash = transaction_of(recording, 2);
            let input = &mut recording.transactions[&hash]["input"];
            let mut commit = decode_commit(&bytes(input.as_str().unwrap())).unwrap();
            let honest = commit.clone();
            tamper(&mut commit);
            assert_ne!(commit, honest, "{what}");
            *input = json!(hex_bytes(encode_commit(&commit)));
        });
        let stall = refused_at_2(&network, what).await;
        let expected = if *what == "unknown version" { Reason::UnsupportedVersion } else { Reason::Unbound };
        assert_eq!(stall.reason(), expected, "{what}: {stall}");
        assert_eq!(field_at_fault(&stall), *named, "{what}: {stall}");
    }
}

#[tokio::test]
async fn calldata_that_is_no_commit_is_refused() {
    type Change = fn(&mut Vec<u8>);
    let changes: [(&str, Change); 3] = [
        ("selector", |input| input[0] ^= 1),
        ("three bytes", |input| input.truncate(3)),
        ("cut", |input| input.truncate(200)),
    ];
    for (what, change) in changes {
        let network = RecordedNetwork::start();
        network.edit(|recording| {
            let hash = transaction_of(recording, 2);
            let field = &mut recording.transactions[&hash]["input"];
            let mut input = bytes(field.as_str().unwrap());
            change(&mut input);
            *field = json!(hex_bytes(input));
        });
        let stall = refused_at_2(&network, what).await;
        assert_eq!(stall.reason(), Reason::UnknownCommit, "{what}: {stall}");
    }
}

#[tokio::test]
async fn blob_hashes_in_another_order_are_refused() {
    let network = RecordedNetwork::start();
    network.edit(|recording| {
        let hash = transaction_of(recording, 3);
        recording.transactions[&hash]["blobVersionedHashes"].as_array_mut().unwrap().reverse();
    });
    network.set_head(17);
    let l2 = RecordedL2::start(126);
    let mut rig = Rig::recorded(&network, &l2, |_| {}).await;
    let report = rig.settle().await;
    let stall = stall(&report);
    assert_eq!((stall.reason(), stall.batch), (Reason::Unbound, Some(3.into())), "{stall}");
    assert_eq!(field_at_fault(&stall), Some("blob hashes"), "{stall}");
    assert_eq!(rig.safe(), Some(18));
}

/// Another byte in the data of queue index 4, the first message that batch 2 consumes.
fn forge_message(recording: &mut Recording) {
    let log = recording.logs.iter_mut().find(|log| log["blockNumber"] == "0xd").unwrap();
    let mut data = bytes(log["data"].as_str().unwrap());
    let place = data.iter().rposition(|byte| *byte != 0).unwrap();
    data[place] ^= 1;
    log["data"] = json!(hex_bytes(data));
}

#[tokio::test]
async fn an_l1_message_that_is_not_the_contracts_is_refused() {
    let network = RecordedNetwork::start();
    network.edit(forge_message);
    let stall = refused_at_2(&network, "L1 message").await;
    assert_eq!(stall.reason(), Reason::Unbound, "{stall}");
    assert_eq!(field_at_fault(&stall), Some("L1 messages"), "{stall}");
}

#[tokio::test]
async fn an_l1_message_that_was_false_is_read_again() {
    let network = RecordedNetwork::start();
    let honest = network.recording().logs;
    network.edit(forge_message);
    let l2 = RecordedL2::start(126);
    let mut rig = Rig::recorded(&network, &l2, |s| s.fetch_range = 1).await;
    assert_eq!(reason(&rig.settle().await), Some(Reason::Unbound));
    assert_eq!(rig.safe(), Some(8));
    network.edit(|recording| recording.logs = honest);
    // One poll may still find the old bytes; it reads them again.
    rig.settle().await;
    assert_eq!(rig.settle().await.end, PollEnd::CaughtUp);
    assert_eq!(rig.safe(), Some(122));
}

#[tokio::test]
async fn c2_every_batch_is_checked_against_its_fetched_blob() {
    let network = RecordedNetwork::start();
    let l2 = RecordedL2::start(126);
    let mut rig = Rig::recorded(&network, &l2, |s| s.mode = Mode::Blob).await;
    let report = rig.settle().await;
    assert_eq!(report.end, PollEnd::CaughtUp);
    assert_eq!(cases(&report), consistent(1..=10));
    assert!(network.beacon.count("blobs/") >= 10);
    assert!(l2.writes().is_empty());
}

#[tokio::test]
async fn e2_e3_e21_local_forks_of_every_kind_are_healed_from_their_first_block_on() {
    let network = RecordedNetwork::start();
    let recording = network.recording();
    let message = recording.l2_blocks.iter().position(|b| b["transactions"][0]["type"] == "0x7e").unwrap() as u64;
    let busy = recording.l2_blocks.iter().position(|b| b["transactions"].as_array().unwrap().len() > 1).unwrap() as u64;
    // Batch 7 was committed by `commitState`: its content lies in the blobs of the reverted commit.
    let forks = [
        (107, Alter::Timestamp),
        (96, Alter::BaseFee),
        (20, Alter::Transaction(0)),
        (20, Alter::DropTransaction(0)),
        (busy, Alter::SwapTransactions),
        (message, Alter::ForgeL1Message(0)),
        (message, Alter::DropTransaction(0)),
    ];
    for (number, alter) in forks {
        let l2 = RecordedL2::start(126);
        l2.fork(number, &alter);
        let mut rig = Rig::recorded(&network, &l2, |_| {}).await;
        let report = rig.settle_stopped().await;
        assert_eq!(report.end, PollEnd::CaughtUp, "{alter:?} at {number}");
        let healed = recording.standing.iter().find(|b| (b.first..=b.last).contains(&number)).unwrap().index;
        let case = |n: u64| match n.cmp(&healed) {
            std::cmp::Ordering::Less => Case::Consistent,
            std::cmp::Ordering::Equal => Case::SelfHeal,
            std::cmp::Ordering::Greater => Case::FillGap,
        };
        assert_eq!(cases(&report), (1..=10).map(|n| (n, case(n))).collect::<Vec<_>>(), "{alter:?} at {number}");
        let written: Vec<_> = l2.writes().iter().map(|w| w.number).collect();
        assert_eq!(written, (number..=122).collect::<Vec<_>>(), "{alter:?} at {number}");
        assert_eq!(l2.hash_at(122), Some(recording.l2_hash(122)), "{alter:?} at {number}");
        assert!(l2.disorder().is_empty(), "{:?}", l2.disorder());
    }
}

#[tokio::test]
async fn e1_roots_that_are_not_calldatas_stop_it_before_the_batch() {
    let network = RecordedNetwork::start();
    for (alter, expected) in [(Alter::StateRoot, Reason::StateRoot), (Alter::MessageRoot, Reason::WithdrawalRoot)] {
        let l2 = RecordedL2::start(126);
        l2.fork(23, &alter);
        let mut rig = Rig::recorded(&network, &l2, |_| {}).await;
        let report = rig.settle_stopped().await;
        assert_eq!(reason(&report), Some(expected));
        assert_eq!(stall(&report).batch, Some(3.into()));
        assert_eq!(rig.safe(), Some(18), "{alter:?}");
        assert!(l2.writes().is_empty(), "{alter:?}");
    }
}

#[tokio::test]
async fn e5_a_fork_below_the_first_batch_is_walked_back_to() {
    let network = RecordedNetwork::start();
    let recording = network.recording();
    // It starts after batch 4; the fork lies in batch 3.
    let l2 = RecordedL2::start(126);
    l2.fork(20, &Alter::Transaction(0));
    let mut rig = Rig::recorded(&network, &l2, |s| s.start = 19.into()).await;
    let report = rig.settle_stopped().await;
    assert_eq!(report.end, PollEnd::CaughtUp);
    assert_eq!(cases(&report)[0], (3, Case::SelfHeal));
    assert_eq!(cases(&report).len(), 8);
    assert_eq!(l2.writes().iter().map(|w| w.number).collect::<Vec<_>>(), (20..=122).collect::<Vec<_>>());
    assert_eq!(l2.safe(), Some((122, recording.l2_hash(122))));
}

#[tokio::test]
async fn a_node_that_pruned_its_states_is_verified_by_its_logs() {
    let network = RecordedNetwork::start();
    for start in [0, 16, 19, 27, 36] {
        let l2 = RecordedL2::start(126);
        l2.set_pruned_below(Some(127));
        let mut rig = Rig::recorded(&network, &l2, |s| s.start = start.into()).await;
        let report = rig.settle().await;
        assert_eq!(report.end, PollEnd::CaughtUp, "from {start}");
        assert_eq!(rig.safe(), Some(122), "from {start}");
    }
}
