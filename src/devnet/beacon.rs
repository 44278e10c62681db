//! The simulated beacon node over the simulated L1: genesis, spec, blobs, sidecars, blocks, without I/O.
//!
//! Decided here: what each route answers (protocol.md, section 4; error bodies as recorded), bent by [`BeaconKnobs`].

use serde_json::{Value, json};

use super::jsonrpc::{data, parse_hash};
use super::l1::{L1, SimBlob};
use crate::types::B256;

/// What a route does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Route {
    /// Answers.
    #[default]
    Serve,
    /// Answers with this status and message.
    Fail(u16, String),
    /// Answers 200 with no data.
    Empty,
}

impl Route {
    /// 410, as anvil answers for `blob_sidecars`.
    pub fn gone() -> Self {
        Self::Fail(410, "This endpoint is deprecated. Use `GET /eth/v1/beacon/blobs/{block_id}` instead.".to_owned())
    }

    /// What a node without all data columns says.
    pub fn insufficient_columns() -> Self {
        Self::Fail(500, "insufficient data columns to reconstruct blobs".to_owned())
    }
}

/// How the slot length is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spec {
    /// `SECONDS_PER_SLOT`.
    #[default]
    Seconds,
    /// `SLOT_DURATION_MS` only.
    Millis,
    /// 404 with an empty body, as anvil.
    Missing,
}

/// How one beacon endpoint bends its answers.
#[derive(Clone, Debug, Default)]
pub struct BeaconKnobs {
    /// Another genesis time.
    pub genesis_time: Option<u64>,
    /// `config/spec`.
    pub spec: Spec,
    /// `blobs/{slot}`.
    pub blobs: Route,
    /// `blob_sidecars/{slot}`.
    pub sidecars: Route,
    /// `v2/beacon/blocks/{slot}`.
    pub blocks: Route,
    /// Blobs below this slot are gone: 404.
    pub pruned_below: Option<u64>,
    /// One byte of each blob is another.
    pub wrong_bytes: bool,
    /// Blobs in reverse order.
    pub reversed: bool,
    /// The last blob is left out.
    pub incomplete: bool,
    /// `versioned_hashes` and `indices` are ignored.
    pub ignores_filters: bool,
    /// Commitments of a block are other ones.
    pub wrong_commitments: bool,
}

/// Status and body.
pub type Reply = (u16, String);

/// Constants of the beacon chain.
#[derive(Clone, Copy, Debug)]
pub struct BeaconConfig {
    /// Genesis time.
    pub genesis_time: u64,
    /// Seconds per slot.
    pub seconds_per_slot: u64,
}

fn failure(status: u16, message: &str) -> Reply {
    (status, json!({ "code": status, "message": message }).to_string())
}

/// Answers `GET path?query`.
pub fn get(l1: &L1, config: &BeaconConfig, knobs: &BeaconKnobs, path: &str, query: &[(String, String)]) -> Reply {
    match path.trim_matches('/').split('/').collect::<Vec<_>>().as_slice() {
        ["eth", "v1", "beacon", "genesis"] => {
            let time = knobs.genesis_time.unwrap_or(config.genesis_time);
            let root = data(&[0; 32]);
            let genesis = json!({
                "genesis_time": time.to_string(), "genesis_validators_root": root, "genesis_fork_version": "0x00000000",
            });
            (200, json!({ "data": genesis }).to_string())
        }
        ["eth", "v1", "config", "deposit_contract"] => {
            let contract = json!({ "chain_id": l1.config.chain_id.to_string(), "address": data(&[0; 20]) });
            (200, json!({ "data": contract }).to_string())
        }
        ["eth", "v1", "config", "spec"] => spec(l1, config, knobs),
        ["eth", "v1", "beacon", "blobs", slot] => blobs(l1, config, knobs, slot, query, &knobs.blobs),
        ["eth", "v1", "beacon", "blob_sidecars", slot] => sidecars(l1, config, knobs, slot, query),
        ["eth", "v2", "beacon", "blocks", slot] => block(l1, config, knobs, slot),
        _ => failure(404, "Not found"),
    }
}

fn spec(l1: &L1, config: &BeaconConfig, knobs: &BeaconKnobs) -> Reply {
    let chain = l1.config.chain_id.to_string();
    let (key, value) = match knobs.spec {
        Spec::Seconds => ("SECONDS_PER_SLOT", config.seconds_per_slot),
        Spec::Millis => ("SLOT_DURATION_MS", config.seconds_per_slot * 1000),
        Spec::Missing => return (404, String::new()),
    };
    (200, json!({ "data": { key: value.to_string(), "DEPOSIT_CHAIN_ID": chain } }).to_string())
}

/// The blobs of a slot's L1 block in block order; `None` if the slot has no block.
fn of_slot(l1: &L1, config: &BeaconConfig, slot: &str) -> Option<Vec<SimBlob>> {
    let slot: u64 = slot.parse().ok()?;
    let time = config.genesis_time.checked_add(slot.checked_mul(config.seconds_per_slot)?)?;
    let block = l1.block_at_time(time)?;
    Some(block.txs.iter().flat_map(|tx| tx.blobs.iter()).map(|blob| (**blob).clone()).collect())
}

fn selected(
    l1: &L1,
    config: &BeaconConfig,
    knobs: &BeaconKnobs,
    slot: &str,
    route: &Route,
) -> Result<Vec<(usize, SimBlob)>, Reply> {
    match route {
        Route::Fail(status, message) => return Err(failure(*status, message)),
        Route::Empty => return Ok(Vec::new()),
        Route::Serve => {}
    }
    let found = of_slot(l1, config, slot).ok_or_else(|| failure(404, "Block not found"))?;
    if knobs.pruned_below.is_some_and(|below| slot.parse::<u64>().is_ok_and(|slot| slot < below)) {
        return Err(failure(404, "blobs are not available anymore"));
    }
    let mut found: Vec<_> = found.into_iter().enumerate().collect();
    if knobs.incomplete {
        found.pop();
    }
    if knobs.reversed {
        found.reverse();
    }
    Ok(found)
}

fn bytes_of(blob: &SimBlob, knobs: &BeaconKnobs) -> Value {
    if !knobs.wrong_bytes {
        return data(blob.blob.as_bytes());
    }
    let mut bytes = blob.blob.as_bytes().to_vec();
    if let Some(byte) = bytes.get_mut(77) {
        *byte ^= 1;
    }
    data(&bytes)
}

fn values<'a>(query: &'a [(String, String)], key: &str) -> Vec<&'a str> {
    query.iter().filter(|(name, _)| name == key).flat_map(|(_, value)| value.split(',')).collect()
}

fn blobs(
    l1: &L1,
    config: &BeaconConfig,
    knobs: &BeaconKnobs,
    slot: &str,
    query: &[(String, String)],
    route: &Route,
) -> Reply {
    let found = match selected(l1, config, knobs, slot, route) {
        Ok(found) => found,
        Err(reply) => return reply,
    };
    let wanted: Vec<B256> =
        values(query, "versioned_hashes").iter().filter_map(|text| parse_hash(&json!(text))).collect();
    let all = wanted.is_empty() || knobs.ignores_filters;
    let kept = found.iter().filter(|(_, blob)| all || wanted.contains(&blob.hash));
    let blobs: Vec<Value> = kept.map(|(_, blob)| bytes_of(blob, knobs)).collect();
    (200, json!({ "execution_optimistic": false, "finalized": false, "data": blobs }).to_string())
}

fn sidecars(l1: &L1, config: &BeaconConfig, knobs: &BeaconKnobs, slot: &str, query: &[(String, String)]) -> Reply {
    let found = match selected(l1, config, knobs, slot, &knobs.sidecars) {
        Ok(found) => found,
        Err(reply) => return reply,
    };
    let wanted: Vec<usize> = values(query, "indices").iter().filter_map(|text| text.parse().ok()).collect();
    let all = wanted.is_empty() || knobs.ignores_filters;
    let kept = found.iter().filter(|(index, _)| all || wanted.contains(index));
    let sidecars: Vec<Value> = kept
        .map(|(index, blob)| {
            json!({
                "index": index.to_string(), "blob": bytes_of(blob, knobs),
                "kzg_commitment": data(&blob.commitment), "kzg_proof": data(&[0xc0; 48]),
            })
        })
        .collect();
    (200, json!({ "data": sidecars }).to_string())
}

fn block(l1: &L1, config: &BeaconConfig, knobs: &BeaconKnobs, slot: &str) -> Reply {
    if let Route::Fail(status, message) = &knobs.blocks {
        return failure(*status, message);
    }
    let Some(found) = of_slot(l1, config, slot) else { return failure(404, "Block not found") };
    let commitments: Vec<Value> = found
        .iter()
        .filter(|_| knobs.blocks != Route::Empty)
        .map(|blob| {
            let mut commitment = blob.commitment;
            if knobs.wrong_commitments {
                commitment[47] ^= 1;
            }
            data(&commitment)
        })
        .collect();
    let body = json!({ "blob_kzg_commitments": commitments });
    let root = data(&[0; 32]);
    let message = json!({ "slot": slot, "proposer_index": "0", "parent_root": root, "state_root": root, "body": body });
    let block = json!({ "message": message, "signature": data(&[0; 96]) });
    let reply = json!({ "version": "fulu", "execution_optimistic": false, "finalized": false, "data": block });
    (200, reply.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::devnet::l1::{L1Config, L1Op};
    use crate::types::{BLOB_BYTES, Blob};

    fn chain() -> (L1, BeaconConfig, Arc<SimBlob>) {
        let config =
            L1Config { chain_id: 9, start_time: 1_200, block_time: 12, safe_depth: 1, finalized_depth: 2, seed: 1 };
        let mut l1 = L1::new(config);
        let blob = Arc::new(SimBlob::new(Blob::new(vec![0; BLOB_BYTES]).unwrap()).unwrap());
        l1.submit(L1Op::Noise(vec![Arc::clone(&blob), Arc::clone(&blob)])).unwrap();
        l1.mine();
        l1.mine_after(24);
        (l1, BeaconConfig { genesis_time: 0, seconds_per_slot: 12 }, blob)
    }

    fn read(knobs: &BeaconKnobs, path: &str, query: &[(&str, String)]) -> (u16, Value) {
        let (l1, config, _) = chain();
        let query: Vec<_> = query.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        let (status, body) = get(&l1, &config, knobs, path, &query);
        (status, serde_json::from_str(&body).unwrap_or_default())
    }

    #[test]
    fn slots_follow_time_and_filters_apply() {
        let (_, _, blob) = chain();
        let knobs = BeaconKnobs::default();
        let hash = format!("{:?}", blob.hash);
        let count = |path: &str, query: &[(&str, String)]| {
            let (status, body) = read(&knobs, path, query);
            (status, body["data"].as_array().map_or(0, Vec::len))
        };
        assert_eq!(count("/eth/v1/beacon/blobs/101", &[]), (200, 2));
        assert_eq!(count("/eth/v1/beacon/blobs/101", &[("versioned_hashes", hash)]), (200, 2));
        assert_eq!(
            count("/eth/v1/beacon/blobs/101", &[("versioned_hashes", format!("0x{}", "11".repeat(32)))]),
            (200, 0)
        );
        assert_eq!(count("/eth/v1/beacon/blob_sidecars/101", &[("indices", "1".to_owned())]), (200, 1));
        // A block without blobs, a missed slot, a slot to come.
        assert_eq!(count("/eth/v1/beacon/blobs/103", &[]), (200, 0));
        assert_eq!(count("/eth/v1/beacon/blobs/102", &[]), (404, 0));
        assert_eq!(count("/eth/v1/beacon/blobs/900", &[]), (404, 0));
        let (_, block) = read(&knobs, "/eth/v2/beacon/blocks/101", &[]);
        let commitments = block["data"]["message"]["body"]["blob_kzg_commitments"].as_array().unwrap();
        assert_eq!(commitments.len(), 2);
    }

    #[test]
    fn d4_d5_d6_d7_knobs() {
        let path = "/eth/v1/beacon/blobs/101";
        let knobs =
            BeaconKnobs { blobs: Route::insufficient_columns(), sidecars: Route::gone(), ..BeaconKnobs::default() };
        assert_eq!(read(&knobs, path, &[]).0, 500);
        assert_eq!(read(&knobs, "/eth/v1/beacon/blob_sidecars/101", &[]).0, 410);
        let knobs = BeaconKnobs { pruned_below: Some(102), spec: Spec::Millis, ..BeaconKnobs::default() };
        assert_eq!(read(&knobs, path, &[]).0, 404);
        assert_eq!(read(&knobs, "/eth/v1/config/spec", &[]).1["data"]["SLOT_DURATION_MS"], json!("12000"));
        let good = read(&BeaconKnobs::default(), path, &[]).1["data"][0].clone();
        let knobs = BeaconKnobs { wrong_bytes: true, incomplete: true, ..BeaconKnobs::default() };
        let bad = read(&knobs, path, &[]).1;
        assert_eq!(bad["data"].as_array().unwrap().len(), 1);
        assert_ne!(bad["data"][0], good);
        assert_eq!(
            read(&BeaconKnobs { spec: Spec::Missing, ..BeaconKnobs::default() }, "/eth/v1/config/spec", &[]).0,
            404
        );
    }
}
