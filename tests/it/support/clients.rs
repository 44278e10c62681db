//! The real adapters, pointed at the fake servers, with short tempers.

use std::time::Duration;

use morph_deriver::adapters::beacon::{BeaconClient, BeaconConfig};
use morph_deriver::adapters::engine::{EngineClient, JwtSecret};
use morph_deriver::adapters::l1::L1Client;
use morph_deriver::adapters::l2::{L2Client, L2Config};
use morph_deriver::adapters::rpc::{Check, Pool, PoolConfig};
use morph_deriver::error::Target;
use morph_deriver::types::Address;

use super::bytes;
use super::recorded::{GENESIS_TIME, L1_CHAIN_ID, L2_CHAIN_ID, RecordedNetwork, SLOT_SECONDS};
use super::recorded_l2::{JWT_SECRET, RecordedL2};

/// Deadlines of a test: a hanging server costs one second, a faulty one little.
pub fn pool_config(check: Check) -> PoolConfig {
    PoolConfig {
        connect_timeout: Duration::from_millis(500),
        call_timeout: Duration::from_secs(2),
        cool_down: Duration::from_millis(50),
        cool_down_cap: Duration::from_millis(200),
        retry_for: Duration::from_secs(1),
        check,
        ..PoolConfig::default()
    }
}

/// An address from its text.
pub fn address(text: &str) -> Address {
    Address::from_slice(&bytes(text))
}

/// L1 over `urls`, with the contracts of the recorded network.
pub fn l1_over(network: &RecordedNetwork, urls: &[String]) -> L1Client {
    let (rollup, queue) = network.contracts();
    let pool = Pool::new(Target::L1, urls, pool_config(Check::ChainId(L1_CHAIN_ID))).unwrap();
    L1Client::new(pool, address(&rollup), address(&queue))
}

/// L1 of the recorded network.
pub fn l1(network: &RecordedNetwork) -> L1Client {
    l1_over(network, std::slice::from_ref(&network.l1.url))
}

/// Beacon nodes at `urls`, with the recorded network's genesis and [`SLOT_SECONDS`].
pub fn beacon_over(urls: &[String]) -> BeaconClient {
    let pool = Pool::new(Target::Beacon, urls, pool_config(Check::BeaconGenesis(GENESIS_TIME))).unwrap();
    let config = BeaconConfig { genesis_time: Some(GENESIS_TIME), seconds_per_slot: Some(SLOT_SECONDS) };
    BeaconClient::new(pool, config)
}

/// The beacon node of the recorded network.
pub fn beacon(network: &RecordedNetwork) -> BeaconClient {
    beacon_over(std::slice::from_ref(&network.beacon.url))
}

/// The recorded L2 node, unauthenticated.
pub fn l2(node: &RecordedL2) -> L2Client {
    let urls = std::slice::from_ref(&node.eth.url);
    L2Client::new(Pool::new(Target::L2, urls, pool_config(Check::ChainId(L2_CHAIN_ID))).unwrap(), L2Config::default())
}

/// The recorded L2 node's engine.
pub fn engine(node: &RecordedL2) -> EngineClient {
    EngineClient::new(&node.engine.url, JwtSecret::new(JWT_SECRET), pool_config(Check::None)).unwrap()
}
