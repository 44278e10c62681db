//! Transport: HTTP with deadlines and body limits (`http`), JSON-RPC with batches (`jsonrpc`), what a server's words mean
//! (`words`), and the pool of endpoints of a port (`pool`).
//!
//! What a server says becomes part of an error here and nowhere else, after `redact` has struck the endpoint's secrets out
//! of it (P10). Not decided here: what is asked and what an answer means.

mod http;
mod jsonrpc;
mod pool;
mod words;

pub use http::{HttpReply, TokenSource};
pub use jsonrpc::{Call, Json, Posted, found};
pub use pool::{Check, EndpointStats, Pool, PoolConfig};
