//! Requests and responses of the control socket.
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use spoke_config::interface::DriftPolicy;
use spoke_model::interface_name::IfName;
use spoke_model::key::PublicKey;
use spoke_net::state::Route;
use std::net::SocketAddr;

/// Longest request, in bytes.
pub const MAX_REQUEST: usize = 1 << 20;
/// File name of the socket in the runtime directory.
pub const SOCKET: &str = "spoke.sock";

/// A request. `Debug` shows its name alone: it may hold a token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum SocketRequest {
    /// Status of the supervisor: a [`StatusReport`].
    Status,
    /// Peers admitted by NFT and why: a [`spoke_grants::report::Report`].
    Grants,
    /// Verify all grants again.
    GrantsRefresh,
    /// Change to a new WireGuard key, announced to the hub first; the status reports the progress.
    RotateKey,
    /// Enrol again under the same name; the identity of before counts until the control plane has accepted.
    EnrolAgain {
        /// The enrolment token; `None`: that of `control.token`.
        token: Option<String>,
    },
    /// Current drift: a [`spoke_net::drift::DriftReport`].
    Drift,
    /// Repair drift once: a [`spoke_change::request::RepairResult`].
    DriftRepair {
        /// Which drift.
        what: spoke_change::request::RepairRequest,
    },
    /// Generations, newest first.
    History,
    /// Differences between two generations, as lines.
    Diff {
        /// From.
        a: u64,
        /// To.
        b: u64,
    },
    /// Confirm a generation: a [`spoke_change::request::RollbackResult`].
    Confirm {
        /// The generation; `None`: the pending one.
        generation: Option<u64>,
    },
    /// Roll back: a [`spoke_change::request::RollbackResult`].
    Rollback {
        /// The generation; `None`: the previous one.
        to: Option<u64>,
    },
    /// Check the configuration file and take it into force: the differences, as lines.
    Reload,
    /// What differs in the configuration file from what is in force, as lines.
    Edited,
    /// Whether a new system may be committed: a [`Readiness`].
    Readiness,
    /// The audit trail, newest first.
    Audit {
        /// Maximum number of entries.
        limit: usize,
    },
}

impl std::fmt::Debug for SocketRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl SocketRequest {
    /// Name for the log and the audit trail.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Grants => "grants",
            Self::GrantsRefresh => "verify all grants again",
            Self::RotateKey => "change the WireGuard key",
            Self::EnrolAgain { .. } => "enrol again",
            Self::Drift => "drift",
            Self::DriftRepair { .. } => "repair drift",
            Self::History => "history",
            Self::Diff { .. } => "compare generations",
            Self::Confirm { .. } => "confirm",
            Self::Rollback { .. } => "roll back",
            Self::Reload => "reload the configuration",
            Self::Edited => "compare the configuration file",
            Self::Readiness => "readiness",
            Self::Audit { .. } => "audit",
        }
    }

    /// Whether it changes something and needs root.
    pub const fn mutates(&self) -> bool {
        match self {
            Self::Status
            | Self::Grants
            | Self::Drift
            | Self::History
            | Self::Diff { .. }
            | Self::Readiness
            | Self::Edited
            | Self::Audit { .. } => false,
            Self::DriftRepair { .. } | Self::Rollback { .. } | Self::Confirm { .. } | Self::RotateKey => true,
            Self::EnrolAgain { .. } | Self::Reload => true,
            // Costs traffic.
            Self::GrantsRefresh => true,
        }
    }
}

/// A response: `{"ok": …}` or `{"error": "…"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SocketResponse<T> {
    /// The result.
    Ok(T),
    /// The error.
    Error(String),
}

/// What the commit of an update depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// The hub answers through the tunnel, and the control plane is reachable where one is configured.
    pub connected: bool,
    /// As `GET /ready` reports it.
    pub ready: bool,
    /// A reconcile pass was completed since the start, whatever it found.
    #[serde(default)]
    pub passes: bool,
    /// The wall clock is trusted.
    #[serde(default)]
    pub clock_trusted: bool,
}

/// The contents of `spoke status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Version of this shape: raised when a key changes its meaning.
    #[serde(default)]
    pub schema: u32,
    /// The verdict of `GET /health`.
    #[serde(default)]
    pub status: String,
    /// When this was made, RFC 3339.
    #[serde(default)]
    pub time: String,
    /// Seconds since the kernel was observed.
    #[serde(default)]
    pub observed_seconds: f64,
    /// Version of the running supervisor.
    pub version: String,
    /// Seconds since it started.
    pub uptime_seconds: f64,
    /// Name on the network.
    pub node_id: Option<String>,
    /// Completed passes.
    pub passes: u64,
    /// Seconds since the last one.
    pub last_pass_seconds: f64,
    /// Whether the last pass was clean.
    pub clean: bool,
    /// Generation of the desired state.
    pub generation: u64,
    /// Steps applied because the desired state changed.
    pub changes: u64,
    /// Steps applied against drift.
    pub repairs: u64,
    /// Steps the kernel refused.
    pub failures: u64,
    /// Conditions that hold, as `GET /health` has them.
    #[serde(rename = "troubles")]
    pub conditions: Vec<ConditionReport>,
    /// Steps left undone, as text.
    pub left: Vec<String>,
    /// The uplink, where configured.
    pub uplink: Option<serde_json::Value>,
    /// The control plane, where configured.
    #[serde(default)]
    pub control: Option<serde_json::Value>,
    /// Interfaces.
    pub interfaces: Vec<LinkReport>,
    /// The last applied steps, oldest first.
    pub history: Vec<AppliedStepReport>,
}

/// A condition, as one version of the supervisor reports it to a command line of perhaps another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConditionReport {
    /// A [`spoke_model::condition::Code`] as text.
    pub code: String,
    /// Seconds since it began.
    #[serde(default)]
    pub seconds: u64,
    /// For people.
    pub detail: String,
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkReport {
    /// Kernel name.
    pub name: IfName,
    /// Its public key.
    pub public_key: Option<PublicKey>,
    /// UDP port.
    pub listen_port: u16,
    /// Bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Addresses.
    pub addresses: Vec<IpNet>,
    /// Routes of ours.
    pub routes: Vec<RouteReport>,
    /// Drift policy.
    pub policy: DriftPolicy,
    /// Peers.
    pub peers: Vec<PeerReport>,
}

/// One route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteReport {
    /// Destination.
    pub to: IpNet,
    /// Table.
    pub table: u32,
}

impl From<&Route> for RouteReport {
    fn from(r: &Route) -> Self {
        Self { to: r.to, table: r.table }
    }
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerReport {
    /// Identity.
    pub public_key: PublicKey,
    /// Name from the configuration.
    pub name: Option<String>,
    /// Endpoint.
    pub endpoint: Option<SocketAddr>,
    /// Allowed-ips.
    pub allowed_ips: Vec<IpNet>,
    /// Seconds; `None`: none seen.
    pub handshake_age: Option<u64>,
    /// Bytes received.
    pub rx: u64,
    /// Bytes sent.
    pub tx: u64,
    /// Seconds; 0 is off.
    pub keepalive: u16,
}

/// One applied or refused step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedStepReport {
    /// Seconds ago.
    pub seconds_ago: u64,
    /// Wall-clock time, trusted or not, RFC 3339.
    pub time: String,
    /// `change` or `drift`.
    pub cause: String,
    /// The step.
    pub what: String,
    /// The kernel's error, if it refused the step.
    pub error: Option<String>,
}
