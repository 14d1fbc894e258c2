//! The verdict with its causes and remedies, and the way to the hub as a picture.
use super::facts::Facts;
use super::html::{Html, Size, State};
use super::rates::{Rates, total};
use crate::health::fold::{Health, HealthVerdict, Stage};
use spoke_model::condition::{Code, Severity};
use spoke_uplink::path::Path;
use spoke_uplink::status::{Code as Fault, State as Session, UplinkStatus};
use std::fmt::Display;
use std::time::Duration;

/// The verdict as state and word.
pub fn verdict(health: &Health) -> (State, &'static str) {
    match health.status {
        _ if health.stage == Stage::Preconfigured => (State::Wait, "waiting for settings"),
        _ if health.bridge.status == "starting" => (State::Wait, "starting"),
        HealthVerdict::Healthy => (State::Ok, "healthy"),
        HealthVerdict::Degraded => (State::Warn, "degraded"),
        HealthVerdict::Unhealthy => (State::Bad, "unhealthy"),
        HealthVerdict::Disconnected => (State::Bad, "disconnected"),
    }
}

/// Verdict, causes, remedies.
pub fn write(h: &mut Html<'_>, facts: &Facts<'_>, health: &Health) {
    let (state, word) = verdict(health);
    h.raw("<section class=\"card v ").raw(state.class()).raw("\"><h1 class=s role=status>").raw(word).raw("</h1><p>");
    summary(h, facts, health);
    h.raw("</p>");
    let uplink = facts.snapshot.components.uplink.as_ref();
    let mut open = false;
    for reason in health.reasons.iter().filter(|r| r.code != Code::Starting) {
        if !std::mem::replace(&mut open, true) {
            h.raw("<ol class=why>");
        }
        let state = match reason.code.severity() {
            Severity::Warning => State::Warn,
            Severity::Error | Severity::Critical => State::Bad,
        };
        // The sentence above has the rest of the detail.
        let cause = match reason.code {
            Code::NoTunnel | Code::HubSilent => uplink.and_then(|u| u.last_error.as_ref()),
            _ => None,
        };
        let cause = cause.unwrap_or(&reason.detail);
        h.raw("<li><div class=\"s ").raw(state.class()).raw("\">").text(cause).raw("</div><p>→ ");
        h.prose(reason.code.remedy()).raw("</p><small>for ");
        h.age(h.at.now.saturating_sub(Duration::from_secs(reason.seconds)));
        h.raw(" · <code>").raw(reason.code.as_str()).raw("</code></small></li>");
    }
    h.raw(if open { "</ol></section>" } else { "</section>" });
}

fn summary(h: &mut Html<'_>, facts: &Facts<'_>, health: &Health) {
    if facts.snapshot.net.passes == 0 {
        h.raw(if health.stage == Stage::Preconfigured { "" } else { "The kernel has not been observed yet." });
        return;
    }
    let Some(uplink) = &facts.snapshot.components.uplink else {
        let peers = health.peer_registry;
        if peers.total_peers == 0 {
            h.raw("No peers yet.");
            return;
        }
        h.text(&peers.active_peers).raw(" of ").text(&peers.total_peers).raw(" peers active");
        return;
    };
    let hub: &dyn Display = uplink.hub.as_ref().map_or(&"the hub", |hub| hub);
    match (uplink.connected, uplink.hub_answers) {
        (true, true) => h.raw("Connected to <bdi>").text(hub).raw("</bdi> for "),
        (true, false) => h.raw("<bdi>").text(hub).raw("</bdi> has not answered through the tunnel for "),
        (false, _) => h.raw("No tunnel to <bdi>").text(hub).raw("</bdi> for "),
    };
    let connected = uplink.connected_since.filter(|_| uplink.hub_answers);
    h.age(connected.unwrap_or(uplink.since));
}

/// Device, network, hub, and the state of the way between them.
pub fn picture(h: &mut Html<'_>, facts: &Facts<'_>, health: &Health) {
    let details = facts.details;
    if details.observed.links.is_empty() {
        return;
    }
    let session = facts.snapshot.components.session.as_deref();
    let name = details.effective.as_ref().and_then(|e| e.uplink_interface()).filter(|_| session.is_some());
    let rates = total(details, name);
    h.raw("<section class=card aria-label=Tunnel><div class=\"path");
    h.raw(if session.is_some() { "" } else { " p" }).raw("\"><div class=card><small>this device</small><b>");
    match &health.node_id {
        Some(id) => h.raw("<bdi>").text(id).raw("</bdi>"),
        None => h.raw("unnamed"),
    };
    h.raw("</b><small>");
    let mut first = true;
    for (own, link) in details.observed.links.iter().filter(|(n, _)| name.is_none_or(|name| name == *n)) {
        h.dot(&mut first).text(own);
        for address in &link.addresses {
            h.dot(&mut first).text(&address);
        }
    }
    h.raw("</small></div>");
    match session {
        Some(session) => to_hub(h, facts, session, rates),
        None => to_peers(h, health, rates),
    }
    h.raw("</div>");
    if let Some(session) = session {
        next(h, session);
    }
    h.raw("</section>");
}

fn hop(h: &mut Html<'_>, state: State) {
    h.raw("<div class=\"hop ").raw(state.class()).raw("\">");
}

fn traffic(h: &mut Html<'_>, rates: Option<Rates>) {
    if let Some(r) = rates {
        h.raw("<div>↑ ")
            .text(&Size(r.tx, "bit/s"))
            .raw("</div><i></i><div>↓ ")
            .text(&Size(r.rx, "bit/s"))
            .raw("</div>");
    } else {
        h.raw("<i></i>");
    }
}

/// What is wrong before the packets leave this site.
const fn local(fault: Fault) -> Option<&'static str> {
    match fault {
        Fault::NoCarrier => Some("no carrier"),
        Fault::NoAddress => Some("no address"),
        Fault::NoRoute => Some("no route"),
        Fault::Unresolved => Some("name not resolved"),
        _ => None,
    }
}

fn to_hub(h: &mut Html<'_>, facts: &Facts<'_>, session: &UplinkStatus, rates: Option<Rates>) {
    let answers = session.state == Session::Up && session.hub_answers;
    let fault = session.fault.as_ref().map(|f| f.code).filter(|_| !answers);
    let blocked = fault.and_then(local);
    let way = match (blocked, session.path) {
        (Some(_), _) | (None, Some(Path::NoRoute | Path::NoAddress | Path::NoCarrier)) => State::Bad,
        (None, Some(_)) => State::Ok,
        (None, None) => State::None,
    };
    let tunnel = match session.state {
        Session::Up if session.hub_answers => State::Ok,
        Session::Up => State::Bad,
        _ if blocked.is_some() => State::None,
        _ if fault.is_some() => State::Bad,
        _ => State::Wait,
    };
    hop(h, way);
    h.raw("<i></i></div><div class=card><small>WAN</small><b>");
    h.raw(blocked.unwrap_or(match way {
        State::Ok => "open",
        State::Bad => "closed",
        _ => "unknown",
    }));
    h.raw("</b><small>");
    if let Some(Path::Via { source, gateway, .. }) = session.path {
        let mut first = true;
        if let Some(source) = source {
            h.dot(&mut first).raw("from ").text(&source);
        }
        if let Some(gateway) = gateway {
            h.dot(&mut first).raw("via ").text(&gateway);
        }
    }
    h.raw("</small></div>");
    hop(h, tunnel);
    traffic(h, rates.filter(|_| tunnel == State::Ok));
    match session.handshake_at {
        Some(at) => h.raw("<small>handshake ").age(at).raw(" ago</small>"),
        None => h.raw("<small>no handshake yet</small>"),
    };
    h.raw("</div><div class=card><small>hub</small><b><bdi>");
    h.text(session.hub.as_ref().map_or(&"–" as &dyn Display, |hub| hub)).raw("</bdi></b><small>");
    if let Some(endpoint) = session.endpoint {
        h.text(&endpoint).raw(" ");
    }
    if let Some(rtt) = session.rtt.filter(|_| answers) {
        h.raw("· echo ").text(&rtt.as_millis().max(1)).raw(" ms");
    }
    let hubs = facts.details.effective.as_ref().map_or(0, |e| e.hubs().len());
    if hubs > 1 {
        h.raw(" · of ").text(&hubs).raw(" hubs");
    }
    h.raw("</small></div>");
}

fn to_peers(h: &mut Html<'_>, health: &Health, rates: Option<Rates>) {
    let peers = health.peer_registry;
    let state = match (health.connected, peers.active_peers) {
        (false, _) => State::Bad,
        (true, 0) => State::None,
        (true, _) => State::Ok,
    };
    hop(h, state);
    traffic(h, rates.filter(|_| state == State::Ok));
    h.raw("</div><div class=card><small>peers</small><b><a href=#peers>").text(&peers.active_peers).raw(" of ");
    h.text(&peers.total_peers).raw(" active</a></b><small>");
    match health.handshake_age.map(|age| h.at.now.saturating_sub(Duration::from_secs(age))) {
        Some(at) => h.raw("newest handshake ").age(at).raw(" ago"),
        None => h.raw("no handshake yet"),
    };
    h.raw("</small></div>");
}

/// What the session tries and will try.
fn next(h: &mut Html<'_>, session: &UplinkStatus) {
    let standby = session.standby.as_ref();
    if session.state == Session::Up && session.hub_answers && standby.is_none() {
        return;
    }
    h.raw("<p class=next>");
    let next = session.next_attempt.map(|at| at.since(h.at.now));
    match (session.state, next) {
        (Session::Waiting, Some(wait)) => h.chip(State::Wait, &"Next attempt").raw(" in ").wait(wait),
        (Session::Resolving, _) => h.chip(State::Wait, &"Looking up the hub's name"),
        (Session::Connecting, _) => h.chip(State::Wait, &"Waiting for the hub's answer"),
        (Session::Up, _) if session.hub_answers => h.chip(State::Ok, &"Connected"),
        (Session::Up, _) => h.chip(State::Wait, &"Asking the hub again"),
        (Session::Starting | Session::Waiting, _) => h.chip(State::Wait, &"Starting"),
    };
    if session.state != Session::Up {
        h.raw(" · attempt ").text(&session.attempts);
    }
    if session.failures > 0 {
        h.raw(", ").text(&session.failures).raw(" failed in a row");
    }
    let recent = session.history.iter().rev().take_while(|t| t.to != Session::Up).find_map(|t| t.rung);
    if let Some(rung) = recent.filter(|_| session.state != Session::Up) {
        h.raw(" · ").raw(rung.reason());
    }
    if let Some(standby) = standby {
        h.raw(" · better hub <bdi>").text(&standby.hub).raw("</bdi> ");
        match standby.good_since {
            Some(since) => h.raw("good for ").age(since),
            None => h.raw("being tried"),
        };
    }
    h.raw("</p>");
}
