//! The two clocks: boot time, which is always right, and wall time, which a board may not have.
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::{Add, AddAssign};
use std::time::Duration;

/// A moment on the boot-time clock (`CLOCK_BOOTTIME`): monotonic, includes suspend, starts at 0 at each boot.
///
/// Used for every duration and deadline. Invalid after a reboot: a stored value has the boot id beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Boot(Duration);

impl Boot {
    /// The moment `since_boot` after the kernel started.
    pub const fn from_duration(since_boot: Duration) -> Self {
        Self(since_boot)
    }

    /// The moment `secs` seconds after the kernel started.
    pub const fn from_secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }

    /// Time since the kernel started.
    pub const fn since_boot(self) -> Duration {
        self.0
    }

    /// Time from `earlier` to `self`; zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// The moment `d` before `self`, not before boot.
    pub const fn saturating_sub(self, d: Duration) -> Self {
        Self(self.0.saturating_sub(d))
    }
}

impl Add<Duration> for Boot {
    type Output = Self;
    /// Saturates: a deadline beyond the range is never reached.
    fn add(self, d: Duration) -> Self {
        Self(self.0.saturating_add(d))
    }
}

impl AddAssign<Duration> for Boot {
    fn add_assign(&mut self, d: Duration) {
        *self = *self + d;
    }
}

/// Wall-clock time in whole seconds since 1970-01-01 UTC.
///
/// `Option<Wall>` where it may be unknown: a board without a battery-backed clock boots in the past.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Wall(pub u64);

impl Wall {
    /// Seconds since the epoch.
    pub const fn secs(self) -> u64 {
        self.0
    }

    /// Earlier by `d`, not before the epoch.
    pub const fn before(self, d: Duration) -> Self {
        Self(self.0.saturating_sub(d.as_secs()))
    }

    /// Reads an RFC 3339 time in UTC (`2026-01-31T00:00:00Z`; a fraction is dropped). `None` if it is anything else.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let b = text.as_bytes();
        if b.len() < 20 || b[4] != b'-' || b[7] != b'-' || b[10] != b'T' || b[13] != b':' || b[16] != b':' {
            return None;
        }
        let rest = text.get(19..)?;
        let zone = rest.strip_prefix('.').map_or(rest, |f| f.trim_start_matches(|c: char| c.is_ascii_digit()));
        if zone != "Z" && zone != "+00:00" {
            return None;
        }
        let n = |from: usize, to: usize| -> Option<u64> {
            let t = text.get(from..to)?;
            t.bytes().all(|c| c.is_ascii_digit()).then(|| t.parse().ok())?
        };
        let (y, mo, d) = (n(0, 4)?, n(5, 7)?, n(8, 10)?);
        let (h, mi, s) = (n(11, 13)?, n(14, 16)?, n(17, 19)?);
        if !(1..=12).contains(&mo) || !(1..=31).contains(&d) || h > 23 || mi > 59 || s > 60 || y < 1970 {
            return None;
        }
        // Days from civil, proleptic Gregorian (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms").
        let (y, m) = if mo <= 2 { (y - 1, mo + 9) } else { (y, mo - 3) };
        let (era, yoe) = (y / 400, y % 400);
        let doy = (153 * m + 2) / 5 + d - 1;
        let days = era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy;
        Some(Self(days.checked_sub(719_468)? * 86_400 + h * 3600 + mi * 60 + s))
    }
}

impl fmt::Display for Wall {
    /// RFC 3339 in UTC.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, rest) = (self.0 / 86_400, self.0 % 86_400);
        let z = days + 719_468;
        let (era, doe) = (z / 146_097, z % 146_097);
        let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let (d, m) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
        let y = yoe + era * 400 + u64::from(m <= 2);
        write!(f, "{y:04}-{m:02}-{d:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_dates() {
        assert_eq!(Wall(0).to_string(), "1970-01-01T00:00:00Z");
        assert_eq!(Wall(1_700_000_000).to_string(), "2023-11-14T22:13:20Z");
        assert_eq!(Wall::parse_rfc3339("2024-02-29T12:00:00.25Z"), Some(Wall(1_709_208_000)));
        for bad in ["", "2024-02-29", "2024-13-01T00:00:00Z", "2024-01-01T00:00:00+02:00", "20x4-01-01T00:00:00Z"] {
            assert_eq!(Wall::parse_rfc3339(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn text_round_trips(secs in 0u64..253_402_300_799) {
            prop_assert_eq!(Wall::parse_rfc3339(&Wall(secs).to_string()), Some(Wall(secs)));
        }

        #[test]
        fn never_panics(text in ".{0,40}") {
            let _ = Wall::parse_rfc3339(&text);
        }

        #[test]
        fn boot_arithmetic_saturates(a in any::<Duration>(), b in any::<Duration>()) {
            let t = Boot::from_duration(a) + b;
            prop_assert!(t >= Boot::from_duration(a));
            prop_assert_eq!(Boot::from_duration(a).since(t), Duration::ZERO);
        }
    }
}
