//! A device, its hubs and the network between them: WireGuard's timers, NAT, DNS and broken address families.
//!
//! The device's side is a [`Kernel`](crate::kernel::Kernel) like the real one, so that reconciler and uplink run in it
//! unchanged.
mod kernel;
mod wireguard;

use super::clock::SimClock;
use crate::clock::Clock as _;
use crate::echo::{Echo, EchoError};
use crate::kernel::{KernelError, LinkCounters, PeerCounters, ReadCounters, ReadPath};
use crate::notify::Notify;
use crate::resolve::{Resolve, ResolveError};
use spoke_model::address::HostPort;
use spoke_model::interface_name::IfName;
use spoke_model::key::PublicKey;
use spoke_uplink::path::Path;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify as Wakeup, mpsc};
pub use wireguard::{Interface, Peer};

/// Round trip to every hub.
pub const RTT: Duration = Duration::from_millis(40);
/// Shortest interval between two runs of WireGuard's timers.
const STEP: Duration = Duration::from_millis(20);

/// A hub. It loses its sessions at a reboot.
#[derive(Clone, Debug)]
pub struct Hub {
    /// Identity.
    pub key: PublicKey,
    /// The addresses it listens on.
    pub addresses: BTreeSet<SocketAddr>,
    /// Its address in the tunnel.
    pub tunnel: IpAddr,
    /// Running.
    pub alive: bool,
    /// Answers ICMP. Its WireGuard responds in any case.
    pub answers_echo: bool,
    /// Its session with the device; lost at a reboot.
    session: Option<u64>,
    /// The latest handshake timestamp; older ones are replays. Lost at a reboot.
    latest: Option<Duration>,
}

/// State of everything outside the process under test.
#[derive(Debug)]
pub struct State {
    /// The clock of the device.
    pub clock: SimClock,
    /// The device's WireGuard interfaces.
    pub links: BTreeMap<IfName, Interface>,
    /// Hubs.
    pub hubs: Vec<Hub>,
    /// The device's uplink has a carrier.
    pub carrier: bool,
    /// How often the carrier came or went.
    pub carrier_changes: u32,
    /// The device's uplink has an address.
    pub addressed: bool,
    /// The device has a default route.
    pub routed: bool,
    /// IPv4 is forwarded.
    pub v4: bool,
    /// IPv6 is forwarded.
    pub v6: bool,
    /// Local ports with a stuck NAT binding: no packet returns to them.
    pub stuck: BTreeSet<u16>,
    /// DNS responds.
    pub dns: bool,
    /// Addresses by name.
    pub names: BTreeMap<String, Vec<IpAddr>>,
    /// Bytes on the wire with IP and UDP headers, both ways.
    pub bytes: u64,
    /// Names looked up.
    pub look_ups: u64,
    /// Echo requests on the wire.
    pub echoes: u64,
    next: u64,
    answers: mpsc::UnboundedSender<(IpAddr, u16)>,
    /// Wakes [`Kernel::changed`](crate::kernel::Kernel::changed).
    link_events: Arc<Wakeup>,
    /// Wakes [`World::run`]: other timers may be due first.
    timer_changes: Arc<Wakeup>,
}

/// A shared handle of the world.
#[derive(Clone, Debug)]
pub struct World(Arc<Mutex<State>>);

impl World {
    /// A world without faults, hubs or interfaces, and its echo socket.
    pub fn new(clock: SimClock) -> (Self, SimEcho) {
        let (answers, replies) = mpsc::unbounded_channel();
        let state = State {
            clock,
            links: BTreeMap::new(),
            hubs: Vec::new(),
            carrier: true,
            carrier_changes: 0,
            addressed: true,
            routed: true,
            v4: true,
            v6: true,
            stuck: BTreeSet::new(),
            dns: true,
            names: BTreeMap::new(),
            bytes: 0,
            look_ups: 0,
            echoes: 0,
            next: 0,
            answers,
            link_events: Arc::default(),
            timer_changes: Arc::default(),
        };
        let world = Self(Arc::new(Mutex::new(state)));
        (world.clone(), SimEcho { world, replies })
    }

    /// The state, for reading and changing. After a change of links or addresses call [`World::event`].
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Adds a hub that listens at `addresses`.
    pub fn add_hub(&self, key: PublicKey, tunnel: IpAddr, addresses: impl IntoIterator<Item = SocketAddr>) {
        let addresses = addresses.into_iter().collect();
        self.state().hubs.push(Hub {
            key,
            addresses,
            tunnel,
            alive: true,
            answers_echo: true,
            session: None,
            latest: None,
        });
    }

    /// Turns a hub off or on; its sessions are lost.
    pub fn power(&self, hub: usize, on: bool) {
        let mut state = self.state();
        if let Some(hub) = state.hubs.get_mut(hub) {
            hub.alive = on;
            (hub.session, hub.latest) = (None, None);
        }
    }

    /// Removes or restores the carrier, with the event the kernel sends.
    pub fn carrier(&self, on: bool) {
        {
            let mut state = self.state();
            state.carrier = on;
            state.carrier_changes += 1;
        }
        self.event();
    }

    /// Replaces a hub's key; its sessions are lost.
    pub fn change_key(&self, hub: usize, key: PublicKey) {
        self.power(hub, true);
        if let Some(hub) = self.state().hubs.get_mut(hub) {
            hub.key = key;
        }
    }

    /// The kernel's event that a link, an address or a route has changed.
    pub fn event(&self) {
        self.state().link_events.notify_one();
    }

    /// Another process deletes an interface.
    pub fn delete_link(&self, name: &IfName) {
        self.state().links.remove(name);
        self.event();
    }

    /// Another process of the device sends a packet through the tunnel.
    pub fn send_packet(&self, link: &IfName, to: IpAddr) {
        // No uplink in a test reaches this sequence number, so it ignores the reply.
        let _ = self.state().send_echo(link, to, u16::MAX);
    }

    /// Runs WireGuard's timers; never returns.
    pub async fn run(self) {
        let timer_changes = self.state().timer_changes.clone();
        loop {
            let (now, due) = {
                let state = self.state();
                (state.clock.now(), state.due())
            };
            let wait = due.map_or(Duration::from_secs(60), |at| at.since(now)).max(STEP);
            tokio::select! {
                () = tokio::time::sleep(wait) => self.state().tick(),
                () = timer_changes.notified() => {}
            }
        }
    }
}

impl State {
    /// The hub that a packet from local `port` to `to` reaches and that can answer.
    fn reach(&self, port: u16, to: SocketAddr) -> Option<usize> {
        let family = if to.is_ipv4() { self.v4 } else { self.v6 };
        let passes = self.open() && family && !self.stuck.contains(&port);
        self.hubs.iter().position(|h| passes && h.alive && h.addresses.contains(&to))
    }

    /// Packets leave the device.
    const fn open(&self) -> bool {
        self.carrier && self.addressed && self.routed
    }

    fn wire(&mut self, to: SocketAddr, udp_payload: u64) {
        self.bytes += udp_payload + if to.is_ipv4() { 28 } else { 48 };
    }
}

/// Reads the counters of the world's kernel.
#[derive(Clone, Debug)]
pub struct SimCounters(pub World);

impl ReadCounters for SimCounters {
    async fn counters(&mut self, link: &IfName) -> Result<Option<LinkCounters>, KernelError> {
        let state = self.0.state();
        Ok(state.links.get(link).map(|l| {
            let one = |(k, p): (&PublicKey, &Peer)| (*k, PeerCounters { counters: p.counters, endpoint: p.endpoint });
            LinkCounters { index: l.index, peers: l.peers.iter().map(one).collect() }
        }))
    }
}

/// Looks up routes in the world's kernel.
#[derive(Clone, Debug)]
pub struct SimPath(pub World);

impl ReadPath for SimPath {
    async fn path(&mut self, _: IpAddr) -> Result<Path, KernelError> {
        let s = self.0.state();
        let (carrier, carrier_changes) = (s.carrier, s.carrier_changes);
        Ok(match (s.addressed, s.routed) {
            // A kernel drops addresses and routes with the carrier only if something configures it so.
            (true, true) => Path::Via { link: 2, carrier, carrier_changes, source: None, gateway: None },
            _ if !carrier => Path::NoCarrier,
            (false, _) => Path::NoAddress,
            (true, false) => Path::NoRoute,
        })
    }
}

/// Echo socket of the device.
#[derive(Debug)]
pub struct SimEcho {
    world: World,
    replies: mpsc::UnboundedReceiver<(IpAddr, u16)>,
}

impl SimEcho {
    /// The socket of a restarted process: replies to the previous process are lost.
    pub fn reopen(world: &World) -> Self {
        let (answers, replies) = mpsc::unbounded_channel();
        world.state().answers = answers;
        Self { world: world.clone(), replies }
    }
}

impl Echo for SimEcho {
    async fn send(&mut self, link: &IfName, to: IpAddr, seq: u16) -> Result<(), EchoError> {
        let mut state = self.world.state();
        match state.send_echo(link, to, seq) {
            None => Err(EchoError::NoInterface(link.clone())),
            Some(Err(source)) => Err(EchoError::Send { link: link.clone(), to, source }),
            Some(Ok(())) => Ok(()),
        }
    }

    async fn answer(&mut self) -> (IpAddr, u16) {
        match self.replies.recv().await {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }
}

/// DNS of the world.
#[derive(Clone, Debug)]
pub struct SimResolver(pub World);

impl Resolve for SimResolver {
    fn resolve(
        &self,
        name: &HostPort,
        within: Duration,
    ) -> impl Future<Output = Result<Vec<SocketAddr>, ResolveError>> + Send + 'static {
        let (world, name) = (self.0.clone(), name.clone());
        async move {
            tokio::time::sleep(RTT).await;
            let (works, found) = {
                let mut state = world.state();
                state.look_ups += 1;
                (state.dns && state.carrier, state.names.get(&name.host).cloned().unwrap_or_default())
            };
            if !works {
                // An unreachable server shows only as a timeout.
                tokio::time::sleep(within.saturating_sub(RTT)).await;
                return Err(ResolveError::TimedOut { name, within });
            }
            if found.is_empty() {
                return Err(ResolveError::Empty(name));
            }
            Ok(found.into_iter().map(|ip| SocketAddr::new(ip, name.port)).collect())
        }
    }
}

/// A service manager that records notifications.
#[derive(Clone, Debug, Default)]
pub struct SimNotify(pub Arc<Mutex<Notified>>);

/// Notifications received.
#[derive(Clone, Copy, Debug, Default)]
pub struct Notified {
    /// Ready.
    pub ready: bool,
    /// Completed passes.
    pub alive: u64,
    /// Stopping.
    pub stopping: bool,
}

impl SimNotify {
    /// Notifications so far.
    pub fn notified(&self) -> Notified {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn record(&self, change: impl FnOnce(&mut Notified)) {
        change(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

impl Notify for SimNotify {
    fn ready(&mut self) {
        self.record(|n| n.ready = true);
    }
    fn alive(&mut self) {
        self.record(|n| n.alive += 1);
    }
    fn status(&mut self, _line: &str) {}
    fn stopping(&mut self) {
        self.record(|n| n.stopping = true);
    }
    fn watchdog(&self) -> Option<Duration> {
        None
    }
}
