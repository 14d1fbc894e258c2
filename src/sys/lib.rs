//! Effects behind small traits, with their real implementations. No decisions: those are in the pure crates.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

pub mod beneath;
pub mod bundle;
pub mod clock;
pub mod connect;
pub mod disk;
pub mod early;
pub mod echo;
pub mod fetch;
pub mod host;
pub mod http;
pub mod http_server;
pub mod journal;
pub mod kernel;
pub mod keys;
pub mod lock;
pub mod notify;
pub mod priority;
pub mod process;
pub mod random;
pub mod resolve;
pub mod rpc;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod slots;
pub mod socket;
pub mod tls;
pub mod updater;
pub mod vault;
pub mod websocket;
pub mod words;
