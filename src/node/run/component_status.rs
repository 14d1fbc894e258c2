//! Tells the local endpoints and the service manager what the producers say, in their own words.
use crate::health::summarize;
use crate::reconciler::NetStatus;
use spoke_api::health::fold::{HealthVerdict, Moment, fold};
use spoke_api::health::summary::{Component, ComponentStatus, Components, Snapshot, Uplink};
use spoke_enroll::status::ControlStatus;
use spoke_enroll::wire::Outcome;
use spoke_model::clock::Anchor;
use spoke_model::time::{Boot, Wall};
use spoke_sys::clock::{Clock, SystemClock};
use spoke_sys::notify::Notify;
use spoke_update::notice::Notice;
use spoke_uplink::status::{State, UplinkStatus};
use std::convert::Infallible;
use tokio::sync::watch;

/// Passes the uplink's status on to the board for as long as the uplink lives.
pub(super) async fn uplink<C: Clock>(
    mut status: watch::Receiver<UplinkStatus>,
    components: watch::Sender<Components>,
    clock: C,
) -> Result<(), Infallible> {
    loop {
        let seen = summary(&status.borrow_and_update(), clock.now(), clock.wall());
        components.send_modify(|v| {
            let unchanged =
                v.uplink.as_ref().filter(|u| (u.connected, u.hub_answers) == (seen.connected, seen.hub_answers));
            let since = unchanged.map_or(seen.since, |u| u.since);
            v.uplink = Some(Uplink { since, ..seen });
        });
        if status.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// Passes on whether the control plane answers, as the part `control`, and what is wrong with its state, as `config`.
pub(super) async fn control<C: Clock>(
    mut status: watch::Receiver<ControlStatus>,
    components: watch::Sender<Components>,
    clock: C,
) -> Result<(), Infallible> {
    loop {
        let parts = {
            let (status, now) = (status.borrow_and_update(), clock.now());
            [(Component::Control, control_part(&status, now)), (Component::Config, config_part(&status, now))]
        };
        components.send_if_modified(|v| {
            let mut changed = false;
            for (name, part) in parts {
                let since = v.status.get(&name).filter(|p| p.healthy == part.healthy).map_or(part.since, |p| p.since);
                let part = ComponentStatus { since, ..part };
                changed |= v.status.insert(name, part.clone()).as_ref() != Some(&part);
            }
            changed
        });
        if status.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// Passes on whether the wall clock is believed.
pub(super) async fn clock(
    mut believed: watch::Receiver<Option<Anchor>>,
    components: watch::Sender<Components>,
) -> Result<(), Infallible> {
    loop {
        let trusted = believed.borrow_and_update().is_some();
        components.send_if_modified(|v| std::mem::replace(&mut v.clock_trusted, trusted) != trusted);
        if believed.changed().await.is_err() {
            return Ok(());
        }
    }
}

fn control_part(status: &ControlStatus, now: Boot) -> ComponentStatus {
    let detail = match (&status.outage, status.last_answer) {
        (Some(away), _) if !status.enrolled => Some(format!("not enrolled yet: {}", away.reason)),
        (Some(away), _) => Some(format!("the control plane is away, the last good state stays: {}", away.reason)),
        // An answer that was not understood is as good as none.
        (None, _) if status.outcome == Some(Outcome::Refused) => {
            Some(format!("its state was refused, the last good one stays: {}", status.reason.as_deref().unwrap_or("-")))
        }
        (None, None) => Some("the control plane was not reached since the start".to_owned()),
        (None, Some(_)) => None,
    };
    ComponentStatus { healthy: detail.is_none(), since: now, detail }
}

fn config_part(status: &ControlStatus, now: Boot) -> ComponentStatus {
    let taken_back = status.reason.as_ref().filter(|_| status.outcome == Some(Outcome::Reverted));
    let detail = match (&status.unsaved, taken_back) {
        (Some(why), _) => Some(format!("the state in force is not on disk: {why}")),
        (None, Some(why)) => Some(format!("the control plane's last state was taken back: {why}")),
        (None, None) => None,
    };
    ComponentStatus { healthy: detail.is_none(), since: now, detail }
}

fn summary(status: &UplinkStatus, now: Boot, wall: Wall) -> Uplink {
    let wall_at = |at: Boot| Wall(wall.secs().saturating_sub(now.since(at).as_secs()));
    Uplink {
        hub: status.hub.clone(),
        connected: status.state == State::Up,
        hub_answers: status.hub_answers,
        since: now,
        last_handshake: status.handshake_at,
        connected_at: status.connected_since.map(wall_at),
        attempts: status.attempts,
        backoff: status.backoff,
        last_error: status.fault.as_ref().or(status.last_fault.as_ref()).map(|f| f.detail.clone()),
    }
}

/// Keeps the line that `systemctl status` shows; it is sent only when it has changed.
pub(super) async fn line<N: Notify>(
    mut net: watch::Receiver<NetStatus>,
    mut components: watch::Receiver<Components>,
    mut notify: N,
) -> Result<(), Infallible> {
    let mut shown = String::new();
    loop {
        let line = {
            let (net, components) = (net.borrow_and_update(), components.borrow_and_update());
            words(&net, components.uplink.as_ref())
        };
        if line != shown {
            notify.status(&line);
            shown = line;
        }
        let changed = tokio::select! {
            net = net.changed() => net,
            components = components.changed() => components,
        };
        if changed.is_err() {
            return Ok(());
        }
    }
}

fn words(net: &NetStatus, uplink: Option<&Uplink>) -> String {
    let tunnel = uplink.map(|u| {
        let hub = u.hub.as_deref().unwrap_or("the hub");
        match (u.connected, &u.last_error) {
            (true, _) => format!("tunnel to {hub} is up; "),
            (false, Some(why)) => format!("no tunnel: {why}; "),
            (false, None) => format!("no tunnel to {hub} yet; "),
        }
    });
    let kernel = match net.conditions.first() {
        _ if net.passes == 0 => "no pass over the network was completed yet".to_owned(),
        Some(t) => format!("out of sync: {}", t.detail),
        None if net.clean => format!("kernel in sync, {} interfaces", net.desired.links.len()),
        None => "out of sync".to_owned(),
    };
    // One line is all it may be.
    (tunnel.unwrap_or_default() + &kernel).replace(['\n', '\r'], " ")
}

/// The uplink's part of `spoke status`.
pub(super) fn report(status: &UplinkStatus, now: Boot) -> serde_json::Value {
    let seconds = |at: Option<Boot>| at.map(|at| now.since(at).as_secs());
    serde_json::json!({
        "state": status.state,
        "hub": status.hub,
        "endpoint": status.endpoint,
        "connected_seconds": seconds(status.connected_since),
        "hub_answers": status.hub_answers,
        "handshake_age": seconds(status.handshake_at),
        "rtt_ms": status.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
        "attempts": status.attempts,
        "sessions": status.sessions,
        "next_attempt_seconds": status.next_attempt.map(|at| at.since(now).as_secs()),
        "last_error": status.fault.as_ref().map(|f| f.detail.clone()),
        "rungs": status.rungs,
        "standby": status.standby,
        "history": status.history.iter().rev().take(10).map(|t| serde_json::json!({
            "seconds_ago": now.since(t.at).as_secs(), "from": t.from, "to": t.to, "hub": t.hub, "code": t.code, "rung": t.rung,
        })).collect::<Vec<_>>(),
    })
}

/// The node's health as the control plane is told: whether it is well, apart from the control plane itself, and why not.
pub(super) fn health(
    net: &watch::Receiver<NetStatus>,
    components: &watch::Receiver<Components>,
    update: &watch::Receiver<Option<Notice>>,
    started: Boot,
) -> (bool, serde_json::Value) {
    let clock = SystemClock;
    let mut components = components.borrow().clone();
    // What it knows already.
    components.status.retain(|c, _| !matches!(c, Component::Control | Component::Config));
    let at = Moment { now: clock.now(), wall: clock.wall(), trusted: components.clock_trusted, started };
    let health = fold(&Snapshot { net: summarize(&net.borrow(), at.now), components }, &at);
    let reasons: Vec<_> =
        health.reasons.iter().map(|r| serde_json::json!({"code": r.code, "detail": r.detail})).collect();
    let said = serde_json::json!({
        "status": health.status,
        "handshake_age": health.handshake_age,
        "uptime_seconds": health.uptime_seconds as u64,
        "active_peers": health.peer_registry.active_peers,
        "total_peers": health.peer_registry.total_peers,
        "reasons": reasons,
        "update": *update.borrow(),
    });
    (health.status == HealthVerdict::Healthy, said)
}

/// The control plane's part of `spoke status`.
pub(super) fn fleet(status: &ControlStatus, now: Boot) -> serde_json::Value {
    serde_json::json!({
        "enrolled": status.enrolled,
        "generation": status.generation,
        "outcome": status.outcome,
        "reason": status.reason,
        "heard_seconds_ago": status.last_answer.map(|at| now.since(at).as_secs()),
        "away": status.outage.as_ref().map(|a| serde_json::json!({"seconds": now.since(a.since).as_secs(), "why": a.reason})),
        "unsaved": status.unsaved,
        "key_change": status.key_change,
        "key_changed": match &status.key_changed {
            None => serde_json::Value::Null,
            Some(Ok(key)) => serde_json::json!({"public_key": key}),
            Some(Err(why)) => serde_json::json!({"error": why}),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use spoke_enroll::status::ControlOutage;
    use spoke_model::condition::{Code, Condition};

    /// What `/health` says of a control plane, as the one who judges a trial reads it.
    fn codes(status: &ControlStatus) -> Vec<Code> {
        let mut snapshot = Snapshot::default();
        snapshot.components.status.insert(Component::Control, control_part(status, Boot::from_secs(1)));
        snapshot.components.status.insert(Component::Config, config_part(status, Boot::from_secs(1)));
        let at = Moment { now: Boot::from_secs(9), wall: Wall(0), trusted: false, started: Boot::from_secs(0) };
        let health = fold(&snapshot, &at);
        let degraded = health.reasons.iter().any(|r| r.code == Code::ConfigDegraded);
        assert_eq!(health.components["config"].status == "degraded", degraded, "the part says what the reason says");
        health
            .reasons
            .iter()
            .map(|r| r.code)
            .filter(|c| matches!(c, Code::ControlAway | Code::ConfigDegraded))
            .collect()
    }

    fn away(why: &str) -> ControlStatus {
        let outage = Some(ControlOutage { since: Boot::default(), reason: why.into() });
        ControlStatus { enrolled: true, last_answer: Some(Boot::default()), outage, ..ControlStatus::default() }
    }

    #[test]
    fn a_control_plane_that_was_not_heard_yet_is_away() {
        assert_eq!(codes(&ControlStatus::default()), [Code::ControlAway]);
        assert_eq!(codes(&away("x")), [Code::ControlAway]);
        let heard = ControlStatus { outage: None, ..away("x") };
        assert!(codes(&heard).is_empty());
        let bad = |outcome| ControlStatus { outcome: Some(outcome), reason: Some("x".into()), ..heard.clone() };
        assert_eq!(codes(&bad(Outcome::Refused)), [Code::ControlAway]);
        assert_eq!(codes(&bad(Outcome::Reverted)), [Code::ConfigDegraded]);
    }

    #[tokio::test(start_paused = true)]
    async fn since_is_the_moment_it_went_not_the_moment_its_reason_changed() {
        let (status, seen) = watch::channel(ControlStatus { outage: None, ..away("") });
        let (components, mut told) = watch::channel(Components::default());
        let clock = spoke_sys::sim::clock::SimClock::new(Wall(0));
        let task = tokio::spawn(control(seen, components, clock.clone()));
        told.changed().await.unwrap();
        status.send_replace(away("a"));
        told.changed().await.unwrap();
        let went = told.borrow_and_update().status[&Component::Control].since;
        tokio::time::sleep(std::time::Duration::from_secs(60)).await;
        status.send_replace(away("b"));
        told.changed().await.unwrap();
        let part = told.borrow_and_update().status[&Component::Control].clone();
        assert!(part.since == went && part.detail.unwrap().ends_with(": b"));
        drop(status);
        task.await.unwrap().unwrap();
    }

    #[test]
    fn the_line_says_the_worst_of_tunnel_and_kernel() {
        let mut net = NetStatus::default();
        assert_eq!(words(&net, None), "no pass over the network was completed yet");
        (net.passes, net.clean) = (1, true);
        let mut uplink = Uplink { hub: Some("hub-a".into()), connected: true, ..Uplink::default() };
        assert_eq!(words(&net, Some(&uplink)), "tunnel to hub-a is up; kernel in sync, 0 interfaces");
        (uplink.connected, uplink.last_error) = (false, Some("hub hub-a: no\nhandshake".into()));
        net.conditions = vec![Condition::new(Code::NameTaken, Boot::default(), "wg0 is taken")];
        assert_eq!(words(&net, Some(&uplink)), "no tunnel: hub hub-a: no handshake; out of sync: wg0 is taken");
    }
}
