//! Invariants of `derive`, `plan` and `advance` for any desired state, kernel state and change by other programs.
//!
//! Checked on the kernel in memory, which passes the same suite as the real one (see `tests/conformance.rs`).
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "laws/derived.rs"]
mod derived;
#[path = "laws/golden.rs"]
mod golden;
#[path = "laws/planned.rs"]
mod planned;
#[path = "laws/world.rs"]
mod world;
