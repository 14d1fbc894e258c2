//! Changes of the in-memory kernel by other processes, and its state for tests.
use super::{FakeKernel, Handle, Link, State, lock};
use ipnet::IpNet;
use rustix::io::Errno;
use spoke_model::interface_name::IfName;
use spoke_model::key::{PublicKey, SecretKey};
use spoke_net::plan::Step;
use spoke_net::state::{Counters, ObservedPeer, Route};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

impl Handle {
    pub(super) fn announce(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// Changes the state and announces it, as rtnetlink would.
    fn tamper<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut lock(&self.state));
        self.announce();
        result
    }

    /// Changes a link's WireGuard settings, which is not announced.
    fn tamper_device<T>(&self, name: &str, change: impl FnOnce(&mut Link) -> T) -> Option<T> {
        lock(&self.state).links.get_mut(name).map(change)
    }

    /// Another process changes forwarding between the peers of `link`.
    pub fn change_forwarding(&self, link: &IfName) {
        lock(&self.state).forwarding.insert(link.clone(), None);
    }

    /// Another instance over the same state, without the privilege to change the network.
    #[must_use]
    pub fn unprivileged(&self) -> FakeKernel {
        let changes = self.changed.subscribe();
        FakeKernel { state: Arc::clone(&self.state), changes, writer: self.clone(), privileged: false, since: None }
    }

    /// Another instance over the same state, as after a restart of the process.
    #[must_use]
    pub fn kernel(&self) -> FakeKernel {
        FakeKernel { privileged: true, ..self.unprivileged() }
    }

    /// Calls `refuse` before each step; the step fails with the error it returns.
    pub fn refuse(&self, refuse: impl FnMut(&Step) -> Option<Errno> + Send + 'static) {
        lock(&self.state).refusal = Some(Box::new(refuse));
    }

    /// Ends [`Handle::refuse`].
    pub fn refuse_nothing(&self) {
        lock(&self.state).refusal = None;
    }

    /// Stops responding after this many steps: the state left by a process killed then. `None`: responds again.
    pub fn hang_after(&self, steps: Option<u32>) {
        lock(&self.state).left = steps;
    }

    /// The next `count` observations fail.
    pub fn blind(&self, count: u32) {
        lock(&self.state).blind = count;
    }

    /// Sets whether the kernel has WireGuard.
    pub fn has_wireguard(&self, has: bool) {
        lock(&self.state).wireguard = has;
    }

    /// Steps requested since the last call, applied or refused.
    #[must_use]
    pub fn take_steps(&self) -> Vec<Step> {
        std::mem::take(&mut lock(&self.state).asked)
    }

    /// Observations requested so far.
    #[must_use]
    pub fn looks(&self) -> u64 {
        lock(&self.state).looks
    }

    /// Another process creates a link; `wireguard` is its kind.
    pub fn add_link(&self, name: &str, wireguard: bool) {
        self.tamper(|s| s.new_link(name, Link { wireguard, mtu: 1420, ..Link::default() }));
    }

    /// Another process deletes a link.
    pub fn delete_link(&self, name: &str) {
        self.tamper(|s| s.delete_link(name));
    }

    /// Another process sets an alias; [`spoke_net::state::OWNED_ALIAS`] marks the link as ours.
    pub fn set_alias(&self, name: &str, alias: &str) {
        self.tamper(|s| s.links.get_mut(name).map(|l| alias.clone_into(&mut l.alias)));
    }

    /// The alias of a link; empty if it has none or does not exist.
    #[must_use]
    pub fn alias(&self, name: &str) -> String {
        lock(&self.state).links.get(name).map(|l| l.alias.clone()).unwrap_or_default()
    }

    /// Another process sets a link up or down.
    pub fn set_up(&self, name: &str, up: bool) {
        let _ = self.tamper(|s| s.set_up(name, up));
    }

    /// Another process disables or enables IPv6 on a link by sysctl.
    pub fn disable_ipv6(&self, name: &str, disabled: bool) {
        self.tamper(|s| {
            if let Some(link) = s.links.get_mut(name) {
                link.no_ipv6 = disabled;
                if disabled {
                    link.addresses.retain(|a| a.addr().is_ipv4());
                    s.routes.retain(|(_, to, _), h| h.link != name || to.addr().is_ipv4());
                }
            }
        });
    }

    /// Another process sets a link's MTU.
    pub fn set_mtu(&self, name: &str, mtu: u32) {
        self.tamper(|s| s.links.get_mut(name).map(|l| l.mtu = mtu));
    }

    /// Another process adds an address.
    pub fn add_address(&self, link: &str, address: IpNet) {
        self.tamper(|s| s.links.get_mut(link).map(|l| l.addresses.insert(address)));
    }

    /// Another process removes an address.
    pub fn remove_address(&self, link: &str, address: IpNet) {
        self.tamper(|s| s.links.get_mut(link).map(|l| l.addresses.remove(&address)));
    }

    /// Adds a route; `ours`: with our routing protocol.
    pub fn add_route(&self, link: &str, route: Route, ours: bool) {
        let _ = self.tamper(|s| s.add_route(link, route, ours));
    }

    /// Another process flushes the routes of a link, connected ones included.
    pub fn flush_routes(&self, name: &str) {
        self.tamper(|s| {
            s.routes.retain(|_, h| h.link != name);
            if let Some(link) = s.links.get_mut(name) {
                let connected = link.addresses.iter().filter(|a| a.prefix_len() < a.max_prefix_len());
                link.unrouted = connected.copied().collect();
            }
        });
    }

    /// Another process removes a route, ours or not.
    pub fn remove_route(&self, link: &str, route: Route) {
        self.tamper(|s| s.remove_route(link, route, false));
    }

    /// Routes of other protocols than ours, with the name of their link.
    #[must_use]
    pub fn foreign_routes(&self) -> BTreeSet<(String, Route)> {
        let state = lock(&self.state);
        let foreign = state.routes.iter().filter(|(_, h)| !h.ours);
        foreign
            .map(|((table, to, metric), h)| (h.link.clone(), Route { to: *to, table: *table, metric: *metric }))
            .collect()
    }

    /// Links that exist, and whether they are WireGuard.
    #[must_use]
    pub fn links(&self) -> BTreeMap<String, bool> {
        lock(&self.state).links.iter().map(|(n, l)| (n.clone(), l.wireguard)).collect()
    }

    /// The peers of a link; none if there is no such link.
    #[must_use]
    pub fn peers(&self, link: &str) -> BTreeMap<PublicKey, ObservedPeer> {
        lock(&self.state).links.get(link).map(|l| l.peers.clone()).unwrap_or_default()
    }

    /// Another process removes a peer; not announced.
    pub fn remove_peer(&self, link: &str, peer: &PublicKey) {
        self.tamper_device(link, |l| l.remove_peer(peer));
    }

    /// Another process adds or replaces a peer with its allowed-ips; not announced.
    pub fn set_peer(&self, link: &str, peer: PublicKey, new: ObservedPeer) {
        self.tamper_device(link, |l| {
            l.release(&peer);
            l.claim(peer, &new.allowed_ips);
            l.peers.insert(peer, new);
        });
    }

    /// A peer roams: a packet from another address changes its endpoint.
    pub fn roam(&self, link: &str, peer: &PublicKey, endpoint: SocketAddr) {
        self.tamper_device(link, |l| l.peers.get_mut(peer).map(|p| p.endpoint = Some(endpoint)));
    }

    /// Sets a peer's counters.
    pub fn count(&self, link: &str, peer: &PublicKey, counters: Counters) {
        self.tamper_device(link, |l| l.peers.get_mut(peer).map(|p| p.counters = counters));
    }

    /// Another process sets the private key, port or mark of a link.
    pub fn set_device(&self, link: &str, key: Option<&SecretKey>, listen_port: Option<u16>, fwmark: Option<u32>) {
        let _ = lock(&self.state).set_device(link, key, listen_port, fwmark);
    }
}
