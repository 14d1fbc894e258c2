//! What operators do: networks, hubs, tokens, approval, removal, names and overrides. Every change is audited.
use super::enrol::{admit, lease};
use super::{RegistryError, again};
use crate::store::audit::Actor;
use crate::store::network::Network;
use crate::store::node::{Node, NodeState, Overrides};
use crate::store::token::NewToken;
use crate::store::{Store, StoreError, Tx};
use ipnet::IpNet;
use serde::Deserialize;
use spoke_config::node::Role;
use spoke_model::address::HostPort;
use spoke_model::node_id::NodeId;
use spoke_model::secret::Secret;
use spoke_model::wireguard::MTU_RANGE;
use std::net::IpAddr;

/// What an operator wants changed about a node; absent leaves as it is.
#[derive(Clone, Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NodeChange {
    /// For people; empty removes it.
    pub label: Option<String>,
    /// Shut off from other nodes.
    pub isolated: Option<bool>,
    /// Switched off it stays enrolled and is nobody's peer.
    pub enabled: Option<bool>,
    /// All of its overrides at once.
    pub overrides: Option<Overrides>,
}

fn not_found(what: &'static str, which: impl ToString) -> RegistryError {
    RegistryError::NotFound(what, which.to_string())
}

/// Adds a network.
pub async fn add_network(store: &Store, network: &Network, actor: &Actor, now_ms: i64) -> Result<(), RegistryError> {
    network.check()?;
    let mut tx = store.write().await?;
    if tx.network(&network.name).await?.is_some() {
        return Err(RegistryError::Conflict(format!("network {} is there already", network.name)));
    }
    tx.add_network(network, now_ms).await?;
    let details = serde_json::json!(network);
    tx.audit(now_ms, actor, "create", ("network", &network.name), details).await?;
    Ok(tx.commit().await?)
}

/// Changes a network as `change` does. Every node keeps its address, so a pool may only change around its leases; where a
/// network gets a second pool, its nodes get an address of it.
pub async fn set_network(
    store: &Store,
    name: &str,
    change: impl FnOnce(&mut Network),
    actor: &Actor,
    now_ms: i64,
) -> Result<Network, RegistryError> {
    let mut tx = store.write().await?;
    tx.lock_network(name).await?;
    let mut network = tx.network(name).await?.ok_or_else(|| not_found("network", name))?;
    let before = network.clone();
    change(&mut network);
    network.check()?;
    if (network.pool4, network.pool6, &network.reserved) != (before.pool4, before.pool6, &before.reserved) {
        if let Some(node) = tx.move_leases(&before, &network).await? {
            let said = format!("the address of node {node} would be outside of the pool, or reserved");
            return Err(RegistryError::Conflict(said));
        }
        tx.set_network(&network).await?;
        let more = |was: Option<IpNet>, is: Option<IpNet>| was.is_none() && is.is_some();
        if more(before.pool4, network.pool4) || more(before.pool6, network.pool6) {
            for node in tx.leaseholders(name).await? {
                lease(&mut tx, &node, &network, now_ms).await?;
            }
        }
    } else {
        tx.set_network(&network).await?;
    }
    tx.audit(now_ms, actor, "set", ("network", name), serde_json::json!(network)).await?;
    tx.commit().await?;
    Ok(network)
}

/// Makes an enrolment token; its text is given this once.
pub async fn add_token(
    store: &Store,
    new: &NewToken,
    actor: &Actor,
    now_ms: i64,
) -> Result<(String, Secret<String>), RegistryError> {
    if !(1..=1_000_000).contains(&new.max_uses) {
        return Err(RegistryError::Value("uses must be 1 to 1000000".into()));
    }
    let mut tx = store.write().await?;
    if tx.network(&new.network).await?.is_none() {
        return Err(not_found("network", &new.network));
    }
    let made = tx.add_token(new, now_ms).await?;
    let details =
        serde_json::json!({"network": new.network, "node": new.node, "max_uses": new.max_uses, "note": new.note});
    tx.audit(now_ms, actor, "create", ("token", &made.0), details).await?;
    tx.commit().await?;
    Ok(made)
}

/// Makes a token worthless.
pub async fn revoke_token(store: &Store, id: &str, actor: &Actor, now_ms: i64) -> Result<(), RegistryError> {
    let mut tx = store.write().await?;
    if !tx.revoke_token(id, now_ms).await? {
        return Err(not_found("token in force with id", id));
    }
    tx.audit(now_ms, actor, "revoke", ("token", id), serde_json::Value::Null).await?;
    Ok(tx.commit().await?)
}

/// Announces `node`, as far as it is known, and makes the token that enrols it.
async fn announce(
    tx: &mut Tx,
    node: &mut Node,
    note: String,
    now_ms: i64,
) -> Result<(Network, Secret<String>), RegistryError> {
    tx.lock_network(&node.network).await?;
    let network = tx.network(&node.network).await?.ok_or_else(|| not_found("network", &node.network))?;
    let known = tx.node(&node.id).await?;
    if known.as_ref().is_some_and(|n| n.state != NodeState::Removed) {
        return Err(RegistryError::Conflict(format!("node {} is there already", node.id)));
    }
    // The device may still know the generation of the name's last holder.
    node.generation = known.map_or(1, |n| n.generation + 1);
    tx.put_node(node).await?;
    let new = NewToken {
        network: node.network.clone(),
        node: Some(node.id.clone()),
        note: Some(note),
        max_uses: 1,
        expires_ms: None,
    };
    Ok((network, tx.add_token(&new, now_ms).await?.1))
}

/// Announces a node by name and makes the token that enrols it; it needs no approval after that.
pub async fn add_node(
    store: &Store,
    id: &NodeId,
    network: &str,
    label: Option<String>,
    actor: &Actor,
    now_ms: i64,
) -> Result<Secret<String>, RegistryError> {
    check_label(label.as_deref())?;
    let mut tx = store.write().await?;
    let mut node = Node { label, ..Node::expected(id.clone(), network, Role::Node, now_ms) };
    let (_, token) = announce(&mut tx, &mut node, format!("node {id}"), now_ms).await?;
    tx.audit(now_ms, actor, "create", ("node", id.as_str()), serde_json::json!({"network": network})).await?;
    tx.commit().await?;
    Ok(token)
}

/// Announces a hub and makes the token that enrols it. Its address is leased and so kept for it.
pub async fn add_hub(
    store: &Store,
    id: &NodeId,
    network: &str,
    endpoint: &HostPort,
    address: Option<IpAddr>,
    actor: &Actor,
    now_ms: i64,
) -> Result<Secret<String>, RegistryError> {
    let mut tx = store.write().await?;
    let mut node = Node::expected(id.clone(), network, Role::Hub, now_ms);
    node.endpoint = Some(endpoint.clone());
    let (net, token) = announce(&mut tx, &mut node, format!("hub {id}"), now_ms).await?;
    if let Some(address) = address
        && !tx.lease_address(&net, id, address).await?
    {
        return Err(RegistryError::Conflict(format!("{address} is taken, or not a host of the network")));
    }
    // Whatever pool no address was named for gives its first free one: hubs belong at the front.
    tx.lease(&net, id, 1, now_ms).await?;
    let details = serde_json::json!({"network": network, "endpoint": endpoint});
    tx.audit(now_ms, actor, "create", ("hub", id.as_str()), details).await?;
    tx.commit().await?;
    Ok(token)
}

/// Lets a node that waits into the fleet.
pub async fn approve(store: &Store, id: &NodeId, actor: &Actor, now_ms: i64) -> Result<(), RegistryError> {
    again!(async {
        let mut tx = store.write().await?;
        let mut node = tx.locked_node(id).await?.ok_or_else(|| not_found("node", id))?;
        if node.state != NodeState::Pending {
            return Err(RegistryError::Conflict(format!("node {id} is {}, not pending", node.state.as_str())));
        }
        let network = tx.network(&node.network).await?.ok_or(StoreError::Unreadable("node.network"))?;
        node.state = NodeState::Active;
        tx.put_node(&node).await?;
        admit(&mut tx, &node, &network, now_ms).await?;
        tx.audit(now_ms, actor, "approve", ("node", id.as_str()), serde_json::Value::Null).await?;
        Ok(tx.commit().await?)
    })
}

/// Takes a node out of the fleet: its keys are refused, its hubs forget it, its address goes into quarantine.
pub async fn remove(store: &Store, id: &NodeId, actor: &Actor, now_ms: i64) -> Result<(), RegistryError> {
    again!(async {
        let mut tx = store.write().await?;
        let mut node = tx.locked_node(id).await?.ok_or_else(|| not_found("node", id))?;
        if node.state == NodeState::Removed {
            return Err(RegistryError::Revoked(id.clone()));
        }
        let network = tx.network(&node.network).await?.ok_or(StoreError::Unreadable("node.network"))?;
        node.state = NodeState::Removed;
        node.wireguard_key = None;
        node.next_key = None;
        node.next_key_hubs = Vec::new();
        tx.put_node(&node).await?;
        tx.end_leases(&network, id, now_ms).await?;
        // A token made for it is an invitation to come back, and was made before.
        let tokens = tx.revoke_tokens_of(id, now_ms).await?;
        match node.role {
            Role::Node => {
                tx.touch(id).await?;
                tx.touch_hubs(&node.network).await?;
            }
            Role::Hub => tx.touch_network(&node.network).await?,
        }
        let details = serde_json::json!({"tokens_revoked": tokens});
        tx.audit(now_ms, actor, "remove", ("node", id.as_str()), details).await?;
        Ok(tx.commit().await?)
    })
}

fn check_label(label: Option<&str>) -> Result<(), RegistryError> {
    if label.is_some_and(|l| l.len() > 128 || l.chars().any(char::is_control)) {
        return Err(RegistryError::Value("label must be at most 128 printable characters".into()));
    }
    Ok(())
}

/// Changes what was set for one node alone.
pub async fn set_node(
    store: &Store,
    id: &NodeId,
    change: &NodeChange,
    actor: &Actor,
    now_ms: i64,
) -> Result<(), RegistryError> {
    let bad = |problem: &str| Err(RegistryError::Value(problem.to_owned()));
    check_label(change.label.as_deref())?;
    if let Some(overrides) = &change.overrides {
        if overrides.override_mtu.is_some_and(|m| m != 0 && !MTU_RANGE.contains(&m)) {
            return bad("override_mtu must be 0 or 576 to 65455");
        }
        if overrides.override_dns.as_ref().is_some_and(|d| d.len() > 8) {
            return bad("override_dns must be at most 8 addresses");
        }
        let nets = overrides.override_endpoint_allowed_ip.as_deref().unwrap_or_default();
        let distinct: std::collections::BTreeSet<_> = nets.iter().collect();
        if nets.len() > 64 || distinct.len() < nets.len() || nets.iter().any(|n| n.trunc() != *n) {
            return bad("override_endpoint_allowed_ip must be at most 64 different networks without host bits");
        }
    }
    again!(async {
        let mut tx = store.write().await?;
        let node = tx.locked_node(id).await?.ok_or_else(|| not_found("node", id))?;
        put_change(&mut tx, node, change, actor, now_ms).await?;
        Ok(tx.commit().await?)
    })
}

/// Switches a node off if it is on, and on if it is off.
pub async fn toggle(store: &Store, id: &NodeId, actor: &Actor, now_ms: i64) -> Result<(), RegistryError> {
    again!(async {
        let mut tx = store.write().await?;
        let node = tx.locked_node(id).await?.ok_or_else(|| not_found("node", id))?;
        let change = NodeChange { enabled: Some(!node.enabled), ..NodeChange::default() };
        put_change(&mut tx, node, &change, actor, now_ms).await?;
        Ok(tx.commit().await?)
    })
}

async fn put_change(
    tx: &mut Tx,
    before: Node,
    change: &NodeChange,
    actor: &Actor,
    now_ms: i64,
) -> Result<(), RegistryError> {
    let mut node = before.clone();
    if let Some(label) = &change.label {
        node.label = Some(label.clone()).filter(|l| !l.is_empty());
    }
    node.isolated = change.isolated.unwrap_or(node.isolated);
    node.enabled = change.enabled.unwrap_or(node.enabled);
    node.overrides = change.overrides.clone().unwrap_or(node.overrides);
    if node == before {
        return Ok(());
    }
    tx.put_node(&node).await?;
    if node.overrides != before.overrides {
        tx.touch(&node.id).await?;
    }
    if node.isolated != before.isolated {
        tx.touch_hubs(&node.network).await?;
    }
    if node.enabled != before.enabled {
        match node.role {
            Role::Node => tx.touch_hubs(&node.network).await?,
            Role::Hub => tx.touch_network(&node.network).await?,
        }
    }
    let details = serde_json::json!({
        "label": node.label, "isolated": node.isolated, "enabled": node.enabled, "overrides": node.overrides,
    });
    Ok(tx.audit(now_ms, actor, "set", ("node", node.id.as_str()), details).await?)
}
