//! Small servers for the adapters' tests: real HTTP on loopback, every exchange recorded.

use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::response::Response;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::rpc::{Check, Pool, PoolConfig};
use super::wire;
use crate::error::Target;
use crate::types::B256;

/// One HTTP request as a test server saw it.
#[derive(Clone, Debug)]
pub(crate) struct Hit {
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    pub(crate) body: Value,
}

impl Hit {
    /// The JSON-RPC requests in it.
    pub(crate) fn calls(&self) -> Vec<Value> {
        match &self.body {
            Value::Array(calls) => calls.clone(),
            Value::Null => Vec::new(),
            one => vec![one.clone()],
        }
    }
}

/// A server that runs until the test ends.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) url: String,
    hits: Arc<Mutex<Vec<Hit>>>,
}

impl Server {
    pub(crate) fn hits(&self) -> Vec<Hit> {
        self.hits.lock().unwrap().clone()
    }

    /// The JSON-RPC requests of all exchanges, in order.
    pub(crate) fn calls(&self) -> Vec<Value> {
        self.hits().iter().flat_map(Hit::calls).collect()
    }

    pub(crate) fn calls_of(&self, method: &str) -> Vec<Value> {
        self.calls().into_iter().filter(|call| call["method"] == method).collect()
    }
}

/// Serves `answer`: the request gives a status, extra headers and a body.
pub(crate) async fn http<F, Fut>(answer: F) -> Server
where
    F: Fn(Hit) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = (u16, Vec<(&'static str, String)>, String)> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let hits: Arc<Mutex<Vec<Hit>>> = Arc::default();
    let kept = hits.clone();
    let app = Router::new().fallback(move |request: Request| {
        let (kept, answer) = (kept.clone(), answer.clone());
        async move {
            let path = request.uri().to_string();
            let authorization =
                request.headers().get("authorization").and_then(|value| value.to_str().ok()).map(str::to_owned);
            let body = to_bytes(request.into_body(), usize::MAX).await.unwrap_or_default();
            let hit = Hit { path, authorization, body: serde_json::from_slice(&body).unwrap_or(Value::Null) };
            kept.lock().unwrap().push(hit.clone());
            let (status, headers, body) = answer(hit).await;
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            response.body(Body::from(body)).unwrap()
        }
    });
    tokio::spawn(async move { axum::serve(listener, app).await });
    Server { url, hits }
}

/// What a JSON-RPC method gives: a result, or an error's code and message.
pub(crate) type Answer = Result<Value, (i64, &'static str)>;

/// Serves JSON-RPC, single and in batches.
pub(crate) async fn rpc(answer: impl Fn(&str, &Value) -> Answer + Clone + Send + Sync + 'static) -> Server {
    http(move |hit| {
        let answer = answer.clone();
        async move {
            let one = |call: &Value| reply(call, answer(call["method"].as_str().unwrap_or(""), &call["params"]));
            let body = match &hit.body {
                Value::Array(calls) => Value::Array(calls.iter().map(one).collect()),
                call => one(call),
            };
            (200, Vec::new(), body.to_string())
        }
    })
    .await
}

/// The JSON-RPC reply to `call`.
pub(crate) fn reply(call: &Value, answer: Answer) -> Value {
    match answer {
        Ok(result) => json!({"jsonrpc": "2.0", "id": call["id"], "result": result}),
        Err((code, message)) => {
            json!({"jsonrpc": "2.0", "id": call["id"], "error": {"code": code, "message": message}})
        }
    }
}

/// Accepts connections and never answers.
pub(crate) async fn black_hole() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            held.push(socket);
        }
    });
    url
}

/// An address on which nothing listens.
pub(crate) async fn dead() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// Everything that this thread logs while it lives, down to `trace`.
pub(crate) struct Log {
    text: Arc<Mutex<Vec<u8>>>,
    _guard: tracing::subscriber::DefaultGuard,
}

impl Log {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap()).into_owned()
    }
}

/// Captures the log of this thread: for tests on one thread.
pub(crate) fn captured_log() -> Log {
    struct Writer(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Writer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    // A second subscriber that listens to nothing: while there is one alone, an event that another thread logs first is
    // switched off for all of them.
    static SILENT: OnceLock<tracing::Dispatch> = OnceLock::new();
    SILENT.get_or_init(|| tracing::Dispatch::new(tracing_subscriber::registry()));
    let text: Arc<Mutex<Vec<u8>>> = Arc::default();
    let kept = text.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || Writer(kept.clone()))
        .with_ansi(false)
        .finish();
    Log { text, _guard: tracing::subscriber::set_default(subscriber) }
}

/// Short deadlines, no repeats.
pub(crate) fn config() -> PoolConfig {
    PoolConfig {
        connect_timeout: Duration::from_millis(200),
        call_timeout: Duration::from_millis(1500),
        max_body: 32 * 1024 * 1024,
        max_batch: 100,
        cool_down: Duration::from_millis(300),
        cool_down_cap: Duration::from_millis(600),
        ask_again: Duration::from_secs(5),
        retry_for: Duration::ZERO,
        check: Check::None,
    }
}

pub(crate) fn pool(target: Target, urls: &[&str]) -> Pool {
    let urls: Vec<String> = urls.iter().map(|url| (*url).to_owned()).collect();
    Pool::new(target, &urls, config()).unwrap()
}

/// The quantity under `key` of a JSON object.
pub(crate) fn field_quantity(object: &Value, key: &str) -> Option<u64> {
    wire::quantity(object.get(key)?.as_str()?)
}

/// The hash under `key` of a JSON object.
pub(crate) fn field_hash(object: &Value, key: &str) -> Option<B256> {
    wire::hash(object.get(key)?.as_str()?)
}
