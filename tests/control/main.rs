//! The control plane against real databases and real connections; run by `scripts/test-control`, which starts PostgreSQL.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod api;
mod db;
mod figures;
mod serving;
mod store;
mod world;
