//! The facts that health is judged by, boiled down once per observation so that a request costs no walk over all peers.
use serde::Serialize;
use spoke_model::condition::{Code, Condition};
use spoke_model::interface_name::IfName;
use spoke_model::key::PublicKey;
use spoke_model::nets::Nets;
use spoke_model::node_id::NodeId;
use spoke_model::time::{Boot, Wall};
use spoke_model::wireguard::REJECT_AFTER_TIME;
use spoke_net::ages::Handshakes;
use spoke_net::state::{Desired, Observed, ObservedLink};
use spoke_update::notice::Notice;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

/// What the reconcile task reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Net {
    /// Completed passes.
    pub passes: u64,
    /// When the last one ended.
    pub at: Boot,
    /// Nothing was left to do after it.
    pub clean: bool,
    /// Generation of the wanted state.
    pub generation: u64,
    /// Steps taken because the wanted state changed.
    pub changes: u64,
    /// Steps taken against drift.
    pub repairs: u64,
    /// Steps the kernel refused.
    pub failures: u64,
    /// Drifts found, and those of them that policy left alone.
    pub drifts: (u64, u64),
    /// Differences that policy leaves alone now.
    pub held: usize,
    /// Why it was not clean.
    pub conditions: Vec<Condition>,
    /// Interfaces, in the order of their names.
    pub links: Vec<Link>,
}

/// An interface, without its peers one by one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Kernel name.
    pub name: String,
    /// It exists, is WireGuard and is up.
    pub up: bool,
    /// Peers that are wanted.
    pub wanted_peers: usize,
    /// Peers that are there.
    pub peers: usize,
    /// Peers with a handshake in the last 180 s.
    pub active_peers: usize,
    /// Bytes received, over the peers that are there.
    pub rx: u64,
    /// Bytes sent.
    pub tx: u64,
    /// The newest handshake of any peer.
    #[serde(skip)]
    pub last_handshake: Option<Boot>,
}

/// What the uplink reports. Filled by whoever wires the uplink to the board.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Uplink {
    /// The hub in use, by its configured name.
    pub hub: Option<String>,
    /// A session was claimed up: fresh handshake and an echo answered by the hub.
    pub connected: bool,
    /// The last echo through the tunnel was answered in time.
    pub hub_answers: bool,
    /// Since when the two above have been as they are.
    pub since: Boot,
    /// When the newest handshake with the hub was seen, on the boot clock.
    pub last_handshake: Option<Boot>,
    /// When the session came up, by the wall clock.
    pub connected_at: Option<Wall>,
    /// Attempts since start.
    pub attempts: u64,
    /// Wait before the next attempt, while there is one.
    pub backoff: Option<Duration>,
    /// Why the last attempt or session ended.
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
}

impl Component {
    /// The name in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AccessControl => "accessControl",
            Self::Config => "config",
            Self::Contract => "contract",
            Self::Control => "control",
        }
    }

    /// The condition of a node on which this component is degraded.
    pub const fn code(self) -> Code {
        match self {
            Self::AccessControl => Code::AccessControlDegraded,
            Self::Config => Code::ConfigDegraded,
            Self::Contract => Code::ContractAway,
            Self::Control => Code::ControlAway,
        }
    }
}

/// Status of one component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentStatus {
    /// It works.
    pub healthy: bool,
    /// Since when it has been so.
    pub since: Boot,
    /// What is wrong, with the remedy.
    pub detail: Option<String>,
}

/// What the grants task counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Access {
    /// Decisions asked for.
    pub total_requests: u64,
    /// Allowed.
    pub granted: u64,
    /// Denied.
    pub denied: u64,
    /// Failed look-ups.
    pub errors: u64,
    /// Entries in the cache.
    pub cache_size: u64,
    /// Most entries the cache takes.
    pub cache_max: u64,
    /// Answered from the cache.
    pub cache_hits: u64,
    /// Not in the cache.
    pub cache_misses: u64,
    /// When the registry was last read completely.
    pub last_sync: Option<Wall>,
    /// It is being read.
    pub syncing: bool,
    /// Reads that failed.
    pub sync_errors: u64,
    /// What the last failure was.
    pub last_error: Option<String>,
}

/// What the producers beside the reconcile task say. Whoever wires them fills a field each; what is not built or not
/// configured is absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Components {
    /// The node's name, once it has one.
    pub node_id: Option<NodeId>,
    /// Whether the wall clock is believed.
    pub clock_trusted: bool,
    /// Uplink, where one is configured.
    pub uplink: Option<Uplink>,
    /// Grants, where an interface asks for them.
    pub access: Option<Access>,
    /// What the grants task says in full, where an interface asks for grants.
    pub grants: Option<Arc<spoke_grants::report::Report>>,
    /// How updates stand, on an image with two slots.
    pub update: Option<Notice>,
    /// What an image without settings waits for.
    pub unprovisioned: Option<String>,
    /// The components that are configured.
    pub status: BTreeMap<Component, ComponentStatus>,
}

/// Everything the endpoints speak about.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Reconcile task.
    pub net: Net,
    /// The others.
    pub components: Components,
}

impl Link {
    /// Boils an interface down, as of `now`.
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
        for (key, peer) in &seen.peers {
            link.rx = link.rx.saturating_add(peer.counters.rx);
            link.tx = link.tx.saturating_add(peer.counters.tx);
            let Some(at) = handshakes.at(name, key) else { continue };
            link.last_handshake = link.last_handshake.max(Some(at));
            link.active_peers += usize::from(now.since(at) < REJECT_AFTER_TIME);
        }
        link
    }

    /// Boils every wanted interface down.
    pub fn all(desired: &Desired, observed: &Observed, handshakes: &Handshakes, now: Boot) -> Vec<Self> {
        let of = |(n, want): (&IfName, &spoke_net::state::Link)| {
            Self::of(n, want.peers.len(), observed.links.get(n), handshakes, now)
        };
        desired.links.iter().map(of).collect()
    }
}

/// An interface with its peers, as `GET /wireguard` shows it. No key but public ones.
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

/// Every wanted interface as the kernel has it.
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

/// What the last pass left, for `GET /wireguard`. Of thousands of peers the body takes megabytes: it is made when somebody asks
/// for it, once.
#[derive(Clone, Debug, Default)]
pub struct Interfaces {
    desired: Arc<Desired>,
    observed: Arc<Observed>,
    handshakes: Arc<Handshakes>,
    at: (Boot, Wall),
    body: OnceLock<Arc<[u8]>>,
}

impl Interfaces {
    /// As of now, by both clocks.
    pub const fn new(
        desired: Arc<Desired>,
        observed: Arc<Observed>,
        handshakes: Arc<Handshakes>,
        at: (Boot, Wall),
    ) -> Self {
        Self { desired, observed, handshakes, at, body: OnceLock::new() }
    }

    /// How many peers there are on all of them.
    pub fn peers(&self) -> usize {
        self.observed.links.values().map(|l| l.peers.len()).sum()
    }

    /// The answer's body.
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
