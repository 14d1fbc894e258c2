//! The reconciled part of the world: interfaces, peers, addresses and routes of the kernel.
pub mod advance;
pub mod ages;
pub mod derive;
pub mod drift;
pub mod imperative;
pub mod key;
pub mod nets;
pub mod overrides;
pub mod plan;
pub mod render;
pub mod state;
pub mod task;
