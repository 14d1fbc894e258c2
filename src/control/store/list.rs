//! Lists of the store by pages.
use super::error::StoreError;
use super::network::Network;
use super::operator_key::OperatorKey;
use super::page::{ColumnType, Conditions, Listing, MOST_COUNTED, Page, PageRequest, SortColumn};
use super::release::Release;
use super::row::Row;
use super::sql::Tx;
use super::token::Token;

const fn text(name: &'static str, sql: &'static str) -> SortColumn {
    SortColumn { name, sql, holds: ColumnType::Text }
}

const fn int(name: &'static str, sql: &'static str) -> SortColumn {
    SortColumn { name, sql, holds: ColumnType::Int }
}

/// Nodes and hubs.
pub static NODES: Listing = Listing {
    columns: &[
        text("id", "n.id"),
        text("label", "COALESCE(n.label, '')"),
        text("network", "n.network"),
        text("state", "n.state"),
        int("created", "n.created_ms"),
    ],
    key: "n.id",
    order: "id",
    text: &["n.id", "n.label"],
};

/// Enrolment tokens.
pub static TOKENS: Listing = Listing {
    columns: &[text("id", "t.id"), int("created", "t.created_ms")],
    key: "t.id",
    order: "-created",
    text: &["t.id", "t.note", "t.node", "t.network"],
};

/// Keys of operators.
pub static OPERATOR_KEYS: Listing = Listing {
    columns: &[text("id", "t.id"), text("name", "t.name"), text("role", "t.role"), int("created", "t.created_ms")],
    key: "t.id",
    order: "-created",
    text: &["t.id", "t.name"],
};

/// Networks.
pub static NETWORKS: Listing = Listing {
    columns: &[text("name", "t.name"), int("created", "t.created_ms")],
    key: "t.name",
    order: "name",
    text: &["t.name"],
};

/// Desired releases, the network's own before those of its nodes.
pub static RELEASES: Listing = Listing {
    columns: &[text("network", "t.network"), text("version", "t.version"), int("since", "t.since_ms")],
    // No name of a network or node has a slash.
    key: "t.network || '/' || t.node",
    order: "network",
    text: &["t.network", "t.node", "t.version"],
};

impl Tx {
    /// Counts the rows of a list, no further than [`MOST_COUNTED`].
    pub(super) async fn count_listed(&mut self, from: &str, wanted: &Conditions) -> Result<u64, StoreError> {
        let (clauses, values) = wanted.sql();
        let sql =
            format!("SELECT COUNT(*) AS n FROM (SELECT 1 AS one FROM {from}{clauses} LIMIT {MOST_COUNTED}) AS counted");
        let rows = self.rows_built(sql, &values).await?;
        rows.first().ok_or(StoreError::Unreadable("list"))?.count("n")
    }

    async fn list<T>(
        &mut self,
        table: &'static str,
        filter: &str,
        page: &PageRequest,
        read: impl Fn(&Row) -> Result<T, StoreError>,
    ) -> Result<Page<T>, StoreError> {
        let mut wanted = Conditions::default();
        wanted.contain(page.listing().text, filter);
        let (clauses, values) = page.clauses(&wanted);
        let sql = format!("SELECT t.*, {} FROM {table} t{clauses}", page.columns());
        let (rows, next) = page.cut(self.rows_built(sql, &values).await?)?;
        let total = match page.shown_total(&rows, next.as_ref()) {
            Some(total) => total,
            None => self.count_listed(&format!("{table} t"), &wanted).await?,
        };
        Ok(Page { items: rows.iter().map(read).collect::<Result<_, _>>()?, next, total })
    }

    /// A page of [`TOKENS`].
    pub async fn list_tokens(&mut self, filter: &str, page: &PageRequest) -> Result<Page<Token>, StoreError> {
        self.list("token", filter, page, Token::read).await
    }

    /// A page of [`OPERATOR_KEYS`].
    pub async fn list_operator_keys(
        &mut self,
        filter: &str,
        page: &PageRequest,
    ) -> Result<Page<OperatorKey>, StoreError> {
        self.list("operator_key", filter, page, OperatorKey::read).await
    }

    /// A page of [`NETWORKS`].
    pub async fn list_networks(&mut self, filter: &str, page: &PageRequest) -> Result<Page<Network>, StoreError> {
        self.list("network", filter, page, Network::read).await
    }

    /// A page of [`RELEASES`].
    pub async fn list_releases(&mut self, filter: &str, page: &PageRequest) -> Result<Page<Release>, StoreError> {
        self.list("wanted_release", filter, page, Release::read).await
    }
}
