//! Writes the trail: one file that grows to a bound, and the one before it.
use crate::reconciler::{Cause, NetStatus};
use spoke_change::audit::{Actor, Allowance, AuditEntry, AuditEvent, ChainHead};
use spoke_enroll::audit::news;
use spoke_enroll::status::ControlStatus;
use spoke_model::clock::Anchor;
use spoke_net::drift::Drifted;
use spoke_sys::clock::Clock;
use spoke_sys::disk::DiskError;
use spoke_sys::journal;
use spoke_sys::journal::Journal;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use tokio::sync::{mpsc, watch};

/// File name in the state directory; the one before it has `.1` appended.
pub const FILE: &str = "audit.log";
/// Size at which a new file is begun, in bytes; two of them are kept.
const MAX_BYTES: u64 = 256 * 1024;
/// Events that may wait to be written.
const QUEUE: usize = 256;
/// Longest text of one field, in bytes.
const MAX_TEXT: usize = 1024;

/// Where events are handed in. Never waits: an event that finds no room is lost and the log says so.
#[derive(Clone, Debug)]
pub struct Audit(mpsc::Sender<AuditEvent>);

impl Audit {
    /// Hands in an event.
    pub fn record(&self, actor: &impl ToString, what: impl Into<String>, result: Result<(), String>) {
        let result = result.err().unwrap_or_else(|| "done".to_owned());
        let event = AuditEvent { actor: clip(actor.to_string()), what: clip(what.into()), result: clip(result) };
        if let Err(e) = self.0.try_send(event) {
            tracing::error!(error = %e, "an audit record was lost");
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

/// The writing end.
#[derive(Debug)]
pub struct Trail<C> {
    clock: C,
    trusted: watch::Receiver<Option<Anchor>>,
    events: mpsc::Receiver<AuditEvent>,
    journal: Journal,
    head: ChainHead,
}

impl<C: Clock> Trail<C> {
    /// Opens the trail in the state directory. Blocks. `trusted` says whether the wall clock is believed.
    pub fn open(dir: &Path, clock: C, trusted: watch::Receiver<Option<Anchor>>) -> Result<(Self, Audit), DiskError> {
        let (journal, found) = Journal::open_or_rotate(dir.join(FILE))?;
        let mut entries = parse(&found.lines);
        if entries.is_empty() {
            entries = parse(&journal::read(&previous(dir))?.lines);
        }
        let head = entries.last().map(AuditEntry::head).unwrap_or_default();
        let (tx, events) = mpsc::channel(QUEUE);
        let audit = Audit(tx);
        let torn = journal.is_damaged();
        if found.aside.is_some() || torn {
            let kept =
                found.aside.as_ref().map_or("it could not be moved".into(), |k| format!("kept as {}", k.display()));
            let what = format!("found {} damaged bytes in the audit trail; {kept}", found.dropped);
            tracing::error!("{what}");
            audit.record(&Actor::Node, what, Ok(()));
        } else if found.dropped > 0 {
            tracing::warn!(bytes = found.dropped, "the last audit record was cut off by a power cut");
        }
        Ok((Self { clock, trusted, events, journal, head }, audit))
    }

    /// Writes until nobody can hand in an event any more. An event that cannot be written stays in the log alone.
    pub async fn run(mut self) -> Result<(), DiskError> {
        while let Some(event) = self.events.recv().await {
            let trusted = self.trusted.borrow().is_some();
            let entry = AuditEntry::after(&self.head, self.clock.wall(), trusted, event);
            if let Err(error) = self.write(&entry).await {
                tracing::error!(%error, actor = %entry.actor, what = %entry.what, result = %entry.result, "audit record not written");
                continue;
            }
            self.head = entry.head();
        }
        Ok(())
    }

    async fn write(&mut self, entry: &AuditEntry) -> Result<(), DiskError> {
        if self.journal.len() > MAX_BYTES {
            self.journal.rotate().await?;
        }
        let line = serde_json::to_vec(entry)
            .map_err(|e| DiskError::Read { path: self.journal.path().to_owned(), source: e.into() })?;
        // What somebody asked for is on the medium at once. A repair is not worth a flash write of its own.
        self.journal.append(&line, entry.actor != Actor::Reconcile.to_string()).await
    }
}

/// Most repairs, or applied_steps of the control plane, recorded one by one in an hour; beyond that the log alone has them. A flapping kernel must not wear out
/// the flash.
const REPAIRS_PER_HOUR: u32 = 60;

/// Records what the reconcile task repaired, an entry for each pass that repaired anything, and the drift that policy had
/// it leave alone.
pub async fn repairs<C: Clock>(mut net: watch::Receiver<NetStatus>, audit: Audit, clock: C) -> Result<(), Infallible> {
    let (mut seen, mut allowed) = (net.borrow().repairs, Allowance::new(REPAIRS_PER_HOUR, clock.now()));
    let mut drifts = net.borrow().drift_count;
    while net.changed().await.is_ok() {
        let (count, what, held) = {
            let status = net.borrow_and_update();
            let new = usize::try_from(status.drift_count.saturating_sub(drifts)).unwrap_or(usize::MAX);
            drifts = status.drift_count;
            let held: Vec<String> = status.drifts.iter().rev().take(new).filter(|d| !d.repaired).map(alone).collect();
            let fresh = status.repairs.saturating_sub(seen);
            seen = status.repairs;
            let drift = status.history.iter().rev().filter(|d| d.cause == Cause::Drift && d.error.is_none());
            let steps: Vec<&str> =
                drift.take(usize::try_from(fresh.min(4)).unwrap_or(4)).map(|d| d.what.as_str()).collect();
            (fresh, steps.join("; "), held)
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

/// Records every state that the control plane sent, what became of it, and changes of keys.
pub async fn control<C: Clock>(
    mut status: watch::Receiver<ControlStatus>,
    audit: Audit,
    clock: C,
) -> Result<(), Infallible> {
    let mut allowed = Allowance::new(REPAIRS_PER_HOUR, clock.now());
    let mut before = status.borrow_and_update().clone();
    while status.changed().await.is_ok() {
        let now = status.borrow_and_update().clone();
        for (what, result) in news(&before, &now) {
            if !allowed.take(clock.now()) {
                tracing::warn!(
                    what,
                    error = result.as_ref().err(),
                    "not recorded: the control plane has too much to say"
                );
                continue;
            }
            audit.record(&Actor::ControlPlane, what, result);
        }
        before = now;
    }
    Ok(())
}

fn alone(drift: &Drifted) -> String {
    let (link, count) = (&drift.interface, drift.summary.total_issues);
    format!("left drift on {link} alone, {count} in all: {}", drift.steps.join("; "))
}

fn previous(dir: &Path) -> PathBuf {
    dir.join(format!("{FILE}.1"))
}

fn parse(lines: &[Vec<u8>]) -> Vec<AuditEntry> {
    lines.iter().filter_map(|l| serde_json::from_slice(l).ok()).collect()
}

/// The entries in the state directory, oldest first, and how many bytes of them are damaged. Blocks.
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
    async fn the_chain_goes_on_over_restarts_and_files_and_stays_bounded() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..3 {
            let (trail, audit) = Trail::open(dir.path(), SystemClock, watch::channel(None).1).unwrap();
            let writer = tokio::spawn(trail.run());
            for i in 0..900 {
                // Repairs are not synced one by one, and this is about their number.
                audit.record(&Actor::Reconcile, format!("change {round} {i} {}", "x".repeat(200)), Ok(()));
                if i % 100 == 0 {
                    // Let the writer keep up: the queue is bounded.
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
        assert!(entries.len() < 2700, "old ones are given up");
        let bytes: u64 = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes < 3 * MAX_BYTES, "{bytes}");
    }

    #[tokio::test]
    async fn damage_is_told_and_never_tidied_away() {
        let dir = tempfile::tempdir().unwrap();
        let write = async |what: &[&str], anchor: Option<Anchor>| {
            let (trail, audit) = Trail::open(dir.path(), SystemClock, watch::channel(anchor).1).unwrap();
            what.iter().for_each(|w| audit.record(&Actor::User(1000), *w, Err("no".into())));
            drop(audit);
            trail.run().await.unwrap();
        };
        let believed = Anchor { at: spoke_model::time::Boot::default(), wall: spoke_model::time::Wall(0) };
        write(&["one", "two", "three"], None).await;
        write(&["four"], Some(believed)).await;
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
            assert!(damaged > 0 && verify(&list).is_err(), "a restart hides nothing");
            assert_eq!(list.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 3, 4, 5], "the chain goes on from its end");
            assert!(list[3].actor == "node" && list[3].what.contains("damaged"), "{:?}", list[3]);
        }
    }
}
