//! What every call to SQLite shares: its deadline, its transaction, its errors, and numbers on their way in.
//!
//! Decided here: which failure of SQLite may pass and which will not. Not decided here: what is read or written.

use std::future::Future;
use std::time::Duration;

use sqlx::SqliteConnection;
use sqlx::sqlite::SqlitePool;

use crate::error::{PortError, PortErrorKind, Target};
use crate::ports::PortResult;

/// Deadline of one call (P4): the busy timeout, and as much again for a slow disk. A call that passes it may still be
/// applied later; every write can be repeated.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// The condition of a standing batch row: no revert took it back.
macro_rules! standing {
    () => {
        "outcome IN ('verified', 'genesis')"
    };
}
pub(super) use standing;

pub(super) fn storage(detail: impl Into<String>) -> PortError {
    PortError::new(Target::Store, PortErrorKind::Storage, detail)
}

pub(super) fn refused(detail: impl Into<String>) -> PortError {
    PortError::new(Target::Store, PortErrorKind::StoreRefused, detail)
}

/// Sorts SQLite's failures: what may pass (full or read-only disk, I/O error, lock) is `Storage`, what will not
/// (damaged pages, a broken rule of the schema, a value that no version of ours wrote) is `StoreRefused`.
impl From<sqlx::Error> for PortError {
    fn from(error: sqlx::Error) -> Self {
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
}

/// Runs a call in a task of its own and holds it to its deadline. A task, because a call that is dropped half-way
/// (shutdown, a lost `select!`) would take its connection with it, and an in-memory database with the connection.
pub(super) async fn bounded<T: Send + 'static>(
    call: impl Future<Output = PortResult<T>> + Send + 'static,
) -> PortResult<T> {
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

/// Runs `work` in one transaction: committed if it succeeds, taken back otherwise.
///
/// Opened by hand. sqlx's own is not used: after a COMMIT that the disk refused, SQLite has rolled back already, sqlx's
/// count of open transactions does not follow, and what it "commits" from then on ends in an open savepoint: reported as
/// stored, gone with the process (H2).
pub(super) async fn transaction(
    pool: SqlitePool,
    work: impl AsyncFnOnce(&mut SqliteConnection) -> PortResult<()>,
) -> PortResult<()> {
    let mut db = pool.acquire().await?;
    if let Err(error) = sqlx::query("BEGIN IMMEDIATE").execute(&mut *db).await {
        return Err(roll_back(&mut db, error.into()).await);
    }
    if let Err(error) = work(&mut db).await {
        return Err(roll_back(&mut db, error).await);
    }
    match sqlx::query("COMMIT").execute(&mut *db).await {
        Ok(_) => Ok(()),
        Err(error) => Err(roll_back(&mut db, error.into()).await),
    }
}

/// Leaves no transaction open after `cause`, and returns `cause`.
async fn roll_back(db: &mut SqliteConnection, cause: PortError) -> PortError {
    // It fails if SQLite has rolled back already, which is the wanted state.
    let _ = sqlx::query("ROLLBACK").execute(db).await;
    cause
}

/// A number to store. SQLite's integers end at 2^63 − 1; no honest height, index or time comes near.
pub(super) fn sql_number(n: u64) -> PortResult<i64> {
    i64::try_from(n).map_err(|_| PortError::malformed(Target::Store, format!("{n} is too large to be stored")))
}

/// A number to compare with: nothing stored is larger than `i64::MAX`, so a larger bound means the same as that.
pub(super) fn sql_bound(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
