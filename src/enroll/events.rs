//! Events and actions of the control client: the vocabulary of [`super::machine`] and [`super::rotation`].
use super::confirm::{Before, RejectedState};
use super::document::{Envelope, Refusal, StateDocument, WantedHub};
use super::wire::{KeyStep, Outcome};
use crate::status::OutageCause;
use spoke_model::key::PublicKey;
use spoke_model::time::Boot;
use spoke_update::notice::Notice;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// The times of `[control]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlTimes {
    /// Period of reports without a change.
    pub report_every: Duration,
    /// How long a new state has to reach the hub.
    pub confirm_within: Duration,
    /// Upper bound of the random wait after a lost connection.
    pub spread: Duration,
}

/// A verified state document with the envelope it was received in.
#[derive(Clone, Debug)]
pub struct SignedState {
    /// As received, for the disk.
    pub envelope: Envelope,
    /// Its verified content.
    pub document: StateDocument,
}

impl SignedState {
    /// Its hubs, best first.
    pub fn hubs(&self) -> &[WantedHub] {
        self.document.interfaces.first().map_or(&[], |i| &i.hubs)
    }
}

/// The node as its other tasks report it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeObservation {
    /// The uplink has proven its hub.
    pub up: bool,
    /// Since when.
    pub connected_since: Option<Boot>,
    /// Name of the hub in use.
    pub hub: Option<String>,
    /// A pass that began with the state published last left nothing of its interface undone and, where the state has
    /// hubs, the uplink's choice is one of them and in the kernel.
    pub applied: bool,
    /// Why it could not be applied.
    pub problem: Option<String>,
    /// Whole rounds of the recovery ladder that failed, since the hub session began; 0 again after a new session.
    pub rounds: u64,
    /// Our handshakes were stamped with a time that has not come yet: the hub takes ours of today for replays.
    pub stamps_ahead: bool,
    /// Differences found since the process started.
    pub drift: u64,
    /// The node reports itself as healthy.
    pub healthy: bool,
    /// State of image updates.
    pub update: Option<Notice>,
    /// The public key the kernel has.
    pub key: Option<PublicKey>,
}

/// How a long-poll ended.
#[derive(Debug)]
pub enum PollResult {
    /// Nothing new.
    Nothing,
    /// A document for this node, signed and valid.
    State(Box<SignedState>),
    /// The clock was corrected: poll again.
    Again,
    /// A document that cannot be accepted.
    Refused(Refusal),
    /// The node was removed, by an answer signed for this poll.
    Removed,
    /// No answer, or an error status.
    Failed(String, OutageCause),
}

/// How sending a [`Message`] ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendResult {
    /// Accepted.
    Taken,
    /// A key request was accepted; whether every hub accepts the key.
    Ready(bool),
    /// The clock was corrected: send again.
    Again,
    /// Rejected with an error status.
    Refused(String),
    /// Certainly not received.
    Unsent(String),
    /// Possibly received.
    Failed(String),
}

/// Why a file could not be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotWritten(pub String);

/// Input of the machine.
#[derive(Debug)]
pub enum Event {
    /// The deadline has passed.
    Tick,
    /// The node's current state.
    Observed(Box<NodeObservation>),
    /// An echo reply.
    EchoReply {
        /// Its source.
        from: IpAddr,
        /// Its sequence number.
        seq: u16,
    },
    /// The long-poll has ended.
    PollEnded(PollResult),
    /// The other request has ended.
    SendEnded(SendResult),
    /// Change to this key, which is on disk beside the old one.
    Rotate(PublicKey),
    /// [`Action::RecordSwitch`] was performed.
    SwitchRecorded(Result<(), NotWritten>),
}

/// A message to the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// One step of a change of keys.
    Key(KeyStep, PublicKey),
    /// The node has connected to this hub.
    Register {
        /// The hub's `HOST:PORT`.
        hub_endpoint: String,
    },
    /// The node's state.
    Report {
        /// In force.
        generation: u64,
        /// Outcome of the last one received.
        outcome: Outcome,
        /// Why it is not in force.
        reason: Option<String>,
        /// Differences found since the last report.
        drift: u32,
    },
}

/// Which of the two keys of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySlot {
    /// The key in use before the change.
    Old,
    /// The key to change to.
    New,
}

/// Output of the machine.
#[derive(Clone, Debug)]
pub enum Action {
    /// Ask for a state newer than this generation.
    Poll {
        /// The newest known.
        after: u64,
        /// Whether the server may hold the request open until there is a newer one; not before the first answer and
        /// after an outage.
        hold: bool,
    },
    /// Send to the control plane; one message at a time.
    Send(Message),
    /// Put the state in force.
    Publish(Arc<SignedState>),
    /// Store that this generation is on trial, before its first step.
    RecordTrial {
        /// The generation.
        generation: u64,
        /// The hub under the state before.
        before: Before,
        /// How often it was begun.
        attempts: u32,
        /// The state before is unproved as well.
        unproved_before: bool,
    },
    /// The hub has answered through it: store it, and the signing keys it names, then delete the record of the trial.
    Keep(Arc<SignedState>),
    /// Store it, unproved, since there is no better one; the record of the trial stays.
    Adopt(Arc<SignedState>),
    /// Delete the record of the trial.
    ForgetTrial,
    /// Store that it must not be tried again.
    Reject(RejectedState),
    /// Store that the rejection stands.
    ConfirmRejection(RejectedState),
    /// Delete what [`Action::Reject`] stored.
    LiftRejection,
    /// Send an echo through the tunnel.
    Echo {
        /// The hub's tunnel address.
        to: IpAddr,
        /// Sequence number.
        seq: u16,
    },
    /// Store that the hub may hold either key from here on, then report [`Event::SwitchRecorded`].
    RecordSwitch,
    /// Make a new key, then send [`Event::Rotate`]: the hub refuses the handshakes of this one.
    RenewKey,
    /// Put a key into the kernel.
    UseKey(KeySlot),
    /// Replace the old key on disk with the new one.
    FinishKey,
    /// Delete the new key; the reason is for operators.
    AbandonKey(String),
}
