//! Connection attempts: look-up, recovery ladder, proof.
use super::super::ladder::{Next, Rung};
use super::super::liveness::PeerActivity;
use super::super::status::Code;
use super::{
    Actions, Attempt, MANY_FAILURES, Phase, PriorHandshake, RESOLVE_TIMEOUT, SAMPLE_WAITING, Sample, Session,
    SessionAction, act,
};
use spoke_model::time::Boot;
use spoke_model::wireguard::REJECT_AFTER_TIME;
use spoke_net::state::Endpoint;
use std::net::SocketAddr;
use std::time::Duration;

/// Time limit of an attempt while another hub or the other family is left to sweep: two of WireGuard's handshake
/// initiations, which are five seconds apart.
const SWEEP_TIMEOUT: Duration = Duration::from_secs(6);
/// First and longest interval of the echoes of an attempt; it doubles. An echo without a session waits in WireGuard's
/// queue and is sent with the handshake.
const ECHO_FIRST: Duration = Duration::from_millis(200);
const ECHO_LAST: Duration = Duration::from_secs(2);
/// Interval after [`MANY_FAILURES`].
const ECHO_RARE: Duration = Duration::from_secs(4);

impl Session {
    /// First sample: adopt a hub peer of the kernel, or begin with the best hub.
    pub(super) fn start(&mut self, now: Boot, sample: &Sample, out: &mut Actions) {
        // The kernel may hold the active hub and a standby, which has carried almost no traffic.
        let found = sample
            .hubs
            .iter()
            .enumerate()
            .filter_map(|(hub, seen)| Some((hub, (*seen)?.endpoint?, (*seen)?.counters)))
            .max_by_key(|(_, _, c)| (c.last_handshake.is_some(), c.rx.saturating_add(c.tx)));
        match found {
            // The kernel's endpoint is of the configuration before: the new one is used at once, by the session of before.
            Some((hub, _, counters)) if self.config.edited.contains(&hub) => {
                self.active = hub;
                self.found = counters.last_handshake.map(|_| (hub, now));
                self.endpoint = self.literal(hub).map(|addr| Endpoint { addr, attempt: 0 });
                self.ladder.restart(hub);
                self.publish(now, out);
                self.attempt(now, Code::Started, out);
            }
            Some((hub, address, counters)) => {
                self.active = hub;
                self.endpoint = Some(Endpoint { addr: address, attempt: 0 });
                self.ladder.restart(hub);
                self.ladder.record_tried(address);
                let prior = counters.last_handshake.map(|_| PriorHandshake { at: now, code: Code::Adopted });
                self.status.attempts += 1;
                let attempt = self.new_attempt(now, self.config.uplink.attempt_timeout, prior, None);
                self.connect(now, attempt, Code::Adopted, None, out);
            }
            None => {
                self.endpoint = self.literal(0).map(|addr| Endpoint { addr, attempt: 0 });
                self.publish(now, out);
                self.attempt(now, Code::Started, out);
            }
        }
    }

    /// Begins an attempt at the ladder's current hub.
    pub(super) fn attempt(&mut self, now: Boot, code: Code, out: &mut Actions) {
        self.network_changed = false;
        self.status.attempts += 1;
        self.seek(now);
        let hub = self.ladder.hub();
        self.enter(now, Phase::Resolving { deadline: now + RESOLVE_TIMEOUT }, hub, code, None, out);
        self.resolve(now, out);
    }

    pub(super) fn resolve(&mut self, now: Boot, out: &mut Actions) {
        let hub = self.ladder.hub();
        if let Some(address) = self.literal(hub) {
            self.store_addresses(now, hub, vec![address]);
            self.next_rung(now, out);
        } else {
            self.phase = Phase::Resolving { deadline: now + RESOLVE_TIMEOUT };
            act(out, SessionAction::Resolve(hub));
        }
    }

    /// After the look-up: takes the next rung with the known addresses.
    pub(super) fn next_rung(&mut self, now: Boot, out: &mut Actions) {
        let hub = self.ladder.hub();
        let Some(known) = self.known.get(hub).filter(|k| !k.addresses.is_empty()) else {
            self.ladder.record_unresolved();
            let rung = self.rung.take();
            return self.fail(now, hub, Code::Unresolved, rung, out);
        };
        let favourite = known.favourite;
        let addresses = known.addresses.clone();
        let (address, rung) = match self.ladder.next(&addresses, favourite) {
            Next::Try(address, rung) => (address, rung),
            Next::Exhausted => {
                // The name has lost addresses. Ends: the stage is over for this hub.
                self.seek(now);
                return self.resolve(now, out);
            }
        };
        if let Some(rung) = rung {
            self.record_rung(now, rung);
        }
        let rung = rung.filter(|r| *r == Rung::Port).or(self.rung.take()).or(rung);
        let prior = self.prior(hub).filter(|_| hub == self.active);
        self.active = hub;
        self.set_endpoint(hub, address);
        let full = self.config.uplink.attempt_timeout;
        let timeout = if self.ladder.sweeping() { full.min(SWEEP_TIMEOUT) } else { full };
        let attempt = self.new_attempt(now, timeout, prior, None);
        self.round.0 += 1;
        self.connect(now, attempt, Code::Attempt, rung, out);
    }

    pub(super) fn new_attempt(
        &self,
        now: Boot,
        timeout: Duration,
        prior: Option<PriorHandshake>,
        fallback: Option<(usize, SocketAddr)>,
    ) -> Attempt {
        let sent = self.seen.get(self.active).and_then(PeerActivity::counters).map_or(0, |c| c.tx);
        Attempt { since: now, deadline: now + timeout, answered: false, echoes: 0, sent, prior, fallback }
    }

    /// Sets the endpoint, also an unchanged one that has roamed in the kernel.
    pub(super) fn set_endpoint(&mut self, hub: usize, address: SocketAddr) {
        let in_use = self.known.get(hub).and_then(|k| k.in_use);
        let before = self.endpoint.filter(|e| e.addr == address);
        let again = before.is_some() && in_use.is_some_and(|u| u != address);
        let attempt = self.endpoint.map_or(0, |e| e.attempt) + u64::from(again);
        self.endpoint = Some(Endpoint { addr: address, attempt });
    }

    pub(super) fn record_rung(&mut self, now: Boot, rung: Rung) {
        *self.status.rungs.entry(rung).or_default() += 1;
        match rung {
            Rung::Port => self.port_epoch = self.port_epoch.saturating_add(1),
            Rung::Rebuild => {
                self.rebuild = self.rebuild.saturating_add(1);
                self.rebuilt_at = Some(now);
                self.held = None;
            }
            Rung::Address | Rung::Family | Rung::Hub | Rung::Again => {}
        }
    }

    /// Publishes the choice and starts collecting proof.
    pub(super) fn connect(&mut self, now: Boot, attempt: Attempt, code: Code, rung: Option<Rung>, out: &mut Actions) {
        self.watch = None;
        self.echoes.clear();
        self.unsent = false;
        self.answered_elsewhere = false;
        self.enter(now, Phase::Connecting(attempt), self.active, code, rung, out);
        self.publish(now, out);
        act(out, SessionAction::Look);
        self.echo(now, self.active, out);
        self.echo_at = now + self.echo_interval(0);
        self.sample(now, Duration::from_millis(100), out);
    }

    /// Time between two echoes of an attempt after the `n`th.
    fn echo_interval(&self, n: u32) -> Duration {
        if self.backoff.failures() >= MANY_FAILURES {
            return ECHO_RARE;
        }
        ECHO_FIRST.saturating_mul(1 << n.min(8)).min(ECHO_LAST)
    }

    fn prior(&self, hub: usize) -> Option<PriorHandshake> {
        let code = if self.held == Some(hub) { Code::Resumed } else { Code::Established };
        let found = self.found.filter(|(known, _)| *known == hub).map(|(_, at)| at);
        self.handshake_of(hub).or(found).map(|at| PriorHandshake { at, code })
    }

    /// A packet arrived while waiting: collect proof without changing the endpoint.
    pub(super) fn connect_after_packet(&mut self, now: Boot, since: Boot, out: &mut Actions) {
        self.status.attempts += 1;
        let prior = self.prior(self.active);
        let attempt = self.new_attempt(now, self.config.uplink.attempt_timeout, prior, None);
        self.connect(now, Attempt { since, ..attempt }, Code::Heard, None, out);
    }

    pub(super) fn continue_attempt(&mut self, now: Boot, a: Attempt, out: &mut Actions) {
        if now >= a.deadline {
            return self.attempt_failed(now, a, out);
        }
        let early = now.since(self.published_at) < Duration::from_secs(1);
        if now >= self.echo_at {
            let a = Attempt { echoes: a.echoes.saturating_add(1), ..a };
            self.phase = Phase::Connecting(a);
            self.echo_at = now + self.echo_interval(a.echoes);
            self.echo(now, self.active, out);
        }
        if now >= self.sample_at {
            self.sample(now, Duration::from_millis(if early { 100 } else { 500 }), out);
        }
    }

    /// Enters `Up` if handshake and echo are both proven.
    pub(super) fn check_proof(&mut self, now: Boot, a: Attempt, out: &mut Actions) -> bool {
        let fresh = self.handshake_of(self.active).is_some_and(|at| at >= a.since);
        let prior = a.prior.filter(|c| now.since(c.at) < REJECT_AFTER_TIME);
        let code = match (fresh, prior) {
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

    pub(super) fn attempt_failed(&mut self, now: Boot, a: Attempt, out: &mut Actions) {
        let counters = self.seen.get(self.active).and_then(PeerActivity::counters);
        // After an attempt that lacked only the echo the keys are fresh, so no new handshake is to be expected.
        let lacked_echo = self.known.get(self.active).is_some_and(|k| k.echo_fault);
        let handshaken = self
            .handshake_of(self.active)
            .is_some_and(|at| at >= a.since || (lacked_echo && now.since(at) < REJECT_AFTER_TIME));
        let code = match (counters.is_some(), self.answered_elsewhere, self.unsent, handshaken) {
            (false, _, _, _) => Code::InterfaceGone,
            (true, true, _, _) => Code::EchoElsewhere,
            (true, false, true, _) => Code::EchoUnsent,
            (true, false, false, true) => self.blame(Code::NoEcho),
            (true, false, false, false) => self.blame(Code::NoHandshake),
        };
        if let Some(known) = self.known.get_mut(self.active) {
            known.echo_fault = code == Code::NoEcho;
        }
        // A peer that WireGuard could not send a single handshake to.
        let mute = code == Code::NoHandshake && counters.is_some_and(|c| c.tx == a.sent);
        self.round.1 += u32::from(mute);
        match a.fallback {
            Some((hub, address)) => {
                self.failed_moves = self.failed_moves.saturating_add(1);
                self.set_fault(now, self.active, code);
                self.move_to(now, hub, address, Code::Returned, None, out);
            }
            None => self.fail(now, self.active, code, None, out),
        }
    }

    /// Enters `Waiting` with the next backoff; with none if the network changed during the attempt.
    pub(super) fn fail(&mut self, now: Boot, hub: usize, code: Code, rung: Option<Rung>, out: &mut Actions) {
        let code = self.blame(code);
        self.set_fault(now, hub, code);
        let next = self.ladder.sweeping() && self.path_is_open();
        let mut wait = if next { Duration::ZERO } else { self.backoff.fail(&mut self.rng) };
        if std::mem::take(&mut self.network_changed) && self.use_wake(now) {
            self.ladder.restart_on_change();
            wait = Duration::ZERO;
        }
        self.status.backoff = Some(wait);
        self.sample_at = now + SAMPLE_WAITING;
        self.enter(now, Phase::Waiting { since: now, until: now + wait, due: false }, hub, code, rung, out);
    }

    /// Moves the tunnel to a hub whose handshake was seen as standby or as the previous active hub.
    pub(super) fn move_to(
        &mut self,
        now: Boot,
        hub: usize,
        address: SocketAddr,
        code: Code,
        fallback: Option<(usize, SocketAddr)>,
        out: &mut Actions,
    ) {
        self.status.attempts += 1;
        let prior = self.handshake_of(hub).map(|at| PriorHandshake { at, code });
        let timeout =
            if fallback.is_some() { self.config.uplink.probe_after } else { self.config.uplink.attempt_timeout };
        self.active = hub;
        self.endpoint = Some(Endpoint { addr: address, attempt: 0 });
        self.ladder.restart(hub);
        self.ladder.record_tried(address);
        let attempt = self.new_attempt(now, timeout, prior, fallback);
        self.connect(now, attempt, code, None, out);
    }
}
