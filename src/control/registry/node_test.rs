//! A test of a node on demand: whether it is reachable at this moment, and healthy.
use super::RegistryError;
use crate::store::Store;
use crate::store::node::NodeState;
use crate::store::node_status::NodeStatus;
use std::time::Duration;

/// How long a node may take to poll again; nodes spread their polls over a second.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The result of a test.
#[derive(Clone, Debug)]
pub struct NodeTest {
    /// The node as stored when the test began.
    pub status: NodeStatus,
    /// How long the node took to poll again; `None`: it did not, or is not enrolled.
    pub took: Option<Duration>,
}

impl NodeTest {
    /// Whether the node is a member of the fleet; only members are probed.
    pub fn is_enrolled(&self) -> bool {
        self.status.node.state == NodeState::Active
    }

    /// By the last report.
    pub fn healthy(&self) -> Option<bool> {
        self.status.report.as_ref().map(|r| r.healthy)
    }

    /// Whether the node is reachable and has not reported a fault.
    pub fn passed(&self) -> bool {
        self.took.is_some() && self.healthy() != Some(false)
    }

    /// The time a node may take.
    pub const fn timeout() -> Duration {
        TIMEOUT
    }
}

/// Probes a node, for five seconds at most. Changes nothing about it.
pub async fn run(store: &Store, id: &spoke_model::node_id::NodeId) -> Result<NodeTest, RegistryError> {
    let status = store.read().await?.node_status(id).await?;
    let status = status.ok_or_else(|| RegistryError::node_not_found(id))?;
    let took = match status.node.state {
        NodeState::Active => store.probe(id, TIMEOUT).await?,
        NodeState::Expected | NodeState::Pending | NodeState::Removed => None,
    };
    Ok(NodeTest { status, took })
}
