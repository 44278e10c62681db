//! Transport: HTTP with deadlines and body limits (`http`), JSON-RPC with batches (`jsonrpc`), what a server's words mean
//! (`words`), the pool of endpoints of a port (`pool`), their network (`network`), and what is repeated (`retry`).
//!
//! What a server says becomes part of an error here and nowhere else, after `redact` has struck the endpoint's secrets out
//! of it (P10). Not decided here: what is asked and what an answer means.

mod http;
mod jsonrpc;
mod network;
mod pool;
mod retry;
mod words;

pub use http::{HttpReply, TokenSource};
pub use jsonrpc::{Call, Json, Posted, found};
pub use network::Check;
pub use pool::{EndpointStats, Pool, PoolConfig};
