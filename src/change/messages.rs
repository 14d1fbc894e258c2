//! What is told of changes: the generations, what differs between two, what a rollback does not bring back, and the words of
//! the audit trail. Pure.
use super::history::History;
use super::record::{GenerationRecord, StateChange};
use super::request::{AppliedChange, ChangeRefused, Generation, RepairResult};
use spoke_model::time::Boot;

/// Lines of a change that go into the audit trail; the generation has them all.
const TOLD: usize = 8;

/// The generations kept, newest first.
pub fn generations(history: &History, now: Boot) -> Vec<Generation> {
    let (current, previous, pending) = (history.current(), history.previous(), history.pending());
    let show = |r: &GenerationRecord| Generation {
        generation: r.generation,
        time: r.wall.to_string(),
        trusted: r.trusted,
        actor: r.actor.clone(),
        what: r.what.clone(),
        current: r.generation == current,
        previous: Some(r.generation) == previous,
        confirm_within: pending.filter(|p| p.generation == r.generation).map(|p| p.deadline.since(now).as_secs()),
    };
    let mut out: Vec<Generation> = history.records().map(show).collect();
    out.reverse();
    out
}

/// What differs between two generations, first of what the API has set, then of what is declared.
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

/// What of a generation a rollback does not bring back, because others own it, and who would.
pub fn stays(history: &History, wanted: u64) -> Option<String> {
    let current = history.current();
    let (now, then) = history.declared_at(current).zip(history.declared_at(wanted))?;
    let differing = now.until(&then).len();
    if differing == 0 {
        return None;
    }
    let by = |actor: &str| match actor {
        "configuration" => "in the configuration file, then restart spoke",
        _ => "at the control plane",
    };
    let remedies: Vec<&str> = history.declarers_since(wanted).into_iter().map(by).collect();
    Some(format!(
        "! {} not set through the API left as now (spoke config diff {current} {wanted}): change that {}",
        values(differing),
        remedies.join(", or ")
    ))
}

/// So many values.
pub fn values(count: usize) -> String {
    if count == 1 { "1 value".to_owned() } else { format!("{count} values") }
}

/// A change, for the audit trail.
pub fn change(what: &str, done: &Result<AppliedChange, ChangeRefused>) -> String {
    let mut text = what.to_owned();
    let Ok(done) = done else { return text };
    for (i, line) in done.lines.iter().take(TOLD).enumerate() {
        text.push_str(if i == 0 { ": " } else { "; " });
        text.push_str(line);
    }
    match done.lines.len() {
        n if n > TOLD => text.push_str(&format!("; and {} more", n - TOLD)),
        0 if !done.changed => text.push_str(" (it was so already)"),
        _ => {}
    }
    text
}

/// A repair and what came of it, for the audit trail.
pub fn repair(done: &Result<RepairResult, ChangeRefused>) -> (String, Result<(), String>) {
    match done {
        Err(e) => ("repair drift".to_owned(), Err(e.to_string())),
        Ok(d) => {
            let counts = (d.added.len(), d.updated.len(), d.removed.len());
            let keys = d.added.iter().chain(&d.updated).chain(&d.removed).take(TOLD).map(String::as_str);
            let keys = keys.collect::<Vec<_>>().join(", ");
            let what = format!("repair drift: {} added, {} restored, {} removed: {keys}", counts.0, counts.1, counts.2);
            let failed = d.errors.first().map(|e| format!("{} not repaired: {}", d.errors.len(), e.error));
            (what.trim_end_matches(": ").to_owned(), failed.map_or(Ok(()), Err))
        }
    }
}
