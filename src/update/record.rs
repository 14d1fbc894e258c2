//! What a device remembers about updates, and what the state of the slots means in its light.
use super::machine::{Reason, Stage};
use super::manifest::{Known, Manifest};
use super::slot::{Slot, Trust};
use serde::{Deserialize, Serialize};

/// Kept on the state partition, written only when something happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What bundles are judged by.
    pub known: Known,
    /// The trial that is going on.
    pub trial: Option<TrialRecord>,
    /// How the last one ended.
    pub last: Option<Ended>,
}

/// A trial that is going on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialRecord {
    /// What is tried.
    pub manifest: Manifest,
    /// Where.
    pub slot: Slot,
    /// How far it is.
    pub stage: Stage,
    /// The boot loader was told: from here on, finding ourselves on the other slot means that it came back.
    pub armed: bool,
    /// How often it was resumed after an outage.
    pub resumes: u8,
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
    /// `None`: committed.
    pub reason: Option<Reason>,
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
    /// The old system runs because the new one met an outage: look whether we are online.
    Look,
}

impl Record {
    /// Of a device that never updated.
    pub const fn new(board: String) -> Self {
        Self { known: Known { board, serial: 0, floor: 0 }, trial: None, last: None }
    }

    /// What it means to run from `running` while the boot loader trusts it and the other slot so.
    pub fn situation(&self, running: Slot, trust: Option<Trust>, other: Option<Trust>) -> Situation {
        match &self.trial {
            // Tries without a record: the state partition was lost during the trial. It is watched all the same.
            None if matches!(trust, Some(Trust::Trying(_))) => Situation::Watch,
            None => Situation::Settled,
            Some(trial) if trial.slot == running => Situation::Watch,
            Some(trial) => match (trial.stage, trial.armed, other) {
                (Stage::Retreated, _, _) => Situation::Look,
                (Stage::Trial, false, _) => Situation::Interrupted,
                (Stage::Trial, true, Some(Trust::Trying(n))) if n > 0 => Situation::Pending,
                (Stage::Trial, true, _) => Situation::CameBack,
            },
        }
    }

    /// Ends the trial; `reason` is `None` when it was committed.
    pub fn end(&mut self, reason: Option<Reason>, detail: &str) {
        let Some(trial) = self.trial.take() else { return };
        if reason.is_none() {
            self.known = trial.learned;
        }
        self.last = Some(Ended {
            version: trial.manifest.version,
            sequence: trial.manifest.sequence,
            reason,
            detail: detail.to_owned(),
        });
    }

    /// Whether this sequence was tried and given up: it is not tried again unasked.
    pub fn was_rejected(&self, sequence: u64) -> bool {
        self.last.as_ref().is_some_and(|l| l.sequence == sequence && l.reason.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::super::manifest::Part;
    use super::*;

    fn record(stage: Stage, armed: bool) -> Record {
        let part = Part { size: 1, sha256: String::new() };
        let manifest = Manifest {
            board: "x".into(),
            version: "2".into(),
            sequence: 2,
            floor: 1,
            root: part.clone(),
            kernel: part,
        };
        let learned = Known { board: "x".into(), serial: 5, floor: 1 };
        let trial = TrialRecord { manifest, slot: Slot::B, stage, armed, resumes: 0, learned };
        Record { trial: Some(trial), ..Record::new("x".into()) }
    }

    #[test]
    fn every_place_a_power_cut_can_leave_us_at() {
        let good = Some(Trust::Good);
        let table = [
            (record(Stage::Trial, false), Slot::A, good, None, Situation::Interrupted),
            (record(Stage::Trial, false), Slot::B, Some(Trust::Trying(2)), good, Situation::Watch),
            (record(Stage::Trial, true), Slot::A, good, Some(Trust::Trying(3)), Situation::Pending),
            (record(Stage::Trial, true), Slot::B, Some(Trust::Trying(2)), good, Situation::Watch),
            (record(Stage::Trial, true), Slot::B, good, good, Situation::Watch),
            (record(Stage::Trial, true), Slot::A, good, Some(Trust::Trying(0)), Situation::CameBack),
            (record(Stage::Retreated, true), Slot::A, good, Some(Trust::Trying(0)), Situation::Look),
            (Record::new("x".into()), Slot::A, good, None, Situation::Settled),
            (Record::new("x".into()), Slot::B, Some(Trust::Trying(2)), good, Situation::Watch),
        ];
        for (record, running, trust, other, expected) in table {
            assert_eq!(record.situation(running, trust, other), expected, "{:?} on {running}", record.trial);
        }
    }

    #[test]
    fn only_a_committed_system_teaches() {
        let mut r = record(Stage::Trial, true);
        r.end(Some(Reason::NotHealthy), "");
        assert_eq!(r.known.serial, 0);
        assert!(r.was_rejected(2));
        let mut r = record(Stage::Trial, true);
        r.end(None, "");
        assert_eq!(r.known.serial, 5);
        assert!(!r.was_rejected(2));
    }
}
