//! Nodes: identity, keys, state and overrides.
use super::error::StoreError;
use super::row::{Row, Value};
use super::sql::Tx;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use spoke_config::node::Role;
use spoke_enroll::wire::ProvisionRequest;
use spoke_model::address::HostPort;
use spoke_model::key::PublicKey;
use spoke_model::node_id::NodeId;
use spoke_model::signature::VerifyKey;
use std::net::IpAddr;

/// The state of a node's membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Announced by an operator, not yet enrolled.
    Expected,
    /// Enrolled, waiting for approval.
    Pending,
    /// Member of the fleet.
    Active,
    /// Removed from the fleet; its keys are refused.
    Removed,
}

impl NodeState {
    /// As stored and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expected => "expected",
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Removed => "removed",
        }
    }
}

/// Not a node state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a node state; write expected, pending, active or removed")]
pub struct BadNodeState;

impl std::str::FromStr for NodeState {
    type Err = BadNodeState;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [Self::Expected, Self::Pending, Self::Active, Self::Removed];
        all.into_iter().find(|s| s.as_str() == text).ok_or(BadNodeState)
    }
}

/// Settings of one node; null inherits, 0 is a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Overrides {
    /// UDP port.
    pub override_listen_port: Option<u16>,
    /// Bytes.
    pub override_mtu: Option<u32>,
    /// Seconds.
    pub override_keepalive: Option<u16>,
    /// Resolvers.
    #[schema(value_type = Option<Vec<String>>)]
    pub override_dns: Option<Vec<IpAddr>>,
    /// Networks behind its hub; the hub's own addresses are always included.
    #[schema(value_type = Option<Vec<String>>)]
    pub override_endpoint_allowed_ip: Option<Vec<IpNet>>,
}

/// One of the overrides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum, utoipa::ToSchema)]
pub enum OverrideName {
    /// UDP port.
    #[serde(rename = "override_listen_port")]
    ListenPort,
    /// Bytes.
    #[serde(rename = "override_mtu")]
    Mtu,
    /// Seconds.
    #[serde(rename = "override_keepalive")]
    Keepalive,
    /// Resolvers.
    #[serde(rename = "override_dns")]
    Dns,
    /// Networks behind its hub.
    #[serde(rename = "override_endpoint_allowed_ip")]
    EndpointAllowedIp,
}

impl Overrides {
    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether `name` is set.
    pub const fn has(&self, name: OverrideName) -> bool {
        match name {
            OverrideName::ListenPort => self.override_listen_port.is_some(),
            OverrideName::Mtu => self.override_mtu.is_some(),
            OverrideName::Keepalive => self.override_keepalive.is_some(),
            OverrideName::Dns => self.override_dns.is_some(),
            OverrideName::EndpointAllowedIp => self.override_endpoint_allowed_ip.is_some(),
        }
    }

    /// These, and of `others` those that are not set here.
    #[must_use]
    pub fn over(self, others: Self) -> Self {
        Self {
            override_listen_port: self.override_listen_port.or(others.override_listen_port),
            override_mtu: self.override_mtu.or(others.override_mtu),
            override_keepalive: self.override_keepalive.or(others.override_keepalive),
            override_dns: self.override_dns.or(others.override_dns),
            override_endpoint_allowed_ip: self.override_endpoint_allowed_ip.or(others.override_endpoint_allowed_ip),
        }
    }

    /// Removes `name`.
    pub fn unset(&mut self, name: OverrideName) {
        match name {
            OverrideName::ListenPort => self.override_listen_port = None,
            OverrideName::Mtu => self.override_mtu = None,
            OverrideName::Keepalive => self.override_keepalive = None,
            OverrideName::Dns => self.override_dns = None,
            OverrideName::EndpointAllowedIp => self.override_endpoint_allowed_ip = None,
        }
    }
}

/// A node or hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub id: NodeId,
    /// Its network.
    pub network: String,
    /// Node or hub.
    pub role: Role,
    /// Its membership.
    pub state: NodeState,
    /// For people.
    pub label: Option<String>,
    /// Public half of its tunnel's key.
    pub wireguard_key: Option<PublicKey>,
    /// The key it has announced for its rotation.
    pub next_key: Option<PublicKey>,
    /// The generations its hubs, and itself where it gets preshared keys, must report before it may switch to `next_key`.
    pub next_key_hubs: Vec<(NodeId, u64)>,
    /// Public half of the key that signs its requests.
    pub identity_key: Option<VerifyKey>,
    /// Of the identity key that may take the announced name with any token of its network; `None` once it is enrolled.
    pub fingerprint: Option<String>,
    /// Where a hub is reached.
    pub endpoint: Option<HostPort>,
    /// Its own settings.
    pub overrides: Overrides,
    /// Cut off from other nodes even if its hub forwards.
    pub isolated: bool,
    /// A disabled node stays enrolled and is a peer of no hub.
    pub enabled: bool,
    /// Version of its software.
    pub version: Option<String>,
    /// Of its desired state.
    pub generation: u64,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// Milliseconds since 1970.
    pub enrolled_ms: Option<u64>,
}

const fn role_text(role: Role) -> &'static str {
    match role {
        Role::Node => "node",
        Role::Hub => "hub",
    }
}

impl Node {
    /// A node announced by an operator.
    pub fn expected(id: NodeId, network: &str, role: Role, now_ms: i64) -> Self {
        Self {
            id,
            network: network.to_owned(),
            role,
            state: NodeState::Expected,
            label: None,
            wireguard_key: None,
            next_key: None,
            next_key_hubs: Vec::new(),
            identity_key: None,
            fingerprint: None,
            endpoint: None,
            overrides: Overrides::default(),
            isolated: false,
            enabled: true,
            version: None,
            generation: 1,
            created_ms: u64::try_from(now_ms).unwrap_or(0),
            enrolled_ms: None,
        }
    }

    /// The UDP port that a hub listens on; `None`: the node chooses.
    pub fn hub_port(&self) -> Option<u16> {
        self.overrides.override_listen_port.or_else(|| self.endpoint.as_ref().map(|e| e.port))
    }

    pub(super) fn read(row: &Row) -> Result<Self, StoreError> {
        let narrow16 = |column| -> Result<Option<u16>, StoreError> {
            row.opt_int(column)?.map(|n| u16::try_from(n).map_err(|_| StoreError::Unreadable(column))).transpose()
        };
        let mtu = row.opt_int("mtu")?.map(|n| u32::try_from(n).map_err(|_| StoreError::Unreadable("mtu")));
        let dns = row.opt_text("dns")?.map(|t| serde_json::from_str(&t).map_err(|_| StoreError::Unreadable("dns")));
        let nets = row.opt_text("endpoint_allowed_ip")?;
        let nets = nets.map(|t| serde_json::from_str(&t).map_err(|_| StoreError::Unreadable("endpoint_allowed_ip")));
        let hubs = row.opt_text("next_key_hubs")?;
        Ok(Self {
            id: row.parsed("id")?,
            network: row.text("network")?,
            role: row.parsed("role")?,
            state: row.parsed("state")?,
            label: row.opt_text("label")?,
            wireguard_key: row.opt_parsed("wireguard_key")?,
            next_key: row.opt_parsed("next_key")?,
            next_key_hubs: hubs.map_or_else(
                || Ok(Vec::new()),
                |t| serde_json::from_str(&t).map_err(|_| StoreError::Unreadable("next_key_hubs")),
            )?,
            identity_key: row.opt_parsed("identity_key")?,
            fingerprint: row.opt_text("fingerprint")?,
            endpoint: row.opt_parsed("endpoint")?,
            overrides: Overrides {
                override_listen_port: narrow16("listen_port")?,
                override_mtu: mtu.transpose()?,
                override_keepalive: narrow16("keepalive")?,
                override_dns: dns.transpose()?,
                override_endpoint_allowed_ip: nets.transpose()?,
            },
            isolated: row.flag("isolated")?,
            enabled: row.flag("enabled")?,
            version: row.opt_text("version")?,
            generation: row.count("generation")?,
            created_ms: row.count("created_ms")?,
            enrolled_ms: row.opt_int("enrolled_ms")?.and_then(|t| u64::try_from(t).ok()),
        })
    }
}

impl Tx {
    /// A node by its id, in any state.
    pub async fn node(&mut self, id: &NodeId) -> Result<Option<Node>, StoreError> {
        self.row("SELECT * FROM node WHERE id = $1", &[id.as_str().into()]).await?.map(|r| Node::read(&r)).transpose()
    }

    /// A node by its id, with its network locked: no other transaction changes it before this one ends.
    pub async fn locked_node(&mut self, id: &NodeId) -> Result<Option<Node>, StoreError> {
        let mut found = self.node(id).await?;
        // It may have changed, or joined another network, while this transaction waited for the lock.
        while let Some(node) = found.take() {
            self.lock_network(&node.network).await?;
            found = self.node(id).await?;
            if found.as_ref().is_none_or(|n| n.network == node.network) {
                break;
            }
        }
        Ok(found)
    }

    /// The node with this WireGuard key, in use or announced.
    pub async fn node_with_key(&mut self, key: PublicKey) -> Result<Option<NodeId>, StoreError> {
        let sql = "SELECT id FROM node WHERE wireguard_key = $1 OR next_key = $1";
        self.row(sql, &[key.to_string().into()]).await?.map(|r| r.parsed("id")).transpose()
    }

    /// The node with this identity key.
    pub async fn node_with_identity(&mut self, key: VerifyKey) -> Result<Option<NodeId>, StoreError> {
        let sql = "SELECT id FROM node WHERE identity_key = $1";
        self.row(sql, &[key.to_string().into()]).await?.map(|r| r.parsed("id")).transpose()
    }

    /// Inserts or updates a node; an update leaves its generation.
    pub async fn put_node(&mut self, node: &Node) -> Result<(), StoreError> {
        let sql =
            "INSERT INTO node (id, network, role, state, label, wireguard_key, next_key, next_key_hubs, identity_key,
            endpoint, listen_port, mtu, keepalive, dns, isolated, version, generation, created_ms, enrolled_ms, enabled,
            endpoint_allowed_ip, fingerprint)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22)
            ON CONFLICT (id) DO UPDATE SET network = excluded.network, role = excluded.role, state = excluded.state,
            label = excluded.label, wireguard_key = excluded.wireguard_key, next_key = excluded.next_key,
            next_key_hubs = excluded.next_key_hubs, identity_key = excluded.identity_key, endpoint = excluded.endpoint,
            listen_port = excluded.listen_port, mtu = excluded.mtu, keepalive = excluded.keepalive, dns = excluded.dns,
            isolated = excluded.isolated, version = excluded.version, enrolled_ms = excluded.enrolled_ms,
            enabled = excluded.enabled, endpoint_allowed_ip = excluded.endpoint_allowed_ip,
            fingerprint = excluded.fingerprint";
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let hubs = &node.next_key_hubs;
        let dns = node.overrides.override_dns.as_ref();
        let nets = node.overrides.override_endpoint_allowed_ip.as_ref();
        let values: [Value; 22] = [
            node.id.as_str().into(),
            node.network.as_str().into(),
            role_text(node.role).into(),
            node.state.as_str().into(),
            node.label.clone().into(),
            node.wireguard_key.map(|k| k.to_string()).into(),
            node.next_key.map(|k| k.to_string()).into(),
            (!hubs.is_empty()).then(|| serde_json::json!(hubs).to_string()).into(),
            node.identity_key.map(|k| k.to_string()).into(),
            node.endpoint.as_ref().map(ToString::to_string).into(),
            node.overrides.override_listen_port.map(i64::from).into(),
            node.overrides.override_mtu.map(i64::from).into(),
            node.overrides.override_keepalive.map(i64::from).into(),
            dns.map(|d| serde_json::json!(d).to_string()).into(),
            node.isolated.into(),
            node.version.clone().into(),
            signed(node.generation).into(),
            signed(node.created_ms).into(),
            node.enrolled_ms.map(signed).into(),
            node.enabled.into(),
            nets.map(|n| serde_json::json!(n).to_string()).into(),
            node.fingerprint.clone().into(),
        ];
        self.run(sql, &values).await.map(drop)
    }

    /// Stores the capabilities and metadata that a device sent at its enrolment.
    pub async fn put_capabilities(&mut self, request: &ProvisionRequest) -> Result<(), StoreError> {
        let sql = "UPDATE node SET capabilities = $2, metadata = $3 WHERE id = $1";
        let json = |v: serde_json::Value| Value::from(v.to_string());
        let values = [
            request.node_id.as_str().into(),
            json(serde_json::json!(request.capabilities)),
            json(serde_json::json!(request.metadata)),
        ];
        self.run(sql, &values).await.map(drop)
    }

    /// The active, enabled hubs of a network, by id.
    pub async fn hubs(&mut self, network: &str) -> Result<Vec<Node>, StoreError> {
        let sql =
            "SELECT * FROM node WHERE network = $1 AND role = 'hub' AND state = 'active' AND enabled = 1 ORDER BY id";
        self.rows(sql, &[network.into()]).await?.iter().map(Node::read).collect()
    }

    /// The nodes of a network that hold an address, by id: active nodes and announced hubs.
    pub async fn leaseholders(&mut self, network: &str) -> Result<Vec<Node>, StoreError> {
        let sql = "SELECT * FROM node WHERE network = $1
            AND (state = 'active' OR state = 'expected' AND role = 'hub') ORDER BY id";
        self.rows(sql, &[network.into()]).await?.iter().map(Node::read).collect()
    }
}
