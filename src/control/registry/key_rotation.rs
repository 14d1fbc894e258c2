//! Rotation of a node's WireGuard key: announce, wait until its hubs accept it, switch.
use super::{RegistryError, retry_conflicts};
use crate::store::audit::Actor;
use crate::store::network::Access;
use crate::store::node::{Node, NodeState};
use crate::store::{Store, StoreError, Tx};
use spoke_enroll::wire::{KeyAnswer, KeyRequest, KeyStep};
use spoke_model::key::PublicKey;
use spoke_model::node_id::NodeId;

/// Takes one step of a rotation for a node that proved its identity. Each step may be repeated.
pub async fn rotate(store: &Store, id: &NodeId, request: &KeyRequest, now_ms: i64) -> Result<KeyAnswer, RegistryError> {
    retry_conflicts!(attempt(store, id, request, now_ms))
}

async fn attempt(store: &Store, id: &NodeId, request: &KeyRequest, now_ms: i64) -> Result<KeyAnswer, RegistryError> {
    let key = request.wireguard_public_key;
    let mut tx = store.write().await?;
    let mut node = tx.locked_node(id).await?.ok_or_else(|| RegistryError::node_not_found(id))?;
    if node.state != NodeState::Active {
        return Err(RegistryError::Removed(id.clone()));
    }
    let actor = Actor::Node(id.to_string());
    let details = serde_json::json!({"wireguard_public_key": key});
    match request.step {
        KeyStep::Announce if node.next_key == Some(key) => {
            return Ok(KeyAnswer { ready: is_ready(&mut tx, &node, key, now_ms).await? });
        }
        KeyStep::Announce => {
            if tx.node_with_key(key).await?.is_some() {
                return Err(RegistryError::KeyTaken);
            }
            node.next_key = Some(key);
            tx.put_node(&node).await?;
            tx.retire_preshared(&node).await?;
            tx.begin_preshared(&node, key).await?;
            tx.raise_generation(id).await?;
            tx.raise_hub_generations(&node.network).await?;
            node.next_key_hubs = tx.hubs(&node.network).await?.into_iter().map(|h| (h.id, h.generation)).collect();
            if tx.has_preshared(key).await? {
                // It must have kept the preshared keys of the new key before it may change to it.
                node.next_key_hubs.extend(tx.node(id).await?.map(|n| (n.id, n.generation)));
            }
            tx.put_node(&node).await?;
            tx.audit(now_ms, &actor, "announce_key", ("node", id.as_str()), details).await?;
        }
        KeyStep::Switch if node.wireguard_key == Some(key) => return Ok(KeyAnswer { ready: true }),
        KeyStep::Switch => {
            if node.next_key != Some(key) {
                return Err(RegistryError::KeyNotAnnounced);
            }
            node.wireguard_key = Some(key);
            node.next_key = None;
            node.next_key_hubs = Vec::new();
            tx.put_node(&node).await?;
            tx.retire_preshared(&node).await?;
            tx.raise_hub_generations(&node.network).await?;
            tx.raise_generation(id).await?;
            tx.audit(now_ms, &actor, "switch_key", ("node", id.as_str()), details).await?;
        }
    }
    let ready = request.step == KeyStep::Switch || is_ready(&mut tx, &node, key, now_ms).await?;
    tx.commit().await?;
    Ok(KeyAnswer { ready })
}

/// A hub without a report for this long is not waited for, in milliseconds: longer than two of its usual reports.
const SILENT_MS: i64 = 45 * 60 * 1000;

/// Whether the node may switch to `key`: the contract, where it decides, must grant it, every hub that reports must have
/// kept the generation that brought it the key, and the node the one with its preshared keys.
async fn is_ready(tx: &mut Tx, node: &Node, key: PublicKey, now_ms: i64) -> Result<bool, RegistryError> {
    let network = tx.network(&node.network).await?.ok_or(StoreError::Unreadable("node.network"))?;
    let granted = match network.access {
        Access::Open => true,
        Access::Nft => tx.admission(&node.id, key).await?.is_some_and(|a| a.reason.grants()),
    };
    let (own, hubs): (Vec<_>, Vec<_>) = node.next_key_hubs.iter().cloned().partition(|(id, _)| *id == node.id);
    let hubs_ready = tx.have_confirmed(&hubs, now_ms.saturating_sub(SILENT_MS)).await?;
    Ok(granted && hubs_ready && tx.have_confirmed(&own, i64::MIN).await?)
}
