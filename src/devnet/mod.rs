//! devnet (room header to be written).
