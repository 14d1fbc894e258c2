//! One transaction type over SQLite and PostgreSQL.
use super::wake::Wakes;
use sqlx::migrate::MigrateError;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgRow};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Postgres, Row as _, Sqlite, Transaction};
use std::collections::BTreeSet;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

/// How long a request waits for a connection or for the write lock before it is told to come back later.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the store could not do what it was asked. Nothing of a failed transaction stays.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached, or is busy for too long.
    #[error("the database cannot be reached or is busy; try again")]
    Unavailable(#[source] sqlx::Error),
    /// The file system or the database's role does not allow writing.
    #[error("the database is read-only: check the file's and its directory's owner, or the role's rights")]
    ReadOnly(#[source] sqlx::Error),
    /// The file cannot be opened at all.
    #[error(
        "the database file cannot be opened: check that its directory is there, has this user as owner, and is not on a read-only file system"
    )]
    CannotOpen(#[source] sqlx::Error),
    /// No space is left.
    #[error("the database has no space left: free some, nothing was changed")]
    Full(#[source] sqlx::Error),
    /// Somebody else has taken a value that must be unique.
    #[error("the value is already taken")]
    Taken(#[source] sqlx::Error),
    /// Two transactions got into each other's way; the same again will do.
    #[error("the database asked to try again")]
    Again(#[source] sqlx::Error),
    /// The address of the database is not understood.
    #[error("not a database: {0:?}; write sqlite:/absolute/path or postgres://user@host/name")]
    BadUrl(String),
    /// The schema could not be brought up to date.
    #[error("the database's schema cannot be brought up to date")]
    Migrate(#[source] MigrateError),
    /// What is stored is not what was ever written.
    #[error("the database holds something unreadable in {0}")]
    Unreadable(&'static str),
    /// Anything else.
    #[error("the database refused")]
    Database(#[source] sqlx::Error),
}

impl StoreError {
    /// Whether the same request may succeed later without anybody doing anything.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::Again(_) => true,
            Self::ReadOnly(_)
            | Self::CannotOpen(_)
            | Self::Full(_)
            | Self::Taken(_)
            | Self::BadUrl(_)
            | Self::Migrate(_)
            | Self::Unreadable(_)
            | Self::Database(_) => false,
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(e: sqlx::Error) -> Self {
        let Some(db) = e.as_database_error() else {
            return match e {
                sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Protocol(_) => {
                    Self::Unavailable(e)
                }
                sqlx::Error::Tls(_) | sqlx::Error::WorkerCrashed => Self::Unavailable(e),
                _ => Self::Database(e),
            };
        };
        if db.is_unique_violation() {
            return Self::Taken(e);
        }
        let code = db.code().unwrap_or_default();
        // SQLite's extended result codes carry the primary one in the low byte.
        let primary = code.parse::<u32>().ok().filter(|_| code.len() < 5).map(|c| c & 0xff);
        match (code.as_ref(), primary) {
            (_, Some(5 | 6)) => Self::Unavailable(e),
            (_, Some(8)) | ("25006" | "42501", _) => Self::ReadOnly(e),
            (_, Some(14)) => Self::CannotOpen(e),
            (_, Some(13)) | ("53100", _) => Self::Full(e),
            ("40001" | "40P01", _) => Self::Again(e),
            // Connection exceptions, operator intervention, out of connections, a lock or a statement that took too long.
            (c, None) if c.starts_with("08") || c.starts_with("57") || matches!(c, "53300" | "55P03" | "25P03") => {
                Self::Unavailable(e)
            }
            _ => Self::Database(e),
        }
    }
}

/// A value for a placeholder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// BIGINT.
    Int(Option<i64>),
    /// TEXT.
    Text(Option<String>),
}

impl From<i64> for Value {
    fn from(n: i64) -> Self {
        Self::Int(Some(n))
    }
}

impl From<Option<i64>> for Value {
    fn from(n: Option<i64>) -> Self {
        Self::Int(n)
    }
}

impl From<bool> for Value {
    fn from(b: bool) -> Self {
        Self::Int(Some(b.into()))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(Some(text.to_owned()))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(Some(text))
    }
}

impl From<Option<String>> for Value {
    fn from(text: Option<String>) -> Self {
        Self::Text(text)
    }
}

impl From<Option<&str>> for Value {
    fn from(text: Option<&str>) -> Self {
        Self::Text(text.map(str::to_owned))
    }
}

/// A row of an answer.
pub enum Row {
    /// Of SQLite.
    Sqlite(SqliteRow),
    /// Of PostgreSQL.
    Postgres(PgRow),
}

impl Row {
    /// An integer column.
    pub fn opt_int(&self, column: &'static str) -> Result<Option<i64>, StoreError> {
        match self {
            Self::Sqlite(r) => r.try_get(column),
            Self::Postgres(r) => r.try_get(column),
        }
        .map_err(|_| StoreError::Unreadable(column))
    }

    /// A text column.
    pub fn opt_text(&self, column: &'static str) -> Result<Option<String>, StoreError> {
        match self {
            Self::Sqlite(r) => r.try_get(column),
            Self::Postgres(r) => r.try_get(column),
        }
        .map_err(|_| StoreError::Unreadable(column))
    }

    /// An integer column that is never null.
    pub fn int(&self, column: &'static str) -> Result<i64, StoreError> {
        self.opt_int(column)?.ok_or(StoreError::Unreadable(column))
    }

    /// A text column that is never null.
    pub fn text(&self, column: &'static str) -> Result<String, StoreError> {
        self.opt_text(column)?.ok_or(StoreError::Unreadable(column))
    }

    /// A count, a time or a size.
    pub fn count(&self, column: &'static str) -> Result<u64, StoreError> {
        u64::try_from(self.int(column)?).map_err(|_| StoreError::Unreadable(column))
    }

    /// A yes or no.
    pub fn flag(&self, column: &'static str) -> Result<bool, StoreError> {
        Ok(self.int(column)? != 0)
    }

    /// A text column parsed into `T`.
    pub fn parsed<T: std::str::FromStr>(&self, column: &'static str) -> Result<T, StoreError> {
        self.text(column)?.parse().map_err(|_| StoreError::Unreadable(column))
    }

    /// A text column that may be null, parsed into `T`.
    pub fn opt_parsed<T: std::str::FromStr>(&self, column: &'static str) -> Result<Option<T>, StoreError> {
        self.opt_text(column)?.map(|t| t.parse().map_err(|_| StoreError::Unreadable(column))).transpose()
    }

    /// A text column that holds JSON.
    pub fn json<T: serde::de::DeserializeOwned>(&self, column: &'static str) -> Result<T, StoreError> {
        serde_json::from_str(&self.text(column)?).map_err(|_| StoreError::Unreadable(column))
    }
}

#[derive(Clone)]
enum Pools {
    /// One connection writes, so that writers queue here instead of finding the file locked.
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
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.pools {
            Pools::Sqlite { .. } => "Store(sqlite)",
            Pools::Postgres(_) => "Store(postgres)",
        })
    }
}

enum Inner {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

/// A transaction: all of it or nothing. Dropped without [`Tx::commit`], nothing of it stays.
pub struct Tx {
    inner: Inner,
    wakes: Arc<Wakes>,
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
    /// Opens `sqlite:/path` (made if it is not there) or `postgres://…` and brings its schema up to date.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let pools = if let Some(path) = url.strip_prefix("sqlite:") {
            if !path.starts_with('/') {
                return Err(StoreError::BadUrl(url.to_owned()));
            }
            sqlite(path).await?
        } else if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            // Never shown: the address may hold a password.
            let options = PgConnectOptions::from_str(url).map_err(|_| StoreError::BadUrl("postgres:…".into()))?;
            // Who does not end must not hold up the others for ever, and says so before the request's own time is over.
            let options = options.options([
                ("lock_timeout", "5s"),
                ("statement_timeout", "20s"),
                ("idle_in_transaction_session_timeout", "60s"),
            ]);
            let pool = PgPoolOptions::new().max_connections(16).acquire_timeout(PATIENCE).connect_with(options).await?;
            sqlx::migrate!("store/migrations/postgres").run(&pool).await.map_err(StoreError::Migrate)?;
            Pools::Postgres(pool)
        } else {
            return Err(StoreError::BadUrl(url.split(':').next().unwrap_or_default().to_owned()));
        };
        Ok(Self { pools, wakes: Arc::default() })
    }

    /// Begins a transaction that may write.
    pub async fn write(&self) -> Result<Tx, StoreError> {
        let inner = match &self.pools {
            Pools::Sqlite { write, .. } => Inner::Sqlite(begin_immediate(write).await?),
            Pools::Postgres(pool) => Inner::Postgres(pool.begin().await?),
        };
        Ok(Tx { inner, wakes: Arc::clone(&self.wakes), woken: BTreeSet::new() })
    }

    /// Begins a transaction that sees one moment of the database and writes nothing.
    pub async fn read(&self) -> Result<Tx, StoreError> {
        let inner = match &self.pools {
            Pools::Sqlite { read, .. } => Inner::Sqlite(read.begin().await?),
            Pools::Postgres(pool) => {
                Inner::Postgres(pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?)
            }
        };
        Ok(Tx { inner, wakes: Arc::clone(&self.wakes), woken: BTreeSet::new() })
    }

    /// The PostgreSQL pool, for its notifications.
    pub(super) const fn postgres(&self) -> Option<&PgPool> {
        match &self.pools {
            Pools::Sqlite { .. } => None,
            Pools::Postgres(pool) => Some(pool),
        }
    }

    /// Waits for the running statements and closes the connections.
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

/// Begins to write. A full disk makes SQLite end a transaction by itself, and then the connection still believes in it:
/// such a one is given up for a new one.
async fn begin_immediate(write: &SqlitePool) -> Result<Transaction<'static, Sqlite>, sqlx::Error> {
    match write.begin_with("BEGIN IMMEDIATE").await {
        Err(sqlx::Error::InvalidSavePointStatement) => {
            write.acquire().await?.close().await?;
            write.begin_with("BEGIN IMMEDIATE").await
        }
        other => other,
    }
}

async fn sqlite(path: &str) -> Result<Pools, StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // An enrolment that was answered must survive a power cut, or an address could be given twice.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(PATIENCE);
    let pool = |max| SqlitePoolOptions::new().max_connections(max).acquire_timeout(PATIENCE);
    let write = pool(1).connect_with(options.clone()).await?;
    sqlx::migrate!("store/migrations/sqlite").run(&write).await.map_err(StoreError::Migrate)?;
    {
        use std::os::unix::fs::PermissionsExt as _;
        // Hashes of tokens and sealed keys are no secrets in clear, and still nobody else's business.
        let _ = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600));
    }
    let read = pool(4).connect_with(options.read_only(true)).await?;
    Ok(Pools::Sqlite { write, read })
}

impl Tx {
    /// Runs a statement and gives its rows. Placeholders are `$1`, `$2`, …
    pub async fn rows(&mut self, sql: &'static str, values: &[Value]) -> Result<Vec<Row>, StoreError> {
        Ok(match &mut self.inner {
            Inner::Sqlite(tx) => bound!(sql, values).fetch_all(&mut **tx).await?.into_iter().map(Row::Sqlite).collect(),
            Inner::Postgres(tx) => {
                bound!(sql, values).fetch_all(&mut **tx).await?.into_iter().map(Row::Postgres).collect()
            }
        })
    }

    /// Runs a statement and gives its first row, if there is one.
    pub async fn row(&mut self, sql: &'static str, values: &[Value]) -> Result<Option<Row>, StoreError> {
        Ok(match &mut self.inner {
            Inner::Sqlite(tx) => bound!(sql, values).fetch_optional(&mut **tx).await?.map(Row::Sqlite),
            Inner::Postgres(tx) => bound!(sql, values).fetch_optional(&mut **tx).await?.map(Row::Postgres),
        })
    }

    /// Runs a statement and gives the number of rows it changed.
    pub async fn run(&mut self, sql: &'static str, values: &[Value]) -> Result<u64, StoreError> {
        Ok(match &mut self.inner {
            Inner::Sqlite(tx) => bound!(sql, values).execute(&mut **tx).await?.rows_affected(),
            Inner::Postgres(tx) => bound!(sql, values).execute(&mut **tx).await?.rows_affected(),
        })
    }

    /// Runs a statement on PostgreSQL only; SQLite needs no row locks, since whoever writes is alone.
    pub(super) async fn postgres_only(&mut self, sql: &'static str, values: &[Value]) -> Result<(), StoreError> {
        if let Inner::Postgres(tx) = &mut self.inner {
            bound!(sql, values).execute(&mut **tx).await?;
        }
        Ok(())
    }

    /// Whether this is SQLite.
    pub(super) const fn is_sqlite(&self) -> bool {
        matches!(self.inner, Inner::Sqlite(_))
    }

    /// Makes it last, and wakes whoever waits for what has changed.
    pub async fn commit(mut self) -> Result<(), StoreError> {
        self.announce().await?;
        match self.inner {
            Inner::Sqlite(tx) => tx.commit().await?,
            Inner::Postgres(tx) => tx.commit().await?,
        }
        for node in &self.woken {
            self.wakes.wake(node);
        }
        Ok(())
    }
}
