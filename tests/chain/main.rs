//! The chain tier: grants against a local chain and faulty endpoints. Run by `scripts/test-chain`.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "anvil and the node run on real time")]

mod anvil;
mod commands;
mod endpoints;
mod grants;
mod hostile;
mod liars;
mod node;
mod proofs;
mod providers;
mod proxy;
mod subscription;
mod walk;
