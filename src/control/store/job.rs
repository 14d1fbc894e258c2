//! Background jobs that one of several control planes runs at a time.
use super::error::StoreError;
use super::sql::{Store, Tx};

/// How often expired rows are deleted, in milliseconds.
const PRUNE_EVERY_MS: i64 = 60_000;

/// The latest due time that a clock set like ours can have written. A later one is of a clock that was set back since,
/// and the job must not wait for it. A whole term of difference between the clocks of two control planes is allowed.
const fn latest(now_ms: i64, term_ms: i64) -> i64 {
    now_ms.saturating_add(term_ms.saturating_mul(2))
}

impl Tx {
    /// Claims a job that is due and schedules its next run; the row's lock gives it to one process. `false`: not due.
    pub async fn claim_job(&mut self, name: &str, now_ms: i64, every_ms: i64) -> Result<bool, StoreError> {
        let sql = "INSERT INTO job (name, due_ms) VALUES ($1, 0) ON CONFLICT DO NOTHING";
        self.run(sql, &[name.into()]).await?;
        let sql = "UPDATE job SET due_ms = $3 WHERE name = $1 AND (due_ms <= $2 OR due_ms > $4)";
        let values =
            [name.into(), now_ms.into(), now_ms.saturating_add(every_ms).into(), latest(now_ms, every_ms).into()];
        Ok(self.run(sql, &values).await? == 1)
    }

    /// Takes or renews a continuous job for `holder` until `now_ms + term_ms`. `false`: another process holds it.
    ///
    /// Within the same transaction the row's lock keeps the result true until the commit.
    pub async fn hold_job(&mut self, name: &str, holder: &str, now_ms: i64, term_ms: i64) -> Result<bool, StoreError> {
        let sql = "INSERT INTO job (name, due_ms) VALUES ($1, 0) ON CONFLICT DO NOTHING";
        self.run(sql, &[name.into()]).await?;
        let sql = "UPDATE job SET holder = $2, due_ms = $4
            WHERE name = $1 AND (holder = $2 OR due_ms <= $3 OR due_ms > $5)";
        let until = now_ms.saturating_add(term_ms);
        let values = [name.into(), holder.into(), now_ms.into(), until.into(), latest(now_ms, term_ms).into()];
        Ok(self.run(sql, &values).await? == 1)
    }

    /// Ends the term of `holder`, so that another process can take the job at once.
    pub async fn release_job(&mut self, name: &str, holder: &str) -> Result<(), StoreError> {
        let sql = "UPDATE job SET due_ms = 0 WHERE name = $1 AND holder = $2";
        self.run(sql, &[name.into(), holder.into()]).await.map(drop)
    }
}

impl Store {
    /// Deletes expired nonces, leases after their quarantine, and answers kept for a day. `false`: another process did so within the minute.
    pub async fn prune(&self, now_ms: i64) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        if !tx.claim_job("prune", now_ms, PRUNE_EVERY_MS).await? {
            return Ok(false);
        }
        tx.run("DELETE FROM used_nonce WHERE until_ms <= $1", &[now_ms.into()]).await?;
        tx.run("DELETE FROM lease WHERE until_ms <= $1", &[now_ms.into()]).await?;
        tx.prune_requests(now_ms).await?;
        tx.prune_events(now_ms).await?;
        tx.commit().await?;
        Ok(true)
    }
}
