//! Errors, and how bad they are.
//!
//! A verdict is a value and never an error: an error means "could not decide". Every error answers its own
//! [`Severity`] by an exhaustive match; only `flow/worker.rs` acts on it.

use std::fmt;
use std::time::Duration;

/// What an error asks of the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Try again with back-off: the fault is expected to pass.
    Temporary,
    /// The L1 chain changed meanwhile: rewind the cursor and read again.
    Reset,
    /// Stop advancing, keep watching and serving status, say why.
    Halt,
}

/// The party that a port talks to, as logs and metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// L1 execution endpoint.
    L1,
    /// L1 beacon endpoint.
    Beacon,
    /// L2 `eth_*` endpoint.
    L2,
    /// L2 engine endpoint.
    Engine,
    /// The consensus node's reactors.
    Reactors,
    /// Another node whose heads are followed.
    Source,
    /// The database.
    Store,
    /// A recorded fixture.
    Fixture,
}

impl Target {
    /// Lower-case name for labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::L1 => "l1",
            Self::Beacon => "beacon",
            Self::L2 => "l2",
            Self::Engine => "engine",
            Self::Reactors => "reactors",
            Self::Source => "source",
            Self::Store => "store",
            Self::Fixture => "fixture",
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a port could not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortErrorKind {
    /// No connection, connection lost, HTTP 5xx.
    Unreachable,
    /// The call's deadline passed.
    Timeout,
    /// HTTP 429 or a provider's quota error.
    RateLimited {
        /// The wait that the server asked for, if any.
        retry_after: Option<Duration>,
    },
    /// HTTP 401 or 403.
    Unauthorized,
    /// The server has no such method or route.
    Unsupported,
    /// The range or the answer is larger than the server allows.
    RangeTooWide,
    /// The server no longer (or does not) keep what was asked for: pruned state, pruned blobs.
    Pruned,
    /// The server does not have it: null in place of a value, 404.
    NotFound,
    /// The server answered with a JSON-RPC error that is none of the above.
    Refused {
        /// JSON-RPC error code.
        code: i64,
        /// The server's own words, shortened and without secrets. They decide what a refusal means.
        message: String,
    },
    /// The answer breaks the protocol: bad JSON, wrong shape, wrong hash, too long.
    Malformed,
    /// The endpoint belongs to another network than the configured one.
    WrongNetwork,
    /// The database cannot be read or written: full disk, I/O error, corrupt page.
    Storage,
    /// The database belongs to another chain, program version or process.
    StoreRefused,
}

impl PortErrorKind {
    /// Short machine-readable name of the kind, for metrics and reason codes.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::RateLimited { .. } => "rate_limited",
            Self::Unauthorized => "unauthorized",
            Self::Unsupported => "unsupported",
            Self::RangeTooWide => "range_too_wide",
            Self::Pruned => "pruned",
            Self::NotFound => "not_found",
            Self::Refused { .. } => "refused",
            Self::Malformed => "malformed",
            Self::WrongNetwork => "wrong_network",
            Self::Storage => "storage",
            Self::StoreRefused => "store_refused",
        }
    }
}

/// A port's failure: the party, the kind, and a text for people.
///
/// The text never holds a URL, a token or a header (P10); an endpoint is named by its host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{target}: {detail}")]
pub struct PortError {
    /// The party that failed.
    pub target: Target,
    /// The kind of failure.
    pub kind: PortErrorKind,
    /// For people: what was asked, of which host, what came back (shortened).
    pub detail: String,
}

impl PortError {
    /// A failure of `target`.
    pub fn new(target: Target, kind: PortErrorKind, detail: impl Into<String>) -> Self {
        Self { target, kind, detail: detail.into() }
    }

    /// A malformed answer of `target`.
    pub fn malformed(target: Target, detail: impl Into<String>) -> Self {
        Self::new(target, PortErrorKind::Malformed, detail)
    }

    /// What the worker is to do about it.
    pub const fn severity(&self) -> Severity {
        match self.kind {
            PortErrorKind::Unreachable
            | PortErrorKind::Timeout
            | PortErrorKind::RateLimited { .. }
            | PortErrorKind::Unauthorized
            | PortErrorKind::Unsupported
            | PortErrorKind::RangeTooWide
            | PortErrorKind::Pruned
            | PortErrorKind::NotFound
            | PortErrorKind::Refused { .. }
            | PortErrorKind::Malformed
            | PortErrorKind::Storage => Severity::Temporary,
            PortErrorKind::WrongNetwork | PortErrorKind::StoreRefused => Severity::Halt,
        }
    }

    /// Whether the same call may succeed if it is repeated at once: a transport fault, not an answer.
    pub const fn is_transient(&self) -> bool {
        matches!(self.kind, PortErrorKind::Unreachable | PortErrorKind::Timeout | PortErrorKind::RateLimited { .. })
    }

    /// Short machine-readable name of the kind, for metrics and reason codes.
    pub const fn code(&self) -> &'static str {
        self.kind.code()
    }
}
