//! Failover to a good second hub: from every cause in less than a minute, at the default times.
use crate::scene::{Scene, addr, hub_key};
use spoke_sys::sim::world::World;
use spoke_uplink::status::{Code, State};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const LIMIT: Duration = Duration::from_secs(60);

/// A cause of the loss of the first hub, and the reason the device must give for it.
type Cause = (&'static str, fn(&World), Code);

const CAUSES: &[Cause] = &[
    ("hub powered off", |w| w.power(0, false), Code::Silent),
    ("WireGuard alive, echo dropped", |w| w.state().hubs[0].answers_echo = false, Code::NoEcho),
    ("hub's key changed", |w| w.change_key(0, hub_key(50)), Code::Silent),
    ("hub's address black-holed", |w| w.state().hubs[0].addresses.clear(), Code::Silent),
    (
        "hub powered off, the resolver behind it",
        |w| {
            w.power(0, false);
            w.state().dns = false;
        },
        Code::Silent,
    ),
    (
        "hub powered off, the second hub's IPv6 address black-holed",
        |w| {
            w.power(0, false);
            w.state().v6 = false;
        },
        Code::Silent,
    ),
];

async fn two_hubs() -> Scene {
    let mut s = Scene::start_with(2, "", |w| {
        let mut w = w.state();
        w.hubs[1].addresses.insert(addr("[2001:db8::2]:51820"));
        w.names.insert("hub1.example.net".into(), vec![addr("[2001:db8::2]:0").ip(), addr("192.0.2.2:0").ip()]);
    })
    .await;
    s.until_up(SECOND).await;
    s
}

async fn failed_over(s: &mut Scene, name: &str, code: Code) -> Duration {
    let start = s.now();
    s.until(5 * MINUTE, |s| s.state == State::Up && s.hub.as_deref() == Some("hub1")).await;
    let took = s.now().since(start);
    assert!(took < LIMIT, "{name}: {took:?} {:#?}", s.status().history);
    let status = s.status();
    let lost = status.history.iter().rev().find(|t| t.from == State::Up).map(|t| (t.code, t.hub.as_str()));
    assert_eq!(lost, Some((code, "hub0")), "{name}");
    took
}

#[tokio::test(start_paused = true)]
async fn every_cause_is_left_within_a_minute() {
    for (name, cause, code) in CAUSES {
        for (age, busy) in [(5, false), (10 * 60, false), (10 * 60 + 17, true)] {
            let mut s = two_hubs().await;
            s.pass(Duration::from_secs(age)).await;
            cause(&s.world);
            if busy {
                s.chatter();
            }
            let took = failed_over(&mut s, name, *code).await;
            println!("{name}, tunnel {age} s old{}: {took:.1?}", if busy { ", busy" } else { "" });
        }
    }
}

/// Router advertisements, other links, and an uplink that really flaps.
#[tokio::test(start_paused = true)]
async fn events_do_not_delay_failover() {
    for (period, flaps) in [(1, false), (65, false), (20, true), (65, true)] {
        let mut s = two_hubs().await;
        s.pass(10 * MINUTE).await;
        s.world.power(0, false);
        let world = s.world.clone();
        let events = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(period)).await;
                if flaps {
                    world.carrier(false);
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    world.carrier(true);
                } else {
                    world.event();
                }
            }
        });
        let took = failed_over(&mut s, "events", Code::Silent).await;
        println!("an event every {period} s{}: {took:.1?}", if flaps { " with the carrier" } else { "" });
        events.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn lost_second_hub_is_left_for_the_first() {
    let mut s = two_hubs().await;
    s.world.state().hubs[0].answers_echo = false;
    failed_over(&mut s, "echo dropped", Code::NoEcho).await;
    s.pass(10 * MINUTE).await;
    assert_eq!(s.status().hub.as_deref(), Some("hub1"), "WireGuard of hub0 is no reason to go back");
    s.world.state().hubs[0].answers_echo = true;
    s.world.state().hubs[1].answers_echo = false;
    let took = s.until(2 * MINUTE, |s| s.state == State::Up && s.hub.as_deref() == Some("hub0")).await;
    assert!(took < LIMIT, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn idle_day_with_two_hubs_uses_less_than_a_megabyte() {
    let mut s = Scene::start(2, "").await;
    s.until_up(SECOND).await;
    let before = s.world.state().bytes;
    s.pass(24 * 60 * MINUTE).await;
    let day = s.world.state().bytes - before;
    println!("idle day with two hubs over IPv4: {day} bytes");
    assert!((600_000..1_000_000).contains(&day), "{day} bytes");
}

#[tokio::test(start_paused = true)]
async fn refreshed_lifetimes_cost_no_echo() {
    let mut s = Scene::start(1, "").await;
    s.until_up(SECOND).await;
    s.pass(MINUTE).await;
    let before = s.world.state().echoes;
    for _ in 0..3600 {
        s.world.event();
        s.pass(SECOND).await;
    }
    let echoes = s.world.state().echoes - before;
    assert!(echoes <= 61, "{echoes} echoes in an hour");
}

/// A hub whose WireGuard lives and whose inside is dead, and no other hub.
#[tokio::test(start_paused = true)]
async fn echo_never_answered_costs_less_than_a_megabyte_a_day() {
    let mut s = Scene::start(1, "").await;
    s.until_up(SECOND).await;
    s.pass(10 * MINUTE).await;
    s.world.state().hubs[0].answers_echo = false;
    let noticed = s.until(2 * MINUTE, |s| s.state != State::Up).await;
    assert!(noticed <= 80 * SECOND, "{noticed:?}");
    s.pass(60 * MINUTE).await;
    assert_eq!(s.status().fault.unwrap().code, Code::NoEcho);
    let sent = |s: &Scene| {
        let w = s.world.state();
        (w.bytes, w.echoes)
    };
    let before = sent(&s);
    s.pass(24 * 60 * MINUTE).await;
    let (bytes, echoes) = (sent(&s).0 - before.0, sent(&s).1 - before.1);
    println!("a day without an echo reply: {echoes} echoes, {bytes} bytes");
    assert!(echoes < 4_500 && bytes < 1_000_000, "{echoes} echoes, {bytes} bytes");
    s.world.state().hubs[0].answers_echo = true;
    let back = s.until_up(3 * MINUTE).await;
    assert!(back <= 100 * SECOND, "one backoff: {back:?}");
}

/// The better hub is watched; its WireGuard lives and its inside is dead.
#[tokio::test(start_paused = true)]
async fn watching_a_hub_without_echo_costs_little() {
    let mut s = two_hubs().await;
    s.world.state().hubs[0].answers_echo = false;
    failed_over(&mut s, "echo dropped", Code::NoEcho).await;
    s.pass(60 * MINUTE).await;
    let before = s.world.state().bytes;
    s.pass(24 * 60 * MINUTE).await;
    let day = s.world.state().bytes - before;
    println!("a day at the second hub, the first without echo: {day} bytes");
    assert!(day < 1_250_000, "{day} bytes");
}

#[tokio::test(start_paused = true)]
async fn own_address_as_the_hubs_is_not_up() {
    let mut s = Scene::start_with(1, "", |w| w.state().hubs[0].answers_echo = false).await;
    let own = "10.8.200.2/24".parse().unwrap();
    s.pass(SECOND).await;
    assert!(s.world.state().links.values().all(|l| l.addresses.contains(&own)));
    // Another program, such as a redirecting firewall, makes the machine answer for the hub.
    s.world.state().links.values_mut().for_each(|l| _ = l.addresses.insert("10.8.0.1/32".parse().unwrap()));
    for _ in 0..600 {
        s.pass(SECOND).await;
        s.world.state().links.values_mut().for_each(|l| _ = l.addresses.insert("10.8.0.1/32".parse().unwrap()));
        assert_ne!(s.status().state, State::Up, "{:#?}", s.status().history);
    }
    assert_eq!(s.status().fault.unwrap().code, Code::EchoElsewhere);
}

#[tokio::test(start_paused = true)]
async fn missing_wan_is_not_blamed_on_the_hub() {
    type Change = fn(&World);
    let faults: [(Change, Change, Code); 3] = [
        (|w| w.carrier(false), |w| w.carrier(true), Code::NoCarrier),
        (|w| w.state().addressed = false, |w| w.state().addressed = true, Code::NoAddress),
        (|w| w.state().routed = false, |w| w.state().routed = true, Code::NoRoute),
    ];
    for (break_it, mend, code) in faults {
        for up_first in [true, false] {
            let mut s = Scene::start_with(1, "", |w| {
                if !up_first {
                    break_it(w)
                }
            })
            .await;
            if up_first {
                s.until_up(SECOND).await;
                break_it(&s.world);
                s.world.event();
            }
            s.pass(5 * MINUTE).await;
            let fault = s.status().fault.unwrap();
            assert_eq!(fault.code, code, "{fault:?}");
            assert!(!fault.detail.contains("key"), "{}", fault.detail);
            mend(&s.world);
            s.world.event();
            let back = s.until_up(MINUTE).await;
            assert!(back <= 8 * SECOND, "the network's return ends the backoff: {back:?}");
        }
    }
}

/// The process is not scheduled for an hour, as in suspend: the silence of that hour proves nothing.
#[tokio::test(start_paused = true)]
async fn resumed_machine_asks_before_it_gives_up() {
    let mut s = Scene::start(2, "").await;
    s.until_up(SECOND).await;
    s.pass(10 * MINUTE).await;
    s.suspend(Duration::from_secs(3600)).await;
    s.pass(2 * MINUTE).await;
    assert_eq!((s.status().state, s.status().sessions, s.status().hub.as_deref()), (State::Up, 1, Some("hub0")));
}
