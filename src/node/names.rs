//! Task that resolves the endpoints of peers that are host names: at start, after a failure, and every few minutes.
//!
//! Waits for: the timer; after a failed look-up also for a network event.
use spoke_config::Config;
use spoke_model::address::HostPort;
use spoke_model::error_chain::ErrorChain;
use spoke_sys::clock::Clock;
use spoke_sys::resolve::Resolve;
use spoke_uplink::names::{Names, wanted};
use spoke_uplink::session::RESOLVE_TIMEOUT;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// A network event shortens the wait after a failure, at most to this.
const MIN_WAIT: Duration = Duration::from_secs(1);

/// Publishes the addresses until dropped; first an empty set, so that the first pass does not wait for look-ups.
pub async fn run<D: Resolve, C: Clock>(
    clock: C,
    config: Arc<Config>,
    resolver: D,
    seed: u64,
    known: watch::Sender<Option<Arc<BTreeMap<HostPort, SocketAddr>>>>,
    mut wake: watch::Receiver<u64>,
) -> Result<(), Infallible> {
    let wanted = wanted(&config);
    let mut names = Names::new(seed);
    let mut network_events = true;
    loop {
        publish(&known, &names);
        let round = wanted.iter().map(|name| {
            let look_up = resolver.resolve(name, RESOLVE_TIMEOUT);
            async move {
                let addresses = look_up.await.map_err(|e| {
                    tracing::warn!(%name, error = %ErrorChain(&e), "cannot resolve peer; using its last good address");
                });
                (name.clone(), addresses.ok())
            }
        });
        let round = futures_util::future::join_all(round).await;
        let failed = round.iter().any(|(_, addresses)| addresses.is_none());
        let wait = names.record(round);
        publish(&known, &names);
        // Events during the look-up did not help it.
        wake.mark_unchanged();
        clock.sleep(MIN_WAIT.min(wait)).await;
        tokio::select! {
            () = clock.sleep(wait.saturating_sub(MIN_WAIT)) => {}
            changed = wake.changed(), if network_events && failed => network_events = changed.is_ok(),
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
