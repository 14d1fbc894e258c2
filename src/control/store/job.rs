//! Background work that one of several control planes does at a time.
use super::sql::{Store, StoreError, Tx};

impl Tx {
    /// Claims a job that is due and sets when it is due again; the row's lock lets one process have it. `false`: not due.
    pub async fn claim(&mut self, name: &str, now_ms: i64, every_ms: i64) -> Result<bool, StoreError> {
        let sql = "INSERT INTO job (name, due_ms) VALUES ($1, 0) ON CONFLICT DO NOTHING";
        self.run(sql, &[name.into()]).await?;
        let sql = "UPDATE job SET due_ms = $3 WHERE name = $1 AND due_ms <= $2";
        Ok(self.run(sql, &[name.into(), now_ms.into(), now_ms.saturating_add(every_ms).into()]).await? == 1)
    }
}

impl Tx {
    /// Takes or keeps work that one process does at a time: until `now_ms + for_ms` it is `holder`'s. `false`: another's.
    ///
    /// Within the same transaction the row's lock keeps the answer true until the commit.
    pub async fn hold(&mut self, name: &str, holder: &str, now_ms: i64, for_ms: i64) -> Result<bool, StoreError> {
        let sql = "INSERT INTO job (name, due_ms) VALUES ($1, 0) ON CONFLICT DO NOTHING";
        self.run(sql, &[name.into()]).await?;
        let sql = "UPDATE job SET holder = $2, due_ms = $4 WHERE name = $1 AND (holder = $2 OR due_ms <= $3)";
        let until = now_ms.saturating_add(for_ms);
        Ok(self.run(sql, &[name.into(), holder.into(), now_ms.into(), until.into()]).await? == 1)
    }

    /// Lets go of what `holder` holds, so that another need not wait for the end of its time.
    pub async fn let_go(&mut self, name: &str, holder: &str) -> Result<(), StoreError> {
        let sql = "UPDATE job SET due_ms = 0 WHERE name = $1 AND holder = $2";
        self.run(sql, &[name.into(), holder.into()]).await.map(drop)
    }
}

impl Store {
    /// Removes what has expired: nonces and leases after their quarantine. Whoever claims it first does it.
    pub async fn prune(&self, now_ms: i64) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        if !tx.claim("prune", now_ms, 60_000).await? {
            return Ok(false);
        }
        tx.run("DELETE FROM used_nonce WHERE until_ms <= $1", &[now_ms.into()]).await?;
        tx.run("DELETE FROM lease WHERE until_ms <= $1", &[now_ms.into()]).await?;
        tx.commit().await?;
        Ok(true)
    }
}
