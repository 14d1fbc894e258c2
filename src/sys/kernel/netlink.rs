//! The kernel itself: [`Kernel`] and [`ReadCounters`] over netlink.
use super::conversation::Conversation;
use super::events::Events;
use super::filter::Filter;
use super::refusal::{has_net_admin, ipv6_is_disabled, is_ipv6_refusal, protocol_name, socket_holder, unreadable};
use super::route;
use super::route::{LinkState, errno};
use super::wireguard::{Depth, Devices};
use super::{Applied, Cause, Kernel, KernelError, LinkCounters, PeerCounters, ReadCounters};
use crate::clock::{Clock, SystemClock};
use ipnet::IpNet;
use rustix::io::Errno;
use spoke_model::interface_name::IfName;
use spoke_model::key::SecretKey;
use spoke_net::plan::Step;
use spoke_net::render;
use spoke_net::state::{Egress, Neighbour, Observed, ObservedLink, ObservedPeer, Route};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

mod pass;
use pass::{Kind, Pass};

/// Most endpoints whose gateway is looked up in a pass.
const MAX_ENDPOINTS: usize = 16;

/// The kernel's network state of the network namespace it was opened in.
///
/// Opened and used within one tokio runtime (a current-thread one will do) with time and I/O enabled.
pub struct Netlink {
    routes: Conversation,
    devices: Devices,
    events: Events,
    /// On hubs only.
    filter: Option<Filter>,
    /// The sockets were opened with `CAP_NET_ADMIN`; they have at most the capabilities of that moment.
    privileged: bool,
}

impl Netlink {
    /// Opens three sockets: for links, addresses and routes; for WireGuard; and for change events, which are collected
    /// from here on. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The process may not open sockets, or the kernel is older than 4.20.
    pub fn open() -> Result<Self, KernelError> {
        let open = || -> io::Result<Self> {
            Ok(Self {
                routes: Conversation::open(netlink_sys::protocols::NETLINK_ROUTE)?,
                devices: Devices::open()?,
                events: Events::open()?,
                filter: None,
                privileged: has_net_admin(),
            })
        };
        open().map_err(|source| unreadable(has_net_admin(), "anything", source))
    }

    /// Whether this process may change the network.
    fn privileged(&self) -> bool {
        self.privileged && has_net_admin()
    }

    fn unreadable(&self, what: &str, source: io::Error) -> KernelError {
        unreadable(self.privileged(), what, source)
    }

    /// Observes forwarding between peers from the first observation on, for hubs. Without this it is observed only
    /// after it was first written.
    #[must_use]
    pub fn with_forwarding(mut self) -> Self {
        self.filter = Some(Filter::default());
        self
    }

    async fn observe_link(
        &mut self,
        name: &IfName,
        link: &route::LinkState,
        routes: BTreeSet<Route>,
        addressing: &Addressing,
    ) -> Result<Option<ObservedLink>, KernelError> {
        let own = addressing.addresses.iter().filter(|a| a.link == link.index);
        let addresses: BTreeSet<IpNet> = own.map(|a| a.address).collect();
        let unrouted = |a: &&IpNet| link.up && route::is_unrouted(&addressing.connected, link.index, **a);
        let unrouted = addresses.iter().filter(unrouted).copied().collect();
        let device = match self.devices.read(name, Depth::Whole).await {
            Ok(device) => device,
            Err(source) => return Err(self.unreadable(&format!("the WireGuard device {name}"), source)),
        };
        // Deleted since the links were read.
        let Some(device) = device else { return Ok(None) };
        Ok(Some(ObservedLink {
            index: link.index,
            wireguard: true,
            ours: link.ours,
            up: link.up,
            mtu: link.mtu,
            traffic: link.traffic,
            public_key: device.public_key,
            listen_port: device.listen_port,
            fwmark: device.fwmark,
            addresses,
            unrouted,
            peers: device.peers,
            routes,
        }))
    }
}

impl Kernel for Netlink {
    async fn observe(&mut self, wanted: &BTreeSet<IfName>) -> Result<Observed, KernelError> {
        let at = SystemClock.now();
        let mut links = BTreeMap::new();
        let found = match route::wireguard_links(&mut self.routes).await {
            Ok(found) => found,
            Err(source) => return Err(self.unreadable("the links", source)),
        };
        let (mut relevant, mut foreign) = (BTreeMap::new(), BTreeSet::new());
        for link in found {
            // Not a name that the configuration can contain.
            let Ok(name) = link.name.parse::<IfName>() else { continue };
            if link.ours || wanted.contains(&name) {
                relevant.insert(name, link);
            } else {
                foreign.insert(name);
            }
        }
        for name in wanted.iter().filter(|n| !relevant.contains_key(*n)) {
            let other = match route::link(&mut self.routes, name.as_str()).await {
                Ok(other) => other,
                Err(source) => return Err(self.unreadable(&format!("the link {name}"), source)),
            };
            if let Some(other) = other {
                links.insert(
                    name.clone(),
                    ObservedLink {
                        index: other.index,
                        wireguard: other.wireguard,
                        ours: other.ours,
                        up: other.up,
                        mtu: other.mtu,
                        ..ObservedLink::default()
                    },
                );
            }
        }
        let mut routes = if relevant.is_empty() {
            BTreeMap::new()
        } else {
            match route::routes(&mut self.routes).await {
                Ok(routes) => routes,
                Err(source) => return Err(self.unreadable("the routes", source)),
            }
        };
        let addressing = match Addressing::read(&mut self.routes).await {
            Ok(addressing) => addressing,
            Err(source) => return Err(self.unreadable("the addresses", source)),
        };
        let ours: BTreeSet<u32> = relevant.values().map(|l| l.index).collect();
        let networks = match addressing.neighbours(&mut self.routes, &ours).await {
            Ok(networks) => networks,
            Err(source) => return Err(self.unreadable("the links", source)),
        };
        for (name, link) in relevant {
            let routes = routes.remove(&link.index).unwrap_or_default();
            if let Some(observed) = self.observe_link(&name, &link, routes, &addressing).await? {
                links.insert(name, observed);
            }
        }
        let peers = links.values().filter(|l| l.wireguard).flat_map(|l| l.peers.values());
        let endpoints: BTreeSet<IpAddr> = peers.filter_map(|p| p.endpoint).map(|e| e.ip().to_canonical()).collect();
        // A hub has thousands, and its way to them is the default route.
        let endpoints = endpoints.into_iter().take(MAX_ENDPOINTS);
        let gateways = match route::gateways(&mut self.routes, endpoints).await {
            Ok(gateways) => gateways,
            Err(source) => return Err(self.unreadable("the routes to the endpoints", source)),
        };
        let forwarding = match &mut self.filter {
            Some(filter) => match filter.read().await {
                Ok(forwarding) => forwarding,
                Err(source) => return Err(self.unreadable("what may pass between peers", source)),
            },
            None => BTreeMap::new(),
        };
        Ok(Observed { at, links, foreign, networks, gateways, forwarding })
    }

    async fn apply(&mut self, steps: &[Step]) -> Applied {
        let mut applied = Applied::default();
        let mut pass = Pass { kernel: self, results: Vec::with_capacity(steps.len()), failed_links: BTreeMap::new() };
        let mut rest = steps;
        while let Some(first) = rest.first() {
            let kind = Kind::of(first);
            let same = |s: &&Step| Kind::of(s) == kind && (kind != Kind::Device || s.link() == first.link());
            let count = match kind {
                Kind::Link | Kind::Filter | Kind::Connected => 1,
                Kind::Device | Kind::Route => rest.iter().take_while(same).count(),
            };
            let (group, later) = rest.split_at(count);
            rest = later;
            match kind {
                Kind::Link => pass.link(first).await,
                Kind::Filter => pass.filter(first).await,
                Kind::Connected => pass.connected(first).await,
                Kind::Device => pass.device(group).await,
                Kind::Route => pass.route(group).await,
            }
        }
        let results = pass.results;
        for (index, (step, result)) in steps.iter().zip(results).enumerate() {
            match result {
                Ok(()) => applied.done.push(index),
                Err(error) => applied.failed.push((index, self.refused(step, error).await)),
            }
        }
        applied
    }

    async fn egress(&mut self, to: IpAddr) -> Egress {
        match route::matching(&mut self.routes, to).await {
            Ok(Some(entry)) => match route::link_at(&mut self.routes, entry.link).await {
                Ok(Some(link)) => Egress::Link(link.name),
                Ok(None) | Err(_) => Egress::Unknown,
            },
            Ok(None) => Egress::Unreachable,
            Err(_) => Egress::Unknown,
        }
    }

    async fn changed(&mut self) {
        self.events.changed().await;
    }
}

impl Netlink {
    /// The error of a refused step, with what its errno means.
    async fn refused(&mut self, step: &Step, source: io::Error) -> KernelError {
        let privileged = self.privileged();
        let cause = match (errno(&source), step) {
            (Some(Errno::PERM | Errno::ACCESS), _) if !privileged => return KernelError::NoPrivilege,
            // The kernel knows no such kind of link.
            (Some(Errno::OPNOTSUPP), Step::CreateLink { .. }) if !self.devices.is_known().await => {
                return KernelError::NoWireGuard;
            }
            (
                Some(errno),
                Step::AddAddress { link, address: net }
                | Step::AddConnected { link, address: net }
                | Step::AddRoute { link, route: Route { to: net, .. } },
            ) if is_ipv6_refusal(*net, errno) && ipv6_is_disabled(link) => Cause::Ipv6Disabled(link.clone()),
            (Some(Errno::EXIST), Step::AddRoute { route, .. }) => {
                Cause::RouteHeld { to: route.to, holder: self.route_holder(route).await }
            }
            (Some(Errno::ADDRINUSE), Step::SetDevice { link, .. } | Step::SetUp { link, .. }) => {
                let port = match step {
                    Step::SetDevice { listen_port: Some(port), .. } => *port,
                    _ => self.stored_port(link).await,
                };
                Cause::PortInUse { port, holder: self.port_holder(link, port).await }
            }
            _ => Cause::Errno,
        };
        KernelError::Refused { step: render::step(step, &Observed::default()), cause, source }
    }

    /// The interface and routing protocol of the route in the place of ours.
    async fn route_holder(&mut self, route: &Route) -> String {
        let unknown = || "another program".to_owned();
        let Ok(Some(found)) = route::matching(&mut self.routes, route.to.addr()).await else { return unknown() };
        if found.prefix_len != route.to.prefix_len() {
            return unknown();
        }
        match route::link_at(&mut self.routes, found.link).await {
            Ok(Some(LinkState { name, .. })) => format!("{name} (protocol {})", protocol_name(found.protocol)),
            Ok(None) | Err(_) => unknown(),
        }
    }

    /// The port an interface that is down will listen on.
    async fn stored_port(&mut self, link: &IfName) -> u16 {
        let device = self.devices.read(link, Depth::Counters).await.ok().flatten();
        device.map_or(0, |d| d.listen_port)
    }

    /// The private key of a WireGuard interface that we did not create; `None` without one, or if it cannot be read.
    pub async fn foreign_key(&mut self, name: &IfName) -> Option<SecretKey> {
        let links = route::wireguard_links(&mut self.routes).await.ok()?;
        links.into_iter().find(|l| l.name == name.as_str() && !l.ours)?;
        self.devices.read(name, Depth::PrivateKey).await.ok()??.private_key
    }

    /// The WireGuard interface, the process or the user that has a UDP port.
    pub async fn port_holder(&mut self, own: &IfName, port: u16) -> String {
        for other in route::wireguard_links(&mut self.routes).await.unwrap_or_default() {
            let Ok(name) = other.name.parse::<IfName>() else { continue };
            if name != *own && other.up && self.stored_port(&name).await == port {
                return format!("interface {name}");
            }
        }
        socket_holder(port)
    }
}

/// The addresses and connected routes of all links.
struct Addressing {
    addresses: Vec<route::LinkAddress>,
    connected: BTreeSet<(u32, IpNet, u32)>,
}

impl Addressing {
    async fn read(kernel: &mut Conversation) -> io::Result<Self> {
        Ok(Self { addresses: route::all_addresses(kernel).await?, connected: route::connected(kernel).await? })
    }

    /// Networks of links that are up and not ours.
    async fn neighbours(
        &self,
        kernel: &mut Conversation,
        ours: &BTreeSet<u32>,
    ) -> io::Result<BTreeMap<IpNet, Neighbour>> {
        let foreign = |a: &&route::LinkAddress| {
            let host = a.network.prefix_len() == a.network.max_prefix_len();
            let link_local = matches!(a.address, IpNet::V6(net) if net.addr().is_unicast_link_local());
            !ours.contains(&a.link) && !host && !link_local
        };
        let mut links: BTreeMap<u32, Option<LinkState>> = BTreeMap::new();
        let mut all = BTreeMap::new();
        for address in self.addresses.iter().filter(foreign) {
            if let std::collections::btree_map::Entry::Vacant(entry) = links.entry(address.link) {
                entry.insert(route::link_at(kernel, address.link).await?);
            }
            let Some(Some(link)) = links.get(&address.link) else { continue };
            if link.up && !link.loopback {
                let neighbour = Neighbour { link: link.name.clone(), address: address.address.addr() };
                all.entry(address.network).or_insert(neighbour);
            }
        }
        Ok(all)
    }
}

/// Reads counters on its own socket.
pub struct CounterSocket {
    devices: Devices,
    privileged: bool,
}

impl CounterSocket {
    /// Opens the socket. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The process may not open sockets.
    pub fn open() -> Result<Self, KernelError> {
        let privileged = has_net_admin();
        match Devices::open() {
            Ok(devices) => Ok(Self { devices, privileged }),
            Err(source) => Err(unreadable(privileged, "anything", source)),
        }
    }
}

impl ReadCounters for CounterSocket {
    async fn counters(&mut self, link: &IfName) -> Result<Option<LinkCounters>, KernelError> {
        let device = match self.devices.read(link, Depth::Counters).await {
            Ok(device) => device,
            // Without the family there is no WireGuard interface.
            Err(error) if errno(&error) == Some(Errno::NOENT) => None,
            Err(source) => {
                let privileged = self.privileged && has_net_admin();
                return Err(unreadable(privileged, &format!("the counters of {link}"), source));
            }
        };
        let one = |(key, p): (_, ObservedPeer)| (key, PeerCounters { counters: p.counters, endpoint: p.endpoint });
        Ok(device.map(|d| LinkCounters { index: d.index, peers: d.peers.into_iter().map(one).collect() }))
    }
}
