//! The source of a connection or request that a named proxy passes on: the PROXY protocol, version 2
//! (haproxy.org/download/3.0/doc/proxy-protocol.txt), and `Forwarded` (RFC 7239). No I/O.
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of a header before its addresses.
pub const HEAD: usize = 16;

/// The most bytes of addresses and extensions that a header may have.
const MAX_REST: usize = 4096;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Whose word about the source of a connection counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    /// `server.proxy_protocol_from`: their connections begin with a header, and only theirs.
    pub protocol: Vec<IpNet>,
    /// `server.forwarded_from`: the `Forwarded` of their requests counts, and only of theirs.
    pub forwarded: Vec<IpNet>,
}

/// Why a connection of a named proxy is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    /// It begins with something else.
    #[error("it does not begin with a header of the PROXY protocol, version 2")]
    Missing,
    /// A version or command that does not exist.
    #[error("the header has an unknown version or command")]
    Unknown,
    /// Longer than it may be.
    #[error("the header is longer than 4096 bytes")]
    TooLong,
    /// Shorter than its addresses.
    #[error("the header ends within its addresses")]
    Short,
}

/// The first bytes of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    is_proxied: bool,
    family: u8,
    /// Bytes that follow.
    pub rest: usize,
}

impl Head {
    /// Reads them.
    pub fn read(bytes: [u8; HEAD]) -> Result<Self, BadHeader> {
        let [s @ .., command, family, high, low] = bytes;
        if s != SIGNATURE {
            return Err(BadHeader::Missing);
        }
        let is_proxied = match command {
            0x20 => false,
            0x21 => true,
            _ => return Err(BadHeader::Unknown),
        };
        let rest = usize::from(u16::from_be_bytes([high, low]));
        if rest > MAX_REST { Err(BadHeader::TooLong) } else { Ok(Self { is_proxied, family: family >> 4, rest }) }
    }

    /// The source in the bytes that follow. `None`: the connection is the proxy's own, or of no internet address.
    pub fn source(self, rest: &[u8]) -> Result<Option<SocketAddr>, BadHeader> {
        if !self.is_proxied {
            return Ok(None);
        }
        // Source and destination address, then both ports.
        Ok(match self.family {
            1 => {
                let [a, b, c, d, _, _, _, _, high, low, _, _] = *rest.first_chunk().ok_or(BadHeader::Short)?;
                Some((Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high, low])).into())
            }
            2 => {
                let all: &[u8; 36] = rest.first_chunk().ok_or(BadHeader::Short)?;
                let (source, [.., high, low, _, _]) = (*all.first_chunk::<16>().ok_or(BadHeader::Short)?, *all);
                Some((Ipv6Addr::from(source), u16::from_be_bytes([high, low])).into())
            }
            _ => None,
        })
    }
}

fn is_in(address: IpAddr, nets: &[IpNet]) -> bool {
    let address = address.to_canonical();
    nets.iter().any(|net| net.contains(&address))
}

impl Proxies {
    /// Whether the connections of `peer` begin with a header.
    pub fn sends_header(&self, peer: IpAddr) -> bool {
        is_in(peer, &self.protocol)
    }

    /// The source of a request of `peer` with these `Forwarded` headers: from the last element on, each is believed as long as
    /// a named proxy wrote it. What is no address leaves the proxy that wrote it.
    pub fn source<'a>(&self, peer: IpAddr, forwarded: impl DoubleEndedIterator<Item = &'a str>) -> IpAddr {
        let mut source = peer.to_canonical();
        for element in forwarded.rev().flat_map(|header| elements(header).into_iter().rev()) {
            if !is_in(source, &self.forwarded) {
                break;
            }
            let Some(address) = forwarded_for(element) else { break };
            source = address.to_canonical();
        }
        source
    }
}

/// The elements of a `Forwarded` header: at commas outside of quotes.
fn elements(header: &str) -> Vec<&str> {
    split(header, ',')
}

fn split(text: &str, at: char) -> Vec<&str> {
    let mut is_quoted = false;
    let parts = text.split(|c: char| {
        is_quoted ^= c == '"';
        c == at && !is_quoted
    });
    parts.collect()
}

/// The address of `for=`: `192.0.2.1`, `"192.0.2.1:443"`, `"[2001:db8::1]"` or `"[2001:db8::1]:443"`.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let pairs = split(element, ';').into_iter().filter_map(|pair| pair.trim().split_once('='));
    let mut named = pairs.filter(|(name, _)| name.eq_ignore_ascii_case("for")).map(|(_, value)| value);
    let value = named.next().filter(|_| named.next().is_none())?;
    let value = value.strip_prefix('"').map_or(Some(value), |v| v.strip_suffix('"'))?;
    let bare = value.strip_prefix('[').and_then(|v| v.strip_suffix(']')).unwrap_or(value);
    bare.parse().ok().or_else(|| value.parse::<SocketAddr>().ok().map(|a| a.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn header(command: u8, family: u8, rest: &[u8]) -> Result<Option<SocketAddr>, BadHeader> {
        let mut bytes = [0; HEAD];
        bytes[..12].copy_from_slice(&SIGNATURE);
        bytes[12..14].copy_from_slice(&[command, family]);
        bytes[14..].copy_from_slice(&u16::try_from(rest.len()).unwrap().to_be_bytes());
        let head = Head::read(bytes)?;
        assert_eq!(head.rest, rest.len());
        head.source(rest)
    }

    #[test]
    fn header_names_the_source_of_a_connection() {
        let v4 = [203, 0, 113, 9, 10, 0, 0, 1, 0x12, 0x34, 0x20, 0xfb];
        assert_eq!(header(0x21, 0x11, &v4), Ok(Some("203.0.113.9:4660".parse().unwrap())));
        let with_extension = [&v4[..], &[4, 0, 1, 7]].concat();
        assert_eq!(header(0x21, 0x11, &with_extension), Ok(Some("203.0.113.9:4660".parse().unwrap())));
        let mut v6 = [0; 36];
        v6[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        (v6[15], v6[33]) = (9, 80);
        assert_eq!(header(0x21, 0x21, &v6), Ok(Some("[2001:db8::9]:80".parse().unwrap())));
        assert_eq!(header(0x20, 0x00, &[]), Ok(None), "a health check of the proxy itself");
        assert_eq!(header(0x21, 0x00, &[]), Ok(None), "of no known family");
        assert_eq!(header(0x21, 0x11, &v4[..11]), Err(BadHeader::Short));
        assert_eq!(header(0x22, 0x11, &v4), Err(BadHeader::Unknown));
        assert_eq!(header(0x11, 0x11, &v4), Err(BadHeader::Unknown), "another version");
        assert_eq!(header(0x21, 0x11, &[0; 4097]), Err(BadHeader::TooLong));
        assert_eq!(Head::read(*b"GET / HTTP/1.1\r\n"), Err(BadHeader::Missing));
    }

    #[test]
    fn forwarded_is_believed_as_far_as_named_proxies_wrote_it() {
        let nets = |nets: &[&str]| nets.iter().map(|n| n.parse().unwrap()).collect();
        let proxies = Proxies { forwarded: nets(&["10.0.0.0/8", "2001:db8:1::/48"]), ..Proxies::default() };
        for (peer, headers, source) in [
            ("10.0.0.1", &["for=203.0.113.9"][..], "203.0.113.9"),
            ("::ffff:10.0.0.1", &["for=203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["For=\"203.0.113.9:4711\"; proto=https;by=10.0.0.1"], "203.0.113.9"),
            ("10.0.0.1", &["for=\"[2001:db8::9]:4711\""], "2001:db8::9"),
            ("10.0.0.1", &["for=\"[2001:db8::9]\""], "2001:db8::9"),
            ("10.0.0.1", &["for=198.51.100.1, for=203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["for=198.51.100.1", "for=203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["for=198.51.100.1, for=203.0.113.9, for=10.0.0.2"], "203.0.113.9"),
            ("10.0.0.1", &["for=\"a, for=198.51.100.1\";by=x, for=203.0.113.9"], "203.0.113.9"),
            ("2001:db8:1::1", &["for=203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["for=unknown"], "10.0.0.1"),
            ("10.0.0.1", &["for=203.0.113.9;for=198.51.100.1"], "10.0.0.1"),
            ("10.0.0.1", &["for=198.51.100.1, for=_hidden, for=10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("192.0.2.1", &["for=203.0.113.9"], "192.0.2.1"),
        ] {
            assert_eq!(proxies.source(ip(peer), headers.iter().copied()), ip(source), "{peer} {headers:?}");
        }
        assert_eq!(Proxies::default().source(ip("10.0.0.1"), ["for=203.0.113.9"].into_iter()), ip("10.0.0.1"));
        assert!(!proxies.sends_header(ip("10.0.0.1")), "each is named for what it sends");
    }

    proptest! {
        #[test]
        fn nothing_that_is_sent_is_a_panic(head: [u8; HEAD], rest: Vec<u8>, text in ".{0,200}") {
            let _ = Head::read(head).map(|h| h.source(&rest));
            let proxies = Proxies { protocol: Vec::new(), forwarded: vec!["0.0.0.0/0".parse().unwrap()] };
            let _ = proxies.source(ip("10.0.0.1"), [text.as_str()].into_iter());
        }
    }
}
