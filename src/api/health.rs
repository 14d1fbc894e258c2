//! What the node says about itself: a verdict with reasons, statistics, metrics, a page for people.
pub mod fold;
pub mod metrics;
pub mod routes;
pub mod stats;
pub mod summary;
