//! What is read. Each function answers one question of the ports, in a task of its own, so it owns its pool.

use sqlx::sqlite::SqlitePool;

use super::rows;
use super::sql::{sql_bound, standing};
use crate::ports::{PortResult, Stored};
use crate::types::{
    BatchIndex, BatchRecord, Cursor, JournalEntry, L1Event, L1Message, L1Number, L1Ref, L2Ref, Lease, LogPos,
    QueueIndex, SpuriousTag, WriteIntent,
};

/// Columns of a batch row in the order of [`rows::batch_record`].
macro_rules! batch_columns {
    ($($rest:tt)*) => {
        concat!(
            "SELECT batch_index, hash, l1_number, l1_hash, log_index, tx_hash, outcome, handling, first_block, ",
            "last_number, last_hash, post_state_root, withdrawal_root, total_l1_popped, rewritten, encoder_drift, ",
            "blobs FROM batches ",
            $($rest)*
        )
    };
}

/// All that a start needs.
pub(super) async fn load(pool: SqlitePool) -> PortResult<Stored> {
    Ok(Stored {
        cursor: cursor(&pool).await?,
        safe: head(&pool, "safe").await?,
        finalized: head(&pool, "finalized").await?,
        lease: lease(pool.clone()).await?,
        tip: tip(&pool).await?,
        intents: intents(&pool).await?,
        spurious: spurious_of(&pool).await?,
    })
}

pub(super) async fn l1_blocks(pool: SqlitePool) -> PortResult<Vec<L1Ref>> {
    let rows = sqlx::query("SELECT number, hash FROM l1_blocks ORDER BY number DESC").fetch_all(&pool).await?;
    rows.iter().map(|row| rows::l1_ref(row, "number", "hash")).collect()
}

pub(super) async fn newest_l1_block(pool: SqlitePool) -> PortResult<Option<L1Ref>> {
    let row =
        sqlx::query("SELECT number, hash FROM l1_blocks ORDER BY number DESC LIMIT 1").fetch_optional(&pool).await?;
    row.map(|row| rows::l1_ref(&row, "number", "hash")).transpose()
}

pub(super) async fn batch(pool: SqlitePool, index: BatchIndex) -> PortResult<Option<BatchRecord>> {
    let row = sqlx::query(batch_columns!("WHERE batch_index = ? AND ", standing!(), " LIMIT 1"))
        .bind(sql_bound(index.get()))
        .fetch_optional(&pool)
        .await?;
    row.as_ref().map(rows::batch_record).transpose()
}

pub(super) async fn newest_at_or_below(pool: SqlitePool, number: L1Number) -> PortResult<Option<BatchRecord>> {
    let row =
        sqlx::query(batch_columns!("WHERE ", standing!(), " AND l1_number <= ? ORDER BY batch_index DESC LIMIT 1"))
            .bind(sql_bound(number.get()))
            .fetch_optional(&pool)
            .await?;
    row.as_ref().map(rows::batch_record).transpose()
}

pub(super) async fn batch_ending_on(pool: SqlitePool, block: L2Ref) -> PortResult<Option<BatchRecord>> {
    let row = sqlx::query(batch_columns!(
        "WHERE last_number = ? AND last_hash = ? ORDER BY ",
        standing!(),
        " DESC, l1_number DESC, log_index DESC LIMIT 1"
    ))
    .bind(sql_bound(block.number.get()))
    .bind(block.hash.as_bytes())
    .fetch_optional(&pool)
    .await?;
    row.as_ref().map(rows::batch_record).transpose()
}

pub(super) async fn reverted_above(pool: SqlitePool, number: L1Number) -> PortResult<Option<BatchRecord>> {
    let row = sqlx::query(batch_columns!(
        "WHERE reverted_at > ?1 AND reverted_was IS NULL AND l1_number <= ?1 ORDER BY l1_number, log_index LIMIT 1"
    ))
    .bind(sql_bound(number.get()))
    .fetch_optional(&pool)
    .await?;
    row.as_ref().map(rows::batch_record).transpose()
}

pub(super) async fn settled_to(pool: SqlitePool) -> PortResult<Option<L1Ref>> {
    let row = sqlx::query("SELECT block_number, block_hash FROM settled").fetch_optional(&pool).await?;
    row.map(|row| rows::l1_ref(&row, "block_number", "block_hash")).transpose()
}

pub(super) async fn revert_after(pool: SqlitePool, index: BatchIndex, pos: LogPos) -> PortResult<Option<L1Event>> {
    let row = sqlx::query(
        "SELECT * FROM reverts WHERE (l1_number, log_index) > (?, ?) AND batch_index <= ? \
         ORDER BY l1_number, log_index LIMIT 1",
    )
    .bind(sql_bound(pos.block.get()))
    .bind(sql_bound(pos.log_index))
    .bind(sql_bound(index.get()))
    .fetch_optional(&pool)
    .await?;
    row.as_ref().map(rows::revert_of).transpose()
}

pub(super) async fn reverts_within(
    pool: SqlitePool,
    pos: LogPos,
    to: L1Number,
    limit: u32,
) -> PortResult<Vec<L1Event>> {
    let rows = sqlx::query(
        "SELECT * FROM reverts WHERE (l1_number, log_index) > (?, ?) AND l1_number <= ? \
         ORDER BY l1_number, log_index LIMIT ?",
    )
    .bind(sql_bound(pos.block.get()))
    .bind(sql_bound(pos.log_index))
    .bind(sql_bound(to.get()))
    .bind(i64::from(limit))
    .fetch_all(&pool)
    .await?;
    rows.iter().map(rows::revert_of).collect()
}

pub(super) async fn newest_proof(pool: SqlitePool, number: L1Number) -> PortResult<Option<L1Event>> {
    let row = sqlx::query("SELECT * FROM proofs WHERE l1_number <= ? ORDER BY batch_index DESC LIMIT 1")
        .bind(sql_bound(number.get()))
        .fetch_optional(&pool)
        .await?;
    row.as_ref().map(rows::proof_of).transpose()
}

pub(super) async fn messages(pool: SqlitePool, first: QueueIndex, count: u64) -> PortResult<Vec<L1Message>> {
    let rows = sqlx::query(
        "SELECT queue_index, hash, raw FROM l1_messages WHERE queue_index >= ? AND queue_index < ? \
         ORDER BY queue_index",
    )
    .bind(sql_bound(first.get()))
    .bind(sql_bound(first.plus(count).get()))
    .fetch_all(&pool)
    .await?;
    rows.iter().map(rows::l1_message).collect()
}

pub(super) async fn journal_tail(pool: SqlitePool, limit: u32) -> PortResult<Vec<JournalEntry>> {
    let rows =
        sqlx::query("SELECT at, batch_index, number, old_hash, new_hash, why FROM journal ORDER BY id DESC LIMIT ?")
            .bind(i64::from(limit))
            .fetch_all(&pool)
            .await?;
    rows.iter().map(rows::journal_entry).collect()
}

pub(super) async fn lease(pool: SqlitePool) -> PortResult<Option<Lease>> {
    let row = sqlx::query("SELECT height, since FROM lease").fetch_optional(&pool).await?;
    row.as_ref().map(rows::lease).transpose()
}

async fn head(pool: &SqlitePool, kind: &'static str) -> PortResult<Option<L2Ref>> {
    let row = sqlx::query("SELECT number, hash FROM heads WHERE kind = ?").bind(kind).fetch_optional(pool).await?;
    row.as_ref().map(rows::l2_ref).transpose()
}

async fn cursor(pool: &SqlitePool) -> PortResult<Option<Cursor>> {
    let row = sqlx::query("SELECT block_number, block_hash, log_index FROM cursor").fetch_optional(pool).await?;
    row.as_ref().map(rows::cursor).transpose()
}

async fn intents(pool: &SqlitePool) -> PortResult<Vec<WriteIntent>> {
    let rows = sqlx::query(
        "SELECT number, batch_index, batch_hash, handling, old_hash, new_hash, finalized_number, finalized_hash, seen \
         FROM open_writes ORDER BY number",
    )
    .fetch_all(pool)
    .await?;
    rows.iter().map(rows::write_intent).collect()
}

async fn spurious_of(pool: &SqlitePool) -> PortResult<Option<SpuriousTag>> {
    let row = sqlx::query("SELECT number, hash, before_number, before_hash FROM own_mark").fetch_optional(pool).await?;
    row.as_ref().map(rows::spurious_tag).transpose()
}

async fn tip(pool: &SqlitePool) -> PortResult<Option<BatchRecord>> {
    let row = sqlx::query(batch_columns!("WHERE ", standing!(), " ORDER BY batch_index DESC LIMIT 1"))
        .fetch_optional(pool)
        .await?;
    row.as_ref().map(rows::batch_record).transpose()
}
