//! The integration tests, in one binary so that they are linked once. A module a subject; `support` is what they share.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod adapters_recorded;
mod architecture;
mod cli;
mod devnet;
mod docs;
mod kill_points;
mod main_job;
mod process;
mod recorded_support;
mod recover;
mod scenario_index;
mod store_flow;
mod support;
