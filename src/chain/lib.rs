//! Drives the machines of `spoke_grants` with real endpoints, clocks and disks, on the device and in the control plane.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

mod endpoint;
pub mod ledger;
pub mod reader;
mod subscription;
pub mod watcher;
