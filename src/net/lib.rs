//! The reconciled part of the world: interfaces, peers, addresses and routes of the kernel.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

pub mod advance;
pub mod ages;
pub mod api_state;
pub mod derive;
pub mod drift;
pub mod plan;
pub mod render;
pub mod state;
