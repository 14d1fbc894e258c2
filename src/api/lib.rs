//! The pure half of every local interface: what a request means and what is answered. Serving is `spoke-node`'s.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

pub mod agent;
pub mod health;
pub mod http;
pub mod socket;
