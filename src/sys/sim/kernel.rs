//! An in-memory kernel with the rules of the real one: it passes the same conformance suite.
//!
//! An allowed-ip moves to the last peer it is added to; setting a link down removes its routes and IPv6 addresses; an
//! update does not recreate a removed peer; a port is chosen when a link comes up; adding a link of another kind or a
//! route of another holder fails with `EEXIST`.
use crate::kernel::{Applied, Kernel, KernelError, LinkCounters, PeerCounters, ReadCounters};
use ipnet::IpNet;
use rustix::io::Errno;
use spoke_model::interface_name::IfName;
use spoke_model::key::PublicKey;
use spoke_model::time::Boot;
use spoke_net::plan::Step;
use spoke_net::state::{Egress, Forwarding, Neighbour, OWNED_ALIAS, Observed, ObservedLink, ObservedPeer, Route};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

mod handle;
mod state;

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
