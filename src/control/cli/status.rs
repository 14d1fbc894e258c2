//! `spoke-control status`: the fleet in figures.
use super::Context;
use super::table::json;
use crate::api::view::Overview;
use crate::clock::now_ms;
use crate::store::node::NodeState;
use crate::tls;
use spoke_command::{Outcome, print};
use std::fmt::Write as _;

/// `spoke-control status`
pub async fn status(context: &Context) -> Outcome {
    // The long-polls are known to the serving processes only.
    let overview = Overview::new(context.store.read().await?.fleet_counts(now_ms()).await?, 0, 0);
    if context.json {
        print(&json(&overview));
        return Ok(());
    }
    let count = |state: NodeState| overview.nodes.get(state.as_str()).copied().unwrap_or(0);
    let mut out = format!(
        "nodes: {} active, {} pending, {} expected, {} removed\nreporting within twenty minutes: {}\n",
        count(NodeState::Active),
        count(NodeState::Pending),
        count(NodeState::Expected),
        count(NodeState::Removed),
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

/// `spoke-control pin`: for scripts, which must not search the log for it.
pub fn pin(context: &Context) -> Outcome {
    let config = &context.config;
    let pin = tls::pin(config.tls.as_ref(), &config.state_dir)?;
    print(&if context.json { json(&serde_json::json!({"pin": pin})) } else { format!("{pin}\n") });
    Ok(())
}
