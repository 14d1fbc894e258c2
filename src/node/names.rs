//! Looks up the named peers at start, again after a failure, and every few minutes.
use spoke_config::Config;
use spoke_model::address::HostPort;
use spoke_sys::resolve::Resolve;
use spoke_uplink::names::{Names, wanted};
use spoke_uplink::session::RESOLVE_TIMEOUT;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Events of the network cut a wait after a failure short, but not below this.
const SHORTEST: Duration = Duration::from_secs(1);

/// Publishes the addresses for ever; an empty set at once, so that nobody waits for a look-up.
pub async fn run<D: Resolve>(
    config: Arc<Config>,
    resolver: D,
    seed: u64,
    known: watch::Sender<Option<Arc<BTreeMap<HostPort, SocketAddr>>>>,
    mut wake: watch::Receiver<u64>,
) -> Result<(), Infallible> {
    let wanted = wanted(&config);
    let mut names = Names::new(seed);
    let mut awake = true;
    loop {
        publish(&known, &names);
        let round = wanted.iter().map(|name| {
            let look_up = resolver.resolve(name, RESOLVE_TIMEOUT);
            async move {
                let addresses = look_up.await.map_err(|e| {
                    tracing::warn!(error = %e, "peer not looked up; its last good address is used");
                });
                (name.clone(), addresses.ok())
            }
        });
        let round = futures_util::future::join_all(round).await;
        let failed = round.iter().any(|(_, addresses)| addresses.is_none());
        let wait = names.record(round);
        publish(&known, &names);
        // What happened during the look-up did not help it.
        wake.mark_unchanged();
        tokio::time::sleep(SHORTEST.min(wait)).await;
        tokio::select! {
            () = tokio::time::sleep(wait.saturating_sub(SHORTEST)) => {}
            changed = wake.changed(), if awake && failed => awake = changed.is_ok(),
        }
    }
}

fn publish(known: &watch::Sender<Option<Arc<BTreeMap<HostPort, SocketAddr>>>>, names: &Names) {
    known.send_if_modified(|published| {
        let changed = published.as_deref() != Some(names.known());
        if changed {
            *published = Some(Arc::new(names.known().clone()));
        }
        changed
    });
}
