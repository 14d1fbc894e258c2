//! Enrolment: a device with a token becomes a node.
use super::decide::{EnrolmentDecision, decide_enrolment, joined_node};
use super::{RegistryError, retry_conflicts};
use crate::ipam;
use crate::store::admission::Admission;
use crate::store::audit::{Actor, AuditFilter};
use crate::store::network::{Access, Network};
use crate::store::node::{Node, NodeState};
use crate::store::{Store, StoreError, Tx};
use ipnet::IpNet;
use spoke_config::node::Role;
use spoke_enroll::wire::{ProvisionConfig, ProvisionRequest};
use spoke_model::node_id::NodeId;
use spoke_model::time::Wall;

/// The result of an enrolment.
#[derive(Debug)]
pub enum Enrolled {
    /// The device is a node.
    Active(Box<ProvisionConfig>),
    /// An operator must approve first.
    Pending,
}

/// What an enrolment with a valid token needs beyond it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requirements {
    /// The id of the token; `None`: it is not valid for this node.
    pub token: Option<String>,
    /// The contract's decision on the device's key, which is not known yet.
    pub admission: bool,
    /// A proof that the device holds the private half of its WireGuard key.
    pub key_proof: bool,
}

/// What the enrolment of a device that sent `request` with `token` needs.
pub async fn requirements(
    store: &Store,
    request: &ProvisionRequest,
    token: &str,
    now_ms: i64,
) -> Result<Requirements, StoreError> {
    let mut tx = store.read().await?;
    let Some(valid) = tx.valid_token(token, &request.node_id, now_ms).await? else {
        return Ok(Requirements::default());
    };
    let known = tx.node(&request.node_id).await?;
    let joins = decide_enrolment(known.as_ref(), request, Some(&valid)) == EnrolmentDecision::Join;
    let nft = tx.network(&valid.network).await?.is_some_and(|n| n.access == Access::Nft);
    let admission = nft && tx.admission(&request.node_id, request.wireguard_public_key).await?.is_none();
    Ok(Requirements { token: Some(valid.id), admission, key_proof: joins && valid.key_proof })
}

/// A device that asks to be enrolled.
#[derive(Clone, Copy, Debug)]
pub struct EnrollingDevice<'a> {
    /// What it sent.
    pub request: &'a ProvisionRequest,
    /// Whether it takes preshared keys from its documents.
    pub takes_preshared: bool,
}

impl<'a> From<&'a ProvisionRequest> for EnrollingDevice<'a> {
    /// A device of an earlier release.
    fn from(request: &'a ProvisionRequest) -> Self {
        Self { request, takes_preshared: false }
    }
}

/// Enrols the device that sent `request`; the caller has verified that it holds the identity key it names.
///
/// The same keys under the same node id get the same answer without another use of the token, so that a device may repeat
/// a request whose answer was lost. `admission` is the contract's decision, if it was just asked.
pub async fn enrol(
    store: &Store,
    device: impl Into<EnrollingDevice<'_>>,
    token: &str,
    admission: Option<&Admission>,
    now_ms: i64,
) -> Result<Enrolled, RegistryError> {
    let device = device.into();
    device.request.check()?;
    retry_conflicts!(attempt(store, device, token, admission, now_ms))
}

async fn attempt(
    store: &Store,
    device: EnrollingDevice<'_>,
    token: &str,
    admission: Option<&Admission>,
    now_ms: i64,
) -> Result<Enrolled, RegistryError> {
    let request = device.request;
    // Checked before anything is locked, so that guesses of tokens do not queue for the write lock.
    let mut tx = store.read().await?;
    let valid = tx.valid_token(token, &request.node_id, now_ms).await?;
    let known = tx.node(&request.node_id).await?;
    let decision = decide_enrolment(known.as_ref(), request, valid.as_ref());
    // Its own key learns of the removal, whoever holds or awaits the name since; no other one does.
    if !matches!(decision, EnrolmentDecision::Join | EnrolmentDecision::Repeat)
        && tx.removed_identities(&request.node_id).await?.contains(&request.identity_public_key)
    {
        return Err(RegistryError::Removed(request.node_id.clone()));
    }
    if decision == EnrolmentDecision::BadToken {
        return Err(RegistryError::BadToken);
    }
    drop(tx);

    let mut tx = store.write().await?;
    let valid = tx.valid_token(token, &request.node_id, now_ms).await?;
    if let Some(valid) = &valid {
        tx.lock_network(&valid.network).await?;
    }
    let known = tx.node(&request.node_id).await?;
    match (decide_enrolment(known.as_ref(), request, valid.as_ref()), known) {
        (EnrolmentDecision::Repeat, Some(node)) => {
            let network = network_of(&mut tx, &node.network).await?;
            answer(&mut tx, &node, &network).await
        }
        (EnrolmentDecision::NodeIdTaken, Some(node)) => {
            let own_network = valid.is_some_and(|v| v.network == node.network);
            refuse_taken_id(tx, &node, own_network, request, now_ms).await
        }
        (EnrolmentDecision::Removed, _) => Err(RegistryError::Removed(request.node_id.clone())),
        (EnrolmentDecision::Join, known) => {
            // A removed device has not lost its unbound tokens: an operator has to mean it, under whatever name.
            let is_meant =
                valid.is_some_and(|v| v.bound) || known.as_ref().is_some_and(|n| n.state == NodeState::Expected);
            if !is_meant && let Some(name) = tx.removed_name(request.identity_public_key).await? {
                return Err(RegistryError::Removed(name));
            }
            let redeemed = tx.redeem_token(token, &request.node_id, now_ms).await?.ok_or(RegistryError::BadToken)?;
            let network = network_of(&mut tx, &redeemed.network).await?;
            if let Some(admission) = admission.filter(|_| network.access == Access::Nft) {
                let pair = (request.node_id.clone(), request.wireguard_public_key);
                tx.put_admission(&pair, admission, now_ms).await?;
            }
            let node = join(&mut tx, known, &network, device, now_ms).await?;
            tx.put_enrolment(&node.id, &redeemed).await?;
            let details = serde_json::json!({
                "network": network.name, "token": redeemed.id, "wireguard_public_key": request.wireguard_public_key,
                "state": node.state,
            });
            tx.audit(now_ms, &Actor::Node(node.id.to_string()), "enrol", ("node", node.id.as_str()), details).await?;
            let enrolled = answer(&mut tx, &node, &network).await?;
            tx.commit().await?;
            Ok(enrolled)
        }
        (EnrolmentDecision::BadToken | EnrolmentDecision::Repeat | EnrolmentDecision::NodeIdTaken, _) => {
            Err(RegistryError::BadToken)
        }
    }
}

async fn refuse_taken_id(
    mut tx: Tx,
    node: &Node,
    own_network: bool,
    request: &ProvisionRequest,
    now_ms: i64,
) -> Result<Enrolled, RegistryError> {
    let existing = serde_json::json!({
        "node_id": node.id, "wireguard_public_key": node.wireguard_key, "state": node.state,
        "provisioned_at": node.enrolled_ms.map(|t| Wall(t / 1000).to_string()),
    });
    // The holder of another network's token learns only that the name is in use.
    let existing = if own_network { existing } else { serde_json::Value::Null };
    let details = serde_json::json!({"wireguard_public_key": request.wireguard_public_key});
    let actor = Actor::Node(node.id.to_string());
    tx.audit(now_ms, &actor, "enrolment_refused", ("node", node.id.as_str()), details).await?;
    tx.commit().await?;
    Err(RegistryError::NodeIdTaken { node: node.id.clone(), existing })
}

/// Why `token` does not enrol `node`. A refusal of one of our tokens is audited, once for each reason.
pub async fn bad_token(store: &Store, node: &NodeId, token: &str, now_ms: i64) -> Result<String, StoreError> {
    let mut tx = store.read().await?;
    let (id, reason) = tx.token_fault(token, node, now_ms).await?;
    let Some(id) = id else { return Ok(reason) };
    let (action, details) = ("enrolment_refused", serde_json::json!({"reason": reason}));
    let filter = AuditFilter {
        entity_type: Some("token".into()),
        entity_id: Some(id.clone()),
        action: Some(action.into()),
        limit: 20,
        ..AuditFilter::default()
    };
    if tx.audit_records(&filter).await?.iter().all(|r| r.details != details) {
        drop(tx);
        let mut tx = store.write().await?;
        tx.audit(now_ms, &Actor::Node(node.to_string()), action, ("token", &id), details).await?;
        tx.commit().await?;
    }
    Ok(reason)
}

async fn network_of(tx: &mut Tx, name: &str) -> Result<Network, RegistryError> {
    Ok(tx.network(name).await?.ok_or(StoreError::Unreadable("node.network"))?)
}

async fn join(
    tx: &mut Tx,
    known: Option<Node>,
    network: &Network,
    device: EnrollingDevice<'_>,
    now_ms: i64,
) -> Result<Node, RegistryError> {
    let request = device.request;
    let other = |found: Option<NodeId>| found.is_some_and(|id| id != request.node_id);
    if other(tx.node_with_key(request.wireguard_public_key).await?)
        || other(tx.node_with_identity(request.identity_public_key).await?)
    {
        return Err(RegistryError::KeyTaken);
    }
    let is_new = known.is_none();
    let mut node = joined_node(known, network, request, now_ms);
    if is_new {
        // The device may still know the generation of a node of a network that was removed.
        node.generation = tx.removed_generation(&node.id).await? + 1;
    }
    tx.put_node(&node).await?;
    tx.delete_removed_identity(request.identity_public_key).await?;
    tx.delete_reports(&node.id).await?;
    tx.put_capabilities(request).await?;
    tx.note_preshared(&node.id, device.takes_preshared).await?;
    if node.state == NodeState::Active {
        activate(tx, &node, network, now_ms).await?;
    }
    Ok(node)
}

/// Leases a node an address of each pool of its network; leases it has are kept.
pub(super) async fn lease(tx: &mut Tx, node: &Node, network: &Network, now_ms: i64) -> Result<(), RegistryError> {
    let admission = match node.wireguard_key.filter(|_| network.access == Access::Nft) {
        Some(key) => tx.admission(&node.id, key).await?,
        None => None,
    };
    // Token ids have 256 bits; the low 64 choose the host, which keeps consecutive ids apart.
    let token_id = admission.and_then(|a| a.token_id).map(|id| id.as_limbs()[0]);
    let number = token_id.unwrap_or_else(|| ipam::number_of(&node.id));
    tx.lease(network, &node.id, number, now_ms).await?;
    Ok(())
}

/// Leases an active node its addresses and raises the generation of every node whose document names it.
pub(super) async fn activate(tx: &mut Tx, node: &Node, network: &Network, now_ms: i64) -> Result<(), RegistryError> {
    lease(tx, node, network, now_ms).await?;
    tx.retire_preshared(node).await?;
    match (node.role, node.wireguard_key) {
        (Role::Node, Some(key)) => tx.begin_preshared(node, key).await?,
        (Role::Hub, _) => tx.begin_preshared_of_hub(node).await?,
        (Role::Node, None) => {}
    }
    match node.role {
        Role::Node => {
            tx.raise_generation(&node.id).await?;
            tx.raise_hub_generations(&network.name).await?;
        }
        Role::Hub => tx.raise_network_generations(&network.name).await?,
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
            None => tx.networks_behind(hub, network).await?,
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
        signing_keys: tx.active_signing_keys().await?,
    })))
}
