//! A fake server on loopback, JSON-RPC or plain HTTP, with fault switches and a log of what it was asked.
//!
//! What it answers comes from a closure; what goes wrong on the way is set by rules while it runs, so that one server
//! serves the healthy and the faulty half of a test.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};

use super::servers;

/// What a JSON-RPC handler gives: a result, or code and message of an error.
pub type RpcResult = Result<Value, (i64, String)>;

/// What an HTTP handler gives: status and body.
pub type HttpReply = (u16, Vec<u8>);

type RpcHandler = dyn Fn(&str, &[Value]) -> RpcResult + Send + Sync;
type HttpHandler = dyn Fn(&str) -> HttpReply + Send + Sync;
type Hook = dyn Fn() + Send + Sync;
type Rewrite = dyn Fn(&[Value], &mut RpcResult) + Send + Sync;

/// Something that goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The request is taken and never answered.
    Hang,
    /// The connection ends without an answer.
    Drop,
    /// This status with this text, instead of an answer.
    Status(u16, String),
    /// A JSON-RPC error for this call; the others of its batch are answered.
    Error(i64, String),
    /// The call's answer is left out of its batch; on its own, an empty body.
    LeaveOut,
}

impl Fault {
    fn is_per_call(&self) -> bool {
        matches!(self, Self::Error(..) | Self::LeaveOut)
    }
}

struct Rule {
    method: String,
    fault: Fault,
    let_pass: usize,
    remaining: Option<usize>,
}

/// One call as it came in.
#[derive(Clone, Debug)]
pub struct Call {
    /// JSON-RPC method; for plain HTTP, path and query.
    pub method: String,
    /// Its `Authorization` header.
    pub authorization: Option<String>,
}

enum Kind {
    Rpc(Box<RpcHandler>),
    Http(Box<HttpHandler>),
}

struct Inner {
    kind: Kind,
    jwt: Option<Vec<u8>>,
    rules: Mutex<Vec<Rule>>,
    rewrites: Mutex<BTreeMap<String, Arc<Rewrite>>>,
    before: Mutex<Option<Arc<Hook>>>,
    log: Mutex<Vec<Call>>,
    requests: AtomicUsize,
    largest_batch: AtomicUsize,
    batch_limit: AtomicUsize,
    down: AtomicBool,
}

/// A running fake server. Stops taking connections when it is dropped.
pub struct FakeServer {
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    inner: Arc<Inner>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.inner.down.store(true, Ordering::SeqCst);
        self.task.abort();
    }
}

/// A URL on loopback on which nothing listens.
pub fn dead_url() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    format!("http://{}", listener.local_addr().expect("its address"))
}

impl FakeServer {
    /// A JSON-RPC server, for single calls and batches.
    pub fn json_rpc(handler: impl Fn(&str, &[Value]) -> RpcResult + Send + Sync + 'static) -> Self {
        Self::start(Kind::Rpc(Box::new(handler)), None)
    }

    /// A JSON-RPC server that answers 401 with plain text unless the request carries a JWT signed with `secret`
    /// (HS256) and issued within 60 s of now.
    pub fn json_rpc_with_jwt(
        secret: &[u8],
        handler: impl Fn(&str, &[Value]) -> RpcResult + Send + Sync + 'static,
    ) -> Self {
        Self::start(Kind::Rpc(Box::new(handler)), Some(secret.to_vec()))
    }

    /// A plain HTTP server; the handler is given path and query.
    pub fn http(handler: impl Fn(&str) -> HttpReply + Send + Sync + 'static) -> Self {
        Self::start(Kind::Http(Box::new(handler)), None)
    }

    fn start(kind: Kind, jwt: Option<Vec<u8>>) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        listener.set_nonblocking(true).expect("a listener for tokio");
        let addr = listener.local_addr().expect("its address");
        let inner = Arc::new(Inner {
            kind,
            jwt,
            rules: Mutex::default(),
            rewrites: Mutex::default(),
            before: Mutex::default(),
            log: Mutex::default(),
            requests: AtomicUsize::new(0),
            largest_batch: AtomicUsize::new(0),
            batch_limit: AtomicUsize::new(1000),
            down: AtomicBool::new(false),
        });
        let app = axum::Router::new()
            .fallback(serve)
            .layer(DefaultBodyLimit::max(64 * 1024 * 1024))
            .with_state(Arc::clone(&inner));
        let task = servers().spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener for tokio");
            let _ = axum::serve(listener, app).await;
        });
        Self { url: format!("http://{addr}"), inner, task }
    }

    /// Every call of `method` (`*`: of any; for plain HTTP, every path that contains it) meets `fault` from now on.
    pub fn fault(&self, method: &str, fault: Fault) {
        self.rule(method, fault, 0, None);
    }

    /// The next `times` calls of `method` meet `fault`, those after them are answered.
    pub fn fault_times(&self, method: &str, fault: Fault, times: usize) {
        self.rule(method, fault, 0, Some(times));
    }

    /// `let_pass` calls of `method` are answered, the next `times` meet `fault`, then all is well again.
    pub fn fault_after(&self, method: &str, let_pass: usize, fault: Fault, times: usize) {
        self.rule(method, fault, let_pass, Some(times));
    }

    fn rule(&self, method: &str, fault: Fault, let_pass: usize, remaining: Option<usize>) {
        lock(&self.inner.rules).push(Rule { method: method.to_owned(), fault, let_pass, remaining });
    }

    /// Ends all faults.
    pub fn heal(&self) {
        lock(&self.inner.rules).clear();
    }

    /// While down, every request ends without an answer.
    pub fn set_down(&self, down: bool) {
        self.inner.down.store(down, Ordering::SeqCst);
    }

    /// Runs `hook` before each request is looked at: several servers may share one that counts over all of them.
    pub fn before_each(&self, hook: impl Fn() + Send + Sync + 'static) {
        *lock(&self.inner.before) = Some(Arc::new(hook));
    }

    /// Passes every answer to `method` through `rewrite` (parameters, answer). Replaces an earlier one.
    pub fn rewrite(&self, method: &str, rewrite: impl Fn(&[Value], &mut RpcResult) + Send + Sync + 'static) {
        lock(&self.inner.rewrites).insert(method.to_owned(), Arc::new(rewrite));
    }

    /// How many calls a batch may hold; above, one element with error −32600 answers for all. 1,000 at first.
    pub fn set_batch_limit(&self, limit: usize) {
        self.inner.batch_limit.store(limit, Ordering::SeqCst);
    }

    /// How often `method` was called (for plain HTTP: paths that contain it), whatever came of it.
    pub fn count(&self, method: &str) -> usize {
        let http = matches!(self.inner.kind, Kind::Http(_));
        lock(&self.inner.log)
            .iter()
            .filter(|call| if http { call.method.contains(method) } else { call.method == method })
            .count()
    }

    /// All calls, in the order in which they came.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.inner.log).clone()
    }

    /// How many HTTP requests came.
    pub fn requests(&self) -> usize {
        self.inner.requests.load(Ordering::SeqCst)
    }

    /// Calls in the largest JSON-RPC batch that came.
    pub fn largest_batch(&self) -> usize {
        self.inner.largest_batch.load(Ordering::SeqCst)
    }

    /// Forgets what was asked so far.
    pub fn forget(&self) {
        lock(&self.inner.log).clear();
        self.inner.requests.store(0, Ordering::SeqCst);
        self.inner.largest_batch.store(0, Ordering::SeqCst);
    }
}

/// A lock whose holder panicked is a test that failed already.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Inner {
    /// The faults that this call meets, in the order in which they were set.
    fn faults(&self, method: &str) -> Vec<Fault> {
        let http = matches!(self.kind, Kind::Http(_));
        let mut rules = lock(&self.rules);
        let mut met = Vec::new();
        for rule in rules.iter_mut() {
            let hit = rule.method == "*" || rule.method == method || (http && method.contains(&rule.method));
            if !hit {
                continue;
            }
            if rule.let_pass > 0 {
                rule.let_pass -= 1;
                continue;
            }
            match &mut rule.remaining {
                Some(0) => continue,
                Some(n) => *n -= 1,
                None => {}
            }
            met.push(rule.fault.clone());
        }
        met
    }

    fn note(&self, method: &str, headers: &HeaderMap) {
        let authorization = headers.get("authorization").and_then(|value| value.to_str().ok()).map(str::to_owned);
        lock(&self.log).push(Call { method: method.to_owned(), authorization });
    }

    fn answer(&self, handler: &RpcHandler, method: &str, params: &[Value]) -> RpcResult {
        let mut result = handler(method, params);
        let rewrite = lock(&self.rewrites).get(method).cloned();
        if let Some(rewrite) = rewrite {
            rewrite(params, &mut result);
        }
        result
    }
}

async fn serve(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    inner.requests.fetch_add(1, Ordering::SeqCst);
    let before = lock(&inner.before).clone();
    if let Some(hook) = before {
        hook();
    }
    if inner.down.load(Ordering::SeqCst) {
        return dropped();
    }
    let path = request.uri().path_and_query().map_or_else(String::new, ToString::to_string);
    let headers = request.headers().clone();
    let Ok(body) = axum::body::to_bytes(request.into_body(), 64 * 1024 * 1024).await else {
        return reply(413, b"too large".to_vec(), "text/plain");
    };
    match &inner.kind {
        Kind::Http(handler) => serve_http(&inner, handler, &path, &headers).await,
        Kind::Rpc(handler) => serve_rpc(&inner, handler, &body, &headers).await,
    }
}

async fn serve_http(inner: &Inner, handler: &HttpHandler, path: &str, headers: &HeaderMap) -> Response {
    inner.note(path, headers);
    for fault in inner.faults(path) {
        if let Some(response) = transport_fault(fault).await {
            return response;
        }
    }
    let (status, body) = handler(path);
    reply(status, body, "application/json")
}

async fn serve_rpc(inner: &Inner, handler: &RpcHandler, body: &[u8], headers: &HeaderMap) -> Response {
    let parsed = serde_json::from_slice::<Value>(body);
    let calls: Vec<&Value> = match &parsed {
        Ok(Value::Array(calls)) => calls.iter().collect(),
        Ok(call) => vec![call],
        Err(_) => {
            let error = json!({"jsonrpc": "2.0", "id": null, "error": {"code": -32700, "message": "parse error"}});
            return reply(200, error.to_string().into_bytes(), "application/json");
        }
    };
    let is_batch = matches!(parsed, Ok(Value::Array(_)));
    inner.largest_batch.fetch_max(calls.len(), Ordering::SeqCst);

    let mut per_call = Vec::new();
    for call in &calls {
        let method = call["method"].as_str().unwrap_or_default();
        inner.note(method, headers);
        let (own, transport): (Vec<Fault>, Vec<Fault>) = inner.faults(method).into_iter().partition(Fault::is_per_call);
        for fault in transport {
            if let Some(response) = transport_fault(fault).await {
                return response;
            }
        }
        per_call.push(own.into_iter().next());
    }
    if let Some(secret) = &inner.jwt
        && let Err(text) = check_jwt(secret, headers)
    {
        return reply(401, text.as_bytes().to_vec(), "text/plain");
    }
    if is_batch && calls.len() > inner.batch_limit.load(Ordering::SeqCst) {
        let error = json!([{"jsonrpc": "2.0", "id": null, "error": {"code": -32600, "message": "batch too large"}}]);
        return reply(200, error.to_string().into_bytes(), "application/json");
    }

    let mut answers = Vec::new();
    for (call, fault) in calls.iter().zip(per_call) {
        let method = call["method"].as_str().unwrap_or_default();
        let result = match fault {
            Some(Fault::LeaveOut) => continue,
            Some(Fault::Error(code, message)) => Err((code, message)),
            _ => inner.answer(handler, method, params_of(call)),
        };
        answers.push(match result {
            Ok(result) => json!({"jsonrpc": "2.0", "id": call["id"], "result": result}),
            Err((code, message)) => {
                json!({"jsonrpc": "2.0", "id": call["id"], "error": {"code": code, "message": message}})
            }
        });
    }
    let body = if is_batch {
        Value::Array(answers).to_string()
    } else {
        answers.first().map_or_else(String::new, Value::to_string)
    };
    reply(200, body.into_bytes(), "application/json")
}

fn params_of(call: &Value) -> &[Value] {
    call["params"].as_array().map_or(&[], Vec::as_slice)
}

/// Acts out `fault`; returns a response if that replaces the answer.
async fn transport_fault(fault: Fault) -> Option<Response> {
    match fault {
        Fault::Hang => std::future::pending().await,
        Fault::Drop => Some(dropped()),
        Fault::Status(status, text) => Some(reply(status, text.into_bytes(), "text/plain")),
        Fault::Error(..) | Fault::LeaveOut => None,
    }
}

/// A response whose body fails before its first byte: the connection is closed.
fn dropped() -> Response {
    let broken = futures::stream::once(async { Err::<Bytes, _>(std::io::Error::other("dropped by the test")) });
    Response::new(Body::from_stream(broken))
}

fn reply(status: u16, body: Vec<u8>, content_type: &'static str) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response.headers_mut().insert("content-type", HeaderValue::from_static(content_type));
    response
}

/// The real node's four refusals, word for word.
fn check_jwt(secret: &[u8], headers: &HeaderMap) -> Result<(), &'static str> {
    #[derive(serde::Deserialize)]
    struct Claims {
        iat: u64,
    }
    let Some(token) =
        headers.get("authorization").and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer "))
    else {
        return Err("missing token");
    };
    let mut rules = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::HS256);
    rules.required_spec_claims.clear();
    rules.validate_exp = false;
    let key = jsonwebtoken::DecodingKey::from_secret(secret);
    let Ok(token) = jsonwebtoken::decode::<Claims>(token, &key, &rules) else {
        return Err("signature is invalid");
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    if token.claims.iat + 60 < now {
        return Err("stale token");
    }
    if token.claims.iat > now + 60 {
        return Err("future token");
    }
    Ok(())
}
