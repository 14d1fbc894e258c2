//! Rate limit: a bounded table of token buckets, one per source network.
use spoke_model::time::Boot;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// Sources tracked; the one with the fullest bucket is dropped first.
const MAX_SOURCES: usize = 1024;

/// Proven sources remembered.
const MAX_PROVEN: usize = 64;
/// How long a proof counts.
const PROVEN_FOR: Duration = Duration::from_secs(24 * 3600);

/// Allowance of one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Sustained requests per second; at least 1.
    pub per_second: u32,
    /// Burst size; at least 1.
    pub burst: u32,
}

/// Buckets by source. An IPv6 source is its /64, since one host has all of its addresses.
#[derive(Debug)]
pub struct RateLimit {
    rate: Rate,
    buckets: BTreeMap<IpAddr, Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// When the bucket is full again; encodes its level.
    full_at: Boot,
}

impl RateLimit {
    /// Empty table.
    pub const fn new(rate: Rate) -> Self {
        Self { rate, buckets: BTreeMap::new() }
    }

    /// Takes one token of the source. `Err`: time until the next one.
    pub fn take(&mut self, now: Boot, source: IpAddr) -> Result<(), Duration> {
        let one = Duration::from_secs(1) / self.rate.per_second.max(1);
        let whole = one * self.rate.burst.max(1);
        let source = network(source);
        let full_at = self.buckets.get(&source).map_or(now, |b| b.full_at.max(now)) + one;
        let missing = full_at.since(now);
        if missing > whole {
            return Err(missing - whole);
        }
        if self.buckets.len() >= MAX_SOURCES && !self.buckets.contains_key(&source) {
            self.forget(now);
        }
        self.buckets.insert(source, Bucket { full_at });
        Ok(())
    }

    /// Drops full buckets, or else the fullest one.
    fn forget(&mut self, now: Boot) {
        self.buckets.retain(|_, b| b.full_at > now);
        if self.buckets.len() >= MAX_SOURCES
            && let Some(source) = self.buckets.iter().min_by_key(|(_, b)| b.full_at).map(|(s, _)| *s)
        {
            self.buckets.remove(&source);
        }
    }

    /// Number of sources tracked.
    pub fn sources(&self) -> usize {
        self.buckets.len()
    }
}

/// Source networks that have proved lately that they may make requests; the oldest makes room.
#[derive(Debug, Default)]
pub struct Proven(BTreeMap<IpAddr, Boot>);

impl Proven {
    /// Remembers a source.
    pub fn insert(&mut self, network: IpAddr, now: Boot) {
        if self.0.len() >= MAX_PROVEN
            && !self.0.contains_key(&network)
            && let Some(oldest) = self.0.iter().min_by_key(|(_, at)| **at).map(|(source, _)| *source)
        {
            self.0.remove(&oldest);
        }
        self.0.insert(network, now);
    }

    /// Whether it was proved within the last day.
    pub fn contains(&self, network: IpAddr, now: Boot) -> bool {
        self.0.get(&network).is_some_and(|at| now.since(*at) <= PROVEN_FOR)
    }
}

/// The source network: an IPv4 address or an IPv6 /64.
pub fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn reported_wait_is_exact(
            gaps in proptest::collection::vec(0u64..400, 1..200), per_second in 1u32..50, burst in 1u32..20,
        ) {
            let mut limit = RateLimit::new(Rate { per_second, burst });
            let source = IpAddr::from([192, 0, 2, 1]);
            let mut now = Boot::from_secs(100);
            for gap in gaps {
                now += Duration::from_millis(gap);
                if let Err(wait) = limit.take(now, source) {
                    let sooner = wait.saturating_sub(Duration::from_nanos(1));
                    prop_assert!(limit.take(now + sooner, source).is_err());
                    now += wait;
                    prop_assert!(limit.take(now, source).is_ok());
                }
            }
        }

    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        #[test]
        fn flood_of_sources_stays_bounded(sources in proptest::collection::vec(any::<u64>(), 1500..3000)) {
            let mut limit = RateLimit::new(Rate { per_second: 1, burst: 2 });
            for s in sources {
                let v6 = Ipv6Addr::from(u128::from(s) << 64 | 1);
                let _ = limit.take(Boot::from_secs(1), v6.into());
            }
            prop_assert!(limit.sources() <= MAX_SOURCES);
        }
    }

    #[test]
    fn sustained_rate_and_burst_hold() {
        let mut limit = RateLimit::new(Rate { per_second: 10, burst: 5 });
        let source = IpAddr::from([192, 0, 2, 1]);
        let mut passed = 0;
        for ms in 0..10_000 {
            passed += u32::from(limit.take(Boot::from_duration(Duration::from_millis(ms)), source).is_ok());
        }
        assert!((104..=105).contains(&passed), "{passed} requests in 10 s at 10 a second and a burst of 5");
    }

    #[test]
    fn proof_counts_for_a_day_and_for_few_sources() {
        let (mut proven, source) = (Proven::default(), |n: u8| IpAddr::from([192, 0, 2, n]));
        proven.insert(source(0), Boot::from_secs(10));
        assert!(proven.contains(source(0), Boot::from_secs(10 + 86_400)));
        assert!(!proven.contains(source(0), Boot::from_secs(11 + 86_400)));
        for n in 1..=64 {
            proven.insert(source(n), Boot::from_secs(11));
        }
        assert!(!proven.contains(source(0), Boot::from_secs(11)) && proven.contains(source(64), Boot::from_secs(11)));
    }

    #[test]
    fn addresses_of_one_network_share_a_bucket() {
        let mut limit = RateLimit::new(Rate { per_second: 1, burst: 1 });
        assert!(limit.take(Boot::from_secs(1), "2001:db8::1".parse().unwrap()).is_ok());
        assert!(limit.take(Boot::from_secs(1), "2001:db8::2".parse().unwrap()).is_err());
        assert!(limit.take(Boot::from_secs(1), "2001:db8:0:1::1".parse().unwrap()).is_ok());
    }
}
