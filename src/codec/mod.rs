//! codec (room header to be written).
