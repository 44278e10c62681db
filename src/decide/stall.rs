//! Why is the worker stalled? Every cause has one reason code (P9).
//!
//! Decided here: which code each cause has. A cause keeps the facts that it follows from. Its text is made only for
//! display; no decision depends on it.

use std::fmt;

use serde::ser::{Serialize, SerializeStruct, Serializer};

use crate::decide::binding::{BindingFault, CommitFault};
use crate::decide::content::ContentFault;
use crate::decide::follow::Dropped;
pub use crate::decide::reason::Reason;
use crate::decide::reconcile::{Difference, Otherwise};
use crate::error::PortError;
use crate::types::{B256, BatchIndex, Case, L1Number, L1Ref, L2Number, L2Ref, QueueIndex};

/// Why the worker is stalled, with the facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A port could not answer.
    Port(PortError),
    /// The execution node says that it is syncing.
    NodeSyncing,
    /// Following has not begun: the node is syncing, or has no block above block 0 yet.
    FirstSync {
        /// Whether the node says that it is syncing.
        syncing: bool,
    },
    /// Following: the source's safe head is not on the node yet.
    TargetMissing {
        /// The local head.
        head: L2Number,
        /// The source's safe head.
        target: L2Ref,
    },
    /// Following: what the sources say is not taken over.
    SourceDropped(Dropped),
    /// Following: the local chain has another block at the height of the source's safe head.
    SourceDiffers {
        /// The source's safe head.
        source: L2Ref,
        /// The local block there.
        local: L2Ref,
    },
    /// The batch's blocks are missing.
    BlocksMissing {
        /// The local head.
        head: L2Number,
        /// The batch's last block.
        last: L2Number,
    },
    /// The node lost verified blocks, and the batch's are among them.
    BlocksLost {
        /// The lowest block that it lost.
        from: L2Number,
        /// The local head.
        head: L2Number,
        /// The batch's last block.
        last: L2Number,
    },
    /// The node has no block at a height below its head.
    BlockMissing {
        /// The height.
        number: L2Number,
        /// The local head.
        head: L2Number,
    },
    /// The batch's blocks are missing, and lie before the single-sequencer switch.
    BeforeSwitch,
    /// The local chain changed between two reads that belong together. The text says what was read.
    LocalChanged(String),
    /// L1 changed between two reads that belong together. The text says what was read.
    L1Changed(String),
    /// The L1 node has no block.
    NoL1Block,
    /// The L1 node has no block for the tag that marks what is settled.
    NoSettledL1Block,
    /// The L1 node's head lies below the last block that was read.
    L1HeadBelowCursor,
    /// The L1 node's head lies below this block, which was asked for.
    L1HeadBelow(L1Number),
    /// The newest L1 block is older than it may be.
    L1Stale,
    /// None of so many recorded L1 blocks is canonical any more.
    ReorgTooDeep {
        /// How many L1 blocks are recorded.
        window: u64,
    },
    /// A search through L1 continues in the next poll.
    Searching(SearchAt),
    /// Reading L1 goes back to the same place again and again.
    NoProgress,
    /// A log is missing.
    Gap(Gap),
    /// L1 reverted the batch in a block that is not confirmed yet.
    RevertPending,
    /// L1 gave a revert of a batch that it had proved.
    RevertOfProved,
    /// No calldata of the commit's transaction binds to its event.
    Commit {
        /// The transaction.
        transaction: B256,
        /// Why not.
        fault: Box<CommitFault>,
    },
    /// The commit does not continue the batch before.
    Discontinued(BindingFault),
    /// The batch's content can be no batch.
    Content(ContentFault),
    /// Calldata's `prevStateRoot` is not the state root of the block below the batch, which was verified.
    PrevStateRoot {
        /// Calldata's.
        expected: B256,
        /// The block's.
        actual: B256,
    },
    /// The state root at the batch's last block is not calldata's.
    StateRoot {
        /// The block.
        number: L2Number,
        /// Calldata's.
        expected: B256,
        /// The block's.
        actual: B256,
    },
    /// The withdrawal root at the batch's last block is not calldata's.
    WithdrawalRoot {
        /// The block.
        number: L2Number,
        /// Calldata's.
        expected: B256,
        /// The block's.
        actual: B256,
    },
    /// The withdrawal root is searched for in the logs; the search continues in the next poll.
    SearchingRoot {
        /// The batch's first block: the log lies below it.
        below: L2Number,
        /// The search has reached this block.
        at: L2Number,
    },
    /// Neither state nor logs give the withdrawal root at this block.
    RootUnknown(L2Number),
    /// The local chain differs from L1 at or below the finalized head.
    BelowFinalized(Final),
    /// The local chain differs from L1 before the single-sequencer switch. The place is given if it is known.
    DiffersBeforeSwitch(Option<Difference>),
    /// The execution node ignores `parentHash`, and cannot be made to write on this block below its head.
    CannotRewrite {
        /// The block to build on.
        skip: L2Ref,
    },
    /// The node lacks a state that a rewrite must be executed on.
    StateMissing(StateMissing),
    /// Reader and engine show different heads: they are two nodes.
    TwoNodes {
        /// The reader's head.
        reader: L2Ref,
        /// The engine's.
        engine: L2Ref,
    },
    /// The node's finalized tag is on a block off its chain. The error is the node's answer to a write.
    FinalizedElsewhere(PortError),
    /// The node made a different block from the one that it was given.
    OtherBlockMade {
        /// At this height.
        number: L2Number,
        /// What differs.
        what: Otherwise,
    },
    /// The node refused a block for good.
    Refused(PortError),
    /// The node refused a block that it may take later, so many times in a row.
    RefusedAgain {
        /// How many.
        tries: u32,
        /// The last refusal.
        error: PortError,
    },
    /// The pause's budget was used up at this block.
    PauseBudget {
        /// The last block that was written, or the one below the first.
        at: L2Number,
    },
    /// The reactors are paused, and a resume failed.
    NotResumed,
    /// The batch that `recover` was to write is still missing.
    NotWritten,
    /// Observe mode: blocks would have been written.
    WouldWrite {
        /// The batch's case.
        case: Case,
        /// How many blocks.
        blocks: u64,
        /// The first of them.
        first: L2Number,
    },
}

/// What is searched for on L1, and how far the search has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SearchAt {
    /// Commits or reverts of a batch.
    Logs {
        /// The batch.
        batch: BatchIndex,
        /// The next block.
        at: L1Number,
    },
    /// L1 messages, from this one on.
    Messages {
        /// The first.
        first: QueueIndex,
        /// The next block.
        at: L1Number,
    },
    /// The blobs of a batch, among its earlier commits.
    Blobs {
        /// The batch.
        batch: BatchIndex,
        /// The commit that is tried next.
        at: L1Ref,
    },
}

/// A log that must be there and is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// No endpoint has a commit of this batch, though a later one was committed.
    Commit(BatchIndex),
    /// No endpoint has a commit of this batch, which must be verified before the one above it.
    CommitBelow(BatchIndex),
    /// This batch was committed anew or is gone, and no endpoint has its revert.
    Revert(BatchIndex),
    /// A later commit of the batch is stored, and no endpoint has the revert in between.
    RevertBeforeRecommit,
    /// The contract no longer holds the batch, and no endpoint has its revert.
    RevertOfGone,
    /// An endpoint left out a commit that it, or another, has.
    CommitLeftOut(BatchIndex),
    /// An endpoint left out a revert that it, or another, has.
    RevertLeftOut(BatchIndex),
    /// An endpoint left out a revert that was read ahead of its range.
    KnownRevertLeftOut {
        /// The batch.
        batch: BatchIndex,
        /// The revert's L1 block.
        block: L1Ref,
    },
    /// An endpoint gave a revert of a batch that the contract holds in the revert's very block.
    RevertDenied,
}

/// What differs at or below the finalized head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Final {
    /// The local chain differs from the verified one.
    Verified,
    /// A verified batch ends on this block, which lies below the finalized one.
    BatchEnd(L2Ref),
    /// The verified chain goes over another block than the finalized one.
    OtherBlock {
        /// The verified chain's.
        there: L2Ref,
        /// The finalized one.
        finalized: L2Ref,
    },
    /// The block below the batch is not what L1 committed to.
    Anchor(L2Number),
    /// The genesis block is not what L1 committed to.
    Genesis,
    /// The batch's blocks differ from this one on.
    Block(L2Number),
}

/// Why there is no state to execute a rewrite on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateMissing {
    /// The node has neither the state of `skip` nor one of an older block that may be rewritten.
    NoneKept {
        /// The block to build on.
        skip: L2Number,
        /// How many older blocks were asked about.
        older: usize,
    },
    /// The blocks that would have to be written again hold more bytes than can be kept.
    TooLarge {
        /// The nearest block whose state the node has.
        from: L2Number,
        /// The block to build on.
        skip: L2Number,
    },
    /// A block that would have to be written again lies before the single-sequencer switch.
    BeforeSwitch {
        /// The block to build on.
        skip: L2Number,
        /// The block before the switch.
        number: L2Number,
    },
}

impl Cause {
    /// The code that status, metrics and logs name.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Port(error) => Reason::of(error),
            Self::NodeSyncing => Reason::NodeSyncing,
            Self::BlocksMissing { .. } => Reason::WaitingForBlocks,
            Self::BlocksLost { .. } => Reason::NodeLostBlocks,
            Self::BlockMissing { .. } => Reason::BlockMissing,
            Self::BeforeSwitch => Reason::BeforeSwitch,
            Self::LocalChanged(_) => Reason::LocalChainChanged,
            Self::L1Changed(_) => Reason::L1Reorg,
            Self::NoL1Block | Self::NoSettledL1Block | Self::L1HeadBelowCursor | Self::L1HeadBelow(_) => {
                Reason::L1Behind
            }
            Self::L1Stale => Reason::L1Stale,
            Self::ReorgTooDeep { .. } => Reason::ReorgTooDeep,
            Self::Searching(_) => Reason::SearchingL1,
            Self::NoProgress => Reason::NoProgress,
            Self::FirstSync { .. } => Reason::NodeSyncing,
            Self::TargetMissing { .. } => Reason::WaitingForBlocks,
            Self::SourceDropped(Dropped::L1NotAsked) => Reason::L1Unavailable,
            Self::SourceDropped(Dropped::L1Behind { .. }) => Reason::L1Behind,
            Self::SourceDropped(Dropped::Stale { .. }) => Reason::SourceStale,
            Self::SourceDropped(_) => Reason::SourceRefused,
            Self::SourceDiffers { .. } => Reason::SourceDiffers,
            Self::Gap(_) => Reason::Gap,
            Self::RevertPending => Reason::RevertPending,
            Self::RevertOfProved => Reason::RevertBelowFinalized,
            Self::Commit { fault, .. } => match fault.as_ref() {
                CommitFault::Binding(BindingFault::Version(_)) => Reason::UnsupportedVersion,
                // Another endpoint may give the right commit: the fault says nothing about the chain.
                CommitFault::Binding(BindingFault::TooManyCommits(_)) => Reason::UnknownCommit,
                CommitFault::Binding(_) => Reason::Unbound,
                CommitFault::Calldata(_) | CommitFault::NotInTrace => Reason::UnknownCommit,
            },
            Self::Discontinued(_) => Reason::Unbound,
            Self::Content(_) => Reason::PoisonBatch,
            Self::PrevStateRoot { .. } | Self::StateRoot { .. } => Reason::StateRoot,
            Self::WithdrawalRoot { .. } => Reason::WithdrawalRoot,
            Self::SearchingRoot { .. } | Self::RootUnknown(_) => Reason::RootsUnavailable,
            Self::BelowFinalized(_) => Reason::DivergesBelowFinalized,
            Self::DiffersBeforeSwitch(_) => Reason::DivergesBeforeSwitch,
            Self::CannotRewrite { .. } => Reason::ElCannotReorg,
            Self::StateMissing(_) => Reason::StateMissing,
            Self::TwoNodes { .. } => Reason::EngineIsAnotherNode,
            Self::FinalizedElsewhere(_) => Reason::FinalizedElsewhere,
            Self::OtherBlockMade { .. } | Self::Refused(_) | Self::RefusedAgain { .. } => Reason::BlockRefused,
            Self::PauseBudget { .. } => Reason::PauseBudget,
            Self::NotResumed => Reason::ReactorsDegraded,
            Self::NotWritten => Reason::EngineUnavailable,
            Self::WouldWrite { case: Case::SelfHeal, .. } => Reason::WouldSelfHeal,
            Self::WouldWrite { .. } => Reason::WouldFillGap,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(error) | Self::Refused(error) => error.fmt(f),
            Self::NodeSyncing => f.write_str("the execution node says that it is syncing"),
            Self::FirstSync { syncing: true } => {
                f.write_str("following begins after the execution node's first sync, which is under way")
            }
            Self::FirstSync { syncing: false } => {
                f.write_str("following begins after the execution node's first sync; it has no block above block 0 yet")
            }
            Self::TargetMissing { head, target } => {
                write!(f, "the source's safe head is {target}, the local head {head}")
            }
            Self::SourceDropped(dropped) => dropped.fmt(f),
            Self::SourceDiffers { source, local } => {
                write!(f, "the source's safe head is {source}, the local block there {local}; nothing is changed")
            }
            Self::BlocksMissing { head, last } => write!(f, "the local head is {head}, the batch ends on {last}"),
            Self::BlocksLost { from, head, last } => {
                write!(f, "the node lost its blocks from {from} on; its head is {head}, the batch ends on {last}")
            }
            Self::BlockMissing { number, head } => {
                write!(f, "the execution node gives no block {number}, though its head is {head}")
            }
            Self::BeforeSwitch => {
                f.write_str("its blocks lie before the single-sequencer switch and are never derived from L1")
            }
            Self::LocalChanged(what) | Self::L1Changed(what) => f.write_str(what),
            Self::NoL1Block => f.write_str("the L1 node has no block yet"),
            Self::NoSettledL1Block => f.write_str("the L1 node names no such block yet"),
            Self::L1HeadBelowCursor => f.write_str("the L1 node's head lies below the last block that was read"),
            Self::L1HeadBelow(number) => write!(f, "L1 has no block {number} yet"),
            Self::L1Stale => {
                f.write_str("the newest L1 block is older than it may be; is the L1 node frozen, or this clock wrong?")
            }
            Self::ReorgTooDeep { window } => write!(
                f,
                "no L1 block of the last {window} is canonical any more; restore trust in L1, then start with a fresh \
                 database"
            ),
            Self::Searching(search) => search.fmt(f),
            Self::NoProgress => f.write_str("reading L1 gets no further; does an endpoint leave out logs?"),
            Self::Gap(gap) => gap.fmt(f),
            Self::RevertPending => f.write_str("L1 no longer holds this batch; its revert is not confirmed yet"),
            Self::RevertOfProved => {
                f.write_str("L1 says that the contract reverted a batch that it had proved, which it cannot")
            }
            Self::Commit { transaction, fault } => write!(f, "transaction {transaction:?}{fault}"),
            Self::Discontinued(fault) => fault.fmt(f),
            Self::Content(fault) => fault.fmt(f),
            Self::PrevStateRoot { expected, actual } => {
                write!(f, "prevStateRoot: {expected:?}, the block below has {actual:?}")
            }
            Self::StateRoot { number, expected, actual } => {
                write!(f, "postStateRoot: L1 says {expected:?}, block {number} has {actual:?}")
            }
            Self::WithdrawalRoot { number, expected, actual } => {
                write!(f, "withdrawalRoot: L1 says {expected:?}, block {number} has {actual:?}")
            }
            Self::SearchingRoot { below, at } => {
                write!(f, "looking for the last message below block {below}, at block {at}")
            }
            Self::RootUnknown(number) => write!(
                f,
                "the node no longer has the state at block {number}, and the logs that it has do not tell L1's \
                 withdrawal root"
            ),
            Self::BelowFinalized(what) => what.fmt(f),
            Self::DiffersBeforeSwitch(difference) => {
                difference.iter().try_for_each(|at| at.fmt(f))?;
                f.write_str(" differs from L1, before the single-sequencer switch: never rewritten")
            }
            Self::CannotRewrite { skip } => write!(
                f,
                "the execution node cannot write below its head (it ignores parentHash): upgrade and restart it, or \
                 cut its chain by hand at block {skip}"
            ),
            Self::StateMissing(why) => why.fmt(f),
            Self::TwoNodes { reader, engine } => write!(
                f,
                "l2.eth stands on block {reader}, l2.engine on block {engine}: they are two nodes, and nothing is \
                 written to the one by what the other shows"
            ),
            Self::FinalizedElsewhere(error) => write!(
                f,
                "the execution node's finalized tag stands on a block that is not on the chain that L1 committed to: it \
                 answers every write with an error until the tag is moved ({error})"
            ),
            Self::OtherBlockMade { number, what } => {
                write!(f, "the execution node made another block {number} than it was given: {what}")
            }
            Self::RefusedAgain { tries, error } => {
                write!(f, "refused {tries} times in a row, and tried again every few minutes: {error}")
            }
            Self::PauseBudget { at } => {
                write!(f, "the pause's budget was used up at block {at}; the next poll goes on from there")
            }
            Self::NotResumed => f.write_str("the reactors are not resumed yet"),
            Self::NotWritten => f.write_str("the batch was not written"),
            Self::WouldWrite { blocks, first, .. } => {
                write!(f, "{blocks} blocks from {first} on would have been written")
            }
        }
    }
}

impl fmt::Display for SearchAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Logs { batch, at } => write!(f, "looking through L1 for logs of batch {batch}, at block {at}"),
            Self::Messages { first, at } => write!(f, "looking through L1 for message {first}, at block {at}"),
            Self::Blobs { batch, at } => {
                write!(f, "looking for the blobs of batch {batch} among its earlier commits, at L1 block {at}")
            }
        }
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Commit(batch) => write!(f, "gap({batch}): no L1 endpoint has a commit of batch {batch}"),
            Self::CommitBelow(batch) => write!(f, "the commit of batch {batch} was not found on L1"),
            Self::Revert(batch) => {
                write!(f, "batch {batch} was committed anew or is gone, and no L1 endpoint has its revert")
            }
            Self::RevertBeforeRecommit => {
                f.write_str("the batch was committed anew further on, and no L1 endpoint has its revert")
            }
            Self::RevertOfGone => {
                f.write_str("the contract no longer holds this batch, but no log of its revert was given")
            }
            Self::CommitLeftOut(batch) => {
                write!(f, "an L1 endpoint left out the commit of batch {batch}; the range is read again")
            }
            Self::RevertLeftOut(batch) => {
                write!(f, "an L1 endpoint left out the revert of batch {batch}; the range is read again")
            }
            Self::KnownRevertLeftOut { batch, block } => {
                write!(f, "an L1 endpoint left out the revert of batch {batch} in L1 block {block}")
            }
            Self::RevertDenied => {
                f.write_str("an endpoint gave a revert of a batch that the contract holds in the very block")
            }
        }
    }
}

impl fmt::Display for Final {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verified => {
                f.write_str("the local chain differs from the verified one at or below the finalized head")
            }
            Self::BatchEnd(last) => write!(f, "block {last} contradicts the finalized head"),
            Self::OtherBlock { there, finalized } => {
                write!(f, "the verified chain has {there} in place of the finalized {finalized}")
            }
            Self::Anchor(number) => {
                write!(f, "block {number} lies at or below the finalized head and is not what L1 committed to")
            }
            Self::Genesis => f.write_str("the local chain differs from L1 at the genesis block"),
            Self::Block(first) => {
                write!(f, "block {first} differs from L1 and lies at or below the finalized head")
            }
        }
    }
}

impl fmt::Display for StateMissing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoneKept { skip, older } => write!(
                f,
                "the node no longer has the state of block {skip}, which must be built on, nor of one of the {older} \
                 blocks below it that are not finalized: run it in archive mode, let it execute its blocks again from \
                 further down, or sync it anew"
            ),
            Self::TooLarge { from, skip } => {
                write!(f, "blocks {from} to {skip} would be written again, and hold more than can be kept")
            }
            Self::BeforeSwitch { skip, number } => write!(
                f,
                "the node no longer has the state of block {skip}, and block {number} lies before the \
                 single-sequencer switch: it is never written. Run the node in archive mode, or sync it anew"
            ),
        }
    }
}

/// A cause, and the batch that it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stall {
    /// Why.
    pub cause: Cause,
    /// The batch at which the worker is stalled, if it is about one.
    pub batch: Option<BatchIndex>,
}

impl Stall {
    /// A stall that is not about one batch.
    pub const fn new(cause: Cause) -> Self {
        Self { cause, batch: None }
    }

    /// A stall at batch `index`.
    pub const fn at(index: BatchIndex, cause: Cause) -> Self {
        Self { cause, batch: Some(index) }
    }

    /// The code.
    pub fn reason(&self) -> Reason {
        self.cause.reason()
    }

    /// The text for people, without code and batch.
    pub fn detail(&self) -> String {
        self.cause.to_string()
    }
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.batch {
            Some(index) => write!(f, "{} (batch {index}): {}", self.reason(), self.cause),
            None => write!(f, "{}: {}", self.reason(), self.cause),
        }
    }
}

/// For programs: `reason`, `batch` and `detail`.
impl Serialize for Stall {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut stall = serializer.serialize_struct("Stall", 3)?;
        stall.serialize_field("reason", &self.reason())?;
        stall.serialize_field("batch", &self.batch)?;
        stall.serialize_field("detail", &self.detail())?;
        stall.end()
    }
}
