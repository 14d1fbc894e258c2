//! What the reconciler remembers of the steps that were applied.
use super::{Repair, Step, Unknown};
use crate::state::{Desired, Link, ListenPort, Memory, Observed};
use spoke_model::interface_name::IfName;
use spoke_model::nets::side_by_side;

impl Memory {
    /// Takes over the peers that a previous process set, from the repair.
    pub fn recall(&mut self, repair: &Repair) {
        if let Unknown::Ours(peers) = &repair.unknown {
            for (link, keys) in peers {
                self.owned.entry(link.clone()).or_default().extend(keys);
            }
        }
    }

    /// Records a step that was applied for `desired`.
    pub fn record(&mut self, step: &Step, desired: &Desired) {
        match step {
            Step::DeleteLink { link } => {
                self.forget(link);
                if let Some(want) = desired.links.get(link) {
                    self.rebuilds.insert(link.clone(), want.rebuild);
                }
            }
            Step::CreateLink { link, .. } => {
                let rebuilds = self.rebuilds.get(link).copied();
                self.forget(link);
                if let Some(want) = desired.links.get(link) {
                    self.rebuilds.insert(link.clone(), rebuilds.unwrap_or(0).max(want.rebuild));
                    // A new interface has a new random port.
                    if let ListenPort::Random { epoch } = want.listen_port {
                        self.ports.insert(link.clone(), epoch);
                    }
                }
            }
            Step::SetDevice { link, listen_port: Some(0), .. } => {
                if let Some(Link { listen_port: ListenPort::Random { epoch }, .. }) = desired.links.get(link) {
                    self.ports.insert(link.clone(), *epoch);
                }
            }
            Step::SetDevice { link, listen_port: Some(port), .. } if self.busy_ports.get(link) == Some(port) => {
                self.busy_ports.remove(link);
            }
            Step::RemovePeer { link, peer } => {
                self.endpoints.remove(&(link.clone(), *peer));
                if let Some(owned) = self.owned.get_mut(link) {
                    owned.remove(peer);
                }
            }
            Step::SetPeer { link, peer, change } => {
                self.owned.entry(link.clone()).or_default().insert(*peer);
                if let Some(endpoint) = change.endpoint {
                    self.endpoints.insert((link.clone(), *peer), endpoint);
                }
            }
            Step::RemoveAddress { link, address } => {
                if let Some(set) = self.addresses.get_mut(link) {
                    set.remove(address);
                }
            }
            Step::SetDevice { .. }
            | Step::SetForwarding { .. }
            | Step::SetMtu { .. }
            | Step::RemoveRoute { .. }
            | Step::AddAddress { .. }
            | Step::AddConnected { .. }
            | Step::RemoveConnected { .. }
            | Step::SetUp { .. }
            | Step::AddRoute { .. } => {}
        }
    }

    /// Records the end of a pass: every desired peer that exists is owned from now on.
    pub fn adopt(&mut self, desired: &Desired, observed: &Observed) {
        for (name, want) in &desired.links {
            let Some(have) = observed.links.get(name) else { continue };
            let owned = self.owned.entry(name.clone()).or_default();
            let mut new = Vec::new();
            let mut known = owned.iter().peekable();
            for (key, want, seen) in side_by_side(&want.peers, &have.peers) {
                let (Some(peer), Some(seen)) = (want, seen) else { continue };
                while known.next_if(|k| *k < key).is_some() {}
                if known.peek() != Some(&key) {
                    new.push(*key);
                }
                if let Some(endpoint) = peer.endpoint.filter(|e| seen.endpoint == Some(e.addr)) {
                    self.endpoints.entry((name.clone(), *key)).or_insert(endpoint);
                }
            }
            owned.extend(new);
            let set = self.addresses.entry(name.clone()).or_default();
            set.extend(want.addresses.intersection(&have.addresses));
        }
    }

    fn forget(&mut self, link: &IfName) {
        self.endpoints.retain(|(name, _), _| name != link);
        self.owned.remove(link);
        self.addresses.remove(link);
    }
}
