//! Keys of the operators' API: each with a name, a role and perhaps an expiry; stored as a hash of 256 random bits.
use super::error::StoreError;
use super::row::Row;
use super::sql::Tx;
use super::token::{constant_time_equal, random_bearer, split_bearer};
use serde::{Deserialize, Serialize};
use spoke_model::secret::Secret;
use spoke_model::signature::sha256_hex;

/// What a key begins with.
const PREFIX: &str = "spo_";
/// How old the time of the last use may get, in milliseconds: a write for each request would cost more than the request.
const USE_INTERVAL_MS: i64 = 60_000;

/// What an operator may do; each role includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OperatorRole {
    /// Reads.
    Viewer,
    /// Changes the fleet.
    Operator,
    /// Manages the keys of operators.
    Admin,
}

impl OperatorRole {
    /// As in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// Not the name of a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a role is viewer, operator or admin")]
pub struct NoSuchRole;

impl std::str::FromStr for OperatorRole {
    type Err = NoSuchRole;
    fn from_str(text: &str) -> Result<Self, NoSuchRole> {
        [Self::Viewer, Self::Operator, Self::Admin].into_iter().find(|r| r.as_str() == text).ok_or(NoSuchRole)
    }
}

/// A key without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorKey {
    /// The part of it that is not secret.
    pub id: String,
    /// Whose it is, for the audit trail.
    pub name: String,
    /// What it may do.
    pub role: OperatorRole,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// Milliseconds since 1970; `None`: never.
    pub expires_ms: Option<u64>,
    /// Milliseconds since 1970.
    pub revoked_ms: Option<u64>,
    /// Last use, to the minute, in milliseconds since 1970.
    pub used_ms: Option<u64>,
}

impl OperatorKey {
    pub(super) fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.text("id")?,
            name: row.text("name")?,
            role: row.parsed("role")?,
            created_ms: row.count("created_ms")?,
            expires_ms: row.opt_count("expires_ms")?,
            revoked_ms: row.opt_count("revoked_ms")?,
            used_ms: row.opt_count("used_ms")?,
        })
    }

    /// Whether it opens anything at `now_ms`.
    pub fn is_valid(&self, now_ms: i64) -> bool {
        let now = u64::try_from(now_ms).unwrap_or(0);
        self.revoked_ms.is_none() && self.expires_ms.is_none_or(|t| now < t)
    }

    /// Whether the stored time of its last use is out of date.
    pub fn is_use_due(&self, now_ms: i64) -> bool {
        let now = u64::try_from(now_ms).unwrap_or(0);
        self.used_ms.is_none_or(|t| now.abs_diff(t) >= USE_INTERVAL_MS.unsigned_abs())
    }
}

impl Tx {
    /// Creates a key; returns its id and its text, which is not stored.
    pub async fn add_operator_key(
        &mut self,
        (name, role): (&str, OperatorRole),
        expires_ms: Option<i64>,
        now_ms: i64,
    ) -> Result<(String, Secret<String>), StoreError> {
        let (id, secret) = random_bearer()?;
        let sql = "INSERT INTO operator_key (id, hash, name, role, created_ms, expires_ms)
            VALUES ($1, $2, $3, $4, $5, $6)";
        let values = [
            id.as_str().into(),
            sha256_hex(secret.reveal().as_bytes()).into(),
            name.into(),
            role.as_str().into(),
            now_ms.into(),
            expires_ms.into(),
        ];
        self.run(sql, &values).await?;
        let text = Secret::new(format!("{PREFIX}{id}_{}", secret.reveal()));
        Ok((id, text))
    }

    /// The valid key with this text; all others look the same and take the same time.
    pub async fn valid_operator_key(&mut self, key: &str, now_ms: i64) -> Result<Option<OperatorKey>, StoreError> {
        let Some((id, secret)) = split_bearer(PREFIX, key) else { return Ok(None) };
        let row = self.row("SELECT * FROM operator_key WHERE id = $1", &[id.into()]).await?;
        // Compared with a dummy for an unknown id, so that the time does not depend on it.
        let stored = row.as_ref().map_or_else(|| Ok("0".repeat(64)), |r| r.text("hash"))?;
        let same = constant_time_equal(stored.as_bytes(), sha256_hex(secret.as_bytes()).as_bytes());
        let found = row.filter(|_| same).map(|row| OperatorKey::read(&row)).transpose()?;
        Ok(found.filter(|k| k.is_valid(now_ms)))
    }

    /// Stores the time of a use.
    pub async fn use_operator_key(&mut self, id: &str, now_ms: i64) -> Result<(), StoreError> {
        self.run("UPDATE operator_key SET used_ms = $2 WHERE id = $1", &[id.into(), now_ms.into()]).await.map(drop)
    }

    /// Every key, newest first.
    pub async fn operator_keys(&mut self) -> Result<Vec<OperatorKey>, StoreError> {
        let rows = self.rows("SELECT * FROM operator_key ORDER BY created_ms DESC, id", &[]).await?;
        rows.iter().map(OperatorKey::read).collect()
    }

    /// Revokes a key; returns its name. `None`: no such key, or it was revoked before.
    pub async fn revoke_operator_key(&mut self, id: &str, now_ms: i64) -> Result<Option<String>, StoreError> {
        let row = self.row("SELECT name FROM operator_key WHERE id = $1", &[id.into()]).await?;
        let sql = "UPDATE operator_key SET revoked_ms = $2 WHERE id = $1 AND revoked_ms IS NULL";
        let revoked = self.run(sql, &[id.into(), now_ms.into()]).await? == 1;
        row.filter(|_| revoked).map(|r| r.text("name")).transpose()
    }
}
