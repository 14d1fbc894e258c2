//! Every view of one snapshot says the same: `/health`, `/ready`, `/stats`, `/metrics`, the readiness of an update.
use super::fold::{Health, HealthVerdict, Moment, fold, readiness, ready, strictly_ready};
use super::metrics::{Scrape, metrics};
use super::stats::stats;
use super::summary::{Component, ComponentStatus, Components, Link, Net, Since, Snapshot, Uplink};
use proptest::prelude::*;
use serde_json::json;
use spoke_config::node::Role;
use spoke_model::condition::{Code, Condition};
use spoke_model::time::{Boot, Wall};
use std::collections::{BTreeMap, BTreeSet};

const NOW: u64 = 10_000;
const STARTED: u64 = 100;

fn at(trusted: bool) -> Moment {
    Moment { now: Boot::from_secs(NOW), wall: Wall(1_700_000_000), trusted, started: Boot::from_secs(STARTED) }
}

fn moment() -> impl Strategy<Value = Boot> {
    (STARTED..NOW).prop_map(Boot::from_secs)
}

/// Conditions of the kind the reconciler has, which no other part of a snapshot makes.
fn condition() -> impl Strategy<Value = Condition> {
    let codes = vec![
        Code::ApplyFailed,
        Code::DesiredInvalid,
        Code::Ipv6Disabled,
        Code::RouteConflict,
        Code::NetworkOverlap,
        Code::PortInUse,
        Code::KeyUnreadable,
        Code::TunnelBypassed,
        Code::NameTaken,
        Code::Contested,
    ];
    (proptest::sample::select(codes), moment(), "[a-z\"\\\\\n ]{1,20}")
        .prop_map(|(code, since, detail)| Condition::new(code, since, detail))
}

fn link(name: usize) -> impl Strategy<Value = Link> {
    let counts = (0..50usize, 0..50usize, 0..50usize);
    (any::<bool>(), counts, 0..1u64 << 50, 0..1u64 << 50, proptest::option::of(moment())).prop_map(
        move |(up, (wanted_peers, peers, active), rx, tx, last_handshake)| Link {
            name: format!("wg{name}"),
            up,
            wanted_peers,
            peers,
            active_peers: active.min(peers),
            rx,
            tx,
            last_handshake,
        },
    )
}

fn net() -> impl Strategy<Value = Net> {
    let links = (0..3usize).prop_flat_map(|n| (0..n).map(link).collect::<Vec<_>>());
    let counters = (0..3u64, 0..1000u64, 0..1000u64, 0..1000u64);
    (counters, any::<bool>(), proptest::collection::vec(condition(), 0..3), links, moment()).prop_map(
        |((passes, changes, repairs, failures), clean, conditions, links, at)| Net {
            passes,
            at,
            observed_at: at,
            clean,
            changes,
            repairs,
            failures,
            conditions,
            links,
            since: Since { clean: at, up: at, complete: at },
            ..Net::default()
        },
    )
}

fn uplink() -> impl Strategy<Value = Uplink> {
    (
        any::<bool>(),
        any::<bool>(),
        moment(),
        proptest::option::of(moment()),
        0..1000u64,
        proptest::option::of("[a-z ]{1,9}"),
    )
        .prop_map(|(connected, answers, since, last_handshake, attempts, last_error)| Uplink {
            hub: Some("hub-a".into()),
            connected,
            hub_answers: connected && answers,
            since,
            last_handshake,
            connected_since: connected.then_some(since),
            attempts,
            last_error,
            ..Uplink::default()
        })
}

fn components() -> impl Strategy<Value = Components> {
    let all = vec![
        Component::AccessControl,
        Component::Config,
        Component::Contract,
        Component::Control,
        Component::BootPartition,
        Component::Storage,
    ];
    let control = vec![Code::ControlAway, Code::Removed, Code::TokenRefused, Code::ApprovalPending, Code::Disabled];
    let status = proptest::collection::btree_map(
        proptest::sample::select(all),
        (any::<bool>(), moment()).prop_map(|(healthy, since)| ComponentStatus { healthy, since, detail: None }),
        0..6,
    );
    let unprovisioned = proptest::option::weighted(0.1, "[a-z]{1,9}");
    (proptest::option::of(uplink()), status, proptest::sample::select(control), unprovisioned).prop_map(
        |(uplink, status, control_code, unprovisioned)| Components {
            uplink,
            status,
            control_code,
            unprovisioned,
            ..Components::default()
        },
    )
}

/// The samples of a text by series.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let split = |l: &str| l.rsplit_once(' ').map(|(series, value)| (series.to_owned(), value.parse().unwrap()));
    let all: Vec<_> = text.lines().filter(|l| !l.starts_with('#')).filter_map(split).collect();
    let by_series: BTreeMap<_, _> = all.iter().cloned().collect();
    assert_eq!(by_series.len(), all.len(), "a series twice");
    by_series
}

/// The label values of a family whose sample is 1.
fn holding<'a>(samples: &'a BTreeMap<String, f64>, family: &str) -> BTreeSet<&'a str> {
    let prefix = format!("{family}{{");
    let of = samples.iter().filter(|(series, value)| **value == 1.0 && series.starts_with(&prefix));
    of.filter_map(|(series, _)| series.split('"').nth(1)).collect()
}

fn reasons_are_told_with_their_remedy(health: &Health) {
    for reason in &health.reasons {
        assert!(!reason.detail.is_empty() && !reason.code.remedy().is_empty(), "{reason:?}");
        assert!(reason.seconds <= NOW - STARTED, "older than the process: {reason:?}");
        assert_eq!(reason.since.is_some(), health.clock_trusted);
    }
    let worse = health.status != HealthVerdict::Healthy;
    assert_eq!(worse, !health.reasons.is_empty(), "a verdict without a reason, or the reverse: {health:?}");
}

proptest! {
    #[test]
    fn views_of_one_snapshot_agree(net in net(), components in components(), trusted: bool) {
        let (s, at) = (Snapshot { net, components }, at(trusted));
        let health = fold(&s, &at);
        reasons_are_told_with_their_remedy(&health);

        let scrape = Scrape { snapshot: &s, at, role: Role::Node, process: None, agent: None, peers: None };
        let text = metrics(&scrape);
        let samples = samples(&text);
        prop_assert_eq!(holding(&samples, "spoke_health"), BTreeSet::from([health.status.as_str()]));
        let codes: BTreeSet<_> = health.reasons.iter().map(|r| r.code.as_str()).collect();
        prop_assert_eq!(holding(&samples, "spoke_health_reason"), codes);
        let sum = |family: &str| {
            let prefix = format!("{family}{{");
            samples.iter().filter(|(series, _)| series.starts_with(&prefix)).map(|(_, value)| value).sum::<f64>()
        };
        prop_assert_eq!(sum("wireguard_peers"), health.peer_registry.total_peers as f64);
        prop_assert_eq!(sum("wireguard_peers_active"), health.peer_registry.active_peers as f64);
        let age = samples.get("spoke_uplink_handshake_age_seconds").map(|age| *age as u64);
        if s.components.uplink.is_some() {
            prop_assert_eq!(samples["spoke_uplink_connected"] == 1.0, health.connected);
            prop_assert_eq!(samples["spoke_uplink_hub_answers"] == 1.0, health.can_ping_hub);
            prop_assert_eq!(age, health.handshake_age);
        }
        prop_assert_eq!(samples["spoke_reconcile_failures_total"] as u64, health.bridge.errors);

        let stats = stats(&s, &at, &json!({}));
        let in_health = serde_json::to_value(&health).unwrap();
        for key in ["status", "startTime", "errors", "lastError"] {
            prop_assert_eq!(&stats["bridge"][key], &in_health["bridge"][key], "{}", key);
        }
        for (one, other) in [("activePeers", "activePeers"), ("totalPeers", "totalPeers")] {
            prop_assert_eq!(&stats["registry"][one], &in_health["peerRegistry"][other]);
        }
        prop_assert_eq!(&stats["timestamp"], &in_health["timestamp"]);

        let invalid = s.net.conditions.iter().any(|c| c.code == Code::DesiredInvalid);
        prop_assert_eq!(ready(&s, &at).is_ok(), health.connected && s.net.passes > 0 && !invalid);
        prop_assert_eq!(strictly_ready(&s, &at).is_ok(), ready(&s, &at).is_ok() && health.can_ping_hub);
        if health.status == HealthVerdict::Healthy {
            prop_assert!(strictly_ready(&s, &at).is_ok() && readiness(&s, &at).connected);
        }
    }

    /// What only grows in a snapshot only grows in the metrics.
    #[test]
    fn counters_are_those_of_the_snapshot(net in net(), components in components()) {
        let s = Snapshot { net, components };
        let text = metrics(&Scrape { snapshot: &s, at: at(true), role: Role::Hub, process: None, agent: None, peers: None });
        let samples = samples(&text);
        for link in &s.net.links {
            let of = |family: &str| samples[&format!("{family}{{interface=\"{}\"}}", link.name)] as u64;
            prop_assert_eq!(of("wireguard_receive_bytes_total"), link.rx);
            prop_assert_eq!(of("wireguard_transmit_bytes_total"), link.tx);
        }
        prop_assert_eq!(samples["spoke_reconcile_passes_total"] as u64, s.net.passes);
        prop_assert_eq!(samples["spoke_reconcile_repairs_total"] as u64, s.net.repairs);
        for line in text.lines().filter_map(|l| l.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').unwrap();
            prop_assert_eq!(name.ends_with("_total"), kind == "counter", "{}", line);
        }
    }
}
