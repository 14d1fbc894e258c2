//! The kernel itself: [`Kernel`] and [`ReadCounters`] over netlink.
use super::conversation::Conversation;
use super::events::Events;
use super::filter::Filter;
use super::refusal::{has_net_admin, ipv6_is_disabled, is_ipv6_refusal, protocol_name, socket_holder, unreadable};
use super::route;
use super::route::{Change, LinkState, errno};
use super::wireguard::{Depth, Devices};
use super::{Applied, Cause, Kernel, KernelError, LinkCounters, PeerCounters, ReadCounters};
use crate::clock::{Clock, SystemClock};
use ipnet::IpNet;
use rustix::io::Errno;
use spoke_model::interface_name::IfName;
use spoke_net::plan::Step;
use spoke_net::render;
use spoke_net::state::{Egress, Neighbour, Observed, ObservedLink, ObservedPeer, Route};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

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

/// Which socket a step is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Creates or deletes a link; sent alone, because later steps depend on it.
    Link,
    /// WireGuard.
    Device,
    /// Existing links, addresses, routes.
    Route,
    /// A connected route: several requests that depend on each other.
    Connected,
    /// nftables.
    Filter,
}

impl Kind {
    const fn of(step: &Step) -> Self {
        match step {
            Step::DeleteLink { .. } | Step::CreateLink { .. } => Self::Link,
            Step::SetForwarding { .. } => Self::Filter,
            Step::SetDevice { .. } | Step::RemovePeer { .. } | Step::SetPeer { .. } => Self::Device,
            Step::AddConnected { .. } | Step::RemoveConnected { .. } => Self::Connected,
            Step::SetMtu { .. }
            | Step::RemoveRoute { .. }
            | Step::RemoveAddress { .. }
            | Step::AddAddress { .. }
            | Step::SetUp { .. }
            | Step::AddRoute { .. } => Self::Route,
        }
    }
}

/// One application of a plan.
struct Pass<'a> {
    kernel: &'a mut Netlink,
    /// Results of the steps so far.
    results: Vec<io::Result<()>>,
    /// Links that could not be created: their other steps fail with the same error.
    failed_links: BTreeMap<IfName, io::Error>,
}

impl Pass<'_> {
    async fn link(&mut self, step: &Step) {
        let result = match step {
            Step::CreateLink { link, mtu } => {
                let result = route::create_link(&mut self.kernel.routes, link, *mtu).await;
                if let Err(error) = &result {
                    self.failed_links.insert(link.clone(), copy(error));
                }
                result
            }
            other => route::delete_link(&mut self.kernel.routes, other.link()).await,
        };
        self.results.push(result);
    }

    async fn filter(&mut self, step: &Step) {
        let result = match step {
            Step::SetForwarding { link, forwarding } => {
                self.kernel.filter.get_or_insert_default().write(link, forwarding.as_ref()).await
            }
            _ => Err(io::ErrorKind::InvalidInput.into()),
        };
        self.results.push(result);
    }

    async fn connected(&mut self, step: &Step) {
        let kernel = &mut self.kernel.routes;
        let result = match (route::link(kernel, step.link().as_str()).await, step) {
            (Ok(Some(link)), Step::AddConnected { address, .. }) => {
                route::add_connected(kernel, link.index, *address).await
            }
            (Ok(Some(link)), Step::RemoveConnected { address, .. }) => {
                route::remove_connected(kernel, link.index, *address).await
            }
            (Ok(_), Step::RemoveConnected { .. }) => Ok(()),
            (Ok(_), _) => Err(Errno::NODEV.into()),
            (Err(error), _) => Err(error),
        };
        self.results.push(result);
    }

    async fn device(&mut self, group: &[Step]) {
        let Some(first) = group.first() else { return };
        if let Some(error) = self.failed_links.get(first.link()) {
            self.results.extend(group.iter().map(|_| Err(copy(error))));
            return;
        }
        let steps: Vec<&Step> = group.iter().collect();
        let results = self.kernel.devices.write(first.link(), &steps).await;
        self.results.extend(results.into_iter().zip(group).map(gone_with_its_link));
    }

    async fn route(&mut self, group: &[Step]) {
        let mut indices: BTreeMap<IfName, io::Result<u32>> = BTreeMap::new();
        for name in group.iter().map(Step::link).collect::<BTreeSet<_>>() {
            let index = match self.failed_links.get(name) {
                Some(error) => Err(copy(error)),
                None => match route::link(&mut self.kernel.routes, name.as_str()).await {
                    Ok(Some(link)) => Ok(link.index),
                    Ok(None) => Err(Errno::NODEV.into()),
                    Err(error) => Err(error),
                },
            };
            indices.insert(name.clone(), index);
        }
        let kernel = &mut self.kernel.routes;
        let before = collateral(kernel, group, &indices).await;
        let changes: Vec<io::Result<Change<'_>>> = group
            .iter()
            .map(|step| match indices.get(step.link()) {
                Some(Ok(index)) => change(step, *index).ok_or_else(|| io::ErrorKind::InvalidInput.into()),
                Some(Err(error)) => Err(copy(error)),
                None => Err(Errno::NODEV.into()),
            })
            .collect();
        let mut results = submit(kernel, &changes).await;
        if results.iter().any(|r| r.as_ref().is_err_and(|e| errno(e) == Some(Errno::EXIST))) {
            confirm(kernel, &changes, &mut results).await;
        }
        if let Err(error) = restore(kernel, &before, group, &indices).await {
            // The next observation finds the drift.
            tracing::warn!(%error, "cannot look after what went with a removed address");
        }
        self.results.extend(results.into_iter().zip(group).map(gone_with_its_link));
    }
}

/// A removal succeeds if the link is gone: peers, addresses and routes are removed with it.
fn gone_with_its_link((result, step): (io::Result<()>, &Step)) -> io::Result<()> {
    let removes = matches!(step, Step::RemovePeer { .. } | Step::RemoveAddress { .. } | Step::RemoveRoute { .. });
    result.or_else(|error| if removes && errno(&error) == Some(Errno::NODEV) { Ok(()) } else { Err(error) })
}

fn change(step: &Step, index: u32) -> Option<Change<'_>> {
    Some(match step {
        Step::SetMtu { link, mtu } => Change::Mtu(link, *mtu),
        Step::SetUp { link, up } => Change::Up(link, *up),
        Step::AddAddress { address, .. } => Change::AddAddress(index, *address),
        Step::RemoveAddress { address, .. } => Change::RemoveAddress(index, *address),
        Step::AddRoute { route, .. } => Change::AddRoute(index, *route),
        Step::RemoveRoute { route, .. } => Change::RemoveRoute(index, *route),
        Step::DeleteLink { .. }
        | Step::CreateLink { .. }
        | Step::SetDevice { .. }
        | Step::RemovePeer { .. }
        | Step::SetForwarding { .. }
        | Step::AddConnected { .. }
        | Step::RemoveConnected { .. }
        | Step::SetPeer { .. } => return None,
    })
}

/// Submits the valid changes in order.
async fn submit(kernel: &mut Conversation, changes: &[io::Result<Change<'_>>]) -> Vec<io::Result<()>> {
    let requests: Vec<_> = changes.iter().flatten().map(Change::request).collect();
    let mut answers = match kernel.submit(&requests).await {
        Ok(answers) => answers.into_iter().map(|a| a.map_err(io::Error::from)).collect::<Vec<_>>().into_iter(),
        Err(error) => changes.iter().flatten().map(|_| Err(copy(&error))).collect::<Vec<_>>().into_iter(),
    };
    changes
        .iter()
        .map(|change| match change {
            Err(error) => Err(copy(error)),
            Ok(change) => match answers.next() {
                Some(Err(error)) if errno(&error).is_some_and(|e| change.is_moot(e)) => Ok(()),
                Some(answer) => answer,
                None => Err(io::ErrorKind::TimedOut.into()),
            },
        })
        .collect()
}

/// `EEXIST` counts as added if the identical address or route is there: the kernel also returns it for another
/// protocol's route to the same network.
async fn confirm(kernel: &mut Conversation, changes: &[io::Result<Change<'_>>], results: &mut [io::Result<()>]) {
    let routes = route::routes(kernel).await.unwrap_or_default();
    for (change, result) in changes.iter().zip(results) {
        if !result.as_ref().is_err_and(|e| errno(e) == Some(Errno::EXIST)) {
            continue;
        }
        let present = match change {
            Ok(Change::AddRoute(index, route)) => routes.get(index).is_some_and(|r| r.contains(route)),
            Ok(Change::AddAddress(index, address)) => {
                route::addresses(kernel, *index).await.is_ok_and(|a| a.contains(address))
            }
            Ok(_) | Err(_) => false,
        };
        if present {
            *result = Ok(());
        }
    }
}

/// What a link has before one of its IPv4 addresses is removed.
struct Before {
    addresses: BTreeSet<IpNet>,
    routes: BTreeSet<Route>,
}

/// State of the links that lose an IPv4 address: the kernel removes further addresses of the same network with it, and
/// all IPv4 routes with the last one, while a step must remove one address only.
async fn collateral(
    kernel: &mut Conversation,
    group: &[Step],
    indices: &BTreeMap<IfName, io::Result<u32>>,
) -> BTreeMap<u32, Before> {
    let mut all = BTreeMap::new();
    for step in group {
        if let Step::RemoveAddress { link, address: IpNet::V4(_) } = step
            && let Some(Ok(index)) = indices.get(link)
            && !all.contains_key(index)
            && let Ok(addresses) = route::addresses(kernel, *index).await
            && let Ok(mut routes) = route::routes(kernel).await
        {
            all.insert(*index, Before { addresses, routes: routes.remove(index).unwrap_or_default() });
        }
    }
    all
}

/// Restores what the kernel removed together with an address.
async fn restore(
    kernel: &mut Conversation,
    before: &BTreeMap<u32, Before>,
    group: &[Step],
    indices: &BTreeMap<IfName, io::Result<u32>>,
) -> io::Result<()> {
    for (index, before) in before {
        let mut addresses = before.addresses.clone();
        let mut routes = before.routes.clone();
        for step in group.iter().filter(|s| indices.get(s.link()).is_some_and(|i| matches!(i, Ok(i) if i == index))) {
            match step {
                Step::RemoveAddress { address, .. } => drop(addresses.remove(address)),
                Step::RemoveRoute { route, .. } => drop(routes.remove(route)),
                Step::SetUp { up: false, .. } => routes.clear(),
                _ => {}
            }
        }
        let there = route::addresses(kernel, *index).await?;
        let routes_there = route::routes(kernel).await?.remove(index).unwrap_or_default();
        let again: Vec<_> = addresses
            .difference(&there)
            .map(|a| Change::AddAddress(*index, *a))
            .chain(routes.difference(&routes_there).map(|r| Change::AddRoute(*index, *r)))
            .map(Ok)
            .collect();
        for result in submit(kernel, &again).await {
            result?;
        }
    }
    Ok(())
}

/// A copy of an error that fails several steps.
fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
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
