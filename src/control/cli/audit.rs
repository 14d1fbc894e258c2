//! `spoke-control audit`: the audit trail.
use super::Context;
use super::table::{json, render};
use crate::api::view::{AuditView, all};
use crate::store::audit::AuditFilter;
use clap::Args;
use spoke_command::{Outcome, print};

/// `spoke-control audit`
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Only of this entity, such as a node id
    #[arg(long)]
    entity: Option<String>,
    /// At most this many
    #[arg(long, default_value_t = 50)]
    limit: i64,
}

/// `spoke-control audit`
pub async fn audit(context: &Context, args: AuditArgs) -> Outcome {
    let filter = AuditFilter { entity_id: args.entity, limit: args.limit.clamp(1, 10_000), ..AuditFilter::default() };
    let records: Vec<AuditView> = all(context.store.read().await?.audit_records(&filter).await?);
    if context.json {
        print(&json(&records));
        return Ok(());
    }
    let row = |r: &AuditView| {
        vec![
            r.timestamp.clone(),
            r.user.clone(),
            r.action.clone(),
            format!("{} {}", r.entity_type, r.entity_id),
            r.details.to_string(),
        ]
    };
    let rows: Vec<_> = records.iter().map(row).collect();
    print(&render(&["TIME", "WHO", "DID", "TO", "DETAILS"], &rows));
    Ok(())
}
