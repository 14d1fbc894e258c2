//! Failover to a good second hub at the default times, on the real kernel; and what a device must not do meanwhile.
use crate::device::{Device, Hub};
use crate::netns::{Namespace, PlainWireGuard, wait_until, wait_until_every, wire};
use std::time::{Duration, Instant};

const HUB: &str = "10.9.0.1";
const SECOND: &str = "10.9.0.3";

/// Polling is the cost where waits are skipped.
const POLL: Duration = Duration::from_millis(250);

fn hub_of<'a>(hub: &'a PlainWireGuard<'_>) -> Hub<'a> {
    Hub { name: "hub", public_key: &hub.public_key, endpoint: "192.0.2.1:51820", address: HUB }
}

fn second_of<'a>(hub: &'a PlainWireGuard<'_>) -> Hub<'a> {
    Hub { name: "second", public_key: &hub.public_key, endpoint: "198.51.100.1:51820", address: SECOND }
}

/// A device with a wire to each of two hubs, default times, and the tunnel up at the first.
macro_rules! stage {
    ($node:ident, $far:ident, $other:ident, $hub:ident, $second:ident, $device:ident) => {
        let ($node, $far, $other) = (Namespace::new("device"), Namespace::new("hub"), Namespace::new("hub2"));
        wire((&$node, "wan", "192.0.2.2/24"), (&$far, "wan", "192.0.2.1/24"));
        wire((&$node, "lte", "198.51.100.2/24"), (&$other, "wan", "198.51.100.1/24"));
        let $hub = PlainWireGuard::new(&$far, "wg0", 51820, "10.9.0.1/24");
        let $second = PlainWireGuard::new(&$other, "wg0", 51820, "10.9.0.3/24");
        let hubs = [hub_of(&$hub), second_of(&$second)];
        let mut $device = Device::with_times(&$node, "10.9.0.2/24", &hubs, "");
        $hub.peer(&$device.public_key, "allowed-ips 10.9.0.2/32");
        $second.peer(&$device.public_key, "allowed-ips 10.9.0.2/32");
        $device.start();
        $device.wait_up(20, HUB);
    };
}

/// Drops what matches in the namespace's input.
fn drop_input(namespace: &Namespace, rule: &str) {
    namespace.run("nft add table inet fault");
    namespace.run("nft add chain inet fault in { type filter hook input priority 0 ; }");
    namespace.run(&format!("nft add rule inet fault in {rule} drop"));
}

/// Breaks the first hub and waits until the tunnel is up at the second one, at most a minute.
#[expect(clippy::disallowed_methods, reason = "real time passes in a real kernel")]
fn fails_over(device: &Device<'_>, cause: &str, break_it: impl FnOnce()) {
    break_it();
    let start = Instant::now();
    wait_until_every(POLL, Duration::from_secs(60), &format!("failover: {cause}"), || {
        let uplink = device.uplink();
        uplink["hub"] == "second" && uplink["state"] == "up"
    });
    println!("failover, {cause}: {:.1?}", start.elapsed());
}

#[test]
fn leaves_a_hub_that_drops_echo() {
    stage!(_node, far, _other, hub, _second, device);
    // A persistent keepalive as well: WireGuard of the hub is heard all the time.
    hub.peer(&device.public_key, "persistent-keepalive 5");
    fails_over(&device, "WireGuard alive, echo dropped", || drop_input(&far, "iifname wg0 meta l4proto icmp"));
    assert!(device.uplink()["history"].to_string().contains("no_echo"), "{:#}", device.uplink());
}

#[test]
fn leaves_a_hub_that_is_powered_off() {
    stage!(_node, far, _other, _hub, _second, device);
    fails_over(&device, "hub powered off", || {
        far.ip("link del wg0");
        drop_input(&far, "udp dport 51820");
    });
}

#[test]
fn leaves_a_hub_that_lost_its_route() {
    stage!(_node, far, _other, _hub, _second, device);
    fails_over(&device, "hub's route lost", || {
        far.ip("route flush dev wg0");
    });
}

#[test]
fn leaves_a_hub_whose_key_changed() {
    stage!(_node, far, _other, _hub, _second, device);
    fails_over(&device, "hub's key changed", || {
        let key = far.run("wg genkey");
        far.feed("wg set wg0 private-key /dev/stdin", &key);
    });
}

#[test]
fn leaves_a_hub_whose_address_is_black_holed() {
    stage!(_node, far, _other, _hub, _second, device);
    fails_over(&device, "hub's address black-holed", || drop_input(&far, "ip daddr 192.0.2.1"));
}

/// As router advertisements do: an address of the uplink gets new lifetimes all the time.
#[test]
fn refreshed_lifetimes_do_not_delay_failover() {
    stage!(node, far, _other, _hub, _second, device);
    let refresh = || node.ip("addr change 192.0.2.2/24 dev wan valid_lft 3600 preferred_lft 3600");
    refresh();
    drop_input(&far, "ip daddr 192.0.2.1");
    wait_until_every(Duration::from_secs(1), Duration::from_secs(60), "failover with events", || {
        refresh();
        let uplink = device.uplink();
        uplink["hub"] == "second" && uplink["state"] == "up"
    });
}

#[test]
fn outage_keeps_what_others_put_on_the_interface() {
    stage!(node, far, other, _hub, _second, device);
    node.run("tc qdisc add dev wg0 root fq_codel limit 77");
    node.run("ip route add 10.77.0.0/16 dev wg0");
    node.run("sysctl -qw net.ipv4.conf.wg0.rp_filter=2");
    let index = || node.run("cat /sys/class/net/wg0/ifindex");
    let before = index();
    for hub in [&far, &other] {
        drop_input(hub, "udp dport 51820");
    }
    device.wait_down(60);
    wait_until_every(Duration::from_secs(10), Duration::from_secs(1200), "a second round of the ladder", || {
        device.uplink()["rungs"]["again"].as_u64() >= Some(1)
    });
    assert_eq!(index(), before, "the interface was recreated: {:#}", device.uplink()["rungs"]);
    assert!(node.run("tc qdisc show dev wg0").contains("limit 77p"), "the qdisc");
    assert!(node.run("ip route show dev wg0").contains("10.77.0.0/16"), "the route");
    assert!(node.run("sysctl net.ipv4.conf.wg0.rp_filter").contains("= 2"), "the setting");
}

/// The machine has the hub's tunnel address itself: it answers its own echo.
#[test]
fn own_echo_is_not_the_hubs() {
    let (node, far) = (Namespace::new("device"), Namespace::new("hub"));
    wire((&node, "wan", "192.0.2.2/24"), (&far, "wan", "192.0.2.1/24"));
    let hub = PlainWireGuard::new(&far, "wg0", 51820, "10.9.0.1/24");
    let mut device = Device::new(&node, "10.9.0.2/24", &[hub_of(&hub)]);
    hub.peer(&device.public_key, "allowed-ips 10.9.0.2/32");
    drop_input(&far, "iifname wg0");
    node.ip("addr add 10.9.0.1/32 dev lo");
    device.start();
    never_up(&device);
    let reason = device.uplink()["last_error"].to_string();
    assert!(reason.contains("an address of this machine"), "{reason}");
    device.stop();
}

/// Three attempts without an answer that counts.
fn never_up(device: &Device) {
    wait_until(Duration::from_secs(60), "a third attempt", || {
        let uplink = device.uplink();
        assert_ne!(uplink["state"], "up", "{uplink:#}");
        uplink["attempts"].as_u64() >= Some(3)
    });
}

/// The answer reaches the socket through wg0, but not from the hub's peer, whose counters do not grow.
#[test]
fn answer_beside_the_tunnel_is_not_the_hubs() {
    let (node, far) = (Namespace::new("device"), Namespace::new("hub"));
    wire((&node, "wan", "192.0.2.2/24"), (&far, "wan", "192.0.2.1/24"));
    wire((&node, "beside", "198.51.100.2/24"), (&far, "beside", "198.51.100.1/24"));
    let hub = PlainWireGuard::new(&far, "wg0", 51820, "10.9.0.1/24");
    let mut device = Device::new(&node, "10.9.0.2/24", &[hub_of(&hub)]);
    hub.peer(&device.public_key, "allowed-ips 10.9.0.2/32");
    // The hub's answers leave through the other wire, and enter wg0 on this side.
    far.ip("route add 10.9.0.2/32 via 198.51.100.2 dev beside");
    device.start();
    wait_until(Duration::from_secs(20), "wg0", || {
        node.command("ip link show wg0").output().is_ok_and(|o| o.status.success())
    });
    node.run("tc qdisc add dev beside clsact");
    node.run("tc filter add dev beside ingress protocol ip matchall action mirred ingress redirect dev wg0");
    let answers = || counter(&far, "beside", "tx_packets");
    let before = answers();
    never_up(&device);
    assert!(answers() >= before + 3, "no answer took that way, so that nothing is shown");
    // Through the tunnel they count.
    node.run("tc qdisc del dev beside clsact");
    far.ip("route del 10.9.0.2/32 via 198.51.100.2 dev beside");
    device.wait_up(60, HUB);
}

fn counter(namespace: &Namespace, link: &str, what: &str) -> u64 {
    let text = namespace.run(&format!("cat /sys/class/net/{link}/statistics/{what}"));
    text.trim().parse().expect("a number")
}

#[test]
fn missing_wan_is_named_and_not_blamed_on_the_key() {
    let (node, far) = (Namespace::new("device"), Namespace::new("hub"));
    wire((&node, "wan", "192.0.2.2/24"), (&far, "wan", "192.0.2.1/24"));
    far.ip("addr add 203.0.113.1/32 dev lo");
    let hub = PlainWireGuard::new(&far, "wg0", 51820, "10.9.0.1/24");
    let hubs = [Hub { endpoint: "203.0.113.1:51820", ..hub_of(&hub) }];
    let mut device = Device::new(&node, "10.9.0.2/24", &hubs);
    hub.peer(&device.public_key, "allowed-ips 10.9.0.2/32");
    device.start();
    let says = |what: &str| {
        wait_until(Duration::from_secs(60), what, || {
            device.uplink()["last_error"].as_str().is_some_and(|e| e.contains(what) && !e.contains("key"))
        });
    };
    says("no route to the hub's endpoint");
    node.ip("route add default via 192.0.2.1");
    device.wait_up(20, HUB);
    node.ip("addr flush dev wan");
    says("no network interface has an address");
    node.ip("addr add 192.0.2.2/24 dev wan");
    node.ip("route add default via 192.0.2.1");
    device.wait_up(20, HUB);
    far.ip("link set wan down");
    says("no network interface has a carrier");
    far.ip("link set wan up");
    device.wait_up(60, HUB);
}

/// CLOCK_MONOTONIC stands still in suspend: a wait on it ends late after resume.
#[test]
fn waits_are_on_the_boot_clock() {
    stage!(_node, _far, _other, _hub, _second, device);
    let mut timers = 0;
    wait_until(Duration::from_secs(10), "timers", || {
        let entries = std::fs::read_dir(format!("/proc/{}/fdinfo", device.pid())).expect("a process");
        let infos = entries.flatten().filter_map(|e| std::fs::read_to_string(e.path()).ok());
        // 7: CLOCK_BOOTTIME.
        timers = infos.filter(|i| i.lines().any(|l| l.split_whitespace().eq(["clockid:", "7"]))).count();
        timers >= 2
    });
}
