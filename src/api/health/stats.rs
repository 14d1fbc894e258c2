//! The body of `GET /stats`: counters by component, in the shape existing monitors read.
use super::fold::{Moment, SCHEMA, bridge, peers};
use super::summary::{Access, Snapshot};
use serde_json::{Map, Value, json};

/// Statistics. A component that is not configured is absent; `config` is the configuration's part.
pub fn stats(s: &Snapshot, at: &Moment, config: &Value) -> Value {
    let mut out = Map::new();
    let b = bridge(s, at);
    let last_check = (s.net.passes > 0).then(|| at.wall_at(s.net.at)).flatten();
    out.insert(
        "bridge".into(),
        json!({
            "status": b.status, "startTime": b.start_time, "lastHealthCheck": last_check,
            "errors": b.errors, "lastError": b.last_error, "passes": s.net.passes, "generation": s.net.generation,
            "changes": s.net.changes, "repairs": s.net.repairs,
        }),
    );
    let p = peers(s);
    let mut registry = Map::new();
    registry.insert("totalPeers".into(), p.total_peers.into());
    registry.insert("activePeers".into(), p.active_peers.into());
    registry.insert("inactivePeers".into(), p.total_peers.saturating_sub(p.active_peers).into());
    if let Some(a) = &s.components.access {
        out.insert("accessControl".into(), access(a, at));
        registry.insert(
            "syncState".into(),
            json!({
                "lastSync": a.last_sync.map(|w| w.to_string()), "syncInProgress": a.syncing,
                "syncErrors": a.sync_errors, "lastError": a.last_error,
            }),
        );
    }
    out.insert("registry".into(), registry.into());
    out.insert("config".into(), config.clone());
    if let Some(u) = &s.components.uplink {
        out.insert(
            "uplink".into(),
            json!({
                "attempts": u.attempts, "backoff": u.backoff.map(|b| b.as_secs_f64()),
                "connected_at": u.connected_at.map(|w| w.to_string()),
                "connected_seconds": u.connected_since.map(|c| at.now.since(c).as_secs()), "hub": u.hub, "last_error": u.last_error,
            }),
        );
    }
    out.insert("schema".into(), SCHEMA.into());
    out.insert("timestamp".into(), at.stamp().into());
    out.into()
}

fn access(a: &Access, at: &Moment) -> Value {
    let asked = a.cache_hits + a.cache_misses;
    #[expect(clippy::cast_precision_loss, reason = "a ratio for display")]
    let rate = if asked == 0 { 0.0 } else { a.cache_hits as f64 / asked as f64 };
    json!({
        "totalRequests": a.total_requests, "grantedAccess": a.granted, "deniedAccess": a.denied, "errors": a.errors,
        "lastReset": at.wall_at(at.started),
        "cache": {
            "size": a.cache_size, "hits": a.cache_hits, "misses": a.cache_misses, "hitRate": rate, "maxSize": a.cache_max,
        },
        "uptime": u64::try_from(at.uptime().as_millis()).unwrap_or(u64::MAX),
    })
}
