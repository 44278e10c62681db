//! What a database is bound to: the networks and the first L1 block that is read. Another one is refused.

use sqlx::sqlite::SqlitePool;

use super::audit::refuse_audit;
use super::rows;
use super::sql::{refused, sql_number};
use crate::error::PortError;
use crate::ports::PortResult;
use crate::types::{Identity, L1Number};

/// Binds a new database to `configured`, and refuses one that is bound to another network.
pub(super) async fn networks(pool: SqlitePool, configured: Identity) -> PortResult<()> {
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
    .await?;
    let row = sqlx::query("SELECT l1_chain_id, l2_chain_id, rollup, queue, l2_genesis FROM identity")
        .fetch_one(&pool)
        .await?;
    match identity_difference(&rows::identity(&row)?, &configured) {
        None => Ok(()),
        Some((field, stored, configured)) => Err(refused(format!(
            "the database belongs to another network: its {field} is {stored}, configured is {configured}; \
             put the configuration right, or give this network a store.path of its own"
        ))),
    }
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

/// Binds a database to the first L1 block that is read, and refuses one that began at another.
pub(super) async fn start(pool: SqlitePool, configured: L1Number) -> PortResult<()> {
    refuse_audit(&pool).await?;
    let stored: Option<Option<i64>> = sqlx::query_scalar("SELECT l1_start FROM identity").fetch_optional(&pool).await?;
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
            .await?;
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
                .map_err(PortError::from)
        }
    }
}

/// Binds a database to following or to deriving, and refuses one that was used for the other.
pub(super) async fn usage(pool: SqlitePool, follows: bool) -> PortResult<()> {
    refuse_audit(&pool).await?;
    let stored: Option<Option<i64>> = sqlx::query_scalar("SELECT follows FROM identity").fetch_optional(&pool).await?;
    let followed = match stored {
        None => return Err(refused("the database is bound to no network yet")),
        Some(Some(stored)) => stored != 0,
        // A database of an older version derives if it holds anything.
        Some(None) => {
            let heads: i64 = sqlx::query_scalar(
                "SELECT (SELECT count(*) FROM heads) + (SELECT count(*) FROM cursor) + (SELECT count(*) FROM lease)",
            )
            .fetch_one(&pool)
            .await?;
            if heads == 0 { follows } else { false }
        }
    };
    if followed != follows {
        let (was, now) =
            if followed { ("followed another node", "derives from L1") } else { ("derived from L1", "follows") };
        return Err(refused(format!(
            "the database holds the heads of a run that {was}, and this run {now}; give it a store.path of its own"
        )));
    }
    sqlx::query("UPDATE identity SET follows = ?")
        .bind(i64::from(follows))
        .execute(&pool)
        .await
        .map(|_| ())
        .map_err(PortError::from)
}

#[cfg(test)]
mod tests {
    use super::super::SqliteStore;
    use super::super::testing::*;
    use super::*;
    use crate::error::PortErrorKind;
    use crate::ports::{Progress, Step};
    use crate::types::{Address, BatchRecord, Outcome};

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
    async fn i13_h7_a_database_is_for_following_or_for_deriving() {
        for follows in [true, false] {
            let store = SqliteStore::in_memory().await.unwrap();
            assert!(store.claim_use(follows).await.is_err(), "the networks first");
            store.claim(&network()).await.unwrap();
            for _ in 0..2 {
                store.claim_use(follows).await.unwrap();
                assert_eq!(store.claim_use(!follows).await.unwrap_err().kind, PortErrorKind::StoreRefused);
            }
        }
        // What a database of an older version holds was derived.
        let store = SqliteStore::in_memory().await.unwrap();
        store.claim(&network()).await.unwrap();
        store.apply(&Step { cursor: Some(cursor_at(12)), ..Step::default() }).await.unwrap();
        assert!(store.claim_use(true).await.is_err());
        store.claim_use(false).await.unwrap();
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
}
