//! The control plane against real databases, a real chain and real connections. Run by `scripts/test-control`, which starts
//! what it needs.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(
    clippy::disallowed_methods,
    clippy::zombie_processes,
    reason = "real processes run in real time; children are killed when dropped"
)]

mod addresses;
#[path = "../chain/anvil.rs"]
mod anvil;
mod api;
mod attack_audit;
mod attack_availability;
mod attack_keys;
mod attack_membership;
mod attack_operators;
mod attack_proxy;
mod attack_replay;
mod attack_text;
mod bench;
mod chain;
mod commands;
mod commands_by_hand;
mod database;
mod database_faults;
mod edits;
mod enrolment;
mod events;
mod fixture;
mod grants_policy;
mod hub_move;
mod keys;
mod labels;
mod limits;
mod lists;
mod metrics;
mod preshared;
mod reasons;
mod relay;
mod release;
mod server;
mod store;
mod tls;
