//! What a device remembers about updates, and what the state of the slots means in its light.
use super::machine::{RejectReason, Stage};
use super::manifest::{Accepted, Known};
use super::slot::{Slot, Trust};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Releases remembered as given up; older ones are forgotten.
const SHUNNED_MAX: usize = 8;

/// Kept on the state partition, written only when something happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateRecord {
    /// What bundles are judged by.
    pub known: Known,
    /// The trial that is going on.
    pub trial: Option<TrialRecord>,
    /// How the last one ended.
    pub last: Option<Ended>,
    /// The version in each slot, as far as it was seen.
    #[serde(default)]
    pub slots: BTreeMap<Slot, String>,
    /// Versions that were given up here or taken back by hand: not installed again unless a person asks for it.
    #[serde(default)]
    pub shunned: Vec<String>,
}

/// A trial that is going on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialRecord {
    /// What is tried.
    pub version: String,
    /// Its sequence; 0 where it is not known (an older system taken back).
    pub sequence: u64,
    /// Where.
    pub slot: Slot,
    /// How far it is.
    pub stage: Stage,
    /// The boot loader was told: from here on, finding ourselves on the other slot means that it came back.
    pub armed: bool,
    /// How often it was resumed after an outage.
    pub resumes: u8,
    /// What it said last, should it not come back.
    #[serde(default)]
    pub note: Option<String>,
    /// Known once it is committed.
    pub learned: Known,
}

/// How a trial ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// What was tried.
    pub version: String,
    /// Its sequence.
    pub sequence: u64,
    /// Where.
    pub slot: Slot,
    /// `None`: committed.
    pub reason: Option<RejectReason>,
    /// For people.
    pub detail: String,
}

/// What a start finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Situation {
    /// Nothing is going on.
    Settled,
    /// The new system runs: watch it.
    Watch,
    /// The new system is installed and was not started yet.
    Pending,
    /// The installation was cut off before the boot loader was told: forget it.
    Interrupted,
    /// The boot loader went back to the old system.
    CameBack,
    /// A system that was committed could not be kept running later: the other one was taken.
    FellBack,
    /// The old system runs because the new one met an outage: look whether we are online.
    Look,
}

impl UpdateRecord {
    /// Of a device that never updated.
    pub const fn new(board: String) -> Self {
        let known = Known { board, serial: 0, floor: 0 };
        Self { known, trial: None, last: None, slots: BTreeMap::new(), shunned: Vec::new() }
    }

    /// What it means to run from `running` while the boot loader trusts it and the other slot so.
    pub fn situation(&self, running: Slot, trust: Option<Trust>, other: Option<Trust>) -> Situation {
        match &self.trial {
            // Tries without a record: the state partition was lost during the trial. It is watched all the same.
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

    /// Begins the trial of a bundle that was written to `slot`; the boot loader was not told yet.
    pub fn begin(&mut self, accepted: Accepted, slot: Slot) {
        let Accepted { manifest, learned } = accepted;
        // Whoever installs it wants it.
        self.shunned.retain(|v| *v != manifest.version);
        self.slots.insert(slot, manifest.version.clone());
        self.trial = Some(TrialRecord {
            version: manifest.version,
            sequence: manifest.sequence,
            slot,
            stage: Stage::Trial,
            armed: false,
            resumes: 0,
            note: None,
            learned,
        });
    }

    /// Begins the trial of the system that lies in `slot` already, because a person takes `running` back.
    pub fn take_back(&mut self, slot: Slot, running: &str) {
        self.shun(running);
        self.trial = Some(TrialRecord {
            version: self.slots.get(&slot).cloned().unwrap_or_else(|| "of before".to_owned()),
            sequence: 0,
            slot,
            stage: Stage::Trial,
            armed: false,
            resumes: 0,
            note: None,
            learned: self.known.clone(),
        });
    }

    /// Ends the trial; `reason` is `None` when it was committed.
    pub fn end(&mut self, reason: Option<RejectReason>) {
        let Some(trial) = self.trial.take() else { return };
        let mut detail = reason.map_or("committed", RejectReason::text).to_owned();
        match (reason, trial.note) {
            (None, _) => self.known = trial.learned,
            (Some(_), note) => {
                self.shun(&trial.version);
                if let Some(note) = note {
                    detail = format!("{detail}; its last word: {note}");
                }
            }
        }
        self.last = Some(Ended { version: trial.version, sequence: trial.sequence, slot: trial.slot, reason, detail });
    }

    /// The system committed last could not be kept running and the other slot was taken.
    pub fn fell_back(&mut self) {
        let Some(last) = &mut self.last else { return };
        last.reason = Some(RejectReason::KeptFailing);
        RejectReason::KeptFailing.text().clone_into(&mut last.detail);
        let version = last.version.clone();
        self.shun(&version);
    }

    /// Whether this version was given up or taken back: it is not installed again unasked.
    pub fn is_shunned(&self, version: &str) -> bool {
        self.shunned.iter().any(|v| v == version)
    }

    fn shun(&mut self, version: &str) {
        self.shunned.retain(|v| v != version);
        self.shunned.push(version.to_owned());
        if self.shunned.len() > SHUNNED_MAX {
            self.shunned.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::manifest::{Manifest, Part};
    use super::*;

    fn accepted() -> Accepted {
        let part = Part { size: 1, sha256: String::new() };
        let manifest = Manifest {
            board: "x".into(),
            version: "2".into(),
            sequence: 2,
            floor: 1,
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
    fn every_place_a_power_cut_can_leave_us_at() {
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
    fn only_a_committed_system_teaches() {
        let r = ended(Some(RejectReason::NotHealthy));
        assert_eq!(r.known.serial, 0);
        assert!(r.is_shunned("2"));
        let r = ended(None);
        assert_eq!(r.known.serial, 5);
        assert!(!r.is_shunned("2"));
    }

    #[test]
    fn what_fell_back_is_told_once_and_shunned() {
        let mut r = ended(None);
        r.fell_back();
        assert_eq!(r.last.as_ref().unwrap().reason, Some(RejectReason::KeptFailing));
        assert!(r.is_shunned("2"));
        assert_eq!(r.situation(Slot::A, Some(Trust::Good), Some(Trust::Trying(0))), Situation::Settled);
    }

    #[test]
    fn the_last_word_of_a_system_that_did_not_come_back_is_kept() {
        let mut r = record(Stage::Trial, true);
        r.trial.as_mut().unwrap().note = Some("no supervisor".into());
        r.end(Some(RejectReason::DidNotStart));
        assert!(r.last.unwrap().detail.ends_with("its last word: no supervisor"));
    }

    #[test]
    fn what_a_person_took_back_stays_away_until_a_person_wants_it() {
        let mut r = ended(None);
        r.slots.insert(Slot::A, "1".into());
        r.take_back(Slot::A, "2");
        assert!(r.is_shunned("2"));
        assert_eq!(r.trial.as_ref().unwrap().version, "1");
        r.end(None);
        assert_eq!(r.last.as_ref().unwrap().version, "1");
        assert_eq!(r.known.serial, 5, "going back teaches nothing and forgets nothing");
        r.begin(accepted(), Slot::B);
        assert!(!r.is_shunned("2"));
        r.shunned.clear();
        for n in 0..20 {
            r.shun(&n.to_string());
        }
        assert_eq!(r.shunned.len(), SHUNNED_MAX);
        assert!(r.is_shunned("19") && !r.is_shunned("2"));
    }
}
