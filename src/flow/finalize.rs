//! Finality: finalized follows from stored rows and two hashes (`decide/finality`, P2).

use tracing::{error, info};

use crate::decide::finality::{self, Finality, FinalityFacts};
use crate::decide::heads::Move;
use crate::flow::FlowError;
use crate::flow::worker::Worker;
use crate::ports::Step;
use crate::types::{BatchIndex, BatchRecord, L1Tag};

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
        let step = Step { finalized: heads.finalized(), ..Step::default() };
        self.apply(&step).await?;
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
        Ok(())
    }
}
