//! `spoke config`: generations of changes by the agent API, the configuration and the control plane, and rollback.
use crate::config_file::socket;
use spoke_api::socket::SocketRequest;
use spoke_change::request::{Generation, RollbackResult};
use spoke_command::text::Lines;
use spoke_command::{Outcome, print};
use spoke_model::tree::Tree;
use spoke_sys::socket::call;
use std::path::Path;

/// `spoke config`.
#[derive(Clone, Copy, Debug, clap::Subcommand)]
pub enum Command {
    /// List the generations kept, newest first: `*` is in force, `<` is where a rollback goes to
    History,
    /// Show the differences between two generations
    Diff {
        /// From this generation
        a: u64,
        /// To this one
        b: u64,
    },
    /// Confirm a change that would revert otherwise
    Confirm {
        /// The generation; the pending one by default
        generation: Option<u64>,
    },
    /// Roll back to the API state of a generation, or to that before the API's last change; creates a new generation.
    /// Changes of the configuration and the control plane stay, and are listed
    Rollback {
        /// The generation
        generation: Option<u64>,
    },
}

/// Runs the command.
pub fn run(config: &Path, command: Command, json: bool) -> Outcome {
    let socket = socket(config)?;
    match command {
        Command::History => {
            let list: Vec<Generation> = call(&socket, &SocketRequest::History)?;
            print(&if json { super::json(&list)? } else { table(&list) });
        }
        Command::Diff { a, b } => {
            let lines: Vec<String> = call(&socket, &SocketRequest::Diff { a, b })?;
            if json {
                print(&super::document(Tree::of_lines(lines))?);
                return Ok(());
            }
            let mut out = Lines::default();
            for line in &lines {
                let _ = writeln!(out, "{line}");
            }
            print(&if lines.is_empty() { "no difference\n".to_owned() } else { out.into() });
        }
        Command::Confirm { generation } => {
            let done: RollbackResult = call(&socket, &SocketRequest::Confirm { generation })?;
            in_force(json, &done, "stays")?;
        }
        Command::Rollback { generation } => {
            let done: RollbackResult = call(&socket, &SocketRequest::Rollback { to: generation })?;
            in_force(json, &done, "is")?;
        }
    }
    Ok(())
}

fn in_force(json: bool, done: &RollbackResult, stays: &str) -> Outcome {
    let mut out = Lines::default();
    let _ = writeln!(out, "generation {} {stays} in force", done.generation);
    for line in &done.lines {
        let _ = writeln!(out, "  {line}");
    }
    print(&if json { super::json(done)? } else { out.into() });
    Ok(())
}

fn table(list: &[Generation]) -> String {
    if list.is_empty() {
        return "nothing was changed yet\n".to_owned();
    }
    let mut out = Lines::default();
    for g in list {
        let mark = match (g.current, g.previous) {
            (true, _) => '*',
            (false, true) => '<',
            (false, false) => ' ',
        };
        let clock = if g.trusted { "" } else { "?" };
        let wait = g.confirm_within.map(|s| format!("  (reverts in {s} s unless confirmed)")).unwrap_or_default();
        let _ = writeln!(out, "{mark} {:>5}  {}{clock}  {:<20}  {}{wait}", g.generation, g.time, g.actor, g.what);
    }
    out.into()
}
