//! Changes through the agent API or the command line: edits, generations, confirmation, rollback, and the audit record.
//!
//! An edit becomes a fact, `derive` merges it, the reconciler applies it; a generation is stored only after the kernel has
//! accepted it. The history therefore holds applied states only, and the previous generation is the one before the current.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

pub mod audit;
pub mod conflict;
pub mod declared;
pub mod edit;
pub mod history;
pub mod messages;
pub mod record;
pub mod request;
