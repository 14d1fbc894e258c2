//! The state shared by all handlers.
use super::polls::Polls;
use super::replay::ReplayGuard;
use crate::chain::GrantLookup;
use crate::limits::Limits;
use crate::nonce_queue::NonceQueue;
use crate::report_queue::ReportQueue;
use crate::signing::{MasterKey, SigningKeys};
use crate::store::Store;
use crate::store::node::NodeState;
use spoke_api::responses::ResponseCounts;
use spoke_config::node::Role;
use spoke_model::node_id::NodeId;
use spoke_model::secret::Secret;
use spoke_model::signature::VerifyKey;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::sync::{Semaphore, watch};

/// Documents built at a time: a change for every node must not starve enrolments of connections to the database.
const MAX_BUILDERS: usize = 8;

/// Streams of events at a time.
const MAX_STREAMS: usize = 64;

/// What a request of a node is judged by, valid while the store's epoch stays.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) key: VerifyKey,
    pub(super) state: NodeState,
    pub(super) role: Role,
    pub(super) network: Arc<str>,
    pub(super) enabled: bool,
    pub(super) epoch: u64,
}

/// The state that belongs to the handlers alone.
#[derive(Debug)]
pub struct HandlerState {
    pub(super) replays: ReplayGuard,
    /// A cache of active nodes.
    pub(super) members: Mutex<HashMap<NodeId, Member>>,
    pub(super) builders: Semaphore,
    pub(super) polls: Polls,
    /// Responses, for the metrics.
    pub responses: ResponseCounts,
    /// Streams of events at a time.
    pub(super) streams: Arc<Semaphore>,
}

impl HandlerState {
    /// The state of a process that starts at this moment.
    pub fn new() -> Self {
        Self {
            replays: ReplayGuard::new(),
            members: Mutex::default(),
            builders: Semaphore::new(MAX_BUILDERS),
            polls: Polls::default(),
            responses: ResponseCounts::default(),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        }
    }
}

impl Default for HandlerState {
    fn default() -> Self {
        Self::new()
    }
}

/// The state shared by all handlers.
#[derive(Debug)]
pub struct ApiState {
    /// The fleet.
    pub store: Store,
    /// The active signing keys.
    pub keys: watch::Receiver<SigningKeys>,
    /// The key that seals them.
    pub master: MasterKey,
    /// Rate limits.
    pub limits: Limits,
    /// Opens the operators' API beside the operators' keys.
    pub operator_token: Option<Secret<String>>,
    /// Nonces to be recorded for all control planes.
    pub nonces: NonceQueue,
    /// Reports to be written.
    pub reports: ReportQueue,
    /// True when the server is about to stop: long-polls end.
    pub stopping: watch::Receiver<bool>,
    /// Asks the contract about devices that enrol; `None`: no contract is configured.
    pub grants: Option<GrantLookup>,
    /// Of the handlers alone.
    pub handlers: HandlerState,
}
