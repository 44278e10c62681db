//! Which network an endpoint belongs to.
//!
//! It is asked before the first use of an endpoint and after every fault: what answers at an address may be another node
//! than before.

use serde::Deserialize;
use serde_json::Value;

use super::http::{ERROR_PAGE, Http};
use super::jsonrpc::{Call, Json, JsonRpc};
use crate::error::{PortError, PortErrorKind, Target};
use crate::ports::PortResult;

/// What an endpoint must say before it is used, asked at its first use and after every fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Nothing.
    None,
    /// `eth_chainId` is this.
    ChainId(u64),
    /// The beacon chain's genesis time is this, in seconds since the Unix epoch.
    BeaconGenesis(u64),
}

/// Asks the endpoint for its network; `WrongNetwork` if that is another one than `check` says.
pub(super) async fn verify(endpoint: &JsonRpc, check: Check) -> PortResult<()> {
    let (said, expected, name) = match check {
        Check::None => return Ok(()),
        Check::ChainId(expected) => (Some(chain_id(endpoint).await?.quantity()?), expected, "chain id"),
        Check::BeaconGenesis(expected) => (beacon_genesis(&endpoint.http).await?, expected, "genesis time"),
    };
    match said.filter(|said| *said != expected) {
        Some(said) => {
            let detail = format!("{}: {name} is {said}, configured is {expected}", endpoint.http.name);
            Err(PortError::new(endpoint.http.target, PortErrorKind::WrongNetwork, detail))
        }
        None => Ok(()),
    }
}

/// The cheapest question that shows an endpoint alive.
pub(super) async fn greet(endpoint: &JsonRpc) -> PortResult<()> {
    match endpoint.http.target {
        Target::Beacon => endpoint.http.get(GENESIS, &[], ERROR_PAGE).await.map(drop),
        _ => chain_id(endpoint).await.map(drop),
    }
}

async fn chain_id(endpoint: &JsonRpc) -> PortResult<Json> {
    endpoint.call(Call::new("eth_chainId", Value::Array(Vec::new()))).await
}

const GENESIS: &str = "/eth/v1/beacon/genesis";

/// The beacon chain's genesis time as the endpoint says it; none if it does not say (a bare blob archive).
pub(super) async fn beacon_genesis(endpoint: &Http) -> PortResult<Option<u64>> {
    #[derive(Deserialize)]
    struct Reply {
        data: Genesis,
    }
    #[derive(Deserialize)]
    struct Genesis {
        genesis_time: String,
    }
    let reply = endpoint.get(GENESIS, &[], ERROR_PAGE).await?;
    if matches!(reply.status, 400 | 404 | 405 | 410 | 501) {
        return Ok(None);
    }
    if reply.status != 200 {
        return Err(endpoint.status_error("beacon/genesis", &reply));
    }
    let malformed = || PortError::malformed(endpoint.target, format!("{}: beacon/genesis: no time", endpoint.name));
    let parsed: Reply = serde_json::from_slice(&reply.body).map_err(|_| malformed())?;
    parsed.data.genesis_time.parse().map(Some).map_err(|_| malformed())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::adapters::rpc::{Pool, PoolConfig};
    use crate::adapters::testing::{config, dead, rpc};

    #[tokio::test]
    async fn m23_a11_one_endpoint_of_another_network_is_set_aside_and_only_all_of_them_are_a_wrong_network() {
        let foreign = rpc(|_, _| Ok(json!("0x5"))).await;
        let right = rpc(|_, _| Ok(json!("0x1"))).await;
        let dead = dead().await;
        let build = |urls: [&str; 2]| {
            let settings = PoolConfig { check: Check::ChainId(1), ..config() };
            Pool::new(Target::L1, &urls.map(str::to_owned), settings).unwrap()
        };
        let pool = build([&foreign.url, &right.url]);
        for _ in 0..3 {
            assert_eq!(pool.call("eth_blockNumber", json!([])).await.unwrap().quantity().unwrap(), 1);
        }
        assert_eq!(foreign.calls().len(), 1, "its network was asked, and nothing else");
        assert!(pool.stats()[0].cooling && !pool.stats()[1].cooling);

        for urls in [[&foreign.url, &dead], [&dead, &foreign.url]] {
            let pool = build(urls.map(String::as_str));
            for _ in 0..4 {
                let error = pool.call("eth_blockNumber", json!([])).await.unwrap_err();
                assert_eq!(error.kind, PortErrorKind::Unreachable, "the other one may come back: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        let another = rpc(|_, _| Ok(json!("0x6"))).await;
        let pool = build([&foreign.url, &another.url]);
        for _ in 0..2 {
            let error = pool.call("eth_blockNumber", json!([])).await.unwrap_err();
            assert_eq!(error.kind, PortErrorKind::WrongNetwork, "{error}");
        }
    }

    #[tokio::test]
    async fn a11_a_wrong_network_is_named_and_checked_again_after_a_fault() {
        let right = rpc(|_, _| Ok(json!("0x1"))).await;
        let settings = PoolConfig { check: Check::ChainId(1), ..config() };
        let pool = Pool::new(Target::L1, std::slice::from_ref(&right.url), settings).unwrap();
        for _ in 0..3 {
            pool.call("eth_blockNumber", json!([])).await.unwrap();
        }
        assert_eq!(right.calls_of("eth_chainId").len(), 1, "once for an endpoint in good standing");
        let error = PortError::new(Target::L1, PortErrorKind::Timeout, "");
        pool.fault(0, &error);
        tokio::time::sleep(Duration::from_millis(400)).await;
        pool.call("eth_blockNumber", json!([])).await.unwrap();
        assert_eq!(right.calls_of("eth_chainId").len(), 2, "and again after a fault");

        let settings = PoolConfig { check: Check::ChainId(560_048), ..config() };
        let pool = Pool::new(Target::L1, std::slice::from_ref(&right.url), settings).unwrap();
        let error = pool.call("eth_blockNumber", json!([])).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::WrongNetwork);
        assert!(error.detail.contains("chain id is 1, configured is 560048"), "{error}");
    }
}
