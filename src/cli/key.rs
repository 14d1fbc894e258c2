//! `spoke key`: makes a private key, or shows the public half of one.
use super::{Failure, Outcome, load, print};
use crate::net::key::SecretKey;
use crate::net::state::IfName;
use crate::sys::keys::{IfMissing, private};
use crate::sys::random::key_bytes;
use std::io::Read as _;
use zeroize::Zeroizing;

/// `spoke key …`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print a new private key (redirect it into a file of mode 0600)
    Generate,
    /// Print the public half of a private key read from standard input, or of an interface's key
    Public {
        /// The interface, from the configuration; without it the key is read from standard input
        #[arg(short, long)]
        interface: Option<IfName>,
    },
}

/// Runs it.
pub fn run(command: &Command, config: &std::path::Path) -> Outcome {
    let line = |text: &str| print(&format!("{text}\n"));
    match command {
        Command::Generate => line(&SecretKey::clamped(*key_bytes()?).reveal_base64()),
        Command::Public { interface: None } => {
            let mut text = Zeroizing::new(String::with_capacity(128));
            std::io::stdin().lock().take(128).read_to_string(&mut text)?;
            let key: SecretKey = text.trim().parse().map_err(|e| Failure::BadInput(format!("standard input: {e}")))?;
            line(&key.public().to_string());
        }
        Command::Public { interface: Some(name) } => {
            let config = load(config)?;
            let Some(interface) = config.interfaces.iter().find(|i| i.name == *name) else {
                return Err(Failure::BadInput(format!(
                    "--interface: the configuration has no [[interface]] named {name}"
                )));
            };
            line(&private(&interface.private_key, IfMissing::Fail)?.public().to_string());
        }
    }
    Ok(())
}
