//! What an audit keeps: its range, and the batches that the local chain contradicts. What it verified is in the rows of
//! the batches, which an audit does not prune; so a report says the same after a kill at any point.

use async_trait::async_trait;
use sqlx::Row as _;
use sqlx::sqlite::{SqlitePool, SqliteRow};

use super::SqliteStore;
use super::rows::{number, optional_number, text};
use super::sql::{bounded, refused, sql_bound, sql_number};
use crate::decide::audit::{AuditRange, Counts, Divergence};
use crate::error::PortError;
use crate::ports::{AuditLog, PortResult};
use crate::types::{B256, BatchIndex, L2Number};

#[async_trait]
impl AuditLog for SqliteStore {
    async fn claim_range(&self, range: &AuditRange, settled: &str) -> PortResult<()> {
        bounded(claim_range(self.pool.clone(), *range, settled.to_owned())).await
    }

    async fn put_divergence(&self, hash: B256, divergence: &Divergence) -> PortResult<()> {
        bounded(put_divergence(self.pool.clone(), hash, divergence.clone())).await
    }

    async fn divergences(&self) -> PortResult<Vec<Divergence>> {
        bounded(divergences(self.pool.clone())).await
    }

    async fn counts(&self, from: BatchIndex) -> PortResult<Counts> {
        bounded(counts(self.pool.clone(), from)).await
    }
}

/// Refuses the database of an audit: its rows are not all verified, so no worker may go on from it.
pub(super) async fn refuse_audit(pool: &SqlitePool) -> PortResult<()> {
    let audits: i64 = sqlx::query_scalar("SELECT count(*) FROM audit").fetch_one(pool).await?;
    match audits {
        0 => Ok(()),
        _ => Err(refused("the database is an audit's; give the worker a store.path of its own")),
    }
}

fn words(from: u64, to: Option<u64>, settled: &str) -> String {
    match to {
        Some(to) => format!("batches {from} to {to}, settled by {settled}"),
        None => format!("batches from {from} on, settled by {settled}"),
    }
}

async fn claim_range(pool: SqlitePool, range: AuditRange, settled: String) -> PortResult<()> {
    let wanted = words(range.from.get(), range.to.map(BatchIndex::get), &settled);
    let row = sqlx::query("SELECT from_batch, to_batch, settled FROM audit").fetch_optional(&pool).await?;
    if let Some(row) = row {
        let stored = words(number(&row, "from_batch")?, optional_number(&row, "to_batch")?, text(&row, "settled")?);
        return match stored == wanted {
            true => Ok(()),
            false => Err(refused(format!(
                "the database is that of an audit of {stored}, asked for is {wanted}; give this audit a --db of its own"
            ))),
        };
    }
    // A follower's holds heads and nothing else.
    let used: i64 = sqlx::query_scalar(
        "SELECT (SELECT count(*) FROM cursor) + (SELECT count(*) FROM batches) + (SELECT count(*) FROM heads) \
         + (SELECT count(*) FROM lease)",
    )
    .fetch_one(&pool)
    .await?;
    if used > 0 {
        return Err(refused("the database is a worker's; give the audit a --db of its own"));
    }
    sqlx::query("INSERT INTO audit (id, from_batch, to_batch, settled) VALUES (1, ?, ?, ?)")
        .bind(sql_number(range.from.get())?)
        .bind(range.to.map(|to| sql_number(to.get())).transpose()?)
        .bind(settled)
        .execute(&pool)
        .await?;
    Ok(())
}

async fn put_divergence(pool: SqlitePool, hash: B256, divergence: Divergence) -> PortResult<()> {
    sqlx::query(
        "INSERT INTO audit_divergences (batch_index, batch_hash, reason, block, detail) VALUES (?, ?, ?, ?, ?) \
         ON CONFLICT (batch_index, batch_hash) DO UPDATE SET reason = excluded.reason, block = excluded.block, \
         detail = excluded.detail",
    )
    .bind(sql_number(divergence.batch.get())?)
    .bind(hash.as_bytes())
    .bind(divergence.reason)
    .bind(divergence.block.map(|block| sql_number(block.get())).transpose()?)
    .bind(divergence.detail)
    .execute(&pool)
    .await?;
    Ok(())
}

fn divergence(row: &SqliteRow) -> PortResult<Divergence> {
    Ok(Divergence {
        batch: BatchIndex::new(number(row, "batch_index")?),
        reason: text(row, "reason")?.to_owned(),
        block: optional_number(row, "block")?.map(L2Number::new),
        detail: text(row, "detail")?.to_owned(),
    })
}

/// A row without `handling` was taken on L1's word. If L1 took it back, or the batch was verified after all, what was
/// found says nothing any more.
async fn divergences(pool: SqlitePool) -> PortResult<Vec<Divergence>> {
    let rows = sqlx::query(
        "SELECT d.batch_index, d.reason, d.block, d.detail FROM audit_divergences d JOIN batches b \
         ON b.batch_index = d.batch_index AND b.hash = d.batch_hash AND b.outcome = 'verified' \
         AND b.handling IS NULL ORDER BY d.batch_index",
    )
    .fetch_all(&pool)
    .await?;
    rows.iter().map(divergence).collect()
}

async fn counts(pool: SqlitePool, from: BatchIndex) -> PortResult<Counts> {
    let row = sqlx::query(
        "SELECT count(*) AS verified, coalesce(sum(handling = 'consistent'), 0) AS consistent, \
         coalesce(sum(encoder_drift), 0) AS drift, coalesce(sum(last_number - first_block + 1), 0) AS blocks, \
         coalesce(sum(blobs), 0) AS blobs FROM batches \
         WHERE outcome = 'verified' AND handling IS NOT NULL AND batch_index >= ?",
    )
    .bind(sql_bound(from.get()))
    .fetch_one(&pool)
    .await?;
    let count = |column: &str| -> PortResult<u64> {
        let value: i64 = row.try_get(column).map_err(PortError::from)?;
        u64::try_from(value).map_err(|_| refused("the database holds a count below zero"))
    };
    Ok(Counts {
        verified: count("verified")?,
        consistent: count("consistent")?,
        encoder_drift: count("drift")?,
        blocks: count("blocks")?,
        blobs: count("blobs")?,
        ..Counts::default()
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{h, record, store_with};
    use super::*;
    use crate::error::PortErrorKind;
    use crate::ports::{Progress as _, Step};
    use crate::types::{BatchRecord, L1Number, L2Ref};

    fn range(from: u64, to: Option<u64>) -> AuditRange {
        AuditRange { from: from.into(), to: to.map(Into::into) }
    }

    #[tokio::test]
    async fn a_database_keeps_to_its_range_and_to_its_use() {
        let store = SqliteStore::in_memory().await.unwrap();
        store.claim_range(&range(5, Some(9)), "finalized").await.unwrap();
        store.claim_range(&range(5, Some(9)), "finalized").await.unwrap();
        for (other, settled) in [
            (range(4, Some(9)), "finalized"),
            (range(5, Some(8)), "finalized"),
            (range(5, None), "finalized"),
            (range(5, Some(9)), "depth 3"),
        ] {
            let error = store.claim_range(&other, settled).await.unwrap_err();
            assert_eq!(error.kind, PortErrorKind::StoreRefused, "{other:?} {settled}");
        }
        let error = store.claim_start(L1Number::new(0)).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::StoreRefused, "a worker does not go on from it");
        let worker = store_with(2).await;
        let error = worker.claim_range(&range(1, None), "finalized").await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::StoreRefused, "an audit does not go on from a worker's");
        let follower = SqliteStore::in_memory().await.unwrap();
        let safe = Some(L2Ref { number: 9.into(), hash: h(9) });
        follower.apply(&Step { safe, ..Step::default() }).await.unwrap();
        let error = follower.claim_range(&range(1, None), "finalized").await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::StoreRefused, "nor from a follower's");
    }

    #[tokio::test]
    async fn what_was_taken_on_l1s_word_is_counted_as_no_verified_batch() {
        let store = store_with(3).await;
        let taken = BatchRecord { case: None, blobs: 4, ..record(4, 4) };
        let drift = BatchRecord { encoder_drift: true, blobs: 2, ..record(5, 5) };
        for batch in [taken, drift] {
            store.apply(&Step { batch: Some(batch), ..Step::default() }).await.unwrap();
        }
        let counts = store.counts(2.into()).await.unwrap();
        let expected =
            Counts { verified: 3, consistent: 3, encoder_drift: 1, blocks: 30, blobs: 2, ..Counts::default() };
        assert_eq!(counts, expected);

        let found = |batch: u64| Divergence {
            batch: batch.into(),
            reason: "state_root".to_owned(),
            block: Some(49.into()),
            detail: "x".to_owned(),
        };
        store.put_divergence(h(1_004), &found(4)).await.unwrap();
        store.put_divergence(h(1_004), &found(4)).await.unwrap();
        // The batch was verified; another batch of this index stands.
        store.put_divergence(h(1_005), &found(5)).await.unwrap();
        store.put_divergence(h(9), &found(4)).await.unwrap();
        assert_eq!(store.divergences().await.unwrap(), [found(4)]);
        store.apply(&Step { revert_from: Some(4.into()), ..Step::default() }).await.unwrap();
        assert_eq!(store.divergences().await.unwrap(), []);
    }
}
