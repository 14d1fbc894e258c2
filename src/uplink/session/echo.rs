//! Echoes: which are awaited, and which answers came from the hub.
use super::super::liveness::{PeerActivity, packet_came};
use super::super::status::Code;
use super::{Actions, MAX_ECHOES, Session, SessionAction, act};
use spoke_model::time::Boot;
use spoke_net::state::Counters;
use std::net::IpAddr;

/// An echo that awaits its reply, or the proof of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct EchoSent {
    seq: u16,
    hub: usize,
    at: Boot,
    /// The peer's counters when it was sent; `None`: there was no peer.
    before: Option<Counters>,
    answered: bool,
}

impl Session {
    pub(super) fn echo(&mut self, now: Boot, hub: usize, out: &mut Actions) {
        let Some(to) = self.hubs.get(hub).map(|h| h.address) else { return };
        self.seq = self.seq.wrapping_add(1);
        if self.echoes.is_full() {
            self.echoes.pop_front();
        }
        let before = self.seen.get(hub).and_then(PeerActivity::counters);
        let sent = EchoSent { seq: self.seq, hub, at: now, before, answered: false };
        let kept = self.echoes.push_back(sent).is_ok();
        debug_assert!(kept && self.echoes.len() <= MAX_ECHOES, "there is room after dropping the oldest");
        if hub == self.active {
            self.status.echo_requests += 1;
            self.echoed_at = Some(now);
            self.unsent = false;
            if let Some(w) = self.seen.get_mut(hub) {
                w.expect_echo(now);
            }
        }
        act(out, SessionAction::Echo { to, seq: self.seq });
    }

    pub(super) fn forget_echo(&mut self, seq: u16) {
        self.echoes.retain(|e| e.seq != seq);
    }

    /// Records a reply. Returns whether it answers an echo of ours: the next sample shows whether it came from the hub.
    pub(super) fn answered(&mut self, now: Boot, from: IpAddr, seq: u16) -> bool {
        let Some(echo) = self.echoes.iter_mut().find(|e| e.seq == seq && !e.answered) else { return false };
        if self.hubs.get(echo.hub).is_none_or(|h| h.address != from) {
            return false;
        }
        echo.answered = true;
        if echo.hub == self.active {
            self.status.echo_replies += 1;
            self.status.rtt = Some(now.since(echo.at));
        }
        true
    }

    /// After a sample: judges the echoes that were answered before it. Returns whether the active hub answered one.
    pub(super) fn judge_echoes(&mut self, now: Boot) -> bool {
        let mut active = false;
        while let Some(echo) = self.echoes.iter().find(|e| e.answered).copied() {
            let after = self.seen.get(echo.hub).and_then(PeerActivity::counters);
            if after.is_some_and(|after| packet_came(echo.before, after)) {
                active |= echo.hub == self.active;
                self.record_answer(now, echo);
            } else {
                self.forget_echo(echo.seq);
                self.answered_elsewhere |= echo.hub == self.active;
                // A handshake beside the reply may hide it: once more, soon.
                if echo.hub == self.active && after.is_some_and(|a| echo.before.is_none_or(|b| b.rx != a.rx)) {
                    self.echo_at = self.echo_at.min(now + std::time::Duration::from_millis(100));
                }
            }
        }
        active
    }

    fn record_answer(&mut self, now: Boot, echo: EchoSent) {
        // An older echo cannot be overdue any more.
        self.echoes.retain(|e| e.hub != echo.hub);
        if echo.hub == self.active {
            self.answered_at = Some(now);
            self.answered_elsewhere = false;
            if self.status.fault.as_ref().is_some_and(|f| f.code == Code::EchoUnsent) {
                self.status.fault = None;
            }
        }
        if let Some(known) = self.known.get_mut(echo.hub) {
            known.echo_fault = false;
        }
        if let Some(w) = self.seen.get_mut(echo.hub) {
            w.record_echo(now);
        }
        if let Some(watch) = &mut self.watch {
            watch.answered(now, echo.hub);
        }
    }
}
