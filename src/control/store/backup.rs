//! Backup of the whole store as lines of JSON, and restore into a database of either kind.
//!
//! The first line names the format, each further line is one row, the last line has the number of rows. Signing keys stay
//! sealed. A restore needs an empty store and is one transaction. The last line also has a MAC of all lines before it under
//! the fleet's master key: whoever could change a backup could make himself an operator.
use super::error::StoreError;
use super::row::Value;
use super::sql::{Store, Tx};
use super::token::constant_time_equal;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, Write};

const FORMAT: &str = "spoke-control backup";
const VERSION: u32 = 2;

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct RowLine {
    table: String,
    row: BTreeMap<String, serde_json::Value>,
}

/// The last line, by which a truncated backup is detected, and a changed one.
#[derive(Serialize, Deserialize)]
struct Footer {
    rows: u64,
    /// Hex of HMAC-SHA256; absent: made by a release without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
}

/// The key of backups' MACs.
pub type BackupKey = ring::hmac::Key;

fn hex(tag: &ring::hmac::Tag) -> String {
    tag.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// Why a backup or restore failed.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file.
    #[error("the backup cannot be read or written")]
    Io(#[from] std::io::Error),
    /// Not a backup, or not of this version.
    #[error("line {line}: {problem}")]
    Format {
        /// Counted from 1.
        line: u64,
        /// What is wrong.
        problem: String,
    },
    /// It has a table or column that this release does not know.
    #[error("line {line}: {what} is of a newer release: restore the backup with that release; nothing was restored")]
    Newer {
        /// Counted from 1.
        line: u64,
        /// The table or column.
        what: String,
    },
    /// It has no MAC.
    #[error(
        "the backup has no MAC: it was made by a release without it, or changed; if you know where it comes from, restore it with --unverified"
    )]
    NoMac,
    /// Its MAC is another one.
    #[error(
        "the backup was changed since it was made, or is of a fleet with another master key; nothing was restored: take another copy, or the master key that belongs to it"
    )]
    Changed,
    /// The store to restore into holds a fleet.
    #[error("the store is not empty: restore into a new one")]
    NotEmpty,
}

enum ColumnType {
    Int,
    Text,
}
use ColumnType::{Int, Text};

/// A table, with its columns in the order of `insert`.
struct Table {
    name: &'static str,
    columns: &'static [(&'static str, ColumnType)],
    select: &'static str,
    insert: &'static str,
}

/// In an order that satisfies the foreign keys.
const TABLES: &[Table] = &[
    Table {
        name: "network",
        columns: &[
            ("name", Text),
            ("pool4", Text),
            ("pool6", Text),
            ("reserved", Text),
            ("dns", Text),
            ("interface", Text),
            ("mtu", Int),
            ("keepalive", Int),
            ("forwarding", Int),
            ("approval", Int),
            ("access", Text),
            ("quarantine_ms", Int),
            ("created_ms", Int),
            ("grants", Text),
        ],
        select: "SELECT * FROM network ORDER BY name",
        insert: "INSERT INTO network (name, pool4, pool6, reserved, dns, interface, mtu, keepalive, forwarding, approval,
            access, quarantine_ms, created_ms, grants)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
    },
    Table {
        name: "node",
        columns: &[
            ("id", Text),
            ("network", Text),
            ("role", Text),
            ("state", Text),
            ("label", Text),
            ("wireguard_key", Text),
            ("next_key", Text),
            ("next_key_hubs", Text),
            ("identity_key", Text),
            ("endpoint", Text),
            ("listen_port", Int),
            ("mtu", Int),
            ("keepalive", Int),
            ("dns", Text),
            ("isolated", Int),
            ("version", Text),
            ("capabilities", Text),
            ("metadata", Text),
            ("generation", Int),
            ("created_ms", Int),
            ("enrolled_ms", Int),
            ("enabled", Int),
            ("endpoint_allowed_ip", Text),
            ("keys_generation", Int),
            ("fingerprint", Text),
        ],
        select: "SELECT * FROM node ORDER BY id",
        insert: "INSERT INTO node (id, network, role, state, label, wireguard_key, next_key, next_key_hubs, identity_key,
            endpoint, listen_port, mtu, keepalive, dns, isolated, version, capabilities, metadata, generation, created_ms,
            enrolled_ms, enabled, endpoint_allowed_ip, keys_generation, fingerprint) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10,
            $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25)",
    },
    Table {
        name: "node_label",
        columns: &[("node", Text), ("key", Text), ("value", Text)],
        select: "SELECT * FROM node_label ORDER BY node, key",
        insert: "INSERT INTO node_label (node, key, value) VALUES ($1, $2, $3)",
    },
    Table {
        name: "lease",
        columns: &[("network", Text), ("family", Int), ("host", Int), ("node", Text), ("until_ms", Int)],
        select: "SELECT * FROM lease ORDER BY network, family, host",
        insert: "INSERT INTO lease (network, family, host, node, until_ms) VALUES ($1, $2, $3, $4, $5)",
    },
    Table {
        name: "token",
        columns: &[
            ("id", Text),
            ("hash", Text),
            ("network", Text),
            ("node", Text),
            ("note", Text),
            ("uses", Int),
            ("max_uses", Int),
            ("created_ms", Int),
            ("expires_ms", Int),
            ("revoked_ms", Int),
            ("key_proof", Int),
        ],
        select: "SELECT * FROM token ORDER BY id",
        insert: "INSERT INTO token (id, hash, network, node, note, uses, max_uses, created_ms, expires_ms, revoked_ms,
            key_proof) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    },
    Table {
        name: "enrolment",
        columns: &[("node", Text), ("token", Text), ("key_proof", Int)],
        select: "SELECT * FROM enrolment ORDER BY node",
        insert: "INSERT INTO enrolment (node, token, key_proof) VALUES ($1, $2, $3)",
    },
    Table {
        name: "superseded",
        columns: &[("node", Text), ("generation", Text)],
        select: "SELECT * FROM superseded ORDER BY node",
        insert: "INSERT INTO superseded (node, generation) VALUES ($1, $2)",
    },
    Table {
        name: "takes_preshared",
        columns: &[("node", Text)],
        select: "SELECT * FROM takes_preshared ORDER BY node",
        insert: "INSERT INTO takes_preshared (node) VALUES ($1)",
    },
    Table {
        name: "preshared",
        columns: &[("node", Text), ("node_key", Text), ("hub", Text), ("salt", Text)],
        select: "SELECT * FROM preshared ORDER BY node_key, hub",
        insert: "INSERT INTO preshared (node, node_key, hub, salt) VALUES ($1, $2, $3, $4)",
    },
    Table {
        name: "wanted_release",
        columns: &[
            ("network", Text),
            ("node", Text),
            ("version", Text),
            ("source", Text),
            ("spread_seconds", Int),
            ("since_ms", Int),
            ("renewed_ms", Int),
        ],
        select: "SELECT * FROM wanted_release ORDER BY network, node",
        insert: "INSERT INTO wanted_release (network, node, version, source, spread_seconds, since_ms, renewed_ms)
            VALUES ($1, $2, $3, $4, $5, $6, $7)",
    },
    Table {
        name: "signing_key",
        columns: &[
            ("public_key", Text),
            ("sealed_seed", Text),
            ("state", Text),
            ("created_ms", Int),
            ("active_ms", Int),
        ],
        select: "SELECT * FROM signing_key ORDER BY created_ms, public_key",
        insert: "INSERT INTO signing_key (public_key, sealed_seed, state, created_ms, active_ms)
            VALUES ($1, $2, $3, $4, $5)",
    },
    Table {
        name: "removed_identity",
        columns: &[("identity_key", Text), ("node", Text), ("removed_ms", Int), ("generation", Int)],
        select: "SELECT * FROM removed_identity ORDER BY identity_key",
        insert: "INSERT INTO removed_identity (identity_key, node, removed_ms, generation)
            VALUES ($1, $2, $3, COALESCE($4, 0))",
    },
    Table {
        name: "admission",
        columns: &[
            ("node", Text),
            ("wireguard_key", Text),
            ("granted", Int),
            ("code", Text),
            ("token_id", Text),
            ("decided_ms", Int),
        ],
        select: "SELECT * FROM admission ORDER BY node, wireguard_key",
        insert: "INSERT INTO admission (node, wireguard_key, granted, code, token_id, decided_ms)
            VALUES ($1, $2, $3, $4, $5, $6)",
    },
    Table {
        name: "operator_key",
        columns: &[
            ("id", Text),
            ("hash", Text),
            ("name", Text),
            ("role", Text),
            ("created_ms", Int),
            ("expires_ms", Int),
            ("revoked_ms", Int),
            ("used_ms", Int),
        ],
        select: "SELECT * FROM operator_key ORDER BY id",
        insert: "INSERT INTO operator_key (id, hash, name, role, created_ms, expires_ms, revoked_ms, used_ms)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    },
    Table {
        name: "audit",
        columns: &[
            ("at_ms", Int),
            ("actor", Text),
            ("action", Text),
            ("entity_type", Text),
            ("entity_id", Text),
            ("details", Text),
            ("chain", Text),
            ("hash", Text),
        ],
        select: "SELECT * FROM audit ORDER BY id",
        insert: "INSERT INTO audit (at_ms, actor, action, entity_type, entity_id, details, chain, hash)
            VALUES ($1, $2, $3, $4, $5, $6, COALESCE($7, ''), COALESCE($8, ''))",
    },
    Table {
        name: "audit_chain",
        columns: &[("name", Text), ("head", Text), ("anchor", Text)],
        select: "SELECT * FROM audit_chain ORDER BY name",
        insert: "INSERT INTO audit_chain (name, head, anchor) VALUES ($1, $2, $3)",
    },
];

/// The tables that a backup does not have, and why.
pub const NOT_DUMPED: [(&str, &str); 11] = [
    ("_sqlx_migrations", "the schema is that of the release that restores"),
    ("audit_repeat", "counts of an hour, which begin again"),
    ("chain", "read again from the chain"),
    ("event", "kept for a day; clients of a restored fleet read their lists again"),
    ("event_head", "as event"),
    ("job", "due at once after a restore"),
    ("registration", "sent again by each device"),
    ("report", "sent again by each device"),
    ("request", "answers that are kept for a day: a restored fleet has not given them"),
    ("used_nonce", "older than any control plane that starts after the restore"),
    ("wake", "no process waits"),
];

/// The columns of dumped tables that a backup does not have, and why.
pub const NOT_DUMPED_COLUMNS: [(&str, &str, &str); 1] = [("audit", "id", "numbered again in the same order")];

/// The tables and columns that a backup has.
pub fn dumped_columns() -> impl Iterator<Item = (&'static str, &'static str)> {
    TABLES.iter().flat_map(|t| t.columns.iter().map(|(column, _)| (t.name, *column)))
}

impl Store {
    /// Writes a snapshot of the store; returns the number of rows.
    pub async fn backup(&self, out: &mut impl Write, key: &BackupKey) -> Result<u64, BackupError> {
        let mut tx = self.read().await?;
        let mut mac = ring::hmac::Context::with_key(key);
        write_line(out, Some(&mut mac), &Header { format: FORMAT.into(), version: VERSION })?;
        let mut count = 0;
        for table in TABLES {
            for row in tx.rows(table.select, &[]).await? {
                let mut cells = BTreeMap::new();
                for (column, kind) in table.columns {
                    let value = match kind {
                        Int => row.opt_int(column)?.map(serde_json::Value::from),
                        Text => row.opt_text(column)?.map(serde_json::Value::from),
                    };
                    cells.insert((*column).to_owned(), value.unwrap_or_default());
                }
                write_line(out, Some(&mut mac), &RowLine { table: table.name.into(), row: cells })?;
                count += 1;
            }
        }
        write_line(out, None, &Footer { rows: count, mac: Some(hex(&mac.sign())) })?;
        out.flush()?;
        Ok(count)
    }

    /// Restores a backup into an empty store, all of it or nothing; returns the number of rows. Without `key` it is not
    /// verified.
    ///
    /// Every generation is raised beyond what any device has seen: changes made after the backup are lost, and a device
    /// that applied them would refuse the restored document as old.
    pub async fn restore(&self, input: impl BufRead, key: Option<&BackupKey>) -> Result<u64, BackupError> {
        let mut tx = self.write().await?;
        if tx.row("SELECT 1 AS one FROM network", &[]).await?.is_some()
            || tx.row("SELECT 1 AS one FROM signing_key", &[]).await?.is_some()
            || tx.row("SELECT 1 AS one FROM audit_chain", &[]).await?.is_some()
        {
            return Err(BackupError::NotEmpty);
        }
        let mut lines = input.lines().zip(1u64..);
        let bad = |line, problem: &dyn std::fmt::Display| BackupError::Format { line, problem: problem.to_string() };
        let (first, _) = lines.next().ok_or_else(|| bad(1, &"the file is empty"))?;
        let mut mac = key.map(ring::hmac::Context::with_key);
        let mut read = |text: &str| {
            if let Some(mac) = &mut mac {
                mac.update(text.as_bytes());
                mac.update(b"\n");
            }
        };
        let first = first?;
        read(&first);
        let head: Header = serde_json::from_str(&first).map_err(|e| bad(1, &e))?;
        if head.format != FORMAT || head.version != VERSION {
            return Err(bad(1, &format_args!("not a {FORMAT} of version {VERSION}")));
        }
        let (mut count, mut last) = (0, 1);
        let mut footer = None;
        for (text, number) in lines {
            last = number;
            let text = text?;
            if footer.is_some() {
                return Err(bad(number, &"data after the last line"));
            }
            if let Ok(end) = serde_json::from_str::<Footer>(&text) {
                footer = Some(end);
                continue;
            }
            read(&text);
            let line: RowLine = serde_json::from_str(&text).map_err(|e| bad(number, &e))?;
            if let Some(what) = unknown(&line) {
                return Err(BackupError::Newer { line: number, what });
            }
            insert(&mut tx, &line).await?.ok_or_else(|| bad(number, &"not a row of a known table"))?;
            count += 1;
        }
        let footer = footer.filter(|f| f.rows == count).ok_or_else(|| bad(last, &"the backup is cut short"))?;
        if let Some(mac) = mac {
            let stored = footer.mac.ok_or(BackupError::NoMac)?;
            if !constant_time_equal(stored.as_bytes(), hex(&mac.sign()).as_bytes()) {
                return Err(BackupError::Changed);
            }
        }
        tx.run("UPDATE node SET generation = generation + $1", &[RESTORE_STEP.into()]).await?;
        tx.commit().await?;
        Ok(count)
    }
}

/// More generations than a node gets between two backups.
const RESTORE_STEP: i64 = 1_000_000;

fn write_line(
    out: &mut impl Write,
    mac: Option<&mut ring::hmac::Context>,
    value: &impl Serialize,
) -> Result<(), BackupError> {
    let line = serde_json::to_string(value).map_err(std::io::Error::other)? + "\n";
    if let Some(mac) = mac {
        mac.update(line.as_bytes());
    }
    Ok(out.write_all(line.as_bytes())?)
}

/// The table or column of a row that this release does not know.
fn unknown(line: &RowLine) -> Option<String> {
    let Some(table) = TABLES.iter().find(|t| t.name == line.table) else {
        return Some(format!("table {:?}", line.table));
    };
    let column = line.row.keys().find(|c| !table.columns.iter().any(|(name, _)| name == c))?;
    Some(format!("column {column:?} of table {:?}", line.table))
}

async fn insert(tx: &mut Tx, line: &RowLine) -> Result<Option<()>, StoreError> {
    let Some(table) = TABLES.iter().find(|t| t.name == line.table) else { return Ok(None) };
    let mut values = Vec::with_capacity(table.columns.len());
    for (column, kind) in table.columns {
        let cell = line.row.get(*column);
        values.push(match (kind, cell) {
            (Int, None | Some(serde_json::Value::Null)) => Value::Int(None),
            (Text, None | Some(serde_json::Value::Null)) => Value::Text(None),
            (Int, Some(cell)) => match cell.as_i64() {
                Some(n) => n.into(),
                None => return Ok(None),
            },
            (Text, Some(cell)) => match cell.as_str() {
                Some(text) => text.into(),
                None => return Ok(None),
            },
        });
    }
    tx.run(table.insert, &values).await?;
    Ok(Some(()))
}
