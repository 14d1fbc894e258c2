//! `[update]`: where updates come from and how a new system is judged; of use on an image with two slots only.
use super::reader::{Table, show_duration};
use crate::update::machine::Rules;
use crate::update::notice::WantedRelease;
use serde::Serialize;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

/// `[update]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Update {
    /// Where bundles are: `SOURCE/BOARD.spoke` is fetched. `None`: only what `spoke update install` is given.
    pub source: Option<String>,
    /// Install what `source` offers without being asked.
    pub automatic: bool,
    /// How often `source` is looked at, seconds.
    #[serde(serialize_with = "seconds")]
    pub every: Duration,
    /// `HOST:PORT`s outside that answer TCP: they tell an outage from a bad system. The host of `source` is asked too.
    pub probes: Vec<String>,
    /// How a trial is judged.
    #[serde(skip)]
    pub rules: Rules,
    /// What the control plane wants to run here; never from a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wanted: Option<WantedRelease>,
}

fn seconds<S: serde::Serializer>(d: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&show_duration(*d))
}

/// A place outside to knock at.
struct Probe(String);

impl std::str::FromStr for Probe {
    type Err = &'static str;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p != 0) => {
                Ok(Self(s.to_owned()))
            }
            _ => Err("is not HOST:PORT"),
        }
    }
}

impl Update {
    pub(super) fn read(t: &mut Table<'_>) -> Self {
        let source = t.text("source");
        if source.as_ref().is_some_and(|s| !(s.starts_with("https://") || s.starts_with("http://"))) {
            t.fault("source", "is not a web address", "write https://… (http:// is possible: bundles are signed)");
        }
        let default = Rules::default();
        let probes = t.list::<Probe>("probes", "HOST:PORT").map(|p| p.into_iter().map(|p| p.0).collect());
        let minute = Duration::from_secs(60);
        let second = Duration::from_secs(1);
        Self {
            automatic: t.flag("automatic").unwrap_or(false),
            every: t.duration("every", minute..=720 * HOUR).unwrap_or(12 * HOUR),
            // Two resolvers that everybody can reach, of different networks.
            probes: probes.unwrap_or_else(|| vec!["1.1.1.1:443".into(), "9.9.9.9:443".into()]),
            rules: Rules {
                settle: t.duration("settle", second..=24 * HOUR).unwrap_or(default.settle),
                patience: t.duration("patience", 10 * second..=24 * HOUR).unwrap_or(default.patience),
                outage: t.duration("outage", 10 * second..=168 * HOUR).unwrap_or(default.outage),
                resumes: t.number("resumes", 0..=20).and_then(|n| u8::try_from(n).ok()).unwrap_or(default.resumes),
            },
            wanted: None,
            source: source.map(|s| s.trim_end_matches('/').to_owned()),
        }
    }
}
