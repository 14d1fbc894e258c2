//! Texts about changes: generations, differences, what a rollback leaves, and the audit trail.
use super::audit::Actor;
use super::history::History;
use super::record::{GenerationRecord, StateChange};
use super::request::{AppliedChange, ChangeRefused, Generation, RepairResult};
use spoke_model::time::Boot;

/// Differences of a change that go into the audit trail; the generation has all of them.
const AUDIT_LINES: usize = 8;

/// A repair that left drift.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RepairIncomplete {
    /// It was refused as a whole.
    #[error(transparent)]
    Refused(ChangeRefused),
    /// Some peers still differ.
    #[error("{count} not repaired: {error}")]
    Peers {
        /// How many.
        count: usize,
        /// The first error.
        error: String,
    },
}

/// The generations kept, newest first.
pub fn generations(history: &History, now: Boot) -> Vec<Generation> {
    let (current, previous, pending) = (history.current(), history.previous(), history.pending());
    let show = |r: &GenerationRecord| Generation {
        generation: r.generation,
        time: r.wall.to_string(),
        trusted: r.trusted,
        actor: r.actor.to_string(),
        what: r.what.clone(),
        current: r.generation == current,
        previous: Some(r.generation) == previous,
        confirm_within: pending.filter(|p| p.generation == r.generation).map(|p| p.deadline.since(now).as_secs()),
    };
    let mut out: Vec<Generation> = history.records().map(show).collect();
    out.reverse();
    out
}

/// The differences between two generations: the API state first, then declared values.
pub fn differences(history: &History, a: u64, b: u64) -> Result<Vec<String>, ChangeRefused> {
    let (oldest, newest) = (history.oldest(), history.current());
    let at = |wanted| history.at(wanted).ok_or(ChangeRefused::NoGeneration { wanted, oldest, newest });
    let (from, to) = (at(a)?, at(b)?);
    let mut lines = StateChange::between(&from, &to).lines(&from);
    if let Some((from, to)) = history.declared_at(a).zip(history.declared_at(b)) {
        lines.extend(from.until(&to).lines(&from));
    }
    Ok(lines)
}

/// The values of a generation that a rollback does not restore because other sources own them, and where to change those.
pub fn not_restored(history: &History, wanted: u64) -> Option<String> {
    let current = history.current();
    let (now, then) = history.declared_at(current).zip(history.declared_at(wanted))?;
    let differing = now.until(&then).len();
    if differing == 0 {
        return None;
    }
    let remedy = |actor: &Actor| match actor {
        Actor::Configuration => "in the configuration file, then restart spoke",
        Actor::ControlPlane
        | Actor::Panel(_)
        | Actor::User(_)
        | Actor::Reconcile
        | Actor::TimeOut
        | Actor::Node
        | Actor::Other(_) => "at the control plane",
    };
    let remedies: Vec<&str> = history.declarers_since(wanted).into_iter().map(remedy).collect();
    Some(format!(
        "! {} not set through the API left as now (spoke config diff {current} {wanted}): change that {}",
        values(differing),
        remedies.join(", or ")
    ))
}

/// A count of values in words.
pub fn values(count: usize) -> String {
    if count == 1 { "1 value".to_owned() } else { format!("{count} values") }
}

/// A change, for the audit trail.
pub fn change(what: &str, done: &Result<AppliedChange, ChangeRefused>) -> String {
    let mut text = what.to_owned();
    let Ok(done) = done else { return text };
    for (i, line) in done.lines.iter().take(AUDIT_LINES).enumerate() {
        text.push_str(if i == 0 { ": " } else { "; " });
        text.push_str(line);
    }
    match done.lines.len() {
        n if n > AUDIT_LINES => text.push_str(&format!("; and {} more", n - AUDIT_LINES)),
        0 if !done.changed => text.push_str(" (no difference)"),
        _ => {}
    }
    text
}

/// A repair and its result, for the audit trail.
pub fn repair(done: &Result<RepairResult, ChangeRefused>) -> (String, Result<(), RepairIncomplete>) {
    match done {
        Err(refused) => ("repair drift".to_owned(), Err(RepairIncomplete::Refused(refused.clone()))),
        Ok(d) => {
            let counts = (d.added.len(), d.updated.len(), d.removed.len());
            let keys = d.added.iter().chain(&d.updated).chain(&d.removed).take(AUDIT_LINES).map(String::as_str);
            let keys = keys.collect::<Vec<_>>().join(", ");
            let what = format!("repair drift: {} added, {} restored, {} removed: {keys}", counts.0, counts.1, counts.2);
            let left =
                d.errors.first().map(|e| RepairIncomplete::Peers { count: d.errors.len(), error: e.error.clone() });
            (what.trim_end_matches(": ").to_owned(), left.map_or(Ok(()), Err))
        }
    }
}
