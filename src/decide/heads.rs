//! May this head move, and which tags does the node lack?
//!
//! The one door for our heads. `finalized ≤ safe` holds in every value of [`Heads`] unless the node itself lost blocks
//! (P2). Finalized never moves back or sideways.

use crate::types::{L2Number, L2Ref, L2Snapshot, SpuriousTag, WriteIntent};

/// Our verified heads. What the node's tags say is never adopted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heads {
    safe: Option<L2Ref>,
    finalized: Option<L2Ref>,
}

/// The answer to a request to move a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Allowed: these are the heads afterwards.
    To(Heads),
    /// The head is there already.
    Unchanged,
    /// Not above the present head.
    Backwards,
    /// Another block at the finalized head's height.
    BelowFinalized,
    /// Finalized above safe.
    AboveSafe,
}

impl Heads {
    /// Heads as stored. A finalized head above safe means that the node lost blocks.
    pub const fn stored(safe: Option<L2Ref>, finalized: Option<L2Ref>) -> Self {
        Self { safe, finalized }
    }

    /// The safe head.
    pub const fn safe(&self) -> Option<L2Ref> {
        self.safe
    }

    /// The finalized head.
    pub const fn finalized(&self) -> Option<L2Ref> {
        self.finalized
    }

    /// Moves safe to the last block of a verified batch. After a node lost blocks, safe may move forward below
    /// finalized. At finalized's own height the hash must be the same.
    pub fn advance_safe(&self, to: L2Ref) -> Move {
        if self.safe == Some(to) {
            return Move::Unchanged;
        }
        if self.finalized.is_some_and(|f| to.number == f.number && to.hash != f.hash) {
            return Move::BelowFinalized;
        }
        if self.safe.is_some_and(|safe| to.number <= safe.number) {
            return Move::Backwards;
        }
        Move::To(Self { safe: Some(to), finalized: self.finalized })
    }

    /// Moves safe back to `to` (to nothing if none), because L1 took away its batch. Safe goes no lower than finalized:
    /// L1 may revert what was finalized as committed (M3), and those blocks are verified all the same. Safe never goes
    /// up.
    #[must_use]
    pub fn rewind_safe(&self, to: Option<L2Ref>) -> Self {
        let to = [to, self.finalized].into_iter().flatten().max_by_key(|head| head.number);
        let goes_down = self.safe.is_some_and(|safe| to.is_none_or(|to| to.number < safe.number));
        if goes_down { Self { safe: to, finalized: self.finalized } } else { *self }
    }

    /// Moves safe up to finalized, because the node holds that block (again). The block was verified once; it does not
    /// matter whether its batch stands on L1.
    #[must_use]
    pub fn lift_safe(&self) -> Self {
        let Some(finalized) = self.finalized else { return *self };
        let below = self.safe.is_none_or(|safe| safe.number < finalized.number);
        if below { Self { safe: Some(finalized), finalized: self.finalized } } else { *self }
    }

    /// Moves safe down to what a node that lost blocks still holds. Finalized does not move.
    #[must_use]
    pub const fn node_lost(&self, to: Option<L2Ref>) -> Self {
        Self { safe: to, finalized: self.finalized }
    }

    /// Moves finalized to `to`: never back, never sideways, never above safe.
    pub fn advance_finalized(&self, to: L2Ref) -> Move {
        if self.finalized == Some(to) {
            return Move::Unchanged;
        }
        if self.finalized.is_some_and(|f| to.number <= f.number) {
            return Move::Backwards;
        }
        if self.safe.is_none_or(|safe| to.number > safe.number) {
            return Move::AboveSafe;
        }
        Move::To(Self { safe: self.safe, finalized: Some(to) })
    }
}

/// One call to the node. Two heads never move in one call: the real node sets finalized first, so a reader would see
/// finalized above safe for a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagCall {
    /// Set `safe` alone.
    Safe(L2Ref),
    /// Set `finalized` alone.
    Finalized(L2Ref),
}

/// What the node's tags need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TagPlan {
    /// Calls, in order.
    pub calls: Vec<TagCall>,
    /// The node's safe lies above what we verified: another writer or the node itself set it, or L1 took away what our
    /// safe stood on.
    pub safe_beyond_verified: bool,
    /// The node's safe lies above its head, and no verified block is left. Safe goes to block 0, the one block that is
    /// beyond doubt.
    pub safe_to_genesis: bool,
    /// The node's finalized lies above our safe: our tags wait until we have verified that far (H6).
    pub held_by_node_finalized: bool,
}

/// Compares our heads with the node's tags. `lost` says that the node itself lost blocks; so does a finalized head of
/// ours above our safe. Only such a loss allows a safe tag below the node's finalized tag.
pub fn tag_plan(ours: &Heads, node: &L2Snapshot, lost: bool) -> TagPlan {
    let mut plan = TagPlan::default();
    let Some(safe) = ours.safe else {
        plan.safe_to_genesis = node.safe.is_some_and(|tag| tag.number > node.head.number);
        return plan;
    };
    if safe.number > node.head.number {
        return plan;
    }
    plan.safe_beyond_verified = node.safe.is_some_and(|tag| tag.number > safe.number);
    let foreign_final = node.finalized.is_some_and(|tag| tag.number > safe.number);
    let lost = lost || ours.finalized.is_some_and(|f| f.number > safe.number);
    if foreign_final && !lost {
        plan.held_by_node_finalized = true;
        return plan;
    }
    if node.safe != Some(safe) {
        plan.calls.push(TagCall::Safe(safe));
    }
    let Some(finalized) = ours.finalized else { return plan };
    if finalized.number > safe.number {
        return plan;
    }
    let behind = node.finalized.is_none_or(|tag| tag.number < finalized.number);
    let sideways = node.finalized.is_some_and(|tag| tag.number == finalized.number && tag.hash != finalized.hash);
    if behind || sideways {
        plan.calls.push(TagCall::Finalized(finalized));
    }
    plan
}

/// Where the node's safe tag goes before blocks above `skip` are written, so that no reader ever sees it above the head
/// or off the chain (E23). None if it is low enough already.
///
/// It goes to our own safe head if that fits, else to `skip`, which is lower than what the node claims. Our safe does
/// not fit if it lies below a finalized tag that is not ours (H6).
pub fn lowered_safe(ours: &Heads, node: &L2Snapshot, skip: L2Ref) -> Option<L2Ref> {
    let tag = node.safe?;
    if tag.number <= skip.number {
        return None;
    }
    let fits = |s: &L2Ref| s.number <= skip.number && node.finalized.is_none_or(|f| f.number <= s.number);
    Some(ours.safe.filter(fits).unwrap_or(skip))
}

/// Where the node's safe tag goes after L1 took away all that our safe head `was` stands on: down to `anchor`, the
/// block below it. None if the tag is not the one that we set, if it is low enough, or if the node's finalized tag lies
/// above the anchor.
pub fn abandoned_safe(was: Option<L2Ref>, node: &L2Snapshot, anchor: L2Ref) -> Option<L2Ref> {
    let tag = node.safe.filter(|tag| was == Some(*tag))?;
    let fits = anchor.number < tag.number && node.finalized.is_none_or(|f| f.number <= anchor.number);
    fits.then_some(anchor)
}

/// Where safe goes at once if the node was killed while its tags were set. Its safe tag fell to what it had finalized
/// before, and so below what we set as finalized since (P2). Safe goes to our own safe head if the node still holds it,
/// else to finalized. `shown` is the node right after the tags were set.
pub fn fallen_safe(ours: &Heads, shown: &L2Snapshot) -> Option<L2Ref> {
    let (safe, finalized) = (ours.safe?, ours.finalized?);
    let fell = shown.finalized == Some(finalized) && shown.safe.is_none_or(|tag| tag.number < finalized.number);
    if !fell || safe.number < finalized.number {
        return None;
    }
    [safe, finalized].into_iter().find(|block| block.number <= shown.head.number)
}

/// Where the node's safe tag may go if its block `orphan` left the chain meanwhile, best first: to one of `known` or to
/// the node's own `finalized`, and never below that (P2).
pub fn below_orphan(orphan: L2Ref, known: [Option<L2Ref>; 2], finalized: Option<L2Ref>) -> Vec<L2Ref> {
    let floor = finalized.map_or(L2Number::new(0), |f| f.number);
    let fits = |tag: &L2Ref| tag.number < orphan.number && tag.number >= floor;
    known.into_iter().chain([finalized]).flatten().filter(fits).collect()
}

/// Whether `block` is on a chain with its head at height `head` and the block `there` at the number of `block`. The
/// height counts because a node that was killed still answers for blocks above its fallen head.
pub fn stands_on(block: L2Ref, head: L2Number, there: Option<L2Ref>) -> bool {
    block.number <= head && there == Some(block)
}

/// Whether the node's finalized `tag` is a mark that the node made by itself, which is put back, or a tag that another
/// writer set.
///
/// A mark is a tag that moved with a write of ours: up, onto a block of that very write, between the last read before
/// the write and the first read after it. `writes` are the open writes; a write after which the node was read (`seen`)
/// explains nothing any more. So a tag that another writer sets later on a block that we wrote is never lowered (H6).
/// `known` is a mark that was found and is not put back yet. At or below `ours`, our own finalized head, no tag is put
/// back.
pub fn spurious_tag(
    tag: Option<L2Ref>,
    ours: Option<L2Ref>,
    known: Option<SpuriousTag>,
    writes: &[WriteIntent],
) -> Option<SpuriousTag> {
    let tag = tag.filter(|tag| ours.is_none_or(|f| f.number < tag.number))?;
    if let Some(known) = known.filter(|known| known.tag == tag) {
        return Some(known);
    }
    // If the written hash is not known, any block counts except the one that was there before.
    let is_made_by = |w: &WriteIntent| w.new_hash.map_or(w.old_hash != Some(tag.hash), |made| made == tag.hash);
    let write = writes.iter().find(|w| !w.seen && w.number == tag.number && is_made_by(w))?;
    let moved_up = write.finalized.is_none_or(|before| before.number < tag.number);
    moved_up.then_some(SpuriousTag { tag, before: write.finalized })
}

/// Whether the node's safe `tag` is a mark that the node made by itself: it lies on a block of our open `writes`, above
/// `ours`, our own safe head. Some nodes mark each block that they write as safe, before anything in it was checked
/// (L5).
///
/// Another writer may put it there too. Nothing is lost if that is taken for a mark: every poll sets our own safe head
/// on the node anyway, and only this worker checks the block.
pub fn spurious_safe(tag: Option<L2Ref>, ours: Option<L2Ref>, writes: &[WriteIntent]) -> Option<L2Ref> {
    let tag = tag.filter(|tag| ours.is_none_or(|safe| safe.number < tag.number))?;
    let is_made_by = |w: &WriteIntent| match w.new_hash {
        Some(made) => made == tag.hash,
        // Noted and perhaps sent: any block counts except the one that was there before.
        None => !w.seen && w.old_hash != Some(tag.hash),
    };
    writes.iter().any(|w| w.number == tag.number && is_made_by(w)).then_some(tag)
}

/// Up to which height a read of the node shows all that the open `writes` did to its tags; none if it shows nothing
/// new. A write that was answered has happened. So has a write on top of the chain if its block is there. Any other
/// write may still be under way.
pub fn seen_to(writes: &[WriteIntent], head: L2Number) -> Option<L2Number> {
    let has_happened = |w: &WriteIntent| w.new_hash.is_some() || (w.old_hash.is_none() && w.number <= head);
    let unseen = || writes.iter().filter(|w| !w.seen);
    let pending = unseen().filter(|w| !has_happened(w)).map(|w| w.number).min();
    unseen().map(|w| w.number).filter(|number| pending.is_none_or(|pending| *number < pending)).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{B256, Case};

    fn at(number: u64) -> L2Ref {
        L2Ref { number: number.into(), hash: B256::from_low_u64_be(number) }
    }

    fn other(number: u64) -> L2Ref {
        L2Ref { number: number.into(), hash: B256::repeat_byte(0xee) }
    }

    fn heads(safe: u64, finalized: u64) -> Heads {
        Heads::stored(Some(at(safe)), Some(at(finalized)))
    }

    fn node(head: u64, safe: Option<L2Ref>, finalized: Option<L2Ref>) -> L2Snapshot {
        L2Snapshot { head: at(head), head_parent: B256::zero(), head_time: 0, safe, finalized, syncing: false }
    }

    #[test]
    fn every_move_of_safe() {
        assert_eq!(heads(10, 5).advance_safe(at(20)), Move::To(heads(20, 5)));
        assert_eq!(heads(10, 5).advance_safe(at(10)), Move::Unchanged);
        assert_eq!(heads(10, 5).advance_safe(at(9)), Move::Backwards);
        assert_eq!(heads(10, 5).advance_safe(other(10)), Move::Backwards);
        assert_eq!(Heads::default().advance_safe(at(1)), Move::To(Heads::stored(Some(at(1)), None)));
        let lost = heads(10, 5).node_lost(Some(at(2)));
        assert_eq!(lost.advance_safe(at(3)), Move::To(Heads::stored(Some(at(3)), Some(at(5)))));
        assert_eq!(lost.advance_safe(other(5)), Move::BelowFinalized);
        assert_eq!(heads(5, 5).advance_safe(other(5)), Move::BelowFinalized);
    }

    #[test]
    fn m3_what_l1_takes_away_lowers_safe_to_finalized_and_no_further() {
        assert_eq!(heads(10, 5).rewind_safe(Some(at(7))), heads(7, 5));
        for to in [Some(at(5)), Some(other(5)), Some(at(4)), None] {
            assert_eq!(heads(10, 5).rewind_safe(to), heads(5, 5));
            assert_eq!(heads(5, 5).rewind_safe(to), heads(5, 5));
        }
        assert_eq!(heads(10, 5).rewind_safe(Some(at(12))), heads(10, 5));
        assert_eq!(Heads::stored(Some(at(3)), None).rewind_safe(None), Heads::default());
        // A node that lost blocks holds less than finalized: only the node lifts safe.
        let lost = heads(10, 5).node_lost(Some(at(2)));
        for to in [Some(at(1)), Some(at(2)), None] {
            assert_eq!(lost.rewind_safe(to), lost);
        }
        assert_eq!(lost.lift_safe(), heads(5, 5));
        assert_eq!(heads(10, 5).lift_safe(), heads(10, 5));
        assert_eq!(heads(10, 5).node_lost(None).lift_safe(), heads(5, 5));
        assert_eq!(Heads::default().lift_safe(), Heads::default());
    }

    #[test]
    fn p2_finalized_moves_only_forward_and_never_above_safe() {
        assert_eq!(heads(10, 5).advance_finalized(at(8)), Move::To(heads(10, 8)));
        assert_eq!(heads(10, 5).advance_finalized(at(5)), Move::Unchanged);
        assert_eq!(heads(10, 5).advance_finalized(other(5)), Move::Backwards);
        assert_eq!(heads(10, 5).advance_finalized(at(4)), Move::Backwards);
        assert_eq!(heads(10, 5).advance_finalized(at(11)), Move::AboveSafe);
        assert_eq!(Heads::default().advance_finalized(at(1)), Move::AboveSafe);
    }

    #[test]
    fn e11_safe_is_set_before_finalized_and_each_alone() {
        let plan = tag_plan(&heads(10, 5), &node(20, None, None), false);
        assert_eq!(plan.calls, [TagCall::Safe(at(10)), TagCall::Finalized(at(5))]);
        let plan = tag_plan(&heads(10, 5), &node(20, Some(at(10)), Some(at(5))), false);
        assert!(plan.calls.is_empty());
    }

    #[test]
    fn e10_a_safe_tag_that_fell_to_finalized_is_asserted_again() {
        let plan = tag_plan(&heads(10, 5), &node(20, Some(at(5)), Some(at(5))), false);
        assert_eq!(plan.calls, [TagCall::Safe(at(10))]);
    }

    #[test]
    fn p2_e20_a_safe_tag_that_fell_below_finalized_while_it_was_set_goes_back_up() {
        let ours = heads(10, 5);
        assert_eq!(fallen_safe(&ours, &node(20, None, Some(at(5)))), Some(at(10)));
        assert_eq!(fallen_safe(&ours, &node(20, Some(at(3)), Some(at(5)))), Some(at(10)));
        assert_eq!(fallen_safe(&ours, &node(8, Some(at(3)), Some(at(5)))), Some(at(5)));
        assert_eq!(fallen_safe(&ours, &node(4, Some(at(3)), Some(at(5)))), None);
        // In order: another writer's finalized, and a loss that we know of.
        assert_eq!(fallen_safe(&ours, &node(20, Some(at(5)), Some(at(5)))), None);
        assert_eq!(fallen_safe(&ours, &node(20, Some(at(3)), Some(at(4)))), None);
        assert_eq!(fallen_safe(&ours, &node(20, Some(at(3)), Some(other(5)))), None);
        let lost = ours.node_lost(Some(at(3)));
        assert_eq!(fallen_safe(&lost, &node(20, Some(at(3)), Some(at(5)))), None);
        assert_eq!(fallen_safe(&Heads::default(), &node(20, None, Some(at(5)))), None);
    }

    #[test]
    fn h6_the_nodes_finalized_is_never_lowered() {
        let plan = tag_plan(&heads(10, 5), &node(20, Some(at(15)), Some(at(12))), false);
        assert!(plan.calls.is_empty() && plan.held_by_node_finalized && plan.safe_beyond_verified);
        let plan = tag_plan(&heads(10, 5), &node(20, Some(at(15)), Some(at(8))), false);
        assert_eq!(plan.calls, [TagCall::Safe(at(10))]);
    }

    #[test]
    fn e23_safe_is_lowered_below_what_is_written_and_never_below_finalized() {
        let ours = heads(10, 5);
        assert_eq!(lowered_safe(&ours, &node(20, None, None), at(12)), None);
        assert_eq!(lowered_safe(&ours, &node(20, Some(at(12)), Some(at(5))), at(12)), None);
        assert_eq!(lowered_safe(&ours, &node(20, Some(at(13)), Some(at(5))), at(12)), Some(at(10)));
        assert_eq!(lowered_safe(&ours, &node(20, Some(at(13)), Some(at(11))), at(12)), Some(at(12)));
        assert_eq!(lowered_safe(&ours, &node(20, Some(at(13)), None), at(8)), Some(at(8)));
        assert_eq!(lowered_safe(&Heads::default(), &node(20, Some(at(13)), None), at(8)), Some(at(8)));
    }

    #[test]
    fn e20_our_own_finalized_above_safe_is_a_loss_that_a_restart_remembers() {
        let ours = Heads::stored(Some(at(3)), Some(at(5)));
        let plan = tag_plan(&ours, &node(9, Some(at(5)), Some(at(5))), false);
        assert_eq!(plan.calls, [TagCall::Safe(at(3))]);
        assert!(!plan.held_by_node_finalized);
    }

    #[test]
    fn e19_no_tag_above_the_head_and_safe_may_pass_below_finalized_only_after_a_loss() {
        assert!(tag_plan(&heads(10, 5), &node(7, Some(at(10)), Some(at(5))), false).calls.is_empty());
        let lost = heads(10, 5).node_lost(Some(at(3)));
        let plan = tag_plan(&lost, &node(4, Some(at(10)), Some(at(5))), true);
        assert_eq!(plan.calls, [TagCall::Safe(at(3))]);
        let plan = tag_plan(&Heads::default(), &node(4, Some(at(10)), None), true);
        assert!(plan.calls.is_empty() && plan.safe_to_genesis);
        assert!(!tag_plan(&Heads::default(), &node(10, Some(at(10)), None), true).safe_to_genesis);
    }

    #[test]
    fn b3_c1_our_own_tag_leaves_what_l1_took_away_and_no_other_does() {
        let (ours, genesis) = (Some(at(24)), Some(at(0)));
        let cases = [
            (ours, node(30, ours, genesis), 16, Some(at(16))),
            (ours, node(30, ours, None), 16, Some(at(16))),
            (ours, node(30, ours, Some(at(20))), 16, None),
            (ours, node(30, Some(at(25)), genesis), 16, None),
            (ours, node(30, Some(other(24)), genesis), 16, None),
            (ours, node(30, None, genesis), 16, None),
            (ours, node(30, ours, genesis), 24, None),
            (None, node(30, ours, genesis), 16, None),
        ];
        for (was, node, anchor, expected) in cases {
            assert_eq!(abandoned_safe(was, &node, at(anchor)), expected);
        }
    }

    /// An answered write of block `number`, which replaced nothing; the finalized tag was on `before`.
    fn wrote(number: u64, before: Option<u64>) -> WriteIntent {
        WriteIntent {
            number: number.into(),
            batch: 3.into(),
            batch_hash: B256::repeat_byte(3),
            case: Case::FillGap,
            old_hash: None,
            new_hash: Some(B256::from_low_u64_be(number)),
            finalized: before.map(at),
            seen: false,
        }
    }

    #[test]
    fn m9_a_mark_is_a_tag_that_moved_with_our_write() {
        let seen = |w: WriteIntent| WriteIntent { seen: true, ..w };
        let unheard = |w: WriteIntent, old_hash| WriteIntent { old_hash, new_hash: None, ..w };
        let mark = |tag, before: Option<u64>| Some(SpuriousTag { tag, before: before.map(at) });
        let both = |before| vec![wrote(23, before), wrote(24, before)];
        let (none, t24, o24) = (None, Some(at(24)), Some(other(24)));
        let hash = |block: L2Ref| Some(block.hash);
        // The tag, our finalized head, the known mark, the open writes; the expected mark.
        let table = [
            ("it moved", t24, none, None, both(Some(8)), mark(at(24), Some(8))),
            ("it was never set", t24, none, None, both(None), mark(at(24), None)),
            ("never set at all", none, none, None, both(None), None),
            ("it did not move", Some(at(8)), none, None, both(Some(8)), None),
            ("no write is open", t24, none, None, vec![], None),
            ("looked at before", t24, none, None, both(Some(8)).into_iter().map(seen).collect(), None),
            (
                "the block of the tag was looked at",
                Some(at(23)),
                none,
                None,
                vec![seen(wrote(23, None)), wrote(24, None)],
                None,
            ),
            ("on no block of the write", Some(at(22)), none, None, both(Some(8)), None),
            ("on another block of that height", o24, none, None, both(Some(8)), None),
            ("it was higher", Some(at(23)), none, None, both(Some(24)), None),
            ("it was there", t24, none, None, both(Some(24)), None),
            ("L1 made it final", t24, t24, None, both(Some(8)), None),
            ("L1 made more final", t24, Some(at(30)), None, both(Some(8)), None),
            ("L1 made less final", t24, Some(at(16)), None, both(Some(8)), mark(at(24), Some(8))),
            ("nobody heard of it", o24, none, None, vec![unheard(wrote(24, Some(8)), None)], mark(other(24), Some(8))),
            ("not written yet", o24, none, None, vec![unheard(wrote(24, Some(8)), hash(other(24)))], None),
            ("known, the write is stored", t24, none, mark(at(24), Some(8)), vec![], mark(at(24), Some(8))),
            ("known, and moved by another", Some(at(26)), none, mark(at(24), Some(8)), vec![], None),
            ("known, and put back", Some(at(8)), none, mark(at(24), Some(8)), vec![], None),
            ("known, and final by now", t24, t24, mark(at(24), Some(8)), vec![], None),
            (
                "known, and moved by the next write",
                Some(at(26)),
                none,
                mark(at(24), Some(8)),
                vec![wrote(26, Some(8))],
                mark(at(26), Some(8)),
            ),
        ];
        for (name, tag, ours, known, writes, expected) in table {
            assert_eq!(spurious_tag(tag, ours, known, &writes), expected, "{name}");
        }
    }

    #[test]
    fn l5_a_safe_tag_on_a_block_of_an_open_write_is_the_nodes_own_mark() {
        let (t24, o24) = (Some(at(24)), Some(other(24)));
        let seen = |w: WriteIntent| WriteIntent { seen: true, ..w };
        let unheard = |w: WriteIntent, old_hash| WriteIntent { old_hash, new_hash: None, ..w };
        let hash = |block: L2Ref| Some(block.hash);
        let written = || vec![wrote(23, None), wrote(24, None)];
        // The tag, our safe head, the open writes; whether it is a mark.
        let table = [
            ("on the last block", t24, None, written(), true),
            ("on one below", Some(at(23)), None, written(), true),
            ("above what is verified", t24, Some(at(12)), written(), true),
            ("a later look", t24, Some(at(12)), written().into_iter().map(seen).collect(), true),
            ("verified", t24, Some(at(24)), written(), false),
            ("below what is verified", t24, Some(at(30)), written(), false),
            ("never set", None, None, written(), false),
            ("no write is open", t24, None, vec![], false),
            ("on no block of the write", Some(at(22)), None, written(), false),
            ("on another block of that height", o24, None, written(), false),
            ("the answer was lost", o24, None, vec![unheard(wrote(24, None), None)], true),
            (
                "the answer was lost, and it is what stood there",
                o24,
                None,
                vec![unheard(wrote(24, None), hash(other(24)))],
                false,
            ),
            ("noted and not sent", o24, None, vec![seen(unheard(wrote(24, None), hash(at(24))))], false),
        ];
        for (name, tag, ours, writes, expected) in table {
            assert_eq!(spurious_safe(tag, ours, &writes), tag.filter(|_| expected), "{name}");
        }
    }

    #[test]
    fn m9_a_snapshot_settles_the_writes_that_happened_and_no_others() {
        let seen = |n| WriteIntent { seen: true, ..wrote(n, None) };
        let unheard = |n| WriteIntent { new_hash: None, ..wrote(n, None) };
        let over = |n| WriteIntent { old_hash: Some(other(n).hash), ..unheard(n) };
        let table = [
            (vec![], 30, None),
            (vec![wrote(9, None), wrote(10, None)], 8, Some(10)),
            (vec![seen(9), seen(10)], 10, None),
            (vec![seen(9), wrote(10, None)], 10, Some(10)),
            (vec![wrote(9, None), unheard(10), unheard(11)], 9, Some(9)),
            (vec![wrote(9, None), unheard(10), unheard(11)], 10, Some(10)),
            (vec![unheard(9), unheard(10)], 8, None),
            (vec![unheard(9), unheard(10)], 30, Some(10)),
            (vec![over(9), over(10), unheard(11)], 30, None),
            (vec![wrote(9, None), over(10)], 30, Some(9)),
            (vec![unheard(10), wrote(9, None)], 9, Some(9)),
        ];
        for (writes, head, expected) in table {
            assert_eq!(seen_to(&writes, head.into()).map(L2Number::get), expected, "{writes:?} under {head}");
        }
    }

    #[test]
    fn m18_h6_safe_leaves_an_orphan_for_a_lower_block_and_not_below_the_nodes_finalized() {
        let table = [
            ([Some(at(8)), Some(at(4))], None, vec![at(8), at(4)]),
            ([Some(at(8)), Some(at(4))], Some(at(4)), vec![at(8), at(4), at(4)]),
            ([Some(at(8)), Some(at(4))], Some(at(6)), vec![at(8), at(6)]),
            ([Some(at(5)), Some(at(4))], Some(at(6)), vec![at(6)]),
            ([None, Some(at(4))], Some(at(12)), vec![]),
            ([Some(at(12)), Some(other(10))], Some(at(10)), vec![]),
            ([Some(at(12)), None], None, vec![]),
        ];
        for (known, finalized, expected) in table {
            assert_eq!(below_orphan(at(10), known, finalized), expected, "{known:?} {finalized:?}");
        }
    }

    #[test]
    fn m18_a_block_stands_on_a_chain_that_has_it_at_its_height() {
        assert!(stands_on(at(8), 8.into(), Some(at(8))) && stands_on(at(8), 20.into(), Some(at(8))));
        for (head, there) in [(20, None), (20, Some(other(8))), (20, Some(at(9))), (7, Some(at(8)))] {
            assert!(!stands_on(at(8), head.into(), there), "{head} {there:?}");
        }
    }
}
