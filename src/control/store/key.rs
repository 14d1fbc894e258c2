//! Signing keys, kept sealed: without the master key file the database signs nothing.
use super::sql::{StoreError, Tx};
use spoke_model::signature::VerifyKey;

/// A signing key as stored.
#[derive(Clone, Debug)]
pub struct StoredKey {
    /// Its public half.
    pub public: VerifyKey,
    /// Its seed, sealed.
    pub sealed: String,
    /// Whether it still signs.
    pub active: bool,
    /// Milliseconds since 1970.
    pub created_ms: u64,
}

impl Tx {
    /// Every signing key, oldest first.
    pub async fn signing_keys(&mut self) -> Result<Vec<StoredKey>, StoreError> {
        let sql = "SELECT public_key, sealed_seed, state, created_ms FROM signing_key ORDER BY created_ms, public_key";
        let read = |row: &super::sql::Row| {
            Ok(StoredKey {
                public: row.parsed("public_key")?,
                sealed: row.text("sealed_seed")?,
                active: row.text("state")? == "active",
                created_ms: row.count("created_ms")?,
            })
        };
        self.rows(sql, &[]).await?.iter().map(read).collect()
    }

    /// The public halves of the keys in service, oldest first.
    pub async fn keys_in_service(&mut self) -> Result<Vec<VerifyKey>, StoreError> {
        Ok(self.signing_keys().await?.into_iter().filter(|k| k.active).map(|k| k.public).collect())
    }

    /// Puts a key into service beside the others; every node hears of it.
    pub async fn add_signing_key(&mut self, public: VerifyKey, sealed: &str, now_ms: i64) -> Result<(), StoreError> {
        let sql = "INSERT INTO signing_key (public_key, sealed_seed, state, created_ms) VALUES ($1, $2, 'active', $3)";
        self.run(sql, &[public.to_string().into(), sealed.into(), now_ms.into()]).await?;
        self.touch_all().await
    }

    /// Takes a key out of service. `false`: it is not in service, or it is the last one.
    pub async fn retire_signing_key(&mut self, public: VerifyKey) -> Result<bool, StoreError> {
        let sql = "UPDATE signing_key SET state = 'retired' WHERE public_key = $1 AND state = 'active'
            AND EXISTS (SELECT 1 FROM signing_key WHERE state = 'active' AND public_key <> $1)";
        let done = self.run(sql, &[public.to_string().into()]).await? == 1;
        if done {
            self.touch_all().await?;
        }
        Ok(done)
    }
}
