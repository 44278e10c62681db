//! Logs of one batch that lie far from what is being read: an earlier commit, a revert further up.
//!
//! L1's history is millions of blocks, and an endpoint may serve a few hundred of them at a time. So a search walks
//! away from where its log is likely to be, gives what it finds as it finds it, and asks for no more than its caller
//! takes. A pull has a time for searching; what is not found by then is looked for further in the next pull, from where
//! this one stopped (P9). Not decided here: which of the logs is the right one.

use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use crate::decide::cursor::Walk;
use crate::decide::stall::{Reason, Stall};
use crate::flow::FlowError;
use crate::flow::worker::Worker;
use crate::types::{BatchIndex, L1Event, L1Number};

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sought {
    /// Commits of a batch, the newest first.
    Commits,
    /// Commits of a batch before the log at this place, the newest first.
    CommitsBefore(L1Number, u64),
    /// Reverts of a batch after the log at this place, the oldest first.
    RevertsAfter(L1Number, u64),
}

/// One search, as far as it came.
#[derive(Debug)]
struct Search {
    sought: Sought,
    index: BatchIndex,
    walk: Walk,
    found: Vec<L1Event>,
}

/// The searches of a pull, and of the pulls before it that ended on one.
#[derive(Debug, Default)]
pub(crate) struct Searches {
    open: Vec<Search>,
    /// When this pull has searched for long enough; none before its first window.
    until: Option<Instant>,
    ran_out: bool,
}

impl Searches {
    /// A pull begins. What was found is kept only for a search that is still under way: L1 may have changed.
    pub(crate) fn begin(&mut self) {
        if !self.ran_out {
            self.open.clear();
        }
        self.ran_out = false;
        self.until = None;
    }

    /// L1 changed, or another endpoint is asked: what was found counts no more.
    pub(crate) fn forget(&mut self) {
        self.open.clear();
    }

    fn place(&mut self, sought: Sought, index: BatchIndex, walk: Walk) -> usize {
        match self.open.iter().position(|s| s.sought == sought && s.index == index) {
            Some(place) => place,
            None => {
                self.open.push(Search { sought, index, walk, found: Vec::new() });
                self.open.len() - 1
            }
        }
    }

    /// Whether another window may be asked for in this pull: the first one always.
    fn may_go_on(&mut self, time: Duration) -> bool {
        match self.until {
            None => self.until = Some(Instant::now() + time),
            Some(until) => self.ran_out = Instant::now() >= until,
        }
        !self.ran_out
    }
}

impl Worker {
    /// The `nth` log of batch `index` that is `sought` in L1 blocks `low..=high`, counted from zero; none where there
    /// are not so many.
    ///
    /// # Errors
    /// When L1 cannot be asked, and `searching_l1` when this pull has searched for long enough.
    pub(crate) async fn nth_log(
        &mut self,
        sought: Sought,
        index: BatchIndex,
        (low, high): (L1Number, L1Number),
        nth: usize,
    ) -> Result<Option<L1Event>, FlowError> {
        let upwards = matches!(sought, Sought::RevertsAfter(..));
        let walk = Walk::new(low, high, upwards, self.settings.fetch_range);
        loop {
            let place = self.searches.place(sought, index, walk);
            let Some(search) = self.searches.open.get(place) else { return Ok(None) };
            if let Some(found) = search.found.get(nth) {
                return Ok(Some(found.clone()));
            }
            let Some(window) = search.walk.window() else { return Ok(None) };
            if !self.searches.may_go_on(self.settings.search_time) {
                let detail = format!("looking through L1 for logs of batch {index}, at block {}", window.from);
                return Err(FlowError::Stall(Stall::at(index, Reason::SearchingL1, detail)));
            }
            debug!(batch = index.get(), from = window.from.get(), to = window.to.get(), "searching L1");
            let l1 = &self.ports.l1;
            let mut logs = match sought {
                Sought::Commits | Sought::CommitsBefore(..) => l1.commits_of(index, window.from, window.to).await?,
                Sought::RevertsAfter(..) => l1.reverts_of(index, window.from, window.to).await?,
            };
            logs.retain(|log| match sought {
                Sought::Commits => true,
                Sought::CommitsBefore(block, log_index) => (log.block.number, log.log_index) < (block, log_index),
                Sought::RevertsAfter(block, log_index) => (log.block.number, log.log_index) > (block, log_index),
            });
            if !upwards {
                logs.reverse();
            }
            let Some(search) = self.searches.open.get_mut(place) else { return Ok(None) };
            search.found.extend(logs);
            search.walk.advance();
        }
    }

    /// The first revert of batch `index` behind the log at `log_index` of L1 block `block`, up to block `until`.
    pub(crate) async fn revert_after(
        &mut self,
        index: BatchIndex,
        (block, log_index): (L1Number, u64),
        until: L1Number,
    ) -> Result<Option<L1Event>, FlowError> {
        self.nth_log(Sought::RevertsAfter(block, log_index), index, (block, until), 0).await
    }
}
