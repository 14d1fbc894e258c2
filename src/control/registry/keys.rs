//! A node changes its WireGuard key: announce, wait until its hubs know it, switch.
use super::{RegistryError, again};
use crate::store::audit::Actor;
use crate::store::network::Access;
use crate::store::node::{Node, NodeState};
use crate::store::{Store, StoreError, Tx};
use spoke_enroll::wire::{KeyAnswer, KeyRequest, KeyStep};
use spoke_model::key::PublicKey;
use spoke_model::node_id::NodeId;

/// One step of a change of keys, for the node that proved its identity. Each step may be repeated.
pub async fn change(store: &Store, id: &NodeId, request: &KeyRequest, now_ms: i64) -> Result<KeyAnswer, RegistryError> {
    again!(attempt(store, id, request, now_ms))
}

async fn attempt(store: &Store, id: &NodeId, request: &KeyRequest, now_ms: i64) -> Result<KeyAnswer, RegistryError> {
    let key = request.wireguard_public_key;
    let mut tx = store.write().await?;
    let mut node = tx.locked_node(id).await?.ok_or_else(|| RegistryError::NotFound("node", id.to_string()))?;
    if node.state != NodeState::Active {
        return Err(RegistryError::Revoked(id.clone()));
    }
    let actor = Actor::Node(id.to_string());
    let details = serde_json::json!({"wireguard_public_key": key});
    match request.step {
        KeyStep::Announce if node.next_key == Some(key) => {
            return Ok(KeyAnswer { ready: is_ready(&mut tx, &node, key).await? });
        }
        KeyStep::Announce => {
            if tx.node_with_key(key).await?.is_some() {
                return Err(RegistryError::KeyTaken);
            }
            node.next_key = Some(key);
            tx.put_node(&node).await?;
            tx.touch_hubs(&node.network).await?;
            node.next_key_hubs = tx.hubs(&node.network).await?.into_iter().map(|h| (h.id, h.generation)).collect();
            tx.put_node(&node).await?;
            tx.touch(id).await?;
            tx.audit(now_ms, &actor, "announce_key", ("node", id.as_str()), details).await?;
        }
        KeyStep::Switch if node.wireguard_key == Some(key) => return Ok(KeyAnswer { ready: true }),
        KeyStep::Switch => {
            if node.next_key != Some(key) {
                return Err(RegistryError::Conflict("announce the key before switching to it".into()));
            }
            node.wireguard_key = Some(key);
            node.next_key = None;
            node.next_key_hubs = Vec::new();
            tx.put_node(&node).await?;
            tx.touch_hubs(&node.network).await?;
            tx.touch(id).await?;
            tx.audit(now_ms, &actor, "switch_key", ("node", id.as_str()), details).await?;
        }
    }
    let ready = request.step == KeyStep::Switch || is_ready(&mut tx, &node, key).await?;
    tx.commit().await?;
    Ok(KeyAnswer { ready })
}

/// Whether the node may change to `key`: where the contract decides, it has to grant the key first.
async fn is_ready(tx: &mut Tx, node: &Node, key: PublicKey) -> Result<bool, RegistryError> {
    let network = tx.network(&node.network).await?.ok_or(StoreError::Unreadable("node.network"))?;
    let granted = match network.access {
        Access::Open => true,
        Access::Nft => tx.verdict(&node.id, key).await?.is_some_and(|v| v.reason.grants()),
    };
    Ok(granted && hubs_know(tx, &node.next_key_hubs).await?)
}

/// Whether every hub has reported the generation that brought it the new key.
async fn hubs_know(tx: &mut Tx, hubs: &[(NodeId, u64)]) -> Result<bool, StoreError> {
    for (hub, generation) in hubs {
        let sql = "SELECT 1 AS one FROM report WHERE node = $1 AND generation >= $2";
        let wanted = i64::try_from(*generation).unwrap_or(i64::MAX);
        if tx.row(sql, &[hub.as_str().into(), wanted.into()]).await?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}
