//! What L1 took back and what it proved, ahead of the batches.
//!
//! A batch is final only if every RevertBatch log up to L1's finalized block was read (M2), and the batches may be far
//! below that block. So the RevertBatch and FinalizeBatch logs are read on their own, from the batches' cursor up to
//! the finalized block and no further: nothing below it is reorganised. The logs of a piece are stored with the block
//! that it reached, and a poll asks for few pieces. If the batches have passed the finalized block, nothing is asked
//! for: the ordinary ranges bring the same logs.

use std::sync::Arc;

use tracing::{debug, warn};

use crate::decide::finality;
use crate::decide::settlement::{self, Proof, ProofFacts, RevertFacts};
use crate::decide::stall::{Cause, Gap, Stall};
use crate::flow::ledger::Ledger;
use crate::flow::{Decided, FlowError};
use crate::ports::{L1Chain, PortResult, RangeLogs, Rows, Step};
use crate::types::{B256, BatchIndex, BatchRecord, Cursor, L1Event, L1EventKind, L1Header, L1Number, L1Ref, LogPos};

/// Pieces that one poll asks for. With a provider of narrow ranges the scan catches up over many polls.
const PIECES: usize = 4;

/// Polls of a catch-up between two pieces, if an endpoint answers no more blocks than the batches read by themselves.
const REST: u32 = 16;

/// Widest piece, in L1 blocks: two weeks.
const WIDEST: u64 = 100_000;

/// Blocks with logs that one piece may hold; of a fuller one the beginning is taken. Bounds what is asked about them.
const BLOCKS_MAX: usize = 256;

/// Known reverts that are compared with one range. There is one a month at the most.
const REVERTS_MAX: u32 = 10_000;

/// Reverts that a range lacks, and proofs that a revert contradicts, about which L1 is asked again one by one; the next
/// poll asks about the rest.
const MISSING_MAX: usize = 8;

/// How far the logs are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// Up to this block; none if nothing was read.
    To(Option<L1Number>),
    /// L1 showed two chains below its finalized block.
    Contradicted,
}

/// One piece of the scan.
enum Piece {
    /// Its logs, and the block to which it reaches.
    Read(Vec<L1Event>, L1Ref),
    /// Its logs and L1's headers do not lie on one chain: it does not count, and what was read before stays.
    Torn,
    /// The block to which the scan had come is not on L1's chain: what was read before does not count.
    OtherBase,
}

/// The scan of RevertBatch and FinalizeBatch logs. How far it got is kept in the database only.
pub(crate) struct Settlements {
    l1: Arc<dyn L1Chain>,
    rows: Arc<dyn Rows>,
    start: L1Number,
    /// Width of the batches' own ranges, which bring the same logs.
    range: u64,
    /// Width of the next piece: doubled with every piece that was answered whole, and never less than twice the range.
    width: u64,
    /// Polls of a catch-up in which nothing is read ahead: the last piece was answered no wider than a range.
    rest: u32,
}

impl Settlements {
    /// Over these ports; `start` is the first L1 block that is ever read, `range` the width of the batches' ranges.
    pub(crate) fn new(l1: Arc<dyn L1Chain>, rows: Arc<dyn Rows>, start: L1Number, range: u64) -> Self {
        let range = range.clamp(1, WIDEST);
        Self { l1, rows, start, range, width: range.saturating_mul(2).min(WIDEST), rest: 0 }
    }

    /// Continues the scan, at most up to `finalized`, and gives the block up to which all is known. If the batches read
    /// `on` at once, they reach the same logs by themselves: then only pieces that are wider than theirs are worth a
    /// request.
    pub(crate) async fn read_ahead(
        &mut self,
        ledger: &mut Ledger,
        finalized: &L1Ref,
        on: bool,
    ) -> Result<Settled, FlowError> {
        let passed = ledger.cursor().as_ref().and_then(whole_blocks);
        let stored = self.rows.settled_to().await?;
        let mut known = passed.max(stored.map(|s| s.number));
        // The block to which the scan came must be the one it was, or what it read lies on another chain.
        let mut doubtful = stored.filter(|s| known == Some(s.number) && passed != known);
        let pieces = match (on, self.rest) {
            (true, 0) => usize::from(self.width > self.range),
            (true, _) => 0,
            (false, _) => PIECES,
        };
        self.rest = self.rest.saturating_sub(1);
        for _ in 0..pieces {
            if known.is_some_and(|to| to >= finalized.number) {
                break;
            }
            let from = known.map_or(self.start, |to| to.plus(1)).min(finalized.number);
            let (events, end) = match self.piece(from, finalized, doubtful.take()).await? {
                Piece::Read(events, end) => (events, end),
                Piece::Torn => {
                    warn!(code = "l1_two_chains", finalized = %finalized, "L1 shows two chains below its finalized block");
                    return Ok(Settled::Contradicted);
                }
                Piece::OtherBase => {
                    let above = passed.unwrap_or(self.start.minus(1));
                    warn!(code = "l1_two_chains", finalized = %finalized, "L1 shows two chains below its finalized block; reading its reverts again");
                    self.forget_above(ledger, above).await?;
                    return Ok(Settled::Contradicted);
                }
            };
            debug!(from = from.get(), to = end.number.get(), logs = events.len(), "reverts and proofs read ahead");
            let step = Step { settlements: events, settled_to: Some(end), ..Step::default() };
            ledger.commit(&step).await?;
            known = Some(end.number);
        }
        Ok(Settled::To(known))
    }

    /// The blocks up to which all was read, by the batches or ahead of them: what is known holds only on their chain.
    pub(crate) async fn known_to(&self, cursor: Option<&Cursor>) -> Result<Vec<L1Ref>, FlowError> {
        let stored = self.rows.settled_to().await?;
        Ok(cursor.map(|cursor| cursor.block).into_iter().chain(stored).collect())
    }

    /// One piece from `from` on. It must lie on the chain of L1's headers, and so must `base`.
    async fn piece(&mut self, from: L1Number, finalized: &L1Ref, base: Option<L1Ref>) -> Result<Piece, FlowError> {
        let to = from.plus(self.width.saturating_sub(1)).min(finalized.number);
        let RangeLogs { mut events, ends } = self.l1.settlements(from, to).await?;
        let Some(mut end) = ends.last().copied().filter(|e| e.number >= from && e.number <= to) else {
            return Err(FlowError::l1_changed(format!("the logs from L1 block {from} on came without their end")));
        };
        self.learn(from, to, end.number, finalized.number);
        let mut blocks: Vec<L1Ref> = events.iter().map(|e| e.block).collect();
        blocks.dedup();
        if let (Some(last), true) = (blocks.get(BLOCKS_MAX.saturating_sub(1)).copied(), blocks.len() > BLOCKS_MAX) {
            events.retain(|e| e.block.number <= last.number);
            blocks.truncate(BLOCKS_MAX);
            end = last;
        }
        blocks.extend(ends.iter().filter(|e| e.number < end.number));
        blocks.push(end);
        blocks.extend(base);
        let numbers: Vec<_> = blocks.iter().map(|b| b.number).collect();
        let live = self.l1.headers(&numbers).await?;
        // A missing header proves nothing: what is known stays, and the piece is asked for again.
        if live.len() != blocks.len() || live.iter().any(Option::is_none) {
            return Err(FlowError::l1_changed(format!("an L1 endpoint does not know the blocks from {from} to {end}")));
        }
        let is_live = |(block, header): (&L1Ref, &Option<L1Header>)| header.is_some_and(|h| h.l1_ref() == *block);
        if base.is_some() && !blocks.iter().zip(&live).next_back().is_some_and(is_live) {
            return Ok(Piece::OtherBase);
        }
        let canonical = blocks.iter().zip(&live).all(is_live);
        let same_tip = end.number != finalized.number || end == *finalized;
        Ok(if canonical && same_tip { Piece::Read(events, end) } else { Piece::Torn })
    }

    /// A piece from `from` to `to` was answered up to `end`. Asking for a wide piece costs nothing if less is answered.
    /// So one partial answer, as after a refusal, does not narrow the next pieces below a width that is worth a
    /// request.
    fn learn(&mut self, from: L1Number, to: L1Number, end: L1Number, finalized: L1Number) {
        let answered = end.above(from).saturating_add(1);
        if end < to {
            self.width = answered.max(self.range.saturating_mul(2)).min(WIDEST);
            self.rest = if answered > self.range { 0 } else { REST };
        } else if to < finalized {
            self.width = self.width.saturating_mul(2).min(WIDEST);
        }
    }

    /// A range without a revert that is known to lie in it, between the log at `place` and its end block `to`: the
    /// endpoint left it out, if L1 confirms it. A revert that L1 does not confirm is forgotten: it never happened, or
    /// its block is gone (B8).
    pub(crate) async fn left_out(
        &self,
        ledger: &mut Ledger,
        events: &[L1Event],
        place: LogPos,
        to: L1Number,
    ) -> Decided<()> {
        let known = self.rows.reverts_within(place, to, REVERTS_MAX).await?;
        // By block and content: providers differ in how they count logs and transactions.
        let is_there = |known: &L1Event| events.iter().any(|e| e.block == known.block && e.kind == known.kind);
        let missing: Vec<_> = known.into_iter().filter(|known| !is_there(known)).take(MISSING_MAX).collect();
        let Some(first) = missing.first() else { return Ok(()) };
        let numbers: Vec<_> = missing.iter().map(|event| event.block.number).collect();
        let live = self.l1.headers(&numbers).await?;
        for (event, live) in missing.iter().zip(live) {
            let L1EventKind::Revert { index, .. } = event.kind else { continue };
            let Some(live) = live else {
                return Err(FlowError::l1_changed(format!("an L1 endpoint does not know block {}", event.block)).into());
            };
            if live.l1_ref() == event.block && self.is_confirmed(event).await? {
                let gap = Gap::KnownRevertLeftOut { batch: index, block: event.block };
                return Err(Stall::at(index, Cause::Gap(gap)).into());
            }
        }
        warn!(code = "unconfirmed_revert", l1_block = %first.block, "L1 does not confirm a revert that was read ahead; dropping it");
        let whole = place == LogPos::end_of(place.block);
        let above = if whole { place.block } else { place.block.minus(1) };
        Ok(self.forget_above(ledger, above).await?)
    }

    /// Forgets the reverts and proofs above block `above`, and how far they were read: they may come from the same
    /// endpoint.
    pub(crate) async fn forget_above(&self, ledger: &mut Ledger, above: L1Number) -> Result<(), FlowError> {
        Ok(ledger.commit(&Step { forget_settled_above: Some(above), ..Step::default() }).await?)
    }

    /// Whether L1, asked for this very revert, says that it happened.
    pub(crate) async fn is_confirmed(&self, revert: &L1Event) -> Result<bool, FlowError> {
        let L1EventKind::Revert { index, .. } = revert.kind else { return Ok(false) };
        let at = revert.block.number;
        let found = self.l1.reverts_of(index, at, at).await?.events;
        let told = found.iter().any(|event| event.block == revert.block && event.kind == revert.kind);
        let (mut before, mut after) = (None, None);
        if !told {
            before = self.committed_at(index, at.minus(1)).await?;
            after = self.committed_at(index, at).await?;
        }
        Ok(settlement::is_revert(&RevertFacts { told, before, after }))
    }

    /// Whether the contract denies the `revert` of the batch `standing`; `again` says that its block commits to the
    /// same index too.
    pub(crate) async fn denies_revert(
        &self,
        revert: &L1Event,
        standing: &BatchRecord,
        again: bool,
    ) -> Result<bool, FlowError> {
        let at_block = self.committed_at(standing.index, revert.block.number).await?;
        Ok(settlement::denies_revert(standing.hash, at_block, again))
    }

    async fn committed_at(&self, index: BatchIndex, at: L1Number) -> PortResult<Option<B256>> {
        let hashes = answered(self.l1.committed_hashes(&[index], Some(at)).await)?;
        Ok(hashes.and_then(|hashes| hashes.first().copied()))
    }

    /// Whether L1 proved batch `index` before the revert at the log `at`. A stored proof that L1 does not confirm is
    /// forgotten, and the next one counts.
    pub(crate) async fn was_proved(
        &self,
        ledger: &mut Ledger,
        index: BatchIndex,
        at: &L1Event,
    ) -> Result<bool, FlowError> {
        for _ in 0..MISSING_MAX {
            let proof = self.rows.newest_proof(at.block.number).await?;
            let Some(proof) = proof.filter(|proof| !finality::may_be_reverted(index, at, Some(proof))) else {
                return Ok(false);
            };
            if self.holds_proof(ledger, &proof, index, at.block.number).await? {
                return Ok(true);
            }
        }
        Err(FlowError::l1_changed("L1 does not confirm the proofs that it gave"))
    }

    /// Whether L1 confirms that `proof` proves batch `index` at block `at`. A proof that it does not confirm is
    /// forgotten.
    pub(crate) async fn holds_proof(
        &self,
        ledger: &mut Ledger,
        proof: &L1Event,
        index: BatchIndex,
        at: L1Number,
    ) -> Result<bool, FlowError> {
        let block = proof.block.number;
        let RangeLogs { events, ends } = self.l1.settlements(block, block).await?;
        if ends.last().is_none_or(|end| end.number != block) {
            return Err(FlowError::l1_changed(format!("the logs of L1 block {block} came without their end")));
        }
        let told = events.iter().any(|event| event.block == proof.block && event.kind == proof.kind);
        let proved = answered(self.l1.last_finalized_index(Some(at)).await)?;
        let newest = match proved {
            Some(_) => None,
            None => answered(self.l1.last_finalized_index(None).await)?,
        };
        let verdict = settlement::proof(&ProofFacts { told, index, proved, newest });
        if verdict == Proof::Forged {
            warn!(code = "unconfirmed_proof", l1_block = %proof.block, told, ?proved, "L1 does not confirm a proof that it gave; dropping it");
            ledger.commit(&Step { forget_proof: Some(proof.clone()), ..Step::default() }).await?;
        }
        Ok(verdict == Proof::Holds)
    }
}

/// An answer, or none if the endpoint cannot give one at all. A fault that passes is no such answer: nothing follows
/// from it.
fn answered<T>(answer: PortResult<T>) -> PortResult<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.is_transient() => Err(error),
        Err(_) => Ok(None),
    }
}

/// The last block whose logs were all dealt with.
fn whole_blocks(cursor: &Cursor) -> Option<L1Number> {
    match cursor.log_index {
        None => Some(cursor.block.number),
        Some(_) => cursor.block.number.get().checked_sub(1).map(L1Number::new),
    }
}

/// The place after which nothing was dealt with yet.
pub(crate) fn place_of(cursor: Option<&Cursor>) -> LogPos {
    cursor.map(Cursor::pos).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{PortError, PortErrorKind, Target};
    use crate::flow::testing::{World, cause_of};

    fn settlements(world: &World) -> Settlements {
        Settlements::new(world.ports.l1.clone(), world.ports.progress.clone(), 0.into(), 500)
    }

    fn revert(world: &World) -> L1Event {
        world.l1.now().log(20, L1EventKind::Revert { index: 6.into(), hash: B256::repeat_byte(6) })
    }

    #[test]
    fn a8_a_passing_fault_is_an_error_and_a_lasting_one_means_no_answer() {
        let fails = |kind| answered::<u8>(Err(PortError::new(Target::L1, kind, "")));
        let passing =
            [PortErrorKind::Timeout, PortErrorKind::Unreachable, PortErrorKind::RateLimited { retry_after: None }];
        assert!(passing.into_iter().all(|kind| fails(kind).is_err()));
        let lasting = [PortErrorKind::Unsupported, PortErrorKind::Pruned, PortErrorKind::NotFound];
        assert!(lasting.into_iter().all(|kind| fails(kind) == Ok(None)));
        assert_eq!(answered(Ok(7)), Ok(Some(7)));
    }

    #[tokio::test]
    async fn m2_reverts_are_known_up_to_the_finalized_block_however_far_the_batches_are_behind() {
        let mut world = World::recorded().await;
        let revert = revert(&world);
        world.l1.now().reach = 8;
        let finalized = world.l1.now().at(30);
        let read = settlements(&world).read_ahead(&mut world.ledger, &finalized, false).await.unwrap();
        assert_eq!(read, Settled::To(Some(30.into())));
        assert_eq!(world.ports.progress.settled_to().await.unwrap(), Some(finalized));
        assert_eq!(world.ports.progress.revert_after(6.into(), LogPos::new(14.into(), 0)).await.unwrap(), Some(revert));
    }

    #[tokio::test]
    async fn m2_what_does_not_lie_on_one_chain_counts_for_nothing() {
        let mut world = World::recorded().await;
        revert(&world);
        let mut finalized = world.l1.now().at(30);
        world.l1.now().events.iter_mut().for_each(|event| event.block.hash = B256::repeat_byte(0xbb));
        let read = settlements(&world).read_ahead(&mut world.ledger, &finalized, false).await.unwrap();
        assert_eq!(read, Settled::Contradicted);
        world.l1.now().events.clear();
        finalized.hash = B256::repeat_byte(0xbb);
        let read = settlements(&world).read_ahead(&mut world.ledger, &finalized, false).await.unwrap();
        assert_eq!(read, Settled::Contradicted);
        assert_eq!(world.ports.progress.settled_to().await.unwrap(), None);
        assert_eq!(world.ports.progress.revert_after(6.into(), LogPos::new(14.into(), 0)).await.unwrap(), None);
    }

    #[tokio::test]
    async fn b8_a_known_revert_that_a_range_lacks_is_a_hole_or_never_was() {
        let mut world = World::recorded().await;
        let revert = revert(&world);
        world.store(Step { settlements: vec![revert.clone()], ..Step::default() }).await;
        let settlements = settlements(&world);
        let place = LogPos::end_of(15.into());
        let given = [revert.clone()];
        settlements.left_out(&mut world.ledger, &given, place, 30.into()).await.unwrap();
        let end = settlements.left_out(&mut world.ledger, &[], place, 30.into()).await;
        let gap = Gap::KnownRevertLeftOut { batch: 6.into(), block: revert.block };
        assert_eq!(cause_of(end), Some(Cause::Gap(gap)));
        // L1 does not confirm it any more.
        world.l1.now().events.retain(|event| *event != revert);
        settlements.left_out(&mut world.ledger, &[], place, 30.into()).await.unwrap();
        assert_eq!(world.ports.progress.revert_after(6.into(), LogPos::new(14.into(), 0)).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_proof_that_l1_does_not_confirm_is_forgotten() {
        let mut world = World::recorded().await;
        let proof = world.l1.now().log(21, L1EventKind::Finalize { index: 5.into(), hash: B256::repeat_byte(5) });
        world.store(Step { settlements: vec![proof.clone()], ..Step::default() }).await;
        let settlements = settlements(&world);
        assert!(settlements.holds_proof(&mut world.ledger, &proof, 5.into(), 30.into()).await.unwrap());
        assert_eq!(world.ports.progress.newest_proof(30.into()).await.unwrap(), Some(proof.clone()));
        world.l1.now().events.clear();
        assert!(!settlements.holds_proof(&mut world.ledger, &proof, 5.into(), 30.into()).await.unwrap());
        assert_eq!(world.ports.progress.newest_proof(30.into()).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_proof_whose_log_is_missing_and_that_the_contract_does_not_deny_counts_for_nothing_and_is_kept() {
        let mut world = World::recorded().await;
        let proof = world.l1.now().log(21, L1EventKind::Finalize { index: 5.into(), hash: B256::repeat_byte(5) });
        world.store(Step { settlements: vec![proof.clone()], ..Step::default() }).await;
        let settlements = settlements(&world);
        let events = std::mem::take(&mut world.l1.now().events);
        world.l1.now().last_finalized = Some(5.into());
        for _ in 0..2 {
            assert!(!settlements.holds_proof(&mut world.ledger, &proof, 5.into(), 30.into()).await.unwrap());
            assert_eq!(world.ports.progress.newest_proof(30.into()).await.unwrap(), Some(proof.clone()));
        }
        world.l1.now().events = events;
        assert!(settlements.holds_proof(&mut world.ledger, &proof, 5.into(), 30.into()).await.unwrap());
        // The newest state never lies below an older one: what it has not proved was never proved.
        world.l1.now().last_finalized = Some(4.into());
        assert!(!settlements.holds_proof(&mut world.ledger, &proof, 5.into(), 30.into()).await.unwrap());
        assert_eq!(world.ports.progress.newest_proof(30.into()).await.unwrap(), None);
    }
}
