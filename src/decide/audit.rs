//! What does an audit of a range of batches do next, and do the reports of several ranges join into one history?
//!
//! Decided here: when a stall of the flow ends an audit, when it counts as a divergence, and which reports fit together.
//! An audit verifies batch by batch as a worker does, on top of one batch that it does not verify: the last one before
//! its range. What it says of that batch (index, hash, last L2 block) is what the range before must end on. So a chain of
//! reports proves what one audit of the whole history proves. Not decided here: whether a batch is verified.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::decide::reason::Reason;
use crate::decide::stall::{Cause, Final, SearchAt, Stall};
use crate::types::{B256, BatchIndex, Confirmations, Identity, L2Number, L2Ref};

/// The version of the report's form.
pub const FORMAT: u32 = 1;

/// Divergent batches after which an audit ends. A chain that forked once differs in every later batch, and going on
/// after one costs about ten requests.
pub const DIVERGENCES_MAX: usize = 1_000;

/// An audit ends after this many faults in a row that may pass.
pub const PATIENCE: u32 = 10;

/// Longest text about one divergence, in bytes, that is kept and read.
pub const DETAIL_MAX: usize = 2_000;

/// Which batches are audited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditRange {
    /// The first one, 1 at least: batch 0 is the genesis import and carries no batch.
    pub from: BatchIndex,
    /// The last one; none: as far as L1 has come.
    pub to: Option<BatchIndex>,
}

/// The end of a batch: what a range of batches begins after, or ends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchEdge {
    /// The batch.
    pub batch: BatchIndex,
    /// keccak256 of its header.
    pub hash: B256,
    /// Its last L2 block on the local chain.
    pub block: L2Ref,
}

/// By whose word the batch before the range is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Base {
    /// It is the genesis import: nothing lies below.
    Genesis,
    /// L1's: the contract names its hash, its commit gives the header with this hash, and the local block at its end is
    /// taken as it is. The audit of the range before must end on all three.
    L1,
}

/// What an audit found, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every batch of the range is verified.
    Verified,
    /// The local chain contradicts L1.
    Diverged,
    /// Something that a batch needs is unavailable, or the range is not on L1 yet.
    Unavailable,
    /// It ended early for another reason.
    Failed,
    /// A signal ended it; it continues when it is started again.
    Interrupted,
}

impl Verdict {
    /// As reports name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Diverged => "diverged",
            Self::Unavailable => "unavailable",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        }
    }
}

/// A batch that the local chain contradicts. Nothing of it counts as verified. The batch after it was judged on the
/// header that L1 holds of this one and on the local block at its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Divergence {
    /// The batch.
    pub batch: BatchIndex,
    /// The reason's code.
    pub reason: String,
    /// The L2 block at which it shows, if there is one.
    pub block: Option<L2Number>,
    /// For people.
    pub detail: String,
}

/// How many batches, blocks and blobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Batches that were verified.
    pub verified: u64,
    /// Of them: the local blocks are what L1 committed to.
    pub consistent: u64,
    /// Of these: under other bytes than our encoder gives.
    pub encoder_drift: u64,
    /// L2 blocks of the verified batches.
    pub blocks: u64,
    /// Their blobs.
    pub blobs: u64,
    /// Batches that a worker would rewrite.
    pub would_self_heal: u64,
    /// Batches that a worker would write because their blocks are missing.
    pub would_fill_gap: u64,
}

/// Why an audit ended before the end of its range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stopped {
    /// The batch, if it is about one.
    pub batch: Option<BatchIndex>,
    /// The reason's code.
    pub reason: String,
    /// For people.
    pub detail: String,
}

/// The report of one range, or of several joined ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditReport {
    /// [`FORMAT`].
    pub format: u32,
    /// The networks and contracts.
    pub identity: Identity,
    /// Which L1 blocks counted as settled.
    pub settled: String,
    /// The verdict.
    pub verdict: Verdict,
    /// Whether every batch of the range was judged.
    pub finished: bool,
    /// By whose word the batch before the range is taken.
    pub base: Base,
    /// The batch before the range.
    pub before: Option<BatchEdge>,
    /// The last batch that was judged.
    pub last: Option<BatchEdge>,
    /// How many.
    pub counts: Counts,
    /// What contradicts L1, by batch.
    pub divergences: Vec<Divergence>,
    /// Why it ended early.
    pub stopped: Option<Stopped>,
}

/// Which L1 blocks count as settled, in words that two reports can be compared by.
pub fn settled_by(confirmations: Confirmations) -> String {
    match confirmations {
        Confirmations::Depth(depth) => format!("depth {depth}"),
        Confirmations::Safe => "safe".to_owned(),
        Confirmations::Finalized => "finalized".to_owned(),
    }
}

/// How an audit ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditEnd {
    /// Every batch of the range was judged.
    Done,
    /// L1 has not settled this batch of the range yet.
    NotCommitted(BatchIndex),
    /// It ended early.
    Stopped(Stall),
    /// A signal ended it.
    Interrupted,
}

/// The verdict on an audit that ended so; `diverged` says that it listed a divergence, which outweighs all else.
pub fn verdict(end: &AuditEnd, diverged: bool) -> Verdict {
    match end {
        _ if diverged => Verdict::Diverged,
        AuditEnd::Done => Verdict::Verified,
        AuditEnd::NotCommitted(_) => Verdict::Unavailable,
        AuditEnd::Interrupted => Verdict::Interrupted,
        AuditEnd::Stopped(stall) => match stall.reason() {
            // The local blocks are missing: there is nothing to audit.
            Reason::WouldFillGap => Verdict::Unavailable,
            reason if reason.is_divergence() => Verdict::Diverged,
            reason if reason.is_undecidable() => Verdict::Unavailable,
            _ => Verdict::Failed,
        },
    }
}

/// What an audit does after a poll that ended on a stall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Poll again at once.
    Now,
    /// Poll again after a while; it counts as a fault that may pass.
    Later,
    /// Poll again after a while: the head may still turn out to grow, or to have stopped.
    Watch,
    /// The local chain contradicts L1 here.
    Diverged,
    /// It is over.
    Stop,
}

/// Facts for [`after_stall`].
#[derive(Clone, Copy, Debug)]
pub struct StallFacts<'a> {
    /// The stall.
    pub stall: &'a Stall,
    /// The poll before ended on the same one.
    pub again: bool,
    /// Faults that may pass, in a row, without this one.
    pub faults: u32,
    /// Enough time went by to see whether the local head grows.
    pub watched: bool,
}

/// Decides on a stall. A divergence counts after it was seen twice: answers of one endpoint may have made the first one.
pub fn after_stall(facts: &StallFacts<'_>) -> Next {
    let StallFacts { stall, again, faults, watched } = *facts;
    let reason = stall.reason();
    match (&stall.cause, reason) {
        (_, reason) if reason.is_divergence() => {
            if again {
                Next::Diverged
            } else {
                Next::Now
            }
        }
        // These end by themselves.
        (Cause::Searching(SearchAt::Logs { .. } | SearchAt::Messages { .. } | SearchAt::Blobs { .. }), _)
        | (Cause::SearchingRoot { .. }, _) => Next::Now,
        (_, Reason::WaitingForBlocks) if !watched => Next::Watch,
        (_, Reason::WaitingForBlocks | Reason::WouldFillGap) => Next::Stop,
        (_, reason) if reason.is_halt() || faults.saturating_add(1) >= PATIENCE => Next::Stop,
        _ => Next::Later,
    }
}

/// Text of at most [`DETAIL_MAX`] bytes.
fn shortened(mut text: String) -> String {
    let mut end = text.len().min(DETAIL_MAX);
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    text.truncate(end);
    text
}

/// What `stall` says of `batch`, which follows the block `below`.
pub fn divergence(batch: BatchIndex, stall: &Stall, below: Option<L2Number>) -> Divergence {
    let block = match &stall.cause {
        Cause::WouldWrite { first, .. } => Some(*first),
        Cause::StateRoot { number, .. } | Cause::WithdrawalRoot { number, .. } => Some(*number),
        Cause::BelowFinalized(Final::Block(number) | Final::Anchor(number)) => Some(*number),
        Cause::DiffersBeforeSwitch(Some(difference)) => Some(difference.number),
        Cause::PrevStateRoot { .. } => below,
        _ => None,
    };
    Divergence { batch, reason: stall.reason().code().to_owned(), block, detail: shortened(stall.detail()) }
}

/// Why an audit ended early, for its report.
pub fn stopped(stall: &Stall) -> Stopped {
    let reason = stall.reason().code().to_owned();
    Stopped { batch: stall.batch, reason, detail: shortened(stall.detail()) }
}

/// Why a report is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its form is of another version.
    Format(u32),
    /// What it says contradicts itself.
    Damaged(&'static str),
    /// Its audit was not finished.
    Unfinished(Verdict),
    /// It is about another network than the first report: this field differs.
    Network(&'static str),
    /// Other L1 blocks counted as settled.
    Settled {
        /// In the first report.
        expected: String,
        /// In this one.
        actual: String,
    },
    /// No report has these batches, which lie before it.
    Gap {
        /// The first one.
        from: BatchIndex,
        /// The last one.
        to: BatchIndex,
    },
    /// An earlier report has these batches too.
    Overlap {
        /// The first one.
        from: BatchIndex,
        /// The last one.
        to: BatchIndex,
    },
    /// The range before ends on another batch hash.
    Hash(BatchIndex),
    /// The range before ends on another L2 block.
    Block {
        /// The block on which the range before ends.
        expected: L2Ref,
        /// The block after which this one begins.
        actual: L2Ref,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Format(format) => write!(f, "its format is {format}, this program reads {FORMAT}"),
            Self::Damaged(what) => write!(f, "it is damaged: {what}"),
            Self::Unfinished(verdict) => write!(f, "its audit was not finished ({})", verdict.as_str()),
            Self::Network(field) => write!(f, "it is about another network: the {field} differs"),
            Self::Settled { expected, actual } => {
                write!(f, "L1 counted as settled by {actual:?} in it, and by {expected:?} in the first one")
            }
            Self::Gap { from, to } => write!(f, "batches {from} to {to}, which lie before it, are in no report"),
            Self::Overlap { from, to } => write!(f, "batches {from} to {to} are in an earlier report too"),
            Self::Hash(batch) => write!(f, "the range before it ends on another hash of batch {batch}"),
            Self::Block { expected, actual } => {
                write!(f, "it begins after block {actual}, and the range before it ends on {expected}")
            }
        }
    }
}

/// A report that does not fit, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its name.
    pub name: String,
    /// Why.
    pub why: Refusal,
}

/// The two ends of a finished report that does not contradict itself.
fn sound(report: &AuditReport) -> Result<(BatchEdge, BatchEdge), Refusal> {
    if report.format != FORMAT {
        return Err(Refusal::Format(report.format));
    }
    if !report.finished {
        return Err(Refusal::Unfinished(report.verdict));
    }
    let damaged = |holds: bool, what| if holds { Ok(()) } else { Err(Refusal::Damaged(what)) };
    let (Some(before), Some(last)) = (report.before, report.last) else {
        return Err(Refusal::Damaged("it has no batch before its range, or none in it"));
    };
    let AuditReport { counts, divergences, .. } = report;
    damaged(report.stopped.is_none(), "it is finished and ended early")?;
    damaged(before.batch < last.batch, "its range is empty")?;
    damaged(before.block.number <= last.block.number, "its blocks go down")?;
    damaged((report.base == Base::Genesis) == (before.batch.get() == 0), "its base is not where its range begins")?;
    let genesis = L2Ref { number: L2Number::new(0), hash: report.identity.l2_genesis };
    damaged(report.base != Base::Genesis || before.block == genesis, "its base is not the genesis block")?;
    let in_range = |d: &Divergence| d.batch > before.batch && d.batch <= last.batch;
    damaged(divergences.iter().all(in_range), "a divergence lies outside of its range")?;
    let ascending = divergences.windows(2).all(|pair| matches!(pair, [a, b] if a.batch < b.batch));
    damaged(ascending, "its divergences are not in order")?;
    let known = |d: &Divergence| Reason::ALL.iter().any(|r| r.is_divergence() && r.code() == d.reason);
    damaged(divergences.iter().all(known), "a divergence has a reason that is none")?;
    let diverged = u64::try_from(divergences.len()).unwrap_or(u64::MAX);
    let judged = counts.verified.checked_add(diverged);
    damaged(judged == Some(last.batch.above(before.batch)), "its counts are not those of its range")?;
    damaged(counts.consistent == counts.verified, "an audit writes nothing, and it counts batches that were written")?;
    damaged(counts.encoder_drift <= counts.consistent, "its counts contradict each other")?;
    let healing = divergences.iter().filter(|d| d.reason == Reason::WouldSelfHeal.code()).count();
    damaged(u64::try_from(healing) == Ok(counts.would_self_heal), "its counts are not those of its divergences")?;
    let blocks = last.block.number.above(before.block.number);
    let fits = if divergences.is_empty() { counts.blocks == blocks } else { counts.blocks <= blocks };
    damaged(fits, "its blocks are not those of its range")?;
    let expected = if divergences.is_empty() { Verdict::Verified } else { Verdict::Diverged };
    damaged(report.verdict == expected, "its verdict is not that of its divergences")?;
    Ok((before, last))
}

/// The first field in which two identities differ.
fn network_difference(a: &Identity, b: &Identity) -> Option<&'static str> {
    let fields = [
        ("L1 chain id", a.l1_chain_id == b.l1_chain_id),
        ("L2 chain id", a.l2_chain_id == b.l2_chain_id),
        ("Rollup contract", a.rollup == b.rollup),
        ("L1MessageQueue contract", a.queue == b.queue),
        ("L2 genesis hash", a.l2_genesis == b.l2_genesis),
    ];
    fields.into_iter().find(|(_, equal)| !equal).map(|(field, _)| field)
}

/// What keeps `next` from following a range that ends on `end`.
fn joins(end: &BatchEdge, next: &BatchEdge) -> Option<Refusal> {
    match next.batch.cmp(&end.batch) {
        std::cmp::Ordering::Greater => Some(Refusal::Gap { from: end.batch.plus(1), to: next.batch }),
        std::cmp::Ordering::Less => Some(Refusal::Overlap { from: next.batch.plus(1), to: end.batch }),
        std::cmp::Ordering::Equal if next.hash != end.hash => Some(Refusal::Hash(end.batch)),
        std::cmp::Ordering::Equal if next.block != end.block => {
            Some(Refusal::Block { expected: end.block, actual: next.block })
        }
        std::cmp::Ordering::Equal => None,
    }
}

fn sum(a: &Counts, b: &Counts) -> Counts {
    Counts {
        verified: a.verified.saturating_add(b.verified),
        consistent: a.consistent.saturating_add(b.consistent),
        encoder_drift: a.encoder_drift.saturating_add(b.encoder_drift),
        blocks: a.blocks.saturating_add(b.blocks),
        blobs: a.blobs.saturating_add(b.blobs),
        would_self_heal: a.would_self_heal.saturating_add(b.would_self_heal),
        would_fill_gap: a.would_fill_gap.saturating_add(b.would_fill_gap),
    }
}

/// Joins reports, in any order, into that of their whole range.
///
/// # Errors
/// Every report that does not fit, in the order of the ranges. None at all if there is no report.
pub fn merge(reports: Vec<(String, AuditReport)>) -> Result<AuditReport, Vec<Refused>> {
    let mut refused = Vec::new();
    let mut ranges = Vec::new();
    for (name, report) in reports {
        match sound(&report) {
            Ok((before, last)) => ranges.push((before, last, name, report)),
            Err(why) => refused.push(Refused { name, why }),
        }
    }
    ranges.sort_by_key(|(before, last, ..)| (before.batch, last.batch));
    let mut ranges = ranges.into_iter();
    let Some((_, mut end, _, mut whole)) = ranges.next() else { return Err(refused) };
    for (before, last, name, report) in ranges {
        let other = network_difference(&whole.identity, &report.identity).map(Refusal::Network);
        let other = other.or_else(|| {
            let (expected, actual) = (whole.settled.clone(), report.settled.clone());
            (expected != actual).then_some(Refusal::Settled { expected, actual })
        });
        if let Some(why) = other {
            refused.push(Refused { name, why });
            continue;
        }
        if let Some(why) = joins(&end, &before) {
            refused.push(Refused { name, why });
        }
        if last.batch > end.batch {
            end = last;
        }
        whole.counts = sum(&whole.counts, &report.counts);
        whole.divergences.extend(report.divergences);
    }
    if !refused.is_empty() {
        return Err(refused);
    }
    whole.last = Some(end);
    whole.verdict = if whole.divergences.is_empty() { Verdict::Verified } else { Verdict::Diverged };
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::stall::Gap;
    use crate::types::{Address, Case};

    fn hash(n: u64) -> B256 {
        B256::from_low_u64_be(n)
    }

    /// Ten blocks a batch.
    fn edge(batch: u64) -> BatchEdge {
        let of = if batch == 0 { hash(7) } else { hash(1_000 + batch) };
        let block = L2Ref { number: (batch * 10).into(), hash: of };
        BatchEdge { batch: batch.into(), hash: hash(batch), block }
    }

    /// A finished audit of batches `from` to `to`, with these divergent ones.
    fn report(from: u64, to: u64, diverged: &[u64]) -> AuditReport {
        let bad = u64::try_from(diverged.len()).unwrap();
        let verified = to + 1 - from - bad;
        let divergence = |batch: &u64| Divergence {
            batch: (*batch).into(),
            reason: "would-self-heal".to_owned(),
            block: Some((batch * 10).into()),
            detail: String::new(),
        };
        AuditReport {
            format: FORMAT,
            identity: Identity {
                l1_chain_id: 1,
                l2_chain_id: 2,
                rollup: Address::zero(),
                queue: Address::zero(),
                l2_genesis: hash(7),
            },
            settled: "finalized".to_owned(),
            verdict: if bad == 0 { Verdict::Verified } else { Verdict::Diverged },
            finished: true,
            base: if from == 1 { Base::Genesis } else { Base::L1 },
            before: Some(edge(from - 1)),
            last: Some(edge(to)),
            counts: Counts {
                verified,
                consistent: verified,
                encoder_drift: 0,
                blocks: verified * 10,
                blobs: verified,
                would_self_heal: bad,
                would_fill_gap: 0,
            },
            divergences: diverged.iter().map(divergence).collect(),
            stopped: None,
        }
    }

    fn named(reports: &[AuditReport]) -> Vec<(String, AuditReport)> {
        reports.iter().enumerate().map(|(n, report)| (format!("r{n}"), report.clone())).collect()
    }

    #[test]
    fn ranges_that_join_give_the_report_of_the_whole() {
        let parts = [report(1, 4, &[]), report(5, 5, &[]), report(6, 10, &[])];
        assert_eq!(merge(named(&parts)), Ok(report(1, 10, &[])));
        let mut shuffled = named(&parts);
        shuffled.rotate_left(2);
        assert_eq!(merge(shuffled), Ok(report(1, 10, &[])));
        let parts = [report(1, 4, &[3]), report(5, 10, &[5, 9])];
        assert_eq!(merge(named(&parts)), Ok(report(1, 10, &[3, 5, 9])));
        // What was joined can be joined again, and a part of the history has a verdict too.
        let first = merge(named(&[report(3, 4, &[]), report(5, 6, &[])])).unwrap();
        assert_eq!(merge(named(&[first, report(7, 8, &[])])), Ok(report(3, 8, &[])));
        assert_eq!(merge(named(&[report(1, 2, &[])])), Ok(report(1, 2, &[])));
        assert_eq!(merge(Vec::new()), Err(Vec::new()));
    }

    #[test]
    fn what_does_not_join_is_refused_by_name() {
        let refused = |reports: &[AuditReport]| -> Vec<(String, Refusal)> {
            merge(named(reports)).unwrap_err().into_iter().map(|r| (r.name, r.why)).collect()
        };
        let one = |n: u64, why: Refusal| vec![(format!("r{n}"), why)];
        let (a, b, c) = (report(1, 4, &[]), report(5, 7, &[]), report(8, 9, &[]));
        let gap = Refusal::Gap { from: 5.into(), to: 7.into() };
        assert_eq!(refused(&[a.clone(), c.clone()]), one(1, gap.clone()));
        let overlap = Refusal::Overlap { from: 4.into(), to: 4.into() };
        assert_eq!(refused(&[a.clone(), report(4, 7, &[]), c.clone()]), one(1, overlap));
        let twice = Refusal::Overlap { from: 5.into(), to: 7.into() };
        assert_eq!(refused(&[a.clone(), b.clone(), b.clone(), c.clone()]), one(2, twice));
        // A range that lies inside another one ends nothing.
        let inside = Refusal::Overlap { from: 2.into(), to: 9.into() };
        assert_eq!(refused(&[report(1, 9, &[]), report(2, 3, &[])]), one(1, inside));

        let mut other = b.clone();
        other.identity.l2_chain_id = 3;
        // Without it a range is missing, too.
        assert_eq!(
            refused(&[a.clone(), other, c.clone()]),
            [one(1, Refusal::Network("L2 chain id")), one(2, gap.clone())].concat()
        );
        let mut other = b.clone();
        other.settled = "depth 10".to_owned();
        let settled = Refusal::Settled { expected: "finalized".to_owned(), actual: "depth 10".to_owned() };
        assert_eq!(refused(&[a.clone(), other]), one(1, settled));
        let mut other = b.clone();
        other.before.as_mut().unwrap().hash = hash(99);
        assert_eq!(refused(&[a.clone(), other]), one(1, Refusal::Hash(4.into())));
        let mut other = b.clone();
        other.before.as_mut().unwrap().block.hash = hash(99);
        let (expected, actual) = (edge(4).block, other.before.unwrap().block);
        assert_eq!(refused(&[a.clone(), other]), one(1, Refusal::Block { expected, actual }));
        let mut other = b;
        (other.finished, other.verdict) = (false, Verdict::Interrupted);
        let unfinished = one(1, Refusal::Unfinished(Verdict::Interrupted));
        assert_eq!(refused(&[a, other, c]), [unfinished, one(2, gap)].concat());
    }

    #[test]
    fn p7_a_report_that_contradicts_itself_is_damaged() {
        type Harm = fn(&mut AuditReport);
        let table: [Harm; 20] = [
            |r| r.before = None,
            |r| r.last = None,
            |r| r.last = r.before,
            |r| r.last.as_mut().unwrap().batch = 99.into(),
            |r| r.last.as_mut().unwrap().block.number = 1.into(),
            |r| r.last.as_mut().unwrap().block.number = 10_000.into(),
            |r| r.base = Base::Genesis,
            |r| r.counts.verified += 1,
            |r| r.counts.verified = u64::MAX,
            |r| r.counts.consistent -= 1,
            |r| r.counts.encoder_drift = 100,
            |r| r.counts.blocks = u64::MAX,
            |r| r.counts.would_self_heal = 0,
            |r| r.verdict = Verdict::Verified,
            |r| r.verdict = Verdict::Unavailable,
            |r| r.divergences[0].batch = 4.into(),
            |r| r.divergences[0].batch = 99.into(),
            |r| r.divergences[0].reason = "waiting_for_blocks".to_owned(),
            |r| r.divergences.reverse(),
            |r| r.stopped = Some(Stopped { batch: None, reason: String::new(), detail: String::new() }),
        ];
        for (row, harm) in table.into_iter().enumerate() {
            let mut harmed = report(5, 9, &[6, 8]);
            // The block number that is too large shows only if nothing diverged.
            if row == 5 {
                harmed = report(5, 9, &[]);
            }
            harm(&mut harmed);
            let refused = merge(named(&[harmed])).unwrap_err();
            assert!(matches!(refused[0].why, Refusal::Damaged(_)), "row {row}: {refused:?}");
        }
        // A first range that begins above the genesis block, with counts that fit.
        let mut late = report(1, 9, &[]);
        late.before.as_mut().unwrap().block = L2Ref { number: 5.into(), hash: hash(5) };
        late.counts.blocks -= 5;
        assert!(matches!(merge(named(&[late])).unwrap_err()[0].why, Refusal::Damaged(_)));
        let other = AuditReport { format: 2, ..report(5, 9, &[]) };
        assert_eq!(merge(named(&[other])).unwrap_err()[0].why, Refusal::Format(2));
    }

    #[test]
    fn a_stall_ends_an_audit_or_is_a_divergence_or_passes() {
        let at = |cause| Stall::at(5.into(), cause);
        let would = |case| Cause::WouldWrite { case, blocks: 1, first: 50.into() };
        let missing = Cause::BlocksMissing { head: 1.into(), last: 9.into() };
        let search = Cause::Searching(SearchAt::Messages { first: 0.into(), at: 7.into() });
        let lower = Cause::SearchingRoot { below: 9.into(), at: 7.into() };
        let decide = |cause: &Cause, again, faults, watched| {
            after_stall(&StallFacts { stall: &at(cause.clone()), again, faults, watched })
        };
        let table = [
            (would(Case::SelfHeal), false, 0, false, Next::Now),
            (would(Case::SelfHeal), true, 0, false, Next::Diverged),
            (Cause::RevertOfProved, true, 9, true, Next::Diverged),
            (would(Case::FillGap), false, 0, true, Next::Stop),
            (missing.clone(), false, 0, false, Next::Watch),
            (missing.clone(), true, 9, false, Next::Watch),
            (missing, true, 0, true, Next::Stop),
            (search, true, 9, true, Next::Now),
            (lower, true, 9, true, Next::Now),
            (Cause::RootUnknown(9.into()), false, 0, true, Next::Later),
            (Cause::RootUnknown(9.into()), true, PATIENCE - 1, true, Next::Stop),
            (Cause::Gap(Gap::RevertOfGone), false, 0, true, Next::Stop),
            (Cause::L1Changed(String::new()), false, 0, true, Next::Later),
        ];
        for (row, (cause, again, faults, watched, expected)) in table.into_iter().enumerate() {
            assert_eq!(decide(&cause, again, faults, watched), expected, "row {row}: {cause}");
        }
    }

    #[test]
    fn the_verdict_follows_from_the_end_and_from_what_was_listed() {
        let stopped = |cause| AuditEnd::Stopped(Stall::at(5.into(), cause));
        let would = |case| Cause::WouldWrite { case, blocks: 1, first: 50.into() };
        let table = [
            (AuditEnd::Done, Verdict::Verified),
            (AuditEnd::NotCommitted(5.into()), Verdict::Unavailable),
            (AuditEnd::Interrupted, Verdict::Interrupted),
            (stopped(would(Case::FillGap)), Verdict::Unavailable),
            (stopped(would(Case::SelfHeal)), Verdict::Diverged),
            (stopped(Cause::RootUnknown(9.into())), Verdict::Unavailable),
            (stopped(Cause::L1Stale), Verdict::Failed),
        ];
        for (end, expected) in table {
            assert_eq!(verdict(&end, false), expected, "{end:?}");
            assert_eq!(verdict(&end, true), Verdict::Diverged, "{end:?}");
        }
    }

    #[test]
    fn a_divergence_names_its_block_and_no_more_text_than_is_read() {
        let root = |number: u64| Cause::StateRoot { number: number.into(), expected: hash(1), actual: hash(2) };
        let above = Cause::PrevStateRoot { expected: hash(1), actual: hash(2) };
        let block = |cause| divergence(5.into(), &Stall::at(5.into(), cause), Some(40.into())).block;
        assert_eq!(block(root(49)), Some(49.into()));
        assert_eq!(block(above), Some(40.into()));
        assert_eq!(block(Cause::RevertOfProved), None);
        let long = stopped(&Stall::new(Cause::L1Changed("ä".repeat(DETAIL_MAX))));
        assert!(long.detail.len() <= DETAIL_MAX && long.detail.len() > DETAIL_MAX - 4, "{}", long.detail.len());
    }
}
