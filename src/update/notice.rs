//! Messages between supervisor and updater, which run as different users and exchange files.
use super::machine::Stage;
use super::record::{Ended, UpdateRecord};
use super::slot::Slot;
use serde::{Deserialize, Serialize};
use spoke_model::release::WantedRelease;

/// State of updates, for `/health` and the report to the control plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// The running slot.
    pub slot: Slot,
    /// The running version.
    pub version: String,
    /// The current trial.
    pub trial: Option<TrialNotice>,
    /// Result of the last trial.
    pub last: Option<Ended>,
    /// Why the wanted release is not installed.
    pub held: Option<String>,
}

/// The current trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialNotice {
    /// Version on trial.
    pub version: String,
    /// Its slot.
    pub slot: Slot,
    /// Its stage.
    pub stage: Stage,
}

impl Notice {
    /// The notice of a system of `version` that runs in `slot`.
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

/// What to do about the wanted release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReleaseDecision {
    /// Nothing: it runs, or no release is wanted.
    Nothing,
    /// It is not installed, for this reason.
    Held(String),
    /// Install from this base URL; `None`: from the configured source.
    Install(Option<String>),
}

/// Decides on the wanted release by the running version and the rejected ones.
pub fn decide_release(wanted: Option<&WantedRelease>, running: &str, record: &UpdateRecord) -> ReleaseDecision {
    let Some(wanted) = wanted else { return ReleaseDecision::Nothing };
    if wanted.version == running {
        return ReleaseDecision::Nothing;
    }
    if let Err(problem) = wanted.check() {
        return ReleaseDecision::Held(problem.to_owned());
    }
    if record.is_rejected(&wanted.version) && !record.is_renewed(wanted) {
        let last = record.last.as_ref().filter(|l| l.version == wanted.version);
        let why = last.map_or("it was rolled back by the operator", |l| l.detail.as_str());
        return ReleaseDecision::Held(format!(
            "{} was given up here: {why}; spoke update retry tries it again",
            wanted.version
        ));
    }
    ReleaseDecision::Install(wanted.source.as_ref().map(|s| s.trim_end_matches('/').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::machine::RejectReason;
    use super::*;
    use spoke_model::release::Rollout;

    fn wanted(version: &str, source: Option<&str>) -> WantedRelease {
        WantedRelease { version: version.into(), source: source.map(Into::into), rollout: Rollout::default() }
    }

    #[test]
    fn release_is_installed_unless_running_or_rejected() {
        let mut record = UpdateRecord::new("x".into());
        assert_eq!(decide_release(None, "1", &record), ReleaseDecision::Nothing);
        assert_eq!(decide_release(Some(&wanted("1", None)), "1", &record), ReleaseDecision::Nothing);
        let release = wanted("2", Some("https://u.example.net/x/"));
        assert_eq!(
            decide_release(Some(&release), "1", &record),
            ReleaseDecision::Install(Some("https://u.example.net/x".into()))
        );
        record.roll_back(Slot::B, "1");
        record.trial.as_mut().unwrap().version = "2".into();
        record.end(Some(RejectReason::NotHealthy));
        let ReleaseDecision::Held(why) = decide_release(Some(&release), "1", &record) else { panic!("tried again") };
        assert!(why.contains(RejectReason::NotHealthy.text()) && why.contains("update retry"), "{why}");
        let renewed = WantedRelease { rollout: Rollout { renewed: 1, ..Rollout::default() }, ..release.clone() };
        assert!(matches!(decide_release(Some(&renewed), "1", &record), ReleaseDecision::Install(_)));
        let mut lifted = record.clone();
        assert!(lifted.retry("2"));
        assert!(matches!(decide_release(Some(&release), "1", &lifted), ReleaseDecision::Install(_)));
        assert!(
            matches!(decide_release(Some(&wanted("1", None)), "3", &record), ReleaseDecision::Held(why) if why.contains("rolled back by the operator"))
        );
    }

    #[test]
    fn malformed_release_is_held() {
        for bad in
            [wanted("", None), wanted("1 2", None), wanted("2", Some("file:///etc/passwd")), wanted("2", Some(""))]
        {
            assert!(bad.check().is_err(), "{bad:?}");
            assert!(matches!(
                decide_release(Some(&bad), "1", &UpdateRecord::new("x".into())),
                ReleaseDecision::Held(_)
            ));
        }
        assert!(wanted(&"1".repeat(65), None).check().is_err());
        assert!(wanted("2.0.0-rc1", Some("http://10.0.0.1:80/a")).check().is_ok());
    }
}
