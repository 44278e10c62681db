//! The state of L1, and what a reorg takes away.
//!
//! Asks for the newest header, the confirmed height, and whether the recorded blocks are still canonical; after a reorg
//! drops what was recorded above the common ancestor and moves safe back if its batch is gone (P8, B2, B3).

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use crate::decide::cursor::{self, Range, Reorg};
use crate::decide::rebind::{self, Rebound};
use crate::decide::stall::Cause;
use crate::flow::l1_range::{self, Reading, cursor_before};
use crate::flow::ledger::Ledger;
use crate::flow::node::Node;
use crate::flow::{Confirmations, Decided, FlowError, Ports, Settings, unix_now};
use crate::ports::{L1Chain, Rows, Step, Suspect};
use crate::types::{BatchRecord, Cursor, L1Header, L1Number, L1Ref, L1Tag};

/// The most parts in which a range is read whose batches may have moved to other L1 blocks.
const PARTS_MAX: usize = 8;

/// L1 as one poll sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct L1View {
    /// The newest block that is settled enough to read.
    pub(crate) confirmed: L1Number,
    /// The newest block is older than allowed (A5).
    pub(crate) stale: bool,
    /// A reorg was dealt with in this look.
    pub(crate) reorged: bool,
}

/// L1's newest block, and the newest one that is settled enough to read.
///
/// # Errors
/// When L1 cannot be asked.
pub(crate) async fn newest_blocks(
    l1: &dyn L1Chain,
    confirmations: Confirmations,
) -> Result<(Option<L1Header>, Option<L1Number>), FlowError> {
    let (latest, tagged) = match confirmations {
        Confirmations::Depth(depth) => {
            let latest = l1.tagged(L1Tag::Latest).await?;
            return Ok((latest, latest.map(|h| h.number.minus(depth))));
        }
        Confirmations::Safe => l1.latest_and(L1Tag::Safe).await?,
        Confirmations::Finalized => l1.latest_and(L1Tag::Finalized).await?,
    };
    Ok((latest, tagged.map(|h| h.number)))
}

/// L1, as it is looked at once a poll.
pub(crate) struct L1Watch {
    l1: Arc<dyn L1Chain>,
    rows: Arc<dyn Rows>,
    /// The first L1 block that is read when the database is new.
    start: L1Number,
    fetch_range: u64,
    reorg_window: u64,
    confirmations: Confirmations,
    max_age: Duration,
    /// Reorgs dealt with.
    reorgs: u64,
    /// The newest block that is settled enough to read, as it was seen last.
    confirmed: Option<L1Number>,
    /// The newest block, as it was seen last.
    newest: Option<L1Header>,
}

impl L1Watch {
    /// Not looked at yet.
    pub(crate) fn new(ports: &Ports, settings: &Settings) -> Self {
        Self {
            l1: ports.l1.clone(),
            rows: ports.progress.clone(),
            start: settings.start,
            fetch_range: settings.fetch_range,
            reorg_window: settings.reorg_window,
            confirmations: settings.confirmations,
            max_age: settings.l1_max_age,
            reorgs: 0,
            confirmed: None,
            newest: None,
        }
    }

    /// The newest block that is settled enough to read, as it was seen last.
    pub(crate) const fn confirmed(&self) -> Option<L1Number> {
        self.confirmed
    }

    /// The newest block, as it was seen last.
    pub(crate) const fn newest(&self) -> Option<L1Header> {
        self.newest
    }

    /// Reorgs dealt with.
    pub(crate) const fn reorgs(&self) -> u64 {
        self.reorgs
    }

    /// Reads L1's head, and deals with a reorg. It is a stall if L1 cannot be followed for now.
    pub(crate) async fn look(&mut self, ledger: &mut Ledger, node: &mut Node) -> Decided<L1View> {
        let (Some(latest), confirmed) = self.latest().await? else {
            return Err(Cause::NoL1Block.into());
        };
        let Some(confirmed) = confirmed else {
            return Err(Cause::NoSettledL1Block.into());
        };
        let view = L1View { confirmed, stale: self.is_stale(&latest), reorged: false };
        let after_reorg = L1View { reorged: true, ..view };
        (self.confirmed, self.newest) = (Some(confirmed), Some(latest));
        match self.find_reorg(ledger).await? {
            Reorg::None => Ok(view),
            Reorg::StrayCursor => {
                self.leave_stray_block(ledger).await?;
                Ok(view)
            }
            Reorg::Behind => Err(Cause::L1HeadBelowCursor.into()),
            Reorg::TooDeep { window } => Err(Cause::ReorgTooDeep { window }.into()),
            Reorg::To(ancestor) => {
                self.rewind(ledger, node, Some(ancestor), confirmed).await?;
                Ok(after_reorg)
            }
            Reorg::ToStart => {
                self.rewind(ledger, node, None, confirmed).await?;
                Ok(after_reorg)
            }
        }
    }

    /// L1's newest block, and the newest one that is settled enough to read. A stale block may come from one endpoint
    /// alone, so another is asked at once.
    async fn latest(&self) -> Result<(Option<L1Header>, Option<L1Number>), FlowError> {
        let seen = self.newest_blocks().await?;
        let stale = seen.0.is_some_and(|h| self.is_stale(&h));
        if !stale || !self.l1.distrust(Suspect::Tag, "its newest block is too old") {
            return Ok(seen);
        }
        self.newest_blocks().await
    }

    async fn newest_blocks(&self) -> Result<(Option<L1Header>, Option<L1Number>), FlowError> {
        newest_blocks(self.l1.as_ref(), self.confirmations).await
    }

    fn is_stale(&self, latest: &L1Header) -> bool {
        cursor::is_stale(latest.timestamp, unix_now(), self.max_age)
    }

    async fn find_reorg(&self, ledger: &Ledger) -> Result<Reorg, FlowError> {
        let newest = self.rows.newest_l1_block().await?;
        let at = ledger.cursor().map(|c| c.block).filter(|at| newest != Some(*at));
        let asked: Vec<_> = newest.iter().chain(&at).map(|block| block.number).collect();
        if asked.is_empty() {
            return Ok(Reorg::None);
        }
        let (start, window) = (self.start, self.reorg_window);
        let live = self.l1.headers(&asked).await?;
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
        let mut recorded = self.rows.l1_blocks().await?;
        recorded.retain(|r| r.number >= newest.number.minus(window));
        let numbers: Vec<_> = recorded.iter().map(|r| r.number).collect();
        let live = self.l1.headers(&numbers).await?;
        Ok(cursor::find_reorg(&recorded, &live, start, window))
    }

    /// Sends the cursor from a block that is not canonical further back, to the nearest block or commit that is stored.
    /// The next poll checks whether that one is canonical; each step goes down, so the search ends.
    async fn leave_stray_block(&self, ledger: &mut Ledger) -> Result<(), FlowError> {
        let Some(stray) = ledger.cursor().map(|c| c.block) else { return Ok(()) };
        let recorded = self.rows.l1_blocks().await?.into_iter().find(|r| r.number < stray.number);
        let commit = match stray.number.get() {
            0 => None,
            _ => self.rows.newest_at_or_below(stray.number.minus(1)).await?,
        };
        let recorded = recorded.map(|block| Cursor { block, log_index: None });
        let commit = commit.map(|record| Cursor { block: record.l1, log_index: Some(record.log_index) });
        let cursor = recorded.into_iter().chain(commit).max_by_key(|c| c.block.number);
        warn!(
            code = "cursor_not_canonical",
            entity = stray.number.get(),
            from = stray.number.get(),
            to = ?cursor.map(|c| c.block.number.get()),
            "the L1 block of the cursor is not canonical; reading again from an earlier one"
        );
        let forget_settled_above = Some(stray.number.minus(1));
        let step = Step { cursor, clear_cursor: cursor.is_none(), forget_settled_above, ..Step::default() };
        ledger.commit(&step).await?;
        Ok(())
    }

    /// Drops everything above `ancestor` (everything if there is none). Batches that the new chain holds again,
    /// unchanged, are rebound to their new L1 block, so that safe never dips over them.
    async fn rewind(
        &mut self,
        ledger: &mut Ledger,
        node: &mut Node,
        ancestor: Option<L1Ref>,
        confirmed: L1Number,
    ) -> Result<(), FlowError> {
        let floor = self.floor_of(ancestor);
        let above = floor.get();
        warn!(
            code = "l1_reorg",
            entity = above,
            above,
            "L1 reorganised; dropping what was recorded above the common ancestor"
        );
        let again = self.passed_over(ledger, floor).await?;
        if ledger.cursor().is_none_or(|c| c.block.number <= floor) {
            // The cursor was sent back below the reorg already and reads the blocks above anyway; the rows above are
            // dropped.
            let mut step = Step { rewind_to: Some(floor), ..Step::default() };
            if let Some(cursor) = again {
                (step.cursor, step.clear_cursor) = (cursor, cursor.is_none());
            }
            ledger.commit(&step).await?;
            self.reorgs = self.reorgs.saturating_add(1);
            return Ok(());
        }
        let dropped = standing_above(ledger, floor).await?;
        let rebound = match again {
            Some(_) => Rebound::default(),
            None => self.rebind(&dropped, ancestor, confirmed).await?,
        };
        let Rebound { batches: rebound, messages, proofs: settlements, blocks: l1_blocks } = rebound;
        let ground = match rebound.last() {
            Some(last) => Some(last.clone()),
            None => self.newest_standing_below(ledger, &dropped, floor).await?,
        };
        let safe = ground.as_ref().and_then(|g| g.last);
        // Safe does not go below finalized: the dropped batch may be the second commit of one that was reverted after
        // it was final. If its only commit was final, L1 contradicts itself, and `uncommitted_finalized` shows it (M3).
        let heads = ledger.heads().rewind_safe(safe);
        let cursor = match (again, rebound.last(), ancestor) {
            (Some(again), _, _) => again,
            (None, Some(last), _) => Some(Cursor { block: last.l1, log_index: Some(last.log_index) }),
            (None, None, Some(ancestor)) => Some(Cursor { block: ancestor, log_index: None }),
            (None, None, None) => None,
        };
        if heads.safe().is_none() {
            node.abandon_safe(ledger, dropped.first().and_then(|r| r.first)).await?;
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
        ledger.commit(&step).await?;
        info!(safe = ?heads.safe().map(|s| s.number.get()), "rewound to the common ancestor");
        self.reorgs = self.reorgs.saturating_add(1);
        Ok(())
    }

    /// The last L1 block that stays: the common ancestor, else the block before the first one that is read.
    fn floor_of(&self, ancestor: Option<L1Ref>) -> L1Number {
        ancestor.map_or(self.start.minus(1), |a| a.number)
    }

    /// A commit at or below `floor` that was passed over because of a revert above it must be looked at after all: the
    /// cursor that makes it the next log. None if there is no such commit.
    async fn passed_over(&self, ledger: &Ledger, floor: L1Number) -> Result<Option<Option<Cursor>>, FlowError> {
        let Some(record) = self.rows.reverted_above(floor).await? else { return Ok(None) };
        if !cursor::has_passed(ledger.cursor().as_ref(), record.pos()) {
            return Ok(None);
        }
        Ok(Some(cursor_before(self.l1.as_ref(), record.l1, record.log_index).await?))
    }

    async fn newest_standing_below(
        &self,
        ledger: &Ledger,
        dropped: &[BatchRecord],
        floor: L1Number,
    ) -> Result<Option<BatchRecord>, FlowError> {
        match dropped.first() {
            Some(first) => Ok(ledger.standing_before(first).await?),
            None => Ok(self.rows.newest_at_or_below(floor).await?),
        }
    }

    /// The whole of `range`, in the parts in which an endpoint answers it. If it serves very few blocks at a time, only
    /// the first parts are read: what lies above them is verified again.
    async fn read_whole(&self, range: Range, below: Option<L1Ref>) -> Result<Reading, FlowError> {
        let (l1, window) = (self.l1.as_ref(), self.reorg_window);
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

    /// What of `dropped` the new chain holds again.
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
        let width = self.fetch_range.max(self.reorg_window);
        let range = Range { from: floor.plus(1), to: confirmed.min(floor.plus(width)) };
        let Reading { events, blocks, .. } = self.read_whole(range, ancestor).await?;
        Ok(rebind::rebound(dropped, events, blocks))
    }
}

/// Standing batches whose commit lies above `floor` and was read, ascending by index.
async fn standing_above(ledger: &Ledger, floor: L1Number) -> Result<Vec<BatchRecord>, FlowError> {
    let mut found = Vec::new();
    let mut newest = ledger.standing_at_cursor().await?;
    while let Some(record) = newest {
        if record.l1.number <= floor {
            break;
        }
        newest = ledger.standing_before(&record).await?;
        found.push(record);
    }
    found.reverse();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::testing::{World, cause_of};

    /// Six verified batches, committed in L1 blocks 4 to 14.
    async fn verified() -> World {
        let mut world = World::recorded().await;
        world.verified(6).await;
        world
    }

    async fn look(world: &mut World) -> (Decided<L1View>, L1Watch) {
        let mut watch = L1Watch::new(&world.ports, &world.settings);
        let mut node = world.poll_begins().await;
        (watch.look(&mut world.ledger, &mut node).await, watch)
    }

    #[tokio::test]
    async fn a5_what_is_confirmed_lies_below_the_newest_block_and_that_one_may_be_stale() {
        let mut world = verified().await;
        world.settings.confirmations = Confirmations::Depth(10);
        world.settings.l1_max_age = Duration::from_secs(60);
        let newest = world.l1.now().headers.len() - 1;
        world.l1.now().headers[newest].timestamp = unix_now() - 300;
        let view = look(&mut world).await.0.unwrap();
        assert_eq!((view.confirmed.get(), view.stale, view.reorged), (20, true, false));
        world.l1.now().headers[newest].timestamp = unix_now();
        assert!(!look(&mut world).await.0.unwrap().stale);
        world.l1.now().finalized = 12.into();
        world.settings.confirmations = Confirmations::Finalized;
        assert_eq!(look(&mut world).await.0.unwrap().confirmed.get(), 12);
    }

    #[tokio::test]
    async fn b3_a_reorg_that_takes_commits_away_takes_safe_and_cursor_back_to_the_common_ancestor() {
        let mut world = verified().await;
        world.l1.now().reorganise(11);
        world.l1.now().events.retain(|event| event.block.number.get() < 11);
        let (view, watch) = look(&mut world).await;
        assert!(view.unwrap().reorged);
        assert_eq!(watch.reorgs(), 1);
        assert_eq!(world.ledger.heads().safe(), Some(world.l2(48)));
        let ancestor = Cursor { block: world.l1.now().at(10), log_index: None };
        assert_eq!(world.ledger.cursor(), Some(ancestor));
        assert_eq!(world.ports.progress.batch(5.into()).await.unwrap(), None);
    }

    #[tokio::test]
    async fn b2_commits_that_the_new_chain_holds_again_keep_safe_where_it_is() {
        let mut world = verified().await;
        world.l1.now().reorganise(11);
        assert!(look(&mut world).await.0.unwrap().reorged);
        assert_eq!(world.ledger.heads().safe(), Some(world.l2(72)));
        let rebound = world.ports.progress.batch(6.into()).await.unwrap();
        assert_eq!(rebound.map(|row| row.l1), Some(world.l1.now().at(14)));
    }

    #[tokio::test]
    async fn p8_a_reorg_below_the_window_halts_and_changes_nothing() {
        let mut world = verified().await;
        world.settings.reorg_window = 2;
        world.l1.now().reorganise(1);
        let before = (world.ledger.heads(), world.ledger.cursor());
        let end = look(&mut world).await.0;
        assert!(matches!(cause_of(end), Some(Cause::ReorgTooDeep { window: 2 })));
        assert_eq!((world.ledger.heads(), world.ledger.cursor()), before);
    }
}
