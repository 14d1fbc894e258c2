//! A key that cannot be read costs its own peer or interface, and nothing that the kernel has.
use crate::derive::{Facts, Keys, derive};
use crate::plan::{Step, plan};
use crate::state::{Desired, Memory, Observed, ObservedLink, ObservedPeer};
use spoke_config::Config;
use spoke_config::effective::Effective;
use spoke_model::key::{PresharedKey, PublicKey, SecretKey};
use spoke_model::key_source::KeySource;
use std::sync::Arc;

const KEYED: PublicKey = PublicKey([2; 32]);
const OPEN: PublicKey = PublicKey([3; 32]);

/// Two interfaces; the first with a peer that has a preshared key and one that has none.
fn config() -> Effective {
    let text = format!(
        "[[interface]]\nname = \"wg0\"\naddresses = [\"10.9.0.1/24\"]\n\
         [[interface.peer]]\npublic_key = \"{KEYED}\"\npreshared_key = \"file:/psk\"\nallowed_ips = [\"10.9.0.2/32\", \"10.20.0.0/16\"]\nendpoint = \"192.0.2.2:51820\"\n\
         [[interface.peer]]\npublic_key = \"{OPEN}\"\nallowed_ips = [\"10.9.0.3/32\"]\n\
         [[interface]]\nname = \"wg1\"\nprivate_key = \"file:/wg1.key\"\naddresses = [\"10.10.0.1/24\"]\n"
    );
    Effective::of(Arc::new(Config::from_text(Some(("test", &text)), []).unwrap()))
}

fn desired(keys: Keys) -> Desired {
    derive(&config(), &Facts { keys: Arc::new(keys), ..Facts::default() }, &Desired::default()).unwrap()
}

fn keys(unreadable: &[&str]) -> Keys {
    let secret = |n| SecretKey::clamped([n; 32]);
    let psk = KeySource::File("/psk".into());
    let mut keys = Keys {
        private: [("wg0".parse().unwrap(), secret(1)), ("wg1".parse().unwrap(), secret(2))].into(),
        preshared: [(psk, PresharedKey::from_bytes([7; 32]))].into(),
        ..Keys::default()
    };
    for path in unreadable {
        let source = KeySource::File(path.into());
        keys.preshared.remove(&source);
        if *path == "/wg1.key" {
            keys.private.remove(&"wg1".parse().unwrap());
        }
        keys.unreadable.insert(source, "it is missing".into());
    }
    keys
}

/// What the kernel has after the steps for `desired`.
fn reached(desired: &Desired) -> Observed {
    let mut observed = Observed::default();
    for (name, want) in &desired.links {
        let peer = |p: &crate::state::Peer| ObservedPeer {
            preshared_key: p.preshared_key.clone(),
            allowed_ips: p.allowed_ips.clone(),
            endpoint: p.endpoint.map(|e| e.addr),
            ..ObservedPeer::default()
        };
        let link = ObservedLink {
            wireguard: true,
            ours: true,
            up: true,
            mtu: want.mtu,
            public_key: Some(want.private_key.public()),
            addresses: want.addresses.clone(),
            routes: want.routes.clone(),
            peers: want.peers.iter().map(|(k, p)| (*k, peer(p))).collect(),
            ..ObservedLink::default()
        };
        observed.links.insert(name.clone(), link);
    }
    observed
}

#[test]
fn peer_is_never_set_up_without_its_preshared_key() {
    let want = desired(keys(&["/psk"]));
    let steps = plan(&want, &Observed::default(), &Memory::default()).steps;
    let set: Vec<_> = steps.iter().filter(|s| matches!(s, Step::SetPeer { .. })).filter_map(Step::peer).collect();
    assert_eq!(set, [&OPEN]);
    assert!(steps.iter().any(|s| matches!(s, Step::CreateLink { link, .. } if link.as_str() == "wg1")), "{steps:?}");
}

#[test]
fn known_peer_keeps_the_preshared_key_of_the_kernel() {
    let observed = reached(&desired(keys(&[])));
    let mut want = desired(keys(&["/psk"]));
    assert_eq!(plan(&want, &observed, &Memory::default()).steps, [], "left as it is");
    assert!(
        !crate::drift::link(
            &want.links[&"wg0".parse().unwrap()],
            observed.links.get(&"wg0".parse().unwrap()),
            &crate::drift::Names::default()
        )
        .has_drift
    );

    // The interface is not recreated: the peer could not be.
    want.links.get_mut(&"wg0".parse().unwrap()).unwrap().rebuild = 1;
    assert_eq!(plan(&want, &observed, &Memory::default()).steps, []);

    let mut open = observed.clone();
    open.links.get_mut(&"wg0".parse().unwrap()).unwrap().peers.get_mut(&KEYED).unwrap().preshared_key = None;
    let steps = plan(&want, &open, &Memory::default()).steps;
    assert!(matches!(&steps[..], [Step::RemovePeer { peer: KEYED, .. }]), "{steps:?}");
}

#[test]
fn interface_without_its_private_key_is_left_as_it_is() {
    let observed = reached(&desired(keys(&[])));
    let want = desired(keys(&["/wg1.key"]));
    assert_eq!(want.key_faults.len(), 1);
    assert_eq!(plan(&want, &observed, &Memory::default()).steps, []);
    let steps = plan(&want, &Observed::default(), &Memory::default()).steps;
    assert!(!steps.is_empty() && steps.iter().all(|s| s.link().as_str() == "wg0"), "{steps:?}");
}
