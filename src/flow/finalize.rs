//! Finality and the node's tags.
//!
//! Finalized follows from stored rows and two hashes (`decide/finality`); tags follow our heads, one head a call,
//! safe before finalized, and are read back (P2).

use tracing::{error, info, warn};

use crate::decide::finality::{self, Finality, FinalityFacts};
use crate::decide::heads::{self, Heads, Move, TagCall};
use crate::flow::worker::Worker;
use crate::flow::{FlowError, kill_point};
use crate::ports::Step;
use crate::types::{BatchIndex, BatchRecord, L1Tag, L2Snapshot};

/// Rows of this many batches below the finalized one are kept for questions.
const KEEP_BATCHES: u64 = 64;

impl Worker {
    /// Advances finalized as far as L1 finality and the local chain allow.
    pub(crate) async fn finalize(&mut self) -> Result<(), FlowError> {
        if self.heads.safe().is_none() {
            return Ok(());
        }
        let Some(l1_finalized) = self.ports.l1.tagged(L1Tag::Finalized).await? else { return Ok(()) };
        self.status.l1_finalized = Some(l1_finalized.number);
        let Some(candidate) = self.ports.progress.newest_at_or_below(l1_finalized.number).await? else {
            return Ok(());
        };
        let Some(last) = candidate.last else { return Ok(()) };
        if self.heads.finalized().is_some_and(|f| f.number >= last.number)
            || self.heads.safe().is_none_or(|s| s.number < last.number)
        {
            return Ok(());
        }
        let finalized_l1 = l1_finalized.l1_ref();
        let live = self.ports.l1.headers(&[candidate.l1.number, finalized_l1.number]).await?;
        let live_l1 = live.first().copied().flatten();
        let live_finalized = live.get(1).copied().flatten();
        let local = self.ports.l2.header(last.number).await?;
        let facts = FinalityFacts { candidate: &candidate, live_l1, finalized_l1, live_finalized, local };
        let verdict = finality::finality(&facts);
        self.status.l1_finality_contradicted = verdict == Finality::L1Contradicts;
        let to = match verdict {
            Finality::Final(to) => to,
            Finality::L1Contradicts => {
                let batch = candidate.index.get();
                error!(batch, finalized = %finalized_l1, "L1 contradicts itself about finality; finalized is held");
                return Ok(());
            }
            Finality::LocalContradicts | Finality::Unknown => return Ok(()),
        };
        let Move::To(heads) = self.heads.advance_finalized(to) else { return Ok(()) };
        kill_point("finality: before storing");
        let step = Step { finalized: heads.finalized(), ..Step::default() };
        self.apply(&step).await?;
        kill_point("finality: stored");
        self.heads = heads;
        info!(number = to.number.get(), batch = candidate.index.get(), "finalized");
        self.prune(&candidate).await
    }

    /// What lies below finality and outside the reorg window is not needed any more (H5).
    async fn prune(&self, finalized: &BatchRecord) -> Result<(), FlowError> {
        let Some(cursor) = self.cursor else { return Ok(()) };
        let l1 = cursor.block.number.minus(self.settings.reorg_window).min(finalized.l1.number);
        let queue = finalized.total_l1_popped.into();
        let batch = BatchIndex::new(finalized.index.get()).minus(KEEP_BATCHES);
        self.ports.progress.prune(l1, queue, batch).await?;
        kill_point("finality: pruned");
        Ok(())
    }

    /// Brings the node's tags to our heads and reads them back. `node` is what the node showed last. The same heads are
    /// asserted once a poll: whoever else moves the tags is shown, not fought (E24).
    pub(crate) async fn sync_tags(&mut self, node: &L2Snapshot) -> Result<L2Snapshot, FlowError> {
        let Some(engine) = self.ports.engine.clone() else { return Ok(*node) };
        if self.asserted == Some(self.heads) {
            return Ok(*node);
        }
        let mut plan = heads::tag_plan(&self.heads, node, self.lost.is_some());
        self.status.safe_beyond_verified = plan.safe_beyond_verified;
        self.status.held_by_node_finalized = plan.held_by_node_finalized;
        if plan.safe_to_genesis {
            let genesis = self.ports.l2.header(0.into()).await?;
            plan.calls.extend(genesis.map(|h| TagCall::Safe(h.l2_ref())));
        }
        if plan.calls.is_empty() {
            return Ok(*node);
        }
        self.asserted = Some(self.heads);
        for call in &plan.calls {
            kill_point("tags: before a call");
            match call {
                TagCall::Safe(to) => engine.set_tags(Some(to.hash), None).await?,
                TagCall::Finalized(to) => engine.set_tags(None, Some(to.hash)).await?,
            }
            kill_point("tags: set");
        }
        let after = self.ports.l2.snapshot().await?;
        kill_point("tags: read back");
        let held = plan.calls.iter().all(|call| match call {
            TagCall::Safe(to) => after.safe == Some(*to),
            TagCall::Finalized(to) => after.finalized == Some(*to),
        });
        self.confirmed = Some(Heads::stored(after.safe, after.finalized));
        if !held {
            self.status.tags_contended = true;
            warn!("the node's tags are not what was set: another writer moves them, or the node refuses in silence");
        }
        self.node_finalized = after.finalized;
        if self.heads.safe().is_some_and(|safe| safe.number > after.head.number) {
            // What was read of it since may be blocks above its head (E19): the next poll finds the ground again.
            return Err(FlowError::local_changed("the node lost blocks under way"));
        }
        Ok(after)
    }
}
