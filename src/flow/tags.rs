//! The node's tags: what we set, what the node showed, and which tags it moved by itself.
//!
//! Tags follow our heads, one head a call, safe before finalized, and are read back (P2). Right before and right after,
//! the block that safe stands on is read once more: no tag is set on a chain that went away meanwhile. A tag that the
//! node moved by itself on a write of ours is put back (E12). A tag that moved in any other way was moved by another
//! writer or by a restart.

use std::sync::Arc;

use tracing::{debug, warn};

use crate::decide::heads::{self, Heads, TagCall, TagPlan};
use crate::decide::one_node::OneNode;
use crate::decide::stall::Stall;
use crate::flow::FlowError;
use crate::flow::ledger::Ledger;
use crate::flow::one_node::BothSides;
use crate::ports::{EngineView, L2Engine, L2Reader, PortResult};
use crate::types::{L2Number, L2Ref, L2Snapshot, SpuriousTag};

/// What the status shows of the tags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TagFacts {
    /// The node's safe tag.
    pub(crate) safe: Option<L2Ref>,
    /// The node's finalized tag.
    pub(crate) finalized: Option<L2Ref>,
    /// The tags were not what we set when they were read back, or moved without us since.
    pub(crate) contended: bool,
    /// The node's safe tag lies above what we verified.
    pub(crate) safe_beyond_verified: bool,
    /// Our tags wait: the node's finalized lies above what we verified.
    pub(crate) held_by_node_finalized: bool,
    /// The node marks blocks finalized by itself when they are written.
    pub(crate) marks_by_itself: bool,
}

/// The node's tags: what we set, and what it showed.
pub(crate) struct NodeTags {
    engine: Option<Arc<dyn L2Engine>>,
    l2: Arc<dyn L2Reader>,
    /// The heads that were set as tags in this poll.
    asserted: Option<Heads>,
    /// The tags as they were read back last.
    read_back: Option<Heads>,
    /// The node's safe tag right before our last write; none if this run has made no write.
    safe_before: Option<L2Ref>,
    /// The node's own finalized tag. It is kept above a fallen head too: the block that it stood on may come back, and
    /// no other.
    finalized: Option<L2Ref>,
    /// Seen in this poll when the tags were to be set: the reader and the engine are two nodes.
    two_nodes: Option<Stall>,
    facts: TagFacts,
}

impl NodeTags {
    /// Nothing set, nothing seen. Without an `engine` no tag is ever set.
    pub(crate) fn new(engine: Option<Arc<dyn L2Engine>>, l2: Arc<dyn L2Reader>) -> Self {
        let facts = TagFacts::default();
        Self { engine, l2, asserted: None, read_back: None, safe_before: None, finalized: None, two_nodes: None, facts }
    }

    /// What the status shows of the tags.
    pub(crate) const fn facts(&self) -> TagFacts {
        self.facts
    }

    /// The stall of a reader and an engine that were seen to be two nodes in this poll.
    pub(crate) const fn take_two_nodes(&mut self) -> Option<Stall> {
        self.two_nodes.take()
    }

    /// A poll begins, and the node shows `node`.
    pub(crate) fn poll_begins(&mut self, node: &L2Snapshot) {
        self.asserted = None;
        self.two_nodes = None;
        self.finalized = node.finalized;
        (self.facts.safe, self.facts.finalized) = (node.safe, node.finalized);
        // Moved without us since they were read back. A restarted node has its safe tag on finalized: that is no
        // contention.
        self.facts.contended = self.read_back.is_some_and(|c| c.safe() != node.safe && node.safe != node.finalized);
    }

    /// The node shows `node` in the middle of a poll: another writer may have moved finalized since (E14, E23).
    pub(crate) const fn saw(&mut self, node: &L2Snapshot) {
        self.finalized = node.finalized;
    }

    /// The height of the finalized head, ours or the node's, whichever is higher.
    pub(crate) fn finalized_height(&self, ledger: &Ledger) -> Option<L2Number> {
        let ours = ledger.heads().finalized().map(|f| f.number);
        ours.max(self.finalized.map(|f| f.number))
    }

    /// Whether `number` lies at or below the finalized head, ours or the node's.
    pub(crate) fn is_final(&self, ledger: &Ledger, number: L2Number) -> bool {
        self.finalized_height(ledger).is_some_and(|finalized| number <= finalized)
    }

    /// Takes the safe tag of a node that shows `now` down before blocks above `skip` are written, so that it never
    /// shows above the head or off the chain (E23).
    pub(crate) async fn lower(&mut self, ledger: &Ledger, now: &L2Snapshot, skip: L2Ref) -> PortResult<()> {
        let Some(engine) = self.engine.clone() else { return Ok(()) };
        let lower = heads::lowered_safe(&ledger.heads(), now, skip);
        // A mark of the node's own making that could not be put back yet is no place to go back to (L5).
        let spurious = heads::spurious_safe(now.safe, ledger.heads().safe(), ledger.intents()).is_some();
        self.safe_before = lower.or(if spurious { self.safe_before } else { now.safe });
        if let Some(lower) = lower {
            self.asserted = None;
            engine.set_tags(Some(lower.hash), None).await?;
        }
        Ok(())
    }

    /// Brings the node's tags to our heads and reads them back. `node` is what the node showed last, `lost` says that
    /// it lost verified blocks. The same heads are set once a poll: another writer that moves the tags is shown, not
    /// fought (E24).
    pub(crate) async fn sync(
        &mut self,
        ledger: &Ledger,
        lost: bool,
        node: &L2Snapshot,
    ) -> Result<L2Snapshot, FlowError> {
        let Some(engine) = self.engine.clone() else { return Ok(*node) };
        // After a failed step it is not known whether memory or the database is right: no tag follows from either.
        if ledger.is_unsure() || self.asserted == Some(ledger.heads()) {
            return Ok(*node);
        }
        let seen = heads::tag_plan(&ledger.heads(), node, lost);
        self.tells(&seen);
        if seen.calls.is_empty() && !seen.safe_to_genesis {
            return Ok(*node);
        }
        // Another writer may have moved the tags since they were shown: our tags are planned on their present state
        // (M9).
        let Some(now) = self.prove_ground(ledger, engine.as_ref()).await? else { return Ok(*node) };
        self.finalized = now.finalized;
        let mut plan = heads::tag_plan(&ledger.heads(), &now, lost);
        self.tells(&plan);
        if plan.safe_to_genesis {
            let genesis = self.l2.header(0.into()).await?;
            plan.calls.extend(genesis.map(|h| TagCall::Safe(h.l2_ref())));
        }
        if plan.calls.is_empty() {
            return Ok(now);
        }
        self.asserted = Some(ledger.heads());
        for call in &plan.calls {
            match call {
                TagCall::Safe(to) => engine.set_tags(Some(to.hash), None).await?,
                TagCall::Finalized(to) => engine.set_tags(None, Some(to.hash)).await?,
            }
        }
        let mut after = self.look_again(ledger, engine.as_ref(), &now).await?;
        if let Some(to) = heads::fallen_safe(&ledger.heads(), &after) {
            engine.set_tags(Some(to.hash), None).await?;
            after = self.l2.snapshot().await?;
        }
        let held = plan.calls.iter().all(|call| match call {
            TagCall::Safe(to) => after.safe == Some(*to),
            TagCall::Finalized(to) => after.finalized == Some(*to),
        });
        self.read_back = Some(Heads::stored(after.safe, after.finalized));
        if !held {
            self.facts.contended = true;
            warn!(
                code = "tags_contended",
                "safe or finalized differ from what was set: another writer moved them, or the node ignored the call"
            );
        }
        self.finalized = after.finalized;
        if ledger.heads().safe().is_some_and(|safe| safe.number > after.head.number) {
            // What was read from it since may be blocks above its head (E19): the next poll looks again for what it
            // still holds.
            return Err(FlowError::local_changed("the node lost blocks under way"));
        }
        Ok(after)
    }

    const fn tells(&mut self, plan: &TagPlan) {
        self.facts.safe_beyond_verified = plan.safe_beyond_verified;
        self.facts.held_by_node_finalized = plan.held_by_node_finalized;
    }

    /// Our safe block is about to be set as a tag. The engine must be the node that the block was read from, and the
    /// block must still be on its chain: it was read a while ago. Finalized is an ancestor of it. Gives the node as it
    /// is now; none if [`Self::one_node_at`] gives none: then nothing is tagged.
    async fn prove_ground(&mut self, ledger: &Ledger, engine: &dyn L2Engine) -> Result<Option<L2Snapshot>, FlowError> {
        let number = ledger.heads().safe().map_or(L2Number::new(0), |safe| safe.number);
        let Some((view, now)) = self.one_node_at(engine, number).await? else { return Ok(None) };
        match ledger.heads().safe().filter(|safe| !heads::stands_on(*safe, view.head.number, view.at)) {
            Some(safe) => Err(FlowError::local_changed(format!("block {safe} left the chain before it was tagged"))),
            None => Ok(Some(now)),
        }
    }

    /// The engine's view of the block at `number`, and the node as the reader shows it now, if both are one node. None
    /// if they are two nodes, which the poll reports, or if that is not clear yet: then no tag is set.
    async fn one_node_at(
        &mut self,
        engine: &dyn L2Engine,
        number: L2Number,
    ) -> Result<Option<(EngineView, L2Snapshot)>, FlowError> {
        let both = BothSides::read(engine, self.l2.as_ref(), number).await?;
        match both.verdict {
            OneNode::Same => Ok(Some((both.engine, both.node))),
            // A node that imports fast never shows the same head twice. The tagged block lies far below: it is enough
            // that both sides hold it.
            OneNode::Moving => {
                let reader = self.l2.header(number).await?.map(|header| header.l2_ref());
                let holds = reader.is_some() && reader == both.engine.at;
                Ok(holds.then_some((both.engine, both.node)))
            }
            OneNode::Two => {
                self.two_nodes = Some(both.stall());
                Ok(None)
            }
        }
    }

    /// The node after its tags were set. `before` is how it was. A safe tag on a block that left the chain in between
    /// is taken back at once.
    async fn look_again(
        &self,
        ledger: &Ledger,
        engine: &dyn L2Engine,
        before: &L2Snapshot,
    ) -> Result<L2Snapshot, FlowError> {
        let Some(safe) = ledger.heads().safe() else { return Ok(self.l2.snapshot().await?) };
        let (after, at) = self.l2.snapshot_and(safe.number).await?;
        if after.head.number < safe.number || heads::stands_on(safe, after.head.number, at.map(|h| h.l2_ref())) {
            return Ok(after);
        }
        let left = || FlowError::local_changed(format!("block {safe} left the chain while it was tagged"));
        let ours = ledger.heads().finalized();
        for lower in heads::below_orphan(safe, [before.safe, ours], after.finalized) {
            if self.l2.header(lower.number).await?.map(|h| h.l2_ref()) == Some(lower) {
                engine.set_tags(Some(lower.hash), None).await?;
                return Err(left());
            }
        }
        if after.finalized.is_none_or(|finalized| finalized.number.get() == 0)
            && let Some(genesis) = self.l2.header(0.into()).await?
        {
            engine.set_tags(Some(genesis.hash), None).await?;
        }
        Err(left())
    }

    /// L1 took away everything that our safe head stands on. The node's safe tag, if it is ours, goes down to the block
    /// below `first`, the first block that is gone (to the genesis block if `first` is not known). This happens before
    /// the loss is stored: after a crash in between the next poll repairs it. Gives the node as it stands afterwards.
    pub(crate) async fn abandon_safe(
        &mut self,
        ledger: &Ledger,
        first: Option<L2Number>,
        node: &L2Snapshot,
    ) -> Result<L2Snapshot, FlowError> {
        let Some(engine) = self.engine.clone() else { return Ok(*node) };
        let anchor = first.map_or(L2Number::new(0), |first| first.minus(1));
        let Some(anchor) = self.l2.header(anchor).await? else { return Ok(*node) };
        let abandoned = |node: &L2Snapshot| heads::abandoned_safe(ledger.heads().safe(), node, anchor.l2_ref());
        let Some(to) = abandoned(node) else { return Ok(*node) };
        let Some((_, now)) = self.one_node_at(engine.as_ref(), to.number).await? else { return Ok(*node) };
        let Some(to) = abandoned(&now) else { return Ok(now) };
        self.asserted = None;
        engine.set_tags(Some(to.hash), None).await?;
        let after = self.l2.snapshot().await?;
        self.read_back = Some(Heads::stored(after.safe, after.finalized));
        Ok(after)
    }

    /// The node's finalized tag before a write that is about to be made: it is put back there if the node moves it.
    pub(crate) fn finalized_before(ledger: &Ledger, now: &L2Snapshot) -> Option<L2Ref> {
        match ledger.spurious().filter(|mark| now.finalized == Some(mark.tag)) {
            Some(mark) => mark.before,
            None => now.finalized,
        }
    }

    /// Some nodes mark every block written by the engine safe, or safe and finalized, before anything of it was
    /// verified (E12, L5). Such a mark verifies nothing. The tag is put back to its block before the write, now or
    /// after a crash. Gives the node as it stands afterwards.
    pub(crate) async fn restore(&mut self, ledger: &mut Ledger, node: &L2Snapshot) -> Result<L2Snapshot, FlowError> {
        let Some(engine) = self.engine.clone() else { return Ok(*node) };
        look_for_marks(ledger, node).await?;
        let node = self.restore_finalized(engine.as_ref(), ledger, node).await?;
        self.restore_safe(engine.as_ref(), ledger, &node).await
    }

    async fn restore_safe(
        &mut self,
        engine: &dyn L2Engine,
        ledger: &Ledger,
        node: &L2Snapshot,
    ) -> Result<L2Snapshot, FlowError> {
        let mark = |node: &L2Snapshot| heads::spurious_safe(node.safe, ledger.heads().safe(), ledger.intents());
        let Some(tag) = mark(node) else { return Ok(*node) };
        let Some((_, now)) = self.one_node_at(engine, tag.number).await? else { return Ok(*node) };
        if now.safe != Some(tag) {
            return Ok(now);
        }
        // The tag that shows as moved without us was moved by the node on our own write.
        self.facts.contended = false;
        let mut back = None;
        for to in heads::below_orphan(tag, [self.safe_before, ledger.heads().safe()], now.finalized) {
            if self.l2.header(to.number).await?.map(|h| h.l2_ref()) == Some(to) {
                back = Some(to);
                break;
            }
        }
        if back.is_none() && now.finalized.is_none_or(|finalized| finalized.number.get() == 0) {
            back = self.l2.header(0.into()).await?.map(|h| h.l2_ref());
        }
        let Some(back) = back else { return Ok(now) };
        debug!(%tag, %back, "the execution node marked what it wrote safe; putting the tag back");
        engine.set_tags(Some(back.hash), None).await?;
        let after = self.l2.snapshot().await?;
        self.finalized = after.finalized;
        Ok(after)
    }

    async fn restore_finalized(
        &mut self,
        engine: &dyn L2Engine,
        ledger: &mut Ledger,
        node: &L2Snapshot,
    ) -> Result<L2Snapshot, FlowError> {
        let Some(SpuriousTag { tag, before }) = ledger.spurious() else { return Ok(*node) };
        let Some((_, now)) = self.one_node_at(engine, tag.number).await? else { return Ok(*node) };
        // Another writer moved it since: the next look shows whether it is still a mark.
        if now.finalized != Some(tag) {
            return Ok(now);
        }
        warn!(code = "own_mark", %tag, "the execution node moved its finalized tag by itself on a write; restoring it");
        self.facts.marks_by_itself = true;
        let mut finalized = ledger.heads().finalized();
        if let Some(before) = before.filter(|b| finalized.is_none_or(|f| f.number < b.number)) {
            let there = self.l2.header(before.number).await?.map(|h| h.l2_ref());
            finalized = there.filter(|there| *there == before).or(finalized);
        }
        if finalized.is_none() {
            finalized = self.l2.header(0.into()).await?.map(|h| h.l2_ref());
        }
        let safe = higher(ledger.heads().safe(), finalized);
        // Neither tag goes up. One tag a call, finalized first: so the two are in order at every moment, whichever a
        // node sets first.
        engine.set_tags(None, finalized.map(|f| f.hash)).await?;
        if safe.is_some() {
            engine.set_tags(safe.map(|s| s.hash), None).await?;
        }
        let after = self.l2.snapshot().await?;
        self.finalized = after.finalized;
        ledger.looked(None, None).await?;
        Ok(after)
    }
}

/// Looks at what our writes did to the node's finalized tag, and stores it, once for each write. Later moves of the tag
/// come from another writer.
async fn look_for_marks(ledger: &mut Ledger, node: &L2Snapshot) -> Result<(), FlowError> {
    let mark = heads::spurious_tag(node.finalized, ledger.heads().finalized(), ledger.spurious(), ledger.intents());
    let seen_to = heads::seen_to(ledger.intents(), node.head.number);
    if mark == ledger.spurious() && seen_to.is_none() {
        return Ok(());
    }
    ledger.looked(seen_to, mark).await?;
    Ok(())
}

fn higher(one: Option<L2Ref>, other: Option<L2Ref>) -> Option<L2Ref> {
    one.into_iter().chain(other).max_by_key(|block| block.number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devnet::node::Moment;
    use crate::flow::testing::World;
    use crate::ports::Step;
    use crate::types::{B256, Case, WriteIntent};

    async fn with_heads(safe: u64, finalized: Option<u64>) -> (World, NodeTags) {
        let mut world = World::recorded().await;
        let (safe, finalized) = (Some(world.l2(safe)), finalized.map(|number| world.l2(number)));
        world.store(Step { safe, finalized, ..Step::default() }).await;
        let mut tags = NodeTags::new(world.ports.engine.clone(), world.ports.l2.clone());
        tags.poll_begins(&world.shown().await);
        (world, tags)
    }

    #[tokio::test]
    async fn p2_e24_safe_is_set_before_finalized_and_the_same_heads_once_a_poll() {
        let (world, mut tags) = with_heads(24, Some(12)).await;
        let after = tags.sync(&world.ledger, false, &world.shown().await).await.unwrap();
        assert_eq!((after.safe, after.finalized), (Some(world.l2(24)), Some(world.l2(12))));
        let told: Vec<_> = world.node.node().tag_calls().iter().map(|call| (call.safe, call.finalized)).collect();
        assert_eq!(told, [(world.l2(24).hash, B256::zero()), (B256::zero(), world.l2(12).hash)]);
        assert!(world.node.node().moments().iter().all(Moment::is_ordered));
        // Another writer moves safe: it is not fought in this poll, and shown and put right in the next one.
        world.node.node().set_block_tags(world.l2(36).hash, B256::zero()).unwrap();
        let moved = world.shown().await;
        assert_eq!(tags.sync(&world.ledger, false, &moved).await.unwrap().safe, Some(world.l2(36)));
        tags.poll_begins(&moved);
        assert!(tags.facts().contended);
        assert_eq!(tags.sync(&world.ledger, false, &moved).await.unwrap().safe, Some(world.l2(24)));
    }

    #[tokio::test]
    async fn e12_a_finalized_tag_that_the_node_moved_on_our_write_goes_back_to_where_it_was() {
        let (mut world, mut tags) = with_heads(24, None).await;
        let write = WriteIntent {
            number: 25.into(),
            batch: 3.into(),
            batch_hash: B256::repeat_byte(3),
            case: Case::FillGap,
            old_hash: None,
            new_hash: Some(world.l2(25).hash),
            finalized: Some(world.l2(12)),
            seen: false,
        };
        world.ledger.begin_writes(&[write]).await.unwrap();
        world.node.node().set_block_tags(world.l2(25).hash, world.l2(25).hash).unwrap();
        let node = world.shown().await;
        let after = tags.restore(&mut world.ledger, &node).await.unwrap();
        assert_eq!((after.safe, after.finalized), (Some(world.l2(24)), Some(world.l2(12))));
        assert!(tags.facts().marks_by_itself);
        assert_eq!(world.ledger.spurious(), None);
    }

    #[tokio::test]
    async fn l5_p1_a_mark_that_was_not_put_back_is_no_place_to_go_back_to() {
        let (mut world, mut tags) = with_heads(24, None).await;
        let write = |number: u64, world: &World| WriteIntent {
            number: number.into(),
            batch: 3.into(),
            batch_hash: B256::repeat_byte(3),
            case: Case::FillGap,
            old_hash: None,
            new_hash: Some(world.l2(number).hash),
            finalized: None,
            seen: false,
        };
        world.node.node().set_block_tags(world.l2(24).hash, B256::zero()).unwrap();
        // The node marks 25 safe, which is not put back; the next write begins, and the node marks 26 safe.
        let (first, second) = (write(25, &world), write(26, &world));
        world.ledger.begin_writes(&[first]).await.unwrap();
        world.node.node().set_block_tags(world.l2(25).hash, B256::zero()).unwrap();
        tags.lower(&world.ledger, &world.shown().await, world.l2(25)).await.unwrap();
        world.ledger.begin_writes(&[second]).await.unwrap();
        world.node.node().set_block_tags(world.l2(26).hash, B256::zero()).unwrap();
        let node = world.shown().await;
        assert_eq!(tags.restore(&mut world.ledger, &node).await.unwrap().safe, Some(world.l2(24)));
    }

    #[tokio::test]
    async fn m7_an_engine_that_is_another_node_is_told_nothing() {
        let (world, _) = with_heads(24, Some(12)).await;
        let other = World::recorded().await;
        other.node.node().truncate(30);
        let mut tags = NodeTags::new(other.ports.engine.clone(), world.ports.l2.clone());
        let node = world.shown().await;
        tags.poll_begins(&node);
        assert_eq!(tags.sync(&world.ledger, false, &node).await.unwrap(), node);
        assert!(other.node.node().tag_calls().is_empty());
        assert!(tags.take_two_nodes().is_some());
    }

    #[tokio::test]
    async fn e23_safe_goes_down_before_blocks_below_it_are_written() {
        let (world, mut tags) = with_heads(24, None).await;
        world.node.node().set_block_tags(world.l2(36).hash, B256::zero()).unwrap();
        tags.lower(&world.ledger, &world.shown().await, world.l2(30)).await.unwrap();
        assert_eq!(world.shown().await.safe, Some(world.l2(24)));
        tags.lower(&world.ledger, &world.shown().await, world.l2(20)).await.unwrap();
        assert_eq!(world.shown().await.safe, Some(world.l2(20)));
    }
}
