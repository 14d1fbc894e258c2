//! Nodes that two devices report as: after a run of the device's program has begun, the run before goes on reporting.
use crate::store::report::ReceivedReport;
use serde_json::{Value, json};
use spoke_model::condition::Code;
use spoke_model::node_id::NodeId;
use std::collections::HashMap;

/// A report of the run before may still be on its way when the next run begins; a second one may not.
const LATE: u32 = 2;
/// How long after its last late report a node counts as doubled, in milliseconds: several times the longest interval of reports.
const LASTS_MS: i64 = 3600 * 1000;
/// Nodes remembered at most.
const MAX_NODES: usize = 10_000;

/// The nodes with late reports.
#[derive(Debug, Default)]
pub struct Duplicates(HashMap<NodeId, Late>);

#[derive(Debug)]
struct Late {
    run: u64,
    number: u64,
    reports: u32,
    last_ms: i64,
    confirmed: bool,
}

impl Late {
    const fn is_over(&self, now_ms: i64) -> bool {
        now_ms.saturating_sub(self.last_ms) > LASTS_MS
    }
}

impl Duplicates {
    /// Takes a report of the run before. `true`: two devices report as this node, which [`Duplicates::confirm`] has not yet
    /// been called for. The same report may be given again.
    pub fn note(&mut self, received: &ReceivedReport) -> bool {
        let (Some(order), now) = (received.order, received.received_ms) else { return false };
        if self.0.len() >= MAX_NODES {
            self.0.retain(|_, late| !late.is_over(now));
        }
        if !self.0.contains_key(&received.node) && self.0.len() >= MAX_NODES {
            return false;
        }
        let first = || Late { run: order.run, number: order.number, reports: 0, last_ms: now, confirmed: false };
        let late = self.0.entry(received.node.clone()).or_insert_with(first);
        if late.is_over(now) {
            *late = first();
        }
        let is_next = late.run == order.run && order.number > late.number;
        if late.reports == 0 || is_next {
            late.reports += 1;
        } else if late.run != order.run && !late.confirmed {
            late.reports = 1;
        }
        (late.run, late.number, late.last_ms) = (order.run, order.number, now);
        late.reports >= LATE && !late.confirmed
    }

    /// It has been recorded that two devices report as this node.
    pub fn confirm(&mut self, node: NodeId) {
        if let Some(late) = self.0.get_mut(&node) {
            late.confirmed = true;
        }
    }

    /// The report with the condition, where two devices report as its node.
    pub fn mark(&self, received: &ReceivedReport) -> Option<ReceivedReport> {
        self.0.get(&received.node).filter(|late| late.confirmed && !late.is_over(received.received_ms))?;
        let mut marked = received.clone();
        marked.report.healthy = false;
        let detail = "two devices report as this node by turns: one has a copy of the other's state or card";
        let reason = json!({ "code": Code::DuplicateIdentity, "detail": detail });
        let mut health = marked.report.health.take().filter(Value::is_object).unwrap_or_else(|| json!({}));
        match health.get_mut("reasons").and_then(Value::as_array_mut) {
            Some(reasons) => reasons.insert(0, reason),
            None => health["reasons"] = json!([reason]),
        }
        marked.report.health = Some(health);
        Some(marked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spoke_enroll::wire::{NodeReport, Outcome, ReportOrder};

    fn report(run: u64, number: u64, minutes: i64) -> ReceivedReport {
        let report = NodeReport {
            generation: 1,
            outcome: Outcome::Applied,
            reason: None,
            healthy: true,
            drift: 0,
            version: "0.1.0".into(),
            health: None,
        };
        let received_ms = minutes * 60_000;
        let (node, order) = ("edge-1".parse().unwrap(), Some(ReportOrder { run, number }));
        ReceivedReport { node, order, sent_ms: received_ms, received_ms, takes_preshared: false, report }
    }

    #[test]
    fn second_late_report_is_a_second_device() {
        let mut all = Duplicates::default();
        assert!(!all.note(&report(1, 7, 0)) && all.mark(&report(2, 1, 0)).is_none());
        assert!(!all.note(&report(1, 7, 0)), "the same again, after a failed transaction");
        assert!(all.note(&report(1, 8, 5)) && all.mark(&report(2, 2, 5)).is_none());
        all.confirm("edge-1".parse().unwrap());
        assert!(!all.note(&report(1, 9, 10)), "recorded once");
        let marked = all.mark(&report(2, 3, 12)).unwrap().report;
        assert!(!marked.healthy);
        assert_eq!(marked.health.unwrap()["reasons"][0]["code"], "duplicate_identity");
        assert!(all.mark(&report(2, 9, 71)).is_none(), "over an hour after the last late report it has ended");
        assert!(!all.note(&report(2, 9, 100)) && all.note(&report(2, 10, 101)), "and may begin again");
    }

    #[test]
    fn one_late_report_of_each_run_is_none() {
        let mut all = Duplicates::default();
        for run in 1..20 {
            assert!(!all.note(&report(run, 9, 0)));
        }
    }

    #[test]
    fn condition_precedes_those_of_the_device() {
        let mut all = Duplicates::default();
        assert!(!all.note(&report(1, 1, 0)) && all.note(&report(1, 2, 0)));
        all.confirm("edge-1".parse().unwrap());
        for (health, others) in [
            (json!({"reasons": [{"code": "x"}], "status": "degraded"}), 1),
            (json!({"reasons": 7}), 0),
            (json!([1]), 0),
        ] {
            let mut received = report(2, 1, 0);
            received.report.health = Some(health);
            let health = all.mark(&received).unwrap().report.health.unwrap();
            assert_eq!(health["reasons"][0]["code"], "duplicate_identity", "{health}");
            assert_eq!(health["reasons"].as_array().unwrap().len(), others + 1);
        }
    }
}
