//! `spoke doctor` on a real kernel: each mistake is named with its cause and its remedy, and the exit code is 1. Mistakes that
//! need no kernel are in `tests/cli.rs`, those of the chain in `tests/chain/commands.rs`.
use crate::netns::{Namespace, PlainWireGuard, wait_until_every, wire};
use crate::supervisor::{Supervisor, wait_until};
use serde_json::Value;
use std::time::Duration;

/// Longer than any state takes to be reached.
const FOUND: Duration = Duration::from_secs(90);

const TIMES: &str = "backoff_initial = \"500ms\"\nbackoff_max = \"2s\"\nattempt_timeout = \"4s\"\nprobe_after = \"1s\"\ndead_after = \"4s\"\nidle_probe = \"2s\"\n";

/// A device whose `[uplink]` names one hub.
fn config(link: &str, key: &str, endpoint: &str, address: &str) -> String {
    format!(
        "[health]\nenabled = false\n[[interface]]\nname = \"wg0\"\n{link}\n[uplink]\ninterface = \"wg0\"\n{TIMES}\
         [[uplink.hub]]\nname = \"hub-a\"\npublic_key = \"{key}\"\nendpoint = \"{endpoint}\"\naddress = \"{address}\"\n\
         allowed_ips = [\"10.8.0.0/24\"]\n"
    )
}

/// The findings, and the exit code.
fn findings(spoke: &Supervisor<'_>) -> (Vec<Value>, Option<i32>) {
    let output = spoke.command("doctor --json").output().expect("spoke doctor");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    (found["items"].as_array().unwrap_or_else(|| panic!("{output:?}")).clone(), output.status.code())
}

fn has(found: &[Value], level: &str, cause: &str, remedy: &str) -> bool {
    let text = |f: &Value, key: &str| f[key].as_str().unwrap_or_default().to_owned();
    found.iter().any(|f| f["level"] == level && text(f, "detail").contains(cause) && text(f, "remedy").contains(remedy))
}

/// Waits until a mistake is found, with exit code 1.
fn expect(spoke: &Supervisor<'_>, cause: &str, remedy: &str) {
    wait_until_every(Duration::from_millis(300), FOUND, cause, || {
        let (found, code) = findings(spoke);
        code == Some(1) && has(&found, "fail", cause, remedy)
    });
}

#[test]
fn doctor_names_the_mistakes_of_a_running_device() {
    let (device, far) = (Namespace::new("device"), Namespace::new("far"));
    wire((&device, "wan", "192.0.2.2/24"), (&far, "wan", "192.0.2.1/24"));
    let hub = PlainWireGuard::new(&far, "wg0", 51820, "10.8.0.1/24");
    let link = "addresses = [\"10.8.0.2/32\"]";
    let good = config(link, &hub.public_key, "192.0.2.1:51820", "10.8.0.1");
    let mut spoke = Supervisor::new(&device, &good);
    let file = spoke.path("spoke.toml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    let write = |text: &str| std::fs::write(&file, text).expect("written");

    // The hub does not know our key.
    spoke.start_degraded();
    let ours = device.run("wg show wg0 public-key").trim().to_owned();
    expect(&spoke, "no handshake with 192.0.2.1:51820", &format!("must list the peer {ours}"));
    expect(&spoke, "no handshake", &format!("its own public key must be {}", hub.public_key));

    // No mistake.
    hub.peer(&ours, "allowed-ips 10.8.0.2/32");
    wait_until(FOUND, "no finding", || findings(&spoke).1 == Some(0));
    assert!(has(&findings(&spoke).0, "ok", "10.8.0.1 answers through it", ""));

    // The file was edited and not loaded; then with a fault.
    write(&text.replace("name = \"wg0\"", "name = \"wg0\"\nmtu = 1400"));
    expect(&spoke, "interface[wg0].mtu: 1280 → 1400", "spoke reload");
    write(&format!("{text}\n[uplnik]\n"));
    expect(&spoke, "uplnik: unknown key; did you mean `uplink`?", "spoke check");
    assert!(has(&findings(&spoke).0, "ok", "version ", ""), "the supervisor is asked nevertheless");
    let status = spoke.command("status --json").output().expect("spoke status");
    assert!(status.status.success(), "a command that needs the socket only: {status:?}");
    write(&text);
    spoke.stop();

    // Another key of the hub.
    write(&text.replace(&hub.public_key, &ours.replace(&ours[..4], "AAAA")));
    spoke.start_degraded();
    expect(&spoke, "no handshake", "its own public key must be AAAA");
    spoke.stop();

    // Another tunnel address of the hub.
    write(&text.replace("address = \"10.8.0.1\"", "address = \"10.8.0.77\""));
    spoke.start_degraded();
    expect(&spoke, "and no answer of 10.8.0.77", "must show 10.8.0.77 (uplink.hub.address)");
    spoke.stop();
    device.ip("link del wg0");

    // A port in use, IPv6 that is disabled, and a LAN with the tunnel's network.
    device.ip("link add lan type dummy");
    device.ip("addr add 10.8.0.200/24 dev lan");
    device.ip("link set lan up");
    device.run("sysctl -qw net.ipv6.conf.default.disable_ipv6=1");
    let _holder = device.enter(|| std::net::UdpSocket::bind("0.0.0.0:51821").expect("a free port"));
    let more = "name = \"wg0\"\nlisten_port = 51821";
    write(&text.replace("name = \"wg0\"", more).replace("\"10.8.0.2/32\"", "\"10.8.0.2/32\", \"fd08::2/64\""));
    let holder = format!("(process {})", std::process::id());
    let all = [
        ("UDP port 51821 is in use by", "stop the program"),
        (holder.as_str(), "another listen_port"),
        ("IPv6 is disabled", "disable_ipv6=0"),
        ("10.8.0.0/24", "renumber one of the two networks"),
    ];
    expect(&spoke, "it does not run", "systemctl start spoke");
    all.iter().for_each(|(cause, remedy)| expect(&spoke, cause, remedy));
    spoke.start_degraded();
    all.iter().for_each(|(cause, remedy)| expect(&spoke, cause, remedy));
}

#[test]
fn doctor_names_what_keeps_a_device_from_starting() {
    let (device, far) = (Namespace::new("device"), Namespace::new("far"));
    let key = device.feed("wg pubkey", &device.run("wg genkey")).trim().to_owned();
    let link = "addresses = [\"10.8.0.2/32\"]";
    let spoke = Supervisor::new(&device, &config(link, &key, "203.0.113.1:51820", "10.8.0.1"));
    expect(&spoke, "no network interface has a carrier", "check the cable");
    wire((&device, "wan", "192.0.2.2/24"), (&far, "wan", "192.0.2.1/24"));
    expect(&spoke, "there is no route to the hub's endpoint", "check the default route");
    device.ip("route add default via 192.0.2.1");
    far.ip("link set wan down");
    expect(&spoke, "has no carrier", "check its cable");
    far.ip("link set wan up");
    wait_until(FOUND, "the way out", || !findings(&spoke).0.iter().any(|f| f["what"] == "route to 203.0.113.1"));

    // Of another kind, then of another program.
    device.ip("link add wg0 type dummy");
    expect(&spoke, "wg0 exists and is not WireGuard", "rename the other interface");
    device.ip("link del wg0");
    let _other = PlainWireGuard::new(&device, "wg0", 51820, "10.8.0.9/24");
    let (found, _) = findings(&spoke);
    assert!(has(&found, "warn", "made by another program", "wg-quick"), "{found:#?}");
    device.ip("link del wg0");

    // The allowed-ips cover the endpoint.
    let file = spoke.path("spoke.toml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    std::fs::write(&file, text.replace("10.8.0.0/24", "203.0.113.0/24")).expect("written");
    expect(&spoke, "203.0.113.0/24", "spoke check");
}
