//! The facts health is derived from, summarised once per pass, so that a request does not visit all peers.
use crate::exposition::{Exposition, Kind, number};
use serde::Serialize;
use spoke_model::condition::{Code, Condition};
use spoke_model::interface_name::IfName;
use spoke_model::key::PublicKey;
use spoke_model::nets::Nets;
use spoke_model::node_id::NodeId;
use spoke_model::time::{Boot, Wall};
use spoke_model::wireguard::REJECT_AFTER_TIME;
use spoke_net::ages::Handshakes;
use spoke_net::state::{Desired, Observed, ObservedLink, ObservedPeer};
use spoke_update::notice::Notice;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

/// Summary of the reconciler's status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Net {
    /// Completed passes.
    pub passes: u64,
    /// When the last one ended.
    pub at: Boot,
    /// When the kernel was last observed.
    pub observed_at: Boot,
    /// It left no step undone.
    pub clean: bool,
    /// Generation of the desired state.
    pub generation: u64,
    /// Steps applied because the desired state changed.
    pub changes: u64,
    /// Steps applied against drift.
    pub repairs: u64,
    /// Steps the kernel refused.
    pub failures: u64,
    /// Drift found, and how much of it policy left in place.
    pub drifts: (u64, u64),
    /// Differences that policy leaves in place.
    pub held: usize,
    /// Why the last pass was not clean.
    pub conditions: Vec<Condition>,
    /// Interfaces, in the order of their names.
    pub links: Vec<Link>,
    /// Since when what these report has held.
    pub since: Since,
}

/// The beginning of what the reconciler's status shows, for better or worse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Since {
    /// `clean`.
    pub clean: Boot,
    /// Every desired interface is up, or one is not.
    pub up: Boot,
    /// Every desired peer is in the kernel, or one is not.
    pub complete: Boot,
}

/// An interface, with its peers counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Kernel name.
    pub name: String,
    /// It exists, is WireGuard and is up.
    pub up: bool,
    /// Desired peers.
    pub wanted_peers: usize,
    /// Observed peers.
    pub peers: usize,
    /// Peers with a handshake in the last 180 s.
    pub active_peers: usize,
    /// Bytes received since the interface was created, also from peers that are gone.
    pub rx: u64,
    /// Bytes sent.
    pub tx: u64,
    /// The newest handshake of any peer.
    #[serde(skip)]
    pub last_handshake: Option<Boot>,
}

/// Status of the uplink.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Uplink {
    /// The hub in use, by its configured name.
    pub hub: Option<String>,
    /// The session is up: a fresh handshake and an answered echo request.
    pub connected: bool,
    /// The last echo request through the tunnel was answered in time.
    pub hub_answers: bool,
    /// When the two above last changed.
    pub since: Boot,
    /// When the newest handshake with the hub was seen, on the boot clock.
    pub last_handshake: Option<Boot>,
    /// When the session came up.
    pub connected_since: Option<Boot>,
    /// The same by the wall clock.
    pub connected_at: Option<Wall>,
    /// Attempts since start.
    pub attempts: u64,
    /// Wait before the next attempt, if one is scheduled.
    pub backoff: Option<Duration>,
    /// Why the last attempt or session ended, while there is no session whose hub answers.
    pub last_error: Option<String>,
}

/// A component of the node that the tunnel does not depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// Verification of grants by this node's settings.
    AccessControl,
    /// The control plane's state: in force and on disk.
    Config,
    /// The chain endpoints.
    Contract,
    /// The control plane.
    Control,
    /// The partition of the kernels and of new settings, on an image.
    BootPartition,
    /// The directory of identity and caches.
    Storage,
}

impl Component {
    /// The name in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AccessControl => "accessControl",
            Self::Config => "config",
            Self::Contract => "contract",
            Self::Control => "control",
            Self::BootPartition => "bootPartition",
            Self::Storage => "storage",
        }
    }

    /// The condition of a node on which this component is degraded.
    pub const fn code(self) -> Code {
        match self {
            Self::AccessControl => Code::AccessControlDegraded,
            Self::Config => Code::ConfigDegraded,
            Self::Contract => Code::ContractAway,
            Self::Control => Code::ControlAway,
            Self::BootPartition => Code::BootUnreadable,
            Self::Storage => Code::FlashReadonly,
        }
    }
}

/// Status of one component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentStatus {
    /// It works.
    pub healthy: bool,
    /// When that last changed.
    pub since: Boot,
    /// The problem, with its remedy.
    pub detail: Option<String>,
}

/// Counters of the grants task.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Access {
    /// Decisions asked for.
    pub total_requests: u64,
    /// Allowed.
    pub granted: u64,
    /// Denied.
    pub denied: u64,
    /// Failed verifications.
    pub errors: u64,
    /// Entries in the cache.
    pub cache_size: u64,
    /// Capacity of the cache.
    pub cache_max: u64,
    /// Answered from the cache.
    pub cache_hits: u64,
    /// Not in the cache.
    pub cache_misses: u64,
    /// When the registry was last read completely.
    pub last_sync: Option<Wall>,
    /// It is being read now.
    pub syncing: bool,
    /// Reads that failed.
    pub sync_errors: u64,
    /// The last error.
    pub last_error: Option<String>,
}

/// Status of all tasks beside the reconciler. What is not configured is absent.
#[derive(Clone, Debug, PartialEq)]
pub struct Components {
    /// The node's name, once it has one.
    pub node_id: Option<NodeId>,
    /// Whether the wall clock is trusted.
    pub clock_trusted: bool,
    /// Uplink, where one is configured.
    pub uplink: Option<Uplink>,
    /// Full status of the hub session behind `uplink`.
    pub session: Option<Arc<spoke_uplink::status::UplinkStatus>>,
    /// Full status of the control session, with `[control]`.
    pub control: Option<Arc<spoke_enroll::status::ControlStatus>>,
    /// Counters of the grants task, where an interface needs grants.
    pub access: Option<Access>,
    /// Full report of the grants task, where an interface needs grants.
    pub grants: Option<Arc<spoke_grants::report::Report>>,
    /// State of updates, on an image with two slots.
    pub update: Option<Notice>,
    /// What an unprovisioned image waits for.
    pub unprovisioned: Option<String>,
    /// The condition that an unhealthy [`Component::Control`] is.
    pub control_code: Code,
    /// The components that are configured.
    pub status: BTreeMap<Component, ComponentStatus>,
    /// Size of the file system that holds the state directory, and what of it is free, in bytes.
    pub space: Option<(u64, u64)>,
    /// Ends of the validity of this node's certificates, by what they are for.
    pub certificates: BTreeMap<&'static str, Wall>,
}

impl Default for Components {
    fn default() -> Self {
        Self {
            node_id: None,
            clock_trusted: false,
            uplink: None,
            session: None,
            control: None,
            access: None,
            grants: None,
            update: None,
            unprovisioned: None,
            control_code: Code::ControlAway,
            status: BTreeMap::new(),
            space: None,
            certificates: BTreeMap::new(),
        }
    }
}

/// All facts the endpoints report.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The reconciler.
    pub net: Net,
    /// The other tasks.
    pub components: Components,
}

impl Link {
    /// Summarises an interface as of `now`.
    pub fn of(
        name: &IfName,
        wanted_peers: usize,
        seen: Option<&ObservedLink>,
        handshakes: &Handshakes,
        now: Boot,
    ) -> Self {
        let mut link = Self { name: name.to_string(), wanted_peers, ..Self::default() };
        let Some(seen) = seen.filter(|s| s.wireguard) else { return link };
        link.up = seen.up;
        link.peers = seen.peers.len();
        (link.rx, link.tx) = seen.traffic;
        for key in seen.peers.keys() {
            let Some(at) = handshakes.at(name, key) else { continue };
            link.last_handshake = link.last_handshake.max(Some(at));
            link.active_peers += usize::from(now.since(at) < REJECT_AFTER_TIME);
        }
        link
    }

    /// Summarises every desired interface.
    pub fn all(desired: &Desired, observed: &Observed, handshakes: &Handshakes, now: Boot) -> Vec<Self> {
        let of = |(n, want): (&IfName, &spoke_net::state::Link)| {
            Self::of(n, want.peers.len(), observed.links.get(n), handshakes, now)
        };
        desired.links.iter().map(of).collect()
    }
}

/// An interface with its peers, for `GET /wireguard`. Without secret keys.
#[derive(Debug, Serialize)]
pub struct LinkView<'a> {
    name: &'a str,
    exists: bool,
    up: bool,
    public_key: Option<PublicKey>,
    listen_port: u16,
    fwmark: u32,
    mtu: u32,
    addresses: BTreeSet<ipnet::IpNet>,
    peers: Vec<PeerView<'a>>,
}

#[derive(Debug, Serialize)]
struct PeerView<'a> {
    public_key: PublicKey,
    endpoint: Option<SocketAddr>,
    allowed_ips: &'a Nets,
    persistent_keepalive: u16,
    preshared_key: bool,
    /// Seconds; null: never.
    handshake_age: Option<u64>,
    rx: u64,
    tx: u64,
}

/// Every desired interface as observed.
pub fn links<'a>(
    desired: &'a Desired,
    observed: &'a Observed,
    handshakes: &Handshakes,
    now: Boot,
) -> Vec<LinkView<'a>> {
    static BLANK: LazyLock<ObservedLink> = LazyLock::new(ObservedLink::default);
    let view = |name: &'a IfName| {
        let seen = observed.links.get(name);
        let link = seen.unwrap_or(&BLANK);
        LinkView {
            name: name.as_str(),
            exists: seen.is_some(),
            up: link.up,
            public_key: link.public_key,
            listen_port: link.listen_port,
            fwmark: link.fwmark,
            mtu: link.mtu,
            addresses: link.addresses.clone(),
            peers: link
                .peers
                .iter()
                .map(|(key, p)| PeerView {
                    public_key: *key,
                    endpoint: p.endpoint,
                    allowed_ips: &p.allowed_ips,
                    persistent_keepalive: p.keepalive,
                    preshared_key: p.preshared_key.is_some(),
                    handshake_age: handshakes.at(name, key).map(|at| now.since(at).as_secs()),
                    rx: p.counters.rx,
                    tx: p.counters.tx,
                })
                .collect(),
        }
    };
    desired.links.keys().map(view).collect()
}

/// Observed interfaces for `GET /wireguard`. With thousands of peers the body takes megabytes: it is made on demand, once.
#[derive(Clone, Debug, Default)]
pub struct Interfaces {
    desired: Arc<Desired>,
    observed: Arc<Observed>,
    handshakes: Arc<Handshakes>,
    at: (Boot, Wall),
    body: OnceLock<Arc<[u8]>>,
}

impl Interfaces {
    /// `at`: the moment on both clocks.
    pub const fn new(
        desired: Arc<Desired>,
        observed: Arc<Observed>,
        handshakes: Arc<Handshakes>,
        at: (Boot, Wall),
    ) -> Self {
        Self { desired, observed, handshakes, at, body: OnceLock::new() }
    }

    /// Number of peers over all interfaces.
    pub fn peers(&self) -> usize {
        self.observed.links.values().map(|l| l.peers.len()).sum()
    }

    /// Metrics of each peer of every desired interface.
    pub(super) fn metrics(&self, out: &mut Exposition, now: Boot) {
        type Value = fn(&ObservedPeer, Option<Duration>) -> Option<f64>;
        let families: [(Kind, &'static str, &str, Value); 3] = [
            (
                Kind::Gauge,
                "wireguard_peer_handshake_age_seconds",
                "Time since the newest handshake of a peer; absent: none",
                |_, age| age.map(|a| a.as_secs_f64()),
            ),
            (
                Kind::Counter,
                "wireguard_peer_receive_bytes_total",
                "Bytes received from a peer since it was created",
                |p, _| Some(number(p.counters.rx)),
            ),
            (
                Kind::Counter,
                "wireguard_peer_transmit_bytes_total",
                "Bytes sent to a peer since it was created",
                |p, _| Some(number(p.counters.tx)),
            ),
        ];
        for (kind, name, help, value) in families {
            out.family(kind, name, help);
            for link in self.desired.links.keys() {
                for (key, peer) in self.observed.links.get(link).iter().flat_map(|l| &l.peers) {
                    let age = self.handshakes.at(link, key).map(|at| now.since(at));
                    if let Some(value) = value(peer, age) {
                        out.sample(&[("interface", link.as_str()), ("public_key", &key.to_string())], value);
                    }
                }
            }
        }
    }

    /// The response body.
    pub fn body(&self) -> Arc<[u8]> {
        #[derive(Serialize)]
        struct Body<'a> {
            interfaces: Vec<LinkView<'a>>,
            timestamp: String,
        }
        let (now, wall) = self.at;
        let make = || {
            let interfaces = links(&self.desired, &self.observed, &self.handshakes, now);
            serde_json::to_vec(&Body { interfaces, timestamp: wall.to_string() }).unwrap_or_default().into()
        };
        self.body.get_or_init(make).clone()
    }
}
