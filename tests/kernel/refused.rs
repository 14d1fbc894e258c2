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

/// The LAN of the device has the tunnel's network. Whatever comes first, the LAN keeps it, and the condition names both.
#[test]
fn network_of_the_lan_wins_in_both_orders_of_boot() {
    for lan_first in [true, false] {
        let (device, lan, hub) = (Namespace::new("device"), Namespace::new("lan"), Namespace::new("hub"));
        let far = PlainWireGuard::new(&hub, "wg0", 51820, "10.8.0.1/24");
        let mut spoke = Supervisor::new(&device, &one_peer(&far.public_key));
        let connect = || wire((&device, "lan0", "10.8.0.7/24"), (&lan, "lan0", "10.8.0.3/24"));
        if lan_first {
            connect();
            spoke.start_degraded();
        } else {
            spoke.start();
            connect();
        }
        let route = || device.run("ip route get 10.8.0.3");
        wait_until(REPAIRED, "the condition", || spoke.condition("network_overlap").contains("lan0"));
        let condition = spoke.condition("network_overlap");
        assert!(condition.contains("10.8.0.0/24 on wg0"), "{condition}");
        assert!(route().contains("dev lan0"), "LAN first: {lan_first}: {}", route());
        device.run("ping -c 1 -W 5 10.8.0.3");
        // The tunnel's own network stays reachable through it as soon as the LAN is gone.
        device.ip("link del lan0");
        wait_until(REPAIRED, "the end of the overlap", || spoke.condition("network_overlap").is_empty());
        assert!(device.run("ip route get 10.8.0.1").contains("dev wg0"));
    }
}

/// A tunnel's network inside a wide LAN takes neither a gateway nor the way to the hub, and otherwise has precedence.
#[test]
fn narrow_tunnel_in_a_wide_lan_takes_no_gateway() {
    let (device, lan, hub) = (Namespace::new("device"), Namespace::new("lan"), Namespace::new("hub"));
    wire((&device, "lan0", "10.0.9.7/16"), (&lan, "lan0", "10.0.5.1/16"));
    lan.ip("addr add 10.0.5.254/16 dev lan0");
    lan.ip("addr add 10.0.0.1/16 dev lan0");
    wire((&lan, "wan", "203.0.113.9/24"), (&hub, "wan", "203.0.113.1/24"));
    let far = PlainWireGuard::new(&hub, "wg0", 51820, "10.0.5.9/24");
    hub.ip("route add default via 203.0.113.9");
    lan.run("sysctl -qw net.ipv4.ip_forward=1");
    let text = format!(
        "[[interface]]\nname = \"wg0\"\naddresses = [\"10.0.5.2/24\"]\n[health]\nenabled = false\n[[interface.peer]]\n\
         public_key = \"{}\"\nendpoint = \"203.0.113.1:51820\"\nallowed_ips = [\"10.0.5.0/24\"]\n",
        far.public_key
    );
    let mut spoke = Supervisor::new(&device, &text);
    let leads = |to: &str| device.run(&format!("ip route get {to}"));
    let to_endpoint = |gateway: &str| leads("203.0.113.1").contains(&format!("via {gateway} dev lan0"));
    // The gateway of the default route, then one that only the endpoint needs.
    for (route, gateway) in [("default via 10.0.5.1", "10.0.5.1"), ("203.0.113.0/24 via 10.0.5.254", "10.0.5.254")] {
        device.ip(&format!("route add {route}"));
        spoke.start_degraded();
        wait_until(REPAIRED, "the gateway in the LAN", || leads(gateway).contains("dev lan0"));
        assert!(to_endpoint(gateway), "{}", leads("203.0.113.1"));
        assert!(spoke.condition("network_overlap").contains("left out"), "{}", spoke.condition("network_overlap"));
        device.run(&format!("ping -c 1 -W 5 {gateway}"));
        spoke.stop();
        device.ip(&format!("route del {route}"));
    }
    device.ip("route add default via 10.0.0.1");
    spoke.start_degraded();
    wait_until(REPAIRED, "the narrower network in the tunnel", || leads("10.0.5.9").contains("dev wg0"));
    assert!(to_endpoint("10.0.0.1") && leads("10.0.6.1").contains("dev lan0"));
    let condition = spoke.condition("network_overlap");
    assert!(condition.contains("10.0.5.0/24 on wg0") && condition.contains("narrower"), "{condition}");
    far.peer(device.run("wg show wg0 public-key").trim(), "allowed-ips 10.0.5.2/32");
    device.run("ping -c 1 -W 10 10.0.5.9");
}

#[test]
fn route_metric_decides_between_equal_networks() {
    let (device, lan) = (Namespace::new("device"), Namespace::new("lan"));
    wire((&device, "lan0", "192.0.2.2/24"), (&lan, "lan0", "192.0.2.1/24"));
    device.ip("route add 10.99.0.0/16 via 192.0.2.1 metric 100");
    device.ip("route add fd99::/64 dev lan0 metric 100");
    for (metric, holder) in [(600, "lan0"), (50, "wg0")] {
        let text = format!(
            "[[interface]]\nname = \"wg0\"\naddresses = [\"10.8.0.2/24\", \"fd08::2/64\"]\nroute_metric = {metric}\n[health]\nenabled = false\n\
             [[interface.peer]]\npublic_key = \"{}\"\nallowed_ips = [\"10.99.0.0/16\", \"fd99::/64\"]\n",
            key(7)
        );
        let mut spoke = Supervisor::new(&device, &text);
        std::fs::create_dir_all(spoke.path("state")).expect("a directory");
        // Clean: both routes are there, the one of the run before is gone.
        spoke.start();
        for to in ["10.99.0.1", "fd99::1"] {
            assert!(device.run(&format!("ip route get {to}")).contains(&format!("dev {holder}")), "{to} at {metric}");
        }
        let ours = device.ip("route show proto 157") + &device.ip("-6 route show proto 157");
        assert_eq!(ours.matches(&format!("metric {metric}")).count(), 2, "{ours}");
        spoke.stop();
    }
}

#[test]
fn port_in_use_costs_a_node_its_port_and_a_hub_its_interface() {
    let (device, hub) = (Namespace::new("device"), Namespace::new("hub"));
    wire((&device, "wan", "192.0.2.2/24"), (&hub, "wan", "192.0.2.1/24"));
    let far = PlainWireGuard::new(&hub, "wg0", 51820, "10.8.0.1/24");
    let holder = device.enter(|| std::net::UdpSocket::bind("0.0.0.0:51821").expect("a free port"));
    let fixed = one_peer(&far.public_key).replace("name = \"wg0\"", "name = \"wg0\"\nlisten_port = 51821");
    let mut spoke = Supervisor::new(&device, &fixed);
    spoke.start_degraded();
    wait_until(REPAIRED, "the condition", || spoke.condition("port_in_use").contains("UDP port 51821 is in use by"));
    let condition = spoke.condition("port_in_use");
    assert!(condition.contains(&format!("process {}", std::process::id())), "{condition}");
    let port = || device.run("wg show wg0 listen-port").trim().to_owned();
    wait_until(REPAIRED, "another port", || !matches!(port().as_str(), "0" | "51821"));
    far.peer(device.run("wg show wg0 public-key").trim(), "allowed-ips 10.8.0.2/32");
    device.run("ping -c 1 -W 10 10.8.0.1");
    // The port is taken back when it is free.
    drop(holder);
    wait_until(REPAIRED, "the port", || port() == "51821" && spoke.status()["clean"] == true);
    device.run("ping -c 1 -W 10 10.8.0.1");

    // A hub on another port would be found by no node: it says so and stays down.
    let device = Namespace::new("hub");
    let _other = PlainWireGuard::new(&device, "wg9", 51820, "10.77.0.1/24");
    let text = "[[interface]]\nname = \"wg0\"\nlisten_port = 51820\naddresses = [\"10.8.0.1/24\"]\n[health]\nenabled = false\n";
    let mut hub = Supervisor::new(&device, text);
    let file = hub.path("spoke.toml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    std::fs::write(&file, text.replace("[node]\n", "[node]\nrole = \"hub\"\n")).expect("written");
    hub.start_degraded();
    wait_until(REPAIRED, "the condition", || hub.condition("port_in_use").contains("in use by interface wg9"));
    assert_eq!(hub.status()["troubles"].as_array().map(Vec::len), Some(1), "nothing that only follows from it");
    device.ip("link del wg9");
    wait_until(REPAIRED, "the hub", || hub.status()["clean"] == true);
}

#[test]
fn api_peer_cannot_take_the_way_to_an_endpoint() {
    let device = Namespace::new("device");
    let peer = format!(
        "{HUB}nested_allowed_ips = true\n[[interface.peer]]\npublic_key = \"{}\"\nendpoint = \"192.0.2.1:51820\"\nallowed_ips = [\"10.8.0.9/32\"]\n",
        key(9)
    );
    let mut node = Node::new(&device, &peer);
    node.start();
    let mut panel = node.panel();
    for net in ["0.0.0.0/0", "128.0.0.0/1", "192.0.2.0/24"] {
        let (status, reply) = panel.ask("POST", "/v1/wg/wg0/peers", &add(1, net)).expect("a response");
        assert_eq!(status, 422, "{net}: {reply}");
        assert!(reply["error"].as_str().is_some_and(|e| e.contains(net)), "{net}: {reply}");
    }
    assert_eq!(node.peers("wg0"), [key(9)]);
    assert!(!device.ip("route show").contains("default"));
    assert_eq!(node.json("status --json")["clean"], true);
}
