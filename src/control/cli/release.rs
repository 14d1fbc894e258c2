//! `spoke-control release …`: which release the images of the fleet shall run.
use super::Context;
use super::table::{json, render};
use crate::api::now_ms;
use crate::registry::release;
use crate::store::release::Release;
use clap::{Args, Subcommand};
use spoke_command::{Outcome, print};
use spoke_model::node_id::NodeId;

/// Of which network, or of which node in it.
#[derive(Clone, Debug, Args)]
pub struct Which {
    /// The network
    #[arg(long)]
    network: String,
    /// The only node it is for, to try it there first
    #[arg(long)]
    node: Option<NodeId>,
}

/// `spoke-control release …`
#[derive(Debug, Subcommand)]
pub enum ReleaseCommand {
    /// List the releases that are wanted
    List,
    /// Want a release of a network or of one node: its image installs it, tries it and reports what became of it
    Want {
        /// Version of the release, as its bundle has it
        version: String,
        /// Whose
        #[command(flatten)]
        which: Which,
        /// Where bundles are (SOURCE/BOARD.spoke); without it as each device is configured
        #[arg(long)]
        source: Option<String>,
    },
    /// Want nothing there any more; devices stay with what they run
    Unwant {
        /// Whose
        #[command(flatten)]
        which: Which,
    },
}

/// Runs the command.
pub async fn run(context: &Context, command: ReleaseCommand) -> Outcome {
    let (store, actor) = (&context.store, &context.actor);
    match command {
        ReleaseCommand::List => {
            let all = store.read().await?.releases().await?;
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
        }
        ReleaseCommand::Want { version, which: Which { network, node }, source } => {
            release::want(store, &Release { network, node, version, source }, actor, now_ms()).await?;
        }
        ReleaseCommand::Unwant { which: Which { network, node } } => {
            release::unwant(store, &network, node.as_ref(), actor, now_ms()).await?;
        }
    }
    Ok(())
}
