//! Rate limits by address, by node and by enrolment token, and counts of invalid tokens by address. Pure but for governor's
//! clock.
//!
//! No limit that an unauthenticated client can exhaust applies to a valid token or proof, except the one on all requests of an address.
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use spoke_model::node_id::NodeId;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The configured limits: requests per second, each with a burst of four seconds' worth, and invalid tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Requests of any kind from one address, which many nodes behind a NAT may share.
    pub address: NonZeroU32,
    /// Enrolments with one valid token.
    pub enrol: NonZeroU32,
    /// Requests of one node, after its proof was verified.
    pub node: NonZeroU32,
    /// Invalid tokens of any kind from one address in a minute; beyond that, further invalid ones are answered as too many.
    pub invalid_tokens: NonZeroU32,
}

impl Default for Rates {
    fn default() -> Self {
        let n = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        Self { address: n(200), enrol: n(5), node: n(5), invalid_tokens: n(20) }
    }
}

/// A limit is exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many requests: wait a minute")]
pub struct LimitExceeded;

/// The limiters.
#[derive(Debug)]
pub struct Limits {
    address: DefaultKeyedRateLimiter<IpAddr>,
    enrol: DefaultKeyedRateLimiter<String>,
    node: DefaultKeyedRateLimiter<NodeId>,
    invalid_tokens: InvalidTokens,
}

fn quota(rate: NonZeroU32) -> Quota {
    Quota::per_second(rate).allow_burst(rate.saturating_mul(NonZeroU32::MIN.saturating_add(3)))
}

impl Limits {
    /// Limiters of these rates.
    pub fn new(rates: Rates) -> Self {
        Self {
            address: RateLimiter::keyed(quota(rates.address)),
            enrol: RateLimiter::keyed(quota(rates.enrol)),
            node: RateLimiter::keyed(quota(rates.node)),
            invalid_tokens: InvalidTokens { allowed: rates.invalid_tokens.get(), clients: Mutex::default() },
        }
    }

    /// Counts a request from `address`.
    pub fn check_address(&self, address: IpAddr) -> Result<(), LimitExceeded> {
        self.address.check_key(&client(address)).map_err(|_| LimitExceeded)
    }

    /// Counts an enrolment with the valid token `id`.
    pub fn check_enrolment(&self, id: &String) -> Result<(), LimitExceeded> {
        self.enrol.check_key(id).map_err(|_| LimitExceeded)
    }

    /// Counts a request of `node`.
    pub fn check_node(&self, node: &NodeId) -> Result<(), LimitExceeded> {
        self.node.check_key(node).map_err(|_| LimitExceeded)
    }

    /// Counts an invalid token from `address`; an error beyond the limit.
    pub fn count_invalid_token(&self, address: IpAddr, now_ms: i64) -> Result<(), LimitExceeded> {
        if self.invalid_tokens.count(client(address), now_ms) { Ok(()) } else { Err(LimitExceeded) }
    }

    /// Addresses that sent invalid tokens since the last call, with how many.
    pub fn take_invalid_tokens(&self, now_ms: i64) -> Vec<(IpAddr, u32)> {
        self.invalid_tokens.take(now_ms)
    }

    /// Drops the state of idle clients.
    pub fn prune(&self) {
        self.address.retain_recent();
        self.enrol.retain_recent();
        self.node.retain_recent();
    }
}

/// A minute, in milliseconds.
const MINUTE_MS: u64 = 60_000;
/// Clients remembered at most. A guesser with more addresses still faces tokens of 256 bits.
const MAX_CLIENTS: usize = 100_000;

#[derive(Debug)]
struct InvalidTokens {
    allowed: u32,
    clients: Mutex<HashMap<IpAddr, Count>>,
}

#[derive(Clone, Copy, Debug)]
struct Count {
    since_ms: i64,
    count: u32,
    unreported: u32,
}

impl Count {
    /// Whether its minute has passed, or the clock was set back: a client must not wait until the clock has caught up.
    const fn has_expired(&self, now_ms: i64) -> bool {
        now_ms.abs_diff(self.since_ms) >= MINUTE_MS
    }
}

impl InvalidTokens {
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Count>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is within the limit.
    fn count(&self, address: IpAddr, now_ms: i64) -> bool {
        let mut clients = self.lock();
        if clients.len() >= MAX_CLIENTS {
            clients.clear();
        }
        let entry = clients.entry(address).or_insert(Count { since_ms: now_ms, count: 0, unreported: 0 });
        if entry.has_expired(now_ms) {
            (entry.since_ms, entry.count) = (now_ms, 0);
        }
        entry.count = entry.count.saturating_add(1);
        entry.unreported = entry.unreported.saturating_add(1);
        entry.count <= self.allowed
    }

    fn take(&self, now_ms: i64) -> Vec<(IpAddr, u32)> {
        let mut clients = self.lock();
        let counts = clients
            .iter_mut()
            .filter(|(_, c)| c.unreported > 0)
            .map(|(address, c)| (*address, std::mem::take(&mut c.unreported)))
            .collect();
        clients.retain(|_, c| !c.has_expired(now_ms));
        counts
    }
}

/// The key of a client: an IPv4 address, or an IPv6 /64, which one customer controls.
pub fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(a) => a.into(),
        IpAddr::V6(a) => Ipv6Addr::from_bits(a.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_tokens_are_limited_for_a_minute() {
        let n = |n| NonZeroU32::new(n).unwrap();
        let limits = Limits::new(Rates { invalid_tokens: n(3), ..Rates::default() });
        let at = |a: &str| a.parse::<IpAddr>().unwrap();
        let guess = |a: &str, now| limits.count_invalid_token(at(a), now).is_ok();
        for i in 0..3 {
            assert!(guess("2001:db8::1", i));
        }
        assert!(!guess("2001:db8::ffff:2", 59_999), "the same /64");
        assert_eq!(limits.take_invalid_tokens(1000), [(at("2001:db8::"), 4)]);
        assert!(guess("192.0.2.1", 3), "another client");
        assert!(!guess("2001:db8::1", 2000), "a report does not reset the count");
        assert!(guess("2001:db8::1", 60_000), "a minute later");
        assert!(guess("2001:db8::1", -60_000), "the clock was set back");
        assert_eq!(client(at("::ffff:192.0.2.1")), at("192.0.2.1"));
    }
}
