//! The operators' API for desired releases.
use super::auth::Operator;
use super::extract::{Body, Condition, ListQuery};
use super::response::{Answer, OperatorError, OperatorResult, success};
use super::state::ApiState;
use super::view::{Listed, listed};
use crate::clock::now_ms;
use crate::registry::{Entity, RegistryError, releases};
use crate::store::edit::release_version;
use crate::store::list::RELEASES;
use crate::store::precondition::Edited;
use crate::store::release::Release;
use axum::extract::{Query, State};
use serde::{Deserialize, Serialize};
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

/// A desired release with its version.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct ReleaseView {
    /// The release.
    #[serde(flatten)]
    release: Release,
    /// For `If-Match`.
    etag: String,
}

impl From<Release> for ReleaseView {
    fn from(release: Release) -> Self {
        Self { etag: release_version(&release).tag(), release }
    }
}

/// Lists desired releases, by network unless `sort` (`network`, `version`, `since`) says otherwise.
#[utoipa::path(get, path = "/api/releases", params(ListQuery), responses(
    (status = 200, body = Answer<Listed<ReleaseView>>), (status = 400)))]
async fn releases(
    State(state): State<Arc<ApiState>>,
    _by: Operator,
    Query(wanted): Query<ListQuery>,
) -> OperatorResult<Listed<ReleaseView>> {
    let page = wanted.page(&RELEASES)?;
    Ok(success(listed(state.store.read().await?.list_releases(&wanted.filter, &page).await?)))
}

async fn view(state: &ApiState, network: &str, node: Option<&NodeId>) -> OperatorResult<ReleaseView> {
    let found = state.store.read().await?.release(network, node).await?;
    let release = found.ok_or_else(|| RegistryError::NotFound(Entity::Release, network.to_owned()))?;
    let version = release_version(&release);
    Ok(success(ReleaseView::from(release)).versioned(&version))
}

/// The error of a change, with the release as it is where another one changed it before.
async fn refused(state: &ApiState, network: &str, node: Option<&NodeId>, e: RegistryError) -> OperatorError {
    let error = OperatorError::from(e);
    if !error.is_changed() {
        return error;
    }
    match view(state, network, node).await {
        Ok(answer) => error.with_data(answer),
        Err(e) => e,
    }
}

/// Sets the desired release of a network or of one node.
#[utoipa::path(put, path = "/api/releases", request_body = ReleaseRequest, responses(
    (status = 200, body = Answer<ReleaseView>), (status = 400), (status = 404), (status = 412)))]
async fn want_release(
    State(state): State<Arc<ApiState>>,
    by: Operator,
    condition: Condition,
    Body(request): Body<ReleaseRequest>,
) -> OperatorResult<ReleaseView> {
    let ReleaseRequest { network, node, version, source, spread_seconds } = request;
    let release = Release { network, node, version, source, spread_seconds, since_ms: now_ms(), renewed_ms: 0 };
    let Release { network, node, .. } = &release;
    let store = condition.store(&state.store, Edited::Release(network.clone(), node.clone()));
    match releases::set(&store, &release, &by.actor(), now_ms()).await {
        Ok(()) => view(&state, network, node.as_ref()).await,
        Err(e) => Err(refused(&state, network, node.as_ref(), e).await),
    }
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
    (status = 200), (status = 404), (status = 412)))]
async fn unwant_release(
    State(state): State<Arc<ApiState>>,
    by: Operator,
    condition: Condition,
    Query(target): Query<ReleaseTarget>,
) -> OperatorResult<()> {
    let ReleaseTarget { network, node } = &target;
    let store = condition.store(&state.store, Edited::Release(network.clone(), node.clone()));
    match releases::clear(&store, network, node.as_ref(), &by.actor(), now_ms()).await {
        Ok(()) => Ok(success(())),
        Err(e) => Err(refused(&state, network, node.as_ref(), e).await),
    }
}
