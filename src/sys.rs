//! The seams: every effect behind a small trait, with its real implementation. Nothing here decides anything.
pub mod clock;
pub mod disk;
pub mod echo;
pub mod http;
pub mod http_server;
pub mod kernel;
pub mod keys;
pub mod notify;
pub mod probe;
pub mod probe_chain;
pub mod random;
pub mod resolve;
pub mod rpc;
pub mod socket;
