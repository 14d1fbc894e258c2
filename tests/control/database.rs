//! A new database of either kind for each test.
use spoke_control::store::Store;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::process::Command;

/// The kinds of database the control plane runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Sqlite,
    Postgres,
}

/// A database, deleted with the value (SQLite) or with the server (PostgreSQL).
pub struct Database {
    pub url: String,
    _dir: Option<tempfile::TempDir>,
}

impl Database {
    /// A database owned elsewhere.
    pub fn at(url: String) -> Self {
        Self { url, _dir: None }
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run scripts/test-control"))
}

/// Runs statements on the server that listens in `dir`.
async fn sql(dir: &str, database: &str, statements: &[&str]) {
    let mut psql = Command::new("psql");
    psql.args(["--quiet", "--no-psqlrc", "--set", "ON_ERROR_STOP=1"]);
    psql.args(statements.iter().flat_map(|s| ["-c", s]));
    let made = psql.arg(format!("postgres://spoke@localhost/{database}?host={dir}")).output().await.unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// An empty database.
pub async fn fresh(kind: Kind) -> Database {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    match kind {
        Kind::Sqlite => {
            let dir = tempfile::tempdir().unwrap();
            Database { url: format!("sqlite:{}", dir.path().join("fleet.db").display()), _dir: Some(dir) }
        }
        Kind::Postgres => {
            let dir = variable("SPOKE_TEST_POSTGRES");
            let name = format!("t{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            sql(&dir, "postgres", &[&format!("CREATE DATABASE {name}")]).await;
            Database::at(format!("postgres://spoke@localhost/{name}?host={dir}"))
        }
    }
}

/// A PostgreSQL server for fault injection; stopped when dropped.
pub struct Cluster {
    dir: tempfile::TempDir,
}

impl Cluster {
    /// Creates and starts it.
    pub async fn start() -> Self {
        let cluster = Self { dir: tempfile::tempdir_in("/tmp").unwrap() };
        cluster.ctl("start").await;
        cluster
    }

    async fn ctl(&self, what: &str) {
        let done = Command::new(variable("SPOKE_TEST_POSTGRES_CTL")).arg(what).arg(self.dir.path()).output().await;
        let done = done.unwrap();
        assert!(done.status.success(), "{what}: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// Restarts it as `pg_ctl` does in `mode`; "immediate" is a crash.
    pub async fn restart(&self, mode: &str) {
        self.ctl(&format!("restart-{mode}")).await;
    }

    /// Runs statements on it.
    pub async fn sql(&self, statements: &[&str]) {
        sql(&self.dir.path().display().to_string(), "postgres", statements).await;
    }

    /// A database of it.
    pub async fn database(&self) -> String {
        self.sql(&["CREATE DATABASE fleet"]).await;
        format!("postgres://spoke@localhost/fleet?host={}", self.dir.path().display())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let ctl = variable("SPOKE_TEST_POSTGRES_CTL");
        let _ = std::process::Command::new(ctl).arg("stop").arg(self.dir.path()).output();
    }
}

/// An empty database, opened.
pub async fn open(kind: Kind) -> (Store, Database) {
    let database = fresh(kind).await;
    (Store::open(&database.url).await.unwrap(), database)
}

/// Defines each test for both kinds of database.
#[macro_export]
macro_rules! on_both_databases {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        mod sqlite { $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name($crate::database::Kind::Sqlite).await }
        )* }
        mod postgres { $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name($crate::database::Kind::Postgres).await }
        )* }
    };
}
