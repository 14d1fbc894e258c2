//! A node changes its WireGuard key without losing its hub. Pure.
//!
//! ```text
//! Idle ──begin──► Announcing ──every hub knows the new key──► Remembering ──► Switching ──► Proving(new) ──answered──► done
//!                     └── not within a minute, refused ──► Idle (old key)       ▲  └─ refused ─► Idle    │  ▲
//!                                                                               └─answered─ Proving(old)◄┘  │
//!                                                                                             └──silence────┘
//! ```
//! From the moment the switch is asked for until a hub has answered, nobody can say from here which of the two keys the
//! hub holds: the answer may have been lost, or the power. So that moment is remembered on disk first, both keys are kept,
//! and each is tried in turn until the hub answers through one of them.
use super::events::SendResult;
use super::wire::KeyStep;
use spoke_model::key::PublicKey;
use spoke_model::time::Boot;
use std::time::Duration;

/// Between two questions whether the hubs know the key.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// The same once it has lasted.
const ASK_LATER: Duration = Duration::from_secs(3);
/// How long hubs may take to learn the key.
const ANNOUNCE_WITHIN: Duration = Duration::from_secs(60);
/// How long one key is tried before the other.
const PROVE_WITHIN: Duration = Duration::from_secs(15);

/// Which of the two keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySlot {
    /// The one that is to go.
    Old,
    /// The one that is to come.
    New,
}

/// What the rotation wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RotationAction {
    /// Keep on disk that the switch is about to be asked for; [`Rotation::remembered`] says when that is done.
    Remember,
    /// Put this key into the kernel.
    Use(KeySlot),
    /// The new key is the key from now on.
    Finish,
    /// The new key is forgotten; the reason is for people.
    Abandon(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Announcing { ask_at: Boot, asked: u32, until: Boot },
    Remembering,
    Switching { ask_at: Boot },
    Proving { with: KeySlot, until: Boot, from_seq: Option<u16> },
}

/// Where a change of keys stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    phase: Phase,
    old: PublicKey,
    new: PublicKey,
}

impl Rotation {
    /// Nothing is being changed; `key` is the key.
    pub const fn idle(key: PublicKey) -> Self {
        Self { phase: Phase::Idle, old: key, new: key }
    }

    /// The key in use, as far as it is proven.
    pub const fn key(&self) -> PublicKey {
        self.old
    }

    /// Whether a change is under way.
    pub fn busy(&self) -> bool {
        self.phase != Phase::Idle
    }

    /// Begins to change to `new`.
    pub fn begin(&mut self, now: Boot, new: PublicKey) {
        self.new = new;
        self.phase = Phase::Announcing { ask_at: now, asked: 0, until: now + ANNOUNCE_WITHIN };
    }

    /// Goes on with a change that a restart has interrupted after it was remembered: the hub may hold either key.
    pub fn resume(&mut self, now: Boot, new: PublicKey) -> RotationAction {
        self.new = new;
        self.prove(now, KeySlot::New)
    }

    /// The question that is due, if one is.
    pub fn ask(&self, now: Boot) -> Option<(KeyStep, PublicKey)> {
        match self.phase {
            Phase::Announcing { ask_at, .. } if now >= ask_at => Some((KeyStep::Announce, self.new)),
            Phase::Switching { ask_at } if now >= ask_at => Some((KeyStep::Switch, self.new)),
            Phase::Announcing { .. } | Phase::Switching { .. } => None,
            Phase::Idle | Phase::Remembering | Phase::Proving { .. } => None,
        }
    }

    /// The answer to the last question.
    pub fn answered(&mut self, now: Boot, answer: &SendResult) -> Option<RotationAction> {
        match (self.phase, answer) {
            (Phase::Announcing { .. }, SendResult::Ready(true)) => {
                self.phase = Phase::Remembering;
                Some(RotationAction::Remember)
            }
            (Phase::Announcing { .. } | Phase::Switching { .. }, SendResult::Refused(why)) => Some(self.abandon(why)),
            (Phase::Announcing { asked, until, .. }, _) => {
                let wait = match answer {
                    SendResult::Again => Duration::ZERO,
                    _ if asked < 20 => ASK_AGAIN,
                    _ => ASK_LATER,
                };
                self.phase = Phase::Announcing { ask_at: now + wait, asked: asked.saturating_add(1), until };
                None
            }
            (Phase::Switching { .. }, SendResult::Unsent(_) | SendResult::Again) => {
                // Nothing can have come of it: the old key goes on.
                let wait = if *answer == SendResult::Again { Duration::ZERO } else { ASK_LATER };
                self.phase = Phase::Switching { ask_at: now + wait };
                None
            }
            // Done, or nobody knows.
            (Phase::Switching { .. }, SendResult::Taken | SendResult::Ready(_) | SendResult::Failed(_)) => {
                Some(self.prove(now, KeySlot::New))
            }
            (Phase::Idle | Phase::Remembering | Phase::Proving { .. }, _) => None,
        }
    }

    /// [`RotationAction::Remember`] is done, or could not be.
    pub fn remembered(&mut self, now: Boot, done: Result<(), String>) -> Option<RotationAction> {
        if self.phase != Phase::Remembering {
            return None;
        }
        match done {
            Ok(()) => {
                self.phase = Phase::Switching { ask_at: now };
                None
            }
            Err(why) => Some(self.abandon(&why)),
        }
    }

    /// The kernel holds `key`; echoes from `next_seq` on are sent with it.
    pub fn seen(&mut self, key: Option<PublicKey>, next_seq: u16) {
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

    /// A hub has answered the echo `seq`.
    pub fn echoed(&mut self, now: Boot, seq: u16) -> Option<RotationAction> {
        let Phase::Proving { with, from_seq: Some(from), .. } = self.phase else { return None };
        // Serial numbers: half of the circle is later.
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
                self.phase = Phase::Switching { ask_at: now };
                None
            }
        }
    }

    /// The time has come.
    pub fn tick(&mut self, now: Boot) -> Option<RotationAction> {
        match self.phase {
            Phase::Announcing { until, .. } if now >= until => {
                Some(self.abandon("the hubs have not learned the new key within a minute"))
            }
            Phase::Proving { with, until, .. } if now >= until => Some(self.prove(
                now,
                match with {
                    KeySlot::Old => KeySlot::New,
                    KeySlot::New => KeySlot::Old,
                },
            )),
            Phase::Announcing { .. } | Phase::Proving { .. } => None,
            Phase::Idle | Phase::Remembering | Phase::Switching { .. } => None,
        }
    }

    /// When [`Rotation::tick`] or [`Rotation::ask`] is due.
    pub fn deadline(&self) -> Option<Boot> {
        match self.phase {
            Phase::Idle | Phase::Remembering => None,
            Phase::Announcing { ask_at, until, .. } => Some(ask_at.min(until)),
            Phase::Switching { ask_at } => Some(ask_at),
            Phase::Proving { until, .. } => Some(until),
        }
    }

    /// Whether the hub has to be asked for an echo.
    pub fn wants_echo(&self) -> bool {
        matches!(self.phase, Phase::Proving { .. })
    }

    /// For people; `None` while nothing is being changed.
    pub const fn phase(&self) -> Option<&'static str> {
        match self.phase {
            Phase::Idle => None,
            Phase::Announcing { .. } => Some("announcing"),
            Phase::Remembering | Phase::Switching { .. } => Some("switching"),
            Phase::Proving { .. } => Some("proving"),
        }
    }

    fn prove(&mut self, now: Boot, with: KeySlot) -> RotationAction {
        self.phase = Phase::Proving { with, until: now + PROVE_WITHIN, from_seq: None };
        RotationAction::Use(with)
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
        assert_eq!(r.ask(at(0)), Some((KeyStep::Announce, NEW)));
        assert_eq!(r.answered(at(0), &SendResult::Ready(false)), None);
        assert_eq!(r.ask(at(0)), None, "not at once again");
        assert_eq!(r.ask(at(1)), Some((KeyStep::Announce, NEW)));
        assert_eq!(r.answered(at(1), &SendResult::Ready(true)), Some(RotationAction::Remember));
        assert_eq!(r.ask(at(1)), None, "nothing is asked for before it is on disk");
        assert_eq!(r.remembered(at(1), Ok(())), None);
        assert_eq!(r.ask(at(1)), Some((KeyStep::Switch, NEW)));
        r
    }

    #[test]
    fn the_new_key_is_used_only_once_every_hub_knows_it_and_kept_only_once_one_answers() {
        let mut r = switching();
        assert_eq!(r.answered(at(1), &SendResult::Ready(true)), Some(RotationAction::Use(KeySlot::New)));
        assert_eq!(r.echoed(at(1), 5), None, "an answer to an echo of before proves nothing");
        r.seen(Some(OLD), 6);
        assert_eq!(r.echoed(at(1), 6), None, "the kernel still has the old one");
        r.seen(Some(NEW), 7);
        assert_eq!(r.echoed(at(1), 6), None, "sent with the old one");
        assert_eq!(r.echoed(at(1), 7), Some(RotationAction::Finish));
        assert_eq!((r.key(), r.busy()), (NEW, false));
    }

    #[test]
    fn a_lost_answer_is_resolved_by_trying_both_keys() {
        let mut r = switching();
        assert_eq!(r.answered(at(1), &SendResult::Failed("cut".into())), Some(RotationAction::Use(KeySlot::New)));
        r.seen(Some(NEW), 0);
        assert_eq!(r.tick(at(2)), None);
        assert_eq!(r.tick(at(16)), Some(RotationAction::Use(KeySlot::Old)), "the switch never arrived");
        r.seen(Some(OLD), 9);
        assert_eq!(r.echoed(at(17), 9), None);
        assert_eq!(r.ask(at(17)), Some((KeyStep::Switch, NEW)), "it is asked for again");
        assert_eq!(r.answered(at(17), &SendResult::Taken), Some(RotationAction::Use(KeySlot::New)));
        r.seen(Some(NEW), 40_000);
        assert_eq!(r.echoed(at(18), 40_001), Some(RotationAction::Finish));
    }

    #[test]
    fn without_the_control_plane_the_old_key_goes_on() {
        let mut r = switching();
        assert_eq!(r.answered(at(1), &SendResult::Unsent("away".into())), None);
        assert_eq!(r.ask(at(1)), None);
        assert_eq!(r.ask(at(4)), Some((KeyStep::Switch, NEW)));
        assert_eq!(r.answered(at(4), &SendResult::Refused("no".into())), Some(RotationAction::Abandon("no".into())));
        assert_eq!((r.key(), r.busy()), (OLD, false));
    }

    #[test]
    fn what_cannot_be_announced_or_remembered_changes_nothing() {
        let mut r = Rotation::idle(OLD);
        r.begin(at(0), NEW);
        assert_eq!(r.tick(at(59)), None);
        assert!(matches!(r.tick(at(60)), Some(RotationAction::Abandon(_))));
        let mut r = Rotation::idle(OLD);
        r.begin(at(0), NEW);
        r.answered(at(0), &SendResult::Ready(true));
        assert_eq!(r.remembered(at(0), Err("disk full".into())), Some(RotationAction::Abandon("disk full".into())));
        assert_eq!(r.key(), OLD);
    }

    #[test]
    fn a_power_cut_in_the_switch_is_resumed_with_the_new_key_first() {
        let mut r = Rotation::idle(OLD);
        assert_eq!(r.resume(at(3), NEW), RotationAction::Use(KeySlot::New));
        r.seen(Some(NEW), 0);
        assert_eq!(r.tick(at(18)), Some(RotationAction::Use(KeySlot::Old)));
        assert_eq!(r.tick(at(33)), Some(RotationAction::Use(KeySlot::New)), "in turn, for as long as it takes");
    }
}
