//! What is asked of the ledger of changes, and what it answers. Pure.
use super::conflict::Conflict;
use serde::{Deserialize, Serialize};
use spoke_model::key::PublicKey;
use spoke_net::drift::DriftReport;
use std::collections::BTreeSet;

/// Why a change was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeRefused {
    /// Somebody else has it, or it is not there.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The kernel did not take it; all is as it was.
    #[error("The kernel refused it, and the previous state is back: {0}")]
    Kernel(String),
    /// It could not be written down; all is as it was.
    #[error("It could not be written down, and the previous state is back: {0}")]
    Storage(String),
    /// An earlier change waits for its confirmation.
    #[error("Generation {0} awaits its confirmation: confirm it, or wait until it reverts")]
    Unconfirmed(u64),
    /// There is nothing to confirm.
    #[error("Generation {0} awaits no confirmation")]
    NothingToConfirm(u64),
    /// That generation is not kept.
    #[error("Generation {wanted} is not kept: there are {oldest} to {newest}")]
    NoGeneration {
        /// The one asked for.
        wanted: u64,
        /// The oldest kept.
        oldest: u64,
        /// The present one.
        newest: u64,
    },
    /// Too many changes wait, or the task is not running.
    #[error("The node is busy: try again")]
    Busy,
}

/// A change that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedChange {
    /// The generation in force.
    pub generation: u64,
    /// Whether anything had to be changed.
    pub changed: bool,
    /// Whether the interface was up before.
    pub was_up: bool,
    /// Seconds left to confirm it.
    pub confirm_within: Option<u64>,
    /// What changed, for people.
    pub lines: Vec<String>,
}

/// What a rollback or a confirmation led to, as the command line shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackResult {
    /// The generation in force.
    pub generation: u64,
    /// What changed.
    pub lines: Vec<String>,
}

/// What to repair once, whatever the policies say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RepairRequest {
    /// Add missing peers.
    pub reconcile_missing: bool,
    /// Restore what differs.
    pub reconcile_mismatched: bool,
    /// Remove unknown peers.
    pub remove_unknown: bool,
    /// Only say what would be done.
    pub dry_run: bool,
}

impl Default for RepairRequest {
    fn default() -> Self {
        Self { reconcile_missing: true, reconcile_mismatched: true, remove_unknown: false, dry_run: false }
    }
}

/// What a repair did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairResult {
    /// Keys of peers added.
    pub added: Vec<String>,
    /// Keys of peers restored.
    pub updated: Vec<String>,
    /// Keys of peers removed.
    pub removed: Vec<String>,
    /// What could not be done.
    pub errors: Vec<RepairError>,
}

/// A peer that could not be repaired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairError {
    /// Its key.
    pub peer: String,
    /// `add`, `update` or `remove`.
    pub action: String,
    /// Why.
    pub error: String,
}

/// A generation as `spoke config history` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Its number.
    pub generation: u64,
    /// RFC 3339, as the clock stood.
    pub time: String,
    /// Whether that clock was believed.
    pub trusted: bool,
    /// Who.
    pub actor: String,
    /// What.
    pub what: String,
    /// In force.
    pub current: bool,
    /// The one a rollback without a number goes to.
    pub previous: bool,
    /// Seconds until it reverts unless confirmed.
    pub confirm_within: Option<u64>,
}

impl RepairResult {
    /// What was found before and is gone after was done; the rest failed, and `why` says why.
    pub fn between(
        before: &DriftReport,
        after: &DriftReport,
        what: &RepairRequest,
        why: impl Fn(PublicKey) -> String,
    ) -> Self {
        let mut errors = Vec::new();
        let mut sort = |asked: bool, keys: Vec<PublicKey>, left: BTreeSet<PublicKey>, action: &str| {
            let mut done = Vec::new();
            for key in keys.into_iter().filter(|_| asked) {
                match left.contains(&key) {
                    true => errors.push(RepairError { peer: key.to_string(), action: action.into(), error: why(key) }),
                    false => done.push(key.to_string()),
                }
            }
            done
        };
        let missing = |r: &DriftReport| r.missing_peers.iter().map(|p| p.public_key).collect::<Vec<_>>();
        let mismatched = |r: &DriftReport| r.mismatched_peers.iter().map(|p| p.public_key).collect::<Vec<_>>();
        let unknown = |r: &DriftReport| r.unknown_peers.iter().map(|p| p.public_key).collect::<Vec<_>>();
        let set = BTreeSet::from_iter;
        let added = sort(what.reconcile_missing, missing(before), set(missing(after)), "add");
        let updated = sort(what.reconcile_mismatched, mismatched(before), set(mismatched(after)), "update");
        let removed = sort(what.remove_unknown, unknown(before), set(unknown(after)), "remove");
        Self { added, updated, removed, errors }
    }
}
