//! The fleet in Prometheus text format, on listeners of its own: plain HTTP, no key, no name of a node.
use crate::api::state::ApiState;
use crate::clock::now_ms;
use crate::store::StoreError;
use crate::store::node::NodeState;
use crate::store::node_status::FleetCounts;
use crate::store::reporting::ReportCounts;
use spoke_api::exposition::{CONTENT_TYPE, Exposition, Kind, Process, flag, number};
use spoke_api::http::limit::Rate;
use spoke_api::http::{Body, Request, Response, host_is_ours};
use spoke_api::responses::ResponseCounts;
use spoke_enroll::wire::Outcome;
use spoke_model::error_chain::ErrorChain;
use spoke_model::time::{Boot, Wall};
use spoke_sys::clock::{Clock as _, SystemClock};
use spoke_sys::http_server::{Limits, Listeners, Plain, Server, Service};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// For scrapers.
const LIMITS: Limits = Limits {
    name: "metrics",
    connections: 32,
    per_source: 8,
    header: Duration::from_secs(10),
    body: Duration::from_secs(5),
    stall: Duration::from_secs(10),
    body_bytes: 0,
    bodies_bytes: 0,
    rate: Some(Rate { per_second: 10, burst: 30 }),
};

/// What the database knows of the fleet.
#[derive(Clone, Debug)]
struct Fleet {
    counts: FleetCounts,
    reports: ReportCounts,
    /// Tokens with a use left, and when the first of them expires.
    tokens: (u64, Option<u64>),
}

/// What the metrics are made of.
#[derive(Debug)]
struct Scrape<'a> {
    /// `None`: the database does not answer.
    fleet: Option<Fleet>,
    connected: usize,
    responses: &'a ResponseCounts,
    certificate: Option<Wall>,
    process: Process,
    started: Boot,
}

/// Serves `/metrics`.
struct Metrics {
    state: Arc<ApiState>,
    certificate: PathBuf,
    started: Boot,
}

/// Starts to serve; the listeners close when they are dropped.
pub fn serve(state: Arc<ApiState>, certificate: PathBuf, listen: &[SocketAddr]) -> Listeners {
    let started = SystemClock.now();
    let mut listeners = Listeners::new(Server::new(Metrics { state, certificate, started }, Plain, LIMITS));
    listeners.set(&listen.iter().copied().collect());
    listeners
}

impl Service for Metrics {
    async fn call(&self, request: Request) -> Response {
        if let Some(host) = &request.host
            && !host_is_ours(host, &[])
        {
            return Response::error(421, "Unknown host name: ask by an address");
        }
        match (request.method.as_str(), request.path.as_str()) {
            ("GET" | "HEAD", "/metrics") => {}
            (_, "/metrics") => return Response::error(405, "Only GET is served here").with("allow", "GET, HEAD"),
            _ => return Response::error(404, "Not found; see /metrics"),
        }
        let fleet = self.fleet().await;
        if let Err(e) = &fleet {
            tracing::warn!(error = %ErrorChain(e), "fleet not counted for the metrics");
        }
        let certificate = self.certificate.clone();
        let read =
            tokio::task::spawn_blocking(move || (spoke_sys::tls::expiry(&certificate), spoke_sys::process::read()));
        let (certificate, process) = read.await.unwrap_or_default();
        let text = text(&Scrape {
            fleet: fleet.ok(),
            connected: self.state.store.waiter_count(),
            responses: &self.state.handlers.responses,
            certificate,
            process,
            started: self.started,
        });
        Response::new(200, CONTENT_TYPE, Body::Owned(text.into_bytes()))
    }
}

impl Metrics {
    async fn fleet(&self) -> Result<Fleet, StoreError> {
        let now = now_ms();
        let mut tx = self.state.store.read().await?;
        let valid: Vec<_> = tx.tokens().await?.into_iter().filter(|t| t.uses_left(now) > 0).collect();
        let tokens = (valid.len() as u64, valid.iter().filter_map(|t| t.expires_ms).min());
        Ok(Fleet { counts: tx.fleet_counts(now).await?, reports: tx.report_counts(now).await?, tokens })
    }
}

/// Milliseconds since 1970 as a sample's value, in seconds.
fn seconds(ms: u64) -> f64 {
    number(ms) / 1000.0
}

/// Samples by a label with fixed values: each is there from the start, also at 0.
fn each<'a>(names: &[&'a str], counts: &BTreeMap<String, u64>) -> Vec<(&'a str, f64)> {
    names.iter().map(|name| (*name, number(counts.get(*name).copied().unwrap_or(0)))).collect()
}

/// The text.
fn text(scrape: &Scrape<'_>) -> String {
    let mut out = Exposition::default();
    out.family(Kind::Gauge, "spoke_control_build_info", "The running build");
    out.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    let help = "1 if the database answered this scrape; without it there are no figures of the fleet";
    out.single(Kind::Gauge, "spoke_control_database_up", help, flag(scrape.fleet.is_some()));
    if let Some(fleet) = &scrape.fleet {
        write_fleet(&mut out, fleet);
    }
    let help = "Nodes with a long-poll at this process";
    out.single(Kind::Gauge, "spoke_control_nodes_connected", help, number(scrape.connected as u64));
    let help = "Responses to devices and operators by status";
    scrape.responses.write(&mut out, "spoke_control_responses_total", help);
    if let Some(at) = scrape.certificate {
        let help = "End of the validity of the certificate on disk in seconds since 1970";
        out.single(Kind::Gauge, "spoke_control_certificate_expiry_timestamp_seconds", help, number(at.secs()));
    }
    scrape.process.write(&mut out, scrape.started);
    out.into_text()
}

fn write_fleet(out: &mut Exposition, fleet: &Fleet) {
    let (counts, reports) = (&fleet.counts, &fleet.reports);
    let states = [NodeState::Expected, NodeState::Pending, NodeState::Active, NodeState::Removed];
    let states = each(&states.map(NodeState::as_str), &counts.nodes);
    out.by(Kind::Gauge, "spoke_control_nodes", "Nodes and hubs by state", "state", &states);
    let help = "Nodes whose last report is younger than twenty minutes";
    out.single(Kind::Gauge, "spoke_control_nodes_reporting", help, number(counts.reporting));
    let health = [("healthy", number(reports.healthy)), ("unhealthy", number(reports.unhealthy))];
    let help = "Reporting nodes by their own verdict";
    out.by(Kind::Gauge, "spoke_control_reports", help, "health", &health);
    let outcomes = [Outcome::Applied, Outcome::Trial, Outcome::Reverted, Outcome::Refused].map(Outcome::as_str);
    let outcomes = each(&outcomes, &reports.outcomes);
    let help = "Reporting nodes by what became of their newest state";
    out.by(Kind::Gauge, "spoke_control_states", help, "outcome", &outcomes);
    let versions: Vec<_> = reports.versions.iter().map(|(version, n)| (version.as_str(), number(*n))).collect();
    out.by(Kind::Gauge, "spoke_control_versions", "Reporting nodes by version", "version", &versions);
    let free: Vec<_> = counts.free_addresses.iter().map(|(network, n)| (network.as_str(), number(*n))).collect();
    let help = "Free addresses of a network's first pool";
    out.by(Kind::Gauge, "spoke_control_free_addresses", help, "network", &free);
    let (valid, expiry) = fleet.tokens;
    out.single(Kind::Gauge, "spoke_control_tokens", "Enrolment tokens with a use left", number(valid));
    if let Some(expiry) = expiry {
        let help = "When the next of these tokens expires in seconds since 1970";
        out.single(Kind::Gauge, "spoke_control_token_expiry_timestamp_seconds", help, seconds(expiry));
    }
    let Some(chain) = &counts.chain else { return };
    if let Some(at) = chain.answered_ms {
        let help = "When the chain last answered in seconds since 1970";
        out.single(Kind::Gauge, "spoke_control_chain_answer_timestamp_seconds", help, seconds(at));
    }
    if let Some(height) = chain.height {
        let help = "Height up to which all events are known";
        out.single(Kind::Gauge, "spoke_control_chain_block", help, number(height));
    }
    let help = "1 if the chain does not answer or cannot be read";
    out.single(Kind::Gauge, "spoke_control_chain_degraded", help, flag(chain.trouble.is_some()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::admission::ChainProgress;

    /// Every family, as a file: scripts/test-host has promtool look at it.
    #[test]
    fn metrics_are_those_of_the_file() {
        let chain = ChainProgress {
            contract: "0x37d2106bADB01dd5bE1926e45D172Cb4203C4186".into(),
            chain_id: 8453,
            follower: "control-1/7".into(),
            updated_ms: 1_767_225_600_000,
            answered_ms: Some(1_767_225_600_500),
            height: Some(17),
            trouble: None,
        };
        let named = |all: &[(&str, u64)]| all.iter().map(|(k, n)| ((*k).to_owned(), *n)).collect::<BTreeMap<_, _>>();
        let fleet = Fleet {
            counts: FleetCounts {
                nodes: named(&[("active", 40), ("pending", 1)]),
                reporting: 39,
                free_addresses: named(&[("field", 65_000), ("lab", 12)]),
                chain: Some(chain),
            },
            reports: ReportCounts {
                outcomes: named(&[("applied", 37), ("refused", 2)]),
                healthy: 38,
                unhealthy: 1,
                versions: named(&[("0.1.0", 39)]),
            },
            tokens: (2, Some(1_767_230_000_000)),
        };
        let responses = ResponseCounts::default();
        responses.count(200);
        let process = Process {
            cpu_seconds: 1.5,
            resident_bytes: Some(30 << 20),
            virtual_bytes: Some(300 << 20),
            threads: Some(5),
            open_fds: Some(40),
            max_fds: Some(1024),
            booted: 1_767_225_000.0,
            ..Process::default()
        };
        let (certificate, started) = (Some(Wall(2_000_000_000)), Boot::from_secs(60));
        let mut scrape =
            Scrape { fleet: Some(fleet), connected: 38, responses: &responses, certificate, process, started };
        let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
        let made = text(&scrape).replacen(&version, "version=\"0.0.0\"", 1);
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/control.metrics");
        if std::env::var_os("SPOKE_BLESS").is_some() {
            std::fs::write(file, &made).unwrap();
        }
        assert_eq!(made, std::fs::read_to_string(file).unwrap(), "SPOKE_BLESS=1 writes it");
        scrape.fleet = None;
        let without = text(&scrape);
        assert!(
            without.contains("spoke_control_database_up 0\n") && !without.contains("spoke_control_nodes{"),
            "{without}"
        );
    }
}
