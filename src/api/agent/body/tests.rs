//! Valid bodies, each kind of invalid one, and arbitrary bytes.
use super::*;
use proptest::prelude::*;
use serde_json::json;

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fn faults<T: std::fmt::Debug>(read: Result<T, BadBody>) -> Vec<(String, &'static str)> {
    match read.unwrap_err() {
        BadBody::Malformed(e) => vec![(e, "malformed")],
        BadBody::Invalid(list) => list
            .iter()
            .map(|f| (f.loc.iter().map(|l| l.to_string().replace('"', "")).collect::<Vec<_>>().join("."), f.kind))
            .collect(),
    }
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

#[test]
fn peer_bodies_are_validated() {
    let (peer, confirm) = new_peer(&bytes(&json!({"public_key": KEY, "allowed_ips": ["10.0.1.2/32", "10.0.1.3"], "preshared_key": null, "persistent_keepalive": 25}))).unwrap();
    assert_eq!((peer.values.allowed_ips.unwrap().len(), peer.values.keepalive, confirm), (2, Some(25), None));
    let (peer, _) = new_peer(&bytes(&json!({"public_key": KEY}))).unwrap();
    assert_eq!((peer.values.allowed_ips, peer.values.keepalive), (Some(Nets::default()), Some(0)));
    let ((values, _), confirm) = peer_values(&bytes(&json!({"allowed_ips": [], "confirm_within": 30}))).unwrap();
    assert_eq!((values.allowed_ips, values.keepalive), (Some(Nets::default()), None));
    assert_eq!(confirm, Some(Duration::from_secs(30)));

    let ((values, _), _) = peer_values(br#"{"persistent_keepalive": 25.0}"#).unwrap();
    assert_eq!(values.keepalive, Some(25), "JSON Schema calls that an integer");
    for bad in ["25.5", "-1.0", "65536.0", "1e30"] {
        let body = format!("{{\"persistent_keepalive\": {bad}}}");
        assert!(peer_values(body.as_bytes()).is_err(), "{bad}");
    }

    let one = |kind| vec![("body.public_key".to_owned(), kind)];
    assert_eq!(faults(new_peer(b"{}")), one("missing"));
    for bad in ["AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHg==", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g", "", "x"]
    {
        assert_eq!(faults(new_peer(&bytes(&json!({"public_key": bad})))), one("value_error"), "31 and 33 bytes: {bad}");
    }
    assert_eq!(faults(new_peer(&bytes(&json!({"public_key": 5})))), one("string_type"));
    let many = json!({"public_key": KEY, "allowed_ips": ["10.0.0.1/33", "::ffff:10.0.0.0/120", 7], "persistent_keepalive": 65536});
    assert_eq!(
        faults(new_peer(&bytes(&many))),
        [
            ("body.allowed_ips.0".to_owned(), "value_error"),
            ("body.allowed_ips.1".to_owned(), "value_error"),
            ("body.allowed_ips.2".to_owned(), "value_error"),
            ("body.persistent_keepalive".to_owned(), "less_than_equal"),
        ]
    );
    for bad in ["", "[", "{\"public_key\":\"a\",\"public_key\":\"b\"}"] {
        assert_eq!(faults(new_peer(bad.as_bytes()))[0].1, "malformed", "{bad}");
    }
    assert_eq!(faults(new_peer(b"[]")), [("body".to_owned(), "model_type")]);
    assert_eq!(faults(peer_values(&bytes(&json!({"persistent_keepalive": -1}))))[0].1, "less_than_equal");
    assert_eq!(faults(peer_values(&bytes(&json!({"persistent_keepalive": "25"}))))[0].1, "int_type");
    assert_eq!(faults(bare(&bytes(&json!({"confirm_within": 0}))))[0].1, "greater_than_equal");
}

#[test]
fn network_with_host_bits_is_one_host() {
    let body = bytes(
        &json!({"public_key": KEY, "allowed_ips": ["10.8.0.9/24", "10.9.0.1/32", "128.0.0.0/0", "fd00::2/64", "10.7.0.0/24"]}),
    );
    let (peer, _) = new_peer(&body).unwrap();
    let expected =
        ["10.8.0.9/32", "10.9.0.1/32", "128.0.0.0/32", "fd00::2/128", "10.7.0.0/24"].map(|n| n.parse().unwrap());
    assert_eq!(peer.values.allowed_ips, Some(expected.into_iter().collect()));
    let warnings = [
        "allowed_ips[0] \"10.8.0.9/24\" is taken as the host 10.8.0.9/32",
        "allowed_ips[2] \"128.0.0.0/0\" is taken as the host 128.0.0.0/32",
        "allowed_ips[3] \"fd00::2/64\" is taken as the host fd00::2/128",
    ];
    assert_eq!(peer.warnings, warnings);
    let ((values, changed), _) = peer_values(&body).unwrap();
    assert_eq!((values.allowed_ips, changed), (peer.values.allowed_ips, peer.warnings));
}

#[test]
fn file_and_interface_bodies_are_validated() {
    let file = |text: &str| bytes(&json!({"config": STANDARD.encode(text)}));
    assert_eq!(syncconf(file("")).unwrap().0, WgConf::default());
    assert_eq!(syncconf(file(&format!("[Peer]\nPublicKey={KEY}\n"))).unwrap().0.peers.len(), 1);
    for bad in [
        file("[Interface]\nPostUp = id\n"),
        bytes(&json!({"config": "%%"})),
        bytes(&json!({"config": STANDARD.encode([0xff])})),
        bytes(&json!({"config": STANDARD.encode([0])})),
    ] {
        assert_eq!(faults(syncconf(&bad)), [("body.config".to_owned(), "value_error")]);
    }
    let text = json!({"private_key": KEY, "listen_port": 51820, "address": "10.0.0.1/24, fd00::1/64", "dns": "1.1.1.1", "table": "off", "post_up": "", "pre_down": null});
    let (device, _) = device(&bytes(&text)).unwrap();
    let dns = Some((vec!["1.1.1.1".parse().unwrap()], Vec::new()));
    assert_eq!((device.addresses.map(|a| a.len()), device.dns, device.table), (Some(2), dns, Some(Table::Off)));
    for (table, read) in [(json!(100.0), Table::Number(100)), (json!("main"), Table::Auto), (json!(254), Table::Auto)] {
        let numbered = json!({"private_key": KEY, "table": table});
        assert_eq!(super::device(&bytes(&numbered)).unwrap().0.table, Some(read));
    }
    let bare = super::device(&bytes(&json!({"private_key": KEY, "address": null, "dns": ""}))).unwrap().0;
    assert_eq!(
        (bare.addresses, bare.dns, bare.table),
        (None, Some((Vec::new(), Vec::new())), None),
        "left out, or empty"
    );
    let dns = json!({"private_key": KEY, "dns": "8.8.8.8, corp.example,fd00::53", "post_up": "  ", "pre_down": ""});
    let (servers, search) = super::device(&bytes(&dns)).unwrap().0.dns.unwrap();
    assert_eq!((servers.len(), search), (2, vec!["corp.example".to_owned()]), "as wg-quick tells them apart");
    for bad in ["8.8.8", "a b", "a..b", "fd00::x", "a;id"] {
        let keys = faults(super::device(&bytes(&json!({"private_key": KEY, "dns": bad}))));
        assert_eq!(keys, [("body.dns".to_owned(), "value_error")], "{bad}");
    }
    let BadBody::Invalid(hook) = super::device(&bytes(&json!({"private_key": KEY, "post_up": "id"}))).unwrap_err()
    else {
        panic!("a fault of the field")
    };
    assert!(hook[0].msg.contains("NAT and forwarding"), "{}", hook[0].msg);
    let six = |mtu| bytes(&json!({"private_key": KEY, "address": "fd00::1/64", "mtu": mtu}));
    assert!(super::device(&six(1280)).is_ok());
    assert_eq!(faults(super::device(&six(1279)))[0].0, "body.mtu", "IPv6 needs 1280");
    let bad = json!({"private_key": "x", "post_up": "id", "mtu": 10, "table": "local", "address": ["10.0.0.1/33"], "dns": "one one"});
    let keys: Vec<String> = faults(super::device(&bytes(&bad))).into_iter().map(|(k, _)| k).collect();
    assert_eq!(keys, ["body.private_key", "body.post_up", "body.mtu", "body.address", "body.dns", "body.table"]);
}

#[test]
fn faults_never_repeat_a_secret() {
    let secret = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0";
    for body in
        [json!({"private_key": secret}), json!({"public_key": KEY, "preshared_key": secret}), json!({"config": secret})]
    {
        for error in [
            format!("{:?}", new_peer(&bytes(&body)).err()),
            format!("{:?}", device(&bytes(&body)).err()),
            format!("{:?}", syncconf(bytes(&body)).err()),
        ] {
            assert!(!error.contains(secret), "{error}");
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_not_panic(bytes: Vec<u8>) {
        let _ = (new_peer(&bytes), peer_values(&bytes), syncconf(&bytes), device(&bytes), bare(&bytes), reconcile(&bytes));
    }

    #[test]
    fn arbitrary_json_does_not_panic(
        key in "(public_key|allowed_ips|preshared_key|persistent_keepalive|config|private_key|address|dns|table|mtu|confirm_within)",
        value in prop_oneof![
            Just(Value::Null), any::<bool>().prop_map(Value::from), any::<i64>().prop_map(Value::from), any::<f64>().prop_map(Value::from),
            "\\PC{0,50}".prop_map(Value::from), proptest::collection::vec("[0-9a-f.:/]{0,20}", 0..5).prop_map(Value::from),
        ],
    ) {
        let body = bytes(&json!({ key: value }));
        let _ = (new_peer(&body), peer_values(&body), syncconf(&body), device(&body), bare(&body), reconcile(&body));
    }
}
