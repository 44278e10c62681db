//! decide (room header to be written).
