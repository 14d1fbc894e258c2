//! Valid files, invalid files, and arbitrary text.
use super::*;
use proptest::prelude::*;

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const OTHER: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";

#[test]
fn all_keys_are_parsed() {
    let text = format!(
        "# made by a panel\r\n[Interface]\r\nPrivateKey = {KEY}\r\nListenPort=51820\r\nFwMark = 0xca6c\r\nAddress = 10.0.0.1/24, fd00::1/64\r\nDNS = 1.1.1.1, example\r\nMTU = 1420\r\nTable = auto\r\nSaveConfig = true\r\n\r\n[Peer] # laptop\r\nPublicKey={OTHER}\r\npresharedkey = {KEY}\r\nAllowedIPs = 10.0.0.2/32,\r\nAllowedIPs = fd00::2/128, 10.1.0.0/16\r\nEndpoint = [2001:db8::1]:51820\r\nPersistentKeepalive = 25\r\n"
    );
    let conf = parse(&text).unwrap();
    assert_eq!(
        (conf.listen_port, conf.fwmark, conf.mtu, conf.addresses.len()),
        (Some(51820), Some(0xca6c), Some(1420), 2)
    );
    let peer = &conf.peers[&OTHER.parse::<PublicKey>().unwrap()];
    assert_eq!((peer.allowed_ips.len(), peer.keepalive, peer.preshared_key.is_some()), (3, 25, true));
    assert_eq!(peer.endpoint.as_ref().unwrap().to_string(), "[2001:db8::1]:51820");
    assert_eq!(parse("").unwrap(), WgConf::default());
    let off = parse(&format!(
        "[Peer]\nPublicKey={KEY}\nPersistentKeepalive=off\nPresharedKey=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"
    ));
    let off = off.unwrap().peers.into_values().next().unwrap();
    assert_eq!((off.keepalive, off.preshared_key), (0, None));
}

#[test]
fn syntax_errors_name_their_line() {
    let peer = format!("[Peer]\nPublicKey={KEY}\n");
    let cases = [
        ("[Interface]\nPostUp = iptables -A\n".to_owned(), 2, "postup would run a command"),
        ("[Interface]\nPreDown = rm\n".to_owned(), 2, "predown"),
        ("[Interface]\nPrivateKey = AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHg==\n".to_owned(), 2, "PrivateKey"),
        ("[Interface]\nListenPort = 65536\n".to_owned(), 2, "0 to 65535"),
        ("[Interface]\n[Interface]\n".to_owned(), 2, "second"),
        ("PublicKey = x\n".to_owned(), 1, "before"),
        ("[Peer]\nAllowedIPs = 10.0.0.0/24\n".to_owned(), 1, "no PublicKey"),
        (format!("{peer}{peer}"), 3, "twice"),
        (format!("{peer}AllowedIPs = 10.0.0.1/24\n"), 3, "host bits"),
        (format!("{peer}AllowedIPs = ::ffff:10.0.0.0/120\n"), 3, "IPv4"),
        (format!("{peer}PersistentKeepalive = 65536\n"), 3, "65536"),
        (format!("{peer}PersistentKeepalive = -1\n"), 3, "-1"),
        (format!("{peer}Endpoint = 192.0.2.1\n"), 3, "Endpoint"),
        (format!("{peer}Nonsense = 1\n"), 3, "nonsense"),
        (format!("{peer}nonsense\n"), 3, "KEY = VALUE"),
        ("[Peers]\n".to_owned(), 1, "section"),
    ];
    for (text, line, part) in cases {
        let error = parse(&text).unwrap_err();
        assert!(error.line == line && error.problem.contains(part), "{text:?}: {error}");
    }
}

#[test]
fn error_does_not_repeat_a_key() {
    let secret = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0";
    let error = parse(&format!("[Interface]\nPrivateKey = {secret}\n")).unwrap_err();
    assert!(!error.to_string().contains(secret), "{error}");
}

proptest! {
    #[test]
    fn arbitrary_text_does_not_panic(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn arbitrary_values_of_known_keys_do_not_panic(lines in proptest::collection::vec(
        ("(\\[Interface\\]|\\[Peer\\]|PublicKey|PresharedKey|AllowedIPs|Endpoint|PersistentKeepalive|FwMark|Table)", "[ =,#/:.0-9a-fx]{0,20}"), 0..20,
    )) {
        let text: String = lines.iter().map(|(a, b)| format!("{a}{b}\n")).collect();
        let _ = parse(&text);
    }
}
