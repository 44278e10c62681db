//! Finality: how high our finalized head goes, and whether L1 still holds the batch that it stands on.
//!
//! What is final follows from stored rows, known reverts and proofs, and two hashes (`decide/finality`).

use std::sync::Arc;

use tracing::{debug, error, info};

use crate::decide::finality::{self, Finality, FinalityFacts, Held, Standing, StandingFacts};
use crate::decide::heads::Move;
use crate::flow::ledger::Ledger;
use crate::flow::settlement::{Settled, Settlements};
use crate::flow::{FlowError, Ports, Settings};
use crate::ports::{L1Chain, L2Reader, Rows, Step};
use crate::types::{BatchIndex, BatchRecord, FinalityMeaning, L1Event, L1Header, L1Number, L1Ref, L1Tag};

/// Log target and code of the alert for a revert of a finalized batch.
const UNCOMMITTED: &str = "uncommitted_finalized";

/// The same for an L1 that contradicts itself.
const CONTRADICTED: &str = "l1_finality_contradicted";

/// What the status shows of finality.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FinalityShown {
    /// L1's finalized block.
    pub(crate) l1_finalized: Option<L1Header>,
    /// Up to which L1 block every revert and proof is known.
    pub(crate) settled_to: Option<L1Number>,
    /// Why finalized is held.
    pub(crate) held: Option<Held>,
    /// L1 reverted a batch that is finalized here and has not committed to those blocks again yet.
    pub(crate) uncommitted: bool,
}

/// What the rows say of what is final.
enum Found {
    /// This batch is, if the chains agree.
    Candidate(Box<BatchRecord>),
    /// It cannot be decided for now.
    Held(Held),
    /// No batch is.
    Nothing,
}

/// Finality, as it is advanced poll by poll.
pub(crate) struct Finalizer {
    l1: Arc<dyn L1Chain>,
    l2: Arc<dyn L2Reader>,
    rows: Arc<dyn Rows>,
    meaning: FinalityMeaning,
    reorg_window: u64,
    keep_batches: u64,
    shown: FinalityShown,
    /// The batch about which L1 contradicted itself at the last look.
    contradicted: Option<BatchIndex>,
}

impl Finalizer {
    /// Nothing looked at yet.
    pub(crate) fn new(ports: &Ports, settings: &Settings) -> Self {
        Self {
            l1: ports.l1.clone(),
            l2: ports.l2.clone(),
            rows: ports.progress.clone(),
            meaning: settings.finality,
            reorg_window: settings.reorg_window,
            keep_batches: settings.keep_batches,
            shown: FinalityShown::default(),
            contradicted: None,
        }
    }

    /// What the status shows of it.
    pub(crate) const fn shown(&self) -> FinalityShown {
        self.shown
    }

    /// Advances finalized as far as L1 finality, the reverts and proofs on L1, and the local chain allow. `on` says
    /// that the next range of L1 is read at once.
    pub(crate) async fn advance(
        &mut self,
        ledger: &mut Ledger,
        settlements: &mut Settlements,
        on: bool,
    ) -> Result<(), FlowError> {
        // A step failed: the rows may not be what memory says, and a revert that was read may not be among them (M2).
        if ledger.is_unsure() || ledger.heads().safe().is_none() {
            return Ok(());
        }
        self.note_uncommitted(ledger).await?;
        let Some(l1_finalized) = self.l1.tagged(L1Tag::Finalized).await? else { return Ok(()) };
        self.shown.l1_finalized = Some(l1_finalized);
        let settled = settlements.read_ahead(ledger, &l1_finalized.l1_ref(), on).await?;
        let settled_to = match settled {
            Settled::To(to) => to,
            Settled::Contradicted => {
                self.hold(Some(Held::L1Contradicts));
                return Ok(());
            }
        };
        self.shown.settled_to = settled_to;
        let candidate = match self.final_candidate(ledger, settlements, l1_finalized.number, settled_to).await? {
            Found::Candidate(candidate) => candidate,
            Found::Held(held) => {
                self.hold(Some(held));
                return Ok(());
            }
            Found::Nothing => {
                self.hold(None);
                return Ok(());
            }
        };
        let Some(last) = candidate.last else { return Ok(()) };
        if !matches!(ledger.heads().advance_finalized(last), Move::To(_)) {
            self.hold(None);
            return Ok(());
        }
        let to = match self.ask_chains(ledger, settlements, &candidate, l1_finalized.l1_ref()).await? {
            Finality::Final(to) => to,
            Finality::Held(held) => {
                self.hold(Some(held));
                if held == Held::L1Contradicts {
                    let (batch, finalized) = (candidate.index.get(), l1_finalized.l1_ref());
                    error!(
                        target: CONTRADICTED,
                        code = CONTRADICTED,
                        entity = format!("batch {batch}"),
                        batch,
                        %finalized,
                        "L1 contradicts itself about finality; finalized is held"
                    );
                    self.contradicted = Some(candidate.index);
                }
                return Ok(());
            }
        };
        self.hold(None);
        let Move::To(heads) = ledger.heads().advance_finalized(to) else { return Ok(()) };
        let step = Step { finalized: heads.finalized(), ..Step::default() };
        ledger.commit(&step).await?;
        info!(number = to.number.get(), batch = candidate.index.get(), "finalized");
        self.prune(ledger, &candidate).await
    }

    /// The highest verified batch that stands, or is proved, at L1's finalized block by what is stored.
    async fn final_candidate(
        &self,
        ledger: &mut Ledger,
        settlements: &Settlements,
        finalized_l1: L1Number,
        settled_to: Option<L1Number>,
    ) -> Result<Found, FlowError> {
        let (rows, meaning) = (&self.rows, self.meaning);
        let proof = match meaning {
            FinalityMeaning::Committed => None,
            FinalityMeaning::Proven => rows.newest_proof(finalized_l1).await?,
        };
        let mut candidate = rows.newest_at_or_below(finalized_l1).await?;
        while let Some(record) = candidate {
            let revert = rows.revert_after(record.index, record.pos()).await?;
            let (revert, proof) = (revert.as_ref(), proof.as_ref());
            let facts = StandingFacts { meaning, candidate: &record, finalized_l1, settled_to, revert, proof };
            match finality::standing(&facts) {
                Standing::Candidate => return Ok(Found::Candidate(Box::new(record))),
                // A proof that contradicts the commits may be false: one that L1 does not confirm contradicts nothing.
                Standing::Held(Held::L1Contradicts) => {
                    let holds = is_proved(ledger, settlements, proof, record.index, finalized_l1).await?;
                    return Ok(Found::Held(if holds { Held::L1Contradicts } else { Held::NotProven }));
                }
                Standing::Held(held) => return Ok(Found::Held(held)),
                // Always a lower index: it ends.
                Standing::LookAt(index) => candidate = rows.batch(index).await?,
            }
        }
        Ok(Found::Nothing)
    }

    async fn ask_chains(
        &self,
        ledger: &mut Ledger,
        settlements: &Settlements,
        candidate: &BatchRecord,
        finalized_l1: L1Ref,
    ) -> Result<Finality, FlowError> {
        let Some(last) = candidate.last else { return Ok(Finality::Held(Held::Unknown)) };
        // Reverts and proofs are known up to these blocks: on another chain than L1's they prove nothing.
        let mut grounds = settlements.known_to(ledger.cursor().as_ref()).await?;
        let proof = match self.meaning {
            FinalityMeaning::Committed => None,
            FinalityMeaning::Proven => self.rows.newest_proof(finalized_l1.number).await?,
        };
        grounds.extend(proof.as_ref().map(|proof| proof.block));
        let asked = [candidate.l1.number, finalized_l1.number];
        let asked: Vec<_> = asked.into_iter().chain(grounds.iter().map(|block| block.number)).collect();
        let live = self.l1.headers(&asked).await?;
        let is_live = |(block, header): (&L1Ref, &Option<L1Header>)| header.is_some_and(|h| h.l1_ref() == *block);
        let known = live.len() == asked.len() && grounds.iter().zip(live.iter().skip(2)).all(is_live);
        let live_l1 = live.first().copied().flatten();
        let live_finalized = live.get(1).copied().flatten();
        let local = self.l2.header(last.number).await?;
        let facts = FinalityFacts { candidate, live_l1, finalized_l1, live_finalized, local };
        Ok(match finality::finality(&facts) {
            Finality::Final(_) if !known => Finality::Held(Held::Unknown),
            Finality::Final(_)
                if !is_proved(ledger, settlements, proof.as_ref(), candidate.index, finalized_l1.number).await? =>
            {
                Finality::Held(Held::NotProven)
            }
            verdict => verdict,
        })
    }

    fn hold(&mut self, held: Option<Held>) {
        self.shown.held = held;
        if held != Some(Held::L1Contradicts)
            && let Some(batch) = self.contradicted.take()
        {
            let entity = format!("batch {batch}");
            info!(target: CONTRADICTED, entity, recovered = true, "L1 no longer contradicts itself about finality");
        }
        if let Some(held) = held {
            debug!(?held, settled_to = ?self.shown.settled_to, "finalized is held");
        }
    }

    /// Notes in the status and in the log whether our finalized head stands on a batch that L1 reverted since:
    /// ordinary, but an operator should look at it (M3).
    async fn note_uncommitted(&mut self, ledger: &Ledger) -> Result<(), FlowError> {
        let standing = self.rows.newest_at_or_below(L1Number::new(u64::MAX)).await?;
        let last = standing.as_ref().and_then(|record| record.last);
        self.shown.uncommitted = finality::is_uncommitted(ledger.heads().finalized(), last);
        if self.shown.uncommitted {
            let finalized = ledger.heads().finalized().map(|f| f.number.get());
            let committed = last.map(|last| last.number.get());
            error!(
                target: UNCOMMITTED,
                code = UNCOMMITTED,
                finalized,
                committed,
                "L1 reverted a batch that is finalized here; the blocks stay finalized until it is committed again"
            );
        } else {
            info!(target: UNCOMMITTED, recovered = true, "L1 holds all that is finalized here");
        }
        Ok(())
    }

    /// Drops what lies below finality and outside the reorg window: it is no longer needed (H5).
    async fn prune(&self, ledger: &Ledger, finalized: &BatchRecord) -> Result<(), FlowError> {
        let Some(cursor) = ledger.cursor() else { return Ok(()) };
        let l1 = cursor.block.number.minus(self.reorg_window).min(finalized.l1.number);
        let queue = finalized.total_l1_popped.into();
        let batch = BatchIndex::new(finalized.index.get()).minus(self.keep_batches);
        ledger.prune(l1, queue, batch).await?;
        Ok(())
    }
}

/// Whether L1 confirms the `proof` by which batch `index` is proved at its finalized block. True if no proof is needed.
async fn is_proved(
    ledger: &mut Ledger,
    settlements: &Settlements,
    proof: Option<&L1Event>,
    index: BatchIndex,
    finalized_l1: L1Number,
) -> Result<bool, FlowError> {
    match proof {
        None => Ok(true),
        Some(proof) => settlements.holds_proof(ledger, proof, index, finalized_l1).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::testing::World;
    use crate::types::{B256, L1EventKind, L2Ref};

    /// Six verified batches, the cursor on the commit of the last one, and L1 finalized up to `l1_finalized`.
    async fn verified(l1_finalized: u64) -> (World, Finalizer, Settlements) {
        let mut world = World::recorded().await;
        world.verified(6).await;
        world.l1.now().finalized = l1_finalized.into();
        let finalizer = Finalizer::new(&world.ports, &world.settings);
        let settlements = Settlements::new(world.ports.l1.clone(), world.ports.progress.clone(), 0.into(), 500);
        (world, finalizer, settlements)
    }

    async fn advance(of: &mut (World, Finalizer, Settlements)) -> (Option<L2Ref>, Option<Held>) {
        let (world, finalizer, settlements) = of;
        finalizer.advance(&mut world.ledger, settlements, false).await.unwrap();
        (world.ledger.heads().finalized(), finalizer.shown().held)
    }

    #[tokio::test]
    async fn finalized_is_the_last_batch_whose_commit_is_final_on_l1() {
        let mut of = verified(11).await;
        let (fourth, sixth) = (of.0.l2(48), of.0.l2(72));
        assert_eq!(advance(&mut of).await, (Some(fourth), None));
        of.0.l1.now().finalized = 14.into();
        assert_eq!(advance(&mut of).await, (Some(sixth), None));
        assert!(!of.1.shown().uncommitted);
    }

    #[tokio::test]
    async fn m2_finalized_waits_until_every_revert_up_to_l1s_finalized_block_is_known() {
        let mut of = verified(20).await;
        let (fifth, sixth) = (of.0.l2(60), Some(of.0.l2(72)));
        of.0.l1.now().reach = 1;
        assert_eq!(advance(&mut of).await, (None, Some(Held::ReadingReverts)));
        assert_eq!(advance(&mut of).await, (sixth, None));
        // The same with a revert of the last batch up there.
        let mut of = verified(20).await;
        of.0.l1.now().log(20, L1EventKind::Revert { index: 6.into(), hash: B256::repeat_byte(6) });
        assert_eq!(advance(&mut of).await, (Some(fifth), None));
    }

    #[tokio::test]
    async fn p2_finalized_does_not_move_over_a_block_that_the_node_does_not_hold() {
        let mut of = verified(30).await;
        of.0.fork_l2(72);
        assert_eq!(advance(&mut of).await, (None, Some(Held::LocalContradicts)));
    }

    #[tokio::test]
    async fn m3_a_final_batch_that_l1_reverted_is_shown_and_stays_final() {
        let mut of = verified(30).await;
        let sixth = Some(of.0.l2(72));
        assert_eq!(advance(&mut of).await.0, sixth);
        of.0.store(Step { revert_from: Some(6.into()), ..Step::default() }).await;
        assert_eq!(advance(&mut of).await.0, sixth);
        assert!(of.1.shown().uncommitted);
    }
}
