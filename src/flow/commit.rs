//! From an event to a bound outline.
//!
//! The calldata that an event speaks of is looked for in the transaction itself, then in its call trace; whatever is
//! found counts only if the rebuilt header hashes to the event's (C7, C8). A commit without blobs takes those of an
//! earlier commit of the same index (C2, C3). What cannot be found or does not bind is a verdict, never a skip (P3).

use tracing::warn;

use crate::codec::calldata::{self, CalldataError, CommitCalldata, CommitForm};
use crate::decide::binding::{self, BindingFacts, BindingFault, BoundCommit, SecondOpinion, queue_range};
use crate::decide::stall::{Reason, Stall};
use crate::flow::FlowError;
use crate::flow::search::Sought;
use crate::flow::worker::Worker;
use crate::ports::MessageRoot;
use crate::types::{B256, BatchIndex, BatchRecord, L1Event, L1EventKind, L1Ref, L1Transaction, L2Number};

/// More L1 messages than any batch can consume; what claims more is refused before anything is asked for.
const MAX_MESSAGES: u64 = 65_535;

/// Earlier commits of one index that are tried for the blobs of one without any. A batch is reverted and committed again
/// a few times at the most; each further one is a log that was made up, and costs a request.
const EARLIER_MAX: usize = 32;

/// Versioned hashes, and the L1 block that carries their blobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlobList {
    hashes: Vec<B256>,
    block: L1Ref,
}

/// The event whose commit is looked for.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    event: &'a L1Event,
    index: BatchIndex,
    hash: B256,
    before: Option<&'a BatchRecord>,
}

impl Worker {
    /// The last L2 block of the batch `index` that stands on L1; none where no confirmed commit of it was found or
    /// what was found does not bind.
    ///
    /// # Errors
    /// When L1 cannot be asked.
    pub async fn last_block_of(&mut self, index: BatchIndex) -> Result<Option<L2Number>, FlowError> {
        loop {
            self.searches.begin();
            match self.last_block_on_l1(index).await {
                Err(FlowError::Stall(stall)) if stall.reason == Reason::SearchingL1 => {}
                ended => return ended,
            }
        }
    }

    async fn last_block_on_l1(&mut self, index: BatchIndex) -> Result<Option<L2Number>, FlowError> {
        let Some(event) = self.standing_commit(index).await? else { return Ok(None) };
        let L1EventKind::Commit { hash, .. } = event.kind else { return Ok(None) };
        Ok(self.bound_commit(&event, index, hash, None).await?.ok().map(|bound| bound.outline.last))
    }

    /// Finds the commit of `event` and binds it to the event's hash. `before` is the standing batch before, where one
    /// is stored.
    pub(crate) async fn bound_commit(
        &mut self,
        event: &L1Event,
        index: BatchIndex,
        hash: B256,
        before: Option<&BatchRecord>,
    ) -> Result<Result<BoundCommit, Stall>, FlowError> {
        let wanted = Wanted { event, index, hash, before };
        let transaction = self.ports.l1.transaction(event.block, event.tx_index).await?;
        let Some(transaction) = transaction.filter(|t| t.hash == event.tx_hash) else {
            return Err(FlowError::l1_changed(format!("transaction {:?} is no longer in its block", event.tx_hash)));
        };
        let direct =
            (transaction.to == Some(self.settings.rollup)).then(|| calldata::decode_commit(&transaction.input));
        let mut fault = None;
        if let Some(Ok(commit)) = &direct {
            match self.try_bind(&wanted, commit, &transaction).await? {
                Ok(bound) => return Ok(Ok(bound)),
                Err(found) => fault = Some(found),
            }
        }
        let Some(calls) = self.ports.l1.rollup_calls(transaction.hash).await? else {
            return Ok(Err(without_trace(index, transaction.hash, direct, fault)));
        };
        for call in &calls {
            // Tried above; a forwarder may well be given the same bytes that it passes on.
            if direct.is_some() && call.input == transaction.input {
                continue;
            }
            let Ok(commit) = calldata::decode_commit(&call.input) else { continue };
            match self.try_bind(&wanted, &commit, &transaction).await? {
                Ok(bound) => return Ok(Ok(bound)),
                Err(found) => fault = fault.or(Some(found)),
            }
        }
        Ok(Err(without_trace(index, transaction.hash, direct, fault)))
    }

    /// Binds one candidate, with every list of blobs that can belong to it.
    async fn try_bind(
        &mut self,
        wanted: &Wanted<'_>,
        commit: &CommitCalldata,
        transaction: &L1Transaction,
    ) -> Result<Result<BoundCommit, BindingFault>, FlowError> {
        let Wanted { event, index, hash, .. } = *wanted;
        let message_hashes = match self.message_hashes(commit).await? {
            Ok(hashes) => hashes,
            Err(fault) => return Ok(Err(fault)),
        };
        let own = BlobList { hashes: transaction.blob_hashes.clone(), block: event.block };
        let facts =
            BindingFacts { index, hash, commit, versioned_hashes: &own.hashes, message_hashes: &message_hashes };
        let first_fault = match binding::bind(&facts) {
            Ok(outline) => return Ok(Ok(BoundCommit { outline, blob_block: own.block })),
            Err(fault) => fault,
        };
        if may_reuse_blobs(commit, &own) {
            for nth in 0..EARLIER_MAX {
                let Some(earlier) = self.earlier_blobs(event, index, nth).await? else { break };
                let Some(earlier) = earlier else { continue };
                let reused = BindingFacts { versioned_hashes: &earlier.hashes, ..facts };
                if let Ok(outline) = binding::bind(&reused) {
                    return Ok(Ok(BoundCommit { outline, blob_block: earlier.block }));
                }
            }
            if self.commit_before(event, index, EARLIER_MAX).await?.is_some() {
                return Ok(Err(BindingFault::TooManyCommits(EARLIER_MAX)));
            }
        }
        let BindingFault::Hash { expected, actual, .. } = first_fault else { return Ok(Err(first_fault)) };
        let opinion = self.second_opinion(wanted, commit).await;
        let field = binding::field_at_fault(&facts, &opinion);
        if opinion.message_hashes.is_some_and(|hashes| hashes != message_hashes) {
            self.read_messages_again(commit).await;
        }
        Ok(Err(BindingFault::Hash { expected, actual, field }))
    }

    /// The stored L1 messages are not the contract's: an endpoint gave false logs. They are read anew, so that an honest
    /// answer lets the next pull go on; the verdict of this one stands.
    async fn read_messages_again(&mut self, commit: &CommitCalldata) {
        let Ok((first, count)) = binding::messages_of(commit) else { return };
        if let Err(error) = self.scan_back(first, count).await {
            warn!(%error, "L1 messages that are not the contract's could not be read again");
        }
    }

    /// The `nth` commit of `index` before `event`, the newest one counted as zero.
    async fn commit_before(
        &mut self,
        event: &L1Event,
        index: BatchIndex,
        nth: usize,
    ) -> Result<Option<L1Event>, FlowError> {
        let (block, low) = (event.block.number, self.settings.origin);
        self.nth_log(Sought::CommitsBefore(block, event.log_index), index, (low, block), nth).await
    }

    /// The blobs that the `nth` commit of `index` before `event` carried, none in it where it carried none; none where there
    /// are not so many commits. One is asked for in every pull, more for as long as a pull may search.
    async fn earlier_blobs(
        &mut self,
        event: &L1Event,
        index: BatchIndex,
        nth: usize,
    ) -> Result<Option<Option<BlobList>>, FlowError> {
        let sought = Sought::CommitsBefore(event.block.number, event.log_index);
        if let Some(known) = self.searches.blobs(sought, index, nth) {
            return Ok(Some(known));
        }
        let Some(commit) = self.commit_before(event, index, nth).await? else { return Ok(None) };
        if !self.searches.may_try(self.settings.search_time) {
            let detail = format!(
                "looking for the blobs of batch {index} among its earlier commits, at L1 block {}",
                commit.block
            );
            return Err(FlowError::Stall(Stall::at(index, Reason::SearchingL1, detail)));
        }
        let blobs = self.blobs_of(&commit).await?;
        self.searches.tried(sought, index, blobs.clone());
        Ok(Some(blobs))
    }

    /// The blobs that an earlier commit carried; none where it carried none or is gone.
    async fn blobs_of(&self, earlier: &L1Event) -> Result<Option<BlobList>, FlowError> {
        let found = self.ports.l1.transaction(earlier.block, earlier.tx_index).await?;
        let list = found.map(|found| BlobList { hashes: found.blob_hashes, block: earlier.block });
        Ok(list.filter(|list| !list.hashes.is_empty()))
    }

    /// Hashes of the L1 messages that `commit` consumes: the stored queue's, else the contract's.
    async fn message_hashes(&self, commit: &CommitCalldata) -> Result<Result<Vec<B256>, BindingFault>, FlowError> {
        let (first, count) = match binding::messages_of(commit) {
            Ok(messages) => messages,
            Err(fault) => return Ok(Err(fault)),
        };
        if count > MAX_MESSAGES {
            return Ok(Err(BindingFault::Header(format!("numL1Messages: {count} is more than a batch can hold"))));
        }
        if count == 0 {
            return Ok(Ok(Vec::new()));
        }
        let stored = self.ports.progress.messages(first, count).await?;
        if stored.len() as u64 == count {
            return Ok(Ok(stored.into_iter().map(|m| m.hash).collect()));
        }
        Ok(Ok(self.ports.l1.queue_hashes(&queue_range(first, count)).await?))
    }

    /// What the contract, the batch before and the local chain say of `wanted`. Unavailable answers are left out:
    /// this only names a field.
    async fn second_opinion(&self, wanted: &Wanted<'_>, commit: &CommitCalldata) -> SecondOpinion {
        let (l1, l2, index) = (&self.ports.l1, &self.ports.l2, wanted.index);
        let nonzero = |b: &B256| !b.is_zero();
        let parent = match wanted.before {
            Some(before) => Some(before.hash),
            None => l1.committed_hashes(&[index.minus(1)], None).await.ok().and_then(|h| h.first().copied()),
        };
        let message_hashes = match binding::messages_of(commit) {
            Ok((first, count)) if count > 0 && count <= MAX_MESSAGES => {
                l1.queue_hashes(&queue_range(first, count)).await.ok()
            }
            _ => None,
        };
        let local = match commit.last_block_number() {
            Some(last) => l2.header(last).await.ok().flatten(),
            None => None,
        };
        let local_withdrawal = match local {
            Some(header) => match l2.message_root(header.l2_ref()).await {
                Ok(MessageRoot::Root(root)) => Some(root),
                Ok(MessageRoot::Pruned) | Err(_) => None,
            },
            None => None,
        };
        SecondOpinion {
            parent: parent.filter(nonzero),
            prev_state_root: wanted.before.map(|b| b.post_state_root),
            blob_field: l1.blob_field(index).await.ok().filter(nonzero),
            last_block: l1.batch_last_block(index).await.ok().filter(|n| n.get() != 0),
            message_hashes,
            local_state: local.map(|header| header.state_root),
            local_withdrawal,
        }
    }
}

/// `commitState` never carries a blob, `commitBatchWithProof` may go without (protocol.md, section 1).
fn may_reuse_blobs(commit: &CommitCalldata, own: &BlobList) -> bool {
    match commit.form {
        CommitForm::CommitState => true,
        CommitForm::CommitBatchWithProof => own.hashes.is_empty(),
        CommitForm::CommitBatch | CommitForm::LegacyContexts | CommitForm::LegacySkipBitmap => false,
    }
}

/// The verdict where no calldata binds.
fn without_trace(
    index: BatchIndex,
    transaction: B256,
    direct: Option<Result<CommitCalldata, CalldataError>>,
    fault: Option<BindingFault>,
) -> Stall {
    match (fault, direct) {
        (Some(BindingFault::Version(version)), _) => Stall::at(
            index,
            Reason::UnsupportedVersion,
            format!("transaction {transaction:?}: batch version {version} is not supported; upgrade this program"),
        ),
        (Some(fault @ BindingFault::TooManyCommits(_)), _) => {
            Stall::at(index, Reason::UnknownCommit, format!("transaction {transaction:?}: {fault}"))
        }
        (Some(fault), _) => Stall::at(index, Reason::Unbound, format!("transaction {transaction:?}: {fault}")),
        (None, Some(Err(error))) => {
            Stall::at(index, Reason::UnknownCommit, format!("transaction {transaction:?}: {error}"))
        }
        (None, _) => Stall::at(
            index,
            Reason::UnknownCommit,
            format!(
                "transaction {transaction:?} commits through another contract and no commit that fits was found in \
                 it; an L1 endpoint that can trace it (debug_traceTransaction) is needed"
            ),
        ),
    }
}
