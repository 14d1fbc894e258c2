//! The time of each handshake on the boot clock.
//!
//! The kernel stamps a handshake with the wall clock, so its age is wrong once the clock was set. A stamp that changed between
//! two observations is no older than the earlier one.
use super::state::Observed;
use spoke_model::interface_name::IfName;
use spoke_model::key::PublicKey;
use spoke_model::time::{Boot, Wall};
use std::collections::BTreeMap;
use std::time::Duration;

/// Times of the handshakes, where they can be known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handshakes {
    observed_at: Option<Boot>,
    seen: BTreeMap<(IfName, PublicKey), (Duration, Option<Boot>)>,
}

impl Handshakes {
    /// Records an observation made at `now`, at the wall clock's `wall`.
    pub fn record(&mut self, observed: &Observed, now: Boot, wall: Wall) {
        let mut seen = BTreeMap::new();
        for (link, have) in &observed.links {
            for (key, peer) in &have.peers {
                let Some(stamp) = peer.counters.last_handshake else { continue };
                let id = (link.clone(), *key);
                let at = match self.seen.get(&id) {
                    Some((old, Some(at))) if *old == stamp => Some(*at),
                    // Its age was not plausible by the wall clock of then, which may have been set since.
                    Some((old, None)) if *old == stamp => by_wall(stamp, now, wall),
                    _ => self.estimate(stamp, now, wall),
                };
                seen.insert(id, (stamp, at));
            }
        }
        self.seen = seen;
        self.observed_at = Some(now);
    }

    fn estimate(&self, stamp: Duration, now: Boot, wall: Wall) -> Option<Boot> {
        match self.observed_at {
            // Changed since the last observation: at most that old, whatever the wall clock.
            Some(before) => {
                let age = wall_age(stamp, wall).unwrap_or_default();
                Some(now.saturating_sub(age.min(now.since(before))))
            }
            None => by_wall(stamp, now, wall),
        }
    }

    /// When `peer` on `link` last completed a handshake; `None`: never or unknown.
    pub fn at(&self, link: &IfName, peer: &PublicKey) -> Option<Boot> {
        self.seen.get(&(link.clone(), *peer)).and_then(|(_, at)| *at)
    }
}

/// The age of a stamp by the wall clock, whose fraction of a second is not known. `None`: the stamp is in the future.
fn wall_age(stamp: Duration, wall: Wall) -> Option<Duration> {
    wall.secs().checked_sub(stamp.as_secs()).map(|_| Duration::from_secs(wall.secs()).saturating_sub(stamp))
}

/// The time of a handshake of which only the wall clock tells; `None`: the stamp is in the future or older than the boot.
fn by_wall(stamp: Duration, now: Boot, wall: Wall) -> Option<Boot> {
    wall_age(stamp, wall).filter(|age| *age <= now.since_boot()).map(|age| now.saturating_sub(age))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Counters, ObservedLink, ObservedPeer};
    use proptest::prelude::*;

    fn seen(stamp: Option<u64>) -> (Observed, IfName, PublicKey) {
        seen_at(stamp.map(Duration::from_secs))
    }

    fn seen_at(last_handshake: Option<Duration>) -> (Observed, IfName, PublicKey) {
        let (name, key): (IfName, _) = ("wg0".parse().unwrap(), PublicKey([1; 32]));
        let counters = Counters { last_handshake, ..Counters::default() };
        let peer = ObservedPeer { counters, ..ObservedPeer::default() };
        let link = ObservedLink { peers: [(key, peer)].into(), ..ObservedLink::default() };
        (Observed { links: [(name.clone(), link)].into(), ..Observed::default() }, name, key)
    }

    #[test]
    fn handshake_does_not_age_when_the_clock_is_set() {
        let mut ages = Handshakes::default();
        let (none, name, key) = seen(None);
        ages.record(&none, Boot::from_secs(10), Wall(100));
        let (shaken, ..) = seen(Some(105));
        ages.record(&shaken, Boot::from_secs(15), Wall(105));
        assert_eq!(ages.at(&name, &key), Some(Boot::from_secs(15)));
        ages.record(&shaken, Boot::from_secs(20), Wall(1_700_000_000));
        assert_eq!(ages.at(&name, &key), Some(Boot::from_secs(15)));
    }

    #[test]
    fn handshake_within_the_present_second_is_known() {
        let (shaken, name, key) = seen_at(Some(Duration::new(100, 999_000_000)));
        let mut ages = Handshakes::default();
        ages.record(&shaken, Boot::from_secs(50), Wall(100));
        assert_eq!(ages.at(&name, &key), Some(Boot::from_secs(50)));
    }

    #[test]
    fn unknown_age_is_known_once_the_clock_is_right() {
        let mut ages = Handshakes::default();
        let (shaken, name, key) = seen(Some(1_700_000_000));
        ages.record(&shaken, Boot::from_secs(50), Wall(90));
        assert_eq!(ages.at(&name, &key), None, "the clock is in the past");
        ages.record(&shaken, Boot::from_secs(60), Wall(1_700_000_020));
        assert_eq!(ages.at(&name, &key), Some(Boot::from_secs(40)));
    }

    proptest! {
        #[test]
        fn changed_stamp_is_newer_than_last_observation(stamp in 1u64..1 << 40, wall in 0u64..1 << 40, gap in 0u64..1000) {
            let mut ages = Handshakes::default();
            let (none, name, key) = seen(None);
            ages.record(&none, Boot::from_secs(5000), Wall(wall));
            let (shaken, ..) = seen(Some(stamp));
            let now = Boot::from_secs(5000 + gap);
            ages.record(&shaken, now, Wall(wall));
            let at = ages.at(&name, &key).unwrap();
            prop_assert!(at <= now && now.since(at) <= Duration::from_secs(gap));
        }
    }
}
