//! Status of the uplink, for health, `spoke status` and logs.
use super::ladder::Rung;
use super::path::Path;
use serde::Serialize;
use spoke_model::time::Boot;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

/// Transitions kept.
pub const MAX_HISTORY: usize = 32;

/// State of the session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Reading the kernel's state.
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

/// Reason of a transition or fault. The serialised names are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The process has just started.
    Started,
    /// The kernel already had a peer of a configured hub: adopted unchanged.
    Adopted,
    /// An attempt begins.
    Attempt,
    /// Handshake and echo are proven.
    Established,
    /// A session considered lost answers with the same keys.
    Resumed,
    /// No address of the hub's name is known.
    Unresolved,
    /// No handshake within `attempt_timeout`.
    NoHandshake,
    /// A handshake, but no echo reply through the tunnel.
    NoEcho,
    /// An echo was answered, but not by the hub's peer.
    EchoElsewhere,
    /// The echo could not be sent.
    EchoUnsent,
    /// No network interface has a carrier.
    NoCarrier,
    /// No network interface has an address of the endpoint's family.
    NoAddress,
    /// There is no route to the hub's endpoint.
    NoRoute,
    /// The interface or the hub's peer does not exist.
    InterfaceGone,
    /// No reply to data and probes.
    Silent,
    /// The handshake is older than `REJECT_AFTER_TIME` and no echo is answered.
    HandshakeOld,
    /// The carrier, address or route of the uplink has changed.
    NetworkChanged,
    /// A packet from the hub arrived while waiting.
    Heard,
    /// A better hub has been good for long enough.
    Failback,
    /// The active hub is lost and a better one was already good.
    Failover,
    /// The better hub failed: back to the previous one.
    Returned,
}

/// One change of state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Transition {
    /// When.
    pub at: Boot,
    /// Previous state.
    pub from: State,
    /// New state.
    pub to: State,
    /// The hub concerned.
    pub hub: String,
    /// Reason.
    pub code: Code,
    /// The rung that was taken, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rung: Option<Rung>,
}

/// A present or past fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UplinkFault {
    /// Since when.
    pub since: Boot,
    /// Reason.
    pub code: Code,
    /// For people, with the remedy.
    pub detail: String,
}

/// The watched better hub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Standby {
    /// Its name.
    pub hub: String,
    /// Since when it is good; `None`: being tried.
    pub good_since: Option<Boot>,
}

/// Status of the uplink after its last event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UplinkStatus {
    /// State.
    pub state: State,
    /// The active hub's name.
    pub hub: Option<String>,
    /// Its published endpoint.
    pub endpoint: Option<SocketAddr>,
    /// Since when the tunnel is up; `None` while it is not.
    pub connected_since: Option<Boot>,
    /// The hub answers echoes through the tunnel, by the last probe.
    pub hub_answers: bool,
    /// When the kernel's handshake time was last seen to change, on the boot clock.
    ///
    /// After adoption the moment of adoption, until the next renewal: the true age may be up to 180 s more.
    pub handshake_at: Option<Boot>,
    /// The last look at the way to the hub outside of the tunnel.
    #[serde(skip)]
    pub path: Option<Path>,
    /// Round trip of the last answered echo.
    pub rtt: Option<Duration>,
    /// Bytes received from the active hub, by the kernel's counter.
    pub rx: u64,
    /// Bytes sent to it.
    pub tx: u64,
    /// Attempts begun since the process started.
    pub attempts: u64,
    /// Consecutive failures: the exponent of the backoff.
    pub failures: u32,
    /// The current wait.
    pub backoff: Option<Duration>,
    /// When the next attempt begins.
    pub next_attempt: Option<Boot>,
    /// Why it is not up, or what is wrong although it is.
    pub fault: Option<UplinkFault>,
    /// The last fault, kept after it ended.
    pub last_fault: Option<UplinkFault>,
    /// How often each rung was taken.
    pub rungs: BTreeMap<Rung, u64>,
    /// Times the tunnel was proven up.
    pub sessions: u64,
    /// Times it was proven up to another hub than the one before.
    pub failovers: u64,
    /// Echo requests to the active hub.
    pub echo_requests: u64,
    /// Their replies, from the hub's address.
    pub echo_replies: u64,
    /// The better hub being watched.
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
    /// Meaning and remedy.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::Started => "the process has just started",
            Self::Adopted => "the kernel already had a tunnel to this hub: adopted unchanged",
            Self::Attempt => "trying to connect",
            Self::Established => "a new handshake, and the hub answers through the tunnel",
            Self::Resumed => "the hub answers with the keys of the previous session",
            Self::Unresolved => "the hub's name cannot be looked up: check uplink.hub.endpoint and the DNS servers",
            Self::NoHandshake => {
                "the hub does not complete a handshake: check its endpoint and public key, that UDP reaches it, and that it knows this node's key"
            }
            Self::NoEcho => {
                "the hub's WireGuard responds, but its tunnel address does not answer echo: check uplink.hub.address and that the hub routes and answers ICMP echo"
            }
            Self::EchoElsewhere => {
                "an echo to the hub's tunnel address is answered, but not by the hub: uplink.hub.address is an address of this machine or of another peer"
            }
            Self::EchoUnsent => {
                "no echo can be sent through the tunnel: give the process CAP_NET_RAW, and an address and a route for the hub's tunnel address, which must not be an address of this machine"
            }
            Self::NoCarrier => {
                "no network interface has a carrier: check the cable, the Wi-Fi or the modem (ip link); the hub was not reached"
            }
            Self::NoAddress => {
                "no network interface has an address of the family of the hub's endpoint: check DHCP or the static address (ip addr); the hub was not reached"
            }
            Self::NoRoute => {
                "there is no route to the hub's endpoint: check the default route (ip route); the hub was not reached"
            }
            Self::InterfaceGone => "the interface or the hub's peer does not exist; the reconciler recreates it",
            Self::Silent => "the hub does not reply to packets or probes",
            Self::HandshakeOld => "the last handshake is older than 180 s and the hub does not answer",
            Self::NetworkChanged => "the carrier, address or route of the uplink has changed",
            Self::Heard => "a packet arrived from the hub",
            Self::Failback => "a better hub has been good for long enough",
            Self::Failover => "a better hub was already good when the active one was lost",
            Self::Returned => "the better hub failed: back to the previous one",
        }
    }
}
