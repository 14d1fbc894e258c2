//! `spoke check`: reports all faults of the configuration, or prints the effective one.
use crate::config_file::load;
use spoke_command::{Outcome, print};
use std::path::Path;

/// Prints the effective configuration as TOML, secrets redacted.
pub fn run(config: &Path) -> Outcome {
    let config = load(config)?;
    print(&config.to_toml());
    Ok(())
}
