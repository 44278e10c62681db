//! Rebuilt blobs against L1's versioned hashes: one by one, or several batches' blobs with one commitment.
//!
//! Decided here: which blobs are checked together, and when a beacon node is asked for commitments. No group waits to
//! be filled: it holds what came in while the cores were busy, so a worker that has caught up never waits.
//! `codec/aggregate.rs` decides whether a group is equal. A group that is not, for any reason, is checked blob by blob,
//! so that no verdict is weaker than that check (docs/aggregated-check.md).

use std::num::NonZeroU128;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::RngCore;
use rand::rngs::OsRng;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{Semaphore, oneshot};
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
    /// None had them then, or the first question is under way.
    NotSince(Instant),
}

/// The blobs of one batch, and what L1 says of them.
struct Waiting {
    blobs: Vec<Blob>,
    wanted: Vec<B256>,
    commitments: Vec<[u8; 48]>,
    /// Gets the blobs back if the group is not equal.
    answer: oneshot::Sender<Result<(), Vec<Blob>>>,
}

/// The cores on which blobs are made and checked, and the batches that wait to be checked together.
pub(crate) struct BlobCheck {
    source: Arc<dyn BlobSource>,
    /// One permit for each core: the first request is served first.
    cores: Arc<Semaphore>,
    waiting: Mutex<Vec<Waiting>>,
    asking: Semaphore,
    offer: Mutex<Option<Offer>>,
}

impl BlobCheck {
    /// Commitments come from `source`.
    pub(crate) fn new(source: Arc<dyn BlobSource>) -> Self {
        Self::with_cores(source, std::thread::available_parallelism().map_or(1, usize::from))
    }

    fn with_cores(source: Arc<dyn BlobSource>, cores: usize) -> Self {
        let (cores, asking) = (Arc::new(Semaphore::new(cores)), Semaphore::new(BLOCKS_AT_ONCE));
        Self { source, cores, waiting: Mutex::default(), asking, offer: Mutex::default() }
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
    /// the L1 block `header` holds.
    ///
    /// # Errors
    /// When it was interrupted.
    pub(crate) async fn together(
        &self,
        blobs: Vec<Blob>,
        wanted: Vec<B256>,
        header: &L1Header,
    ) -> Result<bool, FlowError> {
        if blobs.len() != wanted.len() || blobs.is_empty() || blobs.len() > GROUP_MAX {
            return self.one_by_one(blobs, wanted).await;
        }
        let Some(commitments) = self.commitments(header, &wanted).await else {
            return self.one_by_one(blobs, wanted).await;
        };
        let (answer, mut answered) = oneshot::channel();
        self.queue().push(Waiting { blobs, wanted: wanted.clone(), commitments, answer });
        // Groups are taken until ours was among them; another batch's task may have taken it along.
        let outcome = loop {
            match answered.try_recv() {
                Err(TryRecvError::Empty) if self.queue().is_empty() => break answered.await.ok(),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Closed) => break None,
                Ok(outcome) => break Some(outcome),
            }
            let core = self.cores.clone().acquire_owned().await;
            let group = take_group(&mut self.queue());
            let work = move || {
                check_group(group);
                drop(core);
            };
            interrupted(tokio::task::spawn_blocking(work).await)?;
        };
        match outcome {
            Some(Ok(())) => Ok(true),
            Some(Err(blobs)) => self.one_by_one(blobs, wanted).await,
            None => Err(FlowError::local_changed("the check of a group of blobs was interrupted")),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Commitments from the beacon block; none if no beacon node offers them, which is no error. While that is not
    /// known, one batch's task asks and the others check by themselves.
    async fn commitments(&self, header: &L1Header, wanted: &[B256]) -> Option<Vec<[u8; 48]>> {
        {
            let mut offer = self.offer();
            match *offer {
                Some(Offer::Made) => {}
                Some(Offer::NotSince(at)) if at.elapsed() < ASK_AGAIN => return None,
                Some(Offer::NotSince(_)) | None => *offer = Some(Offer::NotSince(Instant::now())),
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
        found
    }

    fn offer(&self) -> MutexGuard<'_, Option<Offer>> {
        self.offer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn interrupted<T>(outcome: Result<T, tokio::task::JoinError>) -> Result<T, FlowError> {
    outcome.map_err(|e| FlowError::local_changed(format!("re-encoding was interrupted: {e}")))
}

/// The first batches of the queue, as many as a group holds. Those whose task went away are dropped.
fn take_group(queue: &mut Vec<Waiting>) -> Vec<Waiting> {
    queue.retain(|waiting| !waiting.answer.is_closed());
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
        let checks = BlobCheck::with_cores(beacon.clone(), 2);
        *checks.offer() = Some(Offer::Made);
        (beacon, checks)
    }

    /// Twelve batches that all wait before the first is checked. The one numbered `wrong` claims the versioned hash of
    /// another blob.
    async fn verdicts(checks: &BlobCheck, wrong: Option<u8>) -> Vec<bool> {
        let (header, cores) = (header(), checks.cores.clone().acquire_many_owned(2).await.unwrap());
        let all = (0..12_u8).map(|n| {
            let wanted = hashes(&[filled(if wrong == Some(n) { 99 } else { n })]);
            checks.together(vec![filled(n)], wanted, &header)
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
        let all = (0..12_u8).map(|n| checks.together(vec![filled(n)], hashes(&[filled(n)]), &header));
        let mut all = std::pin::pin!(futures::future::join_all(all));
        assert!(futures::poll!(&mut all).is_pending());
        assert_eq!(checks.queue().len(), 12);
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
        let gone = checks.together(vec![filled(1)], wanted.clone(), &header);
        assert!(tokio::time::timeout(Duration::from_millis(50), gone).await.is_err());
        assert_eq!(checks.queue().len(), 1);
        drop(cores);
        assert!(checks.together(vec![filled(1)], wanted, &header).await.unwrap());
        assert!(checks.queue().is_empty());
    }

    #[test]
    fn a_group_holds_no_more_blobs_than_it_may() {
        let waiting = |blobs: usize| {
            let (answer, answered) = oneshot::channel();
            let of = vec![filled(1); blobs];
            (Waiting { blobs: of, wanted: Vec::new(), commitments: Vec::new(), answer }, answered)
        };
        let (mut queue, _answers): (Vec<_>, Vec<_>) = [6; 12].into_iter().map(waiting).unzip();
        assert_eq!(take_group(&mut queue).len(), 10, "60 blobs of 64");
        assert_eq!(take_group(&mut queue).len(), 2);
        assert!(take_group(&mut queue).is_empty());
    }
}
