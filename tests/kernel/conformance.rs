//! The specification of `Kernel`: the same cases run against the fake kernel on any host and against the real one in
//! the kernel tier.
//!
//! A case uses the implementation through the trait only. Changes and observations by other programs go through
//! [`World`], which the real side implements with `ip` and `wg`.
use ipnet::IpNet;
use spoke_model::interface_name::IfName;
use spoke_model::key::{PublicKey, SecretKey};
use spoke_model::nets::Nets;
use spoke_net::plan::{AllowedIps, PeerChange, Step};
use spoke_net::state::{Egress, Endpoint, Observed, ObservedLink, ObservedPeer, Route};
use spoke_sys::kernel::{Applied, Cause, Kernel, KernelError, ReadCounters};
use std::collections::{BTreeMap, BTreeSet};

#[path = "conformance/events.rs"]
pub(crate) mod events;
#[path = "conformance/forwarding.rs"]
pub(crate) mod forwarding;
#[path = "conformance/links.rs"]
pub(crate) mod links;
#[path = "conformance/peers.rs"]
pub(crate) mod peers;
#[path = "conformance/routes.rs"]
pub(crate) mod routes;

/// Other programs that observe and change the same kernel.
pub(crate) trait World: Sync {
    /// The implementation under test.
    type Kernel: Kernel + ReadCounters;

    /// A second instance of the implementation, without CAP_NET_ADMIN.
    fn unprivileged(&self) -> Self::Kernel;

    /// Creates a foreign link of a kind (`wireguard`, `dummy`).
    fn add_link(&self, name: &str, kind: &str);
    /// Deletes a link.
    fn delete_link(&self, name: &str);
    /// Disables or enables IPv6 on a link.
    fn disable_ipv6(&self, link: &str, disabled: bool);
    /// Sets a link up or down.
    fn set_up(&self, name: &str, up: bool);
    /// The alias of a link.
    fn alias(&self, name: &str) -> String;
    /// Adds an address.
    fn add_address(&self, link: &str, address: &str);
    /// Removes an address.
    fn remove_address(&self, link: &str, address: &str);
    /// Adds a route of a routing protocol other than ours.
    fn add_foreign_route(&self, link: &str, to: &str, table: u32);
    /// Removes a route of any routing protocol.
    fn remove_route(&self, link: &str, to: &str, table: u32);
    /// Removes all routes of a link from the main table.
    fn flush_routes(&self, link: &str);
    /// Whether a route of a routing protocol other than ours exists.
    fn has_foreign_route(&self, link: &str, to: &str, table: u32) -> bool;
    /// Removes a peer.
    fn remove_peer(&self, link: &str, peer: &PublicKey);
    /// Adds or changes a peer; its allowed-ips are replaced by `allowed_ips`.
    fn set_peer(&self, link: &str, peer: &PublicKey, allowed_ips: &[&str]);
    /// Changes the rules for traffic between the peers of a link.
    fn change_forwarding(&self, link: &str);
    /// Sets the private key of a link.
    fn set_private_key(&self, link: &str, key: &SecretKey);
}

/// Passes the names of all cases to a macro, which defines a test for each.
macro_rules! each_case {
    ($make:ident) => {
        $make! {
            links::created_link_is_marked_as_ours,
            links::creating_an_existing_link_changes_nothing,
            links::name_of_another_link_kind_is_refused,
            links::only_our_links_are_deleted,
            links::deleting_a_missing_link_succeeds,
            links::adopted_link_is_observed_but_not_ours,
            links::wanted_name_of_another_kind_is_observed,
            links::our_unwanted_link_is_observed,
            links::foreign_unwanted_link_is_not_observed,
            links::up_down_and_mtu_are_set,
            links::device_values_are_set_and_kept,
            links::port_zero_selects_another_port,
            links::steps_on_an_uncreated_link_fail,
            links::failed_step_does_not_stop_the_others,
            links::missing_privilege_is_reported,
            links::port_in_use_is_refused_by_name,
            peers::peer_is_observed_as_set,
            peers::removed_peer_is_not_recreated,
            peers::many_allowed_ips_do_not_recreate_a_removed_peer,
            peers::removing_a_peer_twice_succeeds,
            peers::update_keeps_the_peers_other_values,
            peers::adding_allowed_ips_keeps_the_others,
            peers::replacing_allowed_ips_drops_the_others,
            peers::preshared_key_is_set_and_removed,
            peers::allowed_ip_moves_to_the_peer_set_last,
            peers::peer_holds_three_thousand_allowed_ips,
            peers::link_holds_ten_thousand_peers,
            peers::link_is_never_its_own_peer,
            peers::refused_device_step_does_not_stop_its_batch,
            peers::peers_of_other_links_are_unchanged,
            peers::counters_cover_every_peer_of_a_wireguard_link,
            routes::addresses_of_both_families_are_set,
            routes::removing_an_address_keeps_others_and_routes,
            routes::repeated_adds_and_removes_succeed,
            routes::routes_are_set_in_any_table,
            routes::default_routes_of_both_families_are_set,
            routes::foreign_routes_are_ignored,
            routes::route_held_by_another_link_is_refused,
            routes::routes_are_lost_when_the_link_goes_down,
            routes::link_holds_a_thousand_routes,
            routes::ipv6_addresses_are_lost_when_the_link_goes_down,
            routes::ipv6_address_is_unique_whatever_its_prefix,
            routes::disabled_ipv6_refuses_its_own_steps_only,
            routes::flushed_connected_routes_are_restored,
            routes::connected_networks_of_other_links_are_observed,
            forwarding::forwarding_is_set_and_removed,
            forwarding::foreign_forwarding_change_is_detected,
            forwarding::five_thousand_peers_are_isolated,
            events::foreign_change_wakes,
            events::observing_does_not_wake,
            events::change_before_the_wait_is_not_lost,
            events::cancelled_wait_loses_no_change,
            events::our_own_changes_settle,
        }
    };
}
pub(crate) use each_case;

pub(crate) fn name(text: &str) -> IfName {
    text.parse().expect("an interface name")
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

fn nets<T: FromIterator<IpNet>>(all: &[&str]) -> T {
    all.iter().map(|t| net(t)).collect()
}

/// The `n`th private key.
fn secret(n: u8) -> SecretKey {
    SecretKey::clamped([n.wrapping_add(1); 32])
}

/// The `n`th peer.
fn peer(n: u32) -> PublicKey {
    let mut key = [0xa5; 32];
    key[..4].copy_from_slice(&n.to_be_bytes());
    PublicKey(key)
}

fn add_peer(link: &str, peer: PublicKey, allowed_ips: Nets) -> Step {
    let change = PeerChange {
        create: true,
        preshared_key: None,
        keepalive: None,
        endpoint: None,
        allowed_ips: AllowedIps::Replace(allowed_ips),
    };
    Step::SetPeer { link: name(link), peer, change }
}

/// An empty update of an existing peer.
const fn update() -> PeerChange {
    PeerChange { create: false, preshared_key: None, keepalive: None, endpoint: None, allowed_ips: AllowedIps::Keep }
}

fn set_peer(link: &str, peer: PublicKey, change: PeerChange) -> Step {
    Step::SetPeer { link: name(link), peer, change }
}

fn create(link: &str) -> Step {
    Step::CreateLink { link: name(link), mtu: 1420 }
}

/// Creates a link, sets its key and brings it up.
fn running(link: &str) -> Vec<Step> {
    vec![
        create(link),
        Step::SetDevice { link: name(link), private_key: Some(secret(0)), listen_port: None, fwmark: None },
        Step::SetUp { link: name(link), up: true },
    ]
}

/// Applies steps that must all succeed.
async fn apply(kernel: &mut impl Kernel, steps: &[Step]) {
    let applied = kernel.apply(steps).await;
    assert!(applied.failed.is_empty(), "{:?}", failures(&applied));
    assert_eq!(applied.done, (0..steps.len()).collect::<Vec<_>>());
}

/// Applies steps of which only the last must fail; returns its error.
async fn apply_refused(kernel: &mut impl Kernel, steps: &[Step]) -> KernelError {
    let mut applied = kernel.apply(steps).await;
    assert_eq!(applied.done, (0..steps.len() - 1).collect::<Vec<_>>(), "{:?}", failures(&applied));
    let (index, error) = applied.failed.pop().expect("a failure");
    assert_eq!((index, applied.failed.len()), (steps.len() - 1, 0));
    error
}

fn failures(applied: &Applied) -> Vec<String> {
    let line =
        |(index, error): &(usize, KernelError)| format!("{index}: {error}: {:?}", std::error::Error::source(error));
    applied.failed.iter().map(line).collect()
}

async fn observe(kernel: &mut impl Kernel, wanted: &[&str]) -> Observed {
    let wanted = wanted.iter().map(|n| name(n)).collect();
    kernel.observe(&wanted).await.expect("an observation")
}

/// The link as observed.
async fn see(kernel: &mut impl Kernel, link: &str) -> ObservedLink {
    observe(kernel, &[link]).await.links.remove(&name(link)).expect("the link")
}

/// The peer as observed.
async fn see_peer(kernel: &mut impl Kernel, link: &str, peer: PublicKey) -> Option<ObservedPeer> {
    see(kernel, link).await.peers.remove(&peer)
}

fn at(text: &str) -> Endpoint {
    Endpoint { addr: text.parse().expect("an endpoint"), attempt: 0 }
}

fn route(to: &str, table: u32) -> Route {
    Route { to: net(to), table, metric: 0 }
}
