//! The task that follows the control plane: publishes the last good state, enrols the node if needed, then drives
//! [`spoke_enroll::machine`].
//!
//! Waits for: the long-poll, the answer to a message, echo replies, changes of the reconciler, the uplink, the components
//! and the updater, requests for a new key, and the machine's deadline. Publishes [`Effective`] and [`ControlStatus`].
use crate::enrolment::{EnrolError, Enroller, TokenEraser, TokenSource};
use crate::reconciler::{Fact, NetStatus};
use crate::signed_request::Signer;
use spoke_api::health::summary::Components;
use spoke_config::Config;
use spoke_config::control::Control;
use spoke_config::effective::Effective;
use spoke_enroll::confirm::TrialRecord;
use spoke_enroll::document::{Incompatible, Refusal};
use spoke_enroll::events::{Action, ControlTimes, Event, KeySlot, SignedState};
use spoke_enroll::identity::{Enrolment, ServerClock};
use spoke_enroll::machine::{ControlClient, RotationRefused};
use spoke_enroll::settings::check_compatible;
use spoke_enroll::status::ControlStatus;
use spoke_enroll::wire::{Capabilities, ProvisionRequest, ReportOrder};
use spoke_model::backoff::JitterRng;
use spoke_model::clock::Anchor;
use spoke_model::error_chain::ErrorChain;
use spoke_model::key::PublicKey;
use spoke_model::secret::Secret;
use spoke_model::time::Wall;
use spoke_net::derive::{Keys, UplinkChoice};
use spoke_sys::clock::Clock;
use spoke_sys::disk::DiskError;
use spoke_sys::echo::Echo;
use spoke_sys::http::Http;
use spoke_sys::keys::KeyError;
use spoke_sys::keys::pending::TunnelKeys;
use spoke_update::notice::Notice;
use spoke_uplink::status::UplinkStatus;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc, oneshot, watch};

pub mod files;
pub mod io;
mod requests;
mod saving;
use files::StateFiles;
use io::{Connection, HealthView, SessionIo, publish};
use requests::{Requests, poll_ended, send_ended};

#[cfg(test)]
mod tests;

/// Sleep while the machine has no deadline; any event ends it.
const NO_DEADLINE: Duration = Duration::from_secs(3600);

/// A request to the session.
#[derive(Debug)]
pub enum SessionRequest {
    /// A new key; the reply says whether the change has begun.
    Rotate(oneshot::Sender<Result<(), RotationError>>),
    /// Enrol again with this token, or that of `control.token`; the reply says whether the control plane has accepted.
    EnrolAgain(Option<Secret<String>>, oneshot::Sender<Result<(), EnrolAgainError>>),
}

/// Why the node was not enrolled again; it stays enrolled as it is.
#[derive(Debug, thiserror::Error)]
pub enum EnrolAgainError {
    /// The control plane has not accepted.
    #[error("the control plane has not accepted, and the node stays enrolled as it is: {}", ErrorChain(.0))]
    Enrol(#[from] EnrolError),
    /// The key to enrol cannot be read.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The record cannot be written.
    #[error("{}", ErrorChain(.0))]
    Disk(#[from] DiskError),
}

/// Why a change of keys has not begun.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// It could not be completed.
    #[error(transparent)]
    Refused(#[from] RotationRefused),
    /// The new key cannot be stored.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Everything the task needs.
pub struct ControlTask<H, E, C, K> {
    /// Connections for the long-poll, for enrolments, and for everything else.
    pub http: (H, H, H),
    /// Echo through the tunnel.
    pub echo: E,
    /// Clocks.
    pub clock: C,
    /// The device's own configuration.
    pub own: Arc<Config>,
    /// Its `[control]`.
    pub control: Control,
    /// Signs its requests.
    pub signer: Signer,
    /// The tunnel's keys.
    pub keys: K,
    /// Where the key in use is published.
    pub secrets: watch::Sender<Option<Arc<Keys>>>,
    /// The enrolment token.
    pub token: TokenSource,
    /// Erases it once the enrolment is on disk.
    pub erase_token: TokenEraser,
    /// Sent at enrolment.
    pub capabilities: Capabilities,
    /// Its files.
    pub files: StateFiles,
    /// Where the configuration in force is published.
    pub publish: watch::Sender<Option<Arc<Effective>>>,
    /// The reconciler.
    pub net: watch::Receiver<NetStatus>,
    /// The hub session.
    pub uplink: watch::Receiver<UplinkStatus>,
    /// The hub in use; absent on a hub.
    pub choice: Option<Fact<UplinkChoice>>,
    /// The other parts of health; a change may have to be reported.
    pub components: watch::Receiver<Components>,
    /// Health.
    pub health: HealthView,
    /// State of image updates, for the report.
    pub update: watch::Receiver<Option<Notice>>,
    /// Requests to the session.
    pub requests: Arc<Mutex<mpsc::Receiver<SessionRequest>>>,
    /// The control plane's time.
    pub confirm: watch::Sender<Option<Anchor>>,
    /// Until when our handshakes may be stamped, if in the future.
    pub stamped_until: watch::Sender<Option<Wall>>,
    /// Starts the program again, with what is on disk by then.
    pub restart: Arc<dyn Fn() + Send + Sync>,
    /// State of the control session.
    pub status: watch::Sender<ControlStatus>,
}

/// Why the task ended; it is restarted with backoff.
#[derive(Debug, thiserror::Error)]
pub enum ControlTaskError {
    /// A file cannot be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The tunnel's key cannot be read.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl<H: Http, E: Echo, C: Clock, K: TunnelKeys> ControlTask<H, E, C, K> {
    /// Follows the control plane. The last good state is published before any network access.
    ///
    /// An enrolled node without a usable state publishes nothing until one arrives: a network emptier than the one the
    /// kernel has would be worse than none.
    pub async fn run(mut self) -> Result<(), ControlTaskError> {
        let mut server = ServerClock::new(self.clock.now(), self.clock.wall());
        let (mut enrolment, enrolment_lost) = self.load_enrolment();
        if enrolment.as_ref().is_some_and(|e| e.fresh || e.removed) {
            self.files.forget_states();
        }
        // A power cut may have left it.
        if let Some(token) = enrolment.as_ref().and_then(|e| e.token.as_ref()) {
            (self.erase_token)(token);
        }
        let (in_force, state_lost) = self.load_last_good(&mut enrolment);
        let trial = self.load_trial();
        let published = match (&in_force, &enrolment) {
            (Some(state), _) => {
                let unproved = trial.is_some_and(|t| t.leaves_unproved(state.document.generation));
                let proved = (!unproved).then_some(&state.document);
                Some(publish(&self.publish, &self.own, Some(&state.document), proved))
            }
            (None, Some(known)) if known.removed => {
                publish(&self.publish, &self.own, None, None);
                None
            }
            (None, Some(_)) => None,
            // It may have been enrolled.
            (None, None) if enrolment_lost || state_lost => None,
            (None, None) => {
                publish(&self.publish, &self.own, None, None);
                None
            }
        };
        match &in_force {
            Some(state) => tracing::info!(generation = state.document.generation, "saved state loaded"),
            None => tracing::info!("no saved state: waiting for the control plane"),
        }
        let enrolment = match enrolment {
            Some(known) => known,
            None => self.enrol(&mut server).await?,
        };
        let url = self.control.url.0.to_string();
        if enrolment.server != url {
            tracing::info!(
                previous = enrolment.server,
                url,
                "control plane address changed: its signing keys must be the same"
            );
        }
        let connection =
            Connection { enrolment, server, skews: 0, published, unsaved: None, key_verifier: None, disabled: false };
        self.session(connection, in_force, trial).await
    }

    fn load_trial(&mut self) -> Option<TrialRecord> {
        self.files.trial.load().unwrap_or_else(|e| {
            tracing::warn!(error = %ErrorChain(&e), "record of a trial not readable: a state that lost the hub may be tried again");
            None
        })
    }

    /// The record of the enrolment, and whether there is one that cannot be read.
    fn load_enrolment(&mut self) -> (Option<Enrolment>, bool) {
        match self.files.enrolment.load() {
            Ok(found) => (found.filter(|e| e.node_id == self.signer.node), false),
            Err(e) => {
                tracing::error!(error = %ErrorChain(&e), "enrolment not readable: its keys are taken from the last good state");
                (None, true)
            }
        }
    }

    /// The last good state, and whether there is one that cannot be used. If the record of the enrolment is lost it is
    /// recovered from the state's own signing keys.
    fn load_last_good(&mut self, enrolment: &mut Option<Enrolment>) -> (Option<SignedState>, bool) {
        let envelope = match self.files.state.load() {
            Ok(Some(envelope)) => envelope,
            Ok(None) => return (None, false),
            Err(e) => {
                tracing::error!(error = %ErrorChain(&e), "last good state is damaged: the kernel keeps its network until a new state arrives");
                return (None, true);
            }
        };
        let pinned = match enrolment.as_ref() {
            Some(known) => known.signing_keys.clone(),
            None => envelope.claimed_keys(),
        };
        let verified = envelope.verify(&self.signer.node, &pinned);
        match verified
            .and_then(|document| check_compatible(&self.own, &document, None).map(|()| document).map_err(Into::into))
        {
            Ok(document) => {
                enrolment.get_or_insert_with(|| Enrolment {
                    server: self.control.url.0.to_string(),
                    node_id: self.signer.node.clone(),
                    signing_keys: document.signing_keys.clone(),
                    fresh: false,
                    removed: false,
                    token: None,
                    role: Some(document.role),
                    networks: None,
                });
                if let Some(known) = enrolment.as_mut().filter(|e| !e.fresh) {
                    known.bound_networks(&document);
                }
                (Some(SignedState { envelope, document }), false)
            }
            // The record of the enrolment is lost, and with it the role.
            Err(Refusal::Incompatible(Incompatible::Role(role)))
                if !self.own.node.role_named && enrolment.is_none() =>
            {
                let recovered = Enrolment {
                    server: self.control.url.0.to_string(),
                    node_id: self.signer.node.clone(),
                    signing_keys: pinned,
                    fresh: false,
                    removed: false,
                    token: None,
                    role: Some(role),
                    networks: None,
                };
                match self.files.enrolment.store(&recovered) {
                    Ok(_) => (self.restart)(),
                    Err(e) => tracing::error!(error = %ErrorChain(&e), "role of this node not stored"),
                }
                (None, true)
            }
            Err(refusal) => {
                tracing::error!(error = %refusal, "last good state is not acceptable: waiting for a new state");
                (None, false)
            }
        }
    }

    async fn enrol(&mut self, server: &mut ServerClock) -> Result<Enrolment, ControlTaskError> {
        let mut rng = JitterRng::new((self.signer.random)());
        let request = provision_request(&self.signer, self.keys.current()?, &self.capabilities);
        let (url, signer, token) = (self.control.url.0.to_string(), &self.signer, &self.token);
        let (key, verifier) = (self.keys.secret(KeySlot::Old)?, None);
        let mut enroller = Enroller { http: &mut self.http.1, signer, token, url, request, key, verifier };
        let enrolment = enroller.enrol(&self.clock, server, &mut rng, &self.status).await;
        self.files.enrolment.store(&enrolment)?;
        tracing::info!(node = %self.signer.node, url = enrolment.server, "enrolled");
        if let Some(token) = &enrolment.token {
            (self.erase_token)(token);
        }
        Ok(enrolment)
    }

    async fn session(
        mut self,
        connection: Connection,
        in_force: Option<SignedState>,
        trial: Option<TrialRecord>,
    ) -> Result<(), ControlTaskError> {
        let rejected = self.files.rejected.load().unwrap_or_else(|e| {
            tracing::warn!(error = %ErrorChain(&e), "record of a reverted state not readable: that state may be tried again");
            None
        });
        let times = ControlTimes {
            report_every: self.control.report_every,
            confirm_within: self.control.confirm_within,
            spread: self.control.spread,
        };
        let (now, seed, key) = (self.clock.now(), (self.signer.random)(), self.keys.current()?);
        let machine = ControlClient::new(now, seed, times, in_force, rejected, key);
        let pending = self.keys.pending().unwrap_or_else(|e| {
            tracing::error!(error = %ErrorChain(&e), "new WireGuard key not readable: the key in use stays");
            None
        });
        let run = (self.signer.random)();
        let io = SessionIo {
            requests: Requests::new((self.http.0, self.http.2)),
            connection,
            signer: self.signer,
            clock: self.clock,
            own: self.own,
            control: self.control,
            keys: self.keys,
            secrets: self.secrets,
            files: self.files,
            publish: self.publish,
            health: self.health,
            update: self.update.clone(),
            confirm: self.confirm,
            stamped_until: self.stamped_until,
            restart: self.restart,
            report_order: ReportOrder { run, number: 0 },
        };
        let mut session = ControlSession {
            machine,
            io,
            echo: self.echo,
            events: VecDeque::new(),
            net: self.net,
            uplink: self.uplink,
            choice: self.choice,
            components: self.components,
            update: self.update,
            status: self.status,
        };
        if let Some(record) = trial {
            for action in session.machine.resume_trial(now, record) {
                session.perform(action).await;
            }
        }
        if let Some((new, switching)) = pending {
            tracing::info!(public_key = %new, switching, "WireGuard key change resumed");
            if let Some(action) = session.machine.resume_rotation(now, new, switching) {
                session.perform(action).await;
            }
        }
        let enrolment = EnrolAgain {
            http: self.http.1,
            token: self.token,
            erase_token: self.erase_token,
            capabilities: self.capabilities,
        };
        let requests = self.requests;
        session.run(&mut *requests.lock().await, enrolment).await;
        Ok(())
    }
}

pub(crate) fn provision_request(signer: &Signer, key: PublicKey, capabilities: &Capabilities) -> ProvisionRequest {
    ProvisionRequest {
        node_id: signer.node.clone(),
        wireguard_public_key: key,
        identity_public_key: signer.key.public(),
        version: spoke_model::VERSION.to_owned(),
        capabilities: capabilities.clone(),
        metadata: Default::default(),
    }
}

/// What a second enrolment needs.
struct EnrolAgain<H> {
    http: H,
    token: TokenSource,
    erase_token: TokenEraser,
    capabilities: Capabilities,
}

/// The machine with its I/O and its event sources.
struct ControlSession<H, E, C, K> {
    machine: ControlClient,
    io: SessionIo<H, C, K>,
    echo: E,
    events: VecDeque<Event>,
    net: watch::Receiver<NetStatus>,
    uplink: watch::Receiver<UplinkStatus>,
    choice: Option<Fact<UplinkChoice>>,
    components: watch::Receiver<Components>,
    update: watch::Receiver<Option<Notice>>,
    status: watch::Sender<ControlStatus>,
}

impl<H: Http, E: Echo, C: Clock, K: TunnelKeys> ControlSession<H, E, C, K> {
    /// Ends when the reconciler has ended, and the process with it; or after a second enrolment or the removal of the node,
    /// which the next session begins with.
    async fn run(&mut self, requests: &mut mpsc::Receiver<SessionRequest>, mut enrolment: EnrolAgain<H>) {
        loop {
            self.handle_events().await;
            self.io.retry_save();
            self.publish_status();
            let now = self.io.clock.now();
            let deadline = self.machine.deadline().map(|d| d.at);
            let wake = [deadline, self.io.save_deadline()].into_iter().flatten().min();
            tokio::select! {
                reply = poll_ended(&mut self.io.requests.polling) => {
                    let member = !self.io.connection.enrolment.removed;
                    let event = self.io.handle_poll(reply);
                    // The next session begins without a state.
                    if member && self.io.connection.enrolment.removed {
                        self.publish_status();
                        return;
                    }
                    self.events.push_back(event);
                }
                (reply, is_key) = send_ended(&mut self.io.requests.sending) => {
                    let event = self.io.handle_send(reply, is_key);
                    self.events.push_back(event);
                }
                (from, seq) = self.echo.answer() => self.events.push_back(Event::EchoReply { from, seq }),
                changed = self.net.changed() => if changed.is_err() { return },
                () = changed(Some(&mut self.uplink)) => {}
                () = changed(self.choice.as_mut()) => {}
                () = changed(Some(&mut self.components)) => {}
                () = changed(Some(&mut self.update)) => {}
                Some(request) = requests.recv() => match request {
                    SessionRequest::Rotate(reply) => drop(reply.send(self.begin_rotation())),
                    SessionRequest::EnrolAgain(token, reply) => {
                        let done = self.enrol_again(token, &mut enrolment).await;
                        let ended = done.is_ok();
                        let _ = reply.send(done);
                        if ended {
                            return;
                        }
                    }
                },
                () = self.io.clock.sleep(wake.map_or(NO_DEADLINE, |at| at.since(now))) => self.events.push_back(Event::Tick),
            }
        }
    }

    /// Handles all queued events. The last event is an observation made after the last `Publish`: an older one would prove
    /// nothing about the state published.
    async fn handle_events(&mut self) {
        let mut observed = false;
        loop {
            let event = match self.events.pop_front() {
                Some(event) => event,
                None if observed => return,
                None => {
                    observed = true;
                    let observation = self.io.observe(&mut self.net, &mut self.uplink, self.choice.as_mut());
                    Event::Observed(Box::new(observation))
                }
            };
            for action in self.machine.handle(self.io.clock.now(), event) {
                observed &= !matches!(action, Action::Publish(_));
                self.perform(action).await;
            }
        }
    }

    async fn perform(&mut self, action: Action) {
        if let Some(event) = self.io.perform(&mut self.echo, &self.machine, action).await {
            self.events.push_back(event);
        }
    }

    fn begin_rotation(&mut self) -> Result<(), RotationError> {
        self.machine.check_rotation()?;
        let new = self.io.keys.make()?;
        tracing::info!(public_key = %new, "WireGuard key change begun");
        self.events.push_back(Event::Rotate(new));
        Ok(())
    }

    /// Nothing of the enrolment before is touched until the control plane has accepted.
    async fn enrol_again(
        &mut self,
        token: Option<Secret<String>>,
        with: &mut EnrolAgain<H>,
    ) -> Result<(), EnrolAgainError> {
        let request = provision_request(&self.io.signer, self.io.keys.current()?, &with.capabilities);
        let token = match token {
            Some(token) => {
                let token = token.reveal().clone();
                Arc::new(move || Ok(Secret::new(token.clone()))) as TokenSource
            }
            None => with.token.clone(),
        };
        let url = self.io.control.url.0.to_string();
        let (key, verifier) = (self.io.keys.secret(KeySlot::Old)?, None);
        let (http, signer) = (&mut with.http, &self.io.signer);
        let mut enroller = Enroller { http, signer, token: &token, url, request, key, verifier };
        let mut server = self.io.connection.server;
        let enrolment = enroller.enrol_once(&self.io.clock, &mut server).await?;
        self.io.files.enrolment.store(&enrolment)?;
        self.io.files.enrolment.forget_previous()?;
        if let Some(token) = &enrolment.token {
            (with.erase_token)(token);
        }
        tracing::info!(node = %self.io.signer.node, url = enrolment.server, "enrolled again");
        Ok(())
    }

    fn publish_status(&self) {
        let status = ControlStatus {
            removed: self.io.connection.enrolment.removed,
            unsaved: self.io.unsaved(),
            disabled: self.io.connection.disabled,
            ..self.machine.status()
        };
        self.status.send_if_modified(|s| std::mem::replace(s, status.clone()) != status);
    }
}

/// Pending for ever without a channel (a hub has no uplink) and after its sender is gone.
async fn changed<T>(channel: Option<&mut watch::Receiver<T>>) {
    if let Some(channel) = channel
        && channel.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}
