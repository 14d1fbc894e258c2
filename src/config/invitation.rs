//! An invitation to a fleet: everything a device needs to enrol, in one URI, and the `[control]` section it stands for.
//!
//! `spoke://HOST:PORT/#pin=sha256:…&token=spk_…&node=ID&role=hub`; `pin`, `node` and `role` may be absent. The token is
//! in the fragment, which no program sends to a server (RFC 3986 §3.5).
use super::control::{Control, Pin, Server};
use super::fault::syntax;
use super::node::Role;
use spoke_model::key_source::KeySource;
use spoke_model::node_id::NodeId;
use spoke_model::secret::Secret;
use std::fmt::{self, Write as _};
use std::path::Path;
use std::str::FromStr;

/// Longest invitation, in bytes.
pub const MAX_INVITATION: usize = 4096;

const SCHEME: &str = "spoke://";

/// An invitation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// The control plane.
    pub server: Server,
    /// The certificate it presents; `None`: one of a public CA.
    pub pin: Option<Pin>,
    /// The enrolment token.
    pub token: Secret<String>,
    /// The only node it enrols.
    pub node: Option<NodeId>,
    /// The role of that node.
    pub role: Option<Role>,
}

/// Text that is not an invitation. The text itself is left out: it holds a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadInvitation {
    /// Something else.
    #[error("does not begin with {SCHEME}: give what `spoke-control token create` printed as invitation")]
    Scheme,
    /// The control plane's address.
    #[error("has no valid HOST:PORT of a control plane")]
    Server,
    /// A part cannot be read.
    #[error("is damaged at {0}: copy it again")]
    Part(&'static str),
    /// A part of a later release.
    #[error("has a part that this release does not know: upgrade spoke")]
    Unknown,
    /// Cut off before the token.
    #[error("has no token: it was cut off")]
    NoToken,
}

impl FromStr for Invitation {
    type Err = BadInvitation;
    fn from_str(text: &str) -> Result<Self, BadInvitation> {
        let rest = text.trim().strip_prefix(SCHEME).ok_or(BadInvitation::Scheme)?;
        let (server, parts) = rest.split_once("/#").ok_or(BadInvitation::NoToken)?;
        let server = format!("https://{server}").parse().map_err(|_| BadInvitation::Server)?;
        let (mut pin, mut token, mut node, mut role) = (None, None, None, None);
        for part in parts.split('&') {
            match part.split_once('=').ok_or(BadInvitation::Unknown)? {
                ("pin", value) => pin = Some(value.parse().map_err(|_| BadInvitation::Part("pin"))?),
                ("token", value) if is_token(value) => token = Some(Secret::new(value.to_owned())),
                ("token", _) => return Err(BadInvitation::Part("token")),
                ("node", value) => node = Some(value.parse().map_err(|_| BadInvitation::Part("node"))?),
                ("role", value) => role = Some(value.parse().map_err(|_| BadInvitation::Part("role"))?),
                _ => return Err(BadInvitation::Unknown),
            }
        }
        Ok(Self { server, pin, token: token.ok_or(BadInvitation::NoToken)?, node, role })
    }
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

impl Invitation {
    /// The invitation as one line, with its token.
    pub fn reveal(&self) -> String {
        let mut out = format!("{SCHEME}{}/#", self.server.0);
        if let Some(pin) = &self.pin {
            let _ = write!(out, "pin={pin}&");
        }
        let _ = write!(out, "token={}", self.token.reveal());
        if let Some(node) = &self.node {
            let _ = write!(out, "&node={node}");
        }
        if self.role == Some(Role::Hub) {
            out.push_str("&role=hub");
        }
        out
    }

    /// The keys of `[control]`, one a line; the token is in `token_file`.
    pub fn section(&self, token_file: &Path) -> String {
        let mut out = format!("[control]\nurl = \"https://{}\"\n", self.server.0);
        if let Some(pin) = &self.pin {
            let _ = writeln!(out, "pin = \"{pin}\"");
        }
        let _ = writeln!(out, "token = \"file:{}\"", token_file.display());
        out
    }

    /// The text of a configuration file `name` with what the invitation adds to it, `id` where nothing names the node, and
    /// the file that the token goes into, which is `token_file` unless the text names one.
    ///
    /// # Errors
    /// What in the text contradicts the invitation, as lines.
    pub fn add_to(
        &self,
        name: &str,
        text: &str,
        id: Option<&NodeId>,
        token_file: &Path,
    ) -> Result<String, DifferentSetting> {
        let differs = |key: &str, problem: &dyn fmt::Display| DifferentSetting(format!("{name}: {key}: {problem}"));
        let table: toml::Table = match syntax(name, text) {
            Some(fault) => return Err(DifferentSetting(fault.to_string())),
            None => text.parse().unwrap_or_default(),
        };
        let known = |section: &str, key: &str| table.get(section)?.as_table()?.get(key)?.as_str();
        let mut out = text.to_owned();
        match (known("node", "id"), self.node.as_ref().or(id)) {
            (Some(own), _) => match &self.node {
                Some(node) if node.as_str() != own => {
                    return Err(differs("node.id", &format_args!("is {own}, and the invitation is for {node}")));
                }
                _ => {}
            },
            (None, Some(id)) => add(&mut out, table.contains_key("node"), "node", &format!("id = \"{id}\"\n"))
                .ok_or_else(|| differs("node.id", &format_args!("is missing: add id = \"{id}\" to [node]")))?,
            (None, None) => return Err(differs("node.id", &"is missing: name the node with --id")),
        }
        if let (Some(own), Some(Role::Hub)) = (known("node", "role"), self.role)
            && own != "hub"
        {
            return Err(differs("node.role", &format_args!("is {own}, and the invitation is for a hub: remove it")));
        }
        if !table.contains_key("control") {
            add(&mut out, false, "control", self.section(token_file).trim_start_matches("[control]\n"));
            return Ok(out);
        }
        let url = format!("https://{}", self.server.0);
        match known("control", "url") {
            Some(own) if own.parse() == Ok(self.server.clone()) => {}
            Some(_) => return Err(differs("control.url", &format_args!("is not {url}, which the invitation names"))),
            None => return Err(differs("control.url", &format_args!("is missing: add url = \"{url}\" to [control]"))),
        }
        match (known("control", "pin"), &self.pin) {
            (Some(own), Some(pin)) if own.parse::<Pin>() != Ok(*pin) => {
                return Err(differs("control.pin", &format_args!("is not {pin}, which the invitation names")));
            }
            (None, Some(pin)) if known("control", "ca").is_none() => {
                return Err(differs("control.pin", &format_args!("is missing: add pin = \"{pin}\" to [control]")));
            }
            _ => {}
        }
        if known("control", "token").is_none() {
            let line = format!("token = \"file:{}\"\n", token_file.display());
            add(&mut out, true, "control", &line)
                .ok_or_else(|| differs("control.token", &format_args!("is missing: add {}", line.trim_end())))?;
        }
        Ok(out)
    }

    /// The file that a configuration made by [`Invitation::add_to`] reads the token from.
    ///
    /// # Errors
    /// It reads it from elsewhere.
    pub fn token_file(control: &Control) -> Result<&Path, DifferentSetting> {
        match &control.token {
            Some(KeySource::File(path)) => Ok(path),
            Some(source) => {
                let problem = format!("control.token: {source} is not a file: put the token of the invitation there");
                Err(DifferentSetting(problem))
            }
            None => Err(DifferentSetting("control.token: is missing".to_owned())),
        }
    }
}

/// A configuration that an invitation does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DifferentSetting(String);

/// Adds `lines` to the table `section` of `text`: after its header, or with a header of its own at the end. `None`: the
/// table is written in another form.
fn add(text: &mut String, exists: bool, section: &str, lines: &str) -> Option<()> {
    if !exists {
        if !text.is_empty() {
            text.push_str(if text.ends_with('\n') { "\n" } else { "\n\n" });
        }
        let _ = write!(text, "[{section}]\n{lines}");
        return Some(());
    }
    let header = format!("[{section}]");
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        at += line.len();
        if line.split('#').next().map(str::trim) == Some(header.as_str()) {
            if !line.ends_with('\n') {
                text.push('\n');
                at += 1;
            }
            text.insert_str(at, lines);
            return Some(());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    fn invitation(text: &str) -> Invitation {
        text.parse().unwrap()
    }

    fn pin() -> String {
        format!("sha256:{}", "0f".repeat(32))
    }

    #[test]
    fn invitation_reads_back_and_is_safe_in_a_url() {
        for text in [
            format!("spoke://control.example.net:8443/#pin={}&token=spk_1_Ab-9", pin()),
            "spoke://[2001:db8::1]:443/#token=spk_1&node=hub-1&role=hub".to_owned(),
        ] {
            let read = invitation(&text);
            assert_eq!(read.reveal(), text);
            assert_eq!(invitation(&format!(" {text}\n")), read);
            assert!(!format!("{read:?}").contains("spk_1"), "no token in Debug");
        }
        let full = format!("spoke://c:1/#pin={}&token=spk_1", pin());
        for cut in 0..full.len() {
            let refused = full[..cut].parse::<Invitation>();
            assert!(refused.is_err() || full[..cut].contains("token=s"), "{cut}");
        }
        for (bad, expected) in [
            ("spk_1_abc", BadInvitation::Scheme),
            ("spoke://c:0/#token=a", BadInvitation::Server),
            ("spoke://c:1/#token=a b", BadInvitation::Part("token")),
            ("spoke://c:1/#token=a&later=1", BadInvitation::Unknown),
            ("spoke://c:1/#pin=x&token=a", BadInvitation::Part("pin")),
        ] {
            assert_eq!(bad.parse::<Invitation>(), Err(expected), "{bad}");
        }
    }

    #[test]
    fn invitation_completes_a_configuration() {
        let file = Path::new("/etc/spoke/enrolment.token");
        let id: NodeId = "bare-1".parse().unwrap();
        let full = invitation(&format!("spoke://c.example.net:8443/#pin={}&token=spk_1", pin()));
        for text in [
            "",
            "[node]",
            "[node] # this one\nrole = \"node\"",
            "[node]\nid = \"bare-1\"\n\n[[interface]]\nname = \"wg0\"\n",
            "[control] # theirs\nurl = \"https://C.example.net:8443/\"\nca = \"/ca.pem\"\n[node]\n",
        ] {
            let done = full.add_to("x", text, Some(&id), file).unwrap();
            let config = Config::from_text(Some(("x", &done)), []).unwrap();
            let control = config.control.unwrap();
            assert_eq!((config.node.id.as_ref(), &control.url), (Some(&id), &full.server), "{done}");
            assert_eq!(Invitation::token_file(&control).unwrap(), file);
            assert_eq!(full.add_to("x", &done, None, file).unwrap(), done, "a second time");
        }
        let hub = invitation("spoke://c:1/#token=a&node=hub-1&role=hub");
        let refused = |i: &Invitation, text: &str| i.add_to("f", text, None, file).unwrap_err().to_string();
        for (invitation, text, key) in [
            (&hub, "[node]\nid = \"edge-1\"\n", "node.id: is edge-1, and the invitation is for hub-1"),
            (&hub, "[node]\nrole = \"node\"\n", "node.role: is node"),
            (&hub, "[control]\nurl = \"https://d:1\"\n", "control.url: is not https://c:1"),
            (&full, "[node]\nid = \"a\"\n[control]\nurl = \"https://c.example.net:8443\"\n", "control.pin: is missing"),
            (&full, "", "node.id: is missing: name the node with --id"),
            (&full, "a = \n", "f:1: is not TOML"),
            (&full, "node = {}\n", "node.id: is missing"),
        ] {
            let why = refused(invitation, text);
            assert!(why.starts_with("f:") && why.contains(key), "{key}: {why}");
        }
        assert!(refused(&hub, "node = {}\n").contains("add id = \"hub-1\" to [node]"));
    }
}
