//! The recorded network's servers answer as the recording says: without this, what is tested against them says little.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::recorded::{GENESIS_TIME, L1_END, RecordedNetwork, Recording, word};
use crate::support::recorded_l2::{Alter, JWT_SECRET, RecordedL2};
use crate::support::server::{FakeServer, Fault, dead_url};
use crate::support::{bytes, hash, hex_bytes, hex_quantity, keccak_hex, quantity, rlp};

/// One call; the answer's whole object.
async fn ask(url: &str, method: &str, params: Value) -> Value {
    let body = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params});
    post(url, &body, None).await.expect("an answer")
}

async fn post(url: &str, body: &Value, token: Option<&str>) -> Result<Value, reqwest::Error> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?;
    let mut request = client.post(url).json(body);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    request.send().await?.error_for_status()?.json().await
}

async fn get(url: String) -> (u16, Value) {
    let answer = reqwest::get(url).await.expect("an answer");
    let status = answer.status().as_u16();
    (status, answer.json().await.unwrap_or(Value::Null))
}

fn token(secret: &[u8], issued: i64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let key = jsonwebtoken::EncodingKey::from_secret(secret);
    let claims = json!({"iat": now.saturating_add_signed(issued)});
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
}

#[tokio::test]
async fn faults_come_and_go() {
    let server = FakeServer::json_rpc(|method, _| Ok(json!(method)));
    server.fault_times("a", Fault::Error(-32000, "no".into()), 2);
    assert_eq!(ask(&server.url, "a", json!([])).await["error"]["code"], -32000);
    assert_eq!(ask(&server.url, "b", json!([])).await["result"], "b");
    assert_eq!(ask(&server.url, "a", json!([])).await["error"]["message"], "no");
    assert_eq!(ask(&server.url, "a", json!([])).await["result"], "a");
    assert_eq!((server.count("a"), server.count("b"), server.requests()), (3, 1, 4));

    server.fault_after("a", 1, Fault::Status(429, "slow down".into()), 1);
    assert_eq!(ask(&server.url, "a", json!([])).await["result"], "a");
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "a", "params": []});
    assert_eq!(post(&server.url, &call, None).await.unwrap_err().status().map(|s| s.as_u16()), Some(429));
    assert_eq!(ask(&server.url, "a", json!([])).await["result"], "a");

    server.fault("a", Fault::Drop);
    assert!(post(&server.url, &call, None).await.is_err());
    server.heal();
    server.set_down(true);
    assert!(post(&server.url, &call, None).await.is_err());
    server.set_down(false);
    assert!(post(&server.url, &call, None).await.is_ok());
    assert!(post(&dead_url(), &call, None).await.is_err());

    server.rewrite("a", |_, answer| *answer = Ok(json!("rewritten")));
    assert_eq!(ask(&server.url, "a", json!([])).await["result"], "rewritten");
}

#[tokio::test]
async fn batches_are_answered_as_one() {
    let server = FakeServer::json_rpc(|_, params| Ok(params[0].clone()));
    let batch = |n: u64| {
        Value::Array((0..n).map(|id| json!({"jsonrpc": "2.0", "id": id, "method": "echo", "params": [id]})).collect())
    };
    let answers = post(&server.url, &batch(3), None).await.unwrap();
    assert_eq!(answers[2]["result"], 2);
    server.fault_times("echo", Fault::LeaveOut, 1);
    assert_eq!(post(&server.url, &batch(3), None).await.unwrap().as_array().unwrap().len(), 2);
    server.set_batch_limit(2);
    let refused = post(&server.url, &batch(3), None).await.unwrap();
    assert_eq!((refused.as_array().unwrap().len(), &refused[0]["error"]["code"]), (1, &json!(-32600)));
    assert_eq!(server.largest_batch(), 3);
}

#[tokio::test]
async fn logs_are_filtered_as_a_node_does() {
    let network = RecordedNetwork::start();
    let recording = network.recording();
    let commit = "0x2c32d4ae151744d0bf0b9464a3e897a1d17ed2f1af71f7c9a75f12ce0d28238f";
    let logs = async |filter: Value| ask(&network.l1.url, "eth_getLogs", json!([filter])).await["result"].clone();
    let count = async |filter: Value| logs(filter).await.as_array().unwrap().len();
    let all = json!({"fromBlock": "0x0", "toBlock": "latest"});
    assert_eq!(count(all.clone()).await, 45);
    let of_rollup = json!({"fromBlock": "0x0", "toBlock": "0x24", "address": recording.rollup, "topics": [commit]});
    assert_eq!(count(of_rollup).await, 13);
    let both = json!({"fromBlock": "0x0", "toBlock": "0x24", "address": [recording.rollup, recording.queue],
        "topics": [[commit, "0x69cfcb8e6d4192b8aba9902243912587f37e550d75c1fa801491fce26717f37e"]]});
    assert_eq!(count(both).await, 22);
    let of_seven =
        json!({"fromBlock": "0x0", "toBlock": "0x24", "address": recording.rollup, "topics": [commit, word(7)]});
    let found = logs(of_seven).await;
    assert_eq!((found[0]["blockNumber"].clone(), found[1]["blockNumber"].clone()), (json!("0x18"), json!("0x1b")));
    let block = json!({"blockHash": recording.headers[26]["hash"]});
    assert_eq!(count(block).await, 2);

    network.set_head(23);
    assert_eq!(ask(&network.l1.url, "eth_blockNumber", json!([])).await["result"], "0x17");
    let above = json!({"fromBlock": "0x18", "toBlock": "0x24"});
    assert_eq!(count(above).await, 0);
    network.set_log_range_limit(Some(10));
    assert_eq!(ask(&network.l1.url, "eth_getLogs", json!([all])).await["error"]["code"], -32005);
}

#[tokio::test]
async fn l1_headers_link_and_tags_follow() {
    let network = RecordedNetwork::start();
    let url = &network.l1.url;
    let block = async |name: Value| ask(url, "eth_getBlockByNumber", json!([name, false])).await["result"].clone();
    let mut parent = Value::Null;
    for number in 0..=L1_END {
        let header = block(json!(hex_quantity(number))).await;
        assert_eq!(quantity(&header["number"]), Some(number));
        assert!(parent.is_null() || header["parentHash"] == parent, "block {number}");
        parent = header["hash"].clone();
    }
    assert_eq!(block(json!("latest")).await["number"], "0x24");
    network.set_head(30);
    network.set_finalized(Some(20));
    network.set_safe(Some(25));
    assert_eq!(block(json!("latest")).await["number"], "0x1e");
    assert_eq!(block(json!("safe")).await["number"], "0x19");
    assert_eq!(block(json!("finalized")).await["number"], "0x14");
    assert_eq!(block(json!("0x1f")).await, Value::Null);
    let gone = ask(url, "eth_getBlockByHash", json!([parent, false])).await;
    assert_eq!(gone["result"], Value::Null);
    let missing = ask(url, "eth_getBlockByNumber", json!(["0x10"])).await["result"]["hash"].clone();
    network.reorg(16, 1);
    let moved = block(json!("0x10")).await;
    assert_ne!(moved["hash"], missing);
    assert_eq!(block(json!("0x11")).await["parentHash"], moved["hash"]);
    let logs = ask(url, "eth_getLogs", json!([{"fromBlock": "0x10", "toBlock": "0x10"}])).await;
    assert_eq!(logs["result"][0]["blockHash"], moved["hash"]);
}

#[tokio::test]
async fn contract_views_equal_the_recorded_ones() {
    let network = RecordedNetwork::start();
    let recording = network.recording();
    let state = recording.state_at(L1_END);
    let calls = &recording.calls;
    assert_eq!(json!(word(state.last_committed)), calls["lastCommittedBatchIndex"]);
    assert_eq!(json!(word(state.last_finalized)), calls["lastFinalizedBatchIndex"]);
    for index in 0..=11_u64 {
        let key = index.to_string();
        let committed = state.committed.get(&index).copied().unwrap_or_default();
        assert_eq!(json!(hex_bytes(committed)), calls["committedBatches"][&key], "committedBatches({index})");
        let field = state.blob_fields.get(&index).copied().unwrap_or_default();
        assert_eq!(json!(hex_bytes(field)), calls["batchBlobVersionedHashes"][&key], "blob field of {index}");
        let row = state.data_store.get(&index).copied().unwrap_or_default();
        let recorded = bytes(calls["batchDataStore"][&key].as_str().unwrap());
        assert_eq!(word(row[2]), hex_bytes(&recorded[64..96]), "last block of {index}");
        assert_eq!(word(row[0]), hex_bytes(&recorded[..32]), "time of {index}");
    }

    let url = &network.l1.url;
    let call = async |to: &str, data: String, at: Value| {
        ask(url, "eth_call", json!([{"to": to, "data": data}, at])).await["result"].clone()
    };
    let with = |selector: &str, argument: u64| format!("0x{selector}{}", &word(argument)[2..]);
    let rollup = recording.rollup.as_str();
    assert_eq!(call(rollup, "0x121dcd50".into(), json!("latest")).await, word(10));
    assert_eq!(call(rollup, "0x121dcd50".into(), json!("0x19")).await, word(8));
    assert_eq!(call(rollup, "0x121dcd50".into(), json!("0x1a")).await, word(6));
    assert_eq!(call(rollup, with("2362f03e", 7), json!("0x1a")).await, word(0));
    assert_eq!(call(rollup, with("2362f03e", 7), json!("0x18")).await, hex_bytes(recording.reverted[0].hash));
    assert_eq!(call(rollup, with("2362f03e", 7), json!("latest")).await, hex_bytes(recording.standing[7].hash));
    assert_eq!(call(&recording.queue, with("ae453cd5", 8), json!("latest")).await, calls["getCrossDomainMessage"]["8"]);
    assert_eq!(call(&recording.queue, with("ae453cd5", 8), json!("0x14")).await, word(0));
    network.set_archive(false);
    let pruned = ask(url, "eth_call", json!([{"to": rollup, "data": "0x121dcd50"}, "0x14"])).await;
    assert!(pruned["error"]["message"].as_str().unwrap().starts_with("missing trie node"));
}

#[tokio::test]
async fn transactions_and_traces_are_found() {
    let network = RecordedNetwork::start();
    let recording = network.recording();
    let url = &network.l1.url;
    let batch = &recording.standing[9];
    let tx = hex_bytes(batch.tx.unwrap());
    let found = ask(url, "eth_getTransactionByHash", json!([tx])).await["result"].clone();
    assert_eq!(found["blockNumber"], "0x1e");
    let placed = ask(url, "eth_getTransactionByBlockHashAndIndex", json!([found["blockHash"], "0x0"])).await;
    assert_eq!(placed["result"], found);
    let trace = ask(url, "debug_traceTransaction", json!([tx, {"tracer": "callTracer"}])).await;
    assert_eq!(trace["result"]["calls"][0]["to"], recording.rollup);
    network.set_traces(false);
    let none = ask(url, "debug_traceTransaction", json!([tx, {"tracer": "callTracer"}])).await;
    assert_eq!(none["error"]["code"], -32601);
    network.set_head(29);
    assert_eq!(ask(url, "eth_getTransactionByHash", json!([tx])).await["result"], Value::Null);
    let code = ask(url, "eth_getCode", json!([recording.rollup, "latest"])).await;
    assert!(code["result"].as_str().unwrap().len() > 2);
}

#[tokio::test]
async fn blobs_are_found_by_slot() {
    let network = RecordedNetwork::start();
    let recording = network.recording();
    let base = &network.beacon.url;
    for batch in recording.standing.iter().filter(|batch| !batch.blob_hashes.is_empty()) {
        // A batch that was committed anew by commitState has its blobs in the reverted commit.
        let first = recording.reverted.iter().find(|reverted| reverted.blob_hashes == batch.blob_hashes);
        let tx = first.unwrap_or(batch).tx.unwrap();
        let number = recording.l1_block_of(&tx).unwrap();
        let time = quantity(&recording.headers[usize::try_from(number).unwrap()]["timestamp"]).unwrap();
        let slot = (time - GENESIS_TIME) / 12;
        let wanted: Vec<String> = batch.blob_hashes.iter().map(hex_bytes).collect();
        let query: Vec<String> = wanted.iter().map(|hash| format!("versioned_hashes={hash}")).collect();
        let (status, answer) = get(format!("{base}/eth/v1/beacon/blobs/{slot}?{}", query.join("&"))).await;
        assert_eq!(status, 200);
        let blobs: Vec<Vec<u8>> =
            answer["data"].as_array().unwrap().iter().map(|blob| bytes(blob.as_str().unwrap())).collect();
        assert_eq!(blobs, recording.blobs[&number], "batch {}", batch.index);
    }
    assert_eq!(get(format!("{base}/eth/v1/beacon/blobs/999999")).await.0, 404);
    assert_eq!(get(format!("{base}/eth/v1/config/spec")).await.0, 404);
    assert_eq!(get(format!("{base}/eth/v1/beacon/blob_sidecars/1")).await.0, 410);
    let (_, genesis) = get(format!("{base}/eth/v1/beacon/genesis")).await;
    assert_eq!(genesis["data"]["genesis_time"], GENESIS_TIME.to_string());
    network.set_blob_endpoints(false, true);
    assert_eq!(get(format!("{base}/eth/v1/beacon/blobs/1")).await.0, 404);
    let (_, sidecars) = get(format!("{base}/eth/v1/beacon/blob_sidecars/2")).await;
    assert_eq!(sidecars["data"].as_array().unwrap().len(), 3);
    let (_, block) = get(format!("{base}/eth/v2/beacon/blocks/2")).await;
    assert_eq!(block["data"]["message"]["body"]["blob_kzg_commitments"].as_array().unwrap().len(), 3);
}

#[test]
fn blobs_commit_to_their_versioned_hashes() {
    use morph_deriver::codec::blob::blob_hash;
    use morph_deriver::types::Blob;

    let recording = Recording::load();
    for (number, blobs) in &recording.blobs {
        let names: Vec<_> = recording
            .transactions
            .values()
            .filter(|tx| quantity(&tx["blockNumber"]) == Some(*number))
            .flat_map(|tx| tx["blobVersionedHashes"].as_array().cloned().unwrap_or_default())
            .map(|name| hash(name.as_str().unwrap()))
            .collect();
        let hashes: Vec<_> = blobs.iter().map(|blob| blob_hash(&Blob::new(blob.clone()).unwrap()).unwrap()).collect();
        assert_eq!(hashes, names, "L1 block {number}");
    }
}

#[test]
fn l2_hashes_are_those_of_the_headers_own_fields() {
    let recording = Recording::load();
    let mut parent = None;
    for (number, block) in recording.l2_blocks.iter().enumerate() {
        let name = block["hash"].as_str().unwrap();
        assert_eq!(keccak_hex(&rlp::header(block, false)), name, "block {number}");
        assert!(parent.is_none_or(|parent: &Value| *parent == block["parentHash"]), "block {number}");
        parent = Some(&block["hash"]);
    }
    assert_eq!(recording.l2_blocks.len(), 127);
    assert_eq!(recording.l2_raw.len(), 168);
    for (name, raw) in &recording.l2_raw {
        assert_eq!(&keccak_hex(raw), name);
    }
}

#[tokio::test]
async fn the_l2_node_is_written_as_the_real_one() {
    let l2 = RecordedL2::start(105);
    let recording = Recording::load();
    let good = token(&JWT_SECRET, 0);
    let engine = async |method: &str, params: Value| {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        post(&l2.engine.url, &body, Some(&good)).await.unwrap()
    };
    let block = |number: u64, parent: Option<u64>| {
        let json = &recording.l2_blocks[usize::try_from(number).unwrap()];
        let raw: Vec<String> = recording.l2_raw_of(number).iter().map(hex_bytes).collect();
        let mut asked = json!({"number": json["number"], "gasLimit": json["gasLimit"], "timestamp": json["timestamp"],
            "baseFeePerGas": json["baseFeePerGas"], "transactions": raw});
        if let Some(parent) = parent {
            asked["parentHash"] = json!(hex_bytes(recording.l2_hash(parent)));
        }
        json!([asked])
    };

    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []});
    for wrong in [None, Some(token(b"other", 0)), Some(token(&JWT_SECRET, -120)), Some(token(&JWT_SECRET, 120))] {
        let refused = post(&l2.engine.url, &body, wrong.as_deref()).await.unwrap_err();
        assert_eq!(refused.status().map(|status| status.as_u16()), Some(401));
    }
    let unset = ask(&l2.eth.url, "eth_getBlockByNumber", json!(["safe", false])).await;
    assert_eq!(unset["error"]["message"], "safe block not available");
    assert_eq!(ask(&l2.eth.url, "engine_setBlockTags", json!([])).await["error"]["code"], -32601);

    let header = engine("engine_newSafeL2Block", block(106, None)).await;
    assert_eq!(hash(header["result"]["hash"].as_str().unwrap()), recording.l2_hash(106));
    let discontinuous = engine("engine_newSafeL2Block", block(108, None)).await;
    let text = "cannot assemble block with discontinuous block number 108, expected number is 107";
    assert_eq!(discontinuous["error"]["message"], text);
    // Equal content once more, below the head: the blocks above are gone.
    engine("engine_newSafeL2Block", block(60, Some(59))).await;
    assert_eq!((l2.head(), l2.hash_at(61)), (60, None));
    assert_eq!(l2.writes().len(), 2);
    assert_eq!(l2.refused_writes(), 1);

    l2.set_head(105);
    let name = |number: u64| hex_bytes(recording.l2_hash(number));
    engine("engine_setBlockTags", json!([name(105), name(95)])).await;
    assert_eq!(l2.safe(), Some((105, recording.l2_hash(105))));
    assert_eq!(l2.disorder().len(), 1, "finalized moves first");
    l2.kill(50);
    assert_eq!(l2.safe().unwrap().0, 95);
    assert_eq!(ask(&l2.eth.url, "eth_blockNumber", json!([])).await["result"], "0x32");
    let ghost = ask(&l2.eth.url, "eth_getBlockByNumber", json!(["0x5a", false])).await;
    assert_eq!(ghost["result"]["hash"], name(90));
}

#[tokio::test]
async fn l2_forks_differ_where_they_say_and_link() {
    let recording = Recording::load();
    let cases: [(u64, Alter); 7] = [
        (40, Alter::Timestamp),
        (40, Alter::BaseFee),
        (20, Alter::Transaction(3)),
        (20, Alter::DropTransaction(11)),
        (20, Alter::SwapTransactions),
        (1, Alter::ForgeL1Message(0)),
        (95, Alter::StateRoot),
    ];
    for (number, alter) in cases {
        let l2 = RecordedL2::with(&recording, 126);
        l2.fork(number, &alter);
        assert_eq!(l2.head(), 126, "{alter:?}");
        assert_eq!(l2.hash_at(number - 1), Some(recording.l2_hash(number - 1)), "{alter:?}");
        let mut parent = json!(hex_bytes(recording.l2_hash(number - 1)));
        for height in number..=126 {
            assert_ne!(l2.hash_at(height), Some(recording.l2_hash(height)), "{alter:?}, block {height}");
            let block = ask(&l2.eth.url, "eth_getBlockByNumber", json!([hex_quantity(height), true])).await;
            assert_eq!(block["result"]["parentHash"], parent, "{alter:?}, block {height}");
            assert_eq!(keccak_hex(&rlp::header(&block["result"], false)), block["result"]["hash"]);
            parent = block["result"]["hash"].clone();
            if height > number + 2 {
                break;
            }
        }
        let same = l2.raw_at(number) == recording.l2_raw_of(number);
        assert_eq!(same, matches!(alter, Alter::Timestamp | Alter::BaseFee | Alter::StateRoot), "{alter:?}");
    }
    let l2 = RecordedL2::with(&recording, 126);
    l2.fork(105, &Alter::MessageRoot);
    assert_eq!(l2.hash_at(126), Some(recording.l2_hash(126)));
    let call = json!([{"to": "0x5300000000000000000000000000000000000001", "data": "0xd4b9f4fa"}, "0x69"]);
    let root = ask(&l2.eth.url, "eth_call", call.clone()).await["result"].clone();
    assert_ne!(root, hex_bytes(recording.message_roots[105]));
    l2.set_pruned_below(Some(106));
    let pruned = ask(&l2.eth.url, "eth_call", call).await;
    assert!(pruned["error"]["message"].as_str().unwrap().starts_with("missing trie node"));
}
