//! The control plane against real databases, a real chain and real connections; run by `scripts/test-control`, which starts
//! what it needs.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(
    clippy::disallowed_methods,
    clippy::zombie_processes,
    reason = "real parts run on real time; what is spawned is killed with its value"
)]

mod addresses;
#[path = "../chain/anvil.rs"]
mod anvil;
mod api;
mod chain;
mod commands;
mod db;
mod enrolment;
mod figures;
mod keys;
mod limits;
mod policy;
mod relay;
mod release;
mod serving;
mod store;
mod trouble;
mod world;
