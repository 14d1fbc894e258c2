//! The hub session: a machine that decides when to connect where, when the tunnel counts as up, and when it is lost.
//! It has no clock, no socket and no kernel: events and the time go in, actions come out.
use super::ladder::Ladder;
use super::liveness::Witness;
use super::select::{Rules, Watch, as_standby};
use super::status::{Code, State, Transition, UplinkStatus};
use spoke_config::uplink::{Hub, Uplink};
use spoke_model::backoff::{Backoff, JitterRng};
use spoke_model::time::Boot;
use spoke_net::derive::{HubPeer, UplinkChoice};
use spoke_net::state::{Counters, Endpoint};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

mod attempt;
mod report;
#[cfg(test)]
mod tests;
mod up;

/// How long a look-up of a name may take before the last good addresses are used.
pub const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the counters are looked at while waiting, to notice a hub that is back by itself.
const SAMPLE_WAITING: Duration = Duration::from_secs(5);
/// Events of the network that may each waive a backoff in a row; one is earned back each `backoff_max`.
const MAX_WAKES: u32 = 4;
/// Events of the network this soon after a publication are its own effect.
const OWN_EFFECT: Duration = Duration::from_secs(1);
/// Echoes that may be under way at once.
const MAX_ECHOES: usize = 32;

/// What the machine is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// The deadline has come. Too early or too late does no harm.
    Tick,
    /// Answer to [`SessionAction::Sample`].
    Sampled(Sample),
    /// Answer to [`SessionAction::Sample`]: the kernel could not be read.
    Unsampled,
    /// Answer to [`SessionAction::Resolve`]; empty if the look-up failed.
    Resolved {
        /// The hub asked about.
        hub: usize,
        /// Every address of its name.
        addresses: Vec<SocketAddr>,
    },
    /// An echo reply came through the tunnel.
    Answered {
        /// Its source.
        from: IpAddr,
        /// The sequence number of the echo.
        seq: u16,
    },
    /// Answer to [`SessionAction::Echo`]: it could not be sent.
    Unsent {
        /// The sequence number of the echo.
        seq: u16,
    },
    /// A link, an address or a route may have changed.
    Woken,
}

/// A look at the interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// The kernel's index of the interface: another one is another interface, with none of the sessions of the one before.
    pub link: Option<u32>,
    /// The hubs' peers on it, in the order of the configuration; `None` where there is no such peer (or no interface).
    pub hubs: Vec<Option<Seen>>,
}

/// A peer in a [`Sample`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Counters.
    pub counters: Counters,
    /// The endpoint in use.
    pub endpoint: Option<SocketAddr>,
}

/// What the machine wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionAction {
    /// Publish [`Session::choice`].
    Publish,
    /// Look up this hub's name; answer with [`SessionEvent::Resolved`]. A look-up under way is given up for it.
    Resolve(usize),
    /// Read the counters; answer with [`SessionEvent::Sampled`] or [`SessionEvent::Unsampled`].
    Sample,
    /// Send an echo to `to` through the tunnel; answer with [`SessionEvent::Unsent`] if that fails.
    Echo {
        /// The hub's tunnel address.
        to: IpAddr,
        /// Sequence number.
        seq: u16,
    },
    /// Log it.
    Report(Transition),
}

/// At most so many actions answer one event.
pub const MAX_ACTIONS: usize = 16;

/// The answer to one event.
pub type Actions = heapless::Vec<SessionAction, MAX_ACTIONS>;

/// What the machine goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `[uplink]`.
    pub uplink: Arc<Uplink>,
    /// The interface has a fixed port, which cannot be renewed.
    pub fixed_port: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    /// `due`: the wait is over, and a last look before the attempt is under way.
    Waiting {
        since: Boot,
        until: Boot,
        due: bool,
    },
    Resolving {
        deadline: Boot,
    },
    Connecting(Attempt),
    Up {
        since: Boot,
    },
}

/// An attempt under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Attempt {
    /// A handshake seen from here on is fresh.
    since: Boot,
    deadline: Boot,
    /// An echo sent in this attempt was answered.
    answered: bool,
    /// Why it will be up, if not by a new handshake.
    credit: Option<Credit>,
    /// The good hub to go back to if this one fails.
    fallback: Option<(usize, SocketAddr)>,
}

/// A session of the kernel that need not shake hands anew, as long as it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Credit {
    /// Its last handshake, on the boot clock.
    at: Boot,
    code: Code,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wake {
    First,
    Further,
}

#[derive(Clone, Debug, Default)]
struct Known {
    /// Last good look-up.
    addresses: Vec<SocketAddr>,
    /// The address that worked last.
    favourite: Option<SocketAddr>,
    /// What the kernel uses.
    in_use: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug)]
struct EchoSent {
    seq: u16,
    hub: usize,
    at: Boot,
}

/// The machine.
///
/// ```text
///            kernel has a hub already: published unchanged ("adopted")
///  Starting ──────────────────────────────────────────────┐
///     │ nothing there: best hub published                  │
///     ▼                                                    ▼
///  Resolving ──address (last good if the look-up failed)─► Connecting ──handshake and echo──► Up ─┐
///     ▲  │ no address at all                               │   ▲  ▲                             │  │ a better hub good for
///     │  ▼                                        no proof │   │  │ interface gone, a good       │  │ failback_after
///     └─ Waiting ◄─────────────────────────────────────────┘   │  └─standby takes over───────────┤  │
///        │   ▲                                                 │                                 │  │
///        │   └───────────────── silent, handshake too old ─────┼─────────────────────────────────┘  │
///        └───────────── heard from by itself ──────────────────┴────────────────────────────────────┘
/// ```
/// *Up* is claimed only when, after the attempt began, the hub's tunnel address has answered an echo, **and** there is a
/// handshake: the kernel's handshake time was seen to change since then. The kernel cannot be made to shake hands while it
/// has keys that it thinks good, so a change seen less than 180 s ago by this process counts too (an attempt before this one,
/// the session just lost, a standby that was watched), and so does a tunnel found at process start. In these cases the echo
/// is the proof: WireGuard accepts no packet under keys older than 180 s, whoever set which clock.
///
/// Waiting ends with the backoff, or at once with an event of the network (at most four in a row, then one each
/// `backoff_max`) or when the hub is heard from. There is no state without a deadline: it always tries again.
///
/// Traffic of an idle tunnel at the defaults, IPv4 outside and inside, headers included: echo and answer each 60 s
/// (2 × 92 B), two keepalives between them (2 × 60 B), a handshake each 120 s or a little more (176 + 120 + 60 B):
/// 438 kB + 256 kB, less than 0.7 MB a day; IPv6 outside adds 0.16 MB.
#[derive(Clone, Debug)]
pub struct Session {
    config: Config,
    hubs: Vec<Arc<Hub>>,
    phase: Phase,
    rng: JitterRng,
    backoff: Backoff,
    ladder: Ladder,
    /// The interface of the last sample.
    link: Option<u32>,
    seen: Vec<Witness>,
    known: Vec<Known>,
    /// The published hub.
    active: usize,
    endpoint: Option<Endpoint>,
    port_epoch: u32,
    rebuild: u32,
    watch: Option<Watch>,
    /// Moves back that failed in a row: each doubles the hysteresis.
    failed_moves: u32,
    echoes: heapless::Deque<EchoSent, MAX_ECHOES>,
    seq: u16,
    sample_at: Boot,
    echo_at: Boot,
    echoed_at: Option<Boot>,
    answered_at: Option<Boot>,
    unsent: bool,
    published_at: Boot,
    wakes: u32,
    wake_earned_at: Boot,
    woken: bool,
    /// The hub last proven up, as long as its session in the kernel may live.
    held: Option<usize>,
    status: UplinkStatus,
}

impl Session {
    /// A session that has not looked at anything yet. `seed` decides the jitter.
    pub fn new(now: Boot, seed: u64, config: Config) -> Self {
        let u = &config.uplink;
        let hubs: Vec<_> = u.hubs.iter().cloned().map(Arc::new).collect();
        Self {
            phase: Phase::Starting,
            rng: JitterRng::new(seed),
            backoff: Backoff::new(u.backoff_initial, u.backoff_max),
            ladder: Ladder::new(hubs.len(), config.fixed_port),
            link: None,
            seen: vec![Witness::default(); hubs.len()],
            known: vec![Known::default(); hubs.len()],
            active: 0,
            endpoint: None,
            port_epoch: 0,
            rebuild: 0,
            watch: None,
            failed_moves: 0,
            echoes: heapless::Deque::new(),
            seq: 0,
            sample_at: now,
            echo_at: now,
            echoed_at: None,
            answered_at: None,
            unsent: false,
            published_at: now,
            wakes: MAX_WAKES,
            wake_earned_at: now,
            woken: false,
            held: None,
            status: UplinkStatus::default(),
            hubs,
            config,
        }
    }

    /// When [`SessionEvent::Tick`] is due.
    pub fn deadline(&self) -> Option<Boot> {
        Some(match self.phase {
            Phase::Starting => self.sample_at,
            Phase::Waiting { until, due, .. } => {
                if due {
                    self.sample_at
                } else {
                    until.min(self.sample_at)
                }
            }
            Phase::Resolving { deadline } => deadline,
            Phase::Connecting(a) => a.deadline.min(self.echo_at).min(self.sample_at),
            Phase::Up { .. } => self.up_deadline(),
        })
    }

    /// The decision to publish; `None` before there is one.
    pub fn choice(&self) -> Option<UplinkChoice> {
        let standby = self.watch.as_ref().and_then(Watch::standby).and_then(|(hub, addr)| {
            let hub = Arc::new(as_standby(self.hubs.get(hub)?));
            Some(HubPeer { hub, endpoint: Some(Endpoint { addr, attempt: 0 }) })
        });
        Some(UplinkChoice {
            interface: self.config.uplink.interface.clone(),
            active: HubPeer { hub: self.hubs.get(self.active)?.clone(), endpoint: self.endpoint },
            standby,
            port_epoch: self.port_epoch,
            rebuild: self.rebuild,
        })
    }

    /// Takes note of an event.
    #[must_use]
    pub fn handle(&mut self, now: Boot, event: SessionEvent) -> Actions {
        let mut out = Actions::new();
        let replaced = if let SessionEvent::Sampled(sample) = &event { self.take_in(sample) } else { false };
        match (self.phase, event) {
            (Phase::Starting, SessionEvent::Tick) => {
                self.sample_at = now + SAMPLE_WAITING;
                act(&mut out, SessionAction::Sample);
            }
            (Phase::Starting, SessionEvent::Sampled(sample)) => {
                self.record_counters(now, &sample);
                self.start(now, &sample, &mut out);
            }
            (Phase::Starting, SessionEvent::Unsampled) => self.start(now, &Sample::default(), &mut out),
            (
                Phase::Starting,
                SessionEvent::Resolved { .. }
                | SessionEvent::Answered { .. }
                | SessionEvent::Unsent { .. }
                | SessionEvent::Woken,
            ) => {}

            (Phase::Waiting { since, until, due }, SessionEvent::Tick) => {
                if due && now >= self.sample_at {
                    self.attempt(now, Code::Attempt, &mut out);
                } else if now >= until && !due {
                    // One more look, so that only what comes after the attempt's start counts as fresh.
                    self.phase = Phase::Waiting { since, until, due: true };
                    self.sample(now, Duration::from_secs(1), &mut out);
                } else if now >= self.sample_at {
                    self.sample(now, SAMPLE_WAITING, &mut out);
                }
            }
            (Phase::Waiting { since, due, .. }, SessionEvent::Sampled(sample)) => {
                let moved = self.record_counters(now, &sample);
                if (moved.received || moved.handshake) && self.wake(now).is_some() {
                    self.heard(now, since, &mut out);
                } else if due {
                    self.attempt(now, Code::Attempt, &mut out);
                }
            }
            (Phase::Waiting { due, .. }, SessionEvent::Unsampled) => {
                if due {
                    self.attempt(now, Code::Attempt, &mut out);
                }
            }
            (Phase::Waiting { .. }, SessionEvent::Resolved { hub, addresses }) => self.learn(hub, addresses),
            (Phase::Waiting { .. }, SessionEvent::Woken) => {
                if let Some(wake) = self.wake(now) {
                    self.reset_on_network_change(wake);
                    self.attempt(now, Code::NetworkChanged, &mut out);
                }
            }
            (Phase::Waiting { .. }, SessionEvent::Answered { .. } | SessionEvent::Unsent { .. }) => {}

            (Phase::Resolving { deadline }, SessionEvent::Tick) => {
                if now >= deadline {
                    self.next_rung(now, &mut out);
                }
            }
            (Phase::Resolving { .. }, SessionEvent::Resolved { hub, addresses }) => {
                let ours = hub == self.ladder.hub();
                self.learn(hub, addresses);
                if ours {
                    self.next_rung(now, &mut out);
                }
            }
            (Phase::Resolving { .. }, SessionEvent::Sampled(sample)) => {
                self.record_counters(now, &sample);
            }
            (Phase::Resolving { .. }, SessionEvent::Woken) => self.woken |= now.since(self.published_at) >= OWN_EFFECT,
            (
                Phase::Resolving { .. },
                SessionEvent::Unsampled | SessionEvent::Answered { .. } | SessionEvent::Unsent { .. },
            ) => {}

            (Phase::Connecting(a), SessionEvent::Tick) => self.continue_attempt(now, a, &mut out),
            (Phase::Connecting(a), SessionEvent::Sampled(sample)) => {
                self.record_counters(now, &sample);
                self.judge(now, a, &mut out);
            }
            (Phase::Connecting(a), SessionEvent::Answered { from, seq }) => {
                if self.answered(now, from, seq) == Some(self.active) {
                    let a = Attempt { answered: true, ..a };
                    self.phase = Phase::Connecting(a);
                    if !self.judge(now, a, &mut out) {
                        // The handshake is there, only not yet looked at.
                        self.sample(now, Duration::from_millis(100), &mut out);
                    }
                }
            }
            (Phase::Connecting(_), SessionEvent::Unsent { seq }) => {
                self.forget_echo(seq);
                self.unsent = true;
            }
            (Phase::Connecting(_), SessionEvent::Woken) => {
                if now.since(self.published_at) >= OWN_EFFECT {
                    self.woken = true;
                    self.echo_at = self.echo_at.min(now + Duration::from_millis(100));
                }
            }
            (Phase::Connecting(_), SessionEvent::Resolved { hub, addresses }) => self.learn(hub, addresses),
            (Phase::Connecting(_), SessionEvent::Unsampled) => {}

            (Phase::Up { since }, SessionEvent::Tick) => self.tend(now, since, &mut out),
            (Phase::Up { since }, SessionEvent::Sampled(sample)) => {
                self.up_sampled(now, since, &sample, replaced, &mut out)
            }
            (Phase::Up { .. }, SessionEvent::Resolved { hub, addresses }) => {
                self.up_resolved(now, hub, addresses, &mut out)
            }
            (Phase::Up { .. }, SessionEvent::Answered { from, seq }) => {
                self.answered(now, from, seq);
            }
            (Phase::Up { since }, SessionEvent::Unsent { seq }) => self.up_unsent(now, since, seq),
            (Phase::Up { since }, SessionEvent::Woken) => {
                // A link that went down shows in no counter: only an echo tells. If one was just sent, the next is due later.
                if now.since(self.published_at) >= OWN_EFFECT {
                    self.woken = true;
                    self.tend(now, since, &mut out);
                }
            }
            (Phase::Up { .. }, SessionEvent::Unsampled) => {}
        }
        self.refresh();
        out
    }

    /// Whether an event may waive a wait now; the answer says whether it is the first in a while.
    fn wake(&mut self, now: Boot) -> Option<Wake> {
        let every = self.config.uplink.backoff_max;
        while self.wakes < MAX_WAKES && now.since(self.wake_earned_at) >= every {
            self.wakes += 1;
            self.wake_earned_at += every;
        }
        let wake = match self.wakes {
            0 => return None,
            MAX_WAKES => Wake::First,
            _ => Wake::Further,
        };
        if wake == Wake::First {
            self.wake_earned_at = now;
        }
        self.wakes -= 1;
        Some(wake)
    }

    /// The network changed: what failed on the old one may work here, so the best hub is tried first. Events that keep
    /// coming must not hold the ladder at its bottom, so only the first of a series does this.
    fn reset_on_network_change(&mut self, wake: Wake) {
        match wake {
            Wake::First => self.ladder.restart(0),
            Wake::Further => {}
        }
    }

    fn learn(&mut self, hub: usize, addresses: Vec<SocketAddr>) {
        // A failed look-up keeps the last good one.
        if let Some(known) = self.known.get_mut(hub).filter(|_| !addresses.is_empty()) {
            known.addresses = addresses;
        }
    }

    fn literal(&self, hub: usize) -> Option<SocketAddr> {
        self.hubs.get(hub)?.endpoint.literal()
    }

    fn handshake_of(&self, hub: usize) -> Option<Boot> {
        self.seen.get(hub)?.handshake_at()
    }

    fn rules(&self) -> Rules {
        let u = &self.config.uplink;
        let failback_after = u.failback_after.saturating_mul(1 << self.failed_moves.min(4));
        Rules { failback_after, idle_probe: u.idle_probe, resolve_timeout: RESOLVE_TIMEOUT }
    }

    const fn state(&self) -> State {
        match self.phase {
            Phase::Starting => State::Starting,
            Phase::Waiting { .. } => State::Waiting,
            Phase::Resolving { .. } => State::Resolving,
            Phase::Connecting(_) => State::Connecting,
            Phase::Up { .. } => State::Up,
        }
    }
}

/// Adds an action; [`MAX_ACTIONS`] is more than any event can ask for, which the tests hold against a million events.
fn act(out: &mut Actions, action: SessionAction) {
    let fits = out.push(action).is_ok();
    debug_assert!(fits, "more than {MAX_ACTIONS} actions for one event");
}
