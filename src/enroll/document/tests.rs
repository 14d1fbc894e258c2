//! Forged, stale, misaddressed, oversize and damaged documents are refused, each with its own reason.
use super::*;
use proptest::prelude::*;

fn key(n: u8) -> SignKey {
    SignKey::from_seed(&[n; 32]).unwrap()
}

fn node() -> NodeId {
    "edge-1".parse().unwrap()
}

fn document() -> StateDocument {
    StateDocument {
        version: VERSION,
        node_id: node(),
        supersedes: None,
        generation: 7,
        role: Role::Node,
        signing_keys: vec![key(1).public()],
        interfaces: vec![WantedInterface {
            name: "wg0".parse().unwrap(),
            addresses: vec!["10.8.0.2/16".parse().unwrap()],
            listen_port: None,
            mtu: Some(1280),
            dns: vec![],
            hubs: vec![WantedHub {
                node_id: "hub-1".parse().unwrap(),
                public_key: PublicKey([1; 32]),
                endpoint: "hub.example.net:51820".parse().unwrap(),
                address: "10.8.0.1".parse().unwrap(),
                allowed_ips: vec!["10.8.0.0/16".parse().unwrap()],
                keepalive: 25,
                preshared_keys: vec![],
            }],
            peers: vec![],
            forwarding: false,
            next_key: None,
            overrides: Default::default(),
        }],
        release: Some(WantedRelease { version: "1.4.0".into(), source: None, rollout: Rollout::default() }),
        rollout: Rollout { renewed: 7, not_before: 1000, wait: 10 },
        grants: Some(policy(r#"["https://rpc.example.net/v2/KEY"]"#)),
    }
}

fn policy(endpoints: &str) -> GrantsPolicy {
    let text = format!(
        r#"{{"contract": "0x37d2106bADB01dd5bE1926e45D172Cb4203C4186", "chain_id": 8453, "endpoints": {endpoints}}}"#
    );
    serde_json::from_str(&text).unwrap()
}

fn bytes(document: &StateDocument, keys: &[SignKey]) -> Vec<u8> {
    serde_json::to_vec(&document.sign(keys).unwrap()).unwrap()
}

#[test]
fn debug_of_an_envelope_shows_no_document() {
    let shown = format!("{:?}", document().sign(&[key(1)]).unwrap());
    assert!(!shown.contains(document().node_id.as_str()) && shown.contains("signatures"), "{shown}");
}

#[test]
fn signed_document_reads_back() {
    let sent = bytes(&document(), &[key(1)]);
    let (envelope, read) = Envelope::open(&sent, &node(), &[key(1).public()]).unwrap();
    assert_eq!(read, document());
    assert_eq!(serde_json::to_vec(&envelope).unwrap(), sent, "the kept bytes are the sent bytes");
}

#[test]
fn each_fault_has_its_refusal() {
    let pinned = [key(1).public()];
    let open = |b: &[u8]| Envelope::open(b, &node(), &pinned).map(|(_, d)| d);
    let refused = open(&bytes(&document(), &[key(2)])).unwrap_err().to_string();
    assert!(
        refused.contains(&key(2).public().to_string()) && refused.contains(&key(1).public().to_string()),
        "{refused}"
    );
    assert!(matches!(open(&bytes(&document(), &[])), Err(Refusal::BadSignature { .. })), "no signature");
    let other = StateDocument { node_id: "edge-2".parse().unwrap(), ..document() };
    assert_eq!(open(&bytes(&other, &[key(1)])), Err(Refusal::WrongNode("edge-2".parse().unwrap())));
    let later = StateDocument { version: 2, ..document() };
    assert_eq!(open(&bytes(&later, &[key(1)])), Err(Refusal::Version(2)));
    assert!(matches!(open(b"{}"), Err(Refusal::Malformed(_))));
    assert!(matches!(open(b"\xff"), Err(Refusal::Malformed(_))));
    assert_eq!(open(&vec![b' '; MAX_BYTES + 1]), Err(Refusal::Oversize(MAX_BYTES + 1)));
    let mut twice = document();
    twice.interfaces.push(twice.interfaces[0].clone());
    assert!(matches!(open(&bytes(&twice, &[key(1)])), Err(Refusal::Invalid(p)) if p.contains("twice")));
    let release = Some(WantedRelease { version: "1 4".into(), source: None, rollout: Rollout::default() });
    let bad_version = StateDocument { release, ..document() };
    assert!(matches!(open(&bytes(&bad_version, &[key(1)])), Err(Refusal::Invalid(p)) if p.contains("release")));
    let grants = Some(policy("[]"));
    let no_endpoints = StateDocument { grants, ..document() };
    assert!(
        matches!(open(&bytes(&no_endpoints, &[key(1)])), Err(Refusal::Invalid(p)) if p.contains("grants.endpoints"))
    );
    let envelope: Envelope = serde_json::from_slice(&bytes(&no_endpoints, &[key(1)])).unwrap();
    assert_eq!(envelope.verify(&node(), &pinned), Ok(no_endpoints), "a stored one keeps its tunnel after an upgrade");
    let keyless = StateDocument { signing_keys: vec![], ..document() };
    assert!(matches!(open(&bytes(&keyless, &[key(1)])), Err(Refusal::Invalid(_))), "it would lock itself out");
}

#[test]
fn fields_of_later_versions_are_optional() {
    let bare = StateDocument { release: None, grants: None, ..document() };
    let text = String::from_utf8(bytes(&bare, &[key(1)])).unwrap();
    assert!(!text.contains("grants") && !text.contains("release"), "{text}");
    let (_, read) = Envelope::open(text.as_bytes(), &node(), &[key(1).public()]).unwrap();
    assert_eq!(read, bare);
}

#[test]
fn network_claimed_by_two_peers_is_refused() {
    let mut doc = document();
    for n in [2, 3] {
        doc.interfaces[0].peers.push(WantedPeer {
            node_id: format!("edge-{n}").parse().unwrap(),
            public_key: PublicKey([n; 32]),
            allowed_ips: vec!["10.8.0.9/32".parse().unwrap()],
            keepalive: 0,
            isolated: false,
            preshared_key: None,
        });
    }
    let refused = Envelope::open(&bytes(&doc, &[key(1)]), &node(), &[key(1).public()]);
    assert!(matches!(refused, Err(Refusal::Invalid(p)) if p.contains("10.8.0.9/32")));
}

#[test]
fn any_pinned_key_verifies_the_envelope() {
    let both = bytes(&document(), &[key(1), key(2)]);
    for pinned in [key(1), key(2)] {
        assert!(Envelope::open(&both, &node(), &[pinned.public()]).is_ok());
    }
    assert!(Envelope::open(&both, &node(), &[key(3).public()]).is_err());
}

#[test]
fn signature_without_the_domain_is_refused() {
    let mut envelope = document().sign(&[key(1)]).unwrap();
    envelope.signatures[0].signature = key(1).sign(envelope.document.get().as_bytes());
    assert!(matches!(envelope.verify(&node(), &[key(1).public()]), Err(Refusal::BadSignature { .. })));
}

proptest! {
    #[test]
    fn flipped_bit_never_verifies(at: prop::sample::Index, bit in 0u8..8) {
        let mut sent = bytes(&document(), &[key(1)]);
        let at = at.index(sent.len());
        sent[at] ^= 1 << bit;
        if let Ok((_, read)) = Envelope::open(&sent, &node(), &[key(1).public()]) {
            prop_assert_eq!(read, document());
        }
    }

    #[test]
    fn any_bytes_never_panic(junk: Vec<u8>) {
        let _ = Envelope::open(&junk, &node(), &[key(1).public()]);
    }
}

#[test]
fn generation_rises_in_bounded_steps_and_can_be_taken_back() {
    let at = |generation, supersedes| StateDocument { generation, supersedes, ..document() };
    let leap = |got, have| Err(Refusal::Leap { got, have });
    let older = |got, have| Err(Refusal::Older { got, have });
    assert_eq!(at(u64::MAX, None).check_generation(5), leap(u64::MAX, 5));
    assert_eq!(at(u64::MAX, None).check_generation(0), leap(u64::MAX, 0), "nor as the first one");
    assert_eq!(at(5 + MAX_STEP, None).check_generation(5), Ok(()));
    assert_eq!(at(5 + MAX_STEP + 1, None).check_generation(5), leap(6 + MAX_STEP, 5));
    assert_eq!(at(3_000_000, None).check_generation(0), Ok(()), "of a control plane restored three times");
    assert_eq!(at(u64::MAX, None).check_generation(u64::MAX - 1), Ok(()), "the last one");
    // The way back names exactly what it replaces.
    assert_eq!(at(7, None).check_generation(u64::MAX), older(7, u64::MAX));
    assert_eq!(at(7, Some(u64::MAX)).check_generation(u64::MAX), Ok(()));
    assert_eq!(at(7, Some(u64::MAX)).check_generation(9), older(7, 9), "a replay after it was taken back");
    assert_eq!(at(7, Some(7)).check_generation(7), older(7, 7));
    assert_eq!(at(0, Some(0)).check_generation(0), older(0, 0));
}

#[test]
fn preshared_keys_are_sent_and_never_shown() {
    let psk = |n: u8| SentPresharedKey(PresharedKey::from_bytes([n; 32]));
    let mut doc = document();
    doc.interfaces[0].hubs[0].preshared_keys =
        vec![WantedPair { public_key: PublicKey([9; 32]), preshared_key: psk(200) }];
    doc.interfaces[0].peers.push(WantedPeer {
        node_id: "edge-2".parse().unwrap(),
        public_key: PublicKey([2; 32]),
        allowed_ips: vec!["10.8.0.9/32".parse().unwrap()],
        keepalive: 0,
        isolated: false,
        preshared_key: Some(psk(201)),
    });
    let sent = bytes(&doc, &[key(1)]);
    assert_eq!(Envelope::open(&sent, &node(), &[key(1).public()]).unwrap().1, doc);
    let shown = format!("{doc:?}");
    for n in [200, 201] {
        let text = psk(n).0.reveal_base64().to_string();
        assert!(String::from_utf8_lossy(&sent).contains(&text) && !shown.contains(&text[..8]), "{shown}");
    }
    doc.interfaces[0].hubs[0].preshared_keys =
        (0..5).map(|n| WantedPair { public_key: PublicKey([n; 32]), preshared_key: psk(n) }).collect();
    let refused = Envelope::open(&bytes(&doc, &[key(1)]), &node(), &[key(1).public()]);
    assert!(matches!(refused, Err(Refusal::Invalid(p)) if p.contains("preshared")));
}

#[test]
fn rollout_is_apart_from_the_release_for_earlier_devices() {
    // They refuse unknown fields of the release, and ignore those of the document.
    let document = serde_json::to_value(document()).unwrap();
    assert_eq!(document["release"], serde_json::json!({"version": "1.4.0"}));
    assert_eq!(document["rollout"]["renewed"], 7);
}
