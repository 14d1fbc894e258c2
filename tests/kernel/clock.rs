//! A board without an RTC. It sets the clock of the kernel, so `scripts/test-kernel` boots one for this file alone.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#[expect(dead_code, reason = "shared with the other tests of the kernel tier, which use more of it")]
mod device;
#[expect(dead_code, reason = "shared with the other tests of the kernel tier, which use more of it")]
mod netns;

use device::{Device, Hub};
use netns::{Namespace, PlainWireGuard, wire};
use std::time::Duration;

const HUB: &str = "10.9.0.1";

#[test]
fn a_board_that_boots_in_1970_connects() {
    assert_eq!(
        std::env::var("SPOKE_TEST_KERNEL_KIND").as_deref(),
        Ok("uml"),
        "this sets the clock of the machine: run scripts/test-kernel, which boots one for it"
    );
    let (node, far) = (Namespace::new("device"), Namespace::new("hub"));
    wire((&node, "wan", "192.0.2.2/24"), (&far, "wan", "192.0.2.1/24"));
    let hub = PlainWireGuard::new(&far, "wg0", 51820, "10.9.0.1/24");
    let hubs = [Hub { name: "hub", public_key: &hub.public_key, endpoint: "192.0.2.1:51820", address: HUB }];
    let mut device = Device::new(&node, "10.9.0.2/24", &hubs);
    device.without_clock_rights();
    hub.peer(&device.public_key, "allowed-ips 10.9.0.2/32");
    device.start();
    device.wait_up(20, HUB);
    let seen = hub.latest_handshake(&device.public_key).expect("the hub has seen a handshake of today");
    device.stop();

    // The board reboots: no interface, the clock in 1970. The hub remembers the last handshake.
    node.ip("link del wg0");
    node.run("date -u -s 1970-01-01T00:01:00");
    device.start();
    netns::wait_until(Duration::from_secs(30), "a third attempt", || device.uplink()["attempts"].as_u64() >= Some(3));
    assert!(!device.is_up(), "the hub must drop handshakes of 1970 as replays, or the test proves nothing");
    assert!(device.logged().contains("spoke-clock.service"), "the log names the remedy");
    device.stop();

    // As spoke-clock.service does before the supervisor starts.
    node.ip("link del wg0");
    let printed = device.tell("clock restore");
    assert!(printed.contains("the clock said 1970-01-01") && printed.contains("it was set to 20"), "{printed}");
    device.start();
    device.wait_up(20, HUB);
    let again = hub.latest_handshake(&device.public_key).expect("a handshake");
    assert!(again >= seen, "earlier than the last stamp: {seen} then {again}");
    assert!(device.tell("clock show").contains("believed no"), "a restored clock is not trusted");
}
