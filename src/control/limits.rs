//! How often one address or one node may ask, and how often an address may guess a token.
use super::api::App;
use super::api::answer::Failure;
use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use spoke_enroll::wire::ProblemCode;
use spoke_model::node_id::NodeId;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};

/// Requests per second, each with a burst of four seconds' worth; and guesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Of any kind from one address. Many nodes may share one behind a NAT.
    pub address: NonZeroU32,
    /// Enrolments from one address.
    pub enrol: NonZeroU32,
    /// From one node that has proved who it is.
    pub node: NonZeroU32,
    /// Tokens of any kind that were not valid, from one address in a minute; after so many, none is looked at.
    pub guesses: NonZeroU32,
}

impl Default for Rates {
    fn default() -> Self {
        let n = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        Self { address: n(200), enrol: n(5), node: n(5), guesses: n(20) }
    }
}

/// The limiters.
#[derive(Debug)]
pub struct Limits {
    address: DefaultKeyedRateLimiter<IpAddr>,
    enrol: DefaultKeyedRateLimiter<IpAddr>,
    node: DefaultKeyedRateLimiter<NodeId>,
    guesses: Guesses,
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
            guesses: Guesses { allowed: rates.guesses.get(), of: Mutex::default() },
        }
    }

    /// An enrolment from `address`.
    pub fn enrol(&self, address: IpAddr, now_ms: i64) -> Result<(), Failure> {
        self.may_guess(address, now_ms)?;
        self.enrol.check_key(&client(address)).map_err(|_| limited())
    }

    /// Whether a token from `address` is looked at.
    pub fn may_guess(&self, address: IpAddr, now_ms: i64) -> Result<(), Failure> {
        if self.guesses.allows(client(address), now_ms) { Ok(()) } else { Err(limited()) }
    }

    /// A token from `address` was not valid.
    pub fn guessed(&self, address: IpAddr, now_ms: i64) {
        self.guesses.count(client(address), now_ms);
    }

    /// Addresses that have guessed since the last call, with how often.
    pub fn guessers(&self, now_ms: i64) -> Vec<(IpAddr, u32)> {
        self.guesses.take(now_ms)
    }

    /// A request of `node`.
    pub fn node(&self, node: &NodeId) -> Result<(), Failure> {
        self.node.check_key(node).map_err(|_| limited())
    }

    /// Forgets whoever has not asked for a while.
    pub fn forget(&self) {
        self.address.retain_recent();
        self.enrol.retain_recent();
        self.node.retain_recent();
    }
}

/// A minute, in milliseconds.
const MINUTE: u64 = 60_000;
/// Addresses remembered at most; who guesses from more has many machines, and 256 bits to guess.
const MAX_GUESSERS: usize = 100_000;

#[derive(Debug)]
struct Guesses {
    allowed: u32,
    of: Mutex<HashMap<IpAddr, Guesser>>,
}

#[derive(Clone, Copy, Debug)]
struct Guesser {
    since_ms: i64,
    count: u32,
    untold: u32,
}

impl Guesser {
    /// Whether its minute has passed. A clock that was set back ends it too: nobody waits until it has caught up.
    const fn is_over(&self, now_ms: i64) -> bool {
        now_ms.abs_diff(self.since_ms) >= MINUTE
    }
}

impl Guesses {
    fn allows(&self, address: IpAddr, now_ms: i64) -> bool {
        let of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        of.get(&address).is_none_or(|g| g.count < self.allowed || g.is_over(now_ms))
    }

    fn count(&self, address: IpAddr, now_ms: i64) {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if of.len() >= MAX_GUESSERS {
            of.clear();
        }
        let guesser = of.entry(address).or_insert(Guesser { since_ms: now_ms, count: 0, untold: 0 });
        if guesser.is_over(now_ms) {
            (guesser.since_ms, guesser.count) = (now_ms, 0);
        }
        guesser.count = guesser.count.saturating_add(1);
        guesser.untold = guesser.untold.saturating_add(1);
    }

    fn take(&self, now_ms: i64) -> Vec<(IpAddr, u32)> {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let told =
            of.iter_mut().filter(|(_, g)| g.untold > 0).map(|(a, g)| (*a, std::mem::take(&mut g.untold))).collect();
        of.retain(|_, g| !g.is_over(now_ms));
        told
    }
}

fn limited() -> Failure {
    Failure::new(ProblemCode::RateLimited, "too many requests: wait a minute")
}

/// One customer's IPv6 network counts as one client.
fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(a) => a.into(),
        IpAddr::V6(a) => std::net::Ipv6Addr::from_bits(a.to_bits() >> 64 << 64).into(),
    }
}

/// Refuses an address that asks too often, before anything else is done for it.
pub async fn by_address(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Result<Response, Failure> {
    app.limits.address.check_key(&client(peer.ip())).map_err(|_| limited())?;
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_guesses_has_to_wait_and_is_told_of_once() {
        let n = |n| NonZeroU32::new(n).unwrap();
        let limits = Limits::new(Rates { guesses: n(3), ..Rates::default() });
        let at = |a: &str| a.parse::<IpAddr>().unwrap();
        for i in 0..3 {
            assert!(limits.may_guess(at("2001:db8::1"), i).is_ok());
            limits.guessed(at("2001:db8::1"), i);
        }
        assert!(limits.may_guess(at("2001:db8::ffff:2"), 59_999).is_err(), "the same customer's network");
        assert!(limits.may_guess(at("192.0.2.1"), 3).is_ok(), "somebody else");
        assert_eq!(limits.guessers(1000), [(at("2001:db8::"), 3)]);
        assert!(limits.guessers(1000).is_empty());
        assert!(limits.may_guess(at("2001:db8::1"), 2000).is_err(), "still, though it was told");
        assert!(limits.may_guess(at("2001:db8::1"), 60_000).is_ok(), "a minute later");
        assert!(limits.may_guess(at("2001:db8::1"), -60_000).is_ok(), "the clock was set back");
        assert_eq!(client(at("::ffff:192.0.2.1")), at("192.0.2.1"));
    }
}
