//! Rebuilt blobs against L1's versioned hashes: one by one, or several batches' blobs with one commitment.
//!
//! Decided here: which blobs are checked together, and when a beacon node is asked for commitments. A group costs little
//! more than one blob, so it waits while more are coming, for a moment at most, and no longer than until it is worth it.
//! Only what is gathered ahead is ever in a group: a batch in its turn, and so a worker that has caught up, never waits.
//! `codec/aggregate.rs` decides whether a group is equal. A group that is not, for any reason, is checked blob by blob,
//! so that no verdict is weaker than that check (docs/aggregated-check.md).

use std::num::NonZeroU128;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::RngCore;
use rand::rngs::OsRng;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;
use tracing::debug;

use crate::codec::aggregate::{self, Member, Verdict};
use crate::codec::batch;
use crate::flow::FlowError;
use crate::ports::BlobSource;
use crate::types::{B256, Blob, L1Header};

/// Blobs of a group at most: 8 MiB of them. A larger one saves little: at 64 the one commitment of the group is a fifth
/// of its cost.
const GROUP_MAX: usize = 64;

/// Blobs of a group that waits for no more: then its one commitment is a third of its cost, and two such groups fit the
/// blobs that are held.
const GROUP_ENOUGH: usize = 32;

/// The longest time that a group waits for blobs that are coming.
const GROUP_WAIT: Duration = Duration::from_millis(300);

/// Blobs that are held at once for batches ahead of their turn, 12 MiB (P7): three groups, one that is checked, one
/// that waits, and one that is coming.
const HELD_MAX: usize = 96;

/// If no beacon node had commitments, they are asked for again after this time.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// The longest wait for commitments: checking a blob by itself takes a hundredth of it.
const PATIENCE: Duration = Duration::from_secs(3);

/// Beacon blocks that are asked for at the same time: a hostile one has 32 MiB (P7).
const BLOCKS_AT_ONCE: usize = 4;

/// Whether beacon nodes have commitments.
#[derive(Clone, Copy, Debug)]
enum Offer {
    /// One had them when it was asked last.
    Made,
    /// None had them then, or it is asked again just now.
    NotSince(Instant),
}

/// The blobs of one batch, and what L1 says of them.
struct Waiting {
    blobs: Vec<Blob>,
    wanted: Vec<B256>,
    commitments: Vec<[u8; 48]>,
    since: Instant,
    /// Gets the blobs back if the group is not equal.
    answer: oneshot::Sender<Result<(), Vec<Blob>>>,
}

/// The batches that wait to be checked together.
#[derive(Default)]
struct Queue {
    waiting: Vec<Waiting>,
    /// How many batches are on their way here.
    coming: usize,
    /// A check of the next group waits for a core.
    called: bool,
}

impl Queue {
    /// Whether a group is to be checked at `now`: it is worth it, no more blobs are coming, or it waited long enough.
    fn is_due(&self, now: Instant) -> bool {
        let blobs: usize = self.waiting.iter().map(|waiting| waiting.blobs.len()).sum();
        let late = |waiting: &Waiting| now.saturating_duration_since(waiting.since) >= GROUP_WAIT;
        blobs > 0 && (blobs >= GROUP_ENOUGH || self.coming == 0 || self.waiting.first().is_some_and(late))
    }
}

/// What the checks under way share.
struct Shared {
    queue: Mutex<Queue>,
    /// Told whenever the queue or what is coming changes.
    changed: Notify,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next group, if one is due.
    fn take_due(&self) -> Option<Vec<Waiting>> {
        let mut queue = self.queue();
        queue.called = false;
        queue.waiting.retain(|waiting| !waiting.answer.is_closed());
        queue.is_due(Instant::now()).then(|| take_group(&mut queue.waiting))
    }
}

/// A batch whose blobs are on their way: a group may wait for them.
pub(crate) struct Coming {
    /// None once they are there.
    shared: Option<Arc<Shared>>,
    _room: Option<OwnedSemaphorePermit>,
}

impl Coming {
    /// They are there, or do not come.
    fn ends(&mut self) {
        if let Some(shared) = self.shared.take() {
            let mut queue = shared.queue();
            queue.coming = queue.coming.saturating_sub(1);
            drop(queue);
            shared.changed.notify_waiters();
        }
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.ends();
    }
}

/// The cores on which blobs are made and checked, and the batches that wait to be checked together.
pub(crate) struct BlobCheck {
    source: Arc<dyn BlobSource>,
    /// One permit for each core, and one more: a core has work while the next piece of it is handed over. The first
    /// request is served first.
    cores: Arc<Semaphore>,
    shared: Arc<Shared>,
    /// One permit for each blob that may be held.
    room: Arc<Semaphore>,
    asking: Semaphore,
    offer: Mutex<Option<Offer>>,
    /// Held while the first question is under way.
    first_question: tokio::sync::Mutex<()>,
}

impl BlobCheck {
    /// Commitments come from `source`.
    pub(crate) fn new(source: Arc<dyn BlobSource>) -> Self {
        Self::with_permits(source, std::thread::available_parallelism().map_or(1, usize::from).saturating_add(1))
    }

    fn with_permits(source: Arc<dyn BlobSource>, permits: usize) -> Self {
        Self {
            source,
            cores: Arc::new(Semaphore::new(permits)),
            shared: Arc::new(Shared { queue: Mutex::default(), changed: Notify::new() }),
            room: Arc::new(Semaphore::new(HELD_MAX)),
            asking: Semaphore::new(BLOCKS_AT_ONCE),
            offer: Mutex::default(),
            first_question: tokio::sync::Mutex::default(),
        }
    }

    /// Says that `blobs` blobs will be made to be checked together, when there is room for them.
    pub(crate) async fn coming(&self, blobs: usize) -> Coming {
        let room = u32::try_from(blobs.clamp(1, HELD_MAX)).unwrap_or(1);
        let room = self.room.clone().acquire_many_owned(room).await.ok();
        self.shared.queue().coming += 1;
        Coming { shared: Some(self.shared.clone()), _room: room }
    }

    /// Does `work` off the async threads, when a core is free.
    ///
    /// # Errors
    /// When it was interrupted.
    pub(crate) async fn on_a_core<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, FlowError> {
        let core = self.cores.clone().acquire_owned().await;
        // The permit moves with the work: it keeps its core until it is done, even if its caller is gone.
        let work = move || {
            let done = work();
            drop(core);
            done
        };
        interrupted(tokio::task::spawn_blocking(work).await)
    }

    /// Whether `blobs` have the versioned hashes `wanted`, each looked at by itself.
    ///
    /// # Errors
    /// When it was interrupted.
    pub(crate) async fn one_by_one(&self, blobs: Vec<Blob>, wanted: Vec<B256>) -> Result<bool, FlowError> {
        self.on_a_core(move || batch::have_hashes(&blobs, &wanted)).await
    }

    /// The same, together with the blobs of other batches if there are any, by the commitments that the beacon block of
    /// the L1 block `header` holds. `coming` announced these blobs.
    ///
    /// # Errors
    /// When it was interrupted.
    pub(crate) async fn together(
        &self,
        blobs: Vec<Blob>,
        wanted: Vec<B256>,
        header: &L1Header,
        coming: &mut Coming,
    ) -> Result<bool, FlowError> {
        if blobs.len() != wanted.len() || blobs.is_empty() || blobs.len() > GROUP_MAX {
            coming.ends();
            return self.one_by_one(blobs, wanted).await;
        }
        let Some(commitments) = self.commitments(header, &wanted).await else {
            coming.ends();
            return self.one_by_one(blobs, wanted).await;
        };
        let (answer, mut answered) = oneshot::channel();
        let since = Instant::now();
        let waiting = Waiting { blobs, wanted: wanted.clone(), commitments, since, answer };
        self.shared.queue().waiting.push(waiting);
        coming.ends();
        let late = tokio::time::sleep_until(since + GROUP_WAIT);
        tokio::pin!(late);
        let mut waits = true;
        let outcome = loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            self.check_next();
            tokio::select! {
                outcome = &mut answered => break outcome.ok(),
                () = changed => {}
                () = &mut late, if waits => waits = false,
            }
        };
        match outcome {
            Some(Ok(())) => Ok(true),
            Some(Err(blobs)) => self.one_by_one(blobs, wanted).await,
            None => Err(FlowError::local_changed("the check of a group of blobs was interrupted")),
        }
    }

    /// Checks the next group when a core is free, if one is due and still is then. In a task of its own: the batch that
    /// begins it may be dropped, and those of the others not.
    fn check_next(&self) {
        {
            let mut queue = self.shared.queue();
            if queue.called || !queue.is_due(Instant::now()) {
                return;
            }
            queue.called = true;
        }
        let (cores, shared) = (self.cores.clone(), self.shared.clone());
        tokio::spawn(async move {
            let core = cores.acquire_owned().await;
            let group = shared.take_due();
            // Whoever is left over looks again whether the next group is due.
            shared.changed.notify_waiters();
            let Some(group) = group else { return };
            let work = move || {
                check_group(group);
                drop(core);
            };
            // If it panics, the answers are dropped, and each batch is judged in its turn.
            let _ended = tokio::task::spawn_blocking(work).await;
        });
    }

    /// Commitments from the beacon block; none if no beacon node offers them, which is no error. The first question is
    /// waited for. If they are asked for once more later, one batch's task asks, and the others check by themselves.
    async fn commitments(&self, header: &L1Header, wanted: &[B256]) -> Option<Vec<[u8; 48]>> {
        let mut first = None;
        if self.offer().is_none() {
            first = Some(self.first_question.lock().await);
        }
        {
            let mut offer = self.offer();
            match *offer {
                Some(Offer::Made) => {}
                Some(Offer::NotSince(at)) if at.elapsed() < ASK_AGAIN => return None,
                Some(Offer::NotSince(_)) => *offer = Some(Offer::NotSince(Instant::now())),
                None => {}
            }
        }
        let _place = self.asking.acquire().await;
        let asked = tokio::time::timeout(PATIENCE, self.source.commitments(header, wanted)).await;
        let found = match asked {
            Ok(Ok(found)) => found.filter(|found| found.len() == wanted.len()),
            Ok(Err(error)) => {
                debug!(%error, "no commitments; blobs are checked one by one");
                None
            }
            Err(_) => {
                debug!("no commitments in time; blobs are checked one by one");
                None
            }
        };
        *self.offer() = Some(if found.is_some() { Offer::Made } else { Offer::NotSince(Instant::now()) });
        drop(first);
        found
    }

    fn offer(&self) -> MutexGuard<'_, Option<Offer>> {
        self.offer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn interrupted<T>(outcome: Result<T, tokio::task::JoinError>) -> Result<T, FlowError> {
    outcome.map_err(|e| FlowError::local_changed(format!("re-encoding was interrupted: {e}")))
}

/// The first batches of the queue, as many as a group holds.
fn take_group(queue: &mut Vec<Waiting>) -> Vec<Waiting> {
    let mut blobs = 0_usize;
    let fits = |waiting: &&Waiting| {
        blobs = blobs.saturating_add(waiting.blobs.len());
        blobs <= GROUP_MAX
    };
    let count = queue.iter().take_while(fits).count();
    queue.drain(..count).collect()
}

/// Checks a group and answers each of its batches. Its weights are drawn here: after the blobs and commitments are
/// fixed.
fn check_group(group: Vec<Waiting>) {
    let equal = match group.as_slice() {
        // One blob alone costs less by itself.
        [only] if only.blobs.len() == 1 => batch::have_hashes(&only.blobs, &only.wanted),
        _ => members(&group)
            .is_some_and(|members| aggregate::check(&members).is_ok_and(|verdict| verdict == Verdict::Equal)),
    };
    if !equal {
        debug!(batches = group.len(), "a group of blobs is not equal; checking one by one");
    }
    for Waiting { blobs, answer, .. } in group {
        // Fails if the task that asked went away.
        let _ = answer.send(if equal { Ok(()) } else { Err(blobs) });
    }
}

/// The group's members; none if the operating system gives no random numbers.
fn members(group: &[Waiting]) -> Option<Vec<Member<'_>>> {
    let mut members = Vec::new();
    for Waiting { blobs, wanted, commitments, .. } in group {
        for ((blob, commitment), hash) in blobs.iter().zip(commitments).zip(wanted) {
            members.push(Member { blob, commitment: *commitment, versioned_hash: *hash, weight: weight()? });
        }
    }
    Some(members)
}

/// A random number from 1 to 2^128 − 1, from the operating system.
fn weight() -> Option<NonZeroU128> {
    loop {
        let mut bytes = [0; 16];
        OsRng.try_fill_bytes(&mut bytes).ok()?;
        if let Some(weight) = NonZeroU128::new(u128::from_be_bytes(bytes)) {
            return Some(weight);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::codec::blob;
    use crate::error::{PortError, PortErrorKind, Target};
    use crate::ports::PortResult;

    /// What the beacon node says when it is asked for commitments.
    enum Says {
        /// Those of these blobs.
        Right(Vec<Blob>),
        /// As many, of other blobs.
        Wrong,
        Nothing,
        Refused,
    }

    struct Beacon(Says, AtomicUsize);

    /// One blob, announced and checked.
    async fn together(checks: &BlobCheck, blob: Blob, wanted: Vec<B256>, header: &L1Header) -> Result<bool, FlowError> {
        let mut coming = checks.coming(1).await;
        checks.together(vec![blob], wanted, header, &mut coming).await
    }

    #[async_trait]
    impl BlobSource for Beacon {
        async fn blobs(&self, _: &L1Header, _: &[B256]) -> PortResult<Vec<Blob>> {
            Err(PortError::new(Target::Beacon, PortErrorKind::Pruned, "gone"))
        }

        async fn commitments(&self, _: &L1Header, wanted: &[B256]) -> PortResult<Option<Vec<[u8; 48]>>> {
            self.1.fetch_add(1, Ordering::SeqCst);
            match &self.0 {
                Says::Right(blobs) => {
                    let all: Vec<_> = blobs.iter().map(|blob| blob::commitment(blob).unwrap()).collect();
                    let of = |hash: &B256| all.iter().copied().find(|c| blob::versioned_hash(c) == *hash);
                    Ok(wanted.iter().map(of).collect())
                }
                Says::Wrong => Ok(Some(wanted.iter().map(|_| blob::commitment(&filled(0x77)).unwrap()).collect())),
                Says::Nothing => Ok(None),
                Says::Refused => Err(PortError::new(Target::Beacon, PortErrorKind::Timeout, "later")),
            }
        }
    }

    fn filled(byte: u8) -> Blob {
        blob::pack(&[byte; 1000]).unwrap().remove(0)
    }

    fn hashes(blobs: &[Blob]) -> Vec<B256> {
        blobs.iter().map(|blob| blob::blob_hash(blob).unwrap()).collect()
    }

    fn header() -> L1Header {
        L1Header { number: 7.into(), hash: B256::repeat_byte(7), parent_hash: B256::repeat_byte(6), timestamp: 84 }
    }

    fn checks(says: Says) -> (Arc<Beacon>, BlobCheck) {
        let beacon = Arc::new(Beacon(says, AtomicUsize::new(0)));
        let checks = BlobCheck::with_permits(beacon.clone(), 2);
        *checks.offer() = Some(Offer::Made);
        (beacon, checks)
    }

    /// Twelve batches that all wait before the first is checked. The one numbered `wrong` claims the versioned hash of
    /// another blob.
    async fn verdicts(checks: &BlobCheck, wrong: Option<u8>) -> Vec<bool> {
        let (header, cores) = (header(), checks.cores.clone().acquire_many_owned(2).await.unwrap());
        let all = (0..12_u8).map(|n| {
            let wanted = hashes(&[filled(if wrong == Some(n) { 99 } else { n })]);
            together(checks, filled(n), wanted, &header)
        });
        let mut all = std::pin::pin!(futures::future::join_all(all));
        assert!(futures::poll!(&mut all).is_pending());
        drop(cores);
        all.await.into_iter().map(Result::unwrap).collect()
    }

    #[tokio::test]
    async fn p1_whatever_is_said_of_commitments_the_verdicts_are_those_of_one_by_one() {
        let blobs = || (0..12).chain([99]).map(filled).collect();
        for wrong in [None, Some(2), Some(11)] {
            for says in [Says::Right(blobs()), Says::Wrong, Says::Nothing, Says::Refused] {
                let (_, checks) = checks(says);
                let expected: Vec<_> = (0..12).map(|n| wrong != Some(n)).collect();
                assert_eq!(verdicts(&checks, wrong).await, expected);
            }
        }
    }

    #[tokio::test]
    async fn batches_that_wait_are_one_group() {
        let (_, checks) = checks(Says::Right((0..12).map(filled).collect()));
        let cores = checks.cores.clone().acquire_many_owned(2).await.unwrap();
        let header = header();
        let all = (0..12_u8).map(|n| together(&checks, filled(n), hashes(&[filled(n)]), &header));
        let mut all = std::pin::pin!(futures::future::join_all(all));
        assert!(futures::poll!(&mut all).is_pending());
        assert_eq!(checks.shared.queue().waiting.len(), 12);
        drop(cores);
        assert_eq!(all.await.into_iter().map(Result::unwrap).collect::<Vec<_>>(), [true; 12]);
    }

    #[tokio::test]
    async fn a_beacon_node_without_commitments_is_asked_once_and_then_a_minute_later() {
        let (beacon, checks) = checks(Says::Nothing);
        *checks.offer() = None;
        verdicts(&checks, None).await;
        verdicts(&checks, None).await;
        assert_eq!(beacon.1.load(Ordering::SeqCst), 1);
        *checks.offer() = Instant::now().checked_sub(ASK_AGAIN).map(Offer::NotSince);
        verdicts(&checks, None).await;
        assert_eq!(beacon.1.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_batch_whose_task_was_cancelled_does_not_delay_the_others() {
        let (_, checks) = checks(Says::Right((0..12).map(filled).collect()));
        let (header, wanted) = (header(), hashes(&[filled(1)]));
        let cores = checks.cores.clone().acquire_many_owned(2).await.unwrap();
        let gone = together(&checks, filled(1), wanted.clone(), &header);
        assert!(tokio::time::timeout(Duration::from_millis(50), gone).await.is_err());
        assert_eq!(checks.shared.queue().waiting.len(), 1);
        drop(cores);
        assert!(together(&checks, filled(1), wanted, &header).await.unwrap());
        assert!(checks.shared.queue().waiting.is_empty());
    }

    #[tokio::test]
    async fn a_group_waits_while_more_are_coming_until_it_is_worth_it_and_for_a_moment_at_most() {
        let now = Instant::now();
        let due = |blobs: usize, coming: usize, age: Duration| {
            let (answer, _answered) = oneshot::channel();
            let (wanted, commitments) = (Vec::new(), Vec::new());
            let waiting = vec![Waiting { blobs: vec![filled(1); blobs], wanted, commitments, since: now, answer }];
            Queue { waiting, coming, called: false }.is_due(now + age)
        };
        let soon = GROUP_WAIT - Duration::from_millis(1);
        assert!(due(1, 0, Duration::ZERO), "alone");
        assert!(!due(1, 1, soon), "another one is coming");
        assert!(due(1, 1, GROUP_WAIT), "and does not come");
        assert!(!due(GROUP_ENOUGH - 1, 5, soon) && due(GROUP_ENOUGH, 5, Duration::ZERO));
        assert!(!due(0, 0, GROUP_WAIT), "there is none");
    }

    #[tokio::test]
    async fn a_batch_that_does_not_come_ends_the_wait_and_gives_its_room_back() {
        let (_, checks) = checks(Says::Right((0..12).map(filled).collect()));
        let (header, wanted) = (header(), hashes(&[filled(1)]));
        let other = checks.coming(HELD_MAX - 1).await;
        let mut waits = std::pin::pin!(together(&checks, filled(1), wanted, &header));
        assert!(futures::poll!(&mut waits).is_pending());
        assert!(futures::poll!(std::pin::pin!(checks.coming(1))).is_pending(), "no room");
        drop(other);
        assert!(waits.await.unwrap());
        assert_eq!((checks.room.available_permits(), checks.shared.queue().coming), (HELD_MAX, 0));
    }

    #[test]
    fn a_group_holds_no_more_blobs_than_it_may() {
        let waiting = |blobs: usize| {
            let (answer, answered) = oneshot::channel();
            let of = vec![filled(1); blobs];
            (
                Waiting { blobs: of, wanted: Vec::new(), commitments: Vec::new(), since: Instant::now(), answer },
                answered,
            )
        };
        let (mut queue, _answers): (Vec<_>, Vec<_>) = [6; 12].into_iter().map(waiting).unzip();
        assert_eq!(take_group(&mut queue).len(), 10, "60 blobs of 64");
        assert_eq!(take_group(&mut queue).len(), 2);
        assert!(take_group(&mut queue).is_empty());
    }
}
