//! `[update]`: source of image updates and the rules that commit a new system; used on an image with two slots only.
use super::reader::Table;
use serde::{Serialize, Serializer};
use spoke_model::address::HostPort;
use spoke_model::duration::duration_text;
use spoke_model::url::HttpUrl;
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
