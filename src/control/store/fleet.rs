//! The state document of one node, made of what is stored within one read transaction.
//!
//! Nothing derived is stored, so nothing derived can be stale: a change raises the generation in the transaction that
//! makes it, and the document is built when it is asked for.
use super::lease::LeaseError;
use super::network::{Access, Network};
use super::node::{Node, NodeState};
use super::sql::{StoreError, Tx};
use crate::config::node::Role;
use crate::enroll::document::{StateDocument, VERSION, WantedHub, WantedInterface, WantedPeer};
use crate::enroll::signature::VerifyKey;
use crate::net::overrides::Overrides;
use crate::node::NodeId;
use ipnet::IpNet;

/// What a node may be told.
#[derive(Debug)]
pub enum Wanted {
    /// Its document.
    Document(Box<StateDocument>),
    /// Nothing new: this is its generation.
    Unchanged(u64),
    /// It is not a member.
    NotActive(NodeState),
    /// It is not known.
    Unknown,
}

impl Tx {
    /// The document of `id`, if its generation is beyond `after`.
    pub async fn wanted(&mut self, id: &NodeId, after: u64, keys: &[VerifyKey]) -> Result<Wanted, LeaseError> {
        let Some(node) = self.node(id).await? else { return Ok(Wanted::Unknown) };
        if node.state != NodeState::Active {
            return Ok(Wanted::NotActive(node.state));
        }
        if node.generation <= after {
            return Ok(Wanted::Unchanged(node.generation));
        }
        let network = self.network(&node.network).await?.ok_or(StoreError::Unreadable("node.network"))?;
        let interface = self.interface(&node, &network).await?;
        let release = self.wanted_release(&node).await?;
        Ok(Wanted::Document(Box::new(StateDocument {
            version: VERSION,
            node_id: node.id,
            generation: node.generation,
            role: node.role,
            signing_keys: keys.to_vec(),
            interfaces: vec![interface],
            release,
        })))
    }

    async fn interface(&mut self, node: &Node, network: &Network) -> Result<WantedInterface, LeaseError> {
        let (hubs, peers) = match node.role {
            Role::Node => (self.wanted_hubs(network).await?, Vec::new()),
            Role::Hub => (Vec::new(), self.wanted_peers(network).await?),
        };
        // A hub listens where its endpoint says, unless something in front of it translates the port.
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
            // Behind a hub that forwards are the other nodes; behind one that does not, only itself.
            let allowed_ips = if network.forwarding {
                network.pool4.into_iter().chain(network.pool6).collect()
            } else {
                self.addresses(network, &hub.id).await?.iter().map(|a| a.addr().into()).collect()
            };
            hubs.push(WantedHub {
                node_id: hub.id,
                public_key,
                endpoint,
                address,
                allowed_ips,
                keepalive: network.keepalive,
            });
        }
        Ok(hubs)
    }

    /// The peers of a hub: nodes in the fleet and, where the contract decides, granted.
    async fn wanted_peers(&mut self, network: &Network) -> Result<Vec<WantedPeer>, LeaseError> {
        let sql = "SELECT n.*, l.family, l.host FROM node n
            JOIN lease l ON l.node = n.id AND l.network = n.network AND l.until_ms IS NULL
            WHERE n.network = $1 AND n.role = 'node' AND n.state = 'active' AND n.wireguard_key IS NOT NULL
            AND ($2 = 'open' OR EXISTS
                (SELECT 1 FROM admission a WHERE a.node = n.id AND a.wireguard_key = n.wireguard_key))
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
            let peer = WantedPeer {
                public_key: row.parsed("wireguard_key")?,
                allowed_ips: vec![own],
                keepalive: 0,
                isolated: row.flag("isolated")?,
                node_id,
            };
            // The hub answers a handshake with the new key before any packet is accepted from it.
            if let Some(public_key) = row.opt_parsed("next_key")? {
                announced.push(WantedPeer { public_key, allowed_ips: Vec::new(), ..peer.clone() });
            }
            peers.push(peer);
        }
        peers.append(&mut announced);
        Ok(peers)
    }
}

impl Tx {
    /// The number of the NFT that grants a node and key, if the contract does.
    pub async fn granted_token(
        &mut self,
        node: &NodeId,
        key: crate::net::key::PublicKey,
    ) -> Result<Option<u64>, StoreError> {
        let sql = "SELECT token_id FROM admission WHERE node = $1 AND wireguard_key = $2";
        let Some(row) = self.row(sql, &[node.as_str().into(), key.to_string().into()]).await? else { return Ok(None) };
        // Token ids have 256 bits; the low ones choose the host, which keeps ids that follow each other apart.
        let id: alloy_primitives::U256 = row.parsed("token_id")?;
        Ok(Some(id.as_limbs()[0]))
    }
}

/// Overrides as they travel: the node itself applies them, so that it can also say what it would do without.
fn overrides(set: &super::node::Overrides) -> Overrides {
    Overrides {
        listen_port: set.override_listen_port,
        dns: set.override_dns.clone(),
        mtu: set.override_mtu,
        keepalive: set.override_keepalive,
        endpoint_allowed_ips: None,
    }
}
