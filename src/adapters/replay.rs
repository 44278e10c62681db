//! L1 and beacon out of a recorded fixture.
//!
//! Every question is answered from the recorded answers alone; one that they hold no answer to is an error that names
//! the question, never a guess.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::adapters::fixture::{Fixture, Logs};
use crate::error::{PortError, PortErrorKind, Target};
use crate::ports::{BlobSource, FoundLogs, L1Chain, PortResult, RangeLogs, Suspect};
use crate::types::{
    B256, BatchIndex, Blob, L1Event, L1EventKind, L1Header, L1Number, L1Ref, L1Tag, L1Transaction, L2Number,
    QueueIndex, TracedCall,
};

/// A fixture as L1 chain and blob source.
#[derive(Clone, Debug)]
pub struct Replay {
    fixture: Arc<Fixture>,
}

fn unanswered(question: impl fmt::Display) -> PortError {
    PortError::new(Target::Fixture, PortErrorKind::NotFound, format!("the fixture holds no answer to: {question}"))
}

/// A state of the contract, for a text.
fn state(at: Option<L1Number>) -> String {
    at.map_or_else(String::new, |at| format!(" at L1 block {at}"))
}

impl Replay {
    /// Answers from `fixture`.
    pub const fn new(fixture: Arc<Fixture>) -> Self {
        Self { fixture }
    }

    /// The last block of a range, as the recorded header or the recorded logs name it.
    fn end(&self, number: L1Number) -> Option<L1Ref> {
        let facts = &self.fixture.facts;
        let header = facts.header(number).map(|h| h.l1_ref());
        header.or_else(|| facts.ends.iter().find(|end| end.number == number).copied())
    }

    /// The recorded logs of `from..=to` that `wanted` takes.
    fn logs(
        &self,
        logs: Logs,
        (from, to): (L1Number, L1Number),
        question: impl fmt::Display,
        wanted: impl Fn(&L1EventKind) -> bool,
    ) -> PortResult<Vec<L1Event>> {
        let facts = &self.fixture.facts;
        if !facts.holds(logs, from, to) {
            return Err(unanswered(format!("{question} in L1 blocks {from} to {to}")));
        }
        let inside = |e: &&L1Event| e.block.number >= from && e.block.number <= to && wanted(&e.kind);
        Ok(facts.events.iter().filter(inside).cloned().collect())
    }
}

// Whatever the flow comes to ask is answered from the fixture.
#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl L1Chain for Replay {
    async fn tagged(&self, tag: L1Tag) -> PortResult<Option<L1Header>> {
        let facts = &self.fixture.facts;
        let found = match tag {
            L1Tag::Latest => facts.header(facts.range.to).map(Some),
            L1Tag::Safe | L1Tag::Finalized => facts.tags.iter().find(|(known, _)| *known == tag).map(|(_, h)| *h),
        };
        found.ok_or_else(|| unanswered(format!("{tag:?} L1 block")))
    }

    async fn latest_and(&self, tag: L1Tag) -> PortResult<(Option<L1Header>, Option<L1Header>)> {
        Ok((self.tagged(L1Tag::Latest).await?, self.tagged(tag).await?))
    }

    async fn headers(&self, numbers: &[L1Number]) -> PortResult<Vec<Option<L1Header>>> {
        let answer = |number: &L1Number| match self.fixture.facts.header(*number) {
            Some(header) => Ok(Some(header)),
            None if *number > self.fixture.facts.range.to => Ok(None),
            None => Err(unanswered(format!("header of L1 block {number}"))),
        };
        numbers.iter().map(answer).collect()
    }

    async fn events(&self, from: L1Number, to: L1Number) -> PortResult<RangeLogs> {
        let events = self.logs(Logs::All, (from, to), "logs", |_| true)?;
        Ok(RangeLogs { events, ends: self.end(to).into_iter().collect() })
    }

    async fn settlements(&self, from: L1Number, to: L1Number) -> PortResult<RangeLogs> {
        let wanted = |kind: &L1EventKind| matches!(kind, L1EventKind::Revert { .. } | L1EventKind::Finalize { .. });
        let events = self.logs(Logs::Settlements, (from, to), "reverts and proofs", wanted)?;
        Ok(RangeLogs { events, ends: self.end(to).into_iter().collect() })
    }

    async fn commits_of(&self, index: BatchIndex, from: L1Number, to: L1Number) -> PortResult<FoundLogs> {
        let wanted = |kind: &L1EventKind| matches!(kind, L1EventKind::Commit { index: i, .. } if *i == index);
        let events = self.logs(Logs::Commits(index), (from, to), format!("commits of batch {index}"), wanted)?;
        Ok(FoundLogs { events, reached: from })
    }

    async fn reverts_of(&self, index: BatchIndex, from: L1Number, to: L1Number) -> PortResult<FoundLogs> {
        let wanted = |kind: &L1EventKind| matches!(kind, L1EventKind::Revert { index: i, .. } if *i == index);
        let events = self.logs(Logs::Reverts(index), (from, to), format!("reverts of batch {index}"), wanted)?;
        Ok(FoundLogs { events, reached: to })
    }

    async fn queued(&self, from: L1Number, to: L1Number) -> PortResult<FoundLogs> {
        let wanted = |kind: &L1EventKind| matches!(kind, L1EventKind::Message(_));
        let events = self.logs(Logs::Queued, (from, to), "L1 messages", wanted)?;
        Ok(FoundLogs { events, reached: from })
    }

    async fn transaction(&self, block: L1Ref, index: u64) -> PortResult<Option<L1Transaction>> {
        let facts = &self.fixture.facts;
        match facts.transactions.iter().find(|t| t.block == block && t.index == index) {
            Some(transaction) => Ok(Some(transaction.clone())),
            None if facts.no_transactions.contains(&(block, index)) => Ok(None),
            None => Err(unanswered(format!("transaction {index} of L1 block {}", block.number))),
        }
    }

    async fn rollup_calls(&self, tx: B256) -> PortResult<Option<Vec<TracedCall>>> {
        match self.fixture.facts.traces.get(&tx) {
            Some(calls) => Ok(calls.clone()),
            None => Err(unanswered(format!("calls inside L1 transaction {tx:?}"))),
        }
    }

    async fn committed_hashes(&self, indices: &[BatchIndex], at: Option<L1Number>) -> PortResult<Vec<B256>> {
        let committed = self.fixture.facts.committed.get(at);
        let answer = |i: &BatchIndex| {
            let known = committed.and_then(|committed| committed.get(i)).copied();
            known.ok_or_else(|| unanswered(format!("committedBatches({i}){}", state(at))))
        };
        indices.iter().map(answer).collect()
    }

    async fn last_committed_index(&self, at: Option<L1Number>) -> PortResult<BatchIndex> {
        let known = self.fixture.facts.last_committed.get(at).copied().flatten();
        known.ok_or_else(|| unanswered(format!("lastCommittedBatchIndex(){}", state(at))))
    }

    async fn last_finalized_index(&self, at: Option<L1Number>) -> PortResult<BatchIndex> {
        let known = self.fixture.facts.last_finalized.get(at).copied().flatten();
        known.ok_or_else(|| unanswered(format!("lastFinalizedBatchIndex(){}", state(at))))
    }

    async fn blob_field(&self, index: BatchIndex) -> PortResult<B256> {
        let known = self.fixture.facts.blob_fields.get(&index).copied();
        known.ok_or_else(|| unanswered(format!("batchBlobVersionedHashes({index})")))
    }

    async fn batch_last_block(&self, index: BatchIndex) -> PortResult<L2Number> {
        let known = self.fixture.facts.last_blocks.get(&index).copied();
        known.ok_or_else(|| unanswered(format!("batchDataStore({index})")))
    }

    async fn queue_hashes(&self, indices: &[QueueIndex]) -> PortResult<Vec<B256>> {
        let hashes = &self.fixture.facts.queue_hashes;
        let answer =
            |i: &QueueIndex| hashes.get(i).copied().ok_or_else(|| unanswered(format!("getCrossDomainMessage({i})")));
        indices.iter().map(answer).collect()
    }

    async fn every_commit_of(&self, index: BatchIndex, from: L1Number, to: L1Number) -> PortResult<Vec<L1Event>> {
        Ok(self.commits_of(index, from, to).await?.events)
    }

    /// There is no other fixture to ask.
    fn distrust(&self, _suspect: Suspect, _why: &str) -> bool {
        false
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl BlobSource for Replay {
    async fn blobs(&self, _header: &L1Header, versioned_hashes: &[B256]) -> PortResult<Vec<Blob>> {
        let answer = |hash: &B256| {
            let found = self.fixture.blobs.get(hash).cloned();
            found.ok_or_else(|| unanswered(format!("the blob {hash:?}")))
        };
        versioned_hashes.iter().map(answer).collect()
    }

    /// A fixture without them (an older one, or one of which they were not asked) is a source that offers none.
    async fn commitments(&self, _header: &L1Header, versioned_hashes: &[B256]) -> PortResult<Option<Vec<[u8; 48]>>> {
        let known = &self.fixture.facts.commitments;
        let commitment = |hash: &B256| known.get(hash).and_then(|bytes| <[u8; 48]>::try_from(bytes.as_ref()).ok());
        Ok(versioned_hashes.iter().map(commitment).collect())
    }
}
