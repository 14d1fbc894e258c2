//! Signing keys, stored sealed: without the master key file the database signs nothing.
use super::error::StoreError;
use super::row::Row;
use super::sql::Tx;
use spoke_model::node_id::NodeId;
use spoke_model::signature::VerifyKey;

/// A signing key as stored.
#[derive(Clone, Debug)]
pub struct SealedKey {
    /// Its public half.
    pub public: VerifyKey,
    /// Its seed, sealed under the master key.
    pub sealed: String,
    /// Whether it signs.
    pub active: bool,
    /// Milliseconds since 1970.
    pub created_ms: u64,
}

/// A signing key, and how many nodes accept it.
#[derive(Clone, Debug)]
pub struct KeptKey {
    /// The key.
    pub key: SealedKey,
    /// Active nodes that have kept a state with it: of the newest key exactly, of an older active one at least. `None`: it
    /// is retired.
    pub kept_by: Option<u64>,
    /// Whether it is the newest active key.
    pub newest: bool,
    /// Active nodes.
    pub nodes: u64,
}

/// Which nodes a retirement may lock out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// None.
    NoNode,
    /// Every node that knows no other key.
    AnyNode,
}

/// How a retirement ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retirement {
    /// The key is retired.
    Retired,
    /// It is not active, or the last active one.
    NotRetirable,
    /// These nodes may know no other key, and would refuse every later state.
    WouldLose(Vec<NodeId>),
}

impl Tx {
    /// Every signing key, oldest first.
    pub async fn signing_keys(&mut self) -> Result<Vec<SealedKey>, StoreError> {
        let sql = "SELECT public_key, sealed_seed, state, created_ms FROM signing_key
            ORDER BY COALESCE(active_ms, created_ms), public_key";
        let read = |row: &Row| {
            Ok(SealedKey {
                public: row.parsed("public_key")?,
                sealed: row.text("sealed_seed")?,
                active: row.text("state")? == "active",
                created_ms: row.count("created_ms")?,
            })
        };
        self.rows(sql, &[]).await?.iter().map(read).collect()
    }

    /// The public halves of the active keys, oldest first.
    pub async fn active_signing_keys(&mut self) -> Result<Vec<VerifyKey>, StoreError> {
        Ok(self.signing_keys().await?.into_iter().filter(|k| k.active).map(|k| k.public).collect())
    }

    /// Adds an active key beside the others; raises every node's generation.
    pub async fn add_signing_key(&mut self, public: VerifyKey, sealed: &str, now_ms: i64) -> Result<(), StoreError> {
        // Later than every other key even if the clock was set back: messages with one signature use the oldest.
        let sql = "INSERT INTO signing_key (public_key, sealed_seed, state, created_ms)
            SELECT $1, $2, 'active', CASE WHEN MAX(COALESCE(active_ms, created_ms)) >= $3
                THEN MAX(COALESCE(active_ms, created_ms)) + 1 ELSE $3 END
            FROM signing_key";
        self.run(sql, &[public.to_string().into(), sealed.into(), now_ms.into()]).await?;
        self.await_newest_key().await
    }

    /// Has every node keep a state with a key that became active in this transaction.
    async fn await_newest_key(&mut self) -> Result<(), StoreError> {
        self.raise_all_generations().await?;
        self.run("UPDATE node SET keys_generation = generation", &[]).await.map(drop)
    }

    /// Makes a retired key active again, as the newest: nodes that kept a state without it do not know it. `false`: it is
    /// not retired.
    pub async fn unretire_signing_key(&mut self, public: VerifyKey, now_ms: i64) -> Result<bool, StoreError> {
        let sql = "UPDATE signing_key SET state = 'active', active_ms = (SELECT CASE
                WHEN MAX(COALESCE(active_ms, created_ms)) >= $2 THEN MAX(COALESCE(active_ms, created_ms)) + 1 ELSE $2 END
                FROM signing_key)
            WHERE public_key = $1 AND state = 'retired'";
        if self.run(sql, &[public.to_string().into(), now_ms.into()]).await? == 0 {
            return Ok(false);
        }
        self.await_newest_key().await?;
        Ok(true)
    }

    /// Every signing key, oldest first, with the nodes that accept it.
    pub async fn kept_signing_keys(&mut self) -> Result<Vec<KeptKey>, StoreError> {
        let keys = self.signing_keys().await?;
        let newest = keys.iter().rfind(|k| k.active).map(|k| k.public);
        let row = self.row("SELECT COUNT(*) AS n FROM node WHERE state = 'active'", &[]).await?;
        let nodes = row.map_or(Ok(0), |r| r.count("n"))?;
        let behind = u64::try_from(self.nodes_without_newest_key().await?.len()).unwrap_or(u64::MAX);
        let kept = nodes.saturating_sub(behind);
        let with = |key: SealedKey| {
            let (kept_by, newest) = (key.active.then_some(kept), newest == Some(key.public));
            KeptKey { key, kept_by, newest, nodes }
        };
        Ok(keys.into_iter().map(with).collect())
    }

    /// Retires a key unless it is the last active one; raises every node's generation.
    pub async fn retire_signing_key(&mut self, public: VerifyKey, without: Without) -> Result<Retirement, StoreError> {
        let active = self.active_signing_keys().await?;
        if !active.contains(&public) || active.len() < 2 {
            return Ok(Retirement::NotRetirable);
        }
        // A node that pinned the newest key pinned the older active ones with it.
        if active.last() != Some(&public) && without == Without::NoNode {
            let behind = self.nodes_without_newest_key().await?;
            if !behind.is_empty() {
                return Ok(Retirement::WouldLose(behind));
            }
        }
        let sql = "UPDATE signing_key SET state = 'retired' WHERE public_key = $1 AND state = 'active'
            AND EXISTS (SELECT 1 FROM signing_key WHERE state = 'active' AND public_key <> $1)";
        if self.run(sql, &[public.to_string().into()]).await? == 0 {
            return Ok(Retirement::NotRetirable);
        }
        self.raise_all_generations().await?;
        Ok(Retirement::Retired)
    }

    /// The active nodes that have not kept a state with the newest key, by id: they may know only older keys.
    async fn nodes_without_newest_key(&mut self) -> Result<Vec<NodeId>, StoreError> {
        let sql = "SELECT n.id FROM node n LEFT JOIN report r ON r.node = n.id
            WHERE n.state = 'active' AND n.keys_generation IS NOT NULL
            AND (r.confirmed IS NULL OR r.confirmed < n.keys_generation) ORDER BY n.id";
        self.rows(sql, &[]).await?.iter().map(|r| r.parsed("id")).collect()
    }
}
