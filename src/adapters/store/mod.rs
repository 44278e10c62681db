//! The worker's memory in SQLite: `Progress` over one file.
//!
//! Decided here: how a step becomes one SQL transaction (P6), which process may open the file, which file is refused
//! (another chain, a newer program, a damaged page), and how long rows are kept at the least. Not decided here: what a
//! step holds, when to prune, whether a head may move; a floor for finalized is the flow's.
//!
//! One connection, because SQLite has one writer and the worker is one loop. Numbers cross into SQLite's `i64` by
//! `sql_number` and back by `number`, both fallible; enums go through one `TryFrom` each.
//!
//! Durability: WAL with `synchronous = NORMAL`. A process killed at any point loses nothing that was committed; a power
//! cut may undo the newest steps as a whole, which are then verified again. The lease of a pause must survive a power
//! cut too (the paused service may not start by itself), so it is written with `synchronous = FULL`.

mod audit;
mod claim;
mod file;
mod reads;
mod rows;
mod sql;
mod writes;

#[cfg(test)]
mod testing;

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::SqliteConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};

use crate::ports::{LeaseStore, PortResult, Progress, Rows, Step, Stored};
use crate::types::{
    BatchIndex, BatchRecord, Identity, JournalEntry, L1Event, L1Message, L1Number, L1Ref, L2Number, L2Ref, Lease,
    LogPos, QueueIndex, SpuriousTag, WriteIntent,
};
use sql::{bounded, storage, transaction};

pub use rows::UnknownName;

/// How long closing may take. With the 8 s that shutdown waits for a resume it stays within the 10 s of P4.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// `Progress` in one SQLite file, held by one process.
#[derive(Debug)]
pub struct SqliteStore {
    pool: SqlitePool,
    /// Held as long as the store lives; the operating system lets go of it when the process dies.
    _lock: Option<File>,
}

impl SqliteStore {
    /// Opens the database at `path`, creating it if there is none: takes the file lock, checks the pages, applies
    /// the migrations that are missing.
    ///
    /// # Errors
    ///
    /// `StoreRefused` when another process holds it, a newer version wrote it, it is damaged, or it is no database of
    /// ours; `Storage` when the disk cannot be read or written.
    pub async fn open(path: &Path) -> PortResult<Self> {
        let path = file::resolve(path);
        let lock = file::lock(&path)?;
        let pool = file::connect(file::options().filename(&path).create_if_missing(true)).await?;
        file::check_file(&pool).await?;
        file::migrate(&pool).await?;
        Ok(Self { pool, _lock: Some(lock) })
    }

    /// Opens an existing database for reading only, also while another process holds it. Takes no lock and writes
    /// nothing: every write answers `Storage`.
    ///
    /// # Errors
    ///
    /// `Storage` when there is none at `path`; `StoreRefused` as for [`SqliteStore::open`], and when its schema is older
    /// than this program's (a start of the worker brings it up).
    pub async fn open_read_only(path: &Path) -> PortResult<Self> {
        let path = file::resolve(path);
        if !path.exists() {
            return Err(storage(format!("no database at {}", path.display())));
        }
        let options = SqliteConnectOptions::new().filename(&path).read_only(true).busy_timeout(file::BUSY_TIMEOUT);
        let pool = file::connect(options).await?;
        file::check_schema(&pool).await?;
        Ok(Self { pool, _lock: None })
    }

    /// A database in memory, gone with the value: for `replay` and tests.
    ///
    /// # Errors
    ///
    /// `Storage` when SQLite cannot allocate.
    pub async fn in_memory() -> PortResult<Self> {
        let pool = file::connect(file::options().in_memory(true)).await?;
        file::migrate(&pool).await?;
        Ok(Self { pool, _lock: None })
    }

    /// Binds the database to the first L1 block that is read, as [`Progress::claim`] does to the networks, and after it. A
    /// database of an older version takes the configured block if nothing that it holds lies below.
    ///
    /// # Errors
    ///
    /// `StoreRefused` naming both blocks if they differ, and if the database is an audit's.
    pub async fn claim_start(&self, configured: L1Number) -> PortResult<()> {
        bounded(claim::start(self.pool.clone(), configured)).await
    }

    /// Binds the database to following another node, or to deriving from L1, after [`Progress::claim`]. Heads that were
    /// taken over were never verified here, and must not be taken for verified ones.
    ///
    /// # Errors
    ///
    /// `StoreRefused` if it was used for the other.
    pub async fn claim_use(&self, follows: bool) -> PortResult<()> {
        bounded(claim::usage(self.pool.clone(), follows)).await
    }

    /// Closes the file in good order: the WAL is folded into the database. Not needed for safety, and given up after
    /// [`CLOSE_DEADLINE`]: a disk that hangs must not hold up the end of the program (P4).
    pub async fn close(&self) {
        // The next open folds the WAL in as well.
        let _ = tokio::time::timeout(CLOSE_DEADLINE, self.pool.close()).await;
    }
}

#[async_trait]
impl Rows for SqliteStore {
    async fn l1_blocks(&self) -> PortResult<Vec<L1Ref>> {
        bounded(reads::l1_blocks(self.pool.clone())).await
    }

    async fn newest_l1_block(&self) -> PortResult<Option<L1Ref>> {
        bounded(reads::newest_l1_block(self.pool.clone())).await
    }

    async fn batch(&self, index: BatchIndex) -> PortResult<Option<BatchRecord>> {
        bounded(reads::batch(self.pool.clone(), index)).await
    }

    async fn newest_at_or_below(&self, number: L1Number) -> PortResult<Option<BatchRecord>> {
        bounded(reads::newest_at_or_below(self.pool.clone(), number)).await
    }

    async fn batch_ending_on(&self, block: L2Ref) -> PortResult<Option<BatchRecord>> {
        bounded(reads::batch_ending_on(self.pool.clone(), block)).await
    }

    async fn reverted_above(&self, number: L1Number) -> PortResult<Option<BatchRecord>> {
        bounded(reads::reverted_above(self.pool.clone(), number)).await
    }

    async fn settled_to(&self) -> PortResult<Option<L1Ref>> {
        bounded(reads::settled_to(self.pool.clone())).await
    }

    async fn revert_after(&self, index: BatchIndex, pos: LogPos) -> PortResult<Option<L1Event>> {
        bounded(reads::revert_after(self.pool.clone(), index, pos)).await
    }

    async fn reverts_within(&self, pos: LogPos, to: L1Number, limit: u32) -> PortResult<Vec<L1Event>> {
        bounded(reads::reverts_within(self.pool.clone(), pos, to, limit)).await
    }

    async fn newest_proof(&self, number: L1Number) -> PortResult<Option<L1Event>> {
        bounded(reads::newest_proof(self.pool.clone(), number)).await
    }

    async fn messages(&self, first: QueueIndex, count: u64) -> PortResult<Vec<L1Message>> {
        bounded(reads::messages(self.pool.clone(), first, count)).await
    }

    async fn journal_tail(&self, limit: u32) -> PortResult<Vec<JournalEntry>> {
        bounded(reads::journal_tail(self.pool.clone(), limit)).await
    }
}

#[async_trait]
impl LeaseStore for SqliteStore {
    async fn lease(&self) -> PortResult<Option<Lease>> {
        bounded(reads::lease(self.pool.clone())).await
    }

    async fn set_lease(&self, lease: Option<Lease>) -> PortResult<()> {
        bounded(writes::set_lease(self.pool.clone(), lease)).await
    }
}

#[async_trait]
impl Progress for SqliteStore {
    async fn load(&self) -> PortResult<Stored> {
        bounded(reads::load(self.pool.clone())).await
    }

    async fn claim(&self, configured: &Identity) -> PortResult<()> {
        bounded(claim::networks(self.pool.clone(), configured.clone())).await
    }

    async fn apply(&self, step: &Step) -> PortResult<()> {
        let step = step.clone();
        bounded(transaction(self.pool.clone(), async move |db: &mut SqliteConnection| writes::apply(db, &step).await))
            .await
    }

    async fn note_intents(&self, writes: &[WriteIntent]) -> PortResult<()> {
        let writes = writes.to_vec();
        bounded(transaction(self.pool.clone(), async move |db: &mut SqliteConnection| {
            writes::put_intents(db, &writes).await
        }))
        .await
    }

    async fn withdraw_writes(&self, from: L2Number, standing: L2Number) -> PortResult<()> {
        bounded(transaction(self.pool.clone(), async move |db: &mut SqliteConnection| {
            writes::withdraw_writes(db, from, standing).await
        }))
        .await
    }

    async fn looked(&self, seen_to: Option<L2Number>, spurious: Option<SpuriousTag>) -> PortResult<()> {
        bounded(transaction(self.pool.clone(), async move |db: &mut SqliteConnection| {
            writes::looked(db, seen_to, spurious.as_ref()).await
        }))
        .await
    }

    async fn journal(&self, entries: &[JournalEntry]) -> PortResult<()> {
        let entries = entries.to_vec();
        bounded(transaction(self.pool.clone(), async move |db: &mut SqliteConnection| {
            writes::journal(db, &entries).await
        }))
        .await
    }

    async fn prune(&self, l1: L1Number, queue: QueueIndex, batch: BatchIndex) -> PortResult<()> {
        bounded(transaction(self.pool.clone(), async move |db: &mut SqliteConnection| {
            writes::prune(db, l1, queue, batch).await
        }))
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;
    use crate::error::PortErrorKind;
    use crate::types::{Case, Cursor, L1Event, L1EventKind, Outcome};

    #[tokio::test]
    async fn what_is_stored_comes_back() {
        let store = SqliteStore::in_memory().await.unwrap();
        assert_eq!(store.load().await.unwrap(), Stored::default());
        let mut row = record(5, 50);
        row.case = Some(Case::SelfHeal);
        row.rewritten = 3;
        row.encoder_drift = true;
        let cursor = Cursor { block: l1(50), log_index: Some(4) };
        let step = Step { batch: Some(row.clone()), cursor: Some(cursor), safe: Some(l2(59)), ..full_step(5) };
        store.apply(&step).await.unwrap();
        let lease = Lease { height: L2Number::new(59), since: 1_700_000_000 };
        store.set_lease(Some(lease)).await.unwrap();
        let stored = store.load().await.unwrap();
        assert_eq!(stored.cursor, Some(cursor));
        assert_eq!((stored.safe, stored.finalized, stored.lease), (Some(l2(59)), Some(l2(1)), Some(lease)));
        assert_eq!(stored.tip, Some(row.clone()));
        assert_eq!(store.batch(BatchIndex::new(5)).await.unwrap(), Some(row));
        assert_eq!(store.messages(QueueIndex::new(5), 9).await.unwrap(), vec![message(5), message(6)]);
        assert_eq!(store.messages(QueueIndex::new(6), u64::MAX).await.unwrap(), vec![message(6)]);
        store.set_lease(None).await.unwrap();
        assert_eq!(store.lease().await.unwrap(), None);
        // A row without what only a verified batch has.
        let bare = BatchRecord { outcome: Outcome::Reverted, case: None, first: None, last: None, ..record(6, 60) };
        store.apply(&Step { batch: Some(bare), ..Step::default() }).await.unwrap();
        assert_eq!(store.batch(BatchIndex::new(6)).await.unwrap(), None);
    }

    #[tokio::test]
    async fn newest_at_or_below_counts_standing_batches_by_their_l1_block() {
        let store = store_with(3).await;
        let genesis = BatchRecord { outcome: Outcome::Genesis, case: None, ..record(0, 0) };
        store.apply(&Step { batch: Some(genesis), ..Step::default() }).await.unwrap();
        for (number, expected) in [(0, Some(0)), (1, Some(1)), (2, Some(2)), (99, Some(3)), (u64::MAX, Some(3))] {
            let found = store.newest_at_or_below(L1Number::new(number)).await.unwrap();
            assert_eq!(found.map(|row| row.index.get()), expected, "at {number}");
        }
    }

    #[tokio::test]
    async fn a_batch_is_found_by_its_last_block_and_the_standing_one_counts() {
        let store = store_with(3).await;
        let last = record(2, 2).last.unwrap();
        assert_eq!(store.batch_ending_on(last).await.unwrap(), Some(record(2, 2)));
        assert_eq!(store.batch_ending_on(L2Ref { hash: h(9), ..last }).await.unwrap(), None);
        let step = Step { revert_from: Some(2.into()), revert: Some(revert(2, 10)), ..Step::default() };
        store.apply(&step).await.unwrap();
        let reverted = store.batch_ending_on(last).await.unwrap().unwrap();
        assert_eq!((reverted.l1, reverted.outcome), (l1(2), Outcome::Reverted));
        // Committed again over the same blocks, and reverted again: the newer commit counts.
        for (block, revert_at) in [(11, 12), (13, 14)] {
            let again = BatchRecord { last: Some(last), ..record(2, block) };
            store.apply(&Step { batch: Some(again.clone()), ..Step::default() }).await.unwrap();
            assert_eq!(store.batch_ending_on(last).await.unwrap(), Some(again));
            let event = Some(revert(2, revert_at));
            store.apply(&Step { revert_from: Some(2.into()), revert: event, ..Step::default() }).await.unwrap();
            assert_eq!(store.batch_ending_on(last).await.unwrap().map(|row| row.l1), Some(l1(block)));
        }
    }

    #[tokio::test]
    async fn a_revert_takes_batches_down_and_a_reorg_of_it_puts_them_back() {
        let store = store_with(3).await;
        let event = revert(2, 10);
        let step = Step { revert_from: Some(BatchIndex::new(2)), revert: Some(event), ..Step::default() };
        store.apply(&step).await.unwrap();
        assert_eq!(indices(&store).await, [1]);
        assert_eq!(store.load().await.unwrap().tip.unwrap().index.get(), 1);
        // Index 2 is committed again, in a later L1 block.
        store.apply(&Step { batch: Some(record(2, 11)), ..Step::default() }).await.unwrap();
        assert_eq!(indices(&store).await, [1, 2]);
        // An L1 reorg drops the revert and the new commit.
        store.apply(&Step { rewind_to: Some(L1Number::new(9)), ..Step::default() }).await.unwrap();
        assert_eq!(indices(&store).await, [1, 2, 3]);
        assert_eq!(store.batch(BatchIndex::new(2)).await.unwrap(), Some(record(2, 2)));
    }

    #[tokio::test]
    async fn a_rewind_drops_what_was_recorded_above() {
        let store = store_with(4).await;
        store.apply(&Step { rewind_to: Some(L1Number::new(2)), ..Step::default() }).await.unwrap();
        assert_eq!(indices(&store).await, [1, 2]);
        assert_eq!(store.l1_blocks().await.unwrap(), [l1(2), l1(1)]);
        let messages = store.messages(QueueIndex::new(0), 100).await.unwrap();
        assert_eq!(messages.iter().map(|m| m.index.get()).collect::<Vec<_>>(), [1, 2], "3 was seen again in block 3");
    }

    #[tokio::test]
    async fn steps_can_be_repeated() {
        let store = store_with(2).await;
        let before = store.load().await.unwrap();
        store.apply(&full_step(2)).await.unwrap();
        assert_eq!(store.load().await.unwrap(), before);
    }

    #[tokio::test]
    async fn h1_a_write_that_was_begun_stays_stored_until_its_batch_is() {
        let store = store_with(1).await;
        let begun = |number: u64, batch: u64| WriteIntent {
            number: number.into(),
            batch: batch.into(),
            batch_hash: h(1_000 + batch),
            case: Case::SelfHeal,
            old_hash: Some(h(number)),
            new_hash: None,
            finalized: Some(l2(7)).filter(|_| number != 11),
            seen: false,
        };
        store.note_intents(&[begun(9, 5)]).await.unwrap();
        // Another batch is written now: what was begun for the old one is forgotten.
        store.note_intents(&[begun(10, 2), begun(11, 2)]).await.unwrap();
        let written = JournalEntry {
            at: 1,
            batch: 2.into(),
            number: 10.into(),
            old_hash: Some(h(10)),
            new_hash: h(77),
            why: "self-heal".to_owned(),
        };
        store.journal(std::slice::from_ref(&written)).await.unwrap();
        let again = WriteIntent { old_hash: None, case: Case::FillGap, ..begun(10, 2) };
        store.note_intents(&[again]).await.unwrap();
        let first = WriteIntent { new_hash: Some(h(77)), ..begun(10, 2) };
        assert_eq!(store.load().await.unwrap().intents, [first, begun(11, 2)]);
        store.apply(&Step { batch: Some(record(1, 1)), ..Step::default() }).await.unwrap();
        assert_eq!(store.load().await.unwrap().intents.len(), 2);
        // A refusal takes back what it refused, and nothing that was written.
        store.note_intents(&[begun(12, 2)]).await.unwrap();
        store.withdraw_writes(12.into(), 20.into()).await.unwrap();
        assert_eq!(store.load().await.unwrap().intents, [first, begun(11, 2)]);
        store.withdraw_writes(9.into(), 20.into()).await.unwrap();
        assert_eq!(store.load().await.unwrap().intents, [first]);
        // The blocks above are gone in any case, and their intents stay. There was no block at 14.
        store
            .note_intents(&[begun(11, 2), begun(12, 2), WriteIntent { old_hash: None, ..begun(14, 2) }])
            .await
            .unwrap();
        store.withdraw_writes(11.into(), 11.into()).await.unwrap();
        let gone = WriteIntent { seen: true, ..begun(12, 2) };
        assert_eq!(store.load().await.unwrap().intents, [first, gone]);
        store.apply(&Step { batch: Some(record(2, 12)), ..Step::default() }).await.unwrap();
        assert!(store.load().await.unwrap().intents.is_empty());
    }

    #[tokio::test]
    async fn m9_e12_a_mark_outlives_the_writes_that_it_lies_on() {
        let store = store_with(1).await;
        let begun = |number: u64| WriteIntent {
            number: number.into(),
            batch: 2.into(),
            batch_hash: h(1_002),
            case: Case::FillGap,
            old_hash: None,
            new_hash: None,
            finalized: Some(l2(7)),
            seen: false,
        };
        store.note_intents(&[begun(10), begun(11)]).await.unwrap();
        let mark = SpuriousTag { tag: l2(10), before: Some(l2(7)) };
        store.looked(Some(10.into()), Some(mark)).await.unwrap();
        let stored = store.load().await.unwrap();
        assert_eq!(stored.intents, [WriteIntent { seen: true, ..begun(10) }, begun(11)]);
        assert_eq!(stored.spurious, Some(mark));
        // Written again: its effect is not known again, and the tag from before is another one.
        let again = SpuriousTag { tag: l2(11), before: None };
        store.note_intents(&[WriteIntent { finalized: Some(l2(8)), ..begun(10) }]).await.unwrap();
        store.looked(None, Some(again)).await.unwrap();
        let stored = store.load().await.unwrap();
        assert_eq!(stored.intents[0], WriteIntent { finalized: Some(l2(8)), ..begun(10) });
        assert_eq!(stored.spurious, Some(again));
        store.apply(&Step { batch: Some(record(2, 12)), ..Step::default() }).await.unwrap();
        let stored = store.load().await.unwrap();
        assert_eq!((stored.intents, stored.spurious), (Vec::new(), Some(again)));
        store.looked(None, None).await.unwrap();
        assert_eq!(store.load().await.unwrap().spurious, None);
    }

    #[tokio::test]
    async fn m2_m17_reverts_and_proofs_are_known_by_their_place() {
        let store = store_with(3).await;
        assert_eq!(store.settled_to().await.unwrap(), None);
        let settlements = vec![revert(2, 7), revert(3, 9), proof(1, 8), proof(2, 12)];
        let step = Step { settlements, settled_to: Some(l1(20)), ..Step::default() };
        store.apply(&step).await.unwrap();
        // Never lower, and again is the same.
        store.apply(&Step { settled_to: Some(l1(15)), ..step.clone() }).await.unwrap();
        assert_eq!(store.settled_to().await.unwrap(), Some(l1(20)));
        let after = |index, place| store.revert_after(BatchIndex::new(index), place);
        let at = |number, log_index| LogPos::new(L1Number::new(number), log_index);
        for (index, place, expected) in [
            (2, at(0, 0), Some(revert(2, 7))),
            (5, at(0, 0), Some(revert(2, 7))),
            (2, at(7, 0), Some(revert(2, 7))),
            (2, at(7, 1), None),
            (3, at(7, 1), Some(revert(3, 9))),
            (3, at(9, 1), None),
            (1, at(0, 0), None),
        ] {
            assert_eq!(after(index, place).await.unwrap(), expected, "{index} {place:?}");
        }
        let within = |place, to| store.reverts_within(place, L1Number::new(to), 9);
        assert_eq!(within(at(0, 0), 9).await.unwrap(), [revert(2, 7), revert(3, 9)]);
        assert_eq!(within(at(7, 1), 8).await.unwrap(), []);
        for (number, expected) in [(7, None), (8, Some(proof(1, 8))), (11, Some(proof(1, 8))), (12, Some(proof(2, 12)))]
        {
            assert_eq!(store.newest_proof(L1Number::new(number)).await.unwrap(), expected, "at {number}");
        }
        // What no kept row can ask for goes; the newest proof stays.
        store.prune(L1Number::new(9), QueueIndex::new(0), BatchIndex::new(9)).await.unwrap();
        assert_eq!(within(at(0, 0), 99).await.unwrap(), [revert(2, 7), revert(3, 9)], "the rows begin below them");
        assert_eq!(store.newest_proof(L1Number::new(11)).await.unwrap(), None);
        assert_eq!(store.newest_proof(L1Number::new(12)).await.unwrap(), Some(proof(2, 12)));
        // A reorg takes away what lies above the ancestor, and how far was read.
        store.apply(&Step { rewind_to: Some(L1Number::new(8)), ..Step::default() }).await.unwrap();
        assert_eq!(within(at(0, 0), 99).await.unwrap(), [revert(2, 7)]);
        assert_eq!(
            (store.settled_to().await.unwrap(), store.newest_proof(L1Number::new(99)).await.unwrap()),
            (None, None)
        );
        store.apply(&step).await.unwrap();
        let forget = Step { forget_settled_above: Some(L1Number::new(7)), ..Step::default() };
        store.apply(&forget).await.unwrap();
        assert_eq!(
            (within(at(0, 0), 99).await.unwrap(), store.settled_to().await.unwrap()),
            (vec![revert(2, 7)], None)
        );
        let neither = L1Event { kind: L1EventKind::Message(message(1)), ..revert(1, 9) };
        store.apply(&Step { settlements: vec![neither], ..Step::default() }).await.unwrap_err();
    }

    /// P6: a step that fails at its very end leaves nothing of its beginning.
    #[tokio::test]
    async fn b6_h1_a_failing_step_leaves_nothing() {
        let too_large = Cursor { block: l1(9), log_index: Some(u64::MAX) };
        let wrong_revert = L1Event { kind: L1EventKind::Message(message(1)), ..revert(1, 9) };
        let failing = [
            ("cursor", Step { cursor: Some(too_large), ..full_step(9) }),
            ("revert", Step { revert: Some(wrong_revert), ..full_step(9) }),
            ("second standing batch", Step { batch: Some(record(2, 9)), ..full_step(9) }),
            ("head", Step { safe: Some(L2Ref { number: L2Number::new(u64::MAX), hash: h(1) }), ..full_step(9) }),
        ];
        let store = store_with(2).await;
        let before = (store.load().await.unwrap(), store.l1_blocks().await.unwrap(), indices(&store).await);
        for (name, step) in failing {
            let step = Step { rewind_to: Some(L1Number::new(1)).filter(|_| name != "second standing batch"), ..step };
            store.apply(&step).await.expect_err(name);
            let after = (store.load().await.unwrap(), store.l1_blocks().await.unwrap(), indices(&store).await);
            assert_eq!(after, before, "{name}");
            assert_eq!(store.messages(QueueIndex::new(9), 5).await.unwrap(), [], "{name}");
        }
    }

    /// P6: a step whose future is dropped at any of its waits is applied as a whole or not at all.
    #[tokio::test]
    async fn h1_a_cancelled_step_is_whole_or_absent() {
        for polls in 0..40_usize {
            let store = store_with(1).await;
            {
                let step = full_step(5);
                let mut future = store.apply(&step);
                for _ in 0..polls {
                    if futures::poll!(&mut future).is_ready() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_micros(50)).await;
                }
            }
            let stored = store.load().await.unwrap();
            let seen = [
                stored.tip.unwrap().index.get() == 5,
                stored.cursor == Some(cursor_at(5)),
                stored.safe == Some(l2(59)),
                store.l1_blocks().await.unwrap().len() == 2,
                store.messages(QueueIndex::new(5), 9).await.unwrap().len() == 2,
            ];
            // A step that was begun is queued before the reads above, which share its one connection.
            assert!(seen.iter().all(|&s| s == (polls > 0)), "after {polls} polls: {seen:?}");
        }
    }

    #[tokio::test]
    async fn h2_a_full_disk_is_a_passing_fault() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("db.sqlite")).await.unwrap();
        store.apply(&full_step(1)).await.unwrap();
        let pages: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(&store.pool).await.unwrap();
        let limit = sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {pages}"));
        sqlx::query(limit).execute(&store.pool).await.unwrap();
        let long = |i| (l1(2), L1Message { raw: vec![0; 20_000].into(), ..message(i) });
        let step = Step { messages: (0..20).map(long).collect(), ..full_step(2) };
        let error = store.apply(&step).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Storage, "{error}");
        assert_eq!(indices(&store).await, [1], "still readable, nothing half done");
        sqlx::query("PRAGMA max_page_count = 100000").execute(&store.pool).await.unwrap();
        store.apply(&step).await.unwrap();
        assert_eq!(indices(&store).await, [1, 2]);
    }

    #[tokio::test]
    async fn h5_rows_do_not_grow_for_ever() {
        let store = SqliteStore::in_memory().await.unwrap();
        let mut pages = Vec::new();
        for n in 1..=1_500_u64 {
            store.apply(&full_step(n)).await.unwrap();
            let floor = n.saturating_sub(64);
            store.prune(L1Number::new(floor), QueueIndex::new(floor), BatchIndex::new(floor)).await.unwrap();
            if n % 500 == 0 {
                let count: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(&store.pool).await.unwrap();
                pages.push(count);
            }
        }
        assert_eq!(pages[0], pages[2], "{pages:?}");
        assert_eq!(store.l1_blocks().await.unwrap().len(), 65);
    }

    #[tokio::test]
    async fn h5_l1_blocks_that_left_the_window_go_with_the_range_that_moved_it() {
        let store = SqliteStore::in_memory().await.unwrap();
        assert_eq!(store.newest_l1_block().await.unwrap(), None);
        for n in 1..=300 {
            let step = Step { l1_blocks: vec![l1(n)], l1_floor: Some(L1Number::new(n).minus(128)), ..Step::default() };
            store.apply(&step).await.unwrap();
            assert_eq!(store.newest_l1_block().await.unwrap(), Some(l1(n)));
        }
        assert_eq!(store.l1_blocks().await.unwrap(), (172..=300).rev().map(l1).collect::<Vec<_>>());
        let beyond = Step { l1_floor: Some(L1Number::new(1000)), ..Step::default() };
        store.apply(&beyond).await.unwrap();
        assert_eq!(store.l1_blocks().await.unwrap(), [l1(300)]);
    }

    #[tokio::test]
    async fn h5_pruning_keeps_what_the_next_batch_needs() {
        let store = store_with(3).await;
        let all = u64::MAX;
        store.prune(L1Number::new(all), QueueIndex::new(all), BatchIndex::new(all)).await.unwrap();
        assert_eq!(store.load().await.unwrap().tip, Some(record(3, 3)));
        assert_eq!(store.l1_blocks().await.unwrap(), [l1(3)]);
        // Batch 3 consumed the messages below 3.
        assert_eq!(store.messages(QueueIndex::new(0), 99).await.unwrap(), [message(3), message(4)]);
        // With no batch at all nothing is known to be consumed.
        let store = SqliteStore::in_memory().await.unwrap();
        store.apply(&Step { messages: vec![(l1(1), message(0))], ..Step::default() }).await.unwrap();
        store.prune(L1Number::new(all), QueueIndex::new(all), BatchIndex::new(all)).await.unwrap();
        assert_eq!(store.messages(QueueIndex::new(0), 99).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn b3_c4_a_row_that_was_passed_over_goes_with_the_revert_that_it_was_passed_over_for() {
        let store = SqliteStore::in_memory().await.unwrap();
        let passed_over = |index, at| BatchRecord { outcome: Outcome::Reverted, last: None, ..record(index, at) };
        for (index, at, revert) in [(3, 10, 20), (4, 11, 20), (5, 12, 15)] {
            let (batch, reverted_by) = (Some(passed_over(index, at)), Some(L1Number::new(revert)));
            store.apply(&Step { batch, reverted_by, ..Step::default() }).await.unwrap();
        }
        for (number, expected) in [(20, None), (19, Some(3)), (10, Some(3)), (9, None)] {
            let found = store.reverted_above(L1Number::new(number)).await.unwrap();
            assert_eq!(found.map(|r| r.index.get()), expected, "above {number}");
        }
        store.apply(&Step { rewind_to: Some(L1Number::new(15)), ..Step::default() }).await.unwrap();
        let rows: Vec<i64> =
            sqlx::query_scalar("SELECT batch_index FROM batches").fetch_all(&store.pool).await.unwrap();
        assert_eq!(rows, [5]);
    }
}
