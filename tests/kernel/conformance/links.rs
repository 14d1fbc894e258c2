//! Links and the values of their devices.
use super::*;

pub(crate) async fn created_link_is_marked_as_ours<W: World>(world: &W, kernel: &mut W::Kernel) {
    apply(kernel, &[create("wg0")]).await;
    let link = see(kernel, "wg0").await;
    assert!(link.wireguard && link.ours && !link.up);
    assert_eq!((link.mtu, link.public_key, link.listen_port, link.fwmark), (1420, None, 0, 0));
    assert!(link.index > 0 && link.peers.is_empty() && link.routes.is_empty() && link.addresses.is_empty());
    assert_eq!(world.alias("wg0"), spoke_net::state::OWNED_ALIAS);
}

pub(crate) async fn creating_an_existing_link_changes_nothing<W: World>(world: &W, kernel: &mut W::Kernel) {
    world.add_link("wg0", "wireguard");
    world.set_private_key("wg0", &secret(3));
    apply(kernel, &[create("wg0")]).await;
    let link = see(kernel, "wg0").await;
    assert!(!link.ours, "a foreign link was marked as ours");
    assert_eq!(link.public_key, Some(secret(3).public()));
}

pub(crate) async fn name_of_another_link_kind_is_refused<W: World>(world: &W, kernel: &mut W::Kernel) {
    world.add_link("wg0", "dummy");
    let error = apply_refused(kernel, &[create("wg0")]).await;
    assert!(matches!(error, KernelError::Refused { .. }), "{error:?}");
    let all = observe(kernel, &["wg0"]).await;
    assert_eq!(all.links.len(), 1, "links left over: {all:?}");
    assert!(!all.links[&name("wg0")].wireguard);
    assert_eq!(world.alias("wg0"), "");
}

pub(crate) async fn only_our_links_are_deleted<W: World>(world: &W, kernel: &mut W::Kernel) {
    world.add_link("wg1", "wireguard");
    apply(kernel, &[create("wg0")]).await;
    let delete = |link| Step::DeleteLink { link: name(link) };
    apply(kernel, &[delete("wg0"), delete("wg1")]).await;
    let left = observe(kernel, &["wg0", "wg1"]).await;
    assert_eq!(left.links.keys().map(IfName::as_str).collect::<Vec<_>>(), ["wg1"]);
}

pub(crate) async fn deleting_a_missing_link_succeeds<W: World>(world: &W, kernel: &mut W::Kernel) {
    apply(kernel, &[create("wg0")]).await;
    world.delete_link("wg0");
    apply(kernel, &[Step::DeleteLink { link: name("wg0") }]).await;
    assert!(observe(kernel, &["wg0"]).await.links.is_empty());
}

pub(crate) async fn adopted_link_is_observed_but_not_ours<W: World>(world: &W, kernel: &mut W::Kernel) {
    world.add_link("wg0", "wireguard");
    world.set_private_key("wg0", &secret(1));
    world.set_peer("wg0", &peer(1), &["10.1.0.0/16", "fd00:1::/64"]);
    world.add_address("wg0", "10.0.0.1/24");
    world.set_up("wg0", true);
    let link = see(kernel, "wg0").await;
    assert!(link.wireguard && !link.ours && link.up);
    assert_eq!(link.public_key, Some(secret(1).public()));
    assert_eq!(link.peers[&peer(1)].allowed_ips, nets(&["10.1.0.0/16", "fd00:1::/64"]));
    assert_eq!(link.addresses, nets(&["10.0.0.1/24"]));
    // It can be changed like one of ours.
    apply(kernel, &[add_peer("wg0", peer(2), nets(&["10.2.0.0/16"]))]).await;
    assert_eq!(see(kernel, "wg0").await.peers.len(), 2);
}

pub(crate) async fn wanted_name_of_another_kind_is_observed<W: World>(world: &W, kernel: &mut W::Kernel) {
    world.add_link("wg0", "dummy");
    world.set_up("wg0", true);
    let link = see(kernel, "wg0").await;
    assert!(!link.wireguard && !link.ours && link.up);
}

pub(crate) async fn our_unwanted_link_is_observed<W: World>(_: &W, kernel: &mut W::Kernel) {
    apply(kernel, &[create("wg0"), add_peer("wg0", peer(1), nets(&["10.0.0.0/8"]))]).await;
    let all = observe(kernel, &[]).await;
    assert_eq!(all.links[&name("wg0")].peers.len(), 1);
}

pub(crate) async fn foreign_unwanted_link_is_not_observed<W: World>(world: &W, kernel: &mut W::Kernel) {
    world.add_link("wg0", "wireguard");
    world.add_link("dummy0", "dummy");
    apply(kernel, &[create("wg1")]).await;
    let all = observe(kernel, &["wg7"]).await;
    assert_eq!(all.links.keys().map(IfName::as_str).collect::<Vec<_>>(), ["wg1"]);
    // The taken name is reported nevertheless.
    assert_eq!(all.foreign.iter().map(IfName::as_str).collect::<Vec<_>>(), ["wg0"]);
    assert!(observe(kernel, &["wg0"]).await.foreign.is_empty(), "a wanted link is reported as foreign");
}

pub(crate) async fn up_down_and_mtu_are_set<W: World>(_: &W, kernel: &mut W::Kernel) {
    let set = |up, mtu| [Step::SetMtu { link: name("wg0"), mtu }, Step::SetUp { link: name("wg0"), up }];
    apply(kernel, &[create("wg0")]).await;
    for (up, mtu) in [(true, 1280), (true, 1280), (false, 1400), (false, 1400), (true, 1420)] {
        apply(kernel, &set(up, mtu)).await;
        let link = see(kernel, "wg0").await;
        assert_eq!((link.up, link.mtu), (up, mtu));
    }
}

pub(crate) async fn device_values_are_set_and_kept<W: World>(_: &W, kernel: &mut W::Kernel) {
    let set =
        |private_key, listen_port, fwmark| Step::SetDevice { link: name("wg0"), private_key, listen_port, fwmark };
    apply(kernel, &[create("wg0"), set(Some(secret(5)), Some(51820), Some(0xca6c))]).await;
    let link = see(kernel, "wg0").await;
    assert_eq!((link.public_key, link.listen_port, link.fwmark), (Some(secret(5).public()), 51820, 0xca6c));
    apply(kernel, &[set(None, Some(51821), None)]).await;
    let link = see(kernel, "wg0").await;
    assert_eq!((link.public_key, link.listen_port, link.fwmark), (Some(secret(5).public()), 51821, 0xca6c));
    apply(kernel, &[set(Some(secret(6)), None, Some(0))]).await;
    let link = see(kernel, "wg0").await;
    assert_eq!((link.public_key, link.listen_port, link.fwmark), (Some(secret(6).public()), 51821, 0));
}

pub(crate) async fn port_zero_selects_another_port<W: World>(_: &W, kernel: &mut W::Kernel) {
    apply(kernel, &running("wg0")).await;
    let first = see(kernel, "wg0").await.listen_port;
    assert_ne!(first, 0, "no port was chosen when the link came up");
    let again = Step::SetDevice { link: name("wg0"), private_key: None, listen_port: Some(0), fwmark: None };
    let mut ports = BTreeSet::new();
    for _ in 0..8 {
        apply(kernel, std::slice::from_ref(&again)).await;
        ports.insert(see(kernel, "wg0").await.listen_port);
    }
    assert!(!ports.contains(&0) && ports.len() > 1, "{ports:?}");
}

pub(crate) async fn steps_on_an_uncreated_link_fail<W: World>(world: &W, kernel: &mut W::Kernel) {
    world.add_link("wg0", "dummy");
    let mut steps = running("wg0");
    steps.push(Step::AddAddress { link: name("wg0"), address: net("10.0.0.1/24") });
    steps.push(create("wg1"));
    let applied = kernel.apply(&steps).await;
    assert_eq!(applied.done, [4]);
    assert_eq!(applied.failed.iter().map(|f| f.0).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(!see(kernel, "wg0").await.up, "a link that is not ours was brought up");
}

pub(crate) async fn failed_step_does_not_stop_the_others<W: World>(_: &W, kernel: &mut W::Kernel) {
    apply(kernel, &running("wg0")).await;
    let steps = [
        add_peer("wg0", peer(1), nets(&["10.0.0.0/8"])),
        add_peer("wg9", peer(1), nets(&["10.0.0.0/8"])),
        Step::AddAddress { link: name("wg9"), address: net("10.0.0.1/24") },
        Step::AddAddress { link: name("wg0"), address: net("10.0.0.1/24") },
        Step::RemovePeer { link: name("wg9"), peer: peer(1) },
        Step::RemoveAddress { link: name("wg9"), address: net("10.0.0.1/24") },
        Step::AddRoute { link: name("wg0"), route: route("10.9.0.0/16", 254) },
    ];
    let applied = kernel.apply(&steps).await;
    assert_eq!(applied.done, [0, 3, 4, 5, 6], "removals on a missing link succeed");
    assert_eq!(applied.failed.iter().map(|f| f.0).collect::<Vec<_>>(), [1, 2]);
    let link = see(kernel, "wg0").await;
    assert_eq!((link.peers.len(), link.addresses.len(), link.routes.len()), (1, 1, 1));
}

pub(crate) async fn missing_privilege_is_reported<W: World>(world: &W, kernel: &mut W::Kernel) {
    apply(kernel, &running("wg0")).await;
    let mut unprivileged = world.unprivileged();
    let steps = [
        create("wg1"),
        add_peer("wg0", peer(1), nets(&["10.0.0.0/8"])),
        Step::SetUp { link: name("wg0"), up: false },
        Step::AddAddress { link: name("wg0"), address: net("10.0.0.1/24") },
        Step::AddRoute { link: name("wg0"), route: route("10.0.0.0/8", 254) },
        Step::DeleteLink { link: name("wg0") },
    ];
    let applied = unprivileged.apply(&steps).await;
    assert_eq!(applied.done, [0usize; 0]);
    for (index, error) in &applied.failed {
        assert!(matches!(error, KernelError::NoPrivilege), "step {index}: {error:?}");
    }
    // WireGuard's keys are readable only with CAP_NET_ADMIN.
    let error = unprivileged.observe(&[name("wg0")].into()).await.expect_err("observed without privilege");
    assert!(matches!(error, KernelError::NoPrivilege), "{error:?}");
    assert_eq!(see(kernel, "wg0").await.peers.len(), 0);
}

pub(crate) async fn port_in_use_is_refused_by_name<W: World>(_: &W, kernel: &mut W::Kernel) {
    let port =
        |link, port| Step::SetDevice { link: name(link), private_key: None, listen_port: Some(port), fwmark: None };
    let up = |link| Step::SetUp { link: name(link), up: true };
    apply(kernel, &[create("wg9"), port("wg9", 51820), up("wg9"), create("wg0"), port("wg0", 51820)]).await;
    // A link that is down takes any port; the kernel refuses when it comes up.
    let at_start = apply_refused(kernel, &[up("wg0")]).await;
    let later = apply_refused(kernel, &[port("wg0", 0), up("wg0"), port("wg0", 51820)]).await;
    for error in [at_start, later] {
        let expected = Cause::PortInUse { port: 51820, holder: "interface wg9".to_owned() };
        assert!(matches!(&error, KernelError::Refused { cause, .. } if *cause == expected), "{error:?}");
    }
    let link = see(kernel, "wg0").await;
    assert!(link.up && link.listen_port != 51820, "a refused port leaves the one in use: {link:?}");
}
