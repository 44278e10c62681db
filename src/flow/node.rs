//! The execution node as one poll knows it: its head, what it showed last, its tags, and its chain.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::flow::ledger::Ledger;
use crate::flow::local_chain::LocalChain;
use crate::flow::tags::NodeTags;
use crate::flow::{Decided, FlowError};
use crate::ports::{L1Chain, L2Engine, L2Reader};
use crate::types::{B256, L2Number, L2Ref, L2Snapshot};

/// Tags follow verified batches at most this often: setting them takes five requests, and a worker that catches up
/// verifies dozens of batches a second.
const TAG_EVERY: Duration = Duration::from_secs(1);

/// The node, its tags and its chain.
pub(crate) struct Node {
    /// Whether its head grows, and what it lost.
    pub(crate) local: LocalChain,
    /// Its tags.
    pub(crate) tags: NodeTags,
    /// The head by which a whole poll decides: the snapshot's at its beginning, then our own last write.
    head: L2Ref,
    /// Its last snapshot.
    shown: L2Snapshot,
    /// When its tags were brought to our heads last.
    tagged: Option<Instant>,
}

impl Node {
    /// Nothing shown yet. Without an `engine` no tag is set; `window` is the least time without growth that means
    /// *stopped*.
    pub(crate) fn new(
        l1: Arc<dyn L1Chain>,
        l2: Arc<dyn L2Reader>,
        engine: Option<Arc<dyn L2Engine>>,
        window: Duration,
    ) -> Self {
        let (local, tags) = (LocalChain::new(l1, l2.clone(), window), NodeTags::new(engine, l2));
        let head = L2Ref::default();
        Self {
            local,
            tags,
            head,
            shown: L2Snapshot {
                head,
                head_parent: B256::zero(),
                head_time: 0,
                safe: None,
                finalized: None,
                syncing: false,
            },
            tagged: None,
        }
    }

    /// A poll begins with this snapshot.
    pub(crate) fn poll_begins(&mut self, node: L2Snapshot) {
        self.tags.poll_begins(&node);
        (self.head, self.shown) = (node.head, node);
    }

    /// The head by which this poll decides.
    pub(crate) const fn head(&self) -> L2Ref {
        self.head
    }

    /// The height of [`Node::head`].
    pub(crate) const fn height(&self) -> L2Number {
        self.head.number
    }

    /// A write was answered, or read back: the head is `head`.
    pub(crate) const fn stands_on(&mut self, head: L2Ref) {
        self.head = head;
    }

    /// The head that it showed last.
    pub(crate) const fn shown_head(&self) -> L2Ref {
        self.shown.head
    }

    /// What it showed last.
    pub(crate) const fn shown(&self) -> &L2Snapshot {
        &self.shown
    }

    /// It shows the snapshot `node` in the middle of the poll.
    pub(crate) const fn shows(&mut self, node: L2Snapshot) {
        self.shown = node;
    }

    /// Checks that it still holds our safe block; if it does not, goes back to what it holds.
    pub(crate) async fn check_safe(&mut self, ledger: &mut Ledger) -> Decided<()> {
        self.local.check_safe(ledger, &self.shown).await
    }

    /// Brings its tags to our heads.
    pub(crate) async fn sync_tags(&mut self, ledger: &Ledger) -> Result<(), FlowError> {
        self.shown = self.tags.sync(ledger, self.local.lost().is_some(), &self.shown).await?;
        self.tagged = Some(Instant::now());
        Ok(())
    }

    /// The same after a batch was verified, unless that was done a moment ago: every poll ends with it anyway. After a
    /// batch that was `written` it is done at once, before the reactors are resumed. The snapshot from before our own
    /// writes is out of date.
    pub(crate) async fn tag_verified(&mut self, ledger: &Ledger, written: bool) -> Result<(), FlowError> {
        self.shown.head = self.head;
        if !written && self.tagged.is_some_and(|at| at.elapsed() < TAG_EVERY) {
            return Ok(());
        }
        self.sync_tags(ledger).await
    }

    /// Puts back a finalized tag that it moved by itself.
    pub(crate) async fn restore(&mut self, ledger: &mut Ledger) -> Result<(), FlowError> {
        self.shown = self.tags.restore(ledger, &self.shown).await?;
        Ok(())
    }

    /// L1 took away all that our safe head stands on: its safe tag goes down to the block below `first`.
    pub(crate) async fn abandon_safe(&mut self, ledger: &Ledger, first: Option<L2Number>) -> Result<(), FlowError> {
        self.shown = self.tags.abandon_safe(ledger, first, &self.shown).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::flow::testing::World;
    use crate::ports::Step;

    #[tokio::test]
    async fn a_poll_decides_by_the_head_that_it_began_with_and_then_by_our_own_writes() {
        let mut world = World::recorded().await;
        world.node.node().truncate(10);
        let mut node = world.poll_begins().await;
        for number in 11..=12 {
            world.node.node().import(world.recorded.at(number).unwrap());
        }
        assert_eq!(node.head(), world.l2(10));
        node.stands_on(world.l2(12));
        assert_eq!((node.head(), node.shown_head()), (world.l2(12), world.l2(10)));
        // The batch that was just written is verified: the earlier snapshot does not keep its tag back.
        world.store(Step { safe: Some(world.l2(12)), ..Step::default() }).await;
        node.tag_verified(&world.ledger, true).await.unwrap();
        assert_eq!(world.shown().await.safe, Some(world.l2(12)));
    }
}
