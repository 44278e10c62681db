//! What the faces show of the flow.

use serde::Serialize;

use crate::decide::client::Client;
use crate::decide::finality::Held;
use crate::decide::liveness::HeadTrend;
use crate::decide::stall::Stall;
use crate::flow::error::{Decided, FlowError, Stop};
use crate::flow::follow::FollowStatus;
use crate::types::{BatchIndex, Case, FinalityMeaning, L1Number, L2Ref, SyncStatus};

/// What was done about one batch, for reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BatchReport {
    /// Index in the Rollup contract.
    pub index: BatchIndex,
    /// Its case.
    pub case: Case,
    /// How many blocks it has; zero if that is not known.
    pub blocks: u64,
    /// How many of them were written to the node.
    pub rewritten: u64,
    /// The blobs' bytes differed from ours under equal content.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub encoder_drift: bool,
}

/// How a poll ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PollEnd {
    /// There is more confirmed L1 to read: the next poll starts at once.
    Behind,
    /// Everything confirmed was read.
    CaughtUp,
    /// The last batch that was asked for was reached.
    Reached,
    /// The flow is stalled, for this reason.
    Stalled(Stall),
}

impl PollEnd {
    /// The end of a poll that may have ended early: a verdict is an end like any other.
    ///
    /// # Errors
    /// What could not be decided.
    pub(crate) fn of(decided: Decided<Self>) -> Result<Self, FlowError> {
        match decided {
            Ok(end) => Ok(end),
            Err(Stop::Stands(stall)) => Ok(Self::Stalled(stall)),
            Err(Stop::Failed(error)) => Err(error),
        }
    }
}

/// What one poll did.
#[derive(Clone, Debug)]
pub struct PollReport {
    /// The batches that were decided, in order, including one that the flow waits for.
    pub batches: Vec<BatchReport>,
    /// How it ended.
    pub end: PollEnd,
}

/// What the faces show. The flow writes it, every face reads it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Status {
    /// How far L1 was read.
    pub l1_cursor: Option<L1Number>,
    /// The newest settled L1 block.
    pub l1_confirmed: Option<L1Number>,
    /// The newest finalized L1 block.
    pub l1_finalized: Option<L1Number>,
    /// The local head at the last poll.
    pub l2_head: Option<L2Ref>,
    /// Our safe head.
    pub safe: Option<L2Ref>,
    /// Our finalized head.
    pub finalized: Option<L2Ref>,
    /// The node's safe tag.
    pub node_safe: Option<L2Ref>,
    /// The node's finalized tag.
    pub node_finalized: Option<L2Ref>,
    /// The last verified batch.
    pub last_batch: Option<BatchIndex>,
    /// Why the flow is stalled; none while it advances.
    pub stall: Option<Stall>,
    /// The last poll's verdict on the L2 head.
    #[serde(serialize_with = "verdict_name")]
    pub verdict: Option<HeadTrend>,
    /// Batches verified since the start.
    pub verified: u64,
    /// Batches whose bytes differed under equal content.
    pub encoder_drift: u64,
    /// L1 reorgs dealt with.
    pub reorgs: u64,
    /// RevertBatch logs dealt with.
    pub reverted: u64,
    /// Blocks written to the node.
    pub blocks_written: u64,
    /// Pauses of the reactors.
    pub pauses: u64,
    /// A resume failed and is being tried again.
    pub reactors_degraded: bool,
    /// An earlier run left the reactors paused, and this run has none to resume.
    pub pause_left_over: bool,
    /// The node's tags were not what we set when read back.
    pub tags_contended: bool,
    /// The node's safe tag lies above what we verified.
    pub safe_beyond_verified: bool,
    /// Our tags wait: the node's finalized lies above what we verified.
    pub held_by_node_finalized: bool,
    /// The execution client, as it names itself, and what is known of it; none if it does not report its version.
    pub execution_client: Option<Client>,
    /// The node marks blocks finalized by itself when they are written.
    pub el_marks_finalized: bool,
    /// What *finalized* means here.
    pub finality: FinalityMeaning,
    /// Up to which L1 block every revert and proof is known. Finalized is held until that is L1's finalized block.
    pub settled_to: Option<L1Number>,
    /// Why finalized is held, if it is.
    pub finality_held: Option<Held>,
    /// L1 reverted a batch that is finalized here and has not committed to those blocks again yet.
    pub uncommitted_finalized: bool,
    /// L1's finalized block and the recorded commits contradict each other: finalized is held.
    pub l1_finality_contradicted: bool,
    /// When the newest batch was committed, by its L1 block's time in seconds since the Unix epoch. Its age is how long
    /// nothing was committed, which is no fault by itself.
    pub last_commit_at: Option<u64>,
    /// Polls since the start.
    pub polls: u64,
    /// What is followed, and how; none while batches are derived from L1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub follow: Option<FollowStatus>,
    /// The heads as `optimism_syncStatus` shows them.
    #[serde(skip)]
    pub sync: SyncStatus,
}

fn verdict_name<S: serde::Serializer>(verdict: &Option<HeadTrend>, serializer: S) -> Result<S::Ok, S::Error> {
    match verdict {
        None => serializer.serialize_none(),
        Some(HeadTrend::Alive) => serializer.serialize_str("alive"),
        Some(HeadTrend::Stopped) => serializer.serialize_str("stopped"),
        Some(HeadTrend::Unknown(_)) => serializer.serialize_str("unknown"),
    }
}
