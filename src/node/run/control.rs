//! Starts the control session, and restarts parts of the node whose configuration the control plane changes.
use super::component_status;
use crate::audit::Audit;
use crate::control_session::files::StateFiles;
use crate::control_session::io::HealthView;
use crate::control_session::{ControlTask, provision_request};
use crate::enrolment::{Enroller, FILE_VERSION, TokenEraser, TokenSource, enrolment_file, erase_token, read_token};
use crate::reconciler::{Fact, NetStatus};
use crate::signed_request::Signer;
use crate::socket::ControlView;
use crate::supervise::Supervisor;
use anyhow::Context as _;
use spoke_api::health::summary::Components;
use spoke_command::Failure;
use spoke_config::Config;
use spoke_config::control::Control;
use spoke_config::effective::Effective;
use spoke_config::node::Role;
use spoke_enroll::confirm::TrialRecord;
use spoke_enroll::document::Envelope;
use spoke_enroll::identity::{Enrolment, ServerClock};
use spoke_enroll::settings::settings;
use spoke_enroll::status::{ControlOutage, ControlStatus, OutageCause};
use spoke_enroll::wire::Capabilities;
use spoke_model::clock::Anchor;
use spoke_model::key_source::KeySource;
use spoke_model::time::{Boot, Wall};
use spoke_net::derive::{Keys, UplinkChoice};
use spoke_sys::clock::{Clock as _, SystemClock};
use spoke_sys::disk::Document;
use spoke_sys::echo::IcmpEcho;
use spoke_sys::http::{HttpsClient, Trust};
use spoke_sys::keys;
use spoke_sys::keys::pending::KeyFiles;
use spoke_sys::random::seed;
use spoke_update::notice::Notice;
use spoke_uplink::session;
use spoke_uplink::status::UplinkStatus;
use std::collections::BTreeSet;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::{Mutex, mpsc, watch};

fn state_file(state_dir: &Path) -> Document<Envelope> {
    Document::new(state_dir.join("state.json"), FILE_VERSION)
}

fn trial_file(state_dir: &Path) -> Document<TrialRecord> {
    Document::new(state_dir.join("trial.json"), FILE_VERSION)
}

/// The channels of the control session.
pub(super) struct ControlInputs<'a> {
    /// The tunnel's keys; a change of keys publishes here.
    pub(super) keys: watch::Sender<Option<Arc<Keys>>>,
    /// The reconciler.
    pub(super) net: watch::Receiver<NetStatus>,
    /// The hub session.
    pub(super) uplink: watch::Receiver<UplinkStatus>,
    /// Its choice.
    pub(super) choice: Option<Fact<UplinkChoice>>,
    /// Status of all components, for the local endpoints.
    pub(super) components: &'a watch::Sender<Components>,
    /// Start of the process.
    pub(super) started: Boot,
    /// State of image updates.
    pub(super) update: watch::Receiver<Option<Notice>>,
    /// The audit trail.
    pub(super) audit: Audit,
    /// The control plane's time.
    pub(super) confirm: watch::Sender<Option<Anchor>>,
    /// Until when our handshakes may be stamped, if in the future.
    pub(super) stamped_until: watch::Sender<Option<Wall>>,
    /// Starts the program again, with what is on disk by then.
    pub(super) restart: Arc<dyn Fn() + Send + Sync>,
}

/// Starts the control session if `[control]` is configured; returns its view for the control socket.
pub(super) fn start(
    tasks: &mut Supervisor,
    config: &Arc<Config>,
    publish: watch::Sender<Option<Arc<Effective>>>,
    inputs: ControlInputs<'_>,
) -> Result<Option<ControlView>, Failure> {
    let (Some(control), Some(node)) = (config.control.clone(), config.node.id.clone()) else { return Ok(None) };
    let dir = config.node.state_dir.clone();
    let source = config.interfaces.iter().find(|i| i.name == control.interface).map(|i| i.private_key.clone());
    let source = source.ok_or_else(|| Failure::BadInput(format!("interface {} has no key", control.interface)))?;
    // Read when needed: an enrolled node needs no token.
    let token_source = control.token.clone();
    let used_source = token_source.clone();
    let token: TokenSource = Arc::new(move || read_token(token_source.as_ref()));
    let erase_token: TokenEraser = Arc::new(move |sha256| erase_token(used_source.as_ref(), sha256));
    let (status, statuses) = watch::channel(ControlStatus::default());
    let (requests, session_requests) = mpsc::channel(1);
    let session_requests = Arc::new(Mutex::new(session_requests));
    let ControlInputs {
        keys: secrets,
        net,
        uplink,
        choice,
        components,
        started,
        update,
        audit,
        confirm,
        stamped_until,
        restart,
    } = inputs;
    let seen = components.subscribe();
    let health: HealthView = {
        let (net, seen, update) = (net.clone(), seen.clone(), update.clone());
        Arc::new(move || component_status::health(&net, &seen, &update, started))
    };
    let own = config.clone();
    tasks.restarting("control", seed, move || {
        let identity = control.identity.clone().unwrap_or_else(|| KeySource::File(dir.join("identity.key")));
        let ready = keys::identity(&identity).map_err(anyhow::Error::new).and_then(|key| Ok((key, connect(&control)?)));
        if let Err(e) = &ready {
            start_without_control_plane(&own, &publish, &status, e);
        }
        let task = ready.map(|(key, http)| ControlTask {
            http: (http.another(), http.another(), http.another()),
            echo: IcmpEcho::new(seed()),
            clock: SystemClock,
            own: own.clone(),
            control: control.clone(),
            signer: Signer { key, node: node.clone(), random: seed },
            keys: KeyFiles::at(source.clone()),
            secrets: secrets.clone(),
            token: token.clone(),
            erase_token: erase_token.clone(),
            capabilities: capabilities(),
            files: StateFiles {
                enrolment: enrolment_file(&dir),
                state: state_file(&dir),
                rejected: Document::new(dir.join("rejected.json"), FILE_VERSION),
                trial: Document::new(dir.join("trial.json"), FILE_VERSION),
            },
            publish: publish.clone(),
            net: net.clone(),
            uplink: uplink.clone(),
            choice: choice.clone(),
            components: seen.clone(),
            health: health.clone(),
            requests: session_requests.clone(),
            status: status.clone(),
            update: update.clone(),
            confirm: confirm.clone(),
            stamped_until: stamped_until.clone(),
            restart: restart.clone(),
        });
        async move { task?.run().await.map_err(anyhow::Error::new) }
    });
    tasks.vital("fleet-audit", crate::audit::control(statuses.clone(), audit, SystemClock));
    let (view, components) = (statuses.clone(), components.clone());
    let report = Arc::new(move || Some(component_status::control_report(&statuses.borrow(), SystemClock.now())));
    tasks.restarting("fleet", seed, move || component_status::control(view.clone(), components.clone(), SystemClock));
    Ok(Some(ControlView { report, requests }))
}

fn connect(control: &Control) -> Result<HttpsClient, anyhow::Error> {
    let trust = match (&control.pin, &control.ca) {
        (Some(pin), _) => Trust::Pin(pin.0),
        (None, Some(path)) => Trust::Own(spoke_sys::disk::read_public(path).context("control.ca")?),
        (None, None) => Trust::Public,
    };
    HttpsClient::new(control.url.0.clone(), &trust).context("[control]")
}

/// The tunnel needs neither an identity nor a CA: the last good state is in force until the fault is corrected.
fn start_without_control_plane(
    own: &Arc<Config>,
    publish: &watch::Sender<Option<Arc<Effective>>>,
    status: &watch::Sender<ControlStatus>,
    error: &anyhow::Error,
) {
    let reason = format!("{error:#}");
    tracing::error!(error = reason, "control plane cannot be followed: the last good state stays in force");
    let (enrolment, state) = (enrolment_file(&own.node.state_dir).peek(), state_file(&own.node.state_dir).peek());
    let enrolled = enrolment.is_some();
    if publish.borrow().is_none() {
        let known = remembered(own);
        // An enrolled node without a usable state publishes nothing: see ControlTask::run.
        if known.is_some() || (!enrolled && state.is_none()) {
            publish.send_replace(Some(Arc::new(known.unwrap_or_else(|| Effective::of(own.clone())))));
        }
    }
    status.send_if_modified(|s| {
        let since = s.outage.as_ref().map_or_else(|| SystemClock.now(), |o| o.since);
        let next = ControlStatus {
            enrolled,
            outage: Some(ControlOutage { since, reason, cause: OutageCause::Unreachable }),
            ..s.clone()
        };
        std::mem::replace(s, next.clone()) != next
    });
}

/// The configuration with the last good document on disk; `None`: there is none that verifies.
pub(crate) fn remembered(config: &Arc<Config>) -> Option<Effective> {
    let (_, node) = (config.control.as_ref()?, config.node.id.as_ref()?);
    let dir = &config.node.state_dir;
    let enrolment = enrolment_file(dir).peek()?;
    let document = state_file(dir).peek()?.verify(node, &enrolment.signing_keys).ok()?;
    let unproved = trial_file(dir).peek().is_some_and(|t| t.leaves_unproved(document.generation));
    let release = document.release.clone().filter(|_| !unproved);
    Some(Effective::of(config.clone()).with_document(Some(settings(config, &document))).with_release(release))
}

/// Enrols the node of `config` for a command, while no supervisor runs: asks once.
/// `role`: what is known of the role that it gets.
pub(crate) async fn enrol_now(config: &Config, role: Option<Role>) -> Result<(), anyhow::Error> {
    let (Some(control), Some(node)) = (&config.control, &config.node.id) else { anyhow::bail!("no [control]") };
    let dir = &config.node.state_dir;
    keys::ensure_dir(dir)?;
    let identity = control.identity.clone().unwrap_or_else(|| KeySource::File(dir.join("identity.key")));
    let own = config.interfaces.iter().find(|i| i.name == control.interface);
    let source = own.map(|i| &i.private_key).context("control.interface has no key")?;
    let key = keys::private(source, keys::IfMissing::Create)?;
    let signer = Signer { key: keys::identity(&identity)?, node: node.clone(), random: seed };
    let from = control.token.clone();
    let token: TokenSource = Arc::new(move || read_token(from.as_ref()));
    let request = provision_request(&signer, key.public(), &capabilities());
    let (mut http, url) = (connect(control)?, control.url.0.to_string());
    let mut server = ServerClock::new(SystemClock.now(), SystemClock.wall());
    let mut enroller = Enroller { http: &mut http, signer: &signer, token: &token, url, request, key, verifier: None };
    let enrolment = enroller.enrol_once(&SystemClock, &mut server).await?;
    let enrolment = Enrolment { role, ..enrolment };
    enrolment_file(dir).store(&enrolment)?;
    if let Some(used) = &enrolment.token {
        erase_token(control.token.as_ref(), used);
    }
    Ok(())
}

fn capabilities() -> Capabilities {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let system = rustix::system::sysinfo();
    #[expect(clippy::useless_conversion, reason = "the type differs between architectures")]
    let bytes = u64::try_from(system.totalram).unwrap_or(0).saturating_mul(u64::from(system.mem_unit));
    Capabilities {
        cpu_cores: u32::try_from(cores).unwrap_or(u32::MAX),
        memory_mb: (bytes >> 20).max(1),
        arch: Some(std::env::consts::ARCH.to_owned()),
    }
}

/// Runs what `start` returns for a part of the configuration in force, and starts it again whenever that part changes.
/// Nothing runs while `part` is `None`.
pub(super) async fn following<T, F, S, E>(
    mut effective: Fact<Effective>,
    part: fn(&Effective) -> Option<T>,
    what: &'static str,
    mut start: S,
) -> Result<(), E>
where
    T: Clone + PartialEq,
    S: FnMut(T) -> F,
    F: Future<Output = Result<(), E>>,
{
    loop {
        let wanted = effective.borrow_and_update().as_deref().and_then(part);
        let Some(config) = wanted.clone() else {
            changed(&mut effective).await;
            continue;
        };
        let running = start(config);
        let other = async {
            loop {
                changed(&mut effective).await;
                if effective.borrow().as_deref().and_then(part) != wanted {
                    return;
                }
            }
        };
        tokio::select! {
            ended = running => return ended,
            () = other => tracing::info!(what, "restarted: changed by the control plane"),
        }
    }
}

/// Never returns without a control plane.
async fn changed(effective: &mut Fact<Effective>) {
    if effective.changed().await.is_err() {
        std::future::pending().await
    }
}

/// The hub session's configuration. While it is restarted the tunnel stays as it is.
pub(super) fn session_of(config: &Effective) -> Option<session::Config> {
    let uplink = config.uplink()?;
    let interface = config.interface(&uplink.interface)?;
    let fixed_port = interface.overrides().listen_port.map_or(interface.listen_port().is_some(), |p| p != 0);
    Some(session::Config {
        uplink: Arc::new(uplink),
        fixed_port,
        mark: interface.own().fwmark,
        edited: BTreeSet::new(),
    })
}
