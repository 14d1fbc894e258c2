//! Writes the audit trail: one file of bounded size, and the one before it. Waits for events.
use crate::reconciler::{Cause, NetStatus};
use spoke_change::audit::{Actor, Allowance, AuditEntry, AuditEvent, ChainHead};
use spoke_enroll::audit::audit_entries;
use spoke_enroll::status::ControlStatus;
use spoke_model::clock::Anchor;
use spoke_model::condition::Code;
use spoke_net::drift::Drifted;
use spoke_sys::clock::Clock;
use spoke_sys::disk::DiskError;
use spoke_sys::journal;
use spoke_sys::journal::Journal;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use tokio::sync::{mpsc, watch};

/// File name in the state directory; the one before it has `.1` appended.
pub const FILE: &str = "audit.log";
/// Size at which a new file is begun, in bytes; two of them are kept.
const MAX_BYTES: u64 = 256 * 1024;
/// Events that may wait for the writer.
const QUEUE: usize = 256;
/// Longest text of one field, in bytes.
const MAX_TEXT: usize = 1024;

/// Where events are recorded. Never blocks: an event that finds the queue full is logged as lost.
#[derive(Clone, Debug)]
pub struct Audit(mpsc::Sender<AuditEvent>);

impl Audit {
    /// Records an event; `Ok` is stored as `done`.
    pub fn record(&self, actor: &Actor, what: impl Into<String>, result: Result<(), &dyn Display>) {
        let result = result.map_or_else(|e| clip(e.to_string()), |()| "done".to_owned());
        let event = AuditEvent { actor: actor.clone(), what: clip(what.into()), result };
        if let Err(e) = self.0.try_send(event) {
            tracing::error!(error = %e, "audit event lost");
        }
    }
}

fn clip(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// The writer.
#[derive(Debug)]
pub struct Trail<C> {
    clock: C,
    trusted: watch::Receiver<Option<Anchor>>,
    events: mpsc::Receiver<AuditEvent>,
    journal: Journal,
    head: ChainHead,
}

impl<C: Clock> Trail<C> {
    /// Opens the trail in the state directory; blocks. `trusted`: whether the wall clock is trusted.
    pub fn open(dir: &Path, clock: C, trusted: watch::Receiver<Option<Anchor>>) -> (Self, Audit) {
        let (journal, found) = Journal::open_or_rotate(dir.join(FILE));
        let mut entries = parse(&found.lines);
        if entries.is_empty() {
            entries = journal::read(&previous(dir)).map(|found| parse(&found.lines)).unwrap_or_default();
        }
        let head = entries.last().map(AuditEntry::head).unwrap_or_default();
        let (tx, events) = mpsc::channel(QUEUE);
        let audit = Audit(tx);
        let torn = journal.is_damaged();
        if found.aside.is_some() || torn {
            let kept =
                found.aside.as_ref().map_or("it could not be moved".into(), |k| format!("kept as {}", k.display()));
            tracing::error!(bytes = found.dropped, kept, "audit trail damaged");
            let what = format!("found {} damaged bytes in the audit trail; {kept}", found.dropped);
            audit.record(&Actor::Node, what, Ok(()));
        } else if found.dropped > 0 {
            tracing::warn!(bytes = found.dropped, "last audit record cut off by a power loss");
        }
        (Self { clock, trusted, events, journal, head }, audit)
    }

    /// Writes until every [`Audit`] is dropped. An event that cannot be written remains in the log.
    pub async fn run(mut self) -> Result<(), DiskError> {
        while let Some(event) = self.events.recv().await {
            let trusted = self.trusted.borrow().is_some();
            // A requested change is synced at once; repairs are not, to save flash writes.
            let sync = event.actor != Actor::Reconcile;
            let entry = AuditEntry::after(&self.head, self.clock.wall(), trusted, event);
            if let Err(error) = self.write(&entry, sync).await {
                tracing::error!(%error, actor = %entry.actor, what = %entry.what, result = %entry.result, "audit event not written");
                continue;
            }
            self.head = entry.head();
        }
        Ok(())
    }

    async fn write(&mut self, entry: &AuditEntry, sync: bool) -> Result<(), DiskError> {
        if self.journal.len() > MAX_BYTES {
            self.journal.rotate().await?;
        }
        let line = serde_json::to_vec(entry)
            .map_err(|e| DiskError::Read { path: self.journal.path().to_owned(), source: e.into() })?;
        self.journal.append(&line, sync).await
    }
}

/// Repairs, or actions of the control plane, recorded in an hour; further ones are in the log only. Drift that keeps
/// coming back must not wear out the flash.
const REPAIRS_PER_HOUR: u32 = 60;

/// Records repaired drift, one entry for each pass, and drift that policy left alone. Waits for the reconciler's status.
pub async fn repairs<C: Clock>(mut net: watch::Receiver<NetStatus>, audit: Audit, clock: C) -> Result<(), Infallible> {
    let (mut seen, mut allowed) = (net.borrow().repairs, Allowance::new(REPAIRS_PER_HOUR, clock.now()));
    let mut drifts = net.borrow().drift_count;
    let mut quarrels = BTreeSet::new();
    while net.changed().await.is_ok() {
        let (count, what, held) = {
            let status = net.borrow_and_update();
            let new = usize::try_from(status.drift_count.saturating_sub(drifts)).unwrap_or(usize::MAX);
            drifts = status.drift_count;
            let held: Vec<String> =
                status.drifts.iter().rev().take(new).filter(|d| !d.repaired).map(left_alone).collect();
            let fresh = status.repairs.saturating_sub(seen);
            seen = status.repairs;
            let drift = status.history.iter().rev().filter(|d| d.cause == Cause::Drift && d.error.is_none());
            let drift = drift.take(usize::try_from(fresh).unwrap_or(usize::MAX));
            // A quarrel with another program is recorded once, when it begins.
            let (again, new): (Vec<_>, Vec<_>) = drift.partition(|d| d.contested);
            let steps: Vec<&str> = new.iter().take(4).map(|d| d.what.as_str()).collect();
            let begun = status.conditions.iter().filter(|c| c.code == Code::Contested && !quarrels.contains(&c.object));
            let begun: Vec<String> = begun.map(|c| c.detail.clone()).collect();
            let contested = status.conditions.iter().filter(|c| c.code == Code::Contested);
            quarrels = contested.map(|c| c.object.clone()).collect();
            let mut held = held;
            held.extend(begun);
            (fresh.saturating_sub(again.len() as u64), steps.join("; "), held)
        };
        if count > 0 && allowed.take(clock.now()) {
            let more = if count > 4 { format!(" and {} more", count - 4) } else { String::new() };
            audit.record(&Actor::Reconcile, format!("repaired drift: {what}{more}"), Ok(()));
        }
        for what in held {
            if allowed.take(clock.now()) {
                audit.record(&Actor::Reconcile, what, Ok(()));
            }
        }
    }
    Ok(())
}

/// Records each state that the control plane sent with its outcome, and key changes. Waits for the control session's status.
pub async fn control<C: Clock>(
    mut status: watch::Receiver<ControlStatus>,
    audit: Audit,
    clock: C,
) -> Result<(), Infallible> {
    let mut allowed = Allowance::new(REPAIRS_PER_HOUR, clock.now());
    let mut before = status.borrow_and_update().clone();
    while status.changed().await.is_ok() {
        let now = status.borrow_and_update().clone();
        for entry in audit_entries(&before, &now) {
            if !allowed.take(clock.now()) {
                tracing::warn!(
                    what = entry.what,
                    error = entry.error,
                    "audit event of the control plane over the hourly limit"
                );
                continue;
            }
            let result = entry.error.as_ref().map_or(Ok(()), |e| Err(e as &dyn Display));
            audit.record(&Actor::ControlPlane, entry.what, result);
        }
        before = now;
    }
    Ok(())
}

fn left_alone(drift: &Drifted) -> String {
    let (link, count) = (&drift.interface, drift.summary.total_issues);
    format!("left drift on {link} alone, {count} in all: {}", drift.steps.join("; "))
}

fn previous(dir: &Path) -> PathBuf {
    dir.join(format!("{FILE}.1"))
}

fn parse(lines: &[Vec<u8>]) -> Vec<AuditEntry> {
    lines.iter().filter_map(|l| serde_json::from_slice(l).ok()).collect()
}

/// The entries in the state directory, oldest first, and how many bytes are damaged; blocks.
pub fn entries(dir: &Path) -> Result<(Vec<AuditEntry>, u64), DiskError> {
    let mut found = journal::read(&previous(dir))?;
    let current = journal::read(&dir.join(FILE))?;
    found.lines.extend(current.lines);
    let entries = parse(&found.lines);
    let damaged = found.dropped + current.dropped + (found.lines.len() - entries.len()) as u64;
    Ok((entries, damaged))
}

#[cfg(test)]
mod tests {
    use super::*;
    use spoke_change::audit::verify;
    use spoke_sys::clock::SystemClock;

    #[tokio::test]
    async fn chain_continues_over_restarts_and_rotation() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..3 {
            let (trail, audit) = Trail::open(dir.path(), SystemClock, watch::channel(None).1);
            let writer = tokio::spawn(trail.run());
            for i in 0..900 {
                // Events of this actor are not synced, so many of them are fast.
                audit.record(&Actor::Reconcile, format!("change {round} {i} {}", "x".repeat(200)), Ok(()));
                if i % 100 == 0 {
                    // The queue is bounded: let the writer catch up.
                    while audit.0.capacity() < QUEUE {
                        tokio::task::yield_now().await;
                    }
                }
            }
            drop(audit);
            writer.await.unwrap().unwrap();
        }
        let (entries, damaged) = entries(dir.path()).unwrap();
        assert_eq!((verify(&entries).unwrap().unwrap().seq, damaged), (2700, 0));
        assert!(entries.len() < 2700, "old entries are dropped");
        let bytes: u64 = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes < 3 * MAX_BYTES, "{bytes}");
    }

    #[tokio::test]
    async fn damage_is_recorded_and_stays_detectable() {
        let dir = tempfile::tempdir().unwrap();
        let write = async |what: &[&str], anchor: Option<Anchor>| {
            let (trail, audit) = Trail::open(dir.path(), SystemClock, watch::channel(anchor).1);
            what.iter().for_each(|w| audit.record(&Actor::User(1000), *w, Err(&"no")));
            drop(audit);
            trail.run().await.unwrap();
        };
        let trusted = Anchor { at: spoke_model::time::Boot::default(), wall: spoke_model::time::Wall(0) };
        write(&["one", "two", "three"], None).await;
        write(&["four"], Some(trusted)).await;
        let (whole, _) = entries(dir.path()).unwrap();
        assert_eq!(whole.iter().map(|e| e.trusted).collect::<Vec<_>>(), [false, false, false, true]);
        assert_eq!((whole[0].actor.as_str(), whole[0].result.as_str()), ("user 1000", "no"));

        let path = dir.path().join(FILE);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(3).position(|w| w == b"two").unwrap();
        bytes[at] = b'T';
        std::fs::write(&path, bytes).unwrap();
        for _ in 0..2 {
            write(&[], None).await;
            let (list, damaged) = entries(dir.path()).unwrap();
            assert!(damaged > 0 && verify(&list).is_err(), "damage stays visible after a restart");
            assert_eq!(
                list.iter().map(|e| e.seq).collect::<Vec<_>>(),
                [1, 3, 4, 5],
                "the chain continues from its end"
            );
            assert!(list[3].actor == "node" && list[3].what.contains("damaged"), "{:?}", list[3]);
        }
    }
}
