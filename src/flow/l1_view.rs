//! Where L1 stands, and what a reorg takes away.
//!
//! Asks for the newest header, the confirmed height, and whether the recorded blocks are still canonical; after a
//! reorg drops what was recorded above the common ancestor and moves safe back where its batch is gone (P8, B2, B3).

use tracing::{info, warn};

use crate::decide::cursor::{self, Reorg};
use crate::decide::heads::Move;
use crate::decide::stall::{Reason, Stall};
use crate::flow::worker::Worker;
use crate::flow::{Confirmations, FlowError};
use crate::ports::Step;
use crate::types::{BatchRecord, Cursor, L1EventKind, L1Message, L1Number, L1Ref, L1Tag};

/// L1 as one pull sees it.
#[derive(Clone, Copy, Debug)]
pub struct L1View {
    /// The newest block that is settled enough to read.
    pub confirmed: L1Number,
}

impl Worker {
    /// Reads L1's head, and deals with a reorg. Gives a stall where L1 cannot be followed for now.
    pub(crate) async fn view_l1(&mut self) -> Result<Result<L1View, Stall>, FlowError> {
        let Some(confirmed) = self.confirmed().await? else {
            return Ok(Err(Stall::new(Reason::L1Behind, "the L1 node names no such block yet")));
        };
        let view = L1View { confirmed };
        self.status.l1_confirmed = Some(confirmed);
        match self.find_reorg().await? {
            Reorg::None => Ok(Ok(view)),
            Reorg::Behind => {
                Ok(Err(Stall::new(Reason::L1Behind, "the L1 node's head lies below the last block that was read")))
            }
            Reorg::TooDeep { window } => Ok(Err(Stall::new(
                Reason::ReorgTooDeep,
                format!(
                    "no L1 block of the last {window} is canonical any more; restore trust in L1, then start with a fresh database"
                ),
            ))),
            Reorg::To(ancestor) => self.rewind_l1(Some(ancestor), confirmed).await.map(|r| r.map(|()| view)),
            Reorg::ToStart => self.rewind_l1(None, confirmed).await.map(|r| r.map(|()| view)),
        }
    }

    async fn confirmed(&self) -> Result<Option<L1Number>, FlowError> {
        let l1 = &self.ports.l1;
        let header = match self.settings.confirmations {
            Confirmations::Depth(depth) => {
                return Ok(l1.tagged(L1Tag::Latest).await?.map(|h| h.number.minus(depth)));
            }
            Confirmations::Safe => l1.tagged(L1Tag::Safe).await?,
            Confirmations::Finalized => l1.tagged(L1Tag::Finalized).await?,
        };
        Ok(header.map(|h| h.number))
    }

    async fn find_reorg(&self) -> Result<Reorg, FlowError> {
        let recorded = self.ports.progress.l1_blocks().await?;
        let Some(newest) = recorded.first() else { return Ok(Reorg::None) };
        let (start, window) = (self.settings.start, self.settings.reorg_window);
        let live = self.ports.l1.headers(&[newest.number]).await?;
        match cursor::find_reorg(&recorded[..1], &live, start, window) {
            Reorg::None => return Ok(Reorg::None),
            Reorg::Behind => return Ok(Reorg::Behind),
            Reorg::To(_) | Reorg::ToStart | Reorg::TooDeep { .. } => {}
        }
        let numbers: Vec<_> = recorded.iter().map(|r| r.number).collect();
        let live = self.ports.l1.headers(&numbers).await?;
        Ok(cursor::find_reorg(&recorded, &live, start, window))
    }

    /// Drops everything above `ancestor` (everything at all where none). Batches that the new chain holds again,
    /// unchanged, are rebound to their new L1 block, so that safe never dips over them.
    async fn rewind_l1(
        &mut self,
        ancestor: Option<L1Ref>,
        confirmed: L1Number,
    ) -> Result<Result<(), Stall>, FlowError> {
        let floor = ancestor.map_or(self.settings.start.minus(1), |a| a.number);
        warn!(ancestor = floor.get(), "L1 reorganised; what was recorded above the common ancestor is dropped");
        let dropped = self.standing_above(floor).await?;
        let (rebound, messages) = self.rebind(&dropped, floor, confirmed).await?;
        let ground = match rebound.last() {
            Some(last) => Some(last.clone()),
            None => self.newest_standing_below(&dropped, floor).await?,
        };
        let safe = ground.as_ref().and_then(|g| g.last);
        let was_safe = self.heads.safe();
        let heads = if was_safe.is_some() && was_safe != safe {
            match self.heads.rewind_safe(safe) {
                Move::To(heads) => heads,
                Move::Unchanged => self.heads,
                Move::Backwards | Move::BelowFinalized | Move::AboveSafe => {
                    return Ok(Err(Stall::new(
                        Reason::ReorgTooDeep,
                        "the L1 reorg takes away a batch at or below the finalized head",
                    )));
                }
            }
        } else {
            self.heads
        };
        let cursor = match (rebound.last(), ancestor) {
            (Some(last), _) => Some(Cursor { block: last.l1, log_index: Some(last.log_index) }),
            (None, Some(ancestor)) => Some(Cursor { block: ancestor, log_index: None }),
            (None, None) => None,
        };
        let mut l1_blocks: Vec<_> = rebound.iter().map(|r| r.l1).collect();
        l1_blocks.dedup();
        let step = Step {
            rewind_to: Some(floor),
            rebound,
            messages,
            l1_blocks,
            safe: heads.safe(),
            clear_safe: heads.safe().is_none(),
            cursor,
            clear_cursor: cursor.is_none(),
            ..Step::default()
        };
        self.ports.progress.apply(&step).await?;
        info!(safe = ?heads.safe().map(|s| s.number.get()), "rewound to the common ancestor");
        self.heads = heads;
        self.cursor = cursor;
        self.status.reorgs = self.status.reorgs.saturating_add(1);
        Ok(Ok(()))
    }

    /// Standing batches whose commit lies above `floor`, ascending by index.
    async fn standing_above(&self, floor: L1Number) -> Result<Vec<BatchRecord>, FlowError> {
        let progress = &self.ports.progress;
        let mut found = Vec::new();
        let mut newest = progress.newest_at_or_below(L1Number::new(u64::MAX >> 1)).await?;
        while let Some(record) = newest {
            if record.l1.number <= floor {
                break;
            }
            newest = match record.index.get() {
                0 => None,
                index => progress.batch(index.saturating_sub(1).into()).await?,
            };
            found.push(record);
        }
        found.reverse();
        Ok(found)
    }

    async fn newest_standing_below(
        &self,
        dropped: &[BatchRecord],
        floor: L1Number,
    ) -> Result<Option<BatchRecord>, FlowError> {
        match dropped.first() {
            Some(first) if first.index.get() == 0 => Ok(None),
            Some(first) => Ok(self.ports.progress.batch(first.index.minus(1)).await?),
            None => Ok(self.ports.progress.newest_at_or_below(floor).await?),
        }
    }

    /// The longest run of `dropped` that the new chain commits to again, with their new positions. The batch hash
    /// binds everything about a batch but its place on L1, so what was verified stays verified.
    async fn rebind(
        &self,
        dropped: &[BatchRecord],
        floor: L1Number,
        confirmed: L1Number,
    ) -> Result<(Vec<BatchRecord>, Vec<(L1Ref, L1Message)>), FlowError> {
        if dropped.is_empty() || floor >= confirmed {
            return Ok((Vec::new(), Vec::new()));
        }
        let events = self.ports.l1.events(floor.plus(1), confirmed).await?;
        // A range that reverts anything is read again in order: nothing is taken over ahead of a revert.
        if events.iter().any(|e| matches!(e.kind, L1EventKind::Revert { .. })) {
            return Ok((Vec::new(), Vec::new()));
        }
        let mut rebound = Vec::new();
        for old in dropped {
            let same = events.iter().find(
                |e| matches!(e.kind, L1EventKind::Commit { index, hash } if index == old.index && hash == old.hash),
            );
            let Some(event) = same else { break };
            let mut record = old.clone();
            record.l1 = event.block;
            record.log_index = event.log_index;
            record.tx_hash = event.tx_hash;
            rebound.push(record);
        }
        // The cursor will stand on the last rebound commit, so the L1 messages below it are stored with it.
        let read_to = rebound.last().map(|last| last.l1.number);
        let messages = events
            .into_iter()
            .filter(|e| read_to.is_some_and(|to| e.block.number <= to))
            .filter_map(|e| match e.kind {
                L1EventKind::Message(message) => Some((e.block, message)),
                L1EventKind::Commit { .. } | L1EventKind::Revert { .. } => None,
            })
            .collect();
        Ok((rebound, messages))
    }
}
