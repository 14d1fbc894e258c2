//! The operators' API for nodes and hubs.
use super::auth::Operator;
use super::error_code::ErrorCode;
use super::extract::{Body, Condition, page_of};
use super::response::{Answer, OperatorError, OperatorResult, success};
use super::state::ApiState;
use super::tokens::CreatedToken;
use super::view::{Listed, NodeDetail, NodeTestView, NodeView, listed};
use crate::clock::now_ms;
use crate::registry::node_change::NodeChange;
use crate::registry::nodes::{HubAnnouncement, NodeAnnouncement};
use crate::registry::{Entity, RegistryError, node_test, nodes, tokens};
use crate::selector::{Labels, Selector};
use crate::store::edit::node_version;
use crate::store::list::NODES;
use crate::store::node::NodeState;
use crate::store::node_status::NodeQuery;
use crate::store::precondition::Edited;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use spoke_model::address::HostPort;
use spoke_model::node_id::NodeId;
use std::net::IpAddr;
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The routes.
pub fn router() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new()
        .routes(routes!(nodes, add_node))
        .routes(routes!(toggle_node))
        .routes(routes!(test_node))
        .routes(routes!(node, set_node, remove_node))
        .routes(routes!(set_labels))
        .routes(routes!(approve_node))
        .routes(routes!(add_hub))
}

/// Selects nodes.
#[derive(Clone, Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(default, deny_unknown_fields)]
struct NodesQuery {
    /// With this text in the id or the label, whatever its case.
    filter: String,
    /// With these labels: `site=berlin,model!=pi3`.
    selector: String,
    /// Of this network.
    network: Option<String>,
    /// In this state.
    state: Option<NodeState>,
    /// `id`, `label`, `network`, `state` or `created`; with `-` in front, descending.
    sort: String,
    /// `next_cursor` of the page before.
    cursor: String,
    /// At most this many, 1 to 1000.
    limit: Option<i64>,
}

/// Lists nodes, by id unless `sort` says otherwise.
#[utoipa::path(get, path = "/api/nodes", params(NodesQuery), responses(
    (status = 200, body = Answer<Listed<NodeView>>), (status = 400)))]
async fn nodes(
    State(state): State<Arc<ApiState>>,
    _by: Operator,
    Query(wanted): Query<NodesQuery>,
) -> OperatorResult<Listed<NodeView>> {
    let selector = wanted.selector.parse::<Selector>();
    let selector = selector.map_err(|e| OperatorError::bad_field("selector", e))?;
    let page = page_of(&NODES, &wanted.sort, &wanted.cursor, wanted.limit)?;
    let query = NodeQuery {
        only: None,
        network: wanted.network.as_deref(),
        state: wanted.state,
        filter: Some(&wanted.filter),
        selector: Some(&selector),
        after: "",
    };
    let found = state.store.read().await?.list_nodes(&query, &page).await?;
    Ok(success(listed(found)))
}

/// Replaces the labels of a node.
#[utoipa::path(put, path = "/api/nodes/{id}/labels", params(("id" = String, Path)), request_body = Labels, responses(
    (status = 200, body = Answer<NodeView>), (status = 400), (status = 404), (status = 412)))]
async fn set_labels(
    State(state): State<Arc<ApiState>>,
    by: Operator,
    condition: Condition,
    Path(id): Path<NodeId>,
    Body(labels): Body<Labels>,
) -> OperatorResult<NodeView> {
    let store = condition.store(&state.store, Edited::Node(id.clone()));
    let done = nodes::set_labels(&store, &id, &labels, &by.actor(), now_ms()).await;
    changed(&state, &id, done).await
}

async fn view(state: &ApiState, id: &NodeId) -> OperatorResult<NodeView> {
    let found = state.store.read().await?.node_status(id).await?;
    let status = found.ok_or_else(|| OperatorError::not_found(Entity::Node, id.as_str()))?;
    let version = node_version(&status.node, &status.labels);
    Ok(success(NodeView::from(status)).versioned(&version))
}

/// The answer to a change of a node: the node as it is, also where another one changed it before.
async fn changed(state: &ApiState, id: &NodeId, done: Result<(), RegistryError>) -> OperatorResult<NodeView> {
    match done.map_err(OperatorError::from) {
        Ok(()) => view(state, id).await,
        Err(e) if e.is_changed() => Err(e.with_data(view(state, id).await?)),
        Err(e) => Err(e),
    }
}

/// Shows one node.
#[utoipa::path(get, path = "/api/nodes/{id}", params(("id" = String, Path)), responses(
    (status = 200, body = Answer<NodeDetail>), (status = 404)))]
async fn node(State(state): State<Arc<ApiState>>, _by: Operator, Path(id): Path<NodeId>) -> OperatorResult<NodeDetail> {
    let found = state.store.read().await?.node_record(&id).await?;
    let record = found.ok_or_else(|| OperatorError::not_found(Entity::Node, id.as_str()))?;
    let version = node_version(&record.status.node, &record.status.labels);
    Ok(success(NodeDetail::from(record)).versioned(&version))
}

/// A node to be announced.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct NodeRequest {
    /// Its id.
    #[schema(value_type = String)]
    node_id: NodeId,
    /// Its network.
    network: String,
    /// For people.
    label: Option<String>,
    /// Of the identity key that may take the name with any token of the network: `sha256:` and 64 hex digits.
    fingerprint: Option<String>,
}

/// Announces a node; the token enrols it without approval.
#[utoipa::path(post, path = "/api/nodes", request_body = NodeRequest, responses(
    (status = 200, body = Answer<CreatedToken>), (status = 400), (status = 404), (status = 409)))]
async fn add_node(
    State(state): State<Arc<ApiState>>,
    by: Operator,
    Body(request): Body<NodeRequest>,
) -> OperatorResult<CreatedToken> {
    let NodeRequest { node_id, network, label, fingerprint } = request;
    let announced = NodeAnnouncement { label, fingerprint };
    let token = nodes::announce(&state.store, &node_id, &network, announced, &by.actor(), now_ms()).await?;
    Ok(success(CreatedToken { id: node_id.to_string(), token: token.reveal().clone() }))
}

/// Disables an enabled node, or enables a disabled one; a disabled node stays enrolled and is a peer of no hub.
#[utoipa::path(post, path = "/api/nodes/{id}/toggle", params(("id" = String, Path)), responses(
    (status = 200, body = Answer<NodeView>), (status = 404), (status = 409), (status = 412)))]
async fn toggle_node(
    State(state): State<Arc<ApiState>>,
    by: Operator,
    condition: Condition,
    Path(id): Path<NodeId>,
) -> OperatorResult<NodeView> {
    let store = condition.store(&state.store, Edited::Node(id.clone()));
    let done = nodes::toggle(&store, &id, &by.actor(), now_ms()).await;
    changed(&state, &id, done).await
}

/// Probes a node: whether it is reachable now, and healthy by its last report.
#[utoipa::path(post, path = "/api/nodes/{id}/test", params(("id" = String, Path)), responses(
    (status = 200, body = Answer<NodeTestView>, description = "it is reachable and healthy"), (status = 404),
    (status = 409, description = "it is not enrolled: `data` is the test's result"),
    (status = 503, description = "it is not reachable, or not healthy: `data` is the test's result")))]
async fn test_node(
    State(state): State<Arc<ApiState>>,
    _by: Operator,
    Path(id): Path<NodeId>,
) -> OperatorResult<NodeTestView> {
    let test = node_test::run(&state.store, &id).await?;
    let failed = match (test.passed(), test.is_enrolled()) {
        (true, _) => None,
        (false, true) => Some(ErrorCode::NodeFailed),
        (false, false) => Some(ErrorCode::WrongState),
    };
    let view = NodeTestView::from(test);
    let message = view.message.clone();
    match failed {
        None => Ok(Answer { message: Some(message), ..success(view) }),
        Some(code) => Err(OperatorError::new(code, message).with_data(success(view))),
    }
}

/// Changes label, isolation, overrides of a node, and whether it is enabled.
#[utoipa::path(put, path = "/api/nodes/{id}", params(("id" = String, Path)), request_body = NodeChange, responses(
    (status = 200, body = Answer<NodeView>), (status = 400), (status = 404), (status = 409), (status = 412)))]
async fn set_node(
    State(state): State<Arc<ApiState>>,
    by: Operator,
    condition: Condition,
    Path(id): Path<NodeId>,
    Body(change): Body<NodeChange>,
) -> OperatorResult<NodeView> {
    let store = condition.store(&state.store, Edited::Node(id.clone()));
    let done = nodes::change(&store, &id, &change, &by.actor(), now_ms()).await;
    changed(&state, &id, done).await
}

/// How a node is removed.
#[derive(Clone, Copy, Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(default, deny_unknown_fields)]
struct RemovalQuery {
    /// Whether the token it was enrolled with is revoked too: the device still has it.
    revoke_token: bool,
}

/// Removes a node from the fleet; `message` names the token it was enrolled with if that can enrol further devices.
#[utoipa::path(delete, path = "/api/nodes/{id}", params(("id" = String, Path), RemovalQuery), responses(
    (status = 200, body = Answer<NodeView>), (status = 404), (status = 409), (status = 412)))]
async fn remove_node(
    State(state): State<Arc<ApiState>>,
    Query(query): Query<RemovalQuery>,
    by: Operator,
    condition: Condition,
    Path(id): Path<NodeId>,
) -> OperatorResult<NodeView> {
    let (actor, now) = (by.actor(), now_ms());
    let store = condition.store(&state.store, Edited::Node(id.clone()));
    let enrolling = tokens::enrolling(&store, &id, now).await?;
    let removal = async {
        if let Some((token, _)) = enrolling.as_ref().filter(|_| query.revoke_token) {
            tokens::revoke(&store, token, &actor, now).await?;
        }
        nodes::remove(&store, &id, &actor, now).await
    };
    let done = removal.await;
    let mut answer = changed(&state, &id, done).await?;
    answer.message = enrolling.filter(|_| !query.revoke_token).map(|(token, left)| {
        format!(
            "token {token}, which enrolled {id}, is valid for {left} more enrolments: revoke it if the device is lost"
        )
    });
    Ok(answer)
}

/// Approves a pending node.
#[utoipa::path(post, path = "/api/nodes/{id}/approve", params(("id" = String, Path)), responses(
    (status = 200, body = Answer<NodeView>), (status = 404), (status = 409), (status = 412)))]
async fn approve_node(
    State(state): State<Arc<ApiState>>,
    by: Operator,
    condition: Condition,
    Path(id): Path<NodeId>,
) -> OperatorResult<NodeView> {
    let store = condition.store(&state.store, Edited::Node(id.clone()));
    let done = nodes::approve(&store, &id, &by.actor(), now_ms()).await;
    changed(&state, &id, done).await
}

/// A hub to be announced.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct HubRequest {
    /// Its node id.
    #[schema(value_type = String)]
    node_id: NodeId,
    /// Its network.
    network: String,
    /// Where nodes reach it, `HOST:PORT`.
    #[schema(value_type = String)]
    endpoint: HostPort,
    /// Its address inside the tunnel; the first free one if absent.
    #[schema(value_type = Option<String>)]
    address: Option<IpAddr>,
    /// Of the identity key that may take the name with any token of the network: `sha256:` and 64 hex digits.
    fingerprint: Option<String>,
}

/// Announces a hub; the token enrols it.
#[utoipa::path(post, path = "/api/hubs", request_body = HubRequest, responses(
    (status = 200, body = Answer<CreatedToken>), (status = 400), (status = 404), (status = 409)))]
async fn add_hub(
    State(state): State<Arc<ApiState>>,
    by: Operator,
    Body(request): Body<HubRequest>,
) -> OperatorResult<CreatedToken> {
    let HubRequest { node_id, network, endpoint, address, fingerprint } = request;
    let announced = HubAnnouncement { endpoint, address, fingerprint };
    let (store, actor) = (&state.store, by.actor());
    let token = nodes::announce_hub(store, &node_id, &network, &announced, &actor, now_ms()).await?;
    Ok(success(CreatedToken { id: node_id.to_string(), token: token.reveal().clone() }))
}
