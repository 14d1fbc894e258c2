//! `spoke check`: reports all faults of the configuration, or prints the effective one, with its risks on standard error.
use crate::config_file::load;
use spoke_command::{Outcome, complain, print};
use std::path::Path;

/// Prints the effective configuration as TOML, secrets redacted.
pub fn run(config: &Path) -> Outcome {
    let config = load(config)?;
    for risk in config.risks() {
        complain("spoke", &format!("warning: {risk}"));
    }
    print(&config.to_toml());
    Ok(())
}
