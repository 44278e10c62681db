//! Where the kill-point tests may end the program: every call through a port is such a point, before and after it, and
//! a call to the engine or the reactors also while it is under way (P6).
//!
//! The points need no name in the flow: a step that is written tomorrow is tried tomorrow. Not in release builds.
//! Decided here: what a point is and how it is counted. Not decided here: what must hold after the end (the tests).

use std::fmt;
use std::pin::pin;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use crate::decide::client::Client;
use crate::error::PortError;
use crate::ports::{
    BlobSource, EngineView, FoundLogs, HeadTold, L1Chain, L2Engine, L2Reader, LeaseStore, MessageRoot, PortResult,
    Progress, RangeLogs, Reactors, Rows, Step, Stored, Suspect, WriteStopped,
};
use crate::types::{
    B256, BatchIndex, BatchRecord, Blob, Identity, JournalEntry, L1Event, L1Header, L1Message, L1Number, L1Ref, L1Tag,
    L1Transaction, L2Block, L2Header, L2Number, L2Ref, L2Snapshot, Lease, LogPos, NewBlock, QueueIndex, SpuriousTag,
    TracedCall, WriteIntent,
};

/// Says where the program is to be killed: `list` names every point on standard error, `NAME N` kills at the N-th
/// passing of the point NAME.
pub const VARIABLE: &str = "MORPH_DERIVER_TEST_KILL_AT";

/// A call that has lasted this long has reached the other side: a point under way.
const UNDER_WAY: Duration = Duration::from_millis(50);

/// Where in a call a point lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum When {
    /// The call was not made yet.
    Before,
    /// The call was made and is not answered yet.
    UnderWay,
    /// The call was answered.
    After,
}

/// One point that the program passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    /// The port's name.
    pub port: &'static str,
    /// The method's name.
    pub method: &'static str,
    /// Where in the call.
    pub when: When,
    /// Whether the call changes the database, the node or the reactors.
    pub changes: bool,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let when = match self.when {
            When::Before => "before",
            When::UnderWay => "during",
            When::After => "after",
        };
        write!(f, "{when} {}::{}", self.port, self.method)
    }
}

/// What is asked at every point with its number, from 1 on: whether this is the end.
type Aim = dyn Fn(u64, Point) -> bool + Send + Sync;

/// Counts the points of one life of the program.
#[derive(Clone)]
pub struct KillPoints {
    passed: Arc<AtomicU64>,
    aim: Arc<Aim>,
}

impl KillPoints {
    /// `aim` is asked at every point. If it says true, the call never returns: to end the program there is its
    /// matter.
    pub fn new(aim: impl Fn(u64, Point) -> bool + Send + Sync + 'static) -> Self {
        Self { passed: Arc::default(), aim: Arc::new(aim) }
    }

    /// What [`VARIABLE`] asks for; none without it.
    pub fn from_env() -> Option<Self> {
        let aim = std::env::var(VARIABLE).ok()?;
        if aim == "list" {
            return Some(Self::new(|nth, point| {
                let mark = if point.changes { "*" } else { "-" };
                eprintln!("kill-point {nth} {mark} {point}");
                false
            }));
        }
        let (name, times) = aim.rsplit_once(' ')?;
        let (name, left) = (name.to_owned(), AtomicU64::new(times.parse().ok()?));
        Some(Self::new(move |_, point| {
            if point.to_string() == name && left.fetch_sub(1, Ordering::SeqCst) == 1 {
                kill_this_process();
            }
            false
        }))
    }

    /// What the aim says of a point.
    pub fn asks(&self, nth: u64, point: Point) -> bool {
        (self.aim)(nth, point)
    }

    async fn reached(&self, point: Point) {
        let nth = self.passed.fetch_add(1, Ordering::SeqCst).saturating_add(1);
        if self.asks(nth, point) {
            std::future::pending::<()>().await;
        }
    }

    async fn around<T>(&self, name: (&'static str, &'static str), changes: bool, call: impl Future<Output = T>) -> T {
        let (port, method) = name;
        let point = |when| Point { port, method, when, changes };
        self.reached(point(When::Before)).await;
        let mut call = pin!(call);
        let answer = match tokio::time::timeout(UNDER_WAY, &mut call).await {
            Ok(answer) => answer,
            Err(_) => {
                if changes {
                    self.reached(point(When::UnderWay)).await;
                }
                call.await
            }
        };
        self.reached(point(When::After)).await;
        answer
    }

    /// `inner` with a point before and after every call.
    pub fn l1(&self, inner: Arc<dyn L1Chain>) -> Arc<dyn L1Chain> {
        Arc::new(Watched { inner, points: self.clone() })
    }

    /// As [`KillPoints::l1`].
    pub fn blobs(&self, inner: Arc<dyn BlobSource>) -> Arc<dyn BlobSource> {
        Arc::new(Watched { inner, points: self.clone() })
    }

    /// As [`KillPoints::l1`].
    pub fn l2(&self, inner: Arc<dyn L2Reader>) -> Arc<dyn L2Reader> {
        Arc::new(Watched { inner, points: self.clone() })
    }

    /// As [`KillPoints::l1`].
    pub fn engine(&self, inner: Arc<dyn L2Engine>) -> Arc<dyn L2Engine> {
        Arc::new(Watched { inner, points: self.clone() })
    }

    /// As [`KillPoints::l1`].
    pub fn reactors(&self, inner: Arc<dyn Reactors>) -> Arc<dyn Reactors> {
        Arc::new(Watched { inner, points: self.clone() })
    }

    /// As [`KillPoints::l1`].
    pub fn progress(&self, inner: Arc<dyn Progress>) -> Arc<dyn Progress> {
        Arc::new(Watched { inner, points: self.clone() })
    }
}

/// SIGKILL, as `kill -9` sends it.
fn kill_this_process() {
    let pid = std::process::id().to_string();
    let killed = Command::new("kill").args(["-9", &pid]).status();
    // Not reached if `kill` works. If it does not, this ends the process without destructors too.
    eprintln!("kill -9 did not end the process: {killed:?}");
    std::process::abort();
}

/// A port whose calls are points.
struct Watched<P: ?Sized> {
    inner: Arc<P>,
    points: KillPoints,
}

/// Whether a call leaves a trace outside this process.
macro_rules! leaves_a_trace {
    (reads) => {
        false
    };
    (changes) => {
        true
    };
}

/// Implements a port for [`Watched`]: the calls that are points, each with what it does outside this process, then what is
/// only passed on. A method that is not listed does not compile, nor does one that does not say whether it changes anything.
macro_rules! watched {
    ($port:ident { $($methods:tt)* } $($plain:tt)*) => {
        watched!($port of $port { $($methods)* } $($plain)*);
    };
    ($port:ident of $whole:ident { $($does:ident async fn $method:ident(&self $(, $arg:ident: $of:ty)*) -> $answer:ty;)* } $($plain:tt)*) => {
        // One that has a default body compiles without being listed.
        #[deny(clippy::missing_trait_methods)]
        #[async_trait]
        impl $port for Watched<dyn $whole> {
            $(async fn $method(&self $(, $arg: $of)*) -> $answer {
                let name = (stringify!($whole), stringify!($method));
                self.points.around(name, leaves_a_trace!($does), self.inner.$method($($arg),*)).await
            })*
            $($plain)*
        }
    };
}

watched!(L1Chain {
    reads async fn tagged(&self, tag: L1Tag) -> PortResult<Option<L1Header>>;
    reads async fn latest_and(&self, tag: L1Tag) -> PortResult<(Option<L1Header>, Option<L1Header>)>;
    reads async fn headers(&self, numbers: &[L1Number]) -> PortResult<Vec<Option<L1Header>>>;
    reads async fn events(&self, from: L1Number, to: L1Number) -> PortResult<RangeLogs>;
    reads async fn settlements(&self, from: L1Number, to: L1Number) -> PortResult<RangeLogs>;
    reads async fn commits_of(&self, index: BatchIndex, from: L1Number, to: L1Number) -> PortResult<FoundLogs>;
    reads async fn reverts_of(&self, index: BatchIndex, from: L1Number, to: L1Number) -> PortResult<FoundLogs>;
    reads async fn queued(&self, from: L1Number, to: L1Number) -> PortResult<FoundLogs>;
    reads async fn every_commit_of(&self, index: BatchIndex, from: L1Number, to: L1Number) -> PortResult<Vec<L1Event>>;
    reads async fn transaction(&self, block: L1Ref, index: u64) -> PortResult<Option<L1Transaction>>;
    reads async fn rollup_calls(&self, tx: B256) -> PortResult<Option<Vec<TracedCall>>>;
    reads async fn committed_hashes(&self, indices: &[BatchIndex], at: Option<L1Number>) -> PortResult<Vec<B256>>;
    reads async fn last_committed_index(&self, at: Option<L1Number>) -> PortResult<BatchIndex>;
    reads async fn last_finalized_index(&self, at: Option<L1Number>) -> PortResult<BatchIndex>;
    reads async fn blob_field(&self, index: BatchIndex) -> PortResult<B256>;
    reads async fn batch_last_block(&self, index: BatchIndex) -> PortResult<L2Number>;
    reads async fn queue_hashes(&self, indices: &[QueueIndex]) -> PortResult<Vec<B256>>;
}
    fn distrust(&self, suspect: Suspect, why: &str) -> bool {
        self.inner.distrust(suspect, why)
    }
);

watched!(BlobSource {
    reads async fn blobs(&self, header: &L1Header, versioned_hashes: &[B256]) -> PortResult<Vec<Blob>>;
    reads async fn commitments(&self, header: &L1Header, versioned_hashes: &[B256]) -> PortResult<Option<Vec<[u8; 48]>>>;
});

watched!(L2Reader {
    reads async fn snapshot(&self) -> PortResult<L2Snapshot>;
    reads async fn snapshot_and(&self, number: L2Number) -> PortResult<(L2Snapshot, Option<L2Header>)>;
    reads async fn has_states(&self, numbers: &[L2Number]) -> PortResult<Option<Vec<bool>>>;
    reads async fn header(&self, number: L2Number) -> PortResult<Option<L2Header>>;
    reads async fn blocks(&self, first: L2Number, last: L2Number) -> PortResult<Vec<L2Block>>;
    reads async fn message_root(&self, block: L2Ref) -> PortResult<MessageRoot>;
    reads async fn last_appended_root(&self, first: L2Number, last: L2Number, tip: L2Ref) -> PortResult<Option<B256>>;
}
    fn client(&self) -> Option<Client> {
        self.inner.client()
    }
);

watched!(L2Engine {
    changes async fn write_blocks(&self, blocks: &[NewBlock]) -> Result<Vec<L2Header>, WriteStopped>;
    changes async fn set_tags(&self, safe: Option<B256>, finalized: Option<B256>) -> PortResult<()>;
    changes async fn set_head(&self, head: B256, safe: Option<B256>) -> PortResult<HeadTold>;
    reads async fn view(&self, number: L2Number) -> PortResult<EngineView>;
});

watched!(Reactors {
    changes async fn pause(&self, height: L2Number) -> PortResult<()>;
    changes async fn resume(&self, height: L2Number) -> PortResult<()>;
}
    fn lateness(&self) -> Duration {
        self.inner.lateness()
    }

    fn is_refusal(&self, error: &PortError) -> bool {
        self.inner.is_refusal(error)
    }

    fn can_resume(&self) -> bool {
        self.inner.can_resume()
    }
);

watched!(Rows of Progress {
    reads async fn l1_blocks(&self) -> PortResult<Vec<L1Ref>>;
    reads async fn newest_l1_block(&self) -> PortResult<Option<L1Ref>>;
    reads async fn batch(&self, index: BatchIndex) -> PortResult<Option<BatchRecord>>;
    reads async fn newest_at_or_below(&self, number: L1Number) -> PortResult<Option<BatchRecord>>;
    reads async fn batch_ending_on(&self, block: L2Ref) -> PortResult<Option<BatchRecord>>;
    reads async fn reverted_above(&self, number: L1Number) -> PortResult<Option<BatchRecord>>;
    reads async fn settled_to(&self) -> PortResult<Option<L1Ref>>;
    reads async fn revert_after(&self, index: BatchIndex, place: LogPos) -> PortResult<Option<L1Event>>;
    reads async fn reverts_within(&self, place: LogPos, to: L1Number, limit: u32) -> PortResult<Vec<L1Event>>;
    reads async fn newest_proof(&self, number: L1Number) -> PortResult<Option<L1Event>>;
    reads async fn messages(&self, first: QueueIndex, count: u64) -> PortResult<Vec<L1Message>>;
    reads async fn journal_tail(&self, limit: u32) -> PortResult<Vec<JournalEntry>>;
});

watched!(LeaseStore of Progress {
    reads async fn lease(&self) -> PortResult<Option<Lease>>;
    changes async fn set_lease(&self, lease: Option<Lease>) -> PortResult<()>;
});

watched!(Progress {
    reads async fn load(&self) -> PortResult<Stored>;
    changes async fn claim(&self, identity: &Identity) -> PortResult<()>;
    changes async fn apply(&self, step: &Step) -> PortResult<()>;
    changes async fn note_intents(&self, writes: &[WriteIntent]) -> PortResult<()>;
    changes async fn withdraw_writes(&self, from: L2Number, standing: L2Number) -> PortResult<()>;
    changes async fn looked(&self, seen_to: Option<L2Number>, spurious: Option<SpuriousTag>) -> PortResult<()>;
    changes async fn journal(&self, entries: &[JournalEntry]) -> PortResult<()>;
    changes async fn prune(&self, l1: L1Number, queue: QueueIndex, batch: BatchIndex) -> PortResult<()>;
});
