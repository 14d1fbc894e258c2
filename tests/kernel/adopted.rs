//! An interface that another program, such as wg-quick, has made and that the configuration names.
use crate::netns::{Namespace, PlainWireGuard, wire};
use crate::supervisor::{REPAIRED, Supervisor, wait_until};

#[test]
fn adopted_interface_keeps_what_is_not_configured() {
    let (device, far) = (Namespace::new("device"), Namespace::new("far"));
    wire((&device, "wan", "192.0.2.2/24"), (&far, "wan", "192.0.2.1/24"));
    let hub = PlainWireGuard::new(&far, "wg0", 51820, "10.8.0.1/24");
    let own = PlainWireGuard::new(&device, "wg0", 51820, "10.8.0.2/24");
    device.ip("link set wg0 mtu 1420");
    device.run("wg set wg0 fwmark 77");
    own.peer(&hub.public_key, "allowed-ips 10.8.0.1/32 endpoint 192.0.2.1:51820");
    hub.peer(&own.public_key, "allowed-ips 10.8.0.2/32");
    device.run("ping -c 1 -W 10 10.8.0.1");

    let text = format!(
        "[health]\nenabled = false\n[[interface]]\nname = \"wg0\"\n[[interface.peer]]\npublic_key = \"{}\"\n\
         endpoint = \"192.0.2.1:51820\"\nallowed_ips = [\"10.8.0.1/32\"]\n",
        hub.public_key
    );
    let mut spoke = Supervisor::new(&device, &text);
    let printed = |what: &str| {
        let output = spoke.command(what).output().expect("spoke");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let plan = printed("plan");
    assert!(plan.contains(&format!("take over the key of the interface, public key {}", own.public_key)), "{plan}");
    assert!(plan.contains("(adopted) wg0 was made by another program") && !plan.contains("mtu"), "{plan}");
    assert!(!spoke.path("state/wg0.key").exists(), "a plan writes nothing");
    spoke.start();
    let found = || {
        let link = device.run("ip link show wg0") + &device.run("ip addr show wg0");
        let kept = link.contains("mtu 1420") && link.contains("10.8.0.2/24");
        let wg = device.run("wg show wg0 public-key") + &device.run("wg show wg0 fwmark");
        kept && wg.contains(&own.public_key) && wg.contains("0x4d")
    };
    assert!(found(), "{}{}", device.run("ip addr show wg0"), device.run("wg show wg0"));
    device.run("ping -c 1 -W 10 10.8.0.1");
    let log = spoke.log();
    assert!(log.contains("interface was made by another program") && log.contains("taken over"), "{log}");
    let output = spoke.command("doctor").output().expect("spoke doctor");
    assert!(String::from_utf8_lossy(&output.stdout).contains("made by another program"), "{output:?}");

    // What is configured is set.
    let file = spoke.path("spoke.toml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    std::fs::write(&file, text.replace("name = \"wg0\"", "name = \"wg0\"\nmtu = 1280")).expect("written");
    assert!(spoke.command("reload").output().expect("spoke reload").status.success());
    wait_until(REPAIRED, "the MTU", || device.run("ip link show wg0").contains("mtu 1280"));
    assert!(device.run("wg show wg0 public-key").contains(&own.public_key));
}
