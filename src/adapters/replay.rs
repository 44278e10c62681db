//! L1 and beacon out of a recorded fixture.
//!
//! Every question is answered from the recorded facts alone; one that they hold no answer to is an error that names
//! the question, never a guess.

use std::sync::Arc;

use async_trait::async_trait;

use crate::adapters::fixture::Fixture;
use crate::error::{PortError, PortErrorKind, Target};
use crate::ports::{BlobSource, FoundLogs, L1Chain, PortResult, RangeLogs};
use crate::types::{
    B256, BatchIndex, Blob, L1Event, L1EventKind, L1Header, L1Number, L1Ref, L1Tag, L1Transaction, L2Number,
    QueueIndex, TracedCall,
};

/// A fixture as L1 chain and blob source.
#[derive(Clone, Debug)]
pub struct Replay {
    fixture: Arc<Fixture>,
}

fn unanswered(question: impl std::fmt::Display) -> PortError {
    PortError::new(Target::Fixture, PortErrorKind::NotFound, format!("the fixture holds no answer to: {question}"))
}

impl Replay {
    /// Answers from `fixture`.
    pub const fn new(fixture: Arc<Fixture>) -> Self {
        Self { fixture }
    }

    fn header(&self, number: L1Number) -> Option<L1Header> {
        self.fixture.facts.headers.iter().find(|h| h.number == number).copied()
    }

    fn matching(&self, from: L1Number, to: L1Number, wanted: impl Fn(&L1EventKind) -> bool) -> Vec<L1Event> {
        let facts = &self.fixture.facts;
        let mut found: Vec<_> = facts
            .earlier_commits
            .iter()
            .chain(&facts.events)
            .filter(|e| e.block.number >= from && e.block.number <= to && wanted(&e.kind))
            .cloned()
            .collect();
        found.sort_by_key(|e| (e.block.number, e.log_index));
        found.dedup();
        found
    }
}

#[async_trait]
impl L1Chain for Replay {
    async fn tagged(&self, tag: L1Tag) -> PortResult<Option<L1Header>> {
        let facts = &self.fixture.facts;
        match tag {
            L1Tag::Latest => match self.header(facts.to) {
                Some(header) => Ok(Some(header)),
                None => Err(unanswered(format!("header of L1 block {}", facts.to))),
            },
            L1Tag::Safe | L1Tag::Finalized => Ok(facts.finalized),
        }
    }

    async fn headers(&self, numbers: &[L1Number]) -> PortResult<Vec<Option<L1Header>>> {
        let answer = |number: &L1Number| match self.header(*number) {
            Some(header) => Ok(Some(header)),
            None if *number > self.fixture.facts.to => Ok(None),
            None => Err(unanswered(format!("header of L1 block {number}"))),
        };
        numbers.iter().map(answer).collect()
    }

    async fn events(&self, from: L1Number, to: L1Number) -> PortResult<RangeLogs> {
        let facts = &self.fixture.facts;
        if from < facts.scanned_from || to > facts.to {
            return Err(unanswered(format!("logs of L1 blocks {from} to {to}")));
        }
        let inside = |e: &&L1Event| e.block.number >= from && e.block.number <= to;
        let events = facts.events.iter().filter(inside).cloned().collect();
        let ends = self.header(to).map(|h| h.l1_ref()).into_iter().collect();
        Ok(RangeLogs { events, ends })
    }

    async fn settlements(&self, from: L1Number, to: L1Number) -> PortResult<RangeLogs> {
        let RangeLogs { mut events, ends } = self.events(from, to).await?;
        events.retain(|e| matches!(e.kind, L1EventKind::Revert { .. } | L1EventKind::Finalize { .. }));
        Ok(RangeLogs { events, ends })
    }

    async fn commits_of(&self, index: BatchIndex, from: L1Number, to: L1Number) -> PortResult<FoundLogs> {
        if !self.fixture.facts.committed.contains_key(&index) {
            return Err(unanswered(format!("commits of batch {index}")));
        }
        let events =
            self.matching(from, to, |kind| matches!(kind, L1EventKind::Commit { index: i, .. } if *i == index));
        Ok(FoundLogs { events, reached: from })
    }

    async fn reverts_of(&self, index: BatchIndex, from: L1Number, to: L1Number) -> PortResult<FoundLogs> {
        if !self.fixture.facts.committed.contains_key(&index) {
            return Err(unanswered(format!("reverts of batch {index}")));
        }
        let events =
            self.matching(from, to, |kind| matches!(kind, L1EventKind::Revert { index: i, .. } if *i == index));
        Ok(FoundLogs { events, reached: to })
    }

    async fn queued(&self, from: L1Number, to: L1Number) -> PortResult<FoundLogs> {
        let facts = &self.fixture.facts;
        if from < facts.scanned_from || to > facts.to {
            return Err(unanswered(format!("logs of L1 blocks {from} to {to}")));
        }
        let events = self.matching(from, to, |kind| matches!(kind, L1EventKind::Message(_)));
        Ok(FoundLogs { events, reached: from })
    }

    async fn transaction(&self, block: L1Ref, index: u64) -> PortResult<Option<L1Transaction>> {
        let found = self.fixture.facts.transactions.iter().find(|t| t.block == block && t.index == index);
        match found {
            Some(transaction) => Ok(Some(transaction.clone())),
            None => Err(unanswered(format!("transaction {index} of L1 block {}", block.number))),
        }
    }

    async fn rollup_calls(&self, tx: B256) -> PortResult<Option<Vec<TracedCall>>> {
        match self.fixture.facts.traces.get(&tx) {
            Some(calls) => Ok(calls.clone()),
            None => Err(unanswered(format!("calls inside L1 transaction {tx:?}"))),
        }
    }

    async fn committed_hashes(&self, indices: &[BatchIndex], _at: Option<L1Number>) -> PortResult<Vec<B256>> {
        let committed = &self.fixture.facts.committed;
        let answer =
            |i: &BatchIndex| committed.get(i).copied().ok_or_else(|| unanswered(format!("committedBatches({i})")));
        indices.iter().map(answer).collect()
    }

    async fn last_committed_index(&self, _at: Option<L1Number>) -> PortResult<BatchIndex> {
        self.fixture.facts.last_committed.ok_or_else(|| unanswered("lastCommittedBatchIndex()"))
    }

    async fn blob_field(&self, index: BatchIndex) -> PortResult<B256> {
        Err(unanswered(format!("batchBlobVersionedHashes({index})")))
    }

    async fn batch_last_block(&self, index: BatchIndex) -> PortResult<L2Number> {
        Err(unanswered(format!("batchDataStore({index})")))
    }

    async fn queue_hashes(&self, indices: &[QueueIndex]) -> PortResult<Vec<B256>> {
        let hashes = &self.fixture.facts.queue_hashes;
        let answer =
            |i: &QueueIndex| hashes.get(i).copied().ok_or_else(|| unanswered(format!("getCrossDomainMessage({i})")));
        indices.iter().map(answer).collect()
    }
}

#[async_trait]
impl BlobSource for Replay {
    async fn blobs(&self, _header: &L1Header, versioned_hashes: &[B256]) -> PortResult<Vec<Blob>> {
        let answer = |hash: &B256| {
            let found = self.fixture.blobs.get(hash).cloned();
            found.ok_or_else(|| unanswered(format!("the blob {hash:?}")))
        };
        versioned_hashes.iter().map(answer).collect()
    }
}
