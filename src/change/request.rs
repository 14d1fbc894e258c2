//! Requests to the ledger of changes and their results.
use super::conflict::Conflict;
use serde::{Deserialize, Serialize};
use spoke_model::key::PublicKey;
use spoke_net::drift::DriftReport;
use std::collections::BTreeSet;

/// Why a change was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeRefused {
    /// Another owner, or nothing to change.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The kernel refused it; the previous state was restored.
    #[error("The kernel refused the change, and the previous state is restored: {0}")]
    Kernel(String),
    /// It would make the desired state invalid, or that is invalid already.
    #[error("The change is not made, and the previous state is restored: {0}")]
    Invalid(String),
    /// The kernel refused a part of it; what it takes away is in force nevertheless.
    #[error(
        "The kernel refused a part of the change: {0}. What it removes stays removed or is tried again; nothing else of it is in force"
    )]
    Revoked(String),
    /// It could not be stored; the previous state was restored.
    #[error("The change could not be stored, and the previous state is restored: {0}")]
    Storage(String),
    /// An earlier change awaits its confirmation.
    #[error("Generation {0} awaits its confirmation: confirm it, or wait until it reverts")]
    Unconfirmed(u64),
    /// Nothing awaits a confirmation.
    #[error("Generation {0} awaits no confirmation")]
    NothingToConfirm(u64),
    /// That generation is not kept.
    #[error("{}", not_kept(*wanted, *oldest, *newest))]
    NoGeneration {
        /// The generation asked for.
        wanted: u64,
        /// The oldest kept.
        oldest: u64,
        /// The current one.
        newest: u64,
    },
    /// The queue is full, or the task has ended.
    #[error("The node is busy: try again")]
    Busy,
}

/// A change in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedChange {
    /// The current generation.
    pub generation: u64,
    /// Whether anything differed.
    pub changed: bool,
    /// Whether the interface was up before.
    pub was_up: bool,
    /// Seconds until it reverts unless confirmed.
    pub confirm_within: Option<u64>,
    /// The differences, one line each.
    pub lines: Vec<String>,
}

/// The result of a rollback or a confirmation, for the command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackResult {
    /// The current generation.
    pub generation: u64,
    /// The differences, one line each.
    pub lines: Vec<String>,
}

/// Drift to repair once, whatever the policies are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RepairRequest {
    /// Add missing peers.
    pub reconcile_missing: bool,
    /// Restore what differs.
    pub reconcile_mismatched: bool,
    /// Remove unknown peers.
    pub remove_unknown: bool,
    /// Report only.
    pub dry_run: bool,
}

impl Default for RepairRequest {
    fn default() -> Self {
        Self { reconcile_missing: true, reconcile_mismatched: true, remove_unknown: false, dry_run: false }
    }
}

/// The result of a repair.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairResult {
    /// Keys of peers added.
    pub added: Vec<String>,
    /// Keys of peers restored.
    pub updated: Vec<String>,
    /// Keys of peers removed.
    pub removed: Vec<String>,
    /// Peers not repaired.
    pub errors: Vec<RepairError>,
}

/// A peer that could not be repaired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairError {
    /// Its key.
    pub peer: String,
    /// `add`, `update` or `remove`.
    pub action: String,
    /// The error.
    pub error: String,
}

/// A generation, for `spoke config history`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Its number.
    pub generation: u64,
    /// RFC 3339, trusted or not.
    pub time: String,
    /// Whether the wall clock was trusted.
    pub trusted: bool,
    /// An [`Actor`](super::audit::Actor) as text.
    pub actor: String,
    /// Description.
    pub what: String,
    /// It is the current one.
    pub current: bool,
    /// A rollback without a number leads to it.
    pub previous: bool,
    /// Seconds until it reverts unless confirmed.
    pub confirm_within: Option<u64>,
}

impl RepairResult {
    /// Compares drift before and after a repair: what is gone was repaired, the rest failed for the reason `why` gives.
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

fn not_kept(wanted: u64, oldest: u64, newest: u64) -> String {
    match newest {
        0 => "No changes are recorded yet, so there is no generation to show or to roll back to".to_owned(),
        _ => format!("Generation {wanted} is not kept: choose one of {oldest} to {newest}"),
    }
}
