//! The roots at a batch's last block, against calldata (P1).
//!
//! The state root stands in the header. The withdrawal root is asked of the contract's state; where the node has pruned
//! that, the last AppendMessage log at or below the block carries it. For the first batch of a database that log may lie
//! anywhere below: it is looked for piece by piece, for a time in every pull, and what was found is kept.

use tokio::time::Instant;
use tracing::debug;

use crate::decide::roots::{self, EMPTY_WITHDRAWAL_ROOT, Roots, RootsFacts, WithdrawalRoot};
use crate::decide::stall::{Reason, Stall};
use crate::error::{PortError, PortErrorKind};
use crate::flow::FlowError;
use crate::flow::batch::Ground;
use crate::flow::worker::Worker;
use crate::ports::{L2Reader, MessageRoot, PortResult};
use crate::types::{B256, L2Header, L2Number, L2Ref, Outcome};

/// The first piece of a search, in blocks: the last message rarely lies far off.
const FIRST_PIECE: u64 = 1_000;
/// Pieces double up to this: what one piece costs, an endpoint's narrow limit included, bounds the time that a search can
/// overrun.
const LARGEST_PIECE: u64 = 16_000;

/// The search for the last message at or below a block, as far as it came. Kept while that block is the one asked about:
/// its hash says which chain was looked at.
#[derive(Debug, Default)]
pub(crate) struct RootSearch {
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    below: L2Ref,
    /// The highest block that was not looked at; none when all were.
    next: Option<L2Number>,
    piece: u64,
    found: Option<B256>,
}

/// What is known of the last message at or below a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LastMessage {
    /// It left this root.
    Root(B256),
    /// The node has no log of any.
    NoLog,
    /// It is looked for further in the next pull, from this block down.
    Searching(L2Number),
}

impl RootSearch {
    /// Goes on with the search at or below `below` until `until`, by one piece at least.
    async fn go_on(&mut self, l2: &dyn L2Reader, below: L2Ref, until: Instant) -> PortResult<LastMessage> {
        let fresh = || Open { below, next: Some(below.number), piece: FIRST_PIECE, found: None };
        let open = match &mut self.open {
            Some(open) if open.below == below => open,
            other => other.insert(fresh()),
        };
        loop {
            if let Some(root) = open.found {
                return Ok(LastMessage::Root(root));
            }
            let Some(to) = open.next else { return Ok(LastMessage::NoLog) };
            let from = to.minus(open.piece.saturating_sub(1));
            debug!(from = from.get(), to = to.get(), "looking for the last message");
            open.found = l2.last_appended_root(from, to, below).await?;
            open.next = (from.get() > 0).then(|| from.minus(1));
            open.piece = open.piece.saturating_mul(2).min(LARGEST_PIECE);
            if let (None, Some(next), true) = (open.found, open.next, Instant::now() >= until) {
                return Ok(LastMessage::Searching(next));
            }
        }
    }
}

impl Worker {
    /// Checks state root and withdrawal root at the batch's last block (P1).
    pub(crate) async fn check_roots(
        &mut self,
        ground: &Ground<'_>,
        last: &L2Header,
    ) -> Result<Option<Stall>, FlowError> {
        let header = &ground.bound.outline.header;
        let mut facts = RootsFacts {
            expected_state: header.post_state_root,
            actual_state: last.state_root,
            expected_withdrawal: header.withdrawal_root,
            actual_withdrawal: WithdrawalRoot::Unknown,
        };
        let mut searching = None;
        // A state root that differs is told also where the withdrawal root cannot be asked for.
        if roots::compare(&facts) == Roots::Unknown {
            (facts.actual_withdrawal, searching) = self.withdrawal_root(ground, last).await?;
        }
        let index = ground.index();
        Ok(match roots::compare(&facts) {
            Roots::Equal => None,
            Roots::StateDiffers { expected, actual } => {
                let detail = format!("postStateRoot: L1 says {expected:?}, block {} has {actual:?}", last.number);
                Some(Stall::at(index, Reason::StateRoot, detail))
            }
            Roots::WithdrawalDiffers { expected, actual } => {
                let detail = format!("withdrawalRoot: L1 says {expected:?}, block {} has {actual:?}", last.number);
                Some(Stall::at(index, Reason::WithdrawalRoot, detail))
            }
            Roots::Unknown => {
                let detail = match searching {
                    Some(at) => format!("looking for the last message below block {}, at block {at}", ground.first),
                    None => format!(
                        "the node no longer has the state at block {}, and the logs that it has do not tell L1's \
                         withdrawal root",
                        last.number
                    ),
                };
                Some(Stall::at(index, Reason::RootsUnavailable, detail))
            }
        })
    }

    /// The withdrawal root at `last`: from the state, or where that is pruned from the logs: the last AppendMessage at or
    /// below the block carries it, and a batch without one keeps the root below it. With it the block at which a search
    /// stands that is not done.
    async fn withdrawal_root(
        &mut self,
        ground: &Ground<'_>,
        last: &L2Header,
    ) -> Result<(WithdrawalRoot, Option<L2Number>), FlowError> {
        let l2 = self.ports.l2.clone();
        if let MessageRoot::Root(root) = l2.message_root(last.l2_ref()).await.map_err(gone)? {
            return Ok((WithdrawalRoot::State(root), None));
        }
        let appended = l2.last_appended_root(ground.first, last.number, last.l2_ref()).await.map_err(gone)?;
        let verified = ground.before.filter(|b| b.outcome == Outcome::Verified).map(|b| b.withdrawal_root);
        if let Some(root) = appended.or(verified) {
            return Ok((WithdrawalRoot::Logs(root), None));
        }
        let until = Instant::now() + self.settings.search_time;
        let found = self.root_search.go_on(l2.as_ref(), ground.anchor.l2_ref(), until).await.map_err(gone)?;
        Ok(match found {
            LastMessage::Root(root) => (WithdrawalRoot::Logs(root), None),
            // No message was ever appended, or the node has no such old logs: only the first agrees with an empty tree.
            LastMessage::NoLog => (WithdrawalRoot::Logs(EMPTY_WITHDRAWAL_ROOT), None),
            LastMessage::Searching(at) => (WithdrawalRoot::Unknown, Some(at)),
        })
    }
}

/// A block that is not there although it was read before: the chain changed under way.
fn gone(error: PortError) -> FlowError {
    match error.kind {
        PortErrorKind::NotFound => FlowError::local_changed(error.to_string()),
        _ => FlowError::Port(error),
    }
}
