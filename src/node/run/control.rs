//! Starts the session with the control plane, and lets what depends on it begin anew when it changes.
use super::component_status;
use crate::audit::Audit;
use crate::enrolment::{ControlTask, HealthView, StateFiles, TokenSource};
use crate::reconciler::{Fact, NetStatus};
use crate::socket::ControlView;
use crate::supervise::Supervisor;
use spoke_api::health::summary::Components;
use spoke_command::Failure;
use spoke_config::Config;
use spoke_config::effective::Effective;
use spoke_enroll::document::Envelope;
use spoke_enroll::identity::Enrolment;
use spoke_enroll::settings::settings;
use spoke_enroll::status::ControlStatus;
use spoke_enroll::wire::Capabilities;
use spoke_model::key_source::KeySource;
use spoke_model::secret::Secret;
use spoke_model::time::Boot;
use spoke_net::derive::{Keys, UplinkChoice};
use spoke_sys::clock::{Clock as _, SystemClock};
use spoke_sys::disk::{DiskError, Document};
use spoke_sys::echo::IcmpEcho;
use spoke_sys::http::{HttpsClient, Trust};
use spoke_sys::keys;
use spoke_sys::keys::KeyError;
use spoke_sys::keys::pending::KeyFiles;
use spoke_sys::random::seed;
use spoke_update::notice::Notice;
use spoke_uplink::session;
use spoke_uplink::status::UplinkStatus;
use std::future::Future;
use std::sync::Arc;
use tokio::sync::{Mutex, mpsc, watch};

/// The versions of what is kept on disk.
const KEPT: u32 = 1;
/// Who we are, in the state directory.
const ENROLMENT: &str = "enrolment.json";
/// The last good state, in the state directory.
const STATE: &str = "state.json";

/// What the follower is wired to.
pub(super) struct ControlInputs<'a> {
    /// The tunnel's keys, which a change of keys changes.
    pub(super) keys: watch::Sender<Option<Arc<Keys>>>,
    /// The reconciler.
    pub(super) net: watch::Receiver<NetStatus>,
    /// The hub session.
    pub(super) uplink: watch::Receiver<UplinkStatus>,
    /// Its choice.
    pub(super) choice: Option<Fact<UplinkChoice>>,
    /// The board of the local endpoints.
    pub(super) components: &'a watch::Sender<Components>,
    /// When the process started.
    pub(super) started: Boot,
    /// How updates of the image stand.
    pub(super) update: watch::Receiver<Option<Notice>>,
    /// Where it is recorded what the control plane does.
    pub(super) audit: Audit,
}

/// The follower, seen from outside.
#[derive(Clone)]
pub(super) struct ControlHandles {
    /// For the control socket.
    pub(super) view: ControlView,
}

/// Starts the follower where `[control]` is configured.
pub(super) fn start(
    tasks: &mut Supervisor,
    config: &Arc<Config>,
    publish: watch::Sender<Option<Arc<Effective>>>,
    wires: ControlInputs<'_>,
) -> Result<Option<ControlHandles>, Failure> {
    let (Some(control), Some(node)) = (config.control.clone(), config.node.id.clone()) else { return Ok(None) };
    let dir = config.node.state_dir.clone();
    let source = config.interfaces.iter().find(|i| i.name == control.interface).map(|i| i.private_key.clone());
    let source = source.ok_or_else(|| Failure::BadInput(format!("interface {} has no key", control.interface)))?;
    let trust = match (&control.pin, &control.ca) {
        (Some(pin), _) => Trust::Pin(pin.0),
        (None, Some(path)) => Trust::Own(spoke_sys::disk::read_public(path)?),
        (None, None) => Trust::Public,
    };
    let http = HttpsClient::new(control.url.0.clone(), &trust)?;
    // Read only while it is needed: a token that is not there is no fault once enrolled.
    let source_of_token = control.token.clone();
    let token: TokenSource = Arc::new(move || token(source_of_token.as_ref()));
    // Refused before anything starts: a key file of others is a fault to mend now.
    keys::identity(&dir.join("identity.key"))?;
    let (status, statuses) = watch::channel(ControlStatus::default());
    let (asking, asked) = mpsc::channel(1);
    let asked = Arc::new(Mutex::new(asked));
    let (board, net) = (wires.components.subscribe(), wires.net.clone());
    let (health, shown, started) = (board.clone(), wires.update.clone(), wires.started);
    let health: HealthView = Arc::new(move || component_status::health(&net, &health, &shown, started));
    let base = config.clone();
    let ControlInputs { keys: secrets, net, uplink, choice, components, update, audit, .. } = wires;
    tasks.restarting("control", seed, move || {
        let follower = keys::identity(&dir.join("identity.key")).map(|identity| ControlTask {
            http: (http.another(), http.another()),
            echo: IcmpEcho::new(seed()),
            clock: SystemClock,
            random: seed,
            base: base.clone(),
            control: control.clone(),
            node: node.clone(),
            identity,
            keys: KeyFiles::at(source.clone()),
            secrets: secrets.clone(),
            token: token.clone(),
            capabilities: capabilities(),
            kept: StateFiles {
                enrolment: Document::new(dir.join(ENROLMENT), KEPT),
                state: Document::new(dir.join(STATE), KEPT),
                rejected: Document::new(dir.join("rejected.json"), KEPT),
            },
            publish: publish.clone(),
            net: net.clone(),
            uplink: uplink.clone(),
            choice: choice.clone(),
            components: board.clone(),
            health: health.clone(),
            rotate: asked.clone(),
            status: status.clone(),
            update: update.clone(),
        });
        async move { follower.map_err(anyhow::Error::new)?.run().await.map_err(anyhow::Error::new) }
    });
    tasks.vital("fleet-audit", crate::audit::control(statuses.clone(), audit, SystemClock));
    let (view, board) = (statuses.clone(), components.clone());
    let report = Arc::new(move || Some(component_status::control_report(&statuses.borrow(), SystemClock.now())));
    tasks.restarting("fleet", seed, move || component_status::control(view.clone(), board.clone(), SystemClock));
    Ok(Some(ControlHandles { view: ControlView { report, rotate: asking } }))
}

/// The configuration as the kept state completes it, for who only looks; `None`: there is none that we may believe.
pub(crate) fn remembered(config: &Arc<Config>) -> Option<Effective> {
    let (_, node) = (config.control.as_ref()?, config.node.id.as_ref()?);
    let dir = &config.node.state_dir;
    let enrolment = Document::<Enrolment>::new(dir.join(ENROLMENT), KEPT).peek()?;
    let envelope = Document::<Envelope>::new(dir.join(STATE), KEPT).peek()?;
    let document = envelope.verify(node, &enrolment.signing_keys).ok()?;
    Some(Effective::of(config.clone()).with_document(Some(settings(config, &document))))
}

/// The enrolment token, or why there is none and what to do.
fn token(source: Option<&KeySource>) -> Result<Secret<String>, String> {
    let Some(source) = source else {
        return Err("there is no enrolment token: set control.token".into());
    };
    let text = keys::line(source).map_err(|e| {
        let remedy = match &e {
            KeyError::Disk(DiskError::Read { .. }) => "; let the user that runs spoke read it, mode 0600",
            KeyError::NotAKey(_) => {
                return format!(
                    "control.token: {source} is not text; put there what `spoke-control token create` printed"
                );
            }
            _ => "",
        };
        let cause = std::error::Error::source(&e).map(|s| format!(": {s}")).unwrap_or_default();
        format!("control.token: {e}{cause}{remedy}")
    })?;
    if text.is_empty() {
        return Err(format!("control.token: {source} is empty; put there what `spoke-control token create` printed"));
    }
    Ok(Secret::new(text.as_str().to_owned()))
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

/// Runs what `start` makes of a part of the configuration in force, and another one whenever that part changes. `part`
/// gives `None` where there is nothing to run.
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
        let now = effective.borrow_and_update().clone();
        let wanted = now.as_deref().and_then(part);
        let Some(config) = wanted.clone() else {
            changed(&mut effective).await;
            continue;
        };
        let running = start(config);
        let other = async {
            loop {
                changed(&mut effective).await;
                let now = effective.borrow().clone();
                if now.as_deref().and_then(part) != wanted {
                    return;
                }
            }
        };
        tokio::select! {
            ended = running => return ended,
            () = other => tracing::info!(what, "changed by the control plane: begun anew"),
        }
    }
}

/// Never returns where no control plane publishes.
async fn changed(effective: &mut Fact<Effective>) {
    if effective.changed().await.is_err() {
        std::future::pending().await
    }
}

/// The hub session. The tunnel stays as the old one left it until the new one has decided.
pub(super) fn session_of(config: &Effective) -> Option<session::Config> {
    let uplink = config.uplink()?;
    let interface = config.interface(&uplink.interface)?;
    let fixed_port = interface.overrides().listen_port.map_or(interface.listen_port().is_some(), |p| p != 0);
    Some(session::Config { uplink: Arc::new(uplink), fixed_port })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_token_that_is_not_to_be_had_is_told_with_its_file_the_error_and_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let source: KeySource = format!("file:{}", path.display()).parse().unwrap();
        let said = || token(Some(&source)).unwrap_err();
        let of = |parts: &[&str]| {
            let said = said();
            for part in parts.iter().chain(&["control.token", path.to_str().unwrap()]) {
                assert!(said.contains(part), "{part}: {said}");
            }
        };
        of(&["is missing", "put the line there"]);
        std::fs::create_dir(&path).unwrap();
        of(&["cannot read", "not a file", "mode 0600"]);
        std::fs::remove_dir(&path).unwrap();
        let write = |bytes: &[u8], mode| {
            std::fs::write(&path, bytes).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        write(b"spk_1_2", 0o644);
        of(&["can be read by others", "chmod 600"]);
        write(b" \n", 0o600);
        of(&["is empty", "token create"]);
        write(&[0xff], 0o600);
        of(&["not text", "token create"]);
        write(b"spk_1_2\n", 0o600);
        assert_eq!(token(Some(&source)).unwrap().reveal(), "spk_1_2");
        assert!(token(None).unwrap_err().contains("set control.token"));
    }
}
