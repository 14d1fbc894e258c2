//! Signing keys, stored sealed: without the master key file the database signs nothing.
use super::error::StoreError;
use super::row::Row;
use super::sql::Tx;
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
}

impl Tx {
    /// Every signing key, oldest first.
    pub async fn signing_keys(&mut self) -> Result<Vec<SealedKey>, StoreError> {
        let sql = "SELECT public_key, sealed_seed, state FROM signing_key ORDER BY created_ms, public_key";
        let read = |row: &Row| {
            Ok(SealedKey {
                public: row.parsed("public_key")?,
                sealed: row.text("sealed_seed")?,
                active: row.text("state")? == "active",
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
        let sql = "INSERT INTO signing_key (public_key, sealed_seed, state, created_ms) VALUES ($1, $2, 'active', $3)";
        self.run(sql, &[public.to_string().into(), sealed.into(), now_ms.into()]).await?;
        self.raise_all_generations().await
    }

    /// Retires a key; raises every node's generation. `false`: it is not active, or it is the last active one.
    pub async fn retire_signing_key(&mut self, public: VerifyKey) -> Result<bool, StoreError> {
        let sql = "UPDATE signing_key SET state = 'retired' WHERE public_key = $1 AND state = 'active'
            AND EXISTS (SELECT 1 FROM signing_key WHERE state = 'active' AND public_key <> $1)";
        let retired = self.run(sql, &[public.to_string().into()]).await? == 1;
        if retired {
            self.raise_all_generations().await?;
        }
        Ok(retired)
    }
}
