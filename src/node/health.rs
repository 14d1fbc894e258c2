//! Serves the local endpoints from the last facts, at the configured and the tunnel's addresses. Waits for the reconciler's
//! status and that of the components.
use crate::changes::requests::Changes;
use crate::reconciler::{Cause, NetStatus};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use spoke_api::health::fold::Moment;
use spoke_api::health::page::facts::{Details, PastStep};
use spoke_api::health::page::policy;
use spoke_api::health::routes::{View, route};
use spoke_api::health::summary::{Components, Interfaces, Link, Net, Snapshot};
use spoke_api::http::limit::Rate;
use spoke_api::http::{Request, Response};
use spoke_api::responses::ResponseCounts;
use spoke_config::Config;
use spoke_config::effective::Effective;
use spoke_model::time::Boot;
use spoke_net::state::Observed;
use spoke_sys::clock::Clock;
use spoke_sys::http_server::{Limits, Listeners, Plain, Server, Service, stopped, with_own_addresses};
use spoke_sys::process;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Limits for clients of the local endpoints. Requests have no body.
pub const LIMITS: Limits = Limits {
    name: "health",
    connections: 256,
    per_source: 32,
    header: Duration::from_secs(10),
    body: Duration::from_secs(5),
    stall: Duration::from_secs(10),
    body_bytes: 0,
    bodies_bytes: 0,
    rate: Some(Rate { per_second: 100, burst: 300 }),
};

/// With more peers than this the list is serialised on the blocking pool.
const MANY_PEERS: usize = 500;

/// Dependencies of the endpoints.
#[derive(Debug)]
pub struct Deps<C> {
    /// Clocks.
    pub clock: C,
    /// When the process started.
    pub started: Boot,
    /// Configuration.
    pub config: Arc<Config>,
    /// Status of the reconciler.
    pub net: watch::Receiver<NetStatus>,
    /// Status of the other tasks.
    pub components: watch::Receiver<Components>,
    /// Observes the kernel for the page; `None`: there is none yet.
    pub changes: Option<Changes>,
    /// Responses of the agent API, where it is served.
    pub agent: Option<Arc<ResponseCounts>>,
    /// True when the process stops.
    pub stop: watch::Receiver<bool>,
}

/// The kernel is observed for an open page when the last observation is this old, unless there are [`MANY_PEERS`].
const PAGE_FRESH: Duration = Duration::from_secs(4);
/// A page that was not asked for within this time is closed: the earlier observation, which rates need, is dropped.
const PAGE_OPEN: Duration = Duration::from_secs(90);
/// Least and longest time between the two observations of a rate, where there are enough.
const RATE_TIME: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(10));
/// Steps the page shows.
const STEPS: usize = 8;

/// What requests are answered from.
#[derive(Debug)]
struct Shown {
    snapshot: Arc<Snapshot>,
    interfaces: Interfaces,
    details: Arc<Details>,
}

#[derive(Debug)]
struct Endpoints<C> {
    clock: C,
    started: Boot,
    config: Arc<Config>,
    config_json: Arc<[u8]>,
    config_stats: Value,
    agent: Option<Arc<ResponseCounts>>,
    page_policy: String,
    shown: Mutex<Arc<Shown>>,
    /// When the page was last asked for.
    viewed: Mutex<Option<Boot>>,
    changes: Option<Changes>,
    net: watch::Receiver<NetStatus>,
}

/// What the reconcile task reports, with its peers counted.
pub fn summarize(status: &NetStatus, now: Boot) -> Net {
    Net {
        passes: status.passes,
        at: status.at,
        observed_at: status.observed.at,
        clean: status.clean,
        generation: status.desired.generation,
        changes: status.changes,
        repairs: status.repairs,
        failures: status.failures,
        drifts: (status.drift_count, status.drifts_left),
        held: status.left.held.len(),
        conditions: status.conditions.clone(),
        since: status.since,
        links: Link::all(&status.desired, &status.observed, &status.handshakes, now),
    }
}

impl<C: Clock> Endpoints<C> {
    fn new(deps: &Deps<C>) -> Self {
        let config = &deps.config;
        let config_json = serde_json::to_vec(&**config).unwrap_or_else(|e| format!("{{\"error\":\"{e}\"}}").into());
        let peers: usize = config.interfaces.iter().map(|i| i.peers.len()).sum();
        let hubs = config.uplink.as_ref().map_or(0, |u| u.hubs.len());
        let at = (deps.clock.now(), deps.clock.wall());
        let interfaces = Interfaces::new(Arc::default(), Arc::default(), Arc::default(), at);
        let empty = Shown { snapshot: Arc::default(), interfaces, details: Arc::default() };
        Self {
            clock: deps.clock.clone(),
            started: deps.started,
            config: config.clone(),
            config_json: config_json.into(),
            config_stats: json!({
                "role": config.node.role, "interfaces": config.interfaces.len(), "configuredPeers": peers, "hubs": hubs,
            }),
            agent: deps.agent.clone(),
            page_policy: policy(|b| STANDARD.encode(ring::digest::digest(&ring::digest::SHA256, b))),
            shown: Mutex::new(Arc::new(empty)),
            viewed: Mutex::new(None),
            changes: deps.changes.clone(),
            net: deps.net.clone(),
        }
    }

    /// Takes the status of a pass; once a pass, whatever the number of requests.
    fn take(&self, status: &NetStatus, components: &Components) {
        let now = self.clock.now();
        let net = summarize(status, now);
        let (desired, observed) = (status.desired.clone(), status.observed.clone());
        let interfaces = Interfaces::new(desired, observed, status.handshakes.clone(), (now, self.clock.wall()));
        let snapshot = Arc::new(Snapshot { net, components: components.clone() });
        let shown = Shown { snapshot, interfaces, details: Arc::new(self.details(status, now)) };
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(shown);
    }

    /// Takes the status of the components alone.
    fn take_components(&self, components: &Components) {
        let before = self.shown();
        let snapshot = Arc::new(Snapshot { net: before.snapshot.net.clone(), components: components.clone() });
        let shown = Shown { snapshot, interfaces: before.interfaces.clone(), details: before.details.clone() };
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(shown);
    }

    /// What only the page needs.
    fn details(&self, status: &NetStatus, now: Boot) -> Details {
        let last = self.shown().details.clone();
        let viewed = *self.viewed.lock().unwrap_or_else(PoisonError::into_inner);
        let open = viewed.is_some_and(|at| now.since(at) < PAGE_OPEN);
        let apart = |o: &Observed| status.observed.at.since(o.at);
        let before = match &last.before {
            Some(before) if apart(&last.observed) < RATE_TIME.0 && apart(before) < RATE_TIME.1 => before.clone(),
            Some(_) | None => last.observed.clone(),
        };
        let step = |s: &crate::reconciler::AppliedStep| PastStep {
            at: s.at,
            repair: s.cause == Cause::Drift,
            text: s.error.as_ref().map_or_else(|| s.what.clone(), |e| format!("{}: {e}", s.what)),
            refused: s.error.is_some(),
        };
        Details {
            effective: status.effective.clone().or_else(|| Some(Arc::new(Effective::of(self.config.clone())))),
            desired: status.desired.clone(),
            observed: status.observed.clone(),
            before: Some(before).filter(|_| open),
            handshakes: status.handshakes.clone(),
            left: status.left.clone(),
            steps: status.history.iter().rev().take(STEPS).rev().map(step).collect(),
        }
    }

    /// Notes that the page is open, and has the kernel observed for its next request.
    fn view(self: &Arc<Self>, shown: &Shown) {
        let now = self.clock.now();
        *self.viewed.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        let Some(changes) = self.changes.clone().filter(|_| shown.interfaces.peers() <= MANY_PEERS) else { return };
        let (net, clock) = (self.net.clone(), self.clock.clone());
        tokio::spawn(async move { changes.refresh(&net, &clock, PAGE_FRESH).await });
    }

    fn shown(&self) -> Arc<Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The endpoints as a service; shared by all listeners.
struct Shared<C>(Arc<Endpoints<C>>);

impl<C: Clock> Service for Shared<C> {
    async fn call(&self, request: Request) -> Response {
        let shown = self.0.shown();
        if request.path == "/wireguard" && shown.interfaces.peers() > MANY_PEERS {
            let shown = shown.clone();
            // If the pool is gone, the body is made below.
            let _ = tokio::task::spawn_blocking(move || shown.interfaces.body()).await;
        }
        let at = Moment {
            now: self.0.clock.now(),
            wall: self.0.clock.wall(),
            trusted: shown.snapshot.components.clock_trusted,
            started: self.0.started,
        };
        let view = View {
            snapshot: &shown.snapshot,
            at,
            settings: &self.0.config.health,
            interfaces: &shown.interfaces,
            config: self.0.config_json.clone(),
            config_stats: &self.0.config_stats,
            role: self.0.config.node.role,
            process: (request.path == "/metrics").then(process::read),
            agent: self.0.agent.as_deref(),
            page_policy: &self.0.page_policy,
            details: &shown.details,
        };
        let response = route(&view, &request);
        if request.path == "/" && response.status == 200 {
            self.0.view(&shown);
        }
        response
    }
}

/// Serves until the process stops.
pub async fn run<C: Clock>(mut deps: Deps<C>) -> Result<(), Infallible> {
    let endpoints = Arc::new(Endpoints::new(&deps));
    let mut listeners = Listeners::new(Server::new(Shared(endpoints.clone()), Plain, LIMITS));
    loop {
        let wanted = {
            let status = deps.net.borrow_and_update().clone();
            endpoints.take(&status, &deps.components.borrow_and_update());
            let own = status.desired.links.values().flat_map(|l| &l.addresses).map(|net| net.addr());
            with_own_addresses(&deps.config.health.listen, own.filter(|_| deps.config.health.tunnel))
        };
        listeners.set(&wanted);
        loop {
            tokio::select! {
                net = deps.net.changed() => match net {
                    Ok(()) => break,
                    // The reconciler has ended, and the process ends with it.
                    Err(_) => std::future::pending::<()>().await,
                },
                components = deps.components.changed() => match components {
                    Ok(()) => endpoints.take_components(&deps.components.borrow_and_update()),
                    Err(_) => break,
                },
                () = stopped(&mut deps.stop) => {
                    listeners.close().await;
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
