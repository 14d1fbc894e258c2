//! Messages of rtnetlink: the attributes that we write and read, under the kernel's names.
//!
//! `netlink-packet-route` writes and reads all of them, and the whole of that is linked: 110 KB. The tests compare every
//! message with the library's.
use super::body::Body;
use super::conversation::invalid;
use ipnet::IpNet;
use netlink_packet_core::{NLA_HEADER_SIZE, NLA_TYPE_MASK, NlasIterator};
use std::io;
use std::net::IpAddr;

// Source: `include/uapi/linux/rtnetlink.h` unless stated otherwise.
pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
pub(super) const RTM_GETLINK: u16 = 18;
pub(super) const RTM_SETLINK: u16 = 19;
pub(super) const RTM_NEWADDR: u16 = 20;
pub(super) const RTM_DELADDR: u16 = 21;
pub(super) const RTM_GETADDR: u16 = 22;
pub(super) const RTM_NEWROUTE: u16 = 24;
pub(super) const RTM_DELROUTE: u16 = 25;
pub(super) const RTM_GETROUTE: u16 = 26;

pub(super) const RTNLGRP_LINK: u32 = 1;
pub(super) const RTNLGRP_IPV4_IFADDR: u32 = 5;
pub(super) const RTNLGRP_IPV4_ROUTE: u32 = 7;
pub(super) const RTNLGRP_IPV6_IFADDR: u32 = 9;
pub(super) const RTNLGRP_IPV6_ROUTE: u32 = 11;

/// `include/uapi/linux/if_link.h`
pub(super) const IFLA_IFNAME: u16 = 3;
/// `if_link.h`
pub(super) const IFLA_MTU: u16 = 4;
/// `if_link.h`
pub(super) const IFLA_LINKINFO: u16 = 18;
/// `if_link.h`
pub(super) const IFLA_IFALIAS: u16 = 20;
/// `if_link.h`
pub(super) const IFLA_STATS64: u16 = 23;
/// `if_link.h`
const IFLA_EXT_MASK: u16 = 29;
/// `if_link.h`
pub(super) const IFLA_CARRIER_CHANGES: u16 = 35;
/// `if_link.h`
pub(super) const IFLA_INFO_KIND: u16 = 1;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

/// `include/uapi/linux/if.h`
pub(super) const IFF_UP: u32 = 1;
/// `if.h`
pub(super) const IFF_LOOPBACK: u32 = 8;
/// `if.h`
pub(super) const IFF_LOWER_UP: u32 = 0x1_0000;

/// `include/uapi/linux/if_addr.h`
const IFA_ADDRESS: u16 = 1;
/// `if_addr.h`
pub(super) const IFA_LOCAL: u16 = 2;
/// `if_addr.h`
pub(super) const IFA_FLAGS: u16 = 8;
/// `if_addr.h`
pub(super) const IFA_RT_PRIORITY: u16 = 9;
/// `if_addr.h`
pub(super) const IFA_F_NODAD: u32 = 2;

const RTA_DST: u16 = 1;
pub(super) const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
pub(super) const RTA_PRIORITY: u16 = 6;
pub(super) const RTA_PREFSRC: u16 = 7;
const RTA_TABLE: u16 = 15;
pub(super) const RTA_MARK: u16 = 16;
pub(super) const RTM_F_FIB_MATCH: u32 = 0x2000;

pub(super) const RT_TABLE_MAIN: u8 = 254;
pub(super) const RTN_UNICAST: u8 = 1;
pub(super) const RTPROT_KERNEL: u8 = 2;
pub(super) const RT_SCOPE_UNIVERSE: u8 = 0;
pub(super) const RT_SCOPE_LINK: u8 = 253;
pub(super) const RT_SCOPE_NOWHERE: u8 = 255;

/// `include/linux/socket.h`
pub(super) const AF_INET: u8 = 2;
/// `socket.h`
pub(super) const AF_INET6: u8 = 10;

/// Bytes of `struct ifinfomsg`.
const IFINFOMSG: usize = 16;
/// Bytes of `struct ifaddrmsg`.
const IFADDRMSG: usize = 8;
/// Bytes of `struct rtmsg`.
const RTMSG: usize = 12;

/// The family of an address.
pub(super) const fn family(of: IpAddr) -> u8 {
    match of {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    }
}

/// `struct ifinfomsg`: the link's index (0: the link is named by an attribute), flags, and which of them to change.
pub(super) fn link_head(index: u32, flags: u32, change: u32) -> Body {
    let mut head = [0; IFINFOMSG];
    head[4..8].copy_from_slice(&index.to_ne_bytes());
    head[8..12].copy_from_slice(&flags.to_ne_bytes());
    head[12..].copy_from_slice(&change.to_ne_bytes());
    Body::new(&head)
}

/// `struct ifaddrmsg`, for a dump.
pub(super) fn address_head(family: u8, index: u32) -> Body {
    ifaddrmsg(family, 0, 0, index)
}

/// `struct ifaddrmsg` with our address of a link.
pub(super) fn own_address(index: u32, net: IpNet, scope: u8) -> Body {
    let head = ifaddrmsg(family(net.addr()), net.prefix_len(), scope, index);
    head.ip(IFA_LOCAL, net.addr()).ip(IFA_ADDRESS, net.addr())
}

fn ifaddrmsg(family: u8, prefix_len: u8, scope: u8, index: u32) -> Body {
    let [a, b, c, d] = index.to_ne_bytes();
    Body::new(&[family, prefix_len, 0, scope, a, b, c, d])
}

/// The fields of `struct rtmsg` that we use; the kernel requires of a dump or a look-up that the others are zero.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RouteHead {
    pub(super) family: u8,
    pub(super) prefix_len: u8,
    pub(super) table: u8,
    pub(super) protocol: u8,
    pub(super) scope: u8,
    pub(super) kind: u8,
    pub(super) flags: u32,
}

impl RouteHead {
    /// The message.
    pub(super) fn body(self) -> Body {
        let [a, b, c, d] = self.flags.to_ne_bytes();
        Body::new(&[self.family, self.prefix_len, 0, 0, self.table, self.protocol, self.scope, self.kind, a, b, c, d])
    }
}

/// A unicast route of a table to a network, by a link.
pub(super) fn unicast_route(to: IpNet, link: u32, table: u32, protocol: u8, scope: u8) -> Body {
    let short = u8::try_from(table);
    let head = RouteHead {
        family: family(to.addr()),
        prefix_len: to.prefix_len(),
        table: short.unwrap_or(RT_TABLE_MAIN),
        protocol,
        scope,
        kind: RTN_UNICAST,
        flags: 0,
    };
    let body = head.body().ip(RTA_DST, to.addr()).word(RTA_OIF, link);
    if short.is_ok() { body } else { body.word(RTA_TABLE, table) }
}

/// A look-up of the route to an address.
pub(super) fn look_up(to: IpAddr, flags: u32) -> Body {
    let prefix_len = IpNet::from(to).prefix_len();
    RouteHead { family: family(to), prefix_len, flags, ..RouteHead::default() }.body().ip(RTA_DST, to)
}

impl Body {
    /// Adds an address.
    pub(super) fn ip(self, kind: u16, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(a) => self.raw(kind, &a.octets()),
            IpAddr::V6(a) => self.raw(kind, &a.octets()),
        }
    }

    /// Leaves the counters out of an answered link.
    pub(super) fn without_stats(self) -> Self {
        self.word(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    }

    /// Adds the kind of a link.
    pub(super) fn kind(self, kind: &str) -> Self {
        self.list(IFLA_LINKINFO, Self::default().text(IFLA_INFO_KIND, kind))
    }
}

/// The attributes of a message or of an attribute: kind without flags, value.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = io::Result<(u16, &[u8])>> {
    NlasIterator::new(bytes).map(|attribute| {
        let attribute = attribute.map_err(invalid)?;
        let (kind, length) = (attribute.kind() & NLA_TYPE_MASK, usize::from(attribute.length()));
        Ok((kind, attribute.into_inner().get(NLA_HEADER_SIZE..length).unwrap_or_default()))
    })
}

/// A number in the machine's byte order.
pub(super) fn word(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|b| IpAddr::from(*b)),
        16 => bytes.first_chunk::<16>().map(|b| IpAddr::from(*b)),
        _ => None,
    }
}

/// The parts of a link: index, flags, attributes.
pub(super) fn link_parts(payload: &[u8]) -> io::Result<(u32, u32, &[u8])> {
    let (head, rest) = payload.split_first_chunk::<IFINFOMSG>().ok_or_else(|| invalid("a link without header"))?;
    Ok((word(&head[4..]).unwrap_or(0), word(&head[8..]).unwrap_or(0), rest))
}

/// An address of a link as it is reported.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address {
    pub(super) link: u32,
    pub(super) prefix_len: u8,
    /// Ours; with a peer address, `far` is the peer's.
    pub(super) local: Option<IpAddr>,
    /// The same as `local` where there is no peer address, or alone.
    pub(super) far: Option<IpAddr>,
}

/// Reads an address.
pub(super) fn read_address(payload: &[u8]) -> io::Result<Address> {
    let (head, rest) = payload.split_first_chunk::<IFADDRMSG>().ok_or_else(|| invalid("an address without header"))?;
    let mut found = Address { link: word(&head[4..]).unwrap_or(0), prefix_len: head[1], local: None, far: None };
    for attribute in attributes(rest) {
        let (kind, value) = attribute?;
        let slot = match kind {
            IFA_LOCAL => &mut found.local,
            IFA_ADDRESS => &mut found.far,
            _ => continue,
        };
        *slot = Some(ip(value).ok_or_else(|| invalid("an address that is neither IPv4 nor IPv6"))?);
    }
    Ok(found)
}

/// A route as it is reported.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reported {
    pub(super) family: u8,
    pub(super) prefix_len: u8,
    pub(super) table: u32,
    pub(super) protocol: u8,
    pub(super) kind: u8,
    /// `None`: the default route.
    pub(super) to: Option<IpAddr>,
    pub(super) link: Option<u32>,
    pub(super) gateway: Option<IpAddr>,
    pub(super) source: Option<IpAddr>,
    pub(super) metric: u32,
}

/// Reads a route.
pub(super) fn read_route(payload: &[u8]) -> io::Result<Reported> {
    let (head, rest) = payload.split_first_chunk::<RTMSG>().ok_or_else(|| invalid("a route without header"))?;
    let [family, prefix_len, _, _, table, protocol, _, kind, ..] = *head;
    let mut found = Reported {
        family,
        prefix_len,
        table: table.into(),
        protocol,
        kind,
        to: None,
        link: None,
        gateway: None,
        source: None,
        metric: 0,
    };
    for attribute in attributes(rest) {
        let (kind, value) = attribute?;
        match kind {
            RTA_DST => {
                found.to = Some(ip(value).ok_or_else(|| invalid("a destination that is neither IPv4 nor IPv6"))?);
            }
            RTA_OIF => found.link = word(value),
            RTA_GATEWAY => found.gateway = ip(value),
            RTA_PREFSRC => found.source = ip(value),
            RTA_PRIORITY => found.metric = word(value).unwrap_or(0),
            RTA_TABLE => found.table = word(value).unwrap_or(found.table),
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
