//! Conflicts of an edit with other owners, each with the owner's name.
use ipnet::IpNet;
use spoke_model::interface_name::IfName;
use spoke_model::key::PublicKey;

/// Why an edit is not allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// The interface does not exist.
    #[error("Interface {0} not found")]
    NoLink(IfName),
    /// The peer does not exist.
    #[error("Peer {1} not found on {0}")]
    NoPeer(IfName, PublicKey),
    /// Another peer has the network.
    #[error("Allowed IP {net} is held by peer {holder}: remove it there first")]
    Held {
        /// The network.
        net: IpNet,
        /// The peer that holds it.
        holder: PublicKey,
    },
    /// Two peers of one file claim the same network.
    #[error("Allowed IP {net} is given to peer {first} and to peer {second}")]
    Twice {
        /// The network.
        net: IpNet,
        /// One peer.
        first: PublicKey,
        /// The other peer.
        second: PublicKey,
    },
    /// A network of one peer lies inside a network of another one.
    #[error(
        "Allowed IP {net} of peer {peer} overlaps {other} of peer {holder}: give each address to one peer, or set nested_allowed_ips = true on the interface if the narrower one is to win"
    )]
    Overlap {
        /// One network.
        net: IpNet,
        /// Its peer.
        peer: PublicKey,
        /// The other network.
        other: IpNet,
        /// Its peer.
        holder: PublicKey,
    },
    /// The peer is declared by another source.
    #[error("Peer {peer} is declared by {by}: change it there")]
    PeerDeclared {
        /// The peer.
        peer: PublicKey,
        /// The source.
        by: &'static str,
    },
    /// The interface is declared by another source.
    #[error("Interface {link} is declared by {by}: change it there")]
    LinkDeclared {
        /// The interface.
        link: IfName,
        /// The source.
        by: &'static str,
    },
    /// A value differs from the one that another source declares.
    #[error("{field} differs from the one that {by} declares for interface {link}: change it there")]
    Differs {
        /// The interface.
        link: IfName,
        /// The value, as `wg-quick` names it.
        field: &'static str,
        /// The source.
        by: &'static str,
    },
    /// The interface exists, and nothing declares it.
    #[error(
        "Interface {0} exists but is not declared: to manage it here, add [[interface]] with name = \"{0}\" to the configuration and run spoke reload"
    )]
    NotDeclared(IfName),
    /// The interface carries the uplink.
    #[error("Interface {0} carries the uplink: bringing it down would disconnect the node")]
    CarriesUplink(IfName),
    /// Peers of the interface are admitted by grants.
    #[error("Peers of {0} are admitted by their grants: see `access` in the configuration")]
    Granted(IfName),
    /// The interface's drift policy is `observe`.
    #[error(
        "Interface {0} is only observed (drift = \"observe\"): set drift = \"enforce\" in the configuration to change it"
    )]
    ObservedOnly(IfName),
    /// Another program created an interface of that name, which is not a WireGuard interface.
    #[error("Interface {0} exists and was created by another program: choose another name")]
    Foreign(IfName),
    /// The peer has the interface's own key.
    #[error("Peer {0} has the interface's own public key")]
    OwnKey(PublicKey),
    /// Another interface uses the port.
    #[error("Port {port} is used by interface {holder}: choose another port")]
    PortTaken {
        /// The port.
        port: u16,
        /// The interface that uses it.
        holder: IfName,
    },
    /// IPv6 needs larger packets.
    #[error("MTU {0} is too small: the IPv6 addresses of the interface need 1280 or more")]
    SmallMtu(u32),
    /// Above a limit.
    #[error("{count} {what} are more than the {max} allowed")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// Count asked for.
        count: usize,
        /// The limit.
        max: usize,
    },
}

impl Conflict {
    /// Whether the interface or peer does not exist.
    pub const fn is_missing(&self) -> bool {
        matches!(self, Self::NoLink(_) | Self::NoPeer(..))
    }
}
