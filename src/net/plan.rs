//! The difference between desired and observed state, as ordered steps.
//!
//! Order: delete and create interfaces → remove peers → add and change peers → addresses and routes → bring up. The planner
//! walks the union of desired and owned, so that what is no longer desired is removed even if the change was missed.
use super::state::{
    Desired, Endpoint, Forwarding, Link, ListenPort, Memory, Observed, ObservedLink, ObservedPeer, Peer, Route,
};
use ipnet::IpNet;
use spoke_config::interface::{DriftPolicy, TABLE_MAIN};
use spoke_model::interface_name::IfName;
use spoke_model::key::{PresharedKey, PublicKey, SecretKey};
use spoke_model::nets::{Nets, side_by_side};
use std::collections::{BTreeMap, BTreeSet};

mod memory;
pub mod object;
pub mod overlap;
use overlap::Overlap;

/// Change of a peer's allowed-ips.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedIps {
    /// Unchanged.
    Keep,
    /// Add these; traffic of the others is not disturbed.
    Add(Nets),
    /// Replace all by these.
    Replace(Nets),
}

/// Values written by [`Step::SetPeer`]; `None`: unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerChange {
    /// The peer is new. A change of an existing peer must never recreate one removed meanwhile.
    pub create: bool,
    /// `Some(None)`: remove the key.
    pub preshared_key: Option<Option<PresharedKey>>,
    /// Seconds; 0 is off.
    pub keepalive: Option<u16>,
    /// Endpoint.
    pub endpoint: Option<Endpoint>,
    /// Allowed-ips.
    pub allowed_ips: AllowedIps,
}

impl PeerChange {
    const fn is_preshared_alone(&self) -> bool {
        let idle = matches!(self.allowed_ips, AllowedIps::Keep) && self.keepalive.is_none() && self.endpoint.is_none();
        !self.create && self.preshared_key.is_some() && idle
    }

    /// The rest of the change; `None`: there is none.
    fn without_preshared(self) -> Option<Self> {
        (!self.is_preshared_alone()).then_some(Self { preshared_key: None, ..self })
    }

    const fn of_preshared(key: Option<PresharedKey>) -> Self {
        let (keepalive, endpoint) = (None, None);
        Self { create: false, preshared_key: Some(key), keepalive, endpoint, allowed_ips: AllowedIps::Keep }
    }
}

/// One change of the kernel's network state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "`link` is the interface's name in every variant")]
pub enum Step {
    /// Delete an interface we created, which is no longer desired or is recreated.
    DeleteLink { link: IfName },
    /// Create a WireGuard interface with our alias.
    CreateLink { link: IfName, mtu: u32 },
    /// Set the interface's WireGuard values; `None`: unchanged; port 0: chosen by the kernel.
    SetDevice { link: IfName, private_key: Option<SecretKey>, listen_port: Option<u16>, fwmark: Option<u32> },
    /// Set the forwarding between the peers of an interface; `None`: remove our table.
    SetForwarding { link: IfName, forwarding: Option<Forwarding> },
    /// Remove a peer.
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
    /// Add the connected route of an address, or give it our metric.
    AddConnected { link: IfName, address: IpNet },
    /// Remove the connected route of an address.
    RemoveConnected { link: IfName, address: IpNet },
    /// Bring the interface up or down.
    SetUp { link: IfName, up: bool },
    /// Add a route; needs an interface that is up.
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
            | Self::AddConnected { link, .. }
            | Self::RemoveConnected { link, .. }
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
            | Self::AddConnected { .. }
            | Self::RemoveConnected { .. }
            | Self::SetUp { .. }
            | Self::AddRoute { .. } => None,
        }
    }

    /// Whether the interface carries nothing without the step. A state is not kept if such a step of its own is refused.
    pub const fn is_structural(&self) -> bool {
        match self {
            Self::DeleteLink { .. } | Self::CreateLink { .. } | Self::SetDevice { .. } | Self::SetUp { .. } => true,
            Self::RemovePeer { .. }
            | Self::SetPeer { .. }
            | Self::SetForwarding { .. }
            | Self::SetMtu { .. }
            | Self::RemoveRoute { .. }
            | Self::RemoveAddress { .. }
            | Self::AddAddress { .. }
            | Self::AddConnected { .. }
            | Self::RemoveConnected { .. }
            | Self::AddRoute { .. } => false,
        }
    }

    const fn rank(&self) -> u8 {
        match self {
            Self::DeleteLink { .. } => 0,
            Self::CreateLink { .. } => 1,
            Self::RemovePeer { .. } => 2,
            // Before any peer is granted access.
            Self::SetForwarding { .. } | Self::SetDevice { .. } => 3,
            // Pushed before the private key that they belong to.
            Self::SetPeer { change, .. } if change.is_preshared_alone() => 3,
            Self::SetPeer { .. } => 4,
            // Before the addresses: the kernel removes IPv6 addresses of an interface that goes down.
            Self::SetUp { up: false, .. } => 5,
            Self::SetMtu { .. } => 6,
            Self::RemoveRoute { .. } | Self::RemoveConnected { .. } => 7,
            Self::RemoveAddress { .. } => 8,
            Self::AddAddress { .. } => 9,
            Self::SetUp { up: true, .. } => 10,
            Self::AddConnected { .. } => 11,
            Self::AddRoute { .. } => 12,
        }
    }
}

/// An interface that cannot reach its desired state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Blocked {
    /// An interface of another kind has the name.
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

/// Steps from observed to desired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Steps in the order of application.
    pub steps: Vec<Step>,
    /// Steps held by the interface's drift policy.
    pub held: Vec<Step>,
    /// Repairs that wait, because another program undoes them again and again.
    pub damped: Vec<Step>,
    /// Interfaces that cannot reach their desired state.
    pub blocked: Vec<Blocked>,
    /// Networks of the tunnels that are connected elsewhere, too.
    pub overlaps: Vec<Overlap>,
}

/// A requested repair: held steps that are to be applied once, despite the drift policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repair {
    /// Increases with every request; each is carried out once.
    pub seq: u64,
    /// The interfaces; empty: all.
    pub links: BTreeSet<IfName>,
    /// Add missing peers.
    pub missing: bool,
    /// Restore what differs.
    pub mismatched: bool,
    /// Remove unknown peers.
    pub unknown: Unknown,
}

/// Which unknown peers a [`Repair`] removes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Unknown {
    /// None.
    #[default]
    Keep,
    /// These, which we set before a restart: from then on they are owned, and removed until they are gone.
    Ours(BTreeMap<IfName, BTreeSet<PublicKey>>),
    /// All.
    All,
}

impl Repair {
    /// Whether the repair includes a held step.
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
            // Undeclared, on an interface that we did not create.
            Step::RemoveAddress { .. } => matches!(self.unknown, Unknown::All),
            Step::SetPeer { change, .. } if change.create => self.missing,
            Step::CreateLink { .. } => self.missing,
            _ => self.mismatched,
        }
    }
}

impl Plan {
    /// Moves the held steps that `repair` includes to the steps.
    pub fn release(&mut self, repair: &Repair) {
        let (released, held) = std::mem::take(&mut self.held).into_iter().partition(|s| repair.covers(s));
        self.held = held;
        self.steps.extend::<Vec<Step>>(released);
        self.steps.sort_by_cached_key(Step::rank);
    }

    /// No step, none held, no interface blocked.
    pub const fn is_clean(&self) -> bool {
        self.steps.is_empty() && self.held.is_empty() && self.blocked.is_empty()
    }
}

/// The steps that turn `observed` into `desired`. Total, deterministic, and empty when they agree.
#[must_use]
pub fn plan(desired: &Desired, observed: &Observed, memory: &Memory) -> Plan {
    let mut out = Plan::default();
    for (name, have) in &observed.links {
        let known = desired.links.contains_key(name) || desired.key_faults.contains_key(name);
        if have.ours && have.wireguard && !known {
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
        let found = overlap::overlaps(name, want, observed);
        link(name, want, have, memory, &found, &mut steps, &mut unknown);
        out.overlaps.extend(found);
        match want.policy {
            DriftPolicy::Enforce => {
                out.steps.append(&mut steps);
                // An adopted interface keeps its unknown peers unless configured otherwise.
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
    // Stable, so that the order within a rank is that of interface and key. Cached keys, since moving steps is expensive.
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
    overlaps: &[Overlap],
    steps: &mut Vec<Step>,
    unknown: &mut Vec<Step>,
) {
    let blank = ObservedLink { wireguard: true, mtu: want.mtu, ..ObservedLink::default() };
    // A peer whose preshared key cannot be read would be lost with the interface.
    let keyed = want.peers.values().all(|p| p.key_fault.is_none());
    let rebuild =
        keyed && have.is_some_and(|h| h.ours) && memory.rebuilds.get(name).copied().unwrap_or(0) < want.rebuild;
    if rebuild {
        steps.push(Step::DeleteLink { link: name.clone() });
    }
    let fresh = rebuild || have.is_none();
    if fresh {
        steps.push(Step::CreateLink { link: name.clone(), mtu: want.mtu });
    }
    let have = have.filter(|_| !fresh).unwrap_or(&blank);

    let private_key = (have.public_key != Some(want.private_key.public())).then(|| want.private_key.clone());
    let busy = |port| memory.busy_ports.get(name) == Some(&port);
    let mut busy_port = None;
    let listen_port = match want.listen_port {
        // In use by another program. A link that is down comes up with a random port; later the port is tried again, alone, so
        // that a refusal concerns nothing else.
        ListenPort::Fixed(port) if busy(port) && want.port_fallback && !have.up => {
            (have.listen_port == port).then_some(0)
        }
        ListenPort::Fixed(port) if busy(port) => {
            busy_port = (have.listen_port != port).then_some(port);
            None
        }
        ListenPort::Fixed(port) => (have.listen_port != port).then_some(port),
        ListenPort::Random { epoch } => (memory.ports.get(name).copied().unwrap_or(0) < epoch && !fresh).then_some(0),
    };
    let (mtu, mark) = want.mtu_and_mark(have);
    let fwmark = (have.fwmark != mark).then_some(mark);
    // A handshake begins as soon as the private key changes, and ends with the preshared key that is set by then.
    let renewed = private_key.is_some();
    if renewed {
        for (key, want, had) in side_by_side(&want.peers, &have.peers) {
            if let (Some(want), Some(had)) = (want, had)
                && want.key_fault.is_none()
                && want.preshared_key != had.preshared_key
            {
                let change = PeerChange::of_preshared(want.preshared_key.clone());
                steps.push(Step::SetPeer { link: name.clone(), peer: *key, change });
            }
        }
    }
    if private_key.is_some() || listen_port.is_some() || fwmark.is_some() {
        steps.push(Step::SetDevice { link: name.clone(), private_key, listen_port, fwmark });
    }
    if busy_port.is_some() {
        steps.push(Step::SetDevice { link: name.clone(), private_key: None, listen_port: busy_port, fwmark: None });
    }

    // Peers that only lose networks first: access is removed before it is granted.
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
        match had {
            None if want.key_fault.is_some() => continue,
            Some(had) if want.key_fault.is_some() && had.preshared_key.is_none() => {
                steps.push(Step::RemovePeer { link: name.clone(), peer: *key });
                continue;
            }
            Some(_) | None => {}
        }
        let last_set = want.endpoint.filter(|_| !fresh).and_then(|_| memory.endpoints.get(&(name.clone(), *key)));
        let mut change = peer_change(want, had, last_set);
        if renewed && had.is_some() {
            change = change.and_then(PeerChange::without_preshared);
        }
        if let Some(change) = change {
            let loses =
                had.is_some_and(|h| want.allowed_ips != h.allowed_ips && want.allowed_ips.is_subset(&h.allowed_ips));
            let step = Step::SetPeer { link: name.clone(), peer: *key, change };
            if loses { losing.push(step) } else { gaining.push(step) }
        }
    }
    steps.append(&mut losing);
    steps.append(&mut gaining);

    if have.mtu != mtu {
        steps.push(Step::SetMtu { link: name.clone(), mtu });
    }
    if have.up != want.up {
        steps.push(Step::SetUp { link: name.clone(), up: want.up });
    }
    // An interface that is down has no routes, and loses its IPv6 addresses when it goes down.
    let goes_down = have.up && !want.up;
    let kept = |a: &&IpNet| !goes_down || a.addr().is_ipv4();
    for address in have.addresses.difference(&want.addresses).filter(kept) {
        let step = Step::RemoveAddress { link: name.clone(), address: *address };
        // An adopted interface keeps the addresses that others gave it, except one that stands in the way of a wanted one: the
        // kernel holds an IPv6 address once, whatever its prefix.
        let set_by_us = have.ours || memory.addresses.get(name).is_some_and(|set| set.contains(address));
        let in_the_way = address.addr().is_ipv6() && want.addresses.iter().any(|w| w.addr() == address.addr());
        if set_by_us || in_the_way { steps.push(step) } else { unknown.push(step) }
    }
    for address in want.addresses.iter().filter(|a| !(have.addresses.contains(a) && kept(a))) {
        steps.push(Step::AddAddress { link: name.clone(), address: *address });
    }
    if want.up {
        let withheld = |net: &IpNet| overlaps.iter().any(|o| o.withheld && o.net == *net);
        let routes = |r: &&Route| !(r.table == TABLE_MAIN && withheld(&r.to));
        let wanted: BTreeSet<Route> = want.routes.iter().filter(routes).copied().collect();
        for route in have.routes.difference(&wanted) {
            steps.push(Step::RemoveRoute { link: name.clone(), route: *route });
        }
        for route in wanted.difference(&have.routes) {
            steps.push(Step::AddRoute { link: name.clone(), route: *route });
        }
        // The kernel adds the connected routes when the address is added and the interface comes up.
        let settled = |a: &&IpNet| have.up && have.addresses.contains(*a) && a.prefix_len() < a.max_prefix_len();
        for address in want.addresses.iter().filter(settled) {
            let (link, address, missing) = (name.clone(), *address, have.unrouted.contains(address));
            match (withheld(&address.trunc()), missing) {
                (false, true) => steps.push(Step::AddConnected { link, address }),
                (true, false) => steps.push(Step::RemoveConnected { link, address }),
                (false, false) | (true, true) => {}
            }
        }
    }
}

fn peer_change(want: &Peer, have: Option<&ObservedPeer>, last_set: Option<&Endpoint>) -> Option<PeerChange> {
    let Some(have) = have else {
        return Some(PeerChange {
            create: true,
            preshared_key: want.preshared_key.clone().map(Some),
            keepalive: (want.keepalive != 0).then_some(want.keepalive),
            endpoint: want.endpoint,
            allowed_ips: AllowedIps::Replace(want.allowed_ips.clone()),
        });
    };
    // An endpoint we set may have roamed: not drift. None means the peer was recreated.
    let endpoint = want.endpoint.filter(|e| match last_set {
        Some(last) => last != e || have.endpoint.is_none(),
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
        preshared_key: (want.key_fault.is_none() && have.preshared_key != want.preshared_key)
            .then(|| want.preshared_key.clone()),
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
