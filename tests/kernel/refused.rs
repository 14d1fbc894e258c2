//! A step that the kernel refuses is a condition of its own: the process, the interface and later changes go on.
use crate::netns::{Namespace, PlainWireGuard, wire};
use crate::panel::{Node, key};
use crate::supervisor::{REPAIRED, Supervisor, one_peer, wait_until};
use serde_json::{Value, json};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

fn sysctl(namespace: &Namespace, link: &str, disabled: u8) {
    namespace.run(&format!("sysctl -qw net.ipv6.conf.{link}.disable_ipv6={disabled}"));
}

#[test]
fn disabled_ipv6_costs_its_own_addresses_only() {
    let (device, hub) = (Namespace::new("device"), Namespace::new("hub"));
    wire((&device, "wan", "192.0.2.2/24"), (&hub, "wan", "192.0.2.1/24"));
    let far = PlainWireGuard::new(&hub, "wg0", 51820, "10.8.0.1/24");
    sysctl(&device, "all", 1);
    sysctl(&device, "default", 1);
    let mut spoke = Supervisor::new(&device, &one_peer(&far.public_key));
    spoke.start_degraded();
    wait_until(REPAIRED, "the condition", || spoke.condition("ipv6_disabled").contains("IPv6 is disabled on wg0"));
    assert!(spoke.condition("ipv6_disabled").contains("fd08::2/64"), "the step is named");
    far.peer(device.run("wg show wg0 public-key").trim(), "allowed-ips 10.8.0.2/32");
    device.run("ping -c 1 -W 10 10.8.0.1");

    let has_ipv6 = || device.run("ip -6 addr show dev wg0").contains("fd08::2/64");
    for round in 0..2 {
        sysctl(&device, "wg0", 0);
        wait_until(REPAIRED, "the address", || has_ipv6() && spoke.status()["clean"] == true);
        sysctl(&device, "wg0", 1);
        wait_until(REPAIRED, "the condition again", || !spoke.condition("ipv6_disabled").is_empty());
        assert!(spoke.lives() && !has_ipv6(), "round {round}");
    }
    device.run("ping -c 1 -W 10 10.8.0.1");
    let refusals = spoke.log().lines().filter(|l| l.contains("kernel refused step") && l.contains("fd08::2")).count();
    assert_eq!(refusals, 3, "logged once for each time it is disabled");
}

const HUB: &str = "[health]\nenabled = true\nlisten = [\"127.0.0.1:8080\"]\n\
    [[interface]]\nname = \"wg0\"\nlisten_port = 51820\naddresses = [\"10.8.0.1/24\"]\n";

/// Adds the peer with that number and network.
fn add(n: u8, net: &str) -> Value {
    json!({ "public_key": key(n), "allowed_ips": [net] })
}

#[test]
fn api_change_with_ipv6_is_refused_by_name_where_it_is_disabled() {
    let device = Namespace::new("device");
    sysctl(&device, "default", 1);
    let mut node = Node::new(&device, HUB);
    node.start();
    let mut panel = node.panel();
    let (status, reply) = panel.ask("POST", "/v1/wg/wg0/peers", &add(1, "fd99::9/128")).expect("a response");
    assert_eq!(status, 503, "{reply}");
    assert!(reply["error"].as_str().is_some_and(|e| e.contains("IPv6 is disabled on wg0")), "{reply}");
    panel.done("POST", "/v1/wg/wg0/peers", &add(2, "10.8.0.2/32"));
    assert_eq!(node.peers("wg0"), [key(2)]);
}

#[test]
fn route_of_the_lan_blocks_no_other_change() {
    let (device, lan) = (Namespace::new("device"), Namespace::new("lan"));
    wire((&device, "lan", "192.0.2.2/24"), (&lan, "lan", "192.0.2.1/24"));
    let mut node = Node::new(&device, HUB);
    node.start();
    let mut panel = node.panel();
    panel.done("POST", "/v1/wg/wg0/peers", &add(1, "10.99.0.0/16"));
    panel.done("POST", "/v1/wg/wg0/peers", &add(2, "10.8.0.2/32"));
    node.kill();
    // The LAN's router announces the network while the node is down.
    device.ip("route replace 10.99.0.0/16 via 192.0.2.1 dev lan proto dhcp");
    let notices = UnixDatagram::bind(node.path("notify")).expect("a socket");
    notices.set_nonblocking(true).expect("a socket");
    let log = std::fs::File::options().append(true).open(node.path("log")).expect("a log");
    let mut run = node.command("run").env("NOTIFY_SOCKET", node.path("notify")).stderr(log).spawn().expect("spoke run");
    let condition = || {
        let status = node.json("status --json");
        let all = status["troubles"].as_array().cloned().unwrap_or_default();
        all.iter().find(|t| t["code"] == "route_conflict").map(|t| t["detail"].to_string()).unwrap_or_default()
    };
    wait_until(Duration::from_secs(20), "the condition", || condition().contains("10.99.0.0/16"));
    assert!(condition().contains("lan (protocol dhcp)"), "{}", condition());
    let ready = || {
        let mut text = [0; 256];
        std::iter::from_fn(|| notices.recv(&mut text).ok().map(|n| text[..n].starts_with(b"READY=1"))).any(|r| r)
    };
    wait_until(Duration::from_secs(20), "READY=1", ready);
    let http = |path: &str| device.run(&format!("curl -s -o /dev/null -w %{{http_code}} http://127.0.0.1:8080{path}"));
    assert_eq!(http("/ready"), "200");
    assert!(device.run("curl -s http://127.0.0.1:8080/health").contains("\"status\":\"degraded\""));

    // A revocation, an unrelated change, and the revocation of the peer itself.
    panel.done("DELETE", &format!("/v1/wg/wg0/peers/{}", key(2)), &Value::Null);
    assert_eq!(node.peers("wg0"), [key(1)]);
    panel.done("POST", "/v1/wg/wg0/peers", &add(3, "10.8.0.3/32"));
    panel.done("DELETE", &format!("/v1/wg/wg0/peers/{}", key(1)), &Value::Null);
    assert_eq!(node.peers("wg0"), [key(3)]);
    assert!(device.ip("route show 10.99.0.0/16").contains("dev lan"), "the other route is kept");
    let _ = run.kill();
    let _ = run.wait();
}
