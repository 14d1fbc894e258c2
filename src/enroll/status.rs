//! State of the control client, for health and `spoke status`.
use super::wire::{Outcome, ProblemCode};
use spoke_model::condition::Code;
use spoke_model::key::PublicKey;
use spoke_model::time::Boot;

/// As of the last event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlStatus {
    /// The node is enrolled.
    pub enrolled: bool,
    /// The control plane has removed the node.
    pub removed: bool,
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
    /// An operator has disabled the node.
    pub disabled: bool,
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
    /// Its kind.
    pub cause: OutageCause,
}

/// Why the control plane does not serve the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutageCause {
    /// No answer, or one that is an error of the control plane or the network.
    #[default]
    Unreachable,
    /// The node was removed from the fleet.
    Removed,
    /// The enrolment token is not accepted, or there is none.
    TokenRefused,
    /// An operator has yet to approve the node.
    ApprovalPending,
}

impl OutageCause {
    /// The cause that the control plane's `code` names.
    pub const fn of(code: ProblemCode) -> Self {
        match code {
            ProblemCode::Revoked => Self::Removed,
            ProblemCode::BadToken => Self::TokenRefused,
            ProblemCode::Pending => Self::ApprovalPending,
            ProblemCode::BadRequest
            | ProblemCode::BadProof
            | ProblemCode::ClockSkew
            | ProblemCode::Replay
            | ProblemCode::NodeIdTaken
            | ProblemCode::KeyTaken
            | ProblemCode::NotGranted
            | ProblemCode::PoolExhausted
            | ProblemCode::RateLimited
            | ProblemCode::NotFound
            | ProblemCode::TooLarge
            | ProblemCode::Unavailable => Self::Unreachable,
        }
    }

    /// The condition it is.
    pub const fn code(self) -> Code {
        match self {
            Self::Unreachable => Code::ControlAway,
            Self::Removed => Code::Removed,
            Self::TokenRefused => Code::TokenRefused,
            Self::ApprovalPending => Code::ApprovalPending,
        }
    }
}

/// How a change of keys ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyChange {
    /// With this key.
    Changed(PublicKey),
    /// Without a change, for this reason.
    Abandoned(String),
}
