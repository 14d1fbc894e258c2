//! Tells the local endpoints what the producers say, in the endpoints' own words.
use crate::health::summary::{Uplink, Vitals};
use crate::sys::clock::Clock;
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
