//! The local chain between two polls: whether its head grows, and what of the verified chain the node still holds.
//!
//! A node that was killed comes back with a lower head, and another writer may have rewritten blocks under a stored
//! outcome. Either way the flow looks for the highest standing batch whose last block the node holds with the verified
//! hash. The cursor goes back to right after that batch, and the case table decides for everything above it as for any
//! batch (E19, E20, E5).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::decide::dispatch::is_present;
use crate::decide::heads::Move;
use crate::decide::liveness::{HeadTrend, Liveness};
use crate::decide::local_chain::{self, Held, HeldFacts, Lost};
use crate::decide::stall::{Cause, Final, Stall};
use crate::error::{PortErrorKind, Target};
use crate::flow::l1_range::cursor_before;
use crate::flow::ledger::Ledger;
use crate::flow::{Decided, FlowError};
use crate::ports::{L1Chain, L2Reader, PortResult, Step};
use crate::types::{BatchRecord, Cursor, L2Number, L2Ref, L2Snapshot};

/// Whether the head grows, and what the node lost.
pub(crate) struct LocalChain {
    l1: Arc<dyn L1Chain>,
    l2: Arc<dyn L2Reader>,
    liveness: Liveness,
    /// Verified blocks that the node lost, until they are back.
    lost: Option<Lost>,
    /// The node's block at the height of our safe block, as it came with the poll's snapshot.
    at_safe: Option<L2Ref>,
    /// Polls in a row that ended because a block was missing that should exist.
    unread: u32,
    /// How far the missing block was looked for, or the height at which it was found missing.
    looked_to: Option<L2Number>,
}

/// After so many such polls in a row the missing block is looked for: a single one may only mean that the chain changed
/// under way.
const HOLE_POLLS: u32 = 3;

/// How many blocks above our safe head are looked at for it: a batch has as many at most.
const HOLE_WITHIN: u64 = 1_000;

/// Time that one poll may spend on it; the next one continues (P4).
const HOLE_TIME: Duration = Duration::from_secs(5);

impl LocalChain {
    /// Nothing seen yet. `window` is the least time without growth that means *stopped*.
    pub(crate) const fn new(l1: Arc<dyn L1Chain>, l2: Arc<dyn L2Reader>, window: Duration) -> Self {
        Self { l1, l2, liveness: Liveness::new(window), lost: None, at_safe: None, unread: 0, looked_to: None }
    }

    /// The ledger was read from the database: the lost blocks follow from it. `tip` is the standing batch with the
    /// highest index.
    pub(crate) fn loaded(&mut self, ledger: &Ledger, tip: Option<&BatchRecord>) {
        self.lost = Lost::stored(&ledger.heads(), tip);
    }

    /// The node as a poll finds it. Its block at our safe head comes with it: the head is above it nearly always, and a
    /// quiet poll costs no further request.
    ///
    /// # Errors
    /// When the node does not answer.
    pub(crate) async fn look(&mut self, ledger: &Ledger) -> PortResult<L2Snapshot> {
        self.at_safe = None;
        let Some(safe) = ledger.heads().safe() else { return self.l2.snapshot().await };
        let (node, at) = self.l2.snapshot_and(safe.number).await?;
        self.at_safe = at.map(|header| header.l2_ref());
        Ok(node)
    }

    /// Verified blocks that the node lost, until they are back.
    pub(crate) const fn lost(&self) -> Option<Lost> {
        self.lost
    }

    /// The head is `head` at `now`, on a clock that only goes forward.
    pub(crate) fn observe(&mut self, head: L2Number, now: Duration) -> HeadTrend {
        self.liveness.observe(head, now)
    }

    /// The node did not answer, or could not be expected to grow.
    pub(crate) fn interrupted(&mut self) {
        self.liveness.interrupted();
    }

    /// The reactors were paused since `verdict` was given.
    pub(crate) fn paused(&mut self, verdict: HeadTrend) {
        self.liveness.paused(verdict);
    }

    /// A write of ours left the head at `head`, which counts as no growth.
    pub(crate) fn wrote(&mut self, head: L2Number) {
        self.liveness.own_write(head);
    }

    /// A write of ours left the head at an unknown height.
    pub(crate) fn wrote_unknown(&mut self) {
        self.liveness.own_write_unknown();
    }

    /// Checks that the node still holds our safe block; if it does not, goes back to what the node holds.
    pub(crate) async fn check_safe(&mut self, ledger: &mut Ledger, node: &L2Snapshot) -> Decided<()> {
        self.lost = self.lost.and_then(|lost| lost.still(node.head.number));
        // It was read at the poll's start: it says nothing of later reads.
        let at_safe = self.at_safe.take();
        self.lift_to_finalized(ledger, node).await?;
        let standing = ledger.standing_at_cursor().await?.and_then(|r| r.last);
        let restored = standing.filter(|last| ledger.heads().safe().is_none_or(|safe| safe.number < last.number));
        if let Some(last) = restored
            && self.holds(last, node).await?
            && let Move::To(heads) = ledger.heads().advance_safe(last)
        {
            info!(safe = last.number.get(), "the batches of a dropped revert stand again");
            ledger.commit(&Step { safe: heads.safe(), ..Step::default() }).await?;
            return Ok(());
        }
        let Some(safe) = ledger.heads().safe().or(restored) else { return Ok(()) };
        let seen = at_safe == Some(safe) && is_present(safe.number, node.head.number);
        if restored.is_none() && (seen || self.holds(safe, node).await?) {
            return Ok(());
        }
        self.go_back(ledger, safe, node).await
    }

    /// The node no longer holds `safe`: heads and cursor go back to what it holds.
    async fn go_back(&mut self, ledger: &mut Ledger, safe: L2Ref, node: &L2Snapshot) -> Decided<()> {
        let lost = !is_present(safe.number, node.head.number);
        let (highest, oldest) = self.highest_held(ledger, node).await?;
        let holds_finalized = match ledger.heads().finalized() {
            Some(finalized) => self.holds(finalized, node).await?,
            None => false,
        };
        let batch_end = highest.as_ref().and_then(|batch| batch.last);
        let facts = HeldFacts { heads: ledger.heads(), batch_end, holds_finalized, head: node.head.number };
        let heads = match local_chain::held(&facts) {
            Held::Back(heads) => heads,
            Held::DivergesBelowFinalized => {
                return Err(Cause::BelowFinalized(Final::Verified).into());
            }
        };
        let cursor = match (&highest, &oldest) {
            (Some(batch), _) => Some(Cursor { block: batch.l1, log_index: Some(batch.log_index) }),
            (None, Some(oldest)) => cursor_before(self.l1.as_ref(), oldest.l1, oldest.log_index).await?,
            // No batch stands that was looked at: L1 reverted them all, and what comes next lies at the cursor.
            (None, None) => ledger.cursor(),
        };
        warn!(
            code = "node_lost_blocks",
            entity = safe.number.get(),
            safe = safe.number.get(),
            head = node.head.number.get(),
            held = ?heads.safe().map(|s| s.number.get()),
            lost,
            "the node lost verified blocks; rewinding to the last batch that it has"
        );
        let step = Step {
            safe: heads.safe(),
            clear_safe: heads.safe().is_none(),
            cursor,
            clear_cursor: cursor.is_none(),
            ..Step::default()
        };
        ledger.commit(&step).await?;
        if lost {
            self.lost = Some(Lost::more(self.lost, safe.number, heads.safe(), node.head.number));
        }
        Ok(())
    }

    /// If the node lost its finalized block and has it back, safe returns to it at once: between the last standing
    /// batch and that block there may be no batch that could lift safe (M3).
    async fn lift_to_finalized(&self, ledger: &mut Ledger, node: &L2Snapshot) -> Result<(), FlowError> {
        let lifted = ledger.heads().lift_safe();
        if lifted == ledger.heads() {
            return Ok(());
        }
        let Some(safe) = lifted.safe() else { return Ok(()) };
        if self.holds(safe, node).await? {
            ledger.commit(&Step { safe: Some(safe), ..Step::default() }).await?;
        }
        Ok(())
    }

    /// The highest standing batch whose last block the node holds, and the oldest standing batch that was looked at.
    async fn highest_held(
        &self,
        ledger: &Ledger,
        node: &L2Snapshot,
    ) -> Result<(Option<BatchRecord>, Option<BatchRecord>), FlowError> {
        let mut candidate = ledger.standing_at_cursor().await?;
        let mut oldest = None;
        while let Some(record) = candidate {
            if let Some(last) = record.last
                && self.holds(last, node).await?
            {
                return Ok((Some(record), oldest));
            }
            candidate = ledger.standing_before(&record).await?;
            oldest = Some(record);
        }
        Ok((None, oldest))
    }

    /// A poll ended on `error`. If that is a missing block again and again, this looks below `head` for the height at
    /// which the node has none, and the stall names it (L12).
    ///
    /// # Errors
    /// `error` itself if no block is missing, or the error of a failed look.
    pub(crate) async fn name_the_missing(
        &mut self,
        error: FlowError,
        ledger: &Ledger,
        head: L2Number,
    ) -> Result<Stall, FlowError> {
        let may_be = match &error {
            FlowError::Port(port) => port.target == Target::L2 && port.kind == PortErrorKind::NotFound,
            FlowError::Stall(stall) => matches!(stall.cause, Cause::LocalChanged(_)),
        };
        if !may_be {
            self.nothing_is_missing();
            return Err(error);
        }
        self.unread = self.unread.saturating_add(1);
        if self.unread < HOLE_POLLS {
            return Err(error);
        }
        let safe = ledger.heads().safe().map_or(L2Number::new(0), |safe| safe.number);
        let (mut number, until) = (self.looked_to.take().unwrap_or(safe).max(safe), Instant::now() + HOLE_TIME);
        while number <= head && number.above(safe) <= HOLE_WITHIN {
            if self.l2.header(number).await?.is_none() {
                self.looked_to = Some(number);
                // The head may have fallen since the poll began: a block above it is gone, and no hole.
                let head = self.l2.snapshot().await?.head.number;
                return if is_present(number, head) {
                    Ok(Stall::new(Cause::BlockMissing { number, head }))
                } else {
                    Err(error)
                };
            }
            number = number.plus(1);
            if Instant::now() >= until {
                self.looked_to = Some(number);
                break;
            }
        }
        Err(error)
    }

    /// A poll read all that it asked for.
    pub(crate) const fn nothing_is_missing(&mut self) {
        (self.unread, self.looked_to) = (0, None);
    }

    /// Whether the node has `block` on its chain.
    async fn holds(&self, block: L2Ref, node: &L2Snapshot) -> Result<bool, FlowError> {
        if node.head == block {
            return Ok(true);
        }
        if !is_present(block.number, node.head.number) {
            return Ok(false);
        }
        // A node that gives no block below its head has not shown that the block is another one.
        let Some(header) = self.l2.header(block.number).await? else {
            let detail = format!("the node gave no block {}, though its head is {}", block.number, node.head.number);
            return Err(FlowError::local_changed(detail));
        };
        Ok(header.l2_ref() == block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::testing::{World, cause_of};

    const MINUTE: Duration = Duration::from_secs(60);

    /// Six verified batches, of which the first `final_batches` are final.
    async fn verified(final_batches: u64) -> World {
        let mut world = World::recorded().await;
        world.verified(6).await;
        let finalized = Some(world.l2(12 * final_batches));
        world.store(Step { finalized, ..Step::default() }).await;
        world
    }

    async fn check_safe(world: &mut World) -> (Decided<()>, LocalChain) {
        let mut chain = LocalChain::new(world.ports.l1.clone(), world.ports.l2.clone(), MINUTE);
        let node = world.shown().await;
        (chain.check_safe(&mut world.ledger, &node).await, chain)
    }

    #[tokio::test]
    async fn e19_a_killed_node_sends_safe_and_cursor_back_to_what_it_holds_and_finalized_stays() {
        let mut world = verified(2).await;
        world.node.node().kill(50);
        let (end, chain) = check_safe(&mut world).await;
        end.unwrap();
        assert_eq!(world.ledger.heads().safe(), Some(world.l2(48)));
        assert_eq!(world.ledger.heads().finalized(), Some(world.l2(24)));
        let fourth = world.row(4);
        assert_eq!(world.ledger.cursor(), Some(Cursor { block: fourth.l1, log_index: Some(fourth.log_index) }));
        assert!(chain.lost().is_some());
        assert!(world.ports.progress.batch(6.into()).await.unwrap().is_some(), "outcomes stay stored");
    }

    #[tokio::test]
    async fn e5_blocks_that_were_rewritten_above_finalized_send_it_back_and_are_not_lost() {
        let mut world = verified(2).await;
        world.fork_l2(50);
        let (end, chain) = check_safe(&mut world).await;
        end.unwrap();
        assert_eq!(world.ledger.heads().safe(), Some(world.l2(48)));
        assert_eq!(chain.lost(), None);
    }

    #[tokio::test]
    async fn p2_a_chain_that_differs_below_finalized_halts_and_moves_nothing() {
        let mut world = verified(4).await;
        world.fork_l2(30);
        let before = (world.ledger.heads(), world.ledger.cursor());
        let (end, _) = check_safe(&mut world).await;
        assert_eq!(cause_of(end), Some(Cause::BelowFinalized(Final::Verified)));
        assert_eq!((world.ledger.heads(), world.ledger.cursor()), before);
    }

    #[tokio::test]
    async fn our_own_writes_are_no_growth() {
        let world = World::recorded().await;
        let mut chain = LocalChain::new(world.ports.l1.clone(), world.ports.l2.clone(), MINUTE);
        chain.observe(10.into(), Duration::ZERO);
        chain.wrote(20.into());
        assert_eq!(chain.observe(20.into(), MINUTE), HeadTrend::Stopped);
        assert_eq!(chain.observe(21.into(), MINUTE), HeadTrend::Alive);
        chain.wrote_unknown();
        assert!(matches!(chain.observe(30.into(), MINUTE), HeadTrend::Unknown(_)));
    }
}
