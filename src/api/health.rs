//! The node's health: a verdict with reasons, statistics, metrics, an HTML page.
pub mod fold;
pub mod metrics;
pub mod page;
pub mod routes;
pub mod stats;
pub mod summary;

#[cfg(test)]
mod conformance;
