//! Addresses and routes of a link, ours and foreign.
use super::*;

fn add(address: &str) -> Step {
    Step::AddAddress { link: name("wg0"), address: net(address) }
}

fn remove(address: &str) -> Step {
    Step::RemoveAddress { link: name("wg0"), address: net(address) }
}

fn add_route(to: &str, table: u32) -> Step {
    Step::AddRoute { link: name("wg0"), route: route(to, table) }
}

fn remove_route(to: &str, table: u32) -> Step {
    Step::RemoveRoute { link: name("wg0"), route: route(to, table) }
}

pub(crate) async fn addresses_of_both_families_are_set<W: World>(world: &W, kernel: &mut W::Kernel) {
    let mut steps = running("wg0");
    steps.extend(["10.0.0.2/24", "10.9.9.9/32", "fd00::2/64", "fd01::1/128"].map(add));
    apply(kernel, &steps).await;
    assert_eq!(see(kernel, "wg0").await.addresses, nets(&["10.0.0.2/24", "10.9.9.9/32", "fd00::2/64", "fd01::1/128"]));
    apply(kernel, &["10.9.9.9/32", "fd01::1/128"].map(remove)).await;
    world.remove_address("wg0", "10.0.0.2/24");
    assert_eq!(see(kernel, "wg0").await.addresses, nets(&["fd00::2/64"]));
}

pub(crate) async fn removing_an_address_keeps_others_and_routes<W: World>(_: &W, kernel: &mut W::Kernel) {
    let mut steps = running("wg0");
    steps.extend(["10.0.0.1/24", "10.0.0.2/24", "10.0.0.3/24"].map(add));
    steps.extend([add_route("10.7.0.0/16", 254), add_route("fd07::/64", 254)]);
    apply(kernel, &steps).await;
    // By default Linux removes the secondary addresses of a network with its primary one.
    apply(kernel, &[remove("10.0.0.1/24")]).await;
    let link = see(kernel, "wg0").await;
    assert_eq!(link.addresses, nets(&["10.0.0.2/24", "10.0.0.3/24"]));
    assert_eq!(link.routes, [route("10.7.0.0/16", 254), route("fd07::/64", 254)].into());
    // With the last address of the link Linux removes its IPv4 routes.
    apply(kernel, &[remove("10.0.0.2/24"), remove("10.0.0.3/24"), add("10.1.0.1/24")]).await;
    let link = see(kernel, "wg0").await;
    assert_eq!(link.addresses, nets(&["10.1.0.1/24"]));
    assert_eq!(link.routes, [route("10.7.0.0/16", 254), route("fd07::/64", 254)].into());
    apply(kernel, &[remove("10.1.0.1/24")]).await;
    assert_eq!(see(kernel, "wg0").await.routes, [route("10.7.0.0/16", 254), route("fd07::/64", 254)].into());
}

pub(crate) async fn repeated_adds_and_removes_succeed<W: World>(_: &W, kernel: &mut W::Kernel) {
    let mut steps = running("wg0");
    steps.extend([add("10.0.0.1/24"), add("fd00::1/64"), add_route("10.7.0.0/16", 254), add_route("fd07::/64", 1000)]);
    apply(kernel, &steps).await;
    let before = see(kernel, "wg0").await;
    apply(kernel, &steps).await;
    assert_eq!(see(kernel, "wg0").await, before);
    let gone = [
        remove_route("10.7.0.0/16", 254),
        remove_route("fd07::/64", 1000),
        remove_route("10.99.0.0/16", 77),
        remove("10.0.0.1/24"),
        remove("fd00::1/64"),
        remove("10.99.0.1/24"),
    ];
    for _ in 0..2 {
        apply(kernel, &gone).await;
    }
    let link = see(kernel, "wg0").await;
    assert!(link.routes.is_empty() && link.addresses.is_empty(), "{link:?}");
}

pub(crate) async fn routes_are_set_in_any_table<W: World>(world: &W, kernel: &mut W::Kernel) {
    let all =
        [("10.1.0.0/16", 254), ("10.1.0.0/16", 200), ("10.1.0.0/16", 1000), ("fd01::/64", 1000), ("fd01::/64", 70_000)];
    let mut steps = running("wg0");
    steps.extend(all.map(|(to, table)| add_route(to, table)));
    apply(kernel, &steps).await;
    assert_eq!(see(kernel, "wg0").await.routes, all.map(|(to, table)| route(to, table)).into());
    world.remove_route("wg0", "10.1.0.0/16", 1000);
    apply(kernel, &[remove_route("10.1.0.0/16", 254), remove_route("fd01::/64", 70_000)]).await;
    assert_eq!(see(kernel, "wg0").await.routes, [route("10.1.0.0/16", 200), route("fd01::/64", 1000)].into());
}

pub(crate) async fn default_routes_of_both_families_are_set<W: World>(_: &W, kernel: &mut W::Kernel) {
    let all = [("0.0.0.0/0", 1000), ("::/0", 1000), ("0.0.0.0/0", 254)];
    let mut steps = running("wg0");
    steps.extend(all.map(|(to, table)| add_route(to, table)));
    apply(kernel, &steps).await;
    assert_eq!(see(kernel, "wg0").await.routes, all.map(|(to, table)| route(to, table)).into());
    apply(kernel, &all.map(|(to, table)| remove_route(to, table))).await;
    assert!(see(kernel, "wg0").await.routes.is_empty());
}

pub(crate) async fn foreign_routes_are_ignored<W: World>(world: &W, kernel: &mut W::Kernel) {
    apply(kernel, &running("wg0")).await;
    world.add_foreign_route("wg0", "10.5.0.0/16", 254);
    world.add_foreign_route("wg0", "fd05::/64", 1000);
    assert!(see(kernel, "wg0").await.routes.is_empty());
    apply(kernel, &[remove_route("10.5.0.0/16", 254), remove_route("fd05::/64", 1000)]).await;
    assert!(world.has_foreign_route("wg0", "10.5.0.0/16", 254));
    assert!(world.has_foreign_route("wg0", "fd05::/64", 1000));
}

pub(crate) async fn route_held_by_another_link_is_refused<W: World>(world: &W, kernel: &mut W::Kernel) {
    apply(kernel, &running("wg0")).await;
    world.add_link("dummy0", "dummy");
    world.set_up("dummy0", true);
    world.add_foreign_route("dummy0", "10.5.0.0/16", 254);
    let error = apply_refused(kernel, &[add_route("10.6.0.0/16", 254), add_route("10.5.0.0/16", 254)]).await;
    let KernelError::Refused { cause: Cause::RouteHeld { to, holder }, .. } = &error else { panic!("{error:?}") };
    assert!(*to == net("10.5.0.0/16") && holder.starts_with("dummy0"), "{error:?}");
    assert!(world.has_foreign_route("dummy0", "10.5.0.0/16", 254));
    assert_eq!(see(kernel, "wg0").await.routes, [route("10.6.0.0/16", 254)].into());
}

pub(crate) async fn routes_are_lost_when_the_link_goes_down<W: World>(world: &W, kernel: &mut W::Kernel) {
    let mut steps = running("wg0");
    steps.extend([add("10.0.0.1/24"), add_route("10.7.0.0/16", 254), add_route("fd07::/64", 254)]);
    apply(kernel, &steps).await;
    world.set_up("wg0", false);
    let link = see(kernel, "wg0").await;
    assert!(link.routes.is_empty() && !link.up, "{link:?}");
    let error = apply_refused(kernel, &[add_route("10.7.0.0/16", 254)]).await;
    assert!(matches!(error, KernelError::Refused { .. }), "a link that is down accepted a route");
}

pub(crate) async fn link_holds_a_thousand_routes<W: World>(_: &W, kernel: &mut W::Kernel) {
    let all: BTreeSet<Route> = (0..1000u32).map(|i| route(&format!("10.{}.{}.0/24", i / 256, i % 256), 1000)).collect();
    let mut steps = running("wg0");
    steps.extend(all.iter().map(|r| Step::AddRoute { link: name("wg0"), route: *r }));
    apply(kernel, &steps).await;
    assert_eq!(see(kernel, "wg0").await.routes, all);
    let gone: Vec<_> = all.iter().map(|r| Step::RemoveRoute { link: name("wg0"), route: *r }).collect();
    apply(kernel, &gone).await;
    assert!(see(kernel, "wg0").await.routes.is_empty());
}

pub(crate) async fn ipv6_addresses_are_lost_when_the_link_goes_down<W: World>(_: &W, kernel: &mut W::Kernel) {
    let mut steps = running("wg0");
    steps.extend(["10.0.0.1/24", "fd00::1/64"].map(add));
    apply(kernel, &steps).await;
    apply(kernel, &[Step::SetUp { link: name("wg0"), up: false }]).await;
    assert_eq!(see(kernel, "wg0").await.addresses, nets(&["10.0.0.1/24"]));
    // IPv6 addresses set while the link is down are kept when it comes up.
    apply(kernel, &[add("fd00::1/64"), Step::SetUp { link: name("wg0"), up: true }]).await;
    assert_eq!(see(kernel, "wg0").await.addresses, nets(&["10.0.0.1/24", "fd00::1/64"]));
}

pub(crate) async fn ipv6_address_is_unique_whatever_its_prefix<W: World>(_: &W, kernel: &mut W::Kernel) {
    let mut steps = running("wg0");
    steps.push(add("fd00::1/64"));
    apply(kernel, &steps).await;
    let error = apply_refused(kernel, &[add("fd00::1/128")]).await;
    assert!(matches!(error, KernelError::Refused { .. }), "{error:?}");
    apply(kernel, &[remove("fd00::1/64"), add("fd00::1/128")]).await;
    assert_eq!(see(kernel, "wg0").await.addresses, nets(&["fd00::1/128"]));
}

pub(crate) async fn disabled_ipv6_refuses_its_own_steps_only<W: World>(world: &W, kernel: &mut W::Kernel) {
    let mut steps = running("wg0");
    steps.push(add("fd00::1/64"));
    apply(kernel, &steps).await;
    world.disable_ipv6("wg0", true);
    assert!(see(kernel, "wg0").await.addresses.is_empty(), "the kernel removes the addresses");
    let steps = [
        add("10.0.0.1/24"),
        add("fd00::1/64"),
        add_peer("wg0", peer(1), nets(&["10.7.0.0/16", "fd07::/64"])),
        add_route("10.7.0.0/16", 254),
        add_route("fd07::/64", 254),
    ];
    let applied = kernel.apply(&steps).await;
    assert_eq!(applied.failed.iter().map(|f| f.0).collect::<Vec<_>>(), [1, 4], "{:?}", failures(&applied));
    for (_, error) in &applied.failed {
        let wg0 = Cause::Ipv6Disabled(name("wg0"));
        assert!(matches!(error, KernelError::Refused { cause, .. } if *cause == wg0), "{error:?}");
        assert!(error.reason().contains("IPv6 is disabled on wg0"), "{}", error.reason());
    }
    let link = see(kernel, "wg0").await;
    assert_eq!((link.addresses, link.peers.len()), (nets(&["10.0.0.1/24"]), 1));
    world.disable_ipv6("wg0", false);
    apply(kernel, &[add("fd00::1/64"), add_route("fd07::/64", 254)]).await;
}

pub(crate) async fn flushed_connected_routes_are_restored<W: World>(world: &W, kernel: &mut W::Kernel) {
    let addresses = ["10.0.0.2/24", "10.9.9.9/32", "fd00::2/64"];
    let mut steps = running("wg0");
    steps.extend(addresses.map(add));
    apply(kernel, &steps).await;
    assert!(see(kernel, "wg0").await.unrouted.is_empty(), "the kernel adds them with the address");
    assert_eq!(kernel.egress("10.0.0.1".parse().expect("an address")).await, Egress::Link("wg0".to_owned()));
    world.flush_routes("wg0");
    let routed = ["10.0.0.2/24", "fd00::2/64"];
    assert_eq!(see(kernel, "wg0").await.unrouted, nets(&routed));
    assert_eq!(kernel.egress("10.0.0.1".parse().expect("an address")).await, Egress::Unreachable);
    let again = routed.map(|a| Step::AddConnected { link: name("wg0"), address: net(a) });
    for _ in 0..2 {
        apply(kernel, &again).await;
        let link = see(kernel, "wg0").await;
        assert!(link.unrouted.is_empty() && link.addresses == nets(&addresses), "{link:?}");
        assert_eq!(kernel.egress("fd00::1".parse().expect("an address")).await, Egress::Link("wg0".to_owned()));
    }
    // A connected route can be removed while its address stays.
    let gone = Step::RemoveConnected { link: name("wg0"), address: net("10.0.0.2/24") };
    for _ in 0..2 {
        apply(kernel, std::slice::from_ref(&gone)).await;
        let link = see(kernel, "wg0").await;
        assert_eq!((link.unrouted, link.addresses), (nets(&["10.0.0.2/24"]), nets(&addresses)));
    }
    apply(kernel, &[remove("10.0.0.2/24")]).await;
}

pub(crate) async fn connected_networks_of_other_links_are_observed<W: World>(world: &W, kernel: &mut W::Kernel) {
    apply(kernel, &running("wg0")).await;
    apply(kernel, &[add("10.7.0.1/24")]).await;
    world.add_link("dummy0", "dummy");
    world.add_address("dummy0", "10.8.0.7/24");
    world.add_address("dummy0", "10.9.0.7/32");
    assert!(observe(kernel, &["wg0"]).await.networks.is_empty(), "a link that is down connects nothing");
    world.set_up("dummy0", true);
    let all = observe(kernel, &["wg0"]).await;
    let seen: Vec<_> = all.networks.iter().map(|(n, at)| (*n, at.link.as_str(), at.address.to_string())).collect();
    assert_eq!(seen, [(net("10.8.0.0/24"), "dummy0", "10.8.0.7".to_owned())]);
    // The same network on both: the other link wins, whichever came first.
    apply(kernel, &[add("10.8.0.2/24")]).await;
    assert_eq!(kernel.egress("10.8.0.1".parse().expect("an address")).await, Egress::Link("dummy0".to_owned()));
    world.remove_address("dummy0", "10.8.0.7/24");
    assert_eq!(kernel.egress("10.8.0.1".parse().expect("an address")).await, Egress::Link("wg0".to_owned()));
    world.add_address("dummy0", "10.8.0.7/24");
    assert_eq!(kernel.egress("10.8.0.1".parse().expect("an address")).await, Egress::Link("dummy0".to_owned()));
}
