//! Evaluates the kernel's state without a supervisor, and interfaces that another program made.
use super::finding::Finding;
use super::host::ipv6;
use super::probe;
use spoke_config::effective::Effective;
use spoke_model::condition::Code;
use spoke_net::derive::DeriveError;
use spoke_net::plan::plan;
use spoke_net::state::{Desired, Memory, Observed};
use spoke_sys::kernel::Netlink;

/// Interfaces of the configuration that Spoke found instead of creating them.
pub fn adopted(config: &Effective, observed: &Observed) -> Vec<Finding> {
    let found = config.interfaces().filter_map(|i| {
        let name = &i.own().name;
        let have = observed.links.get(name).filter(|h| h.wireguard && !h.ours)?;
        let key = have.public_key.map_or("no key".to_owned(), |k| format!("the key {k}"));
        let detail = format!(
            "made by another program, with {key}, MTU {} and {} peers: Spoke changes what the configuration sets, keeps the rest, and never deletes it",
            have.mtu,
            have.peers.len()
        );
        let remedy = "nothing if that is wanted; else stop the other program (such as wg-quick), then `ip link del` it";
        Some(Finding::warn(format!("interface {name}"), detail, remedy))
    });
    found.collect()
}

/// What keeps the desired state from being reached.
pub fn wanted(desired: &Result<Desired, DeriveError>, observed: &Observed) -> Vec<Finding> {
    let finding = |code: Code, detail: String| Finding::fail(code.as_str(), detail, code.remedy());
    let desired = match desired {
        Ok(desired) => desired,
        Err(e) => return vec![finding(Code::DesiredInvalid, e.to_string())],
    };
    let plan = plan(desired, observed, &Memory::default());
    let blocked = plan.blocked.iter().map(|b| finding(Code::NameTaken, b.to_string()));
    let overlaps = plan.overlaps.iter().map(|o| finding(Code::NetworkOverlap, o.to_string()));
    let v6 = desired.links.iter().filter_map(|(name, link)| {
        let wanted = link.addresses.iter().any(|a| a.addr().is_ipv6());
        ipv6(name, wanted, probe::host::ipv6_is_disabled(name))
    });
    blocked.chain(overlaps).chain(v6).collect()
}

/// UDP ports of the configuration that another program has.
pub async fn ports(config: &Effective, observed: &Observed) -> Vec<Finding> {
    let mut out = Vec::new();
    for interface in config.interfaces() {
        let name = &interface.own().name;
        let Some(port) = interface.listen_port() else { continue };
        let ours = observed.links.get(name).is_some_and(|h| h.up && h.listen_port == port);
        if ours || !probe::host::port_is_in_use(port) {
            continue;
        }
        let Ok(mut kernel) = Netlink::open() else { continue };
        let detail = format!("{name}: UDP port {port} is in use by {}", kernel.port_holder(name, port).await);
        out.push(Finding::fail(Code::PortInUse.as_str(), detail, Code::PortInUse.remedy()));
    }
    out
}
