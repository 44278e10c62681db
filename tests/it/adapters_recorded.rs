//! The network adapters against the recorded network over HTTP: what they read is what was recorded.

use std::collections::BTreeSet;

use morph_deriver::codec::event;
use morph_deriver::error::PortErrorKind;
use morph_deriver::ports::{BlobSource, L1Chain, L2Engine, L2Reader, MessageRoot};
use morph_deriver::types::{
    BatchIndex, L1EventKind, L1Header, L1Number, L1Ref, L1Tag, L2Number, L2Ref, NewBlock, QueueIndex, U256, keccak,
};
use serde_json::json;

use crate::support::recorded::{GENESIS_TIME, L1_END, RecordedNetwork, Recording};
use crate::support::recorded_l2::{Alter, RawBlocks, RecordedL2};
use crate::support::server::{Fault, dead_url};
use crate::support::{clients, hash, hex_bytes, quantity};

fn l1_header(recording: &Recording, number: u64) -> L1Header {
    let header = &recording.headers[usize::try_from(number).unwrap()];
    L1Header {
        number: L1Number::new(number),
        hash: hash(header["hash"].as_str().unwrap()),
        parent_hash: hash(header["parentHash"].as_str().unwrap()),
        timestamp: quantity(&header["timestamp"]).unwrap(),
    }
}

fn l2_ref(recording: &Recording, number: u64) -> L2Ref {
    L2Ref { number: L2Number::new(number), hash: recording.l2_hash(number) }
}

#[tokio::test]
async fn l1_events_come_in_order_with_the_right_kinds() {
    let network = RecordedNetwork::start();
    let l1 = clients::l1(&network);
    let events = l1.events(L1Number::new(0), L1Number::new(L1_END)).await.unwrap().events;
    let told: Vec<String> = events
        .iter()
        .map(|event| {
            let block = event.block.number;
            match &event.kind {
                L1EventKind::Commit { index, .. } => format!("{block} commit {index}"),
                L1EventKind::Revert { index, .. } => format!("{block} revert {index}"),
                L1EventKind::Finalize { index, .. } => format!("{block} proof {index}"),
                L1EventKind::Message(message) => format!("{block} message {}", message.index),
            }
        })
        .collect();
    let expected = [
        "6 commit 0",
        "6 proof 0",
        "9 message 0",
        "10 message 1",
        "11 message 2",
        "12 message 3",
        "13 message 4",
        "14 message 5",
        "15 commit 1",
        "16 commit 2",
        "17 commit 3",
        "18 commit 4",
        "19 message 6",
        "20 message 7",
        "21 message 8",
        "22 commit 5",
        "23 commit 6",
        "24 commit 7",
        "25 commit 8",
        "26 revert 7",
        "26 revert 8",
        "27 commit 7",
        "28 commit 8",
        "30 commit 9",
        "33 proof 1",
        "34 proof 2",
        "35 proof 3",
        "36 commit 10",
    ];
    assert_eq!(told, expected);

    let recording = network.recording();
    for event in &events {
        let number = event.block.number.get();
        assert_eq!(event.block.hash, l1_header(&recording, number).hash);
        match &event.kind {
            L1EventKind::Commit { index, hash } => {
                let all = recording.standing.iter().chain(&recording.reverted);
                assert!(all.into_iter().any(|batch| batch.index == index.get() && batch.hash == *hash));
            }
            L1EventKind::Finalize { index, hash } => {
                assert!(recording.standing.iter().any(|batch| batch.index == index.get() && batch.hash == *hash));
            }
            L1EventKind::Revert { index, hash } => {
                assert!(recording.reverted.iter().any(|batch| batch.index == index.get() && batch.hash == *hash));
            }
            L1EventKind::Message(message) => {
                assert_eq!(keccak(&message.raw), message.hash);
                let recorded = &recording.calls["getCrossDomainMessage"][message.index.get().to_string()];
                assert_eq!(*recorded, json!(hex_bytes(message.hash)), "message {}", message.index);
            }
        }
        // What is decoded is encoded to the same log again.
        let (topics, data) = event::encode_event(&event.kind);
        let log = recording.logs.iter().find(|log| {
            quantity(&log["blockNumber"]) == Some(number) && quantity(&log["logIndex"]) == Some(event.log_index)
        });
        let log = log.unwrap();
        let texts: Vec<String> = topics.iter().map(hex_bytes).collect();
        assert_eq!(json!(texts), log["topics"]);
        // The roots that a proof repeats are not kept.
        assert!(json!(hex_bytes(data)) == log["data"] || matches!(event.kind, L1EventKind::Finalize { .. }));
    }

    // Any split of the range gives the same events.
    network.set_log_range_limit(Some(7));
    let (mut next, mut split) = (0, Vec::new());
    while next <= L1_END {
        let logs = l1.events(L1Number::new(next), L1Number::new(L1_END)).await.unwrap();
        next = logs.ends.last().unwrap().number.get() + 1;
        split.extend(logs.events);
    }
    assert_eq!(split, events);
    let commits = l1.commits_of(BatchIndex::new(7), L1Number::new(0), L1Number::new(L1_END)).await.unwrap().events;
    assert_eq!(commits.iter().map(|event| event.block.number.get()).collect::<Vec<_>>(), [24, 27]);
    let reverts = l1.reverts_of(BatchIndex::new(8), L1Number::new(0), L1Number::new(L1_END)).await.unwrap().events;
    assert_eq!(reverts.iter().map(|event| event.block.number.get()).collect::<Vec<_>>(), [26]);
}

#[tokio::test]
async fn a1_logs_above_an_endpoints_head_are_not_taken_as_none() {
    let network = RecordedNetwork::start();
    let healthy = RecordedNetwork::start();
    network.set_head(20);
    let l1 = clients::l1_over(&network, &[network.l1.url.clone(), healthy.l1.url.clone()]);
    let events = l1.events(L1Number::new(15), L1Number::new(30)).await.unwrap().events;
    assert_eq!(events.iter().filter(|event| matches!(event.kind, L1EventKind::Commit { .. })).count(), 11);
    // Alone, the one that lags gives an error and not an empty range.
    let alone = clients::l1(&network);
    alone.events(L1Number::new(21), L1Number::new(30)).await.unwrap_err();
}

#[tokio::test]
async fn a9_shuffled_doubled_and_removed_logs_give_the_same_events() {
    let network = RecordedNetwork::start();
    let l1 = clients::l1(&network);
    let (from, to) = (L1Number::new(0), L1Number::new(L1_END));
    let expected = l1.events(from, to).await.unwrap().events;
    network.l1.rewrite("eth_getLogs", |_, answer| {
        let Ok(serde_json::Value::Array(logs)) = answer else { return };
        logs.reverse();
        let doubled = logs.clone();
        logs.extend(doubled);
        if let Some(mut removed) = logs.first().cloned() {
            removed["removed"] = json!(true);
            removed["logIndex"] = json!("0x9");
            logs.push(removed);
        }
    });
    assert_eq!(l1.events(from, to).await.unwrap().events, expected);
}

#[tokio::test]
async fn l1_headers_and_tags_are_read() {
    let network = RecordedNetwork::start();
    let l1 = clients::l1(&network);
    let recording = network.recording();
    let numbers: Vec<L1Number> = (0..=L1_END + 1).map(L1Number::new).collect();
    let headers = l1.headers(&numbers).await.unwrap();
    for (number, header) in (0..=L1_END).zip(&headers) {
        assert_eq!(*header, Some(l1_header(&recording, number)));
    }
    assert_eq!(headers.last(), Some(&None));
    network.set_finalized(Some(20));
    network.set_safe(Some(25));
    for (tag, number) in [(L1Tag::Latest, 36), (L1Tag::Safe, 25), (L1Tag::Finalized, 20)] {
        assert_eq!(l1.tagged(tag).await.unwrap().unwrap().number.get(), number);
    }
}

#[tokio::test]
async fn every_commits_transaction_is_found_by_block_hash_and_place() {
    let network = RecordedNetwork::start();
    let l1 = clients::l1(&network);
    let recording = network.recording();
    let events = l1.events(L1Number::new(0), L1Number::new(L1_END)).await.unwrap().events;
    for event in events.iter().filter(|event| matches!(event.kind, L1EventKind::Commit { .. })) {
        let found = l1.transaction(event.block, event.tx_index).await.unwrap().unwrap();
        let recorded = &recording.transactions[&hex_bytes(event.tx_hash)];
        assert_eq!((found.hash, found.block, found.index), (event.tx_hash, event.block, event.tx_index));
        assert_eq!(json!(hex_bytes(&found.input)), recorded["input"]);
        assert_eq!(found.to.map(hex_bytes).as_deref(), recorded["to"].as_str());
        let hashes: Vec<String> = found.blob_hashes.iter().map(hex_bytes).collect();
        assert_eq!(json!(hashes), recorded.get("blobVersionedHashes").cloned().unwrap_or(json!([])));
    }
    let unknown = L1Ref { number: L1Number::new(15), hash: hash(&format!("0x{}", "11".repeat(32))) };
    assert_eq!(l1.transaction(unknown, 0).await.unwrap(), None);
}

#[tokio::test]
async fn the_forwarded_commits_inner_call_is_traced() {
    let network = RecordedNetwork::start();
    let l1 = clients::l1(&network);
    let recording = network.recording();
    let tx = recording.standing[9].tx.unwrap();
    let calls = l1.rollup_calls(tx).await.unwrap().unwrap();
    let [call] = calls.as_slice() else { panic!("one call to the Rollup contract, not {}", calls.len()) };
    assert_eq!(call.to, clients::address(&recording.rollup));
    let trace = &recording.traces[&hex_bytes(tx)];
    assert_eq!(json!(hex_bytes(&call.input)), trace["calls"][0]["input"]);

    let without = RecordedNetwork::start();
    without.set_traces(false);
    assert_eq!(clients::l1(&without).rollup_calls(tx).await.unwrap(), None);
    // A contract may call and be rolled back: that is not a call.
    network.edit(|recording| recording.traces[&hex_bytes(tx)]["calls"][0]["error"] = json!("execution reverted"));
    assert_eq!(l1.rollup_calls(tx).await.unwrap().unwrap(), []);
}

#[tokio::test]
async fn contract_views_are_read_at_any_block() {
    let network = RecordedNetwork::start();
    let l1 = clients::l1(&network);
    let recording = network.recording();
    let indices: Vec<BatchIndex> = (0..=11).map(BatchIndex::new).collect();
    let hashes = l1.committed_hashes(&indices, None).await.unwrap();
    for (batch, found) in recording.standing.iter().zip(&hashes) {
        assert_eq!(batch.hash, *found);
    }
    assert!(hashes[11].is_zero());
    let then = l1.committed_hashes(&indices, Some(L1Number::new(25))).await.unwrap();
    assert_eq!((then[7], then[8]), (recording.reverted[0].hash, recording.reverted[1].hash));
    assert_eq!(l1.last_committed_index(None).await.unwrap().get(), 10);
    assert_eq!(l1.last_committed_index(Some(L1Number::new(26))).await.unwrap().get(), 6);
    let field = l1.blob_field(BatchIndex::new(7)).await.unwrap();
    assert_eq!(field.as_bytes(), &recording.standing[7].header[57..89]);
    assert!(l1.blob_field(BatchIndex::new(1)).await.unwrap().is_zero());
    assert_eq!(l1.batch_last_block(BatchIndex::new(7)).await.unwrap().get(), 110);
    let queue: Vec<QueueIndex> = (0..=8).map(QueueIndex::new).collect();
    for (index, found) in l1.queue_hashes(&queue).await.unwrap().iter().enumerate() {
        assert_eq!(json!(hex_bytes(found)), recording.calls["getCrossDomainMessage"][index.to_string()]);
    }
    assert_eq!(l1.chain_id().await.unwrap(), 900);
    assert!(!l1.code_at(clients::address(&recording.rollup)).await.unwrap().is_empty());
}

#[tokio::test]
async fn all_blocks_come_out_with_their_raw_transactions_in_every_form() {
    let recording = Recording::load();
    for form in [RawBlocks::No, RawBlocks::GetBlockRlp, RawBlocks::GetRawBlock] {
        let node = RecordedL2::with(&recording, 126);
        node.set_raw_blocks(form);
        let l2 = clients::l2(&node);
        let blocks = l2.blocks(L2Number::new(1), L2Number::new(126)).await.unwrap();
        assert_eq!(blocks.len(), 126);
        for (number, block) in (1..=126).zip(&blocks) {
            assert_eq!(block.header.l2_ref(), l2_ref(&recording, number), "{form:?}");
            let raw: Vec<Vec<u8>> = block.transactions.iter().map(|tx| tx.to_vec()).collect();
            assert_eq!(raw, recording.l2_raw_of(number), "{form:?}, block {number}");
            let json = &recording.l2_blocks[usize::try_from(number).unwrap()];
            assert_eq!(json!(hex_bytes(block.header.state_root)), json["stateRoot"]);
            assert_eq!(Some(block.header.timestamp), quantity(&json["timestamp"]));
            assert_eq!(Some(block.header.gas_limit), quantity(&json["gasLimit"]));
            assert_eq!(block.header.base_fee, U256::from(quantity(&json["baseFeePerGas"]).unwrap()));
        }
        let asked: BTreeSet<String> = node.eth.calls().into_iter().map(|call| call.method).collect();
        let by_json = asked.contains("eth_getBlockByNumber");
        assert_eq!(by_json, form == RawBlocks::No, "{form:?}: {asked:?}");
        assert_eq!(l2.header(L2Number::new(5)).await.unwrap().unwrap().l2_ref(), l2_ref(&recording, 5));
        assert_eq!(l2.header(L2Number::new(127)).await.unwrap(), None);
        let missing = l2.blocks(L2Number::new(125), L2Number::new(127)).await.unwrap_err();
        assert_eq!(missing.kind, PortErrorKind::NotFound, "{form:?}: {missing}");
    }
}

#[tokio::test]
async fn f9_a_transaction_of_an_unknown_type_is_asked_for_raw() {
    let recording = Recording::load();
    let node = RecordedL2::with(&recording, 126);
    node.set_raw_blocks(RawBlocks::No);
    node.eth.rewrite("eth_getBlockByNumber", |_, answer| {
        let Ok(block) = answer else { return };
        if let Some(tx) = block["transactions"].get_mut(1) {
            tx["type"] = json!("0x55");
        }
    });
    let blocks = clients::l2(&node).blocks(L2Number::new(1), L2Number::new(10)).await.unwrap();
    for (number, block) in (1..=10).zip(&blocks) {
        let raw: Vec<Vec<u8>> = block.transactions.iter().map(|tx| tx.to_vec()).collect();
        assert_eq!(raw, recording.l2_raw_of(number));
    }
    assert!(node.eth.count("eth_getRawTransactionByHash") > 0);
}

#[tokio::test]
async fn a_block_that_is_not_what_its_hash_says_is_malformed() {
    let recording = Recording::load();
    let node = RecordedL2::with(&recording, 126);
    node.set_raw_blocks(RawBlocks::No);
    node.eth.rewrite("eth_getBlockByNumber", |params, answer| {
        if let (Ok(block), Some("0x5")) = (answer, params[0].as_str()) {
            block["stateRoot"] = block["parentHash"].clone();
        }
    });
    let l2 = clients::l2(&node);
    let error = l2.blocks(L2Number::new(1), L2Number::new(10)).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Malformed);
}

#[tokio::test]
async fn e22_tags_never_set_are_none() {
    let recording = Recording::load();
    let node = RecordedL2::with(&recording, 126);
    let l2 = clients::l2(&node);
    let fresh = l2.snapshot().await.unwrap();
    assert_eq!((fresh.head, fresh.safe, fresh.finalized), (l2_ref(&recording, 126), None, None));
    assert!(!fresh.syncing);
    node.set_tags(Some(105), Some(95));
    node.set_syncing(true);
    let set = l2.snapshot().await.unwrap();
    assert_eq!((set.safe, set.finalized), (Some(l2_ref(&recording, 105)), Some(l2_ref(&recording, 95))));
    assert!(set.syncing);
}

#[tokio::test]
async fn a_pruned_node_gives_the_same_withdrawal_roots_by_its_logs() {
    let recording = Recording::load();
    let node = RecordedL2::with(&recording, 126);
    let l2 = clients::l2(&node);
    for number in 0..=126 {
        let root = l2.message_root(l2_ref(&recording, number)).await.unwrap();
        assert_eq!(root, MessageRoot::Root(recording.message_roots[usize::try_from(number).unwrap()]));
    }
    node.set_pruned_below(Some(127));
    let mut root = recording.message_roots[0];
    for number in 1..=126 {
        let block = l2_ref(&recording, number);
        assert_eq!(l2.message_root(block).await.unwrap(), MessageRoot::Pruned);
        root = l2.last_appended_root(block.number, block.number, block).await.unwrap().unwrap_or(root);
        assert_eq!(root, recording.message_roots[usize::try_from(number).unwrap()], "block {number}");
    }
    let tip = l2_ref(&recording, 126);
    let whole = l2.last_appended_root(L2Number::new(1), L2Number::new(126), tip).await.unwrap();
    assert_eq!(whole, recording.message_roots.last().copied());
    assert_eq!(l2.last_appended_root(L2Number::new(24), L2Number::new(95), tip).await.unwrap(), None);
}

#[tokio::test]
async fn each_commits_blobs_come_verified_and_in_order() {
    let network = RecordedNetwork::start();
    let recording = network.recording();
    for (blobs, sidecars) in [(true, false), (false, true), (true, true)] {
        network.set_blob_endpoints(blobs, sidecars);
        let beacon = clients::beacon(&network);
        for batch in recording.standing.iter().chain(&recording.reverted) {
            let Some(number) = batch.tx.and_then(|tx| recording.l1_block_of(&tx)) else { continue };
            let Some(expected) = recording.blobs.get(&number) else { continue };
            let found = beacon.blobs(&l1_header(&recording, number), &batch.blob_hashes).await.unwrap();
            let found: Vec<&[u8]> = found.iter().map(|blob| blob.as_bytes()).collect();
            assert_eq!(found, expected.iter().map(Vec::as_slice).collect::<Vec<_>>(), "batch {}", batch.index);
        }
    }
}

#[tokio::test]
async fn d2_a_blob_with_other_bytes_is_refused_and_another_endpoint_asked() {
    let network = RecordedNetwork::start();
    let bad = RecordedNetwork::start();
    bad.edit(|recording| recording.blobs.get_mut(&17).unwrap()[1][31] ^= 1);
    let recording = network.recording();
    let header = l1_header(&recording, 17);
    let hashes = &recording.standing[3].blob_hashes;
    let both = clients::beacon_over(&[bad.beacon.url.clone(), network.beacon.url.clone()]);
    let found = both.blobs(&header, hashes).await.unwrap();
    assert_eq!(found[1].as_bytes(), recording.blobs[&17][1]);
    clients::beacon(&bad).blobs(&header, hashes).await.unwrap_err();
}

#[tokio::test]
async fn d3_a_missed_slot_is_not_found() {
    let network = RecordedNetwork::start();
    let recording = network.recording();
    let mut header = l1_header(&recording, 17);
    header.timestamp = GENESIS_TIME + 12 * 3000;
    let error = clients::beacon(&network).blobs(&header, &recording.standing[3].blob_hashes).await.unwrap_err();
    assert!(matches!(error.kind, PortErrorKind::NotFound | PortErrorKind::Pruned), "{error}");
}

#[tokio::test]
async fn a11_an_endpoint_of_another_network_is_refused() {
    let network = RecordedNetwork::start();
    network.set_chain_id(1);
    let error = clients::l1(&network).tagged(L1Tag::Latest).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::WrongNetwork);
}

#[tokio::test]
async fn a_dead_and_a_hanging_endpoint_are_passed_over() {
    let network = RecordedNetwork::start();
    let hanging = network.another_l1();
    hanging.fault("*", Fault::Hang);
    let urls = [dead_url(), hanging.url.clone(), network.l1.url.clone()];
    let head = clients::l1_over(&network, &urls).tagged(L1Tag::Latest).await.unwrap().unwrap();
    assert_eq!(head.number.get(), L1_END);
}

/// What the engine is asked to write for block `number`.
fn new_block(recording: &Recording, number: u64, parent: Option<u64>) -> NewBlock {
    let json = &recording.l2_blocks[usize::try_from(number).unwrap()];
    NewBlock {
        number: L2Number::new(number),
        timestamp: quantity(&json["timestamp"]).unwrap(),
        base_fee: U256::from(quantity(&json["baseFeePerGas"]).unwrap()),
        gas_limit: quantity(&json["gasLimit"]).unwrap(),
        transactions: recording.l2_raw_of(number).into_iter().map(Into::into).collect(),
        parent_hash: parent.map(|parent| recording.l2_hash(parent)),
    }
}

#[tokio::test]
async fn blocks_are_written_over_a_fork_and_tags_set() {
    let recording = Recording::load();
    let node = RecordedL2::with(&recording, 105);
    node.fork(60, &Alter::Timestamp);
    let engine = clients::engine(&node);
    let blocks: Vec<NewBlock> =
        (60..=105).map(|number| new_block(&recording, number, (number == 60).then_some(59))).collect();
    let written = engine.write_blocks(&blocks).await.unwrap();
    assert_eq!(written.len(), 46, "one request holds them all");
    let refs: Vec<L2Ref> = written.iter().map(|header| header.l2_ref()).collect();
    assert_eq!(refs, (60..=105).map(|number| l2_ref(&recording, number)).collect::<Vec<_>>());
    assert_eq!(node.writes().len(), 46);
    assert_eq!(node.writes().iter().filter(|write| write.pinned).count(), 1);
    assert_eq!(node.hash_at(105), Some(recording.l2_hash(105)));
    engine.set_tags(Some(recording.l2_hash(105)), None).await.unwrap();
    engine.set_tags(None, Some(recording.l2_hash(95))).await.unwrap();
    assert_eq!((node.safe().unwrap().0, node.finalized().unwrap().0), (105, 95));
    assert_eq!(node.disorder(), Vec::<String>::new());

    // One that cannot be written stops the run, and says how far it came.
    let mut broken: Vec<NewBlock> =
        (106..=110).map(|number| new_block(&recording, number, (number == 106).then_some(105))).collect();
    broken[2].timestamp += 1;
    let stopped = engine.write_blocks(&broken).await.unwrap_err();
    assert_eq!(stopped.written.len(), 2, "{stopped}");
    assert_eq!(node.head(), 107);
    let bearer = node
        .engine
        .calls()
        .iter()
        .all(|call| call.authorization.as_deref().is_some_and(|value| value.starts_with("Bearer ")));
    assert!(bearer, "every engine request is signed");
}

#[tokio::test]
async fn forked_chains_are_read_as_whole_as_the_recorded_one() {
    let recording = Recording::load();
    let alters = [
        Alter::Timestamp,
        Alter::BaseFee,
        Alter::Transaction(3),
        Alter::DropTransaction(11),
        Alter::SwapTransactions,
        Alter::StateRoot,
    ];
    for alter in alters {
        for form in [RawBlocks::No, RawBlocks::GetBlockRlp, RawBlocks::GetRawBlock] {
            let node = RecordedL2::with(&recording, 30);
            node.fork(20, &alter);
            node.set_raw_blocks(form);
            let blocks = clients::l2(&node).blocks(L2Number::new(18), L2Number::new(30)).await.unwrap();
            for (number, block) in (18..=30).zip(&blocks) {
                assert_eq!(Some(block.header.hash), node.hash_at(number), "{alter:?}, {form:?}");
                let raw: Vec<Vec<u8>> = block.transactions.iter().map(|tx| tx.to_vec()).collect();
                assert_eq!(raw, node.raw_at(number), "{alter:?}, {form:?}, block {number}");
            }
        }
    }
    let forged = RecordedL2::with(&recording, 8);
    forged.fork(1, &Alter::ForgeL1Message(0));
    let blocks = clients::l2(&forged).blocks(L2Number::new(1), L2Number::new(8)).await.unwrap();
    assert_ne!(blocks[0].transactions[0], recording.l2_raw_of(1)[0]);
}
