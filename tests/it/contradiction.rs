//! What holds when the world is contradicted: L1 and L2 grow, shrink, refuse and are swapped at *every* request of a poll
//! in turn, and not at one chosen request. The recorded network is served over HTTP; whatever happens in the middle of a
//! poll, each tag that we set names a block of the committed chain, the heads stay in order for whoever reads the node,
//! finalized never moves back, and the end is that of a run that nothing disturbed (P1, P2, P4, B1, J5, E20).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use morph_deriver::decide::liveness::Verdict;
use morph_deriver::flow::pull::PullEnd;

use crate::support::recorded::{RecordedNetwork, Recording};
use crate::support::recorded_l2::{Alter, RecordedL2};
use crate::support::rig::Rig;
use crate::support::server::{FakeServer, Fault};

/// L1's head at the start of every run: two batches are committed up to it.
const L1_START: u64 = 16;
/// L1's head at the end of every run: three batches.
const L1_LAST: u64 = 17;
/// Where safe stands at the end: batch 3's last block.
const SAFE_LAST: u64 = 23;
/// The local head at the start where nothing is missing.
const L2_LAST: u64 = 26;
/// The highest block of any run.
const L2_HIGHEST: u64 = 30;

/// What contradicts the poll. A refusal is one that passes: what a node says of a block for good is another test (E17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contradiction {
    /// The next L1 block comes, with a batch.
    L1Grows,
    /// The newest L1 blocks get other hashes and the same content.
    L1Reorganises,
    /// L1 falls back behind what was read, as an endpoint that lags.
    L1Shrinks,
    /// L1 answers 503 for three requests.
    L1Refuses,
    /// L1 limits the rate for three requests.
    L1Limits,
    /// The sequencer's next blocks come.
    L2Grows,
    /// The node is killed: the head falls, blocks above it still answer.
    L2Falls,
    /// The node refuses two writes.
    L2RefusesWrites,
    /// The node's answers are cut off for three requests.
    L2Drops,
    /// The node stands on another chain from now on.
    L2Swapped,
}

use Contradiction::{
    L1Grows, L1Limits, L1Refuses, L1Reorganises, L1Shrinks, L2Drops, L2Falls, L2Grows, L2RefusesWrites, L2Swapped,
};

/// Where a run starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// Nothing is verified, the local chain is right.
    InStep,
    /// The chain differs from the middle of batch 2 on: a rewrite is due.
    Forked,
    /// The blocks above the middle of batch 2 are missing: a gap is to be filled.
    Behind,
}

struct Scene {
    network: RecordedNetwork,
    l2: Arc<RecordedL2>,
}

impl Scene {
    fn new(recording: &Recording, start: Start) -> Self {
        let network = RecordedNetwork::with(recording.clone());
        network.set_head(L1_START);
        network.set_finalized(Some(15));
        let l2 = RecordedL2::with(recording, if start == Start::Behind { 12 } else { L2_LAST });
        if start == Start::Forked {
            l2.fork(13, &Alter::Timestamp);
        }
        Self { network, l2: Arc::new(l2) }
    }

    fn servers(&self) -> [&FakeServer; 4] {
        [&self.network.l1, &self.network.beacon, &self.l2.eth, &self.l2.engine]
    }

    fn strike(&self, contradiction: Contradiction) {
        let (l1, eth) = (&self.network.l1, &self.l2.eth);
        match contradiction {
            L1Grows => self.network.set_head(L1_LAST),
            L1Reorganises => self.network.reorg(16, 7),
            L1Shrinks => self.network.set_head(L1_START - 1),
            L1Refuses => l1.fault_times("*", Fault::Status(503, "busy".to_owned()), 3),
            L1Limits => l1.fault_times("*", Fault::Status(429, "slow down".to_owned()), 3),
            L2Grows => self.l2.set_head(self.l2.head() + 2),
            L2Falls => self.l2.kill(10),
            L2RefusesWrites => {
                let refusal = Fault::Error(-32000, "no space left on device".to_owned());
                self.l2.engine.fault_times("engine_newSafeL2Block", refusal, 2);
            }
            L2Drops => eth.fault_times("*", Fault::Drop, 3),
            L2Swapped => self.l2.fork(11, &Alter::Timestamp),
        }
    }

    /// All is well again: both chains go on to where every run ends.
    fn settle(&self) {
        self.network.l1.heal();
        self.l2.eth.heal();
        self.l2.engine.heal();
        self.network.set_head(L1_LAST);
        self.network.set_finalized(Some(L1_LAST));
    }
}

/// One run: the contradiction strikes at the `nth` request of the first poll. Gives how many requests that poll made.
async fn run(recording: &Recording, start: Start, strikes: Option<(Contradiction, usize)>) -> usize {
    let what = format!("{start:?}, {strikes:?}");
    let scene = Arc::new(Scene::new(recording, start));
    let committed: BTreeSet<_> = (0..=L2_HIGHEST).map(|number| recording.l2_hash(number)).collect();
    let mut rig = Rig::recorded(&scene.network, &scene.l2, |settings| settings.assume = Some(Verdict::Stopped)).await;
    let asked = Arc::new(AtomicUsize::new(0));
    for server in scene.servers() {
        let (asked, scene) = (Arc::clone(&asked), Arc::downgrade(&scene));
        server.before_each(move || {
            let place = asked.fetch_add(1, Ordering::SeqCst);
            if let (Some((contradiction, nth)), Some(scene)) = (strikes, scene.upgrade())
                && nth == place
            {
                scene.strike(contradiction);
            }
        });
    }
    let _ = rig.poll().await;
    let requests = asked.load(Ordering::SeqCst);
    // A node that falls or is swapped breaks the order by itself; one poll later it must be right again (P2).
    let broken_by_itself = matches!(strikes, Some((L2Falls | L2Swapped, _)));
    let _ = rig.poll().await;
    if broken_by_itself {
        let tags = scene.l2.tag_calls();
        assert!(tags.iter().flat_map(|tag| [tag.safe, tag.finalized]).flatten().all(|hash| committed.contains(&hash)));
        scene.l2.forget();
    }
    scene.settle();
    let mut finalized = rig.finalized();
    for _ in 0..40 {
        let report = rig.poll().await;
        let now = rig.finalized();
        assert!(now >= finalized, "{what}: finalized moved back from {finalized:?} to {now:?}");
        assert!(now <= rig.safe(), "{what}: finalized {now:?} above safe {:?}", rig.safe());
        finalized = now;
        if rig.safe() == Some(SAFE_LAST)
            && rig.finalized() == Some(SAFE_LAST)
            && report.is_ok_and(|report| report.end == PullEnd::CaughtUp)
        {
            break;
        }
    }
    let stall = rig.worker.status().borrow().stall.clone();
    assert_eq!((rig.safe(), rig.finalized()), (Some(SAFE_LAST), Some(SAFE_LAST)), "{what}: {stall:?}");
    let hash = recording.l2_hash(SAFE_LAST);
    assert_eq!(scene.l2.safe(), Some((SAFE_LAST, hash)), "{what}: the node's safe tag");
    assert_eq!(scene.l2.finalized(), Some((SAFE_LAST, hash)), "{what}: the node's finalized tag");
    for number in 0..=SAFE_LAST {
        assert_eq!(scene.l2.hash_at(number), Some(recording.l2_hash(number)), "{what}: block {number}");
    }
    for tag in scene.l2.tag_calls().iter().flat_map(|tag| [tag.safe, tag.finalized]).flatten() {
        assert!(committed.contains(&tag), "{what}: a tag on {tag:?}, which L1 never committed to");
    }
    assert!(scene.l2.disorder().is_empty(), "{what}: {:?}", scene.l2.disorder());
    requests
}

/// Runs at work at the same time.
const AT_ONCE: usize = 4;

/// Longest time for one run, of which most take less than a second: a run that hangs is a failure and no wait.
const RUN_LIMIT: Duration = Duration::from_secs(120);

/// Every request of the first poll in turn, for each contradiction.
async fn at_every_request(start: Start, contradictions: &[Contradiction]) {
    let recording = Recording::load();
    let requests = run(&recording, start, None).await;
    assert!(requests > 10, "{start:?}: a poll of {requests} requests is none");
    let cases = contradictions.iter().flat_map(|what| (0..requests).map(|nth| (*what, nth)));
    let one = |case: (Contradiction, usize)| {
        let recording = Arc::clone(&recording);
        async move {
            let run = tokio::spawn(async move {
                tokio::time::timeout(RUN_LIMIT, run(&recording, start, Some(case))).await.expect("a run that hangs")
            });
            run.await.err().map(|_| case)
        }
    };
    let ended: Vec<_> = stream::iter(cases).map(one).buffer_unordered(AT_ONCE).collect().await;
    let failed: Vec<_> = ended.into_iter().flatten().collect();
    assert!(failed.is_empty(), "{start:?}: contradicted at request n of {requests}: {failed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_p2_b1_e20_a_chain_in_step_ends_the_same_whatever_contradicts_it_and_when() {
    at_every_request(Start::InStep, &[L1Grows, L1Reorganises, L1Shrinks, L1Refuses, L2Falls, L2Drops, L2Swapped]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_p2_b1_e20_a_rewrite_ends_the_same_whatever_contradicts_it_and_when() {
    at_every_request(Start::Forked, &[L1Reorganises, L1Limits, L2Grows, L2Falls, L2RefusesWrites, L2Swapped]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_p2_b1_e20_a_gap_is_filled_the_same_whatever_contradicts_it_and_when() {
    at_every_request(Start::Behind, &[L1Shrinks, L1Reorganises, L2Grows, L2RefusesWrites, L2Drops]).await;
}
