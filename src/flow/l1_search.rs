//! Logs that lie far from what is being read: an earlier commit of a batch, its revert further up, L1 messages below.
//!
//! L1's history is millions of blocks, and an endpoint may serve a few hundred of them at a time. So a search starts at
//! the likely place of its log and walks away from it. It gives what it finds as it finds it, and asks for no more than
//! its caller takes. A poll has limited time for searching. If the log is not found by then, or L1 cannot be asked any
//! more, the next poll continues from the block at which this one stopped (P4, P9). Not decided here: which of the logs
//! is the right one.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info};

use crate::decide::binding::BlobList;
use crate::decide::cursor::Walk;
use crate::decide::stall::{Cause, SearchAt, Stall};
use crate::flow::FlowError;
use crate::flow::ledger::Ledger;
use crate::flow::{Ports, Settings};
use crate::ports::{FoundLogs, L1Chain, Rows, Step};
use crate::types::{B256, BatchIndex, CommitEvent, L1Event, L1Number, LogPos, QueueIndex};

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sought {
    /// Commits of a batch, the newest first.
    Commits,
    /// Commits of a batch before the log at this place, the newest first.
    CommitsBefore(LogPos),
    /// Reverts of a batch after the log at this place, the oldest first.
    RevertsAfter(LogPos),
}

/// One search, as far as it came.
#[derive(Debug)]
struct Search {
    sought: Sought,
    index: BatchIndex,
    walk: Walk,
    found: Vec<L1Event>,
    /// What the first of them carried, if that was asked for.
    blobs: Vec<Option<BlobList>>,
}

/// The L1 messages that are looked for further back, as far as that came. What was found is stored already.
#[derive(Debug)]
struct MessageSearch {
    first: QueueIndex,
    walk: Walk,
}

/// The searches of a poll, and of the polls before it that ended on one.
pub(crate) struct L1Search {
    l1: Arc<dyn L1Chain>,
    rows: Arc<dyn Rows>,
    /// The first L1 block that is read when the database is new.
    start: L1Number,
    /// The first L1 block that can hold anything.
    origin: L1Number,
    /// At most so many blocks are asked for at a time.
    width: u64,
    /// Time that one poll may spend on looking through L1's history.
    time: Duration,
    /// The newest L1 block that is settled enough to read; none before the first look at L1.
    confirmed: Option<L1Number>,
    open: Vec<Search>,
    messages: Option<MessageSearch>,
    /// The last search did not reach its end yet: its time was over, or L1 could not be asked.
    under_way: bool,
    /// When this poll has searched for long enough; none before its first window.
    until: Option<Instant>,
    /// The transaction of an earlier commit was asked for in this poll.
    has_tried: bool,
}

impl L1Search {
    /// Nothing looked for yet.
    pub(crate) fn new(ports: &Ports, settings: &Settings) -> Self {
        Self {
            l1: ports.l1.clone(),
            rows: ports.progress.clone(),
            start: settings.start,
            origin: settings.origin,
            width: settings.fetch_range,
            time: settings.search_time,
            confirmed: None,
            open: Vec::new(),
            messages: None,
            under_way: false,
            until: None,
            has_tried: false,
        }
    }

    /// L1 is settled up to `confirmed`.
    pub(crate) const fn confirmed_is(&mut self, confirmed: L1Number) {
        self.confirmed = Some(confirmed);
    }

    /// A poll begins. What was found is kept only for a search that is still under way: L1 may have changed.
    pub(crate) fn begin(&mut self) {
        if !self.under_way {
            self.forget();
        }
        self.until = None;
        self.has_tried = false;
    }

    /// A poll ended without an error. A search that was under way and was not continued is no longer wanted. A poll
    /// that failed before it came to its search says nothing about it (P4).
    pub(crate) fn poll_went_well(&mut self) {
        if self.until.is_none() {
            self.forget();
        }
    }

    /// L1 changed, or another endpoint is asked: what was found no longer counts.
    pub(crate) fn forget(&mut self) {
        self.open.clear();
        self.messages = None;
        self.under_way = false;
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

    /// Whether L1 may be asked for more in this poll; the first piece may always be asked for. From then on a search is
    /// under way, until it reports its end.
    fn may_go_on(&mut self) -> bool {
        self.under_way = true;
        match self.until {
            None => self.until = Some(Instant::now() + self.time),
            Some(until) if Instant::now() >= until => return false,
            Some(_) => {}
        }
        true
    }

    fn of(&mut self, sought: Sought, index: BatchIndex) -> Option<&mut Search> {
        self.open.iter_mut().find(|s| s.sought == sought && s.index == index)
    }

    /// What the `nth` commit that was found carried, if that is known.
    fn blobs(&mut self, sought: Sought, index: BatchIndex, nth: usize) -> Option<Option<BlobList>> {
        self.of(sought, index)?.blobs.get(nth).cloned()
    }

    /// Whether the transaction of one more commit may be asked for in this poll; the first one may always be. What was
    /// found is kept until [`tried`](Self::tried) reports the answer.
    fn may_try(&mut self) -> bool {
        let is_first = !std::mem::replace(&mut self.has_tried, true);
        self.may_go_on() || is_first
    }

    /// The next commit that was found carried `blobs`.
    fn tried(&mut self, sought: Sought, index: BatchIndex, blobs: Option<BlobList>) {
        if let Some(search) = self.of(sought, index) {
            search.blobs.push(blobs);
        }
        self.ended();
    }

    /// The search that was under way reached its end.
    fn ended(&mut self) {
        self.under_way = false;
    }

    /// The `nth` log of batch `index` that is `sought` in L1 blocks `low..=high`, counted from zero; none if there are
    /// not so many.
    ///
    /// # Errors
    /// When L1 cannot be asked, and `searching_l1` when this poll has searched for long enough.
    pub(crate) async fn nth_log(
        &mut self,
        sought: Sought,
        index: BatchIndex,
        (low, high): (L1Number, L1Number),
        nth: usize,
    ) -> Result<Option<L1Event>, FlowError> {
        let upwards = matches!(sought, Sought::RevertsAfter(..));
        let walk = Walk::new(low, high, upwards, self.width);
        loop {
            let place = self.place(sought, index, walk);
            let Some(search) = self.open.get(place) else { return Ok(None) };
            if let Some(found) = search.found.get(nth).cloned() {
                self.ended();
                return Ok(Some(found));
            }
            let Some(window) = search.walk.window() else {
                self.ended();
                return Ok(None);
            };
            if !self.may_go_on() {
                let search = SearchAt::Logs { batch: index, at: window.from };
                return Err(FlowError::Stall(Stall::at(index, Cause::Searching(search))));
            }
            debug!(batch = index.get(), from = window.from.get(), to = window.to.get(), "searching L1");
            let l1 = &self.l1;
            let FoundLogs { events: mut logs, reached } = match sought {
                Sought::Commits | Sought::CommitsBefore(..) => l1.commits_of(index, window.from, window.to).await?,
                Sought::RevertsAfter(..) => l1.reverts_of(index, window.from, window.to).await?,
            };
            logs.retain(|log| match sought {
                Sought::Commits => true,
                Sought::CommitsBefore(pos) => log.pos() < pos,
                Sought::RevertsAfter(pos) => log.pos() > pos,
            });
            if !upwards {
                logs.reverse();
            }
            let Some(search) = self.open.get_mut(place) else { return Ok(None) };
            search.found.extend(logs);
            search.walk.advance(reached);
        }
    }

    /// Looks further back on L1 for messages from `first` on that are not stored: a database that started in the middle
    /// (issue: L1 messages). Goes down from the cursor, stores what it finds, and stops after `first` or at the first
    /// block that can hold any.
    ///
    /// # Errors
    /// As [`L1Search::nth_log`]; what was found until then is stored, and the next call continues from there.
    pub(crate) async fn scan_back(
        &mut self,
        ledger: &mut Ledger,
        first: QueueIndex,
        count: u64,
    ) -> Result<(), FlowError> {
        let high = ledger.cursor().map_or(self.start, |cursor| cursor.block.number);
        loop {
            let open = self.messages.take().filter(|search| search.first == first);
            let mut search = open.unwrap_or_else(|| {
                info!(first = first.get(), count, below = high.get(), "looking further back on L1 for messages");
                MessageSearch { first, walk: Walk::new(self.origin, high, false, self.width) }
            });
            let Some(window) = search.walk.window() else {
                self.ended();
                return Ok(());
            };
            let goes_on = self.may_go_on();
            let answer = match goes_on {
                true => self.l1.queued(window.from, window.to).await.map_err(FlowError::from),
                false => {
                    Err(FlowError::Stall(Stall::new(Cause::Searching(SearchAt::Messages { first, at: window.to }))))
                }
            };
            let FoundLogs { events, reached } = match answer {
                Ok(found) => found,
                Err(error) => {
                    self.messages = Some(search);
                    return Err(error);
                }
            };
            debug!(below = reached.get(), "still looking for messages");
            let messages: Vec<_> = events.into_iter().filter_map(L1Event::into_message).collect();
            let found = messages.iter().any(|(_, m)| m.index <= first);
            if !messages.is_empty()
                && let Err(error) = ledger.commit(&Step { messages, ..Step::default() }).await
            {
                self.messages = Some(search);
                return Err(error.into());
            }
            if found {
                self.ended();
                return Ok(());
            }
            search.walk.advance(reached);
            self.messages = Some(search);
        }
    }

    /// The first revert of batch `index` after the log at `after`, up to block `until`.
    pub(crate) async fn revert_after(
        &mut self,
        index: BatchIndex,
        after: LogPos,
        until: L1Number,
    ) -> Result<Option<L1Event>, FlowError> {
        self.nth_log(Sought::RevertsAfter(after), index, (after.block, until), 0).await
    }

    /// The newest commit of `index` that stands on L1, within what is confirmed.
    ///
    /// # Errors
    /// As [`L1Search::nth_log`].
    pub(crate) async fn standing_commit(&mut self, index: BatchIndex) -> Result<Option<CommitEvent>, FlowError> {
        let confirmed = self.confirmed.unwrap_or(self.start);
        let hashes = self.l1.committed_hashes(&[index], None).await?;
        let Some(standing) = hashes.first().copied().filter(|hash| !hash.is_zero()) else { return Ok(None) };
        // Nothing was committed below the batch before it.
        let before = self.rows.batch(index.minus(1)).await?.filter(|b| b.index < index);
        let low = before.map_or(self.origin, |b| b.l1.number);
        let mut nth = 0;
        while let Some(event) = self.nth_log(Sought::Commits, index, (low, confirmed), nth).await? {
            if let Some(commit) = event.as_commit().filter(|commit| commit.hash == standing) {
                return Ok(Some(commit));
            }
            nth += 1;
        }
        Ok(None)
    }

    /// A commit of `index` with `hash`, which the contract holds at block `high`, found by halving: at every block in
    /// between the contract says whether it held the batch by then. It takes one request for each halving of
    /// `low..=high`, and one for the log. None if the endpoints do not keep the contract's old states, or if the log
    /// is not where these say.
    ///
    /// # Errors
    /// When L1 cannot be asked for now.
    pub(crate) async fn commit_by_state(
        &self,
        (index, hash): (BatchIndex, B256),
        (mut low, mut high): (L1Number, L1Number),
    ) -> Result<Option<CommitEvent>, FlowError> {
        while low < high {
            let middle = low.plus(high.above(low) / 2);
            match self.l1.committed_hashes(&[index], Some(middle)).await {
                Ok(hashes) if hashes.first() == Some(&hash) => high = middle,
                Ok(_) => low = middle.plus(1),
                Err(error) if error.is_transient() => return Err(error.into()),
                Err(error) => {
                    debug!(%error, "L1 keeps no old state of the contract; looking through the logs");
                    return Ok(None);
                }
            }
        }
        self.commit_within((index, hash), (high, high)).await
    }

    /// The last commit of `index` with `hash` in the part of `low..=high` that one request reaches from above.
    ///
    /// # Errors
    /// When L1 cannot be asked.
    pub(crate) async fn commit_within(
        &self,
        (index, hash): (BatchIndex, B256),
        (low, high): (L1Number, L1Number),
    ) -> Result<Option<CommitEvent>, FlowError> {
        let found = self.l1.commits_of(index, low, high).await?;
        Ok(found.events.iter().rev().filter_map(L1Event::as_commit).find(|commit| commit.hash == hash))
    }

    /// The `nth` commit of the same batch before `commit`, the newest one counted as zero.
    ///
    /// # Errors
    /// As [`L1Search::nth_log`].
    pub(crate) async fn commit_before(
        &mut self,
        commit: &CommitEvent,
        nth: usize,
    ) -> Result<Option<L1Event>, FlowError> {
        let (sought, range) = (Sought::CommitsBefore(commit.pos()), (self.origin, commit.block.number));
        self.nth_log(sought, commit.index, range, nth).await
    }

    /// The blobs that the `nth` commit of the same batch before `commit` carried, `Some(None)` if it carried none; none
    /// if there are not so many commits. Every poll asks for one, and for more as long as it may search.
    ///
    /// # Errors
    /// As [`L1Search::nth_log`].
    pub(crate) async fn earlier_blobs(
        &mut self,
        commit: &CommitEvent,
        nth: usize,
    ) -> Result<Option<Option<BlobList>>, FlowError> {
        let (sought, index) = (Sought::CommitsBefore(commit.pos()), commit.index);
        if let Some(known) = self.blobs(sought, index, nth) {
            return Ok(Some(known));
        }
        let Some(earlier) = self.commit_before(commit, nth).await? else { return Ok(None) };
        if !self.may_try() {
            let search = SearchAt::Blobs { batch: index, at: earlier.block };
            return Err(FlowError::Stall(Stall::at(index, Cause::Searching(search))));
        }
        let found = self.l1.transaction(earlier.block, earlier.tx_index).await?;
        let blobs = found.map(|found| BlobList { hashes: found.blob_hashes, block: earlier.block });
        let blobs = blobs.filter(|list| !list.hashes.is_empty());
        self.tried(sought, index, blobs.clone());
        Ok(Some(blobs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::testing::World;
    use crate::types::{B256, L1EventKind};

    const ALL: (L1Number, L1Number) = (L1Number::new(0), L1Number::new(30));

    /// A network whose L1 serves three blocks of logs at a time. Batch 3 was committed in block 8, and in block 20
    /// again.
    async fn narrow(time: Duration) -> (World, L1Search) {
        let mut world = World::recorded().await;
        {
            let mut l1 = world.l1.now();
            l1.log(20, L1EventKind::Commit { index: 3.into(), hash: B256::repeat_byte(3) });
            l1.reach = 3;
        }
        world.settings.fetch_range = 3;
        world.settings.search_time = time;
        let mut search = L1Search::new(&world.ports, &world.settings);
        search.begin();
        (world, search)
    }

    async fn commit_in(search: &mut L1Search, nth: usize) -> Result<Option<u64>, FlowError> {
        let found = search.nth_log(Sought::Commits, 3.into(), ALL, nth).await?;
        Ok(found.map(|event| event.block.number.get()))
    }

    #[tokio::test]
    async fn commits_are_given_newest_first_and_the_older_ones_are_asked_for_only_where_they_are_taken() {
        let (world, mut search) = narrow(Duration::from_secs(20)).await;
        assert_eq!(commit_in(&mut search, 0).await.unwrap(), Some(20));
        assert!(world.l1.now().asked.iter().all(|(from, _)| *from > 17), "{:?}", world.l1.now().asked);
        assert_eq!(commit_in(&mut search, 1).await.unwrap(), Some(8));
        assert_eq!(commit_in(&mut search, 2).await.unwrap(), None);
        // What was found in this poll is not asked for again; in the next one it may be gone.
        let asked = world.l1.now().asked.len();
        assert_eq!(commit_in(&mut search, 0).await.unwrap(), Some(20));
        assert_eq!(world.l1.now().asked.len(), asked);
        world.l1.now().events.retain(|event| event.block.number.get() != 20);
        search.begin();
        assert_eq!(commit_in(&mut search, 0).await.unwrap(), Some(8));
    }

    #[tokio::test]
    async fn p4_a_search_that_used_up_its_time_goes_on_in_the_next_poll() {
        let (world, mut search) = narrow(Duration::ZERO).await;
        let mut polls = 1;
        let found = loop {
            match commit_in(&mut search, 1).await {
                Ok(found) => break found,
                Err(error) => assert!(matches!(error.stall().cause, Cause::Searching(SearchAt::Logs { .. }))),
            }
            search.begin();
            polls += 1;
            assert!(polls < 30, "{:?}", world.l1.now().asked);
        };
        assert_eq!(found, Some(8));
        let asked = world.l1.now().asked.clone();
        assert_eq!(asked.len(), polls, "one piece in every poll");
        assert!(asked.windows(2).all(|two| two[1].1 < two[0].0), "nothing twice: {asked:?}");
    }

    #[tokio::test]
    async fn older_l1_messages_are_stored_and_the_scan_stops_below_the_first_one() {
        let (mut world, mut search) = narrow(Duration::from_secs(20)).await;
        let block = world.l1.now().at(30);
        let cursor = Some(crate::types::Cursor { block, log_index: None });
        world.store(Step { cursor, ..Step::default() }).await;
        search.scan_back(&mut world.ledger, 1.into(), 3).await.unwrap();
        let stored = world.ports.progress.messages(0.into(), 9).await.unwrap();
        assert_eq!(stored.iter().map(|message| message.index.get()).collect::<Vec<_>>(), [1, 2, 3]);
        // Message 1 lies in block 7, message 0 in block 4.
        assert_eq!(world.l1.now().asked.last(), Some(&(7, 9)));
    }
}
