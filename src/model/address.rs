//! Networks, interface addresses, and hosts with a port, in text.
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::str::FromStr;

/// A network in canonical form: no host bits, no IPv4 inside IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Cidr(pub IpNet);

/// Text that is not a canonical network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCidr {
    /// Not an address with a prefix length.
    #[error("not a network such as 10.0.0.0/24 or fd00::/64")]
    Syntax,
    /// The address has bits beyond the prefix.
    #[error("has host bits set; the network is {0}")]
    HostBits(IpNet),
    /// An IPv4-mapped IPv6 network.
    #[error("is IPv4 written as IPv6; write the IPv4 network")]
    Mapped,
    /// Not assignable to an interface.
    #[error("cannot be an address of an interface: unspecified, multicast, broadcast or ::1")]
    NotAssignable,
}

fn network(text: &str) -> Result<IpNet, BadCidr> {
    // Strict: other parsers read 010.0.0.0 as 10.0.0.0 and `wg` reads it as 8.0.0.0.
    let address = |text: &str| text.parse::<IpAddr>().map_err(|_| BadCidr::Syntax);
    let net = match text.split_once('/') {
        // An address without a length is a host, as in `wg`.
        None => IpNet::from(address(text)?),
        Some((addr, length)) => {
            let digits = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
            let length = length.parse().ok().filter(|_| digits).ok_or(BadCidr::Syntax)?;
            IpNet::new(address(addr)?, length).map_err(|_| BadCidr::Syntax)?
        }
    };
    match net.addr() {
        IpAddr::V6(a) if is_mapped(a) => Err(BadCidr::Mapped),
        IpAddr::V4(_) | IpAddr::V6(_) => Ok(net),
    }
}

fn is_mapped(a: Ipv6Addr) -> bool {
    a.to_ipv4_mapped().is_some()
}

impl FromStr for Cidr {
    type Err = BadCidr;
    fn from_str(text: &str) -> Result<Self, BadCidr> {
        let net = network(text)?;
        if net.trunc() == net { Ok(Self(net)) } else { Err(BadCidr::HostBits(net.trunc())) }
    }
}

/// A network as `wg` reads it: bits beyond the prefix are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masked {
    /// The network.
    pub net: IpNet,
    /// The address as written, alone: a /32 or /128.
    pub host: IpNet,
    /// Whether bits were dropped.
    pub had_host_bits: bool,
}

impl FromStr for Masked {
    type Err = BadCidr;
    fn from_str(text: &str) -> Result<Self, BadCidr> {
        let net = network(text)?;
        Ok(Self { net: net.trunc(), host: net.addr().into(), had_host_bits: net.trunc() != net })
    }
}

/// An address of an interface, with the prefix length of its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct IfAddress(pub IpNet);

impl FromStr for IfAddress {
    type Err = BadCidr;
    fn from_str(text: &str) -> Result<Self, BadCidr> {
        let net = network(text)?;
        let addr = net.addr();
        let special = addr == IpAddr::V4(std::net::Ipv4Addr::BROADCAST) || addr == IpAddr::V6(Ipv6Addr::LOCALHOST);
        if special || addr.is_unspecified() || addr.is_multicast() {
            return Err(BadCidr::NotAssignable);
        }
        Ok(Self(net))
    }
}

/// A host by name or address, with a port: `hub.example.net:51820`, `192.0.2.1:51820`, `[2001:db8::1]:51820`,
/// `[fe80::1%eth0]:51820`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// Name or address, without brackets; a link-local address with its scope.
    pub host: String,
    /// UDP or TCP port, never 0.
    pub port: u16,
}

/// Text that is not a host with a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not HOST:PORT such as hub.example.net:51820 or [2001:db8::1]:51820 (port 1 to 65535)")]
pub struct BadHostPort;

/// Longest name of a kernel interface, in bytes.
const MAX_SCOPE: usize = 15;

impl HostPort {
    /// The address, if the host is one and needs no look-up. The index of a scope named by its interface is looked up, as
    /// the interface may come and go.
    pub fn literal(&self) -> Option<SocketAddr> {
        match self.host.split_once('%') {
            None => self.host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, self.port)),
            Some((address, scope)) => {
                let (address, scope) = (address.parse().ok()?, scope.parse().ok()?);
                Some(SocketAddrV6::new(address, self.port, 0, scope).into())
            }
        }
    }

    /// Whether it is a link-local address, which means something on this machine only.
    pub fn has_scope(&self) -> bool {
        self.host.contains('%')
    }
}

/// An IPv6 address, a link-local one with or without a scope: the name of an interface or its index.
fn address_v6(text: &str) -> Option<String> {
    let Some((address, scope)) = text.split_once('%') else { return Some(text.parse::<Ipv6Addr>().ok()?.to_string()) };
    let address = address.parse::<Ipv6Addr>().ok().filter(Ipv6Addr::is_unicast_link_local)?;
    let index = scope.bytes().all(|b| b.is_ascii_digit()) && scope.parse::<u32>().is_ok_and(|n| n != 0);
    let named = !scope.bytes().all(|b| b.is_ascii_digit())
        && scope.len() <= MAX_SCOPE
        && scope.bytes().all(|b| b.is_ascii_graphic() && !b"/:%[]".contains(&b));
    (index || named).then(|| format!("{address}%{scope}"))
}

/// A name without the dot that ends an absolute one (RFC 1034 §3.1). A single label keeps it, because without it a
/// resolver appends the search domain.
fn name(text: &str) -> Option<&str> {
    let label = |l: &str| (1..=63).contains(&l.len()) && !l.starts_with('-') && !l.ends_with('-');
    let bare = text.strip_suffix('.').unwrap_or(text);
    let valid = (1..=253).contains(&bare.len())
        && bare.split('.').all(label)
        && bare.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    valid.then_some(if bare.contains('.') { bare } else { text })
}

impl FromStr for HostPort {
    type Err = BadHostPort;
    fn from_str(text: &str) -> Result<Self, BadHostPort> {
        let (host, port) = text.rsplit_once(':').ok_or(BadHostPort)?;
        // Digits only: `parse` would take +1.
        let digits = port.bytes().all(|b| b.is_ascii_digit());
        let port = port.parse().ok().filter(|p| *p != 0 && digits).ok_or(BadHostPort)?;
        let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(v6) => address_v6(v6).ok_or(BadHostPort)?,
            None => name(host).ok_or(BadHostPort)?.to_owned(),
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Serialize for HostPort {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HostPort {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn networks_are_canonical() {
        assert_eq!("10.0.0.0/24".parse::<Cidr>().unwrap().0.to_string(), "10.0.0.0/24");
        assert_eq!("10.0.0.7".parse::<Cidr>().unwrap().0.to_string(), "10.0.0.7/32");
        assert!(matches!("10.0.0.1/24".parse::<Cidr>(), Err(BadCidr::HostBits(n)) if n.to_string() == "10.0.0.0/24"));
        assert_eq!("::ffff:10.0.0.0/120".parse::<Cidr>(), Err(BadCidr::Mapped));
        for bad in [
            "",
            "10.0.0.0/33",
            "10.0.0/24",
            "fd00::/129",
            "x",
            "010.0.0.0/8",
            "10.0.0.0/+8",
            "10.0.0.0/",
            "10.0.0.0/8/8",
        ] {
            assert_eq!(bad.parse::<Cidr>(), Err(BadCidr::Syntax), "{bad}");
        }
    }

    #[test]
    fn interface_address_must_be_assignable() {
        assert_eq!("10.0.0.1/24".parse::<IfAddress>().unwrap().0.to_string(), "10.0.0.1/24");
        for special in ["0.0.0.0/32", "224.0.0.1", "255.255.255.255", "::/64", "::1", "ff02::1/64"] {
            assert_eq!(special.parse::<IfAddress>(), Err(BadCidr::NotAssignable), "{special}");
        }
    }

    #[test]
    fn hosts_and_ports() {
        for good in ["hub.example.net:51820", "192.0.2.1:1", "[2001:db8::1]:51820", "h_u-b:65535"] {
            assert_eq!(good.parse::<HostPort>().unwrap().to_string(), good);
        }
        for bad in [
            "hub",
            "hub:0",
            "hub:65536",
            "hub:+1",
            "hub:",
            ":1",
            "a b:1",
            "2001:db8::1:1",
            "-a:1",
            "a..b:1",
            "a..:1",
            ".:1",
            "[2001:db8::1%eth0]:1",
            "[fe80::1%]:1",
            "[fe80::1%0]:1",
            "[fe80::1%a/b]:1",
            "[fe80::1%a%b]:1",
            "fe80::1%eth0:1",
            "[fe80::1%a-name-too-long-for-it]:1",
        ] {
            assert_eq!(bad.parse::<HostPort>(), Err(BadHostPort), "{bad}");
        }
    }

    #[test]
    fn absolute_names_are_taken_without_their_dot() {
        let host = |text: &str| text.parse::<HostPort>().unwrap().to_string();
        assert_eq!(host("hub.example.net.:51820"), "hub.example.net:51820");
        assert_eq!(host("hub.:51820"), "hub.:51820", "a search domain would be appended to a single label");
    }

    #[test]
    fn link_local_addresses_have_a_scope() {
        let host = |text: &str| text.parse::<HostPort>().unwrap();
        let named = host("[FE80:0::1%eth0]:51820");
        assert_eq!(
            (named.to_string().as_str(), named.literal(), named.has_scope()),
            ("[fe80::1%eth0]:51820", None, true)
        );
        let numbered = host("[fe80::1%3]:51820");
        assert_eq!(numbered.literal().map(|a| a.to_string()).as_deref(), Some("[fe80::1%3]:51820"));
        assert_eq!(numbered.to_string().parse::<HostPort>(), Ok(numbered));
        assert!(!host("[fe80::1]:1").has_scope());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,60}") {
            let _ = (text.parse::<Cidr>(), text.parse::<HostPort>());
        }
    }
}
