//! The hub session: decides when to connect to which hub, when the tunnel is up and when it is lost. No clock, no I/O.
//!
//! ```text
//!            kernel has a hub peer: published unchanged ("adopted")
//!  Starting ──────────────────────────────────────────────┐
//!     │ no hub peer: best hub published                    │
//!     ▼                                                    ▼
//!  Resolving ──address (last good if the look-up failed)─► Connecting ──handshake and echo──► Up ─┐
//!     ▲  │ no address known                                │   ▲  ▲                             │  │ a better hub good for
//!     │  ▼                                     attempt_timeout │  │ interface gone, or a good    │  │ failback_after
//!     └─ Waiting ◄─────────────────────────────────────────┘   │  └─standby takes over───────────┤  │
//!        │   ▲                                                 │                                 │  │
//!        │   └──────── no reply, handshake too old ────────────┼─────────────────────────────────┘  │
//!        └──────────── packet or handshake received ───────────┴────────────────────────────────────┘
//! ```
//! *Waiting* lasts no time while the ladder has a hub that was not tried in this round: a lost hub is left for the next
//! one at once.
//!
//! # Driver contract
//! [`Session::new`], then [`SessionEvent::Tick`] at once. After every event perform all actions in order; the answers
//! to `Resolve`, `Sample`, `Look` and `Echo` are events, in any order and at any later time, and may be missing. After an
//! event of the kernel's network look without being asked ([`SessionEvent::Path`]): only a difference counts. Publish
//! [`Session::status`] after each event. Then sleep until [`Session::deadline`] and send `Tick`; an early or late
//! `Tick` is harmless. There is always a deadline: the session never stops trying.
//!
//! # Proof
//! *Up* requires that, after the attempt began, the hub's tunnel address answered an echo **and** the kernel's
//! handshake time changed. An answer counts if the hub's peer delivered a packet between the sample before the echo and
//! the one after the answer ([`packet_came`](super::liveness::packet_came)); otherwise this machine or another peer
//! answered. An echo is answered by an echo only: WireGuard sends keepalives whatever the state of the hub behind it. The kernel starts no handshake while its keys are fresh, so a handshake seen by this process
//! less than `REJECT_AFTER_TIME` ago counts as well (an earlier attempt, the session just lost, a watched standby), and
//! so does a tunnel found at process start. Then the echo is the proof: WireGuard accepts no packet under older keys,
//! whatever the wall clock.
//!
//! *Waiting* ends with the backoff, or at once when the path to the hub changes (at most four in a row, then one each
//! `backoff_max`) or when a packet arrives from a hub that was silent; one whose echo is missing has nothing to say.
//!
//! # Traffic
//! Idle tunnel at the defaults, IPv4 outside and inside, headers included. One hub: echo and reply each 60 s (2 × 92 B),
//! two keepalives between them (2 × 60 B), a handshake each 120 s or more (176 + 120 + 60 B): 438 kB + 256 kB, below
//! 0.7 MB a day. Several hubs: echo and reply each 24 s, which leaves no keepalive to send: 662 kB + 256 kB. IPv6 outside
//! adds 20 B a packet, 0.16 to 0.19 MB.
//!
//! Echoes that are never answered: nine an attempt, three after [`MANY_FAILURES`]; at the longest backoff below
//! 4,500 a day, 0.4 MB.
use super::ladder::{Ladder, Rung};
use super::liveness::PeerActivity;
use super::path::Path;
use super::select::{Rules, StandbyWatch, as_standby};
use super::status::{Code, State, Transition, UplinkStatus};
use spoke_config::uplink::{Hub, Uplink};
use spoke_model::backoff::{Backoff, JitterRng};
use spoke_model::deadline::Deadline;
use spoke_model::time::Boot;
use spoke_net::derive::{HubPeer, UplinkChoice};
use spoke_net::state::{Counters, Endpoint};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

mod attempt;
mod echo;
mod network;
mod report;
#[cfg(test)]
mod tests;
mod up;

use echo::EchoSent;

/// Time limit of a name look-up; after it the last good addresses are used.
pub const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Period of counter samples while waiting, to notice packets from the hub.
const SAMPLE_WAITING: Duration = Duration::from_secs(5);
/// Network changes in a row that may each end a backoff early; one is regained each `backoff_max`.
const MAX_WAKES: u32 = 4;
/// Failures in a row after which an attempt sends few echoes.
pub const MANY_FAILURES: u32 = 8;
/// Echoes awaiting a reply.
const MAX_ECHOES: usize = 32;

/// Input of the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// The deadline has passed. Early or late is harmless.
    Tick,
    /// Answer to [`SessionAction::Sample`].
    Sampled(Sample),
    /// Answer to [`SessionAction::Sample`]: the kernel could not be read.
    Unsampled,
    /// Answer to [`SessionAction::Resolve`]; empty if the look-up failed.
    Resolved {
        /// Index of the hub.
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
    /// Answer to [`SessionAction::Look`], or unasked after an event of the kernel's network.
    Path {
        /// The address looked up; `None`: any, since no address of the hub is known.
        to: Option<IpAddr>,
        /// The way to it.
        path: Path,
    },
}

/// The interface's counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// The kernel's interface index; a different one means a recreated interface without sessions.
    pub link: Option<u32>,
    /// The hubs' peers in the order of the configuration; `None`: no such peer or no interface.
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

/// Output of the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionAction {
    /// Publish [`Session::choice`].
    Publish,
    /// Resolve this hub's name; answer with [`SessionEvent::Resolved`]. Replaces a look-up in progress.
    Resolve(usize),
    /// Read the counters; answer with [`SessionEvent::Sampled`] or [`SessionEvent::Unsampled`].
    Sample,
    /// Read the path to [`Session::path_target`]; answer with [`SessionEvent::Path`].
    Look,
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

/// Most actions of one event.
pub const MAX_ACTIONS: usize = 16;

/// Actions of one event, in the order to perform them.
pub type Actions = heapless::Vec<SessionAction, MAX_ACTIONS>;

/// What a deadline of the session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionDeadline {
    /// Read the counters.
    Sample,
    /// The backoff ends: begin an attempt.
    Backoff,
    /// The look-up has taken too long.
    Resolve,
    /// The attempt has failed.
    Attempt,
    /// Send an echo.
    Echo,
    /// The hub has not replied for `dead_after`: the tunnel is lost.
    Dead,
    /// The watch over better hubs has something to do.
    Standby,
}

/// Configuration of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `[uplink]`.
    pub uplink: Arc<Uplink>,
    /// The interface has a fixed port: the port rung is skipped.
    pub fixed_port: bool,
    /// The mark of WireGuard's packets, by which the system may route them; 0: none.
    pub mark: u32,
    /// Hubs, by index, whose endpoint was edited since the kernel got the one it has.
    pub edited: BTreeSet<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    /// `due`: the backoff is over; the attempt follows the sample that was requested.
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

/// A connection attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Attempt {
    /// A handshake seen after this is new.
    since: Boot,
    deadline: Boot,
    /// An echo of this attempt was answered by the hub.
    answered: bool,
    /// Echoes sent.
    echoes: u32,
    /// The peer's sent counter when the attempt began.
    sent: u64,
    /// Counts in place of a new handshake.
    prior: Option<PriorHandshake>,
    /// The hub to return to if this one fails.
    fallback: Option<(usize, SocketAddr)>,
}

/// A handshake from before the attempt: valid for `REJECT_AFTER_TIME`, provided that an echo is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PriorHandshake {
    at: Boot,
    /// Reported when the tunnel comes up by it.
    code: Code,
}

#[derive(Clone, Debug, Default)]
struct HubAddresses {
    /// Result of the last successful look-up.
    addresses: Vec<SocketAddr>,
    /// The address that last carried the tunnel.
    favourite: Option<SocketAddr>,
    /// The endpoint in the kernel.
    in_use: Option<SocketAddr>,
    /// Its WireGuard responds and its echo is missing: packets from it are no reason to try it again.
    echo_fault: bool,
    /// When its name was last looked up.
    resolved_at: Option<Boot>,
}

/// The hub session; see the module for its states and how to drive it.
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
    seen: Vec<PeerActivity>,
    known: Vec<HubAddresses>,
    /// The published hub.
    active: usize,
    endpoint: Option<Endpoint>,
    port_epoch: u32,
    rebuild: u32,
    watch: Option<StandbyWatch>,
    /// Consecutive failed failbacks; each doubles `failback_after`.
    failed_moves: u32,
    echoes: heapless::Deque<EchoSent, MAX_ECHOES>,
    /// An echo of the active hub was answered by someone else since the attempt began.
    answered_elsewhere: bool,
    seq: u16,
    sample_at: Boot,
    echo_at: Boot,
    echoed_at: Option<Boot>,
    answered_at: Option<Boot>,
    unsent: bool,
    published_at: Boot,
    wakes: u32,
    wake_earned_at: Boot,
    network_changed: bool,
    /// The last look: address and path.
    path: Option<(Option<IpAddr>, Path)>,
    /// The rung that led to the attempt being prepared.
    rung: Option<Rung>,
    /// Since when there is no tunnel.
    down_since: Boot,
    /// Attempts of this round, and those in which the interface sent nothing although the path was open.
    round: (u32, u32),
    rebuilt_at: Option<Boot>,
    /// The hub last proven up, while its session in the kernel may be alive.
    held: Option<usize>,
    /// The hub whose session the kernel had at the start.
    found: Option<(usize, Boot)>,
    status: UplinkStatus,
}

impl Session {
    /// A new session; send [`SessionEvent::Tick`] next. `seed` determines the jitter.
    pub fn new(now: Boot, seed: u64, config: Config) -> Self {
        let u = &config.uplink;
        let hubs: Vec<_> = u.hubs.iter().cloned().map(Arc::new).collect();
        Self {
            phase: Phase::Starting,
            rng: JitterRng::new(seed),
            backoff: Backoff::new(u.backoff_initial, u.backoff_max),
            ladder: Ladder::new(hubs.len(), config.fixed_port),
            link: None,
            seen: vec![PeerActivity::default(); hubs.len()],
            known: vec![HubAddresses::default(); hubs.len()],
            active: 0,
            endpoint: None,
            port_epoch: 0,
            rebuild: 0,
            watch: None,
            failed_moves: 0,
            echoes: heapless::Deque::new(),
            answered_elsewhere: false,
            seq: 0,
            sample_at: now,
            echo_at: now,
            echoed_at: None,
            answered_at: None,
            unsent: false,
            published_at: now,
            wakes: MAX_WAKES,
            wake_earned_at: now,
            network_changed: false,
            path: None,
            rung: None,
            down_since: now,
            round: (0, 0),
            rebuilt_at: None,
            held: None,
            found: None,
            status: UplinkStatus::default(),
            hubs,
            config,
        }
    }

    /// When [`SessionEvent::Tick`] is due; never `None`.
    pub fn deadline(&self) -> Option<Deadline<SessionDeadline>> {
        let sample = Deadline::new(self.sample_at, SessionDeadline::Sample);
        Some(match self.phase {
            Phase::Starting | Phase::Waiting { due: true, .. } => sample,
            Phase::Waiting { until, due: false, .. } => Deadline::new(until, SessionDeadline::Backoff).min(sample),
            Phase::Resolving { deadline } => Deadline::new(deadline, SessionDeadline::Resolve),
            Phase::Connecting(a) => Deadline::new(a.deadline, SessionDeadline::Attempt)
                .min(Deadline::new(self.echo_at, SessionDeadline::Echo))
                .min(sample),
            Phase::Up { .. } => self.up_deadline(sample),
        })
    }

    /// The choice to publish.
    pub fn choice(&self) -> Option<UplinkChoice> {
        let standby = self.watch.as_ref().and_then(StandbyWatch::standby).and_then(|(hub, addr)| {
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

    /// Processes one event; perform the returned actions in order.
    #[must_use]
    pub fn handle(&mut self, now: Boot, event: SessionEvent) -> Actions {
        let mut out = Actions::new();
        if let SessionEvent::Path { to, path } = event {
            self.record_path(now, to, path, &mut out);
            self.refresh();
            return out;
        }
        let replaced = if let SessionEvent::Sampled(sample) = &event { self.record_interface(sample) } else { false };
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
                SessionEvent::Resolved { .. } | SessionEvent::Answered { .. } | SessionEvent::Unsent { .. },
            ) => {}

            (Phase::Waiting { since, until, due }, SessionEvent::Tick) => {
                if due && now >= self.sample_at {
                    self.attempt(now, Code::Attempt, &mut out);
                } else if now >= until && !due {
                    // A sample first, so that only later changes count as new in this attempt.
                    self.phase = Phase::Waiting { since, until, due: true };
                    self.sample(now, Duration::from_secs(1), &mut out);
                } else if now >= self.sample_at {
                    self.sample(now, SAMPLE_WAITING, &mut out);
                }
            }
            (Phase::Waiting { since, due, .. }, SessionEvent::Sampled(sample)) => {
                let change = self.record_counters(now, &sample);
                let silent = self.known.get(self.active).is_some_and(|k| !k.echo_fault);
                if silent && (change.received || change.handshake) && self.use_wake(now) {
                    self.connect_after_packet(now, since, &mut out);
                } else if due {
                    self.attempt(now, Code::Attempt, &mut out);
                }
            }
            (Phase::Waiting { due, .. }, SessionEvent::Unsampled) => {
                if due {
                    self.attempt(now, Code::Attempt, &mut out);
                }
            }
            (Phase::Waiting { .. }, SessionEvent::Resolved { hub, addresses }) => {
                self.store_addresses(now, hub, addresses);
            }
            (Phase::Waiting { .. }, SessionEvent::Answered { .. } | SessionEvent::Unsent { .. }) => {}

            (Phase::Resolving { deadline }, SessionEvent::Tick) => {
                if now >= deadline {
                    self.next_rung(now, &mut out);
                }
            }
            (Phase::Resolving { .. }, SessionEvent::Resolved { hub, addresses }) => {
                let ours = hub == self.ladder.hub();
                self.store_addresses(now, hub, addresses);
                if ours {
                    self.next_rung(now, &mut out);
                }
            }
            (Phase::Resolving { .. }, SessionEvent::Sampled(sample)) => {
                self.record_counters(now, &sample);
            }
            (
                Phase::Resolving { .. },
                SessionEvent::Unsampled | SessionEvent::Answered { .. } | SessionEvent::Unsent { .. },
            ) => {}

            (Phase::Connecting(a), SessionEvent::Tick) => self.continue_attempt(now, a, &mut out),
            (Phase::Connecting(a), SessionEvent::Sampled(sample)) => {
                let change = self.record_counters(now, &sample);
                let a = Attempt { answered: a.answered || change.answered, ..a };
                self.phase = Phase::Connecting(a);
                self.check_proof(now, a, &mut out);
            }
            (Phase::Connecting(_), SessionEvent::Answered { from, seq }) => {
                if self.answered(now, from, seq) {
                    self.sample(now, Duration::from_millis(100), &mut out);
                }
            }
            (Phase::Connecting(_), SessionEvent::Unsent { seq }) => {
                self.forget_echo(seq);
                self.unsent = true;
            }
            (Phase::Connecting(_), SessionEvent::Resolved { hub, addresses }) => {
                self.store_addresses(now, hub, addresses);
            }
            (Phase::Connecting(_), SessionEvent::Unsampled) => {}

            (Phase::Up { since }, SessionEvent::Tick) => self.up_tick(now, since, &mut out),
            (Phase::Up { since }, SessionEvent::Sampled(sample)) => {
                self.up_sampled(now, since, &sample, replaced, &mut out)
            }
            (Phase::Up { .. }, SessionEvent::Resolved { hub, addresses }) => {
                self.up_resolved(now, hub, addresses, &mut out)
            }
            (Phase::Up { .. }, SessionEvent::Answered { from, seq }) => {
                if self.answered(now, from, seq) {
                    self.sample(now, self.sample_every(), &mut out);
                }
            }
            (Phase::Up { since }, SessionEvent::Unsent { seq }) => self.up_unsent(now, since, seq),
            (Phase::Up { .. }, SessionEvent::Unsampled) | (_, SessionEvent::Path { .. }) => {}
        }
        self.refresh();
        out
    }

    fn store_addresses(&mut self, now: Boot, hub: usize, addresses: Vec<SocketAddr>) {
        let Some(known) = self.known.get_mut(hub) else { return };
        known.resolved_at = Some(now);
        if !addresses.is_empty() {
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
        Rules { failback_after, idle_probe: u.idle_probe(), resolve_timeout: RESOLVE_TIMEOUT }
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

/// Adds an action. No event causes more than [`MAX_ACTIONS`]; tested with a million events.
fn act(out: &mut Actions, action: SessionAction) {
    let fits = out.push(action).is_ok();
    debug_assert!(fits, "more than {MAX_ACTIONS} actions for one event");
}
