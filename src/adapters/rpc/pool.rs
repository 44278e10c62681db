//! The endpoints of one port, in order of preference, and how each has been doing.
//!
//! Which of them is asked and how long a faulty one is left alone is decided in `decide/endpoints.rs`; how often a call is
//! repeated in `retry`; whether an endpoint belongs to the right network in `network`.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use rand::Rng;
use serde_json::Value;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::http::{Deadlines, Http, HttpReply, TokenSource};
use super::jsonrpc::{Call, Json, JsonRpc, Limits, Posted};
use super::network::{self, Check};
use super::retry::{Failed, retry};
use crate::decide::endpoints::{self, Choice, CoolDown, Standing};
use crate::error::{PortError, PortErrorKind, Target};
use crate::ports::PortResult;

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
    /// cool-down serves to choose among several. A third of the poll interval: pauses between polls double up to the
    /// interval, so an endpoint that recovers is asked within one interval of its last fault.
    pub ask_again: Duration,
    /// How long one call may be repeated.
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

impl PoolConfig {
    fn rules(&self) -> CoolDown {
        CoolDown { first: self.cool_down.max(self.connect_timeout), cap: self.cool_down_cap, ask_again: self.ask_again }
    }
}

/// How an endpoint has been doing.
#[derive(Debug, Default)]
struct Health {
    standing: Standing,
    /// The network check passed since the last fault.
    checked: bool,
    /// A probe is under way.
    probing: bool,
    /// The last fault.
    last: Option<PortError>,
}

struct Endpoint {
    rpc: JsonRpc,
    health: Mutex<Health>,
    faults: AtomicU64,
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
    /// The beacon chain's genesis time, if it was learnt and not configured.
    genesis: OnceLock<u64>,
    /// The origin of [`Pool::now`].
    made: Instant,
}

/// The endpoints of one port in order of preference. Cheap to clone; clones share health and figures.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.inner.endpoints.iter().map(|endpoint| endpoint.name()).collect();
        f.debug_struct("Pool").field("target", &self.inner.target).field("endpoints", &names).finish()
    }
}

impl Pool {
    /// A pool over `urls` (http or https; user and password inside become basic authentication), best first. Nothing
    /// is asked yet. `Malformed` if there is none, or if one is not such a URL; the text names its place only.
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
        let deadlines = Deadlines { connect: config.connect_timeout, call: config.call_timeout };
        let limits = Limits { max_body: config.max_body, max_batch: config.max_batch };
        let ids = Arc::new(AtomicU64::new(1));
        let endpoints = urls
            .iter()
            .enumerate()
            .map(|(place, url)| {
                Ok(Endpoint::new(Http::new(target, place, url, deadlines, bearer.clone())?, limits, ids.clone()))
            })
            .collect::<PortResult<Vec<_>>>()?;
        if endpoints.is_empty() {
            return Err(PortError::malformed(target, "no endpoint is configured"));
        }
        Ok(Self {
            inner: Arc::new(Inner { target, endpoints, config, genesis: OnceLock::new(), made: Instant::now() }),
        })
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
        self.inner.endpoints.get(at).map_or("?", |endpoint| endpoint.name())
    }

    /// A text of whichever endpoint, made fit to be shown: every endpoint's secrets struck out (P10).
    pub fn show(&self, text: &str) -> String {
        self.inner.endpoints.iter().fold(text.to_owned(), |text, endpoint| endpoint.rpc.http.show(&text))
    }

    /// HTTP requests sent so far, over all endpoints.
    pub fn requests(&self) -> u64 {
        self.inner.endpoints.iter().map(|endpoint| endpoint.rpc.http.requests()).sum()
    }

    /// Figures of every endpoint, in order.
    pub fn stats(&self) -> Vec<EndpointStats> {
        let now = self.now();
        let figures = |endpoint: &Endpoint| EndpointStats {
            name: endpoint.name().to_owned(),
            requests: endpoint.rpc.http.requests(),
            faults: endpoint.faults.load(Ordering::Relaxed),
            cooling: endpoint.health().standing.is_cooling(now),
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

    /// Many requests, as [`Pool::run`]; the results are in the order of `calls`, all from one endpoint. An error of
    /// a single call is that call's own result.
    pub async fn batch(&self, calls: &[Call]) -> PortResult<Vec<PortResult<Json>>> {
        self.run(|at| async move { self.batch_on(at, calls).await }).await
    }

    /// Sets endpoint `at` aside for an answer that was no transport fault but shows it unfit (lagging its own network,
    /// wrong bytes). If there is no other endpoint to ask, it stays.
    pub fn demote(&self, at: usize, error: &PortError) {
        if self.size() > 1 {
            self.fault(at, error);
        }
    }

    /// As [`Pool::demote`], but only while another endpoint is in good standing; whether one is.
    pub fn set_aside(&self, at: usize, error: &PortError) -> bool {
        let mut others = self.inner.endpoints.iter().enumerate().filter(|(other, _)| *other != at);
        let another = others.any(|(_, endpoint)| endpoint.health().standing.is_good());
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
        let mut failures = Vec::new();
        for at in self.eligible() {
            match self.attempt(at, op).await {
                Ok(value) => return Ok(value),
                Err(error) => {
                    debug!(endpoint = self.name(at), %error, "endpoint failed");
                    failures.push(error);
                }
            }
        }
        let (wait, cooling) = self.earliest();
        let error = match endpoints::most_telling(failures) {
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
        endpoints::most_telling(faults).filter(|error| error.kind != PortErrorKind::WrongNetwork)
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
            Err(error) if endpoints::is_unfit(&error.kind) => self.demote(at, error),
            Err(_) => self.answered(at),
        }
        result
    }

    /// The endpoints that may be asked now, in order. The others whose cool-down has passed are probed beside.
    fn eligible(&self) -> Vec<usize> {
        let standings: Vec<Standing> = self.inner.endpoints.iter().map(|one| one.health().standing).collect();
        let Choice { ask, probe } = endpoints::choose(&standings, self.now());
        for at in probe {
            self.probe(at);
        }
        ask
    }

    /// Time until one of the endpoints is asked again, and the error to report while all of them are left alone.
    fn earliest(&self) -> (Duration, PortError) {
        let known: Vec<(Standing, Option<PortError>)> = self
            .inner
            .endpoints
            .iter()
            .map(|one| one.health())
            .map(|health| (health.standing, health.last.clone()))
            .collect();
        let Some((wait, last)) = endpoints::first_wait(&known, self.now()) else {
            return (Duration::ZERO, PortError::malformed(self.target(), "no endpoint is configured"));
        };
        let (kind, cause) = match last {
            Some(error) => (error.kind.clone(), error.detail.as_str()),
            None => (PortErrorKind::Unreachable, "unknown fault"),
        };
        let detail = format!("every endpoint is set aside, the first for {:.1} s more: {cause}", wait.as_secs_f64());
        (wait, PortError::new(self.target(), kind, detail))
    }

    fn success(&self, at: usize) {
        let Some(endpoint) = self.inner.endpoints.get(at) else { return };
        let was_aside = {
            let mut health = endpoint.health();
            health.last = None;
            health.standing.succeeded()
        };
        if was_aside {
            info!(target: "morph_deriver::rpc", recovered = true, entity = %endpoint.name(), "endpoint answers again");
        }
    }

    /// It answered, if only with an error: alive. A cool-down that is still running stays.
    fn answered(&self, at: usize) {
        let cools = self.inner.endpoints.get(at).is_some_and(|one| one.health().standing.is_cooling(self.now()));
        if !cools {
            self.success(at);
        }
    }

    pub(super) fn fault(&self, at: usize, error: &PortError) {
        let Some(endpoint) = self.inner.endpoints.get(at) else { return };
        let jitter = rand::thread_rng().gen_range(1.0..1.2);
        let pause = {
            let mut health = endpoint.health();
            health.checked = false;
            let pause = health.standing.faulted(&self.inner.config.rules(), &error.kind, jitter, self.now());
            if pause.is_some() {
                health.last = Some(error.clone());
            }
            pause
        };
        let Some(pause) = pause else { return };
        endpoint.faults.fetch_add(1, Ordering::Relaxed);
        warn!(target: "morph_deriver::rpc", code = error.code(), entity = %endpoint.name(), seconds = pause.as_secs_f64(), "endpoint set aside");
    }

    /// Time since the pool was made.
    fn now(&self) -> Duration {
        self.inner.made.elapsed()
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

    /// The beacon chain's genesis time as endpoint `at` says it; none if it does not say (a bare blob archive).
    pub async fn genesis_on(&self, at: usize) -> PortResult<Option<u64>> {
        network::beacon_genesis(&self.endpoint(at)?.rpc.http).await
    }

    /// As [`Pool::genesis_on`], of every endpoint at once, in order. An endpoint that is set aside counts with its last
    /// fault; one that does not answer within the time for a connection is set aside.
    pub async fn genesis_of_all(&self) -> Vec<PortResult<Option<u64>>> {
        let may_be_asked = self.eligible();
        let ask = |at: usize| {
            let asked = may_be_asked.contains(&at);
            async move {
                let fault = || self.inner.endpoints.get(at).and_then(|endpoint| endpoint.health().last.clone());
                if !asked && let Some(fault) = fault() {
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

    /// Asks for its network if that was not asked since its last fault.
    async fn ensure_checked(&self, at: usize) -> PortResult<()> {
        let endpoint = self.endpoint(at)?;
        if !endpoint.health().checked {
            network::verify(&endpoint.rpc, self.check()).await?;
            self.vouch_for(at);
        }
        Ok(())
    }

    /// The cheapest question that shows an endpoint alive. The network check, if there is one, was asked before.
    async fn greet(&self, at: usize) -> PortResult<()> {
        match self.check() {
            Check::None => network::greet(&self.endpoint(at)?.rpc).await,
            Check::ChainId(_) | Check::BeaconGenesis(_) => Ok(()),
        }
    }

    /// How long one call may take.
    pub fn call_timeout(&self) -> Duration {
        self.inner.config.call_timeout
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
        self.endpoint(at)?.rpc.http.get(path, query, max_body).await
    }

    /// One request to endpoint `at`, once.
    pub async fn call_on(&self, at: usize, call: Call) -> PortResult<Json> {
        self.endpoint(at)?.rpc.call(call).await
    }

    /// Requests to endpoint `at` in as few HTTP exchanges as it allows, one after another. A batch that is refused
    /// for its size is halved, and the endpoint's limit remembered; a reply that is refused for the size of the whole
    /// answer is asked for again in a smaller batch.
    ///
    /// All results together are held until the last one has arrived: if they are longer than one answer may be,
    /// `RangeTooWide`. Who asks for much at a time asks for less then (P7).
    pub async fn batch_on(&self, at: usize, calls: &[Call]) -> PortResult<Vec<PortResult<Json>>> {
        self.endpoint(at)?.rpc.batch(calls).await
    }

    /// Exactly one HTTP exchange with `calls`: a plain request for one, a batch for more. Replies are matched by id.
    pub async fn post_on(&self, at: usize, calls: &[Call]) -> PortResult<Posted> {
        self.endpoint(at)?.rpc.post(calls).await
    }

    /// The most requests that endpoint `at` is sent in one batch.
    pub fn batch_limit(&self, at: usize) -> usize {
        self.inner.endpoints.get(at).map_or(1, |endpoint| endpoint.rpc.batch_limit())
    }

    /// Remembers that endpoint `at` refused a batch of `refused`; gives the new limit. It grows back with the batches
    /// that are taken: one odd answer is no lasting limit.
    pub fn learn_batch_limit(&self, at: usize, refused: usize) -> usize {
        self.inner.endpoints.get(at).map_or(1, |endpoint| endpoint.rpc.learn_batch_limit(refused))
    }

    /// The error for an HTTP status that is no success.
    pub fn status_error(&self, at: usize, what: &str, reply: &HttpReply) -> PortError {
        match self.endpoint(at) {
            Ok(endpoint) => endpoint.rpc.http.status_error(what, reply),
            Err(error) => error,
        }
    }

    fn endpoint(&self, at: usize) -> PortResult<&Endpoint> {
        self.inner.endpoints.get(at).ok_or_else(|| PortError::malformed(self.target(), "no such endpoint"))
    }
}

impl Endpoint {
    fn new(http: Http, limits: Limits, ids: Arc<AtomicU64>) -> Self {
        Self { rpc: JsonRpc::new(http, limits, ids), health: Mutex::default(), faults: AtomicU64::new(0) }
    }

    /// Host and port.
    fn name(&self) -> &str {
        &self.rpc.http.name
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use serde_json::json;
    use tokio::net::TcpListener;

    use super::*;
    use crate::adapters::testing::{self, black_hole, config, dead, http, pool, reply, rpc};

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
        assert_eq!(ask().await, 2, "the probe does not delay the call");
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(ask().await, 1);
        assert_eq!(first.calls_of("eth_chainId").len(), 1);
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
