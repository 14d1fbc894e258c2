//! What an operator sets for one node in place of what its configuration and its network say.
//!
//! Absent inherits; 0 is a value: a keepalive of 0 is off, a listen port of 0 is a random one, an MTU of 0 the default; an
//! empty list is a value too.
use super::state::MAX_ALLOWED_IPS;
use crate::config::Config;
use crate::config::interface::{DEFAULT_MTU, Interface};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::IpAddr;

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
        if let Some(mtu) = self.mtu.filter(|m| *m != 0 && !(576..=65_455).contains(m)) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::derive::{Facts, HubPeer, Keys, UplinkChoice, derive};
    use crate::net::key::{PublicKey, SecretKey};
    use crate::net::state::{Desired, Link, ListenPort};
    use std::sync::Arc;

    const CONFIG: &str = r#"
[node]
id = "edge-1"
[control]
url = "https://c.example.net:8443"
[[interface]]
name = "wg0"
listen_port = 51820
mtu = 1400
dns = ["10.8.0.1"]
addresses = ["10.8.0.2/24"]
[[interface]]
name = "wg1"
listen_port = 51821
mtu = 1400
[uplink]
interface = "wg0"
[[uplink.hub]]
name = "hub-a"
public_key = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="
endpoint = "192.0.2.1:51820"
address = "10.8.0.1"
allowed_ips = ["10.8.0.1/32"]
"#;

    fn derived(overrides: Overrides) -> (Link, Link, Vec<String>) {
        let mut config = Config::from_text(Some(("test", CONFIG)), []).unwrap();
        config.overrides = overrides;
        let names = ["wg0", "wg1"].map(|n| n.parse().unwrap());
        let private = names.iter().cloned().zip((1..).map(|b| SecretKey::clamped([b; 32]))).collect();
        let uplink = config.uplink.as_ref().unwrap();
        let choice = UplinkChoice {
            interface: uplink.interface.clone(),
            active: HubPeer { hub: Arc::new(uplink.hubs[0].clone()), endpoint: None },
            standby: None,
            port_epoch: 0,
            rebuild: 0,
        };
        let keys = Arc::new(Keys { private, ..Keys::default() });
        let facts = Facts { keys, uplink: Some(Arc::new(choice)), ..Facts::default() };
        let desired = derive(&config, &facts, &Desired::default()).unwrap();
        let lines = config.overrides.lines(&config.interfaces[0], &config);
        (desired.links[&names[0]].clone(), desired.links[&names[1]].clone(), lines)
    }

    #[test]
    fn null_inherits_and_zero_is_a_value() {
        let hub = PublicKey([7; 32]);
        let (inherited, other, lines) = derived(Overrides::default());
        assert_eq!((inherited.listen_port, inherited.mtu), (ListenPort::Fixed(51820), 1400));
        assert_eq!((inherited.dns.len(), inherited.peers[&hub].keepalive, lines.len()), (1, 25, 0));
        let zero = Overrides {
            listen_port: Some(0),
            dns: Some(Vec::new()),
            mtu: Some(0),
            keepalive: Some(0),
            endpoint_allowed_ips: Some(BTreeSet::new()),
        };
        let (zeroed, untouched, lines) = derived(zero);
        assert_eq!((zeroed.listen_port, zeroed.mtu), (ListenPort::Random { epoch: 0 }, DEFAULT_MTU));
        assert_eq!((zeroed.dns.len(), zeroed.peers[&hub].keepalive), (0, 0));
        let own = ["10.8.0.1/32".parse().unwrap()].into();
        assert_eq!(zeroed.peers[&hub].allowed_ips, own, "the hub itself stays reachable");
        assert_eq!(untouched, other, "only the interface that the control plane decides about");
        assert_eq!(
            lines,
            [
                "wg0: listen port random by override, instead of 51820",
                "wg0: mtu 1280 by override, instead of 1400",
                "wg0: keepalive off by override, instead of 25s",
                "wg0: dns none by override, instead of 10.8.0.1",
                "wg0: allowed-ips of the hub none by override, instead of 10.8.0.1/32",
            ]
        );
        let set = Overrides {
            listen_port: Some(6000),
            dns: Some(vec!["9.9.9.9".parse().unwrap()]),
            mtu: Some(1300),
            keepalive: Some(10),
            endpoint_allowed_ips: Some(["10.0.0.0/8".parse().unwrap()].into()),
        };
        assert_eq!(serde_json::from_str::<Overrides>(&serde_json::to_string(&set).unwrap()).unwrap(), set);
        let (link, ..) = derived(set);
        assert_eq!((link.listen_port, link.mtu, link.dns.len()), (ListenPort::Fixed(6000), 1300, 1));
        assert_eq!((link.peers[&hub].keepalive, link.routes.len()), (10, 1));
    }

    #[test]
    fn an_override_too_narrow_for_ipv6_leaves_the_last_good_state() {
        let text = "[node]\nid = \"edge-1\"\n[control]\nurl = \"https://c.example.net\"\n\
                    [[interface]]\nname = \"wg0\"\nmtu = 1400\naddresses = [\"10.8.0.2/24\", \"fd00::2/64\"]\n";
        let mut config = Config::from_text(Some(("test", text)), []).unwrap();
        let private = [("wg0".parse().unwrap(), SecretKey::clamped([1; 32]))].into();
        let facts = Facts { keys: Arc::new(Keys { private, ..Keys::default() }), ..Facts::default() };
        for (mtu, good) in [(Some(1280), true), (Some(0), true), (None, true), (Some(1279), false)] {
            config.overrides.mtu = mtu;
            let derived = derive(&config, &facts, &Desired::default());
            assert_eq!(derived.is_ok(), good, "{mtu:?}: {:?}", derived.err());
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(Overrides { mtu: Some(100), ..Overrides::default() }.check().unwrap_err().contains("100"));
        let nets = ["10.0.0.1/8".parse().unwrap()].into();
        assert!(Overrides { endpoint_allowed_ips: Some(nets), ..Overrides::default() }.check().is_err());
        assert!(Overrides { dns: Some(vec![[9, 9, 9, 9].into(); 9]), ..Overrides::default() }.check().is_err());
        assert!(Overrides { mtu: Some(0), ..Overrides::default() }.check().is_ok());
    }
}
