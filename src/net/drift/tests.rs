//! Drift agrees with the plan, and the report has its documented shape.
use super::super::plan::plan;
use super::super::state::Memory;
use super::*;
use proptest::prelude::*;
use spoke_config::interface::DriftPolicy;
use spoke_model::key::SecretKey;

fn peer_strategy() -> impl Strategy<Value = (u8, Option<u8>, u16)> {
    (0u8..4, proptest::option::of(0u8..2), 0u16..3)
}

fn nets_of(n: u8) -> Nets {
    (0..n).map(|i| format!("10.{n}.{i}.0/24").parse().unwrap()).collect()
}

fn wanted(peers: &BTreeMap<u8, (u8, Option<u8>, u16)>) -> Desired {
    let peers = peers.iter().map(|(id, (nets, psk, keepalive))| {
        let peer = Peer {
            preshared_key: psk.map(|b| PresharedKey::from_bytes([b; 32])),
            allowed_ips: nets_of(*nets),
            keepalive: *keepalive,
            ..Peer::default()
        };
        (PublicKey([*id; 32]), peer)
    });
    let link = Link {
        private_key: SecretKey::clamped([9; 32]),
        listen_port: ListenPort::Fixed(1),
        fwmark: 0,
        mtu: 1280,
        defaults: (false, false),
        addresses: BTreeSet::new(),
        peers: peers.collect(),
        routes: BTreeSet::new(),
        up: true,
        policy: DriftPolicy::Enforce,
        remove_unknown: Some(true),
        dns: Vec::new(),
        rebuild: 0,
        port_fallback: false,
    };
    Desired { generation: 1, links: [("wg0".parse().unwrap(), link)].into(), ..Desired::default() }
}

fn observed(peers: &BTreeMap<u8, (u8, Option<u8>, u16)>) -> Observed {
    let peers = peers.iter().map(|(id, (nets, psk, keepalive))| {
        let peer = ObservedPeer {
            preshared_key: psk.map(|b| PresharedKey::from_bytes([b; 32])),
            allowed_ips: nets_of(*nets),
            keepalive: *keepalive,
            endpoint: Some("192.0.2.1:1".parse().unwrap()),
            ..ObservedPeer::default()
        };
        (PublicKey([*id; 32]), peer)
    });
    let link = ObservedLink {
        wireguard: true,
        up: true,
        mtu: 1280,
        public_key: Some(SecretKey::clamped([9; 32]).public()),
        listen_port: 1,
        peers: peers.collect(),
        ..ObservedLink::default()
    };
    Observed { links: [("wg0".parse().unwrap(), link)].into(), ..Observed::default() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_difference_has_a_step(
        want in proptest::collection::btree_map(0u8..6, peer_strategy(), 0..6),
        have in proptest::collection::btree_map(0u8..6, peer_strategy(), 0..6),
    ) {
        let (desired, observed) = (wanted(&want), observed(&have));
        let report = report(&desired, &observed, &Names::new(), None, Wall(0));
        let steps = plan(&desired, &observed, &Memory::default()).steps;
        prop_assert_eq!(report.summary.total_issues, steps.len(), "{:?} {:?}", report, steps);
        prop_assert_eq!(report.has_drift, want != have);
    }
}

#[test]
fn report_has_the_documented_shape() {
    let want = wanted(&[(1, (1, Some(7), 25)), (2, (1, None, 0))].into());
    let have = observed(&[(1, (2, None, 0)), (3, (0, None, 0))].into());
    let names = [(PublicKey([1; 32]), "laptop".to_owned())].into();
    let text = serde_json::to_value(report(&want, &have, &names, Some("edge-1".into()), Wall(0))).unwrap();
    let counts = serde_json::json!({"unknown_count": 1, "missing_count": 1, "mismatched_count": 1, "total_issues": 3});
    assert_eq!(text["summary"], counts);
    assert_eq!(text["unknown_peers"][0]["endpoint"], "192.0.2.1:1");
    assert_eq!(text["missing_peers"][0]["allowed_ips"][0], "10.1.0.0/24");
    let differs = &text["mismatched_peers"][0];
    assert_eq!((&differs["name"], differs["mismatches"].as_array().unwrap().len()), (&"laptop".into(), 3));
    assert_eq!(differs["mismatches"][0]["expected"], serde_json::json!(["10.1.0.0/24"]));
    let psk = &differs["mismatches"][2];
    assert!(psk["expected"].as_str().unwrap().starts_with("sha256:") && psk["actual"].is_null());
    let secret = PresharedKey::from_bytes([7; 32]).reveal_base64();
    assert!(!text.to_string().contains(secret.as_str()));
}
