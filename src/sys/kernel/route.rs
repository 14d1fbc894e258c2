//! Links, addresses and routes over rtnetlink.
//!
//! The library `rtnetlink` is not used: its connection task skips what it cannot decode and drops `NLM_F_DUMP_INTR`, so
//! that a partial observation would go unnoticed, and it queues unread events without bound.
use super::body::Body;
use super::conversation::{Conversation, Message, Request, invalid};
use super::rtnetlink::*;
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rustix::io::Errno;
use spoke_model::interface_name::IfName;
use spoke_net::state::{OWNED_ALIAS, ROUTE_PROTOCOL, Route};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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
        let set = |message: Body| Request::new(RTM_SETLINK, 0, &message);
        match *self {
            Self::Mtu(name, mtu) => set(named(name.as_str()).word(IFLA_MTU, mtu)),
            Self::Up(name, up) => {
                set(link_head(0, if up { IFF_UP } else { 0 }, IFF_UP).text(IFLA_IFNAME, name.as_str()))
            }
            Self::AddAddress(index, net) => {
                Request::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &address(index, net, true))
            }
            Self::RemoveAddress(index, net) => Request::new(RTM_DELADDR, 0, &address(index, net, false)),
            Self::AddRoute(index, r) => {
                Request::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &route(index, r, RT_SCOPE_LINK))
            }
            // This scope matches any.
            Self::RemoveRoute(index, r) => Request::new(RTM_DELROUTE, 0, &route(index, r, RT_SCOPE_NOWHERE)),
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

/// A request about the link of a name.
fn named(name: &str) -> Body {
    link_head(0, 0, 0).text(IFLA_IFNAME, name)
}

fn address(index: u32, net: IpNet, add: bool) -> Body {
    let scope = match net.addr() {
        IpAddr::V6(a) if a.is_unicast_link_local() => RT_SCOPE_LINK,
        IpAddr::V4(_) | IpAddr::V6(_) => RT_SCOPE_UNIVERSE,
    };
    let mut body = own_address(index, net, scope);
    if add && net.addr().is_ipv6() {
        // No neighbour on a WireGuard link can have the address; duplicate address detection takes a second.
        body = body.word(IFA_FLAGS, IFA_F_NODAD);
    }
    if add { body.word(IFA_RT_PRIORITY, CONNECTED_METRIC) } else { body }
}

/// IPv6 routes have no scope.
fn route(index: u32, route: Route, scope: u8) -> Body {
    let scope = if route.to.addr().is_ipv4() { scope } else { RT_SCOPE_UNIVERSE };
    let body = unicast_route(route.to, index, route.table, ROUTE_PROTOCOL, scope);
    if route.metric == 0 { body } else { body.word(RTA_PRIORITY, route.metric) }
}

/// Reads all WireGuard links.
pub(super) async fn wireguard_links(kernel: &mut Conversation) -> io::Result<Vec<LinkState>> {
    let request = Request::new(RTM_GETLINK, 0, &link_head(0, 0, 0).kind("wireguard"));
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
    match kernel.ask(&Request::new(RTM_GETLINK, 0, &named(name).without_stats()), |m| read_link(&m)).await {
        Ok(link) => Ok(Some(link)),
        Err(error) if errno(&error) == Some(Errno::NODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads only the attributes we need: a link has over sixty, and kernels add more.
pub(super) fn read_link(message: &Message<'_>) -> io::Result<LinkState> {
    let (index, flags, rest) = link_parts(message.payload)?;
    let (up, loopback) = (flags & IFF_UP != 0, flags & IFF_LOOPBACK != 0);
    let mut link = LinkState { index, up, loopback, ..LinkState::default() };
    for attribute in attributes(rest) {
        match attribute? {
            (IFLA_IFNAME, value) => link.name = text(value),
            (IFLA_MTU, value) => link.mtu = word(value).unwrap_or(0),
            (IFLA_IFALIAS, value) => link.ours = text(value) == OWNED_ALIAS,
            (IFLA_STATS64, value) => {
                // struct rtnl_link_stats64: received and sent packets, then received and sent bytes.
                let word = |n: usize| value.get(n * 8..).and_then(<[u8]>::first_chunk).map(|b| u64::from_ne_bytes(*b));
                link.traffic = (word(2).unwrap_or(0), word(3).unwrap_or(0));
            }
            (IFLA_LINKINFO, value) => {
                for info in attributes(value) {
                    if let (IFLA_INFO_KIND, kind) = info? {
                        link.wireguard = text(kind) == "wireguard";
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
    for family in [AF_INET, AF_INET6] {
        let request = Request::new(RTM_GETADDR, 0, &address_head(family, index));
        let found = kernel
            .dump(&request, BTreeSet::new, |found, message| {
                if message.kind == RTM_NEWADDR {
                    let reported = read_address(message.payload)?;
                    if reported.link == index {
                        found.extend(own(&reported)?);
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
    for family in [AF_INET, AF_INET6] {
        let found = kernel
            .dump(&Request::new(RTM_GETADDR, 0, &address_head(family, 0)), Vec::new, |found, message| {
                if message.kind == RTM_NEWADDR {
                    let reported = read_address(message.payload)?;
                    let far = reported.far.and_then(|a| IpNet::new(a, reported.prefix_len).ok());
                    if let Some(address) = own(&reported)? {
                        let network = far.unwrap_or(address).trunc();
                        found.push(LinkAddress { link: reported.link, address, network });
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
    for family in [AF_INET, AF_INET6] {
        let head = RouteHead { family, ..RouteHead::default() };
        let head = RouteHead { protocol: RTPROT_KERNEL, kind: RTN_UNICAST, table: RT_TABLE_MAIN, ..head };
        let found = kernel
            .dump(&Request::new(RTM_GETROUTE, 0, &head.body()), Vec::new, |found, message| {
                if message.kind == RTM_NEWROUTE {
                    found.extend(read_connected(&read_route(message.payload)?)?);
                }
                Ok(())
            })
            .await?;
        all.extend(found);
    }
    Ok(all)
}

fn read_connected(route: &Reported) -> io::Result<Option<(u32, IpNet, u32)>> {
    if route.protocol != RTPROT_KERNEL || route.kind != RTN_UNICAST {
        return Ok(None);
    }
    let Some((to, link)) = route.to.zip(route.link) else { return Ok(None) };
    let net = IpNet::new(to, route.prefix_len).map_err(invalid)?;
    Ok(Some((link, net, route.metric)))
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

fn connected_route(link: u32, net: IpNet) -> Body {
    let scope = if net.addr().is_ipv4() { RT_SCOPE_LINK } else { RT_SCOPE_UNIVERSE };
    let route = unicast_route(net.trunc(), link, RT_TABLE_MAIN.into(), RTPROT_KERNEL, scope);
    // The kernel's own connected route of IPv6 names no source either.
    let route = if net.addr().is_ipv4() { route.ip(RTA_PREFSRC, net.addr()) } else { route };
    route.word(RTA_PRIORITY, CONNECTED_METRIC)
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
    usize::from(read_address(payload).is_ok_and(|a| own(&a).is_ok_and(|a| a.is_some())))
}

/// How many routes of ours or connected ones a message has.
#[cfg(feature = "sim")]
pub(super) fn read_route_message(payload: &[u8]) -> usize {
    let Ok(route) = read_route(payload) else { return 0 };
    let own = read_own(&route).is_ok_and(|r| r.is_some());
    let connected = read_connected(&route).is_ok_and(|c| c.is_some());
    usize::from(own) + usize::from(connected)
}

/// Our address, with its prefix length.
fn own(reported: &Address) -> io::Result<Option<IpNet>> {
    reported.local.or(reported.far).map(|a| IpNet::new(a, reported.prefix_len).map_err(invalid)).transpose()
}

/// Reads the routes of our protocol, by link index. The kernel filters: a full Internet table is not sent to us.
pub(super) async fn routes(kernel: &mut Conversation) -> io::Result<BTreeMap<u32, BTreeSet<Route>>> {
    let mut all: BTreeMap<u32, BTreeSet<Route>> = BTreeMap::new();
    for family in [AF_INET, AF_INET6] {
        let head = RouteHead { family, protocol: ROUTE_PROTOCOL, ..RouteHead::default() };
        let request = Request::new(RTM_GETROUTE, 0, &head.body());
        let found = kernel
            .dump(&request, Vec::new, |found, message| {
                if message.kind == RTM_NEWROUTE {
                    found.extend(read_own(&read_route(message.payload)?)?);
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

fn read_own(route: &Reported) -> io::Result<Option<(u32, Route)>> {
    if route.protocol != ROUTE_PROTOCOL || route.kind != RTN_UNICAST {
        return Ok(None);
    }
    let to = route.to.unwrap_or(match route.family {
        AF_INET6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    });
    let to = IpNet::new(to, route.prefix_len).map_err(invalid)?;
    let metric = if to.addr().is_ipv6() && route.metric == IPV6_METRIC { 0 } else { route.metric };
    Ok(route.link.map(|link| (link, Route { to, table: route.table, metric })))
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
    let read = |answer: Message<'_>| {
        let Reported { link, gateway, prefix_len, protocol, .. } = read_route(answer.payload)?;
        Ok(link.map(|link| Entry { link, gateway, prefix_len, protocol }))
    };
    match kernel.ask(&Request::new(RTM_GETROUTE, 0, &look_up(to, RTM_F_FIB_MATCH)), read).await {
        // A prohibiting or unreachable route is answered as an error.
        Err(error) if errno(&error).is_some() => Ok(None),
        result => result,
    }
}

/// Reads one link by index; `None`: there is none.
pub(super) async fn link_at(kernel: &mut Conversation, index: u32) -> io::Result<Option<LinkState>> {
    let request = Request::new(RTM_GETLINK, 0, &link_head(index, 0, 0).without_stats());
    match kernel.ask(&request, |m| read_link(&m)).await {
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
    let marked = named(&first_name).text(IFLA_IFALIAS, OWNED_ALIAS);
    let birth = [
        Request::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &named(&first_name).word(IFLA_MTU, mtu).kind("wireguard")),
        Request::new(RTM_SETLINK, 0, &marked),
    ];
    let results = kernel.submit(&birth).await?;
    if let Some(Err(errno)) = results.first() {
        return Err((*errno).into());
    }
    let Some(born) = link(kernel, &first_name).await? else { return Err(Errno::NODEV.into()) };
    let renamed = link_head(born.index, 0, 0).text(IFLA_IFNAME, name.as_str());
    let renamed = match results.get(1) {
        Some(Err(errno)) => Err(*errno),
        Some(Ok(())) | None => one(kernel, Request::new(RTM_SETLINK, 0, &renamed)).await?,
    };
    if let Err(errno) = renamed {
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
    match one(kernel, Request::new(RTM_DELLINK, 0, &link_head(index, 0, 0))).await? {
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
