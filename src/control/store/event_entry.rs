//! An event before it is stored.

/// Something that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventEntry {
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// `audit`, `node` or `drift`.
    pub kind: &'static str,
    /// The kind of entity.
    pub entity_type: String,
    /// Which one.
    pub entity_id: String,
    /// What changed.
    pub details: serde_json::Value,
}
