//! Spoke turns a router-class Linux board into an edge appliance: this is the map.
//!
//! # One idea
//! Producers (identity, enrolment, grants, uplink, control, agent) publish *facts* on `tokio::sync::watch` channels.
//! [`net::derive`] makes one validated [`net::state::Desired`] of them and the configuration; [`net::plan`] compares it
//! with what the kernel has; one task applies the plan and is the only writer of kernel network state. What cannot be
//! derived leaves the last good state in place: fail static, never fail empty.
//!
//! # Layers: a file's place is its layer (checked by `tests/arch.rs`)
//! - `bin/`, `cli/`, `supervise.rs`: wiring. `cli` is one file a subcommand; `cli/run.rs` is the composition root.
//! - `**/task.rs`: the async side of a domain: waits, calls the pure side, calls a seam.
//! - `sys/`: every effect behind a small trait, with its real implementation. No netlink, HTTP or SQL type leaves it.
//! - `control/`: the control plane (feature `control`); its `store/` and `api/` are its own effects.
//! - everything else is pure: no tokio, no clock, no file, no socket.
//!
//! # Invariants
//! - The kernel tunnel outlives the process: nothing is torn down on exit.
//! - No prefix is an allowed-ip of two peers; revocations come before additions; foreign state is never touched.
//! - What the kernel learns (roamed endpoint, handshake, counters) is status, never drift.
//! - Durations are measured on [`time::Boot`]; [`time::Wall`] is optional data.
//! - The reconciler and the ledger of changes run on a thread of their own. A guard of what they publish is held for a moment,
//!   never across a call that may take another one of it: with a writer in between, both would wait for ever.
//! - No secret has a `Debug`, `Display` or `Serialize` that shows it.
//!
//! # Glossary
//! *hub*: the node others connect to. *uplink*: the tunnel to it. *grant*: an NFT that lets a node and key be a peer.
//! *drift*: a difference nobody asked for. *generation*: a version of the wanted state. *slot*: one of two root systems.
//!
//! # Departures from the first design
//! - `cli/` exists beside `bin/`, so that the binaries stay thin and the commands testable.
//! - Configuration sections live in `config/`, one file each.
//! - `plan` also takes the reconciler's [`net::state::Memory`], because the kernel cannot tell a roamed endpoint from one
//!   that we set.
//! - It is one package still, past the size at which its pure half was to become another: `tests/arch.rs` holds the layers
//!   as the border of a crate would, and what a device links is looked at by `cargo tree`.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

/// The version, as the package has it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

pub mod agent;
pub mod audit;
pub mod change;
pub mod cli;
pub mod clock;
pub mod config;
#[cfg(feature = "control")]
pub mod control;
pub mod enroll;
pub mod grants;
pub mod health;
pub mod http;
pub mod net;
pub mod node;
pub mod secret;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod socket;
pub mod supervise;
pub mod sys;
pub mod time;
pub mod update;
pub mod uplink;
