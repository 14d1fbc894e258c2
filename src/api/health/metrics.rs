//! The facts in Prometheus text format, as `promtool check metrics` accepts it.
//!
//! The encoder writes OpenMetrics, where the names of a counter and its samples differ by `_total`; the older format needs
//! one name. So a counter is described by its full name and its sample is written as a gauge's.
use super::fold::{HealthVerdict, Moment, fold};
use super::summary::Snapshot;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeMetric as _, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use spoke_grants::ladder::Phase;
use spoke_grants::report::EndpointRow;
use spoke_model::condition::Code;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// `Content-Type` of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The metrics at one moment. None per peer: ten thousand peers would overload scrapers.
pub fn metrics(snapshot: &Snapshot, at: &Moment) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape { snapshot: snapshot.clone(), at: *at }));
    let mut text = String::with_capacity(4096);
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Scrape {
    snapshot: Snapshot,
    at: Moment,
}

struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(metric)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstGauge::new(value).encode(metric)
    }

    /// One metric with a sample for each value of `label`.
    fn family<'s, N: EncodeGaugeValue>(
        &mut self,
        (name, help, kind): (&str, &str, MetricType),
        label: &str,
        samples: impl IntoIterator<Item = (&'s str, N)>,
    ) -> fmt::Result {
        let mut metric: MetricEncoder<'_> = self.0.encode_descriptor(name, help, None, kind)?;
        for (of, value) in samples {
            let labels = [(label, of)];
            let sample = metric.encode_family(&labels)?;
            ConstGauge::new(value).encode(sample)?;
        }
        Ok(())
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (s, at) = (&self.snapshot, &self.at);
        let mut out = Out(encoder);
        let health = fold(s, at);
        out.family(
            ("spoke_build_info", "The running build", MetricType::Gauge),
            "version",
            [(spoke_model::VERSION, 1u64)],
        )?;
        out.family(
            ("spoke_health", "1 for the current verdict, 0 for the others", MetricType::Gauge),
            "status",
            HealthVerdict::ALL.map(|v| (v.as_str(), u64::from(v == health.status))),
        )?;
        let holds: BTreeSet<Code> = health.reasons.iter().map(|r| r.code).collect();
        let reasons = Code::ALL.map(|code| (code.as_str(), u64::from(holds.contains(&code))));
        out.family(
            ("spoke_health_reason", "1 for each condition that holds, 0 for the others", MetricType::Gauge),
            "code",
            reasons,
        )?;
        out.gauge("spoke_uptime_seconds", "Time since the process started", at.uptime().as_secs_f64())?;
        out.gauge("spoke_clock_trusted", "1 if the wall clock is trusted", f64::from(u8::from(at.trusted)))?;
        let net = &s.net;
        out.counter("spoke_reconcile_passes_total", "Completed reconcile passes", net.passes)?;
        out.gauge("spoke_reconcile_clean", "1 if the last pass left nothing to do", f64::from(u8::from(net.clean)))?;
        let age = if net.passes == 0 { at.uptime() } else { at.now.since(net.at) };
        out.gauge("spoke_reconcile_age_seconds", "Time since the last pass ended", age.as_secs_f64())?;
        out.counter("spoke_reconcile_changes_total", "Steps applied because the desired state changed", net.changes)?;
        out.counter("spoke_reconcile_repairs_total", "Steps applied against drift", net.repairs)?;
        let (found, left) = net.drifts;
        out.family(
            ("spoke_drifts_total", "Drift found, by what policy did about it", MetricType::Counter),
            "policy",
            [("repaired", found.saturating_sub(left)), ("left_alone", left)],
        )?;
        #[expect(clippy::cast_precision_loss, reason = "a count of differences stays far below 2^53")]
        out.gauge("spoke_drift_left_alone", "Differences that policy leaves in place", net.held as f64)?;
        out.counter("spoke_reconcile_failures_total", "Steps the kernel refused", net.failures)?;
        #[expect(clippy::cast_precision_loss, reason = "a generation stays far below 2^53")]
        out.gauge("spoke_generation", "Generation of the desired state", net.generation as f64)?;
        self.links(&mut out)?;
        self.grants(&mut out)?;
        self.uplink(&mut out)
    }
}

impl Scrape {
    fn links(&self, out: &mut Out<'_>) -> fmt::Result {
        let links = &self.snapshot.net.links;
        type Value = fn(&super::summary::Link) -> u64;
        let families: [(&str, &str, MetricType, Value); 6] = [
            ("wireguard_interface_up", "1 if the interface exists and is up", MetricType::Gauge, |l| u64::from(l.up)),
            ("wireguard_peers_wanted", "Peers the node wants", MetricType::Gauge, |l| l.wanted_peers as u64),
            ("wireguard_peers", "Peers the kernel has", MetricType::Gauge, |l| l.peers as u64),
            ("wireguard_peers_active", "Peers with a handshake in the last 180 s", MetricType::Gauge, |l| {
                l.active_peers as u64
            }),
            (
                "wireguard_receive_bytes_total",
                "Bytes received since the interface was created",
                MetricType::Counter,
                |l| l.rx,
            ),
            (
                "wireguard_transmit_bytes_total",
                "Bytes sent since the interface was created",
                MetricType::Counter,
                |l| l.tx,
            ),
        ];
        for (name, help, kind, value) in families {
            out.family((name, help, kind), "interface", links.iter().map(|l| (l.name.as_str(), value(l))))?;
        }
        Ok(())
    }

    /// Revocations and an unreachable chain are separate families, so that an alert cannot confuse them.
    fn grants(&self, out: &mut Out<'_>) -> fmt::Result {
        let Some(r) = &self.snapshot.components.grants else { return Ok(()) };
        let c = &r.counts;
        let phases = [Phase::Fresh, Phase::Stale, Phase::Grace, Phase::Expired];
        out.family(
            ("spoke_grants_phase", "1 for the current phase of the grace ladder", MetricType::Gauge),
            "phase",
            phases.map(|p| (p.name(), u64::from(p == r.phase))),
        )?;
        out.gauge("spoke_grants_candidates", "Peers that need a grant", r.rows.len() as f64)?;
        out.gauge("spoke_grants_admitted", "Candidates that are admitted", r.admitted as f64)?;
        out.family(
            ("spoke_grants_decisions_total", "New decisions by reason", MetricType::Counter),
            "reason",
            c.by_reason().map(|(reason, n)| (reason.code(), n)),
        )?;
        if let Some(height) = r.height {
            out.gauge("spoke_grants_block", "Height up to which all events are known", height as f64)?;
        }
        if let Some(last_quorum) = r.last_quorum {
            let age = self.at.now.since(last_quorum).as_secs_f64();
            out.gauge("spoke_grants_unheard_seconds", "Time since endpoints last agreed on the chain's state", age)?;
        }
        for (name, help, value) in [
            ("spoke_grants_revocations_total", "Peers revoked on the chain", c.revoked),
            ("spoke_grants_verification_errors_total", "Verifications without a decision", c.verification_errors),
            ("spoke_grants_looks_total", "Polls of the chain", c.polls),
            ("spoke_grants_failed_looks_total", "Failed polls of the chain", c.failed_polls),
            ("spoke_grants_reorganisations_total", "Chain reorganisations", c.reorganisations),
            ("spoke_grants_rpc_requests_total", "Requests to endpoints", c.requests),
            ("spoke_grants_rpc_failures_total", "Failed requests to endpoints", c.failed_requests),
            ("spoke_grants_rpc_bytes_total", "Bytes of requests and answers, without headers", c.bytes),
            ("spoke_grants_writes_total", "Writes of the grants to disk", c.writes),
        ] {
            out.counter(name, help, value)?;
        }
        // Endpoints of one host share a series: the best one represents it.
        let mut endpoints: BTreeMap<&str, &EndpointRow> = BTreeMap::new();
        for row in &r.endpoints {
            let best = endpoints.entry(&row.name).or_insert(row);
            if row.failures < best.failures {
                *best = row;
            }
        }
        let each = || endpoints.iter().map(|(name, row)| (*name, *row));
        let up = |e: &EndpointRow| u64::from(e.failures == 0 && e.answers > 0 && e.other_chain.is_none());
        out.family(
            ("spoke_grants_endpoint_up", "1 if the endpoint answered last time", MetricType::Gauge),
            "endpoint",
            each().map(|(name, e)| (name, up(e))),
        )?;
        out.family(
            ("spoke_grants_endpoint_block", "Newest height the endpoint reported", MetricType::Gauge),
            "endpoint",
            each().filter_map(|(name, e)| Some((name, e.height?))),
        )?;
        out.family(
            ("spoke_grants_endpoint_latency_seconds", "Smoothed time to an answer", MetricType::Gauge),
            "endpoint",
            each().filter_map(|(name, e)| Some((name, e.latency_ms? / 1000.0))),
        )
    }

    fn uplink(&self, out: &mut Out<'_>) -> fmt::Result {
        let Some(u) = &self.snapshot.components.uplink else { return Ok(()) };
        let flag = |b: bool| f64::from(u8::from(b));
        out.gauge("spoke_uplink_connected", "1 if a tunnel to a hub is up", flag(u.connected))?;
        out.gauge("spoke_uplink_hub_answers", "1 if the hub answers through the tunnel", flag(u.hub_answers))?;
        out.counter("spoke_uplink_attempts_total", "Attempts to connect to a hub", u.attempts)?;
        let backoff = u.backoff.map_or(0.0, |b| b.as_secs_f64());
        out.gauge("spoke_uplink_backoff_seconds", "Wait before the next attempt; 0: none", backoff)?;
        if let Some(handshake) = u.last_handshake {
            let age = self.at.now.since(handshake).as_secs_f64();
            out.gauge("spoke_uplink_handshake_age_seconds", "Time since the newest handshake with the hub", age)?;
        }
        Ok(())
    }
}
