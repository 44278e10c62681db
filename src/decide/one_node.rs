//! Are the node that is read and the node that is written one node?
//!
//! Blocks are compared on `l2.eth` and written on `l2.engine`. If these are two nodes, a write that appends on one
//! drops everything above its parent on the other (E21), and the tags of one chain are set on another. Decided here:
//! what the heads of both show. The engine's head is read before the reader's and again after it, since the head of a
//! single node may grow in between.

use crate::types::L2Ref;

/// What the heads of the reader and the engine show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OneNode {
    /// Both have the same head: nothing shows that they are two.
    Same,
    /// The head moved between the reads, as it does on one node that grows: nothing is proved.
    Moving,
    /// Their heads are different blocks.
    Two,
}

/// Compares the `reader`'s head with the engine's, read `before` and `after` it.
pub fn one_node(before: L2Ref, reader: L2Ref, after: L2Ref) -> OneNode {
    if reader == before || reader == after {
        OneNode::Same
    } else if before.number < reader.number && reader.number < after.number {
        OneNode::Moving
    } else {
        OneNode::Two
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::B256;

    #[test]
    fn m7_heads_that_no_single_node_shows_are_two_nodes() {
        let at = |number: u64| L2Ref { number: number.into(), hash: B256::from_low_u64_be(number) };
        let fork = |number: u64| L2Ref { number: number.into(), hash: B256::repeat_byte(7) };
        let table = [
            (at(8), at(8), at(8), OneNode::Same),
            (at(8), at(9), at(9), OneNode::Same),
            (at(8), at(8), at(9), OneNode::Same),
            // The node was killed between the reads.
            (at(8), at(4), at(4), OneNode::Same),
            (at(8), at(9), at(10), OneNode::Moving),
            (at(40), at(8), at(40), OneNode::Two),
            (at(8), at(40), at(8), OneNode::Two),
            (at(8), at(40), at(9), OneNode::Two),
            (at(8), fork(8), at(8), OneNode::Two),
            (at(8), fork(8), at(9), OneNode::Two),
            (at(40), at(8), at(41), OneNode::Two),
        ];
        for (before, reader, after, expected) in table {
            assert_eq!(one_node(before, reader, after), expected, "{before} {reader} {after}");
        }
    }
}
