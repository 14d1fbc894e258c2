//! The peers of the fleet, for hubs and operators.
use super::auth::{Operator, PeerReader};
use super::extract::Page;
use super::response::{ApiError, OperatorError};
use super::state::ApiState;
use crate::clock::now_ms;
use crate::registry::nodes;
use crate::store::lease::PoolStats;
use crate::store::node::NodeState;
use crate::store::node_status::{NodeQuery, NodeStatus};
use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use spoke_enroll::wire::{Problem, ProblemCode};
use spoke_model::node_id::NodeId;
use std::sync::Arc;

/// A peer.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct PeerView {
    /// The node.
    #[schema(value_type = String)]
    pub node_id: NodeId,
    /// Its WireGuard key.
    pub public_key: String,
    /// Its own addresses.
    pub allowed_ips: Vec<String>,
}

impl PeerView {
    fn of(status: NodeStatus) -> Option<Self> {
        if status.node.state != NodeState::Active || !status.access.admits() {
            return None;
        }
        Some(Self {
            allowed_ips: status.addresses.iter().map(|a| IpNet::from(a.addr()).to_string()).collect(),
            public_key: status.node.wireguard_key?.to_string(),
            node_id: status.node.id,
        })
    }
}

/// Lists active peers by id.
#[utoipa::path(get, path = "/api/v1/wireguard/peers", params(Page), responses(
    (status = 200, body = Vec<PeerView>), (status = 401, body = Problem)))]
pub async fn list(
    State(state): State<Arc<ApiState>>,
    Query(page): Query<Page>,
    reader: PeerReader,
) -> Result<Json<Vec<PeerView>>, ApiError> {
    let mut tx = state.store.read().await?;
    let query = NodeQuery { network: reader.network(), after: &page.after, ..NodeQuery::default() };
    let statuses = tx.node_statuses(&query, page.rows()).await?;
    Ok(Json(statuses.into_iter().filter_map(PeerView::of).collect()))
}

/// Shows one peer.
#[utoipa::path(get, path = "/api/v1/wireguard/peers/{node_id}", params(("node_id" = String, Path)), responses(
    (status = 200, body = PeerView), (status = 401, body = Problem), (status = 404, body = Problem)))]
pub async fn one(
    State(state): State<Arc<ApiState>>,
    Path(node): Path<NodeId>,
    reader: PeerReader,
) -> Result<Json<PeerView>, ApiError> {
    let status = state.store.read().await?.node_status(&node).await?;
    let peer = status.filter(|s| reader.may_read(&s.node.network)).and_then(PeerView::of);
    peer.map(Json).ok_or_else(|| ApiError::new(ProblemCode::NotFound, format!("there is no peer {node}")))
}

/// Removes a node from the fleet; operators only.
#[utoipa::path(delete, path = "/api/v1/wireguard/peers/{node_id}", params(("node_id" = String, Path)), responses(
    (status = 204), (status = 401), (status = 404)))]
pub async fn remove(
    State(state): State<Arc<ApiState>>,
    by: Operator,
    Path(node): Path<NodeId>,
) -> Result<StatusCode, OperatorError> {
    nodes::remove(&state.store, &node, &by.actor(), now_ms()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Selects a network's pool.
#[derive(Clone, Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(default, deny_unknown_fields)]
pub struct PoolQuery {
    /// The network; if absent, that of the hub, and for operators the first one by name.
    pub network: Option<String>,
}

/// Shows the use of a network's first pool.
#[utoipa::path(get, path = "/api/v1/wireguard/pool/stats", params(PoolQuery), responses(
    (status = 200, body = PoolStats), (status = 401, body = Problem), (status = 404, body = Problem)))]
pub async fn stats(
    State(state): State<Arc<ApiState>>,
    Query(query): Query<PoolQuery>,
    reader: PeerReader,
) -> Result<Json<PoolStats>, ApiError> {
    let mut tx = state.store.read().await?;
    let network = match query.network.as_deref().or(reader.network()) {
        Some(name) => tx.network(name).await?,
        None => tx.networks().await?.into_iter().next(),
    };
    let network = network
        .filter(|n| reader.may_read(&n.name))
        .ok_or_else(|| ApiError::new(ProblemCode::NotFound, "there is no such network"))?;
    Ok(Json(tx.pool_stats(&network).await?))
}
