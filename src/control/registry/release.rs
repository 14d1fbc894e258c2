//! What operators say about releases: which one a network runs, and which single nodes try it first. Audited.
use super::{RegistryError, again};
use crate::store::Store;
use crate::store::audit::Actor;
use crate::store::release::Release;
use spoke_model::node_id::NodeId;
use spoke_model::release::WantedRelease;

fn entity<'a>(network: &'a str, node: Option<&'a NodeId>) -> (&'static str, &'a str) {
    match node {
        Some(node) => ("node", node.as_str()),
        None => ("network", network),
    }
}

/// Wants a release of a network or of one node in it.
pub async fn want(store: &Store, release: &Release, actor: &Actor, now_ms: i64) -> Result<(), RegistryError> {
    let wanted = WantedRelease { version: release.version.clone(), source: release.source.clone() };
    wanted.check().map_err(|problem| RegistryError::Value(problem.to_owned()))?;
    again!(async {
        let mut tx = store.write().await?;
        tx.lock_network(&release.network).await?;
        if tx.network(&release.network).await?.is_none() {
            return Err(RegistryError::NotFound("network", release.network.clone()));
        }
        if let Some(id) = &release.node {
            let there = tx.node(id).await?.filter(|n| n.network == release.network);
            there.ok_or_else(|| RegistryError::NotFound("node in this network called", id.to_string()))?;
        }
        tx.want_release(release).await?;
        let details = serde_json::json!({"release": release.version, "source": release.source});
        let entity = entity(&release.network, release.node.as_ref());
        tx.audit(now_ms, actor, "want-release", entity, details).await?;
        Ok(tx.commit().await?)
    })
}

/// Wants nothing there any more: devices stay with what they run.
pub async fn unwant(
    store: &Store,
    network: &str,
    node: Option<&NodeId>,
    actor: &Actor,
    now_ms: i64,
) -> Result<(), RegistryError> {
    again!(async {
        let mut tx = store.write().await?;
        if !tx.unwant_release(network, node).await? {
            let (kind, name) = entity(network, node);
            return Err(RegistryError::NotFound("release wanted of", format!("{kind} {name}")));
        }
        tx.audit(now_ms, actor, "unwant-release", entity(network, node), serde_json::Value::Null).await?;
        Ok(tx.commit().await?)
    })
}
