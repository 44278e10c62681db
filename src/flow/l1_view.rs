//! Where L1 stands, and what a reorg takes away.
//!
//! Asks for the newest header, the confirmed height, and whether the recorded blocks are still canonical; after a
//! reorg drops what was recorded above the common ancestor and moves safe back where its batch is gone (P8, B2, B3).

use tracing::{info, warn};

use crate::decide::cursor::{self, Range, Reorg};
use crate::decide::stall::{Reason, Stall};
use crate::flow::l1_range::{self, Reading, cursor_before};
use crate::flow::worker::Worker;
use crate::flow::{Confirmations, FlowError, unix_now};
use crate::ports::{Step, Suspect};
use crate::types::{
    BatchRecord, Cursor, L1Event, L1EventKind, L1Header, L1Message, L1Number, L1Ref, L1Tag, L2Snapshot,
};

/// Parts in which a range is read whose batches may have moved to other L1 blocks.
const PARTS_MAX: usize = 8;

/// L1 as one pull sees it.
#[derive(Clone, Copy, Debug)]
pub struct L1View {
    /// The newest block that is settled enough to read.
    pub confirmed: L1Number,
    /// The newest block is older than it may be (A5).
    pub stale: bool,
    /// A reorg was dealt with in this look.
    pub reorged: bool,
}

impl Worker {
    /// Reads L1's head, and deals with a reorg. Gives a stall where L1 cannot be followed for now.
    pub(crate) async fn view_l1(&mut self, node: &mut L2Snapshot) -> Result<Result<L1View, Stall>, FlowError> {
        let (Some(latest), confirmed) = self.latest().await? else {
            return Ok(Err(Stall::new(Reason::L1Behind, "the L1 node has no block yet")));
        };
        let Some(confirmed) = confirmed else {
            return Ok(Err(Stall::new(Reason::L1Behind, "the L1 node names no such block yet")));
        };
        let view = L1View { confirmed, stale: self.is_stale(&latest), reorged: false };
        let after_reorg = L1View { reorged: true, ..view };
        self.status.l1_confirmed = Some(confirmed);
        match self.find_reorg().await? {
            Reorg::None => Ok(Ok(view)),
            Reorg::StrayCursor => {
                self.leave_stray_block().await?;
                Ok(Ok(view))
            }
            Reorg::Behind => {
                Ok(Err(Stall::new(Reason::L1Behind, "the L1 node's head lies below the last block that was read")))
            }
            Reorg::TooDeep { window } => Ok(Err(Stall::new(
                Reason::ReorgTooDeep,
                format!(
                    "no L1 block of the last {window} is canonical any more; restore trust in L1, then start with a fresh database"
                ),
            ))),
            Reorg::To(ancestor) => {
                self.rewind_l1(Some(ancestor), confirmed, node).await?;
                Ok(Ok(after_reorg))
            }
            Reorg::ToStart => {
                self.rewind_l1(None, confirmed, node).await?;
                Ok(Ok(after_reorg))
            }
        }
    }

    /// L1's newest block, and the newest one that is settled enough to read. A stale one may be one endpoint's alone, so
    /// another is asked at once.
    async fn latest(&self) -> Result<(Option<L1Header>, Option<L1Number>), FlowError> {
        let seen = self.newest_blocks().await?;
        let stale = seen.0.is_some_and(|h| self.is_stale(&h));
        if !stale || !self.ports.l1.distrust(Suspect::Tag, "its newest block is too old") {
            return Ok(seen);
        }
        self.newest_blocks().await
    }

    async fn newest_blocks(&self) -> Result<(Option<L1Header>, Option<L1Number>), FlowError> {
        let l1 = &self.ports.l1;
        let (latest, tagged) = match self.settings.confirmations {
            Confirmations::Depth(depth) => {
                let latest = l1.tagged(L1Tag::Latest).await?;
                return Ok((latest, latest.map(|h| h.number.minus(depth))));
            }
            Confirmations::Safe => l1.latest_and(L1Tag::Safe).await?,
            Confirmations::Finalized => l1.latest_and(L1Tag::Finalized).await?,
        };
        Ok((latest, tagged.map(|h| h.number)))
    }

    fn is_stale(&self, latest: &L1Header) -> bool {
        cursor::is_stale(latest.timestamp, unix_now(), self.settings.l1_max_age)
    }

    async fn find_reorg(&self) -> Result<Reorg, FlowError> {
        let newest = self.ports.progress.newest_l1_block().await?;
        let at = self.ledger.cursor().map(|c| c.block).filter(|at| newest != Some(*at));
        let asked: Vec<_> = newest.iter().chain(&at).map(|block| block.number).collect();
        if asked.is_empty() {
            return Ok(Reorg::None);
        }
        let (start, window) = (self.settings.start, self.settings.reorg_window);
        let live = self.ports.l1.headers(&asked).await?;
        let stray = at.is_some_and(|at| cursor::is_stray(&at, live.last().and_then(Option::as_ref)));
        let newest = match (newest, stray) {
            (None, true) => return Ok(Reorg::StrayCursor),
            (None, false) => return Ok(Reorg::None),
            (Some(newest), _) => newest,
        };
        match cursor::find_reorg(&[newest], &live, start, window) {
            Reorg::None if stray => return Ok(Reorg::StrayCursor),
            found @ (Reorg::None | Reorg::Behind | Reorg::StrayCursor) => return Ok(found),
            Reorg::To(_) | Reorg::ToStart | Reorg::TooDeep { .. } => {}
        }
        let mut recorded = self.ports.progress.l1_blocks().await?;
        recorded.retain(|r| r.number >= newest.number.minus(window));
        let numbers: Vec<_> = recorded.iter().map(|r| r.number).collect();
        let live = self.ports.l1.headers(&numbers).await?;
        Ok(cursor::find_reorg(&recorded, &live, start, window))
    }

    /// Sends the cursor from a block that is not canonical further back, to the nearest block or commit that is stored.
    /// Whether that one is canonical the next poll tells; each step goes down, so that there is an end to it.
    async fn leave_stray_block(&mut self) -> Result<(), FlowError> {
        let Some(stray) = self.ledger.cursor().map(|c| c.block) else { return Ok(()) };
        let recorded = self.ports.progress.l1_blocks().await?.into_iter().find(|r| r.number < stray.number);
        let commit = match stray.number.get() {
            0 => None,
            _ => self.ports.progress.newest_at_or_below(stray.number.minus(1)).await?,
        };
        let recorded = recorded.map(|block| Cursor { block, log_index: None });
        let commit = commit.map(|record| Cursor { block: record.l1, log_index: Some(record.log_index) });
        let cursor = recorded.into_iter().chain(commit).max_by_key(|c| c.block.number);
        warn!(
            from = stray.number.get(),
            to = ?cursor.map(|c| c.block.number.get()),
            "the L1 block up to which was read is not canonical; reading again from further back"
        );
        let forget_settled_above = Some(stray.number.minus(1));
        let step = Step { cursor, clear_cursor: cursor.is_none(), forget_settled_above, ..Step::default() };
        self.ledger.commit(&step).await?;
        Ok(())
    }

    /// Drops everything above `ancestor` (everything at all where none). Batches that the new chain holds again,
    /// unchanged, are rebound to their new L1 block, so that safe never dips over them.
    async fn rewind_l1(
        &mut self,
        ancestor: Option<L1Ref>,
        confirmed: L1Number,
        node: &mut L2Snapshot,
    ) -> Result<(), FlowError> {
        let floor = self.floor_of(ancestor);
        warn!(ancestor = floor.get(), "L1 reorganised; what was recorded above the common ancestor is dropped");
        let again = self.passed_over(floor).await?;
        if self.ledger.cursor().is_none_or(|c| c.block.number <= floor) {
            // It was sent back below the reorg already and reads what comes above anyway; rows up there go.
            let mut step = Step { rewind_to: Some(floor), ..Step::default() };
            if let Some(cursor) = again {
                (step.cursor, step.clear_cursor) = (cursor, cursor.is_none());
            }
            self.ledger.commit(&step).await?;
            self.status.reorgs = self.status.reorgs.saturating_add(1);
            return Ok(());
        }
        let dropped = self.standing_above(floor).await?;
        let rebound = match again {
            Some(_) => Rebound::default(),
            None => self.rebind(&dropped, ancestor, confirmed).await?,
        };
        let Rebound { batches: rebound, messages, proofs: settlements, blocks: l1_blocks } = rebound;
        let ground = match rebound.last() {
            Some(last) => Some(last.clone()),
            None => self.newest_standing_below(&dropped, floor).await?,
        };
        let safe = ground.as_ref().and_then(|g| g.last);
        // Not below finalized: the batch that goes may be the second commit of one that was reverted after it was final,
        // and one whose only commit was final is L1's contradiction, which `uncommitted_finalized` shows (M3).
        let heads = self.ledger.heads().rewind_safe(safe);
        let cursor = match (again, rebound.last(), ancestor) {
            (Some(again), _, _) => again,
            (None, Some(last), _) => Some(Cursor { block: last.l1, log_index: Some(last.log_index) }),
            (None, None, Some(ancestor)) => Some(Cursor { block: ancestor, log_index: None }),
            (None, None, None) => None,
        };
        if heads.safe().is_none() {
            *node = self.abandon_safe(dropped.first().and_then(|r| r.first), node).await?;
        }
        let step = Step {
            rewind_to: Some(floor),
            rebound,
            messages,
            settlements,
            l1_blocks,
            safe: heads.safe(),
            clear_safe: heads.safe().is_none(),
            cursor,
            clear_cursor: cursor.is_none(),
            ..Step::default()
        };
        self.ledger.commit(&step).await?;
        info!(safe = ?heads.safe().map(|s| s.number.get()), "rewound to the common ancestor");
        self.status.reorgs = self.status.reorgs.saturating_add(1);
        Ok(())
    }

    /// The last L1 block that stays: the common ancestor, else the block before the first one that is read.
    fn floor_of(&self, ancestor: Option<L1Ref>) -> L1Number {
        ancestor.map_or(self.settings.start.minus(1), |a| a.number)
    }

    /// A commit at or below `floor` that was passed over because of a revert above it must be looked at after all: the
    /// cursor that makes it the next log. None where there is no such commit.
    async fn passed_over(&self, floor: L1Number) -> Result<Option<Option<Cursor>>, FlowError> {
        let Some(record) = self.ports.progress.reverted_above(floor).await? else { return Ok(None) };
        if !cursor::has_passed(self.ledger.cursor().as_ref(), (record.l1.number, record.log_index)) {
            return Ok(None);
        }
        Ok(Some(cursor_before(self.ports.l1.as_ref(), record.l1, record.log_index).await?))
    }

    /// Standing batches whose commit lies above `floor` and was read, ascending by index.
    async fn standing_above(&self, floor: L1Number) -> Result<Vec<BatchRecord>, FlowError> {
        let mut found = Vec::new();
        let mut newest = self.ledger.standing_at_cursor().await?;
        while let Some(record) = newest {
            if record.l1.number <= floor {
                break;
            }
            newest = self.ledger.standing_before(&record).await?;
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
            Some(first) => Ok(self.ledger.standing_before(first).await?),
            None => Ok(self.ports.progress.newest_at_or_below(floor).await?),
        }
    }

    /// The whole of `range`, in as many parts as an endpoint answers it. Of one that serves very few blocks at a time only
    /// the first parts: what lies above them is verified again.
    async fn read_whole(&self, range: Range, below: Option<L1Ref>) -> Result<Reading, FlowError> {
        let (l1, window) = (self.ports.l1.as_ref(), self.settings.reorg_window);
        let mut reading = l1_range::read(l1, range, below.as_slice(), window).await?;
        for _ in 1..PARTS_MAX {
            if reading.end.number >= range.to {
                break;
            }
            let rest = Range { from: reading.end.number.plus(1), to: range.to };
            let more = l1_range::read(l1, rest, &[reading.end], window).await?;
            reading.events.extend(more.events);
            reading.blocks.extend(more.blocks.into_iter().filter(|b| b.number >= rest.from));
            reading.end = more.end;
        }
        Ok(reading)
    }

    /// The longest run of `dropped` that the new chain commits to again, with their new positions. The batch hash
    /// binds everything about a batch but its place on L1, so what was verified stays verified.
    async fn rebind(
        &self,
        dropped: &[BatchRecord],
        ancestor: Option<L1Ref>,
        confirmed: L1Number,
    ) -> Result<Rebound, FlowError> {
        let floor = self.floor_of(ancestor);
        if dropped.is_empty() || floor >= confirmed {
            return Ok(Rebound::default());
        }
        let width = self.settings.fetch_range.max(self.settings.reorg_window);
        let range = Range { from: floor.plus(1), to: confirmed.min(floor.plus(width)) };
        let reading = self.read_whole(range, ancestor).await?;
        // A range that reverts anything is read again in order: nothing is taken over ahead of a revert.
        if reading.events.iter().any(|e| matches!(e.kind, L1EventKind::Revert { .. })) {
            return Ok(Rebound::default());
        }
        let mut batches: Vec<BatchRecord> = Vec::new();
        for old in dropped {
            let same = reading.events.iter().find(
                |e| matches!(e.kind, L1EventKind::Commit { index, hash } if index == old.index && hash == old.hash),
            );
            let Some(event) = same else { break };
            let mut record = old.clone();
            record.l1 = event.block;
            record.log_index = event.log_index;
            record.tx_hash = event.tx_hash;
            batches.push(record);
        }
        // The cursor will stand on the last rebound commit, so what was read below it is stored with it: the L1
        // messages, and the blocks among which the next reorg finds its ancestor.
        let Some(to) = batches.last().map(|last| last.l1.number) else { return Ok(Rebound::default()) };
        let blocks = reading.blocks.into_iter().filter(|b| b.number <= to).collect();
        let (mut messages, mut proofs) = (Vec::new(), Vec::new());
        for event in reading.events.into_iter().filter(|e| e.block.number <= to) {
            match event.kind {
                L1EventKind::Message(message) => messages.push((event.block, message)),
                L1EventKind::Finalize { .. } => proofs.push(event),
                L1EventKind::Commit { .. } | L1EventKind::Revert { .. } => {}
            }
        }
        Ok(Rebound { batches, messages, proofs, blocks })
    }
}

/// What of the dropped blocks the new chain holds again.
#[derive(Default)]
struct Rebound {
    batches: Vec<BatchRecord>,
    messages: Vec<(L1Ref, L1Message)>,
    proofs: Vec<L1Event>,
    blocks: Vec<L1Ref>,
}
