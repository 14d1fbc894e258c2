//! The tunnel to the hub: choosing a hub, proving the tunnel, keeping it, and getting it back.
pub mod backoff;
pub mod ladder;
pub mod liveness;
pub mod names;
pub mod select;
pub mod session;
pub mod status;
pub mod task;
pub mod wire;
