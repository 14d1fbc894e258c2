//! The release that a node is to run.
use serde::{Deserialize, Serialize};

/// Longest version, in bytes.
const MAX_VERSION: usize = 64;
/// Longest source URL, in bytes.
const MAX_SOURCE: usize = 512;

/// The release that the control plane wants on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WantedRelease {
    /// Version, as in the bundle.
    pub version: String,
    /// Base URL of the bundles (`SOURCE/BOARD.spoke`); `None`: the device's configured source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

impl WantedRelease {
    /// Validates version and source.
    pub fn check(&self) -> Result<(), &'static str> {
        let printable = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_graphic());
        if !printable(&self.version) || self.version.len() > MAX_VERSION {
            return Err("release must be a version of at most 64 printable characters");
        }
        let web = |s: &String| {
            let scheme = s.split("://").next().unwrap_or_default().to_ascii_lowercase();
            printable(s) && s.len() <= MAX_SOURCE && s.contains("://") && matches!(scheme.as_str(), "https" | "http")
        };
        if self.source.as_ref().is_some_and(|s| !web(s)) {
            return Err("release source must be an https:// or http:// address of at most 512 characters");
        }
        Ok(())
    }
}
