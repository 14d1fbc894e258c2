//! The real kernel passes the conformance suite.
use crate::conformance::{World, each_case};
use crate::netns::Namespace;
use ipnet::IpNet;
use spoke_model::interface_name::IfName;
use spoke_model::key::{PublicKey, SecretKey};
use spoke_net::plan::Step;
use spoke_net::state::Observed;
use spoke_sys::kernel::{Applied, CounterSocket, Kernel, KernelError, LinkCounters, Netlink, ReadCounters};
use std::collections::BTreeSet;

/// Both sockets as one.
pub(crate) struct Both(Netlink, CounterSocket);

impl Both {
    fn open() -> Self {
        Self(Netlink::open().expect("netlink"), CounterSocket::open().expect("netlink"))
    }
}

impl Kernel for Both {
    async fn observe(&mut self, wanted: &BTreeSet<IfName>) -> Result<Observed, KernelError> {
        self.0.observe(wanted).await
    }

    async fn apply(&mut self, steps: &[Step]) -> Applied {
        self.0.apply(steps).await
    }

    async fn egress(&mut self, to: std::net::IpAddr) -> spoke_net::state::Egress {
        self.0.egress(to).await
    }

    async fn changed(&mut self) {
        self.0.changed().await;
    }
}

impl ReadCounters for Both {
    async fn counters(&mut self, link: &IfName) -> Result<Option<LinkCounters>, KernelError> {
        self.1.counters(link).await
    }
}

/// `ip` and `wg` in the namespace.
struct Tools<'a>(&'a Namespace);

fn version(address: &str) -> &'static str {
    if address.contains(':') { "-6" } else { "-4" }
}

impl World for Tools<'_> {
    type Kernel = Both;

    fn unprivileged(&self) -> Both {
        use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
        // A socket has at most the capabilities of its opener.
        let all = capabilities(None).expect("our capabilities");
        set_capabilities(None, CapabilitySets { effective: CapabilitySet::empty(), ..all }).expect("giving them up");
        let bare = Both::open();
        set_capabilities(None, all).expect("taking them back");
        bare
    }

    fn add_link(&self, name: &str, kind: &str) {
        self.0.ip(&format!("link add {name} type {kind}"));
    }

    fn delete_link(&self, name: &str) {
        self.0.ip(&format!("link del {name}"));
    }

    fn disable_ipv6(&self, link: &str, disabled: bool) {
        self.0.run(&format!("sysctl -qw net.ipv6.conf.{link}.disable_ipv6={}", u8::from(disabled)));
    }

    fn set_up(&self, name: &str, up: bool) {
        self.0.ip(&format!("link set {name} {}", if up { "up" } else { "down" }));
    }

    fn alias(&self, name: &str) -> String {
        let shown = self.0.ip(&format!("link show {name}"));
        shown.lines().find_map(|l| l.trim().strip_prefix("alias ")).unwrap_or_default().trim().to_owned()
    }

    fn add_address(&self, link: &str, address: &str) {
        self.0.ip(&format!("addr add {address} dev {link}"));
    }

    fn remove_address(&self, link: &str, address: &str) {
        self.0.ip(&format!("addr del {address} dev {link}"));
    }

    fn add_foreign_route(&self, link: &str, to: &str, table: u32) {
        self.0.ip(&format!("{} route add {to} dev {link} table {table} proto static", version(to)));
    }

    fn remove_route(&self, link: &str, to: &str, table: u32) {
        self.0.ip(&format!("{} route del {to} dev {link} table {table}", version(to)));
    }

    fn flush_routes(&self, link: &str) {
        self.0.ip(&format!("-4 route flush dev {link} table main"));
        self.0.ip(&format!("-6 route flush dev {link} table main"));
    }

    fn has_foreign_route(&self, link: &str, to: &str, table: u32) -> bool {
        let shown = self.0.ip(&format!("{} route show table {table} dev {link} proto static", version(to)));
        let to: IpNet = to.parse().expect("a network");
        shown.lines().any(|l| l.split_whitespace().next().is_some_and(|t| t.parse() == Ok(to)))
    }

    fn remove_peer(&self, link: &str, peer: &PublicKey) {
        self.0.run(&format!("wg set {link} peer {peer} remove"));
    }

    fn set_peer(&self, link: &str, peer: &PublicKey, allowed_ips: &[&str]) {
        self.0.run(&format!("wg set {link} peer {peer} allowed-ips {}", allowed_ips.join(",")));
    }

    fn change_forwarding(&self, link: &str) {
        // Deletes the last rule, as another process would.
        let listing = self.0.run(&format!("nft -a list chain inet spoke-{link} forward"));
        let handle = listing.lines().filter_map(|l| l.split("# handle ").nth(1)).next_back().expect("a rule");
        self.0.run(&format!("nft delete rule inet spoke-{link} forward handle {}", handle.trim()));
    }

    fn set_private_key(&self, link: &str, key: &SecretKey) {
        self.0.feed(&format!("wg set {link} private-key /dev/stdin"), &key.reveal_base64());
    }
}

macro_rules! make {
    ($($module:ident::$case:ident,)+) => {
        $(
            #[test]
            fn $case() {
                let namespace = Namespace::new("kernel");
                namespace.block_on(|| async {
                    let mut kernel = Both::open();
                    crate::conformance::$module::$case(&Tools(&namespace), &mut kernel).await;
                });
            }
        )+
    };
}
each_case!(make);
