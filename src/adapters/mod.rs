//! adapters (room header to be written).

pub mod fixture;
pub mod record;
pub mod replay;
pub mod store;
