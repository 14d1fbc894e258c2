//! The operators' API for networks.
use super::auth::Operator;
use super::extract::{Body, Condition, ListQuery};
use super::response::{Answer, OperatorError, OperatorResult, success};
use super::state::ApiState;
use super::view::{Listed, listed};
use crate::clock::now_ms;
use crate::registry::network_change::{NO_CONTRACT, NetworkChange};
use crate::registry::{Entity, RegistryError, networks};
use crate::store::edit::network_version;
use crate::store::list::NETWORKS;
use crate::store::network::Network;
use crate::store::precondition::Edited;
use axum::extract::{Path, Query, State};
use serde::{Deserialize, Serialize};
use spoke_model::interface_name::IfName;
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The routes.
pub fn router() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new().routes(routes!(networks, add_network)).routes(routes!(network, set_network, remove_network))
}

/// Lists networks, by name unless `sort` (`name`, `created`) says otherwise.
#[utoipa::path(get, path = "/api/networks", params(ListQuery), responses(
    (status = 200, body = Answer<Listed<Network>>), (status = 400)))]
async fn networks(
    State(state): State<Arc<ApiState>>,
    _by: Operator,
    Query(wanted): Query<ListQuery>,
) -> OperatorResult<Listed<Network>> {
    let page = wanted.page(&NETWORKS)?;
    Ok(success(listed(state.store.read().await?.list_networks(&wanted.filter, &page).await?)))
}

/// Shows one network.
#[utoipa::path(get, path = "/api/networks/{name}", params(("name" = String, Path)), responses(
    (status = 200, body = Answer<Network>), (status = 404)))]
async fn network(
    State(state): State<Arc<ApiState>>,
    _by: Operator,
    Path(name): Path<String>,
) -> OperatorResult<Network> {
    view(&state, &name).await
}

async fn view(state: &ApiState, name: &str) -> OperatorResult<Network> {
    let found = state.store.read().await?.network(name).await?;
    let network = found.ok_or_else(|| OperatorError::not_found(Entity::Network, name))?;
    let version = network_version(&network);
    Ok(success(network).versioned(&version))
}

/// The error of a change, with the network as it is where another one changed it before.
async fn refused(state: &ApiState, name: &str, e: RegistryError) -> OperatorError {
    let error = OperatorError::from(e);
    if !error.is_changed() {
        return error;
    }
    match view(state, name).await {
        Ok(answer) => error.with_data(answer),
        Err(e) => e,
    }
}

/// A network to be created.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
struct NetworkRequest {
    /// Its name: a-z 0-9 -.
    name: String,
    /// Kernel name of the interface on its nodes; `wg0` if absent.
    #[schema(value_type = Option<String>)]
    interface: Option<IfName>,
    /// Its settings.
    #[serde(flatten)]
    values: NetworkChange,
}

fn check_contract(state: &ApiState, change: &NetworkChange) -> Result<(), OperatorError> {
    if change.needs_contract() && state.grants.is_none() {
        return Err(OperatorError::bad_field("access", NO_CONTRACT));
    }
    Ok(())
}

/// Creates a network.
#[utoipa::path(post, path = "/api/networks", request_body = NetworkRequest, responses(
    (status = 200, body = Answer<Network>), (status = 400), (status = 409)))]
async fn add_network(
    State(state): State<Arc<ApiState>>,
    by: Operator,
    Body(request): Body<NetworkRequest>,
) -> OperatorResult<Network> {
    let interface = match request.interface {
        Some(name) => name,
        None => "wg0".parse().map_err(|e| OperatorError::bad_field("interface", e))?,
    };
    let mut network = Network::new(&request.name, None, None, interface);
    check_contract(&state, &request.values)?;
    request.values.apply(&mut network);
    networks::create(&state.store, &network, &by.actor(), now_ms()).await?;
    let version = network_version(&network);
    Ok(success(network).versioned(&version))
}

/// Changes a network.
#[utoipa::path(put, path = "/api/networks/{name}", params(("name" = String, Path)), request_body = NetworkChange,
    responses((status = 200, body = Answer<Network>), (status = 400), (status = 404), (status = 409), (status = 412)))]
async fn set_network(
    State(state): State<Arc<ApiState>>,
    by: Operator,
    condition: Condition,
    Path(name): Path<String>,
    Body(change): Body<NetworkChange>,
) -> OperatorResult<Network> {
    check_contract(&state, &change)?;
    let store = condition.store(&state.store, Edited::Network(name.clone()));
    match networks::change(&store, &name, |n| change.apply(n), &by.actor(), now_ms()).await {
        Ok(network) => {
            let version = network_version(&network);
            Ok(success(network).versioned(&version))
        }
        Err(e) => Err(refused(&state, &name, e).await),
    }
}

/// A network that was removed.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct RemovedNetwork {
    /// Its name.
    name: String,
}

/// Removes a network that has no nodes, with its tokens.
#[utoipa::path(delete, path = "/api/networks/{name}", params(("name" = String, Path)), responses(
    (status = 200, body = Answer<RemovedNetwork>), (status = 404), (status = 409), (status = 412)))]
async fn remove_network(
    State(state): State<Arc<ApiState>>,
    by: Operator,
    condition: Condition,
    Path(name): Path<String>,
) -> OperatorResult<RemovedNetwork> {
    let store = condition.store(&state.store, Edited::Network(name.clone()));
    match networks::remove(&store, &name, &by.actor(), now_ms()).await {
        Ok(()) => Ok(success(RemovedNetwork { name })),
        Err(e) => Err(refused(&state, &name, e).await),
    }
}
