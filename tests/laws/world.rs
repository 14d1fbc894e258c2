//! Arbitrary desired states, arbitrary kernel states, and changes by other programs.
use futures_util::FutureExt as _;
use ipnet::IpNet;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use spoke_config::interface::DriftPolicy;
use spoke_model::interface_name::IfName;
use spoke_model::key::{PresharedKey, PublicKey, SecretKey};
use spoke_net::plan::{Plan, Step, plan};
use spoke_net::state::{Desired, Endpoint, Link, ListenPort, Memory, OWNED_ALIAS, Observed, ObservedPeer, Peer, Route};
use spoke_sys::kernel::{Applied, Kernel};
use spoke_sys::sim::kernel::{FakeKernel, Handle};
use std::collections::{BTreeMap, BTreeSet};

/// Names of interfaces that may be wanted.
pub(crate) const NAMES: [&str; 3] = ["wg0", "wg1", "wg2"];
/// A name that is never wanted.
pub(crate) const FOREIGN: &str = "vpn9";

const NETS: [&str; 9] = [
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.3/32",
    "0.0.0.0/0",
    "fd00::/8",
    "fd00:1::/64",
    "fd00:1::7/128",
    "::/0",
];
const ADDRESSES: [&str; 6] =
    ["10.8.0.1/24", "10.8.0.2/24", "10.9.0.1/32", "fd00:8::1/64", "fd00:8::1/128", "fd00:9::1/64"];
/// One table per link: two links with the same route are a configuration error.
const TABLES: [u32; 3] = [254, 77, 1000];

pub(crate) fn name(text: &str) -> IfName {
    text.parse().expect("an interface name")
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

pub(crate) fn secret(n: u8) -> SecretKey {
    SecretKey::clamped([n.wrapping_add(1); 32])
}

pub(crate) fn peer_key(n: u8) -> PublicKey {
    PublicKey([n.wrapping_add(100); 32])
}

fn any_net() -> impl Strategy<Value = IpNet> {
    (0..NETS.len()).prop_map(|i| net(NETS[i]))
}

fn any_address() -> impl Strategy<Value = IpNet> {
    (0..ADDRESSES.len()).prop_map(|i| net(ADDRESSES[i]))
}

fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    (0u8..4).prop_map(|n| Endpoint { addr: ([192, 0, 2, n], 51820).into(), attempt: 0 })
}

fn any_preshared() -> impl Strategy<Value = Option<PresharedKey>> {
    prop::option::of((0u8..2).prop_map(|n| PresharedKey::from_bytes([n + 1; 32])))
}

/// An address is unique on a link, whatever its prefix.
fn any_addresses() -> impl Strategy<Value = BTreeSet<IpNet>> {
    btree_set(any_address(), 0..4).prop_map(|all| {
        let mut seen = BTreeSet::new();
        all.into_iter().filter(|a| seen.insert(a.addr())).collect()
    })
}

/// A desired interface; `n` makes its key, port and table distinct from those of the others.
fn any_link(n: u8) -> impl Strategy<Value = Link> {
    let peers = btree_map(0u8..6, (any_preshared(), 0u16..2, prop::option::of(any_endpoint())), 0..5);
    // A network belongs to at most one peer.
    let holders = vec(prop::option::of(0u8..6), NETS.len());
    let routes = btree_set(any_net(), 0..4);
    let random = any::<bool>();
    (peers, holders, routes, any_addresses(), random, 0u8..3, 0u32..2, prop::bool::weighted(0.85), 0u32..2).prop_map(
        move |(peers, holders, routes, addresses, random, key, fwmark, up, mtu)| {
            let peers = peers
                .into_iter()
                .map(|(i, (preshared_key, keepalive, endpoint))| {
                    let held = holders.iter().enumerate().filter(|(_, h)| **h == Some(i));
                    let allowed_ips = held.map(|(j, _)| net(NETS[j])).collect();
                    (
                        peer_key(i),
                        Peer { preshared_key, allowed_ips, keepalive: keepalive * 25, endpoint, key_fault: None },
                    )
                })
                .collect();
            let listen_port =
                if random { ListenPort::Random { epoch: 0 } } else { ListenPort::Fixed(51_820 + u16::from(n)) };
            Link {
                private_key: secret(n * 3 + key),
                listen_port,
                fwmark,
                mtu: 1280 + mtu * 140,
                addresses,
                peers,
                routes: routes.into_iter().map(|to| Route { to, table: TABLES[usize::from(n)], metric: 0 }).collect(),
                up,
                policy: DriftPolicy::Enforce,
                remove_unknown: Some(true),
                dns: Vec::new(),
                rebuild: 0,
                port_fallback: false,
                defaults: (false, false),
            }
        },
    )
}

/// A desired state.
pub(crate) fn any_desired() -> impl Strategy<Value = Desired> {
    let links = (prop::option::of(any_link(0)), prop::option::of(any_link(1)), prop::option::of(any_link(2)));
    links.prop_map(|(a, b, c)| {
        let links = [a, b, c].into_iter().zip(NAMES).filter_map(|(l, n)| Some((name(n), l?))).collect();
        Desired { generation: 1, links, ..Desired::default() }
    })
}

/// A change by another program.
#[derive(Clone, Debug)]
pub(crate) enum Mess {
    AddLink(u8, bool),
    DeleteLink(u8),
    SetUp(u8, bool),
    Mtu(u8),
    AddAddress(u8, IpNet),
    RemoveAddress(u8, IpNet),
    OurRoute(u8, IpNet),
    RemoveRoute(u8, IpNet),
    RemovePeer(u8, u8),
    SetPeer(u8, u8, BTreeSet<IpNet>, Option<PresharedKey>),
    Roam(u8, u8, Endpoint),
    Key(u8, u8),
    Mark(u8),
}

pub(crate) fn any_mess() -> impl Strategy<Value = Mess> {
    let link = 0u8..3;
    let peer = 0u8..8;
    prop_oneof![
        (link.clone(), prop::bool::weighted(0.9)).prop_map(|(l, w)| Mess::AddLink(l, w)),
        link.clone().prop_map(Mess::DeleteLink),
        (link.clone(), any::<bool>()).prop_map(|(l, up)| Mess::SetUp(l, up)),
        link.clone().prop_map(Mess::Mtu),
        (link.clone(), any_address()).prop_map(|(l, a)| Mess::AddAddress(l, a)),
        (link.clone(), any_address()).prop_map(|(l, a)| Mess::RemoveAddress(l, a)),
        (link.clone(), any_net()).prop_map(|(l, n)| Mess::OurRoute(l, n)),
        (link.clone(), any_net()).prop_map(|(l, n)| Mess::RemoveRoute(l, n)),
        (link.clone(), peer.clone()).prop_map(|(l, p)| Mess::RemovePeer(l, p)),
        (link.clone(), peer.clone(), btree_set(any_net(), 0..3), any_preshared())
            .prop_map(|(l, p, n, k)| Mess::SetPeer(l, p, n, k)),
        (link.clone(), peer, any_endpoint()).prop_map(|(l, p, e)| Mess::Roam(l, p, e)),
        (link.clone(), 0u8..9).prop_map(|(l, k)| Mess::Key(l, k)),
        link.prop_map(Mess::Mark),
    ]
}

fn do_mess(handle: &Handle, mess: &Mess) {
    let link = |l: &u8| NAMES[usize::from(*l)];
    match mess {
        Mess::AddLink(l, wireguard) => {
            if !handle.links().contains_key(link(l)) {
                handle.add_link(link(l), *wireguard);
            }
        }
        Mess::DeleteLink(l) => handle.delete_link(link(l)),
        Mess::SetUp(l, up) => handle.set_up(link(l), *up),
        Mess::Mtu(l) => handle.set_mtu(link(l), 1400),
        Mess::AddAddress(l, a) => handle.add_address(link(l), *a),
        Mess::RemoveAddress(l, a) => handle.remove_address(link(l), *a),
        Mess::OurRoute(l, to) => {
            handle.add_route(link(l), Route { to: *to, table: TABLES[usize::from(*l)], metric: 0 }, true)
        }
        Mess::RemoveRoute(l, to) => {
            handle.remove_route(link(l), Route { to: *to, table: TABLES[usize::from(*l)], metric: 0 })
        }
        Mess::RemovePeer(l, p) => handle.remove_peer(link(l), &peer_key(*p)),
        Mess::SetPeer(l, p, allowed_ips, preshared_key) => {
            let as_this = ObservedPeer {
                allowed_ips: allowed_ips.iter().copied().collect(),
                preshared_key: preshared_key.clone(),
                ..ObservedPeer::default()
            };
            handle.set_peer(link(l), peer_key(*p), as_this);
        }
        Mess::Roam(l, p, e) => handle.roam(link(l), &peer_key(*p), e.addr),
        Mess::Key(l, k) => handle.set_device(link(l), Some(&secret(*k)), None, None),
        Mess::Mark(l) => handle.set_device(link(l), None, None, Some(7)),
    }
}

/// A kernel with existing objects, and the reconciler's memory of it.
pub(crate) struct World {
    pub(crate) kernel: FakeKernel,
    pub(crate) others: Handle,
    pub(crate) memory: Memory,
}

impl World {
    /// A kernel with a foreign link that has a peer, an address and two routes.
    pub(crate) fn new() -> Self {
        let kernel = FakeKernel::new();
        let others = kernel.handle();
        others.add_link(FOREIGN, true);
        others.set_up(FOREIGN, true);
        others.set_device(FOREIGN, Some(&secret(200)), None, Some(9));
        others.add_address(FOREIGN, net("10.200.0.1/24"));
        others.add_route(FOREIGN, Route { to: net("10.201.0.0/16"), table: 254, metric: 0 }, false);
        others.add_route(FOREIGN, Route { to: net("10.202.0.0/16"), table: 254, metric: 0 }, true);
        let allowed_ips = [net("10.0.0.0/8"), net("fd00::/8")].into();
        others.set_peer(FOREIGN, peer_key(0), ObservedPeer { allowed_ips, ..ObservedPeer::default() });
        Self { kernel, others, memory: Memory::default() }
    }

    pub(crate) fn mess(&self, all: &[Mess]) {
        all.iter().for_each(|m| do_mess(&self.others, m));
    }

    pub(crate) fn observe(&mut self, desired: &Desired) -> Observed {
        self.observe_names(&desired.links.keys().cloned().collect())
    }

    fn observe_names(&mut self, wanted: &BTreeSet<IfName>) -> Observed {
        self.kernel.observe(wanted).now_or_never().expect("the fake is never busy").expect("an observation")
    }

    /// All existing links with everything observable, and the foreign routes.
    pub(crate) fn everything(&mut self) -> (Observed, BTreeSet<(String, Route)>) {
        let all = self.others.links().into_keys().map(|n| name(&n)).collect();
        (self.observe_names(&all), self.others.foreign_routes())
    }

    pub(crate) fn apply(&mut self, steps: &[Step]) -> Applied {
        self.kernel.apply(steps).now_or_never().expect("the fake is never busy")
    }

    pub(crate) fn plan(&mut self, desired: &Desired) -> Plan {
        let observed = self.observe(desired);
        plan(desired, &observed, &self.memory)
    }

    /// One pass of the reconcile task: observe, plan, apply, record.
    pub(crate) fn pass(&mut self, desired: &Desired) -> (Plan, Applied) {
        let plan = self.plan(desired);
        let applied = self.apply(&plan.steps);
        applied.done.iter().for_each(|i| self.memory.record(&plan.steps[*i], desired));
        let observed = self.observe(desired);
        self.memory.adopt(desired, &observed);
        (plan, applied)
    }

    /// A pass interrupted after `after` steps; if `killed`, the memory is lost as well.
    pub(crate) fn cut_off(&mut self, desired: &Desired, after: usize, killed: bool) {
        let plan = self.plan(desired);
        let steps = &plan.steps[..after.min(plan.steps.len())];
        let applied = self.apply(steps);
        applied.done.iter().for_each(|i| self.memory.record(&steps[*i], desired));
        if killed {
            self.memory = Memory::default();
        }
    }
}

/// A world in sync with `first`, then changed by other programs.
pub(crate) fn world(first: &Desired, mess: &[Mess]) -> World {
    let mut world = World::new();
    world.pass(first);
    world.mess(mess);
    world
}

/// Differences between desired and observed state; endpoints may have roamed, but not be missing.
pub(crate) fn unlike(desired: &Desired, observed: &Observed) -> Vec<String> {
    let mut bad = Vec::new();
    for (link, want) in &desired.links {
        let Some(have) = observed.links.get(link) else {
            bad.push(format!("{link} is missing"));
            continue;
        };
        if !have.wireguard {
            continue;
        }
        let mut check = |what: &str, same: bool| {
            if !same {
                bad.push(format!("{link}: {what}"));
            }
        };
        check("key", have.public_key == Some(want.private_key.public()));
        check("mark", have.fwmark == want.fwmark);
        check("mtu", have.mtu == want.mtu);
        check("up", have.up == want.up);
        check("addresses", have.addresses == want.addresses);
        check("routes", have.routes == if want.up { want.routes.clone() } else { BTreeSet::new() });
        if let ListenPort::Fixed(port) = want.listen_port {
            check("port", have.listen_port == port);
        }
        check("peers", have.peers.keys().eq(want.peers.keys()));
        for (key, peer) in &want.peers {
            let Some(seen) = have.peers.get(key) else { continue };
            check("allowed-ips", seen.allowed_ips == peer.allowed_ips);
            check("keepalive", seen.keepalive == peer.keepalive);
            check("preshared key", seen.preshared_key == peer.preshared_key);
            check("endpoint", peer.endpoint.is_none() || seen.endpoint.is_some());
        }
    }
    for (link, have) in &observed.links {
        if have.ours && !desired.links.contains_key(link) {
            bad.push(format!("{link} is still there"));
        }
    }
    bad
}

/// Adds a link that is marked as ours and not desired.
pub(crate) fn orphan(world: &World, link: &str) {
    world.others.add_link(link, true);
    world.others.set_alias(link, OWNED_ALIAS);
}

/// Peers by link.
pub(crate) fn peers_of(observed: &Observed) -> BTreeMap<IfName, BTreeSet<PublicKey>> {
    observed.links.iter().map(|(n, l)| (n.clone(), l.peers.keys().copied().collect())).collect()
}
