//! The operators' API for desired releases.
use super::auth::Operator;
use super::extract::Body;
use super::response::{Answer, OperatorResult, success};
use super::state::ApiState;
use crate::clock::now_ms;
use crate::registry::releases;
use crate::store::release::Release;
use axum::extract::{Query, State};
use serde::Deserialize;
use spoke_model::node_id::NodeId;
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The routes.
pub fn router() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new().routes(routes!(releases, want_release, unwant_release)).routes(routes!(retry_release))
}

/// The desired release of a network or node.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct ReleaseRequest {
    /// The network.
    network: String,
    /// The only node it is for; absent: the whole network.
    #[schema(value_type = Option<String>)]
    node: Option<NodeId>,
    /// Version of the release, as its bundle has it.
    version: String,
    /// Where bundles are (`SOURCE/BOARD.spoke`); absent: as each device is configured.
    source: Option<String>,
    /// Seconds over which the downloads of the nodes are spread, each at its own time; absent: all at once.
    #[serde(default)]
    spread_seconds: u32,
}

/// A network, or a node in it.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
struct ReleaseTarget {
    /// The network.
    network: String,
    /// The only node it is for; absent: the whole network.
    #[param(value_type = Option<String>)]
    node: Option<NodeId>,
}

/// Lists every desired release.
#[utoipa::path(get, path = "/api/releases", responses((status = 200, body = Answer<Vec<Release>>)))]
async fn releases(State(state): State<Arc<ApiState>>, _by: Operator) -> OperatorResult<Vec<Release>> {
    Ok(success(state.store.read().await?.releases().await?))
}

/// Sets the desired release of a network or of one node.
#[utoipa::path(put, path = "/api/releases", request_body = ReleaseRequest, responses(
    (status = 200, body = Answer<Release>), (status = 400), (status = 404)))]
async fn want_release(
    State(state): State<Arc<ApiState>>,
    by: Operator,
    Body(request): Body<ReleaseRequest>,
) -> OperatorResult<Release> {
    let ReleaseRequest { network, node, version, source, spread_seconds } = request;
    let release = Release { network, node, version, source, spread_seconds, since_ms: now_ms(), renewed_ms: 0 };
    releases::set(&state.store, &release, &by.actor(), now_ms()).await?;
    Ok(success(release))
}

/// Has the nodes that gave up the desired release of a network, or of one node, try it again.
#[utoipa::path(post, path = "/api/releases/retry", params(ReleaseTarget), responses(
    (status = 200), (status = 404)))]
async fn retry_release(
    State(state): State<Arc<ApiState>>,
    by: Operator,
    Query(target): Query<ReleaseTarget>,
) -> OperatorResult<()> {
    releases::retry(&state.store, &target.network, target.node.as_ref(), &by.actor(), now_ms()).await?;
    Ok(success(()))
}

/// Clears the desired release of a network or of one node; devices keep what they run.
#[utoipa::path(delete, path = "/api/releases", params(ReleaseTarget), responses(
    (status = 200), (status = 404)))]
async fn unwant_release(
    State(state): State<Arc<ApiState>>,
    by: Operator,
    Query(target): Query<ReleaseTarget>,
) -> OperatorResult<()> {
    releases::clear(&state.store, &target.network, target.node.as_ref(), &by.actor(), now_ms()).await?;
    Ok(success(()))
}
