//! Wakes the long-polls of nodes whose wanted state has changed, whichever process changed it.
//!
//! A commit wakes the waiters of its own process at once. Other processes hear of it by NOTIFY (PostgreSQL) or by the
//! `wake` table, whose last row is looked at all the time (SQLite). A wake-up carries no
//! content: whoever is woken reads the database. What might have been missed wakes everybody.
use super::sql::{Store, StoreError, Tx};
use spoke_model::node_id::NodeId;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

const CHANNEL: &str = "spoke_wake";

/// Everybody.
pub(super) const ALL: &str = "*";

/// How often SQLite is asked whether another process has written: one page, in the cache unless it changed.
const LOOK: Duration = Duration::from_millis(40);

/// Wake-ups kept in the table; a process that was away for longer wakes everybody.
const KEPT: i64 = 4096;

/// The waiters of this process by node.
#[derive(Debug, Default)]
pub struct Wakes {
    waiters: Mutex<HashMap<String, watch::Sender<u64>>>,
    /// Raised with each wake-up of anybody, for caches and for tasks that follow the whole fleet.
    any: watch::Sender<u64>,
    /// Who is called, and who calls.
    calls: super::call::Calls,
}

impl Wakes {
    /// Wakes the waiters of one node, or of all.
    pub(super) fn wake(&self, said: &str) {
        let node = match self.calls.hear(said) {
            Ok(None) => return,
            Ok(Some(called)) => called,
            Err(changed) => {
                self.any.send_modify(|n| *n += 1);
                changed
            }
        };
        let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        if node == ALL {
            waiters.retain(|_, w| w.receiver_count() > 0);
            for waiter in waiters.values() {
                waiter.send_modify(|n| *n += 1);
            }
        } else if let Some(waiter) = waiters.get(node) {
            waiter.send_modify(|n| *n += 1);
        }
    }

    fn subscribe(&self, node: &NodeId) -> watch::Receiver<u64> {
        let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        waiters.entry(node.as_str().to_owned()).or_insert_with(|| watch::Sender::new(0)).subscribe()
    }

    /// Forgets a node nobody waits for any more.
    fn release(&self, node: &NodeId) {
        let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        if waiters.get(node.as_str()).is_some_and(|w| w.receiver_count() == 0) {
            waiters.remove(node.as_str());
        }
    }
}

/// Waits for changes of one node; subscribe first, then read, so that no change falls in between.
#[derive(Debug)]
pub struct Waiter {
    node: NodeId,
    receiver: Option<watch::Receiver<u64>>,
    wakes: std::sync::Arc<Wakes>,
}

impl Waiter {
    /// Resolves when the node's wanted state may have changed since the last call or since it was made.
    pub async fn changed(&mut self) {
        if let Some(receiver) = &mut self.receiver
            && receiver.changed().await.is_ok()
        {
            return;
        }
        // The sender lives as long as the store; without it there is nothing to wait for.
        std::future::pending().await
    }

    /// As [`Waiter::changed`], without waiting.
    pub fn has_changed(&mut self) -> bool {
        self.receiver.as_mut().is_some_and(|r| {
            let changed = r.has_changed().unwrap_or(false);
            r.mark_unchanged();
            changed
        })
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.receiver = None;
        self.wakes.release(&self.node);
    }
}

impl Store {
    /// A waiter for `node`.
    pub fn waiter(&self, node: &NodeId) -> Waiter {
        let receiver = Some(self.wakes.subscribe(node));
        Waiter { node: node.clone(), receiver, wakes: std::sync::Arc::clone(&self.wakes) }
    }

    /// Calls of nodes.
    pub(super) fn calls(&self) -> &super::call::Calls {
        &self.wakes.calls
    }

    /// How many nodes are being waited for.
    pub fn waiting(&self) -> usize {
        self.wakes.waiters.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// A number that grows with every wake-up: what was cached under an older number may be stale.
    pub fn epoch(&self) -> u64 {
        *self.wakes.any.borrow()
    }

    /// Changes with [`Store::epoch`].
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.wakes.any.subscribe()
    }

    /// Hears of what other processes change, until it is cancelled.
    pub async fn listen(&self) -> std::convert::Infallible {
        loop {
            let ended = match self.postgres() {
                Some(pool) => self.listen_postgres(pool.clone()).await,
                None => self.look_sqlite().await,
            };
            if let Err(e) = ended {
                tracing::warn!(error = %e, source = std::error::Error::source(&e).map(tracing::field::display), "not hearing of other processes' changes; trying again");
            }
            // Whatever was said meanwhile was missed.
            self.wakes.wake(ALL);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn listen_postgres(&self, pool: sqlx::PgPool) -> Result<(), StoreError> {
        let mut listener = sqlx::postgres::PgListener::connect_with(&pool).await?;
        listener.listen(CHANNEL).await?;
        self.wakes.wake(ALL);
        while let Some(said) = listener.try_recv().await? {
            self.wakes.wake(said.payload());
        }
        Ok(())
    }

    async fn look_sqlite(&self) -> Result<(), StoreError> {
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
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Tx {
    /// Raises the generation of one node and wakes it at the commit.
    pub async fn touch(&mut self, node: &NodeId) -> Result<(), StoreError> {
        self.run("UPDATE node SET generation = generation + 1 WHERE id = $1", &[node.as_str().into()]).await?;
        self.woken.insert(node.as_str().to_owned());
        Ok(())
    }

    /// Wakes a node without a new generation: something about it that is not in its document has changed.
    pub fn wake(&mut self, node: &NodeId) {
        self.woken.insert(node.as_str().to_owned());
    }

    /// Raises the generation of every hub of a network, and wakes them at the commit.
    pub async fn touch_hubs(&mut self, network: &str) -> Result<(), StoreError> {
        let sql = "UPDATE node SET generation = generation + 1 WHERE network = $1 AND role = 'hub' RETURNING id";
        for row in self.rows(sql, &[network.into()]).await? {
            self.woken.insert(row.text("id")?);
        }
        Ok(())
    }

    /// Raises the generation of every node of a network, and wakes everybody at the commit.
    pub async fn touch_network(&mut self, network: &str) -> Result<(), StoreError> {
        self.run("UPDATE node SET generation = generation + 1 WHERE network = $1", &[network.into()]).await?;
        self.woken.insert(ALL.to_owned());
        Ok(())
    }

    /// Raises the generation of every node, and wakes everybody at the commit.
    pub async fn touch_all(&mut self) -> Result<(), StoreError> {
        self.run("UPDATE node SET generation = generation + 1", &[]).await?;
        self.woken.insert(ALL.to_owned());
        Ok(())
    }

    /// Tells other processes, within the transaction.
    pub(super) async fn announce(&mut self) -> Result<(), StoreError> {
        let woken: Vec<String> =
            if self.woken.contains(ALL) { vec![ALL.to_owned()] } else { self.woken.iter().cloned().collect() };
        if woken.is_empty() {
            return Ok(());
        }
        for node in woken {
            if self.is_sqlite() {
                self.run("INSERT INTO wake (node) VALUES ($1)", &[node.into()]).await?;
            } else {
                self.row("SELECT pg_notify('spoke_wake', $1)::TEXT AS said", &[node.into()]).await?;
            }
        }
        if self.is_sqlite() {
            self.run("DELETE FROM wake WHERE seq <= (SELECT MAX(seq) FROM wake) - $1", &[KEPT.into()]).await?;
        }
        Ok(())
    }
}
