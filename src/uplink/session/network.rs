//! The network outside of the tunnel: which changes end a wait, and which fault is not the hub's.
use super::super::path::Path;
use super::super::status::Code;
use super::{Actions, MAX_WAKES, Phase, Session};
use spoke_model::time::Boot;
use std::net::IpAddr;
use std::time::Duration;

/// Outage after which the interface is recreated without evidence against it, and shortest interval of rebuilds: what
/// others put on the interface (queueing, routes, settings) goes with it.
pub(super) const REBUILD_AFTER: Duration = Duration::from_secs(6 * 3600);

/// Attempts of a round that must have sent nothing before that counts as evidence against the interface.
const MUTE_ATTEMPTS: u32 = 2;

impl Session {
    /// The address to look up for [`SessionEvent::Path`](super::SessionEvent::Path); `None`: any.
    pub fn path_target(&self) -> Option<IpAddr> {
        let known = || self.known.get(self.active)?.addresses.first().copied();
        self.endpoint.map(|e| e.addr).or_else(known).map(|a| a.ip())
    }

    /// Records a look. Only a difference moves the session: a stream of events must not hold it where it is.
    pub(super) fn record_path(&mut self, now: Boot, to: Option<IpAddr>, path: Path, out: &mut Actions) {
        let before = self.path.replace((to, path));
        self.status.path = Some(path);
        // A look at another address shows no change.
        if before.is_none_or(|(last, was)| last != to || was == path) {
            return;
        }
        match self.phase {
            Phase::Starting => {}
            Phase::Waiting { .. } => {
                if self.use_wake(now) {
                    self.ladder.restart_on_change();
                    self.attempt(now, Code::NetworkChanged, out);
                }
            }
            Phase::Resolving { .. } => self.network_changed = true,
            Phase::Connecting(_) => {
                self.network_changed = true;
                self.echo_at = self.echo_at.min(now + Duration::from_millis(100));
            }
            // No counter shows a link that went down, so an echo is needed; `up_tick` limits their rate.
            Phase::Up { since } => {
                self.network_changed = true;
                self.up_tick(now, since, out);
            }
        }
    }

    /// Spends one of the wake-ups that may end a backoff; `false` if none is left.
    pub(super) fn use_wake(&mut self, now: Boot) -> bool {
        let every = self.config.uplink.backoff_max;
        while self.wakes < MAX_WAKES && now.since(self.wake_earned_at) >= every {
            self.wakes += 1;
            self.wake_earned_at += every;
        }
        if self.wakes == 0 {
            return false;
        }
        if self.wakes == MAX_WAKES {
            self.wake_earned_at = now;
        }
        self.wakes -= 1;
        true
    }

    /// Whether packets can leave the machine, as far as is known.
    pub(super) fn path_is_open(&self) -> bool {
        self.path.is_none_or(|(_, path)| path.is_open())
    }

    /// The code of a fault: without a way out of the machine nothing was learnt about the hub.
    pub(super) fn blame(&self, code: Code) -> Code {
        let no_answer =
            matches!(code, Code::NoHandshake | Code::NoEcho | Code::Silent | Code::HandshakeOld | Code::Unresolved);
        match self.path.map(|(_, path)| path).filter(|_| no_answer) {
            Some(Path::Via { carrier: false, .. } | Path::NoCarrier) => Code::NoCarrier,
            Some(Path::NoAddress) => Code::NoAddress,
            Some(Path::NoRoute) => Code::NoRoute,
            Some(Path::Via { carrier: true, .. }) | None => code,
        }
    }

    /// Moves the ladder to something left to try.
    pub(super) fn seek(&mut self, now: Boot) {
        let Some(rung) = self.ladder.seek(self.rebuild_is_due(now)) else { return };
        if matches!(rung, super::Rung::Again | super::Rung::Rebuild) {
            self.round = (0, 0);
        }
        self.record_rung(now, rung);
        self.rung = Some(rung);
    }

    /// Whether the interface is to be recreated at the end of a round: in every attempt it sent nothing although the
    /// path was open, or there was no tunnel for hours.
    fn rebuild_is_due(&self, now: Boot) -> bool {
        let (attempts, mute) = self.round;
        let evidence = attempts >= MUTE_ATTEMPTS && mute == attempts;
        let hours = now.since(self.down_since) >= REBUILD_AFTER;
        let rested = self.rebuilt_at.is_none_or(|at| now.since(at) >= REBUILD_AFTER);
        rested && self.path_is_open() && (evidence || hours)
    }
}
