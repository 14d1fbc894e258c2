//! What `spoke doctor` looks at: the host, the way to the hub, the chain.
pub mod chain;
pub mod hub;
pub mod probe;
