//! `morph-deriver` proves, batch by batch, that an L2 node of the Morph rollup holds the chain that L1 committed to,
//! and repairs it if it does not.
//!
//! Imports have one direction: a room imports only rooms to its left (a test checks this):
//!
//! ```text
//! types, error ← codec ← decide ← ports ← { adapters | flow | devnet } ← commands ← main
//! ```
//!
//! Also here: `redact` (what may be shown of a URL or of a server's text), `config` (the settings), `telemetry` (the log),
//! `server` (status, health and metrics) and `devnet` (a simulated network, for tests and for trying out).
//!
//! Promises, cited where they are kept and where tests try to break them:
//!
//! - **P1** Safe moves only over a batch whose event, calldata, blobs, L1 messages, block contents, state root and
//!   withdrawal root were all checked against canonical L1. "Could not look" is never "differs", nor "equal".
//! - **P2** finalized ≤ safe ≤ L2 head whenever a reader of the node looks; finalized never moves back.
//! - **P3** Nothing is skipped silently: every CommitBatch and RevertBatch log ends in one stored outcome.
//! - **P4** When a passing fault ends, progress resumes by itself. Every wait has a deadline; SIGTERM to exit ≤ 10 s.
//! - **P5** No block is written outside a pause of the reactors; every pause ends exactly once, in a resume, which is
//!   repeated while a call may still land.
//! - **P6** kill -9 at any point, then a restart: the same final state as without.
//! - **P7** No byte from outside can panic the program, overflow it, or make it allocate beyond a fixed bound.
//! - **P8** An L1 reorg inside the recorded window heals itself; a deeper one is an explicit halt.
//! - **P9** Every stall has one reason code, in the status, in a metric and in the log.
//! - **P10** No credential appears in a log, metric, error or status reply.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod adapters;
pub mod codec;
pub mod commands;
pub mod config;
pub mod decide;
pub mod devnet;
pub mod error;
pub mod flow;
pub mod ports;
pub mod redact;
pub mod server;
pub mod telemetry;
pub mod types;
