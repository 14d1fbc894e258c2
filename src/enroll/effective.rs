//! The configuration as the control plane completes it. Pure.
use super::document::{StateDocument, WantedHub, WantedInterface, WantedPeer};
use spoke_config::Config;
use spoke_config::control::Control;
use spoke_config::interface::{Access, Interface, Peer};
use spoke_config::node::Role;
use spoke_config::uplink::{Hub, Uplink};
use spoke_model::address::{Cidr, IfAddress};

/// `base` with what `document` says of the interface that the control plane decides about.
///
/// The interface keeps the name, key, table, drift policy and locally configured peers it has; addresses, peers and hubs
/// come from the document, port and size where it has any. A `[grants]` of the device's own counts, as a whole: contract,
/// chain and endpoints belong together, and are never mixed with those of the control plane. `derive` checks the result once more as a whole.
pub fn effective(base: &Config, control: &Control, document: &StateDocument) -> Config {
    let mut config = base.clone();
    config.update.wanted.clone_from(&document.release);
    if config.grants.is_none() {
        // Checked when the document was opened.
        config.grants = document.grants.as_ref().and_then(|policy| policy.read(base.node.role).ok());
    }
    let Some(wanted) = document.interfaces.first() else { return config };
    let Some(interface) = config.interfaces.iter_mut().find(|i| i.name == control.interface) else { return config };
    complete(interface, wanted);
    config.overrides = wanted.overrides.clone();
    if !wanted.hubs.is_empty() {
        let hubs = wanted.hubs.iter().map(hub).collect();
        config.uplink = Some(match config.uplink.take() {
            Some(uplink) => Uplink { hubs, interface: control.interface.clone(), ..uplink },
            None => Uplink::with_hubs(control.interface.clone(), hubs),
        });
    }
    config
}

/// Whether a node with this configuration can do what `document` says; else why not, and what to do.
pub fn check_compatible(base: &Config, document: &StateDocument) -> Result<(), String> {
    let own = base.node.role;
    if document.role != own {
        let name = |r| if r == Role::Hub { "hub" } else { "node" };
        return Err(format!(
            "it is for a {}: set node.role = \"{0}\", or enrol under another name",
            name(document.role)
        ));
    }
    let asks = base.interfaces.iter().find(|i| i.access == Access::Nft);
    if let (Some(interface), None, None) = (asks, &base.grants, &document.grants) {
        return Err(format!(
            "it names no contract, and interface {} has access = \"nft\": give the network a grants policy, or the node a [grants] of its own",
            interface.name
        ));
    }
    Ok(())
}

fn complete(interface: &mut Interface, wanted: &WantedInterface) {
    interface.addresses = wanted.addresses.iter().map(|a| IfAddress(*a)).collect();
    interface.listen_port = wanted.listen_port.or(interface.listen_port);
    interface.mtu = wanted.mtu.unwrap_or(interface.mtu);
    if !wanted.dns.is_empty() {
        interface.dns.clone_from(&wanted.dns);
    }
    interface.forwarding = wanted.forwarding;
    let keys: std::collections::BTreeSet<_> = wanted.peers.iter().map(|p| p.public_key).collect();
    interface.peers.retain(|p| !keys.contains(&p.public_key));
    interface.peers.extend(wanted.peers.iter().map(peer));
}

fn hub(hub: &WantedHub) -> Hub {
    Hub {
        name: hub.node_id.to_string(),
        public_key: hub.public_key,
        preshared_key: None,
        endpoint: hub.endpoint.clone(),
        address: hub.address,
        allowed_ips: hub.allowed_ips.iter().map(|n| Cidr(*n)).collect(),
        keepalive: hub.keepalive,
    }
}

fn peer(peer: &WantedPeer) -> Peer {
    Peer {
        name: None,
        node_id: Some(peer.node_id.clone()),
        public_key: peer.public_key,
        preshared_key: None,
        allowed_ips: peer.allowed_ips.iter().map(|n| Cidr(*n)).collect(),
        endpoint: None,
        keepalive: peer.keepalive,
        isolated: peer.isolated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spoke_model::key::PublicKey;

    fn base() -> (Config, Control) {
        let text = "[node]\nid = \"edge-1\"\n[control]\nurl = \"https://c.example.net:8443\"\n";
        let config = Config::from_text(Some(("x", text)), []).unwrap();
        let control = config.control.clone().unwrap();
        (config, control)
    }

    fn document(hubs: usize, peers: u8) -> StateDocument {
        let hub = |n: usize| {
            serde_json::json!({"node_id": format!("hub-{n}"), "public_key": PublicKey([100 + n as u8; 32]),
            "endpoint": "192.0.2.1:51820", "address": "10.8.0.1", "allowed_ips": ["10.8.0.1/32"], "keepalive": 25})
        };
        let peer = |n: u8| {
            serde_json::json!({"node_id": format!("n-{n}"), "public_key": PublicKey([n; 32]),
            "allowed_ips": [format!("10.8.1.{n}/32")]})
        };
        serde_json::from_value(serde_json::json!({"version": 1, "node_id": "edge-1", "generation": 3, "role": "node",
            "signing_keys": [], "interfaces": [{"name": "wg7", "addresses": ["10.8.0.5/16"], "mtu": 1380,
            "hubs": (0..hubs).map(hub).collect::<Vec<_>>(), "peers": (1..=peers).map(peer).collect::<Vec<_>>()}]}))
        .unwrap()
    }

    #[test]
    fn a_device_needs_no_interface_of_its_own() {
        let (config, control) = base();
        assert_eq!(config.interfaces.len(), 1, "the interface is there before the node is enrolled, with its key");
        let done = effective(&config, &control, &document(1, 0));
        let link = &done.interfaces[0];
        assert_eq!((link.name.as_str(), link.mtu), ("wg0", 1380), "the node names its interface");
        assert_eq!(link.addresses[0].0.to_string(), "10.8.0.5/16");
        let uplink = done.uplink.unwrap();
        assert_eq!((uplink.interface.as_str(), uplink.hubs[0].name.as_str()), ("wg0", "hub-0"));
    }

    #[test]
    fn a_hub_gets_peers_and_no_uplink() {
        let (config, control) = base();
        let done = effective(&config, &control, &document(0, 3));
        assert!(done.uplink.is_none());
        assert_eq!(done.interfaces[0].peers.len(), 3);
        assert_eq!(
            effective(&done, &control, &document(0, 2)).interfaces[0].peers.len(),
            3,
            "of the base, not of the last"
        );
    }

    #[test]
    fn the_contract_is_the_control_planes_unless_the_node_has_its_own() {
        let section = |n: u8| {
            format!(
                "contract = \"0x{}\"\nchain_id = {n}\nendpoints = [\"http://{n}.example.net\"]\n",
                "0".repeat(39) + &n.to_string()
            )
        };
        let text = |more: &str| {
            format!(
                "[node]\nid = \"hub-1\"\nrole = \"hub\"\n[control]\nurl = \"https://c.example.net\"\n[[interface]]\nname = \"wg0\"\nlisten_port = 51820\naccess = \"nft\"\n{more}"
            )
        };
        let load = |more: &str| Config::from_text(Some(("x", &text(more))), []).unwrap();
        let (without, with) = (load(""), load(&format!("[grants]\n{}", section(1))));
        let control = without.control.clone().unwrap();
        let bare = StateDocument { role: Role::Hub, ..document(0, 3) };
        let policy = spoke_config::policy::GrantsPolicy::from_toml(&section(2)).unwrap();
        let told = StateDocument { grants: Some(policy), ..bare.clone() };
        let chain = |base: &Config, document: &StateDocument| {
            effective(base, &control, document).grants.map(|g| (g.chain_id, g.endpoints.len(), g.poll.as_secs()))
        };
        assert_eq!((chain(&without, &told), check_compatible(&without, &told)), (Some((2, 1, 5)), Ok(())));
        assert_eq!((chain(&with, &told), check_compatible(&with, &told)), (Some((1, 1, 5)), Ok(())), "its own, whole");
        assert_eq!((chain(&with, &bare), check_compatible(&with, &bare)), (Some((1, 1, 5)), Ok(())));
        let why = check_compatible(&without, &bare).unwrap_err();
        assert!(why.contains("wg0") && why.contains("grants policy") && why.contains("[grants]"), "{why}");
        // Where no interface asks, nothing is missing.
        let open = StateDocument { role: Role::Node, ..bare };
        assert_eq!((chain(&base().0, &open), check_compatible(&base().0, &open)), (None, Ok(())));
    }
}
