//! Changes that wake nodes: raised in a transaction, delivered in this process, received from other processes.
//!
//! Other processes learn of a commit by NOTIFY (PostgreSQL) or by polling the `wake` table (SQLite). After any gap, every
//! node is woken.
use super::error::StoreError;
use super::probe::{probe_message, return_message};
use super::sql::{Store, Tx};
use super::wake::{ALL, CHANNEL, Waiter};
use spoke_model::error_chain::ErrorChain;
use spoke_model::node_id::NodeId;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How often SQLite is polled for writes of another process: one page, cached unless it changed.
const SQLITE_POLL: Duration = Duration::from_millis(40);

/// A probe can be lost while two processes are connecting to each other: it is repeated.
const PROBE_REPEAT: Duration = Duration::from_secs(2);

impl Store {
    /// A waiter for `node`.
    pub fn waiter(&self, node: &NodeId) -> Waiter {
        self.wakes.waiter(node)
    }

    /// How many nodes have a long-poll at this process.
    pub fn waiter_count(&self) -> usize {
        self.wakes.waiter_count()
    }

    /// A number that grows with every wake-up: values cached under an older number may be stale.
    pub fn epoch(&self) -> u64 {
        *self.wakes.subscribe().borrow()
    }

    /// Changes with [`Store::epoch`].
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.wakes.subscribe()
    }

    /// Whether this node is being probed.
    pub fn is_probed(&self, node: &NodeId) -> bool {
        self.wakes.probes.is_probed(node.as_str())
    }

    /// Reports that a probed node has polled again.
    pub async fn report_return(&self, node: &NodeId) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        tx.woken.insert(return_message(node.as_str()));
        tx.commit().await
    }

    /// Probes a node and returns how long it took to poll again; `None`: it did not within `timeout`.
    pub async fn probe(&self, node: &NodeId, timeout: Duration) -> Result<Option<Duration>, StoreError> {
        let began = Instant::now();
        let returned = self.wakes.probes.begin_call(node.as_str());
        let outcome = async {
            loop {
                let notified = returned.notified();
                let mut tx = self.write().await?;
                tx.woken.insert(probe_message(node.as_str()));
                tx.commit().await?;
                if tokio::time::timeout(PROBE_REPEAT, notified).await.is_ok() {
                    return Ok(began.elapsed());
                }
            }
        };
        let outcome = tokio::time::timeout(timeout, outcome).await.ok().transpose();
        self.wakes.probes.end_call(node.as_str(), &returned);
        outcome
    }

    /// Receives the wake-ups of other processes until cancelled.
    pub async fn listen(&self) -> std::convert::Infallible {
        loop {
            let ended = match self.postgres() {
                Some(pool) => self.listen_postgres(pool.clone()).await,
                None => self.poll_sqlite().await,
            };
            if let Err(e) = ended {
                tracing::warn!(error = %ErrorChain(&e), retry_in = "1s", "change notifications interrupted");
            }
            // Wake-ups may have been missed.
            self.wakes.wake(ALL);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn listen_postgres(&self, pool: sqlx::PgPool) -> Result<(), StoreError> {
        let mut listener = sqlx::postgres::PgListener::connect_with(&pool).await?;
        listener.listen(CHANNEL).await?;
        self.wakes.wake(ALL);
        while let Some(notification) = listener.try_recv().await? {
            self.wakes.wake(notification.payload());
        }
        Ok(())
    }

    async fn poll_sqlite(&self) -> Result<(), StoreError> {
        let mut seen: Option<i64> = None;
        loop {
            let mut tx = self.read().await?;
            let ends = tx.row("SELECT MIN(seq) AS first, MAX(seq) AS last FROM wake", &[]).await?;
            let (first, last) = match ends {
                Some(r) => (r.opt_int("first")?.unwrap_or(0), r.opt_int("last")?.unwrap_or(0)),
                None => (0, 0),
            };
            match seen {
                None => self.wakes.wake(ALL),
                Some(seen) if first > seen + 1 => self.wakes.wake(ALL),
                Some(seen) if last > seen => {
                    for row in tx.rows("SELECT DISTINCT node FROM wake WHERE seq > $1", &[seen.into()]).await? {
                        self.wakes.wake(&row.text("node")?);
                    }
                }
                Some(_) => {}
            }
            seen = Some(last);
            drop(tx);
            tokio::time::sleep(SQLITE_POLL).await;
        }
    }
}

impl Tx {
    /// Raises the generation of one node and wakes it at the commit.
    pub async fn raise_generation(&mut self, node: &NodeId) -> Result<(), StoreError> {
        self.run("UPDATE node SET generation = generation + 1 WHERE id = $1", &[node.as_str().into()]).await?;
        self.woken.insert(node.as_str().to_owned());
        Ok(())
    }

    /// Has every control plane read this node again at the commit; its document stays the same.
    pub fn refresh(&mut self, node: &NodeId) {
        self.woken.insert(node.as_str().to_owned());
    }

    /// Raises the generation of every hub of a network, and wakes them at the commit.
    pub async fn raise_hub_generations(&mut self, network: &str) -> Result<(), StoreError> {
        let sql = "UPDATE node SET generation = generation + 1 WHERE network = $1 AND role = 'hub' RETURNING id";
        for row in self.rows(sql, &[network.into()]).await? {
            self.woken.insert(row.text("id")?);
        }
        Ok(())
    }

    /// Raises the generation of every node of a network, and wakes every node at the commit.
    pub async fn raise_network_generations(&mut self, network: &str) -> Result<(), StoreError> {
        self.run("UPDATE node SET generation = generation + 1 WHERE network = $1", &[network.into()]).await?;
        self.woken.insert(ALL.to_owned());
        Ok(())
    }

    /// Raises the generation of every node, and wakes every node at the commit.
    pub async fn raise_all_generations(&mut self) -> Result<(), StoreError> {
        self.run("UPDATE node SET generation = generation + 1", &[]).await?;
        self.woken.insert(ALL.to_owned());
        Ok(())
    }
}
