//! A copied card: two devices with one key.
use crate::netns::{Namespace, PlainWireGuard, wait_until_every, wire};
use crate::supervisor::Supervisor;
use std::time::Duration;

#[test]
fn key_of_two_devices_is_a_condition_of_their_hub() {
    let (hub, one, two) = (Namespace::new("hub"), Namespace::new("one"), Namespace::new("two"));
    wire((&hub, "wan1", "192.0.2.1/24"), (&one, "wan", "192.0.2.2/24"));
    wire((&hub, "wan2", "198.51.100.1/24"), (&two, "wan", "198.51.100.2/24"));
    let device = PlainWireGuard::new(&one, "wg0", 51821, "10.8.0.2/24");
    let copy = PlainWireGuard::new(&two, "wg0", 51822, "10.8.0.2/24");
    two.feed("wg set wg0 private-key /dev/stdin", &one.run("wg show wg0 private-key"));
    let mut spoke = Supervisor::new(
        &hub,
        &format!(
            "[health]\nenabled = false\n[[interface]]\nname = \"wg0\"\nlisten_port = 51820\n\
             addresses = [\"10.8.0.1/24\"]\n[[interface.peer]]\nname = \"edge-1\"\npublic_key = \"{}\"\nallowed_ips = [\"10.8.0.2/32\"]\n",
            device.public_key
        ),
    );
    spoke.start();
    let key = hub.run("wg show wg0 public-key");
    device.peer(key.trim(), "allowed-ips 10.8.0.1/32 endpoint 192.0.2.1:51820");
    copy.peer(key.trim(), "allowed-ips 10.8.0.1/32 endpoint 198.51.100.1:51820");

    // A single device that moves once is none.
    // The hub answers with the keys of the newer handshake, so that the older device gets no reply.
    let send = |from: &Namespace| drop(from.command("ping -c 2 -i 0.2 -W 1 10.8.0.1").output().expect("ping"));
    send(&one);
    assert_eq!(spoke.condition("duplicate_identity"), "");
    let mut from_one = false;
    let mut detail = String::new();
    wait_until_every(Duration::from_millis(500), Duration::from_secs(600), "the condition", || {
        send(if from_one { &one } else { &two });
        from_one = !from_one;
        detail = spoke.condition("duplicate_identity");
        !detail.is_empty()
    });
    assert!(detail.starts_with("peer edge-1 (") && detail.contains("192.0.2.2:51821"), "{detail}");
    assert!(detail.contains("198.51.100.2:51822"), "{detail}");
    assert_eq!(spoke.log().matches("duplicate_identity").count(), 1, "logged once");
}
