//! The fake kernel passes the conformance suite, as the real one does in the kernel tier.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "kernel/conformance.rs"]
mod conformance;

use conformance::{World, each_case, name, net};
use spoke_model::key::{PublicKey, SecretKey};
use spoke_net::state::{ObservedPeer, Route};
use spoke_sys::sim::kernel::{FakeKernel, Handle};

struct Others(Handle);

impl World for Others {
    type Kernel = FakeKernel;

    fn unprivileged(&self) -> FakeKernel {
        self.0.unprivileged()
    }

    fn add_link(&self, name: &str, kind: &str) {
        self.0.add_link(name, kind == "wireguard");
    }

    fn delete_link(&self, name: &str) {
        self.0.delete_link(name);
    }

    fn disable_ipv6(&self, link: &str, disabled: bool) {
        self.0.disable_ipv6(link, disabled);
    }

    fn set_up(&self, name: &str, up: bool) {
        self.0.set_up(name, up);
    }

    fn alias(&self, name: &str) -> String {
        self.0.alias(name)
    }

    fn add_address(&self, link: &str, address: &str) {
        self.0.add_address(link, net(address));
    }

    fn remove_address(&self, link: &str, address: &str) {
        self.0.remove_address(link, net(address));
    }

    fn add_foreign_route(&self, link: &str, to: &str, table: u32) {
        self.0.add_route(link, Route { to: net(to), table, metric: 0 }, false);
    }

    fn remove_route(&self, link: &str, to: &str, table: u32) {
        self.0.remove_route(link, Route { to: net(to), table, metric: 0 });
    }

    fn flush_routes(&self, link: &str) {
        self.0.flush_routes(link);
    }

    fn has_foreign_route(&self, link: &str, to: &str, table: u32) -> bool {
        self.0.foreign_routes().contains(&(name(link).to_string(), Route { to: net(to), table, metric: 0 }))
    }

    fn remove_peer(&self, link: &str, peer: &PublicKey) {
        self.0.remove_peer(link, peer);
    }

    fn set_peer(&self, link: &str, peer: &PublicKey, allowed_ips: &[&str]) {
        let allowed_ips = allowed_ips.iter().map(|t| net(t)).collect();
        self.0.set_peer(link, *peer, ObservedPeer { allowed_ips, ..ObservedPeer::default() });
    }

    fn change_forwarding(&self, link: &str) {
        self.0.change_forwarding(&name(link));
    }

    fn set_private_key(&self, link: &str, key: &SecretKey) {
        self.0.set_device(link, Some(key), None, None);
    }
}

macro_rules! make {
    ($($module:ident::$case:ident,)+) => {
        $(
            #[tokio::test(start_paused = true)]
            async fn $case() {
                let mut kernel = FakeKernel::new();
                let others = Others(kernel.handle());
                conformance::$module::$case(&others, &mut kernel).await;
            }
        )+
    };
}
each_case!(make);
