//! What the uplink says about itself, for health, status and logs.
use super::ladder::Rung;
use serde::Serialize;
use spoke_model::time::Boot;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

/// Transitions kept.
pub const MAX_HISTORY: usize = 32;

/// What the uplink is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Asking the kernel what it has.
    #[default]
    Starting,
    /// Waiting before the next attempt.
    Waiting,
    /// Looking up the hub's name.
    Resolving,
    /// Waiting for a handshake and an answered echo.
    Connecting,
    /// Proven: the hub answers through the tunnel.
    Up,
}

/// Why something happened. Codes are stable; details are for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The process has just started.
    Started,
    /// The kernel already had a configured hub: its tunnel is taken over as it is.
    Adopted,
    /// An attempt begins.
    Attempt,
    /// Handshake and echo are there.
    Established,
    /// The session that was thought lost answers with its own keys.
    Resumed,
    /// The name has no address and never had one.
    Unresolved,
    /// No handshake within the attempt's time.
    NoHandshake,
    /// A handshake, but no echo answered through the tunnel.
    NoEcho,
    /// The echo could not even be sent.
    EchoUnsent,
    /// The interface or the hub's peer is not there.
    InterfaceGone,
    /// Sent, probed, and nothing came back.
    Silent,
    /// The handshake is older than WireGuard allows and no echo is answered.
    HandshakeOld,
    /// A link or an address has changed.
    NetworkChanged,
    /// The kernel received something from the hub by itself.
    Heard,
    /// A better hub has been good for long enough.
    Failback,
    /// The active hub is lost and a better one was already good.
    Failover,
    /// The better hub did not hold: back to the one before.
    Returned,
}

/// One change of state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Transition {
    /// When.
    pub at: Boot,
    /// From this state.
    pub from: State,
    /// To this state.
    pub to: State,
    /// The hub concerned.
    pub hub: String,
    /// Why.
    pub code: Code,
    /// The rung of the recovery ladder that was taken, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rung: Option<Rung>,
}

/// A fault that is still there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UplinkFault {
    /// Since when.
    pub since: Boot,
    /// Which.
    pub code: Code,
    /// For people, with the remedy where there is one.
    pub detail: String,
}

/// The watched better hub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Standby {
    /// Its name.
    pub hub: String,
    /// Good since then; `None`: being tried.
    pub good_since: Option<Boot>,
}

/// The uplink as of its last event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UplinkStatus {
    /// What it is doing.
    pub state: State,
    /// The active hub's name.
    pub hub: Option<String>,
    /// Where it is reached, as published.
    pub endpoint: Option<SocketAddr>,
    /// When the tunnel was last proven up, while it is.
    pub connected_since: Option<Boot>,
    /// The hub answers echoes through the tunnel, as far as the last probe told.
    pub hub_answers: bool,
    /// When the kernel's handshake time was last seen to change, on the boot clock.
    ///
    /// After adoption it is the moment of adoption until the next renewal: then the true age may be up to 180 s more.
    pub handshake_at: Option<Boot>,
    /// Round trip of the last answered echo.
    pub rtt: Option<Duration>,
    /// Bytes received from the active hub, as the kernel counts.
    pub rx: u64,
    /// Bytes sent to it.
    pub tx: u64,
    /// Attempts begun since the process started.
    pub attempts: u64,
    /// Failures in a row: the exponent of the backoff.
    pub failures: u32,
    /// The current wait.
    pub backoff: Option<Duration>,
    /// When the next attempt begins.
    pub next_attempt: Option<Boot>,
    /// Why it is not up, or is up with a doubt.
    pub fault: Option<UplinkFault>,
    /// The last fault, kept after it has passed.
    pub last_fault: Option<UplinkFault>,
    /// How often each rung was taken.
    pub rungs: BTreeMap<Rung, u64>,
    /// Times the tunnel was proven up.
    pub sessions: u64,
    /// The better hub that is being watched.
    pub standby: Option<Standby>,
    /// The last transitions, oldest first.
    pub history: VecDeque<Transition>,
}

impl UplinkStatus {
    /// Age of the handshake at `now`.
    pub fn handshake_age(&self, now: Boot) -> Option<Duration> {
        self.handshake_at.map(|at| now.since(at))
    }
}

impl Code {
    /// What it means and what to do about it.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::Started => "the process has just started",
            Self::Adopted => "the kernel already had a tunnel to this hub: it is taken over as it is",
            Self::Attempt => "trying to connect",
            Self::Established => "a new handshake, and the hub answers through the tunnel",
            Self::Resumed => "the session was not lost: the hub answers with the same keys",
            Self::Unresolved => "the hub's name cannot be looked up: check uplink.hub.endpoint and the DNS servers",
            Self::NoHandshake => {
                "the hub does not complete a handshake: check its endpoint and public key, that UDP reaches it, and that it knows this node's key"
            }
            Self::NoEcho => {
                "the handshake is complete, but the hub's tunnel address does not answer: check uplink.hub.address and that the hub routes and answers ICMP echo"
            }
            Self::EchoUnsent => {
                "no echo can be sent through the tunnel: give the process CAP_NET_RAW, and an address and a route for the hub's tunnel address"
            }
            Self::InterfaceGone => "the interface or the hub's peer on it is not there; the reconciler makes it anew",
            Self::Silent => "packets are sent and probed, and nothing comes back",
            Self::HandshakeOld => "the last handshake is older than 180 s and the hub does not answer",
            Self::NetworkChanged => "a link or an address has changed",
            Self::Heard => "the hub was heard from",
            Self::Failback => "a better hub has been good for long enough",
            Self::Failover => "a better hub was already good when the active one was lost",
            Self::Returned => "the better hub did not carry the tunnel: back to the one before",
        }
    }
}
