//! Logs that lie far from what is being read: an earlier commit of a batch, its revert further up, L1 messages below.
//!
//! L1's history is millions of blocks, and an endpoint may serve a few hundred of them at a time. So a search walks
//! away from where its log is likely to be, gives what it finds as it finds it, and asks for no more than its caller
//! takes. A pull has a time for searching; what is not found by then, or by the time that L1 cannot be asked any more, is
//! looked for further in the next pull, from where this one stopped (P4, P9). Not decided here: which of the logs is the
//! right one.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info};

use crate::decide::cursor::Walk;
use crate::decide::stall::{Reason, Stall};
use crate::flow::FlowError;
use crate::flow::commit::BlobList;
use crate::flow::worker::Worker;
use crate::ports::FoundLogs;
use crate::types::{BatchIndex, L1Event, L1Number, QueueIndex};

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
    /// What the first of them carried, where that was asked for.
    blobs: Vec<Option<BlobList>>,
}

/// The L1 messages that are looked for further back, as far as that came. What was found is stored already.
#[derive(Debug)]
struct MessageSearch {
    first: QueueIndex,
    walk: Walk,
}

/// The searches of a pull, and of the pulls before it that ended on one.
#[derive(Debug, Default)]
pub(crate) struct Searches {
    open: Vec<Search>,
    messages: Option<MessageSearch>,
    /// The last search did not come to its end yet: by its time, or by an L1 that could not be asked.
    under_way: bool,
    /// When this pull has searched for long enough; none before its first window.
    until: Option<Instant>,
    /// The transaction of an earlier commit was asked for in this pull.
    has_tried: bool,
}

impl Searches {
    /// A pull begins. What was found is kept only for a search that is still under way: L1 may have changed.
    pub(crate) fn begin(&mut self) {
        if !self.under_way {
            self.forget();
        }
        self.under_way = false;
        self.until = None;
        self.has_tried = false;
    }

    /// L1 changed, or another endpoint is asked: what was found counts no more.
    pub(crate) fn forget(&mut self) {
        self.open.clear();
        self.messages = None;
    }

    fn place(&mut self, sought: Sought, index: BatchIndex, walk: Walk) -> usize {
        match self.open.iter().position(|s| s.sought == sought && s.index == index) {
            Some(place) => place,
            None => {
                self.open.push(Search { sought, index, walk, found: Vec::new(), blobs: Vec::new() });
                self.open.len() - 1
            }
        }
    }

    /// Whether L1 may be asked for more in this pull: for the first piece always. A search is under way from then on, until
    /// it says that it came to its end.
    fn may_go_on(&mut self, time: Duration) -> bool {
        self.under_way = true;
        match self.until {
            None => self.until = Some(Instant::now() + time),
            Some(until) if Instant::now() >= until => return false,
            Some(_) => {}
        }
        true
    }

    fn of(&mut self, sought: Sought, index: BatchIndex) -> Option<&mut Search> {
        self.open.iter_mut().find(|s| s.sought == sought && s.index == index)
    }

    /// What the `nth` commit that was found carried, where that is known.
    pub(crate) fn blobs(&mut self, sought: Sought, index: BatchIndex, nth: usize) -> Option<Option<BlobList>> {
        self.of(sought, index)?.blobs.get(nth).cloned()
    }

    /// Whether the transaction of one more commit may be asked for in this pull: of the first one always. What was found
    /// is kept until [`tried`](Self::tried) says that it was answered.
    pub(crate) fn may_try(&mut self, time: Duration) -> bool {
        let is_first = !std::mem::replace(&mut self.has_tried, true);
        self.may_go_on(time) || is_first
    }

    /// The next commit that was found carried `blobs`.
    pub(crate) fn tried(&mut self, sought: Sought, index: BatchIndex, blobs: Option<BlobList>) {
        if let Some(search) = self.of(sought, index) {
            search.blobs.push(blobs);
        }
        self.ended();
    }

    /// The search that was under way came to its end.
    fn ended(&mut self) {
        self.under_way = false;
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
            if let Some(found) = search.found.get(nth).cloned() {
                self.searches.ended();
                return Ok(Some(found));
            }
            let Some(window) = search.walk.window() else {
                self.searches.ended();
                return Ok(None);
            };
            if !self.searches.may_go_on(self.settings.search_time) {
                let detail = format!("looking through L1 for logs of batch {index}, at block {}", window.from);
                return Err(FlowError::Stall(Stall::at(index, Reason::SearchingL1, detail)));
            }
            debug!(batch = index.get(), from = window.from.get(), to = window.to.get(), "searching L1");
            let l1 = &self.ports.l1;
            let FoundLogs { events: mut logs, reached } = match sought {
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
            search.walk.advance(reached);
        }
    }

    /// Looks further back on L1 for messages from `first` on that are not stored: a database that started in the middle
    /// (issue: L1 messages). Goes down from the cursor, stores what it finds, and stops behind `first` or at the first block
    /// that can hold any.
    ///
    /// # Errors
    /// As [`Worker::nth_log`]; what was found until then is stored, and the next call goes on from there.
    pub(crate) async fn scan_back(&mut self, first: QueueIndex, count: u64) -> Result<(), FlowError> {
        let high = self.ledger.cursor().map_or(self.settings.start, |cursor| cursor.block.number);
        loop {
            let open = self.searches.messages.take().filter(|search| search.first == first);
            let mut search = open.unwrap_or_else(|| {
                info!(first = first.get(), count, below = high.get(), "looking further back on L1 for messages");
                MessageSearch { first, walk: Walk::new(self.settings.origin, high, false, self.settings.fetch_range) }
            });
            let Some(window) = search.walk.window() else {
                self.searches.ended();
                return Ok(());
            };
            let goes_on = self.searches.may_go_on(self.settings.search_time);
            let answer = match goes_on {
                true => self.ports.l1.queued(window.from, window.to).await.map_err(FlowError::from),
                false => {
                    let detail = format!("looking through L1 for message {first}, at block {}", window.to);
                    Err(FlowError::Stall(Stall::new(Reason::SearchingL1, detail)))
                }
            };
            let FoundLogs { events, reached } = match answer {
                Ok(found) => found,
                Err(error) => {
                    self.searches.messages = Some(search);
                    return Err(error);
                }
            };
            debug!(below = reached.get(), "still looking for messages");
            let mut messages: Vec<_> = events.into_iter().filter_map(L1Event::into_message).collect();
            let found = messages.iter().any(|(_, m)| m.index <= first);
            self.store_messages(&mut messages).await?;
            if found {
                self.searches.ended();
                return Ok(());
            }
            search.walk.advance(reached);
            self.searches.messages = Some(search);
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
