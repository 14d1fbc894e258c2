//! How long grants outlive the last quorum of the chain: Fresh → Stale → Grace → Expired.
//!
//! Counted on the boot clock, which a change of the wall clock cannot stretch. Across reboots the *reserved* time
//! counts: before the used time exceeds it, a later value is written, and a start continues from there. So a reboot
//! only shortens the ladder, by at most one step, and nothing is written while the chain answers. Time without power is
//! not counted: no clock on the board can prove it.
use serde::{Deserialize, Serialize};
use spoke_config::grants::Rungs;
use spoke_model::time::Boot;
use std::time::Duration;

/// Phase of the grace ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// A quorum agreed recently.
    Fresh,
    /// No quorum for some time; every grant still holds.
    Stale,
    /// No quorum for longer: peers stay, no new ones are admitted.
    Grace,
    /// No quorum for the whole ladder: every peer is denied until the next quorum.
    Expired,
}

impl Phase {
    /// The name in metrics and JSON.
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

/// The ladder as stored on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserve {
    /// Upper bound of the used time while this record is on disk; a start in another boot continues from here.
    pub reserved: Duration,
    /// Used time when it was written.
    pub used: Duration,
    /// When it was written.
    pub at: Boot,
    /// Id of the boot in which it was written.
    pub boot_id: Option<String>,
}

impl Reserve {
    /// Upper bound of the powered time since it was written: it is rewritten before the reserved step is used up.
    pub fn elapsed(&self, boot_id: Option<&str>, now: Boot) -> Duration {
        let same_boot = self.boot_id.is_some() && self.boot_id.as_deref() == boot_id && now >= self.at;
        if same_boot {
            now.since(self.at)
        } else {
            self.reserved.saturating_sub(self.used).saturating_add(now.since_boot())
        }
    }
}

/// Time since an unverified change was seen: a separate ladder for one grant.
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

    /// A doubt that is `used` old.
    pub const fn resume(used: Duration, now: Boot) -> Self {
        Self { used, mark: now }
    }

    /// How old it is.
    pub fn age(&self, now: Boot) -> Duration {
        self.used.saturating_add(now.since(self.mark))
    }
}

/// The grace ladder and the time used of it.
#[derive(Clone, Debug)]
pub struct Ladder {
    rungs: Rungs,
    /// Time used at `mark`; `None`: no quorum yet.
    used: Option<Duration>,
    mark: Boot,
    /// Reserved on disk.
    reserved: Duration,
    /// How much was reserved at once.
    step: Duration,
}

impl Ladder {
    /// The ladder before the first quorum: nothing is granted.
    pub const fn new(rungs: Rungs, now: Boot) -> Self {
        Self { rungs, used: None, mark: now, reserved: Duration::ZERO, step: Duration::from_secs(60) }
    }

    /// Continues from the stored record.
    pub fn resume(rungs: Rungs, reserve: &Reserve, boot_id: Option<&str>, now: Boot) -> Self {
        // Both are upper bounds; within one boot the smaller one holds.
        let same_boot = reserve.boot_id.is_some() && reserve.boot_id.as_deref() == boot_id && now >= reserve.at;
        let counted = reserve.used.saturating_add(now.since(reserve.at));
        let since_boot = now.since_boot();
        let used = if same_boot { counted.min(reserve.reserved) } else { reserve.reserved.saturating_add(since_boot) };
        // In another boot nothing beyond `used` is reserved on disk yet.
        let step = reserve.reserved.saturating_sub(reserve.used);
        Self { rungs, used: Some(used), mark: now, reserved: if same_boot { reserve.reserved } else { used }, step }
    }

    /// A quorum confirmed every cached decision.
    pub const fn confirm(&mut self, now: Boot) {
        self.used = Some(Duration::ZERO);
        self.mark = now;
    }

    /// Upper bound of the time since the last quorum; `None`: no quorum yet.
    pub fn unheard(&self, now: Boot) -> Option<Duration> {
        self.used.map(|u| u.saturating_add(now.since(self.mark)))
    }

    /// The phase now.
    pub fn phase(&self, now: Boot) -> Phase {
        self.unheard(now).map_or(Phase::Expired, |u| phase_after(&self.rungs, u))
    }

    /// The lengths of the phases.
    pub const fn rungs(&self) -> &Rungs {
        &self.rungs
    }

    /// The next change by time alone: a phase ends, or more must be reserved on disk.
    pub fn deadline(&self, now: Boot) -> Option<Boot> {
        let unheard = self.unheard(now)?;
        let (a, b, c) = (self.rungs.fresh, self.rungs.fresh.saturating_add(self.rungs.stale), self.rungs.total());
        let phase = [a, b, c].into_iter().find(|end| *end > unheard)?;
        let reserve = self.reserved.saturating_sub(self.step / 2);
        let next = if reserve > unheard { phase.min(reserve) } else { phase };
        Some(now + next.saturating_sub(unheard))
    }

    /// The record to write before more time is used; `None` while enough is reserved.
    pub fn to_reserve(&self, now: Boot, boot_id: Option<&str>) -> Option<Reserve> {
        let used = self.unheard(now)?;
        let step = self.next_step(used);
        let short = used.saturating_add(self.step / 2) > self.reserved && used < self.rungs.total();
        let wasteful = used < step && self.reserved > step.saturating_mul(2);
        (short || wasteful).then(|| Reserve {
            reserved: used.saturating_add(step),
            used,
            at: now,
            boot_id: boot_id.map(str::to_owned),
        })
    }

    /// The current record, for a document that is written for another reason.
    pub fn record(&self, now: Boot, boot_id: Option<&str>) -> Option<Reserve> {
        let used = self.unheard(now)?;
        let reserved = used.saturating_add(self.next_step(used));
        Some(Reserve { reserved, used, at: now, boot_id: boot_id.map(str::to_owned) })
    }

    /// The disk holds `reserve`.
    pub fn reserved(&mut self, reserve: &Reserve) {
        self.reserved = reserve.reserved;
        self.step = reserve.reserved.saturating_sub(reserve.used);
    }

    /// How much to reserve at once: more the longer the outage lasts, so that days of it cost few writes.
    fn next_step(&self, used: Duration) -> Duration {
        self.rungs.step().max(used / 4)
    }

    /// How much was reserved at once; documents that depend on it are rewritten within half of it.
    pub const fn step(&self) -> Duration {
        self.step
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
    fn phases_follow_in_order() {
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
    fn reachable_chain_causes_one_write() {
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

    #[test]
    fn days_offline_cause_few_writes() {
        let rungs = Rungs {
            fresh: Duration::from_secs(900),
            stale: Duration::from_secs(43_200),
            grace: Duration::from_secs(3 * 86_400),
        };
        let mut l = Ladder::new(rungs, Boot::default());
        l.confirm(Boot::default());
        let mut days = [0; 4];
        for s in (0..4 * 86_400).step_by(30) {
            if let Some(r) = l.to_reserve(Boot::from_secs(s), Some("a")) {
                l.reserved(&r);
                days[usize::try_from(s / 86_400).unwrap()] += 1;
            }
        }
        assert!(days[0] <= 45 && days[1..].iter().all(|n| *n <= 8), "{days:?}");
    }

    /// What can happen to a board while the chain is unreachable.
    #[derive(Clone, Debug)]
    enum Event {
        Run(u64),
        Restart,
        Reboot,
        /// Power is cut between the reservation's deadline and its write.
        CutBeforeWrite(u64),
    }

    proptest! {
        /// Restarts, reboots and power cuts do not extend grants beyond the ladder's length of powered time after the
        /// last quorum.
        #[test]
        fn restarts_do_not_extend_the_ladder(events in proptest::collection::vec(prop_oneof![
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
                // The first write after a start.
                if let Some(r) = ladder.to_reserve(now, Some(&id(boot))) {
                    ladder.reserved(&r);
                    disk = Some(r);
                }
                prop_assert!(ladder.unheard(now).unwrap() >= truly.min(RUNGS.total()), "{:?} < {truly:?}", ladder.unheard(now));
            }
        }
    }
}
