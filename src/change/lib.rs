//! Changes that a person or a panel makes to this node: edits, their history, confirmation, rollback.
//!
//! An edit becomes a fact, `derive` merges it, the reconcile task applies it; only what the kernel then has is written
//! down. So the history holds good states only, and "previous" is always the good state before the present one.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

pub mod audit;
pub mod conflict;
pub mod declared;
pub mod edit;
pub mod history;
pub mod messages;
pub mod record;
pub mod request;
