//! One cause of each kind, with the code that it must have.

use morph_deriver::codec::calldata::CalldataError;
use morph_deriver::decide::binding::{BindingFault, CommitFault};
use morph_deriver::decide::content::ContentFault;
use morph_deriver::decide::follow::{Cited, Dropped};
use morph_deriver::decide::reconcile::{Difference, Field, Otherwise};
use morph_deriver::decide::stall::{Cause, Final, Gap, Reason, SearchAt, StateMissing};
use morph_deriver::error::{PortError, PortErrorKind, Target};
use morph_deriver::types::{B256, Case, L1Ref, L2Ref};

fn port(target: Target, kind: PortErrorKind) -> PortError {
    PortError::new(target, kind, "why")
}

fn refused() -> PortError {
    port(Target::Engine, PortErrorKind::Refused { code: -32000, message: "no".to_owned() })
}

fn commit(fault: CommitFault) -> Cause {
    Cause::Commit { transaction: B256::repeat_byte(1), fault: Box::new(fault) }
}

fn ports() -> Vec<(Cause, Reason)> {
    use PortErrorKind::{NotFound, Pruned, Timeout, WrongNetwork};
    [
        (Target::L1, Timeout, Reason::L1Unavailable),
        (Target::Beacon, Timeout, Reason::BeaconUnavailable),
        (Target::Beacon, Pruned, Reason::BlobPruned),
        (Target::Beacon, NotFound, Reason::BlobMissing),
        (Target::L2, Timeout, Reason::L2Unavailable),
        (Target::Engine, Timeout, Reason::EngineUnavailable),
        (Target::Reactors, Timeout, Reason::ReactorsDegraded),
        (Target::Source, Timeout, Reason::SourceUnavailable),
        (Target::Store, Timeout, Reason::StoreUnavailable),
        (Target::Fixture, NotFound, Reason::FixtureIncomplete),
        (Target::L1, WrongNetwork, Reason::WrongNetwork),
    ]
    .map(|(target, kind, reason)| (Cause::Port(port(target, kind)), reason))
    .to_vec()
}

fn of_l1() -> Vec<(Cause, Reason)> {
    let (batch, block, at) = (7.into(), L1Ref { number: 80.into(), hash: B256::zero() }, 90.into());
    let hash = BindingFault::Hash { expected: B256::zero(), actual: B256::repeat_byte(1), field: None };
    let mut all = vec![
        (Cause::L1Changed("a block".to_owned()), Reason::L1Reorg),
        (Cause::NoL1Block, Reason::L1Behind),
        (Cause::NoSettledL1Block, Reason::L1Behind),
        (Cause::L1HeadBelowCursor, Reason::L1Behind),
        (Cause::L1HeadBelow(at), Reason::L1Behind),
        (Cause::L1Stale, Reason::L1Stale),
        (Cause::ReorgTooDeep { window: 64 }, Reason::ReorgTooDeep),
        (Cause::Searching(SearchAt::Logs { batch, at }), Reason::SearchingL1),
        (Cause::Searching(SearchAt::Messages { first: 3.into(), at }), Reason::SearchingL1),
        (Cause::Searching(SearchAt::Blobs { batch, at: block }), Reason::SearchingL1),
        (Cause::NoProgress, Reason::NoProgress),
        (Cause::RevertPending, Reason::RevertPending),
        (Cause::RevertOfProved, Reason::RevertBelowFinalized),
        (commit(CommitFault::Binding(BindingFault::Version(3))), Reason::UnsupportedVersion),
        (commit(CommitFault::Binding(BindingFault::TooManyCommits(32))), Reason::UnknownCommit),
        (commit(CommitFault::Binding(hash)), Reason::Unbound),
        (commit(CommitFault::Calldata(CalldataError::TooShort(3))), Reason::UnknownCommit),
        (commit(CommitFault::NotInTrace), Reason::UnknownCommit),
        (Cause::Discontinued(BindingFault::Header("cut".to_owned())), Reason::Unbound),
        (Cause::Content(ContentFault::Empty), Reason::PoisonBatch),
    ];
    let gaps = [
        Gap::Commit(batch),
        Gap::CommitBelow(batch),
        Gap::Revert(batch),
        Gap::RevertBeforeRecommit,
        Gap::RevertOfGone,
        Gap::CommitLeftOut(batch),
        Gap::RevertLeftOut(batch),
        Gap::KnownRevertLeftOut { batch, block },
        Gap::RevertDenied,
    ];
    all.extend(gaps.map(|gap| (Cause::Gap(gap), Reason::Gap)));
    all
}

fn of_the_node() -> Vec<(Cause, Reason)> {
    let (number, skip, block) = (60.into(), 59.into(), L2Ref::default());
    let (expected, actual) = (B256::zero(), B256::repeat_byte(1));
    let difference = Difference { number, field: Field::Timestamp };
    let would = |case| Cause::WouldWrite { case, blocks: 12, first: number };
    let mut all = vec![
        (Cause::NodeSyncing, Reason::NodeSyncing),
        (Cause::BlocksMissing { head: skip, last: number }, Reason::WaitingForBlocks),
        (Cause::BlocksLost { from: skip, head: skip, last: number }, Reason::NodeLostBlocks),
        (Cause::BlockMissing { number: skip, head: number }, Reason::BlockMissing),
        (Cause::BeforeSwitch, Reason::BeforeSwitch),
        (Cause::LocalChanged("a block".to_owned()), Reason::LocalChainChanged),
        (Cause::PrevStateRoot { expected, actual }, Reason::StateRoot),
        (Cause::StateRoot { number, expected, actual }, Reason::StateRoot),
        (Cause::WithdrawalRoot { number, expected, actual }, Reason::WithdrawalRoot),
        (Cause::SearchingRoot { below: number, at: skip }, Reason::RootsUnavailable),
        (Cause::RootUnknown(number), Reason::RootsUnavailable),
        (Cause::DiffersBeforeSwitch(Some(difference)), Reason::DivergesBeforeSwitch),
        (Cause::CannotRewrite { skip: block }, Reason::ElCannotReorg),
        (Cause::TwoNodes { reader: block, engine: block }, Reason::EngineIsAnotherNode),
        (Cause::FinalizedElsewhere(refused()), Reason::FinalizedElsewhere),
        (Cause::OtherBlockMade { number, what: Otherwise::Timestamp }, Reason::BlockRefused),
        (Cause::Refused(refused()), Reason::BlockRefused),
        (Cause::RefusedAgain { tries: 8, error: refused() }, Reason::BlockRefused),
        (Cause::PauseBudget { at: number }, Reason::PauseBudget),
        (Cause::NotResumed, Reason::ReactorsDegraded),
        (Cause::NotWritten, Reason::EngineUnavailable),
        (would(Case::SelfHeal), Reason::WouldSelfHeal),
        (would(Case::FillGap), Reason::WouldFillGap),
    ];
    let below = [
        Final::Verified,
        Final::BatchEnd(block),
        Final::OtherBlock { there: block, finalized: block },
        Final::Anchor(number),
        Final::Genesis,
        Final::Block(number),
    ];
    all.extend(below.map(|what| (Cause::BelowFinalized(what), Reason::DivergesBelowFinalized)));
    let missing = [
        StateMissing::NoneKept { skip, older: 9 },
        StateMissing::TooLarge { from: 1.into(), skip },
        StateMissing::BeforeSwitch { skip, number },
    ];
    all.extend(missing.map(|why| (Cause::StateMissing(why), Reason::StateMissing)));
    all
}

fn of_following() -> Vec<(Cause, Reason)> {
    let block = L2Ref::default();
    let (cited, said) = (Cited::SafeOrigin, L1Ref { number: 80.into(), hash: B256::zero() });
    let behind = Dropped::L1Behind { cited, number: said.number };
    let differs = Dropped::CitedDiffers { cited, said, ours: B256::repeat_byte(1) };
    vec![
        (Cause::FirstSync { syncing: true }, Reason::NodeSyncing),
        (Cause::FirstSync { syncing: false }, Reason::NodeSyncing),
        (Cause::TargetMissing { head: 9.into(), target: block }, Reason::WaitingForBlocks),
        (Cause::SourceDropped(Dropped::L1NotAsked), Reason::L1Unavailable),
        (Cause::SourceDropped(behind), Reason::L1Behind),
        (Cause::SourceDropped(Dropped::Stale { age: 9 }), Reason::SourceStale),
        (Cause::SourceDropped(differs), Reason::SourceRefused),
        (Cause::SourceDiffers { source: block, local: block }, Reason::SourceDiffers),
    ]
}

/// Every cause that the flow can give, with its code.
pub fn one_of_each() -> Vec<(Cause, Reason)> {
    [ports(), of_l1(), of_the_node(), of_following()].concat()
}
