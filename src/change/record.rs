//! The stored form of generations. This is the only place where keys are serialised.
use super::audit::Actor;
use super::declared::{Declared, Revision};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use spoke_model::interface_name::IfName;
use spoke_model::key::{PresharedKey, PublicKey, SecretKey};
use spoke_model::nets::{Nets, side_by_side};
use spoke_model::time::{Boot, Wall};
use spoke_net::api_state::{ApiState, ApiStateLink, ApiStatePeer, Device, Table};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// One line of the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "lowercase", deny_unknown_fields)]
pub enum HistoryLine {
    /// The state at a generation; the first line.
    Base {
        /// The generation.
        generation: u64,
        /// The change from an empty state to it.
        change: StateChange,
        /// Declared values; absent: not recorded.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        declared: Option<Declared>,
    },
    /// The next generation.
    Change(GenerationRecord),
    /// A generation was confirmed.
    Confirmed {
        /// The generation.
        generation: u64,
    },
    /// Peers that the next generation is about to add, stored before the kernel is touched. After a crash in between they
    /// tell our own peers from undeclared ones.
    Intent {
        /// Peers that no generation has yet.
        peers: NewPeers,
    },
    /// The kernel has none of the intent's peers.
    Abandoned,
}

/// Peers by interface.
pub type NewPeers = BTreeMap<IfName, BTreeSet<PublicKey>>;

/// A generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerationRecord {
    /// Its number.
    pub generation: u64,
    /// Wall clock, trusted or not.
    pub wall: Wall,
    /// Whether the wall clock was trusted.
    pub trusted: bool,
    /// Its origin.
    pub actor: Actor,
    /// Description.
    pub what: String,
    /// Deadline of its confirmation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm: Option<Deadline>,
    /// The generation whose API state this one restored. Left out by earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restores: Option<u64>,
    /// Changes of the API state.
    pub change: StateChange,
    /// Changes of declared values; not empty in a generation of the configuration or the control plane.
    #[serde(default, skip_serializing_if = "Revision::is_empty")]
    pub revision: Revision,
}

/// A moment on the boot clock of one boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    /// Identity of the boot.
    pub boot_id: String,
    /// The moment.
    pub at: Boot,
}

/// Differences by interface.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StateChange(pub BTreeMap<IfName, LinkChange>);

/// Differences of one interface; absent is unchanged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LinkChange {
    /// The interface itself; null: deleted.
    #[serde(skip_serializing_if = "Option::is_none", with = "some")]
    pub device: Option<Option<StoredDevice>>,
    /// Administratively down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub down: Option<bool>,
    /// Peers; null: removed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub peers: BTreeMap<PublicKey, Option<StoredPeer>>,
}

/// Distinguishes an absent field from a null one.
mod some {
    use super::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::ref_option, clippy::option_option, reason = "the signature serde's `with` wants")]
    pub(super) fn serialize<T: Serialize, S: Serializer>(v: &Option<Option<T>>, s: S) -> Result<S::Ok, S::Error> {
        v.as_ref().and_then(Option::as_ref).serialize(s)
    }

    #[expect(clippy::option_option, reason = "absent, null and a value are three things")]
    pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Option<Option<T>>, D::Error> {
        Option::<T>::deserialize(d).map(Some)
    }
}

macro_rules! stored_key {
    ($name:ident, $key:ty) => {
        /// A key in its stored form.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name(pub $key);

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0.reveal_base64())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = zeroize::Zeroizing::new(String::deserialize(d)?);
                text.parse().map(Self).map_err(serde::de::Error::custom)
            }
        }
    };
}

stored_key!(StoredSecretKey, SecretKey);
stored_key!(StoredPresharedKey, PresharedKey);

/// A [`Device`] in its stored form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in Device")]
pub struct StoredDevice {
    pub private_key: StoredSecretKey,
    pub listen_port: Option<u16>,
    #[serde(default)]
    pub fwmark: u32,
    pub addresses: BTreeSet<IpNet>,
    pub mtu: Option<u32>,
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_search: Vec<String>,
    /// `null`: off; 0: automatic.
    pub table: Option<u32>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nested_allowed_ips: bool,
}

/// An [`ApiStatePeer`] in its stored form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in ApiStatePeer")]
pub struct StoredPeer {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preshared_key: Option<StoredPresharedKey>,
    #[serde(default, skip_serializing_if = "Nets::is_empty")]
    pub allowed_ips: Nets,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub keepalive: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde's `skip_serializing_if` wants")]
const fn is_zero(n: &u16) -> bool {
    *n == 0
}

impl From<&Device> for StoredDevice {
    fn from(d: &Device) -> Self {
        Self {
            private_key: StoredSecretKey(d.private_key.clone()),
            listen_port: d.listen_port,
            fwmark: d.fwmark,
            addresses: d.addresses.clone(),
            mtu: d.mtu,
            dns: d.dns.clone(),
            dns_search: d.dns_search.clone(),
            table: match d.table {
                Table::Auto => Some(0),
                Table::Off => None,
                Table::Number(n) => Some(n),
            },
            nested_allowed_ips: d.nested_allowed_ips,
        }
    }
}

impl From<&StoredDevice> for Device {
    fn from(d: &StoredDevice) -> Self {
        Self {
            private_key: d.private_key.0.clone(),
            listen_port: d.listen_port,
            fwmark: d.fwmark,
            addresses: d.addresses.clone(),
            mtu: d.mtu,
            dns: d.dns.clone(),
            dns_search: d.dns_search.clone(),
            table: match d.table {
                Some(0) => Table::Auto,
                None => Table::Off,
                Some(n) => Table::Number(n),
            },
            nested_allowed_ips: d.nested_allowed_ips,
        }
    }
}

impl From<&ApiStatePeer> for StoredPeer {
    fn from(p: &ApiStatePeer) -> Self {
        Self {
            preshared_key: p.preshared_key.clone().map(StoredPresharedKey),
            allowed_ips: p.allowed_ips.clone(),
            keepalive: p.keepalive,
            endpoint: p.endpoint,
        }
    }
}

impl From<&StoredPeer> for ApiStatePeer {
    fn from(p: &StoredPeer) -> Self {
        Self {
            preshared_key: p.preshared_key.as_ref().map(|k| k.0.clone()),
            allowed_ips: p.allowed_ips.clone(),
            keepalive: p.keepalive,
            endpoint: p.endpoint,
        }
    }
}

/// `before` without what `after` takes away: peers, networks of a peer that gains none, interfaces. What `after` adds or
/// replaces is not in it.
pub fn without_revoked(before: &ApiState, after: &ApiState) -> ApiState {
    let mut out = before.clone();
    let blank = ApiStateLink::default();
    for (name, link) in &mut out.links {
        let after = after.links.get(name).unwrap_or(&blank);
        link.device = link.device.take().filter(|_| after.device.is_some());
        link.peers.retain(|key, _| after.peers.contains_key(key));
        for (key, peer) in &mut link.peers {
            let nets = after.peers.get(key).map(|p| &p.allowed_ips);
            if let Some(nets) = nets.filter(|n| **n != peer.allowed_ips && n.is_subset(&peer.allowed_ips)) {
                Arc::make_mut(peer).allowed_ips = nets.clone();
            }
        }
    }
    out.links.retain(|_, link| !link.is_empty());
    out
}

impl StateChange {
    /// The change that leads from `from` to `to`.
    pub fn between(from: &ApiState, to: &ApiState) -> Self {
        let blank = ApiStateLink::default();
        let names: BTreeSet<&IfName> = from.links.keys().chain(to.links.keys()).collect();
        let mut out = BTreeMap::new();
        for name in names {
            let (a, b) = (from.links.get(name).unwrap_or(&blank), to.links.get(name).unwrap_or(&blank));
            let mut change = LinkChange {
                device: (a.device != b.device).then(|| b.device.as_deref().map(StoredDevice::from)),
                down: (a.down != b.down).then_some(b.down),
                peers: BTreeMap::new(),
            };
            let differs = |(key, old, new): (&PublicKey, Option<&Arc<ApiStatePeer>>, Option<&Arc<ApiStatePeer>>)| {
                let same = old.zip(new).is_some_and(|(old, new)| Arc::ptr_eq(old, new) || old == new);
                (!same).then(|| (*key, new.map(|peer| (&**peer).into())))
            };
            change.peers = side_by_side(&a.peers, &b.peers).filter_map(differs).collect();
            if change != LinkChange::default() {
                out.insert(name.clone(), change);
            }
        }
        Self(out)
    }

    /// The peers it adds, as far as `keeps` selects them.
    pub fn new_peers(&self, before: &ApiState, keeps: impl Fn(&IfName, &PublicKey) -> bool) -> NewPeers {
        let mut out = NewPeers::new();
        for (name, change) in &self.0 {
            let had = |key: &PublicKey| before.links.get(name).is_some_and(|l| l.peers.contains_key(key));
            let added = change.peers.iter().filter(|(key, peer)| peer.is_some() && !had(key) && keeps(name, key));
            let added: BTreeSet<PublicKey> = added.map(|(key, _)| *key).collect();
            if !added.is_empty() {
                out.insert(name.clone(), added);
            }
        }
        out
    }

    /// Applies the change to `state`.
    pub fn apply(&self, state: &mut ApiState) {
        for (name, change) in &self.0 {
            let link = state.links.entry(name.clone()).or_default();
            if let Some(device) = &change.device {
                link.device = device.as_ref().map(|d| Arc::new(d.into()));
            }
            if let Some(down) = change.down {
                link.down = down;
            }
            for (key, peer) in &change.peers {
                match peer {
                    Some(peer) => drop(link.peers.insert(*key, Arc::new(peer.into()))),
                    None => drop(link.peers.remove(key)),
                }
            }
            if link.is_empty() {
                state.links.remove(name);
            }
        }
    }

    /// The change as text, one line a difference, without secrets.
    pub fn lines(&self, before: &ApiState) -> Vec<String> {
        let mut out = Vec::new();
        for (name, change) in &self.0 {
            let old = before.links.get(name);
            match &change.device {
                None => {}
                Some(None) => out.push(format!("- interface {name}")),
                Some(Some(d)) => {
                    let sign = if old.is_some_and(|o| o.device.is_some()) { '~' } else { '+' };
                    out.push(format!("{sign} interface {name}: public key {}", d.private_key.0.public()));
                }
            }
            if let Some(down) = change.down {
                out.push(format!("~ interface {name}: {}", if down { "down" } else { "up" }));
            }
            for (key, peer) in &change.peers {
                let had = old.and_then(|o| o.peers.get(key));
                match peer {
                    None => out.push(format!("- {name} peer {key}")),
                    Some(peer) => {
                        let nets: Vec<String> = peer.allowed_ips.iter().map(ToString::to_string).collect();
                        let psk = if peer.preshared_key.is_some() { ", preshared key" } else { "" };
                        let sign = if had.is_some() { '~' } else { '+' };
                        let keepalive = peer.keepalive;
                        let nets = nets.join(",");
                        out.push(format!("{sign} {name} peer {key}: allowed-ips {nets}, keepalive {keepalive}{psk}"));
                    }
                }
            }
        }
        out
    }
}
