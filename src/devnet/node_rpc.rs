//! The simulated execution node's RPC: what each method answers, in the real node's words.
//!
//! Not decided here: what a write, a tag call or a restart does to the node (`node`); HTTP, tokens, latency (`serve`).

use std::sync::Arc;

use serde_json::{Value, json};

use super::block::{StoredBlock, message_passer};
use super::jsonrpc::{
    BlockId, RpcError, RpcResult, address_matches, data, hash, parse_address, parse_big, parse_block_id, parse_data,
    parse_hash, parse_quantity, quantity, topics_match,
};
use super::node::{Node, RawBlocks, SafeL2Data, Side, missing_state};
use super::signing;
use crate::types::{B256, L2Ref, RawTx, keccak};

/// Selector of `messageRoot()`.
const MESSAGE_ROOT: [u8; 4] = [0xd4, 0xb9, 0xf4, 0xfa];

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
            "engine_newSafeL2Block" | "engine_setBlockTags" if side == Side::Eth => Err(RpcError::no_method(method)),
            "engine_newSafeL2Block" => {
                let first = params.first().ok_or_else(|| RpcError::params("missing value for required argument 0"))?;
                let block = safe_l2_data(first)?;
                Ok(self.new_safe_l2_block(&block)?.to_engine_json())
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
            _ => self.read(method, params),
        }
    }

    fn read(&self, method: &str, params: &[Value]) -> RpcResult {
        let flag = |place: usize| params.get(place).and_then(Value::as_bool).unwrap_or(false);
        match method {
            "eth_chainId" => Ok(quantity(self.chain_id())),
            "net_version" => Ok(Value::String(self.chain_id().to_string())),
            "web3_clientVersion" => Ok(json!(self.moods.client_version)),
            "eth_blockNumber" => Ok(quantity(self.head().number())),
            "eth_syncing" if self.moods.syncing => Ok(json!({
                "startingBlock": "0x0", "currentBlock": quantity(self.head().number()),
                "highestBlock": quantity(self.head().number() + 1000),
            })),
            "eth_syncing" => Ok(Value::Bool(false)),
            "eth_getBlockByNumber" | "eth_getBlockByHash" => {
                let id = parse_block_id(params.first())?;
                Ok(self.find(id)?.map_or(Value::Null, |block| block.to_json(flag(1))))
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
                if self.has_state(&block) { Ok(quantity(0)) } else { Err(missing_state(&block)) }
            }
            "debug_getBlockRlp" if self.moods.raw_blocks == RawBlocks::BlockRlp => {
                // The real method takes a JSON integer and no hex string.
                let number = params.first().and_then(Value::as_u64).ok_or_else(|| {
                    RpcError::params("invalid argument 0: json: cannot unmarshal string into Go value of type uint64")
                })?;
                self.raw_block(self.at(number), number, true)
            }
            "debug_getRawBlock" if self.moods.raw_blocks == RawBlocks::RawBlock => {
                let id = parse_block_id(params.first())?;
                let block = self.find(id)?;
                let number = block.as_ref().map_or(0, |block| block.number());
                self.raw_block(block, number, false)
            }
            _ => Err(RpcError::no_method(method)),
        }
    }

    fn find(&self, id: BlockId) -> Result<Option<Arc<StoredBlock>>, RpcError> {
        let tagged = |tag: Option<L2Ref>, name: &str| {
            let block = tag.and_then(|tag| self.by_hash(tag.hash));
            block.map(Some).ok_or_else(|| RpcError::server(format!("{name} block not available")))
        };
        match id {
            BlockId::Number(number) => Ok(self.at(number)),
            BlockId::Hash(hash) => Ok(self.by_hash(hash)),
            BlockId::Latest => Ok(Some(self.head())),
            BlockId::Earliest => Ok(self.at(0)),
            BlockId::Safe => tagged(self.safe(), "safe"),
            BlockId::Finalized => tagged(self.finalized(), "finalized"),
        }
    }

    fn raw_block(&self, block: Option<Arc<StoredBlock>>, number: u64, with_morph_fields: bool) -> RpcResult {
        let block = block.ok_or_else(|| RpcError::server(format!("block #{number} not found")))?;
        let full = block.full.as_ref().ok_or_else(|| RpcError::server(format!("block #{number} not found")))?;
        Ok(data(&full.block_rlp(&block.transactions, with_morph_fields)))
    }

    fn transaction(&self, wanted: B256, raw_only: bool) -> Value {
        let holder = self.holder_of(wanted);
        let found = holder.as_deref().and_then(|block| {
            let index = block.transactions.iter().position(|raw| keccak(raw) == wanted)?;
            Some((block, index, block.transactions.get(index)?))
        });
        match found {
            Some((_, _, raw)) if raw_only => data(raw),
            Some((block, index, raw)) => signing::to_json(raw, &block.place(index as u64)),
            None if raw_only => json!("0x"),
            None => Value::Null,
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
        let block = self.find(id)?.ok_or_else(|| match id {
            BlockId::Hash(_) => RpcError::server("header for hash not found"),
            _ => RpcError::server("header not found"),
        })?;
        if !self.has_state(&block) {
            return Err(missing_state(&block));
        }
        let to = call.get("to").and_then(parse_address);
        let input = call.get("data").or_else(|| call.get("input")).and_then(parse_data).unwrap_or_default();
        if to == Some(message_passer()) && input.starts_with(&MESSAGE_ROOT) {
            return self.message_root(&block).map(hash);
        }
        Ok(json!("0x"))
    }
}
