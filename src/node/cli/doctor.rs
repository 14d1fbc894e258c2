//! `spoke doctor`: finds what could keep the tunnel from coming up, with the remedy. Asks the files, the supervisor, the
//! kernel, the control plane and the chain.
use super::plan::{Look, look};
use crate::config_file::{faulty_socket, load};
use crate::doctor::finding::{Finding, Level, table};
use crate::doctor::{examine, examine_machine, kernel, supervisor};
use crate::named_files;
use spoke_api::socket::{SOCKET, SocketRequest, StatusReport};
use spoke_command::{Failure, Outcome, print};
use spoke_config::effective::Effective;
use spoke_sys::keys::{self, IfMissing};
use spoke_sys::socket::call;
use std::path::Path;

/// Prints every finding; exit code 1 if one of them is a failure.
pub fn run(config: &Path, json: bool) -> Outcome {
    let findings = spoke_command::block_on(findings(config))?;
    if json {
        print(&super::json(&findings)?);
    } else {
        print(&table(&findings));
    }
    if findings.iter().any(|f| f.level == Level::Fail) { Err(Failure::Silent) } else { Ok(()) }
}

async fn findings(file: &Path) -> Vec<Finding> {
    let shown = file.display().to_string();
    let own = match load(file) {
        Ok(config) => config,
        Err(e) => {
            let faults = match e {
                Failure::BadInput(text) => text,
                Failure::Failed(e) => format!("{e:#}"),
                Failure::Silent | Failure::Differs | Failure::Invalid => String::new(),
            };
            let mut out = supervisor::faulty(&faults);
            out.push(supervisor::answer(&call(&faulty_socket(file), &SocketRequest::Status)));
            out.extend(examine_machine().await);
            return out;
        }
    };
    let mut out = vec![Finding::ok("configuration", shown)];
    let config = super::remembered::effective(own);
    let socket = config.own().node.runtime_dir.join(SOCKET);
    let report = call::<StatusReport>(&socket, &SocketRequest::Status);
    out.push(supervisor::answer(&report));
    if let Ok(report) = &report {
        // A supervisor of an earlier version does not know the request.
        let edited: Vec<String> = call(&socket, &SocketRequest::Edited).unwrap_or_default();
        out.extend(supervisor::edited(&edited));
        out.extend(supervisor::running(report, &config));
    }
    out.extend(examine_machine().await);
    out.extend(examine(&config).await);
    out.extend(of_kernel(&config, report.is_ok()).await);
    for fault in named_files::faults(config.own()) {
        if !out.iter().any(|f| f.what == fault.what) {
            out.push(fault);
        }
    }
    out
}

/// What a supervisor would find in the kernel, or finds without a fault.
async fn of_kernel(config: &Effective, runs: bool) -> Vec<Finding> {
    let (keys, _) = keys::load(config.own(), IfMissing::Imagine);
    let Ok(Look { observed, desired }) = look(config, keys).await else { return Vec::new() };
    let mut out = kernel::adopted(config, &observed);
    if !runs {
        out.extend(kernel::wanted(&desired, &observed));
        out.extend(kernel::ports(config, &observed).await);
    }
    out
}
