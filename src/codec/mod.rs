//! codec (room header to be written).

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

pub mod blob;
#[allow(unsafe_code, reason = "the only door to the compressor that build.rs compiles from C")]
mod exact;
pub mod frame;
