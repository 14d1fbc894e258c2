//! Versions of what operators edit, compared within the transaction of the change.
use super::error::StoreError;
use super::network::Network;
use super::node::Node;
use super::precondition::{Edited, Precondition};
use super::release::Release;
use super::sql::Tx;
use crate::selector::Labels;
use crate::version::Version;

/// The version of a node's settings; what devices report is no part of it.
pub fn node_version(node: &Node, labels: &Labels) -> Version {
    Version::default()
        .with("label", &node.label)
        .with("labels", labels)
        .with("network", &node.network)
        .with("role", &node.role)
        .with("state", &node.state)
        .with("enabled", &node.enabled)
        .with("isolated", &node.isolated)
        .with("endpoint", &node.endpoint)
        .with("overrides", &node.overrides)
}

/// The version of a network.
pub fn network_version(network: &Network) -> Version {
    let Network { name, pool4, pool6, reserved, dns, interface, mtu, keepalive, .. } = network;
    let Network { forwarding, approval, access, quarantine_secs, grants, .. } = network;
    Version::default()
        .with("name", name)
        .with("pool4", pool4)
        .with("pool6", pool6)
        .with("reserved", reserved)
        .with("dns", dns)
        .with("interface", interface)
        .with("mtu", mtu)
        .with("keepalive", keepalive)
        .with("forwarding", forwarding)
        .with("approval", approval)
        .with("access", access)
        .with("quarantine_secs", quarantine_secs)
        .with("grants", grants)
}

/// The version of a desired release.
pub fn release_version(release: &Release) -> Version {
    Version::default()
        .with("version", &release.version)
        .with("source", &release.source)
        .with("spread_seconds", &release.spread_seconds)
        .with("since_ms", &release.since_ms)
        .with("renewed_ms", &release.renewed_ms)
}

impl Tx {
    /// Refuses a change of another version than the client has, and keeps that version until the commit. What is missing is
    /// refused by the change itself.
    pub(super) async fn require(&mut self, condition: &Precondition) -> Result<(), StoreError> {
        let version = match &condition.edited {
            Edited::Node(id) => match self.locked_node(id).await? {
                Some(node) => Some(node_version(&node, &self.labels(id).await?)),
                None => None,
            },
            Edited::Network(name) => {
                // In the order of the changes themselves, so that two of them cannot wait for each other.
                self.lock_networks().await?;
                self.lock_network(name).await?;
                self.network(name).await?.as_ref().map(network_version)
            }
            Edited::Release(network, node) => {
                self.lock_network(network).await?;
                self.release(network, node.as_ref()).await?.as_ref().map(release_version)
            }
        };
        let changed = version.map(|v| condition.if_match.changed(&v)).unwrap_or_default();
        if changed.is_empty() { Ok(()) } else { Err(StoreError::Changed(changed)) }
    }
}
