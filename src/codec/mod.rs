//! codec (room header to be written).

pub mod blob;
#[allow(unsafe_code, reason = "the only door to the compressor that build.rs compiles from C")]
mod exact;
pub mod frame;
