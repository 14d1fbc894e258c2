//! Nodes with their last report, and counts over the fleet.
use super::admission::{ChainProgress, reason_of};
use super::error::StoreError;
use super::list::NODES;
use super::network::{Access, Network};
use super::node::{Node, NodeState};
use super::page::{Conditions, Page, PageRequest};
use super::row::{Row, Value};
use super::sql::Tx;
use crate::selector::{Labels, Selector};
use ipnet::IpNet;
use spoke_config::node::Role;
use spoke_enroll::wire::{Capabilities, Outcome};
use spoke_grants::policy::Reason;
use spoke_model::node_id::NodeId;
use std::collections::{BTreeMap, HashMap};

/// A node without a report for this long does not count as reporting, in milliseconds.
pub(super) const REPORTING_MS: i64 = 20 * 60 * 1000;

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
    /// By which operators select it.
    pub labels: Labels,
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

/// Selects a page of nodes.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeQuery<'a> {
    /// This node alone.
    pub only: Option<&'a NodeId>,
    /// Of this network.
    pub network: Option<&'a str>,
    /// In this state.
    pub state: Option<NodeState>,
    /// With this text in the id or the label, whatever its case.
    pub filter: Option<&'a str>,
    /// With these labels.
    pub selector: Option<&'a Selector>,
    /// After this id, the last one of the page before.
    pub after: &'a str,
}

/// What is read of the nodes of a page.
const STATUSES: &str = " SELECT n.*, page.sort_value, page.sort_key, r.generation AS observed, r.outcome, r.reason, r.healthy,
        r.received_ms, r.drift, r.version AS reported_version, r.health, a.code AS access_code, a.token_id AS access_token
    FROM page JOIN node n ON n.id = page.id LEFT JOIN report r ON r.node = n.id
    LEFT JOIN admission a ON a.node = n.id AND a.wireguard_key = n.wireguard_key";
const ADDRESSES: &str = " SELECT l.node, l.network, l.family, l.host FROM page JOIN lease l ON l.node = page.id
    WHERE l.until_ms IS NULL ORDER BY l.node, l.family";
const LABELS: &str = " SELECT l.node, l.key, l.value FROM page JOIN node_label l ON l.node = page.id";

/// The conditions on `node n`.
fn conditions(query: &NodeQuery<'_>) -> Conditions {
    let mut made = Conditions::default();
    if let Some(id) = query.only {
        made.and("n.id = $?", [id.as_str().into()]);
    }
    if let Some(network) = query.network {
        made.and("n.network = $?", [network.into()]);
    }
    if let Some(state) = query.state {
        made.and("n.state = $?", [state.as_str().into()]);
    }
    made.contain(NODES.text, query.filter.unwrap_or_default());
    for term in query.selector.iter().flat_map(|s| s.terms()) {
        let not = if term.equal { "" } else { "NOT " };
        let sql =
            format!("{not}EXISTS (SELECT 1 FROM node_label l WHERE l.node = n.id AND l.key = $? AND l.value = $?)");
        made.and(&sql, [term.key.as_str().into(), term.value.as_str().into()]);
    }
    if !query.after.is_empty() {
        made.and("n.id > $?", [query.after.into()]);
    }
    made
}

/// The nodes that are read: a common table expression, its values, and the order of its rows.
struct Selected {
    page: String,
    values: Vec<Value>,
    order: String,
}

impl Selected {
    /// A page of the list.
    fn listed(query: &NodeQuery<'_>, page: &PageRequest) -> Self {
        let (clauses, values) = page.clauses(&conditions(query));
        let columns = page.columns();
        let page_sql = format!("WITH page AS (SELECT n.id, {columns} FROM node n{clauses})");
        Self { page: page_sql, values, order: page.order_within("page") }
    }

    /// At most `limit` by id.
    fn by_id(query: &NodeQuery<'_>, limit: i64) -> Self {
        let (clauses, mut values) = conditions(query).sql();
        values.push(limit.into());
        let page = format!(
            "WITH page AS (SELECT n.id, n.id AS sort_value, n.id AS sort_key FROM node n{clauses} ORDER BY n.id LIMIT ${})",
            values.len()
        );
        Self { page, values, order: " ORDER BY n.id".to_owned() }
    }

    /// The statement that reads `rest` of these nodes.
    fn with(&self, rest: &str) -> String {
        format!("{}{rest}", self.page)
    }
}

impl Tx {
    /// At most `limit` of the selected nodes, by id. Reads nothing of the others.
    pub async fn node_statuses(&mut self, query: &NodeQuery<'_>, limit: i64) -> Result<Vec<NodeStatus>, StoreError> {
        let selected = Selected::by_id(query, limit);
        let rows = self.rows_built(selected.with(&format!("{STATUSES}{}", selected.order)), &selected.values).await?;
        self.statuses(&selected, &rows).await
    }

    /// A page of [`NODES`].
    pub async fn list_nodes(
        &mut self,
        query: &NodeQuery<'_>,
        page: &PageRequest,
    ) -> Result<Page<NodeStatus>, StoreError> {
        let selected = Selected::listed(query, page);
        let rows = self.rows_built(selected.with(&format!("{STATUSES}{}", selected.order)), &selected.values).await?;
        let (rows, next) = page.cut(rows)?;
        let total = match page.shown_total(&rows, next.as_ref()) {
            Some(total) => total,
            None => self.count_listed("node n", &conditions(query)).await?,
        };
        Ok(Page { items: self.statuses(&selected, &rows).await?, next, total })
    }

    /// The statuses of nodes of which the first part is read.
    async fn statuses(&mut self, selected: &Selected, rows: &[Row]) -> Result<Vec<NodeStatus>, StoreError> {
        let networks = self.networks().await?;
        let mut addresses: HashMap<String, Vec<IpNet>> = HashMap::new();
        for row in self.rows_built(selected.with(ADDRESSES), &selected.values).await? {
            let name = row.text("network")?;
            let network = networks.iter().find(|n| n.name == name);
            let address = network.and_then(|n| n.address_of(row.int("family").ok()?, row.count("host").ok()?).ok()?);
            addresses.entry(row.text("node")?).or_default().extend(address);
        }
        let mut labels: HashMap<String, Labels> = HashMap::new();
        for row in self.rows_built(selected.with(LABELS), &selected.values).await? {
            labels.entry(row.text("node")?).or_default().insert(row.text("key")?, row.text("value")?);
        }
        let read = |row: &Row| {
            let node = Node::read(row)?;
            let access = access_of(row, &node, &networks)?;
            Ok(NodeStatus {
                addresses: addresses.remove(node.id.as_str()).unwrap_or_default(),
                labels: labels.remove(node.id.as_str()).unwrap_or_default(),
                token_id: row.opt_text("access_token")?.filter(|_| access != NodeAccess::NotAsked),
                report: LastReport::read(row)?,
                access,
                node,
            })
        };
        rows.iter().map(read).collect()
    }

    /// Replaces the labels of a node.
    pub async fn put_labels(&mut self, id: &NodeId, labels: &Labels) -> Result<(), StoreError> {
        self.run("DELETE FROM node_label WHERE node = $1", &[id.as_str().into()]).await?;
        for (key, value) in labels {
            let values = [id.as_str().into(), key.as_str().into(), value.as_str().into()];
            self.run("INSERT INTO node_label (node, key, value) VALUES ($1, $2, $3)", &values).await?;
        }
        Ok(())
    }

    /// The labels of a node.
    pub async fn labels(&mut self, id: &NodeId) -> Result<Labels, StoreError> {
        let rows = self.rows("SELECT key, value FROM node_label WHERE node = $1", &[id.as_str().into()]).await?;
        rows.iter().map(|r| Ok((r.text("key")?, r.text("value")?))).collect()
    }

    /// The status of one node.
    pub async fn node_status(&mut self, id: &NodeId) -> Result<Option<NodeStatus>, StoreError> {
        let query = NodeQuery { only: Some(id), ..NodeQuery::default() };
        Ok(self.node_statuses(&query, 1).await?.pop())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    async fn store(dir: &std::path::Path) -> Store {
        Store::open(&format!("sqlite:{}", dir.join("fleet.db").display())).await.unwrap()
    }

    fn page(sort: &str) -> PageRequest {
        PageRequest::new(&NODES, sort, "", Some(1)).unwrap()
    }

    fn sorts() -> impl Iterator<Item = String> {
        NODES.columns.iter().flat_map(|c| [c.name.to_owned(), format!("-{}", c.name)])
    }

    /// A table that is scanned costs as much at every page as the fleet is large.
    #[tokio::test]
    async fn page_of_nodes_scans_no_table_beside() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path()).await;
        let mut tx = store.read().await.unwrap();
        let selector = "site=berlin,model!=pi3".parse().unwrap();
        let id = "edge-1".parse().unwrap();
        let queries = [
            NodeQuery::default(),
            NodeQuery { after: "edge-1", network: Some("field"), ..NodeQuery::default() },
            NodeQuery { selector: Some(&selector), filter: Some("edge"), ..NodeQuery::default() },
            NodeQuery { only: Some(&id), ..NodeQuery::default() },
        ];
        for query in queries {
            let by_id = std::iter::once(Selected::by_id(&query, 100));
            for selected in by_id.chain(sorts().map(|s| Selected::listed(&query, &page(&s)))) {
                for rest in [STATUSES, ADDRESSES, LABELS] {
                    let sql = format!("EXPLAIN QUERY PLAN {}", selected.with(rest));
                    for row in tx.rows_built(sql, &selected.values).await.unwrap() {
                        let step = row.text("detail").unwrap();
                        let scanned = step.strip_prefix("SCAN ");
                        let allowed = |t: &str| t == "page" || t.starts_with("n USING") && query.only.is_none();
                        assert!(scanned.is_none_or(allowed), "{step} in {rest}");
                        // Within one network other orders than by id read that network.
                        let sorts = step.contains("B-TREE FOR ORDER BY") && rest != ADDRESSES;
                        let whole_fleet = query.network.is_none() || selected.page.contains("n.id AS sort_value");
                        assert!(!(sorts && whole_fleet), "{step} in {}", selected.page);
                    }
                }
            }
        }
    }

    /// Steps of SQLite's virtual machine, and not time, which depends on the machine.
    #[tokio::test]
    async fn page_of_one_costs_the_same_in_every_fleet() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path()).await;
        let fill = async |from: i64, until: i64| {
            let mut tx = store.write().await.unwrap();
            tx.run(
                "INSERT INTO network (name, pool4, reserved, dns, interface, keepalive, forwarding, approval, access,
                quarantine_ms, created_ms) VALUES ('field', '10.0.0.0/8', '[]', '[]', 'wg0', 25, 0, 0, 'open', 0, 0)
                ON CONFLICT DO NOTHING",
                &[],
            )
            .await
            .unwrap();
            let sql = "WITH RECURSIVE c (i) AS (SELECT $1 UNION ALL SELECT i + 1 FROM c WHERE i + 1 < $2)
                INSERT INTO node (id, network, role, state, label, isolated, generation, created_ms, enabled)
                SELECT printf('edge-%06d', i), 'field', 'node', 'active', 'l' || (i * 7919 % 1000), 0, 1, i * 31 % 977, 1
                FROM c";
            tx.run(sql, &[from.into(), until.into()]).await.unwrap();
            tx.commit().await.unwrap();
        };
        let steps = async || {
            let mut all = std::collections::BTreeMap::new();
            for sort in sorts() {
                let mut tx = store.read().await.unwrap();
                let counted = tx.count_steps().await;
                let found = tx.list_nodes(&NodeQuery::default(), &page(&sort)).await.unwrap();
                assert!(found.items.len() == 1 && found.next.is_some(), "{sort}");
                all.insert(sort, counted.load(std::sync::atomic::Ordering::Relaxed));
            }
            all
        };
        fill(0, 2_000).await;
        let small = steps().await;
        fill(2_000, 40_000).await;
        let large = steps().await;
        for (sort, of_large) in large {
            let of_small = small[&sort];
            assert!(
                of_small > 500 && of_large <= of_small + of_small / 10,
                "{sort}: {of_small} steps, then {of_large}"
            );
        }
    }
}
