//! The devnet itself: its execution node against what the real one answered, and its other parties by their own words.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use morph_deriver::codec::calldata::{CommitForm, decode_commit};
use morph_deriver::codec::header::rebuild;
use morph_deriver::devnet::chain::{BatchSpec, BlockPlan, Compression, content_of, decode_contents};
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::devnet::jsonrpc::{parse_data, parse_hash};
use morph_deriver::devnet::l1::Forward;
use morph_deriver::devnet::oracle::Oracle;
use morph_deriver::devnet::world::{ForkShape, World, WorldOptions};
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::types::{B256, Blob};
use serde_json::{Value, json};

use crate::support::vectors;

fn token(secret: &[u8; 32], skew: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let key = jsonwebtoken::EncodingKey::from_secret(secret);
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &json!({ "iat": now + skew }), &key).unwrap()
}

struct Client {
    http: reqwest::Client,
    eth: String,
    engine: String,
    secret: [u8; 32],
}

impl Client {
    fn new(devnet: &Devnet) -> Self {
        let http = reqwest::Client::new();
        Self { http, eth: devnet.l2_url(), engine: devnet.engine_url(), secret: devnet.jwt_secret() }
    }

    async fn call(&self, endpoint: &str, method: &str, params: &Value) -> Value {
        let url = if endpoint == "engine" { &self.engine } else { &self.eth };
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let mut request = self.http.post(url).json(&body);
        if endpoint == "engine" {
            request = request.bearer_auth(token(&self.secret, 0));
        }
        let mut reply: Value = request.send().await.unwrap().json().await.unwrap();
        let reply = reply.as_object_mut().unwrap();
        reply.retain(|key, _| key == "result" || key == "error");
        Value::Object(reply.clone())
    }

    async fn heads(&self) -> Value {
        let mut heads = json!({});
        for tag in ["latest", "safe", "finalized"] {
            let reply = self.call("eth", "eth_getBlockByNumber", &json!([tag, false])).await;
            heads[tag] = match reply.get("error") {
                Some(error) => error.clone(),
                None => json!([reply["result"]["number"], reply["result"]["hash"]]),
            };
        }
        heads
    }
}

/// What the recording did between two entries, in our node's terms.
fn step_between(devnet: &Devnet, name: &str, oracle: &Oracle) {
    let write_all = |world: &mut World, last: u64| {
        let mut parent = world.node.at(0).map(|block| block.hash());
        for number in 1..=last {
            let mut block = (&oracle.at(number).unwrap().as_new_block()).into();
            let data: &mut morph_deriver::devnet::node::SafeL2Data = &mut block;
            data.parent_hash = parent.take();
            world.node.new_safe_l2_block(&block).unwrap();
        }
    };
    match name {
        "no parentHash, number not head + 1" => devnet.with(|world| write_all(world, 60)),
        "an L1 message left out: accepted" => devnet.with(|world| write_all(world, 126)),
        "the whole chain derived from L1 content: every hash equals the sequencer's" => {
            devnet.with(|world| write_all(world, 126));
        }
        "the same content once more, below the head" => devnet.with(|world| {
            let (safe, finalized) = (oracle.at(100).unwrap().hash(), oracle.at(90).unwrap().hash());
            world.node.set_block_tags(safe, finalized).unwrap();
        }),
        "repaired" | "a second fresh node, whole chain written, tags set" => devnet.with(|world| {
            write_all(world, 126);
            let (safe, finalized) = (oracle.at(100).unwrap().hash(), oracle.at(90).unwrap().hash());
            world.node.set_block_tags(safe, finalized).unwrap();
        }),
        "after a clean restart: safe fell to finalized" => devnet.with(|world| {
            world.node.moods.archive = false;
            world.node.restart();
        }),
        "after kill -9: the head fell to genesis, finalized stayed, safe fell to finalized" => {
            devnet.with(|world| world.node.kill(0));
        }
        _ => {}
    }
}

/// Hashes in `recorded` of blocks whose execution only the real node knows, replaced by ours.
fn translate(value: &Value, ours: &HashMap<String, String>) -> Value {
    let mut text = value.to_string();
    for (theirs, our) in ours {
        text = text.replace(theirs, our);
    }
    serde_json::from_str(&text).unwrap()
}

#[tokio::test]
async fn the_execution_node_answers_as_recorded() {
    let dir = vectors();
    let oracle = Arc::new(Oracle::load(&dir.join("recorded/l2")).unwrap());
    let answers: Vec<Value> =
        serde_json::from_str(&std::fs::read_to_string(dir.join("recorded/l2/answers.json")).unwrap()).unwrap();
    let world = WorldOptions { oracle: Some(Arc::clone(&oracle)), ..WorldOptions::default() };
    let devnet = Devnet::start(DevnetOptions { world, ..DevnetOptions::default() }).await.unwrap();
    let client = Client::new(&devnet);
    // Content that the recorded chain does not have: the real hash is the machine's, ours the simulation's.
    let mut ours: HashMap<String, String> = HashMap::new();
    let orphan = "0x973edec8b48f3d15c357d99f2d24f1f1c3a6d8d6417b706c0f8a9760a3608805";
    let (mut compared, mut simulated) = (0, 0);
    for answer in &answers {
        let name = answer["name"].as_str().unwrap();
        step_between(&devnet, name, &oracle);
        if name.starts_with("safe on a block that is not canonical") {
            // The recording made this orphan between two entries: a sibling of the head.
            let hash = devnet.with(|world| {
                let head = world.node.head();
                let mut data = (&head.as_new_block()).into();
                let block: &mut morph_deriver::devnet::node::SafeL2Data = &mut data;
                block.timestamp += 1;
                let sibling = world.node.write_unseen(&data).unwrap();
                let back = (&head.as_new_block()).into();
                world.node.write_unseen(&back).unwrap();
                sibling.hash()
            });
            ours.insert(orphan.to_owned(), format!("{hash:?}"));
        }
        if let Some(heads) = answer.get("heads") {
            assert_eq!(client.heads().await, translate(heads, &ours), "{name}");
            compared += 1;
            continue;
        }
        if let Some(status) = answer.get("http_status") {
            check_http(&devnet, &client, name, status, answer).await;
            compared += 1;
            continue;
        }
        let params = translate(&answer["params"], &ours);
        let endpoint = answer["endpoint"].as_str().unwrap();
        let mut reply = client.call(endpoint, answer["method"].as_str().unwrap(), &params).await;
        let mut expected = translate(&answer["reply"], &ours);
        if name == "an L1 message left out: accepted" {
            // Executed and made the head; what comes out of it is the simulation's.
            for key in ["stateRoot", "transactionsRoot", "receiptsRoot", "logsBloom", "gasUsed", "hash"] {
                expected["result"][key] = Value::Null;
                reply["result"][key] = Value::Null;
            }
            simulated += 1;
        }
        assert_eq!(reply, expected, "{name}");
        compared += 1;
    }
    assert_eq!(compared, answers.len());
    assert_eq!(simulated, 1);
}

async fn check_http(devnet: &Devnet, client: &Client, name: &str, status: &Value, answer: &Value) {
    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": [] });
    let engine = client.http.post(devnet.engine_url()).json(&call);
    let request = match name {
        "no token" => engine,
        "malformed token" => engine.bearer_auth("nonsense"),
        "token 120 s old" => engine.bearer_auth(token(&client.secret, -120)),
        "token 120 s ahead" => engine.bearer_auth(token(&client.secret, 120)),
        "JSON-RPC batch of 1001 requests (1000 are served)" => {
            let ok = client.http.post(devnet.l2_url()).json(&vec![call.clone(); 1000]).send().await.unwrap();
            assert_eq!(ok.json::<Vec<Value>>().await.unwrap().len(), 1000);
            client.http.post(devnet.l2_url()).json(&vec![call; 1001])
        }
        other => panic!("no such step: {other}"),
    };
    let response = request.send().await.unwrap();
    assert_eq!(json!(response.status().as_u16()), *status, "{name}");
    let (body, expected) = (response.text().await.unwrap(), answer["body"].as_str().unwrap());
    match serde_json::from_str::<Value>(expected) {
        Ok(expected) => assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), expected, "{name}"),
        Err(_) => assert_eq!(body, expected, "{name}"),
    }
    let wrong = client.http.post(devnet.engine_url()).json(&json!({})).bearer_auth(token(&[7; 32], 0));
    assert_eq!(wrong.send().await.unwrap().text().await.unwrap(), "signature is invalid\n");
}

async fn rpc(url: &str, method: &str, params: Value) -> Value {
    let body = json!({ "jsonrpc": "2.0", "id": 7, "method": method, "params": params });
    let reply = reqwest::Client::new().post(url).json(&body).send().await.unwrap();
    reply.json::<Value>().await.unwrap()
}

/// Reads every CommitBatch over HTTP, decodes calldata and blobs, and holds them against the sequencer's blocks.
async fn check_batches(devnet: &Devnet) -> usize {
    let l1 = devnet.l1_url();
    let (rollup, head) = devnet.with(|world| (world.l1.rollup, world.l1.head()));
    let topic = "0x2c32d4ae151744d0bf0b9464a3e897a1d17ed2f1af71f7c9a75f12ce0d28238f";
    let filter =
        json!([{ "address": rollup, "fromBlock": "0x0", "toBlock": format!("0x{head:x}"), "topics": [topic] }]);
    let logs = rpc(&l1, "eth_getLogs", filter).await;
    let batches = devnet.with(|world| world.batches.clone());
    let mut checked = 0;
    for log in logs["result"].as_array().unwrap() {
        let hash = parse_hash(&log["topics"][2]).unwrap();
        let Some(batch) = batches.iter().find(|batch| batch.hash == hash) else { continue };
        let tx = rpc(&l1, "eth_getTransactionByBlockHashAndIndex", json!([log["blockHash"], log["transactionIndex"]]))
            .await["result"]
            .clone();
        assert_eq!(tx["hash"], log["transactionHash"]);
        let Ok(commit) = decode_commit(&parse_data(&tx["input"]).unwrap()) else { continue };
        let mut hashes: Vec<B256> =
            tx["blobVersionedHashes"].as_array().into_iter().flatten().map(|h| parse_hash(h).unwrap()).collect();
        if hashes.is_empty() {
            hashes = devnet.with(|world| {
                let old = world.reverted.iter().rev().find(|old| old.index == batch.index);
                old.map(|old| old.blobs.iter().map(|blob| blob.hash).collect()).unwrap_or_default()
            });
        }
        let popped: Vec<B256> = devnet.with(|world| {
            let before = batch.header.total_l1_message_popped - batch.header.l1_message_popped;
            let messages = world.l1.messages().skip(before as usize).take(batch.header.l1_message_popped as usize);
            messages.map(|message| message.hash).collect()
        });
        assert_eq!(rebuild(&commit, &hashes, &popped).unwrap().hash(), hash, "batch {}", batch.index);
        let block = rpc(&l1, "eth_getBlockByHash", json!([log["blockHash"], false])).await["result"].clone();
        let time = u64::from_str_radix(&block["timestamp"].as_str().unwrap()[2..], 16).unwrap();
        let slot = devnet.with(|world| (time - world.beacon.genesis_time) / 12);
        let url = format!("{}/eth/v1/beacon/blobs/{slot}", devnet.beacon_url());
        let served: Value = reqwest::get(url).await.unwrap().json().await.unwrap();
        if commit.form == CommitForm::CommitBatch && commit.contexts.is_none() {
            let blobs: Vec<Blob> = served["data"]
                .as_array()
                .unwrap()
                .iter()
                .map(|blob| Blob::new(parse_data(blob).unwrap()).unwrap())
                .collect();
            let contents = decode_contents(&blobs).unwrap();
            let expected: Vec<_> = devnet.with(|world| {
                (batch.first..=batch.last)
                    .map(|number| content_of(&world.sequencer.node.at(number).unwrap()).unwrap())
                    .collect()
            });
            assert_eq!(contents, expected, "batch {}", batch.index);
        }
        checked += 1;
    }
    checked
}

#[tokio::test]
async fn batches_of_every_form_fit_their_events() {
    let devnet = Devnet::start(DevnetOptions::default()).await.unwrap();
    devnet.with(|world| {
        world.produce(6).unwrap();
        // Two blobs: three blocks of hardly compressible calldata.
        for _ in 0..3 {
            world.build_planned(&BlockPlan { txs: 4, noise: 20_000, withdrawals: 1, messages: 0 }).unwrap();
        }
        let big = world.commit(BatchSpec::default()).unwrap();
        assert_eq!(big.blobs.len(), 2);
        world.mine(1);
        for version in [1, 0] {
            world.build(3).unwrap();
            world.commit(BatchSpec { version: Some(version), ..BatchSpec::default() }).unwrap();
            world.mine(1);
        }
        for _ in 0..72 {
            world.build_planned(&BlockPlan::empty()).unwrap();
        }
        world.commit(BatchSpec { compression: Compression::Level(19), ..BatchSpec::default() }).unwrap();
        world.mine(1);
        world.build(2).unwrap();
        world.commit(BatchSpec { forward: Some(Forward { outer_input: None }), ..BatchSpec::default() }).unwrap();
        world.mine(1);
        for form in [CommitForm::LegacyContexts, CommitForm::LegacySkipBitmap, CommitForm::CommitBatchWithProof] {
            world.build(2).unwrap();
            world.commit(BatchSpec { form: Some(form), ..BatchSpec::default() }).unwrap();
            world.mine(1);
        }
        world.finalize(3).unwrap();
        let last = world.batches.last().unwrap().index;
        world.revert(last).unwrap();
        world.mine(1);
        world.recommit_state().unwrap();
        world.mine(1);
    });
    // All nine but the forwarded one, whose calldata only the trace shows; the last one twice, for `commitState` over
    // the same blocks has the hash of the reverted commit.
    assert_eq!(check_batches(&devnet).await, 9);
    let forwarded = devnet.with(|world| world.batches[5].tx);
    let trace = rpc(&devnet.l1_url(), "debug_traceTransaction", json!([forwarded, { "tracer": "callTracer" }])).await;
    let inner = parse_data(&trace["result"]["calls"][1]["input"]).unwrap();
    assert!(decode_commit(&inner).is_ok());
    let unknown = rpc(&devnet.l1_url(), "eth_blobBaseFee", json!([])).await;
    assert_eq!(unknown["error"]["code"], json!(-32601));
}

#[tokio::test]
async fn a_real_batch_becomes_a_chain() {
    let dir = vectors();
    let blobs: Vec<Blob> = [1, 2]
        .map(|k| {
            let text = std::fs::read_to_string(dir.join(format!("blobs/batch-54334/blob-{k}.hex"))).unwrap();
            Blob::new(parse_data(&json!(text.trim())).unwrap()).unwrap()
        })
        .to_vec();
    let contents = decode_contents(&blobs).unwrap();
    let world = WorldOptions { anchor: Some(23_496_378), ..WorldOptions::default() };
    let devnet = Devnet::start(DevnetOptions { world, ..DevnetOptions::default() }).await.unwrap();
    let batch = devnet.with(|world| world.produce_from(&contents, Some(blobs)).unwrap());
    assert_eq!((batch.index, batch.first, batch.last), (1, 23_496_379, 23_496_977));
    assert_eq!(check_batches(&devnet).await, 1);
    devnet.with(|world| {
        world.sync();
        world.fork_at(23_496_500, ForkShape::OtherTransaction).unwrap();
        assert_eq!(world.node.head().number(), 23_496_977);
        assert_ne!(world.node.head().hash(), world.sequencer.node.head().hash());
        assert_eq!(world.node.at(23_496_499).unwrap().hash(), world.expected(23_496_499).unwrap().hash);
        world.sync();
        assert_eq!(world.node.head().hash(), world.sequencer.node.head().hash());
    });
}

#[tokio::test]
async fn faults_and_hooks_strike_when_asked() {
    let devnet = Devnet::start(DevnetOptions { l1_endpoints: 2, ..DevnetOptions::default() }).await.unwrap();
    devnet.with(|world| world.mine(20));
    devnet.fault(Server::L1(0), Rule::on("eth_blockNumber", Fault::RateLimited(Some(3))).times(1));
    let post = || {
        let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "eth_blockNumber", "params": [] });
        reqwest::Client::new().post(devnet.l1_url()).json(&call).send()
    };
    let limited = post().await.unwrap();
    assert_eq!((limited.status().as_u16(), limited.headers()["retry-after"].to_str().unwrap()), (429, "3"));
    assert_eq!(post().await.unwrap().status(), 200);
    devnet.fault(Server::L1(0), Rule::always(Fault::Drop).times(1));
    let dropped = match post().await {
        Ok(response) => response.bytes().await.map(drop),
        Err(error) => Err(error),
    };
    assert!(dropped.is_err());
    let before = rpc(&devnet.l1_url(), "eth_getBlockByNumber", json!(["latest", false])).await;
    devnet.on_call(Server::L1(0), "eth_getBlockByNumber", 1, |world| {
        world.reorg(3);
        world.mine(3);
    });
    let after = rpc(&devnet.l1_url(), "eth_getBlockByNumber", json!(["latest", false])).await;
    assert_eq!(before["result"]["number"], after["result"]["number"]);
    assert_ne!(before["result"]["hash"], after["result"]["hash"]);
    devnet.l1_knobs(1, |knobs| knobs.head = Some(5));
    let lagging = rpc(&devnet.url(Server::L1(1)), "eth_blockNumber", json!([])).await;
    assert_eq!(lagging["result"], json!("0x5"));
    let rpc_pause = rpc(&devnet.reactors_url(), "pauseReactors", json!([5])).await;
    assert_eq!(rpc_pause["result"], json!(true));
    assert_eq!((devnet.pauses(), devnet.resumes(), devnet.is_paused()), (1, 0, true));
    assert_eq!(devnet.calls(Server::L1(0), "eth_blockNumber"), 3);
    assert_eq!(devnet.http_requests(Server::L1(1)), 1);
}

#[tokio::test]
async fn a_commit_survives_a_reorg_unchanged() {
    let devnet = Devnet::start(DevnetOptions::default()).await.unwrap();
    devnet.with(|world| {
        let kept = world.produce(3).unwrap();
        let moved = world.produce(3).unwrap();
        let known = world.batches.clone();
        let dropped = world.reorg(1);
        assert_eq!(world.batches.len(), 1);
        assert_eq!(world.l1.last_committed(), kept.index);
        world.mine(2);
        world.resubmit(&dropped, &known).unwrap();
        world.mine(1);
        assert_eq!(world.l1.committed_hash(moved.index), moved.hash);
        assert_eq!(world.batches.len(), 2);
        let (block, ..) = world.l1.find_tx(moved.tx).unwrap();
        assert_eq!(block.header.number, world.l1.head());
    });
    assert_eq!(check_batches(&devnet).await, 2);
}

#[tokio::test]
async fn l2_blocks_read_the_same_as_json_and_as_rlp() {
    use morph_deriver::codec::block::{block_from_json, decode_rlp};
    let devnet = Devnet::start(DevnetOptions::default()).await.unwrap();
    devnet.with(|world| {
        for _ in 0..5 {
            world.tick(4).unwrap();
        }
        world.sync();
        assert!(world.batches.len() >= 3);
    });
    let head = devnet.heads().local;
    assert_eq!(head, devnet.heads().sequencer);
    let l2 = devnet.l2_url();
    for number in 1..=head.number.get() {
        let json = rpc(&l2, "eth_getBlockByNumber", json!([format!("0x{number:x}"), true])).await;
        let rlp = rpc(&l2, "debug_getBlockRlp", json!([number])).await;
        let from_json = block_from_json(&json["result"], |_| None).unwrap();
        let from_rlp = decode_rlp(&parse_data(&rlp["result"]).unwrap()).unwrap();
        assert_eq!(from_json, from_rlp);
        assert_eq!(from_json.header, devnet.with(|world| world.node.at(number).unwrap().header));
    }
    // Logs and calls give the same withdrawal root.
    let passer = "0x5300000000000000000000000000000000000001";
    let filter = json!([{ "address": passer, "fromBlock": "0x1", "toBlock": "latest" }]);
    let logs = rpc(&l2, "eth_getLogs", filter).await;
    let last = logs["result"].as_array().unwrap().last().unwrap()["topics"][3].clone();
    let call = json!([{ "to": passer, "data": "0xd4b9f4fa" }, { "blockHash": head.hash }]);
    assert_eq!(rpc(&l2, "eth_call", call).await["result"], last);
}

#[tokio::test]
async fn the_embedded_node_answers_as_the_ports_promise() {
    use morph_deriver::devnet::embedded::Embedded;
    use morph_deriver::ports::{L2Engine, L2Reader, MessageRoot};
    use morph_deriver::types::L2Number;
    let mut world = World::new(&WorldOptions::default()).unwrap();
    world.build(8).unwrap();
    let blocks: Vec<_> = (1..=8).map(|n| world.sequencer.node.at(n).unwrap().as_new_block()).collect();
    let local = Embedded::new(world.node.clone());
    let snapshot = local.snapshot().await.unwrap();
    assert_eq!((snapshot.head.number.get(), snapshot.safe, snapshot.finalized), (0, None, None));
    let written = local.write_blocks(&blocks[..6]).await.unwrap();
    assert_eq!(written.last().unwrap().l2_ref(), world.expected(6).unwrap());
    let mut broken = blocks[6..].to_vec();
    broken[1].transactions = vec![vec![0x55].into()];
    let stopped = local.write_blocks(&broken).await.unwrap_err();
    assert_eq!(stopped.written.len(), 1);
    let read = local.blocks(L2Number::new(1), L2Number::new(7)).await.unwrap();
    assert_eq!(read.len(), 7);
    assert!(local.blocks(L2Number::new(1), L2Number::new(8)).await.is_err());
    local.set_tags(Some(read[4].header.hash), None).await.unwrap();
    assert_eq!(local.snapshot().await.unwrap().safe, Some(read[4].header.l2_ref()));
    assert!(local.set_tags(None, Some(B256::repeat_byte(1))).await.is_err());
    let root = local.message_root(read[6].header.l2_ref()).await.unwrap();
    assert_eq!(root, MessageRoot::Root(world.sequencer.node.at(7).unwrap().withdrawal_root.unwrap()));
    local.node().kill(2);
    assert_eq!(local.message_root(read[6].header.l2_ref()).await.unwrap(), MessageRoot::Pruned);
    assert!(local.header(L2Number::new(7)).await.unwrap().is_some());
}

#[test]
fn the_same_seed_makes_the_same_network() {
    let make = |seed| {
        let mut world = World::new(&WorldOptions { seed, ..WorldOptions::default() }).unwrap();
        (0..6).for_each(|_| world.tick(5).unwrap());
        (world.l1.head_block().unwrap().hash, world.sequencer.node.head().hash())
    };
    assert_eq!(make(3), make(3));
    assert_ne!(make(3), make(4));
}

#[test]
fn every_fork_shape_parts_from_the_sequencer() {
    let mut world = World::new(&WorldOptions::default()).unwrap();
    world.enqueue(3).unwrap();
    world.mine(1);
    world.build_planned(&BlockPlan { txs: 2, messages: 2, ..BlockPlan::default() }).unwrap();
    world.build_planned(&BlockPlan { txs: 2, noise: 9, messages: 1, withdrawals: 1 }).unwrap();
    world.build(4).unwrap();
    let shapes = [
        ForkShape::OtherTransaction,
        ForkShape::ExtraTransaction,
        ForkShape::MissingTransaction,
        ForkShape::Bulky,
        ForkShape::BaseFee,
        ForkShape::GasLimit,
        ForkShape::Timestamp,
        ForkShape::ForgedL1Message,
        ForkShape::MissingL1Messages,
    ];
    for shape in shapes {
        world.sync();
        world.fork_at(2, shape).unwrap();
        assert_eq!(world.node.at(1).unwrap().l2_ref(), world.expected(1).unwrap(), "{shape:?}");
        assert_ne!(world.node.at(2).unwrap().l2_ref(), world.expected(2).unwrap(), "{shape:?}");
        assert_eq!(world.node.head().number(), 6, "{shape:?}");
    }
    world.sync();
    world.truncate_to(3);
    assert_eq!(world.node.head().l2_ref(), world.expected(3).unwrap());
    world.grow(2);
    assert_eq!(world.node.head().l2_ref(), world.expected(5).unwrap());
    world.fork_at(3, ForkShape::Timestamp).unwrap();
    world.truncate_to(4);
    assert_ne!(world.node.head().l2_ref(), world.expected(4).unwrap());
    assert!(world.node.writes().is_empty());
}

#[test]
fn a12_a_long_empty_l1_is_quickly_made() {
    let mut world = World::new(&WorldOptions::default()).unwrap();
    let started = std::time::Instant::now();
    world.mine(100_000);
    assert_eq!(world.l1.head(), 100_001);
    assert!(started.elapsed() < std::time::Duration::from_secs(60), "{:?}", started.elapsed());
}
