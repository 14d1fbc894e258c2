//! Networks that would take the tunnel's own packets, and a hub's address that is ours, on every path into the state.
use crate::api_state::{ApiState, ApiStateLink, ApiStatePeer};
use crate::derive::{DeriveError, Endpoint, Facts, HubPeer, Keys, UplinkChoice, derive};
use crate::state::Desired;
use spoke_config::Config;
use spoke_config::effective::{DocumentSettings, Effective, InterfaceSettings};
use spoke_config::overrides::Overrides;
use spoke_model::key::{PublicKey, SecretKey};
use std::sync::Arc;

/// A node whose hub is a name; `interface`: further lines of its interface.
fn config(allowed_ips: &str, interface: &str) -> Config {
    let text = format!(
        "[node]\nid = \"edge-1\"\n[control]\nurl = \"https://c.example.net:8443\"\n\
         [[interface]]\nname = \"wg0\"\naddresses = [\"10.8.0.2/24\"]\n{interface}\n\
         [uplink]\ninterface = \"wg0\"\n[[uplink.hub]]\nname = \"hub-a\"\n\
         public_key = \"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\"\nendpoint = \"hub.example.net:51820\"\n\
         address = \"10.8.0.1\"\nallowed_ips = {allowed_ips}\n"
    );
    Config::from_text(Some(("test", &text)), []).unwrap()
}

/// The facts, with the hub's name resolved to `endpoint`.
fn facts(config: &Effective, endpoint: &str, api_peer: Option<&[&str]>) -> Facts {
    let hub = Arc::new(config.hubs()[0].clone());
    let endpoint = Some(Endpoint { addr: endpoint.parse().unwrap(), attempt: 0 });
    let choice = UplinkChoice {
        interface: "wg0".parse().unwrap(),
        active: HubPeer { hub, endpoint },
        standby: None,
        port_epoch: 0,
        rebuild: 0,
    };
    let private = [("wg0".parse().unwrap(), SecretKey::clamped([1; 32]))].into();
    let peers = api_peer.map(|nets| {
        let allowed_ips = nets.iter().map(|n| n.parse().unwrap()).collect();
        (PublicKey([9; 32]), Arc::new(ApiStatePeer { allowed_ips, ..ApiStatePeer::default() }))
    });
    let link = ApiStateLink { peers: peers.into_iter().collect(), ..ApiStateLink::default() };
    Facts {
        keys: Arc::new(Keys { private, ..Keys::default() }),
        uplink: Some(Arc::new(choice)),
        api_state: Arc::new(ApiState { links: [("wg0".parse().unwrap(), link)].into() }),
        ..Facts::default()
    }
}

fn refusal(config: &Effective, endpoint: &str, api_peer: Option<&[&str]>) -> Option<DeriveError> {
    derive(config, &facts(config, endpoint, api_peer), &Desired::default()).err()
}

const HUB: &str = "192.0.2.1:51820";

#[test]
fn network_that_holds_a_resolved_endpoint_is_refused() {
    let own = |allowed: &str, interface: &str| Effective::of(Arc::new(config(allowed, interface)));
    let captured = |r: Option<DeriveError>| matches!(r, Some(DeriveError::Captured { .. }));
    assert!(captured(refusal(&own("[\"0.0.0.0/1\", \"128.0.0.0/1\"]", ""), HUB, None)));
    assert!(captured(refusal(&own("[\"10.8.0.1/32\", \"192.0.0.0/16\"]", ""), HUB, None)));
    assert_eq!(refusal(&own("[\"10.8.0.1/32\", \"192.0.0.0/16\"]", ""), "198.51.100.1:51820", None), None);
    // The prefix of an address is routed into the tunnel, too.
    assert!(captured(refusal(&own("[\"10.8.0.0/24\"]", ""), "10.8.0.77:51820", None)));
    // Routes that the tunnel's packets do not follow.
    for interface in ["table = 100", "routes = false", "fwmark = 7"] {
        assert_eq!(refusal(&own("[\"10.8.0.1/32\", \"192.0.0.0/16\"]", interface), HUB, None), None, "{interface}");
    }
}

#[test]
fn api_peer_obeys_the_same_rules() {
    let own = Effective::of(Arc::new(config("[\"10.8.0.0/24\"]", "")));
    assert!(matches!(refusal(&own, HUB, Some(&["0.0.0.0/0"])), Some(DeriveError::DefaultRoute { .. })));
    assert!(matches!(refusal(&own, HUB, Some(&["192.0.2.0/24"])), Some(DeriveError::Captured { .. })));
    assert_eq!(refusal(&own, HUB, Some(&["10.9.0.0/24"])), None);
}

#[test]
fn document_and_override_obey_the_same_rules() {
    let own = config("[\"10.8.0.0/24\"]", "");
    let addresses = own.interfaces[0].addresses.clone();
    let with = |interface: InterfaceSettings| {
        let document = DocumentSettings { interface: Some(interface), ..DocumentSettings::default() };
        Effective::of(Arc::new(own.clone())).with_document(Some(document))
    };
    let base = InterfaceSettings { addresses, ..InterfaceSettings::inherited("wg0".parse().unwrap()) };
    let nets = ["192.0.2.0/24".parse().unwrap()].into();
    let overrides = Overrides { endpoint_allowed_ips: Some(nets), ..Overrides::default() };
    let overridden = with(InterfaceSettings { overrides, ..base.clone() });
    assert!(matches!(refusal(&overridden, HUB, None), Some(DeriveError::Captured { .. })));

    let mut hub = own.uplink.as_ref().unwrap().hubs[0].clone();
    hub.allowed_ips = vec!["192.0.2.0/24".parse().unwrap()];
    let moved = with(InterfaceSettings { hubs: vec![hub], ..base.clone() });
    assert!(matches!(refusal(&moved, HUB, None), Some(DeriveError::Captured { .. })));
    // Our own address, which would answer the echo.
    let mut hub = own.uplink.as_ref().unwrap().hubs[0].clone();
    hub.address = "10.8.0.2".parse().unwrap();
    let own_address = with(InterfaceSettings { hubs: vec![hub], ..base });
    assert!(matches!(refusal(&own_address, HUB, None), Some(DeriveError::OwnHubAddress { .. })));
}
