//! A device with a token becomes a node.
use super::{RegistryError, again};
use crate::ipam;
use crate::store::admission::Verdict;
use crate::store::audit::Actor;
use crate::store::network::{Access, Network};
use crate::store::node::{Node, NodeState};
use crate::store::{Store, StoreError, Tx};
use ipnet::IpNet;
use spoke_config::node::Role;
use spoke_enroll::wire::{ProvisionConfig, ProvisionRequest};
use spoke_model::node_id::NodeId;
use spoke_model::time::Wall;

/// How an enrolment ended.
#[derive(Debug)]
pub enum Enrolled {
    /// The device is a node.
    Active(Box<ProvisionConfig>),
    /// An operator has to approve first.
    Pending,
}

/// The network a device would join with `token`, if the contract decides there and nobody has asked the chain about the
/// device's key yet.
pub async fn needs_verdict(
    store: &Store,
    request: &ProvisionRequest,
    token: &str,
    now_ms: i64,
) -> Result<bool, StoreError> {
    let mut tx = store.read().await?;
    let Some(valid) = tx.valid_token(token, &request.node_id, now_ms).await? else { return Ok(false) };
    let nft = tx.network(&valid.network).await?.is_some_and(|n| n.access == Access::Nft);
    Ok(nft && tx.verdict(&request.node_id, request.wireguard_public_key).await?.is_none())
}

/// Enrols the device that sent `request`; the caller has verified that it holds the identity key it names.
///
/// The same keys under the same name get the same answer again without using the token once more, so that an answer
/// lost on the way costs nothing. `verdict` is what the chain said of the device a moment ago, if it was asked.
pub async fn enrol(
    store: &Store,
    request: &ProvisionRequest,
    token: &str,
    verdict: Option<&Verdict>,
    now_ms: i64,
) -> Result<Enrolled, RegistryError> {
    request.check()?;
    again!(attempt(store, request, token, verdict, now_ms))
}

async fn attempt(
    store: &Store,
    request: &ProvisionRequest,
    token: &str,
    verdict: Option<&Verdict>,
    now_ms: i64,
) -> Result<Enrolled, RegistryError> {
    // Guessing must not queue for the write lock: a token is looked at before anything is locked.
    let mut look = store.read().await?;
    let known = look.node(&request.node_id).await?;
    let own = known.as_ref().is_some_and(|n| is_own(n, request));
    if !own && look.valid_token(token, &request.node_id, now_ms).await?.is_none() {
        return Err(RegistryError::BadToken);
    }
    drop(look);

    let mut tx = store.write().await?;
    let known = match tx.valid_token(token, &request.node_id, now_ms).await? {
        Some(valid) => {
            tx.lock_network(&valid.network).await?;
            tx.node(&request.node_id).await?
        }
        None => tx.node(&request.node_id).await?,
    };
    if let Some(node) = known.as_ref().filter(|n| is_own(n, request)) {
        let network = network_of(&mut tx, &node.network).await?;
        return answer(&mut tx, node, &network).await;
    }
    match &known {
        Some(node) if matches!(node.state, NodeState::Active | NodeState::Pending) => {
            let node_id = node.id.clone();
            let existing = serde_json::json!({
                "node_id": node.id, "wireguard_public_key": node.wireguard_key, "state": node.state,
                "provisioned_at": node.enrolled_ms.map(|t| Wall(t / 1000).to_string()),
            });
            let details = serde_json::json!({"wireguard_public_key": request.wireguard_public_key});
            let actor = Actor::Node(node_id.to_string());
            tx.audit(now_ms, &actor, "enrolment_refused", ("node", node_id.as_str()), details).await?;
            tx.commit().await?;
            return Err(RegistryError::NodeIdTaken { node: node_id, existing });
        }
        Some(_) | None => {}
    }
    let redeemed = tx.redeem(token, &request.node_id, now_ms).await?.ok_or(RegistryError::BadToken)?;
    let thrown_out = known
        .as_ref()
        .is_some_and(|n| n.state == NodeState::Removed && n.identity_key == Some(request.identity_public_key));
    if thrown_out && !redeemed.bound {
        // Its own word does not bring it back, whatever tokens it still holds; an operator's token for it does.
        return Err(RegistryError::Revoked(request.node_id.clone()));
    }
    let network = network_of(&mut tx, &redeemed.network).await?;
    if let Some(verdict) = verdict.filter(|_| network.access == Access::Nft) {
        let pair = (request.node_id.clone(), request.wireguard_public_key);
        tx.put_verdict(&pair, verdict, now_ms).await?;
    }
    let node = join(&mut tx, known, &network, request, now_ms).await?;
    let details = serde_json::json!({
        "network": network.name, "token": redeemed.id, "wireguard_public_key": request.wireguard_public_key,
        "state": node.state,
    });
    tx.audit(now_ms, &Actor::Node(node.id.to_string()), "enrol", ("node", node.id.as_str()), details).await?;
    let enrolled = answer(&mut tx, &node, &network).await?;
    tx.commit().await?;
    Ok(enrolled)
}

fn is_own(node: &Node, request: &ProvisionRequest) -> bool {
    matches!(node.state, NodeState::Active | NodeState::Pending)
        && node.identity_key == Some(request.identity_public_key)
        && node.wireguard_key == Some(request.wireguard_public_key)
}

async fn network_of(tx: &mut Tx, name: &str) -> Result<Network, RegistryError> {
    Ok(tx.network(name).await?.ok_or(StoreError::Unreadable("node.network"))?)
}

async fn join(
    tx: &mut Tx,
    known: Option<Node>,
    network: &Network,
    request: &ProvisionRequest,
    now_ms: i64,
) -> Result<Node, RegistryError> {
    let other = |found: Option<NodeId>| found.is_some_and(|id| id != request.node_id);
    if other(tx.node_with_key(request.wireguard_public_key).await?)
        || other(tx.node_with_identity(request.identity_public_key).await?)
    {
        return Err(RegistryError::KeyTaken);
    }
    let expected = |n: &Node| n.state == NodeState::Expected && n.network == network.name;
    let announced = known.as_ref().is_some_and(expected);
    let mut node = match known {
        Some(node) if announced => node,
        // A name that was removed begins anew; only its generation goes on, because the device may still know it.
        Some(node) => {
            Node { generation: node.generation, ..Node::expected(node.id, &network.name, Role::Node, now_ms) }
        }
        None => Node::expected(request.node_id.clone(), &network.name, Role::Node, now_ms),
    };
    node.wireguard_key = Some(request.wireguard_public_key);
    node.identity_key = Some(request.identity_public_key);
    node.version = Some(request.version.clone());
    node.enrolled_ms = u64::try_from(now_ms).ok();
    // An operator named this one beforehand; that is its approval.
    let waits = network.approval && !announced;
    node.state = if waits { NodeState::Pending } else { NodeState::Active };
    tx.put_node(&node).await?;
    tx.put_capabilities(request).await?;
    if node.state == NodeState::Active {
        admit(tx, &node, network, now_ms).await?;
    }
    Ok(node)
}

/// Gives a node an address of each pool of its network, where it has none.
pub(super) async fn lease(tx: &mut Tx, node: &Node, network: &Network, now_ms: i64) -> Result<(), RegistryError> {
    let verdict = match node.wireguard_key.filter(|_| network.access == Access::Nft) {
        Some(key) => tx.verdict(&node.id, key).await?,
        None => None,
    };
    // Token ids have 256 bits; the low ones choose the host, which keeps ids that follow each other apart.
    let token_id = verdict.and_then(|v| v.token_id).map(|id| id.as_limbs()[0]);
    let number = token_id.unwrap_or_else(|| ipam::number_of(&node.id));
    tx.lease(network, &node.id, number, now_ms).await?;
    Ok(())
}

/// Gives an active node its addresses and tells everybody whose document names it.
pub(super) async fn admit(tx: &mut Tx, node: &Node, network: &Network, now_ms: i64) -> Result<(), RegistryError> {
    lease(tx, node, network, now_ms).await?;
    match node.role {
        Role::Node => {
            tx.touch(&node.id).await?;
            tx.touch_hubs(&network.name).await?;
        }
        Role::Hub => tx.touch_network(&network.name).await?,
    }
    Ok(())
}

async fn answer(tx: &mut Tx, node: &Node, network: &Network) -> Result<Enrolled, RegistryError> {
    if node.state == NodeState::Pending {
        return Ok(Enrolled::Pending);
    }
    let addresses = tx.addresses(network, &node.id).await?;
    let first = *addresses.first().ok_or(StoreError::Unreadable("lease"))?;
    let hub = match node.role {
        Role::Node => tx.hubs(&network.name).await?.into_iter().next(),
        Role::Hub => None,
    };
    let allowed_ips = match &hub {
        Some(hub) => match node.overrides.override_endpoint_allowed_ip.clone() {
            Some(nets) => nets,
            None => tx.behind(hub, network).await?,
        },
        None => Vec::new(),
    };
    Ok(Enrolled::Active(Box::new(ProvisionConfig {
        node_id: node.id.clone(),
        assigned_ip: first.addr(),
        assigned_ip6: addresses.iter().skip(1).map(IpNet::addr).find(std::net::IpAddr::is_ipv6),
        subnet_mask: match first {
            IpNet::V4(net) => net.netmask().to_string(),
            IpNet::V6(net) => net.prefix_len().to_string(),
        },
        hub_public_key: hub.as_ref().and_then(|h| h.wireguard_key),
        hub_endpoint: hub.as_ref().and_then(|h| h.endpoint.as_ref()).map(ToString::to_string),
        allowed_ips,
        persistent_keepalive: node.overrides.override_keepalive.unwrap_or(network.keepalive),
        dns_servers: node.overrides.override_dns.clone().unwrap_or_else(|| network.dns.clone()),
        provisioned_at: Wall(node.enrolled_ms.unwrap_or(0) / 1000).to_string(),
        interface: network.interface.clone(),
        signing_keys: tx.keys_in_service().await?,
    })))
}
