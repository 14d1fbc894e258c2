//! The last report and the last registration of each node.
use super::error::StoreError;
use super::sql::Tx;
use spoke_enroll::wire::{NodeReport, RegisterRequest};
use spoke_model::node_id::NodeId;

/// A report with its origin and times.
#[derive(Clone, Debug)]
pub struct ReceivedReport {
    /// The node it comes from.
    pub node: NodeId,
    /// When it was signed, in milliseconds since 1970: an older report never replaces a newer one.
    pub sent_ms: i64,
    /// When it was received, in milliseconds since 1970.
    pub received_ms: i64,
    /// The report.
    pub report: NodeReport,
}

impl Tx {
    /// Stores a report unless a newer one is stored, or the node is unknown.
    pub async fn put_report(&mut self, received: &ReceivedReport) -> Result<(), StoreError> {
        let sql = "INSERT INTO report
            (node, sent_ms, received_ms, generation, outcome, reason, healthy, drift, version, health)
            SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10 WHERE EXISTS (SELECT 1 FROM node WHERE id = $1)
            ON CONFLICT (node) DO UPDATE SET sent_ms = excluded.sent_ms, received_ms = excluded.received_ms,
            generation = excluded.generation, outcome = excluded.outcome, reason = excluded.reason,
            healthy = excluded.healthy, drift = excluded.drift, version = excluded.version, health = excluded.health
            WHERE excluded.sent_ms > report.sent_ms";
        let report = &received.report;
        let values = [
            received.node.as_str().into(),
            received.sent_ms.into(),
            received.received_ms.into(),
            i64::try_from(report.generation).unwrap_or(i64::MAX).into(),
            report.outcome.as_str().into(),
            report.reason.clone().into(),
            report.healthy.into(),
            i64::from(report.drift).into(),
            report.version.as_str().into(),
            report.health.as_ref().map(ToString::to_string).into(),
        ];
        self.run(sql, &values).await.map(drop)
    }

    /// Whether a report differs in outcome, reason or generation from the stored one.
    pub async fn is_new_outcome(&mut self, received: &ReceivedReport) -> Result<bool, StoreError> {
        let sql = "SELECT outcome, reason, generation FROM report WHERE node = $1";
        let Some(row) = self.row(sql, &[received.node.as_str().into()]).await? else { return Ok(true) };
        Ok(row.text("outcome")? != received.report.outcome.as_str()
            || row.opt_text("reason")? != received.report.reason
            || row.count("generation")? != received.report.generation)
    }

    /// Whether each of these nodes has reported its generation or a later one.
    pub async fn have_reported(&mut self, generations: &[(NodeId, u64)]) -> Result<bool, StoreError> {
        let sql = "SELECT 1 AS one FROM report WHERE node = $1 AND generation >= $2";
        for (node, generation) in generations {
            let generation = i64::try_from(*generation).unwrap_or(i64::MAX);
            if self.row(sql, &[node.as_str().into(), generation.into()]).await?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
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
