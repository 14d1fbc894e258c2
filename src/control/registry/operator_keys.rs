//! Keys of operators: creation and revocation, audited.
use super::{Entity, RegistryError};
use crate::store::Store;
use crate::store::audit::Actor;
use crate::store::operator_key::OperatorRole;
use spoke_model::secret::Secret;

/// How long a key is valid unless the admin says otherwise, in milliseconds.
const DEFAULT_LIFETIME_MS: i64 = 365 * 86_400_000;

/// When a key made at `now_ms` expires; `lifetime_secs` of `None` is the default, 0 is never.
pub fn expiry(lifetime_secs: Option<u64>, now_ms: i64) -> Option<i64> {
    super::expires(lifetime_secs, DEFAULT_LIFETIME_MS, now_ms)
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'@'))
}

/// Creates a key; returns its id and its text, which is not stored.
pub async fn create(
    store: &Store,
    (name, role): (&str, OperatorRole),
    expires_ms: Option<i64>,
    actor: &Actor,
    now_ms: i64,
) -> Result<(String, Secret<String>), RegistryError> {
    // The name of the holder of `api.operator_token` in the audit trail.
    if !is_name(name) || name == "api" {
        return Err(RegistryError::Value {
            field: "name",
            expected: "1 to 64 letters, digits, or _ - . @, other than api",
        });
    }
    let mut tx = store.write().await?;
    // One name is one person or program in the audit trail.
    if tx.operator_keys().await?.iter().any(|k| k.name == name && k.is_valid(now_ms)) {
        return Err(RegistryError::Exists(Entity::OperatorKey, name.to_owned()));
    }
    let created = tx.add_operator_key((name, role), expires_ms, now_ms).await?;
    let details = serde_json::json!({"name": name, "role": role});
    tx.audit(now_ms, actor, "create", ("operator_key", &created.0), details).await?;
    tx.commit().await?;
    Ok(created)
}

/// Revokes a key.
pub async fn revoke(store: &Store, id: &str, actor: &Actor, now_ms: i64) -> Result<(), RegistryError> {
    let mut tx = store.write().await?;
    let name = tx.revoke_operator_key(id, now_ms).await?;
    let name = name.ok_or_else(|| RegistryError::NotFound(Entity::OperatorKey, id.to_owned()))?;
    tx.audit(now_ms, actor, "revoke", ("operator_key", id), serde_json::json!({"name": name})).await?;
    Ok(tx.commit().await?)
}
