//! A database that stores a step and then says that it took too long (what a full disk queue does to a deadline), or
//! that refuses the step of a revert (a full disk), or that takes its time to note a write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use morph_deriver::error::{PortError, PortErrorKind, Target};
use morph_deriver::ports::{LeaseStore, PortResult, Progress, Rows, Step, Stored};
use morph_deriver::types::{
    BatchIndex, BatchRecord, Identity, JournalEntry, L1Event, L1Message, L1Number, L1Ref, L2Number, L2Ref, Lease,
    LogPos, QueueIndex, SpuriousTag, WriteIntent,
};

/// A database with one step that times out after it was stored.
pub struct LateStore {
    inner: Arc<dyn Progress>,
    /// Steps that still pass before the late one.
    pass: AtomicU64,
    /// Steps of a RevertBatch log are refused, and nothing of them is stored.
    refuses_reverts: AtomicBool,
    /// How long the note of a write takes, in milliseconds.
    notes_take: AtomicU64,
}

impl LateStore {
    /// `inner`, if nothing is late yet.
    pub fn over(inner: Arc<dyn Progress>) -> Arc<Self> {
        let (pass, refuses_reverts) = (AtomicU64::new(u64::MAX), AtomicBool::new(false));
        Arc::new(Self { inner, pass, refuses_reverts, notes_take: AtomicU64::new(0) })
    }

    /// The step after the next `pass` ones is late.
    pub fn late_after(&self, pass: u64) {
        self.pass.store(pass, Ordering::SeqCst);
    }

    /// Whether the disk is full from now on whenever a revert is to be stored.
    pub fn refuse_reverts(&self, refuse: bool) {
        self.refuses_reverts.store(refuse, Ordering::SeqCst);
    }

    /// The note of a write takes `millis` milliseconds from now on.
    pub fn slow_notes(&self, millis: u64) {
        self.notes_take.store(millis, Ordering::SeqCst);
    }

    /// Whether the late step came.
    pub fn was_late(&self) -> bool {
        self.pass.load(Ordering::SeqCst) == u64::MAX
    }
}

#[async_trait]
impl Rows for LateStore {
    async fn l1_blocks(&self) -> PortResult<Vec<L1Ref>> {
        self.inner.l1_blocks().await
    }

    async fn batch(&self, index: BatchIndex) -> PortResult<Option<BatchRecord>> {
        self.inner.batch(index).await
    }

    async fn newest_at_or_below(&self, number: L1Number) -> PortResult<Option<BatchRecord>> {
        self.inner.newest_at_or_below(number).await
    }

    async fn batch_ending_on(&self, block: L2Ref) -> PortResult<Option<BatchRecord>> {
        self.inner.batch_ending_on(block).await
    }

    async fn reverted_above(&self, number: L1Number) -> PortResult<Option<BatchRecord>> {
        self.inner.reverted_above(number).await
    }

    async fn settled_to(&self) -> PortResult<Option<L1Ref>> {
        self.inner.settled_to().await
    }

    async fn revert_after(&self, index: BatchIndex, pos: LogPos) -> PortResult<Option<L1Event>> {
        self.inner.revert_after(index, pos).await
    }

    async fn reverts_within(&self, pos: LogPos, to: L1Number, limit: u32) -> PortResult<Vec<L1Event>> {
        self.inner.reverts_within(pos, to, limit).await
    }

    async fn newest_proof(&self, number: L1Number) -> PortResult<Option<L1Event>> {
        self.inner.newest_proof(number).await
    }

    async fn messages(&self, first: QueueIndex, count: u64) -> PortResult<Vec<L1Message>> {
        self.inner.messages(first, count).await
    }

    async fn journal_tail(&self, limit: u32) -> PortResult<Vec<JournalEntry>> {
        self.inner.journal_tail(limit).await
    }
}

#[async_trait]
impl LeaseStore for LateStore {
    async fn lease(&self) -> PortResult<Option<Lease>> {
        self.inner.lease().await
    }

    async fn set_lease(&self, lease: Option<Lease>) -> PortResult<()> {
        self.inner.set_lease(lease).await
    }
}

#[async_trait]
impl Progress for LateStore {
    async fn apply(&self, step: &Step) -> PortResult<()> {
        if step.revert.is_some() && self.refuses_reverts.load(Ordering::SeqCst) {
            return Err(PortError::new(Target::Store, PortErrorKind::Storage, "no space left"));
        }
        self.inner.apply(step).await?;
        let pass = self.pass.load(Ordering::SeqCst);
        if pass == u64::MAX {
            return Ok(());
        }
        self.pass.store(pass.wrapping_sub(1), Ordering::SeqCst);
        if pass > 0 {
            return Ok(());
        }
        Err(PortError::new(Target::Store, PortErrorKind::Timeout, "the database did not answer"))
    }

    async fn load(&self) -> PortResult<Stored> {
        self.inner.load().await
    }

    async fn claim(&self, identity: &Identity) -> PortResult<()> {
        self.inner.claim(identity).await
    }

    async fn note_intents(&self, writes: &[WriteIntent]) -> PortResult<()> {
        tokio::time::sleep(Duration::from_millis(self.notes_take.load(Ordering::SeqCst))).await;
        self.inner.note_intents(writes).await
    }

    async fn withdraw_writes(&self, from: L2Number, standing: L2Number) -> PortResult<()> {
        self.inner.withdraw_writes(from, standing).await
    }

    async fn journal(&self, entries: &[JournalEntry]) -> PortResult<()> {
        self.inner.journal(entries).await
    }

    async fn looked(&self, seen_to: Option<L2Number>, mark: Option<SpuriousTag>) -> PortResult<()> {
        self.inner.looked(seen_to, mark).await
    }

    async fn prune(&self, l1: L1Number, queue: QueueIndex, batch: BatchIndex) -> PortResult<()> {
        self.inner.prune(l1, queue, batch).await
    }
}
