//! Nonces of requests, recorded in the store that all control planes of a fleet share: a request is not accepted at a second
//! one. They are written in batches, because every request of a node has one.
use crate::store::nonce::UsedNonce;
use crate::store::{Store, StoreError};
use spoke_model::error_chain::ErrorChain;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Nonces queued at most.
const CAPACITY: usize = 16_384;

/// Nonces recorded in one transaction at most.
const BATCH: usize = 1_000;

/// How long a request waits for its record.
const RECORD_TIMEOUT: Duration = Duration::from_secs(2);

/// What is known of a nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonceRecord {
    /// Recorded by this request.
    New,
    /// Recorded before: the request is a replay.
    Used,
    /// The store does not answer.
    Unknown,
}

type Item = (UsedNonce, oneshot::Sender<NonceRecord>);

/// The sending half, for request handlers.
#[derive(Clone, Debug)]
pub struct NonceQueue(mpsc::Sender<Item>);

/// The task that records them.
#[derive(Debug)]
pub struct NonceWriter(mpsc::Receiver<Item>);

/// A queue and its writer.
pub fn channel() -> (NonceQueue, NonceWriter) {
    let (sender, receiver) = mpsc::channel(CAPACITY);
    (NonceQueue(sender), NonceWriter(receiver))
}

impl NonceQueue {
    /// Records a nonce, and whether it was recorded before by any control plane.
    pub async fn record(&self, nonce: UsedNonce) -> NonceRecord {
        let (reply, recorded) = oneshot::channel();
        if self.0.try_send((nonce, reply)).is_err() {
            return NonceRecord::Unknown;
        }
        match tokio::time::timeout(RECORD_TIMEOUT, recorded).await {
            Ok(Ok(record)) => record,
            Ok(Err(_)) | Err(_) => NonceRecord::Unknown,
        }
    }
}

impl NonceWriter {
    /// Records nonces until every queue handle is dropped.
    pub async fn run(mut self, store: Store) {
        let mut batch = Vec::new();
        while self.0.recv_many(&mut batch, BATCH).await > 0 {
            let records = match record(&store, &batch).await {
                Ok(records) => records,
                Err(e) => {
                    tracing::warn!(error = %ErrorChain(&e), requests = batch.len(), "nonces not recorded: replays at other control planes are not noticed");
                    vec![NonceRecord::Unknown; batch.len()]
                }
            };
            for ((_, reply), record) in batch.drain(..).zip(records) {
                // The request may have timed out.
                let _ = reply.send(record);
            }
        }
    }
}

async fn record(store: &Store, batch: &[Item]) -> Result<Vec<NonceRecord>, StoreError> {
    let mut tx = store.write().await?;
    let mut records = Vec::with_capacity(batch.len());
    for (nonce, _) in batch {
        records.push(if tx.use_nonce(nonce).await? { NonceRecord::New } else { NonceRecord::Used });
    }
    tx.commit().await?;
    Ok(records)
}
