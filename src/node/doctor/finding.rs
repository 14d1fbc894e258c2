//! Findings of `spoke doctor`.
use serde::Serialize;
use spoke_command::text::Lines;

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// No fault.
    Ok,
    /// Works, but not permanently or not well.
    Warn,
    /// Does not work, or will not after the next start: an operator must act. Makes the exit code 1.
    Fail,
}

impl Level {
    /// Text of the level in the table.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The subject.
    pub what: String,
    /// Severity.
    pub level: Level,
    /// The observation.
    pub detail: String,
    /// The remedy.
    pub remedy: Option<String>,
}

impl Finding {
    /// A finding without a remedy.
    pub fn ok(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { what: what.into(), level: Level::Ok, detail: detail.into(), remedy: None }
    }

    /// A finding that keeps nothing from working.
    pub fn warn(what: impl Into<String>, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), level: Level::Warn, detail: detail.into(), remedy: Some(remedy.into()) }
    }

    /// A finding that an operator must act on.
    pub fn fail(what: impl Into<String>, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), level: Level::Fail, detail: detail.into(), remedy: Some(remedy.into()) }
    }
}

/// The findings as a text table.
pub fn table(findings: &[Finding]) -> String {
    let mut out = Lines::default();
    for f in findings {
        let _ = writeln!(out, "{:<4}  {:<22} {}", f.level.label(), f.what, f.detail);
        if let Some(remedy) = &f.remedy {
            let _ = writeln!(out, "{:<28}→ {remedy}", "");
        }
    }
    out.into()
}
