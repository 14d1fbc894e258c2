//! Long-polls of each node, of which it may hold few: a device holds one, and another after its line was cut.
use crate::limits::LimitExceeded;
use spoke_model::node_id::NodeId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Long-polls of one node at a time.
const PER_NODE: u8 = 8;

/// The open long-polls.
#[derive(Clone, Debug, Default)]
pub struct Polls(Arc<Mutex<HashMap<NodeId, u8>>>);

/// A long-poll; given back when dropped.
#[derive(Debug)]
pub struct PollSlot {
    polls: Polls,
    node: NodeId,
}

impl Polls {
    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a long-poll of `node`.
    pub fn take(&self, node: &NodeId) -> Result<PollSlot, LimitExceeded> {
        let mut open = self.lock();
        let count = open.entry(node.clone()).or_default();
        if *count >= PER_NODE {
            return Err(LimitExceeded);
        }
        *count += 1;
        Ok(PollSlot { polls: self.clone(), node: node.clone() })
    }
}

impl Drop for PollSlot {
    fn drop(&mut self) {
        let mut open = self.polls.lock();
        let Some(count) = open.get_mut(&self.node) else { return };
        *count = count.saturating_sub(1);
        if *count == 0 {
            open.remove(&self.node);
        }
    }
}
