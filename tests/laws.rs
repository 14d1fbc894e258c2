//! The laws of `derive`, `plan` and `advance`: what holds whatever is wanted, whatever the kernel has, and whatever others do to it.
//!
//! They are judged on the kernel in memory, which passes the same suite as the real one (see `tests/conformance.rs`).
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "laws/derived.rs"]
mod derived;
#[path = "laws/golden.rs"]
mod golden;
#[path = "laws/planned.rs"]
mod planned;
#[path = "laws/world.rs"]
mod world;
