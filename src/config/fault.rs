//! Faults of a configuration.
use serde::Serialize;
use std::fmt;

/// One fault in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConfigFault {
    /// The file, or `the environment`; empty if the key is in neither.
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
