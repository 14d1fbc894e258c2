//! What each step does to the state, with the errors of the real kernel.
use super::{FIRST_PORT, Holder, Link, State};
use crate::kernel::{Cause, KernelError};
use ipnet::IpNet;
use rustix::io::Errno;
use spoke_model::key::{PublicKey, SecretKey};
use spoke_model::nets::Nets;
use spoke_net::plan::{AllowedIps, PeerChange, Step};
use spoke_net::render;
use spoke_net::state::{OWNED_ALIAS, Observed, Route};

impl State {
    /// The error of a refused step, with what its errno means.
    pub(super) fn error(&self, step: &Step, errno: Errno) -> KernelError {
        let cause = match (errno, step) {
            (Errno::OPNOTSUPP, Step::CreateLink { .. }) if !self.wireguard => return KernelError::NoWireGuard,
            (
                Errno::ACCESS,
                Step::AddAddress { link, address: net }
                | Step::AddConnected { link, address: net }
                | Step::AddRoute { link, route: Route { to: net, .. } },
            ) if net.addr().is_ipv6() && self.links.get(link.as_str()).is_some_and(|l| l.no_ipv6) => {
                Cause::Ipv6Disabled(link.clone())
            }
            (Errno::EXIST, Step::AddRoute { route, .. }) => {
                let holder = self.routes.get(&(route.table, route.to, route.metric)).map(|h| h.link.clone());
                Cause::RouteHeld { to: route.to, holder: holder.unwrap_or_else(|| "another program".to_owned()) }
            }
            (Errno::ADDRINUSE, Step::SetDevice { link, .. } | Step::SetUp { link, .. }) => {
                let stored = self.links.get(link.as_str()).map_or(0, |l| l.listen_port);
                let port = if let Step::SetDevice { listen_port: Some(port), .. } = step { *port } else { stored };
                let other = self.links.iter().find(|(n, l)| *n != link.as_str() && l.up && l.listen_port == port);
                let holder =
                    other.map_or_else(|| "another program".to_owned(), |(name, _)| format!("interface {name}"));
                Cause::PortInUse { port, holder }
            }
            _ => Cause::Errno,
        };
        KernelError::Refused { step: render::step(step, &Observed::default()), cause, source: errno.into() }
    }

    /// Counts a step; whether the kernel no longer responds.
    pub(super) const fn hangs(&mut self) -> bool {
        match &mut self.left {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    /// Applies a step.
    pub(super) fn apply(&mut self, step: &Step) -> Result<(), Errno> {
        let name = step.link().as_str();
        match step {
            Step::DeleteLink { .. } => {
                if self.links.get(name).is_some_and(|l| l.wireguard && l.alias == OWNED_ALIAS) {
                    self.delete_link(name);
                }
            }
            Step::CreateLink { mtu, .. } => self.create_link(name, *mtu)?,
            Step::SetDevice { private_key, listen_port, fwmark, .. } => {
                self.set_device(name, private_key.as_ref(), *listen_port, *fwmark)?;
            }
            Step::SetForwarding { link, forwarding } => {
                match forwarding {
                    Some(new) => self.forwarding.insert(link.clone(), Some(new.clone())),
                    None => self.forwarding.remove(link),
                };
            }
            Step::RemovePeer { peer, .. } => {
                if let Some(link) = self.links.get_mut(name) {
                    link.remove_peer(peer);
                }
            }
            Step::SetPeer { peer, change, .. } => {
                let link = self.links.get_mut(name).ok_or(Errno::NODEV)?;
                if !link.wireguard {
                    return Err(Errno::OPNOTSUPP);
                }
                link.set_peer(*peer, change);
            }
            Step::SetMtu { mtu, .. } => {
                let link = self.links.get_mut(name).ok_or(Errno::NODEV)?;
                self.announced += u64::from(link.mtu != *mtu);
                link.mtu = *mtu;
            }
            Step::RemoveRoute { route, .. } => self.remove_route(name, *route, true),
            Step::RemoveAddress { address, .. } => {
                let removed = self.links.get_mut(name).is_some_and(|l| {
                    l.unrouted.remove(address);
                    l.addresses.remove(address)
                });
                self.announced += u64::from(removed);
            }
            Step::AddAddress { address, .. } => {
                let link = self.links.get_mut(name).ok_or(Errno::NODEV)?;
                if link.no_ipv6 && address.addr().is_ipv6() {
                    return Err(Errno::ACCESS);
                }
                let same = |a: &IpNet| a.addr() == address.addr() && a.addr().is_ipv6() && a != address;
                // The kernel holds an IPv6 address once per link, for any prefix length.
                if link.addresses.iter().any(same) {
                    return Err(Errno::EXIST);
                }
                self.announced += u64::from(link.addresses.insert(*address));
            }
            Step::AddConnected { address, .. } => {
                let link = self.links.get_mut(name).ok_or(Errno::NODEV)?;
                if link.no_ipv6 && address.addr().is_ipv6() {
                    return Err(Errno::ACCESS);
                }
                self.announced += u64::from(link.unrouted.remove(address));
            }
            Step::RemoveConnected { address, .. } => {
                let added = self.links.get_mut(name).is_some_and(|l| l.unrouted.insert(*address));
                self.announced += u64::from(added);
            }
            Step::SetUp { up, .. } => self.set_up(name, *up)?,
            Step::AddRoute { route, .. } => self.add_route(name, *route, true)?,
        }
        Ok(())
    }

    pub(super) fn create_link(&mut self, name: &str, mtu: u32) -> Result<(), Errno> {
        match self.links.get(name) {
            Some(link) if link.wireguard => Ok(()),
            Some(_) => Err(Errno::EXIST),
            None if !self.wireguard => Err(Errno::OPNOTSUPP),
            None => {
                self.new_link(name, Link { wireguard: true, alias: OWNED_ALIAS.to_owned(), mtu, ..Link::default() });
                Ok(())
            }
        }
    }

    pub(super) fn new_link(&mut self, name: &str, link: Link) {
        let index = self.next_index;
        self.next_index += 1;
        self.announced += 1;
        self.links.insert(name.to_owned(), Link { index, ..link });
    }

    pub(super) fn delete_link(&mut self, name: &str) {
        self.announced += 1;
        self.links.remove(name);
        self.routes.retain(|_, h| h.link != name);
    }

    pub(super) fn set_device(
        &mut self,
        name: &str,
        private_key: Option<&SecretKey>,
        listen_port: Option<u16>,
        fwmark: Option<u32>,
    ) -> Result<(), Errno> {
        let link = self.links.get(name).ok_or(Errno::NODEV)?;
        if !link.wireguard {
            return Err(Errno::OPNOTSUPP);
        }
        let up = link.up;
        let taken = |port: u16| self.links.iter().any(|(n, l)| n != name && l.up && l.listen_port == port);
        if let Some(port) = listen_port.filter(|p| *p != 0)
            && up
            && taken(port)
        {
            return Err(Errno::ADDRINUSE);
        }
        let port = match listen_port {
            Some(0) if up => Some(self.free_port()),
            other => other,
        };
        let link = self.links.get_mut(name).ok_or(Errno::NODEV)?;
        link.listen_port = port.unwrap_or(link.listen_port);
        link.fwmark = fwmark.unwrap_or(link.fwmark);
        if let Some(key) = private_key {
            let public = key.public();
            link.remove_peer(&public);
            link.public_key = Some(public);
        }
        Ok(())
    }

    pub(super) fn free_port(&mut self) -> u16 {
        let port = self.next_port;
        self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
        port
    }

    pub(super) fn set_up(&mut self, name: &str, up: bool) -> Result<(), Errno> {
        let link = self.links.get(name).ok_or(Errno::NODEV)?;
        let taken = |port: u16| self.links.iter().any(|(n, l)| n != name && l.up && l.listen_port == port);
        if up && !link.up && link.listen_port != 0 && taken(link.listen_port) {
            return Err(Errno::ADDRINUSE);
        }
        let port = if up && link.wireguard && link.listen_port == 0 { self.free_port() } else { link.listen_port };
        let link = self.links.get_mut(name).ok_or(Errno::NODEV)?;
        link.listen_port = port;
        if link.up && !up {
            link.addresses.retain(|a| a.addr().is_ipv4());
            self.routes.retain(|_, h| h.link != name);
        }
        self.announced += u64::from(link.up != up);
        if link.up != up {
            link.unrouted.clear();
        }
        link.up = up;
        Ok(())
    }

    pub(super) fn add_route(&mut self, name: &str, route: Route, ours: bool) -> Result<(), Errno> {
        let link = self.links.get(name).ok_or(Errno::NODEV)?;
        if !link.up {
            return Err(Errno::NETDOWN);
        }
        if link.no_ipv6 && route.to.addr().is_ipv6() {
            return Err(Errno::ACCESS);
        }
        let holder = Holder { link: name.to_owned(), ours };
        match self.routes.get(&(route.table, route.to, route.metric)) {
            Some(existing) if *existing == holder => Ok(()),
            Some(_) => Err(Errno::EXIST),
            None => {
                self.announced += 1;
                self.routes.insert((route.table, route.to, route.metric), holder);
                Ok(())
            }
        }
    }

    pub(super) fn remove_route(&mut self, name: &str, route: Route, ours_only: bool) {
        let key = (route.table, route.to, route.metric);
        if self.routes.get(&key).is_some_and(|h| h.link == name && (h.ours || !ours_only)) {
            self.announced += 1;
            self.routes.remove(&key);
        }
    }
}

impl Link {
    pub(super) fn set_peer(&mut self, key: PublicKey, change: &PeerChange) {
        if self.public_key == Some(key) || (!change.create && !self.peers.contains_key(&key)) {
            return;
        }
        self.peers.entry(key).or_default();
        match &change.allowed_ips {
            AllowedIps::Keep => {}
            AllowedIps::Add(nets) => self.claim(key, nets),
            AllowedIps::Replace(nets) => {
                self.release(&key);
                self.claim(key, nets);
            }
        }
        let peer = self.peers.entry(key).or_default();
        if let Some(key) = &change.preshared_key {
            peer.preshared_key.clone_from(key);
        }
        peer.keepalive = change.keepalive.unwrap_or(peer.keepalive);
        peer.endpoint = change.endpoint.map_or(peer.endpoint, |e| Some(e.addr));
    }

    /// Moves allowed-ips to a peer from the peers that have them.
    pub(super) fn claim(&mut self, key: PublicKey, nets: &Nets) {
        for net in nets {
            if let Some(before) = self.owners.insert(*net, key)
                && let Some(peer) = self.peers.get_mut(&before)
            {
                peer.allowed_ips = peer.allowed_ips.filtered(|n| n != net);
            }
        }
        let peer = self.peers.entry(key).or_default();
        peer.allowed_ips = peer.allowed_ips.and(nets);
    }

    pub(super) fn release(&mut self, key: &PublicKey) {
        let nets = self.peers.get_mut(key).map(|p| std::mem::take(&mut p.allowed_ips));
        for net in &nets.unwrap_or_default() {
            self.owners.remove(net);
        }
    }

    pub(super) fn remove_peer(&mut self, key: &PublicKey) {
        self.release(key);
        self.peers.remove(key);
    }
}
