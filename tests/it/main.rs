//! The integration tests, in one binary so that they are linked once. A module a subject.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod architecture;
mod cli;
