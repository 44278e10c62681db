//! All integration tests, in one binary for the linker's sake.

mod devnet;
