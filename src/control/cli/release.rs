//! `spoke-control release`: the desired releases of the fleet's images.
use super::Context;
use super::prompt::seconds;
use super::table::{json, render};
use crate::clock::now_ms;
use crate::registry::{networks, releases};
use crate::store::release::Release;
use clap::{Args, Subcommand};
use spoke_command::{Failure, Outcome, print};
use spoke_model::node_id::NodeId;

/// A network, or a node in it.
#[derive(Clone, Debug, Args)]
pub struct ReleaseTarget {
    /// The network; not needed where there is only one, or where --node is in one
    #[arg(long)]
    network: Option<String>,
    /// The only node it is for, to try it there first
    #[arg(long)]
    node: Option<NodeId>,
}

impl ReleaseTarget {
    async fn meant(self, context: &Context) -> Result<(String, Option<NodeId>), Failure> {
        let network = networks::meant(&context.store, self.network, self.node.as_ref()).await?;
        Ok((network, self.node))
    }
}

/// `spoke-control release …`
#[derive(Debug, Subcommand)]
pub enum ReleaseCommand {
    /// List the desired releases
    List,
    /// Set the desired release of a network or of one node: the image installs it, tries it and reports the outcome
    Want {
        /// Version of the release, as its bundle has it
        version: String,
        /// The network or node
        #[command(flatten)]
        target: ReleaseTarget,
        /// Where bundles are (SOURCE/BOARD.spoke); by default as each device is configured
        #[arg(long)]
        source: Option<String>,
        /// Time over which the downloads of the nodes are spread, such as 6h; each node has its own moment in it
        #[arg(long)]
        spread: Option<String>,
    },
    /// Have the nodes that gave the desired release up try it again
    Retry {
        /// The network or node
        #[command(flatten)]
        target: ReleaseTarget,
    },
    /// Clear the desired release; devices keep what they run
    Unwant {
        /// The network or node
        #[command(flatten)]
        target: ReleaseTarget,
    },
}

/// Runs the command.
pub async fn run(context: &Context, command: ReleaseCommand) -> Outcome {
    let (store, actor) = (&context.store, &context.actor);
    match command {
        ReleaseCommand::List => {
            list(context, None).await?;
        }
        ReleaseCommand::Want { version, target, source, spread } => {
            let (network, node) = target.meant(context).await?;
            let spread = spread.as_deref().map(seconds).transpose()?.unwrap_or_default();
            let spread_seconds = u32::try_from(spread).unwrap_or(u32::MAX);
            let now = now_ms();
            let release = Release { network, node, version, source, spread_seconds, since_ms: now, renewed_ms: 0 };
            releases::set(store, &release, actor, now).await?;
            list(context, Some((release.network.as_str(), release.node.as_ref()))).await?;
        }
        ReleaseCommand::Retry { target } => {
            let (network, node) = target.meant(context).await?;
            releases::retry(store, &network, node.as_ref(), actor, now_ms()).await?;
            list(context, Some((network.as_str(), node.as_ref()))).await?;
        }
        ReleaseCommand::Unwant { target } => {
            let (network, node) = target.meant(context).await?;
            releases::clear(store, &network, node.as_ref(), actor, now_ms()).await?;
            list(context, Some((network.as_str(), node.as_ref()))).await?;
        }
    }
    Ok(())
}

/// Prints every desired release, or that of a network or node.
async fn list(context: &Context, of: Option<(&str, Option<&NodeId>)>) -> Outcome {
    let mut all = context.store.read().await?.releases().await?;
    all.retain(|r| of.is_none_or(|(network, node)| r.network == network && r.node.as_ref() == node));
    if context.json {
        print(&json(&all));
        return Ok(());
    }
    let row = |r: &Release| {
        let node = r.node.as_ref().map_or_else(|| "(all)".to_owned(), ToString::to_string);
        let source = r.source.clone().unwrap_or_else(|| "(as configured)".to_owned());
        vec![r.network.clone(), node, r.version.clone(), source]
    };
    let rows: Vec<_> = all.iter().map(row).collect();
    print(&render(&["NETWORK", "NODE", "RELEASE", "SOURCE"], &rows));
    Ok(())
}
