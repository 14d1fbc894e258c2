//! Revocations while no new state can be derived: the last good state stays in force without what was withdrawn since.
use super::{Admitted, Facts};
use crate::state::Desired;
use spoke_config::effective::Effective;
use spoke_config::interface::Access;
use spoke_model::interface_name::IfName;
use spoke_model::key::PublicKey;

/// Removes from `last` the peers and networks that the API or a grant gave and that `now` no longer has. `then`: the facts that
/// `last` was derived from. What the configuration declares stays: it is what may be invalid.
pub fn withdraw(last: &Desired, then: &Facts, now: &Facts, config: &Effective) -> Desired {
    let mut out = last.clone();
    for (name, link) in &mut out.links {
        let before = then.api_state.links.get(name);
        let set = now.api_state.links.get(name);
        for (key, old) in before.into_iter().flat_map(|l| &l.peers) {
            let Some(peer) = link.peers.get_mut(key).filter(|_| !is_declared(config, name, key)) else { continue };
            match set.and_then(|l| l.peers.get(key)) {
                None => drop(link.peers.remove(key)),
                Some(new) => {
                    let gone = |net: &_| old.allowed_ips.contains(net) && !new.allowed_ips.contains(net);
                    peer.allowed_ips = peer.allowed_ips.filtered(|net| !gone(net));
                }
            }
        }
        let lost = |key: &PublicKey| {
            let had = |admitted: &Admitted| admitted.0.iter().any(|(_, admitted)| admitted == key);
            had(&then.admitted) && !had(&now.admitted)
        };
        let by_grant = config.interfaces().any(|i| i.own().name == *name && i.own().access == Access::Nft);
        if by_grant && then.admitted != now.admitted {
            link.peers.retain(|key, _| !lost(key));
        }
    }
    let gone = |name: &IfName| {
        let set = |facts: &Facts| facts.api_state.links.get(name).is_some_and(|l| l.device.is_some());
        set(then) && !set(now) && !config.interfaces().any(|i| i.own().name == *name)
    };
    out.links.retain(|name, _| !gone(name));
    if out.links != last.links {
        out.generation += 1;
    }
    out
}

fn is_declared(config: &Effective, link: &IfName, key: &PublicKey) -> bool {
    let declared = |i: spoke_config::effective::InterfaceView<'_>| i.peers().any(|p| p.public_key == *key);
    config.interfaces().any(|i| i.own().name == *link && declared(i))
}

#[cfg(test)]
mod tests {
    use super::super::derive;
    use super::*;
    use crate::api_state::{ApiState, ApiStateLink, ApiStatePeer};
    use crate::derive::Keys;
    use spoke_config::Config;
    use spoke_model::key::SecretKey;
    use std::sync::Arc;

    fn config(access: &str) -> Effective {
        let key = PublicKey([7; 32]);
        let grants = "[grants]\ncontract = \"0x37d2106bADB01dd5bE1926e45D172Cb4203C4186\"\nchain_id = 1\nendpoints = [\"http://x\"]\n";
        let text = format!(
            "{grants}[node]\nrole = \"hub\"\n[[interface]]\nname = \"wg0\"\nlisten_port = 1\n{access}\n[[interface.peer]]\nnode_id = \"n7\"\npublic_key = \"{key}\"\nallowed_ips = [\"10.7.0.0/16\"]\n"
        );
        Effective::of(Arc::new(Config::from_text(Some(("test", &text)), []).unwrap()))
    }

    fn facts(peers: &[(u8, &[&str])]) -> Facts {
        let peer = |(n, nets): &(u8, &[&str])| {
            let allowed_ips = nets.iter().map(|n| n.parse().unwrap()).collect();
            (PublicKey([*n; 32]), Arc::new(ApiStatePeer { allowed_ips, ..ApiStatePeer::default() }))
        };
        let link = ApiStateLink { peers: peers.iter().map(peer).collect(), ..ApiStateLink::default() };
        let private = [("wg0".parse().unwrap(), SecretKey::clamped([9; 32]))].into();
        Facts {
            keys: Arc::new(Keys { private, ..Keys::default() }),
            api_state: Arc::new(ApiState { links: [("wg0".parse().unwrap(), link)].into() }),
            ..Facts::default()
        }
    }

    #[test]
    fn revoked_peers_and_networks_go_and_new_ones_wait() {
        let config = config("");
        let then = facts(&[(1, &["10.1.0.0/16", "10.11.0.0/16"]), (2, &["10.2.0.0/16"]), (7, &[])]);
        let last = derive(&config, &then, &Desired::default()).unwrap();
        let now = facts(&[(1, &["10.1.0.0/16", "10.12.0.0/16"]), (3, &["10.3.0.0/16"])]);
        let left = withdraw(&last, &then, &now, &config);
        let peers = &left.links[&"wg0".parse::<IfName>().unwrap()].peers;
        let keys: Vec<u8> = peers.keys().map(|k| k.0[0]).collect();
        assert_eq!((keys, left.generation), (vec![1, 7], last.generation + 1));
        assert_eq!(peers[&PublicKey([1; 32])].allowed_ips, ["10.1.0.0/16".parse().unwrap()].into());
        assert_eq!(withdraw(&left, &now, &now, &config), left, "nothing more to withdraw");
    }

    #[test]
    fn revoked_grant_removes_its_peer() {
        let config = config("access = \"nft\"");
        let admitted = Arc::new(Admitted([("n7".parse().unwrap(), PublicKey([7; 32]))].into()));
        let then = Facts { admitted, ..facts(&[]) };
        let last = derive(&config, &then, &Desired::default()).unwrap();
        let left = withdraw(&last, &then, &facts(&[]), &config);
        assert!(last.links.values().all(|l| l.peers.len() == 1) && left.links.values().all(|l| l.peers.is_empty()));
    }
}
