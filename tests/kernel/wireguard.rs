//! Assumptions of the other tests about the kernel.

use std::net::UdpSocket;
use std::time::Duration;

use crate::netns::{Namespace, PlainWireGuard, wait_until, wire};

#[test]
fn plain_wireguard_carries_traffic() {
    let (device, hub) = (Namespace::new("device"), Namespace::new("hub"));
    wire((&device, "wan", "192.0.2.2/24"), (&hub, "wan", "192.0.2.1/24"));
    let near = PlainWireGuard::new(&device, "wg0", 51821, "10.9.0.2/24");
    let far = PlainWireGuard::new(&hub, "wg0", 51820, "10.9.0.1/24");
    far.peer(&near.public_key, "allowed-ips 10.9.0.2/32");
    assert_eq!(near.latest_handshake(&far.public_key), None);
    near.peer(&far.public_key, "allowed-ips 10.9.0.1/32 endpoint 192.0.2.1:51820 persistent-keepalive 25");

    device.run("ping -c 3 -i 0.2 -W 5 10.9.0.1");
    wait_until(Duration::from_secs(10), "a handshake", || far.latest_handshake(&near.public_key).is_some());
}

#[test]
fn a_thread_in_a_namespace_uses_only_that_namespace() {
    let (left, right) = (Namespace::new("left"), Namespace::new("right"));
    wire((&left, "eth0", "192.0.2.2/24"), (&right, "eth0", "192.0.2.1/24"));
    left.enter(|| UdpSocket::bind("192.0.2.2:0")).expect("its own address can be bound");
    let refused = right.enter(|| UdpSocket::bind("192.0.2.2:0")).expect_err("the other's address cannot be bound");
    assert_eq!(refused.kind(), std::io::ErrorKind::AddrNotAvailable);

    // The same for a runtime and its blocking pool.
    let bound = left.block_on(async || {
        tokio::task::spawn_blocking(|| UdpSocket::bind("192.0.2.2:0")).await.expect("the pool runs it").is_ok()
    });
    assert!(bound);
}
