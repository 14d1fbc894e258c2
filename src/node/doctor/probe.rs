//! Probes of `spoke doctor`: read the host and the network; evaluate and change nothing.
pub mod chain;
pub mod control;
pub mod host;
