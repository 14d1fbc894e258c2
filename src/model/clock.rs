//! When the wall clock may be believed, below what it never goes, and when that is written down.
//!
//! A board without a battery-backed clock boots in the past. Its WireGuard handshakes then carry times that the hub has
//! seen pass, and the hub drops them as replays until the clock is right again; and the time server may be reachable only
//! through that tunnel. So the tunnel never waits for the time:
//! - Before the supervisor starts, `spoke clock restore` (`spoke-clock.service`) sets a clock that is behind to the [`Floor`]:
//!   the later of the build's time and the last [`Stamp`]. It is a program run of its own because only it needs
//!   CAP_SYS_TIME: the supervisor, which talks to the network, cannot set the clock, and its unit denies it the system calls.
//! - The supervisor keeps the stamp. It is written when the wall clock is `clock.stamp_every` (6 h) past it, and on a clean
//!   stop: at most four writes of one block a day, however often the board boots. After a power cut the clock is behind by
//!   at most that; without an RTC the tunnel can be out for as long unless a time server is reachable outside of it. A clock
//!   set ahead instead would come back sooner and then lose the tunnel when a time server sets it back.
//! - Everything that needs a date (certificates, signatures) asks [`judge`] and gets `None` until there is a reason to believe.
//!
//! `adjtimex` would tell of any time daemon, but `ProtectClock=` denies it to the supervisor together with the calls that
//! set the clock; the file that systemd-timesyncd leaves tells of that one, and rule 5 of [`judge`] of all others.

use crate::time::{Boot, Wall};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The time of this build, in seconds since the epoch (see `build.rs`).
pub const BUILD: Wall = Wall(match u64::from_str_radix(env!("SPOKE_BUILD_TIME"), 10) {
    Ok(secs) => secs,
    // build.rs writes digits only.
    Err(_) => 0,
});

/// A clock further ahead of the build is broken: no board runs one build for so long.
pub const LONGEST_LIFE: Duration = Duration::from_secs(20 * 365 * 86_400);

/// How much a clock may differ from what is expected of it and still be the same.
const SLACK: Duration = Duration::from_secs(2);

/// The wall clock as it was written down last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// What it showed.
    pub wall: Wall,
    /// It was believed.
    pub trusted: bool,
    /// The id of the boot it was written in.
    pub boot: String,
    /// When, on the clock of that boot.
    pub at: Boot,
}

/// Below what the clock never goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Floor {
    /// The build's time.
    pub build: Wall,
    /// The last stamp.
    pub stamp: Option<Stamp>,
}

impl Floor {
    /// The later of build and stamp.
    pub fn least(&self) -> Wall {
        self.build.max(self.stamp.as_ref().map_or(self.build, |s| s.wall))
    }

    /// What to set a clock to that shows `wall`; `None`: it is not behind.
    pub fn restore(&self, wall: Wall) -> Option<Wall> {
        Some(self.least()).filter(|least| wall < *least)
    }
}

/// A look at the clocks.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// Boot clock.
    pub now: Boot,
    /// Wall clock, right or wrong.
    pub wall: Wall,
    /// This boot's id.
    pub boot: &'a str,
    /// A time daemon says that it is synchronised.
    pub synchronised: bool,
    /// What an authenticated message said the time was, and when it came.
    pub confirmed: Option<Anchor>,
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
    /// The wall time at `now`, whatever the machine's wall clock does.
    pub fn wall(self, now: Boot) -> Wall {
        Wall(self.wall.0.saturating_add(now.since(self.at).as_secs()))
    }
}

/// Why the wall clock is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// An authenticated message carried the time.
    Confirmed,
    /// A time daemon is synchronised.
    Synchronised,
    /// It was believed earlier in this boot and has run on since.
    Kept,
    /// It is further than restoring alone can have brought it: an RTC or a time daemon has set it.
    Set,
}

/// Why it is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Doubt {
    /// Before the build or the last stamp.
    Past,
    /// Where restoring has put it, and on from there: nobody has set it since.
    Restored,
    /// Decades after the build.
    Future,
}

/// The wall time to go by and why, or why there is none. The first rule that applies decides:
/// 1. confirmed by an authenticated message → that time, carried on by the boot clock;
/// 2. before the floor, or decades past the build → none;
/// 3. a time daemon is synchronised → the clock;
/// 4. at least where a believed stamp of this boot says → the clock;
/// 5. further than the floor plus the time since (since boot, or since a stamp of this boot) → the clock;
/// 6. none.
pub fn judge(r: Reading<'_>, floor: &Floor) -> Result<(Wall, Source), Doubt> {
    if let Some(confirmed) = r.confirmed {
        return Ok((confirmed.wall(r.now), Source::Confirmed));
    }
    if r.wall < floor.least() {
        return Err(Doubt::Past);
    }
    if r.wall.0 - floor.build.0.min(r.wall.0) > LONGEST_LIFE.as_secs() {
        return Err(Doubt::Future);
    }
    if r.synchronised {
        return Ok((r.wall, Source::Synchronised));
    }
    let here = floor.stamp.as_ref().filter(|s| s.boot == r.boot);
    let run_on =
        here.map_or(Anchor { at: Boot::default(), wall: floor.least() }, |s| Anchor { at: s.at, wall: s.wall });
    let expected = run_on.wall(r.now).0;
    if here.is_some_and(|s| s.trusted) && r.wall.0.saturating_add(SLACK.as_secs()) >= expected {
        return Ok((r.wall, Source::Kept));
    }
    if r.wall.0 > expected.saturating_add(SLACK.as_secs()) {
        return Ok((r.wall, Source::Set));
    }
    Err(Doubt::Restored)
}

/// When to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// The supervisor goes on.
    Running,
    /// The supervisor stops cleanly.
    Stopping,
}

/// The stamp to write now, if one is due. Wall time that is not believed is written too: the hub has seen handshakes with
/// it. A stamp that lies ahead of a clock that is known to be right is taken back.
pub fn due(r: Reading<'_>, floor: &Floor, every: Duration, occasion: Occasion) -> Option<Stamp> {
    let verdict = judge(r, floor);
    if r.wall < floor.build || verdict == Err(Doubt::Future) {
        return None;
    }
    let stamp = Stamp { wall: r.wall, trusted: verdict.is_ok(), boot: r.boot.to_owned(), at: r.now };
    let Some(last) = &floor.stamp else { return Some(stamp) };
    let after = match occasion {
        Occasion::Running => last.wall.0.saturating_add(every.as_secs().max(1)),
        Occasion::Stopping => last.wall.0.saturating_add(1),
    };
    // Judged by what does not depend on the stamp itself.
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
        Reading { now: Boot::from_secs(now), wall: Wall(wall), boot: "b", synchronised: false, confirmed: None }
    }

    #[test]
    fn this_build_has_a_time() {
        assert!(BUILD >= Wall(1_767_225_600), "{BUILD}");
    }

    #[test]
    fn a_board_without_a_clock() {
        let stamped = floor(Some((1_100_000_000, true, "a", 500)));
        assert_eq!(stamped.restore(Wall(30)), Some(Wall(1_100_000_000)), "1970 goes to the stamp");
        assert_eq!(floor(None).restore(Wall(30)), Some(Wall(1_000_000_000)), "or to the build");
        assert_eq!(stamped.restore(Wall(1_100_000_001)), None);

        assert_eq!(judge(at(30, 30), &stamped), Err(Doubt::Past));
        assert_eq!(judge(at(40, 1_100_000_020), &stamped), Err(Doubt::Restored), "restored at 20 s, ran on since");
        assert_eq!(judge(at(60, 1_100_050_000), &stamped), Ok((Wall(1_100_050_000), Source::Set)), "NTP has set it");
        assert_eq!(judge(at(5, 1_000_000_000 + 30 * 365 * DAY), &stamped), Err(Doubt::Future));
    }

    #[test]
    fn a_restart_of_the_process_keeps_the_trust() {
        let here = floor(Some((1_100_000_000, true, "b", 100)));
        assert_eq!(judge(at(200, 1_100_000_100), &here), Ok((Wall(1_100_000_100), Source::Kept)));
        let doubted = floor(Some((1_100_000_000, false, "b", 100)));
        assert_eq!(judge(at(200, 1_100_000_100), &doubted), Err(Doubt::Restored));
        assert_eq!(judge(at(200, 1_100_009_000), &doubted), Ok((Wall(1_100_009_000), Source::Set)));
    }

    #[test]
    fn an_authenticated_message_beats_every_clock() {
        let confirmed = Some(Anchor { at: Boot::from_secs(10), wall: Wall(1_200_000_000) });
        let r = Reading { confirmed, ..at(70, 30) };
        assert_eq!(judge(r, &floor(None)), Ok((Wall(1_200_000_060), Source::Confirmed)));
        assert_eq!(
            due(r, &floor(None), EVERY, Occasion::Stopping),
            None,
            "a wrong clock is not written down all the same"
        );
    }

    #[test]
    fn a_stamp_in_the_future_is_taken_back_only_on_good_authority() {
        let ahead = floor(Some((1_300_000_000, true, "a", 0)));
        assert_eq!(due(at(100, 1_200_000_000), &ahead, EVERY, Occasion::Running), None);
        let sure = Reading { synchronised: true, ..at(100, 1_200_000_000) };
        assert_eq!(due(sure, &ahead, EVERY, Occasion::Running).map(|s| s.wall), Some(Wall(1_200_000_000)));
    }

    proptest! {
        /// However often the board boots and stops, a year of running costs no more writes than its intervals.
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

        /// A restored clock is never behind anything that was written, and is never believed by itself.
        #[test]
        fn restoring_is_not_knowing(stamp in 1_000_000_000u64..1_600_000_000, uptime in 0u64..1_000_000, boot_wall in 0u64..2_000_000_000) {
            let floor = floor(Some((stamp, true, "a", 7)));
            let set = floor.restore(Wall(boot_wall));
            let wall = set.map_or(boot_wall, |w| w.0);
            prop_assert!(wall >= stamp);
            if set.is_some() {
                prop_assert_eq!(judge(at(uptime, wall + uptime), &floor), Err(Doubt::Restored));
            }
        }

        #[test]
        fn any_clock_is_judged(now: u32, wall: u64, stamp in proptest::option::of((any::<u64>(), any::<bool>(), 0u64..1 << 40)), synchronised: bool) {
            let floor = floor(stamp.map(|(w, t, a)| (w, t, "b", a)));
            let r = Reading { synchronised, ..at(now.into(), wall) };
            for occasion in [Occasion::Running, Occasion::Stopping] {
                let _ = due(r, &floor, EVERY, occasion);
            }
            if let Ok((believed, _)) = judge(r, &floor) {
                prop_assert!(believed >= floor.least());
            }
        }
    }
}
