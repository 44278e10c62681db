//! The L2 node's `eth_*` side: heads, headers, whole blocks, withdrawal roots.
//!
//! Decided here: how blocks are read cheapest (raw where the node offers it, JSON otherwise), and that what was read
//! is what it says: every hash recomputed, every block standing on the one before. Not decided here: whether a block
//! counts as present; a killed node answers for blocks above its fallen head, and the flow compares with the
//! snapshot's head.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::warn;

use super::rpc::{Call, Json, Pool};
use super::wire;
use crate::codec::block;
use crate::codec::event::{self, selectors, topics};
use crate::error::{PortError, PortErrorKind, Target};
use crate::ports::{L2Reader, MessageRoot, PortResult};
use crate::types::{B256, L2Block, L2Header, L2Number, L2Ref, L2Snapshot, RawTx};

/// L2ToL1MessagePasser.
const MESSAGE_PASSER: &str = "0x5300000000000000000000000000000000000001";

const UNKNOWN: u8 = 0;
const BLOCK_RLP: u8 = 1;
const RAW_BLOCK: u8 = 2;
const PLAIN_JSON: u8 = 3;

/// How much is asked at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L2Config {
    /// Blocks in one JSON-RPC batch.
    pub blocks_per_batch: u64,
    /// Batches under way at once in one [`L2Reader::blocks`].
    pub parallel: usize,
}

impl Default for L2Config {
    fn default() -> Self {
        Self { blocks_per_batch: 100, parallel: 2 }
    }
}

/// The L2 node, read through a pool (of one endpoint, as a rule: two nodes are two chains until verified).
#[derive(Debug)]
pub struct L2Client {
    pool: Pool,
    config: L2Config,
    /// For each endpoint, how blocks are read.
    forms: Vec<AtomicU8>,
    /// `eth_call` by block hash is refused.
    call_by_number: AtomicBool,
}

impl L2Client {
    /// The node behind `pool`.
    pub fn new(pool: Pool, config: L2Config) -> Self {
        let forms = (0..pool.size()).map(|_| AtomicU8::new(UNKNOWN)).collect();
        Self { pool, config, forms, call_by_number: AtomicBool::new(false) }
    }

    /// The endpoints, for figures.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// `eth_chainId`.
    pub async fn chain_id(&self) -> PortResult<u64> {
        self.pool.call("eth_chainId", json!([])).await?.quantity()
    }

    fn form(&self, at: usize) -> u8 {
        self.forms.get(at).map_or(PLAIN_JSON, |form| form.load(Ordering::Relaxed))
    }

    fn set_form(&self, at: usize, form: u8) {
        if let Some(known) = self.forms.get(at) {
            known.store(form, Ordering::Relaxed);
        }
    }

    /// Finds out once which raw form endpoint `at` offers. An error other than "no such method" is no answer to that.
    async fn probe(&self, at: usize, number: L2Number) -> PortResult<u8> {
        let known = self.form(at);
        if known != UNKNOWN {
            return Ok(known);
        }
        let calls = [raw_call(BLOCK_RLP, number), raw_call(RAW_BLOCK, number)];
        let replies = self.pool.batch_on(at, &calls).await?;
        let unsupported = |reply: &PortResult<Json>| matches!(reply, Err(error) if error.kind == PortErrorKind::Unsupported);
        let form = match replies.as_slice() {
            [Ok(json), _] if !json.is_null() => BLOCK_RLP,
            [_, Ok(json)] if !json.is_null() => RAW_BLOCK,
            replies if replies.iter().all(unsupported) => PLAIN_JSON,
            _ => return Ok(PLAIN_JSON), // for now; the next read asks again
        };
        self.set_form(at, form);
        Ok(form)
    }

    async fn blocks_on(&self, at: usize, first: L2Number, last: L2Number) -> PortResult<Vec<L2Block>> {
        let form = self.probe(at, first).await?;
        let width = self.config.blocks_per_batch.max(1);
        let mut pieces = Vec::new();
        let mut start = first;
        while start <= last {
            let end = start.plus(width - 1).min(last);
            pieces.push((start, end));
            start = end.plus(1);
            if end.get() == u64::MAX {
                break;
            }
        }
        let read = pieces.into_iter().map(|(start, end)| self.piece_on(at, form, start, end));
        let pieces: Vec<Vec<L2Block>> =
            stream::iter(read).buffered(self.config.parallel.max(1)).try_collect().await?;
        let blocks: Vec<L2Block> = pieces.into_iter().flatten().collect();
        self.check_links(at, first, &blocks)?;
        Ok(blocks)
    }

    async fn piece_on(&self, at: usize, form: u8, first: L2Number, last: L2Number) -> PortResult<Vec<L2Block>> {
        if form == PLAIN_JSON {
            return self.json_piece_on(at, first, last).await;
        }
        match self.raw_piece_on(at, form, first, last).await {
            Err(error) if error.kind == PortErrorKind::Unsupported => {
                self.set_form(at, UNKNOWN);
                self.json_piece_on(at, first, last).await
            }
            Err(error) if error.kind == PortErrorKind::Malformed => {
                // A header of a later fork, perhaps. JSON may still be understood; if not, its error is the telling one.
                warn!(endpoint = self.pool.name(at), %error, "raw block not understood, reading JSON instead");
                let blocks = self.json_piece_on(at, first, last).await?;
                self.set_form(at, PLAIN_JSON);
                Ok(blocks)
            }
            result => result,
        }
    }

    async fn raw_piece_on(&self, at: usize, form: u8, first: L2Number, last: L2Number) -> PortResult<Vec<L2Block>> {
        let calls: Vec<Call> = numbers(first, last).map(|number| raw_call(form, number)).collect();
        let replies = self.pool.batch_on(at, &calls).await?;
        let mut blocks = Vec::with_capacity(calls.len());
        for (number, reply) in numbers(first, last).zip(replies) {
            let json = reply?;
            let text: &str = json.parse::<Option<&str>>()?.ok_or_else(|| self.missing(at, number))?;
            let raw = hex::decode(text.strip_prefix("0x").unwrap_or(text)).map_err(|_| json.malformed("not hex"))?;
            blocks.push(block::decode_rlp(&raw).map_err(|error| json.malformed(error))?);
        }
        Ok(blocks)
    }

    async fn json_piece_on(&self, at: usize, first: L2Number, last: L2Number) -> PortResult<Vec<L2Block>> {
        let calls: Vec<Call> = numbers(first, last).map(|number| block_call(&number_tag(number), true)).collect();
        let replies = self.pool.batch_on(at, &calls).await?;
        let mut blocks = Vec::with_capacity(calls.len());
        for (number, reply) in numbers(first, last).zip(replies) {
            let json = reply?;
            let value: Value = json.parse()?;
            if value.is_null() {
                return Err(self.missing(at, number));
            }
            let raw = self.raw_transactions_on(at, &block::unknown_transactions(&value)).await?;
            let raw_of = |hash: &B256| raw.iter().find(|(known, _)| known == hash).map(|(_, raw)| raw.clone());
            blocks.push(block::block_from_json(&value, raw_of).map_err(|error| json.malformed(error))?);
        }
        Ok(blocks)
    }

    /// Raw bytes of transactions whose type cannot be rebuilt from JSON.
    async fn raw_transactions_on(&self, at: usize, hashes: &[B256]) -> PortResult<Vec<(B256, RawTx)>> {
        if hashes.is_empty() {
            return Ok(Vec::new());
        }
        let ask = |hash: &B256| Call::new("eth_getRawTransactionByHash", json!([wire::hex_hash(hash)]));
        let calls: Vec<Call> = hashes.iter().map(ask).collect();
        let replies = self.pool.batch_on(at, &calls).await?;
        hashes.iter().zip(replies).map(|(hash, reply)| Ok((*hash, reply?.bytes()?))).collect()
    }

    fn missing(&self, at: usize, number: L2Number) -> PortError {
        PortError::new(Target::L2, PortErrorKind::NotFound, format!("{}: no block {number}", self.pool.name(at)))
    }

    fn check_links(&self, at: usize, first: L2Number, blocks: &[L2Block]) -> PortResult<()> {
        for (offset, block) in (0_u64..).zip(blocks) {
            if block.header.number != first.plus(offset) {
                let detail = format!(
                    "{}: asked for block {}, got block {}",
                    self.pool.name(at),
                    first.plus(offset),
                    block.header.number
                );
                return Err(PortError::malformed(Target::L2, detail));
            }
        }
        for pair in blocks.windows(2) {
            if let [parent, child] = pair
                && child.header.parent_hash != parent.header.hash
            {
                let detail = format!(
                    "{}: block {} does not stand on block {}: the chain changed while it was read",
                    self.pool.name(at),
                    child.header.number,
                    parent.header.number
                );
                return Err(PortError::malformed(Target::L2, detail));
            }
        }
        Ok(())
    }

    async fn root_by_hash_on(&self, at: usize, block: L2Ref) -> PortResult<B256> {
        let call = message_root_call(json!({"blockHash": wire::hex_hash(&block.hash)}));
        read_root(&self.pool.call_on(at, call).await?)
    }

    /// By number, for nodes that take no block hash, and with the header read beside it: the number must still mean
    /// the same block.
    async fn root_by_number_on(&self, at: usize, block: L2Ref) -> PortResult<B256> {
        let tag = number_tag(block.number);
        let calls = [message_root_call(json!(tag)), block_call(&tag, false)];
        let mut replies = self.pool.batch_on(at, &calls).await?.into_iter();
        let (Some(root), Some(header)) = (replies.next(), replies.next()) else {
            return Err(self.missing(at, block.number));
        };
        let header = read_header(header)?.ok_or_else(|| self.missing(at, block.number))?;
        if header.hash != block.hash {
            return Err(self.missing(at, block.number));
        }
        read_root(&root?)
    }

    async fn root_on(&self, at: usize, block: L2Ref) -> PortResult<B256> {
        if self.call_by_number.load(Ordering::Relaxed) {
            return self.root_by_number_on(at, block).await;
        }
        match self.root_by_hash_on(at, block).await {
            Err(error) if matches!(error.kind, PortErrorKind::Refused { .. }) => {
                let root = self.root_by_number_on(at, block).await?;
                self.call_by_number.store(true, Ordering::Relaxed);
                Ok(root)
            }
            result => result,
        }
    }

    async fn appended_on(&self, at: usize, first: L2Number, last: L2Number) -> PortResult<Option<B256>> {
        let mut open = vec![(first, last)];
        // The upper half first: only the last log is wanted.
        while let Some((from, to)) = open.pop() {
            match self.appended_piece_on(at, from, to).await {
                Ok(None) => {}
                Ok(root) => return Ok(root),
                Err(error) if error.kind == PortErrorKind::RangeTooWide && to > from => {
                    let middle = from.plus(to.above(from) / 2);
                    open.push((from, middle));
                    open.push((middle.plus(1), to));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    async fn appended_piece_on(&self, at: usize, from: L2Number, to: L2Number) -> PortResult<Option<B256>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Log<'a> {
            address: &'a str,
            topics: Vec<&'a str>,
            block_number: &'a str,
            log_index: &'a str,
            #[serde(default)]
            removed: bool,
        }
        let filter = json!([{
            "address": MESSAGE_PASSER,
            "topics": [wire::hex_hash(&topics::APPEND_MESSAGE)],
            "fromBlock": number_tag(from),
            "toBlock": number_tag(to),
        }]);
        // The range's last block beside the logs: no logs of a block that is not there is no answer.
        let calls = [block_call(&number_tag(to), false), Call::new("eth_getLogs", filter)];
        let mut replies = self.pool.batch_on(at, &calls).await?.into_iter();
        let (Some(end), Some(logs)) = (replies.next(), replies.next()) else { return Err(self.missing(at, to)) };
        if end?.is_null() {
            return Err(self.missing(at, to));
        }
        let json = logs?;
        let mut newest: Option<((u64, u64), B256)> = None;
        for log in json.parse::<Vec<Log<'_>>>()? {
            let read = || {
                let place = (wire::quantity(log.block_number)?, wire::quantity(log.log_index)?);
                let topics: Vec<B256> = log.topics.iter().map(|topic| wire::hash(topic)).collect::<Option<_>>()?;
                Some((place, topics))
            };
            let (place, topics) = read().ok_or_else(|| json.malformed("a log with a field that is not hex"))?;
            let inside = (from.get()..=to.get()).contains(&place.0);
            if log.removed || !log.address.eq_ignore_ascii_case(MESSAGE_PASSER) || !inside {
                continue;
            }
            let root = event::decode_appended_root(&topics).map_err(|error| json.malformed(error))?;
            if let Some(root) = root
                && newest.is_none_or(|(earlier, _)| earlier < place)
            {
                newest = Some((place, root));
            }
        }
        Ok(newest.map(|(_, root)| root))
    }
}

fn numbers(first: L2Number, last: L2Number) -> impl Iterator<Item = L2Number> {
    (first.get()..=last.get()).map(L2Number::new)
}

fn number_tag(number: L2Number) -> String {
    wire::hex_quantity(number.get())
}

fn block_call(block: &str, full: bool) -> Call {
    Call::new("eth_getBlockByNumber", json!([block, full]))
}

/// `debug_getBlockRlp` takes a JSON integer, `debug_getRawBlock` a hex quantity.
fn raw_call(form: u8, number: L2Number) -> Call {
    match form {
        BLOCK_RLP => Call::new("debug_getBlockRlp", json!([number.get()])),
        _ => Call::new("debug_getRawBlock", json!([number_tag(number)])),
    }
}

fn message_root_call(state: Value) -> Call {
    let data = wire::hex_bytes(&event::encode_view(selectors::MESSAGE_ROOT, None));
    Call::new("eth_call", json!([{"to": MESSAGE_PASSER, "data": data}, state]))
}

fn read_root(json: &Json) -> PortResult<B256> {
    let answer: Bytes = json.bytes()?;
    event::view_word(&answer, 0).map_err(|error| json.malformed(error))
}

/// A header with its hash recomputed; none for null and for the errors by which nodes say that there is none (E22).
fn read_header(reply: PortResult<Json>) -> PortResult<Option<L2Header>> {
    let json = match reply {
        Ok(json) => json,
        Err(error) if error.kind == PortErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let value: Value = json.parse()?;
    if value.is_null() {
        return Ok(None);
    }
    block::header_from_json(&value).map(Some).map_err(|error| json.malformed(error))
}

#[async_trait]
impl L2Reader for L2Client {
    async fn snapshot(&self) -> PortResult<L2Snapshot> {
        let calls = [
            block_call("latest", false),
            block_call("safe", false),
            block_call("finalized", false),
            Call::new("eth_syncing", json!([])),
        ];
        let replies = self.pool.batch(&calls).await?;
        let Ok([latest, safe, finalized, syncing]) = <[PortResult<Json>; 4]>::try_from(replies) else {
            return Err(PortError::malformed(Target::L2, "heads: not four replies"));
        };
        let head = read_header(latest)?
            .ok_or_else(|| PortError::new(Target::L2, PortErrorKind::NotFound, "the node has no latest block"))?;
        let syncing = match syncing {
            Ok(json) => json.parse::<Value>()? != Value::Bool(false),
            Err(error) if error.kind == PortErrorKind::Unsupported => false,
            Err(error) => return Err(error),
        };
        let tag = |reply| Ok(read_header(reply)?.map(|header| header.l2_ref()));
        Ok(L2Snapshot { head, safe: tag(safe)?, finalized: tag(finalized)?, syncing })
    }

    async fn header(&self, number: L2Number) -> PortResult<Option<L2Header>> {
        let reply = self.pool.call("eth_getBlockByNumber", json!([number_tag(number), false])).await;
        match read_header(reply)? {
            Some(header) if header.number != number => {
                let detail = format!("asked for block {number}, got block {}", header.number);
                Err(PortError::malformed(Target::L2, detail))
            }
            header => Ok(header),
        }
    }

    async fn blocks(&self, first: L2Number, last: L2Number) -> PortResult<Vec<L2Block>> {
        if first > last {
            return Ok(Vec::new());
        }
        self.pool.run(|at| self.blocks_on(at, first, last)).await
    }

    async fn message_root(&self, block: L2Ref) -> PortResult<MessageRoot> {
        match self.pool.run(|at| self.root_on(at, block)).await {
            Ok(root) => Ok(MessageRoot::Root(root)),
            Err(error) if error.kind == PortErrorKind::Pruned => Ok(MessageRoot::Pruned),
            Err(error) => Err(error),
        }
    }

    async fn last_appended_root(&self, first: L2Number, last: L2Number) -> PortResult<Option<B256>> {
        if first > last {
            return Ok(None);
        }
        self.pool.run(|at| self.appended_on(at, first, last)).await
    }
}
