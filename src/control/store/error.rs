//! Errors of the database by what a caller can do about them.
use sqlx::migrate::MigrateError;

/// Why a database operation failed. A failed transaction leaves nothing behind.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Unreachable, or locked for longer than the timeout.
    #[error("the database cannot be reached or is busy; try again")]
    Unavailable(#[source] sqlx::Error),
    /// The file system or the role does not allow writing.
    #[error("the database is read-only: check the file's and its directory's owner, or the role's rights")]
    ReadOnly(#[source] sqlx::Error),
    /// The file cannot be opened.
    #[error(
        "the database file cannot be opened: check that its directory exists, has this user as owner, and is not on a read-only file system"
    )]
    CannotOpen(#[source] sqlx::Error),
    /// No space left.
    #[error("the database has no space left: free some, nothing was changed")]
    Full(#[source] sqlx::Error),
    /// A unique value is in use.
    #[error("the value is already in use")]
    UniqueViolation(#[source] sqlx::Error),
    /// Two transactions conflicted: the same transaction succeeds when repeated.
    #[error("the transaction conflicted with another one; try again")]
    TransactionConflict(#[source] sqlx::Error),
    /// Not the address of a database.
    #[error("not a database: {0:?}; write sqlite:/absolute/path or postgres://user@host/name")]
    BadUrl(String),
    /// A newer release has migrated the schema.
    #[error(
        "the database has the schema {0} of a newer release, and nothing was changed: start that release or a later one, or restore a backup of this one into an empty database"
    )]
    NewerSchema(i64),
    /// The schema could not be migrated.
    #[error("cannot migrate the database schema")]
    Migrate(#[source] MigrateError),
    /// A stored value cannot be parsed; names the column.
    #[error("the database holds an unreadable value in {0}")]
    Unreadable(&'static str),
    /// The system's random number generator failed.
    #[error("no random numbers from the system")]
    Random,
    /// The entity is another version than the client changes: these settings differ.
    #[error("it was changed since it was read: {}", .0.join(", "))]
    Changed(Vec<&'static str>),
    /// Another process carries out the request by now.
    #[error("the request took too long and was given to another process; nothing was changed here")]
    ClaimLost,
    /// Anything else.
    #[error("the database refused the statement")]
    Database(#[source] sqlx::Error),
}

impl StoreError {
    /// Whether the same request may succeed later without intervention.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::TransactionConflict(_) | Self::ClaimLost => true,
            Self::ReadOnly(_)
            | Self::CannotOpen(_)
            | Self::Full(_)
            | Self::UniqueViolation(_)
            | Self::BadUrl(_)
            | Self::NewerSchema(_)
            | Self::Migrate(_)
            | Self::Unreadable(_)
            | Self::Random
            | Self::Changed(_)
            | Self::Database(_) => false,
        }
    }
}

impl From<MigrateError> for StoreError {
    fn from(e: MigrateError) -> Self {
        match e {
            MigrateError::VersionMissing(version) => Self::NewerSchema(version),
            other => Self::Migrate(other),
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
            return Self::UniqueViolation(e);
        }
        let code = db.code().unwrap_or_default();
        // SQLite's extended result codes carry the primary one in the low byte; PostgreSQL's SQLSTATE has five characters.
        let primary = code.parse::<u32>().ok().filter(|_| code.len() < 5).map(|c| c & 0xff);
        match (code.as_ref(), primary) {
            (_, Some(5 | 6)) => Self::Unavailable(e),
            (_, Some(8)) | ("25006" | "42501", _) => Self::ReadOnly(e),
            (_, Some(14)) => Self::CannotOpen(e),
            (_, Some(13)) | ("53100", _) => Self::Full(e),
            ("40001" | "40P01", _) => Self::TransactionConflict(e),
            // Connection exception, operator intervention, too many connections, lock or idle-transaction timeout.
            (c, None) if c.starts_with("08") || c.starts_with("57") || matches!(c, "53300" | "55P03" | "25P03") => {
                Self::Unavailable(e)
            }
            _ => Self::Database(e),
        }
    }
}
