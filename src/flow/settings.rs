//! What the flow is given: the ports and the settings.

use std::sync::Arc;
use std::time::Duration;

use crate::decide::follow::SourceNetwork;
use crate::decide::liveness::HeadTrend;
use crate::ports::{BlobSource, HeadSource, L1Chain, L2Engine, L2Reader, Progress, Reactors};
use crate::types::{Address, B256, BatchIndex, Confirmations, FinalityMeaning, L1Number, Mode};

/// The world, as the flow sees it. Cheap to clone.
#[derive(Clone)]
pub struct Ports {
    /// L1 execution chain.
    pub l1: Arc<dyn L1Chain>,
    /// Blobs.
    pub blobs: Arc<dyn BlobSource>,
    /// The L2 node's reading side.
    pub l2: Arc<dyn L2Reader>,
    /// The L2 node's engine; none in observe mode, which writes and tags nothing.
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
    /// The newest L1 block may be this old by the wall clock; zero turns the check off.
    pub l1_max_age: Duration,
    /// What counts as settled.
    pub confirmations: Confirmations,
    /// What *finalized* means.
    pub finality: FinalityMeaning,
    /// The single-sequencer switch in milliseconds since the Unix epoch; blocks before it are never derived.
    pub switch_ms: u64,
    /// Least time without growth that means *stopped*.
    pub observation_window: Duration,
    /// The operator's verdict in place of the observed one (`recover`, `replay --fault`).
    pub assume: Option<HeadTrend>,
    /// Time that one pause of the reactors may last, besides `pause_per_block`.
    pub pause_budget: Duration,
    /// Further time per block that is written inside a pause.
    pub pause_per_block: Duration,
    /// How long the head must not have moved after an interrupted write before the reactors are resumed.
    pub head_still: Duration,
    /// Blocks per write request.
    pub write_chunk: usize,
    /// Local blocks are read up to this many bytes before L1's content is known, and no further than that content's own
    /// size after that. It is more than any batch holds: it only bounds how much a node that invents blocks can make us
    /// keep in memory (P7).
    pub local_bytes: usize,
    /// Batches that are gathered ahead of the one that has its turn; 0 gathers each in its turn.
    pub read_ahead: usize,
    /// Rows of this many batches below the finalized one are kept.
    pub keep_batches: u64,
    /// How often a worker that is behind advances finality and the node's tags between two polls, which then follow each
    /// other many times a second.
    pub settle_every: Duration,
    /// Time that one poll may spend on looking through L1's history.
    pub search_time: Duration,
    /// Stop after this batch.
    pub to_batch: Option<BatchIndex>,
    /// Time between two polls when there is nothing left to read.
    pub poll_interval: Duration,
}

/// Ten times what a batch of six full blobs holds, L1 messages included; encoding them takes as much again. If the
/// local blocks are larger, the comparison waits for the blob, and the verdict is the same.
const LOCAL_BYTES: usize = 48 << 20;

/// Twice the blobs of a group that is worth it (`blob_check`): while one group is checked and its batches are decided, the
/// next one is read. A batch that waits here holds a blob or a few, and there is a bound on all of them together.
const READ_AHEAD: usize = 64;

/// For questions about the newest batches.
const KEEP_BATCHES: u64 = 64;

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
            read_ahead: READ_AHEAD,
            keep_batches: KEEP_BATCHES,
            settle_every: Duration::from_secs(1),
            search_time: Duration::from_secs(20),
            to_batch: None,
            poll_interval: Duration::from_secs(15),
        }
    }
}

/// The world of a follower. Cheap to clone.
#[derive(Clone)]
pub struct FollowPorts {
    /// L1 execution chain.
    pub l1: Arc<dyn L1Chain>,
    /// The L2 node's reading side.
    pub l2: Arc<dyn L2Reader>,
    /// The L2 node's engine; none in observe mode, which sets no tag.
    pub engine: Option<Arc<dyn L2Engine>>,
    /// The database.
    pub progress: Arc<dyn Progress>,
    /// The sources, the most trusted first.
    pub sources: Vec<Arc<dyn HeadSource>>,
}

/// What steers a follower and is not a port.
#[derive(Clone, Debug)]
pub struct FollowSettings {
    /// Our own networks.
    pub network: SourceNetwork,
    /// The random mark of this process.
    pub instance: B256,
    /// Time between two polls.
    pub poll_interval: Duration,
    /// How old the L1 block may be up to which a source has read; zero turns the check off.
    pub max_age: Duration,
    /// How many sources must show the same safe head.
    pub agreement: usize,
    /// The node's head is set too: a standard execution node, whose head nobody else moves.
    pub sets_head: bool,
    /// After so many polls in a row without a reply that is taken over there is an alarm.
    pub alarm_after: u32,
}
