//! Transport: HTTP with deadlines and body limits, JSON-RPC with batches, and the pool of endpoints behind a port.
//!
//! Decided here: which endpoint is asked, when one is set aside and for how long, what is repeated, what an error is
//! called ([`PortErrorKind`]), and what of it may be shown. This is the one place where a URL, a token or a server's
//! text becomes part of a message (P10): an endpoint is named by host and port, everything else of its URL is struck
//! out wherever it turns up. Not decided here: what is asked and what an answer means.
//!
//! Deadlines: every HTTP exchange has one (connect, and total including the body), so no call can hang (P4). Repeats
//! happen in [`retry`] only, for transport faults only, and never without a pause.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff;
use bytes::{Bytes, BytesMut};
use futures::future::join_all;
use rand::Rng;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::Instant;
use tracing::{debug, info, warn};
use url::Url;

use super::width::Width;
use super::wire;
use crate::error::{PortError, PortErrorKind, Target};
use crate::ports::PortResult;
use crate::redact::{self, SHOWN, scrub, tidy};

/// How much of an error page is read before it is shortened, in bytes.
const ERROR_PAGE: usize = 64 * 1024;

/// Most replies that are read of one batch, and so the most requests put into one.
const REPLIES_MAX: usize = 10_000;

/// The longest that a server's Retry-After is obeyed.
const RETRY_AFTER_CAP: Duration = Duration::from_secs(300);

/// At most this many rounds over the endpoints in one call.
const ROUNDS: u32 = 3;

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

/// Deadlines, limits and tempers of a [`Pool`].
#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// Longest wait for a TCP and TLS connection.
    pub connect_timeout: Duration,
    /// Longest wait for a whole exchange, body included.
    pub call_timeout: Duration,
    /// Longest body accepted, in bytes after decompression.
    pub max_body: usize,
    /// Most requests in one JSON-RPC batch; an endpoint that accepts fewer teaches its own limit.
    pub max_batch: usize,
    /// First cool-down of a faulty endpoint, doubled with every further fault; never less than `connect_timeout`, so
    /// that a dead endpoint costs less time than it is set aside for.
    pub cool_down: Duration,
    /// Longest cool-down (except what a server asks for by Retry-After).
    pub cool_down_cap: Duration,
    /// If no endpoint is in good standing, one is asked again this long after its last fault, whatever its cool-down: a
    /// cool-down is there to choose among several. A third of the poll interval: pauses between polls double up to the
    /// interval, and so whoever returns is asked within one interval of its last fault.
    pub ask_again: Duration,
    /// How long one call may go on repeating itself.
    pub retry_for: Duration,
    /// Which network the endpoints must belong to.
    pub check: Check,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(20),
            max_body: 16 * 1024 * 1024,
            max_batch: 100,
            cool_down: Duration::from_secs(5),
            cool_down_cap: Duration::from_secs(15),
            ask_again: Duration::from_secs(5),
            retry_for: Duration::from_secs(10),
            check: Check::None,
        }
    }
}

/// Signs requests. Asked once for every HTTP request, so that a token's time of issue is always fresh.
pub trait TokenSource: Send + Sync {
    /// The bearer token for the request that is about to be sent.
    fn token(&self) -> PortResult<SecretString>;
}

/// One JSON-RPC request.
#[derive(Clone, Debug)]
pub struct Call {
    method: Cow<'static, str>,
    params: Value,
}

impl Call {
    /// `method` with its positional parameters (a JSON array).
    pub fn new(method: impl Into<Cow<'static, str>>, params: Value) -> Self {
        Self { method: method.into(), params }
    }
}

/// The JSON text of one result, a slice of the body that it came in.
#[derive(Clone)]
pub struct Json {
    text: Bytes,
    target: Target,
    what: Cow<'static, str>,
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Json({} bytes)", self.text.len())
    }
}

impl Json {
    /// Whether the result is `null`.
    pub fn is_null(&self) -> bool {
        self.text.as_ref() == b"null"
    }

    /// The result as a tree, of at most [`wire::TREE_MAX`] values: a short text can hold millions, each of which takes
    /// far more room than its text did.
    pub fn tree(&self) -> PortResult<Value> {
        self.parse::<wire::Tree>().map(|tree| tree.0)
    }

    /// The result as a `T`.
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> PortResult<T> {
        serde_json::from_slice(&self.text).map_err(|error| self.malformed(tidy(&error.to_string())))
    }

    /// The result as a hex quantity.
    pub fn quantity(&self) -> PortResult<u64> {
        wire::quantity(&self.parse::<Cow<'_, str>>()?).ok_or_else(|| self.malformed("not a quantity"))
    }

    /// The result as hex bytes.
    pub fn bytes(&self) -> PortResult<Bytes> {
        wire::bytes(&self.parse::<Cow<'_, str>>()?).ok_or_else(|| self.malformed("not hex bytes"))
    }

    /// The error for a result that is JSON, and not what was asked for.
    pub fn malformed(&self, why: impl fmt::Display) -> PortError {
        PortError::malformed(self.target, format!("{}: {why}", self.what))
    }
}

/// What one HTTP exchange gave.
#[derive(Debug)]
pub struct HttpReply {
    /// HTTP status.
    pub status: u16,
    /// The Retry-After header in seconds form.
    pub retry_after: Option<Duration>,
    /// The body, at most as long as was allowed.
    pub body: Bytes,
}

/// How an endpoint has been doing.
#[derive(Debug, Default)]
struct Health {
    /// Faults in a row.
    strikes: u32,
    /// Set aside until then.
    until: Option<Instant>,
    /// Asked again from then on if no endpoint is in good standing; never later than `until`.
    again: Option<Instant>,
    /// The network check passed since the last fault.
    checked: bool,
    /// A probe is under way.
    probing: bool,
    /// The last fault.
    last: Option<PortError>,
}

struct Endpoint {
    url: Url,
    name: String,
    secrets: Vec<String>,
    client: reqwest::Client,
    health: Mutex<Health>,
    requests: AtomicU64,
    faults: AtomicU64,
    /// Most requests that this endpoint takes in one batch, as far as known.
    batch_limit: Mutex<Width>,
}

/// Figures of one endpoint, for status and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointStats {
    /// Host and port.
    pub name: String,
    /// HTTP requests sent.
    pub requests: u64,
    /// Faults that set it aside.
    pub faults: u64,
    /// Whether it is set aside now.
    pub cooling: bool,
}

struct Inner {
    target: Target,
    endpoints: Vec<Endpoint>,
    config: PoolConfig,
    bearer: Option<Arc<dyn TokenSource>>,
    ids: AtomicU64,
    /// The beacon chain's genesis time, if it was learnt and not configured.
    genesis: OnceLock<u64>,
}

/// Endpoints in order of preference behind one port. Cheap to clone; clones share health and figures.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.inner.endpoints.iter().map(|endpoint| endpoint.name.as_str()).collect();
        f.debug_struct("Pool").field("target", &self.inner.target).field("endpoints", &names).finish()
    }
}

impl Pool {
    /// A pool over `urls` (http or https; user and password inside become basic authentication), best first. Nothing
    /// is asked yet. `Malformed` when there is none, or one is not such a URL; the text names its place only.
    pub fn new(target: Target, urls: &[String], config: PoolConfig) -> PortResult<Self> {
        Self::build(target, urls, config, None)
    }

    /// As [`Pool::new`], with a bearer token on every request.
    pub fn with_bearer(
        target: Target,
        urls: &[String],
        config: PoolConfig,
        bearer: Arc<dyn TokenSource>,
    ) -> PortResult<Self> {
        Self::build(target, urls, config, Some(bearer))
    }

    fn build(
        target: Target,
        urls: &[String],
        config: PoolConfig,
        bearer: Option<Arc<dyn TokenSource>>,
    ) -> PortResult<Self> {
        let endpoints = urls
            .iter()
            .enumerate()
            .map(|(place, url)| Endpoint::new(target, place, url, &config, bearer.is_some()))
            .collect::<PortResult<Vec<_>>>()?;
        if endpoints.is_empty() {
            return Err(PortError::malformed(target, "no endpoint is configured"));
        }
        let (ids, genesis) = (AtomicU64::new(1), OnceLock::new());
        Ok(Self { inner: Arc::new(Inner { target, endpoints, config, bearer, ids, genesis }) })
    }

    /// Who the endpoints are.
    pub fn target(&self) -> Target {
        self.inner.target
    }

    /// How many endpoints there are.
    pub fn size(&self) -> usize {
        self.inner.endpoints.len()
    }

    /// The limits in force.
    pub fn config(&self) -> &PoolConfig {
        &self.inner.config
    }

    /// Host and port of endpoint `at`.
    pub fn name(&self, at: usize) -> &str {
        self.inner.endpoints.get(at).map_or("?", |endpoint| endpoint.name.as_str())
    }

    /// HTTP requests sent so far, over all endpoints.
    pub fn requests(&self) -> u64 {
        self.inner.endpoints.iter().map(|endpoint| endpoint.requests.load(Ordering::Relaxed)).sum()
    }

    /// Figures of every endpoint, in order.
    pub fn stats(&self) -> Vec<EndpointStats> {
        let now = Instant::now();
        let figures = |endpoint: &Endpoint| EndpointStats {
            name: endpoint.name.clone(),
            requests: endpoint.requests.load(Ordering::Relaxed),
            faults: endpoint.faults.load(Ordering::Relaxed),
            cooling: endpoint.health().until.is_some_and(|until| until > now),
        };
        self.inner.endpoints.iter().map(figures).collect()
    }

    /// Runs `op` on the best endpoint that is not set aside, on the next one when it fails, and once more after a
    /// pause when all failed for reasons that pass. All that `op` asks, it asks of the endpoint that it is given, so
    /// that what it reads belongs together.
    ///
    /// Of several failures the one that may pass is reported; `WrongNetwork` only if every endpoint belongs elsewhere.
    pub async fn run<T, F, Fut>(&self, op: F) -> PortResult<T>
    where
        F: Fn(usize) -> Fut,
        Fut: Future<Output = PortResult<T>>,
    {
        let op = &op;
        retry(self.inner.config.retry_for, || self.round(op)).await
    }

    /// One request, as [`Pool::run`].
    pub async fn call(&self, method: &'static str, params: Value) -> PortResult<Json> {
        let params = &params;
        self.run(|at| async move { self.call_on(at, Call::new(method, params.clone())).await }).await
    }

    /// Many requests, as [`Pool::run`]; the results stand in the order of `calls`, all from one endpoint. An error of
    /// a single call is that call's own result.
    pub async fn batch(&self, calls: &[Call]) -> PortResult<Vec<PortResult<Json>>> {
        self.run(|at| async move { self.batch_on(at, calls).await }).await
    }

    /// Sets endpoint `at` aside for an answer that was no transport fault but shows it unfit (behind its own network,
    /// wrong bytes). Where there is no other endpoint to ask, it stays.
    pub fn demote(&self, at: usize, error: &PortError) {
        if self.size() > 1 {
            self.fault(at, error);
        }
    }

    /// As [`Pool::demote`], but only while another endpoint is in good standing; whether one is.
    pub fn set_aside(&self, at: usize, error: &PortError) -> bool {
        let mut others = self.inner.endpoints.iter().enumerate().filter(|(other, _)| *other != at);
        let another = others.any(|(_, endpoint)| endpoint.health().until.is_none());
        if another {
            self.fault(at, error);
        }
        another
    }

    async fn round<T, F, Fut>(&self, op: &F) -> Result<T, Failed>
    where
        F: Fn(usize) -> Fut,
        Fut: Future<Output = PortResult<T>>,
    {
        let mut worst: Option<PortError> = None;
        for at in self.eligible(Instant::now()) {
            let error = match self.attempt(at, op).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            debug!(endpoint = self.name(at), %error, "endpoint failed");
            worst = Some(match worst {
                Some(earlier) if telling(&earlier) > telling(&error) => earlier,
                _ => error,
            });
        }
        let (wait, cooling) = self.earliest();
        let error = match worst {
            None => cooling,
            // Whoever is set aside and was not asked now may well be of the right network.
            Some(error) if error.kind == PortErrorKind::WrongNetwork => self.not_of_another_network().unwrap_or(error),
            Some(error) => error,
        };
        Err(Failed { error, wait })
    }

    /// The last fault of an endpoint that did not fail for its network.
    fn not_of_another_network(&self) -> Option<PortError> {
        let faults = self.inner.endpoints.iter().filter_map(|endpoint| endpoint.health().last.clone());
        faults.max_by_key(telling).filter(|error| error.kind != PortErrorKind::WrongNetwork)
    }

    async fn attempt<T, F, Fut>(&self, at: usize, op: &F) -> PortResult<T>
    where
        F: Fn(usize) -> Fut,
        Fut: Future<Output = PortResult<T>>,
    {
        let result = match self.ensure_checked(at).await {
            Ok(()) => op(at).await,
            Err(error) => Err(error),
        };
        match &result {
            Ok(_) => self.success(at),
            Err(error) if error.is_transient() => self.fault(at, error),
            Err(error) if is_unfit(&error.kind) => self.demote(at, error),
            Err(_) => self.answered(at),
        }
        result
    }

    /// The endpoints that may be asked now, in order: those in good standing; if there is none, those whose cool-down
    /// has passed; if there is none of these either, those that were left alone for `ask_again`. While others are in
    /// good standing, a passed cool-down is followed by a probe off the data path, so that a dead endpoint costs no call
    /// its connect timeout.
    fn eligible(&self, now: Instant) -> Vec<usize> {
        let (mut good, mut due, mut left_alone) = (Vec::new(), Vec::new(), Vec::new());
        for (at, endpoint) in self.inner.endpoints.iter().enumerate() {
            let health = endpoint.health();
            match health.until {
                None => good.push(at),
                Some(until) if until <= now => due.push(at),
                Some(_) if health.again.is_none_or(|again| again <= now) => left_alone.push(at),
                Some(_) => {}
            }
        }
        if good.is_empty() {
            return if due.is_empty() { left_alone } else { due };
        }
        for at in due {
            self.probe(at);
        }
        good
    }

    /// Time until one of the endpoints is asked again, and the error that stands for all of them being set aside: that
    /// of the one that is asked first, but for those of another network.
    fn earliest(&self) -> (Duration, PortError) {
        let now = Instant::now();
        let mut waits: Vec<(Duration, Option<PortError>)> = Vec::new();
        for endpoint in &self.inner.endpoints {
            let health = endpoint.health();
            let wait = health.again.map_or(Duration::ZERO, |again| again.saturating_duration_since(now));
            waits.push((wait, health.last.clone()));
        }
        waits.sort_by_key(|(wait, _)| *wait);
        let Some((wait, _)) = waits.first() else {
            return (Duration::ZERO, PortError::malformed(self.target(), "no endpoint is configured"));
        };
        let elsewhere =
            |error: &Option<PortError>| error.as_ref().is_some_and(|error| error.kind == PortErrorKind::WrongNetwork);
        let last = waits.iter().find(|(_, last)| !elsewhere(last)).or(waits.first()).and_then(|(_, last)| last.clone());
        let (kind, cause) = match last {
            Some(error) => (error.kind, error.detail),
            None => (PortErrorKind::Unreachable, String::from("unknown fault")),
        };
        let detail = format!("every endpoint is set aside, the first for {:.1} s more: {cause}", wait.as_secs_f64());
        (*wait, PortError::new(self.target(), kind, detail))
    }

    fn success(&self, at: usize) {
        if let Some(endpoint) = self.inner.endpoints.get(at) {
            let mut health = endpoint.health();
            let was_aside = health.until.is_some();
            health.strikes = 0;
            health.until = None;
            health.again = None;
            health.last = None;
            drop(health);
            if was_aside {
                info!(target: "morph_deriver::rpc", recovered = true, entity = %endpoint.name, "endpoint answers again");
            }
        }
    }

    /// It answered, if only with an error: alive. A cool-down that is still running stays.
    fn answered(&self, at: usize) {
        let cooling = |endpoint: &Endpoint| endpoint.health().until.is_some_and(|until| until > Instant::now());
        if !self.inner.endpoints.get(at).is_some_and(cooling) {
            self.success(at);
        }
    }

    fn fault(&self, at: usize, error: &PortError) {
        self.fault_at(at, error, Instant::now());
    }

    fn fault_at(&self, at: usize, error: &PortError, now: Instant) {
        let Some(endpoint) = self.inner.endpoints.get(at) else { return };
        let mut health = endpoint.health();
        health.checked = false;
        if health.again.is_some_and(|again| again > now) {
            return; // calls that were under way together count as one fault
        }
        let pause = self.cool_down(health.strikes, &error.kind);
        health.strikes = health.strikes.saturating_add(1);
        health.until = Some(now + pause);
        health.again = Some(now + self.left_alone(pause, &error.kind));
        health.last = Some(error.clone());
        drop(health);
        endpoint.faults.fetch_add(1, Ordering::Relaxed);
        warn!(target: "morph_deriver::rpc", code = error.code(), entity = %endpoint.name, seconds = pause.as_secs_f64(), "endpoint set aside");
    }

    /// How long a faulty endpoint is left alone if there is no other one to ask. What a server asked for by Retry-After
    /// is kept to.
    fn left_alone(&self, pause: Duration, kind: &PortErrorKind) -> Duration {
        match kind {
            PortErrorKind::RateLimited { retry_after: Some(_) } => pause,
            _ => pause.min(self.inner.config.ask_again),
        }
    }

    fn cool_down(&self, strikes: u32, kind: &PortErrorKind) -> Duration {
        let config = &self.inner.config;
        let first = config.cool_down.max(config.connect_timeout);
        let doubled = first.saturating_mul(1_u32.checked_shl(strikes.min(16)).unwrap_or(u32::MAX));
        let plain = doubled.min(config.cool_down_cap.max(first));
        let jittered = plain.mul_f64(rand::thread_rng().gen_range(1.0..1.2));
        match kind {
            PortErrorKind::RateLimited { retry_after: Some(asked) } => jittered.max((*asked).min(RETRY_AFTER_CAP)),
            _ => jittered,
        }
    }

    fn probe(&self, at: usize) {
        let Some(endpoint) = self.inner.endpoints.get(at) else { return };
        {
            let mut health = endpoint.health();
            if health.probing {
                return;
            }
            health.probing = true;
        }
        let pool = self.clone();
        tokio::spawn(async move {
            let result = pool.attempt(at, &|at| pool.greet(at)).await;
            debug!(endpoint = pool.name(at), ok = result.is_ok(), "endpoint probed");
            if let Some(endpoint) = pool.inner.endpoints.get(at) {
                endpoint.health().probing = false;
            }
        });
    }

    /// The cheapest question that shows an endpoint alive. The network check, where there is one, was asked before.
    async fn greet(&self, at: usize) -> PortResult<()> {
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
        match (self.inner.config.check, self.inner.genesis.get()) {
            (Check::None, Some(genesis)) => Check::BeaconGenesis(*genesis),
            (configured, _) => configured,
        }
    }

    /// Every endpoint must say this genesis time from now on, if no check is configured. The first value stays.
    pub fn learn_genesis(&self, genesis: u64) {
        let _ = self.inner.genesis.set(genesis);
    }

    /// What was learnt by [`Pool::learn_genesis`].
    pub fn learnt_genesis(&self) -> Option<u64> {
        self.inner.genesis.get().copied()
    }

    /// As [`Pool::genesis_on`], of every endpoint at once, in order. An endpoint that is set aside stands with its last
    /// fault; one that does not answer within the time for a connection is set aside.
    pub async fn genesis_of_all(&self) -> Vec<PortResult<Option<u64>>> {
        let may_be_asked = self.eligible(Instant::now());
        let ask = |at: usize| {
            let asked = may_be_asked.contains(&at);
            async move {
                if !asked && let Some(fault) = self.inner.endpoints.get(at).and_then(|one| one.health().last.clone()) {
                    return Err(fault);
                }
                let limit = self.inner.config.connect_timeout;
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

    /// Endpoint `at` has just said that it belongs to the right network.
    pub fn vouch_for(&self, at: usize) {
        if let Some(endpoint) = self.inner.endpoints.get(at) {
            endpoint.health().checked = true;
        }
    }

    async fn ensure_checked(&self, at: usize) -> PortResult<()> {
        let Some(endpoint) = self.inner.endpoints.get(at) else {
            return Err(PortError::malformed(self.target(), "no such endpoint"));
        };
        if endpoint.health().checked {
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
            let detail = format!("{}: {name} is {said}, configured is {expected}", endpoint.name);
            return Err(PortError::new(self.target(), PortErrorKind::WrongNetwork, detail));
        }
        endpoint.health().checked = true;
        Ok(())
    }

    /// The beacon chain's genesis time as endpoint `at` says it; none where it does not say (a bare blob archive).
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

    /// `GET path?query` below endpoint `at`'s own path. Any HTTP status is an answer here; see
    /// [`Pool::status_error`]. `RangeTooWide` when the body is longer than `max_body`.
    pub async fn get_on(
        &self,
        at: usize,
        path: &str,
        query: &[(&str, String)],
        max_body: usize,
    ) -> PortResult<HttpReply> {
        let endpoint = self.endpoint(at)?;
        let mut url = endpoint.url.clone();
        url.set_path(&format!("{}{path}", endpoint.url.path().trim_end_matches('/')));
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let request = endpoint.client.get(url).header("accept", "application/json");
        self.exchange(endpoint, path, request, max_body).await
    }

    /// How long one call may take.
    pub fn call_timeout(&self) -> Duration {
        self.inner.config.call_timeout
    }

    /// One request to endpoint `at`, once.
    pub async fn call_on(&self, at: usize, call: Call) -> PortResult<Json> {
        let calls = [call];
        match self.post_on(at, &calls).await? {
            Posted::Replies(replies) => replies
                .into_iter()
                .next()
                .unwrap_or_else(|| Err(PortError::malformed(self.target(), format!("{}: no reply", self.name(at))))),
            Posted::TooLarge(error) => Err(error),
        }
    }

    /// Requests to endpoint `at` in as few HTTP exchanges as it allows, one after another. A batch that is refused
    /// for its size is halved, and the endpoint's limit remembered; a reply that is refused for the size of the whole
    /// answer is asked for again in a smaller batch.
    ///
    /// All results together are held until the last one is there: where they are longer than one answer may be,
    /// `RangeTooWide`. Who asks for much at a time asks for less then (P7).
    pub async fn batch_on(&self, at: usize, calls: &[Call]) -> PortResult<Vec<PortResult<Json>>> {
        let mut results: Vec<Option<PortResult<Json>>> = Vec::new();
        results.resize_with(calls.len(), || None);
        let mut open: Vec<usize> = (0..calls.len()).rev().collect();
        let mut width = self.batch_limit(at);
        let mut held = 0_usize;
        while !open.is_empty() {
            let take = width.min(open.len());
            let places = open.split_off(open.len().saturating_sub(take));
            let asked: Vec<Call> = places.iter().rev().filter_map(|place| calls.get(*place).cloned()).collect();
            let replies = match self.post_on(at, &asked).await {
                Ok(Posted::Replies(replies)) => replies,
                Ok(Posted::TooLarge(_)) => {
                    open.extend(places);
                    width = self.learn_batch_limit(at, take);
                    continue;
                }
                Err(error) if error.kind == PortErrorKind::RangeTooWide && take > 1 => {
                    open.extend(places);
                    width = take / 2; // the answer was too long for us: nothing learnt about the server
                    continue;
                }
                Err(error) => return Err(error),
            };
            for (place, reply) in places.into_iter().rev().zip(replies) {
                held = held.saturating_add(reply.as_ref().map_or(0, |json| json.text.len()));
                let again = take > 1 && matches!(&reply, Err(error) if is_response_too_large(error));
                if again {
                    open.push(place);
                    width = (take / 2).max(1);
                } else if let Some(result) = results.get_mut(place) {
                    *result = Some(reply);
                }
            }
            open.sort_unstable_by(|a, b| b.cmp(a));
            if held > self.inner.config.max_body {
                let what = calls.first().map_or("", |call| call.method.as_ref());
                let detail = format!("{}: {what}: {held} bytes of answers to {} requests", self.name(at), calls.len());
                return Err(PortError::new(self.target(), PortErrorKind::RangeTooWide, detail));
            }
        }
        let missing = || Err(PortError::malformed(self.target(), format!("{}: no reply", self.name(at))));
        Ok(results.into_iter().map(|result| result.unwrap_or_else(missing)).collect())
    }

    /// The most requests that endpoint `at` is sent in one batch.
    pub fn batch_limit(&self, at: usize) -> usize {
        let learnt = self.inner.endpoints.get(at).map_or(1, |endpoint| endpoint.batch_limit().get());
        learnt.min(self.inner.config.max_batch).clamp(1, REPLIES_MAX)
    }

    /// Remembers that endpoint `at` refused a batch of `refused`; gives the new limit. It grows back with the batches
    /// that are taken: one odd answer is no lasting limit.
    pub fn learn_batch_limit(&self, at: usize, refused: usize) -> usize {
        if let Some(endpoint) = self.inner.endpoints.get(at) {
            endpoint.batch_limit().refused(refused);
        }
        (refused / 2).max(1)
    }

    /// Exactly one HTTP exchange with `calls`: a plain request for one, a batch for more. Replies are matched by id.
    pub async fn post_on(&self, at: usize, calls: &[Call]) -> PortResult<Posted> {
        #[derive(Serialize)]
        struct Request<'a> {
            jsonrpc: &'static str,
            id: u64,
            method: &'a str,
            params: &'a Value,
        }
        let endpoint = self.endpoint(at)?;
        let what = calls.first().map_or("", |call| call.method.as_ref());
        let count = u64::try_from(calls.len()).unwrap_or(u64::MAX);
        let first = self.inner.ids.fetch_add(count, Ordering::Relaxed);
        let requests: Vec<Request<'_>> = calls
            .iter()
            .zip(first..)
            .map(|(call, id)| Request { jsonrpc: "2.0", id, method: &call.method, params: &call.params })
            .collect();
        let body = match requests.as_slice() {
            [] => return Ok(Posted::Replies(Vec::new())),
            [one] => serde_json::to_vec(one),
            many => serde_json::to_vec(many),
        }
        .map_err(|error| PortError::malformed(self.target(), error.to_string()))?;
        let request = endpoint.client.post(endpoint.url.clone()).header("content-type", "application/json").body(body);
        let reply = self.exchange(endpoint, what, request, self.inner.config.max_body).await?;
        let posted = self.read_replies(at, calls, first, &reply)?;
        if matches!(posted, Posted::Replies(_)) {
            endpoint.batch_limit().answered(calls.len());
        }
        Ok(posted)
    }

    fn read_replies(&self, at: usize, calls: &[Call], first: u64, reply: &HttpReply) -> PortResult<Posted> {
        let what = calls.first().map_or("", |call| call.method.as_ref());
        let ok = (200..300).contains(&reply.status);
        if !ok && matches!(reply.status, 401 | 403 | 429) {
            return Err(self.status_error(at, what, reply));
        }
        let Some(replies) = parse_replies(&reply.body) else {
            if reply.status == 413 && calls.len() > 1 {
                return Ok(Posted::TooLarge(self.status_error(at, what, reply)));
            }
            if !ok {
                return Err(self.status_error(at, what, reply));
            }
            let start = String::from_utf8_lossy(reply.body.get(..SHOWN.min(reply.body.len())).unwrap_or_default());
            let detail = format!("{}: {what}: not a JSON-RPC reply: {}", self.name(at), self.show(at, &start));
            return Err(PortError::malformed(self.target(), detail));
        };
        // One error for all: an object where an array is due, or an array of one.
        if calls.len() > 1
            && let [only] = replies.as_slice()
            && let Some(error) = &only.error
        {
            let failure = self.rpc_error(at, what, error);
            let for_the_batch = error.code == -32600 || error.code == -32700 || speaks_of_batches(&error.message);
            return if for_the_batch { Ok(Posted::TooLarge(failure)) } else { Err(failure) };
        }
        if !ok && replies.iter().all(|reply| reply.error.is_none()) {
            return Err(self.status_error(at, what, reply));
        }
        // A slice keeps the whole body: not where most of it is no result.
        let used: usize = replies.iter().filter_map(|reply| reply.result).map(|result| result.get().len()).sum();
        let slices = used >= reply.body.len() / 2;
        let mut results: Vec<Option<PortResult<Json>>> = Vec::new();
        results.resize_with(calls.len(), || None);
        for one in &replies {
            let id = one.id();
            // A single reply may carry the id null: a server that could not read the request.
            let place = match id {
                Some(id) => id.checked_sub(first).and_then(|place| usize::try_from(place).ok()),
                None if calls.len() == 1 && one.error.is_some() => Some(0),
                None => None,
            };
            let Some(place) = place else { continue };
            let (Some(slot @ None), Some(call)) = (results.get_mut(place), calls.get(place)) else { continue };
            *slot = Some(self.one_result(at, call, one, slices.then_some(&reply.body)));
        }
        let unanswered = |(result, call): (Option<PortResult<Json>>, &Call)| {
            result.unwrap_or_else(|| {
                let detail = format!("{}: {}: no reply with its id", self.name(at), call.method);
                Err(PortError::malformed(self.target(), detail))
            })
        };
        Ok(Posted::Replies(results.into_iter().zip(calls).map(unanswered).collect()))
    }

    fn one_result(&self, at: usize, call: &Call, reply: &Reply<'_>, body: Option<&Bytes>) -> PortResult<Json> {
        if let Some(error) = &reply.error {
            return Err(self.rpc_error(at, &call.method, error));
        }
        let Some(result) = reply.result else {
            let detail = format!("{}: {}: neither result nor error", self.name(at), call.method);
            return Err(PortError::malformed(self.target(), detail));
        };
        let what = Cow::Owned(format!("{}: {}", self.name(at), call.method));
        let text = result.get().as_bytes();
        let text = body.map_or_else(|| Bytes::copy_from_slice(text), |body| body.slice_ref(text));
        Ok(Json { text, target: self.target(), what })
    }

    fn rpc_error(&self, at: usize, what: &str, error: &RpcError<'_>) -> PortError {
        let shown = self.show(at, &error.message);
        let kind = match classify(self.target(), error.code, &error.message) {
            Some(kind) => kind,
            None => PortErrorKind::Refused { code: error.code, message: self.words(at, &error.message) },
        };
        PortError::new(self.target(), kind, format!("{}: {what}: {shown} ({})", self.name(at), error.code))
    }

    /// The error for an HTTP status that is no success.
    pub fn status_error(&self, at: usize, what: &str, reply: &HttpReply) -> PortError {
        let text = String::from_utf8_lossy(reply.body.get(..ERROR_PAGE.min(reply.body.len())).unwrap_or_default());
        let kind = match reply.status {
            401 => PortErrorKind::Unauthorized,
            403 if speaks_of_pruning(&text.to_ascii_lowercase()) => PortErrorKind::Pruned,
            403 => PortErrorKind::Unauthorized,
            404 if self.target() == Target::Beacon => PortErrorKind::NotFound,
            404 | 405 | 410 | 501 => PortErrorKind::Unsupported,
            413 => PortErrorKind::RangeTooWide,
            400 | 422 | 500 if speaks_of_ranges(&text.to_ascii_lowercase()) => PortErrorKind::RangeTooWide,
            408 => PortErrorKind::Timeout,
            429 => PortErrorKind::RateLimited { retry_after: reply.retry_after },
            500..=599 => PortErrorKind::Unreachable,
            300..=399 => PortErrorKind::Malformed,
            code => PortErrorKind::Refused { code: i64::from(code), message: self.words(at, &text) },
        };
        let hint = if (300..400).contains(&reply.status) { " (redirects are not followed)" } else { "" };
        let shown = self.show(at, &text);
        let detail = format!("{}: {what}: HTTP {}{hint} {shown}", self.name(at), reply.status);
        PortError::new(self.target(), kind, detail.trim_end())
    }

    /// A server's text, made fit to be shown: secrets struck out, one line, short.
    pub fn show(&self, at: usize, text: &str) -> String {
        scrub(text, self.secrets(at))
    }

    /// A server's text, made fit to be judged: as [`Self::show`], but long enough for what stands at its end.
    fn words(&self, at: usize, text: &str) -> String {
        redact::scrub_to(text, self.secrets(at), redact::WORDS)
    }

    fn secrets(&self, at: usize) -> &[String] {
        self.inner.endpoints.get(at).map(|endpoint| endpoint.secrets.as_slice()).unwrap_or_default()
    }

    fn endpoint(&self, at: usize) -> PortResult<&Endpoint> {
        self.inner.endpoints.get(at).ok_or_else(|| PortError::malformed(self.target(), "no such endpoint"))
    }

    async fn exchange(
        &self,
        endpoint: &Endpoint,
        what: &str,
        request: reqwest::RequestBuilder,
        max_body: usize,
    ) -> PortResult<HttpReply> {
        let request = match &self.inner.bearer {
            Some(bearer) => request.bearer_auth(bearer.token()?.expose_secret()),
            None => request,
        };
        endpoint.requests.fetch_add(1, Ordering::Relaxed);
        let transport = |error: reqwest::Error| self.transport_error(endpoint, what, error);
        let mut response = request.timeout(self.inner.config.call_timeout).send().await.map_err(transport)?;
        let status = response.status().as_u16();
        let retry_after = response
            .headers()
            .get(reqwest::header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let success = response.status().is_success();
        let limit = if success { max_body } else { max_body.min(ERROR_PAGE) };
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(transport)? {
            let room = limit.saturating_sub(body.len());
            if chunk.len() <= room {
                body.extend_from_slice(&chunk);
                continue;
            }
            if !success {
                body.extend_from_slice(chunk.get(..room).unwrap_or_default());
                break;
            }
            let detail = format!("{}: {what}: answer longer than {limit} bytes", endpoint.name);
            return Err(PortError::new(self.target(), PortErrorKind::RangeTooWide, detail));
        }
        Ok(HttpReply { status, retry_after, body: body.freeze() })
    }

    fn transport_error(&self, endpoint: &Endpoint, what: &str, error: reqwest::Error) -> PortError {
        // `scrub` strikes a URL out all the same; without it there is more room for the cause.
        let error = error.without_url();
        let kind = match () {
            () if error.is_timeout() => PortErrorKind::Timeout,
            () if error.is_decode() && !is_cut_off(&error) => PortErrorKind::Malformed,
            () => PortErrorKind::Unreachable,
        };
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        let shown = scrub(&text, &endpoint.secrets);
        PortError::new(self.target(), kind, format!("{}: {what}: {shown}", endpoint.name))
    }
}

/// Whether the body ended early, and not in bytes that cannot be unpacked: both are called decoding errors.
fn is_cut_off(error: &reqwest::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if cause.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_body) {
            return true;
        }
        source = cause.source();
    }
    error.is_body()
}

/// What one HTTP exchange of several requests gave.
#[derive(Debug)]
pub enum Posted {
    /// A result for each request, in order.
    Replies(Vec<PortResult<Json>>),
    /// The server refused the batch as a whole, and executed nothing: ask in smaller ones.
    TooLarge(PortError),
}

impl Endpoint {
    fn new(target: Target, place: usize, text: &str, config: &PoolConfig, signed: bool) -> PortResult<Self> {
        let nth = place.saturating_add(1);
        let bad = |why: &str| PortError::malformed(target, format!("URL {nth} of the list {why}"));
        let url = Url::parse(text.trim()).map_err(|_| bad("is not a URL"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(bad("is neither http nor https"));
        }
        let Some(host) = url.host_str() else { return Err(bad("names no host")) };
        let name = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        let mut client = reqwest::Client::builder()
            .connect_timeout(config.connect_timeout)
            .timeout(config.call_timeout)
            .redirect(reqwest::redirect::Policy::none())
            .pool_idle_timeout(Duration::from_secs(30))
            .tcp_nodelay(true)
            .user_agent(concat!("morph-deriver/", env!("CARGO_PKG_VERSION")));
        // A proxy of the environment (HTTP_PROXY) reads what is sent over plain HTTP: it must never see a bearer token,
        // nor carry the commands to the services beside us. L1 and beacon nodes may well lie behind one.
        if signed || matches!(target, Target::Engine | Target::Reactors) || is_loopback(&url) {
            client = client.no_proxy();
        }
        let client = client.build().map_err(|_| bad("gives no HTTP client"))?;
        Ok(Self {
            secrets: redact::secrets_of(&url),
            url,
            name,
            client,
            health: Mutex::default(),
            requests: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            batch_limit: Mutex::new(Width::unlimited()),
        })
    }

    fn batch_limit(&self) -> MutexGuard<'_, Width> {
        self.batch_limit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

#[derive(Deserialize)]
struct Reply<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<RpcError<'a>>,
}

#[derive(Deserialize)]
struct RpcError<'a> {
    #[serde(default)]
    code: i64,
    #[serde(borrow, default)]
    message: Cow<'a, str>,
}

impl Reply<'_> {
    fn id(&self) -> Option<u64> {
        self.id?.get().trim_matches('"').parse().ok()
    }
}

/// A `result` that is there, `null` included.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

fn parse_replies(body: &Bytes) -> Option<Vec<Reply<'_>>> {
    let start = body.iter().find(|byte| !byte.is_ascii_whitespace())?;
    if *start == b'[' {
        return serde_json::from_slice::<wire::Bounded<Reply<'_>, REPLIES_MAX>>(body).ok().map(|replies| replies.0);
    }
    let one: Reply<'_> = serde_json::from_slice(body).ok()?;
    (one.result.is_some() || one.error.is_some()).then(|| vec![one])
}

/// Which of several endpoints' errors is reported: one that may pass before one that does not, both before "has no such
/// method", and all before "belongs to another network".
fn telling(error: &PortError) -> u8 {
    match error.kind {
        _ if error.is_transient() => 3,
        PortErrorKind::WrongNetwork => 0,
        PortErrorKind::Unsupported => 1,
        _ => 2,
    }
}

/// An answer that shows its endpoint unfit: another one is asked instead for a while, where there is one.
const fn is_unfit(kind: &PortErrorKind) -> bool {
    matches!(kind, PortErrorKind::Malformed | PortErrorKind::Unauthorized | PortErrorKind::WrongNetwork)
}

struct Failed {
    error: PortError,
    /// Time to the end of the earliest cool-down.
    wait: Duration,
}

/// The one place where a call is repeated: transport faults only, at most [`ROUNDS`] times and `retry_for` long, with
/// a jittered pause that reaches at least to the end of the earliest cool-down.
async fn retry<T, F, Fut>(retry_for: Duration, mut round: F) -> PortResult<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Failed>>,
{
    let started = Instant::now();
    let mut pauses = ExponentialBackoff {
        initial_interval: Duration::from_millis(200),
        max_interval: Duration::from_secs(2),
        max_elapsed_time: None,
        ..ExponentialBackoff::default()
    };
    pauses.reset();
    let mut rounds = 1_u32;
    loop {
        let Failed { error, wait } = match round().await {
            Ok(value) => return Ok(value),
            Err(failed) => failed,
        };
        let pause = pauses.next_backoff().unwrap_or(retry_for).max(wait);
        let spent = rounds >= ROUNDS || started.elapsed().saturating_add(pause) > retry_for;
        if spent || !error.is_transient() {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        rounds = rounds.saturating_add(1);
    }
}

/// What a JSON-RPC error is called; none for a refusal. Texts come before codes: servers agree on neither, but on the texts
/// more often.
/// The engine's errors are kept as they are (except for an unknown method): each means a block that was not taken.
fn classify(target: Target, code: i64, message: &str) -> Option<PortErrorKind> {
    let text = message.to_ascii_lowercase();
    let says = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    if code == -32601 || says(&["method not found", "unsupported method", "does not exist/is not available"]) {
        return Some(PortErrorKind::Unsupported);
    }
    if target == Target::Engine {
        return None;
    }
    if says(&["rate limit", "ratelimit", "too many requests", "request count exceeded", "quota", "compute units"])
        || matches!(code, 429 | -32029 | -32016)
    {
        return Some(PortErrorKind::RateLimited { retry_after: None });
    }
    if speaks_of_ranges(&text) {
        return Some(PortErrorKind::RangeTooWide);
    }
    if speaks_of_pruning(&text) {
        return Some(PortErrorKind::Pruned);
    }
    if says(&[" plan", " tier", "not whitelisted", "not allowed"]) {
        return Some(PortErrorKind::Unsupported); // by contract: "not available on the free plan"
    }
    if says(&["not found", "unknown block", "not available", "header for hash"]) || code == -39001 {
        return Some(PortErrorKind::NotFound);
    }
    None
}

fn speaks_of_ranges(text: &str) -> bool {
    const TEXTS: [&str; 21] = [
        "max range",
        "maximum range",
        "limit the query",
        "block range",
        "blocks range",
        "range is too",
        "range too",
        "range limit",
        "range exceeds",
        "exceed maximum block",
        "exceeds the range",
        "query returned more than",
        "more than 10000",
        "max results",
        "logs matched by query exceeds",
        "limited to a",
        "is limited to",
        "query timeout exceeded",
        "response size",
        "response too large",
        "too wide",
    ];
    TEXTS.iter().any(|part| text.contains(part))
}

fn speaks_of_pruning(text: &str) -> bool {
    const TEXTS: [&str; 10] = [
        "missing trie node",
        "pruned",
        "historical state",
        "state not available",
        "state is not available",
        "state unavailable",
        "archive",
        "proof window",
        "history is not available",
        "state already discarded",
    ];
    TEXTS.iter().any(|part| text.contains(part))
}

fn speaks_of_batches(message: &str) -> bool {
    message.to_ascii_lowercase().contains("batch")
}

fn is_response_too_large(error: &PortError) -> bool {
    error.kind == PortErrorKind::RangeTooWide && error.detail.contains("response too large")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::adapters::testing::{self, black_hole, config, dead, http, pool, reply, rpc};

    fn calls(n: u64) -> Vec<Call> {
        (0..n).map(|i| Call::new("echo", json!([i]))).collect()
    }

    #[test]
    fn j6_errors_are_classified_by_text_then_code() {
        let table = [
            (-32601, "the method debug_getRawBlock does not exist/is not available", PortErrorKind::Unsupported),
            (-32005, "query returned more than 10000 results", PortErrorKind::RangeTooWide),
            (-32602, "exceed maximum block range: 5000", PortErrorKind::RangeTooWide),
            (-32600, "eth_getLogs requests with up to a 500 block range", PortErrorKind::RangeTooWide),
            (
                -32005,
                "daily request count exceeded, request rate limited",
                PortErrorKind::RateLimited { retry_after: None },
            ),
            (429, "compute units per second capacity", PortErrorKind::RateLimited { retry_after: None }),
            (-32000, "missing trie node 00 (path ) state 0x00 is not available", PortErrorKind::Pruned),
            (4444, "pruned history unavailable", PortErrorKind::Pruned),
            (-32000, "safe block not available", PortErrorKind::NotFound),
            (-32600, "debug_traceTransaction is not available on the free plan", PortErrorKind::Unsupported),
            (-32600, "on your plan, eth_getLogs is limited to a 10 block range", PortErrorKind::RangeTooWide),
            (-32000, "archive data needs a paid plan", PortErrorKind::Pruned),
            (-32005, "rate limit reached, upgrade your plan", PortErrorKind::RateLimited { retry_after: None }),
            (-32000, "header not found", PortErrorKind::NotFound),
            (-39001, "Unknown block", PortErrorKind::NotFound),
        ];
        for (code, message, expected) in table {
            assert_eq!(classify(Target::L1, code, message), Some(expected), "{message}");
        }
        for (target, code, message) in [
            (Target::L1, -32602, "invalid argument 0"),
            (Target::L1, 3, "execution reverted"),
            (Target::Engine, -32000, "parent block not found: 0x22"),
        ] {
            assert_eq!(classify(target, code, message), None, "{message}");
        }
    }

    #[tokio::test]
    async fn k4_no_error_names_more_than_the_host() {
        let echo = http(|hit| async move { (500, vec![], format!("no such key: {}", hit.path)) }).await;
        let host = echo.url.trim_start_matches("http://").to_owned();
        let dead = dead().await;
        let dead_host = dead.trim_start_matches("http://").to_owned();
        for (host, url) in [
            (&host, format!("http://u5er:canary-pw@{host}/canary-path?key=canary-query")),
            (&dead_host, format!("http://u5er:canary-pw@{dead_host}/canary-path?key=canary-query")),
        ] {
            let pool = pool(Target::L1, &[&url]);
            let error = pool.call("eth_chainId", json!([])).await.unwrap_err();
            let text = format!("{error} {error:?} {pool:?} {:?}", pool.stats());
            assert!(!text.contains("canary") && !text.contains("u5er"), "{text}");
            assert!(error.detail.contains(host.as_str()), "{text}");
            assert_eq!(error.kind, PortErrorKind::Unreachable);
        }
        assert!(echo.hits()[0].authorization.as_deref().unwrap().starts_with("Basic "));
        let bad = Pool::new(Target::L1, &[String::from("not a url canary")], config()).unwrap_err();
        assert!(!bad.to_string().contains("canary"));
    }

    #[tokio::test]
    async fn j6_valid_http_of_the_wrong_class_is_an_error_each() {
        let table: [(u16, &str, PortErrorKind); 13] = [
            (200, "<html>login</html>", PortErrorKind::Malformed),
            (200, "null", PortErrorKind::Malformed),
            (200, "{}", PortErrorKind::Malformed),
            (200, "", PortErrorKind::Malformed),
            (200, r#"{"jsonrpc":"2.0","id":999999,"result":"0x1"}"#, PortErrorKind::Malformed),
            (
                200,
                r#"{"id":null,"error":{"code":-32000,"message":"odd"}}"#,
                PortErrorKind::Refused { code: -32000, message: "odd".to_owned() },
            ),
            (302, "moved", PortErrorKind::Malformed),
            (401, "missing token", PortErrorKind::Unauthorized),
            (403, "requires an archive plan", PortErrorKind::Pruned),
            (404, "404 page not found", PortErrorKind::Unsupported),
            (400, r#"{"id":1,"error":{"code":-32005,"message":"block range too wide"}}"#, PortErrorKind::RangeTooWide),
            (400, "eth_getLogs is limited to a 1,000 block range", PortErrorKind::RangeTooWide),
            (503, "busy", PortErrorKind::Unreachable),
        ];
        for (status, body, expected) in table {
            let server = http(move |_| async move { (status, vec![], body.to_owned()) }).await;
            let error = pool(Target::L1, &[&server.url]).call("eth_chainId", json!([])).await.unwrap_err();
            assert_eq!(error.kind, expected, "{status} {body}: {error}");
        }
        let server = rpc(|_, _| Ok(Value::Null)).await;
        assert!(pool(Target::L1, &[&server.url]).call("x", json!([])).await.unwrap().is_null());
    }

    #[tokio::test]
    async fn j9_replies_are_matched_by_id_and_a_missing_one_is_its_own_error() {
        let server = http(|hit| async move {
            let mut replies: Vec<Value> =
                hit.calls().iter().map(|call| reply(call, Ok(call["params"][0].clone()))).collect();
            replies.remove(1);
            replies.reverse();
            (200, vec![], Value::Array(replies).to_string())
        })
        .await;
        let results = pool(Target::L1, &[&server.url]).batch(&calls(4)).await.unwrap();
        let values: Vec<Option<u64>> =
            results.iter().map(|result| result.as_ref().ok().and_then(|json| json.parse().ok())).collect();
        assert_eq!(values, [Some(0), None, Some(2), Some(3)]);
        assert_eq!(results[1].as_ref().unwrap_err().kind, PortErrorKind::Malformed);
    }

    #[tokio::test]
    async fn j9_a_batch_above_the_servers_limit_is_split_and_the_limit_remembered() {
        let server = http(|hit| async move {
            let calls = hit.calls();
            if calls.len() > 1000 {
                let error =
                    json!([{"jsonrpc": "2.0", "id": 1, "error": {"code": -32600, "message": "batch too large"}}]);
                return (200, vec![], error.to_string());
            }
            let replies: Vec<Value> = calls.iter().map(|call| reply(call, Ok(call["params"][0].clone()))).collect();
            (200, vec![], Value::Array(replies).to_string())
        })
        .await;
        let urls = [server.url.clone()];
        let pool = Pool::new(Target::L2, &urls, PoolConfig { max_batch: 5000, ..config() }).unwrap();
        for _ in 0..2 {
            let results = pool.batch(&calls(1500)).await.unwrap();
            let values: Vec<u64> = results.into_iter().map(|result| result.unwrap().parse().unwrap()).collect();
            assert_eq!(values, (0..1500).collect::<Vec<u64>>());
        }
        let sizes: Vec<usize> = server.hits().iter().map(|hit| hit.calls().len()).collect();
        assert_eq!(sizes, [1500, 750, 750, 750, 750], "refused once, then the remembered limit");
    }

    #[tokio::test]
    async fn j9_a_server_without_batches_is_asked_one_by_one() {
        let server = http(|hit| async move {
            let body = match &hit.body {
                Value::Array(_) => json!({"id": null, "error": {"code": -32600, "message": "invalid request"}}),
                call => reply(call, Ok(call["params"][0].clone())),
            };
            (200, vec![], body.to_string())
        })
        .await;
        let results = pool(Target::L2, &[&server.url]).batch(&calls(5)).await.unwrap();
        assert!(results.iter().all(Result::is_ok));
    }

    #[tokio::test]
    async fn j9_replies_refused_for_the_whole_answers_size_are_asked_again() {
        let server = http(|hit| async move {
            let calls = hit.calls();
            let one = |(i, call): (usize, &Value)| match i {
                0..3 => reply(call, Ok(call["params"][0].clone())),
                _ => reply(call, Err((-32003, "response too large"))),
            };
            (200, vec![], Value::Array(calls.iter().enumerate().map(one).collect()).to_string())
        })
        .await;
        let server_one = pool(Target::L2, &[&server.url]);
        // A plain request is not an array; the server's array of one is accepted all the same.
        let results = server_one.batch(&calls(8)).await.unwrap();
        let values: Vec<u64> = results.into_iter().map(|result| result.unwrap().parse().unwrap()).collect();
        assert_eq!(values, (0..8).collect::<Vec<u64>>());
    }

    #[tokio::test]
    async fn a4_a_black_hole_costs_one_deadline_then_the_next_endpoint_answers() {
        let good = rpc(|_, _| Ok(json!("0x7"))).await;
        let pool = pool(Target::L1, &[&black_hole().await, &good.url]);
        let started = std::time::Instant::now();
        assert_eq!(pool.call("eth_chainId", json!([])).await.unwrap().quantity().unwrap(), 7);
        assert!(started.elapsed() < Duration::from_secs(4));
        let again = std::time::Instant::now();
        pool.call("eth_chainId", json!([])).await.unwrap();
        assert!(again.elapsed() < Duration::from_secs(1), "the black hole is set aside");
        assert_eq!(pool.stats()[0].requests, 1);
    }

    #[tokio::test]
    async fn a4_a_black_hole_alone_is_a_timeout_within_the_deadline() {
        let pool = pool(Target::L1, &[&black_hole().await]);
        let started = std::time::Instant::now();
        let error = pool.call("eth_chainId", json!([])).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Timeout);
        assert!(started.elapsed() < Duration::from_secs(4));
    }

    #[tokio::test]
    async fn j1_j3_a_dead_endpoint_is_dialled_once_a_cool_down_and_nothing_spins() {
        let pool = pool(Target::L1, &[&dead().await]);
        let started = std::time::Instant::now();
        let mut asked = 0_u32;
        while started.elapsed() < Duration::from_millis(1000) {
            pool.call("eth_chainId", json!([])).await.unwrap_err();
            asked += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let dialled = pool.requests();
        assert!(asked > 50, "{asked}");
        assert!((2..=3).contains(&dialled), "at 0, at 300 to 360 ms, not before 600 ms later: {dialled}");
    }

    #[tokio::test]
    async fn j1_endpoints_that_are_all_stale_are_each_asked_once_a_cool_down() {
        let first = rpc(|_, _| Ok(json!("0x1"))).await;
        let second = rpc(|_, _| Ok(json!("0x1"))).await;
        let pool = pool(Target::L1, &[&first.url, &second.url]);
        let ask = |at: usize| {
            let pool = pool.clone();
            async move {
                pool.call_on(at, Call::new("eth_blockNumber", json!([]))).await?;
                let stale = PortError::new(Target::L1, PortErrorKind::NotFound, "behind");
                pool.demote(at, &stale);
                Err::<(), _>(stale)
            }
        };
        for _ in 0..50 {
            let error = pool.run(&ask).await.unwrap_err();
            assert_eq!(error.kind, PortErrorKind::NotFound);
        }
        assert_eq!((first.hits().len(), second.hits().len()), (1, 1));
    }

    #[tokio::test]
    async fn j3_cool_down_is_at_least_the_connect_timeout_grows_and_is_capped() {
        let urls = [String::from("http://127.0.0.1:1")];
        let settings = PoolConfig {
            connect_timeout: Duration::from_secs(5),
            cool_down: Duration::from_secs(1),
            cool_down_cap: Duration::from_secs(15),
            ..config()
        };
        let pool = Pool::new(Target::L1, &urls, settings).unwrap();
        let within = |pause: Duration, from: u64, to: u64| {
            assert!(pause >= Duration::from_secs(from) && pause <= Duration::from_secs(to), "{pause:?}");
        };
        within(pool.cool_down(0, &PortErrorKind::Timeout), 5, 6);
        within(pool.cool_down(1, &PortErrorKind::Timeout), 10, 12);
        within(pool.cool_down(40, &PortErrorKind::Timeout), 15, 18);
        let asked = PortErrorKind::RateLimited { retry_after: Some(Duration::from_secs(60)) };
        within(pool.cool_down(0, &asked), 60, 60);
        let absurd = PortErrorKind::RateLimited { retry_after: Some(Duration::from_secs(1 << 40)) };
        within(pool.cool_down(0, &absurd), 300, 300);
    }

    #[tokio::test]
    async fn m29_the_only_endpoint_is_asked_again_within_a_poll_interval_however_often_it_failed() {
        let urls = [String::from("http://127.0.0.1:1")];
        let pool = Pool::new(Target::L2, &urls, PoolConfig::default()).unwrap();
        let ask_again = PoolConfig::default().ask_again;
        let error = PortError::new(Target::L2, PortErrorKind::Unreachable, "restarting");
        let mut now = Instant::now();
        for _ in 0..20 {
            assert_eq!(pool.eligible(now), [0]);
            pool.fault_at(0, &error, now);
            for part in 0..10 {
                assert_eq!(pool.eligible(now + ask_again * part / 10), [0; 0], "nothing spins");
            }
            now += ask_again;
        }
        // The pauses between two polls: doubled up to the interval. Whenever the node returns, it is asked in time.
        let interval = Duration::from_secs(15);
        let (mut pause, mut asked) = (Duration::from_secs(1), now);
        for _ in 0..20 {
            if !pool.eligible(now).is_empty() {
                assert!(now - asked <= interval, "{:?}", now - asked);
                asked = now;
                pool.fault_at(0, &error, now);
            }
            now += pause;
            pause = (pause * 2).min(interval);
        }
        let asked_to_wait = PortErrorKind::RateLimited { retry_after: Some(Duration::from_secs(60)) };
        now += Duration::from_secs(600);
        pool.fault_at(0, &PortError::new(Target::L2, asked_to_wait, ""), now);
        assert!(pool.eligible(now + Duration::from_secs(59)).is_empty(), "a server's own word is kept to");
        assert_eq!(pool.eligible(now + Duration::from_secs(60)), [0]);
    }

    #[tokio::test]
    async fn m29_a_cool_down_chooses_among_several_and_the_last_one_left_is_asked_sooner() {
        let urls = [String::from("http://127.0.0.1:1"), String::from("http://127.0.0.1:2")];
        let pool = Pool::new(Target::L1, &urls, PoolConfig::default()).unwrap();
        let PoolConfig { ask_again, cool_down_cap, .. } = PoolConfig::default();
        let error = PortError::new(Target::L1, PortErrorKind::Timeout, "");
        let mut now = Instant::now();
        for _ in 0..5 {
            pool.fault_at(0, &error, now);
            now += ask_again;
        }
        pool.fault_at(0, &error, now);
        assert_eq!(pool.eligible(now + ask_again), [1], "another one is there: the faulty one rests");
        pool.fault_at(1, &error, now + ask_again);
        assert_eq!(pool.eligible(now + ask_again), [0], "none is left: the one that rested longest");
        assert_eq!(pool.earliest().1.kind, PortErrorKind::Timeout);
        assert!(ask_again < cool_down_cap);
    }

    /// A service that is down for long, then back, on the same port.
    #[tokio::test]
    async fn m29_a_restarted_node_is_asked_long_before_its_cool_down_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let hour = Duration::from_secs(3600);
        let settings =
            PoolConfig { cool_down: hour, cool_down_cap: hour, ask_again: Duration::from_millis(50), ..config() };
        let pool = Pool::new(Target::L2, &[format!("http://{address}")], settings).unwrap();
        pool.call("eth_chainId", json!([])).await.unwrap_err();
        let server = axum::Router::new().fallback(|| async { r#"{"id":null,"error":{"code":7,"message":"back"}}"# });
        let listener = TcpListener::bind(address).await.unwrap();
        tokio::spawn(async move { axum::serve(listener, server).await });
        let answered = async {
            let back = PortErrorKind::Refused { code: 7, message: "back".to_owned() };
            while pool.call("eth_chainId", json!([])).await.unwrap_err().kind != back {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), answered).await.expect("it is not asked before its hour ends");
    }

    #[tokio::test]
    async fn m27_one_odd_answer_to_a_batch_is_no_lasting_limit() {
        let odd = Arc::new(AtomicU32::new(0));
        let left = odd.clone();
        let server = http(move |hit| {
            let odd = left.load(Ordering::SeqCst) > 0 && hit.calls().len() > 1;
            left.fetch_sub(u32::from(odd), Ordering::SeqCst);
            let body = match &hit.body {
                Value::Array(_) if odd => json!({"id": null, "error": {"code": -32000, "message": "batch failed"}}),
                Value::Array(calls) => {
                    calls.iter().map(|call| reply(call, Ok(call["params"][0].clone()))).collect::<Vec<_>>().into()
                }
                call => reply(call, Ok(call["params"][0].clone())),
            };
            async move { (200, vec![], body.to_string()) }
        })
        .await;
        let pool = pool(Target::L2, &[&server.url]);
        odd.store(6, Ordering::SeqCst);
        pool.batch(&calls(100)).await.unwrap();
        assert!(pool.batch_limit(0) < 10, "halved six times, down to single requests: {}", pool.batch_limit(0));
        let mut batches = 0;
        while pool.batch_limit(0) < 100 {
            let results = pool.batch(&calls(100)).await.unwrap();
            assert!(results.iter().all(Result::is_ok));
            batches += 1;
            assert!(batches < 100, "it stays at {}", pool.batch_limit(0));
        }
        let before = server.hits().len();
        pool.batch(&calls(100)).await.unwrap();
        assert_eq!(server.hits().len() - before, 1);
    }

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
    async fn j3_a_recovered_endpoint_is_probed_off_the_data_path_and_taken_back() {
        let count = Arc::new(AtomicU32::new(0));
        let seen = count.clone();
        let first = http(move |hit| {
            let n = seen.fetch_add(1, Ordering::SeqCst);
            async move {
                match n {
                    0 => (503, vec![], String::new()),
                    _ => (200, vec![], reply(&hit.body, Ok(json!("0x1"))).to_string()),
                }
            }
        })
        .await;
        let second = rpc(|_, _| Ok(json!("0x2"))).await;
        let pool = pool(Target::L1, &[&first.url, &second.url]);
        let ask = || async { pool.call("eth_blockNumber", json!([])).await.unwrap().quantity().unwrap() };
        assert_eq!(ask().await, 2);
        assert_eq!(ask().await, 2);
        assert_eq!(first.hits().len(), 1);
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(ask().await, 2, "the probe runs beside, the call is not delayed");
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(ask().await, 1);
        assert_eq!(first.calls_of("eth_chainId").len(), 1);
    }

    #[tokio::test]
    async fn a3_retry_after_is_honoured() {
        let count = Arc::new(AtomicU32::new(0));
        let seen = count.clone();
        let server = http(move |hit| {
            let n = seen.fetch_add(1, Ordering::SeqCst);
            async move {
                match n {
                    0 => (429, vec![("retry-after", String::from("1"))], String::from("slow down")),
                    _ => (200, vec![], reply(&hit.body, Ok(json!("0x1"))).to_string()),
                }
            }
        })
        .await;
        let urls = [server.url.clone()];
        let pool = Pool::new(Target::L1, &urls, PoolConfig { retry_for: Duration::from_secs(3), ..config() }).unwrap();
        let started = std::time::Instant::now();
        pool.call("eth_blockNumber", json!([])).await.unwrap();
        assert!(started.elapsed() >= Duration::from_secs(1));
        assert_eq!(server.hits().len(), 2, "one refusal, one repeat, none in between");
    }

    #[tokio::test]
    async fn e17_an_answer_is_never_repeated() {
        let server = rpc(|_, _| Err((3, "execution reverted"))).await;
        let urls = [server.url.clone()];
        let pool = Pool::new(Target::L1, &urls, PoolConfig { retry_for: Duration::from_secs(5), ..config() }).unwrap();
        let error = pool.call("eth_call", json!([])).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Refused { code: 3, message: "execution reverted".to_owned() });
        assert_eq!(server.hits().len(), 1);
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

    #[tokio::test]
    async fn d8_an_endless_body_is_refused_at_the_limit() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let sent = Arc::new(AtomicU64::new(0));
        let counter = sent.clone();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let _ = socket.read(&mut request).await;
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1073741824\r\n\r\n";
            socket.write_all(head.as_bytes()).await.unwrap();
            let chunk = [b' '; 65536];
            while socket.write_all(&chunk).await.is_ok() {
                counter.fetch_add(65536, Ordering::SeqCst);
            }
        });
        let pool = Pool::new(Target::L1, &[url], PoolConfig { max_body: 1 << 20, ..config() }).unwrap();
        let error = pool.call("eth_chainId", json!([])).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::RangeTooWide);
        drop(pool);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(sent.load(Ordering::SeqCst) < 64 << 20, "the connection is dropped, not drained");
    }

    /// Answers every connection with this status and a body of `filler` without an end; counts what it sent.
    async fn endless(status: u16, filler: &'static str) -> (String, Arc<AtomicU64>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let sent = Arc::new(AtomicU64::new(0));
        let counter = sent.clone();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let counter = counter.clone();
                tokio::spawn(async move {
                    let mut request = [0; 4096];
                    let _ = socket.read(&mut request).await;
                    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: 1073741824\r\n\r\n");
                    let _ = socket.write_all(head.as_bytes()).await;
                    let chunk = filler.repeat(65536 / filler.len());
                    while socket.write_all(chunk.as_bytes()).await.is_ok() {
                        counter.fetch_add(65536, Ordering::SeqCst);
                    }
                });
            }
        });
        (url, sent)
    }

    #[tokio::test]
    async fn m20_d8_an_endless_error_page_is_read_to_its_limit_only() {
        for (status, expected) in [
            (404, PortErrorKind::Unsupported),
            (400, PortErrorKind::Refused { code: 400, message: String::new() }),
            (429, PortErrorKind::RateLimited { retry_after: None }),
            (500, PortErrorKind::Unreachable),
            (503, PortErrorKind::Unreachable),
        ] {
            let (url, sent) = endless(status, "no ").await;
            // The deadline is not what ends it.
            let settings = PoolConfig { call_timeout: Duration::from_secs(600), ..config() };
            let pool = Pool::new(Target::L1, &[url], settings).unwrap();
            let error = pool.call("eth_chainId", json!([])).await.unwrap_err();
            assert_eq!(error.kind.code(), expected.code(), "{error}");
            assert!(error.detail.contains("no no") && error.detail.chars().count() < 2 * SHOWN, "{error}");
            drop(pool);
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(sent.load(Ordering::SeqCst) < 64 << 20, "HTTP {status}: the connection is dropped, not drained");
        }
    }

    #[tokio::test]
    async fn k4_no_log_and_no_error_names_more_than_the_host_whatever_the_fault() {
        let (too_long, _) = endless(200, " ").await;
        let cut_off = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            tokio::spawn(async move {
                while let Ok((mut socket, _)) = listener.accept().await {
                    let _ = socket.read(&mut [0; 4096]).await;
                    let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{").await;
                }
            });
            url
        };
        let echo = |status: u16| http(move |hit| async move { (status, vec![], format!("at {}", hit.path)) });
        let refusal = http(|hit| async move {
            let error = json!({"code": -32000, "message": format!("no key {}", hit.path)});
            (200, vec![], json!({"jsonrpc": "2.0", "id": hit.body["id"], "error": error}).to_string())
        })
        .await;
        let foreign = rpc(|_, _| Ok(json!("0x5"))).await;
        let table = [
            (too_long, PortErrorKind::RangeTooWide),
            (black_hole().await, PortErrorKind::Timeout),
            (dead().await, PortErrorKind::Unreachable),
            (cut_off, PortErrorKind::Unreachable),
            (echo(200).await.url, PortErrorKind::Malformed),
            (echo(302).await.url, PortErrorKind::Malformed),
            (echo(403).await.url, PortErrorKind::Unauthorized),
            (echo(429).await.url, PortErrorKind::RateLimited { retry_after: None }),
            (echo(500).await.url, PortErrorKind::Unreachable),
            (refusal.url, PortErrorKind::Refused { code: -32000, message: String::new() }),
            (foreign.url, PortErrorKind::WrongNetwork),
        ];
        let log = testing::captured_log();
        let mut told = String::new();
        for (url, expected) in table {
            let host = url.trim_start_matches("http://").to_owned();
            let url = format!("http://canary-user:canary-pw@{host}/canary-path?key=canary-query&canary-flag");
            let check = if expected == PortErrorKind::WrongNetwork { Check::ChainId(1) } else { Check::None };
            let settings =
                PoolConfig { max_body: 1 << 20, call_timeout: Duration::from_millis(300), check, ..config() };
            let pool = Pool::new(Target::L1, &[url.clone(), url], settings).unwrap();
            let (call, at_once, get) = (
                pool.call("eth_chainId", json!([])).await.unwrap_err(),
                pool.call("eth_chainId", json!([])).await.unwrap_err(),
                pool.get_on(0, "/eth/v1/beacon/genesis", &[("canary", String::from("canary"))], 1024).await,
            );
            assert_eq!(call.kind.code(), expected.code(), "{call}");
            assert!(call.detail.contains(host.as_str()), "{call}");
            assert!(!call.detail.contains("<url>"), "the URL takes the cause's room: {call}");
            let get = get.err();
            told.push_str(&format!("{call} {call:?} {at_once} {get:?} {pool:?} {:?}\n", pool.stats()));
        }
        told.push_str(&log.text());
        assert!(told.contains("endpoint set aside"), "the log is captured");
        assert!(!told.contains("canary"), "{told}");
    }

    #[tokio::test]
    async fn d8_a_flood_of_replies_is_not_read() {
        let server = http(|_| async { (200, vec![], format!("[{}{{}}]", "{},".repeat(REPLIES_MAX))) }).await;
        let error = pool(Target::L1, &[&server.url]).batch(&calls(2)).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Malformed);
    }

    #[tokio::test]
    async fn failures_of_all_endpoints_report_the_one_that_may_pass() {
        let cannot = rpc(|_, _| Err((-32601, "method not found"))).await;
        let busy = http(|_| async { (503, vec![], String::new()) }).await;
        for urls in [[&cannot.url, &busy.url], [&busy.url, &cannot.url]] {
            let error = testing::pool(Target::L1, &urls.map(String::as_str)).call("x", json!([])).await.unwrap_err();
            assert_eq!(error.kind, PortErrorKind::Unreachable);
        }
    }
}
