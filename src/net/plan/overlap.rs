//! Networks of a tunnel that are connected to another interface, too.
use crate::state::{Link, Neighbour, Observed};
use ipnet::IpNet;
use spoke_config::interface::TABLE_MAIN;
use spoke_model::interface_name::IfName;
use std::collections::BTreeSet;

/// A network that a tunnel and another interface have in common.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{net} on {link} lies in {other}, which is connected to {holder}: {}",
    if *.withheld { "the connected network has precedence, and the tunnel's route is left out" }
    else if .net == .other { "the connected network has precedence" }
    else { "the tunnel's route, the narrower one, has precedence" }
)]
pub struct Overlap {
    /// The tunnel's interface.
    pub link: IfName,
    /// Its network.
    pub net: IpNet,
    /// The connected network.
    pub other: IpNet,
    /// The other interface.
    pub holder: String,
    /// The tunnel's route is not added.
    pub withheld: bool,
}

/// The overlaps of an interface. The connected network wins: our connected routes have a higher metric, and a route that would
/// take the other interface's whole network, its address or its gateway is left out.
pub(super) fn overlaps(name: &IfName, want: &Link, observed: &Observed) -> Vec<Overlap> {
    let routed = want.routes.iter().filter(|r| r.table == TABLE_MAIN).map(|r| (r.to, false));
    let connected = want.addresses.iter().filter(|a| a.prefix_len() < a.max_prefix_len()).map(|a| (a.trunc(), true));
    let nets: BTreeSet<(IpNet, bool)> = routed.chain(connected).collect();
    let mut out = Vec::new();
    for (net, connected) in nets {
        let around = observed.networks.iter().filter(|(other, _)| other.contains(&net));
        for (other, Neighbour { link: holder, address }) in around {
            let captures =
                net.contains(address) || observed.gateways.iter().any(|g| net.contains(g) && other.contains(g));
            let withheld = if net == *other { !connected } else { captures };
            let (link, holder, other) = (name.clone(), holder.clone(), *other);
            out.push(Overlap { link, net, other, holder, withheld });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Step, plan};
    use crate::state::{Desired, Memory, ObservedLink, Route};
    use spoke_model::key::SecretKey;
    use std::collections::BTreeMap;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    /// The steps on an interface that is otherwise as desired, and whether each overlap withholds a route.
    fn planned(addresses: &[&str], routes: &[&str], lan: &str, gateway: &str) -> (Vec<String>, Vec<bool>) {
        let key = SecretKey::clamped([1; 32]);
        let addresses: BTreeSet<IpNet> = addresses.iter().map(|a| net(a)).collect();
        let routes: BTreeSet<Route> =
            routes.iter().map(|r| Route { to: net(r), table: TABLE_MAIN, metric: 0 }).collect();
        let link = Link {
            private_key: key.clone(),
            listen_port: Default::default(),
            port_fallback: true,
            fwmark: 0,
            mtu: 1280,
            defaults: (false, false),
            addresses: addresses.clone(),
            peers: BTreeMap::new(),
            routes: routes.clone(),
            up: true,
            policy: spoke_config::interface::DriftPolicy::Enforce,
            remove_unknown: None,
            dns: Vec::new(),
            rebuild: 0,
        };
        let have = ObservedLink {
            wireguard: true,
            ours: true,
            up: true,
            mtu: 1280,
            public_key: Some(key.public()),
            listen_port: 7,
            addresses,
            routes,
            ..ObservedLink::default()
        };
        let name: IfName = "wg0".parse().unwrap();
        let lan = net(lan);
        let neighbour = Neighbour { link: "lan0".to_owned(), address: lan.addr() };
        let observed = Observed {
            links: [(name.clone(), have)].into(),
            networks: [(lan.trunc(), neighbour)].into(),
            gateways: [gateway.parse().unwrap()].into(),
            ..Observed::default()
        };
        let desired = Desired { generation: 1, links: [(name, link)].into(), ..Desired::default() };
        let plan = plan(&desired, &observed, &Memory::default());
        let text = |s: &Step| crate::render::step(s, &observed);
        (plan.steps.iter().map(text).collect(), plan.overlaps.iter().map(|o| o.withheld).collect())
    }

    #[test]
    fn equal_network_is_left_to_the_connected_interface() {
        let (steps, withheld) = planned(&["10.9.0.2/32"], &["10.8.0.0/24"], "10.8.0.7/24", "10.8.0.1");
        assert_eq!((steps, withheld), (vec!["wg0: remove route 10.8.0.0/24 table 254".to_owned()], vec![true]));
        // Of an address: both routes stay, and the metric decides.
        assert_eq!(planned(&["10.8.0.2/24"], &[], "10.8.0.7/24", "10.8.0.1"), (vec![], vec![false]));
    }

    #[test]
    fn route_that_takes_the_gateway_is_left_out() {
        let (steps, withheld) = planned(&["10.8.0.2/32"], &["10.8.0.1/32"], "10.8.0.7/24", "10.8.0.1");
        assert_eq!((steps, withheld), (vec!["wg0: remove route 10.8.0.1/32 table 254".to_owned()], vec![true]));
        let (steps, _) = planned(&["10.8.0.2/24"], &[], "10.8.0.7/16", "10.8.0.1");
        assert_eq!(steps, ["wg0: remove the connected route of 10.8.0.2/24"]);
    }

    #[test]
    fn narrower_network_beside_the_gateway_stays_and_is_reported() {
        let (steps, withheld) = planned(&["10.8.0.2/24"], &["10.9.0.0/24"], "10.1.0.7/8", "10.1.0.1");
        assert_eq!((steps, withheld), (vec![], vec![false, false]));
        // A wider one is common and takes nothing from the connected network.
        assert_eq!(planned(&[], &["10.0.0.0/8"], "10.8.0.7/24", "10.8.0.1"), (vec![], vec![]));
    }
}
