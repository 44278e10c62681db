//! Are the roots those of the calldata?
//!
//! "Could not look" is a third answer, never one of the other two (P1).

use crate::types::B256;

/// `messageRoot()` before the first message: the root of an empty tree of 32 levels, as the recorded network's genesis
/// has it.
pub const EMPTY_WITHDRAWAL_ROOT: B256 = B256([
    0x27, 0xae, 0x5b, 0xa0, 0x8d, 0x72, 0x91, 0xc9, 0x6c, 0x8c, 0xbd, 0xdc, 0xc1, 0x48, 0xbf, 0x48, 0xa6, 0xd6, 0x8c,
    0x79, 0x74, 0xb9, 0x43, 0x56, 0xf5, 0x37, 0x54, 0xef, 0x61, 0x71, 0xd7, 0x57,
]);

/// What is known of a batch's roots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootsFacts {
    /// Calldata's `postStateRoot`.
    pub expected_state: B256,
    /// State root in the last block's header.
    pub actual_state: B256,
    /// Calldata's `withdrawalRoot`.
    pub expected_withdrawal: B256,
    /// The withdrawal root at the last block; none when the node could not tell.
    pub actual_withdrawal: Option<B256>,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roots {
    /// Both are equal.
    Equal,
    /// The state root differs.
    StateDiffers {
        /// Calldata's.
        expected: B256,
        /// The header's.
        actual: B256,
    },
    /// The withdrawal root differs.
    WithdrawalDiffers {
        /// Calldata's.
        expected: B256,
        /// The node's.
        actual: B256,
    },
    /// The withdrawal root could not be read.
    Unknown,
}

/// Compares both roots. A state root that differs is told even where the withdrawal root is not known.
pub fn compare(facts: &RootsFacts) -> Roots {
    if facts.expected_state != facts.actual_state {
        return Roots::StateDiffers { expected: facts.expected_state, actual: facts.actual_state };
    }
    match facts.actual_withdrawal {
        None => Roots::Unknown,
        Some(actual) if actual == facts.expected_withdrawal => Roots::Equal,
        Some(actual) => Roots::WithdrawalDiffers { expected: facts.expected_withdrawal, actual },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e1_every_combination() {
        let (a, b) = (B256::repeat_byte(1), B256::repeat_byte(2));
        let facts = |expected_state, actual_state, expected_withdrawal, actual_withdrawal| RootsFacts {
            expected_state,
            actual_state,
            expected_withdrawal,
            actual_withdrawal,
        };
        assert_eq!(compare(&facts(a, a, b, Some(b))), Roots::Equal);
        assert_eq!(compare(&facts(a, a, b, None)), Roots::Unknown);
        assert_eq!(compare(&facts(a, a, b, Some(a))), Roots::WithdrawalDiffers { expected: b, actual: a });
        assert_eq!(compare(&facts(a, b, b, None)), Roots::StateDiffers { expected: a, actual: b });
        assert_eq!(compare(&facts(a, b, b, Some(b))), Roots::StateDiffers { expected: a, actual: b });
    }
}
