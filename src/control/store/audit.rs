//! The audit trail: who changed what, written in the transaction that changed it.
use super::sql::{StoreError, Tx};
use serde::Serialize;

/// Who did it: an operator by name, a node by its id, or the control plane itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// A person or a program with an operator's token or at the command line.
    Operator(String),
    /// A node, for itself.
    Node(String),
    /// Nobody: a timer or an event of the chain.
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

/// One record.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Record {
    /// Grows; not without gaps.
    pub id: u64,
    /// RFC 3339.
    pub timestamp: String,
    /// What was done, `verb` of an entity.
    pub action: String,
    /// `node`, `network`, `token`, `hub`, `key`.
    pub entity_type: String,
    /// Which one.
    pub entity_id: String,
    /// More about it; never a secret.
    #[schema(value_type = Object)]
    pub details: serde_json::Value,
    /// Who.
    pub user: String,
}

/// Which records are wanted.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this kind of entity.
    pub entity_type: Option<String>,
    /// Of this entity.
    pub entity_id: Option<String>,
    /// Of this action.
    pub action: Option<String>,
    /// At most so many.
    pub limit: i64,
    /// After so many.
    pub offset: i64,
}

impl Tx {
    /// Adds a record.
    pub async fn audit(
        &mut self,
        now_ms: i64,
        actor: &Actor,
        action: &str,
        entity: (&str, &str),
        details: serde_json::Value,
    ) -> Result<(), StoreError> {
        tracing::info!(%actor, action, entity_type = entity.0, entity_id = entity.1, %details, "changed");
        let sql =
            "INSERT INTO audit (at_ms, actor, action, entity_type, entity_id, details) VALUES ($1, $2, $3, $4, $5, $6)";
        let values = [
            now_ms.into(),
            actor.to_string().into(),
            action.into(),
            entity.0.into(),
            entity.1.into(),
            details.to_string().into(),
        ];
        self.run(sql, &values).await.map(drop)
    }

    /// Records, newest first.
    pub async fn audit_records(&mut self, filter: &Filter) -> Result<Vec<Record>, StoreError> {
        let sql = "SELECT id, at_ms, actor, action, entity_type, entity_id, details FROM audit
            WHERE ($1 = '' OR entity_type = $1) AND ($2 = '' OR entity_id = $2) AND ($3 = '' OR action = $3)
            ORDER BY id DESC LIMIT $4 OFFSET $5";
        let any = |f: &Option<String>| f.clone().unwrap_or_default().into();
        let values = [
            any(&filter.entity_type),
            any(&filter.entity_id),
            any(&filter.action),
            filter.limit.into(),
            filter.offset.into(),
        ];
        let record = |row: &super::sql::Row| {
            Ok(Record {
                id: row.count("id")?,
                timestamp: spoke_model::time::Wall(row.count("at_ms")? / 1000).to_string(),
                action: row.text("action")?,
                entity_type: row.text("entity_type")?,
                entity_id: row.text("entity_id")?,
                details: row.json("details")?,
                user: row.text("actor")?,
            })
        };
        self.rows(sql, &values).await?.iter().map(record).collect()
    }
}
