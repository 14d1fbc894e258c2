//! Endpoint names of files: resolved once, as `wg syncconf` does, with a timeout; a name without an address is tried again
//! until it has one, and does not hold back the other peers.
use crate::changes::requests::Changes;
use crate::reconciler::NetStatus;
use futures_util::future::join_all;
use spoke_api::agent::wgconf::WgPeer;
use spoke_change::audit::Actor;
use spoke_change::edit::{Edit, PeerValues};
use spoke_change::request::ChangeRefused;
use spoke_model::address::HostPort;
use spoke_model::interface_name::IfName;
use spoke_model::key::PublicKey;
use spoke_sys::resolve::Resolve;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Endpoint names of one file.
pub(super) const MAX_NAMES: usize = 256;
/// Timeout for resolving all of them.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between attempts at names that had no address.
pub(super) const RETRY_EVERY: Duration = Duration::from_secs(60);

/// The names among the endpoints of these peers.
pub(super) fn names<'p>(peers: impl IntoIterator<Item = &'p WgPeer>) -> BTreeSet<HostPort> {
    peers.into_iter().filter_map(|p| p.endpoint.clone()).filter(|e| e.literal().is_none()).collect()
}

/// The first address of each name that has one.
pub(super) async fn resolve(
    resolver: &impl Resolve,
    names: impl IntoIterator<Item = HostPort>,
) -> BTreeMap<HostPort, SocketAddr> {
    let one = async |name: HostPort| {
        let found = resolver.resolve(&name, RESOLVE_TIMEOUT).await.ok()?;
        Some((name, found.first().copied()?))
    };
    join_all(names.into_iter().map(one)).await.into_iter().flatten().collect()
}

/// Peers whose endpoint's name had no address, by interface.
#[derive(Debug, Default)]
pub(super) struct Unresolved(Mutex<BTreeMap<IfName, BTreeMap<PublicKey, HostPort>>>);

impl Unresolved {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<IfName, BTreeMap<PublicKey, HostPort>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the peers of an interface.
    pub(super) fn set(&self, link: &IfName, peers: BTreeMap<PublicKey, HostPort>) {
        let mut all = self.lock();
        match peers.is_empty() {
            true => all.remove(link),
            false => all.insert(link.clone(), peers),
        };
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn forget(&self, link: &IfName, peer: &PublicKey) {
        let mut all = self.lock();
        if let Some(peers) = all.get_mut(link) {
            peers.remove(peer);
            if peers.is_empty() {
                all.remove(link);
            }
        }
    }

    /// Tries every name again, and sets the endpoints found.
    pub(super) async fn retry(&self, resolver: &impl Resolve, changes: &Changes, net: &watch::Receiver<NetStatus>) {
        let waiting: Vec<(IfName, PublicKey, HostPort)> = self
            .lock()
            .iter()
            .flat_map(|(link, peers)| peers.iter().map(|(key, name)| (link.clone(), *key, name.clone())))
            .collect();
        let names: BTreeSet<HostPort> = waiting.iter().map(|(.., name)| name.clone()).collect();
        let found = resolve(resolver, names).await;
        for (link, peer, name) in waiting {
            if !needs_endpoint(&net.borrow(), &link, &peer) {
                self.forget(&link, &peer);
                continue;
            }
            let Some(address) = found.get(&name) else { continue };
            let values = PeerValues { endpoint: Some(*address), ..PeerValues::default() };
            let edit = Edit::ChangePeer { link: link.clone(), peer, values };
            match changes.edit(edit, Actor::Node, None).await {
                Ok(_) => {
                    tracing::info!(interface = %link, public_key = %peer, name = %name, address = %address, "endpoint name resolved");
                    self.forget(&link, &peer);
                }
                // Another change is under way: tried again.
                Err(ChangeRefused::Busy | ChangeRefused::Unconfirmed(_)) => {}
                Err(e) => {
                    tracing::warn!(interface = %link, public_key = %peer, name = %name, error = %e, "endpoint of a resolved name not set");
                    self.forget(&link, &peer);
                }
            }
        }
    }
}

/// Whether the peer is still there, and was neither given an endpoint nor has reached us from one.
fn needs_endpoint(status: &NetStatus, link: &IfName, peer: &PublicKey) -> bool {
    let set = status.api_state.links.get(link).and_then(|l| l.peers.get(peer));
    let seen = status.observed.links.get(link).and_then(|l| l.peers.get(peer));
    set.is_some_and(|p| p.endpoint.is_none()) && seen.is_none_or(|p| p.endpoint.is_none())
}

/// Warnings to the caller about names without an address.
pub(super) fn warnings(unresolved: &BTreeMap<PublicKey, HostPort>) -> impl Iterator<Item = String> {
    unresolved
        .iter()
        .map(|(key, name)| format!("Endpoint {name} of peer {key} has no address: it is tried again every minute"))
}
