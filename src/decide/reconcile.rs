//! Which local blocks may stay, which are written? The skip number of `derive_force`.
//!
//! A local block may stay only if its content is equal to the batch's, and so is every block of the batch below it,
//! down to a canonical anchor (E6). Equal blocks are not written again unless a state is missing (`write_again`): a
//! write below the head drops everything above it (E21).

use std::fmt;

use crate::codec::block::transactions_root;
use crate::codec::transaction;
use crate::types::{B256, L2Block, L2Header, L2Number, L2Ref, NewBlock, RawTx};

/// Where a local block first differs from the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The block.
    pub number: L2Number,
    /// What differs in it.
    pub field: Field,
}

/// What differs between two blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The number itself.
    Number,
    /// The timestamp.
    Timestamp,
    /// The base fee.
    BaseFee,
    /// The gas limit.
    GasLimit,
    /// How many transactions there are.
    TransactionCount,
    /// The transaction at this place (L1 messages included).
    Transaction(usize),
    /// The block does not build on the one below it.
    Parent,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "block {}: ", self.number)?;
        match self.field {
            Field::Number => f.write_str("number"),
            Field::Timestamp => f.write_str("timestamp"),
            Field::BaseFee => f.write_str("base fee"),
            Field::GasLimit => f.write_str("gas limit"),
            Field::TransactionCount => f.write_str("transaction count"),
            Field::Transaction(at) => write!(f, "transaction {at}"),
            Field::Parent => f.write_str("parent"),
        }
    }
}

/// The local block below the batch, and what it must be.
#[derive(Clone, Copy, Debug)]
pub struct AnchorFacts {
    /// The local header at the batch's first block less one.
    pub local: L2Header,
    /// Calldata's `prevStateRoot`.
    pub prev_state_root: B256,
    /// The last block of the batch before, if that batch was verified.
    pub verified: Option<L2Ref>,
}

/// Whether the anchor is canonical.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// It is.
    Canonical,
    /// It is another block than the one that was verified.
    NotTheVerified {
        /// The verified block.
        expected: L2Ref,
    },
    /// Its state root is not the batch's `prevStateRoot`.
    StateRoot {
        /// Calldata's.
        expected: B256,
        /// The local header's.
        actual: B256,
    },
}

/// Decides whether a batch may be judged and built on the local block below it (E5).
pub fn anchor(facts: &AnchorFacts) -> Anchor {
    if let Some(expected) = facts.verified
        && expected != facts.local.l2_ref()
    {
        return Anchor::NotTheVerified { expected };
    }
    if facts.local.state_root != facts.prev_state_root {
        return Anchor::StateRoot { expected: facts.prev_state_root, actual: facts.local.state_root };
    }
    Anchor::Canonical
}

fn difference_in(expected: &NewBlock, local: &L2Block) -> Option<Field> {
    let header = &local.header;
    if expected.number != header.number {
        return Some(Field::Number);
    }
    if expected.timestamp != header.timestamp {
        return Some(Field::Timestamp);
    }
    if expected.base_fee != header.base_fee {
        return Some(Field::BaseFee);
    }
    if expected.gas_limit != header.gas_limit {
        return Some(Field::GasLimit);
    }
    if let Some(at) = expected.transactions.iter().zip(&local.transactions).position(|(a, b)| a != b) {
        return Some(Field::Transaction(at));
    }
    (expected.transactions.len() != local.transactions.len()).then_some(Field::TransactionCount)
}

/// Compares the batch with the local blocks that exist, from the batch's first block on. Returns how many are equal
/// from the anchor up, and the first difference among those that exist.
pub fn equal_prefix(anchor: L2Ref, expected: &[NewBlock], local: &[L2Block]) -> (usize, Option<Difference>) {
    let mut parent = anchor.hash;
    for (at, (wanted, have)) in expected.iter().zip(local).enumerate() {
        let linked = have.header.parent_hash == parent;
        let field = if linked { difference_in(wanted, have) } else { Some(Field::Parent) };
        if let Some(field) = field {
            return (at, Some(Difference { number: wanted.number, field }));
        }
        parent = have.header.hash;
    }
    (expected.len().min(local.len()), None)
}

/// What `derive_force` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The last local block that stays: the skip number with its hash, the parent of the first block written.
    pub skip: L2Ref,
    /// The blocks to write, in order. Never empty.
    pub blocks: Vec<NewBlock>,
    /// Local blocks that are replaced, from the first written number on.
    pub replaces: Vec<L2Ref>,
    /// The hashes that the first `blocks` must get: equal blocks that are written again. Empty as a rule.
    pub again: Vec<L2Ref>,
}

impl Plan {
    /// The first number that is written.
    pub const fn first(&self) -> L2Number {
        self.skip.number.plus(1)
    }

    /// Whether it writes below the head.
    pub const fn rewrites(&self) -> bool {
        !self.replaces.is_empty()
    }

    /// The last number that is written.
    pub fn last(&self) -> L2Number {
        self.blocks.last().map_or(self.skip.number, |block| block.number)
    }
}

/// Makes the plan out of the comparison: keep the equal prefix, write the rest. None if nothing is left to write.
pub fn plan(anchor: L2Ref, expected: Vec<NewBlock>, local: &[L2Block], equal: usize) -> Option<Plan> {
    let skip = match equal.checked_sub(1) {
        None => anchor,
        Some(at) => local.get(at)?.header.l2_ref(),
    };
    let blocks: Vec<_> = expected.into_iter().skip(equal).collect();
    if blocks.is_empty() {
        return None;
    }
    let replaces = local.iter().skip(equal).map(|b| b.header.l2_ref()).collect();
    Some(Plan { skip, blocks, replaces, again: Vec::new() })
}

/// At most so many equal blocks are written again to reach a state that the node still has. After a restart, a node
/// without archive mode has the states of its head, of the block below, and of two blocks some 126 further down; which
/// older states it kept is random. Each block costs the time of a write inside the pause.
pub const AGAIN_MAX: u64 = 512;

/// The blocks below `skip` whose state is asked for, the nearest first: none below `floor`, at most [`AGAIN_MAX`].
pub fn older_states(skip: L2Number, floor: L2Number) -> Vec<L2Number> {
    let lowest = floor.max(skip.minus(AGAIN_MAX));
    (lowest.get()..skip.get()).rev().map(L2Number::new).collect()
}

/// Why equal blocks cannot be written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// They do not lead up to the plan's parent: the chain changed meanwhile.
    Unlinked,
    /// This block lies before the single-sequencer switch, and no block there is ever written.
    BeforeSwitch(L2Number),
}

/// Puts `equal` in front of the plan. These are the local blocks that lead up to the plan's parent; they are written
/// again unchanged, and each must get the hash that it had.
///
/// # Errors
/// If they cannot be written again.
pub fn write_again(plan: Plan, equal: &[L2Block], switch_ms: u64) -> Result<Plan, Again> {
    let (Some(first), Some(last)) = (equal.first(), equal.last()) else { return Err(Again::Unlinked) };
    let linked = equal.windows(2).all(|pair| match pair {
        [below, above] => {
            above.header.parent_hash == below.header.hash && above.header.number == below.header.number.plus(1)
        }
        _ => false,
    });
    if !linked || last.header.l2_ref() != plan.skip || first.header.number.get() == 0 {
        return Err(Again::Unlinked);
    }
    if let Some(early) = equal.iter().find(|block| block.header.timestamp.saturating_mul(1000) < switch_ms) {
        return Err(Again::BeforeSwitch(early.header.number));
    }
    let again: Vec<_> = equal.iter().map(|block| block.header.l2_ref()).collect();
    let rewritten = equal.iter().map(|block| NewBlock {
        number: block.header.number,
        timestamp: block.header.timestamp,
        base_fee: block.header.base_fee,
        gas_limit: block.header.gas_limit,
        transactions: block.transactions.clone(),
        parent_hash: None,
    });
    Ok(Plan {
        skip: L2Ref { number: first.header.number.minus(1), hash: first.header.parent_hash },
        blocks: rewritten.chain(plan.blocks).collect(),
        replaces: again.iter().chain(&plan.replaces).copied().collect(),
        again,
    })
}

/// Which blocks show that `plan` still fits a head that moved from `before` to `now`: all of them must still be there.
/// None if the plan does not fit. Blocks that landed on top of what is replaced only add to what is dropped; any other
/// change needs a new decision (G5).
pub fn tells_that_it_holds(plan: &Plan, before: L2Ref, now: L2Ref) -> Option<Vec<L2Ref>> {
    if now == before {
        return Some(Vec::new());
    }
    let first = plan.replaces.first().filter(|first| first.number <= now.number)?;
    Some([plan.skip, *first].into_iter().chain(plan.again.last().copied()).collect())
}

/// A block that the node made differently from what it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MadeOtherwise<'a> {
    /// What it was given.
    pub block: &'a NewBlock,
    /// The parent that it was to build on.
    pub parent: B256,
    /// What differs in it.
    pub what: Otherwise,
    /// How many blocks before it in the same reply were made as given.
    pub before: usize,
}

impl MadeOtherwise<'_> {
    /// How many headers of the reply show what was made of the blocks that were sent: those before this one, and its
    /// own if that is a header of the same block. A header with another number or another parent says nothing about the
    /// block.
    pub const fn told(&self) -> usize {
        match self.what {
            Otherwise::Number | Otherwise::Parent => self.before,
            Otherwise::Timestamp
            | Otherwise::BaseFee
            | Otherwise::GasLimit
            | Otherwise::Transactions
            | Otherwise::NextMessage
            | Otherwise::Hash => self.before.saturating_add(1),
        }
    }
}

/// What the node made differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Otherwise {
    /// The number.
    Number,
    /// The parent.
    Parent,
    /// The time.
    Timestamp,
    /// The base fee.
    BaseFee,
    /// The gas limit.
    GasLimit,
    /// The transactions: one is missing, or one was added.
    Transactions,
    /// The index of the next L1 message.
    NextMessage,
    /// The hash of an equal block that was written again.
    Hash,
}

impl fmt::Display for Otherwise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Number => "its number is another",
            Self::Parent => "it stands on another parent",
            Self::Timestamp => "its time is another",
            Self::BaseFee => "its base fee is another",
            Self::GasLimit => "its gas limit is another",
            Self::Transactions => {
                "its transactions are others (morph-reth before the fix of its issue 179 puts its own pool's behind them, \
                 and its first versions skip what they cannot apply)"
            }
            Self::NextMessage => "the index of the next L1 message behind it is another",
            Self::Hash => "it had another hash before",
        })
    }
}

/// Compares what was sent with the headers that came back. The node makes blocks of nearly anything (protocol.md,
/// section 7), but it must make them of what it was given, and an equal block that is written `again` must get the hash
/// that it had. Returns the first block that differs.
///
/// The first block builds on `anchor`. `next_index` is the L1 message that follows after `anchor`, if that is known.
///
/// The transactions are compared by their root, which the header commits to. The index of the next L1 message is not
/// part of what is hashed. It must follow the block's last message; if the block holds none, it must be the parent's.
pub fn mismatch<'a>(
    sent: &'a [NewBlock],
    made: &[L2Header],
    anchor: B256,
    mut next_index: Option<u64>,
    again: &[L2Ref],
) -> Option<MadeOtherwise<'a>> {
    let mut parent = anchor;
    for (before, (block, header)) in sent.iter().zip(made).enumerate() {
        next_index = index_after(block, next_index);
        if let Some(what) = otherwise(block, header, parent, next_index, again) {
            return Some(MadeOtherwise { block, parent, what, before });
        }
        parent = header.hash;
        next_index = header.next_l1_index.or(next_index);
    }
    None
}

/// The index of the L1 message that follows `block`; `before` is the index that follows its parent.
fn index_after(block: &NewBlock, before: Option<u64>) -> Option<u64> {
    let last = block.transactions.iter().rev().find_map(|raw| transaction::queue_index(raw).ok());
    last.map(|index| index.get().saturating_add(1)).or(before)
}

fn otherwise(
    block: &NewBlock,
    header: &L2Header,
    parent: B256,
    next_index: Option<u64>,
    again: &[L2Ref],
) -> Option<Otherwise> {
    let known = again.iter().find(|known| known.number == block.number);
    // The index is outside the hash, and an older node says zero whatever the block holds. Then only the transactions'
    // root decides.
    let index_differs =
        next_index.zip(header.next_l1_index).is_some_and(|(expected, said)| said != 0 && expected != said);
    [
        (block.number != header.number, Otherwise::Number),
        (header.parent_hash != parent, Otherwise::Parent),
        (block.timestamp != header.timestamp, Otherwise::Timestamp),
        (block.base_fee != header.base_fee, Otherwise::BaseFee),
        (block.gas_limit != header.gas_limit, Otherwise::GasLimit),
        (transactions_root(&block.transactions) != header.transactions_root, Otherwise::Transactions),
        (index_differs, Otherwise::NextMessage),
        (known.is_some_and(|known| known.hash != header.hash), Otherwise::Hash),
    ]
    .into_iter()
    .find_map(|(differs, what)| differs.then_some(what))
}

/// What a block's content takes in memory, roughly. Equal content counts the same.
pub fn held_bytes(transactions: &[RawTx]) -> usize {
    let each = |raw: &RawTx| raw.len().saturating_add(size_of::<RawTx>());
    transactions.iter().map(each).fold(size_of::<L2Header>(), usize::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::transaction::L1MessageFields;
    use crate::types::{Address, RawTx, U256};

    fn hash(number: u64, fork: u8) -> B256 {
        let mut h = B256::from_low_u64_be(number);
        h.0[0] = fork;
        h
    }

    fn expected(number: u64) -> NewBlock {
        NewBlock {
            number: number.into(),
            timestamp: number * 2,
            base_fee: U256::from(7),
            gas_limit: 30,
            transactions: vec![RawTx::from_static(b"a"), RawTx::from_static(b"b")],
            parent_hash: None,
        }
    }

    fn local(number: u64) -> L2Block {
        let e = expected(number);
        L2Block {
            header: L2Header {
                number: e.number,
                hash: hash(number, 0),
                parent_hash: hash(number - 1, 0),
                state_root: B256::zero(),
                timestamp: e.timestamp,
                base_fee: e.base_fee,
                gas_limit: e.gas_limit,
                transactions_root: B256::zero(),
                next_l1_index: None,
            },
            transactions: e.transactions,
        }
    }

    fn anchor_ref() -> L2Ref {
        L2Ref { number: 9.into(), hash: hash(9, 0) }
    }

    #[test]
    fn g5_what_must_still_stand_where_the_head_moved() {
        let at = |number: u64| L2Ref { number: number.into(), hash: B256::from_low_u64_be(number) };
        let plan = |replaces: &[u64], again: &[u64]| Plan {
            skip: at(8),
            blocks: Vec::new(),
            replaces: replaces.iter().map(|n| at(*n)).collect(),
            again: again.iter().map(|n| at(*n)).collect(),
        };
        let table = [
            (plan(&[9, 10], &[]), 10, 10, Some(vec![])),
            (plan(&[], &[]), 8, 8, Some(vec![])),
            // The head grew: what is replaced and what stays below it must be the same.
            (plan(&[9, 10], &[]), 10, 12, Some(vec![at(8), at(9)])),
            (plan(&[9, 10], &[9, 10]), 10, 12, Some(vec![at(8), at(9), at(10)])),
            // The head fell, but not below the first block that is replaced.
            (plan(&[9, 10], &[]), 10, 9, Some(vec![at(8), at(9)])),
            (plan(&[9, 10], &[]), 10, 8, None),
            // Nothing was to be replaced, and now there would be.
            (plan(&[], &[]), 8, 9, None),
        ];
        for (plan, before, now, expected) in table {
            assert_eq!(tells_that_it_holds(&plan, at(before), at(now)), expected, "{before} to {now}");
        }
    }

    #[test]
    fn e13_e17_l4_a_block_that_was_made_otherwise_is_named_with_its_parent() {
        let anchor = B256::repeat_byte(8);
        let sent = |number: u64| NewBlock {
            number: number.into(),
            timestamp: 100 + number,
            base_fee: 7.into(),
            gas_limit: 30,
            transactions: Vec::new(),
            parent_hash: None,
        };
        let message = |index| {
            let fields = L1MessageFields {
                queue_index: index,
                gas_limit: 1.into(),
                to: Address::zero(),
                value: 0.into(),
                data: RawTx::new(),
                sender: Address::zero(),
            };
            transaction::encode_l1_message(&fields).raw
        };
        let blocks = [NewBlock { transactions: vec![message(6), message(7)], ..sent(9) }, sent(10)];
        let made = |change: fn(&mut L2Header)| {
            let header = |block: &NewBlock, parent_hash| L2Header {
                number: block.number,
                hash: B256::from_low_u64_be(block.number.get()),
                parent_hash,
                state_root: B256::zero(),
                timestamp: block.timestamp,
                base_fee: block.base_fee,
                gas_limit: block.gas_limit,
                transactions_root: transactions_root(&block.transactions),
                next_l1_index: Some(8),
            };
            let mut headers = vec![header(&blocks[0], anchor), header(&blocks[1], B256::from_low_u64_be(9))];
            change(&mut headers[1]);
            headers
        };
        let fault = |headers: &[L2Header], again: &[L2Ref]| {
            mismatch(&blocks, headers, anchor, None, again)
                .map(|other| (other.block.number.get(), other.parent, other.what))
        };
        let second = |what| Some((10, B256::from_low_u64_be(9), what));
        assert_eq!(fault(&made(|_| {}), &[]), None);
        assert_eq!(fault(&made(|h| h.next_l1_index = None), &[]), None, "not shown");
        assert_eq!(fault(&made(|h| h.number = 11.into()), &[]), second(Otherwise::Number));
        assert_eq!(fault(&made(|h| h.timestamp += 1), &[]), second(Otherwise::Timestamp));
        assert_eq!(fault(&made(|h| h.base_fee += 1.into()), &[]), second(Otherwise::BaseFee));
        assert_eq!(fault(&made(|h| h.gas_limit += 1), &[]), second(Otherwise::GasLimit));
        assert_eq!(fault(&made(|h| h.parent_hash = B256::zero()), &[]), second(Otherwise::Parent));
        let foreign = |h: &mut L2Header| h.transactions_root = transactions_root(&[RawTx::from_static(&[0xc0])]);
        assert_eq!(fault(&made(foreign), &[]), second(Otherwise::Transactions));
        assert_eq!(fault(&made(|h| h.next_l1_index = Some(9)), &[]), second(Otherwise::NextMessage));
        let mut skipped = made(|_| {});
        skipped[0].next_l1_index = Some(7);
        let first = Some((9, anchor, Otherwise::NextMessage));
        assert_eq!(fault(&skipped, &[]), first, "the last message counts");
        assert_eq!(fault(&made(|_| {})[..1], &[]), None, "what did not come back is another matter");
        // An equal block that is written again must get the hash that it had.
        let again = |hash| [L2Ref { number: 10.into(), hash }];
        assert_eq!(fault(&made(|_| {}), &again(B256::from_low_u64_be(10))), None);
        assert_eq!(fault(&made(|_| {}), &again(B256::zero())), second(Otherwise::Hash));
        let parent: fn(&mut L2Header) = |_| {};
        assert_eq!(
            mismatch(&blocks, &made(parent), B256::zero(), None, &[])
                .map(|other| (other.block.number.get(), other.what)),
            Some((9, Otherwise::Parent))
        );
        // What a later request must continue is known from the request before.
        let later = |next| mismatch(&blocks[1..], &made(|_| {})[1..], B256::from_low_u64_be(9), next, &[]);
        assert_eq!((later(None), later(Some(8))), (None, None));
        assert_eq!(later(Some(7)).map(|other| other.what), Some(Otherwise::NextMessage));
        // A header of another block says nothing about the one that was sent.
        let told = |change| mismatch(&blocks, &made(change), anchor, None, &[]).map(|other| other.told());
        assert_eq!(told(|h| h.number = 11.into()), Some(1));
        assert_eq!(told(|h| h.parent_hash = B256::zero()), Some(1));
        assert_eq!(told(|h| h.timestamp += 1), Some(2));
    }

    #[test]
    fn e3_every_field_that_can_differ_is_found() {
        type Change = fn(&mut L2Block);
        let cases: [(Change, Field); 8] = [
            (|b| b.header.number = 99.into(), Field::Number),
            (|b| b.header.timestamp = 1, Field::Timestamp),
            (|b| b.header.base_fee = U256::zero(), Field::BaseFee),
            (|b| b.header.gas_limit = 1, Field::GasLimit),
            (|b| b.transactions[1] = RawTx::from_static(b"c"), Field::Transaction(1)),
            (|b| b.transactions.push(RawTx::new()), Field::TransactionCount),
            (|b| b.transactions.truncate(1), Field::TransactionCount),
            (|b| b.header.parent_hash = hash(10, 1), Field::Parent),
        ];
        for (change, field) in cases {
            let mut blocks = vec![local(10), local(11), local(12)];
            change(&mut blocks[1]);
            let wanted = [expected(10), expected(11), expected(12)];
            let found = equal_prefix(anchor_ref(), &wanted, &blocks);
            assert_eq!(found, (1, Some(Difference { number: 11.into(), field })));
        }
    }

    #[test]
    fn e6_a_fork_below_the_gap_is_not_skipped() {
        let wanted: Vec<_> = (10..=15).map(expected).collect();
        let mut have: Vec<_> = (10..=12).map(local).collect();
        have[1].header.timestamp += 1;
        let (equal, difference) = equal_prefix(anchor_ref(), &wanted, &have);
        assert_eq!(equal, 1);
        assert!(difference.is_some());
        let plan = plan(anchor_ref(), wanted, &have, equal).unwrap();
        assert_eq!(plan.skip.number, 10.into());
        assert_eq!(plan.blocks.len(), 5);
        assert_eq!(plan.replaces.len(), 2);
    }

    #[test]
    fn e6_the_skip_number_never_lies_outside_the_batch() {
        let wanted: Vec<_> = (10..=11).map(expected).collect();
        let have: Vec<_> = (10..=14).map(local).collect();
        assert_eq!(equal_prefix(anchor_ref(), &wanted, &have), (2, None));
        assert_eq!(plan(anchor_ref(), wanted.clone(), &have, 2), None);
        let whole = plan(anchor_ref(), wanted, &[], 0).unwrap();
        assert_eq!(whole.skip, anchor_ref());
    }

    #[test]
    fn e21_only_the_differing_suffix_is_written() {
        let wanted: Vec<_> = (10..=12).map(expected).collect();
        let mut have: Vec<_> = (10..=12).map(local).collect();
        have[2].transactions.clear();
        let (equal, _) = equal_prefix(anchor_ref(), &wanted, &have);
        let plan = plan(anchor_ref(), wanted, &have, equal).unwrap();
        assert_eq!((plan.first(), plan.blocks.len()), (12.into(), 1));
    }

    #[test]
    fn m30_which_older_states_are_asked_for() {
        let ask = |skip: u64, floor: u64| -> Vec<u64> {
            older_states(skip.into(), floor.into()).into_iter().map(L2Number::get).collect()
        };
        assert_eq!(ask(5, 0), [4, 3, 2, 1, 0]);
        assert_eq!(ask(5, 3), [4, 3], "finalized itself may be built on");
        assert_eq!(ask(5, 5), [0; 0]);
        assert_eq!(ask(5, 9), [0; 0]);
        assert_eq!(ask(0, 0), [0; 0]);
        let far = ask(10_000, 0);
        assert_eq!((far.len(), far.first(), far.last()), (512, Some(&9_999), Some(&9_488)));
        assert_eq!(ask(u64::MAX, 0).len(), 512);
    }

    #[test]
    fn m30_equal_blocks_are_put_in_front_of_the_plan() {
        let wanted: Vec<_> = (10..=12).map(expected).collect();
        let mut have: Vec<_> = (10..=12).map(local).collect();
        have[1].header.timestamp += 1;
        let base = plan(anchor_ref(), wanted, &have, 1).unwrap();
        let equal: Vec<_> = (8..=10).map(local).collect();
        let extended = write_again(base.clone(), &equal, 0).unwrap();
        assert_eq!(extended.skip, L2Ref { number: 7.into(), hash: hash(7, 0) });
        let numbers: Vec<_> = extended.blocks.iter().map(|b| b.number.get()).collect();
        assert_eq!(numbers, [8, 9, 10, 11, 12]);
        assert_eq!(extended.blocks[..3], (8..=10).map(expected).collect::<Vec<_>>());
        assert_eq!(extended.blocks[3..], base.blocks);
        assert_eq!(extended.again, equal.iter().map(|b| b.header.l2_ref()).collect::<Vec<_>>());
        let replaced: Vec<_> = extended.replaces.iter().map(|b| b.number.get()).collect();
        assert_eq!(replaced, [8, 9, 10, 11, 12]);
        assert_eq!((extended.first(), extended.last()), (8.into(), 12.into()));
        assert!(extended.rewrites());

        type Change = fn(&mut Vec<L2Block>);
        let table: [(Change, u64, Again); 6] = [
            (|b| b.clear(), 0, Again::Unlinked),
            (|b| drop(b.pop()), 0, Again::Unlinked),
            (|b| drop(b.remove(1)), 0, Again::Unlinked),
            (|b| b[1].header.parent_hash = hash(8, 1), 0, Again::Unlinked),
            (|b| b[2].header.hash = hash(10, 1), 0, Again::Unlinked),
            (|_| {}, 17_000, Again::BeforeSwitch(8.into())),
        ];
        for (at, (change, switch_ms, expected)) in table.into_iter().enumerate() {
            let mut blocks = equal.clone();
            change(&mut blocks);
            assert_eq!(write_again(base.clone(), &blocks, switch_ms).unwrap_err(), expected, "{at}");
        }
        assert!(write_again(base.clone(), &equal, 16_000).is_ok());
    }

    #[test]
    fn e5_the_anchor_must_be_the_verified_block_with_the_right_root() {
        let header = local(9).header;
        let facts = |verified, prev_state_root| AnchorFacts { local: header, prev_state_root, verified };
        assert_eq!(anchor(&facts(None, B256::zero())), Anchor::Canonical);
        assert_eq!(anchor(&facts(Some(header.l2_ref()), B256::zero())), Anchor::Canonical);
        let other = L2Ref { number: 9.into(), hash: hash(9, 5) };
        assert_eq!(anchor(&facts(Some(other), B256::zero())), Anchor::NotTheVerified { expected: other });
        let root = B256::repeat_byte(3);
        assert_eq!(anchor(&facts(None, root)), Anchor::StateRoot { expected: root, actual: B256::zero() });
    }
}
