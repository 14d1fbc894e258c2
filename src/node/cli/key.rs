//! `spoke key`: generates a private key, prints a public key, or rotates the key in use.
use crate::config_file::{load, socket};
use spoke_api::socket::{SocketRequest, StatusReport};
use spoke_command::{Failure, Outcome};
use spoke_model::interface_name::IfName;
use spoke_model::key::SecretKey;
use spoke_model::key_source::KeySource;
use spoke_sys::keys::{IfMissing, identity, private};
use spoke_sys::random::key_bytes;
use spoke_sys::socket::call;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;
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
    /// Print the fingerprint of the device's identity key, which is created if there is none: an operator can announce the
    /// device by it
    Fingerprint,
    /// Change to a new key without losing the hub: it learns the new one before the old one goes
    Rotate,
}

/// Time limit of waiting for the rotation, which continues without the command.
const ROTATION_TIMEOUT: Duration = Duration::from_secs(120);

/// Runs it.
pub fn run(command: &Command, config: &std::path::Path, json: bool) -> Outcome {
    let line = |what: &str, text: &str| super::answer(json, &[(what, text)], &format!("{text}\n"));
    match command {
        Command::Generate => line("private_key", &SecretKey::clamped(*key_bytes()?).reveal_base64()),
        Command::Public { interface: None } => {
            let mut text = Zeroizing::new(String::with_capacity(128));
            std::io::stdin().lock().take(128).read_to_string(&mut text)?;
            let key: SecretKey = text.trim().parse().map_err(|e| Failure::BadInput(format!("standard input: {e}")))?;
            line("public_key", &key.public().to_string())
        }
        Command::Public { interface: Some(name) } => {
            let config = load(config)?;
            let Some(interface) = config.interfaces.iter().find(|i| i.name == *name) else {
                return Err(Failure::BadInput(format!(
                    "--interface: the configuration has no [[interface]] named {name}"
                )));
            };
            line("public_key", &private(&interface.private_key, IfMissing::Fail)?.public().to_string())
        }
        Command::Fingerprint => {
            let config = load(config)?;
            let source = config.control.and_then(|c| c.identity);
            let source = source.unwrap_or_else(|| KeySource::File(config.node.state_dir.join("identity.key")));
            line("fingerprint", &identity(&source)?.public().fingerprint())
        }
        Command::Rotate => rotate(config, json),
    }
}

fn rotate(config: &Path, json: bool) -> Outcome {
    let socket = socket(config)?;
    let () = call(&socket, &SocketRequest::RotateKey)?;
    let ended = async {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let report: StatusReport = call(&socket, &SocketRequest::Status)?;
            let control = report.control.unwrap_or_default();
            if control["key_change"].is_null() {
                let text = |pointer: &str| control.pointer(pointer).and_then(|v| v.as_str()).map(str::to_owned);
                return Ok::<_, Failure>((text("/key_changed/public_key"), text("/key_changed/error")));
            }
        }
    };
    let done = spoke_command::block_on(async { tokio::time::timeout(ROTATION_TIMEOUT, ended).await })?;
    match done {
        Ok(Ok((Some(key), _))) => super::answer(json, &[("public_key", &key)], &format!("{key}\n")),
        Ok(Ok((None, why))) => {
            let why = why.unwrap_or_else(|| "the supervisor was restarted: see `spoke status`".to_owned());
            Err(anyhow::anyhow!("the key was not changed: {why}").into())
        }
        Ok(Err(e)) => Err(e),
        Err(_) => Err(anyhow::anyhow!("the rotation is still in progress: see `spoke status`").into()),
    }
}
