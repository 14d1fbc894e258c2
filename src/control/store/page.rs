//! Pages of lists: what a list is sorted by, the opaque cursor from one page to the next, and the conditions of its rows.
//!
//! A cursor is the place after the last row of a page, in the order of the list: what is added or removed before that place
//! moves no other row, and a page costs the same wherever it begins.
use super::error::StoreError;
use super::row::{Row, Value};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

/// The longest page of a list, and its default length.
pub const MAX_PAGE: i64 = 1000;

/// Rows are counted no further than this.
pub const MOST_COUNTED: i64 = 1001;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// BIGINT.
    Int,
    /// TEXT.
    Text,
}

/// Something a list can be sorted by.
#[derive(Clone, Copy, Debug)]
pub struct SortColumn {
    /// As clients name it.
    pub name: &'static str,
    /// Never null; with an index together with the key, or of a table that stays small.
    pub sql: &'static str,
    /// Its type.
    pub holds: ColumnType,
}

/// A list.
#[derive(Debug)]
pub struct Listing {
    /// What it can be sorted by.
    pub columns: &'static [SortColumn],
    /// The unique text by which equal rows are sorted.
    pub key: &'static str,
    /// The order unless the client names one.
    pub order: &'static str,
    /// The columns in which a filter looks for text.
    pub text: &'static [&'static str],
}

/// Not a page of the list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPage {
    /// Names what there is.
    #[error("must be one of {0}; with - in front of it, descending")]
    Sort(String),
    /// Changed, or of another list or order.
    #[error("must be `next_cursor` of the page before, in the same order")]
    Cursor,
}

impl BadPage {
    /// The parameter at fault.
    pub const fn field(&self) -> &'static str {
        match self {
            Self::Sort(_) => "sort",
            Self::Cursor => "cursor",
        }
    }
}

/// The content of a cursor.
#[derive(Serialize, Deserialize)]
struct Cursor(String, serde_json::Value, String);

/// A page that is asked for.
#[derive(Clone, Debug)]
pub struct PageRequest {
    listing: &'static Listing,
    column: SortColumn,
    descending: bool,
    after: Option<(Value, String)>,
    limit: i64,
}

impl PageRequest {
    /// The page of at most `limit` rows after `cursor`; an empty one begins.
    pub fn new(listing: &'static Listing, sort: &str, cursor: &str, limit: Option<i64>) -> Result<Self, BadPage> {
        let sort = if sort.is_empty() { listing.order } else { sort };
        let (name, descending) = sort.strip_prefix('-').map_or((sort, false), |name| (name, true));
        let column = listing
            .columns
            .iter()
            .find(|c| c.name == name)
            .copied()
            .ok_or_else(|| BadPage::Sort(listing.columns.iter().map(|c| c.name).collect::<Vec<_>>().join(", ")))?;
        let limit = limit.unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE);
        let mut page = Self { listing, column, descending, after: None, limit };
        if !cursor.is_empty() {
            page.after = Some(page.read(cursor).ok_or(BadPage::Cursor)?);
        }
        Ok(page)
    }

    fn word(&self) -> String {
        format!("{}{}", if self.descending { "-" } else { "" }, self.column.name)
    }

    fn read(&self, cursor: &str) -> Option<(Value, String)> {
        let Cursor(word, value, key) = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?;
        let value = match self.column.holds {
            ColumnType::Int => value.as_i64()?.into(),
            ColumnType::Text => value.as_str().filter(|t| !t.contains('\0'))?.into(),
        };
        (word == self.word() && !key.contains('\0')).then_some((value, key))
    }

    /// The cursor after `row`.
    fn cursor(&self, row: &Row) -> Result<String, StoreError> {
        let value = match self.column.holds {
            ColumnType::Int => row.int("sort_value")?.into(),
            ColumnType::Text => row.text("sort_value")?.into(),
        };
        let cursor = Cursor(self.word(), value, row.text("sort_key")?);
        Ok(URL_SAFE_NO_PAD.encode(serde_json::to_vec(&cursor).unwrap_or_default()))
    }

    /// What a row of the list has beside its own columns, for [`PageRequest::cut`].
    pub(super) fn columns(&self) -> String {
        format!("{} AS sort_value, {} AS sort_key", self.column.sql, self.listing.key)
    }

    const fn direction(&self) -> &'static str {
        if self.descending { " DESC" } else { "" }
    }

    /// The order of rows with [`PageRequest::columns`] of `table`.
    pub(super) fn order_within(&self, table: &str) -> String {
        let direction = self.direction();
        format!(" ORDER BY {table}.sort_value{direction}, {table}.sort_key{direction}")
    }

    /// The condition, order and limit of the page: a row more than it has tells whether there is another one.
    pub(super) fn clauses(&self, wanted: &Conditions) -> (String, Vec<Value>) {
        let (column, key, direction) = (self.column.sql, self.listing.key, self.direction());
        let mut all = wanted.clone();
        let sign = if self.descending { "<" } else { ">" };
        match &self.after {
            Some((_, last)) if column == key => all.and(&format!("{key} {sign} $?"), [last.as_str().into()]),
            Some((value, last)) => {
                all.and(&format!("({column}, {key}) {sign} ($?, $?)"), [value.clone(), last.as_str().into()]);
            }
            None => {}
        }
        let order = if column == key { String::new() } else { format!("{column}{direction}, ") };
        let (mut sql, mut values) = all.sql();
        values.push((self.limit + 1).into());
        sql.push_str(&format!(" ORDER BY {order}{key}{direction} LIMIT ${}", values.len()));
        (sql, values)
    }

    /// The rows of the page, and the cursor of the next one.
    pub(super) fn cut(&self, mut rows: Vec<Row>) -> Result<(Vec<Row>, Option<String>), StoreError> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(|row| self.cursor(row)).transpose()?;
        Ok((rows, next))
    }

    /// The number of all rows, if the page shows it.
    pub(super) fn shown_total(&self, rows: &[Row], next: Option<&String>) -> Option<u64> {
        (self.after.is_none() && next.is_none()).then(|| u64::try_from(rows.len()).unwrap_or(u64::MAX))
    }

    /// The list.
    pub(super) const fn listing(&self) -> &'static Listing {
        self.listing
    }
}

/// A page of a list.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// In the order of the list.
    pub items: Vec<T>,
    /// For the next page; `None`: there is none.
    pub next: Option<String>,
    /// Rows on all pages; [`MOST_COUNTED`]: that many or more.
    pub total: u64,
}

/// Conditions on rows, all of which must hold, with the values of their placeholders.
#[derive(Clone, Debug, Default)]
pub(super) struct Conditions {
    sql: String,
    values: Vec<Value>,
}

impl Conditions {
    /// Adds a condition in which each `$?` stands for the next of `values`.
    pub(super) fn and<const N: usize>(&mut self, sql: &str, values: [Value; N]) {
        self.sql.push_str(if self.sql.is_empty() { " WHERE " } else { " AND " });
        let mut parts = sql.split("$?");
        self.sql.push_str(parts.next().unwrap_or_default());
        for (part, value) in parts.zip(values) {
            self.values.push(value);
            self.sql.push_str(&format!("${}{part}", self.values.len()));
        }
    }

    /// Adds: `text` is in one of `columns`, whatever its case.
    pub(super) fn contain(&mut self, columns: &[&str], text: &str) {
        if text.is_empty() {
            return;
        }
        let pattern = Value::from(format!("%{}%", escape_pattern(&text.to_lowercase())));
        let mut any = Self::default();
        for column in columns {
            any.sql.push_str(if any.sql.is_empty() { "(" } else { " OR " });
            self.values.push(pattern.clone());
            any.sql.push_str(&format!("LOWER({column}) LIKE ${} ESCAPE '!'", self.values.len()));
        }
        any.sql.push(')');
        self.and(&any.sql, []);
    }

    /// As SQL.
    pub(super) fn sql(&self) -> (String, Vec<Value>) {
        (self.sql.clone(), self.values.clone())
    }
}

/// `text` without a meaning of its own in a LIKE pattern whose escape is `!`.
fn escape_pattern(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '!' | '%' | '_') {
            out.push('!');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    static PARTS: Listing = Listing {
        columns: &[
            SortColumn { name: "id", sql: "t.id", holds: ColumnType::Text },
            SortColumn { name: "age", sql: "t.age_ms", holds: ColumnType::Int },
        ],
        key: "t.id",
        order: "-age",
        text: &["t.id"],
    };

    fn cursor(content: &str) -> String {
        URL_SAFE_NO_PAD.encode(content)
    }

    #[test]
    fn page_begins_after_its_cursor() {
        let page = PageRequest::new(&PARTS, "", &cursor(r#"["-age", 7, "b"]"#), Some(2)).unwrap();
        let mut wanted = Conditions::default();
        wanted.contain(PARTS.text, "A_");
        let (sql, values) = page.clauses(&wanted);
        assert_eq!(
            sql,
            " WHERE (LOWER(t.id) LIKE $1 ESCAPE '!') AND (t.age_ms, t.id) < ($2, $3) ORDER BY t.age_ms DESC, t.id DESC LIMIT $4"
        );
        assert_eq!(values, ["%a!_%".into(), Value::from(7), "b".into(), 3.into()]);
        let page = PageRequest::new(&PARTS, "id", &cursor(r#"["id", "b", "b"]"#), None).unwrap();
        assert_eq!(page.clauses(&Conditions::default()).0, " WHERE t.id > $1 ORDER BY t.id LIMIT $2");
    }

    #[test]
    fn foreign_cursor_is_refused() {
        for content in
            [r#"["age", 7, "b"]"#, r#"["-age", "7", "b"]"#, r#"["-age", 7]"#, "[]", "x", r#"["-age", 7, "\u0000"]"#]
        {
            assert_eq!(PageRequest::new(&PARTS, "", &cursor(content), None).unwrap_err(), BadPage::Cursor, "{content}");
        }
        assert_eq!(PageRequest::new(&PARTS, "", "edge-1", None).unwrap_err(), BadPage::Cursor);
        let error = PageRequest::new(&PARTS, "-name", "", None).unwrap_err();
        assert_eq!((error.field(), error.to_string().contains("id, age")), ("sort", true));
    }

    #[test]
    fn pattern_matches_its_own_text_only() {
        assert_eq!(escape_pattern("a%b_c!"), "a!%b!_c!!");
    }
}
