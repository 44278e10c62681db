//! The integration tests, in one binary so that they are linked once. A module a subject; `support` is what they share.
//!
//! The whole flows stand in `beside_geth` and once more in `beside_reth`: the same sources, beside either execution client.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod adapters_recorded;
mod ahead_flow;
mod architecture;
mod audit_flow;
mod beside_geth;
mod beside_reth;
mod blobs_flow;
mod citations;
mod cli;
mod contradiction;
mod deploy;
mod devnet;
mod docs;
mod finality_flow;
mod finality_sweep;
mod follow_flow;
mod forged_flow;
mod inspect;
mod l1_flow;
mod main_job;
mod narrow_flow;
mod network_flow;
mod process;
mod recorded_flow;
mod recorded_support;
mod recordings;
mod scenario_index;
mod second_client;
mod stall_log;
mod status;
mod support;
mod swap_flow;
mod vectors;
