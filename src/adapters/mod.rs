//! adapters (room header to be written).

pub mod store;
