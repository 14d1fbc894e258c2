//! `spoke enrol --again`: enrols the running node a second time.
use crate::config_file::socket;
use spoke_api::socket::SocketRequest;
use spoke_command::{Failure, Outcome, print};
use spoke_sys::socket::call_within;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest token read, in bytes.
const MAX_TOKEN: u64 = 4096;

/// Longer than the supervisor waits for the control plane.
const TIMEOUT: Duration = Duration::from_secs(90);

/// `spoke enrol`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Ask the control plane again; until it has accepted, everything stays as it is
    #[arg(long)]
    again: bool,
    /// File with the token, `-` for standard input [default: control.token]
    #[arg(long, value_name = "FILE")]
    token: Option<PathBuf>,
}

/// Runs the command.
pub fn run(config: &Path, args: &Args) -> Outcome {
    if !args.again {
        return Err(Failure::BadInput(
            "a node enrols by itself at its first start, with control.token; `--again` enrols it again".to_owned(),
        ));
    }
    let socket = socket(config)?;
    let token = args.token.as_deref().map(read_token).transpose()?;
    let () = call_within(&socket, &SocketRequest::EnrolAgain { token }, TIMEOUT)?;
    print("enrolled again: the state of the control plane follows (spoke status)\n");
    Ok(())
}

fn read_token(file: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = match file.to_str() {
        Some("-") => std::io::stdin().lock().take(MAX_TOKEN).read_to_string(&mut text),
        _ => std::fs::File::open(file).and_then(|f| f.take(MAX_TOKEN).read_to_string(&mut text)),
    };
    read.map_err(|e| Failure::BadInput(format!("--token: {}: {e}", file.display())))?;
    match text.trim() {
        "" => Err(Failure::BadInput(format!("--token: {} is empty", file.display()))),
        token => Ok(token.to_owned()),
    }
}
