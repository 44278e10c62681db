//! One HTTP endpoint: exchanges with a deadline and a bounded body.
//!
//! Decided here: what a fault of the transport and an HTTP status are called, and by what name an endpoint goes: host and
//! port; everything else of its URL is struck out wherever it occurs (P10). Every exchange has a deadline (connect, and
//! total including the body), so no call can hang (P4). Not decided here: whether it is asked again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::words::{speaks_of_pruning, speaks_of_ranges};
use crate::error::{PortError, PortErrorKind, Target};
use crate::ports::PortResult;
use crate::redact::{self, scrub};

/// How much of an error page is read before it is shortened, in bytes.
pub(super) const ERROR_PAGE: usize = 64 * 1024;

/// Room that is made for a body by what the server says of its length, in bytes: that of a batch of blocks.
const RESERVED_MAX: usize = 1 << 20;

/// Signs requests. Asked once for every HTTP request, so that a token's time of issue is always fresh.
pub trait TokenSource: Send + Sync {
    /// The bearer token for the request that is about to be sent.
    fn token(&self) -> PortResult<SecretString>;
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

/// How long an exchange may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    /// Until there is a TCP and TLS connection.
    pub(super) connect: Duration,
    /// All of it, body included.
    pub(super) call: Duration,
}

/// One endpoint.
pub(super) struct Http {
    pub(super) target: Target,
    /// Host and port.
    pub(super) name: String,
    url: Url,
    secrets: Vec<String>,
    client: reqwest::Client,
    call_timeout: Duration,
    bearer: Option<Arc<dyn TokenSource>>,
    requests: AtomicU64,
}

impl Http {
    /// The endpoint at `text`, the URL at `place` of its list; with `bearer`, every request is signed.
    pub(super) fn new(
        target: Target,
        place: usize,
        text: &str,
        deadlines: Deadlines,
        bearer: Option<Arc<dyn TokenSource>>,
    ) -> PortResult<Self> {
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
            .connect_timeout(deadlines.connect)
            .timeout(deadlines.call)
            .redirect(reqwest::redirect::Policy::none())
            .pool_idle_timeout(Duration::from_secs(30))
            .tcp_nodelay(true)
            .user_agent(concat!("morph-deriver/", env!("CARGO_PKG_VERSION")));
        // A proxy of the environment (HTTP_PROXY) reads what is sent over plain HTTP: it must never see a bearer token,
        // nor carry the commands to the services beside us. L1 and beacon nodes may well be behind one.
        if bearer.is_some() || matches!(target, Target::Engine | Target::Reactors) || is_loopback(&url) {
            client = client.no_proxy();
        }
        let client = client.build().map_err(|_| bad("gives no HTTP client"))?;
        Ok(Self {
            target,
            name,
            secrets: redact::secrets_of(&url),
            url,
            client,
            call_timeout: deadlines.call,
            bearer,
            requests: AtomicU64::new(0),
        })
    }

    /// Requests sent so far.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// `GET path?query` below the endpoint's own path. Any HTTP status is an answer here; see
    /// [`Http::status_error`]. `RangeTooWide` when the body is longer than `max_body`.
    pub(super) async fn get(&self, path: &str, query: &[(&str, String)], max_body: usize) -> PortResult<HttpReply> {
        let mut url = self.url.clone();
        url.set_path(&format!("{}{path}", self.url.path().trim_end_matches('/')));
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let request = self.client.get(url).header("accept", "application/json");
        self.exchange(path, request, max_body).await
    }

    /// Posts JSON. `what` names the question in an error.
    pub(super) async fn post(&self, what: &str, body: Vec<u8>, max_body: usize) -> PortResult<HttpReply> {
        let request = self.client.post(self.url.clone()).header("content-type", "application/json").body(body);
        self.exchange(what, request, max_body).await
    }

    async fn exchange(&self, what: &str, request: reqwest::RequestBuilder, max_body: usize) -> PortResult<HttpReply> {
        let request = match &self.bearer {
            Some(bearer) => request.bearer_auth(bearer.token()?.expose_secret()),
            None => request,
        };
        self.requests.fetch_add(1, Ordering::Relaxed);
        let transport = |error: reqwest::Error| self.transport_error(what, error);
        let mut response = request.timeout(self.call_timeout).send().await.map_err(transport)?;
        let status = response.status().as_u16();
        let retry_after = response
            .headers()
            .get(reqwest::header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let success = response.status().is_success();
        let limit = if success { max_body } else { max_body.min(ERROR_PAGE) };
        // As long as the server says it is; a lie costs a megabyte for a moment.
        let said = response.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or_default();
        let mut body = BytesMut::with_capacity(said.min(limit).min(RESERVED_MAX));
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
            let detail = format!("{}: {what}: answer longer than {limit} bytes", self.name);
            return Err(PortError::new(self.target, PortErrorKind::RangeTooWide, detail));
        }
        Ok(HttpReply { status, retry_after, body: body.freeze() })
    }

    fn transport_error(&self, what: &str, error: reqwest::Error) -> PortError {
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
        let shown = self.show(&text);
        PortError::new(self.target, kind, format!("{}: {what}: {shown}", self.name))
    }

    /// The error for an HTTP status that is no success.
    pub(super) fn status_error(&self, what: &str, reply: &HttpReply) -> PortError {
        let text = String::from_utf8_lossy(reply.body.get(..ERROR_PAGE.min(reply.body.len())).unwrap_or_default());
        let kind = match reply.status {
            401 => PortErrorKind::Unauthorized,
            403 if speaks_of_pruning(&text.to_ascii_lowercase()) => PortErrorKind::Pruned,
            403 => PortErrorKind::Unauthorized,
            404 if self.target == Target::Beacon => PortErrorKind::NotFound,
            404 | 405 | 410 | 501 => PortErrorKind::Unsupported,
            413 => PortErrorKind::RangeTooWide,
            400 | 422 | 500 if speaks_of_ranges(&text.to_ascii_lowercase()) => PortErrorKind::RangeTooWide,
            408 => PortErrorKind::Timeout,
            429 => PortErrorKind::RateLimited { retry_after: reply.retry_after },
            500..=599 => PortErrorKind::Unreachable,
            300..=399 => PortErrorKind::Malformed,
            code => PortErrorKind::Refused { code: i64::from(code), message: self.words(&text) },
        };
        let hint = if (300..400).contains(&reply.status) { " (redirects are not followed)" } else { "" };
        let shown = self.show(&text);
        let detail = format!("{}: {what}: HTTP {}{hint} {shown}", self.name, reply.status);
        PortError::new(self.target, kind, detail.trim_end())
    }

    /// A server's text, made fit to be shown: secrets struck out, one line, short.
    pub(super) fn show(&self, text: &str) -> String {
        scrub(text, &self.secrets)
    }

    /// A server's text, to be judged: as [`Self::show`], but long enough to keep its end.
    pub(super) fn words(&self, text: &str) -> String {
        redact::scrub_to(text, &self.secrets, redact::WORDS)
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

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::adapters::rpc::{Check, Pool, PoolConfig};
    use crate::adapters::testing::{self, black_hole, config, dead, http, pool, rpc};
    use crate::redact::SHOWN;

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
}
