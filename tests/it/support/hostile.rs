//! A JSON-RPC proxy before a real server that gives answers of its own, of any size: its
//! texts are sent as they are and never parsed here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::response::Response;
use serde_json::Value;

use super::servers;

/// What is put in place of an answer: the JSON text of a result, for a method and its parameters.
type Answer = dyn Fn(&str, &Value) -> Option<Bytes> + Send + Sync;

struct Inner {
    behind: String,
    answer: Box<Answer>,
    hostile: AtomicBool,
    hits: AtomicUsize,
    client: reqwest::Client,
}

/// The server. Honest until [`Hostile::strike`].
pub struct Hostile {
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    inner: Arc<Inner>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Hostile {
    /// A proxy for `behind`. If `answer` gives a result, it replaces the server's.
    pub fn before(behind: String, answer: impl Fn(&str, &Value) -> Option<Bytes> + Send + Sync + 'static) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        listener.set_nonblocking(true).expect("a listener for tokio");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let inner = Arc::new(Inner {
            behind,
            answer: Box::new(answer),
            hostile: AtomicBool::new(false),
            hits: AtomicUsize::new(0),
            client: reqwest::Client::builder().no_proxy().build().expect("a client"),
        });
        let served = Arc::clone(&inner);
        let app = axum::Router::new().fallback(move |request: Request| {
            let inner = Arc::clone(&served);
            async move { inner.serve(request).await }
        });
        let task = servers().spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener for tokio");
            let _ = axum::serve(listener, app).await;
        });
        Self { url, inner, task }
    }

    /// From now on it is hostile.
    pub fn strike(&self) {
        self.inner.hostile.store(true, Ordering::SeqCst);
    }

    /// How many requests met a hostile answer.
    pub fn hits(&self) -> usize {
        self.inner.hits.load(Ordering::SeqCst)
    }
}

impl Inner {
    async fn serve(&self, request: Request) -> Response {
        let body = to_bytes(request.into_body(), usize::MAX).await.unwrap_or_default();
        if self.hostile.load(Ordering::SeqCst)
            && let Some(parts) = self.own(&body).await
        {
            self.hits.fetch_add(1, Ordering::SeqCst);
            let parts = parts.into_iter().map(Ok::<_, std::io::Error>);
            return Response::new(Body::from_stream(futures::stream::iter(parts)));
        }
        Response::new(Body::from(self.ask(body).await))
    }

    async fn ask(&self, body: Bytes) -> Bytes {
        let request = self.client.post(&self.behind).header("content-type", "application/json").body(body);
        match request.send().await {
            Ok(reply) => reply.bytes().await.unwrap_or_default(),
            Err(_) => Bytes::new(),
        }
    }

    /// The whole answer in parts, if one of the calls is given an answer of ours.
    async fn own(&self, body: &Bytes) -> Option<Vec<Bytes>> {
        let asked: Value = serde_json::from_slice(body).ok()?;
        let (calls, batch) = match asked {
            Value::Array(calls) => (calls, true),
            one => (vec![one], false),
        };
        let answers: Vec<Option<Bytes>> =
            calls.iter().map(|call| (self.answer)(call["method"].as_str().unwrap_or(""), &call["params"])).collect();
        if answers.iter().all(Option::is_none) {
            return None;
        }
        let mut parts = vec![Bytes::from_static(if batch { b"[" } else { b"" })];
        for (place, (call, answer)) in calls.iter().zip(answers).enumerate() {
            let comma = if place == 0 { "" } else { "," };
            match answer {
                Some(result) => {
                    parts.push(format!(r#"{comma}{{"jsonrpc":"2.0","id":{},"result":"#, call["id"]).into());
                    parts.push(result);
                    parts.push(Bytes::from_static(b"}"));
                }
                None => {
                    parts.push(comma.into());
                    parts.push(self.ask(call.to_string().into()).await);
                }
            }
        }
        parts.push(Bytes::from_static(if batch { b"]" } else { b"" }));
        Some(parts)
    }
}
