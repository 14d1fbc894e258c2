//! `spoke doctor`: finds what could keep the tunnel from coming up, with the remedy.
use crate::config_file::load;
use crate::doctor::examine;
use crate::doctor::finding::{Level, table};
use spoke_command::{Failure, Outcome, print};
use std::path::Path;

/// `spoke doctor`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Prints every finding; exit code 1 if one of them is a failure.
pub fn run(config: &Path, args: &Args) -> Outcome {
    let config = super::remembered::effective(load(config)?);
    let findings = spoke_command::block_on(examine(&config))?;
    if args.json {
        print(&super::json(&findings)?);
    } else {
        print(&table(&findings));
    }
    if findings.iter().any(|f| f.level == Level::Fail) { Err(Failure::Silent) } else { Ok(()) }
}
