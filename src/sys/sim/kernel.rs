//! An in-memory kernel with the rules of the real one: it passes the same conformance suite.
//!
//! An allowed-ip moves to the last peer it is added to; setting a link down removes its routes and IPv6 addresses; an
//! update does not recreate a removed peer; a port is chosen when a link comes up; adding a link of another kind or a
//! route of another holder fails with `EEXIST`.
use crate::kernel::{Applied, Cause, Kernel, KernelError, LinkCounters, PeerCounters, ReadCounters};
use ipnet::IpNet;
use rustix::io::Errno;
use spoke_model::interface_name::IfName;
use spoke_model::key::{PublicKey, SecretKey};
use spoke_model::nets::Nets;
use spoke_model::time::Boot;
use spoke_net::plan::{AllowedIps, PeerChange, Step};
use spoke_net::render;
use spoke_net::state::{Egress, Forwarding, Neighbour, OWNED_ALIAS, Observed, ObservedLink, ObservedPeer, Route};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

mod handle;

/// A burst of changes ends after this long without a change.
const QUIET: Duration = Duration::from_millis(50);
/// A burst that lasts longer is reported before it ends.
const LONGEST: Duration = Duration::from_millis(500);
/// The first port that is assigned.
const FIRST_PORT: u16 = 32_768;

#[derive(Clone, Debug, Default)]
struct Link {
    index: u32,
    wireguard: bool,
    alias: String,
    up: bool,
    mtu: u32,
    /// Of its private key; stored, since deriving it for every peer would dominate benchmarks.
    public_key: Option<PublicKey>,
    listen_port: u16,
    fwmark: u32,
    addresses: BTreeSet<IpNet>,
    peers: BTreeMap<PublicKey, ObservedPeer>,
    /// The peer of each allowed-ip.
    owners: BTreeMap<IpNet, PublicKey>,
    /// Addresses whose connected route is missing.
    unrouted: BTreeSet<IpNet>,
    /// IPv6 is disabled by sysctl.
    no_ipv6: bool,
}

/// The link and the protocol of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Holder {
    link: String,
    ours: bool,
}

/// Bytes received and sent over all peers.
pub(super) fn traffic(peers: &BTreeMap<PublicKey, ObservedPeer>) -> (u64, u64) {
    peers.values().fold((0, 0), |(rx, tx), p| (rx + p.counters.rx, tx + p.counters.tx))
}

type Refusal = Box<dyn FnMut(&Step) -> Option<Errno> + Send>;

struct State {
    links: BTreeMap<String, Link>,
    /// A table holds each destination once with each metric.
    routes: BTreeMap<(u32, IpNet, u32), Holder>,
    /// Our tables; `None` for one that another process has changed.
    forwarding: BTreeMap<IfName, Option<Forwarding>>,
    next_index: u32,
    next_port: u16,
    refusal: Option<Refusal>,
    /// Number of next observations that fail.
    blind: u32,
    /// Steps left before the kernel stops responding.
    left: Option<u32>,
    /// Whether the kernel has WireGuard.
    wireguard: bool,
    now: Boot,
    /// Changes that rtnetlink announces; those of WireGuard are not announced.
    announced: u64,
    /// Steps requested, applied or refused.
    asked: Vec<Step>,
    /// Observations requested.
    looks: u64,
}

/// An in-memory kernel.
pub struct FakeKernel {
    state: Arc<Mutex<State>>,
    changes: watch::Receiver<u64>,
    writer: Handle,
    privileged: bool,
    since: Option<Instant>,
}

/// Changes by other processes to the same kernel, and its state for tests.
#[derive(Clone)]
pub struct Handle {
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<u64>>,
}

impl Default for FakeKernel {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeKernel {
    /// A kernel without links.
    #[must_use]
    pub fn new() -> Self {
        let state = State {
            links: BTreeMap::new(),
            routes: BTreeMap::new(),
            forwarding: BTreeMap::new(),
            next_index: 1,
            next_port: FIRST_PORT,
            refusal: None,
            blind: 0,
            left: None,
            wireguard: true,
            now: Boot::default(),
            announced: 0,
            asked: Vec::new(),
            looks: 0,
        };
        let (changed, changes) = watch::channel(0);
        let writer = Handle { state: Arc::new(Mutex::new(state)), changed: Arc::new(changed) };
        Self { state: Arc::clone(&writer.state), changes, writer, privileged: true, since: None }
    }

    /// Access for other processes.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.writer.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kernel for FakeKernel {
    async fn observe(&mut self, wanted: &BTreeSet<IfName>) -> Result<Observed, KernelError> {
        let mut state = self.state();
        state.looks += 1;
        if state.blind > 0 {
            state.blind -= 1;
            return Err(KernelError::Observe { what: "anything".to_owned(), source: Errno::NOBUFS.into() });
        }
        let (mut links, mut foreign) = (BTreeMap::new(), BTreeSet::new());
        for (name, link) in &state.links {
            let Ok(name) = name.parse::<IfName>() else { continue };
            let ours = link.alias == OWNED_ALIAS;
            if !(wanted.contains(&name) || ours && link.wireguard) {
                if link.wireguard {
                    foreign.insert(name);
                }
                continue;
            }
            if link.wireguard && !self.privileged {
                return Err(KernelError::NoPrivilege);
            }
            let routes = state.routes.iter().filter(|(_, h)| h.ours && h.link == name.as_str());
            let observed = ObservedLink {
                index: link.index,
                wireguard: link.wireguard,
                ours,
                up: link.up,
                mtu: link.mtu,
                traffic: traffic(&link.peers),
                public_key: link.public_key,
                listen_port: link.listen_port,
                fwmark: link.fwmark,
                addresses: if link.wireguard { link.addresses.clone() } else { BTreeSet::new() },
                unrouted: link.unrouted.intersection(&link.addresses).filter(|_| link.up).copied().collect(),
                peers: link.peers.clone(),
                routes: routes
                    .map(|((table, to, metric), _)| Route { to: *to, table: *table, metric: *metric })
                    .collect(),
            };
            links.insert(name, observed);
        }
        let neighbours = state.links.iter().filter(|(name, link)| {
            let wanted = name.parse().is_ok_and(|n: IfName| wanted.contains(&n));
            link.up && !(link.wireguard && (wanted || link.alias == OWNED_ALIAS))
        });
        let networks = neighbours.flat_map(|(name, link)| {
            let connected = link.addresses.iter().filter(|a| a.prefix_len() < a.max_prefix_len());
            connected.map(|a| (a.trunc(), Neighbour { link: name.clone(), address: a.addr() }))
        });
        let (networks, gateways) = (networks.collect(), BTreeSet::new());
        Ok(Observed { at: state.now, links, foreign, networks, gateways, forwarding: state.forwarding.clone() })
    }

    async fn apply(&mut self, steps: &[Step]) -> Applied {
        let mut applied = Applied::default();
        let mut failed_links: BTreeMap<IfName, Errno> = BTreeMap::new();
        let before = self.state().announced;
        for (index, step) in steps.iter().enumerate() {
            if self.state().hangs() {
                std::future::pending::<()>().await;
            }
            let mut state = self.state();
            state.asked.push(step.clone());
            let refused = state.refusal.as_mut().and_then(|r| r(step));
            let result = match failed_links.get(step.link()).copied().or(refused) {
                _ if !self.privileged => Err(Errno::PERM),
                Some(errno) => Err(errno),
                None => state.apply(step),
            };
            match result {
                Ok(()) => applied.done.push(index),
                Err(errno) => {
                    if let Step::CreateLink { link, .. } = step {
                        failed_links.insert(link.clone(), errno);
                    }
                    let error = if self.privileged { state.error(step, errno) } else { KernelError::NoPrivilege };
                    applied.failed.push((index, error));
                }
            }
        }
        if self.state().announced != before {
            self.writer.announce();
        }
        applied
    }

    async fn egress(&mut self, to: IpAddr) -> Egress {
        let state = self.state();
        let routes = state.routes.iter().filter(|((table, net, _), _)| *table == 254 && net.contains(&to));
        let routes = routes.map(|((_, net, _), holder)| (net.prefix_len(), false, holder.link.clone()));
        let connected = state.links.iter().filter(|(_, l)| l.up).flat_map(|(name, link)| {
            let holds = |a: &&IpNet| a.contains(&to) && !link.unrouted.contains(*a);
            // Ours have the higher metric.
            let other = link.alias != OWNED_ALIAS;
            link.addresses.iter().filter(holds).map(move |a| (a.prefix_len(), other, name.clone()))
        });
        routes.chain(connected).max().map_or(Egress::Unreachable, |(_, _, link)| Egress::Link(link))
    }

    async fn changed(&mut self) {
        loop {
            let Some(since) = self.since else {
                if self.changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                self.since = Some(Instant::now());
                continue;
            };
            let end = (Instant::now() + QUIET).min(since + LONGEST);
            if timeout_at(end, self.changes.changed()).await.is_err() || Instant::now() >= since + LONGEST {
                self.since = None;
                return;
            }
        }
    }
}

impl ReadCounters for FakeKernel {
    async fn counters(&mut self, link: &IfName) -> Result<Option<LinkCounters>, KernelError> {
        let state = self.state();
        let Some(link) = state.links.get(link.as_str()).filter(|l| l.wireguard) else { return Ok(None) };
        if !self.privileged {
            return Err(KernelError::NoPrivilege);
        }
        let one = |(key, peer): (&PublicKey, &ObservedPeer)| {
            (*key, PeerCounters { counters: peer.counters, endpoint: peer.endpoint })
        };
        Ok(Some(LinkCounters { index: link.index, peers: link.peers.iter().map(one).collect() }))
    }
}

impl State {
    /// The error of a refused step, with what its errno means.
    fn error(&self, step: &Step, errno: Errno) -> KernelError {
        let cause = match (errno, step) {
            (Errno::OPNOTSUPP, Step::CreateLink { .. }) if !self.wireguard => return KernelError::NoWireGuard,
            (
                Errno::ACCESS,
                Step::AddAddress { link, address: net }
                | Step::AddConnected { link, address: net }
                | Step::AddRoute { link, route: Route { to: net, .. } },
            ) if net.addr().is_ipv6() && self.links.get(link.as_str()).is_some_and(|l| l.no_ipv6) => {
                Cause::Ipv6Disabled(link.clone())
            }
            (Errno::EXIST, Step::AddRoute { route, .. }) => {
                let holder = self.routes.get(&(route.table, route.to, route.metric)).map(|h| h.link.clone());
                Cause::RouteHeld { to: route.to, holder: holder.unwrap_or_else(|| "another program".to_owned()) }
            }
            (Errno::ADDRINUSE, Step::SetDevice { link, .. } | Step::SetUp { link, .. }) => {
                let stored = self.links.get(link.as_str()).map_or(0, |l| l.listen_port);
                let port = if let Step::SetDevice { listen_port: Some(port), .. } = step { *port } else { stored };
                let other = self.links.iter().find(|(n, l)| *n != link.as_str() && l.up && l.listen_port == port);
                let holder =
                    other.map_or_else(|| "another program".to_owned(), |(name, _)| format!("interface {name}"));
                Cause::PortInUse { port, holder }
            }
            _ => Cause::Errno,
        };
        KernelError::Refused { step: render::step(step, &Observed::default()), cause, source: errno.into() }
    }

    /// Counts a step; whether the kernel no longer responds.
    const fn hangs(&mut self) -> bool {
        match &mut self.left {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    /// Applies a step.
    fn apply(&mut self, step: &Step) -> Result<(), Errno> {
        let name = step.link().as_str();
        match step {
            Step::DeleteLink { .. } => {
                if self.links.get(name).is_some_and(|l| l.wireguard && l.alias == OWNED_ALIAS) {
                    self.delete_link(name);
                }
            }
            Step::CreateLink { mtu, .. } => self.create_link(name, *mtu)?,
            Step::SetDevice { private_key, listen_port, fwmark, .. } => {
                self.set_device(name, private_key.as_ref(), *listen_port, *fwmark)?;
            }
            Step::SetForwarding { link, forwarding } => {
                match forwarding {
                    Some(new) => self.forwarding.insert(link.clone(), Some(new.clone())),
                    None => self.forwarding.remove(link),
                };
            }
            Step::RemovePeer { peer, .. } => {
                if let Some(link) = self.links.get_mut(name) {
                    link.remove_peer(peer);
                }
            }
            Step::SetPeer { peer, change, .. } => {
                let link = self.links.get_mut(name).ok_or(Errno::NODEV)?;
                if !link.wireguard {
                    return Err(Errno::OPNOTSUPP);
                }
                link.set_peer(*peer, change);
            }
            Step::SetMtu { mtu, .. } => {
                let link = self.links.get_mut(name).ok_or(Errno::NODEV)?;
                self.announced += u64::from(link.mtu != *mtu);
                link.mtu = *mtu;
            }
            Step::RemoveRoute { route, .. } => self.remove_route(name, *route, true),
            Step::RemoveAddress { address, .. } => {
                let removed = self.links.get_mut(name).is_some_and(|l| {
                    l.unrouted.remove(address);
                    l.addresses.remove(address)
                });
                self.announced += u64::from(removed);
            }
            Step::AddAddress { address, .. } => {
                let link = self.links.get_mut(name).ok_or(Errno::NODEV)?;
                if link.no_ipv6 && address.addr().is_ipv6() {
                    return Err(Errno::ACCESS);
                }
                let same = |a: &IpNet| a.addr() == address.addr() && a.addr().is_ipv6() && a != address;
                // The kernel holds an IPv6 address once per link, for any prefix length.
                if link.addresses.iter().any(same) {
                    return Err(Errno::EXIST);
                }
                self.announced += u64::from(link.addresses.insert(*address));
            }
            Step::AddConnected { address, .. } => {
                let link = self.links.get_mut(name).ok_or(Errno::NODEV)?;
                if link.no_ipv6 && address.addr().is_ipv6() {
                    return Err(Errno::ACCESS);
                }
                self.announced += u64::from(link.unrouted.remove(address));
            }
            Step::RemoveConnected { address, .. } => {
                let added = self.links.get_mut(name).is_some_and(|l| l.unrouted.insert(*address));
                self.announced += u64::from(added);
            }
            Step::SetUp { up, .. } => self.set_up(name, *up)?,
            Step::AddRoute { route, .. } => self.add_route(name, *route, true)?,
        }
        Ok(())
    }

    fn create_link(&mut self, name: &str, mtu: u32) -> Result<(), Errno> {
        match self.links.get(name) {
            Some(link) if link.wireguard => Ok(()),
            Some(_) => Err(Errno::EXIST),
            None if !self.wireguard => Err(Errno::OPNOTSUPP),
            None => {
                self.new_link(name, Link { wireguard: true, alias: OWNED_ALIAS.to_owned(), mtu, ..Link::default() });
                Ok(())
            }
        }
    }

    fn new_link(&mut self, name: &str, link: Link) {
        let index = self.next_index;
        self.next_index += 1;
        self.announced += 1;
        self.links.insert(name.to_owned(), Link { index, ..link });
    }

    fn delete_link(&mut self, name: &str) {
        self.announced += 1;
        self.links.remove(name);
        self.routes.retain(|_, h| h.link != name);
    }

    fn set_device(
        &mut self,
        name: &str,
        private_key: Option<&SecretKey>,
        listen_port: Option<u16>,
        fwmark: Option<u32>,
    ) -> Result<(), Errno> {
        let link = self.links.get(name).ok_or(Errno::NODEV)?;
        if !link.wireguard {
            return Err(Errno::OPNOTSUPP);
        }
        let up = link.up;
        let taken = |port: u16| self.links.iter().any(|(n, l)| n != name && l.up && l.listen_port == port);
        if let Some(port) = listen_port.filter(|p| *p != 0)
            && up
            && taken(port)
        {
            return Err(Errno::ADDRINUSE);
        }
        let port = match listen_port {
            Some(0) if up => Some(self.free_port()),
            other => other,
        };
        let link = self.links.get_mut(name).ok_or(Errno::NODEV)?;
        link.listen_port = port.unwrap_or(link.listen_port);
        link.fwmark = fwmark.unwrap_or(link.fwmark);
        if let Some(key) = private_key {
            let public = key.public();
            link.remove_peer(&public);
            link.public_key = Some(public);
        }
        Ok(())
    }

    fn free_port(&mut self) -> u16 {
        let port = self.next_port;
        self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
        port
    }

    fn set_up(&mut self, name: &str, up: bool) -> Result<(), Errno> {
        let link = self.links.get(name).ok_or(Errno::NODEV)?;
        let taken = |port: u16| self.links.iter().any(|(n, l)| n != name && l.up && l.listen_port == port);
        if up && !link.up && link.listen_port != 0 && taken(link.listen_port) {
            return Err(Errno::ADDRINUSE);
        }
        let port = if up && link.wireguard && link.listen_port == 0 { self.free_port() } else { link.listen_port };
        let link = self.links.get_mut(name).ok_or(Errno::NODEV)?;
        link.listen_port = port;
        if link.up && !up {
            link.addresses.retain(|a| a.addr().is_ipv4());
            self.routes.retain(|_, h| h.link != name);
        }
        self.announced += u64::from(link.up != up);
        if link.up != up {
            link.unrouted.clear();
        }
        link.up = up;
        Ok(())
    }

    fn add_route(&mut self, name: &str, route: Route, ours: bool) -> Result<(), Errno> {
        let link = self.links.get(name).ok_or(Errno::NODEV)?;
        if !link.up {
            return Err(Errno::NETDOWN);
        }
        if link.no_ipv6 && route.to.addr().is_ipv6() {
            return Err(Errno::ACCESS);
        }
        let holder = Holder { link: name.to_owned(), ours };
        match self.routes.get(&(route.table, route.to, route.metric)) {
            Some(existing) if *existing == holder => Ok(()),
            Some(_) => Err(Errno::EXIST),
            None => {
                self.announced += 1;
                self.routes.insert((route.table, route.to, route.metric), holder);
                Ok(())
            }
        }
    }

    fn remove_route(&mut self, name: &str, route: Route, ours_only: bool) {
        let key = (route.table, route.to, route.metric);
        if self.routes.get(&key).is_some_and(|h| h.link == name && (h.ours || !ours_only)) {
            self.announced += 1;
            self.routes.remove(&key);
        }
    }
}

impl Link {
    fn set_peer(&mut self, key: PublicKey, change: &PeerChange) {
        if self.public_key == Some(key) || (!change.create && !self.peers.contains_key(&key)) {
            return;
        }
        self.peers.entry(key).or_default();
        match &change.allowed_ips {
            AllowedIps::Keep => {}
            AllowedIps::Add(nets) => self.claim(key, nets),
            AllowedIps::Replace(nets) => {
                self.release(&key);
                self.claim(key, nets);
            }
        }
        let peer = self.peers.entry(key).or_default();
        if let Some(key) = &change.preshared_key {
            peer.preshared_key.clone_from(key);
        }
        peer.keepalive = change.keepalive.unwrap_or(peer.keepalive);
        peer.endpoint = change.endpoint.map_or(peer.endpoint, |e| Some(e.addr));
    }

    /// Moves allowed-ips to a peer from the peers that have them.
    fn claim(&mut self, key: PublicKey, nets: &Nets) {
        for net in nets {
            if let Some(before) = self.owners.insert(*net, key)
                && let Some(peer) = self.peers.get_mut(&before)
            {
                peer.allowed_ips = peer.allowed_ips.filtered(|n| n != net);
            }
        }
        let peer = self.peers.entry(key).or_default();
        peer.allowed_ips = peer.allowed_ips.and(nets);
    }

    fn release(&mut self, key: &PublicKey) {
        let nets = self.peers.get_mut(key).map(|p| std::mem::take(&mut p.allowed_ips));
        for net in &nets.unwrap_or_default() {
            self.owners.remove(net);
        }
    }

    fn remove_peer(&mut self, key: &PublicKey) {
        self.release(key);
        self.peers.remove(key);
    }
}
