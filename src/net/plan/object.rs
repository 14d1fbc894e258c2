//! What a step changes.
use super::Step;
use ipnet::IpNet;
use spoke_model::interface_name::IfName;
use spoke_model::key::PublicKey;

/// What a step changes: equal for two steps that set different values of the same thing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StepObject {
    kind: u8,
    link: IfName,
    peer: Option<PublicKey>,
    /// An address, or a route's destination with its table.
    net: Option<(IpNet, u32)>,
}

impl std::fmt::Display for StepObject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.link.fmt(f)?;
        match (&self.peer, &self.net) {
            (Some(peer), _) => write!(f, " {peer}"),
            (None, Some((net, _))) => write!(f, " {net}"),
            (None, None) => Ok(()),
        }
    }
}

impl StepObject {
    /// What it is, in words: an interface with the property, peer, address or route.
    pub fn subject(&self) -> String {
        let property = match self.kind {
            2 | 6 => " peer",
            3 => " forwarding",
            4 => " listen port",
            5 => " key, port or mark",
            7 => " up or down",
            8 => " mtu",
            9 | 12 => " route",
            10 | 11 => " address",
            13 | 14 => " connected route",
            _ => "",
        };
        let (link, what) = (self.link.as_str(), self.to_string());
        let rest = what.strip_prefix(link).unwrap_or_default();
        format!("{link}{property}{rest}")
    }
}

impl Step {
    /// What the step changes.
    pub fn object(&self) -> StepObject {
        let net = match self {
            Self::RemoveRoute { route, .. } | Self::AddRoute { route, .. } => Some((route.to, route.table)),
            Self::RemoveAddress { address, .. }
            | Self::AddAddress { address, .. }
            | Self::RemoveConnected { address, .. }
            | Self::AddConnected { address, .. } => Some((*address, 0)),
            _ => None,
        };
        StepObject { kind: self.kind(), link: self.link().clone(), peer: self.peer().copied(), net }
    }

    /// A number by kind, in the order of application where that is defined.
    const fn kind(&self) -> u8 {
        match self {
            Self::DeleteLink { .. } => 0,
            Self::CreateLink { .. } => 1,
            Self::RemovePeer { .. } => 2,
            Self::SetForwarding { .. } => 3,
            Self::SetDevice { private_key: None, fwmark: None, .. } => 4,
            Self::SetDevice { .. } => 5,
            Self::SetPeer { .. } => 6,
            Self::SetUp { .. } => 7,
            Self::SetMtu { .. } => 8,
            Self::RemoveRoute { .. } => 9,
            Self::RemoveAddress { .. } => 10,
            Self::AddAddress { .. } => 11,
            Self::AddRoute { .. } => 12,
            Self::RemoveConnected { .. } => 13,
            Self::AddConnected { .. } => 14,
        }
    }
}
