//! `[[interface]]`: one WireGuard interface each, with its statically configured peers.
use super::node::{Node, Role};
use super::reader::Table;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use spoke_model::address::{Cidr, HostPort, IfAddress};
use spoke_model::interface_name::IfName;
use spoke_model::key::PublicKey;
use spoke_model::key_source::KeySource;
use spoke_model::node_id::NodeId;
use spoke_model::wireguard::MTU_RANGE;
use std::net::IpAddr;
use std::str::FromStr;

/// The main routing table.
pub const TABLE_MAIN: u32 = 254;

/// What to do about a difference between desired and observed state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriftPolicy {
    /// Repair it.
    Enforce,
    /// Report it and write nothing.
    Observe,
}

/// Inner MTU that fits through every path seen in the field (the IPv6 minimum). A board on Ethernet may raise it to 1420.
pub const DEFAULT_MTU: u32 = 1280;

/// Smallest MTU in bytes of an interface with IPv6 addresses (RFC 8200, 5).
pub const MIN_MTU_V6: u32 = 1280;

/// Who may be a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Every configured peer.
    #[default]
    Open,
    /// Only peers whose node id and key are granted by the contract.
    Nft,
}

impl FromStr for Access {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "open" => Ok(Self::Open),
            "nft" => Ok(Self::Nft),
            _ => Err("not a kind of access"),
        }
    }
}

impl FromStr for DriftPolicy {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "enforce" => Ok(Self::Enforce),
            "observe" => Ok(Self::Observe),
            _ => Err("not a drift policy"),
        }
    }
}

/// `[[interface.peer]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The node this peer is; needed where access is by NFT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// Identity.
    pub public_key: PublicKey,
    /// Extra symmetric key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preshared_key: Option<KeySource>,
    /// Canonical networks.
    pub allowed_ips: Vec<Cidr>,
    /// Where to reach it; `None`: it connects to us.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<HostPort>,
    /// Seconds; 0 is off.
    pub keepalive: u16,
    /// Cannot reach other peers even with forwarding on.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub isolated: bool,
}

/// `[[interface]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// Kernel name.
    pub name: IfName,
    /// Place of the private key; a missing file is created at the first run.
    pub private_key: KeySource,
    /// UDP port; `None`: the kernel chooses, so that two boards behind one NAT do not collide.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_port: Option<u16>,
    /// Mark on the encrypted packets; 0 is none.
    pub fwmark: u32,
    /// Bytes.
    pub mtu: u32,
    /// `mtu` and `fwmark` are written in the configuration. Those left out stay as found on an interface of another program.
    #[serde(skip)]
    pub written: (bool, bool),
    /// Our addresses.
    pub addresses: Vec<IfAddress>,
    /// Routing table of our routes.
    pub table: u32,
    /// Priority of our routes among those to the same network, lower first; 0: the kernel's default.
    pub route_metric: u32,
    /// Whether routes to the peers' allowed-ips are made.
    pub routes: bool,
    /// Who may be a peer.
    pub access: Access,
    /// Whether drift is repaired or only reported.
    pub drift: DriftPolicy,
    /// Whether unconfigured peers are removed; `None`: only on an interface we created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remove_unknown: Option<bool>,
    /// Resolvers inside the tunnel, for other programs to read; those of the system are not changed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
    /// Whether a peer's network may lie inside another peer's; the narrower one wins, as in the kernel.
    pub nested_allowed_ips: bool,
    /// Whether peers may reach each other through this machine; used on a hub only.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub forwarding: bool,
    /// Peers.
    #[serde(rename = "peer")]
    pub peers: Vec<Peer>,
}

impl Interface {
    /// An interface with nothing but defaults.
    pub fn bare(name: IfName, node: &Node) -> Self {
        Self {
            private_key: KeySource::File(node.state_dir.join(format!("{name}.key"))),
            name,
            listen_port: None,
            fwmark: 0,
            mtu: DEFAULT_MTU,
            written: (false, false),
            addresses: Vec::new(),
            table: TABLE_MAIN,
            route_metric: 0,
            routes: true,
            access: Access::Open,
            drift: DriftPolicy::Enforce,
            remove_unknown: None,
            dns: Vec::new(),
            nested_allowed_ips: false,
            forwarding: false,
            peers: Vec::new(),
        }
    }

    pub(super) fn read(t: &mut Table<'_>, node: &Node) -> Option<Self> {
        let name: Option<IfName> =
            t.parsed("name", "1 to 15 characters out of A-Z a-z 0-9 _ . - that do not begin with - or .");
        if name.is_none() && !t.has("name") {
            t.required("name", "name = \"wg0\"");
        }
        let default_key = |name: &IfName| KeySource::File(node.state_dir.join(format!("{name}.key")));
        let private_key = t.parsed("private_key", "\"file:/absolute/path\" or \"credential:NAME\"");
        let listen_port = t.number("listen_port", 1..=65_535);
        // A control plane that names the role names the port.
        if node.role == Role::Hub && node.role_named && listen_port.is_none() {
            t.fault("listen_port", "is missing: a hub needs a port known to its nodes", "add listen_port = 51820");
        }
        let access = t.parsed("access", "\"open\" or \"nft\"").unwrap_or_default();
        let drift = t.parsed("drift", "\"enforce\" or \"observe\"").unwrap_or(DriftPolicy::Enforce);
        let remove_unknown = t.flag("remove_unknown");
        if access == Access::Nft && (drift == DriftPolicy::Observe || remove_unknown == Some(false)) {
            t.fault(
                "access",
                "is \"nft\", which requires that unknown peers are removed",
                "remove remove_unknown = false and drift = \"observe\", or set access = \"open\"",
            );
        }
        let dns = t.list("dns", "IP addresses such as 10.8.0.1").unwrap_or_default();
        let nested_allowed_ips = t.flag("nested_allowed_ips").unwrap_or(false);
        let forwarding = t.flag("forwarding").unwrap_or(false);
        if forwarding && node.role != Role::Hub {
            t.fault("forwarding", "only a hub forwards between its peers", "set node.role = \"hub\", or remove it");
        }
        let table = t.number("table", 1..=u64::from(u32::MAX)).map_or(TABLE_MAIN, saturate);
        let route_metric = t.number("route_metric", 0..=u64::from(u32::MAX)).map_or(0, saturate);
        let routes = t.flag("routes").unwrap_or(true);
        let (fwmark, mtu) = (
            t.number("fwmark", 0..=u64::from(u32::MAX)),
            t.number("mtu", u64::from(*MTU_RANGE.start())..=u64::from(*MTU_RANGE.end())),
        );
        let addresses =
            t.list("addresses", "an address with its prefix length such as 10.8.0.2/24").unwrap_or_default();
        let v6 = addresses.iter().find(|a: &&IfAddress| a.0.addr().is_ipv6());
        if let (Some(mtu), Some(address)) = (mtu.filter(|m| *m < u64::from(MIN_MTU_V6)), v6) {
            let problem = format!("{mtu} is too small for the address {}: IPv6 needs {MIN_MTU_V6}", address.0);
            t.fault("mtu", problem, format_args!("write {MIN_MTU_V6} or more, or remove the IPv6 addresses"));
        }
        let peers = t.tables("peer", |p| read_peer(p, access));
        let main_table_routes = routes && table == TABLE_MAIN && fwmark.unwrap_or(0) == 0;
        check_peers(t, &peers, nested_allowed_ips, main_table_routes);
        let name = name?;
        Some(Self {
            private_key: private_key.unwrap_or_else(|| default_key(&name)),
            name,
            listen_port: listen_port.and_then(|p| u16::try_from(p).ok()),
            fwmark: fwmark.map_or(0, saturate),
            mtu: mtu.map_or(DEFAULT_MTU, saturate),
            written: (mtu.is_some(), fwmark.is_some()),
            addresses,
            table,
            route_metric,
            routes,
            access,
            drift,
            remove_unknown: remove_unknown.or((access == Access::Nft).then_some(true)),
            dns,
            nested_allowed_ips,
            forwarding,
            peers,
        })
    }
}

fn saturate(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Keys that a configured peer and a hub have in common.
pub(super) struct PeerKeys {
    pub(super) public_key: Option<PublicKey>,
    pub(super) preshared_key: Option<KeySource>,
    pub(super) allowed_ips: Vec<Cidr>,
    pub(super) endpoint: Option<HostPort>,
    pub(super) keepalive: Option<u16>,
}

pub(super) fn read_peer_keys(t: &mut Table<'_>) -> PeerKeys {
    if !t.has("public_key") {
        t.required("public_key", "the 44 characters that `wg show` or `spoke key public` prints");
    }
    PeerKeys {
        public_key: t.parsed("public_key", "a WireGuard public key: 44 characters of base64"),
        preshared_key: t.parsed("preshared_key", "\"file:/absolute/path\" or \"credential:NAME\""),
        allowed_ips: t.list("allowed_ips", "a network without host bits such as 10.8.0.0/24").unwrap_or_default(),
        endpoint: t.parsed("endpoint", "HOST:PORT such as hub.example.net:51820 or [2001:db8::1]:51820"),
        keepalive: t.number("keepalive", 0..=65_535).and_then(|k| u16::try_from(k).ok()),
    }
}

fn read_peer(t: &mut Table<'_>, access: Access) -> Option<Peer> {
    let node_id = t.parsed("node_id", "1 to 128 characters out of A-Z a-z 0-9 _ -");
    if access == Access::Nft && node_id.is_none() && !t.has("node_id") {
        t.required("node_id", "the node id its grant is for (the interface has access = \"nft\")");
    }
    let isolated = t.flag("isolated").unwrap_or(false);
    let (name, keys) = (t.text("name"), read_peer_keys(t));
    Some(Peer {
        name,
        node_id,
        public_key: keys.public_key?,
        preshared_key: keys.preshared_key,
        allowed_ips: keys.allowed_ips,
        endpoint: keys.endpoint,
        keepalive: keys.keepalive.unwrap_or(0),
        isolated,
    })
}

/// What to do about a network that [`captured`] finds.
pub const CAPTURED_REMEDY: &str = "leave the endpoint out of the networks, set table to a separate table with an `ip rule`, set a fwmark with an `ip rule` for it, or set routes = false";

/// The first network routed into a tunnel that holds one of its endpoints, with that endpoint: the tunnel's own packets would be
/// routed into it, and all other traffic with them.
pub fn captured(
    nets: impl IntoIterator<Item = IpNet>,
    endpoints: &[std::net::SocketAddr],
) -> Option<(IpNet, std::net::SocketAddr)> {
    let holds = |net: IpNet| Some((net, *endpoints.iter().find(|e| net.contains(&e.ip().to_canonical()))?));
    nets.into_iter().find_map(holds)
}

fn check_peers(t: &mut Table<'_>, peers: &[Peer], nested: bool, main_table_routes: bool) {
    let endpoints: Vec<_> = peers.iter().filter_map(|p| p.endpoint.as_ref()?.literal()).collect();
    for (i, peer) in peers.iter().enumerate() {
        if let Some(j) = peers[..i].iter().position(|p| p.public_key == peer.public_key) {
            t.fault(&format!("peer[{i}].public_key"), format_args!("is also that of peer[{j}]"), "keep one of the two");
        }
        if main_table_routes && peer.allowed_ips.iter().any(|c| c.0.prefix_len() == 0) {
            t.fault(
                &format!("peer[{i}].allowed_ips"),
                "a default route in the main table would also route the tunnel's own packets into the tunnel",
                "set table to a separate table with an `ip rule`, or routes = false",
            );
        } else if main_table_routes
            && let Some((net, endpoint)) = captured(peer.allowed_ips.iter().map(|c| c.0), &endpoints)
        {
            let problem = format_args!(
                "{net} holds the peer's endpoint {endpoint}: the tunnel's packets would be routed into it"
            );
            t.fault(&format!("peer[{i}].allowed_ips"), problem, CAPTURED_REMEDY);
        }
    }
    // In order of first address, `open` holds the networks that contain the current one.
    let mut all: Vec<(IpNet, usize)> =
        peers.iter().enumerate().flat_map(|(i, p)| p.allowed_ips.iter().map(move |c| (c.0, i))).collect();
    all.sort_unstable();
    let mut open: Vec<(IpNet, usize)> = Vec::new();
    for (net, i) in all {
        open.retain(|(o, _)| o.contains(&net));
        if let Some((other, j)) = open.iter().rev().find(|(o, j)| *j != i && (!nested || *o == net)) {
            let (i, j, net, other) = if i > *j { (i, *j, net, *other) } else { (*j, i, *other, net) };
            t.fault(
                &format!("peer[{i}].allowed_ips"),
                format_args!("{net} overlaps {other} of peer[{j}]"),
                "give each address to one peer, or set nested_allowed_ips = true on the interface if the narrower one is to win",
            );
        }
        open.push((net, i));
    }
}

/// Pairs of overlapping networks: equal ones, and unless `nested` one inside the other.
pub(super) fn overlaps(a: &[Cidr], b: &[Cidr], nested: bool) -> Vec<(IpNet, IpNet)> {
    let collide = |x: &IpNet, y: &IpNet| x == y || (!nested && (x.contains(y) || y.contains(x)));
    a.iter().flat_map(|x| b.iter().filter(|y| collide(&x.0, &y.0)).map(|y| (x.0, y.0))).collect()
}
