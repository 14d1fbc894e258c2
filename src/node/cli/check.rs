//! `spoke check`: reports all faults of the configuration and of the files it names, or prints the effective one, with its risks on
//! standard error.
use crate::config_file::load;
use crate::named_files;
use spoke_command::{Failure, Outcome, complain, print};
use std::path::Path;

/// `spoke check`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Args {
    /// Check the text alone, not the keys, secrets and certificates it names: for a file of another machine
    #[arg(long)]
    pub text_only: bool,
}

/// Prints the effective configuration as TOML, secrets redacted.
pub fn run(config: &Path, args: Args) -> Outcome {
    let config = load(config)?;
    for risk in config.risks() {
        complain("spoke", &format!("warning: {risk}"));
    }
    let faults = if args.text_only { Vec::new() } else { named_files::faults(&config) };
    if !faults.is_empty() {
        return Err(Failure::BadInput(named_files::report(&faults)));
    }
    print(&config.to_toml());
    Ok(())
}
