//! What happens to the follower's machine, and what it wants done: the vocabulary of [`super::machine`].
use super::document::{Envelope, Refusal, StateDocument, WantedHub};
use super::identity::RejectedState;
use super::rotation::KeySlot;
use super::wire::{KeyStep, Outcome};
use spoke_model::key::PublicKey;
use spoke_model::time::Boot;
use spoke_update::notice::Notice;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// The times of `[control]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlTimes {
    /// Between reports without a reason.
    pub report_every: Duration,
    /// How long a new state has to reach the hub.
    pub confirm_within: Duration,
    /// After a lost connection, a random wait up to this.
    pub spread: Duration,
}

/// A state as it came, and what it says.
#[derive(Clone, Debug)]
pub struct SignedState {
    /// As it came.
    pub envelope: Envelope,
    /// What it says.
    pub document: StateDocument,
}

impl SignedState {
    /// Its hubs, best first.
    pub fn hubs(&self) -> &[WantedHub] {
        self.document.interfaces.first().map_or(&[], |i| &i.hubs)
    }
}

/// What the device sees of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeObservation {
    /// The uplink has proven its hub.
    pub up: bool,
    /// Since when.
    pub connected_since: Option<Boot>,
    /// The hub in use.
    pub hub: Option<String>,
    /// A pass that began with the state published last left nothing of its interface undone and, where the state has
    /// hubs, the uplink's choice is one of them and in the kernel.
    pub applied: bool,
    /// Why it was not applied.
    pub trouble: Option<String>,
    /// Differences found since the process started.
    pub drift: u64,
    /// The node calls itself healthy.
    pub healthy: bool,
    /// How updates of the image stand.
    pub update: Option<Notice>,
    /// The public key the kernel has.
    pub key: Option<PublicKey>,
}

/// What a long-poll brought.
#[derive(Debug)]
pub enum PollResult {
    /// Nothing new.
    Nothing,
    /// A document that is ours, signed and valid.
    State(Box<SignedState>),
    /// The clock was put right: ask again.
    Again,
    /// A document that is not to be accepted.
    Refused(Refusal),
    /// No answer, or one that says no.
    Failed(String),
}

/// What became of a [`Message`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendResult {
    /// Taken.
    Taken,
    /// Of a key: whether every hub knows it.
    Ready(bool),
    /// The clock was put right: ask again.
    Again,
    /// Answered with no.
    Refused(String),
    /// Certainly not received.
    Unsent(String),
    /// Nobody knows.
    Failed(String),
}

/// What happens to the machine.
#[derive(Debug)]
pub enum Event {
    /// The deadline has come.
    Tick,
    /// The device looks different.
    Observed(Box<NodeObservation>),
    /// An echo was answered.
    Echoed {
        /// Its source.
        from: IpAddr,
        /// Its sequence number.
        seq: u16,
    },
    /// The long-poll has ended.
    PollEnded(PollResult),
    /// The other request has ended.
    SendEnded(SendResult),
    /// The operator wants a new key, which is made and kept beside the old one.
    Rotate(PublicKey),
    /// [`Action::Remember`] is done, or could not be.
    Remembered(Result<(), String>),
}

/// Something to tell the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// One step of a change of keys.
    Key(KeyStep, PublicKey),
    /// The node has connected to this hub.
    Register {
        /// Where the hub is.
        hub_endpoint: String,
    },
    /// How the node is.
    Report {
        /// In force.
        generation: u64,
        /// What became of the last one received.
        outcome: Outcome,
        /// Why.
        reason: Option<String>,
        /// Differences found since the last report.
        drift: u32,
    },
}

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Action {
    /// Ask for a state beyond this generation.
    Poll {
        /// The newest known.
        after: u64,
        /// Whether the question may stay open until there is news. Not heard yet, or lost: an answer is wanted now.
        hold: bool,
    },
    /// Tell the control plane; one at a time.
    Send(Message),
    /// Have the state applied.
    Publish(Arc<SignedState>),
    /// Keep it on disk, and the keys it names.
    Keep(Arc<SignedState>),
    /// Keep on disk that it is not to be tried again.
    Reject(RejectedState),
    /// Send an echo through the tunnel.
    Echo {
        /// A hub.
        to: IpAddr,
        /// Its number.
        seq: u16,
    },
    /// Keep on disk that the hub may hold either key from now on, and say when that is done.
    Remember,
    /// Put a key into the kernel.
    Use(KeySlot),
    /// The new key replaces the old one on disk.
    FinishKey,
    /// The new key is forgotten.
    AbandonKey(String),
}
