//! The audit trail as chains of hashes: written at the commit, verified, exported, and kept by age and number.
use super::audit_entry::{Chain, Entry};
use super::error::StoreError;
use super::event_entry::EventEntry;
use super::row::Row;
use super::sql::{Store, Tx};
use serde::Serialize;
use std::collections::BTreeSet;

/// How long repeats of one action are counted together, in milliseconds.
const REPEAT_PERIOD_MS: i64 = 3_600_000;
/// How often old records are deleted, in milliseconds.
const PRUNE_EVERY_MS: i64 = 60_000;
/// Records deleted at a time: the writers of the database wait meanwhile.
const MAX_DELETED: i64 = 20_000;
/// Records of each chain that are kept whatever their age: a clock that jumps ahead must not empty the trail.
const LEAST_KEPT: i64 = 1_000;
/// Records read at a time.
const PAGE: i64 = 1_000;

/// Entries of one action by one node or timer on one entity that are kept whole within [`REPEAT_PERIOD_MS`].
fn whole_entries(entity_type: &str) -> i64 {
    if entity_type == ADDRESS { 100 } else { 5 }
}

/// The entity under which repeats are counted: unauthenticated clients have as many addresses as they like.
fn repeated_entity<'a>(entity_type: &str, id: &'a str) -> &'a str {
    if entity_type == ADDRESS { "*" } else { id }
}

/// The type of entity of unauthenticated clients.
const ADDRESS: &str = "address";

/// How long the audit trail is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditRetention {
    /// In milliseconds.
    pub keep_ms: i64,
    /// Records of each chain.
    pub records: i64,
}

/// What is wrong with a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChainFault {
    /// This record was changed, or the one before it is missing.
    Broken {
        /// The record.
        id: u64,
    },
    /// The newest records are missing, or the head was changed.
    Cut,
}

impl std::fmt::Display for ChainFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Broken { id } => write!(f, "record {id} was changed, or the record before it is missing"),
            Self::Cut => f.write_str("the newest records are missing, or the head was changed"),
        }
    }
}

/// The result of verifying one chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChainReport {
    /// `operators` or `fleet`.
    pub chain: &'static str,
    /// Records in it.
    pub records: u64,
    /// The hash of the newest one; empty: there is none.
    pub head: String,
    /// The first fault; null: none.
    pub fault: Option<ChainFault>,
    /// Which of the noted heads are in it.
    pub noted: BTreeSet<String>,
}

/// The result of verifying the audit trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TrailReport {
    /// Both chains.
    pub chains: Vec<ChainReport>,
    /// Noted heads that are in no chain: all of it was written again, or they are older than what is kept.
    pub missing: BTreeSet<String>,
    /// Records in no chain, which cannot be verified: those of releases without chains.
    pub unchained: u64,
    /// When the newest of them was written, in milliseconds since 1970.
    pub unchained_until_ms: Option<u64>,
}

impl TrailReport {
    /// What is wrong, as text; `None`: nothing.
    pub fn fault(&self) -> Option<String> {
        let broken = self.chains.iter().find_map(|c| c.fault.as_ref().map(|f| format!("chain {}: {f}", c.chain)));
        let missing = || {
            let head = self.missing.first()?;
            Some(format!(
                "head {head} is in no chain: the trail was written again, or the head is older than what is kept"
            ))
        };
        broken.or_else(missing)
    }
}

/// A record with its place in a chain, as exported.
#[derive(Clone, Debug, Serialize)]
pub struct ChainedRecord {
    /// Ascending, with gaps.
    pub id: u64,
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// `operator:NAME`, `node:ID` or `system`.
    pub actor: String,
    /// The verb.
    pub action: String,
    /// The kind of entity.
    pub entity_type: String,
    /// Which one.
    pub entity_id: String,
    /// As text: the hash is made over it.
    pub details: String,
    /// The chain; empty: written by a release without chains.
    pub chain: String,
    /// Its hash in the chain.
    pub hash: String,
}

impl ChainedRecord {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.count("id")?,
            at_ms: row.int("at_ms")?,
            actor: row.text("actor")?,
            action: row.text("action")?,
            entity_type: row.text("entity_type")?,
            entity_id: row.text("entity_id")?,
            details: row.text("details")?,
            chain: row.text("chain")?,
            hash: row.text("hash")?,
        })
    }

    fn entry(&self, chain: Chain) -> Entry {
        Entry {
            at_ms: self.at_ms,
            actor: self.actor.clone(),
            action: self.action.clone(),
            entity_type: self.entity_type.clone(),
            entity_id: self.entity_id.clone(),
            details: self.details.clone(),
            chain,
        }
    }
}

impl Tx {
    /// Stores the entries of this transaction, as its last statements: from here on other writers of the chain wait.
    pub(super) async fn store_entries(&mut self) -> Result<(), StoreError> {
        let mut entries = std::mem::take(&mut self.entries);
        // Locks in one order, so that two writers cannot wait for each other.
        entries.sort_by_key(|e| e.chain);
        for entry in entries {
            // Before the counts, so that two writers cannot wait for each other.
            let head = self.lock_chain(entry.chain).await?;
            if entry.chain == Chain::Operators || self.is_kept_whole(&entry).await? {
                self.append(&head, &entry).await?;
            }
        }
        Ok(())
    }

    /// Counts an entry of a node or timer; `false`: a repeat, which is counted only.
    async fn is_kept_whole(&mut self, entry: &Entry) -> Result<bool, StoreError> {
        let sql = "INSERT INTO audit_repeat (actor, action, entity_type, entity_id, since_ms, last_ms, entries)
            VALUES ($1, $2, $3, $4, $5, $5, 1) ON CONFLICT (actor, action, entity_type, entity_id)
            DO UPDATE SET entries = audit_repeat.entries + 1, last_ms = excluded.last_ms RETURNING entries";
        let values = [
            entry.actor.as_str().into(),
            entry.action.as_str().into(),
            entry.entity_type.as_str().into(),
            repeated_entity(&entry.entity_type, &entry.entity_id).into(),
            entry.at_ms.into(),
        ];
        let row = self.row(sql, &values).await?.ok_or(StoreError::Unreadable("audit_repeat"))?;
        Ok(row.int("entries")? <= whole_entries(&entry.entity_type))
    }

    /// Locks a chain until the commit; returns its head.
    async fn lock_chain(&mut self, chain: Chain) -> Result<String, StoreError> {
        let name = chain.as_str();
        let sql = "INSERT INTO audit_chain (name, head, anchor) VALUES ($1, '', '') ON CONFLICT DO NOTHING";
        self.run(sql, &[name.into()]).await?;
        let sql = "UPDATE audit_chain SET head = head WHERE name = $1 RETURNING head";
        self.row(sql, &[name.into()]).await?.ok_or(StoreError::Unreadable("audit_chain"))?.text("head")
    }

    async fn append(&mut self, head: &str, entry: &Entry) -> Result<(), StoreError> {
        let (chain, hash) = (entry.chain.as_str(), entry.hash(head));
        let sql = "INSERT INTO audit (at_ms, actor, action, entity_type, entity_id, details, chain, hash)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
        let values = [
            entry.at_ms.into(),
            entry.actor.as_str().into(),
            entry.action.as_str().into(),
            entry.entity_type.as_str().into(),
            entry.entity_id.as_str().into(),
            entry.details.as_str().into(),
            chain.into(),
            hash.as_str().into(),
        ];
        self.run(sql, &values).await?;
        self.run("UPDATE audit_chain SET head = $2 WHERE name = $1", &[chain.into(), hash.as_str().into()]).await?;
        let recorded: serde_json::Value = serde_json::from_str(&entry.details).unwrap_or_default();
        self.event(EventEntry {
            at_ms: entry.at_ms,
            kind: "audit",
            entity_type: entry.entity_type.clone(),
            entity_id: entry.entity_id.clone(),
            details: serde_json::json!({"action": entry.action, "user": entry.actor, "details": recorded}),
        });
        Ok(())
    }

    /// Records after `id`, oldest first.
    pub async fn audit_export(&mut self, after: u64) -> Result<Vec<ChainedRecord>, StoreError> {
        let sql = "SELECT * FROM audit WHERE id > $1 ORDER BY id LIMIT $2";
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        self.rows(sql, &[after.into(), PAGE.into()]).await?.iter().map(ChainedRecord::read).collect()
    }

    /// Verifies both chains. `noted`: heads of before, each of which must be in one of them.
    pub async fn verify_audit(&mut self, noted: &BTreeSet<String>) -> Result<TrailReport, StoreError> {
        let mut chains = Vec::new();
        for chain in Chain::ALL {
            chains.push(self.verify_chain(chain, noted).await?);
        }
        let missing = noted.iter().filter(|n| !chains.iter().any(|c| c.noted.contains(*n))).cloned().collect();
        let sql = "SELECT COUNT(*) AS n, MAX(at_ms) AS newest FROM audit WHERE chain = ''";
        let row = self.row(sql, &[]).await?.ok_or(StoreError::Unreadable("audit"))?;
        let newest = row.opt_int("newest")?.and_then(|t| u64::try_from(t).ok());
        Ok(TrailReport { chains, missing, unchained: row.count("n")?, unchained_until_ms: newest })
    }

    async fn verify_chain(&mut self, chain: Chain, noted: &BTreeSet<String>) -> Result<ChainReport, StoreError> {
        let name = chain.as_str();
        let row = self.row("SELECT head, anchor FROM audit_chain WHERE name = $1", &[name.into()]).await?;
        let (head, anchor) = match row {
            Some(row) => (row.text("head")?, row.text("anchor")?),
            None => Default::default(),
        };
        let mut report = ChainReport { chain: name, records: 0, head, fault: None, noted: BTreeSet::new() };
        report.noted.extend(noted.get(&anchor).cloned());
        let (mut previous, mut after) = (anchor, 0i64);
        loop {
            let sql = "SELECT * FROM audit WHERE chain = $1 AND id > $2 ORDER BY id LIMIT $3";
            let rows = self.rows(sql, &[name.into(), after.into(), PAGE.into()]).await?;
            if rows.is_empty() {
                break;
            }
            for row in &rows {
                let record = ChainedRecord::read(row)?;
                if record.entry(chain).hash(&previous) != record.hash && report.fault.is_none() {
                    report.fault = Some(ChainFault::Broken { id: record.id });
                }
                report.records += 1;
                report.noted.extend(noted.get(&record.hash).cloned());
                after = i64::try_from(record.id).unwrap_or(i64::MAX);
                previous = record.hash;
            }
        }
        if previous != report.head && report.fault.is_none() {
            report.fault = Some(ChainFault::Cut);
        }
        Ok(report)
    }

    /// Deletes the oldest records of a chain; an empty name: those of no chain.
    async fn prune_chain(&mut self, chain: &str, now_ms: i64, retention: AuditRetention) -> Result<(), StoreError> {
        let mut newest = async |offset: i64| {
            let sql = "SELECT id FROM audit WHERE chain = $1 ORDER BY id DESC LIMIT 1 OFFSET $2";
            let row = self.row(sql, &[chain.into(), offset.into()]).await?;
            row.map_or(Ok(0), |r| r.int("id"))
        };
        let (beyond, spared) = (newest(retention.records.max(1)).await?, newest(LEAST_KEPT).await?);
        let sql = "SELECT id FROM audit WHERE chain = $1 AND at_ms >= $2 ORDER BY id LIMIT 1";
        let young = self.row(sql, &[chain.into(), now_ms.saturating_sub(retention.keep_ms).into()]).await?;
        // From the oldest on, so that a chain stays one.
        let old = young.map_or(Ok(i64::MAX), |r| r.int("id"))?.saturating_sub(1).min(spared);
        let last = beyond.max(old);
        let sql = "SELECT id, hash FROM audit WHERE chain = $1 AND id <= $2 ORDER BY id LIMIT $3";
        let deleted = self.rows(sql, &[chain.into(), last.into(), MAX_DELETED.into()]).await?;
        let Some(end) = deleted.last() else { return Ok(()) };
        let (id, hash) = (end.int("id")?, end.text("hash")?);
        self.run("DELETE FROM audit WHERE chain = $1 AND id <= $2", &[chain.into(), id.into()]).await?;
        self.run("UPDATE audit_chain SET anchor = $2 WHERE name = $1", &[chain.into(), hash.into()]).await?;
        Ok(())
    }

    /// Records the repeats that were counted, once their time is over.
    async fn store_repeats(&mut self, now_ms: i64) -> Result<(), StoreError> {
        // Counts of the future are of a clock that was set back since.
        let (from, until) = (now_ms.saturating_sub(REPEAT_PERIOD_MS), now_ms.saturating_add(REPEAT_PERIOD_MS));
        let due = [from.into(), until.into()];
        let sql = "SELECT * FROM audit_repeat WHERE since_ms <= $1 OR since_ms > $2
            ORDER BY actor, action, entity_type, entity_id";
        for row in self.rows(sql, &due).await? {
            let repeats = row.int("entries")?.saturating_sub(whole_entries(&row.text("entity_type")?));
            if repeats <= 0 {
                continue;
            }
            let details = serde_json::json!({
                "repeats": repeats, "since_ms": row.int("since_ms")?, "until_ms": row.int("last_ms")?,
            });
            let entry = Entry {
                at_ms: now_ms,
                actor: row.text("actor")?,
                action: row.text("action")?,
                entity_type: row.text("entity_type")?,
                entity_id: row.text("entity_id")?,
                details: details.to_string(),
                chain: Chain::Fleet,
            };
            let head = self.lock_chain(Chain::Fleet).await?;
            self.append(&head, &entry).await?;
        }
        self.run("DELETE FROM audit_repeat WHERE since_ms <= $1 OR since_ms > $2", &due).await.map(drop)
    }
}

impl Store {
    /// Records counted repeats and deletes records that are too old or too many. `false`: another process did so within the
    /// minute.
    pub async fn prune_audit(&self, now_ms: i64, retention: AuditRetention) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        if !tx.claim_job("audit", now_ms, PRUNE_EVERY_MS).await? {
            return Ok(false);
        }
        // No repeat is counted between their sum and its deletion.
        for chain in Chain::ALL {
            tx.lock_chain(chain).await?;
        }
        for chain in Chain::ALL.map(Chain::as_str).into_iter().chain([""]) {
            tx.prune_chain(chain, now_ms, retention).await?;
        }
        tx.store_repeats(now_ms).await?;
        tx.commit().await?;
        Ok(true)
    }
}
