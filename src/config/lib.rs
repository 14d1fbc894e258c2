//! The configuration: layered, typed, validated as a whole, immutable afterwards.
//!
//! Layers, later ones win: built-in defaults < the file (`/etc/spoke/spoke.toml`) < environment variables
//! `SPOKE__SECTION__KEY`. Every fault of every layer is reported at once, with file, key and remedy. One section per
//! task; each section lives in its own file here.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

pub mod agent;
pub mod appliance;
pub mod clock;
pub mod control;
pub mod effective;
pub mod fault;
pub mod grants;
pub mod health;
pub mod interface;
pub mod invitation;
pub mod layout;
pub mod node;
pub mod on_image;
pub mod overrides;
pub mod policy;
pub mod reader;
mod risks;
pub mod update;
pub mod uplink;

use fault::{ConfigFault, ConfigFaults};
use node::Role;
use reader::Table;
use serde::Serialize;
use spoke_model::tree::Tree;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The whole configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Config {
    /// `[node]`: who this is and where it keeps its state.
    pub node: node::Node,
    /// `[uplink]`: the hubs and how to stay connected to one of them.
    pub uplink: Option<uplink::Uplink>,
    /// `[clock]`: how often the time is stored.
    pub clock: clock::Clock,
    /// `[health]`: the local endpoints.
    pub health: health::Health,
    /// `[control]`: the control plane of this node.
    pub control: Option<control::Control>,
    /// `[grants]`: the contract that admits peers.
    pub grants: Option<grants::Grants>,
    /// `[update]`: updates of an image with two slots.
    pub update: update::Update,
    /// `[agent]`: the signed node agent API.
    pub agent: agent::Agent,
    /// `[[interface]]`: WireGuard interfaces.
    #[serde(rename = "interface")]
    pub interfaces: Vec<interface::Interface>,
}

impl Config {
    /// Reads the file, if one is given, and `variables` (name, value; only `SPOKE__…` are used).
    pub fn load(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigFaults> {
        Self::load_as(file, variables, Role::default())
    }

    /// As [`Config::load`], with the role that the control plane has given a node that names none itself.
    pub fn load_as(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
        role: Role,
    ) -> Result<Self, ConfigFaults> {
        let text = match file {
            None => None,
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|e| {
                    ConfigFaults(vec![fault::unreadable(
                        path,
                        &e,
                        "create it (docs/configure.md) or name another with --config",
                    )])
                })?;
                Some((path.display().to_string(), text))
            }
        };
        let text_of = text.as_ref().map(|(name, text)| (name.as_str(), text.as_str()));
        let config = Self::read(text_of, variables, role)?;
        match config.names_nothing(text.as_ref().map_or("", |(name, _)| name)) {
            Some(fault) => Err(ConfigFaults(vec![fault])),
            None => Ok(config),
        }
    }

    /// The fault of a configuration without an interface, a control plane or the agent API, which can create interfaces:
    /// what a power cut during an edit leaves. With it, every interface of before would be deleted.
    pub fn names_nothing(&self, file: &str) -> Option<ConfigFault> {
        let names = !self.interfaces.is_empty() || self.control.is_some() || self.agent.enabled;
        (!names).then(|| ConfigFault {
            element: String::new(),
            file: file.to_owned(),
            key: "(file)".to_owned(),
            problem: "names neither an interface nor a control plane".to_owned(),
            remedy: "add [[interface]] or [control] (docs/configure.md); if a power cut emptied the file, restore it"
                .to_owned(),
        })
    }

    /// As [`Config::load`], from a file's name and text.
    pub fn from_text(
        file: Option<(&str, &str)>,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigFaults> {
        Self::read(file, variables, Role::default())
    }

    fn read(
        file: Option<(&str, &str)>,
        variables: impl IntoIterator<Item = (String, String)>,
        role: Role,
    ) -> Result<Self, ConfigFaults> {
        let variables = variables.into_iter().filter(|(k, _)| k.starts_with("SPOKE__")).collect();
        let environment =
            config::Environment::with_prefix("SPOKE").prefix_separator("__").separator("__").source(Some(variables));
        let mut builder = config::Config::builder();
        if let Some((name, text)) = file {
            if fault::is_wg_quick(text) {
                return Err(ConfigFaults(vec![fault::wg_quick(name)]));
            }
            // The parser's own message has the line; that of the layered reader has not.
            if let Some(fault) = fault::syntax(name, text) {
                return Err(ConfigFaults(vec![fault]));
            }
            builder = builder.add_source(config::File::from_str(text, config::FileFormat::Toml));
        }
        let name = file.map_or("", |(name, _)| name);
        let tree = builder.add_source(environment).build().and_then(|c| config::Source::collect(&c)).map_err(|e| {
            ConfigFaults(vec![ConfigFault {
                element: String::new(),
                file: name.into(),
                key: String::new(),
                problem: e.to_string(),
                remedy: "correct it".into(),
            }])
        })?;
        let mut faults = Vec::new();
        let mut root = Table::root(tree, name, &mut faults);
        let node = root.section("node", |t| node::Node::read(t, role));
        let uplink = if root.has("uplink") { root.section("uplink", uplink::Uplink::read) } else { None };
        let clock = root.section("clock", clock::Clock::read);
        let health = root.section("health", health::Health::read);
        let update = root.section("update", update::Update::read);
        let poll = grants::usual_poll(node.role);
        let grants = if root.has("grants") { root.section("grants", |t| grants::Grants::read(t, poll)) } else { None };
        let agent = root.section("agent", agent::Agent::read);
        let control = if root.has("control") { root.section("control", control::Control::read) } else { None };
        let mut interfaces = root.tables("interface", |t| interface::Interface::read(t, &node));
        root.finish();
        // Needed before the enrolment: its key is what is enrolled.
        if let Some(control) = control.as_ref().filter(|c| !interfaces.iter().any(|i| i.name == c.interface)) {
            interfaces.push(interface::Interface::bare(control.interface.clone(), &node));
        }
        let config = Self { node, uplink, clock, health, control, update, grants, agent, interfaces };
        config.cross_check(name, &mut faults);
        if faults.is_empty() {
            return Ok(config);
        }
        if let Some((name, text)) = file {
            fault::locate(name, text, &mut faults);
        }
        Err(ConfigFaults(faults))
    }

    /// Checks what concerns several sections.
    fn cross_check(&self, file: &str, faults: &mut Vec<ConfigFault>) {
        let mut fault = |key: String, problem: String, remedy: &str| {
            faults.push(ConfigFault { element: String::new(), file: file.into(), key, problem, remedy: remedy.into() });
        };
        if self.control.is_some() && self.node.id.is_none() {
            fault(
                "node.id".into(),
                "is missing, and the control plane identifies nodes by it".into(),
                "add id = \"…\" to [node]",
            );
        }
        let nft = self.interfaces.iter().position(|i| i.access == interface::Access::Nft);
        // A control plane may name the contract; until then no peer is admitted.
        if let (Some(i), None, None) = (nft, &self.grants, &self.control) {
            fault(
                format!("interface[{i}].access"),
                "is \"nft\", and no contract is configured".into(),
                "add [grants] with contract, chain_id and endpoints, or [control] with a network that has a grants policy",
            );
        }
        let mut names = BTreeSet::new();
        let mut ports = BTreeMap::new();
        for (i, link) in self.interfaces.iter().enumerate() {
            if !names.insert(&link.name) {
                fault(
                    format!("interface[{i}].name"),
                    format!("{} is used twice", link.name),
                    "give each interface its own name",
                );
            }
            if let Some(port) = link.listen_port
                && let Some(other) = ports.insert(port, &link.name)
            {
                fault(
                    format!("interface[{i}].listen_port"),
                    format!("{port} is also the port of {other}"),
                    "give each interface its own port, or remove it for a random one",
                );
            }
        }
        let Some(uplink) = &self.uplink else { return };
        let Some((i, link)) = self.interfaces.iter().enumerate().find(|(_, l)| l.name == uplink.interface) else {
            fault(
                "uplink.interface".into(),
                format!("no [[interface]] is named {}", uplink.interface),
                "add it, or name a configured interface",
            );
            return;
        };
        for (h, hub) in uplink.hubs.iter().enumerate() {
            for (p, peer) in link.peers.iter().enumerate() {
                if peer.public_key == hub.public_key {
                    fault(
                        format!("interface[{i}].peer[{p}].public_key"),
                        format!("is also uplink.hub[{h}]"),
                        "remove one of the two",
                    );
                }
                for (a, b) in interface::overlaps(&peer.allowed_ips, &hub.allowed_ips, link.nested_allowed_ips) {
                    fault(
                        format!("interface[{i}].peer[{p}].allowed_ips"),
                        format!("{a} overlaps {b} of uplink.hub[{h}]"),
                        "give each address to one peer, or set nested_allowed_ips = true on the interface if the narrower one is to win",
                    );
                }
            }
            let own = self.interfaces.iter().find(|i| i.addresses.iter().any(|a| a.0.addr() == hub.address));
            if let Some(own) = own {
                fault(
                    format!("uplink.hub[{h}].address"),
                    format!(
                        "{} is an address of {} itself, which would answer in the hub's place",
                        hub.address, own.name
                    ),
                    "write the hub's address inside the tunnel",
                );
            }
            if !link.routes || link.table != crate::interface::TABLE_MAIN || link.fwmark != 0 {
                continue;
            }
            let mut endpoints: Vec<_> = uplink.hubs.iter().filter_map(|hub| hub.endpoint.literal()).collect();
            endpoints.extend(link.peers.iter().filter_map(|p| p.endpoint.as_ref()?.literal()));
            let nets = hub.allowed_ips.iter().chain(link.peers.iter().flat_map(|p| &p.allowed_ips)).map(|c| c.0);
            if let Some((net, endpoint)) = interface::captured(nets, &endpoints).filter(|(net, _)| net.prefix_len() > 0)
            {
                fault(
                    format!("uplink.hub[{h}].allowed_ips"),
                    format!("{net} holds the endpoint {endpoint}: the tunnel's packets would be routed into it"),
                    interface::CAPTURED_REMEDY,
                );
            }
            if hub.allowed_ips.iter().any(|c| c.0.prefix_len() == 0) {
                fault(
                    format!("uplink.hub[{h}].allowed_ips"),
                    "a default route in the main table would also route the tunnel's own packets into the tunnel"
                        .into(),
                    "set interface.table to a separate table with an `ip rule`, or interface.routes = false",
                );
            }
        }
    }

    /// TOML with every default filled in and without secrets.
    pub fn to_toml(&self) -> String {
        let print = || -> Result<String, Box<dyn std::error::Error>> {
            Ok(toml::to_string_pretty(&self.to_tree()?.without_nulls())?)
        };
        print().unwrap_or_else(|e| format!("# cannot be written as TOML: {e}\n"))
    }

    /// With every default filled in and without secrets.
    pub fn to_tree(&self) -> Result<Tree, serde_json::Error> {
        serde_json::from_slice(&serde_json::to_vec(self)?)
    }
}

#[cfg(test)]
mod tests;
