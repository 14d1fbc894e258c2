//! `spoke run`: the composition root. Configuration → identity → kernel → uplink → local endpoints.
pub mod access;
pub mod component_status;
pub mod control;
mod settings;
pub mod slots;
pub mod storage;
use crate::agent;
use crate::audit::{Audit, Trail};
use crate::changes as change;
use crate::changes::requests::Changes;
use crate::clock::{self, Keeper};
use crate::config_file::load;
use crate::found_keys;
use crate::health;
use crate::hub_endpoints;
use crate::key_files;
use crate::reconciler::{Fact, Reconciler, Sources};
use crate::reload::{self, Reload};
use crate::socket;
use crate::supervise::Supervisor;
use crate::uplink::Uplink;
use spoke_api::health::summary::Components;
use spoke_api::responses::ResponseCounts;
use spoke_api::socket::SOCKET;
use spoke_command::{Outcome, runtime};
use spoke_config::Config;
use spoke_config::effective::Effective;
use spoke_config::node::Role;
use spoke_model::address::HostPort;
use spoke_model::clock::Anchor;
use spoke_model::error_chain::ErrorChain;
use spoke_net::derive::UplinkChoice;
use spoke_sys::clock::{Clock as _, SystemClock};
use spoke_sys::echo::IcmpEcho;
use spoke_sys::kernel::{CounterSocket, KernelError, Netlink, PathSocket};
use spoke_sys::keys;
use spoke_sys::keys::IfMissing;
use spoke_sys::lock;
use spoke_sys::notify::{Notify as _, Systemd};
use spoke_sys::priority::lower_thread_priority;
use spoke_sys::random::seed;
use spoke_sys::resolve::SystemResolver;
use spoke_sys::socket::Listener;
use spoke_uplink::names;
use spoke_uplink::status::UplinkStatus;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// `spoke run`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Args {
    /// While the configuration is missing or faulty, wait for a change of it instead of exiting
    #[arg(long)]
    pub wait_for_settings: bool,
}

/// Runs until a signal or the end of a vital task. The kernel tunnel stays as it is either way.
pub fn run(file: &Path, args: &Args) -> Outcome {
    spoke_command::start_log("spoke");
    let config = Arc::new(match load(file) {
        Err(_) if args.wait_for_settings => spoke_command::block_on(settings::wait(file, &SystemClock, &mut Systemd))?,
        loaded => loaded?,
    });
    let node = config.node.id.as_ref().map(tracing::field::display);
    tracing::info!(version = spoke_model::VERSION, config = %file.display(), node, role = config.node.role.as_str(), "starting");
    let _lock = lock::take(&config.node.runtime_dir, &config.node.runtime_dir.join(SOCKET))?;
    // What can be read is in force without it: the keys may be elsewhere.
    if let Err(e) = keys::ensure_dir(&config.node.state_dir) {
        tracing::error!(error = %ErrorChain(&e), "state directory cannot be created: nothing is remembered");
    }
    if let Err(e) = found_keys::take_over(&config) {
        tracing::debug!(error = %e, "keys of interfaces not looked for");
    }
    let (keys, faults) = keys::load(&config, IfMissing::Create);
    for fault in &faults {
        tracing::error!(error = %ErrorChain(fault), "key cannot be read: its interface or peer is not set up");
    }
    // The machine's clock is not this process's to set.
    if let Some(least) = clock::record_start(&config.node.state_dir) {
        tracing::warn!(wall = %SystemClock.wall(), %least, "clock is behind: run `spoke clock restore`, or enable spoke-clock.service");
    }
    // The tunnel does not need the agent API, whose task tries again.
    if let Err(e) = agent::check(&config) {
        tracing::error!(error = %ErrorChain(&e), "agent API cannot be served with this configuration");
    }
    let runtime = runtime()?;
    let reload = Arc::new(Reload::new(file.to_owned(), config.clone()));
    let outcome = runtime.block_on(supervise(config, keys, reload.clone()));
    // A blocked name look-up must not delay the exit.
    runtime.shutdown_background();
    if outcome.is_ok() && reload.is_taken() {
        return Err(anyhow::Error::new(reload::restart()).context("the program cannot be started again").into());
    }
    outcome
}

async fn supervise(config: Arc<Config>, keys: spoke_net::derive::Keys, reload: Arc<Reload>) -> Outcome {
    let clock = SystemClock;
    let started = clock.now();
    let mut stop = Stop::new()?;
    let mut tasks = Supervisor::default();

    let unreadable = !keys.unreadable.is_empty();
    let (secrets, keys) = watch::channel(Some(Arc::new(keys)));
    if unreadable {
        let (config, secrets) = (config.clone(), secrets.clone());
        tasks.restarting("keys", seed, move || key_files::run(clock, config.clone(), secrets.clone()));
    }
    let (status, net) = watch::channel(crate::reconciler::NetStatus::default());
    let (events, wake) = watch::channel(0);
    let (components_out, components) =
        watch::channel(Components { node_id: config.node.id.clone(), ..Components::default() });
    let (shown, seen) = (net.clone(), components.clone());
    tasks.restarting("status line", seed, move || component_status::line(shown.clone(), seen.clone(), Systemd));
    let (stopping, stop_health) = watch::channel(false);
    let responses = Arc::<ResponseCounts>::default();
    let (confirm, confirmed) = watch::channel(None);
    let (stamped_until, _) = watch::channel(None);
    let (anchor, trusted) = watch::channel(None);
    let (state_dir, every) = (config.node.state_dir.clone(), config.clock.stamp_every);
    let stamps = stamped_until.clone();
    let keeper = move || Keeper::new(clock, &state_dir, every, anchor.clone(), confirmed.clone(), stamps.clone());
    let last_stamp = keeper.clone();
    tasks.restarting("clock", seed, move || keeper().run());
    let (anchor, statuses) = (trusted.clone(), components_out.clone());
    tasks.restarting("trust in the clock", seed, move || component_status::clock(anchor.clone(), statuses.clone()));

    let (state_dir, statuses) = (config.node.state_dir.clone(), components_out.clone());
    let certificate = config.agent.tls_certificate.clone().filter(|_| config.agent.enabled);
    tasks.restarting("storage", seed, move || {
        storage::watch(clock, state_dir.clone(), certificate.clone(), statuses.clone())
    });

    let changes = start_changes(&mut tasks, &config, &net, trusted);
    if config.health.enabled {
        let (config, net, components) = (config.clone(), net.clone(), components.clone());
        let changes = changes.handle.clone();
        let agent = config.agent.enabled.then(|| responses.clone());
        tasks.restarting("health", seed, move || {
            let (config, net, components, stop) =
                (config.clone(), net.clone(), components.clone(), stop_health.clone());
            let changes = Some(changes.clone());
            health::run(health::Deps { clock, started, config, net, components, changes, agent: agent.clone(), stop })
        });
    }
    if config.agent.enabled {
        let (config, net, changes, stop) = (config.clone(), net.clone(), changes.handle.clone(), stopping.subscribe());
        let deps = agent::Deps { clock, started, config, net, changes, responses, stop };
        tasks.restarting("agent", seed, move || agent::run(deps.clone()));
    }

    let names = start_names(&mut tasks, &config, &wake);
    let (uplink_status, uplink_seen) = watch::channel(UplinkStatus::default());
    let (update, update_seen) = watch::channel(None);
    let choices = has_uplink(&config).then(|| watch::channel(None));
    let inputs = control::ControlInputs {
        keys: secrets,
        net: net.clone(),
        uplink: uplink_seen,
        choice: choices.as_ref().map(|c| c.1.clone()),
        components: &components_out,
        started,
        update: update_seen,
        audit: changes.audit.clone(),
        confirm,
        stamped_until,
        restart: {
            let reload = reload.clone();
            Arc::new(move || reload.request())
        },
    };
    let own = config.control.is_none().then(|| Arc::new(Effective::of(config.clone())));
    let (publish, effective) = watch::channel(own);
    let control = control::start(&mut tasks, &config, publish, inputs)?;
    slots::start(&mut tasks, &config, effective.clone(), net.clone(), &components_out, update);
    let (choice, status_of_uplink) = match choices {
        None => (None, None),
        Some((choice, choices)) => {
            let dir = config.node.state_dir.clone();
            let status = start_uplink(&mut tasks, effective.clone(), choice, uplink_status, wake, &components_out, dir);
            (Some(choices), Some(status))
        }
    };
    let grants = access::start(&mut tasks, &config, &effective, &components_out, clock);
    let admitted = grants.as_ref().map(|g| g.admitted.clone());
    let sources = Sources {
        keys,
        uplink: choice,
        names,
        admitted,
        effective,
        api_state: Some(changes.facts.0),
        repair: Some(changes.facts.1),
    };

    let path = config.node.runtime_dir.join(SOCKET);
    let uplink = move || status_of_uplink.as_ref().map(|s| component_status::report(&s.borrow(), clock.now()));
    let answers = socket::Answers {
        clock,
        started,
        config: config.clone(),
        net,
        components,
        uplink: Arc::new(uplink),
        grants: grants.as_ref().map(access::Running::view),
        changes: changes.handle,
        audit: changes.audit,
        control,
        reload: reload.clone(),
    };
    tasks.restarting("socket", seed, move || {
        let (path, answers) = (path.clone(), answers.clone());
        async move { socket::run(Listener::bind(&path)?, answers).await }
    });

    // A pass over thousands of peers takes tens of milliseconds or more; health must answer meanwhile, with one core too. A
    // change and the pass that applies it alternate, so one thread serves both.
    tasks.spawn_thread("reconciling", spoke_command::runtime, move |tasks| {
        lower_thread_priority();
        tasks.vital("changes", changes.ledger.run());
        tasks.vital("net", async move {
            let kernel = kernel(&config)?;
            Reconciler { kernel, clock, notify: Systemd, sources, status, events }.run().await
        });
    })?;

    let ended = tasks.run(stop.wait(&reload)).await;
    if !reload.is_taken() {
        Systemd.stopping();
    }
    let _ = stopping.send(true);
    last_stamp().stop();
    ended.map_err(Into::into)
}

/// Starts the look-up of peers' host names, if there are any; returns the channel of their addresses.
fn start_names(
    tasks: &mut Supervisor,
    config: &Arc<Config>,
    wake: &watch::Receiver<u64>,
) -> Option<Fact<BTreeMap<HostPort, SocketAddr>>> {
    if names::wanted(config).is_empty() {
        return None;
    }
    let (known, addresses) = watch::channel(None);
    let (config, wake, resolver) = (config.clone(), wake.clone(), SystemResolver::default());
    tasks.restarting("names", seed, move || {
        crate::names::run(SystemClock, config.clone(), resolver.clone(), seed(), known.clone(), wake.clone())
    });
    Some(addresses)
}

/// The ledger of changes with its channels.
struct ChangeChannels {
    ledger: change::Ledger<SystemClock>,
    handle: Changes,
    facts: change::Facts,
    audit: Audit,
}

/// Opens the ledger of changes and starts the audit trail.
fn start_changes(
    tasks: &mut Supervisor,
    config: &Arc<Config>,
    net: &watch::Receiver<crate::reconciler::NetStatus>,
    trusted: watch::Receiver<Option<Anchor>>,
) -> ChangeChannels {
    let dir = &config.node.state_dir;
    let (trail, audit) = Trail::open(dir, SystemClock, trusted.clone());
    tasks.vital("audit", trail.run());
    let (ledger, handle, facts) =
        change::Ledger::open(dir, config.clone(), SystemClock, net.clone(), trusted, audit.clone());
    let net = net.clone();
    tasks.vital("repairs", crate::audit::repairs(net, audit.clone(), SystemClock));
    ChangeChannels { ledger, handle, facts, audit }
}

/// The kernel, with forwarding rules on a hub.
pub(super) fn kernel(config: &Config) -> Result<Netlink, KernelError> {
    let kernel = Netlink::open()?;
    Ok(if config.node.role == Role::Hub { kernel.with_forwarding() } else { kernel })
}

/// Whether an uplink is configured or may come from the control plane.
fn has_uplink(config: &Config) -> bool {
    config.uplink.is_some() || (config.control.is_some() && config.node.role == Role::Node)
}

/// Starts the hub session; returns the channel of its status.
fn start_uplink(
    tasks: &mut Supervisor,
    effective: Fact<Effective>,
    choice: watch::Sender<Option<Arc<UplinkChoice>>>,
    status: watch::Sender<UplinkStatus>,
    wake: watch::Receiver<u64>,
    components: &watch::Sender<Components>,
    state_dir: PathBuf,
) -> watch::Receiver<UplinkStatus> {
    let statuses = status.subscribe();
    tasks.restarting("uplink", seed, move || {
        let (effective, wake, choice, status) = (effective.clone(), wake.clone(), choice.clone(), status.clone());
        let state_dir = state_dir.clone();
        async move {
            control::following(effective, control::session_of, "hub session", |mut config| {
                let (wake, choice, status) = (wake.clone(), choice.clone(), status.clone());
                let dir = state_dir.clone();
                async move {
                    let uplink = config.uplink.clone();
                    let known = tokio::task::spawn_blocking(move || {
                        let edited = hub_endpoints::edited(&dir, &uplink.hubs);
                        hub_endpoints::record(&dir, &uplink.hubs);
                        edited
                    });
                    config.edited = known.await.unwrap_or_default();
                    let counters = CounterSocket::open()?;
                    let path = PathSocket::open(config.mark)?;
                    let (seed, echo, resolver) = (seed(), IcmpEcho::new(seed()), SystemResolver::default());
                    let clock = SystemClock;
                    let session = Uplink { config, seed, counters, path, echo, resolver, clock, choice, status, wake };
                    session.run().await.map_err(|never| -> KernelError { match never {} })
                }
            })
            .await
        }
    });
    let (view, components) = (statuses.clone(), components.clone());
    tasks.restarting("components", seed, move || {
        component_status::uplink(view.clone(), components.clone(), SystemClock)
    });
    statuses
}

/// SIGTERM and SIGINT end the process, SIGHUP and a request restart it with another configuration.
struct Stop {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
    hup: tokio::signal::unix::Signal,
}

impl Stop {
    fn new() -> Result<Self, std::io::Error> {
        let (term, int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { term, int, hup: signal(SignalKind::hangup())? })
    }

    async fn wait(&mut self, reload: &Arc<Reload>) {
        loop {
            tokio::select! {
                _ = self.term.recv() => return tracing::info!(signal = "SIGTERM", "stopping: the tunnel stays up"),
                _ = self.int.recv() => return tracing::info!(signal = "SIGINT", "stopping: the tunnel stays up"),
                () = reload.requested() => return tracing::info!("reloading: the tunnel stays up"),
                _ = self.hup.recv() => {
                    let check = reload.clone();
                    match tokio::task::spawn_blocking(move || check.check()).await {
                        Ok(Ok(lines)) => {
                            lines.iter().for_each(|line| tracing::info!(change = line, "setting changed"));
                            reload.request();
                        }
                        Ok(Err(e)) => tracing::error!(error = %e, "configuration not reloaded"),
                        Err(e) => tracing::error!(error = %e, "configuration not reloaded"),
                    }
                }
            }
        }
    }
}
