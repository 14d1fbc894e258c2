//! Connection attempts: look-up, recovery ladder, proof.
use super::super::ladder::{Next, Rung};
use super::super::status::Code;
use super::{
    Actions, Attempt, Phase, PriorHandshake, RESOLVE_TIMEOUT, SAMPLE_WAITING, Sample, Session, SessionAction, act,
};
use spoke_model::time::Boot;
use spoke_model::wireguard::REJECT_AFTER_TIME;
use spoke_net::state::Endpoint;
use std::net::SocketAddr;
use std::time::Duration;

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
            Some((hub, address, counters)) => {
                self.active = hub;
                self.endpoint = Some(Endpoint { addr: address, attempt: 0 });
                self.ladder.restart(hub);
                self.ladder.record_tried(address);
                let prior = counters.last_handshake.map(|_| PriorHandshake { at: now, code: Code::Adopted });
                self.status.attempts += 1;
                let deadline = now + self.config.uplink.attempt_timeout;
                let attempt = Attempt { since: now, deadline, answered: false, prior, fallback: None };
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
        let hub = self.ladder.hub();
        self.enter(now, Phase::Resolving { deadline: now + RESOLVE_TIMEOUT }, hub, code, None, out);
        self.resolve(now, out);
    }

    pub(super) fn resolve(&mut self, now: Boot, out: &mut Actions) {
        let hub = self.ladder.hub();
        if let Some(address) = self.literal(hub) {
            self.store_addresses(hub, vec![address]);
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
            let rung = self.ladder.advance(now);
            self.record_rung(rung);
            return self.fail(now, hub, Code::Unresolved, Some(rung), out);
        };
        let favourite = known.favourite;
        let addresses = known.addresses.clone();
        let (address, rung) = match self.ladder.next(&addresses, favourite) {
            Next::Try(address, rung) => (address, rung),
            Next::Exhausted => {
                let rung = self.ladder.advance(now);
                self.record_rung(rung);
                let state = self.phase;
                self.enter(now, state, self.ladder.hub(), Code::Attempt, Some(rung), out);
                // Ends: a hub just selected has an untried address or none.
                return self.resolve(now, out);
            }
        };
        if let Some(rung) = rung {
            self.record_rung(rung);
        }
        let prior = self.prior(hub).filter(|_| hub == self.active);
        self.active = hub;
        self.set_endpoint(hub, address);
        let deadline = now + self.config.uplink.attempt_timeout;
        let attempt = Attempt { since: now, deadline, answered: false, prior, fallback: None };
        self.connect(now, attempt, Code::Attempt, rung, out);
    }

    /// Sets the endpoint, also an unchanged one that has roamed in the kernel.
    pub(super) fn set_endpoint(&mut self, hub: usize, address: SocketAddr) {
        let in_use = self.known.get(hub).and_then(|k| k.in_use);
        let before = self.endpoint.filter(|e| e.addr == address);
        let again = before.is_some() && in_use.is_some_and(|u| u != address);
        let attempt = self.endpoint.map_or(0, |e| e.attempt) + u64::from(again);
        self.endpoint = Some(Endpoint { addr: address, attempt });
    }

    pub(super) fn record_rung(&mut self, rung: Rung) {
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

    /// Publishes the choice and starts collecting proof.
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

    fn prior(&self, hub: usize) -> Option<PriorHandshake> {
        let code = if self.held == Some(hub) { Code::Resumed } else { Code::Established };
        self.handshake_of(hub).map(|at| PriorHandshake { at, code })
    }

    /// A packet arrived while waiting: collect proof without changing the endpoint.
    pub(super) fn connect_after_packet(&mut self, now: Boot, since: Boot, out: &mut Actions) {
        self.status.attempts += 1;
        let prior = self.prior(self.active);
        let deadline = now + self.config.uplink.attempt_timeout;
        self.connect(now, Attempt { since, deadline, answered: false, prior, fallback: None }, Code::Heard, None, out);
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
        let there = self.seen.get(self.active).is_some_and(|w| w.counters().is_some());
        // After an attempt that lacked only the echo the keys are fresh, so no new handshake is to be expected.
        let lacked_echo = self.status.fault.as_ref().is_some_and(|f| f.code == Code::NoEcho);
        let handshaken = self
            .handshake_of(self.active)
            .is_some_and(|at| at >= a.since || (lacked_echo && now.since(at) < REJECT_AFTER_TIME));
        let code = match (there, self.unsent, handshaken) {
            (false, _, _) => Code::InterfaceGone,
            (true, true, _) => Code::EchoUnsent,
            (true, false, true) => Code::NoEcho,
            (true, false, false) => Code::NoHandshake,
        };
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
        self.set_fault(now, hub, code);
        let mut wait = self.backoff.fail(&mut self.rng);
        if std::mem::take(&mut self.network_changed)
            && let Some(wake) = self.use_wake(now)
        {
            self.reset_on_network_change(wake);
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
        self.connect(
            now,
            Attempt { since: now, deadline: now + timeout, answered: false, prior, fallback },
            code,
            None,
            out,
        );
    }
}
