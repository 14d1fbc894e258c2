//! The pure difference between wanted and observed, as ordered steps.
//!
//! Order: remove and create interfaces → take peers away → add and change peers → addresses and routes → bring up.
//! The planner walks the union of what is wanted and what is ours, so that what we no longer want goes even if nobody saw
//! the moment it stopped being wanted.
use super::state::{
    Desired, Endpoint, Forwarding, Link, ListenPort, Memory, Observed, ObservedLink, ObservedPeer, Peer, Route,
};
use ipnet::IpNet;
use spoke_config::interface::DriftPolicy;
use spoke_model::interface_name::IfName;
use spoke_model::key::{PresharedKey, PublicKey, SecretKey};
use spoke_model::nets::{Nets, side_by_side};
use std::collections::{BTreeMap, BTreeSet};

/// How a peer's allowed-ips change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedIps {
    /// As they are.
    Keep,
    /// These come on top: no packet of the others is disturbed.
    Add(Nets),
    /// These instead of all others.
    Replace(Nets),
}

/// What a [`Step::SetPeer`] writes; `None` leaves a value alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerChange {
    /// The peer is not there yet. A change of an existing peer must never bring back one removed meanwhile.
    pub create: bool,
    /// `Some(None)` takes the key away.
    pub preshared_key: Option<Option<PresharedKey>>,
    /// Seconds; 0 is off.
    pub keepalive: Option<u16>,
    /// Where to send.
    pub endpoint: Option<Endpoint>,
    /// Allowed-ips.
    pub allowed_ips: AllowedIps,
}

/// One change of the kernel's network state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "`link` is the interface's name in every variant; the rest is said per variant")]
pub enum Step {
    /// Delete an interface we created and no longer want, or want anew.
    DeleteLink { link: IfName },
    /// Create a WireGuard interface marked as ours.
    CreateLink { link: IfName, mtu: u32 },
    /// Set the interface's own WireGuard values; `None` leaves a value alone, port 0 has the kernel choose anew.
    SetDevice { link: IfName, private_key: Option<SecretKey>, listen_port: Option<u16>, fwmark: Option<u32> },
    /// Say what may pass between the peers of an interface; `None`: nothing is said any more.
    SetForwarding { link: IfName, forwarding: Option<Forwarding> },
    /// Take a peer away.
    RemovePeer { link: IfName, peer: PublicKey },
    /// Add or change a peer.
    SetPeer { link: IfName, peer: PublicKey, change: PeerChange },
    /// Set the interface's MTU, in bytes.
    SetMtu { link: IfName, mtu: u32 },
    /// Remove a route of ours.
    RemoveRoute { link: IfName, route: Route },
    /// Remove an address.
    RemoveAddress { link: IfName, address: IpNet },
    /// Add an address.
    AddAddress { link: IfName, address: IpNet },
    /// Bring the interface up or down.
    SetUp { link: IfName, up: bool },
    /// Add a route; only an interface that is up can carry one.
    AddRoute { link: IfName, route: Route },
}

impl Step {
    /// The interface the step is about.
    pub const fn link(&self) -> &IfName {
        match self {
            Self::DeleteLink { link }
            | Self::CreateLink { link, .. }
            | Self::SetDevice { link, .. }
            | Self::SetForwarding { link, .. }
            | Self::RemovePeer { link, .. }
            | Self::SetPeer { link, .. }
            | Self::SetMtu { link, .. }
            | Self::RemoveRoute { link, .. }
            | Self::RemoveAddress { link, .. }
            | Self::AddAddress { link, .. }
            | Self::SetUp { link, .. }
            | Self::AddRoute { link, .. } => link,
        }
    }

    /// The peer the step is about.
    pub const fn peer(&self) -> Option<&PublicKey> {
        match self {
            Self::RemovePeer { peer, .. } | Self::SetPeer { peer, .. } => Some(peer),
            Self::DeleteLink { .. }
            | Self::CreateLink { .. }
            | Self::SetDevice { .. }
            | Self::SetForwarding { .. }
            | Self::SetMtu { .. }
            | Self::RemoveRoute { .. }
            | Self::RemoveAddress { .. }
            | Self::AddAddress { .. }
            | Self::SetUp { .. }
            | Self::AddRoute { .. } => None,
        }
    }

    const fn rank(&self) -> u8 {
        match self {
            Self::DeleteLink { .. } => 0,
            Self::CreateLink { .. } => 1,
            Self::RemovePeer { .. } => 2,
            // Before anybody gains anything.
            Self::SetForwarding { .. } | Self::SetDevice { .. } => 3,
            Self::SetPeer { .. } => 4,
            // Before the addresses: the kernel drops IPv6 ones with it.
            Self::SetUp { up: false, .. } => 5,
            Self::SetMtu { .. } => 6,
            Self::RemoveRoute { .. } => 7,
            Self::RemoveAddress { .. } => 8,
            Self::AddAddress { .. } => 9,
            Self::SetUp { up: true, .. } => 10,
            Self::AddRoute { .. } => 11,
        }
    }
}

/// An interface that cannot be brought to what is wanted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Blocked {
    /// Another kind of interface has the name.
    #[error("interface {0} exists and is not WireGuard: rename it or choose another name in the configuration")]
    NameTaken(IfName),
}

impl Blocked {
    /// The interface.
    pub const fn link(&self) -> &IfName {
        match self {
            Self::NameTaken(link) => link,
        }
    }
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Steps in the order they are applied.
    pub steps: Vec<Step>,
    /// Differences that the interface's policy leaves alone.
    pub held: Vec<Step>,
    /// Interfaces that are out of reach.
    pub blocked: Vec<Blocked>,
}

/// A repair asked for once: held differences of one interface that shall be mended although its policy leaves them alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repair {
    /// Grows with every request, so that each is carried out once.
    pub seq: u64,
    /// The interfaces; empty for all.
    pub links: BTreeSet<IfName>,
    /// Add wanted peers that are not there.
    pub missing: bool,
    /// Restore what differs.
    pub mismatched: bool,
    /// Remove these peers if nobody wants them.
    pub unknown: Unknown,
}

/// Which unknown peers a [`Repair`] removes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Unknown {
    /// None.
    #[default]
    Keep,
    /// These: they were set by us before a restart, and so they go as often as it takes, like all we no longer want.
    Ours(BTreeMap<IfName, BTreeSet<PublicKey>>),
    /// All.
    All,
}

impl Repair {
    /// Whether a held step is among what shall be mended.
    pub fn covers(&self, step: &Step) -> bool {
        if !self.links.is_empty() && !self.links.contains(step.link()) {
            return false;
        }
        match step {
            Step::RemovePeer { peer, .. } => match &self.unknown {
                Unknown::Keep => false,
                Unknown::Ours(peers) => peers.get(step.link()).is_some_and(|keys| keys.contains(peer)),
                Unknown::All => true,
            },
            Step::SetPeer { change, .. } if change.create => self.missing,
            Step::CreateLink { .. } => self.missing,
            _ => self.mismatched,
        }
    }
}

impl Plan {
    /// Moves what `repair` covers from the steps that are held to those that are applied.
    pub fn release(&mut self, repair: &Repair) {
        let (released, held) = std::mem::take(&mut self.held).into_iter().partition(|s| repair.covers(s));
        self.held = held;
        self.steps.extend::<Vec<Step>>(released);
        self.steps.sort_by_cached_key(Step::rank);
    }

    /// Nothing to do, nothing left alone, nothing out of reach.
    pub const fn is_clean(&self) -> bool {
        self.steps.is_empty() && self.held.is_empty() && self.blocked.is_empty()
    }
}

/// The steps that turn `observed` into `desired`. Total, deterministic, and empty when they agree.
#[must_use]
pub fn plan(desired: &Desired, observed: &Observed, memory: &Memory) -> Plan {
    let mut out = Plan::default();
    for (name, have) in &observed.links {
        if have.ours && have.wireguard && !desired.links.contains_key(name) {
            out.steps.push(Step::DeleteLink { link: name.clone() });
        }
    }
    for (name, want) in &desired.links {
        let have = match observed.links.get(name) {
            Some(have) if !have.wireguard => {
                out.blocked.push(Blocked::NameTaken(name.clone()));
                continue;
            }
            Some(have) => Some(have),
            None => None,
        };
        let mut steps = Vec::new();
        let mut unknown = Vec::new();
        link(name, want, have, memory, &mut steps, &mut unknown);
        match want.policy {
            DriftPolicy::Enforce => {
                out.steps.append(&mut steps);
                // What somebody else made and we only look after keeps the peers it has, unless we are told otherwise.
                if want.remove_unknown.unwrap_or(have.is_none_or(|h| h.ours)) {
                    out.steps.append(&mut unknown);
                } else {
                    out.held.append(&mut unknown);
                }
            }
            DriftPolicy::Observe => {
                out.held.append(&mut steps);
                out.held.append(&mut unknown);
            }
        }
    }
    forwarding(desired, observed, &mut out);
    // Stable: within a rank the order stays that of interface and key. With the keys beside them, for the steps of thousands of
    // peers are megabytes that would be copied.
    out.steps.sort_by_cached_key(Step::rank);
    out
}

fn forwarding(desired: &Desired, observed: &Observed, out: &mut Plan) {
    let gone = observed.forwarding.keys().filter(|link| !desired.forwarding.contains_key(*link));
    out.steps.extend(gone.map(|link| Step::SetForwarding { link: link.clone(), forwarding: None }));
    for (link, want) in &desired.forwarding {
        if observed.forwarding.get(link).and_then(Option::as_ref) == Some(want) {
            continue;
        }
        let step = Step::SetForwarding { link: link.clone(), forwarding: Some(want.clone()) };
        match desired.links.get(link).map(|l| l.policy) {
            Some(DriftPolicy::Observe) => out.held.push(step),
            Some(DriftPolicy::Enforce) | None => out.steps.push(step),
        }
    }
}

fn link(
    name: &IfName,
    want: &Link,
    have: Option<&ObservedLink>,
    memory: &Memory,
    steps: &mut Vec<Step>,
    unknown: &mut Vec<Step>,
) {
    let blank = ObservedLink { wireguard: true, mtu: want.mtu, ..ObservedLink::default() };
    let rebuild = have.is_some_and(|h| h.ours) && memory.rebuilds.get(name).copied().unwrap_or(0) < want.rebuild;
    if rebuild {
        steps.push(Step::DeleteLink { link: name.clone() });
    }
    let fresh = rebuild || have.is_none();
    if fresh {
        steps.push(Step::CreateLink { link: name.clone(), mtu: want.mtu });
    }
    let have = have.filter(|_| !fresh).unwrap_or(&blank);

    let private_key = (have.public_key != Some(want.private_key.public())).then(|| want.private_key.clone());
    let listen_port = match want.listen_port {
        ListenPort::Fixed(port) => (have.listen_port != port).then_some(port),
        ListenPort::Random { epoch } => (memory.ports.get(name).copied().unwrap_or(0) < epoch && !fresh).then_some(0),
    };
    let fwmark = (have.fwmark != want.fwmark).then_some(want.fwmark);
    if private_key.is_some() || listen_port.is_some() || fwmark.is_some() {
        steps.push(Step::SetDevice { link: name.clone(), private_key, listen_port, fwmark });
    }

    // Who goes or only loses networks comes first: access is taken before it is given.
    let (mut losing, mut gaining) = (Vec::new(), Vec::new());
    for (key, want, had) in side_by_side(&want.peers, &have.peers) {
        let Some(want) = want else {
            let step = Step::RemovePeer { link: name.clone(), peer: *key };
            if memory.owned.get(name).is_some_and(|owned| owned.contains(key)) {
                steps.push(step);
            } else {
                unknown.push(step);
            }
            continue;
        };
        let told = want.endpoint.filter(|_| !fresh).and_then(|_| memory.endpoints.get(&(name.clone(), *key)));
        if let Some(change) = peer_change(want, had, told) {
            let loses =
                had.is_some_and(|h| want.allowed_ips != h.allowed_ips && want.allowed_ips.is_subset(&h.allowed_ips));
            let step = Step::SetPeer { link: name.clone(), peer: *key, change };
            if loses { losing.push(step) } else { gaining.push(step) }
        }
    }
    steps.append(&mut losing);
    steps.append(&mut gaining);

    if have.mtu != want.mtu {
        steps.push(Step::SetMtu { link: name.clone(), mtu: want.mtu });
    }
    if have.up != want.up {
        steps.push(Step::SetUp { link: name.clone(), up: want.up });
    }
    // A link that is down has no routes, whoever made them, and loses its IPv6 addresses when it is set down.
    let goes_down = have.up && !want.up;
    let kept = |a: &&IpNet| !goes_down || a.addr().is_ipv4();
    for address in have.addresses.difference(&want.addresses).filter(kept) {
        steps.push(Step::RemoveAddress { link: name.clone(), address: *address });
    }
    for address in want.addresses.iter().filter(|a| !(have.addresses.contains(a) && kept(a))) {
        steps.push(Step::AddAddress { link: name.clone(), address: *address });
    }
    if want.up {
        for route in have.routes.difference(&want.routes) {
            steps.push(Step::RemoveRoute { link: name.clone(), route: *route });
        }
        for route in want.routes.difference(&have.routes) {
            steps.push(Step::AddRoute { link: name.clone(), route: *route });
        }
    }
}

fn peer_change(want: &Peer, have: Option<&ObservedPeer>, told: Option<&Endpoint>) -> Option<PeerChange> {
    let Some(have) = have else {
        return Some(PeerChange {
            create: true,
            preshared_key: want.preshared_key.clone().map(Some),
            keepalive: (want.keepalive != 0).then_some(want.keepalive),
            endpoint: want.endpoint,
            allowed_ips: AllowedIps::Replace(want.allowed_ips.clone()),
        });
    };
    // One we told it may have roamed; one that has none has been made anew by somebody else.
    let endpoint = want.endpoint.filter(|e| match told {
        Some(told) => told != e || have.endpoint.is_none(),
        None => have.endpoint != Some(e.addr),
    });
    let allowed_ips = if have.allowed_ips == want.allowed_ips {
        AllowedIps::Keep
    } else if have.allowed_ips.is_subset(&want.allowed_ips) {
        AllowedIps::Add(want.allowed_ips.without(&have.allowed_ips))
    } else {
        AllowedIps::Replace(want.allowed_ips.clone())
    };
    let change = PeerChange {
        create: false,
        preshared_key: (have.preshared_key != want.preshared_key).then(|| want.preshared_key.clone()),
        keepalive: (have.keepalive != want.keepalive).then_some(want.keepalive),
        endpoint,
        allowed_ips,
    };
    let idle = change.preshared_key.is_none()
        && change.keepalive.is_none()
        && change.endpoint.is_none()
        && change.allowed_ips == AllowedIps::Keep;
    (!idle).then_some(change)
}

impl Memory {
    /// Remembers what a repair knows of a time before ours.
    pub fn recall(&mut self, repair: &Repair) {
        if let Unknown::Ours(peers) = &repair.unknown {
            for (link, keys) in peers {
                self.owned.entry(link.clone()).or_default().extend(keys);
            }
        }
    }

    /// Takes note of a step that was applied under `desired`.
    pub fn record(&mut self, step: &Step, desired: &Desired) {
        match step {
            Step::DeleteLink { link } => {
                self.forget(link);
                if let Some(want) = desired.links.get(link) {
                    self.rebuilds.insert(link.clone(), want.rebuild);
                }
            }
            Step::CreateLink { link, .. } => {
                let rebuilds = self.rebuilds.get(link).copied();
                self.forget(link);
                if let Some(want) = desired.links.get(link) {
                    self.rebuilds.insert(link.clone(), rebuilds.unwrap_or(0).max(want.rebuild));
                    // A new interface has a new port.
                    if let ListenPort::Random { epoch } = want.listen_port {
                        self.ports.insert(link.clone(), epoch);
                    }
                }
            }
            Step::SetDevice { link, listen_port: Some(0), .. } => {
                if let Some(Link { listen_port: ListenPort::Random { epoch }, .. }) = desired.links.get(link) {
                    self.ports.insert(link.clone(), *epoch);
                }
            }
            Step::RemovePeer { link, peer } => {
                self.endpoints.remove(&(link.clone(), *peer));
                if let Some(owned) = self.owned.get_mut(link) {
                    owned.remove(peer);
                }
            }
            Step::SetPeer { link, peer, change } => {
                self.owned.entry(link.clone()).or_default().insert(*peer);
                if let Some(endpoint) = change.endpoint {
                    self.endpoints.insert((link.clone(), *peer), endpoint);
                }
            }
            Step::SetDevice { .. }
            | Step::SetForwarding { .. }
            | Step::SetMtu { .. }
            | Step::RemoveRoute { .. }
            | Step::RemoveAddress { .. }
            | Step::AddAddress { .. }
            | Step::SetUp { .. }
            | Step::AddRoute { .. } => {}
        }
    }

    /// Takes note of a pass after which nothing differed: every wanted peer that is there is ours from now on.
    pub fn adopt(&mut self, desired: &Desired, observed: &Observed) {
        for (name, want) in &desired.links {
            let Some(have) = observed.links.get(name) else { continue };
            let owned = self.owned.entry(name.clone()).or_default();
            let mut new = Vec::new();
            let mut known = owned.iter().peekable();
            for (key, want, seen) in side_by_side(&want.peers, &have.peers) {
                let (Some(peer), Some(seen)) = (want, seen) else { continue };
                while known.next_if(|k| *k < key).is_some() {}
                if known.peek() != Some(&key) {
                    new.push(*key);
                }
                if let Some(endpoint) = peer.endpoint.filter(|e| seen.endpoint == Some(e.addr)) {
                    self.endpoints.entry((name.clone(), *key)).or_insert(endpoint);
                }
            }
            owned.extend(new);
        }
    }

    fn forget(&mut self, link: &IfName) {
        self.endpoints.retain(|(name, _), _| name != link);
        self.owned.remove(link);
    }
}
