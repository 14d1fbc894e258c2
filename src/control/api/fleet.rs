//! The operators' API for the whole fleet: figures and the audit trail.
use super::auth::Operator;
use super::response::{Answer, OperatorError, OperatorResult, success};
use super::state::ApiState;
use super::view::{AuditView, Listed, Overview, all};
use crate::clock::now_ms;
use crate::store::audit::AuditFilter;
use axum::extract::{Query, State};
use serde::{Deserialize, Serialize};
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
    /// Answers a page as other lists do: empty for the first one, `next_cursor` of the page before for others.
    cursor: Option<String>,
}

/// Records of the audit trail.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(untagged)]
enum AuditRecords {
    /// Without `cursor`.
    Plain(Vec<AuditView>),
    /// With `cursor`.
    Page(Listed<AuditView>),
}

/// Lists the audit trail, newest first.
#[utoipa::path(get, path = "/api/audit-logs", params(AuditQuery), responses(
    (status = 200, body = Answer<AuditRecords>), (status = 400)))]
async fn audit_logs(
    State(state): State<Arc<ApiState>>,
    _by: Operator,
    Query(query): Query<AuditQuery>,
) -> OperatorResult<AuditRecords> {
    let before = query.cursor.as_deref().filter(|c| !c.is_empty()).map(str::parse::<i64>).transpose();
    let before = before.map_err(|_| OperatorError::bad_field("cursor", "must be `next_cursor` of the page before"))?;
    let limit = query.limit.unwrap_or(100).clamp(1, 1000);
    let filter = AuditFilter {
        entity_type: query.entity_type,
        entity_id: query.entity_id,
        action: query.action,
        // One more tells whether there is another page.
        limit: limit + i64::from(query.cursor.is_some()),
        offset: query.offset.unwrap_or(0).max(0),
        before,
    };
    let mut tx = state.store.read().await?;
    let mut records: Vec<AuditView> = all(tx.audit_records(&filter).await?);
    if query.cursor.is_none() {
        return Ok(success(AuditRecords::Plain(records)));
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = records.len() > limit;
    records.truncate(limit);
    let next_cursor = records.last().filter(|_| more).map(|r| r.id.to_string());
    let total_estimate = tx.count_audit(&filter).await?;
    Ok(success(AuditRecords::Page(Listed { items: records, next_cursor, total_estimate })))
}

/// Shows the fleet in figures.
#[utoipa::path(get, path = "/api/status", responses((status = 200, body = Answer<Overview>)))]
async fn status(State(state): State<Arc<ApiState>>, _by: Operator) -> OperatorResult<Overview> {
    let counts = state.store.read().await?.fleet_counts(now_ms()).await?;
    Ok(success(Overview::new(counts, state.store.waiter_count(), state.handlers.replays.count())))
}
