//! The last report and the last registration of each node.
use super::error::StoreError;
use super::row::{Row, Value};
use super::sql::Tx;
use spoke_enroll::wire::{NodeReport, Outcome, RegisterRequest, ReportOrder};
use spoke_model::node_id::NodeId;
use std::collections::HashMap;

/// A report with its origin and times.
#[derive(Clone, Debug)]
pub struct ReceivedReport {
    /// The node it comes from.
    pub node: NodeId,
    /// Its place among the reports of the node; `None`: a device that does not number them.
    pub order: Option<ReportOrder>,
    /// When it was signed, in milliseconds since 1970.
    pub sent_ms: i64,
    /// When it was received, in milliseconds since 1970.
    pub received_ms: i64,
    /// Whether the device takes preshared keys.
    pub takes_preshared: bool,
    /// The report.
    pub report: NodeReport,
}

/// What an operator is told of when it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCondition {
    /// The node's own verdict.
    pub healthy: bool,
    /// Of the generation desired then.
    pub outcome: String,
    /// Whether something was repaired or left alone.
    pub drifts: bool,
}

impl From<&NodeReport> for NodeCondition {
    fn from(report: &NodeReport) -> Self {
        Self { healthy: report.healthy, outcome: report.outcome.as_str().to_owned(), drifts: report.drift > 0 }
    }
}

impl Tx {
    /// Stores a report unless a later one is stored, or the node is unknown. `false`: not stored.
    ///
    /// Reports are ordered by number within a run of the device's program, and a new run follows the one before: no clock
    /// decides. Without numbers the time of signing does, unless the server's clock was set back since.
    pub async fn put_report(&mut self, received: &ReceivedReport) -> Result<bool, StoreError> {
        let sql = "INSERT INTO report
            (node, sent_ms, received_ms, generation, outcome, reason, healthy, drift, version, health, run, seq, confirmed)
            SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13
            WHERE EXISTS (SELECT 1 FROM node WHERE id = $1)
            ON CONFLICT (node) DO UPDATE SET sent_ms = excluded.sent_ms, received_ms = excluded.received_ms,
            generation = excluded.generation, outcome = excluded.outcome, reason = excluded.reason,
            healthy = excluded.healthy, drift = excluded.drift, version = excluded.version, health = excluded.health,
            run = excluded.run, seq = excluded.seq,
            previous_run = CASE WHEN report.run = excluded.run THEN report.previous_run ELSE report.run END,
            confirmed = COALESCE(excluded.confirmed, report.confirmed)
            WHERE CASE
                WHEN excluded.run IS NULL
                    THEN excluded.sent_ms > report.sent_ms OR excluded.received_ms < report.received_ms
                WHEN excluded.run = report.run THEN excluded.seq > report.seq
                ELSE report.previous_run IS NULL OR report.previous_run <> excluded.run END";
        let report = &received.report;
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let values = [
            received.node.as_str().into(),
            received.sent_ms.into(),
            received.received_ms.into(),
            signed(report.generation).into(),
            report.outcome.as_str().into(),
            report.reason.clone().into(),
            report.healthy.into(),
            i64::from(report.drift).into(),
            report.version.as_str().into(),
            report.health.as_ref().map(ToString::to_string).into(),
            received.order.map(|o| o.run.to_string()).into(),
            received.order.map(|o| signed(o.number)).into(),
            // A state on trial may yet be reverted.
            (report.outcome != Outcome::Trial).then(|| signed(report.generation)).into(),
        ];
        Ok(self.run(sql, &values).await? == 1)
    }

    /// Whether a report is of the run before the one whose reports are stored.
    pub async fn is_of_previous_run(&mut self, received: &ReceivedReport) -> Result<bool, StoreError> {
        let Some(order) = received.order else { return Ok(false) };
        let sql = "SELECT node FROM report WHERE node = $1 AND previous_run = $2 AND run <> $2";
        Ok(self.row(sql, &[received.node.as_str().into(), order.run.to_string().into()]).await?.is_some())
    }

    /// The stored condition of each of these nodes that has reported.
    pub async fn conditions_of(&mut self, nodes: &[&NodeId]) -> Result<HashMap<NodeId, NodeCondition>, StoreError> {
        let values: Vec<Value> = nodes.iter().map(|n| n.as_str().into()).collect();
        let places: Vec<String> = (1..=values.len()).map(|i| format!("${i}")).collect();
        let places = places.join(", ");
        let sql = format!("SELECT node, healthy, outcome, drift FROM report WHERE node IN ({places})");
        let read = |row: &Row| {
            let drifts = row.count("drift")? > 0;
            Ok((
                row.parsed("node")?,
                NodeCondition { healthy: row.flag("healthy")?, outcome: row.text("outcome")?, drifts },
            ))
        };
        self.rows_built(sql, &values).await?.iter().map(read).collect()
    }

    /// Whether a report differs in outcome, reason or generation from the stored one.
    pub async fn is_new_outcome(&mut self, received: &ReceivedReport) -> Result<bool, StoreError> {
        let sql = "SELECT outcome, reason, generation FROM report WHERE node = $1";
        let Some(row) = self.row(sql, &[received.node.as_str().into()]).await? else { return Ok(true) };
        Ok(row.text("outcome")? != received.report.outcome.as_str()
            || row.opt_text("reason")? != received.report.reason
            || row.count("generation")? != received.report.generation)
    }

    /// Whether each of these nodes has kept its generation or a later one; a state on trial does not count. Nodes without
    /// a report since `silent_since_ms` are not waited for, but one of the others must have kept it.
    pub async fn have_confirmed(
        &mut self,
        generations: &[(NodeId, u64)],
        silent_since_ms: i64,
    ) -> Result<bool, StoreError> {
        let sql = "SELECT CAST(CASE WHEN confirmed >= $2 THEN 1 ELSE 0 END AS BIGINT) AS kept, received_ms
            FROM report WHERE node = $1";
        let mut any = generations.is_empty();
        for (node, generation) in generations {
            let generation = i64::try_from(*generation).unwrap_or(i64::MAX);
            match self.row(sql, &[node.as_str().into(), generation.into()]).await? {
                Some(row) if row.flag("kept")? => any = true,
                Some(row) if row.int("received_ms")? <= silent_since_ms => {}
                Some(_) | None => return Ok(false),
            }
        }
        Ok(any)
    }

    /// The active, enabled nodes of a network, by id.
    pub async fn active_nodes(&mut self, network: &str) -> Result<Vec<NodeId>, StoreError> {
        let sql = "SELECT id FROM node
            WHERE network = $1 AND role = 'node' AND state = 'active' AND enabled = 1 ORDER BY id";
        self.rows(sql, &[network.into()]).await?.iter().map(|r| r.parsed("id")).collect()
    }

    /// The active, enabled nodes of a network that have not kept their present generation, by id.
    pub async fn nodes_behind(&mut self, network: &str) -> Result<Vec<NodeId>, StoreError> {
        let sql = "SELECT n.id FROM node n LEFT JOIN report r ON r.node = n.id
            WHERE n.network = $1 AND n.role = 'node' AND n.state = 'active' AND n.enabled = 1
            AND (r.confirmed IS NULL OR r.confirmed < n.generation) ORDER BY n.id";
        self.rows(sql, &[network.into()]).await?.iter().map(|r| r.parsed("id")).collect()
    }

    /// Forgets what the device before reported under the name of `node`.
    pub async fn delete_reports(&mut self, node: &NodeId) -> Result<(), StoreError> {
        for sql in ["DELETE FROM report WHERE node = $1", "DELETE FROM registration WHERE node = $1"] {
            self.run(sql, &[node.as_str().into()]).await?;
        }
        Ok(())
    }

    /// Stores a registration in place of the one before.
    pub async fn put_registration(
        &mut self,
        node: &NodeId,
        request: &RegisterRequest,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        let sql = "INSERT INTO registration
            (node, address, wireguard_key, interface, hub_endpoint, registered_at, received_ms)
            VALUES ($1, $2, $3, $4, $5, $6, $7)
            ON CONFLICT (node) DO UPDATE SET address = excluded.address, wireguard_key = excluded.wireguard_key,
            interface = excluded.interface, hub_endpoint = excluded.hub_endpoint,
            registered_at = excluded.registered_at, received_ms = excluded.received_ms";
        let values = [
            node.as_str().into(),
            request.wireguard_address.to_string().into(),
            request.wireguard_public_key.to_string().into(),
            request.interface_name.as_str().into(),
            request.hub_endpoint.as_str().into(),
            request.registered_at.as_str().into(),
            now_ms.into(),
        ];
        self.run(sql, &values).await.map(drop)
    }
}
