//! A board without an RTC. It sets the clock of the kernel, so `scripts/test-kernel` boots one for this file alone.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#[expect(dead_code, reason = "shared with the other tests of the kernel tier, which use more of it")]
mod device;
#[expect(dead_code, reason = "shared with the other tests of the kernel tier, which use more of it")]
mod netns;

use device::{Device, Hub};
use netns::{Namespace, PlainWireGuard, wire};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// There is one clock.
static CLOCK: Mutex<()> = Mutex::new(());

const HUB: &str = "10.9.0.1";

#[test]
fn a_board_that_boots_in_1970_connects() {
    let _alone = CLOCK.lock().unwrap_or_else(PoisonError::into_inner);
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
    assert!(node.run("date -u +%Y").starts_with("1970"), "the supervisor runs as root, and the clock is not its own");
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

/// A forged answer of a time server while the supervisor is stopped, in the same boot.
#[test]
fn clock_that_jumps_while_stopped_is_not_trusted() {
    let _alone = CLOCK.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(std::env::var("SPOKE_TEST_KERNEL_KIND").as_deref(), Ok("uml"), "this sets the clock of the machine");
    let (node, far) = (Namespace::new("device"), Namespace::new("hub"));
    wire((&node, "wan", "192.0.2.2/24"), (&far, "wan", "192.0.2.1/24"));
    let hub = PlainWireGuard::new(&far, "wg0", 51820, "10.9.0.1/24");
    let hubs = [Hub { name: "hub", public_key: &hub.public_key, endpoint: "192.0.2.1:51820", address: HUB }];
    let mut device = Device::new(&node, "10.9.0.2/24", &hubs);
    hub.peer(&device.public_key, "allowed-ips 10.9.0.2/32");
    let step = |days: i64| {
        let now: i64 = node.run("date +%s").trim().parse().expect("seconds");
        node.run(&format!("date -u -s @{}", now + days * 86_400));
    };
    let jumps = |device: &Device<'_>| device.logged().matches("clock jumped by more than a day").count();
    let stamp = |device: &Device<'_>| {
        let shown = device.tell("clock show");
        shown.lines().find(|l| l.starts_with("stamp")).map(str::to_owned).expect("a stamp")
    };
    device.start();
    device.wait_up(20, HUB);
    device.stop();
    let before = stamp(&device);
    assert!(before.contains("20"), "{before}");

    step(400);
    for start in 1..=2 {
        device.start();
        netns::wait_until(Duration::from_secs(20), "the jump in the log", || jumps(&device) == start);
        device.wait_up(60, HUB);
        device.stop();
        assert_eq!(stamp(&device), before, "the next boot would begin with the forged time");
    }
    assert!(device.tell("clock show").contains("believed no (jump)"), "{}", device.tell("clock show"));

    // An operator says that it is right.
    device.tell("clock restore");
    device.start();
    device.wait_up(60, HUB);
    device.stop();
    assert_eq!(jumps(&device), 2);
    assert_ne!(stamp(&device), before);
}
