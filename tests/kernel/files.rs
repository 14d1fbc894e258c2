//! Files of `wg`: the agent API takes them as wireguard-tools on the same kernel does.
use crate::netns::Namespace;
use crate::panel::{Node, key};
use serde_json::json;

const HUB: &str = "[health]\nenabled = false\n[[interface]]\nname = \"wg0\"\nlisten_port = 51820\n\
                   addresses = [\"10.8.255.1/24\"]\n";

/// What the kernel has for the peer 7: allowed networks and endpoint.
fn peer(namespace: &Namespace, link: &str) -> (String, String) {
    let of = |what: &str| {
        let all = namespace.run(&format!("wg show {link} {what}"));
        let line = all.lines().find(|l| l.starts_with(&key(7))).unwrap_or_else(|| panic!("no peer in {all:?}"));
        line.split_once('\t').map_or_else(String::new, |(_, value)| value.to_owned())
    };
    (of("allowed-ips"), of("endpoints"))
}

#[test]
fn files_are_taken_as_wg_takes_them() {
    let namespace = Namespace::new("hub");
    namespace.ip("link add reference type wireguard");
    let mut node = Node::new(&namespace, HUB);
    node.start();
    let mut panel = node.panel();
    let broken_key = format!("{} {}", &key(7)[..20], &key(7)[20..]);
    let with_key = |key: &str, more: &str| format!("[Peer]\nPublicKey = {key}\n{more}\n").into_bytes();
    let with = |more: &str| with_key(&key(7), more);
    let latin = [b"# B\xfcro\n".as_slice(), &with("AllowedIPs = 10.8.0.9/32")].concat();
    let spaced = format!("[ Peer ]\nPublic Key = {}\nAllowed IPs = 10.8.0.9 / 32\n", key(7)).into_bytes();
    let files: [(&str, Vec<u8>, usize); 8] = [
        ("host bits", with("AllowedIPs = 10.8.0.9/24"), 1),
        ("host bits of IPv6", with("AllowedIPs = fd42:42:42::3/64"), 1),
        ("a scope by name", with("AllowedIPs = 10.8.0.9/32\nEndpoint = [fe80::1%lo]:51820"), 0),
        ("a scope by index", with("AllowedIPs = 10.8.0.9/32\nEndpoint = [fe80::1%1]:51820"), 0),
        ("a broken key", with_key(&broken_key, "AllowedIPs = 10.8.0.9/32"), 0),
        ("blanks", spaced, 0),
        ("Latin-1", latin, 0),
        ("the neighbours", with("AllowedIPs=10.8.0.9\nallowedips = fd42::9/128\nEndpoint = 192.0.2.1:1"), 0),
    ];
    for (what, file, warnings) in files {
        let path = node.path("reference.conf");
        std::fs::write(&path, &file).expect("written");
        namespace.run(&format!("wg setconf reference {}", path.display()));
        let wanted = peer(&namespace, "reference");
        use base64::Engine as _;
        let file = base64::engine::general_purpose::STANDARD.encode(&file);
        // A peer that stays keeps its endpoint.
        panel.done("POST", "/v1/wg/wg0/syncconf", &json!({ "config": "" }));
        let answer = panel.done("POST", "/v1/wg/wg0/syncconf", &json!({ "config": file }));
        assert_eq!(peer(&namespace, "wg0"), wanted, "{what}");
        assert_eq!(answer["warnings"].as_array().map_or(0, Vec::len), warnings, "{what}: {answer}");
        let drift = node.json("drift --json");
        assert_eq!(drift["has_drift"], false, "{what}: {drift}");
    }
}
