//! Invariants of `derive`: for any configuration and facts, the desired state is one that the kernel can have.
use crate::world::{name, net, peer_key, secret};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use spoke_config::Config;
use spoke_config::effective::{DocumentSettings, Effective, InterfaceSettings};
use spoke_model::key::PresharedKey;
use spoke_net::api_state::{ApiState, ApiStateLink, ApiStatePeer, Device, Table};
use spoke_net::derive::{Admitted, Facts, HubPeer, Keys, UplinkChoice, derive};
use spoke_net::state::{Desired, Endpoint};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

const NETS: [&str; 6] = ["10.8.0.1/32", "10.8.0.0/24", "10.9.0.0/16", "10.9.7.0/24", "0.0.0.0/0", "fd00:8::/64"];

fn any_nets() -> impl Strategy<Value = BTreeSet<&'static str>> {
    btree_set(0..NETS.len(), 0..3).prop_map(|all| all.into_iter().map(|i| NETS[i]).collect())
}

/// A configuration of two hubs and some peers on `wg0`, with node ids.
fn text(peers: &[(u8, BTreeSet<&'static str>)], nft: bool, hubs: &[BTreeSet<&'static str>; 2]) -> String {
    let list = |nets: &BTreeSet<&str>| nets.iter().map(|n| format!("\"{n}\"")).collect::<Vec<_>>().join(",");
    let mut text = format!(
        "[[interface]]\nname = \"wg0\"\nnested_allowed_ips = true\ntable = 1000\naddresses = [\"10.8.0.9/24\"]\n{}",
        if nft { "access = \"nft\"\n" } else { "" }
    );
    for (key, nets) in peers {
        let _ = write!(
            text,
            "[[interface.peer]]\npublic_key = \"{}\"\nnode_id = \"node-{key}\"\nallowed_ips = [{}]\n",
            peer_key(*key),
            list(nets)
        );
    }
    let _ = writeln!(text, "[uplink]\ninterface = \"wg0\"");
    for (i, nets) in hubs.iter().enumerate() {
        let mut nets = nets.clone();
        nets.insert("10.8.0.1/32");
        let _ = write!(
            text,
            "[[uplink.hub]]\nname = \"hub{i}\"\npublic_key = \"{}\"\nendpoint = \"192.0.2.{i}:51820\"\naddress = \"10.8.0.1\"\nallowed_ips = [{}]\n",
            peer_key(50 + u8::try_from(i).unwrap()),
            list(&nets)
        );
    }
    text
}

/// An interface set over the API: whether its device is set as well, and its peers with their networks.
type Set = (bool, Vec<(u8, BTreeSet<&'static str>)>);

fn api_state(links: &[Set]) -> ApiState {
    let one = |(i, (device, peers)): (usize, &Set)| {
        let device = device.then(|| {
            Arc::new(Device {
                private_key: secret(100),
                listen_port: None,
                fwmark: 0,
                addresses: [net("10.77.0.1/24")].into(),
                mtu: None,
                dns: Vec::new(),
                dns_search: Vec::new(),
                table: Table::Auto,
                nested_allowed_ips: false,
            })
        });
        let peers = peers.iter().map(|(key, nets)| {
            let allowed_ips = nets.iter().map(|n| net(n)).collect();
            (peer_key(*key), Arc::new(ApiStatePeer { allowed_ips, ..ApiStatePeer::default() }))
        });
        (name(&format!("wg{i}")), ApiStateLink { device, down: false, peers: peers.collect() })
    };
    ApiState { links: links.iter().enumerate().map(one).collect() }
}

proptest! {
    #[test]
    fn networks_are_unique_and_routes_have_a_peer(
        peers in btree_map(0u8..5, any_nets(), 0..4),
        nft: bool,
        admitted in btree_set(0u8..5, 0..4),
        hubs in [any_nets(), any_nets()],
        standby: bool,
        set in vec((any::<bool>(), vec((0u8..60, any_nets()), 0..3)), 0..3),
    ) {
        let peers: Vec<_> = peers.into_iter().collect();
        let text = text(&peers, nft, &hubs);
        // An invalid configuration never reaches `derive`.
        let Ok(config) = Config::from_text(Some(("spoke.toml", &text)), []) else { return Ok(()) };
        let config = Effective::of(Arc::new(config));
        let uplink = config.uplink().unwrap();
        let hub = |i: usize| HubPeer {
            hub: Arc::new(uplink.hubs[i].clone()),
            endpoint: Some(Endpoint { addr: ([192, 0, 2, 1], 51820).into(), attempt: 0 }),
        };
        let choice = UplinkChoice {
            interface: name("wg0"), active: hub(1), standby: standby.then(|| hub(0)), port_epoch: 0, rebuild: 0,
        };
        let granted = admitted.iter().map(|k| (format!("node-{k}").parse().unwrap(), peer_key(*k))).collect();
        let facts = Facts {
            keys: Arc::new(Keys { private: [(name("wg0"), secret(9))].into(), ..Keys::default() }),
            uplink: Some(Arc::new(choice)),
            admitted: Arc::new(Admitted(granted)),
            api_state: Arc::new(api_state(&set)),
            ..Facts::default()
        };
        let last = Desired::default();
        let Ok(desired) = derive(&config, &facts, &last) else { return Ok(()) };
        for (link_name, link) in &desired.links {
            let mut seen = BTreeSet::new();
            for (key, peer) in &link.peers {
                prop_assert_ne!(*key, link.private_key.public());
                for net in &peer.allowed_ips {
                    prop_assert_eq!(net.trunc(), *net);
                    prop_assert!(seen.insert(*net), "{} is held by two peers on {}", net, link_name);
                }
            }
            prop_assert!(link.routes.iter().all(|r| seen.contains(&r.to)), "a route without a peer");
        }
        // The hub is a peer whatever the grants.
        prop_assert!(desired.links[&name("wg0")].peers.contains_key(&config.hubs()[1].public_key));
        // With `access = "nft"` every peer except the hubs needs a grant.
        let wg0 = &desired.links[&name("wg0")];
        if nft {
            for key in wg0.peers.keys().filter(|k| **k != peer_key(50) && **k != peer_key(51)) {
                prop_assert!(admitted.iter().any(|a| peer_key(*a) == *key), "{:?} was not granted", key);
            }
        }
        // Derived again, the state is equal, generation included.
        prop_assert_eq!(derive(&config, &facts, &desired).unwrap(), desired);
    }
}

#[test]
fn preshared_key_of_the_document_follows_the_private_key() {
    let psk = |n: u8| PresharedKey::from_bytes([n; 32]);
    let text = "[node]\nid = \"edge-1\"\n[control]\nurl = \"https://c.example.net:8443\"\n";
    let own = Arc::new(Config::from_text(Some(("spoke.toml", text)), []).unwrap());
    let hub: spoke_config::uplink::Hub = {
        let text = format!(
            "[[interface]]\nname = \"wg0\"\naddresses = [\"10.8.0.2/24\"]\n[uplink]\ninterface = \"wg0\"\n[[uplink.hub]]\nname = \"gate\"\npublic_key = \"{}\"\nendpoint = \"192.0.2.1:51820\"\naddress = \"10.8.0.1\"\nallowed_ips = [\"10.8.0.0/16\"]\n",
            peer_key(50)
        );
        Config::from_text(Some(("spoke.toml", &text)), []).unwrap().uplink.unwrap().hubs[0].clone()
    };
    let mut settings = InterfaceSettings::inherited(name("wg0"));
    settings.hubs = vec![hub.clone()];
    settings.preshared.of_hubs = (1..3).map(|n| ((secret(n).public(), peer_key(50)), psk(n))).collect();
    let document = DocumentSettings { interface: Some(settings), ..DocumentSettings::default() };
    let config = Effective::of(own).with_document(Some(document));
    let active = HubPeer { hub: Arc::new(hub), endpoint: None };
    let choice = UplinkChoice { interface: name("wg0"), active, standby: None, port_epoch: 0, rebuild: 0 };
    let set = |n: u8| {
        let keys = Keys { private: [(name("wg0"), secret(n))].into(), ..Keys::default() };
        let facts = Facts { keys: Arc::new(keys), uplink: Some(Arc::new(choice.clone())), ..Facts::default() };
        let desired = derive(&config, &facts, &Desired::default()).unwrap();
        desired.links[&name("wg0")].peers[&peer_key(50)].preshared_key.clone()
    };
    assert_eq!([set(1), set(2), set(3)], [Some(psk(1)), Some(psk(2)), None]);
    let shown = serde_json::to_string(&config).unwrap() + &format!("{config:?}");
    assert!(!shown.contains(&psk(1).reveal_base64()[..8]), "{shown}");
}
