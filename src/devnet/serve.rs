//! HTTP around a [`World`]: L1 and L2 JSON-RPC, the beacon API, the engine with its token, the reactors' endpoint.
//!
//! Decided here: what travels over the wire (batches, tokens, statuses as recorded), which faults strike, and what is
//! counted. Listens on loopback only. The world's lock is never held across an await.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::task::JoinHandle;

use super::beacon::{self, BeaconKnobs};
use super::client::Client;
use super::faults::{Fault, Rule, Server, strike};
use super::jsonrpc::{RpcError, RpcResult};
use super::l1::{L1Knobs, L1View};
use super::node::{Moment, Node, Side, TagCall, Write};
use super::world::{Heads, World, WorldOptions};
use crate::types::{Address, B256, keccak};

/// How a devnet is started.
#[derive(Clone, Debug, Default)]
pub struct DevnetOptions {
    /// The simulated chains.
    pub world: WorldOptions,
    /// L1 endpoints over the same chain, one at least.
    pub l1_endpoints: usize,
    /// Beacon endpoints over the same chain, one at least.
    pub beacon_endpoints: usize,
    /// Ports of the first L1 and beacon endpoint, L2, engine, reactors; zero takes any.
    pub ports: [u16; 5],
    /// Where the token's secret is put; none makes a folder of its own that goes with the devnet.
    pub secret_dir: Option<PathBuf>,
    /// Writes outside a pause are refused, not only recorded.
    pub refuse_unpaused_writes: bool,
}

/// A call to the reactors' endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct ReactorCall {
    /// Method.
    pub method: String,
    /// Parameters.
    pub params: Value,
    /// The local head when it came.
    pub head: u64,
}

#[derive(Debug, Default)]
struct ReactorState {
    paused: bool,
    calls: Vec<ReactorCall>,
    pauses: u64,
    resumes: u64,
    violations: Vec<u64>,
}

type Hook = Box<dyn FnOnce(&mut World) + Send>;

/// What is done before a request to one of some servers, and how many of those are let through first.
struct RequestHook {
    servers: Vec<Server>,
    skip: u64,
    run: Box<dyn FnOnce() + Send>,
}

#[derive(Default)]
struct Control {
    rules: HashMap<Server, Vec<Rule>>,
    latency: HashMap<Server, Duration>,
    calls: BTreeMap<(Server, String), u64>,
    http: BTreeMap<Server, u64>,
    l1_knobs: Vec<L1Knobs>,
    beacon_knobs: Vec<BeaconKnobs>,
    reactors: ReactorState,
    hooks: Vec<(Server, String, u64, Hook)>,
    request_hooks: Vec<RequestHook>,
    /// What the endpoint without token answers from in place of the world's node.
    reader: Option<Node>,
    refuse_unpaused_writes: bool,
}

struct Shared {
    world: Mutex<World>,
    control: Mutex<Control>,
    secret: [u8; 32],
    /// Calls under way whose effect comes late.
    late: AtomicU64,
}

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone)]
struct Endpoint {
    shared: Arc<Shared>,
    server: Server,
}

/// A running devnet. Dropping it stops its servers.
pub struct Devnet {
    shared: Arc<Shared>,
    addresses: BTreeMap<Server, SocketAddr>,
    tasks: Vec<JoinHandle<()>>,
    secret_path: PathBuf,
    own_dir: Option<PathBuf>,
}

impl Drop for Devnet {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        if let Some(dir) = &self.own_dir {
            // The folder holds only the secret of a simulated node; a leftover is harmless.
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

fn write_secret(dir: &Path, secret: &[u8; 32]) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let path = dir.join("jwt.hex");
    std::fs::write(&path, const_hex::encode(secret)).with_context(|| format!("write {}", path.display()))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    }
    Ok(path)
}

/// A folder name that no other devnet of this machine has.
fn fresh_dir() -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.subsec_nanos());
    std::env::temp_dir().join(format!("morph-devnet-{}-{n}-{nanos}", std::process::id()))
}

impl Devnet {
    /// Starts every server.
    pub async fn start(options: DevnetOptions) -> anyhow::Result<Self> {
        let world = World::new(&options.world)?;
        Self::serve(world, options).await
    }

    /// Starts every server over a world that is already made.
    pub async fn serve(world: World, options: DevnetOptions) -> anyhow::Result<Self> {
        let secret = keccak(&[b"jwt".as_slice(), &options.world.seed.to_be_bytes()].concat()).0;
        let own_dir = options.secret_dir.is_none().then(fresh_dir);
        let dir = options.secret_dir.or_else(|| own_dir.clone()).unwrap_or_default();
        let secret_path = write_secret(&dir, &secret)?;
        let l1 = options.l1_endpoints.max(1);
        let beacons = options.beacon_endpoints.max(1);
        let control = Control {
            l1_knobs: vec![L1Knobs::default(); l1],
            beacon_knobs: vec![BeaconKnobs::default(); beacons],
            refuse_unpaused_writes: options.refuse_unpaused_writes,
            ..Control::default()
        };
        let shared = Arc::new(Shared {
            world: Mutex::new(world),
            control: Mutex::new(control),
            secret,
            late: AtomicU64::new(0),
        });
        let mut devnet = Self { shared, addresses: BTreeMap::new(), tasks: Vec::new(), secret_path, own_dir };
        let [l1_port, beacon_port, l2_port, engine_port, reactors_port] = options.ports;
        for n in 0..l1 {
            devnet.listen(Server::L1(n), if n == 0 { l1_port } else { 0 }).await?;
        }
        for n in 0..beacons {
            devnet.listen(Server::Beacon(n), if n == 0 { beacon_port } else { 0 }).await?;
        }
        devnet.listen(Server::L2, l2_port).await?;
        devnet.listen(Server::Engine, engine_port).await?;
        devnet.listen(Server::Reactors, reactors_port).await?;
        Ok(devnet)
    }

    async fn listen(&mut self, server: Server, port: u16) -> anyhow::Result<()> {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
        let listener = listener.with_context(|| format!("listen on port {port}"))?;
        self.addresses.insert(server, listener.local_addr()?);
        let endpoint = Endpoint { shared: Arc::clone(&self.shared), server };
        let app = Router::new().fallback(answer).layer(DefaultBodyLimit::disable()).with_state(endpoint);
        self.tasks.push(tokio::spawn(async move {
            // Ends only with the task; a failed accept is the client's to notice.
            let _ = axum::serve(listener, app).await;
        }));
        Ok(())
    }

    /// Base URL of a server; empty for one that was not started.
    pub fn url(&self, server: Server) -> String {
        self.addresses.get(&server).map(|address| format!("http://{address}")).unwrap_or_default()
    }

    /// The first L1 endpoint.
    pub fn l1_url(&self) -> String {
        self.url(Server::L1(0))
    }

    /// The first beacon endpoint.
    pub fn beacon_url(&self) -> String {
        self.url(Server::Beacon(0))
    }

    /// The local node's `eth_*` endpoint.
    pub fn l2_url(&self) -> String {
        self.url(Server::L2)
    }

    /// The local node's engine.
    pub fn engine_url(&self) -> String {
        self.url(Server::Engine)
    }

    /// The reactors' JSON-RPC endpoint: any method with `pause` or `stop` in its name pauses, with `resume` or `start`
    /// resumes.
    pub fn reactors_url(&self) -> String {
        self.url(Server::Reactors)
    }

    /// File with the engine's secret, readable by its owner only.
    pub fn jwt_secret_path(&self) -> &Path {
        &self.secret_path
    }

    /// The engine's secret.
    pub fn jwt_secret(&self) -> [u8; 32] {
        self.shared.secret
    }

    /// Rollup contract.
    pub fn rollup(&self) -> Address {
        self.shared.world().l1.rollup
    }

    /// L1MessageQueue contract.
    pub fn queue(&self) -> Address {
        self.shared.world().l1.queue
    }

    /// Hash of L2 block 0.
    pub fn l2_genesis(&self) -> B256 {
        self.shared.world().node.at(0).map(|block| block.hash()).unwrap_or_default()
    }

    /// Everything that a reader of the local node could see so far (P2).
    pub fn moments(&self) -> Vec<Moment> {
        self.shared.world().node.moments().to_vec()
    }

    /// Runs `f` on the world, requests waiting meanwhile.
    pub fn with<R>(&self, f: impl FnOnce(&mut World) -> R) -> R {
        f(&mut self.shared.world())
    }

    /// Heads of the local node and the sequencer.
    pub fn heads(&self) -> Heads {
        self.shared.world().heads()
    }

    /// Bends the answers of L1 endpoint `n`.
    pub fn l1_knobs<R>(&self, n: usize, f: impl FnOnce(&mut L1Knobs) -> R) -> Option<R> {
        self.shared.control().l1_knobs.get_mut(n).map(f)
    }

    /// Bends the answers of beacon endpoint `n`.
    pub fn beacon_knobs<R>(&self, n: usize, f: impl FnOnce(&mut BeaconKnobs) -> R) -> Option<R> {
        self.shared.control().beacon_knobs.get_mut(n).map(f)
    }

    /// Adds a fault rule; the first that matches strikes.
    pub fn fault(&self, server: Server, rule: Rule) {
        self.shared.control().rules.entry(server).or_default().push(rule);
    }

    /// Takes all fault rules of a server away.
    pub fn heal(&self, server: Server) {
        self.shared.control().rules.remove(&server);
    }

    /// Delays every answer of a server: a round trip.
    pub fn latency(&self, server: Server, latency: Duration) {
        self.shared.control().latency.insert(server, latency);
    }

    /// Runs `f` on the world just before the `nth` call of `method` from now on (1 is the next) is answered: a reorg
    /// between two calls, a node that dies under way.
    pub fn on_call(&self, server: Server, method: &str, nth: u64, f: impl FnOnce(&mut World) + Send + 'static) {
        self.shared.control().hooks.push((server, method.to_owned(), nth.max(1), Box::new(f)));
    }

    /// Runs `f` before an HTTP request to one of `servers` is looked at, `skip` of them from now on let through first. A
    /// JSON-RPC batch is one request. Nothing is locked meanwhile.
    pub fn on_request(&self, servers: &[Server], skip: u64, f: impl FnOnce() + Send + 'static) {
        let hook = RequestHook { servers: servers.to_vec(), skip, run: Box::new(f) };
        self.shared.control().request_hooks.push(hook);
    }

    /// The endpoint without token answers from `node` from now on: a replica behind the same address, which lags or stands
    /// elsewhere. None gives it the world's own node back.
    pub fn read_from(&self, node: Option<Node>) {
        self.shared.control().reader = node;
    }

    /// How often `method` was called at `server`, entries of JSON-RPC batches counted one by one. For the beacon the
    /// method is the path.
    pub fn calls(&self, server: Server, method: &str) -> u64 {
        let control = self.shared.control();
        control.calls.iter().filter(|((s, m), _)| *s == server && m.contains(method)).map(|(_, n)| n).sum()
    }

    /// HTTP requests at `server`; a JSON-RPC batch is one.
    pub fn http_requests(&self, server: Server) -> u64 {
        self.shared.control().http.get(&server).copied().unwrap_or_default()
    }

    /// HTTP requests at all servers.
    pub fn all_http_requests(&self) -> u64 {
        self.shared.control().http.values().sum()
    }

    /// Forgets counts, writes, tag calls and reactor calls.
    pub fn clear_counts(&self) {
        let mut control = self.shared.control();
        control.calls.clear();
        control.http.clear();
        let paused = control.reactors.paused;
        control.reactors = ReactorState { paused, ..ReactorState::default() };
        drop(control);
        self.shared.world().node.clear_calls();
    }

    /// Calls of `engine_newSafeL2Block` at the local node.
    pub fn writes(&self) -> Vec<Write> {
        self.shared.world().node.writes().to_vec()
    }

    /// Heights of the blocks that were written, in order, without refused calls.
    pub fn written(&self) -> Vec<u64> {
        let world = self.shared.world();
        world.node.writes().iter().filter(|write| write.result.is_ok()).map(|write| write.number).collect()
    }

    /// Calls of `engine_setBlockTags` at the local node.
    pub fn tag_calls(&self) -> Vec<TagCall> {
        self.shared.world().node.tag_calls().to_vec()
    }

    /// Pauses that the reactors' endpoint accepted.
    pub fn pauses(&self) -> u64 {
        self.shared.control().reactors.pauses
    }

    /// Resumes that the reactors' endpoint accepted.
    pub fn resumes(&self) -> u64 {
        self.shared.control().reactors.resumes
    }

    /// Whether the reactors are paused now.
    pub fn is_paused(&self) -> bool {
        self.shared.control().reactors.paused
    }

    /// Whether a call is under way whose effect comes late ([`Fault::Late`]).
    pub fn has_late_calls(&self) -> bool {
        self.shared.late.load(Ordering::SeqCst) > 0
    }

    /// Pauses the reactors without a call: one whose caller is gone has landed.
    pub fn pause_now(&self) {
        self.shared.control().reactors.paused = true;
    }

    /// Every call to the reactors' endpoint.
    pub fn reactor_calls(&self) -> Vec<ReactorCall> {
        self.shared.control().reactors.calls.clone()
    }

    /// Heights of blocks that were written while the reactors were not paused.
    pub fn unpaused_writes(&self) -> Vec<u64> {
        self.shared.control().reactors.violations.clone()
    }

    /// Refuses writes outside a pause from now on, or no longer.
    pub fn refuse_unpaused_writes(&self, refuse: bool) {
        self.shared.control().refuse_unpaused_writes = refuse;
    }
}

async fn answer(State(endpoint): State<Endpoint>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let server = endpoint.server;
    run_request_hooks(&endpoint.shared, server);
    let latency = {
        let mut control = endpoint.shared.control();
        *control.http.entry(server).or_default() += 1;
        control.latency.get(&server).copied()
    };
    if let Some(latency) = latency {
        tokio::time::sleep(latency).await;
    }
    if server == Server::Engine
        && let Err(words) = check_token(&headers, &endpoint.shared.secret)
    {
        let words = match endpoint.shared.world().node.client() {
            Client::Geth => words,
            Client::Reth(_) => reth_token_words(&words),
        };
        return (StatusCode::UNAUTHORIZED, format!("{words}\n")).into_response();
    }
    match server {
        Server::Beacon(n) => answer_beacon(&endpoint, n, &uri).await,
        Server::Engine | Server::Reactors if is_late(&endpoint) => {
            // A task of its own continues after the caller has gone.
            endpoint.shared.late.fetch_add(1, Ordering::SeqCst);
            let late = tokio::spawn(async move {
                let answer = answer_json_rpc(&endpoint, &body).await;
                endpoint.shared.late.fetch_sub(1, Ordering::SeqCst);
                answer
            });
            late.await.unwrap_or_else(|_| broken())
        }
        _ => answer_json_rpc(&endpoint, &body).await,
    }
}

/// The token's check with the real node's words (protocol.md, section 7).
fn check_token(headers: &HeaderMap, secret: &[u8; 32]) -> Result<(), String> {
    let header = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let token = header.strip_prefix("Bearer ").unwrap_or_default();
    if token.is_empty() {
        return Err("missing token".to_owned());
    }
    if token.split('.').count() != 3 {
        return Err("token contains an invalid number of segments".to_owned());
    }
    let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::HS256);
    validation.validate_exp = false;
    validation.required_spec_claims.clear();
    let key = jsonwebtoken::DecodingKey::from_secret(secret);
    let claims = jsonwebtoken::decode::<Value>(token, &key, &validation).map_err(|error| match error.kind() {
        jsonwebtoken::errors::ErrorKind::InvalidSignature => "signature is invalid".to_owned(),
        _ => "token is malformed".to_owned(),
    })?;
    let issued = claims.claims["iat"].as_u64().ok_or("missing issued-at")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    if issued + 60 < now {
        return Err("stale token".to_owned());
    }
    if now + 60 < issued {
        return Err("future token".to_owned());
    }
    Ok(())
}

/// What morph-reth says in place of go-ethereum's words.
fn reth_token_words(words: &str) -> String {
    match words {
        "missing token" => "Authorization header is missing or invalid".to_owned(),
        "signature is invalid" => "JWT signature is invalid".to_owned(),
        "stale token" | "future token" => {
            "IAT (issued-at) claim is not within ±60 seconds from the current time".to_owned()
        }
        other => format!("JWT decoding error: {other}"),
    }
}

/// The answer that a fault of the whole request gives.
async fn http_fault(fault: &Fault) -> Option<Response> {
    match fault {
        Fault::Hang => std::future::pending().await,
        Fault::Drop => Some(broken()),
        Fault::Status(status, body) => {
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Some((status, body.clone()).into_response())
        }
        Fault::RateLimited(after) => {
            let mut response = (StatusCode::TOO_MANY_REQUESTS, "rate limited").into_response();
            if let Some(value) = after.and_then(|seconds| seconds.to_string().parse().ok()) {
                response.headers_mut().insert("retry-after", value);
            }
            Some(response)
        }
        Fault::Body(body) => Some(body.clone().into_response()),
        Fault::Huge(bytes) => {
            let chunk = Bytes::from(vec![b' '; 1 << 16]);
            let chunks = (0..bytes.div_ceil(1 << 16)).map(move |_| Ok::<_, std::io::Error>(chunk.clone()));
            Some(Body::from_stream(futures::stream::iter(chunks)).into_response())
        }
        Fault::Delay(delay) | Fault::Late(delay) => {
            tokio::time::sleep(*delay).await;
            None
        }
        Fault::Error(_) | Fault::DropAfter => None,
    }
}

fn is_late(endpoint: &Endpoint) -> bool {
    let control = endpoint.shared.control();
    let rules = control.rules.get(&endpoint.server);
    rules.is_some_and(|rules| rules.iter().any(|rule| matches!(rule.fault, Fault::Late(_))))
}

fn broken() -> Response {
    let parts = [Ok(Bytes::from_static(b"{")), Err(std::io::Error::other("connection broken on purpose"))];
    Body::from_stream(futures::stream::iter(parts)).into_response()
}

fn run_request_hooks(shared: &Shared, server: Server) {
    let mut due = Vec::new();
    {
        let mut control = shared.control();
        for mut hook in std::mem::take(&mut control.request_hooks) {
            let hit = hook.servers.contains(&server);
            if hit && hook.skip == 0 {
                due.push(hook.run);
                continue;
            }
            hook.skip -= u64::from(hit);
            control.request_hooks.push(hook);
        }
    }
    due.into_iter().for_each(|run| run());
}

fn run_hooks(shared: &Shared, server: Server, method: &str) {
    let mut due = Vec::new();
    {
        let mut control = shared.control();
        let hooks = std::mem::take(&mut control.hooks);
        for (wanted, name, nth, hook) in hooks {
            let hit = wanted == server && method.contains(&name);
            match (hit, nth) {
                (true, 0 | 1) => due.push(hook),
                (true, nth) => control.hooks.push((wanted, name, nth - 1, hook)),
                (false, nth) => control.hooks.push((wanted, name, nth, hook)),
            }
        }
    }
    due.into_iter().for_each(|hook| hook(&mut shared.world()));
}

fn count(shared: &Shared, server: Server, method: &str) -> Option<Fault> {
    let mut control = shared.control();
    *control.calls.entry((server, method.to_owned())).or_default() += 1;
    control.rules.get_mut(&server).and_then(|rules| strike(rules, method))
}

async fn answer_beacon(endpoint: &Endpoint, n: usize, uri: &Uri) -> Response {
    let fault = count(&endpoint.shared, endpoint.server, uri.path());
    run_hooks(&endpoint.shared, endpoint.server, uri.path());
    if let Some(fault) = &fault
        && let Some(response) = http_fault(fault).await
    {
        return response;
    }
    let query: Vec<(String, String)> =
        url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
    let knobs = endpoint.shared.control().beacon_knobs.get(n).cloned().unwrap_or_default();
    let (status, body) = {
        let world = endpoint.shared.world();
        beacon::get(&world.l1, &world.beacon, &knobs, uri.path(), &query)
    };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [("content-type", "application/json")], body).into_response()
}

/// What a method gives back: a value, or the text of one that was rendered before.
enum Answer {
    Result(RpcResult),
    Text(Arc<str>),
}

fn reply(id: &Value, answer: Answer) -> String {
    match answer {
        Answer::Text(result) => format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#),
        Answer::Result(Ok(result)) => format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#),
        Answer::Result(Err(error)) => format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{}}}"#, error.to_json()),
    }
}

fn refusal(id: &Value, code: i64, message: &str) -> String {
    reply(id, Answer::Result(Err(RpcError { code, message: message.to_owned() })))
}

async fn answer_json_rpc(endpoint: &Endpoint, body: &[u8]) -> Response {
    let Ok(request) = serde_json::from_slice::<Value>(body) else {
        return json_response(refusal(&Value::Null, -32700, "parse error"));
    };
    let single = !request.is_array();
    let calls = match request {
        Value::Array(calls) => calls,
        one => vec![one],
    };
    if calls.len() > batch_limit(endpoint) {
        let id = calls.first().map(|call| call["id"].clone()).unwrap_or_default();
        return json_response(format!("[{}]", refusal(&id, -32600, "batch too large")));
    }
    let mut replies = Vec::with_capacity(calls.len());
    let mut break_after = false;
    for call in &calls {
        let method = call["method"].as_str().unwrap_or_default();
        let fault = count(&endpoint.shared, endpoint.server, method);
        run_hooks(&endpoint.shared, endpoint.server, method);
        if let Some(fault) = &fault
            && let Some(response) = http_fault(fault).await
        {
            return response;
        }
        let answer = match fault {
            Some(Fault::Error(error)) => Answer::Result(Err(error)),
            other => {
                break_after |= other == Some(Fault::DropAfter);
                dispatch(endpoint, method, &call["params"])
            }
        };
        replies.push(reply(&call["id"], answer));
    }
    if break_after {
        return broken();
    }
    match replies.pop() {
        Some(only) if single => json_response(only),
        last => {
            replies.extend(last);
            json_response(format!("[{}]", replies.join(",")))
        }
    }
}

fn json_response(body: String) -> Response {
    ([("content-type", "application/json")], body).into_response()
}

fn batch_limit(endpoint: &Endpoint) -> usize {
    match endpoint.server {
        Server::L1(n) => endpoint.shared.control().l1_knobs.get(n).map_or(usize::MAX, |knobs| knobs.batch_limit),
        _ => endpoint.shared.world().node.client().batch_limit(),
    }
}

fn dispatch(endpoint: &Endpoint, method: &str, params: &Value) -> Answer {
    let shared = &endpoint.shared;
    let list = params.as_array().map(Vec::as_slice).unwrap_or_default();
    Answer::Result(match endpoint.server {
        Server::L1(n) => {
            let knobs = shared.control().l1_knobs.get(n).cloned().unwrap_or_default();
            let world = shared.world();
            L1View { l1: knobs.chain.as_deref().unwrap_or(&world.l1), knobs: &knobs }.call(method, list)
        }
        Server::L2 => {
            let replica = shared.control().reader.as_mut().map(|replica| replica.call(Side::Eth, method, list));
            match replica {
                Some(result) => result,
                None => {
                    let mut world = shared.world();
                    if let Some(text) = world.node.kept_answer(method, list) {
                        return Answer::Text(text);
                    }
                    world.node.call(Side::Eth, method, list)
                }
            }
        }
        Server::Engine => engine(shared, method, list),
        Server::Reactors => reactors(shared, method, params),
        Server::Beacon(_) => Err(RpcError::no_method(method)),
    })
}

fn engine(shared: &Shared, method: &str, params: &[Value]) -> RpcResult {
    if method == "engine_newSafeL2Block" {
        let mut control = shared.control();
        if !control.reactors.paused {
            let number = params.first().and_then(|block| super::jsonrpc::parse_quantity(&block["number"]));
            control.reactors.violations.push(number.unwrap_or_default());
            if control.refuse_unpaused_writes {
                return Err(RpcError::server("the reactors are not paused"));
            }
        }
    }
    shared.world().node.call(Side::Engine, method, params)
}

fn reactors(shared: &Shared, method: &str, params: &Value) -> RpcResult {
    let head = shared.world().node.head().number();
    let mut control = shared.control();
    let state = &mut control.reactors;
    state.calls.push(ReactorCall { method: method.to_owned(), params: params.clone(), head });
    let name = method.to_lowercase();
    if name.contains("pause") || name.contains("stop") {
        state.paused = true;
        state.pauses += 1;
    } else if name.contains("resume") || name.contains("start") {
        state.paused = false;
        state.resumes += 1;
    } else {
        return Err(RpcError::no_method(method));
    }
    Ok(Value::Bool(true))
}
