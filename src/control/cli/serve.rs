//! `spoke-control serve`: the composition root of the control plane.
use super::{Context, secret};
use crate::api::{App, now_ms, reports, router};
use crate::chain::{Asker, Follower};
use crate::config::Config;
use crate::limits::Limits;
use crate::signing::{MasterKey, SigningKeys};
use crate::store::StoreError;
use crate::store::audit::Actor;
use crate::store::network::Access;
use crate::{server, tls};
use anyhow::Context as _;
use spoke_command::{Outcome, print};
use spoke_sys::notify::{Notify as _, Systemd};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How often what has expired is looked for.
const SWEEP: Duration = Duration::from_secs(60);

/// How often guesses come into the audit trail, one record an address.
const TELL: Duration = Duration::from_secs(10);

/// Where the master key is kept.
pub fn master_path(config: &Config) -> PathBuf {
    config.state_dir.join("master.key")
}

/// Serves until a signal.
pub async fn run(context: &Context) -> Outcome {
    spoke_command::start_log("spoke-control");
    let config = &context.config;
    let master = MasterKey::load_or_make(&master_path(config), &context.store).await?;
    let signing = SigningKeys::load(&context.store, &master, now_ms()).await?;
    let tls = tls::load(config.tls.as_ref(), &config.state_dir, &config.public)?;
    let operator_token = config.operator_token.as_ref().map(secret).transpose()?;
    let mut listeners = Vec::new();
    for address in &config.listen {
        let bound = TcpListener::bind(address).await;
        listeners.push(bound.with_context(|| format!("server.listen: cannot listen on {address}"))?);
    }

    let (stop, stopping) = watch::channel(false);
    let (keys_out, keys) = watch::channel(signing);
    let (inbox, outbox) = reports::channel();
    let writer = tokio::spawn(outbox.run(context.store.clone()));
    let url = format!("https://{}", config.public);
    let grants = config.grants.clone().map(Arc::new);
    let chain = grants.clone().map(Asker::new).transpose()?;
    let limits = Limits::new(config.rates);
    let app =
        App::new(context.store.clone(), keys, master, limits, operator_token, inbox, stopping.clone(), chain, url);
    let app = Arc::new(app);
    let listener = tokio::spawn({
        let store = context.store.clone();
        async move { store.listen().await }
    });
    let follower = grants.map(|config| {
        let (store, state_dir) = (context.store.clone(), context.config.state_dir.clone());
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let name = format!("{host}/{}", std::process::id());
        tokio::spawn(Follower { store, config, state_dir, name }.run(stopping.clone()))
    });
    let sweeper = tokio::spawn(sweep(app.clone(), keys_out));

    hello(context, &app.url, &tls.pin).await?;
    let serving = tokio::spawn(server::serve(
        listeners,
        tls.config,
        router(app),
        (config.connections, config.patience),
        stopping,
    ));
    Systemd.ready();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => tracing::info!("stopping on SIGTERM"),
        _ = int.recv() => tracing::info!("stopping on SIGINT"),
    }
    Systemd.stopping();
    let _ = stop.send(true);
    let _ = serving.await;
    if let Some(follower) = follower {
        let _ = tokio::time::timeout(Duration::from_secs(5), follower).await;
    }
    listener.abort();
    sweeper.abort();
    // The last inbox went with the last connection: what is waiting gets written, then the writer ends.
    let _ = sweeper.await;
    let _ = tokio::time::timeout(Duration::from_secs(10), writer).await;
    Ok(())
}

/// Removes what has expired, forgets idle clients, and follows the signing keys.
async fn sweep(app: Arc<App>, keys: watch::Sender<SigningKeys>) {
    let mut epoch = 0;
    let mut swept = tokio::time::Instant::now();
    let mut told = swept;
    loop {
        let now = app.store.epoch();
        if now != epoch {
            epoch = now;
            match SigningKeys::load(&app.store, &app.master, now_ms()).await {
                Ok(loaded) => {
                    keys.send_if_modified(|k| {
                        let news = k.public() != loaded.public();
                        if news {
                            tracing::info!(keys = ?loaded.public(), "signing keys changed");
                            *k = loaded;
                        }
                        news
                    });
                }
                Err(e) => tracing::warn!(error = %e, "signing keys not read; the ones at hand stay in use"),
            }
        }
        if swept.elapsed() >= SWEEP {
            swept = tokio::time::Instant::now();
            app.limits.forget();
            if let Err(e) = app.store.prune(now_ms()).await {
                tracing::warn!(error = %e, "expired rows not removed; trying again later");
            }
        }
        if told.elapsed() >= TELL {
            told = tokio::time::Instant::now();
            if let Err(e) = tell_of_guessers(&app).await {
                tracing::warn!(error = %e, "guesses not audited");
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Records at most in a minute of guessing: what many machines do is told in the log.
const GUESSERS_TOLD: usize = 100;

/// Puts into the audit trail who has shown tokens that are not valid.
async fn tell_of_guessers(app: &App) -> Result<(), StoreError> {
    let guessers = app.limits.guessers(now_ms());
    if guessers.is_empty() {
        return Ok(());
    }
    tracing::warn!(addresses = guessers.len(), tokens = guessers.iter().map(|g| g.1).sum::<u32>(), "tokens guessed");
    let mut tx = app.store.write().await?;
    for (address, count) in guessers.into_iter().take(GUESSERS_TOLD) {
        let details = serde_json::json!({"count": count});
        tx.audit(now_ms(), &Actor::System, "token_refused", ("address", &address.to_string()), details).await?;
    }
    tx.commit().await
}

/// Says how to enrol a device; at the first run there is nothing to enrol into yet, and it says how to begin.
async fn hello(context: &Context, url: &str, pin: &str) -> Outcome {
    let networks = context.store.read().await?.networks().await?;
    let me = &context.invocation;
    let host = &context.config.public.host;
    let mut out = format!("serving devices at {url}\n");
    match networks.first() {
        None => {
            let _ = write!(
                out,
                "there is no network yet; make one, its hub, and a token for the first device:\n  {me} network create field --pool4 10.80.0.0/16\n  {me} hub add hub-1 --network field --endpoint {host}:51820\n  {me} token create --network field\n"
            );
        }
        Some(network) => {
            let _ = write!(out, "to enrol a device, make a token:\n  {me} token create --network {}\n", network.name);
        }
    }
    let _ = write!(
        out,
        "write the token into a file on the device, mode 0600, and into its spoke.toml:\n  [control]\n  url = \"{url}\"\n"
    );
    if context.config.tls.is_none() {
        // A certificate from elsewhere is renewed; its issuer is what a device should know it by.
        let _ = writeln!(out, "  pin = \"{pin}\"");
    }
    let _ = writeln!(out, "  token = \"file:/etc/spoke/enrolment-token\"");
    print(&out);
    if networks.iter().any(|n| n.access == Access::Nft) && context.config.grants.is_none() {
        tracing::error!("a network has access by NFT, and there is no [grants] section: nobody new becomes a peer");
    }
    tracing::info!(url, pin, store = ?context.store, "serving");
    Ok(())
}
