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
fn empty_hooks_and_an_empty_mtu_are_taken_as_left_out() {
    let text = "[Interface]\nPreUp =\nPostUp = \nPreDown=\nPostDown = # none\nMTU =\nDNS =\nTable =\n";
    assert_eq!(parse(text).unwrap(), WgConf::default());
}

#[test]
fn syntax_errors_name_their_line() {
    let peer = format!("[Peer]\nPublicKey={KEY}\n");
    let cases = [
        ("[Interface]\nPostUp = iptables -A\n".to_owned(), 2, "PostUp is not run"),
        ("[Interface]\nPreDown = rm\n".to_owned(), 2, "PreDown is not run"),
        ("[Interface]\nPrivateKey = AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHg==\n".to_owned(), 2, "PrivateKey"),
        ("[Interface]\nListenPort = 65536\n".to_owned(), 2, "0 to 65535"),
        ("[Interface]\n[Interface]\n".to_owned(), 2, "second"),
        ("PublicKey = x\n".to_owned(), 1, "before"),
        ("[Peer]\nAllowedIPs = 10.0.0.0/24\n".to_owned(), 1, "no PublicKey"),
        (format!("{peer}{peer}"), 3, "twice"),
        (format!("{peer}AllowedIPs = 10.0.0.1/33\n"), 3, "not a network"),
        ("[Interface]\nPost Up = id\n".to_owned(), 2, "NAT and forwarding"),
        (format!("{peer}Endpoint = [fe80::1%]:51820\n"), 3, "Endpoint"),
        (format!("{peer}Endpoint = h\u{fc}b.example.net:51820\n"), 3, "Endpoint"),
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

/// A file of one peer, with `line` in its section.
fn peer_with(line: &str) -> Result<WgConf, BadConf> {
    parse_bytes(format!("[Interface]\nListenPort = 51820\n[Peer]\nPublicKey = {OTHER}\n{line}\n").as_bytes())
}

fn nets(conf: &WgConf) -> Vec<String> {
    conf.peers.values().flat_map(|p| p.allowed_ips.iter().map(ToString::to_string)).collect()
}

#[test]
fn host_bits_are_dropped_with_a_warning() {
    for (text, expected) in
        [("10.8.0.9/24", "10.8.0.0/24"), ("fd42:42:42::3/64", "fd42:42:42::/64"), ("128.0.0.0/0", "0.0.0.0/0")]
    {
        let conf = peer_with(&format!("AllowedIPs = {text}")).unwrap();
        assert_eq!(nets(&conf), [expected]);
        assert_eq!(conf.warnings, [format!("line 5: AllowedIPs {text} is taken as {expected}")]);
    }
    let conf = peer_with("AllowedIPs = 10.8.0.9/32, 10.9.0.0/16, 10.8.0.10").unwrap();
    assert_eq!((nets(&conf).len(), conf.warnings.len()), (3, 0));
}

#[test]
fn blanks_count_nowhere() {
    let text = format!(
        "[ Inter face ]\n\tListen Port = 518 20\n[ Peer ]\n Public Key = {}  {}\n\u{a0}Allowed IPs = 10.8.0.9 / 32 , 10.9.0.0/ 16\n",
        &OTHER[..20],
        &OTHER[20..]
    );
    let conf = parse(&text).unwrap();
    assert_eq!(
        (conf.listen_port, nets(&conf)),
        (Some(51820), vec!["10.8.0.9/32".to_owned(), "10.9.0.0/16".to_owned()])
    );
    assert!(conf.warnings.is_empty() && conf.peers.contains_key(&OTHER.parse().unwrap()));
}

#[test]
fn comments_may_be_in_any_encoding() {
    let file = [b"# B\xfcro\n[Peer] # \xe4\nPublicKey = ".as_slice(), OTHER.as_bytes(), b"\n"].concat();
    assert_eq!(parse_bytes(&file).unwrap().peers.len(), 1);
    assert_eq!(parse_bytes(&[b"\xef\xbb\xbf".as_slice(), &file].concat()).unwrap().peers.len(), 1, "a byte order mark");
    let outside = [b"[Peer]\nPublicKey = \xfc".as_slice(), OTHER.as_bytes(), b"\n"].concat();
    assert_eq!(parse_bytes(&outside).unwrap_err().line, 2);
    let utf16: Vec<u8> = "[Peer]\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert!(parse_bytes(&utf16).unwrap_err().problem.contains("UTF-16"));
}

#[test]
fn endpoints_are_taken_as_wg_does() {
    for (text, expected) in [
        ("[fe80::1%lo]:51820", "[fe80::1%lo]:51820"),
        ("[fe80::1%1]:51820", "[fe80::1%1]:51820"),
        ("hub.example.net.:51820", "hub.example.net:51820"),
        ("192.0.2.1 : 51820", "192.0.2.1:51820"),
    ] {
        let conf = peer_with(&format!("Endpoint = {text}")).unwrap();
        let endpoint = conf.peers.values().next().unwrap().endpoint.clone().unwrap();
        assert_eq!(endpoint.to_string(), expected);
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
