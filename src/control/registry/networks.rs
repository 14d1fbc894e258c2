//! Networks: creation and changes, audited.
use super::enrol::lease;
use super::{Entity, RegistryError};
use crate::store::Store;
use crate::store::audit::Actor;
use crate::store::network::Network;
use ipnet::IpNet;

/// Creates a network.
pub async fn create(store: &Store, network: &Network, actor: &Actor, now_ms: i64) -> Result<(), RegistryError> {
    network.check()?;
    let mut tx = store.write().await?;
    if tx.network(&network.name).await?.is_some() {
        return Err(RegistryError::Exists(Entity::Network, network.name.clone()));
    }
    tx.add_network(network, now_ms).await?;
    let details = serde_json::json!(network);
    tx.audit(now_ms, actor, "create", ("network", &network.name), details).await?;
    Ok(tx.commit().await?)
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
    tx.lock_network(name).await?;
    let found = tx.network(name).await?;
    let mut network = found.ok_or_else(|| RegistryError::NotFound(Entity::Network, name.to_owned()))?;
    let before = network.clone();
    change(&mut network);
    network.check()?;
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
