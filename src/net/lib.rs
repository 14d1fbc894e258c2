//! Desired and observed network state of the kernel, and the plan between the two: interfaces, peers, addresses, routes.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

pub mod advance;
pub mod ages;
pub mod api_state;
pub mod damping;
pub mod derive;
pub mod drift;
pub mod duplicate;
pub mod plan;
pub mod render;
pub mod state;
