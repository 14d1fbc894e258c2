//! The device's record of updates, and what the state of the slots means by it.
use super::machine::{RejectReason, Stage};
use super::manifest::{Accepted, Known};
use super::slot::{Slot, Trust};
use serde::{Deserialize, Serialize};
use spoke_model::release::WantedRelease;
use std::collections::BTreeMap;

/// Rejected versions kept; older ones are forgotten.
const MAX_REJECTED: usize = 8;

/// Stored on the state partition, written only on change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateRecord {
    /// What bundles are checked against.
    pub known: Known,
    /// The current trial.
    pub trial: Option<TrialRecord>,
    /// Result of the last trial.
    pub last: Option<Ended>,
    /// The version in each slot, if known.
    #[serde(default)]
    pub slots: BTreeMap<Slot, String>,
    /// The release number in each slot, if known.
    #[serde(default)]
    pub sequences: BTreeMap<Slot, u64>,
    /// Versions rejected on this device or rolled back: installed again only by the operator.
    #[serde(default)]
    pub shunned: Vec<String>,
    /// The renewal of the control plane's wish (`Rollout::renewed`) that each version was last installed or given up for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub renewals: BTreeMap<String, u64>,
}

/// The current trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialRecord {
    /// Version on trial.
    pub version: String,
    /// Its sequence; 0 for a rollback.
    pub sequence: u64,
    /// Its slot.
    pub slot: Slot,
    /// Its stage.
    pub stage: Stage,
    /// The boot loader is set up to start it: running from the other slot means that the boot loader returned.
    pub armed: bool,
    /// Times it was resumed after an outage.
    pub resumes: u8,
    /// The old system runs to be compared: the new one reached no hub or control plane.
    #[serde(default)]
    pub compare: bool,
    /// Its last message, reported if it does not start again.
    #[serde(default)]
    pub note: Option<String>,
    /// Replaces `known` once it is committed.
    pub learned: Known,
}

/// Result of a trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Version.
    pub version: String,
    /// Sequence.
    pub sequence: u64,
    /// Slot.
    pub slot: Slot,
    /// `None`: committed.
    pub reason: Option<RejectReason>,
    /// Description for people.
    pub detail: String,
}

/// The state of updates found at a boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Situation {
    /// No trial.
    Settled,
    /// The new system runs: watch it.
    Watch,
    /// The new system is installed and has not been started.
    Pending,
    /// The installation was interrupted before the boot loader was set up: discard it.
    Interrupted,
    /// The boot loader returned to the old system.
    CameBack,
    /// A committed system could not be kept running: the other one was started.
    FellBack,
    /// The old system runs because the new one met an outage: probe whether it is online.
    Look,
}

impl UpdateRecord {
    /// The record of a device that was never updated.
    pub const fn new(board: String) -> Self {
        let known = Known { board, serial: 0, floor: 0 };
        Self {
            known,
            trial: None,
            last: None,
            slots: BTreeMap::new(),
            sequences: BTreeMap::new(),
            shunned: Vec::new(),
            renewals: BTreeMap::new(),
        }
    }

    /// The situation of a boot from `running`, by the boot loader's trust in it and in the other slot.
    pub fn situation(&self, running: Slot, trust: Option<Trust>, other: Option<Trust>) -> Situation {
        match &self.trial {
            // Tries without a record: the state partition was lost during the trial.
            None if matches!(trust, Some(Trust::Trying(_))) => Situation::Watch,
            None => match &self.last {
                Some(Ended { reason: None, slot, .. }) if *slot != running && other == Some(Trust::Trying(0)) => {
                    Situation::FellBack
                }
                Some(_) | None => Situation::Settled,
            },
            Some(trial) if trial.slot == running => Situation::Watch,
            Some(trial) => match (trial.stage, trial.armed, other) {
                (Stage::Retreated, _, _) => Situation::Look,
                (Stage::Trial, false, _) => Situation::Interrupted,
                (Stage::Trial, true, Some(Trust::Trying(n))) if n > 0 => Situation::Pending,
                (Stage::Trial, true, _) => Situation::CameBack,
            },
        }
    }

    /// Begins the trial of a bundle written to `slot`, before the boot loader is set up.
    pub fn begin(&mut self, accepted: Accepted, slot: Slot) {
        let Accepted { manifest, learned } = accepted;
        // An explicit installation lifts a rejection.
        self.shunned.retain(|v| *v != manifest.version);
        self.slots.insert(slot, manifest.version.clone());
        self.sequences.insert(slot, manifest.sequence);
        self.trial = Some(TrialRecord {
            version: manifest.version,
            sequence: manifest.sequence,
            slot,
            stage: Stage::Trial,
            armed: false,
            resumes: 0,
            compare: false,
            note: None,
            learned,
        });
    }

    /// Begins the trial of the system that is already in `slot`: the operator rolls `running` back.
    pub fn roll_back(&mut self, slot: Slot, running: &str) {
        self.reject(running);
        self.trial = Some(TrialRecord {
            version: self.slots.get(&slot).cloned().unwrap_or_else(|| "previous".to_owned()),
            sequence: 0,
            slot,
            stage: Stage::Trial,
            armed: false,
            resumes: 0,
            compare: false,
            note: None,
            learned: self.known.clone(),
        });
    }

    /// Begins another trial of the committed system in `slot`, which the boot loader could not start.
    pub fn try_again(&mut self, slot: Slot) {
        let last = self.last.as_ref().filter(|l| l.slot == slot);
        self.trial = Some(TrialRecord {
            version: last.map(|l| l.version.clone()).or_else(|| self.slots.get(&slot).cloned()).unwrap_or_default(),
            sequence: last.map_or(0, |l| l.sequence),
            slot,
            stage: Stage::Trial,
            armed: true,
            resumes: 0,
            compare: false,
            note: None,
            learned: self.known.clone(),
        });
    }

    /// Records that a person replaces `running` by an older release: it is not installed again by itself.
    pub fn leave(&mut self, running: &str) {
        self.reject(running);
    }

    /// Takes over the serial of a certificate that came with a release which is not installed: bundles under earlier certificates are
    /// refused, which revokes a key without an update. Whether it is a later one.
    pub fn learn_certificate(&mut self, seen: &Known) -> bool {
        let later = seen.serial > self.known.serial;
        self.known.serial = self.known.serial.max(seen.serial);
        later
    }

    /// Ends the trial; `reason` is `None` if it was committed.
    pub fn end(&mut self, reason: Option<RejectReason>) {
        let Some(trial) = self.trial.take() else { return };
        let mut detail = reason.map_or("committed", RejectReason::text).to_owned();
        match (reason, trial.note) {
            (None, _) => self.known = trial.learned,
            (Some(reason), note) => {
                if reason.is_of_the_image() {
                    self.reject(&trial.version);
                }
                if let Some(note) = note {
                    detail = format!("{detail}; its last message: {note}");
                }
            }
        }
        self.last = Some(Ended { version: trial.version, sequence: trial.sequence, slot: trial.slot, reason, detail });
    }

    /// Records that the last committed system could not be kept running and the other slot was started.
    pub fn fell_back(&mut self) {
        let Some(last) = &mut self.last else { return };
        last.reason = Some(RejectReason::KeptFailing);
        RejectReason::KeptFailing.text().clone_into(&mut last.detail);
        let version = last.version.clone();
        self.reject(&version);
    }

    /// The version that was given up last.
    pub fn last_rejected(&self) -> Option<&str> {
        self.shunned.last().map(String::as_str)
    }

    /// Lifts the rejection of `version`, which may then be installed by itself again. `false`: it was not rejected.
    pub fn retry(&mut self, version: &str) -> bool {
        let before = self.shunned.len();
        self.shunned.retain(|v| v != version);
        self.shunned.len() < before
    }

    /// Records which wish of the control plane was known when a version was installed or given up: only a person's later one
    /// brings it back.
    pub fn answer(&mut self, wanted: &WantedRelease) {
        let Self { renewals, shunned, trial, slots, .. } = self;
        let known = |v: &String| {
            *v == wanted.version
                || shunned.contains(v)
                || trial.as_ref().is_some_and(|t| t.version == *v)
                || slots.values().any(|s| s == v)
        };
        renewals.retain(|version, _| known(version));
        let renewed = wanted.rollout.renewed;
        if renewed > 0 {
            renewals.entry(wanted.version.clone()).and_modify(|r| *r = renewed.max(*r)).or_insert(renewed);
        }
    }

    /// Whether the control plane's wish was renewed by a person since this version was installed or given up here.
    pub fn is_renewed(&self, wanted: &WantedRelease) -> bool {
        wanted.rollout.renewed > self.renewals.get(&wanted.version).copied().unwrap_or_default()
    }

    /// Whether this version was rejected or rolled back.
    pub fn is_rejected(&self, version: &str) -> bool {
        self.shunned.iter().any(|v| v == version)
    }

    fn reject(&mut self, version: &str) {
        self.shunned.retain(|v| v != version);
        self.shunned.push(version.to_owned());
        if self.shunned.len() > MAX_REJECTED {
            self.shunned.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::manifest::{Manifest, Part};
    use super::*;
    use spoke_model::release::Rollout;

    fn accepted() -> Accepted {
        let part = Part { size: 1, sha256: String::new() };
        let manifest = Manifest {
            board: "x".into(),
            version: "2".into(),
            sequence: 2,
            floor: 1,
            expires: None,
            root: part.clone(),
            kernel: part,
        };
        Accepted { manifest, learned: Known { board: "x".into(), serial: 5, floor: 1 } }
    }

    fn record(stage: Stage, armed: bool) -> UpdateRecord {
        let mut record = UpdateRecord::new("x".into());
        record.begin(accepted(), Slot::B);
        let trial = record.trial.as_mut().unwrap();
        (trial.stage, trial.armed) = (stage, armed);
        record
    }

    fn ended(reason: Option<RejectReason>) -> UpdateRecord {
        let mut r = record(Stage::Trial, true);
        r.end(reason);
        r
    }

    #[test]
    fn situation_after_every_power_cut() {
        let good = Some(Trust::Good);
        let gone = Some(Trust::Trying(0));
        let new = || UpdateRecord::new("x".into());
        let table = [
            (record(Stage::Trial, false), Slot::A, good, None, Situation::Interrupted),
            (record(Stage::Trial, false), Slot::B, Some(Trust::Trying(2)), good, Situation::Watch),
            (record(Stage::Trial, true), Slot::A, good, Some(Trust::Trying(3)), Situation::Pending),
            (record(Stage::Trial, true), Slot::B, Some(Trust::Trying(2)), good, Situation::Watch),
            (record(Stage::Trial, true), Slot::B, good, good, Situation::Watch),
            (record(Stage::Trial, true), Slot::A, good, gone, Situation::CameBack),
            (record(Stage::Retreated, true), Slot::A, good, gone, Situation::Look),
            (new(), Slot::A, good, None, Situation::Settled),
            (new(), Slot::B, Some(Trust::Trying(2)), good, Situation::Watch),
            (ended(None), Slot::B, good, good, Situation::Settled),
            (ended(None), Slot::A, good, good, Situation::Settled),
            (ended(None), Slot::A, good, gone, Situation::FellBack),
            (ended(Some(RejectReason::NotHealthy)), Slot::A, good, gone, Situation::Settled),
        ];
        for (record, running, trust, other, expected) in table {
            assert_eq!(record.situation(running, trust, other), expected, "{record:?} on {running}");
        }
    }

    #[test]
    fn later_certificate_counts_without_an_update() {
        let mut r = ended(None);
        let seen = |serial| Known { serial, floor: 99, ..r.known.clone() };
        let (earlier, later) = (seen(4), seen(6));
        assert!(!r.learn_certificate(&earlier) && r.known.serial == 5);
        let floor = r.known.floor;
        assert!(r.learn_certificate(&later) && !r.learn_certificate(&later));
        assert_eq!((r.known.serial, r.known.floor), (6, floor), "the floor is raised by what runs");
    }

    #[test]
    fn only_a_commit_raises_known() {
        let r = ended(Some(RejectReason::NotHealthy));
        assert_eq!(r.known.serial, 0);
        assert!(r.is_rejected("2"));
        let r = ended(None);
        assert_eq!(r.known.serial, 5);
        assert!(!r.is_rejected("2"));
    }

    #[test]
    fn fallback_is_reported_once_and_rejected() {
        let mut r = ended(None);
        r.fell_back();
        assert_eq!(r.last.as_ref().unwrap().reason, Some(RejectReason::KeptFailing));
        assert!(r.is_rejected("2"));
        assert_eq!(r.situation(Slot::A, Some(Trust::Good), Some(Trust::Trying(0))), Situation::Settled);
    }

    #[test]
    fn last_message_of_a_lost_system_is_kept() {
        let mut r = record(Stage::Trial, true);
        r.trial.as_mut().unwrap().note = Some("no supervisor".into());
        r.end(Some(RejectReason::DidNotStart));
        assert!(r.last.unwrap().detail.ends_with("its last message: no supervisor"));
    }

    #[test]
    fn rolled_back_version_needs_the_operator() {
        let mut r = ended(None);
        r.slots.insert(Slot::A, "1".into());
        r.roll_back(Slot::A, "2");
        assert!(r.is_rejected("2"));
        assert_eq!(r.trial.as_ref().unwrap().version, "1");
        r.end(None);
        assert_eq!(r.last.as_ref().unwrap().version, "1");
        assert_eq!(r.known.serial, 5, "a rollback changes no serial");
        r.begin(accepted(), Slot::B);
        assert!(!r.is_rejected("2"));
        r.shunned.clear();
        for n in 0..20 {
            r.reject(&n.to_string());
        }
        assert_eq!(r.shunned.len(), MAX_REJECTED);
        assert!(r.is_rejected("19") && !r.is_rejected("2"));
    }

    #[test]
    fn renewed_wish_brings_a_rejected_version_back_once() {
        let wish = |renewed| WantedRelease {
            version: "2".into(),
            source: None,
            rollout: Rollout { renewed, ..Rollout::default() },
        };
        let mut r = record(Stage::Trial, true);
        r.answer(&wish(5));
        r.end(Some(RejectReason::NotHealthy));
        assert!(r.is_rejected("2") && !r.is_renewed(&wish(0)) && !r.is_renewed(&wish(5)));
        assert!(r.is_renewed(&wish(6)));
        r.begin(accepted(), Slot::B);
        r.answer(&wish(6));
        r.end(Some(RejectReason::NotHealthy));
        assert!(r.is_rejected("2") && !r.is_renewed(&wish(6)));
        // Forgotten with the version.
        assert!(r.retry("2") && !r.retry("2"));
        r.slots.clear();
        r.answer(&WantedRelease { version: "3".into(), ..wish(9) });
        assert_eq!(r.renewals.keys().collect::<Vec<_>>(), ["3"]);
    }
}
