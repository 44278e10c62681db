//! The L2 node's `eth_*` side: heads, headers, whole blocks, withdrawal roots.
//!
//! Decided here: how blocks are read cheapest (raw if the node offers it, JSON otherwise), and that what was read
//! is what it claims to be: every hash recomputed, every block a child of the one before. Not decided here: whether a block
//! counts as present; a killed node answers for blocks above its fallen head, and the flow compares with the
//! snapshot's head.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::warn;

use super::rpc::{Call, Json, Pool, found};
use super::wire::{self, Bounded};
use crate::codec::block::{self, BlockError};
use crate::codec::event::{self, selectors, topics};
use crate::decide::client::Client;
use crate::error::{PortError, PortErrorKind, Target};
use crate::ports::{L2Reader, MessageRoot, PortResult};
use crate::types::{B256, L2Block, L2Header, L2Number, L2Ref, L2Snapshot, RawTx};

/// L2ToL1MessagePasser.
const MESSAGE_PASSER: &str = "0x5300000000000000000000000000000000000001";

/// Most logs of one answer.
const LOGS_MAX: usize = 100_000;

/// About how many bytes of blocks are given at a time: 200 blocks of the real network hold a hundredth of it.
const HELD_MAX: usize = 16 << 20;

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
    /// The configured hash of block 0, which a node that states it is not asked to prove.
    pub genesis: Option<B256>,
}

impl Default for L2Config {
    fn default() -> Self {
        Self { blocks_per_batch: 100, parallel: 2, genesis: None }
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
    /// The client, as it named itself last.
    client: Mutex<Option<Client>>,
}

impl L2Client {
    /// The node behind `pool`.
    pub fn new(pool: Pool, config: L2Config) -> Self {
        let forms = (0..pool.size()).map(|_| AtomicU8::new(UNKNOWN)).collect();
        Self { pool, config, forms, call_by_number: AtomicBool::new(false), client: Mutex::new(None) }
    }

    /// The endpoints, for figures.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// `eth_chainId`.
    pub async fn chain_id(&self) -> PortResult<u64> {
        self.pool.call("eth_chainId", json!([])).await?.quantity()
    }

    fn read_header(&self, reply: PortResult<Json>) -> PortResult<Option<L2Header>> {
        read_header(reply, self.config.genesis)
    }

    /// The header at `number`.
    fn numbered(&self, reply: PortResult<Json>, number: L2Number) -> PortResult<Option<L2Header>> {
        match self.read_header(reply)? {
            Some(header) if header.number != number => {
                let detail = format!("asked for block {number}, got block {}", header.number);
                Err(PortError::malformed(Target::L2, detail))
            }
            header => Ok(header),
        }
    }

    fn read_snapshot(&self, replies: [PortResult<Json>; 5]) -> PortResult<L2Snapshot> {
        let [latest, safe, finalized, syncing, version] = replies;
        self.names_itself(version);
        let head = self
            .read_header(latest)?
            .ok_or_else(|| PortError::new(Target::L2, PortErrorKind::NotFound, "the node has no latest block"))?;
        let syncing = match syncing {
            Ok(json) => !matches!(json.parse::<bool>(), Ok(false)),
            Err(error) if error.kind == PortErrorKind::Unsupported => false,
            Err(error) => return Err(error),
        };
        let tag = |reply| PortResult::Ok(self.read_header(reply)?.map(|header| header.l2_ref()));
        Ok(L2Snapshot {
            head: head.l2_ref(),
            head_parent: head.parent_hash,
            head_time: head.timestamp,
            safe: tag(safe)?,
            finalized: tag(finalized)?,
            syncing,
        })
    }

    /// Another client, or another version of it, is asked anew what it offers.
    fn names_itself(&self, version: PortResult<Json>) {
        let Some(version) = version.ok().and_then(|json| json.parse::<String>().ok()) else { return };
        let said = Some(Client::of(&self.pool.show(&version)));
        let mut known = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != said {
            self.forms.iter().for_each(|form| form.store(UNKNOWN, Ordering::Relaxed));
            self.call_by_number.store(false, Ordering::Relaxed);
            *known = said;
        }
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
        // A node that has a method of the name and takes other parameters does not offer it either.
        let unsupported = |reply: &PortResult<Json>| match reply {
            Err(error) => {
                matches!(error.kind, PortErrorKind::Unsupported | PortErrorKind::Refused { code: -32602, .. })
            }
            Ok(_) => false,
        };
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
        let mut pieces = stream::iter(read).buffered(self.config.parallel.max(1));
        let mut blocks: Vec<L2Block> = Vec::new();
        let mut held = 0_usize;
        while let Some((piece, is_whole)) = pieces.try_next().await? {
            held = held.saturating_add(held_bytes(&piece));
            blocks.extend(piece);
            if held > HELD_MAX || !is_whole {
                break;
            }
        }
        self.check_links(at, first, &blocks)?;
        Ok(blocks)
    }

    /// The blocks of one piece, in as many exchanges as their size takes; whether it is all of it.
    async fn piece_on(&self, at: usize, form: u8, first: L2Number, last: L2Number) -> PortResult<(Vec<L2Block>, bool)> {
        let mut blocks: Vec<L2Block> = Vec::new();
        let mut held = 0_usize;
        let (mut start, mut width) = (first, last.above(first).saturating_add(1));
        while start <= last {
            if held > HELD_MAX {
                return Ok((blocks, false));
            }
            let end = start.plus(width.saturating_sub(1)).min(last);
            match self.exchange_on(at, form, start, end).await {
                Ok(more) => {
                    held = held.saturating_add(held_bytes(&more));
                    blocks.extend(more);
                    if end.get() == u64::MAX {
                        break;
                    }
                    start = end.plus(1);
                }
                Err(error) if error.kind == PortErrorKind::RangeTooWide && end > start => {
                    width = (end.above(start).saturating_add(1) / 4).max(1);
                }
                Err(error) => return Err(error),
            }
        }
        Ok((blocks, true))
    }

    async fn exchange_on(&self, at: usize, form: u8, first: L2Number, last: L2Number) -> PortResult<Vec<L2Block>> {
        if form == PLAIN_JSON {
            return self.json_piece_on(at, first, last).await;
        }
        match self.raw_piece_on(at, form, first, last).await {
            Err(error) if error.kind == PortErrorKind::Unsupported => {
                self.set_form(at, UNKNOWN);
                self.json_piece_on(at, first, last).await
            }
            Err(error) if error.kind == PortErrorKind::Malformed => {
                // A header of a later fork, perhaps. JSON may still be understood; if not, its error says more.
                let entity = self.pool.name(at);
                warn!(code = "raw_block", entity, %error, "cannot read the raw block; reading JSON instead");
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
            let raw =
                const_hex::decode(text.strip_prefix("0x").unwrap_or(text)).map_err(|_| json.malformed("not hex"))?;
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
            let value = json.tree()?;
            if value.is_null() {
                return Err(self.missing(at, number));
            }
            let mut read = block::block_from_json(&value, |_| None);
            if matches!(read, Err(BlockError::Transaction { .. })) {
                let raw = self.raw_transactions_on(at, &block::unknown_transactions(&value)).await?;
                let raw_of = |hash: &B256| raw.iter().find(|(known, _)| known == hash).map(|(_, raw)| raw.clone());
                read = block::block_from_json(&value, raw_of);
            }
            blocks.push(read.map_err(|error| json.malformed(error))?);
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
                    "{}: block {} is not a child of block {}: the chain changed while it was read",
                    self.pool.name(at),
                    child.header.number,
                    parent.header.number
                );
                return Err(PortError::malformed(Target::L2, detail));
            }
        }
        Ok(())
    }

    /// By hash, together with the header at its height: a node also answers for a block that left its chain.
    async fn root_by_hash_on(&self, at: usize, block: L2Ref) -> PortResult<B256> {
        self.root_in(at, block, json!({"blockHash": wire::hex_hash(&block.hash)})).await
    }

    /// By number, for nodes that take no block hash: the number must still mean the same block.
    async fn root_by_number_on(&self, at: usize, block: L2Ref) -> PortResult<B256> {
        self.root_in(at, block, json!(number_tag(block.number))).await
    }

    async fn root_in(&self, at: usize, block: L2Ref, state: Value) -> PortResult<B256> {
        let calls = [message_root_call(state), block_call(&number_tag(block.number), false)];
        let mut replies = self.pool.batch_on(at, &calls).await?.into_iter();
        let (Some(root), Some(header)) = (replies.next(), replies.next()) else {
            return Err(self.missing(at, block.number));
        };
        let root = root?;
        let header = self.read_header(header)?.ok_or_else(|| self.missing(at, block.number))?;
        if header.hash != block.hash {
            return Err(self.missing(at, block.number));
        }
        read_root(&root)
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

    async fn appended_on(&self, at: usize, first: L2Number, last: L2Number, tip: L2Ref) -> PortResult<Option<B256>> {
        let mut open = vec![(first, last)];
        // The upper half first: only the last log is wanted.
        while let Some((from, to)) = open.pop() {
            match self.appended_piece_on(at, from, to, tip).await {
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

    /// The logs of a piece between two reads of `tip`, below a head that reaches it: no logs of a block that is missing,
    /// or of another chain, are no answer.
    async fn appended_piece_on(&self, at: usize, from: L2Number, to: L2Number, tip: L2Ref) -> PortResult<Option<B256>> {
        let filter = json!([{
            "address": MESSAGE_PASSER,
            "topics": [wire::hex_hash(&topics::APPEND_MESSAGE)],
            "fromBlock": number_tag(from),
            "toBlock": number_tag(to),
        }]);
        let tip_call = || block_call(&number_tag(tip.number), false);
        let calls = [tip_call(), Call::new("eth_getLogs", filter), tip_call(), block_call("latest", false)];
        let replies = self.pool.batch_on(at, &calls).await?;
        let Ok([before, logs, after, latest]) = <[PortResult<Json>; 4]>::try_from(replies) else {
            return Err(self.missing(at, to));
        };
        let logs = logs?;
        let is_tip = |reply| Ok::<_, PortError>(self.read_header(reply)?.is_some_and(|header| header.l2_ref() == tip));
        let reaches = self.read_header(latest)?.is_some_and(|head| head.number >= tip.number);
        if !is_tip(before)? || !is_tip(after)? || !reaches {
            return Err(self.missing(at, tip.number));
        }
        let Some(newest) = newest_append(&logs, from, to)? else { return Ok(None) };
        if newest.block != tip {
            // The log's block must be the one at its height below the tip.
            let calls = [block_call(&number_tag(newest.block.number), false), tip_call()];
            let replies = self.pool.batch_on(at, &calls).await?;
            let Ok([block, after]) = <[PortResult<Json>; 2]>::try_from(replies) else {
                return Err(self.missing(at, to));
            };
            let is_canonical = self.read_header(block)?.is_some_and(|header| header.l2_ref() == newest.block);
            if !is_canonical || !is_tip(after)? {
                return Err(self.missing(at, newest.block.number));
            }
        }
        Ok(Some(newest.root))
    }
}

/// What blocks take in memory.
fn held_bytes(blocks: &[L2Block]) -> usize {
    let raw = |raw: &RawTx| raw.len().saturating_add(size_of::<RawTx>());
    let one = |block: &L2Block| block.transactions.iter().map(raw).fold(size_of::<L2Block>(), usize::saturating_add);
    blocks.iter().map(one).fold(0, usize::saturating_add)
}

/// An AppendMessage log.
struct Append {
    block: L2Ref,
    log_index: u64,
    root: B256,
}

/// The last AppendMessage log of blocks `from..=to` in an answer.
fn newest_append(json: &Json, from: L2Number, to: L2Number) -> PortResult<Option<Append>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Log<'a> {
        address: &'a str,
        #[serde(borrow)]
        topics: Bounded<&'a str, 4>,
        block_number: &'a str,
        block_hash: &'a str,
        log_index: &'a str,
        #[serde(default)]
        removed: bool,
    }
    let mut newest: Option<Append> = None;
    for log in json.parse::<Bounded<Log<'_>, LOGS_MAX>>()?.0 {
        let read = || {
            let number = L2Number::new(wire::quantity(log.block_number)?);
            let block = L2Ref { number, hash: wire::hash(log.block_hash)? };
            let topics: Vec<B256> = log.topics.0.iter().map(|topic| wire::hash(topic)).collect::<Option<_>>()?;
            Some((block, wire::quantity(log.log_index)?, topics))
        };
        let (block, log_index, topics) = read().ok_or_else(|| json.malformed("a log with a field that is not hex"))?;
        let inside = (from..=to).contains(&block.number);
        if log.removed || !log.address.eq_ignore_ascii_case(MESSAGE_PASSER) || !inside {
            continue;
        }
        let root = event::decode_appended_root(&topics).map_err(|error| json.malformed(error))?;
        let later = newest.as_ref().is_none_or(|n| (n.block.number, n.log_index) < (block.number, log_index));
        if let Some(root) = root.filter(|_| later) {
            newest = Some(Append { block, log_index, root });
        }
    }
    Ok(newest)
}

fn numbers(first: L2Number, last: L2Number) -> impl Iterator<Item = L2Number> {
    (first.get()..=last.get()).map(L2Number::new)
}

fn number_tag(number: L2Number) -> String {
    wire::hex_quantity(number.get())
}

pub(super) fn block_call(block: &str, full: bool) -> Call {
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

/// A header with its hash recomputed, block 0 with the configured hash `genesis` excepted; none for null and for the errors
/// by which nodes say that there is none (E22).
pub(super) fn read_header(reply: PortResult<Json>, genesis: Option<B256>) -> PortResult<Option<L2Header>> {
    let Some(json) = found(reply)? else { return Ok(None) };
    block::header_from_json(&json.tree()?, genesis).map(Some).map_err(|error| json.malformed(error))
}

fn snapshot_calls() -> [Call; 5] {
    [
        block_call("latest", false),
        block_call("safe", false),
        block_call("finalized", false),
        Call::new("eth_syncing", json!([])),
        Call::new("web3_clientVersion", json!([])),
    ]
}

#[async_trait]
impl L2Reader for L2Client {
    async fn snapshot(&self) -> PortResult<L2Snapshot> {
        let replies = self.pool.batch(&snapshot_calls()).await?;
        let Ok(replies) = <[PortResult<Json>; 5]>::try_from(replies) else {
            return Err(PortError::malformed(Target::L2, "heads: not five replies"));
        };
        self.read_snapshot(replies)
    }

    async fn snapshot_and(&self, number: L2Number) -> PortResult<(L2Snapshot, Option<L2Header>)> {
        let [latest, safe, finalized, syncing, version] = snapshot_calls();
        let calls = [latest, safe, finalized, syncing, version, block_call(&number_tag(number), false)];
        let replies = self.pool.batch(&calls).await?;
        let Ok([latest, safe, finalized, syncing, version, block]) = <[PortResult<Json>; 6]>::try_from(replies) else {
            return Err(PortError::malformed(Target::L2, "heads and a block: not six replies"));
        };
        Ok((self.read_snapshot([latest, safe, finalized, syncing, version])?, self.numbered(block, number)?))
    }

    async fn header(&self, number: L2Number) -> PortResult<Option<L2Header>> {
        let reply = self.pool.call("eth_getBlockByNumber", json!([number_tag(number), false])).await;
        self.numbered(reply, number)
    }

    async fn blocks(&self, first: L2Number, last: L2Number) -> PortResult<Vec<L2Block>> {
        if first > last {
            return Ok(Vec::new());
        }
        self.pool.run(|at| self.blocks_on(at, first, last)).await
    }

    fn client(&self) -> Option<Client> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn has_states(&self, numbers: &[L2Number]) -> PortResult<Option<Vec<bool>>> {
        let ask = |number: &L2Number| Call::new("eth_getBalance", json!([MESSAGE_PASSER, number_tag(*number)]));
        let calls: Vec<Call> = numbers.iter().map(ask).collect();
        let replies = self.pool.batch(&calls).await?;
        let kept = replies.into_iter().map(|reply| match reply {
            Ok(_) => Ok(Some(true)),
            Err(error) if error.kind == PortErrorKind::Pruned => Ok(Some(false)),
            Err(error) if error.kind == PortErrorKind::Unsupported => Ok(None),
            Err(error) => Err(error),
        });
        kept.collect()
    }

    async fn message_root(&self, block: L2Ref) -> PortResult<MessageRoot> {
        match self.pool.run(|at| self.root_on(at, block)).await {
            Ok(root) => Ok(MessageRoot::Root(root)),
            Err(error) if error.kind == PortErrorKind::Pruned => Ok(MessageRoot::Pruned),
            Err(error) => Err(error),
        }
    }

    async fn last_appended_root(&self, first: L2Number, last: L2Number, tip: L2Ref) -> PortResult<Option<B256>> {
        if first > last {
            return Ok(None);
        }
        self.pool.run(|at| self.appended_on(at, first, last, tip)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::testing::{Answer, Server, pool, rpc};
    use crate::codec::block::{FullHeader, RawForm, encode_rlp};
    use crate::codec::testing::{hash, json as vector};

    fn n(number: u64) -> L2Number {
        L2Number::new(number)
    }

    fn place(params: &Value) -> usize {
        let number = params[0].as_u64().or_else(|| wire::quantity(params[0].as_str().unwrap())).unwrap();
        usize::try_from(number).unwrap()
    }

    /// Raw form of a recorded block.
    fn raw(block: &Value, form: RawForm) -> Value {
        let parsed = block::block_from_json(block, |_| None).unwrap();
        let header = FullHeader::from_json(block).unwrap();
        json!(wire::hex_bytes(&encode_rlp(&header, &parsed.transactions, form)))
    }

    /// A node with the recorded chain that offers the named methods.
    async fn node(blocks: Value, methods: &'static [&'static str]) -> Server {
        rpc(move |method, params| answer(&blocks, methods, method, params)).await
    }

    fn answer(blocks: &Value, methods: &[&str], method: &str, params: &Value) -> Answer {
        if !methods.contains(&method) {
            return Err((-32601, "the method does not exist/is not available"));
        }
        let block = &blocks[place(params)];
        match method {
            _ if block.is_null() && method.starts_with("debug") => Err((-32000, "block #127 not found")),
            "debug_getBlockRlp" if params[0].is_string() => Err((-32602, "cannot unmarshal string")),
            "debug_getRawBlock" if params[0].is_number() => Err((-32602, "invalid type: integer")),
            "debug_getBlockRlp" => Ok(raw(block, RawForm::Flat)),
            "debug_getRawBlock" => Ok(raw(block, RawForm::Nested)),
            _ => Ok(block.clone()),
        }
    }

    fn client(server: &Server) -> L2Client {
        let config = L2Config { blocks_per_batch: 50, parallel: 2, genesis: None };
        L2Client::new(pool(Target::L2, &[&server.url]), config)
    }

    #[tokio::test]
    async fn blocks_are_the_same_in_all_three_forms() {
        let blocks = vector("recorded/l2/blocks.json");
        let all: &[&[&str]] = &[
            &["debug_getBlockRlp", "eth_getBlockByNumber"],
            &["debug_getRawBlock", "eth_getBlockByNumber"],
            &["eth_getBlockByNumber"],
        ];
        let mut read: Vec<Vec<L2Block>> = Vec::new();
        for methods in all {
            let server = node(blocks.clone(), methods).await;
            let client = client(&server);
            read.push(client.blocks(n(0), n(126)).await.unwrap());
            assert_eq!(server.hits().len(), 4, "one probe, three batches: {methods:?}");
            client.blocks(n(5), n(9)).await.unwrap();
            assert_eq!(server.hits().len(), 5, "probed once");
            assert_eq!(client.blocks(n(126), n(127)).await.unwrap_err().kind, PortErrorKind::NotFound);
        }
        assert_eq!(read[0].len(), 127);
        for (block, recorded) in read[0].iter().zip(blocks.as_array().unwrap()) {
            assert_eq!(block.header.hash, hash(&recorded["hash"]));
        }
        assert_eq!(read[0], read[1]);
        assert_eq!(read[0], read[2]);
    }

    #[tokio::test]
    async fn l16_the_client_names_itself_and_another_one_is_probed_anew() {
        use std::sync::Arc;
        use std::sync::atomic::AtomicUsize;

        let blocks = vector("recorded/l2/blocks.json");
        let now = Arc::new(AtomicUsize::new(0));
        let serves = Arc::clone(&now);
        let server = rpc(move |method, params| {
            let is_reth = serves.load(Ordering::Relaxed) == 1;
            match method {
                "web3_clientVersion" if is_reth => Ok(json!("morph-reth/v0.2.0-12ab34cd/x86_64-unknown-linux-gnu")),
                "web3_clientVersion" => Ok(json!("Geth/v2.2.4-mainnet/linux-amd64/go1.26.8")),
                "eth_getBlockByNumber" if params[0] == "latest" => Ok(blocks[126].clone()),
                "eth_getBlockByNumber" => Ok(Value::Null),
                "eth_syncing" => Ok(json!(false)),
                "debug_getBlockRlp" if !is_reth => Ok(raw(&blocks[place(params)], RawForm::Flat)),
                "debug_getRawBlock" if is_reth => Ok(raw(&blocks[place(params)], RawForm::Nested)),
                _ => Err((-32601, "Method not found")),
            }
        })
        .await;
        let l2 = client(&server);
        assert_eq!(l2.client(), None);
        let mut read = Vec::new();
        for (which, is_warned_of) in [(0, false), (1, true), (0, false)] {
            now.store(which, Ordering::Relaxed);
            l2.snapshot().await.unwrap();
            assert_eq!(l2.client().unwrap().warning().is_some(), is_warned_of);
            read.push(l2.blocks(n(5), n(9)).await.unwrap());
        }
        assert!(read[0] == read[1] && read[0] == read[2]);
        let probes = server.calls().iter().filter(|call| call["method"] == "debug_getRawBlock").count();
        assert_eq!(probes, 3 + 5, "a probe for each, and the five blocks of the one");
    }

    #[tokio::test]
    async fn p10_a_version_that_echoes_the_endpoints_key_is_shown_without_it() {
        let blocks = vector("recorded/l2/blocks.json");
        let server = rpc(move |method, params| match method {
            "web3_clientVersion" => {
                Ok(json!("Geth/v2.2.4 http://gate/v2/canary0123456789abcdef canary0123456789abcdef\u{202e}"))
            }
            "eth_getBlockByNumber" if params[0] == "latest" => Ok(blocks[126].clone()),
            "eth_getBlockByNumber" => Ok(Value::Null),
            "eth_syncing" => Ok(json!(false)),
            _ => Err((-32601, "Method not found")),
        })
        .await;
        let url = format!("{}/v2/canary0123456789abcdef", server.url);
        let l2 = L2Client::new(pool(Target::L2, &[&url]), L2Config::default());
        l2.snapshot().await.unwrap();
        let version = l2.client().unwrap().version;
        assert!(version.starts_with("Geth/v2.2.4") && !version.contains("canary"), "{version}");
        assert!(!version.contains('\u{202e}'), "{version}");
    }

    #[tokio::test]
    async fn l10_parameters_that_a_node_does_not_take_are_no_method_and_found_out_once() {
        let blocks = vector("recorded/l2/blocks.json");
        let server = rpc(move |method, params| match method {
            "eth_getBlockByNumber" => Ok(blocks[place(params)].clone()),
            _ => Err((-32602, "Invalid params")),
        })
        .await;
        let client = client(&server);
        for _ in 0..3 {
            assert_eq!(client.blocks(n(5), n(9)).await.unwrap().len(), 5);
        }
        assert_eq!(server.hits().len(), 4, "one probe, three reads");
    }

    #[tokio::test]
    async fn l2_tags_on_a_block_zero_that_does_not_give_its_hash_are_read() {
        let blocks = vector("recorded/l2/blocks.json");
        let mut genesis = blocks[0].clone();
        // As morph-reth shows it: another base fee than the one that is hashed.
        genesis["baseFeePerGas"] = json!("0x3b9aca00");
        let stated = hash(&genesis["hash"]);
        let server = rpc(move |method, params| match (method, params[0].as_str()) {
            (_, Some("latest" | "safe" | "0x0")) => Ok(genesis.clone()),
            (_, Some("finalized")) => Ok(Value::Null),
            _ => Ok(json!(false)),
        })
        .await;
        let over = |genesis| {
            let config = L2Config { genesis, ..L2Config::default() };
            L2Client::new(pool(Target::L2, &[&server.url]), config)
        };
        let (snapshot, at) = over(Some(stated)).snapshot_and(n(0)).await.unwrap();
        let zero = L2Ref { number: n(0), hash: stated };
        assert_eq!((snapshot.head, snapshot.safe, snapshot.finalized), (zero, Some(zero), None));
        assert_eq!(at.map(|header| header.l2_ref()), Some(zero));
        for other in [None, Some(B256::repeat_byte(1))] {
            assert_eq!(over(other).snapshot().await.unwrap_err().kind, PortErrorKind::Malformed);
        }
    }

    #[tokio::test]
    async fn a_type_from_the_future_is_fetched_raw() {
        let mut blocks = vector("recorded/l2/blocks.json");
        let raws = vector("recorded/l2/raw-transactions.json");
        let expected = block::block_from_json(&blocks[1], |_| None).unwrap();
        blocks[1]["transactions"][1]["type"] = json!("0x6f");
        let server = rpc(move |method, params| match method {
            "eth_getBlockByNumber" => Ok(blocks[place(params)].clone()),
            "eth_getRawTransactionByHash" => Ok(raws[params[0].as_str().unwrap()].clone()),
            _ => Err((-32601, "no")),
        })
        .await;
        assert_eq!(client(&server).blocks(n(1), n(1)).await.unwrap(), [expected]);
    }

    #[tokio::test]
    async fn a_chain_that_changes_under_way_is_refused() {
        let mut blocks = vector("recorded/l2/blocks.json");
        let other = blocks[41].clone();
        blocks[40] = other;
        let server = node(blocks.clone(), &["eth_getBlockByNumber"]).await;
        assert_eq!(client(&server).blocks(n(39), n(41)).await.unwrap_err().kind, PortErrorKind::Malformed);
        // A block of the right number that does not link, at the seam of two batches.
        let mut header = FullHeader::from_json(&blocks[50]).unwrap();
        header.parent_hash = B256::repeat_byte(1);
        let mut forged = header.to_json();
        forged["transactions"] = json!([]);
        blocks[50] = forged;
        let server = node(blocks, &["eth_getBlockByNumber"]).await;
        let error = client(&server).blocks(n(45), n(51)).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Malformed);
    }

    #[tokio::test]
    async fn e22_a_fresh_nodes_first_snapshot_is_clean() {
        let blocks = vector("recorded/l2/blocks.json");
        let genesis = blocks[0].clone();
        let server = rpc(move |method, params| match (method, params[0].as_str()) {
            ("eth_getBlockByNumber", Some("latest")) => Ok(genesis.clone()),
            ("eth_getBlockByNumber", Some("safe")) => Err((-32000, "safe block not available")),
            ("eth_getBlockByNumber", Some("finalized")) => Err((-32000, "finalized block not available")),
            ("eth_syncing", _) => Ok(json!(false)),
            ("web3_clientVersion", _) => Err((-32601, "the method web3_clientVersion does not exist/is not available")),
            other => panic!("{other:?}"),
        })
        .await;
        let snapshot = client(&server).snapshot().await.unwrap();
        assert_eq!((snapshot.head.number, snapshot.safe, snapshot.finalized), (n(0), None, None));
        assert!(!snapshot.syncing);
        assert_eq!(server.hits().len(), 1);
    }

    #[tokio::test]
    async fn e10_tags_are_read_with_every_snapshot() {
        let blocks = vector("recorded/l2/blocks.json");
        let server = rpc(move |method, params| match (method, params[0].as_str()) {
            (_, Some("latest")) => Ok(blocks[126].clone()),
            (_, Some("safe")) => Ok(blocks[100].clone()),
            (_, Some("finalized")) => Ok(blocks[90].clone()),
            _ => Ok(json!({"currentBlock": "0x1", "highestBlock": "0x2"})),
        })
        .await;
        let client = client(&server);
        for _ in 0..2 {
            let snapshot = client.snapshot().await.unwrap();
            assert_eq!(snapshot.head.number, n(126));
            assert_eq!(snapshot.safe.map(|block| block.number), Some(n(100)));
            assert_eq!(snapshot.finalized.map(|block| block.number), Some(n(90)));
            assert!(snapshot.syncing);
        }
        assert_eq!((server.calls().len(), client.client()), (10, None));
    }

    #[tokio::test]
    async fn m30_which_states_are_there_is_one_request() {
        let server = rpc(|_, params| match params[1].as_str().unwrap() {
            "0x5" => Ok(json!("0x0")),
            "0x6" => Err((-32000, "missing trie node 12ab (path ) state 0x12 is not available")),
            _ => Err((-32000, "database closed")),
        })
        .await;
        let l2 = client(&server);
        assert_eq!(l2.has_states(&[n(6), n(5)]).await.unwrap(), Some(vec![false, true]));
        assert_eq!(server.hits().len(), 1);
        assert!(l2.has_states(&[n(5), n(7)]).await.is_err(), "could not look");
        let deaf = rpc(|_, _| Err((-32601, "the method eth_getBalance does not exist/is not available"))).await;
        assert_eq!(client(&deaf).has_states(&[n(5)]).await.unwrap(), None);
    }

    #[tokio::test]
    async fn message_root_by_hash_then_by_number_then_pruned() {
        let blocks = vector("recorded/l2/blocks.json");
        let roots = vector("recorded/l2/message-roots.json");
        let block = L2Ref { number: n(9), hash: hash(&blocks[9]["hash"]) };
        let expected = MessageRoot::Root(hash(&roots["9"]));
        let (root, chain) = (roots["9"].clone(), blocks.clone());
        let by_hash = rpc(move |method, params| {
            if method == "eth_getBlockByNumber" {
                return Ok(chain[place(params)].clone());
            }
            assert!(params[1]["blockHash"].is_string());
            Ok(root.clone())
        })
        .await;
        assert_eq!(client(&by_hash).message_root(block).await.unwrap(), expected);
        // Answered for a block that is not on the chain.
        let orphan = L2Ref { hash: B256::repeat_byte(1), ..block };
        assert_eq!(client(&by_hash).message_root(orphan).await.unwrap_err().kind, PortErrorKind::NotFound);
        assert_eq!(by_hash.hits().len(), 2, "one request each");

        let (root, chain) = (roots["9"].clone(), blocks.clone());
        let by_number = rpc(move |method, params| match method {
            "eth_call" if params[1].is_string() => Ok(root.clone()),
            "eth_call" => Err((-32602, "invalid argument 1: hex string without 0x prefix")),
            _ => Ok(chain[place(params)].clone()),
        })
        .await;
        let l2 = client(&by_number);
        assert_eq!(l2.message_root(block).await.unwrap(), expected);
        assert_eq!(l2.message_root(block).await.unwrap(), expected);
        assert_eq!(by_number.hits().len(), 3, "the refusal is remembered");
        let moved = L2Ref { hash: B256::repeat_byte(1), ..block };
        assert_eq!(l2.message_root(moved).await.unwrap_err().kind, PortErrorKind::NotFound);

        let pruned = rpc(|_, _| Err((-32000, "missing trie node 12ab (path ) state 0x12 is not available"))).await;
        assert_eq!(client(&pruned).message_root(block).await.unwrap(), MessageRoot::Pruned);
        let empty = rpc(|_, _| Ok(json!("0x"))).await;
        assert_eq!(client(&empty).message_root(block).await.unwrap_err().kind, PortErrorKind::Malformed);
    }

    /// A node with the recorded chain and its AppendMessage logs, `cap` blocks at a time.
    async fn log_node(blocks: Value, logs: Value, cap: u64) -> Server {
        rpc(move |method, params| {
            if method == "eth_getBlockByNumber" {
                let newest = blocks.as_array().unwrap().last().unwrap();
                return Ok(if params[0] == "latest" { newest.clone() } else { blocks[place(params)].clone() });
            }
            let edge = |key| crate::adapters::testing::field_quantity(&params[0], key).unwrap();
            let range = edge("fromBlock")..=edge("toBlock");
            if range.end() - range.start() + 1 > cap {
                return Err((-32005, "exceeds the range allowed"));
            }
            let inside =
                |log: &&Value| range.contains(&crate::adapters::testing::field_quantity(log, "blockNumber").unwrap());
            Ok(logs.as_array().unwrap().iter().filter(inside).rev().cloned().collect())
        })
        .await
    }

    #[tokio::test]
    async fn the_last_appended_root_is_the_message_root_also_on_a_narrow_node() {
        let logs = vector("recorded/l2/append-message-logs.json");
        let roots = vector("recorded/l2/message-roots.json");
        let blocks = vector("recorded/l2/blocks.json");
        let at = |number: u64| {
            let place = usize::try_from(number).unwrap();
            L2Ref { number: n(number), hash: hash(&blocks[place]["hash"]) }
        };
        for cap in [1000, 20] {
            let l2 = client(&log_node(blocks.clone(), logs.clone(), cap).await);
            for last in [8_u64, 9, 60, 126] {
                for tip in [last, 126] {
                    let root = l2.last_appended_root(n(0), n(last), at(tip)).await.unwrap();
                    assert_eq!(root, Some(hash(&roots[last.to_string()])), "{last} below {tip}");
                }
            }
            assert_eq!(l2.last_appended_root(n(0), n(0), at(126)).await.unwrap(), None);
            let beyond = L2Ref { number: n(500), hash: B256::repeat_byte(1) };
            assert_eq!(l2.last_appended_root(n(0), n(500), beyond).await.unwrap_err().kind, PortErrorKind::NotFound);
        }
    }

    #[tokio::test]
    async fn m19_logs_of_another_chain_or_of_a_fallen_one_are_no_answer() {
        let logs = vector("recorded/l2/append-message-logs.json");
        let blocks = vector("recorded/l2/blocks.json");
        let tip = L2Ref { number: n(60), hash: hash(&blocks[60]["hash"]) };
        let found = async |blocks: &Value, logs: &Value, tip: L2Ref| {
            let server = log_node(blocks.clone(), logs.clone(), 1000).await;
            client(&server).last_appended_root(n(0), n(60), tip).await.map_err(|error| error.kind)
        };
        assert!(found(&blocks, &logs, tip).await.unwrap().is_some());
        // Another block is at the tip's height, with logs or without.
        let other = L2Ref { hash: B256::repeat_byte(1), ..tip };
        assert_eq!(found(&blocks, &logs, other).await, Err(PortErrorKind::NotFound));
        assert_eq!(found(&blocks, &json!([]), other).await, Err(PortErrorKind::NotFound));
        // The head fell below the tip, for which the node still answers.
        let mut fallen = blocks.clone();
        let low = fallen[50].clone();
        fallen.as_array_mut().unwrap().push(low);
        assert_eq!(found(&fallen, &json!([]), tip).await, Err(PortErrorKind::NotFound));
        // The newest log is one of a block that left the chain.
        let mut stray = logs.clone();
        let below = |log: &&mut Value| crate::adapters::testing::field_quantity(log, "blockNumber").unwrap() <= 60;
        for log in stray.as_array_mut().unwrap().iter_mut().filter(below) {
            log["blockHash"] = json!(wire::hex_hash(&B256::repeat_byte(2)));
        }
        assert_eq!(found(&blocks, &stray, tip).await, Err(PortErrorKind::NotFound));
    }

    #[tokio::test]
    async fn a_missing_header_is_none_and_another_one_refused() {
        let blocks = vector("recorded/l2/blocks.json");
        let server = node(blocks.clone(), &["eth_getBlockByNumber"]).await;
        assert_eq!(client(&server).header(n(500)).await.unwrap(), None);
        assert_eq!(client(&server).header(n(5)).await.unwrap().unwrap().hash, hash(&blocks[5]["hash"]));
        let wrong = rpc(move |_, _| Ok(blocks[4].clone())).await;
        assert_eq!(client(&wrong).header(n(5)).await.unwrap_err().kind, PortErrorKind::Malformed);
    }
}
