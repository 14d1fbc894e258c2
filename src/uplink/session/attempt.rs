//! Attempts: the look-up, the step of the ladder, and the gathering of the proof.
use super::super::ladder::{Next, Rung};
use super::super::status::Code;
use super::{Actions, Attempt, Credit, Phase, RESOLVE_TIMEOUT, SAMPLE_WAITING, Sample, Session, SessionAction, act};
use spoke_model::time::Boot;
use spoke_model::wireguard::REJECT_AFTER_TIME;
use spoke_net::state::Endpoint;
use std::net::SocketAddr;
use std::time::Duration;

impl Session {
    /// First look done: adopt what is there, or begin with the best hub.
    pub(super) fn start(&mut self, now: Boot, sample: &Sample, out: &mut Actions) {
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
    pub(super) fn attempt(&mut self, now: Boot, code: Code, out: &mut Actions) {
        self.woken = false;
        self.status.attempts += 1;
        let hub = self.ladder.hub();
        self.enter(now, Phase::Resolving { deadline: now + RESOLVE_TIMEOUT }, hub, code, None, out);
        self.look_up(now, out);
    }

    pub(super) fn look_up(&mut self, now: Boot, out: &mut Actions) {
        let hub = self.ladder.hub();
        if let Some(address) = self.literal(hub) {
            self.learn(hub, vec![address]);
            self.next_rung(now, out);
        } else {
            self.phase = Phase::Resolving { deadline: now + RESOLVE_TIMEOUT };
            act(out, SessionAction::Resolve(hub));
        }
    }

    /// The look-up is over: take the next step of the ladder with the addresses that are known.
    pub(super) fn next_rung(&mut self, now: Boot, out: &mut Actions) {
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
        let credit = self.credit(hub).filter(|_| hub == self.active);
        self.active = hub;
        self.set_endpoint(hub, address);
        let deadline = now + self.config.uplink.attempt_timeout;
        let attempt = Attempt { since: now, deadline, answered: false, credit, fallback: None };
        self.connect(now, attempt, Code::Attempt, rung, out);
    }

    /// Has the kernel send to `address`, once more if it was told so before and has roamed away since.
    pub(super) fn set_endpoint(&mut self, hub: usize, address: SocketAddr) {
        let in_use = self.known.get(hub).and_then(|k| k.in_use);
        let before = self.endpoint.filter(|e| e.addr == address);
        let again = before.is_some() && in_use.is_some_and(|u| u != address);
        let attempt = self.endpoint.map_or(0, |e| e.attempt) + u64::from(again);
        self.endpoint = Some(Endpoint { addr: address, attempt });
    }

    pub(super) fn take(&mut self, rung: Rung) {
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
    pub(super) fn connect(&mut self, now: Boot, attempt: Attempt, code: Code, rung: Option<Rung>, out: &mut Actions) {
        self.watch = None;
        self.echoes.clear();
        self.unsent = false;
        self.enter(now, Phase::Connecting(attempt), self.active, code, rung, out);
        self.publish(now, out);
        self.echo(now, self.active, out);
        self.echo_at = now + Duration::from_millis(200);
        self.sample(now, Duration::from_millis(100), out);
    }

    /// The session that the kernel has with the hub, if its handshake was seen on the boot clock.
    fn credit(&self, hub: usize) -> Option<Credit> {
        let code = if self.held == Some(hub) { Code::Resumed } else { Code::Established };
        self.handshake_of(hub).map(|at| Credit { at, code })
    }

    /// The hub was heard from while waiting: prove it, without disturbing what evidently works.
    pub(super) fn heard(&mut self, now: Boot, since: Boot, out: &mut Actions) {
        self.status.attempts += 1;
        let credit = self.credit(self.active);
        let deadline = now + self.config.uplink.attempt_timeout;
        self.connect(now, Attempt { since, deadline, answered: false, credit, fallback: None }, Code::Heard, None, out);
    }

    pub(super) fn continue_attempt(&mut self, now: Boot, a: Attempt, out: &mut Actions) {
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
    pub(super) fn judge(&mut self, now: Boot, a: Attempt, out: &mut Actions) -> bool {
        let fresh = self.handshake_of(self.active).is_some_and(|at| at >= a.since);
        let credit = a.credit.filter(|c| now.since(c.at) < REJECT_AFTER_TIME);
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

    pub(super) fn attempt_failed(&mut self, now: Boot, a: Attempt, out: &mut Actions) {
        let there = self.seen.get(self.active).is_some_and(|w| w.counters().is_some());
        // With keys from an attempt before that only lacked the echo there is no new handshake, and none is missing.
        let lacked_echo = self.status.fault.as_ref().is_some_and(|f| f.code == Code::NoEcho);
        let shaken = self
            .handshake_of(self.active)
            .is_some_and(|at| at >= a.since || (lacked_echo && now.since(at) < REJECT_AFTER_TIME));
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
    pub(super) fn fail(&mut self, now: Boot, hub: usize, code: Code, rung: Option<Rung>, out: &mut Actions) {
        self.blame(now, hub, code);
        let mut wait = self.backoff.fail(&mut self.rng);
        if std::mem::take(&mut self.woken)
            && let Some(wake) = self.wake(now)
        {
            self.reset_on_network_change(wake);
            wait = Duration::ZERO;
        }
        self.status.backoff = Some(wait);
        self.sample_at = now + SAMPLE_WAITING;
        self.enter(now, Phase::Waiting { since: now, until: now + wait, due: false }, hub, code, rung, out);
    }

    /// Moves the tunnel to a hub whose handshake was seen while it was watched (or while it was active before).
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
}
