//! Access by grants. Revocations and an unreachable chain are separate families, so that an alert cannot confuse them.
use super::Scrape;
use crate::exposition::{Exposition, Kind, flag, number};
use spoke_grants::ladder::Phase;
use spoke_grants::report::EndpointRow;
use std::collections::BTreeMap;

impl Scrape<'_> {
    pub(super) fn grants(&self, out: &mut Exposition) {
        let Some(r) = &self.snapshot.components.grants else { return };
        let c = &r.counts;
        let phases = [Phase::Fresh, Phase::Stale, Phase::Grace, Phase::Expired].map(|p| (p.name(), flag(p == r.phase)));
        let help = "1 for the current phase of the grace ladder";
        out.by(Kind::Gauge, "spoke_grants_phase", help, "phase", &phases);
        let candidates = number(r.rows.len() as u64);
        out.single(Kind::Gauge, "spoke_grants_candidates", "Peers that need a grant", candidates);
        let admitted = number(r.admitted as u64);
        out.single(Kind::Gauge, "spoke_grants_admitted", "Candidates that are admitted", admitted);
        let decisions: Vec<_> = c.by_reason().map(|(reason, n)| (reason.code(), number(n))).collect();
        out.by(Kind::Counter, "spoke_grants_decisions_total", "New decisions by reason", "reason", &decisions);
        if let Some(height) = r.height {
            let help = "Height up to which all events are known";
            out.single(Kind::Gauge, "spoke_grants_block", help, number(height));
        }
        if let Some(last_quorum) = r.last_quorum {
            let age = self.at.now.since(last_quorum).as_secs_f64();
            let help = "Time since endpoints last agreed on the chain's state";
            out.single(Kind::Gauge, "spoke_grants_unheard_seconds", help, age);
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
            out.single(Kind::Counter, name, help, number(value));
        }
        // Endpoints of one host share a series: the best one represents it.
        let mut endpoints: BTreeMap<&str, &EndpointRow> = BTreeMap::new();
        for row in &r.endpoints {
            let best = endpoints.entry(&row.name).or_insert(row);
            if row.failures < best.failures {
                *best = row;
            }
        }
        type Value = fn(&EndpointRow) -> Option<f64>;
        let families: [(&'static str, &str, Value); 3] = [
            ("spoke_grants_endpoint_up", "1 if the endpoint answered last time", |e| {
                Some(flag(e.failures == 0 && e.answers > 0 && e.other_chain.is_none()))
            }),
            ("spoke_grants_endpoint_block", "Newest height the endpoint reported", |e| e.height.map(number)),
            ("spoke_grants_endpoint_latency_seconds", "Smoothed time to an answer", |e| Some(e.latency_ms? / 1000.0)),
        ];
        for (name, help, value) in families {
            let samples: Vec<_> = endpoints.iter().filter_map(|(host, e)| Some((*host, value(e)?))).collect();
            out.by(Kind::Gauge, name, help, "endpoint", &samples);
        }
    }
}
