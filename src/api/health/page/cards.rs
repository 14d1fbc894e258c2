//! What the tunnel does not depend on: control plane, grants, drift, updates, clock, supervisor; and the last events.
use super::facts::Facts;
use super::html::{Html, Size, State};
use crate::health::fold::Health;
use spoke_enroll::status::{ControlStatus, OutageCause};
use spoke_enroll::wire::Outcome;
use spoke_grants::ladder::Phase;
use spoke_grants::report::Report;
use spoke_model::time::Boot;
use spoke_net::render;
use spoke_update::notice::Notice;
use spoke_uplink::status::State as Session;
use std::cmp::Reverse;

/// Lines of a list in a card.
const LINES: usize = 5;
/// Events.
const EVENTS: usize = 8;

fn card(h: &mut Html<'_>, title: &'static str) {
    h.raw("<section class=card><h2>").raw(title).raw("</h2><p>");
}

/// The cards.
pub fn write(h: &mut Html<'_>, facts: &Facts<'_>, health: &Health) {
    h.raw("<div class=cards>");
    control(h, facts);
    if let Some(report) = facts.snapshot.components.grants.as_deref() {
        grants(h, report);
    }
    if facts.snapshot.net.passes > 0 {
        drift(h, facts);
    }
    if let Some(notice) = &facts.snapshot.components.update {
        update(h, notice);
    }
    clock(h, health);
    supervisor(h, facts, health);
    h.raw("</div>");
    events(h, facts);
}

fn control(h: &mut Html<'_>, facts: &Facts<'_>) {
    card(h, "Control plane");
    let configured = facts.details.effective.as_ref().and_then(|e| e.own().control.as_ref());
    let Some(configured) = configured else {
        h.chip(State::None, &"not used")
            .raw("</p><p class=soft>This device is configured by its own file.</p></section>");
        return;
    };
    let unknown = ControlStatus::default();
    let status = facts.snapshot.components.control.as_deref().unwrap_or(&unknown);
    let outage = status.outage.as_ref();
    match outage {
        _ if status.removed => h.chip(State::Bad, &"removed from the fleet"),
        Some(o) => {
            let (state, word) = match o.cause {
                OutageCause::Unreachable => (State::Warn, "not responding"),
                OutageCause::Removed => (State::Bad, "removed from the fleet"),
                OutageCause::TokenRefused => (State::Bad, "token refused"),
                OutageCause::ApprovalPending => (State::Wait, "waiting for approval"),
            };
            h.chip(state, &word).raw(" for ").age(o.since)
        }
        None if status.disabled => h.chip(State::Bad, &"disabled by an operator"),
        None if status.last_answer.is_none() => h.chip(State::Wait, &"no answer yet"),
        None => h.chip(State::Ok, &"connected"),
    };
    h.raw("</p><ul><li class=soft>https://").text(&configured.url.0).raw("</li>");
    if let Some(at) = status.last_answer {
        h.raw("<li>last answer ").age(at).raw(" ago</li>");
    }
    if status.generation > 0 {
        h.raw("<li>state ").text(&status.generation).raw(" in force");
        if status.outcome == Some(Outcome::Trial) {
            h.raw(", ").chip(State::New, &"on trial");
        }
        h.raw("</li>");
    }
    if let Some(phase) = status.key_change {
        h.raw("<li>").chip(State::New, &"key change").raw(": ").raw(phase).raw("</li>");
    }
    h.raw("</ul></section>");
}

fn grants(h: &mut Html<'_>, report: &Report) {
    card(h, "Grants");
    let state = match report.phase {
        Phase::Fresh => State::Ok,
        Phase::Stale | Phase::Grace => State::Warn,
        Phase::Expired => State::Bad,
    };
    h.chip(state, &report.phase.name()).raw(" · ").text(&report.admitted).raw(" of ").text(&report.rows.len());
    h.raw(" admitted</p><ul><li>");
    match report.last_quorum {
        Some(at) => h.raw("endpoints agreed ").age(at).raw(" ago"),
        None => h.raw("endpoints have not agreed since the start"),
    };
    let bad = report.endpoints.iter().filter(|e| e.failures > 0 || e.other_chain.is_some()).count();
    h.raw(" · ").text(&(report.endpoints.len() - bad)).raw(" of ").text(&report.endpoints.len()).raw(" answer</li>");
    if let (Some(height), Some(head)) = (report.height, report.head) {
        h.raw("<li>block ").text(&height).raw(" · ").text(&head.saturating_sub(height)).raw(" behind</li>");
    }
    let denied = || report.rows.iter().filter(|r| !r.admitted);
    for row in denied().take(LINES) {
        h.raw("<li><bdi>").text(&row.node).raw("</bdi> <code>").text(&row.code).raw("</code></li>");
    }
    more(h, denied().count());
    h.raw("</ul></section>");
}

/// How many lines are left out.
fn more(h: &mut Html<'_>, lines: usize) {
    if lines > LINES {
        h.raw("<li class=soft>and ").text(&(lines - LINES)).raw(" more</li>");
    }
}

fn drift(h: &mut Html<'_>, facts: &Facts<'_>) {
    let (left, net) = (&facts.details.left, &facts.snapshot.net);
    card(h, "Drift");
    let differences = left.steps.len() + left.held.len() + left.damped.len() + left.blocked.len();
    if differences == 0 {
        h.chip(State::Ok, &"kernel as configured");
    } else {
        h.chip(State::Warn, &differences).raw(" differences");
    }
    h.raw("</p><ul>");
    let observed = &facts.details.observed;
    let kinds = [(&left.steps, ""), (&left.held, " (left alone)"), (&left.damped, " (undone by another program)")];
    let steps = || kinds.iter().flat_map(|(steps, why)| steps.iter().map(move |s| (s, *why)));
    for (step, why) in steps().take(LINES) {
        h.raw("<li>").text(&render::step(step, observed)).raw(why).raw("</li>");
    }
    more(h, steps().count());
    h.raw("<li class=soft>")
        .text(&net.repairs)
        .raw(" repairs, ")
        .text(&net.failures)
        .raw(" refusals since the start</li></ul></section>");
}

fn update(h: &mut Html<'_>, notice: &Notice) {
    card(h, "System");
    match (&notice.trial, &notice.held) {
        (Some(trial), _) => h.chip(State::New, &trial.version).raw(" on trial in slot ").text(&trial.slot),
        (None, Some(_)) => h.chip(State::Warn, &"update pending"),
        (None, None) => h.chip(State::Ok, &"up to date"),
    };
    h.raw("</p><ul><li>").text(&notice.version).raw(" runs in slot ").text(&notice.slot).raw("</li>");
    if let Some(held) = &notice.held {
        h.raw("<li>").text(held).raw("</li>");
    }
    if let Some(last) = &notice.last {
        h.raw("<li class=soft>last: ").text(&last.version).raw(if last.reason.is_some() {
            " given up: "
        } else {
            " kept: "
        });
        h.text(&last.detail).raw("</li>");
    }
    h.raw("</ul></section>");
}

fn clock(h: &mut Html<'_>, health: &Health) {
    card(h, "Clock");
    if health.clock_trusted {
        h.chip(State::Ok, &"trusted");
    } else {
        h.chip(State::Warn, &"not trusted");
    }
    h.raw("</p><ul><li><span>").text(&health.timestamp).raw("</span></li>");
    if !health.clock_trusted {
        h.raw("<li>Times are not shown until a source confirms the clock; ages are right.</li>");
    }
    h.raw("<li id=skew></li></ul></section>");
}

fn supervisor(h: &mut Html<'_>, facts: &Facts<'_>, health: &Health) {
    let net = &facts.snapshot.net;
    // The reconciler observes at least every 30 s.
    let late = health.observed_age.is_some_and(|age| age > 90.0);
    card(h, "Supervisor");
    match health.observed_age {
        None => h.chip(State::Wait, &"starting"),
        Some(_) if late => h.chip(State::Bad, &"late"),
        Some(_) => h.chip(State::Ok, &"running"),
    };
    let started = h.at.started;
    h.raw(" for ").age(started).raw("</p><ul><li>spoke ").raw(spoke_model::VERSION).raw("</li>");
    if health.observed_age.is_some() {
        h.raw("<li>kernel observed ").age(net.observed_at).raw(" ago</li>");
    }
    for (name, link) in facts.details.observed.links.iter().filter(|(_, l)| l.wireguard) {
        h.raw("<li>").chip(if link.up { State::Ok } else { State::Bad }, name).raw(" port ").text(&link.listen_port);
        h.raw(" · MTU ").text(&link.mtu).raw(" · ↓\u{a0}").text(&Size(link.traffic.0, "B")).raw(" ↑\u{a0}");
        h.text(&Size(link.traffic.1, "B"));
        if let Some(key) = &link.public_key {
            h.raw(" <code class=k tabindex=0>").text(key).raw("</code>");
        }
        h.raw("</li>");
    }
    h.raw("</ul></section>");
}

/// Transitions of the session and steps in the kernel, newest first.
fn events(h: &mut Html<'_>, facts: &Facts<'_>) {
    let session = facts.snapshot.components.session.as_deref();
    let transitions = session.iter().flat_map(|s| &s.history);
    let mut events: Vec<(Boot, Result<_, _>)> = transitions.map(|t| (t.at, Ok(t))).collect();
    events.extend(facts.details.steps.iter().map(|s| (s.at, Err(s))));
    if events.is_empty() {
        return;
    }
    events.sort_by_key(|(at, _)| Reverse(*at));
    h.raw("<section class=card><h2>Recent</h2><ol class=log>");
    for (at, event) in events.iter().take(EVENTS) {
        h.raw("<li><span class=soft>").age(*at).raw("</span><span>");
        match event {
            Ok(t) => {
                let state = match t.to {
                    Session::Up => State::Ok,
                    Session::Waiting => State::Bad,
                    Session::Starting | Session::Resolving | Session::Connecting => State::Wait,
                };
                // Up to the remedy.
                let detail = t.code.detail().split(':').next().unwrap_or_default();
                h.chip(state, &t.hub).raw(" ").raw(t.rung.map_or(detail, |r| r.reason()));
            }
            Err(step) => {
                let (state, word) = match (step.refused, step.repair) {
                    (true, _) => (State::Bad, "refused"),
                    (false, true) => (State::Warn, "repaired"),
                    (false, false) => (State::None, "changed"),
                };
                h.chip(state, &word).raw(" ").text(&step.text);
            }
        }
        h.raw("</span></li>");
    }
    h.raw("</ol></section>");
}
