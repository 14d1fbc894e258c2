//! An endpoint of the hub that was edited while the one before still answers.
use crate::device::{Device, Hub};
use crate::netns::{Namespace, PlainWireGuard, wait_until, wire};
use std::time::Duration;

#[test]
fn edited_endpoint_is_used_at_once_after_a_reload() {
    let (device, far) = (Namespace::new("device"), Namespace::new("far"));
    wire((&device, "wan", "192.0.2.2/24"), (&far, "wan", "192.0.2.1/24"));
    far.ip("addr add 192.0.2.9/24 dev wan");
    let hub = PlainWireGuard::new(&far, "wg0", 51820, "10.8.0.1/24");
    let hubs = [Hub { name: "hub-a", public_key: &hub.public_key, endpoint: "192.0.2.1:51820", address: "10.8.0.1" }];
    let mut spoke = Device::new(&device, "10.8.0.2/32", &hubs);
    hub.peer(&spoke.public_key, "allowed-ips 10.8.0.2/32");
    spoke.start();
    spoke.wait_up(60, "10.8.0.1");
    let endpoint = || device.run("wg show wg0 endpoints");
    assert!(endpoint().contains("192.0.2.1:51820"), "{}", endpoint());
    assert!(!spoke.tell("plan").contains("endpoint"), "{}", spoke.tell("plan"));

    let file = spoke.config();
    let text = std::fs::read_to_string(&file).expect("the configuration");
    std::fs::write(&file, text.replace("192.0.2.1:51820", "192.0.2.9:51820")).expect("written");
    let plan = spoke.tell("plan");
    assert!(plan.contains("192.0.2.9:51820"), "{plan}");
    spoke.tell("reload");
    wait_until(Duration::from_secs(60), "the new endpoint", || endpoint().contains("192.0.2.9:51820"));
    spoke.wait_up(60, "10.8.0.1");

    // A hub that answers from another address is followed, also over a restart.
    device.run(&format!("wg set wg0 peer {} endpoint 192.0.2.1:51820", hub.public_key));
    spoke.stop();
    spoke.start();
    spoke.wait_up(60, "10.8.0.1");
    assert!(endpoint().contains("192.0.2.1:51820"), "{}", endpoint());
}
