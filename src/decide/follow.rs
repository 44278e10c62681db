//! May a reply of a follow source be believed, and what follows from it for our heads?
//!
//! A follow source is another node whose safe and finalized heads are taken over. It is believed as far as L1 confirms
//! it: the L1 blocks that its reply cites must be canonical on our own L1, by hash. Everything else in a reply can only
//! speak against it. Then one of five cases says how its safe head lies to the local chain; four of them move nothing.
//!
//! A reply that is not believed is a verdict with a reason ([`Dropped`]). It ends nothing: the next poll asks again.

use std::fmt;

use crate::decide::heads::{Heads, Move};
use crate::types::{B256, L1Header, L1Number, L1Ref, L2Number, L2Place, L2Ref, SyncStatus};

/// A safe head below ours must be shown this many times in a row before ours goes down to it: with several sources, or
/// several replicas behind one address, one of them lags at times.
pub const LOWER_AFTER: u32 = 3;

/// The node is told to leave its chain for the source's only after so many replies in a row that found it on another.
pub const REORG_AFTER: u32 = 3;

/// The networks that a source works for, by its own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceNetwork {
    /// L1's chain id.
    pub l1_chain_id: u64,
    /// L2's chain id.
    pub l2_chain_id: u64,
    /// Hash of L2 block 0, if the source says it.
    pub l2_genesis: Option<B256>,
}

/// One reply of a source: everything in it was answered in one exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// Its heads.
    pub status: SyncStatus,
    /// Its networks; none if it does not say.
    pub network: Option<SourceNetwork>,
    /// The random mark of the process that answered; none for other programs than this one.
    pub instance: Option<B256>,
}

/// What a reply must fit.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// Our own networks.
    pub network: SourceNetwork,
    /// The random mark of this process.
    pub instance: B256,
    /// Our own finalized head.
    pub finalized: Option<L2Ref>,
}

/// A reply that does not contradict itself: what may be taken over of it, and what it rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The safe head.
    pub safe: L2Place,
    /// The finalized head; none if the source has none yet.
    pub finalized: Option<L2Place>,
    /// The L1 block up to which the source has read L1.
    pub current_l1: L1Header,
}

/// An L1 block that a reply cites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cited {
    /// The L1 origin of the safe head.
    SafeOrigin,
    /// The L1 origin of the finalized head.
    FinalizedOrigin,
    /// The L1 block up to which the source has read.
    CurrentL1,
}

/// Two values of a reply that are not in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disorder {
    /// Finalized lies above safe.
    FinalizedAboveSafe,
    /// Safe and finalized are two blocks of one height.
    TwoBlocksOfOneHeight,
    /// The origin of finalized lies above the origin of safe.
    OriginsSwapped,
    /// The origin of safe lies above the L1 block up to which the source has read.
    OriginNotRead,
}

/// Why a reply is not taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// The source does not say which networks it works for.
    Unidentified,
    /// It works for another network.
    OtherNetwork {
        /// What differs.
        what: &'static str,
    },
    /// It is this very process.
    Itself,
    /// It has no safe head, or has read nothing of L1 yet.
    Empty,
    /// It contradicts itself.
    OutOfOrder(Disorder),
    /// Its safe head lies below our finalized head.
    BelowFinalized {
        /// The source's.
        safe: L2Number,
        /// Ours.
        finalized: L2Number,
    },
    /// It has another block at the height of our finalized head.
    OtherFinalized {
        /// That height.
        number: L2Number,
    },
    /// An L1 block that it cites is another one on our own L1.
    CitedDiffers {
        /// Which.
        cited: Cited,
        /// What the source says.
        said: L1Ref,
        /// What our L1 has at that height.
        ours: B256,
    },
    /// Our own L1 could not be asked for what it cites.
    L1NotAsked,
    /// Our own L1 has not come as far as what it cites.
    L1Behind {
        /// Which.
        cited: Cited,
        /// The height that our L1 lacks.
        number: L1Number,
    },
    /// The L1 block up to which it has read is too old.
    Stale {
        /// Its age in seconds.
        age: u64,
    },
    /// Its finalized head is not on the local chain, although its safe head is: they are of two chains.
    FinalizedOffChain {
        /// The height of its finalized head.
        number: L2Number,
    },
    /// The node says that its safe head is not a valid block.
    Invalid {
        /// Its height.
        number: L2Number,
    },
    /// Fewer sources agree than are asked for.
    NotAgreed {
        /// The most that agree.
        most: usize,
        /// How many must.
        needed: usize,
    },
}

impl Dropped {
    /// The codes of all reasons, for metrics.
    pub const CODES: [&'static str; 14] = [
        "unidentified",
        "other_network",
        "itself",
        "empty",
        "out_of_order",
        "below_finalized",
        "other_finalized",
        "cited_differs",
        "l1_not_asked",
        "l1_behind",
        "stale",
        "finalized_off_chain",
        "invalid",
        "not_agreed",
    ];

    /// Its code in metric, log and status.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unidentified => "unidentified",
            Self::OtherNetwork { .. } => "other_network",
            Self::Itself => "itself",
            Self::Empty => "empty",
            Self::OutOfOrder(_) => "out_of_order",
            Self::BelowFinalized { .. } => "below_finalized",
            Self::OtherFinalized { .. } => "other_finalized",
            Self::CitedDiffers { .. } => "cited_differs",
            Self::L1NotAsked => "l1_not_asked",
            Self::L1Behind { .. } => "l1_behind",
            Self::Stale { .. } => "stale",
            Self::FinalizedOffChain { .. } => "finalized_off_chain",
            Self::Invalid { .. } => "invalid",
            Self::NotAgreed { .. } => "not_agreed",
        }
    }

    /// Whether it is our own L1 that could not confirm the reply, which says nothing against the source.
    pub const fn is_ours(&self) -> bool {
        matches!(self, Self::L1NotAsked | Self::L1Behind { .. })
    }
}

/// Whether `reply` may be looked at further, before L1 is asked.
///
/// # Errors
/// The reason why it is not taken over.
pub fn read(reply: &Reply, expected: &Expected) -> Result<Snapshot, Dropped> {
    if reply.instance == Some(expected.instance) {
        return Err(Dropped::Itself);
    }
    let network = reply.network.ok_or(Dropped::Unidentified)?;
    let ours = expected.network;
    let other_genesis = network.l2_genesis.is_some_and(|said| ours.l2_genesis.is_some_and(|genesis| genesis != said));
    let differences = [
        ("L1 chain id", network.l1_chain_id != ours.l1_chain_id),
        ("L2 chain id", network.l2_chain_id != ours.l2_chain_id),
        ("L2 genesis block", other_genesis),
    ];
    if let Some((what, _)) = differences.into_iter().find(|(_, differs)| *differs) {
        return Err(Dropped::OtherNetwork { what });
    }
    let status = &reply.status;
    let (Some(safe), Some(current_l1)) = (status.safe_l2, status.current_l1) else { return Err(Dropped::Empty) };
    let snapshot = Snapshot { safe, finalized: status.finalized_l2, current_l1 };
    if let Some(disorder) = disorder_in(&snapshot) {
        return Err(Dropped::OutOfOrder(disorder));
    }
    match expected.finalized.and_then(|finalized| against_finalized(&snapshot, finalized)) {
        Some(dropped) => Err(dropped),
        None => Ok(snapshot),
    }
}

fn disorder_in(snapshot: &Snapshot) -> Option<Disorder> {
    let Snapshot { safe, finalized, current_l1 } = snapshot;
    if safe.origin.number > current_l1.number {
        return Some(Disorder::OriginNotRead);
    }
    let finalized = finalized.as_ref()?;
    if finalized.block.number > safe.block.number {
        return Some(Disorder::FinalizedAboveSafe);
    }
    if finalized.block.number == safe.block.number && finalized.block.hash != safe.block.hash {
        return Some(Disorder::TwoBlocksOfOneHeight);
    }
    (finalized.origin.number > safe.origin.number).then_some(Disorder::OriginsSwapped)
}

/// What in `snapshot` contradicts our own finalized head, which never moves back or sideways.
fn against_finalized(snapshot: &Snapshot, ours: L2Ref) -> Option<Dropped> {
    let safe = snapshot.safe.block;
    if safe.number < ours.number {
        return Some(Dropped::BelowFinalized { safe: safe.number, finalized: ours.number });
    }
    let heads = [Some(safe), snapshot.finalized.map(|finalized| finalized.block)];
    let is_other = |head: L2Ref| head.number == ours.number && head.hash != ours.hash;
    heads.into_iter().flatten().any(is_other).then_some(Dropped::OtherFinalized { number: ours.number })
}

impl Snapshot {
    /// The L1 blocks that it cites.
    pub fn cited(&self) -> Vec<(Cited, L1Ref)> {
        let finalized = self.finalized.map(|finalized| (Cited::FinalizedOrigin, finalized.origin));
        let mut cited = vec![(Cited::CurrentL1, self.current_l1.l1_ref()), (Cited::SafeOrigin, self.safe.origin)];
        cited.extend(finalized);
        cited
    }
}

/// How long ago the L1 block up to which a source has read may have been made.
#[derive(Clone, Copy, Debug)]
pub struct Age {
    /// Now, in seconds since the Unix epoch.
    pub now: u64,
    /// The longest age in seconds; zero turns the check off.
    pub most: u64,
}

/// Whether L1 confirms `snapshot`: `live` are our own L1's headers at the heights of [`Snapshot::cited`], in that
/// order. The time of the source's L1 block is read from our own header: the source may say anything.
///
/// # Errors
/// The reason why it is not taken over.
pub fn confirm(snapshot: &Snapshot, live: &[Option<L1Header>], age: Age) -> Result<(), Dropped> {
    let cited = snapshot.cited();
    if live.len() != cited.len() {
        return Err(Dropped::L1NotAsked);
    }
    // A block that differs tells more than one that our L1 does not have yet.
    for ((cited, said), header) in cited.iter().zip(live) {
        if let Some(header) = header
            && header.l1_ref() != *said
        {
            return Err(Dropped::CitedDiffers { cited: *cited, said: *said, ours: header.hash });
        }
    }
    if let Some(((cited, said), _)) = cited.iter().zip(live).find(|(_, header)| header.is_none()) {
        return Err(Dropped::L1Behind { cited: *cited, number: said.number });
    }
    let made = live.first().copied().flatten().map_or(0, |header| header.timestamp);
    let old = age.now.saturating_sub(made);
    if age.most > 0 && old > age.most {
        return Err(Dropped::Stale { age: old });
    }
    Ok(())
}

/// What at least `needed` of `snapshots` show: the highest safe head that so many have, with the lowest finalized head
/// among them. If one source is enough, it is the first.
///
/// # Errors
/// If no safe head is shown so often.
pub fn agreed(snapshots: &[Snapshot], needed: usize) -> Result<Snapshot, Dropped> {
    if needed <= 1
        && let Some(first) = snapshots.first()
    {
        return Ok(*first);
    }
    let like = |one: &Snapshot| snapshots.iter().filter(|other| other.safe.block == one.safe.block).count();
    let enough = snapshots.iter().filter(|one| like(one) >= needed);
    let Some(best) = enough.max_by_key(|one| one.safe.block.number) else {
        return Err(Dropped::NotAgreed { most: snapshots.iter().map(like).max().unwrap_or(0), needed });
    };
    let group = snapshots.iter().filter(|other| other.safe.block == best.safe.block);
    // `None` is the lowest of all: a member that has finalized nothing confirms no finalized head.
    let lowest = group.min_by_key(|one| one.finalized.map(|finalized| finalized.block.number));
    Ok(Snapshot { finalized: lowest.and_then(|one| one.finalized), ..*best })
}

/// What the local node said about a height.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Local {
    /// It could not be asked.
    NotAsked,
    /// It has no block there.
    Missing,
    /// It has this block.
    Found(L2Ref),
}

impl Local {
    /// The block that the node answered with, if any.
    pub fn of(block: Option<L2Ref>) -> Self {
        block.map_or(Self::Missing, Self::Found)
    }
}

/// How the source's safe head lies to the local chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FollowCase {
    /// ① It lies above the local head.
    Ahead,
    /// ②a It lies at or below the local head, and the node does not have it: it is still syncing.
    NotFound,
    /// ②b The node could not be asked.
    QueryFailed,
    /// ③ The node has it.
    Same,
    /// ④ The node has another block there.
    Differs,
}

impl FollowCase {
    /// All of them, for metrics.
    pub const ALL: [Self; 5] = [Self::Ahead, Self::NotFound, Self::QueryFailed, Self::Same, Self::Differs];

    /// Its name in metric, log and status.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ahead => "ahead",
            Self::NotFound => "not_found",
            Self::QueryFailed => "query_failed",
            Self::Same => "same",
            Self::Differs => "differs",
        }
    }
}

impl fmt::Display for FollowCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The case of the source's `safe` head, with the local head at height `head` and `at` the local block at the height of
/// `safe`. The height counts: a node that was killed answers for blocks above its fallen head.
pub fn case(safe: L2Ref, head: L2Number, at: Local) -> FollowCase {
    if safe.number > head {
        return FollowCase::Ahead;
    }
    match at {
        Local::NotAsked => FollowCase::QueryFailed,
        Local::Missing => FollowCase::NotFound,
        Local::Found(block) if block == safe => FollowCase::Same,
        Local::Found(_) => FollowCase::Differs,
    }
}

/// What case ③ means for our heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Labels {
    /// These are our heads now. They may be the ones that we had.
    Set(Heads),
    /// The safe head lies below ours, and was not shown often enough to go down to it.
    Lower,
    /// The reply is not taken over.
    Dropped(Dropped),
}

/// Our heads after a confirmed `snapshot` whose safe head the local node has (case ③), as one change.
/// `finalized_at` is the local block at the height of the source's finalized head, and `lower` how many confirmed
/// replies in a row, this one included, showed a safe head below ours.
///
/// Safe goes down no lower than our finalized head. Finalized never moves back, and never past the safe head.
pub fn labels(ours: &Heads, snapshot: &Snapshot, finalized_at: Local, lower: u32) -> Labels {
    let safe = snapshot.safe.block;
    let finalized = snapshot.finalized.map(|finalized| finalized.block);
    if let (Some(said), Local::Found(local)) = (finalized, finalized_at)
        && said != local
    {
        return Labels::Dropped(Dropped::FinalizedOffChain { number: said.number });
    }
    let heads = match ours.advance_safe(safe) {
        Move::To(heads) => heads,
        Move::Unchanged => *ours,
        Move::Backwards if lower < LOWER_AFTER => return Labels::Lower,
        Move::Backwards => ours.rewind_safe(Some(safe)),
        Move::BelowFinalized | Move::AboveSafe => {
            return Labels::Dropped(Dropped::OtherFinalized { number: safe.number });
        }
    };
    // What the node does not show at that height is not labelled yet.
    let finalized = finalized.filter(|said| finalized_at == Local::Found(*said));
    Labels::Set(match finalized.map(|to| heads.advance_finalized(to)) {
        Some(Move::To(heads)) => heads,
        _ => heads,
    })
}

/// Whether a chain that ends on the safe head of `snapshot` holds our finalized block, as far as this can be told before:
/// the source's finalized head lies at or above ours, and is the local block at its height. `finalized_at` is that block.
/// Nothing is final for us: then every chain does, unless the source's finalized head contradicts the local chain.
///
/// A finalized head above the local head cannot be compared. Then only its height speaks for it, and our finalized block
/// is looked at again after the head was set.
pub fn keeps_finalized(ours: &Heads, snapshot: &Snapshot, finalized_at: Local) -> bool {
    let said = snapshot.finalized.map(|finalized| finalized.block);
    if let (Some(said), Local::Found(local)) = (said, finalized_at)
        && said != local
    {
        return false;
    }
    match (ours.finalized(), said) {
        (None, _) => true,
        (Some(ours), Some(said)) => said.number >= ours.number,
        (Some(_), None) => false,
    }
}

/// Whether the safe head of `snapshot` lies below ours.
pub fn is_lower(ours: &Heads, snapshot: &Snapshot) -> bool {
    ours.safe().is_some_and(|safe| snapshot.safe.block.number < safe.number)
}

impl fmt::Display for Cited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SafeOrigin => "the L1 origin of safe",
            Self::FinalizedOrigin => "the L1 origin of finalized",
            Self::CurrentL1 => "current_l1",
        })
    }
}

impl fmt::Display for Disorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FinalizedAboveSafe => "finalized lies above safe",
            Self::TwoBlocksOfOneHeight => "safe and finalized are two blocks of one height",
            Self::OriginsSwapped => "the L1 origin of finalized lies above that of safe",
            Self::OriginNotRead => "the L1 origin of safe lies above current_l1",
        })
    }
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unidentified => f.write_str("the source does not say which network it belongs to"),
            Self::OtherNetwork { what } => write!(f, "the source belongs to another network: another {what}"),
            Self::Itself => f.write_str("the source is this process"),
            Self::Empty => f.write_str("the source has no safe head yet"),
            Self::OutOfOrder(disorder) => write!(f, "the source contradicts itself: {disorder}"),
            Self::BelowFinalized { safe, finalized } => {
                write!(f, "the source's safe head {safe} lies below our finalized head {finalized}")
            }
            Self::OtherFinalized { number } => {
                write!(f, "the source has another block at the height of our finalized head, {number}")
            }
            Self::CitedDiffers { cited, said, ours } => {
                write!(f, "{cited} is {said} for the source, and {ours:?} on our L1")
            }
            Self::L1NotAsked => f.write_str("our own L1 could not be asked for the blocks that the source cites"),
            Self::L1Behind { cited, number } => write!(f, "our own L1 has no block {number} yet: {cited}"),
            Self::Stale { age } => write!(f, "the source has read L1 up to a block that is {age} s old"),
            Self::FinalizedOffChain { number } => {
                write!(f, "the source's finalized head {number} is not on the chain of its safe head")
            }
            Self::Invalid { number } => {
                write!(f, "the execution node says that the source's safe head {number} is not a valid block")
            }
            Self::NotAgreed { most, needed } => write!(f, "{needed} sources must agree, {most} do"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn l1(number: u64) -> L1Header {
        L1Header {
            number: number.into(),
            hash: B256::from_low_u64_be(1_000 + number),
            parent_hash: B256::from_low_u64_be(999 + number),
            timestamp: 12 * number,
        }
    }

    fn at(number: u64) -> L2Ref {
        L2Ref { number: number.into(), hash: B256::from_low_u64_be(number) }
    }

    fn other(number: u64) -> L2Ref {
        L2Ref { hash: B256::repeat_byte(0xee), ..at(number) }
    }

    fn place(block: L2Ref, origin: u64) -> L2Place {
        L2Place { block, parent_hash: B256::zero(), timestamp: 1, origin: l1(origin).l1_ref(), sequence: 0 }
    }

    fn heads(safe: u64, finalized: u64) -> Heads {
        Heads::stored(Some(at(safe)), Some(at(finalized)))
    }

    /// Safe 20 from L1 block 40, finalized 10 from L1 block 30, L1 read up to block 50.
    fn snapshot() -> Snapshot {
        Snapshot { safe: place(at(20), 40), finalized: Some(place(at(10), 30)), current_l1: l1(50) }
    }

    fn network() -> SourceNetwork {
        SourceNetwork { l1_chain_id: 1, l2_chain_id: 2818, l2_genesis: Some(B256::repeat_byte(7)) }
    }

    fn reply(snapshot: Snapshot) -> Reply {
        let Snapshot { safe, finalized, current_l1 } = snapshot;
        let status = SyncStatus {
            current_l1: Some(current_l1),
            safe_l2: Some(safe),
            finalized_l2: finalized,
            ..SyncStatus::default()
        };
        Reply { status, network: Some(network()), instance: Some(B256::repeat_byte(2)) }
    }

    fn expected(finalized: Option<L2Ref>) -> Expected {
        Expected { network: network(), instance: B256::repeat_byte(1), finalized }
    }

    #[test]
    fn i2_a_reply_that_contradicts_itself_or_our_finalized_head_is_dropped_whole() {
        let s = snapshot();
        let finalized = |block, origin| Snapshot { finalized: Some(place(block, origin)), ..s };
        let out = |disorder| Err(Dropped::OutOfOrder(disorder));
        let below = Dropped::BelowFinalized { safe: 20.into(), finalized: 21.into() };
        let table = [
            ("in order", s, None, Ok(s)),
            ("nothing finalized", Snapshot { finalized: None, ..s }, None, Ok(Snapshot { finalized: None, ..s })),
            ("one block", finalized(at(20), 40), None, Ok(finalized(at(20), 40))),
            ("above safe", finalized(at(21), 40), None, out(Disorder::FinalizedAboveSafe)),
            ("two of one height", finalized(other(20), 40), None, out(Disorder::TwoBlocksOfOneHeight)),
            ("origins swapped", finalized(at(10), 41), None, out(Disorder::OriginsSwapped)),
            ("not read", Snapshot { current_l1: l1(39), ..s }, None, out(Disorder::OriginNotRead)),
            ("our finalized is below", s, Some(at(12)), Ok(s)),
            ("our finalized is its safe", s, Some(at(20)), Ok(s)),
            ("safe below ours", s, Some(at(21)), Err(below)),
            ("other safe", s, Some(other(20)), Err(Dropped::OtherFinalized { number: 20.into() })),
            ("other finalized", s, Some(other(10)), Err(Dropped::OtherFinalized { number: 10.into() })),
        ];
        for (name, snapshot, ours, result) in table {
            assert_eq!(read(&reply(snapshot), &expected(ours)), result, "{name}");
        }
    }

    #[test]
    fn i12_another_network_and_this_process_itself_are_refused() {
        let r = reply(snapshot());
        let with = |network| Reply { network, ..r };
        let differs = |what| Err(Dropped::OtherNetwork { what });
        let n = network();
        let table = [
            (with(None), Err(Dropped::Unidentified)),
            (with(Some(SourceNetwork { l1_chain_id: 5, ..n })), differs("L1 chain id")),
            (with(Some(SourceNetwork { l2_chain_id: 5, ..n })), differs("L2 chain id")),
            (with(Some(SourceNetwork { l2_genesis: Some(B256::zero()), ..n })), differs("L2 genesis block")),
            (with(Some(SourceNetwork { l2_genesis: None, ..n })), Ok(snapshot())),
            (Reply { instance: Some(B256::repeat_byte(1)), ..r }, Err(Dropped::Itself)),
            (Reply { instance: None, ..r }, Ok(snapshot())),
            (Reply { status: SyncStatus { safe_l2: None, ..r.status }, ..r }, Err(Dropped::Empty)),
            (Reply { status: SyncStatus { current_l1: None, ..r.status }, ..r }, Err(Dropped::Empty)),
        ];
        for (reply, result) in table {
            assert_eq!(read(&reply, &expected(None)), result, "{reply:?}");
        }
    }

    const AGE: Age = Age { now: 12 * 60, most: 120 };

    #[test]
    fn i4_i5_each_cited_block_is_held_to_our_own_l1_and_not_asked_is_not_differs() {
        let s = snapshot();
        let live = || vec![Some(l1(50)), Some(l1(40)), Some(l1(30))];
        assert_eq!(confirm(&s, &live(), AGE), Ok(()));
        assert_eq!(confirm(&Snapshot { finalized: None, ..s }, &live()[..2], AGE), Ok(()));
        assert_eq!(confirm(&s, &[], AGE), Err(Dropped::L1NotAsked));
        assert_eq!(confirm(&s, &live()[..2], AGE), Err(Dropped::L1NotAsked));
        let forged = B256::repeat_byte(0xaa);
        for (place, (cited, said)) in s.cited().into_iter().enumerate() {
            let mut differs = live();
            differs[place] = Some(L1Header { hash: forged, ..l1(said.number.get()) });
            assert_eq!(confirm(&s, &differs, AGE), Err(Dropped::CitedDiffers { cited, said, ours: forged }));
            // Another block counts also if our L1 lacks a further one.
            differs[(place + 1) % 3] = None;
            assert_eq!(confirm(&s, &differs, AGE), Err(Dropped::CitedDiffers { cited, said, ours: forged }));
            let mut behind = live();
            behind[place] = None;
            let dropped = confirm(&s, &behind, AGE).unwrap_err();
            assert_eq!(dropped, Dropped::L1Behind { cited, number: said.number });
            assert!(dropped.is_ours());
        }
    }

    #[test]
    fn i11_age_is_read_from_our_own_l1() {
        let s = snapshot();
        let live = [Some(l1(50)), Some(l1(40)), Some(l1(30))];
        for (now, most, result) in [
            (600, 1, Ok(())),
            (720, 120, Ok(())),
            (721, 120, Err(Dropped::Stale { age: 121 })),
            (9_999, 0, Ok(())),
            (0, 120, Ok(())),
        ] {
            assert_eq!(confirm(&s, &live, Age { now, most }), result, "{now} {most}");
        }
        // The source's own word about the time counts for nothing.
        let young = Snapshot { current_l1: L1Header { timestamp: u64::MAX, ..l1(50) }, ..s };
        assert_eq!(confirm(&young, &live, Age { now: 721, most: 120 }), Err(Dropped::Stale { age: 121 }));
    }

    #[test]
    fn i12_several_sources_must_agree_on_the_safe_head_if_so_configured() {
        let of = |safe: L2Ref, finalized: Option<u64>| Snapshot {
            safe: place(safe, 40),
            finalized: finalized.map(|n| place(at(n), 30)),
            current_l1: l1(50),
        };
        let (a, b, c) = (of(at(20), Some(10)), of(at(20), Some(8)), of(at(22), Some(12)));
        let none = |most, needed| Err(Dropped::NotAgreed { most, needed });
        let table = [
            (vec![c, a], 1, Ok(c)),
            (vec![a, b], 2, Ok(Snapshot { finalized: b.finalized, ..a })),
            (vec![a, c, b], 2, Ok(Snapshot { finalized: b.finalized, ..a })),
            (vec![a, b, c, c], 2, Ok(c)),
            (vec![a, of(at(20), None)], 2, Ok(Snapshot { finalized: None, ..a })),
            (vec![a, c], 2, none(1, 2)),
            (vec![a, of(other(20), Some(10))], 2, none(1, 2)),
            (vec![a, b, c], 3, none(2, 3)),
            (vec![], 1, none(0, 1)),
            (vec![], 2, none(0, 2)),
        ];
        for (snapshots, needed, result) in table {
            let found = agreed(&snapshots, needed).map(|s| (s.safe.block, s.finalized));
            assert_eq!(found, result.map(|s: Snapshot| (s.safe.block, s.finalized)), "{needed} of {snapshots:?}");
        }
    }

    #[test]
    fn i6_i7_i8_i9_the_five_cases() {
        let table = [
            (19, Local::Missing, FollowCase::Ahead),
            (19, Local::NotAsked, FollowCase::Ahead),
            // A node that was killed answers for blocks above its fallen head.
            (19, Local::Found(at(20)), FollowCase::Ahead),
            (19, Local::Found(other(20)), FollowCase::Ahead),
            (20, Local::Missing, FollowCase::NotFound),
            (30, Local::Missing, FollowCase::NotFound),
            (30, Local::NotAsked, FollowCase::QueryFailed),
            (20, Local::Found(at(20)), FollowCase::Same),
            (30, Local::Found(at(20)), FollowCase::Same),
            (30, Local::Found(other(20)), FollowCase::Differs),
            (30, Local::Found(at(19)), FollowCase::Differs),
        ];
        for (head, local, expected) in table {
            assert_eq!(case(at(20), head.into(), local), expected, "{head} {local:?}");
        }
    }

    #[test]
    fn i3_i8_both_heads_move_in_one_change_and_neither_out_of_order() {
        let s = snapshot();
        let found = Local::Found(at(10));
        let off = Labels::Dropped(Dropped::FinalizedOffChain { number: 10.into() });
        let fork = Labels::Dropped(Dropped::OtherFinalized { number: 20.into() });
        let sideways = Heads::stored(Some(other(20)), Some(other(20)));
        let only = |safe| Heads::stored(Some(at(safe)), None);
        let table = [
            ("first", Heads::default(), found, 0, Labels::Set(heads(20, 10))),
            ("both move", heads(12, 6), found, 0, Labels::Set(heads(20, 10))),
            ("safe alone", heads(12, 10), found, 0, Labels::Set(heads(20, 10))),
            ("finalized alone", heads(20, 6), found, 0, Labels::Set(heads(20, 10))),
            ("nothing", heads(20, 10), found, 0, Labels::Set(heads(20, 10))),
            ("finalized never back", heads(20, 15), found, 0, Labels::Set(heads(20, 15))),
            ("finalized is not there", heads(12, 6), Local::Missing, 0, Labels::Set(heads(20, 6))),
            ("finalized was not asked for", heads(12, 6), Local::NotAsked, 0, Labels::Set(heads(20, 6))),
            ("finalized of another chain", heads(12, 6), Local::Found(other(10)), 0, off),
            ("lower once", heads(30, 6), found, 1, Labels::Lower),
            ("lower twice", heads(30, 6), found, 2, Labels::Lower),
            ("lower three times", heads(30, 6), found, LOWER_AFTER, Labels::Set(heads(20, 10))),
            ("no finalized yet", only(12), found, 0, Labels::Set(heads(20, 10))),
            ("other block at finalized", sideways, found, 0, fork),
        ];
        for (name, ours, at, lower, expected) in table {
            assert_eq!(labels(&ours, &s, at, lower), expected, "{name}");
        }
        let without = Snapshot { finalized: None, ..s };
        assert_eq!(labels(&heads(12, 6), &without, Local::Missing, 0), Labels::Set(heads(20, 6)));
        assert!(is_lower(&heads(21, 6), &s) && !is_lower(&heads(20, 6), &s) && !is_lower(&Heads::default(), &s));
    }

    #[test]
    fn i9_a_head_is_taken_only_if_it_keeps_what_is_final() {
        let s = snapshot();
        let none = Snapshot { finalized: None, ..s };
        let final_at = |number| Heads::stored(Some(at(number)), Some(at(number)));
        let table = [
            (Heads::default(), s, Local::Found(at(10)), true),
            (Heads::default(), s, Local::Missing, true),
            (Heads::default(), none, Local::Missing, true),
            (Heads::default(), s, Local::Found(other(10)), false),
            (final_at(10), s, Local::Found(at(10)), true),
            (final_at(8), s, Local::Found(at(10)), true),
            (final_at(8), s, Local::Missing, true),
            (final_at(8), s, Local::Found(other(10)), false),
            (final_at(11), s, Local::Found(at(10)), false),
            (final_at(8), none, Local::Missing, false),
        ];
        for (ours, snapshot, local, expected) in table {
            assert_eq!(keeps_finalized(&ours, &snapshot, local), expected, "{ours:?} {snapshot:?} {local:?}");
        }
    }

    /// Whatever a source says and the node holds: finalized never moves back or sideways, and never lies above safe.
    #[test]
    fn i2_p2_no_reply_puts_our_heads_out_of_order() {
        let all: Vec<(u64, L2Ref)> = (1..=3).flat_map(|n| [(n, at(n)), (n, other(n))]).collect();
        for (_, safe) in &all {
            for (height, finalized) in &all {
                for (our_safe, our_finalized) in [(1, 1), (2, 1), (3, 1), (2, 2), (3, 2), (3, 3)] {
                    let snapshot =
                        Snapshot { safe: place(*safe, 40), finalized: Some(place(*finalized, 30)), current_l1: l1(50) };
                    let ours = heads(our_safe, our_finalized);
                    let Ok(read) = read(&reply(snapshot), &expected(ours.finalized())) else { continue };
                    for local in [Local::Found(at(*height)), Local::Missing, Local::NotAsked] {
                        let Labels::Set(after) = labels(&ours, &read, local, LOWER_AFTER) else { continue };
                        let (was, is) = (ours.finalized().unwrap(), after.finalized().unwrap());
                        assert!(is.number > was.number || is == was, "{ours:?} {snapshot:?} {after:?}");
                        assert!(is.number <= after.safe().unwrap().number, "{ours:?} {snapshot:?} {after:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn i4_every_reason_has_a_code_of_its_own() {
        let cited = (Cited::SafeOrigin, l1(1).l1_ref());
        let all = [
            Dropped::Unidentified,
            Dropped::OtherNetwork { what: "L2 chain id" },
            Dropped::Itself,
            Dropped::Empty,
            Dropped::OutOfOrder(Disorder::FinalizedAboveSafe),
            Dropped::BelowFinalized { safe: 1.into(), finalized: 2.into() },
            Dropped::OtherFinalized { number: 1.into() },
            Dropped::CitedDiffers { cited: cited.0, said: cited.1, ours: B256::zero() },
            Dropped::L1NotAsked,
            Dropped::L1Behind { cited: cited.0, number: 1.into() },
            Dropped::Stale { age: 1 },
            Dropped::FinalizedOffChain { number: 1.into() },
            Dropped::Invalid { number: 1.into() },
            Dropped::NotAgreed { most: 1, needed: 2 },
        ];
        assert_eq!(all.map(|dropped| dropped.code()), Dropped::CODES);
        let ours: Vec<_> = all.iter().filter(|dropped| dropped.is_ours()).map(Dropped::code).collect();
        assert_eq!(ours, ["l1_not_asked", "l1_behind"]);
    }
}
