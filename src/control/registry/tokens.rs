//! Enrolment tokens: creation and revocation, audited.
use super::{Entity, RegistryError};
use crate::store::Store;
use crate::store::audit::Actor;
use crate::store::token::NewToken;
use spoke_model::secret::Secret;

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

/// Revokes a token.
pub async fn revoke(store: &Store, id: &str, actor: &Actor, now_ms: i64) -> Result<(), RegistryError> {
    let mut tx = store.write().await?;
    if !tx.revoke_token(id, now_ms).await? {
        return Err(RegistryError::NotFound(Entity::Token, id.to_owned()));
    }
    tx.audit(now_ms, actor, "revoke", ("token", id), serde_json::Value::Null).await?;
    Ok(tx.commit().await?)
}
