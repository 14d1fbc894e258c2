//! Networks: creation and changes, audited.
use super::enrol::lease;
use super::{Entity, RegistryError, names};
use crate::store::Store;
use crate::store::audit::Actor;
use crate::store::network::Network;
use ipnet::IpNet;
use spoke_model::node_id::NodeId;

/// Creates a network.
pub async fn create(store: &Store, network: &Network, actor: &Actor, now_ms: i64) -> Result<(), RegistryError> {
    network.check()?;
    let mut tx = store.write().await?;
    tx.lock_networks().await?;
    if tx.network(&network.name).await?.is_some() {
        return Err(RegistryError::Exists(Entity::Network, network.name.clone()));
    }
    refuse_overlap(&network.name, network.pool4.into_iter().chain(network.pool6), &tx.networks().await?)?;
    tx.add_network(network, now_ms).await?;
    let details = serde_json::json!(network);
    tx.audit(now_ms, actor, "create", ("network", &network.name), details).await?;
    Ok(tx.commit().await?)
}

/// Refuses pools of `name` that overlap one of another network: a host in both could not tell their addresses apart.
fn refuse_overlap(
    name: &str,
    pools: impl IntoIterator<Item = IpNet>,
    networks: &[Network],
) -> Result<(), RegistryError> {
    let overlap = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
    for pool in pools {
        for network in networks.iter().filter(|n| n.name != name) {
            if let Some(other) = network.pool4.into_iter().chain(network.pool6).find(|other| overlap(&pool, other)) {
                return Err(RegistryError::PoolOverlap { pool, other, network: network.name.clone() });
            }
        }
    }
    Ok(())
}

/// Removes a network that has no nodes, with its tokens.
pub async fn remove(store: &Store, name: &str, actor: &Actor, now_ms: i64) -> Result<(), RegistryError> {
    let mut tx = store.write().await?;
    tx.lock_networks().await?;
    tx.lock_network(name).await?;
    if tx.network(name).await?.is_none() {
        return Err(RegistryError::NotFound(Entity::Network, name.to_owned()));
    }
    let members = tx.members(name).await?;
    if !members.is_empty() {
        return Err(RegistryError::NetworkInUse { network: name.to_owned(), nodes: names(&members, "is", "are") });
    }
    tx.delete_network(name).await?;
    tx.audit(now_ms, actor, "remove", ("network", name), serde_json::Value::Null).await?;
    Ok(tx.commit().await?)
}

/// The network that a command means: the one it names, that of the node it names, or the only one there is.
pub async fn meant(store: &Store, named: Option<String>, node: Option<&NodeId>) -> Result<String, RegistryError> {
    if let Some(name) = named {
        return Ok(name);
    }
    let mut tx = store.read().await?;
    if let Some(node) = node
        && let Some(known) = tx.node(node).await?
    {
        return Ok(known.network);
    }
    let mut all: Vec<String> = tx.networks().await?.into_iter().map(|n| n.name).collect();
    match (all.pop(), all.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(last), false) => {
            all.push(last);
            Err(RegistryError::WhichNetwork(all.join(", ")))
        }
        (None, _) => Err(RegistryError::NoNetwork),
    }
}

/// Changes a network. Every node keeps its address, so a pool may only change around its leases; a network that gains a
/// second pool leases each of its nodes an address of it.
pub async fn change(
    store: &Store,
    name: &str,
    change: impl FnOnce(&mut Network),
    actor: &Actor,
    now_ms: i64,
) -> Result<Network, RegistryError> {
    let mut tx = store.write().await?;
    tx.lock_networks().await?;
    tx.lock_network(name).await?;
    let found = tx.network(name).await?;
    let mut network = found.ok_or_else(|| RegistryError::NotFound(Entity::Network, name.to_owned()))?;
    let before = network.clone();
    change(&mut network);
    network.check()?;
    // Networks that overlap since an earlier release stay as they are.
    let [new4, new6] =
        [(network.pool4, before.pool4), (network.pool6, before.pool6)].map(|(a, b)| a.filter(|_| a != b));
    refuse_overlap(name, new4.into_iter().chain(new6), &tx.networks().await?)?;
    let pools = |n: &Network| (n.pool4, n.pool6, n.reserved.clone());
    if pools(&network) != pools(&before)
        && let Some(node) = tx.move_leases(&before, &network).await?
    {
        return Err(RegistryError::LeaseOutsidePool(node));
    }
    tx.put_network(&network).await?;
    let gained = |before: Option<IpNet>, after: Option<IpNet>| before.is_none() && after.is_some();
    if gained(before.pool4, network.pool4) || gained(before.pool6, network.pool6) {
        for node in tx.leaseholders(name).await? {
            lease(&mut tx, &node, &network, now_ms).await?;
        }
    }
    tx.audit(now_ms, actor, "set", ("network", name), serde_json::json!(network)).await?;
    tx.commit().await?;
    Ok(network)
}
