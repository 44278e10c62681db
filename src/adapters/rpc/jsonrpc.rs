//! JSON-RPC over one endpoint: requests alone and in batches, replies matched by id, and how large a batch may be.
//!
//! Decided here: which reply belongs to which request, and when a batch is asked for again in smaller ones. Not decided
//! here: which endpoint is asked, and what a result means.

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::http::{Http, HttpReply};
use super::words::{classify, is_response_too_large, speaks_of_batches};
use crate::adapters::width::Width;
use crate::adapters::wire;
use crate::error::{PortError, PortErrorKind, Target};
use crate::ports::PortResult;
use crate::redact::{SHOWN, tidy};

/// Most replies that are read of one batch, and so the most requests put into one.
const REPLIES_MAX: usize = 10_000;

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

/// The result of a question that may have none: none for null, and for the errors by which nodes say that there is no such
/// thing (E22).
pub fn found(reply: PortResult<Json>) -> PortResult<Option<Json>> {
    match reply {
        Ok(json) => Ok(Some(json).filter(|json| !json.is_null())),
        Err(error) if error.kind == PortErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What one HTTP exchange of several requests gave.
#[derive(Debug)]
pub enum Posted {
    /// A result for each request, in order.
    Replies(Vec<PortResult<Json>>),
    /// The server refused the batch as a whole, and executed nothing: ask in smaller ones.
    TooLarge(PortError),
}

/// Limits of one exchange.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Longest body accepted, in bytes after decompression.
    pub(super) max_body: usize,
    /// Most requests in one batch.
    pub(super) max_batch: usize,
}

/// One endpoint that speaks JSON-RPC.
pub(super) struct JsonRpc {
    pub(super) http: Http,
    limits: Limits,
    /// The next request's id; the endpoints of a pool share it.
    ids: Arc<AtomicU64>,
    /// Most requests that this endpoint takes in one batch, as far as known.
    batch_limit: Mutex<Width>,
}

impl JsonRpc {
    pub(super) fn new(http: Http, limits: Limits, ids: Arc<AtomicU64>) -> Self {
        Self { http, limits, ids, batch_limit: Mutex::new(Width::unlimited()) }
    }

    /// One request once.
    pub(super) async fn call(&self, call: Call) -> PortResult<Json> {
        let calls = [call];
        match self.post(&calls).await? {
            Posted::Replies(replies) => replies.into_iter().next().unwrap_or_else(|| {
                Err(PortError::malformed(self.http.target, format!("{}: no reply", self.http.name)))
            }),
            Posted::TooLarge(error) => Err(error),
        }
    }

    /// Requests in as few HTTP exchanges as the endpoint allows, one after another. A batch that is refused
    /// for its size is halved, and the endpoint's limit remembered; a reply that is refused for the size of the whole
    /// answer is asked for again in a smaller batch.
    ///
    /// All results together are held until the last one has arrived: if they are longer than one answer may be,
    /// `RangeTooWide`. Who asks for much at a time asks for less then (P7).
    pub(super) async fn batch(&self, calls: &[Call]) -> PortResult<Vec<PortResult<Json>>> {
        let mut results: Vec<Option<PortResult<Json>>> = Vec::new();
        results.resize_with(calls.len(), || None);
        let mut open: Vec<usize> = (0..calls.len()).rev().collect();
        let mut width = self.batch_limit();
        let mut held = 0_usize;
        while !open.is_empty() {
            let take = width.min(open.len());
            let places = open.split_off(open.len().saturating_sub(take));
            let asked: Vec<Call> = places.iter().rev().filter_map(|place| calls.get(*place).cloned()).collect();
            let replies = match self.post(&asked).await {
                Ok(Posted::Replies(replies)) => replies,
                Ok(Posted::TooLarge(_)) => {
                    open.extend(places);
                    width = self.learn_batch_limit(take);
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
            if held > self.limits.max_body {
                let what = calls.first().map_or("", |call| call.method.as_ref());
                let detail = format!("{}: {what}: {held} bytes of answers to {} requests", self.http.name, calls.len());
                return Err(PortError::new(self.http.target, PortErrorKind::RangeTooWide, detail));
            }
        }
        let missing = || Err(PortError::malformed(self.http.target, format!("{}: no reply", self.http.name)));
        Ok(results.into_iter().map(|result| result.unwrap_or_else(missing)).collect())
    }

    /// The most requests that the endpoint is sent in one batch.
    pub(super) fn batch_limit(&self) -> usize {
        let learnt = self.learnt().get();
        learnt.min(self.limits.max_batch).clamp(1, REPLIES_MAX)
    }

    /// Remembers that the endpoint refused a batch of `refused`; gives the new limit. It grows back with the batches
    /// that are taken: one odd answer is no lasting limit.
    pub(super) fn learn_batch_limit(&self, refused: usize) -> usize {
        self.learnt().refused(refused);
        (refused / 2).max(1)
    }

    fn learnt(&self) -> MutexGuard<'_, Width> {
        self.batch_limit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Exactly one HTTP exchange with `calls`: a plain request for one, a batch for more. Replies are matched by id.
    pub(super) async fn post(&self, calls: &[Call]) -> PortResult<Posted> {
        #[derive(Serialize)]
        struct Request<'a> {
            jsonrpc: &'static str,
            id: u64,
            method: &'a str,
            params: &'a Value,
        }
        let what = calls.first().map_or("", |call| call.method.as_ref());
        let count = u64::try_from(calls.len()).unwrap_or(u64::MAX);
        let first = self.ids.fetch_add(count, Ordering::Relaxed);
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
        .map_err(|error| PortError::malformed(self.http.target, error.to_string()))?;
        let reply = self.http.post(what, body, self.limits.max_body).await?;
        let posted = self.read_replies(calls, first, &reply)?;
        if matches!(posted, Posted::Replies(_)) {
            self.learnt().answered(calls.len());
        }
        Ok(posted)
    }

    fn read_replies(&self, calls: &[Call], first: u64, reply: &HttpReply) -> PortResult<Posted> {
        let what = calls.first().map_or("", |call| call.method.as_ref());
        let ok = (200..300).contains(&reply.status);
        if !ok && matches!(reply.status, 401 | 403 | 429) {
            return Err(self.http.status_error(what, reply));
        }
        let Some(replies) = parse_replies(&reply.body) else {
            if reply.status == 413 && calls.len() > 1 {
                return Ok(Posted::TooLarge(self.http.status_error(what, reply)));
            }
            if !ok {
                return Err(self.http.status_error(what, reply));
            }
            let start = String::from_utf8_lossy(reply.body.get(..SHOWN.min(reply.body.len())).unwrap_or_default());
            let detail = format!("{}: {what}: not a JSON-RPC reply: {}", self.http.name, self.http.show(&start));
            return Err(PortError::malformed(self.http.target, detail));
        };
        // One error for all: an object in place of an array, or an array of one.
        if calls.len() > 1
            && let [only] = replies.as_slice()
            && let Some(error) = &only.error
        {
            let failure = self.rpc_error(what, error);
            let for_the_batch = error.code == -32600 || error.code == -32700 || speaks_of_batches(&error.message);
            return if for_the_batch { Ok(Posted::TooLarge(failure)) } else { Err(failure) };
        }
        if !ok && replies.iter().all(|reply| reply.error.is_none()) {
            return Err(self.http.status_error(what, reply));
        }
        // A slice keeps the whole body in memory: not worth it if most of the body is no result.
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
            *slot = Some(self.one_result(call, one, slices.then_some(&reply.body)));
        }
        let unanswered = |(result, call): (Option<PortResult<Json>>, &Call)| {
            result.unwrap_or_else(|| {
                let detail = format!("{}: {}: no reply with its id", self.http.name, call.method);
                Err(PortError::malformed(self.http.target, detail))
            })
        };
        Ok(Posted::Replies(results.into_iter().zip(calls).map(unanswered).collect()))
    }

    fn one_result(&self, call: &Call, reply: &Reply<'_>, body: Option<&Bytes>) -> PortResult<Json> {
        if let Some(error) = &reply.error {
            return Err(self.rpc_error(&call.method, error));
        }
        let Some(result) = reply.result else {
            let detail = format!("{}: {}: neither result nor error", self.http.name, call.method);
            return Err(PortError::malformed(self.http.target, detail));
        };
        let what = Cow::Owned(format!("{}: {}", self.http.name, call.method));
        let text = result.get().as_bytes();
        let text = body.map_or_else(|| Bytes::copy_from_slice(text), |body| body.slice_ref(text));
        Ok(Json { text, target: self.http.target, what })
    }

    fn rpc_error(&self, what: &str, error: &RpcError<'_>) -> PortError {
        let shown = self.http.show(&error.message);
        let kind = match classify(self.http.target, error.code, &error.message) {
            Some(kind) => kind,
            None => PortErrorKind::Refused { code: error.code, message: self.http.words(&error.message) },
        };
        PortError::new(self.http.target, kind, format!("{}: {what}: {shown} ({})", self.http.name, error.code))
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

/// A `result` that is present, `null` included.
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use serde_json::json;

    use super::super::pool::{Pool, PoolConfig};
    use super::*;
    use crate::adapters::testing::{config, http, pool, reply, rpc};

    fn calls(n: u64) -> Vec<Call> {
        (0..n).map(|i| Call::new("echo", json!([i]))).collect()
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
    async fn d8_a_flood_of_replies_is_not_read() {
        let server = http(|_| async { (200, vec![], format!("[{}{{}}]", "{},".repeat(REPLIES_MAX))) }).await;
        let error = pool(Target::L1, &[&server.url]).batch(&calls(2)).await.unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Malformed);
    }
}
