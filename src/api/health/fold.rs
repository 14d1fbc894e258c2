//! Folds the facts into one verdict, healthy, degraded, unhealthy or disconnected, with the conditions that hold.
//!
//! | tunnel | hub answers | handshake | other components | verdict |
//! |---|---|---|---|---|
//! | down | – | – | – | disconnected |
//! | up | no | – | – | unhealthy |
//! | up | yes | older than 180 s | – | degraded |
//! | up | yes | fresh | one degraded, or the last pass unclean | degraded |
//! | up | yes | fresh | healthy | healthy |
//!
//! A node without an uplink (a hub) counts as its own hub: its tunnel is up while every desired interface is.
use super::summary::{Component, ComponentStatus, Snapshot};
use crate::socket::Readiness;
use serde::Serialize;
use spoke_model::condition::{Code, Condition};
use spoke_model::node_id::NodeId;
use spoke_model::time::{Boot, Wall};
use spoke_model::wireguard::REJECT_AFTER_TIME;
use spoke_update::notice::Notice;
use std::collections::BTreeMap;
use std::time::Duration;

/// Version of the JSON of the local endpoints.
pub const SCHEMA: u32 = 1;

/// The verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthVerdict {
    /// Tunnel up, handshake fresh, hub answers, no condition.
    Healthy,
    /// The tunnel carries traffic, but a condition holds.
    Degraded,
    /// The tunnel is up, but the hub does not answer through it.
    Unhealthy,
    /// No tunnel.
    Disconnected,
}

impl HealthVerdict {
    /// The text in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
            Self::Disconnected => "disconnected",
        }
    }

    /// Every verdict, best first.
    pub const ALL: [Self; 4] = [Self::Healthy, Self::Degraded, Self::Unhealthy, Self::Disconnected];
}

/// The moment of a request, on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Boot clock.
    pub now: Boot,
    /// Wall clock, trusted or not.
    pub wall: Wall,
    /// Whether the wall clock is trusted.
    pub trusted: bool,
    /// When the process started.
    pub started: Boot,
}

impl Moment {
    /// Wall time of a moment on the boot clock; `None` while the wall clock is not trusted.
    pub fn wall_at(&self, at: Boot) -> Option<String> {
        self.trusted.then(|| Wall(self.wall.secs().saturating_sub(self.now.since(at).as_secs())).to_string())
    }

    /// Wall time of the response; clients expect it even if untrusted.
    pub fn stamp(&self) -> String {
        self.wall.to_string()
    }

    /// Time since the process started.
    pub fn uptime(&self) -> Duration {
        self.now.since(self.started)
    }
}

/// How far a device has come from the factory to the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// It has no settings yet.
    Preconfigured,
    /// It has settings but no connection.
    Provisioned,
    /// The tunnel is up and the hub answers through it.
    Connected,
}

/// A condition, as JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reason {
    /// Stable text.
    pub code: Code,
    /// RFC 3339; null while the clock is not trusted.
    pub since: Option<String>,
    /// Age in seconds, by the boot clock.
    pub seconds: u64,
    /// For people.
    pub detail: String,
}

/// The supervisor, under the name existing monitors use.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bridge {
    /// `running` while the reconcile loop completes passes, `starting` before the first.
    pub status: &'static str,
    /// RFC 3339; null while the clock is not trusted.
    pub start_time: Option<String>,
    /// Milliseconds.
    pub uptime: u64,
    /// Steps the kernel refused.
    pub errors: u64,
    /// Detail of the latest condition.
    pub last_error: Option<String>,
}

/// Peers over all interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerRegistry {
    /// With a handshake in the last 180 s.
    pub active_peers: usize,
    /// Present in the kernel.
    pub total_peers: usize,
}

/// A component, as JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ComponentView {
    /// `healthy` or `degraded`.
    pub status: &'static str,
    /// RFC 3339; null while the clock is not trusted.
    pub since: Option<String>,
    /// The problem.
    pub detail: Option<String>,
}

/// The body of `GET /health`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Health {
    /// Verdict.
    pub status: HealthVerdict,
    /// Stage of provisioning.
    pub stage: Stage,
    /// The tunnel is up.
    pub connected: bool,
    /// The hub answers through it.
    pub can_ping_hub: bool,
    /// Seconds since the newest handshake with the hub; null: none.
    pub handshake_age: Option<u64>,
    /// Seconds.
    pub uptime_seconds: f64,
    /// Name of the node.
    pub node_id: Option<NodeId>,
    /// Conditions that hold; empty if healthy.
    pub reasons: Vec<Reason>,
    /// The supervisor.
    pub bridge: Bridge,
    /// Components by name.
    pub components: BTreeMap<&'static str, ComponentView>,
    /// Peers.
    #[serde(rename = "peerRegistry")]
    pub peer_registry: PeerRegistry,
    /// The wall clock is trusted.
    pub clock_trusted: bool,
    /// State of updates, on an image with two slots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update: Option<Notice>,
    /// Version of this shape: raised when a key changes its meaning.
    pub schema: u32,
    /// Seconds since the kernel was last observed; peers and interfaces are of that moment. Null before the first time.
    pub observed_age: Option<f64>,
    /// RFC 3339.
    pub timestamp: String,
}

struct Tunnel {
    connected: bool,
    answers: bool,
    handshake_age: Option<Duration>,
    conditions: Vec<Condition>,
}

/// The verdict with the conditions that hold, causes before what follows from them.
pub fn fold(s: &Snapshot, at: &Moment) -> Health {
    let tunnel = tunnel(s, at);
    let mut conditions = s.net.conditions.clone();
    conditions.extend(tunnel.conditions);
    if s.net.passes == 0 {
        let detail = "no reconcile pass was completed since the start".to_owned();
        conditions.push(Condition::new(Code::Starting, at.started, detail));
    }
    for (component, status) in s.components.status.iter().filter(|(_, c)| !c.healthy) {
        let detail = status.detail.clone().unwrap_or_else(|| format!("{} is degraded", component.as_str()));
        let code = if *component == Component::Control { s.components.control_code } else { component.code() };
        // The hubs do not have such a node as a peer: the tunnel's conditions follow from it.
        let place = if matches!(code, Code::Removed | Code::Disabled) { 0 } else { conditions.len() };
        conditions.insert(place, Condition::new(code, status.since, detail));
    }
    if let Some(detail) = &s.components.unprovisioned {
        conditions.insert(0, Condition::new(Code::NotProvisioned, at.started, detail.clone()));
    }
    let status = match (tunnel.connected, tunnel.answers) {
        (false, _) => HealthVerdict::Disconnected,
        (true, false) => HealthVerdict::Unhealthy,
        (true, true) if conditions.is_empty() => HealthVerdict::Healthy,
        (true, true) => HealthVerdict::Degraded,
    };
    let stage = match (&s.components.unprovisioned, tunnel.connected && tunnel.answers) {
        (Some(_), _) => Stage::Preconfigured,
        (None, false) => Stage::Provisioned,
        (None, true) => Stage::Connected,
    };
    Health {
        status,
        stage,
        connected: tunnel.connected,
        can_ping_hub: tunnel.answers,
        handshake_age: tunnel.handshake_age.map(|a| a.as_secs()),
        uptime_seconds: at.uptime().as_secs_f64(),
        node_id: s.components.node_id.clone(),
        bridge: bridge(s, at),
        components: components(s, at),
        peer_registry: peers(s),
        reasons: conditions.into_iter().map(|t| reason(t, at)).collect(),
        clock_trusted: at.trusted,
        update: s.components.update.clone(),
        schema: SCHEMA,
        observed_age: (s.net.passes > 0).then(|| at.now.since(s.net.observed_at).as_secs_f64()),
        timestamp: at.stamp(),
    }
}

fn reason(c: Condition, at: &Moment) -> Reason {
    Reason { code: c.code, since: at.wall_at(c.since), seconds: at.now.since(c.since).as_secs(), detail: c.detail }
}

fn tunnel(s: &Snapshot, at: &Moment) -> Tunnel {
    let mut conditions = Vec::new();
    let down: Vec<&str> = s.net.links.iter().filter(|l| !l.up).map(|l| l.name.as_str()).collect();
    let Some(uplink) = &s.components.uplink else {
        let connected = s.net.passes > 0 && down.is_empty();
        // A refused step or a taken name says it already, with the reason.
        let is_explained = |name: &&&str| {
            let of = |c: &Condition| c.object.as_deref().and_then(|o| o.split(' ').next()) == Some(**name);
            s.net.conditions.iter().any(of)
        };
        if !connected && s.net.passes > 0 && !down.iter().all(|name| is_explained(&name)) {
            let detail = format!("interface {} is not up", down.join(", "));
            conditions.push(Condition::new(Code::InterfaceDown, s.net.since.up, detail));
        }
        let newest = s.net.links.iter().filter_map(|l| l.last_handshake).max();
        let handshake_age = newest.map(|h| at.now.since(h));
        return Tunnel { connected, answers: connected, handshake_age, conditions };
    };
    let handshake_age = uplink.last_handshake.map(|h| at.now.since(h));
    let hub = uplink.hub.as_deref().unwrap_or("the hub");
    let why = uplink.last_error.as_deref().map(|e| format!(": {e}")).unwrap_or_default();
    if !uplink.connected {
        let detail = format!("no tunnel to {hub}{why}");
        conditions.push(Condition::new(Code::NoTunnel, uplink.since, detail));
    } else if !uplink.hub_answers {
        let detail = format!("{hub} does not answer through the tunnel{why}");
        conditions.push(Condition::new(Code::HubSilent, uplink.since, detail));
    } else if let Some(handshake) = uplink.last_handshake
        && at.now.since(handshake) > REJECT_AFTER_TIME
    {
        let detail = format!("the last handshake with {hub} is older than 180 s although it still answers");
        conditions.push(Condition::new(Code::HandshakeStale, handshake + REJECT_AFTER_TIME, detail));
    }
    Tunnel { connected: uplink.connected, answers: uplink.connected && uplink.hub_answers, handshake_age, conditions }
}

/// The supervisor's own status.
pub fn bridge(s: &Snapshot, at: &Moment) -> Bridge {
    Bridge {
        status: if s.net.passes == 0 { "starting" } else { "running" },
        start_time: at.wall_at(at.started),
        uptime: u64::try_from(at.uptime().as_millis()).unwrap_or(u64::MAX),
        errors: s.net.failures,
        last_error: s.net.conditions.last().map(|t| t.detail.clone()),
    }
}

/// Peers over all interfaces.
pub fn peers(s: &Snapshot) -> PeerRegistry {
    let sum = |f: fn(&super::summary::Link) -> usize| s.net.links.iter().map(f).sum();
    PeerRegistry { active_peers: sum(|l| l.active_peers), total_peers: sum(|l| l.peers) }
}

fn components(s: &Snapshot, at: &Moment) -> BTreeMap<&'static str, ComponentView> {
    let show = |p: &ComponentStatus| ComponentView {
        status: if p.healthy { "healthy" } else { "degraded" },
        since: at.wall_at(p.since),
        detail: p.detail.clone(),
    };
    let mut out: BTreeMap<&'static str, ComponentView> =
        s.components.status.iter().map(|(c, status)| (c.as_str(), show(status))).collect();
    let net = ComponentStatus {
        healthy: s.net.clean,
        since: s.net.since.clean,
        detail: s.net.conditions.last().map(|t| t.detail.clone()),
    };
    out.insert("network", show(&net));
    // An invalid desired state counts as a degraded configuration.
    let invalid = s.net.conditions.iter().find(|t| t.code == Code::DesiredInvalid);
    match invalid {
        Some(t) => {
            out.insert(
                "config",
                show(&ComponentStatus { healthy: false, since: t.since, detail: Some(t.detail.clone()) }),
            );
        }
        // The control session may have reported it already.
        None => {
            out.entry("config")
                .or_insert_with(|| show(&ComponentStatus { healthy: true, since: at.started, detail: None }));
        }
    }
    let missing: usize = s.net.links.iter().map(|l| l.wanted_peers.saturating_sub(l.peers)).sum();
    let detail = (missing > 0).then(|| format!("{missing} desired peers are not in the kernel"));
    out.insert("registry", show(&ComponentStatus { healthy: missing == 0, since: s.net.since.complete, detail }));
    if let Some(uplink) = &s.components.uplink {
        let healthy = uplink.connected && uplink.hub_answers;
        let detail = uplink.last_error.clone().filter(|_| !healthy);
        out.insert("uplink", show(&ComponentStatus { healthy, since: uplink.since, detail }));
    }
    out
}

/// Why a node is not ready.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// The reconciler has just started.
    #[error("no reconcile pass was completed yet")]
    Starting,
    /// The desired state is invalid, or the tunnel is down.
    #[error("{}: {}", .0.code, .0.detail)]
    Condition(Condition),
    /// The tunnel is down without a known reason.
    #[error("no tunnel")]
    NoTunnel,
}

/// Whether the desired state is valid, a reconcile pass was completed and the tunnel is up. A step that the kernel refuses
/// makes the node degraded, not unready: waiting for it would never end.
pub fn ready(s: &Snapshot, at: &Moment) -> Result<(), NotReady> {
    if s.net.passes == 0 {
        return Err(NotReady::Starting);
    }
    if let Some(invalid) = s.net.conditions.iter().find(|c| c.code == Code::DesiredInvalid) {
        return Err(NotReady::Condition(invalid.clone()));
    }
    let tunnel = tunnel(s, at);
    if tunnel.connected {
        return Ok(());
    }
    Err(tunnel.conditions.into_iter().next().map_or(NotReady::NoTunnel, NotReady::Condition))
}

/// As [`ready`], and the hub answers through the tunnel: `GET /ready?strict`.
pub fn strictly_ready(s: &Snapshot, at: &Moment) -> Result<(), NotReady> {
    ready(s, at)?;
    let tunnel = tunnel(s, at);
    if tunnel.answers {
        return Ok(());
    }
    Err(tunnel.conditions.into_iter().next().map_or(NotReady::NoTunnel, NotReady::Condition))
}

/// What the commit of an update depends on. A system that cannot reach its control plane could not be updated again, so it
/// does not count as connected.
pub fn readiness(s: &Snapshot, at: &Moment) -> Readiness {
    let health = fold(s, at);
    let controlled = !health.reasons.iter().any(|r| r.code.concerns_control_plane());
    Readiness {
        connected: health.connected && health.can_ping_hub && controlled,
        ready: ready(s, at).is_ok(),
        passes: s.net.passes > 0,
        clock_trusted: at.trusted,
    }
}

#[cfg(test)]
mod tests;
