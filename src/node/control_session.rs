//! What the follower's machine asks of the world, done: requests signed and sent, answers read, states and keys kept.
use crate::enrolment::{HealthView, MAX_ANSWER, StateFiles, TIMEOUT};
use crate::reconciler::{Fact, NetStatus};
use spoke_config::Config;
use spoke_config::control::Control;
use spoke_config::effective::Effective;
use spoke_enroll::document::{Envelope, MAX_BYTES, Refusal, StateDocument};
use spoke_enroll::events::{Action, Event, Message, NodeObservation, PollResult, SendResult, SignedState};
use spoke_enroll::identity::{Enrolment, ServerClock};
use spoke_enroll::machine::ControlClient;
use spoke_enroll::request::{Nonce, RequestParts};
use spoke_enroll::settings::{check_compatible, settings};
use spoke_enroll::wire;
use spoke_enroll::wire::{KeyAnswer, KeyRequest, NodeReport, Problem, ProblemCode, RegisterRequest};
use spoke_model::error_chain::ErrorChain;
use spoke_model::node_id::NodeId;
use spoke_model::signature::{SignKey, VerifyKey};
use spoke_model::time::Boot;
use spoke_net::derive::{Keys, UplinkChoice};
use spoke_sys::clock::Clock;
use spoke_sys::echo::Echo;
use spoke_sys::http::{Answer, Http, HttpError, Request};
use spoke_sys::keys::pending::TunnelKeys;
use spoke_update::notice::Notice;
use spoke_uplink::status::{State, UplinkStatus};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Before what could not be written is written again.
const SAVE_AGAIN: Duration = Duration::from_secs(60);
/// So often in a row the control plane may say that our clock is off.
const MAX_SKEWS: u32 = 3;

pub(crate) type Reply<H> = (H, Result<Answer, HttpError>, Nonce);
pub(crate) type Waiting<H> = Pin<Box<dyn Future<Output = Reply<H>> + Send>>;

/// What a conversation needs beside the machine.
pub(crate) struct ControlSession<H> {
    pub(crate) idle: (Option<H>, Option<H>),
    pub(crate) polling: Option<Waiting<H>>,
    pub(crate) sending: Option<(Waiting<H>, bool)>,
    pub(crate) enrolment: Enrolment,
    pub(crate) server: ServerClock,
    pub(crate) skews: u32,
    pub(crate) published: Option<Arc<Effective>>,
    /// A state that could not be written yet, and when to try again.
    pub(crate) unsaved: Option<(Arc<SignedState>, Boot, String)>,
    pub(crate) events: VecDeque<Event>,
}

/// The parts of the world that are not waited for.
pub(crate) struct SessionIo<C, K> {
    pub(crate) clock: C,
    pub(crate) random: fn() -> u64,
    pub(crate) base: Arc<Config>,
    pub(crate) control: Control,
    pub(crate) node: NodeId,
    pub(crate) identity: SignKey,
    pub(crate) keys: K,
    pub(crate) secrets: watch::Sender<Option<Arc<Keys>>>,
    pub(crate) kept: StateFiles,
    pub(crate) publish: watch::Sender<Option<Arc<Effective>>>,
    pub(crate) health: HealthView,
    pub(crate) update: watch::Receiver<Option<Notice>>,
}

impl<C: Clock, K: TunnelKeys> SessionIo<C, K> {
    pub(crate) async fn act<H: Http, E: Echo>(
        &mut self,
        session: &mut ControlSession<H>,
        echo: &mut E,
        machine: &mut ControlClient,
        action: Action,
    ) {
        match action {
            Action::Poll { after, hold } => {
                let wait = if hold { self.control.poll_wait } else { Duration::ZERO };
                let path = format!("{}?after={after}&wait={}", wire::STATE, wait.as_secs());
                let timeout = wait + TIMEOUT;
                let (request, nonce) = self.signed(session, "GET", path, Vec::new(), timeout, MAX_BYTES);
                session.polling = session.idle.0.take().map(|http| send(http, request, nonce));
            }
            Action::Send(message) => {
                let key = matches!(message, Message::Key(..));
                let (path, body) = self.message(machine, message);
                let (request, nonce) = self.signed(session, "POST", path.to_owned(), body, TIMEOUT, MAX_ANSWER);
                session.sending = session.idle.1.take().map(|http| (send(http, request, nonce), key));
            }
            Action::Publish(state) => {
                tracing::info!(generation = state.document.generation, "state published");
                session.published = Some(publish(&self.publish, &self.base, Some(&state.document)));
            }
            Action::Keep(state) => self.keep(session, state),
            Action::Reject(rejected) => {
                tracing::error!(generation = rejected.generation, reason = rejected.reason, "state taken back");
                if let Err(e) = self.kept.rejected.store(&rejected) {
                    tracing::error!(error = %e, "a restart would try the state once more");
                }
            }
            Action::Echo { to, seq } => {
                if let Err(e) = echo.send(&self.control.interface, to, seq).await {
                    tracing::debug!(error = %e, "no echo sent");
                }
            }
            Action::Remember => {
                let done = self.keys.remember().map_err(|e| e.to_string());
                session.events.push_back(Event::Remembered(done));
            }
            Action::Use(which) => match self.keys.secret(which) {
                Ok(key) => {
                    tracing::info!(public_key = %key.public(), "WireGuard key put in use");
                    self.secrets.send_if_modified(|keys| {
                        let mut all = keys.as_deref().cloned().unwrap_or_default();
                        let before = all.private.insert(self.control.interface.clone(), key.clone());
                        *keys = Some(Arc::new(all));
                        before.as_ref() != Some(&key)
                    });
                }
                Err(e) => tracing::error!(error = %e, "WireGuard key cannot be put in use"),
            },
            Action::FinishKey => match self.keys.finish() {
                Ok(()) => tracing::info!(public_key = %machine.key(), "WireGuard key changed"),
                Err(e) => {
                    tracing::error!(error = %e, "the new WireGuard key is in use; the next start proves it again")
                }
            },
            Action::AbandonKey(why) => {
                tracing::error!(why, "WireGuard key not changed");
                if let Err(e) = self.keys.abandon() {
                    tracing::error!(error = %e, "the key that was not changed to is still there");
                }
            }
        }
    }

    fn keep<H>(&mut self, session: &mut ControlSession<H>, state: Arc<SignedState>) {
        let mut enrolment = session.enrolment.clone();
        enrolment.signing_keys.clone_from(&state.document.signing_keys);
        enrolment.server = self.control.url.0.to_string();
        // The state first: it is signed by a key that was pinned before.
        let stored = self.kept.state.store(&state.envelope).and_then(|_| self.kept.enrolment.store(&enrolment));
        // Whatever the disk says, from now on the new keys count.
        session.enrolment = enrolment;
        match stored {
            Ok(_) => {
                tracing::info!(generation = state.document.generation, "state kept");
                session.unsaved = None;
            }
            Err(e) => {
                tracing::error!(error = %e, "the state is in force but could not be kept");
                session.unsaved = Some((state, self.clock.now() + SAVE_AGAIN, e.to_string()));
            }
        }
    }

    pub(crate) fn save_again<H>(&mut self, session: &mut ControlSession<H>) {
        if session.unsaved.as_ref().is_some_and(|(_, at, _)| self.clock.now() >= *at)
            && let Some((state, _, _)) = session.unsaved.take()
        {
            self.keep(session, state);
        }
    }

    pub(crate) fn begin_rotation<H>(
        &mut self,
        session: &mut ControlSession<H>,
        machine: &ControlClient,
    ) -> Result<(), String> {
        machine.may_rotate()?;
        let new = self.keys.make().map_err(|e| e.to_string())?;
        tracing::info!(public_key = %new, "a new WireGuard key was made and is being announced");
        session.events.push_back(Event::Rotate(new));
        Ok(())
    }

    fn message(&self, machine: &ControlClient, message: Message) -> (&'static str, Vec<u8>) {
        let written = |value: Result<Vec<u8>, serde_json::Error>| value.unwrap_or_default();
        match message {
            Message::Key(step, key) => {
                (wire::KEY, written(serde_json::to_vec(&KeyRequest { wireguard_public_key: key, step })))
            }
            Message::Register { hub_endpoint } => {
                let interface = machine.in_force().and_then(|c| c.document.interfaces.first());
                let address = interface.and_then(|i| i.addresses.first());
                let request = RegisterRequest {
                    wireguard_address: address.map_or_else(|| [0, 0, 0, 0].into(), ipnet::IpNet::addr),
                    wireguard_public_key: machine.key(),
                    interface_name: self.control.interface.clone(),
                    hub_endpoint,
                    registered_at: self.clock.wall().to_string(),
                };
                (wire::REGISTER, written(serde_json::to_vec(&request)))
            }
            Message::Report { generation, outcome, reason, drift } => {
                let (healthy, health) = (self.health)();
                let version = spoke_model::VERSION.to_owned();
                let report = NodeReport { generation, outcome, reason, healthy, drift, version, health: Some(health) };
                (wire::REPORT, written(serde_json::to_vec(&report)))
            }
        }
    }

    fn signed<H>(
        &self,
        session: &ControlSession<H>,
        method: &'static str,
        path: String,
        body: Vec<u8>,
        timeout: Duration,
        max: usize,
    ) -> (Request, Nonce) {
        let who = (&self.identity, &self.node, self.random);
        sign(who, session.server.at(self.clock.now()), method, path, body, timeout, max)
    }

    /// Whether an answer says that our clock is off, and now is not: `None` if it is about something else.
    fn skewed<H>(&self, session: &mut ControlSession<H>, answer: &Answer, nonce: Nonce) -> Option<Result<(), String>> {
        let problem = problem(answer).filter(|p| p.detail.code == ProblemCode::ClockSkew)?;
        session.skews += 1;
        let time = problem.detail.time.as_ref().and_then(|t| t.verify(nonce, &session.enrolment.signing_keys));
        Some(match time {
            None => Err("it tells a time that no pinned key has signed".into()),
            Some(_) if session.skews > MAX_SKEWS => Err("it finds our time wrong even where it is its own".into()),
            Some(ms) => {
                session.server.set(self.clock.now(), ms);
                tracing::info!("the control plane's clock is used for its requests");
                Ok(())
            }
        })
    }

    fn open(&self, bytes: &[u8], pinned: &[VerifyKey]) -> Result<(Envelope, StateDocument), Refusal> {
        let opened = Envelope::open(bytes, &self.node, pinned)?;
        check_compatible(&self.base, &opened.1).map_err(|e| Refusal::Invalid(e.to_string()))?;
        Ok(opened)
    }

    pub(crate) fn polled<H>(&mut self, session: &mut ControlSession<H>, (http, answer, nonce): Reply<H>) -> Event {
        session.polling = None;
        session.idle.0 = Some(http);
        Event::PollEnded(match answer {
            Err(HttpError::TooLarge(_)) => PollResult::Refused(Refusal::Oversize(MAX_BYTES)),
            Err(e) => failed(ErrorChain(&e).to_string()),
            Ok(answer) => match answer.status {
                204 => {
                    session.skews = 0;
                    PollResult::Nothing
                }
                200 => match self.open(&answer.body, &session.enrolment.signing_keys) {
                    Ok((envelope, document)) => {
                        session.skews = 0;
                        PollResult::State(Box::new(SignedState { envelope, document }))
                    }
                    Err(refusal) => {
                        tracing::error!(error = %refusal, "state refused; the last good one stays");
                        PollResult::Refused(refusal)
                    }
                },
                status => match self.skewed(session, &answer, nonce) {
                    Some(Ok(())) => PollResult::Again,
                    Some(Err(why)) => failed(why),
                    None => failed(problem(&answer).map_or_else(|| format!("status {status}"), |p| p.detail.message)),
                },
            },
        })
    }

    pub(crate) fn answered<H>(
        &mut self,
        session: &mut ControlSession<H>,
        ((http, answer, nonce), key): (Reply<H>, bool),
    ) -> Event {
        session.sending = None;
        session.idle.1 = Some(http);
        let answered = match answer {
            Err(e @ (HttpError::Unreachable(_) | HttpError::Untrusted(_) | HttpError::Malformed(_))) => {
                SendResult::Unsent(ErrorChain(&e).to_string())
            }
            Err(e) => SendResult::Failed(ErrorChain(&e).to_string()),
            Ok(answer) => match (answer.status, self.skewed(session, &answer, nonce)) {
                (_, Some(Ok(()))) => SendResult::Again,
                (_, Some(Err(why))) => SendResult::Unsent(why),
                (200..300, None) if key => match serde_json::from_slice::<KeyAnswer>(&answer.body) {
                    Ok(answer) => SendResult::Ready(answer.ready),
                    Err(e) => SendResult::Failed(e.to_string()),
                },
                (200..300, None) => SendResult::Taken,
                (status, None) => {
                    let why = problem(&answer).map_or_else(|| format!("status {status}"), |p| p.detail.message);
                    match status {
                        429 => SendResult::Unsent(why),
                        400..500 => SendResult::Refused(why),
                        _ => SendResult::Failed(why),
                    }
                }
            },
        };
        if matches!(answered, SendResult::Taken | SendResult::Ready(_)) {
            session.skews = 0;
        } else {
            tracing::debug!(?answered, "not taken");
        }
        Event::SendEnded(answered)
    }

    /// What the device sees of itself, as far as it concerns the state published last.
    pub(crate) fn seen<H>(
        &self,
        session: &ControlSession<H>,
        net: &mut watch::Receiver<NetStatus>,
        uplink: &mut watch::Receiver<UplinkStatus>,
        choice: Option<&mut Fact<UplinkChoice>>,
    ) -> NodeObservation {
        let choice = choice.and_then(|c| c.borrow_and_update().clone());
        // It looks at the same status: asked for under a guard it would wait for ever where somebody writes in between.
        let healthy = (self.health)().0;
        let (net, uplink) = (net.borrow_and_update(), uplink.borrow_and_update());
        let name = &self.control.interface;
        let ours = session.published.as_ref().map(|p| p.sequence());
        let applied = ours.is_some() && net.applied(name) == ours;
        let refused = ours.is_some() && net.sequence() == ours && !applied;
        let trouble = net.conditions.first().filter(|_| refused).map(|c| c.detail.clone());
        // The hub session lags behind a new state by a moment, and an answer of the old hub proves nothing.
        let carried = match session.published.as_ref().map(|p| p.hubs()) {
            None | Some([]) => true,
            Some(hubs) => choice.is_some_and(|choice| {
                let peer = net.desired.links.get(name).and_then(|l| l.peers.get(&choice.active.hub.public_key));
                let sent_to = |e| peer.is_some_and(|p| p.endpoint == Some(e));
                hubs.contains(&choice.active.hub) && choice.active.endpoint.is_none_or(sent_to)
            }),
        };
        NodeObservation {
            up: uplink.state == State::Up,
            connected_since: uplink.connected_since,
            hub: uplink.hub.clone(),
            applied: applied && carried,
            trouble,
            drift: net.drift_count,
            healthy,
            update: self.update.borrow().clone(),
            key: net.observed.links.get(name).and_then(|l| l.public_key),
        }
    }
}

/// Publishes what `document` makes of the configuration, under the next sequence number.
pub(crate) fn publish(
    to: &watch::Sender<Option<Arc<Effective>>>,
    own: &Arc<Config>,
    document: Option<&StateDocument>,
) -> Arc<Effective> {
    let last = to.borrow().as_deref().cloned();
    let last = last.unwrap_or_else(|| Effective::of(own.clone()));
    let next = Arc::new(last.with_document(document.map(|d| settings(own, d))));
    to.send_replace(Some(next.clone()));
    next
}

fn failed(why: String) -> PollResult {
    tracing::warn!(why, "control plane not followed; the state stays");
    PollResult::Failed(why)
}

fn send<H: Http>(mut http: H, request: Request, nonce: Nonce) -> Waiting<H> {
    Box::pin(async move {
        let answer = http.send(request).await;
        (http, answer, nonce)
    })
}

pub(crate) async fn reply<H>(waiting: &mut Option<Waiting<H>>) -> Reply<H> {
    match waiting {
        Some(waiting) => waiting.await,
        None => std::future::pending().await,
    }
}

pub(crate) async fn answer<H>(waiting: &mut Option<(Waiting<H>, bool)>) -> (Reply<H>, bool) {
    match waiting {
        Some((waiting, key)) => (waiting.await, *key),
        None => std::future::pending().await,
    }
}

pub(crate) fn sign(
    (key, node, random): (&SignKey, &NodeId, fn() -> u64),
    at_ms: u64,
    method: &'static str,
    path: String,
    body: Vec<u8>,
    timeout: Duration,
    max: usize,
) -> (Request, Nonce) {
    let (a, b) = (random().to_le_bytes(), random().to_le_bytes());
    let nonce = Nonce(std::array::from_fn(|i| if i < 8 { a[i] } else { b[i - 8] }));
    let asked = RequestParts { method, path: &path, body: &body };
    let proof = asked.prove(key, node, at_ms, nonce);
    let headers = proof.headers().into_iter().collect();
    (Request { method, path, headers, body, max, timeout }, nonce)
}

pub(crate) fn problem(answer: &Answer) -> Option<Problem> {
    serde_json::from_slice(&answer.body).ok()
}

/// What never comes (a hub has no uplink) never wakes.
pub(crate) async fn change<T>(from: Option<&mut watch::Receiver<T>>) {
    if let Some(from) = from
        && from.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}
