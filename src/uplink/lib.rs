//! The tunnel to the hub: selection of a hub, proof, liveness, recovery and failback, as machines without I/O.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

pub mod ladder;
pub mod liveness;
pub mod names;
pub mod path;
pub mod select;
pub mod session;
pub mod status;
pub mod wire;
