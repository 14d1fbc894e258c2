//! Faults of a configuration.
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// One fault in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConfigFault {
    /// The file, or `the environment, VARIABLE`; empty if the key is in neither.
    pub file: String,
    /// The full path of the key; empty if it is about the whole file.
    pub key: String,
    /// The name of the hub, interface or peer that the key is in, where it has one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub element: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to write instead; empty if the problem says it.
    pub remedy: String,
}

impl fmt::Display for ConfigFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}: ", self.file)?;
        }
        if !self.key.is_empty() {
            f.write_str(&self.key)?;
            if !self.element.is_empty() {
                write!(f, " ({})", self.element)?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.problem)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "; {}", self.remedy) }
    }
}

/// A fault of a text that is not TOML; `None`: it is. The text itself is left out: it may hold a secret.
pub fn syntax(file: &str, text: &str) -> Option<ConfigFault> {
    let error = text.parse::<toml::Table>().err()?;
    let line = error.span().map_or(0, |s| text.get(..s.start).map_or(0, |t| t.matches('\n').count() + 1));
    Some(ConfigFault {
        element: String::new(),
        file: if line == 0 { file.into() } else { format!("{file}:{line}") },
        key: String::new(),
        problem: format!("is not TOML: {}", error.message().trim()),
        remedy: String::new(),
    })
}

/// The line of `text`, counted from 1, that sets the key `path` such as `uplink.hub[1].endpoint`; that of the table's header
/// if the key is not there.
fn line_of(text: &str, path: &str) -> Option<usize> {
    let path = path.split(['[', '.']).filter(|p| !p.is_empty());
    let path: Vec<&str> = path.map(|p| p.trim_end_matches(']')).collect();
    let (mut found, mut depth) = (None, 0);
    let mut table: Vec<String> = Vec::new();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for (n, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        let at = if let Some(name) = line.strip_prefix('[') {
            let list = name.starts_with('[');
            table.clear();
            let mut whole = String::new();
            let parts: Vec<&str> = name.trim_matches(['[', ']']).split('.').map(str::trim).collect();
            for (i, part) in parts.iter().enumerate() {
                whole.push_str(part);
                table.push((*part).to_owned());
                if list && i + 1 == parts.len() {
                    let index = counts.entry(whole.clone()).and_modify(|c| *c += 1).or_insert(0);
                    table.push(index.to_string());
                } else if let Some(index) = counts.get(&whole) {
                    table.push(index.to_string());
                }
                // An element of a list has lists of its own.
                whole = table.join(".") + ".";
            }
            table.clone()
        } else if let Some((key, _)) = line.split_once('=') {
            let mut at = table.clone();
            at.extend(key.trim().split('.').map(|k| k.trim().trim_matches('"').to_owned()));
            at
        } else {
            continue;
        };
        // The longest beginning of the path wins: the key, else its table.
        if at.len() > depth && at.len() <= path.len() && at.iter().zip(&path).all(|(a, p)| a == p) {
            (found, depth) = (Some(n), at.len());
        }
    }
    found
}

/// The value of `name` in the innermost element of a list that `path` leads through.
fn element(text: &str, path: &str) -> Option<String> {
    let element = path.rfind(']').and_then(|end| path.get(..=end))?;
    let line = text.lines().nth(line_of(text, &format!("{element}.name"))?.checked_sub(1)?)?;
    let (_, value) = line.trim_start().strip_prefix("name")?.trim_start().split_once('=')?;
    let value = value.trim_start().strip_prefix('"')?.split('"').next()?;
    (!value.is_empty() && !path.ends_with(".name")).then(|| value.to_owned())
}

/// Adds the line and the name of the element to each fault of the file `name`, and sorts them as the file goes.
pub(super) fn locate(name: &str, text: &str, faults: &mut [ConfigFault]) {
    let lines: Vec<usize> =
        faults.iter().map(|f| if f.file == name { line_of(text, &f.key).unwrap_or(0) } else { 0 }).collect();
    for (fault, line) in faults.iter_mut().zip(&lines).filter(|(_, line)| **line > 0) {
        fault.file = format!("{name}:{line}");
        fault.element = element(text, &fault.key).unwrap_or_default();
    }
    let line =
        |f: &ConfigFault| f.file.strip_prefix(name).and_then(|rest| rest.strip_prefix(':')?.parse::<usize>().ok());
    faults.sort_by_key(|f| line(f).unwrap_or(usize::MAX));
}

/// Whether `text` is a file of `wg-quick(8)`.
pub(super) fn is_wg_quick(text: &str) -> bool {
    text.lines().any(|line| matches!(line.trim(), "[Interface]" | "[Peer]"))
}

/// The fault of such a file.
pub(super) fn wg_quick(file: &str) -> ConfigFault {
    ConfigFault {
        element: String::new(),
        file: file.into(),
        key: String::new(),
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
    ConfigFault {
        element: String::new(),
        file: path.display().to_string(),
        key: String::new(),
        problem,
        remedy: remedy.into(),
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
