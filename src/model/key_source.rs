//! References to secrets.
use serde::{Serialize, Serializer};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a secret comes from: `file:/path` (mode 0600, our user) or `credential:NAME` (of systemd, in
/// `$CREDENTIALS_DIRECTORY`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeySource {
    /// A file readable by its owner only.
    File(PathBuf),
    /// A credential that the service manager passes in.
    Credential(String),
}

/// Text that is not the source of a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a key source: write \"file:/absolute/path\" or \"credential:NAME\" (the configuration never contains the secret itself)"
)]
pub struct BadKeySource;

impl FromStr for KeySource {
    type Err = BadKeySource;
    fn from_str(text: &str) -> Result<Self, BadKeySource> {
        if let Some(path) = text.strip_prefix("file:").filter(|p| p.starts_with('/')) {
            return Ok(Self::File(path.into()));
        }
        match text.strip_prefix("credential:") {
            Some(name) if !name.is_empty() && name.len() <= 255 && !name.contains('/') && !name.starts_with('.') => {
                Ok(Self::Credential(name.to_owned()))
            }
            Some(_) | None => Err(BadKeySource),
        }
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Credential(name) => write!(f, "credential:{name}"),
        }
    }
}

impl Serialize for KeySource {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn key_sources() {
        for good in ["file:/etc/spoke/key", "credential:wg0.key"] {
            assert_eq!(good.parse::<KeySource>().unwrap().to_string(), good);
        }
        for bad in ["file:key", "credential:", "credential:a/b", "credential:..", "AAAA", "env:KEY"] {
            assert_eq!(bad.parse::<KeySource>(), Err(BadKeySource), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,60}") {
            let _ = text.parse::<KeySource>();
        }
    }
}
