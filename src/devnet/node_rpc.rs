//! The simulated execution node's RPC: what each method answers, in the real node's words.
//!
//! Not decided here: what a write, a tag call or a restart does to the node (`node`); HTTP, tokens, latency (`serve`).

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::block::{StoredBlock, message_passer};
use super::client::{Client, Generation};
use super::jsonrpc::{
    BlockId, RpcError, RpcResult, address_matches, data, hash, parse_address, parse_big, parse_block_id, parse_data,
    parse_hash, parse_quantity, quantity, topics_match,
};
use super::node::{Node, SafeL2Data, Side, missing_state};
use super::signing;
use crate::types::{B256, L2Ref, RawTx, keccak};

/// Selector of `messageRoot()`.
const MESSAGE_ROOT: [u8; 4] = [0xd4, 0xb9, 0xf4, 0xfa];

/// What a morph-reth answers on the engine's port.
const RETH_ENGINE_METHODS: [&str; 15] = [
    "engine_newSafeL2Block",
    "engine_setBlockTags",
    "eth_syncing",
    "eth_chainId",
    "eth_blockNumber",
    "eth_call",
    "eth_getCode",
    "eth_getBlockByHash",
    "eth_getBlockByNumber",
    "eth_getBlockReceipts",
    "eth_sendRawTransaction",
    "eth_getTransactionReceipt",
    "eth_getLogs",
    "eth_getProof",
    "engine_appendBatchSignature",
];

/// Blocks of logs that a morph-reth serves at a time.
const RETH_LOG_BLOCKS: u64 = 100_000;

/// Turns go-ethereum's JSON of a transaction into morph-reth's: the first versions' or the newer ones'.
fn show_as_reth(tx: &mut Map<String, Value>, generation: Generation) {
    let kind = tx.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    if generation == Generation::A {
        if let Some(gas) = tx.remove("gas") {
            tx.insert("gasLimit".to_owned(), gas);
        }
        if kind == "0x7e" {
            tx.remove("nonce");
        }
        if kind == "0x7f" {
            let version = tx.get("version").and_then(parse_quantity).unwrap_or_default();
            tx.insert("version".to_owned(), json!(version));
        }
        return;
    }
    if let Some(parity) = tx.get("v").cloned().filter(|_| kind != "0x0") {
        tx.insert("yParity".to_owned(), parity);
    }
}

/// The parameters of `engine_newSafeL2Block` as they come over the wire.
fn safe_l2_data(value: &Value) -> Result<SafeL2Data, RpcError> {
    let field = |name: &str| value.get(name).filter(|value| !value.is_null());
    let missing =
        |name: &str| RpcError::params(format!("invalid argument 0: missing required field '{name}' for SafeL2Data"));
    let bad = |name: &str| {
        RpcError::params(format!("invalid argument 0: json: cannot unmarshal into Go struct field SafeL2Data.{name}"))
    };
    let number = |name: &str| {
        let value = field(name).ok_or_else(|| missing(name))?;
        parse_quantity(value).ok_or_else(|| bad(name))
    };
    let transactions = field("transactions").ok_or_else(|| missing("transactions"))?;
    let transactions = transactions.as_array().ok_or_else(|| bad("transactions"))?;
    Ok(SafeL2Data {
        number: number("number")?,
        gas_limit: number("gasLimit")?,
        base_fee: field("baseFeePerGas")
            .map(|value| parse_big(value).ok_or_else(|| bad("baseFeePerGas")))
            .transpose()?,
        timestamp: number("timestamp")?,
        transactions: transactions
            .iter()
            .map(|tx| parse_data(tx).map(RawTx::from).ok_or_else(|| bad("transactions")))
            .collect::<Result<_, _>>()?,
        batch_hash: field("batchHash").map(|value| parse_hash(value).ok_or_else(|| bad("batchHash"))).transpose()?,
        parent_hash: field("parentHash").map(|value| parse_hash(value).ok_or_else(|| bad("parentHash"))).transpose()?,
    })
}

impl Node {
    /// Answers one JSON-RPC request.
    pub fn call(&mut self, side: Side, method: &str, params: &[Value]) -> RpcResult {
        match method {
            "engine_newSafeL2Block" | "engine_setBlockTags" if side == Side::Eth => Err(self.no_method(method)),
            _ if side == Side::Engine && self.client().is_reth() && !RETH_ENGINE_METHODS.contains(&method) => {
                Err(self.no_method(method))
            }
            "engine_newSafeL2Block" => {
                let first = params.first().ok_or_else(|| RpcError::params("missing value for required argument 0"))?;
                let block = safe_l2_data(first)?;
                let made = self.new_safe_l2_block(&block)?;
                Ok(made.to_engine_json(self.client()))
            }
            "engine_setBlockTags" => {
                let at = |place: usize| {
                    params
                        .get(place)
                        .and_then(parse_hash)
                        .ok_or_else(|| RpcError::params(format!("missing value for required argument {place}")))
                };
                self.set_block_tags(at(0)?, at(1)?).map(|()| Value::Null)
            }
            "engine_forkchoiceUpdatedV3" if side == Side::Engine => {
                let at = |name: &str| {
                    let hash = params.first().and_then(|state| state.get(name)).and_then(parse_hash);
                    hash.ok_or_else(|| RpcError::params(format!("missing {name}")))
                };
                let (head, safe) = (at("headBlockHash")?, at("safeBlockHash")?);
                let status = self.forkchoice_updated(head, safe, at("finalizedBlockHash")?)?;
                let payload = json!({ "status": status, "latestValidHash": null, "validationError": null });
                Ok(json!({ "payloadStatus": payload, "payloadId": null }))
            }
            _ => self.read(method, params),
        }
    }

    /// The kept answer to a question for a whole block, or the one that is kept from now on; none if answers are not
    /// kept, or if it is another question or no block.
    pub(super) fn kept_answer(&mut self, method: &str, params: &[Value]) -> Option<Arc<str>> {
        let asked = params.first()?;
        let (method, number) = match method {
            "debug_getBlockRlp" => ("debug_getBlockRlp", asked.as_u64()?),
            "debug_getRawBlock" if asked.is_string() => ("debug_getRawBlock", parse_quantity(asked)?),
            "eth_getBlockByNumber" if asked.is_string() && params.get(1) == Some(&Value::Bool(true)) => {
                ("eth_getBlockByNumber", parse_quantity(asked)?)
            }
            _ => return None,
        };
        let closed = self.moods.debug_closed && method.starts_with("debug_");
        if self.kept.is_none() || number == 0 || closed || self.moods.holes.contains(&number) {
            return None;
        }
        let of = (self.hash_at(number)?, method, self.client());
        if let Some(text) = self.kept.as_ref().and_then(|kept| kept.get(&of)) {
            return Some(Arc::clone(text));
        }
        let text: Arc<str> = self.read(method, params).ok()?.to_string().into();
        self.kept.as_mut()?.insert(of, Arc::clone(&text));
        Some(text)
    }

    fn read(&self, method: &str, params: &[Value]) -> RpcResult {
        let flag = |place: usize| params.get(place).and_then(Value::as_bool).unwrap_or(false);
        match method {
            "eth_chainId" => Ok(quantity(self.chain_id())),
            "net_version" => Ok(Value::String(self.chain_id().to_string())),
            "web3_clientVersion" => {
                Ok(json!(self.moods.client_version.as_deref().unwrap_or_else(|| self.client().version())))
            }
            "eth_blockNumber" => Ok(quantity(self.head().number())),
            "eth_syncing" if self.moods.syncing => Ok(json!({
                "startingBlock": "0x0", "currentBlock": quantity(self.head().number()),
                "highestBlock": quantity(self.head().number() + 1000),
            })),
            "eth_syncing" => Ok(Value::Bool(false)),
            "eth_getBlockByNumber" | "eth_getBlockByHash" => {
                let id = parse_block_id(params.first())?;
                Ok(self.find(id)?.map_or(Value::Null, |block| self.show(&block, flag(1))))
            }
            "eth_getRawTransactionByHash" | "eth_getTransactionByHash" => {
                let wanted =
                    params.first().and_then(parse_hash).ok_or_else(|| RpcError::params("invalid argument 0"))?;
                Ok(self.transaction(wanted, method == "eth_getRawTransactionByHash"))
            }
            "eth_getLogs" => self.logs(params.first().unwrap_or(&Value::Null)),
            "eth_call" => self.eth_call(params),
            "eth_getBalance" => {
                let block = self.find(parse_block_id(params.get(1))?)?;
                let block = block.ok_or_else(|| RpcError::server("header not found"))?;
                if self.has_state(&block) { Ok(quantity(0)) } else { Err(self.lost_state(&block)) }
            }
            _ if method.starts_with("debug_") && self.moods.debug_closed => Err(self.no_method(method)),
            "debug_getBlockRlp" if !self.client().is_reth() => {
                // The real method takes a JSON integer and no hex string.
                let number = params.first().and_then(Value::as_u64).ok_or_else(|| {
                    RpcError::params("invalid argument 0: json: cannot unmarshal string into Go value of type uint64")
                })?;
                let block = self.find(BlockId::Number(number))?;
                let full = block.as_ref().and_then(|block| Some((block, block.full.as_ref()?)));
                let (block, full) = full.ok_or_else(|| RpcError::server(format!("block #{number} not found")))?;
                Ok(data(&full.block_rlp(&block.transactions)))
            }
            "debug_getRawBlock" | "debug_getRawHeader" if self.client().is_reth() => {
                let param = params.first().unwrap_or(&Value::Null);
                if !param.is_string() {
                    return Err(RpcError::params("invalid type: integer, expected a hex string or tag"));
                }
                let block = self.find(parse_block_id(Some(param))?)?;
                let full = block.as_ref().and_then(|block| Some((block, block.full.as_ref()?)));
                let (block, full) = full.ok_or_else(|| RpcError {
                    code: -32001,
                    message: format!("block not found: {}", param.as_str().unwrap_or_default()),
                })?;
                Ok(data(&match method {
                    "debug_getRawHeader" => full.nested_header(),
                    _ => full.nested_block_rlp(&block.transactions),
                }))
            }
            _ => Err(self.no_method(method)),
        }
    }

    fn no_method(&self, method: &str) -> RpcError {
        match self.client() {
            Client::Geth => RpcError::no_method(method),
            Client::Reth(_) => RpcError { code: -32601, message: "Method not found".to_owned() },
        }
    }

    /// A block as this client shows it.
    fn show(&self, block: &StoredBlock, full_transactions: bool) -> Value {
        let mut shown = block.to_json(full_transactions);
        let Some(fields) = shown.as_object_mut() else { return shown };
        if self.moods.odd_genesis && block.number() == 0 {
            fields.insert("baseFeePerGas".to_owned(), quantity(1_000_000_000));
        }
        let Client::Reth(generation) = self.client() else { return shown };
        fields.remove("totalDifficulty");
        if let Some(Value::Array(transactions)) = fields.get_mut("transactions") {
            transactions.iter_mut().filter_map(Value::as_object_mut).for_each(|tx| show_as_reth(tx, generation));
        }
        shown
    }

    fn find(&self, id: BlockId) -> Result<Option<Arc<StoredBlock>>, RpcError> {
        let tagged = |tag: Option<L2Ref>, name: &str| {
            let block = tag.and_then(|tag| self.by_hash(tag.hash));
            if self.client().is_reth() {
                return Ok(block);
            }
            block.map(Some).ok_or_else(|| RpcError::server(format!("{name} block not available")))
        };
        match id {
            BlockId::Number(number) if self.moods.holes.contains(&number) => Ok(None),
            BlockId::Number(number) => Ok(self.at(number)),
            BlockId::Hash(hash) => Ok(self.by_hash(hash)),
            BlockId::Latest => Ok(Some(self.head())),
            BlockId::Earliest => Ok(self.at(0)),
            BlockId::Safe => tagged(self.safe(), "safe"),
            BlockId::Finalized => tagged(self.finalized(), "finalized"),
        }
    }

    fn transaction(&self, wanted: B256, raw_only: bool) -> Value {
        let holder = self.holder_of(wanted);
        let found = holder.as_deref().and_then(|block| {
            let index = block.transactions.iter().position(|raw| keccak(raw) == wanted)?;
            Some((block, index, block.transactions.get(index)?))
        });
        match found {
            Some((_, _, raw)) if raw_only => data(raw),
            Some((block, index, raw)) => {
                let mut shown = signing::to_json(raw, &block.place(index as u64));
                if let (Client::Reth(generation), Some(tx)) = (self.client(), shown.as_object_mut()) {
                    show_as_reth(tx, generation);
                }
                shown
            }
            None if raw_only => json!("0x"),
            None => Value::Null,
        }
    }

    /// The client's words for a state that is gone.
    fn lost_state(&self, block: &StoredBlock) -> RpcError {
        match self.client() {
            Client::Geth => missing_state(block),
            Client::Reth(_) => {
                RpcError { code: -32603, message: format!("state at block #{} is pruned", block.number()) }
            }
        }
    }

    fn logs(&self, filter: &Value) -> RpcResult {
        let number = |key: &str| -> Result<u64, RpcError> {
            match parse_block_id(filter.get(key))? {
                BlockId::Number(number) => Ok(number),
                id => Ok(self.find(id)?.map_or(0, |block| block.number())),
            }
        };
        let blocks: Vec<Arc<StoredBlock>> = match filter.get("blockHash").and_then(parse_hash) {
            Some(hash) => self.by_hash(hash).into_iter().collect(),
            None => {
                let (from, to) = (number("fromBlock")?, number("toBlock")?.min(self.head().number()));
                if self.client().is_reth() && to.saturating_sub(from) > RETH_LOG_BLOCKS {
                    let words = format!("query exceeds max block range {RETH_LOG_BLOCKS}");
                    return Err(RpcError::params(words));
                }
                if from > to { Vec::new() } else { (from..=to).filter_map(|number| self.at(number)).collect() }
            }
        };
        if !address_matches(filter.get("address"), message_passer()) {
            return Ok(json!([]));
        }
        let mut found = Vec::new();
        for block in blocks.iter().filter(|block| block.number() >= self.moods.logs_from) {
            found.extend(
                block.logs().filter(|(topics, _)| topics_match(filter.get("topics"), topics)).map(|(_, log)| log),
            );
        }
        Ok(Value::Array(found))
    }

    fn eth_call(&self, params: &[Value]) -> RpcResult {
        let call = params.first().unwrap_or(&Value::Null);
        let id = parse_block_id(params.get(1))?;
        let unknown = |words: String| RpcError { code: -32001, message: format!("block not found: {words}") };
        let block = self.find(id)?.ok_or_else(|| match (self.client().is_reth(), id) {
            (false, BlockId::Hash(_)) => RpcError::server("header for hash not found"),
            (false, _) => RpcError::server("header not found"),
            (true, BlockId::Hash(hash)) => unknown(format!("hash {hash:?}")),
            (true, BlockId::Safe) => unknown("safe".to_owned()),
            (true, BlockId::Finalized) => unknown("finalized".to_owned()),
            (true, BlockId::Number(number)) => unknown(format!("{number:#x}")),
            (true, _) => unknown("latest".to_owned()),
        })?;
        if !self.has_state(&block) {
            return Err(self.lost_state(&block));
        }
        let to = call.get("to").and_then(parse_address);
        let input = call.get("data").or_else(|| call.get("input")).and_then(parse_data).unwrap_or_default();
        if to == Some(message_passer()) && input.starts_with(&MESSAGE_ROOT) {
            return self.message_root(&block).map(hash);
        }
        Ok(json!("0x"))
    }
}
