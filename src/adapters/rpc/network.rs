//! Whether an endpoint belongs to the network that is configured, or that the others belong to.
//!
//! It is asked before the first use of an endpoint and after every fault: what answers at an address may be another node
//! than before.

use futures::future::join_all;
use serde::Deserialize;
use serde_json::Value;

use super::http::ERROR_PAGE;
use super::jsonrpc::Call;
use super::pool::Pool;
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

impl Pool {
    /// The cheapest question that shows an endpoint alive. The network check, if there is one, was asked before.
    pub(super) async fn greet(&self, at: usize) -> PortResult<()> {
        match self.check() {
            Check::None if self.target() != Target::Beacon => {
                self.call_on(at, Call::new("eth_chainId", Value::Array(Vec::new()))).await.map(drop)
            }
            Check::None => self.get_on(at, "/eth/v1/beacon/genesis", &[], ERROR_PAGE).await.map(drop),
            Check::ChainId(_) | Check::BeaconGenesis(_) => Ok(()),
        }
    }

    /// Which network the endpoints must belong to, as configured or learnt since.
    fn check(&self) -> Check {
        match (self.config().check, self.genesis().get()) {
            (Check::None, Some(genesis)) => Check::BeaconGenesis(*genesis),
            (configured, _) => configured,
        }
    }

    /// Every endpoint must say this genesis time from now on, if no check is configured. The first value stays.
    pub fn learn_genesis(&self, genesis: u64) {
        let _ = self.genesis().set(genesis);
    }

    /// What was learnt by [`Pool::learn_genesis`].
    pub fn learnt_genesis(&self) -> Option<u64> {
        self.genesis().get().copied()
    }

    /// As [`Pool::genesis_on`], of every endpoint at once, in order. An endpoint that is set aside counts with its last
    /// fault; one that does not answer within the time for a connection is set aside.
    pub async fn genesis_of_all(&self) -> Vec<PortResult<Option<u64>>> {
        let may_be_asked = self.eligible();
        let ask = |at: usize| {
            let asked = may_be_asked.contains(&at);
            async move {
                if !asked && let Some(fault) = self.last_fault(at) {
                    return Err(fault);
                }
                let limit = self.config().connect_timeout;
                let answer = tokio::time::timeout(limit, self.genesis_on(at)).await.unwrap_or_else(|_| {
                    let detail =
                        format!("{}: beacon/genesis: no answer in {:.1} s", self.name(at), limit.as_secs_f64());
                    Err(PortError::new(self.target(), PortErrorKind::Timeout, detail))
                });
                match &answer {
                    Err(error) if error.is_transient() => self.fault(at, error),
                    _ => {}
                }
                answer
            }
        };
        join_all((0..self.size()).map(ask)).await
    }

    /// Asks for its network if that was not asked since its last fault.
    pub(super) async fn ensure_checked(&self, at: usize) -> PortResult<()> {
        if self.is_vouched_for(at) {
            return Ok(());
        }
        let (said, expected, name) = match self.check() {
            Check::None => (None, 0, ""),
            Check::ChainId(expected) => {
                let answer = self.call_on(at, Call::new("eth_chainId", Value::Array(Vec::new()))).await?;
                (Some(answer.quantity()?), expected, "chain id")
            }
            Check::BeaconGenesis(expected) => (self.genesis_on(at).await?, expected, "genesis time"),
        };
        if let Some(said) = said
            && said != expected
        {
            let detail = format!("{}: {name} is {said}, configured is {expected}", self.name(at));
            return Err(PortError::new(self.target(), PortErrorKind::WrongNetwork, detail));
        }
        self.vouch_for(at);
        Ok(())
    }

    /// The beacon chain's genesis time as endpoint `at` says it; none if it does not say (a bare blob archive).
    pub async fn genesis_on(&self, at: usize) -> PortResult<Option<u64>> {
        #[derive(Deserialize)]
        struct Reply {
            data: Genesis,
        }
        #[derive(Deserialize)]
        struct Genesis {
            genesis_time: String,
        }
        let reply = self.get_on(at, "/eth/v1/beacon/genesis", &[], ERROR_PAGE).await?;
        if matches!(reply.status, 400 | 404 | 405 | 410 | 501) {
            return Ok(None);
        }
        if reply.status != 200 {
            return Err(self.status_error(at, "beacon/genesis", &reply));
        }
        let malformed = || PortError::malformed(self.target(), format!("{}: beacon/genesis: no time", self.name(at)));
        let parsed: Reply = serde_json::from_slice(&reply.body).map_err(|_| malformed())?;
        parsed.data.genesis_time.parse().map(Some).map_err(|_| malformed())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::adapters::rpc::PoolConfig;
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
