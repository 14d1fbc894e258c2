//! What operators see: the JSON shapes of the HTTP API and of `--json`, made from the store's rows.
use crate::registry::node_test::NodeTest;
use crate::selector::Labels;
use crate::store::admission::ChainProgress;
use crate::store::audit::AuditRecord;
use crate::store::node::{NodeState, Overrides};
use crate::store::node_status::{FleetCounts, NodeAccess, NodeRecord, NodeStatus, Registration};
use crate::store::operator_key::{OperatorKey, OperatorRole};
use crate::store::page::Page;
use crate::store::signing_key::KeptKey;
use crate::store::token::Token;
use serde::Serialize;
use spoke_config::node::Role;
use spoke_enroll::wire::{Capabilities, Outcome};
use spoke_grants::policy::VERIFICATION_ERROR;
use spoke_model::address::HostPort;
use spoke_model::key::PublicKey;
use spoke_model::node_id::NodeId;
use spoke_model::signature::VerifyKey;
use spoke_model::time::Wall;
use std::collections::BTreeMap;

/// RFC 3339, to the second.
pub fn rfc3339(ms: u64) -> String {
    Wall(ms / 1000).to_string()
}

/// Conditions shown of one node.
const MAX_CONDITIONS: usize = 16;

/// The details of the conditions in a health document, which its node wrote.
fn conditions(health: &serde_json::Value) -> Vec<String> {
    let reasons = health["reasons"].as_array().into_iter().flatten();
    let detail =
        |r: &serde_json::Value| Some(r["detail"].as_str()?.chars().filter(|c| !c.is_control()).take(256).collect());
    reasons.filter_map(detail).take(MAX_CONDITIONS).collect()
}

/// A page of a list.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Listed<T> {
    /// In the list's order.
    pub items: Vec<T>,
    /// For `cursor` of the next page; null: there is none.
    pub next_cursor: Option<String>,
    /// Entities that the conditions select, on whatever page; 1001: more than 1000.
    pub total_estimate: u64,
}

/// A page of the store, mapped to its JSON shape.
pub fn listed<R, V: From<R>>(page: Page<R>) -> Listed<V> {
    Listed { items: all(page.items), next_cursor: page.next, total_estimate: page.total }
}

/// A node with its last report.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct NodeView {
    /// Its id.
    #[schema(value_type = String)]
    pub id: NodeId,
    /// For people.
    pub label: Option<String>,
    /// By which operators select it.
    pub labels: Labels,
    /// Its network.
    pub network: String,
    /// `node` or `hub`.
    #[schema(value_type = String)]
    pub role: Role,
    /// Its membership.
    pub state: NodeState,
    /// With their pools' prefix length.
    pub addresses: Vec<String>,
    /// Public half of its WireGuard key.
    #[schema(value_type = Option<String>)]
    pub wireguard_public_key: Option<PublicKey>,
    /// Of its identity key, `sha256:` and hex; before it is enrolled, of the key that may take its name.
    pub fingerprint: Option<String>,
    /// Where a hub is reached.
    #[schema(value_type = Option<String>)]
    pub endpoint: Option<HostPort>,
    /// Its own settings.
    #[serde(flatten)]
    pub overrides: Overrides,
    /// Cut off from other nodes even if its hub forwards.
    pub isolated: bool,
    /// A disabled node stays enrolled and is a peer of no hub.
    pub enabled: bool,
    /// Of its desired state.
    pub generation: u64,
    /// In force on the node, by its last report.
    pub observed_generation: Option<u64>,
    /// `applied`, `trial`, `reverted` or `refused`.
    #[schema(value_type = Option<String>)]
    pub outcome: Option<Outcome>,
    /// Why it was reverted or refused.
    pub reason: Option<String>,
    /// By its last report.
    pub healthy: Option<bool>,
    /// What is wrong on the node, by its last report, most severe first; empty if it is healthy.
    pub conditions: Vec<String>,
    /// RFC 3339, of the last report.
    pub last_seen: Option<String>,
    /// Of its software.
    pub version: Option<String>,
    /// State of its image's updates, by its last report; null: it has no slots.
    #[schema(value_type = Option<Object>)]
    pub update: Option<serde_json::Value>,
    /// RFC 3339.
    pub enrolled_at: Option<String>,
    /// Where the contract decides who is a peer: `ACCESS_GRANTED` or the reason of the denial; `VERIFICATION_ERROR` before
    /// the first decision.
    pub access: Option<String>,
    /// The node's NFT.
    pub token_id: Option<String>,
}

impl From<NodeStatus> for NodeView {
    fn from(status: NodeStatus) -> Self {
        let NodeStatus { node, addresses, labels, access, token_id, report } = status;
        let seen = report.as_ref();
        // What a removed node reported last says nothing about it.
        let member = report.as_ref().filter(|_| node.state != NodeState::Removed);
        Self {
            access: match access {
                NodeAccess::NotAsked => None,
                NodeAccess::Undecided => Some(VERIFICATION_ERROR.to_owned()),
                NodeAccess::Decided(reason) => Some(reason.code().to_owned()),
            },
            token_id,
            addresses: addresses.iter().map(ToString::to_string).collect(),
            observed_generation: seen.map(|r| r.generation),
            outcome: member.map(|r| r.outcome),
            reason: member.and_then(|r| r.reason.clone()),
            healthy: member.map(|r| r.healthy),
            conditions: member.and_then(|r| r.health.as_ref()).map(conditions).unwrap_or_default(),
            last_seen: seen.map(|r| rfc3339(r.received_ms)),
            version: seen.map(|r| r.version.clone()).or(node.version),
            update: seen.and_then(|r| r.health.as_ref()?.get("update").cloned()),
            enrolled_at: node.enrolled_ms.map(rfc3339),
            id: node.id,
            label: node.label,
            labels,
            network: node.network,
            role: node.role,
            state: node.state,
            wireguard_public_key: node.wireguard_key,
            fingerprint: node.identity_key.map(|k| k.fingerprint()).or(node.fingerprint),
            endpoint: node.endpoint,
            overrides: node.overrides,
            isolated: node.isolated,
            enabled: node.enabled,
            generation: node.generation,
        }
    }
}

/// Everything stored about one node.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct NodeDetail {
    /// As in a list.
    #[serde(flatten)]
    pub view: NodeView,
    /// Its hardware, as sent at its enrolment.
    pub capabilities: Option<Capabilities>,
    /// Its metadata, as sent at its enrolment.
    pub metadata: BTreeMap<String, String>,
    /// Differences it repaired or left alone, by its last report.
    pub drift: Option<u64>,
    /// Its health document, by its last report.
    #[schema(value_type = Option<Object>)]
    pub health: Option<serde_json::Value>,
    /// Its last registration.
    pub registration: Option<RegistrationView>,
}

impl From<NodeRecord> for NodeDetail {
    fn from(record: NodeRecord) -> Self {
        Self {
            drift: record.status.report.as_ref().map(|r| r.drift),
            health: record.status.report.as_ref().and_then(|r| r.health.clone()),
            view: record.status.into(),
            capabilities: record.capabilities,
            metadata: record.metadata,
            registration: record.registration.map(Into::into),
        }
    }
}

/// A node's last registration, as it sent it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Registration)]
pub struct RegistrationView {
    /// Its address inside the tunnel.
    pub wireguard_address: String,
    /// The key in use.
    pub wireguard_public_key: String,
    /// The interface in use.
    pub interface_name: String,
    /// The hub in use.
    pub hub_endpoint: String,
    /// RFC 3339, by the node's clock.
    pub registered_at: String,
    /// RFC 3339, by the server's clock.
    pub received_at: String,
}

impl From<Registration> for RegistrationView {
    fn from(r: Registration) -> Self {
        Self {
            received_at: rfc3339(r.received_ms),
            wireguard_address: r.wireguard_address,
            wireguard_public_key: r.wireguard_public_key,
            interface_name: r.interface_name,
            hub_endpoint: r.hub_endpoint,
            registered_at: r.registered_at,
        }
    }
}

/// The result of a node's test.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[schema(as = NodeTest)]
pub struct NodeTestView {
    /// The node.
    #[schema(value_type = String)]
    pub node_id: NodeId,
    /// Whether it is a member of the fleet; only members are probed.
    pub enrolled: bool,
    /// Whether it polled again when it was probed.
    pub reachable: bool,
    /// How long that took, in milliseconds; a node waits up to a second before each poll.
    pub took_ms: Option<u64>,
    /// By its last report.
    pub healthy: Option<bool>,
    /// Of its desired state.
    pub generation: u64,
    /// In force on the node, by its last report.
    pub observed_generation: Option<u64>,
    /// RFC 3339, of the last report.
    pub last_seen: Option<String>,
    /// The result in one sentence.
    pub message: String,
}

impl From<NodeTest> for NodeTestView {
    fn from(test: NodeTest) -> Self {
        let (enrolled, healthy, took) = (test.is_enrolled(), test.healthy(), test.took);
        let NodeStatus { node, report, .. } = test.status;
        let (id, last_seen) = (&node.id, report.as_ref().map(|r| rfc3339(r.received_ms)));
        let last = last_seen.as_deref().map_or("it never reported".to_owned(), |at| format!("last report {at}"));
        let message = match (took, healthy) {
            _ if !enrolled => format!("{id} is not enrolled: it is {}", node.state.as_str()),
            (None, _) => format!("{id} did not come back within {} s; {last}", NodeTest::timeout().as_secs()),
            (Some(took), Some(false)) => {
                format!("{id} came back in {} ms and is not healthy; {last}", took.as_millis())
            }
            (Some(took), _) => format!("{id} came back in {} ms; {last}", took.as_millis()),
        };
        Self {
            enrolled,
            reachable: took.is_some(),
            took_ms: took.map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX)),
            healthy,
            generation: node.generation,
            observed_generation: report.map(|r| r.generation),
            last_seen,
            node_id: node.id,
            message,
        }
    }
}

/// An enrolment token without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = Token)]
pub struct TokenView {
    /// The part of it that is not secret.
    pub id: String,
    /// The network its nodes join.
    pub network: String,
    /// The only node it enrols, if it is bound to one.
    #[schema(value_type = Option<String>)]
    pub node: Option<NodeId>,
    /// For people.
    pub note: Option<String>,
    /// How often it was used.
    pub uses: u64,
    /// How often it may be used.
    pub max_uses: u64,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339; null: never.
    pub expires_at: Option<String>,
    /// RFC 3339; null: not revoked.
    pub revoked_at: Option<String>,
}

impl From<Token> for TokenView {
    fn from(token: Token) -> Self {
        Self {
            id: token.id,
            network: token.network,
            node: token.node,
            note: token.note,
            uses: token.uses,
            max_uses: token.max_uses,
            created_at: rfc3339(token.created_ms),
            expires_at: token.expires_ms.map(rfc3339),
            revoked_at: token.revoked_ms.map(rfc3339),
        }
    }
}

/// A key of an operator without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = OperatorKey)]
pub struct OperatorKeyView {
    /// The part of it that is not secret.
    pub id: String,
    /// Whose it is.
    pub name: String,
    /// What it may do.
    pub role: OperatorRole,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339; null: never.
    pub expires_at: Option<String>,
    /// RFC 3339; null: not revoked.
    pub revoked_at: Option<String>,
    /// RFC 3339, to the minute; null: not used.
    pub last_used_at: Option<String>,
}

impl From<OperatorKey> for OperatorKeyView {
    fn from(key: OperatorKey) -> Self {
        Self {
            id: key.id,
            name: key.name,
            role: key.role,
            created_at: rfc3339(key.created_ms),
            expires_at: key.expires_ms.map(rfc3339),
            revoked_at: key.revoked_ms.map(rfc3339),
            last_used_at: key.used_ms.map(rfc3339),
        }
    }
}

/// A key that signs state documents.
#[derive(Clone, Debug, Serialize)]
pub struct SigningKeyView {
    /// Its public half.
    pub key: VerifyKey,
    /// `active` or `retired`.
    pub state: &'static str,
    /// RFC 3339.
    pub created_at: String,
    /// Active nodes that have kept a state with it: of the newest key exactly, of an older one at least. Null: retired.
    pub kept_by: Option<u64>,
    /// Whether it is the newest active key.
    pub newest: bool,
    /// Active nodes.
    pub nodes: u64,
}

impl From<KeptKey> for SigningKeyView {
    fn from(kept: KeptKey) -> Self {
        Self {
            key: kept.key.public,
            state: if kept.key.active { "active" } else { "retired" },
            created_at: rfc3339(kept.key.created_ms),
            kept_by: kept.kept_by,
            newest: kept.newest,
            nodes: kept.nodes,
        }
    }
}

/// A record of the audit trail.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[schema(as = Record)]
pub struct AuditView {
    /// Ascending, with gaps.
    pub id: u64,
    /// RFC 3339.
    pub timestamp: String,
    /// The verb.
    pub action: String,
    /// `node`, `network`, `token`, `hub`, `signing_key`, `address`.
    pub entity_type: String,
    /// Which one.
    pub entity_id: String,
    /// Never a secret.
    #[schema(value_type = Object)]
    pub details: serde_json::Value,
    /// `operator:NAME`, `node:ID` or `system`.
    pub user: String,
}

impl From<AuditRecord> for AuditView {
    fn from(record: AuditRecord) -> Self {
        Self {
            id: record.id,
            timestamp: rfc3339(record.at_ms),
            action: record.action,
            entity_type: record.entity_type,
            entity_id: record.entity_id,
            details: record.details,
            user: record.actor,
        }
    }
}

/// How far the access contract's events have been read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct ChainView {
    /// The access contract.
    pub contract: String,
    /// The chain it is on.
    pub chain_id: u64,
    /// The control plane that reads the chain.
    pub follower: String,
    /// RFC 3339: when that one last reported.
    pub looked_at: String,
    /// RFC 3339: when the chain last answered; null: not since that one started.
    pub heard_at: Option<String>,
    /// Events are known up to this block.
    pub height: Option<u64>,
    /// Why the chain does not answer, or what else is wrong.
    pub trouble: Option<String>,
}

impl From<ChainProgress> for ChainView {
    fn from(progress: ChainProgress) -> Self {
        Self {
            contract: progress.contract,
            chain_id: progress.chain_id,
            follower: progress.follower,
            looked_at: rfc3339(progress.updated_ms),
            heard_at: progress.answered_ms.map(rfc3339),
            height: progress.height,
            trouble: progress.trouble,
        }
    }
}

/// The fleet in figures.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Overview {
    /// Version of the control plane.
    pub version: String,
    /// Nodes and hubs by state.
    pub nodes: BTreeMap<String, u64>,
    /// Nodes with a long-poll at this process.
    pub connected: usize,
    /// Nonces of requests that this process remembers.
    pub nonces: usize,
    /// Nodes whose last report is younger than twenty minutes.
    pub reporting: u64,
    /// Free addresses of each network's first pool.
    pub free_addresses: BTreeMap<String, u64>,
    /// How far the access contract's events have been read; null: no control plane ever did.
    pub chain: Option<ChainView>,
}

impl Overview {
    /// The figures, with the long-polls and the nonces of this process.
    pub fn new(counts: FleetCounts, connected: usize, nonces: usize) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            nodes: counts.nodes,
            connected,
            nonces,
            reporting: counts.reporting,
            free_addresses: counts.free_addresses,
            chain: counts.chain.map(Into::into),
        }
    }
}

/// Maps rows to their JSON shapes.
pub fn all<R, V: From<R>>(rows: Vec<R>) -> Vec<V> {
    rows.into_iter().map(V::from).collect()
}
