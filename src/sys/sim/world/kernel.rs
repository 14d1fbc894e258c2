//! The device's kernel: applies the reconciler's steps as the real one does.
use super::wireguard::{Interface, Peer};
use super::{State, World};
use crate::clock::Clock as _;
use crate::kernel::{Applied, Cause, Kernel, KernelError};
use spoke_model::interface_name::IfName;
use spoke_net::plan::{AllowedIps, Step};
use spoke_net::state::{Observed, ObservedLink, ObservedPeer};
use std::collections::BTreeSet;
use std::io;

impl Kernel for World {
    async fn observe(&mut self, wanted: &BTreeSet<IfName>) -> Result<Observed, KernelError> {
        let state = self.state();
        let observable = state.links.iter().filter(|(name, l)| l.ours || wanted.contains(*name));
        let links = observable.map(|(n, l)| (n.clone(), observed(l))).collect();
        Ok(Observed { at: state.clock.now(), links, ..Observed::default() })
    }

    async fn apply(&mut self, steps: &[Step]) -> Applied {
        let mut applied = Applied::default();
        for (i, step) in steps.iter().enumerate() {
            match self.state().apply(step) {
                Ok(()) => applied.done.push(i),
                Err(source) => {
                    let step = spoke_net::render::step(step, &Observed::default());
                    applied.failed.push((i, KernelError::Refused { step, cause: Cause::Errno, source }));
                }
            }
        }
        applied
    }

    async fn changed(&mut self) {
        let link_events = self.state().link_events.clone();
        link_events.notified().await;
    }
}

fn observed(l: &Interface) -> ObservedLink {
    let peers: std::collections::BTreeMap<_, _> = l
        .peers
        .iter()
        .map(|(k, p)| {
            let peer = ObservedPeer {
                preshared_key: p.preshared_key.clone(),
                allowed_ips: p.allowed_ips.clone().into(),
                keepalive: p.keepalive,
                endpoint: p.endpoint,
                counters: p.counters,
            };
            (*k, peer)
        })
        .collect();
    ObservedLink {
        index: l.index,
        wireguard: true,
        ours: l.ours,
        up: l.up,
        mtu: l.mtu,
        public_key: l.public_key,
        listen_port: l.port,
        fwmark: l.fwmark,
        addresses: l.addresses.clone(),
        unrouted: BTreeSet::new(),
        traffic: crate::sim::kernel::traffic(&peers),
        peers,
        routes: l.routes.clone(),
    }
}

impl State {
    fn apply(&mut self, step: &Step) -> io::Result<()> {
        let name = step.link().clone();
        match step {
            Step::CreateLink { mtu, .. } => {
                self.next += 1;
                let index = u32::try_from(self.next).unwrap_or(u32::MAX);
                let port = self.free_port();
                self.links.insert(name, Interface { index, ours: true, mtu: *mtu, port, ..Interface::default() });
                self.link_events.notify_one();
                return Ok(());
            }
            Step::DeleteLink { .. } => {
                self.links.remove(&name);
                self.link_events.notify_one();
                return Ok(());
            }
            // The simulated device is no hub.
            Step::SetForwarding { .. } => return Err(io::ErrorKind::Unsupported.into()),
            Step::SetDevice { .. }
            | Step::RemovePeer { .. }
            | Step::SetPeer { .. }
            | Step::SetMtu { .. }
            | Step::RemoveRoute { .. }
            | Step::RemoveAddress { .. }
            | Step::AddAddress { .. }
            | Step::SetUp { .. }
            | Step::AddConnected { .. }
            | Step::RemoveConnected { .. }
            | Step::AddRoute { .. } => {}
        }
        let fresh_port = self.free_port();
        let no_device = || io::Error::other("No such device");
        let link = self.links.get_mut(&name).ok_or_else(no_device)?;
        let mut keepalives = Vec::new();
        match step {
            Step::CreateLink { .. }
            | Step::DeleteLink { .. }
            | Step::SetForwarding { .. }
            | Step::AddConnected { .. }
            | Step::RemoveConnected { .. } => {}
            Step::SetDevice { private_key, listen_port, fwmark, .. } => {
                if let Some(key) = private_key {
                    link.public_key = Some(key.public());
                }
                match listen_port {
                    Some(0) => link.port = fresh_port,
                    Some(port) => link.port = *port,
                    None => {}
                }
                link.fwmark = fwmark.unwrap_or(link.fwmark);
            }
            Step::RemovePeer { peer, .. } => {
                link.peers.remove(peer);
            }
            Step::SetPeer { peer: key, change, .. } => {
                if !change.create && !link.peers.contains_key(key) {
                    return Ok(());
                }
                // An allowed-ip belongs to the peer it was last added to.
                if let AllowedIps::Add(nets) | AllowedIps::Replace(nets) = &change.allowed_ips {
                    for (other, peer) in &mut link.peers {
                        if other != key {
                            peer.allowed_ips.retain(|n| !nets.contains(n));
                        }
                    }
                }
                let peer: &mut Peer = link.peers.entry(*key).or_default();
                if let Some(psk) = &change.preshared_key {
                    peer.preshared_key.clone_from(psk);
                }
                if let Some(endpoint) = change.endpoint {
                    peer.endpoint = Some(endpoint.addr);
                }
                match &change.allowed_ips {
                    AllowedIps::Keep => {}
                    AllowedIps::Add(nets) => peer.allowed_ips.extend(nets),
                    AllowedIps::Replace(nets) => peer.allowed_ips = nets.iter().copied().collect(),
                }
                if let Some(keepalive) = change.keepalive {
                    if peer.keepalive == 0 && keepalive != 0 {
                        keepalives.push(*key);
                    }
                    peer.keepalive = keepalive;
                }
            }
            Step::SetMtu { mtu, .. } => link.mtu = *mtu,
            Step::RemoveRoute { route, .. } => {
                link.routes.remove(route);
            }
            Step::RemoveAddress { address, .. } => {
                link.addresses.remove(address);
            }
            Step::AddAddress { address, .. } => {
                link.addresses.insert(*address);
            }
            Step::SetUp { up, .. } => {
                link.up = *up;
                if *up {
                    keepalives.extend(link.peers.iter().filter(|(_, p)| p.keepalive != 0).map(|(k, _)| *k));
                } else {
                    link.routes.clear();
                    link.peers.values_mut().for_each(Peer::reset);
                }
            }
            Step::AddRoute { route, .. } => {
                if !link.up {
                    return Err(io::Error::from(io::ErrorKind::NetworkDown));
                }
                link.routes.insert(*route);
            }
        }
        self.timer_changes.notify_one();
        for key in keepalives {
            self.send_keepalive(&name, &key);
        }
        Ok(())
    }

    /// A port not used before, so that it has no stuck binding.
    fn free_port(&mut self) -> u16 {
        self.next += 1;
        32_768 + u16::try_from(self.next % 28_000).unwrap_or(0)
    }
}
