//! The control plane: enrols nodes, hands out signed desired state, runs the fleet.
//!
//! `store` ← `registry` ← `api` ← `server`, `cli`: the database, the decisions and transactions of the fleet, the HTTP API,
//! the listener and the command line. `ipam`, `limits`, `selector` and `version` are pure. `layers.rs` holds the direction.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

pub mod api;
pub mod chain;
pub mod cli;
pub mod clock;
pub mod config;
pub mod connections;
pub mod duplicate;
pub mod ipam;
#[cfg(test)]
mod layers;
pub mod limits;
pub mod metrics;
pub mod nonce_queue;
pub mod proxies;
pub mod registry;
pub mod report_queue;
pub mod selector;
pub mod server;
pub mod signing;
pub mod store;
pub mod tls;
pub mod version;
