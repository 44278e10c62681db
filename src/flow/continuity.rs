//! Is a commit or a revert missing, and where must reading go back to?
//!
//! Batch indices are contiguous, and a batch that L1 took back does not stand (P3). An endpoint that leaves out a log
//! makes a hole. The log is looked for and reading goes back to it; only a log that no endpoint has blocks.

use std::sync::Arc;

use tracing::warn;

use crate::decide::cursor::{self, Continuity as Verdict, Hidden};
use crate::decide::stall::{Cause, Gap, Stall};
use crate::flow::l1_range::cursor_before;
use crate::flow::l1_search::L1Search;
use crate::flow::l1_view::L1View;
use crate::flow::ledger::Ledger;
use crate::flow::{Decided, FlowError, Ports, Settings};
use crate::ports::{L1Chain, Rows, Step};
use crate::types::{BatchIndex, BatchRecord, CommitEvent, L1Number, L1Ref, LogPos};

/// Stored reverts that are looked through. There is one a month at the most.
const REVERTS_MAX: u32 = 10_000;

/// Reading went back to a log that was left out: the poll ends, and the next one begins at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) struct GoneBack;

/// A log that an endpoint left out.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LeftOut {
    Commit,
    Revert,
}

impl LeftOut {
    const fn left_out(self, batch: BatchIndex) -> Gap {
        match self {
            Self::Commit => Gap::CommitLeftOut(batch),
            Self::Revert => Gap::RevertLeftOut(batch),
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Revert => "revert",
        }
    }
}

/// What a commit stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// The standing batch that it continues; none if nothing is stored of it.
    Batch(Option<Box<BatchRecord>>),
    /// A log between them was left out.
    GoneBack,
}

impl From<GoneBack> for Before {
    fn from(_: GoneBack) -> Self {
        Self::GoneBack
    }
}

/// The logs that must exist, and the one to which reading went back.
pub(crate) struct Continuity {
    l1: Arc<dyn L1Chain>,
    rows: Arc<dyn Rows>,
    /// The first L1 block that is read when the database is new.
    start: L1Number,
    /// The log to which the cursor was sent back, until it is read.
    gone_back: Option<(L1Ref, u64)>,
}

impl Continuity {
    /// Gone back to nothing yet.
    pub(crate) fn new(ports: &Ports, settings: &Settings) -> Self {
        Self { l1: ports.l1.clone(), rows: ports.progress.clone(), start: settings.start, gone_back: None }
    }

    /// The log at `log_index` of `block` is being dealt with.
    pub(crate) fn reads(&mut self, block: L1Ref, log_index: u64) {
        self.gone_back.take_if(|log| *log == (block, log_index));
    }

    /// The standing batch that `index` must continue (P3). A hole is looked for on L1 once more before it blocks.
    pub(crate) async fn batch_before(
        &mut self,
        commit: &CommitEvent,
        search: &mut L1Search,
        ledger: &mut Ledger,
    ) -> Decided<Before> {
        let (rows, index, block) = (self.rows.clone(), commit.index, commit.block);
        let precedes = |r: &BatchRecord| r.pos() < commit.pos();
        if rows.batch(index).await?.is_some_and(|b| precedes(&b)) {
            return Ok(self.missed_revert(index, block.number, search, ledger).await?.into());
        }
        if let Some(before) = rows.batch(index.minus(1)).await?.filter(|b| precedes(b)) {
            return Ok(Before::Batch(Some(Box::new(before))));
        }
        let newest = rows.newest_at_or_below(block.number).await?;
        // A row of this very log, or of a later one in its block, does not stand before it: the batch is verified again
        // after the node lost it.
        let newest = newest.filter(|r| r.index < index || !(r.l1 == block && r.log_index >= commit.log_index));
        let newest = match newest.map(|r| r.index) {
            Some(newest) => Some(newest),
            None => self.taken_back_to(commit.pos()).await?,
        };
        match cursor::continuity(newest, index) {
            Verdict::Continues => Ok(Before::Batch(None)),
            Verdict::Repeated => Ok(self.missed_revert(index, block.number, search, ledger).await?.into()),
            Verdict::Gap(missing) => Ok(self.refetch(missing, search, ledger).await?.into()),
        }
    }

    /// Asks L1 once more for the commit of `missing`; goes back to it if L1 has it after all.
    async fn refetch(&mut self, missing: BatchIndex, search: &mut L1Search, ledger: &mut Ledger) -> Decided<GoneBack> {
        let Some(found) = search.standing_commit(missing).await? else {
            return Err(Stall::at(missing, Cause::Gap(Gap::Commit(missing))).into());
        };
        self.go_back_to(missing, (found.block, found.log_index), LeftOut::Commit, ledger).await
    }

    /// A standing batch can no longer stand, and no revert was seen: L1 is asked for the revert, up to block `until`.
    async fn missed_revert(
        &mut self,
        index: BatchIndex,
        until: L1Number,
        search: &mut L1Search,
        ledger: &mut Ledger,
    ) -> Decided<GoneBack> {
        let stands = self.rows.batch(index).await?;
        if let Some(record) = stands
            && let Some(found) = search.revert_after(index, record.pos(), until).await?
        {
            return self.go_back_to(index, (found.block, found.log_index), LeftOut::Revert, ledger).await;
        }
        Err(Stall::at(index, Cause::Gap(Gap::Revert(index))).into())
    }

    /// Makes `log`, which was left out when its range was read, the next one. One that still lies ahead was left out of
    /// this very range, which is read again anyway; one to which the cursor went back in vain was left out again. Both
    /// are reported as a hole, so that another endpoint is asked.
    pub(crate) async fn go_back_to(
        &mut self,
        index: BatchIndex,
        log: (L1Ref, u64),
        what: LeftOut,
        ledger: &mut Ledger,
    ) -> Decided<GoneBack> {
        let left_out = || Err(Stall::at(index, Cause::Gap(what.left_out(index))).into());
        if cursor::is_unread(ledger.cursor().as_ref(), self.start, LogPos::new(log.0.number, log.1)) {
            return left_out();
        }
        let in_vain = self.gone_back.replace(log) == Some(log);
        let cursor = cursor_before(self.l1.as_ref(), log.0, log.1).await?;
        // The known reverts and proofs above it may come from the same endpoint.
        let forget_settled_above = Some(log.0.number.minus(1));
        let step = Step { cursor, clear_cursor: cursor.is_none(), forget_settled_above, ..Step::default() };
        ledger.commit(&step).await?;
        let batch = index.get();
        warn!(
            code = "log_left_out",
            entity = batch,
            batch,
            what = what.as_str(),
            in_vain,
            "an endpoint left out a log; rewinding to it"
        );
        if in_vain { left_out() } else { Ok(GoneBack) }
    }

    /// Compares the highest stored index with the contract's own at the end of what is confirmed: left-out logs leave
    /// no hole if they were the last ones (A1). The check is skipped if the contract cannot be asked (A8).
    pub(crate) async fn hidden_logs(
        &mut self,
        end: L1Number,
        view: &L1View,
        search: &mut L1Search,
        ledger: &mut Ledger,
    ) -> Decided<Option<GoneBack>> {
        if end != view.confirmed {
            return Ok(None);
        }
        let Ok(there) = self.l1.last_committed_index(Some(end)).await else { return Ok(None) };
        let ours = match self.rows.newest_at_or_below(end).await?.map(|r| r.index) {
            Some(ours) => Some(ours),
            None => self.taken_back_to(LogPos::end_of(end)).await?,
        };
        let Some(ours) = ours else { return Ok(None) };
        match cursor::hidden(there, ours) {
            Hidden::Nothing => Ok(None),
            Hidden::RevertFrom(lowest) => {
                let stored = self.rows.batch(lowest).await?.is_some();
                self.missed_revert(if stored { lowest } else { ours }, end, search, ledger).await.map(Some)
            }
            Hidden::Commit(missing) => self.refetch(missing, search, ledger).await.map(Some),
        }
    }

    /// If no batch stands: the one before those that L1 took back last before the log at `pos`.
    async fn taken_back_to(&self, pos: LogPos) -> Result<Option<BatchIndex>, FlowError> {
        let reverts = self.rows.reverts_within(LogPos::default(), pos.block, REVERTS_MAX).await?;
        Ok(cursor::taken_back_to(&reverts, pos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::testing::{World, cause_of};
    use crate::types::{B256, Cursor, L1EventKind};

    /// Batches `1..=verified` are stored, and L1 was read to the end of block `read`.
    async fn read_to(verified: u64, read: u64) -> (World, Continuity, L1Search) {
        let mut world = World::recorded().await;
        world.verified(verified).await;
        cursor_to(&mut world, read).await;
        let continuity = Continuity::new(&world.ports, &world.settings);
        let mut search = L1Search::new(&world.ports, &world.settings);
        search.begin();
        search.confirmed_is(30.into());
        (world, continuity, search)
    }

    async fn cursor_to(world: &mut World, number: u64) {
        let cursor = Some(Cursor { block: world.l1.now().at(number), log_index: None });
        world.store(Step { cursor, ..Step::default() }).await;
    }

    fn at(world: &World) -> u64 {
        world.ledger.cursor().unwrap().block.number.get()
    }

    fn gap(end: Decided<Before>) -> Option<Gap> {
        match cause_of(end) {
            Some(Cause::Gap(gap)) => Some(gap),
            _ => None,
        }
    }

    #[tokio::test]
    async fn p3_reading_goes_back_to_a_commit_that_was_left_out_and_does_not_go_back_in_vain_unseen() {
        let (mut world, mut continuity, mut search) = read_to(1, 7).await;
        let third = world.commit(3);
        let end = continuity.batch_before(&third, &mut search, &mut world.ledger).await.unwrap();
        assert_eq!((end, at(&world)), (Before::GoneBack, 5));
        // It was left out once more.
        cursor_to(&mut world, 7).await;
        let end = continuity.batch_before(&third, &mut search, &mut world.ledger).await;
        assert_eq!(gap(end), Some(Gap::CommitLeftOut(2.into())));
        // Once it was read, a later hole is another one.
        continuity.reads(world.commit(2).block, 0);
        cursor_to(&mut world, 7).await;
        let end = continuity.batch_before(&third, &mut search, &mut world.ledger).await.unwrap();
        assert_eq!(end, Before::GoneBack);
    }

    #[tokio::test]
    async fn p3_a_hole_that_no_endpoint_fills_blocks() {
        let (mut world, mut continuity, mut search) = read_to(1, 7).await;
        world.l1.now().events.retain(|event| event.as_commit().is_none_or(|commit| commit.index.get() != 2));
        let third = world.commit(3);
        let end = continuity.batch_before(&third, &mut search, &mut world.ledger).await;
        assert_eq!(gap(end), Some(Gap::Commit(2.into())));
        assert_eq!(at(&world), 7);
        let second = CommitEvent { index: 2.into(), ..third };
        let before = continuity.batch_before(&second, &mut search, &mut world.ledger).await.unwrap();
        assert_eq!(before, Before::Batch(Some(Box::new(world.row(1)))));
    }

    #[tokio::test]
    async fn p3_a_batch_that_is_committed_anew_has_its_revert_looked_for() {
        let (mut world, mut continuity, mut search) = read_to(3, 19).await;
        let hash = B256::repeat_byte(3);
        world.l1.now().log(20, L1EventKind::Commit { index: 3.into(), hash });
        let anew = world.commit(3);
        let end = continuity.batch_before(&anew, &mut search, &mut world.ledger).await;
        assert_eq!(gap(end), Some(Gap::Revert(3.into())));
        search.forget();
        world.l1.now().log(18, L1EventKind::Revert { index: 3.into(), hash });
        let end = continuity.batch_before(&anew, &mut search, &mut world.ledger).await.unwrap();
        assert_eq!((end, at(&world)), (Before::GoneBack, 17));
    }

    #[tokio::test]
    async fn a1_the_contract_counts_one_batch_more_than_the_logs_gave() {
        let (mut world, mut continuity, mut search) = read_to(5, 30).await;
        let view = L1View { confirmed: 30.into(), stale: false, reorged: false };
        let mut hidden = async |world: &mut World, end: u64| {
            continuity.hidden_logs(end.into(), &view, &mut search, &mut world.ledger).await.unwrap()
        };
        assert_eq!(hidden(&mut world, 29).await, None);
        world.l1.now().last_committed = 5.into();
        assert_eq!(hidden(&mut world, 30).await, None);
        world.l1.now().last_committed = 6.into();
        assert_eq!((hidden(&mut world, 30).await, at(&world)), (Some(GoneBack), 13));
    }
}
