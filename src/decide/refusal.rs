//! The node refused a block: for good, or for now?
//!
//! Decided here: what the node's words mean (protocol.md, section 7). What nobody ever saw counts as passing: trying
//! again costs a pause, giving up costs the chain.

/// What a refusal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The node takes nothing but head + 1: it ignores `parentHash` (E13).
    CannotRewrite,
    /// The same block on the same parent will never be taken (E17).
    Permanent,
    /// The parent is gone, or the head is another one: the local chain changed under way.
    ChainChanged,
    /// Anything else: states that are being loaded, a full disk, a shutdown.
    Passing,
}

/// JSON-RPC's code for parameters that cannot be read.
const INVALID_PARAMS: i64 = -32602;

/// Judges by code and words. `rewrites` says that the write was one below the head.
pub fn judge(code: i64, words: &str, rewrites: bool) -> Refusal {
    let says = |part: &str| words.contains(part);
    if says("discontinuous block number") {
        return if rewrites { Refusal::CannotRewrite } else { Refusal::ChainChanged };
    }
    if says("parent block not found") || says("wrong block number") {
        return Refusal::ChainChanged;
    }
    if says("missing trie node") {
        return Refusal::Passing;
    }
    if code == INVALID_PARAMS || says("invalid transaction") || says("could not apply tx") {
        return Refusal::Permanent;
    }
    Refusal::Passing
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
