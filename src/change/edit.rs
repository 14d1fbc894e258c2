//! Edits of the API state, and their validation: an edit yields the next API state or the conflict that prevents it. What
//! the configuration, the uplink or the grants own is not editable here.
use super::conflict::Conflict;
pub use device::{DeviceValues, OwnValues};
use device::{set_device, set_own};
use ipnet::IpNet;
use spoke_config::effective::Effective;
use spoke_config::interface::Access;
use spoke_config::interface::DriftPolicy;
use spoke_config::overrides::MAX_ALLOWED_IPS;
use spoke_model::interface_name::IfName;
use spoke_model::key::{PresharedKey, PublicKey};
use spoke_model::nets::{Holders, Nets};
use spoke_net::api_state::{ApiState, ApiStateLink, ApiStatePeer};
use spoke_net::state::{Desired, Link, ListenPort, MAX_PEERS, Observed};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

mod device;

/// A requested edit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "`link` and `peer` mean the same in every variant")]
pub enum Edit {
    /// Add a peer or set its values; `None` values stay.
    SetPeer { link: IfName, peer: PublicKey, values: PeerValues },
    /// Change an existing peer.
    ChangePeer { link: IfName, peer: PublicKey, values: PeerValues },
    /// Remove a peer; removing a missing one succeeds.
    RemovePeer { link: IfName, peer: PublicKey },
    /// Exactly these peers; the interface's own values only where given.
    SetPeers { link: IfName, peers: BTreeMap<PublicKey, Arc<ApiStatePeer>>, own: OwnValues },
    /// Create an interface, or change one created through the API.
    SetDevice { link: IfName, values: DeviceValues },
    /// Bring an interface up or down.
    SetDown { link: IfName, down: bool },
    /// Delete an interface created through the API; deleting a missing one succeeds.
    DeleteLink { link: IfName },
}

/// Values of a peer; `None` leaves a value unchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerValues {
    /// Preshared key.
    pub preshared_key: Option<PresharedKey>,
    /// Allowed-ips.
    pub allowed_ips: Option<Nets>,
    /// Persistent keepalive in seconds; 0 is off.
    pub keepalive: Option<u16>,
    /// Endpoint.
    pub endpoint: Option<SocketAddr>,
}

/// The result of an edit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edited {
    /// The next API state.
    pub state: ApiState,
    /// The interface it is about.
    pub link: IfName,
    /// Whether the interface was up before; part of some responses.
    pub was_up: bool,
}

/// The state that edits are validated against.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The configuration in force.
    pub config: &'a Effective,
    /// The API state before the edit.
    pub state: &'a ApiState,
    /// The desired state from all sources.
    pub desired: &'a Desired,
    /// The observed state of the kernel.
    pub observed: &'a Observed,
}

impl Edit {
    /// The interface it is about.
    pub const fn link(&self) -> &IfName {
        match self {
            Self::SetPeer { link, .. }
            | Self::ChangePeer { link, .. }
            | Self::RemovePeer { link, .. }
            | Self::SetPeers { link, .. }
            | Self::SetDevice { link, .. }
            | Self::SetDown { link, .. }
            | Self::DeleteLink { link } => link,
        }
    }

    /// A description for the history and the audit trail, without secrets.
    pub fn describe(&self) -> String {
        match self {
            Self::SetPeer { link, peer, .. } => format!("set peer {peer} on {link}"),
            Self::ChangePeer { link, peer, .. } => format!("change peer {peer} on {link}"),
            Self::RemovePeer { link, peer } => format!("remove peer {peer} from {link}"),
            Self::SetPeers { link, peers, .. } => format!("synchronise {link} to {} peers", peers.len()),
            Self::SetDevice { link, .. } => format!("set interface {link}"),
            Self::SetDown { link, down: true } => format!("bring {link} down"),
            Self::SetDown { link, down: false } => format!("bring {link} up"),
            Self::DeleteLink { link } => format!("delete interface {link}"),
        }
    }

    /// The state this edit leads to, or the conflict that prevents it.
    pub fn carry_out(&self, on: &Context<'_>) -> Result<Edited, Conflict> {
        let link = self.link();
        let was_up = on.observed.links.get(link).is_some_and(|l| l.up);
        let mut out = Edited { state: on.state.clone(), link: link.clone(), was_up };
        match self {
            Self::SetPeer { peer, values, .. } => set_peer(on, &mut out, *peer, values, false)?,
            Self::ChangePeer { peer, values, .. } => set_peer(on, &mut out, *peer, values, true)?,
            Self::RemovePeer { peer, .. } => {
                on.writable(link)?;
                on.not_declared(link, *peer)?;
                if let Some(l) = out.state.links.get_mut(link) {
                    l.peers.remove(peer);
                }
            }
            Self::SetPeers { peers, own, .. } => set_peers(on, &mut out, peers, own)?,
            Self::SetDevice { values, .. } => set_device(on, &mut out, values)?,
            Self::SetDown { down, .. } => {
                on.exists(link)?;
                if *down && on.config.uplink_interface() == Some(link) {
                    return Err(Conflict::CarriesUplink(link.clone()));
                }
                on.enforced(link)?;
                out.state.links.entry(link.clone()).or_default().down = *down;
            }
            Self::DeleteLink { .. } => {
                on.not_configured(link)?;
                on.not_foreign(link)?;
                out.state.links.remove(link);
            }
        }
        if out.state.links.get(link).is_some_and(ApiStateLink::is_empty) {
            out.state.links.remove(link);
        }
        Ok(out)
    }
}

impl Context<'_> {
    fn is_configured(&self, link: &IfName) -> bool {
        self.config.interface(link).is_some()
    }

    /// The source that declares an interface of the configuration.
    fn link_declarer(&self, link: &IfName) -> &'static str {
        let controlled = self.config.own().control.as_ref().is_some_and(|c| c.interface == *link);
        if controlled { "the control plane" } else { "the configuration" }
    }

    fn not_configured(&self, link: &IfName) -> Result<(), Conflict> {
        match self.is_configured(link) {
            true => Err(Conflict::LinkDeclared { link: link.clone(), by: self.link_declarer(link) }),
            false => Ok(()),
        }
    }

    /// Fails with the first value that differs from the declared one.
    fn same(&self, link: &IfName, values: impl IntoIterator<Item = (&'static str, bool)>) -> Result<(), Conflict> {
        match values.into_iter().find(|(_, same)| !same) {
            Some((field, _)) => Err(Conflict::Differs { link: link.clone(), field, by: self.link_declarer(link) }),
            None => Ok(()),
        }
    }

    /// Whether a port is the one in force; 0 is a random one.
    fn same_port(&self, link: &IfName, want: &Link, port: u16) -> bool {
        let random = matches!(want.listen_port, ListenPort::Random { .. });
        let seen = self.observed.links.get(link).map(|l| l.listen_port);
        want.listen_port == ListenPort::Fixed(port) || (random && (port == 0 || seen == Some(port)))
    }

    /// Whether a peer's network may lie inside another peer's.
    fn may_nest(&self, link: &IfName) -> bool {
        match self.config.interface(link) {
            Some(i) => i.own().nested_allowed_ips,
            None => self.state.links.get(link).and_then(|l| l.device.as_ref()).is_some_and(|d| d.nested_allowed_ips),
        }
    }

    /// An interface created through the API stays ours even if its ownership mark was removed.
    fn not_foreign(&self, link: &IfName) -> Result<(), Conflict> {
        let made = self.state.links.get(link).is_some_and(|l| l.device.is_some());
        let other = self.observed.links.get(link).is_some_and(|l| !l.wireguard);
        match (made, other) {
            (true, _) => Ok(()),
            (false, true) => Err(Conflict::Foreign(link.clone())),
            (false, false) if self.is_found(link) => Err(Conflict::NotDeclared(link.clone())),
            (false, false) => Ok(()),
        }
    }

    /// Whether another program created a WireGuard interface of this name.
    fn is_found(&self, link: &IfName) -> bool {
        self.observed.foreign.contains(link) || self.observed.links.get(link).is_some_and(|l| l.wireguard && !l.ours)
    }

    fn exists(&self, link: &IfName) -> Result<(), Conflict> {
        let made = self.state.links.get(link).is_some_and(|l| l.device.is_some());
        match made || self.is_configured(link) {
            true => Ok(()),
            false if self.is_found(link) => Err(Conflict::NotDeclared(link.clone())),
            false => Err(Conflict::NoLink(link.clone())),
        }
    }

    fn enforced(&self, link: &IfName) -> Result<(), Conflict> {
        match self.config.interface(link) {
            Some(i) if i.own().drift == DriftPolicy::Observe => Err(Conflict::ObservedOnly(link.clone())),
            Some(_) | None => Ok(()),
        }
    }

    fn writable(&self, link: &IfName) -> Result<(), Conflict> {
        self.exists(link)?;
        self.enforced(link)?;
        match self.config.interface(link) {
            Some(i) if i.own().access == Access::Nft => Err(Conflict::Granted(link.clone())),
            Some(_) | None => Ok(()),
        }
    }

    /// The source that declares a peer, if it is not the API.
    fn declarer(&self, link: &IfName, peer: PublicKey) -> Option<&'static str> {
        if self.config.uplink_interface() == Some(link) && self.config.hubs().iter().any(|h| h.public_key == peer) {
            return Some("the uplink");
        }
        if let Some(interface) = self.config.interface(link)
            && let Some(declared) = interface.peer(&peer)
        {
            let own = interface.own().peers.contains(declared);
            return Some(if own { "the configuration" } else { "the control plane" });
        }
        let ours = self.state.links.get(link).is_some_and(|l| l.peers.contains_key(&peer));
        let wanted = self.desired.links.get(link).is_some_and(|l| l.peers.contains_key(&peer));
        (wanted && !ours).then_some("the control plane")
    }

    fn not_declared(&self, link: &IfName, peer: PublicKey) -> Result<(), Conflict> {
        match self.declarer(link, peer) {
            Some(by) => Err(Conflict::PeerDeclared { peer, by }),
            None => Ok(()),
        }
    }

    /// The undeclared peers that the edit affects; `kept` are all undeclared peers that policy leaves on the interface.
    pub fn undeclared_peers(&self, edit: &Edit, kept: &BTreeSet<PublicKey>) -> BTreeSet<PublicKey> {
        let touched = |key: &PublicKey| match edit {
            Edit::SetPeer { peer, .. } | Edit::ChangePeer { peer, .. } | Edit::RemovePeer { peer, .. } => peer == key,
            Edit::SetPeers { .. } => true,
            Edit::SetDevice { .. } | Edit::SetDown { .. } | Edit::DeleteLink { .. } => false,
        };
        kept.iter().filter(|key| touched(key)).copied().collect()
    }

    /// The API state with these peers added as the kernel has them, so that a rollback restores them. Networks that are
    /// desired for another peer are left out.
    pub fn adopt(&self, link: &IfName, peers: &BTreeSet<PublicKey>) -> ApiState {
        let mut state = self.state.clone();
        let Some(seen) = self.observed.links.get(link) else { return state };
        let wanted = self.desired.links.get(link).into_iter().flat_map(|l| l.peers.values());
        let held: BTreeSet<IpNet> = wanted.flat_map(|p| &p.allowed_ips).copied().collect();
        let entry = state.links.entry(link.clone()).or_default();
        for (key, peer) in peers.iter().filter_map(|key| Some((*key, seen.peers.get(key)?))) {
            let taken = ApiStatePeer {
                preshared_key: peer.preshared_key.clone(),
                allowed_ips: peer.allowed_ips.filtered(|n| !held.contains(n)),
                keepalive: peer.keepalive,
                endpoint: peer.endpoint,
            };
            entry.peers.insert(key, Arc::new(taken));
        }
        state
    }

    /// Whether the declared peer already has the requested values.
    fn matches_declared(&self, link: &IfName, peer: PublicKey, asked: &ApiStatePeer) -> bool {
        self.desired.links.get(link).and_then(|l| l.peers.get(&peer)).is_some_and(|p| {
            p.allowed_ips == asked.allowed_ips
                && p.keepalive == asked.keepalive
                && (asked.preshared_key.is_none() || p.preshared_key == asked.preshared_key)
        })
    }
}

fn set_peer(
    on: &Context<'_>,
    out: &mut Edited,
    peer: PublicKey,
    values: &PeerValues,
    must_exist: bool,
) -> Result<(), Conflict> {
    let link = out.link.clone();
    on.writable(&link)?;
    let ours = on.state.links.get(&link).and_then(|l| l.peers.get(&peer));
    let mut next = match (ours, on.observed.links.get(&link).and_then(|l| l.peers.get(&peer))) {
        (Some(ours), _) => (**ours).clone(),
        // An undeclared peer is adopted with the values the kernel has.
        (None, Some(there)) => ApiStatePeer {
            preshared_key: there.preshared_key.clone(),
            allowed_ips: there.allowed_ips.clone(),
            keepalive: there.keepalive,
            endpoint: None,
        },
        (None, None) if must_exist && on.declarer(&link, peer).is_none() => {
            return Err(Conflict::NoPeer(link, peer));
        }
        (None, None) => ApiStatePeer::default(),
    };
    if let Some(key) = &values.preshared_key {
        next.preshared_key = Some(key.clone());
    }
    if let Some(nets) = &values.allowed_ips {
        next.allowed_ips.clone_from(nets);
    }
    if let Some(keepalive) = values.keepalive {
        next.keepalive = keepalive;
    }
    if values.endpoint.is_some() {
        next.endpoint = values.endpoint;
    }
    if on.declarer(&link, peer).is_some() && on.matches_declared(&link, peer, &next) {
        return Ok(());
    }
    on.not_declared(&link, peer)?;
    let nets = next.allowed_ips.len();
    if nets > MAX_ALLOWED_IPS {
        return Err(Conflict::TooMany { what: "allowed IPs of one peer", count: nets, max: MAX_ALLOWED_IPS });
    }
    if let Some(want) = on.desired.links.get(&link) {
        if want.private_key.public() == peer {
            return Err(Conflict::OwnKey(peer));
        }
        if want.peers.len() >= MAX_PEERS && !want.peers.contains_key(&peer) {
            return Err(Conflict::TooMany { what: "peers", count: want.peers.len() + 1, max: MAX_PEERS });
        }
        for (holder, other) in want.peers.iter().filter(|(k, _)| **k != peer) {
            if let Some(net) = next.allowed_ips.iter().find(|n| other.allowed_ips.contains(n)) {
                return Err(Conflict::Held { net: *net, holder: *holder });
            }
        }
        if !on.may_nest(&link) {
            // Networks that the peer has already are left as they are.
            let added = next.allowed_ips.filtered(|n| !ours.is_some_and(|o| o.allowed_ips.contains(n)));
            let others = want.peers.iter().filter(|(k, _)| **k != peer);
            let others = others.flat_map(|(k, p)| p.allowed_ips.iter().map(move |o| (*o, *k)));
            let overlap =
                |(other, _): &(IpNet, PublicKey)| added.iter().find(|n| other.contains(*n) || n.contains(other));
            if let Some((net, (other, holder))) =
                others.filter(|_| !added.is_empty()).find_map(|o| Some((*overlap(&o)?, o)))
            {
                return Err(Conflict::Overlap { net, peer, other, holder });
            }
        }
    }
    // The kernel would move the network away from an undeclared peer.
    if let Some(seen) = on.observed.links.get(&link) {
        let wanted = on.desired.links.get(&link);
        let undeclared = |k: &PublicKey| *k != peer && !wanted.is_some_and(|w| w.peers.contains_key(k));
        for (holder, other) in seen.peers.iter().filter(|(k, _)| undeclared(k)) {
            if let Some(net) = next.allowed_ips.iter().find(|n| other.allowed_ips.contains(n)) {
                return Err(Conflict::Held { net: *net, holder: *holder });
            }
        }
    }
    out.state.links.entry(link).or_default().peers.insert(peer, Arc::new(next));
    Ok(())
}

fn set_peers(
    on: &Context<'_>,
    out: &mut Edited,
    peers: &BTreeMap<PublicKey, Arc<ApiStatePeer>>,
    own: &OwnValues,
) -> Result<(), Conflict> {
    let link = out.link.clone();
    on.writable(&link)?;
    if peers.len() > MAX_PEERS {
        return Err(Conflict::TooMany { what: "peers", count: peers.len(), max: MAX_PEERS });
    }
    let holders = Holders::of(peers.iter().map(|(key, peer)| (key, &peer.allowed_ips)));
    if let Some((net, first, second)) = holders.conflict() {
        return Err(Conflict::Twice { net, first, second });
    }
    let in_force = on.desired.links.get(&link);
    let known = |net: &IpNet, key: &PublicKey| {
        in_force.and_then(|l| l.peers.get(key)).is_some_and(|p| p.allowed_ips.contains(net))
    };
    if !on.may_nest(&link)
        && let Some([(net, peer), (other, holder)]) = holders.nested(known)
    {
        return Err(Conflict::Overlap { net, peer, other, holder });
    }
    let declared = on.desired.links.get(&link).into_iter().flat_map(|l| l.peers.iter());
    for (key, wanted) in declared {
        let Some(by) = on.declarer(&link, *key) else { continue };
        if !peers.get(key).is_some_and(|asked| on.matches_declared(&link, *key, asked)) {
            return Err(Conflict::PeerDeclared { peer: *key, by });
        }
        if let Some((net, holder)) = wanted.allowed_ips.iter().find_map(|n| holders.get(n).map(|h| (*n, h)))
            && holder != *key
        {
            return Err(Conflict::Held { net, holder: *key });
        }
    }
    set_own(on, out, own)?;
    let old = on.state.links.get(&link);
    let next = peers.iter().filter(|(key, _)| on.declarer(&link, **key).is_none()).map(|(key, peer)| {
        // An unchanged peer keeps its Arc, so that the next comparison is by pointer.
        let same = old.and_then(|l| l.peers.get(key)).filter(|o| *o == peer);
        (*key, same.unwrap_or(peer).clone())
    });
    let next = next.collect();
    let own_key = on.desired.links.get(&link).map(|l| l.private_key.public());
    if let Some(key) = own_key.filter(|k| peers.contains_key(k)) {
        return Err(Conflict::OwnKey(key));
    }
    out.state.links.entry(link).or_default().peers = next;
    Ok(())
}

#[cfg(test)]
mod tests;
