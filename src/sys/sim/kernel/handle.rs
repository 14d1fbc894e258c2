//! Changes of the kernel in memory by other processes, and what a test may read of it.
use super::{FakeKernel, Handle, Link, State, lock};
use ipnet::IpNet;
use rustix::io::Errno;
use spoke_model::interface_name::IfName;
use spoke_model::key::{PublicKey, SecretKey};
use spoke_model::time::Boot;
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

    /// Changes a link's WireGuard side, of which nothing is announced.
    fn tamper_device<T>(&self, name: &str, change: impl FnOnce(&mut Link) -> T) -> Option<T> {
        lock(&self.state).links.get_mut(name).map(change)
    }

    /// Another process changes forwarding between the peers of `link`.
    pub fn change_forwarding(&self, link: &IfName) {
        lock(&self.state).forwarding.insert(link.clone(), None);
    }

    /// The implementation once more, without the right to change the network.
    #[must_use]
    pub fn unprivileged(&self) -> FakeKernel {
        let changes = self.changed.subscribe();
        FakeKernel { state: Arc::clone(&self.state), changes, writer: self.clone(), privileged: false, since: None }
    }

    /// The kernel as a restarted process finds it.
    #[must_use]
    pub fn kernel(&self) -> FakeKernel {
        FakeKernel { privileged: true, ..self.unprivileged() }
    }

    /// From now on each step is shown to `refuse` before it is done, and fails with the error it returns.
    pub fn refuse(&self, refuse: impl FnMut(&Step) -> Option<Errno> + Send + 'static) {
        lock(&self.state).refusal = Some(Box::new(refuse));
    }

    /// Ends [`Handle::refuse`].
    pub fn refuse_nothing(&self) {
        lock(&self.state).refusal = None;
    }

    /// After this many steps the kernel neither answers nor acts: the state a process leaves that is killed then. `None`: it
    /// goes on.
    pub fn hang_after(&self, steps: Option<u32>) {
        lock(&self.state).left = steps;
    }

    /// The next `count` observations fail.
    pub fn blind(&self, count: u32) {
        lock(&self.state).blind = count;
    }

    /// Whether the kernel has WireGuard.
    pub fn has_wireguard(&self, has: bool) {
        lock(&self.state).wireguard = has;
    }

    /// The time that observations bear.
    pub fn set_time(&self, now: Boot) {
        lock(&self.state).now = now;
    }

    /// Steps asked for since this was last called, done or refused.
    #[must_use]
    pub fn take_steps(&self) -> Vec<Step> {
        std::mem::take(&mut lock(&self.state).asked)
    }

    /// Observations asked for so far.
    #[must_use]
    pub fn looks(&self) -> u64 {
        lock(&self.state).looks
    }

    /// Another process creates a link; `wireguard` is its kind.
    pub fn add_link(&self, name: &str, wireguard: bool) {
        self.tamper(|s| s.new_link(name, Link { wireguard, mtu: 1420, ..Link::default() }));
    }

    /// Somebody deletes a link.
    pub fn delete_link(&self, name: &str) {
        self.tamper(|s| s.delete_link(name));
    }

    /// Somebody marks a link; [`spoke_net::state::OWNED_ALIAS`] makes it one of ours.
    pub fn set_alias(&self, name: &str, alias: &str) {
        self.tamper(|s| s.links.get_mut(name).map(|l| alias.clone_into(&mut l.alias)));
    }

    /// The alias of a link; empty if it has none or is not there.
    #[must_use]
    pub fn alias(&self, name: &str) -> String {
        lock(&self.state).links.get(name).map(|l| l.alias.clone()).unwrap_or_default()
    }

    /// Somebody sets a link up or down.
    pub fn set_up(&self, name: &str, up: bool) {
        let _ = self.tamper(|s| s.set_up(name, up));
    }

    /// Somebody sets a link's MTU.
    pub fn set_mtu(&self, name: &str, mtu: u32) {
        self.tamper(|s| s.links.get_mut(name).map(|l| l.mtu = mtu));
    }

    /// Somebody adds an address.
    pub fn add_address(&self, link: &str, address: IpNet) {
        self.tamper(|s| s.links.get_mut(link).map(|l| l.addresses.insert(address)));
    }

    /// Somebody removes an address.
    pub fn remove_address(&self, link: &str, address: IpNet) {
        self.tamper(|s| s.links.get_mut(link).map(|l| l.addresses.remove(&address)));
    }

    /// Adds a route; `ours`: of our routing protocol.
    pub fn add_route(&self, link: &str, route: Route, ours: bool) {
        let _ = self.tamper(|s| s.add_route(link, route, ours));
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
        foreign.map(|((table, to), h)| (h.link.clone(), Route { to: *to, table: *table })).collect()
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

    /// Somebody removes a peer; nothing announces it.
    pub fn remove_peer(&self, link: &str, peer: &PublicKey) {
        self.tamper_device(link, |l| l.remove_peer(peer));
    }

    /// Somebody adds a peer or changes one, its allowed-ips included; nothing announces it.
    pub fn set_peer(&self, link: &str, peer: PublicKey, as_this: ObservedPeer) {
        self.tamper_device(link, |l| {
            l.release(&peer);
            l.claim(peer, &as_this.allowed_ips);
            l.peers.insert(peer, as_this);
        });
    }

    /// A peer roamed: a packet arrived from another address, which is its endpoint now.
    pub fn roam(&self, link: &str, peer: &PublicKey, endpoint: SocketAddr) {
        self.tamper_device(link, |l| l.peers.get_mut(peer).map(|p| p.endpoint = Some(endpoint)));
    }

    /// A peer's counters become these.
    pub fn count(&self, link: &str, peer: &PublicKey, counters: Counters) {
        self.tamper_device(link, |l| l.peers.get_mut(peer).map(|p| p.counters = counters));
    }

    /// Somebody gives a link another private key, port or mark.
    pub fn set_device(&self, link: &str, key: Option<&SecretKey>, listen_port: Option<u16>, fwmark: Option<u32>) {
        let _ = lock(&self.state).set_device(link, key, listen_port, fwmark);
    }
}
