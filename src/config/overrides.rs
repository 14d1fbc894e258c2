//! What an operator sets for one node in place of what its configuration and its network say.
//!
//! Absent inherits; 0 is a value: a keepalive of 0 is off, a listen port of 0 is a random one, an MTU of 0 the default; an
//! empty list is a value too.
use crate::Config;
use crate::interface::{DEFAULT_MTU, Interface};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use spoke_model::wireguard::MTU_RANGE;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::IpAddr;

/// The longest accepted set of allowed-ips of one peer.
pub const MAX_ALLOWED_IPS: usize = 4_096;

/// Most resolvers.
pub const MAX_DNS: usize = 8;

/// Overrides of one node, applied by `derive` to the interface that the control plane decides about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Overrides {
    /// UDP port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_port: Option<u16>,
    /// Resolvers inside the tunnel, for whoever sets up name resolution.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Vec<IpAddr>>,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Seconds between keepalives, for every peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive: Option<u16>,
    /// What is routed to the hub in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_allowed_ips: Option<BTreeSet<IpNet>>,
}

impl Overrides {
    /// Everything is inherited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Why they cannot be applied.
    pub fn check(&self) -> Result<(), String> {
        if let Some(mtu) = self.mtu.filter(|m| *m != 0 && !MTU_RANGE.contains(m)) {
            return Err(format!("the overriding MTU {mtu} is not 0 or 576 to 65455"));
        }
        if self.dns.as_ref().is_some_and(|d| d.len() > MAX_DNS) {
            return Err(format!("more than {MAX_DNS} overriding resolvers"));
        }
        let nets = self.endpoint_allowed_ips.iter().flatten();
        if let Some(net) = nets.clone().find(|n| n.trunc() != **n) {
            return Err(format!("the overriding allowed-ip {net} is not canonical"));
        }
        match nets.count() > MAX_ALLOWED_IPS {
            true => Err(format!("more than {MAX_ALLOWED_IPS} overriding allowed-ips")),
            false => Ok(()),
        }
    }

    /// What is overridden on `interface` and what would hold without it, as lines for people.
    pub fn lines(&self, interface: &Interface, config: &Config) -> Vec<String> {
        let mut out = Vec::new();
        let mut line = |what: &str, value: &dyn Display, instead: &dyn Display| {
            out.push(format!("{}: {what} {value} by override, instead of {instead}", interface.name));
        };
        let port = |p: u16| if p == 0 { "random".to_owned() } else { p.to_string() };
        let seconds = |s: u16| if s == 0 { "off".to_owned() } else { format!("{s}s") };
        if let Some(p) = self.listen_port {
            line("listen port", &port(p), &port(interface.listen_port.unwrap_or(0)));
        }
        if let Some(mtu) = self.mtu {
            line("mtu", &if mtu == 0 { DEFAULT_MTU } else { mtu }, &interface.mtu);
        }
        if let Some(keepalive) = self.keepalive {
            let hubs = config.uplink.iter().flat_map(|u| &u.hubs).map(|h| h.keepalive);
            let own: BTreeSet<String> = hubs.chain(interface.peers.iter().map(|p| p.keepalive)).map(seconds).collect();
            line("keepalive", &seconds(keepalive), &list(&own));
        }
        if let Some(dns) = &self.dns {
            line("dns", &list(dns), &list(&interface.dns));
        }
        if let Some(nets) = &self.endpoint_allowed_ips {
            let own = config.uplink.iter().flat_map(|u| u.hubs.iter().take(1)).flat_map(|h| &h.allowed_ips);
            line("allowed-ips of the hub", &list(nets), &list(own.map(|c| c.0).collect::<Vec<_>>().iter()));
        }
        out
    }
}

fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let text = items.into_iter().map(|i| i.to_string()).collect::<Vec<_>>().join(",");
    if text.is_empty() { "none".to_owned() } else { text }
}
