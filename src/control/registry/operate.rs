//! What operators do: networks, hubs, tokens, approval, removal, names and overrides. Every change is audited.
use super::enrol::admit;
use super::{RegistryError, again};
use crate::config::node::Role;
use crate::config::types::HostPort;
use crate::control::store::audit::Actor;
use crate::control::store::network::Network;
use crate::control::store::node::{Node, NodeState, Overrides};
use crate::control::store::token::NewToken;
use crate::control::store::{Store, StoreError};
use crate::node::NodeId;
use crate::secret::Secret;
use serde::Deserialize;
use std::net::IpAddr;

/// What an operator wants changed about a node; absent leaves as it is.
#[derive(Clone, Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NodeChange {
    /// For people; empty removes it.
    pub label: Option<String>,
    /// Shut off from other nodes.
    pub isolated: Option<bool>,
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

/// Changes a network as `change` does; leases are kept, so a pool may only grow around them.
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
    change(&mut network);
    network.check()?;
    let sql = "SELECT l.family, l.host, l.node FROM lease l WHERE l.network = $1 AND l.until_ms IS NULL";
    for row in tx.rows(sql, &[name.into()]).await? {
        if network.address_of(row.int("family")?, row.count("host")?)?.is_none() {
            let node = row.opt_text("node")?.unwrap_or_default();
            return Err(RegistryError::Conflict(format!("the address of node {node} would be outside of the pool")));
        }
    }
    tx.set_network(&network).await?;
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
    tx.lock_network(network).await?;
    let net = tx.network(network).await?.ok_or_else(|| not_found("network", network))?;
    let known = tx.node(id).await?;
    if known.as_ref().is_some_and(|n| n.state != NodeState::Removed) {
        return Err(RegistryError::Conflict(format!("node {id} is there already")));
    }
    let mut node = Node::expected(id.clone(), network, Role::Hub, now_ms);
    node.endpoint = Some(endpoint.clone());
    node.generation = known.map_or(1, |n| n.generation + 1);
    tx.put_node(&node).await?;
    if let Some(address) = address
        && !tx.lease_address(&net, id, address).await?
    {
        return Err(RegistryError::Conflict(format!("{address} is taken, reserved, or not of the network")));
    }
    // Whatever pool no address was named for gives its first free one: hubs belong at the front.
    tx.lease(&net, id, 1, now_ms).await?;
    let new = NewToken {
        network: network.to_owned(),
        node: Some(id.clone()),
        note: Some(format!("hub {id}")),
        max_uses: 1,
        expires_ms: None,
    };
    let (_, token) = tx.add_token(&new, now_ms).await?;
    let details = serde_json::json!({"network": network, "endpoint": endpoint});
    tx.audit(now_ms, actor, "create", ("hub", id.as_str()), details).await?;
    tx.commit().await?;
    Ok(token)
}

/// Lets a node that waits into the fleet.
pub async fn approve(store: &Store, id: &NodeId, actor: &Actor, now_ms: i64) -> Result<(), RegistryError> {
    again!(async {
        let mut tx = store.write().await?;
        let mut node = tx.node(id).await?.ok_or_else(|| not_found("node", id))?;
        tx.lock_network(&node.network).await?;
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
        let mut node = tx.node(id).await?.ok_or_else(|| not_found("node", id))?;
        tx.lock_network(&node.network).await?;
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
        match node.role {
            Role::Node => {
                tx.touch(id).await?;
                tx.touch_hubs(&node.network).await?;
            }
            Role::Hub => tx.touch_network(&node.network).await?,
        }
        tx.audit(now_ms, actor, "remove", ("node", id.as_str()), serde_json::Value::Null).await?;
        Ok(tx.commit().await?)
    })
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
    if change.label.as_ref().is_some_and(|l| l.len() > 128 || l.chars().any(char::is_control)) {
        return bad("label must be at most 128 printable characters");
    }
    if let Some(overrides) = &change.overrides {
        if overrides.override_mtu.is_some_and(|m| m != 0 && !(576..=65_455).contains(&m)) {
            return bad("override_mtu must be 0 or 576 to 65455");
        }
        if overrides.override_dns.as_ref().is_some_and(|d| d.len() > 8) {
            return bad("override_dns must be at most 8 addresses");
        }
    }
    again!(async {
        let mut tx = store.write().await?;
        let mut node = tx.node(id).await?.ok_or_else(|| not_found("node", id))?;
        let before = node.clone();
        if let Some(label) = &change.label {
            node.label = Some(label.clone()).filter(|l| !l.is_empty());
        }
        node.isolated = change.isolated.unwrap_or(node.isolated);
        node.overrides = change.overrides.clone().unwrap_or(node.overrides);
        if node == before {
            return Ok(());
        }
        tx.put_node(&node).await?;
        if node.overrides != before.overrides {
            tx.touch(id).await?;
        }
        if node.isolated != before.isolated {
            tx.touch_hubs(&node.network).await?;
        }
        let details = serde_json::json!({"label": node.label, "isolated": node.isolated, "overrides": node.overrides});
        tx.audit(now_ms, actor, "set", ("node", id.as_str()), details).await?;
        Ok(tx.commit().await?)
    })
}
