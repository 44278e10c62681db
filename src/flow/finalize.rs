//! Finality: how far our finalized head goes, and whether L1 still holds what it stands on.
//!
//! What is final follows from stored rows, known reverts and proofs, and two hashes (`decide/finality`).

use tracing::{debug, error, info};

use crate::decide::finality::{self, Finality, FinalityFacts, Held, Standing, StandingFacts};
use crate::decide::heads::Move;
use crate::flow::FlowError;
use crate::flow::settlement::Settled;
use crate::flow::worker::Worker;
use crate::ports::Step;
use crate::types::{BatchIndex, BatchRecord, FinalityMeaning, L1Event, L1Header, L1Number, L1Ref, L1Tag};

/// Rows of this many batches below the finalized one are kept for questions.
const KEEP_BATCHES: u64 = 64;

/// Target and code of the one thing that is alerted here.
const UNCOMMITTED: &str = "uncommitted_finalized";

impl Worker {
    /// Advances finalized as far as L1 finality, the reverts and proofs on L1, and the local chain allow. `on` says that
    /// the next range of L1 is read at once.
    pub(crate) async fn finalize(&mut self, on: bool) -> Result<(), FlowError> {
        // A step failed: the rows may not be what memory says, and a revert that was read may not be among them (M2).
        if self.ledger.is_unsure() || self.ledger.heads().safe().is_none() {
            return Ok(());
        }
        self.note_uncommitted().await?;
        let Some(l1_finalized) = self.ports.l1.tagged(L1Tag::Finalized).await? else { return Ok(()) };
        self.status.l1_finalized = Some(l1_finalized.number);
        let settled = self.settlements.read_ahead(self.ledger.cursor().as_ref(), &l1_finalized.l1_ref(), on).await?;
        let settled_to = match settled {
            Settled::To(to) => to,
            Settled::Contradicted => {
                self.hold(Some(Held::L1Contradicts));
                return Ok(());
            }
        };
        self.status.settled_to = settled_to;
        let candidate = match self.final_candidate(l1_finalized.number, settled_to).await? {
            Ok(candidate) => candidate,
            Err(held) => {
                self.hold(held);
                return Ok(());
            }
        };
        let Some(last) = candidate.last else { return Ok(()) };
        if self.ledger.heads().finalized().is_some_and(|f| f.number >= last.number)
            || self.ledger.heads().safe().is_none_or(|s| s.number < last.number)
        {
            self.hold(None);
            return Ok(());
        }
        let to = match self.ask_chains(&candidate, l1_finalized.l1_ref()).await? {
            Finality::Final(to) => to,
            Finality::Held(held) => {
                self.hold(Some(held));
                if held == Held::L1Contradicts {
                    let batch = candidate.index.get();
                    error!(batch, finalized = %l1_finalized.l1_ref(), "L1 contradicts itself about finality; finalized is held");
                }
                return Ok(());
            }
        };
        self.hold(None);
        let Move::To(heads) = self.ledger.heads().advance_finalized(to) else { return Ok(()) };
        let step = Step { finalized: heads.finalized(), ..Step::default() };
        self.ledger.commit(&step).await?;
        info!(number = to.number.get(), batch = candidate.index.get(), "finalized");
        self.prune(&candidate).await
    }

    /// The highest verified batch that stands, or is proved, at L1's finalized block by what is stored.
    async fn final_candidate(
        &self,
        finalized_l1: L1Number,
        settled_to: Option<L1Number>,
    ) -> Result<Result<BatchRecord, Option<Held>>, FlowError> {
        let progress = &self.ports.progress;
        let meaning = self.settings.finality;
        let proof = match meaning {
            FinalityMeaning::Committed => None,
            FinalityMeaning::Proven => progress.newest_proof(finalized_l1).await?,
        };
        let mut candidate = progress.newest_at_or_below(finalized_l1).await?;
        while let Some(record) = candidate {
            let revert = progress.revert_after(record.index, (record.l1.number, record.log_index)).await?;
            let (revert, proof) = (revert.as_ref(), proof.as_ref());
            let facts = StandingFacts { meaning, candidate: &record, finalized_l1, settled_to, revert, proof };
            match finality::standing(&facts) {
                Standing::Candidate => return Ok(Ok(record)),
                // A proof that contradicts the commits may be false: what L1 does not confirm contradicts nothing.
                Standing::Held(Held::L1Contradicts) => {
                    let holds = self.is_proved(proof, record.index, finalized_l1).await?;
                    return Ok(Err(Some(if holds { Held::L1Contradicts } else { Held::NotProven })));
                }
                Standing::Held(held) => return Ok(Err(Some(held))),
                // Always a lower index: it ends.
                Standing::LookAt(index) => candidate = progress.batch(index).await?,
            }
        }
        Ok(Err(None))
    }

    async fn ask_chains(&self, candidate: &BatchRecord, finalized_l1: L1Ref) -> Result<Finality, FlowError> {
        let Some(last) = candidate.last else { return Ok(Finality::Held(Held::Unknown)) };
        // Reverts and proofs are known up to these blocks: on another chain than L1's they tell nothing.
        let mut grounds = self.settlements.known_to(self.ledger.cursor().as_ref()).await?;
        let proof = match self.settings.finality {
            FinalityMeaning::Committed => None,
            FinalityMeaning::Proven => self.ports.progress.newest_proof(finalized_l1.number).await?,
        };
        grounds.extend(proof.as_ref().map(|proof| proof.block));
        let asked = [candidate.l1.number, finalized_l1.number];
        let asked: Vec<_> = asked.into_iter().chain(grounds.iter().map(|block| block.number)).collect();
        let live = self.ports.l1.headers(&asked).await?;
        let is_live = |(block, header): (&L1Ref, &Option<L1Header>)| header.is_some_and(|h| h.l1_ref() == *block);
        let known = live.len() == asked.len() && grounds.iter().zip(live.iter().skip(2)).all(is_live);
        let live_l1 = live.first().copied().flatten();
        let live_finalized = live.get(1).copied().flatten();
        let local = self.ports.l2.header(last.number).await?;
        let facts = FinalityFacts { candidate, live_l1, finalized_l1, live_finalized, local };
        Ok(match finality::finality(&facts) {
            Finality::Final(_) if !known => Finality::Held(Held::Unknown),
            Finality::Final(_) if !self.is_proved(proof.as_ref(), candidate.index, finalized_l1.number).await? => {
                Finality::Held(Held::NotProven)
            }
            verdict => verdict,
        })
    }

    /// Whether L1 confirms the `proof` by which batch `index` is proved at its finalized block; so where none is needed.
    async fn is_proved(
        &self,
        proof: Option<&L1Event>,
        index: BatchIndex,
        finalized_l1: L1Number,
    ) -> Result<bool, FlowError> {
        match proof {
            None => Ok(true),
            Some(proof) => self.settlements.holds_proof(proof, index, finalized_l1).await,
        }
    }

    fn hold(&mut self, held: Option<Held>) {
        self.status.finality_held = held;
        self.status.l1_finality_contradicted = held == Some(Held::L1Contradicts);
        if let Some(held) = held {
            debug!(?held, settled_to = ?self.status.settled_to, "finalized is held");
        }
    }

    /// Tells whether our finalized head stands on a batch that L1 reverted since: ordinary, and to be looked at (M3).
    async fn note_uncommitted(&mut self) -> Result<(), FlowError> {
        let standing = self.ports.progress.newest_at_or_below(L1Number::new(u64::MAX)).await?;
        let last = standing.as_ref().and_then(|record| record.last);
        self.status.uncommitted_finalized = finality::is_uncommitted(self.ledger.heads().finalized(), last);
        if self.status.uncommitted_finalized {
            let finalized = self.ledger.heads().finalized().map(|f| f.number.get());
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

    /// What lies below finality and outside the reorg window is not needed any more (H5).
    async fn prune(&self, finalized: &BatchRecord) -> Result<(), FlowError> {
        let Some(cursor) = self.ledger.cursor() else { return Ok(()) };
        let l1 = cursor.block.number.minus(self.settings.reorg_window).min(finalized.l1.number);
        let queue = finalized.total_l1_popped.into();
        let batch = BatchIndex::new(finalized.index.get()).minus(KEEP_BATCHES);
        self.ledger.prune(l1, queue, batch).await?;
        Ok(())
    }
}
