//! An entry of the audit trail before it is stored, and the chain of hashes it becomes a link of. Pure.
use spoke_model::signature::sha256_hex;

/// The two chains: what nodes and timers cause cannot push out what operators did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chain {
    /// What operators did.
    Operators,
    /// What nodes, unknown clients and timers did.
    Fleet,
}

impl Chain {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Operators, Self::Fleet];

    /// As in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Operators => "operators",
            Self::Fleet => "fleet",
        }
    }
}

/// What is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// Who made the change, as text.
    pub actor: String,
    /// The verb.
    pub action: String,
    /// The kind of entity.
    pub entity_type: String,
    /// Which one.
    pub entity_id: String,
    /// JSON.
    pub details: String,
    /// The chain it belongs to.
    pub chain: Chain,
}

impl Entry {
    /// The hash of this entry after the one with the hash `previous`; empty: it is the first.
    pub fn hash(&self, previous: &str) -> String {
        let Self { at_ms, actor, action, entity_type, entity_id, details, chain: _ } = self;
        // An array of JSON strings: no text of one field can be read as part of another.
        let text = serde_json::json!([previous, at_ms, actor, action, entity_type, entity_id, details]);
        sha256_hex(text.to_string().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_changes_the_hash() {
        let entry = Entry {
            at_ms: 1,
            actor: "operator:a".into(),
            action: "set".into(),
            entity_type: "node".into(),
            entity_id: "edge-1".into(),
            details: "{}".into(),
            chain: Chain::Operators,
        };
        let changed = [
            Entry { at_ms: 2, ..entry.clone() },
            Entry { actor: "operator:b".into(), ..entry.clone() },
            Entry { action: "sets".into(), entity_type: "node".into(), ..entry.clone() },
            Entry { action: "se".into(), entity_type: "tnode".into(), ..entry.clone() },
            Entry { entity_id: "edge-2".into(), ..entry.clone() },
            Entry { details: "null".into(), ..entry.clone() },
        ];
        let mut hashes: Vec<_> = changed.iter().map(|e| e.hash("")).collect();
        hashes.extend([entry.hash(""), entry.hash("x")]);
        let distinct: std::collections::BTreeSet<_> = hashes.iter().collect();
        assert_eq!(distinct.len(), hashes.len());
    }
}
