//! The device: every task that waits, the supervision over them, the commands of `spoke`, and the first process of an image.
//!
//! [`run`] is the composition root. Producers ([`control_session`], [`uplink`], [`names`], the follower of the chain, [`changes`])
//! publish facts on `tokio::sync::watch`; the [`reconciler`] derives, plans and applies, and is the only writer of kernel
//! network state. `docs/architecture.md` has the table of tasks and channels.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

pub mod agent;
pub mod audit;
pub mod changes;
pub mod cli;
pub mod clock;
pub mod control_session;
pub mod doctor;
pub mod enrolment;
pub mod health;
pub mod names;
pub mod outlook;
pub mod reconciler;
pub mod run;
pub mod signed_request;
#[cfg(test)]
pub(crate) mod sim;
pub mod socket;
pub mod supervise;
pub mod update;
pub mod uplink;
