//! Nodes and hubs: announcement, approval, removal and settings, audited.
use super::enrol::activate;
use super::node_change::{NodeChange, check_label};
use super::{Entity, RegistryError, names, retry_conflicts, tokens};
use crate::selector::{LABEL_FORM, Labels, are_labels};
use crate::store::audit::Actor;
use crate::store::network::Network;
use crate::store::node::{Node, NodeState};
use crate::store::token::NewToken;
use crate::store::{Store, StoreError, Tx};
use spoke_config::control::Pin;
use spoke_config::node::Role;
use spoke_model::address::HostPort;
use spoke_model::node_id::NodeId;
use spoke_model::secret::Secret;
use std::net::IpAddr;

/// Stores an announced node and creates the token that enrols it.
async fn put_announced(
    tx: &mut Tx,
    node: &mut Node,
    note: String,
    now_ms: i64,
) -> Result<(Network, Secret<String>), RegistryError> {
    tx.lock_network(&node.network).await?;
    let network = tx.network(&node.network).await?;
    let network = network.ok_or_else(|| RegistryError::NotFound(Entity::Network, node.network.clone()))?;
    let known = tx.node(&node.id).await?;
    if known.as_ref().is_some_and(|n| n.state != NodeState::Removed) {
        return Err(RegistryError::Exists(Entity::Node, node.id.to_string()));
    }
    // The device may still know the generation of the id's last holder.
    node.generation = match known {
        Some(known) => known.generation + 1,
        None => tx.removed_generation(&node.id).await? + 1,
    };
    tx.put_node(node).await?;
    // Made before the name was announced.
    tx.revoke_tokens_of(&node.id, now_ms).await?;
    let new = NewToken {
        network: node.network.clone(),
        node: Some(node.id.clone()),
        note: Some(note),
        max_uses: 1,
        expires_ms: tokens::expiry(None, now_ms),
        key_proof: true,
    };
    Ok((network, tx.add_token(&new, now_ms).await?.1))
}

/// A node to be announced.
#[derive(Clone, Debug, Default)]
pub struct NodeAnnouncement {
    /// For people.
    pub label: Option<String>,
    /// Of the identity key that may take the name with any token of the network.
    pub fingerprint: Option<String>,
}

/// The fingerprint as it is stored and compared.
fn fingerprint(text: Option<&str>) -> Result<Option<String>, RegistryError> {
    let Some(text) = text.map(str::to_ascii_lowercase) else { return Ok(None) };
    let expected = "sha256: and 64 characters of hex, as `spoke key fingerprint` prints it on the device";
    let bad = |_| RegistryError::Value { field: "fingerprint", expected };
    text.parse::<Pin>().map(|_| Some(text)).map_err(bad)
}

/// Announces a node and creates the token that enrols it without approval.
pub async fn announce(
    store: &Store,
    id: &NodeId,
    network: &str,
    announced: NodeAnnouncement,
    actor: &Actor,
    now_ms: i64,
) -> Result<Secret<String>, RegistryError> {
    check_label(announced.label.as_deref())?;
    let fingerprint = fingerprint(announced.fingerprint.as_deref())?;
    let mut tx = store.write().await?;
    let expected = Node::expected(id.clone(), network, Role::Node, now_ms);
    let mut node = Node { label: announced.label, fingerprint, ..expected };
    let (_, token) = put_announced(&mut tx, &mut node, format!("node {id}"), now_ms).await?;
    let details = serde_json::json!({"network": network, "fingerprint": node.fingerprint});
    tx.audit(now_ms, actor, "create", ("node", id.as_str()), details).await?;
    tx.commit().await?;
    Ok(token)
}

/// An address with a scope means something on one machine only.
fn check_endpoint(endpoint: &HostPort) -> Result<(), RegistryError> {
    if endpoint.has_scope() {
        return Err(RegistryError::Value { field: "endpoint", expected: "an address that every node can reach" });
    }
    Ok(())
}

/// A hub to be announced.
#[derive(Clone, Debug)]
pub struct HubAnnouncement {
    /// Where nodes reach it.
    pub endpoint: HostPort,
    /// Its address inside the tunnel; `None`: the first free one.
    pub address: Option<IpAddr>,
    /// Of the identity key that may take the name with any token of the network.
    pub fingerprint: Option<String>,
}

/// Announces a hub, leases its address, and creates the token that enrols it.
pub async fn announce_hub(
    store: &Store,
    id: &NodeId,
    network: &str,
    announced: &HubAnnouncement,
    actor: &Actor,
    now_ms: i64,
) -> Result<Secret<String>, RegistryError> {
    let endpoint = &announced.endpoint;
    check_endpoint(endpoint)?;
    let fingerprint = fingerprint(announced.fingerprint.as_deref())?;
    let mut tx = store.write().await?;
    let expected = Node::expected(id.clone(), network, Role::Hub, now_ms);
    let mut node = Node { endpoint: Some(endpoint.clone()), fingerprint, ..expected };
    let (net, token) = put_announced(&mut tx, &mut node, format!("hub {id}"), now_ms).await?;
    if let Some(address) = announced.address
        && !tx.lease_address(&net, id, address).await?
    {
        return Err(RegistryError::AddressTaken(address));
    }
    // In pools without a given address, a hub prefers the first usable one.
    tx.lease(&net, id, 1, now_ms).await?;
    let details = serde_json::json!({"network": network, "endpoint": endpoint, "fingerprint": node.fingerprint});
    tx.audit(now_ms, actor, "create", ("hub", id.as_str()), details).await?;
    tx.commit().await?;
    Ok(token)
}

/// Approves a pending node.
pub async fn approve(store: &Store, id: &NodeId, actor: &Actor, now_ms: i64) -> Result<(), RegistryError> {
    retry_conflicts!(async {
        let mut tx = store.write().await?;
        let mut node = tx.locked_node(id).await?.ok_or_else(|| RegistryError::node_not_found(id))?;
        if node.state != NodeState::Pending {
            return Err(RegistryError::NotPending { node: id.clone(), state: node.state });
        }
        let network = tx.network(&node.network).await?.ok_or(StoreError::Unreadable("node.network"))?;
        node.state = NodeState::Active;
        tx.put_node(&node).await?;
        activate(&mut tx, &node, &network, now_ms).await?;
        tx.audit(now_ms, actor, "approve", ("node", id.as_str()), serde_json::Value::Null).await?;
        Ok(tx.commit().await?)
    })
}

/// Removes a node from the fleet: its keys and bound tokens are refused, its hubs drop it, its address is quarantined.
pub async fn remove(store: &Store, id: &NodeId, actor: &Actor, now_ms: i64) -> Result<(), RegistryError> {
    retry_conflicts!(async {
        let mut tx = store.write().await?;
        let mut node = tx.locked_node(id).await?.ok_or_else(|| RegistryError::node_not_found(id))?;
        if node.state == NodeState::Removed {
            return Err(RegistryError::Removed(id.clone()));
        }
        let network = tx.network(&node.network).await?.ok_or(StoreError::Unreadable("node.network"))?;
        node.state = NodeState::Removed;
        if let Some(key) = node.identity_key {
            tx.put_removed_identity(id, key, now_ms).await?;
        }
        node.fingerprint = None;
        node.wireguard_key = None;
        node.next_key = None;
        node.next_key_hubs = Vec::new();
        tx.put_node(&node).await?;
        tx.retire_preshared(&node).await?;
        tx.end_leases(&network, id, now_ms).await?;
        // A bound token enrols a removed node: only those created after the removal shall.
        let tokens = tx.revoke_tokens_of(id, now_ms).await?;
        match node.role {
            Role::Node => {
                tx.raise_generation(id).await?;
                tx.raise_hub_generations(&node.network).await?;
            }
            Role::Hub => tx.raise_network_generations(&node.network).await?,
        }
        let details = serde_json::json!({"tokens_revoked": tokens});
        tx.audit(now_ms, actor, "remove", ("node", id.as_str()), details).await?;
        Ok(tx.commit().await?)
    })
}

/// Changes the settings of a node.
pub async fn change(
    store: &Store,
    id: &NodeId,
    change: &NodeChange,
    actor: &Actor,
    now_ms: i64,
) -> Result<(), RegistryError> {
    change.check()?;
    retry_conflicts!(async {
        let mut tx = store.write().await?;
        let node = tx.locked_node(id).await?.ok_or_else(|| RegistryError::node_not_found(id))?;
        put_change(&mut tx, &node, change, actor, now_ms).await?;
        Ok(tx.commit().await?)
    })
}

/// Replaces the labels of a node. Its devices learn nothing of them.
pub async fn set_labels(
    store: &Store,
    id: &NodeId,
    labels: &Labels,
    actor: &Actor,
    now_ms: i64,
) -> Result<(), RegistryError> {
    if !are_labels(labels) {
        return Err(RegistryError::Value { field: "labels", expected: LABEL_FORM });
    }
    retry_conflicts!(async {
        let mut tx = store.write().await?;
        tx.locked_node(id).await?.ok_or_else(|| RegistryError::node_not_found(id))?;
        let before = tx.labels(id).await?;
        if before == *labels {
            return Ok(());
        }
        tx.put_labels(id, labels).await?;
        let details = serde_json::json!({"before": before, "after": labels});
        tx.audit(now_ms, actor, "set_labels", ("node", id.as_str()), details).await?;
        Ok(tx.commit().await?)
    })
}

/// Takes back a later generation that a node holds and this control plane did not give it.
pub async fn take_back(
    store: &Store,
    id: &NodeId,
    generation: u64,
    actor: &Actor,
    now_ms: i64,
) -> Result<(), RegistryError> {
    retry_conflicts!(async {
        let mut tx = store.write().await?;
        let node = tx.locked_node(id).await?.ok_or_else(|| RegistryError::node_not_found(id))?;
        if node.state == NodeState::Removed {
            return Err(RegistryError::Removed(id.clone()));
        }
        if generation <= node.generation {
            return Err(RegistryError::Value {
                field: "generation",
                expected: "later than the one wanted of the node",
            });
        }
        tx.supersede(id, generation).await?;
        // Wakes its long-poll, and no document of before the attack is sent again.
        tx.raise_generation(id).await?;
        let details = serde_json::json!({"generation": generation});
        tx.audit(now_ms, actor, "take_back", ("node", id.as_str()), details).await?;
        Ok(tx.commit().await?)
    })
}

/// Disables an enabled node, and enables a disabled one.
pub async fn toggle(store: &Store, id: &NodeId, actor: &Actor, now_ms: i64) -> Result<(), RegistryError> {
    retry_conflicts!(async {
        let mut tx = store.write().await?;
        let node = tx.locked_node(id).await?.ok_or_else(|| RegistryError::node_not_found(id))?;
        let change = NodeChange { enabled: Some(!node.enabled), ..NodeChange::default() };
        put_change(&mut tx, &node, &change, actor, now_ms).await?;
        Ok(tx.commit().await?)
    })
}

/// Refuses to move a hub that nodes connect to: the endpoint they know would lead nowhere.
async fn refuse_in_use(tx: &mut Tx, hub: &Node) -> Result<(), RegistryError> {
    let Some(endpoint) = hub.endpoint.clone().filter(|_| hub.role == Role::Hub) else { return Ok(()) };
    let nodes = tx.active_nodes(&hub.network).await?;
    if nodes.is_empty() {
        return Ok(());
    }
    Err(RegistryError::HubInUse { hub: hub.id.clone(), endpoint, nodes: names(&nodes, "has it", "have it") })
}

/// Where a hub is moved to.
#[derive(Clone, Debug)]
pub struct HubMove {
    /// Where nodes reach it.
    pub endpoint: HostPort,
    /// The port it listens on; `None`: that of the endpoint.
    pub listen_port: Option<u16>,
    /// Moves it although nodes may still connect to it where it was.
    pub lose_nodes: bool,
}

/// Moves a hub. It must be disabled, and its nodes must have kept a state without it, so that none of them depends on the
/// endpoint that goes; enabling it announces the new one.
pub async fn move_hub(
    store: &Store,
    id: &NodeId,
    to: &HubMove,
    actor: &Actor,
    now_ms: i64,
) -> Result<(), RegistryError> {
    check_endpoint(&to.endpoint)?;
    retry_conflicts!(async {
        let mut tx = store.write().await?;
        let mut hub = tx.locked_node(id).await?.ok_or_else(|| RegistryError::node_not_found(id))?;
        if hub.role != Role::Hub || hub.state == NodeState::Removed {
            return Err(RegistryError::NotAHub(id.clone()));
        }
        if hub.state == NodeState::Active && !to.lose_nodes {
            if hub.enabled {
                refuse_in_use(&mut tx, &hub).await?;
            }
            let behind = tx.nodes_behind(&hub.network).await?;
            if !behind.is_empty() {
                return Err(RegistryError::HubNotLeft { hub: hub.id, nodes: names(&behind, "has", "have") });
            }
        }
        hub.endpoint = Some(to.endpoint.clone());
        hub.overrides.override_listen_port = to.listen_port;
        tx.put_node(&hub).await?;
        tx.raise_network_generations(&hub.network).await?;
        let details = serde_json::json!({"endpoint": to.endpoint, "listen_port": to.listen_port});
        tx.audit(now_ms, actor, "move", ("hub", id.as_str()), details).await?;
        Ok(tx.commit().await?)
    })
}

async fn put_change(
    tx: &mut Tx,
    before: &Node,
    change: &NodeChange,
    actor: &Actor,
    now_ms: i64,
) -> Result<(), RegistryError> {
    if before.state == NodeState::Removed {
        return Err(RegistryError::Removed(before.id.clone()));
    }
    let node = change.apply(before);
    if node == *before {
        return Ok(());
    }
    if before.enabled && before.state == NodeState::Active && node.hub_port() != before.hub_port() {
        refuse_in_use(tx, before).await?;
    }
    tx.put_node(&node).await?;
    if node.overrides != before.overrides {
        tx.raise_generation(&node.id).await?;
    }
    if node.isolated != before.isolated {
        tx.raise_hub_generations(&node.network).await?;
    }
    if node.enabled != before.enabled {
        // A network without a hub has nothing else that changes.
        tx.refresh(&node.id);
        match node.role {
            Role::Node => tx.raise_hub_generations(&node.network).await?,
            Role::Hub => tx.raise_network_generations(&node.network).await?,
        }
    }
    let details = serde_json::json!({
        "label": node.label, "isolated": node.isolated, "enabled": node.enabled, "overrides": node.overrides,
    });
    Ok(tx.audit(now_ms, actor, "set", ("node", node.id.as_str()), details).await?)
}
