//! The release that a node's image shall run.
use serde::{Deserialize, Serialize};

/// The longest version of a release, in bytes.
const MAX_VERSION: usize = 64;
/// The longest address of a source, in bytes.
const MAX_SOURCE: usize = 512;

/// The release a node's image shall run, as the control plane wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WantedRelease {
    /// Version of the release, as its bundle has it.
    pub version: String,
    /// Where bundles are (`SOURCE/BOARD.spoke`); `None`: as the device's configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

impl WantedRelease {
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), &'static str> {
        let word = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_graphic());
        if !word(&self.version) || self.version.len() > MAX_VERSION {
            return Err("release must be a version of at most 64 printable characters");
        }
        let web =
            |s: &String| word(s) && s.len() <= MAX_SOURCE && (s.starts_with("https://") || s.starts_with("http://"));
        if self.source.as_ref().is_some_and(|s| !web(s)) {
            return Err("release source must be an https:// or http:// address of at most 512 characters");
        }
        Ok(())
    }
}
