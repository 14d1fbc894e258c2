//! Fakes with the real thing's semantics, and a simulated world made of them under one clock.
//!
//! Time is the runtime's: a test that starts with time paused (`#[tokio::test(start_paused = true)]`) runs hours in
//! milliseconds, and everything in the world sees the same time. Only in tests and with the feature `sim`.
pub mod clock;
pub mod kernel;
#[cfg(test)]
pub(crate) mod node;
pub mod world;
