//! Faults and defaults as the author of a configuration sees them.
use super::*;
use proptest::prelude::*;

const HUB_KEY: &str = "9s4Zq0QFzPNW7vYkFGcGEJtVXWd3BBJ3zOqDLE3gIyM=";
const PEER_KEY: &str = "gL9MIhpbgYcBdJHJ9cdTLoCzRXOg0tDmpmFmKTN6FlA=";

fn read(text: &str) -> Result<Config, ConfigFaults> {
    Config::from_text(Some(("spoke.toml", text)), [])
}

/// The faults of `text`, one line each.
fn faults(text: &str) -> Vec<String> {
    read(text).expect_err("faults").0.iter().map(ToString::to_string).collect()
}

fn shipped() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../systemd/spoke.toml")).unwrap()
}

/// The shipped file with its sections, and with what has no default.
fn example() -> String {
    let (usual, rest) = shipped().split_once("\n# ---").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let examples = [
        "[",
        "id =",
        "name =",
        "addresses =",
        "public_key =",
        "allowed_ips =",
        "interface =",
        "endpoint = \"hub",
        "address =",
        "contract =",
        "chain_id =",
        "endpoints =",
    ];
    let line = |l: &str| match l.strip_prefix('#') {
        Some(key) if examples.iter().any(|e| key.starts_with(e)) => format!("{key}\n"),
        Some(_) | None => format!("{l}\n"),
    };
    usual.lines().map(line).collect::<String>() + "\n# ---" + &rest
}

#[test]
fn shipped_file_is_comments_only() {
    let text = shipped();
    let active: Vec<&str> = text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
    assert!(active.is_empty(), "{active:?}");
    let fault = read(&text).unwrap().names_nothing("spoke.toml").expect("a fault");
    assert!(fault.remedy.contains("[[interface]]"), "{fault}");
}

/// The example without its last part, the sections that most installations omit.
fn usual(text: &str) -> &str {
    text.split("\n# ---").next().unwrap()
}

/// Removes the `#` before keys and sections, except for the keys in `except`.
fn uncommented(text: &str, except: &[&str]) -> String {
    text.lines()
        .map(|l| match l.strip_prefix('#') {
            Some(key) if !key.starts_with(' ') && !except.iter().any(|e| key.starts_with(e)) => format!("{key}\n"),
            Some(_) | None => format!("{l}\n"),
        })
        .collect()
}

/// As [`read`], without what tells a default that is written from one that is not.
fn values(text: &str) -> Config {
    let mut config = read(text).unwrap();
    config.node.role_named = false;
    config.interfaces.iter_mut().for_each(|i| i.written = (false, false));
    config
}

#[test]
fn example_loads_and_shows_every_default() {
    let text = example();
    let config = values(&text);
    // A commented key is the default: uncommenting all but the ones that only make sense elsewhere changes nothing.
    // A named role is binding, an unnamed one is the control plane's.
    let elsewhere =
        ["role", "node_id", "preshared_key", "endpoint", "listen_port", "remove_unknown", "dns", "window", "subscribe"];
    let all = uncommented(usual(&text), &elsewhere);
    assert_eq!(values(&all), config);
    // The same for the sections that are left out as a whole; [control] has a test of its own.
    let beside = ["pin", "ca", "token", "identity", "secret", "tls_", "source"];
    assert_eq!(values(&uncommented(&text, &[&elsewhere[..], &beside].concat())), config);
    // What `check` prints can be fed back.
    assert_eq!(values(&config.to_toml()), config);
    for config in [config, values(&uncommented(&text, &[&elsewhere[..], &beside].concat()))] {
        assert_eq!(config.to_toml(), toml::to_string_pretty(&config).unwrap());
    }
}

/// A reader that meets a key it does not know says which ones it does: none of them may be missing in the example.
#[test]
fn example_names_every_key() {
    let text = example();
    let mut section = "";
    let mut named = std::collections::BTreeSet::new();
    for line in text.lines().map(|l| l.strip_prefix('#').unwrap_or(l).trim_start()) {
        if line.starts_with('[') {
            section = line;
        } else if let Some((key, _)) = line.split_once(" = ").filter(|(k, _)| !k.contains(' ')) {
            named.insert((section, key));
        }
    }
    let mut known = 0;
    for (section, below) in [
        ("[node]", ""),
        ("[[interface]]", ""),
        ("[[interface.peer]]", "[[interface]]"),
        ("[uplink]", ""),
        ("[[uplink.hub]]", "[uplink]"),
        ("[grants]", ""),
        ("[grants.layout]", "[grants]"),
        ("[control]", ""),
        ("[agent]", ""),
        ("[update]", ""),
        ("[clock]", ""),
        ("[health]", ""),
    ] {
        let report = faults(&format!("{below}\n{section}\nqqqqqqqqqqqqqqqqqqqqqqqq = 1\n")).join("\n");
        let list = report.split("known here: ").nth(1).and_then(|l| l.lines().next()).expect("the known keys");
        for key in list.split(", ").filter(|k| !matches!(*k, "peer" | "hub" | "layout")) {
            assert!(named.contains(&(section, key)), "{key} of {section} is not in the example");
            known += 1;
        }
    }
    assert!(known > 60, "{known}");
}

#[test]
fn example_shows_the_defaults_of_control() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../systemd/spoke.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let section = text.split_once("# [control]").unwrap().1.split_once("\n\n").unwrap().0;
    let keys: Vec<&str> = section.lines().filter_map(|l| l.strip_prefix("# ")).filter(|l| l.contains(" = ")).collect();
    let shown = |with: &dyn Fn(&str) -> bool| {
        let lines: Vec<&str> = keys.iter().copied().filter(|l| with(l)).collect();
        read(&format!("[node]\nid = \"edge-1\"\n[control]\n{}\n", lines.join("\n"))).unwrap().control.unwrap()
    };
    // `ca` stands for `pin`, and neither has a default; that of `identity` is a file in the state directory, and the bounds have none.
    let all = shown(&|l| !["ca ", "identity ", "allow_networks ", "hub_keys "].iter().any(|k| l.starts_with(k)));
    let least = shown(&|l| ["url ", "pin ", "token "].iter().any(|k| l.starts_with(k)));
    assert_eq!(all, least);
    assert!(keys.len() >= 9, "{keys:?}");
}

#[test]
fn role_is_given_where_none_is_named() {
    let dir = std::env::temp_dir().join(format!("spoke-role-{}", std::process::id()));
    let role = |named: &str, given: Role| {
        let text = format!(
            "[node]\nid = \"a\"\n{named}[control]\nurl = \"https://c\"\n[[interface]]\nname = \"wg0\"\nlisten_port = 1\n"
        );
        std::fs::write(&dir, text).unwrap();
        Config::load_as(Some(&dir), [], given).unwrap().node.role
    };
    assert_eq!((role("", Role::Hub), role("", Role::Node)), (Role::Hub, Role::Node));
    assert_eq!((role("role = \"node\"\n", Role::Hub), role("role = \"hub\"\n", Role::Node)), (Role::Node, Role::Hub));
    let without_port = "[node]\nid = \"a\"\n[control]\nurl = \"https://c\"\n[[interface]]\nname = \"wg0\"\n";
    std::fs::write(&dir, without_port).unwrap();
    assert!(Config::load_as(Some(&dir), [], Role::Hub).is_ok(), "the port comes with the role");
    std::fs::remove_file(dir).unwrap();
}

#[test]
fn all_faults_are_reported_with_key_and_remedy() {
    let found = faults(&format!(
        r#"
        [node]
        role = "boss"
        [[interface]]
        name = "--help"
        listen_prot = 51820
        mtu = 20
        addresses = ["10.8.0.300/24"]
        [[interface.peer]]
        public_key = "abc"
        allowed_ips = ["10.9.0.5/24"]
        keepalive = 65536
        [uplink]
        interface = "wg9"
        backoff_max = "soon"
        [[uplink.hub]]
        public_key = "{HUB_KEY}"
        address = "10.8.0.1"
        "#
    ));
    let expected = [
        ("node.role", "\"node\" or \"hub\""),
        ("interface[0].name", "1 to 15 characters"),
        ("interface[0].listen_prot", "did you mean `listen_port`?"),
        ("interface[0].mtu", "from 576 to 65455"),
        ("interface[0].addresses[0]", "10.8.0.2/24"),
        ("interface[0].peer[0].public_key", "44 characters"),
        ("interface[0].peer[0].allowed_ips[0]", "the network is 10.9.0.0/24"),
        ("interface[0].peer[0].keepalive", "from 0 to 65535"),
        ("uplink.backoff_max", "such as \"30s\""),
        ("uplink.hub[0].endpoint", "add endpoint"),
    ];
    for (key, remedy) in expected {
        let hit =
            found.iter().any(|f| f.starts_with("spoke.toml:") && f.contains(&format!(": {key}")) && f.contains(remedy));
        assert!(hit, "{key} with {remedy:?} in:\n{}", found.join("\n"));
    }
}

#[test]
fn faults_name_their_line_in_the_order_of_the_file() {
    let text = format!(
        "# a comment\n[uplink]\nbackoff_max = 60\ninterface = \"wg0\"\n[[uplink.hub]]\nname = \"a\"\npublic_key = \"{HUB_KEY}\"\naddress = \"10.8.0.1\"\nendpoint = \"192.0.2.1:51820\"\n[[uplink.hub]]\nname = \"b\"\n[[interface]]\nname = \"wg0\"\n[[interface.peer]]\n[[interface]]\nname = \"wg1\"\nmtu = 1 # small\n[[interface.peer]]\nkeepalive = 70000\n[node]\nrole = \"boss\"\n"
    );
    let found = faults(&text);
    let lines: Vec<(usize, &str)> = found
        .iter()
        .filter_map(|f| {
            let (line, rest) = f.strip_prefix("spoke.toml:")?.split_once(": ")?;
            Some((line.parse().ok()?, rest.split_once([':', ' '])?.0))
        })
        .collect();
    for expected in [
        (3, "uplink.backoff_max"),
        (10, "uplink.hub[1].endpoint"),
        (14, "interface[0].peer[0].public_key"),
        (17, "interface[1].mtu"),
        (19, "interface[1].peer[0].keepalive"),
        (21, "node.role"),
    ] {
        assert!(lines.contains(&expected), "{expected:?} in {found:#?}");
    }
    assert!(lines.is_sorted_by_key(|(line, _)| *line), "{found:#?}");
    let shown = found.join("\n");
    assert!(shown.contains("uplink.backoff_max: is 60; write a duration from 1s to 1h such as \"30s\""), "{shown}");
    assert_eq!(shown.matches("is 60").count(), 1, "said once");
}

#[test]
fn hub_needs_key_endpoint_and_address() {
    let found =
        faults("[[interface]]\nname = \"wg0\"\n[uplink]\ninterface = \"wg0\"\n[[uplink.hub]]\nname = \"a\"").join("\n");
    for key in ["public_key", "endpoint", "address"] {
        assert!(found.contains(&format!("uplink.hub[0].{key} (a): is missing")), "{found}");
    }
}

#[test]
fn overlapping_allowed_ips_name_both_peers() {
    let text = |second: &str, nested: bool| {
        format!(
            "[[interface]]\nname = \"wg0\"\nnested_allowed_ips = {nested}\n\
             [[interface.peer]]\npublic_key = \"{PEER_KEY}\"\nallowed_ips = [\"10.9.0.0/24\"]\n\
             [[interface.peer]]\npublic_key = \"{HUB_KEY}\"\nallowed_ips = [\"{second}\"]\n"
        )
    };
    let report = faults(&text("10.9.0.7/32", false)).join("\n");
    assert!(
        report.contains("interface[0].peer[1].allowed_ips: 10.9.0.7/32 overlaps 10.9.0.0/24 of peer[0]"),
        "{report}"
    );
    assert!(read(&text("10.9.0.7/32", true)).is_ok(), "nested networks need the flag");
    assert!(read(&text("10.9.0.0/24", true)).is_err(), "equal networks are always refused");
    assert!(read(&text("10.9.1.0/24", false)).is_ok());
}

#[test]
fn interfaces_share_no_name_or_port() {
    let report =
        faults("[[interface]]\nname = \"wg0\"\nlisten_port = 1\n[[interface]]\nname = \"wg0\"\nlisten_port = 1")
            .join("\n");
    assert!(report.contains("interface[1].name: wg0 is used twice"), "{report}");
    assert!(report.contains("interface[1].listen_port (wg0): 1 is also the port of wg0"), "{report}");
}

#[test]
fn environment_overrides_the_file() {
    let env = |k: &str, v: &str| (k.to_owned(), v.to_owned());
    let file = Some(("spoke.toml", "[health]\nlisten = [\"127.0.0.1:1\"]\n"));
    let config =
        Config::from_text(file, [env("SPOKE__HEALTH__LISTEN", "127.0.0.1:2,[::1]:3"), env("HOME", "/")]).unwrap();
    assert_eq!(config.health.listen, ["127.0.0.1:2".parse().unwrap(), "[::1]:3".parse().unwrap()]);
    let report = Config::from_text(file, [env("SPOKE__HEALTH__ENABLED", "maybe")]).unwrap_err().to_string();
    assert!(
        report.contains("the environment, SPOKE__HEALTH__ENABLED: health.enabled: is \"maybe\"; write true or false"),
        "{report}"
    );
    let report = Config::from_text(file, [env("SPOKE__UPLNIK__X", "1")]).unwrap_err().to_string();
    assert!(report.contains("the environment, SPOKE__UPLNIK__X: uplnik: unknown key"), "{report}");
    let report = Config::from_text(file, [env("SPOKE__HEALTH__X__Y", "1")]).unwrap_err().to_string();
    assert!(report.contains("the environment, SPOKE__HEALTH__X__Y: health.x: unknown key"), "{report}");
}

#[test]
fn configuration_that_names_nothing_is_a_fault() {
    let load = |text: &str, variables: &[(&str, &str)]| {
        let variables: Vec<_> = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let config = Config::from_text(Some(("spoke.toml", text)), variables).map_err(|e| e.to_string())?;
        config.names_nothing("spoke.toml").map_or(Ok(()), |fault| Err(fault.to_string()))
    };
    // Empty, white space, comments, cut in the middle of a line, other sections only.
    for text in ["", "\n \n", "# [control]\n", "[node]\n", "[node]\nid = \"edge-1\"\n[health]\n"] {
        let report = load(text, &[]).unwrap_err();
        assert!(report.contains("spoke.toml: (file): names neither an interface nor a control plane"), "{report}");
    }
    assert!(load("\0\0\0\0", &[]).is_err(), "what a file system gives back for blocks it never wrote");
    assert_eq!(load("[[interface]]\nname = \"wg0\"\n", &[]), Ok(()));
    assert_eq!(load("[agent]\nenabled = true\nsecret = \"file:/x\"\n", &[]), Ok(()));
    let variables = [("SPOKE__NODE__ID", "edge-1"), ("SPOKE__CONTROL__URL", "https://c.example.net")];
    assert_eq!(load("", &variables), Ok(()), "the environment counts");
}

#[test]
fn misplaced_key_is_not_printed_in_full() {
    let report = faults(&format!("[[interface]]\nname = \"wg0\"\nprivate_key = \"{PEER_KEY}\"")).join("\n");
    assert!(report.contains("write \"file:/absolute/path\""), "{report}");
    assert!(!report.contains(PEER_KEY), "{report}");
}

#[test]
fn unreadable_file_names_line_or_remedy() {
    let report = faults("[node]\nid = \"a\"\nid = \"b\"\n").join("\n");
    assert!(report.contains("spoke.toml:3: is not TOML: "), "{report}");
    let dir = std::env::temp_dir().join(format!("spoke-utf16-{}", std::process::id()));
    std::fs::write(&dir, "\u{feff}[node]\n".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>()).unwrap();
    let report = Config::load(Some(&dir), []).unwrap_err().to_string();
    std::fs::remove_file(&dir).unwrap();
    assert!(report.contains("UTF-16") && report.contains("save it as UTF-8"), "{report}");
    let report = Config::load(Some(Path::new("/nonexistent/spoke.toml")), []).unwrap_err().to_string();
    assert!(report.contains("/nonexistent/spoke.toml") && report.contains("--config"), "{report}");
}

/// Places of a secret, or of a URL that may hold one: the table, and the key in it.
const SECRET_PLACES: &[(&str, &str)] = &[
    ("[interface]", "private_key"),
    ("[interface.peer]", "public_key"),
    ("[interface.peer]", "preshared_key"),
    ("[uplink.hub]", "public_key"),
    ("[uplink.hub]", "preshared_key"),
    ("agent", "secret"),
    ("agent", "tls_key"),
    ("control", "token"),
    ("control", "identity"),
    ("control", "pin"),
    ("control", "url"),
    ("grants", "endpoints"),
    ("update", "source"),
    // Typed into the wrong place.
    ("node", "id"),
    ("interface", "name"),
    ("health", "listen"),
    ("health", "allowed_origins"),
    ("grants", "contract"),
    ("uplink", "interface"),
    ("x", "y"),
];

proptest! {
    #[test]
    fn no_fault_repeats_a_secret(
        (table, key) in prop::sample::select(SECRET_PLACES),
        secret in "[A-Za-z0-9]{16,43}=?",
        form in 0..8usize,
    ) {
        let value = match form {
            0 => format!("\"{secret}\""),
            1 => format!("[\"{secret}\"]"),
            2 => format!("\"https://operator:{secret}@h.example.net/\""),
            3 => format!("[\"https://operator:{secret}@h.example.net/\", 1]"),
            4 => secret.clone(),
            5 => format!("\"{secret}"),
            6 => format!("{{ key = \"{secret}\" }}"),
            _ => format!("\"file:{secret}\""),
        };
        let text = format!("[{table}]\n{key} = {value}\n");
        for part in [text.as_str(), &format!("{text}[uplink\n")] {
            if let Err(faults) = read(part) {
                let report = faults.to_string();
                for at in 0..=secret.len() - 8 {
                    prop_assert!(!report.contains(&secret[at..at + 8]), "{part}\n{report}");
                }
            }
        }
    }

    #[test]
    fn any_value_at_any_key_never_panics(
        section in prop::sample::select(vec!["node", "uplink", "health", "[interface]", "[uplink.hub]", "x"]),
        key in prop::sample::select(vec!["id", "name", "interface", "listen", "mtu", "hub", "peer", "backoff_max", "enabled", "y"]),
        value in prop::sample::select(vec!["1", "-1", "true", "\"\"", "\"wg0\"", "[]", "[1]", "[[1]]", "{}", "{a=1}", "1.5", "1979-05-27", "nan", "99999999999999999999"]),
    ) {
        let _ = read(&format!("[{section}]\n{key} = {value}\n"));
    }
}

#[test]
fn network_that_holds_an_endpoint_is_refused() {
    let text = |interface: &str, nets: &str| {
        format!(
            "[[interface]]\nname = \"wg0\"\naddresses = [\"10.8.0.2/24\"]\n{interface}\n[uplink]\ninterface = \"wg0\"\n\
             [[uplink.hub]]\nname = \"a\"\npublic_key = \"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\"\n\
             endpoint = \"192.0.2.1:51820\"\naddress = \"10.8.0.1\"\nallowed_ips = [{nets}]\n"
        )
    };
    for nets in ["\"0.0.0.0/1\", \"128.0.0.0/1\"", "\"10.8.0.1/32\", \"192.0.2.0/24\""] {
        let found = faults(&text("", nets));
        assert!(found.len() == 1 && found[0].contains("holds the endpoint 192.0.2.1:51820"), "{found:?}");
        assert!(read(&text("table = 100", nets)).is_ok() && read(&text("fwmark = 7", nets)).is_ok());
    }
    let peer = "[[interface.peer]]\npublic_key = \"CAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg=\"\nallowed_ips = [\"192.0.0.0/16\"]\n";
    let found = faults(&text(peer, "\"10.8.0.0/24\""));
    assert!(found.len() == 1 && found[0].contains("192.0.0.0/16 holds the endpoint"), "{found:?}");
}

#[test]
fn hub_address_of_our_own_is_refused() {
    let found = faults(
        "[[interface]]\nname = \"wg0\"\naddresses = [\"10.8.0.2/24\"]\n[uplink]\ninterface = \"wg0\"\n[[uplink.hub]]\nname = \"a\"\n\
         public_key = \"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\"\nendpoint = \"192.0.2.1:51820\"\naddress = \"10.8.0.2\"\n\
         allowed_ips = [\"10.8.0.0/24\"]\n",
    );
    assert!(
        found.len() == 1 && found[0].contains("uplink.hub[0].address") && found[0].contains("wg0 itself"),
        "{found:?}"
    );
}

/// A fault that a person reads names the value and the remedy once each.
#[test]
fn no_fault_says_a_thing_twice() {
    let text = "[node]\nid = \"bad id\"\n[uplink]\ninterface = \"wg 0\"\n[[uplink.hub]]\nname = \"hub-a\"\npublic_key = \"abc\"\nendpoint = \"hub\"\naddress = \"10.8.0.0/24\"\nallowed_ips = [\"10.8.0.9/24\", \"nonsense\"]\n[[interface]]\nname = \"wg0\"\nprivate_key = \"/etc/wg.key\"\naddresses = [\"10.8.0.17\"]\nmtu = 100\n[control]\nurl = \"control.example.net:8443\"\npin = \"0f0f\"\n[grants]\ncontract = \"0x12\"\nendpoints = [\"mainnet.base.org\"]\nfinality = \"final\"\n[update]\nwindow = \"2-5\"\n";
    let found = faults(text);
    assert!(found.len() > 12, "{found:#?}");
    for fault in &found {
        let words: Vec<&str> = fault.split_whitespace().map(|w| w.trim_matches([',', ';', ':', '"'])).collect();
        let mut seen = std::collections::BTreeSet::new();
        assert!(words.windows(4).all(|w| seen.insert(w)), "said twice: {fault}");
    }
    let hub = found.iter().find(|f| f.contains("endpoint")).unwrap();
    assert!(
        hub.contains(":8: uplink.hub[0].endpoint (hub-a): \"hub\": not HOST:PORT; write HOST:PORT such as"),
        "{hub}"
    );
}
