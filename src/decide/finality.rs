//! What has become final?
//!
//! A batch is final when the L1 block of its commit is at or below the L1 finalized block *and* still canonical by
//! hash, and its last L2 block is still the local chain's (B8: a finalized tag alone proves nothing when endpoints
//! contradict each other). Everything comes from stored rows, so no historical contract state is needed (A7).

use crate::types::{BatchRecord, L1Header, L2Header, L2Ref};

/// What was read.
#[derive(Clone, Debug)]
pub struct FinalityFacts<'a> {
    /// The standing verified batch with the highest index at or below the L1 finalized height.
    pub candidate: &'a BatchRecord,
    /// The live L1 header at the height of the candidate's commit.
    pub live_l1: Option<L1Header>,
    /// The local L2 header at the candidate's last block.
    pub local: Option<L2Header>,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finality {
    /// This block is final.
    Final(L2Ref),
    /// The commit's L1 block is not the one that was recorded.
    L1Contradicts,
    /// The last L2 block is not the one that was verified.
    LocalContradicts,
    /// One of the two could not be found, or the candidate has no blocks.
    Unknown,
}

/// Decides.
pub fn finality(facts: &FinalityFacts<'_>) -> Finality {
    let (Some(last), Some(live_l1)) = (facts.candidate.last, facts.live_l1) else { return Finality::Unknown };
    if live_l1.l1_ref() != facts.candidate.l1 {
        return Finality::L1Contradicts;
    }
    match facts.local {
        None => Finality::Unknown,
        Some(local) if local.l2_ref() == last => Finality::Final(last),
        Some(_) => Finality::LocalContradicts,
    }
}
