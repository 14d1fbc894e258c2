//! Reports are collected and written together: ten thousand heartbeats need not be ten thousand transactions.
use super::answer::Failure;
use crate::store::audit::Actor;
use crate::store::report::Received;
use crate::store::{Store, StoreError};
use spoke_enroll::wire::{Outcome, ProblemCode};
use std::time::Duration;
use tokio::sync::mpsc;

/// Reports waiting at most; beyond that nodes are told to come back.
const WAITING: usize = 32_768;

/// Reports written in one transaction at most.
const BATCH: usize = 2_000;

/// How long a report waits for others.
const GATHER: Duration = Duration::from_millis(200);

/// Where reports are put.
#[derive(Clone, Debug)]
pub struct Inbox(mpsc::Sender<Received>);

/// Where they are taken from.
#[derive(Debug)]
pub struct Outbox(mpsc::Receiver<Received>);

/// Both ends.
pub fn channel() -> (Inbox, Outbox) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Inbox(sender), Outbox(receiver))
}

impl Inbox {
    /// Puts a report; never waits.
    pub fn put(&self, received: Received) -> Result<(), Failure> {
        self.0
            .try_send(received)
            .map_err(|_| Failure::new(ProblemCode::Unavailable, "reports come faster than they can be kept"))
    }
}

impl Outbox {
    /// Writes reports until every inbox is gone and all of them are written.
    pub async fn run(mut self, store: Store) {
        let mut batch = Vec::new();
        loop {
            if batch.is_empty() {
                if self.0.recv_many(&mut batch, BATCH).await == 0 {
                    return;
                }
                tokio::time::sleep(GATHER).await;
                while batch.len() < BATCH
                    && let Ok(more) = self.0.try_recv()
                {
                    batch.push(more);
                }
            }
            match write(&store, &batch).await {
                Ok(()) => batch.clear(),
                Err(e) if e.is_transient() => {
                    tracing::warn!(error = %e, waiting = batch.len(), "reports not written; trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Err(e) => {
                    // The next report of each node says the same: these are given up rather than held for ever.
                    tracing::error!(error = %e, lost = batch.len(), "reports cannot be written");
                    batch.clear();
                }
            }
        }
    }
}

async fn write(store: &Store, batch: &[Received]) -> Result<(), StoreError> {
    let mut tx = store.write().await?;
    for received in batch {
        let bad = matches!(received.report.outcome, Outcome::Reverted | Outcome::Refused);
        if bad && tx.is_news(received).await? {
            let details = serde_json::json!({"outcome": received.report.outcome, "reason": received.report.reason});
            let actor = Actor::Node(received.node.to_string());
            tx.audit(received.received_ms, &actor, "state_not_kept", ("node", received.node.as_str()), details).await?;
        }
        tx.put_report(received).await?;
    }
    tx.commit().await
}
