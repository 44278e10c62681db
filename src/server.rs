//! The HTTP API: health, readiness, status, metrics, and op-node's `optimism_syncStatus`. Read only.
//!
//! Decided here: how the worker's [`Status`] is shown, and to which clients. Nothing can be changed through it: there is no
//! admin route. There is no authentication either, so it listens on loopback unless an operator says otherwise, and a
//! web page that a browser on the same machine shows must not read it under a name of its own (DNS rebinding): the
//! `Host` header must be a loopback name or the address that is listened on (K5). Not decided here: what the
//! figures mean.
//!
//! Every request is bounded: body, time, number of connections, and how long a connection lives.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::uri::Authority;
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::decide::stall::{Reason, Stall};
use crate::flow::Status;
use crate::flow::follow::FollowStatus;
use crate::redact::cut_urls;
use crate::types::{B256, Identity, L1Header, L1Number, L1Ref, L2Place, L2Ref, SyncStatus};

/// Longest body of a request. A call of `optimism_syncStatus` takes 80 bytes.
const MAX_BODY: usize = 64 * 1024;

/// Most calls in one JSON-RPC batch: all of them ask for the same thing.
const MAX_BATCH: usize = 16;

/// Most connections at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 64;

/// Time limits.
#[derive(Clone, Copy)]
struct Limits {
    /// One request, its body included. An answer is made from memory.
    request: Duration,
    /// The life of a connection. Bounds what the request's limit cannot: a head that never ends, a client that never reads.
    connection: Duration,
}

/// A connection outlives the usual scrape interval of 15 s, so that it can be used again.
const LIMITS: Limits = Limits { request: Duration::from_secs(5), connection: Duration::from_secs(60) };

/// Time left to requests under way when the program stops (P4: 10 s for everything).
const GRACE: Duration = Duration::from_secs(1);

/// The content type of what [`prometheus_client`] writes.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the server says of this process beside its status: a worker that follows it checks this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Its networks.
    pub identity: Identity,
    /// A random mark, another one at each start, by which a worker notices that it follows itself.
    pub instance: B256,
}

/// What every route is given.
#[derive(Clone)]
struct Shared {
    status: watch::Receiver<Status>,
    about: Option<Arc<About>>,
}

/// Serves on `listener` until `cancel` is cancelled; requests under way get a second more. Without `about` the networks
/// are not told, and no worker can follow this one.
pub async fn serve(
    listener: TcpListener,
    status: watch::Receiver<Status>,
    about: Option<About>,
    cancel: CancellationToken,
) {
    serve_within(LIMITS, listener, Shared { status, about: about.map(Arc::new) }, cancel).await;
}

async fn serve_within(limits: Limits, listener: TcpListener, shared: Shared, cancel: CancellationToken) {
    let listen = match listener.local_addr() {
        Ok(listen) => listen,
        Err(error) => {
            warn!(code = "server", "the status server cannot start: {error}");
            return;
        }
    };
    if !listen.ip().is_loopback() {
        info!(%listen, "anyone who can reach this address can read status and metrics: there is no authentication");
    }
    let gate = Gate { inner: listener, room: Arc::new(Semaphore::new(MAX_CONNECTIONS)), life: limits.connection };
    let app = router(listen, limits.request, shared);
    let served = axum::serve(gate, app).with_graceful_shutdown(cancel.clone().cancelled_owned());
    let patience = async {
        cancel.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        ended = served => {
            if let Err(error) = ended {
                warn!(code = "server", "the status server ended: {error}");
            }
        }
        () = patience => {}
    }
}

fn router(listen: SocketAddr, limit: Duration, shared: Shared) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/status", get(show_status))
        .route("/metrics", get(metrics))
        .route("/", post(json_rpc))
        .with_state(shared)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(limit, in_time))
        .layer(middleware::from_fn_with_state(listen, known_host))
}

async fn in_time(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => (StatusCode::REQUEST_TIMEOUT, "the request took too long\n").into_response(),
    }
}

/// Lets a request through whose host, in the header and in the request line, is ours.
async fn known_host(State(listen): State<SocketAddr>, request: Request, next: Next) -> Response {
    let headers = request.headers().get_all(header::HOST).iter();
    let named: Option<Vec<Authority>> = headers.map(|value| value.to_str().ok()?.parse().ok()).collect();
    let from_uri = request.uri().authority().cloned();
    let hosts: Vec<Authority> = named.unwrap_or_default().into_iter().chain(from_uri).collect();
    if hosts.is_empty() || !hosts.iter().all(|host| is_ours(host, listen)) {
        return (StatusCode::FORBIDDEN, "this host name is not served\n").into_response();
    }
    next.run(request).await
}

/// A loopback name or address, or the listening address. If it listens on all addresses, any address: the attack that this
/// check is for needs a name.
fn is_ours(host: &Authority, listen: SocketAddr) -> bool {
    if host.as_str().contains('@') {
        return false;
    }
    let name = host.host();
    let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
    match bare.parse::<IpAddr>() {
        Ok(ip) => ip.is_loopback() || ip == listen.ip() || listen.ip().is_unspecified(),
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    }
}

/// One reason for not being ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct NotReady {
    code: &'static str,
    detail: String,
}

/// Why the worker is not ready; empty when it is.
fn not_ready(status: &Status, alive: bool) -> Vec<NotReady> {
    let mut reasons = Vec::new();
    let mut because = |code: &'static str, detail: String| reasons.push(NotReady { code, detail });
    if !alive {
        because("worker_ended", "the worker's loop has ended".to_owned());
    }
    if let Some(stall) = &status.stall {
        because(stall.reason().code(), detail_of(stall));
    } else if status.polls == 0 {
        because("starting", "no poll has ended yet".to_owned());
    } else if !is_caught_up(status) {
        let show = |number: Option<L1Number>| number.map_or("none".to_owned(), |n| n.to_string());
        let (read, confirmed) = (show(status.l1_cursor), show(status.l1_confirmed));
        because("catching_up", format!("read up to L1 block {read}, confirmed is {confirmed}"));
    }
    let stalled_on_it = status.stall.as_ref().is_some_and(|stall| stall.reason() == Reason::ReactorsDegraded);
    if status.reactors_degraded && !stalled_on_it {
        because(Reason::ReactorsDegraded.code(), "a resume of the reactors failed and is tried again".to_owned());
    }
    reasons
}

/// A follower has caught up when no safe head of the source is waited for: without one it is stalled.
fn is_caught_up(status: &Status) -> bool {
    if status.follow.is_some() {
        return true;
    }
    matches!((status.l1_cursor, status.l1_confirmed), (Some(read), Some(confirmed)) if read >= confirmed)
}

/// What a stall is about, in one line, without credentials (P10).
fn detail_of(stall: &Stall) -> String {
    match stall.batch {
        Some(index) => cut_urls(&format!("batch {index}: {}", stall.cause)).into_owned(),
        None => cut_urls(&stall.detail()).into_owned(),
    }
}

/// The status as it is now, and whether the worker still runs.
fn snapshot(receiver: &watch::Receiver<Status>) -> (Status, bool) {
    let alive = receiver.has_changed().is_ok();
    (receiver.borrow().clone(), alive)
}

async fn readyz(State(shared): State<Shared>) -> Response {
    let (status, alive) = snapshot(&shared.status);
    let reasons = not_ready(&status, alive);
    let code = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(json!({ "ready": reasons.is_empty(), "reasons": reasons }))).into_response()
}

async fn show_status(State(shared): State<Shared>) -> Response {
    #[derive(Serialize)]
    struct Reply {
        version: &'static str,
        ready: bool,
        not_ready: Vec<NotReady>,
        #[serde(flatten)]
        status: Status,
    }
    let (status, alive) = snapshot(&shared.status);
    let not_ready = not_ready(&status, alive);
    let reply = Reply { version: env!("CARGO_PKG_VERSION"), ready: not_ready.is_empty(), not_ready, status };
    let Ok(mut reply) = serde_json::to_value(reply) else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    // The stall's text quotes servers: it goes out without credentials (P10).
    if let Some(Value::String(detail)) = reply.pointer_mut("/stall/detail") {
        *detail = cut_urls(detail).into_owned();
    }
    Json(reply).into_response()
}

async fn metrics(State(shared): State<Shared>) -> Response {
    let (status, alive) = snapshot(&shared.status);
    let mut body = String::new();
    match text::encode(&mut body, &registry(&status, alive)) {
        Ok(()) => ([(header::CONTENT_TYPE, OPEN_METRICS)], body).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// A gauge. No sample if the value is unknown, because zero is a value.
fn gauge(registry: &mut Registry, name: &str, help: &str, value: Option<u64>) {
    if let Some(value) = value {
        registry.register(name, help, ConstGauge::new(value));
    }
}

fn switch(registry: &mut Registry, name: &str, help: &str, on: bool) {
    gauge(registry, name, help, Some(u64::from(on)));
}

/// A counter; `_total` is appended to its name.
fn counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    registry.register(name, help, ConstCounter::new(value));
}

/// All figures of one moment: a scrape reads one snapshot, not a mixture.
fn registry(status: &Status, alive: bool) -> Registry {
    let mut registry = Registry::default();
    morph_metrics(registry.sub_registry_with_prefix("morphnode_derivation"), status);
    own_metrics(registry.sub_registry_with_prefix("morph_deriver"), status, alive);
    registry
}

/// The metric names of Morph's own node, as far as their meaning is known and the worker has the figure.
///
/// Left out: `rollup_l2_height`, `latest_batch_index`, `finalized_advance_total` (not in the status),
/// `local_verify_triggered_total` (depends on the mode), and the count of failed beacon requests by endpoint.
fn morph_metrics(registry: &mut Registry, status: &Status) {
    let height = |block: Option<L2Ref>| block.map(|block| block.number.get());
    let diverges = status.stall.as_ref().is_some_and(|stall| stall.reason().is_divergence());
    gauge(registry, "l1_sync_height", "L1 block up to which was read", status.l1_cursor.map(L1Number::get));
    gauge(registry, "derive_l2_height", "Last block of the last verified batch", height(status.safe));
    gauge(registry, "safe_l2_block_number", "Safe head", height(status.safe));
    gauge(registry, "finalized_l2_block_number", "Finalized head", height(status.finalized));
    gauge(registry, "synced_batch_index", "Last verified batch", status.last_batch.map(|index| index.get()));
    switch(registry, "batch_root_exception", "1 while a batch contradicts the local chain", diverges);
    counter(registry, "safe_advance", "Times safe moved over a verified batch", status.verified);
    counter(registry, "l1_reorg_reset", "L1 reorgs dealt with", status.reorgs);
    // Always zero: `decide::heads::tag_plan` sets no finalized tag above safe. Ours may lie above it after the node lost
    // blocks; the tag then waits. The name is kept for existing dashboards.
    counter(registry, "tag_invariant_violation", "Times finalized <= safe <= head failed for our heads", 0);
}

fn own_metrics(registry: &mut Registry, status: &Status, alive: bool) {
    let height = |block: Option<L2Ref>| block.map(|block| block.number.get());
    registry.register("build", "Version of the program", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
    gauge(registry, "l1_cursor", "L1 block up to which was read", status.l1_cursor.map(L1Number::get));
    gauge(registry, "l1_confirmed", "Newest settled L1 block", status.l1_confirmed.map(L1Number::get));
    gauge(registry, "l1_finalized", "Newest finalized L1 block", status.l1_finalized.map(L1Number::get));
    gauge(registry, "l2_head", "Local head at the last poll", height(status.l2_head));
    gauge(registry, "l2_safe", "Our safe head", height(status.safe));
    gauge(registry, "l2_finalized", "Our finalized head", height(status.finalized));
    gauge(registry, "node_safe", "The node's safe tag", height(status.node_safe));
    gauge(registry, "node_finalized", "The node's finalized tag", height(status.node_finalized));
    gauge(registry, "last_batch", "Last verified batch", status.last_batch.map(|index| index.get()));
    counter(registry, "polls", "Polls since the start", status.polls);
    counter(registry, "batches_verified", "Batches verified since the start", status.verified);
    counter(registry, "encoder_drift", "Batches with other bytes under equal content", status.encoder_drift);
    counter(registry, "l1_reorgs", "L1 reorgs dealt with", status.reorgs);
    counter(registry, "batches_reverted", "RevertBatch logs dealt with", status.reverted);
    counter(registry, "blocks_written", "Blocks written to the node", status.blocks_written);
    counter(registry, "reactor_pauses", "Pauses of the reactors", status.pauses);
    switch(registry, "reactors_degraded", "1 while a resume failed and is tried again", status.reactors_degraded);
    let left = status.pause_left_over;
    switch(registry, "pause_left_over", "1 if an earlier run left the reactors paused and this one has none", left);
    switch(registry, "tags_contended", "1 while another writer sets the node's tags", status.tags_contended);
    let beyond = status.safe_beyond_verified;
    switch(registry, "safe_beyond_verified", "1 while the node's safe lies above what we verified", beyond);
    let held = status.held_by_node_finalized;
    switch(registry, "held_by_node_finalized", "1 while our tags wait for the node's finalized", held);
    let uncommitted = status.uncommitted_finalized;
    let help = "1 while L1 has reverted a batch that is finalized here and not committed to it again";
    switch(registry, "uncommitted_finalized", help, uncommitted);
    let settled = status.settled_to.map(L1Number::get);
    gauge(registry, "settled_to", "L1 block up to which every revert and proof is known", settled);
    switch(
        registry,
        "finality_held",
        "1 while finalized waits, for instance for reverts to be read",
        status.finality_held.is_some(),
    );
    let marks = status.el_marks_finalized;
    let contradicted = status.l1_finality_contradicted;
    let help = "1 while L1's finalized block and the recorded commits contradict each other";
    switch(registry, "l1_finality_contradicted", help, contradicted);
    let help = "When the newest batch was committed, in seconds since 1970; time() minus this is its age";
    gauge(registry, "last_commit_at", help, status.last_commit_at);
    switch(registry, "el_marks_finalized", "1 if the node marks written blocks finalized by itself", marks);
    let warned = status.execution_client.as_ref().is_some_and(|client| client.warning().is_some());
    let help = "1 beside an execution client that may not be able to repair the chain, or that changes blocks";
    switch(registry, "execution_client_warned", help, warned);
    switch(registry, "ready", "1 while caught up and without a stall", not_ready(status, alive).is_empty());
    let stalls = Family::<[(&'static str, &'static str); 1], Gauge>::default();
    let now = status.stall.as_ref().map(Stall::reason);
    for reason in Reason::ALL {
        stalls.get_or_create(&[("reason", reason.code())]).set(i64::from(now == Some(*reason)));
    }
    registry.register("stall", "1 for the reason of the present stall, 0 for all others", stalls);
    if let Some(follow) = &status.follow {
        follow_metrics(registry, follow);
    }
}

/// Figures of following another node; there are none while batches are derived from L1.
fn follow_metrics(registry: &mut Registry, follow: &FollowStatus) {
    let height = |block: Option<L2Ref>| block.map(|block| block.number.get());
    switch(registry, "follow_gate_open", "1 after the execution node's first sync", follow.gate_open);
    let held = Some(follow.gate_held_seconds);
    gauge(registry, "follow_gate_held_seconds", "How long following was held for the first sync", held);
    gauge(registry, "follow_source_safe", "The source's safe head", height(follow.source_safe));
    gauge(registry, "follow_source_finalized", "The source's finalized head", height(follow.source_finalized));
    let current = follow.source_current_l1.map(|block| block.number.get());
    gauge(registry, "follow_source_current_l1", "L1 block up to which the source has read", current);
    gauge(registry, "follow_target", "Safe head of the source that the node does not have yet", height(follow.target));
    gauge(registry, "follow_lag", "Blocks by which our safe head is behind the source's", follow.lag);
    gauge(registry, "follow_latency_ms", "Time that the last round over the sources took", follow.latency_ms);
    let without = Some(u64::from(follow.without_reply));
    gauge(registry, "follow_without_reply", "Polls in a row in which nothing was taken over", without);
    switch(registry, "follow_alarm", "1 while nothing was taken over for too many polls", follow.alarm);
    let cases = Family::<[(&'static str, &'static str); 1], Counter>::default();
    for (case, count) in &follow.cases {
        cases.get_or_create(&[("case", case)]).inc_by(*count);
    }
    registry.register("follow_cases", "Replies that L1 confirmed, by how they lie to the local chain", cases);
    let dropped = Family::<[(&'static str, &'static str); 1], Counter>::default();
    for (reason, count) in &follow.dropped {
        dropped.get_or_create(&[("reason", reason)]).inc_by(*count);
    }
    registry.register("follow_dropped", "Replies that were not taken over, by reason", dropped);
}

async fn json_rpc(State(shared): State<Shared>, body: Bytes) -> Response {
    let reply = match serde_json::from_slice::<Value>(&body) {
        Err(_) => rpc_error(&Value::Null, -32_700, "parse error"),
        Ok(Value::Array(calls)) if calls.is_empty() => rpc_error(&Value::Null, -32_600, "empty batch"),
        Ok(Value::Array(calls)) if calls.len() > MAX_BATCH => rpc_error(&Value::Null, -32_600, "batch too large"),
        Ok(Value::Array(calls)) => calls.iter().map(|call| answer(&shared, call)).collect(),
        Ok(call) => answer(&shared, &call),
    };
    Json(reply).into_response()
}

fn rpc_error(id: &Value, code: i64, message: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": message } })
}

fn answer(shared: &Shared, call: &Value) -> Value {
    let id = call.get("id").unwrap_or(&Value::Null);
    match call.get("method").and_then(Value::as_str) {
        Some("optimism_syncStatus") => {
            let status = shared.status.borrow().sync;
            json!({ "jsonrpc": "2.0", "id": id, "result": sync_status(&status, shared.about.as_deref()) })
        }
        Some(_) => rpc_error(id, -32_601, "the method does not exist"),
        None => rpc_error(id, -32_600, "not a request"),
    }
}

/// op-node's `optimism_syncStatus`, all of one moment. A block that is not known is all zero, as op-node shows it. What
/// op-node's clients do not know stands under a key of our own, which they pass over.
fn sync_status(status: &SyncStatus, about: Option<&About>) -> Value {
    let l1 = |block: Option<L1Header>| {
        let (number, time) = block.map_or((0, 0), |block| (block.number.get(), block.timestamp));
        let (hash, parent) = block.map_or_else(Default::default, |block| (block.hash, block.parent_hash));
        json!({ "hash": hash, "number": number, "parentHash": parent, "timestamp": time })
    };
    let l2 = |place: Option<L2Place>| {
        let none = L2Place {
            block: L2Ref::default(),
            parent_hash: B256::zero(),
            timestamp: 0,
            origin: L1Ref { number: L1Number::new(0), hash: B256::zero() },
            sequence: 0,
        };
        let L2Place { block, parent_hash, timestamp, origin, sequence } = place.unwrap_or(none);
        json!({
            "hash": block.hash,
            "number": block.number.get(),
            "parentHash": parent_hash,
            "timestamp": timestamp,
            "l1origin": { "hash": origin.hash, "number": origin.number.get() },
            "sequenceNumber": sequence,
        })
    };
    let SyncStatus { current_l1, head_l1, safe_l1, finalized_l1, unsafe_l2, safe_l2, finalized_l2 } = *status;
    let mut reply = json!({
        "current_l1": l1(current_l1),
        "current_l1_finalized": l1(finalized_l1),
        "head_l1": l1(head_l1),
        "safe_l1": l1(safe_l1),
        "finalized_l1": l1(finalized_l1),
        "unsafe_l2": l2(unsafe_l2),
        "safe_l2": l2(safe_l2),
        "finalized_l2": l2(finalized_l2),
        "pending_safe_l2": l2(safe_l2),
        "cross_unsafe_l2": l2(unsafe_l2),
        "local_safe_l2": l2(safe_l2),
    });
    if let (Some(about), Some(reply)) = (about, reply.as_object_mut()) {
        let Identity { l1_chain_id, l2_chain_id, l2_genesis, .. } = &about.identity;
        let own = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "instance": about.instance,
            "l1_chain_id": l1_chain_id,
            "l2_chain_id": l2_chain_id,
            "l2_genesis": l2_genesis,
        });
        reply.insert("morph_deriver".to_owned(), own);
    }
    reply
}

/// A listener that holds a bounded number of connections, each for a bounded time.
struct Gate {
    inner: TcpListener,
    room: Arc<Semaphore>,
    life: Duration,
}

impl axum::serve::Listener for Gate {
    type Io = Held;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Held, SocketAddr) {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&self.room).acquire_owned().await else { return std::future::pending().await };
        let (stream, from) = axum::serve::Listener::accept(&mut self.inner).await;
        (Held { stream, end: Box::pin(tokio::time::sleep(self.life)), _permit: permit }, from)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// A connection that holds one of the few permits until its time is over.
struct Held {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl Held {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Held {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Held {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::decide::stall::{Cause, Gap};
    use crate::error::{PortError, PortErrorKind, Target};
    use crate::types::{BatchIndex, L2Number};

    struct Face {
        address: SocketAddr,
        status: watch::Sender<Status>,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    async fn face(status: Status) -> Face {
        face_within(LIMITS, status).await
    }

    async fn face_within(limits: Limits, status: Status) -> Face {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, receiver) = watch::channel(status);
        let stop = CancellationToken::new();
        let about = Some(Arc::new(About { identity: network(), instance: B256::repeat_byte(7) }));
        let shared = Shared { status: receiver, about };
        let task = tokio::spawn(serve_within(limits, listener, shared, stop.clone()));
        Face { address, status: sender, stop, task }
    }

    impl Face {
        async fn get(&self, path: &str) -> (u16, String) {
            let client = reqwest::Client::builder().no_proxy().build().unwrap();
            let reply = client.get(format!("http://{}{path}", self.address)).send().await.unwrap();
            (reply.status().as_u16(), reply.text().await.unwrap())
        }

        async fn json(&self, path: &str) -> (u16, Value) {
            let (code, text) = self.get(path).await;
            (code, serde_json::from_str(&text).unwrap())
        }

        async fn call(&self, body: &str) -> Value {
            let client = reqwest::Client::builder().no_proxy().build().unwrap();
            let reply = client.post(format!("http://{}/", self.address)).body(body.to_owned()).send().await.unwrap();
            reply.json().await.unwrap()
        }

        /// Sends `head` as it is and gives the status line.
        async fn raw(&self, head: &str) -> String {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut reply = [0; 64];
            let read = stream.read(&mut reply).await.unwrap();
            String::from_utf8_lossy(&reply[..read]).lines().next().unwrap_or_default().to_owned()
        }
    }

    fn block(number: u64) -> Option<L2Ref> {
        Some(L2Ref { number: L2Number::new(number), hash: B256::from_low_u64_be(number) })
    }

    fn settled() -> Status {
        Status {
            l1_cursor: Some(L1Number::new(90)),
            l1_confirmed: Some(L1Number::new(90)),
            l1_finalized: Some(L1Number::new(70)),
            l2_head: block(30),
            safe: block(20),
            finalized: block(10),
            last_batch: Some(BatchIndex::new(4)),
            verified: 3,
            reorgs: 2,
            pauses: 5,
            polls: 7,
            ..Status::default()
        }
    }

    fn codes(status: &Status, alive: bool) -> Vec<&'static str> {
        not_ready(status, alive).iter().map(|reason| reason.code).collect()
    }

    #[test]
    fn readiness_names_every_reason() {
        let table: Vec<(Status, bool, &[&str])> = vec![
            (settled(), true, &[]),
            (settled(), false, &["worker_ended"]),
            (Status::default(), true, &["starting"]),
            (Status { l1_cursor: Some(L1Number::new(89)), ..settled() }, true, &["catching_up"]),
            (Status { l1_cursor: None, ..settled() }, true, &["catching_up"]),
            (Status { reactors_degraded: true, ..settled() }, true, &["reactors_degraded"]),
            (Status { stall: Some(Stall::new(Cause::Gap(Gap::RevertOfGone))), ..settled() }, true, &["gap"]),
            (
                Status { stall: Some(Stall::new(Cause::NotResumed)), reactors_degraded: true, ..settled() },
                true,
                &["reactors_degraded"],
            ),
            (
                Status { stall: Some(Stall::new(Cause::Gap(Gap::RevertOfGone))), reactors_degraded: true, ..settled() },
                false,
                &["worker_ended", "gap", "reactors_degraded"],
            ),
        ];
        for (status, alive, expected) in table {
            assert_eq!(codes(&status, alive), expected, "{status:?}");
        }
    }

    #[tokio::test]
    async fn p9_health_readiness_and_status_follow_the_worker() {
        let face = face(settled()).await;
        assert_eq!(face.get("/healthz").await.0, 200);
        assert_eq!(face.json("/readyz").await, (200, json!({ "ready": true, "reasons": [] })));
        let cause = Cause::StateRoot { number: 60.into(), expected: B256::zero(), actual: B256::repeat_byte(1) };
        let detail = format!("batch 5: {cause}");
        let stall = Stall::at(BatchIndex::new(5), cause);
        face.status.send_replace(Status { stall: Some(stall), ..settled() });
        let (code, ready) = face.json("/readyz").await;
        assert_eq!((code, &ready["ready"]), (503, &json!(false)));
        assert_eq!(ready["reasons"][0], json!({ "code": "state_root", "detail": detail }));
        assert_eq!(face.get("/healthz").await.0, 200, "a stalled process is alive");
        let (code, shown) = face.json("/status").await;
        assert_eq!((code, &shown["stall"]["reason"], &shown["verified"]), (200, &json!("state_root"), &json!(3)));
        assert_eq!(shown["safe"]["number"], 20);
        assert_eq!(shown["ready"], false);
    }

    #[tokio::test]
    async fn a_worker_that_ended_is_not_ready() {
        let Face { address, status, stop, task } = face(settled()).await;
        let (rest, _) = watch::channel(settled());
        drop(status);
        let face = Face { address, status: rest, stop, task };
        let (code, ready) = face.json("/readyz").await;
        assert_eq!((code, &ready["reasons"][0]["code"]), (503, &json!("worker_ended")));
    }

    #[tokio::test]
    async fn p9_metrics_carry_morphs_names_and_one_stall_gauge_a_reason() {
        let stall = Stall::new(Cause::Port(PortError::new(Target::Beacon, PortErrorKind::Pruned, "slot 7")));
        let face = face(Status { stall: Some(stall), node_safe: None, ..settled() }).await;
        let (code, text) = face.get("/metrics").await;
        assert_eq!(code, 200);
        let lines: Vec<&str> = text.lines().collect();
        for line in [
            "morphnode_derivation_l1_sync_height 90",
            "morphnode_derivation_derive_l2_height 20",
            "morphnode_derivation_safe_l2_block_number 20",
            "morphnode_derivation_finalized_l2_block_number 10",
            "morphnode_derivation_synced_batch_index 4",
            "morphnode_derivation_batch_root_exception 0",
            "morphnode_derivation_safe_advance_total 3",
            "morphnode_derivation_l1_reorg_reset_total 2",
            "morph_deriver_l2_head 30",
            "morph_deriver_polls_total 7",
            "morph_deriver_reactor_pauses_total 5",
            "morph_deriver_ready 0",
            "morph_deriver_stall{reason=\"blob_pruned\"} 1",
            "# EOF",
        ] {
            assert!(lines.contains(&line), "{line} is not in\n{text}");
        }
        for reason in Reason::ALL.iter().filter(|reason| **reason != Reason::BlobPruned) {
            let line = format!("morph_deriver_stall{{reason=\"{}\"}} 0", reason.code());
            assert!(lines.contains(&line.as_str()), "{line}");
        }
        assert!(!text.contains("morph_deriver_node_safe"), "what is not known has no sample");
    }

    /// Each figure of the status but the verdict and the chosen finality has a metric of its own, which moves with it.
    #[tokio::test]
    async fn c12_p9_every_figure_of_the_status_moves_a_metric() {
        type Set = fn(&mut Status);
        let at = Some(L2Ref { number: L2Number::new(77), hash: B256::zero() });
        let moved: &[(&str, &str, Set)] = &[
            ("l1_cursor", "l1_cursor 77", |s| s.l1_cursor = Some(L1Number::new(77))),
            ("l1_confirmed", "l1_confirmed 77", |s| s.l1_confirmed = Some(L1Number::new(77))),
            ("l1_finalized", "l1_finalized 77", |s| s.l1_finalized = Some(L1Number::new(77))),
            ("l2_head", "l2_head 77", |s| s.l2_head = s.node_safe),
            ("safe", "l2_safe 77", |s| s.safe = s.node_safe),
            ("finalized", "l2_finalized 77", |s| s.finalized = s.node_safe),
            ("node_safe", "node_safe 77", |_| ()),
            ("node_finalized", "node_finalized 77", |s| s.node_finalized = s.node_safe),
            ("last_batch", "last_batch 77", |s| s.last_batch = Some(BatchIndex::new(77))),
            ("stall", "stall{reason=\"gap\"} 1", |s| s.stall = Some(Stall::new(Cause::Gap(Gap::RevertOfGone)))),
            ("verified", "batches_verified_total 77", |s| s.verified = 77),
            ("encoder_drift", "encoder_drift_total 77", |s| s.encoder_drift = 77),
            ("reorgs", "l1_reorgs_total 77", |s| s.reorgs = 77),
            ("reverted", "batches_reverted_total 77", |s| s.reverted = 77),
            ("blocks_written", "blocks_written_total 77", |s| s.blocks_written = 77),
            ("pauses", "reactor_pauses_total 77", |s| s.pauses = 77),
            ("reactors_degraded", "reactors_degraded 1", |s| s.reactors_degraded = true),
            ("pause_left_over", "pause_left_over 1", |s| s.pause_left_over = true),
            ("tags_contended", "tags_contended 1", |s| s.tags_contended = true),
            ("safe_beyond_verified", "safe_beyond_verified 1", |s| s.safe_beyond_verified = true),
            ("held_by_node_finalized", "held_by_node_finalized 1", |s| s.held_by_node_finalized = true),
            ("el_marks_finalized", "el_marks_finalized 1", |s| s.el_marks_finalized = true),
            ("execution_client", "execution_client_warned 1", |s| {
                s.execution_client = Some(crate::decide::client::Client::of("morph-reth/v0.2.0"));
            }),
            ("settled_to", "settled_to 77", |s| s.settled_to = Some(L1Number::new(77))),
            ("finality_held", "finality_held 1", |s| s.finality_held = Some(crate::decide::finality::Held::Unknown)),
            ("uncommitted_finalized", "uncommitted_finalized 1", |s| s.uncommitted_finalized = true),
            ("l1_finality_contradicted", "l1_finality_contradicted 1", |s| s.l1_finality_contradicted = true),
            ("last_commit_at", "last_commit_at 77", |s| s.last_commit_at = Some(77)),
            ("polls", "polls_total 77", |s| s.polls = 77),
        ];
        let face = face(Status::default()).await;
        let before = face.get("/metrics").await.1;
        for (field, line, set) in moved {
            let mut status = Status { node_safe: at, ..Status::default() };
            set(&mut status);
            face.status.send_replace(status);
            let line = format!("\nmorph_deriver_{line}\n");
            assert!(!before.contains(&line), "{field}: shown already");
            let after = face.get("/metrics").await.1;
            assert!(after.contains(&line), "{field}: {line} is not in\n{after}");
        }
        let shown = serde_json::to_value(Status::default()).unwrap();
        let texts = ["verdict", "finality"];
        for field in shown.as_object().unwrap().keys().filter(|field| !texts.contains(&field.as_str())) {
            assert!(moved.iter().any(|(name, ..)| name == field), "{field} has no metric");
        }
    }

    #[tokio::test]
    async fn i4_c12_p9_every_figure_of_following_is_shown() {
        let at = |number: u64| Some(L2Ref { number: number.into(), hash: B256::zero() });
        let follow = FollowStatus {
            gate_open: true,
            gate_held_seconds: 71,
            cases: [("same", 72)].into(),
            dropped: [("cited_differs", 73)].into(),
            without_reply: 74,
            alarm: true,
            source_safe: at(75),
            source_finalized: at(76),
            source_current_l1: Some(L1Ref { number: 77.into(), hash: B256::zero() }),
            target: at(78),
            lag: Some(79),
            latency_ms: Some(80),
            ..FollowStatus::default()
        };
        let face = face(Status { polls: 1, follow: Some(follow), ..Status::default() }).await;
        let text = face.get("/metrics").await.1;
        for line in [
            "gate_open 1",
            "gate_held_seconds 71",
            "cases_total{case=\"same\"} 72",
            "dropped_total{reason=\"cited_differs\"} 73",
            "without_reply 74",
            "alarm 1",
            "source_safe 75",
            "source_finalized 76",
            "source_current_l1 77",
            "target 78",
            "lag 79",
            "latency_ms 80",
        ] {
            assert!(text.contains(&format!("\nmorph_deriver_follow_{line}\n")), "{line} is not in\n{text}");
        }
        assert_eq!(face.get("/readyz").await.0, 200);
        assert_eq!(face.json("/status").await.1["follow"]["source_current_l1"]["number"], 77);
        let stall = Some(Stall::new(Cause::SourceDropped(crate::decide::follow::Dropped::Itself)));
        face.status.send_modify(|status| status.stall = stall);
        assert_eq!(face.json("/readyz").await.1["reasons"][0]["code"], "source_refused");
    }

    #[tokio::test]
    async fn divergence_shows_in_morphs_gauge() {
        let (expected, actual) = (B256::zero(), B256::repeat_byte(1));
        let stall = Stall::new(Cause::WithdrawalRoot { number: 60.into(), expected, actual });
        let face = face(Status { stall: Some(stall), ..settled() }).await;
        assert!(face.get("/metrics").await.1.contains("\nmorphnode_derivation_batch_root_exception 1\n"));
    }

    fn network() -> Identity {
        Identity {
            l1_chain_id: 1,
            l2_chain_id: 2818,
            rollup: Default::default(),
            queue: Default::default(),
            l2_genesis: B256::repeat_byte(3),
        }
    }

    /// `eth.L1BlockRef` of op-node: every field must be there.
    #[derive(Debug, PartialEq, Eq, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(non_snake_case)]
    struct OpL1 {
        hash: B256,
        number: u64,
        parentHash: B256,
        timestamp: u64,
    }

    /// `eth.BlockID` of op-node.
    #[derive(Debug, PartialEq, Eq, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct OpId {
        hash: B256,
        number: u64,
    }

    /// `eth.L2BlockRef` of op-node.
    #[derive(Debug, PartialEq, Eq, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(non_snake_case)]
    struct OpL2 {
        hash: B256,
        number: u64,
        parentHash: B256,
        timestamp: u64,
        l1origin: OpId,
        sequenceNumber: u64,
    }

    /// `eth.SyncStatus` of op-node. It passes over what it does not know.
    #[derive(serde::Deserialize)]
    struct OpStatus {
        current_l1: OpL1,
        current_l1_finalized: OpL1,
        head_l1: OpL1,
        safe_l1: OpL1,
        finalized_l1: OpL1,
        unsafe_l2: OpL2,
        safe_l2: OpL2,
        finalized_l2: OpL2,
        pending_safe_l2: OpL2,
        cross_unsafe_l2: OpL2,
        local_safe_l2: OpL2,
    }

    #[tokio::test]
    async fn i12_sync_status_is_read_by_op_nodes_own_types() {
        let l1 = |number: u64| L1Header {
            number: number.into(),
            hash: B256::from_low_u64_be(1_000 + number),
            parent_hash: B256::from_low_u64_be(999 + number),
            timestamp: 12 * number,
        };
        let l2 = |number: u64, origin: u64| L2Place {
            block: L2Ref { number: number.into(), hash: B256::from_low_u64_be(number) },
            parent_hash: B256::from_low_u64_be(number - 1),
            timestamp: 3 * number,
            origin: l1(origin).l1_ref(),
            sequence: number % 10,
        };
        let sync = SyncStatus {
            current_l1: Some(l1(90)),
            head_l1: Some(l1(95)),
            safe_l1: Some(l1(80)),
            finalized_l1: Some(l1(70)),
            unsafe_l2: Some(l2(35, 88)),
            safe_l2: Some(l2(24, 88)),
            finalized_l2: Some(l2(12, 60)),
        };
        let face = face(Status { sync, ..settled() }).await;
        let call = r#"{"jsonrpc":"2.0","id":9,"method":"optimism_syncStatus","params":[]}"#;
        let reply = face.call(call).await;
        assert_eq!(reply["id"], 9);
        let read: OpStatus = serde_json::from_value(reply["result"].clone()).unwrap();
        let as_l1 = |L1Header { number, hash, parent_hash, timestamp }| OpL1 {
            hash,
            number: L1Number::get(number),
            parentHash: parent_hash,
            timestamp,
        };
        let as_l2 = |place: L2Place| OpL2 {
            hash: place.block.hash,
            number: place.block.number.get(),
            parentHash: place.parent_hash,
            timestamp: place.timestamp,
            l1origin: OpId { hash: place.origin.hash, number: place.origin.number.get() },
            sequenceNumber: place.sequence,
        };
        assert_eq!((read.current_l1, read.head_l1), (as_l1(l1(90)), as_l1(l1(95))));
        assert_eq!((read.safe_l1, read.finalized_l1), (as_l1(l1(80)), as_l1(l1(70))));
        assert_eq!(read.current_l1_finalized, as_l1(l1(70)));
        assert_eq!((read.unsafe_l2, read.cross_unsafe_l2), (as_l2(l2(35, 88)), as_l2(l2(35, 88))));
        for safe in [read.safe_l2, read.pending_safe_l2, read.local_safe_l2] {
            assert_eq!(safe, as_l2(l2(24, 88)));
        }
        assert_eq!(read.finalized_l2, as_l2(l2(12, 60)));
        let own = &reply["result"]["morph_deriver"];
        assert_eq!((&own["l1_chain_id"], &own["l2_chain_id"]), (&json!(1), &json!(2818)));
        assert_eq!(
            (&own["l2_genesis"], &own["instance"]),
            (&json!(B256::repeat_byte(3)), &json!(B256::repeat_byte(7)))
        );
        // What is not known is zero, as op-node shows it, and still has every field.
        face.status.send_replace(Status::default());
        let read: OpStatus = serde_json::from_value(face.call(call).await["result"].clone()).unwrap();
        assert_eq!((read.current_l1.number, read.safe_l2.hash, read.safe_l2.l1origin.number), (0, B256::zero(), 0));
    }

    #[tokio::test]
    async fn json_rpc_answers_one_call_or_a_small_batch() {
        let face = face(settled()).await;
        let batch =
            r#"[{"jsonrpc":"2.0","id":1,"method":"optimism_syncStatus"},{"jsonrpc":"2.0","id":2,"method":"x"}]"#;
        let replies = face.call(batch).await;
        assert_eq!(replies[0]["result"]["safe_l2"]["number"], 0);
        assert_eq!(replies[1]["error"]["code"], -32_601);
        assert_eq!(face.call("{").await["error"]["code"], -32_700);
        let many = format!("[{}]", vec!["{}"; MAX_BATCH + 1].join(","));
        assert_eq!(face.call(&many).await["error"]["code"], -32_600);
    }

    #[test]
    fn k5_hosts() {
        let local = SocketAddr::from(([127, 0, 0, 1], 9545));
        let lan = SocketAddr::from(([10, 0, 0, 5], 9545));
        let all = SocketAddr::from(([0, 0, 0, 0], 9545));
        let table = [
            ("localhost:9545", local, true),
            ("LocalHost", local, true),
            ("127.0.0.1", local, true),
            ("127.9.9.9:1", local, true),
            ("[::1]:9545", local, true),
            ("10.0.0.5:9545", local, false),
            ("10.0.0.5:9545", lan, true),
            ("10.0.0.6", lan, false),
            ("10.0.0.6", all, true),
            ("evil.example", all, false),
            ("evil.example:9545", local, false),
            ("localhost.evil.example", local, false),
            ("user@localhost", local, false),
        ];
        for (host, listen, expected) in table {
            assert_eq!(is_ours(&host.parse().unwrap(), listen), expected, "{host} on {listen}");
        }
    }

    #[tokio::test]
    async fn k5_foreign_hosts_large_bodies_and_other_methods_are_refused() {
        let face = face(settled()).await;
        let table = [
            ("GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n", "200"),
            ("GET /status HTTP/1.1\r\nHost: evil.example\r\n\r\n", "403"),
            ("GET /status HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", "403"),
            ("GET http://evil.example/status HTTP/1.1\r\nHost: localhost\r\n\r\n", "403"),
            ("GET /status HTTP/1.0\r\n\r\n", "403"),
            ("GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", "403"),
            ("POST /status HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", "405"),
            ("GET /admin HTTP/1.1\r\nHost: localhost\r\n\r\n", "404"),
        ];
        for (head, expected) in table {
            let line = face.raw(head).await;
            assert!(line.contains(expected), "{head:?}: {line}");
        }
        let body = "x".repeat(MAX_BODY + 1);
        let line =
            face.raw(&format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 65537\r\n\r\n{body}")).await;
        assert!(line.contains("413"), "{line}");
    }

    #[tokio::test]
    async fn k5_a_slow_request_costs_its_limit_and_no_more() {
        let limits = Limits { request: Duration::from_millis(100), connection: Duration::from_millis(400) };
        let face = face_within(limits, settled()).await;
        let body = face.raw("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{");
        let line = tokio::time::timeout(Duration::from_secs(5), body).await.unwrap();
        assert!(line.contains("408"), "{line}");
        let head = face.raw("GET /status HTTP/1.1\r\nHost: loc");
        let line = tokio::time::timeout(Duration::from_secs(5), head).await.unwrap();
        assert_eq!(line, "", "the connection is closed without an answer");
    }

    #[tokio::test]
    async fn p10_no_credential_is_shown() {
        let detail = "cannot reach https://user:canary@h.example/canary?k=canary";
        let error = PortError::new(Target::L1, PortErrorKind::Unreachable, detail);
        let face = face(Status { stall: Some(Stall::new(Cause::Port(error))), ..settled() }).await;
        for path in ["/status", "/readyz", "/metrics"] {
            let (_, text) = face.get(path).await;
            assert!(!text.contains("canary"), "{path}: {text}");
        }
        assert!(face.get("/status").await.1.contains("h.example"));
    }

    #[tokio::test]
    async fn p4_it_ends_on_shutdown_also_with_a_request_under_way() {
        let face = face(settled()).await;
        let mut stream = TcpStream::connect(face.address).await.unwrap();
        stream.write_all(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n").await.unwrap();
        assert_eq!(face.get("/healthz").await.0, 200);
        face.stop.cancel();
        tokio::time::timeout(GRACE + Duration::from_secs(2), face.task).await.unwrap().unwrap();
    }
}
