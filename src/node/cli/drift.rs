//! `spoke drift`: differences between desired and observed state, and their repair on request.
use crate::config_file::socket;
use spoke_api::socket::SocketRequest;
use spoke_change::request::{RepairRequest, RepairResult};
use spoke_command::text::Lines;
use spoke_command::{Failure, Outcome, print};
use spoke_net::drift::DriftReport;
use spoke_sys::socket::call;
use std::path::Path;

/// `spoke drift`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Exit with 2 if anything differs, 1 if that cannot be found out
    #[arg(long)]
    pub exit_code: bool,
    /// Add what is missing and restore what differs, whatever the interface's policy
    #[arg(long)]
    pub repair: bool,
    /// With --repair: also remove undeclared peers
    #[arg(long, requires = "repair")]
    pub remove_unknown: bool,
    /// With --repair: only print what would be done
    #[arg(long, requires = "repair")]
    pub dry_run: bool,
}

/// Prints the drift, or repairs it.
pub fn run(config: &Path, args: &Args, json: bool) -> Outcome {
    let socket = socket(config).map_err(|e| if args.exit_code { e.not_2() } else { e })?;
    if args.repair {
        let (remove_unknown, dry_run) = (args.remove_unknown, args.dry_run);
        let what = RepairRequest { remove_unknown, dry_run, ..RepairRequest::default() };
        let done: RepairResult = call(&socket, &SocketRequest::DriftRepair { what })?;
        print(&if json { super::json(&done)? } else { repaired(&done, dry_run) });
        return if done.errors.is_empty() { Ok(()) } else { Err(Failure::Silent) };
    }
    let report: DriftReport = call(&socket, &SocketRequest::Drift)?;
    print(&if json { super::json(&report)? } else { table(&report) });
    if args.exit_code && report.has_drift { Err(Failure::Differs) } else { Ok(()) }
}

fn repaired(done: &RepairResult, dry_run: bool) -> String {
    let mut out = Lines::default();
    let would = if dry_run { "would be " } else { "" };
    for (what, keys) in [("added", &done.added), ("restored", &done.updated), ("removed", &done.removed)] {
        for key in keys {
            let _ = writeln!(out, "{would}{what}: {key}");
        }
    }
    for e in &done.errors {
        let _ = writeln!(out, "FAILED to {} {}: {}", e.action, e.peer, e.error);
    }
    if out.is_empty() { "nothing to do\n".to_owned() } else { out.into() }
}

/// The drift as text.
fn table(r: &DriftReport) -> String {
    let mut out = Lines::default();
    for (name, link) in r.interfaces.iter().filter(|(_, l)| l.has_drift) {
        for m in &link.interface_mismatches {
            let _ = writeln!(out, "{name}: {} is {}, wanted {}", m.field, m.actual, m.expected);
        }
        for p in &link.unknown_peers {
            let _ = writeln!(out, "{name}: unknown peer {} ({})", p.public_key, nets(&p.allowed_ips));
        }
        for p in &link.missing_peers {
            let who = p.name.as_deref().map(|n| format!(" {n}")).unwrap_or_default();
            let _ = writeln!(out, "{name}: missing peer {}{who} ({})", p.public_key, nets(&p.allowed_ips));
        }
        for p in &link.mismatched_peers {
            for m in &p.mismatches {
                let _ =
                    writeln!(out, "{name}: peer {}: {} is {}, wanted {}", p.public_key, m.field, m.actual, m.expected);
            }
        }
    }
    if out.is_empty() {
        let _ = writeln!(out, "no drift as of {}", r.detected_at);
    }
    for d in &r.history {
        let done = if d.repaired { "repaired" } else { "left alone" };
        let _ = writeln!(out, "{}  {}: {done}, {} in all", d.time, d.interface, d.summary.total_issues);
        for step in &d.steps {
            let _ = writeln!(out, "    {step}");
        }
    }
    out.into()
}

fn nets(nets: &[ipnet::IpNet]) -> String {
    nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
