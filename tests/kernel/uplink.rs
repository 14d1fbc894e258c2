//! Recovery of the tunnel: the product against a hub made with wireguard-tools, on a real kernel.
use crate::device::{Device, Hub};
use crate::netns::{Namespace, PlainWireGuard, wait_until, wire};
use std::time::Duration;

const HUB: &str = "10.9.0.1";

fn hub_of<'a>(hub: &'a PlainWireGuard<'_>) -> Hub<'a> {
    Hub { name: "hub", public_key: &hub.public_key, endpoint: "192.0.2.1:51820", address: HUB }
}

/// A device and a hub with a wire between them, and the tunnel up.
macro_rules! stage {
    ($node:ident, $far:ident, $hub:ident, $device:ident) => {
        let ($node, $far) = (Namespace::new("device"), Namespace::new("hub"));
        wire((&$node, "wan", "192.0.2.2/24"), (&$far, "wan", "192.0.2.1/24"));
        let $hub = PlainWireGuard::new(&$far, "wg0", 51820, "10.9.0.1/24");
        let mut $device = Device::new(&$node, "10.9.0.2/24", &[hub_of(&$hub)]);
        $hub.peer(&$device.public_key, "allowed-ips 10.9.0.2/32");
        $device.start();
        $device.wait_up(20, HUB);
    };
}

fn port(node: &Namespace) -> String {
    node.run("wg show wg0 listen-port").trim().to_owned()
}

#[test]
fn tunnel_recovers_after_a_hub_outage() {
    stage!(_node, far, hub, device);
    far.ip("link set wg0 down");
    device.wait_down(30);
    assert!(device.uplink()["last_error"].as_str().is_some_and(|e| !e.is_empty()), "no last_error");
    far.ip("link set wg0 up");
    device.wait_up(60, HUB);
    assert!(hub.latest_handshake(&device.public_key).is_some());
}

#[test]
fn tunnel_recovers_after_a_link_outage() {
    stage!(node, _far, _hub, device);
    node.ip("link set wan down");
    device.wait_down(30);
    node.ip("link set wan up");
    device.wait_up(60, HUB);
}

#[test]
fn deleted_interface_is_recreated_with_its_tunnel() {
    stage!(node, _far, _hub, device);
    let before = port(&node);
    node.ip("link del wg0");
    wait_until(Duration::from_secs(10), "the interface to be recreated", || {
        node.command("ip link show wg0").output().is_ok_and(|o| o.status.success())
    });
    // Reported later than the interface: the session is probed about once a second.
    wait_until(Duration::from_secs(30), "a second session", || device.uplink()["sessions"].as_u64() >= Some(2));
    device.wait_up(30, HUB);
    assert_ne!(port(&node), before, "the port of the new interface");
}

#[test]
fn stuck_nat_binding_is_replaced_by_a_new_port() {
    stage!(node, far, _hub, device);
    let before = port(&node);
    far.run("nft add table inet nat_box");
    far.run("nft add chain inet nat_box in { type filter hook input priority 0 ; }");
    far.run(&format!("nft add rule inet nat_box in udp sport {before} drop"));
    device.wait_outage(60);
    wait_until(Duration::from_secs(90), "a new local port", || port(&node) != before);
    device.wait_up(90, HUB);
    assert!(device.uplink()["rungs"]["port"].as_u64() >= Some(1), "{:#}", device.uplink());
}

#[test]
fn a_restart_adopts_the_tunnel() {
    stage!(node, _far, hub, device);
    let (endpoint, handshake) = (port(&node), hub.latest_handshake(&device.public_key));
    device.stop();
    node.run("ping -c 1 -W 5 10.9.0.1");
    device.start();
    device.wait_up(20, HUB);
    assert_eq!(device.uplink()["history"][0]["code"], "adopted", "{:#}", device.uplink());
    assert_eq!((port(&node), hub.latest_handshake(&device.public_key)), (endpoint, handshake), "port and handshake");
}

#[test]
fn fails_over_to_the_second_hub_and_back() {
    let (node, far, other) = (Namespace::new("device"), Namespace::new("hub"), Namespace::new("hub2"));
    wire((&node, "wan", "192.0.2.2/24"), (&far, "wan", "192.0.2.1/24"));
    wire((&node, "lte", "198.51.100.2/24"), (&other, "wan", "198.51.100.1/24"));
    let best = PlainWireGuard::new(&far, "wg0", 51820, "10.9.0.1/24");
    let second = PlainWireGuard::new(&other, "wg0", 51820, "10.9.0.3/24");
    let hubs = [
        hub_of(&best),
        Hub { name: "second", public_key: &second.public_key, endpoint: "198.51.100.1:51820", address: "10.9.0.3" },
    ];
    let mut device = Device::new(&node, "10.9.0.2/24", &hubs);
    best.peer(&device.public_key, "allowed-ips 10.9.0.2/32");
    second.peer(&device.public_key, "allowed-ips 10.9.0.2/32");
    device.start();
    device.wait_up(20, HUB);
    far.ip("link set wg0 down");
    device.wait_outage(60);
    wait_until(Duration::from_secs(120), "failover to the second hub", || {
        let uplink = device.uplink();
        uplink["hub"] == "second" && uplink["state"] == "up"
    });
    node.run("ping -c 1 -W 5 10.9.0.3");
    far.ip("link set wg0 up");
    wait_until(Duration::from_secs(180), "failback to the preferred hub", || {
        let uplink = device.uplink();
        uplink["hub"] == "hub" && uplink["state"] == "up"
    });
    node.run("ping -c 1 -W 5 10.9.0.1");
    assert_eq!(device.uplink()["history"][0]["code"], "failback", "{:#}", device.uplink());
}

/// IPv6 inside and outside; once with raw sockets, once with ping sockets, which ping_group_range allows.
#[test]
fn probes_over_ipv6_by_raw_and_ping_sockets() {
    let (node, far) = (Namespace::new("device"), Namespace::new("hub"));
    wire((&node, "wan", "2001:db8::2/64"), (&far, "wan", "2001:db8::1/64"));
    let hub = PlainWireGuard::new(&far, "wg0", 51820, "fd09::1/64");
    let hubs = [Hub { name: "hub", public_key: &hub.public_key, endpoint: "[2001:db8::1]:51820", address: "fd09::1" }];
    let mut device = Device::new(&node, "fd09::2/64", &hubs);
    hub.peer(&device.public_key, "allowed-ips fd09::2/128");
    for groups in ["1 0", "0 2147483647"] {
        node.feed("tee /proc/sys/net/ipv4/ping_group_range", groups);
        device.start();
        device.wait_up(20, "fd09::1");
        device.stop();
    }
}

#[test]
fn probes_over_ipv4_by_ping_sockets() {
    let (node, far) = (Namespace::new("device"), Namespace::new("hub"));
    wire((&node, "wan", "192.0.2.2/24"), (&far, "wan", "192.0.2.1/24"));
    node.feed("tee /proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    let hub = PlainWireGuard::new(&far, "wg0", 51820, "10.9.0.1/24");
    let mut device = Device::new(&node, "10.9.0.2/24", &[hub_of(&hub)]);
    hub.peer(&device.public_key, "allowed-ips 10.9.0.2/32");
    device.start();
    device.wait_up(20, HUB);
}
