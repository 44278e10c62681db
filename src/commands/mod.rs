//! commands (room header to be written).
