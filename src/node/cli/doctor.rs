//! `spoke doctor`: looks for what could keep the tunnel from coming up, and says what to do about each.
use super::load;
use crate::doctor::chain::endpoints as chain;
use crate::doctor::hub as probe_hub;
use crate::doctor::probe;
use crate::doctor::probe::{Finding, Level};
use spoke_command::{Failure, Outcome, print};
use spoke_config::effective::Effective;
use std::fmt::Write as _;
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
    let findings = examine(&config)?;
    if args.json {
        print(&format!("{:#}\n", serde_json::to_value(&findings)?));
    } else {
        print(&table(&findings));
    }
    if findings.iter().any(|f| f.level == Level::Fail) { Err(Failure::Silent) } else { Ok(()) }
}

fn examine(config: &Effective) -> Result<Vec<Finding>, Failure> {
    let own = config.own();
    let mut findings = vec![
        spoke_command::block_on(probe::wireguard())?,
        probe::privileges(),
        probe::clock(),
        probe::state_dir(&own.node.state_dir),
    ];
    findings.extend(probe::keys(own));
    for hub in config.hubs() {
        let (finding, addresses) = probe::dns(&hub.endpoint);
        findings.push(finding);
        let interface = config.uplink_interface().and_then(|name| config.interface(name));
        let mtu = interface.map_or(spoke_config::interface::DEFAULT_MTU, |i| i.mtu());
        let mut paths: Vec<Finding> = addresses.iter().flat_map(|a| probe::udp_path(*a, mtu)).collect();
        // One address that can be reached is enough for a tunnel: the session tries them all.
        if paths.iter().any(|f| f.level == Level::Ok) {
            paths.iter_mut().filter(|f| f.level == Level::Fail).for_each(|f| f.level = Level::Warn);
        }
        findings.append(&mut paths);
    }
    findings.extend(probe_hub::forwarding(config));
    if let Some(control) = &own.control {
        findings.push(spoke_command::block_on(probe_hub::control(control))?);
    }
    if let Some(grants) = config.grants() {
        findings.extend(spoke_command::block_on(chain(grants))?);
    }
    Ok(findings)
}

fn table(findings: &[Finding]) -> String {
    let mut out = String::new();
    for f in findings {
        let _ = writeln!(out, "{:<4}  {:<22} {}", f.level.label(), f.what, f.detail);
        if let Some(remedy) = &f.remedy {
            let _ = writeln!(out, "{:<28}→ {remedy}", "");
        }
    }
    out
}
