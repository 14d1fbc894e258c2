//! The fleet as operators see it: nodes with what they last said, and figures of all of them.
use super::network::Access;
use super::node::{Node, NodeState, Overrides};
use super::sql::{Row, StoreError, Tx};
use crate::api::operators::Overview;
use serde::Serialize;
use spoke_config::node::Role;
use spoke_enroll::wire::Capabilities;
use spoke_grants::policy::VERIFICATION_ERROR;
use spoke_model::address::HostPort;
use spoke_model::key::PublicKey;
use spoke_model::node_id::NodeId;
use spoke_model::time::Wall;
use std::collections::BTreeMap;

/// A node with what it last said, as operators see it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct NodeView {
    /// Its name.
    #[schema(value_type = String)]
    pub id: NodeId,
    /// For people.
    pub label: Option<String>,
    /// Its network.
    pub network: String,
    /// `node` or `hub`.
    #[schema(value_type = String)]
    pub role: Role,
    /// How far it is.
    pub state: NodeState,
    /// With their pools' prefix length.
    pub addresses: Vec<String>,
    /// Public half of its tunnel's key.
    #[schema(value_type = Option<String>)]
    pub wireguard_public_key: Option<PublicKey>,
    /// Where a hub is reached.
    #[schema(value_type = Option<String>)]
    pub endpoint: Option<HostPort>,
    /// What is set for it alone.
    #[serde(flatten)]
    pub overrides: Overrides,
    /// Shut off from other nodes even where its hub forwards.
    pub isolated: bool,
    /// Switched off it stays enrolled and is nobody's peer.
    pub enabled: bool,
    /// Wanted.
    pub generation: u64,
    /// In force on the node, by its last report.
    pub observed_generation: Option<u64>,
    /// `applied`, `trial`, `reverted` or `refused`.
    pub outcome: Option<String>,
    /// Why it was reverted or refused.
    pub reason: Option<String>,
    /// By its last report.
    pub healthy: Option<bool>,
    /// RFC 3339, of the last report.
    pub last_seen: Option<String>,
    /// Of its software.
    pub version: Option<String>,
    /// How updates of its image stand, by its last report; null where it has no slots.
    #[schema(value_type = Option<Object>)]
    pub update: Option<serde_json::Value>,
    /// RFC 3339.
    pub enrolled_at: Option<String>,
    /// Where the contract decides who is a peer: `ACCESS_GRANTED`, or why not; `VERIFICATION_ERROR` while it was not heard.
    pub access: Option<String>,
    /// The node's NFT.
    pub token_id: Option<String>,
}

/// Everything that is known of one node.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct NodeDetail {
    /// As in a list.
    #[serde(flatten)]
    pub view: NodeView,
    /// What it can do, as it said when it enrolled.
    pub capabilities: Option<Capabilities>,
    /// What else it said then.
    pub metadata: BTreeMap<String, String>,
    /// Differences it repaired or left alone, by its last report.
    pub drift: Option<u64>,
    /// Its own account of its health, by its last report.
    #[schema(value_type = Option<Object>)]
    pub health: Option<serde_json::Value>,
    /// How it connected last.
    pub registration: Option<Registration>,
}

/// How a node connected last, as it said.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Registration {
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
    /// RFC 3339, by ours.
    pub received_at: String,
}

/// The part about updates of the health document in a report.
fn update_of(health: &str) -> Option<serde_json::Value> {
    serde_json::from_str::<serde_json::Value>(health).ok()?.get_mut("update").map(serde_json::Value::take)
}

fn moment(ms: u64) -> String {
    Wall(ms / 1000).to_string()
}

impl Tx {
    /// Nodes for operators, by id. Empty filters take everything; `after` is the last id of the page before.
    pub async fn node_views(
        &mut self,
        only: Option<&NodeId>,
        after: &str,
        limit: i64,
    ) -> Result<Vec<NodeView>, StoreError> {
        let sql = "SELECT n.*, r.generation AS observed, r.outcome, r.reason, r.healthy, r.received_ms,
                r.version AS reported_version, r.health, a.code AS access_code, a.token_id AS access_token
            FROM node n LEFT JOIN report r ON r.node = n.id
            LEFT JOIN admission a ON a.node = n.id AND a.wireguard_key = n.wireguard_key
            WHERE ($1 = '' OR n.id = $1) AND n.id > $2 ORDER BY n.id LIMIT $3";
        let only = only.map_or("", NodeId::as_str);
        let rows = self.rows(sql, &[only.into(), after.into(), limit.into()]).await?;
        let networks = self.networks().await?;
        let sql = "SELECT node, network, family, host FROM lease WHERE node IS NOT NULL AND until_ms IS NULL
            AND ($1 = '' OR node = $1) ORDER BY node, family";
        let mut addresses: std::collections::HashMap<String, Vec<String>> = std::collections::HashMap::new();
        for row in self.rows(sql, &[only.into()]).await? {
            let name = row.text("network")?;
            let network = networks.iter().find(|n| n.name == name);
            let address = network.and_then(|n| n.address_of(row.int("family").ok()?, row.count("host").ok()?).ok()?);
            addresses.entry(row.text("node")?).or_default().extend(address.map(|a| a.to_string()));
        }
        let view = |row: &Row| {
            let node = Node::read(row)?;
            let nft = networks.iter().any(|n| n.name == node.network && n.access == Access::Nft);
            let asked = nft && node.role == Role::Node && matches!(node.state, NodeState::Active | NodeState::Pending);
            Ok(NodeView {
                access: match row.opt_text("access_code")? {
                    _ if !asked => None,
                    Some(code) => Some(code),
                    None => Some(VERIFICATION_ERROR.to_owned()),
                },
                token_id: row.opt_text("access_token")?.filter(|_| asked),
                addresses: addresses.remove(node.id.as_str()).unwrap_or_default(),
                observed_generation: row.opt_int("observed")?.and_then(|n| u64::try_from(n).ok()),
                outcome: row.opt_text("outcome")?,
                reason: row.opt_text("reason")?,
                healthy: row.opt_int("healthy")?.map(|h| h != 0),
                last_seen: row.opt_int("received_ms")?.and_then(|n| u64::try_from(n).ok()).map(moment),
                version: row.opt_text("reported_version")?.or(node.version),
                update: row.opt_text("health")?.and_then(|h| update_of(&h)),
                enrolled_at: node.enrolled_ms.map(moment),
                id: node.id,
                label: node.label,
                network: node.network,
                role: node.role,
                state: node.state,
                wireguard_public_key: node.wireguard_key,
                endpoint: node.endpoint,
                overrides: node.overrides,
                isolated: node.isolated,
                enabled: node.enabled,
                generation: node.generation,
            })
        };
        rows.iter().map(view).collect()
    }

    /// Everything that is known of one node.
    pub async fn node_detail(&mut self, id: &NodeId) -> Result<Option<NodeDetail>, StoreError> {
        let Some(view) = self.node_views(Some(id), "", 1).await?.pop() else { return Ok(None) };
        let sql = "SELECT n.capabilities, n.metadata, r.drift, r.health FROM node n LEFT JOIN report r ON r.node = n.id
            WHERE n.id = $1";
        let row = self.row(sql, &[id.as_str().into()]).await?.ok_or(StoreError::Unreadable("node"))?;
        let json = |column| -> Result<Option<serde_json::Value>, StoreError> {
            let text = row.opt_text(column)?;
            text.map(|t| serde_json::from_str(&t).map_err(|_| StoreError::Unreadable(column))).transpose()
        };
        let read = |column| StoreError::Unreadable(column);
        let (capabilities, metadata) = (json("capabilities")?, json("metadata")?);
        let capabilities = capabilities.map(serde_json::from_value).transpose();
        let metadata = metadata.map(serde_json::from_value).transpose();
        let (drift, health) = (row.opt_int("drift")?.and_then(|n| u64::try_from(n).ok()), json("health")?);
        let sql = "SELECT * FROM registration WHERE node = $1";
        let registration = match self.row(sql, &[id.as_str().into()]).await? {
            None => None,
            Some(row) => Some(Registration {
                wireguard_address: row.text("address")?,
                wireguard_public_key: row.text("wireguard_key")?,
                interface_name: row.text("interface")?,
                hub_endpoint: row.text("hub_endpoint")?,
                registered_at: row.text("registered_at")?,
                received_at: moment(row.count("received_ms")?),
            }),
        };
        Ok(Some(NodeDetail {
            view,
            capabilities: capabilities.map_err(|_| read("capabilities"))?,
            metadata: metadata.map_err(|_| read("metadata"))?.unwrap_or_default(),
            drift,
            health,
            registration,
        }))
    }

    /// The fleet in figures; who is connected only a serving process knows.
    pub async fn overview(&mut self, now_ms: i64) -> Result<Overview, StoreError> {
        let mut nodes = BTreeMap::new();
        let sql = "SELECT state, COUNT(*) AS n FROM node GROUP BY state";
        for row in self.rows(sql, &[]).await? {
            nodes.insert(row.text("state")?, row.count("n")?);
        }
        let sql = "SELECT COUNT(*) AS n FROM report WHERE received_ms > $1";
        let since = now_ms.saturating_sub(20 * 60 * 1000);
        let reporting = self.row(sql, &[since.into()]).await?.map_or(Ok(0), |r| r.count("n"))?;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let chain = self.chain_view().await?;
        let mut free_addresses = BTreeMap::new();
        for network in self.networks().await? {
            let stats = self.pool_stats(&network).await.map_err(|_| StoreError::Unreadable("network.pool4"))?;
            free_addresses.insert(network.name, stats.available_addresses);
        }
        Ok(Overview { version, nodes, connected: 0, reporting, free_addresses, chain })
    }
}
