//! What is in force: the device's own configuration and, where a control plane is followed, what its document sets.
//!
//! [`Config`] never changes after it was loaded; the document's part is a value of its own, and this file is the one place
//! that merges the two. A peer has three shapes on its way to the kernel:
//! 1. configured: [`Peer`] here, from the file or the document (a hub: [`Hub`]);
//! 2. desired: `spoke_net::state::Peer`, made by `derive` from the configured peer, its keys and resolved address, the
//!    uplink's choice and the grants;
//! 3. step: `spoke_net::plan::Step`, made by `plan`, sent to the kernel by `sys`.
use crate::Config;
use crate::grants::Grants;
use crate::interface::{DEFAULT_MTU, Interface, Peer};
use crate::overrides::Overrides;
use crate::uplink::{Hub, Uplink};
use serde::Serialize;
use spoke_model::address::IfAddress;
use spoke_model::interface_name::IfName;
use spoke_model::key::{PresharedKey, PublicKey};
use spoke_model::release::WantedRelease;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::IpAddr;
use std::sync::Arc;

static INHERITED: Overrides = Overrides::INHERITED;

/// What the control plane's document sets, checked where the document is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DocumentSettings {
    /// The interface the control plane decides about.
    pub interface: Option<InterfaceSettings>,
    /// The contract that admits peers; used where the device has no `[grants]` of its own.
    pub grants: Option<Grants>,
    /// The release the image shall run.
    pub release: Option<WantedRelease>,
}

/// What the document sets on one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceSettings {
    /// Kernel name, from `control.interface`.
    pub name: IfName,
    /// Replace the configured addresses.
    pub addresses: Vec<IfAddress>,
    /// UDP port; `None`: as configured.
    pub listen_port: Option<u16>,
    /// Bytes; `None`: as configured.
    pub mtu: Option<u32>,
    /// Resolvers inside the tunnel; empty: as configured.
    pub dns: Vec<IpAddr>,
    /// Whether packets may go from peer to peer.
    pub forwarding: bool,
    /// Hubs, best first; empty: as configured.
    pub hubs: Vec<Hub>,
    /// Added to the configured peers; replaces those with the same key.
    pub peers: BTreeMap<PublicKey, Peer>,
    /// Set for this node alone, applied by `derive`.
    pub overrides: Overrides,
    /// Preshared keys of the document's hubs and peers.
    pub preshared: PairKeys,
}

/// Preshared keys that a document sets; never part of what is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PairKeys {
    /// By peer.
    pub of_peers: BTreeMap<PublicKey, PresharedKey>,
    /// By this node's key and the hub's: a change of this node's key changes the preshared key with it.
    pub of_hubs: BTreeMap<(PublicKey, PublicKey), PresharedKey>,
}

impl InterfaceSettings {
    /// No addresses, peers or hubs, and everything else as configured.
    pub fn inherited(name: IfName) -> Self {
        Self {
            name,
            addresses: Vec::new(),
            listen_port: None,
            mtu: None,
            dns: Vec::new(),
            forwarding: false,
            hubs: Vec::new(),
            peers: BTreeMap::new(),
            overrides: Overrides::INHERITED,
            preshared: PairKeys::default(),
        }
    }
}

/// The configuration in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    own: Arc<Config>,
    document: Option<Arc<DocumentSettings>>,
    sequence: u64,
}

impl Effective {
    /// The device's own configuration alone.
    pub const fn of(own: Arc<Config>) -> Self {
        Self { own, document: None, sequence: 0 }
    }

    /// The next one to publish after `self`, with what a document sets.
    #[must_use]
    pub fn with_document(&self, document: Option<DocumentSettings>) -> Self {
        Self { own: self.own.clone(), document: document.map(Arc::new), sequence: self.sequence + 1 }
    }

    /// The same with another wanted release; the sequence number stays, since the network is the same. Unchanged without a
    /// document.
    #[must_use]
    pub fn with_release(&self, release: Option<WantedRelease>) -> Self {
        let document = self.document.as_ref().map(|d| Arc::new(DocumentSettings { release, ..(**d).clone() }));
        Self { document, ..self.clone() }
    }

    /// Grows by one with each publication of this process.
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The device's own configuration.
    pub const fn own(&self) -> &Arc<Config> {
        &self.own
    }

    fn settings(&self) -> Option<&InterfaceSettings> {
        self.document.as_ref()?.interface.as_ref()
    }

    fn document_hubs(&self) -> Option<&InterfaceSettings> {
        self.settings().filter(|s| !s.hubs.is_empty())
    }

    /// Every interface.
    pub fn interfaces(&self) -> impl Iterator<Item = InterfaceView<'_>> {
        let settings = self.settings();
        self.own
            .interfaces
            .iter()
            .map(move |own| InterfaceView { own, settings: settings.filter(|s| s.name == own.name) })
    }

    /// One interface.
    pub fn interface(&self, name: &IfName) -> Option<InterfaceView<'_>> {
        self.interfaces().find(|i| i.own.name == *name)
    }

    /// The interface that carries the tunnel to a hub; `None`: the node has no hub.
    pub fn uplink_interface(&self) -> Option<&IfName> {
        match self.document_hubs() {
            Some(settings) => Some(&settings.name),
            None => self.own.uplink.as_ref().map(|u| &u.interface),
        }
    }

    /// Hubs, best first.
    pub fn hubs(&self) -> &[Hub] {
        match self.document_hubs() {
            Some(settings) => &settings.hubs,
            None => self.own.uplink.as_ref().map_or(&[], |u| &u.hubs),
        }
    }

    /// `[uplink]`, with the document's hubs where it has any; the times are the device's own.
    pub fn uplink(&self) -> Option<Uplink> {
        let Some(settings) = self.document_hubs() else { return self.own.uplink.clone() };
        let (interface, hubs) = (settings.name.clone(), settings.hubs.clone());
        Some(match &self.own.uplink {
            Some(own) => Uplink { interface, hubs, ..own.clone() },
            None => Uplink::with_hubs(interface, hubs),
        })
    }

    /// Which contract admits peers. The device's own `[grants]` counts as a whole: contract, chain and endpoints belong
    /// together.
    pub fn grants(&self) -> Option<&Grants> {
        self.own.grants.as_ref().or_else(|| self.document.as_ref()?.grants.as_ref())
    }

    /// The release the image shall run.
    pub fn wanted_release(&self) -> Option<&WantedRelease> {
        self.document.as_ref()?.release.as_ref()
    }

    /// What is overridden and what would hold without it, as lines for people.
    pub fn override_lines(&self) -> Vec<String> {
        self.settings().and_then(|s| self.interface(&s.name)).map_or_else(Vec::new, |i| i.override_lines(self.hubs()))
    }
}

/// In the form of [`Config`], for comparing what is declared.
impl Serialize for Effective {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Update<'a> {
            #[serde(flatten)]
            own: &'a crate::update::Update,
            #[serde(skip_serializing_if = "Option::is_none")]
            wanted: Option<&'a WantedRelease>,
        }
        #[derive(Serialize)]
        struct Merged<'a> {
            node: &'a crate::node::Node,
            uplink: Option<Uplink>,
            clock: &'a crate::clock::Clock,
            health: &'a crate::health::Health,
            control: Option<&'a crate::control::Control>,
            grants: Option<&'a Grants>,
            update: Update<'a>,
            agent: &'a crate::agent::Agent,
            #[serde(skip_serializing_if = "Overrides::is_empty")]
            overrides: &'a Overrides,
            interface: Vec<Interface>,
        }
        let Config { node, uplink: _, clock, health, control, grants: _, update, agent, interfaces: _ } = &*self.own;
        Merged {
            node,
            uplink: self.uplink(),
            clock,
            health,
            control: control.as_ref(),
            grants: self.grants(),
            update: Update { own: update, wanted: self.wanted_release() },
            agent,
            overrides: self.settings().map_or(&INHERITED, |s| &s.overrides),
            interface: self.interfaces().map(InterfaceView::to_interface).collect(),
        }
        .serialize(serializer)
    }
}

/// One interface as it is in force, before overrides.
#[derive(Clone, Copy, Debug)]
pub struct InterfaceView<'a> {
    own: &'a Interface,
    settings: Option<&'a InterfaceSettings>,
}

impl<'a> InterfaceView<'a> {
    /// `[[interface]]`, for what no document sets: name, keys, table, routes, access, drift policy.
    pub const fn own(self) -> &'a Interface {
        self.own
    }

    /// Our addresses.
    pub fn addresses(self) -> &'a [IfAddress] {
        self.settings.map_or(&self.own.addresses, |s| &s.addresses)
    }

    /// UDP port; `None`: the kernel chooses.
    pub fn listen_port(self) -> Option<u16> {
        self.settings.and_then(|s| s.listen_port).or(self.own.listen_port)
    }

    /// Bytes.
    pub fn mtu(self) -> u32 {
        self.settings.and_then(|s| s.mtu).unwrap_or(self.own.mtu)
    }

    /// Whether no one has set the MTU.
    pub fn mtu_is_default(self) -> bool {
        let set = self.settings.is_some_and(|s| s.mtu.is_some()) || self.overrides().mtu.is_some();
        !set && !self.own.written.0
    }

    /// Resolvers inside the tunnel.
    pub fn dns(self) -> &'a [IpAddr] {
        self.settings.map(|s| &s.dns).filter(|dns| !dns.is_empty()).unwrap_or(&self.own.dns)
    }

    /// Whether packets may go from peer to peer.
    pub fn forwarding(self) -> bool {
        self.settings.map_or(self.own.forwarding, |s| s.forwarding)
    }

    /// Set for this node alone; nothing on an interface that the control plane does not decide about.
    pub fn overrides(self) -> &'a Overrides {
        self.settings.map_or(&INHERITED, |s| &s.overrides)
    }

    /// The document's preshared key for the tunnel between this node's key `own` and `peer`.
    pub fn preshared(self, own: PublicKey, peer: PublicKey) -> Option<&'a PresharedKey> {
        let keys = &self.settings?.preshared;
        keys.of_hubs.get(&(own, peer)).or_else(|| keys.of_peers.get(&peer))
    }

    /// Peers: the configured ones, then the document's.
    pub fn peers(self) -> impl Iterator<Item = &'a Peer> {
        let set = self.settings.map(|s| &s.peers);
        let own = self.own.peers.iter().filter(move |p| set.is_none_or(|s| !s.contains_key(&p.public_key)));
        own.chain(set.into_iter().flat_map(BTreeMap::values))
    }

    /// One peer.
    pub fn peer(self, key: &PublicKey) -> Option<&'a Peer> {
        let set = self.settings.and_then(|s| s.peers.get(key));
        set.or_else(|| self.own.peers.iter().find(|p| p.public_key == *key))
    }

    fn to_interface(self) -> Interface {
        let own = self.own;
        Interface {
            name: own.name.clone(),
            private_key: own.private_key.clone(),
            listen_port: self.listen_port(),
            fwmark: own.fwmark,
            mtu: self.mtu(),
            written: own.written,
            addresses: self.addresses().to_vec(),
            table: own.table,
            route_metric: own.route_metric,
            routes: own.routes,
            access: own.access,
            drift: own.drift,
            remove_unknown: own.remove_unknown,
            dns: self.dns().to_vec(),
            nested_allowed_ips: own.nested_allowed_ips,
            forwarding: self.forwarding(),
            peers: self.peers().cloned().collect(),
        }
    }

    fn override_lines(self, hubs: &[Hub]) -> Vec<String> {
        let overrides = self.overrides();
        let mut out = Vec::new();
        let mut line = |what: &str, value: &dyn Display, instead: &dyn Display| {
            out.push(format!("{}: {what} {value} by override, instead of {instead}", self.own.name));
        };
        let port = |p: u16| if p == 0 { "random".to_owned() } else { p.to_string() };
        let seconds = |s: u16| if s == 0 { "off".to_owned() } else { format!("{s}s") };
        if let Some(p) = overrides.listen_port {
            line("listen port", &port(p), &port(self.listen_port().unwrap_or(0)));
        }
        if let Some(mtu) = overrides.mtu {
            line("mtu", &if mtu == 0 { DEFAULT_MTU } else { mtu }, &self.mtu());
        }
        if let Some(keepalive) = overrides.keepalive {
            let hubs = hubs.iter().map(|h| h.keepalive);
            let own: BTreeSet<String> = hubs.chain(self.peers().map(|p| p.keepalive)).map(seconds).collect();
            line("keepalive", &seconds(keepalive), &list(&own));
        }
        if let Some(dns) = &overrides.dns {
            line("dns", &list(dns), &list(self.dns()));
        }
        if let Some(nets) = &overrides.endpoint_allowed_ips {
            let own = hubs.first().into_iter().flat_map(|h| &h.allowed_ips);
            line("allowed-ips of the hub", &list(nets), &list(own.map(|c| c.0)));
        }
        out
    }
}

fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let text = items.into_iter().map(|i| i.to_string()).collect::<Vec<_>>().join(",");
    if text.is_empty() { "none".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = r#"
[node]
id = "edge-1"
[control]
url = "https://c.example.net:8443"
[[interface]]
name = "wg0"
listen_port = 51820
mtu = 1400
[[interface.peer]]
name = "both"
public_key = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="
[[interface.peer]]
name = "own"
public_key = "CAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg="
[[interface]]
name = "wg1"
[uplink]
interface = "wg1"
attempt_timeout = "7s"
[[uplink.hub]]
name = "own hub"
public_key = "CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk="
endpoint = "192.0.2.9:51820"
address = "10.9.0.1"
"#;

    fn own() -> Effective {
        Effective::of(Arc::new(Config::from_text(Some(("test", OWN)), []).unwrap()))
    }

    fn peer(n: u8) -> Peer {
        let own = own();
        Peer { name: None, public_key: PublicKey([n; 32]), ..own.own.interfaces[0].peers[0].clone() }
    }

    fn settings() -> InterfaceSettings {
        InterfaceSettings {
            addresses: vec!["10.8.0.5/16".parse().unwrap()],
            mtu: Some(1380),
            peers: [peer(7), peer(20)].map(|p| (p.public_key, p)).into(),
            overrides: Overrides { mtu: Some(1300), ..Overrides::default() },
            ..InterfaceSettings::inherited("wg0".parse().unwrap())
        }
    }

    fn with(interface: InterfaceSettings) -> Effective {
        own().with_document(Some(DocumentSettings { interface: Some(interface), ..DocumentSettings::default() }))
    }

    #[test]
    fn document_completes_its_interface_only() {
        let effective = with(settings());
        let [wg0, wg1] = ["wg0", "wg1"].map(|n| effective.interface(&n.parse().unwrap()).unwrap());
        assert_eq!((wg0.mtu(), wg0.listen_port(), wg0.addresses().len()), (1380, Some(51820), 1));
        let peers: Vec<_> = wg0.peers().map(|p| (p.public_key.0[0], p.name.as_deref())).collect();
        assert_eq!(
            peers,
            [(8, Some("own")), (7, None), (20, None)],
            "the document's peer replaces ours of the same key"
        );
        assert_eq!((wg1.mtu(), wg1.overrides(), wg1.peers().count()), (DEFAULT_MTU, &Overrides::default(), 0));
        assert_eq!(effective.override_lines(), ["wg0: mtu 1300 by override, instead of 1380"]);
        assert_eq!(effective.own(), own().own(), "the configuration is as it was loaded");
        assert_eq!((own().sequence(), effective.sequence()), (0, 1));
    }

    #[test]
    fn document_hubs_replace_ours_and_keep_our_times() {
        assert_eq!(with(settings()).uplink(), own().uplink(), "a document without hubs leaves the uplink alone");
        let hub = Hub { name: "theirs".into(), ..own().hubs()[0].clone() };
        let effective = with(InterfaceSettings { hubs: vec![hub], ..settings() });
        let uplink = effective.uplink().unwrap();
        assert_eq!((uplink.interface.as_str(), uplink.attempt_timeout.as_secs()), ("wg0", 7));
        assert_eq!((effective.hubs(), effective.uplink_interface()), (&uplink.hubs[..], Some(&uplink.interface)));
    }

    #[test]
    fn serialized_form_is_that_of_the_configuration() {
        let table = |value: &dyn Fn() -> Result<toml::Value, toml::ser::Error>| value().unwrap();
        let of_own = table(&|| toml::Value::try_from(own()));
        assert_eq!(of_own, table(&|| toml::Value::try_from(&**own().own())));
        let merged = table(&|| toml::Value::try_from(with(settings())));
        assert_eq!(merged["overrides"]["mtu"].as_integer(), Some(1300));
        assert_eq!(merged["interface"][0]["mtu"].as_integer(), Some(1380));
    }
}
