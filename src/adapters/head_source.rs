//! A follow source: another node's `optimism_syncStatus`, as op-node, Kona and this program serve it.
//!
//! Decided here: what a well-formed reply is. One reply is one snapshot: nothing of it is asked for a second time. Which
//! networks the source works for is asked in the same exchange: this program says it in the reply itself, the others by
//! `optimism_rollupConfig`. Not decided here: whether a reply is believed (`decide/follow.rs`).

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::json;

use super::rpc::{Call, Json, Pool};
use crate::decide::follow::{Reply, SourceNetwork};
use crate::error::{PortError, PortErrorKind, Target};
use crate::ports::{HeadSource, PortResult};
use crate::types::{B256, L1Header, L1Ref, L2Number, L2Place, L2Ref, SyncStatus};

/// A source behind a pool of one endpoint.
#[derive(Debug)]
pub struct SourceClient {
    pool: Pool,
}

impl SourceClient {
    /// The source behind `pool` (target [`Target::Source`]).
    pub const fn new(pool: Pool) -> Self {
        Self { pool }
    }
}

#[async_trait]
impl HeadSource for SourceClient {
    async fn reply(&self) -> PortResult<Reply> {
        let calls = [Call::new("optimism_syncStatus", json!([])), Call::new("optimism_rollupConfig", json!([]))];
        let replies = self.pool.batch(&calls).await?;
        let Ok([status, config]) = <[PortResult<Json>; 2]>::try_from(replies) else {
            return Err(PortError::malformed(Target::Source, "not two replies"));
        };
        let status = status?;
        let read: StatusWire = status.parse()?;
        let network = match &read.morph_deriver {
            Some(own) => Some(SourceNetwork {
                l1_chain_id: own.l1_chain_id,
                l2_chain_id: own.l2_chain_id,
                l2_genesis: Some(own.l2_genesis),
            }),
            None => network_of(config)?,
        };
        Ok(Reply { network, instance: read.morph_deriver.as_ref().map(|own| own.instance), status: read.status() })
    }

    fn name(&self) -> &str {
        self.pool.name(0)
    }
}

/// The networks that `optimism_rollupConfig` names; none if the source does not serve it.
fn network_of(config: PortResult<Json>) -> PortResult<Option<SourceNetwork>> {
    let config = match config {
        Ok(json) if json.is_null() => return Ok(None),
        Ok(json) => json.parse::<ConfigWire>()?,
        // It answered, and does not say: that is no fault of the way to it.
        Err(error) if matches!(error.kind, PortErrorKind::Unsupported | PortErrorKind::Refused { .. }) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    // The chain may begin above block 0; our genesis is block 0.
    let l2_genesis = Some(config.genesis.l2).filter(|l2| l2.number == 0).map(|l2| l2.hash);
    Ok(Some(SourceNetwork { l1_chain_id: config.l1_chain_id, l2_chain_id: config.l2_chain_id, l2_genesis }))
}

#[derive(Clone, Copy, Deserialize)]
struct IdWire {
    hash: B256,
    number: u64,
}

#[derive(Clone, Copy, Deserialize)]
struct L1Wire {
    hash: B256,
    number: u64,
    #[serde(rename = "parentHash")]
    parent_hash: B256,
    timestamp: u64,
}

impl L1Wire {
    /// The block; none for the zero hash, which stands for a block that the source does not know.
    fn header(self) -> Option<L1Header> {
        let Self { hash, number, parent_hash, timestamp } = self;
        (!hash.is_zero()).then_some(L1Header { number: number.into(), hash, parent_hash, timestamp })
    }
}

#[derive(Clone, Copy, Deserialize)]
struct L2Wire {
    hash: B256,
    number: u64,
    #[serde(rename = "parentHash")]
    parent_hash: B256,
    timestamp: u64,
    l1origin: IdWire,
    #[serde(rename = "sequenceNumber")]
    sequence: u64,
}

impl L2Wire {
    /// The block, as for L1.
    fn place(self) -> Option<L2Place> {
        let Self { hash, number, parent_hash, timestamp, l1origin, sequence } = self;
        (!hash.is_zero()).then_some(L2Place {
            block: L2Ref { number: L2Number::new(number), hash },
            parent_hash,
            timestamp,
            origin: L1Ref { number: l1origin.number.into(), hash: l1origin.hash },
            sequence,
        })
    }
}

/// The fields that are used, each of which must be there, and the ones that are only shown.
#[derive(Deserialize)]
struct StatusWire {
    current_l1: L1Wire,
    head_l1: Option<L1Wire>,
    safe_l1: Option<L1Wire>,
    finalized_l1: Option<L1Wire>,
    unsafe_l2: Option<L2Wire>,
    safe_l2: L2Wire,
    finalized_l2: L2Wire,
    morph_deriver: Option<OwnWire>,
}

impl StatusWire {
    fn status(&self) -> SyncStatus {
        SyncStatus {
            current_l1: self.current_l1.header(),
            head_l1: self.head_l1.and_then(L1Wire::header),
            safe_l1: self.safe_l1.and_then(L1Wire::header),
            finalized_l1: self.finalized_l1.and_then(L1Wire::header),
            unsafe_l2: self.unsafe_l2.and_then(L2Wire::place),
            safe_l2: self.safe_l2.place(),
            finalized_l2: self.finalized_l2.place(),
        }
    }
}

/// What this program says beside op-node's fields.
#[derive(Deserialize)]
struct OwnWire {
    instance: B256,
    l1_chain_id: u64,
    l2_chain_id: u64,
    l2_genesis: B256,
}

#[derive(Deserialize)]
struct ConfigWire {
    l1_chain_id: u64,
    l2_chain_id: u64,
    genesis: GenesisWire,
}

#[derive(Deserialize)]
struct GenesisWire {
    l2: IdWire,
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::adapters::rpc::{Check, PoolConfig};
    use crate::adapters::testing;

    fn hash(number: u64) -> B256 {
        B256::from_low_u64_be(number)
    }

    /// What op-node gives, with the fields that this program does not know.
    fn status() -> Value {
        let l1 = |n: u64| json!({"hash": hash(n), "number": n, "parentHash": hash(n - 1), "timestamp": 12 * n});
        let l2 = |n: u64| {
            json!({
                "hash": hash(100 + n), "number": n, "parentHash": hash(99 + n), "timestamp": 2 * n,
                "l1origin": {"hash": hash(n), "number": n}, "sequenceNumber": 1,
            })
        };
        json!({
            "current_l1": l1(50), "current_l1_finalized": l1(20), "head_l1": l1(60), "safe_l1": l1(40),
            "finalized_l1": l1(20), "unsafe_l2": l2(30), "safe_l2": l2(20), "finalized_l2": l2(10),
            "pending_safe_l2": l2(20), "cross_unsafe_l2": l2(30), "local_safe_l2": l2(20), "queued_unsafe_l2": l2(31),
        })
    }

    fn config() -> Value {
        json!({"genesis": {"l1": {"hash": hash(1), "number": 1}, "l2": {"hash": hash(7), "number": 0}, "l2_time": 5},
            "block_time": 2, "l1_chain_id": 1, "l2_chain_id": 2818})
    }

    async fn asked(status: Value, config: Result<Value, (i64, &'static str)>) -> PortResult<Reply> {
        let server = testing::rpc(move |method, _| match method {
            "optimism_syncStatus" => Ok(status.clone()),
            "optimism_rollupConfig" => config.clone(),
            _ => Err((-32_601, "the method does not exist")),
        })
        .await;
        let retry_for = std::time::Duration::ZERO;
        let config = PoolConfig { check: Check::None, retry_for, ..PoolConfig::default() };
        let client = SourceClient::new(Pool::new(Target::Source, std::slice::from_ref(&server.url), config).unwrap());
        let reply = client.reply().await;
        assert_eq!(server.hits().len(), 1, "one exchange");
        assert!(server.url.ends_with(client.name()));
        reply
    }

    const NONE: Result<Value, (i64, &str)> = Err((-32_601, "the method does not exist"));

    #[tokio::test]
    async fn i1_one_exchange_gives_the_whole_snapshot() {
        let reply = asked(status(), Ok(config())).await.unwrap();
        let safe = reply.status.safe_l2.unwrap();
        assert_eq!((safe.block.number.get(), safe.block.hash, safe.parent_hash), (20, hash(120), hash(119)));
        assert_eq!((safe.origin.number.get(), safe.origin.hash, safe.sequence), (20, hash(20), 1));
        assert_eq!(reply.status.finalized_l2.unwrap().block.number.get(), 10);
        assert_eq!(reply.status.current_l1.unwrap().timestamp, 600);
        let network = SourceNetwork { l1_chain_id: 1, l2_chain_id: 2818, l2_genesis: Some(hash(7)) };
        assert_eq!((reply.network, reply.instance), (Some(network), None));
    }

    #[tokio::test]
    async fn i12_the_networks_are_this_programs_own_word_or_the_rollup_config() {
        let own =
            json!({"instance": hash(5), "l1_chain_id": 3, "l2_chain_id": 4, "l2_genesis": hash(6), "version": "0"});
        let mut ours = status();
        ours["morph_deriver"] = own;
        let reply = asked(ours, NONE).await.unwrap();
        let network = SourceNetwork { l1_chain_id: 3, l2_chain_id: 4, l2_genesis: Some(hash(6)) };
        assert_eq!((reply.network, reply.instance), (Some(network), Some(hash(5))));
        assert_eq!(asked(status(), NONE).await.unwrap().network, None);
        assert_eq!(asked(status(), Ok(Value::Null)).await.unwrap().network, None);
        let mut above = config();
        above["genesis"]["l2"]["number"] = json!(9);
        assert_eq!(asked(status(), Ok(above)).await.unwrap().network.unwrap().l2_genesis, None);
        assert_eq!(asked(status(), Ok(json!({}))).await.unwrap_err().kind, PortErrorKind::Malformed);
    }

    #[tokio::test]
    async fn i12_an_unknown_block_is_none_and_a_missing_field_is_an_error() {
        let mut unknown = status();
        unknown["safe_l2"]["hash"] = json!(B256::zero());
        unknown["current_l1"]["hash"] = json!(B256::zero());
        let reply = asked(unknown, Ok(config())).await.unwrap();
        assert_eq!((reply.status.safe_l2, reply.status.current_l1), (None, None));
        for (key, field) in [
            ("safe_l2", "l1origin"),
            ("safe_l2", "hash"),
            ("finalized_l2", "number"),
            ("current_l1", "hash"),
            ("current_l1", "timestamp"),
        ] {
            let mut broken = status();
            broken[key].as_object_mut().unwrap().remove(field);
            let error = asked(broken, Ok(config())).await.unwrap_err();
            assert_eq!((error.target, error.kind), (Target::Source, PortErrorKind::Malformed), "{key}.{field}");
        }
        for odd in [json!(null), json!([]), json!("x"), json!({"safe_l2": 1})] {
            assert_eq!(asked(odd, Ok(config())).await.unwrap_err().kind, PortErrorKind::Malformed);
        }
        let mut negative = status();
        negative["safe_l2"]["number"] = json!(-1);
        assert_eq!(asked(negative, Ok(config())).await.unwrap_err().kind, PortErrorKind::Malformed);
    }
}
