//! What has become final, and what L1 may still take back?
//!
//! Two meanings. *Committed*: the batch stands at L1's finalized block. The contract may still revert it, days later,
//! until it is proved. *Proven*: the batch is proved on the contract at that block, and no revert can take it back.
//! Either way the L1 block of the commit and the finalized block must be canonical by hash, the batch's last L2 block
//! must be the local chain's (B8: a finalized tag alone proves nothing when endpoints contradict each other), and every
//! RevertBatch log up to the finalized block must have been read. The batch's hash on the contract does not show a
//! revert, since the same blocks committed again have the same hash. Everything comes from logs and stored rows, so no
//! historical contract state is needed (A7).
//!
//! Two decisions: [`standing`] picks the batch from what is stored, [`finality`] compares it with the two chains.

use serde::Serialize;

use crate::types::{
    BatchIndex, BatchRecord, FinalityMeaning, L1Event, L1EventKind, L1Header, L1Number, L1Ref, L2Header, L2Ref,
};

/// Why finalized does not move although there is a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    /// Some RevertBatch logs up to L1's finalized block are not read yet.
    ReadingReverts,
    /// Every batch up to it was reverted by a later log.
    Reverted,
    /// No proof of the batch is final on L1 yet.
    NotProven,
    /// The commit's L1 block is not the recorded one, L1's finalized block is not on the live chain, or the proof
    /// belongs to another batch or an earlier commit.
    L1Contradicts,
    /// The last L2 block is not the one that was verified.
    LocalContradicts,
    /// A block could not be found, or the candidate has none.
    Unknown,
}

/// What is stored about a candidate.
#[derive(Clone, Copy, Debug)]
pub struct StandingFacts<'a> {
    /// What is asked for.
    pub meaning: FinalityMeaning,
    /// A verified batch that the logs read so far did not revert, committed at or below L1's finalized block.
    pub candidate: &'a BatchRecord,
    /// L1's finalized block.
    pub finalized_l1: L1Number,
    /// Up to which L1 block every RevertBatch and FinalizeBatch log is known; none if nothing was read.
    pub settled_to: Option<L1Number>,
    /// The first known RevertBatch log after the candidate's commit that takes it down.
    pub revert: Option<&'a L1Event>,
    /// The FinalizeBatch log with the highest index at or below L1's finalized block.
    pub proof: Option<&'a L1Event>,
}

/// Which batch may be final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// This one.
    Candidate,
    /// Not this one; the batch with this index may be.
    LookAt(BatchIndex),
    /// None, for this reason.
    Held(Held),
}

/// Whether the candidate stands, or is proved, at L1's finalized block, according to what is stored.
pub fn standing(facts: &StandingFacts<'_>) -> Standing {
    if facts.settled_to.is_none_or(|to| to < facts.finalized_l1) {
        return Standing::Held(Held::ReadingReverts);
    }
    if let Some(revert) = facts.revert
        && let L1EventKind::Revert { index, .. } = revert.kind
    {
        return match index.get().checked_sub(1) {
            Some(below) => Standing::LookAt(BatchIndex::new(below)),
            None => Standing::Held(Held::Reverted),
        };
    }
    match facts.meaning {
        FinalityMeaning::Committed => Standing::Candidate,
        FinalityMeaning::Proven => proven(facts),
    }
}

fn proven(facts: &StandingFacts<'_>) -> Standing {
    let Some(proof) = facts.proof else { return Standing::Held(Held::NotProven) };
    let L1EventKind::Finalize { index, hash } = proof.kind else { return Standing::Held(Held::NotProven) };
    let candidate = facts.candidate;
    if candidate.index > index {
        return Standing::LookAt(index);
    }
    // A proof below the commit belongs to an earlier commit of that index, which the contract forbids.
    let contradicts = proof.pos() < candidate.pos() || (candidate.index == index && candidate.hash != hash);
    if contradicts { Standing::Held(Held::L1Contradicts) } else { Standing::Candidate }
}

/// Whether the contract may revert batch `index` at the log `at`. It cannot revert what it has proved. `proof` is the
/// FinalizeBatch log with the highest index up to the revert's block.
pub fn may_be_reverted(index: BatchIndex, at: &L1Event, proof: Option<&L1Event>) -> bool {
    let Some(proof) = proof else { return true };
    let L1EventKind::Finalize { index: proved, .. } = proof.kind else { return true };
    proved < index || proof.pos() > at.pos()
}

/// Whether the finalized head lies above everything that L1 holds as committed. Then its batch was reverted, which is
/// ordinary until the batch is proved. `last` is the last block of the highest standing batch.
pub fn is_uncommitted(finalized: Option<L2Ref>, last: Option<L2Ref>) -> bool {
    finalized.is_some_and(|f| last.is_none_or(|last| last.number < f.number))
}

/// What was read of the two chains.
#[derive(Clone, Debug)]
pub struct FinalityFacts<'a> {
    /// The batch that stands or is proved at L1's finalized block.
    pub candidate: &'a BatchRecord,
    /// The live L1 header at the height of the candidate's commit.
    pub live_l1: Option<L1Header>,
    /// The block that L1 calls finalized.
    pub finalized_l1: L1Ref,
    /// The live L1 header at that block's height.
    pub live_finalized: Option<L1Header>,
    /// The local L2 header at the candidate's last block.
    pub local: Option<L2Header>,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finality {
    /// This block is final.
    Final(L2Ref),
    /// None is, for this reason.
    Held(Held),
}

/// Decides.
pub fn finality(facts: &FinalityFacts<'_>) -> Finality {
    let unknown = Finality::Held(Held::Unknown);
    let (Some(last), Some(live_l1)) = (facts.candidate.last, facts.live_l1) else { return unknown };
    let Some(live_finalized) = facts.live_finalized else { return unknown };
    if live_l1.l1_ref() != facts.candidate.l1 || live_finalized.l1_ref() != facts.finalized_l1 {
        return Finality::Held(Held::L1Contradicts);
    }
    match facts.local {
        None => unknown,
        Some(local) if local.l2_ref() == last => Finality::Final(last),
        Some(_) => Finality::Held(Held::LocalContradicts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{B256, L2Number, Outcome, U256};

    fn l1(number: u64, salt: u8) -> L1Header {
        let hash = B256::repeat_byte(salt);
        L1Header { number: L1Number::new(number), hash, parent_hash: B256::zero(), timestamp: 0 }
    }

    fn l2(number: u64, salt: u8) -> L2Header {
        L2Header {
            number: L2Number::new(number),
            hash: B256::repeat_byte(salt),
            parent_hash: B256::zero(),
            state_root: B256::zero(),
            timestamp: 0,
            base_fee: U256::zero(),
            gas_limit: 0,
            transactions_root: B256::zero(),
            next_l1_index: None,
        }
    }

    fn candidate(last: Option<L2Ref>) -> BatchRecord {
        BatchRecord {
            index: 3.into(),
            hash: B256::zero(),
            l1: l1(100, 1).l1_ref(),
            log_index: 0,
            tx_hash: B256::zero(),
            outcome: Outcome::Verified,
            case: None,
            first: None,
            last,
            post_state_root: B256::zero(),
            withdrawal_root: B256::zero(),
            total_l1_popped: 0,
            rewritten: 0,
            encoder_drift: false,
            blobs: 0,
        }
    }

    #[test]
    fn a7_b8_final_only_when_both_l1_blocks_and_the_local_block_are_canonical() {
        let last = l2(40, 9).l2_ref();
        let record = candidate(Some(last));
        let good = FinalityFacts {
            candidate: &record,
            live_l1: Some(l1(100, 1)),
            finalized_l1: l1(110, 2).l1_ref(),
            live_finalized: Some(l1(110, 2)),
            local: Some(l2(40, 9)),
        };
        assert_eq!(finality(&good), Finality::Final(last));
        let cases = [
            (FinalityFacts { live_l1: Some(l1(100, 7)), ..good.clone() }, Finality::Held(Held::L1Contradicts)),
            (FinalityFacts { live_l1: None, ..good.clone() }, Finality::Held(Held::Unknown)),
            (FinalityFacts { live_finalized: Some(l1(110, 7)), ..good.clone() }, Finality::Held(Held::L1Contradicts)),
            (FinalityFacts { live_finalized: None, ..good.clone() }, Finality::Held(Held::Unknown)),
            (FinalityFacts { local: Some(l2(40, 7)), ..good.clone() }, Finality::Held(Held::LocalContradicts)),
            (FinalityFacts { local: None, ..good.clone() }, Finality::Held(Held::Unknown)),
            (FinalityFacts { candidate: &candidate(None), ..good.clone() }, Finality::Held(Held::Unknown)),
        ];
        for (facts, expected) in cases {
            assert_eq!(finality(&facts), expected);
        }
    }

    fn log(block: u64, log_index: u64, kind: L1EventKind) -> L1Event {
        L1Event { block: l1(block, 1).l1_ref(), log_index, tx_hash: B256::zero(), tx_index: 0, kind }
    }

    fn revert(block: u64, index: u64) -> L1Event {
        log(block, 0, L1EventKind::Revert { index: index.into(), hash: B256::zero() })
    }

    fn proof(block: u64, index: u64, hash: B256) -> L1Event {
        log(block, 0, L1EventKind::Finalize { index: index.into(), hash })
    }

    #[test]
    fn m2_m3_a_batch_stands_only_by_all_reverts_and_is_proven_only_by_its_proof() {
        use Standing::{Candidate, LookAt};
        // Batch 3, committed in L1 block 100; L1 is final up to 200.
        let record = candidate(Some(l2(40, 9).l2_ref()));
        let (zero, other) = (B256::zero(), B256::repeat_byte(8));
        let held = Standing::Held;
        /// How far L1 is known, the revert, the proof; the answer for *committed*, and for *proven*.
        type Row = (Option<u64>, Option<L1Event>, Option<L1Event>, Standing, Standing);
        let cases: [Row; 12] = [
            (None, None, None, held(Held::ReadingReverts), held(Held::ReadingReverts)),
            (Some(199), None, Some(proof(150, 3, zero)), held(Held::ReadingReverts), held(Held::ReadingReverts)),
            (Some(200), None, None, Candidate, held(Held::NotProven)),
            (Some(900), None, None, Candidate, held(Held::NotProven)),
            (Some(200), None, Some(proof(150, 3, zero)), Candidate, Candidate),
            (Some(200), None, Some(proof(150, 7, other)), Candidate, Candidate),
            (Some(200), None, Some(proof(150, 2, other)), Candidate, LookAt(2.into())),
            (Some(200), None, Some(proof(150, 3, other)), Candidate, held(Held::L1Contradicts)),
            (Some(200), None, Some(proof(90, 3, zero)), Candidate, held(Held::L1Contradicts)),
            (Some(200), Some(revert(120, 3)), None, LookAt(2.into()), LookAt(2.into())),
            (Some(200), Some(revert(120, 1)), Some(proof(150, 3, zero)), LookAt(0.into()), LookAt(0.into())),
            (Some(200), Some(revert(120, 0)), None, held(Held::Reverted), held(Held::Reverted)),
        ];
        for (settled, revert, proof, committed, proven) in cases {
            for (meaning, expected) in [(FinalityMeaning::Committed, committed), (FinalityMeaning::Proven, proven)] {
                let facts = StandingFacts {
                    meaning,
                    candidate: &record,
                    finalized_l1: 200.into(),
                    settled_to: settled.map(L1Number::new),
                    revert: revert.as_ref(),
                    proof: proof.as_ref(),
                };
                assert_eq!(standing(&facts), expected, "{facts:?}");
            }
        }
    }

    #[test]
    fn m3_only_what_is_proved_cannot_be_reverted() {
        let at = revert(120, 3);
        let zero = B256::zero();
        let cases = [
            (None, true),
            (Some(proof(110, 2, zero)), true),
            (Some(proof(110, 3, zero)), false),
            (Some(proof(110, 9, zero)), false),
            (Some(proof(130, 3, zero)), true),
        ];
        for (proof, expected) in cases {
            assert_eq!(may_be_reverted(3.into(), &at, proof.as_ref()), expected, "{proof:?}");
        }
    }

    #[test]
    fn m3_finalized_is_uncommitted_while_no_standing_batch_reaches_it() {
        let at = |number| Some(l2(number, 1).l2_ref());
        let cases = [(None, None, false), (None, at(9), false), (at(9), at(9), false), (at(9), at(12), false)];
        for (finalized, last, expected) in cases.into_iter().chain([(at(9), at(8), true), (at(9), None, true)]) {
            assert_eq!(is_uncommitted(finalized, last), expected, "{finalized:?} {last:?}");
        }
    }
}
