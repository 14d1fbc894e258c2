//! `status`, `/health`, `/stats`, `/wireguard` and `/metrics` against `wg show all dump` and `ip -s -j` of the same second, in
//! states of every kind.
use crate::netns::{Namespace, PlainWireGuard, wire};
use crate::supervisor::{REPAIRED, Supervisor, wait_until};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What the kernel has: JSON of each interface by its name, in the words of `/wireguard`.
fn kernel(device: &Namespace) -> BTreeMap<String, Value> {
    let now: u64 = device.run("date +%s").trim().parse().expect("a time");
    let mut found = BTreeMap::new();
    for line in device.run("wg show all dump").lines() {
        let columns: Vec<&str> = line.split('\t').collect();
        let number = |at: usize| columns[at].parse::<u64>().unwrap_or(0);
        let name = columns[0].to_owned();
        if columns.len() == 5 {
            let link = json!({ "public_key": columns[2], "listen_port": number(3), "fwmark": number(4), "peers": {} });
            found.insert(name, link);
            continue;
        }
        let networks: BTreeSet<&str> = columns[4].split(',').filter(|n| *n != "(none)").collect();
        let peer = json!({
            "endpoint": Some(columns[3]).filter(|e| *e != "(none)"), "allowed_ips": networks,
            "handshake": Some(number(5)).filter(|at| *at > 0).map(|at| now - at.min(now)),
            "rx": number(6), "tx": number(7), "keepalive": number(8),
        });
        found.get_mut(&name).expect("its interface")["peers"][columns[1]] = peer;
    }
    let parsed = |text: &str| serde_json::from_str::<Vec<Value>>(text).expect("JSON of ip");
    let links = parsed(&device.ip("-s -j link show"));
    for link in links.iter().chain(&parsed(&device.ip("-j addr show"))) {
        let Some(known) = link["ifname"].as_str().and_then(|name| found.get_mut(name)) else { continue };
        if let Some(addresses) = link["addr_info"].as_array() {
            let global = addresses.iter().filter(|a| a["scope"] == "global");
            let text = |a: &Value| format!("{}/{}", a["local"].as_str().unwrap_or("?"), a["prefixlen"]);
            known["addresses"] = global.map(text).collect::<BTreeSet<_>>().into_iter().collect();
        }
        known["mtu"] = link["mtu"].clone();
        known["up"] = link["flags"].as_array().is_some_and(|flags| flags.contains(&json!("UP"))).into();
        if link["stats64"].is_object() {
            known["traffic"] = json!([link["stats64"]["rx"]["bytes"], link["stats64"]["tx"]["bytes"]]);
        }
    }
    found
}

/// An interface of `status` or `/wireguard` in the same words; `keepalive`: the name of that field.
fn shown(link: &Value, keepalive: &str) -> Value {
    let mut peers = json!({});
    for peer in link["peers"].as_array().into_iter().flatten() {
        let networks: BTreeSet<&str> =
            peer["allowed_ips"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        peers[peer["public_key"].as_str().expect("a key")] = json!({
            "endpoint": peer["endpoint"], "allowed_ips": networks, "handshake": peer["handshake_age"],
            "rx": peer["rx"], "tx": peer["tx"], "keepalive": peer[keepalive],
        });
    }
    let addresses: BTreeSet<&str> =
        link["addresses"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    json!({
        "public_key": link["public_key"], "listen_port": link["listen_port"], "mtu": link["mtu"], "up": link["up"],
        "addresses": addresses, "peers": peers,
    })
}

/// The samples of a text by series.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|l| !l.starts_with('#'));
    lines
        .filter_map(|l| l.rsplit_once(' ').map(|(series, n)| (series.to_owned(), n.parse().expect("a number"))))
        .collect()
}

struct Scene<'a> {
    device: &'a Namespace,
    spoke: Supervisor<'a>,
    far: PlainWireGuard<'a>,
}

impl<'a> Scene<'a> {
    /// A device with an interface that is enforced and one that is only observed, and a far end that it can echo to.
    fn new(device: &'a Namespace, far: &'a Namespace) -> Self {
        wire((device, "wan", "192.0.2.2/24"), (far, "wan", "192.0.2.1/24"));
        let plain = PlainWireGuard::new(far, "wg0", 51820, "10.8.0.1/24");
        let text = format!(
            "[health]\nlisten = [\"127.0.0.1:8080\"]\npeer_metrics = true\n\
             [[interface]]\nname = \"wg0\"\naddresses = [\"10.8.0.2/24\", \"fd08::2/64\"]\n\
             [[interface.peer]]\nname = \"far\"\npublic_key = \"{}\"\nendpoint = \"192.0.2.1:51820\"\n\
             allowed_ips = [\"10.8.0.1/32\", \"10.99.0.0/16\"]\nkeepalive = 25\n\
             [[interface]]\nname = \"wg1\"\ndrift = \"observe\"\nlisten_port = 51831\naddresses = [\"10.9.0.2/24\"]\n",
            plain.public_key
        );
        PlainWireGuard::new(device, "wg1", 51831, "10.9.0.2/24");
        let spoke = Supervisor::new(device, &text);
        let mut scene = Self { device, spoke, far: plain };
        scene.start();
        scene
    }

    fn start(&mut self) {
        self.spoke.start_degraded();
        wait_until(Duration::from_secs(60), "wg0", || self.device.run("wg show interfaces").contains("wg0"));
        let own = self.device.run("wg show wg0 public-key");
        self.far.peer(own.trim(), "allowed-ips 10.8.0.2/32");
        self.echo();
    }

    fn echo(&self) {
        self.device.run("ping -c 2 -i 0.2 -W 20 10.8.0.1");
    }

    fn get(&self, path: &str) -> String {
        self.device.run(&format!("curl -sf http://127.0.0.1:8080{path}"))
    }

    fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.get(path)).expect("JSON")
    }

    /// What the views show otherwise than the kernel has it, or than each other. `None`: the kernel changed meanwhile.
    fn differences(&self) -> Option<Vec<String>> {
        let status = self.spoke.status();
        let before = kernel(self.device);
        let (wireguard, health, stats) = (self.json("/wireguard"), self.json("/health"), self.json("/stats"));
        let metrics = samples(&self.get("/metrics"));
        let after = kernel(self.device);
        let still = |all: &BTreeMap<String, Value>| {
            let mut all = all.clone();
            all.values_mut()
                .flat_map(|l| l["peers"].as_object_mut())
                .flatten()
                .for_each(|(_, p)| p["handshake"] = Value::Null);
            all
        };
        if still(&before) != still(&after) {
            return None;
        }
        let mut found = Vec::new();
        let mut compare = |what: String, seen: &Value, real: &Value| {
            if seen != real {
                found.push(format!("{what}: shows {seen}, the kernel has {real}"));
            }
        };
        let (mut peers, mut active) = (0, 0);
        for name in ["wg0", "wg1"] {
            let real = before.get(name);
            let by_name = |all: &Value| all.as_array().and_then(|a| a.iter().find(|l| l["name"] == name).cloned());
            let views = [
                ("/wireguard", by_name(&wireguard["interfaces"]).filter(|_| real.is_some()), "persistent_keepalive"),
                ("status", by_name(&status["interfaces"]), "keepalive"),
            ];
            for (view, link, keepalive) in views {
                let (Some(link), Some(real)) = (&link, real) else {
                    compare(format!("{view} {name}"), &link.is_some().into(), &real.is_some().into());
                    continue;
                };
                let mut link = shown(link, keepalive);
                for (key, peer) in real["peers"].as_object().into_iter().flatten() {
                    // Ages are of moments some seconds apart, and the kernel's is of whole seconds.
                    let ages = (link["peers"][key]["handshake"].as_u64(), peer["handshake"].as_u64());
                    if matches!(ages, (Some(a), Some(b)) if a.abs_diff(b) <= 5) {
                        link["peers"][key]["handshake"] = peer["handshake"].clone();
                    }
                }
                for field in ["public_key", "listen_port", "mtu", "up", "addresses", "peers"] {
                    compare(format!("{view} {name} {field}"), &link[field], &real[field]);
                }
            }
            let of = |family: &str| json!(metrics.get(&format!("{family}{{interface=\"{name}\"}}")).map(|n| *n as u64));
            let up = real.is_some_and(|l| l["up"] == true);
            compare(format!("wireguard_interface_up {name}"), &of("wireguard_interface_up"), &u64::from(up).into());
            let Some(real) = real else { continue };
            compare(format!("received {name}"), &of("wireguard_receive_bytes_total"), &real["traffic"][0]);
            compare(format!("sent {name}"), &of("wireguard_transmit_bytes_total"), &real["traffic"][1]);
            let of_peers = real["peers"].as_object().expect("peers");
            let recent = of_peers.values().filter(|p| p["handshake"].as_u64().is_some_and(|age| age < 175)).count();
            compare(format!("wireguard_peers {name}"), &of("wireguard_peers"), &of_peers.len().into());
            compare(format!("wireguard_peers_active {name}"), &of("wireguard_peers_active"), &recent.into());
            for (key, peer) in of_peers {
                let series = format!("wireguard_peer_receive_bytes_total{{interface=\"{name}\",public_key=\"{key}\"}}");
                compare(series.clone(), &json!(metrics.get(&series).map(|n| *n as u64)), &peer["rx"]);
            }
            (peers, active) = (peers + of_peers.len(), active + recent);
        }
        compare("/health totalPeers".into(), &health["peerRegistry"]["totalPeers"], &peers.into());
        compare("/health activePeers".into(), &health["peerRegistry"]["activePeers"], &active.into());
        compare("/stats totalPeers".into(), &stats["registry"]["totalPeers"], &peers.into());
        compare("/stats activePeers".into(), &stats["registry"]["activePeers"], &active.into());

        let holding = |family: &str| -> BTreeSet<String> {
            let of = metrics.iter().filter(|(series, n)| **n == 1.0 && series.starts_with(family));
            of.filter_map(|(series, _)| series.split('"').nth(1).map(str::to_owned)).collect()
        };
        let codes = |all: &Value| -> BTreeSet<String> {
            all.as_array().into_iter().flatten().filter_map(|r| r["code"].as_str().map(str::to_owned)).collect()
        };
        let verdict = health["status"].as_str().unwrap_or("?").to_owned();
        compare("status, verdict".into(), &status["status"], &json!(verdict));
        compare("metrics, verdict".into(), &json!(holding("spoke_health{")), &json!([verdict]));
        let reasons = codes(&health["reasons"]);
        compare("status, codes".into(), &json!(codes(&status["troubles"])), &json!(reasons));
        compare("metrics, codes".into(), &json!(holding("spoke_health_reason{")), &json!(reasons));
        Some(found)
    }

    /// Waits until every view shows the kernel as it is; returns the health of then.
    fn agrees(&self, state: &str) -> Value {
        let mut last = Vec::new();
        wait_until(Duration::from_secs(120), &format!("views that agree {state}"), || {
            let Some(found) = self.differences() else { return false };
            if found != last {
                found.iter().for_each(|line| eprintln!("{state}: {line}"));
            }
            last = found;
            last.is_empty()
        });
        self.json("/health")
    }

    /// The counters of the running process.
    fn counters(&self) -> BTreeMap<String, f64> {
        let mut all = samples(&self.get("/metrics"));
        all.retain(|series, _| series.split('{').next().is_some_and(|name| name.ends_with("_total")));
        all
    }

    /// No counter is less than it was, but for those of peers, which go with them.
    fn only_grew(&self, before: &BTreeMap<String, f64>, state: &str) -> BTreeMap<String, f64> {
        let now = self.counters();
        for (series, was) in before.iter().filter(|(series, _)| !series.starts_with("wireguard_peer_")) {
            let is = now.get(series).copied();
            assert!(is >= Some(*was), "{state}: {series} was {was} and is {is:?}");
        }
        now
    }
}

#[test]
fn views_agree_with_the_kernel_in_every_state() {
    let (device, far) = (Namespace::new("device"), Namespace::new("far"));
    let mut scene = Scene::new(&device, &far);
    scene.agrees("connected");
    let counters = scene.counters();

    scene.echo();
    scene.agrees("after traffic");
    let counters = scene.only_grew(&counters, "after traffic");

    // The observed interface is left as another program makes it.
    let stranger = "gL9MIhpbgYcBdJHJ9cdTLoCzRXOg0tDmpmFmKTN6FlA=";
    device.run(&format!("wg set wg1 peer {stranger} allowed-ips 10.9.0.9/32,fd09::9/128 persistent-keepalive 7"));
    device.ip("link set wg1 mtu 1300");
    device.ip("addr add 10.9.0.3/24 dev wg1");
    scene.agrees("with a peer, an address and an MTU of another program");
    device.ip("link set wg1 down");
    scene.agrees("with an interface that is down");
    device.ip("link set wg1 up");

    // The enforced one is repaired, and its counters go on.
    device.run(&format!("wg set wg0 peer {} remove", scene.far.public_key));
    wait_until(REPAIRED, "the peer's return", || device.run("wg show wg0 peers").contains(&scene.far.public_key));
    scene.echo();
    scene.agrees("after the repair of a peer");
    scene.only_grew(&counters, "after the repair of a peer");

    device.run("sysctl -qw net.ipv6.conf.wg0.disable_ipv6=1");
    wait_until(REPAIRED, "the condition", || !scene.spoke.condition("ipv6_disabled").is_empty());
    let health = scene.agrees("with IPv6 disabled");
    assert_eq!(health["status"], "degraded", "{health:#}");
    device.run("sysctl -qw net.ipv6.conf.wg0.disable_ipv6=0");

    // A link of another kind has the name of a wanted interface.
    device.ip("link del wg1");
    device.ip("link add wg1 type dummy");
    wait_until(REPAIRED, "the condition", || !scene.spoke.condition("name_taken").is_empty());
    scene.agrees("with a name that is taken");
    device.ip("link del wg1");

    // A recreated interface begins at 0, in the kernel and in every view.
    device.ip("link del wg0");
    wait_until(REPAIRED, "the interface", || device.run("wg show interfaces").contains("wg0"));
    scene.echo();
    scene.agrees("after the repair of an interface");

    scene.spoke.stop();
    scene.start();
    scene.agrees("after a restart");
}
