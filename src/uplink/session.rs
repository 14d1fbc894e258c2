//! The hub session: a machine that decides when to connect where, when the tunnel counts as up, and when it is lost.
//! It has no clock, no socket and no kernel: events and the time go in, actions come out.
use super::backoff::{Backoff, Dice};
use super::ladder::{Ladder, Next, Rung};
use super::liveness::{HANDSHAKE_LIFE, Witness};
use super::select::{Rules, Watch, as_standby};
use super::status::{Code, State, Status, Transition};
use crate::config::uplink::{Hub, Uplink};
use crate::net::derive::{HubPeer, UplinkChoice};
use crate::net::state::{Counters, Endpoint};
use crate::time::Boot;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

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
pub enum Event {
    /// The deadline has come. Too early or too late does no harm.
    Tick,
    /// Answer to [`Action::Sample`].
    Sampled(Sample),
    /// Answer to [`Action::Sample`]: the kernel could not be read.
    Unsampled,
    /// Answer to [`Action::Resolve`]; empty if the look-up failed.
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
    /// Answer to [`Action::Echo`]: it could not be sent.
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
pub enum Action {
    /// Publish [`Session::choice`].
    Publish,
    /// Look up this hub's name; answer with [`Event::Resolved`]. A look-up under way is given up for it.
    Resolve(usize),
    /// Read the counters; answer with [`Event::Sampled`] or [`Event::Unsampled`].
    Sample,
    /// Send an echo to `to` through the tunnel; answer with [`Event::Unsent`] if that fails.
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
pub type Actions = heapless::Vec<Action, MAX_ACTIONS>;

/// What the machine goes by.
#[derive(Clone, Debug)]
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
/// *Up* is claimed only when, after the attempt began, the hub's tunnel address has answered an echo, **and** the kernel's
/// handshake time was seen to change. Three cases have a credit instead of the second: a tunnel found at process start, the
/// session just lost (an echo answered within 180 s of its last handshake shows that it was not), and a standby whose
/// handshake was seen while it was watched. In each the echo itself is the proof: WireGuard accepts no packet under keys
/// older than 180 s.
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
    dice: Dice,
    backoff: Backoff,
    ladder: Ladder,
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
    status: Status,
}

impl Session {
    /// A session that has not looked at anything yet. `seed` decides the jitter.
    pub fn new(now: Boot, seed: u64, config: Config) -> Self {
        let u = &config.uplink;
        let hubs: Vec<_> = u.hubs.iter().cloned().map(Arc::new).collect();
        Self {
            phase: Phase::Starting,
            dice: Dice::new(seed),
            backoff: Backoff::new(u.backoff_initial, u.backoff_max),
            ladder: Ladder::new(hubs.len(), config.fixed_port),
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
            status: Status::default(),
            hubs,
            config,
        }
    }

    /// When [`Event::Tick`] is due.
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
    pub fn handle(&mut self, now: Boot, event: Event) -> Actions {
        let mut out = Actions::new();
        if let Event::Sampled(sample) = &event {
            self.take_in(sample);
        }
        match (self.phase, event) {
            (Phase::Starting, Event::Tick) => {
                self.sample_at = now + SAMPLE_WAITING;
                act(&mut out, Action::Sample);
            }
            (Phase::Starting, Event::Sampled(sample)) => {
                self.look(now, &sample);
                self.start(now, &sample, &mut out);
            }
            (Phase::Starting, Event::Unsampled) => self.start(now, &Sample::default(), &mut out),
            (
                Phase::Starting,
                Event::Resolved { .. } | Event::Answered { .. } | Event::Unsent { .. } | Event::Woken,
            ) => {}

            (Phase::Waiting { since, until, due }, Event::Tick) => {
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
            (Phase::Waiting { since, due, .. }, Event::Sampled(sample)) => {
                let moved = self.look(now, &sample);
                if (moved.received || moved.handshake) && self.wake(now).is_some() {
                    self.heard(now, since, &mut out);
                } else if due {
                    self.attempt(now, Code::Attempt, &mut out);
                }
            }
            (Phase::Waiting { due, .. }, Event::Unsampled) => {
                if due {
                    self.attempt(now, Code::Attempt, &mut out);
                }
            }
            (Phase::Waiting { .. }, Event::Resolved { hub, addresses }) => self.learn(hub, addresses),
            (Phase::Waiting { .. }, Event::Woken) => {
                if let Some(wake) = self.wake(now) {
                    self.greet(wake);
                    self.attempt(now, Code::NetworkChanged, &mut out);
                }
            }
            (Phase::Waiting { .. }, Event::Answered { .. } | Event::Unsent { .. }) => {}

            (Phase::Resolving { deadline }, Event::Tick) => {
                if now >= deadline {
                    self.climb(now, &mut out);
                }
            }
            (Phase::Resolving { .. }, Event::Resolved { hub, addresses }) => {
                let ours = hub == self.ladder.hub();
                self.learn(hub, addresses);
                if ours {
                    self.climb(now, &mut out);
                }
            }
            (Phase::Resolving { .. }, Event::Sampled(sample)) => {
                self.look(now, &sample);
            }
            (Phase::Resolving { .. }, Event::Woken) => self.woken = true,
            (Phase::Resolving { .. }, Event::Unsampled | Event::Answered { .. } | Event::Unsent { .. }) => {}

            (Phase::Connecting(a), Event::Tick) => self.pursue(now, a, &mut out),
            (Phase::Connecting(a), Event::Sampled(sample)) => {
                self.look(now, &sample);
                self.judge(now, a, &mut out);
            }
            (Phase::Connecting(a), Event::Answered { from, seq }) => {
                if self.answered(now, from, seq) == Some(self.active) {
                    let a = Attempt { answered: true, ..a };
                    self.phase = Phase::Connecting(a);
                    if !self.judge(now, a, &mut out) {
                        // The handshake is there, only not yet looked at.
                        self.sample(now, Duration::from_millis(100), &mut out);
                    }
                }
            }
            (Phase::Connecting(_), Event::Unsent { seq }) => {
                self.forget_echo(seq);
                self.unsent = true;
            }
            (Phase::Connecting(_), Event::Woken) => {
                if now.since(self.published_at) >= OWN_EFFECT {
                    self.woken = true;
                    self.echo_at = self.echo_at.min(now + Duration::from_millis(100));
                }
            }
            (Phase::Connecting(_), Event::Resolved { hub, addresses }) => self.learn(hub, addresses),
            (Phase::Connecting(_), Event::Unsampled) => {}

            (Phase::Up { since }, Event::Tick) => self.tend(now, since, &mut out),
            (Phase::Up { since }, Event::Sampled(sample)) => self.up_sampled(now, since, &sample, &mut out),
            (Phase::Up { .. }, Event::Resolved { hub, addresses }) => self.up_resolved(now, hub, addresses, &mut out),
            (Phase::Up { .. }, Event::Answered { from, seq }) => {
                self.answered(now, from, seq);
            }
            (Phase::Up { since }, Event::Unsent { seq }) => self.up_unsent(now, since, seq),
            (Phase::Up { since }, Event::Woken) => {
                // A link that went down shows in no counter: only an echo tells. If one was just sent, the next is due later.
                if now.since(self.published_at) >= OWN_EFFECT {
                    self.woken = true;
                    self.tend(now, since, &mut out);
                }
            }
            (Phase::Up { .. }, Event::Unsampled) => {}
        }
        self.refresh();
        out
    }

    /// First look done: adopt what is there, or begin with the best hub.
    fn start(&mut self, now: Boot, sample: &Sample, out: &mut Actions) {
        // Two hubs in the kernel: the active one and a standby, which has carried next to nothing.
        let found = sample
            .hubs
            .iter()
            .enumerate()
            .filter_map(|(hub, seen)| Some((hub, (*seen)?.endpoint?, (*seen)?.counters)))
            .max_by_key(|(_, _, c)| (c.last_handshake.is_some(), c.rx.saturating_add(c.tx)));
        match found {
            Some((hub, address, counters)) => {
                self.active = hub;
                self.endpoint = Some(Endpoint { addr: address, attempt: 0 });
                self.ladder.restart(hub);
                self.ladder.note(address);
                // Without a handshake there is no session to adopt: it has to be made.
                let credit = counters.last_handshake.map(|_| Credit { at: now, code: Code::Adopted });
                self.status.attempts += 1;
                let deadline = now + self.config.uplink.attempt_timeout;
                let attempt = Attempt { since: now, deadline, answered: false, credit, fallback: None };
                self.connect(now, attempt, Code::Adopted, None, out);
            }
            None => {
                self.endpoint = self.literal(0).map(|addr| Endpoint { addr, attempt: 0 });
                self.publish(now, out);
                self.attempt(now, Code::Started, out);
            }
        }
    }

    /// Begins an attempt with the look-up of the hub whose turn it is.
    fn attempt(&mut self, now: Boot, code: Code, out: &mut Actions) {
        self.woken = false;
        self.status.attempts += 1;
        let hub = self.ladder.hub();
        self.enter(now, Phase::Resolving { deadline: now + RESOLVE_TIMEOUT }, hub, code, None, out);
        self.look_up(now, out);
    }

    fn look_up(&mut self, now: Boot, out: &mut Actions) {
        let hub = self.ladder.hub();
        if let Some(address) = self.literal(hub) {
            self.learn(hub, vec![address]);
            self.climb(now, out);
        } else {
            self.phase = Phase::Resolving { deadline: now + RESOLVE_TIMEOUT };
            act(out, Action::Resolve(hub));
        }
    }

    /// The look-up is over: take the next step of the ladder with the addresses that are known.
    fn climb(&mut self, now: Boot, out: &mut Actions) {
        let hub = self.ladder.hub();
        let Some(known) = self.known.get(hub).filter(|k| !k.addresses.is_empty()) else {
            let rung = self.ladder.advance(now);
            self.take(rung);
            return self.fail(now, hub, Code::Unresolved, Some(rung), out);
        };
        let favourite = known.favourite;
        let addresses = known.addresses.clone();
        let (address, rung) = match self.ladder.next(&addresses, favourite) {
            Next::Try(address, rung) => (address, rung),
            Next::Exhausted => {
                let rung = self.ladder.advance(now);
                self.take(rung);
                let state = self.phase;
                self.enter(now, state, self.ladder.hub(), Code::Attempt, Some(rung), out);
                // A hub that was just come to has something to try or nothing known, so this ends.
                return self.look_up(now, out);
            }
        };
        if let Some(rung) = rung {
            self.take(rung);
        }
        let mut credit = None;
        if hub == self.active {
            let held = self.held == Some(hub);
            credit = self.handshake_of(hub).filter(|_| held).map(|at| Credit { at, code: Code::Resumed });
        }
        self.active = hub;
        self.point(hub, address);
        let deadline = now + self.config.uplink.attempt_timeout;
        let attempt = Attempt { since: now, deadline, answered: false, credit, fallback: None };
        self.connect(now, attempt, Code::Attempt, rung, out);
    }

    /// Has the kernel send to `address`, once more if it was told so before and has roamed away since.
    fn point(&mut self, hub: usize, address: SocketAddr) {
        let in_use = self.known.get(hub).and_then(|k| k.in_use);
        let before = self.endpoint.filter(|e| e.addr == address);
        let again = before.is_some() && in_use.is_some_and(|u| u != address);
        let attempt = self.endpoint.map_or(0, |e| e.attempt) + u64::from(again);
        self.endpoint = Some(Endpoint { addr: address, attempt });
    }

    fn take(&mut self, rung: Rung) {
        *self.status.rungs.entry(rung).or_default() += 1;
        match rung {
            Rung::Port => self.port_epoch = self.port_epoch.saturating_add(1),
            Rung::Rebuild => {
                self.rebuild = self.rebuild.saturating_add(1);
                self.held = None;
            }
            Rung::Address | Rung::Family | Rung::Hub | Rung::Again => {}
        }
    }

    /// Publishes and starts to gather the proof.
    fn connect(&mut self, now: Boot, attempt: Attempt, code: Code, rung: Option<Rung>, out: &mut Actions) {
        self.watch = None;
        self.echoes.clear();
        self.unsent = false;
        self.enter(now, Phase::Connecting(attempt), self.active, code, rung, out);
        self.publish(now, out);
        self.echo(now, self.active, out);
        self.echo_at = now + Duration::from_millis(200);
        self.sample(now, Duration::from_millis(100), out);
    }

    /// The hub was heard from while waiting: prove it, without disturbing what evidently works.
    fn heard(&mut self, now: Boot, since: Boot, out: &mut Actions) {
        self.status.attempts += 1;
        let credit = self
            .handshake_of(self.active)
            .filter(|_| self.held == Some(self.active))
            .map(|at| Credit { at, code: Code::Resumed });
        let deadline = now + self.config.uplink.attempt_timeout;
        self.connect(now, Attempt { since, deadline, answered: false, credit, fallback: None }, Code::Heard, None, out);
    }

    fn pursue(&mut self, now: Boot, a: Attempt, out: &mut Actions) {
        if now >= a.deadline {
            return self.attempt_failed(now, a, out);
        }
        let early = now.since(self.published_at) < Duration::from_secs(1);
        if now >= self.echo_at {
            self.echo_at = now + Duration::from_millis(if early { 200 } else { 1000 });
            self.echo(now, self.active, out);
        }
        if now >= self.sample_at {
            self.sample(now, Duration::from_millis(if early { 100 } else { 500 }), out);
        }
    }

    /// Up, if both proofs are there.
    fn judge(&mut self, now: Boot, a: Attempt, out: &mut Actions) -> bool {
        let fresh = self.handshake_of(self.active).is_some_and(|at| at >= a.since);
        let credit = a.credit.filter(|c| now.since(c.at) < HANDSHAKE_LIFE);
        let code = match (fresh, credit) {
            (true, _) => Code::Established,
            (false, Some(c)) => c.code,
            (false, None) => return false,
        };
        if !a.answered {
            return false;
        }
        self.become_up(now, code, out);
        true
    }

    fn attempt_failed(&mut self, now: Boot, a: Attempt, out: &mut Actions) {
        let there = self.seen.get(self.active).is_some_and(|w| w.counters().is_some());
        let shaken = self.handshake_of(self.active).is_some_and(|at| at >= a.since);
        let code = match (there, self.unsent, shaken) {
            (false, _, _) => Code::InterfaceGone,
            (true, true, _) => Code::EchoUnsent,
            (true, false, true) => Code::NoEcho,
            (true, false, false) => Code::NoHandshake,
        };
        match a.fallback {
            Some((hub, address)) => {
                self.failed_moves = self.failed_moves.saturating_add(1);
                self.blame(now, self.active, code);
                self.move_to(now, hub, address, Code::Returned, None, out);
            }
            None => self.fail(now, self.active, code, None, out),
        }
    }

    /// Waits, and longer each time; not at all if the network changed meanwhile.
    fn fail(&mut self, now: Boot, hub: usize, code: Code, rung: Option<Rung>, out: &mut Actions) {
        self.blame(now, hub, code);
        let mut wait = self.backoff.fail(&mut self.dice);
        if std::mem::take(&mut self.woken)
            && let Some(wake) = self.wake(now)
        {
            self.greet(wake);
            wait = Duration::ZERO;
        }
        self.status.backoff = Some(wait);
        self.sample_at = now + SAMPLE_WAITING;
        self.enter(now, Phase::Waiting { since: now, until: now + wait, due: false }, hub, code, rung, out);
    }

    /// Moves the tunnel to a hub whose handshake was seen while it was watched (or while it was active before).
    fn move_to(
        &mut self,
        now: Boot,
        hub: usize,
        address: SocketAddr,
        code: Code,
        fallback: Option<(usize, SocketAddr)>,
        out: &mut Actions,
    ) {
        self.status.attempts += 1;
        let credit = self.handshake_of(hub).map(|at| Credit { at, code });
        let timeout =
            if fallback.is_some() { self.config.uplink.probe_after } else { self.config.uplink.attempt_timeout };
        self.active = hub;
        self.endpoint = Some(Endpoint { addr: address, attempt: 0 });
        self.ladder.restart(hub);
        self.ladder.note(address);
        self.connect(
            now,
            Attempt { since: now, deadline: now + timeout, answered: false, credit, fallback },
            code,
            None,
            out,
        );
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
    fn greet(&mut self, wake: Wake) {
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
fn act(out: &mut Actions, action: Action) {
    let fits = out.push(action).is_ok();
    debug_assert!(fits, "more than {MAX_ACTIONS} actions for one event");
}
