//! What a state document sets on this device, and whether the device can follow it. Pure.
use super::bounds::check_bounds;
use super::document::{Incompatible, StateDocument, WantedHub, WantedInterface, WantedPeer};
use ipnet::IpNet;
use spoke_config::Config;
use spoke_config::effective::{DocumentSettings, InterfaceSettings, PairKeys};
use spoke_config::interface::{Access, Peer};
use spoke_config::node::Role;
use spoke_config::uplink::Hub;
use spoke_model::address::{Cidr, IfAddress};
use spoke_model::interface_name::IfName;
use spoke_model::release::WantedRelease;

/// What `document` sets; its first interface is the device's `control.interface`, whatever name the document gives it.
pub fn settings(own: &Config, document: &StateDocument) -> DocumentSettings {
    let name = own.control.as_ref().map(|c| &c.interface);
    DocumentSettings {
        interface: name.zip(document.interfaces.first()).map(|(name, wanted)| interface(own, name.clone(), wanted)),
        grants: document.grants.as_ref().and_then(|policy| policy.read_stored(own.node.role)),
        release: document.release.clone().map(|r| WantedRelease { rollout: document.rollout, ..r }),
    }
}

/// Whether a device with the configuration `own` can follow `document`. `enrolled`: the networks of the Internet that the first
/// state of its enrolment used, which bound a later one where `own` names no bound.
pub fn check_compatible(
    own: &Config,
    document: &StateDocument,
    enrolled: Option<&[IpNet]>,
) -> Result<(), Incompatible> {
    if document.role != own.node.role {
        return Err(Incompatible::Role(document.role));
    }
    let peers = document.interfaces.iter().flat_map(|i| &i.peers);
    let own_hub = |peer: &WantedPeer| {
        own.uplink.iter().flat_map(|u| &u.hubs).find(|h| h.public_key == peer.public_key).map(|h| h.name.clone())
    };
    if let Some(hub) = peers.into_iter().find_map(own_hub) {
        return Err(Incompatible::OwnHub(hub));
    }
    if let Some(control) = &own.control {
        check_bounds(control, document, enrolled)?;
    }
    let nft = own.interfaces.iter().find(|i| i.access == Access::Nft);
    match (nft, &own.grants, &document.grants) {
        (Some(interface), None, None) => Err(Incompatible::NoContract(interface.name.clone())),
        _ => Ok(()),
    }
}

fn interface(own: &Config, name: IfName, wanted: &WantedInterface) -> InterfaceSettings {
    InterfaceSettings {
        name,
        addresses: wanted.addresses.iter().map(|a| IfAddress(*a)).collect(),
        listen_port: wanted.listen_port,
        mtu: wanted.mtu,
        dns: wanted.dns.clone(),
        // Only hubs forward, whatever the document says; the role is the device's own.
        forwarding: wanted.forwarding && own.node.role == Role::Hub,
        hubs: wanted.hubs.iter().map(hub).collect(),
        peers: wanted.peers.iter().map(|p| (p.public_key, peer(p))).collect(),
        overrides: wanted.overrides.clone(),
        preshared: PairKeys {
            of_peers: wanted
                .peers
                .iter()
                .filter_map(|p| Some((p.public_key, p.preshared_key.as_ref()?.0.clone())))
                .collect(),
            of_hubs: wanted
                .hubs
                .iter()
                .flat_map(|h| {
                    h.preshared_keys.iter().map(|p| ((p.public_key, h.public_key), p.preshared_key.0.clone()))
                })
                .collect(),
        },
    }
}

fn hub(hub: &WantedHub) -> Hub {
    Hub {
        name: hub.node_id.to_string(),
        public_key: hub.public_key,
        preshared_key: None,
        endpoint: hub.endpoint.clone(),
        address: hub.address,
        allowed_ips: hub.allowed_ips.iter().map(|n| Cidr(*n)).collect(),
        keepalive: hub.keepalive,
    }
}

fn peer(peer: &WantedPeer) -> Peer {
    Peer {
        name: None,
        node_id: Some(peer.node_id.clone()),
        public_key: peer.public_key,
        preshared_key: None,
        allowed_ips: peer.allowed_ips.iter().map(|n| Cidr(*n)).collect(),
        endpoint: None,
        keepalive: peer.keepalive,
        isolated: peer.isolated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spoke_config::effective::Effective;
    use spoke_model::key::PublicKey;
    use std::sync::Arc;

    fn own() -> Arc<Config> {
        let text = "[node]\nid = \"edge-1\"\n[control]\nurl = \"https://c.example.net:8443\"\n";
        Arc::new(Config::from_text(Some(("x", text)), []).unwrap())
    }

    fn document(hubs: usize, peers: u8) -> StateDocument {
        let hub = |n: usize| {
            serde_json::json!({"node_id": format!("hub-{n}"), "public_key": PublicKey([100 + n as u8; 32]),
            "endpoint": "192.0.2.1:51820", "address": "10.8.0.1", "allowed_ips": ["10.8.0.1/32"], "keepalive": 25})
        };
        let peer = |n: u8| {
            serde_json::json!({"node_id": format!("n-{n}"), "public_key": PublicKey([n; 32]),
            "allowed_ips": [format!("10.8.1.{n}/32")]})
        };
        serde_json::from_value(serde_json::json!({"version": 1, "node_id": "edge-1", "generation": 3, "role": "node",
            "signing_keys": [], "interfaces": [{"name": "wg7", "addresses": ["10.8.0.5/16"], "mtu": 1380,
            "hubs": (0..hubs).map(hub).collect::<Vec<_>>(), "peers": (1..=peers).map(peer).collect::<Vec<_>>()}]}))
        .unwrap()
    }

    fn effective(own: &Arc<Config>, document: &StateDocument) -> Effective {
        Effective::of(own.clone()).with_document(Some(settings(own, document)))
    }

    #[test]
    fn control_interface_needs_no_configuration() {
        let own = own();
        assert_eq!(
            own.interfaces.len(),
            1,
            "it exists before the node is enrolled, because its key is what is enrolled"
        );
        let effective = effective(&own, &document(1, 0));
        let link = effective.interfaces().next().unwrap();
        assert_eq!((link.own().name.as_str(), link.mtu()), ("wg0", 1380), "the node names its interface");
        assert_eq!(link.addresses()[0].0.to_string(), "10.8.0.5/16");
        let uplink = effective.uplink().unwrap();
        assert_eq!((uplink.interface.as_str(), uplink.hubs[0].name.as_str()), ("wg0", "hub-0"));
    }

    #[test]
    fn hub_gets_peers_and_no_uplink() {
        let effective = effective(&own(), &document(0, 3));
        assert_eq!((effective.uplink(), effective.uplink_interface()), (None, None));
        assert_eq!(effective.interfaces().next().unwrap().peers().count(), 3);
    }

    #[test]
    fn peer_does_not_take_the_place_of_a_configured_hub() {
        let load = |n: u8| {
            let text = format!(
                "[node]\nid = \"edge-1\"\n[control]\nurl = \"https://c.example.net\"\n[[interface]]\nname = \"wg0\"\naddresses = [\"10.8.0.5/16\"]\n[uplink]\ninterface = \"wg0\"\n[[uplink.hub]]\nname = \"gate\"\npublic_key = \"{}\"\nendpoint = \"192.0.2.1:51820\"\naddress = \"10.8.0.1\"\nallowed_ips = [\"10.8.0.0/16\"]\n",
                PublicKey([n; 32])
            );
            Config::from_text(Some(("x", &text)), []).unwrap()
        };
        let refused = check_compatible(&load(2), &document(0, 3), None);
        assert_eq!(refused, Err(Incompatible::OwnHub("gate".into())));
        assert_eq!(check_compatible(&load(9), &document(0, 3), None), Ok(()), "another key");
    }

    #[test]
    fn documents_stay_within_the_bounds_of_the_device() {
        let load = |bounds: &str| {
            let text = format!("[node]\nid = \"edge-1\"\n[control]\nurl = \"https://c.example.net\"\n{bounds}\n");
            Config::from_text(Some(("x", &text)), []).unwrap()
        };
        let bounded = load("allow_networks = [\"10.8.0.0/16\", \"fd00:8::/48\"]");
        assert_eq!(check_compatible(&bounded, &document(2, 3), None), Ok(()));
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let refused = |change: &dyn Fn(&mut WantedInterface)| {
            let mut document = document(1, 1);
            change(&mut document.interfaces[0]);
            assert_eq!(check_compatible(&load(""), &document, None), Ok(()), "without a bound");
            check_compatible(&bounded, &document, None).unwrap_err()
        };
        for lan in ["192.168.1.0/24", "0.0.0.0/0", "10.0.0.0/8", "::/0"].map(net) {
            let outside = Incompatible::Network(lan);
            assert_eq!(refused(&|i| i.hubs[0].allowed_ips.push(lan)), outside);
            assert_eq!(refused(&|i| i.peers[0].allowed_ips = vec![lan]), outside);
            assert_eq!(refused(&|i| i.overrides.endpoint_allowed_ips = Some([lan].into())), outside);
            assert_eq!(refused(&|i| i.addresses.push(lan)), outside);
        }
        assert_eq!(
            refused(&|i| i.hubs[0].address = "192.168.1.1".parse().unwrap()),
            Incompatible::Network(net("192.168.1.1/32"))
        );
        let key = |n: u8| format!("hub_keys = [\"{}\"]", PublicKey([n; 32]));
        assert_eq!(check_compatible(&load(&key(100)), &document(1, 0), None), Ok(()));
        let other = check_compatible(&load(&key(7)), &document(1, 0), None).unwrap_err().to_string();
        assert!(other.contains("hub-0") && other.contains("control.hub_keys"), "{other}");
        let faults = Config::from_text(
            Some((
                "x",
                "[node]\nid = \"e\"\n[control]\nurl = \"https://c.example.net\"\nhub_keys = []\nallow_networks = []\n",
            )),
            [],
        );
        assert_eq!(faults.unwrap_err().0.len(), 2);
    }

    #[test]
    fn state_adds_no_network_of_the_internet_to_those_of_the_enrolment() {
        let load = |bounds: &str| {
            let text = format!("[node]\nid = \"edge-1\"\n[control]\nurl = \"https://c.example.net\"\n{bounds}\n");
            Config::from_text(Some(("x", &text)), []).unwrap()
        };
        let with = |nets: &[&str]| {
            let mut changed = document(1, 1);
            changed.interfaces[0].hubs[0].allowed_ips.extend(nets.iter().map(|n| n.parse::<IpNet>().unwrap()));
            changed
        };
        let mut enrolled = crate::identity::tests::enrolment();
        enrolled.bound_networks(&with(&["8.8.8.0/24", "192.168.0.0/16"]));
        let check = |own: &Config, nets: &[&str]| check_compatible(own, &with(nets), enrolled.networks.as_deref());
        // The fleet may renumber and grow, and what the enrolment had comes and goes.
        for fine in ["172.20.0.0/16", "10.0.0.0/8", "100.64.1.0/24", "fd00:8::/48", "8.8.8.0/24", "8.8.8.8/32"] {
            assert_eq!(check(&load(""), &[fine]), Ok(()), "{fine}");
        }
        for other in ["0.0.0.0/0", "::/0", "1.1.1.1/32", "8.8.0.0/16", "2606:4700::/32", "8.0.0.0/5"] {
            assert_eq!(check(&load(""), &[other]), Err(Incompatible::NewNetwork(other.parse().unwrap())));
            assert_eq!(check(&load(&format!("allow_networks = [\"{other}\", \"10.8.0.0/16\"]")), &[other]), Ok(()));
        }
        // A later state does not widen it.
        enrolled.bound_networks(&with(&["0.0.0.0/0"]));
        assert_eq!(enrolled.networks, Some(vec!["8.8.8.0/24".parse().unwrap()]));
    }

    #[test]
    fn document_does_not_make_a_node_forward() {
        let mut open = document(0, 1);
        open.interfaces[0].forwarding = true;
        for (role, expected) in [("node", false), ("hub", true)] {
            let text = format!(
                "[node]\nid = \"edge-1\"\nrole = \"{role}\"\n[control]\nurl = \"https://c.example.net\"\n[[interface]]\nname = \"wg0\"\nlisten_port = 51820\n"
            );
            let own = Config::from_text(Some(("x", &text)), []).unwrap();
            assert_eq!(settings(&own, &open).interface.unwrap().forwarding, expected, "{role}");
        }
    }

    #[test]
    fn own_grants_win_as_a_whole() {
        let section = |n: u8| {
            let contract = "0".repeat(39) + &n.to_string();
            format!("contract = \"0x{contract}\"\nchain_id = {n}\nendpoints = [\"http://{n}.example.net\"]\n")
        };
        let load = |more: &str| {
            let text = format!(
                "[node]\nid = \"hub-1\"\nrole = \"hub\"\n[control]\nurl = \"https://c.example.net\"\n[[interface]]\nname = \"wg0\"\nlisten_port = 51820\naccess = \"nft\"\n{more}"
            );
            Arc::new(Config::from_text(Some(("x", &text)), []).unwrap())
        };
        let (without, with) = (load(""), load(&format!("[grants]\n{}", section(1))));
        let bare = StateDocument { role: Role::Hub, ..document(0, 3) };
        let policy = spoke_config::policy::GrantsPolicy::from_toml(&section(2)).unwrap();
        let naming = StateDocument { grants: Some(policy), ..bare.clone() };
        let chain = |own: &Arc<Config>, document: &StateDocument| {
            assert_eq!(check_compatible(own, document, None), Ok(()));
            effective(own, document).grants().map(|g| (g.chain_id, g.endpoints.len(), g.poll.as_secs()))
        };
        assert_eq!(chain(&without, &naming), Some((2, 1, 5)));
        assert_eq!(chain(&with, &naming), Some((1, 1, 5)));
        assert_eq!(chain(&with, &bare), Some((1, 1, 5)));
        assert_eq!(chain(&own(), &document(0, 3)), None, "no interface has access by NFT");
        let why = check_compatible(&without, &bare, None).unwrap_err().to_string();
        assert!(why.contains("wg0") && why.contains("grants policy") && why.contains("[grants]"), "{why}");
        let why = check_compatible(&own(), &bare, None).unwrap_err().to_string();
        assert_eq!(why, "the document is for a hub: set node.role = \"hub\", or enrol under another name");
    }
}
