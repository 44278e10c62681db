//! L1 over JSON-RPC: headers, logs of the two contracts, transactions, traces, contract views.
//!
//! Decided here: which endpoint's answer counts for which question, how a wide range is split, and which logs are
//! logs at all (not removed, of the right contract, inside the range, no two block hashes at one height). Not decided
//! here: whether a log lies on the canonical chain; the flow reads the end header before and after (B1).
//!
//! A range is answered by one endpoint that shows the range's last block in the same exchange (A1): an endpoint that
//! lags gives no logs above its head, and no error either.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::rpc::{Call, Json, Pool, found};
use super::wire::{self, AtMost, Bounded};
use crate::codec::event::{self, selectors, topics};
use crate::decide::cursor::Walk;
use crate::error::{PortError, PortErrorKind, Target};
use crate::ports::{FoundLogs, L1Chain, PortResult, RangeLogs, Suspect};
use crate::types::{
    Address, B256, BatchIndex, L1Event, L1EventKind, L1Header, L1Number, L1Ref, L1Tag, L1Transaction, L2Number,
    QueueIndex, TracedCall,
};

/// Widest range asked for until a server says otherwise, in blocks.
const WIDEST: u64 = 100_000;

/// After so many answers in a row at the learnt width, a wider range is tried: limits often depend on how many logs
/// a stretch of the chain holds.
const GROW_AFTER: u64 = 32;

/// Most logs of one answer. A block's gas holds some 20,000 of the smallest ones.
const LOGS_MAX: usize = 100_000;

/// Most pieces of one call. A poll reads one range and makes some ten requests besides: no more than twenty in all (A3).
const PIECES_MAX: usize = 8;

/// No further piece of a call is asked for after this time: what a slow endpoint gave is used before more is asked.
const PIECES_TIME: Duration = Duration::from_secs(5);

/// No further piece of a call is asked for after logs of so many bytes: some 8,000 messages of the ordinary size. What is
/// kept is held several times on its way into the database (P7).
const KEPT_BYTES: usize = 4 << 20;

/// Most blobs of one transaction; the largest value that a scheduled fork allows is well below.
const BLOBS_MAX: usize = 72;

/// Most call frames of one trace. A block's gas holds some 10,000 calls of the ordinary kind, and of the cheapest kind
/// more than are read here: a commit among those counts as one that cannot be traced.
const FRAMES_MAX: usize = 65_536;

/// The EVM's own bound on nested calls, 1024, and one for the transaction.
const DEPTH_MAX: usize = 1025;

/// How wide a range may be, as learnt from refusals.
#[derive(Debug)]
struct Width {
    now: u64,
    answers: u64,
}

/// L1 through a pool of endpoints.
#[derive(Debug)]
pub struct L1Client {
    pool: Pool,
    rollup: Address,
    queue: Address,
    width: Mutex<Width>,
    /// The highest block that any endpoint has shown: a null below it is an endpoint that lags (J6).
    highest: AtomicU64,
    /// The endpoint that gave logs last.
    gave_logs: AtomicUsize,
    /// The endpoint that named a block by a tag last.
    named_block: AtomicUsize,
}

/// Which logs are asked for.
#[derive(Clone)]
struct Filter {
    addresses: Value,
    /// Topics of which the first one of a log must be one.
    events: &'static [B256],
    /// The batch that they must be about.
    index: Option<BatchIndex>,
}

impl Filter {
    fn topics(&self) -> Value {
        let any: Vec<String> = self.events.iter().map(wire::hex_hash).collect();
        match self.index {
            Some(index) => json!([any, wire::hex_hash(&event::number_word(index.get()))]),
            None => json!([any]),
        }
    }

    /// Whether `kind` was asked for. Other logs are left out, as those of other contracts' events are.
    fn admits(&self, kind: &L1EventKind) -> bool {
        let (topic, index) = match kind {
            L1EventKind::Commit { index, .. } => (topics::COMMIT_BATCH, Some(*index)),
            L1EventKind::Revert { index, .. } => (topics::REVERT_BATCH, Some(*index)),
            L1EventKind::Finalize { index, .. } => (topics::FINALIZE_BATCH, Some(*index)),
            L1EventKind::Message(_) => (topics::QUEUE_TRANSACTION, None),
        };
        self.events.contains(&topic) && self.index.is_none_or(|wanted| index == Some(wanted))
    }
}

/// All events that a range is read for.
const ALL: &[B256] = &[topics::COMMIT_BATCH, topics::REVERT_BATCH, topics::FINALIZE_BATCH, topics::QUEUE_TRANSACTION];
const SETTLEMENTS: &[B256] = &[topics::REVERT_BATCH, topics::FINALIZE_BATCH];

/// Blocks whose logs are asked for, and from which end on.
struct Stretch {
    from: L1Number,
    to: L1Number,
    upwards: bool,
}

/// The logs of the first pieces of a stretch.
#[derive(Default)]
struct Answer {
    events: Vec<L1Event>,
    /// The last block of every piece, in the order in which they were asked for.
    ends: Vec<L1Ref>,
    /// How far the pieces came.
    reached: L1Number,
    /// The endpoint that gave no further piece, and why.
    stopped: Option<(usize, PortError)>,
}

impl Answer {
    fn found(self) -> FoundLogs {
        FoundLogs { events: self.events, reached: self.reached }
    }
}

/// Whether an endpoint may say this and still be in good standing.
const fn is_refusal(error: &PortError) -> bool {
    matches!(
        error.kind,
        PortErrorKind::RangeTooWide
            | PortErrorKind::Unsupported
            | PortErrorKind::Pruned
            | PortErrorKind::Refused { .. }
            | PortErrorKind::WrongNetwork
    )
}

/// What an event takes in memory.
fn held_bytes(event: &L1Event) -> usize {
    let raw = match &event.kind {
        L1EventKind::Message(message) => message.raw.len(),
        L1EventKind::Commit { .. } | L1EventKind::Revert { .. } | L1EventKind::Finalize { .. } => 0,
    };
    raw.saturating_add(size_of::<L1Event>())
}

impl L1Client {
    /// The chain behind `pool`, seen through the contracts at `rollup` and `queue`.
    pub fn new(pool: Pool, rollup: Address, queue: Address) -> Self {
        let width = Mutex::new(Width { now: WIDEST, answers: 0 });
        Self {
            pool,
            rollup,
            queue,
            width,
            highest: AtomicU64::new(0),
            gave_logs: AtomicUsize::new(0),
            named_block: AtomicUsize::new(0),
        }
    }

    /// The endpoints, for figures.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// `eth_chainId`.
    pub async fn chain_id(&self) -> PortResult<u64> {
        self.pool.call("eth_chainId", json!([])).await?.quantity()
    }

    /// The code at `address`, newest state; empty if there is no contract.
    pub async fn code_at(&self, address: Address) -> PortResult<Bytes> {
        self.pool.call("eth_getCode", json!([wire::hex_address(&address), "latest"])).await?.bytes()
    }

    /// Widest range that is asked for at present, in blocks.
    pub fn range_width(&self) -> u64 {
        self.width.lock().map_or(1, |width| width.now)
    }

    async fn headers_on(&self, at: usize, numbers: &[L1Number], strict: bool) -> PortResult<Vec<Option<L1Header>>> {
        let calls: Vec<Call> = numbers.iter().map(|number| block_call(&wire::hex_quantity(number.get()))).collect();
        let replies = self.pool.batch_on(at, &calls).await?;
        let mut headers = Vec::with_capacity(numbers.len());
        for (number, reply) in numbers.iter().zip(replies) {
            let header = read_header(reply)?;
            if header.is_some_and(|header| header.number != *number) {
                let detail = format!("{}: asked for block {number}, got another", self.pool.name(at));
                return Err(PortError::malformed(Target::L1, detail));
            }
            if let Some(header) = header {
                self.saw(header.number);
            } else if strict && number.get() <= self.highest.load(Ordering::Relaxed) {
                return Err(self.behind(at, *number));
            }
            headers.push(header);
        }
        Ok(headers)
    }

    fn saw(&self, number: L1Number) {
        self.highest.fetch_max(number.get(), Ordering::Relaxed);
    }

    /// The error for an endpoint that does not have block `number`. It is set aside if there is another one.
    fn behind(&self, at: usize, number: L1Number) -> PortError {
        let detail = format!("{}: does not have block {number} (lags)", self.pool.name(at));
        let error = PortError::new(Target::L1, PortErrorKind::NotFound, detail);
        self.pool.demote(at, &error);
        error
    }

    /// The logs of as much of `stretch` as a few pieces give, all from one endpoint.
    async fn logs(&self, filter: Filter, stretch: Stretch) -> PortResult<Answer> {
        if stretch.from > stretch.to {
            return Ok(Answer::default());
        }
        let (filter, stretch) = (&filter, &stretch);
        let answer = self.pool.run(|at| async move { self.logs_on(at, filter, stretch).await }).await?;
        if let Some((at, error)) = &answer.stopped
            && !is_refusal(error)
        {
            // What it gave counts. What it did not give is asked of another endpoint, if there is one.
            self.pool.demote(*at, error);
        }
        Ok(answer)
    }

    /// The first pieces of `stretch` from endpoint `at`: as many as one call may ask for, fewer if one fails. It is an
    /// error only if the first one does.
    async fn logs_on(&self, at: usize, filter: &Filter, stretch: &Stretch) -> PortResult<Answer> {
        let began = Instant::now();
        let mut walk = Walk::new(stretch.from, stretch.to, stretch.upwards, WIDEST);
        let mut answer = Answer::default();
        let mut held = 0_usize;
        while let Some(piece) = walk.piece(self.range_width()) {
            let width = piece.to.above(piece.from).saturating_add(1);
            match self.piece_on(at, filter, piece.from, piece.to).await {
                Ok((events, last)) => {
                    self.answered(width);
                    held = events.iter().map(held_bytes).fold(held, usize::saturating_add);
                    answer.events.extend(events);
                    answer.ends.push(last);
                    walk.pass(if stretch.upwards { piece.to } else { piece.from });
                    answer.reached = if stretch.upwards { piece.to } else { piece.from };
                }
                Err(error) if error.kind == PortErrorKind::RangeTooWide && width > 1 => self.refused(width),
                Err(error) if answer.ends.is_empty() => return Err(error),
                Err(error) => {
                    debug!(%error, reached = answer.reached.get(), "the rest of these logs is asked for later");
                    answer.stopped = Some((at, error));
                    break;
                }
            }
            let enough = answer.ends.len() >= PIECES_MAX || held > KEPT_BYTES || began.elapsed() >= PIECES_TIME;
            if enough && !answer.ends.is_empty() {
                break;
            }
        }
        self.gave_logs.store(at, Ordering::Relaxed);
        answer.events = self.ordered(at, answer.events)?;
        Ok(answer)
    }

    /// The logs of one piece, and its last block out of the same exchange.
    async fn piece_on(
        &self,
        at: usize,
        filter: &Filter,
        from: L1Number,
        to: L1Number,
    ) -> PortResult<(Vec<L1Event>, L1Ref)> {
        let range = json!([{
            "address": filter.addresses,
            "topics": filter.topics(),
            "fromBlock": wire::hex_quantity(from.get()),
            "toBlock": wire::hex_quantity(to.get()),
        }]);
        let calls = [block_call(&wire::hex_quantity(to.get())), Call::new("eth_getLogs", range)];
        let mut replies = self.pool.batch_on(at, &calls).await?.into_iter();
        let (Some(end), Some(logs)) = (replies.next(), replies.next()) else {
            return Err(PortError::malformed(Target::L1, format!("{}: eth_getLogs: no reply", self.pool.name(at))));
        };
        let Some(end) = read_header(end)?.filter(|end| end.number == to) else { return Err(self.behind(at, to)) };
        self.saw(end.number);
        let json = logs?;
        let Some(logs) = json.parse::<AtMost<Log<'_>, LOGS_MAX>>()?.0 else {
            let detail = format!("{}: eth_getLogs: more than {LOGS_MAX} logs", self.pool.name(at));
            return Err(PortError::new(Target::L1, PortErrorKind::RangeTooWide, detail));
        };
        let mut events = Vec::with_capacity(logs.len());
        for log in &logs {
            if log.removed {
                continue;
            }
            let Some(event) = self.read_log(log).map_err(|why| json.malformed(why))? else { continue };
            if !filter.admits(&event.kind) {
                continue;
            }
            if event.block.number < from || event.block.number > to {
                return Err(json.malformed(format_args!("a log of block {}, asked {from} to {to}", event.block.number)));
            }
            if event.block.number == to && event.block.hash != end.hash {
                return Err(json.malformed(format_args!("block {to} changed while it was read")));
            }
            events.push(event);
        }
        Ok((events, end.l1_ref()))
    }

    /// The event in `log`; none if it is not one of ours.
    fn read_log(&self, log: &Log<'_>) -> Result<Option<L1Event>, String> {
        let field = |name: &str| format!("a log without a usable {name}");
        let address = wire::address(log.address).ok_or_else(|| field("address"))?;
        if address != self.rollup && address != self.queue {
            return Err(format!("a log of contract {address:?}, which was not asked for"));
        }
        let topics: Vec<B256> =
            log.topics.0.iter().map(|topic| wire::hash(topic)).collect::<Option<_>>().ok_or_else(|| field("topic"))?;
        let data = wire::bytes(log.data).ok_or_else(|| field("data"))?;
        let Some(kind) = event::decode_event(&topics, &data).map_err(|error| error.to_string())? else {
            return Ok(None);
        };
        let by = match kind {
            L1EventKind::Commit { .. } | L1EventKind::Revert { .. } | L1EventKind::Finalize { .. } => self.rollup,
            L1EventKind::Message(_) => self.queue,
        };
        if address != by {
            return Ok(None);
        }
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        let (number, hash) = (text(log.block_number), text(log.block_hash));
        Ok(Some(L1Event {
            block: L1Ref {
                number: L1Number::new(wire::quantity(&number).ok_or_else(|| field("blockNumber"))?),
                hash: wire::hash(&hash).ok_or_else(|| field("blockHash"))?,
            },
            log_index: wire::quantity(&text(log.log_index)).ok_or_else(|| field("logIndex"))?,
            tx_hash: wire::hash(&text(log.transaction_hash)).ok_or_else(|| field("transactionHash"))?,
            tx_index: wire::quantity(&text(log.transaction_index)).ok_or_else(|| field("transactionIndex"))?,
            kind,
        }))
    }

    /// By block and place, each once. Two block hashes at one height, or two logs at one place, are a chain that
    /// changed under way.
    fn ordered(&self, at: usize, events: Vec<L1Event>) -> PortResult<Vec<L1Event>> {
        let mut hashes: BTreeMap<L1Number, B256> = BTreeMap::new();
        let mut places: BTreeMap<(L1Number, u64), L1Event> = BTreeMap::new();
        for event in events {
            let place = (event.block.number, event.log_index);
            let same_block = *hashes.entry(event.block.number).or_insert(event.block.hash) == event.block.hash;
            let same_log = places.get(&place).is_none_or(|earlier| *earlier == event);
            if !same_block || !same_log {
                let detail =
                    format!("{}: eth_getLogs: block {} has two hashes", self.pool.name(at), event.block.number);
                return Err(PortError::malformed(Target::L1, detail));
            }
            places.insert(place, event);
        }
        Ok(places.into_values().collect())
    }

    /// A range of `width` blocks was refused: half of it from now on.
    fn refused(&self, width: u64) {
        if let Ok(mut known) = self.width.lock() {
            known.now = (width / 2).max(1).min(known.now);
            known.answers = 0;
        }
    }

    /// A range of `width` blocks was answered; after enough of them at full width, try a wider one.
    fn answered(&self, width: u64) {
        if let Ok(mut known) = self.width.lock() {
            if width < known.now {
                return;
            }
            known.answers = known.answers.saturating_add(1);
            if known.answers >= GROW_AFTER {
                known.now = known.now.saturating_mul(2).min(WIDEST);
                known.answers = 0;
            }
        }
    }

    /// The answers of views of `to`, all at one state.
    async fn views(&self, to: Address, calldata: Vec<String>, at: Option<L1Number>) -> PortResult<Vec<Bytes>> {
        let state = at.map_or_else(|| String::from("latest"), |number| wire::hex_quantity(number.get()));
        let to = wire::hex_address(&to);
        let view = |data: String| Call::new("eth_call", json!([{"to": to, "data": data}, state]));
        let calls: Vec<Call> = calldata.into_iter().map(view).collect();
        let calls = &calls;
        // An error of one call fails the endpoint: the next one may keep the state.
        self.pool
            .run(|at| async move {
                let replies = self.pool.batch_on(at, calls).await?;
                replies.into_iter().map(|reply| reply.and_then(|json| json.bytes())).collect()
            })
            .await
    }

    async fn view(&self, calldata: String, at: Option<L1Number>) -> PortResult<Bytes> {
        let answers = self.views(self.rollup, vec![calldata], at).await?;
        answers.into_iter().next().ok_or_else(|| bad_view("no answer"))
    }
}

fn view_data(selector: [u8; 4], argument: u64) -> String {
    wire::hex_bytes(&event::encode_view(selector, Some(argument)))
}

fn bad_view(why: impl std::fmt::Display) -> PortError {
    PortError::malformed(Target::L1, format!("eth_call: {why} (is the contract there?)"))
}

fn words(answers: &[Bytes]) -> PortResult<Vec<B256>> {
    answers.iter().map(|answer| event::view_word(answer, 0).map_err(bad_view)).collect()
}

const fn tag_name(tag: L1Tag) -> &'static str {
    match tag {
        L1Tag::Latest => "latest",
        L1Tag::Safe => "safe",
        L1Tag::Finalized => "finalized",
    }
}

fn block_call(block: &str) -> Call {
    Call::new("eth_getBlockByNumber", json!([block, false]))
}

/// A header; none for null and for the errors by which nodes say that there is no such block.
fn read_header(reply: PortResult<Json>) -> PortResult<Option<L1Header>> {
    let Some(json) = found(reply)? else { return Ok(None) };
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Header<'a> {
        number: &'a str,
        hash: &'a str,
        parent_hash: &'a str,
        timestamp: &'a str,
    }
    let header: Header<'_> = json.parse()?;
    let read = || {
        Some(L1Header {
            number: L1Number::new(wire::quantity(header.number)?),
            hash: wire::hash(header.hash)?,
            parent_hash: wire::hash(header.parent_hash)?,
            timestamp: wire::quantity(header.timestamp)?,
        })
    };
    read().map(Some).ok_or_else(|| json.malformed("a header with a field that is not hex"))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Log<'a> {
    address: &'a str,
    #[serde(borrow)]
    topics: Bounded<&'a str, 4>,
    data: &'a str,
    block_number: Option<&'a str>,
    block_hash: Option<&'a str>,
    log_index: Option<&'a str>,
    transaction_hash: Option<&'a str>,
    transaction_index: Option<&'a str>,
    #[serde(default)]
    removed: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Transaction<'a> {
    hash: &'a str,
    block_hash: &'a str,
    block_number: &'a str,
    transaction_index: &'a str,
    to: Option<&'a str>,
    input: &'a str,
    #[serde(default, borrow)]
    blob_versioned_hashes: Option<Bounded<&'a str, BLOBS_MAX>>,
}

/// The transaction, if it is at `index` of `block`.
fn read_transaction(json: &Json, block: L1Ref, index: u64) -> PortResult<Option<L1Transaction>> {
    let Some(tx) = json.parse::<Option<Transaction<'_>>>()? else { return Ok(None) };
    let read = || {
        let to = match tx.to {
            Some(to) => Some(wire::address(to)?),
            None => None,
        };
        let blob_hashes = tx.blob_versioned_hashes.as_ref().map_or(&[][..], |hashes| &hashes.0);
        Some(L1Transaction {
            hash: wire::hash(tx.hash)?,
            block: L1Ref { number: L1Number::new(wire::quantity(tx.block_number)?), hash: wire::hash(tx.block_hash)? },
            index: wire::quantity(tx.transaction_index)?,
            to,
            input: wire::bytes(tx.input)?,
            blob_hashes: blob_hashes.iter().map(|hash| wire::hash(hash)).collect::<Option<_>>()?,
        })
    };
    let tx = read().ok_or_else(|| json.malformed("a transaction with a field that is not hex"))?;
    if tx.block != block || tx.index != index {
        return Err(
            json.malformed(format_args!("asked for place {index} of {block}, got {} of {}", tx.index, tx.block))
        );
    }
    Ok(Some(tx))
}

#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(default)]
    to: Option<&'a str>,
    #[serde(default)]
    input: Option<&'a str>,
    #[serde(default, borrow)]
    error: Option<&'a RawValue>,
    #[serde(default, borrow)]
    calls: Option<AtMost<&'a RawValue, FRAMES_MAX>>,
}

fn too_many_frames() -> PortError {
    let detail = format!("debug_traceTransaction: more than {FRAMES_MAX} calls");
    PortError::new(Target::L1, PortErrorKind::RangeTooWide, detail)
}

/// The calls to `rollup` in a callTracer result, in order of execution, without those that were rolled back: a frame
/// with an error undoes all below it. Delegate calls run in the caller's name and are not calls to the contract.
///
/// Frames are read level by level, so that their nesting (the sender chooses it, up to 1024) is not the parser's.
fn flatten(json: &Json, rollup: Address) -> PortResult<Vec<TracedCall>> {
    let root: &RawValue = json.parse()?;
    let mut open: Vec<(&RawValue, usize)> = vec![(root, 1)];
    let mut calls = Vec::new();
    let mut frames = 0_usize;
    while let Some((text, depth)) = open.pop() {
        frames = frames.saturating_add(1);
        if depth > DEPTH_MAX {
            return Err(json.malformed("a trace of deeper calls than a transaction can hold"));
        }
        if frames > FRAMES_MAX {
            return Err(too_many_frames());
        }
        let frame: Frame<'_> = serde_json::from_str(text.get()).map_err(|_| json.malformed("not a call frame"))?;
        if frame.error.is_some() {
            continue;
        }
        if frame.kind == "CALL" && frame.to.and_then(wire::address) == Some(rollup) {
            let input = wire::bytes(frame.input.unwrap_or("0x")).ok_or_else(|| json.malformed("input is not hex"))?;
            calls.push(TracedCall { to: rollup, input });
        }
        let Some(below) = frame.calls.map_or(Some(Vec::new()), |calls| calls.0) else { return Err(too_many_frames()) };
        if open.len().saturating_add(below.len()) > FRAMES_MAX {
            return Err(too_many_frames());
        }
        open.extend(below.into_iter().rev().map(|call| (call, depth.saturating_add(1))));
    }
    Ok(calls)
}

/// An endpoint that refuses to trace, by its plan or for want of old state, or whose trace is too long to be read: as one
/// without the method, so that the others are asked; when none can, that is an answer and no fault that passes.
fn no_trace_here(mut error: PortError) -> PortError {
    match error.kind {
        PortErrorKind::RangeTooWide
        | PortErrorKind::Pruned
        | PortErrorKind::Unauthorized
        | PortErrorKind::Refused { .. } => error.kind = PortErrorKind::Unsupported,
        PortErrorKind::Unsupported
        | PortErrorKind::Unreachable
        | PortErrorKind::Timeout
        | PortErrorKind::RateLimited { .. }
        | PortErrorKind::NotFound
        | PortErrorKind::Malformed
        | PortErrorKind::WrongNetwork
        | PortErrorKind::Storage
        | PortErrorKind::StoreRefused => {}
    }
    error
}

#[async_trait]
impl L1Chain for L1Client {
    async fn tagged(&self, tag: L1Tag) -> PortResult<Option<L1Header>> {
        let read = |at: usize| async move {
            let reply = self.pool.call_on(at, block_call(tag_name(tag))).await?;
            self.named_block.store(at, Ordering::Relaxed);
            Ok(reply)
        };
        let header = read_header(self.pool.run(read).await)?;
        if let Some(header) = header {
            self.saw(header.number);
        }
        Ok(header)
    }

    async fn latest_and(&self, tag: L1Tag) -> PortResult<(Option<L1Header>, Option<L1Header>)> {
        let calls = [L1Tag::Latest, tag].map(|tag| block_call(tag_name(tag)));
        let calls = &calls;
        let read = |at: usize| async move {
            let mut replies = self.pool.batch_on(at, calls).await?.into_iter();
            let (Some(latest), Some(tagged)) = (replies.next(), replies.next()) else {
                let detail = format!("{}: eth_getBlockByNumber: no reply", self.pool.name(at));
                return Err(PortError::malformed(Target::L1, detail));
            };
            let headers = (read_header(latest)?, read_header(tagged)?);
            self.named_block.store(at, Ordering::Relaxed);
            Ok(headers)
        };
        let (latest, tagged) = self.pool.run(read).await?;
        latest.iter().chain(&tagged).for_each(|header| self.saw(header.number));
        Ok((latest, tagged))
    }

    async fn headers(&self, numbers: &[L1Number]) -> PortResult<Vec<Option<L1Header>>> {
        match self.pool.run(|at| self.headers_on(at, numbers, true)).await {
            // Every endpoint lacks a block that one of them had: the chain may have become shorter. Say so.
            Err(error) if error.kind == PortErrorKind::NotFound => {
                self.highest.store(0, Ordering::Relaxed);
                self.pool.run(|at| self.headers_on(at, numbers, false)).await
            }
            result => result,
        }
    }

    async fn events(&self, from: L1Number, to: L1Number) -> PortResult<RangeLogs> {
        let addresses = json!([wire::hex_address(&self.rollup), wire::hex_address(&self.queue)]);
        let filter = Filter { addresses, events: ALL, index: None };
        let answer = self.logs(filter, Stretch { from, to, upwards: true }).await?;
        Ok(RangeLogs { events: answer.events, ends: answer.ends })
    }

    async fn settlements(&self, from: L1Number, to: L1Number) -> PortResult<RangeLogs> {
        let filter = Filter { addresses: json!(wire::hex_address(&self.rollup)), events: SETTLEMENTS, index: None };
        let answer = self.logs(filter, Stretch { from, to, upwards: true }).await?;
        Ok(RangeLogs { events: answer.events, ends: answer.ends })
    }

    async fn commits_of(&self, index: BatchIndex, from: L1Number, to: L1Number) -> PortResult<FoundLogs> {
        let filter = self.by_index(&[topics::COMMIT_BATCH], index);
        self.logs(filter, Stretch { from, to, upwards: false }).await.map(Answer::found)
    }

    async fn reverts_of(&self, index: BatchIndex, from: L1Number, to: L1Number) -> PortResult<FoundLogs> {
        let filter = self.by_index(&[topics::REVERT_BATCH], index);
        self.logs(filter, Stretch { from, to, upwards: true }).await.map(Answer::found)
    }

    async fn queued(&self, from: L1Number, to: L1Number) -> PortResult<FoundLogs> {
        let addresses = json!(wire::hex_address(&self.queue));
        let filter = Filter { addresses, events: &[topics::QUEUE_TRANSACTION], index: None };
        self.logs(filter, Stretch { from, to, upwards: false }).await.map(Answer::found)
    }

    async fn transaction(&self, block: L1Ref, index: u64) -> PortResult<Option<L1Transaction>> {
        let params = json!([wire::hex_hash(&block.hash), wire::hex_quantity(index)]);
        let params = &params;
        let read = |at: usize| async move {
            let json =
                self.pool.call_on(at, Call::new("eth_getTransactionByBlockHashAndIndex", params.clone())).await?;
            read_transaction(&json, block, index)?.ok_or_else(|| {
                let detail = format!("{}: no transaction {index} in block {block}", self.pool.name(at));
                PortError::new(Target::L1, PortErrorKind::NotFound, detail)
            })
        };
        // Another endpoint may know the block. It is missing only if no endpoint has it.
        match self.pool.run(read).await {
            Ok(tx) => Ok(Some(tx)),
            Err(error) if error.kind == PortErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn rollup_calls(&self, tx: B256) -> PortResult<Option<Vec<TracedCall>>> {
        let params = json!([wire::hex_hash(&tx), {"tracer": "callTracer"}]);
        let params = &params;
        let trace = |at: usize| async move {
            let traced = self.pool.call_on(at, Call::new("debug_traceTransaction", params.clone())).await;
            traced.and_then(|json| flatten(&json, self.rollup)).map_err(no_trace_here)
        };
        match self.pool.run(trace).await {
            Ok(calls) => Ok(Some(calls)),
            Err(error) if error.kind == PortErrorKind::Unsupported => {
                let code = error.code();
                warn!(
                    code,
                    entity = "debug_traceTransaction",
                    ?tx,
                    "no L1 endpoint can trace the transaction: {error}"
                );
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn committed_hashes(&self, indices: &[BatchIndex], at: Option<L1Number>) -> PortResult<Vec<B256>> {
        let calldata = indices.iter().map(|index| view_data(selectors::COMMITTED_BATCHES, index.get())).collect();
        words(&self.views(self.rollup, calldata, at).await?)
    }

    async fn last_committed_index(&self, at: Option<L1Number>) -> PortResult<BatchIndex> {
        let answer =
            self.view(wire::hex_bytes(&event::encode_view(selectors::LAST_COMMITTED_BATCH_INDEX, None)), at).await?;
        event::view_number(&answer, 0).map(BatchIndex::new).map_err(bad_view)
    }

    async fn last_finalized_index(&self, at: Option<L1Number>) -> PortResult<BatchIndex> {
        let answer =
            self.view(wire::hex_bytes(&event::encode_view(selectors::LAST_FINALIZED_BATCH_INDEX, None)), at).await?;
        event::view_number(&answer, 0).map(BatchIndex::new).map_err(bad_view)
    }

    async fn blob_field(&self, index: BatchIndex) -> PortResult<B256> {
        let answer = self.view(view_data(selectors::BATCH_BLOB_VERSIONED_HASHES, index.get()), None).await?;
        event::view_word(&answer, 0).map_err(bad_view)
    }

    async fn batch_last_block(&self, index: BatchIndex) -> PortResult<L2Number> {
        let answer = self.view(view_data(selectors::BATCH_DATA_STORE, index.get()), None).await?;
        event::view_number(&answer, 2).map(L2Number::new).map_err(bad_view)
    }

    async fn queue_hashes(&self, indices: &[QueueIndex]) -> PortResult<Vec<B256>> {
        let calldata =
            indices.iter().map(|index| view_data(selectors::GET_CROSS_DOMAIN_MESSAGE, index.get())).collect();
        words(&self.views(self.queue, calldata, None).await?)
    }

    fn distrust(&self, suspect: Suspect, why: &str) -> bool {
        let at = match suspect {
            Suspect::Logs => self.gave_logs.load(Ordering::Relaxed),
            Suspect::Tag => self.named_block.load(Ordering::Relaxed),
        };
        let detail = format!("{}: {why}", self.pool.name(at));
        self.pool.set_aside(at, &PortError::new(Target::L1, PortErrorKind::NotFound, detail))
    }
}

impl L1Client {
    fn by_index(&self, events: &'static [B256], index: BatchIndex) -> Filter {
        Filter { addresses: json!(wire::hex_address(&self.rollup)), events, index: Some(index) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::adapters::rpc::PoolConfig;
    use crate::adapters::testing::{Answer, Server, config, http, pool, rpc};
    use crate::codec::event::encode_event;
    use crate::codec::testing::json as vector;
    use crate::codec::transaction::{L1MessageFields, encode_l1_message};

    fn rollup() -> Address {
        Address::repeat_byte(0xaa)
    }

    fn queue() -> Address {
        Address::repeat_byte(0xbb)
    }

    fn client(urls: &[&str]) -> L1Client {
        L1Client::new(pool(Target::L1, urls), rollup(), queue())
    }

    fn n(number: u64) -> L1Number {
        L1Number::new(number)
    }

    fn hash_of(number: u64) -> B256 {
        B256::from_low_u64_be(number + 1_000_000)
    }

    fn header(number: u64) -> Value {
        json!({
            "number": wire::hex_quantity(number),
            "hash": wire::hex_hash(&hash_of(number)),
            "parentHash": wire::hex_hash(&hash_of(number.wrapping_sub(1))),
            "timestamp": wire::hex_quantity(1_700_000_000 + 12 * number),
        })
    }

    fn commit(number: u64, place: u64, index: u64) -> Value {
        let kind = L1EventKind::Commit { index: BatchIndex::new(index), hash: B256::repeat_byte(7) };
        let (topics, data) = encode_event(&kind);
        json!({
            "address": wire::hex_address(&rollup()),
            "topics": topics.iter().map(wire::hex_hash).collect::<Vec<_>>(),
            "data": wire::hex_bytes(&data),
            "blockNumber": wire::hex_quantity(number),
            "blockHash": wire::hex_hash(&hash_of(number)),
            "transactionHash": wire::hex_hash(&B256::repeat_byte(9)),
            "transactionIndex": "0x2",
            "logIndex": wire::hex_quantity(place),
            "removed": false,
        })
    }

    fn range_of(params: &Value) -> (u64, u64) {
        let filter = &params[0];
        (
            crate::adapters::testing::field_quantity(filter, "fromBlock").unwrap(),
            crate::adapters::testing::field_quantity(filter, "toBlock").unwrap(),
        )
    }

    /// A chain up to `head` with a commit in every 100th block; `getLogs` wider than `cap` is refused.
    async fn chain(head: u64, cap: u64) -> Server {
        rpc(move |method, params| chain_answer(head, cap, method, params)).await
    }

    fn chain_answer(head: u64, cap: u64, method: &str, params: &Value) -> Answer {
        match method {
            "eth_getBlockByNumber" => Ok(match wire::quantity(params[0].as_str().unwrap()) {
                Some(number) if number > head => Value::Null,
                number => header(number.unwrap_or(head)),
            }),
            "eth_getLogs" => {
                let (from, to) = range_of(params);
                if to - from + 1 > cap {
                    return Err((-32005, "block range is too wide"));
                }
                let numbers = (from..=to.min(head)).filter(|number| number % 100 == 0);
                let index = params[0]["topics"][1].as_str().and_then(wire::hash).map(|word| word.to_low_u64_be());
                Ok(numbers.map(|number| commit(number, 0, index.unwrap_or(number / 100))).collect())
            }
            other => panic!("not served: {other}"),
        }
    }

    fn indices(events: &[L1Event]) -> Vec<u64> {
        let index = |event: &L1Event| match event.kind {
            L1EventKind::Commit { index, .. } => index.get(),
            _ => u64::MAX,
        };
        events.iter().map(index).collect()
    }

    /// All of a range, in as many calls as it takes.
    async fn whole(l1: &L1Client, from: u64, to: u64) -> Vec<L1Event> {
        let (mut next, mut events) = (n(from), Vec::new());
        while next <= n(to) {
            let logs = l1.events(next, n(to)).await.unwrap();
            next = logs.ends.last().unwrap().number.plus(1);
            events.extend(logs.events);
        }
        events
    }

    /// A chain whose `nth` request for logs, counted from one, and every later one until `until` is refused with 429.
    async fn limited(cap: u64, nth: u64, until: u64) -> Server {
        let asked = std::sync::Arc::new(AtomicU64::new(0));
        http(move |hit| {
            let logs = hit.calls().iter().any(|call| call["method"] == "eth_getLogs");
            let count = if logs { asked.fetch_add(1, Ordering::SeqCst) + 1 } else { 0 };
            let answer = |call: &Value| {
                let method = call["method"].as_str().unwrap_or_default();
                crate::adapters::testing::reply(call, chain_answer(5_000, cap, method, &call["params"]))
            };
            let body = match &hit.body {
                Value::Array(calls) => Value::Array(calls.iter().map(answer).collect()),
                one => answer(one),
            };
            let status = if count >= nth && count < until { 429 } else { 200 };
            async move { (status, vec![], body.to_string()) }
        })
        .await
    }

    #[tokio::test]
    async fn m16_what_a_piece_gave_is_kept_and_only_a_first_piece_is_an_error() {
        let server = limited(100, 4, 5).await;
        let l1 = client(&[&server.url]);
        l1.width.lock().unwrap().now = 100;
        let logs = l1.events(n(1), n(1_000)).await.unwrap();
        assert_eq!((indices(&logs.events), logs.ends.len()), (vec![1, 2, 3], 3));
        assert_eq!(logs.ends.last().unwrap().number, n(300));
        let rest = l1.events(n(301), n(1_000)).await.unwrap();
        assert_eq!((indices(&rest.events), rest.ends.last().unwrap().number), ((4..=10).collect(), n(1_000)));

        let server = limited(100, 1, 100).await;
        let error = client(&[&server.url]).events(n(1), n(1_000)).await.unwrap_err();
        assert!(matches!(error.kind, PortErrorKind::RateLimited { .. }));
    }

    #[tokio::test]
    async fn m16_what_an_endpoint_did_not_give_is_asked_of_the_next_one() {
        let limits = limited(100, 3, 1_000).await;
        let other = chain(5_000, 100).await;
        let l1 = client(&[&limits.url, &other.url]);
        l1.width.lock().unwrap().now = 100;
        assert_eq!(indices(&whole(&l1, 1, 1_000).await), (1..=10).collect::<Vec<_>>());
        let asked = |server: &Server| server.calls_of("eth_getLogs").len();
        assert_eq!((asked(&limits), asked(&other)), (3, 8), "two pieces here, eight there");
    }

    #[tokio::test]
    async fn m16_a3_a_call_asks_for_a_few_pieces_from_the_end_at_which_it_begins() {
        let server = chain(5_000, 10).await;
        let l1 = client(&[&server.url]);
        l1.width.lock().unwrap().now = 10;
        let asked = || -> Vec<(u64, u64)> {
            server.calls_of("eth_getLogs").iter().map(|call| range_of(&call["params"])).collect()
        };
        let few = PIECES_MAX as u64;
        let up: Vec<_> = (0..few).map(|at| (1_001 + at * 10, 1_010 + at * 10)).collect();
        let down: Vec<_> = (0..few).map(|at| (4_991 - at * 10, 5_000 - at * 10)).collect();
        let logs = l1.events(n(1_001), n(5_000)).await.unwrap();
        assert_eq!((asked(), logs.ends.last().unwrap().number), (up.clone(), n(1_000 + few * 10)));
        let found = l1.reverts_of(1.into(), n(1_001), n(5_000)).await.unwrap();
        assert_eq!((asked().split_off(PIECES_MAX), found.reached), (up, n(1_000 + few * 10)));
        let found = l1.commits_of(1.into(), n(1_001), n(5_000)).await.unwrap();
        assert_eq!((asked().split_off(2 * PIECES_MAX), found.reached), (down.clone(), n(5_001 - few * 10)));
        let numbers: Vec<u64> = found.events.iter().map(|event| event.block.number.get()).collect();
        assert_eq!(numbers, [5_000], "ascending, whichever way it was asked");
        let found = l1.queued(n(1_001), n(5_000)).await;
        assert_eq!((asked().split_off(3 * PIECES_MAX), found.unwrap().reached), (down, n(5_001 - few * 10)));
        // To the end, and no further. So many answers have let the width grow meanwhile.
        l1.width.lock().unwrap().now = 10;
        let found = l1.commits_of(1.into(), n(1), n(35)).await.unwrap();
        assert_eq!(
            (asked().split_off(4 * PIECES_MAX), found.reached),
            (vec![(26, 35), (16, 25), (6, 15), (1, 5)], n(1))
        );
        let every = l1.every_commit_of(1.into(), n(4_001), n(5_000)).await.unwrap();
        let numbers: Vec<u64> = every.iter().map(|event| event.block.number.get()).collect();
        assert_eq!(numbers, (41..=50).map(|at| at * 100).collect::<Vec<u64>>());
    }

    #[tokio::test]
    async fn a1_a_lagging_backend_gives_no_empty_range_but_its_turn() {
        let lagging = chain(250, 10_000).await;
        let healthy = chain(500, 10_000).await;
        let l1 = client(&[&lagging.url, &healthy.url]);
        assert_eq!(indices(&l1.events(n(201), n(400)).await.unwrap().events), [3, 4]);
        assert_eq!(lagging.calls_of("eth_getLogs").len(), 1);
        l1.events(n(201), n(400)).await.unwrap();
        assert_eq!(lagging.calls_of("eth_getLogs").len(), 1, "it is set aside");
        let exchange = &healthy.hits()[0];
        assert_eq!(exchange.calls().len(), 2, "logs and the range's last header in one exchange");

        let error = client(&[&lagging.url]).events(n(201), n(400)).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::NotFound, "alone, it is an error and not an empty range");
    }

    #[tokio::test]
    async fn a1_the_endpoint_that_gave_the_logs_is_set_aside_not_the_one_asked_last() {
        let answer = |method: &str, params: &Value| chain_answer(1000, u64::MAX, method, params);
        let first = rpc(move |method, params| match (method, params.get(0)) {
            ("eth_getBlockByNumber", Some(tag)) if tag == "finalized" => Err((-32603, "internal error")),
            _ => answer(method, params),
        })
        .await;
        let second = chain(1000, u64::MAX).await;
        let l1 = client(&[&first.url, &second.url]);
        l1.events(n(1), n(10)).await.unwrap();
        // The first one does not name the block: the second one does, and answers from then on.
        l1.tagged(L1Tag::Finalized).await.unwrap();
        assert!(l1.distrust(Suspect::Logs, "a log is missing"));
        l1.events(n(1), n(10)).await.unwrap();
        assert_eq!(second.calls_of("eth_getLogs").len(), 1, "the one that named the block still counts");
    }

    #[tokio::test]
    async fn a2_range_cap_is_asked_inclusively() {
        let server = chain(5_000, 500).await;
        let l1 = client(&[&server.url]);
        l1.width.lock().unwrap().now = 500;
        let events = whole(&l1, 1, 5_000).await;
        assert_eq!(indices(&events), (1..=50).collect::<Vec<u64>>());
        let asked: Vec<(u64, u64)> =
            server.calls_of("eth_getLogs").iter().map(|call| range_of(&call["params"])).collect();
        assert_eq!(asked.len(), 10, "nothing was refused");
        assert!(asked.iter().all(|(from, to)| to - from + 1 == 500));
        assert!(asked.windows(2).all(|pair| pair[1].0 == pair[0].1 + 1), "no gap, no overlap");
    }

    #[tokio::test]
    async fn a2_a_range_is_halved_until_it_is_served_remembered_and_grown_back() {
        let server = chain(100_000, 500).await;
        let l1 = client(&[&server.url]);
        assert_eq!(indices(&l1.events(n(1), n(501)).await.unwrap().events), [1, 2, 3, 4, 5]);
        assert_eq!(l1.range_width(), 250);
        let before = server.calls_of("eth_getLogs").len();
        assert_eq!(whole(&l1, 1, 10_000).await.len(), 100);
        let ranges: Vec<(u64, u64)> =
            server.calls_of("eth_getLogs")[before..].iter().map(|call| range_of(&call["params"])).collect();
        let refused = ranges.iter().filter(|(from, to)| to - from + 1 > 500).count();
        assert!(ranges.iter().any(|(from, to)| to - from + 1 == 500), "it grows back");
        assert!(refused <= 1 && ranges.len() < 45, "{refused} of {}", ranges.len());
    }

    #[tokio::test]
    async fn m20_p7_a_call_ends_with_the_piece_that_fills_what_is_kept() {
        const LARGE: usize = 3 << 19;
        let server = rpc(|method, params| match method {
            "eth_getLogs" => {
                let number = range_of(params).0;
                let message = encode_l1_message(&L1MessageFields {
                    queue_index: number,
                    gas_limit: 0.into(),
                    to: Address::zero(),
                    value: 0.into(),
                    data: vec![0; LARGE].into(),
                    sender: Address::zero(),
                });
                let (topics, data) = encode_event(&L1EventKind::Message(message));
                let mut log = commit(number, 0, 0);
                log["address"] = json!(wire::hex_address(&queue()));
                log["topics"] = topics.iter().map(wire::hex_hash).collect();
                log["data"] = json!(wire::hex_bytes(&data));
                Ok(json!([log]))
            }
            _ => chain_answer(500, 500, method, params),
        })
        .await;
        let l1 = client(&[&server.url]);
        l1.width.lock().unwrap().now = 1;
        let logs = l1.events(n(1), n(20)).await.unwrap();
        assert_eq!(logs.ends.len(), KEPT_BYTES / LARGE + 1);
        assert!(logs.events.iter().map(held_bytes).sum::<usize>() < 6 << 20);
    }

    #[tokio::test]
    async fn a3_a_range_is_never_split_on_429() {
        let server = http(|_| async { (429, vec![("retry-after", String::from("60"))], String::new()) }).await;
        let error = client(&[&server.url]).events(n(1), n(500)).await.unwrap_err();
        let expected = PortErrorKind::RateLimited { retry_after: Some(Duration::from_secs(60)) };
        assert_eq!(error.kind, expected);
        assert_eq!(server.hits().len(), 1);
        let quota = rpc(|method, _| match method {
            "eth_getLogs" => Err((-32005, "daily request count exceeded, request rate limited")),
            _ => Ok(header(500)),
        })
        .await;
        let l1 = client(&[&quota.url]);
        assert!(matches!(l1.events(n(1), n(500)).await.unwrap_err().kind, PortErrorKind::RateLimited { .. }));
        assert_eq!(quota.calls_of("eth_getLogs").len(), 1);
        assert_eq!(l1.range_width(), WIDEST);
    }

    #[tokio::test]
    async fn a2_more_logs_than_are_read_at_once_halve_the_range() {
        let server = rpc(|method, params| match method {
            "eth_getLogs" if range_of(params).1 > range_of(params).0 => {
                Ok(vec![json!({"address": "0x", "topics": [], "data": "0x"}); LOGS_MAX + 1].into())
            }
            _ => chain_answer(500, 500, method, params),
        })
        .await;
        // Writing and reading so many logs takes its time in a debug build; the deadline is not what is tried here.
        let patient = PoolConfig { call_timeout: Duration::from_secs(30), ..config() };
        let pool = Pool::new(Target::L1, std::slice::from_ref(&server.url), patient).unwrap();
        let l1 = L1Client::new(pool, rollup(), queue());
        assert_eq!(indices(&l1.events(n(99), n(100)).await.unwrap().events), [1]);
    }

    #[tokio::test]
    async fn a2_one_block_that_is_too_wide_is_an_error() {
        let server = chain(500, 0).await;
        let error = client(&[&server.url]).events(n(1), n(4)).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::RangeTooWide);
        assert_eq!(server.calls_of("eth_getLogs").len(), 3, "4, 2, 1 blocks");
    }

    #[tokio::test]
    async fn a8_a_failing_view_leaves_logs_alone() {
        let server = rpc(|method, params| match method {
            "eth_call" => Err((-32000, "missing trie node 11 (path ) is not available")),
            _ => chain_answer(500, 1000, method, params),
        })
        .await;
        let l1 = client(&[&server.url]);
        // a7: pruned contract state has its own name.
        assert_eq!(l1.last_committed_index(Some(n(3))).await.unwrap_err().kind, PortErrorKind::Pruned);
        assert_eq!(l1.events(n(1), n(200)).await.unwrap().events.len(), 2);
    }

    #[tokio::test]
    async fn a9_logs_are_sorted_deduplicated_and_removed_ones_dropped() {
        let mut removed = commit(5, 3, 33);
        removed["removed"] = json!(true);
        let mut foreign = commit(6, 4, 44);
        foreign["topics"][0] = json!(wire::hex_hash(&B256::repeat_byte(0x55)));
        let mut from_queue = commit(6, 5, 55);
        from_queue["address"] = json!(wire::hex_address(&queue()));
        let logs =
            json!([commit(9, 0, 3), commit(5, 2, 2), removed, commit(5, 1, 1), foreign, from_queue, commit(5, 1, 1)]);
        let server = rpc(move |method, _| Ok(if method == "eth_getLogs" { logs.clone() } else { header(9) })).await;
        let events = client(&[&server.url]).events(n(1), n(9)).await.unwrap().events;
        assert_eq!(indices(&events), [1, 2, 3]);
    }

    #[tokio::test]
    async fn a9_logs_of_other_events_and_batches_than_were_asked_for_are_left_out() {
        let logs = json!([commit(5, 0, 1), commit(6, 0, 2)]);
        let server = rpc(move |method, _| Ok(if method == "eth_getLogs" { logs.clone() } else { header(9) })).await;
        let l1 = client(&[&server.url]);
        assert_eq!(l1.settlements(n(1), n(9)).await.unwrap().events, []);
        assert_eq!(indices(&l1.commits_of(2.into(), n(1), n(9)).await.unwrap().events), [2]);
        assert_eq!(l1.reverts_of(2.into(), n(1), n(9)).await.unwrap().events, []);
    }

    #[tokio::test]
    async fn a9_logs_that_contradict_themselves_are_refused() {
        let change = |key: &str, value: Value| {
            let mut log = commit(5, 1, 1);
            log[key] = value;
            log
        };
        let table = [
            ("outside the range", json!([commit(10, 0, 1)])),
            (
                "another hash than the end header",
                json!([{
                "address": wire::hex_address(&rollup()), "topics": commit(9, 0, 1)["topics"], "data": "0x",
                "blockNumber": "0x9", "blockHash": wire::hex_hash(&B256::zero()), "logIndex": "0x0",
                "transactionHash": wire::hex_hash(&B256::zero()), "transactionIndex": "0x0"}]),
            ),
            (
                "two hashes of one block",
                json!([commit(5, 0, 1), change("blockHash", json!(wire::hex_hash(&B256::zero())))]),
            ),
            ("two logs at one place", json!([commit(5, 1, 1), commit(5, 1, 2)])),
            ("another contract", json!([change("address", json!(wire::hex_address(&Address::zero())))])),
            ("no block hash", json!([change("blockHash", Value::Null)])),
            ("a short topic", json!([change("topics", json!(["0x12"]))])),
            ("no list", json!({"logs": []})),
        ];
        for (what, logs) in table {
            let server = rpc(move |method, _| Ok(if method == "eth_getLogs" { logs.clone() } else { header(9) })).await;
            let error = client(&[&server.url]).events(n(1), n(9)).await.unwrap_err();
            assert_eq!(error.kind, PortErrorKind::Malformed, "{what}");
        }
    }

    #[tokio::test]
    async fn a10_a_transaction_of_another_block_or_place_is_refused() {
        let tx = |block: u64, place: u64| {
            json!({"hash": wire::hex_hash(&B256::repeat_byte(9)), "blockHash": wire::hex_hash(&hash_of(block)),
                "blockNumber": wire::hex_quantity(block), "transactionIndex": wire::hex_quantity(place),
                "to": wire::hex_address(&rollup()), "input": "0x428868b5",
                "blobVersionedHashes": [wire::hex_hash(&B256::repeat_byte(1))]})
        };
        let block = L1Ref { number: n(5), hash: hash_of(5) };
        for (answer, good) in [(tx(5, 2), true), (tx(6, 2), false), (tx(5, 1), false)] {
            let server = rpc(move |_, _| Ok(answer.clone())).await;
            let result = client(&[&server.url]).transaction(block, 2).await;
            let params = &server.calls()[0]["params"];
            assert_eq!(params, &json!([wire::hex_hash(&hash_of(5)), "0x2"]));
            match result {
                Ok(tx) => assert!(good && tx.unwrap().blob_hashes.len() == 1),
                Err(error) => assert!(!good && error.kind == PortErrorKind::Malformed),
            }
        }
        let gone = rpc(|_, _| Ok(Value::Null)).await;
        assert_eq!(client(&[&gone.url]).transaction(block, 2).await.unwrap(), None);
    }

    #[tokio::test]
    async fn j6_a_null_below_the_known_head_is_an_endpoint_that_lags() {
        let lagging = chain(250, 1000).await;
        let healthy = chain(500, 1000).await;
        let l1 = client(&[&lagging.url, &healthy.url]);
        l1.saw(n(500));
        let headers = l1.headers(&[n(300), n(100)]).await.unwrap();
        assert_eq!(headers.iter().map(|header| header.unwrap().number.get()).collect::<Vec<_>>(), [300, 100]);
        // A chain that really became shorter is believed if no endpoint has the block.
        let alone = client(&[&lagging.url]);
        alone.saw(n(500));
        assert_eq!(alone.headers(&[n(300), n(100)]).await.unwrap()[0], None);
        assert!(alone.headers(&[n(300)]).await.unwrap()[0].is_none());
    }

    #[tokio::test]
    async fn a_tag_that_is_not_there_is_none() {
        let table: [(Answer, bool); 5] = [
            (Ok(Value::Null), false),
            (Err((-32000, "safe block not found")), false),
            (Err((-32000, "finalized block not available")), false),
            (Err((-39001, "Unknown block")), false),
            (Ok(header(7)), true),
        ];
        for (answer, there) in table {
            let server = rpc(move |_, _| answer.clone()).await;
            assert_eq!(client(&[&server.url]).tagged(L1Tag::Finalized).await.unwrap().is_some(), there);
        }
        let busy = http(|_| async { (503, vec![], String::new()) }).await;
        assert!(client(&[&busy.url]).tagged(L1Tag::Latest).await.is_err());
    }

    fn frame(kind: &str, to: Address, input: &str, calls: Vec<Value>) -> Value {
        json!({"type": kind, "to": wire::hex_address(&to), "input": input, "calls": calls})
    }

    async fn traced(trace: String) -> PortResult<Option<Vec<String>>> {
        let server = http(move |hit| {
            let body = format!(r#"{{"jsonrpc":"2.0","id":{},"result":{trace}}}"#, hit.body["id"]);
            async move { (200, vec![], body) }
        })
        .await;
        let calls = client(&[&server.url]).rollup_calls(B256::zero()).await?;
        Ok(calls.map(|calls| calls.iter().map(|call| wire::hex_bytes(&call.input)).collect()))
    }

    #[tokio::test]
    async fn rollup_calls_are_flattened_without_what_was_rolled_back() {
        let other = Address::repeat_byte(1);
        let mut failed = frame("CALL", other, "0x", vec![frame("CALL", rollup(), "0x03", vec![])]);
        failed["error"] = json!("execution reverted");
        let mut inside = frame("CALL", rollup(), "0x04", vec![]);
        inside["error"] = json!("out of gas");
        let tree = frame(
            "CALL",
            other,
            "0x",
            vec![
                frame("CALL", rollup(), "0x01", vec![frame("DELEGATECALL", other, "0x01", vec![])]),
                frame("STATICCALL", rollup(), "0x02", vec![]),
                frame("DELEGATECALL", rollup(), "0x02", vec![]),
                failed,
                inside,
                frame("CALL", other, "0x", vec![frame("CALL", rollup(), "0x05", vec![])]),
                frame("CALL", rollup(), "0x06", vec![]),
            ],
        );
        assert_eq!(traced(tree.to_string()).await.unwrap().unwrap(), ["0x01", "0x05", "0x06"]);
        assert!(traced(String::from("null")).await.is_err());
        let server =
            rpc(|_, _| Err((-32601, "the method debug_traceTransaction does not exist/is not available"))).await;
        assert_eq!(client(&[&server.url]).rollup_calls(B256::zero()).await.unwrap(), None);
    }

    #[tokio::test]
    async fn m21_a_trace_that_is_refused_or_too_long_is_no_trace_after_every_endpoint_was_asked() {
        let leaf = frame("CALL", rollup(), "0x01", vec![]).to_string();
        let wide = |calls: usize| {
            let calls = vec![leaf.as_str(); calls].join(",");
            format!(r#"{{"type":"CALL","to":"0x01","input":"0x","calls":[{calls}]}}"#)
        };
        let small = |text: String| text.replace(r#","to":"0xaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","calls":[]"#, "");
        assert_eq!(traced(wide(2)).await.unwrap().unwrap(), ["0x01", "0x01"]);
        assert_eq!(traced(small(wide(FRAMES_MAX + 1))).await.unwrap(), None, "more frames than are read");
        let inner = small(wide(FRAMES_MAX / 2));
        let two = format!(r#"{{"type":"CALL","to":"0x01","calls":[{inner},{inner},{inner}]}}"#);
        assert_eq!(traced(two).await.unwrap(), None, "the same, level by level");
        let padding = "0".repeat(33 << 20);
        assert_eq!(traced(format!(r#"{{"type":"CALL","to":"0x01","input":"0x{padding}"}}"#)).await.unwrap(), None);

        let good = rpc(move |_, _| Ok(frame("CALL", rollup(), "0x01", vec![]))).await;
        type Refusal = (u16, Option<(i64, &'static str)>, bool);
        let refusals: [Refusal; 9] = [
            (200, Some((-32600, "not available on the free plan")), true),
            (200, Some((-32601, "the method debug_traceTransaction does not exist/is not available")), true),
            (200, Some((-32000, "required historical state unavailable (reexec=128)")), true),
            (200, Some((-32000, "execution timeout")), true),
            (403, None, true),
            (200, Some((-32000, "transaction 0x00 not found")), false),
            (200, Some((-32005, "rate limit exceeded")), false),
            (429, None, false),
            (503, None, false),
        ];
        for (status, error, is_verdict) in refusals {
            let refuser = http(move |hit| async move {
                let body = error.map(|error| crate::adapters::testing::reply(&hit.body, Err(error)).to_string());
                (status, vec![], body.unwrap_or_default())
            })
            .await;
            let alone = client(&[&refuser.url]).rollup_calls(B256::zero()).await;
            assert_eq!(alone.as_ref().is_ok_and(Option::is_none), is_verdict, "{status} {error:?}: {alone:?}");
            let both = client(&[&refuser.url, &good.url]).rollup_calls(B256::zero()).await.unwrap();
            assert_eq!(both.map(|calls| calls.len()), Some(1), "{status} {error:?}: the next one is asked");
            let dead = crate::adapters::testing::dead().await;
            assert!(client(&[&refuser.url, &dead]).rollup_calls(B256::zero()).await.is_err(), "it may come back");
        }
        let garbage = traced(String::from("7")).await.unwrap_err();
        assert_eq!(garbage.kind, PortErrorKind::Malformed, "not a trace at all: the endpoint's fault");
    }

    #[tokio::test]
    async fn a_trace_is_read_to_the_evms_depth_and_no_deeper() {
        let nested = |depth: usize| {
            let open = r#"{"type":"CALL","to":"0x01","input":"0x","calls":["#.repeat(depth);
            let innermost = frame("CALL", rollup(), "0x77", vec![]).to_string();
            format!("{open}{innermost}{}", "]}".repeat(depth))
        };
        assert_eq!(traced(nested(1023)).await.unwrap().unwrap(), ["0x77"]);
        assert_eq!(traced(nested(2000)).await.unwrap_err().kind, PortErrorKind::Malformed);
    }

    #[tokio::test]
    async fn recorded_l1_is_read_whole() {
        let logs = vector("recorded/l1/logs.json");
        let headers = vector("recorded/l1/headers.json");
        let batches = vector("recorded/batches.json");
        let transactions = vector("recorded/l1/transactions.json");
        let calls = vector("recorded/l1/calls.json");
        let traces = vector("recorded/l1/call-traces.json");
        let address = |key: &str| wire::address(batches[key].as_str().unwrap()).unwrap();
        let (rollup, queue) = (address("rollup"), address("l1_message_queue"));
        let kept = (transactions.clone(), traces.clone());
        let server = rpc(move |method, params| match method {
            "eth_getBlockByNumber" => {
                let number = wire::quantity(params[0].as_str().unwrap()).unwrap();
                Ok(headers[usize::try_from(number).unwrap()].clone())
            }
            "eth_getLogs" => {
                let topics = params[0]["topics"][0].as_array().unwrap();
                Ok(logs.as_array().unwrap().iter().filter(|log| topics.contains(&log["topics"][0])).cloned().collect())
            }
            "eth_getTransactionByBlockHashAndIndex" => {
                let found = kept
                    .0
                    .as_object()
                    .unwrap()
                    .values()
                    .find(|tx| tx["blockHash"] == params[0] && tx["transactionIndex"] == params[1]);
                Ok(found.cloned().unwrap_or_default())
            }
            "debug_traceTransaction" => Ok(kept.1[params[0].as_str().unwrap()].clone()),
            "eth_call" => {
                let data = params[0]["data"].as_str().unwrap();
                let word = |data: &str| u64::from_str_radix(&data[data.len() - 16..], 16).unwrap().to_string();
                Ok(match data.get(..10).unwrap() {
                    "0x121dcd50" => calls["lastCommittedBatchIndex"].clone(),
                    "0x2362f03e" => calls["committedBatches"][word(data)].clone(),
                    "0x2a213ba1" => calls["batchBlobVersionedHashes"][word(data)].clone(),
                    other => panic!("{other}"),
                })
            }
            other => panic!("not served: {other}"),
        })
        .await;
        let l1 = L1Client::new(pool(Target::L1, &[&server.url]), rollup, queue);
        let events = l1.events(n(0), n(36)).await.unwrap().events;
        let commits = events.iter().filter(|event| matches!(event.kind, L1EventKind::Commit { .. })).count();
        let reverts = events.iter().filter(|event| matches!(event.kind, L1EventKind::Revert { .. })).count();
        assert_eq!((commits, reverts), (13, 2), "genesis, ten standing, two reverted");
        let commits_and_reverts =
            |event: &&L1Event| matches!(event.kind, L1EventKind::Commit { .. } | L1EventKind::Revert { .. });
        for event in events.iter().filter(commits_and_reverts) {
            let tx = l1.transaction(event.block, event.tx_index).await.unwrap().unwrap();
            assert_eq!(tx.hash, event.tx_hash);
        }
        let through = wire::hash(traces.as_object().unwrap().keys().next().unwrap()).unwrap();
        let traced = l1.rollup_calls(through).await.unwrap().unwrap();
        assert_eq!(traced.len(), 1);
        assert_eq!(traced[0].input[..4], [0x42, 0x88, 0x68, 0xb5]);
        assert_eq!(l1.last_committed_index(None).await.unwrap().get(), 10);
        let indices: Vec<BatchIndex> = (0..=11).map(BatchIndex::new).collect();
        let hashes = l1.committed_hashes(&indices, Some(n(36))).await.unwrap();
        assert_eq!(wire::hex_hash(&hashes[3]), "0x074941856165d7e22c6d7846ba4d6cff0cb04a0fd36166762bbc81db9f4730e9");
        assert!(hashes[11].is_zero());
        assert!(!l1.blob_field(BatchIndex::new(10)).await.unwrap().is_zero());
    }

    #[tokio::test]
    async fn a3_catch_up_costs_one_exchange_a_range() {
        let server = chain(100_000, 500).await;
        let urls = [server.url.clone()];
        let pool = Pool::new(Target::L1, &urls, PoolConfig { max_batch: 1000, ..config() }).unwrap();
        let l1 = L1Client::new(pool.clone(), rollup(), queue());
        l1.events(n(1), n(500)).await.unwrap();
        l1.headers(&(1..=500).map(n).collect::<Vec<_>>()).await.unwrap();
        assert_eq!(pool.requests(), 2);
    }

    #[tokio::test]
    async fn views_that_are_no_words_are_refused() {
        for answer in [json!("0x"), json!("0x01"), Value::Null, json!(format!("0x{}", "ff".repeat(32)))] {
            let server = rpc(move |_, _| Ok(answer.clone())).await;
            assert_eq!(
                client(&[&server.url]).last_committed_index(None).await.unwrap_err().kind,
                PortErrorKind::Malformed
            );
        }
    }
}
