//! Access by NFT: which peers a contract grants, verified under a quorum of endpoints and kept through outages. `derive` takes
//! the admitted ones into the kernel.
//!
//! - [`watcher`]: the machine that keeps the admission table in step with the chain; [`query`]: the one for single questions.
//! - [`procedure`], [`exchange`], [`question`]: steps of both, one question under quorum, one batch of calls.
//! - [`abi`], [`jsonrpc`]: the wire; [`policy`]: the decision.
//! - [`quorum`]: endpoint states and votes; [`cursor`]: how far the events were read.
//! - [`admission`], [`cache`], [`ladder`]: decisions, and how long they hold without a quorum; [`ledger`]: the documents.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

pub mod abi;
pub mod admission;
pub mod cache;
pub mod cursor;
pub mod exchange;
pub mod jsonrpc;
pub mod ladder;
pub mod ledger;
pub mod policy;
pub mod procedure;
pub mod query;
pub mod question;
pub mod quorum;
pub mod report;
pub mod watcher;
