//! A parent whose state the node still has.
//!
//! A rewrite executes on the state of its parent. A node without archive mode keeps few of them after a restart
//! (protocol.md, section 7), and refuses a rewrite anywhere else. The way round: begin at the nearest older block whose
//! state the node has, and write the equal blocks above it again. The node is asked before anything is paused.

use std::sync::Arc;

use tracing::info;

use crate::decide::reconcile::{self, Again, Plan};
use crate::decide::stall::{Cause, StateMissing};
use crate::flow::{Decided, FlowError};
use crate::ports::L2Reader;
use crate::types::{L2Block, L2Number};

/// Blocks read at a time.
const READ_AT_ONCE: u64 = 200;

/// Finds the states that the node still has, and the blocks above them.
pub(crate) struct KeptStates {
    l2: Arc<dyn L2Reader>,
    switch_ms: u64,
    /// Blocks that are written again hold at most this many bytes.
    local_bytes: usize,
}

impl KeptStates {
    /// Of this node; blocks before `switch_ms` are never written.
    pub(crate) const fn new(l2: Arc<dyn L2Reader>, switch_ms: u64, local_bytes: usize) -> Self {
        Self { l2, switch_ms, local_bytes }
    }

    /// `plan`, on a parent whose state the node has: as it is if the node has the state of its own parent, or cannot
    /// say whether it has; else with the equal blocks from the nearest older one on. A passing fault of the node is an
    /// error. Nothing is looked for below `floor`, the finalized height, since the head falls while the blocks are
    /// written.
    pub(crate) async fn on_kept_state(&self, plan: Plan, floor: L2Number) -> Decided<Plan> {
        let skip = plan.skip.number;
        if !plan.rewrites() {
            return Ok(plan);
        }
        let kept = match self.l2.has_states(&[skip]).await {
            Err(error) if error.is_transient() => return Err(error.into()),
            // A node that cannot answer gets the plan as it is: it refuses the block if the state is missing.
            answer => answer.ok().flatten(),
        };
        if kept.as_deref() != Some(&[false]) {
            return Ok(plan);
        }
        let Some(from) = self.nearest_state(skip, floor).await? else {
            let older = reconcile::older_states(skip, floor).len();
            return Err(Cause::StateMissing(StateMissing::NoneKept { skip, older }).into());
        };
        let Some(blocks) = self.equal_blocks(from, skip).await? else {
            return Err(Cause::StateMissing(StateMissing::TooLarge { from, skip }).into());
        };
        match reconcile::write_again(plan, &blocks, self.switch_ms) {
            Ok(extended) => {
                info!(
                    from = from.get(),
                    skip = skip.get(),
                    "the parent's state is missing; equal blocks are written again"
                );
                Ok(extended)
            }
            Err(Again::Unlinked) => Err(FlowError::local_changed(format!("the blocks up to {skip} changed")).into()),
            Err(Again::BeforeSwitch(number)) => {
                Err(Cause::StateMissing(StateMissing::BeforeSwitch { skip, number }).into())
            }
        }
    }

    /// The nearest block below `skip`, and not below `floor`, whose state the node has.
    async fn nearest_state(&self, skip: L2Number, floor: L2Number) -> Result<Option<L2Number>, FlowError> {
        let older = reconcile::older_states(skip, floor);
        if older.is_empty() {
            return Ok(None);
        }
        let kept = self.l2.has_states(&older).await?.unwrap_or_default();
        Ok(older.into_iter().zip(kept).find(|(_, kept)| *kept).map(|(number, _)| number))
    }

    /// The local blocks above `from` up to `to`; none if they hold more than `local_bytes`.
    async fn equal_blocks(&self, from: L2Number, to: L2Number) -> Result<Option<Vec<L2Block>>, FlowError> {
        let mut blocks: Vec<L2Block> = Vec::new();
        let mut held = 0_usize;
        let mut next = from.plus(1);
        while next <= to {
            let end = next.plus(READ_AT_ONCE - 1).min(to);
            let piece = self.l2.blocks(next, end).await?;
            // Large blocks come fewer at a time.
            let read = piece.len() as u64;
            if read == 0 || read > end.above(next).saturating_add(1) {
                return Err(FlowError::local_changed(format!("{read} blocks were read from {next} to {end}")));
            }
            for block in piece {
                held = held.saturating_add(block.transactions.iter().map(bytes::Bytes::len).sum());
                blocks.push(block);
            }
            if held > self.local_bytes {
                return Ok(None);
            }
            next = next.plus(read);
        }
        Ok(Some(blocks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::testing::{World, cause_of};
    use crate::types::L2Ref;

    /// Block 61 is to be rewritten on a node without archive mode.
    async fn rewriting(restarted: bool) -> (World, Plan) {
        let world = World::recorded().await;
        world.node.node().moods.archive = false;
        if restarted {
            world.node.node().restart();
        }
        let blocks = vec![world.recorded.at(61).unwrap().as_new_block()];
        let replaces: Vec<L2Ref> = vec![world.l2(61)];
        let skip = world.l2(60);
        (world, Plan { skip, blocks, replaces, again: Vec::new() })
    }

    #[tokio::test]
    async fn equal_blocks_are_written_again_from_the_nearest_state_that_the_node_has() {
        let (world, plan) = rewriting(false).await;
        let states = KeptStates::new(world.ports.l2.clone(), 0, usize::MAX);
        assert_eq!(states.on_kept_state(plan.clone(), 0.into()).await.unwrap(), plan);
        let (world, plan) = rewriting(true).await;
        let states = KeptStates::new(world.ports.l2.clone(), 0, usize::MAX);
        let extended = states.on_kept_state(plan, 0.into()).await.unwrap();
        assert_eq!((extended.skip, extended.blocks.len(), extended.again.len()), (world.l2(0), 61, 60));
    }

    #[tokio::test]
    async fn nothing_final_and_nothing_larger_than_a_batch_is_written_again() {
        let (skip, from) = (60.into(), 0.into());
        let none_kept = StateMissing::NoneKept { skip, older: reconcile::older_states(skip, 50.into()).len() };
        let table = [(50, usize::MAX, none_kept), (0, 100, StateMissing::TooLarge { from, skip })];
        for (floor, bytes, why) in table {
            let (world, plan) = rewriting(true).await;
            let states = KeptStates::new(world.ports.l2.clone(), 0, bytes);
            let end = states.on_kept_state(plan, floor.into()).await;
            assert_eq!(cause_of(end), Some(Cause::StateMissing(why)));
        }
    }
}
