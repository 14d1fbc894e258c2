//! Rates, by two observations.
use super::facts::Details;
use spoke_model::interface_name::IfName;
use spoke_model::time::Boot;
use spoke_net::state::Observed;
use std::time::Duration;

/// Bits a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Received.
    pub rx: u64,
    /// Sent.
    pub tx: u64,
}

/// The rates between two counts of bytes received and sent. A counter that fell belongs to a new interface or peer.
pub fn rates(now: (u64, u64), before: (u64, u64), time: Duration) -> Rates {
    let rate = |now: u64, before: u64| {
        let bits = now.saturating_sub(before).saturating_mul(8000);
        bits / u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
    };
    Rates { rx: rate(now.0, before.0), tx: rate(now.1, before.1) }
}

/// The earlier observation with the time since then, if there is one.
pub fn earlier(details: &Details) -> Option<(&Observed, Duration)> {
    let before = details.before.as_deref()?;
    let time = details.observed.at.since(before.at);
    // The first observation of a process has nothing before it.
    (!time.is_zero() && before.at != Boot::default()).then_some((before, time))
}

/// The rates of an interface, or of all.
pub fn total(details: &Details, only: Option<&IfName>) -> Option<Rates> {
    let (before, time) = earlier(details)?;
    let sum = |o: &Observed| {
        let of = o.links.iter().filter(|(name, _)| only.is_none_or(|n| n == *name)).map(|(_, l)| l.traffic);
        of.fold((0, 0), |a: (u64, u64), b| (a.0 + b.0, a.1 + b.1))
    };
    Some(rates(sum(&details.observed), sum(before), time))
}
