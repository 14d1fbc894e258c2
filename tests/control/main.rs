//! The control plane against real databases and real connections; run by `scripts/test-control`, which starts PostgreSQL.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "real parts run on real time")]
#![allow(unreachable_pub)]

mod api;
mod db;
mod figures;
mod serving;
mod store;
mod world;
