//! Nodes with their last report, and counts over the fleet.
use super::admission::{ChainProgress, reason_of};
use super::error::StoreError;
use super::network::{Access, Network};
use super::node::{Node, NodeState};
use super::row::Row;
use super::sql::Tx;
use ipnet::IpNet;
use spoke_config::node::Role;
use spoke_enroll::wire::{Capabilities, Outcome};
use spoke_grants::policy::Reason;
use spoke_model::node_id::NodeId;
use std::collections::{BTreeMap, HashMap};

/// A node without a report for this long does not count as reporting, in milliseconds.
const REPORTING_MS: i64 = 20 * 60 * 1000;

/// Whether the contract admits a node's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeAccess {
    /// The contract is not asked: a hub, an open network, or a node that is not enrolled.
    NotAsked,
    /// The contract has not been read for this node and key.
    Undecided,
    /// The contract's decision.
    Decided(Reason),
}

impl NodeAccess {
    /// Whether the contract does not keep the node out.
    pub const fn admits(self) -> bool {
        match self {
            Self::NotAsked => true,
            Self::Undecided => false,
            Self::Decided(reason) => reason.grants(),
        }
    }
}

/// A node's last report.
#[derive(Clone, Debug, PartialEq)]
pub struct LastReport {
    /// In force on the node.
    pub generation: u64,
    /// Of the generation desired then.
    pub outcome: Outcome,
    /// Why it was reverted or refused.
    pub reason: Option<String>,
    /// The node's own verdict.
    pub healthy: bool,
    /// Differences that were repaired or left alone.
    pub drift: u64,
    /// Of its software.
    pub version: String,
    /// Its health document.
    pub health: Option<serde_json::Value>,
    /// Milliseconds since 1970.
    pub received_ms: u64,
}

/// A node with its addresses, its access and its last report.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeStatus {
    /// The node.
    pub node: Node,
    /// With their pools' prefix length, IPv4 first.
    pub addresses: Vec<IpNet>,
    /// Whether the contract admits its key.
    pub access: NodeAccess,
    /// Its NFT, where the contract is asked.
    pub token_id: Option<String>,
    /// `None`: it never reported.
    pub report: Option<LastReport>,
}

/// A node's last registration, as it sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Milliseconds since 1970, by the server's clock.
    pub received_ms: u64,
}

/// What a node sent at its enrolment, and its last registration.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeRecord {
    /// The node.
    pub status: NodeStatus,
    /// Its hardware.
    pub capabilities: Option<Capabilities>,
    /// Its metadata.
    pub metadata: BTreeMap<String, String>,
    /// Its last registration.
    pub registration: Option<Registration>,
}

/// Counts over the fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetCounts {
    /// Nodes and hubs by state.
    pub nodes: BTreeMap<String, u64>,
    /// Nodes whose last report is younger than twenty minutes.
    pub reporting: u64,
    /// Free addresses of each network's first pool.
    pub free_addresses: BTreeMap<String, u64>,
    /// How far the access contract has been read.
    pub chain: Option<ChainProgress>,
}

fn outcome_of(text: &str) -> Result<Outcome, StoreError> {
    [Outcome::Applied, Outcome::Trial, Outcome::Reverted, Outcome::Refused]
        .into_iter()
        .find(|o| o.as_str() == text)
        .ok_or(StoreError::Unreadable("report.outcome"))
}

impl LastReport {
    fn read(row: &Row) -> Result<Option<Self>, StoreError> {
        let Some(outcome) = row.opt_text("outcome")? else { return Ok(None) };
        Ok(Some(Self {
            generation: row.count("observed")?,
            outcome: outcome_of(&outcome)?,
            reason: row.opt_text("reason")?,
            healthy: row.flag("healthy")?,
            drift: row.count("drift")?,
            version: row.text("reported_version")?,
            health: row.opt_json("health")?,
            received_ms: row.count("received_ms")?,
        }))
    }
}

fn access_of(row: &Row, node: &Node, networks: &[Network]) -> Result<NodeAccess, StoreError> {
    let nft = networks.iter().any(|n| n.name == node.network && n.access == Access::Nft);
    if !nft || node.role == Role::Hub || !matches!(node.state, NodeState::Active | NodeState::Pending) {
        return Ok(NodeAccess::NotAsked);
    }
    let code = row.opt_text("access_code")?;
    code.map_or(Ok(NodeAccess::Undecided), |code| reason_of(&code).map(NodeAccess::Decided))
}

impl Tx {
    /// Nodes by id: only `only` if given, else those after `after`, the last id of the page before.
    pub async fn node_statuses(
        &mut self,
        only: Option<&NodeId>,
        after: &str,
        limit: i64,
    ) -> Result<Vec<NodeStatus>, StoreError> {
        self.statuses(only, None, after, limit).await
    }

    /// As [`Tx::node_statuses`], of one network.
    pub async fn node_statuses_of(
        &mut self,
        network: &str,
        after: &str,
        limit: i64,
    ) -> Result<Vec<NodeStatus>, StoreError> {
        self.statuses(None, Some(network), after, limit).await
    }

    async fn statuses(
        &mut self,
        only: Option<&NodeId>,
        network: Option<&str>,
        after: &str,
        limit: i64,
    ) -> Result<Vec<NodeStatus>, StoreError> {
        let sql = "SELECT n.*, r.generation AS observed, r.outcome, r.reason, r.healthy, r.received_ms, r.drift,
                r.version AS reported_version, r.health, a.code AS access_code, a.token_id AS access_token
            FROM node n LEFT JOIN report r ON r.node = n.id
            LEFT JOIN admission a ON a.node = n.id AND a.wireguard_key = n.wireguard_key
            WHERE ($1 = '' OR n.id = $1) AND n.id > $2 AND ($4 = '' OR n.network = $4) ORDER BY n.id LIMIT $3";
        let only = only.map_or("", NodeId::as_str);
        let of = network.unwrap_or_default();
        let rows = self.rows(sql, &[only.into(), after.into(), limit.into(), of.into()]).await?;
        let networks = self.networks().await?;
        let sql = "SELECT node, network, family, host FROM lease WHERE node IS NOT NULL AND until_ms IS NULL
            AND ($1 = '' OR node = $1) ORDER BY node, family";
        let mut addresses: HashMap<String, Vec<IpNet>> = HashMap::new();
        for row in self.rows(sql, &[only.into()]).await? {
            let name = row.text("network")?;
            let network = networks.iter().find(|n| n.name == name);
            let address = network.and_then(|n| n.address_of(row.int("family").ok()?, row.count("host").ok()?).ok()?);
            addresses.entry(row.text("node")?).or_default().extend(address);
        }
        let read = |row: &Row| {
            let node = Node::read(row)?;
            let access = access_of(row, &node, &networks)?;
            Ok(NodeStatus {
                addresses: addresses.remove(node.id.as_str()).unwrap_or_default(),
                token_id: row.opt_text("access_token")?.filter(|_| access != NodeAccess::NotAsked),
                report: LastReport::read(row)?,
                access,
                node,
            })
        };
        rows.iter().map(read).collect()
    }

    /// The status of one node.
    pub async fn node_status(&mut self, id: &NodeId) -> Result<Option<NodeStatus>, StoreError> {
        Ok(self.node_statuses(Some(id), "", 1).await?.pop())
    }

    /// Everything stored about one node.
    pub async fn node_record(&mut self, id: &NodeId) -> Result<Option<NodeRecord>, StoreError> {
        let Some(status) = self.node_status(id).await? else { return Ok(None) };
        let sql = "SELECT capabilities, metadata FROM node WHERE id = $1";
        let row = self.row(sql, &[id.as_str().into()]).await?.ok_or(StoreError::Unreadable("node"))?;
        let (capabilities, metadata) = (row.opt_json("capabilities")?, row.opt_json("metadata")?.unwrap_or_default());
        let row = self.row("SELECT * FROM registration WHERE node = $1", &[id.as_str().into()]).await?;
        let registration = row.map(|row| {
            Ok::<_, StoreError>(Registration {
                wireguard_address: row.text("address")?,
                wireguard_public_key: row.text("wireguard_key")?,
                interface_name: row.text("interface")?,
                hub_endpoint: row.text("hub_endpoint")?,
                registered_at: row.text("registered_at")?,
                received_ms: row.count("received_ms")?,
            })
        });
        Ok(Some(NodeRecord { status, capabilities, metadata, registration: registration.transpose()? }))
    }

    /// Counts over the fleet.
    pub async fn fleet_counts(&mut self, now_ms: i64) -> Result<FleetCounts, StoreError> {
        let mut nodes = BTreeMap::new();
        let sql = "SELECT state, COUNT(*) AS n FROM node GROUP BY state";
        for row in self.rows(sql, &[]).await? {
            nodes.insert(row.text("state")?, row.count("n")?);
        }
        // A report of the future is of before the clock was set back, and its age is unknown.
        let sql = "SELECT COUNT(*) AS n FROM report WHERE received_ms > $1 AND received_ms <= $2";
        let (since, until) = (now_ms.saturating_sub(REPORTING_MS), now_ms.saturating_add(REPORTING_MS));
        let reporting = self.row(sql, &[since.into(), until.into()]).await?.map_or(Ok(0), |r| r.count("n"))?;
        let chain = self.chain_progress().await?;
        let mut free_addresses = BTreeMap::new();
        for network in self.networks().await? {
            let stats = self.pool_stats(&network).await.map_err(|_| StoreError::Unreadable("network.pool4"))?;
            free_addresses.insert(network.name, stats.available_addresses);
        }
        Ok(FleetCounts { nodes, reporting, free_addresses, chain })
    }
}
