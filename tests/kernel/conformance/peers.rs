//! Peers: set values are observed, unset values are kept, removed peers stay removed.
use super::*;
use spoke_model::key::PresharedKey;
use std::net::{IpAddr, Ipv4Addr};

pub(crate) async fn peer_is_observed_as_set<W: World>(_: &W, kernel: &mut W::Kernel) {
    let steps = |endpoint| {
        [
            create("wg0"),
            set_peer(
                "wg0",
                peer(1),
                PeerChange {
                    create: true,
                    preshared_key: Some(Some(PresharedKey::from_bytes([9; 32]))),
                    keepalive: Some(25),
                    endpoint: Some(at(endpoint)),
                    allowed_ips: AllowedIps::Replace(nets(&[
                        "10.0.0.0/24",
                        "10.0.0.7/32",
                        "fd00::/64",
                        "0.0.0.0/0",
                        "::/0",
                    ])),
                },
            ),
        ]
    };
    for endpoint in ["192.0.2.1:51820", "[2001:db8::1]:51820"] {
        apply(kernel, &steps(endpoint)).await;
        let seen = see_peer(kernel, "wg0", peer(1)).await.expect("the peer");
        assert_eq!(seen.preshared_key, Some(PresharedKey::from_bytes([9; 32])));
        assert_eq!((seen.keepalive, seen.endpoint), (25, Some(at(endpoint).addr)));
        assert_eq!(seen.allowed_ips, nets(&["10.0.0.0/24", "10.0.0.7/32", "fd00::/64", "0.0.0.0/0", "::/0"]));
        assert_eq!(seen.counters.last_handshake, None);
    }
}

pub(crate) async fn removed_peer_is_not_recreated<W: World>(world: &W, kernel: &mut W::Kernel) {
    apply(kernel, &[create("wg0"), add_peer("wg0", peer(1), nets(&["10.0.0.0/8"]))]).await;
    world.remove_peer("wg0", &peer(1));
    for change in [
        PeerChange { endpoint: Some(at("192.0.2.1:1")), ..update() },
        PeerChange { keepalive: Some(5), ..update() },
        PeerChange { preshared_key: Some(None), ..update() },
        PeerChange { allowed_ips: AllowedIps::Add(nets(&["10.0.0.0/8"])), ..update() },
        PeerChange { allowed_ips: AllowedIps::Replace(nets(&["10.0.0.0/8"])), ..update() },
    ] {
        apply(kernel, &[set_peer("wg0", peer(1), change)]).await;
        assert_eq!(see_peer(kernel, "wg0", peer(1)).await, None);
    }
}

/// `count` distinct /32 networks.
fn many(count: u32) -> Nets {
    let one = |i: u32| IpNet::from(IpAddr::from(Ipv4Addr::from(0x0a00_0000 + i)));
    (0..count).map(one).collect()
}

pub(crate) async fn many_allowed_ips_do_not_recreate_a_removed_peer<W: World>(world: &W, kernel: &mut W::Kernel) {
    apply(kernel, &[create("wg0"), add_peer("wg0", peer(1), Nets::default())]).await;
    world.remove_peer("wg0", &peer(1));
    let change = PeerChange { allowed_ips: AllowedIps::Replace(many(2000)), ..update() };
    apply(kernel, &[set_peer("wg0", peer(1), change)]).await;
    assert_eq!(see_peer(kernel, "wg0", peer(1)).await, None);
}

pub(crate) async fn removing_a_peer_twice_succeeds<W: World>(_: &W, kernel: &mut W::Kernel) {
    let remove = Step::RemovePeer { link: name("wg0"), peer: peer(1) };
    apply(kernel, &[create("wg0"), add_peer("wg0", peer(1), Nets::default()), remove.clone(), remove.clone()]).await;
    apply(kernel, &[remove]).await;
    assert_eq!(see(kernel, "wg0").await.peers.len(), 0);
}

pub(crate) async fn update_keeps_the_peers_other_values<W: World>(_: &W, kernel: &mut W::Kernel) {
    let full = PeerChange {
        create: true,
        preshared_key: Some(Some(PresharedKey::from_bytes([9; 32]))),
        keepalive: Some(25),
        endpoint: Some(at("192.0.2.1:51820")),
        allowed_ips: AllowedIps::Replace(nets(&["10.0.0.0/24"])),
    };
    apply(kernel, &[create("wg0"), set_peer("wg0", peer(1), full)]).await;
    let mut want = see_peer(kernel, "wg0", peer(1)).await.expect("the peer");
    apply(kernel, &[set_peer("wg0", peer(1), PeerChange { keepalive: Some(0), ..update() })]).await;
    want.keepalive = 0;
    assert_eq!(see_peer(kernel, "wg0", peer(1)).await.as_ref(), Some(&want));
    apply(kernel, &[set_peer("wg0", peer(1), PeerChange { endpoint: Some(at("192.0.2.2:1")), ..update() })]).await;
    want.endpoint = Some(at("192.0.2.2:1").addr);
    assert_eq!(see_peer(kernel, "wg0", peer(1)).await.as_ref(), Some(&want));
}

pub(crate) async fn adding_allowed_ips_keeps_the_others<W: World>(_: &W, kernel: &mut W::Kernel) {
    apply(kernel, &[create("wg0"), add_peer("wg0", peer(1), nets(&["10.0.0.0/24"]))]).await;
    let change = PeerChange { allowed_ips: AllowedIps::Add(nets(&["10.0.1.0/24", "fd00::/64"])), ..update() };
    apply(kernel, &[set_peer("wg0", peer(1), change)]).await;
    let seen = see_peer(kernel, "wg0", peer(1)).await.expect("the peer");
    assert_eq!(seen.allowed_ips, nets(&["10.0.0.0/24", "10.0.1.0/24", "fd00::/64"]));
}

pub(crate) async fn replacing_allowed_ips_drops_the_others<W: World>(_: &W, kernel: &mut W::Kernel) {
    apply(kernel, &[create("wg0"), add_peer("wg0", peer(1), nets(&["10.0.0.0/24", "fd00::/64"]))]).await;
    for set in [&["10.0.1.0/24"][..], &[]] {
        let change = PeerChange { allowed_ips: AllowedIps::Replace(nets(set)), ..update() };
        apply(kernel, &[set_peer("wg0", peer(1), change)]).await;
        assert_eq!(see_peer(kernel, "wg0", peer(1)).await.expect("the peer").allowed_ips, nets(set));
    }
}

pub(crate) async fn preshared_key_is_set_and_removed<W: World>(_: &W, kernel: &mut W::Kernel) {
    apply(kernel, &[create("wg0"), add_peer("wg0", peer(1), Nets::default())]).await;
    assert_eq!(see_peer(kernel, "wg0", peer(1)).await.expect("the peer").preshared_key, None);
    for key in [Some(PresharedKey::from_bytes([1; 32])), Some(PresharedKey::from_bytes([2; 32])), None] {
        let change = PeerChange { preshared_key: Some(key.clone()), ..update() };
        apply(kernel, &[set_peer("wg0", peer(1), change)]).await;
        assert_eq!(see_peer(kernel, "wg0", peer(1)).await.expect("the peer").preshared_key, key);
    }
}

pub(crate) async fn allowed_ip_moves_to_the_peer_set_last<W: World>(_: &W, kernel: &mut W::Kernel) {
    let both = nets(&["10.0.0.0/24", "10.0.1.0/24"]);
    apply(kernel, &[create("wg0"), add_peer("wg0", peer(1), both)]).await;
    apply(kernel, &[add_peer("wg0", peer(2), nets(&["10.0.1.0/24"]))]).await;
    let link = see(kernel, "wg0").await;
    assert_eq!(link.peers[&peer(1)].allowed_ips, nets(&["10.0.0.0/24"]));
    assert_eq!(link.peers[&peer(2)].allowed_ips, nets(&["10.0.1.0/24"]));
    // A more specific network is a different one.
    apply(kernel, &[add_peer("wg0", peer(3), nets(&["10.0.1.0/25"]))]).await;
    assert_eq!(see_peer(kernel, "wg0", peer(2)).await.expect("the peer").allowed_ips, nets(&["10.0.1.0/24"]));
}

pub(crate) async fn peer_holds_three_thousand_allowed_ips<W: World>(_: &W, kernel: &mut W::Kernel) {
    let all = many(3000);
    apply(
        kernel,
        &[create("wg0"), add_peer("wg0", peer(1), nets(&["fd00::/64"])), add_peer("wg0", peer(1), all.clone())],
    )
    .await;
    assert_eq!(see_peer(kernel, "wg0", peer(1)).await.expect("the peer").allowed_ips, all);
    let fewer: Nets = all.iter().copied().step_by(2).collect();
    let change = PeerChange { allowed_ips: AllowedIps::Replace(fewer.clone()), ..update() };
    apply(kernel, &[set_peer("wg0", peer(1), change)]).await;
    assert_eq!(see_peer(kernel, "wg0", peer(1)).await.expect("the peer").allowed_ips, fewer);
}

pub(crate) async fn link_holds_ten_thousand_peers<W: World>(_: &W, kernel: &mut W::Kernel) {
    let one = |i: u32| {
        nets(
            &[&std::net::Ipv4Addr::from(0x0a00_0000 + i).to_string()]
                .map(|a| format!("{a}/32"))
                .each_ref()
                .map(String::as_str),
        )
    };
    let mut steps = vec![create("wg0")];
    steps.extend((0..10_000).map(|i| add_peer("wg0", peer(i), one(i))));
    apply(kernel, &steps).await;
    let link = see(kernel, "wg0").await;
    assert_eq!(link.peers.len(), 10_000);
    for i in [0, 1, 4_999, 9_999] {
        assert_eq!(link.peers[&peer(i)].allowed_ips, one(i));
    }
    let gone: Vec<_> = (0..5_000).map(|i| Step::RemovePeer { link: name("wg0"), peer: peer(i) }).collect();
    apply(kernel, &gone).await;
    assert_eq!(see(kernel, "wg0").await.peers.len(), 5_000);
}

pub(crate) async fn refused_device_step_does_not_stop_its_batch<W: World>(_: &W, kernel: &mut W::Kernel) {
    // The port is in use: only the step of the device is refused.
    let in_use = Step::SetDevice { link: name("wg0"), private_key: None, listen_port: Some(51820), fwmark: None };
    let mut steps = running("wg1");
    steps.push(Step::SetDevice { link: name("wg1"), private_key: None, listen_port: Some(51820), fwmark: None });
    apply(kernel, &steps).await;
    apply(kernel, &running("wg0")).await;
    apply(kernel, &[add_peer("wg0", peer(1), Nets::default())]).await;
    let steps = [
        Step::RemovePeer { link: name("wg0"), peer: peer(1) },
        in_use,
        add_peer("wg0", peer(2), nets(&["10.2.0.0/16"])),
        add_peer("wg0", peer(3), nets(&["10.3.0.0/16"])),
    ];
    let applied = kernel.apply(&steps).await;
    assert_eq!(applied.done, [0, 2, 3], "{:?}", failures(&applied));
    assert!(matches!(&applied.failed[..], [(1, KernelError::Refused { .. })]), "{:?}", failures(&applied));
    assert_eq!(see(kernel, "wg0").await.peers.into_keys().collect::<Vec<_>>(), [peer(2), peer(3)]);
}

pub(crate) async fn peers_of_other_links_are_unchanged<W: World>(world: &W, kernel: &mut W::Kernel) {
    world.add_link("other", "wireguard");
    world.set_peer("other", &peer(1), &["10.0.0.0/8"]);
    apply(kernel, &[create("wg0"), add_peer("wg0", peer(1), nets(&["10.0.0.0/8"]))]).await;
    apply(kernel, &[Step::RemovePeer { link: name("wg0"), peer: peer(1) }]).await;
    assert_eq!(see_peer(kernel, "other", peer(1)).await.expect("the peer").allowed_ips, nets(&["10.0.0.0/8"]));
}

pub(crate) async fn counters_cover_every_peer_of_a_wireguard_link<W: World>(world: &W, kernel: &mut W::Kernel) {
    world.add_link("dummy0", "dummy");
    let mut steps = vec![create("wg0")];
    steps.extend((0..300).map(|i| {
        let endpoint = (i % 2 == 0).then(|| at("192.0.2.1:7"));
        set_peer("wg0", peer(i), PeerChange { create: true, endpoint, ..update() })
    }));
    apply(kernel, &steps).await;
    let first = kernel.counters(&name("wg0")).await.expect("an answer").expect("a device");
    assert_eq!(first.peers.len(), 300);
    assert_eq!(first.peers[&peer(0)].endpoint, Some(at("192.0.2.1:7").addr));
    assert_eq!(first.peers[&peer(1)].endpoint, None);
    apply(kernel, &[Step::DeleteLink { link: name("wg0") }, create("wg0")]).await;
    let second = kernel.counters(&name("wg0")).await.expect("an answer").expect("a device");
    assert_ne!(first.index, second.index, "a recreated link has the same index");
    assert_eq!(kernel.counters(&name("dummy0")).await.expect("an answer"), None);
    assert_eq!(kernel.counters(&name("wg9")).await.expect("an answer"), None);
}

pub(crate) async fn link_is_never_its_own_peer<W: World>(_: &W, kernel: &mut W::Kernel) {
    let own = secret(7).public();
    let device = Step::SetDevice { link: name("wg0"), private_key: Some(secret(7)), listen_port: None, fwmark: None };
    apply(kernel, &[create("wg0"), add_peer("wg0", own, nets(&["10.0.0.0/8"])), device]).await;
    assert_eq!(see_peer(kernel, "wg0", own).await, None, "the link's own key is still a peer");
    apply(kernel, &[add_peer("wg0", own, nets(&["10.0.0.0/8"]))]).await;
    assert_eq!(see_peer(kernel, "wg0", own).await, None);
}
