//! Wakes the long-polls of nodes whose desired state has changed: the waiters of this process, by node.
//!
//! A wake-up carries no content: the woken poll reads the database. Its text is `ALL`, a node id, or a node id behind
//! one of the prefixes of [`super::probe`].
use super::probe::{ProbeMessage, Probes};
use spoke_model::node_id::NodeId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// PostgreSQL's notification channel.
pub(super) const CHANNEL: &str = "spoke_wake";

/// Wakes every node.
pub(super) const ALL: &str = "*";

/// Announces new events. To a release without them it is the return of no node.
pub(super) const EVENTS: &str = "!";

/// Rows kept in SQLite's `wake` table; a process that missed more wakes every node.
pub(super) const KEPT: i64 = 4096;

/// The waiters of this process by node.
#[derive(Debug, Default)]
pub struct Wakes {
    waiters: Mutex<HashMap<String, watch::Sender<u64>>>,
    /// Raised with each change, for caches and for tasks that watch the whole fleet.
    epoch: watch::Sender<u64>,
    pub(super) probes: Probes,
    /// Raised with each event.
    events: watch::Sender<u64>,
}

impl Wakes {
    /// Delivers a wake-up to the waiters of one node, or of all.
    pub(super) fn wake(&self, message: &str) {
        // Those of others may have been missed with the rest.
        if message == EVENTS || message == ALL {
            self.events.send_modify(|n| *n += 1);
        }
        if message == EVENTS {
            return;
        }
        let node = match self.probes.receive(message) {
            ProbeMessage::Returned => return,
            ProbeMessage::Probed(node) => node,
            ProbeMessage::Other => {
                self.epoch.send_modify(|n| *n += 1);
                message
            }
        };
        let mut waiters = self.lock();
        if node == ALL {
            waiters.retain(|_, w| w.receiver_count() > 0);
            for waiter in waiters.values() {
                waiter.send_modify(|n| *n += 1);
            }
        } else if let Some(waiter) = waiters.get(node) {
            waiter.send_modify(|n| *n += 1);
        }
    }

    pub(super) fn waiter(self: &Arc<Self>, node: &NodeId) -> Waiter {
        let receiver = self.lock().entry(node.as_str().to_owned()).or_default().subscribe();
        Waiter { node: node.clone(), receiver: Some(receiver), wakes: Arc::clone(self) }
    }

    pub(super) fn waiter_count(&self) -> usize {
        self.lock().len()
    }

    pub(super) fn events(&self) -> watch::Receiver<u64> {
        self.events.subscribe()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.epoch.subscribe()
    }

    fn release(&self, node: &NodeId) {
        let mut waiters = self.lock();
        if waiters.get(node.as_str()).is_some_and(|w| w.receiver_count() == 0) {
            waiters.remove(node.as_str());
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<u64>>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for changes of one node. Subscribe first, then read, so that no change is missed in between.
#[derive(Debug)]
pub struct Waiter {
    node: NodeId,
    receiver: Option<watch::Receiver<u64>>,
    wakes: Arc<Wakes>,
}

impl Waiter {
    /// Resolves when the node's desired state may have changed since the last call or since the waiter was created.
    pub async fn changed(&mut self) {
        if let Some(receiver) = &mut self.receiver
            && receiver.changed().await.is_ok()
        {
            return;
        }
        // The sender lives as long as the store.
        std::future::pending().await
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.receiver = None;
        self.wakes.release(&self.node);
    }
}
