//! Response bodies in the shapes existing clients read. Secret keys are null unless revealing them is configured.
use super::body::{BadBody, FieldFault};
use super::routes::NoCall;
use crate::exposition::{Exposition, Kind, number};
use crate::health::summary::Link;
use crate::http::Response;
use crate::responses::ResponseCounts;
use ipnet::IpNet;
use serde::Serialize;
use serde_json::{Value, json};
use spoke_change::conflict::Conflict;
use spoke_change::request::ChangeRefused;
use spoke_model::interface_name::IfName;
use spoke_model::key::{PresharedKey, PublicKey};
use spoke_model::nets::Nets;
use spoke_model::time::Boot;
use spoke_net::ages::Handshakes;
use spoke_net::api_state::{ApiStateLink, Table};
use spoke_net::state::{Desired, Observed, ObservedLink};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;

/// Load of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HostLoad {
    /// Percent of all processors since the previous sample.
    pub cpu_percent: f64,
    /// Bytes.
    pub memory_total: u64,
    /// Bytes.
    pub memory_available: u64,
    /// Bytes, of the root file system.
    pub disk_total: u64,
    /// Bytes.
    pub disk_used: u64,
    /// Bytes free to unprivileged users.
    pub disk_free: u64,
    /// Over all interfaces but the loopback.
    pub bytes_sent: u64,
    /// Bytes.
    pub bytes_recv: u64,
    /// Packets.
    pub packets_sent: u64,
    /// Packets.
    pub packets_recv: u64,
}

impl HostLoad {
    fn memory_used(&self) -> u64 {
        self.memory_total.saturating_sub(self.memory_available)
    }

    fn memory_percent(&self) -> f64 {
        percent(self.memory_used(), self.memory_total)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a percentage, rounded for display")]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { (part as f64 / whole as f64 * 1000.0).round() / 10.0 }
}

/// `GET /health`.
pub fn health(timestamp: u64, uptime: u64) -> Value {
    json!({ "status": "ok", "timestamp": timestamp, "uptime": uptime, "version": spoke_model::VERSION })
}

/// `GET /v1/status`.
pub fn status(timestamp: u64, uptime: u64, load: &HostLoad, links: &[Link]) -> Value {
    let mut body = health(timestamp, uptime);
    body["system"] = json!({
        "cpu_percent": load.cpu_percent,
        "memory": {
            "total": load.memory_total, "available": load.memory_available, "percent": load.memory_percent(),
            "used": load.memory_used(),
        },
        "disk": {
            "total": load.disk_total, "used": load.disk_used, "free": load.disk_free,
            "percent": percent(load.disk_used, load.disk_total),
        },
        "network": {
            "bytes_sent": load.bytes_sent, "bytes_recv": load.bytes_recv, "packets_sent": load.packets_sent,
            "packets_recv": load.packets_recv,
        },
    });
    let interfaces: serde_json::Map<String, Value> = links
        .iter()
        .map(|l| {
            let value = json!({
                "status": if l.up { "up" } else { "error" }, "peer_count": l.peers, "active_peers": l.active_peers,
                "total_rx_bytes": l.rx, "total_tx_bytes": l.tx,
            });
            (l.name.clone(), value)
        })
        .collect();
    body["wireguard"] = json!({ "interface_count": interfaces.len(), "interfaces": interfaces });
    body
}

/// `GET /v1/metrics`: the names that dashboards of the fork scrape and, beside those that break Prometheus' rules for names
/// (`percent`, `_count`, `_total` of a gauge), ones that keep them.
pub fn metrics(load: &HostLoad, links: &[Link], responses: &ResponseCounts) -> String {
    let mut out = Exposition::default();
    let (memory, percent) = (load.memory_used(), load.memory_percent());
    for (name, help, value) in [
        ("wgdashboard_agent_cpu_percent", "CPU usage in percent", load.cpu_percent),
        ("wgdashboard_agent_cpu_ratio", "CPU usage, 0 to 1", load.cpu_percent / 100.0),
        ("wgdashboard_agent_memory_used_bytes", "Memory in use", number(memory)),
        ("wgdashboard_agent_memory_percent", "Memory in use in percent", percent),
        ("wgdashboard_agent_memory_ratio", "Memory in use, 0 to 1", percent / 100.0),
        ("wgdashboard_agent_disk_used_bytes", "Root file system in use", number(load.disk_used)),
        ("wireguard_interface_count", "WireGuard interfaces", number(links.len() as u64)),
        ("wireguard_interfaces", "WireGuard interfaces", number(links.len() as u64)),
    ] {
        out.single(Kind::Gauge, name, help, value);
    }
    type Value = fn(&Link) -> u64;
    let received = "Bytes received since the interface was created";
    let sent = "Bytes sent since the interface was created";
    let families: [(Kind, &'static str, &str, Value); 3] = [
        (Kind::Gauge, "wireguard_peers_total", "Peers of the interface", |l| l.peers as u64),
        (Kind::Counter, "wireguard_interface_receive_bytes_total", received, |l| l.rx),
        (Kind::Counter, "wireguard_interface_transmit_bytes_total", sent, |l| l.tx),
    ];
    for (kind, name, help, value) in families {
        let samples: Vec<_> = links.iter().map(|l| (l.name.as_str(), number(value(l)))).collect();
        out.by(kind, name, help, "interface", &samples);
    }
    crate::health::metrics::links(&mut out, links);
    responses.write(&mut out, "spoke_agent_responses_total", "Responses of the agent API by status");
    out.into_text()
}

#[derive(Serialize)]
struct Dump<'a> {
    interface: &'a str,
    peers: Vec<DumpPeer>,
    recent_repairs: usize,
}

#[derive(Serialize)]
struct DumpPeer {
    public_key: String,
    preshared_key: Option<String>,
    endpoint: Option<String>,
    allowed_ips: Vec<String>,
    latest_handshake: Option<u64>,
    transfer_rx: u64,
    transfer_tx: u64,
    persistent_keepalive: u16,
}

/// `GET /v1/wg/{if}/dump`. `recent_repairs`: how many of the last drifts were repaired on this interface, since a client sees
/// it repaired.
pub fn dump(name: &IfName, link: &ObservedLink, recent_repairs: usize, reveal: bool) -> Response {
    let peer = |(key, p): (&spoke_model::key::PublicKey, &spoke_net::state::ObservedPeer)| DumpPeer {
        public_key: key.to_string(),
        preshared_key: p.preshared_key.as_ref().filter(|_| reveal).map(|k| k.reveal_base64().to_string()),
        endpoint: p.endpoint.map(|e| e.to_string()),
        allowed_ips: p.allowed_ips.iter().map(ToString::to_string).collect(),
        latest_handshake: p.counters.last_handshake.map(|h| h.as_secs()),
        transfer_rx: p.counters.rx,
        transfer_tx: p.counters.tx,
        persistent_keepalive: p.keepalive,
    };
    let peers = link.peers.iter().map(peer).collect();
    Response::json(200, &Dump { interface: name.as_str(), peers, recent_repairs })
}

/// `GET /v1/wg/{if}/config`: the desired interface, also as a `wg-quick` file.
pub fn config(
    name: &IfName,
    desired: &Desired,
    observed: &Observed,
    set: Option<&ApiStateLink>,
    reveal: bool,
) -> Option<Value> {
    let want = desired.links.get(name)?;
    let device = set.and_then(|s| s.device.as_deref());
    let secret = reveal.then(|| want.private_key.reveal_base64().to_string());
    let port = match want.listen_port {
        spoke_net::state::ListenPort::Fixed(port) => Some(port),
        spoke_net::state::ListenPort::Random { .. } => {
            observed.links.get(name).map(|l| l.listen_port).filter(|p| *p != 0)
        }
    };
    let search = device.iter().flat_map(|d| d.dns_search.iter().cloned());
    let dns = want.dns.iter().map(ToString::to_string).chain(search).collect::<Vec<_>>().join(", ");
    let table = match device.map(|d| d.table) {
        None | Some(Table::Auto) => None,
        Some(Table::Off) => Some("off".to_owned()),
        Some(Table::Number(n)) => Some(n.to_string()),
    };
    let peers = want.peers.iter().map(|(key, peer)| ShownPeer {
        key,
        preshared_key: peer.preshared_key.as_ref().filter(|_| reveal),
        allowed_ips: &peer.allowed_ips,
        endpoint: peer.endpoint.map(|e| e.addr),
        keepalive: peer.keepalive,
    });
    let own = ShownLink { secret, port, addresses: &want.addresses, mtu: want.mtu, dns, table };
    Some(own.write(name, peers))
}

/// The same of an interface that nothing declares, as the kernel has it.
pub fn found_config(name: &IfName, link: &ObservedLink, reveal: bool) -> Value {
    let peers = link.peers.iter().map(|(key, peer)| ShownPeer {
        key,
        preshared_key: peer.preshared_key.as_ref().filter(|_| reveal),
        allowed_ips: &peer.allowed_ips,
        endpoint: peer.endpoint,
        keepalive: peer.keepalive,
    });
    let port = Some(link.listen_port).filter(|p| *p != 0);
    let (addresses, mtu) = (&link.addresses, link.mtu);
    ShownLink { secret: None, port, addresses, mtu, dns: String::new(), table: None }.write(name, peers)
}

struct ShownLink<'a> {
    secret: Option<String>,
    port: Option<u16>,
    addresses: &'a BTreeSet<IpNet>,
    mtu: u32,
    dns: String,
    table: Option<String>,
}

struct ShownPeer<'a> {
    key: &'a PublicKey,
    preshared_key: Option<&'a PresharedKey>,
    allowed_ips: &'a Nets,
    endpoint: Option<SocketAddr>,
    keepalive: u16,
}

impl ShownLink<'_> {
    fn write<'p>(self, name: &IfName, peers: impl Iterator<Item = ShownPeer<'p>>) -> Value {
        let address = self.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let raw = raw_config(&self, &address, peers);
        let Self { secret, port, mtu, dns, table, .. } = self;
        json!({
            "interface": name,
            "config": {
                "private_key": secret, "listen_port": port, "address": address, "post_up": null, "pre_down": null,
                "mtu": mtu, "dns": Some(dns).filter(|d| !d.is_empty()), "table": table, "raw_config": raw,
            },
        })
    }
}

fn raw_config<'p>(own: &ShownLink<'_>, address: &str, peers: impl Iterator<Item = ShownPeer<'p>>) -> String {
    let mut raw = String::from("[Interface]\n");
    let mut line = |key: &str, value: Option<&str>| {
        if let Some(value) = value.filter(|v| !v.is_empty()) {
            let _ = writeln!(raw, "{key} = {value}");
        }
    };
    line("PrivateKey", own.secret.as_deref());
    line("ListenPort", own.port.map(|p| p.to_string()).as_deref());
    line("Address", Some(address));
    line("MTU", Some(&own.mtu.to_string()));
    line("DNS", Some(&own.dns));
    line("Table", own.table.as_deref());
    for peer in peers {
        let _ = write!(raw, "\n[Peer]\nPublicKey = {}\n", peer.key);
        if let Some(psk) = peer.preshared_key {
            let _ = writeln!(raw, "PresharedKey = {}", psk.reveal_base64().as_str());
        }
        if !peer.allowed_ips.is_empty() {
            let nets: Vec<String> = peer.allowed_ips.iter().map(ToString::to_string).collect();
            let _ = writeln!(raw, "AllowedIPs = {}", nets.join(", "));
        }
        if let Some(endpoint) = peer.endpoint {
            let _ = writeln!(raw, "Endpoint = {endpoint}");
        }
        if peer.keepalive != 0 {
            let _ = writeln!(raw, "PersistentKeepalive = {}", peer.keepalive);
        }
    }
    raw
}

/// The observed interfaces, for status and metrics.
pub fn links(desired: &Desired, observed: &Observed, handshakes: &Handshakes, now: Boot) -> Vec<Link> {
    Link::all(desired, observed, handshakes, now)
}

/// The response to an invalid body.
pub fn bad_body(bad: &BadBody) -> Response {
    match bad {
        BadBody::Malformed(problem) => Response::error(400, problem),
        BadBody::Invalid(faults) => invalid(faults),
    }
}

fn invalid(faults: &[FieldFault]) -> Response {
    Response::json(422, &json!({ "detail": faults }))
}

/// The response to a request that names no call.
pub fn no_call(no: NoCall) -> Response {
    match no {
        NoCall::Unknown => Response::error(404, &no.to_string()),
        NoCall::Method(allowed) => Response::error(405, &no.to_string()).with("allow", allowed),
        NoCall::BadLink | NoCall::BadKey => Response::error(400, &no.to_string()),
    }
}

/// The response to a refused change.
pub fn refused(refused: &ChangeRefused) -> Response {
    let status = match refused {
        ChangeRefused::Conflict(c) if c.is_missing() => 404,
        ChangeRefused::Conflict(Conflict::TooMany { .. } | Conflict::SmallMtu(_)) | ChangeRefused::Invalid(_) => 422,
        ChangeRefused::Conflict(_) | ChangeRefused::Unconfirmed(_) | ChangeRefused::NothingToConfirm(_) => 409,
        ChangeRefused::NoGeneration { .. } => 404,
        ChangeRefused::Kernel(_) | ChangeRefused::Revoked(_) | ChangeRefused::Storage(_) => 503,
        ChangeRefused::Busy => return Response::error(503, &refused.to_string()).with("retry-after", "1"),
    };
    Response::error(status, &refused.to_string())
}
