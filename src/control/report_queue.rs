//! Reports are queued and written in batches: thousands of heartbeats a second in a few transactions.
use crate::duplicate::Duplicates;
use crate::store::audit::Actor;
use crate::store::event_entry::EventEntry;
use crate::store::report::{NodeCondition, ReceivedReport};
use crate::store::{Store, StoreError, Tx};
use spoke_enroll::wire::Outcome;
use spoke_model::error_chain::ErrorChain;
use spoke_model::log_text::Span;
use spoke_model::node_id::NodeId;
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::sync::mpsc;

/// Reports queued at most.
const CAPACITY: usize = 32_768;

/// Reports written in one transaction at most.
const BATCH: usize = 2_000;

/// Nodes remembered as taking preshared keys.
const MAX_TAKERS: usize = 200_000;

/// How long the first report of a batch waits for others.
const BATCH_DELAY: Duration = Duration::from_millis(200);

/// Pause after a transient failure of the store.
const RETRY_IN: Duration = Duration::from_secs(1);

/// Reports arrive faster than the store takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("reports arrive faster than they can be stored")]
pub struct QueueFull;

/// The sending half, for request handlers.
#[derive(Clone, Debug)]
pub struct ReportQueue(mpsc::Sender<ReceivedReport>);

/// The task that writes them.
#[derive(Debug)]
pub struct ReportWriter(mpsc::Receiver<ReceivedReport>);

/// A queue and its writer.
pub fn channel() -> (ReportQueue, ReportWriter) {
    let (sender, receiver) = mpsc::channel(CAPACITY);
    (ReportQueue(sender), ReportWriter(receiver))
}

impl ReportQueue {
    /// Queues a report without waiting.
    pub fn put(&self, received: ReceivedReport) -> Result<(), QueueFull> {
        self.0.try_send(received).map_err(|_| QueueFull)
    }
}

impl ReportWriter {
    /// Writes reports until every queue handle is dropped and all of them are written.
    pub async fn run(mut self, store: Store) {
        let mut batch = Vec::new();
        let mut takers = HashSet::new();
        let mut duplicates = Duplicates::default();
        loop {
            if batch.is_empty() {
                if self.0.recv_many(&mut batch, BATCH).await == 0 {
                    return;
                }
                tokio::time::sleep(BATCH_DELAY).await;
                while batch.len() < BATCH
                    && let Ok(more) = self.0.try_recv()
                {
                    batch.push(more);
                }
            }
            match write(&store, &batch, &mut takers, &mut duplicates).await {
                Ok(()) => batch.clear(),
                Err(e) if e.is_transient() => {
                    tracing::warn!(error = %ErrorChain(&e), waiting = batch.len(), retry_in = %Span(RETRY_IN), "reports not written");
                    tokio::time::sleep(RETRY_IN).await;
                }
                Err(e) => {
                    // Each node's next report supersedes the dropped one.
                    tracing::error!(error = %ErrorChain(&e), dropped = batch.len(), "reports dropped");
                    batch.clear();
                }
            }
        }
    }
}

/// Adds an event for each condition of a node that its report changes.
fn note_condition(tx: &mut Tx, known: &mut HashMap<NodeId, NodeCondition>, received: &ReceivedReport) {
    let now = NodeCondition::from(&received.report);
    let before = known.insert(received.node.clone(), now.clone());
    let same = |f: fn(&NodeCondition) -> (bool, &str)| before.as_ref().is_some_and(|b| f(b) == f(&now));
    let mut add = |kind, details| {
        let (entity_type, entity_id) = ("node".to_owned(), received.node.to_string());
        tx.event(EventEntry { at_ms: received.received_ms, kind, entity_type, entity_id, details });
    };
    if !same(|c| (c.healthy, &c.outcome)) {
        let report = &received.report;
        let (outcome, generation) = (report.outcome.as_str(), report.generation);
        add("node", serde_json::json!({"healthy": now.healthy, "outcome": outcome, "generation": generation}));
    }
    if !same(|c| (c.drifts, "")) && (now.drifts || before.is_some()) {
        add("drift", serde_json::json!({"drift": received.report.drift}));
    }
}

/// `takers`: nodes known to take preshared keys.
async fn write(
    store: &Store,
    batch: &[ReceivedReport],
    takers: &mut HashSet<NodeId>,
    duplicates: &mut Duplicates,
) -> Result<(), StoreError> {
    let mut tx = store.write().await?;
    let mut noted = Vec::new();
    let mut found = Vec::new();
    let nodes: HashSet<&NodeId> = batch.iter().map(|r| &r.node).collect();
    let mut known = tx.conditions_of(&nodes.into_iter().collect::<Vec<_>>()).await?;
    for received in batch {
        let marked = duplicates.mark(received);
        let received = marked.as_ref().unwrap_or(received);
        let failed = matches!(received.report.outcome, Outcome::Reverted | Outcome::Refused);
        let new_failure = failed && tx.is_new_outcome(received).await?;
        if !tx.put_report(received).await? {
            let doubled = tx.is_of_previous_run(received).await? && duplicates.note(received);
            if doubled && !found.contains(&received.node) {
                let (id, none) = (&received.node, serde_json::Value::Null);
                let actor = Actor::Node(id.to_string());
                tx.audit(received.received_ms, &actor, "duplicate_identity", ("node", id.as_str()), none).await?;
                found.push(id.clone());
            }
            continue;
        }
        let id = &received.node;
        note_condition(&mut tx, &mut known, received);
        // Most nodes take them, and go on doing so: they cost no statement.
        if !(received.takes_preshared && takers.contains(id)) {
            if tx.note_preshared(id, received.takes_preshared).await? {
                let actor = Actor::Node(id.to_string());
                let none = serde_json::Value::Null;
                tx.audit(received.received_ms, &actor, "preshared_keys_withdrawn", ("node", id.as_str()), none).await?;
            }
            noted.push((id.clone(), received.takes_preshared));
        }
        if new_failure {
            let details = serde_json::json!({"outcome": received.report.outcome, "reason": received.report.reason});
            let actor = Actor::Node(received.node.to_string());
            tx.audit(received.received_ms, &actor, "state_not_kept", ("node", received.node.as_str()), details).await?;
        }
    }
    tx.commit().await?;
    for node in found {
        tracing::warn!(%node, "two devices report as one node by turns");
        duplicates.confirm(node);
    }
    for (id, takes) in noted {
        if takes && takers.len() < MAX_TAKERS {
            takers.insert(id);
        } else {
            takers.remove(&id);
        }
    }
    Ok(())
}
