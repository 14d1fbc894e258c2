//! Timing of the kernel's WireGuard: sessions, rekeying, retries, keepalives and counters, without cryptography.
use super::State;
use ipnet::IpNet;
use spoke_model::interface_name::IfName;
use spoke_model::key::{PresharedKey, PublicKey};
use spoke_model::time::Boot;
use spoke_model::wireguard::REJECT_AFTER_TIME;
use spoke_net::state::{Counters, Route};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const REKEY_AFTER: Duration = Duration::from_secs(120);
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
const REKEY_ATTEMPTS: Duration = Duration::from_secs(90);
/// Unanswered data starts a handshake after this time (`KEEPALIVE_TIMEOUT` + `REKEY_TIMEOUT`).
const NEW_HANDSHAKE: Duration = Duration::from_secs(15);
/// A peer that received data and sent nothing for this long sends a keepalive (`KEEPALIVE_TIMEOUT`).
const PASSIVE_KEEPALIVE: Duration = Duration::from_secs(10);
const MAX_STAGED: usize = 128;

const INITIATION: u64 = 148;
const RESPONSE: u64 = 92;
const EMPTY: u64 = 32;

/// A WireGuard interface of the device.
#[derive(Clone, Debug, Default)]
pub struct Interface {
    /// Kernel index.
    pub index: u32,
    /// Marked as ours.
    pub ours: bool,
    /// Administratively up.
    pub up: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// Public half of its key.
    pub public_key: Option<PublicKey>,
    /// Local port.
    pub port: u16,
    /// Firewall mark.
    pub fwmark: u32,
    /// Our addresses.
    pub addresses: BTreeSet<IpNet>,
    /// Our routes.
    pub routes: BTreeSet<Route>,
    /// Peers.
    pub peers: BTreeMap<PublicKey, Peer>,
}

/// A peer of an interface.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// Endpoint.
    pub endpoint: Option<SocketAddr>,
    /// Persistent keepalive in seconds; 0 is off.
    pub keepalive: u16,
    /// Preshared key.
    pub preshared_key: Option<PresharedKey>,
    /// Allowed-ips.
    pub allowed_ips: BTreeSet<IpNet>,
    /// Counters.
    pub counters: Counters,
    session: Option<Session>,
    /// When the handshake under way began.
    initiating: Option<Boot>,
    initiated: Option<Boot>,
    unanswered: Option<Boot>,
    traversed: Option<Boot>,
    staged: Vec<(IpAddr, u16)>,
    /// When the hub sends a keepalive because it received data and has nothing to send (`KEEPALIVE_TIMEOUT`).
    passive: Option<Boot>,
}

#[derive(Clone, Copy, Debug)]
struct Session {
    id: u64,
    born: Boot,
}

impl Peer {
    /// Setting the interface down removes sessions and handshakes.
    pub(super) fn reset(&mut self) {
        (self.session, self.initiating, self.initiated, self.unanswered, self.traversed, self.passive) =
            (None, None, None, None, None, None);
        self.staged.clear();
    }

    fn due(&self) -> Option<Boot> {
        let keepalive = Duration::from_secs(self.keepalive.into());
        let keep = (!keepalive.is_zero()).then(|| self.traversed.unwrap_or_default() + keepalive);
        let initiated = self.initiated.unwrap_or_default() + REKEY_TIMEOUT;
        let retry = match self.initiating {
            Some(began) => Some(initiated.min(began + REKEY_ATTEMPTS)),
            None => self.unanswered.map(|at| initiated.max(at + NEW_HANDSHAKE)),
        };
        keep.into_iter().chain(retry).chain(self.passive).min()
    }

    fn live(&self, now: Boot) -> Option<Session> {
        self.session.filter(|s| now.since(s.born) < REJECT_AFTER_TIME)
    }
}

impl State {
    fn now(&self) -> Boot {
        crate::clock::Clock::now(&self.clock)
    }

    fn peer(&mut self, link: &IfName, key: &PublicKey) -> Option<&mut Peer> {
        self.links.get_mut(link).filter(|l| l.up)?.peers.get_mut(key)
    }

    /// Sends an echo request from the device; `None`: there is no such interface.
    pub(super) fn send_echo(&mut self, link: &IfName, to: IpAddr, seq: u16) -> Option<io::Result<()>> {
        let l = self.links.get(link)?;
        if l.addresses.iter().any(|a| a.addr() == to) {
            // The machine answers for its own address, whatever the echo is bound to.
            let _ = self.answers.send((to, seq));
            return Some(Ok(()));
        }
        let routed = l.addresses.iter().any(|a| a.trunc().contains(&to)) || l.routes.iter().any(|r| r.to.contains(&to));
        if !l.up || !routed {
            return Some(Err(io::Error::from(io::ErrorKind::NetworkUnreachable)));
        }
        // Cryptokey routing: the narrowest allowed-ip decides.
        let holders = l.peers.iter().flat_map(|(k, p)| p.allowed_ips.iter().map(move |n| (n, k)));
        let best = holders.filter(|(n, _)| n.contains(&to)).max_by_key(|(n, _)| n.prefix_len()).map(|(_, k)| *k);
        let Some(key) = best else { return Some(Err(io::Error::other("Required key not available"))) };
        if l.peers.get(&key).is_none_or(|p| p.endpoint.is_none()) {
            return Some(Err(io::Error::other("Destination address required")));
        }
        self.send(link, &key, Some((to, seq)));
        Some(Ok(()))
    }

    /// Sends a packet, or a keepalive, to a peer. Without a session the packet is staged and a handshake initiated.
    fn send(&mut self, link: &IfName, key: &PublicKey, packet: Option<(IpAddr, u16)>) {
        let now = self.now();
        let carrier = self.open();
        self.timer_changes.notify_one();
        let Some(port) = self.links.get(link).map(|l| l.port) else { return };
        let Some(peer) = self.peer(link, key) else { return };
        let Some((session, to)) = peer.live(now).zip(peer.endpoint) else {
            if let Some(packet) = packet {
                peer.staged.truncate(MAX_STAGED - 1);
                peer.staged.push(packet);
            }
            return self.initiate(link, key);
        };
        let size = if packet.is_some() { 2 * EMPTY } else { EMPTY };
        if carrier {
            peer.counters.tx += size;
        }
        peer.traversed = Some(now);
        if packet.is_some() {
            peer.unanswered.get_or_insert(now);
        }
        if carrier {
            self.wire(to, size);
            self.echoes += u64::from(packet.is_some());
        }
        let reached = self.reach(port, to).filter(|h| self.hubs.get(*h).is_some_and(|h| h.session == Some(session.id)));
        if let (Some((dest, seq)), Some(hub)) = (packet, reached) {
            self.deliver(link, key, hub, to, dest, seq);
        }
        if now.since(session.born) >= REKEY_AFTER {
            self.initiate(link, key);
        }
    }

    /// Delivers an echo request to the hub; the reply arrives one round trip later.
    fn deliver(&mut self, link: &IfName, key: &PublicKey, hub: usize, to: SocketAddr, dest: IpAddr, seq: u16) {
        let now = self.now();
        if !self.hubs.get(hub).is_some_and(|h| h.answers_echo && h.tunnel == dest) {
            if let Some(peer) = self.peer(link, key) {
                peer.passive.get_or_insert(now + PASSIVE_KEEPALIVE);
            }
            return;
        }
        self.wire(to, 2 * EMPTY);
        if let Some(peer) = self.peer(link, key) {
            peer.counters.rx += 2 * EMPTY;
            peer.unanswered = None;
            peer.traversed = Some(now);
        }
        let answers = self.answers.clone();
        tokio::spawn(async move {
            tokio::time::sleep(super::RTT).await;
            let _ = answers.send((dest, seq));
        });
    }

    fn initiate(&mut self, link: &IfName, key: &PublicKey) {
        let (now, stamp, carrier) = (self.now(), self.clock.wall_exact(), self.open());
        let Some((port, us)) = self.links.get(link).map(|l| (l.port, l.public_key)) else { return };
        let Some(peer) = self.peer(link, key) else { return };
        if peer.initiated.is_some_and(|at| now.since(at) < REKEY_TIMEOUT) {
            return;
        }
        let Some(to) = peer.endpoint else { return };
        peer.initiating.get_or_insert(now);
        peer.initiated = Some(now);
        if !carrier || us.is_none() {
            return;
        }
        peer.counters.tx += INITIATION;
        peer.traversed = Some(now);
        self.wire(to, INITIATION);
        let Some(hub) = self.reach(port, to) else { return };
        self.next += 1;
        let id = self.next;
        let accepted =
            self.hubs.get_mut(hub).filter(|h| h.key == *key && h.latest.is_none_or(|l| stamp > l)).map(|h| {
                h.latest = Some(stamp);
                h.session = Some(id);
            });
        if accepted.is_none() {
            return;
        }
        self.wire(to, RESPONSE);
        let Some(peer) = self.peer(link, key) else { return };
        peer.counters.rx += RESPONSE;
        peer.counters.last_handshake = Some(stamp);
        peer.session = Some(Session { id, born: now });
        (peer.initiating, peer.unanswered) = (None, None);
        let staged = std::mem::take(&mut peer.staged);
        if staged.is_empty() {
            self.send(link, key, None);
        }
        for packet in staged {
            self.send(link, key, Some(packet));
        }
    }

    /// When the next timer is due.
    pub(super) fn due(&self) -> Option<Boot> {
        let peers = self.links.values().filter(|l| l.up).flat_map(|l| l.peers.values());
        peers.filter_map(Peer::due).min()
    }

    /// WireGuard's timers.
    pub(super) fn tick(&mut self) {
        let now = self.now();
        let all: Vec<_> = self.links.iter().flat_map(|(n, l)| l.peers.keys().map(move |k| (n.clone(), *k))).collect();
        for (link, key) in all {
            let Some(peer) = self.peer(&link, &key) else { continue };
            let keepalive = Duration::from_secs(peer.keepalive.into());
            let keep = !keepalive.is_zero() && peer.traversed.is_none_or(|at| now.since(at) >= keepalive);
            let retry = match peer.initiating {
                Some(began) if now.since(began) >= REKEY_ATTEMPTS => {
                    peer.initiating = None;
                    peer.staged.clear();
                    false
                }
                Some(_) => true,
                None => peer.unanswered.is_some_and(|at| now.since(at) >= NEW_HANDSHAKE),
            };
            let passive = peer.passive.is_some_and(|at| now >= at);
            if passive {
                peer.passive = None;
            }
            if retry {
                self.initiate(&link, &key);
            }
            if passive {
                self.receive_keepalive(&link, &key);
            }
            if keep {
                self.send(&link, &key, None);
                // A keepalive that cannot be sent is due again after the same time.
                if let Some(peer) = self.peer(&link, &key) {
                    peer.traversed = Some(now);
                }
            }
        }
    }

    /// The hub's keepalive, if its session is alive and reaches us.
    fn receive_keepalive(&mut self, link: &IfName, key: &PublicKey) {
        let now = self.now();
        let Some(port) = self.links.get(link).map(|l| l.port) else { return };
        let Some((session, to)) = self.peer(link, key).and_then(|p| p.live(now).zip(p.endpoint)) else { return };
        if self.reach(port, to).and_then(|h| self.hubs.get(h)).is_some_and(|h| h.session == Some(session.id)) {
            self.wire(to, EMPTY);
            if let Some(peer) = self.peer(link, key) {
                peer.counters.rx += EMPTY;
                (peer.unanswered, peer.traversed) = (None, Some(now));
            }
        }
    }

    /// Sends a keepalive at once, as the kernel does when a keepalive is configured or the interface is set up.
    pub(super) fn send_keepalive(&mut self, link: &IfName, key: &PublicKey) {
        self.send(link, key, None);
    }
}
