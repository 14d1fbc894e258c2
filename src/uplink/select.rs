//! Failing back: a better hub is watched beside the active one until it has been good for long enough.
//!
//! While a worse hub carries the tunnel, the better ones are tried in turn as a *standby* peer. A standby gets its own
//! tunnel address and nothing else (nothing at all if the active hub has the same one), so watching it moves no traffic.
//! ```text
//!        ┌────────────── no sign of life within the try ─────────────┐
//!        ▼                                                           │
//!   Rest ──due──► Resolving ──address──► Trying ──handshake (+echo)──┴─► Good ──failback_after──► ripe: the tunnel moves
//!     ▲               │ none                                              │
//!     └───────────────┴──────────────── handshake or echoes missing ──────┘
//! ```
//! A try costs a few hundred bytes and failed tries grow rarer, so a hub that is away for days costs little on a metered
//! link. When the active hub goes down the hysteresis is waived: a standby that is good takes over at once.
use super::liveness::Witness;
use ipnet::IpNet;
use spoke_config::uplink::Hub;
use spoke_model::backoff::{Backoff, JitterRng};
use spoke_model::time::Boot;
use spoke_model::wireguard::REJECT_AFTER_TIME;
use std::net::SocketAddr;
use std::time::Duration;

/// How long a try lasts: three of WireGuard's handshake initiations, which come five seconds apart.
pub const TRY: Duration = Duration::from_secs(15);
/// Rest after the first failed try; doubles.
pub const REST_MIN: Duration = Duration::from_secs(30);
/// Longest rest between two tries.
pub const REST_MAX: Duration = Duration::from_secs(600);
/// A handshake is renewed this much later than its life at the latest while keepalives flow.
const GRACE: Duration = Duration::from_secs(15);
/// Keepalive of a watched hub that has none of its own: something must make it shake hands.
const WATCH_KEEPALIVE: u16 = 25;

/// Where the watch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Rest { until: Boot },
    Resolving { hub: usize, deadline: Boot },
    Trying { hub: usize, address: SocketAddr, since: Boot, answered: bool },
    Good { hub: usize, address: SocketAddr, since: Boot, answered_at: Boot },
}

/// What the watch wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing.
    Nothing,
    /// Look up this hub.
    Resolve(usize),
    /// The standby is another one now, or none.
    Changed,
    /// Send an echo to this hub.
    Echo(usize),
    /// Move the tunnel to this hub.
    Move(usize, SocketAddr),
}

/// What the watch goes by.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How long good before the tunnel moves.
    pub failback_after: Duration,
    /// How often a good standby is asked for an echo.
    pub idle_probe: Duration,
    /// How long a look-up may take.
    pub resolve_timeout: Duration,
}

/// The watch over better hubs.
#[derive(Clone, Debug)]
pub struct Watch {
    phase: Phase,
    rest: Backoff,
    /// Whose turn the next try is, counted on for ever.
    turn: usize,
    echoed_at: Option<Boot>,
}

/// Whether a standby can be asked for an echo: its address must be routed to it and not to the active hub.
///
/// The same rule by which `derive` gives a standby its own address.
pub fn can_echo(active: &Hub, standby: &Hub) -> bool {
    let own = IpNet::from(standby.address);
    active.address != standby.address && !active.allowed_ips.iter().any(|c| c.0 == own)
}

/// The standby as a peer: a keepalive makes it shake hands without any traffic.
pub fn as_standby(hub: &Hub) -> Hub {
    Hub { keepalive: if hub.keepalive == 0 { WATCH_KEEPALIVE } else { hub.keepalive }, ..hub.clone() }
}

impl Watch {
    /// Begins with a rest: the better hub has just been found wanting.
    pub fn new(now: Boot, rng: &mut JitterRng) -> Self {
        let mut rest = Backoff::new(REST_MIN, REST_MAX);
        let until = now + rest.fail(rng);
        Self { phase: Phase::Rest { until }, rest, turn: 0, echoed_at: None }
    }

    /// The hub and address to have as a standby peer.
    pub const fn standby(&self) -> Option<(usize, SocketAddr)> {
        match self.phase {
            Phase::Rest { .. } | Phase::Resolving { .. } => None,
            Phase::Trying { hub, address, .. } | Phase::Good { hub, address, .. } => Some((hub, address)),
        }
    }

    /// The standby that is good right now, and since when.
    pub const fn good(&self) -> Option<(usize, SocketAddr, Boot)> {
        match self.phase {
            Phase::Rest { .. } | Phase::Resolving { .. } | Phase::Trying { .. } => None,
            Phase::Good { hub, address, since, .. } => Some((hub, address, since)),
        }
    }

    /// When [`Watch::tick`] has something to do at the latest.
    pub fn deadline(&self, rules: Rules) -> Boot {
        match self.phase {
            Phase::Rest { until } => until,
            Phase::Resolving { deadline, .. } => deadline,
            Phase::Trying { since, .. } => self.echo_due(Duration::from_secs(1), since).min(since + TRY),
            Phase::Good { since, .. } => self.echo_due(rules.idle_probe, since).min(since + rules.failback_after),
        }
    }

    fn echo_due(&self, every: Duration, since: Boot) -> Boot {
        self.echoed_at.map_or(since, |at| at + every)
    }

    /// Lets time pass. `active` is the index of the active hub; better ones have lower indices.
    pub fn tick(
        &mut self,
        now: Boot,
        active: usize,
        hubs: &[impl AsRef<Hub>],
        seen: &[Witness],
        rules: Rules,
        rng: &mut JitterRng,
    ) -> Wish {
        let echoes = |hub: usize| match (hubs.get(active), hubs.get(hub)) {
            (Some(a), Some(s)) => can_echo(a.as_ref(), s.as_ref()),
            (None, _) | (_, None) => false,
        };
        match self.phase {
            Phase::Rest { until } if now >= until && active > 0 => {
                let hub = self.turn % active;
                self.turn = self.turn.wrapping_add(1);
                self.phase = Phase::Resolving { hub, deadline: now + rules.resolve_timeout };
                Wish::Resolve(hub)
            }
            Phase::Rest { .. } => Wish::Nothing,
            Phase::Resolving { deadline, .. } if now >= deadline => self.give_up(now, rng),
            Phase::Resolving { .. } => Wish::Nothing,
            Phase::Trying { hub, address, since, answered } => {
                let shaken = seen.get(hub).and_then(Witness::handshake_at).is_some_and(|at| at >= since);
                if shaken && (answered || !echoes(hub)) {
                    self.phase = Phase::Good { hub, address, since: now, answered_at: now };
                    self.rest.reset();
                    return Wish::Nothing;
                }
                if now >= since + TRY {
                    return self.give_up(now, rng);
                }
                self.echo(now, hub, Duration::from_secs(1), since, echoes(hub))
            }
            Phase::Good { hub, address, since, answered_at } => {
                let shaken_at = seen.get(hub).and_then(Witness::handshake_at);
                let lapsed = shaken_at.is_none_or(|at| now.since(at) > REJECT_AFTER_TIME + GRACE);
                let silent = echoes(hub) && now.since(answered_at) > rules.idle_probe.saturating_mul(2);
                if lapsed || silent {
                    return self.give_up(now, rng);
                }
                if now >= since + rules.failback_after {
                    return Wish::Move(hub, address);
                }
                self.echo(now, hub, rules.idle_probe, since, echoes(hub))
            }
        }
    }

    fn echo(&mut self, now: Boot, hub: usize, every: Duration, since: Boot, possible: bool) -> Wish {
        if now < self.echo_due(every, since) {
            return Wish::Nothing;
        }
        self.echoed_at = Some(now);
        if possible { Wish::Echo(hub) } else { Wish::Nothing }
    }

    /// The look-up of `hub` has ended.
    pub fn resolved(&mut self, now: Boot, hub: usize, addresses: &[SocketAddr], rng: &mut JitterRng) -> Wish {
        match self.phase {
            Phase::Resolving { hub: asked, .. } if asked == hub => {
                // Another address each time, so that one dead address does not hide a live one.
                let n = self.rest.failures() as usize;
                match addresses.get(n % addresses.len().max(1)) {
                    Some(address) => {
                        self.phase = Phase::Trying { hub, address: *address, since: now, answered: false };
                        self.echoed_at = None;
                        Wish::Changed
                    }
                    None => self.give_up(now, rng),
                }
            }
            Phase::Rest { .. } | Phase::Resolving { .. } | Phase::Trying { .. } | Phase::Good { .. } => Wish::Nothing,
        }
    }

    /// `hub` has answered an echo.
    pub fn answered(&mut self, now: Boot, hub: usize) {
        match &mut self.phase {
            Phase::Trying { hub: h, answered, .. } if *h == hub => *answered = true,
            Phase::Good { hub: h, answered_at, .. } if *h == hub => *answered_at = now,
            Phase::Rest { .. } | Phase::Resolving { .. } | Phase::Trying { .. } | Phase::Good { .. } => {}
        }
    }

    fn give_up(&mut self, now: Boot, rng: &mut JitterRng) -> Wish {
        let had = self.standby().is_some();
        self.phase = Phase::Rest { until: now + self.rest.fail(rng) };
        if had { Wish::Changed } else { Wish::Nothing }
    }
}
