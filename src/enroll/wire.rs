//! JSON messages between devices and the control plane, with their checks.
use serde::{Deserialize, Serialize};
use spoke_model::interface_name::IfName;
use spoke_model::key::PublicKey;
use spoke_model::node_id::NodeId;
use spoke_model::signature::VerifyKey;
use spoke_model::time::Wall;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// `POST`: enrol.
pub const PROVISION: &str = "/api/v1/wireguard/provision";
/// `POST` after each connection to a hub.
pub const REGISTER: &str = "/api/v1/nodes/register";
/// `GET`: the signed state document; long-poll.
pub const STATE: &str = "/api/v1/nodes/self/state";
/// `POST`: health, generation and drift.
pub const REPORT: &str = "/api/v1/nodes/self/report";
/// `POST`: a new WireGuard key, announced first, then put in use.
pub const KEY: &str = "/api/v1/nodes/self/key";

/// In the query of [`PROVISION`] and [`REPORT`], which the signature covers and a control plane without it ignores: the
/// device takes preshared keys from its state documents.
pub const TAKES_PRESHARED: &str = "preshared=1";

/// A request for enrolment; the enrolment token travels as `Authorization: Bearer`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ProvisionRequest {
    /// The wanted name.
    #[cfg_attr(feature = "openapi", schema(value_type = String, pattern = "^[A-Za-z0-9_-]{1,128}$"))]
    pub node_id: NodeId,
    /// Public half of the tunnel's key.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub wireguard_public_key: PublicKey,
    /// Public half of the key that signs requests; the request itself is signed with it.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub identity_public_key: VerifyKey,
    /// Version of the device's software, `x.y.z`.
    pub version: String,
    /// What the device can do.
    pub capabilities: Capabilities,
    /// Free text for operators.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

/// What a device can do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Capabilities {
    /// Processors.
    pub cpu_cores: u32,
    /// Main memory.
    pub memory_mb: u64,
    /// Processor architecture as `uname -m` says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
}

/// A field that is out of range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct BadField {
    /// Path of the field.
    pub field: &'static str,
    /// What it must be.
    pub problem: &'static str,
}

fn bounded(text: &str, max: usize) -> bool {
    text.len() <= max && !text.chars().any(char::is_control)
}

/// Whether `text` is `x.y.z` with whole numbers of at most five digits.
pub fn is_version(text: &str) -> bool {
    let mut parts = 0;
    let fine = text.split('.').all(|p| {
        parts += 1;
        (1..=5).contains(&p.len()) && p.bytes().all(|b| b.is_ascii_digit())
    });
    fine && parts == 3
}

const LOW_ORDER: &str = "must be a key made by a generator, not a point of low order";

impl ProvisionRequest {
    /// Checks what the types cannot.
    pub fn check(&self) -> Result<(), BadField> {
        let bad = |field, problem| Err(BadField { field, problem });
        if self.wireguard_public_key.is_low_order() {
            return bad("wireguard_public_key", LOW_ORDER);
        }
        if !is_version(&self.version) {
            return bad("version", "must be x.y.z with whole numbers");
        }
        if !(1..=4096).contains(&self.capabilities.cpu_cores) {
            return bad("capabilities.cpu_cores", "must be 1 to 4096");
        }
        if !(1..=64 << 20).contains(&self.capabilities.memory_mb) {
            return bad("capabilities.memory_mb", "must be 1 to 67108864");
        }
        if self.capabilities.arch.as_ref().is_some_and(|a| !bounded(a, 32)) {
            return bad("capabilities.arch", "must be at most 32 printable characters");
        }
        if self.metadata.len() > 32 || !self.metadata.iter().all(|(k, v)| bounded(k, 64) && bounded(v, 256)) {
            return bad("metadata", "must be at most 32 keys of 64 printable characters with values of 256");
        }
        Ok(())
    }
}

/// The answer to a [`ProvisionRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProvisionAnswer {
    /// `success`, or `pending` until an operator approves.
    pub status: ProvisionStatus,
    /// The node's configuration; absent while pending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ProvisionConfig>,
    /// For people.
    pub message: String,
}

/// How a [`ProvisionRequest`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum ProvisionStatus {
    /// The device is a node.
    Success,
    /// An operator has to approve first: ask again later.
    Pending,
}

/// What an enrolled device has to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProvisionConfig {
    /// Its name.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub node_id: NodeId,
    /// Its IPv4 address; the IPv6 one if the network has no IPv4 pool.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub assigned_ip: IpAddr,
    /// Its IPv6 address, where the network has both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub assigned_ip6: Option<IpAddr>,
    /// Of the pool `assigned_ip` is from: dotted for IPv4, the prefix length for IPv6.
    pub subnet_mask: String,
    /// The first hub's key; absent for a hub, and while the network has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub hub_public_key: Option<PublicKey>,
    /// Where that hub is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub_endpoint: Option<String>,
    /// Networks behind the hub.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub allowed_ips: Vec<ipnet::IpNet>,
    /// Seconds.
    pub persistent_keepalive: u16,
    /// Resolvers inside the tunnel.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub dns_servers: Vec<IpAddr>,
    /// RFC 3339.
    pub provisioned_at: String,
    /// Kernel name of the interface in the state document.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub interface: IfName,
    /// Keys that sign the state document: pin them.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub signing_keys: Vec<VerifyKey>,
}

/// Reported after each connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RegisterRequest {
    /// The address in use inside the tunnel.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub wireguard_address: IpAddr,
    /// The key in use.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub wireguard_public_key: PublicKey,
    /// The interface in use.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub interface_name: IfName,
    /// The hub in use, `HOST:PORT`.
    pub hub_endpoint: String,
    /// RFC 3339, by the device's clock.
    pub registered_at: String,
}

impl RegisterRequest {
    /// Checks what the types cannot.
    pub fn check(&self) -> Result<(), BadField> {
        if self.hub_endpoint.parse::<spoke_model::address::HostPort>().is_err() {
            return Err(BadField { field: "hub_endpoint", problem: "must be HOST:PORT" });
        }
        match Wall::parse_rfc3339(&self.registered_at) {
            Some(_) => Ok(()),
            None => Err(BadField {
                field: "registered_at",
                problem: "must be an RFC 3339 time such as 2026-01-31T00:00:00Z",
            }),
        }
    }
}

/// The answer to a [`RegisterRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RegisterAnswer {
    /// The node.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub node_id: NodeId,
    /// The generation wanted of it.
    pub generation: u64,
}

/// What became of the wanted state on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// In force and, where it was on trial, confirmed.
    Applied,
    /// In force and still on trial.
    Trial,
    /// Not kept: the previous generation is in force.
    Reverted,
    /// Never put in force: the document itself was not acceptable.
    Refused,
}

impl Outcome {
    /// As in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Trial => "trial",
            Self::Reverted => "reverted",
            Self::Refused => "refused",
        }
    }
}

/// A node's report on itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", schema(as = Report))]
pub struct NodeReport {
    /// The generation in force on the node.
    pub generation: u64,
    /// What became of the last one received.
    pub outcome: Outcome,
    /// Why it was reverted or refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether the node calls itself healthy.
    pub healthy: bool,
    /// Differences repaired or left alone since the last report.
    pub drift: u32,
    /// Version of the software, `x.y.z`.
    pub version: String,
    /// The local health document, or a part of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub health: Option<serde_json::Value>,
}

/// A report's place among those of its node. No clock is part of it: the server's may be set back, and so may the
/// node's.
///
/// It is sent in the query, which the request's signature covers and which a control plane without it ignores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReportOrder {
    /// The run of the program, a random number: a later run follows an earlier one.
    pub run: u64,
    /// Counted up within the run.
    pub number: u64,
}

impl ReportOrder {
    /// [`REPORT`] with this place.
    pub fn path(&self) -> String {
        format!("{REPORT}?run={}&number={}&{TAKES_PRESHARED}", self.run, self.number)
    }

    /// The place of the next report.
    #[must_use]
    pub const fn next(self) -> Self {
        Self { number: self.number.saturating_add(1), ..self }
    }
}

impl NodeReport {
    /// Checks what the types cannot.
    pub fn check(&self) -> Result<(), BadField> {
        if !is_version(&self.version) {
            return Err(BadField { field: "version", problem: "must be x.y.z with whole numbers" });
        }
        if self.reason.as_ref().is_some_and(|r| !bounded(r, 1024)) {
            return Err(BadField { field: "reason", problem: "must be at most 1024 printable characters" });
        }
        if i64::try_from(self.generation).is_err() {
            return Err(BadField { field: "generation", problem: "is not a generation" });
        }
        Ok(())
    }
}

/// A change of the node's WireGuard key, in two steps: the hub learns the new key before the old one goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct KeyRequest {
    /// The new public key.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub wireguard_public_key: PublicKey,
    /// `announce` or `switch`.
    pub step: KeyStep,
}

impl KeyRequest {
    /// Checks what the types cannot.
    pub fn check(&self) -> Result<(), BadField> {
        if self.wireguard_public_key.is_low_order() {
            return Err(BadField { field: "wireguard_public_key", problem: LOW_ORDER });
        }
        Ok(())
    }
}

/// A step of a [`KeyRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum KeyStep {
    /// Hubs shall accept it beside the old one.
    Announce,
    /// The addresses go to it, and the old one goes.
    Switch,
}

/// The answer to a [`KeyRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeyAnswer {
    /// Whether every hub of the node has reported that it accepts the new key.
    pub ready: bool,
}

/// Any answer of the device group that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// What is wrong.
    pub detail: ProblemDetail,
}

/// The content of a [`Problem`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProblemDetail {
    /// For programs: a fixed word.
    pub code: ProblemCode,
    /// For people.
    pub message: String,
    /// With `node_id_taken`: what the name's holder has, without anything secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub existing_config: Option<serde_json::Value>,
    /// With `clock_skew`: the server's signed time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub time: Option<super::request::TimeAnswer>,
    /// With `bad_proof`: the request must prove that the device holds the WireGuard key it names, to this key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub key_verifier: Option<PublicKey>,
    /// With `revoked`: the removal, signed for this request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub removal: Option<super::request::RemovalAnswer>,
}

/// The answer to a report, where there is something to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReportAnswer {
    /// False: an operator has disabled the node, and the hubs do not have it as a peer.
    pub enabled: bool,
}

/// Why a device's request failed, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ProblemCode {
    /// The request is not understood.
    BadRequest,
    /// The enrolment token is unknown, used up, expired or revoked; which of them is not reported.
    BadToken,
    /// The proof is missing or not made by the node it names.
    BadProof,
    /// The proof is the node's, its time is not the server's: see `time`.
    ClockSkew,
    /// The same request was here before.
    Replay,
    /// Another device has this node id.
    NodeIdTaken,
    /// Another node has this key.
    KeyTaken,
    /// The node was removed.
    Revoked,
    /// An operator has yet to approve the node.
    Pending,
    /// The node may not be a peer: the contract does not grant it.
    NotGranted,
    /// No address is free.
    PoolExhausted,
    /// Too many requests.
    RateLimited,
    /// Not here.
    NotFound,
    /// Too large.
    TooLarge,
    /// The server cannot at the moment.
    Unavailable,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> serde_json::Value {
        serde_json::json!({
            "node_id": "edge-1",
            "wireguard_public_key": PublicKey([1; 32]),
            "identity_public_key": VerifyKey([2; 32]),
            "version": "1.2.3",
            "capabilities": {"cpu_cores": 4, "memory_mb": 512},
        })
    }

    fn read(value: serde_json::Value) -> Result<(), String> {
        let request: ProvisionRequest = serde_json::from_value(value).map_err(|e| e.to_string())?;
        request.check().map_err(|e| e.to_string())
    }

    #[test]
    fn every_field_is_checked() {
        assert_eq!(read(request()), Ok(()));
        let with = |path: &str, value: serde_json::Value| {
            let mut r = request();
            *r.pointer_mut(path).unwrap() = value;
            read(r).unwrap_err()
        };
        assert!(with("/node_id", "a b".into()).contains("node id"));
        assert!(with("/wireguard_public_key", "AAAA".into()).contains("WireGuard key"));
        assert!(with("/wireguard_public_key", PublicKey([0; 32]).to_string().into()).contains("low order"));
        assert!(with("/identity_public_key", "AAAA".into()).contains("Ed25519"));
        for version in ["1", "1.2", "1.2.3.4", "1.2.x", "1..3", "v1.2.3", "123456.0.0", ""] {
            assert!(with("/version", version.into()).contains("version"), "{version}");
        }
        assert!(with("/capabilities/cpu_cores", 0.into()).contains("cpu_cores"));
        assert!(with("/capabilities/memory_mb", 0.into()).contains("memory_mb"));
        let mut unknown = request();
        unknown["hostname"] = "x".into();
        assert!(read(unknown).unwrap_err().contains("unknown field"));
        let mut long = request();
        long["metadata"] = serde_json::json!({"k": "v".repeat(257)});
        assert!(read(long).unwrap_err().contains("metadata"));
    }
}
