//! The values that the configuration and the control plane declare, in a form that can be compared and stored. No secrets:
//! a private key is represented by its source.
use serde::{Deserialize, Serialize};
use spoke_config::effective::Effective;
use spoke_model::tree::Tree;
use std::collections::{BTreeMap, BTreeSet};
use toml::Value;

/// Values by path, such as `interface.wg0.mtu`; a peer or a hub is one value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Declared(BTreeMap<String, String>);

/// The difference between two [`Declared`]; null: removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(BTreeMap<String, Option<String>>);

impl Declared {
    /// The values of a configuration, defaults included.
    pub fn of(config: &Effective) -> Self {
        let mut out = BTreeMap::new();
        let table = || -> Result<Value, Box<dyn std::error::Error>> {
            // Through JSON: a serialiser of every section for this alone is large.
            let tree: Tree = serde_json::from_slice(&serde_json::to_vec(config)?)?;
            Ok(Value::try_from(tree.without_nulls())?)
        };
        if let Ok(Value::Table(root)) = table() {
            for (key, value) in &root {
                flatten(key, value, true, &mut out);
            }
        }
        Self(out)
    }

    /// The revision that leads from this to `to`.
    pub fn until(&self, to: &Self) -> Revision {
        let keys: BTreeSet<&String> = self.0.keys().chain(to.0.keys()).collect();
        let differing = keys.into_iter().filter(|k| self.0.get(*k) != to.0.get(*k));
        Revision(differing.map(|k| (k.clone(), to.0.get(k).cloned())).collect())
    }

    /// Applies a revision.
    pub fn revise(&mut self, revision: &Revision) {
        for (key, value) in &revision.0 {
            match value {
                Some(value) => drop(self.0.insert(key.clone(), value.clone())),
                None => drop(self.0.remove(key)),
            }
        }
    }
}

impl Revision {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of values that differ.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The differences as text, one line a value.
    pub fn lines(&self, before: &Declared) -> Vec<String> {
        let line = |(key, value): (&String, &Option<String>)| match (before.0.get(key), value) {
            (None, Some(new)) => format!("+ {key} = {new}"),
            (Some(old), Some(new)) => format!("~ {key} = {new}, instead of {old}"),
            (Some(old), None) => format!("- {key} = {old}"),
            (None, None) => format!("- {key}"),
        };
        self.0.iter().map(line).collect()
    }
}

/// Descends into tables, and into lists at the top level only. List items are keyed by name or public key, since an index
/// changes with every insertion.
fn flatten(path: &str, value: &Value, top: bool, out: &mut BTreeMap<String, String>) {
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                flatten(&format!("{path}.{key}"), value, false, out);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_table) => {
            for (i, item) in items.iter().enumerate() {
                let at = format!("{path}.{}", name(item).map_or_else(|| i.to_string(), str::to_owned));
                match item {
                    Value::Table(_) if top => flatten(&at, item, false, out),
                    _ => drop(out.insert(at, item.to_string())),
                }
            }
        }
        Value::Array(_)
        | Value::String(_)
        | Value::Integer(_)
        | Value::Float(_)
        | Value::Boolean(_)
        | Value::Datetime(_) => {
            out.insert(path.to_owned(), value.to_string());
        }
    }
}

/// The key of a list item.
fn name(item: &Value) -> Option<&str> {
    ["public_key", "name"].iter().find_map(|key| item.get(key)?.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "9s4Zq0QFzPNW7vYkFGcGEJtVXWd3BBJ3zOqDLE3gIyM=";
    const B: &str = "gL9MIhpbgYcBdJHJ9cdTLoCzRXOg0tDmpmFmKTN6FlA=";

    fn of(text: &str) -> Declared {
        let own = spoke_config::Config::from_text(Some(("test", text)), []).unwrap();
        Declared::of(&Effective::of(std::sync::Arc::new(own)))
    }

    fn peer(key: &str, net: u8) -> String {
        format!("[[interface.peer]]\npublic_key = \"{key}\"\nallowed_ips = [\"10.9.{net}.0/24\"]\n")
    }

    #[test]
    fn differences_are_named_by_their_path() {
        let base = "[[interface]]\nname = \"wg0\"\naddresses = [\"10.8.0.2/24\"]\n";
        let before = of(&format!("{base}{}", peer(A, 1)));
        let after = of(&format!("{base}mtu = 1400\n{}{}", peer(B, 2), peer(A, 1)));
        let revision = before.until(&after);
        let lines = revision.lines(&before);
        assert_eq!(lines.len(), 2, "a peer that only moved does not differ: {lines:?}");
        assert_eq!(lines[0], "~ interface.wg0.mtu = 1400, instead of 1280");
        assert!(lines[1].starts_with(&format!("+ interface.wg0.peer.{B} = ")), "{lines:?}");
        assert!(lines[1].contains("10.9.2.0/24"), "{lines:?}");
        let mut there = before.clone();
        there.revise(&revision);
        assert_eq!(there, after);
        there.revise(&after.until(&before));
        assert_eq!(there, before);
        assert!(before.until(&before).is_empty());
        let text = serde_json::to_string(&revision).unwrap();
        assert_eq!(serde_json::from_str::<Revision>(&text).unwrap(), revision);
    }

    #[test]
    fn secrets_are_represented_by_their_source() {
        let text = "[[interface]]\nname = \"wg0\"\nprivate_key = \"file:/etc/spoke/wg0.key\"\n\
                    [agent]\nenabled = true\nsecret = \"file:/etc/spoke/agent.secret\"\n";
        let all = serde_json::to_string(&of(text)).unwrap();
        assert!(all.contains("file:/etc/spoke/wg0.key") && all.contains("file:/etc/spoke/agent.secret"), "{all}");
    }
}
