//! From an event to a bound outline: free functions over the ports, the same for the worker and for `inspect`.
//!
//! The calldata of an event is looked for in the transaction itself, then in its call trace. A candidate counts only if
//! the rebuilt header hashes to the event's (C7, C8). A commit without blobs takes those of an earlier commit of the
//! same index (C2, C3). Calldata that cannot be found or does not bind is a verdict, never a skip (P3).

use async_trait::async_trait;
use tracing::warn;

use crate::codec::calldata::{self, CommitCalldata};
use crate::decide::binding::{
    self, BindingFacts, BindingFault, BlobList, BoundCommit, MAX_MESSAGES, SecondOpinion, queue_range,
};
use crate::decide::stall::{Cause, Stall};
use crate::flow::l1_search::L1Search;
use crate::flow::ledger::Ledger;
use crate::flow::{Decided, FlowError};
use crate::ports::{L1Chain, L2Reader, MessageRoot, Rows};
use crate::types::{Address, B256, BatchRecord, CommitEvent, L1Event, L1Number, L1Transaction, L2Number, QueueIndex};

/// Earlier commits of one index that are tried for the blobs of one without any. A batch is reverted and committed
/// again a few times at the most; each further one is an invented log, and costs a request.
const EARLIER_MAX: usize = 32;

/// The sources to ask if a commit's own transaction does not say enough.
#[async_trait]
pub trait Elsewhere: Send {
    /// The hashes of the L1 messages `first..first + count`.
    async fn message_hashes(&mut self, first: QueueIndex, count: u64) -> Result<Vec<B256>, FlowError>;

    /// The blobs that the `nth` commit of the same batch before `commit` carried, `Some(None)` if it carried none; none
    /// if there are not so many commits.
    async fn earlier_blobs(&mut self, commit: &CommitEvent, nth: usize) -> Result<Option<Option<BlobList>>, FlowError>;

    /// Whether there is an `nth` commit of the same batch before `commit`.
    async fn has_earlier(&mut self, commit: &CommitEvent, nth: usize) -> Result<bool, FlowError>;

    /// What other sources say of `commit`, whose calldata does not bind under these hashes of L1 messages. It serves to
    /// name the field at fault.
    async fn second_opinion(
        &mut self,
        commit: &CommitEvent,
        calldata: &CommitCalldata,
        message_hashes: &[B256],
    ) -> SecondOpinion;
}

/// Finds the calldata of `commit` and binds it to the event's hash.
///
/// # Errors
/// When L1 cannot be asked, and `l1_reorg` if the transaction is no longer in its block.
pub async fn bind(
    l1: &dyn L1Chain,
    rollup: Address,
    commit: &CommitEvent,
    elsewhere: &mut dyn Elsewhere,
) -> Decided<BoundCommit> {
    let transaction = l1.transaction(commit.block, commit.tx_index).await?;
    let Some(transaction) = transaction.filter(|t| t.hash == commit.tx_hash) else {
        return Err(FlowError::l1_changed(format!("transaction {:?} is no longer in its block", commit.tx_hash)).into());
    };
    let direct = (transaction.to == Some(rollup)).then(|| calldata::decode_commit(&transaction.input));
    let mut fault = None;
    if let Some(Ok(found)) = &direct {
        match try_bind(commit, found, &transaction, elsewhere).await? {
            Tried::Bound(bound) => return Ok(*bound),
            Tried::Fault(found) => fault = Some(found),
        }
    }
    for call in l1.rollup_calls(transaction.hash).await?.unwrap_or_default() {
        // Tried above; a forwarder may be given the same bytes that it passes on.
        if direct.is_some() && call.input == transaction.input {
            continue;
        }
        let Ok(found) = calldata::decode_commit(&call.input) else { continue };
        match try_bind(commit, &found, &transaction, elsewhere).await? {
            Tried::Bound(bound) => return Ok(*bound),
            Tried::Fault(found) => fault = fault.or(Some(found)),
        }
    }
    let fault = Box::new(binding::unbound(direct.and_then(Result::err), fault));
    Err(Stall::at(commit.index, Cause::Commit { transaction: transaction.hash, fault }).into())
}

/// The result of one candidate.
enum Tried {
    Bound(Box<BoundCommit>),
    Fault(BindingFault),
}

/// Binds one candidate, with every list of blobs that can belong to it.
async fn try_bind(
    commit: &CommitEvent,
    calldata: &CommitCalldata,
    transaction: &L1Transaction,
    elsewhere: &mut dyn Elsewhere,
) -> Result<Tried, FlowError> {
    let message_hashes = match binding::messages_of(calldata) {
        Err(fault) => return Ok(Tried::Fault(fault)),
        Ok((_, count)) if count > MAX_MESSAGES => return Ok(Tried::Fault(BindingFault::too_many_messages(count))),
        Ok((_, 0)) => Vec::new(),
        Ok((first, count)) => elsewhere.message_hashes(first, count).await?,
    };
    let own = BlobList { hashes: transaction.blob_hashes.clone(), block: commit.block };
    let facts = BindingFacts {
        index: commit.index,
        hash: commit.hash,
        commit: calldata,
        versioned_hashes: &own.hashes,
        message_hashes: &message_hashes,
    };
    let bound = |outline, blob_block| Tried::Bound(Box::new(BoundCommit { outline, blob_block, form: calldata.form }));
    let first_fault = match binding::bind(&facts) {
        Ok(outline) => return Ok(bound(outline, own.block)),
        Err(fault) => fault,
    };
    if binding::may_reuse_blobs(calldata.form, &own) {
        for nth in 0..EARLIER_MAX {
            let Some(earlier) = elsewhere.earlier_blobs(commit, nth).await? else { break };
            let Some(earlier) = earlier else { continue };
            let reused = BindingFacts { versioned_hashes: &earlier.hashes, ..facts };
            if let Ok(outline) = binding::bind(&reused) {
                return Ok(bound(outline, earlier.block));
            }
        }
        if elsewhere.has_earlier(commit, EARLIER_MAX).await? {
            return Ok(Tried::Fault(BindingFault::TooManyCommits(EARLIER_MAX)));
        }
    }
    let BindingFault::Hash { expected, actual, .. } = first_fault else { return Ok(Tried::Fault(first_fault)) };
    let opinion = elsewhere.second_opinion(commit, calldata, &message_hashes).await;
    let field = binding::field_at_fault(&facts, &opinion);
    Ok(Tried::Fault(BindingFault::Hash { expected, actual, field }))
}

/// What the contract alone can answer, for a caller without a database and a local chain.
pub struct Contract<'a> {
    l1: &'a dyn L1Chain,
    origin: L1Number,
    /// The commits before the one that was asked about first, the newest first.
    before: Option<Vec<L1Event>>,
}

impl<'a> Contract<'a> {
    /// Earlier commits are looked for from block `origin` on.
    pub const fn new(l1: &'a dyn L1Chain, origin: L1Number) -> Self {
        Self { l1, origin, before: None }
    }

    async fn commits_before(&mut self, commit: &CommitEvent) -> Result<&[L1Event], FlowError> {
        if self.before.is_none() {
            let mut found = self.l1.every_commit_of(commit.index, self.origin, commit.block.number).await?;
            found.retain(|earlier| earlier.pos() < commit.pos());
            found.reverse();
            self.before = Some(found);
        }
        Ok(self.before.as_deref().unwrap_or_default())
    }
}

#[async_trait]
impl Elsewhere for Contract<'_> {
    async fn message_hashes(&mut self, first: QueueIndex, count: u64) -> Result<Vec<B256>, FlowError> {
        Ok(self.l1.queue_hashes(&queue_range(first, count)).await?)
    }

    async fn earlier_blobs(&mut self, commit: &CommitEvent, nth: usize) -> Result<Option<Option<BlobList>>, FlowError> {
        let Some(earlier) = self.commits_before(commit).await?.get(nth).cloned() else { return Ok(None) };
        let found = self.l1.transaction(earlier.block, earlier.tx_index).await?;
        let list = found.map(|found| BlobList { hashes: found.blob_hashes, block: earlier.block });
        Ok(Some(list.filter(|list| !list.hashes.is_empty())))
    }

    async fn has_earlier(&mut self, commit: &CommitEvent, nth: usize) -> Result<bool, FlowError> {
        Ok(self.commits_before(commit).await?.len() > nth)
    }

    async fn second_opinion(&mut self, _: &CommitEvent, _: &CommitCalldata, _: &[B256]) -> SecondOpinion {
        SecondOpinion::default()
    }
}

/// What the worker can ask: what is stored, the searches that continue from poll to poll, and the local chain.
pub(crate) struct Everything<'a> {
    /// L1.
    pub(crate) l1: &'a dyn L1Chain,
    /// The local chain.
    pub(crate) l2: &'a dyn L2Reader,
    /// What is stored.
    pub(crate) rows: &'a dyn Rows,
    /// L1's history.
    pub(crate) search: &'a mut L1Search,
    /// Stores the L1 messages that are found.
    pub(crate) ledger: &'a mut Ledger,
    /// The standing batch before, if one is stored.
    pub(crate) before: Option<&'a BatchRecord>,
}

#[async_trait]
impl Elsewhere for Everything<'_> {
    /// The stored queue's, else the contract's.
    async fn message_hashes(&mut self, first: QueueIndex, count: u64) -> Result<Vec<B256>, FlowError> {
        let stored = self.rows.messages(first, count).await?;
        if stored.len() as u64 == count {
            return Ok(stored.into_iter().map(|m| m.hash).collect());
        }
        Ok(self.l1.queue_hashes(&queue_range(first, count)).await?)
    }

    async fn earlier_blobs(&mut self, commit: &CommitEvent, nth: usize) -> Result<Option<Option<BlobList>>, FlowError> {
        self.search.earlier_blobs(commit, nth).await
    }

    async fn has_earlier(&mut self, commit: &CommitEvent, nth: usize) -> Result<bool, FlowError> {
        Ok(self.search.commit_before(commit, nth).await?.is_some())
    }

    /// What the contract, the batch before and the local chain say. Unavailable answers are left out: this only names a
    /// field. L1 messages that are not the contract's came from an endpoint's false logs: they are read anew, so that
    /// an honest answer lets the next poll continue; the verdict of this one stays.
    async fn second_opinion(
        &mut self,
        commit: &CommitEvent,
        calldata: &CommitCalldata,
        message_hashes: &[B256],
    ) -> SecondOpinion {
        let opinion = self.opinion(commit, calldata).await;
        if opinion.message_hashes.as_ref().is_some_and(|hashes| hashes != message_hashes)
            && let Ok((first, count)) = binding::messages_of(calldata)
            && let Err(error) = self.search.scan_back(self.ledger, first, count).await
        {
            warn!(code = "messages_unconfirmed", %error, "cannot read again the L1 messages that differ from the contract's");
        }
        opinion
    }
}

impl Everything<'_> {
    async fn opinion(&self, commit: &CommitEvent, calldata: &CommitCalldata) -> SecondOpinion {
        let (l1, index) = (self.l1, commit.index);
        let nonzero = |b: &B256| !b.is_zero();
        let parent = match self.before {
            Some(before) => Some(before.hash),
            None => l1.committed_hashes(&[index.minus(1)], None).await.ok().and_then(|h| h.first().copied()),
        };
        let message_hashes = match binding::messages_of(calldata) {
            Ok((first, count)) if count > 0 && count <= MAX_MESSAGES => {
                l1.queue_hashes(&queue_range(first, count)).await.ok()
            }
            _ => None,
        };
        let local = match calldata.last_block_number() {
            Some(last) => self.l2.header(last).await.ok().flatten(),
            None => None,
        };
        let local_withdrawal = match local {
            Some(header) => match self.l2.message_root(header.l2_ref()).await {
                Ok(MessageRoot::Root(root)) => Some(root),
                Ok(MessageRoot::Pruned) | Err(_) => None,
            },
            None => None,
        };
        SecondOpinion {
            parent: parent.filter(nonzero),
            prev_state_root: self.before.map(|b| b.post_state_root),
            blob_field: l1.blob_field(index).await.ok().filter(nonzero),
            last_block: l1.batch_last_block(index).await.ok().filter(|n: &L2Number| n.get() != 0),
            message_hashes,
            local_state: local.map(|header| header.state_root),
            local_withdrawal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::binding::CommitFault;
    use crate::error::Severity;
    use crate::flow::Stop;
    use crate::flow::testing::{World, stall_of};

    async fn bound(world: &World, commit: &CommitEvent) -> Decided<BoundCommit> {
        let mut contract = Contract::new(&world.l1, 0.into());
        bind(&world.l1, world.settings.rollup, commit, &mut contract).await
    }

    #[tokio::test]
    async fn a_commit_binds_by_its_transaction_and_the_contracts_messages() {
        let world = World::recorded().await;
        let commit = world.commit(2);
        let bound = bound(&world, &commit).await.unwrap();
        assert_eq!((bound.outline.hash, bound.outline.last), (commit.hash, 24.into()));
        assert_eq!(bound.blob_block, commit.block);
        assert!(bound.outline.messages > 0 && bound.outline.message_hashes.iter().all(|hash| !hash.is_zero()));
    }

    #[tokio::test]
    async fn p3_calldata_with_another_hash_is_a_verdict_and_a_missing_transaction_a_changed_l1() {
        let world = World::recorded().await;
        let commit = CommitEvent { hash: B256::repeat_byte(7), ..world.commit(2) };
        let stall = stall_of(bound(&world, &commit).await).unwrap();
        let Cause::Commit { transaction, fault } = stall.cause else { panic!("{stall}") };
        assert_eq!((transaction, stall.batch), (commit.tx_hash, Some(2.into())));
        assert!(matches!(*fault, CommitFault::Binding(BindingFault::Hash { expected, .. }) if expected == commit.hash));
        world.l1.now().transactions.clear();
        let gone = bound(&world, &world.commit(2)).await;
        assert!(matches!(gone, Err(Stop::Failed(error)) if error.severity() == Severity::Reset));
    }

    #[tokio::test]
    async fn c7_a_commit_through_another_contract_is_found_in_the_trace() {
        let world = World::recorded().await;
        let commit = world.commit(2);
        let forwarded = {
            let mut l1 = world.l1.now();
            let transaction = l1.transactions.iter_mut().find(|tx| tx.hash == commit.tx_hash).unwrap();
            transaction.to = Some(Address::repeat_byte(1));
            std::mem::take(&mut transaction.input)
        };
        let stall = stall_of(bound(&world, &commit).await).unwrap();
        let fault = Box::new(CommitFault::NotInTrace);
        assert_eq!(stall.cause, Cause::Commit { transaction: commit.tx_hash, fault });
        let call = crate::types::TracedCall { to: world.settings.rollup, input: forwarded };
        world.l1.now().traces.insert(commit.tx_hash, vec![call]);
        assert_eq!(bound(&world, &commit).await.unwrap().outline.last.get(), 24);
    }
}
