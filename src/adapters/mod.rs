//! adapters (room header to be written).
