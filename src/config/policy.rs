//! A `[grants]` section from the control plane: the same keys and values, in JSON. Pure.
use super::fault::{ConfigFault, ConfigFaults};
use super::grants::{Endpoint, Grants, distinct, usual_poll};
use super::node::Role;
use super::reader::Table;
use config::{Value, ValueKind};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Maximum size in bytes of JSON.
const MAX_BYTES: usize = 32 << 10;

/// The section as received, unchecked; [`GrantsPolicy::read`] checks and converts it.
///
/// Serialised with its secrets, as it is sent to devices; use [`GrantsPolicy::shown`] for any output.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GrantsPolicy(serde_json::Map<String, serde_json::Value>);

/// Why a text is no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPolicy {
    /// Not TOML; the parser's message.
    #[error("{0}")]
    Syntax(String),
    /// TOML, but no table of keys.
    #[error("is not a table")]
    NoTable,
    /// A value that JSON does not have, such as a date.
    #[error("{0}")]
    NotJson(String),
}

impl fmt::Debug for GrantsPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.shown())
    }
}

impl GrantsPolicy {
    /// Whether it has no keys.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The section for a node of this role, checked like a section of a file: every fault names its key.
    pub fn read(&self, role: Role) -> Result<Grants, ConfigFaults> {
        let mut faults = Vec::new();
        let bytes = serde_json::to_string(&self.0).map_or(0, |t| t.len());
        if bytes > MAX_BYTES {
            faults.push(ConfigFault {
                element: String::new(),
                file: String::new(),
                key: "grants".into(),
                problem: format!("has {bytes} bytes"),
                remedy: format!("keep it below {MAX_BYTES}"),
            });
            return Err(ConfigFaults(faults));
        }
        let section = Value::new(None, ValueKind::Table(self.0.iter().map(|(k, v)| (k.clone(), value(v))).collect()));
        let mut root = Table::root([("grants".to_owned(), section)], "", &mut faults);
        let grants = root.section("grants", |t| Grants::read(t, usual_poll(role)));
        match grants {
            Some(grants) if faults.is_empty() => Ok(grants),
            Some(_) | None => Err(ConfigFaults(faults)),
        }
    }

    /// As [`GrantsPolicy::read`], for a policy that is in force already, perhaps accepted by an earlier release: endpoints that
    /// cannot be opened are left out, and the quorum is what the others can reach. `None`: nothing of it can be used.
    pub fn read_stored(&self, role: Role) -> Option<Grants> {
        if let Ok(grants) = self.read(role) {
            return Some(grants);
        }
        let mut usable = self.clone();
        let endpoints = usable.0.get_mut("endpoints")?.as_array_mut()?;
        endpoints.retain(|e| e.as_str().is_some_and(|e| e.parse::<Endpoint>().is_ok()));
        let known: Vec<Endpoint> = endpoints.iter().filter_map(|e| e.as_str()?.parse().ok()).collect();
        if let Some(quorum) = usable.0.get_mut("quorum") {
            let wanted = quorum.as_u64()?;
            *quorum = wanted.min(distinct(&known) as u64).into();
        }
        usable.read(role).ok()
    }

    /// A form to show: everything after the host of an endpoint is omitted, because it may be a key.
    pub fn shown(&self) -> serde_json::Value {
        let mut shown = self.0.clone();
        if let Some(endpoints) = shown.get_mut("endpoints") {
            let redacted = |v: &serde_json::Value| {
                let endpoint = v.as_str().and_then(|text| text.parse::<Endpoint>().ok());
                endpoint.and_then(|e| serde_json::to_value(e).ok()).unwrap_or_else(|| "[redacted]".into())
            };
            *endpoints = match endpoints.as_array() {
                Some(list) => list.iter().map(redacted).collect(),
                None => "[redacted]".into(),
            };
        }
        serde_json::Value::Object(shown)
    }

    /// Reads TOML: the keys of the section, with or without its header.
    pub fn from_toml(text: &str) -> Result<Self, BadPolicy> {
        let mut table: toml::Table =
            text.parse().map_err(|e: toml::de::Error| BadPolicy::Syntax(e.message().trim().to_owned()))?;
        if let (1, Some(toml::Value::Table(section))) = (table.len(), table.get("grants")) {
            table = section.clone();
        }
        match serde_json::to_value(table) {
            Ok(serde_json::Value::Object(keys)) => Ok(Self(keys)),
            Ok(_) => Err(BadPolicy::NoTable),
            Err(e) => Err(BadPolicy::NotJson(e.to_string())),
        }
    }
}

fn value(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match json {
        Json::Null => ValueKind::Nil,
        Json::Bool(b) => ValueKind::Boolean(*b),
        Json::Number(n) => match (n.as_u64(), n.as_i64()) {
            (Some(n), _) => ValueKind::U64(n),
            (None, Some(n)) => ValueKind::I64(n),
            (None, None) => ValueKind::Float(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => ValueKind::String(s.clone()),
        Json::Array(items) => ValueKind::Array(items.iter().map(value).collect()),
        Json::Object(map) => ValueKind::Table(map.iter().map(|(k, v)| (k.clone(), value(v))).collect()),
    };
    Value::new(None, kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"contract": "0x37d2106bADB01dd5bE1926e45D172Cb4203C4186", "chain_id": 8453,
        "endpoints": ["https://rpc.example.net/v2/s3cret", "credential:rpc"], "quorum": 2, "finality": "latest", "grace": "1d"}"#;

    fn policy(json: &str) -> GrantsPolicy {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn json_and_toml_give_the_same_section() {
        let toml = "[grants]\ncontract = \"0x37d2106bADB01dd5bE1926e45D172Cb4203C4186\"\nchain_id = 8453\nendpoints = [\"https://rpc.example.net/v2/s3cret\", \"credential:rpc\"]\nquorum = 2\nfinality = \"latest\"\ngrace = \"1d\"\n";
        let own = super::super::Config::from_text(Some(("x", toml)), []).unwrap().grants.unwrap();
        assert_eq!(policy(GOOD).read(Role::Node).unwrap(), own);
        assert_ne!(policy(GOOD).read(Role::Hub).unwrap().poll, own.poll, "a hub is not on a metered line");
        assert_eq!(GrantsPolicy::from_toml(toml).unwrap(), policy(GOOD));
        assert_eq!(GrantsPolicy::from_toml(toml.trim_start_matches("[grants]")).unwrap(), policy(GOOD));
        assert!(GrantsPolicy::from_toml("contract = ").is_err());
    }

    #[test]
    fn every_fault_names_its_key() {
        let bad = r#"{"contract": "0x12", "chain_id": 1.5, "endpoints": "https://h/", "quorum": -1, "grase": "1d"}"#;
        let faults = policy(bad).read(Role::Hub).unwrap_err();
        for key in ["grants.contract", "grants.chain_id", "grants.endpoints", "grants.quorum", "grants.grase"] {
            assert!(faults.0.iter().any(|f| f.key == key), "{key} in {faults}");
        }
        assert!(policy("{}").read(Role::Node).is_err());
        let long = format!(r#"{{"contract": "{}"}}"#, "0".repeat(MAX_BYTES));
        assert!(policy(&long).read(Role::Node).unwrap_err().to_string().contains("bytes"));
    }

    #[test]
    fn stored_policy_of_an_earlier_release_is_used_as_far_as_it_can_be() {
        assert_eq!(policy(GOOD).read_stored(Role::Node), policy(GOOD).read(Role::Node).ok());
        let with = |endpoints: &str, quorum: u64| {
            policy(&format!(
                r#"{{"contract": "0x37d2106bADB01dd5bE1926e45D172Cb4203C4186", "chain_id": 8453,
                    "endpoints": [{endpoints}], "quorum": {quorum}}}"#
            ))
        };
        let twice = with(r#""https://a.example.net/", "HTTPS://a.example.net:443""#, 2);
        let faulty = with(r#""https://a.example.net/", "https://b.example.net:99999/", "https://h/${KEY}""#, 2);
        for old in [twice, faulty] {
            assert!(old.read(Role::Node).is_err(), "refused in a new state");
            assert_eq!(old.read_stored(Role::Node).map(|g| g.quorum), Some(1));
        }
        assert_eq!(with(r#""https://h/${KEY}""#, 1).read_stored(Role::Node), None);
    }

    #[test]
    fn key_in_a_url_is_serialised_and_never_shown() {
        let shown = format!("{:?}", policy(GOOD));
        assert!(shown.contains("https://rpc.example.net/[redacted]") && !shown.contains("s3cret"), "{shown}");
        assert!(serde_json::to_string(&policy(GOOD)).unwrap().contains("s3cret"));
        for odd in [r#"{"endpoints": "https://h/s3cret"}"#, r#"{"endpoints": ["ftp://h/s3cret", 3]}"#] {
            assert!(!policy(odd).shown().to_string().contains("s3cret"), "{odd}");
        }
    }
}
