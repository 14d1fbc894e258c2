//! What a node says of itself is what `wg` and `ip` say in the same second.

use crate::netns::{Namespace, PlainWireGuard, wait_until, wire};
use crate::supervisor::{REPAIRED, Supervisor};
use std::time::Duration;

struct Scene<'a> {
    device: &'a Namespace,
    spoke: Supervisor<'a>,
    far: PlainWireGuard<'a>,
}

impl<'a> Scene<'a> {
    fn new(device: &'a Namespace, far: &'a Namespace) -> Self {
        wire((device, "wan", "192.0.2.2/24"), (far, "wan", "192.0.2.1/24"));
        let plain = PlainWireGuard::new(far, "wg0", 51820, "10.8.0.1/24");
        let text = format!(
            "[health]\nlisten = [\"127.0.0.1:8080\"]\n[[interface]]\nname = \"wg0\"\naddresses = [\"10.8.0.2/24\"]\n\
             [[interface.peer]]\nname = \"far\"\npublic_key = \"{}\"\nendpoint = \"192.0.2.1:51820\"\n\
             allowed_ips = [\"10.8.0.1/32\"]\n",
            plain.public_key
        );
        let mut spoke = Supervisor::new(device, &text);
        spoke.start();
        let own = device.run("wg show wg0 public-key");
        plain.peer(own.trim(), "allowed-ips 10.8.0.2/32");
        device.run("ping -c 3 -i 0.2 -W 5 10.8.0.1");
        Self { device, spoke, far: plain }
    }

    fn get(&self, path: &str) -> String {
        self.device.run(&format!("curl -s http://127.0.0.1:8080{path}"))
    }

    fn json(&self, path: &str) -> serde_json::Value {
        serde_json::from_str(&self.get(path)).expect("JSON")
    }

    fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics");
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.rsplit(' ').next()?.parse().ok());
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
    }
}

/// The number of `wg show wg0 WHAT` for the only peer; of `transfer` the first or second one.
fn wg(device: &Namespace, what: &str, column: usize) -> u64 {
    let line = device.run(&format!("wg show wg0 {what}"));
    line.split_ascii_whitespace().nth(column).and_then(|n| n.parse().ok()).expect("a number")
}

#[test]
fn handshake_age_is_known_from_the_first_look() {
    let (device, far) = (Namespace::new("device"), Namespace::new("far"));
    let mut scene = Scene::new(&device, &far);
    // The kernel's stamp has nanoseconds, the clock of the first observation whole seconds.
    for _ in 0..6 {
        scene.spoke.stop();
        let restart = format!("wg set wg0 peer {} remove", scene.far.public_key);
        device.run(&restart);
        let far = format!("wg set wg0 peer {} endpoint 192.0.2.1:51820 allowed-ips 10.8.0.1/32", scene.far.public_key);
        device.run(&far);
        device.run("ping -c 1 -W 5 10.8.0.1");
        scene.spoke.start();
        let status = scene.spoke.status();
        let age = status["interfaces"][0]["peers"][0]["handshake_age"].as_u64();
        assert!(age.is_some_and(|a| a < 30), "{status:#}");
        let health = scene.json("/health");
        assert_eq!(health["peerRegistry"]["activePeers"], 1, "{health:#}");
        assert!(health["handshake_age"].as_u64().is_some_and(|a| a < 30), "{health:#}");
    }
}

#[test]
fn all_sources_agree_with_wg_and_ip() {
    let (device, far) = (Namespace::new("device"), Namespace::new("far"));
    let scene = Scene::new(&device, &far);
    // An observation up to a second old is shown again.
    let mut status = serde_json::Value::Null;
    wait_until(Duration::from_secs(5), "status to show what wg shows", || {
        status = scene.spoke.status();
        let peer = &status["interfaces"][0]["peers"][0];
        let (rx, tx) = (peer["rx"].as_u64(), peer["tx"].as_u64());
        (rx, tx) == (Some(wg(&device, "transfer", 1)), Some(wg(&device, "transfer", 2)))
    });
    let peer = &status["interfaces"][0]["peers"][0];
    let shown = scene.json("/wireguard");
    let seen = &shown["interfaces"][0]["peers"][0];
    assert_eq!((&seen["rx"], &seen["tx"], &seen["endpoint"]), (&peer["rx"], &peer["tx"], &peer["endpoint"]));
    let link: serde_json::Value = serde_json::from_str(&device.ip("-s -j link show wg0")).expect("JSON");
    let stats = &link[0]["stats64"];
    let before = scene.metric("wireguard_receive_bytes_total{");
    assert_eq!(Some(before), stats["rx"]["bytes"].as_u64(), "{link}");
    assert_eq!(Some(scene.metric("wireguard_transmit_bytes_total{")), stats["tx"]["bytes"].as_u64(), "{link}");
    let health = scene.json("/health");
    assert!(health["observed_age"].as_f64().is_some_and(|a| a < 5.0), "{health:#}");
    assert_eq!(health["schema"], 1);

    // A peer that goes takes its counters with it, not the interface's.
    device.run(&format!("wg set wg0 peer {} remove", scene.far.public_key));
    wait_until(REPAIRED, "the peer's return", || device.run("wg show wg0 peers").contains(&scene.far.public_key));
    assert_eq!(scene.spoke.status()["interfaces"][0]["peers"][0]["rx"], 0);
    assert!(scene.metric("wireguard_receive_bytes_total{") >= before);
}

#[test]
fn page_names_peers_and_follows_the_kernel_while_it_is_open() {
    let (device, far) = (Namespace::new("device"), Namespace::new("far"));
    let scene = Scene::new(&device, &far);
    let headers = device.run("curl -s -o /dev/null -D - http://127.0.0.1:8080/").to_lowercase();
    assert!(
        headers.contains("content-security-policy: default-src 'none'") && headers.contains("no-store"),
        "{headers}"
    );
    // The pass before may be older than the handshake.
    let mut page = String::new();
    wait_until(Duration::from_secs(60), "the handshake on the page", || {
        page = scene.get("/");
        page.contains("1 of 1 peers active")
    });
    let order = ["healthy</h1>", "1 of 1 peers active", "Control plane", "kernel as configured", ">far</bdi>"];
    let at: Vec<_> = order.iter().map(|text| page.find(text)).collect();
    assert!(at.iter().all(Option::is_some) && at.is_sorted(), "{at:?} of {order:?} in {page}");

    // Asked for again and again, it has the kernel observed more often than every 30 s, and so has rates.
    let shown = || scene.get("/?part");
    let busy = || device.run("ping -c 20 -i 0.02 -s 1200 -W 5 10.8.0.1");
    wait_until(Duration::from_secs(60), "a rate", || {
        busy();
        shown().contains("bit/s</small>")
    });
    assert!(!shown().contains("<style>"), "a poll has no assets");
    assert!(scene.get("/?part&q=nobody").contains("No peer matches"));

    device.run(&format!("wg set wg0 peer {} remove", scene.far.public_key));
    wait_until(Duration::from_secs(60), "the repair on the page", || shown().contains("repaired</b>"));
}

#[test]
fn condition_keeps_its_beginning_over_passes() {
    let (device, far) = (Namespace::new("device"), Namespace::new("far"));
    let scene = Scene::new(&device, &far);
    let found = |code: &str| {
        let health = scene.json("/health");
        let all = health["reasons"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|r| r["code"] == code)
    };
    device.ip("link add other type dummy");
    device.ip("addr add 10.8.0.1/24 dev other");
    device.ip("link set other up");
    wait_until(REPAIRED, "the overlap", || found("network_overlap").is_some());
    let passes = || scene.spoke.status()["passes"].as_u64().unwrap_or(0);
    let first = passes();
    wait_until(Duration::from_secs(20), "further passes", || passes() > first + 3);
    let again = found("network_overlap").expect("it holds still");
    assert!(again["seconds"].as_u64().is_some_and(|s| s >= 1), "{again}");
    assert!(scene.spoke.log().matches("condition began").count() == 1, "logged once");
}

#[test]
fn readiness_can_ask_for_an_answering_hub() {
    let (device, far) = (Namespace::new("device"), Namespace::new("far"));
    wire((&device, "wan", "192.0.2.2/24"), (&far, "wan", "192.0.2.1/24"));
    let mut spoke = Supervisor::new(
        &device,
        "[health]\nlisten = [\"127.0.0.1:8080\"]\n[[interface]]\nname = \"wg0\"\naddresses = [\"10.8.0.2/24\"]\n",
    );
    spoke.start();
    let code = |path: &str| {
        device.run(&format!("curl -s -o /dev/null -w %{{http_code}} http://127.0.0.1:8080{path}")).trim().to_owned()
    };
    assert_eq!((code("/ready").as_str(), code("/ready?strict").as_str()), ("200", "200"), "a hub is its own");
}

#[test]
fn edited_configuration_is_taken_and_a_faulty_one_is_not() {
    let (device, far) = (Namespace::new("device"), Namespace::new("far"));
    let scene = Scene::new(&device, &far);
    let (file, run) = (scene.spoke.path("spoke.toml"), |what: &str| scene.spoke.command(what).output().expect("spoke"));
    let text = std::fs::read_to_string(&file).expect("the configuration");
    let mtu = || device.run("ip link show wg0").contains("mtu 1400");
    let (index, process) = (device.run("cat /sys/class/net/wg0/ifindex"), scene.spoke.process_id());

    // A fault: named, and the one of before stays in force.
    std::fs::write(
        &file,
        text.replace("name = \"wg0\"", "name = \"wg0\"\nmtu = 1\nprivate_key = \"file:/nowhere/wg0.key\""),
    )
    .expect("written");
    let refused = run("reload");
    assert!(!refused.status.success(), "{refused:?}");
    device.run(&format!("kill -HUP {process}"));
    wait_until(REPAIRED, "the refusal in the log", || scene.spoke.log().contains("configuration not reloaded"));
    assert_eq!(scene.json("/health")["bridge"]["status"], "running");
    assert!(device.run("ip link show wg0").contains("mtu 1280"));

    let edited = text.replace("name = \"wg0\"", "name = \"wg0\"\nmtu = 1400");
    std::fs::write(&file, edited).expect("written");
    let taken = run("reload");
    let printed = String::from_utf8_lossy(&taken.stdout).into_owned();
    assert!(taken.status.success() && printed.contains("interface[wg0].mtu: 1280 → 1400"), "{taken:?}");
    wait_until(REPAIRED, "the new MTU", mtu);
    device.run("ping -c 1 -W 5 10.8.0.1");

    // SIGHUP does the same, and neither ends the process nor recreates the interface.
    std::fs::write(&file, &text).expect("written");
    device.run(&format!("kill -HUP {process}"));
    wait_until(REPAIRED, "the old MTU", || device.run("ip link show wg0").contains("mtu 1280"));
    wait_until(REPAIRED, "a pass", || scene.spoke.status()["clean"] == true);
    assert_eq!((device.run("cat /sys/class/net/wg0/ifindex"), scene.spoke.process_id()), (index, process));
    device.run("ping -c 1 -W 5 10.8.0.1");
}
