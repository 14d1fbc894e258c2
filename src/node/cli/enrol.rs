//! `spoke enrol`: enrols this device with an invitation, or a running node a second time.
use crate::config_file::{socket, variables};
use crate::enrolment::enrolment_file;
use crate::run::control::enrol_now;
use spoke_api::socket::{SOCKET, SocketRequest};
use spoke_command::{Failure, Outcome, print};
use spoke_config::Config;
use spoke_config::invitation::{Invitation, MAX_INVITATION};
use spoke_enroll::identity::Enrolment;
use spoke_model::node_id::NodeId;
use spoke_model::secret::Secret;
use spoke_sys::clock::{Clock as _, SystemClock};
use spoke_sys::disk;
use spoke_sys::socket::{CallError, call, call_within};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longer than the supervisor waits for the control plane.
const TIMEOUT: Duration = Duration::from_secs(90);

/// File of the token, beside the configuration.
const TOKEN_FILE: &str = "enrolment.token";

/// `spoke enrol`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// File with the invitation that `spoke-control token create` printed, `-` for standard input
    #[arg(value_name = "INVITATION", conflicts_with = "token")]
    invitation: Option<PathBuf>,
    /// Name of this node, where neither the invitation nor the configuration has one [default: the host name]
    #[arg(long, value_name = "ID", conflicts_with = "again")]
    id: Option<NodeId>,
    /// Enrol under the same name again, after the node was removed or the control plane replaced; until the control plane
    /// has accepted, everything stays as it is
    #[arg(long)]
    again: bool,
    /// With --again: file with the token, `-` for standard input [default: control.token]
    #[arg(long, value_name = "FILE", requires = "again")]
    token: Option<PathBuf>,
}

/// Runs the command.
pub fn run(file: &Path, args: &Args, json: bool) -> Outcome {
    match (&args.invitation, args.again) {
        (None, false) => Err(Failure::BadInput(
            "name the file of an invitation, `-` for standard input; `spoke-control token create` makes one".to_owned(),
        )),
        (Some(from), false) => enrol(file, &read_invitation(from)?, args.id.clone(), json),
        (Some(from), true) => {
            let invitation = read_invitation(from)?;
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let name = file.display().to_string();
            let same = invitation.add_to(&name, &text, None, &token_file(file)).map_err(bad_input)?;
            if same != text {
                let missing = format!("{name} does not name this control plane: run `spoke enrol` without --again");
                return Err(Failure::BadInput(missing));
            }
            again(file, Some(invitation.token.reveal().clone()), json)
        }
        (None, true) => again(file, args.token.as_deref().map(|f| read_secret("--token", f)).transpose()?, json),
    }
}

fn again(file: &Path, token: Option<String>, json: bool) -> Outcome {
    let socket = socket(file)?;
    let () = call_within(&socket, &SocketRequest::EnrolAgain { token }, TIMEOUT)?;
    let text = "enrolled again: the state of the control plane follows (spoke status)";
    super::answer(json, &[("result", text)], &format!("{text}\n"))
}

/// Writes configuration and token, and enrols: through the supervisor if one runs.
fn enrol(file: &Path, invitation: &Invitation, id: Option<NodeId>, json: bool) -> Outcome {
    let name = file.display().to_string();
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(Failure::BadInput(format!("{name}: cannot be read: {e}"))),
    };
    let id = id.or_else(host_name);
    let completed = invitation.add_to(&name, &text, id.as_ref(), &token_file(file)).map_err(bad_input)?;
    let config = Config::from_text(Some((&name, &completed)), variables()?).map_err(bad_input)?;
    let (Some(control), Some(node)) = (&config.control, &config.node.id) else {
        return Err(Failure::BadInput(format!("{name} has no [control] with this environment")));
    };
    let records = || enrolment_file(&config.node.state_dir).peek().filter(|e| e.node_id == *node);
    if let Some(known) = records() {
        return Err(already_enrolled(&known));
    }
    let token = Invitation::token_file(control).map_err(bad_input)?;
    for path in [file, token] {
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            std::fs::create_dir_all(dir).map_err(|e| Failure::BadInput(format!("{}: {e}", dir.display())))?;
        }
    }
    let line = Secret::new(format!("{}\n", invitation.token.reveal()));
    disk::write_for(token, line.reveal().as_bytes(), &config.node.state_dir)?;
    if completed != text {
        disk::write_settings(file, completed.as_bytes())?;
        if !json {
            print(&format!("{name}: control plane https://{} written\n", control.url.0));
        }
    }
    match call::<Vec<String>>(&config.node.runtime_dir.join(SOCKET), &SocketRequest::Reload) {
        Ok(_) => {
            let clock = SystemClock;
            let waited = async {
                let until = clock.now() + TIMEOUT;
                while records().is_none() && clock.now() < until {
                    clock.sleep(Duration::from_millis(200)).await;
                }
            };
            spoke_command::block_on(waited)?;
            if records().is_none() {
                let late = format!("not enrolled after {} s; `spoke status` has the reason", TIMEOUT.as_secs());
                return Err(Failure::Failed(anyhow::Error::msg(late)));
            }
            report(json, node, ": the state of the control plane follows (spoke status)")?;
        }
        Err(CallError::NotRunning { .. }) => {
            let enrolled = spoke_command::block_on(enrol_now(&config, invitation.role))?;
            enrolled.map_err(|e| e.context(format!("{node} is not enrolled; the configuration stays as it is")))?;
            report(json, node, "; start it: systemctl enable --now spoke")?;
        }
        Err(e) => return Err(e.into()),
    }
    Ok(())
}

fn report(json: bool, node: &NodeId, next: &str) -> Outcome {
    super::answer(json, &[("node_id", node.as_str())], &format!("enrolled as {node}{next}\n"))
}

fn already_enrolled(known: &Enrolment) -> Failure {
    let state = if known.removed { "was removed from the fleet at" } else { "is already enrolled with" };
    Failure::BadInput(format!(
        "{} {state} {}; to enrol it again, make a token for it (spoke-control token create --node {0}) and run `spoke enrol --again`",
        known.node_id, known.server
    ))
}

fn token_file(config: &Path) -> PathBuf {
    let absolute = std::path::absolute(config).unwrap_or_else(|_| config.to_owned());
    absolute.with_file_name(TOKEN_FILE)
}

/// The machine's name, if it can name a node.
fn host_name() -> Option<NodeId> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let first = name.split('.').next().unwrap_or_default();
    first.parse().ok().filter(|_| !matches!(first, "localhost" | "(none)"))
}

fn read_invitation(from: &Path) -> Result<Invitation, Failure> {
    if from.as_os_str().as_encoded_bytes().starts_with(b"spoke:") {
        let visible = "the invitation holds a secret, and every user can read arguments: give a file, or `-` and standard input; revoke this token";
        return Err(Failure::BadInput(visible.to_owned()));
    }
    let text = Secret::new(read_secret("invitation", from)?);
    text.reveal().parse().map_err(|e| Failure::BadInput(format!("{}: {e}", from.display())))
}

fn read_secret(what: &str, file: &Path) -> Result<String, Failure> {
    let (mut text, max) = (String::new(), MAX_INVITATION as u64);
    let read = match file.to_str() {
        Some("-") => std::io::stdin().lock().take(max).read_to_string(&mut text),
        _ => std::fs::File::open(file).and_then(|f| f.take(max).read_to_string(&mut text)),
    };
    read.map_err(|e| Failure::BadInput(format!("{what}: {}: {e}", file.display())))?;
    match text.trim() {
        "" => Err(Failure::BadInput(format!("{what}: {} is empty", file.display()))),
        text => Ok(text.to_owned()),
    }
}

fn bad_input(e: impl std::fmt::Display) -> Failure {
    Failure::BadInput(e.to_string())
}
