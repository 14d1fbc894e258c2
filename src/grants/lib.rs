//! Access by NFT: who may be a peer, verified on chain, kept through outages, and taken into the kernel by `derive`.
//!
//! - [`abi`], [`jsonrpc`]: the wire; [`policy`]: the decision.
//! - [`quorum`]: whom to ask and when to believe; [`cursor`]: how far the events were read.
//! - [`cache`], [`ladder`]: what is kept, and for how long without an answer; [`ledger`]: where.
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
