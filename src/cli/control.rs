//! Wires the follower of the control plane, and lets the hub session begin anew when the hubs change.
use super::Failure;
use crate::config::Config;
use crate::enroll::document::Envelope;
use crate::enroll::identity::Enrolment;
use crate::enroll::overlay::effective;
use crate::enroll::task::{Follower, Kept, Reach};
use crate::enroll::wire::Capabilities;
use crate::health::summary::Vitals;
use crate::net::derive::Keys;
use crate::net::task::{Fact, Status as Net};
use crate::secret::Secret;
use crate::supervise::Supervisor;
use crate::sys::clock::SystemClock;
use crate::sys::disk::Document;
use crate::sys::echo::IcmpEcho;
use crate::sys::http::{HttpsClient, Trust};
use crate::sys::keys;
use crate::sys::random::seed;
use crate::update::notice::Notice;
use crate::uplink::session;
use crate::uplink::status::Status;
use std::future::Future;
use std::sync::Arc;
use tokio::sync::watch;

/// The versions of what is kept on disk.
const KEPT: u32 = 1;
/// Who we are, in the state directory.
const ENROLMENT: &str = "enrolment.json";
/// The last good state, in the state directory.
const STATE: &str = "state.json";

/// Starts the follower where `[control]` is configured; gives the channel of the configuration it completes.
pub(super) fn start(
    tasks: &mut Supervisor,
    config: &Arc<Config>,
    keys: &Fact<Keys>,
    net: watch::Receiver<Net>,
    uplink: watch::Receiver<Status>,
    vitals: &watch::Sender<Vitals>,
    update: watch::Receiver<Option<Notice>>,
) -> Result<Option<Fact<Config>>, Failure> {
    let (Some(control), Some(node)) = (config.control.clone(), config.node.id.clone()) else { return Ok(None) };
    let dir = config.node.state_dir.clone();
    let own = keys.borrow().as_ref().and_then(|k| k.private.get(&control.interface).map(|k| k.public()));
    let wireguard = own.ok_or_else(|| Failure::BadInput(format!("interface {} has no key", control.interface)))?;
    let trust = match (&control.pin, &control.ca) {
        (Some(pin), _) => Trust::Pin(pin.0),
        (None, Some(path)) => Trust::Own(crate::sys::disk::read_public(path)?),
        (None, None) => Trust::Public,
    };
    let http = HttpsClient::new(control.url.0.clone(), &trust)?;
    // Read at every start, even if it is not needed any more: a token that is not there is no fault once enrolled.
    let token = control.token.as_ref().and_then(|source| match keys::line(source) {
        Ok(text) => Some(Secret::new(text.as_str().to_owned())),
        Err(e) => {
            tracing::debug!(error = %e, "no enrolment token");
            None
        }
    });
    // Refused before anything starts: a key file of others is a fault to mend now.
    keys::identity(&dir.join("identity.key"))?;
    let (publish, published) = watch::channel(None);
    let (reach, reached) = watch::channel(Reach::Unknown);
    let vitals = vitals.clone();
    tasks.restarting("reach", seed, move || super::vitals::control(reached.clone(), vitals.clone(), SystemClock));
    let base = config.clone();
    tasks.restarting("control", seed, move || {
        let follower = keys::identity(&dir.join("identity.key")).map(|identity| Follower {
            http: (http.another(), http.another()),
            echo: IcmpEcho::new(seed()),
            clock: SystemClock,
            random: seed,
            base: base.clone(),
            control: control.clone(),
            node: node.clone(),
            identity,
            wireguard,
            token: token.clone(),
            capabilities: capabilities(),
            kept: Kept {
                enrolment: Document::new(dir.join(ENROLMENT), KEPT),
                state: Document::new(dir.join(STATE), KEPT),
                rejected: Document::new(dir.join("rejected.json"), KEPT),
            },
            publish: publish.clone(),
            net: net.clone(),
            uplink: uplink.clone(),
            reach: reach.clone(),
            update: update.clone(),
        });
        async move { follower.map_err(anyhow::Error::new)?.run().await.map_err(anyhow::Error::new) }
    });
    Ok(Some(published))
}

/// The configuration as the kept state completes it, for who only looks; `None`: there is none that we may believe.
pub(super) fn remembered(config: &Config) -> Option<Config> {
    let (control, node) = (config.control.as_ref()?, config.node.id.as_ref()?);
    let dir = &config.node.state_dir;
    let enrolment = Document::<Enrolment>::new(dir.join(ENROLMENT), KEPT).peek()?;
    let envelope = Document::<Envelope>::new(dir.join(STATE), KEPT).peek()?;
    let document = envelope.verify(node, &enrolment.signing_keys).ok()?;
    Some(effective(config, control, &document))
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

/// Runs the hub session of the configuration in force, and another one whenever its hubs change. The tunnel stays as the
/// old one left it until the new one has decided.
pub(super) async fn sessions<F, S, E>(
    base: Arc<Config>,
    mut control: Option<Fact<Config>>,
    mut start: S,
) -> Result<(), E>
where
    S: FnMut(session::Config) -> F,
    F: Future<Output = Result<(), E>>,
{
    loop {
        let now = match &mut control {
            Some(control) => control.borrow_and_update().clone(),
            None => Some(base.clone()),
        };
        let wanted = now.as_deref().and_then(session_of);
        let Some(config) = wanted.clone() else {
            changed(&mut control).await;
            continue;
        };
        let session = start(config);
        let other = async {
            loop {
                changed(&mut control).await;
                let now = control.as_ref().and_then(|c| c.borrow().clone());
                if now.as_deref().and_then(session_of) != wanted {
                    return;
                }
            }
        };
        tokio::select! {
            ended = session => return ended,
            () = other => tracing::info!("the hubs have changed: the hub session begins anew"),
        }
    }
}

async fn changed(control: &mut Option<Fact<Config>>) {
    match control {
        Some(control) if control.has_changed().is_ok() => {
            let _ = control.changed().await;
        }
        Some(_) | None => std::future::pending().await,
    }
}

fn session_of(config: &Config) -> Option<session::Config> {
    let uplink = config.uplink.clone()?;
    let own = config.interfaces.iter().find(|i| i.name == uplink.interface).and_then(|i| i.listen_port);
    let fixed_port = config.overrides.listen_port.map_or(own.is_some(), |p| p != 0);
    Some(session::Config { uplink: Arc::new(uplink), fixed_port })
}
