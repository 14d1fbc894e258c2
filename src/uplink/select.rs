//! Failback: a better hub is watched beside the active one until it has been good for long enough.
//!
//! While a worse hub carries the tunnel, the better ones are tried in turn as a *standby* peer. A standby's allowed-ips
//! are its own tunnel address (nothing if the active hub has the same one), so watching it moves no traffic.
//! ```text
//!        ┌──────────── no handshake within `TRY_TIMEOUT` ────────────┐
//!        ▼                                                           │
//!   Rest ──due──► Resolving ──address──► Trying ──handshake (+echo)──┴─► Good ──failback_after──► Move
//!     ▲               │ none                                              │
//!     └───────────────┴──────────────── handshake or echoes missing ──────┘
//! ```
//! A try costs a few hundred bytes and failed tries back off, so a hub that is unreachable for days costs little on a
//! metered link. When the active hub is lost, a good standby takes over at once.
//!
//! Driven by the session alone: `tick` when the deadline has passed and after each sample, `resolved` and `answered` as
//! they happen; each returns one [`StandbyAction`] to perform.
use super::liveness::PeerActivity;
use ipnet::IpNet;
use spoke_config::uplink::Hub;
use spoke_model::backoff::{Backoff, JitterRng};
use spoke_model::time::Boot;
use spoke_model::wireguard::REJECT_AFTER_TIME;
use std::net::SocketAddr;
use std::time::Duration;

/// Duration of a try: three of WireGuard's handshake initiations, which are five seconds apart.
pub const TRY_TIMEOUT: Duration = Duration::from_secs(15);
/// Interval of echoes during a try. One without a session is sent with the handshake.
const TRY_ECHO: Duration = Duration::from_secs(5);
/// Wait after the first failed try; doubles.
pub const REST_MIN: Duration = Duration::from_secs(30);
/// Longest wait between two tries.
pub const REST_MAX: Duration = Duration::from_secs(600);
/// While keepalives flow, a handshake is renewed at most this long after `REJECT_AFTER_TIME`.
const GRACE: Duration = Duration::from_secs(15);
/// Keepalive of a standby without one, in seconds: it triggers the handshake.
const WATCH_KEEPALIVE: u16 = 25;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Rest { until: Boot },
    Resolving { hub: usize, deadline: Boot },
    Trying { hub: usize, address: SocketAddr, since: Boot, answered: bool },
    Good { hub: usize, address: SocketAddr, since: Boot, answered_at: Boot },
}

/// Output of the watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StandbyAction {
    /// Nothing.
    None,
    /// Look up this hub.
    Resolve(usize),
    /// Publish: the standby has changed.
    Changed,
    /// Send an echo to this hub.
    Echo(usize),
    /// Move the tunnel to this hub.
    Move(usize, SocketAddr),
}

/// Timing of the watch.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How long a standby is good before the tunnel moves to it.
    pub failback_after: Duration,
    /// Interval of echoes to a good standby.
    pub idle_probe: Duration,
    /// Time limit of a look-up.
    pub resolve_timeout: Duration,
}

/// The watch over better hubs.
#[derive(Clone, Debug)]
pub struct StandbyWatch {
    phase: Phase,
    rest: Backoff,
    /// Counts tries; modulo the number of better hubs it selects the next.
    turn: usize,
    echoed_at: Option<Boot>,
}

/// Whether the standby can be sent an echo: its address must be routed to it and not to the active hub, by the same
/// rule by which `derive` sets its allowed-ips.
pub fn can_echo(active: &Hub, standby: &Hub) -> bool {
    let own = IpNet::from(standby.address);
    active.address != standby.address && !active.allowed_ips.iter().any(|c| c.0 == own)
}

/// The standby as a peer, with a keepalive that triggers the handshake.
pub fn as_standby(hub: &Hub) -> Hub {
    Hub { keepalive: if hub.keepalive == 0 { WATCH_KEEPALIVE } else { hub.keepalive }, ..hub.clone() }
}

impl StandbyWatch {
    /// Begins with a wait, since the better hub has just failed.
    pub fn new(now: Boot, rng: &mut JitterRng) -> Self {
        let mut rest = Backoff::new(REST_MIN, REST_MAX);
        let until = now + rest.fail(rng);
        Self { phase: Phase::Rest { until }, rest, turn: 0, echoed_at: None }
    }

    /// Hub and endpoint of the standby peer.
    pub const fn standby(&self) -> Option<(usize, SocketAddr)> {
        match self.phase {
            Phase::Rest { .. } | Phase::Resolving { .. } => None,
            Phase::Trying { hub, address, .. } | Phase::Good { hub, address, .. } => Some((hub, address)),
        }
    }

    /// A look-up is in progress.
    pub const fn is_resolving(&self) -> bool {
        matches!(self.phase, Phase::Resolving { .. })
    }

    /// Hub and endpoint of a good standby, and since when.
    pub const fn good(&self) -> Option<(usize, SocketAddr, Boot)> {
        match self.phase {
            Phase::Rest { .. } | Phase::Resolving { .. } | Phase::Trying { .. } => None,
            Phase::Good { hub, address, since, .. } => Some((hub, address, since)),
        }
    }

    /// When [`StandbyWatch::tick`] is due at the latest.
    pub fn deadline(&self, rules: Rules) -> Boot {
        match self.phase {
            Phase::Rest { until } => until,
            Phase::Resolving { deadline, .. } => deadline,
            Phase::Trying { since, .. } => self.echo_due(TRY_ECHO, since).min(since + TRY_TIMEOUT),
            Phase::Good { since, .. } => self.echo_due(rules.idle_probe, since).min(since + rules.failback_after),
        }
    }

    fn echo_due(&self, every: Duration, since: Boot) -> Boot {
        self.echoed_at.map_or(since, |at| at + every)
    }

    /// Processes the passage of time. `active` is the index of the active hub; better hubs have lower indices.
    pub fn tick(
        &mut self,
        now: Boot,
        active: usize,
        hubs: &[impl AsRef<Hub>],
        seen: &[PeerActivity],
        rules: Rules,
        rng: &mut JitterRng,
    ) -> StandbyAction {
        let echoes = |hub: usize| match (hubs.get(active), hubs.get(hub)) {
            (Some(a), Some(s)) => can_echo(a.as_ref(), s.as_ref()),
            (None, _) | (_, None) => false,
        };
        match self.phase {
            Phase::Rest { until } if now >= until && active > 0 => {
                let hub = self.turn % active;
                self.turn = self.turn.wrapping_add(1);
                self.phase = Phase::Resolving { hub, deadline: now + rules.resolve_timeout };
                StandbyAction::Resolve(hub)
            }
            Phase::Rest { .. } => StandbyAction::None,
            Phase::Resolving { deadline, .. } if now >= deadline => self.give_up(now, rng),
            Phase::Resolving { .. } => StandbyAction::None,
            Phase::Trying { hub, address, since, answered } => {
                let handshaken = seen.get(hub).and_then(PeerActivity::handshake_at).is_some_and(|at| at >= since);
                if handshaken && (answered || !echoes(hub)) {
                    self.phase = Phase::Good { hub, address, since: now, answered_at: now };
                    self.rest.reset();
                    return StandbyAction::None;
                }
                if now >= since + TRY_TIMEOUT {
                    return self.give_up(now, rng);
                }
                self.echo(now, hub, TRY_ECHO, since, echoes(hub))
            }
            Phase::Good { hub, address, since, answered_at } => {
                let handshake_at = seen.get(hub).and_then(PeerActivity::handshake_at);
                let expired = handshake_at.is_none_or(|at| now.since(at) > REJECT_AFTER_TIME + GRACE);
                let unanswered = echoes(hub) && now.since(answered_at) > rules.idle_probe.saturating_mul(2);
                if expired || unanswered {
                    return self.give_up(now, rng);
                }
                if now >= since + rules.failback_after {
                    return StandbyAction::Move(hub, address);
                }
                self.echo(now, hub, rules.idle_probe, since, echoes(hub))
            }
        }
    }

    fn echo(&mut self, now: Boot, hub: usize, every: Duration, since: Boot, possible: bool) -> StandbyAction {
        if now < self.echo_due(every, since) {
            return StandbyAction::None;
        }
        self.echoed_at = Some(now);
        if possible { StandbyAction::Echo(hub) } else { StandbyAction::None }
    }

    /// Processes the end of a look-up.
    pub fn resolved(&mut self, now: Boot, hub: usize, addresses: &[SocketAddr], rng: &mut JitterRng) -> StandbyAction {
        match self.phase {
            Phase::Resolving { hub: asked, .. } if asked == hub => {
                // The next address on each try, so that one dead address does not hide a live one.
                let n = self.rest.failures() as usize;
                match addresses.get(n % addresses.len().max(1)) {
                    Some(address) => {
                        self.phase = Phase::Trying { hub, address: *address, since: now, answered: false };
                        self.echoed_at = None;
                        StandbyAction::Changed
                    }
                    None => self.give_up(now, rng),
                }
            }
            Phase::Rest { .. } | Phase::Resolving { .. } | Phase::Trying { .. } | Phase::Good { .. } => {
                StandbyAction::None
            }
        }
    }

    /// Processes an echo reply of `hub`.
    pub fn answered(&mut self, now: Boot, hub: usize) {
        match &mut self.phase {
            Phase::Trying { hub: h, answered, .. } if *h == hub => *answered = true,
            Phase::Good { hub: h, answered_at, .. } if *h == hub => *answered_at = now,
            Phase::Rest { .. } | Phase::Resolving { .. } | Phase::Trying { .. } | Phase::Good { .. } => {}
        }
    }

    fn give_up(&mut self, now: Boot, rng: &mut JitterRng) -> StandbyAction {
        let had = self.standby().is_some();
        self.phase = Phase::Rest { until: now + self.rest.fail(rng) };
        if had { StandbyAction::Changed } else { StandbyAction::None }
    }
}
