//! One transaction type over SQLite and PostgreSQL.
use super::audit_entry::Entry;
use super::error::StoreError;
use super::event_entry::EventEntry;
use super::precondition::Precondition;
use super::row::{Row, Value};
use super::wake::{ALL, CHANNEL, KEPT, Wakes};
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgSslMode};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Postgres, Sqlite, Transaction};
use std::collections::BTreeSet;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

/// How long a request waits for a connection or for the write lock before it fails as unavailable.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone)]
enum Pools {
    /// One connection writes, so that writers queue in the pool instead of finding the file locked.
    Sqlite {
        write: SqlitePool,
        read: SqlitePool,
    },
    Postgres(PgPool),
}

/// The database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pools: Pools,
    pub(super) wakes: Arc<Wakes>,
    /// Of every transaction that may write.
    precondition: Option<Arc<Precondition>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.kind())
    }
}

impl Store {
    /// The database, for the log.
    pub const fn kind(&self) -> &'static str {
        match self.pools {
            Pools::Sqlite { .. } => "sqlite",
            Pools::Postgres(_) => "postgres",
        }
    }
}

enum Connection {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

/// A transaction; rolled back when dropped without [`Tx::commit`].
pub struct Tx {
    connection: Connection,
    wakes: Arc<Wakes>,
    /// Entries of the audit trail to store at the commit.
    pub(super) entries: Vec<Entry>,
    /// Events to store at the commit.
    pub(super) events: Vec<EventEntry>,
    /// Wake-ups to publish at the commit, in the format of `wake`.
    pub(super) woken: BTreeSet<String>,
}

macro_rules! bound {
    ($sql:expr, $values:expr) => {{
        let mut query = sqlx::query($sql);
        for value in $values {
            query = match value {
                Value::Int(n) => query.bind(*n),
                Value::Text(t) => query.bind(t.clone()),
            };
        }
        query
    }};
}

impl Store {
    /// Opens `sqlite:/path` (created if missing) or `postgres://…` and migrates its schema.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let pools = if let Some(path) = url.strip_prefix("sqlite:") {
            if !path.starts_with('/') {
                return Err(StoreError::BadUrl(url.to_owned()));
            }
            sqlite(path).await?
        } else if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            // Never shown: the URL may hold a password.
            let options = PgConnectOptions::from_str(url).map_err(|_| StoreError::BadUrl("postgres:…".into()))?;
            let options = authenticate_server(options, url, std::env::var_os("PGSSLMODE").is_some());
            // A stuck transaction must not block the others, and must fail before the request times out.
            let options = options.options([
                ("lock_timeout", "5s"),
                ("statement_timeout", "20s"),
                ("idle_in_transaction_session_timeout", "60s"),
            ]);
            let pool =
                PgPoolOptions::new().max_connections(16).acquire_timeout(ACQUIRE_TIMEOUT).connect_with(options).await?;
            sqlx::migrate!("store/migrations/postgres").run(&pool).await?;
            Pools::Postgres(pool)
        } else {
            return Err(StoreError::BadUrl(url.split(':').next().unwrap_or_default().to_owned()));
        };
        Ok(Self { pools, wakes: Arc::default(), precondition: None })
    }

    /// The same store for one change, which is refused with [`StoreError::Changed`] unless `condition` holds.
    #[must_use]
    pub fn on_condition(&self, condition: Precondition) -> Self {
        Self { precondition: Some(Arc::new(condition)), ..self.clone() }
    }

    /// Begins a transaction that may write.
    pub async fn write(&self) -> Result<Tx, StoreError> {
        let connection = match &self.pools {
            Pools::Sqlite { write, .. } => Connection::Sqlite(begin_immediate(write).await?),
            Pools::Postgres(pool) => Connection::Postgres(pool.begin().await?),
        };
        let wakes = Arc::clone(&self.wakes);
        let mut tx = Tx { connection, wakes, entries: Vec::new(), events: Vec::new(), woken: BTreeSet::new() };
        if let Some(condition) = &self.precondition {
            tx.require(condition).await?;
        }
        Ok(tx)
    }

    /// Begins a read-only transaction on one snapshot of the database.
    pub async fn read(&self) -> Result<Tx, StoreError> {
        let connection = match &self.pools {
            Pools::Sqlite { read, .. } => Connection::Sqlite(read.begin().await?),
            Pools::Postgres(pool) => {
                Connection::Postgres(pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?)
            }
        };
        Ok(Tx {
            connection,
            wakes: Arc::clone(&self.wakes),
            entries: Vec::new(),
            events: Vec::new(),
            woken: BTreeSet::new(),
        })
    }

    /// The PostgreSQL pool, for `LISTEN`.
    pub(super) const fn postgres(&self) -> Option<&PgPool> {
        match &self.pools {
            Pools::Sqlite { .. } => None,
            Pools::Postgres(pool) => Some(pool),
        }
    }

    /// Waits for running statements and closes the connections.
    pub async fn close(&self) {
        match &self.pools {
            Pools::Sqlite { write, read } => {
                read.close().await;
                write.close().await;
            }
            Pools::Postgres(pool) => pool.close().await,
        }
    }
}

/// Verifies the certificate of a server on another machine, unless the address says how to connect: by default a connection
/// falls back to plain text, and any host that answers gets the password and the fleet.
fn authenticate_server(options: PgConnectOptions, url: &str, in_environment: bool) -> PgConnectOptions {
    let host = options.get_host();
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    let local = options.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || address.is_ok_and(|a| a.is_loopback());
    if local {
        return options;
    }
    let chosen = url.split_once('?').is_some_and(|(_, query)| {
        query.split('&').any(|pair| matches!(pair.split('=').next(), Some("sslmode" | "ssl-mode")))
    });
    if !chosen && !in_environment {
        return options.ssl_mode(PgSslMode::VerifyFull);
    }
    if !matches!(options.get_ssl_mode(), PgSslMode::VerifyFull) {
        tracing::warn!(host, "database server is not authenticated: use sslmode=verify-full");
    }
    options
}

/// Begins a write transaction. On a full disk SQLite rolls a transaction back by itself while sqlx counts it as open:
/// such a connection is closed and replaced.
async fn begin_immediate(write: &SqlitePool) -> Result<Transaction<'static, Sqlite>, sqlx::Error> {
    match write.begin_with("BEGIN IMMEDIATE").await {
        Err(sqlx::Error::InvalidSavePointStatement) => {
            write.acquire().await?.close().await?;
            write.begin_with("BEGIN IMMEDIATE").await
        }
        other => other,
    }
}

/// Gives the database's files to their owner alone: they hold token hashes and sealed keys. SQLite gives the files it makes
/// beside the database the mode that the database has, so the database itself is made here.
fn restrict_files(path: &str) {
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
    // What fails here is reported by the opening of the database.
    let _ = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let _ = std::fs::set_permissions(format!("{path}{suffix}"), std::fs::Permissions::from_mode(0o600));
    }
}

async fn sqlite(path: &str) -> Result<Pools, StoreError> {
    restrict_files(path);
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // An answered enrolment must survive a power cut, or an address could be leased twice.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(ACQUIRE_TIMEOUT);
    let pool = |max| SqlitePoolOptions::new().max_connections(max).acquire_timeout(ACQUIRE_TIMEOUT);
    let write = pool(1).connect_with(options.clone()).await?;
    sqlx::migrate!("store/migrations/sqlite").run(&write).await?;
    let read = pool(4).connect_with(options.read_only(true)).await?;
    Ok(Pools::Sqlite { write, read })
}

impl Tx {
    /// Runs a statement and returns its rows. Placeholders are `$1`, `$2`, …
    pub async fn rows(&mut self, sql: &'static str, values: &[Value]) -> Result<Vec<Row>, StoreError> {
        Ok(match &mut self.connection {
            Connection::Sqlite(tx) => {
                bound!(sql, values).fetch_all(&mut **tx).await?.into_iter().map(Row::Sqlite).collect()
            }
            Connection::Postgres(tx) => {
                bound!(sql, values).fetch_all(&mut **tx).await?.into_iter().map(Row::Postgres).collect()
            }
        })
    }

    /// Runs a statement and returns its first row.
    pub async fn row(&mut self, sql: &'static str, values: &[Value]) -> Result<Option<Row>, StoreError> {
        Ok(match &mut self.connection {
            Connection::Sqlite(tx) => bound!(sql, values).fetch_optional(&mut **tx).await?.map(Row::Sqlite),
            Connection::Postgres(tx) => bound!(sql, values).fetch_optional(&mut **tx).await?.map(Row::Postgres),
        })
    }

    /// As [`Tx::rows`], with a statement put together from constant parts: what clients send is in `values` only.
    pub(super) async fn rows_built(&mut self, sql: String, values: &[Value]) -> Result<Vec<Row>, StoreError> {
        Ok(match &mut self.connection {
            Connection::Sqlite(tx) => {
                let rows = bound!(AssertSqlSafe(sql), values).fetch_all(&mut **tx).await?;
                rows.into_iter().map(Row::Sqlite).collect()
            }
            Connection::Postgres(tx) => {
                let rows = bound!(AssertSqlSafe(sql), values).fetch_all(&mut **tx).await?;
                rows.into_iter().map(Row::Postgres).collect()
            }
        })
    }

    /// Runs a statement and returns the number of rows it changed.
    pub async fn run(&mut self, sql: &'static str, values: &[Value]) -> Result<u64, StoreError> {
        Ok(match &mut self.connection {
            Connection::Sqlite(tx) => bound!(sql, values).execute(&mut **tx).await?.rows_affected(),
            Connection::Postgres(tx) => bound!(sql, values).execute(&mut **tx).await?.rows_affected(),
        })
    }

    /// Runs a statement on PostgreSQL only; SQLite needs no row locks, because it has one writer.
    pub(super) async fn postgres_only(&mut self, sql: &'static str, values: &[Value]) -> Result<(), StoreError> {
        if let Connection::Postgres(tx) = &mut self.connection {
            bound!(sql, values).execute(&mut **tx).await?;
        }
        Ok(())
    }

    /// Counts the steps of SQLite's virtual machine from here on.
    #[cfg(test)]
    pub(super) async fn count_steps(&mut self) -> Arc<std::sync::atomic::AtomicU64> {
        let count = Arc::new(std::sync::atomic::AtomicU64::new(0));
        if let Connection::Sqlite(tx) = &mut self.connection {
            let counted = Arc::clone(&count);
            let step = move || {
                counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                true
            };
            tx.lock_handle().await.unwrap().set_progress_handler(1, step);
        }
        count
    }

    const fn is_sqlite(&self) -> bool {
        matches!(self.connection, Connection::Sqlite(_))
    }

    /// Commits, then wakes the long-polls of the nodes that changed.
    pub async fn commit(mut self) -> Result<(), StoreError> {
        // What an operator changes is audited.
        if !self.entries.is_empty() {
            self.mark_request().await?;
        }
        self.store_entries().await?;
        self.store_events().await?;
        self.publish_wakes().await?;
        match self.connection {
            Connection::Sqlite(tx) => tx.commit().await?,
            Connection::Postgres(tx) => tx.commit().await?,
        }
        for message in &self.woken {
            self.wakes.wake(message);
        }
        Ok(())
    }

    /// Publishes the wake-ups to other processes, within the transaction.
    async fn publish_wakes(&mut self) -> Result<(), StoreError> {
        let woken: Vec<String> =
            if self.woken.contains(ALL) { vec![ALL.to_owned()] } else { self.woken.iter().cloned().collect() };
        if woken.is_empty() {
            return Ok(());
        }
        for message in woken {
            if self.is_sqlite() {
                self.run("INSERT INTO wake (node) VALUES ($1)", &[message.into()]).await?;
            } else {
                self.row("SELECT pg_notify($1, $2)::TEXT AS sent", &[CHANNEL.into(), message.into()]).await?;
            }
        }
        if self.is_sqlite() {
            self.run("DELETE FROM wake WHERE seq <= (SELECT MAX(seq) FROM wake) - $1", &[KEPT.into()]).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_on_another_machine_is_authenticated() {
        let mode = |url: &str, in_environment| {
            let options = PgConnectOptions::from_str(url).unwrap();
            format!("{:?}", authenticate_server(options, url, in_environment).get_ssl_mode())
        };
        for remote in ["db.example.net", "192.0.2.1", "localhost.example.net", "0.0.0.0", "[2001:db8::1]"] {
            assert_eq!(mode(&format!("postgres://fleet@{remote}/fleet"), false), "VerifyFull", "{remote}");
        }
        for local in ["localhost", "127.0.0.1", "127.1.2.3", "[::1]", "%2Frun%2Fpostgresql"] {
            assert_eq!(mode(&format!("postgres://fleet@{local}/fleet"), false), "Prefer", "{local}");
        }
        assert_eq!(mode("postgres://fleet@db/fleet?host=/run/postgresql", false), "Prefer");
        assert_eq!(mode("postgres://fleet@db/fleet?sslmode=require", false), "Require", "as chosen");
        assert_eq!(mode("postgres://fleet@db/fleet?application_name=sslmode", false), "VerifyFull");
        assert_eq!(mode("postgres://fleet@db/fleet", true), "Prefer", "chosen by PGSSLMODE");
    }
}
