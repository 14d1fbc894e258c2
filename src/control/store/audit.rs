//! The audit trail: who changed what, written in the transaction that changed it.
use super::audit_entry::{Chain, Entry};
use super::error::StoreError;
use super::page::Conditions;
use super::row::Row;
use super::sql::Tx;

/// Who made a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// An operator, by name: a person at the command line or a program with the operator token.
    Operator(String),
    /// A node, for itself.
    Node(String),
    /// The control plane: a timer or an event of the chain.
    System,
}

impl std::fmt::Display for Actor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Operator(name) => write!(f, "operator:{name}"),
            Self::Node(id) => write!(f, "node:{id}"),
            Self::System => f.write_str("system"),
        }
    }
}

/// One record of the trail.
#[derive(Clone, Debug)]
pub struct AuditRecord {
    /// Ascending, with gaps.
    pub id: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// The verb.
    pub action: String,
    /// `node`, `network`, `token`, `hub`, `signing_key`, `address`.
    pub entity_type: String,
    /// Which one.
    pub entity_id: String,
    /// Never a secret.
    pub details: serde_json::Value,
    /// An [`Actor`] as text.
    pub actor: String,
}

/// Selects records; `None` selects all.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    /// Of this kind of entity.
    pub entity_type: Option<String>,
    /// Of this entity.
    pub entity_id: Option<String>,
    /// Of this action.
    pub action: Option<String>,
    /// At most this many.
    pub limit: i64,
    /// Skips this many.
    pub offset: i64,
    /// Older than the record with this id.
    pub before: Option<i64>,
}

impl AuditFilter {
    fn conditions(&self) -> Conditions {
        let mut wanted = Conditions::default();
        let Self { entity_type, entity_id, action, .. } = self;
        for (sql, value) in [("entity_type = $?", entity_type), ("entity_id = $?", entity_id), ("action = $?", action)]
        {
            if let Some(value) = value.as_deref().filter(|v| !v.is_empty()) {
                wanted.and(sql, [value.into()]);
            }
        }
        wanted
    }
}

impl Tx {
    /// Adds a record, which the commit stores.
    pub async fn audit(
        &mut self,
        now_ms: i64,
        actor: &Actor,
        action: &str,
        entity: (&str, &str),
        details: serde_json::Value,
    ) -> Result<(), StoreError> {
        tracing::info!(%actor, action, entity_type = entity.0, entity_id = entity.1, %details, "fleet changed");
        let chain = match actor {
            Actor::Operator(_) => Chain::Operators,
            Actor::Node(_) | Actor::System => Chain::Fleet,
        };
        self.entries.push(Entry {
            at_ms: now_ms,
            actor: actor.to_string(),
            action: action.to_owned(),
            entity_type: entity.0.to_owned(),
            entity_id: entity.1.to_owned(),
            details: details.to_string(),
            chain,
        });
        Ok(())
    }

    /// Records, newest first.
    pub async fn audit_records(&mut self, filter: &AuditFilter) -> Result<Vec<AuditRecord>, StoreError> {
        let mut wanted = filter.conditions();
        if let Some(before) = filter.before {
            wanted.and("id < $?", [before.into()]);
        }
        let (clauses, mut values) = wanted.sql();
        let (limit, offset) = (values.len() + 1, values.len() + 2);
        values.extend([filter.limit.into(), filter.offset.into()]);
        let sql = format!(
            "SELECT id, at_ms, actor, action, entity_type, entity_id, details FROM audit{clauses}
            ORDER BY id DESC LIMIT ${limit} OFFSET ${offset}"
        );
        let read = |row: &Row| {
            Ok(AuditRecord {
                id: row.count("id")?,
                at_ms: row.count("at_ms")?,
                action: row.text("action")?,
                entity_type: row.text("entity_type")?,
                entity_id: row.text("entity_id")?,
                details: row.json("details")?,
                actor: row.text("actor")?,
            })
        };
        self.rows_built(sql, &values).await?.iter().map(read).collect()
    }

    /// Counts the selected records, no further than `MOST_COUNTED`, whatever its page.
    pub async fn count_audit(&mut self, filter: &AuditFilter) -> Result<u64, StoreError> {
        self.count_listed("audit", &filter.conditions()).await
    }
}
