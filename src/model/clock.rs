//! Whether the wall clock can be trusted, its lower bound, and when it is stored.
//!
//! A board without a battery-backed clock boots in the past. The hub drops its handshakes as replays, since they carry
//! older times, until the clock is right; and the time server may be reachable through that tunnel only. Therefore:
//! - Before the supervisor starts, `spoke clock restore` (`spoke-clock.service`) sets a clock that is behind to the
//!   [`Floor`]: the later of the build time and the last [`Stamp`]. It is a process of its own because only it needs
//!   CAP_SYS_TIME.
//! - The supervisor stores the stamp when the wall clock is `clock.stamp_every` (6 h) past it, and on a clean stop: at
//!   most four writes of one block a day. After a power cut the clock is behind by at most that; without an RTC the
//!   tunnel can be down for as long unless a time server is reachable outside of it. A clock set ahead would recover
//!   sooner, but lose the tunnel when a time server sets it back.
//! - What needs a date (certificates, signatures) calls [`assess`] and gets none until the clock is trusted.
//!
//! `adjtimex` would report any time daemon, but `ProtectClock=` denies it to the supervisor; the file of
//! systemd-timesyncd covers that one, and rule 5 of [`assess`] all others.

use crate::time::{Boot, Wall};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Time of this build (see `build.rs`).
pub const BUILD: Wall = Wall(match u64::from_str_radix(env!("SPOKE_BUILD_TIME"), 10) {
    Ok(secs) => secs,
    // build.rs writes digits only.
    Err(_) => 0,
});

/// A clock further ahead of the build is wrong.
pub const LONGEST_LIFE: Duration = Duration::from_secs(20 * 365 * 86_400);

/// A clock that moves further against the boot clock is distrusted until an authenticated message confirms it: one forged
/// answer of a time server must not decide how far ahead of the hub's memory our handshakes are stamped.
pub const LONGEST_JUMP: Duration = Duration::from_secs(86_400);

/// What an authenticated time and our clock may differ by (the control plane accepts two minutes).
const AUTHENTICATED_SLACK: Duration = Duration::from_secs(180);

/// Tolerance of comparisons of clocks.
const SLACK: Duration = Duration::from_secs(2);

/// The stored wall clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Wall clock.
    pub wall: Wall,
    /// It was trusted.
    pub trusted: bool,
    /// Id of the boot.
    pub boot: String,
    /// Boot clock of that boot.
    pub at: Boot,
}

/// The clock at the begin of a boot, or when an operator has confirmed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootStamp {
    /// Id of the boot.
    pub boot: String,
    /// Boot clock.
    pub at: Boot,
    /// Wall clock.
    pub wall: Wall,
    /// Taken by `spoke clock restore`: by its unit before the network is up, or by hand.
    pub restored: bool,
}

/// Where the clock is measured from when a process starts, so that a jump before the start counts as one during its life.
///
/// The latest of the stamp and of the restored clock, both of this boot. In a new boot without one the board may have been
/// off for any time: then the restored clock counts, which may come from a battery, unless `ahead`: a clock of the future was
/// seen and may have been written to it. Otherwise `wall` is measured from the last stamp. `None`: nothing is known.
pub fn anchor_at_start(
    boot: &str,
    wall: Wall,
    stamp: Option<&Stamp>,
    start: Option<&BootStamp>,
    ahead: bool,
) -> Option<Anchor> {
    let here = stamp.filter(|s| s.boot == boot).map(|s| Anchor { at: s.at, wall: s.wall });
    let start = start.filter(|s| s.boot == boot);
    let restored = start.filter(|s| s.restored).map(|s| Anchor { at: s.at, wall: s.wall });
    match (here, restored) {
        (Some(here), Some(restored)) => Some(if restored.at > here.at { restored } else { here }),
        (Some(anchor), None) => Some(anchor),
        (None, Some(restored)) if !ahead => Some(restored),
        (None, _) => match stamp {
            Some(s) => (wall >= s.wall).then_some(Anchor { at: Boot::default(), wall: s.wall }),
            None => start.map(|s| Anchor { at: s.at, wall: s.wall }),
        },
    }
}

/// Lower bound of the wall clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Floor {
    /// Build time.
    pub build: Wall,
    /// The last stamp.
    pub stamp: Option<Stamp>,
}

impl Floor {
    /// The later of build and stamp.
    pub fn least(&self) -> Wall {
        self.build.max(self.stamp.as_ref().map_or(self.build, |s| s.wall))
    }

    /// What to set a clock to that shows `wall`; `None`: it is not behind the floor.
    pub fn restore(&self, wall: Wall) -> Option<Wall> {
        Some(self.least()).filter(|least| wall < *least)
    }
}

/// The clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// Boot clock.
    pub now: Boot,
    /// Wall clock, right or wrong.
    pub wall: Wall,
    /// This boot's id.
    pub boot: &'a str,
    /// A time daemon reports synchronisation.
    pub synchronised: bool,
    /// The time in an authenticated message, and when it arrived.
    pub confirmed: Option<Anchor>,
    /// [`JumpWatch::observe`].
    pub jumped: bool,
}

/// The wall clock against the boot clock, and the latest time that a handshake may carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JumpWatch {
    last: Option<Anchor>,
    stamped: Option<Wall>,
}

impl JumpWatch {
    /// `last`: [`anchor_at_start`]. `stamped`: what [`JumpWatch::stamped`] was before the process started.
    pub const fn new(last: Option<Anchor>, stamped: Option<Wall>) -> Self {
        Self { last, stamped }
    }

    /// Whether the clock stands more than [`LONGEST_JUMP`] away from where it would be without a step, unconfirmed.
    pub fn observe(&mut self, now: Boot, wall: Wall, confirmed: Option<Anchor>) -> bool {
        let near = |a: Anchor, within: Duration| a.wall(now).0.abs_diff(wall.0) <= within.as_secs();
        let jumped = self.last.is_some_and(|last| !near(last, LONGEST_JUMP))
            && !confirmed.is_some_and(|c| near(c, AUTHENTICATED_SLACK));
        let back =
            self.last.is_some_and(|last| wall.0.saturating_add(AUTHENTICATED_SLACK.as_secs()) < last.wall(now).0);
        if jumped && self.last.is_some_and(|last| wall > last.wall(now)) {
            self.stamped = self.stamped.max(Some(wall));
        }
        if back && let Some(last) = self.last {
            self.stamped = self.stamped.max(Some(last.wall(now)));
        }
        if !jumped {
            self.last = Some(Anchor { at: now, wall });
        }
        jumped
    }

    /// The latest time that a handshake may have carried, if the clock was ahead of what it should show.
    pub const fn stamped(&self) -> Option<Wall> {
        self.stamped
    }

    /// A new key has no handshakes yet.
    pub const fn forget_stamps(&mut self) {
        self.stamped = None;
    }
}

/// A moment on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Anchor {
    /// Boot clock.
    pub at: Boot,
    /// Wall clock at that moment.
    pub wall: Wall,
}

impl Anchor {
    /// The wall time at `now`, independent of the machine's wall clock.
    pub fn wall(self, now: Boot) -> Wall {
        Wall(self.wall.0.saturating_add(now.since(self.at).as_secs()))
    }
}

/// Why the wall clock is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// An authenticated message carried the time.
    Confirmed,
    /// A time daemon is synchronised.
    Synchronised,
    /// It was trusted earlier in this boot and not set back since.
    Kept,
    /// It is ahead of what restoring explains: an RTC or a time daemon has set it.
    Set,
}

/// Why it is not trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Doubt {
    /// Before the build or the last stamp.
    Past,
    /// As restored, and not set since.
    Restored,
    /// More than [`LONGEST_LIFE`] after the build.
    Future,
    /// Moved by more than [`LONGEST_JUMP`], which nothing authenticated has confirmed.
    Jump,
}

/// The trusted wall time with its source, or why there is none. The first rule that applies decides:
/// 1. confirmed by an authenticated message → that time, continued by the boot clock;
/// 2. before the floor, more than [`LONGEST_LIFE`] past the build, or after an unconfirmed jump → none;
/// 3. a time daemon is synchronised → the clock;
/// 4. not behind a trusted stamp of this boot, continued → the clock;
/// 5. ahead of the floor plus the time since boot or since a stamp of this boot → the clock;
/// 6. none.
pub fn assess(r: Reading<'_>, floor: &Floor) -> Result<(Wall, Source), Doubt> {
    if let Some(confirmed) = r.confirmed {
        return Ok((confirmed.wall(r.now), Source::Confirmed));
    }
    if r.wall < floor.least() {
        return Err(Doubt::Past);
    }
    if r.wall.0 - floor.build.0.min(r.wall.0) > LONGEST_LIFE.as_secs() {
        return Err(Doubt::Future);
    }
    if r.jumped {
        return Err(Doubt::Jump);
    }
    if r.synchronised {
        return Ok((r.wall, Source::Synchronised));
    }
    let here = floor.stamp.as_ref().filter(|s| s.boot == r.boot);
    let continued =
        here.map_or(Anchor { at: Boot::default(), wall: floor.least() }, |s| Anchor { at: s.at, wall: s.wall });
    let expected = continued.wall(r.now).0;
    if here.is_some_and(|s| s.trusted) && r.wall.0.saturating_add(SLACK.as_secs()) >= expected {
        return Ok((r.wall, Source::Kept));
    }
    if r.wall.0 > expected.saturating_add(SLACK.as_secs()) {
        return Ok((r.wall, Source::Set));
    }
    Err(Doubt::Restored)
}

/// Occasion of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// The supervisor runs.
    Running,
    /// The supervisor stops cleanly.
    Stopping,
}

/// The stamp to store now, if one is due. Untrusted time is stored too, since the hub has seen handshakes with it. A
/// stamp ahead of a certain clock is replaced.
pub fn due(r: Reading<'_>, floor: &Floor, every: Duration, occasion: Occasion) -> Option<Stamp> {
    let verdict = assess(r, floor);
    if r.wall < floor.build || matches!(verdict, Err(Doubt::Future | Doubt::Jump)) {
        return None;
    }
    let stamp = Stamp { wall: r.wall, trusted: verdict.is_ok(), boot: r.boot.to_owned(), at: r.now };
    let Some(last) = &floor.stamp else { return Some(stamp) };
    let after = match occasion {
        Occasion::Running => last.wall.0.saturating_add(every.as_secs().max(1)),
        Occasion::Stopping => last.wall.0.saturating_add(1),
    };
    // Independent of the stamp itself.
    let certain = r.synchronised || r.confirmed.is_some_and(|c| c.wall(r.now).0.abs_diff(r.wall.0) <= SLACK.as_secs());
    let ahead = certain && last.wall.0 > r.wall.0.saturating_add(every.as_secs());
    (r.wall.0 >= after || ahead).then_some(stamp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: u64 = 86_400;
    const EVERY: Duration = Duration::from_secs(6 * 3600);

    fn floor(stamp: Option<(u64, bool, &str, u64)>) -> Floor {
        let stamp = stamp.map(|(wall, trusted, boot, at)| Stamp {
            wall: Wall(wall),
            trusted,
            boot: boot.into(),
            at: Boot::from_secs(at),
        });
        Floor { build: Wall(1_000_000_000), stamp }
    }

    fn at(now: u64, wall: u64) -> Reading<'static> {
        Reading {
            now: Boot::from_secs(now),
            wall: Wall(wall),
            boot: "b",
            synchronised: false,
            confirmed: None,
            jumped: false,
        }
    }

    #[test]
    fn build_time_is_set() {
        assert!(BUILD >= Wall(1_767_225_600), "{BUILD}");
    }

    #[test]
    fn restored_clock_is_trusted_once_set() {
        let stamped = floor(Some((1_100_000_000, true, "a", 500)));
        assert_eq!(stamped.restore(Wall(30)), Some(Wall(1_100_000_000)), "1970 goes to the stamp");
        assert_eq!(floor(None).restore(Wall(30)), Some(Wall(1_000_000_000)), "or to the build");
        assert_eq!(stamped.restore(Wall(1_100_000_001)), None);

        assert_eq!(assess(at(30, 30), &stamped), Err(Doubt::Past));
        assert_eq!(assess(at(40, 1_100_000_020), &stamped), Err(Doubt::Restored), "restored at 20 s, ran on since");
        assert_eq!(assess(at(60, 1_100_050_000), &stamped), Ok((Wall(1_100_050_000), Source::Set)), "NTP has set it");
        assert_eq!(assess(at(5, 1_000_000_000 + 30 * 365 * DAY), &stamped), Err(Doubt::Future));
    }

    #[test]
    fn trust_survives_a_restart_of_the_process() {
        let here = floor(Some((1_100_000_000, true, "b", 100)));
        assert_eq!(assess(at(200, 1_100_000_100), &here), Ok((Wall(1_100_000_100), Source::Kept)));
        let doubted = floor(Some((1_100_000_000, false, "b", 100)));
        assert_eq!(assess(at(200, 1_100_000_100), &doubted), Err(Doubt::Restored));
        assert_eq!(assess(at(200, 1_100_009_000), &doubted), Ok((Wall(1_100_009_000), Source::Set)));
    }

    #[test]
    fn authenticated_time_takes_precedence() {
        let confirmed = Some(Anchor { at: Boot::from_secs(10), wall: Wall(1_200_000_000) });
        let r = Reading { confirmed, ..at(70, 30) };
        assert_eq!(assess(r, &floor(None)), Ok((Wall(1_200_000_060), Source::Confirmed)));
        assert_eq!(due(r, &floor(None), EVERY, Occasion::Stopping), None, "a wrong clock is not stored");
    }

    #[test]
    fn unconfirmed_jump_is_distrusted_and_remembered() {
        let mut watch = JumpWatch::default();
        let wall = |now: u64| Wall(1_100_000_000 + now);
        assert!(!watch.observe(Boot::from_secs(10), wall(10), None));
        assert!(!watch.observe(Boot::from_secs(70), wall(70 + DAY / 2), None), "half a day");
        let (now, ahead) = (Boot::from_secs(130), wall(130 + 400 * DAY));
        assert!(watch.observe(now, ahead, None));
        let r = Reading { jumped: true, synchronised: true, ..at(130, ahead.0) };
        let floor = floor(Some((1_100_000_000, true, "b", 0)));
        assert_eq!(assess(r, &floor), Err(Doubt::Jump), "whatever the time daemon says");
        assert_eq!(due(r, &floor, EVERY, Occasion::Stopping), None, "a restored clock would begin there");
        assert!(watch.observe(Boot::from_secs(190), wall(190 + 400 * DAY), None), "for as long as it stands there");
        // Set right again: the handshakes in between were stamped with the future.
        assert!(!watch.observe(Boot::from_secs(250), wall(250 + DAY / 2), None));
        assert_eq!(watch.stamped(), Some(wall(190 + 400 * DAY)));
        // A board that lay in a drawer: the control plane confirms the jump.
        let mut watch = JumpWatch::new(None, watch.stamped());
        watch.observe(Boot::from_secs(5), wall(5), None);
        let confirmed = Some(Anchor { at: Boot::from_secs(60), wall: wall(60 + 90 * DAY) });
        assert!(!watch.observe(Boot::from_secs(70), wall(75 + 90 * DAY), confirmed));
        watch.forget_stamps();
        // A clock that was ahead from the start and is set back.
        assert!(watch.observe(Boot::from_secs(80), wall(80), None));
        assert_eq!(watch.stamped(), Some(wall(85 + 90 * DAY)));
    }

    #[test]
    fn jump_before_the_start_is_one() {
        let stamp = |boot: &str| Stamp {
            wall: Wall(1_100_000_000),
            trusted: true,
            boot: boot.into(),
            at: Boot::from_secs(1_000),
        };
        let start =
            |wall, restored| BootStamp { boot: "b".into(), at: Boot::from_secs(20), wall: Wall(wall), restored };
        let jumped = |now: u64, wall: u64, stamp: Option<&Stamp>, start: Option<&BootStamp>, ahead: bool| {
            let (now, wall) = (Boot::from_secs(now), Wall(wall));
            JumpWatch::new(anchor_at_start("b", wall, stamp, start, ahead), None).observe(now, wall, None)
        };
        // The process was stopped for an hour in this boot.
        let here = stamp("b");
        assert!(!jumped(4_600, 1_100_003_600, Some(&here), None, false));
        assert!(jumped(4_600, 1_100_003_600 + 2 * DAY, Some(&here), None, false));
        assert!(jumped(4_600, 1_100_003_600 - 2 * DAY, Some(&here), None, false));
        let by_hand = BootStamp { at: Boot::from_secs(4_500), ..start(1_100_003_500 + 2 * DAY, true) };
        assert!(
            !jumped(4_600, 1_100_003_600 + 2 * DAY, Some(&here), Some(&by_hand), true),
            "an operator has confirmed it"
        );
        // Off for a month, with a battery; a time server is asked before the process starts.
        let (before, battery) = (stamp("a"), start(1_100_000_000 + 30 * DAY, true));
        assert!(!jumped(80, 1_100_000_060 + 30 * DAY, Some(&before), Some(&battery), false));
        assert!(jumped(80, 1_100_000_060 + 400 * DAY, Some(&before), Some(&battery), false));
        assert!(
            jumped(80, 1_100_000_060 + 30 * DAY, Some(&before), Some(&battery), true),
            "the battery may have kept it"
        );
        // Without one.
        let restored = start(1_100_000_000, true);
        assert!(jumped(80, 1_100_000_060 + 400 * DAY, Some(&before), Some(&restored), false));
        assert!(!jumped(80, 1_100_000_060, Some(&before), Some(&restored), false));
        // Nothing was done before the network was up.
        for start in [None, Some(&start(1_100_000_000 + 400 * DAY, false))] {
            assert!(jumped(80, 1_100_000_060 + 400 * DAY, Some(&before), start, false));
            assert!(!jumped(80, 1_100_000_060 + DAY / 2, Some(&before), start, false));
            assert!(!jumped(80, 60, Some(&before), start, false), "in the past, which is another doubt");
        }
        // The first start of a board.
        assert!(!jumped(80, 1_300_000_000, None, None, false));
        assert!(jumped(80, 1_300_000_000, None, Some(&restored), false));
    }

    #[test]
    fn future_stamp_is_replaced_only_when_certain() {
        let ahead = floor(Some((1_300_000_000, true, "a", 0)));
        assert_eq!(due(at(100, 1_200_000_000), &ahead, EVERY, Occasion::Running), None);
        let sure = Reading { synchronised: true, ..at(100, 1_200_000_000) };
        assert_eq!(due(sure, &ahead, EVERY, Occasion::Running).map(|s| s.wall), Some(Wall(1_200_000_000)));
    }

    proptest! {
        #[test]
        fn stamps_are_sparse(steps in proptest::collection::vec(60u64..7200, 200..400)) {
            let mut floor = floor(None);
            let (mut wall, mut writes) = (1_000_000_100u64, 0u64);
            let start = wall;
            for (i, step) in steps.iter().enumerate() {
                wall += step;
                let boot = format!("boot{}", i / 7);
                let r = Reading { boot: &boot, ..at(i as u64 * 60, wall) };
                if let Some(stamp) = due(r, &floor, EVERY, Occasion::Running) {
                    prop_assert!(stamp.wall >= floor.least());
                    floor.stamp = Some(stamp);
                    writes += 1;
                }
            }
            prop_assert!(writes <= (wall - start) / EVERY.as_secs() + 1, "{writes} writes");
            prop_assert!(wall - floor.least().0 <= EVERY.as_secs() + 7200, "never far behind");
        }

        #[test]
        fn restored_clock_is_untrusted(stamp in 1_000_000_000u64..1_600_000_000, uptime in 0u64..1_000_000, boot_wall in 0u64..2_000_000_000) {
            let floor = floor(Some((stamp, true, "a", 7)));
            let set = floor.restore(Wall(boot_wall));
            let wall = set.map_or(boot_wall, |w| w.0);
            prop_assert!(wall >= stamp);
            if set.is_some() {
                prop_assert_eq!(assess(at(uptime, wall + uptime), &floor), Err(Doubt::Restored));
            }
        }

        #[test]
        fn trusted_clock_is_not_below_the_floor(now: u32, wall: u64, stamp in proptest::option::of((any::<u64>(), any::<bool>(), 0u64..1 << 40)), synchronised: bool) {
            let floor = floor(stamp.map(|(w, t, a)| (w, t, "b", a)));
            let r = Reading { synchronised, ..at(now.into(), wall) };
            for occasion in [Occasion::Running, Occasion::Stopping] {
                let _ = due(r, &floor, EVERY, occasion);
            }
            if let Ok((believed, _)) = assess(r, &floor) {
                prop_assert!(believed >= floor.least());
            }
        }
    }
}
