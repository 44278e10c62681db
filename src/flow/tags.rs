//! The node's tags: what the node was told, what it showed, whose mark a tag is.
//!
//! Tags follow our heads, one head a call, safe before finalized, and are read back (P2). A tag that the node moved by
//! itself on a write of ours is put back (E12).

use tracing::warn;

use crate::decide::heads::{self, Heads, TagCall};
use crate::flow::FlowError;
use crate::flow::worker::Worker;
use crate::types::{L2Number, L2Ref, L2Snapshot, OpenWrite};

impl Worker {
    /// Brings the node's tags to our heads and reads them back. `node` is what the node showed last. The same heads are
    /// asserted once a poll: whoever else moves the tags is shown, not fought (E24).
    pub(crate) async fn sync_tags(&mut self, node: &L2Snapshot) -> Result<L2Snapshot, FlowError> {
        let Some(engine) = self.ports.engine.clone() else { return Ok(*node) };
        if self.asserted == Some(self.heads) {
            return Ok(*node);
        }
        let mut plan = heads::tag_plan(&self.heads, node, self.lost.is_some());
        self.status.safe_beyond_verified = plan.safe_beyond_verified;
        self.status.held_by_node_finalized = plan.held_by_node_finalized;
        if plan.safe_to_genesis {
            let genesis = self.ports.l2.header(0.into()).await?;
            plan.calls.extend(genesis.map(|h| TagCall::Safe(h.l2_ref())));
        }
        if plan.calls.is_empty() {
            return Ok(*node);
        }
        self.asserted = Some(self.heads);
        for call in &plan.calls {
            match call {
                TagCall::Safe(to) => engine.set_tags(Some(to.hash), None).await?,
                TagCall::Finalized(to) => engine.set_tags(None, Some(to.hash)).await?,
            }
        }
        let after = self.ports.l2.snapshot().await?;
        let held = plan.calls.iter().all(|call| match call {
            TagCall::Safe(to) => after.safe == Some(*to),
            TagCall::Finalized(to) => after.finalized == Some(*to),
        });
        self.confirmed = Some(Heads::stored(after.safe, after.finalized));
        if !held {
            self.status.tags_contended = true;
            warn!("the node's tags are not what was set: another writer moves them, or the node refuses in silence");
        }
        self.node_finalized = after.finalized;
        if self.heads.safe().is_some_and(|safe| safe.number > after.head.number) {
            // What was read of it since may be blocks above its head (E19): the next poll finds the ground again.
            return Err(FlowError::local_changed("the node lost blocks under way"));
        }
        Ok(after)
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
        let Some(to) = heads::abandoned_safe(self.heads.safe(), node, anchor.l2_ref()) else { return Ok(*node) };
        self.asserted = None;
        engine.set_tags(Some(to.hash), None).await?;
        let after = self.ports.l2.snapshot().await?;
        self.confirmed = Some(Heads::stored(after.safe, after.finalized));
        Ok(after)
    }

    /// Some nodes mark every block written by the engine safe and finalized, before anything of it was verified (E12).
    /// Such a mark is nobody's word and is put back to where the tag was before the write, then or after a crash. Gives
    /// the node as it stands afterwards.
    pub(crate) async fn unmark(&mut self, node: &L2Snapshot) -> Result<L2Snapshot, FlowError> {
        let Some(engine) = self.ports.engine.clone() else { return Ok(*node) };
        self.mark = self.mark_of(node).await?;
        let Some(Mark { tag, before }) = self.mark else { return Ok(*node) };
        warn!(%tag, "the execution node moved its finalized tag by itself on a write; putting it back");
        self.status.el_marks_finalized = true;
        let genesis = self.ports.l2.header(0.into()).await?.map(|h| h.l2_ref());
        let finalized = higher(self.heads.finalized(), before).or(genesis);
        let safe = higher(self.heads.safe(), finalized);
        // Neither goes up, and the node sets finalized first: in order at every moment.
        engine.set_tags(safe.map(|s| s.hash), finalized.map(|f| f.hash)).await?;
        let after = self.ports.l2.snapshot().await?;
        self.node_finalized = after.finalized;
        self.mark = None;
        Ok(after)
    }

    /// Whether the node's finalized tag is a mark of its own: above all that we verified or finalized and above where
    /// it was before the write, on a block that we wrote or had begun to write.
    async fn mark_of(&self, node: &L2Snapshot) -> Result<Option<Mark>, FlowError> {
        let ours = self.heads.finalized();
        let Some(tag) = node.finalized.filter(|tag| ours.is_none_or(|f| f.number < tag.number)) else {
            return Ok(None);
        };
        if let Some(known) = self.mark.filter(|known| known.tag == tag) {
            return Ok(Some(known));
        }
        let before = self.open_writes.iter().filter_map(|w| w.finalized).max_by_key(|f| f.number);
        let word = higher(self.heads.safe(), before);
        if word.is_some_and(|word| tag.number <= word.number) {
            return Ok(None);
        }
        let found = Some(Mark { tag, before });
        let begun = |w: &OpenWrite| w.number == tag.number && w.new_hash.is_none_or(|hash| hash == tag.hash);
        if self.open_writes.iter().any(begun) {
            return Ok(found);
        }
        let journal = self.ports.progress.journal_tail(JOURNAL_LOOK).await?;
        Ok(found.filter(|_| journal.iter().any(|entry| entry.new_hash == tag.hash)))
    }
}

/// A finalized tag that the node moved by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    tag: L2Ref,
    /// Where it was before.
    pub(crate) before: Option<L2Ref>,
}

fn higher(one: Option<L2Ref>, other: Option<L2Ref>) -> Option<L2Ref> {
    one.into_iter().chain(other).max_by_key(|block| block.number)
}

/// How far back in the journal a block that the node marked is looked for: more than one batch's blocks.
const JOURNAL_LOOK: u32 = 2000;
