//! `spoke-control audit`: the audit trail.
use super::Context;
use super::table::{json, render};
use crate::api::view::{AuditView, all};
use crate::store::audit::AuditFilter;
use clap::{Args, Subcommand};
use spoke_command::{Failure, Outcome, print};
use spoke_model::time::Wall;
use std::io::Write as _;

/// `spoke-control audit`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct AuditArgs {
    /// Verify or export it
    #[command(subcommand)]
    command: Option<AuditCommand>,
    /// Only of this entity, such as a node id
    #[arg(long)]
    entity: Option<String>,
    /// At most this many
    #[arg(long, default_value_t = 50)]
    limit: i64,
}

/// `spoke-control audit …`
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Verify that no record was changed or removed: exit code 1 if one was
    Verify {
        /// A head that an earlier verification printed, kept elsewhere; several are possible
        #[arg(long, value_name = "HASH")]
        noted: Vec<String>,
    },
    /// Print every record as a line of JSON, oldest first
    Export,
}

/// `spoke-control audit`
pub async fn audit(context: &Context, args: AuditArgs) -> Outcome {
    match args.command {
        Some(AuditCommand::Verify { noted }) => return verify(context, noted).await,
        Some(AuditCommand::Export) => return export(context).await,
        None => {}
    }
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

async fn verify(context: &Context, noted: Vec<String>) -> Outcome {
    let report = context.store.read().await?.verify_audit(&noted.into_iter().collect()).await?;
    if context.json {
        print(&json(&report));
    } else {
        let text = |hash: &str| if hash.is_empty() { "-" } else { hash }.to_owned();
        let rows: Vec<_> =
            report.chains.iter().map(|r| vec![r.chain.to_owned(), r.records.to_string(), text(&r.head)]).collect();
        print(&render(&["CHAIN", "RECORDS", "HEAD"], &rows));
        if let Some(until) = report.unchained_until_ms {
            let (count, until) = (report.unchained, Wall(until / 1000));
            print(&format!(
                "{count} records in no chain, the newest of {until}: written by a release without chains\n"
            ));
        }
    }
    report.fault().map_or(Ok(()), |fault| Err(Failure::Failed(anyhow::anyhow!("the audit trail was changed: {fault}"))))
}

async fn export(context: &Context) -> Outcome {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut after = 0;
    let mut tx = context.store.read().await?;
    loop {
        let page = tx.audit_export(after).await?;
        let Some(last) = page.last() else { break };
        after = last.id;
        for record in &page {
            let line = serde_json::to_string(record).map_err(anyhow::Error::new)?;
            writeln!(out, "{line}")?;
        }
    }
    Ok(out.flush()?)
}
