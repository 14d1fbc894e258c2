//! Access by NFT: the peers granted by a contract, verified by a quorum of endpoints and kept through outages. `derive`
//! adds the admitted ones to the wanted kernel state.
//!
//! - [`watcher`]: the machine that keeps the admission table synchronised with the chain; [`query`]: single queries.
//! - [`subscription`]: a wake-up for it by WebSocket.
//! - [`procedure`], [`exchange`], [`question`]: steps of both, one question by quorum, one batch of calls.
//! - [`verify`]: decisions about pairs at a block, by calls or by proofs ([`proof`], [`trie`]).
//! - [`abi`], [`jsonrpc`]: the wire format; [`policy`]: the decision.
//! - [`quorum`]: endpoint states and votes; [`cursor`]: how far the events were read.
//! - [`admission`], [`cache`], [`ladder`]: decisions, and how long they hold without a quorum; [`ledger`]: the stored
//!   documents.
//! - [`transaction`]: the calls that change a grant; nothing that runs on its own sends one.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

pub mod abi;
pub mod admission;
pub mod cache;
pub mod cursor;
mod events;
pub mod exchange;
pub mod fault;
pub mod jsonrpc;
pub mod ladder;
pub mod learnt;
pub mod ledger;
pub mod policy;
pub mod procedure;
pub mod proof;
pub mod query;
pub mod question;
pub mod quorum;
pub mod report;
mod storage;
pub mod subscription;
pub mod transaction;
pub mod trie;
pub mod verify;
pub mod watcher;
