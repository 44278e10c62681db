//! What holds when the world is contradicted: L1 and L2 grow, shrink, refuse and are swapped at *every* request of a poll
//! in turn, and not at one chosen request. The recorded network is served over HTTP, with its reverted and recommitted
//! batches; whatever happens in the middle of a poll, safe and finalized name blocks of the committed chain, the heads
//! stay in order for whoever reads the node, finalized never moves back, and the end is that of a run that nothing
//! disturbed (P1, P2, P4, B1, J5, E20).
//!
//! The node is looked at before each request to any server, and after each write and each tag.
//!
//! Which requests are struck: all those that can see the contradiction. A change of L1 is seen by nothing but requests to
//! L1 and to the beacon node, which serves the blobs of L1's blocks: a strike before a request to the execution node is
//! the strike before the next request to L1, and the other way round. What one server refuses is seen there only. No
//! request is left out beyond that.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use morph_deriver::decide::liveness::HeadTrend;
use morph_deriver::flow::PollEnd;
use morph_deriver::types::{B256, BatchRecord, Outcome};

use crate::support::recorded::{RecordedNetwork, Recording};
use crate::support::recorded_l2::{Alter, RecordedL2};
use crate::support::rig::Rig;
use crate::support::server::{FakeServer, Fault, lock};
use crate::support::standing;

/// What contradicts the poll. A refusal is one that passes: what a node says of a block for good is another test (E17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contradiction {
    /// The next L1 blocks come, up to this one.
    L1Grows(u64),
    /// The L1 blocks from this one on get other hashes and the same content.
    L1Reorganises(u64),
    /// The same, and L1 ends at the second block: what lay above is included later.
    L1Replaces(u64, u64),
    /// L1's head falls to this block, below what was read, as at an endpoint that lags.
    L1Shrinks(u64),
    /// L1 answers 503 for three requests.
    L1Refuses,
    /// L1 limits the rate for three requests.
    L1Limits,
    /// The beacon node answers 503 for two requests.
    BeaconRefuses,
    /// The sequencer's next blocks come.
    L2Grows,
    /// The node is killed: the head falls to this block, blocks above it still answer.
    L2Falls(u64),
    /// The node refuses two writes.
    L2RefusesWrites,
    /// The node's answers break in the middle for three requests.
    L2Drops,
    /// The node is on another chain from this block on.
    L2Swapped(u64),
}

use Contradiction::{
    BeaconRefuses, L1Grows, L1Limits, L1Refuses, L1Reorganises, L1Replaces, L1Shrinks, L2Drops, L2Falls, L2Grows,
    L2RefusesWrites, L2Swapped,
};

/// Whom a request asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    L1,
    Beacon,
    Eth,
    Engine,
}

impl Contradiction {
    /// The requests that can see it.
    fn seen_by(self) -> &'static [Asked] {
        match self {
            L1Grows(_) | L1Reorganises(_) | L1Replaces(..) | L1Shrinks(_) => &[Asked::L1, Asked::Beacon],
            L1Refuses | L1Limits => &[Asked::L1],
            BeaconRefuses => &[Asked::Beacon],
            L2Grows | L2Falls(_) | L2Swapped(_) => &[Asked::Eth, Asked::Engine],
            L2RefusesWrites => &[Asked::Engine],
            L2Drops => &[Asked::Eth],
        }
    }

    /// A node that falls or is swapped breaks the order of its heads by itself (P2).
    fn breaks_order(self) -> bool {
        matches!(self, L2Falls(_) | L2Swapped(_))
    }
}

/// A contradiction before the `nth` of the requests that see it in poll `poll`, both counted from zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Strike {
    what: Contradiction,
    poll: usize,
    nth: usize,
}

/// The local chain at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Local {
    /// It is right.
    InStep,
    /// It differs from this block on: a rewrite is due.
    Forked(u64),
    /// It ends at this block: a gap is to be filled.
    Behind(u64),
}

/// What a run is shown, poll by poll.
#[derive(Clone, Copy, Debug)]
struct Story {
    /// The first L1 block that is read.
    start: u64,
    /// L1's head and its finalized block in each poll.
    polls: &'static [(u64, u64)],
    /// L1 blocks that are read at once.
    fetch_range: u64,
    /// The local chain.
    local: Local,
    /// Its head, if nothing is missing.
    head: u64,
    /// L1's head at the end of every run.
    end: u64,
}

/// L1 blocks that hold a commit which can be verified, and where its batch ends. Batches 7 and 8 were committed in blocks
/// 24 and 25 under a wrong state root, reverted in 26, and committed again in 27 and 28.
const ENDS: [(u64, u64); 10] =
    [(15, 8), (16, 18), (17, 23), (18, 95), (22, 101), (23, 105), (27, 110), (28, 113), (30, 117), (36, 122)];

/// Where the last batch ends that stands at L1 block `number`.
fn end_at(number: u64) -> u64 {
    ENDS.iter().rev().find(|(block, _)| *block <= number).map_or(0, |(_, last)| *last)
}

/// The requests of each poll, in their order.
type Requests = BTreeMap<usize, Vec<Asked>>;

/// How many of the requests of `poll` see `what`.
fn seeing(asked: &Requests, poll: usize, what: Contradiction) -> usize {
    asked.get(&poll).into_iter().flatten().filter(|asked| what.seen_by().contains(asked)).count()
}

/// What is counted and noted during a run.
#[derive(Default)]
struct Notes {
    poll: usize,
    asked: Requests,
    struck: Vec<Strike>,
    /// The highest head and finalized block that L1 has shown.
    shown: (u64, u64),
    /// What an observer saw and must not see.
    seen: Vec<String>,
}

impl Notes {
    /// The node broke the order of its heads by itself, and has until the end of the next poll.
    fn is_broken(&self) -> bool {
        self.struck.iter().any(|strike| strike.what.breaks_order() && self.poll <= strike.poll + 1)
    }
}

struct Scene {
    recording: Arc<Recording>,
    story: Story,
    strikes: Vec<Strike>,
    network: RecordedNetwork,
    l2: RecordedL2,
    notes: Mutex<Notes>,
}

impl Scene {
    fn new(recording: &Arc<Recording>, story: Story, strikes: &[Strike]) -> Arc<Self> {
        let network = RecordedNetwork::with(recording.as_ref().clone());
        let l2 = RecordedL2::with(recording, if let Local::Behind(head) = story.local { head } else { story.head });
        if let Local::Forked(number) = story.local {
            l2.fork(number, &Alter::Timestamp);
        }
        let (recording, strikes) = (Arc::clone(recording), strikes.to_vec());
        let scene = Arc::new(Self { recording, story, strikes, network, l2, notes: Mutex::default() });
        let servers: [(Asked, &FakeServer); 4] = [
            (Asked::L1, &scene.network.l1),
            (Asked::Beacon, &scene.network.beacon),
            (Asked::Eth, &scene.l2.eth),
            (Asked::Engine, &scene.l2.engine),
        ];
        for (asked, server) in servers {
            let scene = Arc::downgrade(&scene);
            server.before_each(move || {
                if let Some(scene) = scene.upgrade() {
                    scene.on_request(asked);
                }
            });
        }
        scene
    }

    fn begin_poll(&self, poll: usize) {
        let mut notes = lock(&self.notes);
        notes.poll = poll;
        let last = self.story.polls[self.story.polls.len() - 1];
        let (head, finalized) = self.story.polls.get(poll).copied().unwrap_or(last);
        // The poll after the last one of the story finds L1 as a contradiction left it.
        if poll < self.story.polls.len() {
            self.show(&mut notes, head, finalized);
        }
    }

    fn show(&self, notes: &mut Notes, head: u64, finalized: u64) {
        notes.shown = (notes.shown.0.max(head), notes.shown.1.max(finalized));
        self.network.set_head(head);
        self.network.set_finalized(Some(finalized));
    }

    /// Strikes that the poll did not reach, since it took fewer requests than the undisturbed one, come after it.
    fn end_poll(&self) {
        let mut notes = lock(&self.notes);
        let poll = notes.poll;
        self.observe(&mut notes, None);
        self.look_through(&mut notes);
        for strike in self.strikes.iter().filter(|strike| strike.poll == poll) {
            self.strike(&mut notes, *strike);
        }
    }

    /// What the node noted after each write and each tag. What it noted while its order was broken counts for nothing.
    fn look_through(&self, notes: &mut Notes) {
        let told = self.l2.tag_calls();
        for hash in told.iter().flat_map(|tags| [tags.safe, tags.finalized]).flatten() {
            if !(0..=self.story.head.max(end_at(self.story.end))).any(|n| self.recording.l2_hash(n) == hash) {
                notes.seen.push(format!("a tag on {hash:?}, which L1 never committed to"));
            }
        }
        if !notes.is_broken() {
            notes.seen.extend(self.l2.disorder());
        }
        self.l2.forget();
    }

    /// Everything that was seen and must not be.
    fn all_seen(&self) -> Vec<String> {
        let mut notes = lock(&self.notes);
        self.look_through(&mut notes);
        notes.seen.clone()
    }

    fn on_request(&self, asked: Asked) {
        let mut notes = lock(&self.notes);
        let poll = notes.poll;
        let due = |strike: &&Strike| {
            let sees = strike.what.seen_by().contains(&asked);
            sees && strike.poll == poll && strike.nth == seeing(&notes.asked, poll, strike.what)
        };
        let due: Vec<_> = self.strikes.iter().filter(due).copied().collect();
        notes.asked.entry(poll).or_default().push(asked);
        for strike in due {
            self.strike(&mut notes, strike);
        }
        self.observe(&mut notes, Some(asked));
    }

    fn strike(&self, notes: &mut Notes, strike: Strike) {
        if notes.struck.contains(&strike) {
            return;
        }
        if !notes.is_broken() {
            self.look_through(notes);
        }
        notes.struck.push(strike);
        let salt = 7 + u8::try_from(notes.struck.len()).expect("few strikes");
        let (l1, eth, (_, finalized)) = (&self.network.l1, &self.l2.eth, notes.shown);
        let busy = || Fault::Status(503, "busy".to_owned());
        match strike.what {
            L1Grows(head) | L1Shrinks(head) => self.show(notes, head, finalized),
            L1Reorganises(from) => self.network.reorg(from, salt),
            L1Replaces(from, head) => {
                self.network.reorg(from, salt);
                self.show(notes, head, finalized);
            }
            L1Refuses => l1.fault_times("*", busy(), 3),
            L1Limits => l1.fault_times("*", Fault::Status(429, "slow down".to_owned()), 3),
            BeaconRefuses => self.network.beacon.fault_times("*", busy(), 2),
            L2Grows => self.l2.set_head(self.l2.head() + 2),
            L2Falls(head) => self.l2.kill(head),
            L2RefusesWrites => {
                let refusal = Fault::Error(-32000, "no space left on device".to_owned());
                self.l2.engine.fault_times("engine_newSafeL2Block", refusal, 2);
            }
            L2Drops => eth.fault_times("*", Fault::Drop, 3),
            L2Swapped(from) => self.l2.fork(from, &Alter::Timestamp),
        }
    }

    /// What a reader of the node sees: always blocks of the committed chain, none of them beyond what L1 has committed to
    /// (or has made final) so far; and in order, but for the time that a node has that broke the order itself. No poll
    /// ends with finalized above safe, unless it is above the head too: then nothing but the lost blocks mends it. `at` is
    /// the request that comes next, none at the end of a poll.
    fn observe(&self, notes: &mut Notes, at: Option<Asked>) {
        let seen = self.l2.seen();
        let limits = (end_at(notes.shown.0), end_at(notes.shown.1));
        let committed = |spot: Option<(u64, B256)>, limit: u64| {
            spot.is_none_or(|(number, hash)| number <= limit && self.recording.l2_hash(number) == hash)
        };
        let height = |spot: Option<(u64, B256)>| spot.map(|(number, _)| number);
        let fault = if !committed(seen.safe, limits.0) || !committed(seen.finalized, limits.1) {
            "off the committed chain"
        } else if at.is_none()
            && height(seen.finalized) > height(seen.safe)
            && height(seen.finalized) <= Some(seen.head)
        {
            "finalized above safe"
        } else if !notes.is_broken() && !seen.in_order {
            "out of order"
        } else {
            return;
        };
        let place = (notes.poll, notes.asked.get(&notes.poll).map_or(0, Vec::len));
        notes.seen.push(format!("{fault} at {at:?}, (poll, request) {place:?}, L1 shown {:?}: {seen:?}", notes.shown));
    }

    /// All faults end, and both chains grow to the end that every run has.
    fn settle(&self) {
        self.network.l1.heal();
        self.network.beacon.heal();
        self.l2.eth.heal();
        self.l2.engine.heal();
        let mut notes = lock(&self.notes);
        notes.poll = usize::MAX;
        self.show(&mut notes, self.story.end, self.story.end);
    }
}

/// What every run of a story must end in.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ending {
    safe: (u64, B256),
    finalized: (u64, B256),
    /// Index, hash, outcome and end of each batch.
    batches: Vec<(u64, B256, Outcome, Option<B256>)>,
}

struct Told<'a>(&'a Story, &'a [Strike]);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {:?}", self.0.local, self.1)
    }
}

/// One run. Gives its end, and the requests of each poll of the story.
async fn run(recording: &Arc<Recording>, story: Story, strikes: &[Strike]) -> (Ending, Requests) {
    let what = Told(&story, strikes);
    let scene = Scene::new(recording, story, strikes);
    scene.begin_poll(0);
    let mut rig = Rig::recorded(&scene.network, &scene.l2, |settings| {
        settings.assume = Some(HeadTrend::Stopped);
        settings.start = story.start.into();
        settings.fetch_range = story.fetch_range;
    })
    .await;
    lock(&scene.notes).asked.clear();
    let mut finalized = None;
    // One poll more than the story has: the one after a strike in its last poll.
    for poll in 0..=story.polls.len() {
        scene.begin_poll(poll);
        let _ = rig.poll().await;
        scene.end_poll();
        finalized = forward(&rig, finalized, &what);
    }
    let asked = lock(&scene.notes).asked.clone();
    scene.settle();
    let last = end_at(story.end);
    for _ in 0..40 {
        let report = rig.poll().await;
        finalized = forward(&rig, finalized, &what);
        let there = (rig.safe(), rig.finalized()) == (Some(last), Some(last));
        if there && report.is_ok_and(|report| report.end == PollEnd::CaughtUp) {
            break;
        }
    }
    let stall = rig.worker.status().borrow().stall.clone();
    assert_eq!((rig.safe(), rig.finalized()), (Some(last), Some(last)), "{what}: {stall:?}");
    assert_eq!(lock(&scene.notes).struck.len(), strikes.len(), "{what}: a strike that never came");
    let seen = scene.all_seen();
    assert!(seen.is_empty(), "{what}: {seen:#?}");
    for number in 0..=last {
        assert_eq!(scene.l2.hash_at(number), Some(recording.l2_hash(number)), "{what}: block {number}");
    }
    (ending(&rig, &scene).await, asked)
}

/// Finalized never moves back, and never passes safe.
fn forward(rig: &Rig, before: Option<u64>, what: &Told<'_>) -> Option<u64> {
    let now = rig.finalized();
    assert!(now >= before, "{what}: finalized moved back from {before:?} to {now:?}");
    assert!(now <= rig.safe(), "{what}: finalized {now:?} above safe {:?}", rig.safe());
    now
}

async fn ending(rig: &Rig, scene: &Scene) -> Ending {
    let stored = standing(rig.ports.progress.as_ref()).await;
    let row = |b: BatchRecord| (b.index.get(), b.hash, b.outcome, b.last.map(|last| last.hash));
    Ending {
        safe: scene.l2.safe().expect("safe"),
        finalized: scene.l2.finalized().expect("finalized"),
        batches: stored.into_iter().map(row).collect(),
    }
}

/// Runs at work at the same time: most of a run is waiting.
const AT_ONCE: usize = 8;

/// Longest time for one run, of which most take less than a second: a run that hangs is a failure and no wait.
const RUN_LIMIT: Duration = Duration::from_secs(120);

/// A poll, and what contradicts it: each before each request that sees it.
type InPoll<'a> = (usize, &'a [Contradiction]);

/// Every request that sees it in turn, for each contradiction of each of `polls`, after those that `before` struck already.
async fn at_every_request(story: Story, before: &[Strike], polls: &[InPoll<'_>]) {
    let recording = Recording::load();
    let (wanted, _) = run(&recording, story, &[]).await;
    // After a strike a poll takes another way: its requests are those of a run that was struck before.
    let (end, asked) = run(&recording, story, before).await;
    assert_eq!(end, wanted);
    assert_eq!(wanted.safe, (end_at(story.end), recording.l2_hash(end_at(story.end))));
    assert_eq!(wanted.finalized, wanted.safe);
    let mut cases = Vec::new();
    for (poll, contradictions) in polls {
        for what in *contradictions {
            let requests = seeing(&asked, *poll, *what);
            assert!(requests > 0, "{story:?}: nothing sees {what:?} in poll {poll}");
            cases.extend((0..requests).map(|nth| Strike { what: *what, poll: *poll, nth }));
        }
    }
    println!("{:?}: {} runs over {} requests", story.local, cases.len(), asked.values().flatten().count());
    let one = |case: Strike| {
        let (recording, strikes) = (Arc::clone(&recording), [before, &[case]].concat());
        let wanted = wanted.clone();
        async move {
            let run = tokio::spawn(async move {
                let run = run(&recording, story, &strikes);
                let (end, _) = tokio::time::timeout(RUN_LIMIT, run).await.expect("a run that hangs");
                assert_eq!(end, wanted, "{}", Told(&story, &strikes));
            });
            run.await.err().map(|_| case)
        }
    };
    let ended: Vec<_> = stream::iter(cases).map(one).buffer_unordered(AT_ONCE).collect().await;
    let failed: Vec<_> = ended.into_iter().flatten().collect();
    assert!(failed.is_empty(), "{story:?} after {before:?}: {failed:#?}");
}

/// Batches 1 and 2, then 3.
const FIRST: Story =
    Story { start: 0, polls: &[(16, 15), (17, 15)], fetch_range: 500, local: Local::InStep, head: 26, end: 17 };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b1_e20_p1_p2_a_chain_in_step_ends_the_same_whatever_contradicts_it_and_when() {
    let first = [L1Grows(17), L1Reorganises(16), L1Shrinks(15), L1Refuses, L2Falls(10), L2Drops, L2Swapped(11)];
    let second = [L1Replaces(16, 16), L2Falls(10)];
    at_every_request(FIRST, &[], &[(0, &first), (1, &second)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b1_e20_p1_p2_a_rewrite_ends_the_same_whatever_contradicts_it_and_when() {
    let story = Story { local: Local::Forked(13), ..FIRST };
    let first = [L1Reorganises(16), L1Limits, BeaconRefuses, L2Grows, L2Falls(10), L2RefusesWrites, L2Swapped(11)];
    at_every_request(story, &[], &[(0, &first)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b1_e20_p1_p2_a_gap_is_filled_the_same_whatever_contradicts_it_and_when() {
    let story = Story { local: Local::Behind(12), ..FIRST };
    let first = [L1Shrinks(15), L1Reorganises(16), BeaconRefuses, L2Grows, L2RefusesWrites, L2Drops];
    at_every_request(story, &[], &[(0, &first)]).await;
}

/// Batch 4, of 72 blocks, which differs from its middle on; then 5.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e20_p1_p2_a_long_rewrite_ends_the_same_whatever_contradicts_the_node_and_when() {
    let polls = &[(18, 17), (22, 17)];
    let story = Story { start: 18, polls, fetch_range: 500, local: Local::Forked(70), head: 103, end: 22 };
    at_every_request(story, &[], &[(0, &[L2Falls(60), L2Swapped(50)])]).await;
}

/// Batches 5 and 6; the poison batches 7 and 8; their reverts; 7 and 8 again; 9.
const REVERTED: Story = Story {
    start: 22,
    polls: &[(23, 22), (25, 22), (26, 23), (28, 26), (30, 27)],
    fetch_range: 500,
    local: Local::InStep,
    head: 120,
    end: 30,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m2_m3_p1_p2_reverts_and_recommits_end_the_same_whatever_contradicts_l1_and_when() {
    let polls: &[InPoll<'_>] = &[
        (1, &[L1Grows(26), L1Replaces(24, 24)]),
        (2, &[L1Grows(28), L1Replaces(25, 25)]),
        (3, &[L1Grows(30), L1Reorganises(27), L1Replaces(27, 27), L1Refuses]),
        (4, &[L1Replaces(28, 28), L1Shrinks(28)]),
    ];
    at_every_request(REVERTED, &[], polls).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m2_m3_p1_p2_reverts_and_recommits_end_the_same_whatever_contradicts_the_node_and_when() {
    let polls: &[InPoll<'_>] = &[
        (1, &[L2Falls(103), L2Swapped(104)]),
        (2, &[L2Falls(105), L2Swapped(107)]),
        (3, &[L2Falls(107), L2Swapped(107), L2Drops]),
        (4, &[L2Swapped(112)]),
    ];
    at_every_request(REVERTED, &[], polls).await;
}

/// The chain differs in batch 7: what the poison batch's blobs hold is written, and its root is none that is believed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c1_p1_p2_a_rewrite_out_of_a_poison_batch_ends_the_same_whatever_contradicts_it_and_when() {
    let story = Story { local: Local::Forked(108), ..REVERTED };
    at_every_request(story, &[], &[(1, &[L1Grows(26), L1Replaces(24, 24), L2Falls(106), L2Swapped(104)])]).await;
}

/// Everything at once, three L1 blocks a poll: 5 and 6; the reverts; 7 and 8 again; 9, and 10 at the end.
const CATCH_UP: Story =
    Story { polls: &[(31, 22), (31, 22), (31, 22)], fetch_range: 3, head: 126, end: 36, ..REVERTED };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m4_p1_p2_a_catch_up_ends_the_same_whatever_contradicts_its_second_and_third_poll() {
    let polls: &[InPoll<'_>] = &[
        (1, &[L1Replaces(26, 30), L1Shrinks(25), L2Swapped(104)]),
        (2, &[L1Replaces(27, 27), L1Refuses, L2Falls(107)]),
    ];
    at_every_request(CATCH_UP, &[], polls).await;
}

/// What was contradicted once is contradicted again in the next poll, at each of its requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b1_e20_m3_p1_p2_p4_a_second_contradiction_in_the_poll_after_the_first_changes_nothing() {
    let replaced = Strike { what: L1Replaces(27, 27), poll: 3, nth: 8 };
    at_every_request(REVERTED, &[replaced], &[(4, &[L1Reorganises(24), L2Falls(107)])]).await;
    let swapped = Strike { what: L2Swapped(104), poll: 1, nth: 2 };
    at_every_request(REVERTED, &[swapped], &[(2, &[L1Replaces(25, 25), L2Falls(103), L2RefusesWrites])]).await;
}
