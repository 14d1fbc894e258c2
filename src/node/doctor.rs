//! `spoke doctor`: what could keep the tunnel from coming up, and the remedy.
//!
//! [`probe`] reads the host, the network and the endpoints, and changes nothing. [`host`], [`supervisor`], [`control`] and
//! [`chain`] evaluate the results; they are pure. [`kernel`] does both.
pub mod chain;
pub mod control;
pub mod finding;
pub mod host;
pub mod kernel;
pub mod probe;
pub mod supervisor;

use finding::Finding;
use spoke_config::effective::Effective;
use spoke_sys::clock::{Clock as _, SystemClock};
use std::net::{IpAddr, Ipv4Addr};

/// Looked up where no address of a hub is known: any address outside (RFC 5737). Nothing is sent to it.
const ANYWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// Runs the probes that need no configuration.
pub async fn examine_machine() -> [Finding; 2] {
    [host::wireguard(&probe::host::wireguard().await), host::privileges(&probe::host::privileges())]
}

/// Runs every probe that applies to the configuration. Takes some seconds without a network.
pub async fn examine(config: &Effective) -> Vec<Finding> {
    let own = config.own();
    let (wall, least, jumped) = probe::host::clock(&own.node.state_dir);
    let mut findings = vec![
        host::clock(wall, least, jumped),
        host::state_dir(&own.node.state_dir, &probe::host::state_dir(&own.node.state_dir)),
    ];
    findings.extend(probe::host::keys(own).iter().map(host::key));
    for hub in config.hubs() {
        let lookup = probe::host::resolve(&hub.endpoint);
        findings.push(host::dns(&hub.endpoint, &lookup));
        let interface = config.uplink_interface().and_then(|name| config.interface(name));
        let (mtu, mark) = interface.map_or((spoke_config::interface::DEFAULT_MTU, 0), |i| (i.mtu(), i.own().fwmark));
        let paths: Vec<_> = lookup.addresses.iter().flatten().map(|a| (*a, probe::host::udp_path(*a))).collect();
        let targets: Vec<IpAddr> = match &lookup.addresses {
            Ok(addresses) => addresses.iter().map(std::net::SocketAddr::ip).collect(),
            Err(_) => vec![ANYWHERE],
        };
        let mut ways = Vec::new();
        for to in &targets {
            ways.extend(host::way_out(*to, probe::host::way_out(*to, mark).await));
        }
        // One open way suffices for the tunnel.
        if ways.len() == targets.len() {
            findings.append(&mut ways);
        }
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
        findings.extend(chain::endpoints(probed.as_deref(), grants, SystemClock.wall()));
        findings.extend(chain::refuted(&probe::chain::refuted(&own.node.runtime_dir)));
    }
    findings
}
