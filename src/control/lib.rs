//! The control plane: makes a fleet out of devices. Feature `control`; the device build carries none of it.
//!
//! `store` keeps it, `registry` decides who joins and what happens to whom, `api` speaks to devices and operators,
//! `server` listens, `cli` is the command line. `ipam` is pure.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

pub mod api;
pub mod chain;
pub mod cli;
pub mod config;
pub mod ipam;
pub mod limits;
pub mod registry;
pub mod server;
pub mod signing;
pub mod store;
pub mod tls;
