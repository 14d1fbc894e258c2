//! Enrols, follows the control plane by long-poll, puts new states on trial, and reports what became of them.
use super::confirm::{Evidence, Trial, Verdict};
use super::document::{Envelope, MAX_BYTES, Refusal, StateDocument, newer_than};
use super::identity::{Enrolment, Rejected, ServerClock};
use super::overlay::effective;
use super::request::{Asked, Nonce};
use super::signature::SignKey;
use super::wire::{
    self, Capabilities, Outcome, Problem, ProblemCode, ProvisionAnswer, ProvisionRequest, RegisterRequest, Report,
};
use crate::config::Config;
use crate::config::control::Control;
use crate::net::key::PublicKey;
use crate::net::task::Status as Net;
use crate::node::NodeId;
use crate::secret::Secret;
use crate::sys::clock::Clock;
use crate::sys::disk::{DiskError, Document};
use crate::sys::echo::Echo;
use crate::sys::http::{Answer, Http, HttpError, Request};
use crate::time::Boot;
use crate::update::notice::Notice;
use crate::uplink::backoff::{Backoff, Dice};
use crate::uplink::status::{State, Status as Uplink};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long anything but a long-poll may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The longest ordinary answer, in bytes.
const MAX_ANSWER: usize = 256 << 10;
/// Between echoes while a state is on trial.
const ECHO_EVERY: Duration = Duration::from_millis(500);
/// About how long a report that was not taken waits before it is tried again.
const REPORT_RETRY: Duration = Duration::from_secs(15);
/// First and longest wait after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(120));

/// Where the device keeps what it must not forget.
#[derive(Debug)]
pub struct Kept {
    /// Who we are.
    pub enrolment: Document<Enrolment>,
    /// The last good state.
    pub state: Document<Envelope>,
    /// The state that was taken back.
    pub rejected: Document<Rejected>,
}

/// Everything the task needs.
#[derive(Debug)]
pub struct Follower<H, E, C> {
    /// For the long-poll, and for everything else.
    pub http: (H, H),
    /// Echo through the tunnel.
    pub echo: E,
    /// Clocks.
    pub clock: C,
    /// Random bytes for nonces and jitter.
    pub random: fn() -> u64,
    /// The configuration of the device itself.
    pub base: Arc<Config>,
    /// Its `[control]`.
    pub control: Control,
    /// Its name.
    pub node: NodeId,
    /// Signs its requests.
    pub identity: SignKey,
    /// Public half of the tunnel's key.
    pub wireguard: PublicKey,
    /// The enrolment token, read only when it is needed.
    pub token: Option<Secret<String>>,
    /// What it can do.
    pub capabilities: Capabilities,
    /// What it keeps.
    pub kept: Kept,
    /// Where the completed configuration is published.
    pub publish: watch::Sender<Option<Arc<Config>>>,
    /// What became of it.
    pub net: watch::Receiver<Net>,
    /// Whether the hub answers.
    pub uplink: watch::Receiver<Uplink>,
    /// Told whether the control plane answers.
    pub reach: watch::Sender<Reach>,
    /// How updates of the image stand, for the report; closed where there are no slots.
    pub update: watch::Receiver<Option<Notice>>,
}

/// Whether the control plane answers and its answers are of use: for health, and for whoever judges a new system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It was not heard since the start.
    Unknown,
    /// The last exchange went well.
    Reached,
    /// The last exchange failed.
    Away(String),
}

/// Why the task ended; it is started again with backoff.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// What is kept cannot be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A state is kept, but it is not ours.
    #[error("the kept state is not acceptable: {0}")]
    Kept(Refusal),
}

/// A state in force or on trial.
#[derive(Clone, Debug)]
struct Candidate {
    envelope: Envelope,
    document: StateDocument,
    config: Arc<Config>,
}

struct OnTrial {
    trial: Trial,
    candidate: Candidate,
    answered: bool,
    seq: u16,
}

type Polling<H> = Pin<Box<dyn Future<Output = (H, Result<Answer, HttpError>, Nonce)> + Send>>;

impl<H: Http, E: Echo, C: Clock> Follower<H, E, C> {
    /// Follows the control plane for ever. Publishes first: what was kept, or nothing but the device's own configuration.
    pub async fn run(mut self) -> Result<(), FollowError> {
        let mut server = ServerClock::new(self.clock.now(), self.clock.wall());
        let mut enrolment = self.kept.enrolment.load()?;
        let in_force = match (&enrolment, self.kept.state.load()?) {
            (Some(enrolment), Some(envelope)) => {
                let document = envelope.verify(&self.node, &enrolment.signing_keys).map_err(FollowError::Kept)?;
                let config = Arc::new(effective(&self.base, &self.control, &document));
                Some(Candidate { envelope, document, config })
            }
            (_, _) => None,
        };
        let first = in_force.as_ref().map_or_else(|| self.base.clone(), |c| c.config.clone());
        tracing::info!(generation = in_force.as_ref().map(|c| c.document.generation), "state read from disk");
        self.publish.send_replace(Some(first));
        let mut dice = Dice::new((self.random)());
        let enrolment = match enrolment.take() {
            Some(known) => known,
            None => self.enrol(&mut server, &mut dice).await?,
        };
        self.follow(enrolment, in_force, server, dice).await
    }

    fn reach(&self, now: Reach) {
        tell(&self.reach, now);
    }

    /// Asks to become a node until the answer is yes.
    async fn enrol(&mut self, server: &mut ServerClock, dice: &mut Dice) -> Result<Enrolment, FollowError> {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        let asked = ProvisionRequest {
            node_id: self.node.clone(),
            wireguard_public_key: self.wireguard,
            identity_public_key: self.identity.public(),
            version: crate::VERSION.to_owned(),
            capabilities: self.capabilities.clone(),
            metadata: Default::default(),
        };
        let body = serde_json::to_vec(&asked).unwrap_or_default();
        loop {
            let wait = match self.ask_to_enrol(server, body.clone()).await {
                Ok(Some(enrolment)) => {
                    self.kept.enrolment.store(&enrolment)?;
                    tracing::info!(node = %self.node, server = %self.control.url.0, "enrolled");
                    return Ok(enrolment);
                }
                // The clock was put right: at once, and only then.
                Ok(None) => Duration::from_millis(200),
                Err(problem) => {
                    let wait = backoff.fail(dice);
                    tracing::warn!(%problem, retry_in = ?wait, "not enrolled yet");
                    self.reach(Reach::Away(format!("not enrolled yet: {problem}")));
                    wait
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn ask_to_enrol(&mut self, server: &mut ServerClock, body: Vec<u8>) -> Result<Option<Enrolment>, String> {
        let Some(token) = &self.token else {
            return Err("there is no enrolment token: set control.token".into());
        };
        let bearer = ("authorization", format!("Bearer {}", token.reveal()));
        let (mut request, _) = self.signed(server, "POST", wire::PROVISION.to_owned(), body, TIMEOUT, MAX_ANSWER);
        request.headers.push(bearer);
        let answer = self.http.1.send(request).await.map_err(|e| chain(&e))?;
        match answer.status {
            200 => {
                let answer: ProvisionAnswer = serde_json::from_slice(&answer.body).map_err(|e| e.to_string())?;
                let config = answer.config.ok_or("the answer has no configuration")?;
                if config.node_id != self.node || config.signing_keys.is_empty() {
                    return Err("the answer is not for this node".into());
                }
                Ok(Some(Enrolment {
                    server: self.control.url.0.to_string(),
                    node_id: config.node_id,
                    signing_keys: config.signing_keys,
                }))
            }
            202 => Err("an operator has to approve this node".into()),
            _ => {
                let problem = problem(&answer);
                // Before enrolment no key is pinned: TLS alone vouches for this time, and only our own requests use it.
                match problem.as_ref().and_then(|p| p.detail.time.as_ref()) {
                    Some(time) => {
                        server.set(self.clock.now(), time.server_time_ms);
                        Ok(None)
                    }
                    None => Err(problem.map_or_else(|| format!("status {}", answer.status), |p| p.detail.message)),
                }
            }
        }
    }

    async fn follow(
        mut self,
        mut enrolment: Enrolment,
        mut in_force: Option<Candidate>,
        mut server: ServerClock,
        mut dice: Dice,
    ) -> Result<(), FollowError> {
        let mut rejected = self.kept.rejected.load()?;
        let mut on_trial: Option<OnTrial> = None;
        let mut polling: Option<Polling<H>> = None;
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        let mut poll_at = self.clock.now();
        let mut report_at = self.clock.now();
        let mut reported = None;
        let mut refused: Option<String> = None;
        let mut drift_seen = self.net.borrow().drift_count;
        let mut registered: Option<Boot> = None;
        let mut idle_http = Some(self.http.0);
        // The poll takes its client with it; nothing below uses the first one by name.
        macro_rules! signed {
            ($method:expr, $path:expr, $body:expr, $timeout:expr, $max:expr) => {
                sign(
                    &self.identity,
                    &self.node,
                    &self.clock,
                    self.random,
                    &server,
                    $method,
                    $path,
                    $body,
                    $timeout,
                    $max,
                )
            };
        }
        loop {
            let now = self.clock.now();
            if let Some(http) = idle_http.take() {
                if now < poll_at {
                    idle_http = Some(http);
                } else {
                    let have = in_force.as_ref().map_or(0, |c| c.document.generation);
                    let tried = on_trial.as_ref().map_or(0, |t| t.trial.generation());
                    let after = have.max(tried).max(rejected.as_ref().map_or(0, |r| r.generation));
                    // Not heard yet, or lost: an answer is wanted now, not at the end of a long wait.
                    let heard = *self.reach.borrow() == Reach::Reached;
                    let hold = if heard { self.control.poll_wait } else { Duration::ZERO };
                    let path = format!("{}?after={after}&wait={}", wire::STATE, hold.as_secs());
                    let (request, nonce) = signed!("GET", path, Vec::new(), hold + TIMEOUT, MAX_BYTES);
                    let mut http = http;
                    polling = Some(Box::pin(async move {
                        let answer = http.send(request).await;
                        (http, answer, nonce)
                    }));
                }
            }

            // What is on trial is judged before anything else is waited for.
            if let Some(t) = &on_trial {
                let (evidence, trouble) = evidence(&self.net.borrow(), t);
                let expects_hub = t.candidate.config.uplink.is_some();
                match t.trial.judge(now, evidence, expects_hub, trouble.as_deref()) {
                    Verdict::Open => {}
                    Verdict::Keep => {
                        if let Some(t) = on_trial.take() {
                            self.kept.state.store(&t.candidate.envelope)?;
                            enrolment.signing_keys.clone_from(&t.candidate.document.signing_keys);
                            self.kept.enrolment.store(&enrolment)?;
                            tracing::info!(generation = t.trial.generation(), "state kept");
                            in_force = Some(t.candidate);
                            report_at = now;
                        }
                    }
                    Verdict::Revert(reason) => {
                        if let Some(t) = on_trial.take() {
                            tracing::error!(%reason, "state taken back");
                            let news = Rejected { generation: t.trial.generation(), reason };
                            self.kept.rejected.store(&news)?;
                            rejected = Some(news);
                            let back = in_force.as_ref().map_or_else(|| self.base.clone(), |c| c.config.clone());
                            self.publish.send_replace(Some(back));
                            report_at = now;
                        }
                    }
                }
            }

            let up = self.uplink.borrow().state == State::Up;
            let connected = self.uplink.borrow().connected_since;
            if up
                && connected.is_some()
                && connected != registered
                && let Some(body) =
                    in_force.as_ref().and_then(|c| registration(c, &self.control, self.wireguard, self.clock.wall()))
            {
                let (request, _) = signed!("POST", wire::REGISTER.to_owned(), body, TIMEOUT, MAX_ANSWER);
                match self.http.1.send(request).await {
                    Ok(answer) if answer.status == 200 => registered = connected,
                    // The next report's turn tries again; the tunnel does not depend on it.
                    Ok(answer) => tracing::debug!(status = answer.status, "not registered"),
                    Err(e) => tracing::debug!(error = %chain(&e), "not registered"),
                }
            }
            let state = current(&in_force, on_trial.as_ref(), rejected.as_ref(), refused.as_ref());
            let healthy =
                self.net.borrow().clean && (up || in_force.as_ref().is_none_or(|c| c.config.uplink.is_none()));
            let say = (state.0, state.1, state.2, healthy, self.update.borrow().clone());
            let news = reported.as_ref() != Some(&say) && reported.is_some();
            if in_force.is_some() && (now >= report_at || news) {
                let drift = self.net.borrow().drift_count;
                let report = Report {
                    generation: say.0,
                    outcome: say.1,
                    reason: say.2.clone(),
                    healthy,
                    drift: u32::try_from(drift.saturating_sub(drift_seen)).unwrap_or(u32::MAX),
                    version: crate::VERSION.to_owned(),
                    health: say.4.as_ref().map(|update| serde_json::json!({ "update": update })),
                };
                let body = serde_json::to_vec(&report).unwrap_or_default();
                let (request, _) = signed!("POST", wire::REPORT.to_owned(), body, TIMEOUT, MAX_ANSWER);
                match self.http.1.send(request).await {
                    Ok(answer) if answer.status == 204 => {
                        drift_seen = drift;
                        tell(&self.reach, Reach::Reached);
                        report_at = now + dice.jitter(self.control.report_every);
                    }
                    Ok(_) | Err(_) => report_at = now + dice.jitter(REPORT_RETRY),
                }
                reported = Some(say);
            }

            // Without a state there is nothing to report, and a poll that is out wakes by itself.
            let idle = now + Duration::from_secs(3600);
            let mut wake_at = if in_force.is_some() { report_at } else { idle };
            if polling.is_none() {
                wake_at = wake_at.min(poll_at);
            }
            if let Some(t) = &on_trial {
                wake_at = wake_at.min(now + ECHO_EVERY).min(t.trial.deadline().max(now + ECHO_EVERY));
                let first = t.candidate.config.uplink.as_ref().and_then(|u| u.hubs.first().map(|h| (h.address, t.seq)));
                if let Some((to, seq)) = first {
                    let link = self.control.interface.clone();
                    let _ = self.echo.send(&link, to, seq).await;
                }
            }
            if let Some(t) = &mut on_trial {
                t.seq = t.seq.wrapping_add(1);
            }
            tokio::select! {
                (http, answer, nonce) = pending(&mut polling) => {
                    polling = None;
                    idle_http = Some(http);
                    let now = self.clock.now();
                    let polled = outcome(answer, nonce, &enrolment, &self.node);
                    tell(&self.reach, polled.reach());
                    match polled {
                        Polled::Nothing => {
                            // A server that stops answers early: everybody at once would come back at once.
                            poll_at = now + Duration::from_millis(dice.throw() % 1_000);
                            backoff.reset();
                        }
                        Polled::Time(ms) => {
                            server.set(now, ms);
                            tracing::info!("the control plane's clock is used for its requests");
                        }
                        Polled::State(envelope, document) => {
                            backoff.reset();
                            refused = None;
                            let have = in_force.as_ref().map(|c| c.document.generation);
                            match newer_than(&document, have.max(rejected.as_ref().map(|r| r.generation))) {
                                Err(e) => refused = Some(e.to_string()),
                                Ok(()) => {
                                    let config = Arc::new(effective(&self.base, &self.control, &document));
                                    let within = self.control.confirm_within;
                                    let trial = Trial::begin(now, document.generation, within, up, in_force.is_some());
                                    tracing::info!(generation = document.generation, "new state");
                                    self.publish.send_replace(Some(config.clone()));
                                    let candidate = Candidate { envelope, document, config };
                                    on_trial = Some(OnTrial { trial, candidate, answered: false, seq: 0 });
                                }
                            }
                        }
                        Polled::Refused(e) => {
                            tracing::error!(error = %e, "state refused; the last good one stays");
                            refused = Some(e.to_string());
                            poll_at = now + backoff.fail(&mut dice);
                        }
                        Polled::Failed(e) => {
                            // At the first loss anywhere within the spread, then with growing waits.
                            let spread = u64::try_from(self.control.spread.as_millis()).unwrap_or(u64::MAX).max(1);
                            let wait = match backoff.base() {
                                b if b == BACKOFF.0 => Duration::from_millis(dice.throw() % spread) + backoff.fail(&mut dice),
                                _ => backoff.fail(&mut dice),
                            };
                            tracing::warn!(error = %e, retry_in = ?wait, "control plane not followed; the state stays");
                            poll_at = now + wait;
                        }
                    }
                }
                (from, _) = self.echo.answer() => {
                    if let Some(t) = &mut on_trial {
                        let uplink = t.candidate.config.uplink.as_ref();
                        let of_hub = uplink.is_some_and(|u| u.hubs.iter().any(|h| h.address == from));
                        // An answer counts once the pass that made this state real is through.
                        t.answered |= of_hub && evidence(&self.net.borrow(), t).0.clean;
                    }
                }
                changed = self.net.changed() => if changed.is_err() { return Ok(()) },
                () = change(&mut self.uplink) => {}
                () = change(&mut self.update) => {}
                () = tokio::time::sleep(wake_at.since(self.clock.now())) => {}
            }
        }
    }

    fn signed(
        &self,
        server: &ServerClock,
        method: &'static str,
        path: String,
        body: Vec<u8>,
        timeout: Duration,
        max: usize,
    ) -> (Request, Nonce) {
        sign(&self.identity, &self.node, &self.clock, self.random, server, method, path, body, timeout, max)
    }
}

#[expect(clippy::too_many_arguments, reason = "one request, one call; a struct would be built at each of them")]
fn sign<C: Clock>(
    key: &SignKey,
    node: &NodeId,
    clock: &C,
    random: fn() -> u64,
    server: &ServerClock,
    method: &'static str,
    path: String,
    body: Vec<u8>,
    timeout: Duration,
    max: usize,
) -> (Request, Nonce) {
    let (a, b) = (random().to_le_bytes(), random().to_le_bytes());
    let nonce = Nonce(std::array::from_fn(|i| if i < 8 { a[i] } else { b[i - 8] }));
    let asked = Asked { method, path: &path, body: &body };
    let proof = asked.prove(key, node, server.at(clock.now()), nonce);
    let headers = proof.headers().into_iter().collect();
    (Request { method, path, headers, body, max, timeout }, nonce)
}

/// What a long-poll brought.
enum Polled {
    Nothing,
    State(Envelope, StateDocument),
    Time(u64),
    Refused(Refusal),
    Failed(String),
}

impl Polled {
    /// An answer that was not understood is as good as none: who cannot read the wanted state cannot be told anything.
    fn reach(&self) -> Reach {
        match self {
            Self::Nothing | Self::State(..) | Self::Time(_) => Reach::Reached,
            Self::Refused(e) => Reach::Away(e.to_string()),
            Self::Failed(e) => Reach::Away(e.clone()),
        }
    }
}

/// Only a change is news.
fn tell(reach: &watch::Sender<Reach>, now: Reach) {
    reach.send_if_modified(|was| {
        let changed = *was != now;
        *was = now;
        changed
    });
}

fn outcome(answer: Result<Answer, HttpError>, nonce: Nonce, enrolment: &Enrolment, node: &NodeId) -> Polled {
    let answer = match answer {
        Ok(answer) => answer,
        Err(HttpError::TooLarge(_)) => return Polled::Refused(Refusal::Oversize(MAX_BYTES)),
        Err(e) => return Polled::Failed(chain(&e)),
    };
    match answer.status {
        204 => Polled::Nothing,
        200 => match Envelope::open(&answer.body, node, &enrolment.signing_keys) {
            Ok((envelope, document)) => Polled::State(envelope, document),
            Err(refusal) => Polled::Refused(refusal),
        },
        status => match problem(&answer) {
            Some(p) if p.detail.code == ProblemCode::ClockSkew => {
                let time = p.detail.time.as_ref().and_then(|t| t.verify(nonce, &enrolment.signing_keys));
                time.map_or_else(
                    || Polled::Failed("it tells a time that no pinned key has signed".into()),
                    Polled::Time,
                )
            }
            Some(p) => Polled::Failed(p.detail.message),
            None => Polled::Failed(format!("status {status}")),
        },
    }
}

fn problem(answer: &Answer) -> Option<Problem> {
    serde_json::from_slice(&answer.body).ok()
}

fn chain(e: &HttpError) -> String {
    match std::error::Error::source(e) {
        Some(source) => format!("{e}: {source}"),
        None => e.to_string(),
    }
}

/// What the reconciler says of the state on trial.
fn evidence(net: &Net, t: &OnTrial) -> (Evidence, Option<String>) {
    let its = net.control.as_ref().is_some_and(|c| Arc::ptr_eq(c, &t.candidate.config));
    let trouble = net.troubles.first().filter(|_| its).map(|t| t.detail.clone());
    (Evidence { clean: its && net.clean, answered: t.answered }, trouble)
}

/// Generation in force, what became of the last one received, and why.
fn current(
    in_force: &Option<Candidate>,
    on_trial: Option<&OnTrial>,
    rejected: Option<&Rejected>,
    refused: Option<&String>,
) -> (u64, Outcome, Option<String>) {
    let have = in_force.as_ref().map_or(0, |c| c.document.generation);
    if let Some(t) = on_trial {
        return (t.trial.generation(), Outcome::Trial, None);
    }
    match (refused, rejected.filter(|r| r.generation > have)) {
        (Some(reason), _) => (have, Outcome::Refused, Some(clip(reason))),
        (None, Some(r)) => (have, Outcome::Reverted, Some(clip(&r.reason))),
        (None, None) => (have, Outcome::Applied, None),
    }
}

/// The control plane takes so many printable characters.
fn clip(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(250).collect()
}

/// A hub has no uplink: nothing ever comes of it.
async fn change<T>(from: &mut watch::Receiver<T>) {
    if from.changed().await.is_err() {
        std::future::pending().await
    }
}

async fn pending<H>(polling: &mut Option<Polling<H>>) -> (H, Result<Answer, HttpError>, Nonce) {
    match polling {
        Some(polling) => polling.await,
        None => std::future::pending().await,
    }
}

/// The registration of a connected node; `None` where there is nothing to say.
fn registration(c: &Candidate, control: &Control, key: PublicKey, wall: crate::time::Wall) -> Option<Vec<u8>> {
    let interface = c.document.interfaces.first()?;
    let request = RegisterRequest {
        wireguard_address: interface.addresses.first()?.addr(),
        wireguard_public_key: key,
        interface_name: control.interface.clone(),
        hub_endpoint: interface.hubs.first()?.endpoint.to_string(),
        registered_at: wall.to_string(),
    };
    serde_json::to_vec(&request).ok()
}
