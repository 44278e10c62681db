//! The integration tests, in one binary so that they are linked once. A module a subject; `support` is what they share.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod adapters_recorded;
mod architecture;
mod blobs_flow;
mod citations;
mod cli;
mod contract_flow;
mod contradiction;
mod devnet;
mod docs;
mod finality_flow;
mod inspect;
mod kill_points;
mod l1_flow;
mod main_job;
mod narrow_flow;
mod network_flow;
mod node_flow;
mod process;
mod quiesce_flow;
mod recorded_flow;
mod recorded_support;
mod recover;
mod reorg_flow;
mod review_flow;
mod roots_flow;
mod scenario_index;
mod stall_log;
mod status;
mod store_flow;
mod support;
mod swap_flow;
mod tags_flow;
mod vectors;
mod writer_flow;
