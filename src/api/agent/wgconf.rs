//! The configuration format of `wg(8)` with the keys of `wg-quick(8)`. Hooks are refused: the shared secret must not give a
//! root shell.
use ipnet::IpNet;
use spoke_model::address::{HostPort, IfAddress, Masked};
use spoke_model::key::{PresharedKey, PublicKey, SecretKey};
use spoke_model::nets::Nets;
use std::collections::{BTreeMap, BTreeSet};

/// Longest line, in bytes; a peer may have many allowed-ips.
const MAX_LINE: usize = 256 * 1024;

/// Why hooks are refused and what to do instead; follows the name of the hook.
pub const HOOK_REMEDY: &str = "is not run, since the secret of this API would be a root shell: leave it out. What hooks are used \
    for, NAT and forwarding, is set on the node itself with nftables and sysctl (see docs/agent-api.md)";

/// A parsed file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WgConf {
    /// `PrivateKey`.
    pub private_key: Option<SecretKey>,
    /// `ListenPort`; 0 is a random one.
    pub listen_port: Option<u16>,
    /// `FwMark`; 0 is none.
    pub fwmark: Option<u32>,
    /// `Address` of `wg-quick`.
    pub addresses: BTreeSet<IpNet>,
    /// `MTU` of `wg-quick`.
    pub mtu: Option<u32>,
    /// Peers.
    pub peers: BTreeMap<PublicKey, WgPeer>,
    /// What was taken otherwise than it was written.
    pub warnings: Vec<String>,
}

/// A `[Peer]` section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WgPeer {
    /// `PresharedKey`; a key of zeros is none.
    pub preshared_key: Option<PresharedKey>,
    /// `AllowedIPs`.
    pub allowed_ips: Nets,
    /// `PersistentKeepalive`; 0 is off.
    pub keepalive: u16,
    /// `Endpoint`; a name is not resolved yet.
    pub endpoint: Option<HostPort>,
}

/// A syntax error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct BadConf {
    /// Counted from 1.
    pub line: usize,
    /// The problem, without secrets.
    pub problem: String,
}

enum Section {
    None,
    Interface,
    /// Its allowed-ips are collected first and sorted once.
    Peer(Option<PublicKey>, WgPeer, Vec<IpNet>, usize),
}

/// Parses a file as `wg` does: blanks count nowhere, and comments may be in any encoding.
pub fn parse_bytes(bytes: &[u8]) -> Result<WgConf, BadConf> {
    if bytes.contains(&0) {
        return Err(BadConf { line: 1, problem: "the file is not text; some editors write UTF-16".into() });
    }
    // What is not UTF-8 outside of a comment is no valid value.
    parse(&String::from_utf8_lossy(bytes))
}

/// Parses the text of a file.
pub fn parse(text: &str) -> Result<WgConf, BadConf> {
    let mut out = WgConf::default();
    let mut section = Section::None;
    let mut interfaces = 0;
    for (line, raw) in (1..).zip(text.split('\n')) {
        let fail = |problem: String| BadConf { line, problem };
        if raw.len() > MAX_LINE {
            return Err(fail(format!("longer than {MAX_LINE} bytes")));
        }
        let mut content = raw.split('#').next().unwrap_or_default().to_owned();
        content.retain(|c| !c.is_whitespace() && c != '\u{feff}');
        let content = content.as_str();
        if content.is_empty() {
            continue;
        }
        if content.starts_with('[') {
            finish(&mut section, &mut out)?;
            section = if content.eq_ignore_ascii_case("[interface]") {
                interfaces += 1;
                if interfaces > 1 {
                    return Err(fail("second [Interface] section".into()));
                }
                Section::Interface
            } else if content.eq_ignore_ascii_case("[peer]") {
                Section::Peer(None, WgPeer::default(), Vec::new(), line)
            } else {
                return Err(fail("unknown section: expected [Interface] or [Peer]".into()));
            };
            continue;
        }
        let Some((key, value)) = content.split_once('=') else {
            return Err(fail("expected KEY = VALUE".into()));
        };
        let key = key.to_ascii_lowercase();
        match &mut section {
            Section::None => return Err(fail("a key before [Interface] or [Peer]".into())),
            Section::Interface => interface_key(&mut out, &key, value).map_err(fail)?,
            Section::Peer(public, peer, nets, _) => {
                let warn = |w: String| out.warnings.push(format!("line {line}: {w}"));
                peer_key(public, peer, nets, warn, &key, value).map_err(fail)?;
            }
        }
    }
    finish(&mut section, &mut out)?;
    Ok(out)
}

fn finish(section: &mut Section, out: &mut WgConf) -> Result<(), BadConf> {
    let Section::Peer(public, mut peer, nets, line) = std::mem::replace(section, Section::None) else { return Ok(()) };
    peer.allowed_ips = nets.into_iter().collect();
    let Some(public) = public else {
        return Err(BadConf { line, problem: "this [Peer] has no PublicKey".into() });
    };
    if out.peers.insert(public, peer).is_some() {
        return Err(BadConf { line, problem: format!("peer {public} appears twice") });
    }
    Ok(())
}

fn interface_key(out: &mut WgConf, key: &str, value: &str) -> Result<(), String> {
    match key {
        "privatekey" => {
            once(&mut out.private_key, "PrivateKey", value.parse().map_err(|e| format!("PrivateKey: {e}"))?)
        }
        "listenport" => once(&mut out.listen_port, "ListenPort", number(value, "ListenPort", 65_535)?),
        "fwmark" => once(&mut out.fwmark, "FwMark", mark(value)?),
        // As `wg-quick` takes them; some panels write every key.
        "mtu" | "preup" | "postup" | "predown" | "postdown" if value.is_empty() => Ok(()),
        "mtu" => once(&mut out.mtu, "MTU", number(value, "MTU", 65_535)?),
        "address" => {
            for part in list(value) {
                let net: IfAddress = part.parse().map_err(|e| format!("Address {part:?}: {e}"))?;
                out.addresses.insert(net.0);
            }
            Ok(())
        }
        // Of `wg-quick`; they do not concern the peers.
        "dns" | "table" | "saveconfig" => Ok(()),
        "preup" => Err(format!("PreUp {HOOK_REMEDY}")),
        "postup" => Err(format!("PostUp {HOOK_REMEDY}")),
        "predown" => Err(format!("PreDown {HOOK_REMEDY}")),
        "postdown" => Err(format!("PostDown {HOOK_REMEDY}")),
        _ => Err(format!("{key:?} is not a key of [Interface]")),
    }
}

fn peer_key(
    public: &mut Option<PublicKey>,
    peer: &mut WgPeer,
    nets: &mut Vec<IpNet>,
    mut warn: impl FnMut(String),
    key: &str,
    value: &str,
) -> Result<(), String> {
    match key {
        "publickey" => once(public, "PublicKey", value.parse().map_err(|e| format!("PublicKey: {e}"))?),
        "presharedkey" => {
            let psk: PresharedKey = value.parse().map_err(|e| format!("PresharedKey: {e}"))?;
            peer.preshared_key = Some(psk).filter(|k| k.reveal() != &[0; 32]);
            Ok(())
        }
        // Lines accumulate, as in `wg`.
        "allowedips" => {
            for part in list(value) {
                let net: Masked = part.parse().map_err(|e| format!("AllowedIPs {part:?}: {e}"))?;
                if net.had_host_bits {
                    warn(format!("AllowedIPs {part} is taken as {}", net.net));
                }
                nets.push(net.net);
            }
            Ok(())
        }
        "endpoint" => {
            let at: HostPort = value.parse().map_err(|e| format!("Endpoint {value:?}: {e}"))?;
            once(&mut peer.endpoint, "Endpoint", at)
        }
        "persistentkeepalive" => {
            peer.keepalive =
                if value.eq_ignore_ascii_case("off") { 0 } else { number(value, "PersistentKeepalive", 65_535)? };
            Ok(())
        }
        _ => Err(format!("{key:?} is not a key of [Peer]")),
    }
}

fn once<T>(slot: &mut Option<T>, name: &str, value: T) -> Result<(), String> {
    if slot.replace(value).is_some() { Err(format!("{name} appears twice")) } else { Ok(()) }
}

fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').filter(|p| !p.is_empty())
}

fn number<T: TryFrom<u32>>(value: &str, name: &str, max: u32) -> Result<T, String> {
    let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    let n = value.parse::<u32>().ok().filter(|n| digits && *n <= max);
    n.and_then(|n| T::try_from(n).ok()).ok_or_else(|| format!("{name} {value:?} is not a number from 0 to {max}"))
}

fn mark(value: &str) -> Result<u32, String> {
    if value.eq_ignore_ascii_case("off") {
        return Ok(0);
    }
    let parsed = match value.strip_prefix("0x") {
        Some(hex) if hex.bytes().all(|b| b.is_ascii_hexdigit()) => u32::from_str_radix(hex, 16).ok(),
        Some(_) => None,
        None => value.parse().ok().filter(|_| value.bytes().all(|b| b.is_ascii_digit())),
    };
    parsed.ok_or_else(|| format!("FwMark {value:?} is neither \"off\" nor a number such as 0x1234"))
}

#[cfg(test)]
mod tests;
