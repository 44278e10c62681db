//! The node refused a block: for good, or for now? And when is it tried again?
//!
//! Decided here: what the node's words mean (protocol.md, section 7), which plans a failed try covers, and how long the
//! next try waits. Unknown words count as passing: trying again costs a pause, giving up costs the chain. No refusal is
//! for ever: a node may be repaired or upgraded within one poll, and nothing shows it.

use std::time::Duration;

use crate::decide::reconcile::Plan;
use crate::types::{B256, NewBlock};

/// What a refusal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The node takes only head + 1: it ignores `parentHash` (E13).
    CannotRewrite,
    /// The same block on the same parent will never be taken (E17).
    Permanent,
    /// The parent is gone, or the head is a different block: the local chain changed meanwhile.
    ChainChanged,
    /// The node's finalized tag is on a block that is no longer on the chain. The node takes the block, but answers
    /// every write with this until the tag is corrected (morph-reth).
    FinalizedElsewhere,
    /// Anything else: states that are being loaded, a full disk, a shutdown.
    Passing,
    /// Not the node's: the reactors were not paused, or only half.
    NotPaused,
}

/// JSON-RPC's code for parameters that cannot be read.
const INVALID_PARAMS: i64 = -32602;

/// Longest wait for a fault that may pass by itself, if every try is a pause. After an operator frees space on a full
/// disk, the next try comes within this time.
pub const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// Wait for a fault that only other node software ends. An upgrade shows in the node's version and ends the wait; this
/// bound is for a change that nothing shows. It applies if every try is a pause.
pub const PROBE_EVERY: Duration = Duration::from_secs(3600);

/// Least time between two waits that a changed node ends early. A node may come and go at every poll, and every early
/// end costs a pause.
pub const ENDED_EARLY_EVERY: Duration = LONGEST_WAIT;

/// Most poll intervals that a try waits if a pause costs nothing (P4).
const POLLS_IF_FREE: u32 = 2;

/// Which plans a failed try covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Every plan that writes below the head.
    EveryRewrite,
    /// Every plan that begins with this block, given without its parent's hash, on this parent.
    Block {
        /// The parent that it was to stand on.
        parent: B256,
        /// The block.
        block: Box<NewBlock>,
    },
    /// Every plan: the block was not the cause.
    EveryWrite,
}

impl Refusal {
    /// Whether the node certainly did not make the block that it refused. A node whose finalized tag is off the chain
    /// makes the block, and refuses only to make it its head.
    pub const fn left_nothing(self) -> bool {
        match self {
            Self::CannotRewrite | Self::Permanent | Self::ChainChanged | Self::Passing | Self::NotPaused => true,
            Self::FinalizedElsewhere => false,
        }
    }

    /// Whether a changed node may now take what it refused. A chain that changed meanwhile says nothing about the node,
    /// and neither do the reactors.
    pub const fn is_of_the_node(self) -> bool {
        match self {
            Self::CannotRewrite | Self::Permanent | Self::FinalizedElsewhere | Self::Passing => true,
            Self::ChainChanged | Self::NotPaused => false,
        }
    }
}

impl Subject {
    /// The subject of a refused `block` on `parent`.
    pub fn block(parent: B256, block: &NewBlock) -> Self {
        Self::Block { parent, block: Box::new(NewBlock { parent_hash: None, ..block.clone() }) }
    }

    /// Whether `plan` would fail like the try did.
    pub fn covers(&self, plan: &Plan) -> bool {
        match self {
            Self::EveryWrite => true,
            Self::EveryRewrite => plan.rewrites(),
            Self::Block { parent, block } => {
                *parent == plan.skip.hash && plan.blocks.first().is_some_and(|first| *first == **block)
            }
        }
    }
}

/// How long the next try waits after the `tries`th failed one in a row. `free` says that a pause costs nothing.
pub fn wait(refusal: Refusal, tries: u32, poll_interval: Duration, free: bool) -> Duration {
    let longest = if free { poll_interval.saturating_mul(POLLS_IF_FREE) } else { LONGEST_WAIT.max(poll_interval) };
    match refusal {
        Refusal::Passing | Refusal::FinalizedElsewhere | Refusal::ChainChanged | Refusal::NotPaused => {
            let doublings = tries.saturating_sub(1).min(31);
            poll_interval.saturating_mul(2_u32.saturating_pow(doublings)).min(longest)
        }
        Refusal::CannotRewrite | Refusal::Permanent if free => longest,
        Refusal::CannotRewrite | Refusal::Permanent => PROBE_EVERY,
    }
}

/// morph-reth's codes for a block that it will not take: a transaction that is none, one that cannot be built into a
/// block, a block that breaks a rule. The first code is enough by itself, the others need the message's words.
const INVALID_TRANSACTION: i64 = -32002;
const BUILD_FAILED: i64 = -32003;
const VALIDATION_FAILED: i64 = -32004;

/// Words of `failed to build block` that are about what was given, and not about the node.
const BUILD_FAULTS: [&str; 8] =
    ["invalid supplied transaction", "decode", "decoding", "rlp", "gas limit", "l1 message", "signer", "signature"];

/// Judges by code and words, of either client. `rewrites` says that the block was the first of a write below the head
/// and carried its parent's hash. The blocks after it follow as head + 1; for them a number mismatch means that the
/// head is a different block.
pub fn judge(code: i64, words: &str, rewrites: bool) -> Refusal {
    let words = words.to_ascii_lowercase();
    let says = |part: &str| words.contains(part);
    if says("discontinuous block number") {
        return if rewrites { Refusal::CannotRewrite } else { Refusal::ChainChanged };
    }
    if says("parent block not found") || says("wrong block number") || says("wrong parent hash") {
        return Refusal::ChainChanged;
    }
    if says("invalid forkchoice state") || says("final block not available") {
        return Refusal::FinalizedElsewhere;
    }
    // The node lacks something, whatever else it says.
    if ["missing trie node", "state at block", "database error", "returned syncing"].into_iter().any(says) {
        return Refusal::Passing;
    }
    let is_permanent = match code {
        INVALID_PARAMS | INVALID_TRANSACTION => true,
        BUILD_FAILED => BUILD_FAULTS.into_iter().any(says),
        // A slow clock catches up by itself; so does a growing head that is still below the number.
        VALIDATION_FAILED => !says("future") && !says("exceeds canonical head"),
        _ => says("invalid transaction") || says("could not apply tx"),
    };
    if is_permanent { Refusal::Permanent } else { Refusal::Passing }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::L2Ref;

    fn block(number: u64) -> NewBlock {
        NewBlock {
            number: number.into(),
            timestamp: number,
            base_fee: 7.into(),
            gas_limit: 30,
            transactions: Vec::new(),
            parent_hash: None,
        }
    }

    fn plan(skip: u64, replaces: bool) -> Plan {
        let at = |number: u64| L2Ref { number: number.into(), hash: B256::from_low_u64_be(number) };
        let blocks = vec![block(skip + 1), block(skip + 2)];
        let replaces = if replaces { vec![at(skip + 1)] } else { Vec::new() };
        Plan { skip: at(skip), blocks, replaces, again: Vec::new() }
    }

    #[test]
    fn m13_e17_which_plans_a_failed_try_speaks_of() {
        let sent = NewBlock { parent_hash: Some(B256::repeat_byte(9)), ..block(9) };
        let refused = Subject::block(B256::from_low_u64_be(8), &sent);
        let other_parent = Subject::block(B256::from_low_u64_be(7), &sent);
        let other_block = Subject::block(B256::from_low_u64_be(8), &NewBlock { gas_limit: 31, ..block(9) });
        let table = [
            (&refused, plan(8, false), true),
            (&refused, plan(8, true), true),
            (&refused, plan(9, false), false),
            (&other_parent, plan(8, false), false),
            (&other_block, plan(8, false), false),
            (&Subject::EveryRewrite, plan(8, true), true),
            (&Subject::EveryRewrite, plan(3, true), true),
            (&Subject::EveryRewrite, plan(8, false), false),
            (&Subject::EveryWrite, plan(8, false), true),
            (&Subject::EveryWrite, plan(3, true), true),
        ];
        for (subject, plan, expected) in table {
            assert_eq!(subject.covers(&plan), expected, "{subject:?} {plan:?}");
        }
    }

    #[test]
    fn m13_m14_waits_double_and_end_and_none_is_for_ever() {
        let poll = Duration::from_secs(15);
        let table = [
            (Refusal::Passing, 1, false, 15),
            (Refusal::Passing, 2, false, 30),
            (Refusal::Passing, 6, false, 480),
            (Refusal::Passing, 7, false, 600),
            (Refusal::Passing, u32::MAX, false, 600),
            (Refusal::Passing, 1, true, 15),
            (Refusal::Passing, 2, true, 30),
            (Refusal::Passing, 40, true, 30),
            (Refusal::ChainChanged, 1, false, 15),
            (Refusal::ChainChanged, 5, false, 240),
            (Refusal::ChainChanged, 500, false, 600),
            (Refusal::ChainChanged, 500, true, 30),
            (Refusal::NotPaused, 5, false, 240),
            (Refusal::NotPaused, 500, false, 600),
            (Refusal::Permanent, 1, false, 3600),
            (Refusal::CannotRewrite, 9, false, 3600),
            (Refusal::CannotRewrite, 9, true, 30),
            (Refusal::Permanent, 1, true, 30),
        ];
        for (refusal, tries, free, expected) in table {
            let got = wait(refusal, tries, poll, free);
            assert_eq!(got, Duration::from_secs(expected), "{refusal:?} {tries} {free}");
        }
        // A poll interval above the longest wait becomes the wait.
        let hour = Duration::from_secs(3600);
        assert_eq!(wait(Refusal::Passing, 3, hour, false), hour);
        assert_eq!(wait(Refusal::Passing, u32::MAX, Duration::MAX, true), Duration::MAX);
    }

    #[test]
    fn e13_e17_every_answer_that_was_seen() {
        let discontinuous = "cannot assemble block with discontinuous block number 9, expected number is 17";
        let table = [
            (-32000, discontinuous, true, Refusal::CannotRewrite),
            (-32000, discontinuous, false, Refusal::ChainChanged),
            (-32000, "parent block not found: 0x12", true, Refusal::ChainChanged),
            (-32000, "wrong block number: expected 4, got 5", true, Refusal::ChainChanged),
            (-32000, "invalid transaction 0: typed transaction too short", false, Refusal::Permanent),
            (-32000, "could not apply tx 0 [0x12]: nonce too low", false, Refusal::Permanent),
            (-32000, "could not apply tx 0 [0x12]: missing trie node 0x34", false, Refusal::Passing),
            (-32602, "invalid argument 0: missing required field 'gasLimit'", false, Refusal::Permanent),
            (-32000, "missing trie node 0x34 (path )", false, Refusal::Passing),
            (-32000, "database closed", true, Refusal::Passing),
        ];
        for (code, words, rewrites, expected) in table {
            assert_eq!(judge(code, words, rewrites), expected, "{words}");
        }
    }

    #[test]
    fn l8_l9_l13_every_answer_of_morph_reth() {
        use Refusal::{CannotRewrite, ChainChanged, FinalizedElsewhere, Passing, Permanent};
        let built = |words: &str| format!("failed to build block: failed to get built payload: {words}");
        let invalid = |words: &str| format!("block validation failed: newPayload returned INVALID: {words}");
        let table = [
            (-32001, "discontinuous block number 9, expected 17".to_owned(), true, CannotRewrite),
            (-32001, "discontinuous block number 9, expected 17".to_owned(), false, ChainChanged),
            (-32001, "wrong parent hash 0x12, expected 0x34".to_owned(), true, ChainChanged),
            (-32099, "internal error: parent block not found: 0x12".to_owned(), true, ChainChanged),
            (-32002, "transaction at index 0 is invalid: unexpected tx type".to_owned(), false, Permanent),
            (-32003, built("invalid supplied transaction: nonce 5 too low, expected 7"), false, Permanent),
            (-32003, built("failed to decode transaction: unexpected length"), false, Permanent),
            (-32003, built("transaction gas limit exceeds what is left of the block's"), false, Permanent),
            (-32003, built("L1 message behind an ordinary transaction"), false, Permanent),
            (-32003, built("signer not recoverable"), false, Permanent),
            (-32003, built("state at block #9 is pruned"), false, Passing),
            (-32003, built("database error: mdbx is full"), false, Passing),
            (-32003, "failed to build block: failed to send build request".to_owned(), false, Passing),
            (-32004, invalid("gas limit moves by more than parent/1024"), false, Permanent),
            (-32004, invalid("block timestamp 90 is in the future compared to our clock time 80"), false, Passing),
            (
                -32004,
                "block validation failed: block hash mismatch: expected 0x1, computed 0x2".to_owned(),
                false,
                Permanent,
            ),
            (
                -32004,
                "block validation failed: safe block number 9 exceeds canonical head number 8".to_owned(),
                false,
                Passing,
            ),
            (-32005, "block execution failed: newPayload returned SYNCING for payload".to_owned(), true, Passing),
            (
                -32005,
                "block execution failed: forkchoiceUpdated returned SYNCING for payload".to_owned(),
                true,
                Passing,
            ),
            (
                -32005,
                "block execution failed: forkchoice update error: Invalid forkchoice state".to_owned(),
                true,
                FinalizedElsewhere,
            ),
            (
                -32005,
                "block execution failed: forkchoice update error: final block not available in database".to_owned(),
                true,
                FinalizedElsewhere,
            ),
            (-32010, "database error: mdbx is busy".to_owned(), true, Passing),
            (-32099, "internal error: no payload response for id 0x12".to_owned(), false, Passing),
            (-32602, "invalid type: integer, expected a hex string".to_owned(), false, Permanent),
        ];
        for (code, words, rewrites, expected) in table {
            assert_eq!(judge(code, &words, rewrites), expected, "{words}");
        }
    }
}
