//! Links, addresses and routes over rtnetlink.
//!
//! Requests are built with `rtnetlink`'s builders. Its connection task is not used: it skips what it cannot decode and
//! drops `NLM_F_DUMP_INTR`, so that a partial observation would go unnoticed, and it queues unread events without
//! bound.
use super::conversation::{Conversation, Message, Request, invalid};
use ipnet::IpNet;
use netlink_packet_core::{NLA_TYPE_MASK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NlasIterator, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkExtentMask, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkWireguard, RouteMessageBuilder};
use rustix::io::Errno;
use spoke_model::interface_name::IfName;
use spoke_net::state::{OWNED_ALIAS, ROUTE_PROTOCOL, Route};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;

const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_STATS64: u16 = 23;
const IFLA_INFO_KIND: u16 = 1;
const IFF_UP: u32 = 1;
const IFF_LOOPBACK: u32 = 8;

/// Metric of the connected routes of our addresses: above that of every network manager's connected routes.
const CONNECTED_METRIC: u32 = 32_000;
/// The kernel's metric of an IPv6 route without one (`IP6_RT_PRIO_USER`).
const IPV6_METRIC: u32 = 1_024;
/// An address of TEST-NET-2 (RFC 5737) and one of the documentation prefix (RFC 3849), to which only default routes lead.
const OUTSIDE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// A link as rtnetlink reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LinkState {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) up: bool,
    pub(super) mtu: u32,
    pub(super) wireguard: bool,
    pub(super) ours: bool,
    pub(super) loopback: bool,
    /// Bytes received and sent; 0 where statistics were not asked for.
    pub(super) traffic: (u64, u64),
}

/// A change of a link, its addresses or its routes; each is one request with one answer.
pub(super) enum Change<'a> {
    Mtu(&'a IfName, u32),
    Up(&'a IfName, bool),
    AddAddress(u32, IpNet),
    RemoveAddress(u32, IpNet),
    AddRoute(u32, Route),
    RemoveRoute(u32, Route),
}

impl Change<'_> {
    /// The request for the change.
    pub(super) fn request(&self) -> Request {
        let set = |message: LinkMessage| Request::new(RTM_SETLINK, 0, &message);
        let named = |name: &IfName| LinkMessageBuilder::<LinkUnspec>::default().name(name.as_str());
        match *self {
            Self::Mtu(name, mtu) => set(named(name).mtu(mtu).build()),
            Self::Up(name, true) => set(named(name).up().build()),
            Self::Up(name, false) => set(named(name).down().build()),
            Self::AddAddress(index, net) => {
                Request::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &address(index, net, true))
            }
            Self::RemoveAddress(index, net) => Request::new(RTM_DELADDR, 0, &address(index, net, false)),
            Self::AddRoute(index, r) => {
                Request::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &route(index, r, RouteScope::Link))
            }
            // This scope matches any.
            Self::RemoveRoute(index, r) => Request::new(RTM_DELROUTE, 0, &route(index, r, RouteScope::NoWhere)),
        }
    }

    /// Whether an errno means that the change is already in effect.
    pub(super) const fn is_moot(&self, errno: Errno) -> bool {
        match self {
            Self::RemoveAddress(..) => matches!(errno, Errno::ADDRNOTAVAIL | Errno::NODEV),
            Self::RemoveRoute(..) => matches!(errno, Errno::SRCH | Errno::NODEV),
            Self::Mtu(..) | Self::Up(..) | Self::AddAddress(..) | Self::AddRoute(..) => false,
        }
    }
}

fn address(index: u32, net: IpNet, add: bool) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(net);
    message.header.prefix_len = net.prefix_len();
    message.header.index = index;
    message.header.scope = match net.addr() {
        IpAddr::V6(a) if a.is_unicast_link_local() => AddressScope::Link,
        IpAddr::V4(_) | IpAddr::V6(_) => AddressScope::Universe,
    };
    message.attributes.push(AddressAttribute::Local(net.addr()));
    message.attributes.push(AddressAttribute::Address(net.addr()));
    if add && net.addr().is_ipv6() {
        // No neighbour on a WireGuard link can have the address; duplicate address detection takes a second.
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    if add {
        message.attributes.push(AddressAttribute::RoutePriority(CONNECTED_METRIC));
    }
    message
}

fn route(index: u32, route: Route, scope: RouteScope) -> RouteMessage {
    let mut message = route_without_metric(index, route, scope);
    if route.metric != 0 {
        message.attributes.push(RouteAttribute::Priority(route.metric));
    }
    message
}

fn route_without_metric(index: u32, route: Route, scope: RouteScope) -> RouteMessage {
    let protocol = RouteProtocol::from(ROUTE_PROTOCOL);
    match route.to {
        IpNet::V4(net) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .output_interface(index)
            .table_id(route.table)
            .protocol(protocol)
            .scope(scope)
            .build(),
        IpNet::V6(net) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .output_interface(index)
            .table_id(route.table)
            .protocol(protocol)
            .build(),
    }
}

const fn family(net: IpNet) -> AddressFamily {
    match net {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    }
}

/// Reads all WireGuard links.
pub(super) async fn wireguard_links(kernel: &mut Conversation) -> io::Result<Vec<LinkState>> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]));
    let request = Request::new(RTM_GETLINK, 0, &message);
    kernel
        .dump(&request, Vec::new, |links, message| {
            if message.kind == RTM_NEWLINK {
                // A kernel that does not know the kind yet ignores the filter.
                links.extend(Some(read_link(&message)?).filter(|l| l.wireguard));
            }
            Ok(())
        })
        .await
}

/// Reads one link by name; `None`: there is none.
pub(super) async fn link(kernel: &mut Conversation, name: &str) -> io::Result<Option<LinkState>> {
    let mut message = LinkMessageBuilder::<LinkUnspec>::default().name(name).build();
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    match kernel.ask(&Request::new(RTM_GETLINK, 0, &message), |m| read_link(&m)).await {
        Ok(link) => Ok(Some(link)),
        Err(error) if errno(&error) == Some(Errno::NODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads only the attributes we need: a link has over sixty, and kernels add more.
pub(super) fn read_link(message: &Message<'_>) -> io::Result<LinkState> {
    let header = message.payload.first_chunk::<16>().ok_or_else(|| invalid("a link without header"))?;
    let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let flags = word(8);
    let (up, loopback) = (flags & IFF_UP != 0, flags & IFF_LOOPBACK != 0);
    let mut link = LinkState { index: word(4), up, loopback, ..LinkState::default() };
    for attribute in NlasIterator::new(&message.payload[16..]) {
        let attribute = attribute.map_err(invalid)?;
        match attribute.kind() & NLA_TYPE_MASK {
            IFLA_IFNAME => link.name = text(attribute.value()),
            IFLA_MTU => link.mtu = attribute.value().first_chunk().map_or(0, |b| u32::from_ne_bytes(*b)),
            IFLA_IFALIAS => link.ours = text(attribute.value()) == OWNED_ALIAS,
            IFLA_STATS64 => {
                // struct rtnl_link_stats64: received and sent packets, then received and sent bytes.
                let word = |n: usize| {
                    attribute.value().get(n * 8..).and_then(<[u8]>::first_chunk).map(|b| u64::from_ne_bytes(*b))
                };
                link.traffic = (word(2).unwrap_or(0), word(3).unwrap_or(0));
            }
            IFLA_LINKINFO => {
                for info in NlasIterator::new(attribute.value()) {
                    let info = info.map_err(invalid)?;
                    if info.kind() & NLA_TYPE_MASK == IFLA_INFO_KIND {
                        link.wireguard = text(info.value()) == "wireguard";
                    }
                }
            }
            _ => {}
        }
    }
    Ok(link)
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

/// Reads the addresses of one link.
pub(super) async fn addresses(kernel: &mut Conversation, index: u32) -> io::Result<BTreeSet<IpNet>> {
    let mut all = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut message = AddressMessage::default();
        message.header.family = family;
        message.header.index = index;
        let request = Request::new(RTM_GETADDR, 0, &message);
        let found = kernel
            .dump(&request, BTreeSet::new, |found, message| {
                if message.kind == RTM_NEWADDR {
                    let message = AddressMessage::parse(message.payload).map_err(invalid)?;
                    if message.header.index == index {
                        found.extend(read_address(&message)?);
                    }
                }
                Ok(())
            })
            .await?;
        all.extend(found);
    }
    Ok(all)
}

/// An address of a link.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinkAddress {
    pub(super) link: u32,
    /// Ours, with the prefix length.
    pub(super) address: IpNet,
    /// The network connected by it.
    pub(super) network: IpNet,
}

/// Reads the addresses of all links.
pub(super) async fn all_addresses(kernel: &mut Conversation) -> io::Result<Vec<LinkAddress>> {
    let mut all = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut message = AddressMessage::default();
        message.header.family = family;
        let found = kernel
            .dump(&Request::new(RTM_GETADDR, 0, &message), Vec::new, |found, message| {
                if message.kind == RTM_NEWADDR {
                    let message = AddressMessage::parse(message.payload).map_err(invalid)?;
                    let far = message.attributes.iter().find_map(|a| match a {
                        AddressAttribute::Address(a) => IpNet::new(*a, message.header.prefix_len).ok(),
                        _ => None,
                    });
                    if let Some(address) = read_address(&message)? {
                        let network = far.unwrap_or(address).trunc();
                        found.push(LinkAddress { link: message.header.index, address, network });
                    }
                }
                Ok(())
            })
            .await?;
        all.extend(found);
    }
    Ok(all)
}

/// Reads the connected routes of the main table: link index, network, metric.
pub(super) async fn connected(kernel: &mut Conversation) -> io::Result<BTreeSet<(u32, IpNet, u32)>> {
    let mut all = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.protocol = RouteProtocol::Kernel;
        message.header.kind = RouteType::Unicast;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        let found = kernel
            .dump(&Request::new(RTM_GETROUTE, 0, &message), Vec::new, |found, message| {
                if message.kind == RTM_NEWROUTE {
                    found.extend(read_connected(&RouteMessage::parse(message.payload).map_err(invalid)?)?);
                }
                Ok(())
            })
            .await?;
        all.extend(found);
    }
    Ok(all)
}

fn read_connected(message: &RouteMessage) -> io::Result<Option<(u32, IpNet, u32)>> {
    if message.header.protocol != RouteProtocol::Kernel || message.header.kind != RouteType::Unicast {
        return Ok(None);
    }
    let (mut to, mut link, mut metric) = (None, None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(a)) => to = Some(IpAddr::V4(*a)),
            RouteAttribute::Destination(RouteAddress::Inet6(a)) => to = Some(IpAddr::V6(*a)),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Priority(value) => metric = *value,
            _ => {}
        }
    }
    let Some((to, link)) = to.zip(link) else { return Ok(None) };
    let net = IpNet::new(to, message.header.destination_prefix_length).map_err(invalid)?;
    Ok(Some((link, net, metric)))
}

/// Whether the connected route of a link's address is missing or has another metric than ours.
pub(super) fn is_unrouted(connected: &BTreeSet<(u32, IpNet, u32)>, link: u32, address: IpNet) -> bool {
    address.prefix_len() < address.max_prefix_len() && !connected.contains(&(link, address.trunc(), CONNECTED_METRIC))
}

/// Adds the connected route of an address, as the kernel does with the address itself; one of another metric is moved.
pub(super) async fn add_connected(kernel: &mut Conversation, link: u32, net: IpNet) -> io::Result<()> {
    let replace = Request::new(RTM_NEWADDR, NLM_F_REPLACE, &address(link, net, true));
    one(kernel, replace).await?.map_err(io::Error::from)?;
    let added = one(kernel, Request::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &connected_route(link, net))).await?;
    match added {
        Err(Errno::EXIST) if !is_unrouted(&connected(kernel).await?, link, net) => Ok(()),
        other => other.map_err(io::Error::from),
    }
}

/// Removes the connected route of an address; the address stays.
pub(super) async fn remove_connected(kernel: &mut Conversation, link: u32, net: IpNet) -> io::Result<()> {
    match one(kernel, Request::new(RTM_DELROUTE, 0, &connected_route(link, net))).await? {
        Err(Errno::SRCH | Errno::NODEV) => Ok(()),
        other => other.map_err(io::Error::from),
    }
}

fn connected_route(link: u32, net: IpNet) -> RouteMessage {
    match net {
        IpNet::V4(net) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net.network(), net.prefix_len())
            .output_interface(link)
            .protocol(RouteProtocol::Kernel)
            .scope(RouteScope::Link)
            .pref_source(net.addr())
            .priority(CONNECTED_METRIC)
            .build(),
        IpNet::V6(net) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(net.network(), net.prefix_len())
            .output_interface(link)
            .protocol(RouteProtocol::Kernel)
            .priority(CONNECTED_METRIC)
            .build(),
    }
}

/// The gateways that the system's look-up ends at, of the default routes and on the way to `endpoints`.
pub(super) async fn gateways(
    kernel: &mut Conversation,
    endpoints: impl Iterator<Item = IpAddr>,
) -> io::Result<BTreeSet<IpAddr>> {
    let mut all = BTreeSet::new();
    for to in OUTSIDE.into_iter().chain(endpoints) {
        all.extend(matching(kernel, to).await?.and_then(|entry| entry.gateway));
    }
    Ok(all)
}

/// How many addresses a message has.
#[cfg(feature = "sim")]
pub(super) fn read_address_message(payload: &[u8]) -> usize {
    let found = AddressMessage::parse(payload).ok().and_then(|m| read_address(&m).ok().flatten());
    usize::from(found.is_some())
}

/// How many routes of ours or connected ones a message has.
#[cfg(feature = "sim")]
pub(super) fn read_route_message(payload: &[u8]) -> usize {
    let Ok(message) = RouteMessage::parse(payload) else { return 0 };
    let own = read_route(&message).is_ok_and(|r| r.is_some());
    let connected = read_connected(&message).is_ok_and(|c| c.is_some());
    usize::from(own) + usize::from(connected)
}

fn read_address(message: &AddressMessage) -> io::Result<Option<IpNet>> {
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            // With a peer address, `Local` is ours and `Address` is the peer's; without one they are the same or
            // `Local` is missing.
            AddressAttribute::Local(a) => address = Some(*a),
            AddressAttribute::Address(a) if address.is_none() => address = Some(*a),
            _ => {}
        }
    }
    address.map(|a| IpNet::new(a, message.header.prefix_len).map_err(invalid)).transpose()
}

/// Reads the routes of our protocol, by link index. The kernel filters: a full Internet table is not sent to us.
pub(super) async fn routes(kernel: &mut Conversation) -> io::Result<BTreeMap<u32, BTreeSet<Route>>> {
    let mut all: BTreeMap<u32, BTreeSet<Route>> = BTreeMap::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.protocol = RouteProtocol::from(ROUTE_PROTOCOL);
        let request = Request::new(RTM_GETROUTE, 0, &message);
        let found = kernel
            .dump(&request, Vec::new, |found, message| {
                if message.kind == RTM_NEWROUTE {
                    found.extend(read_route(&RouteMessage::parse(message.payload).map_err(invalid)?)?);
                }
                Ok(())
            })
            .await?;
        for (index, route) in found {
            all.entry(index).or_default().insert(route);
        }
    }
    Ok(all)
}

fn read_route(message: &RouteMessage) -> io::Result<Option<(u32, Route)>> {
    if message.header.protocol != RouteProtocol::from(ROUTE_PROTOCOL) || message.header.kind != RouteType::Unicast {
        return Ok(None);
    }
    let mut to = None;
    let mut table = u32::from(message.header.table);
    let (mut through, mut metric) = (None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(a)) => to = Some(IpAddr::V4(*a)),
            RouteAttribute::Destination(RouteAddress::Inet6(a)) => to = Some(IpAddr::V6(*a)),
            RouteAttribute::Table(t) => table = *t,
            RouteAttribute::Oif(index) => through = Some(*index),
            RouteAttribute::Priority(value) => metric = *value,
            _ => {}
        }
    }
    // The default route has no destination.
    let to = to.unwrap_or(match message.header.address_family {
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    });
    let to = IpNet::new(to, message.header.destination_prefix_length).map_err(invalid)?;
    if to.addr().is_ipv6() && metric == IPV6_METRIC {
        metric = 0;
    }
    Ok(through.map(|index| (index, Route { to, table, metric })))
}

/// An entry of the routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) link: u32,
    pub(super) gateway: Option<IpAddr>,
    pub(super) prefix_len: u8,
    pub(super) protocol: u8,
}

/// The entry that the system's look-up for an address ends at, rules included; `None`: unreachable.
pub(super) async fn matching(kernel: &mut Conversation, to: IpAddr) -> io::Result<Option<Entry>> {
    let mut message = RouteMessage::default();
    message.header.flags = RouteFlags::FibMatch;
    let (family, bits, destination) = match to {
        IpAddr::V4(a) => (AddressFamily::Inet, 32, RouteAddress::Inet(a)),
        IpAddr::V6(a) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(a)),
    };
    message.header.address_family = family;
    message.header.destination_prefix_length = bits;
    message.attributes.push(RouteAttribute::Destination(destination));
    let read = |answer: Message<'_>| {
        let answer = RouteMessage::parse(answer.payload).map_err(invalid)?;
        let link = answer.attributes.iter().find_map(|a| match a {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        let gateway = answer.attributes.iter().find_map(|a| match a {
            RouteAttribute::Gateway(RouteAddress::Inet(a)) => Some(IpAddr::V4(*a)),
            RouteAttribute::Gateway(RouteAddress::Inet6(a)) => Some(IpAddr::V6(*a)),
            _ => None,
        });
        let (prefix_len, protocol) = (answer.header.destination_prefix_length, u8::from(answer.header.protocol));
        Ok(link.map(|link| Entry { link, gateway, prefix_len, protocol }))
    };
    match kernel.ask(&Request::new(RTM_GETROUTE, 0, &message), read).await {
        // A prohibiting or unreachable route is answered as an error.
        Err(error) if errno(&error).is_some() => Ok(None),
        result => result,
    }
}

/// Reads one link by index; `None`: there is none.
pub(super) async fn link_at(kernel: &mut Conversation, index: u32) -> io::Result<Option<LinkState>> {
    let mut message = LinkMessageBuilder::<LinkUnspec>::default().index(index).build();
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    match kernel.ask(&Request::new(RTM_GETLINK, 0, &message), |m| read_link(&m)).await {
        Ok(link) => Ok(Some(link)),
        Err(error) if errno(&error) == Some(Errno::NODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Creates a WireGuard link that is marked as ours from the moment it has its name. Succeeds if a WireGuard link of
/// that name exists already, ours or not.
///
/// The kernel accepts no alias in the request that creates a link. So the link is created under an unused name and
/// marked in one datagram, which the kernel completes even if we are killed meanwhile, and then renamed. A link of ours
/// is never left unmarked (one left under its first name is deleted by the next plan), and no foreign link is ever
/// marked.
pub(super) async fn create_link(kernel: &mut Conversation, name: &IfName, mtu: u32) -> io::Result<()> {
    if let Some(there) = link(kernel, name.as_str()).await? {
        return if there.wireguard { Ok(()) } else { Err(Errno::EXIST.into()) };
    }
    let mut random = [0; 4];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let first_name = format!("spoke{:08x}", u32::from_ne_bytes(random));
    let marked = LinkMessageBuilder::<LinkUnspec>::default().name(first_name.as_str()).alias(OWNED_ALIAS).build();
    let birth = [
        Request::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &LinkWireguard::new(&first_name).mtu(mtu).build()),
        Request::new(RTM_SETLINK, 0, &marked),
    ];
    let results = kernel.submit(&birth).await?;
    if let Some(Err(errno)) = results.first() {
        return Err((*errno).into());
    }
    let Some(born) = link(kernel, &first_name).await? else { return Err(Errno::NODEV.into()) };
    let named = LinkMessageBuilder::<LinkUnspec>::default().index(born.index).name(name.as_str()).build();
    let named = match results.get(1) {
        Some(Err(errno)) => Err(*errno),
        Some(Ok(())) | None => one(kernel, Request::new(RTM_SETLINK, 0, &named)).await?,
    };
    if let Err(errno) = named {
        delete_index(kernel, born.index).await?;
        return match (errno, link(kernel, name.as_str()).await?) {
            // Another process created it in between.
            (Errno::EXIST, Some(there)) if there.wireguard => Ok(()),
            _ => Err(errno.into()),
        };
    }
    Ok(())
}

/// Deletes a WireGuard link that is marked as ours. A missing or foreign link is not touched.
pub(super) async fn delete_link(kernel: &mut Conversation, name: &IfName) -> io::Result<()> {
    match link(kernel, name.as_str()).await? {
        Some(there) if there.wireguard && there.ours => delete_index(kernel, there.index).await,
        Some(_) | None => Ok(()),
    }
}

async fn delete_index(kernel: &mut Conversation, index: u32) -> io::Result<()> {
    let message = LinkMessageBuilder::<LinkUnspec>::default().index(index).build();
    match one(kernel, Request::new(RTM_DELLINK, 0, &message)).await? {
        Ok(()) | Err(Errno::NODEV) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

async fn one(kernel: &mut Conversation, request: Request) -> io::Result<Result<(), Errno>> {
    Ok(kernel.submit(&[request]).await?.pop().unwrap_or(Ok(())))
}

/// The errno of an error, if it has one.
pub(super) fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw_os_error)
}
