//! What a server's words mean: errors are sorted by their text before their code, because servers agree on neither, but on
//! the texts more often.

use crate::error::{PortError, PortErrorKind, Target};

/// What a JSON-RPC error is called; none for a refusal. Texts come before codes: servers agree on neither, but on the texts
/// more often.
/// The engine's errors are kept as they are (except for an unknown method): each means a block that was not taken.
pub(super) fn classify(target: Target, code: i64, message: &str) -> Option<PortErrorKind> {
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

pub(super) fn speaks_of_ranges(text: &str) -> bool {
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

pub(super) fn speaks_of_pruning(text: &str) -> bool {
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

pub(super) fn speaks_of_batches(message: &str) -> bool {
    message.to_ascii_lowercase().contains("batch")
}

pub(super) fn is_response_too_large(error: &PortError) -> bool {
    error.kind == PortErrorKind::RangeTooWide && error.detail.contains("response too large")
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
