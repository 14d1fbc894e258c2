//! Access by NFT: who may be a peer, verified on chain, kept through outages, and taken into the kernel by `derive`.
//!
//! - [`abi`], [`jsonrpc`]: the wire; [`policy`]: the decision.
pub mod abi;
pub mod jsonrpc;
pub mod policy;
