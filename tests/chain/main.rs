//! The chain tier: grants against a real local chain, honest or not. `scripts/test-chain` runs it.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "real parts run on real time")]

mod anvil;
mod commands;
mod endpoints;
mod grants;
mod hostile;
mod node;
mod proxy;
mod walk;
