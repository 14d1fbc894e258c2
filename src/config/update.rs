//! `[update]`: source of image updates and the rules that commit a new system; used on an image with two slots only.
use super::reader::Table;
use serde::{Serialize, Serializer};
use spoke_model::address::HostPort;
use spoke_model::duration::duration_text;
use spoke_model::time::Wall;
use spoke_model::url::HttpUrl;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

/// Time limits of a trial of a new system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rules {
    /// Commit after being healthy for this long without a gap.
    pub settle: Duration,
    /// Time a new system has to become healthy.
    pub patience: Duration,
    /// The same during an outage of the WAN.
    pub outage: Duration,
    /// How often a trial that ended in an outage is repeated.
    pub resumes: u8,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            settle: Duration::from_secs(120),
            patience: Duration::from_secs(600),
            outage: Duration::from_secs(3600),
            resumes: 3,
        }
    }
}

/// The hours of a day in which bundles are fetched unattended, in UTC or at a fixed offset; may include midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Minutes since midnight.
    from: u16,
    /// Minutes since midnight, not included.
    to: u16,
    /// Minutes that its clock is ahead of UTC.
    offset: i16,
}

impl Window {
    /// What is left of it; `None`: it is closed.
    pub fn left(self, wall: Wall) -> Option<Duration> {
        const DAY: i64 = 86_400;
        let secs = i64::try_from(wall.secs() % DAY.unsigned_abs()).unwrap_or_default();
        let local = (secs + i64::from(self.offset) * 60).rem_euclid(DAY);
        let (from, to) = (i64::from(self.from) * 60, i64::from(self.to) * 60);
        let length = (to - from).rem_euclid(DAY);
        let passed = (local - from).rem_euclid(DAY);
        u64::try_from(length - passed).ok().filter(|left| *left > 0).map(Duration::from_secs)
    }
}

/// Text that is no [`Window`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a window of a day")]
pub struct BadWindow;

fn minutes(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |t: &str, below: u16| {
        let digits = t.len() == 2 && t.bytes().all(|b| b.is_ascii_digit());
        t.parse::<u16>().ok().filter(|n| digits && *n < below)
    };
    Some(number(hours, 24)? * 60 + number(minutes, 60)?)
}

impl FromStr for Window {
    type Err = BadWindow;
    fn from_str(text: &str) -> Result<Self, BadWindow> {
        let read = || {
            let (hours, zone) = text.split_once(' ').unwrap_or((text, "UTC"));
            let (from, to) = hours.split_once('-')?;
            let offset = match zone.trim() {
                "UTC" | "Z" => 0,
                zone => {
                    let (sign, ahead) = zone.split_at_checked(1)?;
                    let ahead = i16::try_from(minutes(ahead)?).ok()?;
                    match sign {
                        "+" => ahead,
                        "-" => -ahead,
                        _ => return None,
                    }
                }
            };
            let (from, to) = (minutes(from)?, minutes(to)?);
            (from != to).then_some(Self { from, to, offset })
        };
        read().ok_or(BadWindow)
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clock = |m: u16| format!("{:02}:{:02}", m / 60, m % 60);
        write!(f, "{}-{}", clock(self.from), clock(self.to))?;
        let sign = if self.offset < 0 { '-' } else { '+' };
        match self.offset {
            0 => f.write_str(" UTC"),
            offset => write!(f, " {sign}{}", clock(offset.unsigned_abs())),
        }
    }
}

impl Serialize for Window {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// `[update]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Update {
    /// Base URL of bundles: `SOURCE/BOARD.spoke` is fetched. `None`: only `spoke update install FILE`.
    pub source: Option<String>,
    /// Install a newer bundle of `source` automatically.
    pub automatic: bool,
    /// Period of checks of `source`.
    #[serde(serialize_with = "duration_text")]
    pub every: Duration,
    /// When bundles are fetched unattended; `None`: at any time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// `HOST:PORT`s on the internet that accept TCP: they distinguish an outage from a bad system. The host of `source` is
    /// probed too.
    pub probes: Vec<String>,
    /// Rules of a trial.
    #[serde(flatten, serialize_with = "rules")]
    pub rules: Rules,
}

fn rules<S: Serializer>(rules: &Rules, s: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Written {
        #[serde(serialize_with = "duration_text")]
        settle: Duration,
        #[serde(serialize_with = "duration_text")]
        patience: Duration,
        #[serde(serialize_with = "duration_text")]
        outage: Duration,
        resumes: u8,
    }
    let Rules { settle, patience, outage, resumes } = *rules;
    Written { settle, patience, outage, resumes }.serialize(s)
}

impl Update {
    pub(super) fn read(t: &mut Table<'_>) -> Self {
        let source = t.parsed::<HttpUrl>("source", "https://… (http:// is possible: bundles are signed)");
        let default = Rules::default();
        let probes = t.list::<HostPort>("probes", "HOST:PORT").map(|p| p.iter().map(ToString::to_string).collect());
        let minute = Duration::from_secs(60);
        let second = Duration::from_secs(1);
        Self {
            automatic: t.flag("automatic").unwrap_or(false),
            every: t.duration("every", minute..=720 * HOUR).unwrap_or(12 * HOUR),
            window: t.parsed("window", "HH:MM-HH:MM in UTC, or with an offset: 02:00-05:00 +01:00"),
            // Public resolvers of two operators.
            probes: probes.unwrap_or_else(|| vec!["1.1.1.1:443".into(), "9.9.9.9:443".into()]),
            rules: Rules {
                settle: t.duration("settle", second..=24 * HOUR).unwrap_or(default.settle),
                patience: t.duration("patience", 10 * second..=24 * HOUR).unwrap_or(default.patience),
                outage: t.duration("outage", 10 * second..=168 * HOUR).unwrap_or(default.outage),
                resumes: t.number("resumes", 0..=20).and_then(|n| u8::try_from(n).ok()).unwrap_or(default.resumes),
            },
            source: source.map(|s| s.reveal().trim_end_matches('/').to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_is_read_and_shown() {
        for (text, shown) in [
            ("02:00-05:00", "02:00-05:00 UTC"),
            ("22:30-01:15 UTC", "22:30-01:15 UTC"),
            ("02:00-05:00 +05:30", "02:00-05:00 +05:30"),
            ("00:00-23:59 -08:00", "00:00-23:59 -08:00"),
        ] {
            let window: Window = text.parse().unwrap();
            assert_eq!(window.to_string(), shown);
            assert_eq!(shown.parse(), Ok(window));
        }
        for bad in
            ["", "2:00-5:00", "02:00", "02:00-02:00", "24:00-05:00", "02:60-05:00", "02:00-05:00 CET", "02:00-05:00 +1"]
        {
            assert_eq!(bad.parse::<Window>(), Err(BadWindow), "{bad}");
        }
    }

    #[test]
    fn window_is_open_for_its_length_in_every_zone() {
        for text in ["02:00-05:00", "22:30-01:15", "02:00-05:00 +05:30", "23:59-00:00 -08:00", "00:00-23:59 +13:45"] {
            let window: Window = text.parse().unwrap();
            let open = (0..1440u64).filter(|m| window.left(Wall(1_767_225_600 + m * 60)).is_some()).count();
            assert_eq!(open as i64, (i64::from(window.to) - i64::from(window.from)).rem_euclid(1440), "{text}");
        }
        let window: Window = "02:00-05:00 +01:00".parse().unwrap();
        assert_eq!(window.left(Wall(3600)), Some(Duration::from_secs(3 * 3600)));
        assert_eq!(window.left(Wall(3599)), None);
    }
}
