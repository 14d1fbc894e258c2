//! Effect of overrides on the derived interface.
use crate::derive::{Facts, HubPeer, Keys, UplinkChoice, derive};
use crate::state::{Desired, Link, ListenPort};
use spoke_config::Config;
use spoke_config::effective::{DocumentSettings, Effective, InterfaceSettings};
use spoke_config::interface::DEFAULT_MTU;
use spoke_config::overrides::Overrides;
use spoke_model::key::{PublicKey, SecretKey};
use std::collections::BTreeSet;
use std::sync::Arc;

const CONFIG: &str = r#"
[node]
id = "edge-1"
[control]
url = "https://c.example.net:8443"
[[interface]]
name = "wg0"
listen_port = 51820
mtu = 1400
dns = ["10.8.0.1"]
addresses = ["10.8.0.2/24"]
[[interface]]
name = "wg1"
listen_port = 51821
mtu = 1400
[uplink]
interface = "wg0"
[[uplink.hub]]
name = "hub-a"
public_key = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="
endpoint = "192.0.2.1:51820"
address = "10.8.0.1"
allowed_ips = ["10.8.0.1/32"]
"#;

/// `config` with a document that sets nothing but `overrides` on `wg0`.
fn overridden(config: Config, overrides: Overrides) -> Effective {
    let name = "wg0".parse().unwrap();
    let own = config.interfaces.iter().find(|i| i.name == name).unwrap();
    let addresses = own.addresses.clone();
    let interface = InterfaceSettings { addresses, overrides, ..InterfaceSettings::inherited(name) };
    let document = DocumentSettings { interface: Some(interface), ..DocumentSettings::default() };
    Effective::of(Arc::new(config)).with_document(Some(document))
}

fn derived(overrides: Overrides) -> (Link, Link, Vec<String>) {
    let config = Config::from_text(Some(("test", CONFIG)), []).unwrap();
    let names = ["wg0", "wg1"].map(|n| n.parse().unwrap());
    let private = names.iter().cloned().zip((1..).map(|b| SecretKey::clamped([b; 32]))).collect();
    let uplink = config.uplink.as_ref().unwrap();
    let choice = UplinkChoice {
        interface: uplink.interface.clone(),
        active: HubPeer { hub: Arc::new(uplink.hubs[0].clone()), endpoint: None },
        standby: None,
        port_epoch: 0,
        rebuild: 0,
    };
    let keys = Arc::new(Keys { private, ..Keys::default() });
    let facts = Facts { keys, uplink: Some(Arc::new(choice)), ..Facts::default() };
    let effective = overridden(config, overrides);
    let desired = derive(&effective, &facts, &Desired::default()).unwrap();
    let lines = effective.override_lines();
    (desired.links[&names[0]].clone(), desired.links[&names[1]].clone(), lines)
}

#[test]
fn null_inherits_and_zero_overrides() {
    let hub = PublicKey([7; 32]);
    let (inherited, other, lines) = derived(Overrides::default());
    assert_eq!((inherited.listen_port, inherited.mtu), (ListenPort::Fixed(51820), 1400));
    assert_eq!((inherited.dns.len(), inherited.peers[&hub].keepalive, lines.len()), (1, 25, 0));
    let zero = Overrides {
        listen_port: Some(0),
        dns: Some(Vec::new()),
        mtu: Some(0),
        keepalive: Some(0),
        endpoint_allowed_ips: Some(BTreeSet::new()),
    };
    let (zeroed, untouched, lines) = derived(zero);
    assert_eq!((zeroed.listen_port, zeroed.mtu), (ListenPort::Random { epoch: 0 }, DEFAULT_MTU));
    assert_eq!((zeroed.dns.len(), zeroed.peers[&hub].keepalive), (0, 0));
    let own = ["10.8.0.1/32".parse().unwrap()].into();
    assert_eq!(zeroed.peers[&hub].allowed_ips, own, "the hub itself stays reachable");
    assert_eq!(untouched, other, "only the interface that the control plane decides about");
    assert_eq!(
        lines,
        [
            "wg0: listen port random by override, instead of 51820",
            "wg0: mtu 1280 by override, instead of 1400",
            "wg0: keepalive off by override, instead of 25s",
            "wg0: dns none by override, instead of 10.8.0.1",
            "wg0: allowed-ips of the hub none by override, instead of 10.8.0.1/32",
        ]
    );
    let set = Overrides {
        listen_port: Some(6000),
        dns: Some(vec!["9.9.9.9".parse().unwrap()]),
        mtu: Some(1300),
        keepalive: Some(10),
        endpoint_allowed_ips: Some(["10.0.0.0/8".parse().unwrap()].into()),
    };
    assert_eq!(serde_json::from_str::<Overrides>(&serde_json::to_string(&set).unwrap()).unwrap(), set);
    let (link, ..) = derived(set);
    assert_eq!((link.listen_port, link.mtu, link.dns.len()), (ListenPort::Fixed(6000), 1300, 1));
    assert_eq!((link.peers[&hub].keepalive, link.routes.len()), (10, 1));
}

#[test]
fn mtu_too_small_for_ipv6_is_an_error() {
    let text = "[node]\nid = \"edge-1\"\n[control]\nurl = \"https://c.example.net\"\n\
                    [[interface]]\nname = \"wg0\"\nmtu = 1400\naddresses = [\"10.8.0.2/24\", \"fd00::2/64\"]\n";
    let config = Config::from_text(Some(("test", text)), []).unwrap();
    let private = [("wg0".parse().unwrap(), SecretKey::clamped([1; 32]))].into();
    let facts = Facts { keys: Arc::new(Keys { private, ..Keys::default() }), ..Facts::default() };
    for (mtu, good) in [(Some(1280), true), (Some(0), true), (None, true), (Some(1279), false)] {
        let config = overridden(config.clone(), Overrides { mtu, ..Overrides::default() });
        let derived = derive(&config, &facts, &Desired::default());
        assert_eq!(derived.is_ok(), good, "{mtu:?}: {:?}", derived.err());
    }
}

#[test]
fn invalid_override_is_refused() {
    assert!(Overrides { mtu: Some(100), ..Overrides::default() }.check().unwrap_err().to_string().contains("100"));
    let nets = ["10.0.0.1/8".parse().unwrap()].into();
    assert!(Overrides { endpoint_allowed_ips: Some(nets), ..Overrides::default() }.check().is_err());
    assert!(Overrides { dns: Some(vec![[9, 9, 9, 9].into(); 9]), ..Overrides::default() }.check().is_err());
    assert!(Overrides { mtu: Some(0), ..Overrides::default() }.check().is_ok());
}
