//! Tests a node on demand: is it there now, and how is it.
use super::RegistryError;
use crate::store::Store;
use crate::store::node::NodeState;
use serde::Serialize;
use spoke_model::node_id::NodeId;
use std::time::Duration;

/// How long a node has to come back: it spreads its polls over a second.
const WITHIN: Duration = Duration::from_secs(5);

/// What came of a test.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct NodeTest {
    /// Which node.
    #[schema(value_type = String)]
    pub node_id: NodeId,
    /// It is a member of the fleet; nobody else is called.
    pub enrolled: bool,
    /// It came back when it was called.
    pub reachable: bool,
    /// How long that took, in milliseconds: a node waits up to a second before each poll.
    pub took_ms: Option<u64>,
    /// By its last report.
    pub healthy: Option<bool>,
    /// Wanted.
    pub generation: u64,
    /// In force on the node, by its last report.
    pub observed_generation: Option<u64>,
    /// RFC 3339, of the last report.
    pub last_seen: Option<String>,
    /// All of it in one sentence.
    pub message: String,
}

impl NodeTest {
    /// The node is there, and nothing is wrong with it.
    pub fn is_good(&self) -> bool {
        self.reachable && self.healthy != Some(false)
    }
}

/// Calls a node and waits until it is back, five seconds at most. Nothing about it is changed.
pub async fn node(store: &Store, id: &NodeId) -> Result<NodeTest, RegistryError> {
    let known = store.read().await?.node_views(Some(id), "", 1).await?.pop();
    let known = known.ok_or_else(|| RegistryError::NotFound("node", id.to_string()))?;
    let enrolled = known.state == NodeState::Active;
    let took = if enrolled { store.call(id, WITHIN).await? } else { None };
    let last = known.last_seen.as_deref().map_or("it never reported".to_owned(), |at| format!("last report {at}"));
    let message = match (took, known.healthy) {
        _ if !enrolled => format!("{id} is not enrolled: it is {}", known.state.as_str()),
        (None, _) => format!("{id} did not come back within {} s; {last}", WITHIN.as_secs()),
        (Some(took), Some(false)) => format!("{id} came back in {} ms and is not healthy; {last}", took.as_millis()),
        (Some(took), _) => format!("{id} came back in {} ms; {last}", took.as_millis()),
    };
    Ok(NodeTest {
        enrolled,
        reachable: took.is_some(),
        took_ms: took.map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX)),
        healthy: known.healthy,
        generation: known.generation,
        observed_generation: known.observed_generation,
        last_seen: known.last_seen,
        node_id: known.id,
        message,
    })
}
