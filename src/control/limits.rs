//! How often one address or one node may ask.
use super::api::App;
use super::api::answer::Failure;
use crate::enroll::wire::ProblemCode;
use crate::node::NodeId;
use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;

/// Requests per second, each with a burst of four seconds' worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Of any kind from one address. Many nodes may share one behind a NAT.
    pub address: NonZeroU32,
    /// Enrolments from one address: guessing a token is hopeless anyway, and shall be loud and slow.
    pub enrol: NonZeroU32,
    /// From one node that has proved who it is.
    pub node: NonZeroU32,
}

impl Default for Rates {
    fn default() -> Self {
        let n = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        Self { address: n(200), enrol: n(5), node: n(5) }
    }
}

/// The limiters.
#[derive(Debug)]
pub struct Limits {
    address: DefaultKeyedRateLimiter<IpAddr>,
    enrol: DefaultKeyedRateLimiter<IpAddr>,
    node: DefaultKeyedRateLimiter<NodeId>,
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
        }
    }

    /// An enrolment from `address`.
    pub fn enrol(&self, address: IpAddr) -> Result<(), Failure> {
        self.enrol.check_key(&client(address)).map_err(|_| limited())
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

fn limited() -> Failure {
    Failure::new(ProblemCode::RateLimited, "too many requests: wait a second")
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
