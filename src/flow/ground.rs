//! What of the verified chain the node still holds.
//!
//! A node that was killed comes back with a lower head, and another writer may have rewritten blocks under a stored
//! outcome. Either way the ground that safe stands on is looked for from the top down: the highest standing batch
//! whose last block is at most the head's height and has the verified hash. The cursor goes back behind that batch,
//! and the case table decides for everything above it as for any batch (E19, E20, E5).

use tracing::{info, warn};

use crate::decide::cursor;
use crate::decide::dispatch::is_present;
use crate::decide::heads::{Heads, Move};
use crate::decide::stall::{Reason, Stall};
use crate::flow::FlowError;
use crate::flow::worker::Worker;
use crate::ports::Step;
use crate::types::{BatchRecord, Cursor, L2Number, L2Ref, L2Snapshot};

/// Verified blocks that the node lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    /// The first of them.
    pub(crate) from: L2Number,
    /// The last of them, as far as they were verified.
    pub(crate) to: L2Number,
}

impl Lost {
    /// What a worker that starts finds: outcomes are kept after a loss, so a standing batch above safe tells of it, and so
    /// does a finalized head above safe, whose batch may be reverted (M3).
    pub(crate) fn stored(heads: &Heads, tip: Option<&BatchRecord>) -> Option<Self> {
        let from = heads.safe().map_or(L2Number::new(0), |s| s.number).plus(1);
        let last = tip.and_then(|tip| tip.last);
        let to = last.into_iter().chain(heads.finalized()).map(|head| head.number).max()?;
        (to >= from).then_some(Self { from, to })
    }

    /// What is still missing once the node's head is `head`; none when all is back.
    fn still(self, head: L2Number) -> Option<Self> {
        (head < self.to).then_some(self)
    }
}

impl Worker {
    /// Checks that the node still holds our safe block; finds the ground where it does not.
    pub(crate) async fn find_ground(&mut self, snapshot: &L2Snapshot) -> Result<Result<(), Stall>, FlowError> {
        self.lost = self.lost.and_then(|lost| lost.still(snapshot.head.number));
        self.lift_to_finalized(snapshot).await?;
        let standing = self.standing_at_cursor().await?.and_then(|r| r.last);
        let restored = standing.filter(|last| self.ledger.heads().safe().is_none_or(|safe| safe.number < last.number));
        if let Some(last) = restored
            && self.holds(last, snapshot).await?
            && let Move::To(heads) = self.ledger.heads().advance_safe(last)
        {
            info!(safe = last.number.get(), "the batches of a dropped revert stand again");
            self.ledger.commit(&Step { safe: heads.safe(), ..Step::default() }).await?;
            return Ok(Ok(()));
        }
        let Some(safe) = self.ledger.heads().safe().or(restored) else { return Ok(Ok(())) };
        if restored.is_none() && self.holds(safe, snapshot).await? {
            return Ok(Ok(()));
        }
        let lost = !is_present(safe.number, snapshot.head.number);
        let (ground, oldest) = self.highest_held(snapshot).await?;
        // Safe never goes below a finalized head that the node holds, also where no batch ends on it any more (M3).
        let floor = match self.ledger.heads().finalized() {
            Some(finalized) if self.holds(finalized, snapshot).await? => Some(finalized),
            Some(_) | None => None,
        };
        let new_safe = ground.as_ref().and_then(|g| g.last).into_iter().chain(floor).max_by_key(|head| head.number);
        let finalized_present =
            self.ledger.heads().finalized().is_some_and(|f| is_present(f.number, snapshot.head.number));
        let below_finalized =
            self.ledger.heads().finalized().is_some_and(|f| new_safe.is_none_or(|s| s.number < f.number));
        if below_finalized && finalized_present {
            return Ok(Err(Stall::new(
                Reason::DivergesBelowFinalized,
                "the local chain differs from the verified one at or below the finalized head",
            )));
        }
        let heads = self.ledger.heads().node_lost(new_safe);
        let cursor = match (&ground, &oldest) {
            (Some(ground), _) => Some(Cursor { block: ground.l1, log_index: Some(ground.log_index) }),
            (None, Some(oldest)) => self.cursor_before(oldest).await?,
            // No batch stands that was looked at: L1 reverted them all, and what comes next lies at the cursor.
            (None, None) => self.ledger.cursor(),
        };
        warn!(
            safe = safe.number.get(),
            head = snapshot.head.number.get(),
            ground = ?new_safe.map(|s| s.number.get()),
            lost,
            "the node no longer holds the verified chain; going back to what it holds"
        );
        let step = Step {
            safe: heads.safe(),
            clear_safe: heads.safe().is_none(),
            cursor,
            clear_cursor: cursor.is_none(),
            ..Step::default()
        };
        self.ledger.commit(&step).await?;
        if lost {
            let to = self.lost.map_or(safe.number, |before| before.to.max(safe.number));
            self.lost = Some(Lost { from: new_safe.map_or(snapshot.head.number, |s| s.number).plus(1), to });
        }
        Ok(Ok(()))
    }

    /// A node that lost its finalized block and has it back has safe on it again at once: between the last standing batch
    /// and it there may be no batch that could lift safe (M3).
    async fn lift_to_finalized(&mut self, snapshot: &L2Snapshot) -> Result<(), FlowError> {
        let lifted = self.ledger.heads().lift_safe();
        if lifted == self.ledger.heads() {
            return Ok(());
        }
        let Some(safe) = lifted.safe() else { return Ok(()) };
        if self.holds(safe, snapshot).await? {
            self.ledger.commit(&Step { safe: Some(safe), ..Step::default() }).await?;
        }
        Ok(())
    }

    /// The highest standing batch whose last block the node holds, and the oldest standing batch that was looked at.
    async fn highest_held(
        &self,
        snapshot: &L2Snapshot,
    ) -> Result<(Option<BatchRecord>, Option<BatchRecord>), FlowError> {
        let mut candidate = self.standing_at_cursor().await?;
        let mut oldest = None;
        while let Some(record) = candidate {
            if let Some(last) = record.last
                && self.holds(last, snapshot).await?
            {
                return Ok((Some(record), oldest));
            }
            candidate = self.standing_before(&record).await?;
            oldest = Some(record);
        }
        Ok((None, oldest))
    }

    /// Whether the node has `block` on its chain.
    async fn holds(&self, block: L2Ref, snapshot: &L2Snapshot) -> Result<bool, FlowError> {
        if snapshot.head.l2_ref() == block {
            return Ok(true);
        }
        if !is_present(block.number, snapshot.head.number) {
            return Ok(false);
        }
        // A node that says nothing of a block below its head has not said that the block is another one.
        let Some(header) = self.ports.l2.header(block.number).await? else {
            let detail =
                format!("the node gave no block {}, though its head is {}", block.number, snapshot.head.number);
            return Err(FlowError::local_changed(detail));
        };
        Ok(header.l2_ref() == block)
    }

    /// The standing batch that safe stands on: the newest one whose commit the cursor has passed.
    pub(crate) async fn standing_at_cursor(&self) -> Result<Option<BatchRecord>, FlowError> {
        let Some(at) = self.ledger.cursor() else { return Ok(None) };
        let mut newest = self.ports.progress.newest_at_or_below(at.block.number).await?;
        while let Some(record) = newest {
            if cursor::has_passed(Some(&at), (record.l1.number, record.log_index)) {
                return Ok(Some(record));
            }
            newest = self.standing_before(&record).await?;
        }
        Ok(None)
    }

    /// The standing batch with the index before `record`'s.
    pub(crate) async fn standing_before(&self, record: &BatchRecord) -> Result<Option<BatchRecord>, FlowError> {
        match record.index.get() {
            0 => Ok(None),
            _ => Ok(self.ports.progress.batch(record.index.minus(1)).await?),
        }
    }

    /// The cursor that makes `record`'s commit the next log to be dealt with.
    pub(crate) async fn cursor_before(&self, record: &BatchRecord) -> Result<Option<Cursor>, FlowError> {
        self.cursor_before_log(record.l1, record.log_index).await
    }

    /// The cursor that makes the log at `log_index` of `block` the next one.
    pub(crate) async fn cursor_before_log(
        &self,
        block: crate::types::L1Ref,
        log_index: u64,
    ) -> Result<Option<Cursor>, FlowError> {
        if let Some(before) = log_index.checked_sub(1) {
            return Ok(Some(Cursor { block, log_index: Some(before) }));
        }
        if block.number.get() == 0 {
            return Ok(None);
        }
        let headers = self.ports.l1.headers(&[block.number.minus(1)]).await?;
        let Some(parent) = headers.first().copied().flatten() else {
            return Err(FlowError::l1_changed(format!("L1 block {} is unknown", block.number.minus(1))));
        };
        Ok(Some(Cursor { block: parent.l1_ref(), log_index: None }))
    }
}
