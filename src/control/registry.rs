//! Who is in the fleet: enrolment, approval, removal, keys, and what operators set. Each is one transaction.
pub mod enrol;
pub mod keys;
pub mod operate;
pub mod release;
pub mod test;

use super::store::StoreError;
use super::store::lease::LeaseError;
use super::store::network::BadNetwork;
use spoke_model::node_id::NodeId;

/// Why a request about the fleet was not granted. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A field of the request.
    #[error(transparent)]
    Field(#[from] spoke_enroll::wire::BadField),
    /// A value of an operator.
    #[error("{0}")]
    Value(String),
    /// A network that cannot work.
    #[error(transparent)]
    Network(#[from] BadNetwork),
    /// The enrolment token; which fault it has is not told.
    #[error("the enrolment token is not valid for this node")]
    BadToken,
    /// The name belongs to another device.
    #[error("node id {node} is taken by a device with another key")]
    NodeIdTaken {
        /// The name.
        node: NodeId,
        /// What may be told of its holder.
        existing: serde_json::Value,
    },
    /// The key belongs to another node.
    #[error("the key belongs to another node: make a new one")]
    KeyTaken,
    /// It was removed.
    #[error("node {0} was removed from the fleet; a token made for it alone lets it back")]
    Revoked(NodeId),
    /// It is not there.
    #[error("there is no {0} {1}")]
    NotFound(&'static str, String),
    /// It is there already, or in a state that does not allow this.
    #[error("{0}")]
    Conflict(String),
    /// An address could not be leased, or the store failed.
    #[error(transparent)]
    Lease(LeaseError),
    /// The store.
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for RegistryError {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::Taken(_) => Self::KeyTaken,
            other => Self::Store(other),
        }
    }
}

impl From<LeaseError> for RegistryError {
    fn from(e: LeaseError) -> Self {
        match e {
            LeaseError::Store(e) => e.into(),
            LeaseError::Exhausted { .. } | LeaseError::Pool(_) => Self::Lease(e),
        }
    }
}

/// Runs a transaction again, a few times, while the database says that it only got in another's way.
macro_rules! again {
    ($attempt:expr) => {{
        let mut left = 4u8;
        loop {
            match $attempt.await {
                Err(RegistryError::Store(crate::store::StoreError::Again(_))) if left > 0 => left -= 1,
                other => break other,
            }
        }
    }};
}
pub(crate) use again;
