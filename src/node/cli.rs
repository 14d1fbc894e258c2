//! The command line: one file per subcommand. Exit codes: 0 success, 1 failure, 2 bad input.
pub mod audit;
pub mod check;
pub mod clock;
pub mod config;
pub mod doctor;
pub mod drift;
pub mod enrol;
pub mod grants;
pub mod import;
pub mod key;
pub mod plan;
pub mod provision;
pub mod reload;
mod remembered;
pub mod status;
pub mod update;

use crate::run;
use clap::{Parser, Subcommand};
use serde::Serialize;
use spoke_command::{Outcome, exit_code, harden, print, usage, wants_json};
use spoke_model::tree::Tree;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Default of `--config`.
pub const CONFIG: &str = "/etc/spoke/spoke.toml";

/// Brings up WireGuard to a hub and keeps it up.
#[derive(Debug, Parser)]
#[command(name = "spoke", version = spoke_model::VERSION, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 fine, 1 failed, 2 bad input; with --exit-code 2 means that something differs.\nThe configuration is read from --config, then from variables SPOKE__SECTION__KEY."
)]
pub struct Cli {
    /// Configuration file
    #[arg(short, long, global = true, value_name = "FILE", default_value = CONFIG)]
    pub config: PathBuf,
    /// Print JSON, errors too: documents with their version in `schema`
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the supervisor in the foreground
    Run(run::Args),
    /// Check the configuration and the files it names: print every fault, or the effective configuration
    Check(check::Args),
    /// Take the edited configuration into force, after a check; the tunnel stays up
    Reload,
    /// Show what the running supervisor sees and does
    Status(status::Args),
    /// Show what `run` would change in the kernel now
    Plan(plan::Args),
    /// Make a WireGuard key, or show a public one
    #[command(subcommand)]
    Key(key::Command),
    /// Enrol this device with an invitation to a fleet, or again under the same name
    #[command(alias = "enroll")]
    Enrol(enrol::Args),
    /// Convert a file of wg-quick into a configuration and key files
    Import(import::Args),
    /// Restore the clock of a board that has none, or show it
    #[command(subcommand)]
    Clock(clock::Command),
    /// Show who is admitted by NFT and why, or ask the chain
    #[command(subcommand)]
    Grants(grants::Command),
    /// Show what the kernel has otherwise than wanted, or repair it
    Drift(drift::Args),
    /// Show, compare and take back what was changed through the agent API
    #[command(subcommand)]
    Config(config::Command),
    /// Show who changed what, or check that record
    #[command(subcommand)]
    Audit(audit::Command),
    /// Look for what could keep the tunnel from coming up, with a remedy for each
    Doctor,
    /// Install, show and take back updates of an image with two slots
    #[command(subcommand)]
    Update(update::Command),
    /// Take the settings from an image's boot partition (run by the image's own unit)
    #[command(hide = true)]
    Provision(provision::Args),
}

/// Parses the arguments and runs the command.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    harden();
    let args: Vec<OsString> = args.into_iter().collect();
    let json = wants_json(&args);
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => return usage(json, &e),
    };
    let outcome = match &cli.command {
        Command::Run(args) => run::run(&cli.config, args),
        Command::Check(args) => check::run(&cli.config, *args, json),
        Command::Reload => reload::run(&cli.config, json),
        Command::Status(args) => status::run(&cli.config, args, json),
        Command::Plan(args) => plan::run(&cli.config, args, json),
        Command::Key(command) => key::run(command, &cli.config, json),
        Command::Enrol(args) => enrol::run(&cli.config, args, json),
        Command::Import(args) => import::run(&cli.config, args, json),
        Command::Clock(command) => clock::run(*command, &cli.config, json),
        Command::Grants(command) => grants::run(&cli.config, command, json),
        Command::Drift(args) => drift::run(&cli.config, args, json),
        Command::Config(command) => config::run(&cli.config, *command, json),
        Command::Audit(command) => audit::run(&cli.config, *command, json),
        Command::Doctor => doctor::run(&cli.config, json),
        Command::Update(command) => update::run(&cli.config, command, json),
        Command::Provision(args) => provision::run(args),
    };
    exit_code("spoke", json, outcome)
}

/// A document for `--json`, with the keys in the order of the type.
fn json<T: Serialize>(value: &T) -> Result<String, serde_json::Error> {
    // A serialiser that indents, compiled for every type, is large.
    document(serde_json::from_slice(&serde_json::to_vec(value)?)?)
}

fn document(tree: Tree) -> Result<String, serde_json::Error> {
    Ok(format!("{}\n", serde_json::to_string_pretty(&tree.document())?))
}

fn object(entries: Vec<(&str, Tree)>) -> Tree {
    Tree::Map(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// Prints the named texts as JSON, or `text`.
fn answer(json: bool, values: &[(&str, &str)], text: &str) -> Outcome {
    print(&if json { document(Tree::of_texts(values))? } else { text.to_owned() });
    Ok(())
}
