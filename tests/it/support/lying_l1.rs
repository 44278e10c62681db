//! An L1 that lies: it makes logs up, leaves logs out, lacks headers, or answers a part only, in the calls that a test
//! names. Everything else is answered by the L1 behind it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use morph_deriver::error::{PortError, PortErrorKind, Target};
use morph_deriver::ports::{FoundLogs, L1Chain, PortResult, RangeLogs, Suspect};
use morph_deriver::types::{
    B256, BatchIndex, L1Event, L1EventKind, L1Header, L1Number, L1Ref, L1Tag, L1Transaction, L2Number, QueueIndex,
    TracedCall,
};

/// Which calls lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct In {
    /// The ordinary ranges.
    pub ranges: bool,
    /// The reverts and proofs ahead of them.
    pub scans: bool,
    /// The logs of one batch.
    pub searches: bool,
}

impl In {
    pub const NOTHING: Self = Self { ranges: false, scans: false, searches: false };
    pub const RANGES: Self = Self { ranges: true, ..Self::NOTHING };
    pub const SCANS: Self = Self { scans: true, ..Self::NOTHING };
    pub const ALL: Self = Self { ranges: true, scans: true, searches: true };
}

/// What is answered wrongly.
#[derive(Clone, Debug, Default)]
pub struct Lies {
    /// Logs that were never emitted, and where they are shown.
    pub forged: Vec<L1Event>,
    pub forged_in: In,
    /// Kinds of logs that are left out, and where.
    pub hides: Option<fn(&L1Event) -> bool>,
    pub hides_in: In,
    /// Blocks whose headers are missing.
    pub lacks: Vec<u64>,
    /// Most blocks of a range that are answered.
    pub most: Option<u64>,
    /// Questions about the contract's state get no answer.
    pub no_views: bool,
}

/// The L1, and what it was asked.
pub struct LyingL1 {
    inner: Arc<dyn L1Chain>,
    lies: Mutex<Lies>,
    asked: Mutex<BTreeMap<&'static str, u64>>,
    /// Whether there is another one to be asked.
    pub others: AtomicBool,
}

impl LyingL1 {
    /// `inner`, answered honestly.
    pub fn over(inner: Arc<dyn L1Chain>) -> Arc<Self> {
        let others = AtomicBool::new(false);
        Arc::new(Self { inner, lies: Mutex::default(), asked: Mutex::default(), others })
    }

    /// Lies like this from now on.
    pub fn lie(&self, lies: Lies) {
        *self.lies.lock().unwrap() = lies;
    }

    /// Tells the truth from now on.
    pub fn be_honest(&self) {
        self.lie(Lies::default());
    }

    /// How often `call` was made.
    pub fn asked(&self, call: &str) -> u64 {
        self.asked.lock().unwrap().get(call).copied().unwrap_or(0)
    }

    fn told(&self, call: &'static str) -> Lies {
        *self.asked.lock().unwrap().entry(call).or_default() += 1;
        self.lies.lock().unwrap().clone()
    }

    fn viewed(&self, call: &'static str) -> PortResult<()> {
        match self.told(call).no_views {
            true => Err(PortError::new(Target::L1, PortErrorKind::Unsupported, "eth_call is switched off")),
            false => Ok(()),
        }
    }
}

impl Lies {
    fn alter(&self, events: &mut Vec<L1Event>, told: fn(&In) -> bool, wanted: impl Fn(&L1Event) -> bool) {
        if let (Some(hides), true) = (self.hides, told(&self.hides_in)) {
            events.retain(|event| !hides(event));
        }
        if told(&self.forged_in) {
            events.extend(self.forged.iter().filter(|event| wanted(event)).cloned());
            events.sort_by_key(|event| (event.block.number, event.log_index));
        }
    }
}

fn is_inside(event: &L1Event, from: L1Number, to: L1Number) -> bool {
    event.block.number >= from && event.block.number <= to
}

/// A RevertBatch log that was never emitted.
pub fn forged_revert(block: L1Ref, index: u64, hash: B256) -> L1Event {
    forged(block, L1EventKind::Revert { index: index.into(), hash })
}

/// A FinalizeBatch log that was never emitted.
pub fn forged_proof(block: L1Ref, index: u64, hash: B256) -> L1Event {
    forged(block, L1EventKind::Finalize { index: index.into(), hash })
}

/// A CommitBatch log that was never emitted.
pub fn forged_commit(block: L1Ref, index: u64, hash: B256) -> L1Event {
    forged(block, L1EventKind::Commit { index: index.into(), hash })
}

fn forged(block: L1Ref, kind: L1EventKind) -> L1Event {
    L1Event { block, tx_index: 0, tx_hash: B256::repeat_byte(0xab), log_index: 900, kind }
}

#[async_trait]
impl L1Chain for LyingL1 {
    async fn tagged(&self, tag: L1Tag) -> PortResult<Option<L1Header>> {
        self.inner.tagged(tag).await
    }

    async fn headers(&self, numbers: &[L1Number]) -> PortResult<Vec<Option<L1Header>>> {
        let lies = self.told("headers");
        let mut headers = self.inner.headers(numbers).await?;
        for header in &mut headers {
            *header = header.filter(|h| !lies.lacks.contains(&h.number.get()));
        }
        Ok(headers)
    }

    async fn events(&self, from: L1Number, to: L1Number) -> PortResult<RangeLogs> {
        let lies = self.told("events");
        let to = lies.most.map_or(to, |most| to.min(from.plus(most - 1)));
        let mut logs = self.inner.events(from, to).await?;
        lies.alter(&mut logs.events, |at| at.ranges, |event| is_inside(event, from, to));
        Ok(logs)
    }

    async fn settlements(&self, from: L1Number, to: L1Number) -> PortResult<RangeLogs> {
        let lies = self.told("settlements");
        let to = lies.most.map_or(to, |most| to.min(from.plus(most - 1)));
        let mut logs = self.inner.settlements(from, to).await?;
        let wanted = |event: &L1Event| {
            let kind = matches!(event.kind, L1EventKind::Revert { .. } | L1EventKind::Finalize { .. });
            kind && is_inside(event, from, to)
        };
        lies.alter(&mut logs.events, |at| at.scans, wanted);
        Ok(logs)
    }

    async fn commits_of(&self, index: BatchIndex, from: L1Number, to: L1Number) -> PortResult<FoundLogs> {
        let lies = self.told("commits_of");
        let mut found = self.inner.commits_of(index, from, to).await?;
        let wanted = |event: &L1Event| {
            let kind = matches!(event.kind, L1EventKind::Commit { index: it, .. } if it == index);
            kind && is_inside(event, from, to)
        };
        lies.alter(&mut found.events, |at| at.searches, wanted);
        Ok(found)
    }

    async fn reverts_of(&self, index: BatchIndex, from: L1Number, to: L1Number) -> PortResult<FoundLogs> {
        let lies = self.told("reverts_of");
        let mut found = self.inner.reverts_of(index, from, to).await?;
        let wanted = |event: &L1Event| {
            let kind = matches!(event.kind, L1EventKind::Revert { index: it, .. } if it == index);
            kind && is_inside(event, from, to)
        };
        lies.alter(&mut found.events, |at| at.searches, wanted);
        Ok(found)
    }

    async fn queued(&self, from: L1Number, to: L1Number) -> PortResult<FoundLogs> {
        self.inner.queued(from, to).await
    }

    async fn transaction(&self, block: L1Ref, index: u64) -> PortResult<Option<L1Transaction>> {
        self.told("transaction");
        self.inner.transaction(block, index).await
    }

    async fn rollup_calls(&self, tx: B256) -> PortResult<Option<Vec<TracedCall>>> {
        self.inner.rollup_calls(tx).await
    }

    async fn committed_hashes(&self, indices: &[BatchIndex], at: Option<L1Number>) -> PortResult<Vec<B256>> {
        self.viewed("committed_hashes")?;
        self.inner.committed_hashes(indices, at).await
    }

    async fn last_committed_index(&self, at: Option<L1Number>) -> PortResult<BatchIndex> {
        self.viewed("last_committed_index")?;
        self.inner.last_committed_index(at).await
    }

    async fn last_finalized_index(&self, at: Option<L1Number>) -> PortResult<BatchIndex> {
        self.viewed("last_finalized_index")?;
        self.inner.last_finalized_index(at).await
    }

    async fn blob_field(&self, index: BatchIndex) -> PortResult<B256> {
        self.inner.blob_field(index).await
    }

    async fn batch_last_block(&self, index: BatchIndex) -> PortResult<L2Number> {
        self.inner.batch_last_block(index).await
    }

    async fn queue_hashes(&self, indices: &[QueueIndex]) -> PortResult<Vec<B256>> {
        self.inner.queue_hashes(indices).await
    }

    fn distrust(&self, _: Suspect, _: &str) -> bool {
        self.others.load(Ordering::SeqCst)
    }
}
