//! What a batch is judged by: its local blocks, its content on L1, and the L1 messages that are stored.
//!
//! Everything here only reads, and takes `&self`: it may run ahead of the batch's turn. `decide/` decides what the
//! answers mean, in the batch's turn.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tracing::debug;

use crate::codec::batch::{self, Contexts};
use crate::decide::binding::BoundCommit;
use crate::decide::content::{self, ContentFault, Demands};
use crate::decide::reconcile::held_bytes;
use crate::decide::stall::{Cause, Stall};
use crate::error::PortError;
use crate::flow::blob_check::{BlobCheck, Coming};
use crate::flow::{Decided, FlowError};
use crate::ports::{BlobSource, L1Chain, L2Reader};
use crate::types::{B256, BatchIndex, BatchRecord, Blob, BlockContent, L1Header, L2Block, L2Header, L2Number};

/// Local blocks read at a time: as many as the L2 client asks for at once, so that reading in pieces costs no time.
const READ_AT_ONCE: u64 = 200;

/// The largest payload that is kept, in bytes: twelve times what six full blobs hold of real ones.
const KEPT_MAX: usize = 8 << 20;

/// The most bytes that all kept payloads may have together, and how many may be kept: more than are fetched ahead, so that
/// none is dropped before its turn.
const ALL_KEPT_MAX: usize = 32 << 20;
const KEPT_AT_ONCE: usize = 128;

/// A batch whose commit is bound, on the local block below it.
pub(crate) struct BatchContext<'a> {
    /// The commit.
    pub(crate) bound: &'a BoundCommit,
    /// The standing batch before, if one is stored.
    pub(crate) before: Option<&'a BatchRecord>,
    /// Its first block.
    pub(crate) first: L2Number,
    /// How many blocks it has.
    pub(crate) blocks: u64,
    /// The local block below it.
    pub(crate) anchor: L2Header,
}

impl BatchContext<'_> {
    /// Its index.
    pub(crate) const fn index(&self) -> BatchIndex {
        self.bound.outline.index()
    }

    /// Its last block.
    pub(crate) const fn last(&self) -> L2Number {
        self.bound.outline.last
    }

    /// What calldata and the anchor demand of its content.
    pub(crate) const fn demands(&self) -> Demands {
        Demands {
            first: self.first,
            last: self.last(),
            messages: self.bound.outline.messages,
            parent_timestamp: self.anchor.timestamp,
        }
    }
}

/// The ports that a batch's facts are read from.
pub(crate) struct Gatherer {
    l1: Arc<dyn L1Chain>,
    blobs: Arc<dyn BlobSource>,
    l2: Arc<dyn L2Reader>,
    /// The payloads that were decoded last: so a batch at which the worker is stalled is not fetched again at every
    /// poll, and the blobs of batches that share a pause are fetched before it. Equal versioned hashes mean an equal
    /// payload.
    kept: Mutex<VecDeque<(Vec<B256>, Bytes)>>,
    /// Makes and checks blobs.
    checks: BlobCheck,
}

impl Gatherer {
    /// Over these ports.
    pub(crate) fn new(l1: Arc<dyn L1Chain>, blobs: Arc<dyn BlobSource>, l2: Arc<dyn L2Reader>) -> Self {
        let checks = BlobCheck::new(blobs.clone());
        Self { l1, blobs, l2, kept: Mutex::default(), checks }
    }

    /// Local blocks from the batch's first to `to`, standing on the anchor that was read; fewer if they hold more than
    /// `bytes`: then the last one given is the one that exceeds it.
    ///
    /// # Errors
    /// When the node cannot be asked, and `local_chain_changed` if its blocks do not fit together.
    pub(crate) async fn local_blocks(
        &self,
        batch: &BatchContext<'_>,
        to: L2Number,
        bytes: usize,
    ) -> Result<Vec<L2Block>, FlowError> {
        let mut blocks: Vec<L2Block> = Vec::new();
        let mut held = 0_usize;
        let mut from = batch.first;
        while from <= to {
            let end = from.plus(READ_AT_ONCE - 1).min(to);
            let piece = self.l2.blocks(from, end).await?;
            // Large blocks come fewer at a time.
            let read = piece.len() as u64;
            if read == 0 || read > end.above(from).saturating_add(1) {
                return Err(FlowError::local_changed(format!("{read} blocks were read from {from} to {end}")));
            }
            let below = blocks.last().map(|b| b.header.hash);
            if below.is_some() && piece.first().map(|b| b.header.parent_hash) != below {
                return Err(FlowError::local_changed(format!("block {from} does not stand on the one below it")));
            }
            for block in piece {
                held = held.saturating_add(held_bytes(&block.transactions));
                blocks.push(block);
                if held > bytes {
                    return Ok(blocks);
                }
            }
            from = from.plus(read);
        }
        Ok(blocks)
    }

    /// Whether the local blocks encode to the very blobs that L1 committed to, and carry the queue's L1 messages.
    ///
    /// # Errors
    /// When the encoding was interrupted.
    pub(crate) async fn same_bytes(&self, batch: &BatchContext<'_>, local: &[L2Block]) -> Result<bool, FlowError> {
        match self.rebuilt(batch, local).await? {
            Some(blobs) => self.checks.one_by_one(blobs, batch.bound.outline.versioned_hashes.clone()).await,
            None => Ok(false),
        }
    }

    /// The blobs that the local blocks encode to; none if they cannot be those that L1 committed to.
    ///
    /// # Errors
    /// As [`Gatherer::same_bytes`].
    pub(crate) async fn rebuilt(
        &self,
        batch: &BatchContext<'_>,
        local: &[L2Block],
    ) -> Result<Option<Vec<Blob>>, FlowError> {
        let outline = &batch.bound.outline;
        if local.first().is_none_or(|b| b.header.parent_hash != batch.anchor.hash) {
            return Ok(None);
        }
        let Some(contents) = batch::contents_of(local, &outline.message_hashes) else { return Ok(None) };
        // Times and counts are part of the bytes, but the rules that bind them are not: a chain that equals a poison
        // blob is still poison.
        if content::check(&contents, &batch.demands()).is_err() {
            return Ok(None);
        }
        let contexts = outline.contexts.clone();
        self.checks.on_a_core(move || batch::rebuilt(&contents, contexts.as_deref())).await
    }

    /// Says that the blobs of this commit will be made ahead of their turn, when there is room for them.
    pub(crate) async fn coming(&self, bound: &BoundCommit) -> Coming {
        self.checks.coming(bound.outline.versioned_hashes.len()).await
    }

    /// Whether rebuilt `blobs` are those that L1 committed to, checked together with other batches' if that can be.
    /// `header` is that of the L1 block whose beacon block holds their commitments; `coming` announced them.
    ///
    /// # Errors
    /// As [`Gatherer::same_bytes`].
    pub(crate) async fn are_committed(
        &self,
        bound: &BoundCommit,
        blobs: Vec<Blob>,
        header: Option<&L1Header>,
        coming: &mut Coming,
    ) -> Result<bool, FlowError> {
        let wanted = bound.outline.versioned_hashes.clone();
        match header.filter(|header| header.l1_ref() == bound.blob_block) {
            Some(header) => self.checks.together(blobs, wanted, header, coming).await,
            None => self.checks.one_by_one(blobs, wanted).await,
        }
    }

    /// The batch's blocks as its blobs hold them, still without the L1 messages' bytes.
    ///
    /// # Errors
    /// When L1 or the beacon node cannot be asked; a stall if the blobs hold something else.
    pub(crate) async fn content(&self, batch: &BatchContext<'_>) -> Decided<Vec<BlockContent>> {
        let outline = &batch.bound.outline;
        let bytes = if outline.versioned_hashes.is_empty() && outline.contexts.is_some() {
            Bytes::new()
        } else {
            self.payload(batch.bound).await?
        };
        let blocks = match &outline.contexts {
            Some(contexts) => blocks_of(bytes, Contexts::Calldata(contexts)),
            None => blocks_of(bytes.clone(), Contexts::Count(batch.blocks))
                .map_err(|fault| other_last(bytes, batch.last()).unwrap_or(fault)),
        };
        blocks.map_err(|fault| poison(batch.index(), fault).into())
    }

    /// Fetches the blobs of a commit and decodes them to the payload.
    ///
    /// # Errors
    /// As [`Gatherer::content`].
    pub(crate) async fn payload(&self, bound: &BoundCommit) -> Decided<Bytes> {
        let outline = &bound.outline;
        if outline.versioned_hashes.is_empty() {
            return Err(poison(outline.index(), ContentFault::Malformed("the batch has no blob".to_owned())).into());
        }
        let headers = self.l1.headers(&[bound.blob_block.number]).await?;
        let Some(header) = headers.first().copied().flatten().filter(|h| h.l1_ref() == bound.blob_block) else {
            return Err(FlowError::l1_changed(format!("L1 block {} is no longer canonical", bound.blob_block)).into());
        };
        if let Some(bytes) = self.kept(&outline.versioned_hashes) {
            return Ok(bytes);
        }
        let blobs = match self.blobs.blobs(&header, &outline.versioned_hashes).await {
            Ok(blobs) => blobs,
            Err(error) => return Err(self.missing_blob(bound, error).await.into()),
        };
        debug!(batch = outline.index().get(), blobs = blobs.len(), "blobs fetched");
        let decoded = tokio::task::spawn_blocking(move || batch::payload_of(&blobs)).await;
        let decoded = decoded.map_err(|e| FlowError::local_changed(format!("decoding was interrupted: {e}")))?;
        let decoded = decoded.map(|d| d.payload).map_err(|e| ContentFault::Malformed(e.to_string()));
        if let Ok(bytes) = decoded.as_ref()
            && bytes.len() <= KEPT_MAX
        {
            self.keep(&outline.versioned_hashes, bytes.clone());
        }
        decoded.map_err(|fault| poison(outline.index(), fault).into())
    }

    fn kept(&self, hashes: &[B256]) -> Option<Bytes> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|(of, _)| of == hashes).map(|(_, bytes)| bytes.clone())
    }

    fn keep(&self, hashes: &[B256], bytes: Bytes) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back((hashes.to_vec(), bytes));
        while kept.len() > KEPT_AT_ONCE || kept.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() > ALL_KEPT_MAX {
            kept.pop_front();
        }
    }

    /// A missed slot may be a reorg: the L1 block is read once more before the beacon node is blamed (D3).
    async fn missing_blob(&self, bound: &BoundCommit, error: PortError) -> FlowError {
        let live = self.l1.headers(&[bound.blob_block.number]).await;
        match live.map(|h| h.first().copied().flatten()) {
            Ok(Some(header)) if header.l1_ref() != bound.blob_block => {
                FlowError::l1_changed(format!("L1 block {} is no longer canonical", bound.blob_block))
            }
            _ => FlowError::Port(error),
        }
    }
}

/// What L1 holds for batch `index` cannot be a batch.
pub(crate) const fn poison(index: BatchIndex, fault: ContentFault) -> Stall {
    Stall::at(index, Cause::Content(fault))
}

/// The payload's blocks, with nothing after them.
fn blocks_of(bytes: Bytes, contexts: Contexts<'_>) -> Result<Vec<BlockContent>, ContentFault> {
    match batch::open(bytes, contexts) {
        Ok(opened) if opened.trailing > 0 => Err(ContentFault::Trailing(opened.trailing)),
        Ok(opened) => Ok(opened.blocks),
        Err(error) => Err(ContentFault::Malformed(error.to_string())),
    }
}

/// Calldata's last block decides how many contexts a payload is taken to have, so a wrong one makes nonsense of a
/// payload that is whole. If it decodes under the count that its own numbers give, that block is the fault (C13).
fn other_last(bytes: Bytes, expected: L2Number) -> Option<ContentFault> {
    let blocks = blocks_of(bytes, Contexts::Consecutive).ok()?;
    let actual = blocks.last()?.context.number;
    (actual != expected).then_some(ContentFault::Last { expected, actual })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::error::Severity;
    use crate::flow::Stop;
    use crate::flow::commit::{self, Contract};
    use crate::flow::testing::World;
    use crate::ports::PortResult;
    use crate::types::{Blob, L1Header};

    struct Counted(Arc<dyn BlobSource>, AtomicUsize);

    #[async_trait]
    impl BlobSource for Counted {
        async fn blobs(&self, header: &L1Header, versioned_hashes: &[B256]) -> PortResult<Vec<Blob>> {
            self.1.fetch_add(1, Ordering::SeqCst);
            self.0.blobs(header, versioned_hashes).await
        }
    }

    async fn bound(world: &World) -> BoundCommit {
        let mut contract = Contract::new(&world.l1, 0.into());
        let bound = commit::bind(&world.l1, world.settings.rollup, &world.commit(1), &mut contract).await;
        bound.unwrap()
    }

    #[tokio::test]
    async fn blobs_are_fetched_once_and_only_while_their_block_is_canonical() {
        let world = World::recorded().await;
        let blobs = Arc::new(Counted(world.ports.blobs.clone(), AtomicUsize::new(0)));
        let gatherer = Gatherer::new(world.ports.l1.clone(), blobs.clone(), world.ports.l2.clone());
        let bound = bound(&world).await;
        let payload = gatherer.payload(&bound).await.unwrap();
        assert_eq!(gatherer.payload(&bound).await.unwrap(), payload);
        assert_eq!(blobs.1.load(Ordering::SeqCst), 1);
        world.l1.now().reorganise(4);
        let gone = gatherer.payload(&bound).await;
        assert!(matches!(gone, Err(Stop::Failed(error)) if error.severity() == Severity::Reset));
    }

    #[tokio::test]
    async fn p7_local_blocks_are_read_up_to_the_bytes_that_were_asked_for() {
        let world = World::recorded().await;
        let gatherer = Gatherer::new(world.ports.l1.clone(), world.ports.blobs.clone(), world.ports.l2.clone());
        let (bound, anchor) = (bound(&world).await, world.recorded.at(0).unwrap().header);
        let batch = BatchContext { bound: &bound, before: None, first: 1.into(), blocks: 12, anchor };
        let whole = gatherer.local_blocks(&batch, 12.into(), usize::MAX).await.unwrap();
        assert_eq!(whole.len(), 12);
        assert!(gatherer.same_bytes(&batch, &whole).await.unwrap());
        assert!(!gatherer.same_bytes(&batch, &whole[..11]).await.unwrap());
        let held: usize = whole[..4].iter().map(|block| held_bytes(&block.transactions)).sum();
        assert_eq!(gatherer.local_blocks(&batch, 12.into(), held - 1).await.unwrap().len(), 4);
    }
}
