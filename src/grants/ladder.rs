//! How long grants outlive the last quorum of the chain: Fresh → Stale → Grace → Expired.
//!
//! Counted on the boot clock, which no wall clock set back can stretch. Across reboots the *reserved* time counts: before the
//! time used exceeds it, a later figure is written, and a start continues from there. A reboot can so only shorten the ladder, by at most one step, and costs no write while the chain answers.
//! Time without power is not counted: no clock on the board can prove it.
use serde::{Deserialize, Serialize};
use spoke_config::grants::Rungs;
use spoke_model::time::Boot;
use std::time::Duration;

/// How the grants stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// A quorum agreed recently.
    Fresh,
    /// No quorum for a while; every grant still holds.
    Stale,
    /// No quorum for long: peers stay, no new ones are admitted.
    Grace,
    /// No quorum for so long that every peer is denied until there is one again.
    Expired,
}

impl Phase {
    /// The name in metrics and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Stale => "stale",
            Self::Grace => "grace",
            Self::Expired => "expired",
        }
    }
}

/// The phase after `unheard`, the time since the last quorum.
pub fn phase_after(rungs: &Rungs, unheard: Duration) -> Phase {
    if unheard < rungs.fresh {
        Phase::Fresh
    } else if unheard < rungs.fresh.saturating_add(rungs.stale) {
        Phase::Stale
    } else if unheard < rungs.total() {
        Phase::Grace
    } else {
        Phase::Expired
    }
}

/// What the disk holds of the ladder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserve {
    /// At most this has been used while this is the record; a start in another boot continues here.
    pub reserved: Duration,
    /// Used when it was written.
    pub used: Duration,
    /// When it was written.
    pub at: Boot,
    /// In which boot.
    pub boot_id: Option<String>,
}

impl Reserve {
    /// Time with power since it was written, at most: it is written again before the step it reserves is over.
    pub fn elapsed(&self, boot_id: Option<&str>, now: Boot) -> Duration {
        let same_boot = self.boot_id.is_some() && self.boot_id.as_deref() == boot_id && now >= self.at;
        if same_boot {
            now.since(self.at)
        } else {
            self.reserved.saturating_sub(self.used).saturating_add(now.since_boot())
        }
    }
}

/// The time since a change was seen that is not verified yet: a ladder of its own for one grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doubt {
    used: Duration,
    mark: Boot,
}

impl Doubt {
    /// A doubt that begins now.
    pub const fn new(now: Boot) -> Self {
        Self { used: Duration::ZERO, mark: now }
    }

    /// A doubt that is `used` old already.
    pub const fn resume(used: Duration, now: Boot) -> Self {
        Self { used, mark: now }
    }

    /// How old it is.
    pub fn age(&self, now: Boot) -> Duration {
        self.used.saturating_add(now.since(self.mark))
    }
}

/// Where on the ladder we are.
#[derive(Clone, Debug)]
pub struct Ladder {
    rungs: Rungs,
    /// Used up at `mark`; `None`: there was never a quorum.
    used: Option<Duration>,
    mark: Boot,
    /// What the disk is known to hold.
    reserved: Duration,
}

impl Ladder {
    /// The ladder of a device without a quorum so far: nothing is granted.
    pub const fn new(rungs: Rungs, now: Boot) -> Self {
        Self { rungs, used: None, mark: now, reserved: Duration::ZERO }
    }

    /// Continues from what the disk holds.
    pub fn resume(rungs: Rungs, reserve: &Reserve, boot_id: Option<&str>, now: Boot) -> Self {
        // Either bound is above the truth; within one boot both are known.
        let same_boot = reserve.boot_id.is_some() && reserve.boot_id.as_deref() == boot_id && now >= reserve.at;
        let counted = reserve.used.saturating_add(now.since(reserve.at));
        let since_boot = now.since_boot();
        let used = if same_boot { counted.min(reserve.reserved) } else { reserve.reserved.saturating_add(since_boot) };
        // The stretch from here on is not on disk yet.
        Self { rungs, used: Some(used), mark: now, reserved: if same_boot { reserve.reserved } else { used } }
    }

    /// A quorum confirms everything that is cached.
    pub const fn confirm(&mut self, now: Boot) {
        self.used = Some(Duration::ZERO);
        self.mark = now;
    }

    /// Time since the last quorum, at most; `None`: there was none.
    pub fn unheard(&self, now: Boot) -> Option<Duration> {
        self.used.map(|u| u.saturating_add(now.since(self.mark)))
    }

    /// The phase now.
    pub fn phase(&self, now: Boot) -> Phase {
        self.unheard(now).map_or(Phase::Expired, |u| phase_after(&self.rungs, u))
    }

    /// The lengths.
    pub const fn rungs(&self) -> &Rungs {
        &self.rungs
    }

    /// The next moment something changes by itself: a phase ends, or more must be reserved on disk.
    pub fn deadline(&self, now: Boot) -> Option<Boot> {
        let unheard = self.unheard(now)?;
        let (a, b, c) = (self.rungs.fresh, self.rungs.fresh.saturating_add(self.rungs.stale), self.rungs.total());
        let phase = [a, b, c].into_iter().find(|end| *end > unheard)?;
        let reserve = self.reserved.saturating_sub(self.rungs.step() / 2);
        let next = if reserve > unheard { phase.min(reserve) } else { phase };
        Some(now + next.saturating_sub(unheard))
    }

    /// What must be written now, before more time is used; `None` while enough is reserved.
    pub fn to_reserve(&self, now: Boot, boot_id: Option<&str>) -> Option<Reserve> {
        let used = self.unheard(now)?;
        let step = self.rungs.step();
        let short = used.saturating_add(step / 2) > self.reserved && used < self.rungs.total();
        let wasteful = used < step && self.reserved > step.saturating_mul(2);
        (short || wasteful).then(|| Reserve {
            reserved: used.saturating_add(step),
            used,
            at: now,
            boot_id: boot_id.map(str::to_owned),
        })
    }

    /// The record as it stands, for a document that is written for another reason.
    pub fn record(&self, now: Boot, boot_id: Option<&str>) -> Option<Reserve> {
        let used = self.unheard(now)?;
        let reserved = used.saturating_add(self.rungs.step());
        Some(Reserve { reserved, used, at: now, boot_id: boot_id.map(str::to_owned) })
    }

    /// The disk holds `reserve`.
    pub const fn reserved(&mut self, reserve: &Reserve) {
        self.reserved = reserve.reserved;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RUNGS: Rungs =
        Rungs { fresh: Duration::from_secs(100), stale: Duration::from_secs(500), grace: Duration::from_secs(900) };

    #[test]
    fn nothing_is_granted_before_the_first_quorum() {
        assert_eq!(Ladder::new(RUNGS, Boot::default()).phase(Boot::from_secs(9)), Phase::Expired);
    }

    #[test]
    fn the_rungs_follow_each_other() {
        let mut l = Ladder::new(RUNGS, Boot::default());
        l.confirm(Boot::from_secs(10));
        for (at, phase) in
            [(10, Phase::Fresh), (109, Phase::Fresh), (110, Phase::Stale), (610, Phase::Grace), (1510, Phase::Expired)]
        {
            assert_eq!(l.phase(Boot::from_secs(at)), phase, "at {at}");
        }
        l.confirm(Boot::from_secs(2000));
        assert_eq!(l.phase(Boot::from_secs(2001)), Phase::Fresh);
    }

    #[test]
    fn a_reachable_chain_costs_no_write() {
        let mut l = Ladder::new(RUNGS, Boot::default());
        l.confirm(Boot::default());
        let mut writes = 0;
        for s in (0..86_400).step_by(30) {
            let now = Boot::from_secs(s);
            l.confirm(now);
            if let Some(r) = l.to_reserve(now, Some("a")) {
                l.reserved(&r);
                writes += 1;
            }
        }
        assert_eq!(writes, 1);
    }

    /// What can happen to a board without a chain.
    #[derive(Clone, Debug)]
    enum Event {
        Run(u64),
        Restart,
        Reboot,
        /// Power is cut between the reservation's deadline and its write.
        CutBeforeWrite(u64),
    }

    proptest! {
        /// However a board is restarted, rebooted or cut off: its grants end no later than the ladder's length of powered time
        /// after the chain was last heard.
        #[test]
        fn nothing_stretches_the_ladder(events in proptest::collection::vec(prop_oneof![
            (1u64..400).prop_map(Event::Run), Just(Event::Restart), Just(Event::Reboot), (1u64..40).prop_map(Event::CutBeforeWrite)
        ], 1..60)) {
            let mut boot = 0u32;
            let mut now = Boot::from_secs(50);
            let mut disk;
            let mut ladder = Ladder::new(RUNGS, now);
            ladder.confirm(now);
            let id = |b: u32| b.to_string();
            disk = ladder.to_reserve(now, Some(&id(boot)));
            if let Some(r) = &disk { ladder.reserved(r); }
            let mut truly = Duration::ZERO;
            for event in events {
                match event {
                    Event::Run(secs) | Event::CutBeforeWrite(secs) => {
                        let cut = matches!(event, Event::CutBeforeWrite(_));
                        for _ in 0..secs {
                            now += Duration::from_secs(1);
                            truly += Duration::from_secs(1);
                            if !cut && let Some(r) = ladder.to_reserve(now, Some(&id(boot))) {
                                ladder.reserved(&r);
                                disk = Some(r);
                            }
                            if truly >= RUNGS.total() {
                                prop_assert_eq!(ladder.phase(now), Phase::Expired);
                            }
                        }
                        if cut {
                            boot += 1;
                            now = Boot::from_secs(1);
                            ladder = Ladder::resume(RUNGS, disk.as_ref().unwrap(), Some(&id(boot)), now);
                        }
                    }
                    Event::Restart => {
                        ladder = Ladder::resume(RUNGS, disk.as_ref().unwrap(), Some(&id(boot)), now);
                    }
                    Event::Reboot => {
                        boot += 1;
                        truly += Duration::from_secs(1);
                        now = Boot::from_secs(1);
                        ladder = Ladder::resume(RUNGS, disk.as_ref().unwrap(), Some(&id(boot)), now);
                    }
                }
                // The first thing a start does.
                if let Some(r) = ladder.to_reserve(now, Some(&id(boot))) {
                    ladder.reserved(&r);
                    disk = Some(r);
                }
                prop_assert!(ladder.unheard(now).unwrap() >= truly.min(RUNGS.total()), "{:?} < {truly:?}", ladder.unheard(now));
            }
        }
    }
}
