//! Values bound to placeholders, and rows read back, of either database.
use super::error::StoreError;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;

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

/// A row of a result.
pub enum Row {
    /// Of SQLite.
    Sqlite(SqliteRow),
    /// Of PostgreSQL.
    Postgres(PgRow),
}

impl Row {
    /// A nullable integer column.
    pub fn opt_int(&self, column: &'static str) -> Result<Option<i64>, StoreError> {
        match self {
            Self::Sqlite(r) => r.try_get(column),
            Self::Postgres(r) => r.try_get(column),
        }
        .map_err(|_| StoreError::Unreadable(column))
    }

    /// A nullable text column.
    pub fn opt_text(&self, column: &'static str) -> Result<Option<String>, StoreError> {
        match self {
            Self::Sqlite(r) => r.try_get(column),
            Self::Postgres(r) => r.try_get(column),
        }
        .map_err(|_| StoreError::Unreadable(column))
    }

    /// An integer column.
    pub fn int(&self, column: &'static str) -> Result<i64, StoreError> {
        self.opt_int(column)?.ok_or(StoreError::Unreadable(column))
    }

    /// A text column.
    pub fn text(&self, column: &'static str) -> Result<String, StoreError> {
        self.opt_text(column)?.ok_or(StoreError::Unreadable(column))
    }

    /// An integer column that is never negative: a count, a time or a size.
    pub fn count(&self, column: &'static str) -> Result<u64, StoreError> {
        u64::try_from(self.int(column)?).map_err(|_| StoreError::Unreadable(column))
    }

    /// As [`Row::count`], nullable; a negative value reads as null.
    pub fn opt_count(&self, column: &'static str) -> Result<Option<u64>, StoreError> {
        Ok(self.opt_int(column)?.and_then(|n| u64::try_from(n).ok()))
    }

    /// A boolean column, stored as an integer.
    pub fn flag(&self, column: &'static str) -> Result<bool, StoreError> {
        Ok(self.int(column)? != 0)
    }

    /// A text column parsed into `T`.
    pub fn parsed<T: std::str::FromStr>(&self, column: &'static str) -> Result<T, StoreError> {
        self.text(column)?.parse().map_err(|_| StoreError::Unreadable(column))
    }

    /// A nullable text column parsed into `T`.
    pub fn opt_parsed<T: std::str::FromStr>(&self, column: &'static str) -> Result<Option<T>, StoreError> {
        self.opt_text(column)?.map(|t| t.parse().map_err(|_| StoreError::Unreadable(column))).transpose()
    }

    /// A text column that holds JSON.
    pub fn json<T: serde::de::DeserializeOwned>(&self, column: &'static str) -> Result<T, StoreError> {
        serde_json::from_str(&self.text(column)?).map_err(|_| StoreError::Unreadable(column))
    }

    /// A nullable text column that holds JSON.
    pub fn opt_json<T: serde::de::DeserializeOwned>(&self, column: &'static str) -> Result<Option<T>, StoreError> {
        let text = self.opt_text(column)?;
        text.map(|t| serde_json::from_str(&t).map_err(|_| StoreError::Unreadable(column))).transpose()
    }
}
