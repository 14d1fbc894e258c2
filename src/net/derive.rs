//! Derives the validated [`Desired`] state from configuration and facts. Invalid input is an error, never an emptier network:
//! the caller keeps the last good state.
use super::state::{Desired, Endpoint, Forwarding, Link, ListenPort, MAX_PEERS, Peer, Route};
use crate::api_state::{ApiState, ApiStateLink, Device, Table};
use ipnet::IpNet;
use spoke_config::effective::{Effective, InterfaceView};
use spoke_config::interface::{Access, CAPTURED_REMEDY, DEFAULT_MTU, MIN_MTU_V6, captured};
use spoke_config::interface::{DriftPolicy, TABLE_MAIN};
use spoke_config::node::Role;
use spoke_config::overrides::MAX_ALLOWED_IPS;
use spoke_config::uplink::Hub;
use spoke_model::address::HostPort;
use spoke_model::interface_name::IfName;
use spoke_model::key::{PresharedKey, PublicKey, SecretKey};
use spoke_model::key_source::KeySource;
use spoke_model::nets::{Holders, Nets};
use spoke_model::node_id::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

pub mod withdraw;

/// Every key that the configuration names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// Private keys by interface.
    pub private: BTreeMap<IfName, SecretKey>,
    /// Preshared keys by their source.
    pub preshared: BTreeMap<KeySource, PresharedKey>,
    /// Why a key cannot be read, with its remedy.
    pub unreadable: BTreeMap<KeySource, Arc<str>>,
}

/// A hub as a peer of the uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubPeer {
    /// The hub's configuration.
    pub hub: Arc<Hub>,
    /// Endpoint; `None` until its name is resolved.
    pub endpoint: Option<Endpoint>,
}

/// Decision of the uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkChoice {
    /// The tunnel's interface.
    pub interface: IfName,
    /// The hub that carries the traffic.
    pub active: HubPeer,
    /// A better hub being watched before failback. Its allowed-ips are its own tunnel address only; none if the active hub has
    /// the same one.
    pub standby: Option<HubPeer>,
    /// Epoch of the local UDP port.
    pub port_epoch: u32,
    /// Epoch of the interface.
    pub rebuild: u32,
}

/// Pairs of node and key admitted by a grant; grace is applied already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admitted(pub BTreeSet<(NodeId, PublicKey)>);

/// The facts published by the producers. The caller waits until every configured one was published once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Keys.
    pub keys: Arc<Keys>,
    /// The uplink's choice; `None` without an uplink.
    pub uplink: Option<Arc<UplinkChoice>>,
    /// Last good addresses of the peers' host names.
    pub names: Arc<BTreeMap<HostPort, SocketAddr>>,
    /// Peers admitted by a grant.
    pub admitted: Arc<Admitted>,
    /// State set through the agent API.
    pub api_state: Arc<ApiState>,
}

/// Why no state can be derived.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeriveError {
    /// A private key is missing.
    #[error("interface {0} has no private key yet")]
    NoKey(IfName),
    /// A preshared key is missing.
    #[error("the preshared key {origin} of peer {peer:?} on {link} could not be read")]
    NoPresharedKey {
        /// Interface.
        link: IfName,
        /// Peer.
        peer: PublicKey,
        /// Where it should be.
        origin: KeySource,
    },
    /// Two peers claim the same network, which the kernel would move back and forth.
    #[error("{net} on {link} is claimed by peer {first:?} and by peer {second:?}: give it to one of them")]
    Overlap {
        /// Interface.
        link: IfName,
        /// The network.
        net: IpNet,
        /// One peer.
        first: PublicKey,
        /// The other peer.
        second: PublicKey,
    },
    /// A network with host bits or IPv4 inside IPv6.
    #[error("{net} of peer {peer:?} on {link} is not canonical")]
    NotCanonical {
        /// Interface.
        link: IfName,
        /// Peer.
        peer: PublicKey,
        /// The network.
        net: IpNet,
    },
    /// The kernel disables IPv6 below [`MIN_MTU_V6`].
    #[error("the MTU {mtu} of {link} is too small for its IPv6 addresses: it needs {MIN_MTU_V6} or more")]
    NarrowForIpv6 {
        /// Interface.
        link: IfName,
        /// Bytes.
        mtu: u32,
    },
    /// A network routed into the tunnel holds an endpoint.
    #[error(
        "{net} on {link} holds the endpoint {endpoint}, so that the tunnel's own packets would be routed into it: {}",
        CAPTURED_REMEDY
    )]
    Captured {
        /// Interface.
        link: IfName,
        /// The network.
        net: IpNet,
        /// Endpoint of a peer or a hub.
        endpoint: SocketAddr,
    },
    /// A default route in the main table.
    #[error(
        "{net} on {link} would be a default route in the main table, which takes the tunnel's own packets, too: {}",
        CAPTURED_REMEDY
    )]
    DefaultRoute {
        /// Interface.
        link: IfName,
        /// The network.
        net: IpNet,
    },
    /// The hub's tunnel address is ours.
    #[error(
        "the hub's address {address} is an address of this node ({link}), which would answer in the hub's place: correct the hub's address"
    )]
    OwnHubAddress {
        /// Interface that has the address.
        link: IfName,
        /// The address.
        address: IpAddr,
    },
    /// The interface is its own peer.
    #[error("interface {0} has its own public key among its peers")]
    OwnKey(IfName),
    /// More than the bounds allow.
    #[error("{what} on {link}: {count} are more than the {max} allowed")]
    TooMany {
        /// Interface.
        link: IfName,
        /// Peers or allowed-ips.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
}

/// Derives the desired state. `last` is the previous one: the generation increases only with a change.
pub fn derive(config: &Effective, facts: &Facts, last: &Desired) -> Result<Desired, DeriveError> {
    let mut links = BTreeMap::new();
    let mut key_faults = BTreeMap::new();
    for interface in config.interfaces() {
        let own = interface.own();
        match facts.keys.unreadable.get(&own.private_key).filter(|_| !facts.keys.private.contains_key(&own.name)) {
            Some(why) => drop(key_faults.insert(own.name.clone(), why.clone())),
            None => drop(links.insert(own.name.clone(), link(interface, config.own().node.role, facts)?)),
        }
    }
    for (name, set) in &facts.api_state.links {
        let known = links.contains_key(name) || key_faults.contains_key(name);
        if let (Some(device), false) = (&set.device, known) {
            links.insert(name.clone(), api_link(name, config.own().node.role, device, set)?);
        }
    }
    check_hubs(config, &links)?;
    let hubs = config.interfaces().filter(|_| config.own().node.role == Role::Hub);
    let forwarding = hubs.map(|i| (i.own().name.clone(), forwarding(i))).collect();
    let same = links == last.links && forwarding == last.forwarding && key_faults == last.key_faults;
    let generation = if same { last.generation } else { last.generation + 1 };
    Ok(Desired { generation, links, forwarding, key_faults })
}

/// No hub's address may be ours, and no network routed into a tunnel may hold an endpoint of that tunnel.
fn check_hubs(config: &Effective, links: &BTreeMap<IfName, Link>) -> Result<(), DeriveError> {
    let uplink = config.uplink_interface();
    for hub in config.hubs() {
        let own = links.iter().find(|(_, l)| l.addresses.iter().any(|a| a.addr() == hub.address));
        if let Some((name, _)) = own {
            return Err(DeriveError::OwnHubAddress { link: name.clone(), address: hub.address });
        }
    }
    for (name, link) in links {
        if link.fwmark != 0 {
            continue;
        }
        let mut endpoints: Vec<SocketAddr> = link.peers.values().filter_map(|p| p.endpoint).map(|e| e.addr).collect();
        if uplink == Some(name) {
            endpoints.extend(config.hubs().iter().filter_map(|hub| hub.endpoint.literal()));
        }
        let routed = link.routes.iter().filter(|r| r.table == TABLE_MAIN).map(|r| r.to);
        if let Some(net) = routed.clone().find(|net| net.prefix_len() == 0) {
            return Err(DeriveError::DefaultRoute { link: name.clone(), net });
        }
        let connected = link.addresses.iter().filter(|a| a.prefix_len() < a.max_prefix_len()).map(IpNet::trunc);
        if let Some((net, endpoint)) = captured(routed.chain(connected), &endpoints) {
            return Err(DeriveError::Captured { link: name.clone(), net, endpoint });
        }
    }
    Ok(())
}

fn forwarding(interface: InterfaceView<'_>) -> Forwarding {
    let open = interface.forwarding();
    let isolated = interface.peers().filter(|p| open && p.isolated);
    let nets: Vec<IpNet> = isolated.flat_map(|p| p.allowed_ips.iter().map(|c| c.0)).collect();
    Forwarding { open, isolated: IpNet::aggregate(&nets).into_iter().collect() }
}

fn link(interface: InterfaceView<'_>, role: Role, facts: &Facts) -> Result<Link, DeriveError> {
    let (own, over) = (interface.own(), interface.overrides());
    let name = &own.name;
    let private_key = facts.keys.private.get(name).ok_or_else(|| DeriveError::NoKey(name.clone()))?.clone();
    let pairs = Pairs { interface, own: private_key.public(), facts };
    let mut peers = BTreeMap::new();
    for peer in interface.peers() {
        if own.access == Access::Nft {
            let admitted =
                peer.node_id.as_ref().is_some_and(|id| facts.admitted.0.contains(&(id.clone(), peer.public_key)));
            if !admitted {
                continue;
            }
        }
        let endpoint = peer.endpoint.as_ref().and_then(|e| e.literal().or_else(|| facts.names.get(e).copied()));
        let (preshared_key, key_fault) = pairs.preshared(peer.public_key, peer.preshared_key.as_ref())?;
        peers.insert(
            peer.public_key,
            Peer {
                preshared_key,
                key_fault,
                allowed_ips: peer.allowed_ips.iter().map(|c| c.0).collect(),
                keepalive: peer.keepalive,
                endpoint: endpoint.map(|addr| Endpoint { addr, attempt: 0 }),
            },
        );
    }
    let port = over.listen_port.map_or(interface.listen_port(), |p| (p != 0).then_some(p));
    let mut listen_port = port.map_or(ListenPort::Random { epoch: 0 }, ListenPort::Fixed);
    let mut rebuild = 0;
    if let Some(choice) = facts.uplink.as_ref().filter(|u| u.interface == *name) {
        let configured = || choice.active.hub.allowed_ips.iter().map(|c| c.0).collect();
        // The hub's own address is always routed to it, for echoes.
        let reach = |mut nets: BTreeSet<IpNet>| {
            if !nets.iter().any(|n| n.contains(&choice.active.hub.address)) {
                nets.insert(choice.active.hub.address.into());
            }
            nets.into()
        };
        let active: Nets = over.endpoint_allowed_ips.clone().map_or_else(configured, reach);
        if let Some(standby) = &choice.standby {
            let own = IpNet::from(standby.hub.address);
            let nets = if active.contains(&own) || choice.active.hub.address == standby.hub.address {
                Nets::default()
            } else {
                [own].into()
            };
            peers.insert(standby.hub.public_key, pairs.hub_peer(standby, nets)?);
        }
        peers.insert(choice.active.hub.public_key, pairs.hub_peer(&choice.active, active)?);
        if matches!(listen_port, ListenPort::Random { .. }) {
            listen_port = ListenPort::Random { epoch: choice.port_epoch };
        }
        rebuild = choice.rebuild;
    }
    let set = facts.api_state.links.get(name);
    // Where grants decide, the API adds no peer.
    if let (Some(set), Access::Open) = (set, own.access) {
        merge(set, &mut peers);
    }
    if let Some(keepalive) = over.keepalive {
        peers.values_mut().for_each(|p| p.keepalive = keepalive);
    }
    check(name, &private_key, &peers)?;
    let mtu = over.mtu.map_or(interface.mtu(), |mtu| if mtu == 0 { DEFAULT_MTU } else { mtu });
    if mtu < MIN_MTU_V6 && interface.addresses().iter().any(|a| a.0.addr().is_ipv6()) {
        return Err(DeriveError::NarrowForIpv6 { link: name.clone(), mtu });
    }
    let routes = routes(interface, &peers);
    Ok(Link {
        private_key,
        listen_port,
        port_fallback: role == Role::Node,
        fwmark: own.fwmark,
        mtu,
        defaults: (interface.mtu_is_default(), !own.written.1),
        addresses: interface.addresses().iter().map(|a| a.0).collect(),
        peers,
        routes,
        up: !set.is_some_and(|s| s.down),
        policy: own.drift,
        remove_unknown: own.remove_unknown,
        dns: over.dns.clone().unwrap_or_else(|| interface.dns().to_vec()),
        rebuild,
    })
}

/// Adds the peers set by the API. Declared peers and their networks take precedence, so that a later declaration never makes
/// the state invalid.
fn merge(set: &ApiStateLink, peers: &mut BTreeMap<PublicKey, Peer>) {
    let declared: BTreeSet<IpNet> = peers.values().flat_map(|p| &p.allowed_ips).copied().collect();
    let added = set.peers.iter().filter(|(key, _)| !peers.contains_key(*key)).map(|(key, peer)| {
        let peer = Peer {
            preshared_key: peer.preshared_key.clone(),
            allowed_ips: peer.allowed_ips.filtered(|n| !declared.contains(n)),
            keepalive: peer.keepalive,
            endpoint: peer.endpoint.map(|addr| Endpoint { addr, attempt: 0 }),
            key_fault: None,
        };
        (*key, peer)
    });
    // Appending a sorted map is linear.
    let mut added: BTreeMap<PublicKey, Peer> = added.collect();
    peers.append(&mut added);
}

/// An interface declared by the API only.
fn api_link(name: &IfName, role: Role, device: &Device, set: &ApiStateLink) -> Result<Link, DeriveError> {
    let mut peers = BTreeMap::new();
    merge(set, &mut peers);
    check(name, &device.private_key, &peers)?;
    let table = match device.table {
        Table::Auto => Some(TABLE_MAIN),
        Table::Off => None,
        Table::Number(n) => Some(n),
    };
    let nets = peers.values().flat_map(|p| &p.allowed_ips).copied();
    let reached = |net: &IpNet| {
        device.table == Table::Auto
            && (net.prefix_len() == 0 || device.addresses.iter().any(|a| a.trunc().contains(net)))
    };
    Ok(Link {
        private_key: device.private_key.clone(),
        listen_port: device.listen_port.map_or(ListenPort::Random { epoch: 0 }, ListenPort::Fixed),
        port_fallback: role == Role::Node,
        fwmark: device.fwmark,
        mtu: device.mtu.unwrap_or(DEFAULT_MTU),
        defaults: (device.mtu.is_none(), false),
        addresses: device.addresses.clone(),
        routes: table.map_or_else(BTreeSet::new, |table| {
            nets.filter(|net| !reached(net)).map(|to| Route { to, table, metric: 0 }).collect()
        }),
        peers,
        up: !set.down,
        policy: DriftPolicy::Enforce,
        remove_unknown: Some(true),
        dns: device.dns.clone(),
        rebuild: 0,
    })
}

/// The preshared keys of one interface's tunnels.
struct Pairs<'a> {
    interface: InterfaceView<'a>,
    /// This node's key.
    own: PublicKey,
    facts: &'a Facts,
}

impl Pairs<'_> {
    /// The configured one, or why it cannot be read; without one the document's.
    fn preshared(
        &self,
        peer: PublicKey,
        source: Option<&KeySource>,
    ) -> Result<(Option<PresharedKey>, Option<Arc<str>>), DeriveError> {
        let Some(source) = source else { return Ok((self.interface.preshared(self.own, peer).cloned(), None)) };
        match (self.facts.keys.preshared.get(source), self.facts.keys.unreadable.get(source)) {
            (Some(key), _) => Ok((Some(key.clone()), None)),
            (None, Some(why)) => Ok((None, Some(why.clone()))),
            (None, None) => {
                let link = self.interface.own().name.clone();
                Err(DeriveError::NoPresharedKey { link, peer, origin: source.clone() })
            }
        }
    }

    fn hub_peer(&self, peer: &HubPeer, allowed_ips: Nets) -> Result<Peer, DeriveError> {
        let (preshared_key, key_fault) = self.preshared(peer.hub.public_key, peer.hub.preshared_key.as_ref())?;
        Ok(Peer { preshared_key, allowed_ips, keepalive: peer.hub.keepalive, endpoint: peer.endpoint, key_fault })
    }
}

/// Routes to the allowed-ips, without those that an address of the interface implies.
fn routes(interface: InterfaceView<'_>, peers: &BTreeMap<PublicKey, Peer>) -> BTreeSet<Route> {
    let own = interface.own();
    if !own.routes {
        return BTreeSet::new();
    }
    let connected = |net: &IpNet| {
        own.table == spoke_config::interface::TABLE_MAIN
            && interface.addresses().iter().any(|a| a.0.trunc().contains(net))
    };
    peers
        .values()
        .flat_map(|p| &p.allowed_ips)
        .filter(|net| !connected(net))
        .map(|net| Route { to: *net, table: own.table, metric: own.route_metric })
        .collect()
}

fn check(link: &IfName, private_key: &SecretKey, peers: &BTreeMap<PublicKey, Peer>) -> Result<(), DeriveError> {
    let too_many = |what, count, max| DeriveError::TooMany { link: link.clone(), what, count, max };
    if peers.len() > MAX_PEERS {
        return Err(too_many("peers", peers.len(), MAX_PEERS));
    }
    if peers.contains_key(&private_key.public()) {
        return Err(DeriveError::OwnKey(link.clone()));
    }
    for (key, peer) in peers {
        if peer.allowed_ips.len() > MAX_ALLOWED_IPS {
            return Err(too_many("allowed-ips of one peer", peer.allowed_ips.len(), MAX_ALLOWED_IPS));
        }
        for net in &peer.allowed_ips {
            if net.trunc() != *net {
                return Err(DeriveError::NotCanonical { link: link.clone(), peer: *key, net: *net });
            }
        }
    }
    match Holders::of(peers.iter().map(|(key, peer)| (key, &peer.allowed_ips))).conflict() {
        Some((net, first, second)) => Err(DeriveError::Overlap { link: link.clone(), net, first, second }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod captured;
#[cfg(test)]
mod key_faults;
#[cfg(test)]
mod overrides;
