//! The narrow traits through which the flow reaches the world. Implementations live in `adapters/` (network, SQLite,
//! recordings) and `devnet/` (the embedded node of `replay`).
//!
//! Every call has a deadline inside its implementation. An answer is complete, and checked as far as it can be checked
//! alone (an L2 header's hash, a blob's commitment). What it means is decided elsewhere.

use std::time::Duration;

use async_trait::async_trait;

use crate::decide::audit::{AuditRange, Counts, Divergence};
use crate::decide::client::Client;
use crate::decide::cursor::Walk;
use crate::decide::follow::Reply;
use crate::error::{PortError, PortErrorKind, Target};
use crate::types::{
    B256, BatchIndex, BatchRecord, Blob, Cursor, Identity, JournalEntry, L1Event, L1Header, L1Message, L1Number, L1Ref,
    L1Tag, L1Transaction, L2Block, L2Header, L2Number, L2Ref, L2Snapshot, Lease, LogPos, NewBlock, QueueIndex,
    SpuriousTag, TracedCall, WriteIntent,
};

/// The result of a port's call.
pub type PortResult<T> = Result<T, PortError>;

/// The logs of an L1 range, and the chain on which they were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeLogs {
    /// Ordered, without duplicates and without removed ones.
    pub events: Vec<L1Event>,
    /// The last block of every piece in which the range was answered, as the answering endpoint showed it in the same
    /// exchange as the piece's logs. The last entry says how far the answer reaches: to the range's last block, or to
    /// an earlier one.
    pub ends: Vec<L1Ref>,
}

/// The logs of a stretch of L1, searched from one end, perhaps not up to the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundLogs {
    /// Ordered, without duplicates and without removed ones.
    pub events: Vec<L1Event>,
    /// The last block that was searched, counted from the end at which the search began.
    pub reached: L1Number,
}

/// A kind of L1 answer that turned out to be incomplete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspect {
    /// The newest answer with logs.
    Logs,
    /// The newest answer about a tag.
    Tag,
}

/// The L1 execution chain, seen through the Rollup and L1MessageQueue contracts.
///
/// An endpoint may limit how many blocks of logs it serves at a time, and how often. So a call for logs searches as far
/// as a few requests reach, at least one block, and says how far that is. It fails only if the first request was not
/// answered.
#[async_trait]
pub trait L1Chain: Send + Sync {
    /// The header that `tag` names; none if the node has no such block yet.
    async fn tagged(&self, tag: L1Tag) -> PortResult<Option<L1Header>>;

    /// The newest header and the one that `tag` names, in one request if possible.
    async fn latest_and(&self, tag: L1Tag) -> PortResult<(Option<L1Header>, Option<L1Header>)> {
        Ok((self.tagged(L1Tag::Latest).await?, self.tagged(tag).await?))
    }

    /// Headers by number, in the order asked for; none if the node has no such block.
    async fn headers(&self, numbers: &[L1Number]) -> PortResult<Vec<Option<L1Header>>>;

    /// The CommitBatch, RevertBatch, FinalizeBatch and QueueTransaction logs of blocks `from..=to`, from the lowest
    /// block on. The answering endpoint's own head is at least the last end. The caller checks by the ends whether its
    /// chain is the canonical one.
    async fn events(&self, from: L1Number, to: L1Number) -> PortResult<RangeLogs>;

    /// The RevertBatch and FinalizeBatch logs of blocks `from..=to`, from the lowest block on: the last of `ends` says
    /// how far the answer reaches. For reads far ahead of [`events`](Self::events).
    async fn settlements(&self, from: L1Number, to: L1Number) -> PortResult<RangeLogs>;

    /// The CommitBatch logs of batch `index` in `from..=to`, from the highest block down. The index is an indexed
    /// topic.
    async fn commits_of(&self, index: BatchIndex, from: L1Number, to: L1Number) -> PortResult<FoundLogs>;

    /// The RevertBatch logs of batch `index` in `from..=to`, from the lowest block up.
    async fn reverts_of(&self, index: BatchIndex, from: L1Number, to: L1Number) -> PortResult<FoundLogs>;

    /// The QueueTransaction logs in `from..=to`, from the highest block down.
    async fn queued(&self, from: L1Number, to: L1Number) -> PortResult<FoundLogs>;

    /// Every CommitBatch log of batch `index` in `from..=to`, ordered, in as many calls as it takes.
    async fn every_commit_of(&self, index: BatchIndex, from: L1Number, to: L1Number) -> PortResult<Vec<L1Event>> {
        let mut walk = Walk::new(from, to, false, u64::MAX);
        let mut found = Vec::new();
        while let Some(window) = walk.window() {
            let below = self.commits_of(index, window.from, window.to).await?;
            found.splice(0..0, below.events);
            walk.advance(below.reached);
        }
        Ok(found)
    }

    /// The transaction at `index` of block `block`, asked for by the block's hash; none if that block is unknown.
    async fn transaction(&self, block: L1Ref, index: u64) -> PortResult<Option<L1Transaction>>;

    /// Every call to the Rollup contract inside transaction `tx` that was not rolled back, in order. None if no
    /// endpoint can trace it: it has no `debug_traceTransaction`, refuses it, or the trace is too long to be read.
    async fn rollup_calls(&self, tx: B256) -> PortResult<Option<Vec<TracedCall>>>;

    /// `committedBatches(index)` of each index at L1 block `at` (the newest state if none); zero after a revert.
    async fn committed_hashes(&self, indices: &[BatchIndex], at: Option<L1Number>) -> PortResult<Vec<B256>>;

    /// `lastCommittedBatchIndex()` at L1 block `at` (the newest state if none).
    async fn last_committed_index(&self, at: Option<L1Number>) -> PortResult<BatchIndex>;

    /// `lastFinalizedBatchIndex()` at L1 block `at` (the newest state if none). `Unsupported` if it cannot be asked.
    async fn last_finalized_index(&self, at: Option<L1Number>) -> PortResult<BatchIndex> {
        let _ = at;
        Err(PortError::new(Target::L1, PortErrorKind::Unsupported, "lastFinalizedBatchIndex() cannot be asked here"))
    }

    /// `batchBlobVersionedHashes(index)`, newest state; zero if deleted.
    async fn blob_field(&self, index: BatchIndex) -> PortResult<B256>;

    /// `batchDataStore(index).blockNumber`, newest state; zero if deleted.
    async fn batch_last_block(&self, index: BatchIndex) -> PortResult<L2Number>;

    /// `getCrossDomainMessage(index)` of each index, newest state.
    async fn queue_hashes(&self, indices: &[QueueIndex]) -> PortResult<Vec<B256>>;

    /// Reports that the last answer about `suspect` was incomplete (`why`). The endpoint that gave it is set aside for
    /// a while. False if there is no other endpoint to ask.
    fn distrust(&self, suspect: Suspect, why: &str) -> bool {
        let _ = (suspect, why);
        false
    }
}

/// Where blobs come from.
#[async_trait]
pub trait BlobSource: Send + Sync {
    /// The blobs with these versioned hashes of the L1 block `header`, in the order asked for. Each blob's commitment
    /// is recomputed from its bytes and hashes to the requested versioned hash.
    async fn blobs(&self, header: &L1Header, versioned_hashes: &[B256]) -> PortResult<Vec<Blob>>;

    /// The KZG commitments with these versioned hashes that the beacon block of the L1 block `header` holds, in the
    /// order asked for: 48 bytes each, a compressed point. None if no endpoint offers all of them. That says nothing
    /// about the blobs, which are then checked one by one.
    ///
    /// Each is bound to its versioned hash by SHA-256. Nothing else about it is checked: its user checks whether it is
    /// a point of the curve's subgroup (`codec/aggregate.rs`). Beacon nodes keep commitments much longer than blobs.
    ///
    /// # Errors
    /// If no endpoint could be asked, or an answer was no beacon block. That says nothing about the blobs either.
    async fn commitments(&self, header: &L1Header, versioned_hashes: &[B256]) -> PortResult<Option<Vec<[u8; 48]>>> {
        let _ = (header, versioned_hashes);
        Ok(None)
    }
}

/// The withdrawal root at a block, as far as the node knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageRoot {
    /// `messageRoot()` at that block.
    Root(B256),
    /// The node no longer keeps the state of that block.
    Pruned,
}

/// The head of the L2 node alone.
#[async_trait]
pub trait HeadReader: Send + Sync {
    /// The node's head.
    async fn head(&self) -> PortResult<L2Ref>;
}

#[async_trait]
impl<T: L2Reader + ?Sized> HeadReader for T {
    async fn head(&self) -> PortResult<L2Ref> {
        Ok(self.snapshot().await?.head)
    }
}

/// The L2 node's unauthenticated side.
#[async_trait]
pub trait L2Reader: HeadReader {
    /// Head, tags and sync state in one request. A tag is none if it was never set.
    async fn snapshot(&self) -> PortResult<L2Snapshot>;

    /// The same, and the header at `number`: in one request if possible.
    async fn snapshot_and(&self, number: L2Number) -> PortResult<(L2Snapshot, Option<L2Header>)> {
        Ok((self.snapshot().await?, self.header(number).await?))
    }

    /// The header at `number`; none if the node has none. Numbers above the head may still answer: the caller
    /// compares with the snapshot's head.
    async fn header(&self, number: L2Number) -> PortResult<Option<L2Header>>;

    /// Blocks `first..=last` in order with every transaction's raw bytes, hashes recomputed and linked by parent hash.
    /// If they are very large, only the first of them, at least one. A missing block is `NotFound`; blocks that do not
    /// link (the chain changed meanwhile) are `Malformed`.
    async fn blocks(&self, first: L2Number, last: L2Number) -> PortResult<Vec<L2Block>>;

    /// Whether the node has the state of each of these canonical blocks, in the order asked for, in one request. None
    /// if the node cannot be asked.
    async fn has_states(&self, numbers: &[L2Number]) -> PortResult<Option<Vec<bool>>> {
        let _ = numbers;
        Ok(None)
    }

    /// `messageRoot()` of L2ToL1MessagePasser at `block`. `NotFound` if `block` is not, or no longer, on the node's
    /// chain.
    async fn message_root(&self, block: L2Ref) -> PortResult<MessageRoot>;

    /// The root that the last AppendMessage log in blocks `first..=last` carries; none if there is none. `tip` lies at
    /// `last` or above it: `NotFound` unless the logs were read on the chain that holds `tip`.
    async fn last_appended_root(&self, first: L2Number, last: L2Number, tip: L2Ref) -> PortResult<Option<B256>>;

    /// The execution client as it named itself with the last snapshot; none if it did not.
    fn client(&self) -> Option<Client> {
        None
    }
}

/// A write that stopped before its end.
#[derive(Debug, thiserror::Error)]
#[error("block write stopped after {} blocks: {error}", written.len())]
pub struct WriteStopped {
    /// Headers of the blocks that were written before it stopped.
    pub written: Vec<L2Header>,
    /// Why it stopped.
    pub error: PortError,
}

/// The chain that the engine writes to, as the engine's own endpoint shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineView {
    /// `eth_chainId`.
    pub chain_id: u64,
    /// Its head.
    pub head: L2Ref,
    /// The block at the number that was asked for; none if it has none.
    pub at: Option<L2Ref>,
    /// A digest of its version, which changes with an upgrade; none if it shows no version.
    pub version: Option<B256>,
}

/// What a node did with the head that it was told to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadTold {
    /// The block is valid. Whether it is the head now must be read back: an ancestor of the head is valid too, and
    /// leaves the head where it is.
    Valid,
    /// The node does not have the block, or has not executed it yet. Nothing moved.
    Syncing,
    /// The block is not valid. Nothing moved.
    Invalid,
}

/// The L2 node's engine side.
#[async_trait]
pub trait L2Engine: Send + Sync {
    /// Which chain it holds: its head, and its block at `number`, in one request. This shows whether reader and engine
    /// are one node. It also finds an engine that is down or refuses our token, before anything is paused.
    async fn view(&self, number: L2Number) -> PortResult<EngineView>;

    /// Writes the first of `blocks`, in order: as many as fit into one request, and at least one. The first carries the
    /// parent's hash, the others follow as head + 1. Returns the headers as the node gave them, one for each block that
    /// was sent. The caller judges whether they are what was asked for before it sends more.
    async fn write_blocks(&self, blocks: &[NewBlock]) -> Result<Vec<L2Header>, WriteStopped>;

    /// Sets the tags; none leaves a tag alone. The real node sets finalized first and may apply only half.
    async fn set_tags(&self, safe: Option<B256>, finalized: Option<B256>) -> PortResult<()>;

    /// Tells the node to take block `head` as its head, with the safe tag on `safe` in the same step; none leaves that
    /// tag alone. `Unsupported` for a node whose head follows its own consensus node.
    async fn set_head(&self, head: B256, safe: Option<B256>) -> PortResult<HeadTold> {
        let _ = (head, safe);
        Err(PortError::new(Target::Engine, PortErrorKind::Unsupported, "the head of this node cannot be set"))
    }
}

/// Another node whose safe and finalized heads may be followed.
#[async_trait]
pub trait HeadSource: Send + Sync {
    /// Its heads and networks, all of one exchange. Nothing in it is checked.
    async fn reply(&self) -> PortResult<Reply>;

    /// Host and port, for logs and status.
    fn name(&self) -> &str;
}

/// The consensus node's reactors, which must not write while we do.
#[async_trait]
pub trait Reactors: Send + Sync {
    /// Pauses them. After an error some may still be paused.
    async fn pause(&self, height: L2Number) -> PortResult<()>;

    /// Restarts them from `height`. Must be safe to repeat.
    async fn resume(&self, height: L2Number) -> PortResult<()>;

    /// How long an unanswered pause or resume may still take effect.
    fn lateness(&self) -> Duration {
        Duration::ZERO
    }

    /// Whether `error` proves that the call had no effect and will have none. After any other error it may still take
    /// effect.
    fn is_refusal(&self, error: &PortError) -> bool {
        matches!(
            error.kind,
            PortErrorKind::Refused { .. }
                | PortErrorKind::Unauthorized
                | PortErrorKind::Unsupported
                | PortErrorKind::RateLimited { .. }
        )
    }

    /// Whether [`Reactors::resume`] resumes anything. If not, it does not end a pause that an earlier run left either,
    /// and a pause needs no lease.
    fn can_resume(&self) -> bool {
        true
    }
}

/// Everything stored, as loaded at start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// How far L1 has been read; none before the first step.
    pub cursor: Option<Cursor>,
    /// Safe head.
    pub safe: Option<L2Ref>,
    /// Finalized head.
    pub finalized: Option<L2Ref>,
    /// A pause that a crash interrupted.
    pub lease: Option<Lease>,
    /// The standing batch with the highest index (verified or genesis).
    pub tip: Option<BatchRecord>,
    /// Writes that were begun for a batch that is not stored yet, by height.
    pub intents: Vec<WriteIntent>,
    /// A tag of the node's own making that is not put back yet.
    pub spurious: Option<SpuriousTag>,
}

/// One step of progress, applied in one transaction: all of it or nothing (P6).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// L1 blocks above this number are dropped with everything recorded in them (batches, reverts, messages).
    /// Applied first.
    pub rewind_to: Option<L1Number>,
    /// Standing batches from this index on become `reverted`. Applied before `batch`.
    pub revert_from: Option<BatchIndex>,
    /// L1 messages to keep, each with the L1 block that enqueued it.
    pub messages: Vec<(L1Ref, L1Message)>,
    /// A RevertBatch log and its outcome.
    pub revert: Option<L1Event>,
    /// RevertBatch and FinalizeBatch logs that were read, those ahead of the cursor included.
    pub settlements: Vec<L1Event>,
    /// Every RevertBatch and FinalizeBatch log from the cursor up to this block is stored. Never lowers the stored
    /// block.
    pub settled_to: Option<L1Ref>,
    /// RevertBatch and FinalizeBatch logs above this block are dropped, and the record of how far they were read is
    /// lowered. Applied before `settlements`.
    pub forget_settled_above: Option<L1Number>,
    /// A FinalizeBatch log that L1 does not confirm. Only this log is dropped.
    pub forget_proof: Option<L1Event>,
    /// A batch and its outcome. Replaces a row of the same L1 position; closes the open writes of this batch and of
    /// those below it.
    pub batch: Option<BatchRecord>,
    /// The L1 block of a later revert, if `batch` was skipped because of that revert. A rewind below it drops the row.
    pub reverted_by: Option<L1Number>,
    /// Batches that a reorg moved to another L1 block unchanged: stored again under their new position.
    pub rebound: Vec<BatchRecord>,
    /// L1 blocks of the reorg window.
    pub l1_blocks: Vec<L1Ref>,
    /// L1 blocks below this one have left the reorg window and are dropped.
    pub l1_floor: Option<L1Number>,
    /// New safe head.
    pub safe: Option<L2Ref>,
    /// The safe head is removed; `safe` is none then.
    pub clear_safe: bool,
    /// New finalized head.
    pub finalized: Option<L2Ref>,
    /// New cursor.
    pub cursor: Option<Cursor>,
    /// The cursor is removed: L1 is read from the first block again; `cursor` is none then.
    pub clear_cursor: bool,
}

/// Reads what is stored about the chain.
#[async_trait]
pub trait Rows: Send + Sync {
    /// The recorded L1 blocks, newest first.
    async fn l1_blocks(&self) -> PortResult<Vec<L1Ref>>;

    /// The newest recorded L1 block.
    async fn newest_l1_block(&self) -> PortResult<Option<L1Ref>> {
        Ok(self.l1_blocks().await?.first().copied())
    }

    /// The standing batch with this index.
    async fn batch(&self, index: BatchIndex) -> PortResult<Option<BatchRecord>>;

    /// The standing batch (verified or genesis) with the highest index whose commit lies at or below L1 block `number`.
    async fn newest_at_or_below(&self, number: L1Number) -> PortResult<Option<BatchRecord>>;

    /// The batch whose last block is `block`: the standing one, else the one whose commit lies highest on L1.
    async fn batch_ending_on(&self, block: L2Ref) -> PortResult<Option<BatchRecord>>;

    /// The first batch, by its place on L1, that lies at or below L1 block `number` and was skipped because of a revert
    /// above that block.
    async fn reverted_above(&self, number: L1Number) -> PortResult<Option<BatchRecord>>;

    /// Up to which L1 block every RevertBatch and FinalizeBatch log is stored, also ahead of the cursor; none if only
    /// the cursor says so.
    async fn settled_to(&self) -> PortResult<Option<L1Ref>>;

    /// The first stored RevertBatch log after the log at `place` (L1 block, log index) that takes down a batch `index`
    /// committed there: a revert of that index or a lower one.
    async fn revert_after(&self, index: BatchIndex, place: LogPos) -> PortResult<Option<L1Event>>;

    /// The stored RevertBatch logs after the log at `place`, up to L1 block `to`, by their place; at most `limit`.
    async fn reverts_within(&self, place: LogPos, to: L1Number, limit: u32) -> PortResult<Vec<L1Event>>;

    /// The stored FinalizeBatch log with the highest index at or below L1 block `number`.
    async fn newest_proof(&self, number: L1Number) -> PortResult<Option<L1Event>>;

    /// Stored L1 messages with index `first..first + count`; missing ones are left out.
    async fn messages(&self, first: QueueIndex, count: u64) -> PortResult<Vec<L1Message>>;

    /// The newest `limit` journal entries, newest first.
    async fn journal_tail(&self, limit: u32) -> PortResult<Vec<JournalEntry>>;
}

/// The lease of a pause of the reactors.
#[async_trait]
pub trait LeaseStore: Send + Sync {
    /// The stored lease: a pause that a crash interrupted.
    async fn lease(&self) -> PortResult<Option<Lease>>;

    /// Stores the lease of a pause, or removes it.
    async fn set_lease(&self, lease: Option<Lease>) -> PortResult<()>;
}

/// The worker's stored state. Survives kill -9 at any point.
#[async_trait]
pub trait Progress: Rows + LeaseStore {
    /// Everything that a start needs.
    async fn load(&self) -> PortResult<Stored>;

    /// Stores the identity at first use; `StoreRefused` when another one is stored.
    async fn claim(&self, identity: &Identity) -> PortResult<()>;

    /// Applies `step` in one transaction.
    async fn apply(&self, step: &Step) -> PortResult<()>;

    /// Stores write intents before the writes are made. If one with the same height and batch hash exists, it keeps the
    /// block that was there first, and takes over the new state of the node's tags. Intents with another batch hash are
    /// dropped: their batch is no longer the one being written.
    async fn note_intents(&self, writes: &[WriteIntent]) -> PortResult<()>;

    /// Drops the intents at `from` and above that the journal does not hold: those writes were not made. Old blocks up
    /// to `standing` are still on the chain. An intent for an old block above that stays, marked as seen: that block is
    /// gone in any case, and must be recorded in the journal.
    async fn withdraw_writes(&self, from: L2Number, standing: L2Number) -> PortResult<()>;

    /// Stores that the node was read: the effect of the writes up to `seen_to` on its tags is known, and `spurious` is
    /// the one tag that is still to be restored.
    async fn looked(&self, seen_to: Option<L2Number>, spurious: Option<SpuriousTag>) -> PortResult<()>;

    /// Appends to the journal of writes, and notes in each open write of the same height and batch what was written.
    async fn journal(&self, entries: &[JournalEntry]) -> PortResult<()>;

    /// Drops what is no longer needed: L1 blocks below `l1`, L1 messages below queue index `queue`, batch rows below
    /// index `batch`, reverts below `l1` that no row needs, proofs below index `batch`.
    async fn prune(&self, l1: L1Number, queue: QueueIndex, batch: BatchIndex) -> PortResult<()>;
}

/// What an audit keeps besides the rows of its batches. Survives kill -9 at any point.
#[async_trait]
pub trait AuditLog: Send + Sync {
    /// Binds a new database to `range`, judged by the L1 blocks that `settled` names; `StoreRefused` if it is bound to
    /// another one, or if a worker has used it.
    async fn claim_range(&self, range: &AuditRange, settled: &str) -> PortResult<()>;

    /// Stores that the local chain contradicts the batch with this hash.
    async fn put_divergence(&self, hash: B256, divergence: &Divergence) -> PortResult<()>;

    /// The stored divergences of batches that still stand with the hash that they had, by batch.
    async fn divergences(&self) -> PortResult<Vec<Divergence>>;

    /// How many of the standing batches from `from` on are verified, and what they hold.
    async fn counts(&self, from: BatchIndex) -> PortResult<Counts>;
}
