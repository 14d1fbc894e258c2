//! The state document: the desired state of one node, signed by the control plane.
//!
//! The signed bytes are sent and stored verbatim inside the envelope, so verification does not depend on two programs
//! writing the same JSON. A domain prefix separates these signatures from any others of the same key. An envelope has
//! one signature for each signing key in service, so that a node that was offline during a key rotation finds one it
//! knows.
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use spoke_config::fault::ConfigFaults;
use spoke_config::node::Role;
use spoke_config::overrides::MAX_ALLOWED_IPS;
use spoke_config::overrides::Overrides;
use spoke_config::policy::GrantsPolicy;
use spoke_model::address::HostPort;
use spoke_model::interface_name::IfName;
use spoke_model::key::{PresharedKey, PublicKey};
use spoke_model::node_id::NodeId;
use spoke_model::release::{Rollout, WantedRelease};
use spoke_model::signature::{SignKey, Signature, VerifyKey};
use spoke_model::wireguard::MTU_RANGE;
use spoke_net::state::MAX_PEERS;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Version of the document.
pub const VERSION: u32 = 1;

/// Largest envelope accepted, in bytes; enough for a hub with [`MAX_PEERS`] peers.
pub const MAX_BYTES: usize = 16 << 20;

/// Most signing keys in service.
pub const MAX_SIGNING_KEYS: usize = 4;

/// Most interfaces of a document.
const MAX_INTERFACES: usize = 8;

/// Most hubs of an interface.
const MAX_HUBS: usize = 16;

/// Most preshared keys of one hub: of the node's key in use and of an announced one.
const MAX_PAIRS: usize = 4;

/// Most generations between a document and the one before: more than a restored control plane skips.
pub const MAX_STEP: u64 = 1 << 32;

/// Highest generation of the first document of a node.
const MAX_FIRST: u64 = 1 << 48;

const DOMAIN: &[u8] = b"spoke state document\n";

/// Desired state of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateDocument {
    /// [`VERSION`].
    pub version: u32,
    /// The node.
    pub node_id: NodeId,
    /// Grows with every change; a node never accepts an older one, but see `supersedes`.
    pub generation: u64,
    /// The later generation that this document replaces on a node: the way back from one that was signed by mistake or by
    /// an attacker. It must be the newest that the node knows, so a replay replaces nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supersedes: Option<u64>,
    /// The node's role.
    pub role: Role,
    /// Signing keys to pin once this document is kept.
    pub signing_keys: Vec<VerifyKey>,
    /// WireGuard interfaces.
    pub interfaces: Vec<WantedInterface>,
    /// The release its image has to run; `None`: as configured on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<WantedRelease>,
    /// When the node fetches that release; apart from it, since devices of an earlier release refuse unknown fields there.
    #[serde(default, skip_serializing_if = "Rollout::is_immediate")]
    pub rollout: Rollout,
    /// The contract that admits peers of interfaces with access by NFT; `None`: as configured on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grants: Option<GrantsPolicy>,
}

/// One interface of a [`StateDocument`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedInterface {
    /// Kernel name.
    pub name: IfName,
    /// The node's addresses with the prefix length of their pool.
    pub addresses: Vec<IpNet>,
    /// UDP port; `None`: as configured on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen_port: Option<u16>,
    /// Bytes; `None`: as configured on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Resolvers inside the tunnel.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
    /// Hubs to connect to, best first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hubs: Vec<WantedHub>,
    /// Peers that connect to this node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<WantedPeer>,
    /// Whether packets may go from peer to peer.
    #[serde(default)]
    pub forwarding: bool,
    /// Values for this node alone, in place of the above and of its own configuration.
    #[serde(default, skip_serializing_if = "Overrides::is_empty")]
    pub overrides: Overrides,
    /// The public key that this node has announced and its hub accepts: the node may change to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_key: Option<PublicKey>,
}

/// A hub of a [`WantedInterface`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedHub {
    /// The hub's node id.
    pub node_id: NodeId,
    /// Identity.
    pub public_key: PublicKey,
    /// Where to reach it.
    pub endpoint: HostPort,
    /// Its tunnel address, which answers an echo.
    pub address: IpAddr,
    /// Networks behind it.
    pub allowed_ips: Vec<IpNet>,
    /// Seconds; 0 is off.
    pub keepalive: u16,
    /// Of the tunnel between this hub and the node, one for each key of the node; none: without a preshared key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preshared_keys: Vec<WantedPair>,
}

/// The preshared key of a node's key and a hub's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedPair {
    /// The node's public key, in use or announced.
    pub public_key: PublicKey,
    /// What both ends set.
    pub preshared_key: SentPresharedKey,
}

/// A preshared key as it is sent and stored; never shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentPresharedKey(pub PresharedKey);

impl Serialize for SentPresharedKey {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0.reveal_base64())
    }
}

impl<'de> Deserialize<'de> for SentPresharedKey {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = zeroize::Zeroizing::new(String::deserialize(d)?);
        text.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

/// A peer of a [`WantedInterface`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedPeer {
    /// The peer's node id.
    pub node_id: NodeId,
    /// Identity.
    pub public_key: PublicKey,
    /// Its addresses, a /32 or /128 each; empty for a key announced and not yet in use.
    pub allowed_ips: Vec<IpNet>,
    /// Seconds; 0 is off.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub keepalive: u16,
    /// Cannot reach other peers even with forwarding on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub isolated: bool,
    /// What both ends set; `None`: the tunnel has no preshared key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preshared_key: Option<SentPresharedKey>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde's `skip_serializing_if` wants")]
const fn is_zero(n: &u16) -> bool {
    *n == 0
}

/// A document with its signatures, as sent and stored.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// One for each signing key in service.
    pub signatures: Vec<KeySignature>,
    /// The signed bytes, verbatim.
    pub document: Box<RawValue>,
}

/// Without the document, which may hold preshared keys.
impl std::fmt::Debug for Envelope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Envelope").field("signatures", &self.signatures).finish_non_exhaustive()
    }
}

/// One signature of an [`Envelope`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySignature {
    /// The signing key.
    pub key: VerifyKey,
    /// Over the domain prefix and the document.
    pub signature: Signature,
}

/// Why a document was refused. The last good one stays in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Too large to be read.
    #[error("the document has {0} bytes; at most {MAX_BYTES} are accepted")]
    Oversize(usize),
    /// Not an envelope.
    #[error("the answer is not a signed document: {0}")]
    Malformed(String),
    /// No valid signature of a pinned key.
    #[error(
        "the document is signed by {signed}, and this device trusts {trusted}: was that key retired too early (spoke-control signing-key list), or is this another control plane?"
    )]
    BadSignature {
        /// The keys that claim to have signed it.
        signed: String,
        /// The pinned keys.
        trusted: String,
    },
    /// Of another version.
    #[error("the document has version {0}; this build reads {VERSION}: update it")]
    Version(u32),
    /// For another node.
    #[error("the document is for node {0}")]
    WrongNode(NodeId),
    /// Older than the one in force.
    #[error("generation {got} is not newer than {have}, which is the newest known here")]
    Older {
        /// Of the document.
        got: u64,
        /// In force, on trial or reverted.
        have: u64,
    },
    /// So much later that no later one might be left.
    #[error(
        "generation {got} is too far from {have}, the newest known here: at most {MAX_STEP} at a time are accepted"
    )]
    Leap {
        /// Of the document.
        got: u64,
        /// In force, on trial or reverted; 0: none.
        have: u64,
    },
    /// Signed, but inconsistent.
    #[error("the document is invalid: {0}")]
    Invalid(String),
    /// Valid, but not for a device configured like this one.
    #[error(transparent)]
    Incompatible(#[from] Incompatible),
}

/// Why a device cannot follow a document that is valid by itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Incompatible {
    /// The device is configured as the other role.
    #[error("the document is for a {role}: set node.role = \"{role}\", or enrol under another name", role = .0.as_str())]
    Role(Role),
    /// An interface admits peers by NFT, and neither side names a contract.
    #[error(
        "the document names no contract, and interface {0} has access = \"nft\": give the network a grants policy, or the node a [grants] of its own"
    )]
    NoContract(IfName),
    /// A peer has the key of a hub of the device's own configuration, and would take its place.
    #[error("the document has hub {0} of the node's own configuration as a peer: remove one of the two")]
    OwnHub(String),
    /// Outside of `control.allow_networks`.
    #[error(
        "the document uses {0}, which is not within control.allow_networks of the node's own configuration: add it there if it is meant to be"
    )]
    Network(IpNet),
    /// Of the Internet, and not one of the enrolment's.
    #[error(
        "the document uses {0}, a network of the Internet that the node was not enrolled with: name all its networks in control.allow_networks of the node's own configuration if it is meant to be"
    )]
    NewNetwork(IpNet),
    /// Not one of `control.hub_keys`.
    #[error(
        "the document names hub {hub} with the key {key}, which is not in control.hub_keys of the node's own configuration: add it there if the hub was replaced"
    )]
    HubKey {
        /// The hub.
        hub: NodeId,
        /// Its key.
        key: PublicKey,
    },
}

impl StateDocument {
    /// Whether a node whose newest generation is `have` (0: none) takes this document, whatever its content.
    pub fn check_generation(&self, have: u64) -> Result<(), Refusal> {
        let got = self.generation;
        if self.supersedes == Some(have) && have > 0 && (1..have).contains(&got) {
            return Ok(());
        }
        if got <= have {
            return Err(Refusal::Older { got, have });
        }
        let max = if have == 0 { MAX_FIRST } else { have.saturating_add(MAX_STEP) };
        if got > max { Err(Refusal::Leap { got, have }) } else { Ok(()) }
    }

    /// The document in its envelope, signed by each of `keys`.
    pub fn sign<'k>(&self, keys: impl IntoIterator<Item = &'k SignKey>) -> Result<Envelope, serde_json::Error> {
        let document = serde_json::value::to_raw_value(self)?;
        let message = message(&document);
        let signatures =
            keys.into_iter().map(|k| KeySignature { key: k.public(), signature: k.sign(&message) }).collect();
        Ok(Envelope { signatures, document })
    }

    /// Checks the document by itself; `derive` checks it together with the configuration.
    fn check(&self) -> Result<(), String> {
        if self.signing_keys.is_empty() || self.signing_keys.len() > MAX_SIGNING_KEYS {
            return Err(format!("{} signing keys; 1 to {MAX_SIGNING_KEYS} are accepted", self.signing_keys.len()));
        }
        if self.interfaces.len() > MAX_INTERFACES {
            return Err(format!("{} interfaces; at most {MAX_INTERFACES} are accepted", self.interfaces.len()));
        }
        if let Some(release) = &self.release {
            release.check()?;
        }
        let mut names = BTreeSet::new();
        for interface in &self.interfaces {
            if !names.insert(&interface.name) {
                return Err(format!("interface {} is listed twice", interface.name));
            }
            interface.check().map_err(|problem| format!("interface {}: {problem}", interface.name))?;
        }
        Ok(())
    }
}

impl WantedInterface {
    fn check(&self) -> Result<(), String> {
        if self.hubs.len() > MAX_HUBS || self.peers.len() > MAX_PEERS {
            return Err(format!("{} hubs and {} peers are too many", self.hubs.len(), self.peers.len()));
        }
        if self.mtu.is_some_and(|m| !MTU_RANGE.contains(&m)) || self.listen_port == Some(0) {
            return Err("mtu or listen port out of range".into());
        }
        self.overrides.check().map_err(|e| e.to_string())?;
        for hub in &self.hubs {
            if !hub.allowed_ips.iter().any(|n| n.contains(&hub.address)) {
                return Err(format!("hub {} is not within its own allowed-ips", hub.node_id));
            }
            if hub.preshared_keys.len() > MAX_PAIRS {
                return Err(format!("hub {} has {} preshared keys", hub.node_id, hub.preshared_keys.len()));
            }
        }
        let hubs = self.hubs.iter().map(|h| (h.public_key, &h.allowed_ips, false));
        let peers = self.peers.iter().map(|p| (p.public_key, &p.allowed_ips, true));
        let (mut keys, mut holders) = (BTreeSet::new(), BTreeMap::new());
        for (key, nets, exclusive) in hubs.chain(peers) {
            if key.is_low_order() {
                return Err(format!("peer {key:?} is a point of low order, whose tunnel anybody could open"));
            }
            if !keys.insert(key) {
                return Err(format!("peer {key:?} is listed twice"));
            }
            if nets.len() > MAX_ALLOWED_IPS {
                return Err(format!("peer {key:?} has {} allowed-ips", nets.len()));
            }
            for net in nets {
                if net.trunc() != *net {
                    return Err(format!("{net} of peer {key:?} is not canonical"));
                }
                if exclusive && let Some(first) = holders.insert(*net, key) {
                    return Err(format!("{net} is claimed by peer {first:?} and by peer {key:?}"));
                }
            }
        }
        Ok(())
    }
}

impl Envelope {
    /// Opens a received envelope; the document is for `node` and signed by one of `pinned`.
    ///
    /// The caller compares the generation, because the same document is also read from disk.
    pub fn open(bytes: &[u8], node: &NodeId, pinned: &[VerifyKey]) -> Result<(Self, StateDocument), Refusal> {
        if bytes.len() > MAX_BYTES {
            return Err(Refusal::Oversize(bytes.len()));
        }
        let envelope: Self = serde_json::from_slice(bytes).map_err(|e| Refusal::Malformed(e.to_string()))?;
        let document = envelope.verify(node, pinned)?;
        if let Some(policy) = &document.grants {
            let faults = |f: ConfigFaults| Refusal::Invalid(f.to_string().replace('\n', "; "));
            policy.read(document.role).map_err(faults)?;
        }
        Ok((envelope, document))
    }

    /// Whether one of `keys` has signed the document.
    pub fn is_signed_by(&self, keys: &[VerifyKey]) -> bool {
        let message = message(&self.document);
        self.signatures.iter().any(|s| keys.contains(&s.key) && s.key.verify(&message, &s.signature))
    }

    /// The signing keys named by the document, unverified; for the device's own copy if its record of the pins is lost.
    pub fn claimed_keys(&self) -> Vec<VerifyKey> {
        #[derive(Deserialize)]
        struct Claim {
            signing_keys: Vec<VerifyKey>,
        }
        serde_json::from_slice(self.document.get().as_bytes()).map_or_else(|_| Vec::new(), |c: Claim| c.signing_keys)
    }

    /// As [`Envelope::open`], for an envelope from disk: a policy for access that an earlier release accepted costs no
    /// tunnel ([`GrantsPolicy::read_stored`]).
    pub fn verify(&self, node: &NodeId, pinned: &[VerifyKey]) -> Result<StateDocument, Refusal> {
        if self.signatures.len() > MAX_SIGNING_KEYS {
            return Err(Refusal::Malformed(format!("{} signatures", self.signatures.len())));
        }
        if !self.is_signed_by(pinned) {
            let list = |keys: &mut dyn Iterator<Item = &VerifyKey>| {
                let keys: Vec<String> = keys.map(ToString::to_string).collect();
                if keys.is_empty() { "no key".to_owned() } else { keys.join(", ") }
            };
            return Err(Refusal::BadSignature {
                signed: list(&mut self.signatures.iter().map(|s| &s.key)),
                trusted: list(&mut pinned.iter()),
            });
        }
        /// Read first: the rest depends on the version.
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let text = self.document.get();
        let head: Head = serde_json::from_slice(text.as_bytes()).map_err(|e| Refusal::Invalid(e.to_string()))?;
        if head.version != VERSION {
            return Err(Refusal::Version(head.version));
        }
        let document: StateDocument =
            serde_json::from_slice(text.as_bytes()).map_err(|e| Refusal::Invalid(e.to_string()))?;
        if document.node_id != *node {
            return Err(Refusal::WrongNode(document.node_id));
        }
        document.check().map_err(Refusal::Invalid)?;
        Ok(document)
    }
}

fn message(document: &RawValue) -> Vec<u8> {
    [DOMAIN, document.get().as_bytes()].concat()
}

#[cfg(test)]
mod tests;
