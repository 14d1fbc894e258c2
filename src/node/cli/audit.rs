//! `spoke audit`: the audit trail of this node, and its verification.
use crate::audit::entries;
use crate::config_file::{socket, state_directory};
use spoke_api::socket::SocketRequest;
use spoke_change::audit::{AuditEntry, verify};
use spoke_command::text::Lines;
use spoke_command::{Failure, Outcome, print};
use spoke_sys::socket::call;
use std::path::Path;

/// `spoke audit`.
#[derive(Clone, Copy, Debug, clap::Subcommand)]
pub enum Command {
    /// List entries, newest first
    List {
        /// Maximum number of entries
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Verify the hash chain; prints its head, to compare with one recorded elsewhere
    Verify,
}

/// Runs the command. `verify` reads the files itself, independently of the supervisor that wrote them.
pub fn run(config: &Path, command: Command, json: bool) -> Outcome {
    match command {
        Command::List { limit } => {
            let list: Vec<AuditEntry> = call(&socket(config)?, &SocketRequest::Audit { limit })?;
            print(&if json { super::json(&list)? } else { table(&list) });
        }
        Command::Verify => {
            let (list, damaged) = entries(&state_directory(config))?;
            if damaged > 0 {
                return Err(Failure::Failed(anyhow::anyhow!("{damaged} bytes or entries of the trail are damaged")));
            }
            match verify(&list)? {
                Some(head) => {
                    let (seq, entries) = (head.seq.to_string(), list.len().to_string());
                    let values = [("entries", entries.as_str()), ("head_seq", &seq), ("head_hash", &head.hash)];
                    let text = format!("{entries} entries hold; head {seq} {}\n", head.hash);
                    super::answer(json, &values, &text)?;
                }
                None => super::answer(json, &[("entries", "0")], "the trail is empty\n")?,
            }
        }
    }
    Ok(())
}

fn table(list: &[AuditEntry]) -> String {
    let mut out = Lines::default();
    for e in list {
        let clock = if e.trusted { "" } else { "?" };
        let _ = writeln!(out, "{:>6}  {}{clock}  {:<20}  {}: {}", e.seq, e.time, e.actor, e.what, e.result);
    }
    if out.is_empty() { "the trail is empty\n".to_owned() } else { out.into() }
}
