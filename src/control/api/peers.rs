//! The peers of the fleet as hubs and older scripts ask for them.
use super::answer::{Failure, Refused};
use super::proof::{Operator, PeerReader};
use super::{App, now_ms};
use crate::registry::operate;
use crate::store::audit::Actor;
use crate::store::lease::PoolStats;
use crate::store::node::NodeState;
use crate::store::view::NodeView;
use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use spoke_enroll::wire::{Problem, ProblemCode};
use spoke_grants::policy::Reason;
use spoke_model::node_id::NodeId;
use std::sync::Arc;

/// A peer.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct PeerView {
    /// Which node.
    #[schema(value_type = String)]
    pub node_id: NodeId,
    /// Identity.
    pub public_key: String,
    /// Its own addresses.
    pub allowed_ips: Vec<String>,
}

impl PeerView {
    fn of(node: NodeView) -> Option<Self> {
        let host = |a: &String| a.parse::<ipnet::IpNet>().ok().map(|n| ipnet::IpNet::from(n.addr()).to_string());
        let granted = node.access.as_deref().is_none_or(|code| code == Reason::AccessGranted.code());
        (node.state == NodeState::Active && granted).then_some(())?;
        Some(Self {
            allowed_ips: node.addresses.iter().filter_map(host).collect(),
            public_key: node.wireguard_public_key?.to_string(),
            node_id: node.id,
        })
    }
}

/// A page.
#[derive(Clone, Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(default, deny_unknown_fields)]
pub struct Page {
    /// The last id of the page before.
    pub after: String,
    /// At most so many, 1 to 1000.
    pub limit: Option<i64>,
}

/// Every active peer, by id.
#[utoipa::path(get, path = "/api/v1/wireguard/peers", params(Page), responses(
    (status = 200, body = Vec<PeerView>), (status = 401, body = Problem)))]
pub async fn list(
    State(app): State<Arc<App>>,
    Query(page): Query<Page>,
    _reader: PeerReader,
) -> Result<Json<Vec<PeerView>>, Failure> {
    let limit = page.limit.unwrap_or(1000).clamp(1, 1000);
    let views = app.store.read().await?.node_views(None, &page.after, limit).await?;
    Ok(Json(views.into_iter().filter_map(PeerView::of).collect()))
}

/// One peer.
#[utoipa::path(get, path = "/api/v1/wireguard/peers/{node_id}", params(("node_id" = String, Path)), responses(
    (status = 200, body = PeerView), (status = 401, body = Problem), (status = 404, body = Problem)))]
pub async fn one(
    State(app): State<Arc<App>>,
    Path(node): Path<NodeId>,
    _reader: PeerReader,
) -> Result<Json<PeerView>, Failure> {
    let view = app.store.read().await?.node_views(Some(&node), "", 1).await?.pop();
    let peer = view.and_then(PeerView::of);
    peer.map(Json).ok_or_else(|| Failure::new(ProblemCode::NotFound, format!("there is no peer {node}")))
}

/// Takes a peer out of the fleet; operators only.
#[utoipa::path(delete, path = "/api/v1/wireguard/peers/{node_id}", params(("node_id" = String, Path)), responses(
    (status = 204), (status = 401), (status = 404)))]
pub async fn remove(
    State(app): State<Arc<App>>,
    _operator: Operator,
    Path(node): Path<NodeId>,
) -> Result<StatusCode, Refused> {
    operate::remove(&app.store, &node, &Actor::Operator("api".into()), now_ms()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Which network's pool.
#[derive(Clone, Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(default, deny_unknown_fields)]
pub struct PoolQuery {
    /// Its name; the first one if there is no other.
    pub network: Option<String>,
}

/// A network's pool in figures.
#[utoipa::path(get, path = "/api/v1/wireguard/pool/stats", params(PoolQuery), responses(
    (status = 200, body = PoolStats), (status = 401, body = Problem), (status = 404, body = Problem)))]
pub async fn stats(
    State(app): State<Arc<App>>,
    Query(query): Query<PoolQuery>,
    _reader: PeerReader,
) -> Result<Json<PoolStats>, Failure> {
    let mut tx = app.store.read().await?;
    let network = match &query.network {
        Some(name) => tx.network(name).await?,
        None => tx.networks().await?.into_iter().next(),
    };
    let network = network.ok_or_else(|| Failure::new(ProblemCode::NotFound, "there is no such network"))?;
    Ok(Json(tx.pool_stats(&network).await?))
}
