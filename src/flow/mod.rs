//! flow (room header to be written).
