//! Enrolment tokens: creation and revocation, audited.
use super::{Entity, RegistryError};
use crate::store::Store;
use crate::store::audit::Actor;
use crate::store::token::NewToken;
use spoke_model::node_id::NodeId;
use spoke_model::secret::Secret;

/// How long a token is valid unless the operator says otherwise, in milliseconds.
pub const DEFAULT_LIFETIME_MS: i64 = 7 * 86_400_000;

/// When a token made at `now_ms` expires; `lifetime_secs` of `None` is the default, 0 is never.
pub fn expiry(lifetime_secs: Option<u64>, now_ms: i64) -> Option<i64> {
    super::expires(lifetime_secs, DEFAULT_LIFETIME_MS, now_ms)
}

/// Creates a token; returns its id and its text, which is not stored.
pub async fn create(
    store: &Store,
    new: &NewToken,
    actor: &Actor,
    now_ms: i64,
) -> Result<(String, Secret<String>), RegistryError> {
    if !(1..=1_000_000).contains(&new.max_uses) {
        return Err(RegistryError::Value { field: "uses", expected: "1 to 1000000" });
    }
    let mut tx = store.write().await?;
    if tx.network(&new.network).await?.is_none() {
        return Err(RegistryError::NotFound(Entity::Network, new.network.clone()));
    }
    let created = tx.add_token(new, now_ms).await?;
    let details =
        serde_json::json!({"network": new.network, "node": new.node, "max_uses": new.max_uses, "note": new.note});
    tx.audit(now_ms, actor, "create", ("token", &created.0), details).await?;
    tx.commit().await?;
    Ok(created)
}

/// The token that enrolled `node`, if it can enrol further devices, and how many.
///
/// A token bound to the node is not among them: the removal of the node revokes it.
pub async fn enrolling(store: &Store, node: &NodeId, now_ms: i64) -> Result<Option<(String, u64)>, RegistryError> {
    let token = store.read().await?.enrolling_token(node).await?;
    let usable = token.filter(|t| t.node.is_none()).map(|t| (t.uses_left(now_ms), t.id)).filter(|(left, _)| *left > 0);
    Ok(usable.map(|(left, id)| (id, left)))
}

/// Revokes a token.
pub async fn revoke(store: &Store, id: &str, actor: &Actor, now_ms: i64) -> Result<(), RegistryError> {
    let mut tx = store.write().await?;
    if !tx.revoke_token(id, now_ms).await? {
        return Err(RegistryError::NotFound(Entity::Token, id.to_owned()));
    }
    tx.audit(now_ms, actor, "revoke", ("token", id), serde_json::Value::Null).await?;
    Ok(tx.commit().await?)
}
