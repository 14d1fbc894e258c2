//! The tasks that ask the chain, for the device and for the control plane: the same code verifies grants on both.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

pub mod conversation;
pub mod follower;
pub mod ledger;
