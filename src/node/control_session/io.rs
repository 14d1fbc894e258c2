//! The I/O of the control session: performs the machine's actions, and turns answers and facts into its events.
use super::files::StateFiles;
use super::requests::{Reply, Requests};
use crate::reconciler::{Fact, NetStatus};
use crate::signed_request::{
    REPLY_TIMEOUT, Signer, error_message, key_verifier, post, problem, prove_key, refusal_cause,
};
use spoke_config::Config;
use spoke_config::control::Control;
use spoke_config::effective::Effective;
use spoke_config::node::Role;
use spoke_enroll::confirm::TrialRecord;
use spoke_enroll::document::{Envelope, Incompatible, MAX_BYTES, Refusal, StateDocument};
use spoke_enroll::events::{
    Action, Event, KeySlot, Message, NodeObservation, NotWritten, PollResult, SendResult, SignedState,
};
use spoke_enroll::identity::{Enrolment, ServerClock};
use spoke_enroll::machine::ControlClient;
use spoke_enroll::request::Nonce;
use spoke_enroll::settings::{check_compatible, settings};
use spoke_enroll::status::OutageCause;
use spoke_enroll::wire;
use spoke_enroll::wire::{KeyAnswer, KeyRequest, NodeReport, ProblemCode, RegisterRequest, ReportAnswer, ReportOrder};
use spoke_model::clock::Anchor;
use spoke_model::error_chain::ErrorChain;
use spoke_model::key::PublicKey;
use spoke_model::time::{Boot, Wall};
use spoke_net::derive::{Keys, UplinkChoice};
use spoke_sys::clock::Clock;
use spoke_sys::echo::Echo;
use spoke_sys::http::{Answer, Http, HttpError, Request};
use spoke_sys::keys::pending::TunnelKeys;
use spoke_update::notice::Notice;
use spoke_uplink::ladder::Rung;
use spoke_uplink::status::{State, UplinkStatus};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Clock corrections in a row before the control plane's time is no longer followed.
const MAX_SKEWS: u32 = 3;

/// Whether the node calls itself healthy, and its health document.
pub type HealthView = Arc<dyn Fn() -> (bool, serde_json::Value) + Send + Sync>;

/// What the session knows of the control plane.
pub(super) struct Connection {
    pub(super) enrolment: Enrolment,
    pub(super) server: ServerClock,
    /// Clock corrections in a row.
    pub(super) skews: u32,
    pub(super) published: Option<Arc<Effective>>,
    pub(super) unsaved: Option<Unsaved>,
    /// Whom the control plane wants the possession of a new key proved to.
    pub(super) key_verifier: Option<PublicKey>,
    /// An operator has disabled the node.
    pub(super) disabled: bool,
}

/// A state that could not be written to disk.
pub(super) struct Unsaved {
    pub(super) state: Arc<SignedState>,
    pub(super) proved: bool,
    pub(super) retry_at: Boot,
    pub(super) error: String,
}

/// Everything the actions need; the event sources are the caller's.
pub(super) struct SessionIo<H, C, K> {
    pub(super) requests: Requests<H>,
    pub(super) connection: Connection,
    pub(super) signer: Signer,
    pub(super) clock: C,
    pub(super) own: Arc<Config>,
    pub(super) control: Control,
    pub(super) keys: K,
    pub(super) secrets: watch::Sender<Option<Arc<Keys>>>,
    pub(super) files: StateFiles,
    pub(super) publish: watch::Sender<Option<Arc<Effective>>>,
    pub(super) health: HealthView,
    pub(super) update: watch::Receiver<Option<Notice>>,
    pub(super) confirm: watch::Sender<Option<Anchor>>,
    pub(super) stamped_until: watch::Sender<Option<Wall>>,
    /// Starts the program again, with what is on disk by then.
    pub(super) restart: Arc<dyn Fn() + Send + Sync>,
    /// The place of the last report.
    pub(super) report_order: ReportOrder,
}

impl<H: Http, C: Clock, K: TunnelKeys> SessionIo<H, C, K> {
    /// Performs an action; returns the event that it leads to at once.
    pub(super) async fn perform<E: Echo>(
        &mut self,
        echo: &mut E,
        machine: &ControlClient,
        action: Action,
    ) -> Option<Event> {
        match action {
            Action::Poll { after, hold } => {
                let wait = if hold { self.control.poll_wait } else { Duration::ZERO };
                let path = format!("{}?after={after}&wait={}", wire::STATE, wait.as_secs());
                let (headers, body, timeout) = (Vec::new(), Vec::new(), wait + REPLY_TIMEOUT);
                let request = Request { method: "GET", path, headers, body, max: MAX_BYTES, timeout };
                let (request, nonce) = self.sign(request);
                self.requests.poll(request, nonce);
            }
            Action::Send(message) => {
                let is_key = matches!(message, Message::Key(..));
                let (path, body) = self.encode(machine, message);
                let (mut request, nonce) = self.sign(post(&path, body));
                if let Some(verifier) = self.connection.key_verifier.filter(|_| is_key) {
                    match self.keys.secret(KeySlot::New) {
                        Ok(key) => prove_key(&mut request, &key, verifier),
                        Err(e) => {
                            tracing::error!(error = %e, "new WireGuard key not readable: the change is not announced")
                        }
                    }
                }
                self.requests.send(request, nonce, is_key);
            }
            Action::Publish(state) => {
                self.trust_keys(&state);
                let generation = state.document.generation;
                tracing::info!(generation, "state of the control plane applied on trial");
                let proved = machine.proved().map(|s| &s.document);
                self.connection.published = Some(publish(&self.publish, &self.own, Some(&state.document), proved));
            }
            Action::RecordTrial { generation, before, attempts, unproved_before } => {
                let since = self.clock.wall();
                let record = TrialRecord { generation, since, before, attempts, unproved_before };
                if let Err(e) = self.files.trial.store(&record) {
                    tracing::error!(generation, error = %ErrorChain(&e), "trial of a state not recorded: a restart tries it again");
                }
            }
            Action::Keep(state) => {
                self.keep(state, true);
                self.publish_release(machine);
            }
            Action::Adopt(state) => self.keep(state, false),
            Action::ForgetTrial => {
                self.forget_trial();
                self.publish_release(machine);
            }
            Action::LiftRejection => {
                tracing::info!("reverted state tried again: the hub answers through neither");
                if let Err(e) = self.files.rejected.remove() {
                    tracing::warn!(error = %ErrorChain(&e), "reverted state still recorded: a restart does not try it again");
                }
            }
            Action::Reject(rejected) => {
                tracing::error!(generation = rejected.generation, reason = rejected.reason, "state reverted");
                self.record_rejection(&rejected);
            }
            Action::ConfirmRejection(rejected) => {
                tracing::info!(
                    generation = rejected.generation,
                    "the hub answers through the state before the reverted one"
                );
                self.record_rejection(&rejected);
            }
            Action::Echo { to, seq } => {
                if let Err(e) = echo.send(&self.control.interface, to, seq).await {
                    tracing::debug!(error = %e, "echo not sent");
                }
            }
            Action::RecordSwitch => {
                let done = self.keys.remember().map_err(|e| NotWritten(e.to_string()));
                return Some(Event::SwitchRecorded(done));
            }
            Action::RenewKey => match self.keys.make() {
                Ok(new) => {
                    tracing::warn!(public_key = %new, "the hub refuses handshakes of the future: changing to a new WireGuard key");
                    return Some(Event::Rotate(new));
                }
                Err(e) => {
                    tracing::error!(error = %ErrorChain(&e), "no new WireGuard key: the hub refuses this one until its time has come")
                }
            },
            Action::UseKey(slot) => self.use_key(slot),
            Action::FinishKey => match self.keys.finish() {
                Ok(()) => {
                    tracing::info!(public_key = %machine.key(), "WireGuard key changed");
                    self.stamped_until.send_replace(None);
                }
                Err(e) => {
                    tracing::error!(error = %e, "WireGuard key changed but not stored: the next start proves it again")
                }
            },
            Action::AbandonKey(reason) => {
                tracing::error!(reason, "WireGuard key change abandoned");
                if let Err(e) = self.keys.abandon() {
                    tracing::error!(error = %e, "abandoned WireGuard key not deleted");
                }
            }
        }
        None
    }

    /// A state is proved: its release may be installed.
    fn publish_release(&self, machine: &ControlClient) {
        let release = machine.proved().and_then(|s| s.document.release.clone());
        self.publish.send_if_modified(|published| {
            let Some(last) = published.as_deref().filter(|p| p.wanted_release() != release.as_ref()) else {
                return false;
            };
            *published = Some(Arc::new(last.with_release(release)));
            true
        });
    }

    fn use_key(&mut self, slot: KeySlot) {
        let key = match self.keys.secret(slot) {
            Ok(key) => key,
            Err(e) => return tracing::error!(error = %e, "WireGuard key not readable: the kernel keeps the other one"),
        };
        tracing::info!(public_key = %key.public(), "WireGuard key published");
        self.secrets.send_if_modified(|keys| {
            let mut all = keys.as_deref().cloned().unwrap_or_default();
            let before = all.private.insert(self.control.interface.clone(), key.clone());
            *keys = Some(Arc::new(all));
            before.as_ref() != Some(&key)
        });
    }

    fn encode(&mut self, machine: &ControlClient, message: Message) -> (String, Vec<u8>) {
        let (path, body) = match message {
            Message::Key(step, key) => {
                (wire::KEY.to_owned(), serde_json::to_vec(&KeyRequest { wireguard_public_key: key, step }))
            }
            Message::Register { hub_endpoint } => {
                let interface = machine.in_force().and_then(|s| s.document.interfaces.first());
                let address = interface.and_then(|i| i.addresses.first());
                let request = RegisterRequest {
                    wireguard_address: address.map_or_else(|| [0, 0, 0, 0].into(), ipnet::IpNet::addr),
                    wireguard_public_key: machine.key(),
                    interface_name: self.control.interface.clone(),
                    hub_endpoint,
                    registered_at: self.clock.wall().to_string(),
                };
                (wire::REGISTER.to_owned(), serde_json::to_vec(&request))
            }
            Message::Report { generation, outcome, reason, drift } => {
                let (healthy, health) = (self.health)();
                let version = spoke_model::VERSION.to_owned();
                let report = NodeReport { generation, outcome, reason, healthy, drift, version, health: Some(health) };
                self.report_order = self.report_order.next();
                (self.report_order.path(), serde_json::to_vec(&report))
            }
        };
        // These types always serialize.
        (path, body.unwrap_or_default())
    }

    fn sign(&self, request: Request) -> (Request, Nonce) {
        self.signer.sign(self.connection.server.at(self.clock.now()), request)
    }

    /// Whether an answer says that our clock was off, and why it cannot be corrected; `None`: it says something else.
    fn correct_clock(&mut self, answer: &Answer, nonce: Nonce) -> Option<Result<(), &'static str>> {
        let problem = problem(answer).filter(|p| p.detail.code == ProblemCode::ClockSkew)?;
        let connection = &mut self.connection;
        connection.skews += 1;
        let time = problem.detail.time.as_ref().and_then(|t| t.verify(nonce, &connection.enrolment.signing_keys));
        Some(match time {
            None => Err("the control plane sent a time that no pinned key has signed"),
            Some(_) if connection.skews > MAX_SKEWS => Err("the control plane rejects its own time"),
            Some(ms) => {
                let (at, wall) = (self.clock.now(), Wall(ms / 1000));
                connection.server.set(at, ms);
                self.confirm.send_replace(Some(Anchor { at, wall }));
                tracing::info!("requests are signed with the control plane's time");
                Ok(())
            }
        })
    }

    /// Whether an answer asks for a proof of the key to a key not known so far.
    fn learn_key_verifier(&mut self, answer: &Answer) -> bool {
        let wanted = key_verifier(answer);
        let learnt = wanted.is_some() && wanted != self.connection.key_verifier;
        if learnt {
            self.connection.key_verifier = wanted;
        }
        learnt
    }

    /// Opens a state. `None`: it gives the node another role, with which the program starts again.
    fn open(&mut self, bytes: &[u8]) -> Result<Option<SignedState>, Refusal> {
        let (envelope, document) = Envelope::open(bytes, &self.signer.node, &self.connection.enrolment.signing_keys)?;
        let enrolled = self.connection.enrolment.networks.as_deref();
        match check_compatible(&self.own, &document, enrolled) {
            Err(Incompatible::Role(role)) if !self.own.node.role_named && self.take_role(role) => return Ok(None),
            compatible => compatible?,
        }
        Ok(Some(SignedState { envelope, document }))
    }

    /// Stores the role that the control plane gives the node, whose own configuration names none, and starts again.
    fn take_role(&mut self, role: Role) -> bool {
        let enrolment = Enrolment { role: Some(role), ..self.connection.enrolment.clone() };
        if let Err(e) = self.files.enrolment.store(&enrolment) {
            tracing::error!(error = %ErrorChain(&e), "role of this node not stored");
            return false;
        }
        let role = role.as_str();
        tracing::info!(role, "starting again with the role that the control plane gives this node");
        self.connection.enrolment = enrolment;
        (self.restart)();
        true
    }

    /// The event for the end of the long-poll.
    pub(super) fn handle_poll(&mut self, (http, answer, nonce): Reply<H>) -> Event {
        self.requests.polling = None;
        self.requests.poller = Some(http);
        Event::PollEnded(match answer {
            Err(HttpError::TooLarge(_)) => PollResult::Refused(Refusal::Oversize(MAX_BYTES)),
            Err(e) => self.poll_failed(ErrorChain(&e).to_string(), OutageCause::Unreachable),
            Ok(answer) => match answer.status {
                204 => {
                    self.connection.skews = 0;
                    self.confirm_clock();
                    PollResult::Nothing
                }
                200 => match self.open(&answer.body) {
                    Ok(state) => {
                        self.connection.skews = 0;
                        self.confirm_clock();
                        state.map_or(PollResult::Nothing, |state| PollResult::State(Box::new(state)))
                    }
                    Err(refusal) => {
                        tracing::error!(error = %refusal, "state refused: the last good one stays in force");
                        PollResult::Refused(refusal)
                    }
                },
                _ => match self.correct_clock(&answer, nonce) {
                    Some(Ok(())) => PollResult::Again,
                    Some(Err(why)) => self.poll_failed(why.to_owned(), OutageCause::Unreachable),
                    None if self.is_removal(&answer, nonce) => self.forget(),
                    None => self.poll_failed(error_message(&answer), refusal_cause(&answer)),
                },
            },
        })
    }

    /// Whether a pinned key has signed, for this request, that the node was removed.
    fn is_removal(&self, answer: &Answer, nonce: Nonce) -> bool {
        let removal = problem(answer).filter(|p| p.detail.code == ProblemCode::Revoked).and_then(|p| p.detail.removal);
        removal.is_some_and(|r| r.verify(&self.signer.node, nonce, &self.connection.enrolment.signing_keys))
    }

    /// Erases the state of a removed node. Its keys stay, which no other node trusts; so does the record of whom to ask.
    fn forget(&mut self) -> PollResult {
        if self.connection.enrolment.removed {
            return PollResult::Removed;
        }
        let removed = Enrolment { removed: true, ..self.connection.enrolment.clone() };
        // The record first: after a power cut the next start erases the rest.
        match self.files.enrolment.store(&removed).and_then(|_| self.files.enrolment.forget_previous()) {
            Ok(()) => {
                tracing::error!(url = %self.control.url.0, "removed from the fleet: state erased");
                self.connection.enrolment = removed;
                self.files.forget_states();
                self.connection.published = Some(publish(&self.publish, &self.own, None, None));
                PollResult::Removed
            }
            Err(e) => {
                let why = format!("removed from the fleet, which cannot be recorded: {}", ErrorChain(&e));
                self.poll_failed(why, OutageCause::Removed)
            }
        }
    }

    /// The control plane, whose certificate was checked, has accepted the time of our request.
    fn confirm_clock(&self) {
        let at = self.clock.now();
        let anchor = Anchor { at, wall: Wall(self.connection.server.at(at) / 1000) };
        self.confirm.send_if_modified(|known| {
            let same = known.is_some_and(|k| k.wall(at).0.abs_diff(anchor.wall.0) <= 1);
            if !same {
                *known = Some(anchor);
            }
            !same
        });
    }

    fn poll_failed(&self, error: String, cause: OutageCause) -> PollResult {
        let url = &self.control.url.0;
        match cause {
            OutageCause::Removed => {
                tracing::error!(%url, error, "node removed from the fleet: the last good state stays in force")
            }
            OutageCause::Unreachable | OutageCause::TokenRefused | OutageCause::ApprovalPending => {
                tracing::warn!(%url, error, "control plane unreachable: the last good state stays in force")
            }
        }
        PollResult::Failed(error, cause)
    }

    /// The event for the end of a message.
    pub(super) fn handle_send(&mut self, (http, answer, nonce): Reply<H>, is_key: bool) -> Event {
        self.requests.sending = None;
        self.requests.sender = Some(http);
        let result = match answer {
            Err(
                e @ (HttpError::Unreachable(_)
                | HttpError::Unresolved(_)
                | HttpError::NoConnection(_)
                | HttpError::Untrusted(_)
                | HttpError::Malformed(_)),
            ) => SendResult::Unsent(ErrorChain(&e).to_string()),
            Err(e) => SendResult::Failed(ErrorChain(&e).to_string()),
            Ok(answer) => match (answer.status, self.correct_clock(&answer, nonce)) {
                (_, Some(Ok(()))) => SendResult::Again,
                (_, Some(Err(why))) => SendResult::Unsent(why.to_owned()),
                (401, None) if is_key && self.learn_key_verifier(&answer) => SendResult::Again,
                (200..300, None) if is_key => match serde_json::from_slice::<KeyAnswer>(&answer.body) {
                    Ok(answer) => SendResult::Ready(answer.ready),
                    Err(e) => SendResult::Failed(e.to_string()),
                },
                (200..300, None) => {
                    let answer = serde_json::from_slice::<ReportAnswer>(&answer.body);
                    self.connection.disabled = answer.is_ok_and(|a| !a.enabled);
                    SendResult::Taken
                }
                (429, None) => SendResult::Unsent(error_message(&answer)),
                (400..500, None) => SendResult::Refused(error_message(&answer)),
                (_, None) => SendResult::Failed(error_message(&answer)),
            },
        };
        if matches!(result, SendResult::Taken | SendResult::Ready(_)) {
            self.connection.skews = 0;
        } else {
            let (SendResult::Refused(error) | SendResult::Unsent(error) | SendResult::Failed(error)) = &result else {
                return Event::SendEnded(result);
            };
            tracing::debug!(error, "message not accepted");
        }
        Event::SendEnded(result)
    }

    /// The node's state with respect to the configuration published last.
    pub(super) fn observe(
        &self,
        net: &mut watch::Receiver<NetStatus>,
        uplink: &mut watch::Receiver<UplinkStatus>,
        choice: Option<&mut Fact<UplinkChoice>>,
    ) -> NodeObservation {
        let choice = choice.and_then(|c| c.borrow_and_update().clone());
        // Before the guards below: it borrows the same channels, and a writer waiting between two guards would deadlock.
        let healthy = (self.health)().0;
        let (net, uplink) = (net.borrow_and_update(), uplink.borrow_and_update());
        let name = &self.control.interface;
        let ours = self.connection.published.as_ref().map(|p| p.sequence());
        let applied = ours.is_some() && net.applied(name) == ours;
        let refused = ours.is_some() && net.sequence() == ours && !applied;
        let problem = net.conditions.first().filter(|_| refused).map(|c| c.detail.clone());
        // The hub session follows a new state with a delay, and a reply of the previous hub proves nothing.
        let carried = match self.connection.published.as_ref().map(|p| p.hubs()) {
            None | Some([]) => true,
            Some(hubs) => choice.is_some_and(|choice| {
                let peer = net.desired.links.get(name).and_then(|l| l.peers.get(&choice.active.hub.public_key));
                let sent_to = |e| peer.is_some_and(|p| p.endpoint == Some(e));
                hubs.contains(&choice.active.hub) && choice.active.endpoint.is_none_or(sent_to)
            }),
        };
        // The two top rungs; each ends a round.
        let rounds = [Rung::Rebuild, Rung::Again].iter().filter_map(|r| uplink.rungs.get(r)).sum();
        let right = self.connection.server.at(self.clock.now()) / 1000;
        let stamps_ahead = self.stamped_until.borrow().is_some_and(|until| until.secs() > right);
        NodeObservation {
            stamps_ahead,
            rounds,
            up: uplink.state == State::Up,
            connected_since: uplink.connected_since,
            hub: uplink.hub.clone(),
            applied: applied && carried,
            problem,
            drift: net.drift_count,
            healthy,
            update: self.update.borrow().clone(),
            key: net.observed.links.get(name).and_then(|l| l.public_key),
        }
    }
}

/// Publishes the configuration with what `document` sets, under the next sequence number. The release is that of `proved`:
/// nothing is installed for a state that may be reverted.
pub(super) fn publish(
    to: &watch::Sender<Option<Arc<Effective>>>,
    own: &Arc<Config>,
    document: Option<&StateDocument>,
    proved: Option<&StateDocument>,
) -> Arc<Effective> {
    let last = to.borrow().as_deref().cloned();
    let last = last.unwrap_or_else(|| Effective::of(own.clone()));
    let next = last.with_document(document.map(|d| settings(own, d)));
    let next = Arc::new(next.with_release(proved.and_then(|d| d.release.clone())));
    to.send_replace(Some(next.clone()));
    next
}
