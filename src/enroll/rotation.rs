//! A change of the node's WireGuard key that never loses the hub. Pure; driven by [`super::machine`].
//!
//! ```text
//! Idle ─begin─► Announcing ─every hub knows the new key─► Recording ─on disk─► Switching ─sent─► Proving(new) ─reply─► Idle (new key)
//!                   │                                         │                  ▲   │            │      ▲
//!                   │ 60 s, or refused                        │ disk error       │   │ refused    │ 15 s │ 15 s
//!                   ▼                                         ▼                  │   ▼            ▼      │
//!                 Idle (old key)                            Idle (old key)       │  Idle        Proving(old)
//!                                                                                └────reply──────┘
//! ```
//! Between the switch request and a hub's reply this side cannot know which key the hub holds: the answer may be lost,
//! or the power. Therefore the switch is recorded on disk first, both keys are kept, and each is tried in turn until a
//! hub replies through one of them.
use super::events::{KeySlot, NotWritten, SendResult};
use super::wire::KeyStep;
use spoke_model::key::PublicKey;
use spoke_model::time::Boot;
use std::time::Duration;

/// Pause between announcements.
const ANNOUNCE_PAUSE: Duration = Duration::from_millis(250);
/// The same after [`QUICK_ANNOUNCEMENTS`], and between switch requests.
const LONG_PAUSE: Duration = Duration::from_secs(3);
const QUICK_ANNOUNCEMENTS: u32 = 20;
/// How long hubs may take to learn the key.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long one key is tried before the other.
const PROOF_TIMEOUT: Duration = Duration::from_secs(15);

/// Output of the rotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RotationAction {
    /// Store that the switch is about to be requested, then call [`Rotation::handle_recorded`].
    RecordSwitch,
    /// Put this key into the kernel.
    UseKey(KeySlot),
    /// The new key replaces the old one.
    Finish,
    /// The new key is dropped; the reason is for operators.
    Abandon(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Announcing { send_at: Boot, sent: u32, until: Boot },
    Recording,
    Switching { send_at: Boot },
    Proving { with: KeySlot, until: Boot, from_seq: Option<u16> },
}

/// State of a change of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    phase: Phase,
    old: PublicKey,
    new: PublicKey,
}

impl Rotation {
    /// No change; `key` is the key in use.
    pub const fn idle(key: PublicKey) -> Self {
        Self { phase: Phase::Idle, old: key, new: key }
    }

    /// The key last proven.
    pub const fn key(&self) -> PublicKey {
        self.old
    }

    /// Whether a change is under way.
    pub fn in_progress(&self) -> bool {
        self.phase != Phase::Idle
    }

    /// Begins to change to `new`.
    pub fn begin(&mut self, now: Boot, new: PublicKey) {
        self.new = new;
        self.phase = Phase::Announcing { send_at: now, sent: 0, until: now + ANNOUNCE_TIMEOUT };
    }

    /// Continues a change interrupted by a restart after the switch was recorded: the hub may hold either key.
    pub fn resume(&mut self, now: Boot, new: PublicKey) -> RotationAction {
        self.new = new;
        self.prove(now, KeySlot::New)
    }

    /// The key request that is due.
    pub fn due_request(&self, now: Boot) -> Option<(KeyStep, PublicKey)> {
        match self.phase {
            Phase::Announcing { send_at, .. } if now >= send_at => Some((KeyStep::Announce, self.new)),
            Phase::Switching { send_at } if now >= send_at => Some((KeyStep::Switch, self.new)),
            Phase::Announcing { .. } | Phase::Switching { .. } => None,
            Phase::Idle | Phase::Recording | Phase::Proving { .. } => None,
        }
    }

    /// The last key request has ended.
    pub fn handle_result(&mut self, now: Boot, result: &SendResult) -> Option<RotationAction> {
        match (self.phase, result) {
            (Phase::Announcing { .. }, SendResult::Ready(true)) => {
                self.phase = Phase::Recording;
                Some(RotationAction::RecordSwitch)
            }
            (Phase::Announcing { .. } | Phase::Switching { .. }, SendResult::Refused(why)) => Some(self.abandon(why)),
            (Phase::Announcing { sent, until, .. }, _) => {
                let wait = match result {
                    SendResult::Again => Duration::ZERO,
                    _ if sent < QUICK_ANNOUNCEMENTS => ANNOUNCE_PAUSE,
                    _ => LONG_PAUSE,
                };
                self.phase = Phase::Announcing { send_at: now + wait, sent: sent.saturating_add(1), until };
                None
            }
            // Certainly not received: the hub still holds the old key.
            (Phase::Switching { .. }, SendResult::Unsent(_) | SendResult::Again) => {
                let wait = if *result == SendResult::Again { Duration::ZERO } else { LONG_PAUSE };
                self.phase = Phase::Switching { send_at: now + wait };
                None
            }
            (Phase::Switching { .. }, SendResult::Taken | SendResult::Ready(_) | SendResult::Failed(_)) => {
                Some(self.prove(now, KeySlot::New))
            }
            (Phase::Idle | Phase::Recording | Phase::Proving { .. }, _) => None,
        }
    }

    /// [`RotationAction::RecordSwitch`] was performed.
    pub fn handle_recorded(&mut self, now: Boot, done: Result<(), NotWritten>) -> Option<RotationAction> {
        if self.phase != Phase::Recording {
            return None;
        }
        match done {
            Ok(()) => {
                self.phase = Phase::Switching { send_at: now };
                None
            }
            Err(NotWritten(why)) => Some(self.abandon(&why)),
        }
    }

    /// The kernel holds `key`; echoes from `next_seq` on are sent with it.
    pub fn observe_key(&mut self, key: Option<PublicKey>, next_seq: u16) {
        if let Phase::Proving { with, from_seq, .. } = &mut self.phase {
            let wanted = match with {
                KeySlot::Old => self.old,
                KeySlot::New => self.new,
            };
            match key {
                Some(key) if key == wanted => *from_seq = from_seq.or(Some(next_seq)),
                Some(_) | None => *from_seq = None,
            }
        }
    }

    /// A hub has replied to the echo `seq`.
    pub fn handle_echo(&mut self, now: Boot, seq: u16) -> Option<RotationAction> {
        let Phase::Proving { with, from_seq: Some(from), .. } = self.phase else { return None };
        // Serial number arithmetic (RFC 1982).
        if seq.wrapping_sub(from) >= 0x8000 {
            return None;
        }
        match with {
            KeySlot::New => {
                self.old = self.new;
                self.phase = Phase::Idle;
                Some(RotationAction::Finish)
            }
            KeySlot::Old => {
                self.phase = Phase::Switching { send_at: now };
                None
            }
        }
    }

    /// Acts on a timeout that has passed.
    pub fn tick(&mut self, now: Boot) -> Option<RotationAction> {
        match self.phase {
            Phase::Announcing { until, .. } if now >= until => {
                Some(self.abandon("the hubs have not learned the new key within a minute"))
            }
            Phase::Proving { with: KeySlot::Old, until, .. } if now >= until => Some(self.prove(now, KeySlot::New)),
            Phase::Proving { with: KeySlot::New, until, .. } if now >= until => Some(self.prove(now, KeySlot::Old)),
            Phase::Announcing { .. } | Phase::Proving { .. } => None,
            Phase::Idle | Phase::Recording | Phase::Switching { .. } => None,
        }
    }

    /// When [`Rotation::tick`] or [`Rotation::due_request`] has something to do.
    pub fn deadline(&self) -> Option<Boot> {
        match self.phase {
            Phase::Idle | Phase::Recording => None,
            Phase::Announcing { send_at, until, .. } => Some(send_at.min(until)),
            Phase::Switching { send_at } => Some(send_at),
            Phase::Proving { until, .. } => Some(until),
        }
    }

    /// Whether echoes have to be sent to the hub.
    pub fn wants_echo(&self) -> bool {
        matches!(self.phase, Phase::Proving { .. })
    }

    /// Name of the phase, for status; `None` while idle.
    pub const fn phase(&self) -> Option<&'static str> {
        match self.phase {
            Phase::Idle => None,
            Phase::Announcing { .. } => Some("announcing"),
            Phase::Recording | Phase::Switching { .. } => Some("switching"),
            Phase::Proving { .. } => Some("proving"),
        }
    }

    fn prove(&mut self, now: Boot, with: KeySlot) -> RotationAction {
        self.phase = Phase::Proving { with, until: now + PROOF_TIMEOUT, from_seq: None };
        RotationAction::UseKey(with)
    }

    fn abandon(&mut self, why: &str) -> RotationAction {
        self.phase = Phase::Idle;
        RotationAction::Abandon(why.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: PublicKey = PublicKey([1; 32]);
    const NEW: PublicKey = PublicKey([2; 32]);

    fn at(secs: u64) -> Boot {
        Boot::from_secs(secs)
    }

    /// A rotation whose switch is due.
    fn switching() -> Rotation {
        let mut r = Rotation::idle(OLD);
        r.begin(at(0), NEW);
        assert_eq!(r.due_request(at(0)), Some((KeyStep::Announce, NEW)));
        assert_eq!(r.handle_result(at(0), &SendResult::Ready(false)), None);
        assert_eq!(r.due_request(at(0)), None, "only after a pause");
        assert_eq!(r.due_request(at(1)), Some((KeyStep::Announce, NEW)));
        assert_eq!(r.handle_result(at(1), &SendResult::Ready(true)), Some(RotationAction::RecordSwitch));
        assert_eq!(r.due_request(at(1)), None, "not before it is on disk");
        assert_eq!(r.handle_recorded(at(1), Ok(())), None);
        assert_eq!(r.due_request(at(1)), Some((KeyStep::Switch, NEW)));
        r
    }

    #[test]
    fn new_key_needs_all_hubs_and_one_echo_reply() {
        let mut r = switching();
        assert_eq!(r.handle_result(at(1), &SendResult::Ready(true)), Some(RotationAction::UseKey(KeySlot::New)));
        assert_eq!(r.handle_echo(at(1), 5), None, "a reply to an earlier echo proves nothing");
        r.observe_key(Some(OLD), 6);
        assert_eq!(r.handle_echo(at(1), 6), None, "the kernel still has the old key");
        r.observe_key(Some(NEW), 7);
        assert_eq!(r.handle_echo(at(1), 6), None, "sent with the old key");
        assert_eq!(r.handle_echo(at(1), 7), Some(RotationAction::Finish));
        assert_eq!((r.key(), r.in_progress()), (NEW, false));
    }

    #[test]
    fn lost_switch_answer_tries_both_keys() {
        let mut r = switching();
        assert_eq!(
            r.handle_result(at(1), &SendResult::Failed("cut".into())),
            Some(RotationAction::UseKey(KeySlot::New))
        );
        r.observe_key(Some(NEW), 0);
        assert_eq!(r.tick(at(2)), None);
        assert_eq!(r.tick(at(16)), Some(RotationAction::UseKey(KeySlot::Old)), "the switch never arrived");
        r.observe_key(Some(OLD), 9);
        assert_eq!(r.handle_echo(at(17), 9), None);
        assert_eq!(r.due_request(at(17)), Some((KeyStep::Switch, NEW)), "requested again");
        assert_eq!(r.handle_result(at(17), &SendResult::Taken), Some(RotationAction::UseKey(KeySlot::New)));
        r.observe_key(Some(NEW), 40_000);
        assert_eq!(r.handle_echo(at(18), 40_001), Some(RotationAction::Finish));
    }

    #[test]
    fn unsent_switch_keeps_the_old_key() {
        let mut r = switching();
        assert_eq!(r.handle_result(at(1), &SendResult::Unsent("unreachable".into())), None);
        assert_eq!(r.due_request(at(1)), None);
        assert_eq!(r.due_request(at(4)), Some((KeyStep::Switch, NEW)));
        assert_eq!(
            r.handle_result(at(4), &SendResult::Refused("no".into())),
            Some(RotationAction::Abandon("no".into()))
        );
        assert_eq!((r.key(), r.in_progress()), (OLD, false));
    }

    #[test]
    fn failed_announcement_or_record_changes_nothing() {
        let mut r = Rotation::idle(OLD);
        r.begin(at(0), NEW);
        assert_eq!(r.tick(at(59)), None);
        assert!(matches!(r.tick(at(60)), Some(RotationAction::Abandon(_))));
        let mut r = Rotation::idle(OLD);
        r.begin(at(0), NEW);
        r.handle_result(at(0), &SendResult::Ready(true));
        assert_eq!(
            r.handle_recorded(at(0), Err(NotWritten("disk full".into()))),
            Some(RotationAction::Abandon("disk full".into()))
        );
        assert_eq!(r.key(), OLD);
    }

    #[test]
    fn restart_in_the_switch_tries_the_new_key_first() {
        let mut r = Rotation::idle(OLD);
        assert_eq!(r.resume(at(3), NEW), RotationAction::UseKey(KeySlot::New));
        r.observe_key(Some(NEW), 0);
        assert_eq!(r.tick(at(18)), Some(RotationAction::UseKey(KeySlot::Old)));
        assert_eq!(r.tick(at(33)), Some(RotationAction::UseKey(KeySlot::New)), "in turn, without limit");
    }
}
