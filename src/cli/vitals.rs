//! Tells the local endpoints and the service manager what the producers say, in their own words.
use crate::clock::Anchor;
use crate::enroll::task::Reach;
use crate::health::summary::{Part, Uplink, Vitals};
use crate::net::task::Status as Net;
use crate::sys::clock::Clock;
use crate::sys::notify::Notify;
use crate::time::{Boot, Wall};
use crate::uplink::status::{State, Status};
use std::convert::Infallible;
use tokio::sync::watch;

/// Passes the uplink's status on to the board for as long as the uplink lives.
pub(super) async fn uplink<C: Clock>(
    mut status: watch::Receiver<Status>,
    vitals: watch::Sender<Vitals>,
    clock: C,
) -> Result<(), Infallible> {
    loop {
        let seen = summary(&status.borrow_and_update(), clock.now(), clock.wall());
        vitals.send_modify(|v| {
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

/// Passes on whether the control plane answers, as the part `control`.
pub(super) async fn control<C: Clock>(
    mut reach: watch::Receiver<Reach>,
    vitals: watch::Sender<Vitals>,
    clock: C,
) -> Result<(), Infallible> {
    loop {
        let part = control_part(&reach.borrow_and_update(), clock.now());
        vitals.send_modify(|v| {
            let since = v.parts.get("control").filter(|p| p.healthy == part.healthy).map_or(part.since, |p| p.since);
            v.parts.insert("control", Part { since, ..part });
        });
        if reach.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// Passes on whether the wall clock is believed.
pub(super) async fn clock(
    mut believed: watch::Receiver<Option<Anchor>>,
    vitals: watch::Sender<Vitals>,
) -> Result<(), Infallible> {
    loop {
        let trusted = believed.borrow_and_update().is_some();
        vitals.send_if_modified(|v| std::mem::replace(&mut v.clock_trusted, trusted) != trusted);
        if believed.changed().await.is_err() {
            return Ok(());
        }
    }
}

fn control_part(reach: &Reach, now: Boot) -> Part {
    let detail = match reach {
        Reach::Reached => None,
        Reach::Unknown => Some("the control plane was not reached since the start".to_owned()),
        Reach::Away(why) => Some(format!("the control plane is away, the last good state stays: {why}")),
    };
    Part { healthy: detail.is_none(), since: now, detail }
}

fn summary(status: &Status, now: Boot, wall: Wall) -> Uplink {
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
    mut net: watch::Receiver<Net>,
    mut vitals: watch::Receiver<Vitals>,
    mut notify: N,
) -> Result<(), Infallible> {
    let mut shown = String::new();
    loop {
        let line = {
            let (net, vitals) = (net.borrow_and_update(), vitals.borrow_and_update());
            words(&net, vitals.uplink.as_ref())
        };
        if line != shown {
            notify.status(&line);
            shown = line;
        }
        let changed = tokio::select! {
            net = net.changed() => net,
            vitals = vitals.changed() => vitals,
        };
        if changed.is_err() {
            return Ok(());
        }
    }
}

fn words(net: &Net, uplink: Option<&Uplink>) -> String {
    let tunnel = uplink.map(|u| {
        let hub = u.hub.as_deref().unwrap_or("the hub");
        match (u.connected, &u.last_error) {
            (true, _) => format!("tunnel to {hub} is up; "),
            (false, Some(why)) => format!("no tunnel: {why}; "),
            (false, None) => format!("no tunnel to {hub} yet; "),
        }
    });
    let kernel = match net.troubles.first() {
        _ if net.passes == 0 => "no pass over the network was completed yet".to_owned(),
        Some(t) => format!("out of sync: {}", t.detail),
        None if net.clean => format!("kernel in sync, {} interfaces", net.desired.links.len()),
        None => "out of sync".to_owned(),
    };
    // One line is all it may be.
    (tunnel.unwrap_or_default() + &kernel).replace(['\n', '\r'], " ")
}

/// The uplink's part of `spoke status`.
pub(super) fn report(status: &Status, now: Boot) -> serde_json::Value {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::fold::{Moment, fold};
    use crate::health::summary::Snapshot;
    use crate::net::task::Trouble;

    /// What `/health` says of a control plane, as the one who judges a trial reads it.
    fn codes(reach: &Reach) -> Vec<&'static str> {
        let mut snapshot = Snapshot::default();
        snapshot.vitals.parts.insert("control", control_part(reach, Boot::from_secs(1)));
        let at = Moment { now: Boot::from_secs(9), wall: Wall(0), trusted: false, started: Boot::from_secs(0) };
        fold(&snapshot, &at).reasons.iter().map(|r| r.code).filter(|c| c.starts_with("control")).collect()
    }

    #[test]
    fn a_control_plane_that_was_not_heard_yet_is_away() {
        assert_eq!(codes(&Reach::Unknown), ["control_away"]);
        assert_eq!(codes(&Reach::Away("x".into())), ["control_away"]);
        assert!(codes(&Reach::Reached).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn since_is_the_moment_it_went_not_the_moment_its_reason_changed() {
        let (reach, seen) = watch::channel(Reach::Reached);
        let (vitals, mut told) = watch::channel(Vitals::default());
        let clock = crate::sim::clock::SimClock::new(Wall(0));
        let task = tokio::spawn(control(seen, vitals, clock.clone()));
        told.changed().await.unwrap();
        reach.send_replace(Reach::Away("a".into()));
        told.changed().await.unwrap();
        let went = told.borrow_and_update().parts["control"].since;
        tokio::time::sleep(std::time::Duration::from_secs(60)).await;
        reach.send_replace(Reach::Away("b".into()));
        told.changed().await.unwrap();
        let part = told.borrow_and_update().parts["control"].clone();
        assert!(part.since == went && part.detail.unwrap().ends_with(": b"));
        drop(reach);
        task.await.unwrap().unwrap();
    }

    #[test]
    fn the_line_says_the_worst_of_tunnel_and_kernel() {
        let mut net = Net::default();
        assert_eq!(words(&net, None), "no pass over the network was completed yet");
        (net.passes, net.clean) = (1, true);
        let mut uplink = Uplink { hub: Some("hub-a".into()), connected: true, ..Uplink::default() };
        assert_eq!(words(&net, Some(&uplink)), "tunnel to hub-a is up; kernel in sync, 0 interfaces");
        (uplink.connected, uplink.last_error) = (false, Some("hub hub-a: no\nhandshake".into()));
        net.troubles = vec![Trouble { code: "name_taken", detail: "wg0 is taken".into() }];
        assert_eq!(words(&net, Some(&uplink)), "no tunnel: hub hub-a: no handshake; out of sync: wg0 is taken");
    }
}
