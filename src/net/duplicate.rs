//! One key that two devices use: the endpoint of their peer goes to and fro between two addresses, since WireGuard sends to
//! the source of the last authentic packet.
use super::state::{Desired, Observed};
use spoke_model::interface_name::IfName;
use spoke_model::key::PublicKey;
use spoke_model::time::Boot;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// Returns to the endpoint before that a device with one WAN does not make.
const RETURNS: u32 = 3;
/// Longest time between two of them.
const WINDOW: Duration = Duration::from_secs(600);

/// The peers whose endpoints have changed lately.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Duplicates(BTreeMap<(IfName, PublicKey), Endpoints>);

/// The endpoints of one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// The present one and the one before.
    pub both: [SocketAddr; 2],
    /// The first change.
    pub since: Boot,
    changed: Boot,
    returns: u32,
}

impl Duplicates {
    /// Takes two consecutive observations, the later one of `now`. A peer whose endpoint we set is left out.
    pub fn observe(&mut self, desired: &Desired, before: &Observed, after: &Observed, now: Boot) {
        self.0.retain(|_, e| now.since(e.changed) < WINDOW);
        for (name, link) in &after.links {
            let (Some(want), Some(was)) = (desired.links.get(name), before.links.get(name)) else { continue };
            for (key, peer) in &link.peers {
                let old = was.peers.get(key).and_then(|p| p.endpoint);
                let (Some(new), Some(old)) = (peer.endpoint, old) else { continue };
                if new == old || want.peers.get(key).is_none_or(|p| p.endpoint.is_some()) {
                    continue;
                }
                let known = self.0.entry((name.clone(), *key)).or_insert(Endpoints {
                    both: [old, old],
                    since: now,
                    changed: now,
                    returns: 0,
                });
                if known.both == [old, new] {
                    known.returns += 1;
                } else {
                    (known.since, known.returns) = (now, 0);
                }
                (known.both, known.changed) = ([new, old], now);
            }
        }
    }

    /// The peers that two devices seem to be.
    pub fn found(&self) -> impl Iterator<Item = (&IfName, &PublicKey, &Endpoints)> {
        self.0.iter().filter(|(_, e)| e.returns >= RETURNS).map(|((link, key), e)| (link, key, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Endpoint, ObservedLink, ObservedPeer, Peer};

    const KEY: PublicKey = PublicKey([7; 32]);

    fn wg0() -> IfName {
        "wg0".parse().unwrap()
    }

    fn desired(endpoint: Option<Endpoint>) -> Desired {
        let want = crate::state::Link {
            private_key: spoke_model::key::SecretKey::clamped([1; 32]),
            listen_port: crate::state::ListenPort::Fixed(51820),
            port_fallback: false,
            fwmark: 0,
            mtu: 1280,
            defaults: (false, false),
            addresses: Default::default(),
            peers: [(KEY, Peer { endpoint, ..Peer::default() })].into(),
            routes: Default::default(),
            up: true,
            policy: spoke_config::interface::DriftPolicy::Enforce,
            remove_unknown: None,
            dns: Vec::new(),
            rebuild: 0,
        };
        Desired { links: [(wg0(), want)].into(), ..Desired::default() }
    }

    fn at(endpoint: Option<&str>) -> Observed {
        let peer = ObservedPeer { endpoint: endpoint.map(|e| e.parse().unwrap()), ..ObservedPeer::default() };
        let link = ObservedLink { wireguard: true, peers: [(KEY, peer)].into(), ..ObservedLink::default() };
        Observed { links: [(wg0(), link)].into(), ..Observed::default() }
    }

    /// Whether these endpoints, one each 30 s, look like two devices.
    fn looks_doubled(desired: &Desired, endpoints: &[Option<&str>]) -> bool {
        let mut all = Duplicates::default();
        for (i, pair) in (1..).zip(endpoints.windows(2)) {
            all.observe(desired, &at(pair[0]), &at(pair[1]), Boot::from_secs(30 * i));
        }
        all.found().count() == 1
    }

    const A: Option<&str> = Some("192.0.2.7:1000");
    const B: Option<&str> = Some("198.51.100.9:2000");
    const C: Option<&str> = Some("203.0.113.5:3000");

    #[test]
    fn endpoint_that_goes_to_and_fro_is_two_devices() {
        let d = desired(None);
        assert!(looks_doubled(&d, &[A, B, A, B, A]));
        assert!(looks_doubled(&d, &[A, A, B, B, B, A, A, B, A, A]), "seen several times each");
        assert!(looks_doubled(&d, &[None, A, C, B, A, B, A, B]), "after a move");
    }

    #[test]
    fn roaming_device_is_one() {
        let d = desired(None);
        assert!(!looks_doubled(&d, &[A, B, A, B]), "a failover and its failback, once more");
        assert!(!looks_doubled(&d, &[A, B, C, A, B, C, A, B, C]), "ports of a NAT that changes them");
        assert!(!looks_doubled(&d, &[A, None, A, None, A, None, A]), "a peer that is recreated");
        let set = desired(Some(Endpoint { addr: "192.0.2.7:1000".parse().unwrap(), attempt: 0 }));
        assert!(!looks_doubled(&set, &[A, B, A, B, A, B]), "we set it ourselves");
    }

    #[test]
    fn two_devices_are_forgotten_when_one_is_gone() {
        let (d, mut all) = (desired(None), Duplicates::default());
        for (i, pair) in (1..).zip([A, B, A, B, A].windows(2)) {
            all.observe(&d, &at(pair[0]), &at(pair[1]), Boot::from_secs(30 * i));
        }
        let (_, _, found) = all.found().next().unwrap();
        assert_eq!((found.since, found.both.map(|e| e.port())), (Boot::from_secs(30), [1000, 2000]));
        all.observe(&d, &at(A), &at(A), Boot::from_secs(719));
        assert_eq!(all.found().count(), 1);
        all.observe(&d, &at(A), &at(A), Boot::from_secs(720));
        assert_eq!(all, Duplicates::default());
    }
}
