//! `[node]`: identity, role and directories.
use super::reader::Table;
use serde::{Deserialize, Serialize};
use spoke_model::node_id::NodeId;
use std::path::PathBuf;
use std::str::FromStr;

/// Role of the machine in its network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Connects to a hub.
    #[default]
    Node,
    /// Listens at a public endpoint for many nodes.
    Hub,
}

impl Role {
    /// As in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Hub => "hub",
        }
    }
}

impl FromStr for Role {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "node" => Ok(Self::Node),
            "hub" => Ok(Self::Hub),
            _ => Err("not a role"),
        }
    }
}

/// `[node]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Name in the network; required with `[control]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<NodeId>,
    /// Node or hub.
    pub role: Role,
    /// Whether the file or a variable names the role; otherwise the control plane does.
    #[serde(skip)]
    pub role_named: bool,
    /// Keys and documents.
    pub state_dir: PathBuf,
    /// Socket and status of the running process.
    pub runtime_dir: PathBuf,
}

impl Node {
    /// `otherwise`: the role where none is named.
    pub(super) fn read(t: &mut Table<'_>, otherwise: Role) -> Self {
        let dir = |t: &mut Table<'_>, key, default: &str| -> PathBuf {
            let path = t.text(key).map_or_else(|| default.into(), PathBuf::from);
            if !path.is_absolute() {
                t.fault(
                    key,
                    format_args!("{:?} is not an absolute path", path.display().to_string()),
                    "begin it with /",
                );
            }
            path
        };
        let role_named = t.has("role");
        Self {
            id: t.parsed("id", "1 to 128 characters out of A-Z a-z 0-9 _ -"),
            role: t.parsed("role", "\"node\" or \"hub\"").unwrap_or(otherwise),
            role_named,
            state_dir: dir(t, "state_dir", STATE_DIR),
            runtime_dir: dir(t, "runtime_dir", RUNTIME_DIR),
        }
    }
}

/// Default of `node.runtime_dir`.
const STATE_DIR: &str = "/var/lib/spoke";
const RUNTIME_DIR: &str = "/run/spoke";

/// `node.runtime_dir` as a text with faults has it, which may not even be TOML.
pub fn runtime_dir(text: &str) -> PathBuf {
    directory(text, "runtime_dir").unwrap_or_else(|| RUNTIME_DIR.into())
}

/// `node.state_dir` as a text with faults has it.
pub fn state_dir(text: &str) -> PathBuf {
    directory(text, "state_dir").unwrap_or_else(|| STATE_DIR.into())
}

fn directory(text: &str, key: &str) -> Option<PathBuf> {
    let value = |line: &str| {
        let value = line.trim_start().strip_prefix(key)?.trim_start().strip_prefix('=')?.trim_start();
        let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        value.get(1..)?.split(quote).next().map(PathBuf::from)
    };
    text.lines().find_map(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtime_directory_is_read_from_a_faulty_text() {
        for (text, expected) in [
            ("[node]\nruntime_dir = \"/run/a\" # here\nid = ", "/run/a"),
            ("  runtime_dir='/run/b'", "/run/b"),
            ("# runtime_dir = \"/run/c\"\n[node", RUNTIME_DIR),
            ("runtime_dir = ", RUNTIME_DIR),
            ("", RUNTIME_DIR),
        ] {
            assert_eq!(runtime_dir(text), PathBuf::from(expected), "{text}");
        }
    }
}
