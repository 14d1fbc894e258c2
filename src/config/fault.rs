//! Faults of a configuration.
use serde::Serialize;
use std::fmt;
use std::path::Path;

/// One fault in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConfigFault {
    /// The file, or `the environment, VARIABLE`; empty if the key is in neither.
    pub file: String,
    /// The full path of the key.
    pub key: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to write instead.
    pub remedy: String,
}

impl fmt::Display for ConfigFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}: ", self.file)?;
        }
        write!(f, "{}: {}; {}", self.key, self.problem, self.remedy)
    }
}

/// A fault of a text that is not TOML; `None`: it is. The text itself is left out: it may hold a secret.
pub fn syntax(file: &str, text: &str) -> Option<ConfigFault> {
    let error = text.parse::<toml::Table>().err()?;
    let line = error.span().map_or(0, |s| text.get(..s.start).map_or(0, |t| t.matches('\n').count() + 1));
    Some(ConfigFault {
        file: file.into(),
        key: format!("line {line}"),
        problem: error.message().trim().to_owned(),
        remedy: "correct the TOML".into(),
    })
}

/// Whether `text` is a file of `wg-quick(8)`.
pub(super) fn is_wg_quick(text: &str) -> bool {
    text.lines().any(|line| matches!(line.trim(), "[Interface]" | "[Peer]"))
}

/// The fault of such a file.
pub(super) fn wg_quick(file: &str) -> ConfigFault {
    ConfigFault {
        file: file.into(),
        key: "(file)".into(),
        problem: "looks like a wg-quick file".into(),
        remedy: "convert it with `spoke import FILE.conf --config NEW.toml`".into(),
    }
}

/// A fault of a file that cannot be read. `create`: what to do if there is none.
pub fn unreadable(path: &Path, e: &std::io::Error, create: &str) -> ConfigFault {
    use std::io::ErrorKind;
    let (problem, remedy) = match e.kind() {
        ErrorKind::NotFound => (format!("cannot be read: {e}"), create),
        ErrorKind::PermissionDenied => (format!("cannot be read: {e}"), "let the user that runs the program read it"),
        ErrorKind::InvalidData => {
            ("is not UTF-8 text; some editors write UTF-16 or Latin-1".to_owned(), "save it as UTF-8")
        }
        ErrorKind::IsADirectory => ("is a directory".to_owned(), create),
        _ => (format!("cannot be read: {e}"), "check the file system (dmesg)"),
    };
    ConfigFault { file: path.display().to_string(), key: "(file)".into(), problem, remedy: remedy.into() }
}

/// Every fault found, in the order of the sections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFaults(pub Vec<ConfigFault>);

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in &self.0 {
            writeln!(f, "{fault}")?;
        }
        let n = self.0.len();
        write!(f, "{n} fault{}", if n == 1 { "" } else { "s" })
    }
}

impl std::error::Error for ConfigFaults {}
