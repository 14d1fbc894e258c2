//! Addresses of configured peers whose endpoint is a host name: when to resolve them, which address to keep.
use spoke_config::Config;
use spoke_model::address::HostPort;
use spoke_model::backoff::{Backoff, JitterRng};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

/// Interval of look-ups after success. About 350 bytes a name each time: 0.1 MB a day.
pub const REFRESH: Duration = Duration::from_secs(300);
/// First wait after a failed look-up; doubles up to [`RETRY_MAX`], jittered by half.
const RETRY_MIN: Duration = Duration::from_secs(2);
/// Longest wait after a failed look-up.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// The host names among the endpoints of the configured peers.
pub fn wanted(config: &Config) -> BTreeSet<HostPort> {
    let endpoints = config.interfaces.iter().flat_map(|i| &i.peers).filter_map(|p| p.endpoint.clone());
    endpoints.filter(|e| e.literal().is_none()).collect()
}

/// Last good address of each name, and the time of the next look-up.
#[derive(Clone, Debug)]
pub struct Names {
    known: BTreeMap<HostPort, SocketAddr>,
    backoff: Backoff,
    rng: JitterRng,
}

impl Names {
    /// No address known.
    pub const fn new(seed: u64) -> Self {
        Self { known: BTreeMap::new(), backoff: Backoff::new(RETRY_MIN, RETRY_MAX), rng: JitterRng::new(seed) }
    }

    /// Records one round of look-ups; returns the wait before the next. `None`: the look-up failed and the known
    /// address stays. A name keeps its address while that is among the results: resolvers rotate them, and an endpoint
    /// must not flap.
    pub fn record(&mut self, round: impl IntoIterator<Item = (HostPort, Option<Vec<SocketAddr>>)>) -> Duration {
        let mut failed = false;
        for (name, addresses) in round {
            let addresses = addresses.unwrap_or_default();
            match addresses.first() {
                None => failed = true,
                Some(first) => {
                    let kept = self.known.entry(name).or_insert(*first);
                    if !addresses.contains(kept) {
                        *kept = *first;
                    }
                }
            }
        }
        if failed {
            return self.backoff.fail(&mut self.rng);
        }
        self.backoff.reset();
        // Jittered, so that a fleet powered on together does not resolve in step.
        self.rng.jitter(REFRESH)
    }

    /// Last good addresses by name.
    pub const fn known(&self) -> &BTreeMap<HostPort, SocketAddr> {
        &self.known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_look_up_keeps_the_last_address() {
        let name: HostPort = "peer.example.net:51820".parse().unwrap();
        let a = |n: u8| SocketAddr::from(([192, 0, 2, n], 51820));
        let mut names = Names::new(1);
        let wait = names.record([(name.clone(), None)]);
        assert!(names.known().is_empty() && wait <= RETRY_MIN * 3 / 2, "{wait:?}");
        let wait = names.record([(name.clone(), Some(vec![a(1), a(2)]))]);
        assert!(wait >= REFRESH / 2, "{wait:?}");
        for round in [None, Some(vec![]), Some(vec![a(2), a(1)])] {
            names.record([(name.clone(), round)]);
            assert_eq!(names.known()[&name], a(1));
        }
        names.record([(name.clone(), Some(vec![a(3)]))]);
        assert_eq!(names.known()[&name], a(3), "the address of the name has changed");
    }

    #[test]
    fn only_host_names_are_resolved() {
        let key = |n| spoke_model::key::SecretKey::from_bytes([n; 32]).public();
        let text = format!(
            "[[interface]]\nname = \"wg0\"\n[[interface.peer]]\npublic_key = \"{}\"\nendpoint = \"peer.example.net:1\"\n[[interface.peer]]\npublic_key = \"{}\"\nendpoint = \"192.0.2.1:1\"\n",
            key(1),
            key(2)
        );
        let config = Config::from_text(Some(("test", &text)), []).unwrap();
        assert_eq!(wanted(&config).iter().map(ToString::to_string).collect::<Vec<_>>(), ["peer.example.net:1"]);
    }
}
