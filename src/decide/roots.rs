//! Are the roots those of the calldata?
//!
//! "Could not look" is a third answer, never one of the other two (P1). The node's logs can show that the withdrawal
//! root is right: the state root fixes it, and was compared before. They cannot show that it is wrong: a node that has
//! dropped the newest of its logs, or all of them, shows an older root, or none. Only the contract's state at the block
//! can show that.

use crate::types::B256;

/// `messageRoot()` before the first message: the root of an empty tree of 32 levels, as in the recorded network's
/// genesis.
pub const EMPTY_WITHDRAWAL_ROOT: B256 = B256([
    0x27, 0xae, 0x5b, 0xa0, 0x8d, 0x72, 0x91, 0xc9, 0x6c, 0x8c, 0xbd, 0xdc, 0xc1, 0x48, 0xbf, 0x48, 0xa6, 0xd6, 0x8c,
    0x79, 0x74, 0xb9, 0x43, 0x56, 0xf5, 0x37, 0x54, 0xef, 0x61, 0x71, 0xd7, 0x57,
]);

/// The withdrawal root at a batch's last block, by its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithdrawalRoot {
    /// The contract's state at that block.
    State(B256),
    /// The last log at or below that block that the node still has, else the verified root below the batch, else the
    /// root of an empty tree.
    Logs(B256),
    /// No source could give it.
    Unknown,
}

/// What is known of a batch's roots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootsFacts {
    /// Calldata's `postStateRoot`.
    pub expected_state: B256,
    /// State root in the last block's header.
    pub actual_state: B256,
    /// Calldata's `withdrawalRoot`.
    pub expected_withdrawal: B256,
    /// The withdrawal root at the last block.
    pub actual_withdrawal: WithdrawalRoot,
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
    /// The withdrawal root could not be checked.
    Unknown,
}

/// Compares both roots. A different state root is reported even if the withdrawal root is not known.
pub fn compare(facts: &RootsFacts) -> Roots {
    if facts.expected_state != facts.actual_state {
        return Roots::StateDiffers { expected: facts.expected_state, actual: facts.actual_state };
    }
    match facts.actual_withdrawal {
        WithdrawalRoot::State(root) | WithdrawalRoot::Logs(root) if root == facts.expected_withdrawal => Roots::Equal,
        WithdrawalRoot::Logs(_) | WithdrawalRoot::Unknown => Roots::Unknown,
        WithdrawalRoot::State(actual) => Roots::WithdrawalDiffers { expected: facts.expected_withdrawal, actual },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e1_m19_every_combination() {
        use WithdrawalRoot::{Logs, State, Unknown};
        let (a, b) = (B256::repeat_byte(1), B256::repeat_byte(2));
        let state_differs = Roots::StateDiffers { expected: a, actual: b };
        // The state root, the withdrawal root (the expected ones are a, b); the answer.
        let table = [
            (a, State(b), Roots::Equal),
            (a, State(a), Roots::WithdrawalDiffers { expected: b, actual: a }),
            (a, Logs(b), Roots::Equal),
            (a, Logs(a), Roots::Unknown),
            (a, Unknown, Roots::Unknown),
            (b, State(b), state_differs),
            (b, State(a), state_differs),
            (b, Logs(b), state_differs),
            (b, Logs(a), state_differs),
            (b, Unknown, state_differs),
        ];
        for (actual_state, actual_withdrawal, expected) in table {
            let facts = RootsFacts { expected_state: a, actual_state, expected_withdrawal: b, actual_withdrawal };
            assert_eq!(compare(&facts), expected, "{facts:?}");
        }
    }
}
