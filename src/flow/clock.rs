//! The wall clock, for what people read: when a pause began, when a block was written, how old L1's newest block is.

/// Seconds since the Unix epoch; zero on a clock set before it.
pub(crate) fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
