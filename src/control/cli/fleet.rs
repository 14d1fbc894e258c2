//! The fleet as a whole: figures and the audit trail; and what the subcommands have in common.
use super::Context;
use super::table::{json, render};
use crate::api::now_ms;
use crate::registry::RegistryError;
use crate::store::audit::Filter;
use clap::Args;
use spoke_command::{Failure, Outcome, print};
use spoke_model::duration::parse_duration;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};

/// Whether the request was at fault, and not the store.
pub fn is_bad_input(e: &RegistryError) -> bool {
    match e {
        RegistryError::Field(_)
        | RegistryError::Value(_)
        | RegistryError::Network(_)
        | RegistryError::NotFound(..)
        | RegistryError::Conflict(_)
        | RegistryError::Revoked(_)
        | RegistryError::NodeIdTaken { .. }
        | RegistryError::KeyTaken
        | RegistryError::BadToken => true,
        RegistryError::Lease(_) | RegistryError::Store(_) => false,
    }
}

/// `spoke-control audit`
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Only of this entity, such as a node id
    #[arg(long)]
    entity: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 50)]
    limit: i64,
}

/// Seconds of text such as `12h`.
pub(super) fn seconds(text: &str) -> Result<u64, Failure> {
    let bad = || Failure::BadInput(format!("{text:?} is not a duration such as 30s, 12h or 7d"));
    Ok(parse_duration(text).ok_or_else(bad)?.as_secs())
}

/// Asks before something that cannot be undone; without a terminal only `--yes` will do.
pub(super) fn confirm(what: &str, yes: bool) -> Outcome {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::BadInput(format!("{what}: say --yes to do it without being asked")));
    }
    let _ = write!(std::io::stderr().lock(), "{what}? Type yes: ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if answer.trim() == "yes" { Ok(()) } else { Err(Failure::BadInput("nothing was done".into())) }
}

/// `spoke-control audit`
pub async fn audit(context: &Context, args: AuditArgs) -> Outcome {
    let filter = Filter { entity_id: args.entity, limit: args.limit.clamp(1, 10_000), ..Filter::default() };
    let records = context.store.read().await?.audit_records(&filter).await?;
    if context.json {
        print(&json(&records));
        return Ok(());
    }
    let row = |r: &crate::store::audit::Record| {
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

/// `spoke-control status`
pub async fn status(context: &Context) -> Outcome {
    let mut tx = context.store.read().await?;
    let overview = tx.overview(now_ms()).await?;
    if context.json {
        print(&json(&overview));
        return Ok(());
    }
    let count = |state: &str| overview.nodes.get(state).copied().unwrap_or(0);
    let mut out = format!(
        "nodes: {} active, {} pending, {} expected, {} removed\nreporting within twenty minutes: {}\n",
        count("active"),
        count("pending"),
        count("expected"),
        count("removed"),
        overview.reporting
    );
    for (name, free) in &overview.free_addresses {
        let _ = writeln!(out, "network {name}: {free} addresses free");
    }
    if let Some(chain) = &overview.chain {
        let heard = chain.heard_at.as_deref().unwrap_or("not yet");
        let height = chain.height.map_or_else(|| "-".to_owned(), |h| h.to_string());
        let _ = writeln!(
            out,
            "chain {}: followed by {}, last at work {}, heard {heard}, block {height}",
            chain.chain_id, chain.follower, chain.looked_at
        );
        if let Some(trouble) = &chain.trouble {
            let _ = writeln!(out, "! {trouble}");
        }
    }
    print(&out);
    Ok(())
}
