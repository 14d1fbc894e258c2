//! The pure half of every local interface: requests, responses, and how facts become them. `spoke-node` serves them.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

pub mod agent;
pub mod exposition;
pub mod health;
pub mod http;
pub mod responses;
pub mod socket;
