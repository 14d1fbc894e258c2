//! Takes an edited configuration into force: checks it, says what differs, and starts the program again in its place. The
//! kernel's tunnel stays meanwhile; a configuration with a fault changes nothing.
use crate::config_file::load;
use crate::named_files;
use serde_json::Value;
use spoke_command::Failure;
use spoke_config::Config;
use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;

/// Why a configuration was not taken.
#[derive(Debug, thiserror::Error)]
#[error("not reloaded, the configuration of before stays in force:\n{0}")]
pub struct ReloadRefused(String);

/// The configuration in force, and the request for another one.
#[derive(Debug)]
pub struct Reload {
    file: PathBuf,
    config: Arc<Config>,
    request: Notify,
    taken: AtomicBool,
}

impl Reload {
    /// `config` was read from `file`.
    pub fn new(file: PathBuf, config: Arc<Config>) -> Self {
        Self { file, config, request: Notify::new(), taken: AtomicBool::new(false) }
    }

    /// What differs in the file, as lines. Blocks.
    pub fn check(&self) -> Result<Vec<String>, ReloadRefused> {
        let new = load(&self.file).map_err(|e| match e {
            Failure::BadInput(text) => ReloadRefused(text),
            Failure::Failed(e) => ReloadRefused(format!("{e:#}")),
            Failure::Silent | Failure::Differs | Failure::Invalid => ReloadRefused(String::new()),
        })?;
        let faults = named_files::faults(&new);
        if !faults.is_empty() {
            return Err(ReloadRefused(named_files::report(&faults)));
        }
        let lines = self.compare(&new);
        Ok(if lines.is_empty() {
            vec!["no setting differs; files that it names are read again".to_owned()]
        } else {
            lines
        })
    }

    /// What differs in the file from what is in force, as lines; none for a file with faults. Blocks.
    pub fn edited(&self) -> Vec<String> {
        load(&self.file).map(|new| self.compare(&new)).unwrap_or_default()
    }

    fn compare(&self, new: &Config) -> Vec<String> {
        let lines = differences(&self.config, new);
        if lines.is_empty() && *self.config != *new {
            return vec!["a value that is not shown, such as a URL with a key, differs".to_owned()];
        }
        lines
    }

    /// Asks for the restart with the new configuration.
    pub fn request(&self) {
        self.taken.store(true, Ordering::Relaxed);
        self.request.notify_one();
    }

    /// Waits for [`Reload::request`].
    pub async fn requested(&self) {
        self.request.notified().await;
    }

    /// Whether the process ends to start again.
    pub fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Relaxed)
    }
}

/// Runs this program again in place of the process, with the same arguments. Returns only if that fails.
pub fn restart() -> std::io::Error {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    std::process::Command::new("/proc/self/exe").arg0(name).args(arguments).exec()
}

/// Changed settings as `path: before → after`, secrets redacted.
fn differences(old: &Config, new: &Config) -> Vec<String> {
    let flat = |config: &Config| {
        let mut out = BTreeMap::new();
        flatten("", &serde_json::to_value(config).unwrap_or_default(), &mut out);
        out
    };
    let (old, new) = (flat(old), flat(new));
    let mut lines = Vec::new();
    for (key, before) in &old {
        match new.get(key) {
            Some(after) if after == before => {}
            Some(after) => lines.push(format!("{key}: {before} → {after}")),
            None => lines.push(format!("{key}: {before} removed")),
        }
    }
    lines.extend(
        new.iter().filter(|(key, _)| !old.contains_key(*key)).map(|(key, after)| format!("{key}: {after} added")),
    );
    lines
}

/// Elements of a list go by their name or key, so that one more does not shift the others.
fn flatten(path: &str, value: &Value, out: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                flatten(&path, value, out);
            }
        }
        Value::Array(list) if list.iter().any(Value::is_object) => {
            for (i, value) in list.iter().enumerate() {
                let name = ["name", "public_key"].iter().find_map(|k| value.get(k)?.as_str().map(str::to_owned));
                flatten(&format!("{path}[{}]", name.unwrap_or_else(|| i.to_string())), value, out);
            }
        }
        Value::Null => {}
        value => drop(out.insert(path.to_owned(), value.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named_by_their_setting() {
        let config = |text: &str| Config::from_text(Some(("x", text)), []).unwrap();
        let peer = |name: &str, key: u8, net: &str| {
            let key = spoke_model::key::PublicKey([key; 32]);
            format!("[[interface.peer]]\nname = \"{name}\"\npublic_key = \"{key}\"\nallowed_ips = [\"{net}\"]\n")
        };
        let old = config(&format!(
            "[[interface]]\nname = \"wg0\"\n{}{}",
            peer("a", 1, "10.0.0.1/32"),
            peer("b", 2, "10.0.0.2/32")
        ));
        let new = config(&format!("[[interface]]\nname = \"wg0\"\nmtu = 1400\n{}", peer("b", 2, "10.0.0.3/32")));
        let lines = differences(&old, &new);
        assert!(lines.contains(&"interface[wg0].mtu: 1280 → 1400".to_owned()), "{lines:#?}");
        assert!(lines.iter().any(|l| l.starts_with("interface[wg0].peer[b].allowed_ips: ") && l.contains("10.0.0.3")));
        assert!(lines.iter().any(|l| l.starts_with("interface[wg0].peer[a].name") && l.ends_with(" removed")));
        assert!(differences(&old, &old).is_empty());
    }
}
