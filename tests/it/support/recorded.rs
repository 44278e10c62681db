//! `recorded/` of the real data (tests/vectors), a whole small network, as L1 JSON-RPC and beacon API over HTTP.
//!
//! What a worker must be configured with: L1 chain id [`L1_CHAIN_ID`], L2 chain id [`L2_CHAIN_ID`], the contracts of
//! [`Recording::rollup`] and [`Recording::queue`], beacon genesis [`GENESIS_TIME`], first L1 block 0, the hash of L2 block
//! 0, no switch time. The beacon server has no `config/spec` (404, as recorded), so the seconds of a slot must be
//! configured: [`SLOT_SECONDS`].
//!
//! The recorded L1 blocks are closer than a slot (block 15 at genesis + 19 s, 16 at + 28 s, 17 at + 33 s). So the
//! server gives, for a slot, the blobs of *all* L1 blocks whose timestamp falls into it: at most three here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use morph_deriver::types::{B256, keccak256};
use serde_json::{Map, Value, json};

use super::server::{FakeServer, HttpReply, RpcResult, lock};
use super::{bytes, hash, hex_bytes, hex_quantity, quantity, vectors};

/// L1 chain id of the recorded network.
pub const L1_CHAIN_ID: u64 = 900;
/// L2 chain id of the recorded network.
pub const L2_CHAIN_ID: u64 = 53077;
/// Beacon genesis, seconds since the Unix epoch.
pub const GENESIS_TIME: u64 = 1_763_600_000;
/// The last recorded L1 block.
pub const L1_END: u64 = 36;
/// Seconds of a slot.
pub const SLOT_SECONDS: u64 = 12;

const COMMIT: &str = "0x2c32d4ae151744d0bf0b9464a3e897a1d17ed2f1af71f7c9a75f12ce0d28238f";
const REVERT: &str = "0x00cae2739091badfd91c373f0a16cede691e0cd25bb80cff77dd5caeb4710146";
const FINALIZE: &str = "0x26ba82f907317eedc97d0cbef23de76a43dd6edb563bdb6e9407645b950a7a2d";
const QUEUE: &str = "0x69cfcb8e6d4192b8aba9902243912587f37e550d75c1fa801491fce26717f37e";

/// One batch of `batches.json`.
#[derive(Clone, Debug)]
pub struct RecordedBatch {
    /// Index in the Rollup contract.
    pub index: u64,
    /// First L2 block.
    pub first: u64,
    /// Last L2 block.
    pub last: u64,
    /// The header's bytes.
    pub header: Vec<u8>,
    /// Its keccak.
    pub hash: B256,
    /// The commit's transaction; none for the genesis batch.
    pub tx: Option<B256>,
    /// The blobs' versioned hashes.
    pub blob_hashes: Vec<B256>,
}

/// Everything recorded, in memory. A test may change its own copy ([`RecordedNetwork::edit`]).
#[derive(Clone, Debug)]
pub struct Recording {
    /// Rollup contract.
    pub rollup: String,
    /// L1MessageQueue contract.
    pub queue: String,
    /// Standing batches at the end, index 0 (genesis) first.
    pub standing: Vec<RecordedBatch>,
    /// The two that were reverted.
    pub reverted: Vec<RecordedBatch>,
    /// L1 headers, by number.
    pub headers: Vec<Value>,
    /// Logs of both contracts, in order.
    pub logs: Vec<Value>,
    /// Transactions by hash.
    pub transactions: Map<String, Value>,
    /// Call traces by transaction hash.
    pub traces: Map<String, Value>,
    /// The contracts' views at the end.
    pub calls: Value,
    /// Blobs by L1 block, in the transaction's order.
    pub blobs: BTreeMap<u64, Vec<Vec<u8>>>,
    /// L2 blocks with full transactions, by number.
    pub l2_blocks: Vec<Value>,
    /// L2 transactions' raw bytes by hash.
    pub l2_raw: BTreeMap<String, Vec<u8>>,
    /// `messageRoot()` by L2 block.
    pub message_roots: Vec<B256>,
    /// AppendMessage logs, in order.
    pub append_logs: Vec<Value>,
}

impl Recording {
    /// The recording, read once a process.
    pub fn load() -> Arc<Self> {
        static READ: OnceLock<Arc<Recording>> = OnceLock::new();
        Arc::clone(READ.get_or_init(|| Arc::new(Self::read(&vectors().join("recorded")))))
    }

    fn read(path: &std::path::Path) -> Self {
        let json = |name: &str| -> Value {
            let text = std::fs::read(path.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        let array = |name: &str| json(name).as_array().expect("an array").clone();
        let object = |name: &str| json(name).as_object().expect("an object").clone();
        let batches = json("batches.json");
        let list = |key: &str| batches[key].as_array().expect("batches").iter().map(batch).collect();
        let blobs = (0..=L1_END)
            .filter(|number| path.join(format!("beacon/blobs-{number}.json")).exists())
            .map(|number| (number, blob_list(&json(&format!("beacon/blobs-{number}.json")))))
            .collect();
        let roots = object("l2/message-roots.json");
        Self {
            rollup: batches["rollup"].as_str().expect("rollup").to_owned(),
            queue: batches["l1_message_queue"].as_str().expect("queue").to_owned(),
            standing: list("standing"),
            reverted: list("reverted"),
            headers: array("l1/headers.json"),
            logs: array("l1/logs.json"),
            transactions: object("l1/transactions.json"),
            traces: object("l1/call-traces.json"),
            calls: json("l1/calls.json"),
            blobs,
            l2_blocks: array("l2/blocks.json"),
            l2_raw: object("l2/raw-transactions.json")
                .into_iter()
                .map(|(key, raw)| (key, bytes(raw.as_str().expect("raw"))))
                .collect(),
            message_roots: (0..roots.len())
                .map(|number| hash(roots[&number.to_string()].as_str().expect("a root")))
                .collect(),
            append_logs: array("l2/append-message-logs.json"),
        }
    }

    /// The L1 block that holds transaction `tx`.
    pub fn l1_block_of(&self, tx: &B256) -> Option<u64> {
        quantity(&self.transactions.get(&hex_bytes(tx))?["blockNumber"])
    }

    /// The raw transactions of L2 block `number`, in order.
    pub fn l2_raw_of(&self, number: u64) -> Vec<Vec<u8>> {
        let block = &self.l2_blocks[usize::try_from(number).expect("a small number")];
        let transactions = block["transactions"].as_array().expect("transactions");
        transactions.iter().map(|tx| self.l2_raw[tx["hash"].as_str().expect("hash")].clone()).collect()
    }

    /// Hash of the recorded L2 block `number`.
    pub fn l2_hash(&self, number: u64) -> B256 {
        hash(self.l2_blocks[usize::try_from(number).expect("a small number")]["hash"].as_str().expect("hash"))
    }

    /// Versioned hash and commitment of each blob of L1 block `number`, in order.
    fn blob_names(&self, number: u64) -> Vec<(String, String)> {
        let in_block = |tx: &&Value| quantity(&tx["blockNumber"]) == Some(number) && tx["type"] == "0x3";
        let texts = |value: &Value| -> Vec<String> {
            let all = value.as_array().map_or(&[] as &[Value], Vec::as_slice);
            all.iter().map(|v| v.as_str().unwrap_or_default().to_owned()).collect()
        };
        let mut found: Vec<&Value> = self.transactions.values().filter(in_block).collect();
        found.sort_by_key(|tx| quantity(&tx["transactionIndex"]));
        let pairs = |tx: &Value| -> Vec<(String, String)> {
            texts(&tx["blobVersionedHashes"]).into_iter().zip(texts(&tx["commitments"])).collect()
        };
        found.into_iter().flat_map(pairs).collect()
    }

    /// The contracts' state after L1 block `number`, by the logs.
    pub fn state_at(&self, number: u64) -> ContractState {
        let mut state = ContractState::default();
        for log in &self.logs {
            let block = quantity(&log["blockNumber"]).expect("a number");
            if block > number {
                break;
            }
            self.apply(&mut state, log, block);
        }
        state
    }

    fn apply(&self, state: &mut ContractState, log: &Value, block: u64) {
        let topic = |place: usize| log["topics"][place].as_str().unwrap_or_default();
        let index = || u64::from_str_radix(topic(1).trim_start_matches("0x").trim_start_matches('0'), 16).unwrap_or(0);
        match topic(0) {
            COMMIT => {
                let index = index();
                let found = hash(topic(2));
                state.committed.insert(index, found);
                state.last_committed = index;
                let batch = self.standing.iter().chain(&self.reverted).find(|batch| batch.hash == found);
                let Some(batch) = batch else { return };
                state.blob_fields.insert(index, B256::from_slice(&batch.header[57..89]));
                let at = quantity(&self.headers[usize::try_from(block).expect("small")]["timestamp"]).expect("time");
                state.data_store.insert(index, [at, at + 60, batch.last, 1]);
            }
            REVERT => {
                let index = index();
                state.committed.remove(&index);
                state.data_store.remove(&index);
                state.last_committed = state.last_committed.min(index.saturating_sub(1));
            }
            FINALIZE => {
                let index = index();
                state.last_finalized = index;
                if let Some(before) = index.checked_sub(1) {
                    state.blob_fields.remove(&before);
                    state.data_store.remove(&before);
                }
            }
            QUEUE => {
                let next = state.messages;
                state.messages = next + 1;
            }
            _ => {}
        }
    }
}

/// The contracts' state as far as the logs show it.
#[derive(Clone, Debug, Default)]
pub struct ContractState {
    /// `committedBatches`, without the zero ones.
    pub committed: BTreeMap<u64, B256>,
    /// `lastCommittedBatchIndex`.
    pub last_committed: u64,
    /// `lastFinalizedBatchIndex`.
    pub last_finalized: u64,
    /// `batchBlobVersionedHashes`, without the zero ones.
    pub blob_fields: BTreeMap<u64, B256>,
    /// `batchDataStore`, without the zero ones.
    pub data_store: BTreeMap<u64, [u64; 4]>,
    /// Messages in the queue.
    pub messages: u64,
}

fn batch(value: &Value) -> RecordedBatch {
    let text = |key: &str| value[key].as_str().unwrap_or_default();
    let number = |key: &str| value[key].as_u64().expect("a number");
    RecordedBatch {
        index: number("Index"),
        first: number("First"),
        last: number("Last"),
        header: bytes(text("Header")),
        hash: hash(text("Hash")),
        tx: (!text("Tx").is_empty()).then(|| hash(text("Tx"))),
        blob_hashes: value["BlobHashes"]
            .as_array()
            .map(|all| all.iter().map(|h| hash(h.as_str().expect("a hash"))).collect())
            .unwrap_or_default(),
    }
}

fn blob_list(answer: &Value) -> Vec<Vec<u8>> {
    answer["data"].as_array().expect("data").iter().map(|blob| bytes(blob.as_str().expect("a blob"))).collect()
}

/// What a test may set of the served network.
#[derive(Clone, Debug)]
struct Shown {
    head: u64,
    safe: Option<u64>,
    finalized: Option<u64>,
    traces: bool,
    archive: bool,
    chain_id: u64,
    log_range_limit: Option<u64>,
    blobs: bool,
    sidecars: bool,
}

struct State {
    recording: Recording,
    shown: Shown,
}

/// The recorded L1 and beacon node, served.
pub struct RecordedNetwork {
    /// L1 JSON-RPC.
    pub l1: FakeServer,
    /// Beacon API.
    pub beacon: FakeServer,
    state: Arc<Mutex<State>>,
}

impl RecordedNetwork {
    /// Serves the whole recording.
    pub fn start() -> Self {
        Self::with(Recording::load().as_ref().clone())
    }

    /// Serves `recording`.
    pub fn with(recording: Recording) -> Self {
        let shown = Shown {
            head: L1_END,
            safe: None,
            finalized: None,
            traces: true,
            archive: true,
            chain_id: L1_CHAIN_ID,
            log_range_limit: None,
            blobs: true,
            sidecars: false,
        };
        let state = Arc::new(Mutex::new(State { recording, shown }));
        Self { l1: serve_l1(&state), beacon: serve_beacon(&state), state }
    }

    /// A second L1 endpoint on the same chain, with faults of its own.
    pub fn another_l1(&self) -> FakeServer {
        serve_l1(&self.state)
    }

    /// Changes what is served. Blocks are left as they are: their hashes are the recorded ones unless changed too.
    pub fn edit(&self, change: impl FnOnce(&mut Recording)) {
        change(&mut lock(&self.state).recording);
    }

    /// A copy of what is served.
    pub fn recording(&self) -> Recording {
        lock(&self.state).recording.clone()
    }

    /// Rollup contract and L1MessageQueue contract of what is served.
    pub fn contracts(&self) -> (String, String) {
        let state = lock(&self.state);
        (state.recording.rollup.clone(), state.recording.queue.clone())
    }

    fn set(&self, change: impl FnOnce(&mut Shown)) {
        change(&mut lock(&self.state).shown);
    }

    /// The newest L1 block from now on. What lies above it is unknown to the node, logs and state included.
    pub fn set_head(&self, number: u64) {
        assert!(number <= L1_END, "no L1 block above {L1_END} is recorded");
        self.set(|shown| shown.head = number);
    }

    /// The `safe` tag; none: the head.
    pub fn set_safe(&self, number: Option<u64>) {
        self.set(|shown| shown.safe = number);
    }

    /// The `finalized` tag; none: the head.
    pub fn set_finalized(&self, number: Option<u64>) {
        self.set(|shown| shown.finalized = number);
    }

    /// Whether there is `debug_traceTransaction`.
    pub fn set_traces(&self, offered: bool) {
        self.set(|shown| shown.traces = offered);
    }

    /// Whether `eth_call` answers below the head.
    pub fn set_archive(&self, archive: bool) {
        self.set(|shown| shown.archive = archive);
    }

    /// Another chain id.
    pub fn set_chain_id(&self, chain_id: u64) {
        self.set(|shown| shown.chain_id = chain_id);
    }

    /// How many blocks one `eth_getLogs` may span (inclusive count); none: any.
    pub fn set_log_range_limit(&self, blocks: Option<u64>) {
        self.set(|shown| shown.log_range_limit = blocks);
    }

    /// Which of the two blob endpoints there are: `blobs` (else 404), `blob_sidecars` (else 410).
    pub fn set_blob_endpoints(&self, blobs: bool, sidecars: bool) {
        self.set(|shown| {
            shown.blobs = blobs;
            shown.sidecars = sidecars;
        });
    }

    /// Gives every L1 block from `from` on another hash, in headers, logs and transactions: a reorg that keeps what is
    /// in them. `salt` makes one reorg differ from another. To drop or move a batch, [`edit`](Self::edit) the logs too.
    pub fn reorg(&self, from: u64, salt: u8) {
        self.edit(|recording| {
            let mut renamed = BTreeMap::new();
            for header in recording.headers.iter().skip(usize::try_from(from).expect("small")) {
                let old = header["hash"].as_str().expect("hash").to_owned();
                renamed.insert(old.clone(), hex_bytes(keccak256([bytes(&old), vec![salt]].concat())));
            }
            let rename = |value: &mut Value| {
                if let Some(new) = value.as_str().and_then(|old| renamed.get(old)) {
                    *value = json!(new);
                }
            };
            for header in &mut recording.headers {
                rename(&mut header["hash"]);
                rename(&mut header["parentHash"]);
            }
            recording.logs.iter_mut().for_each(|log| rename(&mut log["blockHash"]));
            recording.transactions.values_mut().for_each(|tx| rename(&mut tx["blockHash"]));
        });
    }
}

fn serve_l1(state: &Arc<Mutex<State>>) -> FakeServer {
    let state = Arc::clone(state);
    FakeServer::json_rpc(move |method, params| lock(&state).rpc(method, params))
}

fn serve_beacon(state: &Arc<Mutex<State>>) -> FakeServer {
    let state = Arc::clone(state);
    FakeServer::http(move |path| lock(&state).beacon(path))
}

fn param(params: &[Value], place: usize) -> &Value {
    params.get(place).unwrap_or(&Value::Null)
}

fn refused(code: i64, text: impl Into<String>) -> (i64, String) {
    (code, text.into())
}

impl State {
    fn rpc(&self, method: &str, params: &[Value]) -> RpcResult {
        match method {
            "eth_chainId" => Ok(json!(hex_quantity(self.shown.chain_id))),
            "net_version" => Ok(json!(self.shown.chain_id.to_string())),
            "web3_clientVersion" => Ok(json!("recorded/l1")),
            "eth_syncing" => Ok(json!(false)),
            "eth_blockNumber" => Ok(json!(hex_quantity(self.shown.head))),
            "eth_getBlockByNumber" => {
                let number = self.number(param(params, 0))?;
                Ok(self.header(number, param(params, 1) == &json!(true)))
            }
            "eth_getBlockByHash" => {
                let number = self.number_of(param(params, 0));
                Ok(number.map_or(Value::Null, |number| self.header(number, param(params, 1) == &json!(true))))
            }
            "eth_getLogs" => self.logs(param(params, 0)),
            "eth_getTransactionByHash" => {
                let tx = param(params, 0).as_str().and_then(|hash| self.recording.transactions.get(hash));
                Ok(tx.filter(|tx| self.is_known(&tx["blockNumber"])).cloned().unwrap_or(Value::Null))
            }
            "eth_getTransactionByBlockHashAndIndex" => {
                let Some(number) = self.number_of(param(params, 0)) else { return Ok(Value::Null) };
                Ok(self.transaction_at(number, param(params, 1)))
            }
            "eth_getTransactionByBlockNumberAndIndex" => {
                let number = self.number(param(params, 0))?;
                Ok(self.transaction_at(number, param(params, 1)))
            }
            "eth_getCode" => {
                let to = param(params, 0).as_str().unwrap_or_default().to_lowercase();
                let has = to == self.recording.rollup || to == self.recording.queue;
                Ok(json!(if has { "0x6080604052" } else { "0x" }))
            }
            "eth_call" => self.call(param(params, 0), param(params, 1)),
            "debug_traceTransaction" if self.shown.traces => self.trace(param(params, 0)),
            _ => Err(refused(-32601, format!("the method {method} does not exist/is not available"))),
        }
    }

    /// The number that a block parameter names.
    fn number(&self, block: &Value) -> Result<u64, (i64, String)> {
        match block.as_str() {
            Some("latest" | "pending") => Ok(self.shown.head),
            Some("safe") => Ok(self.shown.safe.unwrap_or(self.shown.head)),
            Some("finalized") => Ok(self.shown.finalized.unwrap_or(self.shown.head)),
            Some("earliest") => Ok(0),
            Some(_) => quantity(block).ok_or_else(|| refused(-32602, "invalid argument 0: hex string")),
            None => Err(refused(-32602, "invalid argument 0: block number")),
        }
    }

    fn number_of(&self, hash: &Value) -> Option<u64> {
        let place = self.recording.headers.iter().position(|header| &header["hash"] == hash)?;
        u64::try_from(place).ok().filter(|number| *number <= self.shown.head)
    }

    fn is_known(&self, number: &Value) -> bool {
        quantity(number).is_some_and(|number| number <= self.shown.head)
    }

    fn header(&self, number: u64, full: bool) -> Value {
        if number > self.shown.head {
            return Value::Null;
        }
        let found = usize::try_from(number).ok().and_then(|number| self.recording.headers.get(number));
        let Some(mut header) = found.cloned() else { return Value::Null };
        let transactions = header["transactions"].as_array_mut().filter(|_| full);
        for tx in transactions.into_iter().flatten() {
            if let Some(whole) = tx.as_str().and_then(|hash| self.recording.transactions.get(hash)) {
                *tx = whole.clone();
            }
        }
        header
    }

    fn transaction_at(&self, number: u64, index: &Value) -> Value {
        let found = self.recording.transactions.values().find(|tx| {
            quantity(&tx["blockNumber"]) == Some(number) && quantity(&tx["transactionIndex"]) == quantity(index)
        });
        found.filter(|_| number <= self.shown.head).cloned().unwrap_or(Value::Null)
    }

    fn logs(&self, filter: &Value) -> RpcResult {
        let (from, to) = if filter["blockHash"].is_string() {
            let number = self.number_of(&filter["blockHash"]).ok_or_else(|| refused(-32000, "unknown block"))?;
            (number, number)
        } else {
            let bound = |key: &str| if filter[key].is_null() { Ok(self.shown.head) } else { self.number(&filter[key]) };
            (bound("fromBlock")?, bound("toBlock")?)
        };
        if from > to {
            return Err(refused(-32000, "invalid block range params"));
        }
        if let Some(limit) = self.shown.log_range_limit
            && to - from + 1 > limit
        {
            return Err(refused(-32005, format!("query exceeds max block range {limit}")));
        }
        let hit = |log: &&Value| {
            let number = quantity(&log["blockNumber"]).unwrap_or(u64::MAX);
            (from..=to.min(self.shown.head)).contains(&number) && log_matches(log, filter)
        };
        Ok(Value::Array(self.recording.logs.iter().filter(hit).cloned().collect()))
    }

    fn trace(&self, tx: &Value) -> RpcResult {
        let hash = tx.as_str().unwrap_or_default();
        if let Some(trace) = self.recording.traces.get(hash) {
            return Ok(trace.clone());
        }
        // A transaction that calls the contract itself: the trace is its own top call.
        let Some(tx) = self.recording.transactions.get(hash) else {
            return Err(refused(-32000, "transaction not found"));
        };
        Ok(json!({"type": "CALL", "from": tx["from"], "to": tx["to"], "input": tx["input"], "value": "0x0",
            "gas": tx["gas"], "gasUsed": "0x5208", "output": "0x"}))
    }

    fn call(&self, call: &Value, block: &Value) -> RpcResult {
        let number = match block {
            Value::Null => self.shown.head,
            Value::Object(named) if named.contains_key("blockHash") => {
                self.number_of(&named["blockHash"]).ok_or_else(|| refused(-32000, "header for hash not found"))?
            }
            Value::Object(named) => self.number(&named["blockNumber"])?,
            other => self.number(other)?,
        };
        if number > self.shown.head {
            return Err(refused(-32000, "header not found"));
        }
        if number < self.shown.head && !self.shown.archive {
            return Err(refused(-32000, "missing trie node 00 (path ) state 0x00 is not available"));
        }
        let to = call["to"].as_str().unwrap_or_default().to_lowercase();
        let input = call["data"].as_str().or_else(|| call["input"].as_str()).map(bytes).unwrap_or_default();
        if to != self.recording.rollup && to != self.recording.queue {
            return Ok(json!("0x"));
        }
        let selector = input.get(..4).map(const_hex::encode).unwrap_or_default();
        let argument = input.get(28..36).map_or(0, |word| u64::from_be_bytes(word.try_into().expect("eight bytes")));
        let state = self.recording.state_at(number);
        let at_end = number == L1_END;
        let answer = match (to == self.recording.queue, selector.as_str()) {
            (false, "121dcd50") => word(state.last_committed),
            (false, "059def61") => word(state.last_finalized),
            (false, "2362f03e") => hex_bytes(state.committed.get(&argument).copied().unwrap_or_default()),
            (false, "2a213ba1") => hex_bytes(state.blob_fields.get(&argument).copied().unwrap_or_default()),
            (false, "5ef7a94a") => match self.recording.calls["batchDataStore"][argument.to_string()].as_str() {
                Some(recorded) if at_end => recorded.to_owned(),
                _ => data_store(state.data_store.get(&argument)),
            },
            (true, "ae453cd5") => {
                let known = (argument < state.messages).then(|| argument.to_string());
                let recorded = known.and_then(|key| self.recording.calls["getCrossDomainMessage"][key].as_str());
                recorded.map_or_else(|| word(0), str::to_owned)
            }
            _ => return Err(refused(3, "execution reverted")),
        };
        Ok(json!(answer))
    }

    fn beacon(&self, path: &str) -> HttpReply {
        let (route, query) = path.split_once('?').unwrap_or((path, ""));
        let asked = route.rsplit('/').next().unwrap_or_default();
        if route == "/eth/v1/beacon/genesis" {
            let zero = hex_bytes([0; 32]);
            return ok(&json!({"data": {"genesis_time": GENESIS_TIME.to_string(), "genesis_validators_root": zero,
                "genesis_fork_version": "0x00000000"}}));
        }
        if route == "/eth/v1/config/spec" {
            return (404, Vec::new());
        }
        if route.starts_with("/eth/v1/beacon/blobs/") && self.shown.blobs {
            return self.blobs(asked, query);
        }
        if route.starts_with("/eth/v1/beacon/blob_sidecars/") {
            return if self.shown.sidecars { self.sidecars(asked) } else { error(410, "This endpoint is deprecated.") };
        }
        if route.starts_with("/eth/v2/beacon/blocks/") {
            let Some(blocks) = self.blocks_of_slot(asked) else { return error(404, "Block not found") };
            let commitments: Vec<String> = blocks
                .iter()
                .flat_map(|number| self.recording.blob_names(*number))
                .map(|(_, commitment)| commitment)
                .collect();
            return ok(&json!({"version": "fulu", "data": {"message": {"slot": asked,
                "body": {"blob_kzg_commitments": commitments}}}}));
        }
        error(404, "Not found")
    }

    /// The known L1 blocks of a slot; none if there is none.
    fn blocks_of_slot(&self, asked: &str) -> Option<Vec<u64>> {
        let slot: u64 = asked.parse().ok()?;
        let in_slot = |number: &u64| {
            let header = usize::try_from(*number).ok().and_then(|number| self.recording.headers.get(number));
            let time = header.and_then(|header| quantity(&header["timestamp"]));
            time.is_some_and(|time| time.saturating_sub(GENESIS_TIME) / SLOT_SECONDS == slot)
        };
        let blocks: Vec<u64> = (0..=self.shown.head).filter(in_slot).collect();
        (!blocks.is_empty()).then_some(blocks)
    }

    /// Versioned hash, commitment and bytes of each blob of these blocks. A blob that a test put there has no name of
    /// its own and goes by that of its place.
    fn named_blobs(&self, blocks: &[u64]) -> Vec<(String, String, &Vec<u8>)> {
        let of_block = |number: &u64| {
            let names = self.recording.blob_names(*number);
            let blobs = self.recording.blobs.get(number).map_or(&[] as &[Vec<u8>], Vec::as_slice);
            let named = blobs.iter().enumerate().map(move |(place, blob)| {
                let (versioned, commitment) = names.get(place).cloned().unwrap_or_default();
                (versioned, commitment, blob)
            });
            named.collect::<Vec<_>>()
        };
        blocks.iter().flat_map(of_block).collect()
    }

    fn blobs(&self, asked: &str, query: &str) -> HttpReply {
        let Some(blocks) = self.blocks_of_slot(asked) else { return error(404, "Block not found") };
        let wanted: Vec<&str> = query
            .split('&')
            .filter_map(|pair| pair.strip_prefix("versioned_hashes="))
            .flat_map(|list| list.split([',']))
            .collect();
        let blobs: Vec<String> = self
            .named_blobs(&blocks)
            .into_iter()
            .filter(|(versioned, ..)| wanted.is_empty() || wanted.contains(&versioned.as_str()))
            .map(|(_, _, blob)| hex_bytes(blob))
            .collect();
        ok(&json!({"execution_optimistic": false, "finalized": false, "data": blobs}))
    }

    fn sidecars(&self, asked: &str) -> HttpReply {
        let Some(blocks) = self.blocks_of_slot(asked) else { return error(404, "Block not found") };
        let sidecar = |(place, (_, commitment, blob)): (usize, (String, String, &Vec<u8>))| {
            json!({"index": place.to_string(), "blob": hex_bytes(blob), "kzg_commitment": commitment,
                "kzg_proof": hex_bytes([0xc0; 48])})
        };
        let data: Vec<Value> = self.named_blobs(&blocks).into_iter().enumerate().map(sidecar).collect();
        ok(&json!({"data": data}))
    }
}

fn ok(body: &Value) -> HttpReply {
    (200, body.to_string().into_bytes())
}

fn error(code: u16, message: &str) -> HttpReply {
    (code, json!({"code": code, "message": message}).to_string().into_bytes())
}

/// A number as an ABI word.
pub fn word(number: u64) -> String {
    format!("0x{number:064x}")
}

fn data_store(row: Option<&[u64; 4]>) -> String {
    let words = row.copied().unwrap_or_default().map(|number| format!("{number:064x}"));
    format!("0x{}", words.concat())
}

/// Whether `log` passes `address` and `topics` of `filter`, as `eth_getLogs` reads them.
pub fn log_matches(log: &Value, filter: &Value) -> bool {
    let one_of = |have: &Value, wanted: &Value| match wanted {
        Value::Null => true,
        Value::Array(any) => any.is_empty() || any.iter().any(|one| same_hex(one, have)),
        one => same_hex(one, have),
    };
    let topics = filter["topics"].as_array().map_or(&[] as &[Value], Vec::as_slice);
    let places = topics.iter().enumerate();
    one_of(&log["address"], &filter["address"])
        && places.into_iter().all(|(place, wanted)| wanted.is_null() || one_of(&log["topics"][place], wanted))
}

fn same_hex(a: &Value, b: &Value) -> bool {
    match (a.as_str(), b.as_str()) {
        (Some(a), Some(b)) => a.eq_ignore_ascii_case(b),
        _ => false,
    }
}
