//! The facts that `spoke run` would start with, read from disk, kernel and name servers.
use crate::changes::history as changes;
use crate::hub_endpoints;
use crate::run::{access, control};
use spoke_chain::watcher as grants;
use spoke_command::Failure;
use spoke_config::Config;
use spoke_config::effective::Effective;
use spoke_model::address::HostPort;
use spoke_net::derive::{Admitted, Facts, HubPeer, Keys, UplinkChoice};
use spoke_net::state::{Endpoint, Observed};
use spoke_sys::clock::{Clock as _, SystemClock};
use spoke_sys::resolve::{Resolve as _, SystemResolver};
use spoke_uplink::names;
use spoke_uplink::session::RESOLVE_TIMEOUT;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

/// The configuration in force: with the last good document of the control plane, if one is stored.
pub(super) fn effective(own: Config) -> Effective {
    let own = Arc::new(own);
    control::remembered(&own).unwrap_or_else(|| Effective::of(own))
}

/// The facts; `observed` is the kernel's state.
pub(super) async fn facts(config: &Effective, keys: Keys, observed: &Observed) -> Result<Facts, Failure> {
    let dir = &config.own().node.state_dir;
    let admitted = match config.grants() {
        Some(g) => grants::remembered(g, dir, &access::candidates(config), SystemClock.now()),
        None => Admitted::default(),
    };
    let known = look_up(config).await;
    Ok(Facts {
        keys: Arc::new(keys),
        uplink: uplink(config, observed, &known).map(Arc::new),
        admitted: Arc::new(admitted),
        api_state: changes::peek(dir)?,
        names: Arc::new(known),
    })
}

/// First address of each name; names that cannot be resolved in time are omitted.
async fn look_up(config: &Effective) -> BTreeMap<HostPort, SocketAddr> {
    let hubs = config.hubs().iter().map(|h| h.endpoint.clone());
    let wanted: BTreeSet<HostPort> = names::wanted(config.own()).into_iter().chain(hubs).collect();
    let resolver = &SystemResolver::default();
    let found = wanted.into_iter().map(|name| async move {
        let addresses = resolver.resolve(&name, RESOLVE_TIMEOUT).await.ok()?;
        Some((name, *addresses.first()?))
    });
    futures_util::future::join_all(found).await.into_iter().flatten().collect()
}

/// The hub that the kernel has as a peer, else the best one at the first address of its name.
fn uplink(config: &Effective, observed: &Observed, known: &BTreeMap<HostPort, SocketAddr>) -> Option<UplinkChoice> {
    let (interface, hubs) = (config.uplink_interface()?, config.hubs());
    let link = observed.links.get(interface);
    let present = hubs.iter().find(|h| link.is_some_and(|l| l.peers.contains_key(&h.public_key)));
    let hub = present.or_else(|| hubs.first())?;
    let edited = hub_endpoints::edited(&config.own().node.state_dir, std::slice::from_ref(hub));
    let in_use = link.and_then(|l| l.peers.get(&hub.public_key)).and_then(|p| p.endpoint);
    let in_use = in_use.filter(|_| edited.is_empty());
    let endpoint = in_use.or_else(|| known.get(&hub.endpoint).copied()).map(|addr| Endpoint { addr, attempt: 0 });
    let active = HubPeer { hub: Arc::new(hub.clone()), endpoint };
    Some(UplinkChoice { interface: interface.clone(), active, standby: None, port_epoch: 0, rebuild: 0 })
}
