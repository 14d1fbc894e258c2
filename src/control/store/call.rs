//! Calls a node: ends its long-poll wherever it is held, and waits until the node is back with the next one.
//!
//! That it comes back proves both directions as they are now, which nothing that is stored can. Whichever control plane
//! holds the poll hears of the call as of any change (`wake`), and tells of the node's return in the same way.
use super::sql::{Store, StoreError, Tx};
use spoke_model::node_id::NodeId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// In front of a node id in a wake-up: it is called.
const CALLED: char = '?';
/// In front of a node id in a wake-up: it is back.
const BACK: char = '!';
/// A call nobody answered is forgotten after this long.
const FORGOTTEN: Duration = Duration::from_secs(30);
/// A call may fall between two processes that are just learning of each other: it is repeated.
const AGAIN: Duration = Duration::from_secs(2);

/// Calls as one process knows them.
#[derive(Debug, Default)]
pub struct Calls {
    called: Mutex<HashMap<String, Instant>>,
    callers: Mutex<HashMap<String, Arc<Notify>>>,
}

fn lock<T>(map: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Calls {
    /// Takes note of a wake-up that is about a call; gives the node whose poll is to end. `Err`: it is about something else.
    pub(super) fn hear<'w>(&self, said: &'w str) -> Result<Option<&'w str>, &'w str> {
        if let Some(node) = said.strip_prefix(CALLED) {
            let mut called = lock(&self.called);
            called.retain(|_, since| since.elapsed() < FORGOTTEN);
            called.insert(node.to_owned(), Instant::now());
            return Ok(Some(node));
        }
        let node = said.strip_prefix(BACK).ok_or(said)?;
        lock(&self.called).remove(node);
        if let Some(caller) = lock(&self.callers).get(node) {
            caller.notify_waiters();
        }
        Ok(None)
    }
}

impl Store {
    /// Whether somebody calls this node.
    pub fn is_called(&self, node: &NodeId) -> bool {
        lock(&self.calls().called).get(node.as_str()).is_some_and(|since| since.elapsed() < FORGOTTEN)
    }

    /// Tells whoever called this node that it is back.
    pub async fn is_back(&self, node: &NodeId) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        tx.say(BACK, node);
        tx.commit().await
    }

    /// Calls a node, and gives how long it took to come back; `None`: it did not `within` that time.
    pub async fn call(&self, node: &NodeId, within: Duration) -> Result<Option<Duration>, StoreError> {
        let began = Instant::now();
        let back = lock(&self.calls().callers).entry(node.as_str().to_owned()).or_default().clone();
        let outcome = async {
            loop {
                let heard = back.notified();
                let mut tx = self.write().await?;
                tx.say(CALLED, node);
                tx.commit().await?;
                if tokio::time::timeout(AGAIN, heard).await.is_ok() {
                    return Ok(began.elapsed());
                }
            }
        };
        let outcome = tokio::time::timeout(within, outcome).await.ok().transpose();
        let mut callers = lock(&self.calls().callers);
        // Ours, the map's, and nobody else's.
        if Arc::strong_count(&back) <= 2 {
            callers.remove(node.as_str());
        }
        outcome
    }
}

impl Tx {
    fn say(&mut self, what: char, node: &NodeId) {
        self.woken.insert(format!("{what}{node}"));
    }
}
