//! Servers that refuse, lie, belong elsewhere or come back (groups J and M), seen from whole flows and the real program.

use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use morph_deriver::codec::block::{self, FullHeader};
use morph_deriver::codec::event::encode_event;
use morph_deriver::codec::transaction::{L1MessageFields, encode_l1_message};
use morph_deriver::decide::binding::CommitFault;
use morph_deriver::decide::stall::{Cause, Reason};
use morph_deriver::devnet::chain::BatchSpec;
use morph_deriver::devnet::faults::{Fault, Rule, Server};
use morph_deriver::devnet::jsonrpc::RpcError;
use morph_deriver::devnet::l1::Forward;
use morph_deriver::devnet::world::WorldOptions;
use morph_deriver::devnet::{Devnet, DevnetOptions};
use morph_deriver::flow::PollEnd;
use morph_deriver::types::{Address, L1EventKind, RawTx, U256};
use serde_json::{Value, json};

use crate::support::hostile::Hostile;
use crate::support::program::{self, Signal, Site};
use crate::support::rig::{Rig, reason};
use crate::support::server::FakeServer;
use crate::support::{hex_bytes, quantity};

/// A devnet with a batch of 8 blocks, and one on it that is committed through another contract.
async fn with_a_forwarded_commit() -> Devnet {
    let world = WorldOptions { finalized_depth: 1000, ..WorldOptions::default() };
    let devnet = Devnet::start(DevnetOptions { world, ..DevnetOptions::default() }).await.unwrap();
    devnet.with(|w| {
        w.produce(8).unwrap();
        w.build(8).unwrap();
        let forward = Some(Forward { outer_input: None });
        w.commit(BatchSpec { forward, ..BatchSpec::default() }).unwrap();
        w.mine(1);
        w.sync();
    });
    devnet
}

#[tokio::test]
async fn m21_a_commit_that_cannot_be_traced_is_a_verdict_that_names_its_transaction() {
    let plan = RpcError { code: -32600, message: "debug_traceTransaction is not in your plan".to_owned() };
    for fault in [Fault::Huge(17 << 20), Fault::Error(plan), Fault::Status(403, "upgrade your plan".to_owned())] {
        let devnet = with_a_forwarded_commit().await;
        let tx = devnet.with(|w| w.batches[1].tx);
        devnet.fault(Server::L1(0), Rule::on("debug_traceTransaction", fault.clone()));
        let mut rig = Rig::on(&devnet).await;
        let report = rig.settle().await;
        assert_eq!(reason(&report), Some(Reason::UnknownCommit), "{fault:?}");
        let PollEnd::Stalled(stall) = &report.end else { panic!("it does not stall") };
        let not_found = Box::new(CommitFault::NotInTrace);
        assert_eq!(stall.cause, Cause::Commit { transaction: tx, fault: not_found });
        assert_eq!(rig.safe(), Some(8));
        devnet.heal(Server::L1(0));
        assert_eq!(rig.settle().await.end, PollEnd::CaughtUp, "{fault:?}");
        assert_eq!(rig.safe(), Some(16));
    }
}

/// Asks every endpoint with a proxy in the environment, as containers often have one.
fn check_through(site: &Site, proxy: &str) -> String {
    let mut command: Command = site.command(&["config", "--check"]);
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        command.env(name, proxy);
    }
    command.env_remove("NO_PROXY").env_remove("no_proxy");
    let output = command.output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn m26_the_engines_token_never_goes_through_a_proxy() {
    let proxy = FakeServer::http(|_| (200, b"{}".to_vec()));
    let devnet = program::devnet(|_| {});
    let mut site = Site::new(&devnet);
    site.set("l1.rpc", vec![String::from("http://l1.invalid:8545/canary")]);
    site.set("l2.engine", "http://engine.invalid:8551");
    let told = check_through(&site, &proxy.url);
    let through = proxy.calls();
    assert!(!through.is_empty(), "the proxy is in force, for L1: {told}");
    for call in through {
        assert_eq!(call.authorization, None, "{} {told}", call.method);
        assert!(!call.method.contains("engine"), "{}", call.method);
    }
    assert!(told.contains("engine.invalid:8551"), "the engine was asked, directly: {told}");
    assert!(!told.contains("canary"));
}

/// Just below what one answer may be long.
const LONG: usize = (16 << 20) - 4096;

/// How much more than idle the worker may take over answers without end, in MiB (M20).
const GROWTH: u64 = 192;

/// Peak resident memory of a process, in MiB.
fn peak_mib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("the line of the peak");
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// `inner` as often as it fits into a long answer, as the elements of a list.
fn dense(inner: &str) -> Bytes {
    let mut text = String::from("[");
    while text.len() + inner.len() + 2 < LONG {
        text.push_str(inner);
        text.push(',');
    }
    text.push_str(inner);
    text.push(']');
    text.into()
}

/// Runs the program to its first rest, lets `strike` begin, and gives by how many MiB its peak rose until `enough`.
fn growth(site: &Site, devnet: &Devnet, strike: impl FnOnce(), enough: impl Fn() -> bool) -> u64 {
    let mut running = site.run();
    let safe = devnet.with(|w| w.batches.last().unwrap().last);
    running.until(|| devnet.heads().safe.is_some_and(|tag| tag.number.get() == safe));
    let process = running.id();
    let idle = peak_mib(process);
    strike();
    running.until(|| enough() || peak_mib(process) > idle + 400);
    let grown = peak_mib(process) - idle;
    running.signal(Signal::Kill);
    grown
}

/// One batch, and a node that holds it.
fn in_step() -> Arc<Devnet> {
    Arc::new(program::devnet(|w| {
        w.produce(4).unwrap();
        w.sync();
    }))
}

/// Texts of the largest size, made once.
struct Texts {
    lists: Bytes,
    header: Bytes,
    zeros: Bytes,
    blocks: Vec<Bytes>,
}

/// What a hostile L2 node gives in place of an answer.
type L2Answer = fn(&str, &Value, &Texts) -> Option<Bytes>;

/// A chain of blocks that are all right but for their size: as long as an answer may be, each with one transaction.
fn large_blocks(devnet: &Devnet, from: u64, count: u64) -> Vec<Bytes> {
    let transaction = RawTx::from([[0x02, 0xfa, 0x7f, 0x00, 0x00].as_slice(), &vec![0x11; 0x7f_0000]].concat());
    let transactions_root = block::transactions_root(std::slice::from_ref(&transaction));
    let mut parent_hash = devnet.with(|w| w.node.at(from - 1).unwrap().l2_ref().hash);
    let mut blocks = Vec::new();
    for number in from..from + count {
        let header = FullHeader { number, parent_hash, transactions_root, ..FullHeader::default() };
        parent_hash = header.hash();
        let raw = block::encode_rlp(&header, std::slice::from_ref(&transaction), block::RawForm::Nested);
        blocks.push(format!("\"{}\"", hex_bytes(raw)).into());
    }
    blocks
}

#[test]
fn m20_an_l2_node_whose_blocks_are_16_mib_each_is_not_held_in_memory() {
    fn is_block(method: &str, params: &Value) -> bool {
        method.starts_with("debug_get") || (method == "eth_getBlockByNumber" && params[1] == true)
    }
    let table: [(&str, u64, L2Answer); 5] = [
        ("dense blocks", 0, |method, params, texts| is_block(method, params).then(|| texts.lists.clone())),
        ("long text", 0, |method, params, texts| is_block(method, params).then(|| texts.zeros.clone())),
        ("dense header", 0, |method, params, texts| {
            (method == "eth_getBlockByNumber" && params[0] == "latest").then(|| texts.header.clone())
        }),
        ("dense syncing", 0, |method, _, texts| (method == "eth_syncing").then(|| texts.lists.clone())),
        ("large blocks", 24, |method, params, texts| {
            let at = params[0].as_u64().or_else(|| quantity(&params[0])).filter(|_| method.starts_with("debug_get"))?;
            texts.blocks.get(usize::try_from(at.checked_sub(5)?).ok()?).cloned()
        }),
    ];
    let lists = dense("[]");
    for (name, large, answer) in table {
        let devnet = in_step();
        let texts = Texts {
            lists: lists.clone(),
            header: [b"{\"transactions\":", lists.as_ref(), b"}"].concat().into(),
            zeros: format!("\"0x{}\"", "0".repeat(LONG - 1000)).into(),
            blocks: large_blocks(&devnet, 5, large),
        };
        let hostile = Hostile::before(devnet.l2_url(), move |method, params| answer(method, params, &texts));
        let mut site = Site::new(&devnet);
        site.set("l2.eth", hostile.url.clone());
        let strike = || {
            hostile.strike();
            devnet.with(|w| {
                w.produce(120).unwrap();
                w.sync();
            });
        };
        let grown = growth(&site, &devnet, strike, || hostile.hits() > 24);
        assert!(grown < GROWTH, "{name}: {grown} MiB more than idle");
    }
}

/// Far longer than one answer may be.
const ENDLESS: usize = 300 << 20;

/// What a hostile L1 node gives in place of an answer, by the method and its parameters.
type L1Answer = Box<dyn Fn(&str, &Value) -> Option<Bytes> + Send + Sync>;

/// One message of the longest answer's size in every block.
fn large_message(devnet: &Devnet, params: &Value) -> Option<Bytes> {
    // Encoded once: 16 MiB take an unoptimised build a second.
    static TEXT: OnceLock<String> = OnceLock::new();
    const INDEX: u64 = 0xdead_beef_dead_beef;
    let number = quantity(&params[0]["fromBlock"])?;
    let hash = devnet.with(|w| w.l1.block(number).map(|block| block.hash))?;
    let text = TEXT.get_or_init(|| {
        let message = encode_l1_message(&L1MessageFields {
            queue_index: INDEX,
            gas_limit: U256::zero(),
            to: Address::zero(),
            value: U256::zero(),
            data: vec![0; LONG / 2 - 2048].into(),
            sender: Address::zero(),
        });
        let (topics, data) = encode_event(&L1EventKind::Message(message));
        let log = json!({
            "address": devnet.queue(), "topics": topics, "data": hex_bytes(data), "blockNumber": "NUMBER",
            "blockHash": "HASH", "logIndex": "0x384", "transactionHash": "HASH", "transactionIndex": "0x0",
            "removed": false,
        });
        Value::from(vec![log]).to_string()
    });
    let index = text.replace(&format!("{INDEX:016x}"), &format!("{number:016x}"));
    Some(index.replace("NUMBER", &format!("{number:#x}")).replace("HASH", &format!("{hash:?}")).into())
}

/// Answers of an L1 node: each row says which, and how many requests must have met one before the peak is read.
fn l1_answers(devnet: &Arc<Devnet>, endless: &Bytes) -> Vec<(&'static str, usize, L1Answer)> {
    let only = |wanted: &'static str, text: Bytes| -> L1Answer {
        Box::new(move |method, _| (method == wanted).then(|| text.clone()))
    };
    let header = Bytes::from(format!("{{\"number\":\"0x1\",\"extraData\":\"0x{}\"}}", "0".repeat(LONG - 4096)));
    let honest_to = devnet.with(|w| w.l1.head());
    let (headers_of, logs_of) = (Arc::clone(devnet), Arc::clone(devnet));
    vec![
        // That a list of logs is read to a bound, `a2_more_logs_than_are_read_at_once_halve_the_range` holds: without it
        // this row grows to 174 MiB in place of 100.
        ("millions of logs", 12, only("eth_getLogs", dense(r#"{"address":"","topics":["","","",""],"data":""}"#))),
        ("endless logs", 12, only("eth_getLogs", endless.clone())),
        ("endless headers", 12, only("eth_getBlockByNumber", endless.clone())),
        ("an endless trace", 1, only("debug_traceTransaction", endless.clone())),
        ("millions of calls", 1, {
            let calls = dense(r#"{"type":"CALL","calls":[]}"#);
            only("debug_traceTransaction", [b"{\"type\":\"CALL\",\"calls\":", calls.as_ref(), b"}"].concat().into())
        }),
        // The requests that show what a range looked like, one by one, each answer as long as it may be.
        ("large headers", 24, {
            let is_inside = move |number| number > honest_to && headers_of.with(|w| number < w.l1.head());
            Box::new(move |method, params| {
                let number = quantity(&params[0]).filter(|_| method == "eth_getBlockByNumber")?;
                is_inside(number).then(|| header.clone())
            })
        }),
        ("large messages", 24, {
            Box::new(move |method, params| (method == "eth_getLogs").then(|| large_message(&logs_of, params)).flatten())
        }),
    ]
}

#[test]
fn m20_p7_an_l1_node_whose_answers_have_no_end_is_not_held_in_memory() {
    let endless: Bytes = format!("\"{}\"", "0".repeat(ENDLESS)).into();
    for row in 0..7 {
        let devnet = in_step();
        let (name, least, answer) = l1_answers(&devnet, &endless).swap_remove(row);
        // Pieces of one block, so that a range is as many answers as it has blocks.
        devnet.l1_knobs(0, |k| k.range_cap = (name == "large messages").then_some(1));
        let hostile = Hostile::before(devnet.l1_url(), answer);
        let mut site = Site::new(&devnet);
        site.set("l1.rpc", vec![hostile.url.clone()]);
        let strike = || {
            hostile.strike();
            devnet.with(|w| {
                w.build(8).unwrap();
                let forward = Some(Forward { outer_input: None });
                w.commit(BatchSpec { forward, ..BatchSpec::default() }).unwrap();
                w.mine(120);
                w.sync();
            });
        };
        // The last one is read to its end.
        let met = std::cell::Cell::new(None);
        let enough = || {
            if hostile.hits() >= least && met.get().is_none() {
                met.set(Some(Instant::now()));
            }
            met.get().is_some_and(|met: Instant| met.elapsed() > Duration::from_secs(2))
        };
        let grown = growth(&site, &devnet, strike, enough);
        println!("{name}: {grown} MiB");
        assert!(grown < GROWTH, "{name}: {grown} MiB more than idle");
    }
}
