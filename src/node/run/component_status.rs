//! Passes the status of tasks to the local endpoints, the control plane and the service manager. Waits for their changes.
use crate::health::summarize;
use crate::reconciler::NetStatus;
use spoke_api::health::fold::{HealthVerdict, Moment, fold};
use spoke_api::health::summary::{Component, ComponentStatus, Components, Snapshot, Uplink};
use spoke_enroll::status::{ControlStatus, KeyChange, OutageCause};
use spoke_enroll::wire::Outcome;
use spoke_model::clock::Anchor;
use spoke_model::condition::Code;
use spoke_model::time::{Boot, Wall};
use spoke_sys::clock::{Clock, SystemClock};
use spoke_sys::notify::Notify;
use spoke_update::notice::Notice;
use spoke_uplink::status::{State, UplinkStatus};
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::watch;

/// Passes on the uplink's status.
pub(super) async fn uplink<C: Clock>(
    mut status: watch::Receiver<UplinkStatus>,
    components: watch::Sender<Components>,
    clock: C,
) -> Result<(), Infallible> {
    loop {
        let session = Arc::new(status.borrow_and_update().clone());
        let seen = summary(&session, clock.now(), clock.wall());
        components.send_modify(|v| {
            v.session = Some(session);
            let unchanged = v
                .uplink
                .as_ref()
                .filter(|u| u.connected == seen.connected && (!u.connected || u.hub_answers == seen.hub_answers));
            let since = unchanged.map_or(seen.since, |u| u.since);
            v.uplink = Some(Uplink { since, ..seen });
        });
        if status.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// Passes on the control session's status: reachability as `control`, its state as `config`.
pub(super) async fn control<C: Clock>(
    mut status: watch::Receiver<ControlStatus>,
    components: watch::Sender<Components>,
    clock: C,
) -> Result<(), Infallible> {
    loop {
        let session = Arc::new(status.borrow_and_update().clone());
        let (now, code) = (clock.now(), control_code(&session));
        let parts =
            [(Component::Control, control_status(&session, now)), (Component::Config, config_status(&session, now))];
        components.send_if_modified(|v| {
            let mut changed = std::mem::replace(&mut v.control_code, code) != code;
            for (name, part) in parts {
                let new_code = name == Component::Control && changed;
                let known = v.status.get(&name).filter(|p| p.healthy == part.healthy && !new_code);
                let since = known.map_or(part.since, |p| p.since);
                let part = ComponentStatus { since, ..part };
                changed |= v.status.insert(name, part.clone()).as_ref() != Some(&part);
            }
            changed |= v.control.as_ref() != Some(&session);
            v.control = Some(session);
            changed
        });
        if status.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// Passes on whether the wall clock is trusted.
pub(super) async fn clock(
    mut anchor: watch::Receiver<Option<Anchor>>,
    components: watch::Sender<Components>,
) -> Result<(), Infallible> {
    loop {
        let trusted = anchor.borrow_and_update().is_some();
        components.send_if_modified(|v| std::mem::replace(&mut v.clock_trusted, trusted) != trusted);
        if anchor.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// The condition that an unhealthy control session is.
fn control_code(status: &ControlStatus) -> Code {
    match &status.outage {
        Some(outage) => outage.cause.code(),
        None if status.disabled && status.outcome != Some(Outcome::Refused) => Code::Disabled,
        None => Code::ControlAway,
    }
}

fn control_status(status: &ControlStatus, now: Boot) -> ComponentStatus {
    let detail = match (&status.outage, status.last_answer) {
        _ if status.removed => Some(
            "removed from the fleet: state and token are erased; enrol again with a token for this name (`spoke enrol --again --token FILE`)"
                .to_owned(),
        ),
        (Some(outage), _) if !status.enrolled => Some(format!("not enrolled yet: {}", outage.reason)),
        (Some(outage), _) if outage.cause == OutageCause::Removed => {
            Some(format!("{}; the last good state stays in force", outage.reason))
        }
        (Some(outage), _) => {
            Some(format!("control plane unreachable, the last good state stays in force: {}", outage.reason))
        }
        (None, _) if status.outcome == Some(Outcome::Refused) => Some(format!(
            "the control plane's state was refused, the last good one stays in force: {}",
            status.reason.as_deref().unwrap_or("-")
        )),
        (None, None) => Some("no answer of the control plane since the start".to_owned()),
        (None, Some(_)) if status.disabled => {
            Some("an operator has disabled this node: the hubs do not have it as a peer".to_owned())
        }
        (None, Some(_)) => None,
    };
    ComponentStatus { healthy: detail.is_none(), since: now, detail }
}

fn config_status(status: &ControlStatus, now: Boot) -> ComponentStatus {
    let reverted = status.reason.as_ref().filter(|_| status.outcome == Some(Outcome::Reverted));
    let detail = match (&status.unsaved, reverted) {
        (Some(why), _) => Some(format!("the state in force is not on disk: {why}")),
        (None, Some(why)) => Some(format!("the control plane's last state was reverted: {why}")),
        (None, None) => None,
    };
    ComponentStatus { healthy: detail.is_none(), since: now, detail }
}

fn summary(status: &UplinkStatus, now: Boot, wall: Wall) -> Uplink {
    let works = status.state == State::Up && status.hub_answers;
    let wall_at = |at: Boot| Wall(wall.secs().saturating_sub(now.since(at).as_secs()));
    Uplink {
        hub: status.hub.clone(),
        connected: status.state == State::Up,
        hub_answers: status.hub_answers,
        since: now,
        last_handshake: status.handshake_at,
        connected_at: status.connected_since.map(wall_at),
        connected_since: status.connected_since,
        attempts: status.attempts,
        backoff: status.backoff,
        // A fault that is over is history.
        last_error: status.fault.as_ref().or(status.last_fault.as_ref()).filter(|_| !works).map(|f| f.detail.clone()),
    }
}

/// Maintains the status line of `systemctl status`; sent on change only.
pub(super) async fn line<N: Notify>(
    mut net: watch::Receiver<NetStatus>,
    mut components: watch::Receiver<Components>,
    mut notify: N,
) -> Result<(), Infallible> {
    let mut shown = String::new();
    loop {
        let line = {
            let (net, components) = (net.borrow_and_update(), components.borrow_and_update());
            status_line(&net, components.uplink.as_ref())
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

fn status_line(net: &NetStatus, uplink: Option<&Uplink>) -> String {
    let tunnel = uplink.map(|u| {
        let hub = u.hub.as_deref().unwrap_or("the hub");
        match (u.connected, &u.last_error) {
            (true, _) => format!("tunnel to {hub} is up; "),
            (false, Some(why)) => format!("no tunnel: {why}; "),
            (false, None) => format!("no tunnel to {hub} yet; "),
        }
    });
    let kernel = match net.conditions.first() {
        _ if net.passes == 0 => "no reconcile pass was completed yet".to_owned(),
        Some(t) => format!("out of sync: {}", t.detail),
        None if net.clean => format!("kernel in sync, {} interfaces", net.desired.links.len()),
        None => "out of sync".to_owned(),
    };
    // A status line must not contain line ends.
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

/// The node's health as reported to the control plane, without what the control plane knows itself.
pub(super) fn health(
    net: &watch::Receiver<NetStatus>,
    components: &watch::Receiver<Components>,
    update: &watch::Receiver<Option<Notice>>,
    started: Boot,
) -> (bool, serde_json::Value) {
    let clock = SystemClock;
    let mut components = components.borrow().clone();
    components.status.retain(|c, _| !matches!(c, Component::Control | Component::Config));
    let at = Moment { now: clock.now(), wall: clock.wall(), trusted: components.clock_trusted, started };
    let health = fold(&Snapshot { net: summarize(&net.borrow(), at.now), components }, &at);
    let reasons: Vec<_> =
        health.reasons.iter().map(|r| serde_json::json!({"code": r.code, "detail": r.detail})).collect();
    let report = serde_json::json!({
        "status": health.status,
        "handshake_age": health.handshake_age,
        "uptime_seconds": health.uptime_seconds as u64,
        "active_peers": health.peer_registry.active_peers,
        "total_peers": health.peer_registry.total_peers,
        "reasons": reasons,
        "update": *update.borrow(),
    });
    (health.status == HealthVerdict::Healthy, report)
}

/// The control plane's part of `spoke status`.
pub(super) fn control_report(status: &ControlStatus, now: Boot) -> serde_json::Value {
    serde_json::json!({
        "enrolled": status.enrolled,
        "removed": status.removed,
        "generation": status.generation,
        "outcome": status.outcome,
        "reason": status.reason,
        "heard_seconds_ago": status.last_answer.map(|at| now.since(at).as_secs()),
        "away": status.outage.as_ref().map(|a| serde_json::json!({
            "seconds": now.since(a.since).as_secs(), "why": a.reason, "code": a.cause.code(),
        })),
        "disabled": status.disabled,
        "unsaved": status.unsaved,
        "key_change": status.key_change,
        "key_changed": match &status.key_changed {
            None => serde_json::Value::Null,
            Some(KeyChange::Changed(key)) => serde_json::json!({"public_key": key}),
            Some(KeyChange::Abandoned(reason)) => serde_json::json!({"error": reason}),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use spoke_enroll::status::ControlOutage;
    use spoke_enroll::wire::ProblemCode;
    use spoke_model::condition::Condition;

    /// The condition codes of a control session's status.
    fn codes(status: &ControlStatus) -> Vec<Code> {
        let mut snapshot = Snapshot::default();
        snapshot.components.control_code = control_code(status);
        snapshot.components.status.insert(Component::Control, control_status(status, Boot::from_secs(1)));
        snapshot.components.status.insert(Component::Config, config_status(status, Boot::from_secs(1)));
        let at = Moment { now: Boot::from_secs(9), wall: Wall(0), trusted: false, started: Boot::from_secs(0) };
        let health = fold(&snapshot, &at);
        let degraded = health.reasons.iter().any(|r| r.code == Code::ConfigDegraded);
        assert_eq!(health.components["config"].status == "degraded", degraded, "component and condition agree");
        health.reasons.iter().map(|r| r.code).filter(|c| !matches!(c, Code::Starting | Code::InterfaceDown)).collect()
    }

    fn unreachable(why: &str) -> ControlStatus {
        let outage = Some(ControlOutage { since: Boot::default(), reason: why.into(), cause: OutageCause::default() });
        ControlStatus { enrolled: true, last_answer: Some(Boot::default()), outage, ..ControlStatus::default() }
    }

    #[test]
    fn control_plane_without_answer_is_unreachable() {
        assert_eq!(codes(&ControlStatus::default()), [Code::ControlAway]);
        assert_eq!(codes(&unreachable("x")), [Code::ControlAway]);
        let answering = ControlStatus { outage: None, ..unreachable("x") };
        assert!(codes(&answering).is_empty());
        let bad = |outcome| ControlStatus { outcome: Some(outcome), reason: Some("x".into()), ..answering.clone() };
        assert_eq!(codes(&bad(Outcome::Refused)), [Code::ControlAway]);
        assert_eq!(codes(&bad(Outcome::Reverted)), [Code::ConfigDegraded]);
        let disabled = ControlStatus { disabled: true, ..answering.clone() };
        assert_eq!(codes(&disabled), [Code::Disabled]);
        for (problem, code) in [
            (ProblemCode::Revoked, Code::Removed),
            (ProblemCode::BadToken, Code::TokenRefused),
            (ProblemCode::Pending, Code::ApprovalPending),
            (ProblemCode::Unavailable, Code::ControlAway),
        ] {
            let outage = ControlOutage { cause: OutageCause::of(problem), ..unreachable("x").outage.unwrap() };
            assert_eq!(codes(&ControlStatus { outage: Some(outage), ..answering.clone() }), [code]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn since_stays_when_only_the_reason_changes() {
        let (status, seen) = watch::channel(ControlStatus { outage: None, ..unreachable("") });
        let (components, mut seen_components) = watch::channel(Components::default());
        let clock = spoke_sys::sim::clock::SimClock::new(Wall(0));
        let task = tokio::spawn(control(seen, components, clock.clone()));
        seen_components.changed().await.unwrap();
        status.send_replace(unreachable("a"));
        seen_components.changed().await.unwrap();
        let went = seen_components.borrow_and_update().status[&Component::Control].since;
        tokio::time::sleep(std::time::Duration::from_secs(60)).await;
        status.send_replace(unreachable("b"));
        seen_components.changed().await.unwrap();
        let part = seen_components.borrow_and_update().status[&Component::Control].clone();
        assert!(part.since == went && part.detail.unwrap().ends_with(": b"));
        drop(status);
        task.await.unwrap().unwrap();
    }

    #[test]
    fn error_that_is_over_is_not_reported() {
        let (since, code) = (Boot::default(), spoke_uplink::status::Code::NoHandshake);
        let fault = spoke_uplink::status::UplinkFault { since, code, detail: "no handshake".into() };
        let status = UplinkStatus { last_fault: Some(fault), ..UplinkStatus::default() };
        let of = |status: &UplinkStatus| summary(status, Boot::from_secs(9), Wall(0)).last_error;
        assert!(of(&status).is_some(), "while there is no session");
        let up = UplinkStatus { state: State::Up, hub_answers: true, ..status };
        assert_eq!(of(&up), None);
    }

    #[test]
    fn status_line_names_tunnel_and_kernel_problems() {
        let mut net = NetStatus::default();
        assert_eq!(status_line(&net, None), "no reconcile pass was completed yet");
        (net.passes, net.clean) = (1, true);
        let mut uplink = Uplink { hub: Some("hub-a".into()), connected: true, ..Uplink::default() };
        assert_eq!(status_line(&net, Some(&uplink)), "tunnel to hub-a is up; kernel in sync, 0 interfaces");
        (uplink.connected, uplink.last_error) = (false, Some("hub hub-a: no\nhandshake".into()));
        net.conditions = vec![Condition::new(Code::NameTaken, Boot::default(), "wg0 is taken")];
        assert_eq!(status_line(&net, Some(&uplink)), "no tunnel: hub hub-a: no handshake; out of sync: wg0 is taken");
    }
}
