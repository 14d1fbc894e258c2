//! The tunnel in a simulated world: the real reconciler and uplink on a simulated kernel, network, DNS, hubs and clock.
mod failover;
mod scene;

use scene::{Scene, addr, hub_key};
use spoke_model::time::Wall;
use spoke_sys::sim::world::RTT;
use spoke_uplink::ladder::Rung;
use spoke_uplink::status::{Code, State};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(start_paused = true)]
async fn tunnel_is_up_in_two_round_trips_and_stays_up() {
    let mut s = Scene::start(1, "").await;
    let took = s.until_up(SECOND).await;
    assert!(took <= RTT * 2 + Duration::from_millis(300), "{took:?}");
    s.pass(24 * HOUR).await;
    let status = s.status();
    assert_eq!((status.state, status.sessions), (State::Up, 1), "{:#?}", status.history);
    assert!(status.handshake_age(s.now()).unwrap() < 3 * MINUTE);
    assert!(status.rungs.is_empty());
}

/// Bytes with headers; the limit is for metered links.
#[tokio::test(start_paused = true)]
async fn idle_day_uses_less_than_a_megabyte() {
    let mut s = Scene::start(1, "").await;
    s.until_up(SECOND).await;
    let before = s.world.state().bytes;
    s.pass(24 * HOUR).await;
    let day = s.world.state().bytes - before;
    println!("idle day over IPv4: {day} bytes");
    assert!((400_000..750_000).contains(&day), "{day} bytes");
    assert_eq!(s.world.state().look_ups, 1, "look-ups while the tunnel is up");
}

#[tokio::test(start_paused = true)]
async fn hub_outage_is_detected_and_recovered() {
    let mut s = Scene::start(1, "").await;
    s.until_up(SECOND).await;
    s.pass(10 * MINUTE).await;
    s.world.power(0, false);
    let noticed = s.until(2 * MINUTE, |s| s.state != State::Up).await;
    assert!(noticed <= 80 * SECOND, "idle probe 60 s + dead after 15 s + a poll: {noticed:?}");
    s.pass(HOUR).await;
    let status = s.status();
    assert!(status.backoff.unwrap() >= 30 * SECOND, "backoff: {:?}", status.backoff);
    assert_eq!(status.fault.as_ref().unwrap().code, Code::NoHandshake);
    s.world.power(0, true);
    let back = s.until_up(2 * MINUTE).await;
    assert!(back <= 40 * SECOND, "a keepalive and a handshake retry of the kernel: {back:?}");
}

#[tokio::test(start_paused = true)]
async fn dead_busy_tunnel_is_detected_in_twenty_seconds() {
    let mut s = Scene::start(1, "").await;
    s.until_up(SECOND).await;
    s.pass(2 * MINUTE).await;
    s.world.power(0, false);
    s.chatter();
    let noticed = s.until(MINUTE, |s| s.state != State::Up).await;
    assert!(noticed <= 20 * SECOND, "{noticed:?}");
}

#[tokio::test(start_paused = true)]
async fn tunnel_survives_a_hub_reboot() {
    let mut s = Scene::start(1, "").await;
    s.until_up(SECOND).await;
    s.pass(5 * MINUTE).await;
    s.world.power(0, false);
    s.pass(20 * SECOND).await;
    s.world.power(0, true);
    s.until(3 * MINUTE, |s| s.handshake_at > s.connected_since || s.sessions > 1).await;
    s.pass(3 * MINUTE).await;
    assert_eq!(s.status().state, State::Up, "{:#?}", s.status().history);
}

#[tokio::test(start_paused = true)]
async fn returning_link_ends_the_backoff() {
    let mut s = Scene::start(1, "").await;
    s.until_up(SECOND).await;
    s.pass(5 * MINUTE).await;
    s.world.carrier(false);
    let noticed = s.until(MINUTE, |s| s.state != State::Up).await;
    assert!(noticed <= 20 * SECOND, "{noticed:?}");
    s.pass(3 * HOUR).await;
    assert_ne!(s.status().state, State::Up);
    s.world.carrier(true);
    let back = s.until_up(MINUTE).await;
    assert!(back <= 7 * SECOND, "one handshake retry of the kernel, no backoff: {back:?}");
}

#[tokio::test(start_paused = true)]
async fn short_outage_keeps_the_session() {
    let mut s = Scene::start(1, "").await;
    s.until_up(SECOND).await;
    s.pass(5 * MINUTE).await;
    s.world.carrier(false);
    s.pass(8 * SECOND).await;
    s.world.carrier(true);
    s.pass(MINUTE).await;
    assert_eq!((s.status().state, s.status().sessions), (State::Up, 1));
}

#[tokio::test(start_paused = true)]
async fn changed_hub_address_in_dns_is_used() {
    let mut s = Scene::start(1, "").await;
    s.until_up(SECOND).await;
    s.pass(5 * MINUTE).await;
    {
        let mut w = s.world.state();
        w.hubs[0].addresses = [addr("198.51.100.7:51820")].into();
        w.names.insert("hub0.example.net".into(), vec!["198.51.100.7".parse().unwrap()]);
    }
    s.until(2 * MINUTE, |s| s.state != State::Up).await;
    s.until_up(2 * MINUTE).await;
    assert_eq!(s.status().endpoint, Some(addr("198.51.100.7:51820")));
}

#[tokio::test(start_paused = true)]
async fn last_good_address_is_used_without_dns() {
    let mut s = Scene::start(1, "").await;
    s.until_up(SECOND).await;
    s.pass(5 * MINUTE).await;
    s.world.state().dns = false;
    s.world.power(0, false);
    s.pass(10 * MINUTE).await;
    s.world.power(0, true);
    s.until_up(2 * MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn dns_outage_at_start_is_recovered() {
    let mut s = Scene::start_with(1, "", |w| w.state().dns = false).await;
    s.pass(5 * MINUTE).await;
    assert_eq!(s.status().fault.as_ref().unwrap().code, Code::Unresolved);
    assert!(s.world.state().links.values().all(|l| l.up), "an interface is down");
    s.world.state().dns = true;
    s.until_up(2 * MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn stuck_nat_binding_is_replaced_by_a_new_port() {
    let mut s = Scene::start(1, "").await;
    s.until_up(SECOND).await;
    s.pass(5 * MINUTE).await;
    let port = s.port();
    s.world.state().stuck.insert(port);
    s.until(2 * MINUTE, |s| s.state != State::Up).await;
    let back = s.until_up(3 * MINUTE).await;
    assert!(back <= 45 * SECOND, "{back:?}");
    assert_ne!(s.port(), port);
    assert_eq!(s.status().rungs.keys().copied().collect::<Vec<_>>(), [Rung::Port]);
}

#[tokio::test(start_paused = true)]
async fn broken_ipv6_falls_back_to_ipv4() {
    let mut s = Scene::start_with(1, "", |w| {
        let mut w = w.state();
        w.v6 = false;
        w.hubs[0].addresses.insert(addr("[2001:db8::1]:51820"));
        w.names.insert("hub0.example.net".into(), vec!["2001:db8::1".parse().unwrap(), "192.0.2.1".parse().unwrap()]);
    })
    .await;
    let took = s.until_up(MINUTE).await;
    assert!(took <= 18 * SECOND, "one attempt, a wait, a handshake retry: {took:?} {:#?}", s.status().history);
    assert_eq!(s.status().rungs.keys().copied().collect::<Vec<_>>(), [Rung::Family]);
    assert_eq!(s.status().endpoint, Some(addr("192.0.2.1:51820")));
}

#[tokio::test(start_paused = true)]
async fn two_hubs_fail_over_and_back_with_hysteresis() {
    let mut s = Scene::start(2, "").await;
    s.until_up(SECOND).await;
    s.pass(10 * MINUTE).await;
    s.world.power(0, false);
    s.until(2 * MINUTE, |s| s.state != State::Up).await;
    let over = s.until(3 * MINUTE, |s| s.state == State::Up).await;
    assert_eq!(s.status().hub.as_deref(), Some("hub1"));
    assert!(over <= SECOND, "the next hub is tried at once: {over:?}");
    s.pass(2 * HOUR).await;
    assert_eq!(s.status().hub.as_deref(), Some("hub1"), "the preferred hub is still unreachable");
    assert_eq!(s.status().sessions, 2, "{:#?}", s.status().history);

    s.world.power(0, true);
    let good = s.until(20 * MINUTE, |s| s.standby.as_ref().is_some_and(|b| b.good_since.is_some())).await;
    println!("preferred hub good again after {good:?}");
    s.pass(4 * MINUTE).await;
    assert_eq!(s.status().hub.as_deref(), Some("hub1"), "not before failback_after");
    let moved = s.until(3 * MINUTE, |s| s.hub.as_deref() == Some("hub0") && s.state == State::Up).await;
    println!("failback after another {moved:?}");
    assert_eq!(s.status().history.back().unwrap().code, Code::Failback);
    s.pass(HOUR).await;
    assert_eq!(s.status().sessions, 3);
    assert!(!s.has_peer(hub_key(1)), "hub1 is still a peer");
}

#[tokio::test(start_paused = true)]
async fn flapping_preferred_hub_gets_no_failback() {
    let mut s = Scene::start(2, "").await;
    s.until_up(SECOND).await;
    s.world.power(0, false);
    s.until(5 * MINUTE, |s| s.state == State::Up && s.hub.as_deref() == Some("hub1")).await;
    let sessions = s.status().sessions;
    for _ in 0..30 {
        s.world.power(0, true);
        s.pass(2 * MINUTE).await;
        s.world.power(0, false);
        s.pass(2 * MINUTE).await;
    }
    assert_eq!((s.status().hub.as_deref(), s.status().sessions), (Some("hub1"), sessions));
}

#[tokio::test(start_paused = true)]
async fn failed_active_hub_waives_the_hysteresis() {
    let mut s = Scene::start(2, "").await;
    s.until_up(SECOND).await;
    s.world.power(0, false);
    s.until(5 * MINUTE, |s| s.state == State::Up && s.hub.as_deref() == Some("hub1")).await;
    s.pass(30 * MINUTE).await;
    s.world.power(0, true);
    s.until(20 * MINUTE, |s| s.standby.as_ref().is_some_and(|b| b.good_since.is_some())).await;
    s.pass(10 * SECOND).await;
    s.world.power(1, false);
    s.until(2 * MINUTE, |s| s.state != State::Up).await;
    let over = s.until_up(MINUTE).await;
    assert!(over <= SECOND, "hub0 was already good: {over:?}");
    assert_eq!(s.status().hub.as_deref(), Some("hub0"));
}

#[tokio::test(start_paused = true)]
async fn flapping_hub_is_retried_with_backoff() {
    let mut s = Scene::start(1, "").await;
    let mut waits = Vec::new();
    for _ in 0..8 {
        s.until_up(5 * MINUTE).await;
        s.pass(5 * SECOND).await;
        s.world.power(0, false);
        s.chatter();
        s.until(MINUTE, |s| s.state == State::Waiting).await;
        waits.push(s.status().backoff.unwrap());
        s.world.power(0, true);
    }
    assert!(s.status().failures >= 8, "no session lasted stable_after: {waits:?}");
    // A session that lasts stable_after resets the count.
    s.until_up(5 * MINUTE).await;
    s.pass(5 * MINUTE).await;
    s.world.power(0, false);
    s.until(3 * MINUTE, |s| s.state == State::Waiting).await;
    assert_eq!(s.status().failures, 1);
}

#[tokio::test(start_paused = true)]
async fn tunnel_recovers_from_wall_clock_jumps() {
    const FIFTY_YEARS: u64 = 50 * 31_556_952;
    let mut s = Scene::start(1, "").await;
    s.until_up(SECOND).await;
    s.pass(10 * MINUTE).await;
    let now = s.clock.wall_exact().as_secs();
    s.clock.jump_to(Wall(now + FIFTY_YEARS));
    s.pass(30 * MINUTE).await;
    assert_eq!((s.status().state, s.status().sessions), (State::Up, 1), "forward: no effect");

    s.clock.jump_to(Wall(now - 30 * 31_556_952));
    s.pass(2 * MINUTE).await;
    assert_eq!(s.status().state, State::Up, "back: the session lasts until its keys expire");
    s.pass(10 * MINUTE).await;
    assert_ne!(s.status().state, State::Up, "the hub drops our handshakes as replays");
    s.clock.jump_to(Wall(now + FIFTY_YEARS + 3600));
    s.until_up(2 * MINUTE).await;
    let age = s.status().handshake_age(s.now()).unwrap();
    assert!(age < MINUTE, "age not measured on the boot clock: {age:?}");
}

#[tokio::test(start_paused = true)]
async fn restarted_process_adopts_the_tunnel() {
    let mut s = Scene::start(2, "").await;
    s.world.power(0, false);
    s.until(5 * MINUTE, |s| s.state == State::Up && s.hub.as_deref() == Some("hub1")).await;
    s.pass(10 * MINUTE).await;
    let (port, peer) = (s.port(), s.peer(hub_key(1)));
    s.restart().await;
    let took = s.until_up(SECOND).await;
    assert!(took <= RTT + Duration::from_millis(300), "{took:?}");
    let status = s.status();
    assert_eq!((status.hub.as_deref(), status.history.back().unwrap().code), (Some("hub1"), Code::Adopted));
    assert_eq!(s.port(), port);
    assert_eq!(s.peer(hub_key(1)).counters.last_handshake, peer.counters.last_handshake, "a new handshake");
    let look_ups = s.world.state().look_ups;
    s.pass(20 * SECOND).await;
    assert!(s.world.state().look_ups <= look_ups + 1, "more look-ups than the one of the hub that is not in use");
}

#[tokio::test(start_paused = true)]
async fn dead_adopted_tunnel_is_dropped() {
    let mut s = Scene::start(1, "").await;
    s.until_up(SECOND).await;
    s.pass(MINUTE).await;
    s.world.power(0, false);
    s.restart().await;
    s.pass(5 * MINUTE).await;
    assert_eq!((s.status().state == State::Up, s.status().sessions), (false, 0), "up without an echo reply");
    s.world.power(0, true);
    s.until_up(2 * MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn deleted_interface_is_recreated_with_the_tunnel() {
    let mut s = Scene::start(1, "").await;
    s.until_up(SECOND).await;
    s.pass(5 * MINUTE).await;
    s.world.delete_link(&"wg0".parse().unwrap());
    let noticed = s.until(10 * SECOND, |s| s.state != State::Up || s.sessions > 1).await;
    println!("noticed after {noticed:?}");
    s.until_up(10 * SECOND).await;
    assert_eq!(s.status().last_fault.as_ref().unwrap().code, Code::InterfaceGone);
}

#[tokio::test(start_paused = true)]
async fn hub_without_echo_reply_is_not_up() {
    let mut s = Scene::start_with(1, "", |w| w.state().hubs[0].answers_echo = false).await;
    s.pass(10 * MINUTE).await;
    assert_eq!((s.status().state == State::Up, s.status().sessions), (false, 0));
    assert_eq!(s.status().fault.as_ref().unwrap().code, Code::NoEcho);
    s.world.state().hubs[0].answers_echo = true;
    s.until_up(2 * MINUTE).await;
}

#[tokio::test(start_paused = true)]
async fn attempt_rate_is_bounded_in_a_network_event_storm() {
    for changes in [false, true] {
        let mut s = Scene::start(2, "").await;
        s.until_up(SECOND).await;
        s.world.power(0, false);
        s.world.power(1, false);
        s.until(2 * MINUTE, |s| s.state != State::Up).await;
        let before = s.status().attempts;
        for _ in 0..3600 {
            s.world.state().carrier_changes += u32::from(changes);
            s.world.event();
            s.pass(SECOND).await;
        }
        let attempts = s.status().attempts - before;
        assert!((40..250).contains(&attempts), "{attempts} attempts in an hour, changes: {changes}");
        assert!(s.status().rungs.contains_key(&Rung::Hub), "{:?}", s.status().rungs);
        assert!(!s.status().rungs.contains_key(&Rung::Rebuild), "rebuilt: {:?}", s.status().rungs);
    }
}

#[tokio::test(start_paused = true)]
async fn interface_is_kept_for_hours_of_outage() {
    let mut s = Scene::start(2, "").await;
    s.until_up(SECOND).await;
    s.world.power(0, false);
    s.world.power(1, false);
    let index = s.index();
    s.pass(6 * HOUR).await;
    assert_eq!(s.index(), index, "recreated: {:?}", s.status().rungs);
    s.pass(HOUR).await;
    assert_ne!(s.index(), index, "never recreated: {:?}", s.status().rungs);
}
