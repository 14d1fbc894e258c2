//! Rendered plans, compared with the files in `tests/golden`. `SPOKE_BLESS=1` rewrites them; review the diff.
use crate::world::{World, name, net, peer_key, secret};
use spoke_config::interface::{DriftPolicy, TABLE_MAIN};
use spoke_model::key::PresharedKey;
use spoke_net::render;
use spoke_net::state::{Desired, Endpoint, Link, ListenPort, ObservedPeer, Peer, Route};
use std::path::Path;

fn hub() -> Peer {
    Peer {
        preshared_key: Some(PresharedKey::from_bytes([4; 32])),
        allowed_ips: [net("10.8.0.0/24"), net("10.9.0.0/16"), net("fd00:9::/48")].into(),
        keepalive: 25,
        endpoint: Some(Endpoint { addr: ([192, 0, 2, 1], 51820).into(), attempt: 0 }),
        key_fault: None,
    }
}

fn link() -> Link {
    let main = |to| Route { to: net(to), table: TABLE_MAIN, metric: 0 };
    Link {
        private_key: secret(1),
        listen_port: ListenPort::Random { epoch: 0 },
        fwmark: 0,
        mtu: 1280,
        defaults: (false, false),
        addresses: [net("10.8.0.2/24"), net("fd00:8::2/64")].into(),
        peers: [(peer_key(1), hub())].into(),
        routes: [main("10.9.0.0/16"), main("fd00:9::/48")].into(),
        up: true,
        policy: DriftPolicy::Enforce,
        remove_unknown: Some(true),
        dns: Vec::new(),
        rebuild: 0,
        port_fallback: false,
    }
}

fn wanted(link: Link) -> Desired {
    Desired { generation: 1, links: [(name("wg0"), link)].into(), ..Desired::default() }
}

/// A world that is in sync with `link`.
fn reached() -> World {
    let mut world = World::new();
    world.pass(&wanted(link()));
    world
}

/// Compares the rendered plan with the golden file of that name.
fn golden(file: &str, world: &mut World, want: &Desired) {
    let plan = world.plan(want);
    let text = render::plan(&plan, &world.observe(want));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(format!("{file}.txt"));
    if std::env::var_os("SPOKE_BLESS").is_some() {
        std::fs::write(&path, &text).expect("write the golden file");
    }
    let expected =
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}; SPOKE_BLESS=1 writes it", path.display()));
    assert_eq!(text, expected, "{file}: if intended, SPOKE_BLESS=1 rewrites it");
}

#[test]
fn first_start_creates_everything() {
    golden("first-start", &mut World::new(), &wanted(link()));
}

#[test]
fn in_sync_plan_is_empty() {
    golden("nothing-to-do", &mut reached(), &wanted(link()));
}

#[test]
fn removed_objects_are_restored() {
    let mut world = reached();
    world.others.remove_route("wg0", Route { to: net("10.9.0.0/16"), table: TABLE_MAIN, metric: 0 });
    world.others.remove_address("wg0", net("10.8.0.2/24"));
    world.others.remove_peer("wg0", &peer_key(1));
    golden("taken-away", &mut world, &wanted(link()));
}

#[test]
fn foreign_changes_are_reverted() {
    let mut world = reached();
    let allowed_ips = [net("0.0.0.0/0")].into();
    world.others.set_peer("wg0", peer_key(1), ObservedPeer { allowed_ips, ..ObservedPeer::default() });
    world.others.set_peer("wg0", peer_key(2), ObservedPeer::default());
    world.others.set_device("wg0", Some(&secret(2)), None, Some(7));
    world.others.set_mtu("wg0", 1420);
    world.others.add_address("wg0", net("10.66.0.1/24"));
    golden("changed", &mut world, &wanted(link()));
}

#[test]
fn link_set_down_is_brought_up() {
    let mut world = reached();
    world.others.set_up("wg0", false);
    golden("set-down", &mut world, &wanted(link()));
}

#[test]
fn new_address_port_and_mtu_are_applied() {
    let mut want = link();
    want.addresses = [net("10.18.0.2/24")].into();
    want.listen_port = ListenPort::Fixed(51820);
    want.mtu = 1420;
    golden("readdressed", &mut reached(), &wanted(want));
}

#[test]
fn peers_are_added_removed_and_changed() {
    let mut want = link();
    let peer = |text: &str| Peer { allowed_ips: [net(text)].into(), ..Peer::default() };
    want.peers.insert(peer_key(3), peer("10.11.0.0/16"));
    let hub = want.peers.get_mut(&peer_key(1)).unwrap();
    hub.endpoint = Some(Endpoint { addr: "[2001:db8::1]:51820".parse().unwrap(), attempt: 0 });
    hub.preshared_key = None;
    hub.keepalive = 0;
    hub.allowed_ips = [net("10.8.0.0/24")].into();
    want.routes.clear();
    let mut world = reached();
    let mut before = link();
    before.peers.insert(peer_key(2), peer("10.10.0.0/16"));
    world.pass(&wanted(before));
    golden("peers", &mut world, &wanted(want));
}

#[test]
fn observe_policy_holds_all_steps() {
    let mut world = reached();
    world.others.set_mtu("wg0", 1420);
    world.others.set_peer("wg0", peer_key(2), ObservedPeer::default());
    golden("watched", &mut world, &wanted(Link { policy: DriftPolicy::Observe, ..link() }));
}

#[test]
fn unknown_peers_are_kept() {
    let mut world = reached();
    world.others.set_peer("wg0", peer_key(2), ObservedPeer::default());
    golden("unknown-peer", &mut world, &wanted(Link { remove_unknown: Some(false), ..link() }));
}

#[test]
fn taken_name_blocks_the_interface() {
    let mut world = World::new();
    world.others.add_link("wg0", false);
    golden("name-taken", &mut world, &wanted(link()));
}

#[test]
fn raised_rebuild_recreates_the_interface() {
    golden("rebuilt", &mut reached(), &wanted(Link { rebuild: 1, ..link() }));
}

#[test]
fn unwanted_interface_is_deleted() {
    golden("not-wanted", &mut reached(), &Desired::default());
}
