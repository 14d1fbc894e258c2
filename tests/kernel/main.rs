//! The kernel tier: tests that need a real Linux kernel with WireGuard, run by `scripts/test-kernel`.
//!
//! Outside of that script each test fails and names it: interfaces of the host must not be changed by accident, and a tier that
//! skips itself proves nothing.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod adopted;
#[path = "../chain/anvil.rs"]
mod anvil;
mod change;
mod conformance;
mod connect;
mod contested;
mod declared;
mod device;
mod doctor;
mod duplicate;
mod edited;
mod failover;
mod files;
mod gate;
mod grants;
mod image;
mod names;
mod netlink;
mod netns;
mod panel;
mod refused;
mod supervisor;
mod truth;
mod uplink;
mod views;
mod wireguard;
