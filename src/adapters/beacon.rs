//! Blobs from beacon nodes and archives.
//!
//! Decided here: which slot an L1 block is, which of the two endpoints an answer is asked of, and whether a blob is
//! the one that was asked for: only its own commitment, recomputed from its bytes, says so (protocol.md, section 4).
//! Order, completeness, indices and proofs of an answer are not relied on. Not decided here: what a missing blob
//! means; `NotFound` may be a reorg, and the flow looks at the L1 header again (D3).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use futures::future::join_all;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::OnceCell;
use tracing::warn;

use super::rpc::{HttpReply, Pool};
use super::wire::{self, Bounded};
use crate::codec::blob;
use crate::error::{PortError, PortErrorKind, Target};
use crate::ports::{BlobSource, PortResult};
use crate::types::{B256, BLOB_BYTES, Blob, L1Header};

/// Most blobs that one L1 block may hold here; the largest value that a scheduled fork allows is well below.
const BLOBS_IN_A_BLOCK: usize = 72;

/// Most elements read of a list of blobs.
const LISTED_MAX: usize = 4 * BLOBS_IN_A_BLOCK;

/// Longest answer with blobs: each in hex, with the proofs, the block header and the inclusion proof of a sidecar.
const BLOBS_BODY: usize = BLOBS_IN_A_BLOCK * (2 * BLOB_BYTES + 8 * 1024) + 64 * 1024;

/// Longest answer of `config/spec`.
const SPEC_BODY: usize = 1024 * 1024;

/// Longest beacon block in JSON: an execution payload of 10 MiB in hex, and the rest.
const BLOCK_BODY: usize = 32 * 1024 * 1024;

/// Most commitments read of a beacon block: MAX_BLOB_COMMITMENTS_PER_BLOCK of the consensus specification.
const COMMITMENTS_MAX: usize = 4096;

/// Slots for which nodes keep blobs: MIN_EPOCHS_FOR_BLOB_SIDECARS_REQUESTS, 4096 epochs of 32 slots (about 18 days).
const KEPT_SLOTS: u64 = 4096 * 32;

const UNKNOWN: u8 = 0;
const BLOBS: u8 = 1;
const SIDECARS: u8 = 2;

/// What is set by the operator instead of asked of a beacon node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BeaconConfig {
    /// Genesis time in seconds since the Unix epoch.
    pub genesis_time: Option<u64>,
    /// Seconds in a slot. Needed if no server has `config/spec`.
    pub seconds_per_slot: Option<u64>,
}

/// How slots follow from time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Timing {
    genesis: u64,
    seconds: u64,
}

impl Timing {
    /// The slot of a block with this timestamp; none before genesis.
    fn slot(self, timestamp: u64) -> Option<u64> {
        timestamp.checked_sub(self.genesis)?.checked_div(self.seconds)
    }
}

/// Blobs through a pool of beacon nodes, archives last.
#[derive(Debug)]
pub struct BeaconClient {
    pool: Pool,
    config: BeaconConfig,
    timing: OnceCell<Timing>,
    /// For each endpoint, which way of asking for blobs worked.
    dialects: Vec<AtomicU8>,
}

impl BeaconClient {
    /// The beacon nodes of `pool` (target [`Target::Beacon`]), in order; archives of old blobs belong at its end.
    pub fn new(pool: Pool, config: BeaconConfig) -> Self {
        let dialects = (0..pool.size()).map(|_| AtomicU8::new(UNKNOWN)).collect();
        Self { pool, config, timing: OnceCell::new(), dialects }
    }

    /// The endpoints, for figures.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Genesis time of the beacon chain, in seconds since the Unix epoch: as configured, else as the servers say that
    /// can be asked. From then on a server that says another one is set aside.
    ///
    /// # Errors
    /// `WrongNetwork` if no time is configured and two servers contradict each other.
    pub async fn genesis_time(&self) -> PortResult<u64> {
        match self.config.genesis_time.or_else(|| self.pool.learnt_genesis()) {
            Some(genesis) => Ok(genesis),
            None => self.agreed_genesis(&self.pool.genesis_of_all().await),
        }
    }

    /// Asks every server for its genesis time, at start. A configured time wins: a server that contradicts it is named
    /// and set aside.
    ///
    /// # Errors
    /// `WrongNetwork` if every server contradicts the configured time, or if none is configured and they contradict each
    /// other. If a time is configured, servers that cannot be asked are no error: they are asked at their first use.
    pub async fn check_genesis(&self) -> PortResult<()> {
        let said = self.pool.genesis_of_all().await;
        let Some(expected) = self.config.genesis_time else { return self.agreed_genesis(&said).map(drop) };
        let mut others = 0_usize;
        for (at, answer) in said.iter().enumerate() {
            let Ok(Some(genesis)) = answer else { continue };
            if *genesis == expected {
                self.pool.vouch_for(at);
                continue;
            }
            let name = self.pool.name(at);
            let detail = format!("{name}: genesis time is {genesis}, configured is {expected}");
            let error = PortError::new(Target::Beacon, PortErrorKind::WrongNetwork, detail);
            others = others.saturating_add(1);
            if others == self.pool.size() {
                return Err(error);
            }
            warn!(code = error.code(), entity = name, genesis, expected, "beacon endpoint of another network");
            self.pool.demote(at, &error);
        }
        Ok(())
    }

    /// The one genesis time among the answers.
    fn agreed_genesis(&self, answers: &[PortResult<Option<u64>>]) -> PortResult<u64> {
        let mut agreed: Option<(usize, u64)> = None;
        let mut failure = None;
        for (at, answer) in answers.iter().enumerate() {
            match (answer, agreed) {
                (Ok(Some(genesis)), None) => agreed = Some((at, *genesis)),
                (Ok(Some(genesis)), Some((earlier, other))) if *genesis != other => {
                    let (earlier, name) = (self.pool.name(earlier), self.pool.name(at));
                    let detail = format!(
                        "{earlier} says genesis time {other}, {name} says {genesis}: configure l1.beacon_genesis_time"
                    );
                    return Err(PortError::new(Target::Beacon, PortErrorKind::WrongNetwork, detail));
                }
                (Ok(_), _) => {}
                (Err(error), _) => failure = Some(error.clone()),
            }
        }
        let Some((_, genesis)) = agreed else {
            let detail = format!("{}: does not say its genesis time; configure it", self.pool.name(0));
            return Err(failure.unwrap_or_else(|| PortError::new(Target::Beacon, PortErrorKind::NotFound, detail)));
        };
        self.pool.learn_genesis(genesis);
        let belongs =
            |answer: &PortResult<Option<u64>>| answer.as_ref().is_ok_and(|said| said.is_none_or(|s| s == genesis));
        for at in answers.iter().enumerate().filter(|(_, answer)| belongs(answer)).map(|(at, _)| at) {
            self.pool.vouch_for(at);
        }
        Ok(genesis)
    }

    /// The beacon slot of the L1 block `header`.
    pub async fn slot(&self, header: &L1Header) -> PortResult<u64> {
        let timing = *self.timing.get_or_try_init(|| self.ask_timing()).await?;
        timing.slot(header.timestamp).ok_or_else(|| {
            let detail = format!("L1 block {} is older than the beacon chain's genesis", header.number);
            PortError::malformed(Target::Beacon, detail)
        })
    }

    async fn ask_timing(&self) -> PortResult<Timing> {
        let genesis = self.genesis_time().await?;
        let seconds = match self.config.seconds_per_slot {
            Some(seconds) => seconds,
            None => self.pool.run(|at| self.seconds_on(at)).await?,
        };
        if seconds == 0 {
            return Err(PortError::malformed(Target::Beacon, "a slot of zero seconds"));
        }
        Ok(Timing { genesis, seconds })
    }

    async fn seconds_on(&self, at: usize) -> PortResult<u64> {
        #[derive(Deserialize)]
        struct Reply {
            data: Spec,
        }
        #[derive(Deserialize)]
        struct Spec {
            #[serde(rename = "SECONDS_PER_SLOT")]
            seconds: Option<Value>,
            #[serde(rename = "SLOT_DURATION_MS")]
            milliseconds: Option<Value>,
        }
        let reply = self.pool.get_on(at, "/eth/v1/config/spec", &[], SPEC_BODY).await?;
        if reply.status != 200 {
            let mut error = self.pool.status_error(at, "config/spec", &reply);
            error.detail.push_str(" (seconds per slot can be configured)");
            return Err(error);
        }
        let name = self.pool.name(at);
        let malformed = |why: &str| PortError::malformed(Target::Beacon, format!("{name}: config/spec: {why}"));
        let spec = serde_json::from_slice::<Reply>(&reply.body).map_err(|_| malformed("not as expected"))?.data;
        let number = |value: Option<Value>| match value? {
            Value::String(text) => text.parse::<u64>().ok(),
            other => other.as_u64(),
        };
        if let Some(seconds) = number(spec.seconds).filter(|seconds| *seconds > 0) {
            return Ok(seconds);
        }
        number(spec.milliseconds)
            .filter(|ms| *ms > 0 && ms.is_multiple_of(1000))
            .map(|ms| ms / 1000)
            .ok_or_else(|| malformed("neither SECONDS_PER_SLOT nor SLOT_DURATION_MS; configure seconds per slot"))
    }

    async fn commitments_on(&self, at: usize, slot: u64, wanted: &[B256]) -> PortResult<Vec<[u8; 48]>> {
        #[derive(Deserialize)]
        struct Reply<'a> {
            #[serde(borrow)]
            data: Data<'a>,
        }
        #[derive(Deserialize)]
        struct Data<'a> {
            #[serde(borrow)]
            message: Message<'a>,
        }
        #[derive(Deserialize)]
        struct Message<'a> {
            slot: &'a str,
            #[serde(borrow)]
            body: Body<'a>,
        }
        #[derive(Deserialize)]
        struct Body<'a> {
            #[serde(borrow, default)]
            blob_kzg_commitments: Bounded<&'a str, COMMITMENTS_MAX>,
        }
        let reply = self.pool.get_on(at, &format!("/eth/v2/beacon/blocks/{slot}"), &[], BLOCK_BODY).await?;
        if reply.status != 200 {
            return Err(self.pool.status_error(at, &format!("block of slot {slot}"), &reply));
        }
        let name = self.pool.name(at);
        let malformed =
            |why: &str| PortError::malformed(Target::Beacon, format!("{name}: block of slot {slot}: {why}"));
        let reply: Reply<'_> = serde_json::from_slice(&reply.body).map_err(|_| malformed("not as expected"))?;
        let message = reply.data.message;
        if message.slot.parse() != Ok(slot) {
            return Err(malformed("the answer is the block of another slot"));
        }
        let mut known: HashMap<B256, [u8; 48]> = HashMap::new();
        for text in message.body.blob_kzg_commitments.0 {
            let commitment = wire::array(text).ok_or_else(|| malformed("a commitment that is not 48 bytes"))?;
            known.insert(blob::versioned_hash(&commitment), commitment);
        }
        let find = |hash: &B256| known.get(hash).copied();
        wanted.iter().map(find).collect::<Option<_>>().ok_or_else(|| {
            let detail = format!("{name}: block of slot {slot} has other commitments (a reorg?)");
            PortError::new(Target::Beacon, PortErrorKind::NotFound, detail)
        })
    }

    async fn blobs_on(&self, at: usize, slot: u64, wanted: &[B256], old: bool) -> PortResult<HashMap<B256, Blob>> {
        let known = self.dialects.get(at).map_or(UNKNOWN, |dialect| dialect.load(Ordering::Relaxed));
        let learn = |dialect: u8| {
            if let Some(slot) = self.dialects.get(at) {
                slot.store(dialect, Ordering::Relaxed);
            }
        };
        let mut failure: Option<PortError> = None;
        for dialect in [BLOBS, SIDECARS] {
            if known != UNKNOWN && known != dialect {
                continue;
            }
            let answer = match dialect {
                BLOBS => self.ask_blobs(at, slot, wanted).await,
                _ => self.ask_sidecars(at, slot, wanted).await,
            };
            let error = match answer {
                Ok(found) => {
                    learn(dialect);
                    return Ok(found);
                }
                Err(error) => explain(error, slot, old),
            };
            if error.is_transient() || error.kind == PortErrorKind::Unauthorized {
                return Err(error); // the other way of asking would meet the same fault
            }
            if error.kind == PortErrorKind::Unsupported {
                learn(UNKNOWN);
            }
            failure = Some(match failure {
                Some(earlier) if telling(&earlier) >= telling(&error) => earlier,
                _ => error,
            });
        }
        Err(failure.unwrap_or_else(|| PortError::malformed(Target::Beacon, "no way to ask for blobs")))
    }

    /// Today's endpoint: by hash; then the whole slot, if the answer was not complete (a server that honours one
    /// key only); then hash by hash, if the whole slot is refused or cut.
    async fn ask_blobs(&self, at: usize, slot: u64, wanted: &[B256]) -> PortResult<HashMap<B256, Blob>> {
        let mut found = HashMap::new();
        let mut any = false;
        let mut refusal = None;
        let mut filters: Vec<Vec<B256>> = vec![distinct(wanted), Vec::new()];
        if wanted.len() > 1 {
            filters.extend(distinct(wanted).into_iter().map(|hash| vec![hash]));
        }
        for filter in filters {
            let served = !filter.is_empty() && filter.iter().all(|hash| found.contains_key(hash));
            if served {
                continue;
            }
            let reply = self.get_blobs(at, slot, &filter).await?;
            if reply.status == 400 {
                refusal = Some(self.pool.status_error(at, &format!("blobs of slot {slot}"), &reply));
                continue;
            }
            if reply.status != 200 {
                return Err(self.pool.status_error(at, &format!("blobs of slot {slot}"), &reply));
            }
            let candidates = self.read_blobs(at, slot, &reply)?;
            any |= !candidates.is_empty();
            pick(candidates, wanted, &mut found).await;
            if complete(&found, wanted) {
                return Ok(found);
            }
        }
        Err(refusal.unwrap_or_else(|| self.incomplete(at, slot, any)))
    }

    async fn get_blobs(&self, at: usize, slot: u64, filter: &[B256]) -> PortResult<HttpReply> {
        let query: Vec<(&str, String)> = filter.iter().map(|hash| ("versioned_hashes", wire::hex_hash(hash))).collect();
        self.pool.get_on(at, &format!("/eth/v1/beacon/blobs/{slot}"), &query, BLOBS_BODY).await
    }

    fn read_blobs(&self, at: usize, slot: u64, reply: &HttpReply) -> PortResult<Vec<Blob>> {
        #[derive(Deserialize)]
        struct Reply<'a> {
            #[serde(borrow)]
            data: Bounded<&'a str, LISTED_MAX>,
        }
        let reply: Reply<'_> = serde_json::from_slice(&reply.body).map_err(|_| self.not_blobs(at, slot))?;
        Ok(reply.data.0.into_iter().filter_map(read_blob).collect())
    }

    /// The older endpoint, over the whole slot: index hints do not survive a reorg, and some servers ignore them (D9).
    async fn ask_sidecars(&self, at: usize, slot: u64, wanted: &[B256]) -> PortResult<HashMap<B256, Blob>> {
        #[derive(Deserialize)]
        struct Reply<'a> {
            #[serde(borrow)]
            data: Bounded<Sidecar<'a>, LISTED_MAX>,
        }
        #[derive(Deserialize)]
        struct Sidecar<'a> {
            blob: &'a str,
            #[serde(default)]
            kzg_commitment: Option<&'a str>,
        }
        let reply = self.pool.get_on(at, &format!("/eth/v1/beacon/blob_sidecars/{slot}"), &[], BLOBS_BODY).await?;
        if reply.status != 200 {
            return Err(self.pool.status_error(at, &format!("blob sidecars of slot {slot}"), &reply));
        }
        let mut sidecars =
            serde_json::from_slice::<Reply<'_>>(&reply.body).map_err(|_| self.not_blobs(at, slot))?.data.0;
        // The stated commitment is a hint of where to look first, no more.
        let hinted = |sidecar: &Sidecar<'_>| {
            let mut commitment = [0; 48];
            let text = sidecar.kzg_commitment.and_then(|text| text.strip_prefix("0x")).unwrap_or_default();
            const_hex::decode_to_slice(text, &mut commitment).is_ok()
                && wanted.contains(&blob::versioned_hash(&commitment))
        };
        sidecars.sort_by_cached_key(|sidecar| !hinted(sidecar));
        let candidates: Vec<Blob> = sidecars.iter().filter_map(|sidecar| read_blob(sidecar.blob)).collect();
        let any = !candidates.is_empty();
        let mut found = HashMap::new();
        pick(candidates, wanted, &mut found).await;
        if complete(&found, wanted) { Ok(found) } else { Err(self.incomplete(at, slot, any)) }
    }

    fn not_blobs(&self, at: usize, slot: u64) -> PortError {
        let detail = format!("{}: blobs of slot {slot}: the answer is no list of blobs", self.pool.name(at));
        PortError::malformed(Target::Beacon, detail)
    }

    fn incomplete(&self, at: usize, slot: u64, any: bool) -> PortError {
        let name = self.pool.name(at);
        if any {
            let detail = format!("{name}: blobs of slot {slot}: none of the blobs served has the hash that L1 signed");
            return PortError::malformed(Target::Beacon, detail);
        }
        PortError::new(Target::Beacon, PortErrorKind::NotFound, format!("{name}: no blobs of slot {slot}"))
    }
}

#[async_trait]
impl BlobSource for BeaconClient {
    async fn blobs(&self, header: &L1Header, versioned_hashes: &[B256]) -> PortResult<Vec<Blob>> {
        if versioned_hashes.is_empty() {
            return Ok(Vec::new());
        }
        let slot = self.slot(header).await?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let newest = self.timing.get().and_then(|timing| timing.slot(now)).unwrap_or(0);
        let old = newest.saturating_sub(slot) > KEPT_SLOTS;
        let found = self.pool.run(|at| self.blobs_on(at, slot, versioned_hashes, old)).await?;
        let blob = |hash: &B256| found.get(hash).cloned();
        versioned_hashes
            .iter()
            .map(blob)
            .collect::<Option<_>>()
            .ok_or_else(|| PortError::malformed(Target::Beacon, format!("blobs of slot {slot}: incomplete")))
    }

    /// What a block of another slot or fork holds does no harm: a commitment that hashes to what L1 holds is the right one,
    /// from wherever it comes.
    async fn commitments(&self, header: &L1Header, versioned_hashes: &[B256]) -> PortResult<Option<Vec<[u8; 48]>>> {
        if versioned_hashes.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let slot = self.slot(header).await?;
        match self.pool.run(|at| self.commitments_on(at, slot, versioned_hashes)).await {
            Ok(commitments) => Ok(Some(commitments)),
            Err(error) if offers_none(&error.kind) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether a server that was asked for commitments says that it has none to offer: a slot without a block, a block of
/// another fork, an archive of blobs that has no blocks.
const fn offers_none(kind: &PortErrorKind) -> bool {
    matches!(
        kind,
        PortErrorKind::NotFound | PortErrorKind::Pruned | PortErrorKind::Unsupported | PortErrorKind::Refused { .. }
    )
}

fn read_blob(text: &str) -> Option<Blob> {
    (text.len() <= 2 * BLOB_BYTES + 2).then(|| wire::bytes(text).and_then(Blob::new)).flatten()
}

fn distinct(hashes: &[B256]) -> Vec<B256> {
    let mut seen = Vec::with_capacity(hashes.len());
    for hash in hashes {
        if !seen.contains(hash) {
            seen.push(*hash);
        }
    }
    seen
}

fn complete(found: &HashMap<B256, Blob>, wanted: &[B256]) -> bool {
    wanted.iter().all(|hash| found.contains_key(hash))
}

/// Moves the candidates that are wanted into `found`, by their recomputed commitments: off the async threads, as many
/// at a time as are still missing, and no further than needed.
async fn pick(candidates: Vec<Blob>, wanted: &[B256], found: &mut HashMap<B256, Blob>) {
    let mut rest = candidates.into_iter();
    loop {
        let missing = wanted.iter().filter(|hash| !found.contains_key(hash)).count();
        let now: Vec<Blob> = rest.by_ref().take(missing).collect();
        if now.is_empty() {
            return;
        }
        let hash = |candidate: Blob| {
            tokio::task::spawn_blocking(move || blob::blob_hash(&candidate).ok().map(|hash| (hash, candidate)))
        };
        for (hash, candidate) in join_all(now.into_iter().map(hash)).await.into_iter().filter_map(|task| task.ok()?) {
            if wanted.contains(&hash) {
                found.insert(hash, candidate);
            }
        }
    }
}

/// Says what an operator can do about it. A node without all data columns answers 400, 404 or 500, by a text that
/// shows (D5); blobs older than every node keeps are pruned, whatever the answer says (D4).
fn explain(mut error: PortError, slot: u64, old: bool) -> PortError {
    let text = error.detail.to_ascii_lowercase();
    let columns = ["data column", "supernode", "custody"].iter().any(|part| text.contains(part));
    if columns {
        error.kind = PortErrorKind::Pruned;
        error.detail.push_str(" (this beacon node needs to be a (semi-)supernode to serve whole blobs)");
        return error;
    }
    let gone = matches!(error.kind, PortErrorKind::NotFound | PortErrorKind::Refused { .. });
    if old && gone {
        error.kind = PortErrorKind::Pruned;
        error.detail.push_str(&format!(" (slot {slot} is past the 4096 epochs that nodes keep: add a blob archive)"));
    } else if error.kind == PortErrorKind::NotFound {
        error.detail.push_str(" (a missed slot, or a reorg)");
    }
    error
}

/// Which of the two ways' errors says more.
fn telling(error: &PortError) -> u8 {
    match error.kind {
        PortErrorKind::Pruned => 4,
        PortErrorKind::Malformed => 3,
        PortErrorKind::NotFound => 2,
        PortErrorKind::Refused { .. } => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use serde_json::json;

    use super::*;
    use crate::adapters::rpc::Check;
    use crate::adapters::rpc::PoolConfig;
    use crate::adapters::testing::{self, Hit, Server, config, dead, http};
    use crate::types::L1Number;

    type Reply = (u16, Vec<(&'static str, String)>, String);

    const GENESIS: u64 = 1_700_000_000;

    /// A blob whose data is `seed`, with its versioned hash.
    fn sample(seed: u8) -> (B256, Blob) {
        let mut bytes = vec![0_u8; BLOB_BYTES];
        bytes[1] = seed;
        bytes[40] = seed;
        let blob = Blob::new(bytes).unwrap();
        (blob::blob_hash(&blob).unwrap(), blob)
    }

    fn text(blob: &Blob) -> String {
        wire::hex_bytes(blob.as_bytes())
    }

    fn blobs_body(blobs: &[&Blob]) -> String {
        json!({"data": blobs.iter().map(|blob| text(blob)).collect::<Vec<_>>()}).to_string()
    }

    fn sidecars_body(blobs: &[&Blob]) -> String {
        let one = |blob: &&Blob| {
            let commitment = wire::hex_bytes(&blob::commitment(blob).unwrap());
            json!({"index": "0", "blob": text(blob), "kzg_commitment": commitment, "kzg_proof": "0x"})
        };
        json!({"data": blobs.iter().map(one).collect::<Vec<_>>()}).to_string()
    }

    fn reply(status: u16, body: impl Into<String>) -> Reply {
        (status, Vec::new(), body.into())
    }

    /// A beacon node: genesis and spec, and `answer` for the rest.
    async fn node(answer: impl Fn(&Hit) -> Reply + Clone + Send + Sync + 'static) -> Server {
        http(move |hit| {
            let reply = match hit.path.as_str() {
                "/eth/v1/beacon/genesis" => {
                    reply(200, json!({"data": {"genesis_time": GENESIS.to_string()}}).to_string())
                }
                "/eth/v1/config/spec" => reply(200, json!({"data": {"SECONDS_PER_SLOT": "12"}}).to_string()),
                _ => answer(&hit),
            };
            async move { reply }
        })
        .await
    }

    fn client(urls: &[&str]) -> BeaconClient {
        BeaconClient::new(testing::pool(Target::Beacon, urls), BeaconConfig::default())
    }

    /// An L1 block of `slot`.
    fn header(slot: u64) -> L1Header {
        L1Header {
            number: L1Number::new(1),
            hash: B256::repeat_byte(1),
            parent_hash: B256::repeat_byte(2),
            timestamp: GENESIS + slot * 12,
        }
    }

    fn now_slot() -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        (now - GENESIS) / 12
    }

    fn asked(server: &Server, part: &str) -> usize {
        server.hits().iter().filter(|hit| hit.path.contains(part)).count()
    }

    #[tokio::test]
    async fn d6_new_only_old_only_and_both_serve_and_are_remembered() {
        let (hash, blob) = sample(1);
        for (new, old) in [(true, false), (false, true), (true, true)] {
            let served = blob.clone();
            let server = node(move |hit| match () {
                () if hit.path.contains("/beacon/blobs/77?versioned_hashes=0x01") && new => {
                    reply(200, blobs_body(&[&served]))
                }
                () if hit.path.ends_with("/beacon/blob_sidecars/77") && old => reply(200, sidecars_body(&[&served])),
                () if hit.path.contains("blob_sidecars") => reply(410, r#"{"code":410,"message":"deprecated"}"#),
                () => reply(404, "404 page not found"),
            })
            .await;
            let client = client(&[&server.url]);
            for _ in 0..3 {
                assert_eq!(client.blobs(&header(77), &[hash]).await.unwrap(), std::slice::from_ref(&blob));
            }
            let expected = if new { (3, 0) } else { (1, 3) };
            let counted = (asked(&server, "/beacon/blobs/"), asked(&server, "blob_sidecars"));
            assert_eq!(counted, expected, "new {new} old {old}");
            assert_eq!((asked(&server, "genesis"), asked(&server, "spec")), (1, 1));
        }
    }

    #[tokio::test]
    async fn d2_wrong_bytes_move_on_to_the_next_server() {
        let (hash, blob) = sample(1);
        let (_, other) = sample(2);
        let bad = node(move |_| reply(200, blobs_body(&[&other]))).await;
        let served = blob.clone();
        let good = node(move |_| reply(200, blobs_body(&[&served]))).await;
        assert_eq!(client(&[&bad.url, &good.url]).blobs(&header(5), &[hash]).await.unwrap(), [blob]);
        let error = client(&[&bad.url]).blobs(&header(5), &[hash]).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Malformed);
    }

    #[tokio::test]
    async fn d9_order_and_surplus_do_not_matter_and_one_pass_suffices() {
        let samples: Vec<(B256, Blob)> = (1..6).map(sample).collect();
        let all: Vec<Blob> = samples.iter().rev().map(|(_, blob)| blob.clone()).collect();
        let served = all.clone();
        let old = node(move |hit| match hit.path.contains("blob_sidecars") {
            true => reply(200, sidecars_body(&served.iter().collect::<Vec<_>>())),
            false => reply(404, ""),
        })
        .await;
        let new = node(move |_| reply(200, blobs_body(&all.iter().collect::<Vec<_>>()))).await;
        let hashes = [samples[3].0, samples[0].0, samples[3].0];
        let expected = [samples[3].1.clone(), samples[0].1.clone(), samples[3].1.clone()];
        for server in [&old, &new] {
            let client = client(&[&server.url]);
            assert_eq!(client.blobs(&header(9), &hashes).await.unwrap(), expected);
        }
        assert_eq!(asked(&new, "/beacon/blobs/"), 1);
        assert_eq!(asked(&old, "blob_sidecars"), 1);
    }

    #[tokio::test]
    async fn d6_a_server_that_honours_one_key_only_is_asked_in_other_ways() {
        let samples: Vec<(B256, Blob)> = (1..4).map(sample).collect();
        let hashes: Vec<B256> = samples.iter().map(|(hash, _)| *hash).collect();
        for whole_slot in [true, false] {
            let known = samples.clone();
            let server = node(move |hit| {
                let Some(first) = hit.path.split("versioned_hashes=").nth(1) else {
                    let all: Vec<&Blob> = known.iter().map(|(_, blob)| blob).collect();
                    return if whole_slot { reply(200, blobs_body(&all)) } else { reply(400, "name the hashes") };
                };
                let wanted = known.iter().filter(|(hash, _)| first.starts_with(&wire::hex_hash(hash)));
                reply(200, blobs_body(&wanted.map(|(_, blob)| blob).collect::<Vec<_>>()))
            })
            .await;
            let blobs = client(&[&server.url]).blobs(&header(9), &hashes).await.unwrap();
            assert!(blobs.iter().zip(&samples).all(|(got, (_, blob))| got == blob));
            assert_eq!(asked(&server, "/beacon/blobs/"), if whole_slot { 2 } else { 4 });
        }
    }

    #[tokio::test]
    async fn d3_a_missed_slot_is_not_found_once_for_each_server() {
        let server = node(|_| reply(404, r#"{"code":404,"message":"Block not found"}"#)).await;
        let error = client(&[&server.url]).blobs(&header(now_slot()), &[sample(1).0]).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::NotFound);
        assert!(error.detail.contains("reorg"), "{error}");
        let empty = node(|hit| match hit.path.contains("sidecars") {
            true => reply(410, ""),
            false => reply(200, r#"{"data":[]}"#),
        })
        .await;
        let error = client(&[&empty.url]).blobs(&header(now_slot()), &[sample(1).0]).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::NotFound);
    }

    #[tokio::test]
    async fn d4_old_blobs_are_pruned_and_an_archive_serves_them() {
        let old = now_slot() - KEPT_SLOTS - 10;
        let (hash, blob) = sample(1);
        let node_only = node(|_| reply(200, r#"{"data":[]}"#)).await;
        let error = client(&[&node_only.url]).blobs(&header(old), &[hash]).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Pruned);
        assert!(error.detail.contains(&old.to_string()) && error.detail.contains("archive"), "{error}");
        let served = blob.clone();
        let archive = http(move |hit| {
            let reply = match hit.path.contains("blob_sidecars") {
                true => reply(200, sidecars_body(&[&served])),
                false => reply(404, ""),
            };
            async move { reply }
        })
        .await;
        let client = client(&[&node_only.url, &archive.url]);
        assert_eq!(client.blobs(&header(old), &[hash]).await.unwrap(), [blob]);
    }

    /// A beacon node that says this genesis time, and whose every slot holds `blobs`.
    async fn node_of(genesis: u64, blobs: String) -> Server {
        http(move |hit| {
            let reply = match hit.path.contains("genesis") {
                true => reply(200, json!({"data": {"genesis_time": genesis.to_string()}}).to_string()),
                false => reply(200, blobs.clone()),
            };
            async move { reply }
        })
        .await
    }

    fn checked(urls: &[&str], configured: Option<u64>) -> BeaconClient {
        let check = configured.map_or(Check::None, Check::BeaconGenesis);
        let urls: Vec<String> = urls.iter().map(|url| (*url).to_owned()).collect();
        let pool = Pool::new(Target::Beacon, &urls, PoolConfig { check, ..config() }).unwrap();
        BeaconClient::new(pool, BeaconConfig { genesis_time: configured, seconds_per_slot: Some(12) })
    }

    #[tokio::test]
    async fn m23_a_beacon_node_of_another_network_is_set_aside_and_the_next_one_asked() {
        let (hash, blob) = sample(1);
        let foreign = node_of(GENESIS + 12, blobs_body(&[])).await;
        let right = node_of(GENESIS, blobs_body(&[&blob])).await;
        let slot = now_slot();
        for urls in [[&foreign.url, &right.url], [&right.url, &foreign.url]] {
            let client = checked(&urls.map(String::as_str), Some(GENESIS));
            client.check_genesis().await.unwrap();
            assert_eq!(client.blobs(&header(slot), &[hash]).await.unwrap(), std::slice::from_ref(&blob));
        }
        // It comes to light in the middle of a run as well: the right one was down at start.
        let client = checked(&[&foreign.url, &right.url], Some(GENESIS));
        assert_eq!(client.blobs(&header(slot), &[hash]).await.unwrap(), [blob]);
        assert!(foreign.hits().iter().all(|hit| hit.path.contains("genesis")), "it is asked for nothing else");
    }

    #[tokio::test]
    async fn m23_all_beacon_nodes_of_another_network_are_a_wrong_network_and_named_at_start() {
        let foreign = node_of(GENESIS + 12, blobs_body(&[])).await;
        let another = node_of(GENESIS + 24, blobs_body(&[])).await;
        let right = node_of(GENESIS, blobs_body(&[])).await;
        let archive = http(|_| async { (404, vec![], String::new()) }).await;
        let dead = dead().await;
        let wrong = Err(PortErrorKind::WrongNetwork);
        type Row<'a> = (&'a [&'a str], Option<u64>, Result<(), PortErrorKind>);
        let table: [Row<'_>; 9] = [
            (&[&foreign.url], Some(GENESIS), wrong.clone()),
            (&[&foreign.url, &another.url], Some(GENESIS), wrong.clone()),
            (&[&foreign.url, &right.url], Some(GENESIS), Ok(())),
            (&[&foreign.url, &dead], Some(GENESIS), Ok(())),
            (&[&dead], Some(GENESIS), Ok(())),
            (&[&archive.url], Some(GENESIS), Ok(())),
            (&[&right.url, &archive.url, &dead], None, Ok(())),
            (&[&foreign.url, &right.url], None, wrong),
            (&[&archive.url], None, Err(PortErrorKind::NotFound)),
        ];
        for (urls, configured, expected) in table {
            let got = checked(urls, configured).check_genesis().await;
            assert_eq!(got.clone().map_err(|error| error.kind), expected, "{got:?}");
        }
        let error = checked(&[&foreign.url, &right.url], None).check_genesis().await.unwrap_err();
        assert!(error.detail.contains("l1.beacon_genesis_time"), "{error}");
    }

    #[tokio::test]
    async fn m23_a_genesis_time_that_was_learnt_holds_for_later_endpoints() {
        let (hash, blob) = sample(1);
        let right = node_of(GENESIS, blobs_body(&[])).await;
        let foreign = node_of(GENESIS + 12, blobs_body(&[&blob])).await;
        let gate = Arc::new(AtomicBool::new(false));
        let (open, behind) = (gate.clone(), foreign.url.clone());
        let late = http(move |hit| {
            let (open, behind) = (open.load(Ordering::SeqCst), behind.clone());
            async move {
                if !open {
                    return reply(503, "");
                }
                let client = reqwest::Client::builder().no_proxy().build().unwrap();
                let answer = client.get(format!("{behind}{}", hit.path)).send().await.unwrap();
                reply(200, answer.text().await.unwrap())
            }
        })
        .await;
        let client = checked(&[&late.url, &right.url], None);
        assert_eq!(client.genesis_time().await.unwrap(), GENESIS);
        gate.store(true, Ordering::SeqCst);
        let error = client.blobs(&header(now_slot()), &[hash]).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::NotFound, "the right one has none, the late one does not count: {error}");
    }

    #[tokio::test]
    async fn d5_a_node_without_all_columns_is_named_as_such() {
        for status in [400, 404, 500] {
            let server =
                node(move |_| reply(status, r#"{"message":"insufficient data columns to reconstruct"}"#)).await;
            let error = client(&[&server.url]).blobs(&header(now_slot()), &[sample(1).0]).await.unwrap_err();
            assert!(error.detail.contains("supernode"), "{error}");
            assert_eq!(error.kind, PortErrorKind::Pruned);
        }
    }

    #[tokio::test]
    async fn d7_the_slot_time_comes_from_either_key_or_the_configuration() {
        let table = [
            (200, r#"{"data":{"SECONDS_PER_SLOT":"12","DEPOSIT_CHAIN_ID":"1"}}"#, None, Ok(100)),
            (200, r#"{"data":{"SLOT_DURATION_MS":"12000"}}"#, None, Ok(100)),
            (200, r#"{"data":{"SECONDS_PER_SLOT":"0","SLOT_DURATION_MS":"6000"}}"#, None, Ok(200)),
            (200, r#"{"data":{}}"#, None, Err(PortErrorKind::Malformed)),
            (404, "", None, Err(PortErrorKind::NotFound)),
            (404, "", Some(12), Ok(100)),
        ];
        for (status, body, configured, expected) in table {
            let server = http(move |hit| {
                let reply = match hit.path.contains("genesis") {
                    true => reply(200, json!({"data": {"genesis_time": GENESIS.to_string()}}).to_string()),
                    false => reply(status, body),
                };
                async move { reply }
            })
            .await;
            let settings = BeaconConfig { genesis_time: None, seconds_per_slot: configured };
            let client = BeaconClient::new(testing::pool(Target::Beacon, &[&server.url]), settings);
            assert_eq!(client.slot(&header(100)).await.map_err(|error| error.kind), expected, "{body}");
        }
        let early = L1Header { timestamp: GENESIS - 1, ..header(0) };
        let server = node(|_| reply(404, "")).await;
        assert!(client(&[&server.url]).slot(&early).await.is_err());
    }

    #[tokio::test]
    async fn d8_bodies_that_are_no_blobs_are_refused() {
        let (hash, _) = sample(1);
        for body in ["<html>", "[]", r#"{"data":{}}"#, r#"{"data":["0x00","zz"]}"#, r#"{"data":[1]}"#] {
            let server = node(move |_| reply(200, body)).await;
            assert!(client(&[&server.url]).blobs(&header(now_slot()), &[hash]).await.is_err(), "{body}");
        }
        let server = node(move |_| reply(200, " ".repeat(BLOBS_BODY + 1))).await;
        let error = client(&[&server.url]).blobs(&header(now_slot()), &[hash]).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::RangeTooWide);
    }

    #[tokio::test]
    async fn d1_a_dead_first_server_is_dialled_once_a_cool_down() {
        let (hash, blob) = sample(1);
        let served = blob.clone();
        let good = node(move |_| reply(200, blobs_body(&[&served]))).await;
        let urls = [dead().await, good.url.clone()];
        let settings = PoolConfig { cool_down: std::time::Duration::from_secs(30), ..config() };
        let pool = Pool::new(Target::Beacon, &urls, settings).unwrap();
        let client = BeaconClient::new(pool.clone(), BeaconConfig::default());
        for _ in 0..10 {
            client.blobs(&header(5), &[hash]).await.unwrap();
        }
        assert_eq!(pool.stats()[0].requests, 1);
    }

    #[tokio::test]
    async fn a11_a_beacon_node_of_another_network_is_refused() {
        let server = node(|_| reply(404, "")).await;
        let settings = PoolConfig { check: Check::BeaconGenesis(GENESIS + 1), ..config() };
        let pool = Pool::new(Target::Beacon, std::slice::from_ref(&server.url), settings).unwrap();
        let client = BeaconClient::new(pool, BeaconConfig { genesis_time: Some(GENESIS), seconds_per_slot: Some(12) });
        let error = client.blobs(&header(5), &[sample(1).0]).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::WrongNetwork);
    }

    #[tokio::test]
    async fn commitments_come_from_the_beacon_block_and_are_matched_by_hash() {
        let samples: Vec<(B256, [u8; 48])> =
            (1..4).map(sample).map(|(hash, blob)| (hash, blob::commitment(&blob).unwrap())).collect();
        let texts: Vec<String> = samples.iter().map(|(_, commitment)| wire::hex_bytes(commitment)).collect();
        let body = json!({"version": "fulu", "data": {"message": {"slot": "9", "body": {
            "execution_payload": {"transactions": ["0x02"]}, "blob_kzg_commitments": texts}}, "signature": "0x"}});
        let server = node(move |_| reply(200, body.to_string())).await;
        let client = client(&[&server.url]);
        let got = client.commitments(&header(9), &[samples[2].0, samples[0].0, samples[2].0]).await.unwrap();
        assert_eq!(got, Some(vec![samples[2].1, samples[0].1, samples[2].1]));
        let another = [samples[0].0, B256::repeat_byte(1)];
        assert_eq!(client.commitments(&header(9), &another).await.unwrap(), None, "all of them, or none");
        let error = client.commitments(&header(10), &[samples[0].0]).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Malformed, "the block of another slot");
        assert_eq!(client.commitments(&header(9), &[]).await.unwrap(), Some(vec![]));
    }

    #[tokio::test]
    async fn d3_a_server_without_the_block_offers_no_commitments_and_the_next_one_is_asked() {
        let (hash, blob) = sample(1);
        let commitment = blob::commitment(&blob).unwrap();
        let of = |slot: &str, texts: Vec<String>| {
            json!({"data": {"message": {"slot": slot, "body": {"blob_kzg_commitments": texts}}}}).to_string()
        };
        let good = of("9", vec![wire::hex_bytes(&commitment)]);
        let having = node(move |_| reply(200, good.clone())).await;
        for (status, body) in [
            (404, r#"{"code":404,"message":"Block not found"}"#.to_owned()),
            (404, "404 page not found".to_owned()),
            (405, String::new()),
            (410, String::new()),
            (400, r#"{"message":"invalid block id"}"#.to_owned()),
            (200, of("9", vec![])),
            (200, json!({"data": {"message": {"slot": "9", "body": {}}}}).to_string()),
            (200, of("9", vec![wire::hex_bytes(&[0xc0; 48])])),
        ] {
            let answer = body.clone();
            let lacking = node(move |_| reply(status, answer.clone())).await;
            let alone = client(&[&lacking.url]).commitments(&header(9), &[hash]).await;
            assert_eq!(alone, Ok(None), "{status} {body}");
            let both = client(&[&lacking.url, &having.url]).commitments(&header(9), &[hash]).await;
            assert_eq!(both, Ok(Some(vec![commitment])), "{status} {body}");
        }
    }

    #[tokio::test]
    async fn d8_p7_a_block_that_is_none_is_refused_and_read_to_a_bound() {
        let (hash, blob) = sample(1);
        let commitment = wire::hex_bytes(&blob::commitment(&blob).unwrap());
        let of = |texts: Value| json!({"data": {"message": {"slot": "9", "body": {"blob_kzg_commitments": texts}}}});
        for body in [
            "<html>".to_owned(),
            json!({"data": {"message": {"body": {"blob_kzg_commitments": [commitment]}}}}).to_string(),
            json!({"data": {"message": {"slot": "9"}}}).to_string(),
            of(json!([commitment, "0x00"])).to_string(),
            of(json!([commitment, 7])).to_string(),
            of(json!([commitment.trim_start_matches("0x")])).to_string(),
            of(json!(vec![commitment.clone(); COMMITMENTS_MAX + 1])).to_string(),
        ] {
            let shown: String = body.chars().take(120).collect();
            let server = node(move |_| reply(200, body.clone())).await;
            let error = client(&[&server.url]).commitments(&header(9), &[hash]).await.unwrap_err();
            assert_eq!(error.kind, PortErrorKind::Malformed, "{shown}");
        }
        let server = node(move |_| reply(200, " ".repeat(BLOCK_BODY + 1))).await;
        let error = client(&[&server.url]).commitments(&header(9), &[hash]).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::RangeTooWide);
    }
}
