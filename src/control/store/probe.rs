//! Probes of nodes: a probe ends the node's long-poll at whichever control plane holds it, and waits for its next poll.
//!
//! The next poll proves both directions at this moment, which no stored value can. Probes and returns travel as wake-ups
//! (`wake`), so they reach every process.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Prefix of a wake-up: the node is probed.
const PROBED: char = '?';
/// Prefix of a wake-up: the probed node has polled again.
const RETURNED: char = '!';
/// An unanswered probe is dropped after this time.
const PROBE_LIFETIME: Duration = Duration::from_secs(30);

/// The wake-up that probes `node`.
pub(super) fn probe_message(node: &str) -> String {
    format!("{PROBED}{node}")
}

/// The wake-up that reports the return of `node`.
pub(super) fn return_message(node: &str) -> String {
    format!("{RETURNED}{node}")
}

/// A wake-up by its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProbeMessage<'m> {
    /// This node is probed: its long-poll ends.
    Probed(&'m str),
    /// A node is back, and the probing callers have been notified.
    Returned,
    /// Not about a probe.
    Other,
}

/// Probes as one process knows them.
#[derive(Debug, Default)]
pub struct Probes {
    /// Probed nodes, with the time of the last probe.
    probed: Mutex<HashMap<String, Instant>>,
    /// Callers of this process that wait for a node.
    callers: Mutex<HashMap<String, Arc<Notify>>>,
}

fn lock<T>(map: &Mutex<T>) -> MutexGuard<'_, T> {
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Probes {
    pub(super) fn receive<'m>(&self, message: &'m str) -> ProbeMessage<'m> {
        if let Some(node) = message.strip_prefix(PROBED) {
            let mut probed = lock(&self.probed);
            probed.retain(|_, since| since.elapsed() < PROBE_LIFETIME);
            probed.insert(node.to_owned(), Instant::now());
            return ProbeMessage::Probed(node);
        }
        let Some(node) = message.strip_prefix(RETURNED) else { return ProbeMessage::Other };
        lock(&self.probed).remove(node);
        if let Some(caller) = lock(&self.callers).get(node) {
            caller.notify_waiters();
        }
        ProbeMessage::Returned
    }

    pub(super) fn is_probed(&self, node: &str) -> bool {
        lock(&self.probed).get(node).is_some_and(|since| since.elapsed() < PROBE_LIFETIME)
    }

    /// Notified when `node` returns; to be given back by [`Probes::end_call`].
    pub(super) fn begin_call(&self, node: &str) -> Arc<Notify> {
        lock(&self.callers).entry(node.to_owned()).or_default().clone()
    }

    pub(super) fn end_call(&self, node: &str, returned: &Arc<Notify>) {
        let mut callers = lock(&self.callers);
        // Two references: the caller's and the map's.
        if Arc::strong_count(returned) <= 2 {
            callers.remove(node);
        }
    }
}
