//! The operators' API for enrolment tokens.
use super::auth::Operator;
use super::extract::{Body, ListQuery};
use super::response::{Answer, OperatorResult, success};
use super::state::ApiState;
use super::view::{Listed, TokenView, listed};
use crate::clock::now_ms;
use crate::registry::tokens;
use crate::store::list::TOKENS;
use crate::store::token::NewToken;
use axum::extract::{Path, Query, State};
use serde::{Deserialize, Serialize};
use spoke_model::node_id::NodeId;
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The routes.
pub fn router() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new().routes(routes!(tokens, add_token)).routes(routes!(revoke_token))
}

/// Lists enrolment tokens without their text, newest first unless `sort` (`id`, `created`) says otherwise.
#[utoipa::path(get, path = "/api/tokens", params(ListQuery), responses(
    (status = 200, body = Answer<Listed<TokenView>>), (status = 400)))]
async fn tokens(
    State(state): State<Arc<ApiState>>,
    _by: Operator,
    Query(wanted): Query<ListQuery>,
) -> OperatorResult<Listed<TokenView>> {
    let page = wanted.page(&TOKENS)?;
    Ok(success(listed(state.store.read().await?.list_tokens(&wanted.filter, &page).await?)))
}

/// A token to be created.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct TokenRequest {
    /// The network its nodes join.
    network: String,
    /// The only node it enrols.
    #[schema(value_type = Option<String>)]
    node: Option<NodeId>,
    /// For people.
    note: Option<String>,
    /// How often it may be used; once if absent.
    max_uses: Option<u64>,
    /// Seconds until it expires; a week if absent, never if 0.
    expires_in_secs: Option<u32>,
    /// Whether a device must prove that it holds the WireGuard key it names; true if absent. Devices of releases before
    /// the proof need false.
    key_proof: Option<bool>,
}

/// A created token.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Made)]
pub struct CreatedToken {
    /// For listing and revoking it.
    pub id: String,
    /// Its text, which is not stored.
    pub token: String,
}

impl std::fmt::Debug for CreatedToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreatedToken").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Creates an enrolment token.
#[utoipa::path(post, path = "/api/tokens", request_body = TokenRequest, responses(
    (status = 200, body = Answer<CreatedToken>), (status = 400), (status = 404)))]
async fn add_token(
    State(state): State<Arc<ApiState>>,
    by: Operator,
    Body(request): Body<TokenRequest>,
) -> OperatorResult<CreatedToken> {
    let now = now_ms();
    let new = NewToken {
        network: request.network,
        node: request.node,
        note: request.note,
        max_uses: request.max_uses.unwrap_or(1),
        expires_ms: tokens::expiry(request.expires_in_secs.map(u64::from), now),
        key_proof: request.key_proof.unwrap_or(true),
    };
    let (id, token) = tokens::create(&state.store, &new, &by.actor(), now).await?;
    Ok(success(CreatedToken { id, token: token.reveal().clone() }))
}

/// Revokes a token.
#[utoipa::path(delete, path = "/api/tokens/{id}", params(("id" = String, Path)), responses(
    (status = 200), (status = 404)))]
async fn revoke_token(State(state): State<Arc<ApiState>>, by: Operator, Path(id): Path<String>) -> OperatorResult<()> {
    tokens::revoke(&state.store, &id, &by.actor(), now_ms()).await?;
    Ok(success(()))
}
