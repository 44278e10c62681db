//! Bytes ↔ values: everything that the Morph batch protocol writes down, read and written here.
//!
//! Pure: no async, no clock, no log, no environment, no node. Every byte that comes in is hostile (P7): lengths are
//! checked before they are used, nothing is allocated on a claim, and what does not parse is an error that says what
//! and where, never a panic. What a value *means* is decided in `decide/`.
//!
//! The errors of this room have no severity of their own: the same malformed transaction is a passing fault when a
//! node's JSON held it and a poisoned batch when L1 did. Whoever handed the bytes in says which.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions))]

pub mod aggregate;
pub mod batch;
pub mod blob;
pub mod block;
pub mod calldata;
pub mod event;
#[allow(unsafe_code, reason = "the only door to the compressor that build.rs compiles from C")]
mod exact;
mod field;
pub mod frame;
pub mod header;
pub mod hex_text;
pub mod json;
mod kzg;
pub mod payload;
pub mod rlp;
#[cfg(test)]
pub mod testing;
pub mod transaction;
