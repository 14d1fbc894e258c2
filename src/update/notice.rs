//! What supervisor and updater tell each other: they are different users, so each leaves a note the other reads.
use super::machine::Stage;
use super::record::{Ended, UpdateRecord};
use super::slot::Slot;
use serde::{Deserialize, Serialize};
use spoke_model::release::WantedRelease;

/// How updates stand, for `/health` and for the report to the control plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// The slot that runs.
    pub slot: Slot,
    /// The version of the image in it.
    pub version: String,
    /// The trial that is going on.
    pub trial: Option<TrialNotice>,
    /// How the last one ended.
    pub last: Option<Ended>,
    /// Why what is wanted is not installed.
    pub held: Option<String>,
}

/// A trial that is going on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialNotice {
    /// What is tried.
    pub version: String,
    /// Where.
    pub slot: Slot,
    /// How far it is.
    pub stage: Stage,
}

impl Notice {
    /// Of a record, on a system of `version` in `slot`.
    pub fn of(record: &UpdateRecord, slot: Slot, version: &str) -> Self {
        let trial = record.trial.as_ref();
        Self {
            slot,
            version: version.to_owned(),
            trial: trial.map(|t| TrialNotice { version: t.version.clone(), slot: t.slot, stage: t.stage }),
            last: record.last.clone(),
            held: None,
        }
    }
}

/// What to do about a wanted release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing: it runs, or nothing is wanted.
    Nothing,
    /// Not done, and why.
    Held(String),
    /// Fetch it from there, the board's file below it; `None`: from where the configuration says.
    Install(Option<String>),
}

/// Judges what is wanted in the light of what runs and what was given up.
pub fn wish(wanted: Option<&WantedRelease>, running: &str, record: &UpdateRecord) -> Wish {
    let Some(wanted) = wanted else { return Wish::Nothing };
    if wanted.version == running {
        return Wish::Nothing;
    }
    if let Err(problem) = wanted.check() {
        return Wish::Held(problem.to_owned());
    }
    if record.is_shunned(&wanted.version) {
        let last = record.last.as_ref().filter(|l| l.version == wanted.version);
        let why = last.map_or("it was taken back by hand", |l| l.detail.as_str());
        return Wish::Held(format!("{} was given up here: {why}", wanted.version));
    }
    Wish::Install(wanted.source.as_ref().map(|s| s.trim_end_matches('/').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::machine::RejectReason;
    use super::*;

    fn wanted(version: &str, source: Option<&str>) -> WantedRelease {
        WantedRelease { version: version.into(), source: source.map(Into::into) }
    }

    #[test]
    fn a_release_is_wanted_until_it_runs_or_was_given_up() {
        let mut record = UpdateRecord::new("x".into());
        assert_eq!(wish(None, "1", &record), Wish::Nothing);
        assert_eq!(wish(Some(&wanted("1", None)), "1", &record), Wish::Nothing);
        let there = wanted("2", Some("https://u.example.net/x/"));
        assert_eq!(wish(Some(&there), "1", &record), Wish::Install(Some("https://u.example.net/x".into())));
        record.take_back(Slot::B, "1");
        record.trial.as_mut().unwrap().version = "2".into();
        record.end(Some(RejectReason::NotHealthy));
        let Wish::Held(why) = wish(Some(&there), "1", &record) else { panic!("tried again") };
        assert!(why.contains(RejectReason::NotHealthy.text()), "{why}");
        assert!(matches!(wish(Some(&wanted("1", None)), "3", &record), Wish::Held(why) if why.contains("by hand")));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for bad in
            [wanted("", None), wanted("1 2", None), wanted("2", Some("file:///etc/passwd")), wanted("2", Some(""))]
        {
            assert!(bad.check().is_err(), "{bad:?}");
            assert!(matches!(wish(Some(&bad), "1", &UpdateRecord::new("x".into())), Wish::Held(_)));
        }
        assert!(wanted(&"1".repeat(65), None).check().is_err());
        assert!(wanted("2.0.0-rc1", Some("http://10.0.0.1:80/a")).check().is_ok());
    }
}
