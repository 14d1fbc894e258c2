//! The operators' API for their own keys.
use super::auth::Operator;
use super::extract::{Body, ListQuery};
use super::response::{Answer, OperatorResult, success};
use super::state::ApiState;
use super::view::{Listed, OperatorKeyView, listed};
use crate::clock::now_ms;
use crate::registry::operator_keys;
use crate::store::list::OPERATOR_KEYS;
use crate::store::operator_key::OperatorRole;
use axum::extract::{Path, Query, State};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The routes.
pub fn router() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new().routes(routes!(keys, add_key)).routes(routes!(revoke_key)).routes(routes!(me))
}

/// Lists the keys of operators without their text, newest first unless `sort` (`id`, `name`, `role`, `created`) says otherwise.
#[utoipa::path(get, path = "/api/keys", params(ListQuery), responses(
    (status = 200, body = Answer<Listed<OperatorKeyView>>), (status = 400), (status = 403)))]
async fn keys(
    State(state): State<Arc<ApiState>>,
    _by: Operator,
    Query(wanted): Query<ListQuery>,
) -> OperatorResult<Listed<OperatorKeyView>> {
    let page = wanted.page(&OPERATOR_KEYS)?;
    Ok(success(listed(state.store.read().await?.list_operator_keys(&wanted.filter, &page).await?)))
}

/// A key to be created.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct OperatorKeyRequest {
    /// Whose it is, for the audit trail.
    name: String,
    /// `viewer`, `operator` or `admin`.
    role: OperatorRole,
    /// Seconds until it expires; a year if absent, never if 0.
    expires_in_secs: Option<u32>,
}

/// A created key.
#[derive(Serialize, utoipa::ToSchema)]
struct CreatedOperatorKey {
    /// For listing and revoking it.
    id: String,
    /// Its text, which is not stored.
    key: String,
}

impl std::fmt::Debug for CreatedOperatorKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreatedOperatorKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Creates a key for an operator.
#[utoipa::path(post, path = "/api/keys", request_body = OperatorKeyRequest, responses(
    (status = 200, body = Answer<CreatedOperatorKey>), (status = 400), (status = 403), (status = 409)))]
async fn add_key(
    State(state): State<Arc<ApiState>>,
    by: Operator,
    Body(request): Body<OperatorKeyRequest>,
) -> OperatorResult<CreatedOperatorKey> {
    let now = now_ms();
    let expires_ms = operator_keys::expiry(request.expires_in_secs.map(u64::from), now);
    let (id, key) =
        operator_keys::create(&state.store, (&request.name, request.role), expires_ms, &by.actor(), now).await?;
    Ok(success(CreatedOperatorKey { id, key: key.reveal().clone() }))
}

/// Revokes a key.
#[utoipa::path(delete, path = "/api/keys/{id}", params(("id" = String, Path)), responses(
    (status = 200), (status = 403), (status = 404)))]
async fn revoke_key(State(state): State<Arc<ApiState>>, by: Operator, Path(id): Path<String>) -> OperatorResult<()> {
    operator_keys::revoke(&state.store, &id, &by.actor(), now_ms()).await?;
    Ok(success(()))
}

/// The caller.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct Me {
    /// Its name in the audit trail.
    name: String,
    /// What it may do.
    role: OperatorRole,
}

/// Shows whose key this is.
#[utoipa::path(get, path = "/api/me", responses((status = 200, body = Answer<Me>)))]
async fn me(by: Operator) -> OperatorResult<Me> {
    Ok(success(Me { name: by.name, role: by.role }))
}
