//! What the audit trail says of the control plane: each state it sent and what became of it, each change of keys. Pure.
use crate::status::ControlStatus;
use crate::wire::Outcome;

/// What is new in `now`: what was done, or why it was not. The first word after a start is no news.
pub fn news(before: &ControlStatus, now: &ControlStatus) -> Vec<(String, Result<(), String>)> {
    let mut out = Vec::new();
    let n = now.generation;
    let why = || Err(now.reason.clone().unwrap_or_else(|| "no reason given".to_owned()));
    let told = match (before.outcome, now.outcome) {
        (None, _) | (_, None) => None,
        // On trial from the moment it is in the kernel.
        (_, Some(Outcome::Trial)) => (n != before.generation).then(|| (format!("try state generation {n}"), Ok(()))),
        (Some(Outcome::Trial), Some(Outcome::Applied)) => Some((format!("keep state generation {n}"), Ok(()))),
        (_, Some(Outcome::Applied)) => {
            (n != before.generation).then(|| (format!("apply state generation {n}"), Ok(())))
        }
        (was, Some(outcome)) if (was, &before.reason) == (Some(outcome), &now.reason) => None,
        (_, Some(Outcome::Reverted)) => Some((format!("take a state back; generation {n} is in force"), why())),
        (_, Some(Outcome::Refused)) => Some((format!("send a state; generation {n} is in force"), why())),
    };
    out.extend(told);
    if let Some(ended) = now.key_changed.as_ref().filter(|_| now.key_changed != before.key_changed) {
        out.push(match ended {
            Ok(key) => (format!("change the WireGuard key to {key}"), Ok(())),
            Err(why) => ("change the WireGuard key".to_owned(), Err(why.clone())),
        });
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
    fn every_state_and_what_became_of_it_is_told_once() {
        let story = [
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
        let told: Vec<_> = story.windows(2).flat_map(|w| news(&w[0], &w[1])).collect();
        let texts: Vec<&str> = told.iter().map(|(what, _)| what.as_str()).collect();
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
        assert_eq!(told[3].1, Err("the hub did not answer".to_owned()));
    }

    #[test]
    fn a_restart_is_no_news() {
        assert!(news(&ControlStatus::default(), &status(7, Outcome::Applied, None)).is_empty());
        let key = spoke_model::key::PublicKey([7; 32]);
        let changed = ControlStatus { key_changed: Some(Ok(key)), ..status(7, Outcome::Applied, None) };
        assert_eq!(news(&status(7, Outcome::Applied, None), &changed).len(), 1);
    }
}
