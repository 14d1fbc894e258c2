//! Enrols the device, then keeps its conversation with the control plane going: sockets, files and clocks around
//! [`spoke_enroll::machine`].
use crate::control_session::{ControlSession, SessionIo, answer, change, problem, publish, reply, sign};
use crate::reconciler::{Fact, NetStatus};
use spoke_api::health::summary::Components;
use spoke_config::Config;
use spoke_config::control::Control;
use spoke_config::effective::Effective;
use spoke_enroll::document::{Envelope, Refusal, StateDocument};
use spoke_enroll::events::{Action, ControlTimes, Event, SignedState};
use spoke_enroll::identity::{Enrolment, RejectedState, ServerClock};
use spoke_enroll::machine::ControlClient;
use spoke_enroll::request::Nonce;
use spoke_enroll::settings::check_compatible;
use spoke_enroll::status::{ControlOutage, ControlStatus};
use spoke_enroll::wire;
use spoke_enroll::wire::{Capabilities, ProvisionAnswer, ProvisionRequest};
use spoke_model::backoff::{Backoff, JitterRng};
use spoke_model::error_chain::ErrorChain;
use spoke_model::node_id::NodeId;
use spoke_model::secret::Secret;
use spoke_model::signature::SignKey;
use spoke_net::derive::{Keys, UplinkChoice};
use spoke_sys::clock::Clock;
use spoke_sys::disk::{DiskError, Document};
use spoke_sys::echo::Echo;
use spoke_sys::http::{Http, Request};
use spoke_sys::keys::KeyError;
use spoke_sys::keys::pending::TunnelKeys;
use spoke_update::notice::Notice;
use spoke_uplink::status::UplinkStatus;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc, oneshot, watch};

#[cfg(test)]
mod tests;

/// How long anything but a long-poll may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);
/// The longest ordinary answer, in bytes.
pub(super) const MAX_ANSWER: usize = 256 << 10;
/// First and longest wait after an enrolment that failed.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(120));

/// Where the device keeps what it must not forget.
#[derive(Debug)]
pub struct StateFiles {
    /// Who we are.
    pub enrolment: Document<Enrolment>,
    /// The last good state.
    pub state: Document<Envelope>,
    /// The state that was taken back.
    pub rejected: Document<RejectedState>,
}

/// Whether the node calls itself healthy, and its health document, made by whoever wires the tasks.
pub type HealthView = Arc<dyn Fn() -> (bool, serde_json::Value) + Send + Sync>;

/// Reads the enrolment token whenever it is needed, so that one put right needs no restart; or why there is none, and what
/// to do.
pub type TokenSource = Arc<dyn Fn() -> Result<Secret<String>, String> + Send + Sync>;

/// A request for a new key; the answer says whether the change has begun.
pub type RotationRequest = oneshot::Sender<Result<(), String>>;

/// Everything the task needs.
pub struct ControlTask<H, E, C, K> {
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
    /// The tunnel's keys.
    pub keys: K,
    /// Where the key in use is published.
    pub secrets: watch::Sender<Option<Arc<Keys>>>,
    /// The enrolment token.
    pub token: TokenSource,
    /// What it can do.
    pub capabilities: Capabilities,
    /// What it keeps.
    pub kept: StateFiles,
    /// Where the configuration in force is published.
    pub publish: watch::Sender<Option<Arc<Effective>>>,
    /// What became of it.
    pub net: watch::Receiver<NetStatus>,
    /// Whether the hub answers.
    pub uplink: watch::Receiver<UplinkStatus>,
    /// The hub in use; absent on a hub.
    pub choice: Option<Fact<UplinkChoice>>,
    /// What else health is made of: a change of it may be news.
    pub components: watch::Receiver<Components>,
    /// Health.
    pub health: HealthView,
    /// How updates of the image stand, for the report.
    pub update: watch::Receiver<Option<Notice>>,
    /// Requests for a new key.
    pub rotate: Arc<Mutex<mpsc::Receiver<RotationRequest>>>,
    /// What is said about the control plane.
    pub status: watch::Sender<ControlStatus>,
}

/// Why the task ended; it is started again with backoff.
#[derive(Debug, thiserror::Error)]
pub enum ControlTaskError {
    /// What is kept cannot be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The tunnel's key cannot be read.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl<H: Http, E: Echo, C: Clock, K: TunnelKeys> ControlTask<H, E, C, K> {
    /// Follows the control plane for ever. Publishes what was kept before anything is asked of the network.
    ///
    /// A node that is enrolled and has no state that it may use publishes nothing until one comes: an emptier network
    /// than the one the kernel still has would be worse than none.
    pub async fn run(mut self) -> Result<(), ControlTaskError> {
        let mut server = ServerClock::new(self.clock.now(), self.clock.wall());
        let mut enrolment = self.kept.enrolment.load()?.filter(|e| e.node_id == self.node);
        let in_force = self.last_good(&mut enrolment)?;
        let mut published = None;
        if let Some(state) = &in_force {
            published = Some(publish(&self.publish, &self.base, Some(&state.document)));
        } else if enrolment.is_none() {
            publish(&self.publish, &self.base, None);
        }
        tracing::info!(generation = in_force.as_ref().map(|c| c.document.generation), "state read from disk");
        let mut rng = JitterRng::new((self.random)());
        let enrolment = match enrolment {
            Some(known) => known,
            None => self.enrol(&mut server, &mut rng).await?,
        };
        if enrolment.server != self.control.url.0.to_string() {
            tracing::info!(was = enrolment.server, is = %self.control.url.0, "another address of the control plane: its keys must be the same");
        }
        let session = ControlSession {
            idle: (None, None),
            polling: None,
            sending: None,
            enrolment,
            server,
            skews: 0,
            published,
            unsaved: None,
            events: VecDeque::new(),
        };
        self.follow(session, in_force).await
    }

    /// The state to boot from. Without a record of the enrolment the state itself says whose word counts.
    fn last_good(&mut self, enrolment: &mut Option<Enrolment>) -> Result<Option<SignedState>, ControlTaskError> {
        let envelope = match self.kept.state.load() {
            Ok(Some(envelope)) => envelope,
            Ok(None) => return Ok(None),
            Err(e @ DiskError::Damaged { .. }) => {
                tracing::error!(error = %e, "the last good state is lost; the kernel keeps what it has until another comes");
                return Ok(None);
            }
            Err(e) => return Err(e.into()),
        };
        let pinned = match enrolment.as_ref() {
            Some(known) => known.signing_keys.clone(),
            None => envelope.claimed_keys(),
        };
        let suitable = |document: StateDocument| match check_compatible(&self.base, &document) {
            Ok(()) => Ok(document),
            Err(why) => Err(Refusal::Invalid(why.to_string())),
        };
        match envelope.verify(&self.node, &pinned).and_then(suitable) {
            Ok(document) => {
                enrolment.get_or_insert_with(|| Enrolment {
                    server: self.control.url.0.to_string(),
                    node_id: self.node.clone(),
                    signing_keys: document.signing_keys.clone(),
                });
                Ok(Some(SignedState { envelope, document }))
            }
            Err(refusal) => {
                tracing::error!(error = %refusal, "the kept state is not acceptable; another one is asked for");
                Ok(None)
            }
        }
    }

    /// Asks to become a node until the answer is yes.
    async fn enrol(&mut self, server: &mut ServerClock, rng: &mut JitterRng) -> Result<Enrolment, ControlTaskError> {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        let asked = ProvisionRequest {
            node_id: self.node.clone(),
            wireguard_public_key: self.keys.current()?,
            identity_public_key: self.identity.public(),
            version: spoke_model::VERSION.to_owned(),
            capabilities: self.capabilities.clone(),
            metadata: Default::default(),
        };
        let body = serde_json::to_vec(&asked).unwrap_or_default();
        let mut since = None;
        loop {
            let wait = match self.ask_to_enrol(server, body.clone()).await {
                Ok(Some(enrolment)) => {
                    self.kept.enrolment.store(&enrolment)?;
                    tracing::info!(node = %self.node, server = %self.control.url.0, "enrolled");
                    return Ok(enrolment);
                }
                // The clock was put right: at once, and only then.
                Ok(None) => Duration::from_millis(200),
                Err(why) => {
                    let wait = backoff.fail(rng);
                    tracing::warn!(problem = why, retry_in = ?wait, "not enrolled yet");
                    let since = *since.get_or_insert(self.clock.now());
                    self.status.send_replace(ControlStatus {
                        outage: Some(ControlOutage { since, reason: why }),
                        ..ControlStatus::default()
                    });
                    wait
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn ask_to_enrol(&mut self, server: &mut ServerClock, body: Vec<u8>) -> Result<Option<Enrolment>, String> {
        let token = (self.token)()?;
        let bearer = ("authorization", format!("Bearer {}", token.reveal()));
        let (mut request, _) = self.signed(server, "POST", wire::PROVISION.to_owned(), body, TIMEOUT, MAX_ANSWER);
        request.headers.push(bearer);
        let answer = self.http.1.send(request).await.map_err(|e| ErrorChain(&e).to_string())?;
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
        mut session: ControlSession<H>,
        in_force: Option<SignedState>,
    ) -> Result<(), ControlTaskError> {
        let rejected = self.kept.rejected.load()?;
        let times = ControlTimes {
            report_every: self.control.report_every,
            confirm_within: self.control.confirm_within,
            spread: self.control.spread,
        };
        let (now, seed, key) = (self.clock.now(), (self.random)(), self.keys.current()?);
        let mut machine = ControlClient::new(now, seed, times, in_force, rejected, key);
        let (poller, sender) = self.http;
        session.idle = (Some(poller), Some(sender));
        // Taken apart, so that each part can be waited for by itself.
        let mut io = SessionIo {
            clock: self.clock,
            random: self.random,
            base: self.base,
            control: self.control,
            node: self.node,
            identity: self.identity,
            keys: self.keys,
            secrets: self.secrets,
            kept: self.kept,
            publish: self.publish,
            health: self.health,
            update: self.update.clone(),
        };
        if let Some((new, switching)) = io.keys.pending()? {
            tracing::info!(public_key = %new, switching, "a change of the WireGuard key goes on");
            if let Some(action) = machine.resume_rotation(now, new, switching) {
                io.act(&mut session, &mut self.echo, &mut machine, action).await;
            }
        }
        let rotate = self.rotate.clone();
        let mut rotate = rotate.lock().await;
        loop {
            // The last look of a round is one at what was published last: an older one would prove nothing about it.
            let mut looked = false;
            loop {
                let event = match session.events.pop_front() {
                    Some(event) => event,
                    None if looked => break,
                    None => {
                        looked = true;
                        let seen = io.seen(&session, &mut self.net, &mut self.uplink, self.choice.as_mut());
                        Event::Observed(Box::new(seen))
                    }
                };
                for action in machine.handle(io.clock.now(), event) {
                    looked &= !matches!(action, Action::Publish(_));
                    io.act(&mut session, &mut self.echo, &mut machine, action).await;
                }
            }
            io.save_again(&mut session);
            let unsaved = session.unsaved.as_ref().map(|(_, _, why)| why.clone());
            let status = ControlStatus { unsaved, ..machine.status() };
            self.status.send_if_modified(|s| std::mem::replace(s, status.clone()) != status);
            let now = io.clock.now();
            let again = session.unsaved.as_ref().map(|(_, at, _)| *at);
            let until = [machine.deadline(), again].into_iter().flatten().min();
            let sleep = until.map_or(Duration::from_secs(3600), |at| at.since(now));
            tokio::select! {
                reply = reply(&mut session.polling) => {
                    let event = io.polled(&mut session, reply);
                    session.events.push_back(event);
                }
                reply = answer(&mut session.sending) => {
                    let event = io.answered(&mut session, reply);
                    session.events.push_back(event);
                }
                (from, seq) = self.echo.answer() => session.events.push_back(Event::Echoed { from, seq }),
                // The reconciler is gone: so is the process.
                changed = self.net.changed() => if changed.is_err() { return Ok(()) },
                () = change(Some(&mut self.uplink)) => {}
                () = change(self.choice.as_mut()) => {}
                () = change(Some(&mut self.components)) => {}
                () = change(Some(&mut self.update)) => {}
                Some(asked) = rotate.recv() => {
                    let begun = io.begin_rotation(&mut session, &machine);
                    let _ = asked.send(begun);
                }
                () = tokio::time::sleep(sleep) => session.events.push_back(Event::Tick),
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
        let who = (&self.identity, &self.node, self.random);
        sign(who, server.at(self.clock.now()), method, path, body, timeout, max)
    }
}
