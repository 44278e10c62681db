//! Proving that `l2.eth` and `l2.engine` are one node, before anything is sent to the engine.

use crate::decide::one_node::{OneNode, one_node};
use crate::decide::stall::{Cause, Stall};
use crate::ports::{EngineView, L2Engine, L2Reader, PortResult};
use crate::types::{L2Number, L2Ref, L2Snapshot};

/// Both sides of the node, read together.
pub(crate) struct BothSides {
    /// What the reader showed.
    pub(crate) node: L2Snapshot,
    /// What the engine showed last.
    pub(crate) engine: EngineView,
    /// What the heads of both show.
    pub(crate) verdict: OneNode,
}

impl BothSides {
    /// Reads the reader's snapshot between two views of the engine; the second one only if it is needed. `number` is
    /// the block to look at on the engine.
    ///
    /// # Errors
    /// When one of them cannot be asked: that proves nothing, and nothing may be written or tagged on it.
    pub(crate) async fn read(engine: &dyn L2Engine, l2: &dyn L2Reader, number: L2Number) -> PortResult<Self> {
        let before = engine.view(number).await?;
        let node = l2.snapshot().await?;
        let reader = node.head;
        let after = if before.head == reader { before } else { engine.view(number).await? };
        Ok(Self { node, engine: after, verdict: one_node(before.head, reader, after.head) })
    }

    /// The stall that names both heads.
    pub(crate) fn stall(&self) -> Stall {
        two_nodes(self.node.head, self.engine.head)
    }
}

/// The stall for a reader that stands on `reader` and an engine that stands on `engine`.
pub(crate) const fn two_nodes(reader: L2Ref, engine: L2Ref) -> Stall {
    Stall::new(Cause::TwoNodes { reader, engine })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::testing::World;

    #[tokio::test]
    async fn m7_reader_and_engine_are_one_node_by_their_heads() {
        let (one, other) = (World::recorded().await, World::recorded().await);
        let both = BothSides::read(&one.node, &one.node, 12.into()).await.unwrap();
        assert_eq!((both.verdict, both.engine.at), (OneNode::Same, Some(one.l2(12))));
        other.node.node().truncate(70);
        let both = BothSides::read(&other.node, &one.node, 12.into()).await.unwrap();
        assert_eq!(both.verdict, OneNode::Two);
        let (reader, engine) = (one.l2(76), other.l2(70));
        assert_eq!(both.stall().cause, Cause::TwoNodes { reader, engine });
    }
}
