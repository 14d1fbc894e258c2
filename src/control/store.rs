//! Where the fleet is kept: SQLite in one file, or PostgreSQL for several control planes at once.
//!
//! `sql` is the seam: one transaction type over both databases, and no SQL type leaves it. Everything above is written
//! once, in the SQL both understand, and both run the same conformance suite. Whoever writes holds the only write
//! transaction (SQLite) or the lock of the network concerned (PostgreSQL), so that two enrolments never see the same
//! address free. A change of what a node shall be raises its generation in the same transaction and wakes its long-poll
//! after the commit: `wake`.
pub mod admission;
pub mod audit;
pub mod call;
pub mod dump;
pub mod fleet;
pub mod job;
pub mod key;
pub mod lease;
pub mod network;
pub mod node;
pub mod release;
pub mod report;
pub mod sql;
pub mod token;
pub mod view;
pub mod wake;

pub use sql::{Store, StoreError, Tx};
