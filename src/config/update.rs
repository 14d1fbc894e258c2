//! `[update]`: where updates come from and how a new system is judged; of use on an image with two slots only.
use super::reader::Table;
use serde::{Serialize, Serializer};
use spoke_model::duration::duration_text;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

/// How long to wait for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rules {
    /// Healthy for this long without a gap: commit.
    pub settle: Duration,
    /// Time a new system has to become healthy.
    pub patience: Duration,
    /// Time it has when nothing outside answers.
    pub outage: Duration,
    /// How often a trial that met an outage is tried again.
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

/// `[update]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Update {
    /// Where bundles are: `SOURCE/BOARD.spoke` is fetched. `None`: only what `spoke update install` is given.
    pub source: Option<String>,
    /// Install what `source` offers without being asked.
    pub automatic: bool,
    /// How often `source` is looked at.
    #[serde(serialize_with = "duration_text")]
    pub every: Duration,
    /// `HOST:PORT`s outside that answer TCP: they tell an outage from a bad system. The host of `source` is asked too.
    pub probes: Vec<String>,
    /// How a trial is judged.
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
        if source.as_ref().is_some_and(|s| s.contains('@')) {
            t.fault(
                "source",
                "has a name or a password in it, which /config would show",
                "leave out what is before the @",
            );
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
            source: source.map(|s| s.trim_end_matches('/').to_owned()),
        }
    }
}
