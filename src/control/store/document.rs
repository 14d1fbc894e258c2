//! The state document of one node, derived from the stored rows within one read transaction.
//!
//! Nothing derived is stored, so nothing derived can be stale: a change raises the generation in its own transaction, and
//! the document is built when the node polls.
use super::error::StoreError;
use super::lease::LeaseError;
use super::network::{Access, Network};
use super::node::{Node, NodeState};
use super::sql::Tx;
use ipnet::IpNet;
use spoke_config::node::Role;
use spoke_config::overrides::Overrides;
use spoke_enroll::document::{StateDocument, VERSION, WantedHub, WantedInterface, WantedPeer};
use spoke_model::node_id::NodeId;

/// The answer to a node's poll.
#[derive(Debug)]
pub enum DocumentLookup {
    /// Its document.
    Document(Box<StateDocument>),
    /// Not newer than asked for: its generation.
    Unchanged(u64),
    /// The node is not active.
    NotActive(NodeState),
    /// No such node.
    Unknown,
}

impl Tx {
    /// The document of `id`, if its generation is later than `after`. It names the signing keys active at its generation, and
    /// has no preshared keys: [`Tx::add_preshared`] adds them.
    pub async fn document(&mut self, id: &NodeId, after: u64) -> Result<DocumentLookup, LeaseError> {
        let Some(node) = self.node(id).await? else { return Ok(DocumentLookup::Unknown) };
        if node.state != NodeState::Active {
            return Ok(DocumentLookup::NotActive(node.state));
        }
        let mut supersedes = None;
        if node.generation <= after {
            supersedes = self.superseded(id).await?.filter(|g| *g == after && *g > node.generation);
            if supersedes.is_none() {
                return Ok(DocumentLookup::Unchanged(node.generation));
            }
        }
        let network = self.network(&node.network).await?.ok_or(StoreError::Unreadable("node.network"))?;
        let interface = self.interface(&node, &network).await?;
        let (release, rollout) = self.release_of(&node).await?.unzip();
        Ok(DocumentLookup::Document(Box::new(StateDocument {
            version: VERSION,
            node_id: node.id,
            generation: node.generation,
            supersedes,
            role: node.role,
            signing_keys: self.active_signing_keys().await?,
            interfaces: vec![interface],
            release,
            rollout: rollout.unwrap_or_default(),
            grants: network.grants.clone(),
        })))
    }

    /// The later generation that the document of a node replaces.
    async fn superseded(&mut self, node: &NodeId) -> Result<Option<u64>, StoreError> {
        let sql = "SELECT generation FROM superseded WHERE node = $1";
        self.row(sql, &[node.as_str().into()]).await?.map(|row| row.parsed("generation")).transpose()
    }

    /// Has the document of a node replace a later generation that it holds.
    pub async fn supersede(&mut self, node: &NodeId, generation: u64) -> Result<(), StoreError> {
        let sql = "INSERT INTO superseded (node, generation) VALUES ($1, $2)
            ON CONFLICT (node) DO UPDATE SET generation = excluded.generation";
        self.run(sql, &[node.as_str().into(), generation.to_string().into()]).await.map(drop)
    }

    async fn interface(&mut self, node: &Node, network: &Network) -> Result<WantedInterface, LeaseError> {
        let (hubs, peers) = match node.role {
            Role::Node => (self.wanted_hubs(network).await?, Vec::new()),
            Role::Hub => (Vec::new(), self.wanted_peers(network).await?),
        };
        // A hub listens on the port of its endpoint.
        let hub_port = node.endpoint.as_ref().filter(|_| node.role == Role::Hub).map(|e| e.port);
        Ok(WantedInterface {
            name: network.interface.clone(),
            addresses: self.addresses(network, &node.id).await?,
            listen_port: hub_port.filter(|p| *p != 0),
            mtu: network.mtu.filter(|m| *m != 0),
            dns: network.dns.clone(),
            hubs,
            peers,
            forwarding: network.forwarding,
            overrides: overrides(&node.overrides),
            next_key: node.next_key,
        })
    }

    async fn wanted_hubs(&mut self, network: &Network) -> Result<Vec<WantedHub>, LeaseError> {
        let mut hubs = Vec::new();
        for hub in self.hubs(&network.name).await? {
            let (Some(public_key), Some(endpoint)) = (hub.wireguard_key, hub.endpoint.clone()) else { continue };
            let Some(address) = self.addresses(network, &hub.id).await?.first().map(IpNet::addr) else { continue };
            let allowed_ips = self.networks_behind(&hub, network).await?;
            hubs.push(WantedHub {
                node_id: hub.id,
                public_key,
                endpoint,
                address,
                allowed_ips,
                keepalive: network.keepalive,
                preshared_keys: Vec::new(),
            });
        }
        Ok(hubs)
    }

    /// The networks reachable through a hub.
    pub(crate) async fn networks_behind(&mut self, hub: &Node, network: &Network) -> Result<Vec<IpNet>, LeaseError> {
        // A hub that does not forward is reachable alone.
        if network.forwarding {
            return Ok(network.pool4.into_iter().chain(network.pool6).collect());
        }
        Ok(self.addresses(network, &hub.id).await?.iter().map(|a| a.addr().into()).collect())
    }

    /// The peers of a hub: active nodes, in a network with access by NFT only those with a granted key.
    async fn wanted_peers(&mut self, network: &Network) -> Result<Vec<WantedPeer>, LeaseError> {
        // Each key is admitted by an open network or by a grant of its own.
        let sql = "SELECT n.id, n.isolated, l.family, l.host,
                CASE WHEN $2 = 'open' OR a.granted = 1 THEN n.wireguard_key END AS wireguard_key,
                CASE WHEN $2 = 'open' OR b.granted = 1 THEN n.next_key END AS next_key
            FROM node n
            JOIN lease l ON l.node = n.id AND l.network = n.network AND l.until_ms IS NULL
            LEFT JOIN admission a ON a.node = n.id AND a.wireguard_key = n.wireguard_key
            LEFT JOIN admission b ON b.node = n.id AND b.wireguard_key = n.next_key
            WHERE n.network = $1 AND n.role = 'node' AND n.state = 'active' AND n.enabled = 1
            ORDER BY n.id, l.family";
        let access: Access = network.access;
        let mut peers: Vec<WantedPeer> = Vec::new();
        let mut announced = Vec::new();
        for row in self.rows(sql, &[network.name.as_str().into(), access.as_str().into()]).await? {
            let Some(address) = network.address_of(row.int("family")?, row.count("host")?)? else { continue };
            let own = IpNet::from(address.addr());
            let node_id: NodeId = row.parsed("id")?;
            if let Some(last) = peers.last_mut().filter(|p| p.node_id == node_id) {
                last.allowed_ips.push(own);
                continue;
            }
            let (first, second) = match (row.opt_parsed("wireguard_key")?, row.opt_parsed("next_key")?) {
                (Some(key), next) => (key, next),
                // The contract grants only the new key.
                (None, Some(next)) => (next, None),
                (None, None) => continue,
            };
            let peer = WantedPeer {
                public_key: first,
                allowed_ips: vec![own],
                keepalive: 0,
                isolated: row.flag("isolated")?,
                preshared_key: None,
                node_id,
            };
            // The hub completes handshakes with the announced key, and accepts no packets from it yet.
            if let Some(public_key) = second {
                announced.push(WantedPeer { public_key, allowed_ips: Vec::new(), ..peer.clone() });
            }
            peers.push(peer);
        }
        peers.append(&mut announced);
        Ok(peers)
    }
}

/// Overrides as sent: the node applies them, so that it can also show the values without them.
fn overrides(set: &super::node::Overrides) -> Overrides {
    Overrides {
        listen_port: set.override_listen_port,
        dns: set.override_dns.clone(),
        mtu: set.override_mtu,
        keepalive: set.override_keepalive,
        endpoint_allowed_ips: set.override_endpoint_allowed_ip.as_ref().map(|nets| nets.iter().copied().collect()),
    }
}
