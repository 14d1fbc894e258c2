//! Conflicts with other owners; no sequence of edits makes the desired state invalid.
use super::*;
use proptest::prelude::*;
use spoke_config::Config;
use spoke_config::effective::{DocumentSettings, InterfaceSettings};
use spoke_model::key::SecretKey;
use spoke_net::api_state::Table;
use spoke_net::derive::{Facts, Keys, derive};

const CONFIG: &str = r#"
[node]
role = "hub"
[[interface]]
name = "wg0"
listen_port = 51820
addresses = ["10.0.0.1/16"]
[[interface.peer]]
name = "declared"
public_key = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="
allowed_ips = ["10.0.7.0/24"]
[[interface]]
name = "wg1"
listen_port = 51821
drift = "observe"
[[interface]]
name = "wg2"
listen_port = 51822
"#;

struct Fixture {
    config: Effective,
    state: ApiState,
    desired: Desired,
    observed: Observed,
}

impl Fixture {
    fn new() -> Self {
        let mut config = Config::from_text(Some(("test", CONFIG)), []).unwrap();
        config.interfaces[2].access = Access::Nft;
        Self::with(Effective::of(Arc::new(config)))
    }

    fn with(config: Effective) -> Self {
        let mut world =
            Self { config, state: ApiState::default(), desired: Desired::default(), observed: Observed::default() };
        world.derive();
        world
    }

    fn derive(&mut self) {
        let private = ["wg0", "wg1", "wg2"]
            .iter()
            .zip(100u8..)
            .map(|(n, b)| (n.parse().unwrap(), SecretKey::clamped([b; 32])))
            .collect();
        let keys = Keys { private, ..Keys::default() };
        let facts = Facts { keys: Arc::new(keys), api_state: Arc::new(self.state.clone()), ..Facts::default() };
        self.desired = derive(&self.config, &facts, &self.desired).expect("no edit makes the state invalid");
    }

    fn ask(&mut self, edit: &Edit) -> Result<(), Conflict> {
        let on = Context { config: &self.config, state: &self.state, desired: &self.desired, observed: &self.observed };
        self.state = edit.carry_out(&on)?.state;
        self.derive();
        Ok(())
    }
}

fn link(name: &str) -> IfName {
    name.parse().unwrap()
}

fn key(n: u8) -> PublicKey {
    PublicKey([n; 32])
}

fn nets(list: &[&str]) -> Nets {
    list.iter().map(|n| n.parse().unwrap()).collect()
}

fn set(name: &str, peer: u8, list: &[&str]) -> Edit {
    let values = PeerValues { allowed_ips: Some(nets(list)), ..PeerValues::default() };
    Edit::SetPeer { link: link(name), peer: key(peer), values }
}

/// An interface's values with nothing but a key.
fn values(key: u8) -> DeviceValues {
    DeviceValues {
        private_key: SecretKey::clamped([key; 32]),
        listen_port: None,
        addresses: None,
        mtu: None,
        dns: None,
        table: None,
        nested_allowed_ips: None,
    }
}

#[test]
fn equal_values_of_a_declared_interface_are_accepted() {
    let mut world = Fixture::new();
    let ask = |world: &mut Fixture, values| world.ask(&Edit::SetDevice { link: link("wg0"), values });
    let equal = DeviceValues {
        listen_port: Some(51820),
        addresses: Some(["10.0.0.1/16".parse().unwrap()].into()),
        mtu: Some(0),
        dns: Some((Vec::new(), Vec::new())),
        table: Some(Table::Auto),
        nested_allowed_ips: Some(false),
        ..values(100)
    };
    assert_eq!(ask(&mut world, values(100)), Ok(()));
    assert_eq!(ask(&mut world, equal.clone()), Ok(()));
    assert_eq!(world.state, ApiState::default(), "nothing is set");
    let search = vec!["corp.example".to_owned()];
    for (field, differing) in [
        ("PrivateKey", values(101)),
        ("ListenPort", DeviceValues { listen_port: Some(0), ..equal.clone() }),
        ("ListenPort", DeviceValues { listen_port: Some(51821), ..equal.clone() }),
        ("Address", DeviceValues { addresses: Some(BTreeSet::new()), ..equal.clone() }),
        ("MTU", DeviceValues { mtu: Some(1400), ..equal.clone() }),
        ("DNS", DeviceValues { dns: Some((Vec::new(), search)), ..equal.clone() }),
        ("Table", DeviceValues { table: Some(Table::Off), ..equal.clone() }),
        ("nested_allowed_ips", DeviceValues { nested_allowed_ips: Some(true), ..equal.clone() }),
    ] {
        let differs = Conflict::Differs { link: link("wg0"), field, by: "the configuration" };
        assert_eq!(ask(&mut world, differing), Err(differs.clone()));
        assert!(differs.to_string().contains(field));
    }
    let declared = on_declared(&world);
    for (field, own) in [
        ("PrivateKey", OwnValues { private_key: Some(SecretKey::clamped([1; 32])), ..OwnValues::default() }),
        ("ListenPort", OwnValues { listen_port: Some(1), ..OwnValues::default() }),
        ("FwMark", OwnValues { fwmark: Some(1), ..OwnValues::default() }),
    ] {
        let file = Edit::SetPeers { link: link("wg0"), peers: declared.clone(), own };
        assert_eq!(world.ask(&file), Err(Conflict::Differs { link: link("wg0"), field, by: "the configuration" }));
    }
}

/// The declared peers, as a file has them.
fn on_declared(world: &Fixture) -> BTreeMap<PublicKey, Arc<ApiStatePeer>> {
    let peer = |p: &spoke_net::state::Peer| {
        Arc::new(ApiStatePeer { allowed_ips: p.allowed_ips.clone(), keepalive: p.keepalive, ..ApiStatePeer::default() })
    };
    world.desired.links[&link("wg0")].peers.iter().map(|(k, p)| (*k, peer(p))).collect()
}

#[test]
fn omitted_values_of_an_interface_stay() {
    let mut world = Fixture::new();
    let mut ask = |values| world.ask(&Edit::SetDevice { link: link("wg9"), values });
    ask(DeviceValues {
        listen_port: Some(6000),
        addresses: Some(["10.9.0.1/24".parse().unwrap(), "fd09::1/64".parse().unwrap()].into()),
        mtu: Some(1400),
        dns: Some((vec!["10.9.0.53".parse().unwrap()], vec!["corp.example".to_owned()])),
        table: Some(Table::Off),
        nested_allowed_ips: Some(true),
        ..values(50)
    })
    .unwrap();
    ask(values(51)).unwrap();
    assert_eq!(ask(DeviceValues { mtu: Some(1000), ..values(51) }), Err(Conflict::SmallMtu(1000)));
    let device = world.state.links[&link("wg9")].device.clone().unwrap();
    assert_eq!(device.private_key.public(), SecretKey::clamped([51; 32]).public());
    assert_eq!((device.listen_port, device.addresses.len(), device.mtu), (Some(6000), 2, Some(1400)));
    assert_eq!((device.dns.len(), device.dns_search.len(), device.table), (1, 1, Table::Off));
    assert!(device.nested_allowed_ips);
    let mut ask = |values| world.ask(&Edit::SetDevice { link: link("wg9"), values });
    ask(DeviceValues { listen_port: Some(0), addresses: Some(BTreeSet::new()), mtu: Some(0), ..values(51) }).unwrap();
    let device = world.state.links[&link("wg9")].device.clone().unwrap();
    assert_eq!((device.listen_port, device.addresses.len(), device.mtu), (None, 0, None), "cleared by an empty value");
}

#[test]
fn nested_networks_obey_one_rule() {
    let mut world = Fixture::new();
    let overlap = |net: &str, peer, other: &str, holder| {
        let (net, other) = (net.parse().unwrap(), other.parse().unwrap());
        Err(Conflict::Overlap { net, peer: key(peer), other, holder: key(holder) })
    };
    assert_eq!(world.ask(&set("wg0", 1, &["10.0.7.9/32"])), overlap("10.0.7.9/32", 1, "10.0.7.0/24", 7));
    assert_eq!(world.ask(&set("wg0", 1, &["10.0.0.0/16"])), overlap("10.0.0.0/16", 1, "10.0.7.0/24", 7));
    let mut file = on_declared(&world);
    file.insert(key(1), Arc::new(ApiStatePeer { allowed_ips: nets(&["10.0.7.9/32"]), ..Default::default() }));
    let sync = |peers| Edit::SetPeers { link: link("wg0"), peers, own: OwnValues::default() };
    assert_eq!(world.ask(&sync(file.clone())), overlap("10.0.7.9/32", 1, "10.0.7.0/24", 7));
    // What a release before this rule has accepted stays, and may be sent again.
    world.state.links.entry(link("wg0")).or_default().peers.insert(key(1), file[&key(1)].clone());
    world.derive();
    world.ask(&sync(file)).unwrap();
    world.ask(&set("wg0", 1, &["10.0.7.9/32", "10.0.9.0/24"])).unwrap();
    // With the flag, as in the configuration.
    let mut own = (**Fixture::new().config.own()).clone();
    own.interfaces[0].nested_allowed_ips = true;
    let mut world = Fixture::with(Effective::of(Arc::new(own)));
    world.ask(&set("wg0", 1, &["10.0.7.9/32"])).unwrap();
    world.ask(&Edit::SetDevice { link: link("wg9"), values: values(50) }).unwrap();
    world.ask(&set("wg9", 1, &["10.9.0.0/24"])).unwrap();
    assert_eq!(world.ask(&set("wg9", 2, &["10.9.0.2/32"])), overlap("10.9.0.2/32", 2, "10.9.0.0/24", 1));
    let nesting = DeviceValues { nested_allowed_ips: Some(true), ..values(50) };
    world.ask(&Edit::SetDevice { link: link("wg9"), values: nesting }).unwrap();
    world.ask(&set("wg9", 2, &["10.9.0.2/32"])).unwrap();
}

#[test]
fn undeclared_interface_is_refused_with_the_remedy() {
    let mut world = Fixture::new();
    world.observed.foreign.insert(link("wg8"));
    let (name, peer) = (link("wg8"), key(1));
    for edit in [
        set("wg8", 1, &[]),
        Edit::ChangePeer { link: name.clone(), peer, values: PeerValues::default() },
        Edit::RemovePeer { link: name.clone(), peer },
        Edit::SetPeers { link: name.clone(), peers: BTreeMap::new(), own: OwnValues::default() },
        Edit::SetDevice { link: name.clone(), values: values(50) },
        Edit::SetDown { link: name.clone(), down: true },
        Edit::DeleteLink { link: name.clone() },
    ] {
        assert_eq!(world.ask(&edit), Err(Conflict::NotDeclared(name.clone())), "{}", edit.describe());
    }
    let text = Conflict::NotDeclared(name).to_string();
    assert!(text.contains("[[interface]]") && text.contains("name = \"wg8\""), "{text}");
}

#[test]
fn network_is_not_taken_from_its_holder() {
    let mut world = Fixture::new();
    world.ask(&set("wg0", 1, &["10.0.1.0/24"])).unwrap();
    let net = "10.0.1.0/24".parse().unwrap();
    assert_eq!(world.ask(&set("wg0", 2, &["10.0.1.0/24"])), Err(Conflict::Held { net, holder: key(1) }));
    world.ask(&set("wg0", 1, &[])).unwrap();
    world.ask(&set("wg0", 2, &["10.0.1.0/24"])).unwrap();
    let net = "10.0.7.0/24".parse().unwrap();
    assert_eq!(world.ask(&set("wg0", 2, &["10.0.7.0/24"])), Err(Conflict::Held { net, holder: key(7) }));
}

#[test]
fn edit_cannot_change_what_another_source_declares() {
    let mut world = Fixture::new();
    let by = "the configuration";
    assert_eq!(world.ask(&set("wg0", 7, &[])), Err(Conflict::PeerDeclared { peer: key(7), by }));
    let remove = Edit::RemovePeer { link: link("wg0"), peer: key(7) };
    assert_eq!(world.ask(&remove), Err(Conflict::PeerDeclared { peer: key(7), by }));
    world.ask(&set("wg0", 7, &["10.0.7.0/24"])).expect("an edit that changes nothing is accepted");
    assert_eq!(world.state, ApiState::default());
    assert_eq!(world.ask(&set("wg1", 1, &[])), Err(Conflict::ObservedOnly(link("wg1"))));
    assert_eq!(world.ask(&set("wg2", 1, &[])), Err(Conflict::Granted(link("wg2"))));
    assert_eq!(world.ask(&set("wg9", 1, &[])), Err(Conflict::NoLink(link("wg9"))));
    let delete = Edit::DeleteLink { link: link("wg0") };
    assert_eq!(world.ask(&delete), Err(Conflict::LinkDeclared { link: link("wg0"), by }));
    assert_eq!(world.ask(&Edit::DeleteLink { link: link("wg9") }), Ok(()), "deleting is idempotent");
    let empty = Edit::SetPeers { link: link("wg0"), peers: BTreeMap::new(), own: OwnValues::default() };
    assert_eq!(world.ask(&empty), Err(Conflict::PeerDeclared { peer: key(7), by }));
}

#[test]
fn conflict_names_the_control_plane() {
    let control = "[node]\nid = \"edge-1\"\n[control]\nurl = \"https://c.example.net\"\n";
    let mut own = (**Fixture::new().config.own()).clone();
    own.control = Config::from_text(Some(("test", control)), []).unwrap().control;
    let peer = own.interfaces[0].peers.remove(0);
    let interface = InterfaceSettings {
        addresses: own.interfaces[0].addresses.clone(),
        peers: [(peer.public_key, peer)].into(),
        ..InterfaceSettings::inherited(own.interfaces[0].name.clone())
    };
    let document = DocumentSettings { interface: Some(interface), ..DocumentSettings::default() };
    let mut world = Fixture::with(Effective::of(Arc::new(own)).with_document(Some(document)));
    let by = "the control plane";
    assert_eq!(world.ask(&set("wg0", 7, &[])), Err(Conflict::PeerDeclared { peer: key(7), by }));
    let delete = Edit::DeleteLink { link: link("wg0") };
    assert_eq!(world.ask(&delete), Err(Conflict::LinkDeclared { link: link("wg0"), by }));
}

#[test]
fn interface_of_the_api_is_created_and_deleted() {
    let mut world = Fixture::new();
    let device = DeviceValues {
        listen_port: Some(6000),
        addresses: Some(["10.9.0.1/24".parse().unwrap()].into()),
        ..values(50)
    };
    world.ask(&Edit::SetDevice { link: link("wg9"), values: device.clone() }).unwrap();
    world.ask(&set("wg9", 1, &["10.9.0.2/32", "0.0.0.0/0"])).unwrap();
    let wanted = &world.desired.links[&link("wg9")];
    assert!(
        wanted.routes.is_empty(),
        "no route for a peer that the address covers, none for the default route: {:?}",
        wanted.routes
    );
    assert_eq!(
        (wanted.mtu, wanted.up, wanted.remove_unknown),
        (spoke_config::interface::DEFAULT_MTU, true, Some(true))
    );
    let own = device.private_key.public();
    let edit = Edit::SetPeer { link: link("wg9"), peer: own, values: PeerValues::default() };
    assert_eq!(world.ask(&edit), Err(Conflict::OwnKey(own)));
    world.ask(&Edit::SetDown { link: link("wg9"), down: true }).unwrap();
    assert!(!world.desired.links[&link("wg9")].up);
    world.ask(&Edit::DeleteLink { link: link("wg9") }).unwrap();
    assert!(!world.desired.links.contains_key(&link("wg9")) && world.state == ApiState::default());
}

#[test]
fn omitted_values_stay() {
    let mut world = Fixture::new();
    let psk = PresharedKey::from_bytes([3; 32]);
    let values = PeerValues { preshared_key: Some(psk.clone()), keepalive: Some(25), ..PeerValues::default() };
    world.ask(&Edit::SetPeer { link: link("wg0"), peer: key(1), values }).unwrap();
    let values = PeerValues { allowed_ips: Some(nets(&["10.0.1.1/32"])), ..PeerValues::default() };
    world.ask(&Edit::ChangePeer { link: link("wg0"), peer: key(1), values }).unwrap();
    let peer = &world.desired.links[&link("wg0")].peers[&key(1)];
    assert_eq!((&peer.preshared_key, peer.keepalive, peer.allowed_ips.len()), (&Some(psk), 25, 1));
    let absent = Edit::ChangePeer { link: link("wg0"), peer: key(2), values: PeerValues::default() };
    assert_eq!(world.ask(&absent), Err(Conflict::NoPeer(link("wg0"), key(2))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn edits_never_make_the_state_invalid(
        edits in proptest::collection::vec((0u8..5, 0u8..8, proptest::collection::vec(0u8..8, 0..3), 0usize..3), 1..25),
    ) {
        let mut world = Fixture::new();
        for (kind, peer, list, which) in edits {
            let list: Nets = list.iter().map(|n| format!("10.0.{n}.0/24").parse().unwrap()).collect();
            let name = link(["wg0", "wg8", "wg9"][which]);
            let peer_values = PeerValues { allowed_ips: Some(list.clone()), ..PeerValues::default() };
            let edit = match kind {
                0 => Edit::SetPeer { link: name, peer: key(peer), values: peer_values },
                1 => Edit::ChangePeer { link: name, peer: key(peer), values: peer_values },
                2 => Edit::RemovePeer { link: name, peer: key(peer) },
                3 => {
                    let peers = [(key(peer), Arc::new(ApiStatePeer { allowed_ips: list, ..Default::default() }))].into();
                    Edit::SetPeers { link: name, peers, own: OwnValues::default() }
                }
                _ => Edit::SetDevice { link: name, values: values(peer + 30) },
            };
            // `Fixture::ask` derives, and panics if that fails.
            let _ = world.ask(&edit);
        }
    }
}
