//! The facts in Prometheus text format.
use super::fold::{HealthVerdict, Moment, fold};
use super::summary::{Interfaces, Link, Snapshot};
use crate::exposition::{Exposition, Kind, Process, flag, number};
use crate::responses::ResponseCounts;
use spoke_config::node::Role;
use spoke_model::condition::Code;
use std::collections::BTreeSet;

pub use crate::exposition::CONTENT_TYPE;

mod grants;
mod outside;

/// What the metrics are made of.
#[derive(Clone, Copy, Debug)]
pub struct Scrape<'a> {
    /// The facts.
    pub snapshot: &'a Snapshot,
    /// Now.
    pub at: Moment,
    /// `node.role`.
    pub role: Role,
    /// What the process takes.
    pub process: Option<Process>,
    /// Responses of the agent API, where it is served.
    pub agent: Option<&'a ResponseCounts>,
    /// With `health.peer_metrics`. Ten thousand peers would overload a scraper: no other metric is per peer.
    pub peers: Option<&'a Interfaces>,
}

/// The metrics at one moment.
pub fn metrics(scrape: &Scrape<'_>) -> String {
    let mut out = Exposition::default();
    scrape.node(&mut out);
    scrape.net(&mut out);
    scrape.links(&mut out);
    if let Some(peers) = scrape.peers {
        peers.metrics(&mut out, scrape.at.now);
    }
    scrape.grants(&mut out);
    scrape.uplink(&mut out);
    scrape.control(&mut out);
    scrape.update(&mut out);
    scrape.machine(&mut out);
    if let Some(counts) = scrape.agent {
        counts.write(&mut out, "spoke_agent_responses_total", "Responses of the agent API by status");
    }
    out.into_text()
}

impl Scrape<'_> {
    fn node(&self, out: &mut Exposition) {
        let (s, at) = (self.snapshot, &self.at);
        let health = fold(s, at);
        out.family(Kind::Gauge, "spoke_build_info", "The running build");
        out.sample(&[("version", spoke_model::VERSION)], 1.0);
        let node = s.components.node_id.as_ref().map_or("", |id| id.as_str());
        out.family(Kind::Gauge, "spoke_node_info", "The node's name and role");
        out.sample(&[("node", node), ("role", self.role.as_str())], 1.0);
        let verdicts = HealthVerdict::ALL.map(|v| (v.as_str(), flag(v == health.status)));
        let help = "1 for the current verdict, 0 for the others";
        out.by(Kind::Gauge, "spoke_health", help, "status", &verdicts);
        let holds: BTreeSet<Code> = health.reasons.iter().map(|r| r.code).collect();
        let reasons = Code::ALL.map(|code| (code.as_str(), flag(holds.contains(&code))));
        let help = "1 for each condition that holds, 0 for the others";
        out.by(Kind::Gauge, "spoke_health_reason", help, "code", &reasons);
        let uptime = at.uptime().as_secs_f64();
        out.single(Kind::Gauge, "spoke_uptime_seconds", "Time since the process started", uptime);
        out.single(Kind::Gauge, "spoke_clock_trusted", "1 if the wall clock is trusted", flag(at.trusted));
    }

    fn net(&self, out: &mut Exposition) {
        let (net, at) = (&self.snapshot.net, &self.at);
        let age = if net.passes == 0 { at.uptime() } else { at.now.since(net.at) };
        let (found, left) = net.drifts;
        for (kind, name, help, value) in [
            (Kind::Counter, "spoke_reconcile_passes_total", "Completed reconcile passes", number(net.passes)),
            (Kind::Gauge, "spoke_reconcile_clean", "1 if the last pass left nothing to do", flag(net.clean)),
            (Kind::Gauge, "spoke_reconcile_age_seconds", "Time since the last pass ended", age.as_secs_f64()),
            (
                Kind::Counter,
                "spoke_reconcile_changes_total",
                "Steps applied because the desired state changed",
                number(net.changes),
            ),
            (Kind::Counter, "spoke_reconcile_repairs_total", "Steps applied against drift", number(net.repairs)),
            (Kind::Counter, "spoke_reconcile_failures_total", "Steps the kernel refused", number(net.failures)),
            (Kind::Gauge, "spoke_drift_left_alone", "Differences that policy leaves in place", number(net.held as u64)),
            (Kind::Gauge, "spoke_generation", "Generation of the desired state", number(net.generation)),
        ] {
            out.single(kind, name, help, value);
        }
        let drifts = [("repaired", number(found.saturating_sub(left))), ("left_alone", number(left))];
        out.by(Kind::Counter, "spoke_drifts_total", "Drift found, by what policy did about it", "policy", &drifts);
    }

    fn links(&self, out: &mut Exposition) {
        links(out, &self.snapshot.net.links);
    }
}

/// The interfaces, also for the agent API.
pub fn links(out: &mut Exposition, links: &[Link]) {
    type Value = fn(&Link) -> u64;
    let families: [(Kind, &'static str, &str, Value); 6] = [
        (Kind::Gauge, "wireguard_interface_up", "1 if the interface exists and is up", |l| u64::from(l.up)),
        (Kind::Gauge, "wireguard_peers_wanted", "Peers the node wants", |l| l.wanted_peers as u64),
        (Kind::Gauge, "wireguard_peers", "Peers the kernel has", |l| l.peers as u64),
        (Kind::Gauge, "wireguard_peers_active", "Peers with a handshake in the last 180 s", |l| l.active_peers as u64),
        (Kind::Counter, "wireguard_receive_bytes_total", "Bytes received since the interface was created", |l| l.rx),
        (Kind::Counter, "wireguard_transmit_bytes_total", "Bytes sent since the interface was created", |l| l.tx),
    ];
    for (kind, name, help, value) in families {
        let samples: Vec<_> = links.iter().map(|l| (l.name.as_str(), number(value(l)))).collect();
        out.by(kind, name, help, "interface", &samples);
    }
}
