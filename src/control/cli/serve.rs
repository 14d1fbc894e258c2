//! `spoke-control serve`: the composition root of the control plane.
use super::{Context, secret};
use crate::api::routes::{Audience, router};
use crate::api::state::{ApiState, HandlerState};
use crate::chain::{AdmissionSync, GrantLookup};
use crate::clock::now_ms;
use crate::config::{API_LISTEN, Config};
use crate::limits::Limits;
use crate::nonce_queue;
use crate::report_queue;
use crate::server::ConnectionLimits;
use crate::signing::{MasterKey, SigningKeys};
use crate::store::StoreError;
use crate::store::audit::Actor;
use crate::store::audit_chain::AuditRetention;
use crate::store::network::Access;
use crate::{metrics, server, tls};
use anyhow::Context as _;
use spoke_command::{Outcome, print};
use spoke_model::error_chain::ErrorChain;
use spoke_sys::notify::{Notify as _, Systemd};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How often expired rows and idle clients are removed.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);

/// How often invalid tokens are written to the audit trail, one record an address.
const AUDIT_INTERVAL: Duration = Duration::from_secs(10);

/// The master key's file.
pub fn master_path(config: &Config) -> PathBuf {
    config.state_dir.join("master.key")
}

/// Shortest operator token, and the fewest different characters in it. Guesses are not stopped, so that they cannot stop the
/// right token either.
const OPERATOR_TOKEN: (usize, usize) = (20, 8);

fn is_strong(token: &str) -> bool {
    let distinct: std::collections::BTreeSet<char> = token.chars().collect();
    token.chars().count() >= OPERATOR_TOKEN.0 && distinct.len() >= OPERATOR_TOKEN.1
}

async fn bind(key: &str, addresses: &[SocketAddr]) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for address in addresses {
        let bound = TcpListener::bind(address).await;
        listeners.push(bound.with_context(|| format!("{key}: cannot listen on {address}"))?);
    }
    Ok(listeners)
}

/// Whom the devices' listeners serve, and the listeners of operators. Without `api.listen` a loopback port in use costs the
/// operators' API only.
async fn operator_listeners(config: &Config, with_token: bool) -> anyhow::Result<(Audience, Vec<TcpListener>)> {
    if let Some(addresses) = &config.api_listen {
        return Ok((Audience::Devices, bind("api.listen", addresses).await?));
    }
    let listeners = bind("api.listen", &[API_LISTEN]).await.unwrap_or_else(|e| {
        tracing::warn!(error = format!("{e:#}"), "operators' API not served: set api.listen");
        Vec::new()
    });
    if !with_token {
        return Ok((Audience::Devices, listeners));
    }
    tracing::warn!(
        listen = %join(&config.listen),
        "operator token is accepted where devices are served: set api.listen"
    );
    Ok((Audience::All, listeners))
}

/// Values separated by commas, for the log.
fn join<T: ToString>(values: &[T]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Serves until SIGTERM or SIGINT.
pub async fn run(context: &Context) -> Outcome {
    spoke_command::start_log("spoke-control");
    let config = &context.config;
    let master = MasterKey::load_or_create(&master_path(config), &context.store, now_ms()).await?;
    let signing = SigningKeys::load(&context.store, &master, now_ms()).await?;
    let tls = tls::load(config.tls.as_ref(), &config.state_dir, &config.public)?;
    let operator_token = config.operator_token.as_ref().map(secret).transpose()?.filter(|token| {
        let strong = is_strong(token.reveal());
        if !strong {
            tracing::error!("operator token is too weak: the operators' API refuses every request");
        }
        strong
    });
    if config.is_public_local() {
        tracing::warn!(public = %config.public, "server.public names this machine: devices on others cannot reach it");
    }
    // Before anybody can connect: a signal without a handler would end the process with reports unwritten.
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let listeners = bind("server.listen", &config.listen).await?;
    let (audience, api_listeners) = operator_listeners(config, operator_token.is_some()).await?;

    let (stop, stopping) = watch::channel(false);
    let (keys_out, keys) = watch::channel(signing);
    let (nonces, nonce_writer) = nonce_queue::channel();
    tokio::spawn(nonce_writer.run(context.store.clone()));
    let (reports, report_writer) = report_queue::channel();
    let writer = tokio::spawn(report_writer.run(context.store.clone()));
    let url = format!("https://{}", config.public);
    let grants = config.grants.clone().map(Arc::new);
    let state = Arc::new(ApiState {
        store: context.store.clone(),
        keys,
        master,
        limits: Limits::new(config.rates),
        operator_token,
        nonces,
        reports,
        stopping: stopping.clone(),
        grants: grants.clone().map(GrantLookup::new).transpose()?,
        handlers: HandlerState::new(),
    });
    let listener = tokio::spawn({
        let store = context.store.clone();
        async move { store.listen().await }
    });
    let admission_sync = grants.map(|config| {
        let (store, state_dir) = (context.store.clone(), context.config.state_dir.clone());
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let name = format!("{host}/{}", std::process::id());
        tokio::spawn(AdmissionSync { store, config, state_dir, name }.run(stopping.clone()))
    });
    let retention = AuditRetention {
        keep_ms: i64::try_from(config.audit_keep.as_millis()).unwrap_or(i64::MAX),
        records: i64::try_from(config.audit_records).unwrap_or(i64::MAX),
    };
    let maintenance = tokio::spawn(maintain(state.clone(), keys_out, retention));

    print_instructions(context, &url, &tls.pin).await?;
    let limits = ConnectionLimits {
        connections: config.connections,
        client_timeout: config.client_timeout,
        proxies: config.proxies.clone(),
    };
    let metrics = metrics::serve(state.clone(), tls.path.clone(), &config.metrics_listen);
    let for_devices = router(state.clone(), audience);
    let serving =
        tokio::spawn(server::serve(listeners, tls.config.clone(), for_devices, limits.clone(), stopping.clone()));
    let for_operators = router(state, Audience::Operators);
    let api_serving = tokio::spawn(server::serve(api_listeners, tls.config, for_operators, limits, stopping));
    Systemd.ready();
    tokio::select! {
        _ = term.recv() => tracing::info!("stopping on SIGTERM"),
        _ = int.recv() => tracing::info!("stopping on SIGINT"),
    }
    Systemd.stopping();
    let _ = stop.send(true);
    metrics.close().await;
    let _ = serving.await;
    let _ = api_serving.await;
    if let Some(sync) = admission_sync {
        let _ = tokio::time::timeout(Duration::from_secs(5), sync).await;
    }
    listener.abort();
    maintenance.abort();
    // The queue closes with the last handle to the state; the writer ends when it has written the rest.
    let _ = maintenance.await;
    let _ = tokio::time::timeout(Duration::from_secs(10), writer).await;
    Ok(())
}

/// Removes expired rows and idle clients, audits invalid tokens, and reloads the signing keys when the store changes.
async fn maintain(state: Arc<ApiState>, keys: watch::Sender<SigningKeys>, retention: AuditRetention) {
    let mut epoch = 0;
    let mut pruned = tokio::time::Instant::now();
    let mut audited = pruned;
    loop {
        let now = state.store.epoch();
        if now != epoch {
            epoch = now;
            match SigningKeys::load(&state.store, &state.master, now_ms()).await {
                Ok(loaded) => {
                    keys.send_if_modified(|k| {
                        let changed = k.public() != loaded.public();
                        if changed {
                            tracing::info!(keys = %join(&loaded.public()), "signing keys changed");
                            *k = loaded;
                        }
                        changed
                    });
                }
                Err(e) => tracing::warn!(error = %ErrorChain(&e), "signing keys not reloaded"),
            }
        }
        if pruned.elapsed() >= PRUNE_INTERVAL {
            pruned = tokio::time::Instant::now();
            state.limits.prune();
            if let Err(e) = state.store.prune(now_ms()).await {
                tracing::warn!(error = %ErrorChain(&e), "expired rows not removed");
            }
            if let Err(e) = state.store.prune_audit(now_ms(), retention).await {
                tracing::warn!(error = %ErrorChain(&e), "old records of the audit trail not removed");
            }
        }
        if audited.elapsed() >= AUDIT_INTERVAL {
            audited = tokio::time::Instant::now();
            if let Err(e) = audit_invalid_tokens(&state).await {
                tracing::warn!(error = %ErrorChain(&e), "invalid tokens not audited");
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Audit records of one interval at most; the log has the totals.
const MAX_AUDITED: usize = 100;

/// Writes the addresses that sent invalid tokens to the audit trail.
async fn audit_invalid_tokens(state: &ApiState) -> Result<(), StoreError> {
    let clients = state.limits.take_invalid_tokens(now_ms());
    if clients.is_empty() {
        return Ok(());
    }
    let tokens: u32 = clients.iter().map(|c| c.1).sum();
    tracing::warn!(addresses = clients.len(), tokens, "invalid tokens received");
    let mut tx = state.store.write().await?;
    for (address, count) in clients.into_iter().take(MAX_AUDITED) {
        let details = serde_json::json!({"count": count});
        tx.audit(now_ms(), &Actor::System, "token_refused", ("address", &address.to_string()), details).await?;
    }
    tx.commit().await
}

/// Prints how to enrol a device and, before the first network, how to create one.
async fn print_instructions(context: &Context, url: &str, pin: &str) -> Outcome {
    let networks = context.store.read().await?.networks().await?;
    let command = &context.invocation;
    let host = &context.config.public.host;
    let mut out = format!("serving devices at {url}\n");
    match networks.first() {
        None => {
            let _ = write!(
                out,
                "there is no network yet; create one, its hub, and a token for the first device:\n  {command} network create field --pool4 10.80.0.0/16\n  {command} hub add hub-1 --network field --endpoint {host}:51820\n  {command} token create --network field\n"
            );
        }
        Some(network) => {
            let _ = write!(
                out,
                "to enrol a device, create a token:\n  {command} token create --network {}\n",
                network.name
            );
        }
    }
    let _ = write!(
        out,
        "on the device, `spoke enrol` takes the invitation that it prints; or write the token into a file there, mode 0600, and into its spoke.toml:\n  [control]\n  url = \"{url}\"\n"
    );
    if context.config.tls.is_none() {
        // A certificate from files is renewed: devices trust its issuer instead of a pin.
        let _ = writeln!(out, "  pin = \"{pin}\"");
    }
    let _ = writeln!(out, "  token = \"file:/etc/spoke/enrolment.token\"");
    print(&out);
    if context.config.grants.is_none() {
        for network in networks.iter().filter(|n| n.access == Access::Nft) {
            tracing::error!(network = %network.name, "network needs a contract: no new node is admitted");
        }
    }
    tracing::info!(url, pin, store = context.store.kind(), version = env!("CARGO_PKG_VERSION"), "serving devices");
    Ok(())
}
