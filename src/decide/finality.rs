//! What has become final?
//!
//! A batch is final when the L1 block of its commit is at or below the L1 finalized block, both blocks are canonical by
//! hash, and its last L2 block is still the local chain's (B8: a finalized tag alone proves nothing when endpoints
//! contradict each other). Everything comes from stored rows, so no historical contract state is needed (A7).

use crate::types::{BatchRecord, L1Header, L1Ref, L2Header, L2Ref};

/// What was read.
#[derive(Clone, Debug)]
pub struct FinalityFacts<'a> {
    /// The standing verified batch with the highest index at or below the L1 finalized height.
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
    /// The commit's L1 block is not the one that was recorded, or the finalized one is not on the live chain.
    L1Contradicts,
    /// The last L2 block is not the one that was verified.
    LocalContradicts,
    /// One of the two could not be found, or the candidate has no blocks.
    Unknown,
}

/// Decides.
pub fn finality(facts: &FinalityFacts<'_>) -> Finality {
    let (Some(last), Some(live_l1)) = (facts.candidate.last, facts.live_l1) else { return Finality::Unknown };
    let Some(live_finalized) = facts.live_finalized else { return Finality::Unknown };
    if live_l1.l1_ref() != facts.candidate.l1 || live_finalized.l1_ref() != facts.finalized_l1 {
        return Finality::L1Contradicts;
    }
    match facts.local {
        None => Finality::Unknown,
        Some(local) if local.l2_ref() == last => Finality::Final(last),
        Some(_) => Finality::LocalContradicts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{B256, L1Number, L2Number, Outcome, U256};

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
            (FinalityFacts { live_l1: Some(l1(100, 7)), ..good.clone() }, Finality::L1Contradicts),
            (FinalityFacts { live_l1: None, ..good.clone() }, Finality::Unknown),
            (FinalityFacts { live_finalized: Some(l1(110, 7)), ..good.clone() }, Finality::L1Contradicts),
            (FinalityFacts { live_finalized: None, ..good.clone() }, Finality::Unknown),
            (FinalityFacts { local: Some(l2(40, 7)), ..good.clone() }, Finality::LocalContradicts),
            (FinalityFacts { local: None, ..good.clone() }, Finality::Unknown),
            (FinalityFacts { candidate: &candidate(None), ..good.clone() }, Finality::Unknown),
        ];
        for (facts, expected) in cases {
            assert_eq!(finality(&facts), expected);
        }
    }
}
