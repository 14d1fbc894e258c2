//! The way to an address, by rtnetlink: the system's own route look-up, and the link it leads to.
use super::conversation::{Conversation, Message, Request, invalid};
use super::route::errno;
use super::{KernelError, ReadPath};
use netlink_packet_core::{NLA_TYPE_MASK, NlasIterator};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rustix::io::Errno;
use spoke_uplink::path::Path;
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;

const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const IFLA_LINKINFO: u16 = 18;
const IFLA_CARRIER_CHANGES: u16 = 35;
const IFLA_INFO_KIND: u16 = 1;
const IFF_LOOPBACK: u32 = 0x8;
const IFF_LOWER_UP: u32 = 0x1_0000;
/// `RT_SCOPE_UNIVERSE`.
const GLOBAL: u8 = 0;

/// Looks up routes, for packets with WireGuard's mark.
pub struct PathSocket {
    kernel: Conversation,
    mark: u32,
}

impl PathSocket {
    /// Opens the socket. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The process may not open sockets.
    pub fn open(mark: u32) -> Result<Self, KernelError> {
        let kernel = Conversation::open(netlink_sys::protocols::NETLINK_ROUTE).map_err(unreadable)?;
        Ok(Self { kernel, mark })
    }

    async fn look_up(&mut self, to: IpAddr) -> io::Result<Path> {
        let request = Request::new(RTM_GETROUTE, 0, &question(to, self.mark));
        let route = match self.kernel.ask(&request, |m| read_route(&m)).await {
            Ok(route) => route,
            // ENETUNREACH: no route; the others: a route of the types unreachable, prohibit, blackhole.
            Err(e)
                if matches!(errno(&e), Some(Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::ACCESS | Errno::INVAL)) =>
            {
                return self.why_none(to).await;
            }
            Err(e) => return Err(e),
        };
        let links = self.links(Some(route.link)).await?;
        let link = links.first().copied().unwrap_or_default();
        let (carrier, carrier_changes) = (link.carrier, link.carrier_changes);
        Ok(Path::Via { link: route.link, carrier, carrier_changes, source: route.source, gateway: route.gateway })
    }

    /// What is missing when there is no route.
    async fn why_none(&mut self, to: IpAddr) -> io::Result<Path> {
        let links = self.links(None).await?;
        let carriers: BTreeSet<u32> = links.iter().filter(|l| l.outside && l.carrier).map(|l| l.index).collect();
        if carriers.is_empty() {
            return Ok(Path::NoCarrier);
        }
        let mut message = AddressMessage::default();
        message.header.family = family(to);
        let request = Request::new(RTM_GETADDR, 0, &message);
        let addressed = self
            .kernel
            .dump(
                &request,
                || false,
                |found, m| {
                    // Of `struct ifaddrmsg`: the scope, the index.
                    let scope = m.payload.get(3).copied();
                    let index = m.payload.get(4..8).and_then(word);
                    *found |=
                        m.kind == RTM_NEWADDR && scope == Some(GLOBAL) && index.is_some_and(|i| carriers.contains(&i));
                    Ok(())
                },
            )
            .await?;
        Ok(if addressed { Path::NoRoute } else { Path::NoAddress })
    }

    async fn links(&mut self, index: Option<u32>) -> io::Result<Vec<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        message.header.index = index.unwrap_or(0);
        let request = Request::new(RTM_GETLINK, 0, &message);
        match index {
            Some(_) => Ok(vec![self.kernel.ask(&request, |m| read_link(&m)).await?]),
            None => {
                self.kernel
                    .dump(&request, Vec::new, |links, m| {
                        if m.kind == RTM_NEWLINK {
                            links.push(read_link(&m)?);
                        }
                        Ok(())
                    })
                    .await
            }
        }
    }
}

impl ReadPath for PathSocket {
    async fn path(&mut self, to: IpAddr) -> Result<Path, KernelError> {
        self.look_up(to).await.map_err(unreadable)
    }
}

fn unreadable(source: io::Error) -> KernelError {
    KernelError::Observe { what: "the route to the hub".to_owned(), source }
}

const fn family(to: IpAddr) -> AddressFamily {
    match to {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// All header fields but family and length must be zero: the kernel checks them.
fn question(to: IpAddr, mark: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(to);
    let (length, address) = match to {
        IpAddr::V4(a) => (32, RouteAddress::Inet(a)),
        IpAddr::V6(a) => (128, RouteAddress::Inet6(a)),
    };
    message.header.destination_prefix_length = length;
    message.attributes.push(RouteAttribute::Destination(address));
    if mark != 0 {
        message.attributes.push(RouteAttribute::Mark(mark));
    }
    message
}

pub(super) struct Found {
    link: u32,
    source: Option<IpAddr>,
    gateway: Option<IpAddr>,
}

/// Bytes of `struct rtmsg`.
const RTMSG: usize = 12;

pub(super) fn read_route(message: &Message<'_>) -> io::Result<Found> {
    let mut found = Found { link: 0, source: None, gateway: None };
    for attribute in NlasIterator::new(message.payload.get(RTMSG..).unwrap_or_default()) {
        let attribute = attribute.map_err(invalid)?;
        match attribute.kind() & NLA_TYPE_MASK {
            RTA_OIF => found.link = word(attribute.value()).unwrap_or(0),
            RTA_GATEWAY => found.gateway = ip(attribute.value()),
            RTA_PREFSRC => found.source = ip(attribute.value()),
            _ => {}
        }
    }
    Ok(found)
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Link {
    index: u32,
    carrier: bool,
    carrier_changes: u32,
    /// It may lead out of the machine.
    outside: bool,
}

pub(super) fn read_link(message: &Message<'_>) -> io::Result<Link> {
    // `struct ifinfomsg`: family, type, index, flags, change.
    let header = message.payload.first_chunk::<16>().ok_or_else(|| invalid("a link without header"))?;
    let (index, flags) = (word(&header[4..8]).unwrap_or(0), word(&header[8..12]).unwrap_or(0));
    let outside = flags & IFF_LOOPBACK == 0;
    let mut link = Link { index, carrier: flags & IFF_LOWER_UP != 0, carrier_changes: 0, outside };
    for attribute in NlasIterator::new(&message.payload[16..]) {
        let attribute = attribute.map_err(invalid)?;
        match attribute.kind() & NLA_TYPE_MASK {
            IFLA_CARRIER_CHANGES => link.carrier_changes = word(attribute.value()).unwrap_or(0),
            IFLA_LINKINFO => {
                for info in NlasIterator::new(attribute.value()) {
                    let info = info.map_err(invalid)?;
                    let inside = info.value().starts_with(b"wireguard") || info.value().starts_with(b"dummy");
                    link.outside &= info.kind() & NLA_TYPE_MASK != IFLA_INFO_KIND || !inside;
                }
            }
            _ => {}
        }
    }
    Ok(link)
}

fn word(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|b| IpAddr::from(*b)),
        16 => bytes.first_chunk::<16>().map(|b| IpAddr::from(*b)),
        _ => None,
    }
}
