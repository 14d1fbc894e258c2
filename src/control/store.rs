//! The fleet's database: SQLite in one file, or PostgreSQL for several control planes at once.
//!
//! `sql` is the seam: one transaction type over both databases, and no type of a database driver leaves it. Everything
//! above is written once, in the SQL both understand, and both run the same conformance suite. A writer holds the only
//! write transaction (SQLite) or the lock of its network (PostgreSQL), so that two enrolments never see the same address
//! free. A change to a node's desired state raises its generation in the same transaction and wakes its long-poll after
//! the commit: `wake`, `listen`.
pub mod admission;
pub mod audit;
pub mod audit_chain;
pub mod audit_entry;
pub mod backup;
pub mod document;
pub mod edit;
pub mod enrolment;
pub mod error;
pub mod event;
pub mod event_entry;
pub mod job;
pub mod lease;
pub mod list;
pub mod listen;
pub mod network;
pub mod node;
pub mod node_status;
pub mod nonce;
pub mod operator_key;
pub mod page;
pub mod precondition;
pub mod preshared;
pub mod probe;
pub mod release;
pub mod removed_identity;
pub mod report;
pub mod reporting;
pub mod request;
pub mod row;
pub mod signing_key;
pub mod sql;
pub mod token;
pub mod wake;

pub use error::StoreError;
pub use sql::{Store, Tx};
