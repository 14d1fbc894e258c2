//! What the device says about its control plane, for health and `spoke status`.
use super::wire::Outcome;
use spoke_model::key::PublicKey;
use spoke_model::time::Boot;

/// As of the last event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlStatus {
    /// The node has a place in the fleet.
    pub enrolled: bool,
    /// The generation in force; 0: none.
    pub generation: u64,
    /// What became of the last one received.
    pub outcome: Option<Outcome>,
    /// Why it was not kept.
    pub reason: Option<String>,
    /// When the control plane last answered.
    pub last_answer: Option<Boot>,
    /// It does not answer, or says no.
    pub outage: Option<ControlOutage>,
    /// Something could not be kept on disk.
    pub unsaved: Option<String>,
    /// A change of keys is under way, and how far it is.
    pub key_change: Option<&'static str>,
    /// How the last change of keys ended: with this key, or why not.
    pub key_changed: Option<Result<PublicKey, String>>,
}

/// The control plane does not answer, or says no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlOutage {
    /// Since when.
    pub since: Boot,
    /// What happened last.
    pub reason: String,
}
