//! The operators' API for the whole fleet: figures and the audit trail.
use super::auth::Operator;
use super::response::{Answer, OperatorResult, success};
use super::state::ApiState;
use super::view::{AuditView, Overview, all};
use crate::clock::now_ms;
use crate::store::audit::AuditFilter;
use axum::extract::{Query, State};
use serde::Deserialize;
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The routes.
pub fn router() -> OpenApiRouter<Arc<ApiState>> {
    OpenApiRouter::new().routes(routes!(audit_logs)).routes(routes!(status))
}

/// Selects records of the audit trail.
#[derive(Clone, Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(default, deny_unknown_fields)]
struct AuditQuery {
    /// Of this kind of entity.
    entity_type: Option<String>,
    /// Of this entity.
    entity_id: Option<String>,
    /// Of this action.
    action: Option<String>,
    /// At most this many, 1 to 1000; 100 if absent.
    limit: Option<i64>,
    /// Skips this many.
    offset: Option<i64>,
}

/// Lists the audit trail, newest first.
#[utoipa::path(get, path = "/api/audit-logs", params(AuditQuery), responses(
    (status = 200, body = Answer<Vec<AuditView>>)))]
async fn audit_logs(
    State(state): State<Arc<ApiState>>,
    _by: Operator,
    Query(query): Query<AuditQuery>,
) -> OperatorResult<Vec<AuditView>> {
    let filter = AuditFilter {
        entity_type: query.entity_type,
        entity_id: query.entity_id,
        action: query.action,
        limit: query.limit.unwrap_or(100).clamp(1, 1000),
        offset: query.offset.unwrap_or(0).max(0),
    };
    Ok(success(all(state.store.read().await?.audit_records(&filter).await?)))
}

/// Shows the fleet in figures.
#[utoipa::path(get, path = "/api/status", responses((status = 200, body = Answer<Overview>)))]
async fn status(State(state): State<Arc<ApiState>>, _by: Operator) -> OperatorResult<Overview> {
    let counts = state.store.read().await?.fleet_counts(now_ms()).await?;
    Ok(success(Overview::new(counts, state.store.waiter_count(), state.handlers.replays.count())))
}
