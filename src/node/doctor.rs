//! `spoke doctor`: what could keep the tunnel from coming up, and the remedy.
//!
//! [`probe`] reads the host, the network and the endpoints, and changes nothing. [`host`], [`control`] and [`chain`]
//! evaluate the results; they are pure.
pub mod chain;
pub mod control;
pub mod finding;
pub mod host;
pub mod probe;

use finding::Finding;
use spoke_config::effective::Effective;
use spoke_sys::clock::{Clock as _, SystemClock};

/// Runs every probe that applies to the configuration. Takes some seconds without a network.
pub async fn examine(config: &Effective) -> Vec<Finding> {
    let own = config.own();
    let clock = SystemClock;
    let mut findings = vec![
        host::wireguard(&probe::host::wireguard().await),
        host::privileges(&probe::host::privileges()),
        host::clock(clock.wall()),
        host::state_dir(&own.node.state_dir, &probe::host::state_dir(&own.node.state_dir)),
    ];
    findings.extend(probe::host::keys(own).iter().map(host::key));
    for hub in config.hubs() {
        let lookup = probe::host::resolve(&hub.endpoint);
        findings.push(host::dns(&hub.endpoint, &lookup));
        let interface = config.uplink_interface().and_then(|name| config.interface(name));
        let mtu = interface.map_or(spoke_config::interface::DEFAULT_MTU, |i| i.mtu());
        let paths: Vec<_> = lookup.addresses.iter().flatten().map(|a| (*a, probe::host::udp_path(*a))).collect();
        findings.extend(host::udp_paths(&paths, mtu));
    }
    for (interface, families) in control::forwarding_interfaces(config) {
        findings.extend(families.iter().map(|f| control::forwarding(interface, *f, probe::control::forwarding(*f))));
    }
    if let Some(control) = &own.control {
        findings.push(control::control_plane(&control.url.0, &probe::control::control_plane(control).await));
    }
    if let Some(grants) = config.grants() {
        let probed = probe::chain::endpoints(grants).await;
        findings.extend(chain::endpoints(probed.as_deref(), grants, clock.wall()));
        findings.extend(chain::refuted(&probe::chain::refuted(&own.node.runtime_dir)));
    }
    findings
}
