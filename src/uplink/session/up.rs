//! State `Up`: liveness of the tunnel, and failback to better hubs.
use super::super::liveness::{CounterChange, PeerActivity};
use super::super::select::{StandbyAction, StandbyWatch};
use super::super::status::{Code, UplinkFault};
use super::{Actions, Phase, Sample, Session, SessionAction, SessionDeadline, act};
use spoke_model::deadline::Deadline;
use spoke_model::time::Boot;
use spoke_model::wireguard::REJECT_AFTER_TIME;
use spoke_net::state::Endpoint;
use std::net::SocketAddr;
use std::time::Duration;

/// Interval of echoes while a reply is overdue.
const PROBE_EVERY: Duration = Duration::from_secs(2);

/// Shortest interval of echoes caused by network changes, which bounds the traffic under a flapping link.
const NETWORK_PROBE_EVERY: Duration = Duration::from_secs(5);

/// Interval of look-ups of the hubs that do not carry the tunnel: the resolver may be behind the one that does.
const REFRESH_NAMES: Duration = Duration::from_secs(3600);

/// Counters of the hubs, and what a sample showed of the active one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sampled {
    /// An authenticated packet was received.
    pub(super) received: bool,
    /// A handshake was completed.
    pub(super) handshake: bool,
    /// It answered an echo.
    pub(super) answered: bool,
}

impl Session {
    pub(super) fn become_up(&mut self, now: Boot, code: Code, out: &mut Actions) {
        self.network_changed = false;
        self.failed_moves = if code == Code::Failback { 0 } else { self.failed_moves };
        self.status.sessions += 1;
        self.status.failovers += u64::from(self.held.is_some_and(|before| before != self.active));
        self.held = Some(self.active);
        self.status.fault = None;
        self.status.backoff = None;
        if let Some(known) = self.known.get_mut(self.active) {
            known.favourite = self.endpoint.map(|e| e.addr);
        }
        if let Some(w) = self.seen.get_mut(self.active) {
            w.record_echo(now);
        }
        self.round = (0, 0);
        self.watch = (self.active > 0).then(|| StandbyWatch::new(now, &mut self.rng));
        self.enter(now, Phase::Up { since: now }, self.active, code, None, out);
        self.sample_at = now + self.sample_every();
    }

    pub(super) fn sample_every(&self) -> Duration {
        (self.config.uplink.probe_after / 2).clamp(Duration::from_secs(1), Duration::from_secs(5))
    }

    /// Everything that is not listed here is decided at the next sample.
    pub(super) fn up_deadline(&self, sample: Deadline<SessionDeadline>) -> Deadline<SessionDeadline> {
        let mut next = sample;
        if let Some(since) = self.seen.get(self.active).and_then(PeerActivity::echo_since) {
            next = next.min(Deadline::new(since + self.config.uplink.dead_after, SessionDeadline::Dead));
        } else if let Some(at) = self.echoed_at {
            next = next.min(Deadline::new(at + self.config.uplink.idle_probe(), SessionDeadline::Echo));
        }
        if let Some(watch) = &self.watch {
            next = next.min(Deadline::new(watch.deadline(self.rules()), SessionDeadline::Standby));
        }
        next
    }

    /// When the session's keys expire unless they are renewed.
    fn stale_at(&self, since: Boot) -> Boot {
        self.handshake_of(self.active).unwrap_or(since) + REJECT_AFTER_TIME
    }

    /// Samples, sends echoes, or declares the tunnel lost, as due.
    pub(super) fn up_tick(&mut self, now: Boot, since: Boot, out: &mut Actions) {
        let u = self.config.uplink.clone();
        let Some(w) = self.seen.get(self.active) else { return };
        let quiet = w.quiet_since().map(|at| now.since(at));
        let missing = w.echo_since().map(|at| now.since(at));
        let doubt = quiet.max(missing);
        let asked_ago = self.echoed_at.map_or(Duration::MAX, |at| now.since(at));
        let stale_at = self.stale_at(since);
        let stale = now >= stale_at;
        // Data without a reply is no proof before an echo was missed as well.
        let dead = missing.is_some_and(|m| m >= u.dead_after)
            || (quiet.is_some_and(|q| q >= u.dead_after) && missing.is_some_and(|m| m >= u.probe_after));
        if dead {
            if asked_ago < u.dead_after {
                return self.lost(now, since, if stale { Code::HandshakeOld } else { Code::Silent }, out);
            }
            // The process or the machine slept: nothing was asked for so long that the silence proves nothing.
            if let Some(w) = self.seen.get_mut(self.active) {
                w.restart_echo(now);
            }
            self.echo(now, self.active, out);
        }
        if now >= self.sample_at {
            self.sample(now, self.sample_every(), out);
        }
        let asked_ago = self.echoed_at.map_or(Duration::MAX, |at| now.since(at));
        let doubt = doubt.is_some_and(|d| d >= u.probe_after) && asked_ago >= PROBE_EVERY;
        let old =
            stale && (self.echoed_at.is_none_or(|at| at < stale_at) || (missing.is_some() && asked_ago >= PROBE_EVERY));
        let idle = asked_ago >= u.idle_probe();
        let network_changed = self.network_changed && asked_ago >= NETWORK_PROBE_EVERY;
        if doubt || old || idle || network_changed {
            self.network_changed &= !network_changed;
            self.echo(now, self.active, out);
        }
        self.refresh_names(now, out);
        self.standby_tick(now, out);
    }

    fn standby_tick(&mut self, now: Boot, out: &mut Actions) {
        let rules = self.rules();
        let Some(watch) = &mut self.watch else { return };
        let action = watch.tick(now, self.active, &self.hubs, &self.seen, rules, &mut self.rng);
        self.perform(now, action, out);
    }

    /// Looks up the names of the other hubs, so that their addresses are known when this one is lost.
    fn refresh_names(&mut self, now: Boot, out: &mut Actions) {
        // A look-up replaces the one in progress.
        if self.watch.as_ref().is_some_and(StandbyWatch::is_resolving) {
            return;
        }
        let due = |k: &super::HubAddresses| k.resolved_at.is_none_or(|at| now.since(at) >= REFRESH_NAMES);
        let other = (0..self.hubs.len())
            .find(|h| *h != self.active && self.literal(*h).is_none() && self.known.get(*h).is_some_and(due));
        let Some(hub) = other else { return };
        if let Some(known) = self.known.get_mut(hub) {
            known.resolved_at = Some(now);
        }
        act(out, SessionAction::Resolve(hub));
    }

    fn perform(&mut self, now: Boot, action: StandbyAction, out: &mut Actions) {
        match action {
            StandbyAction::None => {}
            StandbyAction::Resolve(hub) => match self.literal(hub) {
                Some(address) => self.up_resolved(now, hub, vec![address], out),
                None => act(out, SessionAction::Resolve(hub)),
            },
            StandbyAction::Changed => self.publish(now, out),
            StandbyAction::Echo(hub) => self.echo(now, hub, out),
            StandbyAction::Move(hub, address) => {
                let fallback = self.endpoint.map(|e| (self.active, e.addr));
                self.move_to(now, hub, address, Code::Failback, fallback, out);
            }
        }
    }

    pub(super) fn up_resolved(&mut self, now: Boot, hub: usize, addresses: Vec<SocketAddr>, out: &mut Actions) {
        self.store_addresses(now, hub, addresses);
        let Some((watch, known)) = self.watch.as_mut().zip(self.known.get(hub)) else { return };
        let action = watch.resolved(now, hub, &known.addresses, &mut self.rng);
        self.perform(now, action, out);
    }

    pub(super) fn up_sampled(&mut self, now: Boot, since: Boot, sample: &Sample, replaced: bool, out: &mut Actions) {
        self.record_counters(now, sample);
        let there = sample.hubs.get(self.active).is_some_and(Option::is_some);
        if there && !replaced {
            return self.up_tick(now, since, out);
        }
        // Removed, or already recreated by the reconciler between two samples: a new peer needs a new handshake.
        self.reset_backoff_if_stable(now, since);
        self.set_fault(now, self.active, Code::InterfaceGone);
        self.status.attempts += 1;
        self.held = None;
        self.down_since = now;
        let attempt = self.new_attempt(now, self.config.uplink.attempt_timeout, None, None);
        self.connect(now, attempt, Code::InterfaceGone, None, out);
    }

    pub(super) fn up_unsent(&mut self, now: Boot, since: Boot, seq: u16) {
        self.forget_echo(seq);
        let fault =
            UplinkFault { since: now.max(since), code: Code::EchoUnsent, detail: Code::EchoUnsent.detail().to_owned() };
        self.status.fault.get_or_insert(fault);
    }

    /// Resets backoff and ladder if the session lasted `stable_after`.
    fn reset_backoff_if_stable(&mut self, now: Boot, since: Boot) {
        if now.since(since) >= self.config.uplink.stable_after {
            self.backoff.reset();
            self.ladder.restart(self.active);
        }
    }

    fn lost(&mut self, now: Boot, since: Boot, code: Code, out: &mut Actions) {
        self.reset_backoff_if_stable(now, since);
        self.down_since = now;
        self.ladder.record_lost(self.active);
        let w = self.seen.get(self.active);
        let heard = w.is_some_and(|w| w.received_at().zip(w.echo_since()).is_some_and(|(heard, echo)| heard > echo));
        let code = match code {
            _ if self.answered_elsewhere => Code::EchoElsewhere,
            _ if heard => self.blame(Code::NoEcho),
            other => self.blame(other),
        };
        if let Some(known) = self.known.get_mut(self.active) {
            known.echo_fault = code == Code::NoEcho;
        }
        // A good standby takes over without waiting for `failback_after`.
        if let Some((hub, address, _)) = self.watch.as_ref().and_then(StandbyWatch::good) {
            self.set_fault(now, self.active, code);
            return self.move_to(now, hub, address, Code::Failover, None, out);
        }
        let had_standby = self.watch.take().is_some_and(|w| w.standby().is_some());
        self.fail(now, self.active, code, None, out);
        if had_standby {
            self.publish(now, out);
        }
    }

    /// Records interface index and endpoints. Returns whether the interface was recreated since the last sample.
    pub(super) fn record_interface(&mut self, sample: &Sample) -> bool {
        let replaced = self.link.zip(sample.link).is_some_and(|(before, now)| before != now);
        self.link = sample.link.or(self.link);
        if replaced {
            for activity in &mut self.seen {
                activity.record_absent();
            }
        }
        for (known, seen) in self.known.iter_mut().zip(&sample.hubs) {
            known.in_use = seen.and_then(|s| s.endpoint);
        }
        replaced
    }

    /// Records the counters of every hub, and judges the echoes by them.
    pub(super) fn record_counters(&mut self, now: Boot, sample: &Sample) -> Sampled {
        let mut active = CounterChange::default();
        for (hub, w) in self.seen.iter_mut().enumerate() {
            match sample.hubs.get(hub).copied().flatten() {
                Some(seen) => {
                    let change = w.record(now, seen.counters);
                    if hub == self.active {
                        active = change;
                    }
                }
                None => {
                    w.record_absent();
                }
            }
        }
        let CounterChange { handshake, received } = active;
        Sampled { received, handshake, answered: self.judge_echoes(now) }
    }

    pub(super) fn sample(&mut self, now: Boot, again: Duration, out: &mut Actions) {
        self.sample_at = now + again;
        act(out, SessionAction::Sample);
    }

    pub(super) fn publish(&mut self, now: Boot, out: &mut Actions) {
        self.published_at = now;
        act(out, SessionAction::Publish);
    }

    /// The published endpoint.
    pub fn endpoint(&self) -> Option<Endpoint> {
        self.endpoint
    }
}
