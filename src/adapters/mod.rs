//! The ports over the network, processes and SQLite.
//!
//! Decided here: how a question is asked, which endpoint gets it, for how long, and whether the answer is valid
//! (shape, size, own hash). Not decided here: what an answer means for the chain; no adapter compares L1 with L2.

pub mod beacon;
pub mod engine;
pub mod fixture;
pub mod forkchoice;
pub mod head_source;
#[cfg(debug_assertions)]
pub mod kill_points;
pub mod l1;
pub mod l2;
pub mod reactors;
pub mod record;
pub mod replay;
pub mod rpc;
pub mod store;
pub mod width;
pub mod wire;

#[cfg(test)]
pub(crate) mod testing;
