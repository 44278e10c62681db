//! The node's tags: what the node was told, what it showed, whose mark a tag is.
//!
//! Tags follow our heads, one head a call, safe before finalized, and are read back (P2). Right before and right after,
//! the block that safe stands on is looked at once more: no tag is set on a chain that went away meanwhile. A tag that
//! the node moved by itself on a write of ours is put back (E12); any other one is somebody else's.

use tracing::warn;

use crate::decide::heads::{self, Heads, TagCall};
use crate::decide::one_node::OneNode;
use crate::flow::FlowError;
use crate::flow::one_node::BothSides;
use crate::flow::worker::Worker;
use crate::ports::{EngineView, L2Engine};
use crate::types::{L2Number, L2Ref, L2Snapshot, OwnMark};

impl Worker {
    /// Brings the node's tags to our heads and reads them back. `node` is what the node showed last. The same heads are
    /// asserted once a poll: whoever else moves the tags is shown, not fought (E24).
    pub(crate) async fn sync_tags(&mut self, node: &L2Snapshot) -> Result<L2Snapshot, FlowError> {
        let Some(engine) = self.ports.engine.clone() else { return Ok(*node) };
        // After a failed step nobody knows whether memory or the database is right: no tag follows from either.
        if self.ledger.is_unsure() || self.asserted == Some(self.ledger.heads()) {
            return Ok(*node);
        }
        let mut plan = heads::tag_plan(&self.ledger.heads(), node, self.local.lost().is_some());
        self.status.safe_beyond_verified = plan.safe_beyond_verified;
        self.status.held_by_node_finalized = plan.held_by_node_finalized;
        if plan.safe_to_genesis {
            let genesis = self.ports.l2.header(0.into()).await?;
            plan.calls.extend(genesis.map(|h| TagCall::Safe(h.l2_ref())));
        }
        if plan.calls.is_empty() {
            return Ok(*node);
        }
        if !self.prove_ground(engine.as_ref(), node).await? {
            return Ok(*node);
        }
        self.asserted = Some(self.ledger.heads());
        for call in &plan.calls {
            match call {
                TagCall::Safe(to) => engine.set_tags(Some(to.hash), None).await?,
                TagCall::Finalized(to) => engine.set_tags(None, Some(to.hash)).await?,
            }
        }
        let mut after = self.look_again(engine.as_ref(), node).await?;
        if let Some(to) = heads::fallen_safe(&self.ledger.heads(), &after) {
            engine.set_tags(Some(to.hash), None).await?;
            after = self.ports.l2.snapshot().await?;
        }
        let held = plan.calls.iter().all(|call| match call {
            TagCall::Safe(to) => after.safe == Some(*to),
            TagCall::Finalized(to) => after.finalized == Some(*to),
        });
        self.confirmed = Some(Heads::stored(after.safe, after.finalized));
        if !held {
            self.status.tags_contended = true;
            warn!(
                code = "tags_contended",
                "the node's tags are not what was set: another writer moves them, or the node refuses in silence"
            );
        }
        self.node_finalized = after.finalized;
        if self.ledger.heads().safe().is_some_and(|safe| safe.number > after.head.number) {
            // What was read of it since may be blocks above its head (E19): the next poll finds the ground again.
            return Err(FlowError::local_changed("the node lost blocks under way"));
        }
        Ok(after)
    }

    /// The engine that is about to be told of our safe block must be the node that it was read from, and the block still
    /// be on its chain: it was read a while ago. Finalized is an ancestor of it. False where they are two nodes: then
    /// nothing is tagged, and the pull tells it. `node` is what the reader showed last.
    async fn prove_ground(&mut self, engine: &dyn L2Engine, node: &L2Snapshot) -> Result<bool, FlowError> {
        let number = self.ledger.heads().safe().map_or(L2Number::new(0), |safe| safe.number);
        let Some(view) = self.one_node_at(engine, node, number).await? else { return Ok(false) };
        match self.ledger.heads().safe().filter(|safe| !heads::stands_on(*safe, view.head.number, view.at)) {
            Some(safe) => Err(FlowError::local_changed(format!("block {safe} left the chain before it was tagged"))),
            None => Ok(true),
        }
    }

    /// The engine's view of the block at `number`, where the engine is the node that the reader shows; none where it is not
    /// or that cannot be told: then it is told nothing, and the pull says so. `node` is what the reader showed last.
    async fn one_node_at(
        &mut self,
        engine: &dyn L2Engine,
        node: &L2Snapshot,
        number: L2Number,
    ) -> Result<Option<EngineView>, FlowError> {
        let view = engine.view(number).await?;
        if view.head == node.head.l2_ref() {
            return Ok(Some(view));
        }
        let both = BothSides::read_behind(view, engine, self.ports.l2.as_ref(), number).await?;
        match both.verdict {
            OneNode::Same => Ok(Some(both.engine)),
            // A node that imports fast never shows the same head twice. What is tagged lies far below: it is enough that
            // both sides hold it.
            OneNode::Moving => {
                let reader = self.ports.l2.header(number).await?.map(|header| header.l2_ref());
                Ok(Some(both.engine).filter(|engine| reader.is_some() && reader == engine.at))
            }
            OneNode::Two => {
                self.two_nodes = Some(both.stall());
                Ok(None)
            }
        }
    }

    /// The node after its tags were set. `before` is how it was. A safe tag on a block that left the chain in between is
    /// taken back at once.
    async fn look_again(&mut self, engine: &dyn L2Engine, before: &L2Snapshot) -> Result<L2Snapshot, FlowError> {
        let Some(safe) = self.ledger.heads().safe() else { return Ok(self.ports.l2.snapshot().await?) };
        let (after, at) = self.ports.l2.snapshot_and(safe.number).await?;
        if after.head.number < safe.number || heads::stands_on(safe, after.head.number, at.map(|h| h.l2_ref())) {
            return Ok(after);
        }
        let left = || FlowError::local_changed(format!("block {safe} left the chain while it was tagged"));
        let ours = self.ledger.heads().finalized();
        for lower in heads::below_orphan(safe, [before.safe, ours], after.finalized) {
            if self.ports.l2.header(lower.number).await?.map(|h| h.l2_ref()) == Some(lower) {
                engine.set_tags(Some(lower.hash), None).await?;
                return Err(left());
            }
        }
        if after.finalized.is_none_or(|finalized| finalized.number.get() == 0)
            && let Some(genesis) = self.ports.l2.header(0.into()).await?
        {
            engine.set_tags(Some(genesis.hash), None).await?;
        }
        Err(left())
    }

    /// L1 took away everything that our safe head stands on. The node's safe tag, where it is ours, goes down to the block
    /// below `first`, the first block of what is gone (to the genesis block where that is not known), before the loss is
    /// stored: a crash in between is made good by the next pull. Gives the node as it stands afterwards.
    pub(crate) async fn abandon_safe(
        &mut self,
        first: Option<L2Number>,
        node: &L2Snapshot,
    ) -> Result<L2Snapshot, FlowError> {
        let Some(engine) = self.ports.engine.clone() else { return Ok(*node) };
        let anchor = first.map_or(L2Number::new(0), |first| first.minus(1));
        let Some(anchor) = self.ports.l2.header(anchor).await? else { return Ok(*node) };
        let Some(to) = heads::abandoned_safe(self.ledger.heads().safe(), node, anchor.l2_ref()) else {
            return Ok(*node);
        };
        if self.one_node_at(engine.as_ref(), node, to.number).await?.is_none() {
            return Ok(*node);
        }
        self.asserted = None;
        engine.set_tags(Some(to.hash), None).await?;
        let after = self.ports.l2.snapshot().await?;
        self.confirmed = Some(Heads::stored(after.safe, after.finalized));
        Ok(after)
    }

    /// The node's finalized tag from before a write that is about to be made: where it belongs should the node move it.
    pub(crate) fn finalized_before(&self, now: &L2Snapshot) -> Option<L2Ref> {
        match self.ledger.mark().filter(|mark| now.finalized == Some(mark.tag)) {
            Some(mark) => mark.before,
            None => now.finalized,
        }
    }

    /// Some nodes mark every block written by the engine safe and finalized, before anything of it was verified (E12).
    /// Such a mark is nobody's word and is put back to where the tag was before the write, now or after a crash. Gives
    /// the node as it stands afterwards.
    pub(crate) async fn unmark(&mut self, node: &L2Snapshot) -> Result<L2Snapshot, FlowError> {
        let Some(engine) = self.ports.engine.clone() else { return Ok(*node) };
        self.look_for_marks(node).await?;
        let Some(OwnMark { tag, before }) = self.ledger.mark() else { return Ok(*node) };
        if self.one_node_at(engine.as_ref(), node, tag.number).await?.is_none() {
            return Ok(*node);
        }
        warn!(code = "own_mark", %tag, "the execution node moved its finalized tag by itself on a write; putting it back");
        self.status.el_marks_finalized = true;
        let mut finalized = self.ledger.heads().finalized();
        if let Some(before) = before.filter(|b| finalized.is_none_or(|f| f.number < b.number)) {
            let there = self.ports.l2.header(before.number).await?.map(|h| h.l2_ref());
            finalized = there.filter(|there| *there == before).or(finalized);
        }
        if finalized.is_none() {
            finalized = self.ports.l2.header(0.into()).await?.map(|h| h.l2_ref());
        }
        let safe = higher(self.ledger.heads().safe(), finalized);
        // Neither goes up, and the node sets finalized first: in order at every moment.
        engine.set_tags(safe.map(|s| s.hash), finalized.map(|f| f.hash)).await?;
        let after = self.ports.l2.snapshot().await?;
        self.node_finalized = after.finalized;
        self.ledger.looked(None, None).await?;
        Ok(after)
    }

    /// Looks at what our writes did to the node's finalized tag, and stores it: once, for each of them. What happens to
    /// the tag later is somebody else's doing.
    async fn look_for_marks(&mut self, node: &L2Snapshot) -> Result<(), FlowError> {
        let mark =
            heads::own_mark(node.finalized, self.ledger.heads().finalized(), self.ledger.mark(), self.ledger.writes());
        let seen_to = heads::seen_to(self.ledger.writes(), node.head.number);
        if mark == self.ledger.mark() && seen_to.is_none() {
            return Ok(());
        }
        self.ledger.looked(seen_to, mark).await?;
        Ok(())
    }
}

fn higher(one: Option<L2Ref>, other: Option<L2Ref>) -> Option<L2Ref> {
    one.into_iter().chain(other).max_by_key(|block| block.number)
}
