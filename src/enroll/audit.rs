//! What the audit trail records about the control plane: each state and its outcome, each change of keys. Pure.
use crate::status::{ControlStatus, KeyChange};
use crate::wire::Outcome;

/// An entry for the audit trail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlAudit {
    /// The operation, for operators.
    pub what: String,
    /// Why it failed.
    pub error: Option<String>,
}

/// The entries for the change from `before` to `now`. The first status after a start causes no entry.
pub fn audit_entries(before: &ControlStatus, now: &ControlStatus) -> Vec<ControlAudit> {
    let mut out = Vec::new();
    let n = now.generation;
    let done = |what: String| Some(ControlAudit { what, error: None });
    let failed = |what: String| {
        let error = Some(now.reason.clone().unwrap_or_else(|| "no reason given".to_owned()));
        Some(ControlAudit { what, error })
    };
    let advanced = n != before.generation;
    out.extend(match (before.outcome, now.outcome) {
        (None, _) | (_, None) => None,
        // The generation of a trial counts once the kernel has it.
        (_, Some(Outcome::Trial)) if advanced => done(format!("try state generation {n}")),
        (Some(Outcome::Trial), Some(Outcome::Applied)) => done(format!("keep state generation {n}")),
        (_, Some(Outcome::Applied)) if advanced => done(format!("apply state generation {n}")),
        (_, Some(Outcome::Trial | Outcome::Applied)) => None,
        (was, outcome) if (was, &before.reason) == (outcome, &now.reason) => None,
        (_, Some(Outcome::Reverted)) => failed(format!("take a state back; generation {n} is in force")),
        (_, Some(Outcome::Refused)) => failed(format!("send a state; generation {n} is in force")),
    });
    if now.key_changed != before.key_changed {
        out.extend(now.key_changed.as_ref().map(|ended| match ended {
            KeyChange::Changed(key) => ControlAudit { what: format!("change the WireGuard key to {key}"), error: None },
            KeyChange::Abandoned(why) => {
                ControlAudit { what: "change the WireGuard key".to_owned(), error: Some(why.clone()) }
            }
        }));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(generation: u64, outcome: Outcome, reason: Option<&str>) -> ControlStatus {
        ControlStatus {
            enrolled: true,
            generation,
            outcome: Some(outcome),
            reason: reason.map(str::to_owned),
            ..ControlStatus::default()
        }
    }

    #[test]
    fn each_state_and_its_outcome_is_recorded_once() {
        let statuses = [
            ControlStatus::default(),
            status(0, Outcome::Applied, None),
            status(0, Outcome::Trial, None),
            status(1, Outcome::Trial, None),
            status(1, Outcome::Applied, None),
            status(1, Outcome::Applied, None),
            status(1, Outcome::Trial, Some("not yet")),
            status(2, Outcome::Trial, None),
            status(1, Outcome::Reverted, Some("the hub did not answer")),
            status(1, Outcome::Reverted, Some("the hub did not answer")),
            status(1, Outcome::Refused, Some("no key pinned has signed it")),
            status(1, Outcome::Applied, None),
        ];
        let entries: Vec<_> = statuses.windows(2).flat_map(|w| audit_entries(&w[0], &w[1])).collect();
        let texts: Vec<&str> = entries.iter().map(|e| e.what.as_str()).collect();
        assert_eq!(
            texts,
            [
                "try state generation 1",
                "keep state generation 1",
                "try state generation 2",
                "take a state back; generation 1 is in force",
                "send a state; generation 1 is in force",
            ]
        );
        assert_eq!(entries[3].error.as_deref(), Some("the hub did not answer"));
    }

    #[test]
    fn restart_causes_no_entry() {
        assert!(audit_entries(&ControlStatus::default(), &status(7, Outcome::Applied, None)).is_empty());
        let key = spoke_model::key::PublicKey([7; 32]);
        let changed = ControlStatus { key_changed: Some(KeyChange::Changed(key)), ..status(7, Outcome::Applied, None) };
        assert_eq!(audit_entries(&status(7, Outcome::Applied, None), &changed).len(), 1);
    }
}
