//! Desired releases of a network's images, or of single nodes that try one first; audited.
use super::{Entity, RegistryError, retry_conflicts};
use crate::store::Store;
use crate::store::audit::Actor;
use crate::store::node::NodeState;
use crate::store::release::Release;
use spoke_model::node_id::NodeId;
use spoke_model::release::{Rollout, WantedRelease};
use spoke_model::url::{BadUrl, HttpUrl};

/// Longest rollout, in seconds.
const MAX_SPREAD: u32 = 30 * 86_400;

fn entity<'a>(network: &'a str, node: Option<&'a NodeId>) -> (&'static str, &'a str) {
    match node {
        Some(node) => ("node", node.as_str()),
        None => ("network", network),
    }
}

/// Refuses a version that no bundle has: devices would look for it for ever.
fn check_version(version: &str) -> Result<(), RegistryError> {
    let number = version.strip_prefix('v').unwrap_or(version);
    if number.starts_with(|c: char| c.is_ascii_digit()) {
        return Ok(());
    }
    let wanted = "want the version of a bundle, such as 1.4.0: `spoke-image inspect BUNDLE` prints it";
    Err(RegistryError::Release(format!("{version:?} is not a release: {wanted}")))
}

/// Sets the desired release of a network or of one node in it.
pub async fn set(store: &Store, release: &Release, actor: &Actor, now_ms: i64) -> Result<(), RegistryError> {
    let bad = |e: BadUrl| RegistryError::Release(format!("release source {e}"));
    let source = release.source.as_deref().map(str::parse::<HttpUrl>).transpose().map_err(bad)?;
    check_version(&release.version)?;
    let release = &Release { source: source.map(|s| s.reveal()), since_ms: now_ms, ..release.clone() };
    let (version, source) = (release.version.clone(), release.source.clone());
    let wanted = WantedRelease { version, source, rollout: Rollout::default() };
    wanted.check().map_err(|problem| RegistryError::Release(problem.to_string()))?;
    if release.spread_seconds > MAX_SPREAD {
        return Err(RegistryError::Release("release spread must be at most 30 days".into()));
    }
    retry_conflicts!(async {
        let mut tx = store.write().await?;
        tx.lock_network(&release.network).await?;
        if tx.network(&release.network).await?.is_none() {
            return Err(RegistryError::NotFound(Entity::Network, release.network.clone()));
        }
        if let Some(id) = &release.node {
            let member = tx.node(id).await?.filter(|n| n.network == release.network && n.state != NodeState::Removed);
            member.ok_or_else(|| RegistryError::NotFound(Entity::NodeInNetwork, id.to_string()))?;
        }
        tx.put_release(release).await?;
        let details = serde_json::json!({"release": release.version, "source": release.source, "spread_seconds": release.spread_seconds});
        let entity = entity(&release.network, release.node.as_ref());
        tx.audit(now_ms, actor, "want-release", entity, details).await?;
        Ok(tx.commit().await?)
    })
}

fn none_wanted(network: &str, node: Option<&NodeId>) -> RegistryError {
    let (kind, name) = entity(network, node);
    RegistryError::NotFound(Entity::Release, format!("{kind} {name}"))
}

/// Has the nodes that gave the desired release of a network, or of one node in it, up try it again.
pub async fn retry(
    store: &Store,
    network: &str,
    node: Option<&NodeId>,
    actor: &Actor,
    now_ms: i64,
) -> Result<(), RegistryError> {
    retry_conflicts!(async {
        let mut tx = store.write().await?;
        if !tx.renew_release(network, node, now_ms).await? {
            return Err(none_wanted(network, node));
        }
        tx.audit(now_ms, actor, "retry-release", entity(network, node), serde_json::Value::Null).await?;
        Ok(tx.commit().await?)
    })
}

/// Clears the desired release of a network or of one node in it: devices keep what they run.
pub async fn clear(
    store: &Store,
    network: &str,
    node: Option<&NodeId>,
    actor: &Actor,
    now_ms: i64,
) -> Result<(), RegistryError> {
    retry_conflicts!(async {
        let mut tx = store.write().await?;
        if !tx.delete_release(network, node).await? {
            return Err(none_wanted(network, node));
        }
        tx.audit(now_ms, actor, "unwant-release", entity(network, node), serde_json::Value::Null).await?;
        Ok(tx.commit().await?)
    })
}
