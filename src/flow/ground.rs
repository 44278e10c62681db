//! What of the verified chain the node still holds.
//!
//! A node that was killed comes back with a lower head, and another writer may have rewritten blocks under a stored
//! outcome. Either way the ground that safe stands on is looked for from the top down: the highest standing batch
//! whose last block is at most the head's height and has the verified hash. The cursor goes back behind that batch,
//! and the case table decides for everything above it as for any batch (E19, E20, E5).

use tracing::warn;

use crate::decide::dispatch::is_present;
use crate::decide::stall::{Reason, Stall};
use crate::flow::worker::Worker;
use crate::flow::{FlowError, kill_point};
use crate::ports::Step;
use crate::types::{BatchRecord, Cursor, L1Number, L2Snapshot};

impl Worker {
    /// Checks that the node still holds our safe block; finds the ground where it does not.
    pub(crate) async fn find_ground(&mut self, snapshot: &L2Snapshot) -> Result<Result<(), Stall>, FlowError> {
        let Some(safe) = self.heads.safe() else { return Ok(Ok(())) };
        if snapshot.head.l2_ref() == safe {
            self.lost_from = None;
            return Ok(Ok(()));
        }
        let lost = !is_present(safe.number, snapshot.head.number);
        if !lost && self.ports.l2.header(safe.number).await?.is_some_and(|h| h.l2_ref() == safe) {
            self.lost_from = None;
            return Ok(Ok(()));
        }
        let (ground, oldest) = self.highest_held(snapshot).await?;
        let new_safe = ground.as_ref().and_then(|g| g.last);
        let finalized_present = self.heads.finalized().is_some_and(|f| is_present(f.number, snapshot.head.number));
        let below_finalized = self.heads.finalized().is_some_and(|f| new_safe.is_none_or(|s| s.number < f.number));
        if below_finalized && finalized_present {
            return Ok(Err(Stall::new(
                Reason::DivergesBelowFinalized,
                "the local chain differs from the verified one at or below the finalized head",
            )));
        }
        let heads = self.heads.node_lost(new_safe);
        let cursor = match (&ground, &oldest) {
            (Some(ground), _) => Some(Cursor { block: ground.l1, log_index: Some(ground.log_index) }),
            (None, Some(oldest)) => self.cursor_before(oldest).await?,
            (None, None) => None,
        };
        warn!(
            safe = safe.number.get(),
            head = snapshot.head.number.get(),
            ground = ?new_safe.map(|s| s.number.get()),
            lost,
            "the node no longer holds the verified chain; going back to what it holds"
        );
        let step = Step {
            safe: new_safe,
            clear_safe: new_safe.is_none(),
            cursor,
            clear_cursor: cursor.is_none(),
            ..Step::default()
        };
        kill_point("ground: before storing");
        self.ports.progress.apply(&step).await?;
        kill_point("ground: stored");
        self.heads = heads;
        self.cursor = cursor;
        self.lost_from = Some(new_safe.map_or(snapshot.head.number, |s| s.number).plus(1));
        Ok(Ok(()))
    }

    /// The highest standing batch whose last block the node holds, and the oldest standing batch that was looked at.
    async fn highest_held(
        &self,
        snapshot: &L2Snapshot,
    ) -> Result<(Option<BatchRecord>, Option<BatchRecord>), FlowError> {
        let progress = &self.ports.progress;
        let top = self.cursor.map_or(L1Number::new(0), |c| c.block.number);
        let mut candidate = progress.newest_at_or_below(top).await?;
        let mut oldest = None;
        while let Some(record) = candidate {
            if let Some(last) = record.last
                && is_present(last.number, snapshot.head.number)
                && self.ports.l2.header(last.number).await?.is_some_and(|h| h.l2_ref() == last)
            {
                return Ok((Some(record), oldest));
            }
            candidate = match record.index.get() {
                0 => None,
                _ => progress.batch(record.index.minus(1)).await?,
            };
            oldest = Some(record);
        }
        Ok((None, oldest))
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
