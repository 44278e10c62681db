//! The database file: which process may open it, and which file is refused (another chain's program, a newer version, a
//! damaged page).

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use sqlx::SqlSafeStr;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};

use super::sql::{DEADLINE, refused, storage};
use crate::error::PortError;
use crate::ports::PortResult;

/// The schema's changes, embedded: no start needs the folder. Version, name and SQL of each, as the file's name says them.
/// Listed by hand because `sqlx::migrate!` needs a procedural macro that builds SQLite and sqlx a second time.
const SCHEMA: [(i64, &str, &str); 7] = [
    (1, "progress", include_str!("../../../migrations/0001_progress.sql")),
    (2, "open writes", include_str!("../../../migrations/0002_open_writes.sql")),
    (3, "settlements", include_str!("../../../migrations/0003_settlements.sql")),
    (4, "start block", include_str!("../../../migrations/0004_start_block.sql")),
    (6, "own mark", include_str!("../../../migrations/0006_own_mark.sql")),
    (7, "audit", include_str!("../../../migrations/0007_audit.sql")),
    (8, "follow", include_str!("../../../migrations/0008_follow.sql")),
];

static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let migration = |(version, name, sql): (i64, &'static str, &'static str)| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(SCHEMA.into_iter().map(migration).collect())
});

/// "morD" in `PRAGMA application_id`; set by the first migration.
const APPLICATION_ID: i64 = 0x6d6f_7244;

/// How long SQLite waits for another connection's lock. Only `status --journal` and backup tools ever hold one, for
/// milliseconds.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The path with links resolved, so that two names of one file share one lock.
pub(super) fn resolve(path: &Path) -> PathBuf {
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
pub(super) fn lock(path: &Path) -> PortResult<File> {
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

pub(super) fn options() -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true)
}

/// One connection that is never recycled: an in-memory database lives in it.
pub(super) async fn connect(options: SqliteConnectOptions) -> PortResult<SqlitePool> {
    SqlitePoolOptions::new()
        .max_connections(1)
        .min_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(DEADLINE)
        .connect_with(options)
        .await
        .map_err(PortError::from)
}

/// Refuses a damaged file, one that is not ours, and one that a newer version wrote.
pub(super) async fn check_file(pool: &SqlitePool) -> PortResult<()> {
    let report: String = sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(pool).await?;
    if report != "ok" {
        return Err(refused(format!("the database is damaged ({report}): restore a copy, or remove it to start anew")));
    }
    let id: i64 = sqlx::query_scalar("PRAGMA application_id").fetch_one(pool).await?;
    if id == APPLICATION_ID {
        return refuse_newer(pool).await;
    }
    // A first start that died before its first migration leaves the migrator's own table at most.
    let foreign: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM sqlite_master WHERE name NOT IN ('_sqlx_migrations') AND name NOT LIKE 'sqlite_%'",
    )
    .fetch_one(pool)
    .await?;
    if id == 0 && foreign == 0 { Ok(()) } else { Err(refused("the file is a database of another program")) }
}

/// Applies the migrations that are missing.
pub(super) async fn migrate(pool: &SqlitePool) -> PortResult<()> {
    MIGRATIONS.run(pool).await.map_err(migrate_error)
}

/// The newest migration that was applied.
async fn applied_version(pool: &SqlitePool) -> PortResult<i64> {
    sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM _sqlx_migrations")
        .fetch_one(pool)
        .await
        .map_err(PortError::from)
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
pub(super) async fn check_schema(pool: &SqlitePool) -> PortResult<()> {
    let id: i64 = sqlx::query_scalar("PRAGMA application_id").fetch_one(pool).await?;
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

fn migrate_error(error: MigrateError) -> PortError {
    match error {
        MigrateError::Execute(e) => e.into(),
        MigrateError::ExecuteMigration(e, version) => {
            let inner = PortError::from(e);
            PortError { detail: format!("migration {version}: {}", inner.detail), ..inner }
        }
        MigrateError::VersionMissing(version) => refused(format!("schema {version} is of a newer version")),
        other => refused(format!("the schema does not fit this version: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::SqliteStore;
    use super::super::testing::*;
    use super::*;
    use crate::error::PortErrorKind;
    use crate::ports::{Progress, Rows, Step};
    use crate::types::{BatchIndex, JournalEntry, L2Number};

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

    /// A file of the folder that the list lacks would never be applied.
    #[test]
    fn the_schema_lists_every_migration_of_the_folder() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let listed = SCHEMA.iter().map(|(version, name, sql)| (*version, (*name).to_owned(), (*sql).to_owned()));
        let held = files.iter().map(|file| {
            let (version, name) = file.file_stem().unwrap().to_str().unwrap().split_once('_').unwrap();
            (version.parse().unwrap(), name.replace('_', " "), std::fs::read_to_string(file).unwrap())
        });
        assert_eq!(listed.collect::<Vec<_>>(), held.collect::<Vec<_>>());
        assert!(MIGRATIONS.iter().map(|migration| migration.version).eq(SCHEMA.iter().map(|(version, ..)| *version)));
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
}
