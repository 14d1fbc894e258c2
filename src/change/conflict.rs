//! Why an edit may not be, with the name of whoever has what was asked for.
use ipnet::IpNet;
use spoke_model::interface_name::IfName;
use spoke_model::key::PublicKey;

/// Why an edit may not be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// There is no such interface.
    #[error("Interface {0} not found")]
    NoLink(IfName),
    /// There is no such peer.
    #[error("Peer {1} not found on {0}")]
    NoPeer(IfName, PublicKey),
    /// Another peer has the network.
    #[error("Allowed IP {net} is held by peer {holder}: remove it there first")]
    Held {
        /// The network.
        net: IpNet,
        /// Who has it.
        holder: PublicKey,
    },
    /// Two peers of one file want the same network.
    #[error("Allowed IP {net} is given to peer {first} and to peer {second}")]
    Twice {
        /// The network.
        net: IpNet,
        /// The one.
        first: PublicKey,
        /// The other.
        second: PublicKey,
    },
    /// Somebody else declares the peer.
    #[error("Peer {peer} is declared by {by}: change it there")]
    PeerDeclared {
        /// The peer.
        peer: PublicKey,
        /// Who.
        by: &'static str,
    },
    /// Somebody else declares the interface.
    #[error("Interface {link} is declared by {by}: change it there")]
    LinkDeclared {
        /// The interface.
        link: IfName,
        /// Who.
        by: &'static str,
    },
    /// The interface carries the way to the hub.
    #[error("Interface {0} carries the uplink: without it the node would be cut off")]
    CarriesUplink(IfName),
    /// Grants decide who is a peer there.
    #[error("Peers of {0} are admitted by their grants: see access in the configuration")]
    Granted(IfName),
    /// Policy says not to write.
    #[error("Interface {0} is only observed: set drift = \"enforce\" in the configuration to change it")]
    ObservedOnly(IfName),
    /// An interface of that name is there and not ours.
    #[error("Interface {0} exists and was made by somebody else: choose another name")]
    Foreign(IfName),
    /// The interface's own key.
    #[error("Peer {0} has the interface's own public key")]
    OwnKey(PublicKey),
    /// The port is another interface's.
    #[error("Port {port} is that of interface {holder}")]
    PortTaken {
        /// The port.
        port: u16,
        /// Who has it.
        holder: IfName,
    },
    /// More than the bounds allow.
    #[error("{count} {what} are more than the {max} allowed")]
    TooMany {
        /// Peers or allowed-ips.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many there may be.
        max: usize,
    },
}

impl Conflict {
    /// Whether what was asked about is simply not there.
    pub const fn is_missing(&self) -> bool {
        matches!(self, Self::NoLink(_) | Self::NoPeer(..))
    }
}
