//! What is wrong with a configuration.

/// Configuration that cannot be used. Never holds a URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {reason}")]
    File {
        /// Its path.
        path: String,
        /// Why not.
        reason: String,
    },
    /// A key or environment name that does not exist.
    #[error("unknown setting {name} in {source_name}{hint}")]
    Unknown {
        /// As it was written.
        name: String,
        /// Where it was written.
        source_name: String,
        /// A similar name: ` (did you mean …?)`, or empty.
        hint: String,
    },
    /// A value that the setting does not accept.
    #[error("{key} (from {source_name}): {reason}")]
    Value {
        /// The setting.
        key: &'static str,
        /// The layer that set it.
        source_name: String,
        /// What it must be.
        reason: String,
    },
    /// Settings that exclude each other.
    #[error("{0}")]
    Conflict(String),
    /// Settings that the command needs and that are unset.
    #[error("not configured: {}", .0.join("; "))]
    Missing(Vec<String>),
}
