//! What a created token is handed out as: the token, the section of a configuration, an invitation as line, file or QR code.
use super::Context;
use super::table::json;
use crate::tls;
use qrcode::render::unicode::Dense1x2;
use qrcode::{EcLevel, QrCode};
use spoke_command::{Failure, Outcome, print};
use spoke_config::control::Server;
use spoke_config::invitation::Invitation;
use spoke_config::node::Role;
use spoke_model::node_id::NodeId;
use spoke_model::secret::Secret;
use spoke_sys::disk::write_atomic;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

/// Where a device keeps the token.
const TOKEN_FILE: &str = "/etc/spoke/enrolment.token";

/// How a token is handed out.
#[derive(Debug, clap::Args)]
pub struct HandOut {
    /// Print the invitation alone: one line for `spoke enrol -`
    #[arg(long, conflicts_with = "qr")]
    pub invitation: bool,
    /// Write the invitation into a new file of mode 0600, for `spoke enrol FILE`, and print no secret
    #[arg(long, value_name = "FILE", conflicts_with_all = ["invitation", "qr"])]
    pub out: Option<PathBuf>,
    /// Show the invitation as QR code as well
    #[arg(long)]
    pub qr: bool,
}

impl HandOut {
    /// Refuses what would fail after the token was created.
    pub(super) fn check(&self) -> Outcome {
        match &self.out {
            Some(path) if path.exists() => {
                Err(Failure::BadInput(format!("--out: {} exists; name another file", path.display())))
            }
            _ => Ok(()),
        }
    }
}

/// A token that was created.
pub(super) struct Created {
    /// Its text.
    pub(super) token: Secret<String>,
    /// The only node it enrols.
    pub(super) node: Option<NodeId>,
    /// That node's role.
    pub(super) role: Role,
}

/// Prints `created`; `shown` is what its JSON has beside the invitation.
pub(super) fn hand_out(
    context: &Context,
    created: Created,
    how: &HandOut,
    mut shown: serde_json::Map<String, serde_json::Value>,
) -> Outcome {
    let config = &context.config;
    let pin = tls::load(config.tls.as_ref(), &config.state_dir, &config.public)?.pin;
    // A certificate from files is renewed: devices trust its issuer instead of a pin.
    let pinned = config.tls.is_none().then(|| pin.parse()).transpose().map_err(anyhow::Error::msg)?;
    let server = Server(config.public.clone());
    let role = Some(created.role).filter(|r| *r == Role::Hub);
    let invitation = Invitation { server, pin: pinned, token: created.token, node: created.node, role };
    let line = Secret::new(invitation.reveal());
    if let Some(path) = &how.out {
        write_atomic(path, format!("{}\n", line.reveal()).as_bytes(), false)
            .map_err(|e| anyhow::Error::new(e).context("the token is created and its text is lost: revoke it"))?;
        shown.insert("out".into(), path.display().to_string().into());
    } else if context.json {
        shown.insert("token".into(), invitation.token.reveal().as_str().into());
        shown.insert("invitation".into(), line.reveal().as_str().into());
    }
    shown.insert("url".into(), format!("https://{}", config.public).into());
    shown.insert("pin".into(), pin.into());
    print(&if context.json {
        json(&shown)
    } else if let Some(path) = &how.out {
        format!(
            "{}invitation written to {1}; on the device: spoke enrol {1}\n",
            hint(&config.public.host),
            path.display()
        )
    } else if how.invitation {
        format!("{}\n", line.reveal())
    } else if how.qr || std::io::stdout().is_terminal() {
        hint(&config.public.host).to_owned() + &instructions(&invitation, line.reveal(), how.qr)?
    } else {
        // For scripts: the token alone.
        format!("{}\n", invitation.token.reveal())
    });
    Ok(())
}

/// A warning about an address that no other machine can reach.
fn hint(host: &str) -> &'static str {
    match host {
        "localhost" | "127.0.0.1" | "::1" => {
            "warning: no other machine reaches this control plane by its own name for itself: set server.public\n"
        }
        _ => "",
    }
}

fn instructions(invitation: &Invitation, line: &str, qr: bool) -> Result<String, anyhow::Error> {
    let mut out = format!("token, shown this once:\n  {}\n\n", invitation.token.reveal());
    let _ = write!(out, "invitation, for `spoke enrol -` on the device:\n  {line}\n\n");
    let _ = writeln!(out, "or by hand, with the token in {TOKEN_FILE} (mode 0600), in /etc/spoke/spoke.toml:");
    let id = invitation.node.as_ref().map_or("NAME", NodeId::as_str);
    let section = format!("[node]\nid = \"{id}\"\n\n{}", invitation.section(Path::new(TOKEN_FILE)));
    for line in section.lines() {
        let _ = writeln!(out, "{}", format!("  {line}").trim_end());
    }
    if qr {
        let code = QrCode::with_error_correction_level(line, EcLevel::L)?;
        let _ = write!(out, "\n{}\n", code.render::<Dense1x2>().build());
    }
    Ok(out)
}
