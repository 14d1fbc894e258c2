//! `[health]`: the local endpoints.
use super::reader::Table;
use ipnet::IpNet;
use serde::Serialize;
use std::net::SocketAddr;

/// `[health]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Health {
    /// Whether they are served.
    pub enabled: bool,
    /// Where they listen.
    pub listen: Vec<SocketAddr>,
    /// Whether they also listen at our tunnel addresses, at the port of the first `listen` address.
    pub tunnel: bool,
    /// Networks of clients that may read more than `/health` and `/ready`, besides this machine's loopback.
    pub details_from: Vec<IpNet>,
    /// Origins of browser pages that may read `/health`.
    pub allowed_origins: Vec<String>,
    /// Names accepted in the `Host` header besides addresses and `localhost`.
    pub allowed_hosts: Vec<String>,
    /// Whether `/metrics` has series of each peer.
    pub peer_metrics: bool,
}

impl Health {
    pub(super) fn read(t: &mut Table<'_>) -> Self {
        let listen = t.list("listen", "ADDRESS:PORT such as 127.0.0.1:8080");
        if listen.as_ref().is_some_and(Vec::is_empty) {
            t.fault("listen", "is empty", "add an address, or set health.enabled = false");
        }
        let allowed_origins: Vec<String> =
            t.list("allowed_origins", "an origin such as https://monitor.example.net").unwrap_or_default();
        for (i, origin) in allowed_origins.iter().enumerate() {
            let rest = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            if rest.is_none_or(|r| r.is_empty() || r.contains(['/', '*', ' ', '@'])) {
                t.fault(
                    &format!("allowed_origins[{i}]"),
                    "is not an origin",
                    "write scheme and host such as https://monitor.example.net",
                );
            }
        }
        Self {
            enabled: t.flag("enabled").unwrap_or(true),
            listen: listen.unwrap_or_else(|| vec![SocketAddr::from(([127, 0, 0, 1], 8080))]),
            tunnel: t.flag("tunnel").unwrap_or(true),
            details_from: t.list("details_from", "a network such as 10.8.0.1/32").unwrap_or_default(),
            allowed_origins,
            allowed_hosts: t.list("allowed_hosts", "a host name").unwrap_or_default(),
            peer_metrics: t.flag("peer_metrics").unwrap_or(false),
        }
    }
}
