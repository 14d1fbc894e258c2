//! Every message is compared with what the crates `rtnetlink` and `netlink-packet-route` write and read.
use super::super::route::Change;
use super::*;
use ::rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkWireguard, RouteMessageBuilder};
use netlink_packet_core::{Emitable, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkExtentMask, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use spoke_net::state::{OWNED_ALIAS, ROUTE_PROTOCOL, Route};
use std::net::{Ipv4Addr, Ipv6Addr};

fn bytes(message: &impl Emitable) -> Vec<u8> {
    let mut out = vec![0; message.buffer_len()];
    message.emit(&mut out);
    out
}

fn sent(change: &Change<'_>) -> Vec<u8> {
    change.request().body().to_vec()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn named(name: &str) -> LinkMessageBuilder<LinkUnspec> {
    LinkMessageBuilder::<LinkUnspec>::default().name(name)
}

#[test]
fn link_messages_equal_the_librarys() {
    let wg0 = "wg0".parse().unwrap();
    assert_eq!(sent(&Change::Mtu(&wg0, 1380)), bytes(&named("wg0").mtu(1380).build()));
    assert_eq!(sent(&Change::Up(&wg0, true)), bytes(&named("wg0").up().build()));
    assert_eq!(sent(&Change::Up(&wg0, false)), bytes(&named("wg0").down().build()));
    for name in ["a", "wg0", "eth0", "spoke00000001"] {
        let ours = link_head(0, 0, 0).text(IFLA_IFNAME, name);
        let marked = link_head(0, 0, 0).text(IFLA_IFNAME, name).text(IFLA_IFALIAS, OWNED_ALIAS);
        let created = link_head(0, 0, 0).text(IFLA_IFNAME, name).word(IFLA_MTU, 1420).kind("wireguard");
        let moved = link_head(7, 0, 0).text(IFLA_IFNAME, name);
        assert_eq!(bytes(&ours), bytes(&named(name).build()));
        assert_eq!(bytes(&marked), bytes(&named(name).alias(OWNED_ALIAS).build()));
        assert_eq!(bytes(&created), bytes(&LinkWireguard::new(name).mtu(1420).build()));
        assert_eq!(bytes(&moved), bytes(&LinkMessageBuilder::<LinkUnspec>::default().index(7).name(name).build()));
    }
    let mut filter = LinkMessage::default();
    filter.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]));
    assert_eq!(bytes(&link_head(0, 0, 0).kind("wireguard")), bytes(&filter));
    filter.attributes.insert(0, LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    assert_eq!(bytes(&link_head(0, 0, 0).without_stats().kind("wireguard")), bytes(&filter));
}

#[test]
fn address_messages_equal_the_librarys() {
    for text in ["10.8.0.2/24", "10.8.0.2/32", "fd00::2/64", "fe80::2/64", "fd00::2/128"] {
        let net = net(text);
        for add in [true, false] {
            let mut message = AddressMessage::default();
            message.header.family = if net.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            message.header.prefix_len = net.prefix_len();
            message.header.index = 7;
            message.header.scope = if text.starts_with("fe80") { AddressScope::Link } else { AddressScope::Universe };
            message.attributes.push(AddressAttribute::Local(net.addr()));
            message.attributes.push(AddressAttribute::Address(net.addr()));
            if add && net.addr().is_ipv6() {
                message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
            if add {
                message.attributes.push(AddressAttribute::RoutePriority(32_000));
            }
            let change = if add { Change::AddAddress(7, net) } else { Change::RemoveAddress(7, net) };
            assert_eq!(sent(&change), bytes(&message), "{text}");
        }
    }
    let mut dump = AddressMessage::default();
    dump.header.family = AddressFamily::Inet6;
    dump.header.index = 7;
    assert_eq!(bytes(&address_head(AF_INET6, 7)), bytes(&dump));
}

fn library_route(route: Route, scope: RouteScope) -> RouteMessage {
    let (protocol, table) = (RouteProtocol::from(ROUTE_PROTOCOL), route.table);
    let mut message = match route.to {
        IpNet::V4(net) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .output_interface(7)
            .table_id(table)
            .protocol(protocol)
            .scope(scope)
            .build(),
        IpNet::V6(net) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .output_interface(7)
            .table_id(table)
            .protocol(protocol)
            .build(),
    };
    if route.metric != 0 {
        message.attributes.push(RouteAttribute::Priority(route.metric));
    }
    message
}

#[test]
fn route_messages_equal_the_librarys() {
    for text in ["10.8.0.0/24", "0.0.0.0/0", "10.1.2.3/32", "fd00::/64", "::/0", "fd00::1/128"] {
        for table in [0, 100, 254, 255, 256, 51_820] {
            let route = Route { to: net(text), table, metric: table % 7 };
            assert_eq!(
                sent(&Change::AddRoute(7, route)),
                bytes(&library_route(route, RouteScope::Link)),
                "{text} in {table}"
            );
            assert_eq!(
                sent(&Change::RemoveRoute(7, route)),
                bytes(&library_route(route, RouteScope::NoWhere)),
                "{text} in {table}"
            );
        }
    }
    let mut question = RouteMessage::default();
    question.header.flags = RouteFlags::FibMatch;
    question.header.address_family = AddressFamily::Inet6;
    question.header.destination_prefix_length = 128;
    let to = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    question.attributes.push(RouteAttribute::Destination(RouteAddress::Inet6(to)));
    question.attributes.push(RouteAttribute::Mark(9));
    assert_eq!(bytes(&look_up(to.into(), RTM_F_FIB_MATCH).word(RTA_MARK, 9)), bytes(&question));
    let mut dump = RouteMessage::default();
    dump.header.address_family = AddressFamily::Inet;
    dump.header.protocol = RouteProtocol::Kernel;
    dump.header.kind = RouteType::Unicast;
    dump.header.table = 254;
    let head = RouteHead { family: AF_INET, protocol: RTPROT_KERNEL, kind: RTN_UNICAST, ..RouteHead::default() };
    assert_eq!(bytes(&RouteHead { table: RT_TABLE_MAIN, ..head }.body()), bytes(&dump));
}

#[test]
fn reports_are_read_as_the_library_reads_them() {
    let body = RouteHead { family: AF_INET, prefix_len: 24, table: 254, protocol: 2, kind: 1, ..RouteHead::default() }
        .body()
        .ip(RTA_DST, [10, 8, 0, 0].into())
        .word(RTA_OIF, 7)
        .ip(RTA_GATEWAY, [10, 0, 0, 1].into())
        .ip(RTA_PREFSRC, [10, 8, 0, 2].into())
        .word(RTA_PRIORITY, 32_000)
        .word(RTA_TABLE, 51_820);
    let payload = bytes(&body);
    let library = RouteMessage::parse(payload.as_slice()).unwrap();
    let ours = read_route(&payload).unwrap();
    for expected in [
        RouteAttribute::Destination(RouteAddress::Inet([10, 8, 0, 0].into())),
        RouteAttribute::Oif(ours.link.unwrap()),
        RouteAttribute::Priority(ours.metric),
        RouteAttribute::Table(ours.table),
    ] {
        assert!(library.attributes.contains(&expected), "{expected:?} in {library:?}");
    }
    assert_eq!(ours.to, Some([10, 8, 0, 0].into()));
    assert_eq!((ours.gateway, ours.source), (Some([10, 0, 0, 1].into()), Some([10, 8, 0, 2].into())));
    assert_eq!((ours.prefix_len, ours.protocol, ours.kind), (24, 2, 1));

    let payload = bytes(&own_address(7, net("10.8.0.2/24"), RT_SCOPE_UNIVERSE));
    let ours = read_address(&payload).unwrap();
    let library = AddressMessage::parse(payload.as_slice()).unwrap();
    assert_eq!((ours.link, ours.prefix_len), (library.header.index, library.header.prefix_len));
    assert_eq!((ours.local, ours.far), (Some([10, 8, 0, 2].into()), Some([10, 8, 0, 2].into())));
}

#[test]
fn malformed_reports_are_errors() {
    let head = RouteHead { family: AF_INET, prefix_len: 24, ..RouteHead::default() };
    let short = bytes(&head.body().raw(RTA_DST, &[10, 8]));
    assert!(read_route(&short).is_err(), "taken for a default route");
    assert!(read_route(&short[..11]).is_err());
    let cut = bytes(&head.body().ip(RTA_DST, [10, 8, 0, 0].into()));
    assert!(read_route(&cut[..cut.len() - 1]).is_err());
    assert!(read_address(&bytes(&address_head(AF_INET, 7).raw(IFA_LOCAL, &[1, 2, 3]))).is_err());
    assert!(read_address(&[2; 7]).is_err());
    assert!(link_parts(&[0; 15]).is_err());
}
