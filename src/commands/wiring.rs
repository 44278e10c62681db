//! Builds the ports from the configuration: the one place that knows which adapter implements which port.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use crate::adapters::beacon::{BeaconClient, BeaconConfig};
use crate::adapters::engine::{EngineClient, load_jwt_secret};
use crate::adapters::forkchoice::ForkchoiceClient;
use crate::adapters::head_source::SourceClient;
use crate::adapters::l1::L1Client;
use crate::adapters::l2::{L2Client, L2Config};
use crate::adapters::reactors::{CommandReactors, JsonRpcReactors, NoReactors};
use crate::adapters::rpc::{Check, Pool, PoolConfig};
use crate::adapters::store::SqliteStore;
use crate::config::{Config, FollowConfig, FollowEngine, ReactorControl};
use crate::decide::follow::{self, Dropped, Expected, SourceNetwork};
use crate::error::{PortError, PortErrorKind, Target};
use crate::flow::{FollowPorts, FollowSettings, Ports, Settings};
use crate::ports::{HeadSource, L2Engine, L2Reader as _, PortResult, Reactors};
use crate::redact::SecretUrl;
use crate::types::{B256, Identity, L2Number};

/// The clients behind the ports, for start-up and figures.
#[derive(Clone)]
pub struct Clients {
    /// L1.
    pub l1: Arc<L1Client>,
    /// Beacon.
    pub beacon: Option<Arc<BeaconClient>>,
    /// The L2 node.
    pub l2: Option<Arc<L2Client>>,
    /// Its engine.
    pub engine: Option<Arc<EngineClient>>,
    /// The nodes that are followed.
    pub sources: Vec<Arc<SourceClient>>,
}

fn urls(list: &[SecretUrl]) -> Vec<String> {
    list.iter().map(|url| url.expose().to_string()).collect()
}

fn pool(config: &Config, target: Target, list: &[SecretUrl], timeout: Duration, check: Check) -> PortResult<Pool> {
    let defaults = PoolConfig::default();
    let pool = PoolConfig {
        call_timeout: timeout,
        connect_timeout: defaults.connect_timeout.min(timeout),
        ask_again: config.poll_interval / 3,
        check,
        ..defaults
    };
    Pool::new(target, &urls(list), pool)
}

/// Clients for everything that `config` names.
///
/// # Errors
/// A JWT secret that cannot be used, a client that cannot be built.
pub fn clients(config: &Config) -> anyhow::Result<Clients> {
    let l1_check = config.l1.chain_id.map_or(Check::None, Check::ChainId);
    let l1_pool = pool(config, Target::L1, &config.l1.rpc, config.l1.timeout, l1_check)?;
    let (rollup, queue) = (config.l1.rollup.unwrap_or_default(), config.l1.queue.unwrap_or_default());
    let l1 = Arc::new(L1Client::new(l1_pool, rollup, queue));
    let beacons: Vec<_> = config.l1.beacon.iter().chain(&config.l1.beacon_archive).cloned().collect();
    let beacon = match beacons.is_empty() {
        true => None,
        false => {
            let check = config.l1.beacon_genesis_time.map_or(Check::None, Check::BeaconGenesis);
            let pool = pool(config, Target::Beacon, &beacons, config.l1.beacon_timeout, check)?;
            let timing = BeaconConfig {
                genesis_time: config.l1.beacon_genesis_time,
                seconds_per_slot: config.l1.seconds_per_slot,
            };
            Some(Arc::new(BeaconClient::new(pool, timing)))
        }
    };
    let l2_check = config.l2.chain_id.map_or(Check::None, Check::ChainId);
    let l2 = match &config.l2.eth {
        None => None,
        Some(url) => {
            let pool = pool(config, Target::L2, std::slice::from_ref(url), config.l2.timeout, l2_check)?;
            let genesis = config.l2.genesis_hash;
            Some(Arc::new(L2Client::new(pool, L2Config { genesis, ..L2Config::default() })))
        }
    };
    let engine = match (&config.l2.engine, &config.l2.jwt_secret) {
        (Some(url), Some(path)) if !config.observe => {
            let secret = load_jwt_secret(path).context("the engine's JWT secret")?;
            let pool = PoolConfig { call_timeout: config.l2.engine_timeout, ..PoolConfig::default() };
            let engine = EngineClient::new(url.expose().as_str(), secret, pool)?;
            Some(Arc::new(engine.with_genesis(config.l2.genesis_hash)))
        }
        _ => None,
    };
    let sources = config.follow.sources.iter().map(|url| source(config, url)).collect::<PortResult<Vec<_>>>()?;
    Ok(Clients { l1, beacon, l2, engine, sources })
}

/// One source: a pool of its own, so that its replies stay its own. The flow chooses among the sources.
fn source(config: &Config, url: &SecretUrl) -> PortResult<Arc<SourceClient>> {
    let FollowConfig { timeout, poll_interval, .. } = config.follow;
    let defaults = PoolConfig::default();
    let pool = PoolConfig {
        call_timeout: timeout,
        connect_timeout: defaults.connect_timeout.min(timeout),
        // A status and a configuration take a few kilobytes.
        max_body: 256 * 1024,
        ask_again: poll_interval,
        // The next poll asks again soon enough.
        retry_for: Duration::ZERO,
        ..defaults
    };
    Ok(Arc::new(SourceClient::new(Pool::new(Target::Source, &urls(std::slice::from_ref(url)), pool)?)))
}

/// The reactor control that `config` names.
///
/// # Errors
/// An empty command, a client that cannot be built.
pub fn reactors(config: &Config) -> PortResult<Arc<dyn Reactors>> {
    let limit = config.reactors.timeout;
    Ok(match &config.reactors.control {
        ReactorControl::None => Arc::new(NoReactors),
        ReactorControl::JsonRpc { url, pause_method, resume_method, height } => {
            let pool = pool(config, Target::Reactors, std::slice::from_ref(url), limit, Check::None)?;
            let reactors = JsonRpcReactors::new(pool, pause_method.clone(), resume_method.clone(), *height);
            Arc::new(reactors.already_resumed(config.reactors.already_resumed.clone()))
        }
        ReactorControl::Command { pause, resume } => {
            let reactors = CommandReactors::new(pause.clone(), resume.clone(), limit)?;
            let reactors = reactors.passing(config.reactors.pass_env.clone());
            Arc::new(reactors.already_resumed(config.reactors.already_resumed.clone()))
        }
    })
}

/// The ports of a worker.
///
/// # Errors
/// A setting that `run` needs is missing.
pub fn ports(config: &Config, clients: &Clients, store: Arc<SqliteStore>) -> anyhow::Result<Ports> {
    let beacon = clients.beacon.clone().context("no beacon endpoint is configured")?;
    let l2 = clients.l2.clone().context("no L2 endpoint is configured")?;
    let ports = Ports {
        l1: clients.l1.clone(),
        blobs: beacon,
        l2,
        engine: clients.engine.clone().map(|e| e as Arc<dyn L2Engine>),
        reactors: if config.observe { Arc::new(NoReactors) } else { reactors(config)? },
        progress: store,
    };
    #[cfg(debug_assertions)]
    let ports = match crate::adapters::kill_points::KillPoints::from_env() {
        Some(points) => Ports {
            l1: points.l1(ports.l1),
            blobs: points.blobs(ports.blobs),
            l2: points.l2(ports.l2),
            engine: ports.engine.map(|engine| points.engine(engine)),
            reactors: points.reactors(ports.reactors),
            progress: points.progress(ports.progress),
        },
        None => ports,
    };
    Ok(ports)
}

/// The ports of a follower.
///
/// # Errors
/// A setting that `run` needs is missing.
pub fn follow_ports(config: &Config, clients: &Clients, store: Arc<SqliteStore>) -> anyhow::Result<FollowPorts> {
    let l2 = clients.l2.clone().context("no L2 endpoint is configured")?;
    anyhow::ensure!(config.follows(), "no follow source is configured");
    Ok(FollowPorts {
        l1: clients.l1.clone(),
        l2,
        engine: clients.engine.as_ref().map(|engine| match config.follow.engine {
            FollowEngine::Morph => engine.clone() as Arc<dyn L2Engine>,
            FollowEngine::Forkchoice => Arc::new(ForkchoiceClient::new(engine.as_ref().clone())),
        }),
        progress: store,
        sources: clients.sources.iter().map(|source| source.clone() as Arc<dyn HeadSource>).collect(),
    })
}

/// The follower's settings. `instance` is the mark by which it knows its own server.
pub fn follow_settings(config: &Config, identity: &Identity, instance: B256) -> FollowSettings {
    FollowSettings {
        network: network_of(identity),
        instance,
        poll_interval: config.follow.poll_interval,
        max_age: config.follow.max_age,
        agreement: config.follow.agreement,
        alarm_after: config.follow.alarm_after,
        sets_head: config.follow.engine == FollowEngine::Forkchoice,
    }
}

fn network_of(identity: &Identity) -> SourceNetwork {
    SourceNetwork {
        l1_chain_id: identity.l1_chain_id,
        l2_chain_id: identity.l2_chain_id,
        l2_genesis: Some(identity.l2_genesis),
    }
}

/// That a follow source answers and works for our networks.
///
/// # Errors
/// As [`check_identity`].
pub async fn check_source(source: &SourceClient, identity: &Identity) -> PortResult<()> {
    let reply = source.reply().await?;
    let expected = Expected { network: network_of(identity), instance: B256::zero(), finalized: None };
    match follow::read(&reply, &expected) {
        Ok(_) => Ok(()),
        Err(dropped @ (Dropped::OtherNetwork { .. } | Dropped::Unidentified)) => {
            Err(PortError::new(Target::Source, PortErrorKind::WrongNetwork, dropped.to_string()))
        }
        Err(dropped) => Err(PortError::malformed(Target::Source, dropped.to_string())),
    }
}

/// The flow's settings.
pub fn settings(config: &Config) -> Settings {
    let start = config.l1.start_block.unwrap_or_default();
    Settings {
        mode: config.mode,
        finality: config.finality,
        rollup: config.l1.rollup.unwrap_or_default(),
        start,
        // A start in the middle must still reach back for L1 messages and earlier commits. A preset says how far.
        origin: config.network.map_or_else(Default::default, crate::config::Network::first_block).min(start),
        fetch_range: config.l1.fetch_block_range,
        reorg_window: config.l1.reorg_window,
        l1_max_age: config.l1.max_age,
        confirmations: config.l1.confirmations,
        switch_ms: config.l2.switch_time_ms,
        observation_window: config.observation_window,
        pause_budget: config.reactors.pause_budget,
        pause_per_block: config.reactors.pause_budget_per_block,
        head_still: config.reactors.head_still,
        poll_interval: config.poll_interval,
        ..Settings::default()
    }
}

/// Checks that every party belongs to the configured network (A11): chain ids, code at both contracts, the L2 genesis
/// block, the beacon chain's genesis time.
///
/// # Errors
/// `WrongNetwork` naming the mismatch. Any other error means that a party did not answer. If one of several endpoints
/// belongs to another network, it is named in the log and set aside.
pub async fn check_identity(clients: &Clients, identity: &Identity) -> PortResult<()> {
    check_l1(&clients.l1, identity).await?;
    if let Some(l2) = &clients.l2 {
        check_l2(l2, identity).await?;
    }
    if let Some(engine) = &clients.engine {
        check_engine(engine, identity).await?;
    }
    if let Some(beacon) = &clients.beacon {
        beacon.check_genesis().await?;
    }
    Ok(())
}

fn differs(target: Target, what: &str, expected: impl fmt::Display, actual: impl fmt::Display) -> PortResult<()> {
    let detail = format!("{what} is {actual}, configured is {expected}");
    Err(PortError::new(target, PortErrorKind::WrongNetwork, detail))
}

/// L1's chain id, and code at both contracts.
///
/// # Errors
/// As [`check_identity`].
pub async fn check_l1(l1: &L1Client, identity: &Identity) -> PortResult<()> {
    let id = l1.chain_id().await?;
    if id != identity.l1_chain_id {
        return differs(Target::L1, "the chain id", identity.l1_chain_id, id);
    }
    for (name, address) in [("Rollup", identity.rollup), ("L1MessageQueue", identity.queue)] {
        if l1.code_at(address).await?.is_empty() {
            let detail = format!("there is no contract at the configured {name} address {address:?}");
            return Err(PortError::new(Target::L1, PortErrorKind::WrongNetwork, detail));
        }
    }
    Ok(())
}

/// The L2 node's chain id and genesis block.
///
/// # Errors
/// As [`check_identity`].
pub async fn check_l2(l2: &L2Client, identity: &Identity) -> PortResult<()> {
    let id = l2.chain_id().await?;
    if id != identity.l2_chain_id {
        return differs(Target::L2, "the chain id", identity.l2_chain_id, id);
    }
    match l2.header(L2Number::new(0)).await? {
        Some(genesis) if genesis.hash != identity.l2_genesis => {
            let (expected, actual) = (format!("{:?}", identity.l2_genesis), format!("{:?}", genesis.hash));
            differs(Target::L2, "the genesis block", expected, actual)
        }
        Some(_) => Ok(()),
        None => Err(PortError::new(Target::L2, PortErrorKind::NotFound, "the node has no genesis block")),
    }
}

/// The engine's chain id and genesis block, and that it accepts our token. It must be the node that is read, so it is
/// checked against the same values.
///
/// # Errors
/// As [`check_identity`].
pub async fn check_engine(engine: &EngineClient, identity: &Identity) -> PortResult<()> {
    let view = engine.view(L2Number::new(0)).await?;
    if view.chain_id != identity.l2_chain_id {
        return differs(Target::Engine, "the chain id", identity.l2_chain_id, view.chain_id);
    }
    match view.at {
        Some(genesis) if genesis.hash != identity.l2_genesis => {
            let (expected, actual) = (format!("{:?}", identity.l2_genesis), format!("{:?}", genesis.hash));
            differs(Target::Engine, "the genesis block", expected, actual)
        }
        Some(_) => Ok(()),
        None => Err(PortError::new(Target::Engine, PortErrorKind::NotFound, "the node has no genesis block")),
    }
}

/// The beacon chain's genesis time as the first endpoint gives it. A bare blob archive gives none.
///
/// # Errors
/// As [`check_identity`].
pub async fn check_beacon(beacon: &BeaconClient, configured: Option<u64>) -> PortResult<()> {
    match (beacon.pool().genesis_on(0).await?, configured) {
        (Some(said), Some(configured)) if said != configured => {
            differs(Target::Beacon, "the genesis time", configured, said)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigArgs;

    #[tokio::test]
    async fn m29_the_last_endpoint_left_is_asked_again_three_times_a_poll_interval() {
        let mut config = Config::load(&ConfigArgs::default()).unwrap();
        config.poll_interval = Duration::from_secs(6);
        let url = "http://127.0.0.1:1".parse::<SecretUrl>().unwrap();
        config.l1.rpc = vec![url.clone()];
        config.l1.beacon = vec![url.clone()];
        config.l2.eth = Some(url);
        let clients = clients(&config).unwrap();
        let (beacon, l2) = (clients.beacon.unwrap(), clients.l2.unwrap());
        for pool in [clients.l1.pool(), beacon.pool(), l2.pool()] {
            assert_eq!(pool.config().ask_again, Duration::from_secs(2));
        }
    }
}
