//! The state document: what the control plane wants of one node, signed so that only it can say so.
//!
//! The bytes that are signed are the bytes that travel and the bytes that are kept: the document stands verbatim inside
//! its envelope, so nothing depends on two programs writing JSON the same way. A domain prefix keeps a signature from
//! meaning anything elsewhere. An envelope carries one signature for each signing key in service, so that a node that
//! slept through a rotation still finds one it knows.
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use spoke_config::node::Role;
use spoke_config::overrides::MAX_ALLOWED_IPS;
use spoke_config::overrides::Overrides;
use spoke_config::policy::GrantsPolicy;
use spoke_model::address::HostPort;
use spoke_model::interface_name::IfName;
use spoke_model::key::PublicKey;
use spoke_model::node_id::NodeId;
use spoke_model::release::WantedRelease;
use spoke_model::signature::{SignKey, Signature, VerifyKey};
use spoke_model::wireguard::MTU_RANGE;
use spoke_net::state::MAX_PEERS;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The version of the document that this build writes and reads.
pub const VERSION: u32 = 1;

/// The largest envelope accepted, in bytes: a hub with [`MAX_PEERS`] peers stays below it.
pub const MAX_BYTES: usize = 16 << 20;

/// Signing keys in service at the same time.
pub const MAX_SIGNING_KEYS: usize = 4;

/// Interfaces in one document.
const MAX_INTERFACES: usize = 8;

/// Hubs of one interface.
const MAX_HUBS: usize = 16;

const DOMAIN: &[u8] = b"spoke state document\n";

/// What the control plane wants of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateDocument {
    /// [`VERSION`].
    pub version: u32,
    /// Whom it is for.
    pub node_id: NodeId,
    /// Grows with every change; a node never goes back.
    pub generation: u64,
    /// What the node is on its network.
    pub role: Role,
    /// Keys whose signature the node shall accept from now on.
    pub signing_keys: Vec<VerifyKey>,
    /// WireGuard interfaces.
    pub interfaces: Vec<WantedInterface>,
    /// The release its image shall run; `None`: as the node's configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<WantedRelease>,
    /// Which contract says who may be a peer, where an interface of the node asks; `None`: as its configuration says.
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
    /// UDP port; `None`: as the node's configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen_port: Option<u16>,
    /// Bytes; `None`: as the node's configuration says.
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
    /// What is set for this node in place of the above and of its own configuration.
    #[serde(default, skip_serializing_if = "Overrides::is_empty")]
    pub overrides: Overrides,
    /// The public key this node has announced and its hub already accepts: the node may change to it.
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
    /// Its address inside the tunnel, which answers an echo.
    pub address: IpAddr,
    /// Networks behind it.
    pub allowed_ips: Vec<IpNet>,
    /// Seconds; 0 is off.
    pub keepalive: u16,
}

/// A peer of a [`WantedInterface`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedPeer {
    /// Which node it is.
    pub node_id: NodeId,
    /// Identity.
    pub public_key: PublicKey,
    /// Its own addresses, a /32 or /128 each; empty for a key announced and not yet in use.
    pub allowed_ips: Vec<IpNet>,
    /// Seconds; 0 is off.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub keepalive: u16,
    /// Shut off from other peers even where forwarding is on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub isolated: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde's `skip_serializing_if` wants")]
const fn is_zero(n: &u16) -> bool {
    *n == 0
}

/// A document with its signatures, as it travels and as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// One for each key in service.
    pub signatures: Vec<KeySignature>,
    /// The signed bytes, verbatim.
    pub document: Box<RawValue>,
}

/// One signature of an [`Envelope`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySignature {
    /// Who signed.
    pub key: VerifyKey,
    /// Over the domain prefix and the document.
    pub signature: Signature,
}

/// Why a document was not accepted. The last good one stays in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Too long to be read at all.
    #[error("the document has {0} bytes; at most {MAX_BYTES} are accepted")]
    Oversize(usize),
    /// Not an envelope.
    #[error("the answer is not a signed document: {0}")]
    Malformed(String),
    /// No signature of a pinned key.
    #[error("no key pinned at enrolment has signed the document")]
    BadSignature,
    /// Written in another version.
    #[error("the document has version {0}; this build reads {VERSION}: update it")]
    Version(u32),
    /// Meant for another node.
    #[error("the document is for node {0}")]
    WrongNode(NodeId),
    /// Older than the one in force.
    #[error("generation {got} is not newer than {have}, which is the newest known here")]
    Older {
        /// Of the document.
        got: u64,
        /// In force, on trial or taken back.
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
    #[error("the document is for a {role}: set node.role = \"{role}\", or enrol under another name", role = role_name(*.0))]
    Role(Role),
    /// An interface admits peers by NFT, and neither side names a contract.
    #[error(
        "the document names no contract, and interface {0} has access = \"nft\": give the network a grants policy, or the node a [grants] of its own"
    )]
    NoContract(IfName),
}

const fn role_name(role: Role) -> &'static str {
    match role {
        Role::Hub => "hub",
        Role::Node => "node",
    }
}

impl StateDocument {
    /// The document in its envelope, signed by each of `keys`.
    pub fn sign<'k>(&self, keys: impl IntoIterator<Item = &'k SignKey>) -> Result<Envelope, serde_json::Error> {
        let document = serde_json::value::to_raw_value(self)?;
        let message = message(&document);
        let signatures =
            keys.into_iter().map(|k| KeySignature { key: k.public(), signature: k.sign(&message) }).collect();
        Ok(Envelope { signatures, document })
    }

    /// Whether it makes sense on its own; `derive` checks it once more together with everything else.
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
        if let Some(policy) = &self.grants {
            policy.read(self.role).map_err(|faults| faults.to_string().replace('\n', "; "))?;
        }
        let mut names = BTreeSet::new();
        for interface in &self.interfaces {
            if !names.insert(&interface.name) {
                return Err(format!("interface {} is there twice", interface.name));
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
        }
        let hubs = self.hubs.iter().map(|h| (h.public_key, &h.allowed_ips, false));
        let peers = self.peers.iter().map(|p| (p.public_key, &p.allowed_ips, true));
        let (mut keys, mut holders) = (BTreeSet::new(), BTreeMap::new());
        for (key, nets, exclusive) in hubs.chain(peers) {
            if !keys.insert(key) {
                return Err(format!("peer {key:?} is there twice"));
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
    /// Opens an envelope received as `bytes`: what is inside is for `node` and signed by one of `pinned`.
    ///
    /// The generation is the caller's to compare, because the same document is also read from disk.
    pub fn open(bytes: &[u8], node: &NodeId, pinned: &[VerifyKey]) -> Result<(Self, StateDocument), Refusal> {
        if bytes.len() > MAX_BYTES {
            return Err(Refusal::Oversize(bytes.len()));
        }
        let envelope: Self = serde_json::from_slice(bytes).map_err(|e| Refusal::Malformed(e.to_string()))?;
        let document = envelope.verify(node, pinned)?;
        Ok((envelope, document))
    }

    /// The signing keys the document itself names, unverified: for the device's own copy when the record of its pins is lost.
    pub fn claimed_keys(&self) -> Vec<VerifyKey> {
        #[derive(Deserialize)]
        struct Claim {
            signing_keys: Vec<VerifyKey>,
        }
        serde_json::from_str(self.document.get()).map_or_else(|_| Vec::new(), |c: Claim| c.signing_keys)
    }

    /// As [`Envelope::open`], for an envelope already read.
    pub fn verify(&self, node: &NodeId, pinned: &[VerifyKey]) -> Result<StateDocument, Refusal> {
        if self.signatures.len() > MAX_SIGNING_KEYS {
            return Err(Refusal::Malformed(format!("{} signatures", self.signatures.len())));
        }
        let message = message(&self.document);
        let known = |s: &KeySignature| pinned.contains(&s.key) && s.key.verify(&message, &s.signature);
        if !self.signatures.iter().any(known) {
            return Err(Refusal::BadSignature);
        }
        /// Only what must be known before the rest can be understood.
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let text = self.document.get();
        let head: Head = serde_json::from_str(text).map_err(|e| Refusal::Invalid(e.to_string()))?;
        if head.version != VERSION {
            return Err(Refusal::Version(head.version));
        }
        let document: StateDocument = serde_json::from_str(text).map_err(|e| Refusal::Invalid(e.to_string()))?;
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
