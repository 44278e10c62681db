//! The worker's memory in SQLite: `Progress` over one file.
//!
//! Decided here: how a step becomes one SQL transaction (P6), which process may open the file, which file is refused
//! (another chain, a newer program, a damaged page), and how long rows are kept at the least. Not decided here: what a
//! step holds, when to prune, whether a head may move; a floor for finalized is the flow's.
//!
//! One connection, because SQLite has one writer and the worker is one loop. Numbers cross into SQLite's `i64` by
//! [`sql_number`] and back by [`number`], both fallible; enums go through one `TryFrom` each.
//!
//! Durability: WAL with `synchronous = NORMAL`. A process killed at any point loses nothing that was committed; a power
//! cut may undo the newest steps as a whole, which are then verified again. The lease of a pause must survive a power
//! cut too (the paused service may not start by itself), so it is written with `synchronous = FULL`.

use std::fs::{File, OpenOptions, TryLockError};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};

use crate::error::{PortError, PortErrorKind, Target};
use crate::ports::{LeaseStore, PortResult, Progress, Rows, Step, Stored};
use crate::types::{
    Address, B256, BatchIndex, BatchRecord, Case, Cursor, Identity, JournalEntry, L1Event, L1EventKind, L1Message,
    L1Number, L1Ref, L2Number, L2Ref, Lease, OpenWrite, Outcome, OwnMark, QueueIndex,
};

/// The schema, embedded: no build and no start needs the folder.
static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// "morD" in `PRAGMA application_id`; set by the first migration.
const APPLICATION_ID: i64 = 0x6d6f_7244;

/// How long SQLite waits for another connection's lock. Only `status --journal` and backup tools ever hold one, for
/// milliseconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Deadline of one call (P4): the busy timeout, and as much again for a slow disk. A call that passes it may still be
/// applied later; every write can be repeated.
const DEADLINE: Duration = Duration::from_secs(10);

/// How long closing may take. With the 8 s that shutdown waits for a resume it stays within the 10 s of P4.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// Rows of one `INSERT`: far below SQLite's 32,766 variables at 7 columns.
const INSERT_CHUNK: usize = 500;

/// Journal rows kept: the newest 200,000 writes, about 25 MB.
const JOURNAL_KEPT: i64 = 200_000;

/// Columns of a batch row in the order of [`batch_record`].
macro_rules! batch_columns {
    ($rest:literal) => {
        concat!(
            "SELECT batch_index, hash, l1_number, l1_hash, log_index, tx_hash, outcome, handling, first_block, ",
            "last_number, last_hash, post_state_root, withdrawal_root, total_l1_popped, rewritten, encoder_drift ",
            "FROM batches ",
            $rest
        )
    };
}

/// `Progress` in one SQLite file, held by one process.
#[derive(Debug)]
pub struct SqliteStore {
    pool: SqlitePool,
    /// Held as long as the store lives; the operating system lets go of it when the process dies.
    _lock: Option<File>,
}

impl SqliteStore {
    /// Opens the database at `path`, creating it where there is none: takes the file lock, checks the pages, applies
    /// the migrations that are missing.
    ///
    /// # Errors
    ///
    /// `StoreRefused` when another process holds it, a newer version wrote it, it is damaged, or it is no database of
    /// ours; `Storage` when the disk cannot be read or written.
    pub async fn open(path: &Path) -> PortResult<Self> {
        let path = resolve(path);
        let lock = lock(&path)?;
        let pool = connect(options().filename(&path).create_if_missing(true)).await?;
        check_file(&pool).await?;
        MIGRATIONS.run(&pool).await.map_err(migrate_error)?;
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
        let path = resolve(path);
        if !path.exists() {
            return Err(storage(format!("no database at {}", path.display())));
        }
        let options = SqliteConnectOptions::new().filename(&path).read_only(true).busy_timeout(BUSY_TIMEOUT);
        let pool = connect(options).await?;
        check_schema(&pool).await?;
        Ok(Self { pool, _lock: None })
    }

    /// A database in memory, gone with the value: for `replay` and tests.
    ///
    /// # Errors
    ///
    /// `Storage` when SQLite cannot allocate.
    pub async fn in_memory() -> PortResult<Self> {
        let pool = connect(options().in_memory(true)).await?;
        MIGRATIONS.run(&pool).await.map_err(migrate_error)?;
        Ok(Self { pool, _lock: None })
    }

    /// Binds the database to the first L1 block that is read, as [`Progress::claim`] does to the networks, and after it. A
    /// database of an older version takes the configured block if nothing that it holds lies below.
    ///
    /// # Errors
    ///
    /// `StoreRefused` naming both blocks where they differ.
    pub async fn claim_start(&self, configured: L1Number) -> PortResult<()> {
        let pool = self.pool.clone();
        bounded(async move {
            let stored: Option<Option<i64>> =
                sqlx::query_scalar("SELECT l1_start FROM identity").fetch_optional(&pool).await.map_err(sql_error)?;
            let wanted = sql_number(configured.get())?;
            match stored {
                None => Err(refused("the database is bound to no network yet")),
                Some(Some(stored)) if stored == wanted => Ok(()),
                Some(Some(stored)) => Err(refused(format!(
                    "the database was begun with l1.start_block = {stored}, configured is {configured}; put the \
                     configuration right, or give it a store.path of its own to start anew from there"
                ))),
                Some(None) => {
                    let lowest: Option<i64> = sqlx::query_scalar(
                        "SELECT min(number) FROM (SELECT l1_number AS number FROM batches UNION ALL SELECT l1_number \
                         FROM reverts UNION ALL SELECT number FROM l1_blocks)",
                    )
                    .fetch_one(&pool)
                    .await
                    .map_err(sql_error)?;
                    if let Some(lowest) = lowest.filter(|lowest| *lowest < wanted) {
                        return Err(refused(format!(
                            "the database holds L1 block {lowest}, configured is l1.start_block = {configured}; set \
                             it to what it was, or give it a store.path of its own"
                        )));
                    }
                    sqlx::query("UPDATE identity SET l1_start = ?")
                        .bind(wanted)
                        .execute(&pool)
                        .await
                        .map(|_| ())
                        .map_err(sql_error)
                }
            }
        })
        .await
    }

    /// Closes the file in good order: the WAL is folded into the database. Not needed for safety, and given up after
    /// [`CLOSE_DEADLINE`]: a disk that hangs must not hold up the end of the program (P4).
    pub async fn close(&self) {
        // The next open folds the WAL in as well.
        let _ = tokio::time::timeout(CLOSE_DEADLINE, self.pool.close()).await;
    }
}

/// The path behind links, so that two names of one file meet at one lock.
fn resolve(path: &Path) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match (parent.canonicalize(), path.file_name()) {
        (Ok(parent), Some(name)) => parent.join(name),
        _ => path.to_owned(),
    }
}

/// Takes the exclusive lock next to the database. A file of its own, because SQLite locks the database itself byte by
/// byte and a reader like `status --journal` must still get in.
fn lock(path: &Path) -> PortResult<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&name)
        .map_err(|e| storage(format!("cannot open the lock file {}: {e}", name.display())))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(refused(format!(
            "{} is in use by another morph-deriver process (it holds {}): stop that one, or give this one another \
             store.path",
            path.display(),
            name.display()
        ))),
        Err(TryLockError::Error(e)) => Err(storage(format!("cannot lock {}: {e}", name.display()))),
    }
}

fn options() -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true)
}

/// One connection that is never recycled: an in-memory database lives in it.
async fn connect(options: SqliteConnectOptions) -> PortResult<SqlitePool> {
    SqlitePoolOptions::new()
        .max_connections(1)
        .min_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(DEADLINE)
        .connect_with(options)
        .await
        .map_err(sql_error)
}

/// Refuses a damaged file, one that is not ours, and one that a newer version wrote.
async fn check_file(pool: &SqlitePool) -> PortResult<()> {
    let report: String = sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(pool).await.map_err(sql_error)?;
    if report != "ok" {
        return Err(refused(format!("the database is damaged ({report}): restore a copy, or remove it to start anew")));
    }
    let id: i64 = sqlx::query_scalar("PRAGMA application_id").fetch_one(pool).await.map_err(sql_error)?;
    if id == APPLICATION_ID {
        return refuse_newer(pool).await;
    }
    // A first start that died before its first migration leaves the migrator's own table at most.
    let foreign: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM sqlite_master WHERE name NOT IN ('_sqlx_migrations') AND name NOT LIKE 'sqlite_%'",
    )
    .fetch_one(pool)
    .await
    .map_err(sql_error)?;
    if id == 0 && foreign == 0 { Ok(()) } else { Err(refused("the file is a database of another program")) }
}

/// The newest migration that was applied.
async fn applied_version(pool: &SqlitePool) -> PortResult<i64> {
    sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM _sqlx_migrations")
        .fetch_one(pool)
        .await
        .map_err(sql_error)
}

fn known_version() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0)
}

async fn refuse_newer(pool: &SqlitePool) -> PortResult<()> {
    let applied = applied_version(pool).await?;
    let known = known_version();
    if applied > known {
        return Err(refused(format!(
            "the database has schema {applied}, this version knows schemas up to {known}: use the newer version again"
        )));
    }
    Ok(())
}

/// For readers that may not migrate: exactly our schema.
async fn check_schema(pool: &SqlitePool) -> PortResult<()> {
    let id: i64 = sqlx::query_scalar("PRAGMA application_id").fetch_one(pool).await.map_err(sql_error)?;
    if id != APPLICATION_ID {
        return Err(refused("the file is not a database of morph-deriver"));
    }
    refuse_newer(pool).await?;
    let applied = applied_version(pool).await?;
    if applied < known_version() {
        return Err(refused(format!("the database has the old schema {applied}: start the worker once to update it")));
    }
    Ok(())
}

fn storage(detail: impl Into<String>) -> PortError {
    PortError::new(Target::Store, PortErrorKind::Storage, detail)
}

fn refused(detail: impl Into<String>) -> PortError {
    PortError::new(Target::Store, PortErrorKind::StoreRefused, detail)
}

/// Sorts SQLite's failures: what may pass (full or read-only disk, I/O error, lock) is `Storage`, what will not
/// (damaged pages, a broken rule of the schema, a value that no version of ours wrote) is `StoreRefused`.
fn sql_error(error: sqlx::Error) -> PortError {
    let code = match &error {
        sqlx::Error::Database(e) => e.code().and_then(|code| code.parse::<i64>().ok()),
        _ => None,
    };
    // The low byte of an extended result code is the primary one: sqlite.org/rescode.html.
    match code.map(|code| code & 0xff) {
        Some(10) => storage(format!("I/O error: {error}")),
        Some(8) => storage(format!("the database is read-only: {error}")),
        Some(13) => storage(format!("no space left: {error}")),
        Some(11 | 26) => refused(format!("the database is damaged: {error}")),
        Some(19) => refused(format!("a rule of the schema would be broken: {error}")),
        Some(_) => storage(error.to_string()),
        None => match error {
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::ColumnNotFound(_) => {
                refused(format!("the database holds a value that no version wrote: {error}"))
            }
            other => storage(other.to_string()),
        },
    }
}

fn migrate_error(error: MigrateError) -> PortError {
    match error {
        MigrateError::Execute(e) => sql_error(e),
        MigrateError::ExecuteMigration(e, version) => {
            let inner = sql_error(e);
            PortError { detail: format!("migration {version}: {}", inner.detail), ..inner }
        }
        MigrateError::VersionMissing(version) => refused(format!("schema {version} is of a newer version")),
        other => refused(format!("the schema does not fit this version: {other}")),
    }
}

/// Runs a call in a task of its own and holds it to its deadline. A task, because a call that is dropped half-way
/// (shutdown, a lost `select!`) would take its connection with it, and an in-memory database with the connection.
async fn bounded<T: Send + 'static>(call: impl Future<Output = PortResult<T>> + Send + 'static) -> PortResult<T> {
    match tokio::time::timeout(DEADLINE, tokio::spawn(call)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(lost)) => Err(storage(format!("the call was lost: {lost}"))),
        Err(_) => Err(PortError::new(
            Target::Store,
            PortErrorKind::Timeout,
            format!("the database did not answer within {} s", DEADLINE.as_secs()),
        )),
    }
}

/// Opens a transaction by hand. sqlx's own is not used: behind a COMMIT that the disk refused SQLite has rolled back by
/// itself, sqlx's count of open transactions does not follow, and what it "commits" from then on ends in an open
/// savepoint: reported as stored, gone with the process (H2).
async fn begin(pool: &SqlitePool) -> PortResult<PoolConnection<Sqlite>> {
    let mut db = pool.acquire().await.map_err(sql_error)?;
    match sqlx::query("BEGIN IMMEDIATE").execute(&mut *db).await {
        Ok(_) => Ok(db),
        Err(error) => Err(roll_back(&mut db, sql_error(error)).await),
    }
}

/// Commits what [`begin`] opened if `done` says so, and takes it back otherwise.
async fn end(mut db: PoolConnection<Sqlite>, done: PortResult<()>) -> PortResult<()> {
    if let Err(error) = done {
        return Err(roll_back(&mut db, error).await);
    }
    match sqlx::query("COMMIT").execute(&mut *db).await {
        Ok(_) => Ok(()),
        Err(error) => Err(roll_back(&mut db, sql_error(error)).await),
    }
}

/// Leaves no transaction open behind `cause`, and gives it back.
async fn roll_back(db: &mut SqliteConnection, cause: PortError) -> PortError {
    // It fails where SQLite has rolled back by itself, and then all is as it should be.
    let _ = sqlx::query("ROLLBACK").execute(db).await;
    cause
}

/// A number to store. SQLite's integers end at 2^63 − 1; no honest height, index or time comes near.
fn sql_number(n: u64) -> PortResult<i64> {
    i64::try_from(n).map_err(|_| PortError::malformed(Target::Store, format!("{n} is too large to be stored")))
}

/// A number to compare with: nothing stored is larger than `i64::MAX`, so a larger bound means the same as that.
fn sql_bound(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn broken(column: &str) -> PortError {
    refused(format!("the database holds a value in {column} that no version wrote"))
}

fn number(row: &SqliteRow, column: &str) -> PortResult<u64> {
    let value: i64 = row.try_get(column).map_err(sql_error)?;
    u64::try_from(value).map_err(|_| broken(column))
}

fn optional_number(row: &SqliteRow, column: &str) -> PortResult<Option<u64>> {
    let value: Option<i64> = row.try_get(column).map_err(sql_error)?;
    value.map(|value| u64::try_from(value).map_err(|_| broken(column))).transpose()
}

fn as_hash(bytes: &[u8], column: &str) -> PortResult<B256> {
    <[u8; 32]>::try_from(bytes).map(B256).map_err(|_| broken(column))
}

fn hash(row: &SqliteRow, column: &str) -> PortResult<B256> {
    as_hash(row.try_get(column).map_err(sql_error)?, column)
}

fn optional_hash(row: &SqliteRow, column: &str) -> PortResult<Option<B256>> {
    let value: Option<&[u8]> = row.try_get(column).map_err(sql_error)?;
    value.map(|bytes| as_hash(bytes, column)).transpose()
}

fn address(row: &SqliteRow, column: &str) -> PortResult<Address> {
    let bytes: &[u8] = row.try_get(column).map_err(sql_error)?;
    <[u8; 20]>::try_from(bytes).map(ethers_core::types::H160).map_err(|_| broken(column))
}

fn text<'r>(row: &'r SqliteRow, column: &str) -> PortResult<&'r str> {
    row.try_get(column).map_err(sql_error)
}

/// A name in the database that no enum of ours has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown name {0:?}")]
pub struct UnknownName(String);

impl TryFrom<&str> for Outcome {
    type Error = UnknownName;

    fn try_from(name: &str) -> Result<Self, UnknownName> {
        [Self::Verified, Self::Genesis, Self::Reverted]
            .into_iter()
            .find(|outcome| outcome.as_str() == name)
            .ok_or_else(|| UnknownName(name.to_owned()))
    }
}

impl TryFrom<&str> for Case {
    type Error = UnknownName;

    fn try_from(name: &str) -> Result<Self, UnknownName> {
        [Self::Consistent, Self::SelfHeal, Self::FillGap, Self::Wait]
            .into_iter()
            .find(|case| case.as_str() == name)
            .ok_or_else(|| UnknownName(name.to_owned()))
    }
}

fn batch_record(row: &SqliteRow) -> PortResult<BatchRecord> {
    let case: Option<&str> = row.try_get("handling").map_err(sql_error)?;
    let last = match (optional_number(row, "last_number")?, optional_hash(row, "last_hash")?) {
        (Some(number), Some(hash)) => Some(L2Ref { number: L2Number::new(number), hash }),
        (None, None) => None,
        _ => return Err(broken("last_hash")),
    };
    Ok(BatchRecord {
        index: BatchIndex::new(number(row, "batch_index")?),
        hash: hash(row, "hash")?,
        l1: L1Ref { number: L1Number::new(number(row, "l1_number")?), hash: hash(row, "l1_hash")? },
        log_index: number(row, "log_index")?,
        tx_hash: hash(row, "tx_hash")?,
        outcome: Outcome::try_from(text(row, "outcome")?).map_err(|_| broken("outcome"))?,
        case: case.map(Case::try_from).transpose().map_err(|_| broken("handling"))?,
        first: optional_number(row, "first_block")?.map(L2Number::new),
        last,
        post_state_root: hash(row, "post_state_root")?,
        withdrawal_root: hash(row, "withdrawal_root")?,
        total_l1_popped: number(row, "total_l1_popped")?,
        rewritten: number(row, "rewritten")?,
        encoder_drift: number(row, "encoder_drift")? != 0,
    })
}

fn l1_ref(row: &SqliteRow, number_column: &str, hash_column: &str) -> PortResult<L1Ref> {
    Ok(L1Ref { number: L1Number::new(number(row, number_column)?), hash: hash(row, hash_column)? })
}

fn settlement(row: &SqliteRow, kind: fn(BatchIndex, B256) -> L1EventKind) -> PortResult<L1Event> {
    Ok(L1Event {
        block: l1_ref(row, "l1_number", "l1_hash")?,
        log_index: number(row, "log_index")?,
        tx_hash: hash(row, "tx_hash")?,
        tx_index: number(row, "tx_index")?,
        kind: kind(BatchIndex::new(number(row, "batch_index")?), hash(row, "batch_hash")?),
    })
}

fn revert_of(row: &SqliteRow) -> PortResult<L1Event> {
    settlement(row, |index, hash| L1EventKind::Revert { index, hash })
}

fn proof_of(row: &SqliteRow) -> PortResult<L1Event> {
    settlement(row, |index, hash| L1EventKind::Finalize { index, hash })
}

fn l1_message(row: &SqliteRow) -> PortResult<L1Message> {
    let raw: Vec<u8> = row.try_get("raw").map_err(sql_error)?;
    Ok(L1Message { index: QueueIndex::new(number(row, "queue_index")?), hash: hash(row, "hash")?, raw: raw.into() })
}

fn journal_entry(row: &SqliteRow) -> PortResult<JournalEntry> {
    Ok(JournalEntry {
        at: number(row, "at")?,
        batch: BatchIndex::new(number(row, "batch_index")?),
        number: L2Number::new(number(row, "number")?),
        old_hash: optional_hash(row, "old_hash")?,
        new_hash: hash(row, "new_hash")?,
        why: text(row, "why")?.to_owned(),
    })
}

fn open_write(row: &SqliteRow) -> PortResult<OpenWrite> {
    Ok(OpenWrite {
        number: L2Number::new(number(row, "number")?),
        batch: BatchIndex::new(number(row, "batch_index")?),
        batch_hash: hash(row, "batch_hash")?,
        case: Case::try_from(text(row, "handling")?).map_err(|_| broken("handling"))?,
        old_hash: optional_hash(row, "old_hash")?,
        new_hash: optional_hash(row, "new_hash")?,
        finalized: optional_number(row, "finalized_number")?
            .zip(optional_hash(row, "finalized_hash")?)
            .map(|(number, hash)| L2Ref { number: number.into(), hash }),
        seen: number(row, "seen")? != 0,
    })
}

fn own_mark(row: &SqliteRow) -> PortResult<OwnMark> {
    Ok(OwnMark {
        tag: L2Ref { number: L2Number::new(number(row, "number")?), hash: hash(row, "hash")? },
        before: optional_number(row, "before_number")?
            .zip(optional_hash(row, "before_hash")?)
            .map(|(number, hash)| L2Ref { number: number.into(), hash }),
    })
}

fn identity(row: &SqliteRow) -> PortResult<Identity> {
    Ok(Identity {
        l1_chain_id: number(row, "l1_chain_id")?,
        l2_chain_id: number(row, "l2_chain_id")?,
        rollup: address(row, "rollup")?,
        queue: address(row, "queue")?,
        l2_genesis: hash(row, "l2_genesis")?,
    })
}

/// The first field in which a stored identity differs from the configured one, with both values.
fn identity_difference(stored: &Identity, configured: &Identity) -> Option<(&'static str, String, String)> {
    let fields = [
        ("L1 chain id", stored.l1_chain_id.to_string(), configured.l1_chain_id.to_string()),
        ("L2 chain id", stored.l2_chain_id.to_string(), configured.l2_chain_id.to_string()),
        ("Rollup contract", format!("{:?}", stored.rollup), format!("{:?}", configured.rollup)),
        ("L1MessageQueue contract", format!("{:?}", stored.queue), format!("{:?}", configured.queue)),
        ("L2 genesis hash", format!("{:?}", stored.l2_genesis), format!("{:?}", configured.l2_genesis)),
    ];
    fields.into_iter().find(|(_, stored, configured)| stored != configured)
}

/// Drops everything that was recorded in L1 blocks above `to`, and undoes what reverts there had done.
async fn rewind(db: &mut SqliteConnection, to: L1Number) -> PortResult<()> {
    let to = sql_bound(to.get());
    for statement in [
        "DELETE FROM l1_blocks WHERE number > ?",
        "DELETE FROM l1_messages WHERE l1_number > ?",
        "DELETE FROM reverts WHERE l1_number > ?",
        "DELETE FROM proofs WHERE l1_number > ?",
        "DELETE FROM settled WHERE block_number > ?",
        "DELETE FROM batches WHERE l1_number > ?",
        // Never looked at because of a revert that is gone: as if it had not been read.
        "DELETE FROM batches WHERE reverted_at > ? AND reverted_was IS NULL",
        // After the lines above: a batch committed again in the reverted one's place is gone before that one stands.
        "UPDATE batches SET outcome = reverted_was, reverted_at = NULL, reverted_was = NULL WHERE reverted_at > ?",
    ] {
        sqlx::query(statement).bind(to).execute(&mut *db).await.map_err(sql_error)?;
    }
    Ok(())
}

/// Takes standing batches from `from` on down. With the revert's log the L1 block is kept, so that a reorg can undo it.
async fn revert_batches(db: &mut SqliteConnection, from: BatchIndex, revert: Option<&L1Event>) -> PortResult<()> {
    let at = revert.map(|event| sql_number(event.block.number.get())).transpose()?;
    sqlx::query(
        "UPDATE batches SET reverted_at = ?1, reverted_was = CASE WHEN ?1 IS NULL THEN NULL ELSE outcome END, \
         outcome = 'reverted' WHERE batch_index >= ?2 AND outcome IN ('verified', 'genesis')",
    )
    .bind(at)
    .bind(sql_bound(from.get()))
    .execute(db)
    .await
    .map_err(sql_error)?;
    Ok(())
}

async fn forget_batches(db: &mut SqliteConnection, from: BatchIndex) -> PortResult<()> {
    sqlx::query("DELETE FROM batches WHERE batch_index >= ? AND outcome IN ('verified', 'genesis')")
        .bind(sql_bound(from.get()))
        .execute(db)
        .await
        .map_err(sql_error)?;
    Ok(())
}

async fn put_messages(db: &mut SqliteConnection, messages: &[(L1Ref, L1Message)]) -> PortResult<()> {
    for chunk in messages.chunks(INSERT_CHUNK) {
        let mut rows = Vec::with_capacity(chunk.len());
        for (block, message) in chunk {
            rows.push((sql_number(message.index.get())?, message, sql_number(block.number.get())?, block.hash));
        }
        let mut query =
            QueryBuilder::<Sqlite>::new("INSERT INTO l1_messages (queue_index, hash, raw, l1_number, l1_hash) ");
        query.push_values(rows, |mut row, (index, message, l1_number, l1_hash)| {
            row.push_bind(index)
                .push_bind(message.hash.as_bytes().to_vec())
                .push_bind(message.raw.to_vec())
                .push_bind(l1_number)
                .push_bind(l1_hash.as_bytes().to_vec());
        });
        query.push(
            " ON CONFLICT (queue_index) DO UPDATE SET hash = excluded.hash, raw = excluded.raw, \
             l1_number = excluded.l1_number, l1_hash = excluded.l1_hash",
        );
        query.build().persistent(false).execute(&mut *db).await.map_err(sql_error)?;
    }
    Ok(())
}

async fn put_l1_blocks(db: &mut SqliteConnection, blocks: &[L1Ref]) -> PortResult<()> {
    for chunk in blocks.chunks(INSERT_CHUNK) {
        let mut rows = Vec::with_capacity(chunk.len());
        for block in chunk {
            rows.push((sql_number(block.number.get())?, block.hash));
        }
        let mut query = QueryBuilder::<Sqlite>::new("INSERT INTO l1_blocks (number, hash) ");
        query.push_values(rows, |mut row, (number, hash)| {
            row.push_bind(number).push_bind(hash.as_bytes().to_vec());
        });
        query.push(" ON CONFLICT (number) DO UPDATE SET hash = excluded.hash");
        query.build().persistent(false).execute(&mut *db).await.map_err(sql_error)?;
    }
    Ok(())
}

/// Drops L1 blocks below `floor`, but never the newest one: the next start compares with it.
async fn drop_l1_blocks(db: &mut SqliteConnection, floor: L1Number) -> PortResult<()> {
    sqlx::query("DELETE FROM l1_blocks WHERE number < ? AND number < (SELECT max(number) FROM l1_blocks)")
        .bind(sql_bound(floor.get()))
        .execute(db)
        .await
        .map_err(sql_error)?;
    Ok(())
}

async fn put_revert(db: &mut SqliteConnection, event: &L1Event) -> PortResult<()> {
    match event.kind {
        L1EventKind::Revert { .. } => put_settlement(db, event).await,
        _ => Err(PortError::malformed(Target::Store, "a step's revert is not a RevertBatch log")),
    }
}

macro_rules! put_settlement {
    ($table:literal) => {
        concat!(
            "INSERT INTO ",
            $table,
            " (l1_number, log_index, l1_hash, tx_hash, tx_index, batch_index, batch_hash) VALUES (?, ?, ?, ?, ?, ?, ?) \
             ON CONFLICT (l1_number, log_index) DO UPDATE SET l1_hash = excluded.l1_hash, tx_hash = excluded.tx_hash, \
             tx_index = excluded.tx_index, batch_index = excluded.batch_index, batch_hash = excluded.batch_hash"
        )
    };
}

/// Stores a RevertBatch or FinalizeBatch log under its place.
async fn put_settlement(db: &mut SqliteConnection, event: &L1Event) -> PortResult<()> {
    let (statement, index, hash) = match &event.kind {
        L1EventKind::Revert { index, hash } => (put_settlement!("reverts"), index, hash),
        L1EventKind::Finalize { index, hash } => (put_settlement!("proofs"), index, hash),
        L1EventKind::Commit { .. } | L1EventKind::Message(_) => {
            return Err(PortError::malformed(Target::Store, "neither a RevertBatch nor a FinalizeBatch log"));
        }
    };
    sqlx::query(statement)
        .bind(sql_number(event.block.number.get())?)
        .bind(sql_number(event.log_index)?)
        .bind(event.block.hash.as_bytes())
        .bind(event.tx_hash.as_bytes())
        .bind(sql_number(event.tx_index)?)
        .bind(sql_number(index.get())?)
        .bind(hash.as_bytes())
        .execute(db)
        .await
        .map_err(sql_error)?;
    Ok(())
}

/// Never lowers what is stored: an ordinary range may end below what the scan ahead of it has read.
async fn put_settled(db: &mut SqliteConnection, to: L1Ref) -> PortResult<()> {
    sqlx::query(
        "INSERT INTO settled (id, block_number, block_hash) VALUES (1, ?, ?) ON CONFLICT (id) DO UPDATE \
         SET block_number = excluded.block_number, block_hash = excluded.block_hash \
         WHERE excluded.block_number > settled.block_number",
    )
    .bind(sql_number(to.number.get())?)
    .bind(to.hash.as_bytes())
    .execute(db)
    .await
    .map_err(sql_error)?;
    Ok(())
}

async fn forget_settled(db: &mut SqliteConnection, above: L1Number) -> PortResult<()> {
    for statement in
        ["DELETE FROM reverts WHERE l1_number > ?", "DELETE FROM proofs WHERE l1_number > ?", "DELETE FROM settled"]
    {
        sqlx::query(statement).bind(sql_bound(above.get())).execute(&mut *db).await.map_err(sql_error)?;
    }
    Ok(())
}

async fn forget_proof(db: &mut SqliteConnection, proof: &L1Event) -> PortResult<()> {
    sqlx::query("DELETE FROM proofs WHERE l1_number = ? AND log_index = ? AND l1_hash = ?")
        .bind(sql_number(proof.block.number.get())?)
        .bind(sql_number(proof.log_index)?)
        .bind(proof.block.hash.as_bytes())
        .execute(db)
        .await
        .map_err(sql_error)?;
    Ok(())
}

/// Writes a batch row over one of the same L1 position. A second standing batch of one index breaks the schema's rule
/// and is `StoreRefused`: it was neither reverted nor forgotten before.
async fn put_batch(db: &mut SqliteConnection, batch: &BatchRecord, reverted_by: Option<L1Number>) -> PortResult<()> {
    sqlx::query(
        "INSERT INTO batches (l1_number, log_index, l1_hash, tx_hash, batch_index, hash, outcome, handling, \
         first_block, last_number, last_hash, post_state_root, withdrawal_root, total_l1_popped, rewritten, \
         encoder_drift, reverted_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT (l1_number, log_index) DO UPDATE SET l1_hash = excluded.l1_hash, tx_hash = excluded.tx_hash, \
         batch_index = excluded.batch_index, hash = excluded.hash, outcome = excluded.outcome, \
         handling = excluded.handling, first_block = excluded.first_block, last_number = excluded.last_number, \
         last_hash = excluded.last_hash, post_state_root = excluded.post_state_root, \
         withdrawal_root = excluded.withdrawal_root, total_l1_popped = excluded.total_l1_popped, \
         rewritten = excluded.rewritten, encoder_drift = excluded.encoder_drift, \
         reverted_at = excluded.reverted_at, \
         reverted_was = NULL",
    )
    .bind(sql_number(batch.l1.number.get())?)
    .bind(sql_number(batch.log_index)?)
    .bind(batch.l1.hash.as_bytes())
    .bind(batch.tx_hash.as_bytes())
    .bind(sql_number(batch.index.get())?)
    .bind(batch.hash.as_bytes())
    .bind(batch.outcome.as_str())
    .bind(batch.case.map(Case::as_str))
    .bind(batch.first.map(|first| sql_number(first.get())).transpose()?)
    .bind(batch.last.map(|last| sql_number(last.number.get())).transpose()?)
    .bind(batch.last.map(|last| last.hash.as_bytes().to_vec()))
    .bind(batch.post_state_root.as_bytes())
    .bind(batch.withdrawal_root.as_bytes())
    .bind(sql_number(batch.total_l1_popped)?)
    .bind(sql_number(batch.rewritten)?)
    .bind(batch.encoder_drift)
    .bind(reverted_by.map(|block| sql_number(block.get())).transpose()?)
    .execute(db)
    .await
    .map_err(sql_error)?;
    Ok(())
}

async fn put_head(db: &mut SqliteConnection, kind: &'static str, head: L2Ref) -> PortResult<()> {
    sqlx::query(
        "INSERT INTO heads (kind, number, hash) VALUES (?, ?, ?) \
         ON CONFLICT (kind) DO UPDATE SET number = excluded.number, hash = excluded.hash",
    )
    .bind(kind)
    .bind(sql_number(head.number.get())?)
    .bind(head.hash.as_bytes())
    .execute(db)
    .await
    .map_err(sql_error)?;
    Ok(())
}

async fn put_cursor(db: &mut SqliteConnection, cursor: Cursor) -> PortResult<()> {
    sqlx::query(
        "INSERT INTO cursor (id, block_number, block_hash, log_index) VALUES (1, ?, ?, ?) ON CONFLICT (id) DO UPDATE \
         SET block_number = excluded.block_number, block_hash = excluded.block_hash, log_index = excluded.log_index",
    )
    .bind(sql_number(cursor.block.number.get())?)
    .bind(cursor.block.hash.as_bytes())
    .bind(cursor.log_index.map(sql_number).transpose()?)
    .execute(db)
    .await
    .map_err(sql_error)?;
    Ok(())
}

async fn head(pool: &SqlitePool, kind: &'static str) -> PortResult<Option<L2Ref>> {
    let row = sqlx::query("SELECT number, hash FROM heads WHERE kind = ?")
        .bind(kind)
        .fetch_optional(pool)
        .await
        .map_err(sql_error)?;
    row.map(|row| Ok(L2Ref { number: L2Number::new(number(&row, "number")?), hash: hash(&row, "hash")? })).transpose()
}

async fn cursor(pool: &SqlitePool) -> PortResult<Option<Cursor>> {
    let row = sqlx::query("SELECT block_number, block_hash, log_index FROM cursor")
        .fetch_optional(pool)
        .await
        .map_err(sql_error)?;
    row.map(|row| {
        Ok(Cursor {
            block: l1_ref(&row, "block_number", "block_hash")?,
            log_index: optional_number(&row, "log_index")?,
        })
    })
    .transpose()
}

async fn lease(pool: &SqlitePool) -> PortResult<Option<Lease>> {
    let row = sqlx::query("SELECT height, since FROM lease").fetch_optional(pool).await.map_err(sql_error)?;
    row.map(|row| Ok(Lease { height: L2Number::new(number(&row, "height")?), since: number(&row, "since")? }))
        .transpose()
}

async fn open_writes(pool: &SqlitePool) -> PortResult<Vec<OpenWrite>> {
    let rows = sqlx::query(
        "SELECT number, batch_index, batch_hash, handling, old_hash, new_hash, finalized_number, finalized_hash, seen \
         FROM open_writes ORDER BY number",
    )
    .fetch_all(pool)
    .await
    .map_err(sql_error)?;
    rows.iter().map(open_write).collect()
}

async fn put_open_write(db: &mut SqliteConnection, write: &OpenWrite) -> PortResult<()> {
    sqlx::query(
        "INSERT INTO open_writes (number, batch_index, batch_hash, handling, old_hash, new_hash, finalized_number, \
         finalized_hash, seen) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (number) DO UPDATE SET \
         finalized_number = excluded.finalized_number, finalized_hash = excluded.finalized_hash, seen = excluded.seen",
    )
    .bind(sql_number(write.number.get())?)
    .bind(sql_number(write.batch.get())?)
    .bind(write.batch_hash.as_bytes())
    .bind(write.case.as_str())
    .bind(write.old_hash.map(|hash| hash.as_bytes().to_vec()))
    .bind(write.new_hash.map(|hash| hash.as_bytes().to_vec()))
    .bind(write.finalized.map(|f| sql_number(f.number.get())).transpose()?)
    .bind(write.finalized.map(|f| f.hash.as_bytes().to_vec()))
    .bind(i64::from(write.seen))
    .execute(db)
    .await
    .map_err(sql_error)?;
    Ok(())
}

async fn mark(pool: &SqlitePool) -> PortResult<Option<OwnMark>> {
    let row = sqlx::query("SELECT number, hash, before_number, before_hash FROM own_mark")
        .fetch_optional(pool)
        .await
        .map_err(sql_error)?;
    row.as_ref().map(own_mark).transpose()
}

async fn put_mark(db: &mut SqliteConnection, mark: Option<&OwnMark>) -> PortResult<()> {
    sqlx::query("DELETE FROM own_mark").execute(&mut *db).await.map_err(sql_error)?;
    let Some(mark) = mark else { return Ok(()) };
    sqlx::query("INSERT INTO own_mark (id, number, hash, before_number, before_hash) VALUES (1, ?, ?, ?, ?)")
        .bind(sql_number(mark.tag.number.get())?)
        .bind(mark.tag.hash.as_bytes())
        .bind(mark.before.map(|b| sql_number(b.number.get())).transpose()?)
        .bind(mark.before.map(|b| b.hash.as_bytes().to_vec()))
        .execute(db)
        .await
        .map_err(sql_error)?;
    Ok(())
}

async fn close_writes(db: &mut SqliteConnection, up_to: BatchIndex) -> PortResult<()> {
    sqlx::query("DELETE FROM open_writes WHERE batch_index <= ?")
        .bind(sql_bound(up_to.get()))
        .execute(db)
        .await
        .map_err(sql_error)?;
    Ok(())
}

async fn tip(pool: &SqlitePool) -> PortResult<Option<BatchRecord>> {
    let row = sqlx::query(batch_columns!("WHERE outcome IN ('verified', 'genesis') ORDER BY batch_index DESC LIMIT 1"))
        .fetch_optional(pool)
        .await
        .map_err(sql_error)?;
    row.as_ref().map(batch_record).transpose()
}

#[async_trait]
impl Rows for SqliteStore {
    async fn l1_blocks(&self) -> PortResult<Vec<L1Ref>> {
        let pool = self.pool.clone();
        bounded(async move {
            let rows = sqlx::query("SELECT number, hash FROM l1_blocks ORDER BY number DESC")
                .fetch_all(&pool)
                .await
                .map_err(sql_error)?;
            rows.iter().map(|row| l1_ref(row, "number", "hash")).collect()
        })
        .await
    }

    async fn newest_l1_block(&self) -> PortResult<Option<L1Ref>> {
        let pool = self.pool.clone();
        bounded(async move {
            let row = sqlx::query("SELECT number, hash FROM l1_blocks ORDER BY number DESC LIMIT 1")
                .fetch_optional(&pool)
                .await
                .map_err(sql_error)?;
            row.map(|row| l1_ref(&row, "number", "hash")).transpose()
        })
        .await
    }

    async fn batch(&self, index: BatchIndex) -> PortResult<Option<BatchRecord>> {
        let pool = self.pool.clone();
        bounded(async move {
            let row =
                sqlx::query(batch_columns!("WHERE batch_index = ? AND outcome IN ('verified', 'genesis') LIMIT 1"))
                    .bind(sql_bound(index.get()))
                    .fetch_optional(&pool)
                    .await
                    .map_err(sql_error)?;
            row.as_ref().map(batch_record).transpose()
        })
        .await
    }

    async fn batches_from(&self, from: BatchIndex, limit: u32) -> PortResult<Vec<BatchRecord>> {
        let pool = self.pool.clone();
        bounded(async move {
            let rows = sqlx::query(batch_columns!(
                "WHERE batch_index >= ? AND outcome IN ('verified', 'genesis') ORDER BY batch_index LIMIT ?"
            ))
            .bind(sql_bound(from.get()))
            .bind(i64::from(limit))
            .fetch_all(&pool)
            .await
            .map_err(sql_error)?;
            rows.iter().map(batch_record).collect()
        })
        .await
    }

    async fn newest_at_or_below(&self, number: L1Number) -> PortResult<Option<BatchRecord>> {
        let pool = self.pool.clone();
        bounded(async move {
            let row = sqlx::query(batch_columns!(
                "WHERE outcome IN ('verified', 'genesis') AND l1_number <= ? ORDER BY batch_index DESC LIMIT 1"
            ))
            .bind(sql_bound(number.get()))
            .fetch_optional(&pool)
            .await
            .map_err(sql_error)?;
            row.as_ref().map(batch_record).transpose()
        })
        .await
    }

    async fn reverted_above(&self, number: L1Number) -> PortResult<Option<BatchRecord>> {
        let pool = self.pool.clone();
        bounded(async move {
            let row = sqlx::query(batch_columns!(
                "WHERE reverted_at > ?1 AND reverted_was IS NULL AND l1_number <= ?1 ORDER BY l1_number, log_index LIMIT 1"
            ))
            .bind(sql_bound(number.get()))
            .fetch_optional(&pool)
            .await
            .map_err(sql_error)?;
            row.as_ref().map(batch_record).transpose()
        })
        .await
    }

    async fn settled_to(&self) -> PortResult<Option<L1Ref>> {
        let pool = self.pool.clone();
        bounded(async move {
            let row = sqlx::query("SELECT block_number, block_hash FROM settled")
                .fetch_optional(&pool)
                .await
                .map_err(sql_error)?;
            row.map(|row| l1_ref(&row, "block_number", "block_hash")).transpose()
        })
        .await
    }

    async fn revert_after(&self, index: BatchIndex, place: (L1Number, u64)) -> PortResult<Option<L1Event>> {
        let pool = self.pool.clone();
        bounded(async move {
            let row = sqlx::query(
                "SELECT * FROM reverts WHERE (l1_number, log_index) > (?, ?) AND batch_index <= ? \
                 ORDER BY l1_number, log_index LIMIT 1",
            )
            .bind(sql_bound(place.0.get()))
            .bind(sql_bound(place.1))
            .bind(sql_bound(index.get()))
            .fetch_optional(&pool)
            .await
            .map_err(sql_error)?;
            row.as_ref().map(revert_of).transpose()
        })
        .await
    }

    async fn reverts_within(&self, place: (L1Number, u64), to: L1Number, limit: u32) -> PortResult<Vec<L1Event>> {
        let pool = self.pool.clone();
        bounded(async move {
            let rows = sqlx::query(
                "SELECT * FROM reverts WHERE (l1_number, log_index) > (?, ?) AND l1_number <= ? \
                 ORDER BY l1_number, log_index LIMIT ?",
            )
            .bind(sql_bound(place.0.get()))
            .bind(sql_bound(place.1))
            .bind(sql_bound(to.get()))
            .bind(i64::from(limit))
            .fetch_all(&pool)
            .await
            .map_err(sql_error)?;
            rows.iter().map(revert_of).collect()
        })
        .await
    }

    async fn newest_proof(&self, number: L1Number) -> PortResult<Option<L1Event>> {
        let pool = self.pool.clone();
        bounded(async move {
            let row = sqlx::query("SELECT * FROM proofs WHERE l1_number <= ? ORDER BY batch_index DESC LIMIT 1")
                .bind(sql_bound(number.get()))
                .fetch_optional(&pool)
                .await
                .map_err(sql_error)?;
            row.as_ref().map(proof_of).transpose()
        })
        .await
    }

    async fn messages(&self, first: QueueIndex, count: u64) -> PortResult<Vec<L1Message>> {
        let pool = self.pool.clone();
        bounded(async move {
            let rows = sqlx::query(
                "SELECT queue_index, hash, raw FROM l1_messages WHERE queue_index >= ? AND queue_index < ? \
                 ORDER BY queue_index",
            )
            .bind(sql_bound(first.get()))
            .bind(sql_bound(first.plus(count).get()))
            .fetch_all(&pool)
            .await
            .map_err(sql_error)?;
            rows.iter().map(l1_message).collect()
        })
        .await
    }

    async fn journal_tail(&self, limit: u32) -> PortResult<Vec<JournalEntry>> {
        let pool = self.pool.clone();
        bounded(async move {
            let rows = sqlx::query(
                "SELECT at, batch_index, number, old_hash, new_hash, why FROM journal ORDER BY id DESC LIMIT ?",
            )
            .bind(i64::from(limit))
            .fetch_all(&pool)
            .await
            .map_err(sql_error)?;
            rows.iter().map(journal_entry).collect()
        })
        .await
    }
}

#[async_trait]
impl LeaseStore for SqliteStore {
    async fn lease(&self) -> PortResult<Option<Lease>> {
        let pool = self.pool.clone();
        bounded(async move { lease(&pool).await }).await
    }

    async fn set_lease(&self, lease: Option<Lease>) -> PortResult<()> {
        let pool = self.pool.clone();
        bounded(async move {
            let mut db = pool.acquire().await.map_err(sql_error)?;
            sqlx::query("PRAGMA synchronous = FULL").execute(&mut *db).await.map_err(sql_error)?;
            let written = match lease {
                Some(lease) => {
                    sqlx::query(
                        "INSERT INTO lease (id, height, since) VALUES (1, ?, ?) \
                         ON CONFLICT (id) DO UPDATE SET height = excluded.height, since = excluded.since",
                    )
                    .bind(sql_number(lease.height.get())?)
                    .bind(sql_number(lease.since)?)
                    .execute(&mut *db)
                    .await
                }
                None => sqlx::query("DELETE FROM lease").execute(&mut *db).await,
            };
            // Also after a failure; one that is cancelled here only leaves the connection slower.
            sqlx::query("PRAGMA synchronous = NORMAL").execute(&mut *db).await.map_err(sql_error)?;
            written.map(|_| ()).map_err(sql_error)
        })
        .await
    }
}

#[async_trait]
impl Progress for SqliteStore {
    async fn load(&self) -> PortResult<Stored> {
        let pool = self.pool.clone();
        bounded(async move {
            Ok(Stored {
                cursor: cursor(&pool).await?,
                safe: head(&pool, "safe").await?,
                finalized: head(&pool, "finalized").await?,
                lease: lease(&pool).await?,
                tip: tip(&pool).await?,
                open_writes: open_writes(&pool).await?,
                mark: mark(&pool).await?,
            })
        })
        .await
    }

    async fn claim(&self, configured: &Identity) -> PortResult<()> {
        let configured = configured.clone();
        let pool = self.pool.clone();
        bounded(async move {
            sqlx::query(
                "INSERT INTO identity (id, l1_chain_id, l2_chain_id, rollup, queue, l2_genesis) \
                 VALUES (1, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
            )
            .bind(sql_number(configured.l1_chain_id)?)
            .bind(sql_number(configured.l2_chain_id)?)
            .bind(configured.rollup.as_bytes())
            .bind(configured.queue.as_bytes())
            .bind(configured.l2_genesis.as_bytes())
            .execute(&pool)
            .await
            .map_err(sql_error)?;
            let row = sqlx::query("SELECT l1_chain_id, l2_chain_id, rollup, queue, l2_genesis FROM identity")
                .fetch_one(&pool)
                .await
                .map_err(sql_error)?;
            match identity_difference(&identity(&row)?, &configured) {
                None => Ok(()),
                Some((field, stored, configured)) => Err(refused(format!(
                    "the database belongs to another network: its {field} is {stored}, configured is {configured}; \
                     put the configuration right, or give this network a store.path of its own"
                ))),
            }
        })
        .await
    }

    async fn apply(&self, step: &Step) -> PortResult<()> {
        let step = step.clone();
        let pool = self.pool.clone();
        bounded(async move {
            let mut held = begin(&pool).await?;
            let done = async {
                let db = &mut *held;
                if let Some(to) = step.rewind_to {
                    rewind(db, to).await?;
                }
                if let Some(from) = step.revert_from {
                    revert_batches(db, from, step.revert.as_ref()).await?;
                }
                if let Some(from) = step.forget_from {
                    forget_batches(db, from).await?;
                }
                put_messages(db, &step.messages).await?;
                if let Some(above) = step.forget_settled_above {
                    forget_settled(db, above).await?;
                }
                if let Some(proof) = &step.forget_proof {
                    forget_proof(db, proof).await?;
                }
                if let Some(event) = &step.revert {
                    put_revert(db, event).await?;
                }
                for event in &step.settlements {
                    put_settlement(db, event).await?;
                }
                if let Some(to) = step.settled_to {
                    put_settled(db, to).await?;
                }
                for batch in &step.rebound {
                    put_batch(db, batch, None).await?;
                }
                if let Some(batch) = &step.batch {
                    put_batch(db, batch, step.reverted_by).await?;
                }
                if let Some(batch) = &step.batch {
                    close_writes(db, batch.index).await?;
                }
                put_l1_blocks(db, &step.l1_blocks).await?;
                if let Some(floor) = step.l1_floor {
                    drop_l1_blocks(db, floor).await?;
                }
                if step.clear_safe {
                    sqlx::query("DELETE FROM heads WHERE kind = 'safe'").execute(&mut *db).await.map_err(sql_error)?;
                }
                if step.clear_cursor {
                    sqlx::query("DELETE FROM cursor").execute(&mut *db).await.map_err(sql_error)?;
                }
                if let Some(safe) = step.safe {
                    put_head(db, "safe", safe).await?;
                }
                if let Some(finalized) = step.finalized {
                    put_head(db, "finalized", finalized).await?;
                }
                if let Some(cursor) = step.cursor {
                    put_cursor(db, cursor).await?;
                }
                Ok(())
            }
            .await;
            end(held, done).await
        })
        .await
    }

    async fn open_writes(&self, writes: &[OpenWrite]) -> PortResult<()> {
        let writes = writes.to_vec();
        let pool = self.pool.clone();
        bounded(async move {
            let mut held = begin(&pool).await?;
            let done = async {
                let db = &mut *held;
                if let Some(first) = writes.first() {
                    sqlx::query("DELETE FROM open_writes WHERE batch_hash <> ?")
                        .bind(first.batch_hash.as_bytes())
                        .execute(&mut *db)
                        .await
                        .map_err(sql_error)?;
                }
                for write in &writes {
                    put_open_write(db, write).await?;
                }
                Ok(())
            }
            .await;
            end(held, done).await
        })
        .await
    }

    async fn withdraw_writes(&self, from: L2Number, standing: L2Number) -> PortResult<()> {
        let pool = self.pool.clone();
        bounded(async move {
            let mut held = begin(&pool).await?;
            let done = async {
                let db = &mut *held;
                sqlx::query(
                    "DELETE FROM open_writes WHERE number >= ? AND new_hash IS NULL AND (old_hash IS NULL OR number <= ?)",
                )
                .bind(sql_bound(from.get()))
                .bind(sql_bound(standing.get()))
                .execute(&mut *db)
                .await
                .map_err(sql_error)?;
                sqlx::query("UPDATE open_writes SET seen = 1 WHERE number >= ? AND new_hash IS NULL")
                    .bind(sql_bound(from.get()))
                    .execute(&mut *db)
                    .await
                    .map_err(sql_error)?;
                Ok(())
            }
            .await;
            end(held, done).await
        })
        .await
    }

    async fn looked(&self, seen_to: Option<L2Number>, mark: Option<OwnMark>) -> PortResult<()> {
        let pool = self.pool.clone();
        bounded(async move {
            let mut held = begin(&pool).await?;
            let done = async {
                let db = &mut *held;
                if let Some(to) = seen_to {
                    sqlx::query("UPDATE open_writes SET seen = 1 WHERE number <= ?")
                        .bind(sql_bound(to.get()))
                        .execute(&mut *db)
                        .await
                        .map_err(sql_error)?;
                }
                put_mark(db, mark.as_ref()).await
            }
            .await;
            end(held, done).await
        })
        .await
    }

    async fn journal(&self, entries: &[JournalEntry]) -> PortResult<()> {
        let entries = entries.to_vec();
        let pool = self.pool.clone();
        bounded(async move {
            let mut held = begin(&pool).await?;
            let done = async {
                let db = &mut *held;
                for chunk in entries.chunks(INSERT_CHUNK) {
                    let mut rows = Vec::with_capacity(chunk.len());
                    for entry in chunk {
                        let (at, batch) = (sql_number(entry.at)?, sql_number(entry.batch.get())?);
                        rows.push((at, batch, sql_number(entry.number.get())?, entry));
                    }
                    let mut query = QueryBuilder::<Sqlite>::new(
                        "INSERT INTO journal (at, batch_index, number, old_hash, new_hash, why) ",
                    );
                    query.push_values(rows, |mut row, (at, batch, number, entry)| {
                        row.push_bind(at)
                            .push_bind(batch)
                            .push_bind(number)
                            .push_bind(entry.old_hash.map(|hash| hash.as_bytes().to_vec()))
                            .push_bind(entry.new_hash.as_bytes().to_vec())
                            .push_bind(entry.why.clone());
                    });
                    query.build().persistent(false).execute(&mut *db).await.map_err(sql_error)?;
                }
                for entry in &entries {
                    sqlx::query("UPDATE open_writes SET new_hash = ? WHERE number = ? AND batch_index = ?")
                        .bind(entry.new_hash.as_bytes())
                        .bind(sql_number(entry.number.get())?)
                        .bind(sql_number(entry.batch.get())?)
                        .execute(&mut *db)
                        .await
                        .map_err(sql_error)?;
                }
                Ok(())
            }
            .await;
            end(held, done).await
        })
        .await
    }

    async fn prune(&self, l1: L1Number, queue: QueueIndex, batch: BatchIndex) -> PortResult<()> {
        let pool = self.pool.clone();
        bounded(async move {
            let mut held = begin(&pool).await?;
            let done = async {
                let db = &mut *held;
            drop_l1_blocks(db, l1).await?;
            let below = [
                (
                    "DELETE FROM l1_messages WHERE queue_index < min(?, coalesce((SELECT total_l1_popped FROM batches \
                     WHERE outcome IN ('verified', 'genesis') ORDER BY batch_index DESC LIMIT 1), 0))",
                    sql_bound(queue.get()),
                ),
                (
                    "DELETE FROM batches WHERE batch_index < ? AND batch_index < coalesce((SELECT max(batch_index) \
                     FROM batches WHERE outcome IN ('verified', 'genesis')), 0)",
                    sql_bound(batch.get()),
                ),
                // Behind the rows: a row that is kept is read again with the reverts above it.
                (
                    "DELETE FROM reverts WHERE l1_number < ? \
                     AND l1_number < coalesce((SELECT min(l1_number) FROM batches), 0)",
                    sql_bound(l1.get()),
                ),
                (
                    "DELETE FROM proofs WHERE batch_index < ? \
                     AND batch_index < (SELECT max(batch_index) FROM proofs)",
                    sql_bound(batch.get()),
                ),
                ("DELETE FROM journal WHERE id <= (SELECT max(id) FROM journal) - ?", JOURNAL_KEPT),
            ];
            for (statement, bound) in below {
                sqlx::query(statement).bind(bound).execute(&mut *db).await.map_err(sql_error)?;
            }
                Ok(())
            }
            .await;
            end(held, done).await
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h(n: u64) -> B256 {
        B256::from_low_u64_be(n)
    }

    fn l1(number: u64) -> L1Ref {
        L1Ref { number: L1Number::new(number), hash: h(number) }
    }

    fn l2(number: u64) -> L2Ref {
        L2Ref { number: L2Number::new(number), hash: h(number) }
    }

    fn record(index: u64, l1_number: u64) -> BatchRecord {
        BatchRecord {
            index: BatchIndex::new(index),
            hash: h(1_000 + index),
            l1: l1(l1_number),
            log_index: 0,
            tx_hash: h(2_000 + index),
            outcome: Outcome::Verified,
            case: Some(Case::Consistent),
            first: Some(L2Number::new(index * 10)),
            last: Some(l2(index * 10 + 9)),
            post_state_root: h(3),
            withdrawal_root: h(4),
            total_l1_popped: index,
            rewritten: 0,
            encoder_drift: false,
        }
    }

    fn message(index: u64) -> L1Message {
        L1Message { index: QueueIndex::new(index), hash: h(index), raw: vec![0x7e, 1, 2].into() }
    }

    fn revert(index: u64, l1_number: u64) -> L1Event {
        L1Event {
            block: l1(l1_number),
            log_index: 1,
            tx_hash: h(9),
            tx_index: 0,
            kind: L1EventKind::Revert { index: BatchIndex::new(index), hash: h(1_000 + index) },
        }
    }

    fn cursor_at(number: u64) -> Cursor {
        Cursor { block: l1(number), log_index: None }
    }

    fn network() -> Identity {
        Identity {
            l1_chain_id: 1,
            l2_chain_id: 2818,
            rollup: Address::repeat_byte(1),
            queue: Address::repeat_byte(2),
            l2_genesis: h(7),
        }
    }

    /// A step that touches every table.
    fn full_step(index: u64) -> Step {
        Step {
            messages: vec![(l1(index), message(index)), (l1(index), message(index + 1))],
            batch: Some(record(index, index)),
            l1_blocks: vec![l1(index)],
            safe: Some(l2(index * 10 + 9)),
            finalized: Some(l2(1)),
            cursor: Some(cursor_at(index)),
            ..Step::default()
        }
    }

    async fn store_with(batches: u64) -> SqliteStore {
        let store = SqliteStore::in_memory().await.unwrap();
        for index in 1..=batches {
            store.apply(&full_step(index)).await.unwrap();
        }
        store
    }

    async fn indices(store: &SqliteStore) -> Vec<u64> {
        let rows = store.batches_from(BatchIndex::new(0), 100).await.unwrap();
        rows.iter().map(|row| row.index.get()).collect()
    }

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
        assert_eq!(store.batches_from(BatchIndex::new(1), 2).await.unwrap().len(), 2);
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
    async fn forgotten_batches_can_be_stored_again_within_the_step() {
        let store = store_with(3).await;
        let step = Step { forget_from: Some(BatchIndex::new(2)), batch: Some(record(2, 2)), ..Step::default() };
        store.apply(&step).await.unwrap();
        assert_eq!(indices(&store).await, [1, 2]);
    }

    #[tokio::test]
    async fn steps_can_be_repeated() {
        let store = store_with(2).await;
        let before = store.load().await.unwrap();
        store.apply(&full_step(2)).await.unwrap();
        assert_eq!(store.load().await.unwrap(), before);
    }

    #[tokio::test]
    async fn h1_a_write_that_was_begun_is_told_until_its_batch_is_stored() {
        let store = store_with(1).await;
        let begun = |number: u64, batch: u64| OpenWrite {
            number: number.into(),
            batch: batch.into(),
            batch_hash: h(1_000 + batch),
            case: Case::SelfHeal,
            old_hash: Some(h(number)),
            new_hash: None,
            finalized: Some(l2(7)).filter(|_| number != 11),
            seen: false,
        };
        store.open_writes(&[begun(9, 5)]).await.unwrap();
        // Another batch is written now: what was begun for the old one is forgotten.
        store.open_writes(&[begun(10, 2), begun(11, 2)]).await.unwrap();
        let written = JournalEntry {
            at: 1,
            batch: 2.into(),
            number: 10.into(),
            old_hash: Some(h(10)),
            new_hash: h(77),
            why: "self-heal".to_owned(),
        };
        store.journal(std::slice::from_ref(&written)).await.unwrap();
        let again = OpenWrite { old_hash: None, case: Case::FillGap, ..begun(10, 2) };
        store.open_writes(&[again]).await.unwrap();
        let first = OpenWrite { new_hash: Some(h(77)), ..begun(10, 2) };
        assert_eq!(store.load().await.unwrap().open_writes, [first, begun(11, 2)]);
        store.apply(&Step { batch: Some(record(1, 1)), ..Step::default() }).await.unwrap();
        assert_eq!(store.load().await.unwrap().open_writes.len(), 2);
        // A refusal takes back what it refused, and nothing that was written.
        store.open_writes(&[begun(12, 2)]).await.unwrap();
        store.withdraw_writes(12.into(), 20.into()).await.unwrap();
        assert_eq!(store.load().await.unwrap().open_writes, [first, begun(11, 2)]);
        store.withdraw_writes(9.into(), 20.into()).await.unwrap();
        assert_eq!(store.load().await.unwrap().open_writes, [first]);
        // What stood above is gone all the same, and its note stays; nothing stood at 14.
        store.open_writes(&[begun(11, 2), begun(12, 2), OpenWrite { old_hash: None, ..begun(14, 2) }]).await.unwrap();
        store.withdraw_writes(11.into(), 11.into()).await.unwrap();
        let gone = OpenWrite { seen: true, ..begun(12, 2) };
        assert_eq!(store.load().await.unwrap().open_writes, [first, gone]);
        store.apply(&Step { batch: Some(record(2, 12)), ..Step::default() }).await.unwrap();
        assert!(store.load().await.unwrap().open_writes.is_empty());
    }

    #[tokio::test]
    async fn m9_e12_a_mark_outlives_the_writes_that_it_lies_on() {
        let store = store_with(1).await;
        let begun = |number: u64| OpenWrite {
            number: number.into(),
            batch: 2.into(),
            batch_hash: h(1_002),
            case: Case::FillGap,
            old_hash: None,
            new_hash: None,
            finalized: Some(l2(7)),
            seen: false,
        };
        store.open_writes(&[begun(10), begun(11)]).await.unwrap();
        let mark = OwnMark { tag: l2(10), before: Some(l2(7)) };
        store.looked(Some(10.into()), Some(mark)).await.unwrap();
        let stored = store.load().await.unwrap();
        assert_eq!(stored.open_writes, [OpenWrite { seen: true, ..begun(10) }, begun(11)]);
        assert_eq!(stored.mark, Some(mark));
        // Written again: its effect is not known again, and the tag from before is another one.
        let again = OwnMark { tag: l2(11), before: None };
        store.open_writes(&[OpenWrite { finalized: Some(l2(8)), ..begun(10) }]).await.unwrap();
        store.looked(None, Some(again)).await.unwrap();
        let stored = store.load().await.unwrap();
        assert_eq!(stored.open_writes[0], OpenWrite { finalized: Some(l2(8)), ..begun(10) });
        assert_eq!(stored.mark, Some(again));
        store.apply(&Step { batch: Some(record(2, 12)), ..Step::default() }).await.unwrap();
        let stored = store.load().await.unwrap();
        assert_eq!((stored.open_writes, stored.mark), (Vec::new(), Some(again)));
        store.looked(None, None).await.unwrap();
        assert_eq!(store.load().await.unwrap().mark, None);
    }

    fn proof(index: u64, l1_number: u64) -> L1Event {
        let kind = L1EventKind::Finalize { index: BatchIndex::new(index), hash: h(1_000 + index) };
        L1Event { kind, ..revert(index, l1_number) }
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
        let at = |number, log_index| (L1Number::new(number), log_index);
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
    async fn h2_a_read_only_database_answers_and_refuses_writes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db.sqlite");
        let store = SqliteStore::open(&path).await.unwrap();
        store.apply(&full_step(1)).await.unwrap();
        let entry = JournalEntry {
            at: 7,
            batch: BatchIndex::new(1),
            number: L2Number::new(3),
            old_hash: None,
            new_hash: h(3),
            why: "fill-gap".into(),
        };
        let second = JournalEntry { old_hash: Some(h(2)), why: "self-heal".into(), ..entry.clone() };
        store.journal(&[entry.clone(), second.clone()]).await.unwrap();
        // While the first process still holds it.
        let reader = SqliteStore::open_read_only(&path).await.unwrap();
        assert_eq!(reader.journal_tail(9).await.unwrap(), [second.clone(), entry]);
        assert_eq!(reader.journal_tail(1).await.unwrap(), [second]);
        assert_eq!(reader.load().await.unwrap(), store.load().await.unwrap());
        assert_eq!(reader.apply(&full_step(2)).await.unwrap_err().kind, PortErrorKind::Storage);
        let nothing = SqliteStore::open_read_only(&folder.path().join("none")).await.unwrap_err();
        assert_eq!(nothing.kind, PortErrorKind::Storage);
    }

    #[tokio::test]
    async fn h3_a_second_process_is_refused_until_the_first_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db.sqlite");
        let first = SqliteStore::open(&path).await.unwrap();
        let error = SqliteStore::open(&path).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::StoreRefused);
        assert!(error.detail.contains("in use by another morph-deriver process"), "{error}");
        #[cfg(unix)]
        {
            let link = folder.path().join("link.sqlite");
            std::os::unix::fs::symlink(&path, &link).unwrap();
            assert_eq!(SqliteStore::open(&link).await.unwrap_err().kind, PortErrorKind::StoreRefused);
        }
        drop(first);
        SqliteStore::open(&path).await.unwrap();
    }

    #[tokio::test]
    async fn h4_a_newer_schema_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db.sqlite");
        let store = SqliteStore::open(&path).await.unwrap();
        sqlx::query("UPDATE _sqlx_migrations SET version = 999 WHERE version = 1").execute(&store.pool).await.unwrap();
        store.close().await;
        drop(store);
        for error in
            [SqliteStore::open(&path).await.unwrap_err(), SqliteStore::open_read_only(&path).await.unwrap_err()]
        {
            assert_eq!(error.kind, PortErrorKind::StoreRefused);
            assert!(error.detail.contains("schema 999"), "{error}");
        }
    }

    #[tokio::test]
    async fn h4_damaged_and_foreign_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let damaged = folder.path().join("damaged.sqlite");
        let store = SqliteStore::open(&damaged).await.unwrap();
        let messages = (0..2_000).map(|i| (l1(1), message(i))).collect();
        store.apply(&Step { messages, ..Step::default() }).await.unwrap();
        store.close().await;
        drop(store);
        let mut bytes = std::fs::read(&damaged).unwrap();
        let page = bytes.len() / 4_096 / 2 * 4_096;
        bytes[page..page + 4_096].fill(0xee);
        std::fs::write(&damaged, bytes).unwrap();

        let noise = folder.path().join("noise.sqlite");
        std::fs::write(&noise, vec![0x55; 8_192]).unwrap();

        let foreign = folder.path().join("foreign.sqlite");
        let pool = connect(SqliteConnectOptions::new().filename(&foreign).create_if_missing(true)).await.unwrap();
        sqlx::query("CREATE TABLE notes (text)").execute(&pool).await.unwrap();
        pool.close().await;

        for path in [damaged, noise, foreign] {
            let error = SqliteStore::open(&path).await.unwrap_err();
            assert_eq!(error.kind, PortErrorKind::StoreRefused, "{}: {error}", path.display());
        }
    }

    /// A start that died before or in its first migration is finished by the next one.
    #[tokio::test]
    async fn h4_a_half_made_database_is_finished() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db.sqlite");
        let pool = connect(options().filename(&path).create_if_missing(true)).await.unwrap();
        sqlx::query(
            "CREATE TABLE _sqlx_migrations (version BIGINT PRIMARY KEY, description TEXT NOT NULL, installed_on \
             TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, success BOOLEAN NOT NULL, checksum BLOB NOT NULL, \
             execution_time BIGINT NOT NULL)",
        )
        .execute(&pool)
        .await
        .unwrap();
        pool.close().await;
        let store = SqliteStore::open(&path).await.unwrap();
        store.apply(&full_step(1)).await.unwrap();
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
    async fn h7_another_network_is_refused_by_the_field_that_differs() {
        let store = SqliteStore::in_memory().await.unwrap();
        store.claim(&network()).await.unwrap();
        store.claim(&network()).await.unwrap();
        let others = [
            ("L1 chain id", Identity { l1_chain_id: 5, ..network() }),
            ("L2 chain id", Identity { l2_chain_id: 2910, ..network() }),
            ("Rollup contract", Identity { rollup: Address::repeat_byte(8), ..network() }),
            ("L1MessageQueue contract", Identity { queue: Address::repeat_byte(8), ..network() }),
            ("L2 genesis hash", Identity { l2_genesis: h(8), ..network() }),
        ];
        for (field, other) in others {
            let error = store.claim(&other).await.unwrap_err();
            assert_eq!(error.kind, PortErrorKind::StoreRefused);
            assert!(error.detail.contains(field), "{field}: {error}");
        }
    }

    #[tokio::test]
    async fn m25_h7_another_start_block_is_refused_naming_both() {
        let store = SqliteStore::in_memory().await.unwrap();
        assert!(store.claim_start(L1Number::new(7)).await.is_err(), "the networks first");
        store.claim(&network()).await.unwrap();
        for _ in 0..2 {
            store.claim_start(L1Number::new(7)).await.unwrap();
        }
        for other in [0, 6, 8] {
            let error = store.claim_start(L1Number::new(other)).await.unwrap_err();
            assert_eq!(error.kind, PortErrorKind::StoreRefused);
            assert!(error.detail.contains("= 7,") && error.detail.contains(&format!("is {other};")), "{error}");
        }
    }

    /// What a database of an older version holds: no start block.
    #[tokio::test]
    async fn m25_h4_a_database_without_a_start_block_takes_one_that_fits() {
        for (configured, fits) in [(0, true), (9, true), (10, true), (11, false), (u64::MAX, false)] {
            let store = SqliteStore::in_memory().await.unwrap();
            store.claim(&network()).await.unwrap();
            let batch = Some(BatchRecord { outcome: Outcome::Reverted, last: None, ..record(3, 10) });
            let step = Step { batch, l1_blocks: vec![l1(12)], cursor: Some(cursor_at(12)), ..Step::default() };
            store.apply(&step).await.unwrap();
            let claimed = store.claim_start(L1Number::new(configured)).await;
            assert_eq!(claimed.is_ok(), fits, "{configured}: {claimed:?}");
            let again = store.claim_start(L1Number::new(if fits { configured } else { 10 })).await;
            assert!(again.is_ok(), "{configured}: {again:?}");
        }
    }

    #[test]
    fn names_of_enums_come_back() {
        for outcome in [Outcome::Verified, Outcome::Genesis, Outcome::Reverted] {
            assert_eq!(Outcome::try_from(outcome.as_str()), Ok(outcome));
        }
        for case in [Case::Consistent, Case::SelfHeal, Case::FillGap, Case::Wait] {
            assert_eq!(Case::try_from(case.as_str()), Ok(case));
        }
        assert!(Outcome::try_from("fine").is_err() && Case::try_from("").is_err());
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
