//! State of the control client, for health and `spoke status`.
use super::wire::Outcome;
use spoke_model::key::PublicKey;
use spoke_model::time::Boot;

/// As of the last event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlStatus {
    /// The node is enrolled.
    pub enrolled: bool,
    /// The generation in force; 0: none.
    pub generation: u64,
    /// Outcome of the last one received.
    pub outcome: Option<Outcome>,
    /// Why it is not in force.
    pub reason: Option<String>,
    /// When the control plane last answered.
    pub last_answer: Option<Boot>,
    /// Since when polls fail.
    pub outage: Option<ControlOutage>,
    /// Why the state in force could not be written to disk.
    pub unsaved: Option<String>,
    /// Phase of a change of keys.
    pub key_change: Option<&'static str>,
    /// How the last change of keys ended.
    pub key_changed: Option<KeyChange>,
}

/// The control plane does not answer, or answers with an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlOutage {
    /// Of the first failure.
    pub since: Boot,
    /// The last failure.
    pub reason: String,
}

/// How a change of keys ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyChange {
    /// With this key.
    Changed(PublicKey),
    /// Without a change, for this reason.
    Abandoned(String),
}
