//! The one place where a call is repeated.

use std::future::Future;
use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff;
use tokio::time::Instant;

use crate::error::PortError;
use crate::ports::PortResult;

/// At most this many rounds over the endpoints in one call.
const ROUNDS: u32 = 3;

/// A round in which no endpoint gave what was asked.
pub(super) struct Failed {
    /// What is reported.
    pub(super) error: PortError,
    /// Time until an endpoint is asked again.
    pub(super) wait: Duration,
}

/// The one place where a call is repeated: transport faults only, at most [`ROUNDS`] times and `retry_for` long, with
/// a jittered pause that reaches at least to the end of the earliest cool-down.
pub(super) async fn retry<T, F, Fut>(retry_for: Duration, mut round: F) -> PortResult<T>
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use serde_json::json;

    use super::*;
    use crate::adapters::rpc::{Pool, PoolConfig};
    use crate::adapters::testing::{config, http, reply, rpc};
    use crate::error::{PortErrorKind, Target};

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
}
