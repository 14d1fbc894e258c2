//! What operators and their scripts ask: always `{"status", "message", "data"}`.
use super::answer::{Answer, Refused, done};
use super::peers::Page;
use super::proof::Operator;
use super::{App, now_ms};
use crate::registry::operate;
use crate::registry::operate::NodeChange;
use crate::registry::test;
use crate::registry::test::NodeTest;
use crate::store::admission::ChainView;
use crate::store::audit::{Actor, Filter, Record};
use crate::store::network::{Access, Network};
use crate::store::token::{NewToken, Token};
use crate::store::view::{NodeDetail, NodeView};
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Path, Query, State};
use axum::http::StatusCode;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use spoke_config::policy::GrantsPolicy;
use spoke_model::address::HostPort;
use spoke_model::node_id::NodeId;
use std::net::IpAddr;
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// A JSON body whose faults are told in an envelope.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<T: serde::de::DeserializeOwned> FromRequest<Arc<App>> for Body<T> {
    type Rejection = Refused;
    async fn from_request(request: axum::extract::Request, app: &Arc<App>) -> Result<Self, Refused> {
        match Json::<T>::from_request(request, app).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(e @ JsonRejection::BytesRejection(_)) => Err(Refused(StatusCode::PAYLOAD_TOO_LARGE, e.body_text())),
            Err(e) => Err(Refused(StatusCode::BAD_REQUEST, e.body_text())),
        }
    }
}

/// What is missing for access by NFT.
pub const NO_CONTRACT: &str = "nft needs a [grants] section in the configuration that names the contract";

pub(super) fn actor() -> Actor {
    Actor::Operator("api".into())
}

fn missing(what: &str, which: &str) -> Refused {
    Refused(StatusCode::NOT_FOUND, format!("there is no {what} {which}"))
}

type Done<T> = Result<Json<Answer<T>>, Refused>;

/// The routes of operators.
pub fn router() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(nodes, add_node))
        .routes(routes!(toggle_node))
        .routes(routes!(test_node))
        .routes(routes!(node, set_node, remove_node))
        .routes(routes!(approve_node))
        .routes(routes!(tokens, add_token))
        .routes(routes!(revoke_token))
        .routes(routes!(networks, add_network))
        .routes(routes!(network, set_network))
        .routes(routes!(add_hub))
        .routes(routes!(audit_logs))
        .routes(routes!(status))
}

/// Nodes, by id.
#[utoipa::path(get, path = "/api/nodes", params(Page), responses((status = 200, body = Answer<Vec<NodeView>>)))]
async fn nodes(State(app): State<Arc<App>>, _by: Operator, Query(page): Query<Page>) -> Done<Vec<NodeView>> {
    let limit = page.limit.unwrap_or(1000).clamp(1, 1000);
    Ok(done(app.store.read().await?.node_views(None, &page.after, limit).await?))
}

async fn view(app: &App, id: &NodeId) -> Result<NodeView, Refused> {
    let found = app.store.read().await?.node_views(Some(id), "", 1).await?.pop();
    found.ok_or_else(|| missing("node", id.as_str()))
}

/// One node.
#[utoipa::path(get, path = "/api/nodes/{id}", params(("id" = String, Path)), responses(
    (status = 200, body = Answer<NodeDetail>), (status = 404)))]
async fn node(State(app): State<Arc<App>>, _by: Operator, Path(id): Path<NodeId>) -> Done<NodeDetail> {
    let found = app.store.read().await?.node_detail(&id).await?;
    Ok(done(found.ok_or_else(|| missing("node", id.as_str()))?))
}

/// A node to be.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct NodeRequest {
    /// Its name.
    #[schema(value_type = String)]
    node_id: NodeId,
    /// Its network.
    network: String,
    /// For people.
    label: Option<String>,
}

/// Announces a node; the token enrols it, without approval.
#[utoipa::path(post, path = "/api/nodes", request_body = NodeRequest, responses(
    (status = 200, body = Answer<Made>), (status = 400), (status = 404), (status = 409)))]
async fn add_node(State(app): State<Arc<App>>, _by: Operator, Body(asked): Body<NodeRequest>) -> Done<Made> {
    let NodeRequest { node_id, network, label } = asked;
    let token = operate::add_node(&app.store, &node_id, &network, label, &actor(), now_ms()).await?;
    Ok(done(Made { id: node_id.to_string(), token: token.reveal().clone() }))
}

/// Switches a node off, or on again: off it stays enrolled and is nobody's peer.
#[utoipa::path(post, path = "/api/nodes/{id}/toggle", params(("id" = String, Path)), responses(
    (status = 200, body = Answer<NodeView>), (status = 404)))]
async fn toggle_node(State(app): State<Arc<App>>, _by: Operator, Path(id): Path<NodeId>) -> Done<NodeView> {
    operate::toggle(&app.store, &id, &actor(), now_ms()).await?;
    Ok(done(view(&app, &id).await?))
}

/// Calls a node: whether it can be reached now, and what it last said of itself.
#[utoipa::path(post, path = "/api/nodes/{id}/test", params(("id" = String, Path)), responses(
    (status = 200, body = Answer<NodeTest>, description = "it came back, and is healthy"), (status = 404),
    (status = 409, body = Answer<NodeTest>, description = "it is not enrolled"),
    (status = 503, body = Answer<NodeTest>, description = "it did not come back, or is not healthy: see message")))]
async fn test_node(
    State(app): State<Arc<App>>,
    _by: Operator,
    Path(id): Path<NodeId>,
) -> Result<(StatusCode, Json<Answer<NodeTest>>), Refused> {
    let test = test::node(&app.store, &id).await?;
    let status = match (test.is_good(), test.enrolled) {
        (true, _) => StatusCode::OK,
        (false, true) => StatusCode::SERVICE_UNAVAILABLE,
        (false, false) => StatusCode::CONFLICT,
    };
    Ok((status, Json(Answer { status: test.is_good(), message: Some(test.message.clone()), data: Some(test) })))
}

/// Sets label, isolation, overrides of a node, and whether it is switched on.
#[utoipa::path(put, path = "/api/nodes/{id}", params(("id" = String, Path)), request_body = NodeChange, responses(
    (status = 200, body = Answer<NodeView>), (status = 400), (status = 404)))]
async fn set_node(
    State(app): State<Arc<App>>,
    _by: Operator,
    Path(id): Path<NodeId>,
    Body(change): Body<NodeChange>,
) -> Done<NodeView> {
    operate::set_node(&app.store, &id, &change, &actor(), now_ms()).await?;
    Ok(done(view(&app, &id).await?))
}

/// Takes a node out of the fleet.
#[utoipa::path(delete, path = "/api/nodes/{id}", params(("id" = String, Path)), responses(
    (status = 200, body = Answer<NodeView>), (status = 404)))]
async fn remove_node(State(app): State<Arc<App>>, _by: Operator, Path(id): Path<NodeId>) -> Done<NodeView> {
    operate::remove(&app.store, &id, &actor(), now_ms()).await?;
    Ok(done(view(&app, &id).await?))
}

/// Lets a node that waits into the fleet.
#[utoipa::path(post, path = "/api/nodes/{id}/approve", params(("id" = String, Path)), responses(
    (status = 200, body = Answer<NodeView>), (status = 404), (status = 409)))]
async fn approve_node(State(app): State<Arc<App>>, _by: Operator, Path(id): Path<NodeId>) -> Done<NodeView> {
    operate::approve(&app.store, &id, &actor(), now_ms()).await?;
    Ok(done(view(&app, &id).await?))
}

/// Enrolment tokens, newest first, without their text.
#[utoipa::path(get, path = "/api/tokens", responses((status = 200, body = Answer<Vec<Token>>)))]
async fn tokens(State(app): State<Arc<App>>, _by: Operator) -> Done<Vec<Token>> {
    Ok(done(app.store.read().await?.tokens().await?))
}

/// What a token shall be good for.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct TokenRequest {
    /// Which network its nodes join.
    network: String,
    /// The only node it enrols.
    #[schema(value_type = Option<String>)]
    node: Option<NodeId>,
    /// For people.
    note: Option<String>,
    /// How often it may be used; once if absent.
    max_uses: Option<u64>,
    /// Seconds until it expires; never if absent.
    expires_in_secs: Option<u32>,
}

/// A token, given this once.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct Made {
    /// For listing and revoking it.
    id: String,
    /// The token; it is kept nowhere.
    token: String,
}

/// Makes an enrolment token.
#[utoipa::path(post, path = "/api/tokens", request_body = TokenRequest, responses(
    (status = 200, body = Answer<Made>), (status = 400), (status = 404)))]
async fn add_token(State(app): State<Arc<App>>, _by: Operator, Body(asked): Body<TokenRequest>) -> Done<Made> {
    let now = now_ms();
    let new = NewToken {
        network: asked.network,
        node: asked.node,
        note: asked.note,
        max_uses: asked.max_uses.unwrap_or(1),
        expires_ms: asked.expires_in_secs.map(|s| now.saturating_add(i64::from(s) * 1000)),
    };
    let (id, token) = operate::add_token(&app.store, &new, &actor(), now).await?;
    Ok(done(Made { id, token: token.reveal().clone() }))
}

/// Makes a token worthless.
#[utoipa::path(delete, path = "/api/tokens/{id}", params(("id" = String, Path)), responses(
    (status = 200), (status = 404)))]
async fn revoke_token(State(app): State<Arc<App>>, _by: Operator, Path(id): Path<String>) -> Done<()> {
    operate::revoke_token(&app.store, &id, &actor(), now_ms()).await?;
    Ok(done(()))
}

/// Networks, by name.
#[utoipa::path(get, path = "/api/networks", responses((status = 200, body = Answer<Vec<Network>>)))]
async fn networks(State(app): State<Arc<App>>, _by: Operator) -> Done<Vec<Network>> {
    Ok(done(app.store.read().await?.networks().await?))
}

/// One network.
#[utoipa::path(get, path = "/api/networks/{name}", params(("name" = String, Path)), responses(
    (status = 200, body = Answer<Network>), (status = 404)))]
async fn network(State(app): State<Arc<App>>, _by: Operator, Path(name): Path<String>) -> Done<Network> {
    let found = app.store.read().await?.network(&name).await?;
    Ok(done(found.ok_or_else(|| missing("network", &name))?))
}

/// What an operator wants of a network; absent leaves as it is.
#[derive(Clone, Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkChange {
    /// IPv4 addresses of its nodes.
    #[schema(value_type = Option<String>)]
    pub pool4: Option<IpNet>,
    /// IPv6 addresses of its nodes.
    #[schema(value_type = Option<String>)]
    pub pool6: Option<IpNet>,
    /// Addresses never given to a node.
    #[schema(value_type = Option<Vec<String>>)]
    pub reserved: Option<Vec<IpAddr>>,
    /// Resolvers inside the tunnel.
    #[schema(value_type = Option<Vec<String>>)]
    pub dns: Option<Vec<IpAddr>>,
    /// Bytes; 0 leaves it to the node.
    pub mtu: Option<u32>,
    /// Seconds; 0 is off.
    pub keepalive: Option<u16>,
    /// Whether hubs forward from node to node.
    pub forwarding: Option<bool>,
    /// Whether an operator has to approve each node.
    pub approval: Option<bool>,
    /// Who may be a peer.
    pub access: Option<Access>,
    /// How long an address stays unused after its node was removed, in seconds.
    pub quarantine_secs: Option<u64>,
    /// The `[grants]` its nodes take where they have none of their own, with the same keys; `{}` takes it away.
    #[schema(value_type = Option<Object>)]
    pub grants: Option<GrantsPolicy>,
}

impl NetworkChange {
    /// Changes `network`.
    pub fn apply(self, network: &mut Network) {
        network.pool4 = self.pool4.or(network.pool4);
        network.pool6 = self.pool6.or(network.pool6);
        network.mtu = self.mtu.or(network.mtu).filter(|m| *m != 0);
        network.keepalive = self.keepalive.unwrap_or(network.keepalive);
        network.forwarding = self.forwarding.unwrap_or(network.forwarding);
        network.approval = self.approval.unwrap_or(network.approval);
        network.access = self.access.unwrap_or(network.access);
        network.quarantine_secs = self.quarantine_secs.unwrap_or(network.quarantine_secs);
        if let Some(reserved) = self.reserved {
            network.reserved = reserved;
        }
        if let Some(dns) = self.dns {
            network.dns = dns;
        }
        if let Some(policy) = self.grants {
            network.grants = Some(policy).filter(|p| !p.is_empty());
        }
    }
}

/// A new network.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
struct NetworkRequest {
    /// Its name: a-z 0-9 -.
    name: String,
    /// Kernel name of the interface on its nodes; `wg0` if absent.
    #[schema(value_type = Option<String>)]
    interface: Option<spoke_model::interface_name::IfName>,
    /// Everything else.
    #[serde(flatten)]
    values: NetworkChange,
}

/// Adds a network.
#[utoipa::path(post, path = "/api/networks", request_body = NetworkRequest, responses(
    (status = 200, body = Answer<Network>), (status = 400), (status = 409)))]
async fn add_network(State(app): State<Arc<App>>, _by: Operator, Body(asked): Body<NetworkRequest>) -> Done<Network> {
    let interface = match asked.interface {
        Some(name) => name,
        None => "wg0".parse().map_err(|e| Refused(StatusCode::BAD_REQUEST, format!("interface: {e}")))?,
    };
    let mut network = Network::new(&asked.name, None, None, interface);
    needs_contract(&app, &asked.values)?;
    asked.values.apply(&mut network);
    operate::add_network(&app.store, &network, &actor(), now_ms()).await?;
    Ok(done(network))
}

/// Access by NFT without a contract to ask would shut everybody out.
fn needs_contract(app: &App, change: &NetworkChange) -> Result<(), Refused> {
    if change.access == Some(Access::Nft) && app.chain.is_none() {
        return Err(Refused(StatusCode::BAD_REQUEST, format!("access: {NO_CONTRACT}")));
    }
    Ok(())
}

/// Changes a network.
#[utoipa::path(put, path = "/api/networks/{name}", params(("name" = String, Path)), request_body = NetworkChange,
    responses((status = 200, body = Answer<Network>), (status = 400), (status = 404), (status = 409)))]
async fn set_network(
    State(app): State<Arc<App>>,
    _by: Operator,
    Path(name): Path<String>,
    Body(change): Body<NetworkChange>,
) -> Done<Network> {
    needs_contract(&app, &change)?;
    let set = operate::set_network(&app.store, &name, |n| change.apply(n), &actor(), now_ms()).await?;
    Ok(done(set))
}

/// A hub to be.
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
}

/// Announces a hub; the token enrols it.
#[utoipa::path(post, path = "/api/hubs", request_body = HubRequest, responses(
    (status = 200, body = Answer<Made>), (status = 400), (status = 404), (status = 409)))]
async fn add_hub(State(app): State<Arc<App>>, _by: Operator, Body(asked): Body<HubRequest>) -> Done<Made> {
    let HubRequest { node_id, network, endpoint, address } = asked;
    let token = operate::add_hub(&app.store, &node_id, &network, &endpoint, address, &actor(), now_ms()).await?;
    Ok(done(Made { id: node_id.to_string(), token: token.reveal().clone() }))
}

/// Which records of the audit trail.
#[derive(Clone, Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(default, deny_unknown_fields)]
struct AuditQuery {
    /// Of this kind of entity.
    entity_type: Option<String>,
    /// Of this entity.
    entity_id: Option<String>,
    /// Of this action.
    action: Option<String>,
    /// At most so many, 1 to 1000; 100 if absent.
    limit: Option<i64>,
    /// After so many.
    offset: Option<i64>,
}

/// The audit trail, newest first.
#[utoipa::path(get, path = "/api/audit-logs", params(AuditQuery), responses((status = 200, body = Answer<Vec<Record>>)))]
async fn audit_logs(State(app): State<Arc<App>>, _by: Operator, Query(q): Query<AuditQuery>) -> Done<Vec<Record>> {
    let filter = Filter {
        entity_type: q.entity_type,
        entity_id: q.entity_id,
        action: q.action,
        limit: q.limit.unwrap_or(100).clamp(1, 1000),
        offset: q.offset.unwrap_or(0).max(0),
    };
    Ok(done(app.store.read().await?.audit_records(&filter).await?))
}

/// The control plane in figures.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Overview {
    /// Version of this program.
    pub version: String,
    /// Nodes and hubs by state.
    pub nodes: std::collections::BTreeMap<String, u64>,
    /// Nodes that wait for a change at this process.
    pub connected: usize,
    /// Nodes whose last report is younger than twenty minutes.
    pub reporting: u64,
    /// Addresses of each network that a node could still get, of its first pool.
    pub free_addresses: std::collections::BTreeMap<String, u64>,
    /// How far the access contract is followed; null: no control plane ever did.
    pub chain: Option<ChainView>,
}

/// The control plane in figures.
#[utoipa::path(get, path = "/api/status", responses((status = 200, body = Answer<Overview>)))]
async fn status(State(app): State<Arc<App>>, _by: Operator) -> Done<Overview> {
    let mut overview = app.store.read().await?.overview(now_ms()).await?;
    overview.connected = app.store.waiting();
    Ok(done(overview))
}
