//! What is written: the SQL of one step, of the write intents, of the journal, and of pruning.
//!
//! Decided here: the order of the statements of a step. The caller holds the transaction that makes them one (P6).

use sqlx::sqlite::SqlitePool;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::sql::{sql_bound, sql_number, standing};
use crate::error::{PortError, Target};
use crate::ports::{PortResult, Step};
use crate::types::{
    BatchIndex, BatchRecord, Case, Cursor, JournalEntry, L1Event, L1EventKind, L1Message, L1Number, L1Ref, L2Number,
    L2Ref, Lease, QueueIndex, SpuriousTag, WriteIntent,
};

/// Rows of one `INSERT`: far below SQLite's 32,766 variables at 7 columns.
const INSERT_CHUNK: usize = 500;

/// Bytes of messages in one `INSERT`, a longer message for itself: a statement holds its values twice, as ours and as
/// SQLite's (P7).
const INSERT_BYTES: usize = 1 << 20;

/// Journal rows kept: the newest 200,000 writes, about 25 MB.
const JOURNAL_KEPT: i64 = 200_000;

/// Writes a step, in the order that its parts depend on.
pub(super) async fn apply(db: &mut SqliteConnection, step: &Step) -> PortResult<()> {
    if let Some(to) = step.rewind_to {
        rewind(db, to).await?;
    }
    if let Some(from) = step.revert_from {
        revert_batches(db, from, step.revert.as_ref()).await?;
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
        sqlx::query("DELETE FROM heads WHERE kind = 'safe'").execute(&mut *db).await?;
    }
    if step.clear_cursor {
        sqlx::query("DELETE FROM cursor").execute(&mut *db).await?;
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

/// Stores what is about to be written, and drops what another batch had announced. The table is named `open_writes`: its name
/// is older than the word for what it holds, and is not worth a migration.
pub(super) async fn put_intents(db: &mut SqliteConnection, writes: &[WriteIntent]) -> PortResult<()> {
    if let Some(first) = writes.first() {
        sqlx::query("DELETE FROM open_writes WHERE batch_hash <> ?")
            .bind(first.batch_hash.as_bytes())
            .execute(&mut *db)
            .await?;
    }
    for write in writes {
        put_intent(db, write).await?;
    }
    Ok(())
}

/// Drops the intents of refused writes, and marks as seen those of blocks above that existed before.
pub(super) async fn withdraw_writes(db: &mut SqliteConnection, from: L2Number, standing: L2Number) -> PortResult<()> {
    sqlx::query("DELETE FROM open_writes WHERE number >= ? AND new_hash IS NULL AND (old_hash IS NULL OR number <= ?)")
        .bind(sql_bound(from.get()))
        .bind(sql_bound(standing.get()))
        .execute(&mut *db)
        .await?;
    sqlx::query("UPDATE open_writes SET seen = 1 WHERE number >= ? AND new_hash IS NULL")
        .bind(sql_bound(from.get()))
        .execute(&mut *db)
        .await?;
    Ok(())
}

/// Notes the writes up to `seen_to` as seen, and stores the tag of our own.
pub(super) async fn looked(
    db: &mut SqliteConnection,
    seen_to: Option<L2Number>,
    mark: Option<&SpuriousTag>,
) -> PortResult<()> {
    if let Some(to) = seen_to {
        sqlx::query("UPDATE open_writes SET seen = 1 WHERE number <= ?")
            .bind(sql_bound(to.get()))
            .execute(&mut *db)
            .await?;
    }
    put_spurious(db, mark).await
}

/// Adds to the journal what was written, and its hash to what was announced.
pub(super) async fn journal(db: &mut SqliteConnection, entries: &[JournalEntry]) -> PortResult<()> {
    for chunk in entries.chunks(INSERT_CHUNK) {
        let mut rows = Vec::with_capacity(chunk.len());
        for entry in chunk {
            let (at, batch) = (sql_number(entry.at)?, sql_number(entry.batch.get())?);
            rows.push((at, batch, sql_number(entry.number.get())?, entry));
        }
        let mut query =
            QueryBuilder::<Sqlite>::new("INSERT INTO journal (at, batch_index, number, old_hash, new_hash, why) ");
        query.push_values(rows, |mut row, (at, batch, number, entry)| {
            row.push_bind(at)
                .push_bind(batch)
                .push_bind(number)
                .push_bind(entry.old_hash.map(|hash| hash.as_bytes().to_vec()))
                .push_bind(entry.new_hash.as_bytes().to_vec())
                .push_bind(entry.why.clone());
        });
        query.build().persistent(false).execute(&mut *db).await?;
    }
    for entry in entries {
        sqlx::query("UPDATE open_writes SET new_hash = ? WHERE number = ? AND batch_index = ?")
            .bind(entry.new_hash.as_bytes())
            .bind(sql_number(entry.number.get())?)
            .bind(sql_number(entry.batch.get())?)
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}

/// Drops what no later batch and no reorg can ask for.
pub(super) async fn prune(
    db: &mut SqliteConnection,
    l1: L1Number,
    queue: QueueIndex,
    batch: BatchIndex,
) -> PortResult<()> {
    drop_l1_blocks(db, l1).await?;
    let below = [
        (
            concat!(
                "DELETE FROM l1_messages WHERE queue_index < min(?, coalesce((SELECT total_l1_popped FROM batches \
             WHERE ",
                standing!(),
                " ORDER BY batch_index DESC LIMIT 1), 0))"
            ),
            sql_bound(queue.get()),
        ),
        (
            concat!(
                "DELETE FROM batches WHERE batch_index < ? AND batch_index < coalesce((SELECT max(batch_index) \
             FROM batches WHERE ",
                standing!(),
                "), 0)"
            ),
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
        sqlx::query(statement).bind(bound).execute(&mut *db).await?;
    }
    Ok(())
}

/// Survives a power cut: the paused service may not start by itself.
pub(super) async fn set_lease(pool: SqlitePool, lease: Option<Lease>) -> PortResult<()> {
    let mut db = pool.acquire().await?;
    sqlx::query("PRAGMA synchronous = FULL").execute(&mut *db).await?;
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
    sqlx::query("PRAGMA synchronous = NORMAL").execute(&mut *db).await?;
    written.map(|_| ()).map_err(PortError::from)
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
        // After the lines above: a batch committed again in place of the reverted one must go before that one is standing.
        "UPDATE batches SET outcome = reverted_was, reverted_at = NULL, reverted_was = NULL WHERE reverted_at > ?",
    ] {
        sqlx::query(statement).bind(to).execute(&mut *db).await?;
    }
    Ok(())
}

/// Takes standing batches from `from` on down. With the revert's log the L1 block is kept, so that a reorg can undo it.
async fn revert_batches(db: &mut SqliteConnection, from: BatchIndex, revert: Option<&L1Event>) -> PortResult<()> {
    let at = revert.map(|event| sql_number(event.block.number.get())).transpose()?;
    sqlx::query(concat!(
        "UPDATE batches SET reverted_at = ?1, reverted_was = CASE WHEN ?1 IS NULL THEN NULL ELSE outcome END, \
         outcome = 'reverted' WHERE batch_index >= ?2 AND ",
        standing!()
    ))
    .bind(at)
    .bind(sql_bound(from.get()))
    .execute(db)
    .await?;
    Ok(())
}

/// How many of the first `messages` one statement takes: one at least.
fn one_insert(messages: &[(L1Ref, L1Message)]) -> usize {
    let mut bytes = 0_usize;
    let fits = |(_, message): &&(L1Ref, L1Message)| {
        bytes = bytes.saturating_add(message.raw.len());
        bytes <= INSERT_BYTES
    };
    let count = messages.iter().take(INSERT_CHUNK).take_while(fits).count();
    count.max(1).min(messages.len())
}

async fn put_messages(db: &mut SqliteConnection, messages: &[(L1Ref, L1Message)]) -> PortResult<()> {
    let mut rest = messages;
    while !rest.is_empty() {
        let (chunk, others) = rest.split_at(one_insert(rest));
        rest = others;
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
        query.build().persistent(false).execute(&mut *db).await?;
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
        query.build().persistent(false).execute(&mut *db).await?;
    }
    Ok(())
}

/// Drops L1 blocks below `floor`, but never the newest one: the next start compares with it.
async fn drop_l1_blocks(db: &mut SqliteConnection, floor: L1Number) -> PortResult<()> {
    sqlx::query("DELETE FROM l1_blocks WHERE number < ? AND number < (SELECT max(number) FROM l1_blocks)")
        .bind(sql_bound(floor.get()))
        .execute(db)
        .await?;
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
        .await?;
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
    .await?;
    Ok(())
}

async fn forget_settled(db: &mut SqliteConnection, above: L1Number) -> PortResult<()> {
    for statement in
        ["DELETE FROM reverts WHERE l1_number > ?", "DELETE FROM proofs WHERE l1_number > ?", "DELETE FROM settled"]
    {
        sqlx::query(statement).bind(sql_bound(above.get())).execute(&mut *db).await?;
    }
    Ok(())
}

async fn forget_proof(db: &mut SqliteConnection, proof: &L1Event) -> PortResult<()> {
    sqlx::query("DELETE FROM proofs WHERE l1_number = ? AND log_index = ? AND l1_hash = ?")
        .bind(sql_number(proof.block.number.get())?)
        .bind(sql_number(proof.log_index)?)
        .bind(proof.block.hash.as_bytes())
        .execute(db)
        .await?;
    Ok(())
}

/// Writes a batch row over one of the same L1 position. A second standing batch of one index breaks the schema's rule
/// and is `StoreRefused`: it was neither reverted nor forgotten before.
async fn put_batch(db: &mut SqliteConnection, batch: &BatchRecord, reverted_by: Option<L1Number>) -> PortResult<()> {
    sqlx::query(
        "INSERT INTO batches (l1_number, log_index, l1_hash, tx_hash, batch_index, hash, outcome, handling, \
         first_block, last_number, last_hash, post_state_root, withdrawal_root, total_l1_popped, rewritten, \
         encoder_drift, reverted_at, blobs) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT (l1_number, log_index) DO UPDATE SET l1_hash = excluded.l1_hash, tx_hash = excluded.tx_hash, \
         batch_index = excluded.batch_index, hash = excluded.hash, outcome = excluded.outcome, \
         handling = excluded.handling, first_block = excluded.first_block, last_number = excluded.last_number, \
         last_hash = excluded.last_hash, post_state_root = excluded.post_state_root, \
         withdrawal_root = excluded.withdrawal_root, total_l1_popped = excluded.total_l1_popped, \
         rewritten = excluded.rewritten, encoder_drift = excluded.encoder_drift, \
         reverted_at = excluded.reverted_at, blobs = excluded.blobs, \
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
    .bind(sql_number(batch.blobs)?)
    .execute(db)
    .await?;
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
    .await?;
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
    .await?;
    Ok(())
}

async fn put_intent(db: &mut SqliteConnection, write: &WriteIntent) -> PortResult<()> {
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
    .await?;
    Ok(())
}

async fn put_spurious(db: &mut SqliteConnection, mark: Option<&SpuriousTag>) -> PortResult<()> {
    sqlx::query("DELETE FROM own_mark").execute(&mut *db).await?;
    let Some(mark) = mark else { return Ok(()) };
    sqlx::query("INSERT INTO own_mark (id, number, hash, before_number, before_hash) VALUES (1, ?, ?, ?, ?)")
        .bind(sql_number(mark.tag.number.get())?)
        .bind(mark.tag.hash.as_bytes())
        .bind(mark.before.map(|b| sql_number(b.number.get())).transpose()?)
        .bind(mark.before.map(|b| b.hash.as_bytes().to_vec()))
        .execute(db)
        .await?;
    Ok(())
}

async fn close_writes(db: &mut SqliteConnection, up_to: BatchIndex) -> PortResult<()> {
    sqlx::query("DELETE FROM open_writes WHERE batch_index <= ?").bind(sql_bound(up_to.get())).execute(db).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::store::testing::{l1, message};

    #[test]
    fn m20_a_statement_takes_few_large_messages_and_many_small_ones() {
        let sized = |bytes: usize| (l1(2), L1Message { raw: vec![0; bytes].into(), ..message(1) });
        let table: [(Vec<usize>, usize); 6] = [
            (vec![], 0),
            (vec![10; INSERT_CHUNK + 7], INSERT_CHUNK),
            (vec![INSERT_BYTES, 1], 1),
            (vec![INSERT_BYTES / 2; 5], 2),
            (vec![INSERT_BYTES * 9, 1], 1),
            (vec![1, INSERT_BYTES * 9], 1),
        ];
        for (sizes, first) in table {
            let messages: Vec<_> = sizes.iter().copied().map(sized).collect();
            assert_eq!(one_insert(&messages), first, "of {}", sizes.len());
        }
    }
}
