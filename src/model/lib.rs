//! Types that all crates share: ids, keys, networks, times, secrets, signatures. Depends on no crate of the workspace.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

pub mod address;
pub mod backoff;
pub mod clock;
pub mod condition;
pub mod deadline;
pub mod duration;
pub mod error_chain;
pub mod interface_name;
pub mod key;
pub mod key_proof;
pub mod key_source;
pub mod log_text;
pub mod nets;
pub mod node_id;
pub mod release;
pub mod secret;
pub mod signature;
pub mod time;
pub mod tree;
pub mod url;
pub mod wireguard;

/// The version of this build; every crate of the workspace has the same.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
