//! Serves the control socket. Waits for connections and their requests.
use crate::audit::Audit;
use crate::changes::requests::Changes;
use crate::control_session::{EnrolAgainError, RotationError, SessionRequest};
use crate::health::summarize;
use crate::reconciler::{Cause, NetStatus};
use crate::reload::Reload;
use serde_json::value::{RawValue, to_raw_value};
use spoke_api::health::fold::{Moment, SCHEMA, fold, readiness};
use spoke_api::health::page::facts::names;
use spoke_api::health::summary::{Components, Snapshot};
use spoke_api::socket::{
    AppliedStepReport, ConditionReport, LinkReport, PeerReport, Readiness, RouteReport, SocketRequest, SocketResponse,
    StatusReport,
};
use spoke_change::audit::{Actor, Allowance};
use spoke_change::request::RollbackResult;
use spoke_config::Config;
use spoke_config::effective::Effective;
use spoke_config::interface::DriftPolicy;
use spoke_grants::report::Report;
use spoke_model::key::PublicKey;
use spoke_model::secret::Secret;
use spoke_model::time::Boot;
use spoke_net::drift;
use spoke_net::render;
use spoke_sys::clock::Clock;
use spoke_sys::socket::{Connection, Listener};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;

/// Connections served at once; further ones wait.
const MAX_CONNECTIONS: usize = 16;
/// Connections of unprivileged users, so that root always gets one.
const MAX_UNPRIVILEGED: usize = 8;
/// Refusals recorded in the audit trail per hour; the log has all of them.
const REFUSALS_PER_HOUR: u32 = 30;

/// How old an observation of the kernel `spoke status` shows may be.
const STATUS_FRESH: Duration = Duration::from_secs(1);
/// Timeout until the control session takes a request for a new key.
const ROTATE_TIMEOUT: Duration = Duration::from_secs(5);

/// Timeout of a second enrolment: two requests.
const ENROL_TIMEOUT: Duration = Duration::from_secs(75);

/// Makes a task's part of the status report.
pub type ReportView = Arc<dyn Fn() -> Option<serde_json::Value> + Send + Sync>;

/// The facts and handles that responses are made of.
#[derive(Clone)]
pub struct Answers<C> {
    /// Clocks.
    pub clock: C,
    /// When the supervisor started.
    pub started: Boot,
    /// Configuration.
    pub config: Arc<Config>,
    /// Status of the reconciler.
    pub net: watch::Receiver<NetStatus>,
    /// Status of the other tasks.
    pub components: watch::Receiver<Components>,
    /// The uplink.
    pub uplink: ReportView,
    /// The grants task, where an interface needs grants.
    pub grants: Option<GrantsView>,
    /// The ledger of changes.
    pub changes: Changes,
    /// The audit trail.
    pub audit: Audit,
    /// The control plane, where one is configured.
    pub control: Option<ControlView>,
    /// Takes another configuration.
    pub reload: Arc<Reload>,
}

/// Handles of the control session.
#[derive(Clone)]
pub struct ControlView {
    /// Its part of the status report.
    pub report: ReportView,
    /// Requests to it.
    pub requests: mpsc::Sender<SessionRequest>,
}

/// Handles of the grants task.
#[derive(Clone, Debug)]
pub struct GrantsView {
    /// Its report.
    pub report: watch::Receiver<Option<Arc<Report>>>,
    /// Notified to verify all grants again.
    pub refresh: Arc<Notify>,
}

/// Why a new WireGuard key was not begun.
#[derive(Debug, thiserror::Error)]
enum RotateRefused {
    /// Only the control plane could announce the key to the hub.
    #[error("no [control] is configured to announce the new key to the hub: change the key file and the hub by hand")]
    NoControlPlane,
    /// There is no control session yet.
    #[error("the node is not enrolled yet: wait for the enrolment (spoke status)")]
    NotEnrolled,
    /// Another request came first.
    #[error("a key change was requested already: see spoke status")]
    UnderWay,
    /// The control session refused it.
    #[error(transparent)]
    Session(#[from] RotationError),
}

/// Why the node was not enrolled again.
#[derive(Debug, thiserror::Error)]
enum EnrolAgainRefused {
    /// Nothing to enrol with.
    #[error("no [control] is configured: add it, with url and token")]
    NoControlPlane,
    /// The first enrolment has not succeeded yet.
    #[error("the node is not enrolled yet: it enrols by itself with control.token; `spoke status` has the reason")]
    NotEnrolled,
    /// No answer of the session.
    #[error("the control session does not answer: see `spoke status`, then try again")]
    Busy,
    /// The control session refused it.
    #[error(transparent)]
    Session(#[from] EnrolAgainError),
}

/// Serves until the listener fails.
pub async fn run<C: Clock>(listener: Listener, answers: Answers<C>) -> Result<(), std::io::Error> {
    let mut open = JoinSet::new();
    let unprivileged = Arc::new(());
    let refusals = Arc::new(Mutex::new(Allowance::new(REFUSALS_PER_HOUR, answers.clock.now())));
    loop {
        if open.len() >= MAX_CONNECTIONS {
            open.join_next().await;
        }
        let connection = listener.accept().await?;
        let place = (!connection.caller().is_trusted()).then(|| unprivileged.clone());
        if Arc::strong_count(&unprivileged) > MAX_UNPRIVILEGED + 1 {
            tracing::warn!(uid = connection.caller().uid, "too many control connections of unprivileged users");
            continue;
        }
        let (answers, refusals) = (answers.clone(), refusals.clone());
        open.spawn(async move {
            let _place = place;
            if let Err(e) = serve(connection, &answers, &refusals).await {
                tracing::debug!(error = %e, "control connection ended");
            }
        });
        while open.try_join_next().is_some() {}
    }
}

async fn serve<C: Clock>(
    mut connection: Connection,
    answers: &Answers<C>,
    refusals: &Mutex<Allowance>,
) -> Result<(), std::io::Error> {
    let caller = connection.caller();
    while let Some(line) = connection.line().await? {
        let mut restart = false;
        let response = match serde_json::from_slice::<SocketRequest>(&line) {
            Err(e) => SocketResponse::Error(format!("unknown request: {e}; is the supervisor of another version?")),
            Ok(request) if request.mutates() && !caller.is_trusted() => {
                let refusal = format!("user {} has read access only: run it as root", caller.uid);
                tracing::warn!(uid = caller.uid, request = request.name(), "control request needs root");
                if refusals.lock().unwrap_or_else(PoisonError::into_inner).take(answers.clock.now()) {
                    answers.audit.record(&Actor::User(caller.uid), request.name(), Err(&refusal));
                }
                SocketResponse::Error(refusal)
            }
            Ok(SocketRequest::Grants) => answers.grants()?,
            Ok(SocketRequest::GrantsRefresh) => match &answers.grants {
                Some(view) => {
                    view.refresh.notify_one();
                    SocketResponse::Ok(RawValue::NULL.to_owned())
                }
                None => no_grants(),
            },
            Ok(request @ SocketRequest::Reload) => {
                let reload = answers.reload.clone();
                let checked =
                    tokio::task::spawn_blocking(move || reload.check()).await.map_err(std::io::Error::other)?;
                let result = checked.as_ref().map(drop).map_err(|e| e as &dyn Display);
                answers.audit.record(&Actor::User(caller.uid), request.name(), result);
                restart = checked.is_ok();
                respond(checked)?
            }
            Ok(SocketRequest::Edited) => {
                let reload = answers.reload.clone();
                let lines =
                    tokio::task::spawn_blocking(move || reload.edited()).await.map_err(std::io::Error::other)?;
                SocketResponse::Ok(to_raw_value(&lines)?)
            }
            Ok(SocketRequest::Drift) => SocketResponse::Ok(to_raw_value(&answers.drift().await)?),
            Ok(request @ SocketRequest::RotateKey) => {
                let begun = answers.rotate().await;
                let result = begun.as_ref().map(drop).map_err(|e| e as &dyn Display);
                answers.audit.record(&Actor::User(caller.uid), request.name(), result);
                respond(begun)?
            }
            Ok(SocketRequest::EnrolAgain { token }) => {
                let done = answers.enrol_again(token.map(Secret::new)).await;
                let result = done.as_ref().map(drop).map_err(|e| e as &dyn Display);
                answers.audit.record(&Actor::User(caller.uid), "enrol again", result);
                respond(done)?
            }
            Ok(SocketRequest::DriftRepair { what }) => {
                respond(answers.changes.reconcile(what, Actor::User(caller.uid)).await)?
            }
            Ok(SocketRequest::History) => respond(answers.changes.history().await)?,
            Ok(SocketRequest::Diff { a, b }) => respond(answers.changes.diff(a, b).await)?,
            Ok(SocketRequest::Rollback { to }) => {
                let done = answers.changes.rollback(to, Actor::User(caller.uid)).await;
                respond(done.map(|d| RollbackResult { generation: d.generation, lines: d.lines }))?
            }
            Ok(SocketRequest::Confirm { generation }) => {
                let done = answers.changes.confirm(generation, Actor::User(caller.uid)).await;
                respond(done.map(|d| RollbackResult { generation: d.generation, lines: d.lines }))?
            }
            Ok(SocketRequest::Audit { limit }) => answers.audit(limit).await?,
            Ok(SocketRequest::Readiness) => SocketResponse::Ok(to_raw_value(&answers.readiness())?),
            Ok(SocketRequest::Status) => SocketResponse::Ok(to_raw_value(&answers.status().await)?),
        };
        let mut text = serde_json::to_vec(&response)?;
        text.push(b'\n');
        connection.send(&text).await?;
        // The caller has the differences before the socket closes.
        if restart {
            answers.reload.request();
        }
    }
    Ok(())
}

fn respond<T: serde::Serialize, E: ToString>(
    done: Result<T, E>,
) -> Result<SocketResponse<Box<RawValue>>, serde_json::Error> {
    Ok(match done {
        Ok(value) => SocketResponse::Ok(to_raw_value(&value)?),
        Err(e) => SocketResponse::Error(e.to_string()),
    })
}

fn no_grants() -> SocketResponse<Box<RawValue>> {
    SocketResponse::Error("no interface has access = \"nft\": no peer needs a grant".to_owned())
}

impl<C: Clock> Answers<C> {
    async fn rotate(&self) -> Result<(), RotateRefused> {
        let Some(view) = &self.control else { return Err(RotateRefused::NoControlPlane) };
        let (answer, answered) = oneshot::channel();
        let sent = view.requests.try_send(SessionRequest::Rotate(answer)).is_ok();
        // The control session takes requests only after the enrolment.
        match tokio::time::timeout(ROTATE_TIMEOUT, answered).await {
            Ok(Ok(begun)) => begun.map_err(RotateRefused::Session),
            Ok(Err(_)) | Err(_) if sent => Err(RotateRefused::NotEnrolled),
            Ok(Err(_)) | Err(_) => Err(RotateRefused::UnderWay),
        }
    }

    async fn enrol_again(&self, token: Option<Secret<String>>) -> Result<(), EnrolAgainRefused> {
        let Some(view) = &self.control else { return Err(EnrolAgainRefused::NoControlPlane) };
        let enrolled = (view.report)().is_some_and(|r| r["enrolled"] == true);
        if !enrolled {
            return Err(EnrolAgainRefused::NotEnrolled);
        }
        let (answer, answered) = oneshot::channel();
        if view.requests.try_send(SessionRequest::EnrolAgain(token, answer)).is_err() {
            return Err(EnrolAgainRefused::Busy);
        }
        match tokio::time::timeout(ENROL_TIMEOUT, answered).await {
            Ok(Ok(done)) => done.map_err(EnrolAgainRefused::Session),
            Ok(Err(_)) | Err(_) => Err(EnrolAgainRefused::Busy),
        }
    }

    fn grants(&self) -> Result<SocketResponse<Box<RawValue>>, serde_json::Error> {
        let report = self.grants.as_ref().and_then(|view| view.report.borrow().clone());
        Ok(match report {
            Some(report) => SocketResponse::Ok(to_raw_value(&*report)?),
            None => no_grants(),
        })
    }

    /// Current drift, observed for this request.
    async fn drift(&self) -> drift::DriftReport {
        self.changes.refresh(&self.net, &self.clock, Duration::ZERO).await;
        let status = self.net.borrow().clone();
        let node = self.config.node.id.as_ref().map(ToString::to_string);
        let own = Effective::of(self.config.clone());
        let names = crate::agent::names(status.effective.as_deref().unwrap_or(&own));
        let seen = self.clock.wall().before(self.clock.now().since(status.observed.at));
        let mut report = drift::report(&status.desired, &status.observed, &names, node, seen);
        report.history = status.drifts.into();
        report
    }

    async fn audit(&self, limit: usize) -> Result<SocketResponse<Box<RawValue>>, serde_json::Error> {
        let dir = self.config.node.state_dir.clone();
        let read = tokio::task::spawn_blocking(move || crate::audit::entries(&dir)).await;
        Ok(match read {
            Ok(Ok((mut list, _))) => {
                list.reverse();
                list.truncate(limit);
                SocketResponse::Ok(to_raw_value(&list)?)
            }
            Ok(Err(e)) => SocketResponse::Error(e.to_string()),
            Err(e) => SocketResponse::Error(e.to_string()),
        })
    }

    fn snapshot(&self) -> (Snapshot, Moment) {
        let (now, components) = (self.clock.now(), self.components.borrow().clone());
        let at = Moment { now, wall: self.clock.wall(), trusted: components.clock_trusted, started: self.started };
        (Snapshot { net: summarize(&self.net.borrow(), now), components }, at)
    }

    fn readiness(&self) -> Readiness {
        let (snapshot, at) = self.snapshot();
        readiness(&snapshot, &at)
    }

    /// The status, with the kernel as it is: observed for this request unless that was done just before.
    async fn status(&self) -> StatusReport {
        if self.net.borrow().passes > 0 {
            self.changes.refresh(&self.net, &self.clock, STATUS_FRESH).await;
        }
        let (snapshot, at) = self.snapshot();
        let health = fold(&snapshot, &at);
        let (now, status) = (at.now, self.net.borrow().clone());
        let own = Effective::of(self.config.clone());
        let names = names(status.effective.as_deref().unwrap_or(&own));
        StatusReport {
            schema: SCHEMA,
            version: spoke_model::VERSION.to_owned(),
            status: health.status.as_str().to_owned(),
            time: at.stamp(),
            observed_seconds: now.since(status.observed.at).as_secs_f64(),
            uptime_seconds: now.since(self.started).as_secs_f64(),
            node_id: self.config.node.id.as_ref().map(ToString::to_string),
            passes: status.passes,
            last_pass_seconds: now.since(status.at).as_secs_f64(),
            clean: status.clean,
            generation: status.desired.generation,
            changes: status.changes,
            repairs: status.repairs,
            failures: status.failures,
            conditions: health
                .reasons
                .into_iter()
                .map(|r| ConditionReport { code: r.code.to_string(), seconds: r.seconds, detail: r.detail })
                .collect(),
            left: status
                .left
                .steps
                .iter()
                .chain(&status.left.held)
                .map(|s| render::step(s, &status.observed))
                .collect(),
            uplink: (self.uplink)(),
            control: self.control.as_ref().and_then(|view| (view.report)()),
            interfaces: links(&status, now, &names),
            history: status
                .history
                .iter()
                .map(|d| AppliedStepReport {
                    seconds_ago: now.since(d.at).as_secs(),
                    time: d.wall.to_string(),
                    cause: match d.cause {
                        Cause::Change => "change".to_owned(),
                        Cause::Drift => "drift".to_owned(),
                    },
                    what: d.what.clone(),
                    error: d.error.clone(),
                })
                .collect(),
        }
    }
}

fn links(status: &NetStatus, now: Boot, names: &BTreeMap<PublicKey, &str>) -> Vec<LinkReport> {
    let wanted = status.observed.links.iter().filter(|(_, l)| l.wireguard);
    wanted
        .map(|(name, link)| LinkReport {
            name: name.clone(),
            public_key: link.public_key,
            listen_port: link.listen_port,
            mtu: link.mtu,
            up: link.up,
            addresses: link.addresses.iter().copied().collect(),
            routes: link.routes.iter().map(RouteReport::from).collect(),
            policy: status.desired.links.get(name).map_or(DriftPolicy::Observe, |l| l.policy),
            peers: link
                .peers
                .iter()
                .map(|(key, p)| PeerReport {
                    public_key: *key,
                    name: names.get(key).map(|n| (*n).to_owned()),
                    endpoint: p.endpoint,
                    allowed_ips: p.allowed_ips.iter().copied().collect(),
                    handshake_age: status.handshakes.at(name, key).map(|at| now.since(at).as_secs()),
                    rx: p.counters.rx,
                    tx: p.counters.tx,
                    keepalive: p.keepalive,
                })
                .collect(),
        })
        .collect()
}
