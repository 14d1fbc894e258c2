//! The reconciled part of the world: interfaces, peers, addresses and routes of the kernel.
pub mod advance;
pub mod ages;
pub mod derive;
pub mod key;
pub mod plan;
pub mod render;
pub mod state;
pub mod task;
