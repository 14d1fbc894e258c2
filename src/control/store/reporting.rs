//! What the nodes report, counted.
use super::error::StoreError;
use super::node_status::REPORTING_MS;
use super::sql::Tx;
use std::collections::BTreeMap;

/// The last reports of active nodes, none older than twenty minutes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReportCounts {
    /// Reports by what became of the newest state.
    pub outcomes: BTreeMap<String, u64>,
    /// Reports of a node that is healthy.
    pub healthy: u64,
    /// Reports of a node that is not.
    pub unhealthy: u64,
    /// Reports by version of the software.
    pub versions: BTreeMap<String, u64>,
}

impl Tx {
    /// Counts them.
    pub async fn report_counts(&mut self, now_ms: i64) -> Result<ReportCounts, StoreError> {
        let sql = "SELECT r.outcome AS outcome, r.healthy AS healthy, r.version AS version, COUNT(*) AS reports
            FROM report r JOIN node m ON m.id = r.node
            WHERE m.state = 'active' AND r.received_ms > $1 AND r.received_ms <= $2
            GROUP BY r.outcome, r.healthy, r.version";
        let (since, until) = (now_ms.saturating_sub(REPORTING_MS), now_ms.saturating_add(REPORTING_MS));
        let mut counts = ReportCounts::default();
        for row in self.rows(sql, &[since.into(), until.into()]).await? {
            let n = row.count("reports")?;
            *counts.outcomes.entry(row.text("outcome")?).or_default() += n;
            *counts.versions.entry(row.text("version")?).or_default() += n;
            *if row.flag("healthy")? { &mut counts.healthy } else { &mut counts.unhealthy } += n;
        }
        Ok(counts)
    }
}
