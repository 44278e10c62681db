//! The whole flows beside Morph's go-ethereum. The sources are the same beside either client, and the client is their one parameter; where a
//! client makes a test end otherwise, the test says how.

// Every file here but `state_missing.rs` stands in `beside_geth` and in `beside_reth`.
#![allow(clippy::duplicate_mod)]

use morph_deriver::devnet::client::Client;

/// The client that the local node of these tests imitates.
const CLIENT: Client = Client::Geth;

#[path = "contract_flow.rs"]
pub(crate) mod contract_flow;
#[path = "contradiction_devnet.rs"]
mod contradiction_devnet;
#[path = "interrupted_flow.rs"]
pub(crate) mod interrupted_flow;
#[path = "kill_points.rs"]
pub(crate) mod kill_points;
#[path = "node_flow.rs"]
pub(crate) mod node_flow;
#[path = "quiesce_flow.rs"]
pub(crate) mod quiesce_flow;
#[path = "recover.rs"]
pub(crate) mod recover;
#[path = "reorg_flow.rs"]
pub(crate) mod reorg_flow;
#[path = "roots_flow.rs"]
pub(crate) mod roots_flow;
#[path = "state_missing.rs"]
mod state_missing;
#[path = "store_flow.rs"]
pub(crate) mod store_flow;
#[path = "tags_flow.rs"]
pub(crate) mod tags_flow;
#[path = "writer_flow.rs"]
pub(crate) mod writer_flow;
