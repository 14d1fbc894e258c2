//! The tunnel to the hub: choosing a hub, proving the tunnel, keeping it, and getting it back.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

pub mod ladder;
pub mod liveness;
pub mod names;
pub mod select;
pub mod session;
pub mod status;
pub mod wire;
