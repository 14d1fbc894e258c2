//! Who changed what on this node, when, and what came of it: append-only, hash-chained, bounded.
pub mod control;
pub mod record;
pub mod task;
