//! Converts a file of `wg-quick(8)` into a configuration. Pure.
use ipnet::IpNet;
use spoke_api::agent::wgconf::{BadConf, WgConf, WgPeer, parse_bytes};
use spoke_model::interface_name::IfName;
use spoke_model::key::PublicKey;
use spoke_model::secret::Secret;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// A converted file.
#[derive(Debug)]
pub struct Import {
    /// The configuration.
    pub toml: String,
    /// Key files with their content.
    pub secrets: Vec<(PathBuf, Secret<String>)>,
    /// What was left out or needs a decision, one a line.
    pub notes: Vec<String>,
}

/// Table and mark that `wg-quick` takes for a default route.
const DEFAULT_TABLE: u32 = 51820;

/// Keys of `wg-quick` that `wg` does not know, and names in comments.
#[derive(Default)]
struct Extras {
    dns: Vec<IpAddr>,
    table: Option<String>,
    names: BTreeMap<PublicKey, String>,
    notes: Vec<String>,
}

/// Converts the file of the interface `name`; its keys go below `key_dir`.
///
/// # Errors
/// The file is not one of `wg-quick`.
pub fn convert(name: &IfName, bytes: &[u8], key_dir: &Path) -> Result<Import, BadConf> {
    let (rest, extras) = take_extras(bytes);
    let conf = parse_bytes(rest.as_bytes())?;
    let Extras { dns, table, names, mut notes } = extras;
    notes.extend(conf.warnings.iter().cloned());
    let mut secrets = Vec::new();
    let mut toml = String::from("# Converted by `spoke import`; every key is explained in docs/configure.md.\n");
    let _ = writeln!(toml, "[[interface]]\nname = \"{name}\"");
    match &conf.private_key {
        Some(key) => {
            let path = key_dir.join(format!("{name}.key"));
            let _ = writeln!(toml, "private_key = \"file:{}\"", path.display());
            secrets.push((path, Secret::new(format!("{}\n", key.reveal_base64().as_str()))));
        }
        None => notes.push("there is no PrivateKey: `spoke run` creates one, which the peers must learn".to_owned()),
    }
    if let Some(port) = conf.listen_port.filter(|p| *p != 0) {
        let _ = writeln!(toml, "listen_port = {port}");
    }
    match conf.mtu {
        Some(mtu) => drop(writeln!(toml, "mtu = {mtu}")),
        None => notes
            .push("there is no MTU: Spoke uses 1280 and not the path's; plain Ethernet allows mtu = 1420".to_owned()),
    }
    let _ = writeln!(toml, "addresses = {}", list(conf.addresses.iter()));
    if !dns.is_empty() {
        let _ = writeln!(toml, "dns = {}", list(dns.iter()));
        notes.push("DNS: Spoke shows dns to other programs and leaves the system's resolvers alone".to_owned());
    }
    routing(&conf, table.as_deref(), &mut toml, &mut notes);
    if is_nested(&conf) {
        toml.push_str("nested_allowed_ips = true\n");
    }
    for (n, (key, peer)) in (1..).zip(&conf.peers) {
        let _ = writeln!(toml, "\n[[interface.peer]]");
        if let Some(name) = names.get(key) {
            let _ = writeln!(toml, "name = \"{name}\"");
        }
        let _ = writeln!(toml, "public_key = \"{key}\"");
        write_peer(peer, &key_dir.join(format!("{name}-{n}.psk")), &mut toml, &mut secrets);
    }
    if conf.peers.len() == 1 && conf.peers.values().all(|p| p.endpoint.is_some()) {
        notes.push(
            "the only peer has an endpoint: as [[uplink.hub]] with its address inside the tunnel Spoke keeps the connection to it up (docs/configure.md)"
                .to_owned(),
        );
    }
    Ok(Import { toml, secrets, notes })
}

fn write_peer(peer: &WgPeer, psk: &Path, toml: &mut String, secrets: &mut Vec<(PathBuf, Secret<String>)>) {
    if let Some(key) = &peer.preshared_key {
        let _ = writeln!(toml, "preshared_key = \"file:{}\"", psk.display());
        secrets.push((psk.to_owned(), Secret::new(format!("{}\n", key.reveal_base64().as_str()))));
    }
    let _ = writeln!(toml, "allowed_ips = {}", list(peer.allowed_ips.iter()));
    if let Some(endpoint) = &peer.endpoint {
        let _ = writeln!(toml, "endpoint = \"{endpoint}\"");
    }
    if peer.keepalive != 0 {
        let _ = writeln!(toml, "keepalive = {}", peer.keepalive);
    }
}

fn list(items: impl Iterator<Item = impl std::fmt::Display>) -> String {
    let items: Vec<String> = items.map(|i| format!("\"{i}\"")).collect();
    format!("[{}]", items.join(", "))
}

/// `Table`, `FwMark`, and what `wg-quick` does by itself for a default route.
fn routing(conf: &WgConf, table: Option<&str>, toml: &mut String, notes: &mut Vec<String>) {
    let mark = conf.fwmark.filter(|m| *m != 0);
    let default = conf.peers.values().any(|p| p.allowed_ips.iter().any(|n| n.prefix_len() == 0));
    match table {
        Some("off") => toml.push_str("routes = false\n"),
        Some(number) if number.parse::<u32>().is_ok() => drop(writeln!(toml, "table = {number}")),
        None | Some("auto" | "main") if default => {
            let mark = mark.unwrap_or(DEFAULT_TABLE);
            let _ = writeln!(toml, "fwmark = {mark}\ntable = {DEFAULT_TABLE}");
            notes.push(format!(
                "a default route needs two rules, which wg-quick made and Spoke does not: ip rule add not fwmark {mark} table {DEFAULT_TABLE}; ip rule add table main suppress_prefixlength 0 (with ip -6 for IPv6)"
            ));
            return;
        }
        None | Some("auto" | "main") => {}
        Some(other) => notes.push(format!("Table = {other}: write the number of the table as `table`")),
    }
    if let Some(mark) = mark {
        let _ = writeln!(toml, "fwmark = {mark}");
    }
}

/// Whether a network of one peer lies inside another's.
fn is_nested(conf: &WgConf) -> bool {
    let mut all: Vec<(IpNet, usize)> =
        conf.peers.values().enumerate().flat_map(|(i, p)| p.allowed_ips.iter().map(move |n| (*n, i))).collect();
    all.sort_unstable();
    let mut open: Vec<(IpNet, usize)> = Vec::new();
    all.into_iter().any(|(net, i)| {
        open.retain(|(o, _)| o.contains(&net));
        let inside = open.iter().any(|(o, j)| *j != i && *o != net);
        open.push((net, i));
        inside
    })
}

/// The text without what only `wg-quick` knows; its lines keep their numbers.
fn take_extras(bytes: &[u8]) -> (String, Extras) {
    let mut extras = Extras::default();
    let (mut rest, mut name) = (String::with_capacity(bytes.len()), None);
    for (line, raw) in (1..).zip(String::from_utf8_lossy(bytes).split('\n')) {
        let (code, comment) = raw.split_once('#').map_or((raw, None), |(code, comment)| (code, Some(comment)));
        if let Some(known) = comment.and_then(name_in) {
            name = Some(known);
        }
        let (key, value) = code.split_once('=').map_or((code, ""), |(k, v)| (k, v.trim()));
        let key: String = key.chars().filter(|c| !c.is_whitespace()).collect::<String>().to_ascii_lowercase();
        let kept = match key.as_str() {
            "dns" => {
                for part in value.split(',').map(str::trim).filter(|p| !p.is_empty()) {
                    match part.parse() {
                        Ok(address) => extras.dns.push(address),
                        Err(_) => extras.notes.push(format!("line {line}: the search domain {part} is left out")),
                    }
                }
                ""
            }
            "table" => {
                extras.table = Some(value.to_ascii_lowercase());
                ""
            }
            "saveconfig" => {
                if value.eq_ignore_ascii_case("true") {
                    extras.notes.push(format!(
                        "line {line}: SaveConfig: peers added with `wg set` are not kept; add them to the file or through the agent API"
                    ));
                }
                ""
            }
            "preup" | "postup" | "predown" | "postdown" => {
                for command in value.split(';').map(str::trim).filter(|c| !c.is_empty()) {
                    extras.notes.push(format!("line {line}: {command}: not run; {}", instead(command)));
                }
                ""
            }
            "publickey" => {
                if let (Some(name), Ok(key)) = (name.take(), value.parse()) {
                    extras.names.insert(key, name);
                }
                raw
            }
            _ => raw,
        };
        rest.push_str(kept);
        rest.push('\n');
    }
    (rest, extras)
}

/// A peer's name in a comment: of wg-easy, WGDashboard, and of exporters.
fn name_in(comment: &str) -> Option<String> {
    let comment = comment.trim();
    let name = match comment.strip_prefix("Client:") {
        Some(rest) => rest.rsplit_once(" (").map_or(rest, |(name, _)| name),
        None => {
            let (key, name) = comment.split_once('=')?;
            let key = key.trim().trim_matches('#').trim();
            ["name", "friendly_name"].iter().any(|k| key.eq_ignore_ascii_case(k)).then_some(name)?
        }
    };
    let plain = |c: char| if c.is_alphanumeric() || " .-_@()+".contains(c) { c } else { '_' };
    let name: String = name.trim().chars().take(64).map(plain).collect();
    (!name.is_empty()).then_some(name)
}

/// What stands for the command of a hook.
fn instead(command: &str) -> &'static str {
    let has = |word: &str| command.contains(word);
    if has("MASQUERADE") || has("masquerade") || has("SNAT") {
        "Spoke sets up no NAT: keep the rule in the machine's own firewall"
    } else if has("forward=") || has("forwarding=") {
        "put it into a file of /etc/sysctl.d"
    } else if (has("iptables") || has("ip6tables") || has("nft ")) && has("FORWARD") {
        "on a hub `forwarding = true` of the interface lets peers reach each other; other rules belong to the machine's own firewall"
    } else if has("iptables") || has("nft ") || has("ufw ") || has("firewall-cmd") {
        "keep the rule in the machine's own firewall"
    } else if has("ip rule") || has("ip -4 rule") || has("ip -6 rule") {
        "keep the rule in the network's configuration; `table` and `fwmark` of the interface go with it"
    } else if has("ip route") || has("ip -4 route") || has("ip -6 route") {
        "routes follow the peers' allowed_ips, with `table` and `route_metric` of the interface"
    } else if has("resolvconf") || has("resolvectl") {
        "set the resolver where the machine sets it; Spoke shows `dns` only"
    } else {
        "run it from a unit of its own with After=spoke.service"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spoke_config::Config;

    const A: &str = "9s4Zq0QFzPNW7vYkFGcGEJtVXWd3BBJ3zOqDLE3gIyM=";
    const B: &str = "gL9MIhpbgYcBdJHJ9cdTLoCzRXOg0tDmpmFmKTN6FlA=";

    fn import(text: &str) -> (Config, Import) {
        let done = convert(&"wg0".parse().unwrap(), text.as_bytes(), Path::new("/var/lib/spoke")).unwrap();
        let config = Config::from_text(Some(("x", &done.toml)), []);
        (config.unwrap_or_else(|e| panic!("{e}\n{}", done.toml)), done)
    }

    fn notes(import: &Import, parts: &[&str]) {
        let text = import.notes.join("\n");
        for part in parts {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn hub_of_wg_easy_is_converted() {
        let (config, done) = import(&format!(
            "# Note: Do not edit this file directly.\n\n# Server\n[Interface]\nPrivateKey = {A}\nAddress = 10.8.0.1/24\nListenPort = 51820\nPreUp = \nPostUp =  iptables -t nat -A POSTROUTING -s 10.8.0.0/24 -o eth0 -j MASQUERADE; iptables -A FORWARD -i wg0 -j ACCEPT; sysctl -w net.ipv4.ip_forward=1;\nPostDown = \n\n# Client: phone \"x\" (6a1c-77)\n[Peer]\nPublicKey = {B}\nPresharedKey = {A}\nAllowedIPs = 10.8.0.2/32\n"
        ));
        let link = &config.interfaces[0];
        assert_eq!((link.listen_port, link.peers[0].name.as_deref()), (Some(51820), Some("phone _x_")));
        assert_eq!(link.peers[0].allowed_ips[0].0.to_string(), "10.8.0.2/32");
        let files: Vec<_> = done.secrets.iter().map(|(p, s)| (p.to_str().unwrap(), s.reveal().as_str())).collect();
        let key = format!("{A}\n");
        assert_eq!(files[1], ("/var/lib/spoke/wg0-1.psk", key.as_str()));
        assert_eq!(files[0].0, "/var/lib/spoke/wg0.key");
        assert!(!done.toml.contains(A), "no secret in the configuration");
        notes(&done, &["line 9: iptables -t nat", "no NAT", "forwarding = true", "/etc/sysctl.d", "1280"]);
        assert_eq!(done.notes.iter().filter(|n| n.contains("not run")).count(), 3, "{:?}", done.notes);
    }

    #[test]
    fn client_with_a_default_route_is_converted() {
        let (config, done) = import(&format!(
            "[Interface]\nPrivateKey={A}\nAddress=10.7.0.2\nDNS = 8.8.8.8, corp.example\n[Peer]\nPublicKey={B}\nAllowedIPs=0.0.0.0/0, ::/0\nEndpoint=vpn.example.net:51820\nPersistentKeepalive=25\n"
        ));
        let link = &config.interfaces[0];
        assert_eq!((link.table, link.fwmark, link.dns.len()), (51820, 51820, 1));
        assert_eq!(link.peers[0].keepalive, 25);
        notes(&done, &["ip rule add not fwmark 51820", "search domain corp.example", "[[uplink.hub]]"]);
    }

    #[test]
    fn tables_names_and_nested_networks_are_kept() {
        let (config, done) = import(&format!(
            "[Interface]\nTable = off\nFwMark = 0x10\nMTU = 1380\nSaveConfig = true\n#Name# = left\n[Peer]\nPublicKey={A}\nAllowedIPs=10.9.0.0/16\n[Peer]\nPublicKey={B} # friendly_name = right\nAllowedIPs=10.9.1.7/24\n"
        ));
        let link = &config.interfaces[0];
        assert!(!link.routes && link.nested_allowed_ips && link.fwmark == 16 && link.mtu == 1380);
        let names: Vec<_> = link.peers.iter().map(|p| p.name.as_deref()).collect();
        assert!(names.contains(&Some("left")) && names.contains(&Some("right")), "{names:?}");
        notes(&done, &["no PrivateKey", "SaveConfig", "10.9.1.0/24"]);
        let bad = convert(&"wg0".parse().unwrap(), b"[Interface]\nDNS = 1.1.1.1\nPrivateKey = x\n", Path::new("/"));
        assert_eq!(bad.unwrap_err().line, 3, "lines keep their numbers");
    }
}
