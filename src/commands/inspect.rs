//! `inspect`: shows the contents of a batch, or how the sequencer would encode a payload.
//!
//! Blob files and payloads are looked at offline; a batch of the chain is found by its index or its transaction, bound
//! to its event by the rebuilt header hash, and its blobs are fetched. Decided here: how blobs without calldata are read
//! (the block contexts are as many as have consecutive numbers, unless the last block is given). Not decided here:
//! whether the local chain agrees.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, ensure};
use comfy_table::Table;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Exit, terminal, wiring};
use crate::adapters::l1::L1Client;
use crate::codec::batch::{self, Closed, Contexts};
use crate::codec::{blob, frame, payload};
use crate::config::{Config, ConfigArgs, Need};
use crate::decide::binding::BoundCommit;
use crate::decide::stall::Reason;
use crate::error::PortError;
use crate::flow::commit::{self, Contract};
use crate::flow::{FlowError, Stop};
use crate::ports::{BlobSource as _, L1Chain as _};
use crate::types::{
    Address, B256, BLOB_BYTES, BatchIndex, Blob, CommitEvent, L1Event, L1Number, L1Ref, L1Tag, L2Number, keccak,
};

/// A blob file as text: `0x`, two digits a byte, and room for line ends.
const MAX_BLOB_FILE: u64 = 2 * BLOB_BYTES as u64 + 1024;

/// Arguments of `inspect`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("subject").required(true).args(["blob", "index", "tx", "payload"])))]
pub struct Args {
    /// Blobs of one batch, in order, each a file of 131072 bytes or the same in hex
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub blob: Vec<PathBuf>,
    /// The newest commit of this batch on L1
    #[arg(long, value_name = "N")]
    pub index: Option<u64>,
    /// The batch that this L1 transaction committed
    #[arg(long, value_name = "HASH", value_parser = parse_hash)]
    pub tx: Option<B256>,
    /// A payload: shows how the sequencer would encode it
    #[arg(long, value_name = "FILE")]
    pub payload: Option<PathBuf>,
    /// Write the payload's frame to this file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["blob", "index", "tx"])]
    pub frame: Option<PathBuf>,
    /// Last block of the batch that the blobs hold; without it, block contexts are counted by consecutive numbers
    #[arg(long, value_name = "N", conflicts_with_all = ["index", "tx", "payload"])]
    pub last_block: Option<u64>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// The configuration
    #[command(flatten)]
    pub config: ConfigArgs,
}

fn parse_hash(text: &str) -> Result<B256, String> {
    let bytes = const_hex::decode(text.strip_prefix("0x").unwrap_or(text)).map_err(|e| e.to_string())?;
    let bytes: [u8; 32] = bytes.try_into().map_err(|_| "a hash has 32 bytes".to_owned())?;
    Ok(B256(bytes))
}

/// Prints the contents.
///
/// # Errors
/// Files that cannot be read or are malformed, a batch that is not found or does not bind, endpoints that fail.
pub async fn execute(args: Args) -> anyhow::Result<Exit> {
    match report(&args).await {
        Ok(report) => {
            print(&report, args.json)?;
            Ok(Exit::Done)
        }
        Err(error) if is_unavailable(&error) => {
            eprintln!("error: {}", crate::redact::cut_urls(&format!("{error:#}")));
            Ok(Exit::Unavailable)
        }
        Err(error) => Err(error),
    }
}

/// Blobs that every endpoint has dropped.
fn is_unavailable(error: &anyhow::Error) -> bool {
    error.downcast_ref::<PortError>().is_some_and(|error| Exit::from(Reason::of(error)) == Exit::Unavailable)
}

async fn report(args: &Args) -> anyhow::Result<Value> {
    if let Some(path) = &args.payload {
        let bytes = read_bounded(path, frame::MAX_PAYLOAD as u64)?;
        let (report, frame) = of_payload(&bytes)?;
        if let Some(out) = &args.frame {
            std::fs::write(out, frame).with_context(|| format!("write {}", out.display()))?;
        }
        return Ok(serde_json::to_value(report)?);
    }
    if args.blob.is_empty() {
        return of_chain(args).await;
    }
    ensure!(args.blob.len() <= blob::MAX_BLOBS, "{} blobs, more than {}", args.blob.len(), blob::MAX_BLOBS);
    let blobs = args.blob.iter().map(|path| read_blob(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let contexts = args.last_block.map_or(Contexts::Consecutive, |last| Contexts::UpTo(L2Number::new(last)));
    Ok(serde_json::to_value(of_blobs(&blobs, contexts)?)?)
}

/// The bytes of a file of at most `limit` bytes.
fn read_bounded(path: &Path, limit: u64) -> anyhow::Result<Vec<u8>> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().with_context(|| format!("read {}", path.display()))?;
    ensure!(bytes.len() as u64 <= limit, "{} is longer than {limit} bytes", path.display());
    Ok(bytes)
}

fn read_blob(path: &Path) -> anyhow::Result<Blob> {
    let bytes = read_bounded(path, MAX_BLOB_FILE)?;
    let bytes = if bytes.len() == BLOB_BYTES {
        bytes
    } else {
        let text = bytes.trim_ascii();
        let digits = text.strip_prefix(b"0x").unwrap_or(text);
        let neither = || format!("{} is neither {BLOB_BYTES} bytes nor the same in hex", path.display());
        const_hex::decode(digits).with_context(neither)?
    };
    let length = bytes.len();
    Blob::new(bytes).with_context(|| format!("{}: a blob has {BLOB_BYTES} bytes, not {length}", path.display()))
}

/// What the blobs of one batch hold.
#[derive(Debug, Serialize)]
struct BlobReport {
    blobs: usize,
    block_contexts_in_payload: usize,
    commitments: Vec<String>,
    first_block: u64,
    first_timestamp: u64,
    frame_bytes: usize,
    keccak_of_concatenated_l2_transaction_hashes: B256,
    keccak_of_versioned_hashes: B256,
    l1_messages: u64,
    l2_transaction_types: BTreeMap<&'static str, usize>,
    l2_transactions_in_payload: usize,
    last_block: u64,
    last_timestamp: u64,
    payload_bytes: usize,
    payload_keccak: B256,
    trailing_bytes_after_last_transaction: usize,
    transactions: u64,
    versioned_hashes: Vec<B256>,
    /// The decoded blocks, encoded again as the sequencer does it, give the very same blobs.
    reencoded_identical: bool,
}

fn of_blobs(blobs: &[Blob], contexts: Contexts<'_>) -> anyhow::Result<BlobReport> {
    let decoded = batch::payload_of(blobs)?;
    let bytes = decoded.payload;
    let in_calldata = matches!(contexts, Contexts::Calldata(_));
    let taken = batch::open(bytes.clone(), contexts).context(match in_calldata {
        false => "the payload does not hold block contexts and then transactions",
        true => "the payload does not hold the transactions of calldata's block contexts",
    })?;
    let in_payload = if in_calldata { 0 } else { taken.blocks.len() };
    let commitments = blobs.iter().map(blob::commitment).collect::<Result<Vec<_>, _>>()?;
    let versioned_hashes: Vec<B256> = commitments.iter().map(blob::versioned_hash).collect();
    let again = batch::close(&batch::encode(&taken.blocks, in_calldata)).ok();
    let transactions = || taken.blocks.iter().flat_map(|block| &block.transactions);
    let hashes: Vec<u8> = transactions().flat_map(|raw| keccak(raw).0).collect();
    let kinds = payload::count_by_kind(&taken.blocks);
    // A payload without blocks does not decode.
    let (first, last) = taken.blocks.first().zip(taken.blocks.last()).context("a batch of zero blocks")?;
    Ok(BlobReport {
        blobs: blobs.len(),
        block_contexts_in_payload: in_payload,
        commitments: commitments.iter().map(|commitment| format!("0x{}", const_hex::encode(commitment))).collect(),
        first_block: first.context.number.get(),
        first_timestamp: first.context.timestamp,
        frame_bytes: decoded.frame_bytes,
        keccak_of_concatenated_l2_transaction_hashes: keccak(&hashes),
        keccak_of_versioned_hashes: keccak(&versioned_hashes.iter().flat_map(|hash| hash.0).collect::<Vec<_>>()),
        l1_messages: taken.blocks.iter().map(|block| u64::from(block.context.l1_messages)).sum(),
        l2_transaction_types: kinds.iter().map(|(kind, count)| (kind.as_str(), *count)).collect(),
        l2_transactions_in_payload: transactions().count(),
        last_block: last.context.number.get(),
        last_timestamp: last.context.timestamp,
        payload_bytes: bytes.len(),
        payload_keccak: keccak(&bytes),
        trailing_bytes_after_last_transaction: taken.trailing,
        transactions: taken.blocks.iter().map(|block| u64::from(block.context.txs)).sum(),
        versioned_hashes,
        reencoded_identical: again.is_some_and(|again| again.blobs == blobs),
    })
}

/// How the sequencer encodes a payload.
#[derive(Debug, Serialize)]
struct PayloadReport {
    payload_bytes: usize,
    payload_sha256: String,
    frame_bytes: usize,
    frame_sha256: String,
    blobs: usize,
    versioned_hashes: Vec<B256>,
    /// The target block size was needed: see `codec::frame`.
    slow_path: bool,
}

fn of_payload(bytes: &[u8]) -> anyhow::Result<(PayloadReport, Vec<u8>)> {
    let sha256 = |bytes: &[u8]| const_hex::encode(Sha256::digest(bytes));
    let Closed { frame, blobs } = batch::close(bytes)?;
    let report = PayloadReport {
        payload_bytes: bytes.len(),
        payload_sha256: sha256(bytes),
        frame_bytes: frame.bytes.len(),
        frame_sha256: sha256(&frame.bytes),
        blobs: blobs.len(),
        versioned_hashes: blobs.iter().map(blob::blob_hash).collect::<Result<_, _>>()?,
        slow_path: frame.slow_path,
    };
    Ok((report, frame.bytes))
}

/// A batch as it was committed.
#[derive(Debug, Serialize)]
struct BatchReport {
    index: BatchIndex,
    batch_hash: B256,
    /// Whether the contract still holds this hash: false after a revert.
    standing: bool,
    l1_block: L1Ref,
    log_index: u64,
    tx: B256,
    form: &'static str,
    version: u8,
    l1_messages_popped: u64,
    total_l1_messages_popped: u64,
    data_hash: B256,
    blob_field: B256,
    prev_state_root: B256,
    post_state_root: B256,
    withdrawal_root: B256,
    sequencer_sets_hash: B256,
    parent_hash: B256,
    /// Versioned hashes that the batch is bound to.
    bound_versioned_hashes: Vec<B256>,
    /// What the blobs hold; none for a batch without a blob.
    #[serde(flatten)]
    content: Option<BlobReport>,
}

async fn of_chain(args: &Args) -> anyhow::Result<Value> {
    let config = Config::load(&args.config)?;
    config.require(&[Need::L1, Need::Beacon])?;
    let clients = wiring::clients(&config)?;
    let origin = wiring::settings(&config).origin;
    let commit = match args.tx {
        Some(tx) => commit_in(&clients.l1, tx).await?,
        None => newest_commit(&clients.l1, args.index.unwrap_or_default(), origin).await?,
    };
    let found = bind(&clients.l1, config.l1.rollup.unwrap_or_default(), &commit, origin).await?;
    let outline = &found.outline;
    let content = if outline.versioned_hashes.is_empty() {
        None
    } else {
        let blobs = fetch_blobs(&clients, &found).await?;
        let (contexts, last) = (outline.contexts.clone(), outline.last);
        let look = move || match &contexts {
            Some(contexts) => of_blobs(&blobs, Contexts::Calldata(contexts)),
            None => of_blobs(&blobs, Contexts::UpTo(last)),
        };
        Some(tokio::task::spawn_blocking(look).await?.context("the batch's blobs")?)
    };
    let kept = clients.l1.committed_hashes(&[outline.index()], None).await?;
    let header = &outline.header;
    let report = BatchReport {
        index: header.index,
        batch_hash: outline.hash,
        standing: kept.first() == Some(&outline.hash),
        l1_block: commit.block,
        log_index: commit.log_index,
        tx: commit.tx_hash,
        form: found.form.name(),
        version: header.version,
        l1_messages_popped: header.l1_message_popped,
        total_l1_messages_popped: header.total_l1_message_popped,
        data_hash: header.data_hash,
        blob_field: header.blob_field,
        prev_state_root: header.prev_state_root,
        post_state_root: header.post_state_root,
        withdrawal_root: header.withdrawal_root,
        sequencer_sets_hash: header.sequencer_sets_hash,
        parent_hash: header.parent_hash,
        bound_versioned_hashes: outline.versioned_hashes.clone(),
        content,
    };
    Ok(serde_json::to_value(report)?)
}

async fn newest_commit(l1: &L1Client, index: u64, origin: L1Number) -> anyhow::Result<CommitEvent> {
    let latest = l1.tagged(L1Tag::Latest).await?.context("the L1 node has no block")?;
    let commits = l1.every_commit_of(BatchIndex::new(index), origin, latest.number).await?;
    commits.iter().rev().find_map(L1Event::as_commit).with_context(|| format!("no commit of batch {index} on L1"))
}

async fn commit_in(l1: &L1Client, tx: B256) -> anyhow::Result<CommitEvent> {
    let reply: Value = l1.pool().call("eth_getTransactionByHash", json!([tx])).await?.parse()?;
    let number = reply.get("blockNumber").and_then(Value::as_str).and_then(|text| text.strip_prefix("0x"));
    let number = number.and_then(|digits| u64::from_str_radix(digits, 16).ok()).map(L1Number::new);
    let number = number.with_context(|| format!("transaction {tx:?} is in no L1 block"))?;
    let events = l1.events(number, number).await?.events;
    let found = events.iter().filter_map(L1Event::as_commit).find(|commit| commit.tx_hash == tx);
    found.with_context(|| format!("transaction {tx:?} committed no batch"))
}

/// The commit, bound to its event's hash by what L1 alone shows.
async fn bind(l1: &L1Client, rollup: Address, commit: &CommitEvent, origin: L1Number) -> anyhow::Result<BoundCommit> {
    ensure!(commit.index.get() != 0, "batch 0 is the genesis import and carries no batch");
    let mut contract = Contract::new(l1, origin);
    commit::bind(l1, rollup, commit, &mut contract).await.map_err(|stop| match stop {
        Stop::Stands(stall) => anyhow!("batch {}: {}", commit.index, stall.detail()),
        Stop::Failed(error) => unanswered(error),
    })
}

/// The port's own failure, which decides the exit code.
fn unanswered(error: FlowError) -> anyhow::Error {
    match error {
        FlowError::Port(error) => error.into(),
        FlowError::Stall(stall) => anyhow!("L1 changed while it was read: {}", stall.detail()),
    }
}

async fn fetch_blobs(clients: &wiring::Clients, bound: &BoundCommit) -> anyhow::Result<Vec<Blob>> {
    let beacon = clients.beacon.as_ref().context("no beacon endpoint is configured")?;
    let headers = clients.l1.headers(&[bound.blob_block.number]).await?;
    let header = headers.first().copied().flatten().filter(|header| header.l1_ref() == bound.blob_block);
    let header = header.context("L1 changed while it was read")?;
    Ok(beacon.blobs(&header, &bound.outline.versioned_hashes).await?)
}

fn print(report: &Value, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
    } else {
        println!("{}", as_table(report));
    }
    Ok(())
}

/// One row a field, in words.
fn as_table(report: &Value) -> Table {
    let mut table = terminal::table(&["field", "value"]);
    for (key, value) in report.as_object().into_iter().flatten() {
        table.add_row([key.replace('_', " "), in_words(value)]);
    }
    table
}

fn in_words(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Array(items) => items.iter().map(in_words).collect::<Vec<_>>().join("\n"),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| format!("{key}: {}", in_words(value))).collect::<Vec<_>>().join("\n")
        }
        Value::Null => "none".to_owned(),
        Value::Number(number) => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_payload_becomes_the_sequencers_frame() {
        let vectors = crate::codec::testing::vectors();
        let folder = vectors.join("encoder");
        let expected: Value = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
        let rows = expected.as_array().unwrap();
        assert_eq!(rows.len(), 18);
        let mut slow = 0;
        for row in rows {
            let name = row["name"].as_str().unwrap();
            let (report, frame) = of_payload(&std::fs::read(folder.join(format!("{name}.payload"))).unwrap()).unwrap();
            assert_eq!(frame, std::fs::read(folder.join(format!("{name}.frame"))).unwrap(), "{name}");
            slow += usize::from(report.slow_path);
            let report = serde_json::to_value(report).unwrap();
            for key in ["payload_bytes", "payload_sha256", "frame_bytes", "frame_sha256"] {
                assert_eq!(report[key], row[key], "{name}: {key}");
            }
        }
        assert!((4..rows.len()).contains(&slow), "12 to 15 need the slow path, most do not: {slow}");
    }
}
