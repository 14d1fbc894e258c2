//! Verdicts for each condition.
use super::super::summary::{Component, Components, Link, Net, Uplink};
use super::*;
use proptest::prelude::*;

fn at(now: u64) -> Moment {
    Moment { now: Boot::from_secs(now), wall: Wall(1_700_000_000 + now), trusted: true, started: Boot::from_secs(10) }
}

fn healthy() -> Snapshot {
    let links = vec![Link { name: "wg0".into(), up: true, peers: 1, active_peers: 1, ..Link::default() }];
    let net = Net { passes: 3, at: Boot::from_secs(1000), clean: true, links, ..Net::default() };
    let uplink = Uplink {
        hub: Some("hub-a".into()),
        connected: true,
        hub_answers: true,
        since: Boot::from_secs(20),
        last_handshake: Some(Boot::from_secs(900)),
        ..Uplink::default()
    };
    Snapshot { net, components: Components { uplink: Some(uplink), clock_trusted: true, ..Components::default() } }
}

fn uplink(s: &mut Snapshot) -> &mut Uplink {
    s.components.uplink.as_mut().unwrap()
}

#[test]
fn verdict_follows_from_its_conditions() {
    let s = healthy();
    let h = fold(&s, &at(1000));
    assert_eq!((h.status, h.reasons.len(), h.handshake_age), (HealthVerdict::Healthy, 0, Some(100)));

    let mut s = healthy();
    uplink(&mut s).last_handshake = Some(Boot::from_secs(800));
    let h = fold(&s, &at(1000));
    assert_eq!(
        (h.status, h.reasons[0].code, h.reasons[0].seconds),
        (HealthVerdict::Degraded, Code::HandshakeStale, 20)
    );
    assert_eq!(h.reasons[0].since.as_deref(), Some(Wall(1_700_000_980).to_string().as_str()));

    let mut s = healthy();
    uplink(&mut s).hub_answers = false;
    let h = fold(&s, &at(1000));
    assert_eq!((h.status, h.reasons[0].code), (HealthVerdict::Unhealthy, Code::HubSilent));

    let mut s = healthy();
    uplink(&mut s).connected = false;
    let h = fold(&s, &at(1000));
    assert_eq!((h.status, h.reasons[0].code, h.can_ping_hub), (HealthVerdict::Disconnected, Code::NoTunnel, false));

    let mut s = healthy();
    let part =
        ComponentStatus { healthy: false, since: Boot::from_secs(500), detail: Some("no endpoint answers".into()) };
    s.components.status.insert(Component::Contract, part);
    let h = fold(&s, &at(1000));
    assert_eq!((h.status, h.reasons[0].code, h.reasons[0].seconds), (HealthVerdict::Degraded, Code::ContractAway, 500));
    assert_eq!(h.components["contract"].status, "degraded");
}

#[test]
fn components_of_every_node_are_reported() {
    let mut s = healthy();
    s.net.links[0].wanted_peers = 3;
    s.net.conditions = vec![Condition::new(Code::DesiredInvalid, Boot::from_secs(990), "two claim 10.9.0.0/24")];
    let h = fold(&s, &at(1000));
    let component = |part: &str| (h.components[part].status, h.components[part].detail.clone().unwrap_or_default());
    assert_eq!(component("config"), ("degraded", "two claim 10.9.0.0/24".to_owned()));
    assert_eq!(component("registry"), ("degraded", "2 desired peers are not in the kernel".to_owned()));
    let h = fold(&healthy(), &at(1000));
    for part in ["network", "uplink", "config", "registry"] {
        assert_eq!(h.components[part].status, "healthy", "{part}");
    }
}

#[test]
fn untrusted_clock_gives_no_since() {
    let mut s = healthy();
    uplink(&mut s).connected = false;
    let h = fold(&s, &Moment { trusted: false, wall: Wall(5), ..at(1000) });
    assert_eq!((h.reasons[0].since.clone(), h.reasons[0].seconds, h.bridge.start_time), (None, 980, None));
}

#[test]
fn documented_keys_are_present() {
    let text = serde_json::to_value(fold(&healthy(), &at(1000))).unwrap();
    for key in [
        "status",
        "connected",
        "can_ping_hub",
        "handshake_age",
        "uptime_seconds",
        "node_id",
        "reasons",
        "bridge",
        "components",
        "peerRegistry",
        "timestamp",
    ] {
        assert!(text.get(key).is_some(), "{key}");
    }
    for key in ["status", "startTime", "uptime", "errors", "lastError"] {
        assert!(text["bridge"].get(key).is_some(), "bridge.{key}");
    }
    assert_eq!(text["bridge"]["uptime"], 990_000);
    assert_eq!(text["peerRegistry"], serde_json::json!({"activePeers": 1, "totalPeers": 1}));
}

#[test]
fn ready_needs_a_valid_state_and_a_tunnel() {
    assert_eq!(ready(&healthy(), &at(1000)), Ok(()));
    assert!(ready(&Snapshot::default(), &at(1000)).is_err());
    let mut s = healthy();
    s.net.clean = false;
    s.net.conditions.push(Condition::new(Code::RouteConflict, Boot::from_secs(1), "x"));
    assert_eq!(ready(&s, &at(1000)), Ok(()), "a refused step makes it degraded");
    assert_eq!(fold(&s, &at(1000)).status, HealthVerdict::Degraded);
    s.net.conditions.push(Condition::new(Code::DesiredInvalid, Boot::from_secs(1), "x"));
    assert!(ready(&s, &at(1000)).unwrap_err().to_string().starts_with("desired_invalid"));
    let mut s = healthy();
    uplink(&mut s).connected = false;
    assert!(ready(&s, &at(1000)).unwrap_err().to_string().starts_with("no_tunnel"));
    // A hub has no uplink: its interfaces count as its tunnel.
    let mut s = healthy();
    s.components.uplink = None;
    assert_eq!(ready(&s, &at(1000)), Ok(()));
    s.net.links[0].up = false;
    assert!(ready(&s, &at(1000)).unwrap_err().to_string().contains("wg0"));
}

proptest! {
    #[test]
    fn verdicts_and_reasons_agree(
        passes in 0u64..2, clean: bool, connected: bool, answers: bool, has_uplink: bool, up: bool,
        handshake in proptest::option::of(0u64..2000), part in proptest::option::of(any::<bool>()), now in 0u64..3000,
    ) {
        let mut s = healthy();
        (s.net.passes, s.net.clean, s.net.links[0].up) = (passes, clean, up);
        if !clean {
            s.net.conditions.push(Condition::new(Code::ApplyFailed, Boot::from_secs(1), "x"));
        }
        let u = uplink(&mut s);
        (u.connected, u.hub_answers, u.last_handshake) = (connected, answers, handshake.map(Boot::from_secs));
        if !has_uplink {
            s.components.uplink = None;
        }
        if let Some(healthy) = part {
            s.components.status.insert(Component::Control, ComponentStatus { healthy, since: Boot::from_secs(2), detail: None });
        }
        let h = fold(&s, &at(now));
        prop_assert_eq!(h.status == HealthVerdict::Healthy, h.reasons.is_empty());
        prop_assert_eq!(h.status == HealthVerdict::Disconnected, !h.connected);
        prop_assert!(!h.can_ping_hub || h.connected);
        // Ready implies healthy or degraded.
        if ready(&s, &at(now)).is_ok() {
            prop_assert!(h.connected && passes > 0);
        }
    }
}

#[test]
fn stage_follows_settings_and_tunnel() {
    let mut s = healthy();
    assert_eq!(fold(&s, &at(1000)).stage, Stage::Connected);
    uplink(&mut s).hub_answers = false;
    assert_eq!(fold(&s, &at(1000)).stage, Stage::Provisioned);
    let s = Snapshot {
        components: Components { unprovisioned: Some("a file".into()), ..Components::default() },
        ..healthy()
    };
    let h = fold(&s, &at(1000));
    assert_eq!(
        (h.stage, h.reasons[0].code, h.reasons[0].detail.as_str()),
        (Stage::Preconfigured, Code::NotProvisioned, "a file")
    );
    let text = serde_json::to_string(&h).unwrap();
    // The image's console reads the first two keys by position.
    let head = format!(r#"{{"status":"{}","stage":"preconfigured","#, h.status.as_str());
    assert!(text.starts_with(&head), "{text}");
}

#[test]
fn readiness_needs_hub_and_control_plane() {
    let at = at(1000);
    let ready = |connected, ready| Readiness { connected, ready, passes: true, clock_trusted: at.trusted };
    assert_eq!(readiness(&healthy(), &at), ready(true, true));
    let degraded = |component| {
        let mut s = healthy();
        let status = ComponentStatus { healthy: false, since: Boot::from_secs(2), detail: None };
        s.components.status.insert(component, status);
        readiness(&s, &at)
    };
    for other in [Component::Contract, Component::AccessControl, Component::Config] {
        assert_eq!(degraded(other), ready(true, true), "{other:?}");
    }
    assert_eq!(degraded(Component::Control), ready(false, true));
    let mut s = healthy();
    uplink(&mut s).hub_answers = false;
    assert_eq!(readiness(&s, &at), ready(false, true));
    // A step that the kernel refuses does not keep an update from being committed; an invalid state does.
    let mut s = healthy();
    s.net.clean = false;
    s.net.conditions.push(Condition::new(Code::Ipv6Disabled, Boot::from_secs(1), "x"));
    assert_eq!(readiness(&s, &at), ready(true, true));
    s.net.conditions.push(Condition::new(Code::DesiredInvalid, Boot::from_secs(1), "x"));
    assert_eq!(readiness(&s, &at), ready(true, false));
}

#[test]
fn strict_readiness_needs_an_answering_hub() {
    let mut s = healthy();
    assert!(ready(&s, &at(1000)).is_ok() && strictly_ready(&s, &at(1000)).is_ok());
    uplink(&mut s).hub_answers = false;
    assert!(ready(&s, &at(1000)).is_ok(), "the tunnel is up");
    assert!(strictly_ready(&s, &at(1000)).unwrap_err().to_string().starts_with("hub_silent: "));
}

#[test]
fn cause_comes_first_and_takes_the_place_of_what_follows() {
    let mut s = healthy();
    s.components.uplink = None;
    s.net.links[0].up = false;
    s.net.since.up = Boot::from_secs(700);
    let h = fold(&s, &at(1000));
    assert_eq!((h.reasons[0].code, h.reasons[0].seconds), (Code::InterfaceDown, 300), "not the age of the last pass");
    s.net.conditions = vec![Condition::new(Code::PortInUse, Boot::from_secs(700), "x").about("wg0")];
    let codes: Vec<_> = fold(&s, &at(1000)).reasons.iter().map(|r| r.code).collect();
    assert_eq!(codes, [Code::PortInUse]);
}
