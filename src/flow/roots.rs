//! The roots at a batch's last block, against calldata (P1).
//!
//! The state root is in the header. The withdrawal root is read from the contract's state; if the node has pruned that,
//! the last AppendMessage log at or below the block carries it. For the first batch of a database that log may lie
//! anywhere below: it is looked for piece by piece, for a limited time in every poll, and what was found is kept.

use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use crate::decide::recheck;
use crate::decide::roots::{self, EMPTY_WITHDRAWAL_ROOT, Roots as Verdict, RootsFacts, WithdrawalRoot};
use crate::decide::stall::{Cause, Stall};
use crate::error::{PortError, PortErrorKind};
use crate::flow::gather::BatchContext;
use crate::flow::{Decided, FlowError};
use crate::ports::{L2Reader, MessageRoot, PortResult};
use crate::types::{B256, BatchIndex, L2Header, L2Number, L2Ref, Outcome};

/// The first piece of a search, in blocks: the last message rarely lies far off.
const FIRST_PIECE: u64 = 1_000;
/// Pieces double up to this. The cost of one piece, an endpoint's narrow limit included, bounds the time by which a
/// search can overrun.
const LARGEST_PIECE: u64 = 16_000;

/// The check of roots, with the present state of its search for the last message below a batch.
#[derive(Debug, Default)]
pub(crate) struct Roots {
    search: Option<Search>,
}

/// A search is kept while the block that it began at is the one asked about: its hash says which chain was searched.
#[derive(Debug)]
struct Search {
    below: L2Ref,
    /// The highest block that was not looked at; none when all were.
    next: Option<L2Number>,
    piece: u64,
    found: Option<B256>,
    /// When it reached its end.
    ended: Option<Duration>,
}

impl Search {
    const fn new(below: L2Ref) -> Self {
        Self { below, next: Some(below.number), piece: FIRST_PIECE, found: None, ended: None }
    }

    /// Whether it is still valid for `below` at `now`. Its result counts for a limited time: the node may have left out
    /// a log.
    fn is_good(&self, below: L2Ref, now: Duration) -> bool {
        self.below == below && self.ended.is_none_or(|ended| !recheck::is_due(now.saturating_sub(ended)))
    }
}

/// What is known of the last message at or below a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LastMessage {
    /// It left this root.
    Root(B256),
    /// The node has no log of any.
    NoLog,
    /// The next poll continues the search, from this block down.
    Searching(L2Number),
}

/// A batch whose blocks the node has, and what L1 says of its roots.
pub(crate) struct Asked {
    pub(crate) index: BatchIndex,
    /// Its first block.
    pub(crate) first: L2Number,
    /// The block below that.
    pub(crate) anchor: L2Ref,
    /// Its last block.
    pub(crate) last: L2Header,
    /// Calldata's `postStateRoot`.
    pub(crate) state_root: B256,
    /// Calldata's `withdrawalRoot`.
    pub(crate) withdrawal_root: B256,
    /// The withdrawal root at the anchor, if the batch before was verified.
    pub(crate) verified_below: Option<B256>,
    /// What the node says of the withdrawal root in the state of that very last block, if it was asked already.
    pub(crate) known: Option<MessageRoot>,
}

impl Asked {
    /// What is asked of `batch`, whose last local block is `last`, with what is `known` of the withdrawal root in its
    /// state.
    pub(crate) fn of(batch: &BatchContext<'_>, last: &L2Header, known: Option<MessageRoot>) -> Self {
        let header = &batch.bound.outline.header;
        Self {
            index: batch.index(),
            first: batch.first,
            anchor: batch.anchor.l2_ref(),
            last: *last,
            state_root: header.post_state_root,
            withdrawal_root: header.withdrawal_root,
            verified_below: batch.before.filter(|b| b.outcome == Outcome::Verified).map(|b| b.withdrawal_root),
            known,
        }
    }
}

impl Roots {
    /// Checks state root and withdrawal root at the batch's last block (P1). A search that is needed runs for `time`
    /// and continues at the next call; `now` is the poll's time.
    pub(crate) async fn check(
        &mut self,
        l2: &dyn L2Reader,
        asked: &Asked,
        time: Duration,
        now: Duration,
    ) -> Decided<()> {
        let mut facts = RootsFacts {
            expected_state: asked.state_root,
            actual_state: asked.last.state_root,
            expected_withdrawal: asked.withdrawal_root,
            actual_withdrawal: WithdrawalRoot::Unknown,
        };
        let mut searching = None;
        // A state root that differs is reported even if the withdrawal root cannot be asked for.
        if roots::compare(&facts) == Verdict::Unknown {
            (facts.actual_withdrawal, searching) = self.withdrawal_root(l2, asked, time, now).await.map_err(gone)?;
        }
        let number = asked.last.number;
        let cause = match roots::compare(&facts) {
            Verdict::Equal => return Ok(()),
            Verdict::StateDiffers { expected, actual } => Cause::StateRoot { number, expected, actual },
            Verdict::WithdrawalDiffers { expected, actual } => Cause::WithdrawalRoot { number, expected, actual },
            Verdict::Unknown => match searching {
                Some(at) => Cause::SearchingRoot { below: asked.first, at },
                None => Cause::RootUnknown(number),
            },
        };
        Err(Stall::at(asked.index, cause).into())
    }

    /// The withdrawal root at the last block: from the state, or, if that is pruned, from the logs: the last
    /// AppendMessage at or below the block carries it, and a batch without one keeps the root below it. The second
    /// value is the block that an unfinished search has reached.
    async fn withdrawal_root(
        &mut self,
        l2: &dyn L2Reader,
        asked: &Asked,
        time: Duration,
        now: Duration,
    ) -> PortResult<(WithdrawalRoot, Option<L2Number>)> {
        let last = asked.last.l2_ref();
        let said = match asked.known {
            Some(said) => said,
            None => l2.message_root(last).await?,
        };
        if let MessageRoot::Root(root) = said {
            return Ok((WithdrawalRoot::State(root), None));
        }
        let appended = l2.last_appended_root(asked.first, last.number, last).await?;
        if let Some(root) = appended.or(asked.verified_below) {
            return Ok((WithdrawalRoot::Logs(root), None));
        }
        Ok(match self.search(l2, asked.anchor, Instant::now() + time, now).await? {
            LastMessage::Root(root) => (WithdrawalRoot::Logs(root), None),
            // No message was ever appended, or the node has no such old logs: only the first agrees with an empty tree.
            LastMessage::NoLog => (WithdrawalRoot::Logs(EMPTY_WITHDRAWAL_ROOT), None),
            LastMessage::Searching(at) => (WithdrawalRoot::Unknown, Some(at)),
        })
    }

    /// Continues the search at or below `below` until `until`, by one piece at least.
    async fn search(
        &mut self,
        l2: &dyn L2Reader,
        below: L2Ref,
        until: Instant,
        now: Duration,
    ) -> PortResult<LastMessage> {
        let search = match &mut self.search {
            Some(search) if search.is_good(below, now) => search,
            other => other.insert(Search::new(below)),
        };
        loop {
            if let Some(root) = search.found {
                search.ended.get_or_insert(now);
                return Ok(LastMessage::Root(root));
            }
            let Some(to) = search.next else {
                search.ended.get_or_insert(now);
                return Ok(LastMessage::NoLog);
            };
            let from = to.minus(search.piece.saturating_sub(1));
            debug!(from = from.get(), to = to.get(), "looking for the last message");
            search.found = l2.last_appended_root(from, to, below).await?;
            search.next = (from.get() > 0).then(|| from.minus(1));
            search.piece = search.piece.saturating_mul(2).min(LARGEST_PIECE);
            if let (None, Some(next), true) = (search.found, search.next, Instant::now() >= until) {
                return Ok(LastMessage::Searching(next));
            }
        }
    }
}

/// A block is missing although it was read before: the chain changed under way.
fn gone(error: PortError) -> FlowError {
    match error.kind {
        PortErrorKind::NotFound => FlowError::local_changed(error.to_string()),
        _ => FlowError::Port(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;

    use super::*;
    use crate::flow::testing::{World, cause_of};
    use crate::types::{L2Block, L2Snapshot};

    /// What is asked of batch 1, with L1's own roots.
    async fn asked(world: &World) -> Asked {
        let last = world.recorded.at(12).unwrap();
        Asked {
            index: 1.into(),
            first: 1.into(),
            anchor: world.l2(0),
            last: last.header,
            state_root: last.header.state_root,
            withdrawal_root: last.withdrawal_root.unwrap(),
            verified_below: None,
            known: None,
        }
    }

    async fn cause(world: &World, asked: &Asked) -> Option<Cause> {
        let end = Roots::default().check(&world.node, asked, Duration::ZERO, Duration::ZERO).await;
        cause_of(end)
    }

    #[tokio::test]
    async fn p1_both_roots_must_be_the_calldatas() {
        let world = World::recorded().await;
        let other = B256::repeat_byte(1);
        assert_eq!(cause(&world, &asked(&world).await).await, None);
        let state = Asked { state_root: other, ..asked(&world).await };
        let actual = state.last.state_root;
        assert_eq!(cause(&world, &state).await, Some(Cause::StateRoot { number: 12.into(), expected: other, actual }));
        let withdrawal = Asked { withdrawal_root: other, ..asked(&world).await };
        let actual = asked(&world).await.withdrawal_root;
        let expected = Some(Cause::WithdrawalRoot { number: 12.into(), expected: other, actual });
        assert_eq!(cause(&world, &withdrawal).await, expected);
    }

    #[tokio::test]
    async fn p1_with_pruned_state_contradicting_logs_prove_nothing() {
        let world = World::recorded().await;
        world.node.node().moods.archive = false;
        world.node.node().restart();
        // The recording holds no log of a message: only the root of an empty tree agrees with that.
        let unknown = Asked { withdrawal_root: B256::repeat_byte(1), ..asked(&world).await };
        assert_eq!(cause(&world, &unknown).await, Some(Cause::RootUnknown(12.into())));
        let empty = Asked { withdrawal_root: EMPTY_WITHDRAWAL_ROOT, ..asked(&world).await };
        assert_eq!(cause(&world, &empty).await, None);
        let below = Asked { verified_below: Some(B256::repeat_byte(1)), ..unknown };
        assert_eq!(cause(&world, &below).await, None);
    }

    /// A node that has no state and one log of a message, in block `at` if any, and notes the ranges that it was asked
    /// for.
    struct OneLog {
        at: Option<(u64, B256)>,
        asked: Mutex<Vec<(u64, u64)>>,
    }

    #[async_trait]
    impl L2Reader for OneLog {
        async fn snapshot(&self) -> PortResult<L2Snapshot> {
            unreachable!("roots ask for no snapshot")
        }

        async fn header(&self, _: L2Number) -> PortResult<Option<L2Header>> {
            unreachable!("roots ask for no header")
        }

        async fn blocks(&self, _: L2Number, _: L2Number) -> PortResult<Vec<L2Block>> {
            unreachable!("roots ask for no blocks")
        }

        async fn message_root(&self, _: L2Ref) -> PortResult<MessageRoot> {
            Ok(MessageRoot::Pruned)
        }

        async fn last_appended_root(&self, first: L2Number, last: L2Number, _: L2Ref) -> PortResult<Option<B256>> {
            self.asked.lock().unwrap().push((first.get(), last.get()));
            let inside = |(at, _): &(u64, B256)| (first.get()..=last.get()).contains(at);
            Ok(self.at.filter(inside).map(|(_, root)| root))
        }
    }

    #[tokio::test]
    async fn p4_the_last_message_is_looked_for_piece_by_piece_over_polls_and_what_was_found_is_kept() {
        let world = World::recorded().await;
        let root = B256::repeat_byte(1);
        let anchor = L2Ref { number: 50_000.into(), hash: B256::repeat_byte(2) };
        let asked = asked(&world).await;
        let last = L2Header { number: 50_012.into(), ..asked.last };
        let asked = Asked { first: 50_001.into(), anchor, last, withdrawal_root: root, ..asked };
        let node = OneLog { at: Some((30_000, root)), asked: Mutex::default() };
        let mut roots = Roots::default();
        let mut checks = Vec::new();
        for now in 0..6 {
            checks.push(cause_of(roots.check(&node, &asked, Duration::ZERO, Duration::from_secs(now)).await));
        }
        let below = |at: u64| Some(Cause::SearchingRoot { below: 50_001.into(), at: at.into() });
        assert_eq!(checks, [below(49_000), below(47_000), below(43_000), below(35_000), None, None]);
        let pieces: Vec<_> = node.asked.lock().unwrap().iter().copied().filter(|(_, last)| *last <= 50_000).collect();
        let expected = [(49_001, 50_000), (47_001, 49_000), (43_001, 47_000), (35_001, 43_000), (19_001, 35_000)];
        assert_eq!(pieces, expected.map(|(first, last): (u64, u64)| (first, last)));
        // Another chain below the batch is another search.
        let other = Asked { anchor: L2Ref { hash: B256::repeat_byte(3), ..anchor }, ..asked };
        let end = cause_of(roots.check(&node, &other, Duration::ZERO, Duration::from_secs(6)).await);
        assert_eq!(end, below(49_000));
    }
}
