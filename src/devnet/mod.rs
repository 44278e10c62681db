//! A whole network in one process: a simulated L1 with both contracts, a beacon node, a sequencer, and the Morph
//! execution node that the worker watches over, all served over real HTTP on loopback.
//!
//! Decided here: how those parties behave, as they were recorded (protocol.md, sections 1 to 7), and how a test bends
//! them. The execution node imitates the real one with its unkind ways, not a tidier one. Not here: anything that the
//! worker itself needs, and anything that verifies.
//!
//! - [`node`]: the execution node, a state machine without I/O, of [`block`]s; [`oracle`] gives it recorded results. It
//!   imitates one of two [`client`]s.
//! - [`embedded`]: the same node behind the ports, for `replay`.
//! - [`l1`], [`beacon`]: the chain above it; [`chain`]: sequencer and batcher; [`world`]: all of them together.
//! - [`serve`]: HTTP, tokens, faults, counters, and the [`Devnet`] handle that tests and the `devnet` command hold.
//!
//! Everything is deterministic from a seed and from the order of calls; time is simulated.

pub mod beacon;
pub mod block;
pub mod chain;
pub mod client;
pub mod embedded;
pub mod faults;
pub mod headers;
pub mod jsonrpc;
pub mod l1;
pub mod node;
mod node_rpc;
pub mod oracle;
mod reth;
pub mod serve;
pub mod signing;
pub mod world;

pub use serve::{Devnet, DevnetOptions};
