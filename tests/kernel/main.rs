//! The kernel tier: what only a real Linux kernel with WireGuard can prove. `scripts/test-kernel` runs it.
//!
//! Started in any other way each test fails and names that script: creating interfaces is nothing to do to the host by accident,
//! and a tier that skips itself proves nothing.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../chain/anvil.rs"]
mod anvil;
mod change;
mod conformance;
mod declared;
#[expect(dead_code, reason = "shared with the clock's test, which uses more of it")]
mod device;
mod gate;
mod grants;
mod netlink;
mod netns;
mod panel;
mod supervisor;
mod uplink;
mod wireguard;
