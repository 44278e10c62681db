//! Ask, decide, act.
//!
//! | file | what it drives |
//! | --- | --- |
//! | [`worker`] | the loop: polls, severities, shutdown, status |
//! | [`pull`] | one poll: snapshot, L1 view, logs, batches, finality, tags |
//! | [`ledger`] | heads, cursor and notes of writes, in memory as in the database |
//! | [`l1_view`] | where L1 stands, and what a reorg takes away |
//! | [`ground`] | what of the verified chain the node still holds |
//! | [`commit`] | from an event to a bound outline |
//! | [`batch`] | one batch through the case table |
//! | [`roots`] | the roots at a batch's end |
//! | [`settlement`] | what L1 took back or proved, ahead of the batches |
//! | [`search`] | logs that lie far from what is being read |
//! | [`derive`] | `derive_force`: the only place that writes blocks |
//! | [`open_writes`] | writes that were begun and whose batch is not stored yet |
//! | [`one_node`] | the proof that the node that is read is the node that is written |
//! | [`patience`] | how long a plan that could not be written waits |
//! | [`states`] | a parent whose state the node still has |
//! | [`quiesce`] | the guard that pauses the reactors |
//! | [`finalize`] | finality |
//! | [`stall_log`] | what the log says of stalls |
//! | [`tags`] | the node's tags: what it was told, what it showed, whose mark a tag is |
//!
//! No SQL, no JSON, no HTTP: everything outside is reached through `ports`.

use std::sync::Arc;
use std::time::Duration;

use crate::decide::liveness::Verdict;
use crate::decide::stall::{Reason, Stall};
use crate::error::{PortError, PortErrorKind, Severity, Target};
use crate::ports::{BlobSource, L1Chain, L2Engine, L2Reader, Progress, Reactors};
use crate::types::{Address, BatchIndex, Case, L1Number};
pub use crate::types::{Confirmations, FinalityMeaning, Mode};

pub mod batch;
pub mod commit;
pub mod derive;
pub mod finalize;
pub mod ground;
pub mod l1_view;
pub(crate) mod ledger;
pub mod one_node;
pub mod open_writes;
pub(crate) mod patience;
pub mod pull;
pub mod quiesce;
pub mod roots;
pub mod search;
pub mod settlement;
pub mod stall_log;
pub(crate) mod states;
pub mod tags;
pub mod worker;

/// The world, as the flow sees it. Cheap to clone.
#[derive(Clone)]
pub struct Ports {
    /// L1 execution chain.
    pub l1: Arc<dyn L1Chain>,
    /// Blobs.
    pub blobs: Arc<dyn BlobSource>,
    /// The L2 node's reading side.
    pub l2: Arc<dyn L2Reader>,
    /// The L2 node's engine; none in observe mode, where nothing is written or tagged.
    pub engine: Option<Arc<dyn L2Engine>>,
    /// The consensus node's reactors.
    pub reactors: Arc<dyn Reactors>,
    /// The database.
    pub progress: Arc<dyn Progress>,
}

/// Everything that steers the flow and is not a port.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How batches are checked.
    pub mode: Mode,
    /// The Rollup contract on L1.
    pub rollup: Address,
    /// The first L1 block to read when the database is new.
    pub start: L1Number,
    /// The first L1 block that can hold a commit or an L1 message: how far back anything is searched.
    pub origin: L1Number,
    /// At most this many L1 blocks per request for logs.
    pub fetch_range: u64,
    /// L1 blocks kept to find a reorg's common ancestor.
    pub reorg_window: u64,
    /// The newest L1 block may be this old by the wall clock; zero asks for nothing.
    pub l1_max_age: Duration,
    /// What counts as settled.
    pub confirmations: Confirmations,
    /// What *finalized* means.
    pub finality: FinalityMeaning,
    /// The single-sequencer switch in milliseconds since the Unix epoch; blocks before it are never derived.
    pub switch_ms: u64,
    /// Least time without growth that means *stopped*.
    pub observation_window: Duration,
    /// An operator's word in place of the verdict (`recover`, `replay --fault`).
    pub assume: Option<Verdict>,
    /// Time that one pause of the reactors may last, besides `pause_per_block`.
    pub pause_budget: Duration,
    /// Further time per block that is written inside a pause.
    pub pause_per_block: Duration,
    /// How long the head must not have moved after an interrupted write before the reactors are resumed.
    pub head_still: Duration,
    /// Blocks per write request.
    pub write_chunk: usize,
    /// Local blocks are read up to this many bytes before L1's content is known, and no further than that content's own
    /// size after. More than any batch holds, so that it decides nothing but what a node that makes things up can
    /// have us keep in memory (P7).
    pub local_bytes: usize,
    /// Time that one pull may spend on looking through L1's history.
    pub search_time: Duration,
    /// Stop after this batch.
    pub to_batch: Option<BatchIndex>,
    /// Time between two polls when there is nothing left to read.
    pub poll_interval: Duration,
}

/// Ten times what a batch of six full blobs holds, L1 messages included; encoding them takes as much again. Where they
/// are more, the comparison waits for the blob, which decides alike.
const LOCAL_BYTES: usize = 48 << 20;

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::Local,
            rollup: Address::zero(),
            start: L1Number::new(0),
            origin: L1Number::new(0),
            fetch_range: 500,
            reorg_window: 64,
            l1_max_age: Duration::ZERO,
            confirmations: Confirmations::Depth(10),
            finality: FinalityMeaning::Committed,
            switch_ms: 0,
            observation_window: Duration::from_secs(60),
            assume: None,
            pause_budget: Duration::from_secs(60),
            pause_per_block: Duration::from_millis(50),
            head_still: Duration::from_secs(6),
            write_chunk: 100,
            local_bytes: LOCAL_BYTES,
            search_time: Duration::from_secs(20),
            to_batch: None,
            poll_interval: Duration::from_secs(15),
        }
    }
}

/// The flow could not decide.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FlowError {
    /// A port could not answer.
    #[error(transparent)]
    Port(#[from] PortError),
    /// Something changed under way, or the world contradicts itself: told by its reason.
    #[error("{0}")]
    Stall(Stall),
}

impl FlowError {
    /// L1 changed between two reads that belong together.
    pub fn l1_changed(detail: impl Into<String>) -> Self {
        Self::Stall(Stall::new(Reason::L1Reorg, detail))
    }

    /// The local chain changed between two reads that belong together.
    pub fn local_changed(detail: impl Into<String>) -> Self {
        Self::Stall(Stall::new(Reason::LocalChainChanged, detail))
    }

    /// What the worker is asked to do about it.
    pub fn severity(&self) -> Severity {
        match self {
            Self::Port(error) => error.severity(),
            Self::Stall(stall) if stall.reason == Reason::L1Reorg => Severity::Reset,
            Self::Stall(stall) if stall.reason.is_halt() => Severity::Halt,
            Self::Stall(_) => Severity::Temporary,
        }
    }

    /// The same as a stall with its reason code (P9).
    pub fn stall(&self) -> Stall {
        match self {
            Self::Stall(stall) => stall.clone(),
            Self::Port(error) => Stall::new(reason_of(error), error.to_string()),
        }
    }
}

/// The reason code of a port's failure.
pub fn reason_of(error: &PortError) -> Reason {
    match (&error.kind, error.target) {
        (PortErrorKind::WrongNetwork | PortErrorKind::StoreRefused, _) => Reason::WrongNetwork,
        (PortErrorKind::Pruned, Target::Beacon) => Reason::BlobPruned,
        (PortErrorKind::NotFound, Target::Beacon) => Reason::BlobMissing,
        (_, Target::L1) => Reason::L1Unavailable,
        (_, Target::Fixture) => Reason::FixtureIncomplete,
        (_, Target::Beacon) => Reason::BeaconUnavailable,
        (_, Target::L2) => Reason::L2Unavailable,
        (_, Target::Engine) => Reason::EngineUnavailable,
        (_, Target::Reactors) => Reason::ReactorsDegraded,
        (_, Target::Store) => Reason::StoreUnavailable,
    }
}

/// What was done about one batch, for reports.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct BatchReport {
    /// Index in the Rollup contract.
    pub index: BatchIndex,
    /// Its case.
    pub case: Case,
    /// How many blocks it has; zero where that is not known.
    pub blocks: u64,
    /// How many of them were written to the node.
    pub rewritten: u64,
    /// The blobs' bytes differed from ours under equal content.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub encoder_drift: bool,
}

/// Seconds since the Unix epoch; zero on a clock set before it.
pub(crate) fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
