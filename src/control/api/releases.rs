//! Which release the images of the fleet shall run, for operators and their scripts.
use super::answer::{Answer, Refused, done};
use super::operators::{Body, actor};
use super::proof::Operator;
use super::{App, now_ms};
use crate::registry::release;
use crate::store::release::Release;
use axum::Json;
use axum::extract::{Query, State};
use serde::Deserialize;
use spoke_model::node_id::NodeId;
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

type Done<T> = Result<Json<Answer<T>>, Refused>;

/// The routes about releases.
pub fn router() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(releases, want_release, unwant_release))
}

/// A release to be wanted.
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
}

/// Of which network, or of which node in it.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
struct Which {
    /// The network.
    network: String,
    /// The only node it is for; absent: the whole network.
    #[param(value_type = Option<String>)]
    node: Option<NodeId>,
}

/// Every wanted release.
#[utoipa::path(get, path = "/api/releases", responses((status = 200, body = Answer<Vec<Release>>)))]
async fn releases(State(app): State<Arc<App>>, _by: Operator) -> Done<Vec<Release>> {
    Ok(done(app.store.read().await?.releases().await?))
}

/// Wants a release of a network or of one node.
#[utoipa::path(put, path = "/api/releases", request_body = ReleaseRequest, responses(
    (status = 200, body = Answer<Release>), (status = 400), (status = 404)))]
async fn want_release(State(app): State<Arc<App>>, _by: Operator, Body(asked): Body<ReleaseRequest>) -> Done<Release> {
    let ReleaseRequest { network, node, version, source } = asked;
    let wanted = Release { network, node, version, source };
    release::want(&app.store, &wanted, &actor(), now_ms()).await?;
    Ok(done(wanted))
}

/// Wants nothing there any more.
#[utoipa::path(delete, path = "/api/releases", params(Which), responses(
    (status = 200), (status = 404)))]
async fn unwant_release(State(app): State<Arc<App>>, _by: Operator, Query(which): Query<Which>) -> Done<()> {
    release::unwant(&app.store, &which.network, which.node.as_ref(), &actor(), now_ms()).await?;
    Ok(done(()))
}
